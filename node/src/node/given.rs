//! What this node gives of its store and of its logs: what its owner built, and what was fetched if its
//! owner shares.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use qk_protocol::blocks::EncodeError;
use qk_protocol::hash::{Blake3, Point, PublicKey, Root};
use qk_protocol::index::Shelf;
use qk_protocol::log::{LOG_PIECE_BYTES_MAX, LogPiece};
use qk_protocol::statement::Statement;

use super::door::Door;
use super::shelf::StoreShelf;
use crate::blocks::serve::{Blobs, Held};
use crate::logs::Logs;
use crate::manners::{Grant, Manners};

/// Own roots that are remembered; all are asked for again when there are more.
const OWN_MAX: usize = 1 << 16;

/// The store as others see it. Without sharing nobody learns from it what its owner fetched.
#[derive(Debug)]
pub(super) struct Given {
    door: Arc<Door>,
    manners: Arc<Manners>,
    own: PublicKey,
    /// Roots that are known to be one's own, which stays so.
    known: Mutex<BTreeSet<Root>>,
}

impl Given {
    pub(super) fn new(door: Arc<Door>, manners: Arc<Manners>, own: PublicKey) -> Arc<Self> {
        Arc::new(Self {
            door,
            manners,
            own,
            known: Mutex::default(),
        })
    }

    /// Whether this node's owner stated to have built it.
    fn is_own(&self, root: Root) -> io::Result<bool> {
        if self.known().contains(&root) {
            return Ok(true);
        }
        let stated = self.door.with(|store| store.by_root(&root));
        let stated = stated.map_err(io::Error::other)?;
        let is_own = stated.iter().any(|record| record.observer == self.own);
        if is_own {
            let mut known = self.known();
            if known.len() >= OWN_MAX {
                known.clear();
            }
            known.insert(root);
        }
        Ok(is_own)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeSet<Root>> {
        // A set of roots that were looked up: whole after every step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs for Given {
    fn open(&self, root: Root) -> io::Result<Option<Held>> {
        if !self.manners.shares_fetched() && !self.is_own(root)? {
            return Ok(None);
        }
        Blobs::open(&*self.door, root)
    }

    fn is_corrupt(&self, root: Root, error: &EncodeError) {
        self.door.is_corrupt(root, error);
    }
}

/// The logs as others see them.
#[derive(Debug)]
pub(super) struct GivenLogs {
    logs: Logs,
    manners: Arc<Manners>,
}

impl GivenLogs {
    pub(super) fn new(logs: Logs, manners: Arc<Manners>) -> Self {
        Self { logs, manners }
    }

    /// Leave to give a piece of a log, which goes with it until it is sent: what holds for blocks holds
    /// for logs. None while nothing is given.
    pub(super) async fn admit(&self) -> Option<Grant> {
        let uploads = self.manners.uploads();
        uploads.admit(LOG_PIECE_BYTES_MAX as u32).await.ok()
    }

    fn piece(&self, digest: &Blake3, offset: u64) -> io::Result<Option<LogPiece>> {
        match self.logs.piece(digest, offset)? {
            None if self.manners.shares_fetched() => self.logs.of_others().piece(digest, offset),
            piece => Ok(piece),
        }
    }
}

/// The shelf of a network that this node answers from: with logs, where these may be given.
pub(super) struct GivenShelf<'a> {
    pub(super) shelf: StoreShelf<'a>,
    pub(super) logs: Option<&'a GivenLogs>,
}

impl Shelf for GivenShelf<'_> {
    fn at(&self, point: Point) -> Vec<Arc<Statement>> {
        self.shelf.at(point)
    }

    fn near(&self, point: Point, limit: usize) -> Vec<Point> {
        self.shelf.near(point, limit)
    }

    fn log(&self, digest: &Blake3, offset: u64) -> Option<LogPiece> {
        let piece = self.logs?.piece(digest, offset);
        piece.unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "a log cannot be read");
            None
        })
    }
}
