//! How fast one blob gets from node to node, beside what else carries files.
//!
//! Everybody carries the same file between the same two processors and writes it to the same disk,
//! in turns, so that what else the machine does hits all alike. Ratios are medians over the rounds.

mod rig;
mod tool;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::rig::{Pull, Rig};
use super::sample::Samples;
use super::svg::{self, Bar};
use super::{Goal, Row};
use crate::cargo;

/// Of the throughput of curl from nginx over HTTPS.
const CURL_MIN: f64 = 0.8;
/// Of the throughput of iroh-blobs.
const IROH_MIN: f64 = 2.0;
/// Of what a transfer without verification reaches.
const VERIFIED_MIN: f64 = 0.9;
/// Times what one of four providers may send.
const FOUR_MIN: f64 = 3.6;
/// Times what three providers need, where a fourth stalls.
const STALL_MAX: f64 = 1.15;
/// Proofs, as a share of the content.
const PROOFS_MAX: f64 = 0.006;
/// What comes twice, as a share of the content.
const DUPLICATES_MAX: f64 = 0.02;
/// Bytes a second of each of several providers: little enough that four are no work for two
/// processors.
const CAP: u64 = 16 << 20;
/// The blob that several providers have takes some seconds at that rate.
const CAPPED_MIB_MAX: u64 = 256;
/// What a provider sends before it stalls: no more than its share of a small blob.
const STALL_AFTER: u64 = 4 << 20;

/// As many lanes to one provider as qk's own download opens at most.
const LANES: &str = "4";

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Beside curl from nginx over HTTPS
    Curl,
    /// Beside iroh-blobs
    Iroh,
    /// Beside the same transfer without verification
    Verify,
    /// From four providers with a cap each
    Providers,
    /// From four providers, one of which stalls
    Stall,
    /// A tool from a cache on the LAN, beside `curl | tar`
    Tool,
    /// The same at 50 Mbit/s and 40 ms
    Slow,
}

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Size of the blob.
    pub mib: u64,
    /// How often each transfer is run.
    pub runs: usize,
    /// Which parts; all where this is empty.
    pub only: Vec<Part>,
    /// `NAME@VERSION` of a crate: the tool.
    pub tool: String,
    /// Where a drawing is put.
    pub svg: PathBuf,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Whether `qk` itself is needed.
    pub fn wants_tool(&self) -> bool {
        self.wants(Part::Tool) || self.wants(Part::Slow)
    }
}

/// Builds what is needed, measures, and draws.
///
/// # Errors
/// When a program that is measured cannot be built, started, or fails.
pub fn rows(qk: &Path, options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let program = cargo::build_beside("qk-bench-transfer")?;
    if [Part::Curl, Part::Iroh, Part::Verify].map(|part| options.wants(part)) != [false; 3] {
        rows.extend(one_provider(&Rig::new(&program, options.mib)?, options)?);
    }
    if options.wants(Part::Providers) || options.wants(Part::Stall) {
        let rig = Rig::new(&program, options.mib.min(CAPPED_MIB_MAX))?;
        rows.extend(several_providers(&rig, options)?);
    }
    if options.wants_tool() {
        rows.extend(tool::rows(qk, &program, options)?);
    }
    Ok(rows)
}

/// The same transfer several times.
struct Series {
    name: &'static str,
    /// In the order in which they ran.
    pulls: Vec<Pull>,
}

impl Series {
    fn new(name: &'static str) -> Self {
        let pulls = Vec::new();
        Self { name, pulls }
    }

    fn samples(&self, value: impl Fn(&Pull) -> f64) -> Result<Samples> {
        Samples::of(self.pulls.iter().map(value).collect())
    }

    /// Throughput and what it cost.
    fn rows(&self, rig: &Rig) -> Result<Vec<Row>> {
        let name = self.name;
        let rate = self.samples(|pull| rig.mb() / pull.seconds)?;
        let cpu = |value: &dyn Fn(&Pull) -> f64| -> Result<f64> {
            Ok(self.samples(|pull| value(pull) / rig.mb() * 1e3)?.median())
        };
        let (reader, provider) = (
            cpu(&|pull| pull.reader_cpu)?,
            cpu(&|pull| pull.provider_cpu)?,
        );
        Ok(vec![
            Row::new(format!("{name}_rate"), rate.median(), "MB/s"),
            Row::new(format!("{name}_rate_min"), rate.min(), "MB/s"),
            Row::new(format!("{name}_rate_max"), rate.max(), "MB/s"),
            Row::new(format!("{name}_reader_cpu"), reader, "s/GB"),
            Row::new(format!("{name}_provider_cpu"), provider, "s/GB"),
        ])
    }

    /// How many times faster this is than the other one, round by round.
    fn faster(&self, other: &Self, goal: Goal) -> Result<Vec<Row>> {
        let pairs = self.pulls.iter().zip(&other.pulls);
        let ratios = Samples::of(
            pairs
                .map(|(ours, its)| its.seconds / ours.seconds)
                .collect(),
        )?;
        let name = format!("{}_rate/{}_rate", self.name, other.name);
        let cpu = |pull: &Pull| pull.reader_cpu + pull.provider_cpu;
        let (ours, its) = (self.samples(cpu)?.median(), other.samples(cpu)?.median());
        Ok(vec![
            Row::new(name.clone(), ratios.median(), "ratio").with_goal(goal),
            Row::new(format!("{name}_min"), ratios.min(), "ratio"),
            Row::new(format!("{name}_max"), ratios.max(), "ratio"),
            Row::new(
                format!("{}_cpu/{}_cpu", self.name, other.name),
                ours / its,
                "ratio",
            ),
        ])
    }
}

/// Who carries a file from one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Qk,
    Curl,
    Unverified,
    Iroh,
}

impl Carrier {
    fn name(self) -> &'static str {
        match self {
            Self::Qk => "transfer",
            Self::Curl => "curl",
            Self::Unverified => "unverified",
            Self::Iroh => "iroh",
        }
    }

    /// How much faster than this one qk is to be; none for itself.
    fn goal(self) -> Option<Goal> {
        match self {
            Self::Qk => None,
            Self::Curl => Some(Goal::AtLeast(CURL_MIN)),
            Self::Unverified => Some(Goal::AtLeast(VERIFIED_MIN)),
            Self::Iroh => Some(Goal::AtLeast(IROH_MIN)),
        }
    }
}

/// One provider, as fast as it goes, in turns with the others.
///
/// Each round begins with another one of them: who writes where the one before has just given its
/// memory back finds pages at hand, and on a virtual machine that is half of the time.
fn one_provider(rig: &Rig, options: &Options) -> Result<Vec<Row>> {
    let mut provider = rig.provider(&[])?;
    let nginx = match options.wants(Part::Curl) {
        true => Some(rig.nginx()?),
        false => None,
    };
    let iroh = match options.wants(Part::Iroh) {
        true => Some(rig.iroh(&cargo::build_beside("qk-bench-iroh")?)?),
        false => None,
    };
    let mut all = vec![(Carrier::Qk, Series::new(Carrier::Qk.name()))];
    let rivals = [
        (Carrier::Curl, Part::Curl),
        (Carrier::Unverified, Part::Verify),
        (Carrier::Iroh, Part::Iroh),
    ];
    for (carrier, part) in rivals {
        if options.wants(part) {
            all.push((carrier, Series::new(carrier.name())));
        }
    }
    let carriers = all.len();
    for round in 0..options.runs {
        eprintln!(
            "{} MiB from one provider, round {} of {}",
            rig.mib,
            round + 1,
            options.runs
        );
        for turn in 0..carriers {
            let (carrier, series) = &mut all[(round + turn) % carriers];
            let pull = match (carrier, &nginx, &iroh) {
                (Carrier::Curl, Some(nginx), _) => rig.curl(nginx)?,
                (Carrier::Iroh, _, Some(iroh)) => iroh.get(rig)?,
                (Carrier::Unverified, ..) => {
                    rig.get(&mut [&mut provider], &["--no-verify", "--lanes", LANES])?
                }
                _ => rig.get(&mut [&mut provider], &[])?,
            };
            series.pulls.push(pull);
        }
    }
    let ours = &all[0].1;
    let mut rows = Vec::new();
    for (carrier, series) in &all {
        rows.extend(series.rows(rig)?);
        if let Some(goal) = carrier.goal() {
            rows.extend(ours.faster(series, goal)?);
        }
    }
    rows.extend(overhead(ours, rig)?);
    let rate = |series: &Series| series.samples(|pull| rig.mb() / pull.seconds);
    let rates = all
        .iter()
        .map(|(_, series)| Ok((series.name, rate(series)?)));
    draw(rig, options, &rates.collect::<Result<Vec<_>>>()?)?;
    Ok(rows)
}

/// Proofs and duplicates, as shares of the content.
fn overhead(series: &Series, rig: &Rig) -> Result<Vec<Row>> {
    let share = |bytes: u64| bytes as f64 / rig.bytes() as f64;
    let proofs = series.samples(|pull| share(pull.wire_bytes.saturating_sub(pull.bytes)))?;
    let twice = series.samples(|pull| share(pull.sent_bytes.saturating_sub(pull.wire_bytes)))?;
    let name = series.name;
    let proofs = Row::new(format!("{name}_proofs"), proofs.max(), "ratio");
    let twice = Row::new(format!("{name}_duplicates"), twice.max(), "ratio");
    Ok(vec![
        proofs.with_goal(Goal::AtMost(PROOFS_MAX)),
        twice.with_goal(Goal::AtMost(DUPLICATES_MAX)),
    ])
}

/// Providers with a cap each: all of four, three alone, and three beside one that stalls.
fn several_providers(rig: &Rig, options: &Options) -> Result<Vec<Row>> {
    let cap = CAP.to_string();
    let capped = ["--cap", &cap];
    let after = STALL_AFTER.to_string();
    let stalling = [&capped[..], &["--stall-after", &after]].concat();
    let mut providers = (0..4)
        .map(|_| rig.provider(&capped))
        .collect::<Result<Vec<_>>>()?;

    let (mut four, mut three) = (
        Series::new("four_providers"),
        Series::new("three_providers"),
    );
    let mut stall = Series::new("one_of_four_stalls");
    let mut stalled = 0;
    for round in 1..=options.runs {
        eprintln!(
            "{} MiB from several providers, round {round} of {}",
            rig.mib, options.runs
        );
        let mut all: Vec<_> = providers.iter_mut().collect();
        if options.wants(Part::Providers) {
            four.pulls.push(rig.get(&mut all, &[])?);
        }
        if options.wants(Part::Stall) {
            three.pulls.push(rig.get(&mut all[..3], &[])?);
            // It stalls once, so that each round has one of its own.
            let mut stalls = rig.provider(&stalling)?;
            all[3] = &mut stalls;
            stall.pulls.push(rig.get(&mut all, &[])?);
            stalled += u32::from(rig::sent(all[3])? >= STALL_AFTER);
        }
    }

    let mut rows = Vec::new();
    if options.wants(Part::Providers) {
        rows.extend(four.rows(rig)?);
        let times = four.samples(|pull| rig.bytes() as f64 / pull.seconds / CAP as f64)?;
        let goal = Goal::AtLeast(FOUR_MIN);
        let name = "four_providers_rate/one_cap";
        rows.push(Row::new(name, times.median(), "ratio").with_goal(goal));
        rows.push(Row::new(format!("{name}_min"), times.min(), "ratio"));
        rows.push(Row::new(format!("{name}_max"), times.max(), "ratio"));
        rows.extend(overhead(&four, rig)?);
    }
    if options.wants(Part::Stall) {
        let pairs = stall.pulls.iter().zip(&three.pulls);
        let times = pairs.map(|(with, without)| with.seconds / without.seconds);
        let times = Samples::of(times.collect())?;
        let name = "one_of_four_stalls_s/three_providers_s";
        let row = Row::new(name, times.median(), "ratio");
        rows.extend(three.rows(rig)?);
        rows.push(row.with_goal(Goal::AtMost(STALL_MAX)));
        // Where nobody asks the one that stalls, the ratio says nothing.
        let share = f64::from(stalled) / options.runs as f64;
        let fired = Row::new("one_of_four_stalled", share, "of rounds");
        rows.push(fired.with_goal(Goal::AtLeast(1.0)));
        rows.push(Row::new(format!("{name}_min"), times.min(), "ratio"));
        rows.push(Row::new(format!("{name}_max"), times.max(), "ratio"));
        rows.extend(overhead(&stall, rig)?);
    }
    Ok(rows)
}

fn draw(rig: &Rig, options: &Options, all: &[(&str, Samples)]) -> Result<()> {
    let bars: Vec<_> = all
        .iter()
        .map(|(name, values)| Bar {
            name,
            values,
            ours: *name == "transfer",
        })
        .collect();
    let title = format!("{} MiB into a file, one provider, loopback", rig.mib);
    let path = &options.svg;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, svg::bars(&title, "MB/s", &bars))
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("Drawn to {}", path.display());
    Ok(())
}
