//! What is counted and measured, as OpenMetrics text.

use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::places::Full;
use super::server::Shared;
use crate::control::StoreStatus;
use crate::counters::{Label, zeros};
use crate::node::{Node, NodeError};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper bounds of the histogram, in seconds: from an answer out of memory to a large archive.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// What was asked for, of a known list: a path of a client's is no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Artifact,
    Named,
    Index,
    Page,
    Health,
    Metrics,
    Unknown,
}

impl Route {
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/healthz" | "/readyz" => Self::Health,
            "/metrics" => Self::Metrics,
            _ if path.starts_with("/artifacts/") => Self::Artifact,
            _ if path.starts_with("/-/networks") => Self::Index,
            _ if path.starts_with("/-/") => Self::Page,
            _ if (2..=3).contains(&path.matches('/').count()) => Self::Named,
            _ => Self::Unknown,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Artifact => "artifacts",
            Self::Named => "named",
            Self::Index => "index",
            Self::Page => "page",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Unknown => "unknown",
        }
    }
}

type Request = [(&'static str, &'static str); 2];

/// What the HTTP side counts. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct HttpCounters {
    requests: Family<Request, Counter>,
    durations: Family<Label, Histogram, fn() -> Histogram>,
    sent_bytes: Counter,
    accepted: Counter,
    refused: Family<Label, Counter>,
    started_unix: f64,
}

impl HttpCounters {
    pub(super) fn new() -> Self {
        let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            sent_bytes: Counter::default(),
            accepted: Counter::default(),
            refused: zeros("reason", &["all", "address"]),
            started_unix: started.as_secs_f64(),
        }
    }

    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn refused(&self, full: Full) {
        let reason = match full {
            Full::All => "all",
            Full::Address => "address",
        };
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// An answer was sent, or its client went away meanwhile.
    pub(super) fn answered(&self, route: Route, status: StatusCode, bytes: u64, took: Duration) {
        let labels = [("route", route.word()), ("status", word(status))];
        self.requests.get_or_create(&labels).inc();
        self.durations
            .get_or_create(&[("route", route.word())])
            .observe(took.as_secs_f64());
        self.sent_bytes.inc_by(bytes);
    }
}

/// Those statuses that the gateway answers with.
fn word(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        206 => "206",
        304 => "304",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        416 => "416",
        500 => "500",
        503 => "503",
        _ => "other",
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let rendered = render(&shared).await;
    match rendered {
        Ok(text) => {
            let headers = [
                (header::CONTENT_TYPE, CONTENT_TYPE),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (headers, text).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, "no metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, "no metrics\n").into_response()
        }
    }
}

async fn render(shared: &Shared) -> Result<String, NodeError> {
    let mut registry = Registry::with_prefix("qk");
    let version = vec![("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "The version that runs", Info::new(version));
    shared.node.counters().register(&mut registry);
    register_http(shared, &mut registry);
    register_store(&shared.node.store_status().await?, &mut registry);
    register_networks(&shared.node, &mut registry).await;
    gauge(
        &mut registry,
        "paused",
        "Whether background work rests and nothing is given: 1 if so",
        None,
        f64::from(u8::from(shared.node.manners().is_paused())),
    );
    // Prometheus' own name for it, without a prefix.
    let mut process = Registry::default();
    gauge(
        &mut process,
        "process_start_time",
        "When the process started, since 1970",
        Some(Unit::Seconds),
        shared.counters.started_unix,
    );
    let mut text = String::new();
    // Only a formatter that fails could fail, and a String does not.
    let _ = prometheus_client::encoding::text::encode_registry(&mut text, &process);
    let _ = encode(&mut text, &registry);
    Ok(text)
}

fn gauge(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: f64,
) {
    let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    gauge.set(value);
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauge),
        None => registry.register(name, help, gauge),
    }
}

fn register_http(shared: &Shared, registry: &mut Registry) {
    let counters = &shared.counters;
    registry.register(
        "http_requests",
        "Answers of the gateway",
        counters.requests.clone(),
    );
    registry.register_with_unit(
        "http_request_duration",
        "From a request's headers to the last byte of its answer",
        Unit::Seconds,
        counters.durations.clone(),
    );
    registry.register_with_unit(
        "http_sent",
        "Bytes of answers' bodies",
        Unit::Bytes,
        counters.sent_bytes.clone(),
    );
    registry.register(
        "http_connections_accepted",
        "Connections to the gateway since the start",
        counters.accepted.clone(),
    );
    registry.register(
        "http_connections_refused",
        "Connections beyond the limit for all, or for one address",
        counters.refused.clone(),
    );
    gauge(
        registry,
        "http_connections",
        "Connections to the gateway",
        None,
        shared.places.taken() as f64,
    );
}

fn register_store(store: &StoreStatus, registry: &mut Registry) {
    gauge(
        registry,
        "store",
        "Bytes of artifacts and their outboards",
        Some(Unit::Bytes),
        store.artifact_bytes as f64,
    );
    gauge(
        registry,
        "store_quota",
        "Bytes that artifacts may take",
        Some(Unit::Bytes),
        store.quota_bytes as f64,
    );
    gauge(
        registry,
        "store_artifacts",
        "Artifacts",
        None,
        store.artifacts as f64,
    );
    gauge(
        registry,
        "statements",
        "Statements that are held",
        None,
        store.counts.statements as f64,
    );
}

/// Networks are those that the owner joined; their ids are the labels, as a name is free text.
async fn register_networks(node: &Node, registry: &mut Registry) {
    type ByNetwork = Family<Vec<(&'static str, String)>, Gauge>;
    let (peers, expires, names) = (
        ByNetwork::default(),
        ByNetwork::default(),
        ByNetwork::default(),
    );
    for member in node.members() {
        let joined = member.joined();
        let labels = vec![("network", member.id().to_string())];
        let connected = match member.net() {
            Some(net) => net.peers().await.map_or(0, |peers| peers.len()),
            None => 0,
        };
        peers
            .get_or_create(&labels)
            .set(i64::try_from(connected).unwrap_or(i64::MAX));
        let end = joined.network.timestamp().expires.0;
        expires
            .get_or_create(&labels)
            .set(i64::try_from(end).unwrap_or(i64::MAX));
        let name = ("name", joined.network.manifest().name.clone());
        names.get_or_create(&[labels, vec![name]].concat()).set(1);
    }
    registry.register("peers", "Connected peers", peers);
    registry.register_with_unit(
        "manifest_expires_timestamp",
        "When the network's timestamp ends, since 1970: past it nothing new is trusted",
        Unit::Seconds,
        expires,
    );
    registry.register("network_name", "The name of a network, always 1", names);
}
