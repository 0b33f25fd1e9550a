//! Which inbound connections are closed when there are too many, or memory is short.

use std::collections::BTreeMap;

use libp2p::PeerId;
use tokio::time::Instant;

use super::address::Prefix;
use super::swarm::Task;

/// Bytes of memory that this process has in use; none where the system does not say.
fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

impl Task {
    /// Where inbound connections are many, closes those of the peer that was heard of longest ago, of
    /// the prefix that has the most: so those who came first with many cannot keep others out.
    pub(super) fn thin_out(&mut self) {
        let inbound = self.inbound();
        if inbound.values().map(|one| one.count).sum::<usize>() > self.limits.crowded_in() {
            self.close_heaviest(inbound);
        }
    }

    /// Where this process takes more memory than it may, closes half of the inbound connections that
    /// nothing of ours goes over. What a connection may hold is bounded, and small for an honest one;
    /// of hundreds that all hold what they may, it is the sum.
    pub(super) fn shed_memory(&mut self) {
        let Some(bytes) = resident_bytes().filter(|bytes| *bytes > self.limits.memory_bytes_max)
        else {
            return;
        };
        let before: usize = self.inbound().values().map(|one| one.count).sum();
        let mut left = before;
        while left > before / 2 {
            match self.close_heaviest(self.inbound()) {
                true => left -= 1,
                false => break,
            }
        }
        if left < before {
            let closed = before - left;
            tracing::warn!(
                bytes,
                closed,
                "memory is short: inbound connections were closed"
            );
        }
    }

    fn inbound(&self) -> BTreeMap<Option<Prefix>, Inbound> {
        let mut inbound: BTreeMap<Option<Prefix>, Inbound> = BTreeMap::new();
        for (id, peer) in &self.peers {
            let only_in = peer.lines().all(|(_, endpoint)| endpoint.is_listener());
            let only_in = only_in && peer.relayed().next().is_none();
            let in_use = self.asks.is_asked(id) || self.keeps.is_kept(id);
            let dialled_us = peer.lines().filter(|(_, endpoint)| endpoint.is_listener());
            for (_, endpoint) in dialled_us {
                let of_prefix = inbound
                    .entry(Prefix::of(endpoint.get_remote_address()))
                    .or_default();
                of_prefix.count += 1;
                let oldest = of_prefix.oldest.is_none_or(|(used, _)| peer.used < used);
                if only_in && !in_use && oldest {
                    of_prefix.oldest = Some((peer.used, *id));
                }
            }
        }
        inbound
    }

    fn close_heaviest(&mut self, inbound: BTreeMap<Option<Prefix>, Inbound>) -> bool {
        let closable = inbound.into_values().filter(|one| one.oldest.is_some());
        let Some((_, peer)) = closable
            .max_by_key(|one| one.count)
            .and_then(|one| one.oldest)
        else {
            return false;
        };
        // Its end is an event; it does not count any more from now on.
        self.peers.remove(&peer);
        let _ = self.swarm.disconnect_peer_id(peer);
        true
    }
}

/// The inbound connections of one prefix.
#[derive(Debug, Default)]
struct Inbound {
    count: usize,
    /// Of those that may be closed, when it was last heard of and who it is.
    oldest: Option<(Instant, PeerId)>,
}
