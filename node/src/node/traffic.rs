//! What a node does now, for its status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use qk_protocol::key::Release;

use super::fetch::FetchEvent;
use crate::blocks::serve::Server;
use crate::control::DownloadStatus;

/// Who serves, what is downloaded, what was announced.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// One for each network.
    servers: Mutex<Vec<Arc<Server>>>,
    announced: AtomicUsize,
    downloads: Mutex<BTreeMap<u64, Download>>,
    next_download: AtomicU64,
}

#[derive(Debug)]
struct Download {
    name: String,
    begun: Instant,
    size_bytes: u64,
    here_bytes: u64,
    received_bytes: u64,
}

impl Traffic {
    pub(super) fn serves(&self, server: Arc<Server>) {
        locked(&self.servers).push(server);
    }

    /// How many artifacts the networks were told last that this node has.
    pub(super) fn announced(&self, artifacts: usize) {
        self.announced.store(artifacts, Ordering::Relaxed);
    }

    /// Watches a fetch; its transfer is under way from [`FetchEvent::Begin`] until this is dropped.
    pub(super) fn watch(&self, release: &Release) -> Watched<'_> {
        Watched {
            traffic: self,
            number: self.next_download.fetch_add(1, Ordering::Relaxed),
            name: release.to_string(),
        }
    }

    /// Peers that have a lane open now, each network's counted by itself.
    pub(super) fn readers(&self) -> usize {
        let servers = locked(&self.servers);
        servers.iter().map(|server| server.readers()).sum()
    }

    pub(super) fn downloads(&self) -> Vec<DownloadStatus> {
        let downloads = locked(&self.downloads);
        let status = |download: &Download| DownloadStatus {
            name: download.name.clone(),
            size_bytes: download.size_bytes,
            here_bytes: download.here_bytes,
            received_bytes: download.received_bytes,
            seconds: download.begun.elapsed().as_secs_f64(),
        };
        downloads.values().map(status).collect()
    }

    pub(super) fn last_announced(&self) -> usize {
        self.announced.load(Ordering::Relaxed)
    }
}

/// A fetch that is watched.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    traffic: &'a Traffic,
    number: u64,
    name: String,
}

impl Watched<'_> {
    pub(super) fn see(&self, event: &FetchEvent) {
        let mut downloads = locked(&self.traffic.downloads);
        match event {
            FetchEvent::Begin { here, size } => {
                let download = Download {
                    name: self.name.clone(),
                    begun: Instant::now(),
                    size_bytes: *size,
                    here_bytes: *here,
                    received_bytes: 0,
                };
                downloads.insert(self.number, download);
            }
            FetchEvent::Verified { bytes } => {
                if let Some(download) = downloads.get_mut(&self.number) {
                    download.here_bytes += bytes;
                    download.received_bytes += bytes;
                }
            }
            FetchEvent::Asking { .. } | FetchEvent::Waiting | FetchEvent::ProviderFailed { .. } => {
            }
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        locked(&self.traffic.downloads).remove(&self.number);
    }
}

/// What is under these locks is whole after every step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_under_way_from_its_begin_to_its_end() {
        let traffic = Traffic::default();
        let release = crate::control::tests::fixture::artifact_key("hello").release();
        let watched = traffic.watch(&release);
        watched.see(&FetchEvent::Waiting);
        assert!(traffic.downloads().is_empty());
        watched.see(&FetchEvent::Begin {
            here: 10,
            size: 100,
        });
        watched.see(&FetchEvent::Verified { bytes: 30 });
        let [download] = &traffic.downloads()[..] else {
            panic!("one is under way");
        };
        let counted = (
            download.size_bytes,
            download.here_bytes,
            download.received_bytes,
        );
        assert_eq!(counted, (100, 40, 30));
        drop(watched);
        assert!(traffic.downloads().is_empty());
    }
}
