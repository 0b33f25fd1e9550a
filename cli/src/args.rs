//! What can be typed.

mod network;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use qk_node::gateway::client::GatewayUrl;
use qk_node::manners::Size;
use qk_node::registry::Ask;
use qk_node::watch::{CpuHours, Time};
use qk_protocol::watch::budget::Hours;

pub(crate) use self::network::*;

/// Fetch prebuilt Rust artifacts that independent rebuilders agree on, or build them yourself.
#[derive(Debug, Parser)]
#[command(name = "qk", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print less: no progress, only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Fetch(FetchArgs),
    Run(RunArgs),
    List(ListArgs),
    Upgrade(UpgradeArgs),
    Uninstall(UninstallArgs),
    Update(UpdateArgs),
    Build(BuildArgs),
    Repro(ReproArgs),
    Verify(VerifyArgs),
    Proofs(ProofsArgs),
    Diff(DiffArgs),
    Log(LogArgs),
    Search(SearchArgs),
    Sbom(SbomArgs),
    Audit(AuditArgs),
    Node(NodeCli),
    Status(StatusArgs),
    /// Show the peers that the node is connected with
    #[command(after_help = "Example:\n  qk peers --json")]
    Peers,
    #[command(subcommand)]
    Network(NetworkCommand),
    Join(JoinArgs),
    #[command(subcommand)]
    Store(StoreCommand),
    /// Install what building needs: the pinned zig and cargo-zigbuild, and bubblewrap
    #[command(after_help = "Example:\n  qk setup")]
    Setup,
    /// Say what is not in order on this machine, and how to mend it
    #[command(
        after_help = "Examples:\n  qk doctor\n  qk doctor --offline --json\n\n\
Looked at are the directory of qk and its disk, PATH, what building needs, the clock, the joined networks and their\n\
nodes, and whether the policy can be met. Exit code 1 when something is not in order"
    )]
    Doctor {
        /// Ask no node
        #[arg(long)]
        offline: bool,
    },
    Demo(DemoArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  qk completions bash > ~/.local/share/bash-completion/completions/qk"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands into a directory
    #[command(after_help = "Example:\n  qk man ~/.local/share/man/man1 && man qk-fetch")]
    Man {
        /// Where to; made if it is missing
        directory: PathBuf,
    },
}

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
    /// Install below this directory [default: cargo's]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Show what would be done; download and install nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Ask only this gateway, over HTTPS, where nothing else gets out; what is proven is decided here all
    /// the same. Can be given several times
    #[arg(long, value_name = "URL", conflicts_with = "offline")]
    pub gateway: Vec<GatewayUrl>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fallback {
    /// Build from source in the sandbox
    Build,
    /// Stop
    None,
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

/// Show what was observed of a crate, and what the policy makes of it; now or, with a bundle, later
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk proofs hexyl@0.17.0\n  qk proofs hexyl@0.17.0 --export hexyl.qkproof\n  qk proofs --check hexyl.qkproof --network 5f21…\n\n\
A bundle holds the network's manifests, its timestamp and what its principals stated. --check needs \
neither a network nor the registry. It cannot tell whether a dissent was left out of the bundle, nor \
what was taken back since, unless a newer manifest of the network is known here.\n\n\
Exit codes of --check: 0 trusted, 2 usage, 11 unproven, or a network that is neither joined nor named, \
12 disputed or blocked, 15 no bundle or tampered with, 17 stale"
)]
pub(crate) struct ProofsArgs {
    /// NAME or NAME@VERSION; with --check the bundle has to be about it
    #[arg(value_name = "CRATE[@VER]", required_unless_present = "check")]
    pub krate: Option<CrateSpec>,
    /// Write what decides into a file, to be checked later and elsewhere
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub export: Option<PathBuf>,
    /// Decide from a bundle alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["features", "all_features", "no_default_features", "target"])]
    pub check: Option<PathBuf>,
    /// Which network: a joined one by name or fingerprint; with --check also the fingerprint of another
    /// one, whose principals you believe
    #[arg(long)]
    pub network: Option<String>,
    #[command(flatten)]
    pub flags: FlagArgs,
    /// Target triple [default: this machine's]
    #[arg(long)]
    pub target: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub offline: bool,
}

/// Compare two artifacts by file and section, whether anybody trusts them or not
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk diff hexyl@0.17.0\n  qk diff one.tar other.tar\n  qk diff 366f8ecf other.tar\n\n\
A crate stands for what principals of the network observed of it: two different artifacts, which are got\n\
from whoever has them, to look at and no more. The class of a difference is for people and decides nothing.\n\n\
Exit codes: 0 identical, 12 they differ, 1 anything else"
)]
pub(crate) struct DiffArgs {
    /// Files, roots of artifacts in the store (or their beginning), or a crate
    #[arg(required = true, num_args = 1..=2, value_name = "FILE|ROOT|CRATE[@VER]")]
    pub what: Vec<String>,
    /// Let diffoscope look, too; it runs many programs on the archives without a sandbox
    #[arg(long)]
    pub diffoscope: bool,
}

/// Print the log of a build
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk log hexyl@0.17.0\n  qk log hexyl@0.17.0 --by bob\n  qk log 5f21…\n\n\
What is not here is asked of whoever observed the build, and kept"
)]
pub(crate) struct LogArgs {
    /// A crate, for the latest build whose log is to be had, or the digest of a log that is here
    #[arg(value_name = "CRATE[@VER]|DIGEST")]
    pub which: String,

    /// Only the build of this principal, of this observer's key, or with a log of this digest
    #[arg(long, value_name = "NAME|KEY|DIGEST")]
    pub by: Option<String>,

    /// Ask nobody: only what is here
    #[arg(long)]
    pub offline: bool,
}

/// Search for crates by name, executable, target and state of proof
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk search grep\n  qk search --bin fd\n  qk search --proven --target x86_64-unknown-linux-musl\n\n\
What is known here is searched, and the index of one node of each network as far as it can be listed in\n\
a few seconds; nobody is told what is looked for. Of a very large network a crate is found by its whole\n\
name, as `qk fetch` finds it. Names of executables are known of artifacts in the store. That the registry\n\
lists the source is checked by `qk fetch`.\n\n\
Exit codes: 0 something was found, 10 nothing was, 2 usage, 1 anything else"
)]
pub(crate) struct SearchArgs {
    /// Part of the name of a crate or an executable [default: everything]
    #[arg(value_name = "QUERY", default_value = "", hide_default_value = true)]
    pub query: String,
    /// Only crates with an executable of exactly this name
    #[arg(long, value_name = "NAME")]
    pub bin: Option<String>,
    /// Only this target; may be given several times
    #[arg(long, value_name = "TRIPLE")]
    pub target: Vec<String>,
    /// Only what would be trusted
    #[arg(long)]
    pub proven: bool,
    /// Every version, not only the newest and the newest that is proven
    #[arg(long)]
    pub all: bool,
    /// Show so many at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Ask nobody
    #[arg(long)]
    pub offline: bool,
}

/// Print what an artifact was made of: a bill of materials in CycloneDX 1.6
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk sbom hexyl@0.17.0 --output hexyl.cdx.json\n  qk sbom 1317a6d8\n  qk sbom ./artifact.tar\n\n\
It lists all packages of the Cargo.lock in the artifact. Licences are what the packages' own manifests state, where\n\
cargo's cache has the files that the lock names; they are unknown otherwise. There is no time in it"
)]
pub(crate) struct SbomArgs {
    /// A crate whose artifact is in the store, the beginning of a root, or an archive
    #[arg(value_name = "CRATE[@VER]|ROOT|FILE")]
    pub what: String,

    /// Write it to this file
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Look up the packages of artifacts in the RustSec advisory database
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk audit\n  qk audit hexyl@0.17.0 --deny-warnings\n  qk audit --database ./advisory-db --json\n\n\
Nothing is downloaded: the database is a checkout of https://github.com/RustSec/advisory-db. Exit codes: 0 nothing\n\
known, or only warnings; 1 a vulnerability; 10 no database, or no such artifact; 15 a database with a file that is\n\
no advisory"
)]
pub(crate) struct AuditArgs {
    /// Crates whose artifacts are in the store [default: all]
    #[arg(value_name = "CRATE[@VER]")]
    pub crates: Vec<CrateSpec>,

    /// Where the database is [default: advisory-db in cargo's home]
    #[arg(long, value_name = "DIR")]
    pub database: Option<PathBuf>,

    /// Fail for warnings, too: unmaintained, unsound and notices
    #[arg(long)]
    pub deny_warnings: bool,
}

/// Run a node in the foreground until Ctrl-C, or as a service in the background
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  qk node\n  qk node --listen /ip4/0.0.0.0/tcp/4433\n  qk node --share --upload-rate 2MiB\n  qk node --cache --listen /ip4/0.0.0.0/tcp/4433\n  qk node install\n  qk node pause --for 2h\n\n\
Signals: INT and TERM end the node, a second one at once; HUP reads the configuration and the joined\n\
networks again. QK_LOG sets what is logged, for instance QK_LOG=info,qk_node::net=debug\n\n\
QK_PARENT names nodes to ask first, as --parent does, here and for `qk fetch`: multiaddresses,\n\
separated by commas; /p2p/PEER alone is looked for on the local network"
)]
pub(crate) struct NodeCli {
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
    #[command(flatten)]
    pub args: NodeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Install the node as a service that starts by itself, and start it
    #[command(
        after_help = "Examples:\n  qk node install\n  qk node install --listen /ip4/0.0.0.0/tcp/4433\n  qk node install --no-share\n  qk node install --system"
    )]
    Install(NodeInstallArgs),
    /// Stop the service and remove it
    #[command(after_help = "Examples:\n  qk node uninstall\n  qk node uninstall --purge")]
    Uninstall(NodeUninstallArgs),
    /// Let the node rest: it gives no blocks, announces nothing and cleans nothing
    #[command(after_help = "Examples:\n  qk node pause\n  qk node pause --for 2h")]
    Pause {
        /// For how long, such as 90s, 30m, 2h or 1d [default: until `qk node resume`]
        #[arg(long = "for", value_name = "TIME")]
        time: Option<Time>,
    },
    /// End a pause that was asked for
    #[command(after_help = "Example:\n  qk node resume")]
    Resume,
    /// Print the key that the gateway signs what it packs with, for minisign and cargo-binstall; one is
    /// made if there is none
    #[command(
        after_help = "Example:\n  minisign -Vm hexyl.tgz -x hexyl.tgz.sig -P \"$(qk node gateway-key)\""
    )]
    GatewayKey,
}

#[derive(Debug, Args)]
pub(crate) struct NodeInstallArgs {
    /// For all users of this machine: with a user and a home of its own, for root to look after and
    /// for members of the group qk to use
    #[arg(long)]
    pub system: bool,
    /// Keep what was fetched to yourself: a service gives and announces it otherwise, as with --share
    #[arg(long, conflicts_with = "share")]
    pub no_share: bool,
    /// What the node is started with
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NodeUninstallArgs {
    /// The service of all users of this machine
    #[arg(long)]
    pub system: bool,
    /// Remove the node's home too: keys, joined networks, store
    #[arg(long)]
    pub purge: bool,
    /// Do not ask before keys are removed
    #[arg(long, requires = "purge")]
    pub yes: bool,
}

/// How a node logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// What a node is started with
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Addresses to listen on, as multiaddresses [default: the configuration's]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Nodes to ask first, as multiaddresses that end in a peer id
    #[arg(long, value_name = "ADDR")]
    pub parent: Vec<String>,
    /// Be the cache of a local network: keep the whole index, and fetch for the neighbours what they
    /// ask for, once
    #[arg(long)]
    pub cache: bool,
    /// Serve artifacts, health and metrics over HTTP at this address, as 127.0.0.1:8080
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<String>,
    /// How to log, to standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Let the members of this group fetch and query over the control socket
    #[arg(long, value_name = "GROUP", help_heading = "Advanced")]
    pub socket_group: Option<String>,
    #[command(flatten)]
    pub share: ShareArgs,
}

/// Show what this node is doing
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  qk status\n  qk status --watch\n  qk status --json")]
pub(crate) struct StatusArgs {
    /// Show it every second until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
}

/// What is given to others; each stands before `[share]` of the configuration
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing")]
pub(crate) struct ShareArgs {
    /// Give and announce what was fetched, too, not only what was built here; `fetched = false` in
    /// the configuration forbids it
    #[arg(long)]
    pub share: bool,
    /// Give nothing: no blocks, no announcements
    #[arg(long, conflicts_with = "share")]
    pub leech: bool,
    /// Tell nobody what is here; who asks is served all the same
    #[arg(long)]
    pub no_announce: bool,
    /// Bytes a second that may leave, such as 2MiB
    #[arg(long, value_name = "SIZE")]
    pub upload_rate: Option<Size>,
    /// Bytes a second that may be downloaded for others; one's own fetches are not slowed down
    #[arg(long, value_name = "SIZE")]
    pub download_rate: Option<Size>,
    /// Connections that each network may have
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Bytes that the store may take, such as 20GiB
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<Size>,
}

/// Join a network, or take a newer version of one
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk join lab.qknet\n  qk join https://example.org/lab.qknet --fingerprint 5f21…\n  qk join lab.qknet --secret lab.secret"
)]
pub(crate) struct JoinArgs {
    /// The network file, or where it is
    #[arg(value_name = "FILE|URL")]
    pub from: String,
    /// Refuse any other network than this one
    #[arg(long, value_name = "HEX")]
    pub fingerprint: Option<String>,
    /// The file with the secret of a private network
    #[arg(long, value_name = "FILE", env = "QK_SECRET_FILE")]
    pub secret: Option<PathBuf>,
    /// Ask this network before all that are joined already
    #[arg(long)]
    pub first: bool,
}

/// Look at and look after the store
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  qk store ls")]
pub(crate) enum StoreCommand {
    /// List artifacts
    #[command(after_help = "Example:\n  qk store ls --json")]
    Ls,
    /// Remove artifacts that were not used for long, down to the quota
    #[command(after_help = "Example:\n  qk store gc")]
    Gc,
    /// Read everything and name what is damaged
    #[command(after_help = "Example:\n  qk store fsck")]
    Fsck,
    /// Keep an artifact whatever the quota
    #[command(after_help = "Example:\n  qk store pin 5f21…")]
    Pin {
        /// Root of the artifact
        root: String,
    },
    /// Take a pin back
    #[command(after_help = "Example:\n  qk store unpin 5f21…")]
    Unpin {
        /// Root of the artifact
        root: String,
    },
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

/// A crate, and which release of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrateSpec {
    pub name: String,
    pub ask: Ask,
}

impl std::str::FromStr for CrateSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, req) = match text.split_once('@') {
            Some((name, req)) => (name, Some(req)),
            None => (text, None),
        };
        let CrateName(name) = name.parse()?;
        let ask = Ask::parse(req).map_err(|error| error.to_string())?;
        Ok(Self { name, ask })
    }
}

impl std::fmt::Display for CrateSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.ask {
            Ask::Newest => self.name.fmt(f),
            Ask::Exact(version) => write!(f, "{}@{version}", self.name),
            Ask::Matching(req) => write!(f, "{}@{req}", self.name),
        }
    }
}

/// The name of a crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrateName(pub String);

impl std::str::FromStr for CrateName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        qk_protocol::key::check_crate_name(name).map_err(|error| error.to_string())?;
        Ok(Self(name.to_owned()))
    }
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
