//! The index: what a node holds for others, what it lets in, and what it answers.
//!
//! Merging is set union. Statements of the manifest's principals are never evicted; strangers have
//! hard caps per point, so that nobody fills a point by making up keys. Hints are kept in memory for
//! at most a day and only about the sender itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::hash::{Blake3, NetworkKey, Point, PrincipalId, PublicKey, Root, StatementId};
use crate::log::LogPiece;
use crate::manifest::{CLOCK_SKEW_SECONDS_MAX, KeyState, Network};
use crate::message::{
    Answer, CLOSER_MAX, Contact, Cursor, Get, HINTS_MAX, Have, NodeId, POINTS_MAX, Provider, Reply,
    Request, STATEMENT_BYTES_TOTAL_MAX, STATEMENTS_MAX,
};
use crate::statement::{Body, Statement};
use crate::time::UnixTime;

/// Statements by strangers that one point holds.
pub const STRANGER_STATEMENTS_MAX: usize = 64;
/// Statements by one stranger that one point holds.
pub const ONE_STRANGER_STATEMENTS_MAX: usize = 4;
/// Statements by one principal that one point takes; beyond it new ones are refused.
pub const PRINCIPAL_STATEMENTS_MAX: usize = 1024;
/// Points that a question by prefix looks through.
pub const PREFIX_POINTS_MAX: usize = 1024;
/// How long a hint is believed.
pub const HINT_SECONDS_MAX: u64 = 24 * 3600;
/// Hints in all; one takes some 200 bytes.
pub const HINTS_TOTAL_MAX: usize = 65_536;
/// Hints by one node.
pub const NODE_HINTS_MAX: usize = 4_096;
/// Hints at one point.
pub const POINT_HINTS_MAX: usize = 128;

/// What a node holds, whatever holds it: a database or a map.
pub trait Shelf {
    /// All statements at a point, each once.
    fn at(&self, point: Point) -> Vec<Arc<Statement>>;
    /// At most `limit` points that statements are held of, nearest first.
    fn near(&self, point: Point, limit: usize) -> Vec<Point>;
    /// The piece of a log that begins at `offset`, if the log is here and given away.
    fn log(&self, _digest: &Blake3, _offset: u64) -> Option<LogPiece> {
        None
    }
}

/// What decides who is let in.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The network whose index this is.
    pub network: &'a Network,
    /// What its locations are keyed with.
    pub key: &'a NetworkKey,
}

/// Why a statement is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of another network.
    #[error("it speaks in another network")]
    OtherNetwork,
    /// Of a registry that the network does not list.
    #[error("the network does not serve its registry")]
    Registry,
    /// Ends in the future.
    #[error("it ends in the future")]
    InFuture,
    /// By a key that is known to be compromised.
    #[error("its key is compromised")]
    Compromised,
    /// No more statements by strangers fit.
    #[error("no more statements by strangers are held here")]
    Strangers,
    /// No more statements by this principal fit.
    #[error("no more statements by this principal are held here")]
    Principal,
}

/// What is to be stored after a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Hold this statement, at this point.
    Keep(Point, Arc<Statement>),
    /// Remember that this node says that it has a root.
    Hint(Point, Provider),
}

impl Rules<'_> {
    /// Where a statement belongs.
    pub fn point(&self, statement: &Statement) -> Point {
        statement.key().release().location(self.key).point()
    }

    /// Whether a statement is let in beside those held at its point. A known one is not a question
    /// for here.
    ///
    /// # Errors
    /// Says why not.
    pub fn admit(
        &self,
        held: &[Arc<Statement>],
        statement: &Statement,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        self.admit_anywhere(statement, now)?;
        let observer = statement.observer();
        if let Some(id) = principal_of(self.network, observer) {
            let own = held
                .iter()
                .filter(|other| principal_of(self.network, other.observer()) == Some(id));
            return refuse_at(own.count(), PRINCIPAL_STATEMENTS_MAX, Refusal::Principal);
        }
        let strangers = held
            .iter()
            .filter(|other| principal_of(self.network, other.observer()).is_none());
        let same = strangers
            .clone()
            .filter(|other| other.observer() == observer);
        refuse_at(
            same.count(),
            ONE_STRANGER_STATEMENTS_MAX,
            Refusal::Strangers,
        )?;
        refuse_at(
            strangers.count(),
            STRANGER_STATEMENTS_MAX,
            Refusal::Strangers,
        )
    }

    /// What a statement says of itself, before anything is read for it.
    fn admit_anywhere(&self, statement: &Statement, now: UnixTime) -> Result<(), Refusal> {
        if statement.network() != self.network.id() {
            return Err(Refusal::OtherNetwork);
        }
        let registries = &self.network.manifest().registries;
        if !registries.contains(&statement.key().registry) {
            return Err(Refusal::Registry);
        }
        if time_of(statement) > now.plus(CLOCK_SKEW_SECONDS_MAX) {
            return Err(Refusal::InFuture);
        }
        match self.network.principal(statement.observer()) {
            Some((_, key)) if key.state == KeyState::Compromised => Err(Refusal::Compromised),
            Some(_) | None => Ok(()),
        }
    }
}

/// The principal whose room a statement by `observer` takes. Only an active key has a principal's
/// room: whoever got hold of a retired one must not fill it up, and what it says from now on counts
/// as little as a stranger's.
pub(crate) fn principal_of(network: &Network, observer: PublicKey) -> Option<PrincipalId> {
    let (principal, key) = network.principal(observer)?;
    (key.state == KeyState::Active).then_some(principal.id)
}

/// Answers a request of the node `from`, and says what to store. `from.addrs` are addresses at which
/// the node was seen or dialled back, `closer` nodes near the point asked about.
pub fn answer(
    shelf: &impl Shelf,
    hints: &Hints,
    rules: &Rules<'_>,
    from: &Contact,
    request: Request,
    closer: Vec<Contact>,
    now: UnixTime,
) -> (Reply, Vec<Write>) {
    let (answer, writes) = match request {
        Request::Put(statements) => put(shelf, rules, statements, now),
        Request::Have(have) => have_roots(hints, from, have, now),
        Request::Get(get) => (find(shelf, hints, &get, now), Vec::new()),
        Request::Near { point, limit } => {
            let limit = (limit as usize).min(POINTS_MAX);
            (Answer::Points(shelf.near(point, limit)), Vec::new())
        }
        Request::Network { version, issued } => {
            let have = (
                rules.network.manifest().version,
                rules.network.timestamp().issued,
            );
            let newer = (have > (version, issued)).then(|| rules.network.file().clone());
            (Answer::Network(newer), Vec::new())
        }
        Request::Log {
            point,
            digest,
            offset,
        } => (log(shelf, point, &digest, offset), Vec::new()),
    };
    let closer = closer.into_iter().filter_map(Contact::bounded);
    let closer = closer.take(CLOSER_MAX).collect();
    (Reply { closer, answer }, writes)
}

/// What of a `Have` there is room for: the rest is refused, and said to be.
fn have_roots(hints: &Hints, from: &Contact, have: Have, now: UnixTime) -> (Answer, Vec<Write>) {
    let roots: BTreeSet<_> = have.roots.into_iter().collect();
    let asked = roots.len();
    let Some(contact) = from.clone().bounded() else {
        return (taken_of(0, asked), Vec::new());
    };
    let mut room = hints.room(&contact.node, now);
    let mut here: BTreeMap<Point, usize> = BTreeMap::new();
    let mut writes = Vec::new();
    for (point, root) in roots {
        let left = here
            .entry(point)
            .or_insert_with(|| POINT_HINTS_MAX.saturating_sub(hints.at(point, now).count()));
        if !hints.knows(point, root, &contact.node, now) {
            if room == 0 || *left == 0 {
                continue;
            }
            (room, *left) = (room - 1, *left - 1);
        }
        let contact = contact.clone();
        writes.push(Write::Hint(point, Provider { root, contact }));
    }
    (taken_of(writes.len(), asked), writes)
}

fn taken_of(taken: usize, asked: usize) -> Answer {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Answer::Taken {
        taken: number(taken),
        refused: number(asked.saturating_sub(taken)),
    }
}

/// The point that a request is about, if it is about one: where to look for closer nodes.
pub fn point_of(request: &Request, rules: &Rules<'_>) -> Option<Point> {
    match request {
        Request::Put(statements) => statements.first().map(|statement| rules.point(statement)),
        Request::Have(have) => have.roots.first().map(|(point, _)| *point),
        Request::Get(get) => Some(get.point),
        Request::Near { point, .. } => Some(*point),
        Request::Network { .. } | Request::Log { .. } => None,
    }
}

fn put(
    shelf: &impl Shelf,
    rules: &Rules<'_>,
    statements: Vec<Arc<Statement>>,
    now: UnixTime,
) -> (Answer, Vec<Write>) {
    let mut held: BTreeMap<Point, Vec<Arc<Statement>>> = BTreeMap::new();
    let mut writes = Vec::new();
    let (mut taken, mut refused) = (0, 0);
    for statement in statements {
        if rules.admit_anywhere(&statement, now).is_err() {
            refused += 1;
            continue;
        }
        let point = rules.point(&statement);
        let here = held.entry(point).or_insert_with(|| shelf.at(point));
        if here.iter().any(|other| other.id() == statement.id()) {
            taken += 1;
        } else if rules.admit(here, &statement, now).is_ok() {
            taken += 1;
            here.push(statement.clone());
            writes.push(Write::Keep(point, statement));
        } else {
            refused += 1;
        }
    }
    (Answer::Taken { taken, refused }, writes)
}

fn find(shelf: &impl Shelf, hints: &Hints, get: &Get, now: UnixTime) -> Answer {
    let points = if get.bits >= 256 {
        vec![get.point]
    } else {
        let mut near = shelf.near(get.point, PREFIX_POINTS_MAX);
        near.retain(|point| point.shares_prefix(&get.point, get.bits));
        near.sort_unstable();
        near
    };
    let mut page = Page::default();
    for point in points {
        if get.after.is_some_and(|after| point < after.point) {
            continue;
        }
        // The providers of a point are given with the first of its statements, and not again.
        let begins = get.after.is_none_or(|after| after.point < point);
        if begins && !page.add_providers(hints.at(point, now)) {
            return page.answer(true);
        }
        let mut statements = shelf.at(point);
        statements.retain(|one| {
            get.observer
                .is_none_or(|observer| observer == one.observer())
        });
        statements.sort_unstable_by_key(|statement| statement.id());
        for statement in statements {
            let cursor = Cursor {
                point,
                statement: statement.id(),
            };
            if get.after.is_none_or(|after| cursor > after) && !page.add(cursor, statement) {
                return page.answer(true);
            }
        }
        page.last = Some(Cursor {
            point,
            statement: StatementId([0xff; 32]),
        });
    }
    page.answer(false)
}

/// Logs are given only to who knows an observation of this network that names them: nobody finds out by
/// guessing what was built here for others.
fn log(shelf: &impl Shelf, point: Point, digest: &Blake3, offset: u64) -> Answer {
    let is_named = shelf.at(point).iter().any(|statement| {
        let observation = statement.observation();
        observation.is_some_and(|observation| observation.log == *digest)
    });
    let piece = match is_named {
        true => shelf.log(digest, offset),
        false => None,
    };
    piece.map_or_else(|| Answer::Refused("no such log".to_owned()), Answer::Log)
}

#[derive(Default)]
struct Page {
    statements: Vec<Arc<Statement>>,
    bytes: usize,
    providers: Vec<Provider>,
    /// How far it goes.
    last: Option<Cursor>,
}

impl Page {
    /// False when the page is full and the statement was not added. The first one always fits.
    fn add(&mut self, cursor: Cursor, statement: Arc<Statement>) -> bool {
        let bytes = self.bytes + statement.envelope().len();
        if self.statements.len() == STATEMENTS_MAX || bytes > STATEMENT_BYTES_TOTAL_MAX {
            return false;
        }
        self.bytes = bytes;
        self.last = Some(cursor);
        self.statements.push(statement);
        true
    }

    /// False when those of this point do not fit. Those of the first one always do.
    fn add_providers(&mut self, here: impl Iterator<Item = Provider>) -> bool {
        let before = self.providers.len();
        self.providers.extend(here);
        let fits = self.providers.len() <= HINTS_MAX;
        if !fits {
            self.providers.truncate(before);
        }
        fits
    }

    fn answer(self, more: bool) -> Answer {
        Answer::Statements {
            statements: self.statements,
            providers: self.providers,
            next: self.last.filter(|_| more),
        }
    }
}

/// A point's hints fit one page, so that every page goes on.
const _: () = assert!(POINT_HINTS_MAX <= HINTS_MAX);

/// Hints: who says that it has which root. Unsigned, short-lived, bounded; blocks verify
/// themselves, so a false one costs its reader one dial.
#[derive(Debug, Default)]
pub struct Hints {
    by_point: BTreeMap<Point, BTreeMap<(Root, NodeId), Hint>>,
    by_node: BTreeMap<NodeId, usize>,
    count: usize,
    /// No hint ends before.
    ends_first: UnixTime,
}

#[derive(Debug)]
struct Hint {
    contact: Contact,
    until: UnixTime,
}

impl Hints {
    /// Takes a hint, or renews it. False when there is no room for it.
    pub fn add(&mut self, point: Point, provider: Provider, now: UnixTime) -> bool {
        let node = provider.contact.node.clone();
        let key = (provider.root, node.clone());
        let known = self
            .by_point
            .get(&point)
            .is_some_and(|here| here.contains_key(&key));
        if !known {
            // Hints that have ended must not take anybody's room.
            self.forget(now);
            let by_node = self.by_node.get(&node).copied().unwrap_or_default();
            let here = self.by_point.get(&point).map_or(0, BTreeMap::len);
            if self.count >= HINTS_TOTAL_MAX || by_node >= NODE_HINTS_MAX || here >= POINT_HINTS_MAX
            {
                return false;
            }
            self.count += 1;
            *self.by_node.entry(node).or_default() += 1;
        }
        let hint = Hint {
            contact: provider.contact,
            until: now.plus(HINT_SECONDS_MAX),
        };
        self.ends_first = if self.count == 1 {
            hint.until
        } else {
            self.ends_first.min(hint.until)
        };
        self.by_point.entry(point).or_default().insert(key, hint);
        true
    }

    /// The hints at a point that are still believed.
    pub fn at(&self, point: Point, now: UnixTime) -> impl Iterator<Item = Provider> {
        let here = self.by_point.get(&point).into_iter().flatten();
        here.filter(move |(_, hint)| hint.until > now)
            .map(|((root, _), hint)| Provider {
                root: *root,
                contact: hint.contact.clone(),
            })
    }

    /// How many more hints of `node` there is room for, wherever they belong.
    fn room(&self, node: &NodeId, now: UnixTime) -> usize {
        if self.ends_first <= now {
            // Some have ended; how many, `add` will see.
            return NODE_HINTS_MAX;
        }
        let by_node = self.by_node.get(node).copied().unwrap_or_default();
        let total = HINTS_TOTAL_MAX.saturating_sub(self.count);
        NODE_HINTS_MAX.saturating_sub(by_node).min(total)
    }

    fn knows(&self, point: Point, root: Root, node: &NodeId, now: UnixTime) -> bool {
        let here = self.by_point.get(&point);
        let hint = here.and_then(|here| here.get(&(root, node.clone())));
        hint.is_some_and(|hint| hint.until > now)
    }

    /// Drops hints whose time is over. All are looked at only when one is over, which is at most
    /// once for every second in which one was taken.
    pub fn forget(&mut self, now: UnixTime) {
        if now < self.ends_first {
            return;
        }
        let Self {
            by_point,
            by_node,
            count,
            ends_first,
        } = self;
        *ends_first = UnixTime(u64::MAX);
        by_point.retain(|_, here| {
            here.retain(|(_, node), hint| {
                if hint.until > now {
                    *ends_first = hint.until.min(*ends_first);
                    return true;
                }
                *count -= 1;
                release(by_node, node);
                false
            });
            !here.is_empty()
        });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

fn release(by_node: &mut BTreeMap<NodeId, usize>, node: &NodeId) {
    if let Some(left) = by_node.get_mut(node) {
        *left -= 1;
        if *left == 0 {
            by_node.remove(node);
        }
    }
}

fn refuse_at(count: usize, max: usize, refusal: Refusal) -> Result<(), Refusal> {
    if count < max { Ok(()) } else { Err(refusal) }
}

fn time_of(statement: &Statement) -> UnixTime {
    match statement.body() {
        Body::Observation(observation) => observation.finished,
        Body::Failure(failure) => failure.finished,
        Body::Retraction(retraction) => retraction.at,
    }
}

/// A shelf in memory, for tests and the simulator.
#[derive(Debug, Default)]
pub struct MemoryShelf(BTreeMap<Point, BTreeMap<StatementId, Arc<Statement>>>);

impl MemoryShelf {
    /// Holds a statement; the first one of an id stays.
    pub fn keep(&mut self, point: Point, statement: Arc<Statement>) {
        self.0
            .entry(point)
            .or_default()
            .entry(statement.id())
            .or_insert(statement);
    }
}

impl Shelf for MemoryShelf {
    fn at(&self, point: Point) -> Vec<Arc<Statement>> {
        self.0
            .get(&point)
            .into_iter()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect()
    }

    fn near(&self, point: Point, limit: usize) -> Vec<Point> {
        let mut points: Vec<Point> = self.0.keys().copied().collect();
        points.sort_unstable_by_key(|other| other.distance(&point));
        points.truncate(limit);
        points
    }
}

#[cfg(test)]
mod tests;
