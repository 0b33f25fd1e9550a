//! Executables that are run from here: unpacked once, by root, and known again by their stamps.
//!
//! ```text
//! <root>/bin/<name>      an executable, mode 0555
//! <root>/seal.json       key, subject, and the stamp of each executable; its time of change is the last use
//! asks/<hash>.json       what was asked for came to which root (`ask`)
//! projects/<hash>.json   what a project's directory has links to (`project`)
//! ```
//!
//! When it is unpacked an archive is checked as a whole ([`unpack`]), and that its executables run here.
//! From then on what is compared is what the file system says of each file: inode, size, mode, and both times
//! of change, of which nobody but the kernel sets the second. Where any of these differs, and after a restart of the
//! machine, since nothing here is synced, every byte is hashed; what is not what was unpacked is not run, but
//! unpacked again from the store. What a stamp does not show: bytes that a disk changes by itself while the
//! machine runs, and what root does to the file system beneath. Whoever may write as this user could as well
//! replace qk.

mod ask;
mod project;
mod stamp;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use qk_protocol::archive::EXECUTABLES_PREFIX;
use qk_protocol::hash::{Blake3, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Subject;
use serde::{Deserialize, Serialize};

pub use self::ask::{Ask, Asked};
pub use self::project::Links;
use self::project::PROJECTS;
pub use self::stamp::Stamp;
use crate::home::{Home, create_private_dir};
use crate::install::{Incompatible, runs_here};
use crate::unpack::{UnpackError, unpack};

/// What unpacked executables may take unless their owner says otherwise.
pub const PROGRAMS_QUOTA_BYTES: u64 = 2 << 30;
/// What was used in the last while is not removed: it may be about to be run.
const IN_USE: Duration = Duration::from_secs(600);
/// What nobody ran for this long goes, whatever the quota.
const UNUSED_MAX: Duration = Duration::from_secs(60 * 24 * 3600);
/// A seal or an ask may be this long.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Of executables.
const MODE: u32 = 0o555;

const SEAL: &str = "seal.json";
const ASKS: &str = "asks";

/// The directory of them.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

/// The executables of one artifact, as they were unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Whose they are.
    pub key: ArtifactKey,
    /// The artifact.
    pub subject: Subject,
    /// Each executable by its name.
    pub bins: BTreeMap<String, PathBuf>,
}

/// Why executables could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// A file or directory.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The archive.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// An executable does not run on this machine.
    #[error("{name}: {error}")]
    Incompatible {
        /// The executable.
        name: String,
        /// Why not.
        error: Incompatible,
    },
}

/// What a clean-up removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Removed {
    /// Whose executables, least recently used first.
    pub roots: Vec<Root>,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    key: ArtifactKey,
    subject: Subject,
    /// The boot of the machine that they were unpacked in.
    boot: String,
    bins: BTreeMap<String, Sealed>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    stamp: Stamp,
    blake3: Blake3,
}

impl Seal {
    /// Whether every file is as it was.
    fn is_whole(&self, dir: &Path) -> bool {
        let mut bins = self.bins.iter();
        bins.all(|(name, sealed)| Stamp::maybe(&bin(dir, name)) == Some(sealed.stamp))
    }

    /// Reads every file and, where all are what was unpacked, takes their stamps anew.
    fn check(&mut self, dir: &Path) -> Option<()> {
        for (name, sealed) in &mut self.bins {
            let path = bin(dir, name);
            let stamp = Stamp::maybe(&path)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(File::open(&path).ok()?).ok()?;
            let is_same = *hasher.finalize().as_bytes() == *sealed.blake3.as_bytes();
            if !is_same || !stamp.is_executable() || Stamp::maybe(&path) != Some(stamp) {
                return None;
            }
            sealed.stamp = stamp;
        }
        self.boot = this_boot();
        Some(())
    }
}

fn at<T>(path: &Path, done: io::Result<T>) -> Result<T, ProgramsError> {
    done.map_err(|error| ProgramsError::Io {
        path: path.to_owned(),
        error,
    })
}

impl Programs {
    /// Those of a home.
    pub fn of(home: &Home) -> Self {
        Self {
            dir: home.dir().join("programs"),
        }
    }

    /// The executables of an artifact, if they are here and nobody changed them; notes that they are used.
    pub fn get(&self, root: Root) -> Option<Program> {
        let dir = self.dir.join(root.to_string());
        let path = dir.join(SEAL);
        let mut seal: Seal = read(&path)?;
        if seal.subject.root != root {
            return None;
        }
        if seal.boot == this_boot() && seal.is_whole(&dir) {
            // Only an older last use comes of a failure.
            let used = FileTimes::new().set_modified(SystemTime::now());
            let _ = File::open(&path).and_then(|file| file.set_times(used));
        } else {
            seal.check(&dir)?;
            write(&path, &seal).ok()?;
        }
        let bins = seal.bins.into_keys();
        let bins = bins.map(|name| (name.clone(), bin(&dir, &name)));
        Some(Program {
            key: seal.key,
            subject: seal.subject,
            bins: bins.collect(),
        })
    }

    /// Unpacks an archive that is trusted by its root, unless its executables are here already.
    ///
    /// # Errors
    /// See [`ProgramsError`]. Nothing stays of what failed.
    pub fn add(
        &self,
        archive: &Path,
        subject: &Subject,
        key: &ArtifactKey,
    ) -> Result<Program, ProgramsError> {
        if let Some(program) = self.get(subject.root) {
            return Ok(program);
        }
        at(&self.dir, create_private_dir(&self.dir))?;
        let made = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&self.dir);
        let made = at(&self.dir, made)?;
        let bin_dir = made.path().join("bin");
        at(&bin_dir, fs::create_dir(&bin_dir))?;
        let unpacked = unpack(archive, subject, key, &bin_dir)?;
        for (path, executable) in &unpacked.contents.executables {
            let name = path.strip_prefix(EXECUTABLES_PREFIX).unwrap_or(path);
            runs_here(executable).map_err(|error| ProgramsError::Incompatible {
                name: name.to_owned(),
                error,
            })?;
        }
        let mut bins = BTreeMap::new();
        for (name, path) in &unpacked.bins {
            at(
                path,
                fs::set_permissions(path, Permissions::from_mode(MODE)),
            )?;
            let stated = &unpacked.contents.executables[&format!("{EXECUTABLES_PREFIX}{name}")];
            let sealed = Sealed {
                stamp: at(path, Stamp::of(path))?,
                blake3: stated.blake3,
            };
            bins.insert(name.clone(), sealed);
        }
        let seal = Seal {
            key: key.clone(),
            subject: *subject,
            boot: this_boot(),
            bins,
        };
        let path = made.path().join(SEAL);
        at(&path, write(&path, &seal))?;
        self.place(made.path(), subject.root)
    }

    /// Puts what was unpacked in its place.
    fn place(&self, made: &Path, root: Root) -> Result<Program, ProgramsError> {
        let place = self.dir.join(root.to_string());
        if fs::rename(made, &place).is_err() {
            // Another process was first, or what is there was changed, or is of another boot.
            if let Some(program) = self.get(root) {
                return Ok(program);
            }
            at(&place, remove(&place))?;
            at(&place, fs::rename(made, &place))?;
        }
        let changed = || io::Error::other("changed while it was unpacked");
        at(&place, self.get(root).ok_or_else(changed))
    }

    /// Removes what nobody ran for long, and what was used least recently beyond the quota, but nothing that a
    /// project has a link to. Nothing is lost: it
    /// is unpacked again when it is needed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn clean(&self, quota_bytes: u64) -> io::Result<Removed> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::default()),
            Err(error) => return Err(error),
        };
        let linked = self.linked();
        let now = SystemTime::now();
        let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == ASKS {
                clean_asks(&path, &age)?;
            }
            if name == ASKS || name == PROJECTS {
                continue;
            }
            let used = fs::metadata(path.join(SEAL)).or_else(|_| fs::metadata(&path));
            let used = used
                .and_then(|found| found.modified())
                .map_or(UNUSED_MAX, age);
            all.push((
                used,
                name.parse::<Root>().ok(),
                bytes_of(&path),
                path.clone(),
            ));
        }
        all.sort_by(|one, other| other.cmp(one));
        let mut removed = Removed {
            bytes_before: all.iter().map(|(_, _, bytes, _)| bytes).sum(),
            ..Removed::default()
        };
        removed.bytes_after = removed.bytes_before;
        for (unused, root, bytes, path) in all {
            let is_over = removed.bytes_after > quota_bytes || unused >= UNUSED_MAX;
            let is_linked = root.is_some_and(|root| linked.contains(&root));
            // What has no root for a name is left from an unpacking that was killed.
            if unused >= IN_USE && !is_linked && (is_over || root.is_none()) {
                remove(&path)?;
                removed.bytes_after -= bytes;
                removed.roots.extend(root);
            }
        }
        Ok(removed)
    }
}

/// Asks that nobody asked for long.
fn clean_asks(dir: &Path, age: &impl Fn(SystemTime) -> Duration) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.modified().map_or(UNUSED_MAX, age) >= UNUSED_MAX {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn this_boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}

fn bin(dir: &Path, name: &str) -> PathBuf {
    dir.join("bin").join(name)
}

fn bytes_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir.join("bin"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

/// Under another name first, so that nobody finds half of it.
fn remove(dir: &Path) -> io::Result<()> {
    let mut gone = dir.to_owned();
    gone.set_extension(format!("gone-{}", std::process::id()));
    match fs::rename(dir, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_dir_all(gone),
    }
}

/// Reads a small file of JSON; none, where it is not there or something else.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes one as a whole.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, value)?;
    file.persist(path)?;
    Ok(())
}
