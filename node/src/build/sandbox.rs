//! The sandbox: what a run sees, what it may use, and how it ends.
//!
//! There are two kinds. bubblewrap makes namespaces and is taken where it works; Landlock needs none.
//! Both take the same [`Run`] and show a build the same paths, so that both give the same bytes.
//! Neither ever runs anything as uid 0.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::bubblewrap::{self, Bubblewrap};
use super::cgroup::Cgroup;
use super::host;
use super::landlock::{self, Landlock, Place};
use super::seccomp;

/// The uid and gid that a build runs as when qk is root. Nothing else on the machine should own
/// it: not `nobody`, which other services run as too.
pub const BUILD_UID: u32 = 65_533;
/// How often a running sandbox is looked at for its time limit and for being cancelled.
pub(super) const POLL: Duration = Duration::from_millis(25);
/// How long the kernel may take to end killed processes, on a machine that is very busy.
pub(super) const END_MAX: Duration = Duration::from_secs(60);
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
    /// A run is stopped when less than this is free on the disk that it writes to.
    pub disk_free_bytes: u64,
    /// The same for how many files can still be made there.
    pub disk_free_files: u64,
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
            disk_free_bytes: 256 << 20,
            disk_free_files: 10_000,
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
    /// The caller stopped waiting for another build.
    #[error("the build was cancelled")]
    Cancelled,
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
    /// Stopped by us when the disk was nearly full.
    OutOfDisk,
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

/// Which sandbox is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// bubblewrap where it works, else Landlock.
    #[default]
    Best,
    /// bubblewrap or nothing.
    Bubblewrap,
    /// Landlock or nothing.
    Landlock,
}

impl Choice {
    /// What the environment variable `QK_SANDBOX` says: `bubblewrap` or `landlock`.
    ///
    /// # Errors
    /// When it says something else.
    pub fn of_user() -> Result<Self, SandboxError> {
        let said = std::env::var_os("QK_SANDBOX").unwrap_or_default();
        match said.to_string_lossy().as_ref() {
            "" => Ok(Self::Best),
            "bubblewrap" => Ok(Self::Bubblewrap),
            "landlock" => Ok(Self::Landlock),
            other => Err(SandboxError::Unavailable {
                what: format!("QK_SANDBOX names {other:?}"),
                how: "set it to bubblewrap or landlock, or not at all".into(),
            }),
        }
    }
}

/// A way to run untrusted commands, checked to work on this machine.
#[derive(Debug, Clone)]
pub struct Sandbox {
    kind: Kind,
    /// Set when we are root: the uid that builds run as.
    drop_to: Option<u32>,
}

#[derive(Debug, Clone)]
enum Kind {
    Bubblewrap(Bubblewrap),
    Landlock(Landlock),
}

impl Sandbox {
    /// Finds what the user chose, or else what works here, and starts an empty sandbox with it.
    ///
    /// # Errors
    /// Says what is missing on this machine and how to get it.
    pub fn probe() -> Result<Self, SandboxError> {
        Self::choose(Choice::of_user()?)
    }

    /// The same for a choice that the caller made.
    ///
    /// # Errors
    /// As [`probe`](Self::probe).
    pub fn choose(choice: Choice) -> Result<Self, SandboxError> {
        match choice {
            Choice::Bubblewrap => Self::bubblewrap(),
            Choice::Landlock => Self::landlock(),
            Choice::Best => Self::bubblewrap().or_else(|first| {
                Self::landlock().map_err(|second| match (first, second) {
                    (
                        SandboxError::Unavailable { what, how },
                        SandboxError::Unavailable {
                            what: also,
                            how: or,
                        },
                    ) => SandboxError::Unavailable {
                        what: format!("{what}, and {also}"),
                        how: format!("{how}; or {or}"),
                    },
                    (first, _) => first,
                })
            }),
        }
    }

    fn bubblewrap() -> Result<Self, SandboxError> {
        let drop_to = drop_to();
        let kind = Kind::Bubblewrap(Bubblewrap::find(drop_to)?);
        let sandbox = Self { kind, drop_to };
        match sandbox.try_out()? {
            (End::Exit(TRIED), _) => Ok(sandbox),
            (other, said) => Err(bubblewrap::unavailable(&said, other)),
        }
    }

    fn landlock() -> Result<Self, SandboxError> {
        let drop_to = drop_to();
        let kind = Kind::Landlock(Landlock::find(drop_to)?);
        let sandbox = Self { kind, drop_to };
        match sandbox.try_out()? {
            (End::Exit(TRIED), _) => Ok(sandbox),
            (other, said) => Err(SandboxError::Unavailable {
                what: format!("Landlock does not work here ({said:?}, {other:?})"),
                how: "see `qk doctor`".into(),
            }),
        }
    }

    /// The uid that owns what the sandbox writes.
    pub fn build_uid(&self) -> u32 {
        self.drop_to
            .unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// `bubblewrap` or `landlock`.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Bubblewrap(_) => "bubblewrap",
            Kind::Landlock(_) => "landlock",
        }
    }

    /// bubblewrap's version, or that of the kernel's interface to Landlock.
    pub fn version(&self) -> &str {
        match &self.kind {
            Kind::Bubblewrap(bubblewrap) => &bubblewrap.version,
            Kind::Landlock(landlock) => &landlock.version,
        }
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

    /// Where a build has to lie on the host, and it alone; nothing for a sandbox that shows any directory
    /// at any path. Waits for the build before.
    ///
    /// # Errors
    /// When the place is somebody else's, and [`SandboxError::Cancelled`].
    pub(super) fn place(&self, cancel: &Cancel) -> Result<Option<Place>, SandboxError> {
        match self.kind {
            Kind::Bubblewrap(_) => Ok(None),
            Kind::Landlock(_) => Place::take(self.drop_to, cancel).map(Some),
        }
    }

    /// Runs a command that says that it ran, and returns how it ended and what it said.
    fn try_out(&self) -> Result<(End, String), SandboxError> {
        let scratch = tempfile::tempdir().map_err(doing("make a temporary directory"))?;
        let mut binds = vec![Bind::read("/usr", "/usr")];
        binds.extend(
            ["/bin", "/lib", "/lib64"]
                .iter()
                .filter(|path| Path::new(path).exists())
                .map(|path| Bind::read(path, path)),
        );
        let run = Run {
            argv: vec![
                "/bin/sh".into(),
                "-c".into(),
                format!("exit {TRIED}").into(),
            ],
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
            disk_free_bytes: 0,
            disk_free_files: 0,
            ..Limits::default()
        };
        let mut said = String::new();
        let (end, _) = self.run(&run, &limits, scratch.path(), &Cancel::default(), |line| {
            if let Line::Err(text) = line {
                said.push_str(&text);
                said.push(' ');
            }
        })?;
        Ok((end, said.trim().to_owned()))
    }

    /// Runs to the end and passes every line of output to `line`. Nothing that ran inside is alive
    /// when this returns. `scratch` takes the launcher's files.
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
        keep_descriptors().map_err(doing("look at the open descriptors"))?;
        let cgroup = Cgroup::new(limits.memory_bytes, limits.processes);
        let started = Instant::now();
        let mut running = match &self.kind {
            Kind::Bubblewrap(kind) => {
                Running::Bubblewrap(kind.start(run, limits, scratch, &cgroup)?)
            }
            Kind::Landlock(kind) => Running::Landlock(kind.start(run, limits, &cgroup)?),
        };
        let lines = running.lines();
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
            if is_nearly_full(scratch, limits) {
                break End::OutOfDisk;
            }
            let status = running.child().try_wait();
            if let Some(status) = status.map_err(doing("wait for the sandbox"))? {
                break ended(status);
            }
        };
        running.stop()?;
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
}

/// A command with this program; where the run is one in the background, it gives way to everything else
/// on the machine.
pub(super) fn starting(run: &Run, program: &str) -> Command {
    // ionice is of util-linux, which may be cut down; a low priority for processors lowers that for
    // disks, too.
    let front: [&[&str]; 2] = [&["nice", "-n", "19"], &["ionice", "-c", "3"]];
    let mut words: Vec<OsString> = Vec::new();
    for part in front.iter().filter(|_| run.background) {
        if let Some(found) = host::which(part[0]) {
            words.push(found.into());
            words.extend(part[1..].iter().map(OsString::from));
        }
    }
    words.push(program.into());
    let mut command = Command::new(words.remove(0));
    command.args(words);
    command
}

/// What the command of a trial exits with.
const TRIED: i32 = 7;

/// A run under way; ended when this goes out of scope.
enum Running {
    Bubblewrap(Child),
    Landlock(landlock::Running),
}

impl Running {
    fn child(&mut self) -> &mut Child {
        match self {
            Self::Bubblewrap(child) => child,
            Self::Landlock(running) => &mut running.child,
        }
    }

    fn lines(&mut self) -> mpsc::Receiver<Line> {
        let child = self.child();
        let (sender, lines) = mpsc::sync_channel(256);
        if let Some(pipe) = child.stdout.take() {
            pass_on(pipe, Line::Out, sender.clone());
        }
        if let Some(pipe) = child.stderr.take() {
            pass_on(pipe, Line::Err, sender);
        }
        lines
    }

    /// Ends everything in it.
    fn stop(&mut self) -> Result<(), SandboxError> {
        match self {
            Self::Bubblewrap(child) => bubblewrap::stop(child),
            Self::Landlock(running) => running.stop(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it was stopped before, this finds nothing to do.
        let _ = self.stop();
    }
}

fn drop_to() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(BUILD_UID)
}

/// Keeps what is open in this process from whatever it starts: whoever started it may have left it a
/// directory that a build could walk out through. Neither kind of sandbox closes what it inherits.
fn keep_descriptors() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let descriptor = name.to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(descriptor) = descriptor.filter(|&descriptor| descriptor > 2) {
            #[expect(
                unsafe_code,
                reason = "a number without an owner; one that is closed by now is an error"
            )]
            // SAFETY: sets a flag, and touches no memory.
            let _ = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Whether less may still be written on the disk of `path`, or fewer files made, than is to stay free; no
/// where that cannot be found out.
fn is_nearly_full(path: &Path, limits: &Limits) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|disk| {
        // Some file systems do not count files.
        let files = if disk.f_files == 0 {
            u64::MAX
        } else {
            disk.f_favail
        };
        disk.f_bavail.saturating_mul(disk.f_frsize) < limits.disk_free_bytes
            || files < limits.disk_free_files
    })
}

/// What a run had around it.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Whether memory was limited for all processes together.
    pub cgroup: bool,
}

/// Where `prlimit` of util-linux is expected inside.
const PRLIMIT: &str = "/usr/bin/prlimit";

/// The beginning of a command line that gives the rest of it these limits.
pub(super) fn limited(limits: &Limits, processes: u32) -> Vec<OsString> {
    let mut words = vec![
        PRLIMIT.into(),
        format!("--nproc={processes}").into(),
        format!("--fsize={}", limits.file_bytes).into(),
        format!("--as={}", limits.memory_bytes).into(),
        format!("--cpu={}", limits.cpu.as_secs()).into(),
    ];
    let others = "--nofile=1024 --core=0 --memlock=65536 --msgqueue=0";
    words.extend(others.split(' ').map(OsString::from));
    words
}

/// Whether everybody on the machine can reach it.
pub(super) fn is_public(path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    let public = ["/usr/", "/etc/", "/lib", "/bin"];
    path == b"/usr"
        || public
            .iter()
            .any(|public| path.starts_with(public.as_bytes()))
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
