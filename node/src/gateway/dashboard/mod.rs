//! A dashboard: what this node holds and does, and what is stated about crates.
//!
//! Pages are made here and readable without a script; one small script shows transfers as they go on. All that
//! comes from others is escaped, and the pages' policy lets a browser load nothing but what this node has.

mod crates;
mod front;
mod pictures;
mod principals;

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};
use qk_protocol::hash::Blake3;
use qk_protocol::time::UnixTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::server::{Client, Shared};
use crate::control::Artifact;
use crate::node::unix_now;

/// Nothing from elsewhere, no script and no style in a page, no frame around it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// Pages that are made at once: some read the whole index.
const PAGES_MAX: usize = 2;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is believed what the store holds.
const HELD_FRESH: Duration = Duration::from_secs(5);
/// Bytes of a log that a page shows: its end.
const LOG_BYTES_MAX: usize = 256 << 10;

/// What pages share.
#[derive(Debug)]
pub(super) struct Pages {
    turns: Semaphore,
    held: Mutex<Option<(Instant, Vec<Artifact>)>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(PAGES_MAX),
            held: Mutex::default(),
        }
    }
}

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/-/", get(front::front))
        .route("/-/live.json", get(front::live))
        .route("/-/search", get(crates::found))
        .route("/-/crates/{name}", get(crates::releases))
        .route("/-/crates/{name}/{version}", get(crates::release))
        .route("/-/principals/{id}", get(principals::principal))
        .route("/-/logs/{digest}", get(log))
        .route("/-/badges/{file}", get(crates::badge))
        .route("/-/icon.svg", get(icon))
        .route("/-/style.css", get(style))
        .route("/-/live.js", get(script))
        .layer(middleware::from_fn(hardened))
}

async fn hardened(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    let all = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    answer
}

async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("style.css"))
}

async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("live.js"))
}

async fn icon() -> Response {
    file("image/svg+xml", pictures::ICON)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "max-age=300"),
    ];
    (headers, text).into_response()
}

/// Lets somebody look who has the token or, where none is set, is on the local network and came by an
/// address: a name could be anybody's, who has a browser here read the pages for them.
fn may_look(shared: &Shared, client: Client, headers: &HeaderMap) -> Result<(), Response> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let looks = shared.guard.has_token() || (client.is_local() && host.is_some_and(is_address));
    match looks {
        true => Ok(()),
        false => Err(message(
            StatusCode::FORBIDDEN,
            "Not from here",
            "Without a token this page is shown to the local network alone, by the gateway's address. \
             `token_file` below [gateway] of its configuration sets one.",
        )),
    }
}

fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

/// A turn to make a page that reads much.
async fn turn(shared: &Shared) -> Result<tokio::sync::SemaphorePermit<'_>, Response> {
    let turn = timeout(PATIENCE, shared.pages.turns.acquire()).await;
    turn.ok().and_then(Result::ok).ok_or_else(|| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        message(status, "Busy", "Too many look at once: come again.")
    })
}

fn failed(error: impl std::fmt::Display) -> Response {
    tracing::warn!(%error, "a page of the dashboard cannot be made");
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    message(status, "That went wrong", "The node's log says why.")
}

fn message(status: StatusCode, title: &str, text: &str) -> Response {
    let page = page(title, "", html! { h1 { (title) } p.lead { (text) } });
    (status, page).into_response()
}

/// A whole page. `asked` is what the search box says.
fn page(title: &str, asked: &str, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · qk" }
                link rel="stylesheet" href="/-/style.css";
                link rel="icon" href="/-/icon.svg";
                script src="/-/live.js" defer {}
            }
            body {
                header {
                    a.brand href="/-/" { (pictures::mark()) span { "qk" } }
                    form action="/-/search" role="search" {
                        input type="search" name="q" value=(asked) placeholder="Crate or executable"
                            aria-label="Search crates" autocomplete="off" spellcheck="false" maxlength="64";
                        button { "Search" }
                    }
                }
                main { (content) }
                footer { "Nothing here has to be believed: " code { "qk fetch" } " decides for itself." }
            }
        }
    }
}

/// `GET /-/logs/<digest>`: the end of a log that is here.
async fn log(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    let absent = || {
        let text = "This node has no such log. `qk log CRATE@VERSION` asks who built it.";
        message(StatusCode::NOT_FOUND, "No log", text)
    };
    let digest: Blake3 = digest.parse().map_err(|_| absent())?;
    let logs = shared.node.home().logs();
    let read = tokio::task::spawn_blocking(move || match logs.read(&digest)? {
        None => logs.of_others().read(&digest),
        found => Ok(found),
    });
    let log = read
        .await
        .map_err(failed)?
        .map_err(failed)?
        .ok_or_else(absent)?;
    let shown = &log[log.len().saturating_sub(LOG_BYTES_MAX)..];
    Ok(page(
        "Log",
        "",
        html! {
            h1 { "Log of a build" }
            p.quiet { code { (digest.to_string()) } " · " (amount(log.len() as u64))
                @if shown.len() < log.len() { ", of which the end" } }
            pre.log { (String::from_utf8_lossy(shown)) }
        },
    ))
}

fn amount(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{value:.1} {unit}"),
    }
}

fn ago(at: UnixTime) -> String {
    match unix_now().since(at) {
        0..90 => "just now".to_owned(),
        seconds @ 90..5_400 => format!("{} min ago", seconds / 60),
        seconds @ 5_400..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_an_address() {
        for good in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "localhost:1",
            "localhost",
            "10.0.0.5",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "rebound.example:8080",
            "127.0.0.1.example",
            "",
            ":80",
            "localhost.example",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn amounts_are_for_people() {
        let shown = [0, 1023, 1024, 1_153_024, 5 << 30].map(amount).join(", ");
        insta::assert_snapshot!(shown, @"0 B, 1023 B, 1.0 KiB, 1.1 MiB, 5.0 GiB");
    }
}
