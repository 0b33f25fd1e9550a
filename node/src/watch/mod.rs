//! What a volunteer's machine keeps between rebuilds, and how things are on it.
//!
//! The queue is one small file below the home, replaced as a whole at each change: after a crash there
//! is the old one or the new. One that is lost or damaged costs nothing but time, since going round the
//! index finds again what is owed.

mod config;
mod machine;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use qk_protocol::time::UnixTime;
use qk_protocol::watch::Queue;
use qk_protocol::watch::budget::{Budget, Wait};
use serde::{Deserialize, Serialize};

pub use self::config::{CpuHours, Settings, Time, VerifyConfig};
pub use self::machine::{Machine, children_cpu_millis, free_bytes};
use crate::control::{Problem, ProblemKind};
use crate::home::{Home, create_private_dir};
use crate::manners::replace_file;

/// The form of the file.
const FORMAT: u32 = 1;
/// Bytes of the file: all entries with the longest keys are fewer.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    format: u32,
    /// What is given, as the last `qk verify --watch` was told.
    pub budget: Budget,
    /// Why nothing was rebuilt when this was written.
    pub waits: Vec<Wait>,
    /// What is to be rebuilt, and what was.
    pub queue: Queue,
}

/// The file of the one process that watches; others cannot open it until this is dropped.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    _lock: File,
    kept: Kept,
    written: Vec<u8>,
}

impl Keeper {
    /// Takes up what was kept, if anything was: an unreadable file is set aside, and said to be so in
    /// the second place.
    ///
    /// # Errors
    /// [`ProblemKind::Running`] when another process watches; otherwise what the system says.
    pub fn open(
        home: &Home,
        budget: Budget,
        now: UnixTime,
    ) -> Result<(Self, Option<String>), Problem> {
        let lock = lock(home)?;
        let path = home.dir().join("watch.json");
        let (queue, lost) = match read(&path) {
            Ok(kept) => (kept.map(|kept| kept.queue).unwrap_or_default(), None),
            Err(error) => {
                let aside = path.with_extension("json.damaged");
                // That it stays where it is does no harm: it is replaced.
                let _ = fs::rename(&path, &aside);
                (Queue::default(), Some(error.to_string()))
            }
        };
        let mut keeper = Self {
            path,
            _lock: lock,
            kept: Kept {
                format: FORMAT,
                budget,
                waits: Vec::new(),
                queue: queue.resumed(now),
            },
            written: Vec::new(),
        };
        keeper.keep()?;
        Ok((keeper, lost))
    }

    /// What is kept.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Changes what is kept, and writes it down if that changed anything.
    ///
    /// # Errors
    /// When it cannot be written; it is changed all the same, and written with the next change.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut Kept) -> T) -> Result<T, Problem> {
        let changed = change(&mut self.kept);
        self.keep().map(|()| changed)
    }

    fn keep(&mut self) -> Result<(), Problem> {
        let failed = |error: io::Error| problem(&self.path, &error);
        let bytes = serde_json::to_vec(&self.kept).map_err(|error| failed(error.into()))?;
        if bytes == self.written {
            return Ok(());
        }
        replace_file(&self.path, &bytes).map_err(failed)?;
        self.written = bytes;
        Ok(())
    }
}

/// What was kept last, and the process that watches, if one does; `None` when nobody ever watched.
///
/// # Errors
/// When the file cannot be read.
pub fn look(home: &Home) -> Result<Option<(Kept, Option<u32>)>, Problem> {
    let path = home.dir().join("watch.json");
    let kept = read(&path).map_err(|error| problem(&path, &error))?;
    let process = running(home).map_err(|error| problem(&lock_path(home), &error))?;
    Ok(kept.map(|kept| (kept, process)))
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "more than {FILE_BYTES_MAX} bytes"
        )));
    }
    let kept: Kept = serde_json::from_slice(&bytes)?;
    match kept.format {
        FORMAT => Ok(Some(kept)),
        other => Err(io::Error::other(format!("a file of form {other}"))),
    }
}

fn lock_path(home: &Home) -> PathBuf {
    home.dir().join("watch.lock")
}

/// Takes the lock that only one watching process of a home has; it holds the number of its process.
fn lock(home: &Home) -> Result<File, Problem> {
    let path = lock_path(home);
    let failed = |error: io::Error| problem(&path, &error);
    create_private_dir(home.dir()).map_err(failed)?;
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = options.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let process =
                process(&mut file).map_or(String::new(), |one| format!(": process {one}"));
            let message = format!("`qk verify --watch` runs here already{process}");
            return Err(Problem::new(ProblemKind::Running, message));
        }
    }
    let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    let written = written.and_then(|_| writeln!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(file)
}

fn running(home: &Home) -> io::Result<Option<u32>> {
    let mut file = match File::open(lock_path(home)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        // One that is just starting has not written its number.
        Err(TryLockError::WouldBlock) => Ok(Some(process(&mut file).unwrap_or(0))),
    }
}

fn process(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn problem(path: &Path, error: &io::Error) -> Problem {
    Problem::new(ProblemKind::Io, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use qk_protocol::hash::{NetworkId, Sha256};
    use qk_protocol::watch::Why;

    use super::*;
    use crate::build::Order;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn budget() -> Budget {
        VerifyConfig::default().settings(0).unwrap().budget
    }

    fn add(keeper: &mut Keeper, name: &str) {
        let rustc = qk_protocol::key::Rustc {
            version: "1.95.0".to_owned(),
            commit_hash: "0".repeat(40),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            sysroot: qk_protocol::hash::Blake3([1; 32]),
        };
        let order = Order::new("registry", name, "1.0.0", PathBuf::new(), Sha256([1; 32]));
        let key = order.key(&rustc, Sha256([2; 32]));
        let added = keeper
            .change(|kept| kept.queue.add(NetworkId([1; 32]), key, Why::Assigned, NOW))
            .unwrap();
        assert!(added);
    }

    #[test]
    fn what_is_kept_outlives_the_process_and_only_one_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        assert!(look(&home).unwrap().is_none());
        let (mut keeper, lost) = Keeper::open(&home, budget(), NOW).unwrap();
        assert_eq!(lost, None);
        add(&mut keeper, "hello");
        let taken = Keeper::open(&home, budget(), NOW).unwrap_err();
        assert_eq!(taken.kind, ProblemKind::Running);
        assert!(
            taken.message.contains(&std::process::id().to_string()),
            "{taken}"
        );
        let (kept, process) = look(&home).unwrap().unwrap();
        assert_eq!((&kept, process), (keeper.kept(), Some(std::process::id())));
        drop(keeper);
        let (keeper, _) = Keeper::open(&home, budget(), NOW).unwrap();
        assert_eq!(*keeper.kept(), kept);
        drop(keeper);
        assert_eq!(look(&home).unwrap().unwrap().1, None);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_said_to_be() {
        for damage in [&b""[..], b"{", b"[]", b"{\"format\":2}"] {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::at(dir.path());
            let (mut keeper, _) = Keeper::open(&home, budget(), NOW).unwrap();
            add(&mut keeper, "hello");
            drop(keeper);
            let file = dir.path().join("watch.json");
            fs::write(&file, damage).unwrap();
            assert!(look(&home).is_err());
            let (keeper, lost) = Keeper::open(&home, budget(), NOW).unwrap();
            assert!(lost.is_some());
            assert_eq!(keeper.kept().queue, Queue::default());
            assert_eq!(
                fs::read(dir.path().join("watch.json.damaged")).unwrap(),
                damage
            );
        }
    }
}
