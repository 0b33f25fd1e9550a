//! Whom blocks are asked of: nodes over lanes, gateways over HTTP.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use libp2p::PeerId;
use qk_protocol::blocks::Request;

use super::lane::PullError;

/// A provider of a blob.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A node, connected already.
    Peer(PeerId),
    /// An HTTP gateway.
    Gateway(GatewayUrl),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Gateway(gateway) => gateway.fmt(f),
        }
    }
}

impl From<PeerId> for Source {
    fn from(peer: PeerId) -> Self {
        Self::Peer(peer)
    }
}

/// The address of a gateway, as its owner gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayUrl(pub Arc<str>);

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Asks gateways. A download has one for all of its gateways; without one it asks none.
pub trait Gateways: fmt::Debug + Send + Sync + 'static {
    /// The raw answer to `request` without a status, at most `wire_len` bytes of it: what `verify`
    /// takes. It is not trusted. Dropping the future cancels the request.
    fn pull<'a>(
        &'a self,
        gateway: &'a GatewayUrl,
        request: &'a Request,
        wire_len: u32,
    ) -> BoxFuture<'a, Result<Vec<u8>, PullError>>;
}
