//! Which peers are in use, so that their connections are not closed to make room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;

/// Counts the users of each peer. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Keeps(Arc<Mutex<HashMap<PeerId, usize>>>);

/// A peer in use, until this is dropped.
#[derive(Debug)]
pub struct Kept {
    peer: PeerId,
    keeps: Keeps,
}

impl Keeps {
    pub(super) fn keep(&self, peer: PeerId) -> Kept {
        *self.lock().entry(peer).or_default() += 1;
        let keeps = self.clone();
        Kept { peer, keeps }
    }

    pub(super) fn is_kept(&self, peer: &PeerId) -> bool {
        self.lock().contains_key(peer)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut users = self.keeps.lock();
        if let Some(count) = users.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_lets_go() {
        let (keeps, peer) = (Keeps::default(), PeerId::random());
        let (one, two) = (keeps.keep(peer), keeps.keep(peer));
        drop(one);
        assert!(keeps.is_kept(&peer));
        drop(two);
        assert!(!keeps.is_kept(&peer));
        assert!(keeps.lock().is_empty());
    }
}
