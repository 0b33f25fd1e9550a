//! The swarm: who this node is connected with, and what goes over those connections.
//!
//! [`Net`] is a handle; one task owns the libp2p swarm and does all that changes it.
//! A request of another node is answered in a task of its own, so that neither a slow disk nor a
//! panic stalls the network. What a request means is decided elsewhere: here it is bytes.
//!
//! Nothing that a peer can cause is without a bound, see [`limits`].

pub mod address;
mod answers;
mod asks;
mod behaviour;
mod codec;
mod dial_back;
mod gate;
mod handshakes;
mod keep;
mod lan;
pub mod limits;
pub mod noise;
mod only;
mod rate;
mod reach;
mod swarm;
mod table;
#[cfg(test)]
mod tests;
mod thin;
mod transport;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libp2p::Transport;
use libp2p::core::upgrade::Version;
pub use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
pub use libp2p::pnet::PreSharedKey;
use libp2p::relay;
use libp2p::swarm::Swarm;
pub use libp2p::{Multiaddr, PeerId};
use qk_protocol::hash::{NetworkId, Point};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use self::address::{AddressRules, Circuit, Contact, ContactError, point_of};
use self::answers::{Answers, Handler};
use self::asks::{Ask, Asks};
pub use self::behaviour::protocol_name;
use self::behaviour::{Across, Behaviour, Protocols};
pub use self::gate::{Ban, Refused};
use self::handshakes::Handshakes;
use self::keep::Keeps;
pub use self::keep::Kept;
use self::lan::Lan;
pub use self::lan::{LanNode, LanRole};
use self::limits::{COMMANDS_PENDING_MAX, EXCHANGE_TIME_MAX};
pub use self::limits::{Limits, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use self::reach::Knowledge;
use self::swarm::{Command, Task};
use self::transport::Permits;
use crate::blocks::behaviour::{self as blocks, Lanes, OnLane};

/// Events that a slow listener may miss before it is told so.
const EVENTS_PENDING_MAX: usize = 256;

/// How a node takes part in a network.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The node's key; its peer id is the hash of it.
    pub identity: Keypair,
    /// The network: nodes of different networks share no protocol.
    pub network: NetworkId,
    /// Where to listen; nowhere if empty.
    pub listen: Vec<Multiaddr>,
    /// Addresses at which others reach this node beside those it listens on, for instance behind
    /// a forwarded port.
    pub external: Vec<Multiaddr>,
    /// Nodes to begin with, each with `/p2p` at its end.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether others may put this node into their routing tables: with [`NatConfig::traverse`] only
    /// once it is known to be reachable.
    pub server: bool,
    /// What is done about NATs.
    pub nat: NatConfig,
    /// What this node announces itself as on the LAN by multicast DNS, while it looks for others
    /// there; none keeps it silent and deaf.
    pub lan: Option<LanRole>,
    /// The key that all nodes of a private network share. Whoever lacks it cannot even begin to
    /// talk to this node. It works on TCP alone, so that there is no QUIC then.
    pub pre_shared: Option<PreSharedKey>,
    /// Whether QUIC is spoken beside TCP.
    pub quic: bool,
    /// Whether addresses of private networks and loopback that strangers name are dialled.
    pub allow_private: bool,
    /// What is allowed to whom.
    pub limits: Limits,
}

/// What a node does about NATs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatConfig {
    /// Whether to find out if this node can be reached, and to use relays where it or others cannot.
    pub traverse: bool,
    /// Whether to relay for others, once it can be reached itself.
    pub relay: bool,
}

/// Whether others can dial a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reachability {
    /// The owner or the manifest named an address, or others have dialled one.
    Public,
    /// Others tried its addresses in vain.
    Private,
    /// Nobody has tried yet.
    #[default]
    Unknown,
}

/// Where others reach a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Whether they can at all.
    pub reachability: Reachability,
    /// Addresses that are known to lead to it.
    pub external: Vec<Multiaddr>,
    /// Addresses over relays that it has reservations at.
    pub relayed: Vec<Multiaddr>,
}

/// A handle of a node's network side. Clones share it; when the last is dropped, the node ends.
#[derive(Debug, Clone)]
pub struct Net {
    local: PeerId,
    permits: Arc<Permits>,
    keeps: Keeps,
    lanes: Lanes,
    commands: mpsc::Sender<Command>,
    events: broadcast::WeakSender<Event>,
}

/// Why a network side did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key is not usable for encryption.
    #[error("this identity cannot encrypt: {0}")]
    Identity(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// A bootstrap address that names no node.
    #[error("bootstrap: {0}")]
    Bootstrap(#[from] ContactError),
}

/// Why a request got no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The contact has no address that can be dialled, and there is no connection.
    #[error("no address of it is known")]
    NoAddress,
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Dial(String),
    /// A relay connected with it, but no direct connection came of that.
    #[error(
        "no direct connection came about over the relay: both sides are behind NATs or packet \
         filters that let none through"
    )]
    NoDirect,
    /// The peer is banned here.
    #[error("banned: {why}")]
    Banned {
        /// What it did.
        why: String,
    },
    /// The contact is this node.
    #[error("it is this node itself")]
    Oneself,
    /// No reply within the caller's time.
    #[error("no reply in time")]
    TimedOut,
    /// The peer did not serve the request: it has too many, or does not like this one.
    #[error("it refused to answer")]
    Refused,
    /// The peer does not speak the protocols of this network.
    #[error("it is not a node of this network")]
    OtherNetwork,
    /// The connection broke; the request may have been served or not.
    #[error("the connection broke")]
    Lost,
    /// The exchange failed otherwise.
    #[error("the exchange failed: {0}")]
    Stream(String),
    /// The request is longer than the protocol allows.
    #[error("a request of {bytes} bytes is longer than {REQUEST_BYTES_MAX} bytes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Too many requests of our own wait already.
    #[error("too many requests wait for a reply already")]
    Busy,
    /// The network side has ended.
    #[error("the network side of this node has ended")]
    Ended,
}

/// What others may want to know as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node entered the routing table.
    Routed(Contact),
    /// A node of this network was found on the LAN, or announces itself anew.
    OnLan(LanNode),
    /// It is known anew where others reach this node.
    Reach(Reach),
    /// A node left the routing table since it cannot be reached or is banned.
    Forgotten(PeerId),
}

/// A connected peer, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who.
    pub peer: PeerId,
    /// What it calls its program: printable ASCII, at most 64 characters; empty until it said so.
    pub agent: String,
    /// Whether it serves this network.
    pub server: bool,
    /// Round trip time of the last ping; before the first, about what dialling it says.
    pub rtt: Option<Duration>,
    /// How long there has been a connection.
    pub connected_for: Duration,
    /// All connections with it.
    pub connections: Vec<Connection>,
}

/// A connection, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The remote address, without `/p2p`.
    pub address: Multiaddr,
    /// `tcp`, `quic`, `relay` or `other`.
    pub transport: &'static str,
    /// Whether this node dialled it.
    pub dialled: bool,
}

/// The key pair of an ed25519 secret of 32 bytes.
pub fn identity_of(mut secret: [u8; 32]) -> Result<Keypair, StartError> {
    Keypair::ed25519_from_bytes(&mut secret)
        .map_err(|error| StartError::Identity(error.to_string()))
}

impl Net {
    /// Starts the network side of a node and returns when its listeners have their addresses.
    ///
    /// `handler` answers requests: from whom, their address as seen here, the request's bytes (at
    /// most [`REQUEST_BYTES_MAX`]). An empty answer refuses; one longer than [`REPLY_BYTES_MAX`] is
    /// not sent. It is aborted when the asker is gone or [`limits::EXCHANGE_TIME_MAX`] has passed.
    /// `on_lane` is given the block streams that others open; without it none are offered.
    pub async fn start<H, F>(
        config: NetConfig,
        handler: H,
        on_lane: Option<OnLane>,
    ) -> Result<Self, StartError>
    where
        H: Fn(PeerId, Multiaddr, Vec<u8>) -> F + Send + Sync + 'static,
        F: Future<Output = Vec<u8>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |peer, observed, request| {
            let handler = handler.clone();
            Box::pin(async move { handler(peer, observed, request).await })
        });
        let permits = Arc::new(Permits::new(AddressRules {
            allow_private: config.allow_private,
            quic: config.quic && config.pre_shared.is_none(),
        }));
        let (net, started, task) = prepare(&config, handler, on_lane, permits)?;
        tokio::spawn(task.run());
        // An error means that the task ended; the first command will say so.
        let _ = started.await;
        Ok(net)
    }

    /// Sends `request` to a node and returns its reply, at most [`REPLY_BYTES_MAX`] bytes. Dials it
    /// if there is no connection, at two addresses at most. Gives up after `time`, or after
    /// [`limits::EXCHANGE_TIME_MAX`] if that is less.
    ///
    /// A request may reach the node twice when a connection breaks: it must not matter.
    pub async fn ask(
        &self,
        contact: Contact,
        request: Vec<u8>,
        time: Duration,
    ) -> Result<Vec<u8>, AskError> {
        self.errand(contact, Some(request), time).await
    }

    /// The `n` nodes of the routing table nearest to `point`, nearest first; without this node.
    pub async fn closest(&self, point: Point, n: usize) -> Result<Vec<Contact>, AskError> {
        self.query(|reply| Command::Closest(point, n, reply)).await
    }

    /// All nodes of the routing table.
    pub async fn contacts(&self) -> Result<Vec<Contact>, AskError> {
        self.query(Command::Contacts).await
    }

    /// All connected peers, by peer id.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, AskError> {
        self.query(Command::Peers).await
    }

    /// The round trip time to a connected peer, as far as it is known.
    pub async fn rtt(&self, peer: PeerId) -> Option<Duration> {
        let peers = self.peers().await.ok()?;
        peers.into_iter().find(|one| one.peer == peer)?.rtt
    }

    /// The addresses that this node listens on.
    pub async fn listen_addrs(&self) -> Result<Vec<Multiaddr>, AskError> {
        self.query(Command::Listening).await
    }

    /// Where others reach this node.
    pub async fn reach(&self) -> Result<Reach, AskError> {
        self.query(Command::Reach).await
    }

    /// The IP addresses at which this node knows others to be, itself included.
    pub async fn hosts(&self, peers: Vec<PeerId>) -> Result<Vec<(PeerId, IpAddr)>, AskError> {
        self.query(|reply| Command::Hosts(peers, reply)).await
    }

    /// This node.
    pub fn local_peer(&self) -> PeerId {
        self.local
    }

    /// What permits an address that a stranger names.
    pub fn address_rules(&self) -> AddressRules {
        self.permits.rules
    }

    /// Permits an address by the owner's word, whatever it is (private, a DNS name), and returns
    /// the contact to ask. The address ends in `/p2p/<peer id>`. At most
    /// [`limits::NAMED_MAX`] are remembered.
    pub fn name(&self, address: &Multiaddr) -> Result<Contact, ContactError> {
        let contact = Contact::named(address)?;
        if !self.permits.name(address) {
            tracing::warn!(%address, "too many named addresses: this one is not dialled");
        }
        Ok(contact)
    }

    /// The nodes of this network on the LAN, as they announce themselves.
    pub async fn lan(&self) -> Result<Vec<LanNode>, AskError> {
        self.query(Command::Lan).await
    }

    /// Sees to it that there is a direct connection with a node, as [`Self::ask`] does before it
    /// sends. Where a node can be dialled over a relay alone, that is waited for until the relayed
    /// connection has brought about a direct one: give it [`limits::PUNCH_TIME_MAX`].
    pub async fn connect(&self, contact: Contact, time: Duration) -> Result<(), AskError> {
        self.errand(contact, None, time).await.map(|_| ())
    }

    /// Opens block streams to peers that are connected; see [`Self::connect`] and [`Self::keep`].
    pub fn lanes(&self) -> Lanes {
        self.lanes.clone()
    }

    /// Marks a peer as in use: while the mark lives, its connection is not closed to make room for
    /// another. What is transferred over a connection beside requests needs this.
    pub fn keep(&self, peer: PeerId) -> Kept {
        self.keeps.keep(peer)
    }

    /// Closes all connections with a peer, and refuses it for [`limits::BAN_TIME`].
    pub async fn ban(&self, peer: PeerId, why: impl Into<String>) -> Result<(), AskError> {
        self.send(Command::Ban(peer, why.into())).await
    }

    /// All bans in force, oldest first.
    pub async fn bans(&self) -> Result<Vec<Ban>, AskError> {
        self.query(Command::Bans).await
    }

    /// What happens from now on; nothing more comes once the node has ended.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Closes all connections and ends the node; returns when that is done.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        if self.send(Command::Shutdown(done)).await.is_ok() {
            // The task drops the sender when it has closed its connections.
            let _ = ended.await;
        }
    }

    async fn errand(
        &self,
        contact: Contact,
        request: Option<Vec<u8>>,
        time: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.send(Command::Ask(Ask {
                contact,
                request,
                reply,
            }))
            .await?;
            answer.await.map_err(|_| AskError::Ended)?
        };
        match tokio::time::timeout(time.min(EXCHANGE_TIME_MAX), exchange).await {
            Ok(result) => result,
            Err(_) => {
                // If the queue is full, the dial ends by its own time-out instead.
                let _ = self.commands.try_send(Command::Prune);
                Err(AskError::TimedOut)
            }
        }
    }

    async fn query<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| AskError::Ended)
    }

    async fn send(&self, command: Command) -> Result<(), AskError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| AskError::Ended)
    }
}

/// Builds the swarm and what belongs to it, without running it.
fn prepare(
    config: &NetConfig,
    handler: Handler,
    on_lane: Option<OnLane>,
    permits: Arc<Permits>,
) -> Result<(Net, oneshot::Receiver<()>, Task), StartError> {
    let bootstrap = config
        .bootstrap
        .iter()
        .map(|address| {
            permits.name(address);
            Contact::named(address)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let protocols = Protocols::of(&config.network);
    let (blocks, lanes) =
        blocks::Behaviour::new(protocol_name(&config.network, "blocks/1"), on_lane);
    let mut swarm = build_swarm(config, &protocols, blocks, permits.clone())?;
    let starting = config
        .listen
        .iter()
        .map(|address| listen(&mut swarm, address))
        .collect::<Result<_, _>>()?;
    for address in &config.external {
        swarm.add_external_address(address.clone());
    }
    let reach = Knowledge::new(
        config.nat.traverse,
        config.server,
        config.nat.relay,
        config.external.iter().cloned(),
    );
    let lan = config
        .lan
        .and_then(|role| start_lan(config, &permits, role));
    let (commands, inbox) = mpsc::channel(COMMANDS_PENDING_MAX);
    let events = broadcast::Sender::new(EVENTS_PENDING_MAX);
    let keeps = Keeps::default();
    let (report, started) = oneshot::channel();
    let net = Net {
        local: *swarm.local_peer_id(),
        permits: permits.clone(),
        keeps: keeps.clone(),
        lanes,
        commands,
        events: events.downgrade(),
    };
    let task = Task {
        swarm,
        commands: inbox,
        events,
        protocols,
        permits,
        bootstrap,
        asks: Asks::new(&config.limits),
        answers: Answers::new(&config.limits, handler),
        lan,
        is_private: config.pre_shared.is_some(),
        peers: BTreeMap::new(),
        keeps,
        reach,
        limits: config.limits.clone(),
        failed_dials: HashMap::new(),
        starting,
        started: Some(report),
    };
    Ok((net, started, task))
}

// A machine where multicast does not work has a network all the same.
fn start_lan(config: &NetConfig, permits: &Permits, role: LanRole) -> Option<Lan> {
    let local = config.identity.public().to_peer_id();
    let network = behaviour::short(&config.network);
    match Lan::start(network, local, role, permits.rules) {
        Ok(lan) => Some(lan),
        Err(error) => {
            tracing::warn!(%error, "no discovery on the LAN");
            None
        }
    }
}

fn build_swarm(
    config: &NetConfig,
    protocols: &Protocols,
    blocks: blocks::Behaviour,
    permits: Arc<Permits>,
) -> Result<Swarm<Behaviour>, StartError> {
    let keypair = &config.identity;
    let (over_relays, relays) = match config.nat.traverse {
        true => {
            let (transport, behaviour) = relay::client::new(keypair.public().to_peer_id());
            (Some(transport), Some(behaviour))
        }
        false => (None, None),
    };
    let across = Across {
        probes: config.nat.traverse && config.server,
        dial_backs: config.nat.traverse && config.server,
        relay: config.nat.traverse && config.nat.relay,
        relays,
        rules: permits.rules,
    };
    let transport = transport::build(keypair, config.pre_shared, over_relays, permits)
        .map_err(|error| StartError::Identity(error.to_string()))?;
    let transport = Handshakes::new(transport, config.limits.handshakes_in_max()).boxed();
    let server = config.server && !config.nat.traverse;
    let behaviour = Behaviour::new(keypair, protocols, &config.limits, server, blocks, across);
    let settings = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(config.limits.idle_time_max)
        // A stream's protocol is named together with what is first sent: a round trip less for each.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(limits::STREAMS_PER_CONNECTION_MAX);
    let local = keypair.public().to_peer_id();
    Ok(Swarm::new(transport, behaviour, local, settings))
}

fn listen(
    swarm: &mut Swarm<Behaviour>,
    address: &Multiaddr,
) -> Result<libp2p::core::transport::ListenerId, StartError> {
    let failed = |reason: String| StartError::Listen {
        address: address.clone(),
        reason,
    };
    // libp2p lets several sockets share a port, so that a second node on it would go unnoticed and
    // get some of the first one's connections.
    if let Some(socket) = tcp_socket(address) {
        std::net::TcpListener::bind(socket).map_err(|error| failed(error.to_string()))?;
    }
    swarm
        .listen_on(address.clone())
        .map_err(|error| failed(transport_reason(error)))
}

/// The socket of a TCP address with a port of its own choice.
fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?) {
        (Protocol::Ip4(ip), Protocol::Tcp(port)) if port != 0 => Some((ip, port).into()),
        (Protocol::Ip6(ip), Protocol::Tcp(port)) if port != 0 => Some((ip, port).into()),
        _ => None,
    }
}

fn transport_reason(error: libp2p::TransportError<io::Error>) -> String {
    match error {
        libp2p::TransportError::MultiaddrNotSupported(_) => {
            "no transport of this node takes such an address".into()
        }
        libp2p::TransportError::Other(error) => error.to_string(),
    }
}
