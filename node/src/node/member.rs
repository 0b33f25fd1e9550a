//! One network that this node takes part in: what it answers to others and asks of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use qk_protocol::blocks::BlockRange;
use qk_protocol::hash::{Blake3, NetworkId, NetworkKey, Point, Root};
use qk_protocol::hidden::hidden;
use qk_protocol::index::{self, Hints, Rules, Write};
use qk_protocol::lookup::{ASK_TIMEOUT, Lookup, LookupIn, LookupOut, WIDTH};
use qk_protocol::manifest::{ManifestError, NetworkFile};
use qk_protocol::message::{
    Answer, Contact, Get, HINTS_MAX, Have, NodeId, Provider, Reply, Request,
};
use qk_protocol::statement::Statement;
use qk_protocol::time::{Machine, Now, UnixTime};
use serde_bytes::ByteBuf;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cache::{Cache, Underway};
use super::door::Door;
use super::given::{GivenLogs, GivenShelf};
use super::kin::{self, Named};
use super::shelf::{StoreShelf, record};
use crate::blocks::serve::Server;
use crate::counters::Counters;
use crate::gateway::client::Client;
use crate::home::Joined;
use crate::net::address::CIRCUITS_MAX;
use crate::net::{AskError, Circuit, LanRole, Multiaddr, Net, PeerId};
use crate::store::StoreError;

/// How long a node may take to store what it is told.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements of one `Put`: well within a request's bytes.
const PUT_STATEMENTS_MAX: usize = 32;

/// One network, at work.
#[derive(Debug)]
pub struct Member {
    joined: RwLock<Arc<Joined>>,
    id: NetworkId,
    key: NetworkKey,
    hints: Mutex<Hints>,
    door: Arc<Door>,
    logs: GivenLogs,
    net: OnceLock<Net>,
    server: OnceLock<Arc<Server>>,
    named: Named,
    /// Gateways that are asked in place of nodes.
    web: Vec<Client>,
    /// LAN nodes that may be asked.
    on_lan: RwLock<Vec<(crate::net::Contact, LanRole)>>,
    /// This node as a cache, if it is one.
    cache: Option<Arc<Cache>>,
    /// Downloads whose progress neighbours wait for.
    watched: Mutex<BTreeMap<Root, Arc<watch::Sender<Underway>>>>,
    counters: Counters,
    /// How many bits of a point may be told, and since when that is known.
    hidden: tokio::sync::Mutex<Option<(Instant, u16)>>,
    /// Nodes that have what this one knows that they are to hold.
    repaired: Mutex<BTreeSet<PeerId>>,
}

/// What was found at a point.
#[derive(Debug, Default)]
pub struct Found {
    /// Statements, each once.
    pub statements: Vec<Arc<Statement>>,
    /// Who says that it has which root.
    pub providers: Vec<Provider>,
    /// Nodes that answered, nearest first.
    pub answered: Vec<Contact>,
    /// Nodes that were known.
    pub known: usize,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// None came in time: the request may be lost.
    Late,
    /// The node cannot be reached, or answered nonsense.
    Failed,
}

/// The time, for state machines.
pub(super) fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    Now {
        mono: START.get_or_init(Instant::now).elapsed(),
        unix: unix_now(),
    }
}

/// The time of the calendar.
pub fn unix_now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

impl Member {
    /// `named` are nodes to ask first, by the owner's or the manifest's word.
    pub(super) fn new(
        joined: Joined,
        door: Arc<Door>,
        logs: GivenLogs,
        named: Named,
        web: Vec<Client>,
        cache: Option<Arc<Cache>>,
        counters: Counters,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: joined.network.id(),
            key: joined.key(),
            joined: RwLock::new(Arc::new(joined)),
            hints: Mutex::default(),
            door,
            logs,
            net: OnceLock::new(),
            server: OnceLock::new(),
            named,
            web,
            on_lan: RwLock::default(),
            cache,
            watched: Mutex::default(),
            counters,
            hidden: tokio::sync::Mutex::default(),
            repaired: Mutex::default(),
        })
    }

    /// Nodes that the user or the manifest names.
    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    pub(super) fn on_lan(&self) -> Vec<(crate::net::Contact, LanRole)> {
        let on_lan = self.on_lan.read().unwrap_or_else(PoisonError::into_inner);
        on_lan.clone()
    }

    pub(super) fn set_on_lan(&self, nodes: Vec<(crate::net::Contact, LanRole)>) {
        *self.on_lan.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    pub(super) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// What serves artifacts in this network, once one was made.
    pub(super) fn server(&self, make: impl FnOnce() -> Arc<Server>) -> Arc<Server> {
        self.server.get_or_init(make).clone()
    }

    /// Bytes of artifacts that were sent to others, in their wire form.
    pub fn sent_bytes(&self) -> u64 {
        self.server.get().map_or(0, |server| server.sent_bytes())
    }

    /// Tells the progress of a root's download from now on.
    pub(super) fn watch(&self, root: Root, state: Arc<watch::Sender<Underway>>) {
        self.watched().insert(root, state);
    }

    pub(super) fn unwatch(&self, root: Root) {
        self.watched().remove(&root);
    }

    /// A range was verified and written.
    pub(super) fn verified(&self, root: Root, range: BlockRange) {
        if let Some(state) = self.watched().get(&root) {
            state.send_modify(|state| state.add(range));
        }
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<Root, Arc<watch::Sender<Underway>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the user said of this network: its place among the others, and of which
    /// version they were told.
    pub(super) fn take_over(&self, place: i64, accepted: u64) {
        let mut joined = self.joined.write().unwrap_or_else(PoisonError::into_inner);
        *joined = Arc::new(Joined {
            place,
            accepted,
            ..(**joined).clone()
        });
    }

    /// Looks a point up and keeps what principals state there.
    pub(super) async fn learn(self: &Arc<Self>, point: Point) {
        let found = self.find(point).await;
        let member = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let statements = found.statements;
            member
                .door
                .with(|store| super::keep(store, &member, &statements))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "what was looked up for a neighbour could not be kept");
        }
    }

    pub(super) fn set_net(&self, net: Net) {
        // The first one stays; there is only one.
        let _ = self.net.set(net);
    }

    /// The network side, once it has started.
    pub fn net(&self) -> Option<&Net> {
        self.net.get()
    }

    /// The network's id.
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// What the network's locations are keyed with.
    pub fn key(&self) -> &NetworkKey {
        &self.key
    }

    /// The network as it is known now.
    pub fn joined(&self) -> Arc<Joined> {
        self.joined
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes a newer version of the network. The caller keeps it on disk.
    ///
    /// # Errors
    /// When it does not follow what is known.
    pub fn advance(&self, file: NetworkFile) -> Result<Arc<Joined>, ManifestError> {
        let before = self.joined();
        let network = before.network.advance(file)?;
        let joined = Arc::new(Joined {
            network,
            ..(*before).clone()
        });
        *self.joined.write().unwrap_or_else(PoisonError::into_inner) = joined.clone();
        Ok(joined)
    }

    /// Whether gateways are asked in place of nodes, and nothing else is.
    pub(super) fn is_on_web(&self) -> bool {
        !self.web.is_empty()
    }

    /// Answers a question of somebody without a node; `None` where it is none. `looks` says whether a cache
    /// looks up what it does not know.
    pub(crate) async fn answer_on_web(self: Arc<Self>, bytes: &[u8], looks: bool) -> Option<Reply> {
        let request = Request::decode(bytes).ok()?.message;
        match &request {
            Request::Get(get) => {
                if let (Some(cache), true, 256) = (&self.cache, looks, get.bits) {
                    cache.look(&self, get.point).await;
                }
            }
            Request::Near { .. } | Request::Network { .. } => {}
            // Nothing is taken from who is not there to be asked.
            Request::Put(_) | Request::Have(_) | Request::Log { .. } => return None,
        }
        self.counters.index_asked(Some(&request));
        let nobody = Contact {
            node: NodeId(Vec::new()),
            addrs: Vec::new(),
        };
        let answered = tokio::task::spawn_blocking(move || {
            self.answer_from_disk(&nobody, request, Vec::new(), false)
        });
        answered.await.ok()?.ok()
    }

    /// Answers a peer's request; no bytes where it is not a request. Runs as a task of its own.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: PeerId,
        observed: Multiaddr,
        bytes: Vec<u8>,
    ) -> Vec<u8> {
        let decoded = Request::decode(&bytes).ok();
        self.counters
            .index_asked(decoded.as_ref().map(|decoded| &decoded.message));
        let Some(decoded) = decoded else {
            return Vec::new();
        };
        let joined = self.joined();
        let rules = Rules {
            network: &joined.network,
            key: &self.key,
        };
        let request = decoded.message;
        let closer = match index::point_of(&request, &rules) {
            Some(point) => self.closest(point).await,
            None => Vec::new(),
        };
        if let (Some(cache), Request::Get(get)) = (&self.cache, &request)
            && get.bits == 256
            && (cache.config.everybody || joined.secret.is_some() || super::up::is_local(&observed))
        {
            cache.look(&self, get.point).await;
        }
        let addrs = match &request {
            Request::Have(have) => {
                let relays = self.relay_hosts(&have.addrs).await;
                claimed(&have.addrs, peer, &observed, &relays)
            }
            Request::Put(_)
            | Request::Get(_)
            | Request::Near { .. }
            | Request::Network { .. }
            | Request::Log { .. } => Vec::new(),
        };
        let node = NodeId(peer.to_bytes());
        let from = Contact { node, addrs };
        let mut grant = match &request {
            Request::Log { .. } => self.logs.admit().await,
            _ => None,
        };
        let gives_logs = grant.is_some();
        let answered = tokio::task::spawn_blocking(move || {
            self.answer_from_disk(&from, request, closer, gives_logs)
        });
        let reply = answered.await.ok().and_then(Result::ok);
        if let (Some(grant), Some(Answer::Log(piece))) =
            (&mut grant, reply.as_ref().map(|reply| &reply.answer))
        {
            grant.take(piece.bytes.len()).await;
        }
        reply.map_or_else(Vec::new, |reply| reply.encode())
    }

    /// Where this node itself knows those to be that are named as relays.
    async fn relay_hosts(&self, addrs: &[ByteBuf]) -> Vec<(PeerId, IpAddr)> {
        let circuits = addrs.iter().filter_map(circuit);
        let mut relays: Vec<PeerId> = circuits.map(|circuit| circuit.relay).collect();
        relays.truncate(CIRCUITS_MAX);
        match self.net() {
            Some(net) if !relays.is_empty() => net.hosts(relays).await.unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn answer_from_disk(
        &self,
        from: &Contact,
        request: Request,
        closer: Vec<Contact>,
        gives_logs: bool,
    ) -> Result<Reply, StoreError> {
        let joined = self.joined();
        let rules = Rules {
            network: &joined.network,
            key: &self.key,
        };
        let now = unix_now();
        self.door.with(|store| {
            let shelf = GivenShelf {
                shelf: StoreShelf {
                    store,
                    network: self.id,
                },
                logs: gives_logs.then_some(&self.logs),
            };
            let (reply, writes) = {
                let hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
                index::answer(&shelf, &hints, &rules, from, request, closer, now)
            };
            let mut records = Vec::new();
            let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
            for write in writes {
                match write {
                    Write::Keep(point, statement) => records.push(record(&statement, point, now)),
                    Write::Hint(point, provider) => {
                        hints.add(point, provider, now);
                    }
                }
            }
            drop(hints);
            // Answered only when it is durable: what is acknowledged survives a power cut.
            if !records.is_empty() {
                store.append(records)?;
            }
            Ok(reply)
        })
    }

    /// Drops hints whose time is over.
    pub(super) fn forget_hints(&self) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        hints.forget(unix_now());
    }

    /// The nodes nearest to a point, as far as the routing table knows.
    pub(super) async fn closest(&self, point: Point) -> Vec<Contact> {
        let Some(net) = self.net() else {
            return Vec::new();
        };
        let closest = net.closest(point, WIDTH).await.unwrap_or_default();
        closest
            .iter()
            .map(crate::net::Contact::to_message)
            .collect()
    }

    /// Nodes to begin a look-up with: parents and neighbours that may be asked, those that were named,
    /// mirrors, then those of the routing table.
    pub(super) async fn seeds(&self, point: Point) -> Vec<Contact> {
        if self.is_on_web() {
            return self.web.iter().map(on_web).collect();
        }
        let mut seeds = self.parents().await;
        let neighbours = self.on_lan();
        let first = neighbours.iter().map(|(contact, _)| contact);
        let first = first.chain(self.named.all().filter(|one| !one.addrs.is_empty()));
        seeds.extend(first.map(crate::net::Contact::to_message));
        seeds.extend(self.mirrors().await);
        seeds.extend(self.closest(point).await);
        let mut known = BTreeSet::new();
        seeds.retain(|contact| known.insert(contact.node.clone()));
        seeds
    }

    /// The mirrors that the routing table knows.
    async fn mirrors(&self) -> Vec<Contact> {
        let mirrors = kin::mirrors(self.joined().network.manifest());
        let (Some(net), false) = (self.net(), mirrors.is_empty()) else {
            return Vec::new();
        };
        let contacts = net.contacts().await.unwrap_or_default().into_iter();
        contacts
            .filter(|contact| mirrors.contains(&contact.peer))
            .map(|contact| contact.to_message())
            .collect()
    }

    /// Asks one node.
    pub(super) async fn ask(
        &self,
        contact: &Contact,
        request: &Request,
        time: Duration,
    ) -> Result<Reply, Unanswered> {
        if let Some(gateway) = self.gateway(&contact.node) {
            return self.ask_gateway(gateway, request, time).await;
        }
        let (Some(net), Some(dialled)) = (self.net(), self.to_dial(contact)) else {
            return Err(Unanswered::Failed);
        };
        let answered = match net.ask(dialled.clone(), request.encode(), time).await {
            // The other side closed an idle connection just when this was sent, which says nothing
            // about it; all requests may be repeated. Whether what is late is asked again is the
            // look-up's to say.
            Err(AskError::Lost) => net.ask(dialled, request.encode(), time).await,
            answered => answered,
        };
        match answered {
            Ok(bytes) => match Reply::decode(&bytes) {
                Ok(decoded) => Ok(decoded.message),
                Err(error) => {
                    tracing::debug!(?contact, %error, "answered nonsense");
                    Err(Unanswered::Failed)
                }
            },
            Err(error) => {
                tracing::debug!(?contact, %error, "did not answer");
                Err(match matches!(error, AskError::TimedOut) {
                    true => Unanswered::Late,
                    false => Unanswered::Failed,
                })
            }
        }
    }

    /// The gateway that goes by this name, in place of a node.
    pub(super) fn gateway(&self, node: &NodeId) -> Option<&Client> {
        self.web.iter().find(|client| on_web(client).node == *node)
    }

    async fn ask_gateway(
        &self,
        gateway: &Client,
        request: &Request,
        time: Duration,
    ) -> Result<Reply, Unanswered> {
        let asking = gateway.ask_index(self.id, request.encode());
        let Ok(answered) = tokio::time::timeout(time, asking).await else {
            return Err(Unanswered::Late);
        };
        let reply = match answered {
            Ok(bytes) => Reply::decode(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match reply {
            // Nodes that it names cannot be asked.
            Ok(decoded) => Ok(Reply {
                closer: Vec::new(),
                answer: without_providers(decoded.message.answer),
            }),
            Err(error) => {
                tracing::warn!(gateway = %gateway.url(), %error, "a gateway did not say what it knows");
                Err(Unanswered::Failed)
            }
        }
    }

    /// What may be dialled of a contact: the owner's word for nodes that the owner named, otherwise
    /// its announcement for those of the LAN that may be asked, else what the rules for strangers'
    /// addresses leave.
    pub(super) fn to_dial(&self, contact: &Contact) -> Option<crate::net::Contact> {
        if let Some(named) = self.named.find(&contact.node) {
            return Some(named.clone());
        }
        let on_lan = self.on_lan().into_iter().map(|(one, _)| one);
        let mut here = on_lan.filter(|one| one.peer.to_bytes() == contact.node.0);
        if let Some(found) = here.next() {
            return Some(found);
        }
        let rules = self.net()?.address_rules();
        crate::net::Contact::learned(contact, &rules).ok()
    }

    /// Looks up a point to the end: everything that the nearest nodes hold there.
    pub async fn find(self: &Arc<Self>, point: Point) -> Found {
        self.find_by(hidden(point, 256)).await
    }

    /// Asks this to the end: everything that the nearest nodes hold at the points that it is about.
    pub(super) async fn find_by(self: &Arc<Self>, get: Get) -> Found {
        let mut lookup = Lookup::new(get.clone(), self.seeds(get.point).await);
        let mut found = Found::default();
        let mut seen = BTreeSet::new();
        let mut asking = JoinSet::new();
        let mut input = LookupIn::Start;
        loop {
            if let LookupIn::Reply(
                _,
                Reply {
                    answer:
                        Answer::Statements {
                            statements,
                            providers,
                            ..
                        },
                    ..
                },
            ) = &input
            {
                found.statements.extend(
                    statements
                        .iter()
                        .filter(|one| seen.insert(one.id()))
                        .cloned(),
                );
                found.providers.extend(providers.iter().cloned());
            }
            let mut out = Vec::new();
            lookup.handle(input, now(), &mut out);
            for LookupOut::Ask(contact, request) in out {
                let (member, time) = (self.clone(), lookup.time_of(&contact.node));
                asking.spawn(async move {
                    match member.ask(&contact, &request, time).await {
                        Ok(reply) => LookupIn::Reply(contact.node, reply),
                        Err(Unanswered::Late) => LookupIn::Tick,
                        Err(Unanswered::Failed) => LookupIn::Failed(contact.node),
                    }
                });
            }
            if lookup.is_done() {
                break;
            }
            input = next(&mut asking, lookup.deadline())
                .await
                .unwrap_or(LookupIn::Tick);
        }
        found.answered = lookup.answered().cloned().collect();
        found.known = lookup.known();
        found
    }

    /// Puts statements where they belong: to the nodes nearest to their point, this one included.
    /// Returns how many nodes took all of them.
    pub async fn put(
        self: &Arc<Self>,
        point: Point,
        statements: &[Arc<Statement>],
        to: &[Contact],
    ) -> usize {
        self.tell(
            to,
            statements
                .chunks(PUT_STATEMENTS_MAX)
                .map(|some| Request::Put(some.to_vec())),
            point,
        )
        .await
    }

    /// Tells the nodes nearest to a point that this node has roots, and remembers it itself: who asks
    /// this node for the point's statements learns it, too. Returns how many nodes know, this one
    /// included; none where nobody can reach this node.
    pub async fn announce(self: &Arc<Self>, point: Point, roots: &[Root], to: &[Contact]) -> usize {
        let Some(net) = self.net() else {
            return 0;
        };
        let reach = net.reach().await.unwrap_or_default();
        let listening = net.listen_addrs().await.unwrap_or_default();
        if listening.is_empty() {
            return 0;
        }
        let addrs = reach
            .external
            .iter()
            .chain(&reach.relayed)
            .chain(&listening);
        let addrs: Vec<ByteBuf> = addrs
            .take(qk_protocol::message::ADDRESSES_MAX)
            .map(|addr| ByteBuf::from(addr.to_vec()))
            .collect();
        let own = Contact {
            node: NodeId(net.local_peer().to_bytes()),
            addrs: addrs.clone(),
        };
        self.remember(point, roots, &own);
        let haves = roots.chunks(HINTS_MAX).map(|some| {
            Request::Have(Have {
                roots: some.iter().map(|root| (point, *root)).collect(),
                addrs: addrs.clone(),
            })
        });
        self.tell(to, haves, point).await + 1
    }

    fn remember(&self, point: Point, roots: &[Root], contact: &Contact) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        for root in roots {
            let provider = Provider {
                root: *root,
                contact: contact.clone(),
            };
            hints.add(point, provider, unix_now());
        }
    }

    /// Sends requests to nodes at once; how many of them took everything.
    async fn tell(
        self: &Arc<Self>,
        to: &[Contact],
        requests: impl Iterator<Item = Request>,
        point: Point,
    ) -> usize {
        let requests: Arc<Vec<Request>> = Arc::new(requests.collect());
        let mut telling = JoinSet::new();
        for contact in to.iter().take(WIDTH) {
            let (member, requests, contact) = (self.clone(), requests.clone(), contact.clone());
            telling.spawn(async move {
                for request in requests.iter() {
                    let reply = member.ask(&contact, request, TELL_TIMEOUT).await;
                    if !matches!(reply, Ok(Reply { answer: Answer::Taken { refused: 0, .. }, .. })) {
                        tracing::debug!(?contact, point = %point.short(), "did not take everything");
                        return false;
                    }
                }
                true
            });
        }
        telling
            .join_all()
            .await
            .into_iter()
            .filter(|taken| *taken)
            .count()
    }

    /// How many bits of a point may be told, as it was found out last.
    pub(super) fn hidden(&self) -> &tokio::sync::Mutex<Option<(Instant, u16)>> {
        &self.hidden
    }

    /// Nodes that have what this one knows that they are to hold.
    pub(super) fn repaired(&self) -> MutexGuard<'_, BTreeSet<PeerId>> {
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The points with statements that are nearest to `point`, one for each of several nodes: nearest
    /// first, each once.
    pub(super) async fn nearest_entries(self: &Arc<Self>, point: Point) -> Vec<Point> {
        let request = Request::Near { point, limit: 1 };
        let mut asking = JoinSet::new();
        for contact in self.seeds(point).await.into_iter().take(WIDTH) {
            let (member, request) = (self.clone(), request.clone());
            asking.spawn(async move { member.ask(&contact, &request, ASK_TIMEOUT).await });
        }
        let mut points = Vec::new();
        while let Some(reply) = asking.join_next().await {
            if let Ok(Ok(Reply {
                answer: Answer::Points(some),
                ..
            })) = reply
            {
                points.extend(some.into_iter().take(1));
            }
        }
        points.sort_unstable_by_key(|one| one.distance(&point));
        points.dedup();
        points
    }

    /// Asks the named nodes and some others for a newer manifest or timestamp, and takes the newest.
    /// `None` when what is known is the newest.
    pub async fn refresh(self: &Arc<Self>) -> Option<Arc<Joined>> {
        let joined = self.joined();
        let request = Request::Network {
            version: joined.network.manifest().version,
            issued: joined.network.timestamp().issued,
        };
        let mut asking = JoinSet::new();
        for contact in self.seeds(Point(self.id.0)).await.into_iter().take(WIDTH) {
            let (member, request) = (self.clone(), request.clone());
            asking.spawn(async move { member.ask(&contact, &request, ASK_TIMEOUT).await });
        }
        let mut newest = None;
        while let Some(reply) = asking.join_next().await {
            let Ok(Ok(Reply {
                answer: Answer::Network(Some(file)),
                ..
            })) = reply
            else {
                continue;
            };
            match self.advance(file) {
                Ok(joined) => newest = Some(joined),
                Err(error) => tracing::debug!(%error, "a node's network file was not taken"),
            }
        }
        newest
    }
}

/// What the next finished task says; `None` when the deadline comes first.
pub(super) async fn next<T: Send + 'static>(
    tasks: &mut JoinSet<T>,
    deadline: Option<Duration>,
) -> Option<T> {
    let wait = deadline.map_or(ASK_TIMEOUT, |deadline| deadline.saturating_sub(now().mono));
    let finished = async {
        match tasks.join_next().await {
            Some(finished) => finished.ok(),
            None => std::future::pending().await,
        }
    };
    tokio::time::timeout(wait, finished).await.ok().flatten()
}

/// A gateway in the place of a node.
fn on_web(client: &Client) -> Contact {
    let url = client.url().to_string().into_bytes();
    Contact {
        node: NodeId([b"gateway ", &Blake3::of(&url).0[..]].concat()),
        addrs: vec![ByteBuf::from(url)],
    }
}

fn without_providers(answer: Answer) -> Answer {
    match answer {
        Answer::Statements {
            statements, next, ..
        } => Answer::Statements {
            statements,
            providers: Vec::new(),
            next,
        },
        other => other,
    }
}

/// Of the addresses that a peer claims, those at the host it was seen at, and those over relays that
/// this node itself knows to be at that host: it cannot send readers to a victim. The port it listens
/// on is not the one it was seen with.
fn claimed(
    addrs: &[ByteBuf],
    peer: PeerId,
    observed: &Multiaddr,
    relays: &[(PeerId, IpAddr)],
) -> Vec<ByteBuf> {
    let Some(seen) = ip(observed) else {
        return Vec::new();
    };
    let mut kept: Vec<ByteBuf> = Vec::new();
    for addr in addrs {
        let Ok(parsed) = Multiaddr::try_from(addr.to_vec()) else {
            continue;
        };
        let Some(host) = ip(&parsed).filter(|ip| !ip.is_unspecified()) else {
            continue;
        };
        let believed = match circuit(addr) {
            Some(circuit) => {
                relays.contains(&(circuit.relay, host))
                    && circuit.target.is_none_or(|target| target == peer)
            }
            None => host == seen && !over_relay(&parsed),
        };
        if believed && !kept.contains(addr) {
            kept.push(addr.clone());
        }
    }
    kept
}

fn circuit(addr: &ByteBuf) -> Option<Circuit> {
    let parsed = Multiaddr::try_from(addr.to_vec()).ok()?;
    Circuit::of(&parsed)
}

fn over_relay(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_believed_only_addresses_at_its_own_host() {
        let bytes = |text: &str| ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec());
        let own = bytes("/ip4/192.0.2.1/tcp/4433");
        let all = [
            own.clone(),
            own.clone(),
            bytes("/ip4/192.0.2.2/tcp/4433"),
            bytes("/ip4/0.0.0.0/tcp/4433"),
            bytes("/ip6/::1/tcp/4433"),
            bytes("/dns4/victim.example/tcp/80"),
            ByteBuf::from(vec![0xff; 12]),
        ];
        let peer = PeerId::random();
        let seen = |text: &str| claimed(&all, peer, &text.parse().unwrap(), &[]);
        assert_eq!(seen("/ip4/192.0.2.1/tcp/50000"), [own]);
        assert!(seen("/ip4/198.51.100.1/tcp/50000").is_empty());
        assert!(seen("/dns4/host.example/tcp/50000").is_empty());
        let nowhere: Multiaddr = "/ip4/0.0.0.0/tcp/1".parse().unwrap();
        assert!(claimed(&all, peer, &nowhere, &[]).is_empty());
    }

    #[test]
    fn a_relay_is_believed_only_where_this_node_knows_it_to_be() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let over = |host: &str, relay: PeerId| {
            let text = format!("/ip4/{host}/tcp/4001/p2p/{relay}/p2p-circuit");
            ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec())
        };
        let relays = [(relay, "192.0.2.9".parse().unwrap())];
        let seen: Multiaddr = "/ip4/198.51.100.1/tcp/50000".parse().unwrap();
        let good = over("192.0.2.9", relay);
        let victim = over("203.0.113.80", relay);
        let unknown = over("192.0.2.9", PeerId::random());
        // At its own host it cannot pass for a relay that this node does not know either.
        let own = over("198.51.100.1", PeerId::random());
        let text = format!("/ip4/192.0.2.9/tcp/1/p2p/{relay}/p2p-circuit/p2p/{relay}");
        let other_target = ByteBuf::from(text.parse::<Multiaddr>().unwrap().to_vec());
        let odd = "/ip4/198.51.100.1/tcp/1/p2p-circuit";
        let odd = ByteBuf::from(odd.parse::<Multiaddr>().unwrap().to_vec());
        let all = [
            good.clone(),
            victim.clone(),
            unknown,
            own,
            other_target,
            odd,
        ];
        assert_eq!(claimed(&all, peer, &seen, &relays), [good]);
        // Whoever believed what is said of the relay would send readers to the victim.
        let lied = [(relay, "203.0.113.80".parse().unwrap())];
        assert_eq!(claimed(&all, peer, &seen, &lied), [victim]);
    }
}
