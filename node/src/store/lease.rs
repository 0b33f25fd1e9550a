//! Leases: what is not evicted for the time being, because somebody is at it.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qk_protocol::hash::Root;

use super::Store;
use super::error::StoreError;

/// Keeps a root from being evicted while it lives.
#[derive(Debug)]
pub struct Lease {
    root: Root,
    leases: Arc<Mutex<Leases>>,
}

/// Leases that other processes see, for as long as this process lives: files that are locked.
#[derive(Debug, Clone, Default)]
pub struct FileLeases(Arc<Mutex<BTreeMap<Root, Locked>>>);

/// A file that is locked while this lives. It is unlocked in words: a child that was forked and has
/// not called exec yet holds the descriptor, too.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Locked {
    /// Together with others that lock it so; none while somebody has it alone.
    pub(crate) fn shared(file: File) -> Option<Self> {
        file.try_lock_shared().ok().map(|()| Self(file))
    }

    /// Alone; none while others have it.
    ///
    /// # Errors
    /// When it cannot be locked at all.
    pub(crate) fn alone(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // It ends with the descriptor at the latest.
        let _ = self.0.unlock();
    }
}

/// The leases of one open store.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: BTreeMap<Root, usize>,
    until: BTreeMap<Root, Instant>,
}

impl Lease {
    fn take(root: Root, leases: &Arc<Mutex<Leases>>) -> Self {
        *locked(leases).held.entry(root).or_default() += 1;
        Self {
            root,
            leases: leases.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = &mut locked(&self.leases).held;
        if let Some(count) = held.get_mut(&self.root) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.root);
            }
        }
    }
}

impl Leases {
    fn has(&self, root: &Root) -> bool {
        let until = self.until.get(root);
        self.held.contains_key(root) || until.is_some_and(|until| *until > Instant::now())
    }
}

fn locked(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    // Whole after every step under the lock.
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Keeps a root from being evicted while the answer lives; for downloads under way.
    pub fn lease(&self, root: Root) -> Lease {
        Lease::take(root, &self.shared.leases)
    }

    /// Keeps a root from being evicted for so long, as long as the store is open; a longer lease
    /// stays. With [`Options::file_leases`](super::Options::file_leases) an artifact that is here is
    /// kept as long as this process lives, from other processes, too.
    pub fn lease_for(&self, root: Root, time: Duration) {
        let mut leases = locked(&self.shared.leases);
        let now = Instant::now();
        // Never more than there are artifacts: who leases one has it.
        leases.until.retain(|_, until| *until > now);
        let until = now + time;
        leases
            .until
            .entry(root)
            .and_modify(|before| *before = until.max(*before))
            .or_insert(until);
        drop(leases);
        if let Some(FileLeases(held)) = &self.shared.options.file_leases {
            // Nobody else evicts while this process has the store open.
            let file = File::open(self.blob_path(&root)).ok();
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.extend(file.and_then(Locked::shared).map(|file| (root, file)));
        }
    }

    pub(super) fn is_leased(&self, root: &Root) -> bool {
        locked(&self.shared.leases).has(root)
    }

    /// Removes an artifact unless it is leased; says whether it did.
    pub(super) fn evict(&self, root: &Root) -> Result<bool, StoreError> {
        // Under the lock: a lease that is taken later finds no artifact any more.
        let leases = locked(&self.shared.leases);
        if leases.has(root) || self.is_held(root) {
            return Ok(false);
        }
        self.remove_blob(root)?;
        drop(leases);
        Ok(true)
    }

    /// Whether a command holds the file, see [`FileLeases`].
    fn is_held(&self, root: &Root) -> bool {
        let file = File::open(self.blob_path(root));
        file.is_ok_and(|file| matches!(Locked::alone(file), Ok(None)))
    }
}
