//! Downloads under way: `part/<root>/`, of which every byte counted was verified.
//!
//! | file | |
//! |---|---|
//! | `lock` | held by the one process that writes |
//! | `data.tar` | the blob, sparse, of its full size from the beginning |
//! | `outboard.obao4` | its pre-order outboard, likewise |
//!
//! What is there after a kill is found by comparing it with the root: no record of it can be wrong,
//! as there is none.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qk_protocol::blocks::{self, Blob, BlockRange, EncodeError, UNIT_BLOCKS_MIN, Verified};
use qk_protocol::hash::Root;

use super::serve::Held;

const LOCK: &str = "lock";
const DATA: &str = "data.tar";
const OUTBOARD: &str = "outboard.obao4";
/// How often a lock is taken on a directory that its last owner is just removing.
const LOCK_TRIES_MAX: usize = 8;

/// Why a download cannot be written or finished. The part is kept in every case.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Another process, or another task of this one, is fetching the same root.
    #[error("{root} is being fetched by another process")]
    Locked {
        /// The blob.
        root: Root,
    },
    /// No space or quota left; what was fetched stays for the next attempt.
    #[error("disk full at {}: free some space and fetch again, what is there is kept", .path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot write {}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Blocks of another blob.
    #[error("blocks of {got} do not belong to the part of {root}")]
    OtherBlob {
        /// The blob of this part.
        root: Root,
        /// The blob of the blocks.
        got: Root,
    },
    /// Not all is there, or it changed on disk.
    #[error("the part cannot be finished: {0}")]
    Unfinished(#[from] EncodeError),
}

/// The download of one blob, locked against other writers while this lives.
#[derive(Debug)]
pub struct Part {
    blob: Blob,
    dir: PathBuf,
    data: File,
    outboard: File,
    lock: Arc<File>,
    /// First blocks of the units that this process verified, on disk or before it wrote them.
    verified: Mutex<BTreeSet<u32>>,
    /// Held by who writes: the kernel lets one at a time write to a file, and has others spin.
    writing: Mutex<()>,
}

impl Part {
    /// Opens or creates the part of `blob` under `parts` (the store's `part` directory).
    ///
    /// Reads and writes files: call it off the reactor, like all of this type.
    pub fn open(parts: &Path, blob: Blob) -> Result<Self, PartError> {
        let root = blob.root();
        let dir = parts.join(root.to_string());
        for _ in 0..LOCK_TRIES_MAX {
            if let Some(lock) = lock(&dir, root)? {
                let data = sized(&dir.join(DATA), blob.size())?;
                let outboard = sized(&dir.join(OUTBOARD), blob.outboard_bytes())?;
                return Ok(Self {
                    blob,
                    dir,
                    data,
                    outboard,
                    lock: Arc::new(lock),
                    verified: Mutex::default(),
                    writing: Mutex::default(),
                });
            }
        }
        Err(PartError::Locked { root })
    }

    /// Opens the files of a part that somebody else is writing, to read what is there already; none
    /// when there is no such part.
    pub fn look(parts: &Path, blob: Blob) -> io::Result<Option<Held>> {
        let dir = parts.join(blob.root().to_string());
        let open = |name: &str| match File::open(dir.join(name)) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        };
        let (Some(data), Some(outboard)) = (open(DATA)?, open(OUTBOARD)?) else {
            return Ok(None);
        };
        let size = data.metadata()?.len();
        Ok(Some(Held {
            data,
            outboard,
            size,
        }))
    }

    /// The blob that is fetched.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Which units of [`UNIT_BLOCKS_MIN`] are on disk and right, ascending. Hashes what is there.
    pub fn valid(&self) -> Result<Vec<BlockRange>, PartError> {
        let mut valid = Vec::new();
        for unit in self.blob.units(UNIT_BLOCKS_MIN) {
            if blocks::is_valid(&self.blob, unit, &self.data, &self.outboard)? {
                valid.push(unit);
            }
        }
        // In place of what was believed before: the files may have changed since.
        *self.verified() = valid.iter().map(|unit| unit.start().0).collect();
        Ok(valid)
    }

    /// Writes verified blocks and the nodes above them. Disjoint ranges may be written from
    /// several threads at once: where nodes are shared, both write the same bytes.
    pub fn write_verified(&self, verified: &Verified) -> Result<(), PartError> {
        let (root, got) = (self.blob.root(), verified.blob().root());
        if verified.blob() != &self.blob {
            return Err(PartError::OtherBlob { root, got });
        }
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Block by block: for longer writes the kernel takes longer pieces of memory, and those a
        // virtual machine has often given back to its host.
        for (offset, bytes) in verified.data() {
            let written = self.data.write_all_at(bytes, offset);
            written.map_err(|source| error(&self.dir.join(DATA), source))?;
        }
        for (offset, bytes) in verified.outboard() {
            let written = self.outboard.write_all_at(bytes, offset);
            written.map_err(|source| error(&self.dir.join(OUTBOARD), source))?;
        }
        drop(writing);
        let units =
            |range: &BlockRange| (range.start().0..range.end().0).step_by(UNIT_BLOCKS_MIN as usize);
        let ranges = verified.ranges().as_slice();
        self.verified().extend(ranges.iter().flat_map(units));
        Ok(())
    }

    fn verified(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // Whole after every step under the lock.
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files are complete then, but not yet synced: a fetched blob is a cache. Nothing is
    /// hashed again that this process verified; where something was not, all is compared with the
    /// root. The lock stays until both this and the part are dropped.
    pub fn finish(&self) -> Result<Finished, PartError> {
        let mut units = self.blob.units(UNIT_BLOCKS_MIN);
        let is_verified = {
            let verified = self.verified();
            units.all(|unit| verified.contains(&unit.start().0))
        };
        if !is_verified {
            blocks::check_whole(&self.blob, &self.data, &self.outboard)?;
        }
        Ok(Finished {
            blob: self.blob,
            data: self.dir.join(DATA),
            outboard: self.dir.join(OUTBOARD),
            dir: self.dir.clone(),
            _lock: Arc::clone(&self.lock),
        })
    }
}

/// A complete download, still in its part directory and locked.
#[derive(Debug)]
pub struct Finished {
    /// What was fetched.
    pub blob: Blob,
    /// The blob; to be renamed to `blobs/<2 hex>/<root>.tar`.
    pub data: PathBuf,
    /// Its outboard; to be renamed to `blobs/<2 hex>/<root>.obao4`, before the data.
    pub outboard: PathBuf,
    dir: PathBuf,
    _lock: Arc<File>,
}

impl Finished {
    /// Removes the part directory and what is left in it.
    pub fn remove(self) -> Result<(), PartError> {
        fs::remove_dir_all(&self.dir).map_err(|source| error(&self.dir, source))
    }
}

/// Locks `dir`, creating it; none when the directory was removed meanwhile.
fn lock(dir: &Path, root: Root) -> Result<Option<File>, PartError> {
    fs::create_dir_all(dir).map_err(|source| error(dir, source))?;
    let path = dir.join(LOCK);
    let file = match open(&path) {
        Ok(file) => file,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(&path, source)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(PartError::Locked { root }),
        Err(TryLockError::Error(source)) => return Err(error(&path, source)),
    }
    // The lock counts only on the file that the next one would open.
    let held = file.metadata().map_err(|source| error(&path, source))?;
    let same =
        fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
    Ok(same.then_some(file))
}

/// Opens a file of exactly `bytes`. One of another size is of another claim: it starts over.
fn sized(path: &Path, bytes: u64) -> Result<File, PartError> {
    let sized = || {
        let file = open(path)?;
        let length = file.metadata()?.len();
        if length != bytes {
            if length != 0 {
                file.set_len(0)?;
            }
            file.set_len(bytes)?;
        }
        Ok(file)
    };
    sized().map_err(|source| error(path, source))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

fn error(path: &Path, source: io::Error) -> PartError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PartError::Full { path },
        _ => PartError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use qk_protocol::blocks::{Block, Ranges, encode, outboard, verify};

    use super::*;

    struct Fixture {
        parts: tempfile::TempDir,
        bytes: Vec<u8>,
        tree: Vec<u8>,
        blob: Blob,
    }

    fn fixture(size: usize) -> Fixture {
        let bytes = crate::blocks::test_bytes(size, 1);
        let (blob, tree) = outboard(&bytes[..], size as u64).expect("a slice reads");
        let parts = tempfile::tempdir().expect("a directory");
        Fixture {
            parts,
            bytes,
            tree,
            blob,
        }
    }

    impl Fixture {
        fn open(&self) -> Result<Part, PartError> {
            Part::open(self.parts.path(), self.blob)
        }

        fn verified(&self, unit: BlockRange) -> Verified {
            let ranges = Ranges::from(unit);
            let wire =
                encode(&self.blob, &ranges, &self.bytes[..], &self.tree[..]).expect("encodes");
            verify(&self.blob, &ranges, &wire).expect("honest")
        }
    }

    #[test]
    fn what_was_written_is_found_again_and_finished() {
        let fixture = fixture(1_300_000);
        let units: Vec<_> = fixture.blob.units(16).collect();
        let part = fixture.open().expect("opens");
        assert!(part.valid().expect("reads").is_empty());
        for unit in [units[4], units[1]] {
            part.write_verified(&fixture.verified(unit))
                .expect("writes");
        }
        drop(part);

        let part = fixture.open().expect("opens again");
        assert_eq!(part.valid().expect("reads"), [units[1], units[4]]);
        for unit in [units[0], units[2], units[3]] {
            part.write_verified(&fixture.verified(unit))
                .expect("writes");
        }
        let finished = part.finish().expect("is whole");
        assert_eq!(fs::read(&finished.data).expect("reads"), fixture.bytes);
        assert_eq!(fs::read(&finished.outboard).expect("reads"), fixture.tree);
        finished.remove().expect("removes");
        assert_eq!(
            fs::read_dir(fixture.parts.path()).expect("lists").count(),
            0
        );
    }

    #[test]
    fn a_part_with_a_hole_cannot_be_finished_and_is_kept() {
        let fixture = fixture(700_000);
        let units: Vec<_> = fixture.blob.units(16).collect();
        let part = fixture.open().expect("opens");
        part.write_verified(&fixture.verified(units[0]))
            .expect("writes");
        part.write_verified(&fixture.verified(units[2]))
            .expect("writes");
        let error = part.finish().expect_err("has a hole");
        drop(part);
        let hole = matches!(
            error,
            PartError::Unfinished(EncodeError::Corrupt {
                block: Block(16),
                ..
            })
        );
        assert!(hole, "{error}");
        let part = fixture.open().expect("opens again");
        assert_eq!(part.valid().expect("reads"), [units[0], units[2]]);
    }

    /// Whoever opens a part again has compared nothing yet, so that all of it is read.
    #[test]
    fn what_another_process_left_is_compared_before_it_is_finished() {
        let fixture = fixture(700_000);
        let part = fixture.open().expect("opens");
        for unit in fixture.blob.units(16) {
            part.write_verified(&fixture.verified(unit))
                .expect("writes");
        }
        part.finish().expect("was compared when it was written");
        drop(part);

        let part = fixture.open().expect("opens again");
        part.finish().expect("is compared now");
        let flipped = [fixture.bytes[300_000] ^ 1];
        part.data.write_all_at(&flipped, 300_000).expect("writes");
        let error = part.finish().expect_err("is damaged");
        assert!(error.to_string().contains("corrupt at block 18"), "{error}");
        assert_eq!(part.valid().expect("reads").len(), 2);
        let units: Vec<_> = fixture.blob.units(16).collect();
        part.write_verified(&fixture.verified(units[1]))
            .expect("writes");
        part.finish().expect("is mended");
    }

    #[test]
    fn bytes_that_changed_on_disk_are_not_counted() {
        let fixture = fixture(700_000);
        let units: Vec<_> = fixture.blob.units(16).collect();
        let part = fixture.open().expect("opens");
        for unit in &units {
            part.write_verified(&fixture.verified(*unit))
                .expect("writes");
        }
        assert_eq!(part.valid().expect("reads"), units);
        let flipped = [fixture.bytes[300_000] ^ 1];
        part.data.write_all_at(&flipped, 300_000).expect("writes");
        assert_eq!(part.valid().expect("reads"), [units[0], units[2]]);
        part.outboard.write_all_at(&[0; 64], 0).expect("writes");
        assert!(
            part.valid().expect("reads").is_empty(),
            "nothing hangs from a wrong root node"
        );
    }

    #[test]
    fn what_another_process_wrote_is_compared_with_the_root_at_the_end() {
        let fixture = fixture(700_000);
        let part = fixture.open().expect("opens");
        for unit in fixture.blob.units(16) {
            part.write_verified(&fixture.verified(unit))
                .expect("writes");
        }
        part.finish().expect("was verified before it was written");
        let flipped = [fixture.bytes[300_000] ^ 1];
        part.data.write_all_at(&flipped, 300_000).expect("writes");
        drop(part);
        let part = fixture.open().expect("opens again");
        assert!(matches!(part.finish(), Err(PartError::Unfinished(_))));
        assert_eq!(part.valid().expect("reads").len(), 2);
        assert!(matches!(part.finish(), Err(PartError::Unfinished(_))));
    }

    #[test]
    fn one_writer_at_a_time() {
        let fixture = fixture(20_000);
        let part = fixture.open().expect("opens");
        assert!(matches!(fixture.open(), Err(PartError::Locked { .. })));
        drop(part);
        assert!(fixture.open().is_ok());
    }

    #[test]
    fn another_size_starts_over() {
        let fixture = fixture(20_000);
        let part = fixture.open().expect("opens");
        let unit = fixture.blob.units(16).next().expect("one");
        part.write_verified(&fixture.verified(unit))
            .expect("writes");
        drop(part);
        let other = Blob::new(fixture.blob.root(), 20_001).expect("in bounds");
        let part = Part::open(fixture.parts.path(), other).expect("opens");
        assert!(part.valid().expect("reads").is_empty());
    }

    #[test]
    fn blocks_of_another_blob_are_refused() {
        let (one, other) = (fixture(20_000), fixture(20_001));
        let unit = other.blob.units(16).next().expect("one");
        let written = one
            .open()
            .expect("opens")
            .write_verified(&other.verified(unit));
        assert!(matches!(written, Err(PartError::OtherBlob { .. })));
    }

    #[test]
    fn a_full_disk_is_named_and_the_part_kept() {
        let fixture = fixture(700_000);
        let units: Vec<_> = fixture.blob.units(16).collect();
        let mut part = fixture.open().expect("opens");
        part.write_verified(&fixture.verified(units[0]))
            .expect("writes");
        // The kernel's own ENOSPC.
        part.data = OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("opens");
        let error = part
            .write_verified(&fixture.verified(units[1]))
            .expect_err("is full");
        assert!(matches!(error, PartError::Full { .. }), "{error}");
        drop(part);
        assert_eq!(
            fixture.open().expect("opens").valid().expect("reads"),
            [units[0]]
        );
    }
}
