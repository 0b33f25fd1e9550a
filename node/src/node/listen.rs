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
    let own = own.map_or(Ok(Vec::new()), |own| self::addresses(&own.listen))?;
    let quic = config.quic.unwrap_or(true) && joined.secret.is_none();
    Ok(choose(own, general, quic, is_first))
}

fn choose(own: Vec<Multiaddr>, general: &[Multiaddr], quic: bool, is_first: bool) -> Listening {
    // A command listens nowhere, whatever is configured for the node.
    let has_own = !own.is_empty() && !general.is_empty();
    let mut addresses = if has_own { own } else { general.to_vec() };
    let without_quic = |address: &Multiaddr| address.iter().all(|part| part != Protocol::QuicV1);
    // Where nothing else is left, starting fails and says why.
    if !quic && addresses.iter().any(without_quic) {
        addresses.retain(without_quic);
    }
    let free: Vec<Multiaddr> = addresses.iter().map(on_free_port).collect();
    let moved = !has_own && !is_first && free != addresses;
    Listening {
        addresses: if moved { free } else { addresses },
        moved,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_network_gets_the_ports_and_others_their_own_or_free_ones() {
        let general = addresses(&["/ip4/0.0.0.0/tcp/4433", "/ip4/0.0.0.0/udp/4433/quic-v1"]);
        let free = addresses(&["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"]);
        let own = addresses(&["/ip4/0.0.0.0/tcp/4434"]);
        let first = choose(Vec::new(), &general, true, true);
        assert_eq!((first.addresses, first.moved), (general.clone(), false));
        let second = choose(Vec::new(), &general, true, false);
        assert_eq!((second.addresses, second.moved), (free, true));
        for is_first in [true, false] {
            let with_own = choose(own.clone(), &general, true, is_first);
            assert_eq!((with_own.addresses, with_own.moved), (own.clone(), false));
        }
        assert!(
            choose(own, &[], true, true).addresses.is_empty(),
            "a command"
        );
    }

    #[test]
    fn a_network_without_quic_leaves_its_addresses_out() {
        let both = addresses(&["/ip4/0.0.0.0/udp/4433/quic-v1", "/ip4/0.0.0.0/tcp/4433"]);
        assert_eq!(choose(Vec::new(), &both, false, true).addresses, both[1..]);
        let only = addresses(&["/ip4/0.0.0.0/udp/4433/quic-v1"]);
        assert_eq!(choose(Vec::new(), &only, false, true).addresses, only);
    }
}
