//! What crossed the wire in this calendar month, in a file that survives a kill.
//!
//! The file is ahead of the truth: it says what was counted plus a step that may be used before it
//! is written again. A process that is killed therefore counts up to one step too much, and never
//! too little: a cap holds through any number of kills. One that ends in order writes what was.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use super::replace_file;

/// Bytes that may be used before the file is written again, where no cap asks for less.
const STEP_MAX: u64 = 64 << 20;
/// The smallest such step.
const STEP_MIN: u64 = 64 << 10;
/// With less left than this, or a 64th of the cap, a month is over: it would be ranges that do not
/// fit any more.
const LEFT_MIN: u64 = 1 << 20;
/// A file longer than this is not ours.
const FILE_BYTES_MAX: u64 = 4096;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Given to others.
    Up,
    /// Taken from others.
    Down,
}

/// Bytes of one month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Traffic {
    /// Given to others.
    pub uploaded_bytes: u64,
    /// Taken from others.
    pub downloaded_bytes: u64,
}

/// A month of the calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Date {
    year: u64,
    month: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    #[serde(flatten)]
    date: Date,
    #[serde(flatten)]
    traffic: Traffic,
}

/// The counter of a running node.
#[derive(Debug)]
pub(crate) struct Month {
    path: PathBuf,
    caps: [Option<u64>; 2],
    step: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    counted: Counted,
    /// What the file says, which is never less.
    written: Counted,
}

impl Month {
    /// Continues the count in the file at `path`. One that cannot be read begins anew, and says so.
    pub(crate) fn open(path: PathBuf, up: Option<u64>, down: Option<u64>, now: UnixTime) -> Self {
        let date = Date::of(now);
        let fresh = Counted {
            date,
            traffic: Traffic::default(),
        };
        let counted = match read(&path) {
            Ok(Some(counted)) if counted.date >= date => counted,
            Ok(_) => fresh,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "this month's bytes are counted anew");
                fresh
            }
        };
        let smallest = [up, down].into_iter().flatten().min();
        let step = smallest.map_or(STEP_MAX, |cap| (cap / 64).clamp(STEP_MIN, STEP_MAX));
        Self {
            path,
            caps: [up, down],
            step,
            state: Mutex::new(State {
                counted,
                written: counted,
            }),
        }
    }

    /// Counts bytes that are about to go, unless they would pass the cap or cannot be written down.
    /// It may write a file: off the reactor.
    pub(crate) fn reserve(&self, way: Way, bytes: u64, now: UnixTime) -> bool {
        let mut state = self.state(now);
        let Some(counted) = self.counted_with(&state, way, bytes) else {
            return false;
        };
        let written = self.write_ahead(&mut state, counted);
        // Without a cap nothing depends on the file.
        let goes = written.is_ok() || way.cap(self.caps).is_none();
        if goes {
            state.counted = counted;
        }
        goes
    }

    /// As [`reserve`](Self::reserve), without writing; `None` where that has to be.
    pub(crate) fn reserve_at_once(&self, way: Way, bytes: u64, now: UnixTime) -> Option<bool> {
        let mut state = self.state(now);
        let Some(counted) = self.counted_with(&state, way, bytes) else {
            return Some(false);
        };
        state.covers(&counted).then(|| {
            state.counted = counted;
            true
        })
    }

    /// What is counted with so many bytes more, if the cap allows them.
    fn counted_with(&self, state: &State, way: Way, bytes: u64) -> Option<Counted> {
        let mut counted = state.counted;
        let count = way.of_mut(&mut counted.traffic);
        *count = count.saturating_add(bytes);
        let passes = way.cap(self.caps).is_some_and(|cap| *count > cap);
        (!passes).then_some(counted)
    }

    /// Takes back what was reserved and did not go.
    pub(crate) fn refund(&self, way: Way, bytes: u64, now: UnixTime) {
        let mut state = self.state(now);
        let count = way.of_mut(&mut state.counted.traffic);
        *count = count.saturating_sub(bytes);
    }

    /// Counts bytes that came, whatever the cap says; true if the file has to be written, with
    /// [`write`](Self::write).
    pub(crate) fn count(&self, way: Way, bytes: u64, now: UnixTime) -> bool {
        let mut state = self.state(now);
        let count = way.of_mut(&mut state.counted.traffic);
        *count = count.saturating_add(bytes);
        !state.covers(&state.counted)
    }

    /// Brings the file up to date, if it is behind.
    pub(crate) fn write(&self, now: UnixTime) {
        let mut state = self.state(now);
        let counted = state.counted;
        // A disk that is full is told of by whatever else needs it.
        let _ = self.write_ahead(&mut state, counted);
    }

    /// This month's bytes.
    pub(crate) fn traffic(&self, now: UnixTime) -> Traffic {
        self.state(now).counted.traffic
    }

    /// Whether the cap leaves nothing that is worth asking for.
    pub(crate) fn is_spent(&self, way: Way, now: UnixTime) -> bool {
        let used = way.of(&self.state(now).counted.traffic);
        let Some(cap) = way.cap(self.caps) else {
            return false;
        };
        let least = (cap / 64).clamp(1, LEFT_MIN);
        cap.saturating_sub(used) < least
    }

    /// Writes what was counted and no more: for an end in order.
    pub(crate) fn close(&self, now: UnixTime) {
        let mut state = self.state(now);
        if state.written == state.counted {
            return;
        }
        match write(&self.path, &state.counted) {
            Ok(()) => state.written = state.counted,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "this month's bytes were not written");
            }
        }
    }

    fn write_ahead(&self, state: &mut State, counted: Counted) -> io::Result<()> {
        if state.covers(&counted) {
            return Ok(());
        }
        let (is, says) = (counted.traffic, state.written.traffic);
        // Of the way that did not run out what was written stays, so that neither is written often.
        let ahead = |is: u64, says: u64| match state.written.date == counted.date && is <= says {
            true => says,
            false => is.saturating_add(self.step),
        };
        let ahead = Counted {
            date: counted.date,
            traffic: Traffic {
                uploaded_bytes: ahead(is.uploaded_bytes, says.uploaded_bytes),
                downloaded_bytes: ahead(is.downloaded_bytes, says.downloaded_bytes),
            },
        };
        write(&self.path, &ahead).inspect_err(|error| {
            tracing::warn!(path = %self.path.display(), %error, "this month's bytes were not written");
        })?;
        state.written = ahead;
        Ok(())
    }

    /// The state, of this month. A clock that is set back does not begin one anew.
    fn state(&self, now: UnixTime) -> MutexGuard<'_, State> {
        // Counts are whole after every step under the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let date = Date::of(now);
        if date > state.counted.date {
            state.counted = Counted {
                date,
                traffic: Traffic::default(),
            };
        }
        state
    }
}

impl State {
    /// Whether the file says as much already.
    fn covers(&self, counted: &Counted) -> bool {
        let (is, says) = (counted.traffic, self.written.traffic);
        self.written.date == counted.date
            && is.uploaded_bytes <= says.uploaded_bytes
            && is.downloaded_bytes <= says.downloaded_bytes
    }
}

impl Way {
    fn of(self, traffic: &Traffic) -> u64 {
        match self {
            Self::Up => traffic.uploaded_bytes,
            Self::Down => traffic.downloaded_bytes,
        }
    }

    fn of_mut(self, traffic: &mut Traffic) -> &mut u64 {
        match self {
            Self::Up => &mut traffic.uploaded_bytes,
            Self::Down => &mut traffic.downloaded_bytes,
        }
    }

    fn cap(self, [up, down]: [Option<u64>; 2]) -> Option<u64> {
        match self {
            Self::Up => up,
            Self::Down => down,
        }
    }
}

impl Date {
    /// The month of a moment: whole years since 1970, then whole months of that year.
    fn of(now: UnixTime) -> Self {
        let mut days = now.0 / 86_400;
        // 400 years have 146,097 days: no loop over what a broken clock says.
        let mut year = 1970 + days / 146_097 * 400;
        days %= 146_097;
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        loop {
            let of_year = 365 + u64::from(is_leap(year));
            if days < of_year {
                break;
            }
            days -= of_year;
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for of_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < of_month {
                break;
            }
            days -= of_month;
            month += 1;
        }
        Self { year, month }
    }
}

fn read(path: &Path) -> io::Result<Option<Counted>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if found.len() > FILE_BYTES_MAX => return Err(io::ErrorKind::InvalidData.into()),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(io::Error::other)
}

fn write(path: &Path, counted: &Counted) -> io::Result<()> {
    let bytes = serde_json::to_vec(counted).map_err(io::Error::other)?;
    replace_file(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOVEMBER: UnixTime = UnixTime(1_795_000_000);
    const DECEMBER: UnixTime = UnixTime(1_796_100_000);

    fn open(dir: &tempfile::TempDir, up: Option<u64>) -> Month {
        Month::open(dir.path().join("traffic.json"), up, None, NOVEMBER)
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let date = |seconds| {
            let Date { year, month } = Date::of(UnixTime(seconds));
            (year, month)
        };
        // As `date -u -d @SECONDS` says.
        assert_eq!(date(0), (1970, 1));
        assert_eq!(date(951_782_399), (2000, 2));
        assert_eq!(date(951_868_799), (2000, 2));
        assert_eq!(date(951_868_800), (2000, 3));
        assert_eq!(date(1_709_251_199), (2024, 2));
        assert_eq!(date(1_709_251_200), (2024, 3));
        assert_eq!(date(1_767_225_599), (2025, 12));
        assert_eq!(date(1_767_225_600), (2026, 1));
        assert_eq!(date(4_107_542_399), (2100, 2));
        assert_eq!(date(4_107_542_400), (2100, 3));
        assert_eq!(date(NOVEMBER.0), (2026, 11));
        assert_eq!(date(DECEMBER.0), (2026, 12));
        let _ends = date(u64::MAX);
    }

    #[test]
    fn a_kill_counts_too_much_and_never_too_little() {
        let dir = tempfile::tempdir().unwrap();
        let month = open(&dir, Some(10 << 20));
        assert!(month.reserve(Way::Up, 1_000_000, NOVEMBER));
        month.count(Way::Down, 7, NOVEMBER);
        month.write(NOVEMBER);
        assert_eq!(month.traffic(NOVEMBER).uploaded_bytes, 1_000_000);
        // Without `close`, as after a kill.
        drop(month);
        let month = open(&dir, Some(10 << 20));
        let after_kill = month.traffic(NOVEMBER);
        let ahead = (10 << 20) / 64;
        assert_eq!(after_kill.uploaded_bytes, 1_000_000 + ahead);
        assert_eq!(after_kill.downloaded_bytes, 7 + ahead);
        // Used up in pieces, killed again and again: it never gives more than the cap.
        let mut given = 1_000_000;
        for _ in 0..200 {
            let month = open(&dir, Some(10 << 20));
            while month.reserve(Way::Up, 50_000, NOVEMBER) {
                given += 50_000;
                if given % 3 == 0 {
                    break;
                }
            }
        }
        assert!(given <= 10 << 20, "{given}");
        assert!(given > 2 << 20, "{given}");
    }

    #[test]
    fn what_ends_in_order_is_exact_and_a_new_month_begins_at_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let month = open(&dir, Some(1_000_000));
        assert!(month.reserve(Way::Up, 900_000, NOVEMBER));
        assert!(!month.reserve(Way::Up, 100_001, NOVEMBER));
        assert!(!month.is_spent(Way::Up, NOVEMBER));
        month.refund(Way::Up, 400_000, NOVEMBER);
        month.close(NOVEMBER);
        let month = open(&dir, Some(1_000_000));
        assert_eq!(month.traffic(NOVEMBER).uploaded_bytes, 500_000);
        assert!(month.reserve(Way::Up, 500_000, NOVEMBER));
        assert!(month.is_spent(Way::Up, NOVEMBER));
        assert!(!month.is_spent(Way::Up, DECEMBER));
        assert!(month.reserve(Way::Up, 3, DECEMBER));
        month.close(DECEMBER);
        // A clock that is set back is no new month.
        let month = open(&dir, Some(1_000_000));
        assert_eq!(month.traffic(NOVEMBER).uploaded_bytes, 3);
    }

    #[test]
    fn a_file_that_is_none_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("traffic.json");
        for bytes in [
            &b"{}"[..],
            b"\xff",
            &[b' '; 5000],
            b"{\"year\":1,\"month\":2}",
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(open(&dir, None).traffic(NOVEMBER), Traffic::default());
        }
        // Where nothing can be written down, a cap gives nothing rather than too much.
        let lost = Month::open(
            "/proc/none/traffic.json".into(),
            Some(1 << 30),
            None,
            NOVEMBER,
        );
        assert!(!lost.reserve(Way::Up, 1, NOVEMBER));
        let uncapped = Month::open("/proc/none/traffic.json".into(), None, None, NOVEMBER);
        assert!(uncapped.reserve(Way::Up, 1, NOVEMBER));
    }
}
