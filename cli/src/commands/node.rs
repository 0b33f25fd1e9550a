//! `qk node` and `qk status`.

use std::sync::Arc;

use qk_node::access::Status;
use qk_node::control;
use qk_node::node::{Node, NodeOptions};
use serde_json::json;

use super::of_problem;
use crate::args::NodeArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::bytes;
use crate::session::{Session, parents, stopped};

/// Where a node listens unless it is told: a free port, on all interfaces.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];

pub(crate) async fn run(session: &Session, args: &NodeArgs) -> Outcome {
    let config = session
        .home
        .config()
        .map_err(|error| Failure::new(Kind::Usage, error))?;
    let listen = [&args.listen, &config.listen]
        .into_iter()
        .find(|some| !some.is_empty());
    let options = NodeOptions {
        listen: listen
            .cloned()
            .unwrap_or_else(|| LISTEN.map(str::to_owned).to_vec()),
        parent: args.parent.iter().cloned().chain(parents()).collect(),
        hold: true,
        offline: false,
        cache: args.cache,
    };
    let listener = control::Listener::bind(&session.home);
    let listener = listener.map_err(|problem| of_problem(&problem))?;
    let node = Node::start(session.home.clone(), options).await;
    let node = Arc::new(node.map_err(|error| of_problem(&error.into()))?);
    if node.members().is_empty() {
        session.output.note(
            "note: no network is joined yet; `qk join` is enough, the node need not be restarted",
        );
    }
    // Before anybody hears that it runs: who starts a node may stop it at once.
    let stopped = stopped();
    announce_listening(session, &node).await;
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(listener.serve(node.clone(), async {
        let _ = stopping.await;
    }));
    tokio::select! {
        () = node.maintain() => {}
        () = stopped => {}
    }
    tracing::info!("stopping");
    let _ = stop.send(());
    let _ = serving.await;
    node.shutdown().await;
    Ok(())
}

/// Says where the node can be reached: one JSON document on a line, or text.
async fn announce_listening(session: &Session, node: &Arc<Node>) {
    let mut addresses = Vec::new();
    let mut peer = String::new();
    for member in node.members() {
        match member.net() {
            Some(net) => {
                peer = net.local_peer().to_string();
                addresses.extend(net.listen_addrs().await.unwrap_or_default());
            }
            None => {
                let joined = member.joined();
                let name = &joined.network.manifest().name;
                session.output.note(format!(
                    "note: network {name} could not be started, and will be tried again: see the log"
                ));
            }
        }
    }
    let addresses: Vec<String> = addresses
        .iter()
        .map(|one| format!("{one}/p2p/{peer}"))
        .collect();
    if session.output.json {
        session
            .output
            .document(&json!({ "event": "listening", "peer": peer, "addresses": addresses }));
    } else {
        addresses
            .iter()
            .for_each(|address| session.output.line(format!("listening on {address}")));
        session.output.line("Ctrl-C stops");
    }
}

pub(crate) async fn status(session: &Session) -> Outcome {
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let status = access
        .status()
        .await
        .map_err(|problem| of_problem(&problem))?;
    session.output.result(&status, describe);
    Ok(())
}

fn describe(status: &Status) -> String {
    let mut lines = vec![match status.running {
        true => format!(
            "running for {} s as process {}, {} peers",
            status.uptime_seconds, status.process, status.peers
        ),
        false => "no node is running: `qk node` starts one".to_owned(),
    }];
    lines.push(format!("peer id   {}", status.peer));
    lines.push(format!("signs as  {}", status.observer));
    for network in &status.networks {
        let fresh = if network.fresh {
            ""
        } else {
            ", its timestamp has ended"
        };
        let private = if network.private { ", private" } else { "" };
        let offline = match status.running && !network.online {
            true => ", could not be started and is tried again",
            false => "",
        };
        lines.push(format!(
            "network   {} version {}, {} peers{private}{fresh}{offline}",
            network.name, network.version, network.peers
        ));
        lines.extend(
            network
                .listening
                .iter()
                .map(|address| format!("          on {address}")),
        );
    }
    if status.networks.is_empty() {
        lines.push("network   none joined: `qk join FILE|URL`".to_owned());
    }
    let store = &status.store;
    lines.push(format!(
        "store     {} artifacts, {} of {}, {} statements",
        store.artifacts,
        bytes(store.artifact_bytes),
        bytes(store.quota_bytes),
        store.counts.statements
    ));
    lines.join("\n")
}
