//! `qk-simulator`: plays a scenario and says what happened.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use qk_simulator::{Scenario, run};

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
        after_help = "Example:\n  qk-simulator run simulator/scenarios/one-fetch.toml --seed 7 --json\n\nExit codes: 0 every check held, 1 one failed or the scenario cannot be read, 2 usage."
    )]
    Run {
        /// The scenario, a TOML file.
        file: PathBuf,
        /// Everything random is drawn from it: the same seed gives the same trace_hash.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Print one JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let Command::Run { file, seed, json } = Arguments::parse().command;
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let report = run(&Scenario::parse(&text)?, seed)?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
