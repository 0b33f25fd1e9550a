//! What can go wrong with a store, each naming the thing it went wrong with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qk_protocol::hash::Root;

/// Why the store could not do what it was asked to. Clonable, because one failed write answers
/// everybody whose records were in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the store.
    #[error("the store {} is in use by another process", path.display())]
    Locked {
        /// The store's directory.
        path: PathBuf,
    },
    /// A later qk wrote this store.
    #[error("{} has format version {found}, this qk knows up to {known}", path.display())]
    NewerVersion {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The directory has files of a store but not the mark of one.
    #[error("{} is not a store: {why}", path.display())]
    NotAStore {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk, or the owner's quota on it, is full. Nothing that was acknowledged is lost.
    #[error("no space left on the disk of {}", path.display())]
    StorageFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: Arc<io::Error>,
    },
    /// The index failed and could not be rebuilt from the journal.
    #[error("the index of the store {}: {why}", path.display())]
    Index {
        /// The store's directory.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// A stored blob is not what its name says. It has been moved aside and is not served.
    #[error("blob {root} is corrupt ({why}); moved to {}", moved_to.display())]
    CorruptBlob {
        /// The name it had.
        root: Root,
        /// What is wrong.
        why: String,
        /// Where the file lies now.
        moved_to: PathBuf,
    },
    /// What was to be stored as `expected` has another hash.
    #[error("{} hashes to {found}, expected {expected}", path.display())]
    WrongRoot {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        expected: Root,
        /// What it is.
        found: Root,
    },
    /// A record beyond the stated limit; refused before anything is written.
    #[error("{what} of {bytes} bytes, the limit is {bytes_max}")]
    TooLarge {
        /// Which kind of thing.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Too many writes are waiting; only [`Store::submit`](super::Store::submit) says so, the
    /// blocking calls wait.
    #[error("the store {} has too many writes waiting", path.display())]
    Busy {
        /// The store's directory.
        path: PathBuf,
    },
    /// The writer has ended.
    #[error("the store {} is closed", path.display())]
    Closed {
        /// The store's directory.
        path: PathBuf,
    },
}

impl StoreError {
    /// Wraps what the operating system said about `path`; a full disk or quota has its own variant.
    pub(super) fn io(path: impl AsRef<Path>, error: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        if is_full(&error) {
            Self::StorageFull { path }
        } else {
            Self::Io {
                path,
                error: Arc::new(error),
            }
        }
    }
}

/// Whether an error means that the disk or a quota on it is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Names the path in the errors of `std::fs`.
pub(super) trait At<T> {
    /// Turns an `io::Error` into a [`StoreError`] about `path`.
    fn at(self, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(path, error))
    }
}
