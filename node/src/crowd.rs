//! Places that many want: when all are taken, the prefix that has the most makes room for others, and
//! the slow make room for anybody.
//!
//! A limit on the number alone would let whoever comes first with many and then dawdles keep
//! everybody else out. The oldest always making room would be no better: under a flood nobody would
//! ever be done.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

use crate::net::address::Prefix;

/// A number of places.
#[derive(Debug)]
pub(crate) struct Crowd {
    places_max: usize,
    slow_after: Duration,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// In the order in which they were taken.
    taken: BTreeMap<u64, Taken>,
    last: u64,
}

#[derive(Debug)]
struct Taken {
    prefix: Option<Prefix>,
    /// When something was last heard of whoever has it.
    renewed: Instant,
    end: Arc<End>,
}

/// How one learns that it has to go.
#[derive(Debug, Default)]
struct End {
    now: AtomicBool,
    waker: AtomicWaker,
}

impl End {
    fn tell(&self) {
        self.now.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Crowd {
    /// So many places; who does not renew its own for `slow_after` makes room for anybody.
    pub(crate) fn new(places_max: usize, slow_after: Duration) -> Arc<Self> {
        Arc::new(Self {
            places_max,
            slow_after,
            places: Mutex::default(),
        })
    }

    /// Takes a place; none where all are taken and nobody has to make room.
    pub(crate) fn enter(self: &Arc<Self>, prefix: Option<Prefix>) -> Option<Place> {
        self.enter_at(prefix, Instant::now())
    }

    fn enter_at(self: &Arc<Self>, prefix: Option<Prefix>, now: Instant) -> Option<Place> {
        let mut places = self.places();
        if places.taken.len() >= self.places_max
            && !places.make_room(prefix, 0, now, self.slow_after)
        {
            return None;
        }
        places.last += 1;
        let (number, end) = (places.last, Arc::new(End::default()));
        let taken = Taken {
            prefix,
            renewed: now,
            end: end.clone(),
        };
        places.taken.insert(number, taken);
        Some(Place {
            crowd: self.clone(),
            number,
            prefix,
            end,
        })
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.places().taken.len()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Whole after every step under the lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// Ends the one of the prefix with the most that was renewed longest ago, if that prefix has more
    /// than `prefix` would have, or if it is slow. One of number `but` never has to go.
    fn make_room(
        &mut self,
        prefix: Option<Prefix>,
        but: u64,
        now: Instant,
        slow_after: Duration,
    ) -> bool {
        let mut of_prefix: BTreeMap<Option<Prefix>, (usize, Instant, u64)> = BTreeMap::new();
        let mut slowest: Option<(Instant, u64)> = None;
        for (number, taken) in self.taken.iter().filter(|(number, _)| **number != but) {
            let this = (taken.renewed, *number);
            slowest = Some(slowest.map_or(this, |one| one.min(this)));
            let entry = of_prefix.entry(taken.prefix).or_insert((0, this.0, this.1));
            let oldest = (entry.1, entry.2).min(this);
            *entry = (entry.0 + 1, oldest.0, oldest.1);
        }
        let own = of_prefix.get(&prefix).map_or(0, |(count, ..)| *count);
        let heaviest = of_prefix.into_values().max_by_key(|(count, ..)| *count);
        let heavy = heaviest.filter(|(count, ..)| *count > own + 1);
        let slow = slowest.filter(|(at, _)| now.saturating_duration_since(*at) >= slow_after);
        let goes = slow
            .map(|(_, number)| number)
            .or(heavy.map(|(_, _, number)| number));
        let gone = goes.and_then(|number| self.taken.remove(&number));
        if let Some(gone) = &gone {
            gone.end.tell();
        }
        gone.is_some()
    }
}

/// A place that is taken until this is dropped, or somebody else needs it more.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    prefix: Option<Prefix>,
    end: Arc<End>,
}

impl Place {
    /// Says that whoever has it goes on.
    pub(crate) fn renew(&self) {
        if let Some(taken) = self.crowd.places().taken.get_mut(&self.number) {
            taken.renewed = Instant::now();
        }
    }

    /// Makes somebody else go who has to: what all share is short, though there are places left.
    pub(crate) fn press(&self) {
        let mut places = self.crowd.places();
        places.make_room(
            self.prefix,
            self.number,
            Instant::now(),
            self.crowd.slow_after,
        );
    }

    /// Ready when this place has to be given up.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.end.waker.register(cx.waker());
        match self.end.now.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Waits until this place has to be given up.
    pub(crate) async fn end(&self) {
        poll_fn(|cx| self.poll_end(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.places().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW_AFTER: Duration = Duration::from_secs(2);

    fn prefix(number: u8) -> Option<Prefix> {
        Some(Prefix::V4([198, 51, number]))
    }

    fn ended(place: &Place) -> bool {
        place.end.now.load(Ordering::Acquire)
    }

    #[test]
    fn the_prefix_with_the_most_makes_room_for_others_and_not_for_itself() {
        let (crowd, now) = (Crowd::new(4, SLOW_AFTER), Instant::now());
        let enter = |number| crowd.enter_at(prefix(number), now);
        let honest = enter(1).unwrap();
        let many: Vec<Place> = (0..3).map(|_| enter(2).unwrap()).collect();
        assert!(enter(2).is_none(), "no room for itself");
        let other = enter(3).unwrap();
        let which: Vec<bool> = many.iter().map(ended).collect();
        assert_eq!(which, [true, false, false]);
        assert!(enter(3).is_none(), "two each would be no better");
        assert!(!ended(&honest) && !ended(&other));
        drop(honest);
        assert_eq!(crowd.taken(), 3);
        assert!(enter(2).is_some(), "there was room");
    }

    #[test]
    fn what_is_slow_makes_room_for_anybody() {
        let (crowd, now) = (Crowd::new(2, SLOW_AFTER), Instant::now());
        let slow = crowd.enter_at(prefix(1), now).unwrap();
        let late = crowd.enter_at(prefix(1), now + SLOW_AFTER / 2).unwrap();
        assert!(crowd.enter_at(prefix(1), now + SLOW_AFTER / 2).is_none());
        let new = crowd.enter_at(prefix(1), now + SLOW_AFTER).unwrap();
        assert!(ended(&slow) && !ended(&late) && !ended(&new));
    }

    #[test]
    fn who_presses_stays() {
        let crowd = Crowd::new(8, SLOW_AFTER);
        let enter = |number| crowd.enter(prefix(number)).unwrap();
        let (one, many) = (enter(1), [enter(2), enter(2), enter(2)]);
        one.press();
        assert!(!ended(&one) && ended(&many[0]) && !ended(&many[1]));
        many[1].press();
        assert!(!ended(&one) && many[1..].iter().all(|place| !ended(place)));
    }
}
