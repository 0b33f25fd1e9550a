//! The HTTP gateway: what the store holds, for whoever speaks HTTP, and the node's health.
//!
//! ```text
//! GET /artifacts/<root>                 the archive; Range, If-Range, If-None-Match
//! GET /artifacts/<root>.obao4           its outboard, likewise
//! GET /<name>/<version>/<target>.tgz    the executables: also .tar, .tar.gz, .tar.zst
//! GET /<name>/<version>/<target>.qk.tar the archive: also .qk.tar.gz, .qk.tar.zst
//! GET …<any of these>.sig               its signature by the gateway, as minisign has it
//! GET /<name>/<version>/<target>.json   what was decided, and on whose word
//! GET /<name>-<version>/<name>-<version>-<target>.tar.gz   the executables, as cargo-quickinstall has them
//! GET /-/                               a dashboard, for the local network or who has the token
//! GET /-/badges/<crate>.svg             a badge
//! GET /-/networks                       the networks that this node takes part in
//! GET /-/networks/<id>                  the file that others join one with
//! GET /-/networks/<id>/index?<request>  what a node would answer, in the messages of /qk/index/1
//! GET /minisign.pub                     the gateway's key
//! GET /healthz                          200 while the process is alive
//! GET /readyz                           200 when it can serve its networks, else 503 and the reasons
//! GET /metrics                          OpenMetrics text
//! ```
//!
//! HEAD as well as GET, nothing else. Off unless an address is given. By root whoever asks gets what peers
//! get, and decides alone; by name only what this node's own policy trusts. [`client`] is the other side: a
//! gateway as one more provider of blocks. Nothing that it says is believed.

mod artifact;
pub mod client;
mod dashboard;
mod forms;
mod guard;
mod health;
mod index;
mod metrics;
mod named;
mod paced;
mod places;
mod range;
mod server;
mod sign;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::server::{Gateway, GatewayError, GatewayLimits};
pub use self::sign::GatewayKey;

/// `[gateway]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Where to serve HTTP, as `127.0.0.1:8080`; nowhere unless it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Connections at once, over all clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
    /// Connections of one IPv4 address, or one IPv6 prefix of 64 bits. Behind a reverse proxy all
    /// come from one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_address_max: Option<usize>,
    /// A file with a token that who asks has to give; below the home unless it is an absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A file with the certificate for TLS and those above it, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// A file with its private key, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Bytes that packed artifacts may take; 1 GiB if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed_bytes_max: Option<u64>,
    /// Gateways of others that artifacts may be had from, as `https://host/path/`.
    pub from: Vec<String>,
    /// Whether commands ask those for everything and connect with nobody else.
    pub only: bool,
    /// Files with the tokens of gateways, by host or host:port.
    pub tokens: BTreeMap<String, PathBuf>,
}
