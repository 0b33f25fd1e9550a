//! A sandbox without namespaces, for machines where user namespaces are off: Landlock, seccomp and
//! resource limits.
//!
//! A build runs in two Landlock domains, one within the other. The outer one only confines signals: in
//! it, beside the build, is a shell that waits until qk ends it or dies, and then sends SIGKILL to every
//! process that it may signal. These are all of the build's, because no process leaves its domain, and no
//! others. The build itself, in the inner domain, cannot signal the shell. So the shell does what the first
//! process of a pid namespace does elsewhere.
//!
//! The domains are entered by threads that start the processes, not by system calls between fork
//! and exec, which would have to be `unsafe`.
//!
//! What stays visible, because neither Landlock nor seccomp can hide it: whether a path exists and how large
//! it is, the host's name, its processes' numbers.

mod filter;
mod place;

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, PathFdError, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, test_kill_process, waitpid};

use super::cgroup::Cgroup;
use super::sandbox::{END_MAX, Limits, Run, SandboxError, doing, limited, starting};
use super::seccomp;
use place::Grant;
pub(crate) use place::Place;

/// The oldest interface that confines signals (Linux 6.12). Without it a build could end any process
/// of its user.
const OLDEST: ABI = ABI::V6;
/// Devices that every program expects.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];
/// What a program may ask about the machine. `/proc/self` cannot be granted: it is another
/// directory for each process.
const PROC: &[&str] = &[
    "cpuinfo",
    "filesystems",
    "meminfo",
    "stat",
    "sys/kernel/osrelease",
    "sys/kernel/ostype",
    "sys/vm/overcommit_memory",
    "version",
];

/// Landlock as it was found on this machine.
#[derive(Debug, Clone)]
pub(super) struct Landlock {
    /// Of the kernel's interface, a number.
    pub(super) version: String,
    drop_to: Option<u32>,
}

impl Landlock {
    /// Checks that the kernel has what is needed, and that it does what it says.
    pub(super) fn find(drop_to: Option<u32>) -> Result<Self, SandboxError> {
        place::check(drop_to.is_some())?;
        let mut outside = waiting_shell().map_err(doing("start a process to look at"))?;
        let pid = pid_of(&outside)?;
        let inside = std::thread::spawn(move || {
            let status = confine_signals();
            status.map(|status| (status, test_kill_process(pid).is_ok()))
        });
        let found = inside.join();
        drop(outside.stdin.take());
        outside.wait().map_err(doing("end a process"))?;
        let found = found.map_err(|_| doing("enter a domain")(io::Error::other("it broke off")));
        match found? {
            Err(error) => Err(too_old(&error)),
            Ok((_, true)) => Err(too_old(&"signals leave the domain")),
            Ok((status, false)) => Ok(Self {
                version: version(&status),
                drop_to,
            }),
        }
    }

    /// Starts a run. What it sees below `/qk` is put there first; the caller holds the [`Place`] unless
    /// there is nothing to put.
    pub(super) fn start(
        &self,
        run: &Run,
        limits: &Limits,
        cgroup: &Cgroup,
    ) -> Result<Running, SandboxError> {
        let mut plan = Plan {
            grants: place::put(run)?,
            command: self.command(run, limits),
            network: run.network,
            drop_to: self.drop_to,
        };
        plan.grants.extend(common(run.network));
        let adopting = Adopting::new()?;
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let keeper = std::thread::Builder::new()
            .name("sandbox".into())
            .spawn(move || keep(plan, &ready, &stopped))
            .map_err(doing("start a thread"))?;
        let broke = |_| doing("start the sandbox")(io::Error::other("its thread broke off"));
        let child = started.recv().map_err(broke)??;
        let mut running = Running {
            child,
            keeper: Some((stop, keeper)),
            _adopting: adopting,
        };
        running.release(cgroup)?;
        Ok(running)
    }

    fn command(&self, run: &Run, limits: &Limits) -> Command {
        let mut command = starting(run, "/bin/sh");
        command.args(["-c", GATE, "qk-sandbox"]);
        command.args(limited(limits, limits.processes + self.others()));
        command
            .args(&run.argv)
            .env_clear()
            .envs(run.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&run.cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C on the terminal goes to qk, which decides.
            .process_group(0);
        as_uid(&mut command, self.drop_to);
        command
    }

    /// Threads of the user that are not the build's: the limit counts them too.
    fn others(&self) -> u32 {
        if self.drop_to.is_some() {
            return 0;
        }
        let own = format!("Uid:\t{}\t", rustix::process::getuid().as_raw());
        let mut threads = 0;
        for pid in processes() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.lines().any(|line| line.starts_with(&own)) {
                let count = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Threads:"));
                threads += count
                    .and_then(|count| count.trim().parse().ok())
                    .unwrap_or(1);
            }
        }
        threads
    }
}

/// Waits until it is in its control group, then becomes the command.
const GATE: &str = r#"umask 022; read -r go || exit 125; exec "$@" </dev/null"#;
/// Waits until its standard input is closed, then ends all that it can: what is in its domain. Twice, for
/// what was between two processes the first time.
const WATCH: &str = "read -r end; kill -9 -1; kill -9 -1";

/// What the threads of a run need.
struct Plan {
    grants: Vec<Grant>,
    command: Command,
    network: bool,
    drop_to: Option<u32>,
}

/// A run under way.
pub(super) struct Running {
    /// The process whose end is the run's.
    pub(super) child: Child,
    keeper: Option<Keeper>,
    _adopting: Adopting,
}

/// Told to end the run when the first half is dropped.
type Keeper = (mpsc::Sender<()>, JoinHandle<Result<(), SandboxError>>);

impl Running {
    fn release(&mut self, cgroup: &Cgroup) -> Result<(), SandboxError> {
        for procs in cgroup.procs() {
            fs::write(&procs, self.child.id().to_string())
                .map_err(doing("put the build into its control group"))?;
        }
        let mut gate = self.child.stdin.take();
        let opened = gate.as_mut().map_or(Ok(()), |gate| gate.write_all(b"\n"));
        opened.map_err(doing("let the build start"))
    }

    /// Ends all its processes, and returns when there are none.
    pub(super) fn stop(&mut self) -> Result<(), SandboxError> {
        let Some((stop, keeper)) = self.keeper.take() else {
            return Ok(());
        };
        drop(stop);
        let ended = keeper.join();
        let _ = self.child.wait();
        let broke = |_| doing("end the sandbox")(io::Error::other("its thread broke off"));
        ended.map_err(broke)?
    }
}

/// The life of a run's outer domain: enters it, starts what belongs into it, and ends it.
fn keep(
    plan: Plan,
    ready: &mpsc::Sender<Result<Child, SandboxError>>,
    stopped: &mpsc::Receiver<()>,
) -> Result<(), SandboxError> {
    let (watcher, child) = match enter(plan) {
        Ok(started) => started,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    let pid = pid_of(&child)?;
    let _ = ready.send(Ok(child));
    // Only ever dropped.
    let _ = stopped.recv();
    end(watcher, pid)
}

fn enter(plan: Plan) -> Result<(Watcher, Child), SandboxError> {
    confine_signals().map_err(|error| too_old(&error))?;
    let watcher = Watcher::start(plan.drop_to)?;
    let inner = std::thread::spawn(move || {
        let mut plan = plan;
        confine(&plan.grants, plan.network).map_err(|error| broken(&error))?;
        if plan.drop_to.is_none() {
            apply(&filter::pretended()?)?;
        }
        apply(&filter::refused(plan.network)?)?;
        // Last, so that where two filters answer it is this one that is heard.
        apply(&seccomp::program()?)?;
        plan.command.spawn().map_err(doing("start the build"))
    });
    let broke = |_| doing("start the sandbox")(io::Error::other("its thread broke off"));
    let child = inner.join().map_err(broke)??;
    Ok((watcher, child))
}

/// The shell that ends a domain.
struct Watcher(Child);

impl Watcher {
    fn start(drop_to: Option<u32>) -> Result<Self, SandboxError> {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", WATCH, "qk-watch"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        as_uid(&mut shell, drop_to);
        shell.spawn().map(Self).map_err(doing("start the watcher"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Lets the watcher end the domain that the caller is in, and collects what was in it; not the first
/// process, which is the caller's child to wait for.
fn end(watcher: Watcher, first: Pid) -> Result<(), SandboxError> {
    drop(watcher);
    let started = Instant::now();
    // Should the watcher have died before. No signal of this thread's reaches a process outside.
    let _ = kill_process(first, Signal::KILL);
    loop {
        let left = members(first);
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > END_MAX {
            let error = format!("processes {left:?} do not end");
            return Err(doing("end the sandbox")(io::Error::other(error)));
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
            // Orphans are this process's children since `Adopting`.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes of the domain that the calling thread is in, this one and `first` aside: descendants
/// that it may signal.
fn members(first: Pid) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    processes()
        .filter(|&pid| pid != own && pid != first.as_raw_nonzero().get() && descends(pid, own))
        .filter_map(Pid::from_raw)
        .filter(|&pid| test_kill_process(pid).is_ok())
        .collect()
}

fn descends(mut pid: i32, from: i32) -> bool {
    const DEPTH_MAX: usize = 10_000;
    for _ in 0..DEPTH_MAX {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `4711 (name) S 4710 …`; the name may hold anything.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let parent = after.split_whitespace().nth(1);
        match parent.and_then(|parent| parent.parse::<i32>().ok()) {
            Some(parent) if parent == from => return true,
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// While one of these lives, processes whose parent dies become this process's children, so that it can
/// tell when they are gone.
struct Adopting;

static ADOPTING: Mutex<usize> = Mutex::new(0);

impl Adopting {
    fn new() -> Result<Self, SandboxError> {
        let mut count = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            adopt(true).map_err(doing("adopt orphans"))?;
        }
        *count += 1;
        Ok(Self)
    }
}

impl Drop for Adopting {
    fn drop(&mut self) {
        let mut count = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            let _ = adopt(false);
        }
    }
}

fn adopt(yes: bool) -> io::Result<()> {
    let flag = yes.then_some(Pid::INIT);
    Ok(rustix::process::set_child_subreaper(flag)?)
}

/// Puts the calling thread into a domain that no signal leaves, nor a connection to an abstract socket.
fn confine_signals() -> Result<RestrictionStatus, Error> {
    // Every domain refuses renaming between directories where it does not allow it.
    let root = PathBeneath::new(PathFd::new("/")?, AccessFs::Refer);
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = ruleset.handle_access(AccessFs::Refer)?;
    let ruleset = ruleset.scope(Scope::from_all(OLDEST))?.create()?;
    Ok(ruleset.add_rule(root)?.restrict_self()?)
}

/// What Landlock may complain about.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    #[error(transparent)]
    Path(#[from] PathFdError),
    #[error("only {0:?}")]
    Status(RulesetStatus),
}

/// Puts the calling thread into a domain that reaches what is granted and nothing else.
fn confine(grants: &[Grant], network: bool) -> Result<(), Error> {
    let ports = match network {
        true => BitFlags::from(AccessNet::BindTcp),
        false => AccessNet::from_all(OLDEST),
    };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(OLDEST))?
        .handle_access(ports)?
        .scope(Scope::from_all(OLDEST))?
        .create()?;
    for Grant { path, writable } in grants {
        let access = access(path.is_dir(), *writable);
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        less => Err(Error::Status(less)),
    }
}

fn access(directory: bool, writable: bool) -> BitFlags<AccessFs> {
    let devices = make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});
    let access = match writable {
        true => AccessFs::from_all(OLDEST) & !devices,
        false => AccessFs::from_read(OLDEST),
    };
    match directory {
        true => access,
        false => access & AccessFs::from_file(OLDEST),
    }
}

/// What every run may reach.
fn common(network: bool) -> Vec<Grant> {
    let device = |name: &&str| (Path::new("/dev").join(name), true);
    let about = |name: &&str| (Path::new("/proc").join(name), false);
    let mut paths: Vec<(PathBuf, bool)> = DEVICES.iter().map(device).collect();
    paths.extend(PROC.iter().map(about));
    paths.push((place::TMP.into(), true));
    if network {
        // The host's own says how names are looked up; there is no showing another one.
        paths.push(("/etc/nsswitch.conf".into(), false));
    }
    let there = paths.into_iter().filter(|(path, _)| path.exists());
    there
        .map(|(path, writable)| Grant { path, writable })
        .collect()
}

fn apply(program: &seccompiler::BpfProgram) -> Result<(), SandboxError> {
    seccompiler::apply_filter(program).map_err(|error| broken(&error))
}

fn broken(why: &dyn std::fmt::Display) -> SandboxError {
    doing("confine a build")(io::Error::other(why.to_string()))
}

fn as_uid(command: &mut Command, uid: Option<u32>) {
    if let Some(uid) = uid {
        // As root this clears the groups, too.
        command.uid(uid).gid(uid);
    }
}

fn waiting_shell() -> io::Result<Child> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "read -r end"]).stdin(Stdio::piped());
    shell.spawn()
}

fn pid_of(child: &Child) -> Result<Pid, SandboxError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| doing("start a process")(io::Error::other("it has no number")))
}

fn version(status: &RestrictionStatus) -> String {
    match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => kernel_abi.unwrap_or(effective_abi as i32).to_string(),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => "0".to_owned(),
    }
}

fn too_old(why: &dyn std::fmt::Display) -> SandboxError {
    SandboxError::Unavailable {
        what: format!("Landlock cannot hold a build here ({why})"),
        how: "it needs Linux 6.12 or later with `landlock` in its list of security modules \
              (`lsm=landlock,…` on its command line)"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_landlock_is_refused() {
        for errno in [libc::ENOSYS, libc::EOPNOTSUPP] {
            let found = std::thread::spawn(move || {
                let calls = [libc::SYS_landlock_create_ruleset];
                let rules = calls.map(|call| (call, Vec::new())).into();
                apply(&seccomp::compile(rules, errno).unwrap()).unwrap();
                Landlock::find(Some(super::super::sandbox::BUILD_UID))
            });
            let error = found.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("Linux 6.12 or later"), "{error}");
        }
    }
}
