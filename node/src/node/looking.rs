//! The look-up of a fetch, and how what it finds becomes providers of the download.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::decide::Held;
use qk_protocol::fetch::{Decided, Fetch, FetchIn, FetchOut};
use qk_protocol::hash::Root;
use qk_protocol::message::{Contact, NodeId, Request};
use qk_protocol::time::Machine;
use qk_protocol::transfer::Why;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::member::{Member, Unanswered, next, now};
use crate::blocks::source::{Offer, Source};
use crate::net::limits::{PUNCH_SETTLE_TIME, PUNCH_TIME_MAX};
use crate::net::{AskError, Kept, PeerId};

/// The longest round trip of a local network, a busy one included, where nothing is gained by packing.
const NEAR: Duration = Duration::from_millis(15);
/// How long a provider may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a parent may ask to come again, without having given anything meanwhile, until others
/// are asked for blocks.
const PARENT_BUSY_MAX: u32 = 3;

/// A look-up under way.
pub(super) struct Looking {
    pub(super) member: Arc<Member>,
    pub(super) parents: BTreeSet<NodeId>,
    pub(super) machine: Fetch,
    pub(super) asking: JoinSet<FetchIn>,
    /// The decision, once there is one.
    decided: Option<Box<Decided>>,
    /// Who was named since as having what was decided.
    named: Vec<Contact>,
}

impl Looking {
    pub(super) fn new(member: Arc<Member>, machine: Fetch, parents: Vec<Contact>) -> Self {
        Self {
            member,
            parents: parents.iter().map(|one| one.node.clone()).collect(),
            machine: machine.with_parents(parents),
            asking: JoinSet::new(),
            decided: None,
            named: Vec::new(),
        }
    }

    /// Asks until something is likely or decided, which comes with the providers named so far.
    pub(super) async fn until_likely(&mut self, held: Vec<Held>) -> (Box<Decided>, Vec<Contact>) {
        let mut input = FetchIn::Start(held);
        loop {
            let likely = self.step(input).into_iter().find_map(|one| match one {
                FetchOut::Likely(likely, named) => Some((likely, named)),
                _ => None,
            });
            if let Some(known) = self.decision().or(likely) {
                return known;
            }
            input = self.next().await;
        }
    }

    /// Asks until there is a decision, which comes with the providers named so far.
    pub(super) async fn until_decided(&mut self) -> (Box<Decided>, Vec<Contact>) {
        loop {
            if let Some(decision) = self.decision() {
                return decision;
            }
            let input = self.next().await;
            self.step(input);
        }
    }

    fn decision(&self) -> Option<(Box<Decided>, Vec<Contact>)> {
        let decided = self.decided.clone()?;
        Some((decided, self.named.clone()))
    }

    /// Whether it was decided that this is not to be had.
    fn is_overruled(&self, root: Root) -> bool {
        let decided = self.decided.as_ref();
        decided.is_some_and(|decided| decided.root() != Some(root))
    }

    /// Connects with providers and names them, until nobody is left to ask for more. Where a parent
    /// may give it, the others are named only when the parents are given up: what a cache fetches for
    /// all is fetched once. Connections are kept as long as the answer lives; none comes of it when the
    /// decision overrules `root`.
    pub(super) async fn name_providers(
        &mut self,
        root: Root,
        named: Vec<Contact>,
        providers: &mpsc::Sender<Offer>,
        given_up: &CancellationToken,
        on_unreached: &(dyn Fn(PeerId, AskError) + Send + Sync),
    ) -> Option<Vec<Kept>> {
        let mut connecting = JoinSet::new();
        let mut seen = named.clone();
        let (parents, mut others): (Vec<_>, Vec<_>) = named
            .into_iter()
            .partition(|contact| self.parents.contains(&contact.node));
        if parents.is_empty() {
            given_up.cancel();
        }
        for contact in parents {
            self.connect(contact, providers, given_up, &mut connecting);
        }
        while self.asks() || !given_up.is_cancelled() || !others.is_empty() {
            if self.is_overruled(root) {
                return None;
            }
            if given_up.is_cancelled() {
                for contact in others.drain(..) {
                    self.connect(contact, providers, given_up, &mut connecting);
                }
            }
            tokio::select! {
                () = given_up.cancelled(), if !others.is_empty() || !self.asks() => {}
                input = next(&mut self.asking, self.machine.deadline()), if self.asks() => {
                    for one in self.step(input.unwrap_or(FetchIn::Tick)) {
                        if let FetchOut::Provider(contact) = one
                            && !seen.contains(&contact)
                        {
                            seen.push(contact.clone());
                            others.push(contact);
                        }
                    }
                }
            }
        }
        if self.is_overruled(root) {
            return None;
        }
        let mut kept = Vec::new();
        for connected in connecting.join_all().await.into_iter().flatten() {
            match connected {
                Ok(one) => kept.push(one),
                Err((peer, error)) => on_unreached(peer, error),
            }
        }
        Some(kept)
    }

    fn connect(
        &self,
        contact: Contact,
        providers: &mpsc::Sender<Offer>,
        given_up: &CancellationToken,
        connecting: &mut JoinSet<Option<Result<Kept, (PeerId, AskError)>>>,
    ) {
        let (member, providers) = (self.member.clone(), providers.clone());
        let is_parent = self.parents.contains(&contact.node);
        let given_up = given_up.clone();
        connecting.spawn(async move {
            let named = name(&member, &contact, &providers).await;
            if is_parent && !matches!(named, Some(Ok(_))) {
                given_up.cancel();
            }
            named
        });
    }

    /// Feeds the machine and asks whom it wants asked; the rest is returned.
    fn step(&mut self, input: FetchIn) -> Vec<FetchOut> {
        let mut out = Vec::new();
        self.machine.handle(input, now(), &mut out);
        for one in &out {
            match one {
                FetchOut::Ask(contact, request) => self.ask(contact.clone(), request.clone()),
                FetchOut::Decided(decided) => self.decided = Some(decided.clone()),
                FetchOut::Provider(contact) => self.named.push(contact.clone()),
                FetchOut::Likely(..) | FetchOut::NoMoreProviders => {}
            }
        }
        out
    }

    fn ask(&mut self, contact: Contact, request: Request) {
        let member = self.member.clone();
        let time = self.machine.time_of(&contact.node);
        self.asking.spawn(async move {
            let found = tokio::time::timeout(time, member.located(&contact)).await;
            let Some(found) = found.ok().flatten() else {
                return FetchIn::Failed(contact.node);
            };
            match member.ask(&found, &request, time).await {
                Ok(reply) => FetchIn::Reply(contact.node, reply),
                Err(Unanswered::Late) => FetchIn::Tick,
                Err(Unanswered::Failed) => FetchIn::Failed(contact.node),
            }
        });
    }

    /// Whether the look-up goes on.
    fn asks(&self) -> bool {
        self.machine.deadline().is_some()
    }

    async fn next(&mut self) -> FetchIn {
        next(&mut self.asking, self.machine.deadline())
            .await
            .unwrap_or(FetchIn::Tick)
    }
}

/// Connects with a provider and names it; none if that fails.
pub(super) async fn name(
    member: &Member,
    contact: &Contact,
    providers: &mpsc::Sender<Offer>,
) -> Option<Result<Kept, (PeerId, AskError)>> {
    let (net, contact) = (member.net()?, member.to_dial(contact)?);
    let peer = contact.peer;
    // Marked before it is dialled, so that nothing closes the connection in between.
    let kept = net.keep(peer);
    let time = match contact.is_behind_relays() {
        true => PUNCH_TIME_MAX,
        false => CONNECT_TIMEOUT,
    };
    let mut connected = net.connect(contact.clone(), time).await;
    if connected.is_ok() && contact.is_behind_relays() {
        // Both sides dialled each other at several addresses, and each keeps what came about
        // first of its own: a lane on one of the others would break.
        tokio::time::sleep(PUNCH_SETTLE_TIME).await;
        connected = net.connect(contact, time).await;
    }
    match connected {
        Ok(()) => {
            let offer = Offer {
                source: peer.into(),
                is_far: net.rtt(peer).await.is_some_and(|rtt| rtt > NEAR),
            };
            providers.send(offer).await.ok()?;
            Some(Ok(kept))
        }
        Err(error) => Some(Err((peer, error))),
    }
}

/// When to give up the parents as providers, so that others are asked, too.
pub(super) struct Parents {
    parents: Vec<Source>,
    /// How often they asked to come again since they last gave something.
    busy: u32,
    given_up: CancellationToken,
}

impl Parents {
    pub(super) fn new(parents: &BTreeSet<NodeId>, given_up: CancellationToken) -> Self {
        let peers = parents
            .iter()
            .filter_map(|node| PeerId::from_bytes(&node.0).ok())
            .map(Source::Peer);
        Self {
            parents: peers.collect(),
            busy: 0,
            given_up,
        }
    }

    pub(super) fn gave(&mut self, from: &Source) {
        if self.parents.contains(from) {
            self.busy = 0;
        }
    }

    /// Says whether this one is only to be asked again.
    pub(super) fn failed(&mut self, from: &Source, why: Why) -> bool {
        if !self.parents.contains(from) {
            return false;
        }
        // Asked again at once, in another form.
        if why == Why::NotSpoken {
            return true;
        }
        let is_busy = why == Why::Busy;
        self.busy += u32::from(is_busy);
        let waits = is_busy && self.busy < PARENT_BUSY_MAX;
        if !waits {
            self.given_up.cancel();
        }
        waits
    }
}
