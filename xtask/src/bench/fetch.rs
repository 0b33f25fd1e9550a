//! How long a fetch takes, beside what else one would do: build, or download without any check.
//!
//! Every run starts a `qk` of its own and installs into an empty directory, from nodes that have the
//! artifact in their stores.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::{self, Lab};
use super::sample::{self, Samples};
use super::server::FileServer;
use super::{Goal, Row};
use crate::cargo;

/// A fetch from a network, in seconds.
const COLD_MAX: f64 = 0.15;
/// A fetch of what the own store has, in seconds.
const AGAIN_MAX: f64 = 0.05;
/// File that the web server gives out.
const ARCHIVE: &str = "binaries.tar.gz";

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// `NAME@VERSION`: the crate.
    pub package: String,
    /// How often each fetch is run.
    pub runs: usize,
    /// Whether `cargo install` is measured too, which compiles twice.
    pub cargo_install: bool,
}

/// Builds and proves the crate, fetches it over and over, and measures what a fetch is held against.
///
/// # Errors
/// When a program that is measured fails, or the artifact did not come from where it should.
pub fn rows(qk: &Path, options: &Options) -> Result<Vec<Row>> {
    let lab = Lab::start(qk, &options.package, Ipv4Addr::LOCALHOST.into())?;
    let package = &options.package;
    eprintln!("Fetching it {} times each way", options.runs);

    let cold = Series::take(options.runs, || {
        let client = lab.client()?;
        fetch(&lab, &client, package, None).and_then(|run| run.from("network"))
    })?;
    let uncached = Series::take(options.runs, || {
        let client = lab.client()?;
        let cargo_home = cargo_home(&lab)?;
        fetch(&lab, &client, package, Some(&cargo_home)).and_then(|run| run.from("network"))
    })?;
    let client = lab.client()?;
    let first = fetch(&lab, &client, package, None)?;
    let again = Series::take(options.runs, || {
        fetch(&lab, &client, package, None).and_then(|run| run.from("store"))
    })?;
    let archive = lab.directory()?;
    pack(&first.root.join("bin"), &archive.join(ARCHIVE))?;
    let server = FileServer::start(&archive)?;
    let curl = Samples::take(options.runs, || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail"])
            .arg(server.url(ARCHIVE));
        curl_tar(&mut curl, &lab.directory()?)
    })?;

    let mut rows = cold.rows("fetch_cold", Some(Goal::AtMost(COLD_MAX)));
    rows.extend(uncached.rows("fetch_cold_uncached_line", None));
    rows.extend(again.rows("fetch_again", Some(Goal::AtMost(AGAIN_MAX))));
    rows.extend(spread("curl_tar", &curl, None));
    let fetched = Row::new("fetch_cold", cold.total.median(), "s");
    rows.push(fetched.ratio(&Row::new("curl_tar", curl.median(), "s")));
    if options.cargo_install {
        let install = Row::new(
            "cargo_install",
            cargo_install(package, &lab.directory()?)?,
            "s",
        );
        rows.push(fetched.ratio(&install));
        rows.push(install.named("cargo_install_s"));
    }
    Ok(rows)
}

/// One `qk fetch`, from its start to its end.
struct Run {
    seconds: f64,
    cpu: f64,
    /// Where it installed.
    root: PathBuf,
    /// `network` or `store`.
    how: String,
    /// In the order in which they ran.
    stages: Vec<(String, f64)>,
}

impl Run {
    /// The same run, if the artifact came from there.
    fn from(self, how: &str) -> Result<Self> {
        ensure!(
            self.how == how,
            "the artifact came from the {}, not from the {how}",
            self.how
        );
        Ok(self)
    }

    fn stage(&self, name: &str) -> f64 {
        let of_name = self.stages.iter().filter(|(stage, _)| stage == name);
        of_name.map(|(_, seconds)| seconds).sum()
    }
}

/// Runs `qk fetch` into an empty directory.
fn fetch(lab: &Lab, client: &str, package: &str, cargo_home: Option<&Path>) -> Result<Run> {
    let root = lab.directory()?;
    let text = root.to_string_lossy();
    let args = ["fetch", package, "--fallback", "none", "--root", &text];
    let mut command = lab.command(client, &args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(cargo_home) = cargo_home {
        command.env("CARGO_HOME", cargo_home);
    }
    let (cpu, start) = (sample::cpu_of_children()?, Instant::now());
    let printed = lab::json(&mut command)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = sample::cpu_of_children()? - cpu;
    let fetched = &printed["crates"][0];
    Ok(Run {
        seconds,
        cpu,
        root,
        how: fetched["how"].as_str().unwrap_or_default().to_owned(),
        stages: stages(fetched)?,
    })
}

fn stages(fetched: &Value) -> Result<Vec<(String, f64)>> {
    let stages = fetched["stages"].as_array().context("no stages")?;
    let stage = |stage: &Value| {
        let name = stage["name"].as_str()?.replace('-', "_");
        Some((name, stage["seconds"].as_f64()?))
    };
    let stages: Option<_> = stages.iter().map(stage).collect();
    stages.context("a stage without name or seconds")
}

/// A `CARGO_HOME` with the user's configuration and an empty cache.
fn cargo_home(lab: &Lab) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let users = set("CARGO_HOME").or_else(|| Some(set("HOME")?.join(".cargo")));
    let dir = lab.directory()?;
    for name in ["config.toml", "config", "credentials.toml", "credentials"] {
        let Some(file) = users.as_ref().map(|users| users.join(name)) else {
            continue;
        };
        if file.is_file() {
            std::os::unix::fs::symlink(file, dir.join(name))?;
        }
    }
    Ok(dir)
}

/// Several runs of the same fetch.
struct Series {
    total: Samples,
    /// Mean, as processor time is counted in steps of 10 ms and hardly varies.
    cpu: f64,
    stages: Vec<(String, Samples)>,
    /// What no stage covers: start and end of the process.
    rest: Samples,
}

impl Series {
    fn take(count: usize, mut once: impl FnMut() -> Result<Run>) -> Result<Self> {
        let runs = (0..count).map(|_| once()).collect::<Result<Vec<_>>>()?;
        let first = runs.first().context("at least one run is needed")?;
        let of = |value: &dyn Fn(&Run) -> f64| Samples::of(runs.iter().map(value).collect());
        let stages = first.stages.iter().map(|(name, _)| {
            let seconds = of(&|run| run.stage(name))?;
            Ok((name.clone(), seconds))
        });
        Ok(Self {
            total: of(&|run| run.seconds)?,
            cpu: runs.iter().map(|run| run.cpu).sum::<f64>() / count as f64,
            stages: stages.collect::<Result<_>>()?,
            rest: of(&|run| {
                run.seconds - run.stages.iter().map(|(_, seconds)| seconds).sum::<f64>()
            })?,
        })
    }

    fn rows(&self, name: &str, goal: Option<Goal>) -> Vec<Row> {
        let mut rows = spread(name, &self.total, goal);
        rows.push(Row::new(format!("{name}_cpu_s"), self.cpu, "s"));
        for (stage, seconds) in &self.stages {
            rows.push(Row::new(
                format!("{name}_stage_{stage}_s"),
                seconds.median(),
                "s",
            ));
        }
        rows.push(Row::new(format!("{name}_rest_s"), self.rest.median(), "s"));
        rows
    }
}

/// The median, held against the goal, and both ends.
pub(super) fn spread(name: &str, seconds: &Samples, goal: Option<Goal>) -> Vec<Row> {
    let median = Row::new(format!("{name}_s"), seconds.median(), "s");
    vec![
        match goal {
            Some(goal) => median.with_goal(goal),
            None => median,
        },
        Row::new(format!("{name}_min_s"), seconds.min(), "s"),
        Row::new(format!("{name}_max_s"), seconds.max(), "s"),
    ]
}

/// Packs everything in `directory` into a `.tar.gz` at `archive`.
///
/// # Errors
/// When tar cannot be started or fails.
pub(super) fn pack(directory: &Path, archive: &Path) -> Result<()> {
    cargo::run(
        Command::new("tar")
            .arg("--create")
            .arg("--gzip")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(directory)
            .arg("."),
    )
}

/// Seconds of `curl URL | tar xz` into `directory`.
///
/// # Errors
/// When either of them cannot be started or fails.
pub(super) fn curl_tar(curl: &mut Command, directory: &Path) -> Result<f64> {
    let line = cargo::describe(curl);
    let start = Instant::now();
    let mut curl = curl
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start curl")?;
    let download = curl.stdout.take().context("no standard output")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--directory"])
        .arg(directory)
        .stdin(download)
        .status();
    let downloaded = curl.wait();
    let seconds = start.elapsed().as_secs_f64();
    let (unpacked, downloaded) = (unpacked.context("cannot start tar")?, downloaded?);
    ensure!(downloaded.success(), "`{line}` failed: {downloaded}");
    ensure!(unpacked.success(), "`tar` of `{line}` failed: {unpacked}");
    Ok(seconds)
}

/// Seconds of `cargo install NAME@VERSION --locked` into `root`, from nothing but the downloaded
/// sources. Runs twice, the first time for the download, which would measure the network.
///
/// # Errors
/// When cargo fails.
fn cargo_install(package: &str, root: &Path) -> Result<f64> {
    let target = tempfile::tempdir()?;
    cargo::run_aside(
        install(package, root, target.path())
            .args(["--no-track", "--debug"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )?;
    let target = tempfile::tempdir()?;
    sample::seconds(install(package, root, target.path()).arg("--force"))
}

fn install(package: &str, root: &Path, target: &Path) -> Command {
    let mut install = cargo::command();
    install
        .args(["install", "--locked", package, "--root"])
        .arg(root)
        .env("CARGO_TARGET_DIR", target)
        .current_dir(root)
        .stdin(Stdio::null());
    install
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_arrives() {
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join("bin")).unwrap();
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(files.path().join("bin/tool"), &content).unwrap();
        let served = tempfile::tempdir().unwrap();
        pack(files.path(), &served.path().join("tool.tar.gz")).unwrap();

        let server = FileServer::start(served.path()).unwrap();
        let here = tempfile::tempdir().unwrap();
        let curl = |url: &str| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--fail", url]);
            curl_tar(&mut curl, here.path())
        };
        assert!(curl(&server.url("tool.tar.gz")).unwrap() > 0.0);
        assert!(std::fs::read(here.path().join("bin/tool")).unwrap() == content);

        let error = curl(&server.url("other.tar.gz")).unwrap_err();
        assert!(
            error.to_string().contains("other.tar.gz` failed"),
            "{error}"
        );
        let url = server.url("tool.tar.gz");
        drop(server);
        assert!(curl(&url).is_err(), "the server is gone");
    }
}
