//! The iterative look-up: asks nodes ever closer to a point, until the closest have answered.
//!
//! It has its own deadlines, so that one silent peer does not hold it up, and keeps no opinion
//! about the answers: the caller reads them as they arrive and stops when it has what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::message::{Answer, CLOSER_MAX, Contact, Cursor, Get, NodeId, Reply, Request};
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
/// Pages that one node may make its answer of, the first one included.
pub const PAGES_MAX: usize = 16;
/// The same of a question by prefix, whose answers are long.
pub const PREFIX_WIDTH: usize = 5;
/// Nodes asked at once in the beginning of one.
pub const PREFIX_SEEDS_MAX: usize = 3;
/// How long one node may take to answer a question by prefix.
pub const PREFIX_TIMEOUT: Duration = Duration::from_secs(6);
/// Requests of one look-up, to whomever: what hostile nodes name without end is not asked without
/// end. A look-up among a million honest nodes takes some 40.
pub const ASKS_MAX: usize = 256;
/// Silent nodes that one look-up asks a second time.
pub const ASKED_AGAIN_MAX: usize = 8;
/// How long one look-up may take from its start; then nobody is asked or waited for any more.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a parent may take, which may have many children that all come at once. It is waited for
/// even where others suffice: what it has need not be fetched from afar.
pub const PARENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long others may still answer after a parent has: time for a dissent that the parent does not
/// know to arrive, and no more than a person notices.
pub const PARENT_GRACE: Duration = Duration::from_millis(150);

/// What happens to a look-up.
#[derive(Debug, Clone)]
pub enum LookupIn {
    /// Begin.
    Start,
    /// A node answered.
    Reply(NodeId, Reply),
    /// A node could not be reached, or answered nonsense. Who is late is noticed here.
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
    /// Whom to ask first, wherever they are: a mirror or a parent is rarely near the point.
    seeds: Vec<[u8; 32]>,
    /// Whose answer suffices after a grace.
    parents: BTreeSet<[u8; 32]>,
    grace: Grace,
    asks: usize,
    /// Whether the silent were asked a second time.
    again: bool,
    ends: Option<Duration>,
    over: bool,
}

/// What is left of the time that others have after a parent's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grace {
    /// No parent has answered yet.
    NotBegun,
    Until(Duration),
    Over,
}

#[derive(Debug)]
struct Peer {
    contact: Contact,
    state: State,
    /// Pages asked for.
    asks: usize,
    /// Pages that came.
    answers: usize,
    /// What the last page was asked after.
    after: Option<Cursor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Known,
    Asked {
        until: Duration,
    },
    Answered,
    /// Asked, and without an answer in its time.
    Silent,
    Failed,
}

impl Lookup {
    /// A look-up that begins with these nodes, most promising first.
    pub fn new(get: Get, seeds: impl IntoIterator<Item = Contact>) -> Self {
        let mut lookup = Self {
            get,
            peers: BTreeMap::new(),
            seeds: Vec::new(),
            parents: BTreeSet::new(),
            grace: Grace::NotBegun,
            asks: 0,
            again: false,
            ends: None,
            over: false,
        };
        for contact in seeds {
            let distance = lookup.distance(&contact.node);
            lookup.learn(contact);
            let first =
                lookup.seeds.len() < lookup.seeds_max() && !lookup.seeds.contains(&distance);
            if first && lookup.peers.contains_key(&distance) {
                lookup.seeds.push(distance);
            }
        }
        lookup
    }

    /// Nodes whose whole answer suffices after [`PARENT_GRACE`], if it is what the caller needs. They
    /// are to be among those that the look-up begins with; who they are is the user's or the
    /// manifest's word, for whoever is a parent can hold back what others would say.
    pub fn with_parents<'a>(mut self, parents: impl IntoIterator<Item = &'a NodeId>) -> Self {
        let parents = parents.into_iter().map(|parent| self.distance(parent));
        self.parents = parents.collect();
        self
    }

    /// How long a node may take.
    pub fn time_of(&self, node: &NodeId) -> Duration {
        self.time_at(&self.distance(node))
    }

    fn time_at(&self, distance: &[u8; 32]) -> Duration {
        match self.parents.contains(distance) {
            true => PARENT_TIMEOUT.max(self.ask_timeout()),
            false => self.ask_timeout(),
        }
    }

    fn ask_timeout(&self) -> Duration {
        match self.is_by_prefix() {
            true => PREFIX_TIMEOUT,
            false => ASK_TIMEOUT,
        }
    }

    /// Whether it asks for more than one point, which is read from few nodes.
    pub fn is_by_prefix(&self) -> bool {
        self.get.bits < 256
    }

    fn seeds_max(&self) -> usize {
        match self.is_by_prefix() {
            true => PREFIX_SEEDS_MAX,
            false => SEEDS_MAX,
        }
    }

    fn width(&self) -> usize {
        match self.is_by_prefix() {
            true => PREFIX_WIDTH,
            false => WIDTH,
        }
    }

    /// Whether a parent was asked, and neither answered nor failed yet, while none has answered.
    pub fn awaits_parent(&self) -> bool {
        let asked = |distance: &[u8; 32]| {
            let peer = self.peers.get(distance);
            peer.is_some_and(|peer| matches!(peer.state, State::Asked { .. }))
        };
        self.grace == Grace::NotBegun && self.parents.iter().any(asked)
    }

    /// Whether a parent has answered and the others have had their time since.
    pub fn parent_suffices(&self) -> bool {
        self.grace == Grace::Over
    }

    /// Whether nothing is left to ask or to wait for.
    pub fn is_done(&self) -> bool {
        let waiting = self
            .peers
            .values()
            .any(|peer| matches!(peer.state, State::Asked { .. }));
        self.over || (!waiting && self.next().is_none())
    }

    /// Which page of this node's answer is still due, counted from 0; `None` when it was not asked
    /// for more than it answered.
    pub fn page_due(&self, node: &NodeId) -> Option<usize> {
        let peer = self.peers.get(&self.distance(node))?;
        (peer.asks > peer.answers).then_some(peer.answers)
    }

    /// Nodes that answered, nearest to the point first.
    pub fn answered(&self) -> impl Iterator<Item = &Contact> {
        let answered = self
            .peers
            .values()
            .filter(|peer| peer.state == State::Answered);
        answered.map(|peer| &peer.contact)
    }

    /// What is known of a node, if anything is.
    pub fn contact(&self, node: &NodeId) -> Option<&Contact> {
        let peer = self.peers.get(&self.distance(node));
        peer.map(|peer| &peer.contact)
    }

    /// Whether an answer of a node is still waited for.
    pub fn awaits(&self, node: &NodeId) -> bool {
        let peer = self.peers.get(&self.distance(node));
        peer.is_some_and(|peer| matches!(peer.state, State::Asked { .. }))
    }

    /// Whether a node was asked.
    pub fn has_asked(&self, node: &NodeId) -> bool {
        let peer = self.peers.get(&self.distance(node));
        peer.is_some_and(|peer| peer.asks > 0)
    }

    /// How many nodes are known, whether they answer or not.
    pub fn known(&self) -> usize {
        self.peers.len()
    }

    /// What is asked of every node, from the beginning.
    pub fn question(&self) -> &Get {
        &self.get
    }

    fn distance(&self, node: &NodeId) -> [u8; 32] {
        node.point().distance(&self.get.point)
    }

    fn learn(&mut self, contact: Contact) {
        let distance = self.distance(&contact.node);
        if contact.addrs.is_empty() || self.peers.contains_key(&distance) {
            return;
        }
        if self.peers.len() >= PEERS_MAX && !self.forget_farther(&distance) {
            return;
        }
        let peer = Peer {
            contact,
            state: State::Known,
            asks: 0,
            answers: 0,
            after: None,
        };
        self.peers.insert(distance, peer);
    }

    /// Makes room for a nearer node: whoever names many far ones does not keep others out.
    fn forget_farther(&mut self, distance: &[u8; 32]) -> bool {
        let farthest = self
            .peers
            .iter()
            .rev()
            .find(|(other, peer)| peer.state == State::Known && !self.seeds.contains(*other));
        let farthest = farthest.map(|(other, _)| *other);
        match farthest.filter(|other| distance < other) {
            Some(other) => self.peers.remove(&other).is_some(),
            None => false,
        }
    }

    /// The nearest node that has not been asked, among the nearest that do not fail.
    fn next(&self) -> Option<[u8; 32]> {
        if self.asks >= ASKS_MAX {
            return None;
        }
        let usable = self
            .peers
            .iter()
            .filter(|(_, peer)| !matches!(peer.state, State::Silent | State::Failed));
        let mut nearest = usable.take(self.width());
        nearest.find_map(|(distance, peer)| (peer.state == State::Known).then_some(*distance))
    }

    fn ask_seeds(&mut self, now: Now, out: &mut Vec<LookupOut>) {
        for distance in self.seeds.clone() {
            self.ask(distance, None, now, out);
        }
    }

    fn ask_more(&mut self, now: Now, out: &mut Vec<LookupOut>) {
        let waiting = |peer: &&Peer| matches!(peer.state, State::Asked { .. });
        let mut free = PARALLEL.saturating_sub(self.peers.values().filter(waiting).count());
        while free > 0
            && let Some(distance) = self.next()
        {
            self.ask(distance, None, now, out);
            free -= 1;
        }
        if !self.again && self.is_done() {
            self.again = true;
            self.ask_again(now, out);
        }
    }

    /// What was lost is asked once more, when nobody else is left to ask or to wait for: of all at
    /// once, so that it costs the time of one; those first that the look-up began with. Parents had
    /// time enough.
    fn ask_again(&mut self, now: Now, out: &mut Vec<LookupOut>) {
        let silent = |distance: &&[u8; 32]| {
            let peer = self.peers.get(*distance);
            peer.is_some_and(|peer| peer.state == State::Silent)
                && !self.parents.contains(*distance)
        };
        let others = self.peers.keys().filter(|one| !self.seeds.contains(*one));
        let lost = self.seeds.iter().chain(others).filter(silent);
        let lost: Vec<[u8; 32]> = lost.take(ASKED_AGAIN_MAX).copied().collect();
        for distance in lost {
            self.send(distance, now, out);
        }
    }

    fn ask(
        &mut self,
        distance: [u8; 32],
        after: Option<Cursor>,
        now: Now,
        out: &mut Vec<LookupOut>,
    ) {
        if let Some(peer) = self.peers.get_mut(&distance)
            && self.asks < ASKS_MAX
        {
            peer.asks += 1;
            peer.after = after;
            self.send(distance, now, out);
        }
    }

    /// Sends the request for a node's page that is due, for the first time or again.
    fn send(&mut self, distance: [u8; 32], now: Now, out: &mut Vec<LookupOut>) {
        let time = self.time_at(&distance);
        if let Some(peer) = self.peers.get_mut(&distance)
            && self.asks < ASKS_MAX
        {
            self.asks += 1;
            peer.state = State::Asked {
                until: now.mono + time,
            };
            let request = Request::Get(Get {
                after: peer.after,
                ..self.get.clone()
            });
            out.push(LookupOut::Ask(peer.contact.clone(), request));
        }
    }

    fn on_reply(&mut self, node: &NodeId, reply: Reply, now: Now, out: &mut Vec<LookupOut>) {
        let distance = self.distance(node);
        let Some(peer) = self.peers.get_mut(&distance) else {
            return;
        };
        // A late answer is still an answer, one that nobody asked for is none.
        if peer.asks == peer.answers {
            return;
        }
        peer.answers += 1;
        let first = peer.answers == 1;
        let Answer::Statements { next, .. } = reply.answer else {
            peer.state = State::Failed;
            return;
        };
        peer.state = State::Answered;
        // A cursor that does not go on would be a circle.
        let next = next.filter(|next| peer.after.is_none_or(|after| *next > after));
        if next.is_some() && peer.asks < PAGES_MAX {
            self.ask(distance, next, now, out);
        } else if self.parents.contains(&distance) && self.grace == Grace::NotBegun {
            self.grace = Grace::Until(now.mono + PARENT_GRACE);
        }
        if first {
            for contact in reply.closer.into_iter().take(CLOSER_MAX) {
                self.learn(contact);
            }
        }
    }

    fn fail(&mut self, node: &NodeId) {
        let distance = self.distance(node);
        if let Some(peer) = self.peers.get_mut(&distance)
            && peer.state != State::Answered
        {
            peer.state = State::Failed;
        }
    }

    fn give_up_late(&mut self, now: Now) {
        for peer in self.peers.values_mut() {
            if matches!(peer.state, State::Asked { until } if until <= now.mono) {
                peer.state = State::Silent;
            }
        }
    }
}

impl Machine for Lookup {
    type In = LookupIn;
    type Out = LookupOut;

    fn handle(&mut self, input: LookupIn, now: Now, out: &mut Vec<LookupOut>) {
        if self.over {
            return;
        }
        match input {
            LookupIn::Start => {
                self.ends = Some(now.mono + LOOKUP_TIMEOUT);
                self.ask_seeds(now, out);
            }
            LookupIn::Reply(node, reply) => self.on_reply(&node, reply, now, out),
            LookupIn::Failed(node) => self.fail(&node),
            LookupIn::Tick => self.give_up_late(now),
        }
        if matches!(self.grace, Grace::Until(until) if until <= now.mono) {
            self.grace = Grace::Over;
        }
        self.over = self.ends.is_some_and(|ends| ends <= now.mono);
        if !self.over {
            self.ask_more(now, out);
        }
    }

    fn deadline(&self) -> Option<Duration> {
        if self.over {
            return None;
        }
        let deadlines = self.peers.values().filter_map(|peer| match peer.state {
            State::Asked { until } => Some(until),
            State::Known | State::Answered | State::Silent | State::Failed => None,
        });
        let grace = match self.grace {
            Grace::Until(until) if !self.is_done() => Some(until),
            Grace::Until(_) | Grace::NotBegun | Grace::Over => None,
        };
        let ends = self.ends.filter(|_| !self.is_done());
        deadlines.chain(grace).chain(ends).min()
    }
}

#[cfg(test)]
mod tests;
