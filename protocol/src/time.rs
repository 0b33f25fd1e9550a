//! Time as an argument, and the one shape of this crate's state machines.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Seconds of a day.
pub const DAY_SECONDS: u64 = 24 * 3600;

/// Seconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This time and `seconds` more; stays at the largest value instead of wrapping.
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this time; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a state machine is told of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since an arbitrary start, never going back: for deadlines.
    pub mono: Duration,
    /// Of the calendar, as the host believes it: for ages of statements.
    pub unix: UnixTime,
}

/// A state machine without I/O: it is told what happened and says what is to be done.
pub trait Machine {
    /// What can happen.
    type In;
    /// What is to be done.
    type Out;

    /// Takes one event and appends what follows from it to `out`.
    fn handle(&mut self, input: Self::In, now: Now, out: &mut Vec<Self::Out>);

    /// When, in [`Now::mono`], the machine wants a tick if nothing else happens before.
    fn deadline(&self) -> Option<Duration>;
}
