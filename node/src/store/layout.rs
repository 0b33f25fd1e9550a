//! Names and marks in the store's directory: lock, version, boot, and moving files durably.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::error::{At, StoreError};
use super::{Damage, journal};

/// Version of the directory's layout, in the file `version`.
pub(super) const VERSION: u32 = 1;
/// Where downloads under way lie, below the store's directory.
pub(super) const PART: &str = "part";
/// Files kept in `aside/`; the oldest goes when one more comes.
const ASIDE_MAX: usize = 8;
/// A command without a daemon holds the lock for milliseconds, and so does a child that a killed
/// node had just forked: a quarter of a second tells them from a node.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The paths of a store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) journal: PathBuf,
    pub(super) index: PathBuf,
    pub(super) part: PathBuf,
    pub(super) temp: PathBuf,
    /// What was found corrupt; kept for a look, never read by qk.
    pub(super) aside: PathBuf,
    boot: PathBuf,
    /// Of this boot of the machine.
    pub(super) boot_id: String,
}

impl Layout {
    /// A number of this boot's own.
    pub(super) fn boot_number(&self) -> u64 {
        let hash = blake3::hash(self.boot_id.as_bytes());
        u64::from_le_bytes(super::frame::first(*hash.as_bytes()))
    }
}

/// How the store was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Closed, or never opened: what was written is there, and whole.
    Closed,
    /// Its process ended within this boot: what was written is there, the last write maybe in part.
    Killed,
    /// The machine went down while it was open: what was not synced may be missing or mixed.
    Unclean,
}

impl Layout {
    /// Takes the lock, checks the version, creates what is missing. The lock holds as long as the
    /// file lives.
    pub(super) fn open(dir: &Path, damage: &mut Vec<Damage>) -> Result<(Self, File), StoreError> {
        if !dir.is_dir() {
            create_dir(dir)?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        let lock = take_lock(dir)?;
        let layout = Self {
            dir: dir.to_owned(),
            blobs: dir.join("blobs"),
            journal: dir.join("journal"),
            index: dir.join("index"),
            part: dir.join(PART),
            temp: dir.join("temp"),
            aside: dir.join("aside"),
            boot: dir.join("boot"),
            boot_id: boot_id(),
        };
        layout.check_version(damage)?;
        // Syncs are what an opening takes: none where nothing is new.
        let kept = [&layout.blobs, &layout.journal, &layout.part, &layout.aside];
        if kept.iter().any(|kept| !kept.is_dir()) {
            kept.iter().try_for_each(|kept| create_dir(kept))?;
            sync_dir(dir)?;
        }
        // Nobody else has the lock: what lies here is left over from a killed process.
        remove_dir(&layout.temp)?;
        create_dir(&layout.temp)?;
        Ok((layout, lock))
    }

    /// Notes that the store is open in this boot, and says how it was left.
    pub(super) fn mark_open(&self, damage: &mut Vec<Damage>) -> Result<Left, StoreError> {
        let mark = with_sum(&format!("open {}", self.boot_id));
        let before = match fs::read(&self.boot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.at(&self.boot)?),
        };
        let left = match before.as_deref() {
            Some(before) if before == mark.as_bytes() => return Ok(Left::Killed),
            Some(b"closed\n") => Left::Closed,
            None if !self.index.exists() => Left::Closed,
            Some(before) => {
                damage.extend(self.damaged_mark(before));
                Left::Unclean
            }
            None => Left::Unclean,
        };
        if left == Left::Unclean {
            // Before the mark, or a second crash here would find an old index that looks trusted.
            remove_dir(&self.index)?;
            sync_dir(&self.dir)?;
        }
        self.replace(&self.boot, mark.as_bytes())?;
        Ok(left)
    }

    /// Notes that everything is on the disk.
    pub(super) fn mark_closed(&self) -> Result<(), StoreError> {
        self.replace(&self.boot, b"closed\n")
    }

    /// What is wrong with the mark of a boot that is not this one.
    fn damaged_mark(&self, mark: &[u8]) -> Option<Damage> {
        let text = String::from_utf8_lossy(mark);
        let words: Vec<_> = text.split(' ').collect();
        let intact = match words[..] {
            // As earlier versions left it.
            ["open", boot] => boot.ends_with('\n'),
            ["open", boot, _] => text == with_sum(&format!("open {boot}")),
            _ => false,
        };
        (!intact).then(|| Damage::Mark {
            path: self.boot.clone(),
            why: "it does not say how the store was left; taken as unclean".to_owned(),
        })
    }

    /// A damaged file is written again where the journal's headers say what it should. So whoever
    /// changes [`VERSION`] changes the journal's format, too.
    fn check_version(&self, damage: &mut Vec<Damage>) -> Result<(), StoreError> {
        let path = self.dir.join("version");
        let written = with_sum(&VERSION.to_string());
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.journal.exists() {
                    return Err(StoreError::NotAStore {
                        path: self.dir.clone(),
                        why: "it has a journal but no file named version".to_owned(),
                    });
                }
                return self.replace(&path, written.as_bytes());
            }
            read => String::from_utf8_lossy(&read.at(&path)?).into_owned(),
        };
        if text == written {
            return Ok(());
        }
        // A bare number is what earlier versions wrote.
        let (stated, bare) = match text.split_once(' ') {
            Some((stated, _)) => (stated, false),
            None => (text.trim_end(), true),
        };
        match stated.parse::<u32>() {
            Ok(VERSION) if bare => self.replace(&path, written.as_bytes()),
            Ok(found) if found > VERSION && (bare || text == with_sum(stated)) => {
                Err(StoreError::NewerVersion {
                    path,
                    found,
                    known: VERSION,
                })
            }
            Ok(_) | Err(_) if journal::any_intact(&self.journal) => {
                let why = format!("expected {written:?}");
                self.replace(&path, written.as_bytes())?;
                damage.push(Damage::Mark { path, why });
                Ok(())
            }
            Ok(_) | Err(_) => Err(StoreError::NotAStore {
                path,
                why: format!(
                    "expected {VERSION}, got {:?}",
                    text.chars().take(20).collect::<String>()
                ),
            }),
        }
    }

    /// Writes a small file so that it has either its old or its new content.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let temp = path.with_extension("new");
        let mut file = File::create(&temp).at(&temp)?;
        file.write_all(bytes).at(&temp)?;
        file.sync_all().at(&temp)?;
        fs::rename(&temp, path).at(path)?;
        sync_dir(&self.dir)
    }
}

/// A line with a sum over it, by which a flipped bit is told from another text.
pub(super) fn with_sum(text: &str) -> String {
    let sum = blake3::derive_key("qk store mark v1", text.as_bytes());
    format!("{text} {}\n", hex::encode(super::frame::first::<8>(sum)))
}

/// Identity of this boot. Where the system gives none, every opening counts as one of its own.
fn boot_id() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => format!("{:016x}", rand::random::<u64>()),
    }
}

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at(&path)?;
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(StoreError::io(path, error)),
        }
    }
}

/// Creates a directory that only its owner can read, with its parents.
pub(super) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .at(dir)
}

/// Removes a directory with what is in it; that it is not there is right, too.
pub(super) fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(dir, error)),
        _ => Ok(()),
    }
}

/// Makes renames, creations and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|file| file.sync_all()).at(dir)
}

/// Moves a corrupt file to `aside/`, under a name of its own, and says where it is.
pub(super) fn move_aside(path: &Path, aside: &Path) -> Result<PathBuf, StoreError> {
    let mut kept: Vec<_> = fs::read_dir(aside)
        .at(aside)?
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    kept.sort();
    for (_, oldest) in kept.iter().take((kept.len() + 1).saturating_sub(ASIDE_MAX)) {
        fs::remove_file(oldest).at(oldest)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let free = (1u32..).map(|n| aside.join(format!("{name}.{n}")));
    let to = free
        .into_iter()
        .find(|to| !to.exists())
        .unwrap_or_else(|| aside.join(&*name));
    fs::rename(path, &to).at(path)?;
    Ok(to)
}
