//! How a process reaches the store: a running node holds it open, a command opens it for moments.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use qk_protocol::blocks::EncodeError;
use qk_protocol::hash::Root;

use crate::blocks::serve::{Blobs, Held};
use crate::store::{FileLeases, Options, Store, StoreError};

/// How long a command waits for another one that has the store open.
const WAIT_MAX: Duration = Duration::from_secs(10);
const WAIT_STEP: Duration = Duration::from_millis(5);

/// How long an artifact stays, whatever the quota, after some of it was given to somebody.
const SERVED_TIME: Duration = Duration::from_secs(60);

/// The way to the store.
#[derive(Debug)]
pub struct Door {
    dir: PathBuf,
    options: Options,
    held: Option<Store>,
    /// The one that somebody uses right now, of those that are opened for moments.
    used: Mutex<Weak<Store>>,
}

impl Door {
    /// Opens the store and keeps it, as a running node does.
    ///
    /// # Errors
    /// When it cannot be opened; [`StoreError::Locked`] when another node has it.
    pub fn hold(dir: PathBuf, options: Options) -> Result<Self, StoreError> {
        let held = Some(Store::open(&dir, options.clone())?);
        Ok(Self {
            dir,
            options,
            held,
            used: Mutex::default(),
        })
    }

    /// Opens the store only while it is used, for milliseconds each time, so that several commands
    /// can run at once.
    pub fn brief(dir: PathBuf, options: Options) -> Self {
        let options = Options {
            stays_marked: true,
            file_leases: Some(FileLeases::default()),
            ..options
        };
        Self {
            dir,
            options,
            held: None,
            used: Mutex::default(),
        }
    }

    /// Whether a store was ever begun there: without one, a command finds nothing in it.
    pub fn is_begun(&self) -> bool {
        self.held.is_some() || self.dir.join("version").exists()
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that the store's artifacts may take.
    pub fn quota_bytes(&self) -> u64 {
        self.options.quota_bytes
    }

    /// Does something with the store. It blocks: not for the reactor.
    ///
    /// # Errors
    /// Those of opening, and of `work`.
    pub fn with<T>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &self.held {
            Some(store) => work(store),
            None => work(&*self.used()?),
        }
    }

    /// Several that use it at once share one opening, which the last of them closes.
    fn used(&self) -> Result<Arc<Store>, StoreError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = used.upgrade() {
            return Ok(store);
        }
        let store = Arc::new(self.open()?);
        *used = Arc::downgrade(&store);
        Ok(store)
    }

    fn open(&self) -> Result<Store, StoreError> {
        let begin = Instant::now();
        loop {
            match Store::open(&self.dir, self.options.clone()) {
                Err(StoreError::Locked { .. }) if begin.elapsed() < WAIT_MAX => {
                    thread::sleep(WAIT_STEP)
                }
                opened => return opened,
            }
        }
    }
}

impl Blobs for Door {
    fn open(&self, root: Root) -> io::Result<Option<Held>> {
        // Its reader is likely to ask for more of it.
        let open = |store: &Store| {
            let opened = store.open_blob(&root)?;
            if opened.is_some() {
                store.lease_for(root, SERVED_TIME);
            }
            Ok(opened)
        };
        let opened = self.with(open).map_err(io::Error::other)?;
        opened
            .map(|blob| {
                Ok(Held {
                    data: blob.data.try_clone()?,
                    outboard: blob.outboard.try_clone()?,
                    size: blob.size,
                })
            })
            .transpose()
    }

    fn is_corrupt(&self, root: Root, error: &EncodeError) {
        tracing::error!(%root, %error, "a stored artifact is damaged: it is not served, and moved aside");
        if let Err(error) = self.with(|store| store.report_corrupt(&root)) {
            tracing::error!(%root, %error, "the damaged artifact could not be moved aside");
        }
    }
}
