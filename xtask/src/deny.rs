//! cargo-deny: what may enter the dependency tree (`deny.toml`).

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::cargo;

/// The one version that checks: another may judge otherwise.
const VERSION: &str = "0.20.2";

/// Runs the named checks of cargo-deny; installs it below `target/` where it is missing.
///
/// # Errors
/// When it cannot be installed or a check fails.
pub fn check(checks: &[&str]) -> Result<()> {
    let mut deny = Command::new(executable()?);
    deny.current_dir(cargo::workspace())
        .args(["--locked", "check", "--hide-inclusion-graph"])
        .args(checks);
    cargo::run(&mut deny)
}

fn executable() -> Result<PathBuf> {
    let root = cargo::workspace().join("target/tools");
    let own = root.join("bin/cargo-deny");
    for candidate in [PathBuf::from("cargo-deny"), own.clone()] {
        if is_wanted(&candidate) {
            return Ok(candidate);
        }
    }
    // It runs for two seconds and compiles for minutes: the cheapest build is the right one.
    let mut install = cargo::command();
    install
        .args(["install", "cargo-deny", "--version", VERSION, "--locked"])
        .args(["--debug", "--no-default-features", "--root"])
        .arg(&root)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null());
    cargo::run_aside(&mut install)?;
    Ok(own)
}

fn is_wanted(executable: &PathBuf) -> bool {
    Command::new(executable)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| {
            output.stdout.trim_ascii() == format!("cargo-deny {VERSION}").as_bytes()
        })
}
