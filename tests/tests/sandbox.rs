//! A crate that tries to get out, built with and without the sandbox. Without it, its build script
//! and its proc macro get everything that this machine can give; with it, nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use qk_node::build::sandbox::{BUILD_UID, Bind, End, Run};
use qk_node::build::sources::Access;
use qk_node::build::{
    BuildError, Builder, Cancel, Collected, Event, Limits, Options, Order, Reason, Sandbox,
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
const SHOWN_MIN: usize = 30;

static HOSTILE: LazyLock<Hostile> = LazyLock::new(Hostile::new);

#[test]
fn nothing_gets_out() {
    let _one = one();
    let outside = HOSTILE.build_outside();
    let mut events = Vec::new();
    let mut uids = BTreeSet::new();
    let built = HOSTILE.build(&[], Limits::default(), |event| {
        uids.extend(build_uids());
        events.push(event);
    });
    let built = built.expect("the crate builds in the sandbox");
    assert_eq!(built.bins.keys().collect::<Vec<_>>(), ["hostile"]);
    // It tampered with the record of what was linked: no work digest, and an artifact all the same.
    assert!(built.linked.is_none());
    let inside = report(&built.bins["hostile"]);

    let mut shown = 0;
    let mut wrong = String::new();
    assert_eq!(
        outside.keys().collect::<Vec<_>>(),
        inside.keys().collect::<Vec<_>>()
    );
    for (probe, (without, why_without)) in &outside {
        let (within, why_within) = &inside[probe];
        println!("{probe}: {without} {why_without} / {within} {why_within}");
        let daemon = probe.ends_with(" daemon");
        match (without.as_str(), within.as_str()) {
            // It may start: that it does not live on is asserted below.
            ("got", "got") if daemon => shown += 1,
            ("got" | "absent", "denied") if !daemon => shown += usize::from(without == "got"),
            ("absent", "absent") => {}
            _ => writeln!(
                wrong,
                "{probe}: {without} without, {within} {why_within} within"
            )
            .unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let kinds = shown / 2;
    println!("{kinds} probes shown to work without the sandbox, twice each");
    assert!(
        kinds >= SHOWN_MIN,
        "only {kinds} probes work on this machine without the sandbox"
    );

    assert_eq!(HOSTILE.daemons(), 0, "a daemon lives on after the build");
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
    let work = tempfile::tempdir().unwrap();
    let builder = Builder::new(toolchains(), work.path()).unwrap();
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
    let result = builder.build(&HOSTILE.order(&["linger"]), &options, &cancel, &mut |_| {});
    cancel.cancel();
    watcher.join().unwrap();
    assert!(matches!(result, Err(BuildError::Cancelled)), "{result:?}");
    assert_eq!(HOSTILE.daemons(), 0);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

/// A sandbox that is slow to end, as all are on a machine that is busy: its first process, which the
/// kernel lets go last, stays for as long as one that came from outside is not collected.
#[test]
fn a_stopped_sandbox_is_waited_for() {
    let sandbox = Sandbox::probe().expect("the sandbox works");
    let there = |path: &&&str| Path::new(path).exists();
    let system = ["/usr", "/bin", "/lib", "/lib64"];
    let sleep = format!("60.{}", std::process::id());
    let run = Run {
        argv: vec!["sleep".into(), sleep.clone().into()],
        env: vec![("PATH".into(), "/usr/bin".into())],
        cwd: "/".into(),
        binds: system
            .iter()
            .filter(there)
            .map(|path| Bind::read(path, path))
            .collect(),
        links: Vec::new(),
        network: false,
        hostname: "qk".into(),
        background: false,
    };
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
        mut event: impl FnMut(Event),
    ) -> Result<Collected, BuildError> {
        let builder = Builder::new(toolchains(), &self.directory.path().join("work"))?;
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
    fn build_outside(&self) -> BTreeMap<String, (String, String)> {
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
        report(&self.directory.path().join("target/debug/hostile"))
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

/// Who the processes of builds belong to, as the host sees it.
fn build_uids() -> BTreeSet<u32> {
    let mut uids = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // bubblewrap names the program too, but not first.
        if line.starts_with(b"/usr/bin/cargo-zigbuild\0") {
            uids.extend(fs::metadata(entry.path()).map(|meta| meta.uid()));
        }
    }
    uids
}

/// Starts what the probes try to reach, and says where it is.
fn facts(directory: &Path, nonce: u32) -> String {
    let secret = directory.join("secret");
    fs::write(&secret, "secret").unwrap();
    let shared = directory.join("shared");
    fs::create_dir(&shared).unwrap();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&shared, open).unwrap();

    let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
    let tcp_port = tcp.local_addr().unwrap().port();
    std::thread::spawn(move || tcp.incoming().for_each(drop));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((_, from)) = udp.recv_from(&mut [0; 8]) {
            let _ = udp.send_to(b"x", from);
        }
    });
    let socket = directory.join("socket");
    let unix = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || unix.incoming().for_each(drop));
    let name = format!("qk-hostile-{nonce}");
    let named = SocketAddr::from_abstract_name(&name).unwrap();
    let unix = UnixListener::bind_addr(&named).unwrap();
    std::thread::spawn(move || unix.incoming().for_each(drop));

    let home = std::env::home_dir().unwrap();
    let disks = ["/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/xvda"];
    let disk = disks.iter().find(|disk| Path::new(disk).exists());
    let files = ["/etc/machine-id", disk.unwrap_or(&"")];
    let files = files.iter().filter(|path| Path::new(path).exists());
    let files: Vec<&str> = files.copied().collect();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let command = std::env::args().next().unwrap();
    let facts = [
        ("home", home.display().to_string()),
        ("secret", secret.display().to_string()),
        ("shared", shared.display().to_string()),
        ("data", toolchain_directory().display().to_string()),
        ("socket", socket.display().to_string()),
        ("abstract", name),
        ("tcp", tcp_port.to_string()),
        ("udp", udp_port.to_string()),
        ("address", own_address()),
        ("pid", std::process::id().to_string()),
        (
            "command",
            Path::new(&command)
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
        ),
        ("hostname", hostname.trim().to_owned()),
        ("files", files.join(":")),
        ("disk", disk.unwrap_or(&"/dev/none").to_string()),
        ("cgroup", cgroup()),
        ("processes", PROCESSES.to_string()),
        ("memory_mib", MEMORY_MIB.to_string()),
        ("tmp_mib", TMP_MIB.to_string()),
        ("file_mib", FILE_MIB.to_string()),
        ("nonce", nonce.to_string()),
    ];
    facts.iter().fold(String::new(), |text, (name, value)| {
        text + name + "=" + value + "\n"
    })
}

/// An address of this machine other than loopback; no packet is sent to find it.
fn own_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let routed = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    routed.map_or(String::new(), |address| address.ip().to_string())
}

fn cgroup() -> String {
    let candidates = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let found = candidates
        .iter()
        .find(|path| Path::new(path).join("cgroup.procs").exists());
    found.unwrap_or(&"").to_string()
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

/// `<where> <probe>` → (outcome, detail), from what the executable prints.
fn report(executable: &Path) -> BTreeMap<String, (String, String)> {
    let output = Command::new(executable).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (place, name) = (word(), word());
        (format!("{place} {name}"), (word(), word()))
    };
    text.lines().map(line).collect()
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
