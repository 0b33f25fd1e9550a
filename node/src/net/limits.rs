//! Every bound of the network side, in one place.

use std::time::Duration;

pub use qk_protocol::message::{REPLY_BYTES_MAX, REQUEST_BYTES_MAX};

/// Longest time an index exchange may take on the wire, whatever the asker's own deadline.
pub const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(30);
/// Time to dial, authenticate and multiplex a connection.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Streams that one connection may have open, all protocols together.
pub const STREAMS_PER_CONNECTION_MAX: usize = 32;
/// Index exchanges that one connection may have open, both directions together.
pub const EXCHANGES_PER_CONNECTION_MAX: usize = 16;
/// Bytes that one QUIC stream may have in flight, unacknowledged.
pub const QUIC_STREAM_BYTES_MAX: u32 = 2 << 20;
/// Bytes that one QUIC connection may have in flight, unacknowledged.
pub const QUIC_CONNECTION_BYTES_MAX: u32 = 8 << 20;
/// Commands waiting for the swarm task.
pub const COMMANDS_PENDING_MAX: usize = 256;
/// Peers that are banned at once; the oldest ban is forgotten first.
pub const BANS_MAX: usize = 4096;
/// How long a ban lasts.
pub const BAN_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Callers whose rate is remembered.
pub const RATES_MAX: usize = 8192;
/// Nodes of one prefix in the routing table.
pub const TABLE_PER_PREFIX_MAX: usize = 3;
/// Nodes of one prefix in one bucket of the routing table.
pub const BUCKET_PER_PREFIX_MAX: usize = 2;
/// Addresses that the owner has named.
pub const NAMED_MAX: usize = 1024;

/// What a node allows; the two presets are for a laptop and for a node that serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Inbound connections that have not finished their handshake.
    pub pending_in_max: usize,
    /// Of these, those of one IPv4 /24 or IPv6 /48; loopback is exempt.
    pub pending_in_per_prefix_max: usize,
    /// Outbound connections that have not finished their handshake.
    pub pending_out_max: usize,
    /// Established inbound connections.
    pub established_in_max: usize,
    /// Established outbound connections.
    pub established_out_max: usize,
    /// Established connections, both directions.
    pub established_max: usize,
    /// Established connections with one peer.
    pub per_peer_max: usize,
    /// Connections, pending inbound or established, with one IPv4 /24 or IPv6 /48; loopback is exempt.
    pub per_prefix_max: usize,
    /// Time after which a connection without streams is closed.
    pub idle_time_max: Duration,
    /// Requests being answered.
    pub answering_max: usize,
    /// Requests of one peer being answered.
    pub answering_per_peer_max: usize,
    /// Requests that one peer may send a second, in the long run.
    pub requests_per_second: f64,
    /// Requests that one peer may send at once.
    pub requests_burst: f64,
    /// How many times the rate of one peer its whole prefix may use; loopback is exempt.
    pub prefix_rate_factor: f64,
    /// Bytes of requests being read or answered.
    pub request_bytes_held_max: usize,
    /// Bytes of replies being received.
    pub reply_bytes_held_max: usize,
    /// Requests of our own that wait for a reply.
    pub asking_max: usize,
    /// Requests of our own that wait for a reply of one peer.
    pub asking_per_peer_max: usize,
}

impl Limits {
    /// For a machine whose owner should not notice: 16 connections.
    pub fn laptop() -> Self {
        Self {
            pending_in_max: 8,
            pending_in_per_prefix_max: 3,
            pending_out_max: 12,
            established_in_max: 6,
            established_out_max: 12,
            established_max: 16,
            per_peer_max: 3,
            per_prefix_max: 6,
            idle_time_max: Duration::from_secs(30),
            answering_max: 16,
            answering_per_peer_max: 4,
            requests_per_second: 10.0,
            requests_burst: 40.0,
            prefix_rate_factor: 4.0,
            request_bytes_held_max: 8 << 20,
            reply_bytes_held_max: 64 << 20,
            asking_max: 128,
            asking_per_peer_max: 12,
        }
    }

    /// For a node that serves others.
    pub fn server() -> Self {
        Self {
            pending_in_max: 64,
            pending_in_per_prefix_max: 16,
            pending_out_max: 32,
            established_in_max: 400,
            established_out_max: 128,
            established_max: 512,
            per_peer_max: 4,
            per_prefix_max: 64,
            idle_time_max: Duration::from_secs(60),
            answering_max: 128,
            answering_per_peer_max: 8,
            requests_per_second: 50.0,
            requests_burst: 200.0,
            prefix_rate_factor: 8.0,
            request_bytes_held_max: 64 << 20,
            reply_bytes_held_max: 128 << 20,
            asking_max: 512,
            asking_per_peer_max: 12,
        }
    }

    /// For the cache of a laboratory: as [`server`](Self::server), but its clients are many and all
    /// of one prefix.
    pub fn cache() -> Self {
        let server = Self::server();
        Self {
            pending_in_max: 256,
            pending_in_per_prefix_max: 256,
            per_prefix_max: server.established_in_max,
            prefix_rate_factor: 64.0,
            ..server
        }
    }
}
