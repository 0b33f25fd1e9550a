//! Token buckets, one for each caller, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Rates of many callers. A caller starts with a full bucket of `burst` tokens, which refills with
/// `per_second`; a request takes one token.
#[derive(Debug)]
pub(super) struct Rates<K> {
    per_second: f64,
    burst: f64,
    callers_max: usize,
    buckets: HashMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq> Rates<K> {
    pub(super) fn new(per_second: f64, burst: f64, callers_max: usize) -> Self {
        Self {
            per_second,
            burst,
            callers_max,
            buckets: HashMap::new(),
        }
    }

    /// Takes a token of `caller`, or says no. A new caller is refused while the memory of callers
    /// is full of others whose buckets are not full again.
    pub(super) fn take(&mut self, caller: K, now: Instant) -> bool {
        if !self.buckets.contains_key(&caller) && !self.make_room(now) {
            return false;
        }
        let (per_second, burst) = (self.per_second, self.burst);
        let bucket = self.buckets.entry(caller).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        bucket.tokens = bucket.level(per_second, burst, now);
        bucket.at = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }

    /// Forgets callers whose buckets are full again: to remember them makes no difference.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() >= self.callers_max {
            let (per_second, burst) = (self.per_second, self.burst);
            self.buckets
                .retain(|_, bucket| bucket.level(per_second, burst, now) < burst);
        }
        self.buckets.len() < self.callers_max
    }
}

impl Bucket {
    fn level(&self, per_second: f64, burst: f64, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + passed * per_second).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let mut rates = Rates::new(10.0, 3.0, 8);
        let start = Instant::now();
        let taken = |rates: &mut Rates<u8>, ms, times| {
            let now = start + Duration::from_millis(ms);
            (0..times).filter(|_| rates.take(1, now)).count()
        };
        assert_eq!(taken(&mut rates, 0, 10), 3);
        assert_eq!(taken(&mut rates, 50, 10), 0);
        assert_eq!(taken(&mut rates, 110, 10), 1);
        assert_eq!(taken(&mut rates, 60_000, 10), 3);
    }

    #[test]
    fn memory_is_bounded_and_callers_are_apart() {
        let mut rates = Rates::new(1.0, 2.0, 4);
        let start = Instant::now();
        for caller in 0..4 {
            assert!(rates.take(caller, start));
        }
        assert!(!rates.take(99, start), "no room, nobody is idle");
        assert!(rates.take(0, start), "known callers are not locked out");
        assert!(rates.take(99, start + Duration::from_secs(3)));
        assert!(rates.buckets.len() <= 4);
    }
}
