//! Where each network's swarm listens.

use libp2p::multiaddr::Protocol;
use qk_protocol::hash::NetworkId;
use serde::{Deserialize, Serialize};

use super::{NodeError, addresses};
use crate::home::{Config, Joined};
use crate::net::Multiaddr;

/// `[networks.NAME]` in the configuration: what holds for one network alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Where a node listens in this network, in place of `listen`.
    pub listen: Vec<String>,
}

/// The addresses for one network.
pub(super) struct Listening {
    pub(super) addresses: Vec<Multiaddr>,
    /// Whether these are the node's own that another network took, with ports that the system gives.
    pub(super) moved: bool,
}

/// Where a network listens: at addresses of its own, or at the node's. Each network has a swarm of
/// its own, so that the node's fixed ports are for the first one that starts. A private network has
/// no QUIC: addresses for it are left to others.
///
/// # Errors
/// When what was configured for it is no address.
pub(super) fn listening(
    config: &Config,
    general: &[Multiaddr],
    joined: &Joined,
    is_first: bool,
) -> Result<Listening, NodeError> {
    let own = own(config, &joined.network.manifest().name, joined.network.id());
    let listens = !general.is_empty();
    let mut addresses = match own {
        Some(own) if listens && !own.listen.is_empty() => self::addresses(&own.listen)?,
        _ => general.to_vec(),
    };
    let has_own = own.is_some_and(|own| !own.listen.is_empty());
    let quic = config.quic.unwrap_or(true) && joined.secret.is_none();
    let tcp = |address: &Multiaddr| !address.iter().any(|part| part == Protocol::QuicV1);
    if !quic && addresses.iter().any(tcp) {
        addresses.retain(tcp);
    }
    let free: Vec<Multiaddr> = addresses.iter().map(on_free_port).collect();
    let moved = !has_own && !is_first && free != addresses;
    Ok(Listening {
        addresses: if moved { free } else { addresses },
        moved,
    })
}

fn own<'a>(config: &'a Config, name: &str, id: NetworkId) -> Option<&'a NetworkConfig> {
    let networks = &config.networks;
    networks.get(&id.to_string()).or_else(|| networks.get(name))
}

/// The same address with a port that the system chooses.
fn on_free_port(address: &Multiaddr) -> Multiaddr {
    let free = |part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(0),
        Protocol::Udp(_) => Protocol::Udp(0),
        other => other,
    };
    address.iter().map(free).collect()
}
