//! The behaviours of a node, composed, and the names of its protocols.

use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, identify, ping, request_response};
use qk_protocol::hash::NetworkId;

use super::codec::IndexCodec;
use super::gate::Gate;
use super::limits::{EXCHANGE_TIME_MAX, EXCHANGES_PER_CONNECTION_MAX, Limits};
use super::table::{self, Table};

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
    pub(super) index: request_response::Behaviour<IndexCodec>,
    pub(super) table: Table,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        protocols: &Protocols,
        limits: &Limits,
        server: bool,
    ) -> Self {
        let exchanges = request_response::Config::default()
            .with_request_timeout(EXCHANGE_TIME_MAX)
            .with_max_concurrent_streams(EXCHANGES_PER_CONNECTION_MAX);
        let identify = identify::Config::new(protocols.family.clone(), keypair.public())
            .with_agent_version(concat!("qk/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_cache_size(0); // it would dial addresses past our rules
        Self {
            gate: Gate::new(limits.clone()),
            index: request_response::Behaviour::with_codec(
                IndexCodec::new(limits),
                [(
                    protocols.index.clone(),
                    request_response::ProtocolSupport::Full,
                )],
                exchanges,
            ),
            table: table::new(keypair.public().to_peer_id(), protocols.kad.clone(), server),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new()),
        }
    }
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
