//! What a member asks of others and tells them.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use qk_protocol::hash::{Blake3, Point, Root};
use qk_protocol::hidden::hidden;
use qk_protocol::lookup::{ASK_TIMEOUT, Lookup, LookupIn, LookupOut, WIDTH};
use qk_protocol::message::{
    Answer, Contact, Get, HINTS_MAX, Have, NodeId, Provider, Reply, Request,
};
use qk_protocol::statement::Statement;
use qk_protocol::time::Machine;
use serde_bytes::ByteBuf;
use tokio::task::JoinSet;

use super::{Member, now, unix_now};
use crate::gateway::client::Client;
use crate::home::Joined;
use crate::net::AskError;
use crate::node::kin;

/// How long a node may take to store what it is told.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements of one `Put`: well within a request's bytes.
const PUT_STATEMENTS_MAX: usize = 32;

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
pub(in crate::node) enum Unanswered {
    /// None came in time: the request may be lost.
    Late,
    /// The node cannot be reached, or answered nonsense.
    Failed,
}

impl Member {
    /// The nodes nearest to a point, as far as the routing table knows.
    pub(in crate::node) async fn closest(&self, point: Point) -> Vec<Contact> {
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
    pub(in crate::node) async fn seeds(&self, point: Point) -> Vec<Contact> {
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
    pub(in crate::node) async fn ask(
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
    pub(in crate::node) fn gateway(&self, node: &NodeId) -> Option<&Client> {
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
    pub(in crate::node) fn to_dial(&self, contact: &Contact) -> Option<crate::net::Contact> {
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
    pub(in crate::node) async fn find_by(self: &Arc<Self>, get: Get) -> Found {
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

    /// The points with statements that are nearest to `point`, one for each of several nodes: nearest
    /// first, each once.
    pub(in crate::node) async fn nearest_entries(self: &Arc<Self>, point: Point) -> Vec<Point> {
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
pub(in crate::node) async fn next<T: Send + 'static>(
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
