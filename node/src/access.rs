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

use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Statement;

use crate::control::Client;
pub use crate::control::{
    Artifact, Cleaned, ConnectionReport, FetchReport, FindReport, FindSpec, NetworkStatus,
    PeerReport, Problem, ProblemKind, ReachStatus, Reloaded, Stage, Status, StoreStatus,
};
use crate::home::Home;
use crate::node::{FetchEvent, FetchSpec, Node, NodeOptions, Published};
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
    /// The running node of this home, or one of this command's own. `options` are only for the
    /// latter, and `hold` is off for it.
    ///
    /// # Errors
    /// When neither can be had.
    pub async fn open(home: Home, options: NodeOptions) -> Result<Self, Problem> {
        if let Some(client) = Client::connect(&home).await? {
            return Ok(Self::Daemon(client));
        }
        let options = NodeOptions {
            hold: false,
            ..options
        };
        Ok(Self::Node(Arc::new(Node::start(home, options).await?)))
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

    /// Looks again at the networks on disk: joins new ones, takes newer versions, leaves others.
    ///
    /// # Errors
    /// When a file cannot be read or a network cannot be started.
    pub async fn reload(&self) -> Result<Reloaded, Problem> {
        match self {
            Self::Node(node) => Ok(node.reload().await?),
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

    /// Closes the connections of a node of one's own. A running one goes on.
    pub async fn shutdown(&self) {
        match self {
            Self::Node(node) => node.shutdown().await,
            Self::Daemon(_) => {}
        }
    }
}
