//! Which connections are let in: limits on their number, by kind, peer and prefix, and bans.
//!
//! The gate is the first field of the composed behaviour and the only one that refuses: those
//! after it never learn of a connection that does not come about.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::address::{Prefix, is_circuit};
use super::limits::{BAN_TIME, BANS_MAX, Limits, PUNCH_ADDRESSES_MAX};

/// Why a connection was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many connections of this kind as are allowed.
    #[error("there are {max} {kind} connections already")]
    Full {
        /// Which limit it was.
        kind: &'static str,
        /// The limit.
        max: usize,
    },
    /// A stranger's address over a relay: nobody asked for it.
    #[error("addresses over relays are dialled only for somebody who waits for it")]
    Circuit,
    /// More addresses than one who wants a direct connection has.
    #[error("more than {max} addresses of one peer")]
    Addresses {
        /// How many there may be.
        max: usize,
    },
    /// The peer misbehaved.
    #[error("{peer} is banned: {why}")]
    Banned {
        /// Who.
        peer: PeerId,
        /// What it did.
        why: String,
    },
}

/// A peer that is not talked to for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Who.
    pub peer: PeerId,
    /// What it did.
    pub why: String,
    until: Instant,
}

/// A behaviour that opens no streams and only refuses connections.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    connections: HashMap<ConnectionId, Connection>,
    /// The dial over a relay that is wanted, until it begins.
    wanted: Option<ConnectionId>,
    bans: HashMap<PeerId, Ban>,
    /// The order in which bans were spoken, for forgetting the oldest.
    banned: VecDeque<PeerId>,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    stage: Stage,
    peer: Option<PeerId>,
    prefix: Option<Prefix>,
    /// Over a relay, whose prefix it is then.
    relayed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    PendingIn,
    PendingOut,
    In,
    Out,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: HashMap::new(),
            wanted: None,
            bans: HashMap::new(),
            banned: VecDeque::new(),
        }
    }

    /// Lets this dial, which goes over a relay, begin.
    pub(super) fn want_circuit(&mut self, id: ConnectionId) {
        self.wanted = Some(id);
    }

    /// Refuses every further connection with `peer` for [`BAN_TIME`].
    pub(super) fn ban(&mut self, peer: PeerId, why: String) {
        let until = Instant::now() + BAN_TIME;
        if self.bans.insert(peer, Ban { peer, why, until }).is_none() {
            self.banned.push_back(peer);
        }
        while self.banned.len() > BANS_MAX {
            self.banned
                .pop_front()
                .and_then(|oldest| self.bans.remove(&oldest));
        }
    }

    /// The ban in force against `peer`.
    pub(super) fn ban_of(&self, peer: &PeerId) -> Option<&Ban> {
        self.bans.get(peer).filter(|ban| ban.until > Instant::now())
    }

    /// All bans in force, oldest first.
    pub(super) fn bans(&self) -> Vec<Ban> {
        self.banned
            .iter()
            .filter_map(|peer| self.ban_of(peer))
            .cloned()
            .collect()
    }

    fn admit_pending(&mut self, id: ConnectionId, new: Connection) -> Result<(), Refused> {
        if let Some(peer) = new.peer {
            self.refuse_banned(&peer)?;
        }
        match new.stage {
            Stage::PendingIn => {
                self.room("pending inbound", self.limits.pending_in_max, |c| {
                    c.stage == Stage::PendingIn
                })?;
                if new.relayed {
                    return self.admit_relayed(new.prefix).map(|()| {
                        self.connections.insert(id, new);
                    });
                }
                if new.prefix.is_some() {
                    let max = self.limits.pending_in_per_prefix_max;
                    self.room("pending per-prefix", max, |c| {
                        c.stage == Stage::PendingIn && c.prefix == new.prefix
                    })?;
                }
                self.room_in_prefix(new.prefix)?;
            }
            Stage::PendingOut | Stage::In | Stage::Out => {
                self.room("pending outbound", self.limits.pending_out_max, |c| {
                    c.stage == Stage::PendingOut
                })?
            }
        }
        self.connections.insert(id, new);
        Ok(())
    }

    fn admit(
        &mut self,
        id: ConnectionId,
        stage: Stage,
        peer: PeerId,
        remote: &Multiaddr,
        relay: Option<&Multiaddr>,
    ) -> Result<(), Refused> {
        // It counts as established or not at all from here on, not as pending too.
        self.connections.remove(&id);
        self.refuse_banned(&peer)?;
        let limits = &self.limits;
        let (kind, max) = match stage {
            Stage::In | Stage::PendingIn => ("inbound", limits.established_in_max),
            Stage::Out | Stage::PendingOut => ("outbound", limits.established_out_max),
        };
        let relayed = relay.is_some();
        let prefix = Prefix::of(relay.unwrap_or(remote));
        if relayed {
            self.admit_relayed(prefix)?;
        }
        self.room(kind, max, |c| c.stage == stage)?;
        self.room("established", limits.established_max, |c| {
            c.is_established()
        })?;
        self.room("per-peer", limits.per_peer_max, |c| {
            c.is_established() && c.peer == Some(peer)
        })?;
        if !relayed {
            self.room_in_prefix(prefix)?;
        }
        let peer = Some(peer);
        self.connections.insert(
            id,
            Connection {
                stage,
                peer,
                prefix,
                relayed,
            },
        );
        Ok(())
    }

    fn admit_relayed(&self, relay: Option<Prefix>) -> Result<(), Refused> {
        let limits = &self.limits;
        self.room("relayed", limits.relayed_max, |c| c.relayed)?;
        self.room("relayed per-prefix", limits.relayed_per_prefix_max, |c| {
            c.relayed && c.prefix == relay
        })
    }

    /// kad and others dial what strangers tell them: never over a relay, and a peer that wants a
    /// direct connection shall not have us dial half the world.
    fn check_addresses(
        &mut self,
        id: ConnectionId,
        addresses: &[Multiaddr],
    ) -> Result<(), Refused> {
        let wanted = self.wanted.take() == Some(id);
        let max = PUNCH_ADDRESSES_MAX;
        if !wanted && addresses.iter().any(is_circuit) {
            return Err(Refused::Circuit);
        }
        match addresses.len() > max {
            true => Err(Refused::Addresses { max }),
            false => Ok(()),
        }
    }

    fn refuse_banned(&self, peer: &PeerId) -> Result<(), Refused> {
        match self.ban_of(peer) {
            None => Ok(()),
            Some(ban) => Err(Refused::Banned {
                peer: *peer,
                why: ban.why.clone(),
            }),
        }
    }

    fn room_in_prefix(&self, prefix: Option<Prefix>) -> Result<(), Refused> {
        match prefix {
            None => Ok(()),
            Some(_) => self.room("per-prefix", self.limits.per_prefix_max, |c| {
                c.prefix == prefix && c.stage != Stage::PendingOut && !c.relayed
            }),
        }
    }

    // Counting anew each time is cheap for some hundred connections, and no counter can drift.
    fn room(
        &self,
        kind: &'static str,
        max: usize,
        counts: impl Fn(&Connection) -> bool,
    ) -> Result<(), Refused> {
        match self.connections.values().filter(|c| counts(c)).count() {
            number if number < max => Ok(()),
            _ => Err(Refused::Full { kind, max }),
        }
    }
}

/// The address of the relay that a connection goes over, by one of its addresses.
fn relay_of(address: &Multiaddr) -> Option<&Multiaddr> {
    is_circuit(address).then_some(address)
}

impl Connection {
    fn is_established(&self) -> bool {
        matches!(self.stage, Stage::In | Stage::Out)
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let relay = relay_of(local);
        let new = Connection {
            stage: Stage::PendingIn,
            peer: None,
            prefix: Prefix::of(relay.unwrap_or(remote)),
            relayed: relay.is_some(),
        };
        self.admit_pending(id, new).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, Stage::In, peer, remote, relay_of(local))
            .map(|()| dummy::ConnectionHandler)
            .map_err(ConnectionDenied::new)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.check_addresses(id, addresses)
            .map_err(ConnectionDenied::new)?;
        let new = Connection {
            stage: Stage::PendingOut,
            peer,
            prefix: None,
            relayed: false,
        };
        self.admit_pending(id, new)
            .map(|()| Vec::new())
            .map_err(ConnectionDenied::new)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, Stage::Out, peer, remote, relay_of(remote))
            .map(|()| dummy::ConnectionHandler)
            .map_err(ConnectionDenied::new)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let over = match event {
            FromSwarm::ConnectionClosed(closed) => closed.connection_id,
            FromSwarm::DialFailure(failure) => failure.connection_id,
            FromSwarm::ListenFailure(failure) => failure.connection_id,
            _ => return,
        };
        self.connections.remove(&over);
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(last: u8) -> Multiaddr {
        format!("/ip4/8.8.{}.{last}/tcp/1", last / 4)
            .parse()
            .unwrap()
    }

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn full(result: Result<(), Refused>) -> &'static str {
        match result.unwrap_err() {
            Refused::Full { kind, .. } => kind,
            Refused::Banned { .. } => "banned",
            Refused::Circuit => "circuit",
            Refused::Addresses { .. } => "addresses",
        }
    }

    fn pending_out(gate: &mut Gate, number: usize, addresses: &[Multiaddr]) -> bool {
        gate.handle_pending_outbound_connection(id(number), None, addresses, Endpoint::Dialer)
            .is_ok()
    }

    #[test]
    fn relayed_connections_are_few_and_only_those_that_were_asked_for() {
        let mut gate = Gate::new(Limits::laptop());
        let over = |prefix: u8| -> Multiaddr {
            let relay = PeerId::random();
            format!("/ip4/8.8.{prefix}.8/tcp/1/p2p/{relay}/p2p-circuit")
                .parse()
                .unwrap()
        };
        assert!(!pending_out(&mut gate, 1, &[over(1)]));
        gate.want_circuit(id(2));
        assert!(!pending_out(&mut gate, 1, &[over(1)]), "another dial");
        gate.want_circuit(id(2));
        assert!(pending_out(&mut gate, 2, &[over(1)]));
        // What a peer names for a direct connection.
        let many: Vec<Multiaddr> = (0..250).map(addr).collect();
        assert!(!pending_out(&mut gate, 3, &many));
        assert!(pending_out(&mut gate, 4, &many[..PUNCH_ADDRESSES_MAX]));

        let from = PeerId::random();
        let remote: Multiaddr = format!("/p2p/{from}").parse().unwrap();
        let mut inbound = |number: usize, prefix: u8| {
            gate.handle_pending_inbound_connection(id(number), &over(prefix), &remote)
                .is_ok()
                && gate
                    .handle_established_inbound_connection(
                        id(number),
                        PeerId::random(),
                        &over(prefix),
                        &remote,
                    )
                    .is_ok()
        };
        let limits = Limits::laptop();
        let of_one = (10..50).filter(|number| inbound(*number, 1)).count();
        assert_eq!(of_one, limits.relayed_per_prefix_max);
        let of_others = (50..90).filter(|n| inbound(*n, *n as u8)).count();
        assert_eq!(of_one + of_others, limits.relayed_max);
        // They take nothing from direct ones.
        let direct = gate.admit(id(99), Stage::In, PeerId::random(), &addr(4), None);
        assert_eq!(direct, Ok(()));
    }

    #[test]
    fn each_limit_refuses_by_its_name() {
        let mut gate = Gate::new(Limits {
            established_in_max: 3,
            established_out_max: 4,
            established_max: 5,
            per_peer_max: 2,
            per_prefix_max: 2,
            ..Limits::laptop()
        });
        let peer = PeerId::random();
        let far = |i: u8| addr(i * 4);
        assert_eq!(gate.admit(id(1), Stage::In, peer, &far(1), None), Ok(()));
        assert_eq!(gate.admit(id(2), Stage::Out, peer, &far(2), None), Ok(()));
        assert_eq!(
            full(gate.admit(id(3), Stage::In, peer, &far(3), None)),
            "per-peer"
        );

        let any = PeerId::random;
        assert_eq!(gate.admit(id(4), Stage::In, any(), &addr(5), None), Ok(()));
        assert_eq!(
            full(gate.admit(id(5), Stage::Out, any(), &addr(6), None)),
            "per-prefix"
        );
        assert_eq!(gate.admit(id(6), Stage::In, any(), &far(9), None), Ok(()));
        assert_eq!(
            full(gate.admit(id(7), Stage::In, any(), &far(10), None)),
            "inbound"
        );
        assert_eq!(gate.admit(id(8), Stage::Out, any(), &far(11), None), Ok(()));
        assert_eq!(
            full(gate.admit(id(9), Stage::Out, any(), &far(12), None)),
            "established"
        );

        gate.connections.remove(&id(1));
        assert_eq!(gate.admit(id(9), Stage::Out, any(), &far(12), None), Ok(()));
    }

    #[test]
    fn one_prefix_cannot_hold_all_handshakes() {
        let mut gate = Gate::new(Limits::server());
        let mut opened = |prefix: &str, ids: std::ops::Range<usize>| {
            let remote: Multiaddr = format!("/ip4/{prefix}/tcp/1").parse().unwrap();
            ids.filter(|n| {
                gate.handle_pending_inbound_connection(id(*n), &remote, &remote)
                    .is_ok()
            })
            .count()
        };
        let limits = Limits::server();
        assert_eq!(opened("8.8.8.8", 0..100), limits.pending_in_per_prefix_max);
        assert_eq!(opened("8.8.9.8", 100..101), 1);
        let left = limits.pending_in_max - limits.pending_in_per_prefix_max - 1;
        assert_eq!(opened("127.0.0.1", 200..600), left, "loopback is exempt");
    }

    #[test]
    fn a_refused_connection_leaves_nothing_behind() {
        let mut gate = Gate::new(Limits {
            pending_in_max: 1,
            established_in_max: 0,
            ..Limits::laptop()
        });
        let remote = addr(1);
        for number in 0..10 {
            gate.handle_pending_inbound_connection(id(number), &remote, &remote)
                .unwrap();
            assert!(
                gate.handle_established_inbound_connection(
                    id(number),
                    PeerId::random(),
                    &remote,
                    &remote
                )
                .is_err()
            );
            assert!(gate.connections.is_empty());
        }
    }

    #[test]
    fn bans_are_bounded_and_the_newest_hold() {
        let mut gate = Gate::new(Limits::laptop());
        let first = PeerId::random();
        gate.ban(first, "lied".into());
        assert_eq!(
            full(gate.admit(id(1), Stage::In, first, &addr(1), None)),
            "banned"
        );
        for _ in 0..BANS_MAX {
            gate.ban(PeerId::random(), "lied".into());
        }
        assert_eq!(gate.bans().len(), BANS_MAX);
        assert_eq!(gate.admit(id(1), Stage::In, first, &addr(1), None), Ok(()));
    }
}
