//! iroh-blobs as a rival: one provider, one getter, a file store on both sides, no relay.
//!
//! `serve` prints a JSON line when it can be asked, and ends with its standard input. `get` prints
//! one when the blob is complete in its store.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use iroh::endpoint::{Endpoint, RelayMode, presets};
use iroh::protocol::Router;
use iroh::{EndpointAddr, EndpointId};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::{ALPN, BlobsProtocol, Hash};
use serde_json::json;

/// Serves and downloads one blob with iroh-blobs
#[derive(Parser)]
enum Task {
    /// Serve a file until standard input ends
    Serve {
        /// The file
        file: PathBuf,
        /// Where the store is to be
        store: PathBuf,
    },
    /// Download what a provider serves
    Get {
        /// The provider's key
        provider: EndpointId,
        /// Where it listens
        address: SocketAddr,
        /// What to download
        hash: Hash,
        /// Where the store is to be
        store: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Task::parse() {
        Task::Serve { file, store } => serve(file, store).await,
        Task::Get {
            provider,
            address,
            hash,
            store,
        } => {
            get(
                EndpointAddr::new(provider).with_ip_addr(address),
                hash,
                store,
            )
            .await
        }
    }
}

async fn endpoint() -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled);
    let builder = builder.clear_ip_transports();
    let builder = builder.bind_addr((Ipv4Addr::LOCALHOST, 0))?;
    Ok(builder.bind().await?)
}

async fn serve(file: PathBuf, store: PathBuf) -> Result<()> {
    let store = FsStore::load(store).await?;
    let added = store.blobs().add_path(std::path::absolute(file)?).await?;
    let endpoint = endpoint().await?;
    let address = *endpoint.bound_sockets().first().context("no socket")?;
    let ready = json!({
        "provider": endpoint.id().to_string(),
        "address": address.to_string(),
        "hash": added.hash.to_string(),
    });
    let router = Router::builder(endpoint)
        .accept(ALPN, BlobsProtocol::new(&store, None))
        .spawn();
    println!("{ready}");
    let end = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(end).await??;
    router.shutdown().await?;
    Ok(())
}

async fn get(provider: EndpointAddr, hash: Hash, store: PathBuf) -> Result<()> {
    let store = FsStore::load(store).await?;
    let endpoint = endpoint().await?;
    let start = Instant::now();
    let connection = endpoint.connect(provider, ALPN).await?;
    store.remote().fetch(connection, hash).await?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", json!({ "seconds": seconds }));
    endpoint.close().await;
    store.shutdown().await?;
    Ok(())
}
