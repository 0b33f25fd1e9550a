//! A node: what it is, where it is, what it holds, and how it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use qk_protocol::hash::{Point, PublicKey};
use qk_protocol::index::{Hints, Shelf};
use qk_protocol::message::{Contact, NodeId};
use qk_protocol::statement::Statement;

use crate::engine::Micros;
use crate::routing::Presence;

/// What a node is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Server,
    Mirror,
    /// The node of a principal.
    Operator,
    /// A laboratory's cache.
    Cache,
    Sybil,
    Laptop,
    Ci,
    /// A laboratory's machine.
    Lab,
}

impl Kind {
    /// Whether it is reachable, and so in routing tables and a holder.
    pub(crate) fn is_server(self) -> bool {
        matches!(
            self,
            Self::Server | Self::Mirror | Self::Operator | Self::Cache | Self::Sybil
        )
    }

    pub(crate) fn is_local(self) -> bool {
        matches!(self, Self::Cache | Self::Lab)
    }
}

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    Honest,
    /// Shows nothing of the point with this number, or a part, and names only its like.
    Sybil(u32),
    Forging,
    Stalling,
    Lacking,
    Silent,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) key: PublicKey,
    pub(crate) point: Point,
    pub(crate) kind: Kind,
    pub(crate) manners: Manners,
    pub(crate) region: u8,
    /// Knows only Sybils and mirrors.
    pub(crate) eclipsed: bool,
    pub(crate) shares: bool,
    /// Seconds by which its clock is ahead.
    pub(crate) skew: i32,
    /// When its session began; `Micros::MAX` while it is away.
    pub(crate) up_from: Micros,
    /// The session before.
    pub(crate) was_from: Micros,
    pub(crate) was_to: Micros,
    /// When it last looked at nodes that came.
    pub(crate) repaired: Micros,
    /// When its lines are free again.
    pub(crate) up_free: Micros,
    pub(crate) down_free: Micros,
    /// Statements with the first bytes of their point, sorted by these.
    pub(crate) held: Vec<(u64, Arc<Statement>)>,
    pub(crate) hints: Hints,
    /// Artifacts that it has, sorted; twice the number, one more for the wrong one.
    pub(crate) blobs: Vec<u32>,
    /// Bytes of blocks that it gave.
    pub(crate) given: u64,
}

impl Node {
    pub(crate) fn new(key: PublicKey, kind: Kind, region: u8) -> Self {
        Self {
            point: NodeId::of_key(&key).point(),
            key,
            kind,
            manners: Manners::Honest,
            region,
            eclipsed: false,
            shares: true,
            skew: 0,
            up_from: 0,
            was_from: 0,
            was_to: 0,
            repaired: 0,
            up_free: 0,
            down_free: 0,
            held: Vec::new(),
            hints: Hints::default(),
            blobs: Vec::new(),
            given: 0,
        }
    }

    /// Whether it gives forged blocks, none, or says to have what it lacks.
    pub(crate) fn is_bad_provider(&self) -> bool {
        matches!(
            self.manners,
            Manners::Forging | Manners::Stalling | Manners::Lacking
        )
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up_from != Micros::MAX
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.manners == Manners::Honest
    }

    pub(crate) fn was_there(&self, at: Micros) -> bool {
        at >= self.up_from || (self.was_from <= at && at < self.was_to)
    }

    /// Its identity and address; the address says which node it is.
    pub(crate) fn contact(&self, number: u32) -> Contact {
        Contact {
            node: NodeId::of_key(&self.key),
            addrs: vec![address(number).into()],
        }
    }

    pub(crate) fn has(&self, blob: u32) -> bool {
        self.blobs.binary_search(&blob).is_ok()
    }

    pub(crate) fn take_blob(&mut self, blob: u32) {
        if let Err(at) = self.blobs.binary_search(&blob) {
            self.blobs.insert(at, blob);
        }
    }

    /// Holds a statement.
    pub(crate) fn keep(&mut self, point: Point, statement: Arc<Statement>) {
        let first = first_bytes(&point);
        let at = self.held.partition_point(|(other, _)| *other <= first);
        let mut here = self.held[..at]
            .iter()
            .rev()
            .take_while(|(other, _)| *other == first);
        if here.all(|(_, other)| other.id() != statement.id()) {
            self.held.insert(at, (first, statement));
        }
    }

    pub(crate) fn holds(&self, point: &Point, statement: &Statement) -> bool {
        let mut here = at_point(&self.held, point).iter();
        here.any(|(_, one)| one.id() == statement.id())
    }
}

impl Presence for [Node] {
    fn was_there(&self, node: u32, at: u64) -> bool {
        self[node as usize].was_there(at)
    }
}

impl Presence for Vec<Node> {
    fn was_there(&self, node: u32, at: u64) -> bool {
        self.as_slice().was_there(node, at)
    }
}

/// An address as long as that of an IPv4 host and port.
fn address(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_le_bytes();
    vec![4, a, b, c, d, 6, 1, 187]
}

/// The node that an address names.
pub(crate) fn number_of(contact: &Contact) -> Option<u32> {
    let address = contact.addrs.first()?;
    let number = address.get(1..5)?;
    Some(u32::from_le_bytes(number.try_into().ok()?))
}

/// By what statements are sorted: no two points of a run share it.
pub(crate) fn first_bytes(point: &Point) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&point.0[..8]);
    u64::from_be_bytes(first)
}

fn at_point<'a>(held: &'a [(u64, Arc<Statement>)], point: &Point) -> &'a [(u64, Arc<Statement>)] {
    let first = first_bytes(point);
    let from = held.partition_point(|(other, _)| *other < first);
    let to = from + held[from..].partition_point(|(other, _)| *other == first);
    &held[from..to]
}

/// What a node holds, as the index asks for it.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) held: &'a [(u64, Arc<Statement>)],
    /// All points of the run by their first bytes.
    pub(crate) points: &'a BTreeMap<u64, (Point, u32)>,
}

impl Shelf for Held<'_> {
    fn at(&self, point: Point) -> Vec<Arc<Statement>> {
        at_point(self.held, &point)
            .iter()
            .map(|(_, one)| one.clone())
            .collect()
    }

    fn near(&self, point: Point, limit: usize) -> Vec<Point> {
        let mut firsts: Vec<u64> = self.held.iter().map(|(first, _)| *first).collect();
        firsts.dedup();
        let mut points: Vec<Point> = firsts
            .iter()
            .filter_map(|first| self.points.get(first).map(|(point, _)| *point))
            .collect();
        points.sort_unstable_by_key(|other| other.distance(&point));
        points.truncate(limit);
        points
    }
}
