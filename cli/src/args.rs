//! What can be typed.

mod build;
mod fetch;
mod look;
mod network;
mod node;
mod spec;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub(crate) use self::build::*;
pub(crate) use self::fetch::*;
pub(crate) use self::look::*;
pub(crate) use self::network::*;
pub(crate) use self::node::*;
pub(crate) use self::spec::*;

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
