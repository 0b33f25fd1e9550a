//! Artifacts and statements on disk. Truth is files; sled is an index that is made again from them.
//!
//! ```text
//! version, lock, boot                 what this is, who has it open, how it was left
//! blobs/<2 hex>/<root>.tar, .obao4    artifacts and their outboards (blocks of 16 KiB)
//! journal/NNNNNNNN.log                statements and pins (see `frame`)
//! index/<generation>/, .sum           sled, and a sum over its files
//! part/<root>/                        downloads under way
//! temp/                               emptied at every start
//! aside/                              what was found corrupt
//! ```
//!
//! Invariants: what was acknowledged is in the journal and synced; what is served was checked
//! against its root since the last unclean boot, and is checked again block by block while it is
//! sent. All functions block; call them where blocking is allowed.

mod blobs;
mod error;
mod frame;
mod index;
mod journal;
mod layout;
mod lease;
mod tally;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use qk_protocol::hash::{KeyId, NetworkId, Point, PublicKey, Root, StatementId};
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use self::blobs::{BLOCK_SIZE, Blob, BlobInfo, GcReport, Keep, TempBlob};
pub use self::error::StoreError;
use self::frame::Frame;
pub use self::index::Entry;
use self::index::{Index, IndexError};
use self::journal::{Journal, ReadError, Segments};
use self::layout::{Layout, Left};
use self::lease::Leases;
pub(crate) use self::lease::Locked;
pub use self::lease::{FileLeases, Lease};
pub use self::tally::Amount;
use self::tally::Tally;
use self::writer::{Command, Writer};

/// The largest statement (a DSSE envelope) that is stored.
pub const STATEMENT_BYTES_MAX: usize = 16 << 10;
/// Commands that wait for the writer before the next one has to wait, or is refused.
const QUEUE_MAX: usize = 256;
/// Reports of damage that are kept; the oldest go.
const DAMAGE_MAX: usize = 256;

/// A verified statement as it is stored. The store checks none of its fields against `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its identity.
    pub id: StatementId,
    /// The network that it names.
    pub network: NetworkId,
    /// The point of its location.
    pub point: Point,
    /// The artifact key that it speaks of.
    pub key: KeyId,
    /// Who signed it.
    pub observer: PublicKey,
    /// The root that was observed, if it is an observation.
    pub root: Option<Root>,
    /// When it was stored here.
    pub stored: UnixTime,
    /// The DSSE envelope, at most [`STATEMENT_BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
}

/// How a store is to behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes that blobs may take; [`Store::gc`] evicts from 80 % of it down to 60 %.
    pub quota_bytes: u64,
    /// Bytes of the file system that are to stay free; below, blobs are evicted too.
    pub free_floor_bytes: u64,
    /// Bytes of the file system below which statements and pins are refused as
    /// [`StoreError::StorageFull`], so that the index never meets a full disk.
    pub reserve_bytes: u64,
    /// Bytes after which a segment of the journal is closed.
    pub segment_bytes_max: u64,
    /// Whether closing leaves the mark that says open, and syncs nothing. Openings until the next
    /// boot then cost no sync either; the first one after it makes the index again.
    pub stays_marked: bool,
    /// Where leases for a while are kept that outlast this opening, as a command needs them; none
    /// for a store that stays open.
    pub file_leases: Option<FileLeases>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quota_bytes: 10 << 30,
            free_floor_bytes: 1 << 30,
            reserve_bytes: 16 << 20,
            segment_bytes_max: 64 << 20,
            stays_marked: false,
            file_leases: None,
        }
    }
}

/// Something that was found damaged, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "damage", rename_all = "kebab-case")]
pub enum Damage {
    /// A file that says what the store is or how it was left was not as it was written; it was
    /// written again.
    Mark {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Bytes of the journal that are not a frame; the frames after them were read.
    Frame {
        /// The segment's file.
        segment: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// How many bytes it covers.
        bytes: u64,
        /// What is wrong with them.
        why: String,
    },
    /// A segment without a readable header, moved aside.
    Segment {
        /// Where it was.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Where it is.
        moved_to: PathBuf,
    },
    /// The index failed or contradicted the journal, and was made again.
    Index {
        /// What was wrong with it.
        why: String,
    },
    /// A blob that does not hash to its name, moved aside.
    Blob {
        /// Its name.
        root: Root,
        /// What is wrong with it.
        why: String,
        /// Where it is.
        moved_to: PathBuf,
    },
    /// An outboard that contradicted its intact blob, and was made again.
    Outboard {
        /// The blob's name.
        root: Root,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mark { path, why } => write!(f, "{}: {why}; written again", path.display()),
            Self::Frame {
                segment,
                offset,
                bytes,
                why,
            } => write!(
                f,
                "{}: {bytes} bytes at {offset} are lost: {why}",
                segment.display()
            ),
            Self::Segment {
                path,
                why,
                moved_to,
            } => write!(
                f,
                "{}: {why}; moved to {}",
                path.display(),
                moved_to.display()
            ),
            Self::Index { why } => write!(f, "index: {why}; made again from the journal"),
            Self::Blob {
                root,
                why,
                moved_to,
            } => write!(f, "blob {root}: {why}; moved to {}", moved_to.display()),
            Self::Outboard { root } => write!(f, "outboard of blob {root}: made again"),
        }
    }
}

/// What a compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CompactReport {
    /// Segments deleted.
    pub segments: usize,
    /// Their bytes.
    pub bytes_freed: u64,
    /// Bytes of live frames that were appended again.
    pub bytes_moved: u64,
}

/// What a full check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FsckReport {
    /// Frames of the journal that were read.
    pub frames: u64,
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Everything that was wrong.
    pub damage: Vec<Damage>,
}

/// Numbers for people and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    /// Statements that can be found.
    pub statements: u64,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// Of these, bytes of frames that count.
    pub live_bytes: u64,
    /// Segments of the journal.
    pub segments: usize,
}

/// An open store. Dropping it finishes what is queued and closes it cleanly.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    queue: Option<SyncSender<Command>>,
    writer: Option<JoinHandle<()>>,
    lock: File,
}

/// What was found damaged.
#[derive(Debug, Default)]
struct Notes {
    all: VecDeque<Damage>,
    /// Those that no check has told of yet.
    untold: VecDeque<Damage>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    layout: Layout,
    options: Options,
    segments: Arc<Segments>,
    /// `None` where it failed and could not be made again yet.
    index: RwLock<Option<Arc<Index>>>,
    damage: Mutex<Notes>,
    leases: Arc<Mutex<Leases>>,
    tally: Tally,
}

impl Store {
    /// Opens the store in `dir`, or begins one there.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::NewerVersion`], [`StoreError::NotAStore`],
    /// [`StoreError::StorageFull`], [`StoreError::Io`]; [`StoreError::Index`] only if a new index
    /// fails too.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let (writer, lock) = Self::prepare(dir.as_ref(), options)?;
        Self::start(writer, lock)
    }

    /// Everything of opening but the writer's thread.
    fn prepare(dir: &Path, options: Options) -> Result<(Writer, File), StoreError> {
        let mut damage = Vec::new();
        let (layout, lock) = Layout::open(dir, &mut damage)?;
        let left = layout.mark_open(&mut damage)?;
        if left == Left::Unclean {
            tracing::info!(dir = %layout.dir.display(), "store: it was not closed before the machine went down");
        }
        let mut journal = Journal::open(
            layout.journal.clone(),
            &layout.aside,
            options.segment_bytes_max,
            &mut damage,
        )?;
        let segments = journal.segments().clone();
        let (index, tail_len) = writer::open_index(&layout, &segments, left, &mut damage)?;
        journal.resume(tail_len)?;
        let shared = Arc::new(Shared {
            layout,
            options,
            segments,
            index: RwLock::new(Some(Arc::new(index))),
            damage: Mutex::default(),
            leases: Arc::default(),
            tally: Tally::default(),
        });
        shared.note(damage);
        let writer = Writer {
            shared,
            journal,
            unflushed_bytes: 0,
        };
        Ok((writer, lock))
    }

    fn start(writer: Writer, lock: File) -> Result<Self, StoreError> {
        let (queue, commands) = mpsc::sync_channel(QUEUE_MAX);
        let shared = writer.shared.clone();
        let thread = thread::Builder::new().name("qk-store".to_owned());
        let spawned = thread.spawn(move || writer.run(&commands));
        let writer = spawned.map_err(|error| StoreError::io(&shared.layout.dir, error))?;
        Ok(Self {
            shared,
            queue: Some(queue),
            writer: Some(writer),
            lock,
        })
    }

    /// Where the downloads of the store in `dir` lie, a directory each with its root as name. It
    /// need not be open.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn parts_in(dir: &Path) -> Result<PathBuf, StoreError> {
        let parts = dir.join(layout::PART);
        layout::create_dir(&parts)?;
        Ok(parts)
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.shared.layout.dir
    }

    /// Stores statements and returns once they are durable; says how many were new. One whose id
    /// is there already changes nothing.
    pub fn append(&self, records: Vec<Record>) -> Result<u64, StoreError> {
        self.write(records.into_iter().map(Frame::Statement).collect())
    }

    /// As [`Store::append`], without waiting: the receiver answers once the statements are durable.
    ///
    /// # Errors
    /// [`StoreError::Busy`] at the limit of waiting writes.
    pub fn submit(
        &self,
        records: Vec<Record>,
    ) -> Result<oneshot::Receiver<Result<u64, StoreError>>, StoreError> {
        let frames: Vec<_> = records.into_iter().map(Frame::Statement).collect();
        frames.iter().try_for_each(Frame::check_size)?;
        let (sender, receiver) = oneshot::channel();
        let ack = Box::new(move |answer| drop(sender.send(answer)));
        let queue = self.queue.as_ref().ok_or_else(|| self.closed())?;
        match queue.try_send(Command::Write(frames, ack)) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(StoreError::Busy {
                path: self.dir().to_owned(),
            }),
            Err(TrySendError::Disconnected(_)) => Err(self.closed()),
        }
    }

    /// Forgets statements, as the caps on strangers ask; says how many were there.
    pub fn remove(&self, ids: &[StatementId]) -> Result<u64, StoreError> {
        self.write(ids.iter().copied().map(Frame::Removed).collect())
    }

    /// Keeps a root from being evicted, whether it is here or not. Durable when it returns; says
    /// whether it was not pinned before.
    pub fn pin(&self, root: Root) -> Result<bool, StoreError> {
        Ok(self.write(vec![Frame::Pin(root)])? > 0)
    }

    /// Takes a pin back; says whether there was one.
    pub fn unpin(&self, root: Root) -> Result<bool, StoreError> {
        Ok(self.write(vec![Frame::Unpin(root)])? > 0)
    }

    /// All pinned roots, sorted.
    pub fn pins(&self) -> Result<Vec<Root>, StoreError> {
        let roots = self.with_index(|index| index.last_parts(b"p"))?;
        Ok(roots.into_iter().map(Root).collect())
    }

    /// A statement by its id; `None` also if its frame is damaged, which is noted.
    pub fn get(&self, id: &StatementId) -> Result<Option<Record>, StoreError> {
        for last_try in [false, true] {
            match self.load(|index| Ok(index.entry(id)?.map(|entry| entry.position)))? {
                Some(Frame::Statement(record)) if record.id == *id => return Ok(Some(record)),
                Some(_) if !last_try => self.rebuild("a statement row points to another frame")?,
                Some(_) | None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether a statement is known, without reading it.
    pub fn contains(&self, id: &StatementId) -> Result<bool, StoreError> {
        Ok(self.with_index(|index| index.entry(id))?.is_some())
    }

    /// The statements of a network at a point, sorted by id.
    pub fn statements_at(
        &self,
        network: &NetworkId,
        point: &Point,
    ) -> Result<Vec<Record>, StoreError> {
        self.records(&index::key(b's', &[&network.0, &point.0]))
    }

    /// The statements of a network about an artifact key, sorted by id.
    pub fn by_key(&self, network: &NetworkId, key: &KeyId) -> Result<Vec<Record>, StoreError> {
        self.records(&index::key(b'k', &[&network.0, &key.0]))
    }

    /// The statements of all networks that name a root, sorted by id.
    pub fn by_root(&self, root: &Root) -> Result<Vec<Record>, StoreError> {
        self.records(&index::key(b'r', &[&root.0]))
    }

    /// The points of a network with statements that are nearest to `point`, nearest first. Those
    /// that share a prefix with `point` come before all others.
    pub fn near(
        &self,
        network: &NetworkId,
        point: &Point,
        limit: usize,
    ) -> Result<Vec<Point>, StoreError> {
        self.with_index(|index| index.near(network, point, limit))
    }

    /// The points, at most `limit`, of the statements that `wants` picks by what the index knows of
    /// them: no statement is read.
    pub fn points_of(
        &self,
        wants: impl Fn(&Entry) -> bool,
        limit: usize,
    ) -> Result<BTreeSet<Point>, StoreError> {
        self.with_index(|index| index.points_of(&wants, limit))
    }

    /// How much is stored.
    pub fn counts(&self) -> Result<Counts, StoreError> {
        let meta = self.with_index(Index::meta)?;
        Ok(Counts {
            statements: meta.statements,
            live_bytes: meta.live_bytes,
            journal_bytes: self.shared.segments.bytes(),
            segments: self.shared.segments.all().len(),
        })
    }

    /// Frees journal space: rewrites the oldest segments while more than half of the journal is
    /// dead.
    pub fn compact(&self) -> Result<CompactReport, StoreError> {
        self.command(Command::Compact)
    }

    /// Compares the index with the sums over it, and makes it again where they differ; says what
    /// was wrong. Reads the whole index, not the journal.
    pub fn scrub(&self) -> Result<Option<Damage>, StoreError> {
        self.command(Command::Scrub)
    }

    /// Reads every frame and hashes every blob. Corrupt blobs are moved aside, a wrong index is made
    /// again; damage in the journal is reported, its place is left as it is. What was found and
    /// mended since the last such check, or since the store was opened, is reported, too.
    pub fn fsck(&self) -> Result<FsckReport, StoreError> {
        let (frames, damage) = self.command(Command::Check)?;
        let mut report = FsckReport {
            frames,
            damage,
            ..FsckReport::default()
        };
        self.check_blobs(&mut report)?;
        for told in self.shared.untold() {
            if !report.damage.contains(&told) {
                report.damage.push(told);
            }
        }
        Ok(report)
    }

    /// What was found damaged since the store was opened, oldest first, at most 256.
    pub fn damage(&self) -> Vec<Damage> {
        self.shared.notes().all.iter().cloned().collect()
    }

    fn records(&self, prefix: &[u8]) -> Result<Vec<Record>, StoreError> {
        let ids = self.with_index(|index| index.last_parts(prefix))?;
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            records.extend(self.get(&StatementId(id))?);
        }
        Ok(records)
    }

    /// Reads the frame that the index points to; `None` if there is none or it is damaged, which
    /// is noted.
    fn load(
        &self,
        place: impl Fn(&Index) -> Result<Option<journal::Position>, IndexError>,
    ) -> Result<Option<Frame>, StoreError> {
        // Twice, because a compaction may delete the segment between the look and the read.
        for last_try in [false, true] {
            let Some(position) = self.with_index(&place)? else {
                return Ok(None);
            };
            match self.shared.segments.read(position) {
                Ok(frame) => return Ok(Some(frame)),
                Err(ReadError::Gone(_)) if !last_try => {}
                Err(ReadError::Io(error)) => {
                    return Err(StoreError::io(&self.shared.layout.journal, error));
                }
                Err(error @ (ReadError::Gone(_) | ReadError::Frame(_))) => {
                    self.shared.note([Damage::Frame {
                        segment: self
                            .shared
                            .layout
                            .journal
                            .join(format!("{:08}.log", position.segment)),
                        offset: position.offset,
                        bytes: position.len.into(),
                        why: error.to_string(),
                    }]);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Asks the index; where it fails, it is made again and asked once more.
    fn with_index<T>(
        &self,
        ask: impl Fn(&Index) -> Result<T, IndexError>,
    ) -> Result<T, StoreError> {
        let index = self.shared.index();
        let seen = index.as_ref().ok().map(|index| index.generation());
        let error = match index.and_then(|index| ask(&index)) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        self.command(|ack| Command::Rebuild(seen, error.to_string(), ack))?;
        let again = self.shared.index().and_then(|index| ask(&index));
        again.map_err(|error| self.shared.index_error(&error))
    }

    fn rebuild(&self, why: &str) -> Result<(), StoreError> {
        let seen = self.shared.index().ok().map(|index| index.generation());
        self.command(|ack| Command::Rebuild(seen, why.to_owned(), ack))
    }

    fn write(&self, frames: Vec<Frame>) -> Result<u64, StoreError> {
        frames.iter().try_for_each(Frame::check_size)?;
        self.command(|ack| Command::Write(frames, ack))
    }

    /// Sends a command to the writer and waits for its answer.
    fn command<T: Send + 'static>(
        &self,
        command: impl FnOnce(writer::Ack<T>) -> Command,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let command = command(Box::new(move |answer| drop(sender.send(answer))));
        let queue = self.queue.as_ref().ok_or_else(|| self.closed())?;
        queue.send(command).map_err(|_| self.closed())?;
        receiver.recv().map_err(|_| self.closed())?
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed {
            path: self.dir().to_owned(),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("store: the writer panicked");
        }
        // Last, so that nobody opens the store while the writer finishes; and in words, because a
        // child that was forked and has not called exec yet holds the descriptor, too.
        self.lock.unlock().ok();
    }
}

impl Shared {
    fn index(&self) -> Result<Arc<Index>, IndexError> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index
            .clone()
            .ok_or(IndexError::Corrupt("the index that failed before"))
    }

    fn set_index(&self, index: Option<Index>) {
        let mut slot = self.index.write().unwrap_or_else(PoisonError::into_inner);
        *slot = index.map(Arc::new);
    }

    fn index_error(&self, error: &IndexError) -> StoreError {
        StoreError::Index {
            path: self.layout.dir.clone(),
            why: error.to_string(),
        }
    }

    fn note(&self, damage: impl IntoIterator<Item = Damage>) {
        let mut notes = self.notes();
        for one in damage {
            // Every read of a lost frame would tell of it again.
            if matches!(one, Damage::Frame { .. }) && notes.all.contains(&one) {
                continue;
            }
            tracing::warn!(damage = %one, "store");
            let Notes { all, untold } = &mut *notes;
            for list in [all, untold] {
                if list.len() == DAMAGE_MAX {
                    list.pop_front();
                }
                list.push_back(one.clone());
            }
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn untold(&self) -> VecDeque<Damage> {
        std::mem::take(&mut self.notes().untold)
    }

    /// Bytes of the file system that this user may still write.
    fn free_bytes(&self) -> Result<u64, StoreError> {
        let dir = &self.layout.dir;
        let stat = rustix::fs::statvfs(dir).map_err(|error| StoreError::io(dir, error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn require_space(&self) -> Result<(), StoreError> {
        if self.free_bytes()? < self.options.reserve_bytes {
            return Err(StoreError::StorageFull {
                path: self.layout.dir.clone(),
            });
        }
        Ok(())
    }
}
