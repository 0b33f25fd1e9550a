//! The behaviours of a node, composed, and the names of its protocols.

use std::time::Instant;

use libp2p::autonat::v2::client as probes;
use libp2p::identity::Keypair;
use libp2p::relay::RateLimiter;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{Multiaddr, PeerId, StreamProtocol, dcutr, identify, ping, relay, request_response};
use qk_protocol::hash::NetworkId;

use super::address::{AddressRules, Prefix, ip_of, is_private};
use super::codec::IndexCodec;
use super::dial_back::DialBacks;
use super::gate::Gate;
use super::limits::{
    CANDIDATES_MAX, EXCHANGE_TIME_MAX, EXCHANGES_PER_CONNECTION_MAX, IDENTIFY_INTERVAL, Limits,
    PING_INTERVAL, PROBE_INTERVAL, PROBES_MAX, PROBES_PER_CANDIDATE, RATES_MAX, RELAY_BURST,
    RELAY_CIRCUIT_BYTES_MAX, RELAY_CIRCUIT_TIME_MAX, RELAY_CIRCUITS_MAX,
    RELAY_CIRCUITS_PER_PEER_MAX, RELAY_PER_SECOND, RELAY_PREFIX_FACTOR, RELAY_RESERVATION_TIME,
    RELAY_RESERVATIONS_MAX, RELAY_RESERVATIONS_PER_PEER_MAX,
};
use super::only::Only;
use super::rate::Rates;
use super::table::{self, Table};
use crate::blocks::behaviour as blocks;

/// Protocol names of one network. Nodes of different networks share no protocol, so that a
/// connection between them carries nothing.
#[derive(Debug, Clone)]
pub(super) struct Protocols {
    pub(super) index: StreamProtocol,
    pub(super) kad: StreamProtocol,
    /// What identify calls the family.
    pub(super) family: String,
}

impl Protocols {
    pub(super) fn of(network: &NetworkId) -> Self {
        Self {
            index: protocol_name(network, "index/1"),
            kad: protocol_name(network, "kad/1"),
            family: format!("qk/{}", short(network)),
        }
    }
}

/// `/qk/<network>/<protocol>`, where `protocol` has its version, such as `blocks/1`.
pub fn protocol_name(network: &NetworkId, protocol: &str) -> StreamProtocol {
    let name = format!("/qk/{}/{protocol}", short(network));
    StreamProtocol::try_from_owned(name).expect("the name begins with a slash")
}

/// Sixteen hex digits: enough to tell networks apart. Who belongs to one is decided by statements.
pub(super) fn short(network: &NetworkId) -> String {
    hex::encode(&network.as_bytes()[..8])
}

/// What a node does on its connections. The gate comes first: it alone refuses connections.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: Gate,
    pub(super) index: Only<request_response::Behaviour<IndexCodec>>,
    pub(super) table: Only<Table>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) blocks: blocks::Behaviour,
    /// Has others try at which addresses this node can be reached.
    pub(super) probes: Toggle<Only<probes::Behaviour>>,
    /// Tries it for others.
    pub(super) dial_backs: Toggle<DialBacks>,
    /// Carries for others what they need to find a direct way.
    pub(super) relay: Toggle<relay::Behaviour>,
    /// Lets others carry that.
    pub(super) relays: Toggle<relay::client::Behaviour>,
    /// Brings about a direct connection in place of a relayed one.
    pub(super) punch: Toggle<Only<dcutr::Behaviour>>,
}

/// Which of the behaviours for NATs a node has.
pub(super) struct Across {
    pub(super) probes: bool,
    pub(super) dial_backs: bool,
    pub(super) relay: bool,
    pub(super) relays: Option<relay::client::Behaviour>,
    pub(super) rules: AddressRules,
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        protocols: &Protocols,
        limits: &Limits,
        server: bool,
        blocks: blocks::Behaviour,
        across: Across,
    ) -> Self {
        let local = keypair.public().to_peer_id();
        let exchanges = request_response::Config::default()
            .with_request_timeout(EXCHANGE_TIME_MAX)
            .with_max_concurrent_streams(EXCHANGES_PER_CONNECTION_MAX);
        let identify = identify::Config::new(protocols.family.clone(), keypair.public())
            .with_agent_version(concat!("qk/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_interval(IDENTIFY_INTERVAL)
            .with_cache_size(0); // it would dial addresses past our rules
        Self {
            gate: Gate::new(limits.clone()),
            index: Only::direct(request_response::Behaviour::with_codec(
                IndexCodec::new(limits),
                [(
                    protocols.index.clone(),
                    request_response::ProtocolSupport::Full,
                )],
                exchanges,
            )),
            table: Only::direct(table::new(local, protocols.kad.clone(), server)),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL)),
            blocks,
            probes: across.probes.then(|| prober(across.rules)).into(),
            dial_backs: across.dial_backs.then(|| DialBacks::new(false)).into(),
            relay: across
                .relay
                .then(|| relay::Behaviour::new(local, relaying()))
                .into(),
            punch: across
                .relays
                .is_some()
                .then(|| Only::new(dcutr::Behaviour::new(local), |_| true))
                .into(),
            relays: across.relays.into(),
        }
    }

    /// Begins a new round of probes, with these addresses.
    pub(super) fn probe(&mut self, candidates: &[Multiaddr]) {
        if let Some(probes) = self.probes.as_mut() {
            let sends = PROBES_PER_CANDIDATE * candidates.len().max(1);
            probes.renew(new_probes(), Some(sends.min(PROBES_MAX)));
            candidates.iter().for_each(|addr| probes.propose(addr));
        }
    }

    /// Sets what others are told when a direct connection is wanted.
    pub(super) fn name_candidates(&mut self, local: PeerId, candidates: &[Multiaddr]) {
        if let Some(punch) = self.punch.as_mut() {
            punch.renew(dcutr::Behaviour::new(local), None);
            candidates.iter().for_each(|addr| punch.propose(addr));
        }
    }
}

fn new_probes() -> probes::Behaviour {
    let config = probes::Config::default()
        .with_max_candidates(CANDIDATES_MAX)
        .with_probe_interval(PROBE_INTERVAL);
    probes::Behaviour::new(rand::make_rng(), config)
}

/// Those on the same LAN cannot tell whether one is reached from outside.
fn prober(rules: AddressRules) -> Only<probes::Behaviour> {
    let takes = move |line: super::only::Line<'_>| {
        let outside = ip_of(line.remote).is_none_or(|ip| !is_private(ip));
        !line.relayed && (outside || rules.allow_private)
    };
    Only::new(new_probes(), takes).with_sends(PROBES_MAX)
}

fn relaying() -> relay::Config {
    relay::Config {
        max_reservations: RELAY_RESERVATIONS_MAX,
        max_reservations_per_peer: RELAY_RESERVATIONS_PER_PEER_MAX,
        reservation_duration: RELAY_RESERVATION_TIME,
        reservation_rate_limiters: vec![relay_rate()],
        max_circuits: RELAY_CIRCUITS_MAX,
        max_circuits_per_peer: RELAY_CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: RELAY_CIRCUIT_TIME_MAX,
        max_circuit_bytes: RELAY_CIRCUIT_BYTES_MAX,
        circuit_src_rate_limiters: vec![relay_rate()],
    }
}

/// The rate of a peer and of its prefix, in bounded memory.
fn relay_rate() -> Box<dyn RateLimiter> {
    let mut peers = Rates::new(RELAY_PER_SECOND, RELAY_BURST, RATES_MAX);
    let factor = RELAY_PREFIX_FACTOR;
    let mut prefixes = Rates::new(RELAY_PER_SECOND * factor, RELAY_BURST * factor, RATES_MAX);
    Box::new(move |peer: PeerId, addr: &Multiaddr, now: Instant| {
        peers.take(peer, now) && Prefix::of(addr).is_none_or(|prefix| prefixes.take(prefix, now))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_named_by_network() {
        let protocols = Protocols::of(&NetworkId([0xab; 32]));
        assert_eq!(protocols.index.as_ref(), "/qk/abababababababab/index/1");
        assert_eq!(protocols.kad.as_ref(), "/qk/abababababababab/kad/1");
        assert_eq!(protocols.family, "qk/abababababababab");
    }
}
