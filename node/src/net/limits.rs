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
/// How often a QUIC connection without traffic says that it is there: more often than NATs forget.
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(12);
/// How long a QUIC connection may be silent.
pub const QUIC_SILENCE_MAX: Duration = Duration::from_secs(40);
/// How often a connection is looked at whether it is alive; each time its muxer looks, too.
pub const PING_INTERVAL: Duration = Duration::from_secs(45);
/// How often peers tell each other again who they are; what changes is told at once.
pub const IDENTIFY_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How often the addresses of this machine's interfaces are looked at, for multicast DNS.
pub const INTERFACES_INTERVAL_SECONDS: u32 = 30;
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
/// Time to dial a direct address and finish the handshake. Less than the ten seconds that AutoNAT
/// gives to a whole exchange: where a packet filter drops what is sent, "not reachable" is an answer
/// and silence is none, so that a client would ask for ever.
pub const DIAL_TIME_MAX: Duration = Duration::from_secs(6);

/// How often a node looks anew at which addresses it can be reached.
pub const REACH_INTERVAL: Duration = Duration::from_secs(3 * 60 * 60);
/// Shortest time between two such rounds; where the first ones were in vain it grows fourfold each
/// time, up to the above.
pub const REACH_INTERVAL_MIN: Duration = Duration::from_secs(60);
/// Time between probes of one round.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Probes of one round. One costs up to 100 kB, since a server asks for as much before it dials.
pub const PROBES_MAX: usize = 12;
/// Probes of one round for each address.
pub const PROBES_PER_CANDIDATE: usize = 3;
/// Addresses of its own that a node has others try, or names to whoever wants a direct connection.
pub const CANDIDATES_MAX: usize = 6;
/// Addresses that a peer may name for a direct connection in place of a relayed one.
pub const PUNCH_ADDRESSES_MAX: usize = 2 * CANDIDATES_MAX;
/// How long whoever dialled over a relay waits for a direct connection.
pub const PUNCH_TIME_MAX: Duration = EXCHANGE_TIME_MAX;
/// How long after a direct connection in place of a relayed one superfluous ones may still close.
pub const PUNCH_SETTLE_TIME: Duration = Duration::from_secs(1);
/// How long a relayed connection lives: all it is good for is to bring about a direct one.
pub const RELAYED_TIME_MAX: Duration = Duration::from_secs(20);
/// Relays that a node has a reservation at.
pub const RESERVATIONS_MAX: usize = 2;
/// Relays that are remembered.
pub const RELAYS_MAX: usize = 8;
/// Shortest time until a relay that failed is asked again; it doubles with each failure.
pub const RELAY_RETRY_MIN: Duration = Duration::from_secs(15);
/// Longest such time.
pub const RELAY_RETRY_MAX: Duration = Duration::from_secs(15 * 60);

/// Dial-backs for clients of one prefix in the long run, as one in three minutes.
pub const DIAL_BACKS_PER_SECOND: f64 = 1.0 / 180.0;
/// Dial-backs for clients of one prefix at once.
pub const DIAL_BACKS_BURST: f64 = 24.0;
/// Dial-backs under way.
pub const DIAL_BACKS_PENDING_MAX: usize = 16;

/// Reservations at a relay.
pub const RELAY_RESERVATIONS_MAX: usize = 128;
/// Reservations of one peer.
pub const RELAY_RESERVATIONS_PER_PEER_MAX: usize = 2;
/// How long a reservation lasts; a client renews it shortly before.
pub const RELAY_RESERVATION_TIME: Duration = Duration::from_secs(60 * 60);
/// Circuits of a relay.
pub const RELAY_CIRCUITS_MAX: usize = 16;
/// Circuits of one peer.
pub const RELAY_CIRCUITS_PER_PEER_MAX: usize = 4;
/// How long a circuit lasts.
pub const RELAY_CIRCUIT_TIME_MAX: Duration = Duration::from_secs(2 * 60);
/// Bytes that a circuit carries in one direction.
pub const RELAY_CIRCUIT_BYTES_MAX: u64 = 128 << 10;
/// Reservations and circuits, each, that one peer may ask of a relay at once.
pub const RELAY_BURST: f64 = 16.0;
/// The same in the long run, a second: one in a minute.
pub const RELAY_PER_SECOND: f64 = 1.0 / 60.0;
/// How many times the rate of one peer its whole prefix may use.
pub const RELAY_PREFIX_FACTOR: f64 = 4.0;

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
    /// Relayed connections, pending inbound or established.
    pub relayed_max: usize,
    /// Relayed connections over relays of one prefix.
    pub relayed_per_prefix_max: usize,
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
    /// Bytes of memory of the whole process from which on inbound connections are closed.
    pub memory_bytes_max: u64,
    /// Requests of our own that wait for a reply.
    pub asking_max: usize,
    /// Requests of our own that wait for a reply of one peer.
    pub asking_per_peer_max: usize,
}

impl Limits {
    /// Inbound handshakes at once; with one more, another one makes room. Much fewer than
    /// [`pending_in_max`](Self::pending_in_max): one that makes room takes its time to go.
    pub fn handshakes_in_max(&self) -> usize {
        self.pending_in_max / 4
    }

    /// Established inbound connections from which on the prefix that has the most makes room.
    pub fn crowded_in(&self) -> usize {
        self.established_in_max - self.established_in_max / 8
    }

    /// For a machine whose owner should not notice: 16 connections.
    pub fn laptop() -> Self {
        Self {
            pending_in_max: 32,
            pending_in_per_prefix_max: 3,
            pending_out_max: 12,
            established_in_max: 6,
            established_out_max: 12,
            established_max: 16,
            per_peer_max: 3,
            per_prefix_max: 6,
            relayed_max: 4,
            relayed_per_prefix_max: 3,
            idle_time_max: Duration::from_secs(30),
            answering_max: 16,
            answering_per_peer_max: 4,
            requests_per_second: 10.0,
            requests_burst: 40.0,
            prefix_rate_factor: 4.0,
            request_bytes_held_max: 8 << 20,
            reply_bytes_held_max: 64 << 20,
            memory_bytes_max: 512 << 20,
            asking_max: 128,
            asking_per_peer_max: 12,
        }
    }

    /// With at most so many connections: half of them for those who call, so that they cannot keep
    /// the node from calling anybody itself.
    pub fn connections(self, connections: usize) -> Self {
        let at_least_one = |part: usize| part.max(1);
        Self {
            pending_in_max: self.pending_in_max.min(connections),
            pending_out_max: self.pending_out_max.min(connections),
            established_in_max: self.established_in_max.min(at_least_one(connections / 2)),
            established_out_max: self
                .established_out_max
                .min(at_least_one(connections * 3 / 4)),
            established_max: self.established_max.min(connections),
            ..self
        }
    }

    /// For a node that serves others.
    pub fn server() -> Self {
        Self {
            pending_in_max: 256,
            pending_in_per_prefix_max: 16,
            pending_out_max: 32,
            established_in_max: 400,
            established_out_max: 128,
            established_max: 512,
            per_peer_max: 4,
            per_prefix_max: 64,
            relayed_max: 16,
            relayed_per_prefix_max: 8,
            idle_time_max: Duration::from_secs(60),
            answering_max: 128,
            answering_per_peer_max: 8,
            requests_per_second: 50.0,
            requests_burst: 200.0,
            prefix_rate_factor: 8.0,
            request_bytes_held_max: 64 << 20,
            reply_bytes_held_max: 128 << 20,
            memory_bytes_max: 2 << 30,
            asking_max: 512,
            asking_per_peer_max: 12,
        }
    }

    /// For the cache of a laboratory: as [`server`](Self::server), but its clients are many and all
    /// of one prefix.
    pub fn cache() -> Self {
        let server = Self::server();
        Self {
            // A hundred clients that begin at once are no crowd.
            pending_in_max: 1024,
            pending_in_per_prefix_max: 1024,
            per_prefix_max: server.established_in_max,
            prefix_rate_factor: 64.0,
            ..server
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_leaves_room_for_both_directions() {
        let capped = Limits::server().connections(16);
        let connections = (
            capped.established_in_max,
            capped.established_out_max,
            capped.established_max,
        );
        assert_eq!(connections, (8, 12, 16));
        let least = Limits::laptop().connections(2);
        assert_eq!(
            (least.established_in_max, least.established_out_max),
            (1, 1)
        );
        // It never allows more than there was.
        assert_eq!(Limits::laptop().connections(10_000), Limits::laptop());
    }
}
