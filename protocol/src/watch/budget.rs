//! What a volunteer gives: when a rebuild may begin, and when it has to stop.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::{DAY_SECONDS, UnixTime};

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;
/// Load beyond this share of the processors is somebody at work, in percent.
pub const IDLE_PERCENT_MAX: u64 = 50;

/// Hours of the day, as the clock on the wall shows them: `22-06` or `22:30-6:15`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Minute of the day at which they begin.
    from: u16,
    /// Minute of the day before which they end; less than `from` where midnight is between.
    to: u16,
}

/// What a volunteer gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Time of all processors together that rebuilds may take in a day (UTC); as much as there is
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<u64>,
    /// Processors that a rebuild may use at once.
    pub jobs: u32,
    /// Bytes that a rebuild may take on the disk.
    pub disk_bytes: u64,
    /// Bytes that stay free on the disk.
    pub free_bytes: u64,
    /// Only in these hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub hours: Option<Hours>,
    /// Only while the machine has little else to do.
    pub idle: bool,
    /// Time on the clock of each phase of a rebuild.
    pub time_limit_seconds: u64,
}

/// How things are on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Minute of the day in local time.
    pub minute: u16,
    /// Mean of the last minute of tasks that run or want to, in hundredths.
    pub load_percent: u64,
    /// Processors.
    pub processors: u32,
    /// Bytes that are free on the disk.
    pub free_bytes: u64,
    /// Whether background work rests, because of battery, a metered link or a request.
    pub paused: bool,
}

/// Why nothing is rebuilt now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// Background work rests.
    Paused,
    /// It is not the time of the day.
    Hours,
    /// Today's time of the processors is used up.
    Cpu,
    /// The machine is at work for somebody.
    Busy,
    /// The disk is nearly full.
    Disk,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "this machine rests: on battery, a metered link, or a pause",
            Self::Hours => "it is outside the hours that were given",
            Self::Cpu => "today's CPU hours are used up",
            Self::Busy => "the machine is busy with other things",
            Self::Disk => "the disk is nearly full",
        })
    }
}

impl Budget {
    /// Why no rebuild may begin; it may, if nothing is named.
    pub fn waits(&self, spent: &Spent, now: &Circumstances, at: UnixTime) -> Vec<Wait> {
        let mut waits = self.stops(now);
        if self.cpu_left(spent, at) == Some(0) {
            waits.push(Wait::Cpu);
        }
        let processors = u64::from(now.processors.max(1));
        if self.idle && now.load_percent > processors * IDLE_PERCENT_MAX {
            waits.push(Wait::Busy);
        }
        waits.sort_unstable();
        waits
    }

    /// Why a rebuild that has begun has to stop; it need not, if nothing is named. Not for its share of
    /// the processors: what it takes beyond that is taken off the next days, or long builds would be
    /// begun again and again in vain. Not for the load, which is its own.
    pub fn stops(&self, now: &Circumstances) -> Vec<Wait> {
        let outside = self.hours.is_some_and(|hours| !hours.contains(now.minute));
        let stops = [
            now.paused.then_some(Wait::Paused),
            outside.then_some(Wait::Hours),
            (now.free_bytes < self.free_bytes).then_some(Wait::Disk),
        ];
        stops.into_iter().flatten().collect()
    }

    /// Whole seconds of the processors that are left today; `None` where there is no limit.
    pub fn cpu_left(&self, spent: &Spent, at: UnixTime) -> Option<u64> {
        let limit = millis(self.cpu_seconds?);
        Some(limit.saturating_sub(spent.on(day(at), self)) / 1000)
    }
}

/// What was taken of the processors, on the last day on which something was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spent {
    day: u64,
    cpu_millis: u64,
}

impl Spent {
    pub(super) fn spend(&mut self, cpu_millis: u64, budget: &Budget, at: UnixTime) {
        // A clock that goes back gives nothing back.
        let day = day(at).max(self.day);
        *self = Self {
            day,
            cpu_millis: self.on(day, budget).saturating_add(cpu_millis),
        };
    }

    /// Whole seconds of the processors that count for today: those of today, and what the days before took
    /// beyond theirs.
    pub fn cpu_seconds(&self, budget: &Budget, at: UnixTime) -> u64 {
        self.on(day(at), budget) / 1000
    }

    /// Milliseconds that count for a day.
    fn on(&self, day: u64, budget: &Budget) -> u64 {
        let days = day.saturating_sub(self.day);
        match budget.cpu_seconds {
            Some(limit) => {
                let given = millis(limit).saturating_mul(days);
                self.cpu_millis.saturating_sub(given)
            }
            None if days == 0 => self.cpu_millis,
            None => 0,
        }
    }
}

fn millis(seconds: u64) -> u64 {
    seconds.saturating_mul(1000)
}

fn day(at: UnixTime) -> u64 {
    at.0 / DAY_SECONDS
}

impl Hours {
    /// Whether a minute of the day is one of them.
    pub fn contains(&self, minute: u16) -> bool {
        match self.from <= self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not = || format!("{text:?} is no hours of the day such as 22-06 or 22:30-6:15");
        let (from, to) = text.split_once('-').ok_or_else(not)?;
        let from = minute(from).filter(|from| *from < DAY_MINUTES);
        let (from, to) = from.zip(minute(to)).ok_or_else(not)?;
        if from == to {
            return Err(format!(
                "{text:?} begins when it ends: leave it away for all day"
            ));
        }
        Ok(Self { from, to })
    }
}

/// The minute of the day that a text such as `6`, `06` or `22:30` means; 24 is the end of the day.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':').unwrap_or((text.trim(), "0"));
    let digits = |text: &str| {
        let plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = digits(hour).zip(digits(minute))?;
    let all = hour * 60 + minute;
    (minute < 60 && all <= DAY_MINUTES).then_some(all)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            to / 60,
            to % 60
        )
    }
}

impl Serialize for Hours {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
