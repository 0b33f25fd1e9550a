//! How a verifier goes round the index to learn what was published: range by range, in turns.
//!
//! One [`Survey`] lists the points of a range as several nodes give them. A range is as wide as those
//! who were asked hold all of: the whole key space in a network of fewer nodes than hold a point each,
//! a part of it beyond that or where a node cannot list it at once. What was never looked at comes
//! first, by how many nodes name it: an entry lies at many nodes, and who makes points up makes them
//! up alone. A few looks at each survey go to what was looked at longest ago, where a dissent or
//! another variant may have come since.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hash::Point;
use crate::lookup::WIDTH;
use crate::message::POINTS_MAX;

/// Points that are looked at after one survey, new ones and others.
pub const LOOKS_MAX: usize = 32;
/// Of these, points that were looked at before: each look asks many nodes.
pub const AGAIN_MAX: usize = 8;
/// Points that are remembered; beyond it those are forgotten that fewest nodes name.
pub const KNOWN_MAX: usize = 1 << 16;
/// Bits of a range at most: points are hashes, so that no honest index needs as many.
const BITS_MAX: u16 = 48;

/// What several nodes list of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// The range: all points that share so many bits with the one that was asked for.
    pub bits: u16,
    /// Points of the range where something is stated, and how many nodes name each.
    pub points: Vec<(Point, u32)>,
    /// Nodes that answered.
    pub answered: usize,
}

impl Survey {
    /// What these answers say of the range around a point. `nearest` are the places of the nodes
    /// nearest to it, as far as they are known.
    pub fn of(point: Point, nearest: &[Point], answers: &[Vec<Point>]) -> Self {
        let mut each: Vec<u16> = answers.iter().map(|one| listed_bits(point, one)).collect();
        each.sort_unstable();
        // One that claims to have too much to list does not narrow the range for the others.
        let listed = each.get(each.len() / 2).copied().unwrap_or(0);
        let bits = held_bits(point, nearest).max(listed).min(BITS_MAX);
        let mut named: BTreeMap<Point, u32> = BTreeMap::new();
        for answer in answers {
            let mut answer = answer.clone();
            answer.sort_unstable();
            answer.dedup();
            let inside = answer.into_iter().take(POINTS_MAX);
            for one in inside.filter(|one| one.shares_prefix(&point, bits)) {
                *named.entry(one).or_default() += 1;
            }
        }
        Self {
            bits,
            points: named.into_iter().collect(),
            answered: answers.len(),
        }
    }
}

/// Bits of the range around a point of which nodes this near hold everything: that of which each point
/// has one of them among the nodes nearest to it.
fn held_bits(point: Point, nearest: &[Point]) -> u16 {
    if nearest.len() < WIDTH {
        return 0;
    }
    let farthest = nearest.iter().map(|node| node.shared_bits(&point)).min();
    farthest.map_or(0, |bits| bits + 1)
}

/// Bits of the range around a point that an answer lists whole.
fn listed_bits(point: Point, answer: &[Point]) -> u16 {
    if answer.len() < POINTS_MAX {
        return 0;
    }
    // The nearest come first: where the farthest is from outside, none of the range is missing.
    let farthest = answer.iter().map(|one| one.shared_bits(&point)).min();
    farthest.map_or(0, |bits| (bits + 1).min(BITS_MAX))
}

/// The way round one network's index.
#[derive(Debug, Clone)]
pub struct Patrol {
    at: Point,
    turn: u64,
    known: BTreeMap<Point, Known>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    named_by: u32,
    /// In which turn it was looked at last; 0 if never.
    looked: u64,
}

impl Patrol {
    /// Begins anywhere, so that verifiers that start together do not go round together.
    pub fn new(at: Point) -> Self {
        Self {
            at,
            turn: 0,
            known: BTreeMap::new(),
        }
    }

    /// The point whose range is surveyed next.
    pub fn at(&self) -> Point {
        self.at
    }

    /// Points that are known.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Takes a survey of the range around [`at`](Self::at), and goes on to the next one if anybody
    /// answered. Returns the points to look at now; they count as looked at.
    pub fn take(&mut self, survey: &Survey) -> Vec<Point> {
        self.turn += 1;
        for (point, named_by) in &survey.points {
            let known = self.known.entry(*point).or_insert(Known {
                named_by: 0,
                looked: 0,
            });
            known.named_by = *named_by;
        }
        if survey.answered > 0 {
            self.at = after(self.at, survey.bits);
        }
        let looks = self.choose();
        for point in &looks {
            if let Some(known) = self.known.get_mut(point) {
                known.looked = self.turn;
            }
        }
        self.forget();
        looks
    }

    fn choose(&self) -> Vec<Point> {
        let (mut new, mut old): (Vec<_>, Vec<_>) =
            self.known.iter().partition(|(_, known)| known.looked == 0);
        new.sort_by_key(|(point, known)| (Reverse(known.named_by), **point));
        old.sort_by_key(|(point, known)| (known.looked, **point));
        old.truncate(AGAIN_MAX);
        new.truncate(LOOKS_MAX - old.len());
        new.into_iter()
            .chain(old)
            .map(|(point, _)| *point)
            .collect()
    }

    fn forget(&mut self) {
        let beyond = self.known.len().saturating_sub(KNOWN_MAX);
        if beyond == 0 {
            return;
        }
        let mut all: Vec<(u32, Point)> = self
            .known
            .iter()
            .map(|(point, known)| (known.named_by, *point))
            .collect();
        all.sort_unstable();
        for (_, point) in all.into_iter().take(beyond) {
            self.known.remove(&point);
        }
    }
}

/// The first point behind the range of those that share `bits` bits with this one; the first of all
/// behind the last.
fn after(point: Point, bits: u16) -> Point {
    let mut next = Point([0; 32]);
    let whole = usize::from(bits / 8);
    let rest = bits % 8;
    let kept = whole + usize::from(rest > 0);
    let pairs = next.0.iter_mut().zip(point.0);
    pairs.take(kept).for_each(|(to, from)| *to = from);
    let mut carry = u16::from(match (kept, rest) {
        (0, _) => return next,
        (_, 0) => 1_u8,
        (_, rest) => {
            let step = 0x80_u8 >> (rest - 1);
            if let Some(last) = next.0.get_mut(kept - 1) {
                *last &= !(step - 1);
            }
            step
        }
    });
    for byte in next.0.iter_mut().take(kept).rev() {
        let sum = u16::from(*byte) + carry;
        *byte = (sum & 0xff) as u8;
        carry = sum >> 8;
    }
    next
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::hash::Blake3;

    fn points(count: usize) -> Vec<Point> {
        let point = |number: usize| Point(*Blake3::of(&number.to_le_bytes()).as_bytes());
        (0..count).map(point).collect()
    }

    /// What an honest node that holds all of these lists.
    fn near(all: &[Point], point: Point) -> Vec<Point> {
        let mut all = all.to_vec();
        all.sort_unstable_by_key(|one| one.distance(&point));
        all.truncate(POINTS_MAX);
        all
    }

    #[test]
    fn ranges_follow_each_other_without_gap_and_end_where_they_began() {
        for bits in [0, 1, 3, 7, 8, 9, 12] {
            let mut at = Point([0; 32]);
            let mut steps = 0;
            loop {
                let next = after(at, bits);
                assert!(next == Point([0; 32]) || next > at);
                assert!(!next.shares_prefix(&at, bits) || bits == 0);
                steps += 1;
                at = next;
                if at == Point([0; 32]) {
                    break;
                }
            }
            assert_eq!(steps, 1 << bits, "{bits} bits");
            assert_eq!(after(Point([0xff; 32]), bits), Point([0; 32]));
        }
    }

    #[test]
    fn every_entry_is_looked_at_once_round_however_many_there_are() {
        for count in [0, 1, 40, 1023, 1024, 3000] {
            let all = points(count);
            let mut patrol = Patrol::new(Point([7; 32]));
            let mut looked = BTreeSet::new();
            let mut polls = 0;
            while looked.len() < count {
                let answers = vec![near(&all, patrol.at()); 3];
                let survey = Survey::of(patrol.at(), &[], &answers);
                looked.extend(patrol.take(&survey));
                polls += 1;
                assert!(
                    polls <= 8 + count / (LOOKS_MAX - AGAIN_MAX) * 2,
                    "{count} points"
                );
            }
        }
    }

    #[test]
    fn in_a_large_network_a_range_is_as_wide_as_those_asked_hold() {
        let nodes = points(2000);
        let point = Point([0x5a; 32]);
        let mut nearest = nodes.clone();
        nearest.sort_unstable_by_key(|one| one.distance(&point));
        nearest.truncate(WIDTH);
        let survey = Survey::of(point, &nearest, &[]);
        assert!((5..=9).contains(&survey.bits), "{}", survey.bits);
        // Every point of the range has one of those five that are asked among its nearest.
        let asked: BTreeSet<&Point> = nearest.iter().take(5).collect();
        let inside = points(20_000).into_iter().map(|mut one| {
            one.0[0] = point.0[0];
            one
        });
        for one in inside
            .filter(|one| one.shares_prefix(&point, survey.bits))
            .take(200)
        {
            let mut holders = nodes.clone();
            holders.sort_unstable_by_key(|node| node.distance(&one));
            assert!(holders.iter().take(WIDTH).any(|node| asked.contains(node)));
        }
        assert_eq!(
            Survey::of(point, &nearest[1..], &[]).bits,
            0,
            "fewer hold everything"
        );
    }

    #[test]
    fn one_liar_neither_narrows_the_range_nor_pushes_entries_back() {
        let all = points(100);
        let at = Point([0; 32]);
        // Each time as many points as fit, near the one asked for, and never the same.
        let mut lies = 0_u64;
        let mut lie = |at: Point| -> Vec<Point> {
            let point = |number: u64| {
                let mut point = at;
                point.0[24..].copy_from_slice(&number.to_be_bytes());
                point
            };
            let from = lies;
            lies += POINTS_MAX as u64;
            (from..lies).map(point).collect()
        };
        let mut patrol = Patrol::new(at);
        let mut looked = BTreeSet::new();
        for _ in 0..5 {
            let honest = near(&all, patrol.at());
            let answers = [honest.clone(), lie(patrol.at()), honest];
            let survey = Survey::of(patrol.at(), &[], &answers);
            assert_eq!(survey.bits, 0);
            looked.extend(patrol.take(&survey));
        }
        assert!(all.iter().all(|one| looked.contains(one)));
        // Alone it does both: what stands against it is that several are asked.
        let survey = Survey::of(at, &[], &[lie(at)]);
        assert_eq!(survey.bits, BITS_MAX);
        let mut patrol = Patrol::new(at);
        for _ in 0..200 {
            let survey = Survey::of(patrol.at(), &[], &[lie(patrol.at())]);
            patrol.take(&survey);
        }
        assert!(patrol.known() <= KNOWN_MAX);
    }

    #[test]
    fn what_was_looked_at_is_looked_at_again_in_turns() {
        let all = points(70);
        let mut patrol = Patrol::new(Point([0; 32]));
        let mut times: BTreeMap<Point, u32> = BTreeMap::new();
        for _ in 0..40 {
            let survey = Survey::of(patrol.at(), &[], &[near(&all, patrol.at())]);
            for point in patrol.take(&survey) {
                *times.entry(point).or_default() += 1;
            }
        }
        let (least, most) = (times.values().min(), times.values().max());
        assert_eq!(times.len(), 70);
        assert!(least >= Some(&4) && most <= Some(&7), "{least:?} {most:?}");
    }

    #[test]
    fn where_nobody_answers_the_range_stays() {
        let mut patrol = Patrol::new(Point([3; 32]));
        assert!(patrol.take(&Survey::default()).is_empty());
        assert_eq!(patrol.at(), Point([3; 32]));
    }
}
