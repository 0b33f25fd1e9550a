//! Builds that do their worst to the machine, again and again: no process, mount, directory or control
//! group is left of any.
//!
//! `QK_BOMB_ROUNDS` sets how often (default 15; the full campaign is 1000), `QK_BOMB_SEED` where
//! randomness begins, `QK_BOMB_KIND` and `QK_BOMB_SANDBOX` try one alone:
//!
//! ```text
//! QK_BOMB_ROUNDS=1000 cargo test -p qk-tests --test bombs -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use qk_node::build::host::Host;
use qk_node::build::sandbox::{Bind, End, Run};
use qk_node::build::{Cancel, Choice, Limits, Sandbox, SandboxError, Work};
use qk_tests::writer::number;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Every kind.
const KINDS: &[&str] = &[
    "forks", "storm", "daemons", "memory", "disk", "spin", "output", "files", "links", "deep",
    "closed", "names", "kill", "stop",
];
/// Where a bomb may write: what builds have, and memory.
const DIRECTORIES: &[&str] = &["/qk/tmp", "/qk/target", "/qk/home"];
const MIB: u64 = 1 << 20;

#[test]
fn nothing_is_left_of_a_bomb() {
    let _one = one();
    let rounds = number("QK_BOMB_ROUNDS", 15);
    let seed = number("QK_BOMB_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let field = Field::new();
    let sandboxes = sandboxes();
    let one = std::env::var("QK_BOMB_KIND").ok();
    let mut kinds: Vec<&str> = Vec::new();
    let mut figures: BTreeMap<(&str, &str), Figures> = BTreeMap::new();
    let began = Instant::now();
    for round in 0..rounds {
        // Each kind in turn, in another order each time.
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
            kinds.retain(|kind| one.as_ref().is_none_or(|one| one == kind));
            kinds.shuffle(&mut rng);
        }
        let kind = kinds.pop().expect("QK_BOMB_KIND is one of them");
        let sandbox = &sandboxes[usize::try_from(round).unwrap() % sandboxes.len()];
        let started = Instant::now();
        let end = field.explode(sandbox, kind);
        let left = field.left();
        assert!(
            left.is_empty(),
            "seed {seed}, round {round}: {kind} in {} ended with {end:?} and left {left:#?}",
            sandbox.name()
        );
        if round % 100 == 99 {
            println!("{} bombs in {:?}", round + 1, began.elapsed());
        }
        figures
            .entry((sandbox.name(), kind))
            .or_default()
            .add(end, started.elapsed());
    }
    for ((sandbox, kind), figures) in &figures {
        println!("{sandbox} {kind}: {figures:?}");
    }
    println!("{rounds} bombs, seed {seed}: nothing is left");
}

/// The test can fail: what it looks for is seen while a bomb lives.
#[test]
fn what_a_bomb_would_leave_is_seen() {
    let _one = one();
    let field = Field::new();
    for sandbox in sandboxes() {
        let (cancel, stop) = (Cancel::default(), Cancel::default());
        std::thread::scope(|scope| {
            let (field, sandbox, cancel) = (&field, &sandbox, &cancel);
            scope.spawn(move || {
                field.explode_until(sandbox, "spin", cancel, Duration::from_secs(60))
            });
            let started = Instant::now();
            let mut seen = Vec::new();
            while !stop.is_cancelled() && started.elapsed() < Duration::from_secs(60) {
                seen = field.left();
                let is = |what: &str| seen.iter().any(|left| left.starts_with(what));
                // In /qk only when nobody has locked it, which the bomb's build has.
                let directory = is("directory") || sandbox.name() == "landlock" && locked();
                if is("process") && directory {
                    stop.cancel();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            cancel.cancel();
            assert!(stop.is_cancelled(), "{}: only {seen:#?}", sandbox.name());
        });
        assert_eq!(field.left(), Vec::<String>::new());
    }
}

/// Each counts the processes of the other.
fn one() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Figures {
    rounds: u32,
    ends: BTreeMap<String, u32>,
    longest: Duration,
}

impl Figures {
    fn add(&mut self, end: End, took: Duration) {
        self.rounds += 1;
        *self.ends.entry(format!("{end:?}")).or_default() += 1;
        self.longest = self.longest.max(took);
    }
}

fn sandboxes() -> Vec<Sandbox> {
    let wanted = std::env::var("QK_BOMB_SANDBOX").ok();
    let mut all = vec![Sandbox::choose(Choice::Bubblewrap).expect("bubblewrap works")];
    match Sandbox::choose(Choice::Landlock) {
        Ok(landlock) => all.push(landlock),
        Err(SandboxError::Unavailable { what, .. }) => println!("SKIPPED Landlock: {what}"),
        Err(error) => panic!("{error}"),
    }
    all.retain(|one| wanted.as_ref().is_none_or(|name| name == one.name()));
    all
}

/// Where the bombs go off, and what was there before.
struct Field {
    directory: tempfile::TempDir,
    host: Host,
    bomb: PathBuf,
    nonce: String,
    mounts: Vec<String>,
}

impl Field {
    fn new() -> Self {
        let bomb = PathBuf::from(env!("CARGO_BIN_EXE_bomb"));
        let host = Host::find(Path::new("/"), std::slice::from_ref(&bomb)).unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            host,
            bomb,
            nonce: format!("qk-bomb-{}", std::process::id()),
            mounts: mounts(),
        }
    }

    fn explode(&self, sandbox: &Sandbox, kind: &str) -> End {
        // What does not end by itself is stopped.
        let wall = match kind {
            "spin" | "output" | "storm" | "kill" | "stop" => Duration::from_millis(700),
            _ => Duration::from_secs(20),
        };
        self.explode_until(sandbox, kind, &Cancel::default(), wall)
    }

    fn explode_until(&self, sandbox: &Sandbox, kind: &str, cancel: &Cancel, wall: Duration) -> End {
        let parent = self.directory.path().join("work");
        fs::create_dir_all(&parent).unwrap();
        let work = Work::new(&parent, sandbox, cancel).unwrap();
        let mut binds = self.host.binds.clone();
        binds.push(Bind::read(&self.bomb, "/qk/bin/bomb"));
        for name in ["target", "home"] {
            binds.push(Bind::write(work.at(name), Path::new("/qk").join(name)));
        }
        let words = ["/qk/bin/bomb", kind, &self.nonce];
        let words = words.iter().chain(DIRECTORIES).map(OsString::from);
        let run = Run {
            argv: words.collect(),
            env: vec![("PATH".into(), "/qk/bin".into())],
            cwd: "/qk/target".into(),
            binds,
            links: self.host.links.clone(),
            network: false,
            hostname: "qk".into(),
            background: false,
        };
        let limits = Limits {
            memory_bytes: 256 * MIB,
            processes: 60,
            file_bytes: 64 * MIB,
            cpu: Duration::from_secs(5),
            wall,
            tmp_bytes: 8 * MIB,
            // The others must not end for what else fills this disk.
            disk_free_bytes: match kind {
                "disk" => free_bytes(self.directory.path()).saturating_sub(48 * MIB),
                _ => 0,
            },
            disk_free_files: 0,
            ..Limits::default()
        };
        let scratch = work.at("scratch");
        let (end, _) = sandbox
            .run(&run, &limits, &scratch, cancel, |_| {})
            .unwrap_or_else(|error| panic!("{kind} in {}: {error}", sandbox.name()));
        end
    }

    /// What is on the machine that was not before.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&self.nonce) || line.contains("qk-watch") && is_child(&entry.path()) {
                left.push(format!("process {} {line}", entry.path().display()));
            }
        }
        let children = fs::read_dir("/proc/self/task").unwrap().flatten();
        for task in children {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(
                children
                    .split_whitespace()
                    .map(|pid| format!("process {pid}, a child")),
            );
        }
        let entries = fs::read_dir(self.directory.path().join("work"))
            .into_iter()
            .flatten();
        left.extend(
            entries
                .flatten()
                .map(|at| format!("directory {}", at.path().display())),
        );
        left.extend(fixed().map(|at| format!("directory {}", at.display())));
        // Others mount things, too: a sandbox's are of one kind, or show what lies here.
        let here = self.directory.path().to_string_lossy().into_owned();
        let ours = |mount: &String| mount.contains(" tmpfs qk ") || mount.contains(&here);
        let new = mounts().into_iter().filter(ours);
        let new = new.filter(|mount| !self.mounts.contains(mount));
        left.extend(new.map(|mount| format!("mount {mount}")));
        left.extend(groups().map(|group| format!("control group {}", group.display())));
        left
    }
}

/// What lies where builds without namespaces do; nothing while another process has one there.
fn fixed() -> impl Iterator<Item = PathBuf> {
    let directory = fs::File::open("/qk").ok();
    let free = directory.filter(|directory| directory.try_lock_shared().is_ok());
    let entries = free.and_then(|_locked| fs::read_dir("/qk").ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn locked() -> bool {
    let directory = fs::File::open("/qk");
    directory.is_ok_and(|directory| directory.try_lock_shared().is_err())
}

fn is_child(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().nth(1) == Some(&std::process::id().to_string())
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The control groups of this process's sandboxes.
fn groups() -> impl Iterator<Item = PathBuf> {
    let prefix = format!("qk-{}-", std::process::id());
    let found = walk(Path::new("/sys/fs/cgroup"), 6);
    found.into_iter().filter(move |path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.starts_with(&prefix)
    })
}

fn walk(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found = Vec::new();
    for entry in below {
        if depth > 0 {
            found.extend(walk(&entry.path(), depth - 1));
        }
        found.push(entry.path());
    }
    found
}

fn free_bytes(path: &Path) -> u64 {
    let disk = rustix::fs::statvfs(path).unwrap();
    disk.f_bavail * disk.f_frsize
}
