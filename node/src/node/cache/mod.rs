//! The cache of a laboratory: fetches from upstream once what its neighbours ask for, and holds the
//! whole index, so that it answers when the uplink is down.
//!
//! Neighbours speak the ordinary protocols with it. A question about a point makes it look that
//! point up; a request for blocks of a root that it lacks makes it fetch the root, if its own policy
//! trusts it, and the answer waits: ranges are passed on as they arrive. However many ask, one
//! look-up and one download run.

mod mirror;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use qk_protocol::blocks::{Blob, BlockRange, Ranges, UNIT_BLOCKS_MIN};
use qk_protocol::hash::{NetworkId, Point, Root};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use self::order::Order;
use super::member::Member;
use super::{Node, NodeError};
use crate::blocks::part::Part;
use crate::blocks::serve::{Held, Obtain, Obtained};
use crate::manners::{Manners, Whose};
use crate::store::{Store, StoreError};

/// Downloads that a cache runs for others at once.
const FETCHES_MAX: usize = 16;
/// Downloads that wait to begin.
const ORDERS_MAX: usize = 256;
/// Look-ups that a cache runs for others at once; beyond it the answer is what is here.
const LOOKS_MAX: usize = 32;
/// Points whose last look-up is remembered.
const LOOKED_MAX: usize = 4096;
/// How long what a look-up found is new enough to be answered without another one.
const LOOK_FRESH: Duration = Duration::from_secs(60);
/// How long a question waits for the look-up that it caused: well below the time that the asker
/// gives one node.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a request for blocks waits for them: below the time after which its reader gives up.
const BLOCKS_PATIENCE: Duration = Duration::from_secs(8);

/// `[cache]` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Whether a node is a cache without `--cache`.
    pub enabled: bool,
    /// Crates that are fetched for others, by name; `*` stands for any characters. All if empty.
    pub allow: Vec<String>,
    /// Whether the whole index of each network is kept here.
    pub mirror: bool,
    /// Whether something is fetched for peers from anywhere, not only for those with an address of
    /// the local network.
    pub everybody: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            allow: Vec::new(),
            mirror: true,
            everybody: false,
        }
    }
}

impl CacheConfig {
    fn allows(&self, name: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters. `-` and `_` are the same,
/// as they are to cargo.
fn matches(pattern: &str, name: &str) -> bool {
    let plain = |text: &str| text.replace('_', "-").to_ascii_lowercase();
    let (pattern, name) = (plain(pattern), plain(name));
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What all networks of a cache share.
pub(super) struct Cache {
    pub(super) config: CacheConfig,
    orders: mpsc::Sender<Order>,
    /// Taken by the task that carries them out.
    inbox: Mutex<Option<mpsc::Receiver<Order>>>,
    underway: Mutex<BTreeMap<(NetworkId, Root), watch::Receiver<Underway>>>,
    looked: Mutex<BTreeMap<(NetworkId, Point), Looked>>,
    looks: Arc<Semaphore>,
}

/// A look-up for others, and when it was begun.
#[derive(Clone)]
struct Looked {
    begun: Instant,
    done: watch::Receiver<bool>,
}

/// How far a download for others is.
#[derive(Debug, Clone, Default)]
pub(super) struct Underway {
    /// First blocks of the units of [`UNIT_BLOCKS_MIN`] that are verified and written.
    verified: BTreeSet<u32>,
    ended: Option<Obtained>,
}

impl Underway {
    pub(super) fn add(&mut self, range: BlockRange) {
        let cells = (range.start().0..range.end().0).step_by(UNIT_BLOCKS_MIN as usize);
        self.verified.extend(cells);
    }

    fn has(&self, ranges: &Ranges) -> bool {
        let mut cells = ranges
            .as_slice()
            .iter()
            .flat_map(|range| (range.start().0..range.end().0).step_by(UNIT_BLOCKS_MIN as usize));
        cells.all(|cell| self.verified.contains(&cell))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn new(config: CacheConfig) -> Arc<Self> {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        Arc::new(Self {
            config,
            orders,
            inbox: Mutex::new(Some(inbox)),
            underway: Mutex::default(),
            looked: Mutex::default(),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
        })
    }

    /// Sees to it that what the network knows of a point is here, as far as that takes no longer
    /// than a neighbour waits. One look-up runs, however many ask.
    pub(super) async fn look(&self, member: &Arc<Member>, point: Point) {
        let Some(mut done) = self.looking(member, point) else {
            return;
        };
        // Late: what is here is the answer, and the look-up goes on for those who ask next.
        let _ = timeout(LOOK_PATIENCE, done.wait_for(|done| *done)).await;
    }

    fn looking(&self, member: &Arc<Member>, point: Point) -> Option<watch::Receiver<bool>> {
        let key = (member.id(), point);
        let mut looked = lock(&self.looked);
        if let Some(one) = looked.get(&key)
            && one.begun.elapsed() < LOOK_FRESH
        {
            return Some(one.done.clone());
        }
        let place = self.looks.clone().try_acquire_owned().ok()?;
        if looked.len() >= LOOKED_MAX {
            looked.retain(|_, one| one.begun.elapsed() < LOOK_FRESH);
        }
        if looked.len() >= LOOKED_MAX {
            return None;
        }
        let (tell, done) = watch::channel(false);
        let begun = Instant::now();
        looked.insert(
            key,
            Looked {
                begun,
                done: done.clone(),
            },
        );
        let member = member.clone();
        tokio::spawn(async move {
            member.learn(point).await;
            tell.send_replace(true);
            drop(place);
        });
        Some(done)
    }

    /// The download of a root: the one that runs, or a new one.
    fn order(&self, member: &Member, blob: Blob) -> Option<watch::Receiver<Underway>> {
        let key = (member.id(), blob.root());
        let mut underway = lock(&self.underway);
        if let Some(one) = underway.get(&key) {
            return Some(one.clone());
        }
        let (state, watched) = watch::channel(Underway::default());
        let order = Order {
            network: member.id(),
            blob,
            state: Arc::new(state),
        };
        // As many wait as may: those who ask come again.
        self.orders.try_send(order).ok()?;
        underway.insert(key, watched.clone());
        Some(watched)
    }

    fn ended(&self, network: NetworkId, root: Root) {
        lock(&self.underway).remove(&(network, root));
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps are whole after every step under the lock.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Whether this is a cache that fetches a crate for others now.
    pub(crate) fn obtains_for_others(&self, name: &str) -> bool {
        let allows = |cache: &Arc<Cache>| cache.config.allows(name);
        self.cache.as_ref().is_some_and(allows)
            && self.manners.gives()
            && self.manners.may_download(Whose::Others)
    }

    /// Whether it does so not only for neighbours.
    pub(crate) fn obtains_for_everybody(&self) -> bool {
        let cache = self.cache.as_ref();
        cache.is_some_and(|cache| cache.config.everybody)
    }

    /// Fetches what neighbours ask for, and keeps the index; for ever. Nothing happens on a node
    /// that is no cache.
    pub(super) async fn serve_cache(&self) {
        let Some(cache) = self.cache.clone() else {
            return std::future::pending().await;
        };
        let Some(inbox) = lock(&cache.inbox).take() else {
            return std::future::pending().await;
        };
        tokio::join!(self.carry_out(&cache, inbox), self.mirror(&cache));
    }

    async fn carry_out(&self, cache: &Cache, mut inbox: mpsc::Receiver<Order>) {
        let mut working = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(order) = inbox.recv(), if working.len() < FETCHES_MAX => {
                    working.push(self.fulfil(cache, order));
                }
                Some(()) = working.next(), if !working.is_empty() => {}
            }
        }
    }
}

/// A cache's side of one network's block streams.
pub(super) struct Neighbours {
    pub(super) cache: Arc<Cache>,
    pub(super) member: Weak<Member>,
    pub(super) manners: Arc<Manners>,
}

impl Obtain for Neighbours {
    fn obtain(&self, peer: PeerId, blob: Blob, ranges: Ranges) -> BoxFuture<'_, Obtained> {
        Box::pin(async move {
            let Some(member) = self.member.upgrade() else {
                return Obtained::Lacks;
            };
            // What would not be given is not fetched either.
            if !self.manners.gives() || !self.manners.may_download(Whose::Others) {
                return Obtained::Lacks;
            }
            if !self.cache.config.everybody && !member.is_neighbour(peer).await {
                return Obtained::Lacks;
            }
            let Some(mut download) = self.cache.order(&member, blob) else {
                return Obtained::Busy;
            };
            let here = download.wait_for(|state| state.ended.is_some() || state.has(&ranges));
            match timeout(BLOCKS_PATIENCE, here).await {
                Ok(Ok(state)) => state.ended.unwrap_or(Obtained::Part),
                // The one that carried it out is gone.
                Ok(Err(_)) => Obtained::Lacks,
                Err(_) => Obtained::Busy,
            }
        })
    }

    fn part(&self, blob: Blob) -> std::io::Result<Option<Held>> {
        let Some(member) = self.member.upgrade() else {
            return Ok(None);
        };
        let parts = Store::parts_in(member.door().dir()).map_err(std::io::Error::other)?;
        Part::look(&parts, blob)
    }
}

/// What went wrong while something was obtained for others, in the log of the cache alone.
#[derive(Debug, thiserror::Error)]
enum ObtainError {
    #[error("no principal's statement about it is here")]
    Unknown,
    #[error("crate {0} is not on the allow list")]
    NotAllowed(String),
    #[error("none of the network's builds makes it")]
    OtherBuild,
    #[error("the node pauses, or this month's bytes are used up")]
    Rests,
    #[error("the policy trusts another artifact in its place")]
    OtherRoot,
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Fetch(#[from] super::FetchError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_names_and_stars() {
        let cases = [
            ("ripgrep", "ripgrep", true),
            ("ripgrep", "ripgrep-all", false),
            ("tokio-*", "tokio-console", true),
            ("tokio-*", "tokio_console", true),
            ("tokio-*", "tokio", false),
            ("*", "anything", true),
            ("*-cli", "wasm-bindgen-cli", true),
            ("*-cli", "cli", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_empty_list_allows_everything() {
        let mut config = CacheConfig::default();
        assert!(config.allows("anything"));
        config.allow = vec!["ripgrep".to_owned(), "tokio-*".to_owned()];
        assert!(config.allows("tokio-console") && !config.allows("hexyl"));
    }

    #[test]
    fn a_range_is_there_when_all_its_units_are() {
        let range = |start, end| BlockRange::new(start, end).unwrap();
        let mut state = Underway::default();
        state.add(range(0, 64));
        state.add(range(80, 85));
        assert!(state.has(&Ranges::from(range(16, 64))));
        assert!(state.has(&Ranges::from(range(80, 85))));
        assert!(!state.has(&Ranges::from(range(48, 80))));
        let both = Ranges::new(vec![range(0, 16), range(64, 80)]).unwrap();
        assert!(!state.has(&both));
    }
}
