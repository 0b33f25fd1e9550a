//! `qk node` and `qk status`.

use std::sync::Arc;

use qk_node::access::Status;
use qk_node::control;
use qk_node::manners::{PauseReason, ShareFlags};
use qk_node::node::{Node, NodeOptions, unix_now};
use qk_protocol::time::UnixTime;
use serde_json::json;

use super::of_problem;
use crate::args::{NodeArgs, NodeCommand, ShareArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::bytes;
use crate::session::{Session, stopped};

/// Where a node listens unless it is told: a free port, on all interfaces.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];

pub(crate) async fn run(session: &Session, args: &NodeArgs) -> Outcome {
    match args.command {
        Some(NodeCommand::Pause { time }) => pause(session, time).await,
        Some(NodeCommand::Resume) => resume(session).await,
        None => serve(session, args).await,
    }
}

async fn pause(session: &Session, time: Option<u64>) -> Outcome {
    let until = time.map(|seconds| UnixTime(unix_now().0.saturating_add(seconds)));
    let access = session.access(at_rest()).await?;
    let paused = access.pause(until).await;
    tell_paused(session, &paused.map_err(|problem| of_problem(&problem))?);
    Ok(())
}

async fn resume(session: &Session) -> Outcome {
    let access = session.access(at_rest()).await?;
    let paused = access.resume().await;
    tell_paused(session, &paused.map_err(|problem| of_problem(&problem))?);
    Ok(())
}

/// Why the node pauses now, if it does.
fn tell_paused(session: &Session, reasons: &[PauseReason]) {
    let result = json!({ "paused": reasons });
    session.output.result(&result, |_| paused(reasons));
}

fn paused(reasons: &[PauseReason]) -> String {
    if reasons.is_empty() {
        return "not paused".to_owned();
    }
    let reasons: Vec<String> = reasons.iter().map(reason).collect();
    format!("paused: {}", reasons.join("; "))
}

fn reason(reason: &PauseReason) -> String {
    match reason {
        PauseReason::Request { until: Some(until) } => {
            let minutes = until.since(unix_now()).div_ceil(60);
            format!("on request, for {minutes} min more")
        }
        PauseReason::Request { until: None } | PauseReason::Battery | PauseReason::Metered => {
            reason.to_string()
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

async fn serve(session: &Session, args: &NodeArgs) -> Outcome {
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
        parent: args.parent.clone(),
        hold: true,
        offline: false,
        share: flags(&args.share, listen.is_none()),
    };
    let share = config.share.with(&options.share);
    let usage = |why: String| Failure::new(Kind::Usage, why);
    share.check().map_err(usage)?;
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

fn flags(args: &ShareArgs, laptop: bool) -> ShareFlags {
    ShareFlags {
        share: args.share,
        leech: args.leech,
        no_announce: args.no_announce,
        upload_rate: args.upload_rate,
        download_rate: args.download_rate,
        connections: args.connections,
        quota: args.quota,
        laptop,
    }
}

/// Says where the node can be reached: one JSON document on a line, or text.
async fn announce_listening(session: &Session, node: &Arc<Node>) {
    let mut addresses = Vec::new();
    let mut peer = String::new();
    for member in node.members() {
        if let Some(net) = member.net() {
            peer = net.local_peer().to_string();
            addresses.extend(net.listen_addrs().await.unwrap_or_default());
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
    let access = session.access(at_rest()).await?;
    let status = access
        .status()
        .await
        .map_err(|problem| of_problem(&problem))?;
    session.output.result(&status, describe);
    Ok(())
}

/// What is given, how much of it this month, and why nothing is.
fn sharing(status: &Status) -> String {
    let share = &status.share;
    let what = match (status.paused.is_empty(), share.leech, share.gives) {
        (false, ..) => paused(&status.paused),
        (true, true, _) => "gives nothing, as told".to_owned(),
        (true, false, false) => {
            "gives nothing until this month ends: its bytes are used up".to_owned()
        }
        (true, false, true) if share.fetched => "what was built and fetched".to_owned(),
        (true, false, true) => "what was built here".to_owned(),
    };
    let up = match share.upload_month {
        Some(cap) => format!("{} of {}", bytes(share.month.uploaded_bytes), bytes(cap)),
        None => bytes(share.month.uploaded_bytes),
    };
    let down = bytes(share.month.downloaded_bytes);
    format!("{what}; this month {up} given, {down} taken")
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
        lines.push(format!(
            "network   {} version {}, {} peers{fresh}",
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
    if status.running || !status.paused.is_empty() {
        lines.push(format!("sharing   {}", sharing(status)));
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
