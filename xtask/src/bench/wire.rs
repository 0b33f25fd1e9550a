//! A slow wire: a network namespace that is reached with a delay and at a limited rate.
//!
//! netem would do both and is missing in many kernels. So the delay is a program's, which carries
//! packets between two TUN interfaces, and the rate is tbf's, on both ends.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::service::Service;
use crate::cargo;

/// Our end, in a range that is rarely used.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
/// The namespace's end.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 2);
/// Above what a rate of some hundred Mbit/s sends between two ticks of the kernel's clock.
const BURST: &str = "32kb";
/// How long a packet may wait for its turn: the buffer of an ordinary router.
const QUEUE: &str = "100ms";

/// What a wire is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Mbit/s, either way.
    pub mbit: u32,
    /// From one end to the other and back, in milliseconds.
    pub round_trip_ms: u64,
}

/// The namespace and the way into it, until it is dropped.
#[derive(Debug)]
pub struct Wire {
    namespace: String,
    _link: Service,
}

impl Wire {
    /// Whether one can be made here; otherwise why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn possible() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("a network namespace needs root");
        }
        if !Path::new("/dev/net/tun").exists() {
            bail!("there is no /dev/net/tun");
        }
        cargo::run_aside(Command::new("tc").arg("-Version"))
    }

    /// Makes the namespace; `program` carries the packets.
    ///
    /// # Errors
    /// When the kernel lacks something.
    pub fn new(program: &Path, shape: Shape) -> Result<Self> {
        let id = std::process::id();
        let namespace = format!("qk-bench-{id}");
        // At most 15 characters.
        let (left, right) = (format!("qkl{id}"), format!("qkr{id}"));
        let delay = (shape.round_trip_ms / 2).to_string();
        let mut link = Command::new(program);
        link.args(["link", &left, &right, "--delay-ms", &delay]);
        let wire = Self {
            _link: Service::start(&mut link)?,
            namespace,
        };
        let namespace = &wire.namespace;
        ip(&["netns", "add", namespace])?;
        ip(&["link", "set", &right, "netns", namespace])?;
        let outside = OUTSIDE.to_string();
        let inside = INSIDE.to_string();
        ip(&["address", "add", &outside, "peer", &inside, "dev", &left])?;
        ip(&["link", "set", &left, "up"])?;
        let within = ["-n", namespace];
        ip(&[
            &within[..],
            &["address", "add", &inside, "peer", &outside, "dev", &right],
        ]
        .concat())?;
        ip(&[&within[..], &["link", "set", &right, "up"]].concat())?;
        ip(&[&within[..], &["link", "set", "lo", "up"]].concat())?;
        wire.limit(Command::new("tc"), &left, shape)?;
        wire.limit(wire.within(Path::new("tc")), &right, shape)?;
        Ok(wire)
    }

    /// Our end's address.
    pub fn outside() -> IpAddr {
        OUTSIDE.into()
    }

    /// A command inside the namespace.
    pub fn within(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .arg(program);
        command
    }

    fn limit(&self, mut tc: Command, interface: &str, shape: Shape) -> Result<()> {
        let rate = format!("{}mbit", shape.mbit);
        let add = [
            "qdisc", "add", "dev", interface, "root", "tbf", "rate", &rate,
        ];
        tc.args(add).args(["burst", BURST, "latency", QUEUE]);
        cargo::run_aside(tc.stdin(Stdio::null()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.namespace]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    cargo::run_aside(Command::new("ip").args(args).stdin(Stdio::null()))
}
