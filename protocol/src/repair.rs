//! Repair after churn: what a holder pushes to a node that came.
//!
//! The nodes nearest to a point hold its statements, and nodes come and go. Whoever holds some looks at
//! each node that is new to it, asks which points that one has around its own place, and puts there what it
//! lacks of those points that it is among the nearest to. So who left is replaced by who came, as long as
//! one holder is left to notice; and a newcomer that was served by one holder costs the others one question.

use crate::hash::Point;
use crate::lookup::WIDTH;
use crate::message::POINTS_MAX;

/// Points whose statements are pushed to one node in one turn; the next turn goes on.
pub const REPAIR_POINTS_MAX: usize = 256;

/// Which of the points held here the node at `newcomer` is to hold and does not have. `has` is what it
/// lists around its own place, `nodes` are the places of all nodes known, that of `own` and the newcomer's
/// included. Only what this node is to hold itself: what its owner looked up is nobody's business. At most
/// [`REPAIR_POINTS_MAX`], nearest to the newcomer first.
pub fn owed(
    own: Point,
    newcomer: Point,
    held: &[Point],
    has: &[Point],
    nodes: &[Point],
) -> Vec<Point> {
    // Of what is farther than a full list goes, nothing is known.
    let farthest = match has.len() < POINTS_MAX {
        true => None,
        false => has.iter().map(|one| one.distance(&newcomer)).max(),
    };
    let mut owed: Vec<Point> = held
        .iter()
        .filter(|point| !has.contains(point))
        .filter(|point| farthest.is_none_or(|farthest| point.distance(&newcomer) < farthest))
        .filter(|point| is_holder(newcomer, point, nodes) && is_holder(own, point, nodes))
        .copied()
        .collect();
    owed.sort_unstable_by_key(|point| point.distance(&newcomer));
    owed.truncate(REPAIR_POINTS_MAX);
    owed
}

/// Whether a node is among the nearest to a point.
fn is_holder(node: Point, point: &Point, nodes: &[Point]) -> bool {
    let own = node.distance(point);
    let nearer = nodes.iter().filter(|other| other.distance(point) < own);
    nearer.take(WIDTH).count() < WIDTH
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::Xoshiro256PlusPlus;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn nearest(point: &Point, nodes: &[Point]) -> BTreeSet<Point> {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.distance(point));
        nodes.into_iter().take(WIDTH).collect()
    }

    /// Half of the nodes leave and as many come, three times; after each time those that are left push.
    /// Returns how many points nobody near them holds in the end.
    fn lost(repaired: bool) -> usize {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut nodes: Vec<Point> = (0..60).map(|_| Point(rng.random())).collect();
        let points: Vec<Point> = (0..300).map(|_| Point(rng.random())).collect();
        let mut held: BTreeMap<Point, Vec<Point>> = BTreeMap::new();
        for point in &points {
            for node in nearest(point, &nodes) {
                held.entry(node).or_default().push(*point);
            }
        }
        for _ in 0..3 {
            nodes.shuffle(&mut rng);
            let stay = nodes.len() / 2;
            for gone in nodes.drain(stay..) {
                held.remove(&gone);
            }
            let came: Vec<Point> = (0..stay).map(|_| Point(rng.random())).collect();
            nodes.extend(&came);
            if !repaired {
                continue;
            }
            for newcomer in &came {
                for node in &nodes[..stay] {
                    let here = held.get(node).cloned().unwrap_or_default();
                    let has = held.entry(*newcomer).or_default();
                    let pushed = owed(*node, *newcomer, &here, has, &nodes);
                    has.extend(pushed);
                }
            }
        }
        let is_held = |point: &&Point| {
            let near = nearest(point, &nodes).into_iter();
            let holds = |node| held.get(&node).is_some_and(|held| held.contains(point));
            near.filter(|node| holds(*node)).count() > WIDTH / 2
        };
        points.len() - points.iter().filter(is_held).count()
    }

    #[test]
    fn what_leaves_with_its_holders_is_pushed_to_those_who_come() {
        assert_eq!(lost(true), 0);
        assert!(lost(false) > 200, "{}", lost(false));
    }

    #[test]
    fn only_what_a_newcomer_lacks_and_is_to_hold_is_pushed() {
        let at = |first: u8| Point([first; 32]);
        let newcomer = at(0x80);
        let few = [at(1), newcomer];
        assert_eq!(
            owed(at(1), newcomer, &[at(2), at(0x81)], &[at(2)], &few),
            [at(0x81)]
        );
        // Twenty others are nearer to the one point, and none to the other.
        let nodes: Vec<Point> = (0..WIDTH as u8).map(at).chain([newcomer]).collect();
        let both = [at(2), at(0x81)];
        assert_eq!(owed(at(0), newcomer, &both, &[], &nodes), [at(0x81)]);
        // What is here only because it was looked up is not passed on.
        let far = Point([0xff; 32]);
        let with_far = [nodes.clone(), vec![far]].concat();
        let near = |first: u8| [at(first)];
        assert_eq!(owed(far, at(5), &near(2), &[], &with_far), []);
        assert_eq!(owed(at(1), at(5), &near(2), &[], &with_far), near(2));
        let many: Vec<Point> = (0..=u8::MAX)
            .flat_map(|first| {
                (0..8).map(move |last| {
                    let mut point = at(first);
                    point.0[31] = last;
                    point
                })
            })
            .collect();
        assert_eq!(
            owed(at(1), newcomer, &many, &[], &few).len(),
            REPAIR_POINTS_MAX
        );
    }
}
