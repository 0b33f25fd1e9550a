//! The task that owns the swarm: the only `select!` over it, and the only place that changes it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::relay::HOP_PROTOCOL_NAME;
use libp2p::request_response::{Event as IndexEvent, Message};
use libp2p::swarm::{ConnectionId, DialError, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, dcutr, identify, kad, ping};
use qk_protocol::hash::Point;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::address::{Contact, bare, ip_of, is_circuit, transport_name};
use super::answers::{Answers, Inbound};
use super::asks::{Ask, Asks};
use super::behaviour::{Behaviour, BehaviourEvent, Protocols};
use super::codec::Carried;
use super::gate::Ban;
use super::keep::Keeps;
use super::lan::{Lan, LanChange, LanNode};
use super::limits::Limits;
use super::reach::{self, Knowledge};
use super::table;
use super::transport::Permits;
use super::{Connection, Event, PeerInfo, Reach};

/// Dials of one node that may fail in a row before it leaves the routing table.
const FAILED_DIALS_MAX: u32 = 2;
/// Pings that may fail in a row before a connection counts as dead.
const FAILED_PINGS_MAX: u32 = 2;
/// How often an empty routing table is filled from the bootstrap addresses again.
const REFILL_INTERVAL: Duration = Duration::from_secs(60);
/// How often the process's memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_secs(2);
/// How long a node that shuts down waits for its connections to close.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);
/// Longest agent name kept of a peer, in characters.
const AGENT_CHARS_MAX: usize = 64;

/// What the handle asks of the task.
pub(super) enum Command {
    Ask(Ask),
    /// Somebody stopped waiting for a reply.
    Prune,
    Closest(Point, usize, oneshot::Sender<Vec<Contact>>),
    Contacts(oneshot::Sender<Vec<Contact>>),
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    Listening(oneshot::Sender<Vec<Multiaddr>>),
    Reach(oneshot::Sender<Reach>),
    Hosts(Vec<PeerId>, oneshot::Sender<Vec<(PeerId, IpAddr)>>),
    Lan(oneshot::Sender<Vec<LanNode>>),
    Ban(PeerId, String),
    Bans(oneshot::Sender<Vec<Ban>>),
    Shutdown(oneshot::Sender<()>),
}

/// The swarm and all that is known of its connections.
pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) protocols: Protocols,
    pub(super) permits: Arc<Permits>,
    pub(super) bootstrap: Vec<Contact>,
    pub(super) asks: Asks,
    pub(super) answers: Answers,
    pub(super) lan: Option<Lan>,
    /// Whether the network has a pre-shared key.
    pub(super) is_private: bool,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) keeps: Keeps,
    pub(super) reach: Knowledge,
    pub(super) limits: Limits,
    /// Dials of nodes of the table that failed in a row.
    pub(super) failed_dials: HashMap<PeerId, u32>,
    /// Listeners that have no address yet, and who waits for that.
    pub(super) starting: HashSet<ListenerId>,
    pub(super) started: Option<oneshot::Sender<()>>,
}

/// A connected peer.
#[derive(Debug)]
pub(super) struct Peer {
    since: Instant,
    /// When something was last asked of it, or by it.
    pub(super) used: Instant,
    agent: String,
    server: bool,
    rtt: Option<Duration>,
    failed_pings: u32,
    connections: HashMap<ConnectionId, (ConnectedPoint, Instant)>,
}

impl Peer {
    pub(super) fn endpoint(&self, id: ConnectionId) -> Option<&ConnectedPoint> {
        self.connections.get(&id).map(|(endpoint, _)| endpoint)
    }

    /// Its direct connections.
    pub(super) fn lines(&self) -> impl Iterator<Item = (ConnectionId, &ConnectedPoint)> {
        let all = self.connections.iter();
        all.filter(|(_, (endpoint, _))| !endpoint.is_relayed())
            .map(|(id, (endpoint, _))| (*id, endpoint))
    }

    /// Its relayed connections, and since when there are.
    pub(super) fn relayed(&self) -> impl Iterator<Item = (ConnectionId, Instant)> {
        let all = self.connections.iter();
        all.filter(|(_, (endpoint, _))| endpoint.is_relayed())
            .map(|(id, (_, since))| (*id, *since))
    }
}

impl Task {
    /// Runs until the last handle is dropped or one of them shuts the node down.
    pub(super) async fn run(mut self) {
        let mut refill = interval(REFILL_INTERVAL);
        refill.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut memory = interval(MEMORY_INTERVAL);
        memory.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reach = interval(reach::TICK);
        reach.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.report_started();
        let farewell = loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => break None,
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                answer = self.answers.next() => self.on_answer(answer),
                change = next_on_lan(&mut self.lan) => self.on_lan(change),
                _ = refill.tick() => self.refill(),
                _ = memory.tick() => self.shed_memory(),
                _ = reach.tick() => self.on_reach_tick(),
            }
        };
        self.close().await;
        drop(farewell);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Ask(ask) => self.ask(ask),
            Command::Prune => self.asks.prune(&mut self.swarm),
            Command::Closest(point, n, reply) => {
                let table = &mut self.swarm.behaviour_mut().table;
                drop(reply.send(table::closest(table, point, n)));
            }
            Command::Contacts(reply) => {
                let table = &mut self.swarm.behaviour_mut().table;
                drop(reply.send(table::entries(table)));
            }
            Command::Peers(reply) => drop(reply.send(self.peer_infos())),
            Command::Listening(reply) => {
                drop(reply.send(self.listening()));
            }
            Command::Reach(reply) => drop(reply.send(self.reach())),
            Command::Hosts(peers, reply) => drop(reply.send(self.hosts(&peers))),
            Command::Lan(reply) => {
                drop(reply.send(self.lan.as_ref().map_or_else(Vec::new, Lan::nodes)));
            }
            Command::Ban(peer, why) => self.ban(peer, why),
            Command::Bans(reply) => drop(reply.send(self.swarm.behaviour().gate.bans())),
            // `run` takes it before.
            Command::Shutdown(done) => drop(done),
        }
    }

    fn ask(&mut self, ask: Ask) {
        match self.peers.get_mut(&ask.contact.peer) {
            Some(peer) => peer.used = Instant::now(),
            None => self.make_room(),
        }
        self.asks.start(&mut self.swarm, ask);
    }

    /// Closes the connection that was not used for longest if there could be no other one: a
    /// look-up talks to more nodes than a laptop has places.
    fn make_room(&mut self) {
        let connections = || {
            self.peers
                .values()
                .flat_map(|peer| peer.connections.values())
                .map(|(endpoint, _)| endpoint)
        };
        let dialled = connections().filter(|c| c.is_dialer()).count() + self.asks.dialling();
        let all = connections().count() + self.asks.dialling();
        if dialled < self.limits.established_out_max && all < self.limits.established_max {
            return;
        }
        let idle = self
            .peers
            .iter()
            .filter(|(id, peer)| {
                peer.connections.values().all(|(one, _)| one.is_dialer())
                    && !self.asks.is_asked(id)
                    && !self.keeps.is_kept(id)
            })
            .min_by_key(|(_, peer)| peer.used);
        if let Some((peer, _)) = idle {
            let _ = self.swarm.disconnect_peer_id(*peer);
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                established_in,
                ..
            } => {
                self.on_connected(peer_id, connection_id, endpoint);
                self.on_established(peer_id, connection_id, established_in);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                ..
            } => {
                self.on_closed(peer_id, connection_id);
                self.on_line(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                connection_id,
                error,
            } => {
                self.asks
                    .dial_failed(&mut self.swarm, connection_id, &error);
                self.on_relay_dial_failed(peer, connection_id);
                self.on_dial_failed(peer, &error);
            }
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                // A relay may call it what it likes; what is told others is our own reading.
                if !is_circuit(&address) {
                    tracing::info!(%address, "listening");
                    self.on_listening(&address);
                    self.look_again();
                }
                self.starting.remove(&listener_id);
                self.report_started();
                self.announce();
            }
            SwarmEvent::ExpiredListenAddr { .. } => {
                self.announce();
                self.look_again();
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(&address),
            SwarmEvent::ListenerClosed { listener_id, .. }
                if self.reach.is_reservation(listener_id) =>
            {
                self.on_reservation_over(listener_id);
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => {
                tracing::warn!(?reason, "a listener closed");
                self.starting.remove(&listener_id);
                self.report_started();
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener failed");
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => tracing::debug!(from = %send_back_addr, %error, "inbound connection refused"),
            // The enum is not ours and grows; the others need no action.
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gate(never) | BehaviourEvent::Blocks(never) => match never {},
            BehaviourEvent::Index(event) => self.on_index(event),
            BehaviourEvent::Table(event) => self.on_table(event),
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Probes(event) => self.on_probed(event),
            BehaviourEvent::DialBacks(event) => {
                tracing::debug!(client = %event.client, address = %event.tested_addr, result = ?event.result, "tried for another node");
            }
            BehaviourEvent::Relay(event) => tracing::debug!(?event, "relay"),
            BehaviourEvent::Relays(event) => tracing::debug!(?event, "over a relay"),
            BehaviourEvent::Punch(event) => self.on_punched(&event),
        }
    }

    fn on_index(&mut self, event: IndexEvent<Carried, Carried>) {
        match event {
            IndexEvent::Message {
                peer,
                connection_id,
                message:
                    Message::Request {
                        request_id,
                        request,
                        channel,
                    },
            } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.used = Instant::now();
                }
                // A connection that is gone needs no answer.
                if let Some(observed) = self.remote_address(&peer, connection_id) {
                    self.answers.start(Inbound {
                        peer,
                        observed,
                        id: request_id,
                        request,
                        channel,
                    });
                }
            }
            IndexEvent::Message {
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => self.asks.replied(request_id, response),
            IndexEvent::OutboundFailure {
                request_id, error, ..
            } => self.asks.failed(&mut self.swarm, request_id, error),
            IndexEvent::InboundFailure { request_id, .. }
            | IndexEvent::ResponseSent { request_id, .. } => self.answers.over(request_id),
        }
    }

    fn on_answer(&mut self, answer: super::answers::Answer) {
        if let Some((channel, bytes)) = answer {
            let index = &mut self.swarm.behaviour_mut().index;
            // The asker may be gone; an event says so too.
            let _ = index.send_response(channel, Carried::from(bytes));
        }
    }

    fn on_table(&mut self, event: kad::Event) {
        if let kad::Event::RoutingUpdated {
            peer,
            is_new_peer: true,
            old_peer,
            ..
        } = event
        {
            if let Some(old) = old_peer {
                self.failed_dials.remove(&old);
            }
            let table = &mut self.swarm.behaviour_mut().table;
            if let Some(contact) = table::find(table, peer) {
                self.publish(Event::Routed(contact));
            }
        }
    }

    /// A peer says what it speaks and where it listens. Only a server of this network enters the
    /// routing table, and only with addresses that it was dialled at or that have the IP it is
    /// connected from: otherwise it could have us dial whom it likes.
    fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received {
            connection_id,
            peer_id,
            info,
        } = event
        else {
            return;
        };
        self.on_observed(peer_id, connection_id, &info.observed_addr);
        self.asks.identified(&mut self.swarm, connection_id);
        let Some(peer) = self.peers.get_mut(&peer_id) else {
            return;
        };
        let Some((endpoint, _)) = peer.connections.get(&connection_id) else {
            return;
        };
        peer.agent = printable(&info.agent_version);
        peer.server = info.protocols.contains(&self.protocols.kad)
            && info.protocols.contains(&self.protocols.index);
        if !peer.server || endpoint.is_relayed() {
            return;
        }
        let relays = info.protocols.contains(&HOP_PROTOCOL_NAME);
        let remote = endpoint.get_remote_address();
        let believed = endpoint.is_dialer() && self.permits.is_named(remote);
        let dialled = endpoint.is_dialer().then(|| bare(remote));
        let claimed = info
            .listen_addrs
            .into_iter()
            .filter(|claim| believed || (ip_of(claim).is_some() && ip_of(claim) == ip_of(remote)));
        let contact = Contact {
            peer: peer_id,
            addrs: dialled.into_iter().chain(claimed).collect(),
        };
        table::offer(
            &mut self.swarm.behaviour_mut().table,
            &contact,
            &self.permits.rules,
        );
        if relays {
            let named = |address: &Multiaddr| self.permits.is_named(address);
            let addrs = reach::for_relay(peer_id, contact.addrs, &self.permits.rules, named);
            self.on_relay(peer_id, addrs);
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(peer) = self.peers.get_mut(&event.peer) else {
            return;
        };
        match event.result {
            Ok(rtt) => {
                peer.rtt = Some(rtt);
                peer.failed_pings = 0;
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                peer.failed_pings += 1;
                if peer.failed_pings >= FAILED_PINGS_MAX {
                    tracing::debug!(peer = %event.peer, %error, "connection is dead");
                    self.swarm.close_connection(event.connection);
                }
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: ConnectedPoint) {
        self.failed_dials.remove(&peer);
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            since: Instant::now(),
            used: Instant::now(),
            agent: String::new(),
            server: false,
            rtt: None,
            failed_pings: 0,
            connections: HashMap::new(),
        });
        let relayed = endpoint.is_relayed();
        entry.connections.insert(id, (endpoint, Instant::now()));
        if relayed {
            self.asks.connected_over_relay(id);
            return;
        }
        self.asks.connected(&mut self.swarm, peer);
        self.thin_out();
        self.on_line(peer, id);
    }

    /// Until the first ping is answered, how long a dial took tells how far somebody is: one round trip
    /// for TCP, one and a half for the channel, and their work.
    fn on_established(&mut self, peer: PeerId, id: ConnectionId, took: Duration) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        let dialled = entry.connections.get(&id);
        if dialled.is_some_and(|(endpoint, _)| endpoint.is_dialer() && !endpoint.is_relayed()) {
            entry.rtt.get_or_insert(took / 3);
        }
    }

    fn on_punched(&mut self, event: &dcutr::Event) {
        let peer = event.remote_peer_id;
        tracing::debug!(%peer, result = ?event.result, "direct connection");
        if event.result.is_err()
            && let Some(entry) = self.peers.get(&peer)
        {
            // The other side learns by this that nothing more is to be waited for.
            for (id, _) in entry.relayed().collect::<Vec<_>>() {
                self.swarm.close_connection(id);
            }
        }
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.connections.remove(&id);
            if entry.connections.is_empty() {
                self.peers.remove(&peer);
            }
        }
        self.asks.closed(id);
    }

    /// Removes a node from the table when it could not be reached several times in a row. Dials
    /// that our own limits refused say nothing about it.
    fn on_dial_failed(&mut self, peer: PeerId, error: &DialError) {
        let tells = matches!(
            error,
            DialError::Transport(_) | DialError::WrongPeerId { .. } | DialError::NoAddresses
        );
        let table = &mut self.swarm.behaviour_mut().table;
        if !tells || self.peers.contains_key(&peer) || table::find(table, peer).is_none() {
            return;
        }
        let failures = self.failed_dials.entry(peer).or_default();
        *failures += 1;
        if *failures >= FAILED_DIALS_MAX {
            self.forget(peer);
        }
    }

    fn forget(&mut self, peer: PeerId) {
        self.failed_dials.remove(&peer);
        let table = &mut self.swarm.behaviour_mut().table;
        if table.remove_peer(&peer).is_some() {
            self.publish(Event::Forgotten(peer));
        }
    }

    fn ban(&mut self, peer: PeerId, why: String) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        tracing::warn!(%peer, %why, "banned");
        self.swarm.behaviour_mut().gate.ban(peer, why);
        self.forget(peer);
        // Not being connected is no error.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    /// Dials the bootstrap nodes while nobody else is known. A machine that was offline for a
    /// while has lost its whole table.
    fn refill(&mut self) {
        if table::entries(&mut self.swarm.behaviour_mut().table).is_empty() {
            for contact in self.bootstrap.clone() {
                self.connect(&contact);
            }
        }
    }

    pub(super) fn connect(&mut self, contact: &Contact) {
        self.asks.connect(&mut self.swarm, contact);
    }

    /// A node on the LAN is dialled at its private address once somebody asks it: anybody in a café
    /// can announce anything, and would learn what is asked. On a private network it is a neighbour
    /// like any other, since it has the secret, and is dialled now.
    fn on_lan(&mut self, change: LanChange) {
        let nodes = self.lan.as_ref().map_or_else(Vec::new, Lan::nodes);
        let addrs = nodes.iter().flat_map(|node| &node.contact.addrs);
        self.permits.set_found(addrs);
        if let LanChange::Found(node) = change {
            tracing::info!(peer = %node.contact.peer, role = ?node.role, "found on the LAN");
            if self.is_private {
                self.connect(&node.contact);
            }
            self.publish(Event::OnLan(node));
        }
    }

    fn announce(&self) {
        if let Some(lan) = &self.lan {
            lan.announce(&self.listening());
        }
    }

    /// Without what is listened to over relays.
    fn listening(&self) -> Vec<Multiaddr> {
        let all = self.swarm.listeners();
        all.filter(|address| !is_circuit(address))
            .cloned()
            .collect()
    }

    fn remote_address(&self, peer: &PeerId, id: ConnectionId) -> Option<Multiaddr> {
        let endpoint = self.peers.get(peer)?.endpoint(id)?;
        Some(bare(endpoint.get_remote_address()))
    }

    fn peer_infos(&self) -> Vec<PeerInfo> {
        self.peers
            .iter()
            .map(|(peer, known)| PeerInfo {
                peer: *peer,
                agent: known.agent.clone(),
                server: known.server,
                rtt: known.rtt,
                connected_for: known.since.elapsed(),
                connections: known
                    .connections
                    .values()
                    .map(|(endpoint, _)| connection_of(endpoint))
                    .collect(),
            })
            .collect()
    }

    pub(super) fn publish(&self, event: Event) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    fn report_started(&mut self) {
        if self.starting.is_empty()
            && let Some(started) = self.started.take()
        {
            // Whoever started the node may be gone.
            let _ = started.send(());
        }
    }

    async fn close(&mut self) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // Those that take longer are cut off.
        let _ = timeout(FAREWELL_TIME_MAX, all_closed).await;
    }
}

async fn next_on_lan(lan: &mut Option<Lan>) -> LanChange {
    match lan {
        Some(lan) => lan.next().await,
        None => std::future::pending().await,
    }
}

fn connection_of(endpoint: &ConnectedPoint) -> Connection {
    let address = bare(endpoint.get_remote_address());
    Connection {
        transport: transport_name(&address),
        dialled: endpoint.is_dialer(),
        address,
    }
}

/// A peer's text as it may be shown: short, without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(AGENT_CHARS_MAX)
        .collect()
}
