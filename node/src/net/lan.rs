//! Nodes on the same LAN, found by multicast DNS.
//!
//! A node announces itself as `_qk._udp` with its network, role, peer id and ports in the TXT
//! record. Anybody on the LAN can announce anything: what is found is bounded, is asked only if a
//! manifest or the user names it, and proves its identity when it is dialled.

use std::collections::BTreeMap;
use std::net::IpAddr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use mdns_sd::{Receiver, ServiceDaemon, ServiceEvent, ServiceInfo};

use super::address::{AddressRules, Contact, ip_of, is_quic};
use super::limits::INTERFACES_INTERVAL_SECONDS;

const SERVICE: &str = "_qk._udp.local.";
/// Nodes of a LAN that are remembered.
pub(super) const LAN_NODES_MAX: usize = 64;
/// IP addresses read of one announcement.
const IPS_MAX: usize = 3;

/// What a node on a LAN is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LanRole {
    /// A node like any other.
    Node,
    /// One that the others may ask first, since it keeps what they fetch.
    Cache,
}

impl LanRole {
    fn text(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Cache => "cache",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Node, Self::Cache]
            .into_iter()
            .find(|role| role.text() == text)
    }
}

/// A node of this network that was found on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanNode {
    /// Who it says it is and where; its key proves the former when it is dialled.
    pub contact: Contact,
    /// What it says it is.
    pub role: LanRole,
}

/// What changed on the LAN.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LanChange {
    Found(LanNode),
    Lost(LanNode),
}

/// Announces this node and listens to others.
pub(super) struct Lan {
    daemon: ServiceDaemon,
    heard: Receiver<ServiceEvent>,
    network: String,
    local: PeerId,
    role: LanRole,
    rules: AddressRules,
    /// By full name of the service instance.
    nodes: BTreeMap<String, LanNode>,
}

impl Lan {
    /// Starts to listen; `network` is the network's short name.
    pub(super) fn start(
        network: String,
        local: PeerId,
        role: LanRole,
        rules: AddressRules,
    ) -> Result<Self, mdns_sd::Error> {
        let daemon = ServiceDaemon::new()?;
        daemon.set_ip_check_interval(INTERFACES_INTERVAL_SECONDS)?;
        let heard = daemon.browse(SERVICE)?;
        Ok(Self {
            daemon,
            heard,
            network,
            local,
            role,
            rules,
            nodes: BTreeMap::new(),
        })
    }

    /// Announces that this node listens at `listening`, in place of what was announced before.
    pub(super) fn announce(&self, listening: &[Multiaddr]) {
        match self.announcement(listening) {
            None => {}
            Some(Err(error)) => tracing::warn!(%error, "cannot announce this node on the LAN"),
            Some(Ok(service)) => {
                if let Err(error) = self.daemon.register(service) {
                    tracing::warn!(%error, "cannot announce this node on the LAN");
                }
            }
        }
    }

    fn announcement(&self, listening: &[Multiaddr]) -> Option<Result<ServiceInfo, mdns_sd::Error>> {
        let port = |quic| {
            let of_kind = |address: &&Multiaddr| is_quic(address) == quic;
            listening.iter().find(of_kind).and_then(port_of)
        };
        let (tcp, quic) = (port(false), port(true));
        let ips: Vec<IpAddr> = listening.iter().filter_map(ip_of).collect();
        let name = self.local.to_string();
        let host = format!("qk-{}.local.", name.get(name.len().checked_sub(16)?..)?);
        let mut text = vec![
            ("net", self.network.clone()),
            ("role", self.role.text().to_owned()),
            ("peer", name.clone()),
        ];
        text.extend(tcp.map(|port| ("tcp", port.to_string())));
        text.extend(quic.map(|port| ("quic", port.to_string())));
        let port = tcp.or(quic)?;
        Some(ServiceInfo::new(
            SERVICE,
            &name,
            &host,
            &ips[..],
            port,
            &text[..],
        ))
    }

    /// Waits for the next change. Never returns when multicast DNS has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> LanChange {
        loop {
            let Ok(event) = self.heard.recv_async().await else {
                return std::future::pending().await;
            };
            if let Some(change) = self.on_event(event) {
                return change;
            }
        }
    }

    /// The nodes that are on the LAN now.
    pub(super) fn nodes(&self) -> Vec<LanNode> {
        self.nodes.values().cloned().collect()
    }

    fn on_event(&mut self, event: ServiceEvent) -> Option<LanChange> {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                let ips = service.get_addresses().iter().map(|ip| ip.to_ip_addr());
                let text = |key: &str| service.get_property_val_str(key).map(str::to_owned);
                let node = self.read(text, ips)?;
                self.found(service.get_fullname().to_owned(), node)
            }
            ServiceEvent::ServiceRemoved(_, name) => self.nodes.remove(&name).map(LanChange::Lost),
            // Not ours to list: the enum grows.
            _ => None,
        }
    }

    fn found(&mut self, name: String, node: LanNode) -> Option<LanChange> {
        let known = self.nodes.get(&name);
        if known == Some(&node) || (known.is_none() && self.nodes.len() >= LAN_NODES_MAX) {
            return None;
        }
        self.nodes.insert(name, node.clone());
        Some(LanChange::Found(node))
    }

    /// A node from an announcement, if it is of this network and not this node itself.
    fn read(
        &self,
        text: impl Fn(&str) -> Option<String>,
        ips: impl Iterator<Item = IpAddr>,
    ) -> Option<LanNode> {
        let peer: PeerId = text("peer")?.parse().ok()?;
        if text("net")? != self.network || peer == self.local {
            return None;
        }
        let role = LanRole::parse(&text("role")?)?;
        let port = |key| text(key).and_then(|port| port.parse::<u16>().ok());
        let (tcp, quic) = (port("tcp"), port("quic"));
        let mut ips: Vec<IpAddr> = ips
            .filter(|ip| self.rules.allow_private || !ip.is_loopback())
            .filter(|ip| !is_scoped(ip))
            .collect();
        ips.sort();
        let addrs = ips.into_iter().take(IPS_MAX).flat_map(|ip| {
            let tcp = tcp.map(|port| Multiaddr::from(ip).with(Protocol::Tcp(port)));
            let quic = quic.map(|port| {
                let udp = Multiaddr::from(ip).with(Protocol::Udp(port));
                udp.with(Protocol::QuicV1)
            });
            tcp.into_iter().chain(quic)
        });
        // On a LAN, private addresses are what one expects.
        let on_lan = AddressRules {
            allow_private: true,
            ..self.rules
        };
        let contact = Contact {
            peer,
            addrs: on_lan.keep(peer, addrs),
        };
        (!contact.addrs.is_empty()).then_some(LanNode { contact, role })
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // It says good-bye on the LAN and ends its thread; nothing is to be done if it cannot.
        let _ = self.daemon.shutdown();
    }
}

/// Whether an address means nothing without the interface it was heard on.
fn is_scoped(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lan(allow_private: bool) -> Lan {
        let rules = AddressRules {
            allow_private,
            quic: true,
        };
        Lan::start("abcd".into(), PeerId::random(), LanRole::Node, rules).unwrap()
    }

    fn read(lan: &Lan, text: &[(&str, &str)], ips: &[&str]) -> Option<LanNode> {
        let value = |key: &str| {
            let found = text.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| (*value).to_owned())
        };
        lan.read(value, ips.iter().map(|ip| ip.parse().unwrap()))
    }

    #[test]
    fn announcements_are_read_with_suspicion() {
        let lan = lan(false);
        let peer = PeerId::random();
        let name = peer.to_string();
        let text = [
            ("net", "abcd"),
            ("role", "cache"),
            ("peer", name.as_str()),
            ("tcp", "1"),
            ("quic", "2"),
        ];
        let ips = ["192.168.0.7", "127.0.0.1", "fe80::1", "224.0.0.1"];
        let node = read(&lan, &text, &ips).unwrap();
        assert_eq!((node.contact.peer, node.role), (peer, LanRole::Cache));
        let addrs: Vec<String> = node.contact.addrs.iter().map(ToString::to_string).collect();
        assert_eq!(
            addrs,
            ["/ip4/192.168.0.7/tcp/1", "/ip4/192.168.0.7/udp/2/quic-v1"]
        );

        let own = lan.local.to_string();
        for (key, bad) in [
            ("net", "other"),
            ("role", "king"),
            ("peer", "nobody"),
            ("peer", own.as_str()),
        ] {
            let mut text = text;
            text.iter_mut()
                .filter(|(name, _)| *name == key)
                .for_each(|entry| entry.1 = bad);
            assert_eq!(read(&lan, &text, &ips), None, "{key} = {bad}");
        }
        assert_eq!(read(&lan, &text[..3], &ips), None, "no port");
        assert_eq!(read(&lan, &text, &["127.0.0.1"]), None, "loopback");
        let many: Vec<String> = (0..200).map(|last| format!("10.0.0.{last}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let node = read(&lan, &text, &many).unwrap();
        assert_eq!(node.contact.addrs.len(), 2 * IPS_MAX);
    }

    #[test]
    fn a_noisy_lan_fills_no_memory() {
        let mut lan = lan(true);
        let node = |port: u16| LanNode {
            contact: Contact {
                peer: PeerId::random(),
                addrs: vec![format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()],
            },
            role: LanRole::Node,
        };
        let found = (1..1000)
            .filter(|port| lan.found(format!("n{port}"), node(*port)).is_some())
            .count();
        assert_eq!((found, lan.nodes().len()), (LAN_NODES_MAX, LAN_NODES_MAX));
        let (known, other) = (lan.nodes.get("n1").cloned().unwrap(), node(1));
        assert_eq!(lan.found("n1".into(), known.clone()), None);
        let changed = lan.found("n1".into(), other.clone());
        assert_eq!(changed, Some(LanChange::Found(other)));
    }
}
