//! How much the artifacts are, without a look at the disk each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qk_protocol::hash::Root;

use super::error::StoreError;
use super::{BlobInfo, Store};

/// How many artifacts are here, and their bytes with outboards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Artifacts.
    pub artifacts: usize,
    /// Bytes of archives and outboards.
    pub bytes: u64,
}

/// The bytes of each artifact; none before they were listed for the first time. Only the process that
/// has the store open changes them, and each listing sets right what somebody removed by hand.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Option<BTreeMap<Root, u64>>>);

impl Tally {
    pub(super) fn put(&self, root: Root, bytes: u64) {
        if let Some(known) = &mut *self.lock() {
            known.insert(root, bytes);
        }
    }

    pub(super) fn remove(&self, root: &Root) {
        if let Some(known) = &mut *self.lock() {
            known.remove(root);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<Root, u64>>> {
        // Whole after every step under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// How much the artifacts are. Lists them only once.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn amount(&self) -> Result<Amount, StoreError> {
        let mut known = self.shared.tally.lock();
        if known.is_none() {
            *known = Some(bytes_of(&self.list()?));
        }
        let bytes = known.iter().flat_map(BTreeMap::values);
        Ok(bytes.fold(Amount::default(), |all, bytes| Amount {
            artifacts: all.artifacts + 1,
            bytes: all.bytes + bytes,
        }))
    }

    /// All artifacts, sorted by root.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn ls(&self) -> Result<Vec<BlobInfo>, StoreError> {
        // Under the lock: what is put or removed meanwhile is counted afterwards.
        let mut known = self.shared.tally.lock();
        let listed = self.list()?;
        *known = Some(bytes_of(&listed));
        Ok(listed)
    }
}

fn bytes_of(listed: &[BlobInfo]) -> BTreeMap<Root, u64> {
    listed.iter().map(|one| (one.root, one.bytes)).collect()
}
