//! What a node tells the service manager that started it: that it is ready, what it does, that it
//! is still alive, that it stops. Without a service manager (`NOTIFY_SOCKET`) nothing happens.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::net::AskError;
use crate::node::Node;

/// How often the manager's line about a node is renewed.
const STATUS_EVERY: Duration = Duration::from_secs(30);
/// How long the manager may take to read what it is told.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// In one interval of the watchdog the node is looked at so often.
const LOOKS: u32 = 3;

/// The node answers: control socket and listeners are there.
pub async fn ready(node: &Node) {
    let line = line(node).await;
    send(move || sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&line)])).await;
}

/// The node reads its configuration again; [`ready`] is its end.
pub async fn reloading() {
    send(|| {
        let now = NotifyState::monotonic_usec_now()?;
        sd_notify::notify(&[NotifyState::Reloading, now])
    })
    .await;
}

/// The node ends.
pub async fn stopping() {
    send(|| sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")])).await;
}

/// Keeps the manager's line about the node fresh and its watchdog quiet, until it is dropped. The
/// watchdog is told only while the tasks that own the networks answer: a node that hangs is
/// started again.
pub async fn attend(node: &Node) {
    let watched = sd_notify::watchdog_enabled();
    let look_every = watched.map_or(STATUS_EVERY, |within| within / LOOKS);
    let mut looks = tokio::time::interval(look_every.min(STATUS_EVERY));
    loop {
        looks.tick().await;
        if watched.is_some() && !is_alive(node, look_every).await {
            tracing::error!(within = ?look_every, "a network side does not answer: the watchdog is not told");
            continue;
        }
        let line = line(node).await;
        send(move || {
            let status = NotifyState::Status(&line);
            match watched {
                Some(_) => sd_notify::notify(&[NotifyState::Watchdog, status]),
                None => sd_notify::notify(&[status]),
            }
        })
        .await;
    }
}

/// Whether every network side answers within this time.
async fn is_alive(node: &Node, within: Duration) -> bool {
    for member in node.members() {
        let Some(net) = member.net() else {
            continue;
        };
        match tokio::time::timeout(within, net.listen_addrs()).await {
            Ok(Ok(_)) => {}
            // It was left just now.
            Ok(Err(AskError::Ended)) if node.member(member.id()).is_err() => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
    true
}

/// The node in one line.
async fn line(node: &Node) -> String {
    let members = node.members();
    let mut peers = 0;
    for net in members.iter().filter_map(|member| member.net()) {
        peers += net.peers().await.map_or(0, |peers| peers.len());
    }
    match members.len() {
        0 => "no network is joined yet".to_owned(),
        1 => format!("1 network, {peers} peers"),
        networks => format!("{networks} networks, {peers} peers"),
    }
}

/// Off the reactor: a manager that does not read blocks whoever tells it something.
async fn send(notify: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let told = tokio::task::spawn_blocking(notify);
    let error = match tokio::time::timeout(TELL_TIMEOUT, told).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error,
        Ok(Err(error)) => error.into(),
        Err(elapsed) => elapsed.into(),
    };
    tracing::warn!(%error, "the service manager was not told");
}
