//! AutoNAT's server: whether others can be reached is tried by dialling them, within bounds.
//!
//! The protocol lets a client name any address, for which it pays with some ten thousand bytes. That
//! would make this node dial a victim for a stranger, so that only addresses at the host that the
//! client is connected from are dialled, so many in a minute.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::autonat::v2::server;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use super::address::{Prefix, ip_of};
use super::limits::{DIAL_BACKS_BURST, DIAL_BACKS_PENDING_MAX, DIAL_BACKS_PER_SECOND, RATES_MAX};
use super::rate::Rates;

/// Why an address was not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotTried {
    /// It is the address of somebody else, as far as one can see.
    #[error("only addresses at the host that asks are tried")]
    Elsewhere,
    /// Too many were tried for this host, or are being tried.
    #[error("too many addresses are being tried")]
    TooMany,
}

/// See the module.
pub(super) struct DialBacks {
    inner: server::Behaviour,
    pending: HashSet<ConnectionId>,
    hosts: HashMap<ConnectionId, (PeerId, IpAddr)>,
    rates: Rates<Option<Prefix>>,
    /// Off only in the test that shows what happens without it.
    anywhere: bool,
}

impl DialBacks {
    pub(super) fn new(anywhere: bool) -> Self {
        Self {
            inner: server::Behaviour::default(),
            pending: HashSet::new(),
            hosts: HashMap::new(),
            rates: Rates::new(DIAL_BACKS_PER_SECOND, DIAL_BACKS_BURST, RATES_MAX),
            anywhere,
        }
    }

    fn admit(&mut self, peer: Option<PeerId>, addresses: &[Multiaddr]) -> Result<(), NotTried> {
        let is_host = |address: &Multiaddr| {
            let Some(ip) = ip_of(address) else {
                return false;
            };
            let mut hosts = self.hosts.values();
            hosts.any(|(of, host)| Some(*of) == peer && *host == ip)
        };
        if !self.anywhere && !addresses.iter().all(is_host) {
            return Err(NotTried::Elsewhere);
        }
        let prefix = addresses.first().and_then(Prefix::of);
        match self.pending.len() <= DIAL_BACKS_PENDING_MAX
            && self.rates.take(prefix, Instant::now())
        {
            true => Ok(()),
            false => Err(NotTried::TooMany),
        }
    }
}

impl NetworkBehaviour for DialBacks {
    type ConnectionHandler = THandler<server::Behaviour>;
    type ToSwarm = server::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if self.pending.contains(&id) {
            self.admit(peer, addresses).map_err(ConnectionDenied::new)?;
        }
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_outbound_connection(id, peer, remote, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                self.pending.remove(&connection_id);
                if let Some(ip) = ip_of(endpoint.get_remote_address())
                    && !endpoint.is_relayed()
                {
                    self.hosts.insert(connection_id, (peer_id, ip));
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.hosts.remove(&connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.pending.remove(&failure.connection_id);
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let action = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &action {
            self.pending.insert(opts.connection_id());
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Vec<Multiaddr> {
        vec![text.parse().unwrap()]
    }

    fn knowing(anywhere: bool) -> (DialBacks, PeerId) {
        let (mut server, peer) = (DialBacks::new(anywhere), PeerId::random());
        let host = (peer, "8.8.8.8".parse().unwrap());
        server.hosts.insert(ConnectionId::new_unchecked(1), host);
        (server, peer)
    }

    #[test]
    fn a_victim_is_not_dialled_for_a_stranger() {
        let (mut server, peer) = knowing(false);
        let victim = at("/ip4/9.9.9.9/tcp/80");
        let refused = server.admit(Some(peer), &victim);
        assert_eq!(refused, Err(NotTried::Elsewhere));
        let other = Some(PeerId::random());
        let own = at("/ip4/8.8.8.8/tcp/4001");
        assert_eq!(server.admit(other, &own), Err(NotTried::Elsewhere));
        assert_eq!(server.admit(Some(peer), &own), Ok(()));
        // Without the rule the victim is dialled.
        let (mut open, peer) = knowing(true);
        assert_eq!(open.admit(Some(peer), &victim), Ok(()));
    }

    #[test]
    fn one_host_is_dialled_so_many_times() {
        let (mut server, peer) = knowing(false);
        let own = at("/ip4/8.8.8.8/tcp/4001");
        let tried = (0..100).filter(|_| server.admit(Some(peer), &own).is_ok());
        assert_eq!(tried.count(), DIAL_BACKS_BURST as usize);
    }
}
