//! A provider: the product's block server over the product's store.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use qk_node::blocks::behaviour::OnLane;
use qk_node::blocks::outboard;
use qk_node::blocks::serve::{Blobs, Held, ServeLimits, Server};
use qk_node::store::{Keep, Options, Store};
use qk_protocol::blocks::EncodeError;
use qk_protocol::hash::Root;
use qk_protocol::time::UnixTime;
use serde_json::json;

use crate::throttle::{Budget, Throttled};
use crate::{Serve, net};

pub async fn run(args: Serve) -> Result<()> {
    let (blob, _) = outboard(&File::open(&args.file)?)?;
    let store = Store::open(&args.store, Options::default())?;
    store.import(&args.file, blob.root(), Keep::Cache, UnixTime(0))?;

    let mut limits = ServeLimits::default();
    if args.stall_after.is_some() {
        // Who hangs does not notice that either.
        limits.piece_timeout = Duration::from_secs(3600);
    }
    let server = Server::new(Arc::new(Shelf(store)), limits);
    let budget = Budget::new(args.cap, args.stall_after);
    let net = net::start(Some(serving(server, Arc::clone(&budget)))).await?;
    let ready = json!({
        "address": net::address(&net).await?.to_string(),
        "root": blob.root().to_string(),
        "size": blob.size(),
    });
    println!("{ready}");
    // Each line is a question.
    let answering = tokio::task::spawn_blocking(move || {
        for line in io::stdin().lines() {
            line?;
            println!("{}", json!({ "sent_bytes": budget.sent() }));
        }
        Ok::<_, io::Error>(())
    });
    answering.await??;
    net.shutdown().await;
    Ok(())
}

fn serving(server: Arc<Server>, budget: Arc<Budget>) -> OnLane {
    Arc::new(move |peer, stream| {
        let (server, budget) = (Arc::clone(&server), Arc::clone(&budget));
        tokio::spawn(async move {
            let stream = Throttled::new(stream, budget);
            if let Err(error) = server.serve(peer, stream).await {
                eprintln!("lane dropped: {error}");
            }
        });
    })
}

struct Shelf(Store);

impl Blobs for Shelf {
    fn open(&self, root: Root) -> io::Result<Option<Held>> {
        let opened = self.0.open_blob(&root).map_err(io::Error::other)?;
        let held = |blob: qk_node::store::Blob| {
            Ok(Held {
                data: blob.data.try_clone()?,
                outboard: blob.outboard.try_clone()?,
                size: blob.size,
            })
        };
        opened.map(held).transpose()
    }

    fn is_corrupt(&self, root: Root, error: &EncodeError) {
        eprintln!("{root} is corrupt: {error}");
    }
}
