//! A network of real `qk` processes on one machine that holds one artifact, proven by two principals.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    clients: usize,
    host: IpAddr,
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
            clients: 0,
            host,
        };
        lab.found()?;
        eprintln!("Building {package} three times, in three sandboxes");
        lab.json(PUBLISHER, &["build", package])?;
        for name in VERIFIERS {
            lab.json(name, &["verify", package])?;
        }
        Ok(lab)
    }

    /// The home of one more client: it joined the network, and its store is empty.
    ///
    /// # Errors
    /// When `qk join` fails.
    pub fn client(&mut self) -> Result<String> {
        self.clients += 1;
        let name = format!("client-{}", self.clients);
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
            .env("QK_HOME", self.dir.path().join(name))
            .env("QK_TOOLCHAINS", &self.toolchains)
            .stdin(Stdio::null());
        cargo::forget_caller(&mut command);
        command
    }

    fn found(&mut self) -> Result<()> {
        let port = TcpListener::bind((self.host, 0))?.local_addr()?.port();
        let address = self.listen(port);
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
            .stderr(std::fs::File::create(&log)?)
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
            std::fs::read_to_string(&log)?.trim()
        );
        Ok(line)
    }

    fn json(&self, name: &str, args: &[&str]) -> Result<Value> {
        json(&mut self.command(name, args))
    }

    fn network_file(&self) -> String {
        let file = self.dir.path().join("bench.qknet");
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
