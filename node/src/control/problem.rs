//! What goes wrong, in a form that survives the socket.

use std::fmt;

use qk_protocol::decide::Verdict;
use qk_protocol::hash::Root;
use serde::{Deserialize, Serialize};

use crate::blocks::download::DownloadError;
use crate::blocks::part::PartError;
use crate::home::HomeError;
use crate::node::{FetchError, LockedError, NodeError};
use crate::store::StoreError;

/// Why something was not done: the same for an embedded node and for a running one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which sort of problem.
    pub kind: ProblemKind,
    /// The whole of it in words, without a full stop.
    pub message: String,
    /// The name of the network that was asked, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What was decided and why; always there for [`ProblemKind::NotTrusted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Box<Verdict>>,
    /// The artifact that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Nodes that answered, where nodes were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<u32>,
    /// Nodes that were known, where nodes were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<u32>,
}

/// Sorts of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// No network is joined.
    NoNetwork,
    /// No joined network serves the registry.
    Registry,
    /// No joined network builds for the targets.
    Target,
    /// The policy is not met; the verdict says whether it is unproven, disputed, stale or blocked.
    NotTrusted,
    /// A network widened what is trusted, and its user has not accepted that.
    NotAccepted,
    /// Look-ups are to be hidden, which this network is too sparse for.
    CannotHide,
    /// Nodes are known, but none answered.
    Silent,
    /// It is trusted, but could not be had.
    Download,
    /// Something on this machine is not what its name says.
    Corrupt,
    /// No space left.
    Full,
    /// Another process has it.
    Locked,
    /// Another node runs on this home.
    Running,
    /// A newer qk wrote the store.
    NewerVersion,
    /// The network is not joined.
    NotJoined,
    /// A network file is not taken.
    Manifest,
    /// An address is not usable.
    Address,
    /// A file of the home has another form than expected.
    Malformed,
    /// The operating system refused.
    Io,
    /// The node ended, or is ending.
    Stopping,
    /// Only the administrator of the running node may.
    NotAllowed,
    /// The running node and this program do not understand each other.
    Protocol,
    /// Anything else.
    Other,
}

impl Problem {
    /// A problem of which there is only this to say.
    pub fn new(kind: ProblemKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            network: None,
            verdict: None,
            root: None,
            answered: None,
            known: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl std::error::Error for Problem {}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let message = error.to_string();
        let plain = |kind| Self::new(kind, &message);
        match error {
            FetchError::NoNetwork => plain(ProblemKind::NoNetwork),
            FetchError::Registry { .. } => plain(ProblemKind::Registry),
            FetchError::Target { .. } => plain(ProblemKind::Target),
            FetchError::NotTrusted { network, decided } => Self {
                network: Some(network),
                verdict: Some(Box::new(decided.verdict)),
                answered: Some(nodes(decided.answered)),
                known: Some(nodes(decided.known)),
                ..plain(ProblemKind::NotTrusted)
            },
            FetchError::NotAccepted { network, .. } => Self {
                network: Some(network),
                ..plain(ProblemKind::NotAccepted)
            },
            FetchError::Silent { network, known } => Self {
                network: Some(network),
                answered: Some(0),
                known: Some(nodes(known)),
                ..plain(ProblemKind::Silent)
            },
            FetchError::Download { root, error, .. } => Self {
                root: Some(root),
                ..plain(of_download(&error))
            },
            FetchError::NotHere(root) => Self {
                root: Some(root),
                ..plain(ProblemKind::Download)
            },
            FetchError::Spent { .. } => plain(ProblemKind::Download),
            FetchError::Part(error) => plain(of_part(&error)),
            FetchError::Size(_) => plain(ProblemKind::Corrupt),
            FetchError::Locked(LockedError::NotJoined(_)) => plain(ProblemKind::NotJoined),
            FetchError::Locked(_) => plain(ProblemKind::Corrupt),
            FetchError::Node(error) => error.into(),
        }
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::Home(error) => error.into(),
            NodeError::Store(error) => error.into(),
            NodeError::Start(_) | NodeError::Address { .. } | NodeError::Gateway(_) => {
                Self::new(ProblemKind::Address, message)
            }
            NodeError::NotJoined(_) => Self::new(ProblemKind::NotJoined, message),
            NodeError::Registry { .. } => Self::new(ProblemKind::Registry, message),
            NodeError::CannotHide(_) => Self::new(ProblemKind::CannotHide, message),
            NodeError::Manifest(_) | NodeError::Secret(_) => {
                Self::new(ProblemKind::Manifest, message)
            }
            NodeError::Stopping => Self::new(ProblemKind::Stopping, message),
        }
    }
}

impl From<HomeError> for Problem {
    fn from(error: HomeError) -> Self {
        let kind = match &error {
            HomeError::Io { .. } => ProblemKind::Io,
            HomeError::NoHome => ProblemKind::Other,
            HomeError::Malformed { .. } => ProblemKind::Malformed,
            HomeError::Network { .. } => ProblemKind::Manifest,
        };
        Self::new(kind, error)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (kind, root) = match &error {
            StoreError::Locked { .. } => (ProblemKind::Locked, None),
            StoreError::NewerVersion { .. } => (ProblemKind::NewerVersion, None),
            StoreError::StorageFull { .. } => (ProblemKind::Full, None),
            StoreError::Io { .. } => (ProblemKind::Io, None),
            StoreError::CorruptBlob { root, .. } => (ProblemKind::Corrupt, Some(*root)),
            StoreError::WrongRoot { expected, .. } => (ProblemKind::Corrupt, Some(*expected)),
            StoreError::Closed { .. } => (ProblemKind::Stopping, None),
            StoreError::NotAStore { .. } => (ProblemKind::Malformed, None),
            StoreError::Index { .. } | StoreError::TooLarge { .. } | StoreError::Busy { .. } => {
                (ProblemKind::Other, None)
            }
        };
        Self {
            root,
            ..Self::new(kind, error)
        }
    }
}

/// A count of nodes, of which nobody knows four billion.
fn nodes(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn of_download(error: &DownloadError) -> ProblemKind {
    match error {
        DownloadError::Transfer(_) => ProblemKind::Download,
        DownloadError::Part(error) => of_part(error),
        DownloadError::Task(_) => ProblemKind::Other,
    }
}

fn of_part(error: &PartError) -> ProblemKind {
    match error {
        PartError::Locked { .. } => ProblemKind::Locked,
        PartError::Full { .. } => ProblemKind::Full,
        PartError::Io { .. } => ProblemKind::Io,
        PartError::OtherBlob { .. } => ProblemKind::Other,
        PartError::Unfinished(_) => ProblemKind::Corrupt,
    }
}
