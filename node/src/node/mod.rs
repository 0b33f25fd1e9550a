//! The node: store, networks and what goes on between them.
//!
//! A running node (`qk node`) holds the store and listens; a command without one embeds a node that
//! only asks. Both are a [`Node`].

mod cache;
mod door;
mod draw;
mod fetch;
mod given;
mod here;
mod hiding;
mod kin;
mod listen;
mod locked;
mod log;
mod looking;
mod maintain;
mod member;
mod pull;
mod reload;
mod repair;
mod report;
mod search;
mod shelf;
mod survey;
#[cfg(test)]
mod tests;
mod traffic;
mod up;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use ed25519_dalek::SigningKey;
use qk_protocol::decide::Held;
use qk_protocol::dsse;
use qk_protocol::hash::{NetworkId, Point, PublicKey, Root};
use qk_protocol::hidden::CannotHide;
use qk_protocol::index::Rules;
use qk_protocol::key::Release;
use qk_protocol::manifest::{Manifest, ManifestError, NetworkFile};
use qk_protocol::policy::Policy;
use qk_protocol::statement::Statement;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use self::cache::Cache;
pub use self::cache::CacheConfig;
pub use self::door::Door;
pub use self::fetch::{FetchError, FetchEvent, FetchSpec, Fetched, From, Share};
use self::given::Given;
pub use self::listen::NetworkConfig;
pub use self::locked::{LockedError, LockedSpec};
pub use self::log::LogError;
pub use self::member::{Found, Member, unix_now};
pub use self::pull::PullError;
pub use self::search::{NetworkHit, SearchReport, SearchSpec, Searched};
use self::shelf::{StoreShelf, record};
use self::traffic::Traffic;
use crate::blocks::serve::Blobs;
use crate::counters::Counters;
use crate::gateway::client::{Client, GatewayUrl, GatewayUrlError, clients, gateways};
use crate::home::{Config, Home, HomeError};
use crate::manners::{Manners, ShareConfig, ShareFlags};
use crate::net::{Contact, Multiaddr, StartError};
use crate::secret::SecretError;
use crate::store::{Entry, Keep, Options, Store, StoreError};

/// The part of its disk that a store takes at most unless its owner says otherwise.
const QUOTA_PERCENT: u64 = 5;

/// A node at work.
#[derive(Debug)]
pub struct Node {
    home: Home,
    /// As it was read last.
    config: RwLock<Arc<Config>>,
    door: Arc<Door>,
    options: NodeOptions,
    /// In the order in which they are asked.
    members: RwLock<Vec<Arc<Member>>>,
    /// Held while networks on disk and `members` are brought together.
    reloading: tokio::sync::Mutex<()>,
    /// Held while a network side starts.
    starting: tokio::sync::Mutex<()>,
    cache: Option<Arc<Cache>>,
    observer: SigningKey,
    manners: Arc<Manners>,
    /// Whether something was not announced because of a pause.
    unannounced: AtomicBool,
    started: Instant,
    traffic: Arc<Traffic>,
    counters: Counters,
    gateways: Mutex<Vec<Client>>,
    /// Told when others reach this node at other addresses than before.
    moved: Arc<Notify>,
    /// How often the configuration was read again.
    reloads: watch::Sender<u64>,
}

/// How a node takes part.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Addresses to listen on; a node that listens nowhere only asks.
    pub listen: Vec<String>,
    /// Nodes to ask first, beside those of the configuration.
    pub parent: Vec<String>,
    /// Whether to keep the store open, as a running node does.
    pub hold: bool,
    /// Whether to stay off the network.
    pub offline: bool,
    /// Gateways that are asked for everything, in place of nodes: no connection is made to others.
    pub only: Vec<GatewayUrl>,
    /// Whether to be a cache for the neighbours, whatever the configuration says.
    pub cache: bool,
    /// What the command line says of sharing.
    pub share: ShareFlags,
}

/// What was published, and to how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Published {
    /// Nodes that hold the statement now, this one included.
    pub holders: usize,
    /// Nodes that know that this node has the artifact, this one included; none if it does not listen.
    pub told: usize,
}

/// What goes wrong with a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Keys, configuration, joined networks.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network side.
    #[error(transparent)]
    Start(#[from] StartError),
    /// An address.
    #[error("address {address:?}: {why}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The address of a gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayUrlError),
    /// A network that is not joined.
    #[error("network {0} is not joined here: run `qk join`")]
    NotJoined(NetworkId),
    /// A registry that the network does not serve.
    #[error("network {network} does not serve {registry}: nothing about it is told or asked there")]
    Registry {
        /// The network's name.
        network: String,
        /// The registry's source id.
        registry: String,
    },
    /// Look-ups are to be hidden, and cannot be.
    #[error("{0}, and `hidden_reads` of the configuration asks for it")]
    CannotHide(#[from] CannotHide),
    /// A network file that is not taken.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The secret of a private network.
    #[error("{0}: run `qk join FILE --secret FILE`")]
    Secret(SecretError),
    /// A task of this node ended early.
    #[error("this node is stopping")]
    Stopping,
}

impl Node {
    /// Opens the store and, of a running node, starts the network side of every joined network; a
    /// command's starts when it is first needed. A network that cannot be started is logged and tried
    /// again with [`reload`](Self::reload).
    ///
    /// # Errors
    /// See [`NodeError`]; when none of the networks could be started, why the first one was not.
    pub async fn start(home: Home, options: NodeOptions) -> Result<Self, NodeError> {
        let config = home.config()?;
        let gateways = match options.only.is_empty() {
            true => gateways(&config.gateway)?,
            false => options.only.clone(),
        };
        let gateways = clients(gateways, &config.gateway, home.dir())?;
        let is_cache = options.hold && (options.cache || config.cache.enabled);
        // Beside the configuration, with which a file that is read again is compared.
        let told = Config {
            share: share_of(&config, &options.share, is_cache),
            quota_bytes: options
                .share
                .quota
                .map(|size| size.0)
                .or(config.quota_bytes),
            ..config.clone()
        };
        let observer = home.key("observer")?;
        let joined = home.networks()?;
        let store = store_options(&told, &home.store());
        let manners = Manners::open(&home, told.share, told.pause, options.hold);
        let door = Arc::new(match options.hold {
            true => Door::hold(home.store(), store)?,
            false => Door::brief(home.store(), store),
        });
        // What the user typed is checked once, not network by network.
        addresses(&options.listen)?;
        parents_of(&options, &config)?;
        let node = Self {
            home,
            cache: is_cache.then(|| Cache::new(config.cache.clone())),
            config: RwLock::new(Arc::new(config)),
            door,
            options,
            members: RwLock::default(),
            reloading: tokio::sync::Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            observer,
            manners,
            unannounced: AtomicBool::default(),
            started: Instant::now(),
            traffic: Arc::default(),
            counters: Counters::default(),
            gateways: Mutex::new(gateways),
            moved: Arc::default(),
            reloads: watch::Sender::default(),
        };
        let mut failures = Vec::new();
        for one in joined {
            let member = node.new_member(one)?;
            node.set_members(|members| members.push(member.clone()));
            if node.options.hold
                && let Err(error) = node.up(&member).await
            {
                failures.push((member, error));
            }
        }
        for (member, error) in &failures {
            log_failure(member, error);
        }
        let none_started = failures.len() == node.members().len();
        match failures.into_iter().next() {
            Some((_, first)) if none_started => Err(first),
            _ => Ok(node),
        }
    }

    /// Whether this is a running node, not a command's.
    pub(crate) fn runs(&self) -> bool {
        self.options.hold
    }

    /// What the user configured, as it was read last.
    pub fn config(&self) -> Arc<Config> {
        let config = self.config.read();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes each time that the configuration is read again.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Where this node keeps things.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What this node counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The gateways that artifacts may be had from, without those that lied.
    fn gateways(&self) -> Vec<Client> {
        let gateways = self.gateways.lock();
        gateways.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether gateways are asked in place of nodes.
    fn is_on_web(&self) -> bool {
        !self.options.only.is_empty()
    }

    /// Asks a gateway nothing more until this node starts again.
    fn ban_gateway(&self, url: &GatewayUrl) {
        let mut gateways = self.gateways.lock().unwrap_or_else(PoisonError::into_inner);
        gateways.retain(|gateway| gateway.url() != url);
    }

    /// The store.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// What this node gives and takes, and whether it pauses.
    pub fn manners(&self) -> &Arc<Manners> {
        &self.manners
    }

    /// What is given to others, peers and readers over HTTP alike. Only a node that holds the store
    /// open gives any of it.
    pub(crate) fn given_to_all(&self) -> Option<Arc<dyn Blobs>> {
        let given = self.options.hold.then(|| self.given());
        given.map(|given| given as Arc<dyn Blobs>)
    }

    fn given(&self) -> Arc<Given> {
        Given::new(self.door.clone(), self.manners.clone(), self.own())
    }

    /// The networks that this node takes part in, in the order in which they are asked.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_members(&self, change: impl FnOnce(&mut Vec<Arc<Member>>)) {
        change(&mut self.members.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// One network.
    ///
    /// # Errors
    /// When it is not joined.
    pub fn member(&self, id: NetworkId) -> Result<Arc<Member>, NodeError> {
        let members = self.members();
        members
            .into_iter()
            .find(|member| member.id() == id)
            .ok_or(NodeError::NotJoined(id))
    }

    /// One network, if it serves a registry: nothing of any other registry is put, asked or
    /// announced there.
    ///
    /// # Errors
    /// When it is not joined, or does not serve the registry.
    fn serving(&self, id: NetworkId, registry: &str) -> Result<Arc<Member>, NodeError> {
        let member = self.member(id)?;
        let joined = member.joined();
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(registry) {
            return Err(NodeError::Registry {
                network: manifest.name.clone(),
                registry: registry.to_owned(),
            });
        }
        Ok(member)
    }

    /// The key that this node's owner signs statements with.
    pub fn observer(&self) -> &SigningKey {
        &self.observer
    }

    /// The verifying half of [`observer`](Self::observer).
    pub fn own(&self) -> PublicKey {
        dsse::public_key(&self.observer)
    }

    /// What this node's owner asks for in a network: the stricter of the user's and the manifest's.
    pub fn policy(&self, member: &Member) -> Policy {
        policy_of(&self.config(), member.joined().network.manifest())
    }

    /// What the store holds about a release in a network.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn held(
        &self,
        member: &Arc<Member>,
        release: &Release,
    ) -> Result<Vec<Held>, NodeError> {
        let point = release.location(member.key()).point();
        let network = member.id();
        self.blocking(move |store| Ok(StoreShelf { store, network }.held(point)))
            .await
    }

    /// Releases, at most `limit`, that one of these keys stated something of, as far as is known here.
    pub(crate) async fn releases_stated_by(
        &self,
        member: &Member,
        keys: BTreeSet<PublicKey>,
        limit: usize,
    ) -> Result<Vec<Release>, NodeError> {
        let network = member.id();
        self.blocking(move |store| {
            let by_them =
                |entry: &Entry| entry.network == network && keys.contains(&entry.observer);
            let shelf = StoreShelf { store, network };
            // All statements at a point are about one release.
            let release = |point| Some(shelf.held(point).first()?.statement.key().release());
            let points = store.points_of(by_them, limit)?;
            Ok(points.into_iter().filter_map(release).collect())
        })
        .await
    }

    /// Keeps statements that were seen, so that they need not be asked for again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn keep(
        &self,
        member: &Arc<Member>,
        statements: Vec<Arc<Statement>>,
    ) -> Result<(), NodeError> {
        let member = member.clone();
        self.blocking(move |store| keep(store, &member, &statements))
            .await
    }

    /// Takes a freshly built artifact and one's own statement about it into the store, durably, and
    /// tells the network. Without a network side only the first happens.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn publish(
        &self,
        archive: Option<PathBuf>,
        statement: Statement,
    ) -> Result<Published, NodeError> {
        let member = self.serving(statement.network(), &statement.key().registry)?;
        let point = statement.key().release().location(member.key()).point();
        let root = statement
            .observation()
            .map(|observation| observation.subject.root);
        let statement = Arc::new(statement);
        let kept = statement.clone();
        let now = unix_now();
        let here = self
            .blocking(move |store| {
                if let (Some(archive), Some(root)) = (&archive, root) {
                    store.import(archive, root, Keep::Durable, now)?;
                }
                store.append(vec![record(&kept, point, now)])?;
                // Only what is here is announced: a statement may come without its artifact.
                Ok(root.filter(|root| store.has_blob(root)))
            })
            .await?;
        // What is here stays here, whether others can be told or not.
        if let Err(error) = self.up(&member).await {
            log_failure(&member, &error);
        }
        if member.net().is_none() {
            return Ok(Published {
                holders: 1,
                told: 0,
            });
        }
        Ok(self
            .tell(&member, point, &[statement], here.as_slice())
            .await)
    }

    async fn tell(
        &self,
        member: &Arc<Member>,
        point: Point,
        statements: &[Arc<Statement>],
        roots: &[Root],
    ) -> Published {
        let nearest = member.find(point).await.answered;
        let holders = member.put(point, statements, &nearest).await;
        Published {
            holders: holders + 1,
            told: self.announce_roots(member, point, roots, &nearest).await,
        }
    }

    /// Tells others what was fetched, if this is a running node whose owner shares it.
    fn share_fetched(&self, member: &Arc<Member>, point: Point, root: Root) {
        if !self.options.hold || !self.manners.shares_fetched() {
            return;
        }
        if self.manners.is_paused() {
            self.unannounced.store(true, Ordering::Relaxed);
        }
        if !self.manners.gives() {
            return;
        }
        let (member, announces) = (member.clone(), self.manners.announces());
        tokio::spawn(async move {
            let nearest = match announces {
                true => member.find(point).await.answered,
                false => Vec::new(),
            };
            member.announce(point, &[root], &nearest).await;
        });
    }

    /// Tells others that these roots are here, as far as the owner wants it; how many know then.
    async fn announce_roots(
        &self,
        member: &Arc<Member>,
        point: Point,
        roots: &[Root],
        nearest: &[qk_protocol::message::Contact],
    ) -> usize {
        if self.manners.is_paused() {
            self.unannounced.store(true, Ordering::Relaxed);
        }
        // Who announces nothing still says so of itself when it is asked.
        let nearest = if self.manners.announces() {
            nearest
        } else {
            &[]
        };
        match roots {
            [] => 0,
            _ if !self.manners.gives() => 0,
            _ => member.announce(point, roots, nearest).await,
        }
    }

    /// Takes a newer version of a network, and keeps it.
    ///
    /// # Errors
    /// When it does not follow what is known, or cannot be written.
    pub fn advance(&self, id: NetworkId, file: NetworkFile) -> Result<(), NodeError> {
        let joined = self.member(id)?.advance(file)?;
        Ok(self.home.keep_network(&joined)?)
    }

    /// Closes all connections.
    pub async fn shutdown(&self) {
        for member in self.members() {
            if let Some(net) = member.net() {
                net.shutdown().await;
            }
        }
        self.manners.close();
    }

    /// Does something with the store, off the reactor.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let door = self.door.clone();
        let done = tokio::task::spawn_blocking(move || door.with(work)).await;
        Ok(done.map_err(|_| NodeError::Stopping)??)
    }
}

/// Keeps statements that were seen: only what a holder would take too, as strangers' statements are
/// not worth the disk here.
fn keep(store: &Store, member: &Member, statements: &[Arc<Statement>]) -> Result<(), StoreError> {
    let (joined, now) = (member.joined(), unix_now());
    let rules = Rules {
        network: &joined.network,
        key: member.key(),
    };
    let counted = statements
        .iter()
        .filter(|one| joined.network.principal(one.observer()).is_some());
    let own = counted.filter(|one| rules.admit(&[], one, now).is_ok());
    let records = own.map(|one| record(one, rules.point(one), now)).collect();
    store.append(records).map(drop)
}

/// How a node shares. A cache is there for others: it gives what it fetched, and its neighbours are
/// not to wait because its owner named no address to listen on.
fn share_of(config: &Config, flags: &ShareFlags, is_cache: bool) -> ShareConfig {
    let flags = ShareFlags {
        laptop: flags.laptop && !is_cache,
        ..flags.clone()
    };
    let mut share = config.share.clone().with(&flags);
    if is_cache && !share.leech {
        share.fetched = Some(true);
    }
    share
}

/// What a user with this configuration asks for in a network: the stricter of both policies.
pub fn policy_of(config: &Config, manifest: &Manifest) -> Policy {
    let networks = manifest.policy.with_opinion();
    match &config.policy {
        Some(own) => networks.stricter(own),
        None => networks,
    }
}

/// The store's options as the user configured them, for a store in `dir`.
pub fn store_options(config: &Config, dir: &Path) -> Options {
    let defaults = Options::default();
    let small_disk = || disk_bytes(dir).map_or(u64::MAX, |disk| disk / 100 * QUOTA_PERCENT);
    Options {
        quota_bytes: config
            .quota_bytes
            .unwrap_or_else(|| defaults.quota_bytes.min(small_disk())),
        free_floor_bytes: config.free_floor_bytes.unwrap_or(defaults.free_floor_bytes),
        ..defaults
    }
}

/// Bytes of the disk that `dir` lies on, or will.
fn disk_bytes(dir: &Path) -> Option<u64> {
    let there = dir
        .ancestors()
        .find_map(|dir| rustix::fs::statvfs(dir).ok())?;
    Some(there.f_blocks.saturating_mul(there.f_frsize))
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<Multiaddr>, NodeError> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error: libp2p::multiaddr::Error| NodeError::Address {
                address: text.clone(),
                why: error.to_string(),
            })
    };
    texts.into_iter().map(parse).collect()
}

/// Nodes that the user named as parents.
fn parents_of(options: &NodeOptions, config: &Config) -> Result<Vec<Contact>, NodeError> {
    let texts = options.parent.iter().chain(&config.parent);
    let parse = |text: &String| {
        let wrong = |why: String| NodeError::Address {
            address: text.clone(),
            why: format!(
                "no parent as /ip4/10.0.0.5/tcp/4433/p2p/12D3KooW… or /p2p/12D3KooW…: {why}"
            ),
        };
        let address: Multiaddr = text.parse().map_err(|error| wrong(format!("{error}")))?;
        kin::parent(&address).map_err(|error| wrong(error.to_string()))
    };
    texts.map(parse).collect()
}

fn log_failure(member: &Member, error: &NodeError) {
    let joined = member.joined();
    let network = &joined.network.manifest().name;
    tracing::error!(network, %error, "this network is not taken part in for now, and tried again");
}
