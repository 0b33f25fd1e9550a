//! An artifact for looking at, whether anybody trusts it or not: what a comparison needs of the other
//! side of a dispute. It never enters the store, is never installed, run or given to others.

use std::path::{Path, PathBuf};

use qk_protocol::blocks::Blob;
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::key::Release;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::looking;
use super::{Node, NodeError};
use crate::blocks::download::{DownloadError, DownloadOptions, download};
use crate::blocks::part::{Part, PartError};
use crate::manners::Whose;

/// Providers that are asked.
const PROVIDERS_MAX: usize = 16;

/// Why a blob could not be had for looking at.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Nobody gave it.
    #[error("{root} could not be had from {providers} providers: {error}")]
    Download {
        /// The blob.
        root: Root,
        /// Who said that they have it.
        providers: usize,
        /// What came of it.
        error: DownloadError,
    },
    /// It cannot be written here.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The node itself.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl Node {
    /// Downloads a blob that was observed of a release from whoever says that it has it, below `to`.
    /// Says where it is; every block of it was verified against its root.
    ///
    /// # Errors
    /// When nobody gives it, or it cannot be written.
    pub async fn pull(
        &self,
        network: NetworkId,
        release: &Release,
        blob: Blob,
        to: &Path,
    ) -> Result<PathBuf, PullError> {
        let member = self.serving(network, &release.registry)?;
        self.up(&member).await?;
        let Some(net) = member.net().cloned() else {
            return Err(NodeError::Stopping.into());
        };
        let found = self.look_up(&member, release).await?;
        let of_root = found
            .providers
            .into_iter()
            .filter(|one| one.root == blob.root());
        let (providers, receiver) = mpsc::channel(PROVIDERS_MAX);
        let mut connecting = JoinSet::new();
        let of_root: Vec<_> = of_root.take(PROVIDERS_MAX).collect();
        let named = of_root.len();
        for provider in of_root {
            let (member, providers) = (member.clone(), providers.clone());
            connecting
                .spawn(async move { looking::name(&member, &provider.contact, &providers).await });
        }
        drop(providers);
        // As long as these live, nothing closes the connections.
        let kept = connecting.join_all();
        let parts = to.to_owned();
        let part = tokio::task::spawn_blocking(move || Part::open(&parts, blob)).await;
        let part = part.map_err(|_| NodeError::Stopping)??;
        let options = DownloadOptions {
            downloads: self.manners().downloads(Whose::Owner),
            ..DownloadOptions::default()
        };
        let downloading = download(net.lanes(), part, receiver, options, |_| {});
        let (finished, _kept) = tokio::join!(downloading, kept);
        let finished = finished.map_err(|error| PullError::Download {
            root: blob.root(),
            providers: named,
            error,
        })?;
        Ok(finished.data)
    }
}
