//! What a hostile crate may try. Each probe says `got` (it worked), `denied` (something stopped
//! it), or `absent` (this machine cannot do that at all, with or without a sandbox).
//!
//! They are bounded and put back what they change, because they also run without a sandbox, where
//! all must be `got`. Changes that could reach others are made in a child with a mount namespace of
//! its own, or write what was there before.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
    fn kill(pid: i32, signal: i32) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
    fn pause() -> i32;
    fn geteuid() -> u32;
    fn __errno_location() -> *mut i32;
}

/// A message as cargo prints it, with an executable that the crate did not build.
pub const FORGED: &str = r#"{"reason":"compiler-artifact","package_id":"registry+https://registry.example/index#forged@6.6.6","manifest_path":"/qk/src/Cargo.toml","target":{"kind":["bin"],"crate_types":["bin"],"name":"planted","src_path":"/qk/src/src/main.rs","edition":"2021","doc":true,"doctest":false,"test":true},"profile":{"opt_level":"3","debuginfo":0,"debug_assertions":false,"overflow_checks":false,"test":false},"features":[],"filenames":["/etc/passwd"],"executable":"/etc/passwd","fresh":false}"#;

pub enum Outcome {
    Got(String),
    Denied(String),
    Absent(String),
}
use Outcome::{Absent, Denied, Got};

type Probe = fn(&Facts, &Path) -> Outcome;

const PROBES: &[(&str, Probe)] = &[
    ("read-home", |facts, _| list(facts.get("home"))),
    ("read-secret-file", |facts, _| read(facts.get("secret"))),
    ("read-qk-data", |facts, _| list(facts.get("data"))),
    ("read-passwd", |_, _| read("/etc/passwd")),
    ("read-shadow", |_, _| as_root(|| read("/etc/shadow"))),
    ("read-environment", read_environment),
    ("read-machine-id", |facts, _| host_file(facts, "/etc/machine-id")),
    ("read-host-process", |facts, _| host_process(facts)),
    ("signal-host-process", signal_host_process),
    ("read-host-environment", |facts, _| read(&of_process(facts, "environ"))),
    ("read-host-memory", |facts, _| host_open(&of_process(facts, "mem"))),
    ("see-host-directory", |facts, _| told(fs::read_link(of_process(facts, "cwd")).map(drop))),
    ("limit-host-process", |facts, _| limit_process(facts.number("pid"))),
    ("renice-host-process", |facts, _| renice(facts.number("pid"))),
    ("pin-host-process", |facts, _| pin(facts.number("pid"))),
    ("learn-hostname", learn_hostname),
    ("learn-hostname-by-uname", learn_hostname_by_uname),
    ("see-host-file", |_, _| told(fs::metadata("/etc/passwd").map(drop))),
    ("chmod-host-file", |facts, _| chmod_host_file(Path::new(facts.get("secret")))),
    ("touch-host-file", |facts, _| touch_host_file(Path::new(facts.get("secret")))),
    ("truncate-host-file", truncate_host_file),
    ("link-host-file", link_host_file),
    ("watch-host-directory", watch_host_directory),
    ("write-shared-directory", |facts, _| create(Path::new(facts.get("shared")))),
    ("write-sources", |_, _| create(Path::new(&manifest_dir()))),
    ("write-toolchain", write_toolchain),
    ("write-tools", |_, _| as_root(|| create(Path::new("/usr/bin")))),
    ("tcp-loopback", |facts, _| tcp("127.0.0.1", facts)),
    ("tcp-own-address", tcp_own_address),
    ("udp-loopback", udp_loopback),
    ("unix-socket", |facts, _| told(UnixStream::connect(facts.get("socket")).map(drop))),
    ("abstract-socket", abstract_socket),
    ("datagram-socket", datagram_socket),
    ("message-queue", message_queue),
    ("socket-vsock", |_, _| socket(40, 1, 0)),
    ("socket-netlink", |_, _| socket(16, 3, 0)),
    ("socket-packet", |_, _| as_root(|| socket(17, 3, 0x0300))),
    ("socket-raw", |_, _| as_root(|| socket(2, 3, 1))),
    ("socket-alg", |_, _| socket(38, 5, 0)),
    ("keyring-add", keyring_add),
    ("keyring-read", |_, _| call(250, [0, -3_i64 as u64, 1, 0, 0])),
    ("io-uring", io_uring),
    ("ptrace-child", |_, _| child_then(|pid| unsafe { syscall(101, 16, pid, 0, 0) })),
    ("read-memory-of-child", |_, _| child_then(read_memory)),
    ("bpf", bpf),
    ("perf", perf),
    ("userfaultfd", |_, _| call(323, [1, 0, 0, 0, 0])),
    ("user-namespace", |_, _| in_child(|| unsafe { syscall(272, 0x1000_0000) })),
    ("user-namespace-by-clone", clone_user),
    ("mount", |_, _| as_root(|| in_child(mount))),
    ("chroot", |_, _| as_root(|| in_child(|| unsafe { syscall(161, c"/".as_ptr()) }))),
    ("enter-namespace", |_, _| as_root(enter_namespace)),
    ("become-root", |_, _| as_root(|| in_child(|| unsafe { syscall(105, 0) }))),
    ("chmod-setuid", chmod_setuid),
    ("create-setuid", create_setuid),
    ("file-capability", file_capability),
    ("make-device", make_device),
    ("open-disk", |facts, _| as_root(|| host_file(facts, facts.get("disk")))),
    ("open-kernel-log", |_, _| as_root(|| host_open("/dev/kmsg"))),
    ("syslog", |_, _| as_root(|| call(103, [10, 0, 0, 0, 0]))),
    ("open-by-handle", |_, _| as_root(open_by_handle)),
    ("fanotify", |_, _| as_root(|| call(300, [0, 0, 0, 0, 0]))),
    ("type-into-terminal", |_, _| as_root(|| in_child(type_into_terminal))),
    ("core-pattern", |_, _| as_root(|| write_back("/proc/sys/kernel/core_pattern"))),
    ("set-hostname", set_hostname),
    ("set-clock", |_, _| as_root(|| in_child(set_clock))),
    ("make-cgroup", |facts, _| as_root(|| make_cgroup(facts))),
    ("personality", |_, _| in_child(|| unsafe { syscall(135, 0x0004_0000) })),
    ("x32-calls", x32_calls),
    ("fork-bomb", fork_bomb),
    ("memory-bomb", |facts, _| in_child_with(facts.number("memory_mib"), memory_bomb)),
    ("fill-tmp", |facts, _| fill(Path::new("/tmp"), facts)),
    ("fill-shm", |facts, _| fill(Path::new("/dev/shm"), facts)),
    ("huge-file", huge_file),
    ("cargo-config", |_, _| set("QK_HOSTILE_CONFIG")),
    ("plain-pkg-config", |_, _| runs("pkg-config")),
    ("host-compiler", |_, _| runs("gcc")),
    ("leave-memory", leave_memory),
    ("daemon", |_, _| daemon("daemon")),
];

/// Runs all of them; one line each: `<where> <name> <outcome> <detail>`.
pub fn run(place: &str, scratch: &Path) -> String {
    let facts = Facts::read();
    let mut report = String::new();
    for (name, probe) in PROBES {
        let (outcome, detail) = match probe(&facts, scratch) {
            Got(detail) => ("got", detail),
            Denied(detail) => ("denied", detail),
            Absent(detail) => ("absent", detail),
        };
        let detail = detail.replace('\n', " ");
        writeln!(report, "{place} {name} {outcome} {detail}").unwrap();
    }
    report
}

/// What the test knows about the host: `name=value` lines in `facts.txt`.
pub struct Facts(BTreeMap<String, String>);

impl Facts {
    pub fn read() -> Self {
        let text = fs::read_to_string(Path::new(&manifest_dir()).join("facts.txt")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.into(), value.into())).collect())
    }

    pub fn get(&self, name: &str) -> &str {
        &self.0[name]
    }

    fn number(&self, name: &str) -> i32 {
        self.get(name).parse().unwrap()
    }
}

fn manifest_dir() -> String {
    std::env::var("CARGO_MANIFEST_DIR").unwrap()
}

fn errno() -> i32 {
    unsafe { *__errno_location() }
}

/// Of a call that returns a negative number when it fails. ENOSYS counts as denied: whether the
/// kernel really lacks the call is seen where the probe runs without a sandbox.
fn done(result: i64) -> Outcome {
    match result {
        0.. => Got(String::new()),
        _ => told(Err(std::io::Error::from_raw_os_error(errno()))),
    }
}

fn told(result: std::io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Got(String::new()),
        Err(error) => Denied(error.to_string()),
    }
}

/// What only root may do, and not in every container. Inside the attempt is made whoever we are;
/// without a sandbox a refusal says nothing about the sandbox.
fn as_root(probe: impl FnOnce() -> Outcome) -> Outcome {
    match probe() {
        Denied(why) if !sandboxed() => Absent(format!("needs more than uid {}: {why}", unsafe {
            geteuid()
        })),
        outcome => outcome,
    }
}

fn sandboxed() -> bool {
    manifest_dir().starts_with("/qk/")
}

fn call(number: i64, a: [u64; 5]) -> Outcome {
    let result = unsafe { syscall(number, a[0], a[1], a[2], a[3], a[4]) };
    done(result)
}

fn read(path: &str) -> Outcome {
    match fs::read(path) {
        Ok(bytes) => Got(format!("{} bytes", bytes.len())),
        Err(error) => Denied(error.to_string()),
    }
}

fn list(path: &str) -> Outcome {
    match fs::read_dir(path) {
        Ok(entries) => Got(format!("{} entries", entries.count())),
        Err(error) => Denied(error.to_string()),
    }
}

/// A file that not every host has.
fn host_file(facts: &Facts, path: &str) -> Outcome {
    if !facts.get("files").split(':').any(|known| known == path) {
        return Absent(format!("the host has no {path}"));
    }
    host_open(path)
}

fn host_open(path: &str) -> Outcome {
    told(fs::File::open(path).map(drop))
}

fn read_environment(_: &Facts, _: &Path) -> Outcome {
    set("QK_HOSTILE_ENVIRONMENT")
}

fn set(name: &str) -> Outcome {
    match std::env::var_os(name) {
        Some(_) => Got(String::new()),
        None => Denied("not set".into()),
    }
}

fn host_process(facts: &Facts) -> Outcome {
    let path = format!("/proc/{}/cmdline", facts.get("pid"));
    match fs::read(path) {
        Ok(line) if String::from_utf8_lossy(&line).contains(facts.get("command")) => {
            Got(String::new())
        }
        Ok(_) => Denied("another process".into()),
        Err(error) => Denied(error.to_string()),
    }
}

fn of_process(facts: &Facts, name: &str) -> String {
    format!("/proc/{}/{name}", facts.get("pid"))
}

/// The same number can be another process inside. Where that cannot be seen, it is tried.
fn signal_host_process(facts: &Facts, _: &Path) -> Outcome {
    if let Denied(why) = host_process(facts) {
        if why == "another process" {
            return Denied(why);
        }
    }
    done(unsafe { kill(facts.number("pid"), 0) }.into())
}

/// To what it is.
fn limit_process(pid: i32) -> Outcome {
    const FILES: i32 = 7;
    let mut old = [0_u64; 2];
    let none = std::ptr::null::<u64>();
    let asked = unsafe { syscall(302, pid, FILES, none, old.as_mut_ptr()) };
    match asked {
        0 => done(unsafe { syscall(302, pid, FILES, old.as_ptr(), none) }),
        _ => done(asked),
    }
}

/// To what it is.
fn renice(pid: i32) -> Outcome {
    // The call answers 20 minus the value.
    let found = unsafe { syscall(140, 0, pid) };
    match found {
        1.. => done(unsafe { syscall(141, 0, pid, 20 - found) }),
        _ => done(found),
    }
}

/// To where it is.
fn pin(pid: i32) -> Outcome {
    let mut mask = [0_u64; 128];
    let found = unsafe { syscall(204, pid, 1024, mask.as_mut_ptr()) };
    match found {
        1.. => done(unsafe { syscall(203, pid, 1024, mask.as_ptr()) }),
        _ => done(found),
    }
}

fn learn_hostname_by_uname(facts: &Facts, _: &Path) -> Outcome {
    let mut names = [[0_u8; 65]; 6];
    unsafe { syscall(63, names.as_mut_ptr()) };
    let name = String::from_utf8_lossy(&names[1]);
    let name = name.trim_end_matches('\0');
    match name == facts.get("hostname") {
        true => Got(name.into()),
        false => Denied(name.into()),
    }
}

/// What is answered counts less than what has changed.
fn chmod_host_file(path: &Path) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).map(|meta| meta.permissions().mode());
    let change = |to: u32| {
        let before = mode(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(before ^ to))?;
        std::io::Result::Ok(mode(path)? != before)
    };
    match change(0o001) {
        Ok(true) => told(change(0o001).map(drop)),
        Ok(false) => Denied("nothing changed".into()),
        Err(error) => Denied(error.to_string()),
    }
}

fn touch_host_file(path: &Path) -> Outcome {
    let Ok(name) = CString::new(path.to_str().unwrap()) else { unreachable!() };
    let before = fs::metadata(path).and_then(|meta| meta.modified());
    // 2001-09-09
    let times = [1_000_000_000_i64, 0, 1_000_000_000, 0];
    let answer = unsafe { syscall(280, -100_i64, name.as_ptr(), times.as_ptr(), 0) };
    let after = fs::metadata(path).and_then(|meta| meta.modified());
    match (before, after) {
        (Ok(before), Ok(after)) if before != after => {
            let file = fs::File::options().append(true).open(path);
            told(file.and_then(|file| file.set_modified(before)))
        }
        (Ok(_), Ok(_)) => Denied(format!("nothing changed, {answer}")),
        (Err(error), _) | (_, Err(error)) => Denied(error.to_string()),
    }
}

/// To the length that it has.
fn truncate_host_file(facts: &Facts, _: &Path) -> Outcome {
    let path = CString::new(facts.get("secret")).unwrap();
    done(unsafe { syscall(76, path.as_ptr(), "secret".len()) })
}

fn link_host_file(facts: &Facts, scratch: &Path) -> Outcome {
    let link = scratch.join(format!("secret-{}", std::process::id()));
    let result = fs::hard_link(facts.get("secret"), &link);
    let _ = fs::remove_file(&link);
    told(result)
}

fn watch_host_directory(facts: &Facts, _: &Path) -> Outcome {
    let path = CString::new(facts.get("shared")).unwrap();
    let watcher = unsafe { syscall(294, 0) };
    if watcher < 0 {
        return done(watcher);
    }
    // IN_ALL_EVENTS
    let watched = done(unsafe { syscall(254, watcher, path.as_ptr(), 0xfff) });
    close(watcher);
    watched
}

fn learn_hostname(facts: &Facts, _: &Path) -> Outcome {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() == facts.get("hostname") {
        true => Got(name),
        false => Denied(name),
    }
}

fn create(directory: &Path) -> Outcome {
    let path = directory.join(format!("qk-hostile-{}", std::process::id()));
    let result = fs::write(&path, b"x");
    let _ = fs::remove_file(&path);
    told(result)
}

fn write_toolchain(_: &Facts, _: &Path) -> Outcome {
    let rustc = std::env::var_os("RUSTC").map(PathBuf::from).unwrap_or("rustc".into());
    let sysroot = std::process::Command::new(rustc).args(["--print", "sysroot"]).output();
    let Ok(sysroot) = sysroot else {
        return Absent("no compiler here".into());
    };
    let sysroot = String::from_utf8(sysroot.stdout).unwrap();
    as_root(|| create(&Path::new(sysroot.trim()).join("lib")))
}

fn tcp(address: &str, facts: &Facts) -> Outcome {
    let address = format!("{address}:{}", facts.get("tcp")).parse().unwrap();
    told(TcpStream::connect_timeout(&address, Duration::from_secs(3)).map(drop))
}

fn tcp_own_address(facts: &Facts, _: &Path) -> Outcome {
    match facts.get("address") {
        "" => Absent("the host has no address but loopback".into()),
        address => tcp(address, facts),
    }
}

/// The test's socket answers with what it got.
fn udp_loopback(facts: &Facts, _: &Path) -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0");
    told(socket.and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send_to(b"x", format!("127.0.0.1:{}", facts.get("udp")))?;
        socket.recv(&mut [0; 8]).map(drop)
    }))
}

fn abstract_socket(facts: &Facts, _: &Path) -> Outcome {
    use std::os::linux::net::SocketAddrExt;
    let name = std::os::unix::net::SocketAddr::from_abstract_name(facts.get("abstract")).unwrap();
    told(UnixStream::connect_addr(&name).map(drop))
}

/// From a socket that was made as one of a pair.
fn datagram_socket(facts: &Facts, _: &Path) -> Outcome {
    let pair = std::os::unix::net::UnixDatagram::pair();
    told(pair.and_then(|(one, _)| one.send_to(b"x", facts.get("datagram")).map(drop)))
}

/// A segment that outlives the build, unless it is somewhere else.
fn leave_memory(facts: &Facts, _: &Path) -> Outcome {
    // IPC_CREAT
    done(unsafe { syscall(29, facts.number("nonce"), 4096_u64, 0o1600) })
}

/// One that would outlive the build.
fn message_queue(_: &Facts, _: &Path) -> Outcome {
    let name = CString::new(format!("qk-hostile-{}", std::process::id())).unwrap();
    // mq_flags, mq_maxmsg, mq_msgsize, mq_curmsgs
    let attributes = [0_i64, 1, 16, 0, 0, 0, 0, 0];
    // O_CREAT | O_RDWR
    let queue = unsafe { syscall(240, name.as_ptr(), 0o102, 0o600, attributes.as_ptr()) };
    if queue < 0 && !sandboxed() && errno() == 38 {
        return Absent("this kernel has no message queues".into());
    }
    unsafe { syscall(241, name.as_ptr()) };
    close(queue)
}

fn socket(family: u64, kind: u64, protocol: u64) -> Outcome {
    let file = unsafe { syscall(41, family, kind, protocol) };
    if file < 0 && !sandboxed() && matches!(errno(), 97 | 93 | 94) {
        return Absent("this kernel has no such sockets".into());
    }
    close(file)
}

fn close(file: i64) -> Outcome {
    let outcome = done(file);
    if file >= 0 {
        unsafe { syscall(3, file) };
    }
    outcome
}

/// In the keyring of the process, which goes with it.
fn keyring_add(_: &Facts, _: &Path) -> Outcome {
    in_child(|| unsafe {
        let (kind, name) = (c"user".as_ptr(), c"qk-hostile".as_ptr());
        syscall(248, kind, name, c"x".as_ptr(), 1, -2_i64)
    })
}

/// The other numbering of calls that some kernels for x86-64 know.
fn x32_calls(_: &Facts, _: &Path) -> Outcome {
    let id = unsafe { syscall(0x4000_0000 + 39) };
    if id < 0 && !sandboxed() {
        return Absent("this kernel has no x32 calls".into());
    }
    done(id)
}

fn io_uring(_: &Facts, _: &Path) -> Outcome {
    let mut parameters = [0_u8; 120];
    close(unsafe { syscall(425, 4, parameters.as_mut_ptr()) })
}

fn bpf(_: &Facts, _: &Path) -> Outcome {
    as_root(|| {
        // BPF_MAP_CREATE of an array with one entry of four bytes.
        let mut attributes = [0_u32; 32];
        attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
        close(unsafe { syscall(321, 0, attributes.as_mut_ptr(), 128) })
    })
}

fn perf(_: &Facts, _: &Path) -> Outcome {
    // A clock in software, of this process, without the kernel.
    let mut attributes = [0_u32; 32];
    attributes[0] = 1;
    attributes[1] = 128;
    attributes[10] = 1 << 5 | 1 << 6;
    let file = unsafe { syscall(298, attributes.as_mut_ptr(), 0, -1_i64, -1_i64, 0) };
    if file < 0 && !sandboxed() && errno() == 2 {
        return Absent("this kernel counts no events".into());
    }
    close(file)
}

fn in_child(body: impl FnOnce() -> i64) -> Outcome {
    match unsafe { fork() } {
        0 => unsafe {
            let failed = body() < 0;
            _exit(if failed { errno().clamp(1, 254) } else { 0 })
        },
        pid if pid > 0 => wait(pid),
        _ => done(-1),
    }
}

fn in_child_with(number: i32, body: fn(i32) -> i64) -> Outcome {
    in_child(|| body(number))
}

fn wait(pid: i32) -> Outcome {
    let mut status = 0;
    unsafe { waitpid(pid, &mut status, 0) };
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, 0) => Got(String::new()),
        (0, code) => Denied(std::io::Error::from_raw_os_error(code).to_string()),
        (signal, _) => Denied(format!("signal {signal}")),
    }
}

/// Does something to a child that waits.
fn child_then(body: impl FnOnce(i32) -> i64) -> Outcome {
    let pid = unsafe { fork() };
    if pid == 0 {
        unsafe {
            pause();
            _exit(0)
        }
    }
    let outcome = done(body(pid));
    unsafe {
        kill(pid, 9);
        waitpid(pid, std::ptr::null_mut(), 0);
    }
    outcome
}

fn read_memory(pid: i32) -> i64 {
    let (secret, mut copy) = ([7_u8; 8], [0_u8; 8]);
    let local = [copy.as_mut_ptr() as usize, 8];
    let remote = [secret.as_ptr() as usize, 8];
    // The last of so many arguments lies on the stack, where its upper half counts.
    unsafe { syscall(310, pid, local.as_ptr(), 1_i64, remote.as_ptr(), 1_i64, 0_i64) }
}

fn clone_user(_: &Facts, _: &Path) -> Outcome {
    // CLONE_NEWUSER and SIGCHLD; without CLONE_VM the child has a copy, as after fork.
    let pid = unsafe { syscall(56, 0x1000_0000 | 17, 0, 0, 0, 0) };
    match pid {
        0 => unsafe { _exit(0) },
        1.. => wait(pid as i32),
        _ => done(pid),
    }
}

/// In a mount namespace of its own where that can be had.
fn mount() -> i64 {
    unsafe {
        let none = std::ptr::null::<u8>();
        let alone = syscall(272, 0x0002_0000);
        if alone < 0 && !sandboxed() {
            return alone;
        }
        syscall(165, none, c"/".as_ptr(), none, 0x4_4000, none);
        let tmpfs = c"tmpfs".as_ptr();
        syscall(165, tmpfs, c"/tmp".as_ptr(), tmpfs, 0, none)
    }
}

fn enter_namespace() -> Outcome {
    match fs::File::open("/proc/1/ns/uts") {
        Ok(file) => {
            use std::os::fd::AsRawFd;
            let file = file.as_raw_fd();
            in_child(|| unsafe { syscall(308, file, 0x0400_0000) })
        }
        Err(error) => Denied(error.to_string()),
    }
}

fn file(scratch: &Path, name: &str) -> CString {
    let path = scratch.join(format!("{name}-{}", std::process::id()));
    fs::write(&path, b"x").unwrap();
    CString::new(path.to_str().unwrap()).unwrap()
}

fn chmod_setuid(_: &Facts, scratch: &Path) -> Outcome {
    let path = file(scratch, "chmod");
    done(unsafe { syscall(90, path.as_ptr(), 0o4755) })
}

fn create_setuid(_: &Facts, scratch: &Path) -> Outcome {
    let path = file(scratch, "created");
    fs::remove_file(path.to_str().unwrap()).unwrap();
    // O_CREAT | O_WRONLY
    close(unsafe { syscall(257, -100_i64, path.as_ptr(), 0o101, 0o4755) })
}

fn file_capability(_: &Facts, scratch: &Path) -> Outcome {
    as_root(|| {
        let path = file(scratch, "capability");
        // Version 2, effective, cap_chown.
        let value: [u32; 5] = [0x0200_0001, 1, 0, 0, 0];
        let name = c"security.capability".as_ptr();
        done(unsafe { syscall(188, path.as_ptr(), name, value.as_ptr(), 20, 0) })
    })
}

fn make_device(_: &Facts, scratch: &Path) -> Outcome {
    as_root(|| {
        let path = file(scratch, "device");
        fs::remove_file(path.to_str().unwrap()).unwrap();
        // A second /dev/zero.
        let outcome = done(unsafe { syscall(133, path.as_ptr(), 0o020_600, 1 << 8 | 5) });
        let _ = fs::remove_file(path.to_str().unwrap());
        outcome
    })
}

/// Opens the root directory by number, as programs once left containers.
fn open_by_handle() -> Outcome {
    // struct file_handle: size, kind, up to 128 bytes; and the id of the mount.
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0_i32;
    let directory = c"/tmp".as_ptr();
    let named = unsafe { syscall(303, -100_i64, directory, handle.as_mut_ptr(), &mut mount, 0) };
    if named < 0 {
        if !sandboxed() && errno() == 95 {
            return Absent("this file system has no handles".into());
        }
        return done(named);
    }
    let Ok(mount) = fs::File::open("/tmp") else {
        return Denied("no /tmp".into());
    };
    use std::os::fd::AsRawFd;
    close(unsafe { syscall(304, mount.as_raw_fd(), handle.as_mut_ptr(), 0) })
}

/// Into a terminal made for it, which is the controlling one of a new session.
fn type_into_terminal() -> i64 {
    unsafe {
        syscall(112);
        let master = syscall(2, c"/dev/ptmx".as_ptr(), 0o402);
        if master < 0 {
            return master;
        }
        let unlock = 0_i32;
        syscall(16, master, 0x4004_5431, &unlock);
        // TIOCGPTPEER, TIOCSCTTY, TIOCSTI
        let slave = syscall(16, master, 0x5441, 0o402);
        if slave < 0 {
            return slave;
        }
        syscall(16, slave, 0x540e, 0);
        syscall(16, slave, 0x5412, c"x".as_ptr())
    }
}

/// Writes what is there.
fn write_back(path: &str) -> Outcome {
    let mut text = String::new();
    let file = fs::OpenOptions::new().read(true).write(true).open(path);
    told(file.and_then(|mut file| {
        file.read_to_string(&mut text)?;
        file.write_all(text.as_bytes())
    }))
}

fn set_hostname(facts: &Facts, _: &Path) -> Outcome {
    let name = facts.get("hostname");
    as_root(|| done(unsafe { syscall(170, name.as_ptr(), name.len()) }))
}

/// By nothing: an offset of zero.
fn set_clock() -> i64 {
    // struct timex with modes = ADJ_OFFSET_SINGLESHOT and offset 0.
    let mut timex = [0_u64; 26];
    timex[0] = 0x8001;
    unsafe { syscall(159, timex.as_mut_ptr()) }
}

fn make_cgroup(facts: &Facts) -> Outcome {
    let parent = facts.get("cgroup");
    if parent.is_empty() {
        return Absent("no control groups here".into());
    }
    let path = Path::new(parent).join(format!("qk-hostile-{}", std::process::id()));
    let result = fs::create_dir(&path);
    let _ = fs::remove_dir(&path);
    told(result)
}

/// As many children as the sandbox allows processes, and some more.
fn fork_bomb(facts: &Facts, _: &Path) -> Outcome {
    let wanted = facts.number("processes") as usize + 16;
    let mut children = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        match unsafe { fork() } {
            0 => unsafe {
                pause();
                _exit(0)
            },
            pid if pid > 0 => children.push(pid),
            _ => break,
        }
    }
    for &pid in &children {
        unsafe {
            kill(pid, 9);
            waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    match children.len() == wanted {
        true => Got(format!("{wanted} processes")),
        false => Denied(format!("after {} processes", children.len())),
    }
}

/// Addresses only: nothing is touched.
fn memory_bomb(mib: i32) -> i64 {
    let size = (mib as u64) << 20;
    // PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    unsafe { syscall(9, 0_i64, size, 3_i64, 0x4022_i64, -1_i64, 0_i64) }
}

/// Somewhat more than `/tmp` of the sandbox holds.
fn fill(directory: &Path, facts: &Facts) -> Outcome {
    let path = directory.join(format!("qk-hostile-{}", std::process::id()));
    let chunk = vec![0_u8; 1 << 20];
    let result = fs::File::create(&path).and_then(|mut file| {
        (0..facts.number("tmp_mib") + 8).try_for_each(|_| file.write_all(&chunk))
    });
    let _ = fs::remove_file(&path);
    told(result)
}

/// A file of holes.
fn huge_file(facts: &Facts, scratch: &Path) -> Outcome {
    let path = scratch.join(format!("huge-{}", std::process::id()));
    // Else the limit is told by SIGXFSZ.
    let before = unsafe { signal(25, 1) };
    let size = (facts.number("file_mib") as u64 + 1) << 20;
    let result = fs::File::create(&path).and_then(|file| file.set_len(size));
    unsafe { signal(25, before) };
    let _ = fs::remove_file(&path);
    told(result)
}

fn runs(program: &str) -> Outcome {
    match std::process::Command::new(program).arg("--version").output() {
        Ok(output) if output.status.success() => Got(String::new()),
        Ok(output) => Denied(output.status.to_string()),
        Err(error) => Denied(error.to_string()),
    }
}

/// A process in a session of its own that outlives the build, unless someone ends it.
pub fn daemon(name: &str) -> Outcome {
    let facts = Facts::read();
    // Recognised by its odd number of seconds.
    let seconds = format!("600.{}", facts.get("nonce"));
    let pid = unsafe { fork() };
    if pid == 0 {
        unsafe { syscall(112) };
        let started = std::process::Command::new("sleep")
            .arg(seconds)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        unsafe { _exit(started.is_err().into()) }
    }
    match wait(pid) {
        Got(_) => Got(format!("{name} started")),
        other => other,
    }
}

/// Children that together hold more memory than one process may.
pub fn swarm() {
    let facts = Facts::read();
    let mib = facts.number("memory_mib") as usize;
    let each = mib / 8 << 20;
    let mut children = Vec::new();
    for _ in 0..12 {
        let pid = unsafe { fork() };
        if pid == 0 {
            let memory = vec![1_u8; each];
            std::thread::sleep(Duration::from_secs(5));
            unsafe { _exit(memory[each / 2].into()) }
        }
        children.push(pid);
    }
    for pid in children {
        let mut status = 0;
        unsafe { waitpid(pid, &mut status, 0) };
        assert_eq!(status & 0x7f, 0, "a child was killed");
    }
}
