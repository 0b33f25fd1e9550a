//! One-directional streams on `/qk/<network>/blocks/1`: whoever opens one asks, the other answers.
//!
//! Lanes go over connections that others open and close, never over a relayed one, and no dial
//! happens here. Whoever composes the swarm adds a [`Behaviour`] and hands out its [`Lanes`].

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, Stream, StreamProtocol};
use tokio::sync::{mpsc, oneshot};

use super::lane::Lane;
use super::serve::Server;
use super::shared::SharedLanes;
use crate::net::address::Prefix;

/// Lanes that wait for the swarm to take note of them.
const COMMANDS_MAX: usize = 64;
/// Lanes of one connection that are being opened.
const OPENING_MAX: usize = 8;

/// Why no lane was opened.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There is no direct connection to this peer: dial it first.
    #[error("not connected to {0}")]
    NotConnected(PeerId),
    /// The peer serves no blocks on this network.
    #[error("{0} serves no blocks on this network")]
    NotSpoken(PeerId),
    /// The connection broke, or the other side took too long.
    #[error("connection to {0} broke while a lane was opened")]
    Broken(PeerId),
    /// As many lanes as may be are being opened on that connection.
    #[error("too many lanes to {0} are being opened")]
    TooMany(PeerId),
    /// The swarm is gone.
    #[error("the network was shut down")]
    Shutdown,
}

type Reply = oneshot::Sender<Result<Stream, LaneError>>;

#[derive(Debug)]
struct Open {
    peer: PeerId,
    reply: Reply,
}

/// Opens lanes from any task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lanes {
    commands: mpsc::Sender<Open>,
    pub(super) shared: SharedLanes,
}

impl Lanes {
    fn new(commands: mpsc::Sender<Open>) -> Self {
        Self {
            commands,
            shared: SharedLanes::new(),
        }
    }

    /// Lanes of a node without connections: none opens.
    pub(crate) fn closed() -> Self {
        Self::new(mpsc::channel(1).0)
    }

    /// Opens a lane to a connected peer; see [`Lane::new`] for `stall_max`.
    pub async fn open(&self, peer: PeerId, stall_max: Duration) -> Result<Lane, LaneError> {
        Ok(Lane::new(self.stream(peer).await?, stall_max))
    }

    pub(crate) async fn stream(&self, peer: PeerId) -> Result<Stream, LaneError> {
        let (reply, opened) = oneshot::channel();
        let sent = self.commands.send(Open { peer, reply }).await;
        sent.map_err(|_| LaneError::Shutdown)?;
        opened.await.map_err(|_| LaneError::Broken(peer))?
    }
}

/// Who opened a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The peer.
    pub peer: PeerId,
    /// Where it is, as far as that tells operators apart.
    pub prefix: Option<Prefix>,
}

/// What is done with a lane that a peer opened. Called on the connection's task: spawn and return.
pub type OnLane = Arc<dyn Fn(Reader, Stream) + Send + Sync>;

/// Serves every lane in a task of its own, which ends with its connection.
pub fn serving(server: Arc<Server>) -> OnLane {
    Arc::new(move |reader, stream| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            if let Err(error) = server.serve(reader, stream).await {
                tracing::debug!(peer = %reader.peer, %error, "lane dropped");
            }
        });
    })
}

#[derive(Debug, Clone, Copy)]
struct Direct {
    id: ConnectionId,
    quic: bool,
}

/// The part of a swarm that opens and accepts lanes.
pub struct Behaviour {
    protocol: StreamProtocol,
    on_lane: Option<OnLane>,
    commands: mpsc::Receiver<Open>,
    /// Connections without a relay: those over TCP, which carries bulk faster than QUIC, before
    /// others, and the oldest first.
    direct: BTreeMap<PeerId, Vec<Direct>>,
}

impl Behaviour {
    /// Lanes of the protocol of this name. Without `on_lane` this node does not offer it.
    pub fn new(protocol: StreamProtocol, on_lane: Option<OnLane>) -> (Self, Lanes) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let behaviour = Self {
            protocol,
            on_lane,
            commands,
            direct: BTreeMap::new(),
        };
        (behaviour, Lanes::new(sender))
    }

    fn handler(&self, peer: PeerId, remote: &Multiaddr, is_relayed: bool) -> Handler {
        let on_lane = self.on_lane.clone().filter(|_| !is_relayed);
        let prefix = Prefix::of(remote);
        Handler {
            reader: Reader { peer, prefix },
            protocol: self.protocol.clone(),
            on_lane,
            opening: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, remote, is_relayed(local) || is_relayed(remote)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, remote, is_relayed(remote)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) if !endpoint.is_relayed() => {
                let connections = self.direct.entry(peer_id).or_default();
                connections.push(Direct {
                    id: connection_id,
                    quic: is_quic(endpoint.get_remote_address()),
                });
                connections.sort_by_key(|one| one.quic);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                if let Some(connections) = self.direct.get_mut(&peer_id) {
                    connections.retain(|open| open.id != connection_id);
                    if connections.is_empty() {
                        self.direct.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(Open { peer, reply })) = self.commands.poll_recv(cx) {
            let best = self
                .direct
                .get(&peer)
                .and_then(|connections| connections.first());
            let Some(Direct { id, .. }) = best else {
                // Whoever asked may be gone.
                let _ = reply.send(Err(LaneError::NotConnected(peer)));
                continue;
            };
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(*id),
                event: OpenLane(reply),
            });
        }
        Poll::Pending
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::QuicV1)
}

/// Asks a connection for a lane.
#[derive(Debug)]
pub struct OpenLane(Reply);

/// The protocol on one connection.
pub struct Handler {
    reader: Reader,
    protocol: StreamProtocol,
    on_lane: Option<OnLane>,
    opening: VecDeque<Reply>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenLane;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        let offered = self.on_lane.as_ref().map(|_| self.protocol.clone());
        SubstreamProtocol::new(Offer(offered), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, Reply, Infallible>> {
        // Whoever does not wait any more needs no stream.
        self.opening.retain(|reply| !reply.is_closed());
        let Some(reply) = self.opening.pop_front() else {
            return Poll::Pending;
        };
        let protocol = SubstreamProtocol::new(Offer(Some(self.protocol.clone())), reply);
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    fn on_behaviour_event(&mut self, OpenLane(reply): OpenLane) {
        if self.opening.len() < OPENING_MAX {
            self.opening.push_back(reply);
        } else {
            let _ = reply.send(Err(LaneError::TooMany(self.reader.peer)));
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), Reply>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => {
                if let Some(on_lane) = &self.on_lane {
                    on_lane(self.reader, protocol);
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => {
                // Dropping the stream closes it, if nobody waits.
                let _ = info.send(Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => LaneError::NotSpoken(self.reader.peer),
                    StreamUpgradeError::Timeout | StreamUpgradeError::Io(_) => {
                        LaneError::Broken(self.reader.peer)
                    }
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.send(Err(error));
            }
            _ => {}
        }
    }
}

/// A protocol, or none, whose stream is used as it is.
#[derive(Debug)]
pub struct Offer(Option<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::ConnectionId;

    use super::*;

    const TCP: &str = "/ip4/8.8.8.8/tcp/1";
    const QUIC: &str = "/ip4/8.8.8.8/udp/1/quic-v1";

    fn relayed() -> String {
        format!("{TCP}/p2p/{}/p2p-circuit", PeerId::random())
    }

    fn at(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn behaviour() -> (Behaviour, Lanes) {
        let on_lane: OnLane = Arc::new(|_, _| {});
        Behaviour::new(StreamProtocol::new("/qk/test/blocks/1"), Some(on_lane))
    }

    fn connect(behaviour: &mut Behaviour, peer: PeerId, number: usize, address: &str) {
        let endpoint = ConnectedPoint::Dialer {
            address: at(address),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(number),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
    }

    /// Over which connection a lane is opened, if over any.
    fn opened(behaviour: &mut Behaviour, lanes: &Lanes, peer: PeerId) -> Option<ConnectionId> {
        let opening = lanes.stream(peer);
        let mut opening = Box::pin(opening);
        assert!((&mut opening).now_or_never().is_none());
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        match behaviour.poll(&mut cx) {
            Poll::Ready(ToSwarm::NotifyHandler {
                handler: NotifyHandler::One(id),
                ..
            }) => Some(id),
            _ => {
                let refused = opening.now_or_never().expect("an answer");
                assert!(matches!(refused, Err(LaneError::NotConnected(_))));
                None
            }
        }
    }

    #[test]
    fn no_lane_goes_over_a_relay_and_tcp_is_preferred() {
        let ((mut behaviour, lanes), peer) = (behaviour(), PeerId::random());
        connect(&mut behaviour, peer, 1, &relayed());
        assert_eq!(opened(&mut behaviour, &lanes, peer), None);
        for (number, address, best) in [(2, QUIC, 2), (3, TCP, 3), (4, TCP, 3), (5, QUIC, 3)] {
            connect(&mut behaviour, peer, number, address);
            let over = opened(&mut behaviour, &lanes, peer);
            assert_eq!(over, Some(ConnectionId::new_unchecked(best)), "{number}");
        }
    }

    #[test]
    fn no_lane_is_taken_over_a_relay() {
        let (mut behaviour, _) = behaviour();
        let peer = PeerId::random();
        let remote = at(&format!("/p2p/{peer}"));
        let mut offers = |local: &str| {
            let id = ConnectionId::new_unchecked(1);
            let handler = behaviour
                .handle_established_inbound_connection(id, peer, &at(local), &remote)
                .unwrap();
            handler
                .listen_protocol()
                .upgrade()
                .protocol_info()
                .next()
                .is_some()
        };
        assert!(offers(TCP));
        assert!(!offers(&relayed()));
    }
}
