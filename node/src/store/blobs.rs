//! Artifacts: files named by their root, each with its outboard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{encode_ranges_validated, outboard};
use bao_tree::{BaoTree, BlockSize, ChunkRanges};
use qk_protocol::hash::Root;
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};
use tempfile::TempPath;

use super::error::{At, StoreError};
use super::index::BlobRow;
use super::{Damage, FsckReport, Lease, Store, layout};
use crate::blocks::part::Finished;

/// Blocks of 16 KiB: 2^4 chunks of BLAKE3.
pub const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);
/// Downloads that nobody touched for this long are given up.
const PART_AGE_MAX_SECONDS: u64 = 7 * 24 * 3600;

/// How hard a blob is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// On the disk when the call returns: what one built or acknowledged.
    Durable,
    /// A copy of what others have: a power cut may take it, and what a power cut damaged is found
    /// before it is served.
    Cache,
}

/// A blob that is open for reading, and leased: it is not evicted while this lives.
#[derive(Debug)]
pub struct Blob {
    /// Its name.
    pub root: Root,
    /// Its bytes.
    pub size: u64,
    /// The archive.
    pub data: File,
    /// The hash pairs of its tree in pre-order, [`BLOCK_SIZE`], without a size before them.
    pub outboard: File,
    _lease: Lease,
}

impl Blob {
    /// The tree that the outboard holds the inner nodes of.
    pub fn tree(&self) -> BaoTree {
        BaoTree::new(self.size, BLOCK_SIZE)
    }

    /// The outboard as bao-tree reads it, for `encode_ranges_validated`.
    pub fn outboard(&self) -> PreOrderOutboard<&File> {
        PreOrderOutboard {
            root: hash_of(&self.root),
            tree: self.tree(),
            data: &self.outboard,
        }
    }

    /// The whole archive, checked against the root.
    ///
    /// # Errors
    /// The number of the first bad block, or what the operating system said.
    pub fn read_all(&self) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; usize::try_from(self.size).map_err(|error| error.to_string())?];
        let read = self.data.read_exact_at(&mut bytes, 0);
        read.map_err(|error| error.to_string())?;
        if Root::of(&bytes) != self.root {
            return Err(self
                .check()
                .err()
                .unwrap_or_else(|| "changed while it was read".to_owned()));
        }
        Ok(bytes)
    }

    /// Hashes everything against the outboard and the root.
    fn check(&self) -> Result<(), String> {
        use bao_tree::io::EncodeError;
        let checked =
            encode_ranges_validated(&self.data, self.outboard(), &ChunkRanges::all(), io::sink());
        checked.map_err(|error| match error {
            EncodeError::LeafHashMismatch(chunk) => {
                format!(
                    "block {} does not match its hash",
                    chunk.0 >> BLOCK_SIZE.chunk_log()
                )
            }
            EncodeError::ParentHashMismatch(_) => "the outboard does not match the root".to_owned(),
            other => other.to_string(),
        })
    }
}

/// A file that becomes a blob when it is committed, and vanishes otherwise.
#[derive(Debug)]
pub struct TempBlob {
    file: File,
    path: TempPath,
}

impl TempBlob {
    /// The file, for positioned writes.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Write for TempBlob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// One blob in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BlobInfo {
    /// Its name.
    pub root: Root,
    /// Bytes of archive and outboard.
    pub bytes: u64,
    /// When it was last used; when its file was written, if that is not known.
    pub used: UnixTime,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// What an eviction did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GcReport {
    /// What was evicted, least recently used first.
    pub evicted: Vec<BlobInfo>,
    /// Bytes of all blobs before.
    pub bytes_before: u64,
    /// Bytes of all blobs after.
    pub bytes_after: u64,
    /// Downloads that were given up.
    pub parts_removed: usize,
}

impl Store {
    /// Begins a blob whose root is known only when it is written.
    pub fn begin(&self) -> Result<TempBlob, StoreError> {
        let temp = &self.shared.layout.temp;
        let file = tempfile::Builder::new()
            .prefix("blob")
            .tempfile_in(temp)
            .at(temp)?;
        let (file, path) = file.into_parts();
        Ok(TempBlob { file, path })
    }

    /// Makes a written file the blob `root` if that is what it hashes to.
    ///
    /// # Errors
    /// [`StoreError::WrongRoot`]; the file is gone then.
    pub fn commit(
        &self,
        temp: TempBlob,
        root: Root,
        keep: Keep,
        used: UnixTime,
    ) -> Result<(), StoreError> {
        self.adopt(&temp.path, root, keep, used)
    }

    /// Copies the file at `path` into the store if it hashes to `root`.
    pub fn import(
        &self,
        path: &Path,
        root: Root,
        keep: Keep,
        used: UnixTime,
    ) -> Result<(), StoreError> {
        let mut from = File::open(path).at(path)?;
        if !from.metadata().at(path)?.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(StoreError::io(path, error));
        }
        let mut temp = self.begin()?;
        io::copy(&mut from, &mut temp.file).at(path)?;
        self.commit(temp, root, keep, used)
            .map_err(|error| match error {
                StoreError::WrongRoot {
                    expected, found, ..
                } => StoreError::WrongRoot {
                    path: path.to_owned(),
                    expected,
                    found,
                },
                other => other,
            })
    }

    /// Makes the file at `path`, which lies in the store's `part/` or `temp/` and is written by
    /// nobody any more, the blob `root` by renaming it; a wrong one stays where it is.
    pub fn adopt(
        &self,
        path: &Path,
        root: Root,
        keep: Keep,
        used: UnixTime,
    ) -> Result<(), StoreError> {
        let file = File::open(path).at(path)?;
        let (found, pairs) = hash_file(&file).at(path)?;
        if found != root {
            return Err(StoreError::WrongRoot {
                path: path.to_owned(),
                expected: root,
                found,
            });
        }
        let keep = self.keep_of(&root, keep)?;
        let (data, tree) = self.make_room_for(&root)?;
        self.write_outboard(&tree, &pairs, keep)?;
        self.place(&file, path, &data, root, keep, used)
    }

    /// Makes a finished download a blob by renaming its files. Nothing is hashed again: a
    /// [`Finished`] is there only if everything in it was compared with the root.
    ///
    /// # Errors
    /// What the operating system said; the download is as it was, or lacks its outboard.
    pub fn adopt_finished(
        &self,
        finished: &Finished,
        keep: Keep,
        used: UnixTime,
    ) -> Result<(), StoreError> {
        let root = finished.blob.root();
        let keep = self.keep_of(&root, keep)?;
        let (data, tree) = self.make_room_for(&root)?;
        let file = File::open(&finished.data).at(&finished.data)?;
        if keep == Keep::Durable {
            let outboard = File::open(&finished.outboard).at(&finished.outboard)?;
            outboard.sync_all().at(&finished.outboard)?;
        }
        fs::rename(&finished.outboard, &tree).at(&tree)?;
        self.place(&file, &finished.data, &data, root, keep, used)
    }

    /// A durable blob is not replaced by one that a power cut may take.
    fn keep_of(&self, root: &Root, keep: Keep) -> Result<Keep, StoreError> {
        let known = self.with_index(|index| index.blob(root))?;
        let durable = known.is_some_and(|row| row.unsynced_in.is_none());
        Ok(if durable { Keep::Durable } else { keep })
    }

    /// Where a blob and its outboard go; the directory is there afterwards.
    fn make_room_for(&self, root: &Root) -> Result<(PathBuf, PathBuf), StoreError> {
        let (data, tree) = self.blob_paths(root);
        let dir = data.parent().unwrap_or(&self.shared.layout.blobs);
        if !dir.exists() {
            layout::create_dir(dir)?;
            layout::sync_dir(&self.shared.layout.blobs)?;
        }
        Ok((data, tree))
    }

    /// Renames the file of a blob, whose outboard is in its place, and takes note of it.
    fn place(
        &self,
        file: &File,
        path: &Path,
        data: &Path,
        root: Root,
        keep: Keep,
        used: UnixTime,
    ) -> Result<(), StoreError> {
        if keep == Keep::Durable {
            file.sync_all().at(path)?;
        }
        fs::rename(path, data).at(data)?;
        let size = file.metadata().at(data)?.len();
        self.shared.tally.put(root, bytes_of(size));
        if keep == Keep::Durable {
            layout::sync_dir(data.parent().unwrap_or(&self.shared.layout.blobs))?;
        }
        let unsynced_in = (keep == Keep::Cache).then(|| self.shared.layout.boot_number());
        let row = BlobRow { used, unsynced_in };
        self.with_index(|index| index.put_blob(&root, row))
    }

    /// Opens a blob for reading, `None` if it is not here. One that was not checked since the index
    /// was begun (an unclean boot begins a new one), or was not synced and is older than this boot,
    /// is hashed first.
    ///
    /// # Errors
    /// [`StoreError::CorruptBlob`], once: then it is not here any more.
    pub fn open_blob(&self, root: &Root) -> Result<Option<Blob>, StoreError> {
        let lease = self.lease(*root);
        let (path, tree) = self.blob_paths(root);
        let data = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.at(&path)?,
        };
        let metadata = data.metadata().at(&path)?;
        let size = metadata.len();
        let outboard_len = fs::metadata(&tree).map(|metadata| metadata.len()).ok();
        let known = self.with_index(|index| index.blob(root))?;
        let this_boot = self.shared.layout.boot_number();
        let checked = known.is_some_and(|row| row.unsynced_in.is_none_or(|boot| boot == this_boot));
        if !checked || outboard_len != Some(BaoTree::new(size, BLOCK_SIZE).outboard_size()) {
            self.recheck(root, &data)?;
            // It may stem from this boot and never have been synced; from here on it is trusted.
            data.sync_all().at(&path)?;
            File::open(&tree)
                .and_then(|file| file.sync_all())
                .at(&tree)?;
            let row = BlobRow {
                used: known.map_or_else(|| modified(&metadata), |row| row.used),
                unsynced_in: None,
            };
            self.with_index(|index| index.put_blob(root, row))?;
        }
        let outboard = File::open(&tree).at(&tree)?;
        Ok(Some(Blob {
            root: *root,
            size,
            data,
            outboard,
            _lease: lease,
        }))
    }

    /// Whether a file of that name is here; it may still turn out corrupt.
    pub fn has_blob(&self, root: &Root) -> bool {
        self.blob_paths(root).0.exists()
    }

    /// Notes that a blob was used.
    pub fn touch(&self, root: &Root, used: UnixTime) -> Result<(), StoreError> {
        // Only of a checked one: the row also says that it was checked.
        self.with_index(|index| match index.blob(root)? {
            Some(row) if row.used < used => index.put_blob(root, BlobRow { used, ..row }),
            Some(_) | None => Ok(()),
        })
    }

    /// Moves a blob aside that somebody found corrupt while reading it. It is hashed once more: an
    /// intact one stays, and a wrong outboard is made again.
    pub fn report_corrupt(&self, root: &Root) -> Result<(), StoreError> {
        let (path, _) = self.blob_paths(root);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => self.recheck(root, &opened.at(&path)?).map(drop),
        }
    }

    /// Removes a blob, pinned or not; says whether it was here.
    pub fn remove_blob(&self, root: &Root) -> Result<bool, StoreError> {
        self.with_index(|index| index.remove_blob(root))?;
        let (data, tree) = self.blob_paths(root);
        let was_here = remove_file(&data)?;
        self.shared.tally.remove(root);
        remove_file(&tree)?;
        Ok(was_here)
    }

    /// Looks at every blob; sorted by root.
    pub(super) fn list(&self) -> Result<Vec<BlobInfo>, StoreError> {
        let pins: BTreeSet<Root> = self.pins()?.into_iter().collect();
        let mut blobs = Vec::new();
        for (root, path) in self.blob_files("tar")? {
            let Ok(metadata) = fs::metadata(&path) else {
                continue; // Removed since.
            };
            let known = self.with_index(|index| index.blob(&root))?;
            blobs.push(BlobInfo {
                root,
                bytes: bytes_of(metadata.len()),
                used: known.map_or_else(|| modified(&metadata), |row| row.used),
                pinned: pins.contains(&root),
            });
        }
        Ok(blobs)
    }

    /// Evicts as the quota and the free-space floor ask, and gives up old downloads.
    pub fn gc(&self, now: UnixTime) -> Result<GcReport, StoreError> {
        self.make_room(0, now)
    }

    /// As [`Store::gc`], as if `bytes` more were stored.
    pub fn make_room(&self, bytes: u64, now: UnixTime) -> Result<GcReport, StoreError> {
        let mut blobs = self.ls()?;
        let bytes_before = blobs.iter().map(|blob| blob.bytes).sum();
        let mut report = GcReport {
            parts_removed: self.remove_stale_parts(now)?,
            bytes_before,
            bytes_after: bytes_before,
            ..GcReport::default()
        };
        let to_free = self.bytes_to_free(bytes_before, bytes)?;
        blobs.retain(|blob| !blob.pinned);
        blobs.sort_by_key(|blob| (blob.used, blob.root));
        let mut freed = 0;
        for blob in blobs {
            if freed >= to_free {
                break;
            }
            if !self.evict(&blob.root)? {
                continue;
            }
            freed += blob.bytes;
            report.bytes_after -= blob.bytes;
            report.evicted.push(blob);
        }
        Ok(report)
    }

    /// As [`Store::make_room`] where the free-space floor asks for it; the quota is left to
    /// [`Store::gc`], as to know what was used last takes a look at every artifact.
    pub fn make_space(&self, bytes: u64, now: UnixTime) -> Result<GcReport, StoreError> {
        let wanted = self.shared.options.free_floor_bytes.saturating_add(bytes);
        match self.shared.free_bytes()? < wanted {
            true => self.make_room(bytes, now),
            false => Ok(GcReport::default()),
        }
    }

    /// Hashes every blob, moves corrupt ones aside, makes wrong outboards again.
    pub(super) fn check_blobs(&self, report: &mut FsckReport) -> Result<(), StoreError> {
        for (root, path) in self.blob_files("tar")? {
            let Ok(data) = File::open(&path) else {
                continue; // Removed since.
            };
            report.blobs += 1;
            report.blob_bytes += data.metadata().at(&path)?.len();
            match self.recheck(&root, &data) {
                Ok(repaired) => report.damage.extend(repaired),
                Err(StoreError::CorruptBlob {
                    root,
                    why,
                    moved_to,
                }) => {
                    report.damage.push(Damage::Blob {
                        root,
                        why,
                        moved_to,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        for (root, path) in self.blob_files("obao4")? {
            if !self.has_blob(&root) && !self.is_leased(&root) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Hashes a blob. Corrupt: moved aside, and an error. Only its outboard wrong: made again.
    fn recheck(&self, root: &Root, data: &File) -> Result<Option<Damage>, StoreError> {
        let (path, tree) = self.blob_paths(root);
        let (found, pairs) = hash_file(data).at(&path)?;
        let stored = fs::read(&tree).unwrap_or_default();
        if found != *root {
            let why = self
                .first_bad_block(root, data, &tree)
                .unwrap_or_else(|| format!("hashes to {found}"));
            return Err(self.quarantine(root, why)?);
        }
        if stored == pairs {
            return Ok(None);
        }
        self.write_outboard(&tree, &pairs, Keep::Durable)?;
        let damage = Damage::Outboard { root: *root };
        self.shared.note([damage.clone()]);
        Ok(Some(damage))
    }

    fn first_bad_block(&self, root: &Root, data: &File, tree: &Path) -> Option<String> {
        let blob = Blob {
            root: *root,
            size: data.metadata().ok()?.len(),
            data: data.try_clone().ok()?,
            outboard: File::open(tree).ok()?,
            _lease: self.lease(*root),
        };
        blob.check().err()
    }

    fn quarantine(&self, root: &Root, why: String) -> Result<StoreError, StoreError> {
        let (path, tree) = self.blob_paths(root);
        self.with_index(|index| index.remove_blob(root))?;
        let moved_to = layout::move_aside(&path, &self.shared.layout.aside)?;
        self.shared.tally.remove(root);
        remove_file(&tree)?;
        self.shared.note([Damage::Blob {
            root: *root,
            why: why.clone(),
            moved_to: moved_to.clone(),
        }]);
        Ok(StoreError::CorruptBlob {
            root: *root,
            why,
            moved_to,
        })
    }

    /// Bytes beyond 60 % of the quota if there are more than 80 % of it, or what the floor lacks.
    fn bytes_to_free(&self, used: u64, more: u64) -> Result<u64, StoreError> {
        let options = &self.shared.options;
        let percent = |n: u64| (u128::from(options.quota_bytes) * u128::from(n) / 100) as u64;
        let used = used.saturating_add(more);
        let over = if used > percent(80) {
            used - percent(60)
        } else {
            0
        };
        let wanted = options.free_floor_bytes.saturating_add(more);
        Ok(over.max(wanted.saturating_sub(self.shared.free_bytes()?)))
    }

    fn remove_stale_parts(&self, now: UnixTime) -> Result<usize, StoreError> {
        let part = &self.shared.layout.part;
        let mut removed = 0;
        for entry in fs::read_dir(part).at(part)? {
            let path = entry.at(part)?.path();
            let leased = root_of_name(&path).is_some_and(|root| self.is_leased(&root));
            if !leased && now.since(newest_change(&path)) > PART_AGE_MAX_SECONDS {
                layout::remove_dir(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Where the archive of a root lies, if it is here.
    pub fn blob_path(&self, root: &Root) -> PathBuf {
        self.blob_paths(root).0
    }

    /// Where the archive of a root lies, if it is in the store in `dir`, without opening it.
    pub fn blob_in(dir: &Path, root: &Root) -> PathBuf {
        let name = root.to_string();
        let blobs = dir.join("blobs").join(&name[..2]);
        blobs.join(format!("{name}.tar"))
    }

    fn blob_paths(&self, root: &Root) -> (PathBuf, PathBuf) {
        let name = root.to_string();
        let dir = self.shared.layout.blobs.join(&name[..2]);
        (
            dir.join(format!("{name}.tar")),
            dir.join(format!("{name}.obao4")),
        )
    }

    /// The files in `blobs/` with this extension whose names are roots.
    fn blob_files(&self, extension: &str) -> Result<BTreeMap<Root, PathBuf>, StoreError> {
        let blobs = &self.shared.layout.blobs;
        let mut files = BTreeMap::new();
        for dir in fs::read_dir(blobs).at(blobs)? {
            let dir = dir.at(blobs)?.path();
            let Ok(entries) = fs::read_dir(&dir) else {
                continue; // Not a directory: not ours.
            };
            for entry in entries {
                let path = entry.at(&dir)?.path();
                if path.extension().is_some_and(|found| found == extension)
                    && let Some(root) = root_of_name(&path)
                {
                    files.insert(root, path);
                }
            }
        }
        Ok(files)
    }

    fn write_outboard(&self, path: &Path, pairs: &[u8], keep: Keep) -> Result<(), StoreError> {
        let temp = &self.shared.layout.temp;
        let mut file = tempfile::Builder::new()
            .prefix("outboard")
            .tempfile_in(temp)
            .at(temp)?;
        file.write_all(pairs).at(temp)?;
        if keep == Keep::Durable {
            file.as_file().sync_all().at(temp)?;
        }
        file.persist(path)
            .map_err(|error| StoreError::io(path, error.error))?;
        Ok(())
    }
}

/// Bytes of an archive of this size and its outboard.
fn bytes_of(size: u64) -> u64 {
    size + BaoTree::new(size, BLOCK_SIZE).outboard_size()
}

/// The root of a file and the pairs of its outboard.
fn hash_file(mut file: &File) -> io::Result<(Root, Vec<u8>)> {
    let size = file.metadata()?.len();
    let tree = BaoTree::new(size, BLOCK_SIZE);
    let pairs_len = usize::try_from(tree.outboard_size()).map_err(io::Error::other)?;
    let mut pairs = PreOrderOutboard {
        root: blake3::hash(&[]),
        tree,
        data: vec![0; pairs_len],
    };
    file.rewind()?;
    let reader = io::BufReader::with_capacity(1 << 20, Read::take(file, size));
    let root = outboard(reader, tree, &mut pairs)?;
    Ok((Root(*root.as_bytes()), pairs.data))
}

fn hash_of(root: &Root) -> blake3::Hash {
    blake3::Hash::from_bytes(root.0)
}

fn root_of_name(path: &Path) -> Option<Root> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn modified(metadata: &fs::Metadata) -> UnixTime {
    let since = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

/// The latest modification of a directory or of a file in it.
fn newest_change(dir: &Path) -> UnixTime {
    let inside = fs::read_dir(dir).into_iter().flatten().flatten();
    let times = inside
        .filter_map(|entry| entry.metadata().ok())
        .chain(fs::metadata(dir).ok());
    times
        .map(|metadata| modified(&metadata))
        .max()
        .unwrap_or_default()
}

fn remove_file(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.at(path).map(|()| true),
    }
}
