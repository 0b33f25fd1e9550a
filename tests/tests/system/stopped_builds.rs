//! Builds that do not come to their end: killed, on a full disk, without a toolchain. They leave
//! nothing behind and state nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qk_node::build::{Choice, Sandbox};
use qk_tests::artifact::SPEC;
use qk_tests::lab::{ALICE, Lab, send, until, wait};

use crate::interrupted::Small;

/// A library: its build ends as soon as it is seen to have no executables.
const SHORT: &str = "itoa@1.0.15";
/// Until a build compiles, its sources fetched.
const STARTED_MAX: Duration = Duration::from_secs(300);

#[test]
fn a_build_that_is_killed_leaves_nothing_and_states_nothing() {
    let lab = Lab::new();
    for (choice, name) in [
        (Choice::Bubblewrap, "bubblewrap"),
        (Choice::Landlock, "landlock"),
    ] {
        match Sandbox::choose(choice) {
            Ok(_) => killed_in(&lab, name),
            Err(error) => println!("SKIPPED {name}: {error}"),
        }
    }
}

fn killed_in(lab: &Lab, sandbox: &str) {
    let mut build = lab.command(ALICE, &["build", SPEC]);
    build.env("QK_SANDBOX", sandbox);
    let mut build = build
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut inside = Vec::new();
    while build.try_wait().unwrap().is_none() && began.elapsed() < STARTED_MAX {
        inside = descendants(build.id());
        let compiles = |process: &Process| process.line.contains("--emit=");
        if inside.iter().any(compiles) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    send(build.id(), "KILL");
    wait(&mut build);
    assert!(
        inside.len() > 3,
        "{sandbox}: nothing is compiled: {inside:?}"
    );
    until("no process of the sandbox lives", || {
        let all = processes();
        let lives = |one: &Process| all.iter().any(|other| other.is(one));
        !inside.iter().any(lives)
    });
    let work = lab.home(ALICE).work();
    assert!(
        fs::read_dir(&work).unwrap().count() > 0,
        "nothing to be cleaned"
    );
    // The next start cleans.
    let mut next = lab.command(ALICE, &["build", SHORT, "--json"]);
    next.env("QK_SANDBOX", sandbox);
    qk_tests::lab::run(&mut next).failed(13, &["it has no executables"]);
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0, "{sandbox}");
    if sandbox == "landlock" {
        let fixed = fs::read_dir("/qk").map(Iterator::count);
        assert_eq!(fixed.unwrap_or(0), 0);
    }
    states_nothing(lab);
}

#[test]
fn a_build_on_a_full_disk_says_so_and_states_nothing() {
    let lab = Lab::new();
    let work = lab.home(ALICE).work();
    // Too small for what is unpacked; then for what the sandbox is to leave free, bytes or files.
    for (options, says) in [
        ("size=1m", "No space left"),
        ("size=64m", "MiB were free on the disk"),
        ("size=512m,nr_inodes=2k", "room for fewer than"),
    ] {
        let Some(_small) = Small::with(&work, options) else {
            println!("SKIPPED: no file systems may be mounted here");
            return;
        };
        if options == "size=1m" {
            fs::write(work.join("full"), vec![1; (1 << 20) - (24 << 10)]).unwrap();
        }
        let mut build = lab.command(ALICE, &["build", SPEC, "--json"]);
        build.env("QK_SANDBOX", "bubblewrap");
        qk_tests::lab::run(&mut build).failed(13, &[says]);
        let left = fs::read_dir(&work).unwrap().flatten();
        let left: Vec<_> = left.filter(|entry| entry.file_name() != "full").collect();
        assert!(left.is_empty(), "{left:?}");
    }
    states_nothing(&lab);
}

#[test]
fn a_build_without_its_toolchain_says_what_to_run() {
    let lab = Lab::new();
    let empty = tempfile::tempdir().unwrap();
    let mut build = lab.command(ALICE, &["build", SPEC, "--json"]);
    build.env("QK_TOOLCHAINS", empty.path());
    qk_tests::lab::run(&mut build).failed(13, &["ziglang", "qk setup"]);
    let mut build = lab.command(ALICE, &["build", SPEC, "--json"]);
    build.env("QK_SANDBOX", "chroot");
    qk_tests::lab::run(&mut build).failed(13, &["QK_SANDBOX", "bubblewrap or landlock"]);
    states_nothing(&lab);
}

fn states_nothing(lab: &Lab) {
    let proofs = lab.qk(ALICE, &["proofs", SPEC, "--offline"]).done();
    let lines = proofs["networks"][0]["verdict"]["lines"]
        .as_array()
        .unwrap();
    assert!(lines.is_empty(), "{proofs}");
}

/// A process, told from a later one of the same number by when it started.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    parent: u32,
    started: u64,
    line: String,
}

impl Process {
    /// Whether it is the same one, whoever its parent is now.
    fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

/// All that live; those that are dead and not collected are left out.
fn processes() -> BTreeSet<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(&entry.path())).collect()
}

fn process(at: &Path) -> Option<Process> {
    let stat = fs::read_to_string(at.join("stat")).ok()?;
    let line = fs::read(at.join("cmdline")).ok()?;
    // `4711 (name) S 4710 …`, the 22nd field is when it started.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then_some(Process {
        pid: at.file_name()?.to_str()?.parse().ok()?,
        parent: fields[1].parse().ok()?,
        started: fields[19].parse().ok()?,
        line: String::from_utf8_lossy(&line).replace('\0', " "),
    })
}

fn descendants(of: u32) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut rest: Vec<Process> = processes().into_iter().collect();
    loop {
        let known: BTreeSet<u32> = found.iter().map(|one| one.pid).chain([of]).collect();
        let (more, others): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|one| known.contains(&one.parent));
        if more.is_empty() {
            return found;
        }
        found.extend(more);
        rest = others;
    }
}

/// The figures of this file rest on it.
#[test]
fn a_process_has_descendants() {
    let mut shell = Command::new("sh");
    let mut shell = shell.args(["-c", "sleep 60 & wait"]).spawn().unwrap();
    until("it has a child", || {
        let children = descendants(shell.id());
        children.iter().any(|child| child.line == "sleep 60 ")
    });
    for child in descendants(shell.id()) {
        send(child.pid, "KILL");
    }
    wait(&mut shell);
}
