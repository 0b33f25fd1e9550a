//! What is looked at.

use std::path::PathBuf;

use clap::Args;

use super::{CrateSpec, FlagArgs, OnlyArgs};

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

    #[command(flatten)]
    pub only: OnlyArgs,

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
