//! cargo-binstall, beside which a fetch is measured.
//!
//! It takes nothing but HTTPS, so the gateway and an index beside it have a certificate of their own. The
//! index has crates of the same names, versions and executables that name no repository: asked for the
//! real ones, cargo-binstall would also ask their repositories' hosts where they are, which has nothing to
//! do with the gateway and takes longer than all the rest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::nginx::Nginx;
use crate::cargo;

/// The program, and what it needs to find the tools.
#[derive(Debug)]
pub(super) struct Binstall<'a> {
    program: PathBuf,
    index: &'a Nginx,
    /// The gateway's URL.
    gateway: &'a str,
}

impl<'a> Binstall<'a> {
    /// With the index that `index` serves from `files`, and a gateway at this URL that has the same
    /// certificate.
    pub(super) fn new(
        program: &Path,
        index: &'a Nginx,
        files: &Path,
        gateway: &'a str,
    ) -> Result<Self> {
        let download = index.url("{crate}-{version}.crate");
        let config = serde_json::json!({ "dl": download });
        fs::write(files.join("config.json"), config.to_string())?;
        Ok(Self {
            program: program.to_owned(),
            index,
            gateway,
        })
    }

    /// Seconds in which it installs all of them below `root`, in one call.
    pub(super) fn install(&self, tools: &[String], root: &Path) -> Result<f64> {
        let package = format!("{}/{{ name }}/{{ version }}/{{ target }}.tgz", self.gateway);
        let mut command = Command::new(&self.program);
        command
            .args([
                "--no-confirm",
                "--disable-telemetry",
                "--log-level",
                "error",
            ])
            .args(["--no-discover-github-token", "--strategies"])
            .args(["crate-meta-data", "--pkg-url", &package, "--pkg-fmt", "tgz"])
            .args(["--bin-dir", "{ bin }{ binary-ext }", "--index"])
            .arg(format!("sparse+{}", self.index.url("")))
            .arg("--root-certificates")
            .arg(self.index.certificate())
            .arg("--root")
            .arg(root)
            .args(tools.iter().map(|tool| tool.replace('@', "@=")))
            .stdin(Stdio::null());
        cargo::forget_caller(&mut command);
        let start = Instant::now();
        cargo::run_aside(&mut command)?;
        let seconds = start.elapsed().as_secs_f64();
        let installed = fs::read_dir(root.join("bin"))?.count();
        ensure!(
            installed >= tools.len(),
            "cargo-binstall installed {installed} programs of {} tools",
            tools.len()
        );
        Ok(seconds)
    }
}

/// Adds `NAME@VERSION` to a sparse index: a crate with empty programs of the names of those in
/// `executables`.
pub(super) fn publish(dir: &Path, tool: &str, executables: &Path) -> Result<()> {
    let (name, version) = tool.split_once('@').context("it has no version")?;
    let below = format!("{name}-{version}");
    let sources = tempfile::tempdir()?;
    let source = sources.path().join(&below).join("src");
    fs::create_dir_all(&source)?;
    fs::write(source.join("main.rs"), "fn main() {}\n")?;
    let mut manifest =
        format!("[package]\nname = {name:?}\nversion = {version:?}\nedition = \"2021\"\n");
    for entry in fs::read_dir(executables)? {
        let entry = entry?;
        let file = entry.file_name();
        if entry.metadata()?.permissions().mode() & 0o111 != 0 {
            manifest += &format!("[[bin]]\nname = {file:?}\npath = \"src/main.rs\"\n");
        }
    }
    fs::write(sources.path().join(&below).join("Cargo.toml"), manifest)?;
    let file = dir.join(format!("{below}.crate"));
    let mut tar = Command::new("tar");
    tar.arg("czf").arg(&file).arg("-C").arg(sources.path());
    cargo::run(tar.arg(&below))?;
    let line = serde_json::json!({
        "name": name, "vers": version, "deps": [], "cksum": cargo::sha256(&file)?, "features": {},
        "yanked": false,
    });
    let path = dir.join(cargo::index_place(name));
    fs::create_dir_all(path.parent().context("an index has directories")?)?;
    Ok(fs::write(path, format!("{line}\n"))?)
}
