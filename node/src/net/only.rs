//! A behaviour that takes part in some connections only, and can be begun anew.
//!
//! libp2p's behaviours take every connection alike. Here index exchanges and the routing table stay
//! away from relayed connections, and probes of reachability are made over public ones. Two of the
//! behaviours for NATs also never forget an address that they once tried, so that a machine that
//! moved needs new ones.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

use either::Either;
use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate,
    NotifyHandler, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::address::is_circuit;

/// A connection, as one decides whether to take part in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    /// The remote address; a relay's, or none that begins with an IP, if it is relayed.
    pub(super) remote: &'a Multiaddr,
    /// Whether it goes over a relay.
    pub(super) relayed: bool,
}

impl<'a> Line<'a> {
    fn inbound(local: &Multiaddr, remote: &'a Multiaddr) -> Self {
        Self {
            remote,
            relayed: is_circuit(local) || is_circuit(remote),
        }
    }

    fn outbound(remote: &'a Multiaddr) -> Self {
        Self {
            remote,
            relayed: is_circuit(remote),
        }
    }

    fn of(endpoint: &'a ConnectedPoint) -> Self {
        match endpoint {
            ConnectedPoint::Dialer { address, .. } => Self::outbound(address),
            ConnectedPoint::Listener {
                local_addr,
                send_back_addr,
            } => Self::inbound(local_addr, send_back_addr),
        }
    }
}

type Takes = Box<dyn Fn(Line<'_>) -> bool + Send>;

/// See the module.
pub(super) struct Only<B> {
    inner: B,
    takes: Takes,
    /// Connections that the behaviour knows.
    known: HashMap<ConnectionId, PeerId>,
    /// Requests that it may still send to its handlers; unlimited if none.
    sends_left: Option<usize>,
}

impl<B> Only<B> {
    /// `takes` says in which connections the behaviour takes part.
    pub(super) fn new(inner: B, takes: impl Fn(Line<'_>) -> bool + Send + 'static) -> Self {
        Self {
            inner,
            takes: Box::new(takes),
            known: HashMap::new(),
            sends_left: None,
        }
    }

    /// Takes part in direct connections.
    pub(super) fn direct(inner: B) -> Self {
        Self::new(inner, |line| !line.relayed)
    }

    /// Lets the behaviour send so many requests to its handlers, and drops those after that.
    pub(super) fn with_sends(mut self, sends_max: usize) -> Self {
        self.sends_left = Some(sends_max);
        self
    }

    /// Whether the behaviour has sent all that it may.
    pub(super) fn has_sent_all(&self) -> bool {
        self.sends_left == Some(0)
    }

    fn others(&self, id: ConnectionId, peer: PeerId) -> usize {
        let of_peer = |(other, of): &(&ConnectionId, &PeerId)| **other != id && **of == peer;
        self.known.iter().filter(of_peer).count()
    }
}

impl<B: NetworkBehaviour> Only<B> {
    /// Puts another behaviour in place, which knows none of the connections that there are.
    pub(super) fn renew(&mut self, inner: B, sends_max: Option<usize>) {
        self.inner = inner;
        self.known.clear();
        self.sends_left = sends_max;
    }

    /// Tells the behaviour of an address at which this node may be reachable. What other behaviours
    /// say of such addresses does not come through: peers may say anything.
    pub(super) fn propose(&mut self, addr: &Multiaddr) {
        let candidate = NewExternalAddrCandidate { addr };
        self.inner
            .on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        if !(self.takes)(Line::of(event.endpoint)) {
            return;
        }
        let (id, peer) = (event.connection_id, event.peer_id);
        let other_established = self.others(id, peer);
        self.known.insert(id, peer);
        self.inner
            .on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                other_established,
                ..event
            }));
    }

    fn on_closed(&mut self, event: ConnectionClosed<'_>) {
        let (id, peer) = (event.connection_id, event.peer_id);
        if self.known.remove(&id).is_none() {
            return;
        }
        let remaining_established = self.others(id, peer);
        self.inner
            .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                remaining_established,
                ..event
            }));
    }

    /// Which connection a request of the behaviour goes to; none if it shall not be sent.
    fn route(&mut self, peer: PeerId, handler: NotifyHandler) -> Option<ConnectionId> {
        let mut of_peer = self.known.iter().filter(|(_, of)| **of == peer);
        let id = match handler {
            NotifyHandler::One(id) => of_peer.find(|(known, _)| **known == id),
            NotifyHandler::Any => of_peer.next(),
        };
        let id = *id?.0;
        match &mut self.sends_left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        Some(id)
    }
}

impl<B> Deref for Only<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B> DerefMut for Only<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Only<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !(self.takes)(Line::inbound(local, remote)) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_inbound_connection(id, peer, local, remote)
            .map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !(self.takes)(Line::outbound(remote)) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_outbound_connection(id, peer, remote, role, port_use)
            .map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            FromSwarm::AddressChange(event) if !self.known.contains_key(&event.connection_id) => {}
            // See `propose`.
            FromSwarm::NewExternalAddrCandidate(_) => {}
            event => self.inner.on_swarm_event(event),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            // Of a connection from before a renewal.
            Either::Left(_) if !self.known.contains_key(&id) => {}
            Either::Left(event) => self.inner.on_connection_handler_event(peer, id, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while let Poll::Ready(action) = self.inner.poll(cx) {
            let ToSwarm::NotifyHandler {
                peer_id,
                handler,
                event,
            } = action
            else {
                return Poll::Ready(action.map_in(Either::Left));
            };
            if let Some(id) = self.route(peer_id, handler) {
                return Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler: NotifyHandler::One(id),
                    event: Either::Left(event),
                });
            }
        }
        Poll::Pending
    }
}
