//! What a node costs that does nothing: memory, processor, network.
//!
//! A real `qk node` in a network namespace of its own, so that what it sends and is sent can be told
//! from everything else; its peers are whole nodes too, several in one process.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::sample::{self, Samples};
use super::service::Service;
use super::{Goal, Row};
use crate::cargo;

/// MiB of resident memory.
const MEMORY_MAX: f64 = 40.0;
/// Share of one processor.
const CPU_MAX: f64 = 0.005;
/// Bytes a second, both directions, with the headers of TCP, IP and Ethernet.
const TRAFFIC_MAX: f64 = 1000.0;
const PEERS: usize = 16;
const STATEMENTS: usize = 10_000;
/// What comes before the measurement: connections, look-ups, introductions.
const SETTLE: Duration = Duration::from_secs(30);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const PEERS_AT: Ipv4Addr = Ipv4Addr::new(10, 213, 78, 1);
const NODE_AT: Ipv4Addr = Ipv4Addr::new(10, 213, 78, 2);
const PORT: u16 = 4711;

/// What to measure, and with what.
#[derive(Debug)]
pub struct Options {
    /// The `qk` that is measured.
    pub qk: PathBuf,
    /// Fills stores and runs peers.
    pub program: PathBuf,
    /// How long.
    pub time: Duration,
}

/// Starts a node with a full store and sixteen peers, and watches it.
///
/// # Errors
/// When this is not root, or a process fails.
pub fn rows(options: &Options) -> Result<Vec<Row>> {
    if !rustix::process::geteuid().is_root() {
        bail!("a network namespace needs root");
    }
    let site = Site::new(options)?;
    let node = site.node()?;
    let _peers = site.peers()?;
    eprintln!("Settling for {} s", SETTLE.as_secs());
    std::thread::sleep(SETTLE);
    eprintln!("Watching for {} s", options.time.as_secs());
    let watched = site.watch(&node, options.time)?;
    let seconds = watched.seconds;
    let cpu = Row::new("idle_cpu", watched.cpu / seconds, "cores");
    let traffic = Row::new("idle_traffic", watched.bytes as f64 / seconds, "B/s");
    let memory = Row::new("idle_memory", watched.memory.max(), "MiB");
    Ok(vec![
        memory.with_goal(Goal::AtMost(MEMORY_MAX)),
        Row::new("idle_memory_median", watched.memory.median(), "MiB"),
        cpu.with_goal(Goal::AtMost(CPU_MAX)),
        traffic.with_goal(Goal::AtMost(TRAFFIC_MAX)),
        Row::new("idle_packets", watched.packets as f64 / seconds, "1/s"),
        Row::new("idle_peers", watched.peers.median(), "peers"),
        Row::new("idle_peers_min", watched.peers.min(), "peers"),
        Row::new("idle_statements", STATEMENTS as f64, "statements"),
        Row::new("idle_time", seconds, "s"),
    ])
}

/// Homes, the namespace, and the way into it.
struct Site<'a> {
    options: &'a Options,
    dir: tempfile::TempDir,
    namespace: Namespace,
}

/// What was seen of a node.
struct Watched {
    seconds: f64,
    memory: Samples,
    cpu: f64,
    bytes: u64,
    packets: u64,
    peers: Samples,
}

impl<'a> Site<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let site = Self {
            options,
            dir: tempfile::Builder::new().prefix("qk-bench-").tempdir()?,
            namespace: Namespace::new()?,
        };
        let file = site.dir.path().join("idle.qknet").display().to_string();
        let address = format!("/ip4/{NODE_AT}/tcp/{PORT}");
        let new = ["network", "new", "idle", "--principal", "alice"];
        let new = [&new[..], &["--bootstrap", &address, "--output", &file]].concat();
        cargo::run_aside(site.qk("node").args(new))?;
        for number in 0..PEERS {
            cargo::run_aside(site.qk(&format!("peer-{number}")).args(["join", &file]))?;
        }
        eprintln!("Signing {STATEMENTS} statements");
        let mut fill = Command::new(&options.program);
        fill.arg("fill")
            .arg(site.home("node"))
            .arg(site.home("peer-0"));
        cargo::run_aside(fill.arg(STATEMENTS.to_string()))?;
        Ok(site)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn qk(&self, name: &str) -> Command {
        let mut qk = Command::new(&self.options.qk);
        qk.env("QK_HOME", self.home(name)).stdin(Stdio::null());
        cargo::forget_caller(&mut qk);
        qk
    }

    /// As its user starts it, in the namespace.
    fn node(&self) -> Result<Running> {
        let mut node = self.namespace.within(&self.options.qk);
        node.env("QK_HOME", self.home("node"));
        cargo::forget_caller(&mut node);
        let listen = format!("/ip4/0.0.0.0/tcp/{PORT}");
        node.args(["node", "--json", "--listen", &listen]);
        let child = node
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the node")?;
        let mut running = Running(child);
        let stdout = running.0.stdout.take().context("no standard output")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        ensure!(!line.is_empty(), "the node did not start");
        Ok(running)
    }

    fn peers(&self) -> Result<Service> {
        let mut peers = Command::new(&self.options.program);
        peers.arg("peers").arg(format!("/ip4/{PEERS_AT}/tcp/0"));
        for number in 0..PEERS {
            let home = self.home(&format!("peer-{number}"));
            // They look for nobody on the LAN: what they would send there is no traffic of the node.
            std::fs::write(home.join("config.toml"), "mdns = false\n")?;
            peers.arg(home);
        }
        Service::start(&mut peers)
    }

    fn watch(&self, node: &Running, time: Duration) -> Result<Watched> {
        let id = node.0.id();
        let (start, cpu) = (Instant::now(), sample::cpu_of(id)?);
        let counted = self.namespace.counted()?;
        let (mut memory, mut peers) = (Vec::new(), Vec::new());
        while start.elapsed() < time {
            memory.push(resident_mib(id)?);
            peers.push(self.namespace.connections()?);
            std::thread::sleep(SAMPLE_EVERY.min(time));
        }
        let now = self.namespace.counted()?;
        Ok(Watched {
            seconds: start.elapsed().as_secs_f64(),
            memory: Samples::of(memory)?,
            cpu: sample::cpu_of(id)? - cpu,
            bytes: now.0 - counted.0,
            packets: now.1 - counted.1,
            peers: Samples::of(peers)?,
        })
    }
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already, and then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace with one way in, whose packets are counted.
struct Namespace {
    name: String,
    interface: String,
}

impl Namespace {
    fn new() -> Result<Self> {
        let id = std::process::id();
        // Names of interfaces have at most 15 characters.
        let (inside, interface) = (format!("qkn{id}"), format!("qkp{id}"));
        let namespace = Self {
            name: format!("qk-idle-{id}"),
            interface,
        };
        let (name, outside) = (&namespace.name, &namespace.interface);
        ip(&["netns", "add", name])?;
        let pair = ["type", "veth", "peer", "name", &inside, "netns", name];
        ip(&[&["link", "add", outside][..], &pair].concat())?;
        let net = |host: Ipv4Addr| format!("{}/30", IpAddr::from(host));
        ip(&["address", "add", &net(PEERS_AT), "dev", outside])?;
        ip(&["link", "set", outside, "up"])?;
        ip(&["-n", name, "address", "add", &net(NODE_AT), "dev", &inside])?;
        ip(&["-n", name, "link", "set", &inside, "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn within(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Bytes and packets that went either way so far.
    fn counted(&self) -> Result<(u64, u64)> {
        let read = |what: &str| -> Result<u64> {
            let path = format!("/sys/class/net/{}/statistics/{what}", self.interface);
            let text = std::fs::read_to_string(&path).with_context(|| path)?;
            Ok(text.trim().parse()?)
        };
        let bytes = read("rx_bytes")? + read("tx_bytes")?;
        Ok((bytes, read("rx_packets")? + read("tx_packets")?))
    }

    /// TCP connections that are open, as the kernel counts them: nobody asks the node.
    fn connections(&self) -> Result<f64> {
        let mut ss = self.within(Path::new("ss"));
        let ss = ss.args(["-Htn", "state", "established"]).output()?;
        ensure!(ss.status.success(), "ss failed: {}", ss.status);
        Ok(String::from_utf8_lossy(&ss.stdout).lines().count() as f64)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its interface goes with it, and the other end with that.
        let _ = ip(&["netns", "delete", &self.name]);
        let _ = ip(&["link", "delete", &self.interface]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let mut ip = Command::new("ip");
    cargo::run_aside(ip.args(args).stdin(Stdio::null()).stderr(Stdio::null()))
}

fn resident_mib(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context(path)?.parse::<f64>()? / 1024.0)
}
