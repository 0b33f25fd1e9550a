//! How fast a provider delivers, and whether its answers are worth packing.

use std::time::Duration;

use crate::blocks::Encoding;

/// What was measured longer ago than about this counts half.
const MEMORY: Duration = Duration::from_secs(2);
/// Below this rate over the wire, in bytes a second, answers are asked for in zstd.
pub const ZSTD_BELOW: u64 = 40_000_000;
/// Above this rate over the wire they are asked for raw again. Apart from [`ZSTD_BELOW`], so that
/// a rate between the two changes nothing.
pub const RAW_ABOVE: u64 = 60_000_000;
/// How long a rate is measured before packing is decided on: the first answers of a connection
/// say more about its latency.
const PACKING_AFTER: Duration = Duration::from_millis(500);

/// A rate over about the last two seconds in which the provider had something to do.
///
/// Answers on several lanes end in bursts. So this is the quotient of two sums and no mean of
/// quotients: a burst adds bytes and no time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    bytes: u64,
    received: u64,
    took: Duration,
}

impl Rate {
    /// Counts `bytes` of the blob that came as `received` bytes, `took` after what came before.
    pub(super) fn add(&mut self, bytes: u64, received: u64, took: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.received = self.received.saturating_add(received);
        self.took = self.took.saturating_add(took);
        while self.took > MEMORY {
            self.bytes /= 2;
            self.received /= 2;
            self.took /= 2;
        }
    }

    /// Bytes of the blob a second, at least one; none before anything was counted.
    pub(super) fn per_second(&self) -> Option<u64> {
        (self.bytes > 0 || !self.took.is_zero()).then(|| per_second(self.bytes, self.took))
    }

    fn received_per_second(&self) -> u64 {
        per_second(self.received, self.took)
    }
}

/// At least one byte a second, so that it can be divided by.
pub(super) fn per_second(bytes: u64, took: Duration) -> u64 {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    (bytes.saturating_mul(1_000_000) / micros).max(1)
}

/// How long `bytes` take at so many a second.
pub(super) fn time_for(bytes: u64, per_second: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / per_second.max(1))
}

/// Whether a provider is asked for raw or packed answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    encoding: Encoding,
    /// Measured with the present encoding.
    rate: Rate,
    /// Bytes of the blob a second before it was asked for packed ones; zero if it was from the first.
    raw_per_second: u64,
    /// It does not speak zstd, or nothing is gained by it.
    is_useless: bool,
}

impl Packing {
    pub(super) fn new(at_first: Encoding) -> Self {
        Self {
            encoding: at_first,
            rate: Rate::default(),
            raw_per_second: 0,
            is_useless: false,
        }
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Counts an answer as [`Rate::add`] does, and decides anew.
    pub(super) fn add(&mut self, as_asked: Encoding, bytes: u64, received: u64, took: Duration) {
        if as_asked != self.encoding {
            // Asked before the change: it tells nothing about the time since.
            return;
        }
        self.rate.add(bytes, received, took);
        if self.rate.took < PACKING_AFTER {
            return;
        }
        let wire = self.rate.received_per_second();
        let blob = per_second(self.rate.bytes, self.rate.took);
        match self.encoding {
            Encoding::Raw if wire < ZSTD_BELOW && !self.is_useless => {
                self.raw_per_second = blob;
                self.change(Encoding::Zstd);
            }
            // What does not shrink, or is slower to pack than to send, stays as it was.
            Encoding::Zstd if blob < self.raw_per_second.saturating_mul(11) / 10 => self.give_up(),
            Encoding::Zstd if wire > RAW_ABOVE => self.change(Encoding::Raw),
            Encoding::Raw | Encoding::Zstd => {}
        }
    }

    /// Raw from now on.
    pub(super) fn give_up(&mut self) {
        self.is_useless = true;
        self.change(Encoding::Raw);
    }

    fn change(&mut self, encoding: Encoding) {
        self.encoding = encoding;
        self.rate = Rate::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn packed(rate: u64, shrinks_to_percent: u64, seconds: u32) -> (Packing, u32) {
        let mut packing = Packing::new(Encoding::Raw);
        let mut changes = 0;
        for _ in 0..seconds * 4 {
            let before = packing.encoding();
            let (bytes, received) = match before {
                Encoding::Raw => (rate / 4, rate / 4),
                Encoding::Zstd => (rate / 4 * 100 / shrinks_to_percent, rate / 4),
            };
            packing.add(before, bytes, received, SECOND / 4);
            changes += u32::from(packing.encoding() != before);
        }
        (packing, changes)
    }

    #[test]
    fn bursts_are_not_rates() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        for _ in 0..50 {
            rate.add(1_000_000, 0, SECOND / 2);
            rate.add(1_000_000, 0, Duration::ZERO);
        }
        let measured = rate.per_second().expect("was measured");
        assert!((3_300_000..4_700_000).contains(&measured), "{measured}");
        for _ in 0..20 {
            rate.add(100_000, 0, SECOND);
        }
        let measured = rate.per_second().expect("was measured");
        assert!((100_000..130_000).contains(&measured), "{measured}");
    }

    #[test]
    fn nothing_in_no_time_can_be_divided_by() {
        assert_eq!(per_second(0, SECOND), 1);
        assert_eq!(per_second(5, Duration::ZERO), 5_000_000);
        assert_eq!(time_for(1, 0), SECOND);
    }

    #[test]
    fn slow_wires_are_packed_fast_ones_are_not() {
        assert_eq!(packed(5_000_000, 33, 10).0.encoding(), Encoding::Zstd);
        assert_eq!(packed(500_000_000, 33, 10).0.encoding(), Encoding::Raw);
        // Between the two thresholds nothing changes again and again.
        assert!(packed(39_000_000, 33, 60).1 <= 1);
        assert_eq!(packed(50_000_000, 33, 60).1, 0);
    }

    #[test]
    fn what_is_far_is_packed_until_it_proves_fast() {
        let mut slow = Packing::new(Encoding::Zstd);
        let mut fast = Packing::new(Encoding::Zstd);
        for _ in 0..8 {
            slow.add(Encoding::Zstd, 2_000_000, 1_000_000, SECOND / 4);
            fast.add(fast.encoding(), 200_000_000, 100_000_000, SECOND / 4);
        }
        assert_eq!(
            (slow.encoding(), fast.encoding()),
            (Encoding::Zstd, Encoding::Raw)
        );
    }

    #[test]
    fn what_does_not_shrink_is_tried_once() {
        let (packing, changes) = packed(5_000_000, 99, 60);
        assert_eq!((packing.encoding(), changes), (Encoding::Raw, 2));
    }
}
