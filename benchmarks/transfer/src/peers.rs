//! Nodes with nothing to do but to be connected: whole nodes, as `qk node` runs them, several in one
//! process.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use qk_node::home::Home;
use qk_node::node::{Node, NodeOptions};
use tokio::task::JoinSet;

use crate::Peers;

/// How often a peer asks for a newer network file, much more often than a node does by itself:
/// a connection that nobody uses is closed after a minute.
const ASK_EVERY: Duration = Duration::from_secs(45);

pub async fn run(args: Peers) -> Result<()> {
    let mut nodes = JoinSet::new();
    let with = args.with;
    for (home, port) in args.homes.into_iter().zip(args.port..) {
        let node = start(home, format!("/ip4/{}/tcp/{port}", args.host)).await?;
        nodes.spawn(async move {
            tokio::join!(node.maintain(), ask(&node, with));
        });
    }
    println!("{}", serde_json::json!({ "peers": nodes.len() }));
    let end = || std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
    tokio::task::spawn_blocking(end).await??;
    Ok(())
}

async fn start(home: PathBuf, listen: String) -> Result<Arc<Node>> {
    let options = NodeOptions {
        listen: vec![listen],
        hold: true,
        ..NodeOptions::default()
    };
    let name = home.display().to_string();
    let node = Node::start(Home::at(home), options).await;
    Ok(Arc::new(node.with_context(|| name)?))
}

/// Keeps a connection with the node at this address alive, if there is one: whoever has no place there
/// would dial it anew each time, which no node does so often.
async fn ask(node: &Node, with: Ipv4Addr) {
    let mut every = tokio::time::interval(ASK_EVERY);
    let address = format!("/ip4/{with}/");
    loop {
        every.tick().await;
        let peers = node.peers().await.unwrap_or_default();
        let mut connections = peers.iter().flat_map(|peer| &peer.connections);
        if !connections.any(|one| one.address.starts_with(&address)) {
            continue;
        }
        if let Err(error) = node.refresh().await {
            eprintln!("{error}");
        }
    }
}
