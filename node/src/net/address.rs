//! Who a node is and where it may be dialled.
//!
//! Addresses that peers tell us are hostile: they may be very many, very long, name a host inside
//! our own network or a DNS name that we would then resolve for them. [`AddressRules`] says what is
//! kept, and [`Contact::learned`] is the only way from a peer's bytes to something that is dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use qk_protocol::hash::{Point, Sha256};
use qk_protocol::message::{self, ADDRESS_BYTES_MAX, ADDRESSES_MAX, NODE_ID_BYTES_MAX, NodeId};

/// Addresses dialled of one contact.
pub const ADDRESSES_DIALLED_MAX: usize = 2;
/// Addresses over relays kept of one contact.
pub const CIRCUITS_MAX: usize = 2;

/// A node and where it can be dialled, addresses without `/p2p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// The node, which its key proves when it is dialled.
    pub peer: PeerId,
    /// At most [`ADDRESSES_MAX`] addresses, best known first.
    pub addrs: Vec<Multiaddr>,
}

/// Why bytes or text are no contact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContactError {
    /// The identity is too long or no multihash of a key.
    #[error("a node identity of {length} bytes is not a peer id")]
    Node {
        /// Bytes given.
        length: usize,
    },
    /// An owner's address that does not say whose it is.
    #[error("the address {address} does not end in /p2p/<peer id>")]
    Nameless {
        /// What was given.
        address: Multiaddr,
    },
}

impl Contact {
    /// A contact as a peer told it. Addresses that `rules` refuse are left out, so that the result
    /// may have none.
    pub fn learned(contact: &message::Contact, rules: &AddressRules) -> Result<Self, ContactError> {
        let node = &contact.node.0;
        let error = || ContactError::Node { length: node.len() };
        if node.len() > NODE_ID_BYTES_MAX {
            return Err(error());
        }
        let peer = PeerId::from_bytes(node).map_err(|_| error())?;
        let parsed = contact
            .addrs
            .iter()
            .take(4 * ADDRESSES_MAX)
            .filter(|bytes| bytes.len() <= ADDRESS_BYTES_MAX)
            .filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok());
        Ok(Self {
            peer,
            addrs: rules.keep(peer, parsed),
        })
    }

    /// A contact that the owner named, as `/ip4/…/tcp/…/p2p/…`. Anything that can be dialled is
    /// accepted, DNS names too; [`super::Net::name`] is what permits the dial.
    pub fn named(address: &Multiaddr) -> Result<Self, ContactError> {
        let mut bare = address.clone();
        match bare.pop() {
            Some(Protocol::P2p(peer)) => Ok(Self {
                peer,
                addrs: vec![bare],
            }),
            _ => Err(ContactError::Nameless {
                address: address.clone(),
            }),
        }
    }

    /// The contact as it goes into a message.
    pub fn to_message(&self) -> message::Contact {
        message::Contact {
            node: NodeId(self.peer.to_bytes()),
            addrs: self.addrs.iter().map(|addr| addr.to_vec().into()).collect(),
        }
    }

    /// Where the node lies in the key space.
    pub fn point(&self) -> Point {
        point_of(&self.peer)
    }

    /// What is dialled: TCP before QUIC, since TCP carries bulk faster. None of it over relays.
    pub(super) fn dialled(&self) -> Vec<Multiaddr> {
        let mut addrs: Vec<Multiaddr> = self.direct().cloned().collect();
        addrs.sort_by_key(is_quic);
        addrs.truncate(ADDRESSES_DIALLED_MAX);
        addrs
    }

    fn direct(&self) -> impl Iterator<Item = &Multiaddr> {
        self.addrs.iter().filter(|address| !is_circuit(address))
    }

    /// What is dialled when there is no other way.
    pub(super) fn circuits(&self) -> Vec<Circuit> {
        let circuits = self.addrs.iter().filter_map(Circuit::of);
        circuits.take(CIRCUITS_MAX).collect()
    }

    /// Whether the node can be reached over relays alone, which takes longer.
    pub fn is_behind_relays(&self) -> bool {
        !self.addrs.is_empty() && self.direct().next().is_none()
    }
}

/// The point of a node: SHA-256 of its identity's bytes, as kad hashes them.
pub fn point_of(peer: &PeerId) -> Point {
    Point(Sha256::of(&peer.to_bytes()).0)
}

/// Which addresses of others are kept and dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRules {
    /// Whether addresses of private networks and loopback are accepted: on a private network, or
    /// of nodes that were found on the LAN.
    pub allow_private: bool,
    /// Whether QUIC addresses can be dialled at all.
    pub quic: bool,
}

impl AddressRules {
    /// Whether `address`, which somebody else named, may be dialled. Only an IP address with TCP
    /// or QUIC: a DNS name would have us resolve names of a stranger's choice.
    pub fn permit(&self, address: &Multiaddr) -> bool {
        let Some((ip, quic)) = ip_and_transport(address) else {
            return false;
        };
        (self.quic || !quic) && is_host(ip) && (self.allow_private || !is_private(ip))
    }

    /// Whether `address` leads over a relay that may be dialled: exactly
    /// `<address>/p2p/<relay>/p2p-circuit`, which a `/p2p` may follow.
    pub fn permit_circuit(&self, address: &Multiaddr) -> bool {
        Circuit::of(address).is_some_and(|circuit| self.permit(&circuit.relay_address))
    }

    /// The first few permitted addresses of `peer`, without `/p2p` and without repetition, at most
    /// [`CIRCUITS_MAX`] of them over relays. An address that names another peer is left out.
    pub fn keep(&self, peer: PeerId, addrs: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
        let mut kept: Vec<Multiaddr> = Vec::new();
        for mut address in addrs {
            if address.len() > ADDRESS_BYTES_MAX {
                continue;
            }
            match address.iter().last() {
                Some(Protocol::P2p(named)) if named == peer => drop(address.pop()),
                Some(Protocol::P2p(_)) => continue,
                _ => {}
            }
            let circuits = kept.iter().filter(|kept| is_circuit(kept)).count();
            let permitted = match is_circuit(&address) {
                true => circuits < CIRCUITS_MAX && self.permit_circuit(&address),
                false => self.permit(&address),
            };
            if permitted && !kept.contains(&address) {
                kept.push(address);
            }
            if kept.len() == ADDRESSES_MAX {
                break;
            }
        }
        kept
    }
}

/// An address over a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// The relay.
    pub relay: PeerId,
    /// Where the relay is dialled, without `/p2p`.
    pub relay_address: Multiaddr,
    /// Who is at the other end, if the address says so.
    pub target: Option<PeerId>,
}

impl Circuit {
    /// Reads `<address>/p2p/<relay>/p2p-circuit` with or without `/p2p/<target>`.
    pub fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let mut relay_address = Multiaddr::empty();
        let relay = loop {
            match parts.next()? {
                Protocol::P2p(relay) => break relay,
                Protocol::P2pCircuit => return None,
                part => relay_address.push(part),
            }
        };
        if parts.next()? != Protocol::P2pCircuit {
            return None;
        }
        let target = match (parts.next(), parts.next()) {
            (None, _) => None,
            (Some(Protocol::P2p(target)), None) => Some(target),
            _ => return None,
        };
        Some(Self {
            relay,
            relay_address,
            target,
        })
    }

    /// The address to dial, without the target.
    pub fn address(&self) -> Multiaddr {
        self.relay_address
            .clone()
            .with(Protocol::P2p(self.relay))
            .with(Protocol::P2pCircuit)
    }

    /// The IP address of the relay, if it is named by one.
    pub fn relay_ip(&self) -> Option<IpAddr> {
        ip_of(&self.relay_address)
    }
}

/// Whether an address leads over a relay, or says that a connection did.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The network that an address belongs to, as far as one operator usually commands all of it: on a
/// local network that is one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// An IPv4 /24.
    V4([u8; 3]),
    /// An IPv6 /48.
    V6([u8; 6]),
    /// A machine on a local network.
    Host(IpAddr),
}

impl Prefix {
    /// The prefix of an address's IP; none for loopback and for what is no IP address.
    pub fn of(address: &Multiaddr) -> Option<Self> {
        match ip_of(address)? {
            ip if ip.is_loopback() => None,
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Some(Self::Host(ip.into())),
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => {
                Some(Self::Host(ip.into()))
            }
            IpAddr::V4(ip) => ip.octets().first_chunk().copied().map(Self::V4),
            IpAddr::V6(ip) => ip.octets().first_chunk().copied().map(Self::V6),
        }
    }
}

/// The address without a `/p2p` at its end.
pub(super) fn bare(address: &Multiaddr) -> Multiaddr {
    let mut bare = address.clone();
    if matches!(bare.iter().last(), Some(Protocol::P2p(_))) {
        bare.pop();
    }
    bare
}

/// The IP address that a multiaddr begins with. IPv4 inside IPv6 counts as IPv4.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    }
}

/// Whether packets to this IP stay in the owner's own networks.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

pub(super) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::QuicV1)
}

/// `tcp`, `quic`, `relay` or `other`, for lines a person reads.
pub(super) fn transport_name(address: &Multiaddr) -> &'static str {
    if is_circuit(address) {
        "relay"
    } else if is_quic(address) {
        "quic"
    } else if address.iter().any(|part| matches!(part, Protocol::Tcp(_))) {
        "tcp"
    } else {
        "other"
    }
}

/// The IP and whether it is QUIC, of exactly `/ip/tcp/port` or `/ip/udp/port/quic-v1`, which a
/// `/p2p` may follow.
fn ip_and_transport(address: &Multiaddr) -> Option<(IpAddr, bool)> {
    let ip = ip_of(address)?;
    let mut parts = address.iter().skip(1);
    let quic = match parts.next()? {
        Protocol::Tcp(port) if port != 0 => false,
        Protocol::Udp(port) if port != 0 => parts.next()? == Protocol::QuicV1,
        _ => return None,
    };
    let is_udp = address.iter().any(|part| matches!(part, Protocol::Udp(_)));
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) if quic == is_udp => Some((ip, quic)),
        _ => None,
    }
}

/// Whether an IP can be one host at all.
fn is_host(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.octets()[0] >= 240 || ip.octets()[0] == 0);
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 198 && (18..20).contains(&b)) // benchmarks
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // Forms that carry an IPv4 address reach the host behind it: NAT64 and 6to4.
    let embedded = match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
        [0x2002, high, low, ..] => Some((high, low)),
        _ => None,
    };
    if let Some((high, low)) = embedded {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        return is_private_v4(Ipv4Addr::new(a, b, c, d));
    }
    ip.is_loopback()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || segments[..6] == [0; 6] // old IPv4-compatible form
        || segments[..2] == [0x2001, 0xdb8] // documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: AddressRules = AddressRules {
        allow_private: false,
        quic: true,
    };
    const LAN: AddressRules = AddressRules {
        allow_private: true,
        quic: true,
    };

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn strangers_may_name_public_hosts_only() {
        for good in [
            "/ip4/8.8.8.8/tcp/4001",
            "/ip4/8.8.8.8/udp/4001/quic-v1",
            "/ip6/2606:4700::1/tcp/1",
        ] {
            assert!(PUBLIC.permit(&addr(good)), "{good}");
        }
        for private in [
            "/ip4/10.0.0.1/tcp/80",
            "/ip4/127.0.0.1/tcp/80",
            "/ip4/169.254.169.254/tcp/80",
            "/ip4/100.64.0.1/tcp/80",
            "/ip6/::1/tcp/80",
            "/ip6/fd00::1/tcp/80",
            "/ip6/fe80::1/tcp/80",
            "/ip6/::ffff:192.168.0.1/tcp/80",
            "/ip6/64:ff9b::a00:1/tcp/80",
            "/ip6/2002:a00:1::/tcp/80",
        ] {
            assert!(!PUBLIC.permit(&addr(private)), "{private}");
            assert!(LAN.permit(&addr(private)), "{private}");
        }
        for never in [
            "/dns4/host.example/tcp/80",
            "/dnsaddr/host.example",
            "/ip4/8.8.8.8/tcp/0",
            "/ip4/8.8.8.8/udp/53",
            "/ip4/8.8.8.8",
            "/ip4/224.0.0.1/tcp/80",
            "/ip4/0.0.0.0/tcp/80",
            "/ip4/255.255.255.255/tcp/80",
            "/ip4/8.8.8.8/tcp/80/ws",
            "/unix/tmp",
            "/memory/7",
        ] {
            assert!(!LAN.permit(&addr(never)), "{never}");
        }
        let no_quic = AddressRules { quic: false, ..LAN };
        assert!(!no_quic.permit(&addr("/ip4/8.8.8.8/udp/4001/quic-v1")));
    }

    fn told(node: &[u8], addrs: &[Vec<u8>]) -> message::Contact {
        message::Contact {
            node: NodeId(node.to_vec()),
            addrs: addrs.iter().map(|addr| addr.clone().into()).collect(),
        }
    }

    #[test]
    fn contacts_from_the_wire_are_bounded() {
        let peer = PeerId::random();
        let many: Vec<Vec<u8>> = (1..1000)
            .map(|port| addr(&format!("/ip4/8.8.8.8/tcp/{port}")).to_vec())
            .collect();
        let contact = Contact::learned(&told(&peer.to_bytes(), &many), &PUBLIC).unwrap();
        assert_eq!(contact.addrs.len(), ADDRESSES_MAX);
        assert_eq!(contact.dialled().len(), ADDRESSES_DIALLED_MAX);
        assert_eq!(contact.to_message().node.point(), contact.point());
        assert_eq!(
            Contact::learned(&contact.to_message(), &PUBLIC),
            Ok(contact)
        );

        let long = addr(&format!("/ip4/8.8.8.8/tcp/1/unix/{}", "a".repeat(300))).to_vec();
        let junk = [long, vec![0xff; 40], vec![]];
        let contact = Contact::learned(&told(&peer.to_bytes(), &junk), &PUBLIC).unwrap();
        assert!(contact.addrs.is_empty());
        assert!(Contact::learned(&told(&[0; 65], &[]), &PUBLIC).is_err());
        assert!(Contact::learned(&told(b"nobody", &[]), &PUBLIC).is_err());
    }

    #[test]
    fn an_address_of_somebody_else_is_dropped() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let own = addr(&format!("/ip4/8.8.8.8/tcp/1/p2p/{peer}"));
        let foreign = addr(&format!("/ip4/8.8.8.8/tcp/2/p2p/{other}"));
        assert_eq!(
            PUBLIC.keep(peer, [own.clone(), own, foreign.clone()]),
            [addr("/ip4/8.8.8.8/tcp/1")]
        );
        assert_eq!(Contact::named(&foreign).unwrap().peer, other);
        assert!(Contact::named(&addr("/ip4/8.8.8.8/tcp/2")).is_err());
    }

    #[test]
    fn circuits_are_of_one_form_and_few() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let over = |base: &str| addr(&format!("{base}/p2p/{relay}/p2p-circuit"));
        let good = over("/ip4/8.8.8.8/udp/4001/quic-v1");
        let circuit = Circuit::of(&good.clone().with_p2p(peer).unwrap()).unwrap();
        assert_eq!((circuit.relay, circuit.target), (relay, Some(peer)));
        assert_eq!(circuit.address(), good);
        assert!(PUBLIC.permit_circuit(&good) && !PUBLIC.permit(&good));
        for bad in [
            over("/ip4/10.0.0.1/tcp/1"),
            over("/dns4/host.example/tcp/1"),
            over(""),
            addr("/ip4/8.8.8.8/tcp/1/p2p-circuit"),
            addr(&format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}")),
            over("/ip4/8.8.8.8/tcp/1").with(Protocol::Tcp(80)),
            over("/ip4/8.8.8.8/tcp/1").with(Protocol::P2pCircuit),
        ] {
            assert!(!PUBLIC.permit_circuit(&bad), "{bad}");
        }
        let many = (1..9).map(|port| over(&format!("/ip4/8.8.8.8/tcp/{port}")));
        let kept = PUBLIC.keep(peer, many.chain([addr("/ip4/8.8.8.8/tcp/9")]));
        assert_eq!(kept.len(), CIRCUITS_MAX + 1);
        let contact = Contact { peer, addrs: kept };
        assert_eq!(contact.dialled(), [addr("/ip4/8.8.8.8/tcp/9")]);
        assert!(!contact.is_behind_relays());
        assert_eq!(contact.circuits().len(), CIRCUITS_MAX);
        // Those of somebody else are left out.
        let foreign = good.with_p2p(PeerId::random()).unwrap();
        assert!(PUBLIC.keep(peer, [foreign]).is_empty());
    }

    #[test]
    fn prefixes_group_neighbours() {
        let of = |text| Prefix::of(&addr(text));
        assert_eq!(of("/ip4/8.8.8.8/tcp/1"), of("/ip4/8.8.8.9/tcp/2"));
        assert_ne!(of("/ip4/8.8.8.8/tcp/1"), of("/ip4/8.8.9.8/tcp/1"));
        assert_eq!(of("/ip6/2606:1:2:3::/tcp/1"), of("/ip6/2606:1:2:4::/tcp/1"));
        assert_eq!(of("/ip4/127.0.0.1/tcp/1"), None);
        assert_eq!(of("/dns4/host.example/tcp/1"), None);
    }

    #[test]
    fn the_point_is_what_kad_hashes() {
        let peer = PeerId::random();
        let key = libp2p::kad::KBucketKey::from(peer);
        assert_eq!(key.hashed_bytes(), point_of(&peer).as_bytes());
    }
}
