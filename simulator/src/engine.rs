//! Virtual time: a queue of events, streams of randomness for one purpose each, and a hash of what
//! happened.
//!
//! Nothing is taken out of the queue before its time. What no longer matters is recognised when it comes:
//! a [`Slab`] gives each of its places a new generation when it is used again.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Virtual time since the run began.
pub(crate) type Micros = u64;
pub(crate) const SECOND: Micros = 1_000_000;
pub(crate) const MINUTE: Micros = 60 * SECOND;
pub(crate) const HOUR: Micros = 60 * MINUTE;

pub(crate) type Random = Xoshiro256PlusPlus;

/// One stream for each purpose, so that a change of one does not move the others.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Who and where nodes are, and what they do by themselves.
    pub(crate) nodes: Random,
    /// Latencies.
    pub(crate) network: Random,
    /// What goes wrong.
    pub(crate) faults: Random,
    /// What is published and fetched.
    pub(crate) workload: Random,
}

impl Streams {
    pub(crate) fn new(seed: u64) -> Self {
        let stream = |purpose: &str| {
            let mut hasher = blake3::Hasher::new_derive_key("qk simulator stream v1");
            hasher
                .update(&seed.to_le_bytes())
                .update(purpose.as_bytes());
            Random::from_seed(*hasher.finalize().as_bytes())
        };
        Self {
            nodes: stream("nodes"),
            network: stream("network"),
            faults: stream("faults"),
            workload: stream("workload"),
        }
    }
}

/// A number that looks random and is always the same for the same two.
pub(crate) fn mix(one: u64, other: u64) -> u64 {
    let mut x = one ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Debug)]
struct Entry<E> {
    at: Micros,
    serial: u64,
    event: E,
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

/// Events in the order of their time, those of one instant in the order in which they were made.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    serial: u64,
    pub(crate) now: Micros,
    /// Events that happened.
    pub(crate) happened: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            serial: 0,
            now: 0,
            happened: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Has an event happen at a time, or now if that is past.
    pub(crate) fn at(&mut self, at: Micros, event: E) {
        self.serial += 1;
        self.heap.push(Reverse(Entry {
            at: at.max(self.now),
            serial: self.serial,
            event,
        }));
    }

    /// The next event that happens before `end`; the clock goes on to it.
    pub(crate) fn next_before(&mut self, end: Micros) -> Option<E> {
        if self.heap.peek()?.0.at > end {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        self.happened += 1;
        Some(entry.event)
    }
}

/// A place in a [`Slab`], good until what was there is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    at: u32,
    generation: u32,
}

/// Things that come and go, in places that are used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn add(&mut self, thing: T) -> Key {
        if let Some(at) = self.free.pop() {
            let place = &mut self.places[at as usize];
            place.1 = Some(thing);
            return Key {
                at,
                generation: place.0,
            };
        }
        let at = u32::try_from(self.places.len()).expect("fewer than 2^32 at once");
        self.places.push((0, Some(thing)));
        Key { at, generation: 0 }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.at as usize)?;
        place.1.as_mut().filter(|_| place.0 == key.generation)
    }

    pub(crate) fn take(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.at as usize)?;
        if place.0 != key.generation {
            return None;
        }
        let thing = place.1.take()?;
        place.0 = place.0.wrapping_add(1);
        self.free.push(key.at);
        Some(thing)
    }
}

/// A hash over everything that happened, in its order.
#[derive(Debug, Default)]
pub(crate) struct Trace(blake3::Hasher);

impl Trace {
    pub(crate) fn record(&mut self, at: Micros, kind: u8, from: u32, to: u32, number: u64) {
        let mut bytes = [0; 25];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8] = kind;
        bytes[9..13].copy_from_slice(&from.to_le_bytes());
        bytes[13..17].copy_from_slice(&to.to_le_bytes());
        bytes[17..].copy_from_slice(&number.to_le_bytes());
        self.0.update(&bytes);
    }

    pub(crate) fn hash(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_making() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'b'), (1, 'a'), (5, 'c'), (9, 'd')] {
            queue.at(at, event);
        }
        let mut came = Vec::new();
        while let Some(event) = queue.next_before(8) {
            came.push(event);
        }
        assert_eq!((came, queue.now), (vec!['a', 'b', 'c'], 5));
        queue.at(2, 'e');
        assert_eq!(queue.next_before(8), Some('e'), "what is past is now");
        assert_eq!(queue.now, 5);
    }

    #[test]
    fn an_old_key_does_not_open_a_place_that_is_used_again() {
        let mut slab = Slab::default();
        let old = slab.add(1);
        assert_eq!(slab.take(old), Some(1));
        let new = slab.add(2);
        assert_eq!(slab.get_mut(old), None);
        assert_eq!(slab.take(old), None);
        assert_eq!(slab.get_mut(new), Some(&mut 2));
    }
}
