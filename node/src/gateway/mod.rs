//! The HTTP gateway: what the store holds, for whoever speaks HTTP, and the node's health.
//!
//! ```text
//! GET /artifacts/<root>           the archive; Range, If-Range, If-None-Match
//! GET /artifacts/<root>.obao4     its outboard, likewise
//! GET /healthz                    200 while the process is alive
//! GET /readyz                     200 when it can serve its networks, else 503 and the reasons
//! GET /metrics                    OpenMetrics text
//! ```
//!
//! HEAD as well as GET, nothing else. Off unless an address is given. [`client`] is the other side: a gateway as one more
//! provider of blocks. Nothing that it says is believed.

mod artifact;
pub mod client;
mod health;
mod metrics;
mod paced;
mod places;
mod range;
mod server;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::server::{Gateway, GatewayError, GatewayLimits};

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
    /// Gateways of others that artifacts may be had from, as `https://host/path/`.
    pub from: Vec<String>,
}
