//! One network that this node takes part in: what is known of it, what is answered to others
//! ([`answering`]) and asked of them ([`asking`]).

mod answering;
mod asking;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use qk_protocol::blocks::BlockRange;
use qk_protocol::hash::{NetworkId, NetworkKey, Point, Root};
use qk_protocol::index::Hints;
use qk_protocol::manifest::{ManifestError, NetworkFile};
use qk_protocol::time::{Now, UnixTime};
use tokio::sync::watch;

pub use self::asking::Found;
pub(super) use self::asking::{Unanswered, next};
use super::cache::{Cache, Underway};
use super::door::Door;
use super::given::GivenLogs;
use super::kin::Named;
use crate::blocks::serve::Server;
use crate::counters::Counters;
use crate::gateway::client::Client;
use crate::home::Joined;
use crate::net::{LanRole, Net, PeerId};

/// One network, at work.
#[derive(Debug)]
pub struct Member {
    joined: RwLock<Arc<Joined>>,
    id: NetworkId,
    key: NetworkKey,
    hints: Mutex<Hints>,
    door: Arc<Door>,
    logs: GivenLogs,
    net: OnceLock<Net>,
    server: OnceLock<Arc<Server>>,
    named: Named,
    /// Gateways that are asked in place of nodes.
    web: Vec<Client>,
    /// LAN nodes that may be asked.
    on_lan: RwLock<Vec<(crate::net::Contact, LanRole)>>,
    /// This node as a cache, if it is one.
    cache: Option<Arc<Cache>>,
    /// Downloads whose progress neighbours wait for.
    watched: Mutex<BTreeMap<Root, Arc<watch::Sender<Underway>>>>,
    counters: Counters,
    /// How many bits of a point may be told, and since when that is known.
    hidden: tokio::sync::Mutex<Option<(Instant, u16)>>,
    /// Nodes that have what this one knows that they are to hold.
    repaired: Mutex<BTreeSet<PeerId>>,
}

/// The time, for state machines.
pub(super) fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    Now {
        mono: START.get_or_init(Instant::now).elapsed(),
        unix: unix_now(),
    }
}

/// The time of the calendar.
pub fn unix_now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

impl Member {
    /// `named` are nodes to ask first, by the owner's or the manifest's word.
    pub(super) fn new(
        joined: Joined,
        door: Arc<Door>,
        logs: GivenLogs,
        named: Named,
        web: Vec<Client>,
        cache: Option<Arc<Cache>>,
        counters: Counters,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: joined.network.id(),
            key: joined.key(),
            joined: RwLock::new(Arc::new(joined)),
            hints: Mutex::default(),
            door,
            logs,
            net: OnceLock::new(),
            server: OnceLock::new(),
            named,
            web,
            on_lan: RwLock::default(),
            cache,
            watched: Mutex::default(),
            counters,
            hidden: tokio::sync::Mutex::default(),
            repaired: Mutex::default(),
        })
    }

    /// Nodes that the user or the manifest names.
    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    pub(super) fn on_lan(&self) -> Vec<(crate::net::Contact, LanRole)> {
        let on_lan = self.on_lan.read().unwrap_or_else(PoisonError::into_inner);
        on_lan.clone()
    }

    pub(super) fn set_on_lan(&self, nodes: Vec<(crate::net::Contact, LanRole)>) {
        *self.on_lan.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    pub(super) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// What serves artifacts in this network, once one was made.
    pub(super) fn server(&self, make: impl FnOnce() -> Arc<Server>) -> Arc<Server> {
        self.server.get_or_init(make).clone()
    }

    /// Bytes of artifacts that were sent to others, in their wire form.
    pub fn sent_bytes(&self) -> u64 {
        self.server.get().map_or(0, |server| server.sent_bytes())
    }

    /// Tells the progress of a root's download from now on.
    pub(super) fn watch(&self, root: Root, state: Arc<watch::Sender<Underway>>) {
        self.watched().insert(root, state);
    }

    pub(super) fn unwatch(&self, root: Root) {
        self.watched().remove(&root);
    }

    /// A range was verified and written.
    pub(super) fn verified(&self, root: Root, range: BlockRange) {
        if let Some(state) = self.watched().get(&root) {
            state.send_modify(|state| state.add(range));
        }
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<Root, Arc<watch::Sender<Underway>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the user said of this network: its place among the others, and of which
    /// version they were told.
    pub(super) fn take_over(&self, place: i64, accepted: u64) {
        let mut joined = self.joined.write().unwrap_or_else(PoisonError::into_inner);
        *joined = Arc::new(Joined {
            place,
            accepted,
            ..(**joined).clone()
        });
    }

    /// Looks a point up and keeps what principals state there.
    pub(super) async fn learn(self: &Arc<Self>, point: Point) {
        let found = self.find(point).await;
        let member = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let statements = found.statements;
            member
                .door
                .with(|store| super::keep(store, &member, &statements))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "what was looked up for a neighbour could not be kept");
        }
    }

    pub(super) fn set_net(&self, net: Net) {
        // The first one stays; there is only one.
        let _ = self.net.set(net);
    }

    /// The network side, once it has started.
    pub fn net(&self) -> Option<&Net> {
        self.net.get()
    }

    /// The network's id.
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// What the network's locations are keyed with.
    pub fn key(&self) -> &NetworkKey {
        &self.key
    }

    /// The network as it is known now.
    pub fn joined(&self) -> Arc<Joined> {
        self.joined
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes a newer version of the network. The caller keeps it on disk.
    ///
    /// # Errors
    /// When it does not follow what is known.
    pub fn advance(&self, file: NetworkFile) -> Result<Arc<Joined>, ManifestError> {
        let before = self.joined();
        let network = before.network.advance(file)?;
        let joined = Arc::new(Joined {
            network,
            ..(*before).clone()
        });
        *self.joined.write().unwrap_or_else(PoisonError::into_inner) = joined.clone();
        Ok(joined)
    }

    /// Whether gateways are asked in place of nodes, and nothing else is.
    pub(super) fn is_on_web(&self) -> bool {
        !self.web.is_empty()
    }

    /// Drops hints whose time is over.
    pub(super) fn forget_hints(&self) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.forget(unix_now());
    }

    /// How many bits of a point may be told, as it was found out last.
    pub(super) fn hidden(&self) -> &tokio::sync::Mutex<Option<(Instant, u16)>> {
        &self.hidden
    }

    /// Nodes that have what this one knows that they are to hold.
    pub(super) fn repaired(&self) -> MutexGuard<'_, BTreeSet<PeerId>> {
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
