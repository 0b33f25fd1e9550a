//! What a member answers to others.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use libp2p::multiaddr::Protocol;
use qk_protocol::index::{self, Rules, Write};
use qk_protocol::message::{Answer, Contact, NodeId, Reply, Request};
use serde_bytes::ByteBuf;

use super::{Member, unix_now};
use crate::manners::Grant;
use crate::net::address::CIRCUITS_MAX;
use crate::net::{Circuit, Multiaddr, PeerId};
use crate::node::given::GivenShelf;
use crate::node::shelf::{StoreShelf, record};
use crate::node::up;
use crate::store::StoreError;

impl Member {
    /// Answers a question of somebody without a node; `None` where it is none. `looks` says whether a cache
    /// looks up what it does not know.
    pub(crate) async fn answer_on_web(self: Arc<Self>, bytes: &[u8], looks: bool) -> Option<Reply> {
        let request = Request::decode(bytes).ok()?.message;
        let mut grant = None;
        match &request {
            Request::Get(get) => {
                if let (Some(cache), true, 256) = (&self.cache, looks, get.bits) {
                    cache.look(&self, get.point).await;
                }
            }
            Request::Log { .. } => grant = self.logs.admit().await,
            Request::Near { .. } | Request::Network { .. } => {}
            // Nothing is taken from who is not there to be asked.
            Request::Put(_) | Request::Have(_) => return None,
        }
        self.counters.index_asked(Some(&request));
        let nobody = Contact {
            node: NodeId(Vec::new()),
            addrs: Vec::new(),
        };
        self.answer_granted(nobody, request, Vec::new(), grant)
            .await
    }

    /// Answers a peer's request; no bytes where it is not a request. Runs as a task of its own.
    pub(in crate::node) async fn answer(
        self: Arc<Self>,
        peer: PeerId,
        observed: Multiaddr,
        bytes: Vec<u8>,
    ) -> Vec<u8> {
        let decoded = Request::decode(&bytes).ok();
        self.counters
            .index_asked(decoded.as_ref().map(|decoded| &decoded.message));
        let Some(decoded) = decoded else {
            return Vec::new();
        };
        let joined = self.joined();
        let rules = Rules {
            network: &joined.network,
            key: &self.key,
        };
        let request = decoded.message;
        let closer = match index::point_of(&request, &rules) {
            Some(point) => self.closest(point).await,
            None => Vec::new(),
        };
        if let (Some(cache), Request::Get(get)) = (&self.cache, &request)
            && get.bits == 256
            && (cache.config.everybody || joined.secret.is_some() || up::is_local(&observed))
        {
            cache.look(&self, get.point).await;
        }
        let addrs = match &request {
            Request::Have(have) => {
                let relays = self.relay_hosts(&have.addrs).await;
                claimed(&have.addrs, peer, &observed, &relays)
            }
            Request::Put(_)
            | Request::Get(_)
            | Request::Near { .. }
            | Request::Network { .. }
            | Request::Log { .. } => Vec::new(),
        };
        let node = NodeId(peer.to_bytes());
        let from = Contact { node, addrs };
        let grant = match &request {
            Request::Log { .. } => self.logs.admit().await,
            _ => None,
        };
        let reply = self.answer_granted(from, request, closer, grant).await;
        reply.map_or_else(Vec::new, |reply| reply.encode())
    }

    /// Answers from disk; pieces of logs only with leave, and as fast as that says.
    async fn answer_granted(
        self: Arc<Self>,
        from: Contact,
        request: Request,
        closer: Vec<Contact>,
        mut grant: Option<Grant>,
    ) -> Option<Reply> {
        let gives_logs = grant.is_some();
        let answered = tokio::task::spawn_blocking(move || {
            self.answer_from_disk(&from, request, closer, gives_logs)
        });
        let reply = answered.await.ok()?.ok()?;
        if let (Some(grant), Answer::Log(piece)) = (&mut grant, &reply.answer) {
            grant.take(piece.bytes.len()).await;
        }
        Some(reply)
    }

    /// Where this node itself knows those to be that are named as relays.
    async fn relay_hosts(&self, addrs: &[ByteBuf]) -> Vec<(PeerId, IpAddr)> {
        let circuits = addrs.iter().filter_map(circuit);
        let mut relays: Vec<PeerId> = circuits.map(|circuit| circuit.relay).collect();
        relays.truncate(CIRCUITS_MAX);
        match self.net() {
            Some(net) if !relays.is_empty() => net.hosts(relays).await.unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn answer_from_disk(
        &self,
        from: &Contact,
        request: Request,
        closer: Vec<Contact>,
        gives_logs: bool,
    ) -> Result<Reply, StoreError> {
        let joined = self.joined();
        let rules = Rules {
            network: &joined.network,
            key: &self.key,
        };
        let now = unix_now();
        self.door.with(|store| {
            let shelf = GivenShelf {
                shelf: StoreShelf {
                    store,
                    network: self.id,
                },
                logs: gives_logs.then_some(&self.logs),
            };
            let (reply, writes) = {
                let hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
                index::answer(&shelf, &hints, &rules, from, request, closer, now)
            };
            let mut records = Vec::new();
            let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
            for write in writes {
                match write {
                    Write::Keep(point, statement) => records.push(record(&statement, point, now)),
                    Write::Hint(point, provider) => {
                        hints.add(point, provider, now);
                    }
                }
            }
            drop(hints);
            // Answered only when it is durable: what is acknowledged survives a power cut.
            if !records.is_empty() {
                store.append(records)?;
            }
            Ok(reply)
        })
    }
}

/// Of the addresses that a peer claims, those at the host it was seen at, and those over relays that
/// this node itself knows to be at that host: it cannot send readers to a victim. The port it listens
/// on is not the one it was seen with.
fn claimed(
    addrs: &[ByteBuf],
    peer: PeerId,
    observed: &Multiaddr,
    relays: &[(PeerId, IpAddr)],
) -> Vec<ByteBuf> {
    let Some(seen) = ip(observed) else {
        return Vec::new();
    };
    let mut kept: Vec<ByteBuf> = Vec::new();
    for addr in addrs {
        let Ok(parsed) = Multiaddr::try_from(addr.to_vec()) else {
            continue;
        };
        let Some(host) = ip(&parsed).filter(|ip| !ip.is_unspecified()) else {
            continue;
        };
        let believed = match circuit(addr) {
            Some(circuit) => {
                relays.contains(&(circuit.relay, host))
                    && circuit.target.is_none_or(|target| target == peer)
            }
            None => host == seen && !over_relay(&parsed),
        };
        if believed && !kept.contains(addr) {
            kept.push(addr.clone());
        }
    }
    kept
}

fn circuit(addr: &ByteBuf) -> Option<Circuit> {
    let parsed = Multiaddr::try_from(addr.to_vec()).ok()?;
    Circuit::of(&parsed)
}

fn over_relay(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_believed_only_addresses_at_its_own_host() {
        let bytes = |text: &str| ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec());
        let own = bytes("/ip4/192.0.2.1/tcp/4433");
        let all = [
            own.clone(),
            own.clone(),
            bytes("/ip4/192.0.2.2/tcp/4433"),
            bytes("/ip4/0.0.0.0/tcp/4433"),
            bytes("/ip6/::1/tcp/4433"),
            bytes("/dns4/victim.example/tcp/80"),
            ByteBuf::from(vec![0xff; 12]),
        ];
        let peer = PeerId::random();
        let seen = |text: &str| claimed(&all, peer, &text.parse().unwrap(), &[]);
        assert_eq!(seen("/ip4/192.0.2.1/tcp/50000"), [own]);
        assert!(seen("/ip4/198.51.100.1/tcp/50000").is_empty());
        assert!(seen("/dns4/host.example/tcp/50000").is_empty());
        let nowhere: Multiaddr = "/ip4/0.0.0.0/tcp/1".parse().unwrap();
        assert!(claimed(&all, peer, &nowhere, &[]).is_empty());
    }

    #[test]
    fn a_relay_is_believed_only_where_this_node_knows_it_to_be() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let over = |host: &str, relay: PeerId| {
            let text = format!("/ip4/{host}/tcp/4001/p2p/{relay}/p2p-circuit");
            ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec())
        };
        let relays = [(relay, "192.0.2.9".parse().unwrap())];
        let seen: Multiaddr = "/ip4/198.51.100.1/tcp/50000".parse().unwrap();
        let good = over("192.0.2.9", relay);
        let victim = over("203.0.113.80", relay);
        let unknown = over("192.0.2.9", PeerId::random());
        // At its own host it cannot pass for a relay that this node does not know either.
        let own = over("198.51.100.1", PeerId::random());
        let text = format!("/ip4/192.0.2.9/tcp/1/p2p/{relay}/p2p-circuit/p2p/{relay}");
        let other_target = ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec());
        let odd = "/ip4/198.51.100.1/tcp/1/p2p-circuit";
        let odd = ByteBuf::from(odd.parse::<Multiaddr>().unwrap().to_vec());
        let all = [
            good.clone(),
            victim.clone(),
            unknown,
            own,
            other_target,
            odd,
        ];
        assert_eq!(claimed(&all, peer, &seen, &relays), [good]);
        // Whoever believed what is said of the relay would send readers to the victim.
        let lied = [(relay, "203.0.113.80".parse().unwrap())];
        assert_eq!(claimed(&all, peer, &seen, &lied), [victim]);
    }
}
