//! What a node costs that does nothing: memory, processor, network.
//!
//! A real `qk node` as a laptop's owner starts it, with nothing said but the network, in a network
//! namespace of its own, so that what it sends and is sent can be told from everything else. Its peers
//! are whole nodes too, several in one process, more of them than it takes connections.

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
/// Other nodes: a laptop's has connections with 16 at most.
const OTHERS: usize = 20;
const STATEMENTS: usize = 10_000;
/// What comes before the measurement: connections, look-ups, introductions.
const SETTLE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_secs(15);
const OTHERS_AT: Ipv4Addr = Ipv4Addr::new(10, 213, 78, 1);
const NODE_AT: Ipv4Addr = Ipv4Addr::new(10, 213, 78, 2);
/// The first of the others is the one that the network names.
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

/// Starts a node with a full store among others, and watches it.
///
/// # Errors
/// When this is not root, or a process fails.
pub fn rows(options: &Options) -> Result<Vec<Row>> {
    if !rustix::process::geteuid().is_root() {
        bail!("a network namespace needs root");
    }
    let site = Site::new(options)?;
    let _others = site.others()?;
    let node = site.node()?;
    eprintln!("Settling for {} s", SETTLE.as_secs());
    std::thread::sleep(SETTLE);
    eprintln!("Watching for {} s", options.time.as_secs());
    let seen = site.watch(&node, options.time)?;
    let (first, last) = (
        seen.first().context("no look")?,
        seen.last().context("no look")?,
    );
    let all = last.since(first);
    let steps: Vec<Step> = seen
        .windows(2)
        .map(|pair| pair[1].since(&pair[0]))
        .collect();
    let of_steps = |value: fn(&Step) -> f64| Samples::of(steps.iter().map(value).collect());
    let of_looks = |value: fn(&Look) -> f64| Samples::of(seen.iter().map(value).collect());
    let (cpu, traffic) = (of_steps(|step| step.cpu)?, of_steps(|step| step.traffic)?);
    let memory = of_looks(|look| look.memory.resident)?;
    let connections = of_looks(|look| look.connections)?;
    let met = |name: &str, value: f64, unit, most| {
        Row::new(name, value, unit).with_goal(Goal::AtMost(most))
    };
    Ok(vec![
        met("idle_memory", memory.max(), "MiB", MEMORY_MAX),
        Row::new("idle_memory_median", memory.median(), "MiB"),
        Row::new("idle_memory_own", last.memory.own, "MiB"),
        Row::new("idle_memory_since_start", last.memory.peak, "MiB"),
        met("idle_cpu", all.cpu, "cores", CPU_MAX),
        Row::new("idle_cpu_median", cpu.median(), "cores"),
        Row::new("idle_cpu_peak", cpu.max(), "cores"),
        met("idle_traffic", all.traffic, "B/s", TRAFFIC_MAX),
        Row::new("idle_traffic_median", traffic.median(), "B/s"),
        Row::new("idle_traffic_peak", traffic.max(), "B/s"),
        Row::new("idle_packets", all.packets, "1/s"),
        Row::new("idle_connections", connections.median(), "connections"),
        Row::new("idle_connections_min", connections.min(), "connections"),
        Row::new("idle_peers", site.peers()? as f64, "peers"),
        Row::new("idle_statements", STATEMENTS as f64, "statements"),
        Row::new("idle_threads", last.memory.threads, "threads"),
        Row::new("idle_time", all.seconds, "s"),
    ])
}

/// Homes, the namespace, and the way into it.
struct Site<'a> {
    options: &'a Options,
    dir: tempfile::TempDir,
    namespace: Namespace,
}

/// What is seen of a node at a time.
struct Look {
    at: Instant,
    memory: Memory,
    /// Seconds of a processor since it started.
    cpu: f64,
    bytes: u64,
    packets: u64,
    connections: f64,
}

/// Memory in MiB.
struct Memory {
    resident: f64,
    /// Of this, what is no file's: its heap and stacks.
    own: f64,
    /// The most that was resident since the start.
    peak: f64,
    threads: f64,
}

/// What happens in a second, between two looks.
struct Step {
    seconds: f64,
    cpu: f64,
    traffic: f64,
    packets: f64,
}

impl Look {
    fn since(&self, before: &Self) -> Step {
        let seconds = (self.at - before.at).as_secs_f64();
        Step {
            seconds,
            cpu: (self.cpu - before.cpu) / seconds,
            traffic: (self.bytes - before.bytes) as f64 / seconds,
            packets: (self.packets - before.packets) as f64 / seconds,
        }
    }
}

impl<'a> Site<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let site = Self {
            options,
            dir: tempfile::Builder::new().prefix("qk-bench-").tempdir()?,
            namespace: Namespace::new()?,
        };
        let file = site.dir.path().join("idle.qknet").display().to_string();
        let address = format!("/ip4/{OTHERS_AT}/tcp/{PORT}");
        let new = ["network", "new", "idle", "--principal", "alice"];
        let new = [&new[..], &["--bootstrap", &address, "--output", &file]].concat();
        cargo::run_aside(site.qk("other-0").args(new))?;
        let others = (1..OTHERS).map(|number| format!("other-{number}"));
        for name in others.chain(["node".to_owned()]) {
            cargo::run_aside(site.qk(&name).args(["join", &file]))?;
        }
        eprintln!("Signing {STATEMENTS} statements");
        let mut fill = Command::new(&options.program);
        fill.arg("fill")
            .arg(site.home("node"))
            .arg(site.home("other-0"));
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
        node.args(["node", "--json"]);
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

    fn others(&self) -> Result<Service> {
        let mut others = Command::new(&self.options.program);
        others
            .arg("peers")
            .arg(OTHERS_AT.to_string())
            .arg(PORT.to_string())
            .arg(NODE_AT.to_string());
        for number in 0..OTHERS {
            let home = self.home(&format!("other-{number}"));
            // They look for nobody on the LAN: what they would send there is no traffic of the node.
            std::fs::write(home.join("config.toml"), "mdns = false\n")?;
            others.arg(home);
        }
        Service::start(&mut others)
    }

    fn watch(&self, node: &Running, time: Duration) -> Result<Vec<Look>> {
        let (start, mut seen) = (Instant::now(), Vec::new());
        loop {
            seen.push(self.look(node.0.id())?);
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(seen);
            }
            std::thread::sleep(LOOK_EVERY.min(left));
        }
    }

    fn look(&self, process: u32) -> Result<Look> {
        let (bytes, packets) = self.namespace.counted()?;
        Ok(Look {
            at: Instant::now(),
            memory: Memory::of(process)?,
            cpu: sample::cpu_of(process)?,
            bytes,
            packets,
            connections: self.namespace.connections()?,
        })
    }

    /// With how many nodes the node says that it is connected, after it was watched: asking costs.
    fn peers(&self) -> Result<usize> {
        let peers = self.qk("node").args(["peers", "--json"]).output()?;
        let peers: serde_json::Value = serde_json::from_slice(&peers.stdout)?;
        Ok(peers["peers"].as_array().context("no peers")?.len())
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
        ip(&["address", "add", &net(OTHERS_AT), "dev", outside])?;
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

impl Memory {
    fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let number = |name: &str| -> Result<f64> {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = value.and_then(|value| value.split_whitespace().next());
            let value = value.with_context(|| format!("no {name} in {path}"))?;
            Ok(value.parse()?)
        };
        let mib = |name| number(name).map(|kib| kib / 1024.0);
        Ok(Self {
            resident: mib("VmRSS")?,
            own: mib("RssAnon")?,
            peak: mib("VmHWM")?,
            threads: number("Threads")?,
        })
    }
}
