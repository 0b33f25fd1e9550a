//! The index: what a node holds for others, what it lets in, and what it answers.
//!
//! Merging is set union. Statements of the manifest's principals are never evicted; strangers have
//! hard caps per point, so that nobody fills a point by making up keys. Hints are kept in memory for
//! at most a day and only about the sender itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::hash::{NetworkKey, Point, PublicKey, Root, StatementId};
use crate::manifest::{CLOCK_SKEW_SECONDS_MAX, Network};
use crate::message::{
    Answer, Contact, Cursor, Get, HINTS_MAX, NodeId, POINTS_MAX, Provider, Reply, Request,
    STATEMENT_BYTES_TOTAL_MAX, STATEMENTS_MAX,
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
        if statement.network() != self.network.id() {
            return Err(Refusal::OtherNetwork);
        }
        if !self
            .network
            .manifest()
            .registries
            .contains(&statement.key().registry)
        {
            return Err(Refusal::Registry);
        }
        if time_of(statement) > now.plus(CLOCK_SKEW_SECONDS_MAX) {
            return Err(Refusal::InFuture);
        }
        let principal =
            |observer: PublicKey| self.network.principal(observer).map(|(one, _)| one.id);
        match principal(statement.observer()) {
            Some(id) => {
                let own = held
                    .iter()
                    .filter(|other| principal(other.observer()) == Some(id));
                refuse_at(own.count(), PRINCIPAL_STATEMENTS_MAX, Refusal::Principal)
            }
            None => {
                let strangers = held
                    .iter()
                    .filter(|other| principal(other.observer()).is_none());
                let same = strangers
                    .clone()
                    .filter(|other| other.observer() == statement.observer());
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
        }
    }
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
        Request::Have(have) => {
            let taken = u32::try_from(have.roots.len()).unwrap_or(u32::MAX);
            let provider = |root| Provider {
                root,
                contact: from.clone(),
            };
            let writes = have
                .roots
                .into_iter()
                .map(|(point, root)| Write::Hint(point, provider(root)));
            (Answer::Taken { taken, refused: 0 }, writes.collect())
        }
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
    };
    (Reply { closer, answer }, writes)
}

/// The point that a request is about, if it is about one: where to look for closer nodes.
pub fn point_of(request: &Request, rules: &Rules<'_>) -> Option<Point> {
    match request {
        Request::Put(statements) => statements.first().map(|statement| rules.point(statement)),
        Request::Have(have) => have.roots.first().map(|(point, _)| *point),
        Request::Get(get) => Some(get.point),
        Request::Near { point, .. } => Some(*point),
        Request::Network { .. } => None,
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
    for point in &points {
        if get.after.is_some_and(|after| *point < after.point) {
            continue;
        }
        let mut statements = shelf.at(*point);
        statements.sort_unstable_by_key(|statement| statement.id());
        for statement in statements {
            let cursor = Cursor {
                point: *point,
                statement: statement.id(),
            };
            let wanted = get
                .observer
                .is_none_or(|observer| observer == statement.observer());
            if wanted
                && get.after.is_none_or(|after| cursor > after)
                && !page.add(cursor, statement)
            {
                return page.answer(hints, &points, now);
            }
        }
    }
    page.last = None;
    page.answer(hints, &points, now)
}

#[derive(Default)]
struct Page {
    statements: Vec<Arc<Statement>>,
    bytes: usize,
    last: Option<Cursor>,
}

impl Page {
    /// False when the page is full and the statement was not added.
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

    fn answer(self, hints: &Hints, points: &[Point], now: UnixTime) -> Answer {
        let providers = points.iter().flat_map(|point| hints.at(*point, now));
        Answer::Statements {
            statements: self.statements,
            providers: providers.take(HINTS_MAX).collect(),
            next: self.last,
        }
    }
}

/// Hints: who says that it has which root. Unsigned, short-lived, bounded; blocks verify
/// themselves, so a false one costs its reader one dial.
#[derive(Debug, Default)]
pub struct Hints {
    by_point: BTreeMap<Point, BTreeMap<(Root, NodeId), Hint>>,
    by_node: BTreeMap<NodeId, usize>,
    count: usize,
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
            if self.count >= HINTS_TOTAL_MAX {
                self.forget(now);
            }
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

    /// Drops hints whose time is over.
    pub fn forget(&mut self, now: UnixTime) {
        let Self {
            by_point,
            by_node,
            count,
        } = self;
        by_point.retain(|_, here| {
            here.retain(|(_, node), hint| {
                let keep = hint.until > now;
                if !keep {
                    *count -= 1;
                    release(by_node, node);
                }
                keep
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
