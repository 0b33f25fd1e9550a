//! Networks and their index over HTTP, for who can speak nothing else: what nodes ask each other, and as
//! little to be believed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use qk_protocol::hash::NetworkId;
use serde_json::json;

use super::artifact::not_found;
use super::server::{Client, Shared};
use crate::node::Member;

/// Characters of a question; the longest that there is has some 250.
const QUESTION_BYTES_MAX: usize = 1024;

/// Networks that may be shown to who asks. That of a private one is only shown to those with the token: who
/// has no secret is to learn nothing of it.
pub(super) fn shown(shared: &Shared) -> Vec<Arc<Member>> {
    let mut members = shared.node.members();
    members.retain(|one| one.joined().secret.is_none() || shared.guard.has_token());
    members
}

fn member(shared: &Shared, id: &str) -> Option<Arc<Member>> {
    let id: NetworkId = id.parse().ok()?;
    shown(shared).into_iter().find(|one| one.id() == id)
}

/// `GET /-/networks`.
pub(super) async fn networks(State(shared): State<Shared>) -> Response {
    let about = |one: &Arc<Member>| {
        let joined = one.joined();
        let manifest = joined.network.manifest();
        json!({ "network": one.id(), "name": manifest.name, "version": manifest.version })
    };
    let all: Vec<_> = shown(&shared).iter().map(about).collect();
    ([(header::CACHE_CONTROL, "no-store")], Json(all)).into_response()
}

/// `GET /-/networks/<id>`: what `qk join` takes.
pub(super) async fn network(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let Some(member) = member(&shared, &id) else {
        return not_found("this node takes no part in such a network");
    };
    let joined = member.joined();
    let headers = [(header::CACHE_CONTROL, "no-store")];
    (headers, Json(joined.network.file())).into_response()
}

/// `GET /-/networks/<id>/index?<request>`: a question of `/qk/index/1` in URL-safe base64, and its answer.
pub(super) async fn index(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
    RawQuery(question): RawQuery,
) -> Response {
    let Some(member) = member(&shared, &id) else {
        return not_found("this node takes no part in such a network");
    };
    let question = question.filter(|text| text.len() <= QUESTION_BYTES_MAX);
    let decoded = question.and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok());
    let looks =
        client.is_local() || shared.guard.has_token() || shared.node.obtains_for_everybody();
    let answered = match decoded {
        Some(bytes) => member.answer_on_web(&bytes, looks).await,
        None => None,
    };
    let Some(reply) = answered else {
        let why = "expected a Get, Near, Network or Log of /qk/index/1 in URL-safe base64\n";
        return (StatusCode::BAD_REQUEST, why).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, "application/cbor"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, reply.encode()).into_response()
}
