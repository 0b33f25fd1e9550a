//! `qk node`, `qk status` and `qk peers`.

pub(crate) mod gateway;
pub(crate) mod manners;
pub(crate) mod service;
pub(crate) mod status;

use std::io::IsTerminal;
use std::process;
use std::sync::Arc;

use qk_node::control;
use qk_node::gateway::Gateway;
use qk_node::node::{Node, NodeOptions};
use qk_node::service::notify;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::of_problem;
use crate::args::{NodeArgs, NodeCli, NodeCommand};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, Stops, parents, received};

/// Where a node listens unless it is told: a free port, on all interfaces.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
/// What a shell makes of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

pub(crate) async fn run(session: &Session, cli: &NodeCli) -> Outcome {
    match &cli.command {
        None => foreground(session, &cli.args).await,
        Some(NodeCommand::Install(args)) => service::install(session, args).await,
        Some(NodeCommand::Uninstall(args)) => service::uninstall(session, args).await,
        Some(NodeCommand::Pause { time }) => manners::pause(session, time.map(|time| time.0)).await,
        Some(NodeCommand::Resume) => manners::resume(session).await,
        Some(NodeCommand::GatewayKey) => gateway::key(session),
    }
}

async fn foreground(session: &Session, args: &NodeArgs) -> Outcome {
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
        only: Vec::new(),
        cache: args.cache,
        share: manners::flags(&args.share, listen.is_none()),
    };
    let share = config.share.with(&options.share);
    let usage = |why: String| Failure::new(Kind::Usage, why);
    share.check().map_err(usage)?;
    let listener = control::Listener::bind_for(&session.home, args.socket_group.as_deref());
    let listener = listener.map_err(|problem| of_problem(&problem))?;
    let gateway = gateway::bind(args, &config.gateway, &session.home).await?;
    let node = Node::start(session.home.clone(), options).await;
    let node = Arc::new(node.map_err(|error| of_problem(&error.into()))?);
    if node.members().is_empty() {
        session.output.note(
            "note: no network is joined yet; `qk join` is enough, the node need not be restarted",
        );
    }
    // Before anybody hears that it runs: who starts a node may stop it at once.
    let mut stops = Stops::new();
    let mut hangups = signal(SignalKind::hangup());
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(listener.serve(node.clone(), async {
        let _ = stopping.await;
    }));
    announce_listening(session, &node, gateway.as_ref()).await;
    let (stop_gateway, gateway) = gateway::start(gateway, &node);
    notify::ready(&node).await;
    tokio::select! {
        () = node.maintain() => {}
        () = notify::attend(&node) => {}
        // Beside `maintain` and not in its place: both wait for each other's turn.
        () = on_hangup(&node, &mut hangups) => {}
        () = stops.next() => {}
    }
    tracing::info!("stopping");
    let end = async {
        notify::stopping().await;
        let _ = stop.send(());
        let _ = stop_gateway.send(());
        let _ = serving.await;
        let _ = gateway.await;
        node.shutdown().await;
    };
    tokio::select! {
        () = end => Ok(()),
        () = stops.next() => {
            tracing::warn!("ended at once: what is acknowledged is on disk");
            process::exit(INTERRUPTED);
        }
    }
}

/// A node of this command's own that asks nobody, where none runs.
fn at_rest() -> NodeOptions {
    NodeOptions {
        offline: true,
        ..NodeOptions::default()
    }
}

/// Reads again what is on disk, each time that the signal comes. With a terminal the signal says
/// that this went away: then the node ends as every command does.
async fn on_hangup(node: &Node, hangups: &mut std::io::Result<tokio::signal::unix::Signal>) {
    loop {
        received(hangups).await;
        if std::io::stderr().is_terminal() {
            return;
        }
        notify::reloading().await;
        match node.reload_all().await {
            Ok(reloaded) => {
                tracing::info!(
                    joined = reloaded.joined.len(),
                    advanced = reloaded.advanced.len(),
                    left = reloaded.left.len(),
                    settings = ?reloaded.settings,
                    "read again"
                );
                if !reloaded.restart.is_empty() {
                    tracing::warn!(settings = ?reloaded.restart, "changed, and count after a restart of the node");
                }
            }
            Err(error) => tracing::error!(%error, "not all was read again"),
        }
        notify::ready(node).await;
    }
}

/// Where a node can be reached, as soon as it can.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Listening {
    event: &'static str,
    peer: String,
    addresses: Vec<String>,
    /// The URL of its gateway.
    gateway: Option<String>,
}

/// Says where the node can be reached: one JSON document on a line, or text.
async fn announce_listening(session: &Session, node: &Arc<Node>, gateway: Option<&Gateway>) {
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
    let gateway = gateway.map(Gateway::url);
    if session.output.json {
        session.output.document(&Listening {
            event: "listening",
            peer,
            addresses,
            gateway,
        });
    } else {
        addresses
            .iter()
            .for_each(|address| session.output.line(format!("listening on {address}")));
        if let Some(gateway) = gateway {
            session.output.line(format!("gateway on {gateway}"));
        }
        session.output.line("Ctrl-C stops");
    }
}
