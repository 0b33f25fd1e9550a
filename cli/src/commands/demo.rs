//! `qk demo`: a whole network on this machine, with processes, keys and stores of their own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qk_node::home::Home;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::Serialize;
use serde_json::Value;

use crate::args::{CrateSpec, DemoArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::Output;

/// What the demo shows, and prints as one object with `--json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    #[serde(rename = "crate")]
    krate: String,
    root: String,
    key_id: String,
    source: String,
    lock: String,
    archive: PathBuf,
    b3sum: String,
    refused: Refused,
    observations: Vec<Value>,
    /// What each verifier says of the work of those who observed before it.
    work: Vec<Work>,
    installed: Installed,
    blocks_verified: u64,
    bytes: u64,
    stages: Vec<Stage>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "DemoWork"))]
struct Work {
    principal: &'static str,
    agree: usize,
    differ: usize,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "DemoRefused"))]
struct Refused {
    exit_code: i32,
    error: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "DemoInstalled"))]
struct Installed {
    path: PathBuf,
    version: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "DemoStage"))]
struct Stage {
    name: String,
    seconds: f64,
}

/// How long the processes of an interrupted demo may take to end.
const STRIKE_MAX: Duration = Duration::from_secs(3);
/// The verifiers of the demo, beside the publisher.
const VERIFIERS: [&str; 2] = ["bob", "carol"];

pub(crate) async fn run(args: DemoArgs, output: Output) -> Outcome {
    let other = |error: std::io::Error| Failure::new(Kind::Other, format!("demo: {error}"));
    let dir = tempfile::Builder::new()
        .prefix("qk-demo-")
        .tempdir()
        .map_err(other)?;
    let set = Arc::new(Set {
        path: dir.path().to_owned(),
        dir: Mutex::new(Some(dir)),
        children: Mutex::default(),
    });
    // Dropped with this future, which is what Ctrl-C does.
    let _strike = Strike(set.clone());
    let keep = args.keep;
    let played = tokio::task::spawn_blocking(move || {
        let mut demo = Demo::new(&output, set)?;
        let report = demo.play(&args.krate)?;
        output.result(&report, summary);
        if keep {
            demo.set.keep();
            output.line(format!("kept: {}", demo.set.path.display()));
        }
        Ok(())
    });
    played.await.map_err(crate::session::failed)?
}

/// Processes and directories of a demo.
#[derive(Debug)]
struct Set {
    path: PathBuf,
    dir: Mutex<Option<tempfile::TempDir>>,
    children: Mutex<Vec<Pid>>,
}

/// Ends a demo's processes and removes its directories when it is dropped: also when the demo is
/// interrupted while it waits for one of them.
struct Strike(Arc<Set>);

impl Drop for Strike {
    fn drop(&mut self) {
        let children = std::mem::take(&mut *lock(&self.0.children));
        for child in &children {
            let _ = kill_process(*child, Signal::TERM);
        }
        let begin = Instant::now();
        // Not for ever: what does not end within seconds is not waited for.
        while begin.elapsed() < STRIKE_MAX
            && children
                .iter()
                .any(|child| test_kill_process(*child).is_ok())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(lock(&self.0.dir).take());
    }
}

impl Set {
    fn keep(&self) {
        if let Some(mut dir) = lock(&self.dir).take() {
            dir.disable_cleanup(true);
        }
    }

    fn began(&self, child: &Child) {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        lock(&self.children).extend(pid);
    }

    /// Waits for a child that was begun, and forgets it.
    fn finish(&self, child: Child) -> std::io::Result<std::process::Output> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let finished = child.wait_with_output();
        lock(&self.children).retain(|one| Some(*one) != pid);
        finished
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Demo<'a> {
    output: &'a Output,
    set: Arc<Set>,
    program: PathBuf,
    toolchains: PathBuf,
    nodes: Vec<Child>,
    stages: Vec<Stage>,
    started: Instant,
}

impl<'a> Demo<'a> {
    fn new(output: &'a Output, set: Arc<Set>) -> Outcome<Self> {
        let home = Home::from_env().map_err(crate::session::failed)?;
        Ok(Self {
            output,
            set,
            program: std::env::current_exe().map_err(crate::session::failed)?,
            toolchains: home.toolchains().to_owned(),
            nodes: Vec::new(),
            stages: Vec::new(),
            started: Instant::now(),
        })
    }

    fn play(&mut self, krate: &CrateSpec) -> Outcome<Report> {
        self.stage(
            "a network: alice defines it, bob and carol are added, everybody joins",
            Self::found,
        )?;
        self.stage("three nodes start", Self::start)?;
        let spec = krate.to_string();
        let built = self.stage(
            &format!("alice builds {spec} in the sandbox, twice, and publishes it"),
            |demo| demo.json("alice", &["build", &spec]),
        )?;
        let spec = format!("{}@{}", krate.name, text(&built, "version"));
        let refused = self.stage("a client asks: one principal is not enough", |demo| {
            demo.refused(&spec)
        })?;
        let work = self.stage(
            "bob and carol rebuild it, each in a sandbox of their own, and publish",
            |demo| demo.rebuild(&spec),
        )?;
        let fetched = self.stage("the client asks again", |demo| demo.fetch(&spec, &[]))?;
        let one = &fetched["crates"][0];
        let installed = self.stage("the installed program runs", |demo| demo.run_installed(one))?;
        let root = text(one, "root");
        let archive = PathBuf::from(text(one, "archive"));
        let b3sum = b3sum(&archive)?;
        if b3sum != root || root != text(&built, "root") {
            let message = format!(
                "alice built {}, the client got {root}, its archive hashes to {b3sum}",
                text(&built, "root")
            );
            return Err(Failure::new(Kind::Corrupt, message));
        }
        Ok(Report {
            krate: spec,
            key_id: text(one, "key_id"),
            source: text(one, "source"),
            lock: text(one, "lock"),
            root,
            archive,
            b3sum,
            refused,
            work,
            observations: one["observations"].as_array().cloned().unwrap_or_default(),
            installed,
            blocks_verified: one["blocks_verified"].as_u64().unwrap_or_default(),
            bytes: one["bytes"].as_u64().unwrap_or_default(),
            stages: std::mem::take(&mut self.stages),
        })
    }

    /// Runs one step of the timeline and prints how long it took.
    fn stage<T>(&mut self, name: &str, step: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        let begin = Instant::now();
        let result = step(self);
        let seconds = begin.elapsed().as_secs_f64();
        let mark = if result.is_ok() { "✓" } else { "✗" };
        let at = self.started.elapsed().as_secs_f64();
        self.output
            .line(format!("{at:7.1} s  {mark} {name} ({seconds:.1} s)"));
        self.stages.push(Stage {
            name: name.to_owned(),
            seconds,
        });
        result
    }

    fn found(&mut self) -> Outcome {
        let port = free_port()?;
        let address = format!("/ip4/127.0.0.1/tcp/{port}");
        let file = self.set.path.join("demo.qknet");
        let file = file.to_string_lossy().into_owned();
        self.json(
            "alice",
            &[
                "network",
                "new",
                "demo",
                "--principal",
                "alice",
                "--bootstrap",
                &address,
                "--output",
                &file,
            ],
        )?;
        for name in VERIFIERS {
            let key = text(&self.json(name, &["network", "key"])?, "key");
            self.json(
                "alice",
                &[
                    "network", "add", name, &key, "--role", "verifier", "--output", &file,
                ],
            )?;
        }
        for name in VERIFIERS.into_iter().chain(["client"]) {
            self.json(name, &["join", &file])?;
        }
        self.spawn("alice", &["node", "--listen", &address])
    }

    fn start(&mut self) -> Outcome {
        VERIFIERS
            .into_iter()
            .try_for_each(|name| self.spawn(name, &["node", "--listen", "/ip4/127.0.0.1/tcp/0"]))
    }

    fn refused(&mut self, spec: &str) -> Outcome<Refused> {
        match self.fetch(spec, &[]) {
            Err(failure) if failure.kind == Kind::Unproven => Ok(Refused {
                exit_code: failure.exit_code.into(),
                error: failure.error,
            }),
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::new(
                Kind::Other,
                "the client took an artifact that only one principal observed",
            )),
        }
    }

    fn fetch(&mut self, spec: &str, more: &[&str]) -> Outcome<Value> {
        let root = self
            .set
            .path
            .join("installed")
            .to_string_lossy()
            .into_owned();
        let args = [
            &["fetch", spec, "--fallback", "none", "--root", &root],
            more,
        ]
        .concat();
        self.json("client", &args)
    }

    /// Both at the same time, as two operators would.
    fn rebuild(&mut self, spec: &str) -> Outcome<Vec<Work>> {
        let begun: Vec<_> = VERIFIERS
            .into_iter()
            .map(|name| self.begin(name, &["verify", spec]))
            .collect();
        let mut work = Vec::new();
        for (principal, child) in VERIFIERS.into_iter().zip(begun) {
            let rebuilt = result_of(principal, self.set.finish(child?))?;
            let count = |what: &str| rebuilt["work"][what].as_array().map_or(0, Vec::len);
            work.push(Work {
                principal,
                agree: count("agree"),
                differ: count("differ"),
            });
        }
        Ok(work)
    }

    fn run_installed(&mut self, fetched: &Value) -> Outcome<Installed> {
        let path = PathBuf::from(fetched["installed"][0].as_str().unwrap_or_default());
        let run = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        let printed = run.map_err(|error| {
            Failure::new(Kind::Incompatible, format!("{}: {error}", path.display()))
        })?;
        if !printed.status.success() {
            let message = format!("{} --version: {}", path.display(), printed.status);
            return Err(Failure::new(Kind::Incompatible, message));
        }
        let version = String::from_utf8_lossy(&printed.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok(Installed { path, version })
    }

    /// Starts a node that runs until the demo ends, and waits until it listens.
    fn spawn(&mut self, name: &str, args: &[&str]) -> Outcome {
        let failed = |error: std::io::Error| Failure::new(Kind::Other, format!("{name}: {error}"));
        let log = self.set.path.join(format!("{name}.log"));
        let stderr = std::fs::File::create(&log).map_err(failed)?;
        let mut command = self.command(name, args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        self.set.began(&child);
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(failed)?;
        }
        self.nodes.push(child);
        if line.trim().is_empty() {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(Failure::new(
                Kind::Other,
                format!("{name}'s node did not start: {}", log.trim()),
            ));
        }
        Ok(())
    }

    /// Runs a command of somebody to its end.
    fn json(&mut self, name: &str, args: &[&str]) -> Outcome<Value> {
        let child = self.begin(name, args)?;
        result_of(name, self.set.finish(child))
    }

    fn begin(&self, name: &str, args: &[&str]) -> Outcome<Child> {
        let mut command = self.command(name, args);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.map_err(|error| Failure::new(Kind::Other, format!("{name}: {error}")))?;
        self.set.began(&child);
        Ok(child)
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .arg("--json")
            .env("QK_HOME", self.set.path.join(name))
            .env("QK_TOOLCHAINS", &self.toolchains)
            // Its nodes work on battery, too: it was asked for, and is over soon.
            .env("QK_POWER_SUPPLY_DIR", self.set.path.join("no-supplies"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Demo<'_> {
    /// Ends the nodes and waits for them, so that they are gone when the demo says that it is over.
    fn drop(&mut self) {
        for child in &mut self.nodes {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for child in &mut self.nodes {
            let _ = child.wait();
        }
        lock(&self.set.children).clear();
    }
}

/// The JSON that a command printed, or the failure that it printed instead.
fn result_of(name: &str, finished: std::io::Result<std::process::Output>) -> Outcome<Value> {
    let finished =
        finished.map_err(|error| Failure::new(Kind::Other, format!("{name}: {error}")))?;
    let printed: Value = serde_json::from_slice(&finished.stdout).unwrap_or_default();
    if finished.status.success() {
        return Ok(printed);
    }
    let kind = Kind::from_exit_code(finished.status.code());
    let error = printed["error"].as_str().map_or_else(
        || String::from_utf8_lossy(&finished.stderr).trim().to_owned(),
        str::to_owned,
    );
    Err(Failure::new(kind, format!("{name}: {error}")))
}

fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_default().to_owned()
}

/// The plain BLAKE3 of a file: what `b3sum` prints.
fn b3sum(path: &Path) -> Outcome<String> {
    let bytes = std::fs::read(path);
    let bytes =
        bytes.map_err(|error| Failure::new(Kind::Other, format!("{}: {error}", path.display())))?;
    Ok(qk_protocol::hash::Root::of(&bytes).to_string())
}

fn free_port() -> Outcome<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address
        .map_err(|error| Failure::new(Kind::Network, error))?
        .port())
}

fn summary(report: &Report) -> String {
    let mut lines = vec![
        String::new(),
        format!(
            "{} printed {:?}",
            report.installed.path.display(),
            report.installed.version
        ),
        "The client checked:".to_owned(),
        format!(
            "  source   sha256 {}  (the registry's index)",
            report.source
        ),
        format!("  lock     sha256 {}", report.lock),
        format!("  key      {}", report.key_id),
        format!("  root     blake3 {}  (what b3sum prints)", report.root),
        format!(
            "  blocks   {} of 16 KiB, {} bytes",
            report.blocks_verified, report.bytes
        ),
    ];
    for observation in &report.observations {
        lines.push(format!(
            "  observed by {:<6} root {}",
            text(observation, "principal"),
            text(observation, "root")
        ));
    }
    lines.join("\n")
}
