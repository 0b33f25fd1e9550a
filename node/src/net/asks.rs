//! Requests of our own: dial if need be, send, hand the reply to whoever asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::core::upgrade::NegotiationError;
use libp2p::request_response::{OutboundFailure, OutboundRequestId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, Swarm};
use tokio::sync::oneshot;

use super::AskError;
use super::address::{Circuit, Contact, is_quic};
use super::behaviour::Behaviour;
use super::codec::Carried;
use super::gate::Refused;
use super::limits::{Limits, REQUEST_BYTES_MAX};

/// One request and who waits for its reply. Who no longer waits has dropped the receiver.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) contact: Contact,
    /// None if only the connection is wanted.
    pub(super) request: Option<Vec<u8>>,
    pub(super) reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
}

/// All requests of our own that wait for a connection or a reply.
#[derive(Debug)]
pub(super) struct Asks {
    asking_max: usize,
    asking_per_peer_max: usize,
    dials: HashMap<PeerId, Dial>,
    /// Relays that said lately how this node looks from outside.
    asked_relays: HashMap<PeerId, Instant>,
    sent: HashMap<OutboundRequestId, Sent>,
}

#[derive(Debug)]
struct Dial {
    id: ConnectionId,
    stage: Stage,
    waiting: Vec<Ask>,
}

/// How far a dial is. Whoever cannot be dialled directly is dialled over a relay, and a direct
/// connection is waited for.
#[derive(Debug)]
enum Stage {
    /// Nobody asked yet. Whoever asks at other addresses than these does not wait for it.
    Greeting(Contact),
    /// These addresses over relays are left if it fails.
    Direct(Vec<Circuit>),
    /// The relay is dialled over QUIC, so that it can say how this node looks from outside: over TCP
    /// it would see a port that nobody listens on.
    Relay(Vec<Circuit>),
    /// The peer is dialled over the relay.
    Circuit,
    /// There is a relayed connection, and a direct one is on its way.
    Upgrade,
    /// The relayed one is over, at that time. The other side may have seen the direct one first.
    Late(Instant),
}

/// How long after the relayed connection a direct one may come.
const DIRECT_LATE_MAX: Duration = Duration::from_secs(2);
/// How long a relay's word about this node's address is good.
const RELAY_WORD_TIME: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Sent {
    peer: PeerId,
    reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
    /// The request once more, if it went over a connection that may have been closing already.
    again: Option<(Contact, Vec<u8>)>,
}

impl Asks {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            asking_max: limits.asking_max,
            asking_per_peer_max: limits.asking_per_peer_max,
            dials: HashMap::new(),
            asked_relays: HashMap::new(),
            sent: HashMap::new(),
        }
    }

    /// Sends a request, over a connection that exists or over a new one.
    pub(super) fn start(&mut self, swarm: &mut Swarm<Behaviour>, ask: Ask) {
        if ask.reply.is_closed() {
            return;
        }
        match self.check(swarm, &ask) {
            Err(error) => drop(ask.reply.send(Err(error))),
            Ok(()) if swarm.behaviour().index.is_connected(&ask.contact.peer) => {
                self.send(swarm, ask, true);
            }
            Ok(()) => self.dial(swarm, ask),
        }
    }

    fn check(&self, swarm: &Swarm<Behaviour>, ask: &Ask) -> Result<(), AskError> {
        let peer = ask.contact.peer;
        let bytes = ask.request.as_ref().map_or(0, Vec::len);
        if bytes > REQUEST_BYTES_MAX {
            return Err(AskError::TooLong { bytes });
        }
        if peer == *swarm.local_peer_id() {
            return Err(AskError::Oneself);
        }
        if let Some(ban) = swarm.behaviour().gate.ban_of(&peer) {
            return Err(AskError::Banned {
                why: ban.why.clone(),
            });
        }
        let waiting: usize = self.dials.values().map(|dial| dial.waiting.len()).sum();
        let of_peer = self.sent.values().filter(|sent| sent.peer == peer).count()
            + self.dials.get(&peer).map_or(0, |dial| dial.waiting.len());
        if waiting + self.sent.len() >= self.asking_max || of_peer >= self.asking_per_peer_max {
            return Err(AskError::Busy);
        }
        Ok(())
    }

    /// Connects with a peer that is neither connected nor being dialled. Whoever asks it meanwhile at
    /// the same addresses waits for the same connection.
    pub(super) fn connect(&mut self, swarm: &mut Swarm<Behaviour>, contact: &Contact) {
        let options = DialOpts::peer_id(contact.peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(contact.dialled())
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match swarm.dial(options) {
            Ok(()) => {
                let (stage, waiting) = (Stage::Greeting(contact.clone()), Vec::new());
                let dial = Dial { id, stage, waiting };
                self.dials.entry(contact.peer).or_insert(dial);
            }
            Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => tracing::debug!(peer = %contact.peer, %error, "cannot dial"),
        }
    }

    fn dial(&mut self, swarm: &mut Swarm<Behaviour>, ask: Ask) {
        let peer = ask.contact.peer;
        if let Some(dial) = self.dials.get_mut(&peer)
            && !matches!(&dial.stage, Stage::Greeting(greeted) if *greeted != ask.contact)
        {
            dial.waiting.push(ask);
            return;
        }
        let contact = ask.contact.clone();
        // Those who wait for a greeting wait for this as well.
        let greeting = self.dials.remove(&peer);
        let mut waiting = greeting.map_or_else(Vec::new, |dial| dial.waiting);
        waiting.push(ask);
        let circuits = circuits_of(swarm, &contact);
        if contact.is_behind_relays() && !circuits.is_empty() {
            return self.dial_relay(swarm, peer, circuits, waiting);
        }
        // Always: kad may be dialling the peer by a worse address.
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(contact.dialled())
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match swarm.dial(options) {
            Err(error) => fail(waiting, &AskError::from_dial(&error)),
            Ok(()) => {
                let stage = Stage::Direct(circuits);
                self.dials.insert(peer, Dial { id, stage, waiting });
            }
        }
    }

    fn dial_relay(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        peer: PeerId,
        circuits: Vec<Circuit>,
        waiting: Vec<Ask>,
    ) {
        self.asked_relays
            .retain(|_, at| at.elapsed() < RELAY_WORD_TIME);
        let quic = circuits.iter().find(|one| is_quic(&one.relay_address));
        let Some(circuit) = quic.filter(|one| !self.asked_relays.contains_key(&one.relay)) else {
            return self.dial_circuit(swarm, peer, &circuits, waiting);
        };
        // From the port that is listened on, if there is one, and otherwise from the one that will
        // be used again for the direct connection.
        let options = DialOpts::peer_id(circuit.relay)
            .condition(PeerCondition::Always)
            .addresses(vec![circuit.relay_address.clone()])
            .build();
        let id = options.connection_id();
        match swarm.dial(options) {
            Ok(()) => {
                let stage = Stage::Relay(circuits);
                self.dials.insert(peer, Dial { id, stage, waiting });
            }
            Err(_) => self.dial_circuit(swarm, peer, &circuits, waiting),
        }
    }

    fn dial_circuit(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        peer: PeerId,
        circuits: &[Circuit],
        waiting: Vec<Ask>,
    ) {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(circuits.iter().map(Circuit::address).collect())
            .build();
        let id = options.connection_id();
        swarm.behaviour_mut().gate.want_circuit(id);
        match swarm.dial(options) {
            Ok(()) => {
                let stage = Stage::Circuit;
                self.dials.insert(peer, Dial { id, stage, waiting });
            }
            Err(error) => fail(waiting, &AskError::from_dial(&error)),
        }
    }

    /// Whether a peer is asked how this node looks from outside.
    pub(super) fn is_relay(&self, peer: &PeerId) -> bool {
        let of = |circuits: &[Circuit]| circuits.iter().any(|one| one.relay == *peer);
        let mut stages = self.dials.values().map(|dial| &dial.stage);
        stages.any(|stage| matches!(stage, Stage::Relay(circuits) if of(circuits)))
    }

    /// A peer told how it sees this node over a connection.
    pub(super) fn identified(&mut self, swarm: &mut Swarm<Behaviour>, id: ConnectionId) {
        self.relay_done(swarm, id, true);
    }

    fn relay_done(&mut self, swarm: &mut Swarm<Behaviour>, id: ConnectionId, told: bool) {
        let waits = |dial: &Dial| dial.id == id && matches!(dial.stage, Stage::Relay(_));
        let peers = self.dials.iter().filter(|(_, dial)| waits(dial));
        for peer in peers.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            let Some(Dial { stage, waiting, .. }) = self.dials.remove(&peer) else {
                continue;
            };
            if let Stage::Relay(circuits) = stage {
                if told && let Some(circuit) = circuits.first() {
                    self.asked_relays.insert(circuit.relay, Instant::now());
                }
                self.dial_circuit(swarm, peer, &circuits, waiting);
            }
        }
    }

    /// A relayed connection is there.
    pub(super) fn connected_over_relay(&mut self, id: ConnectionId) {
        let mut dials = self.dials.values_mut();
        if let Some(dial) = dials.find(|dial| dial.id == id) {
            dial.stage = Stage::Upgrade;
        }
    }

    /// A connection is over, perhaps a relayed one.
    pub(super) fn closed(&mut self, id: ConnectionId) {
        let mut dials = self.dials.values_mut();
        let over = |dial: &&mut Dial| dial.id == id && matches!(dial.stage, Stage::Upgrade);
        if let Some(dial) = dials.find(over) {
            dial.stage = Stage::Late(Instant::now());
        }
    }

    /// Tells those who wait for a direct connection that none comes any more.
    pub(super) fn give_up_late(&mut self) {
        let late = |dial: &Dial| matches!(dial.stage, Stage::Late(since) if since.elapsed() >= DIRECT_LATE_MAX);
        for (_, dial) in self.dials.extract_if(|_, dial| late(dial)) {
            fail(dial.waiting, &AskError::NoDirect);
        }
    }

    fn send(&mut self, swarm: &mut Swarm<Behaviour>, ask: Ask, maybe_closing: bool) {
        let Some(request) = ask.request else {
            drop(ask.reply.send(Ok(Vec::new())));
            return;
        };
        let peer = ask.contact.peer;
        let again = maybe_closing.then(|| (ask.contact, request.clone()));
        let index = &mut swarm.behaviour_mut().index;
        let id = index.send_request(&peer, Carried::from(request));
        self.sent.insert(
            id,
            Sent {
                peer,
                reply: ask.reply,
                again,
            },
        );
    }

    /// How many peers are being dialled.
    pub(super) fn dialling(&self) -> usize {
        self.dials.len()
    }

    /// Whether a reply of `peer` is awaited by somebody.
    pub(super) fn is_asked(&self, peer: &PeerId) -> bool {
        let waits = |sent: &Sent| sent.peer == *peer && !sent.reply.is_closed();
        self.sent.values().any(waits)
    }

    /// A connection to `peer` is there: what waited for it is sent.
    pub(super) fn connected(&mut self, swarm: &mut Swarm<Behaviour>, peer: PeerId) {
        let waiting = self.dials.remove(&peer).map(|dial| dial.waiting);
        for ask in waiting.unwrap_or_default() {
            if !ask.reply.is_closed() {
                self.send(swarm, ask, false);
            }
        }
    }

    /// A dial failed: if it was ours, those who wait for it learn why.
    pub(super) fn dial_failed(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        id: ConnectionId,
        error: &DialError,
    ) {
        self.relay_done(swarm, id, false);
        let failed = self.dials.iter().find(|(_, dial)| dial.id == id);
        let Some(peer) = failed.map(|(peer, _)| *peer) else {
            return;
        };
        let Some(Dial { stage, waiting, .. }) = self.dials.remove(&peer) else {
            return;
        };
        let stage = match stage {
            Stage::Greeting(contact) if !waiting.is_empty() => {
                Stage::Direct(circuits_of(swarm, &contact))
            }
            stage => stage,
        };
        match stage {
            Stage::Direct(circuits) if !circuits.is_empty() => {
                self.dial_relay(swarm, peer, circuits, waiting);
            }
            Stage::Greeting(_)
            | Stage::Direct(_)
            | Stage::Relay(_)
            | Stage::Circuit
            | Stage::Upgrade
            | Stage::Late(_) => {
                fail(waiting, &AskError::from_dial(error));
            }
        }
    }

    /// A reply came.
    pub(super) fn replied(&mut self, id: OutboundRequestId, reply: Carried) {
        if let Some(sent) = self.sent.remove(&id) {
            drop(sent.reply.send(Ok(reply.bytes)));
        }
    }

    /// A request failed. If its connection was closing when it was sent, it is sent once more.
    pub(super) fn failed(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        id: OutboundRequestId,
        error: OutboundFailure,
    ) {
        let Some(sent) = self.sent.remove(&id) else {
            return;
        };
        match (error, sent.again) {
            (OutboundFailure::ConnectionClosed, Some((contact, request))) => {
                let (request, reply) = (Some(request), sent.reply);
                let ask = Ask {
                    contact,
                    request,
                    reply,
                };
                self.start(swarm, ask);
            }
            (error, _) => drop(sent.reply.send(Err(AskError::from_failure(error)))),
        }
    }

    /// Ends dials that nobody waits for any more, so that silent addresses do not use up the
    /// number of dials.
    pub(super) fn prune(&mut self, swarm: &mut Swarm<Behaviour>) {
        self.dials.retain(|peer, dial| {
            dial.waiting.retain(|ask| !ask.reply.is_closed());
            let wanted = !dial.waiting.is_empty();
            if !wanted && !swarm.is_connected(peer) {
                // It ends pending connections too; that there is no established one is no error.
                let _ = swarm.disconnect_peer_id(*peer);
            }
            wanted
        });
    }
}

fn fail(waiting: Vec<Ask>, error: &AskError) {
    for ask in waiting {
        drop(ask.reply.send(Err(error.clone())));
    }
}

impl AskError {
    fn from_dial(error: &DialError) -> Self {
        match error {
            DialError::NoAddresses => Self::NoAddress,
            DialError::Denied { cause } => match cause.downcast_ref::<Refused>() {
                Some(Refused::Banned { why, .. }) => Self::Banned { why: why.clone() },
                Some(
                    refused @ (Refused::Full { .. } | Refused::Circuit | Refused::Addresses { .. }),
                ) => Self::Dial(refused.to_string()),
                None => Self::Dial(cause.to_string()),
            },
            error => Self::Dial(error.to_string()),
        }
    }

    fn from_failure(error: OutboundFailure) -> Self {
        match error {
            OutboundFailure::Timeout => Self::TimedOut,
            OutboundFailure::UnsupportedProtocols => Self::OtherNetwork,
            OutboundFailure::ConnectionClosed => Self::Lost,
            // The stream's protocol was named together with the request.
            OutboundFailure::Io(error) if is_unsupported(&error) => Self::OtherNetwork,
            // The answering side drops a stream that it will not serve.
            OutboundFailure::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::Refused
            }
            error @ (OutboundFailure::DialFailure | OutboundFailure::Io(_)) => {
                Self::Stream(error.to_string())
            }
        }
    }
}

/// Its addresses over relays, where this node may use them.
fn circuits_of(swarm: &Swarm<Behaviour>, contact: &Contact) -> Vec<Circuit> {
    match swarm.behaviour().punch.is_enabled() {
        true => contact.circuits(),
        false => Vec::new(),
    }
}

fn is_unsupported(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(NegotiationError::Failed))
}
