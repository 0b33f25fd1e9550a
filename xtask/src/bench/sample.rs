//! The same thing several times.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo::describe;

/// What several runs took, in seconds, in ascending order; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Calls `once` `runs` times; it returns the seconds that count, without its own preparations.
    ///
    /// # Errors
    /// The first error of `once`; that nothing was to be run.
    pub fn take(runs: usize, mut once: impl FnMut() -> Result<f64>) -> Result<Self> {
        Self::of((0..runs).map(|_| once()).collect::<Result<_>>()?)
    }

    /// What was measured already.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn of(mut seconds: Vec<f64>) -> Result<Self> {
        ensure!(!seconds.is_empty(), "at least one run is needed");
        seconds.sort_by(f64::total_cmp);
        Ok(Self(seconds))
    }

    /// The middle one, or the mean of the two in the middle. Not the mean: one run during which the
    /// machine did something else would move it.
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 {
            self.0[middle]
        } else {
            f64::midpoint(self.0[middle - 1], self.0[middle])
        }
    }

    /// The fastest one.
    pub fn min(&self) -> f64 {
        self.0[0]
    }

    /// The smallest one that this share of all does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil().max(1.0) as usize;
        self.0[rank.min(self.0.len()) - 1]
    }

    /// The slowest one.
    pub fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// Seconds from starting the program to its end, its standard output dropped.
///
/// # Errors
/// When it cannot be started or fails; what it wrote to standard error is in the message.
pub fn seconds(command: &mut Command) -> Result<f64> {
    let line = describe(command);
    let start = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot run `{line}`"))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "`{line}` failed: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(seconds)
}

/// Seconds of processor time, in user and kernel mode, of all children that have ended and been
/// waited for, and of theirs. In steps of 10 ms.
///
/// # Errors
/// When `/proc` is not there or not as Linux writes it.
pub fn cpu_of_children() -> Result<f64> {
    // proc_pid_stat(5) numbers cutime 16 and cstime 17.
    ticks("self", 16)
}

/// Seconds of processor time of a process so far, its children not counted. In steps of 10 ms.
///
/// # Errors
/// When it is gone, or `/proc` is not as Linux writes it.
pub fn cpu_of(process: u32) -> Result<f64> {
    // utime is 14 and stime 15.
    ticks(&process.to_string(), 14)
}

/// The sum of two fields of a process, the first of this number, in seconds.
fn ticks(process: &str, first: usize) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The program's name, in brackets, may hold anything. The first field after it is 3.
    let (_, fields) = stat.rsplit_once(") ").context(path)?;
    let ticks = fields.split(' ').skip(first - 3).take(2);
    let ticks = ticks.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        let mut values = values.iter();
        Samples::take(values.len(), || Ok(*values.next().unwrap())).unwrap()
    }

    #[test]
    fn the_median_ignores_the_outlier() {
        assert_eq!(samples(&[9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 90.0]).median(), 3.0);
        let all = samples(&[3.0, 1.0, 2.0]);
        assert_eq!((all.min(), all.max()), (1.0, 3.0));
        assert!(Samples::take(0, || Ok(1.0)).is_err());
    }

    #[test]
    fn a_program_that_fails_is_no_measurement() {
        assert!(seconds(Command::new("sh").args(["-c", "exit 0"])).unwrap() > 0.0);
        let error = seconds(Command::new("sh").args(["-c", "echo no >&2; exit 11"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c echo no >&2; exit 11` failed: exit status: 11\nno\n"
        );
    }
}
