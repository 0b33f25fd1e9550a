//! What a running node does by itself: stay connected, stay up to date, stay known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use qk_protocol::decide::Held;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{NetworkId, Point, Root};
use qk_protocol::key::Linker;
use qk_protocol::manifest::NetworkFile;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use qk_protocol::upkeep::{ANNOUNCE_SECONDS, REFRESH_SECONDS, put_again};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::member::{Member, unix_now};
use super::shelf::StoreShelf;
use super::{Node, NodeError};
use crate::build::{TOOLCHAINS_QUOTA_BYTES, Toolchains};
use crate::control::Reloaded;
use crate::home::{HomeError, Joined};
use crate::store::Entry;

/// How often newer manifests and timestamps are asked for.
const REFRESH_EVERY: Duration = Duration::from_secs(REFRESH_SECONDS);
/// How often others are told again what this node has, which they forget after a day.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(ANNOUNCE_SECONDS);
/// How often nodes that came are given what they lack.
const REPAIR_EVERY: Duration = Duration::from_secs(3600);
/// How long after the start for the first time.
const REPAIR_AFTER: Duration = Duration::from_secs(60);
/// How often the store is cleaned up and scrubbed.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
/// How old a timestamp gets before the node beside its key renews it.
pub(super) const RENEW_AFTER_SECONDS: u64 = 24 * 3600;
/// Points of its own that a node looks through for what to announce.
const OWN_POINTS_MAX: usize = 100_000;

impl Node {
    /// Runs until it is dropped.
    pub async fn maintain(&self) {
        let (ready, settled) = oneshot::channel();
        let manners = self.manners().clone();
        tokio::select! {
            () = manners.watch(|| { let _ = ready.send(()); }) => {}
            () = self.maintain_after(settled) => {}
        }
    }

    /// As [`maintain`](Self::maintain), once it is known whether anything pauses this node.
    async fn maintain_after(&self, settled: oneshot::Receiver<()>) {
        // Told or dropped, both will do.
        let _ = settled.await;
        tokio::join!(self.keep_up(), self.serve_cache());
    }

    async fn keep_up(&self) {
        let mut pauses = self.manners().changes();
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
        // Who has just begun knows nobody yet.
        let mut repair = tokio::time::interval_at(Instant::now() + REPAIR_AFTER, REPAIR_EVERY);
        let mut clean = tokio::time::interval(CLEAN_EVERY);
        loop {
            let done = tokio::select! {
                _ = refresh.tick() => self.refresh().await,
                _ = announce.tick() => self.announce_due().await,
                _ = repair.tick() => self.repair().await,
                _ = clean.tick() => self.clean().await,
                _ = pauses.changed() => self.make_up().await,
                () = self.moved.notified() => self.announce_due().await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "maintenance failed and will be tried again");
            }
        }
    }

    /// Does after a pause what was left undone in it.
    async fn make_up(&self) -> Result<(), NodeError> {
        if !self.manners().is_paused() && self.unannounced.swap(false, Ordering::Relaxed) {
            self.announce_due().await?;
            self.repair().await?;
        }
        Ok(())
    }

    /// Keeps the store and the toolchains within their quotas, and looks for damage; not in a pause.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn clean(&self) -> Result<(), NodeError> {
        for member in self.members() {
            member.forget_hints();
        }
        if self.manners().is_paused() {
            return Ok(());
        }
        let cleaned = self.store_gc().await?;
        for evicted in &cleaned.artifacts.evicted {
            tracing::info!(root = %evicted.root, bytes = evicted.bytes, "evicted as the quota asks");
        }
        if let Some(damage) = self.blocking(|store| store.scrub()).await? {
            tracing::error!(%damage, "the store was damaged, and mended as far as possible");
        }
        self.clean_toolchains().await
    }

    /// Keeps the toolchains within their quota.
    async fn clean_toolchains(&self) -> Result<(), NodeError> {
        let mut named = BTreeSet::new();
        for member in self.members() {
            let joined = member.joined();
            let linkers = joined
                .network
                .manifest()
                .builds
                .iter()
                .map(|build| &build.linker);
            named.extend(linkers.filter_map(|linker| match linker {
                Linker::Zig { wheel, .. } => Some(*wheel),
                Linker::System { .. } => None,
            }));
        }
        let toolchains = Toolchains::new(self.home().toolchains());
        let quota_bytes = self.config().toolchains_quota_bytes;
        let quota_bytes = quota_bytes.unwrap_or(TOOLCHAINS_QUOTA_BYTES);
        let clean = tokio::task::spawn_blocking(move || toolchains.gc(quota_bytes, &named));
        let removed = clean.await.map_err(|_| NodeError::Stopping)?;
        let removed = removed.map_err(|error| HomeError::Io {
            path: self.home().toolchains().to_owned(),
            error,
        })?;
        for one in removed {
            tracing::info!(
                toolchain = one.name,
                bytes = one.bytes,
                "removed as the toolchains' quota asks"
            );
        }
        Ok(())
    }

    /// Renews timestamps whose key is here, and takes newer manifests from others.
    ///
    /// # Errors
    /// For the first network for which something cannot be read or kept; the others are looked after.
    pub async fn refresh(&self) -> Result<(), NodeError> {
        // The owner may have signed a newer version, or joined a network, with another command: that
        // is known before anything is renewed. One bad file does not keep the others from it.
        let mut done = self.reload().await.map(drop);
        for member in self.members() {
            let renewed = self.renew(&member);
            let caught_up = self.catch_up(&member).await;
            done = done.and(renewed).and(caught_up);
        }
        done
    }

    /// Takes a newer manifest or timestamp from others, if they have one, and keeps it.
    pub(super) async fn catch_up(&self, member: &Arc<Member>) -> Result<(), NodeError> {
        let version = member.joined().network.manifest().version;
        if let Some(newer) = member.refresh().await {
            self.home().keep_network(&newer)?;
            let manifest = newer.network.manifest();
            tracing::info!(network = %manifest.name, version = manifest.version, "took a newer manifest or timestamp");
            if manifest.version > version {
                for change in newer.network.changes_since(version) {
                    tracing::info!(network = %manifest.name, "it says now: {}", change.text);
                }
            }
        }
        Ok(())
    }

    fn renew(&self, member: &Arc<Member>) -> Result<(), NodeError> {
        let joined = member.joined();
        let network = &joined.network;
        if unix_now().since(network.timestamp().issued) < RENEW_AFTER_SECONDS {
            return Ok(());
        }
        // A key that the manifest names no longer is not one to renew with.
        let keys = self.home().keys_for("timestamp", network.id())?;
        let named = |key: &SigningKey| public_key(key) == network.manifest().timestamp;
        let Some(key) = keys.into_iter().find(named) else {
            return Ok(());
        };
        let renewed: NetworkFile = network.renew(&key, unix_now())?.file().clone();
        self.advance(member.id(), renewed)?;
        tracing::info!(network = %network.manifest().name, "renewed the timestamp");
        Ok(())
    }

    /// Looks again at the networks on disk: takes part in new ones and in those that could not be
    /// started before, takes newer versions, leaves those that are gone, asks in the order that the
    /// user gave.
    ///
    /// # Errors
    /// When a file cannot be read, or for the first network that cannot be started; the others are as
    /// on disk.
    pub async fn reload(&self) -> Result<Reloaded, NodeError> {
        let _one_at_a_time = self.reloading.lock().await;
        let on_disk = self.home().networks()?;
        let mut reloaded = Reloaded {
            left: self.leave_all_but(&on_disk).await,
            ..Reloaded::default()
        };
        let mut failure = None;
        for joined in on_disk {
            let id = joined.network.id();
            if let Ok(member) = self.member(id) {
                member.take_over(joined.place, joined.accepted);
            }
            match self.member(id) {
                Ok(member) if member.joined().network == joined.network => {}
                Ok(member) => match member.advance(joined.network.file().clone()) {
                    Ok(_) => reloaded.advanced.push(id),
                    // What others told is newer than the file; it is kept before it is taken next.
                    Err(error) => {
                        tracing::debug!(network = %id, %error, "the file on disk was not taken")
                    }
                },
                Err(_) => {
                    let member = self.new_member(joined)?;
                    self.set_members(|members| members.push(member));
                    reloaded.joined.push(id);
                }
            }
        }
        self.set_members(|members| members.sort_by_key(|member| member.joined().rank()));
        if self.runs() {
            for member in self.members() {
                if let Err(error) = self.up(&member).await {
                    super::log_failure(&member, &error);
                    failure = failure.or(Some(error));
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(reloaded)
    }

    async fn leave_all_but(&self, on_disk: &[Joined]) -> Vec<NetworkId> {
        let stays =
            |member: &Arc<Member>| on_disk.iter().any(|one| one.network.id() == member.id());
        let leaves: Vec<Arc<Member>> = self
            .members()
            .into_iter()
            .filter(|member| !stays(member))
            .collect();
        self.set_members(|members| members.retain(stays));
        for member in &leaves {
            if let Some(net) = member.net() {
                net.shutdown().await;
            }
        }
        leaves.iter().map(|member| member.id()).collect()
    }

    /// Puts this node's own statements again, and tells who it is that has their artifacts and, if
    /// its owner shares them, those that were fetched; gives nodes that came what they lack of others'
    /// statements. Not in a pause.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn announce(&self) -> Result<(), NodeError> {
        self.announce_those(|_, _| true).await?;
        self.repair().await
    }

    /// As [`announce`](Self::announce), but of the statements only new ones and those whose turn it is:
    /// others hold them, and each has its turn once a week.
    async fn announce_due(&self) -> Result<(), NodeError> {
        let now = unix_now();
        self.announce_those(move |point, stored| put_again(point, stored, now))
            .await
    }

    async fn announce_those(
        &self,
        due: impl Fn(&Point, UnixTime) -> bool + Send + Sync + Copy + 'static,
    ) -> Result<(), NodeError> {
        if self.manners().is_paused() {
            self.unannounced.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let mut announced = BTreeSet::new();
        for member in self.members() {
            if let Err(error) = self.up(&member).await {
                super::log_failure(&member, &error);
                continue;
            }
            for (point, (statements, roots)) in self.to_announce(&member, due).await? {
                if statements.is_empty() {
                    // Those that are known will do for hints: whoever looks there asks several.
                    let nearest = member.closest(point).await;
                    self.announce_roots(&member, point, &roots, &nearest).await;
                } else {
                    self.tell(&member, point, &statements, &roots).await;
                }
                announced.extend(roots);
            }
        }
        self.traffic.announced(announced.len());
        Ok(())
    }

    /// Own statements by point, and which artifacts are here that others are told of.
    async fn to_announce(
        &self,
        member: &Arc<Member>,
        due: impl Fn(&Point, UnixTime) -> bool + Send + 'static,
    ) -> Result<BTreeMap<Point, (Vec<Arc<Statement>>, Vec<Root>)>, NodeError> {
        let (network, own, joined) = (member.id(), self.own(), member.joined());
        let shares_fetched = self.manners().shares_fetched();
        self.blocking(move |store| {
            let shelf = StoreShelf { store, network };
            // By what the index knows: of a full store hardly any statement is read and verified.
            let has = |root: Option<Root>| root.is_some_and(|root| store.has_blob(&root));
            let wants = |entry: &Entry| {
                let is_own = entry.observer == own;
                entry.network == network
                    && ((is_own && due(&entry.point, entry.stored))
                        || ((is_own || shares_fetched) && has(entry.root)))
            };
            let mut by_point = BTreeMap::new();
            for point in store.points_of(wants, OWN_POINTS_MAX)? {
                let all = shelf
                    .held(point)
                    .into_iter()
                    // The manifest may have listed the registry once, and no longer.
                    .filter(|held| {
                        let registries = &joined.network.manifest().registries;
                        registries.contains(&held.statement.key().registry)
                    });
                let (mut statements, mut roots) = (Vec::new(), BTreeSet::new());
                for Held { statement, stored } in all {
                    let is_own = statement.observer() == own;
                    if is_own || shares_fetched {
                        let observed = statement.observation().map(|one| one.subject.root);
                        roots.extend(observed.filter(|root| has(Some(*root))));
                    }
                    if is_own && due(&point, stored) {
                        statements.push(statement);
                    }
                }
                if !statements.is_empty() || !roots.is_empty() {
                    by_point.insert(point, (statements, roots.into_iter().collect()));
                }
            }
            Ok(by_point)
        })
        .await
    }
}
