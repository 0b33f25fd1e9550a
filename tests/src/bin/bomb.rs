//! What a build may do to the machine it runs on. `bomb KIND NONCE DIR…`: started inside the sandbox,
//! it does its worst below the directories that it may write to. The nonce is only there to be found
//! in the list of processes.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group, setsid};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let directories: Vec<PathBuf> = words[3..].iter().map(PathBuf::from).collect();
    match words[1].as_str() {
        "forks" => while fork("sleep") {},
        "storm" => {
            storm();
            sleep();
        }
        "daemons" => (0..20).for_each(|_| {
            fork("daemon");
        }),
        "memory" => memory(),
        "disk" => directories.iter().for_each(|at| fill(at)),
        "spin" => spin(),
        "output" => output(),
        "files" => files(&directories[0]),
        "links" => directories.iter().for_each(|at| links(at)),
        "deep" => directories.iter().for_each(|at| deep(at)),
        "closed" => directories.iter().for_each(|at| closed(at)),
        "names" => directories.iter().for_each(|at| names(at)),
        "kill" => signal(Signal::KILL),
        "stop" => signal(Signal::STOP),
        // What the others start.
        "gust" => storm(),
        "sleep" => sleep(),
        "daemon" => {
            let _ = setsid();
            fork("sleep");
        }
        other => panic!("no bomb {other}"),
    }
}

/// Starts this program again with another task; whoever starts it does not wait for it.
fn fork(kind: &str) -> bool {
    let words: Vec<String> = std::env::args().collect();
    let mut child = Command::new(&words[0]);
    child.arg(kind).args(&words[2..]);
    let none = Stdio::null;
    child.stdin(none()).stdout(none()).stderr(none());
    child.spawn().is_ok()
}

fn sleep() {
    std::thread::sleep(Duration::from_secs(600));
}

/// Processes that start two of their kind and end, for ever: whoever ends them one by one is late.
fn storm() {
    let _ = setsid();
    fork("gust");
    fork("gust");
}

fn memory() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1_u8; 1 << 20]);
        if held.len() == 64 {
            fork("memory");
        }
    }
}

fn fill(directory: &Path) {
    let chunk = vec![7_u8; 1 << 20];
    for number in 0..100_000 {
        let file = File::create(directory.join(format!("full {number}")));
        let Ok(mut file) = file else { return };
        if (0..4).any(|_| file.write_all(&chunk).is_err()) {
            return;
        }
    }
}

fn spin() {
    for _ in 0..8 {
        std::thread::spawn(|| {
            let mut number = 0_u64;
            loop {
                number = std::hint::black_box(number.wrapping_mul(31));
            }
        });
    }
    sleep();
}

fn output() {
    let chunk = [b'x'; 8192];
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    while out.write_all(&chunk).is_ok() && err.write_all(b"y\n").is_ok() {}
}

/// As many as may be open, in many processes.
fn files(directory: &Path) {
    let mut open = Vec::new();
    while let Ok(file) = File::create(directory.join(open.len().to_string())) {
        open.push(file);
    }
    for _ in 0..5 {
        fork("sleep");
    }
}

fn links(directory: &Path) {
    let targets = [
        "/",
        "..",
        ".",
        "/proc/self/root",
        "/etc/passwd",
        "loop",
        "/dev/zero",
    ];
    for number in 0..1000 {
        let to = targets[number % targets.len()];
        let _ = symlink(to, directory.join(format!("link {number}")));
    }
    let _ = symlink("loop", directory.join("loop"));
    let first = directory.join("first");
    let _ = fs::write(&first, "");
    for number in 0..200 {
        let _ = fs::hard_link(&first, directory.join(format!("hard {number}")));
    }
}

/// Deeper than the longest path, and some of it closed.
fn deep(directory: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = |at: &OwnedFd| rustix::fs::openat(at, "deep", flags, Mode::empty());
    let Ok(mut at) = rustix::fs::open(directory, flags, Mode::empty()) else {
        return;
    };
    for level in 0..2000 {
        if rustix::fs::mkdirat(&at, "deep", Mode::RWXU).is_err() {
            return;
        }
        let _ = rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::empty());
        let Ok(below) = open(&at) else { return };
        if level % 50 == 0 {
            let _ = rustix::fs::fchmod(&at, Mode::empty());
        }
        at = below;
    }
}

/// Directories and files that nobody may open, and what is neither.
fn closed(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let close = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o000));
    for number in 0..50 {
        let closed = directory.join(format!("closed {number}"));
        let _ = fs::create_dir_all(closed.join("within"));
        let _ = fs::write(closed.join("within/file"), "x");
        let _ = close(&closed.join("within/file"));
        let _ = close(&closed.join("within"));
        let _ = close(&closed);
    }
    let fifo = rustix::fs::FileType::Fifo;
    let _ = rustix::fs::mknodat(rustix::fs::CWD, directory.join("fifo"), fifo, Mode::RWXU, 0);
    let _ = std::os::unix::net::UnixListener::bind(directory.join("socket"));
    let immutable = rustix::fs::IFlags::IMMUTABLE | rustix::fs::IFlags::APPEND;
    if let Ok(file) = File::create(directory.join("immutable")) {
        let _ = rustix::fs::ioctl_setflags(&file, immutable);
    }
    let _ = close(directory);
}

fn names(directory: &Path) {
    for byte in (1..=255).filter(|&byte| byte != b'/') {
        let name = std::ffi::OsString::from_vec(vec![byte; 200]);
        let _ = fs::create_dir(directory.join(&name));
        let _ = fs::write(directory.join(&name).join(&name), "");
    }
    for name in ["-rf", "..x", "qk-remove-1", "qk-remove-2", " ", "\\"] {
        let _ = fs::create_dir_all(directory.join(name).join("qk-remove-1/x"));
    }
}

/// To everything that it may.
fn signal(signal: Signal) {
    for _ in 0..5 {
        fork("sleep");
    }
    // The group of number 1 is, to the kernel, everybody.
    let _ = kill_process_group(Pid::INIT, signal);
    sleep();
}
