//! The iterative look-up: asks nodes ever closer to a point, until the closest have answered.
//!
//! It has its own deadlines, so that one silent peer does not hold it up, and keeps no opinion
//! about the answers: the caller reads them as they arrive and stops when it has what it needs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hash::Point;
use crate::message::{Answer, Contact, Cursor, Get, NodeId, Reply, Request};
use crate::time::{Machine, Now};

/// How many nodes hold a point's statements: as many as the look-up wants answers of.
pub const WIDTH: usize = 20;
/// Nodes that are waited for at the same time, beside those that the look-up began with.
pub const PARALLEL: usize = 3;
/// Nodes asked at once in the beginning.
pub const SEEDS_MAX: usize = 8;
/// How long one node may take.
pub const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Nodes that one look-up remembers.
pub const PEERS_MAX: usize = 512;
/// Pages that one node may make its answer of.
pub const PAGES_MAX: usize = 16;

/// What happens to a look-up.
#[derive(Debug, Clone)]
pub enum LookupIn {
    /// Begin.
    Start,
    /// A node answered.
    Reply(NodeId, Reply),
    /// A node could not be reached, or answered nonsense.
    Failed(NodeId),
    /// Time passed.
    Tick,
}

/// What a look-up wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupOut {
    /// Ask this node.
    Ask(Contact, Request),
}

/// An iterative look-up of statements at a point.
#[derive(Debug)]
pub struct Lookup {
    get: Get,
    peers: BTreeMap<[u8; 32], Peer>,
    seeds: usize,
}

#[derive(Debug)]
struct Peer {
    contact: Contact,
    state: State,
    pages: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Known,
    Asked { until: Duration },
    Answered,
    Failed,
}

impl Lookup {
    /// A look-up that begins with these nodes, most promising first.
    pub fn new(get: Get, seeds: impl IntoIterator<Item = Contact>) -> Self {
        let mut lookup = Self {
            get,
            peers: BTreeMap::new(),
            seeds: 0,
        };
        for contact in seeds {
            lookup.learn(contact);
        }
        lookup.seeds = lookup.peers.len().min(SEEDS_MAX);
        lookup
    }

    /// Whether nothing is left to ask or to wait for.
    pub fn is_done(&self) -> bool {
        let waiting = self
            .peers
            .values()
            .any(|peer| matches!(peer.state, State::Asked { .. }));
        !waiting && self.next().is_none()
    }

    /// Nodes that answered, nearest to the point first.
    pub fn answered(&self) -> impl Iterator<Item = &Contact> {
        let answered = self
            .peers
            .values()
            .filter(|peer| peer.state == State::Answered);
        answered.map(|peer| &peer.contact)
    }

    /// How many nodes are known, whether they answer or not.
    pub fn known(&self) -> usize {
        self.peers.len()
    }

    /// The point looked up.
    pub fn point(&self) -> Point {
        self.get.point
    }

    fn learn(&mut self, contact: Contact) {
        let distance = contact.node.point().distance(&self.get.point);
        if contact.addrs.is_empty() || self.peers.len() >= PEERS_MAX {
            return;
        }
        self.peers.entry(distance).or_insert(Peer {
            contact,
            state: State::Known,
            pages: 0,
        });
    }

    /// The nearest node that has not been asked, among the nearest that do not fail.
    fn next(&self) -> Option<[u8; 32]> {
        let usable = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.state != State::Failed);
        let mut nearest = usable.take(WIDTH);
        nearest.find_map(|(distance, peer)| (peer.state == State::Known).then_some(*distance))
    }

    fn ask_more(&mut self, parallel: usize, now: Now, out: &mut Vec<LookupOut>) {
        let waiting = |peer: &&Peer| matches!(peer.state, State::Asked { .. });
        let mut free = parallel.saturating_sub(self.peers.values().filter(waiting).count());
        while free > 0
            && let Some(distance) = self.next()
        {
            self.ask(distance, None, now, out);
            free -= 1;
        }
    }

    fn ask(
        &mut self,
        distance: [u8; 32],
        after: Option<Cursor>,
        now: Now,
        out: &mut Vec<LookupOut>,
    ) {
        if let Some(peer) = self.peers.get_mut(&distance) {
            peer.state = State::Asked {
                until: now.mono + ASK_TIMEOUT,
            };
            let request = Request::Get(Get {
                after,
                ..self.get.clone()
            });
            out.push(LookupOut::Ask(peer.contact.clone(), request));
        }
    }

    fn on_reply(&mut self, node: &NodeId, reply: Reply, now: Now, out: &mut Vec<LookupOut>) {
        let distance = node.point().distance(&self.get.point);
        let Some(peer) = self.peers.get_mut(&distance) else {
            return;
        };
        // A late answer is still an answer.
        peer.state = State::Answered;
        if let Answer::Statements {
            next: Some(cursor), ..
        } = reply.answer
            && peer.pages < PAGES_MAX
        {
            peer.pages += 1;
            self.ask(distance, Some(cursor), now, out);
        }
        for contact in reply.closer {
            self.learn(contact);
        }
    }

    fn fail(&mut self, node: &NodeId) {
        let distance = node.point().distance(&self.get.point);
        if let Some(peer) = self.peers.get_mut(&distance)
            && peer.state != State::Answered
        {
            peer.state = State::Failed;
        }
    }

    fn fail_silent(&mut self, now: Now) {
        for peer in self.peers.values_mut() {
            if matches!(peer.state, State::Asked { until } if until <= now.mono) {
                peer.state = State::Failed;
            }
        }
    }
}

impl Machine for Lookup {
    type In = LookupIn;
    type Out = LookupOut;

    fn handle(&mut self, input: LookupIn, now: Now, out: &mut Vec<LookupOut>) {
        let mut parallel = PARALLEL;
        match input {
            LookupIn::Start => parallel = self.seeds.max(PARALLEL),
            LookupIn::Reply(node, reply) => self.on_reply(&node, reply, now, out),
            LookupIn::Failed(node) => self.fail(&node),
            LookupIn::Tick => self.fail_silent(now),
        }
        self.ask_more(parallel, now, out);
    }

    fn deadline(&self) -> Option<Duration> {
        let deadlines = self.peers.values().filter_map(|peer| match peer.state {
            State::Asked { until } => Some(until),
            State::Known | State::Answered | State::Failed => None,
        });
        deadlines.min()
    }
}
