//! A file system in memory, served by FUSE, in which one operation fails as on a full or dying disk.
//!
//! It also keeps what a disk would have of each file after a power cut, pessimistically: only what
//! an fsync covered. As with a kernel, an fsync that fails takes its pages for written: a second
//! one succeeds and has written nothing. Names are durable at once; `qk_tests::disk` is for these.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// The kernel remembers nothing: whole trees are exchanged under it.
const NEVER: Duration = Duration::ZERO;
const BLOCK: u32 = 4096;
const BLOCKS: u64 = 1 << 20;

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Writing to a file; half of it is written.
    Write,
    /// fsync and fdatasync of a file.
    Sync,
    /// fsync of a directory.
    SyncDir,
    /// Making a file or a directory.
    Create,
    /// Changing a file's length.
    Truncate,
    /// Giving something another name.
    Rename,
    /// Removing a file or a directory.
    Remove,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Write,
        Self::Sync,
        Self::SyncDir,
        Self::Create,
        Self::Truncate,
        Self::Rename,
        Self::Remove,
    ];
}

/// One failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub kind: Kind,
    /// The first one that fails, counted from 0.
    pub nth: u64,
    /// With what.
    pub error: Failure,
    /// Whether all that follow fail, too, until the fault is lifted.
    pub lasting: bool,
}

/// How something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// ENOSPC: the disk is full.
    Full,
    /// EIO: the disk is broken.
    Broken,
}

/// A mounted file system; gone when it is dropped.
#[derive(Debug)]
pub struct FaultFs {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    _session: BackgroundSession,
}

/// All that is in a file system at one moment.
#[derive(Debug, Clone)]
pub struct Tree(BTreeMap<u64, Node>);

#[derive(Debug)]
struct State {
    tree: Tree,
    next_ino: u64,
    fault: Option<Fault>,
    fired: u64,
    counts: BTreeMap<Kind, u64>,
}

#[derive(Debug, Clone)]
enum Node {
    Dir(BTreeMap<OsString, u64>),
    File(Content),
}

#[derive(Debug, Clone, Default)]
struct Content {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last fsync.
    dirty: Vec<Range<usize>>,
}

impl FaultFs {
    /// An empty file system, mounted at `path`.
    ///
    /// # Errors
    /// When FUSE refuses.
    pub fn new(path: &Path) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            tree: Tree::empty(),
            next_ino: 2,
            fault: None,
            fired: 0,
            counts: BTreeMap::new(),
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("qk-test-faults".to_owned())];
        Ok(Self {
            _session: fuser::spawn_mount(Served(state.clone()), path, &config)?,
            path: path.to_owned(),
            state,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Exchanges everything that is there. Nothing may be open.
    pub fn put(&self, tree: Tree) {
        lock(&self.state).tree = tree;
    }

    /// What is there.
    pub fn tree(&self) -> Tree {
        lock(&self.state).tree.clone()
    }

    /// Counts anew, and lets this fail.
    pub fn set(&self, fault: Option<Fault>) {
        let mut state = lock(&self.state);
        (state.fault, state.fired) = (fault, 0);
        state.counts.clear();
    }

    /// How often a fault was met since it was set.
    pub fn fired(&self) -> u64 {
        lock(&self.state).fired
    }

    /// How many operations of each kind there were since a fault was set or lifted.
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        lock(&self.state).counts.clone()
    }
}

impl Tree {
    /// Nothing.
    pub fn empty() -> Self {
        Self(BTreeMap::from([(
            INodeNo::ROOT.0,
            Node::Dir(BTreeMap::new()),
        )]))
    }

    /// What a power cut leaves for sure.
    pub fn after_a_cut(mut self) -> Self {
        for node in self.0.values_mut() {
            if let Node::File(content) = node {
                content.data = content.durable.clone();
                content.dirty.clear();
            }
        }
        self
    }

    fn dir(&mut self, ino: INodeNo) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.0.get_mut(&ino.0) {
            Some(Node::Dir(names)) => Ok(names),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn file(&mut self, ino: INodeNo) -> Result<&mut Content, Errno> {
        match self.0.get_mut(&ino.0) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Dir(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn child(&mut self, parent: INodeNo, name: &OsStr) -> Result<INodeNo, Errno> {
        let found = self.dir(parent)?.get(name).copied();
        found.map(INodeNo).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let (kind, perm, len) = match self.0.get(&ino.0) {
            Some(Node::Dir(_)) => (FileType::Directory, 0o700, 0),
            Some(Node::File(content)) => (FileType::RegularFile, 0o600, content.data.len()),
            None => return Err(Errno::ENOENT),
        };
        let time = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino,
            size: len as u64,
            blocks: len.div_ceil(512) as u64,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }
}

impl Content {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[at..end].copy_from_slice(bytes);
        self.dirty.push(at..end);
    }

    fn sync(&mut self) {
        self.durable.resize(self.data.len(), 0);
        for range in self.dirty.drain(..) {
            let end = range.end.min(self.data.len());
            let range = range.start.min(end)..end;
            self.durable[range.clone()].copy_from_slice(&self.data[range]);
        }
    }
}

impl State {
    fn count(&mut self, kind: Kind) -> Result<(), Errno> {
        let count = self.counts.entry(kind).or_default();
        let nth = *count;
        *count += 1;
        let due = self.fault.filter(|fault| {
            let same =
                fault.kind == kind && (nth == fault.nth || (fault.lasting && nth > fault.nth));
            // Nor can what a failed write left be cut off while that lasts.
            let behind = kind == Kind::Truncate && matches!(fault.kind, Kind::Write | Kind::Sync);
            same || (behind && fault.lasting && self.fired > 0)
        });
        let Some(fault) = due else {
            return Ok(());
        };
        self.fired += 1;
        Err(match fault.error {
            Failure::Full => Errno::ENOSPC,
            Failure::Broken => Errno::EIO,
        })
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        self.count(Kind::Create)?;
        if self.tree.child(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        self.tree.dir(parent)?.insert(name.to_owned(), ino);
        self.tree.0.insert(ino, node);
        self.tree.attr(INodeNo(ino))
    }

    /// The node stays, as somebody may have it open.
    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.tree.child(parent, name)?;
        if matches!(self.tree.0.get(&ino.0), Some(Node::Dir(names)) if !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.count(Kind::Remove)?;
        self.tree.dir(parent)?.remove(name);
        Ok(())
    }

    fn rename(
        &mut self,
        (from, name): (INodeNo, &OsStr),
        (to, new): (INodeNo, &OsStr),
    ) -> Result<(), Errno> {
        let ino = self.tree.child(from, name)?;
        self.count(Kind::Rename)?;
        self.tree.dir(to)?.insert(new.to_owned(), ino.0);
        self.tree.dir(from)?.remove(name);
        Ok(())
    }

    fn write(&mut self, ino: INodeNo, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let failed = self.count(Kind::Write);
        let content = self.tree.file(ino)?;
        let written = match failed {
            Ok(()) => bytes,
            Err(_) => &bytes[..bytes.len() / 2],
        };
        content.write(usize::try_from(at).map_err(|_| Errno::EFBIG)?, written);
        failed
    }

    fn sync(&mut self, ino: INodeNo) -> Result<(), Errno> {
        let failed = self.count(Kind::Sync);
        let content = self.tree.file(ino)?;
        match failed {
            Ok(()) => content.sync(),
            Err(_) => content.dirty.clear(),
        }
        failed
    }

    fn resize(&mut self, ino: INodeNo, len: u64) -> Result<(), Errno> {
        self.count(Kind::Truncate)?;
        let len = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
        let content = self.tree.file(ino)?;
        let before = content.data.len();
        content.data.resize(len, 0);
        if len > before {
            content.dirty.push(before..len);
        }
        Ok(())
    }
}

/// The file system that the kernel talks to.
struct Served(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry, done: Result<FileAttr, Errno>) {
    match done {
        Ok(attr) => reply.entry(&NEVER, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = lock(&self.0);
        let found = state.tree.child(parent, name);
        entry(reply, found.and_then(|ino| state.tree.attr(ino)));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).tree.attr(ino) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let resized = size.map_or(Ok(()), |len| state.resize(ino, len));
        match resized.and_then(|()| state.tree.attr(ino)) {
            Ok(attr) => reply.attr(&NEVER, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = lock(&self.0).make(parent, name, Node::Dir(BTreeMap::new()));
        entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, lock(&self.0).remove(parent, name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, lock(&self.0).remove(parent, name));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = lock(&self.0).rename((parent, name), (newparent, newname));
        empty(reply, done);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Without a flush: a process that is killed would wait for its own answer when it closes.
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = lock(&self.0).make(parent, name, Node::File(Content::default()));
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        match made {
            Ok(attr) => reply.created(&NEVER, &attr, Generation(0), FileHandle(0), flags),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).tree.file(ino) {
            Ok(content) => {
                let len = content.data.len();
                let start = usize::try_from(offset).unwrap_or(len).min(len);
                reply.data(&content.data[start..(start + size as usize).min(len)]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).write(ino, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
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

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, lock(&self.0).sync(ino));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, lock(&self.0).count(Kind::SyncDir));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut state = lock(&self.0);
        let names = match state.tree.dir(ino) {
            Ok(names) => names.clone(),
            Err(error) => return reply.error(error),
        };
        // A position is a node's number, so that removals between two calls skip nothing.
        let mut entries: Vec<_> = names.into_iter().map(|(name, ino)| (ino, name)).collect();
        entries.sort_unstable();
        for (ino, name) in entries.into_iter().filter(|(ino, _)| *ino > offset) {
            let kind = match state.tree.0.get(&ino) {
                Some(Node::Dir(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), ino, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 0, 0, BLOCK, 255, BLOCK);
    }
}
