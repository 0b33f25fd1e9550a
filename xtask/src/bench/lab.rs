//! A network of real `qk` processes on one machine that holds one artifact, proven by two principals.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo;

const PUBLISHER: &str = "alice";
const VERIFIERS: [&str; 2] = ["bob", "carol"];

/// The network; its nodes run until it is dropped.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
    qk: PathBuf,
    /// Shared by all operators.
    toolchains: PathBuf,
    nodes: Vec<Child>,
    clients: AtomicUsize,
    host: IpAddr,
    /// Where the publisher's home stays from run to run; with the others' otherwise.
    kept: Option<PathBuf>,
}

impl Lab {
    /// Founds a network, starts its three nodes at an address of this machine, and lets the publisher
    /// build `package` and both verifiers rebuild it.
    ///
    /// # Errors
    /// When a process fails; what it said is in the message.
    pub fn start(qk: &Path, package: &str, host: IpAddr) -> Result<Self> {
        let mut lab = Self {
            dir: tempfile::Builder::new().prefix("qk-bench-").tempdir()?,
            qk: qk.to_owned(),
            toolchains: toolchains()?,
            nodes: Vec::new(),
            clients: AtomicUsize::new(0),
            host,
            kept: None,
        };
        lab.found()?;
        eprintln!("Building {package} three times, in three sandboxes");
        lab.json(PUBLISHER, &["build", package])?;
        for name in VERIFIERS {
            lab.json(name, &["verify", package])?;
        }
        Ok(lab)
    }

    /// A network whose only principal is the publisher, with what it built in earlier runs below `dir`;
    /// builds what of `packages` is missing, once each, and starts the publisher's node.
    ///
    /// # Errors
    /// When a process fails; what it said is in the message.
    pub fn kept(qk: &Path, dir: &Path, packages: &[String]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut lab = Self {
            dir: tempfile::Builder::new().prefix("qk-bench-").tempdir()?,
            qk: qk.to_owned(),
            toolchains: toolchains()?,
            nodes: Vec::new(),
            clients: AtomicUsize::new(0),
            host: Ipv4Addr::LOCALHOST.into(),
            kept: Some(fs::canonicalize(dir)?),
        };
        let file = lab.network_file();
        let listen = dir.join("address");
        if !Path::new(&file).exists() {
            let address = lab.listen(free_port()?);
            fs::write(&listen, &address)?;
            let new = ["network", "new", "bench", "--principal", PUBLISHER];
            let new = [&new[..], &["--threshold", "1", "--bootstrap", &address]].concat();
            lab.json(PUBLISHER, &[&new[..], &["--output", &file]].concat())?;
        }
        // Some days may have gone by.
        lab.json(PUBLISHER, &["network", "renew", "--output", &file])?;
        let built = lab.built()?;
        for package in packages.iter().filter(|one| !built.contains(*one)) {
            eprintln!("Building {package}");
            lab.json(PUBLISHER, &["build", package, "--no-gate"])?;
        }
        lab.node(PUBLISHER, &fs::read_to_string(listen)?)?;
        Ok(lab)
    }

    /// `NAME@VERSION` of what the publisher's store has.
    fn built(&self) -> Result<BTreeSet<String>> {
        let stored = self.json(PUBLISHER, &["store", "ls"])?;
        let stored = stored["artifacts"].as_array().context("no list")?;
        let release = |one: &Value| {
            let (name, version) = (
                one["key"]["name"].as_str()?,
                one["key"]["version"].as_str()?,
            );
            Some(format!("{name}@{version}"))
        };
        Ok(stored.iter().filter_map(release).collect())
    }

    /// What the publisher builds for.
    ///
    /// # Errors
    /// When its store has nothing.
    pub fn target(&self) -> Result<String> {
        let stored = self.json(PUBLISHER, &["store", "ls"])?;
        let target = stored["artifacts"][0]["key"]["target"].as_str();
        Ok(target.context("nothing is built")?.to_owned())
    }

    /// Adds to somebody's configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, name: &str, more: &str) -> Result<()> {
        let path = self.home(name).join("config.toml");
        let known = fs::read_to_string(&path).unwrap_or_default();
        Ok(fs::write(path, known + more)?)
    }

    fn home(&self, name: &str) -> PathBuf {
        match &self.kept {
            Some(kept) if name == PUBLISHER => kept.join(name),
            _ => self.dir.path().join(name),
        }
    }

    /// The home of one more client: it joined the network, and its store is empty.
    ///
    /// # Errors
    /// When `qk join` fails.
    pub fn client(&self) -> Result<String> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("client-{number}");
        let file = self.network_file();
        self.json(&name, &["join", &file])?;
        Ok(name)
    }

    /// Starts the node of somebody who joined as a cache; returns where it is.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_cache(&mut self, name: &str) -> Result<String> {
        let listen = self.listen(0);
        let said = self.run_node(name, &["--cache", "--listen", &listen])?;
        let said: Value = serde_json::from_str(&said)?;
        let address = said["addresses"][0].as_str();
        Ok(address.context("it listens nowhere")?.to_owned())
    }

    /// Who has the artifact from the beginning.
    pub fn publishers(&self) -> Vec<&'static str> {
        [&[PUBLISHER], &VERIFIERS[..]].concat()
    }

    /// Bytes of artifacts that these nodes sent so far.
    ///
    /// # Errors
    /// When one of them does not answer.
    pub fn sent_bytes(&self, names: &[&str]) -> Result<u64> {
        let mut sum = 0;
        for name in names {
            let status = self.json(name, &["status"])?;
            let networks = status["networks"].as_array().into_iter().flatten();
            sum += networks
                .filter_map(|one| one["sent_bytes"].as_u64())
                .sum::<u64>();
        }
        Ok(sum)
    }

    /// A new directory that is gone with the network.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self) -> Result<PathBuf> {
        let dir = tempfile::Builder::new().tempdir_in(self.dir.path())?;
        Ok(dir.keep())
    }

    /// `qk` with these arguments as the operator of this name.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        self.extend(Command::new(&self.qk), name, args)
    }

    /// The same, of a command that starts `qk`, for example in another namespace.
    pub fn extend(&self, mut command: Command, name: &str, args: &[&str]) -> Command {
        command
            .args(args)
            .arg("--json")
            .env("QK_HOME", self.home(name))
            .env("QK_TOOLCHAINS", &self.toolchains)
            .stdin(Stdio::null());
        cargo::forget_caller(&mut command);
        command
    }

    fn found(&mut self) -> Result<()> {
        let address = self.listen(free_port()?);
        let file = self.network_file();
        let new = ["network", "new", "bench", "--principal", PUBLISHER];
        let new = [&new[..], &["--bootstrap", &address, "--output", &file]].concat();
        self.json(PUBLISHER, &new)?;
        for name in VERIFIERS {
            let key = self.json(name, &["network", "key"])?;
            let key = key["key"].as_str().context("no key")?;
            let add = ["network", "add", name, key, "--role", "verifier"];
            let add = [&add[..], &["--output", &file]].concat();
            self.json(PUBLISHER, &add)?;
        }
        for name in VERIFIERS {
            self.json(name, &["join", &file])?;
        }
        self.node(PUBLISHER, &address)?;
        VERIFIERS
            .iter()
            .try_for_each(|name| self.node(name, &self.listen(0)))
    }

    fn listen(&self, port: u16) -> String {
        let family = if self.host.is_ipv4() { "ip4" } else { "ip6" };
        format!("/{family}/{}/tcp/{port}", self.host)
    }

    /// The executable that is measured.
    pub fn qk(&self) -> &Path {
        &self.qk
    }

    fn node(&mut self, name: &str, listen: &str) -> Result<()> {
        self.run_node(name, &["--listen", listen]).map(drop)
    }

    /// Starts a node and waits until it says where it listens, which is returned.
    fn run_node(&mut self, name: &str, args: &[&str]) -> Result<String> {
        let log = self.dir.path().join(format!("{name}.log"));
        let mut child = self
            .command(name, &[&["node"], args].concat())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let stdout = child.stdout.take();
        self.nodes.push(child);
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        ensure!(
            !line.trim().is_empty(),
            "{name}'s node did not start: {}",
            fs::read_to_string(&log)?.trim()
        );
        Ok(line)
    }

    fn json(&self, name: &str, args: &[&str]) -> Result<Value> {
        json(&mut self.command(name, args))
    }

    fn network_file(&self) -> String {
        let dir = self.kept.as_deref().unwrap_or(self.dir.path());
        let file = dir.join("bench.qknet");
        file.to_string_lossy().into_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may be gone already, and then there is nothing to do.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Runs a command to its end and reads the JSON document that it prints.
///
/// # Errors
/// When it fails; what it printed is in the message.
pub fn json(command: &mut Command) -> Result<Value> {
    let line = cargo::describe(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    ensure!(
        output.status.success(),
        "`{line}` failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).with_context(|| format!("`{line}` printed no JSON"))
}

/// A port of this machine that nobody listens at now.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Where `qk setup` installs, as `qk` finds it: operators of the network share it.
fn toolchains() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(toolchains) = set("QK_TOOLCHAINS") {
        return Ok(toolchains.into());
    }
    let data = || {
        set("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".local/share")))
    };
    let home = set("QK_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(data()?.join("qk")));
    Ok(home.context("HOME is not set")?.join("toolchains"))
}
