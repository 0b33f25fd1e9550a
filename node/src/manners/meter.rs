//! Rates and budgets where bytes go through: one [`Uploads`] and one [`Downloads`] a process.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota};
use qk_protocol::blocks::Status;

use super::Manners;
use super::month::Way;
use crate::node::unix_now;

/// What a limiter counts in: bytes alone would round a rate of 100 MB/s by a tenth, as its interval
/// is whole nanoseconds.
const CELL_BYTES: u64 = 256;
/// The most that is written between two looks at the clock.
const PIECE_BYTES_MAX: u64 = 64 << 10;
/// A limiter lets this part of a second's bytes go at once.
const BURST_PER_SECOND: u64 = 32;
/// How much may wait for its turn: readers give up on a range after a minute.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(20);

/// At most so many bytes a second, first come, first served.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    piece_bytes: u64,
    limiter: DefaultDirectRateLimiter,
    /// Who waits for the limiter holds it: otherwise whoever wakes first would be next, and one
    /// lane could wait for ever.
    turn: tokio::sync::Mutex<()>,
}

impl Rate {
    /// A limiter of `bytes_per_second`, at least [`RATE_MIN`](super::RATE_MIN).
    pub fn new(bytes_per_second: u64) -> Self {
        let cells = |bytes: u64| {
            let cells = u32::try_from((bytes / CELL_BYTES).max(1)).unwrap_or(u32::MAX);
            NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN)
        };
        let burst = cells(bytes_per_second / BURST_PER_SECOND);
        let quota = Quota::per_second(cells(bytes_per_second)).allow_burst(burst);
        Self {
            bytes_per_second,
            piece_bytes: (u64::from(burst.get()) * CELL_BYTES).min(PIECE_BYTES_MAX),
            limiter: DefaultDirectRateLimiter::direct(quota),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        let _turn = self.turn.lock().await;
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(self.piece_bytes);
            let cells = u32::try_from(piece.div_ceil(CELL_BYTES)).unwrap_or(u32::MAX);
            // A piece is never more than the burst, the only thing that is refused.
            if let Some(cells) = NonZeroU32::new(cells) {
                let _ = self.limiter.until_n_ready(cells).await;
            }
            left -= piece;
        }
    }
}

/// Whether and how fast blocks are given, over all networks, peers and lanes of this process.
#[derive(Debug, Clone, Default)]
pub struct Uploads {
    /// None: gives everything at once, as tests of the protocol want it.
    manners: Option<Arc<Manners>>,
}

impl Uploads {
    pub(super) fn new(manners: Arc<Manners>) -> Self {
        Self {
            manners: Some(manners),
        }
    }

    /// Whether an answer of so many bytes is given; the grant goes with it until it is sent.
    ///
    /// # Errors
    /// [`Status::Lacks`] while nothing is given, so that readers turn to somebody else at once;
    /// [`Status::Busy`] where others wait already for all that the rate allows.
    pub async fn admit(&self, bytes: u32) -> Result<Grant, Status> {
        let bytes = u64::from(bytes);
        let Some(manners) = &self.manners else {
            return Ok(Grant {
                manners: None,
                left: bytes,
            });
        };
        if !manners.gives() {
            return Err(Status::Lacks);
        }
        let waiting = manners.waiting.load(Ordering::Relaxed);
        let too_much = |rate: &Rate| {
            waiting
                > rate
                    .bytes_per_second
                    .saturating_mul(QUEUE_TIME_MAX.as_secs())
        };
        if manners.upload_rate.as_ref().is_some_and(too_much) {
            return Err(Status::Busy);
        }
        if !reserve(manners, bytes).await {
            return Err(Status::Lacks);
        }
        manners.waiting.fetch_add(bytes, Ordering::Relaxed);
        Ok(Grant {
            manners: Some(manners.clone()),
            left: bytes,
        })
    }
}

/// Counts bytes of the month, off the reactor where a file is written.
async fn reserve(manners: &Arc<Manners>, bytes: u64) -> bool {
    if let Some(reserved) = manners.month.reserve_at_once(Way::Up, bytes, unix_now()) {
        return reserved;
    }
    let manners = manners.clone();
    let reserving =
        tokio::task::spawn_blocking(move || manners.month.reserve(Way::Up, bytes, unix_now()));
    reserving.await.unwrap_or(false)
}

/// Leave to send so many bytes. What was not sent is given back to the month when it is dropped.
#[derive(Debug)]
pub struct Grant {
    manners: Option<Arc<Manners>>,
    left: u64,
}

impl Grant {
    /// How much is sent at once.
    pub fn piece_bytes(&self) -> usize {
        let rate = self
            .manners
            .as_ref()
            .and_then(|one| one.upload_rate.as_ref());
        let bytes = rate.map_or(PIECE_BYTES_MAX, |rate| rate.piece_bytes);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Waits until a piece may be sent.
    pub async fn take(&mut self, bytes: usize) {
        let bytes = (bytes as u64).min(self.left);
        if let Some(manners) = &self.manners {
            if let Some(rate) = &manners.upload_rate {
                rate.take(bytes).await;
            }
            manners.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.left -= bytes;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(manners) = self.manners.take().filter(|_| self.left > 0) {
            manners.waiting.fetch_sub(self.left, Ordering::Relaxed);
            manners.month.refund(Way::Up, self.left, unix_now());
        }
    }
}

/// How fast blocks are taken; the owner's own fetches pass freely unless the owner says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Downloads {
    rate: Option<Arc<Rate>>,
}

impl Downloads {
    pub(super) fn new(rate: Option<Arc<Rate>>) -> Self {
        Self { rate }
    }

    /// Waits until so many bytes may be asked for.
    pub async fn take(&self, bytes: u32) {
        if let Some(rate) = &self.rate {
            rate.take(bytes.into()).await;
        }
    }
}

/// Bytes that were granted and wait to be sent.
pub(super) type Waiting = AtomicU64;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::{PauseConfig, ShareConfig, Size};
    use super::*;
    use crate::home::Home;

    fn manners(share: ShareConfig) -> (tempfile::TempDir, Arc<Manners>) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let manners = Manners::open(&home, share, PauseConfig::default(), true);
        (dir, manners)
    }

    fn uploaded(manners: &Manners) -> u64 {
        manners.status().month.uploaded_bytes
    }

    #[tokio::test]
    async fn what_is_not_sent_is_not_counted() {
        let (_dir, manners) = manners(ShareConfig {
            upload_month: Some(Size(1_000_000)),
            ..ShareConfig::default()
        });
        let uploads = manners.uploads();
        let mut grant = uploads.admit(600_000).await.unwrap();
        assert_eq!(uploads.admit(600_000).await.unwrap_err(), Status::Lacks);
        grant.take(100_000).await;
        drop(grant);
        assert_eq!(uploaded(&manners), 100_000);
        let mut grant = uploads.admit(900_000).await.unwrap();
        grant.take(900_000).await;
        drop(grant);
        assert_eq!(uploaded(&manners), 1_000_000);
        assert!(!manners.gives());
        assert_eq!(uploads.admit(1).await.unwrap_err(), Status::Lacks);
    }

    #[tokio::test]
    async fn more_than_the_rate_allows_soon_is_put_off() {
        let (_dir, manners) = manners(ShareConfig {
            upload_rate: Some(Size(32 << 10)),
            ..ShareConfig::default()
        });
        let uploads = manners.uploads();
        let waits = uploads.admit(1 << 20).await.unwrap();
        assert_eq!(uploads.admit(1).await.unwrap_err(), Status::Busy);
        drop(waits);
        assert!(uploads.admit(1).await.is_ok());
        manners.pause(None).unwrap();
        assert_eq!(uploads.admit(1).await.unwrap_err(), Status::Lacks);
        manners.resume().unwrap();
        assert!(uploads.admit(1).await.is_ok());
    }

    /// Never faster than the cap; how much slower is the machine's affair.
    #[tokio::test]
    async fn a_rate_is_never_passed() {
        for bytes_per_second in [32 << 10, 1 << 20, 300 << 20] {
            let rate = Rate::new(bytes_per_second);
            let begin = Instant::now();
            let bytes = bytes_per_second / 4;
            rate.take(bytes).await;
            let burst = bytes_per_second / BURST_PER_SECOND;
            let allowed = (bytes - burst) as f64 / bytes_per_second as f64;
            let took = begin.elapsed().as_secs_f64();
            assert!(took >= allowed * 0.99, "{bytes_per_second}: {took} s");
        }
    }

    #[tokio::test]
    async fn whoever_waits_gets_a_turn() {
        let rate = Arc::new(Rate::new(1 << 20));
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut lanes = tokio::task::JoinSet::new();
        for lane in 0..4 {
            let (rate, order) = (rate.clone(), order.clone());
            lanes.spawn(async move {
                for _ in 0..8 {
                    rate.take(16 << 10).await;
                    order.lock().unwrap().push(lane);
                }
            });
        }
        lanes.join_all().await;
        let order = order.lock().unwrap();
        let (first, _) = order.split_at(16);
        for lane in 0..4 {
            let turns = first.iter().filter(|one| **one == lane).count();
            assert!((2..=6).contains(&turns), "{order:?}");
        }
    }
}
