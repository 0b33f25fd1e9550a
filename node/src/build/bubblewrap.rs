//! bubblewrap: namespaces, and a root file system that holds only what is named.
//!
//! bubblewrap started as uid 0 leaves files such as `/proc/sys/kernel/core_pattern` writable, so it
//! never is: started by root, a launcher makes a private mount namespace, binds what lies in
//! private directories under a tmpfs that the unprivileged uid can reach, and drops to that uid.
//! The launcher is `unshare`, `mount` and `setpriv` of util-linux rather than system calls between
//! fork and exec, which would have to be `unsafe`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::Cgroup;
use super::sandbox::{
    Bind, END_MAX, End, Limits, POLL, Run, SandboxError, doing, is_public, limited, starting,
};
use super::seccomp;

/// The uid and gid that processes in the sandbox see.
const INSIDE_ID: &str = "1000";
/// What is stopped sooner may still be about to start its first process.
const LAUNCH_MAX: Duration = Duration::from_secs(2);

/// bubblewrap as it was found on this machine.
#[derive(Debug, Clone)]
pub(super) struct Bubblewrap {
    bwrap: PathBuf,
    /// As it prints it.
    pub(super) version: String,
    disable_userns: bool,
    drop_to: Option<u32>,
}

impl Bubblewrap {
    /// Finds it; whether it works is another question.
    pub(super) fn find(drop_to: Option<u32>) -> Result<Self, SandboxError> {
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
        Ok(Self {
            version: version.trim().trim_start_matches("bubblewrap ").to_owned(),
            disable_userns: String::from_utf8_lossy(&help.stdout).contains("--disable-userns"),
            drop_to,
            bwrap,
        })
    }

    /// Starts a run. Whoever calls this lives longer than the run: bubblewrap dies with the thread
    /// that started it.
    pub(super) fn start(
        &self,
        run: &Run,
        limits: &Limits,
        scratch: &Path,
        cgroup: &Cgroup,
    ) -> Result<Child, SandboxError> {
        let mut command = self.command(run, limits, scratch, cgroup)?;
        command.spawn().map_err(doing("start the launcher"))
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
        file.write_all(&seccomp::bytes()?)
            .map_err(doing("write the seccomp filter"))?;
        let mut binds = run.binds.clone();
        let mut launcher = match self.drop_to {
            None => starting(run, "/bin/sh"),
            Some(_) => {
                let mut unshare = starting(run, "unshare");
                unshare.args(["--mount", "--propagation", "private", "--", "/bin/sh"]);
                unshare
            }
        };
        launcher
            .args(["-eu", "-c", LAUNCH, "qk-sandbox"])
            .arg(&filter);
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
        // Set inside, where the number of processes counts for the sandbox alone.
        arguments.0.extend(limited(limits, limits.processes));
        // A shell as process 1 collects what others leave behind.
        arguments
            .words("/bin/sh -c")
            .push(r#""$@"; exit $?"#)
            .words("qk");
        arguments.0.extend(run.argv.iter().cloned());
        arguments.0
    }
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
        if is_public(&bind.host) {
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
}

/// Ends the sandbox: its first process, with which the kernel takes all others. bubblewrap ends after
/// that one, so it is only killed where it has not started any.
pub(super) fn stop(child: &mut Child) -> Result<(), SandboxError> {
    let own = child.id();
    let began = Instant::now();
    while began.elapsed() < END_MAX {
        if child.try_wait().map_err(doing("wait for bwrap"))?.is_some() {
            return Ok(());
        }
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        for first in children.split_whitespace() {
            kill(first.parse().ok());
        }
        if children.is_empty() && began.elapsed() > LAUNCH_MAX {
            let _ = child.kill();
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
    let error = io::Error::other("its processes do not end");
    Err(doing("end the sandbox")(error))
}

fn kill(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Reads bubblewrap's complaint.
pub(super) fn unavailable(said: &str, end: End) -> SandboxError {
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
