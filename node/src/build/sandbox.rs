//! The sandbox: bubblewrap with a root file system that holds only what is named.
//!
//! bubblewrap started as uid 0 leaves files such as `/proc/sys/kernel/core_pattern` writable, so it
//! never is: started by root, a launcher makes a private mount namespace, binds what lies in
//! private directories under a tmpfs that the unprivileged uid can reach, and drops to that uid.
//! The launcher is `unshare`, `mount` and `setpriv` of util-linux rather than system calls between
//! fork and exec, which would have to be `unsafe`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::Cgroup;
use super::seccomp;

/// The uid and gid that a build runs as when qk is root. Nothing else on the machine should own
/// it: not `nobody`, which other services run as too.
pub const BUILD_UID: u32 = 65_533;
/// The uid and gid that processes in the sandbox see.
const INSIDE_ID: &str = "1000";
/// How often a running sandbox is looked at for its time limit and for being cancelled.
const POLL: Duration = Duration::from_millis(25);
/// How long the kernel may take to end killed processes, on a machine that is very busy.
const END_MAX: Duration = Duration::from_secs(60);
/// What is stopped sooner may still be about to start its first process.
const LAUNCH_MAX: Duration = Duration::from_secs(2);
/// Longest line of output that is passed on; the rest of a longer one is dropped.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// What a build may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of all processes together where control groups work, and of each one's address space.
    pub memory_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u32,
    /// Largest single file.
    pub file_bytes: u64,
    /// CPU time of any one process.
    pub cpu: Duration,
    /// Time on the clock, for each of the two phases.
    pub wall: Duration,
    /// Size of `/tmp`, which is memory.
    pub tmp_bytes: u64,
    /// The log is cut off here.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 8 << 30,
            processes: 512,
            file_bytes: 2 << 30,
            cpu: Duration::from_secs(3600),
            wall: Duration::from_secs(3600),
            tmp_bytes: 1 << 30,
            log_bytes: 16 << 20,
        }
    }
}

/// Why there is no sandbox on this machine, or why it broke.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Cannot be had here; the second half says how to get it.
    #[error("no sandbox: {what}; {how}")]
    Unavailable {
        /// What is in the way.
        what: String,
        /// What a person can do about it.
        how: String,
    },
    /// The machine did not do what was asked.
    #[error("sandbox: {doing}: {error}")]
    Io {
        /// What was under way.
        doing: &'static str,
        /// What came back.
        error: io::Error,
    },
    /// No seccomp filter.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
}

/// Says what was under way when an I/O error came.
pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |error| SandboxError::Io { doing, error }
}

/// Something of the host that is seen in the sandbox.
#[derive(Debug, Clone)]
pub struct Bind {
    /// Where it is on the host; links are followed.
    pub host: PathBuf,
    /// Where it is seen.
    pub inside: PathBuf,
    /// Whether it can be written.
    pub writable: bool,
}

impl Bind {
    /// Seen and not written.
    pub fn read(host: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        let (host, inside) = (host.into(), inside.into());
        Self {
            host,
            inside,
            writable: false,
        }
    }

    /// Seen and written.
    pub fn write(host: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        Self {
            writable: true,
            ..Self::read(host, inside)
        }
    }
}

/// One run of a command in a sandbox of its own.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command, as seen inside.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(String, OsString)>,
    /// Its working directory, as seen inside.
    pub cwd: PathBuf,
    /// What it sees of the host besides `/proc`, `/dev` and empty directories in memory.
    pub binds: Vec<Bind>,
    /// Symbolic links: where they point and where they are.
    pub links: Vec<(String, String)>,
    /// Whether it is in the host's network.
    pub network: bool,
    /// The host's name as it sees it.
    pub hostname: String,
    /// Whether it gives way to everything else on the machine, as far as processors and disks go.
    pub background: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exit(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Stopped by us after the wall time.
    OutOfTime,
    /// The kernel killed something in it for lack of memory.
    OutOfMemory,
    /// Stopped because the caller asked for it.
    Cancelled,
}

/// A line of output.
#[derive(Debug)]
pub enum Line {
    /// Of standard output.
    Out(String),
    /// Of standard error.
    Err(String),
}

/// Set from another thread to stop what is running.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops whatever was given this; it stays stopped.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A way to run untrusted commands, checked to work on this machine.
#[derive(Debug, Clone)]
pub struct Sandbox {
    bwrap: PathBuf,
    /// Its version, as it prints it.
    version: String,
    disable_userns: bool,
    /// Set when we are root: the uid that builds run as.
    drop_to: Option<u32>,
}

impl Sandbox {
    /// Finds bubblewrap and starts an empty sandbox with it.
    ///
    /// # Errors
    /// Says what is missing on this machine and how to get it.
    pub fn probe() -> Result<Self, SandboxError> {
        let bwrap = super::host::which("bwrap").ok_or_else(|| SandboxError::Unavailable {
            what: "bubblewrap (bwrap) is not installed".into(),
            how: "run `qk setup`, or as root `apt-get install bubblewrap`".into(),
        })?;
        let output = |flag| {
            let output = Command::new(&bwrap).arg(flag).output();
            output.map_err(doing("start bwrap"))
        };
        let help = output("--help")?;
        let version = String::from_utf8_lossy(&output("--version")?.stdout).into_owned();
        let sandbox = Self {
            version: version.trim().trim_start_matches("bubblewrap ").to_owned(),
            disable_userns: String::from_utf8_lossy(&help.stdout).contains("--disable-userns"),
            drop_to: rustix::process::geteuid().is_root().then_some(BUILD_UID),
            bwrap,
        };
        sandbox.try_out()?;
        Ok(sandbox)
    }

    /// The uid that owns what the sandbox writes.
    pub fn build_uid(&self) -> u32 {
        self.drop_to
            .unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// bubblewrap's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes `directory` writable from inside.
    ///
    /// # Errors
    /// When its owner cannot be changed.
    pub fn own(&self, directory: &Path) -> Result<(), SandboxError> {
        match self.drop_to {
            Some(uid) => std::os::unix::fs::lchown(directory, Some(uid), Some(uid))
                .map_err(doing("give a directory to the build's uid")),
            None => Ok(()),
        }
    }

    fn try_out(&self) -> Result<(), SandboxError> {
        let scratch = tempfile::tempdir().map_err(doing("make a temporary directory"))?;
        let mut binds = vec![Bind::read("/usr", "/usr")];
        binds.extend(
            ["/bin", "/lib", "/lib64"]
                .iter()
                .filter(|path| Path::new(path).exists())
                .map(|path| Bind::read(path, path)),
        );
        let run = Run {
            argv: vec!["/bin/sh".into(), "-c".into(), "exit 7".into()],
            env: Vec::new(),
            cwd: "/".into(),
            binds,
            links: Vec::new(),
            network: false,
            hostname: "qk".into(),
            background: false,
        };
        let limits = Limits {
            wall: Duration::from_secs(20),
            ..Limits::default()
        };
        let mut said = String::new();
        let (end, _) = self.run(&run, &limits, scratch.path(), &Cancel::default(), |line| {
            if let Line::Err(text) = line {
                said.push_str(&text);
                said.push(' ');
            }
        })?;
        match end {
            End::Exit(7) => Ok(()),
            other => Err(unavailable(said.trim(), other)),
        }
    }

    /// Runs to the end and passes every line of output to `line`. Nothing that ran inside is alive
    /// when this returns how it ended. `scratch` takes the launcher's files.
    ///
    /// Must be called from a thread that outlives the run: bubblewrap dies with the thread that
    /// started it.
    ///
    /// # Errors
    /// When the sandbox cannot be started or ended; what the command does is in the result.
    pub fn run(
        &self,
        run: &Run,
        limits: &Limits,
        scratch: &Path,
        cancel: &Cancel,
        mut line: impl FnMut(Line),
    ) -> Result<(End, Used), SandboxError> {
        let cgroup = Cgroup::new(limits.memory_bytes, limits.processes);
        let mut command = self.command(run, limits, scratch, &cgroup)?;
        let started = Instant::now();
        let mut child = command.spawn().map_err(doing("start the launcher"))?;
        let (sender, lines) = mpsc::sync_channel(256);
        let pipes = (child.stdout.take(), child.stderr.take());
        if let Some(pipe) = pipes.0 {
            pass_on(pipe, Line::Out, sender.clone());
        }
        if let Some(pipe) = pipes.1 {
            pass_on(pipe, Line::Err, sender);
        }
        let mut guard = Guard(child);
        let end = loop {
            match lines.recv_timeout(POLL) {
                Ok(text) => line(text),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            if cancel.is_cancelled() {
                break End::Cancelled;
            }
            if started.elapsed() > limits.wall {
                break End::OutOfTime;
            }
            if let Some(status) = guard.0.try_wait().map_err(doing("wait for the sandbox"))? {
                break ended(status);
            }
        };
        guard.stop()?;
        // Everything inside is dead, so the pipes are at their end; what they held still counts.
        while let Ok(text) = lines.recv_timeout(Duration::from_secs(1)) {
            line(text);
        }
        let starved = cgroup.ran_out_of_memory();
        let failed = !matches!(end, End::Exit(0) | End::Cancelled);
        let used = Used {
            cgroup: cgroup.kind().is_some(),
        };
        match starved && failed {
            true => Ok((End::OutOfMemory, used)),
            false => Ok((end, used)),
        }
    }

    fn command(
        &self,
        run: &Run,
        limits: &Limits,
        scratch: &Path,
        cgroup: &Cgroup,
    ) -> Result<Command, SandboxError> {
        let filter = scratch.join("seccomp.bpf");
        let mut file = File::create(&filter).map_err(doing("write the seccomp filter"))?;
        file.write_all(&seccomp::program()?)
            .map_err(doing("write the seccomp filter"))?;
        let mut binds = run.binds.clone();
        let mut words: Vec<&str> = Vec::new();
        if run.background {
            words.extend(["nice", "-n", "19"]);
        }
        // Of util-linux, which may be cut down; a low priority for processors lowers that for disks, too.
        if run.background && super::host::which("ionice").is_some() {
            words.extend(["ionice", "-c", "3"]);
        }
        if self.drop_to.is_some() {
            words.extend(["unshare", "--mount", "--propagation", "private", "--"]);
        }
        words.extend(["/bin/sh", "-eu", "-c", LAUNCH, "qk-sandbox"]);
        let mut launcher = Command::new(words.remove(0));
        launcher.args(words).arg(&filter);
        let groups: Vec<PathBuf> = cgroup.procs().collect();
        launcher.arg(groups.len().to_string()).args(groups);
        match self.drop_to {
            None => {
                launcher.args(["", "0", "--"]);
            }
            Some(uid) => {
                let staged = stage(&mut binds, scratch)?;
                launcher
                    .arg(&staged.at)
                    .arg(staged.sources.len().to_string());
                launcher.args(staged.sources);
                let uid = uid.to_string();
                launcher.args([
                    "setpriv",
                    "--reuid",
                    &uid,
                    "--regid",
                    &uid,
                    "--clear-groups",
                    "--",
                ]);
            }
        }
        launcher
            .arg(&self.bwrap)
            .args(self.arguments(run, limits, &binds));
        launcher
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C on the terminal goes to qk, which decides.
            .process_group(0);
        Ok(launcher)
    }

    fn arguments(&self, run: &Run, limits: &Limits, binds: &[Bind]) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments
            .words("--unshare-user --unshare-ipc --unshare-pid --unshare-uts --unshare-cgroup");
        if !run.network {
            arguments.words("--unshare-net");
        }
        if self.disable_userns {
            arguments.words("--disable-userns");
        }
        arguments.words("--cap-drop ALL --die-with-parent --new-session --clearenv --seccomp 9");
        // The command is process 1, so bubblewrap ends only after everything in it is dead.
        arguments.words("--as-pid-1");
        arguments
            .words("--uid")
            .words(INSIDE_ID)
            .words("--gid")
            .words(INSIDE_ID);
        arguments.words("--hostname").push(&run.hostname);
        arguments.words("--proc /proc --dev /dev");
        let tmp = limits.tmp_bytes.to_string();
        for directory in ["/tmp", "/dev/shm"] {
            arguments
                .words("--size")
                .push(&tmp)
                .words("--tmpfs")
                .push(directory);
        }
        for bind in binds {
            arguments.words(if bind.writable { "--bind" } else { "--ro-bind" });
            arguments.push(&bind.host).push(&bind.inside);
        }
        for (to, at) in &run.links {
            arguments.words("--symlink").push(to).push(at);
        }
        for (name, value) in &run.env {
            arguments.words("--setenv").push(name).push(value);
        }
        arguments
            .words("--remount-ro / --chdir")
            .push(&run.cwd)
            .words("--");
        arguments.limits(limits);
        // A shell as process 1 collects what others leave behind.
        arguments
            .words("/bin/sh -c")
            .push(r#""$@"; exit $?"#)
            .words("qk");
        arguments.0.extend(run.argv.iter().cloned());
        arguments.0
    }
}

/// What a run had around it.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Whether memory was limited for all processes together.
    pub cgroup: bool,
}

/// Arguments: the filter; how many control groups, and their `cgroup.procs`; where to stage, how
/// many things, and the things; the command.
const LAUNCH: &str = r#"
umask 022
exec 9<"$1"; shift
n=$1; shift
while [ "$n" -gt 0 ]; do echo $$ >"$1"; shift; n=$((n - 1)); done
at=$1; n=$2; shift 2
if [ -n "$at" ]; then
    mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m qk "$at"
    i=0
    while [ "$i" -lt "$n" ]; do
        if [ -d "$1" ]; then mkdir "$at/$i"; else : >"$at/$i"; fi
        mount --bind "$1" "$at/$i"
        shift; i=$((i + 1))
    done
else
    shift
fi
exec "$@"
"#;

/// Where `prlimit` of util-linux is expected inside.
pub(crate) const PRLIMIT: &str = "/usr/bin/prlimit";

struct Staged {
    at: PathBuf,
    sources: Vec<PathBuf>,
}

/// Replaces the sources that another uid may be unable to reach by places below a directory that
/// gets a tmpfs of its own in the launcher's mount namespace.
fn stage(binds: &mut [Bind], scratch: &Path) -> Result<Staged, SandboxError> {
    const PLACES: &[&str] = &["/mnt", "/media", "/srv", "/opt", "/home"];
    let real = |path: &Path| fs::canonicalize(path).map_err(doing("find what is bound"));
    let mut resolved = Vec::new();
    for bind in binds.iter_mut() {
        bind.host = real(&bind.host)?;
        resolved.push(bind.host.clone());
    }
    resolved.push(real(scratch)?);
    let at = PLACES
        .iter()
        .map(PathBuf::from)
        .find(|place| place.is_dir() && !resolved.iter().any(|used| used.starts_with(place)))
        .ok_or_else(|| SandboxError::Unavailable {
            what: "no directory is free to stage the toolchain in".into(),
            how: "create an empty /mnt".into(),
        })?;
    let mut sources = Vec::new();
    for bind in binds.iter_mut() {
        if ["/usr/", "/etc/", "/lib", "/bin"].iter().any(|public| {
            bind.host
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(public.as_bytes())
        }) || bind.host == Path::new("/usr")
        {
            continue;
        }
        let number = sources.len().to_string();
        sources.push(std::mem::replace(&mut bind.host, at.join(number)));
    }
    Ok(Staged { at, sources })
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(OsString::from));
        self
    }

    fn push(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    /// Set inside, where the number of processes counts for the sandbox alone.
    fn limits(&mut self, limits: &Limits) {
        self.push(PRLIMIT)
            .push(format!("--nproc={}", limits.processes))
            .push(format!("--fsize={}", limits.file_bytes))
            .push(format!("--as={}", limits.memory_bytes))
            .push(format!("--cpu={}", limits.cpu.as_secs()))
            .words("--nofile=1024 --core=0 --memlock=65536 --msgqueue=0");
    }
}

/// Kills the sandbox when it goes out of scope while running.
struct Guard(Child);

impl Guard {
    /// Ends the sandbox: its first process, with which the kernel takes all others. bubblewrap ends
    /// after that one, so it is only killed where it has not started any.
    fn stop(&mut self) -> Result<(), SandboxError> {
        let own = self.0.id();
        let began = Instant::now();
        while began.elapsed() < END_MAX {
            let ended = self.0.try_wait().map_err(doing("wait for the sandbox"))?;
            if ended.is_some() {
                return Ok(());
            }
            let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
            let children = children.unwrap_or_default();
            for first in children.split_whitespace() {
                kill(first.parse().ok());
            }
            if children.is_empty() && began.elapsed() > LAUNCH_MAX {
                let _ = self.0.kill();
            }
            std::thread::sleep(POLL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        let error = io::Error::other("its processes do not end");
        Err(doing("end the sandbox")(error))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Where it was stopped before, this finds nothing to do.
        let _ = self.stop();
    }
}

fn kill(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn ended(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        // What bubblewrap and shells make of a signal.
        (Some(code), _) if code > 128 => End::Signal(code - 128),
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

fn pass_on(
    pipe: impl Read + Send + 'static,
    kind: fn(String) -> Line,
    lines: mpsc::SyncSender<Line>,
) {
    std::thread::spawn(move || {
        let mut pipe = io::BufReader::with_capacity(LINE_BYTES_MAX, pipe);
        let mut text = Vec::new();
        while let Ok(true) = next_line(&mut pipe, &mut text) {
            let line = String::from_utf8_lossy(&text).into_owned();
            if lines.send(kind(line)).is_err() {
                break;
            }
        }
    });
}

/// Reads one line without its end, at most [`LINE_BYTES_MAX`] of it; false at the end of data.
fn next_line(pipe: &mut impl io::BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    let mut any = false;
    loop {
        let buffer = pipe.fill_buf()?;
        if buffer.is_empty() {
            return Ok(any);
        }
        any = true;
        let (taken, done) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(at) => (at, true),
            None => (buffer.len(), false),
        };
        let room = LINE_BYTES_MAX.saturating_sub(text.len());
        text.extend_from_slice(&buffer[..taken.min(room)]);
        pipe.consume(taken + usize::from(done));
        if done {
            return Ok(true);
        }
    }
}

/// Reads bubblewrap's complaint.
fn unavailable(said: &str, end: End) -> SandboxError {
    let (what, how) = if said.contains("Creating new namespace failed")
        || said.contains("No permissions to create")
        || said.contains("unshare failed")
    {
        (
            "the kernel refuses user namespaces here",
            "allow them: `sysctl user.max_user_namespaces=15000` and, where it exists, \
             `sysctl kernel.unprivileged_userns_clone=1`; in a container start it with \
             `--security-opt seccomp=unconfined --cap-add SYS_ADMIN`",
        )
    } else if said.contains("setting up uid map") {
        (
            "AppArmor keeps bubblewrap from using user namespaces (Ubuntu 24.04 and later)",
            "as root install the profile: `apt-get install apparmor-profiles && ln -s \
             /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && \
             apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict`",
        )
    } else {
        ("bubblewrap does not work here", "see `qk doctor`")
    };
    let said: String = said.chars().take(300).collect();
    SandboxError::Unavailable {
        what: format!("{what} ({said:?}, {end:?})"),
        how: how.into(),
    }
}
