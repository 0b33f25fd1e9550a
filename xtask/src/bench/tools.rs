//! Twenty tools that `qk.lock` pins, from a warm cache beside this machine, held against `curl | tar` and
//! cargo-binstall from the same cache's gateway.
//!
//! What is fetched was built by a publisher whose home is kept from run to run, since building takes an
//! hour; it is the only principal, as what is measured asks nobody about trust. Every run has a `qk`, a home
//! and a directory to install into of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::binstall::{self, Binstall};
use super::fetch::{curl_tar, spread};
use super::lab::{self, Lab};
use super::nginx::Nginx;
use super::sample::Samples;
use super::{Goal, Row};
use crate::cargo;

/// All tools, in seconds.
const ALL_MAX: f64 = 1.0;
/// One tool.
const ONE_MAX: f64 = 0.1;
/// All of them again, when they are installed already.
const UP_TO_DATE_MAX: f64 = 0.05;
/// What `qk run` takes longer than the program itself.
const RUN_MAX: f64 = 0.02;
/// The executable, in bytes.
const BYTES_MAX: f64 = 30e6;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// `NAME@VERSION` each; the first one is also fetched alone and run.
    pub tools: Vec<String>,
    /// Runs of which the median is taken.
    pub runs: usize,
    /// Where the publisher's home is kept.
    pub home: PathBuf,
    /// cargo-binstall, which fetches from the same gateway. The gateway then speaks TLS with everybody.
    pub binstall: Option<PathBuf>,
}

/// Builds what is missing, locks all tools, and measures.
///
/// # Errors
/// When a program that is measured fails.
pub fn rows(qk: &Path, options: &Options) -> Result<Vec<Row>> {
    let mut lab = Lab::kept(qk, &options.home, &options.tools)?;
    let cache = lab.client()?;
    let gateway = Gateway::configure(&lab, &cache, options.binstall.is_some())?;
    let parent = lab.start_cache(&cache)?;
    let all = Project::lock(&lab, &options.tools, &parent)?;
    let one = Project::lock(&lab, &options.tools[..1], &parent)?;
    eprintln!(
        "Fetching {} tools {} times each way",
        options.tools.len(),
        options.runs
    );

    let mut rows = Vec::new();
    let fetch = |project: &Project<'_>| {
        Samples::take(options.runs, || project.fetch(&mut Fresh::new(&lab)?))
    };
    let bin = lab.directory()?;
    let target = lab.target()?;
    let curl = |tools: &[String], into: &Path| gateway.curl(tools, &target, into);
    let binstall = match &options.binstall {
        Some(program) => Some(gateway.binstall(program, &lab, &options.tools, &target)?),
        None => None,
    };
    for (name, project, most) in [("tools", &all, ALL_MAX), ("tool", &one, ONE_MAX)] {
        // The gateway packs once; what it packed is what is measured.
        curl(&project.tools, &bin)?;
        let fetched = fetch(project)?;
        let curled = Samples::take(options.runs, || curl(&project.tools, &bin))?;
        let median = Row::new(format!("{name}_locked"), fetched.median(), "s");
        rows.extend(spread(
            &format!("{name}_locked"),
            &fetched,
            Some(Goal::AtMost(most)),
        ));
        rows.extend(spread(&format!("{name}_curl_tar"), &curled, None));
        rows.push(median.ratio(&Row::new(format!("{name}_curl_tar"), curled.median(), "s")));
        if let Some(binstall) = &binstall {
            let install = || binstall.install(&project.tools, &lab.directory()?);
            let installed = Samples::take(options.runs, install)?;
            rows.extend(spread(&format!("{name}_binstall"), &installed, None));
            let installed = Row::new(format!("{name}_binstall"), installed.median(), "s");
            rows.push(median.ratio(&installed));
        }
    }
    rows.extend(up_to_date(&lab, &all, binstall.as_ref(), options)?);
    rows.extend(run(&lab, &one, options)?);
    let bytes = fs::metadata(lab.qk())?.len() as f64;
    rows.push(Row::new("qk_executable", bytes, "B").with_goal(Goal::AtMost(BYTES_MAX)));
    Ok(rows)
}

/// All of them when there is nothing to do.
fn up_to_date(
    lab: &Lab,
    all: &Project<'_>,
    binstall: Option<&Binstall<'_>>,
    options: &Options,
) -> Result<Vec<Row>> {
    let mut installed = Fresh::new(lab)?;
    all.fetch(&mut installed)?;
    let again = Samples::take(options.runs, || all.fetch(&mut installed))?;
    let mut rows = spread(
        "tools_up_to_date",
        &again,
        Some(Goal::AtMost(UP_TO_DATE_MAX)),
    );
    if let Some(binstall) = binstall {
        let root = lab.directory()?;
        binstall.install(&all.tools, &root)?;
        let others = Samples::take(options.runs, || binstall.install(&all.tools, &root))?;
        rows.extend(spread("tools_up_to_date_binstall", &others, None));
        let ours = Row::new("tools_up_to_date", again.median(), "s");
        rows.push(ours.ratio(&Row::new("tools_up_to_date_binstall", others.median(), "s")));
    }
    Ok(rows)
}

/// `qk run` of what is in the store, beside the program itself.
fn run(lab: &Lab, one: &Project<'_>, options: &Options) -> Result<Vec<Row>> {
    let mut installed = Fresh::new(lab)?;
    one.fetch(&mut installed)?;
    let tool = &one.tools[0];
    let name = tool.split('@').next().unwrap_or(tool);
    let through = |mut command: Command| -> Result<f64> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        cargo::run(&mut command)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let qk_run = || {
        let mut command = lab.command(&installed.client, &["run"]);
        command.args([tool, "--", "--version"]);
        command
    };
    // The first one unpacks.
    through(qk_run())?;
    let mut overhead = Vec::new();
    for _ in 0..options.runs.max(20) {
        let mut direct = Command::new(installed.root.join("bin").join(name));
        direct.arg("--version");
        let direct = through(direct)?;
        overhead.push(through(qk_run())? - direct);
    }
    Ok(spread(
        "run_overhead",
        &Samples::of(overhead)?,
        Some(Goal::AtMost(RUN_MAX)),
    ))
}

/// A client that has nothing yet, and where it installs.
struct Fresh {
    client: String,
    root: PathBuf,
    /// Whether that was done.
    is_installed: bool,
}

impl Fresh {
    fn new(lab: &Lab) -> Result<Self> {
        Ok(Self {
            client: lab.client()?,
            root: lab.directory()?,
            is_installed: false,
        })
    }
}

/// A directory with `qk.toml` and `qk.lock`.
struct Project<'a> {
    lab: &'a Lab,
    tools: Vec<String>,
    dir: PathBuf,
    parent: String,
}

impl<'a> Project<'a> {
    /// Locks these tools, which also fills the cache.
    fn lock(lab: &'a Lab, tools: &[String], parent: &str) -> Result<Self> {
        let dir = lab.directory()?;
        let mut text = "[tools]\n".to_owned();
        for tool in tools {
            let (name, version) = tool.split_once('@').context("a tool has no version")?;
            text += &format!("{name} = \"={version}\"\n");
        }
        fs::write(dir.join("qk.toml"), text)?;
        let project = Self {
            lab,
            tools: tools.to_vec(),
            dir,
            parent: parent.to_owned(),
        };
        let fresh = Fresh::new(lab)?;
        lab::json(&mut project.command(&fresh, &[]))?;
        ensure!(
            project.dir.join("qk.lock").exists(),
            "no qk.lock was written"
        );
        Ok(project)
    }

    fn command(&self, fresh: &Fresh, more: &[&str]) -> Command {
        let root = fresh.root.to_string_lossy();
        let args = [&["fetch", "--fallback", "none", "--root", &root][..], more].concat();
        let mut command = self.lab.command(&fresh.client, &args);
        command
            .current_dir(&self.dir)
            .env("QK_PARENT", &self.parent);
        command
    }

    /// Seconds of `qk fetch --locked`.
    fn fetch(&self, fresh: &mut Fresh) -> Result<f64> {
        let start = Instant::now();
        let printed: Value = lab::json(&mut self.command(fresh, &["--locked"]))?;
        let seconds = start.elapsed().as_secs_f64();
        let count = printed["tools"].as_array().map_or(0, Vec::len);
        let again = printed["up_to_date"] == true;
        ensure!(
            again == fresh.is_installed && (again || count == self.tools.len()),
            "not all were fetched: {printed}"
        );
        fresh.is_installed = true;
        Ok(seconds)
    }
}

/// The cache's gateway.
struct Gateway {
    /// `http://…` or `https://…`.
    base: String,
    /// An index of crates beside it, empty as yet, and its files; whose certificate the gateway has, too.
    index: Option<(Nginx, PathBuf)>,
}

impl Gateway {
    /// Lets a node have one when it starts.
    fn configure(lab: &Lab, name: &str, tls: bool) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", lab::free_port()?);
        let mut text = format!("[gateway]\nlisten = {listen:?}\n");
        let index = match tls {
            true => {
                let (files, dir) = (lab.directory()?, lab.directory()?);
                let nginx = Nginx::start(&files, &dir.join("nginx"), Ipv4Addr::LOCALHOST.into())?;
                let (certificate, key) = (nginx.certificate(), nginx.key());
                text += &format!("tls_certificate = {certificate:?}\ntls_key = {key:?}\n");
                Some((nginx, files))
            }
            false => None,
        };
        lab.configure(name, &text)?;
        let scheme = index.as_ref().map_or("http", |_| "https");
        let base = format!("{scheme}://{listen}");
        Ok(Self { base, index })
    }

    /// Seconds of `curl URL | tar xz` for each tool, one after another.
    fn curl(&self, tools: &[String], target: &str, into: &Path) -> Result<f64> {
        tools.iter().try_fold(0.0, |sum, tool| {
            let path = tool.replace('@', "/");
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail"]);
            if let Some((nginx, _)) = &self.index {
                curl.arg("--cacert").arg(nginx.certificate());
            }
            curl.arg(format!("{}/{path}/{target}.tgz", self.base));
            Ok(sum + curl_tar(&mut curl, into)?)
        })
    }

    /// cargo-binstall that fetches these tools from here.
    fn binstall(
        &self,
        program: &Path,
        lab: &Lab,
        tools: &[String],
        target: &str,
    ) -> Result<Binstall<'_>> {
        let (nginx, files) = self.index.as_ref().context("it has no TLS")?;
        for tool in tools {
            let executables = lab.directory()?;
            self.curl(std::slice::from_ref(tool), target, &executables)?;
            binstall::publish(files, tool, &executables)
                .with_context(|| format!("an index entry of {tool}"))?;
        }
        Binstall::new(program, nginx, files, &self.base)
    }
}
