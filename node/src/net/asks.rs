//! Requests of our own: dial if need be, send, hand the reply to whoever asked.

use std::collections::HashMap;

use libp2p::PeerId;
use libp2p::request_response::{OutboundFailure, OutboundRequestId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, Swarm};
use tokio::sync::oneshot;

use super::AskError;
use super::address::Contact;
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
    sent: HashMap<OutboundRequestId, Sent>,
}

#[derive(Debug)]
struct Dial {
    id: ConnectionId,
    waiting: Vec<Ask>,
}

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

    fn dial(&mut self, swarm: &mut Swarm<Behaviour>, ask: Ask) {
        let peer = ask.contact.peer;
        if let Some(dial) = self.dials.get_mut(&peer) {
            dial.waiting.push(ask);
            return;
        }
        // Always: kad may be dialling the peer by a worse address.
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(ask.contact.dialled())
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match swarm.dial(options) {
            Err(error) => drop(ask.reply.send(Err(AskError::from_dial(&error)))),
            Ok(()) => {
                let waiting = vec![ask];
                self.dials.insert(peer, Dial { id, waiting });
            }
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
    pub(super) fn dial_failed(&mut self, peer: PeerId, id: ConnectionId, error: &DialError) {
        if self.dials.get(&peer).is_none_or(|dial| dial.id != id) {
            return;
        }
        let waiting = self.dials.remove(&peer).map(|dial| dial.waiting);
        for ask in waiting.unwrap_or_default() {
            drop(ask.reply.send(Err(AskError::from_dial(error))));
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

impl AskError {
    fn from_dial(error: &DialError) -> Self {
        match error {
            DialError::NoAddresses => Self::NoAddress,
            DialError::Denied { cause } => match cause.downcast_ref::<Refused>() {
                Some(Refused::Banned { why, .. }) => Self::Banned { why: why.clone() },
                Some(refused @ Refused::Full { .. }) => Self::Dial(refused.to_string()),
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
