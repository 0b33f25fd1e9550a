//! What is asked of a node and what it answers: the same for an embedded node and a running one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use qk_protocol::decide::{Held, Line, Trusted};
use qk_protocol::hash::{NetworkId, PublicKey, Root};
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::manifest::Change;
use qk_protocol::statement::{Statement, StatementError};
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use crate::manners::{PauseReason, ShareStatus};
use crate::node::{Fetched, From, Share};
use crate::store::{BlobInfo, CompactReport, Counts, GcReport};

/// What a node is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// Whether it is a running node; otherwise only this command's.
    pub running: bool,
    /// The version of its program.
    pub version: String,
    /// Its process.
    pub process: u32,
    /// Its directory.
    pub home: PathBuf,
    /// Its peer id.
    pub peer: String,
    /// The key that it signs statements with.
    pub observer: PublicKey,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Connected peers of all networks, each network's counted by itself.
    pub peers: usize,
    /// The networks, in the order in which they are asked.
    pub networks: Vec<NetworkStatus>,
    /// The store.
    pub store: StoreStatus,
    /// What went in and out since it started.
    #[serde(default)]
    pub counters: Counters,
    /// Artifacts that it downloads now.
    #[serde(default)]
    pub downloads: Vec<DownloadStatus>,
    /// Artifacts that it told the networks last that it has.
    #[serde(default)]
    pub announced: usize,
    /// What it gives and takes.
    pub share: ShareStatus,
    /// Why it pauses; it works, if nothing is named.
    pub paused: Vec<PauseReason>,
}

/// What went in and out of a node since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    /// Bytes of answers about blocks that were sent whole.
    pub sent_bytes: u64,
    /// Bytes of artifacts that came, verified.
    pub received_bytes: u64,
    /// Requests of the index that were answered.
    pub requests_answered: u64,
    /// Requests for blocks that were answered with blocks.
    pub blocks_answered: u64,
    /// Peers that have a stream for blocks open now, each network's counted by itself.
    pub readers: usize,
}

/// An artifact that a node downloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DownloadStatus {
    /// Which release.
    pub name: String,
    /// Bytes in all.
    pub size_bytes: u64,
    /// Bytes that are here, those from an earlier attempt included.
    pub here_bytes: u64,
    /// Bytes that came since it began.
    pub received_bytes: u64,
    /// How long ago it began.
    pub seconds: f64,
}

/// One network of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkStatus {
    /// Its name, for people.
    pub name: String,
    /// Its id.
    pub id: NetworkId,
    /// The version of its manifest that is known here.
    pub version: u64,
    /// When the timestamp of that version ends.
    pub expires: UnixTime,
    /// Whether new trust may still be derived from it.
    pub fresh: bool,
    /// Seconds until it ends, where that is to be warned of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_soon: Option<u64>,
    /// What the newest version widens, of which the user was not told yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub news: Vec<Change>,
    /// Whether the node takes part in it at present: not while it is offline.
    pub online: bool,
    /// Addresses that the node listens on.
    pub listening: Vec<String>,
    /// Connected peers.
    pub peers: usize,
    /// Nodes of the routing table.
    pub contacts: usize,
    /// Whether only those who have its secret take part.
    #[serde(default)]
    pub private: bool,
    /// Bytes of artifacts that were sent to others since the start, in their wire form.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Where others reach it.
    #[serde(flatten)]
    pub reach: ReachStatus,
}

/// Where others reach a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReachStatus {
    /// `public`, `private` or `unknown`.
    pub reachability: String,
    /// Addresses that are known to lead to it.
    pub external: Vec<String>,
    /// Addresses over relays that it has reservations at.
    pub relayed: Vec<String>,
}

/// The store of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StoreStatus {
    /// Its directory.
    pub dir: PathBuf,
    /// Artifacts.
    pub artifacts: usize,
    /// Bytes of artifacts and outboards.
    pub artifact_bytes: u64,
    /// Bytes that they may take.
    pub quota_bytes: u64,
    /// Statements and the journal.
    #[serde(flatten)]
    pub counts: Counts,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PeerReport {
    /// The network's name.
    pub network: String,
    /// Its peer id.
    pub peer: String,
    /// What it calls its program.
    pub agent: String,
    /// Whether it serves the network.
    pub server: bool,
    /// Round trip time of the last ping, in seconds; before the first, about what dialling it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_seconds: Option<f64>,
    /// How long there has been a connection, in seconds.
    pub connected_seconds: f64,
    /// All connections with it.
    pub connections: Vec<ConnectionReport>,
}

/// A connection with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectionReport {
    /// The remote address.
    pub address: String,
    /// `tcp`, `quic` or `other`.
    pub transport: String,
    /// Whether this node dialled it.
    pub dialled: bool,
}

/// A trusted artifact in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Which network vouches for it.
    pub network: NetworkId,
    /// That network's name.
    pub network_name: String,
    /// What is trusted: artifact key, root, SHA-256, size, and the statements that count.
    pub trusted: Trusted,
    /// What each statement did.
    pub lines: Vec<Line>,
    /// What else there is to say about the decision.
    pub notes: Vec<String>,
    /// Nodes that answered.
    pub answered: usize,
    /// Nodes that were known.
    pub known: usize,
    /// The archive, in the node's store.
    pub archive: PathBuf,
    /// Where it came from.
    pub from: From,
    /// Bytes that were fetched, without those that were here from an earlier attempt.
    pub fetched_bytes: u64,
    /// Who gave how much of them, whoever gave most first.
    #[serde(default)]
    pub providers: Vec<Share>,
    /// Blocks of 16 KiB that were verified, those from an earlier attempt included.
    pub blocks_verified: u64,
    /// How long each stage took, in their order.
    pub stages: Vec<Stage>,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Stage {
    /// Which one.
    pub name: String,
    /// How long.
    pub seconds: f64,
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindSpec {
    /// In which network.
    pub network: NetworkId,
    /// Which release.
    pub release: Release,
    /// Look only into the store.
    pub offline: bool,
}

/// What is known about a release.
#[derive(Debug, Clone)]
pub struct FindReport {
    /// All statements about it, each once: those of the store and, unless offline, those found.
    pub held: Vec<Held>,
    /// How many nodes say that they have a root.
    pub providers: BTreeMap<Root, usize>,
    /// Nodes that answered.
    pub answered: usize,
    /// Nodes that were known.
    pub known: usize,
}

/// An artifact in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Artifact {
    /// The file.
    #[serde(flatten)]
    pub blob: BlobInfo,
    /// What it says that it is an artifact of; none where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ArtifactKey>,
    /// Names of its executables.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub executables: BTreeSet<String>,
}

/// What a clean-up of the store did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cleaned {
    /// Artifacts and downloads.
    #[serde(flatten)]
    pub artifacts: GcReport,
    /// The journal.
    pub journal: CompactReport,
}

/// What changed when a node looked again at the networks on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Networks that it takes part in now.
    pub joined: Vec<NetworkId>,
    /// Networks of which it took a newer version.
    pub advanced: Vec<NetworkId>,
    /// Networks that it no longer takes part in.
    pub left: Vec<NetworkId>,
    /// Settings of `config.toml` that changed and count from now on.
    #[serde(default)]
    pub settings: Vec<String>,
    /// Settings of `config.toml` that changed and count when the node starts next.
    #[serde(default)]
    pub restart: Vec<String>,
}

impl FetchReport {
    /// The report of a fetch in the network of this name.
    pub fn new(fetched: Fetched, network_name: String) -> Self {
        let stages = fetched.stages.iter().map(|(name, time)| Stage {
            name: (*name).to_owned(),
            seconds: time.as_secs_f64(),
        });
        Self {
            network: fetched.network,
            network_name,
            trusted: fetched.trusted,
            answered: fetched.decided.answered,
            known: fetched.decided.known,
            archive: fetched.archive,
            from: fetched.from,
            fetched_bytes: fetched.fetched_bytes,
            providers: fetched.providers,
            blocks_verified: fetched.blocks_verified,
            stages: stages.collect(),
            lines: fetched.decided.verdict.lines,
            notes: fetched.decided.verdict.notes,
        }
    }
}

/// [`FindReport`] as it goes over the socket: statements as their envelopes, to be verified again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FindWire {
    held: Vec<HeldWire>,
    providers: BTreeMap<Root, usize>,
    answered: usize,
    known: usize,
}

/// [`Held`] as it goes over the socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HeldWire {
    envelope: String,
    stored: UnixTime,
}

impl HeldWire {
    pub(super) fn of(held: &Held) -> Self {
        Self {
            envelope: String::from_utf8_lossy(held.statement.envelope()).into_owned(),
            stored: held.stored,
        }
    }

    /// Verifies the statement once more.
    pub(super) fn read(&self) -> Result<Held, StatementError> {
        Ok(Held {
            statement: Arc::new(Statement::read(self.envelope.as_bytes())?),
            stored: self.stored,
        })
    }
}

impl std::convert::From<FindReport> for FindWire {
    fn from(report: FindReport) -> Self {
        Self {
            held: report.held.iter().map(HeldWire::of).collect(),
            providers: report.providers,
            answered: report.answered,
            known: report.known,
        }
    }
}

impl TryFrom<FindWire> for FindReport {
    type Error = StatementError;

    fn try_from(wire: FindWire) -> Result<Self, StatementError> {
        Ok(Self {
            held: wire
                .held
                .iter()
                .map(HeldWire::read)
                .collect::<Result<_, _>>()?,
            providers: wire.providers,
            answered: wire.answered,
            known: wire.known,
        })
    }
}
