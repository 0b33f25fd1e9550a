//! The front page: what this node is doing.

use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};
use qk_protocol::watch::Why;
use serde_json::{Value, json};

use super::super::index::shown;
use super::super::server::{Client, Shared};
use super::{HELD_FRESH, ago, amount, failed, may_look, page, pictures, principals, turn};
use crate::control::{Artifact, DownloadStatus, PeerReport, Status};
use crate::node::unix_now;
use crate::watch::{self, Kept};

/// Artifacts, peers and entries of the queue that the page lists.
const LISTED_MAX: usize = 30;

/// `GET /-/`.
pub(super) async fn front(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    let status = shared.node.status().await.map_err(failed)?;
    let peers = shared.node.peers().await.map_err(failed)?;
    let held = held(&shared).await?;
    let home = shared.node.home().clone();
    let queue = tokio::task::spawn_blocking(move || watch::look(&home)).await;
    let queue = queue.map_err(failed)?.map_err(failed)?;
    Ok(page(
        "This node",
        "",
        html! {
            div.grid {
                (networks(&shared, &status))
                (store(&status))
            }
            (transfers(&status))
            (holdings(&held))
            (peers_of(&peers))
            (rebuilds(queue.as_ref()))
            section {
                h2 { "This node" }
                p.quiet { "qk " (status.version) ", running for " (status.uptime_seconds / 3600) " h "
                    (status.uptime_seconds % 3600 / 60) " min. Peer " code.wrap { (status.peer) } }
            }
        },
    ))
}

/// What the store holds, read once in a while.
async fn held(shared: &Shared) -> Result<Vec<Artifact>, Response> {
    let known = || {
        shared
            .pages
            .held
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    if let Some((at, held)) = &*known()
        && at.elapsed() < HELD_FRESH
    {
        return Ok(held.clone());
    }
    let _turn = turn(shared).await?;
    let mut held = shared.node.store_ls().await.map_err(failed)?;
    held.sort_by_key(|one| std::cmp::Reverse(one.blob.used));
    *known() = Some((Instant::now(), held.clone()));
    Ok(held)
}

/// `GET /-/live.json`: what the script shows.
pub(super) async fn live(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
) -> Result<Json<Value>, Response> {
    may_look(&shared, client, &headers)?;
    let status = shared.node.status().await.map_err(failed)?;
    let downloads: Vec<Value> = status.downloads.iter().map(|one| {
        json!({ "name": one.name, "here": amount(one.here_bytes), "size": amount(one.size_bytes),
            "part": part(one) })
    }).collect();
    Ok(Json(json!({
        "peers": status.peers,
        "readers": status.counters.readers,
        "sent": amount(status.counters.sent_bytes),
        "received": amount(status.counters.received_bytes),
        "downloads": downloads,
    })))
}

fn part(one: &DownloadStatus) -> u64 {
    (one.here_bytes * 100)
        .checked_div(one.size_bytes)
        .unwrap_or(0)
        .min(100)
}

fn networks(shared: &Shared, status: &Status) -> Markup {
    let shown = shown(shared);
    html! {
        section.card {
            h2 { "Networks" }
            @if status.networks.is_empty() {
                p { "None is joined. " code { "qk join FILE" } " joins one." }
            }
            @for one in &status.networks {
                div.line {
                    strong { (one.name) }
                    @if !one.fresh { span.state.stale { "stale" } }
                    @else if !one.online { span.state.unproven { "offline" } }
                    @else { span.state.proven { "up to date" } }
                }
                p.quiet { "version " (one.version) ", " (one.peers) " peers, "
                    @if one.private { "private, " } "reachability " (one.reach.reachability) }
                @for member in shown.iter().filter(|member| member.id() == one.id) {
                    p.quiet { "Principals: " @for (at, principal) in member.joined().network.manifest().principals.iter().enumerate() {
                        @if at > 0 { ", " } a href=(principals::path(principal)) { (principal.name) } } }
                }
            }
            @for reason in &status.paused {
                p { span.state.stale { "paused" } " " (serde_json::to_value(reason).ok()
                    .and_then(|one| one.as_str().map(str::to_owned)).unwrap_or_default()) }
            }
        }
    }
}

fn store(status: &Status) -> Markup {
    let store = &status.store;
    let label = format!(
        "{} of {}",
        amount(store.artifact_bytes),
        amount(store.quota_bytes)
    );
    html! {
        section.card {
            h2 { "Store" }
            p.figure { (store.artifacts) small { " artifacts" } }
            (pictures::gauge(store.artifact_bytes, store.quota_bytes, &label))
            p.quiet { (label) ", " (store.counts.statements) " statements" }
        }
    }
}

fn transfers(status: &Status) -> Markup {
    let counters = &status.counters;
    html! {
        section {
            h2 { "Transfers" }
            div.figures {
                div { p.figure id="peers" { (status.peers) } p.quiet { "peers" } }
                div { p.figure id="readers" { (counters.readers) } p.quiet { "read from here" } }
                div { p.figure id="sent" { (amount(counters.sent_bytes)) } p.quiet { "given" } }
                div { p.figure id="received" { (amount(counters.received_bytes)) } p.quiet { "received" } }
            }
            ul.downloads id="downloads" {
                @for one in &status.downloads {
                    li { span { (one.name) } progress max="100" value=(part(one)) {}
                        span.quiet { (amount(one.here_bytes)) " of " (amount(one.size_bytes)) } }
                }
            }
            p.quiet.none id="idle" hidden[!status.downloads.is_empty()] { "Nothing is being downloaded." }
        }
    }
}

fn holdings(held: &[Artifact]) -> Markup {
    html! {
        section {
            h2 { "Held here" }
            @if held.is_empty() { p.quiet { "Nothing yet." } }
            @else {
                div.scroll { table {
                    thead { tr { th { "Crate" } th { "Target" } th.right { "Size" } th { "Last used" } } }
                    tbody {
                        @for one in held.iter().take(LISTED_MAX) { tr {
                            @match &one.key {
                                Some(key) => {
                                    td { a href=(format!("/-/crates/{}/{}", key.name, key.version)) {
                                        (key.name) " " (key.version) } }
                                    td.quiet { (key.target) }
                                }
                                None => { td.quiet colspan="2" { "not an artifact: " (one.blob.root.short()) } }
                            }
                            td.right { (amount(one.blob.bytes)) }
                            td.quiet { (ago(one.blob.used)) @if one.blob.pinned { " · pinned" } }
                        } }
                    }
                } }
                @if held.len() > LISTED_MAX {
                    p.quiet { "and " (held.len() - LISTED_MAX) " more: " code { "qk store ls" } }
                }
            }
        }
    }
}

fn peers_of(peers: &[PeerReport]) -> Markup {
    html! {
        section {
            h2 { "Peers" }
            @if peers.is_empty() { p.quiet { "Nobody is connected." } }
            @else {
                div.scroll { table {
                    thead { tr { th { "Peer" } th { "Network" } th { "Address" } th.right { "Round trip" } } }
                    tbody {
                        @for one in peers.iter().take(LISTED_MAX) { tr {
                            td { code title=(one.peer) { "…" (tail(&one.peer)) } " " span.quiet { (shortened(&one.agent)) } }
                            td { (one.network) }
                            td.quiet.wrap { @for to in one.connections.iter().take(2) { div { (to.address) } } }
                            td.right { @match one.rtt_seconds {
                                Some(rtt) => { (format!("{:.1} ms", rtt * 1000.0)) } None => { "—" } } }
                        } }
                    }
                } }
            }
        }
    }
}

/// The end of a peer id, by which people tell them apart.
fn tail(peer: &str) -> String {
    let letters: Vec<char> = peer.chars().collect();
    letters[letters.len().saturating_sub(8)..].iter().collect()
}

/// What a peer calls itself, which is its to choose.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

fn rebuilds(queue: Option<&(Kept, Option<u32>)>) -> Markup {
    html! {
        section {
            h2 { "Rebuilds" }
            @match queue {
                None => { p.quiet { "This machine does not rebuild for others: " code { "qk verify --watch" } } }
                Some((kept, process)) => {
                    p.quiet { @if process.is_some() { "Watching. " } @else { "Not watching now. " }
                        (kept.queue.waiting(unix_now()).len()) " wait." }
                    @if let Some(building) = kept.queue.building() {
                        p { span.state.open { "building" } " " (building.entry.key.name) " "
                            (building.entry.key.version) " · since " (ago(building.since)) }
                    }
                    ol.queue {
                        @for entry in kept.queue.waiting(unix_now()).into_iter().take(LISTED_MAX) {
                            li { a href=(format!("/-/crates/{}/{}", entry.key.name, entry.key.version)) {
                                (entry.key.name) " " (entry.key.version) }
                                " " span.quiet { (match entry.why {
                                    Why::Called { .. } => "called by a dissent",
                                    Why::Assigned => "assigned",
                                    Why::Audit => "audit",
                                }) @if let Some(class) = entry.last { " · " (class.in_words()) } } }
                        }
                    }
                    @for done in kept.queue.results().take(10) {
                        p.quiet { (done.release.name) " " (done.release.version) ": "
                            @match (done.agreement, done.class) {
                                (Some(agreement), _) => (format!("{agreement:?}").to_lowercase()),
                                (None, Some(class)) => (class.in_words()),
                                (None, None) => "ended",
                            } ", " (ago(done.at)) }
                    }
                }
            }
        }
    }
}
