//! A disk that loses power.
//!
//! It is one file of a FUSE file system, and a loop device turns that into a block device. A loop
//! device asks for an fsync of its file where the file system above asks the disk to empty its
//! cache; so what is in the file is known, write by write, and what of it a disk would still have
//! after a power cut: all that was written before the last fsync that was answered, and of what came
//! later any part in any order, down to single sectors.

mod mounted;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rand::{Rng, RngExt};

pub use self::mounted::{Mounted, format};

const SECTOR: usize = 512;
/// How many requests a cut waits for enough writes in the disk's cache.
const REQUESTS_MORE: u64 = 400;
const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
/// Nothing is remembered by the kernel: what a power cut changes, it would not hear of.
const NEVER: Duration = Duration::ZERO;

/// A disk; gone when it is dropped.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    path: PathBuf,
    _session: BackgroundSession,
}

/// What a power cut did to the writes that were under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Writes that the disk had not been asked to keep yet.
    pub pending: u64,
    /// Of these, how many are gone.
    pub dropped: u64,
    /// And of how many only some sectors are there.
    pub torn: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What a reader gets.
    now: Vec<u8>,
    /// What had been written before the last fsync.
    durable: Vec<u8>,
    /// What has been written since, in order.
    pending: Vec<(usize, Vec<u8>)>,
    power: Power,
    /// Writes and fsyncs until the power goes.
    left: Option<u64>,
    /// And how many writes it takes along at least, if so many come together soon.
    pending_min: usize,
    /// Fsyncs that were answered.
    fsyncs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Nothing is answered any more.
    Going,
    /// Everything is answered with an error.
    Off,
}

impl Disk {
    /// A disk of `len` zeros, which is a file in `dir`.
    ///
    /// # Errors
    /// When FUSE refuses.
    pub fn new(dir: &Path, len: usize) -> io::Result<Self> {
        let state = State {
            now: vec![0; len],
            durable: vec![0; len],
            pending: Vec::new(),
            power: Power::On,
            left: None,
            pending_min: 0,
            fsyncs: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("qk-test-disk".to_owned())];
        Ok(Self {
            _session: fuser::spawn_mount(Served(shared.clone()), dir, &config)?,
            path: dir.join(NAME),
            shared,
        })
    }

    /// The file that is the disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the power go after so many writes and fsyncs, or a little later, when `pending_min`
    /// writes lie in the disk's cache.
    pub fn cut_after(&self, requests: u64, pending_min: usize) {
        let mut state = self.shared.lock();
        (state.left, state.pending_min) = (Some(requests + REQUESTS_MORE), pending_min);
    }

    /// Waits until the power goes; from then on nothing is answered. Says whether it went in time.
    pub fn wait_for_cut(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut state = self.shared.lock();
        while state.power == Power::On {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets those go that wait for an answer, with an error.
    pub fn fail(&self) {
        let mut state = self.shared.lock();
        (state.power, state.left) = (Power::Off, None);
        self.shared.changed.notify_all();
    }

    /// Power again: the disk has what a cut may have left of it.
    pub fn restart(&self, rng: &mut impl Rng) -> Cut {
        let state = &mut *self.shared.lock();
        let mut cut = Cut::default();
        let kept = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        for (at, bytes) in &state.pending {
            cut.pending += 1;
            let torn = rng.random_bool(0.2);
            let whole = !torn && rng.random_bool(kept);
            cut.torn += u64::from(torn);
            cut.dropped += u64::from(!torn && !whole);
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                if whole || (torn && rng.random_bool(0.5)) {
                    let at = at + n * SECTOR;
                    state.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        for (at, bytes) in state.pending.drain(..) {
            let range = at..at + bytes.len();
            state.now[range.clone()].copy_from_slice(&state.durable[range]);
        }
        (state.power, state.left) = (Power::On, None);
        cut
    }

    /// Fsyncs that were answered since the disk was made.
    pub fn fsyncs(&self) -> u64 {
        self.shared.lock().fsyncs
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one request, and waits if the power goes with it; `None` without power.
    fn counted<'s>(&'s self, mut state: MutexGuard<'s, State>) -> Option<MutexGuard<'s, State>> {
        if let (Power::On, Some(left)) = (state.power, state.left) {
            state.left = Some(left.saturating_sub(1));
            let due = left <= REQUESTS_MORE && state.pending.len() >= state.pending_min;
            if due || left == 0 {
                state.power = Power::Going;
                self.changed.notify_all();
            }
        }
        while state.power == Power::Going {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (state.power == Power::On).then_some(state)
    }
}

impl State {
    fn range(&self, at: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(at).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.now.len()).then_some(start..end)
    }

    fn flush(&mut self) {
        self.fsyncs += 1;
        for (at, bytes) in self.pending.drain(..) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// The file system that the kernel talks to.
struct Served(Arc<Shared>);

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        let len = self.0.lock().now.len() as u64;
        FileAttr {
            ino,
            size: if is_file { len } else { 0 },
            blocks: if is_file { len / SECTOR as u64 } else { 0 },
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&NEVER, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NEVER, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Without a flush: a process that is killed would wait for its own answer when it closes.
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock();
        let len = (state.now.len() as u64).saturating_sub(offset);
        match state.range(offset, len.min(size.into()) as usize) {
            _ if state.power == Power::Off => reply.error(Errno::EIO),
            Some(range) => reply.data(&state.now[range]),
            None => reply.data(&[]),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let Some(range) = state.range(offset, data.len()) else {
            return reply.error(Errno::EFBIG);
        };
        if state.power != Power::Off {
            // Before it is counted: a write with which the power goes may be on the disk in part.
            let start = range.start;
            state.now[range].copy_from_slice(data);
            state.pending.push((start, data.to_vec()));
        }
        match self.0.counted(state) {
            Some(_on) => reply.written(data.len() as u32),
            None => reply.error(Errno::EIO),
        }
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.0.counted(self.0.lock()) {
            Some(mut state) => {
                state.flush();
                reply.ok();
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
