//! A control group of its own for each sandbox, where this machine lets us make one.
//!
//! What works differs by machine: version 1 hierarchies, a delegated subtree of version 2, or
//! nothing. So everything is tried and read back; where nothing works the resource limits of the
//! processes remain, and the kind of sandbox says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MOUNT: &str = "/sys/fs/cgroup";
/// Before the id of the process that a group belongs to.
const PREFIX: &str = "qk-";

/// Control groups made for one sandbox; removed when dropped.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    groups: Vec<PathBuf>,
    memory: Option<PathBuf>,
}

impl Cgroup {
    /// Makes what can be made. Never fails: the answer to [`Self::kind`] says what there is.
    pub(crate) fn new(memory_bytes: u64, processes: u32) -> Self {
        let mut made = Self::default();
        let Ok(own) = fs::read_to_string("/proc/self/cgroup") else {
            return made;
        };
        let memory = memory_bytes.to_string();
        let processes = processes.to_string();
        for line in own.lines() {
            let Some((controllers, path)) = split(line) else {
                continue;
            };
            let limits: &[(&str, &str)] = match controllers {
                "memory" => &[("memory.limit_in_bytes", memory.as_str())],
                "pids" => &[("pids.max", processes.as_str())],
                "" => &[
                    ("memory.max", memory.as_str()),
                    ("memory.swap.max", "0"),
                    ("pids.max", processes.as_str()),
                ],
                _ => continue,
            };
            let Some(parent) = below(controllers, path) else {
                continue;
            };
            sweep(&parent);
            made.add(&parent, limits);
        }
        made
    }

    fn add(&mut self, parent: &Path, limits: &[(&str, &str)]) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let group = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        if fs::create_dir(&group).is_err() {
            return;
        }
        // The kernel fills a new group; a directory of another file system stays empty.
        if !group.join("cgroup.procs").exists() {
            let _ = fs::remove_dir(&group);
            return;
        }
        // The first limit is what the group is made for; the others are welcome.
        let set: Vec<bool> = limits
            .iter()
            .map(|(file, value)| set(&group.join(file), value))
            .collect();
        if set.first() != Some(&true) {
            let _ = fs::remove_dir(&group);
            return;
        }
        if limits.iter().any(|(file, _)| file.starts_with("memory")) {
            self.memory = Some(group.clone());
        }
        self.groups.push(group);
    }

    /// The files that a process writes itself into to be limited.
    pub(crate) fn procs(&self) -> impl Iterator<Item = PathBuf> {
        self.groups.iter().map(|group| group.join("cgroup.procs"))
    }

    /// `cgroup`, or nothing where memory is limited per process only.
    pub(crate) fn kind(&self) -> Option<&'static str> {
        self.memory.is_some().then_some("cgroup")
    }

    /// Whether the kernel killed a process because the group was over its memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let Some(group) = &self.memory else {
            return false;
        };
        ["memory.events", "memory.oom_control"]
            .iter()
            .filter_map(|file| fs::read_to_string(group.join(file)).ok())
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| line.strip_prefix("oom_kill ").map(str::to_owned))
            .any(|count| count.trim() != "0")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for group in &self.groups {
            // The last process may still be on its way out.
            for _ in 0..500 {
                if fs::remove_dir(group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// Removes the groups of processes that were killed; the kernel keeps those that are in use.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// `4:memory:/path` → (`memory`, `/path`).
fn split(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    Some((fields.next()?, fields.next()?))
}

fn below(controllers: &str, path: &str) -> Option<PathBuf> {
    let path = path.strip_prefix('/')?;
    let parent = Path::new(MOUNT).join(controllers).join(path);
    parent.is_dir().then_some(parent)
}

fn set(file: &Path, value: &str) -> bool {
    fs::write(file, value).is_ok() && fs::read_to_string(file).is_ok_and(|now| now.trim() == value)
}
