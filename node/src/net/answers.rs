//! Requests of others: counted, limited, answered off the swarm task.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use libp2p::request_response::{InboundRequestId, ResponseChannel};
use libp2p::{Multiaddr, PeerId};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};

use super::address::Prefix;
use super::codec::Carried;
use super::limits::{Limits, RATES_MAX};
use super::rate::Rates;

/// What answers a request: the peer, its address as we see it, the request; an empty answer
/// refuses. It may panic or hang without harm to the node.
pub(super) type Handler = Arc<
    dyn Fn(PeerId, Multiaddr, Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>>
        + Send
        + Sync,
>;

/// An answer and where it goes, or nothing for a refusal.
pub(super) type Answer = Option<(ResponseChannel<Carried>, Vec<u8>)>;

/// A request as it arrives.
pub(super) struct Inbound {
    pub(super) peer: PeerId,
    pub(super) observed: Multiaddr,
    pub(super) id: InboundRequestId,
    pub(super) request: Carried,
    pub(super) channel: ResponseChannel<Carried>,
}

/// All requests of others that are being answered. There is no queue: what exceeds a limit is
/// refused at once by dropping its stream.
pub(super) struct Answers {
    handler: Handler,
    answering_max: usize,
    answering_per_peer_max: usize,
    peers: Rates<PeerId>,
    prefixes: Rates<Prefix>,
    tasks: JoinSet<Vec<u8>>,
    channels: HashMap<task::Id, ResponseChannel<Carried>>,
    /// From arrival until the answer is flushed or the exchange failed.
    active: HashMap<InboundRequestId, Active>,
}

struct Active {
    peer: PeerId,
    task: AbortHandle,
}

impl Answers {
    pub(super) fn new(limits: &Limits, handler: Handler) -> Self {
        let factor = limits.prefix_rate_factor;
        Self {
            handler,
            answering_max: limits.answering_max,
            answering_per_peer_max: limits.answering_per_peer_max,
            peers: Rates::new(limits.requests_per_second, limits.requests_burst, RATES_MAX),
            prefixes: Rates::new(
                limits.requests_per_second * factor,
                limits.requests_burst * factor,
                RATES_MAX,
            ),
            tasks: JoinSet::new(),
            channels: HashMap::new(),
            active: HashMap::new(),
        }
    }

    /// Starts to answer, or refuses by dropping the channel.
    pub(super) fn start(&mut self, inbound: Inbound) {
        if !self.admit(&inbound) {
            tracing::debug!(peer = %inbound.peer, "request refused: over its limits");
            return;
        }
        let Inbound {
            peer,
            observed,
            id,
            request,
            channel,
        } = inbound;
        let handler = self.handler.clone();
        let task = self.tasks.spawn(async move {
            let Carried { bytes, share } = request;
            let answer = handler(peer, observed, bytes).await;
            drop(share);
            answer
        });
        self.channels.insert(task.id(), channel);
        self.active.insert(id, Active { peer, task });
    }

    fn admit(&mut self, inbound: &Inbound) -> bool {
        let now = Instant::now();
        let of_peer = self
            .active
            .values()
            .filter(|active| active.peer == inbound.peer)
            .count();
        self.active.len() < self.answering_max
            && of_peer < self.answering_per_peer_max
            && self.peers.take(inbound.peer, now)
            && Prefix::of(&inbound.observed).is_none_or(|prefix| self.prefixes.take(prefix, now))
    }

    /// The exchange is over, with an answer or without.
    pub(super) fn over(&mut self, id: InboundRequestId) {
        if let Some(active) = self.active.remove(&id) {
            active.task.abort();
        }
    }

    /// Waits for the next answer and where it goes; `None` stands for a refusal. Never returns
    /// while nothing is being answered. Cancel-safe.
    pub(super) async fn next(&mut self) -> Answer {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(ended) => self.ended(ended),
        }
    }

    fn ended(&mut self, ended: Result<(task::Id, Vec<u8>), JoinError>) -> Answer {
        match ended {
            Ok((id, answer)) => {
                let channel = self.channels.remove(&id)?;
                (!answer.is_empty()).then_some((channel, answer))
            }
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a request made its handler panic");
                }
                self.channels.remove(&error.id());
                None
            }
        }
    }
}
