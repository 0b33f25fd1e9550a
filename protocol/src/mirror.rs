//! The walk of a mirror through the whole index of another node: one request at a time.
//!
//! The key space is cut into slices until [`Request::Near`] lists one whole. Got are the points that
//! are new, and those whose turn it is: after [`TURNS`] walks everything that is known was looked at
//! once more. A slice with many of them is got whole. So a walk costs 32 bytes a point, and what
//! there is to learn.

use std::sync::Arc;

use crate::hash::Point;
use crate::message::{Answer, Get, POINTS_MAX, Request};
use crate::statement::Statement;

/// Walks after which each known point had its turn to be looked at again.
pub const TURNS: u8 = 64;
/// Requests of one walk, to whoever answers whatever.
pub const WALK_ASKS_MAX: usize = 20_000;
/// Points of one slice that are got one by one; where there are more, the slice is got whole.
const SINGLES_MAX: usize = 32;
/// Bits by which a slice is told apart at most: points are hashes, so that no honest index needs as
/// many.
const BITS_MAX: u16 = 48;

/// A walk through one node's index.
#[derive(Debug)]
pub struct Walk {
    /// What is still to be asked; the last is next.
    todo: Vec<Step>,
    asked: Option<Step>,
    asks: usize,
    turn: u8,
}

#[derive(Debug)]
enum Step {
    /// Which points share these bits?
    List(Point, u16),
    Get(Get),
}

impl Walk {
    /// A walk in which known points are looked at again whose turn it is. Turns count up from walk to
    /// walk.
    pub fn new(turn: u64) -> Self {
        Self {
            todo: vec![Step::List(Point([0; 32]), 0)],
            asked: None,
            asks: 0,
            turn: (turn % u64::from(TURNS)) as u8,
        }
    }

    /// What to ask next; `None` when the walk is over. What was asked before and not
    /// [`answered`](Self::answered) is left out until the next walk.
    pub fn step(&mut self) -> Option<Request> {
        if self.asks >= WALK_ASKS_MAX {
            return None;
        }
        let step = self.todo.pop()?;
        self.asks += 1;
        let request = match &step {
            Step::List(point, _) => Request::Near {
                point: *point,
                limit: POINTS_MAX as u32,
            },
            Step::Get(get) => Request::Get(get.clone()),
        };
        self.asked = Some(step);
        Some(request)
    }

    /// Takes the answer to the last request. `is_known` says whether statements at a point are here.
    /// Returns statements to keep, if the rules let them in.
    pub fn answered(
        &mut self,
        answer: Answer,
        is_known: impl Fn(&Point) -> bool,
    ) -> Vec<Arc<Statement>> {
        match (self.asked.take(), answer) {
            (Some(Step::List(point, bits)), Answer::Points(points)) => {
                self.on_points(point, bits, points, is_known);
                Vec::new()
            }
            (
                Some(Step::Get(get)),
                Answer::Statements {
                    statements, next, ..
                },
            ) => {
                // A cursor that does not go on would be a circle.
                let on = next.filter(|next| get.after.is_none_or(|after| *next > after));
                if on.is_some() {
                    self.todo.push(Step::Get(Get { after: on, ..get }));
                }
                statements
            }
            // It refused, or answered something else.
            _ => Vec::new(),
        }
    }

    fn on_points(
        &mut self,
        point: Point,
        bits: u16,
        points: Vec<Point>,
        is_known: impl Fn(&Point) -> bool,
    ) {
        let listed = points.len();
        let here: Vec<Point> = points
            .into_iter()
            .filter(|one| one.shares_prefix(&point, bits))
            .collect();
        // The nearest come first: where there is one from elsewhere, none of the slice is missing.
        if listed >= POINTS_MAX && here.len() == listed && bits < BITS_MAX {
            let halves = [point, with_bit(point, bits)];
            let lists = halves.into_iter().rev();
            return self
                .todo
                .extend(lists.map(|half| Step::List(half, bits + 1)));
        }
        let due: Vec<Point> = here
            .into_iter()
            .filter(|one| one.0[31] % TURNS == self.turn || !is_known(one))
            .collect();
        let get = |point, bits| {
            Step::Get(Get {
                point,
                bits,
                observer: None,
                after: None,
            })
        };
        if due.len() > SINGLES_MAX {
            self.todo.push(get(point, bits));
        } else {
            self.todo.extend(due.into_iter().map(|one| get(one, 256)));
        }
    }
}

/// The point with one more of its bits set, counted from the first.
fn with_bit(mut point: Point, bit: u16) -> Point {
    if let Some(byte) = point.0.get_mut(usize::from(bit / 8)) {
        *byte |= 0x80 >> (bit % 8);
    }
    point
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::hash::{Blake3, StatementId};
    use crate::index::{Hints, MemoryShelf, Rules, answer};
    use crate::message::{Contact, Cursor, NodeId};
    use crate::testing::{NOW, scenario};

    /// As many points as asked for, with some of two real statements at each. Where they lie is made
    /// up, which a shelf does not mind.
    fn index(points: usize) -> (MemoryShelf, BTreeSet<Point>) {
        let said = scenario().says("ann", "right").says("bob", "right");
        let mut shelf = MemoryShelf::default();
        let mut all = BTreeSet::new();
        for number in 0..points {
            let point = Point(*Blake3::of(&number.to_le_bytes()).as_bytes());
            all.insert(point);
            for held in said.held.iter().take(1 + number % 2) {
                shelf.keep(point, held.statement.clone());
            }
        }
        (shelf, all)
    }

    struct Walked {
        lists: usize,
        gets: usize,
        statements: usize,
    }

    fn walk(shelf: &MemoryShelf, turn: u64, known: &BTreeSet<Point>) -> Walked {
        let scenario = scenario();
        let key = scenario.network.key(None);
        let rules = Rules {
            network: &scenario.network,
            key: &key,
        };
        let from = Contact {
            node: NodeId(vec![1]),
            addrs: Vec::new(),
        };
        let mut walked = Walked {
            lists: 0,
            gets: 0,
            statements: 0,
        };
        let mut walk = Walk::new(turn);
        while let Some(request) = walk.step() {
            match &request {
                Request::Near { .. } => walked.lists += 1,
                _ => walked.gets += 1,
            }
            let hints = Hints::default();
            let (reply, _) = answer(shelf, &hints, &rules, &from, request, Vec::new(), NOW);
            walked.statements += walk
                .answered(reply.answer, |point| known.contains(point))
                .len();
        }
        walked
    }

    #[test]
    fn everything_is_got_however_much_there_is() {
        for points in [0, 1, 40, 1023, 1024, 2500] {
            let (shelf, all) = index(points);
            let walked = walk(&shelf, 0, &BTreeSet::new());
            assert_eq!(walked.statements, points + points / 2, "{points} points");
            assert_eq!(all.len(), points);
        }
    }

    #[test]
    fn what_is_known_costs_little_and_has_its_turn() {
        let (shelf, mut all) = index(1500);
        let mut turns = BTreeMap::new();
        for turn in 0..u64::from(TURNS) {
            turns.insert(turn, walk(&shelf, turn, &all).statements);
        }
        assert_eq!(
            turns.values().sum::<usize>(),
            2250,
            "each once in all turns"
        );
        let most = turns.values().max().copied().unwrap_or_default();
        assert!(most < 120, "{most} statements in one walk");
        // One that is new is got in the next walk, whosever turn it is.
        let new = *all.first().unwrap();
        all.remove(&new);
        let other = u64::from(new.0[31] % TURNS) + 1;
        let mut without = all.clone();
        without.insert(new);
        let got = walk(&shelf, other, &all).statements - walk(&shelf, other, &without).statements;
        assert!((1..=2).contains(&got), "{got}");
    }

    /// A node that lists points without end, or pages in a circle, costs a stated number of requests.
    #[test]
    fn a_hostile_index_ends() {
        let mut walk = Walk::new(0);
        let mut asks = 0;
        while let Some(request) = walk.step() {
            asks += 1;
            let answer = match request {
                Request::Near { point, .. } => {
                    let number = |last: u16| {
                        let mut point = point;
                        point.0[30..].copy_from_slice(&last.to_be_bytes());
                        point
                    };
                    Answer::Points((0..POINTS_MAX as u16).map(number).collect())
                }
                _ => Answer::Statements {
                    statements: Vec::new(),
                    providers: Vec::new(),
                    next: Some(Cursor {
                        point: Point([7; 32]),
                        statement: StatementId([7; 32]),
                    }),
                },
            };
            walk.answered(answer, |_| false);
            assert!(walk.todo.len() < 1000);
        }
        assert_eq!(asks, WALK_ASKS_MAX);
        let mut walk = Walk::new(0);
        walk.step();
        let points = vec![Point([1; 32])];
        walk.answered(Answer::Points(points), |_| false);
        let circle = Answer::Statements {
            statements: Vec::new(),
            providers: Vec::new(),
            next: Some(Cursor {
                point: Point([1; 32]),
                statement: StatementId([1; 32]),
            }),
        };
        let mut pages = 0;
        while walk.step().is_some() {
            walk.answered(circle.clone(), |_| false);
            pages += 1;
        }
        assert_eq!(pages, 2);
    }
}
