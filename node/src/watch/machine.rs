//! How things are on this machine: the platform's part. Linux says it below `/proc`; elsewhere the load
//! and the processors' time are not known and count as none.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qk_protocol::watch::budget::Circumstances;

/// Where the kernel says how loaded the machine is.
const LOAD_FILE: &str = "/proc/loadavg";
/// Another file of the same form, for tests.
const LOAD_VARIABLE: &str = "QK_LOADAVG_FILE";
/// Bytes of a file of the kernel's that are read.
const PROC_BYTES_MAX: u64 = 4096;
/// Files of builds that are counted.
const FILES_MAX: usize = 2_000_000;

/// Where rebuilds work, and what is looked at for them.
#[derive(Debug, Clone)]
pub struct Machine {
    work: PathBuf,
    load: PathBuf,
}

impl Machine {
    /// This machine, with builds below `work`.
    pub fn new(work: PathBuf) -> Self {
        let load = std::env::var_os(LOAD_VARIABLE).filter(|value| !value.is_empty());
        Self {
            work,
            load: load.map_or_else(|| PathBuf::from(LOAD_FILE), PathBuf::from),
        }
    }

    /// How things are now; a few small files are read for it.
    pub fn circumstances(&self, paused: bool) -> Circumstances {
        let now = jiff::ZonedDateTime::now();
        let (hour, minute) = (now.hour(), now.minute());
        Circumstances {
            minute: u16::from(hour.unsigned_abs()) * 60 + u16::from(minute.unsigned_abs()),
            load_percent: load_percent(&self.load).unwrap_or(0),
            processors: processors(),
            free_bytes: free_bytes(&self.work).unwrap_or(u64::MAX),
            paused,
        }
    }

    /// Bytes that builds take on the disk. Reads many directories: off the reactor.
    pub fn used_bytes(&self) -> u64 {
        // What goes while it is looked at counts no more.
        let files = walkdir::WalkDir::new(&self.work).into_iter().flatten();
        let sizes = files
            .take(FILES_MAX)
            .filter_map(|file| file.metadata().ok());
        sizes.map(|file| file.blocks().saturating_mul(512)).sum()
    }
}

/// Processors that this process may use.
pub(super) fn processors() -> u32 {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(all).unwrap_or(u32::MAX)
}

/// The mean load of the last minute, in hundredths.
fn load_percent(file: &Path) -> Option<u64> {
    let text = read(file)?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    (load.is_finite() && load >= 0.0).then_some((load * 100.0) as u64)
}

/// Bytes that are free for this user on the disk that `dir` lies on, or will.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let there = dir
        .ancestors()
        .find_map(|dir| rustix::fs::statvfs(dir).ok())?;
    Some(there.f_bavail.saturating_mul(there.f_frsize))
}

/// Milliseconds that the processors spent on the children of this process, and on theirs, that have
/// ended and were waited for.
pub fn children_cpu_millis() -> u64 {
    let ticks = read(Path::new("/proc/self/stat")).and_then(|text| children_ticks(&text));
    ticks.unwrap_or(0).saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)
}

/// Fields 16 and 17 of proc_pid_stat(5). The name, the second, may hold spaces and brackets.
fn children_ticks(text: &str) -> Option<u64> {
    let (_, behind) = text.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(13);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user.saturating_add(system))
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_load_is_read_as_the_kernel_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("loadavg");
        let load = |text: &str| {
            fs::write(&file, text).unwrap();
            load_percent(&file)
        };
        assert_eq!(load("1.25 0.90 0.80 2/345 6789\n"), Some(125));
        assert_eq!(load("x"), None);
        assert_eq!(load("-1 2 3"), None);
        assert_eq!(load(""), None);
        assert!(load_percent(Path::new("/nowhere")).is_none());
        if cfg!(target_os = "linux") {
            assert!(load_percent(Path::new(LOAD_FILE)).is_some());
        }
    }

    #[test]
    fn what_children_took_is_counted_and_whatever_their_names_are() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 200 0 0 11 12 130 70 20 0 1 0 5 6 7";
        assert_eq!(children_ticks(stat), Some(200));
        assert_eq!(children_ticks("7 (sh"), None);
        let before = children_cpu_millis();
        let spin = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let ran = std::process::Command::new("sh").args(["-c", spin]).status();
        assert!(ran.unwrap().success());
        assert!(children_cpu_millis() > before);
    }

    #[test]
    fn the_disk_is_looked_at_where_builds_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("home/work");
        let machine = Machine::new(work.clone());
        assert_eq!(machine.used_bytes(), 0);
        assert!(machine.circumstances(false).free_bytes < u64::MAX);
        fs::create_dir_all(&work).unwrap();
        fs::write(work.join("file"), vec![1; 1 << 20]).unwrap();
        assert!(machine.used_bytes() >= 1 << 20);
        let now = machine.circumstances(true);
        assert!(now.paused && now.minute < 24 * 60 && now.processors > 0);
    }
}
