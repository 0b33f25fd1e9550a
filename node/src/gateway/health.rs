//! Whether the process lives, and whether it can do its work.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::server::Shared;
use crate::node::{Member, Node, unix_now};

/// `GET /healthz`: that this is answered says all.
pub(super) async fn healthz() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "alive\n").into_response()
}

/// `GET /readyz`: 200, or 503 with all that is missing.
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let reasons = missing(&shared.node).await;
    let status = match reasons.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }));
    (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}

async fn missing(node: &Node) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Err(error) = node.blocking(|store| store.counts()).await {
        reasons.push(format!("the store cannot be read: {error}"));
    }
    let members = node.members();
    if members.is_empty() {
        reasons.push("no network is joined: run `qk join`".to_owned());
    }
    let mut unready = Vec::new();
    for member in &members {
        match unready_network(member).await {
            Some(why) => unready.push(why),
            // One is enough.
            None => return reasons,
        }
    }
    reasons.extend(unready);
    reasons
}

async fn unready_network(member: &Member) -> Option<String> {
    let joined = member.joined();
    let name = &joined.network.manifest().name;
    if !joined.network.fresh(unix_now()) {
        let expired = joined.network.timestamp().expires;
        return Some(format!(
            "network {name}: its timestamp ended at {expired}, nothing new is trusted there"
        ));
    }
    let listening = match member.net() {
        Some(net) => net.listen_addrs().await.unwrap_or_default(),
        None => Vec::new(),
    };
    listening
        .is_empty()
        .then(|| format!("network {name}: not listening on any address"))
}
