//! Whether others can reach this node, and what is done about it if not.
//!
//! What this node's address looks like from outside is taken from the nodes that the owner or the
//! manifest named, and tried by AutoNAT. A node that is reachable serves the routing table, and
//! relays for others if its owner wants that. One that is not has reservations at relays, so that
//! others can ask it for a direct connection; nothing else goes over a relay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use libp2p::autonat::v2::client as probes;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, kad, relay};
use tokio::time::Instant;

use super::address::{AddressRules, Circuit, bare, ip_of, is_circuit, is_quic};
use super::keep::Kept;
use super::limits::{
    CANDIDATES_MAX, REACH_INTERVAL, REACH_INTERVAL_MIN, RELAY_RETRY_MAX, RELAY_RETRY_MIN,
    RELAYED_TIME_MAX, RELAYS_MAX, RESERVATIONS_MAX,
};
use super::swarm::{Peer, Task};
use super::{Event, Reach, Reachability, table};

/// How often it is looked at what is due.
pub(super) const TICK: Duration = Duration::from_secs(5);
/// Named nodes that are asked for a relay at once.
const ASKED_FOR_RELAY_MAX: usize = 4;

/// What is known of this node's own reachability.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    /// Whether to find out, and to use relays.
    traverse: bool,
    /// Whether this node has addresses to be reached at.
    listens: bool,
    /// Whether it relays for others when it is reachable.
    relays: bool,
    /// By the owner's word.
    named: BTreeSet<Multiaddr>,
    /// By AutoNAT, and when.
    confirmed: BTreeMap<Multiaddr, Instant>,
    /// Addresses that may lead here, the newest first.
    candidates: Vec<Multiaddr>,
    /// Whether an address was tried in vain.
    tried: bool,
    /// When the last round of probes began, and how many there were in vain since the start, or since
    /// the machine was elsewhere.
    round: Option<Instant>,
    rounds: u32,
    /// Whether the machine may be elsewhere since the last round.
    moved: bool,
    /// When named nodes are asked anew whether they relay.
    next_search: Option<Instant>,
    found: BTreeMap<PeerId, Relay>,
    /// What was published last.
    published: Option<Reach>,
}

/// A node that relays.
#[derive(Debug)]
struct Relay {
    /// Where it is dialled, QUIC first, for a hole in the NAT.
    addrs: Vec<Multiaddr>,
    failures: u32,
    /// Not before.
    after: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Dialling(ConnectionId),
    /// Of several connections with it, those that are not for the reservation are being closed.
    Clearing,
    Reserving {
        listener: ListenerId,
        /// What others dial, once there is a reservation.
        address: Option<Multiaddr>,
        /// Its connection is not closed to make room for another one.
        _kept: Kept,
    },
}

impl Knowledge {
    pub(super) fn new(
        traverse: bool,
        listens: bool,
        relays: bool,
        named: impl IntoIterator<Item = Multiaddr>,
    ) -> Self {
        Self {
            traverse,
            listens,
            relays,
            named: named.into_iter().map(|address| bare(&address)).collect(),
            ..Self::default()
        }
    }

    /// Whether anybody is asked to try this node's addresses: not those that the owner vouches for.
    fn probes(&self) -> bool {
        self.traverse && self.listens && self.named.is_empty()
    }

    /// When all is tried anew.
    fn next_round(&self) -> Option<Instant> {
        let wait = match self.confirmed.is_empty() || self.moved {
            true => REACH_INTERVAL_MIN * 4u32.saturating_pow(self.rounds.min(8)),
            false => REACH_INTERVAL,
        };
        Some(self.round? + wait.min(REACH_INTERVAL))
    }

    fn reachability(&self, gave_up: bool) -> Reachability {
        if !self.named.is_empty() || !self.confirmed.is_empty() {
            Reachability::Public
        } else if self.tried || gave_up {
            Reachability::Private
        } else {
            Reachability::Unknown
        }
    }

    fn reservations(&self) -> impl Iterator<Item = &Multiaddr> {
        self.found.values().filter_map(|relay| match &relay.state {
            State::Reserving { address, .. } => address.as_ref(),
            _ => None,
        })
    }

    fn state_of(&mut self, listener: ListenerId) -> Option<(PeerId, &mut Relay)> {
        let of = |relay: &Relay| matches!(&relay.state, State::Reserving { listener: one, .. } if *one == listener);
        let mut found = self.found.iter_mut().filter(|(_, relay)| of(relay));
        found.next().map(|(peer, relay)| (*peer, relay))
    }

    /// Whether the listener is one of reservations.
    pub(super) fn is_reservation(&self, listener: ListenerId) -> bool {
        let of = |relay: &Relay| matches!(&relay.state, State::Reserving { listener: one, .. } if *one == listener);
        self.found.values().any(of)
    }

    /// Takes addresses at which this node may be reachable; says whether any is new. Where the host
    /// is another one than before, the machine has moved.
    fn add_candidates(&mut self, addrs: impl IntoIterator<Item = Multiaddr>) -> bool {
        let mut changed = false;
        for address in addrs {
            if self.candidates.contains(&address) {
                continue;
            }
            let (ip, quic) = (ip_of(&address), is_quic(&address));
            let elsewhere = |other: &Multiaddr| {
                is_quic(other) == quic
                    && ip_of(other) != ip
                    && ip_of(other).map(|ip| ip.is_ipv4()) == ip.map(|ip| ip.is_ipv4())
            };
            self.candidates.retain(|other| !elsewhere(other));
            self.candidates.insert(0, address);
            changed = true;
        }
        self.candidates.truncate(CANDIDATES_MAX);
        changed
    }
}

impl Relay {
    fn fail(&mut self) {
        let delay = RELAY_RETRY_MIN * 2u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        self.after = Instant::now() + delay.min(RELAY_RETRY_MAX);
        self.state = State::Idle;
    }
}

/// At which addresses a node may be reachable, when a peer that it dialled saw it at `observed`: at
/// that port, if it was the listening one; otherwise at the ports that it listens on.
fn candidates(observed: &Multiaddr, port_use: PortUse, listening: &[Multiaddr]) -> Vec<Multiaddr> {
    let observed = bare(observed);
    let Some(ip) = ip_of(&observed) else {
        return Vec::new();
    };
    if port_use == PortUse::Reuse && is_quic(&observed) {
        return vec![observed];
    }
    let mut found = Vec::new();
    for own in listening {
        let same = !is_circuit(own)
            && is_quic(own) == is_quic(&observed)
            && ip_of(own).is_some_and(|own| own.is_ipv4() == ip.is_ipv4() && !own.is_loopback());
        if same {
            let host = match ip {
                IpAddr::V4(ip) => Protocol::Ip4(ip),
                IpAddr::V6(ip) => Protocol::Ip6(ip),
            };
            let here = std::iter::once(host).chain(own.iter().skip(1)).collect();
            if !found.contains(&here) {
                found.push(here);
            }
        }
    }
    found
}

impl Task {
    /// A peer says at which address it sees this node. It is believed if the owner or the manifest
    /// named it, or if this node wants something of it as a relay.
    pub(super) fn on_observed(&mut self, peer: PeerId, id: ConnectionId, observed: &Multiaddr) {
        if !self.reach.traverse {
            return;
        }
        let endpoint = self.peers.get(&peer).and_then(|peer| peer.endpoint(id));
        let Some(ConnectedPoint::Dialer {
            address, port_use, ..
        }) = endpoint
        else {
            return;
        };
        let named = self.bootstrap.iter().any(|contact| contact.peer == peer);
        let relays = self.reach.found.contains_key(&peer) || self.asks.is_relay(&peer);
        if is_circuit(address) || !(named || relays) {
            return;
        }
        let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        let found = candidates(observed, *port_use, &listening);
        self.add_candidates(found);
    }

    /// An address of this machine itself may be one that others can dial.
    pub(super) fn on_listening(&mut self, address: &Multiaddr) {
        let loopback = ip_of(address).is_none_or(|ip| ip.is_loopback());
        if self.reach.probes() && !loopback && !is_circuit(address) {
            self.add_candidates(vec![address.clone()]);
        }
    }

    fn add_candidates(&mut self, found: Vec<Multiaddr>) {
        let rules = self.permits.rules;
        let permitted = found.into_iter().filter(|address| rules.permit(address));
        if !self.reach.add_candidates(permitted) {
            return;
        }
        tracing::debug!(candidates = ?self.reach.candidates, "may be reachable at");
        let local = *self.swarm.local_peer_id();
        let behaviour = self.swarm.behaviour_mut();
        behaviour.name_candidates(local, &self.reach.candidates);
        if self.reach.probes()
            && let Some(probes) = behaviour.probes.as_mut()
        {
            // It forgets none, and tries each once.
            self.reach
                .candidates
                .iter()
                .for_each(|addr| probes.propose(addr));
        }
    }

    /// An address was tried.
    pub(super) fn on_probed(&mut self, event: probes::Event) {
        let address = bare(&event.tested_addr);
        tracing::debug!(%address, server = %event.server, result = ?event.result, "tried");
        if event.result.is_err() {
            self.reach.tried = true;
            if self.reach.confirmed.remove(&address).is_some() {
                self.swarm.remove_external_address(&event.tested_addr);
            }
        }
        self.reach_changed();
    }

    /// An address of this node is known to lead here, or one over a relay is ready.
    pub(super) fn on_confirmed(&mut self, address: &Multiaddr) {
        match Circuit::of(address) {
            None => {
                let known = self.reach.named.contains(&bare(address));
                if !known {
                    self.reach.confirmed.insert(bare(address), Instant::now());
                }
            }
            Some(circuit) => {
                if let Some(relay) = self.reach.found.get_mut(&circuit.relay)
                    && let State::Reserving { address, .. } = &mut relay.state
                {
                    *address = Some(circuit.address());
                    relay.failures = 0;
                }
            }
        }
        self.reach_changed();
    }

    /// A reservation ended.
    pub(super) fn on_reservation_over(&mut self, listener: ListenerId) {
        if let Some((peer, relay)) = self.reach.state_of(listener) {
            tracing::debug!(%peer, "a reservation ended");
            relay.fail();
            self.reach_changed();
        }
    }

    /// A peer relays. `addrs` are those that it may be dialled at.
    pub(super) fn on_relay(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        if !self.reach.probes() || addrs.is_empty() {
            return;
        }
        let found = &mut self.reach.found;
        if let Some(relay) = found.get_mut(&peer) {
            relay.addrs = addrs;
        } else if found.len() < RELAYS_MAX {
            let relay = Relay {
                addrs,
                failures: 0,
                after: Instant::now(),
                state: State::Idle,
            };
            found.insert(peer, relay);
            self.reserve();
        }
    }

    /// Does what is due.
    pub(super) fn on_reach_tick(&mut self) {
        self.close_old_relayed();
        self.asks.give_up_late();
        self.reach_changed();
        if !self.reach.probes() {
            return;
        }
        let now = Instant::now();
        match self.reach.next_round() {
            // Addresses are tried as soon as they are known.
            None => self.reach.round = Some(now),
            Some(due) if due <= now => self.new_round(),
            Some(_) => {}
        }
        self.reserve();
    }

    fn new_round(&mut self) {
        self.reach.round = Some(Instant::now());
        self.reach.rounds += 1;
        self.reach.moved = false;
        let old = |at: &Instant| at.elapsed() >= 2 * REACH_INTERVAL;
        let gone: Vec<Multiaddr> = self
            .reach
            .confirmed
            .extract_if(.., |_, at| old(at))
            .map(|(address, _)| address)
            .collect();
        for address in gone {
            self.swarm.remove_external_address(&address);
        }
        let candidates = self.reach.candidates.clone();
        self.swarm.behaviour_mut().probe(&candidates);
        // The new round knows of new connections only.
        if let Some(contact) = self.bootstrap.first() {
            let opts = DialOpts::peer_id(contact.peer)
                .condition(PeerCondition::Always)
                .addresses(contact.dialled())
                .build();
            self.try_dial(opts);
        }
    }

    /// The machine is elsewhere, perhaps: all is tried anew soon.
    pub(super) fn look_again(&mut self) {
        let starting = |round: Instant| round.elapsed() < 2 * TICK;
        if !self.reach.round.is_none_or(starting) {
            self.reach.rounds = 0;
            self.reach.moved = true;
        }
    }

    fn close_old_relayed(&mut self) {
        let over = |peer: &Peer| {
            // Where a direct connection came about, the other side may need a moment to see it.
            let direct = peer.lines().next().is_some();
            let time = if direct { TICK } else { RELAYED_TIME_MAX };
            let old = peer.relayed().filter(|(_, since)| since.elapsed() >= time);
            old.map(|(id, _)| id).collect::<Vec<_>>()
        };
        let old: Vec<ConnectionId> = self.peers.values().flat_map(over).collect();
        for id in old {
            self.swarm.close_connection(id);
        }
    }

    /// What others are told follows from what is known.
    fn reach_changed(&mut self) {
        let reach = self.reach();
        // A node begins with knowing nothing, which is no news.
        if *self.reach.published.get_or_insert_default() == reach {
            return;
        }
        tracing::info!(reachability = ?reach.reachability, external = ?reach.external, relayed = ?reach.relayed, "reach");
        if self.reach.traverse {
            let public = reach.reachability == Reachability::Public;
            let behaviour = self.swarm.behaviour_mut();
            behaviour
                .table
                .set_mode(Some(match public && self.reach.listens {
                    true => kad::Mode::Server,
                    false => kad::Mode::Client,
                }));
            if let Some(relay) = behaviour.relay.as_mut() {
                relay.set_status(Some(match public && self.reach.relays {
                    true => relay::Status::Enable,
                    false => relay::Status::Disable,
                }));
            }
        }
        self.reach.published = Some(reach.clone());
        self.publish(Event::Reach(reach));
        self.reserve();
    }

    pub(super) fn reach(&self) -> Reach {
        let probes = self.swarm.behaviour().probes.as_ref();
        let gave_up = probes.is_some_and(|probes| probes.has_sent_all());
        let known = &self.reach;
        Reach {
            reachability: known.reachability(gave_up),
            external: known
                .named
                .iter()
                .chain(known.confirmed.keys())
                .cloned()
                .collect(),
            relayed: known.reservations().cloned().collect(),
        }
    }

    /// Sees to it that a node that cannot be reached has reservations, and that others have none.
    fn reserve(&mut self) {
        let now = Instant::now();
        match self.reach().reachability {
            _ if !self.reach.probes() => {}
            Reachability::Unknown => {}
            Reachability::Public => self.give_reservations_back(),
            Reachability::Private => {
                let busy = |relay: &Relay| !matches!(relay.state, State::Idle);
                let taken = self.reach.found.values().filter(|one| busy(one)).count();
                let next: Vec<PeerId> = self
                    .reach
                    .found
                    .iter()
                    .filter(|(_, relay)| !busy(relay) && relay.after <= now)
                    .map(|(peer, _)| *peer)
                    .take(RESERVATIONS_MAX.saturating_sub(taken))
                    .collect();
                next.into_iter().for_each(|peer| self.advance(peer));
                if self.reach.found.is_empty() {
                    self.search(now);
                }
            }
        }
    }

    /// Asks named nodes, which say whether they relay.
    fn search(&mut self, now: Instant) {
        if self.reach.next_search.is_none_or(|due| due <= now) {
            self.reach.next_search = Some(now + RELAY_RETRY_MAX);
            let some: Vec<_> = self.bootstrap.iter().take(ASKED_FOR_RELAY_MAX).collect();
            for contact in some.into_iter().cloned().collect::<Vec<_>>() {
                self.connect(&contact);
            }
        }
    }

    fn give_reservations_back(&mut self) {
        let mut over = Vec::new();
        for relay in self.reach.found.values_mut() {
            // One that is not answered yet must not be taken back: libp2p would be confused.
            if let State::Reserving {
                listener,
                address: Some(_),
                ..
            } = &relay.state
            {
                over.push(*listener);
            }
        }
        for listener in over {
            self.swarm.remove_listener(listener);
        }
    }

    /// The next step towards a reservation: one connection that was dialled from the listening port,
    /// over QUIC if possible, and then the reservation over that.
    fn advance(&mut self, peer: PeerId) {
        let Some(relay) = self.reach.found.get(&peer) else {
            return;
        };
        let Some(address) = relay.addrs.first().cloned() else {
            return;
        };
        let quic = is_quic(&address);
        let good = |endpoint: &ConnectedPoint| match endpoint {
            ConnectedPoint::Dialer {
                address, port_use, ..
            } => is_quic(address) == quic && *port_use == PortUse::Reuse,
            ConnectedPoint::Listener { .. } => false,
        };
        let (mut kept, mut others) = (None, Vec::new());
        for (id, endpoint) in self
            .peers
            .get(&peer)
            .into_iter()
            .flat_map(|one| one.lines())
        {
            match good(endpoint) && kept.is_none() {
                true => kept = Some(id),
                false => others.push(id),
            }
        }
        let state = match (kept, others.is_empty()) {
            (None, _) => {
                let opts = DialOpts::peer_id(peer)
                    .condition(PeerCondition::Always)
                    .addresses(vec![address])
                    .build();
                let id = opts.connection_id();
                match self.try_dial(opts) {
                    true => Some(State::Dialling(id)),
                    false => None,
                }
            }
            (Some(_), false) => {
                // libp2p reserves over the oldest connection, whichever that is.
                for id in others {
                    self.swarm.close_connection(id);
                }
                Some(State::Clearing)
            }
            (Some(_), true) => self.listen_at(peer, address),
        };
        let Some(relay) = self.reach.found.get_mut(&peer) else {
            return;
        };
        match state {
            Some(state) => relay.state = state,
            None => relay.fail(),
        }
    }

    fn listen_at(&mut self, relay: PeerId, relay_address: Multiaddr) -> Option<State> {
        let circuit = Circuit {
            relay,
            relay_address,
            target: None,
        };
        match self.swarm.listen_on(circuit.address()) {
            Ok(listener) => Some(State::Reserving {
                listener,
                address: None,
                _kept: self.keeps.keep(relay),
            }),
            Err(error) => {
                tracing::debug!(%relay, %error, "no reservation");
                None
            }
        }
    }

    /// A connection came, or went: what waited for that goes on.
    pub(super) fn on_line(&mut self, peer: PeerId, id: ConnectionId) {
        let goes_on = |relay: &Relay| match relay.state {
            State::Dialling(dial) => dial == id,
            State::Clearing => true,
            State::Idle | State::Reserving { .. } => false,
        };
        if self.reach.found.get(&peer).is_some_and(goes_on) {
            self.advance(peer);
        }
    }

    /// A dial failed.
    pub(super) fn on_relay_dial_failed(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(relay) = self.reach.found.get_mut(&peer)
            && matches!(relay.state, State::Dialling(dial) if dial == id)
        {
            // Where UDP does not pass, TCP may.
            if relay.addrs.len() > 1 {
                relay.addrs.rotate_left(1);
            }
            relay.fail();
        }
    }

    fn try_dial(&mut self, opts: DialOpts) -> bool {
        match self.swarm.dial(opts) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "cannot dial");
                false
            }
        }
    }

    /// The IP addresses at which this node knows others to be, itself included: of connections, which
    /// prove it, and of the routing table, which was filled from them.
    pub(super) fn hosts(&mut self, peers: &[PeerId]) -> Vec<(PeerId, IpAddr)> {
        let mut hosts = Vec::new();
        for peer in peers {
            let connected = self.peers.get(peer).into_iter().flat_map(|one| one.lines());
            let mut addrs: Vec<Multiaddr> = connected
                .map(|(_, endpoint)| endpoint.get_remote_address().clone())
                .collect();
            let table = &mut self.swarm.behaviour_mut().table;
            addrs.extend(
                table::find(table, *peer)
                    .into_iter()
                    .flat_map(|one| one.addrs),
            );
            if peer == self.swarm.local_peer_id() {
                addrs.extend(self.swarm.listeners().cloned());
                addrs.extend(self.swarm.external_addresses().cloned());
            }
            let direct = addrs.iter().filter(|address| !is_circuit(address));
            hosts.extend(direct.filter_map(ip_of).map(|ip| (*peer, ip)));
        }
        hosts
    }
}

/// Sorts a relay's addresses as they are tried: QUIC first.
pub(super) fn for_relay(
    peer: PeerId,
    addrs: impl IntoIterator<Item = Multiaddr>,
    rules: &AddressRules,
    named: impl Fn(&Multiaddr) -> bool,
) -> Vec<Multiaddr> {
    let addrs = addrs.into_iter().map(|address| bare(&address));
    let (mut known, unknown): (Vec<_>, Vec<_>) = addrs
        .filter(|address| !is_circuit(address))
        .partition(|address| named(address));
    known.extend(rules.keep(peer, unknown));
    known.retain(|address| rules.quic || !is_quic(address));
    known.sort_by_key(|address| !is_quic(address));
    known.dedup();
    known.truncate(CANDIDATES_MAX);
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_seen_from_outside_becomes_what_may_lead_here() {
        let listening = [
            addr("/ip4/127.0.0.1/tcp/4001"),
            addr("/ip4/192.168.1.2/tcp/4001"),
            addr("/ip4/192.168.1.2/udp/4001/quic-v1"),
        ];
        let seen = |text, port_use| candidates(&addr(text), port_use, &listening);
        assert_eq!(
            seen("/ip4/8.8.8.8/tcp/50000", PortUse::New),
            [addr("/ip4/8.8.8.8/tcp/4001")]
        );
        // The NAT's own port for the listening one.
        assert_eq!(
            seen("/ip4/8.8.8.8/udp/60000/quic-v1", PortUse::Reuse),
            [addr("/ip4/8.8.8.8/udp/60000/quic-v1")]
        );
        assert!(seen("/ip6/2606::1/tcp/1", PortUse::New).is_empty());
        assert!(seen("/dns4/host.example/tcp/1", PortUse::New).is_empty());
    }

    #[test]
    fn addresses_of_another_place_replace_the_old_ones() {
        let mut known = Knowledge::new(true, true, false, []);
        assert!(known.add_candidates([
            addr("/ip4/8.8.8.8/tcp/1"),
            addr("/ip4/8.8.8.8/udp/1/quic-v1")
        ]));
        assert!(!known.add_candidates([addr("/ip4/8.8.8.8/tcp/1")]));
        assert!(known.add_candidates([addr("/ip4/9.9.9.9/tcp/1")]));
        assert_eq!(
            known.candidates,
            [
                addr("/ip4/9.9.9.9/tcp/1"),
                addr("/ip4/8.8.8.8/udp/1/quic-v1")
            ]
        );
        let many = (1..50).map(|port| addr(&format!("/ip4/9.9.9.9/tcp/{port}")));
        known.add_candidates(many);
        assert_eq!(known.candidates.len(), CANDIDATES_MAX);
    }
}
