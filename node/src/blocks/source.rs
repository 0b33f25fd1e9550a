//! Who gives blocks, and how a gateway is asked for them.

use std::fmt;
use std::sync::Arc;

use libp2p::PeerId;
use qk_protocol::blocks::{Blob, BlockRange};
use tokio::sync::OnceCell;

use crate::gateway::client::{Client, GatewayPullError, GatewayUrl, RemoteBlob};

/// Who gives blocks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A connected peer.
    Peer(PeerId),
    /// A gateway that the owner named.
    Gateway(GatewayUrl),
}

/// Somebody who says to have a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Who.
    pub source: Source,
    /// Whether it is farther away than the local network.
    pub is_far: bool,
}

impl From<Source> for Offer {
    fn from(source: Source) -> Self {
        let is_far = false;
        Self { source, is_far }
    }
}

impl From<PeerId> for Source {
    fn from(peer: PeerId) -> Self {
        Self::Peer(peer)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Gateway(url) => url.fmt(f),
        }
    }
}

/// One blob at one gateway: its outboard is fetched with the first range, and once.
#[derive(Debug, Clone)]
pub(super) struct GatewayLane {
    client: Client,
    blob: Blob,
    opened: Arc<OnceCell<RemoteBlob>>,
}

impl GatewayLane {
    pub(super) fn new(client: Client, blob: Blob) -> Self {
        Self {
            client,
            blob,
            opened: Arc::default(),
        }
    }

    /// The range in wire form, not verified. Dropping the future gives it up.
    pub(super) async fn pull(&self, range: BlockRange) -> Result<Vec<u8>, GatewayPullError> {
        let remote = self.opened.get_or_try_init(|| self.client.open(self.blob));
        remote.await?.pull(range).await
    }
}
