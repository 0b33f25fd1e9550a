//! What a command does with a node, whether one runs or not.
//!
//! [`Access::open`] talks to the running node of a home if there is one, otherwise it starts one
//! for itself, which listens nowhere and opens the store only for moments. All methods are the
//! same for both, and so are their errors: a [`Problem`] says of which sort it is
//! ([`ProblemKind`]), what happened in words, and what was decided.
//!
//! ```no_run
//! # use qk_node::{access::{Access, Problem}, home::Home, node::{FetchSpec, NodeOptions}};
//! # async fn fetch(home: Home, spec: FetchSpec) -> Result<(), Problem> {
//! let access = Access::open(home, NodeOptions::default()).await?;
//! let report = access.fetch(&spec, &|event| println!("{event:?}")).await?;
//! println!("{}", report.archive.display());
//! access.shutdown().await;
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use qk_protocol::decide::Held;
use qk_protocol::hash::{NetworkId, Point, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use qk_protocol::watch::patrol::Survey;

use crate::control::Client;
pub use crate::control::{
    Artifact, Cleaned, ConnectionReport, Counters, DownloadStatus, FetchReport, FindReport,
    FindSpec, NetworkStatus, PeerReport, Problem, ProblemKind, ReachStatus, Reloaded, Stage,
    Status, StoreStatus,
};
use crate::home::Home;
pub use crate::manners::{PauseReason, ShareStatus};
use crate::node::{
    FetchEvent, FetchSpec, LockedSpec, Node, NodeOptions, Published, SearchReport, SearchSpec,
};
use crate::store::FsckReport;

/// A node to work with.
#[derive(Debug)]
pub enum Access {
    /// One of this command's own.
    Node(Arc<Node>),
    /// The running one.
    Daemon(Client),
}

impl Access {
    /// The running node of this home; for a user who joined no network, the one of the whole system;
    /// or one of this command's own. `options` are only for the latter, and `hold` is off for it.
    ///
    /// # Errors
    /// When neither can be had.
    pub async fn open(home: Home, options: NodeOptions) -> Result<Self, Problem> {
        if let Some(running) = Self::running(&home).await? {
            return Ok(running);
        }
        let options = NodeOptions {
            hold: false,
            ..options
        };
        Ok(Self::Node(Arc::new(Node::start(home, options).await?)))
    }

    /// The running node of this home; for a user who joined no network, the one of the whole system;
    /// `None` when neither runs.
    ///
    /// # Errors
    /// When its socket is there but cannot be used.
    pub async fn running(home: &Home) -> Result<Option<Self>, Problem> {
        if let Some(client) = Client::connect(home).await? {
            return Ok(Some(Self::Daemon(client)));
        }
        // Who joined networks asks those, and decides by their manifests, not by others'.
        if !home.networks()?.is_empty() {
            return Ok(None);
        }
        let client = Client::connect_system(home).await?;
        Ok(client.map(Self::Daemon))
    }

    /// Whether it is a running node.
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Daemon(_))
    }

    /// What the node is doing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn status(&self) -> Result<Status, Problem> {
        match self {
            Self::Node(node) => Ok(node.status().await?),
            Self::Daemon(client) => client.status().await,
        }
    }

    /// Fetches an artifact that the policy trusts into the store. Dropping the future ends the
    /// fetch; what was fetched stays for the next attempt. Under pressure, events of a running node
    /// are merged: bytes are never counted twice or left out.
    ///
    /// # Errors
    /// Among others [`ProblemKind::NotTrusted`] with the verdict, [`ProblemKind::Silent`],
    /// [`ProblemKind::Download`].
    pub async fn fetch(
        &self,
        spec: &FetchSpec,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        match self {
            Self::Node(node) => Ok(node.fetch_report(spec, on_event).await?),
            Self::Daemon(client) => client.fetch(spec, on_event).await,
        }
    }

    /// As [`fetch`](Self::fetch), for what a lock pins: its own proof decides.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch); [`ProblemKind::Corrupt`] where the proof does not verify, or is of
    /// something else.
    pub async fn fetch_locked(
        &self,
        spec: &LockedSpec,
        on_event: &(dyn Fn(FetchEvent) + Send + Sync),
    ) -> Result<FetchReport, Problem> {
        match self {
            Self::Node(node) => Ok(node.fetch_locked_report(spec, on_event).await?),
            Self::Daemon(client) => client.fetch_locked(spec, on_event).await,
        }
    }

    /// Takes an archive that was built here, and one's own statement about it, into the store and
    /// tells the network.
    ///
    /// # Errors
    /// When the archive is another one, the network is not joined, or the store cannot be written.
    pub async fn publish(
        &self,
        archive: Option<PathBuf>,
        statement: Statement,
    ) -> Result<Published, Problem> {
        match self {
            Self::Node(node) => Ok(node.publish(archive, statement).await?),
            Self::Daemon(client) => client.publish(archive, &statement).await,
        }
    }

    /// Everything that is known about a release, here and in the network. What the network knows of
    /// its principals' statements is kept in the store.
    ///
    /// # Errors
    /// When the network is not joined or the store cannot be read.
    pub async fn find(&self, spec: &FindSpec) -> Result<FindReport, Problem> {
        match self {
            Self::Node(node) => Ok(node.find(spec).await?),
            Self::Daemon(client) => client.find(spec).await,
        }
    }

    /// Searches what is stated here and, unless offline, in the networks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn search(&self, spec: &SearchSpec) -> Result<SearchReport, Problem> {
        match self {
            Self::Node(node) => Ok(node.search(spec).await?),
            Self::Daemon(client) => client.search(spec).await,
        }
    }

    /// All artifacts in the store, sorted by root.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn store_ls(&self) -> Result<Vec<Artifact>, Problem> {
        match self {
            Self::Node(node) => Ok(node.store_ls().await?),
            Self::Daemon(client) => client.store_ls().await,
        }
    }

    /// Evicts artifacts as the quota asks, and compacts the journal.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_gc(&self) -> Result<Cleaned, Problem> {
        match self {
            Self::Node(node) => Ok(node.store_gc().await?),
            Self::Daemon(client) => client.store_gc().await,
        }
    }

    /// Reads everything in the store and names what is damaged.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn store_fsck(&self) -> Result<FsckReport, Problem> {
        match self {
            Self::Node(node) => Ok(node.store_fsck().await?),
            Self::Daemon(client) => client.store_fsck().await,
        }
    }

    /// Keeps a root from being evicted; says whether it was not pinned before.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_pin(&self, root: Root) -> Result<bool, Problem> {
        match self {
            Self::Node(node) => Ok(node.store_pin(root).await?),
            Self::Daemon(client) => client.store_pin(root).await,
        }
    }

    /// Takes a pin back; says whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_unpin(&self, root: Root) -> Result<bool, Problem> {
        match self {
            Self::Node(node) => Ok(node.store_unpin(root).await?),
            Self::Daemon(client) => client.store_unpin(root).await,
        }
    }

    /// All connected peers, by network.
    ///
    /// # Errors
    /// When the running node cannot be asked.
    pub async fn peers(&self) -> Result<Vec<PeerReport>, Problem> {
        match self {
            Self::Node(node) => Ok(node.peers().await?),
            Self::Daemon(client) => client.peers().await,
        }
    }

    /// Reads the configuration again and looks again at the networks on disk: joins new ones, takes
    /// newer versions, leaves others.
    ///
    /// # Errors
    /// When a file cannot be read or a network cannot be started.
    pub async fn reload(&self) -> Result<Reloaded, Problem> {
        match self {
            Self::Node(node) => Ok(node.reload_all().await?),
            Self::Daemon(client) => client.reload().await,
        }
    }

    /// Tells the networks again what this node states and has.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn announce(&self) -> Result<(), Problem> {
        match self {
            Self::Node(node) => Ok(node.announce().await?),
            Self::Daemon(client) => client.announce().await,
        }
    }

    /// Pauses the node until then, or until [`resume`](Self::resume). It is written down: a node that
    /// is started later pauses, too. Says why it pauses now.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn pause(&self, until: Option<UnixTime>) -> Result<Vec<PauseReason>, Problem> {
        match self {
            Self::Node(node) => Ok(node.pause(until).await?),
            Self::Daemon(client) => client.pause(until).await,
        }
    }

    /// Ends a pause that was asked for; says why the node pauses still.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn resume(&self) -> Result<Vec<PauseReason>, Problem> {
        match self {
            Self::Node(node) => Ok(node.resume().await?),
            Self::Daemon(client) => client.resume().await,
        }
    }

    /// Draws an entry of a network's index at random that this node's owner has not observed; `None`
    /// when none turns up.
    ///
    /// # Errors
    /// When the network is not joined.
    pub async fn draw(&self, network: NetworkId) -> Result<Option<ArtifactKey>, Problem> {
        match self {
            Self::Node(node) => Ok(node.draw(network).await?),
            Self::Daemon(client) => client.draw(network).await,
        }
    }

    /// Lists the points around one where something is stated, as several nodes give them.
    ///
    /// # Errors
    /// When the network is not joined or the store cannot be read.
    pub async fn survey(&self, network: NetworkId, point: Point) -> Result<Survey, Problem> {
        match self {
            Self::Node(node) => Ok(node.survey(network, point).await?),
            Self::Daemon(client) => client.survey(network, point).await,
        }
    }

    /// Everything that is stated at some points, here and in the network.
    ///
    /// # Errors
    /// When the network is not joined, or the store cannot be read or written.
    pub async fn look(&self, network: NetworkId, points: Vec<Point>) -> Result<Vec<Held>, Problem> {
        match self {
            Self::Node(node) => Ok(node.look(network, points).await?),
            Self::Daemon(client) => client.look(network, points).await,
        }
    }

    /// Closes the connections of a node of one's own. A running one goes on.
    pub async fn shutdown(&self) {
        match self {
            Self::Node(node) => node.shutdown().await,
            Self::Daemon(_) => {}
        }
    }
}
