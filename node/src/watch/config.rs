//! What a volunteer configures: `[verify]`, with what the command line says before it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use qk_protocol::watch::budget::{Budget, Hours};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::machine::processors;
use crate::manners::Size;

/// What a rebuild may take on the disk unless its owner says otherwise.
const DISK_BYTES: u64 = 10 << 30;
/// Less than this no crate builds in.
const DISK_BYTES_MIN: u64 = 64 << 20;
/// How long each phase of a rebuild may take unless its owner says otherwise, and at most.
const TIME_LIMIT_SECONDS: u64 = 3600;
const TIME_LIMIT_SECONDS_MAX: u64 = 24 * 3600;
/// How often a range of the index is looked through unless its owner says otherwise, and at most.
const EVERY_SECONDS: u64 = 60;
const EVERY_SECONDS_MAX: u64 = 24 * 3600;
/// More than any machine has in a day.
const CPU_HOURS_MAX: f64 = 100_000.0;

/// `[verify]` in `config.toml`, and the same on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// Hours of all processors together that rebuilds may take in a day (UTC).
    pub cpu_hours: Option<CpuHours>,
    /// Processors that a rebuild may use at once; all if not set.
    pub jobs: Option<u32>,
    /// Bytes that a rebuild may take on the disk.
    pub disk: Option<Size>,
    /// Hours of the day, in local time, such as `22-06`.
    pub hours: Option<Hours>,
    /// Only while the load of the last minute is at most half the processors.
    pub idle: Option<bool>,
    /// How long each phase of a rebuild may take.
    pub time_limit: Option<Time>,
    /// How often a range of the index is looked through for what is new.
    pub every: Option<Time>,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What is given.
    pub budget: Budget,
    /// How often a range of the index is looked through.
    pub every: Duration,
}

impl VerifyConfig {
    /// With what a command line says, each member of which stands before this one's.
    #[must_use]
    pub fn with(self, flags: &Self) -> Self {
        Self {
            cpu_hours: flags.cpu_hours.or(self.cpu_hours),
            jobs: flags.jobs.or(self.jobs),
            disk: flags.disk.or(self.disk),
            hours: flags.hours.or(self.hours),
            idle: flags.idle.or(self.idle),
            time_limit: flags.time_limit.or(self.time_limit),
            every: flags.every.or(self.every),
        }
    }

    /// With defaults for what is not set; `free_bytes` stay free on the disk.
    ///
    /// # Errors
    /// Names the setting that cannot work, and what it may be.
    pub fn settings(&self, free_bytes: u64) -> Result<Settings, String> {
        let processors = processors();
        let jobs = self.jobs.unwrap_or(processors);
        if !(1..=processors).contains(&jobs) {
            return Err(format!(
                "--jobs (verify.jobs) is {jobs}: from 1 to {processors}, the processors of this machine"
            ));
        }
        let disk_bytes = self.disk.map_or(DISK_BYTES, |disk| disk.0);
        if disk_bytes < DISK_BYTES_MIN {
            return Err(format!(
                "--disk (verify.disk) is {disk_bytes} bytes: at least 64 MiB, in which a small crate builds"
            ));
        }
        let time = |name: &str, time: Option<Time>, default: u64, max: u64| {
            let seconds = time.map_or(default, |time| time.0);
            match (1..=max).contains(&seconds) {
                true => Ok(seconds),
                false => Err(format!("{name} is {seconds} s: from 1s to {}h", max / 3600)),
            }
        };
        let limit = time(
            "--time-limit (verify.time_limit)",
            self.time_limit,
            TIME_LIMIT_SECONDS,
            TIME_LIMIT_SECONDS_MAX,
        )?;
        let every = time(
            "--every (verify.every)",
            self.every,
            EVERY_SECONDS,
            EVERY_SECONDS_MAX,
        )?;
        Ok(Settings {
            budget: Budget {
                cpu_seconds: self.cpu_hours.map(|hours| hours.0),
                jobs,
                disk_bytes,
                free_bytes,
                hours: self.hours,
                idle: self.idle.unwrap_or(false),
                time_limit_seconds: limit,
            },
            every: Duration::from_secs(every),
        })
    }
}

/// Hours of processors, kept in seconds: `4`, `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuHours(pub u64);

impl CpuHours {
    fn of(hours: f64) -> Option<Self> {
        let seconds = (hours * 3600.0).round();
        let good = hours.is_finite() && seconds >= 1.0 && hours <= CPU_HOURS_MAX;
        good.then_some(Self(seconds as u64))
    }
}

impl FromStr for CpuHours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hours = text.trim().parse().ok().and_then(Self::of);
        hours.ok_or_else(|| format!("{text:?} is no hours in a day such as 4 or 0.5, more than 0"))
    }
}

impl Serialize for CpuHours {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0 as f64 / 3600.0)
    }
}

impl<'de> Deserialize<'de> for CpuHours {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = CpuHours;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("hours in a day such as 4 or 0.5, more than 0")
            }

            fn visit_f64<E: de::Error>(self, hours: f64) -> Result<CpuHours, E> {
                CpuHours::of(hours).ok_or_else(|| E::custom(format!("{hours} hours in a day")))
            }

            fn visit_i64<E: de::Error>(self, hours: i64) -> Result<CpuHours, E> {
                self.visit_f64(hours as f64)
            }

            fn visit_u64<E: de::Error>(self, hours: u64) -> Result<CpuHours, E> {
                self.visit_f64(hours as f64)
            }
        }
        from.deserialize_any(Numbers)
    }
}

/// A time such as `90s`, `30m`, `2h` or `1d`, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not = || format!("{text:?} is no time such as 90s, 30m, 2h or 1d");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| not())?;
        let factor = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(not()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(not)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_before_the_configuration_and_defaults_behind() {
        let config: VerifyConfig =
            toml::from_str("cpu_hours = 1.5\nhours = \"22-06\"\ndisk = \"2 GiB\"\nidle = true\ntime_limit = \"20m\"").unwrap();
        let flags = VerifyConfig {
            cpu_hours: Some("0.25".parse().unwrap()),
            jobs: Some(1),
            ..VerifyConfig::default()
        };
        let settings = config.with(&flags).settings(7).unwrap();
        let expected = Budget {
            cpu_seconds: Some(900),
            jobs: 1,
            disk_bytes: 2 << 30,
            free_bytes: 7,
            hours: Some("22-06".parse().unwrap()),
            idle: true,
            time_limit_seconds: 1200,
        };
        assert_eq!(settings.budget, expected);
        assert_eq!(settings.every, Duration::from_secs(60));
    }

    #[test]
    fn what_cannot_work_is_named_with_what_may_be() {
        let of = |text: &str| {
            toml::from_str::<VerifyConfig>(text)
                .unwrap()
                .settings(0)
                .unwrap_err()
        };
        assert!(of("jobs = 0").starts_with("--jobs (verify.jobs) is 0: from 1 to "));
        assert!(of("jobs = 100000").contains("the processors of this machine"));
        assert!(of("disk = 1000").contains("--disk") && of("disk = 1000").contains("64 MiB"));
        assert!(of("time_limit = \"0s\"").contains("--time-limit"));
        assert!(of("time_limit = \"2d\"").contains("from 1s to 24h"));
        assert!(of("every = \"0s\"").contains("--every"));
        for text in [
            "cpu_hours = 0",
            "cpu_hours = -1",
            "cpu_hours = \"a\"",
            "hours = \"25-3\"",
            "battery = true",
            "idle = 1",
        ] {
            assert!(toml::from_str::<VerifyConfig>(text).is_err(), "{text}");
        }
        for text in ["0", "-2", "NaN", "inf", "1e9", "", "4h"] {
            assert!(text.parse::<CpuHours>().is_err(), "{text}");
        }
    }
}
