//! How long each source of an artifact may take, and all of them together.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::watch::Time;

/// `[fetch]`: how long `qk fetch` may take; without a limit, each source has its own patience.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// All of it, what is built included; `--deadline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// The look-up of a release in the registry's index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<Time>,
    /// The look-up of statements in the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup: Option<Time>,
    /// The download of an artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<Time>,
    /// The build of an artifact that nobody vouches for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Time>,
}

/// Something that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The registry's index.
    Registry,
    /// Who states what in the network.
    Lookup,
    /// Who has the artifact.
    Download,
    /// A build here.
    Build,
}

/// The limits of one call, from its beginning on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    end: Option<Instant>,
    limits: FetchConfig,
}

/// When something has to be done, and whose limit that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Until when.
    pub end: Instant,
    /// The time that was given.
    pub given: Duration,
    /// Whether it is that of all sources together.
    pub is_total: bool,
}

impl Clock {
    /// Starts now.
    pub fn start(limits: FetchConfig) -> Self {
        let now = Instant::now();
        Self {
            end: limits.deadline.map(|time| now + duration(time)),
            limits,
        }
    }

    /// Until when a source has to be done that begins now; none where nobody set a limit.
    pub fn limit(&self, source: Source) -> Option<Limit> {
        self.limit_at(source, Instant::now())
    }

    fn limit_at(&self, source: Source, now: Instant) -> Option<Limit> {
        let own = match source {
            Source::Registry => self.limits.registry,
            Source::Lookup => self.limits.lookup,
            Source::Download => self.limits.download,
            Source::Build => self.limits.build,
        };
        let own = own.map(|time| Limit {
            end: now + duration(time),
            given: duration(time),
            is_total: false,
        });
        let total = self.end.zip(self.limits.deadline);
        let total = total.map(|(end, time)| Limit {
            end,
            given: duration(time),
            is_total: true,
        });
        own.into_iter().chain(total).min_by_key(|limit| limit.end)
    }

    /// Whether no time is left for anything.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }
}

/// A time that is longer than a century is as good as none, and can be added to an instant.
fn duration(time: Time) -> Duration {
    const CENTURY_SECONDS: u64 = 100 * 365 * 86_400;
    Duration::from_secs(time.0.min(CENTURY_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_holds_and_says_whose_it_is() {
        let limits: FetchConfig =
            toml::from_str("deadline = \"60s\"\nlookup = \"20s\"\nbuild = \"2h\"").unwrap();
        let clock = Clock::start(limits);
        let end = clock.end.unwrap();
        let begin = end - Duration::from_secs(60);
        let limit = |source, after| {
            let now = begin + Duration::from_secs(after);
            let limit = clock.limit_at(source, now).unwrap();
            (limit.end - begin, limit.is_total)
        };
        let seconds = Duration::from_secs;
        assert_eq!(limit(Source::Lookup, 0), (seconds(20), false));
        assert_eq!(limit(Source::Lookup, 30), (seconds(50), false));
        assert_eq!(limit(Source::Lookup, 50), (seconds(60), true));
        assert_eq!(limit(Source::Build, 0), (seconds(60), true));
        assert_eq!(limit(Source::Download, 59), (seconds(60), true));
        assert!(!clock.is_over());
        assert_eq!(Clock::default().limit(Source::Build), None);
        let forever = toml::from_str("deadline = \"18446744073709551615s\"").unwrap();
        assert!(!Clock::start(forever).is_over());
        assert!(toml::from_str::<FetchConfig>("deadlin = \"1s\"").is_err());
    }
}
