//! A network of its own for the processes of a test: a network namespace with loopback and one
//! interface, a wire to nowhere, that multicast works on, and what goes over them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::lab::{run, send, wait};

/// The address of the interface beside loopback.
pub const ADDRESS: &str = "10.99.0.1";

/// A network namespace; it is gone when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one; where this machine gives none, the reason is printed, and the test is to end.
    pub fn new() -> Option<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("qk-test-{}-{number}", std::process::id());
        let added = ip(&["netns", "add", &name]);
        if let Err(why) = added {
            eprintln!("SKIPPED: this needs network namespaces, and there are none here: {why}");
            return None;
        }
        let namespace = Self { name };
        for line in [
            "link set lo up",
            "link add lan type veth peer name out",
            "addr add 10.99.0.1/24 dev lan",
            "link set out up",
            "link set lan up multicast on",
            "route add 224.0.0.0/4 dev lan",
        ] {
            let mut args = vec!["-n", &namespace.name];
            args.extend(line.split(' '));
            if let Err(why) = ip(&args) {
                eprintln!("SKIPPED: this needs a network namespace with `ip {line}`: {why}");
                return None;
            }
        }
        Some(Arc::new(namespace))
    }

    /// What `ip netns` calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program that runs in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Captures every packet on loopback from now on into a file; `None`, with the reason printed,
    /// where there is no tcpdump.
    pub fn capture(&self, file: &Path) -> Option<Capture> {
        let mut command = self.command("tcpdump");
        // Every packet at once into the file, and as the one who owns the directory.
        command.args(["-i", "lo", "-U", "--immediate-mode", "-Z", "root", "-w"]);
        command
            .arg(file)
            .stderr(Stdio::piped())
            .stdin(Stdio::null());
        let Ok(mut child) = command.spawn() else {
            eprintln!("SKIPPED: this needs tcpdump: `cargo xtask setup` installs it");
            return None;
        };
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if said.read_line(&mut line).unwrap_or_default() == 0 {
                eprintln!("SKIPPED: this needs a tcpdump that works");
                return None;
            }
        }
        Some(Capture {
            child,
            _said: said,
            file: file.to_owned(),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Processes in it may be ending; it goes with the last.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// A capture that goes on.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    /// What tcpdump says in the end needs a reader.
    _said: BufReader<std::process::ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Ends it.
    ///
    /// # Panics
    /// When tcpdump does not end.
    pub fn end(mut self) -> Packets {
        send(self.child.id(), "INT");
        wait(&mut self.child);
        Packets { file: self.file }
    }
}

/// What was captured.
#[derive(Debug)]
pub struct Packets {
    file: PathBuf,
}

impl Packets {
    /// How many packets a filter of tcpdump finds.
    ///
    /// # Panics
    /// When tcpdump cannot read the capture.
    pub fn count(&self, filter: &str) -> usize {
        let ran = run(Command::new("tcpdump")
            .args(["-n", "-r"])
            .arg(&self.file)
            .arg(filter));
        assert!(ran.status.success(), "{ran:?}");
        ran.stdout.lines().count()
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
