//! The lanes of each provider, shared among the transfers of this node: [`Sharing`], carried out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use qk_protocol::transfer::sharing::{Sharing, Taken};
use tokio::sync::mpsc;

/// What all transfers have of all providers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SharedLanes {
    all: Arc<Mutex<All>>,
    start: Instant,
}

#[derive(Debug, Default)]
struct All {
    transfers: u64,
    providers: BTreeMap<PeerId, Sharing<u64>>,
    /// Where each transfer hears of what is for it.
    notices: BTreeMap<u64, mpsc::UnboundedSender<Notice>>,
}

/// What a transfer is told of lanes.
#[derive(Debug)]
pub(super) enum Notice {
    /// One that it waited for is its own now.
    Free(TakenLane),
    /// One is wanted back.
    GiveBack(PeerId),
}

/// One transfer. Once this is dropped it waits for nothing; lanes that it has are given back as they are
/// closed.
#[derive(Debug)]
pub(super) struct Sharer {
    lanes: SharedLanes,
    id: u64,
    /// Few: a lane of each provider at a time, and as many wishes as there are lanes.
    pub(super) notices: mpsc::UnboundedReceiver<Notice>,
}

/// The right to one lane of a provider, given back when this is dropped.
#[derive(Debug)]
pub(super) struct TakenLane {
    lanes: SharedLanes,
    id: u64,
    pub(super) provider: PeerId,
    is_refused: bool,
}

impl SharedLanes {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::default(),
            start: Instant::now(),
        }
    }

    pub(super) fn join(&self) -> Sharer {
        let (sender, notices) = mpsc::unbounded_channel();
        let mut all = self.all();
        all.transfers += 1;
        let id = all.transfers;
        all.notices.insert(id, sender);
        Sharer {
            lanes: self.clone(),
            id,
            notices,
        }
    }

    fn taken(&self, id: u64, provider: PeerId) -> TakenLane {
        TakenLane {
            lanes: self.clone(),
            id,
            provider,
            is_refused: false,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn all(&self) -> MutexGuard<'_, All> {
        // Whole after every step under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn forget_if_unused(&mut self, provider: &PeerId) {
        if self.providers.get(provider).is_some_and(Sharing::is_empty) {
            self.providers.remove(provider);
        }
    }
}

impl Sharer {
    /// A lane to be opened, if there is one now; [`Notice::Free`] may bring one later.
    pub(super) fn take(&self, provider: PeerId) -> Option<TakenLane> {
        let mut all = self.lanes.all();
        let sharing = all.providers.entry(provider).or_default();
        match sharing.take(self.id, self.lanes.now()) {
            Taken::Lane => Some(self.lanes.taken(self.id, provider)),
            Taken::NotNow { asks_back } => {
                let holder = asks_back.and_then(|holder| all.notices.get(&holder));
                if let Some(holder) = holder {
                    // One that has just ended gives all back.
                    let _ = holder.send(Notice::GiveBack(provider));
                }
                None
            }
        }
    }
}

impl Drop for Sharer {
    fn drop(&mut self) {
        let mut all = self.lanes.all();
        all.notices.remove(&self.id);
        for sharing in all.providers.values_mut() {
            sharing.leave(self.id);
        }
        all.providers.retain(|_, sharing| !sharing.is_empty());
    }
}

impl TakenLane {
    /// The provider did not take the lane. Says whether it serves another one of this node.
    pub(super) fn refused(mut self) -> bool {
        self.is_refused = true;
        let (now, mut all) = (self.lanes.now(), self.lanes.all());
        let sharing = all.providers.get_mut(&self.provider);
        let serves = sharing.is_some_and(|sharing| sharing.refused(self.id, now));
        all.forget_if_unused(&self.provider);
        serves
    }
}

impl Drop for TakenLane {
    fn drop(&mut self) {
        if self.is_refused {
            return;
        }
        let (now, mut all) = (self.lanes.now(), self.lanes.all());
        let sharing = all.providers.get_mut(&self.provider);
        let next = sharing.and_then(|sharing| sharing.give_back(self.id, now));
        all.forget_if_unused(&self.provider);
        let Some(next) = next else {
            return;
        };
        let waits = all.notices.get(&next).cloned();
        drop(all);
        let lane = self.lanes.taken(next, self.provider);
        if let Some(waits) = waits {
            // One that has just ended drops it, which passes it on.
            let _ = waits.send(Notice::Free(lane));
        }
    }
}
