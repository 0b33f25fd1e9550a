//! What this node gives of its store: what its owner built, and what was fetched if its owner shares.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use qk_protocol::blocks::EncodeError;
use qk_protocol::hash::{PublicKey, Root};

use super::door::Door;
use crate::blocks::serve::{Blobs, Held};
use crate::manners::Manners;

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
