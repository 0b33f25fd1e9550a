//! What a node has counted since it started, for whoever watches it.
//!
//! Labels are words of this file and of nobody else, so that no peer makes a series.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use qk_protocol::blocks::Status;
use qk_protocol::message::Request;

use crate::node::{FetchError, Fetched, From};

/// One label: a name and a value, both of this program.
pub(crate) type Label = [(&'static str, &'static str); 1];

/// Every kind of a request of `/qk/index/1`, and bytes that are none.
const INDEX_KINDS: [&str; 6] = ["put", "have", "get", "near", "network", "malformed"];
/// Every way in which a request of `/qk/blocks/1` is answered.
const BLOCKS_STATUSES: [&str; 5] = ["ok", "lacks", "busy", "bad_range", "not_spoken"];
/// Every way in which a fetch ends.
const FETCH_OUTCOMES: [&str; 6] = [
    "store",
    "network",
    "not_trusted",
    "silent",
    "not_available",
    "failed",
];

/// Counters of one node. Clones count together.
#[derive(Debug, Clone)]
pub struct Counters {
    blocks_sent_bytes: Counter,
    blocks_received_bytes: Counter,
    blocks_requests: Family<Label, Counter>,
    index_requests: Family<Label, Counter>,
    fetches: Family<Label, Counter>,
}

impl Default for Counters {
    /// All series are there from the beginning: one that only appears with its first event hides it
    /// from whoever asks by how much it grew.
    fn default() -> Self {
        Self {
            blocks_sent_bytes: Counter::default(),
            blocks_received_bytes: Counter::default(),
            blocks_requests: zeros("status", &BLOCKS_STATUSES),
            index_requests: zeros("kind", &INDEX_KINDS),
            fetches: zeros("outcome", &FETCH_OUTCOMES),
        }
    }
}

impl Counters {
    /// A request for blocks was answered with this status and so many bytes.
    pub fn blocks_answered(&self, status: Status, bytes: usize) {
        let word = match status {
            Status::Ok => "ok",
            Status::Lacks => "lacks",
            Status::Busy => "busy",
            Status::BadRange => "bad_range",
            Status::NotSpoken => "not_spoken",
        };
        self.blocks_requests
            .get_or_create(&[("status", word)])
            .inc();
        self.blocks_sent_bytes.inc_by(bytes as u64);
    }

    /// So many bytes of a blob were received, verified and written.
    pub fn blocks_received(&self, bytes: u64) {
        self.blocks_received_bytes.inc_by(bytes);
    }

    /// A peer asked something of the index; `None` for what is no request.
    pub fn index_asked<S>(&self, request: Option<&Request<S>>) {
        let word = match request {
            Some(Request::Put(_)) => "put",
            Some(Request::Have(_)) => "have",
            Some(Request::Get(_)) => "get",
            Some(Request::Near { .. }) => "near",
            Some(Request::Network { .. }) => "network",
            Some(Request::Log { .. }) => "log",
            None => "malformed",
        };
        self.index_requests.get_or_create(&[("kind", word)]).inc();
    }

    /// A fetch ended.
    pub fn fetch_ended(&self, fetched: &Result<Fetched, FetchError>) {
        let word = match fetched {
            Ok(fetched) if fetched.from == From::Store => "store",
            Ok(_) => "network",
            Err(FetchError::NotTrusted { .. }) => "not_trusted",
            Err(FetchError::Silent { .. }) => "silent",
            Err(FetchError::Download { .. } | FetchError::NotHere(_)) => "not_available",
            Err(_) => "failed",
        };
        self.fetches.get_or_create(&[("outcome", word)]).inc();
    }

    /// Bytes of answers about blocks.
    pub fn sent_bytes(&self) -> u64 {
        self.blocks_sent_bytes.get()
    }

    /// Bytes of artifacts that came, verified.
    pub fn received_bytes(&self) -> u64 {
        self.blocks_received_bytes.get()
    }

    /// Requests for blocks that were answered with blocks.
    pub fn blocks_given(&self) -> u64 {
        self.blocks_requests
            .get_or_create(&[("status", "ok")])
            .get()
    }

    /// Requests of the index that were requests.
    pub fn index_answered(&self) -> u64 {
        let kinds = INDEX_KINDS.iter().filter(|kind| **kind != "malformed");
        let counted =
            |kind: &&'static str| self.index_requests.get_or_create(&[("kind", *kind)]).get();
        kinds.map(counted).sum()
    }

    /// Makes all counters part of a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "blocks_sent",
            "Bytes of blocks that were sent to peers, hashes included",
            Unit::Bytes,
            self.blocks_sent_bytes.clone(),
        );
        registry.register_with_unit(
            "blocks_received",
            "Bytes of artifacts that were received, verified and written",
            Unit::Bytes,
            self.blocks_received_bytes.clone(),
        );
        registry.register(
            "blocks_requests",
            "Requests for blocks by peers, by how they were answered",
            self.blocks_requests.clone(),
        );
        registry.register(
            "index_requests",
            "Requests to the index by peers, by what they ask",
            self.index_requests.clone(),
        );
        registry.register(
            "fetches",
            "Fetches by the owner, by how they ended",
            self.fetches.clone(),
        );
    }
}

/// A family with a series of zero for each of these values.
pub(crate) fn zeros(name: &'static str, values: &[&'static str]) -> Family<Label, Counter> {
    let family = Family::<Label, Counter>::default();
    for value in values {
        drop(family.get_or_create(&[(name, value)]));
    }
    family
}
