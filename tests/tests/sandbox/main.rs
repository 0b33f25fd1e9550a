//! A crate that tries to get out, built with and without the sandbox. Without it, its build script
//! and its proc macro get everything that this machine can give; with it, nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use qk_node::build::sandbox::{BUILD_UID, Bind, End, Line, Run};
use qk_node::build::sources::Access;
use qk_node::build::{
    BuildError, Builder, Cancel, Choice, Collected, Event, Limits, Options, Order, Reason, Sandbox,
    SandboxError, Toolchains,
};
use qk_protocol::hash::Sha256;
use qk_tests::lab::{send, until};

/// Small, so that the probes reach them fast.
const MEMORY_MIB: u64 = 3072;
const PROCESSES: u32 = 200;
const TMP_MIB: u64 = 64;
const FILE_MIB: u64 = 256;

/// At least so many things must be shown to work without the sandbox.
const SHOWN_MIN: usize = 50;
/// What can be seen of the host where there are no namespaces, as `SECURITY.md` says.
const VISIBLE_TO_LANDLOCK: &[&str] = &["learn-hostname-by-uname", "see-host-file"];

mod facts;
mod user;

use facts::{Report, facts, report};

static HOSTILE: LazyLock<Hostile> = LazyLock::new(Hostile::new);

#[test]
fn nothing_gets_out() {
    let _one = one();
    let outside = HOSTILE.build_outside();
    for sandbox in sandboxes() {
        nothing_gets_out_of(&sandbox, &outside);
    }
}

fn nothing_gets_out_of(sandbox: &Sandbox, outside: &Report) {
    let mut events = Vec::new();
    let mut uids = BTreeSet::new();
    let built = HOSTILE.build_in(sandbox, &[], Limits::default(), |event| {
        uids.extend(build_uids());
        events.push(event);
    });
    let built = built.expect("the crate builds in the sandbox");
    assert_eq!(built.bins.keys().collect::<Vec<_>>(), ["hostile"]);
    // It tampered with the record of what was linked: no work digest, and an artifact all the same.
    assert!(built.linked.is_none());
    let kind = &built.environment.sandbox;
    assert!(kind.starts_with(sandbox.name()), "{kind}");
    let inside = report(&built.bins["hostile"]);

    let mut shown = 0;
    let mut wrong = String::new();
    assert_eq!(
        outside.keys().collect::<Vec<_>>(),
        inside.keys().collect::<Vec<_>>()
    );
    for (probe, (without, why_without)) in outside {
        let (within, why_within) = &inside[probe];
        println!("{probe}: {without} {why_without} / {within} {why_within}");
        let leaves = probe.ends_with(" daemon") || probe.ends_with(" leave-memory");
        let visible = sandbox.name() == "landlock"
            && VISIBLE_TO_LANDLOCK.iter().any(|name| probe.ends_with(name));
        match (without.as_str(), within.as_str()) {
            // It may be made: that it does not live on is asserted below.
            ("got", "got") if leaves => shown += 1,
            ("got", "got") if visible => {}
            ("got" | "absent", "denied") if !visible => {
                shown += usize::from(without == "got");
            }
            ("absent", "absent") => {}
            _ => writeln!(
                wrong,
                "{probe}: {without} without, {within} {why_within} within"
            )
            .unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{kind}:\n{wrong}");
    let kinds = shown / 2;
    println!("{kinds} probes shown to work without {kind}, twice each");
    assert!(
        kinds >= SHOWN_MIN,
        "only {kinds} probes work on this machine without the sandbox"
    );

    assert_eq!(HOSTILE.daemons(), 0, "a daemon lives on after the build");
    assert!(!HOSTILE.left_memory(), "shared memory is left by the build");
    // The forged message is in the stream (it moves the progress bar), and gets nothing.
    let forged =
        |event: &Event| matches!(event, Event::Compiling { krate, .. } if krate == "forged 6.6.6");
    assert!(
        events.iter().any(forged),
        "no forged message among {events:?}"
    );
    // Started by root, it runs as another uid.
    let own = fs::metadata("/proc/self").unwrap().uid();
    let expected = if own == 0 { BUILD_UID } else { own };
    assert_eq!(uids.into_iter().collect::<Vec<_>>(), [expected]);
}

/// The kinds that this machine has; bubblewrap is one of them.
fn sandboxes() -> Vec<Sandbox> {
    let bubblewrap = Sandbox::choose(Choice::Bubblewrap).expect("bubblewrap works");
    match Sandbox::choose(Choice::Landlock) {
        Ok(landlock) => vec![bubblewrap, landlock],
        Err(SandboxError::Unavailable { what, .. }) => {
            println!("SKIPPED Landlock: {what}");
            vec![bubblewrap]
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_planted_link_is_refused() {
    let _one = one();
    let error = HOSTILE
        .build(&["plant"], Limits::default(), |_| {})
        .unwrap_err();
    let BuildError::Failed { detail, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        detail,
        "x86_64-unknown-linux-gnu/release/planted is a link, not a file"
    );
}

#[test]
fn what_never_ends_is_ended() {
    let _one = one();
    let limits = Limits {
        wall: Duration::from_secs(3),
        ..Limits::default()
    };
    let started = Instant::now();
    let error = HOSTILE.build(&["linger"], limits, |_| {}).unwrap_err();
    let timed_out = matches!(
        error,
        BuildError::Failed {
            reason: Reason::TimeOut,
            ..
        }
    );
    assert!(timed_out, "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(600));
}

#[test]
fn many_processes_share_one_memory_limit() {
    let _one = one();
    match HOSTILE.build(&["swarm"], Limits::default(), |_| {}) {
        Err(BuildError::Failed {
            reason: Reason::OutOfMemory,
            ..
        }) => {}
        Ok(built) if !built.environment.sandbox.contains("cgroup") => {
            println!("absent: no control group for memory on this machine");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_left_after_a_cancelled_build() {
    let _one = one();
    for sandbox in sandboxes() {
        let work = tempfile::tempdir().unwrap();
        let builder = Builder::in_sandbox(sandbox, toolchains(), work.path()).unwrap();
        let builder = builder.with_access(Access::of_cargo_home(&HOSTILE.cargo_home));
        let cancel = Cancel::default();
        let stop = cancel.clone();
        // As soon as the build script has left its daemon behind and waits for ever.
        let watcher = std::thread::spawn(move || {
            while HOSTILE.daemon_ids().is_empty() && !stop.is_cancelled() {
                std::thread::sleep(Duration::from_millis(50));
            }
            stop.cancel();
        });
        let options = HOSTILE.options(Limits::default());
        let order = HOSTILE.order(&["linger"]);
        let result = builder.build(&order, &options, &cancel, &mut |_| {});
        cancel.cancel();
        watcher.join().unwrap();
        assert!(matches!(result, Err(BuildError::Cancelled)), "{result:?}");
        assert_eq!(HOSTILE.daemons(), 0);
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
    }
}

/// A sandbox that is slow to end, as all are on a machine that is busy: its first process, which the
/// kernel lets go last, stays for as long as one that came from outside is not collected.
#[test]
fn a_stopped_sandbox_is_waited_for() {
    let sandbox = Sandbox::choose(Choice::Bubblewrap).expect("bubblewrap works");
    let sleep = format!("60.{}", std::process::id());
    let run = of_the_system(&["sleep", &sleep]);
    let scratch = tempfile::tempdir().unwrap();
    let (cancel, at) = (Cancel::default(), scratch.path().to_path_buf());
    let stop = cancel.clone();
    let running = std::thread::spawn(move || {
        let (end, _) = sandbox.run(&run, &Limits::default(), &at, &stop, |_| {})?;
        Ok::<_, SandboxError>(end)
    });
    let sleeps = format!("sleep\0{sleep}\0");
    until("the sandbox runs", || {
        !with_line(sleeps.as_bytes()).is_empty()
    });
    let shell = format!("/bin/sh\0-c\0\"$@\"; exit $?\0qk\0{sleeps}");
    let first = with_line(shell.as_bytes())[0];
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--pid", "--target", &first.to_string(), "sleep", "60"]);
    let mut outside = nsenter.spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", outside.id());
    let mut entered = false;
    until("it is inside", || {
        entered = fs::read_to_string(&children).is_ok_and(|children| !children.is_empty());
        entered || outside.try_wait().unwrap().is_some()
    });
    if !entered {
        cancel.cancel();
        running.join().unwrap().unwrap();
        println!("SKIPPED: no process may be put into a sandbox here");
        return;
    }
    send(outside.id(), "STOP");
    cancel.cancel();
    std::thread::sleep(Duration::from_secs(4));
    let (returned, lives) = (running.is_finished(), exists(first));
    send(outside.id(), "CONT");
    outside.wait().unwrap();
    assert!(lives, "nothing kept the sandbox from ending");
    assert!(
        !returned,
        "it counts as stopped and its first process is there"
    );
    assert_eq!(running.join().unwrap().unwrap(), End::Cancelled);
    assert!(!exists(first));
}

/// A directory that whoever started qk left open would be a way out.
#[test]
fn what_was_left_open_stays_outside() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    let secret = fs::File::open(directory.path().join("secret")).unwrap();
    let script = format!("cat <&{}", secret.as_raw_fd());
    let words = ["/bin/bash", "-c", &script];
    // As it is for what a process starts with.
    let leave_open = || rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    leave_open();
    let without = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&without.stdout), "secret");
    for sandbox in sandboxes() {
        leave_open();
        let mut said = String::new();
        let run = of_the_system(&words);
        let (limits, cancel) = (Limits::default(), Cancel::default());
        let ended = sandbox.run(
            &run,
            &limits,
            directory.path(),
            &cancel,
            |line| match line {
                Line::Out(line) | Line::Err(line) => said += &line,
            },
        );
        assert_eq!(ended.unwrap().0, End::Exit(1), "{said}");
        assert!(said.contains("Bad file descriptor"), "{said}");
    }
}

/// A command of the host, which sees the host's programs.
fn of_the_system(words: &[&str]) -> Run {
    let system = ["/usr", "/bin", "/lib", "/lib64"];
    let there = system.iter().filter(|path| Path::new(path).exists());
    Run {
        argv: words.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/bin".into())],
        cwd: "/".into(),
        binds: there.map(|path| Bind::read(path, path)).collect(),
        links: Vec::new(),
        network: false,
        hostname: "qk".into(),
        background: false,
    }
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Processes with this command line.
fn with_line(wanted: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line == wanted {
            found.extend(entry.file_name().to_string_lossy().parse::<u32>());
        }
    }
    found
}

/// The tests count processes of the whole machine, so they take turns.
fn one() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The crate, packaged, and what it tries to reach.
struct Hostile {
    directory: tempfile::TempDir,
    cargo_home: PathBuf,
    crate_file: PathBuf,
    nonce: u32,
}

impl Hostile {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let nonce = 1000 + std::process::id();
        let facts = facts(directory.path(), nonce);
        let registry = at("registry");
        let checksum = local_registry(&registry);
        let cargo_home = at("cargo-home");
        fs::create_dir(&cargo_home).unwrap();
        fs::write(
            cargo_home.join("config.toml"),
            format!(
                "[source.crates-io]\nreplace-with = 'here'\n[source.here]\nlocal-registry = '{}'\n",
                registry.display()
            ),
        )
        .unwrap();

        let package = at("hostile-1.0.0");
        copy(&fixture("hostile"), &package);
        fs::write(package.join("facts.txt"), facts).unwrap();
        fs::write(package.join("Cargo.lock"), lock(checksum)).unwrap();
        fs::create_dir(package.join(".cargo")).unwrap();
        let config = "[env]\nQK_HOSTILE_CONFIG = '1'\n";
        fs::write(package.join(".cargo/config.toml"), config).unwrap();
        let toolchain = "[toolchain]\nchannel = 'qk-hostile'\n";
        fs::write(package.join("rust-toolchain.toml"), toolchain).unwrap();
        let crate_file = at("hostile-1.0.0.crate");
        pack(&package, &crate_file);
        Self {
            cargo_home,
            crate_file,
            nonce,
            directory,
        }
    }

    fn order(&self, features: &[&str]) -> Order {
        let source = Sha256::of(&fs::read(&self.crate_file).unwrap());
        let registry = "registry+https://registry.example/index";
        let mut order = Order::new(
            registry,
            "hostile",
            "1.0.0",
            self.crate_file.clone(),
            source,
        );
        order.features = features.iter().map(ToString::to_string).collect();
        order
    }

    fn options(&self, limits: Limits) -> Options {
        Options {
            limits: Limits {
                memory_bytes: MEMORY_MIB << 20,
                processes: PROCESSES,
                file_bytes: FILE_MIB << 20,
                tmp_bytes: TMP_MIB << 20,
                ..limits
            },
            ..Options::default()
        }
    }

    fn build(
        &self,
        features: &[&str],
        limits: Limits,
        event: impl FnMut(Event),
    ) -> Result<Collected, BuildError> {
        let sandbox = Sandbox::choose(Choice::Bubblewrap)?;
        self.build_in(&sandbox, features, limits, event)
    }

    fn build_in(
        &self,
        sandbox: &Sandbox,
        features: &[&str],
        limits: Limits,
        mut event: impl FnMut(Event),
    ) -> Result<Collected, BuildError> {
        let work = self.directory.path().join("work");
        let builder = Builder::in_sandbox(sandbox.clone(), toolchains(), &work)?;
        let builder = builder.with_access(Access::of_cargo_home(&self.cargo_home));
        let options = self.options(limits);
        builder.build(
            &self.order(features),
            &options,
            &Cancel::default(),
            &mut event,
        )
    }

    /// As `cargo install` would: no sandbox, the crate's own configuration in force.
    fn build_outside(&self) -> Report {
        let package = self.directory.path().join("hostile-1.0.0");
        let cargo = |arguments: &[&str]| {
            let mut cargo = Command::new("cargo");
            cargo.args(arguments).current_dir(&package);
            cargo.env("CARGO_HOME", &self.cargo_home);
            cargo.env("CARGO_TARGET_DIR", self.directory.path().join("target"));
            cargo
        };
        if Command::new("rustup").arg("--version").output().is_ok() {
            let named = cargo(&["--version"])
                .env_remove("RUSTUP_TOOLCHAIN")
                .output()
                .unwrap();
            assert!(
                !named.status.success(),
                "rust-toolchain.toml has no effect without the sandbox"
            );
        } else {
            println!("absent: no rustup, which rust-toolchain.toml is for");
        }
        let toolchain = std::env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".into());
        let output = cargo(&["build", "--locked", "--offline"])
            .env("RUSTUP_TOOLCHAIN", toolchain)
            .env("QK_HOSTILE_ENVIRONMENT", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        // Build script and compiler each left one behind, which shows that the count counts.
        assert_eq!(self.daemons(), 2);
        self.end_daemons();
        assert!(self.left_memory());
        let key = format!("{:#x}", self.nonce);
        assert!(
            Command::new("ipcrm")
                .args(["-M", &key])
                .status()
                .unwrap()
                .success()
        );
        report(&self.directory.path().join("target/debug/hostile"))
    }

    /// Whether a segment of shared memory with the probes' key is on the host.
    fn left_memory(&self) -> bool {
        let nonce = self.nonce.to_string();
        let all = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        all.lines()
            .any(|line| line.split_whitespace().next() == Some(&nonce))
    }

    fn daemons(&self) -> usize {
        // Its parent's last moments may overlap with ours.
        std::thread::sleep(Duration::from_millis(300));
        self.daemon_ids().len()
    }

    fn daemon_ids(&self) -> Vec<u32> {
        with_line(format!("sleep\0600.{}\0", self.nonce).as_bytes())
    }

    fn end_daemons(&self) {
        for id in self.daemon_ids() {
            Command::new("kill")
                .args(["-9", &id.to_string()])
                .status()
                .unwrap();
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.end_daemons();
    }
}

/// Who the processes of this test's builds belong to, as the host sees it.
fn build_uids() -> BTreeSet<u32> {
    let mut uids = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // The launchers name the program too, but not first.
        if line.starts_with(b"/qk/bin/cargo-zigbuild\0") && is_ours(&entry.path()) {
            uids.extend(fs::metadata(entry.path()).map(|meta| meta.uid()));
        }
    }
    uids
}

/// Whether a process descends from this one.
fn is_ours(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let parent = after.split_whitespace().nth(1).unwrap_or("0");
    match parent.parse::<u32>() {
        Ok(parent) if parent == std::process::id() => true,
        Ok(parent) if parent > 1 => is_ours(Path::new(&format!("/proc/{parent}"))),
        _ => false,
    }
}

/// A registry in a directory that holds the proc macro; returns the checksum of its `.crate`.
fn local_registry(registry: &Path) -> Sha256 {
    let package = registry.join("hostile-macro-1.0.0");
    copy(&fixture("hostile-macro"), &package);
    fs::copy(
        fixture("hostile").join("probes.rs"),
        package.join("src/probes.rs"),
    )
    .unwrap();
    let file = registry.join("hostile-macro-1.0.0.crate");
    pack(&package, &file);
    fs::remove_dir_all(&package).unwrap();
    let checksum = Sha256::of(&fs::read(&file).unwrap());
    let index = registry.join("index/ho/st");
    fs::create_dir_all(&index).unwrap();
    let line = format!(
        r#"{{"name":"hostile-macro","vers":"1.0.0","deps":[],"cksum":"{checksum}","features":{{}},"yanked":false}}"#
    );
    fs::write(index.join("hostile-macro"), line + "\n").unwrap();
    checksum
}

fn lock(checksum: Sha256) -> String {
    // The source id that the local registry replaces.
    let source = format!("registry+{}", tame_index::CRATES_IO_INDEX);
    format!(
        "version = 4\n\n[[package]]\nname = \"hostile\"\nversion = \"1.0.0\"\ndependencies = [\n \"hostile-macro\",\n]\n\n\
         [[package]]\nname = \"hostile-macro\"\nversion = \"1.0.0\"\nsource = \"{source}\"\nchecksum = \"{checksum}\"\n"
    )
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("crates")
        .join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("cp")
        .arg("-r")
        .arg(from.join("."))
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

fn pack(package: &Path, file: &Path) {
    let (parent, name) = (package.parent().unwrap(), package.file_name().unwrap());
    let mut tar = Command::new("tar");
    tar.args(["--exclude=target", "-czf"])
        .arg(file)
        .arg("-C")
        .arg(parent)
        .arg(name);
    assert!(tar.status().unwrap().success());
}

fn toolchain_directory() -> PathBuf {
    let given = std::env::var_os("QK_TOOLCHAINS").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("toolchains"))
}

/// Installed once for all runs of the tests.
fn toolchains() -> Toolchains {
    let toolchains = Toolchains::new(&toolchain_directory());
    toolchains
        .setup(&mut |event| println!("{event:?}"))
        .expect("the toolchain can be installed");
    toolchains
}
