//! What is built, and rebuilt.

use std::path::PathBuf;

use clap::Args;
use qk_node::manners::Size;
use qk_node::watch::{CpuHours, Time};
use qk_protocol::watch::budget::Hours;

use super::CrateSpec;

/// What changes the bytes, beside crate and version
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct FlagArgs {
    /// Features to turn on, separated by commas or spaces
    #[arg(long, short = 'F', value_delimiter = ',', value_name = "FEATURES")]
    pub features: Vec<String>,
    /// Turn all features on
    #[arg(long)]
    pub all_features: bool,
    /// Turn the default features off
    #[arg(long)]
    pub no_default_features: bool,
}

/// Build a crate in the sandbox; with a network, publish the artifact and what was observed
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk build hexyl\n  qk build hexyl@0.17.0 --output hexyl.tar\n  qk build hexyl --no-publish"
)]
pub(crate) struct BuildArgs {
    /// NAME or NAME@VERSION
    #[arg(value_name = "CRATE[@VER]")]
    pub krate: CrateSpec,
    #[command(flatten)]
    pub flags: FlagArgs,
    /// Target triple [default: this machine's]
    #[arg(long)]
    pub target: Option<String>,
    /// Also write the archive here
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep the result to oneself: nothing is signed, nothing is told to the network
    #[arg(long)]
    pub no_publish: bool,
    /// Publish without the second build that tests whether the result is reproducible; the
    /// observation then has no work digest, and anybody can copy it
    #[arg(long, conflicts_with = "no_publish")]
    pub no_gate: bool,
    /// Parallel jobs [default: all processors]
    #[arg(long, short)]
    pub jobs: Option<u32>,
    /// Take the sandbox's tools and libraries from the system below this directory, to see that
    /// they do not change the result
    #[arg(long, value_name = "DIR", help_heading = "Advanced")]
    pub sandbox_root: Option<PathBuf>,
}

/// Build a crate twice and say whether it is reproducible, and if not, what differs and likely why
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk repro hexyl@0.17.0\n  qk repro --path . --badge reproducible.json\n\n\
The second build has another number of jobs, another host name and a later time. Nothing is signed or\n\
published. A badge is what https://shields.io/badges/endpoint-badge reads.\n\n\
Exit codes: 0 both builds are identical, 12 they differ, 13 it does not build, 1 anything else"
)]
pub(crate) struct ReproArgs {
    /// NAME or NAME@VERSION
    #[arg(
        value_name = "CRATE[@VER]",
        required_unless_present = "path",
        conflicts_with = "path"
    )]
    pub krate: Option<CrateSpec>,
    /// The package in this directory, as `cargo package` would publish it, uncommitted changes included
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub flags: FlagArgs,
    /// Target triple [default: this machine's]
    #[arg(long)]
    pub target: Option<String>,
    /// Parallel jobs of the first build; the second has half as many [default: all processors]
    #[arg(long, short)]
    pub jobs: Option<u32>,
    /// Write the data of a badge here
    #[arg(long, value_name = "FILE")]
    pub badge: Option<PathBuf>,
    /// Take the tools and libraries of the second build from the system below this directory
    #[arg(long, value_name = "DIR", help_heading = "Advanced")]
    pub sandbox_root: Option<PathBuf>,
}

/// Rebuild what others published, and publish what came out
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk verify hexyl@0.17.0\n  qk verify --once\n  qk verify --watch --cpu-hours 4 --hours 22-06\n  qk verify --status\n\n\
--watch goes round the index, rebuilds what this machine's principal is assigned to, what a\n\
dissent calls it to and, one rebuild in five and whenever nothing else is to be done, entries\n\
drawn at random; it publishes what comes out. Ctrl-C stops it and keeps the queue. Rebuilds run\n\
at the lowest priority, and rest on battery and on metered links as [pause] of the configuration\n\
says. What a rebuild took is counted when it ends: what is beyond the day's CPU hours is taken\n\
off the next days. Each flag stands before its setting in\n\
[verify] of the configuration: cpu_hours, jobs, disk, hours, idle, time_limit, every"
)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false).args(["krate", "once", "watch", "status"]))]
pub(crate) struct VerifyArgs {
    /// NAME or NAME@VERSION
    #[arg(value_name = "CRATE[@VER]")]
    pub krate: Option<CrateSpec>,
    /// Draw one entry of the index at random
    #[arg(long)]
    pub once: bool,
    /// Rebuild what is owed and what is drawn, one after another, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// Show what waits, what is being rebuilt, what came out and what is left of the budget
    #[arg(long)]
    pub status: bool,
    #[command(flatten)]
    pub budget: BudgetArgs,
}

/// What a budget says nothing to.
const NOT_WATCHING: [&str; 3] = ["krate", "once", "status"];

/// What --watch gives
#[derive(Debug, Args)]
#[command(next_help_heading = "Budget of --watch")]
pub(crate) struct BudgetArgs {
    /// Hours of all processors together in a day, such as 4 or 0.5 [default: as many as there are]
    #[arg(long, value_name = "N", conflicts_with_all = NOT_WATCHING)]
    pub cpu_hours: Option<CpuHours>,
    /// Processors that a rebuild may use at once [default: all]
    #[arg(long, short, value_name = "N", conflicts_with_all = NOT_WATCHING)]
    pub jobs: Option<u32>,
    /// Bytes that a rebuild may take on the disk [default: 10GiB]
    #[arg(long, value_name = "SIZE", conflicts_with_all = NOT_WATCHING)]
    pub disk: Option<Size>,
    /// Only in these hours of the day, in local time, such as 22-06 or 22:30-6:15
    #[arg(long, value_name = "FROM-TO", conflicts_with_all = NOT_WATCHING)]
    pub hours: Option<Hours>,
    /// Begin rebuilds only while the load of the last minute is at most half the processors
    #[arg(long, conflicts_with_all = NOT_WATCHING)]
    pub idle: bool,
    /// How long fetching the sources and building may take each, such as 20m [default: 1h]
    #[arg(long, value_name = "TIME", conflicts_with_all = NOT_WATCHING)]
    pub time_limit: Option<Time>,
    /// How often a range of the index is looked through for what is new [default: 60s]
    #[arg(long, value_name = "TIME", conflicts_with_all = NOT_WATCHING)]
    pub every: Option<Time>,
}

/// A whole network on this machine: build, publish, refuse, rebuild, prove, fetch
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  qk demo\n  qk demo --crate b3sum@1.8.7 --json")]
pub(crate) struct DemoArgs {
    /// Which crate
    #[arg(long = "crate", value_name = "CRATE[@VER]", default_value = "hexyl")]
    pub krate: CrateSpec,
    /// Keep the directories, and print where they are
    #[arg(long)]
    pub keep: bool,
}
