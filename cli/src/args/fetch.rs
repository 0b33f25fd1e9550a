//! What is fetched, installed and run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qk_node::gateway::client::GatewayUrl;
use qk_node::registry::Ask;
use qk_node::watch::Time;

use super::{CrateName, CrateSpec, FlagArgs};

/// Find an artifact, require proof, download it and install its executables as `cargo install` does
#[derive(Debug, Args)]
#[command(
    visible_alias = "install",
    disable_version_flag = true,
    after_help = "Examples:\n  qk fetch hexyl\n  qk fetch hexyl@0.17.0 --fallback none --timings\n  qk fetch ripgrep fd-find@^10 bat --dry-run\n  qk fetch --locked\n\n\
Without crates the tools of qk.toml in this directory are fetched and linked in .qk/bin, or below --root,\n\
and pinned in qk.lock with their proofs; --locked takes what is pinned.\n\n\
A version without an operator is that one; ^1.2, ~1.2, >=1, =1.2.3 and * are requirements, of which\n\
the newest release is taken. What is installed in that version and with these choices is left alone;\n\
without an exact version the registry is asked for a newer one, at most every 10 minutes.\n\n\
Exit codes: 0 done, 2 usage, 10 not found, 11 unproven, 12 disputed or blocked, 13 build failed,\n\
14 network, 15 corrupt or tampered, 16 incompatible with this host, 17 stale, 1 anything else"
)]
pub(crate) struct FetchArgs {
    /// Crates, each as NAME or NAME@REQ, such as hexyl, hexyl@0.17.0 or hexyl@^0.17 [default: the tools
    /// of qk.toml]
    #[arg(value_name = "CRATE[@REQ]")]
    pub crates: Vec<CrateSpec>,
    /// The version or requirement of all that name none behind an @
    #[arg(long = "version", alias = "vers", value_name = "REQ", value_parser = ask)]
    pub req: Option<Ask>,
    /// Join the network that qk.toml names, if this is its fingerprint
    #[arg(long, value_name = "FINGERPRINT", conflicts_with = "crates")]
    pub accept_network: Option<String>,
    #[command(flatten)]
    pub flags: FlagArgs,
    /// Target triples, in order of preference [default: this machine's]
    #[arg(long, value_name = "TRIPLE", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Install only these executables
    #[arg(long, value_name = "NAME")]
    pub bin: Vec<String>,
    /// Fetch and install what is up to date, too, and replace executables of other packages
    #[arg(long, short)]
    pub force: bool,
    /// Do not write down for cargo what is installed; overwrites nothing without --force
    #[arg(long)]
    pub no_track: bool,
    /// Build with the crate's own Cargo.lock, as is always done here. Without crates: take what
    /// qk.lock pins, and refuse where that is not what qk.toml asks for
    #[arg(long)]
    pub locked: bool,
    #[command(flatten)]
    pub how: HowArgs,
    #[command(flatten)]
    pub other: OtherBuildArgs,
}

/// What `cargo install` builds otherwise than everybody
#[derive(Debug, Clone, Args)]
pub(crate) struct OtherBuildArgs {
    /// The profile, which is release
    #[arg(long, value_name = "NAME", hide = true)]
    pub profile: Option<String>,
    #[arg(long, hide = true)]
    pub debug: bool,
    #[arg(long, value_name = "NAME", hide = true)]
    pub example: Vec<String>,
    #[arg(long, hide = true)]
    pub examples: bool,
    /// All executables, as is always done here
    #[arg(long, hide = true, conflicts_with = "bin")]
    pub bins: bool,
}

/// How something is fetched and installed
#[derive(Debug, Clone, Args)]
pub(crate) struct HowArgs {
    /// What to do where nothing is trusted
    #[arg(long, value_enum, default_value_t = Fallback::Build)]
    pub fallback: Fallback,
    /// How long all of it may take, what is built included, such as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    pub deadline: Option<Time>,
    /// Parallel jobs of a build where nothing is trusted [default: all processors]
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<u32>,
    /// Install below this directory [default: cargo's]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Show what would be done; download and install nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    #[command(flatten)]
    pub only: OnlyArgs,
    /// Use only what is on this machine
    #[arg(long)]
    pub offline: bool,
    /// Ask registry and network even if this machine knows enough
    #[arg(long, conflicts_with = "offline")]
    pub refresh: bool,
    /// Show what each statement did to the decision, as `qk proofs` does
    #[arg(long)]
    pub explain: bool,
    /// Show where the time went
    #[arg(long)]
    pub timings: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fallback {
    /// Build from source in the sandbox
    Build,
    /// Stop
    None,
}

/// Which registry
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryArgs {
    /// A registry of cargo's configuration [default: crates.io]
    #[arg(long, value_name = "NAME", conflicts_with = "index")]
    pub registry: Option<String>,
    /// The URL of a registry's index
    #[arg(long, value_name = "URL")]
    pub index: Option<String>,
}

/// Who is asked in place of nodes
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OnlyArgs {
    /// Ask only this gateway, over HTTPS, where nothing else gets out; what is proven is decided here all
    /// the same. Can be given several times
    #[arg(long, value_name = "URL", conflicts_with = "offline")]
    pub gateway: Vec<GatewayUrl>,
}

/// Move what qk.lock pins to the newest that qk.toml asks for and that is proven
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk update\n  qk update ripgrep --dry-run\n\n\
Nothing is linked anew: `qk fetch` does that. What fails stays pinned as it is. Exit codes are those of `qk fetch`"
)]
pub(crate) struct UpdateArgs {
    /// Only these [default: all tools of qk.toml]
    #[arg(value_name = "TOOL")]
    pub tools: Vec<String>,
    /// Show what would be pinned, and whether it is proven; fetch and write nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
}

/// Run an executable of a crate, without installing it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk run hexyl -- README.md\n  qk run hexyl@0.17.0 -- --length 64 README.md\n  qk run cargo-nextest --bin cargo-nextest -- --version\n\n\
What is not here yet is fetched as `qk fetch` does, with the same proof, and unpacked below qk's directory.\n\
Without a version it is the newest at the first run, and stays that one until --refresh asks again. Signals and\n\
the exit code are the program's; what qk itself ends with are the exit codes of `qk fetch`."
)]
pub(crate) struct RunArgs {
    /// NAME or NAME@REQ, as for `qk fetch`
    #[arg(value_name = "CRATE[@REQ]")]
    pub krate: CrateSpec,
    /// Which executable [default: the one with the crate's name, or the only one]
    #[arg(long, value_name = "NAME")]
    pub bin: Option<String>,
    #[command(flatten)]
    pub flags: FlagArgs,
    /// Target triples, in order of preference [default: this machine's]
    #[arg(long)]
    pub target: Vec<String>,
    /// What to do where nothing is trusted
    #[arg(long, value_enum, default_value_t = Fallback::Build)]
    pub fallback: Fallback,
    #[command(flatten)]
    pub only: OnlyArgs,
    /// Use only what is on this machine
    #[arg(long)]
    pub offline: bool,
    /// Ask the registry for the newest version, and the network for statements
    #[arg(long)]
    pub refresh: bool,
    /// What the program is given
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// Fetch newer releases of what is installed, whoever installed it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk upgrade --dry-run\n  qk upgrade\n  qk upgrade ripgrep bat\n\n\
What was installed from the registry is upgraded within the requirement that it was installed with,\n\
with the same features and for the same target. What was installed in an exact version stays;\n\
`qk fetch CRATE` moves it. Exit codes are those of `qk fetch`"
)]
pub(crate) struct UpgradeArgs {
    /// Only these [default: everything that is installed]
    #[arg(value_name = "CRATE")]
    pub crates: Vec<CrateName>,
    #[command(flatten)]
    pub how: HowArgs,
}

/// List what is installed, as `cargo install --list` does
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  qk list\n  qk list --json")]
pub(crate) struct ListArgs {
    /// Look below this directory [default: cargo's]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Remove what is installed, whoever installed it
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    after_help = "Examples:\n  qk uninstall hexyl\n  qk uninstall cargo-edit --bin cargo-set-version\n\n\
Exit codes: 0 done, 2 usage, 10 not installed, 1 anything else"
)]
pub(crate) struct UninstallArgs {
    /// Crates, each as NAME or, where several versions are installed, NAME@VERSION
    #[arg(required = true, value_name = "CRATE[@VER]")]
    pub crates: Vec<CrateSpec>,
    /// Remove only these executables
    #[arg(long, value_name = "NAME")]
    pub bin: Vec<String>,
    /// Look below this directory [default: cargo's]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// The value of `--deadline`.
fn deadline(text: &str) -> Result<Time, String> {
    match text.parse()? {
        Time(0) => Err("in no time nothing can be done".to_owned()),
        time => Ok(time),
    }
}

/// The value of `--version`.
fn ask(text: &str) -> Result<Ask, String> {
    Ask::parse(Some(text)).map_err(|error| error.to_string())
}
