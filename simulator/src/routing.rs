//! Routing tables, the one thing that is modelled: who knows whom.
//!
//! A node's table follows from where all nodes lie and from when each came and went; nothing is stored
//! for each node. As in kad, bucket `b` has up to [`BUCKET`] nodes that share exactly `b` bits with its owner:
//! all of them where there are no more, otherwise some that stay the same. A node looks through its
//! table at intervals and until then names nodes that have gone; of the nearest it learns at once,
//! since a newcomer greets them and they miss who does not answer.

use qk_protocol::hash::Point;

use crate::engine::{Micros, mix};

/// Nodes of one bucket.
pub const BUCKET: usize = 20;
/// Bits of a position by which ranges are found at once.
const INDEX_BITS: u32 = 16;
/// How often somebody else is taken whose place is vacant.
const TRIES: u64 = 6;

/// When a node is there.
pub trait Presence {
    /// Whether node `node` was there at a time that is not long past.
    fn was_there(&self, node: u32, at: u64) -> bool;
}

/// Where all nodes lie that may be in tables.
#[derive(Debug)]
pub struct Routing {
    /// Sorted by position.
    order: Vec<u32>,
    positions: Vec<u128>,
    /// For each value of the first bits, where they begin in `order`.
    starts: Vec<u32>,
}

/// The first half of a point, by which nodes are sorted: as good as all of it.
pub fn position(point: &Point) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&point.0[..16]);
    u128::from_be_bytes(first)
}

impl Routing {
    /// The tables of these nodes; each with its point.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (u32, &'a Point)>) -> Self {
        let mut all: Vec<(u128, u32)> = nodes
            .into_iter()
            .map(|(node, point)| (position(point), node))
            .collect();
        all.sort_unstable();
        let positions: Vec<u128> = all.iter().map(|(position, _)| *position).collect();
        let first = |value: u32| {
            let from = u128::from(value) << (128 - INDEX_BITS);
            positions.partition_point(|one| *one < from) as u32
        };
        let mut starts: Vec<u32> = (0..1 << INDEX_BITS).map(first).collect();
        starts.push(positions.len() as u32);
        Self {
            order: all.into_iter().map(|(_, node)| node).collect(),
            positions,
            starts,
        }
    }

    /// The nodes nearest to a point that `owner`, who is at `own`, knows at `now`, nearest first.
    /// `looked` is when it last looked through its table.
    pub fn closest(
        &self,
        (owner, own): (u32, &Point),
        target: &Point,
        count: usize,
        (looked, now): (Micros, Micros),
        presence: &impl Presence,
    ) -> Vec<u32> {
        let (own, target) = (position(own), position(target));
        let shared = (own ^ target).leading_zeros().min(127);
        let mut found: Vec<(u128, u32)> = Vec::with_capacity(2 * count);
        let view = View {
            routing: self,
            owner,
            own,
            looked,
            now,
            presence,
        };
        view.bucket(shared, target, &mut found);
        sort_from(&mut found, 0);
        if found.len() < count {
            // All that share exactly `shared` bits with the target are nearer than those of lower buckets.
            let from = found.len();
            for bucket in shared + 1..128 {
                if self.range_of_prefix(own, bucket).is_empty() {
                    break;
                }
                view.bucket(bucket, target, &mut found);
            }
            sort_from(&mut found, from);
        }
        for bucket in (0..shared).rev() {
            if found.len() >= count {
                break;
            }
            let from = found.len();
            view.bucket(bucket, target, &mut found);
            sort_from(&mut found, from);
        }
        found.truncate(count);
        found.into_iter().map(|(_, node)| node).collect()
    }

    /// All nodes in the table of `owner`, as [`closest`](Self::closest) has them.
    pub fn known(
        &self,
        (owner, own): (u32, &Point),
        (looked, now): (Micros, Micros),
        presence: &impl Presence,
    ) -> Vec<u32> {
        let own = position(own);
        let view = View {
            routing: self,
            owner,
            own,
            looked,
            now,
            presence,
        };
        let mut found = Vec::new();
        for bucket in 0..128 {
            view.bucket(bucket, own, &mut found);
            if self.range_of_prefix(own, bucket + 1).len() <= 1 {
                break;
            }
        }
        found.into_iter().map(|(_, node)| node).collect()
    }

    /// The nodes that are nearest to a point and there at `at`, nearest first: the truth.
    pub fn nearest(
        &self,
        target: &Point,
        count: usize,
        at: Micros,
        presence: &impl Presence,
    ) -> Vec<u32> {
        let target = position(target);
        let mut bits = 127;
        // The longest prefix that enough nodes share with the target.
        loop {
            let range = self.range_of_prefix(target, bits);
            let there = range.len() >= count && {
                let here = self.order[range.clone()].iter();
                here.filter(|node| presence.was_there(**node, at)).count() >= count
            };
            if there || bits == 0 {
                let mut all: Vec<(u128, u32)> = range
                    .map(|index| (self.positions[index] ^ target, self.order[index]))
                    .filter(|(_, node)| presence.was_there(*node, at))
                    .collect();
                all.sort_unstable();
                all.truncate(count);
                return all.into_iter().map(|(_, node)| node).collect();
            }
            bits -= 1;
        }
    }

    /// Where those lie that share at least `bits` bits with a position.
    fn range_of_prefix(&self, position: u128, bits: u32) -> std::ops::Range<usize> {
        if bits == 0 {
            return 0..self.order.len();
        }
        let low = position & (u128::MAX << (128 - bits));
        self.lower(low)..match low.checked_add(1 << (128 - bits)) {
            Some(high) => self.lower(high),
            None => self.order.len(),
        }
    }

    /// The first one that is at a position or behind it.
    fn lower(&self, position: u128) -> usize {
        let value = (position >> (128 - INDEX_BITS)) as usize;
        let (from, to) = (self.starts[value] as usize, self.starts[value + 1] as usize);
        from + self.positions[from..to].partition_point(|one| *one < position)
    }
}

struct View<'a, P> {
    routing: &'a Routing,
    owner: u32,
    own: u128,
    looked: Micros,
    now: Micros,
    presence: &'a P,
}

impl<P: Presence> View<'_, P> {
    fn bucket(&self, bits: u32, target: u128, found: &mut Vec<(u128, u32)>) {
        let other_side = self.own ^ (1 << (127 - bits));
        let range = self.routing.range_of_prefix(other_side, bits + 1);
        let mut add = |index: usize| {
            found.push((
                self.routing.positions[index] ^ target,
                self.routing.order[index],
            ));
        };
        // Of the nearest it learns at once.
        let when = if range.len() <= 2 * BUCKET {
            self.now
        } else {
            self.looked
        };
        let there = |index: usize| {
            let node = self.routing.order[index];
            self.presence.was_there(node, when) && node != self.owner
        };
        if range.len() <= BUCKET {
            range.filter(|index| there(*index)).for_each(&mut add);
            return;
        }
        let mut taken = [usize::MAX; BUCKET];
        let mut count = 0;
        let seed = mix(u64::from(self.owner), u64::from(bits));
        for place in 0..BUCKET as u64 {
            for again in 0..TRIES {
                let draw = mix(seed, place * TRIES + again) % range.len() as u64;
                let index = range.start + draw as usize;
                if there(index) && !taken[..count].contains(&index) {
                    taken[count] = index;
                    count += 1;
                    add(index);
                    break;
                }
            }
        }
    }
}

fn sort_from(found: &mut [(u128, u32)], from: usize) {
    found[from..].sort_unstable();
}

#[cfg(test)]
mod tests {
    use qk_protocol::hash::Blake3;

    use super::*;

    struct All;

    impl Presence for All {
        fn was_there(&self, _: u32, _: u64) -> bool {
            true
        }
    }

    fn points(count: u32) -> Vec<Point> {
        let point = |number: u32| Point(Blake3::of(&number.to_le_bytes()).0);
        (0..count).map(point).collect()
    }

    #[test]
    fn a_table_names_nearer_nodes_until_the_nearest() {
        let nodes = points(3000);
        let routing = Routing::new(nodes.iter().enumerate().map(|(at, one)| (at as u32, one)));
        for target in points(3200).into_iter().skip(3000) {
            let mut sorted: Vec<u32> = (0..3000).collect();
            sorted.sort_by_key(|node| nodes[*node as usize].distance(&target));
            assert_eq!(routing.nearest(&target, 20, 0, &All), sorted[..20]);
            let mut at = 7;
            for step in 0.. {
                assert!(step < 12, "it comes nearer each time");
                let own = &nodes[at as usize];
                let known = routing.closest((at, own), &target, 20, (0, 0), &All);
                assert!(known.len() == 20 && !known.contains(&at));
                let distances: Vec<_> = known
                    .iter()
                    .map(|node| nodes[*node as usize].distance(&target))
                    .collect();
                assert!(distances.is_sorted());
                if own.distance(&target) < distances[0] {
                    assert_eq!(at, sorted[0]);
                    break;
                }
                at = known[0];
            }
        }
    }
}
