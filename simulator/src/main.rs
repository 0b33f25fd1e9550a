//! `qk-simulator`: plays scenarios and says what happened.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use qk_simulator::{Report, Scenario, Size, Without, campaign, compare, figures, run_telling};

/// Plays scenarios of the qk protocol in virtual time.
#[derive(Debug, Parser)]
#[command(name = "qk-simulator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plays one scenario to its end and checks how it ended.
    #[command(
        after_help = "Example:\n  qk-simulator run simulator/scenarios/smoke.toml --seed 7 --json\n\nExit codes: 0 every check held, 1 one failed or the scenario cannot be read, 2 usage."
    )]
    Run {
        #[command(flatten)]
        played: Played,
        /// Everything random is drawn from it: the same seed gives the same trace_hash.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Print one JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Plays one scenario with many seeds, one thread a seed.
    #[command(
        after_help = "Example:\n  qk-simulator campaign simulator/scenarios/hostile.toml --seeds 1000\n\nEach failure is printed with the command that plays it again."
    )]
    Campaign {
        #[command(flatten)]
        played: Played,
        /// How many seeds.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first of them.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Threads; as many as there are processors unless given.
        #[arg(long)]
        threads: Option<usize>,
        /// Print one JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Plays what `REPORT.md` tells and writes it, with plots and a page.
    #[command(
        after_help = "Example:\n  qk-simulator report --size small --dir /tmp/simulator\n\nThe directory holds `scenarios/`; `REPORT.md` and `report/` are written into it."
    )]
    Report {
        /// How many runs: small in seconds, medium in minutes, full in an hour or more.
        #[arg(long, default_value = "medium")]
        size: SizeName,
        /// Where the scenarios are and the report goes.
        #[arg(long, default_value = "simulator")]
        dir: PathBuf,
        /// Takes runs from this file where it has them, and adds the others: what was stopped goes on.
        #[arg(long, value_name = "FILE")]
        runs: Option<PathBuf>,
    },
    /// Shows what differs between two runs, each a file that `run --json` printed.
    #[command(after_help = "Example:\n  qk-simulator compare before.json after.json")]
    Compare {
        /// The first run.
        before: PathBuf,
        /// The second run.
        after: PathBuf,
        /// Print a JSON list instead of lines.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SizeName {
    Small,
    Medium,
    Full,
}

/// What is played.
#[derive(Debug, clap::Args)]
struct Played {
    /// The scenario, a TOML file.
    file: PathBuf,
    /// Switch a defence off: threshold, manifest, verification, mirrors, deadlines, work_digest, escalation.
    #[arg(long, value_name = "DEFENCE", value_parser = Without::ALL)]
    without: Option<String>,
    /// Set a field of the scenario, as `table.field=value`.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// So many times as many servers, laptops and CI clients.
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
}

impl Played {
    fn read(&self) -> anyhow::Result<Scenario> {
        let name = self.file.display();
        let text = std::fs::read_to_string(&self.file).with_context(|| name.to_string())?;
        let mut scenario =
            Scenario::parse_with(&text, &self.set).with_context(|| name.to_string())?;
        if let Some(without) = self.without.as_deref().and_then(Without::only) {
            scenario.without = without;
        }
        if let Some(factor) = self.scale {
            scenario = scenario.scaled(factor);
            scenario.check()?;
        }
        Ok(scenario)
    }

    /// The command that plays it again.
    fn replay(&self, seed: u64) -> String {
        let mut command = format!(
            "cargo run --release -p qk-simulator -- run {} --seed {seed}",
            self.file.display()
        );
        for set in &self.set {
            command += &format!(" --set '{set}'");
        }
        if let Some(without) = &self.without {
            command += &format!(" --without {without}");
        }
        if let Some(factor) = self.scale {
            command += &format!(" --scale {factor}");
        }
        command
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let passed = match Arguments::parse().command {
        Command::Run { played, seed, json } => run_one(&played, seed, json)?,
        Command::Campaign {
            played,
            seeds,
            first,
            threads,
            json,
        } => run_many(&played, first, seeds, threads, json)?,
        Command::Compare {
            before,
            after,
            json,
        } => compare_two(&before, &after, json)?,
        Command::Report { size, dir, runs } => {
            let size = match size {
                SizeName::Small => Size::Small,
                SizeName::Medium => Size::Medium,
                SizeName::Full => Size::Full,
            };
            let program = std::env::current_exe()?;
            let path = figures(&dir, size, &program, runs.as_deref(), &|line| {
                eprintln!("{line}");
            })?;
            println!("{}", path.display());
            true
        }
    };
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_one(played: &Played, seed: u64, json: bool) -> anyhow::Result<bool> {
    let scenario = played.read()?;
    let bar = bar(1000, "{bar:30} {msg}");
    let begun = Instant::now();
    let report = run_telling(&scenario, seed, &mut |progress| {
        let (at, end) = (progress.at.as_secs_f64(), progress.end.as_secs_f64());
        bar.set_position((at / end * 1000.0) as u64);
        let speed = progress.events as f64 / begun.elapsed().as_secs_f64();
        bar.set_message(format!(
            "{:.2} of {:.2} h, {speed:.0} events/s",
            at / 3600.0,
            end / 3600.0
        ));
    })?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    for check in report.failed() {
        eprintln!("failed: {} ({})", check.name, check.detail);
    }
    if !report.passed() {
        eprintln!("replay: {}", played.replay(seed));
    }
    Ok(report.passed())
}

fn run_many(
    played: &Played,
    first: u64,
    seeds: u64,
    threads: Option<usize>,
    json: bool,
) -> anyhow::Result<bool> {
    let scenario = played.read()?;
    let threads = match threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let bar = bar(seeds, "{bar:30} {pos} of {len} seeds, {eta} left");
    let done = campaign(&scenario, first, seeds, threads, &|done| {
        bar.set_position(done)
    })?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&done)?);
    } else {
        let speed = done.events as f64 / done.wall_seconds;
        println!(
            "{} seeds, {} failed, {:.0} s, {speed:.0} events/s",
            done.seeds,
            done.failures.len(),
            done.wall_seconds
        );
    }
    for failure in &done.failures {
        for check in &failure.checks {
            eprintln!(
                "seed {} failed: {} ({})",
                failure.seed, check.name, check.detail
            );
        }
        eprintln!("replay: {}", played.replay(failure.seed));
    }
    Ok(done.failures.is_empty())
}

fn compare_two(before: &Path, after: &Path, json: bool) -> anyhow::Result<bool> {
    let read = |path: &Path| -> anyhow::Result<Report> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    };
    let differences = compare(&read(before)?, &read(after)?);
    if json {
        println!("{}", serde_json::to_string(&differences)?);
        return Ok(true);
    }
    for one in &differences {
        println!("{one}");
    }
    if differences.is_empty() {
        println!("nothing differs");
    }
    Ok(true)
}

/// A bar on a terminal, nothing elsewhere.
fn bar(length: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).expect("the template is right");
    ProgressBar::new(length).with_style(style)
}
