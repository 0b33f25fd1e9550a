//! The control socket: how commands talk with a running node.
//!
//! A Unix socket of mode 0600 below the home, HTTP/1.1 with JSON over it. Only the node's own user
//! and root are answered, and the client in turn asks only a node of its own user. The node of a
//! whole system has a socket of mode 0660 elsewhere, and answers the members of its group some of it
//! (`peer`). What can be asked are the methods of [`Access`](crate::access::Access), one path each:
//!
//! ```text
//! GET  /status          -> Status
//! GET  /peers           -> [PeerReport]
//! GET  /store           -> [Artifact]
//! POST /store/gc        -> Cleaned
//! POST /store/fsck      -> FsckReport
//! POST /store/pin       {root} -> {changed}          /store/unpin likewise
//! POST /fetch           FetchSpec -> lines of {event} and at the end one {fetched} or {problem}
//! POST /fetch-locked    LockedSpec -> the same lines
//! POST /publish         {archive?, envelope} -> Published
//! POST /find            FindSpec -> statements' envelopes, providers, answered, known
//! POST /search          SearchSpec -> SearchReport
//! POST /reload          -> Reloaded
//! POST /draw            network id -> ArtifactKey or null
//! POST /announce        -> null
//! GET  /archive/<root>  -> the bytes, for those who cannot read the store
//! POST /pause           {until?} -> [PauseReason]       /resume likewise, without a body
//! ```
//!
//! Everything else than success is a status of 400 or more with a [`Problem`] as body. A fetch ends
//! when its client goes away.

mod archive;
mod client;
mod peer;
mod problem;
mod report;
mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use qk_protocol::hash::{NetworkId, Point, Root};
use serde::{Deserialize, Serialize};

pub use self::client::Client;
pub use self::problem::{Problem, ProblemKind};
pub use self::report::{
    Artifact, Cleaned, ConnectionReport, Counters, DownloadStatus, FetchReport, FindReport,
    FindSpec, NetworkStatus, PeerReport, ReachStatus, Reloaded, Stage, Status, StoreStatus,
};
pub use self::server::{Listener, exclude, running, serve};
use crate::node::FetchEvent;

/// Bytes of a request's body: a statement of 16 KiB as a JSON string, and a path.
pub const REQUEST_BYTES_MAX: usize = 128 << 10;
/// Bytes of a request that brings its own proof: a bundle as a JSON string, and a policy.
pub const LOCKED_BYTES_MAX: usize = 2 * qk_protocol::bundle::BUNDLE_BYTES_MAX;
/// Bytes of an answer, or of one line of a fetch's.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// `POST /publish`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishWire {
    archive: Option<PathBuf>,
    envelope: String,
}

/// `POST /store/pin` and `/store/unpin`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootWire {
    root: Root,
}

/// What a pin changed.
#[derive(Debug, Serialize, Deserialize)]
struct ChangedWire {
    changed: bool,
}

/// `POST /survey`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SurveyWire {
    network: NetworkId,
    point: Point,
}

/// `POST /look`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LookWire {
    network: NetworkId,
    points: Vec<Point>,
}

/// A line of the answer to `POST /fetch`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FetchLine {
    Event(FetchEvent),
    Fetched(Box<FetchReport>),
    Problem(Box<Problem>),
}
