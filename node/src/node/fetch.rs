//! Carries out a fetch: from the store if it is there and proven, otherwise from the network.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qk_protocol::blocks::{BLOCK_BYTES, Blob, RangeError};
use qk_protocol::candidate::{Candidate, Wanted};
use qk_protocol::decide::{Decision, Held, Trusted};
use qk_protocol::fetch::{Decided, Fetch, Want};
use qk_protocol::hash::{NetworkId, PublicKey, Root};
use qk_protocol::manifest::Change;
use qk_protocol::message::Contact;
use qk_protocol::policy::Policy;
use qk_protocol::statement::{Statement, Subject};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::here::{Archive, INSTALL_TIME, archive};
use super::locked::LockedError;
use super::looking::{Looking, Parents};
use super::maintain::RENEW_AFTER_SECONDS;
use super::member::{Member, unix_now};
use super::{Node, NodeError, keep};
use crate::blocks::behaviour::Lanes;
use crate::blocks::download::{self, DownloadError, DownloadOptions, Progress};
use crate::blocks::part::{Finished, Part, PartError};
use crate::blocks::source::Source;
use crate::manners::Whose;
use crate::net::{AskError, PeerId};
use crate::store::{Keep, Store};

/// Providers that wait to be asked.
const PROVIDERS_PENDING_MAX: usize = 64;

/// Providers without a connection that an error names.
const UNREACHED_MAX: usize = 3;

/// How often a download looks whether another one of the same root has ended.
const PART_POLL: Duration = Duration::from_millis(100);

/// How long a command waits for a cache to answer on the LAN, in a network that may have one.
pub(super) const LAN_PATIENCE: Duration = Duration::from_millis(300);
/// The same where nobody else answered.
const LAN_PATIENCE_ALONE: Duration = Duration::from_millis(2500);
/// What is to be fetched, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchSpec {
    /// The artifact that is wanted.
    pub wanted: Wanted,
    /// Ask the network even if the store has a proven artifact.
    pub refresh: bool,
    /// Use only what is here.
    pub offline: bool,
    /// A policy of the project that asks; it can only make the owner's stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The only network that is asked; all that are joined, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
}

/// A trusted artifact in the store.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Which network vouches for it.
    pub network: NetworkId,
    /// What was decided, and why.
    pub decided: Decided,
    /// What is trusted.
    pub trusted: Trusted,
    /// The archive.
    pub archive: PathBuf,
    /// Where it came from.
    pub from: From,
    /// Bytes that were fetched, without those that were here from an earlier attempt.
    pub fetched_bytes: u64,
    /// Who gave how much of them, whoever gave most first.
    pub providers: Vec<Share>,
    /// Blocks of 16 KiB that were verified, those from an earlier attempt included.
    pub blocks_verified: u64,
    /// How long each stage took.
    pub stages: Vec<(&'static str, Duration)>,
}

/// What one provider gave of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Share {
    /// Its peer id, or the address of a gateway.
    pub node: String,
    /// Bytes of the artifact that it sent and that were verified.
    pub bytes: u64,
}

/// Where an artifact came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// It was here.
    Store,
    /// Nodes gave it.
    Network,
}

/// What happens meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum FetchEvent {
    /// A network is asked.
    Asking {
        /// Its name.
        network: String,
    },
    /// The artifact is trusted and its transfer begins; this much of it is here.
    Begin {
        /// Bytes that are here.
        here: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Another process, or another fetch of this node, is downloading the artifact; this one waits.
    Waiting,
    /// Blocks were verified and written.
    Verified {
        /// Bytes of them.
        bytes: u64,
    },
    /// A provider failed.
    ProviderFailed {
        /// Which one.
        provider: String,
        /// Why.
        why: String,
        /// Whether it is refused from now on.
        banned: bool,
    },
}

/// Why a fetch came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No network is joined.
    #[error("no network is joined")]
    NoNetwork,
    /// No joined network serves the registry.
    #[error("no joined network serves {registry}: nothing about it was asked")]
    Registry {
        /// The registry's source id.
        registry: String,
    },
    /// No joined network builds for the targets.
    #[error("no joined network builds for {}", targets.join(", "))]
    Target {
        /// The targets asked for.
        targets: Vec<String>,
    },
    /// It is not trusted.
    #[error("network {network} does not vouch for it")]
    NotTrusted {
        /// The network that was asked last.
        network: String,
        /// What was decided, and why.
        decided: Box<Decided>,
    },
    /// Its manifest widened what is trusted, and the user wants to say yes to that first.
    #[error(
        "network {network} changed, and `confirm_changes` of the configuration says that this counts only once it is accepted: {}",
        texts(changes)
    )]
    NotAccepted {
        /// The network.
        network: String,
        /// What was widened.
        changes: Vec<Change>,
    },
    /// Nobody answered.
    #[error("none of the {known} known nodes of network {network} answered")]
    Silent {
        /// The network.
        network: String,
        /// Nodes that were asked.
        known: usize,
    },
    /// It is trusted, but nobody gives it.
    #[error(
        "{root} is trusted, but could not be had: {error}{}",
        listed(unreached)
    )]
    Download {
        /// The root.
        root: Root,
        /// Why.
        error: DownloadError,
        /// Providers to whom there was no connection, and why.
        unreached: Vec<String>,
    },
    /// It is trusted, but the month's bytes are used up.
    #[error(
        "{root} is trusted, but `share.download_month` of the configuration is used up and `share.download_own` says that this holds for one's own fetches, too"
    )]
    Spent {
        /// The root.
        root: Root,
    },
    /// It is trusted, but is not here, and nobody is to be asked.
    #[error("{0} is trusted, but is not here, and the network is not to be used")]
    NotHere(Root),
    /// It cannot be written here.
    #[error(transparent)]
    Part(#[from] PartError),
    /// No blob can have that size.
    #[error(transparent)]
    Size(#[from] RangeError),
    /// A lock that does not lead to it.
    #[error(transparent)]
    Locked(#[from] LockedError),
    /// The node itself.
    #[error(transparent)]
    Node(#[from] NodeError),
}

pub(super) type OnEvent<'a> = &'a (dyn Fn(FetchEvent) + Send + Sync);

/// What is fetched for whom, and who is told of it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) spec: &'a FetchSpec,
    pub(super) whose: Whose,
    pub(super) on_event: OnEvent<'a>,
}

impl Node {
    /// Fetches an artifact that the policy trusts into the store. Networks are asked in order; the
    /// next one only if the one before knows too little.
    ///
    /// # Errors
    /// See [`FetchError`]. What was fetched before a failure stays for the next attempt.
    pub async fn fetch(
        &self,
        spec: &FetchSpec,
        on_event: OnEvent<'_>,
    ) -> Result<Fetched, FetchError> {
        let watched = self.traffic.watch(&spec.wanted.release);
        let seen = |event: FetchEvent| {
            watched.see(&event);
            on_event(event);
        };
        let on_event: OnEvent<'_> = &seen;
        self.fetch_whose(spec, Whose::Owner, on_event).await
    }

    pub(super) async fn fetch_whose(
        &self,
        spec: &FetchSpec,
        whose: Whose,
        on_event: OnEvent<'_>,
    ) -> Result<Fetched, FetchError> {
        let asked = Asked {
            spec,
            whose,
            on_event,
        };
        let fetched = self.fetch_in_order(asked).await;
        self.counters().fetch_ended(&fetched);
        fetched
    }

    async fn fetch_in_order(&self, asked: Asked<'_>) -> Result<Fetched, FetchError> {
        let spec = asked.spec;
        let registry = &spec.wanted.release.registry;
        let mut last = FetchError::NoNetwork;
        let mut served = false;
        for member in self.members() {
            let joined = member.joined();
            let manifest = joined.network.manifest();
            if spec.network.is_some_and(|only| only != member.id()) {
                continue;
            }
            if !manifest.registries.contains(registry) {
                continue;
            }
            served = true;
            let candidates = spec.wanted.candidates(&manifest.builds);
            if candidates.is_empty() {
                last = FetchError::Target {
                    targets: spec.wanted.targets.clone(),
                };
                continue;
            }
            match self.fetch_from(&member, candidates, asked).await {
                Err(error) if is_miss(&error) => last = error,
                result => return result,
            }
        }
        if !served && !self.members().is_empty() {
            last = FetchError::Registry {
                registry: registry.clone(),
            };
        }
        Err(last)
    }

    pub(super) async fn fetch_from(
        &self,
        member: &Arc<Member>,
        candidates: Vec<Candidate>,
        asked: Asked<'_>,
    ) -> Result<Fetched, FetchError> {
        let Asked { spec, on_event, .. } = asked;
        let mut clock = Stages::new();
        if !spec.offline && !member.joined().network.fresh(unix_now()) {
            self.up(member).await?;
            self.catch_up(member).await?;
        }
        self.check_accepted(member)?;
        let here = self.here(member, candidates.clone(), asked).await?;
        clock.end("store");
        if let Some(archive) = here.archive {
            return Ok(from_store(member, archive, clock));
        }
        if spec.offline {
            return Err(match &here.decided.verdict.decision {
                Decision::Trusted(trusted) => FetchError::NotHere(trusted.subject.root),
                _ => not_trusted(member, here.decided),
            });
        }
        self.up(member).await?;
        if self.may_be_behind(member) {
            self.catch_up(member).await?;
            self.check_accepted(member)?;
        }
        on_event(FetchEvent::Asking {
            network: member.joined().network.manifest().name.clone(),
        });
        member.await_lan(LAN_PATIENCE).await;
        let found = !member.parents().await.is_empty();
        let again = (candidates.clone(), here.held.clone());
        let fetched = self
            .fetch_remote(member, candidates, here.held, asked, clock)
            .await;
        if !matches!(fetched, Err(FetchError::Silent { .. })) || found {
            return fetched;
        }
        // A cache may not say twice within a second that it is there.
        member.await_lan(LAN_PATIENCE_ALONE).await;
        if member.parents().await.is_empty() {
            return fetched;
        }
        let (candidates, held) = again;
        self.fetch_remote(member, candidates, held, asked, Stages::new())
            .await
    }

    /// Whether there is a newer timestamp, as long as its key is looked after, and with it perhaps a newer
    /// manifest, and nobody is looking for it: a running node asks by itself.
    fn may_be_behind(&self, member: &Member) -> bool {
        let issued = member.joined().network.timestamp().issued;
        !self.runs() && unix_now().since(issued) > RENEW_AFTER_SECONDS
    }

    /// Fails closed where the user wants to be asked before a manifest widens what is trusted.
    pub(super) fn check_accepted(&self, member: &Member) -> Result<(), FetchError> {
        if !self.config().confirm_changes {
            return Ok(());
        }
        let joined = member.joined();
        let changes = joined.news();
        if changes.is_empty() {
            return Ok(());
        }
        Err(FetchError::NotAccepted {
            network: joined.network.manifest().name.clone(),
            changes,
        })
    }

    async fn fetch_remote(
        &self,
        member: &Arc<Member>,
        candidates: Vec<Candidate>,
        held: Vec<Held>,
        asked: Asked<'_>,
        mut clock: Stages,
    ) -> Result<Fetched, FetchError> {
        let Asked {
            whose, on_event, ..
        } = asked;
        let point = candidates
            .first()
            .map(|candidate| candidate.release.location(member.key()).point());
        let seeds = match point {
            Some(point) => member.seeds(point).await,
            None => Vec::new(),
        };
        let parents = member.parents().await;
        let hidden = self.hidden_bits(member).await?;
        let want = Want {
            network: Arc::new(member.joined().network.clone()),
            network_key: *member.key(),
            policy: self.policy_for(member, asked.spec),
            own: self.own_for(asked.whose),
            candidates,
            hidden,
        };
        let Some(machine) = Fetch::new(want, seeds) else {
            return Err(FetchError::NoNetwork);
        };
        let mut looking = Looking::new(member.clone(), machine, parents);
        let (mut known, mut named) = looking.until_likely(held).await;
        clock.end("look-up");
        // What is likely is mostly what is decided then; otherwise its transfer was in vain.
        let (decided, trusted, downloaded) = loop {
            let statements = known.statements.clone();
            let Decision::Trusted(trusted) = known.verdict.decision.clone() else {
                self.keep(member, statements).await?;
                return Err(not_trusted(member, *known));
            };
            // What was learned stays, however the download ends. Into a store that is new it goes
            // beside that: making one takes as long, and nothing is there or has to make space.
            let is_new = !self.door.is_begun();
            let preparing = self.prepare(member, statements, trusted.subject);
            let downloaded = if is_new {
                let downloading = self.download(&mut looking, named, &trusted, whose, on_event);
                let (prepared, downloaded) = tokio::join!(preparing, downloading);
                prepared.map(|_| downloaded)?
            } else {
                match preparing.await? {
                    Some(path) => Ok(Got::Here(path)),
                    None => {
                        let downloading =
                            self.download(&mut looking, named, &trusted, whose, on_event);
                        downloading.await
                    }
                }
            };
            clock.end("download");
            let (decided, more) = looking.until_decided().await;
            if decided.statements.len() > known.statements.len() {
                self.keep(member, decided.statements.clone()).await?;
            }
            clock.end("decide");
            if decided.root() == Some(trusted.subject.root) {
                break (decided, trusted, downloaded?);
            }
            (known, named) = (decided, more);
        };
        let root = trusted.subject.root;
        let (finished, providers) = match downloaded {
            Got::Here(path) => {
                let archive = Archive {
                    decided: *decided,
                    trusted: *trusted,
                    path,
                };
                return Ok(from_store(member, archive, clock));
            }
            Got::Downloaded(finished, providers) => (Some(finished), providers),
            Got::Nothing => (None, Vec::new()),
        };
        let archive = self.adopt(finished, trusted.subject.root).await?;
        let archive = archive.ok_or(NodeError::Stopping)?;
        clock.end("adopt");
        if let Some(point) = point {
            self.share_fetched(member, point, root);
        }
        Ok(Fetched {
            network: member.id(),
            blocks_verified: trusted.subject.size.div_ceil(BLOCK_BYTES),
            trusted: *trusted,
            archive,
            decided: *decided,
            from: From::Network,
            fetched_bytes: providers.iter().map(|share| share.bytes).sum(),
            providers,
            stages: clock.stages,
        })
    }

    /// Keeps what a subject is trusted on, and says where its archive is, or makes space for it.
    async fn prepare(
        &self,
        member: &Arc<Member>,
        statements: Vec<Arc<Statement>>,
        subject: Subject,
    ) -> Result<Option<PathBuf>, NodeError> {
        let member = member.clone();
        let prepared = self.blocking(move |store| {
            keep(store, &member, &statements)?;
            if store.has_blob(&subject.root)
                && let Some(path) = archive(store, subject.root)?
            {
                return Ok((Some(path), Vec::new()));
            }
            let made = store.make_space(subject.size, unix_now())?;
            Ok((None, made.evicted))
        });
        let (here, evicted) = prepared.await?;
        for evicted in evicted {
            tracing::info!(root = %evicted.root, bytes = evicted.bytes, "evicted: the disk is nearly full");
        }
        Ok(here)
    }

    /// Takes a finished download into the store and says where the archive is. Without one, another
    /// process has put it there.
    pub(super) async fn adopt(
        &self,
        finished: Option<Finished>,
        root: Root,
    ) -> Result<Option<PathBuf>, NodeError> {
        self.blocking(move |store| {
            let Some(finished) = finished else {
                return archive(store, root);
            };
            let _until_leased = store.lease(root);
            store.adopt_finished(&finished, Keep::Cache, unix_now())?;
            store.lease_for(root, INSTALL_TIME);
            // The part's directory is of no use any more; one that stays is cleaned up with age.
            let _ = finished.remove();
            Ok(Some(store.blob_path(&root)))
        })
        .await
    }

    /// One's own build suffices for oneself, and for nobody else.
    pub(super) fn own_for(&self, whose: Whose) -> Option<PublicKey> {
        match whose {
            Whose::Owner => Some(self.own()),
            Whose::Others => None,
        }
    }

    /// What is asked for in a network: that of the owner, or what is stricter still.
    pub(super) fn policy_for(&self, member: &Member, spec: &FetchSpec) -> Policy {
        match &spec.policy {
            Some(policy) => self.policy(member).stricter(policy),
            None => self.policy(member),
        }
    }

    pub(super) async fn download(
        &self,
        looking: &mut Looking,
        named: Vec<Contact>,
        trusted: &Trusted,
        whose: Whose,
        on_event: OnEvent<'_>,
    ) -> Result<Got, FetchError> {
        let root = trusted.subject.root;
        if !self.manners().may_download(whose) {
            return Err(FetchError::Spent { root });
        }
        let blob = Blob::new(root, trusted.subject.size)?;
        let member = looking.member.clone();
        let lanes = match member.net() {
            Some(net) => net.lanes(),
            None if member.is_on_web() => Lanes::closed(),
            None => return Err(NodeError::Stopping.into()),
        };
        let Some(part) = self.part(blob, on_event).await? else {
            return Ok(Got::Nothing);
        };
        let gateways = self.gateways();
        let (providers, receiver) = mpsc::channel(PROVIDERS_PENDING_MAX);
        let unreached = Mutex::new(Vec::new());
        let given_up = CancellationToken::new();
        let mut parents = Parents::new(&looking.parents, given_up.clone());
        let naming = async {
            let on_unreached = |peer: PeerId, error: AskError| {
                let (provider, why) = (peer.to_string(), error.to_string());
                let mut unreached = unreached.lock().unwrap_or_else(PoisonError::into_inner);
                if unreached.len() < UNREACHED_MAX {
                    unreached.push(format!("{provider}: {why}"));
                }
                on_event(FetchEvent::ProviderFailed {
                    provider,
                    why,
                    banned: false,
                });
            };
            // They wait for parents as other nodes do.
            let naming_gateways = async {
                given_up.cancelled().await;
                for gateway in &gateways {
                    // Nobody listens after the end.
                    let source = Source::Gateway(gateway.url().clone());
                    let _ = providers.send(source.into()).await;
                }
            };
            let naming_peers = async {
                let naming =
                    looking.name_providers(root, named, &providers, &given_up, &on_unreached);
                let kept = naming.await;
                given_up.cancel();
                kept
            };
            let (kept, ()) = tokio::join!(naming_peers, naming_gateways);
            drop(providers);
            if kept.is_some() {
                std::future::pending::<()>().await;
            }
        };
        let mut given: BTreeMap<Source, u64> = BTreeMap::new();
        let (bans, manners) = (member.clone(), self.manners().clone());
        let progress = |progress: Progress| match progress {
            Progress::Resumed { bytes } => on_event(FetchEvent::Begin {
                here: bytes,
                size: blob.size(),
            }),
            Progress::Verified { from, range, bytes } => {
                parents.gave(&from);
                bans.verified(root, range);
                *given.entry(from).or_default() += bytes;
                self.counters().blocks_received(bytes);
                manners.downloaded(bytes);
                on_event(FetchEvent::Verified { bytes });
            }
            Progress::Failed { from, why } => {
                let is_waiting = parents.failed(&from, why);
                // That a cache is still fetching is not worth a line.
                if !is_waiting {
                    on_event(FetchEvent::ProviderFailed {
                        provider: from.to_string(),
                        why: why.to_string(),
                        banned: false,
                    });
                }
            }
            Progress::Banned { provider, why } => {
                parents.failed(&provider, why);
                on_event(FetchEvent::ProviderFailed {
                    provider: provider.to_string(),
                    why: why.to_string(),
                    banned: true,
                });
                match (provider, bans.net().cloned()) {
                    (Source::Peer(peer), Some(net)) => {
                        tokio::spawn(async move { net.ban(peer, why.to_string()).await });
                    }
                    (Source::Peer(_), None) => {}
                    (Source::Gateway(url), _) => self.ban_gateway(&url),
                }
            }
        };
        let downloading = download::download(
            lanes,
            part,
            receiver,
            DownloadOptions {
                gateways: gateways.clone(),
                downloads: self.manners().downloads(whose),
                ..DownloadOptions::default()
            },
            progress,
        );
        let finished = tokio::select! {
            finished = downloading => finished,
            () = naming => return Ok(Got::Nothing),
        };
        let unreached = unreached
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let finished = finished.map_err(|error| FetchError::Download {
            root,
            error,
            unreached,
        })?;
        Ok(Got::Downloaded(finished, shares(given)))
    }

    /// Where a blob is written. Waits while another fetch writes it; `None` when that one is done and
    /// the artifact is here.
    async fn part(&self, blob: Blob, on_event: OnEvent<'_>) -> Result<Option<Part>, FetchError> {
        let door = self.door().clone();
        let parts = tokio::task::spawn_blocking(move || Store::parts_in(door.dir())).await;
        let parts = parts
            .map_err(|_| NodeError::Stopping)?
            .map_err(NodeError::from)?;
        let mut waited = false;
        loop {
            let parts = parts.clone();
            let opened = tokio::task::spawn_blocking(move || Part::open(&parts, blob)).await;
            let part = match opened.map_err(|_| NodeError::Stopping)? {
                Err(PartError::Locked { .. }) => None,
                opened => Some(opened?),
            };
            // After the lock was had: the other one puts the artifact into the store before it lets go.
            if waited && self.archive(blob.root()).await?.is_some() {
                return Ok(None);
            }
            if part.is_some() {
                return Ok(part);
            }
            if !waited {
                on_event(FetchEvent::Waiting);
            }
            waited = true;
            tokio::time::sleep(PART_POLL).await;
        }
    }
}

/// How an artifact was had.
pub(super) enum Got {
    /// It was here.
    Here(PathBuf),
    /// This is to be taken into the store.
    Downloaded(Finished, Vec<Share>),
    /// Another process downloaded it meanwhile, or the decision overruled it.
    Nothing,
}

fn from_store(member: &Member, archive: Archive, clock: Stages) -> Fetched {
    Fetched {
        network: member.id(),
        blocks_verified: archive.trusted.subject.size.div_ceil(BLOCK_BYTES),
        trusted: archive.trusted,
        archive: archive.path,
        decided: archive.decided,
        from: From::Store,
        fetched_bytes: 0,
        providers: Vec::new(),
        stages: clock.stages,
    }
}

/// Whoever gave most first.
fn shares(given: BTreeMap<Source, u64>) -> Vec<Share> {
    let share = |(node, bytes): (Source, u64)| Share {
        node: node.to_string(),
        bytes,
    };
    let mut shares: Vec<Share> = given.into_iter().map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

/// Measures stages one after another.
pub(super) struct Stages {
    begin: Instant,
    pub(super) stages: Vec<(&'static str, Duration)>,
}

impl Stages {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            stages: Vec::new(),
        }
    }

    pub(super) fn end(&mut self, name: &'static str) {
        self.stages.push((name, self.begin.elapsed()));
        self.begin = Instant::now();
    }
}

fn listed(unreached: &[String]) -> String {
    unreached.iter().map(|one| format!("; {one}")).collect()
}

/// Whether the next network may be asked: this one knows nothing against the artifact.
fn is_miss(error: &FetchError) -> bool {
    match error {
        FetchError::NotTrusted { decided, .. } => {
            matches!(decided.verdict.decision, Decision::Unproven(_))
        }
        FetchError::Silent { .. } | FetchError::Target { .. } => true,
        // It cannot be asked now.
        FetchError::Node(NodeError::Start(_) | NodeError::Secret(_)) => true,
        _ => false,
    }
}

fn texts(changes: &[Change]) -> String {
    let texts: Vec<&str> = changes.iter().map(|change| change.text.as_str()).collect();
    texts.join("; ")
}

pub(super) fn not_trusted(member: &Member, decided: Decided) -> FetchError {
    let network = member.joined().network.manifest().name.clone();
    let unproven = matches!(decided.verdict.decision, Decision::Unproven(_));
    if unproven && decided.answered == 0 && decided.known > 0 {
        return FetchError::Silent {
            network,
            known: decided.known,
        };
    }
    FetchError::NotTrusted {
        network,
        decided: Box::new(decided),
    }
}
