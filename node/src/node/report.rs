//! What a node says of itself and of what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use qk_protocol::archive;
use qk_protocol::decide::Held;
use qk_protocol::hash::{Root, StatementId};
use qk_protocol::key::ArtifactKey;
use qk_protocol::time::UnixTime;

use super::fetch::{FetchError, FetchSpec, Fetched, OnEvent};
use super::member::{Found, Member, unix_now};
use super::{LockedSpec, Node, NodeError};
use crate::control::{
    Artifact, Cleaned, ConnectionReport, Counters, FetchReport, FindReport, FindSpec,
    NetworkStatus, PeerReport, ReachStatus, Status, StoreStatus,
};
use crate::home::HomeError;
use crate::manners::{Manners, PauseReason, Whose};
use crate::net::{self, Multiaddr, PeerInfo, Reach, Reachability};
use crate::store::{BlobInfo, FsckReport};

impl Node {
    /// What this node is doing.
    ///
    /// # Errors
    /// When the store or the node's key cannot be read.
    pub async fn status(&self) -> Result<Status, NodeError> {
        let mut networks = Vec::new();
        for member in self.members() {
            networks.push(network_status(&member).await);
        }
        let identity = net::identity_of(self.home.key("node")?.to_bytes())?;
        Ok(Status {
            running: self.options.hold,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            home: self.home.dir().to_owned(),
            peer: identity.public().to_peer_id().to_string(),
            observer: self.own(),
            uptime_seconds: self.started.elapsed().as_secs(),
            peers: networks.iter().map(|network| network.peers).sum(),
            networks,
            store: self.store_status().await?,
            share: self.manners.status(),
            paused: self.manners.reasons(),
            counters: Counters {
                sent_bytes: self.counters().sent_bytes(),
                received_bytes: self.counters().received_bytes(),
                requests_answered: self.counters().index_answered(),
                blocks_answered: self.counters().blocks_given(),
                readers: self.traffic.readers(),
            },
            downloads: self.traffic.downloads(),
            announced: self.traffic.last_announced(),
        })
    }

    pub(crate) async fn store_status(&self) -> Result<StoreStatus, NodeError> {
        let quota_bytes = self.door.quota_bytes();
        self.blocking(move |store| {
            let amount = store.amount()?;
            Ok(StoreStatus {
                dir: store.dir().to_owned(),
                artifacts: amount.artifacts,
                artifact_bytes: amount.bytes,
                quota_bytes,
                counts: store.counts()?,
            })
        })
        .await
    }

    /// Pauses until then, or until [`resume`](Self::resume), also through a restart; says why this
    /// node pauses now.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn pause(&self, until: Option<UnixTime>) -> Result<Vec<PauseReason>, NodeError> {
        self.with_manners(move |manners| manners.pause(until)).await
    }

    /// Ends a pause that was asked for; says why this node pauses still.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn resume(&self) -> Result<Vec<PauseReason>, NodeError> {
        self.with_manners(|manners| manners.resume()).await
    }

    async fn with_manners(
        &self,
        work: impl FnOnce(&Manners) -> io::Result<()> + Send + 'static,
    ) -> Result<Vec<PauseReason>, NodeError> {
        let manners = self.manners.clone();
        let done = tokio::task::spawn_blocking(move || work(&manners)).await;
        done.map_err(|_| NodeError::Stopping)?
            .map_err(|error| HomeError::Io {
                path: self.home.dir().to_owned(),
                error,
            })?;
        Ok(self.manners.reasons())
    }

    /// All connected peers, network by network.
    ///
    /// # Errors
    /// None at present: a network side that has ended has no peers.
    pub async fn peers(&self) -> Result<Vec<PeerReport>, NodeError> {
        let mut reports = Vec::new();
        for member in self.members() {
            let Some(net) = member.net() else {
                continue;
            };
            let name = member.joined().network.manifest().name.clone();
            let peers = net.peers().await.unwrap_or_default();
            reports.extend(
                peers
                    .into_iter()
                    .map(|peer| peer_report(name.clone(), peer)),
            );
        }
        Ok(reports)
    }

    /// As [`fetch`](Self::fetch), with a report that can be written down.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch_report(
        &self,
        spec: &FetchSpec,
        on_event: OnEvent<'_>,
    ) -> Result<FetchReport, FetchError> {
        let fetched = self.fetch(spec, on_event).await?;
        self.reported(fetched)
    }

    /// As [`fetch_report`](Self::fetch_report), on behalf of others: within what the owner gives them, and
    /// without the owner's own word.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub(crate) async fn fetch_for_others(
        &self,
        spec: &FetchSpec,
    ) -> Result<FetchReport, FetchError> {
        let watched = self.traffic.watch(&spec.wanted.release);
        let on_event = |event| watched.see(&event);
        let fetched = self.fetch_whose(spec, Whose::Others, &on_event).await?;
        self.reported(fetched)
    }

    fn reported(&self, fetched: Fetched) -> Result<FetchReport, FetchError> {
        let member = self.member(fetched.network)?;
        let name = member.joined().network.manifest().name.clone();
        Ok(FetchReport::new(fetched, name))
    }

    /// As [`fetch_locked`](Self::fetch_locked), with a report that can be written down.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch_locked_report(
        &self,
        spec: &LockedSpec,
        on_event: OnEvent<'_>,
    ) -> Result<FetchReport, FetchError> {
        let fetched = self.fetch_locked(spec, on_event).await?;
        let member = self.member(fetched.network)?;
        let name = member.joined().network.manifest().name.clone();
        Ok(FetchReport::new(fetched, name))
    }

    /// Everything that is known about a release. What the network knows of its principals'
    /// statements is kept.
    ///
    /// # Errors
    /// When the network is not joined, does not serve the registry, or the store fails.
    pub async fn find(&self, spec: &FindSpec) -> Result<FindReport, NodeError> {
        let member = self.serving(spec.network, &spec.release.registry)?;
        let held = self.held(&member, &spec.release).await?;
        let mut known: BTreeMap<StatementId, Held> = held
            .into_iter()
            .map(|held| (held.statement.id(), held))
            .collect();
        let mut found = Found::default();
        if !spec.offline {
            self.up(&member).await?;
        }
        if !spec.offline && (member.net().is_some() || member.is_on_web()) {
            found = self.look_up(&member, &spec.release).await?;
            self.keep(&member, found.statements.clone()).await?;
        }
        for statement in found.statements {
            known.entry(statement.id()).or_insert(Held {
                statement,
                stored: unix_now(),
            });
        }
        let mut providers: BTreeMap<Root, BTreeSet<_>> = BTreeMap::new();
        for provider in found.providers {
            providers
                .entry(provider.root)
                .or_default()
                .insert(provider.contact.node);
        }
        Ok(FindReport {
            held: known.into_values().collect(),
            providers: providers
                .into_iter()
                .map(|(root, nodes)| (root, nodes.len()))
                .collect(),
            answered: found.answered.len(),
            known: found.known,
        })
    }

    /// All artifacts in the store, sorted by root.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn store_ls(&self) -> Result<Vec<Artifact>, NodeError> {
        self.blocking(|store| {
            let artifact = |blob: BlobInfo| {
                let named = executables_of(&store.blob_path(&blob.root));
                let (key, executables) = named
                    .map_or_else(Default::default, |(key, executables)| {
                        (Some(key), executables)
                    });
                Artifact {
                    key,
                    executables,
                    blob,
                }
            };
            Ok(store.ls()?.into_iter().map(artifact).collect())
        })
        .await
    }

    /// Evicts artifacts as the quota asks, and compacts the journal.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_gc(&self) -> Result<Cleaned, NodeError> {
        self.blocking(|store| {
            Ok(Cleaned {
                artifacts: store.gc(unix_now())?,
                journal: store.compact()?,
            })
        })
        .await
    }

    /// Reads everything in the store and names what is damaged.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn store_fsck(&self) -> Result<FsckReport, NodeError> {
        self.blocking(|store| store.fsck()).await
    }

    /// Keeps a root from being evicted; says whether it was not pinned before.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_pin(&self, root: Root) -> Result<bool, NodeError> {
        self.blocking(move |store| store.pin(root)).await
    }

    /// Takes a pin back; says whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_unpin(&self, root: Root) -> Result<bool, NodeError> {
        self.blocking(move |store| store.unpin(root)).await
    }
}

async fn network_status(member: &Arc<Member>) -> NetworkStatus {
    let joined = member.joined();
    let manifest = joined.network.manifest();
    let mut status = NetworkStatus {
        name: manifest.name.clone(),
        id: member.id(),
        version: manifest.version,
        expires: joined.network.timestamp().expires,
        fresh: joined.network.fresh(unix_now()),
        ends_soon: joined.network.ends_soon(unix_now()),
        news: joined.news(),
        online: false,
        listening: Vec::new(),
        peers: 0,
        contacts: 0,
        private: manifest.secret_id.is_some(),
        sent_bytes: member.sent_bytes(),
        reach: ReachStatus::default(),
    };
    if let Some(net) = member.net()
        && let (Ok(listening), Ok(peers), Ok(contacts)) = (
            net.listen_addrs().await,
            net.peers().await,
            net.contacts().await,
        )
    {
        status.online = true;
        status.listening = listening.iter().map(ToString::to_string).collect();
        status.peers = peers.len();
        status.contacts = contacts.len();
        status.reach = reach_status(net.reach().await.unwrap_or_default());
    }
    status
}

fn reach_status(reach: Reach) -> ReachStatus {
    let texts = |addrs: &[Multiaddr]| addrs.iter().map(ToString::to_string).collect();
    ReachStatus {
        reachability: match reach.reachability {
            Reachability::Public => "public",
            Reachability::Private => "private",
            Reachability::Unknown => "unknown",
        }
        .to_owned(),
        external: texts(&reach.external),
        relayed: texts(&reach.relayed),
    }
}

fn peer_report(network: String, peer: PeerInfo) -> PeerReport {
    let connections = peer.connections.into_iter().map(|one| ConnectionReport {
        address: one.address.to_string(),
        transport: one.transport.to_owned(),
        dialled: one.dialled,
    });
    PeerReport {
        network,
        peer: peer.peer.to_string(),
        agent: peer.agent,
        server: peer.server,
        rtt_seconds: peer.rtt.map(|rtt| rtt.as_secs_f64()),
        connected_seconds: peer.connected_for.as_secs_f64(),
        connections: connections.collect(),
    }
}

/// The key and the names of the executables in an archive's first entry, which is part of what the root
/// names.
pub(super) fn executables_of(archive: &Path) -> Option<(ArtifactKey, BTreeSet<String>)> {
    let file = std::fs::File::open(archive).ok()?;
    let size = file.metadata().ok()?.len();
    let reader = archive::Reader::new(file, size, archive::Limits::default()).ok()?;
    let contents = reader.contents();
    let names = contents.executables.keys();
    let names = names.filter_map(|path| path.strip_prefix(archive::EXECUTABLES_PREFIX));
    Some((contents.key.clone(), names.map(str::to_owned).collect()))
}
