//! A fetch up to the transfer: look up, decide, name providers.
//!
//! The machine asks nodes ever closer to the release's point, decides again whenever an answer
//! brings statements, and decides finally when the policy is met by enough separate answers or
//! nobody is left to ask. It then names those who say that they have the root, as long as late
//! answers name more. The transfer is a machine of its own ([`crate::transfer`]), since a blob is
//! also fetched when nothing has to be decided: to replace a damaged one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::{Candidate, Decision, Held, Question, Verdict, choose, decide};
use crate::hash::{NetworkKey, PublicKey, Root, StatementId};
use crate::lookup::{Lookup, LookupIn, LookupOut};
use crate::manifest::Network;
use crate::message::{Answer, Contact, Get, NodeId, Provider, Reply, Request};
use crate::policy::Policy;
use crate::statement::Statement;
use crate::time::{Machine, Now, UnixTime};

/// Separate answers that are waited for before a met policy ends the look-up, if so many nodes are
/// known at all.
pub const ANSWERS_MIN: usize = 3;
/// Statements that one fetch takes in; a release has a handful.
pub const FETCH_STATEMENTS_MAX: usize = 4096;
/// Providers of one root that one fetch remembers.
pub const FETCH_PROVIDERS_MAX: usize = 64;

/// What a client wants, and what it asks before it trusts.
#[derive(Debug, Clone)]
pub struct Want {
    /// The network to ask.
    pub network: Arc<Network>,
    /// What that network's locations are keyed with.
    pub network_key: NetworkKey,
    /// The stricter of the user's and the manifest's policy.
    pub policy: Policy,
    /// This client's own key.
    pub own: Option<PublicKey>,
    /// What would do, most wanted first; all of one release.
    pub candidates: Vec<Candidate>,
}

/// What happens to a fetch.
#[derive(Debug)]
pub enum FetchIn {
    /// Begin, with what is known here already.
    Start(Vec<Held>),
    /// A node answered.
    Reply(NodeId, Reply),
    /// A node could not be reached, or answered nonsense.
    Failed(NodeId),
    /// Time passed.
    Tick,
}

/// What a fetch wants done.
#[derive(Debug)]
pub enum FetchOut {
    /// Ask this node.
    Ask(Contact, Request),
    /// The decision, once. Unless it is trusted, nothing follows.
    Decided(Box<Decided>),
    /// This node says that it has the trusted root.
    Provider(Contact),
    /// Nobody else will be named.
    NoMoreProviders,
}

/// A decision and what it rests on.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Which of the candidates the verdict is about.
    pub candidate: usize,
    /// The verdict.
    pub verdict: Verdict,
    /// All statements about the release that were seen.
    pub statements: Vec<Arc<Statement>>,
    /// Nodes that answered.
    pub answered: usize,
    /// Nodes that were known.
    pub known: usize,
}

/// The machine.
#[derive(Debug)]
pub struct Fetch {
    want: Want,
    lookup: Lookup,
    statements: BTreeMap<StatementId, Held>,
    providers: BTreeMap<Root, Vec<Contact>>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Looking,
    /// Decided for this root: providers of it are named.
    Naming(Root),
    Over,
}

impl Fetch {
    /// A fetch that begins by asking `seeds`. `None` when nothing is wanted.
    pub fn new(want: Want, seeds: Vec<Contact>) -> Option<Self> {
        let release = &want.candidates.first()?.release;
        let get = Get {
            point: release.location(&want.network_key).point(),
            bits: 256,
            observer: None,
            after: None,
        };
        Some(Self {
            lookup: Lookup::new(get, seeds),
            want,
            statements: BTreeMap::new(),
            providers: BTreeMap::new(),
            phase: Phase::Looking,
        })
    }

    fn on_start(&mut self, held: Vec<Held>, now: Now, out: &mut Vec<FetchOut>) {
        for one in held {
            self.statements.insert(one.statement.id(), one);
        }
        self.look(LookupIn::Start, now, out);
    }

    fn on_reply(&mut self, node: NodeId, reply: Reply, now: Now, out: &mut Vec<FetchOut>) {
        if let Answer::Statements {
            statements,
            providers,
            ..
        } = &reply.answer
        {
            for statement in statements {
                self.take_statement(statement, now.unix);
            }
            for provider in providers {
                self.take_provider(provider, out);
            }
        }
        self.look(LookupIn::Reply(node, reply), now, out);
    }

    fn take_statement(&mut self, statement: &Arc<Statement>, now: UnixTime) {
        let wanted = self
            .want
            .candidates
            .first()
            .map(|candidate| &candidate.release);
        let here = wanted.is_some_and(|release| statement.key().release() == *release);
        if here && self.statements.len() < FETCH_STATEMENTS_MAX {
            self.statements
                .entry(statement.id())
                .or_insert_with(|| Held {
                    statement: statement.clone(),
                    stored: now,
                });
        }
    }

    fn take_provider(&mut self, provider: &Provider, out: &mut Vec<FetchOut>) {
        let of_root = self.providers.entry(provider.root).or_default();
        let known = of_root
            .iter()
            .any(|contact| contact.node == provider.contact.node);
        if known || of_root.len() >= FETCH_PROVIDERS_MAX {
            return;
        }
        of_root.push(provider.contact.clone());
        if self.phase == Phase::Naming(provider.root) {
            out.push(FetchOut::Provider(provider.contact.clone()));
        }
    }

    /// The look-up goes on after the decision: late answers may still name providers.
    fn look(&mut self, input: LookupIn, now: Now, out: &mut Vec<FetchOut>) {
        let mut asks = Vec::new();
        self.lookup.handle(input, now, &mut asks);
        for LookupOut::Ask(contact, request) in asks {
            out.push(FetchOut::Ask(contact, request));
        }
        if self.phase == Phase::Looking {
            self.conclude(now, out);
        }
        if matches!(self.phase, Phase::Naming(_)) && self.lookup.is_done() {
            self.phase = Phase::Over;
            out.push(FetchOut::NoMoreProviders);
        }
    }

    /// Ends the look-up when its answers suffice, or when there will be no more.
    fn conclude(&mut self, now: Now, out: &mut Vec<FetchOut>) {
        let answered = self.lookup.answered().count();
        let known = self.lookup.known();
        let enough = answered >= ANSWERS_MIN.min(known);
        let over = self.lookup.is_done();
        if !over && !enough {
            return;
        }
        let Some((candidate, verdict)) = self.decide(now.unix) else {
            return;
        };
        if !over && !matches!(verdict.decision, Decision::Trusted(_)) {
            return;
        }
        let root = match &verdict.decision {
            Decision::Trusted(trusted) => Some(trusted.subject.root),
            Decision::Unproven(_)
            | Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => None,
        };
        let statements = self.statements.values();
        out.push(FetchOut::Decided(Box::new(Decided {
            candidate,
            verdict,
            statements: statements.map(|held| held.statement.clone()).collect(),
            answered,
            known,
        })));
        self.phase = root.map_or(Phase::Over, Phase::Naming);
        let named = root.and_then(|root| self.providers.get(&root));
        out.extend(named.into_iter().flatten().cloned().map(FetchOut::Provider));
    }

    fn decide(&self, now: UnixTime) -> Option<(usize, Verdict)> {
        let statements: Vec<Held> = self.statements.values().cloned().collect();
        choose(self.want.candidates.iter().map(|candidate| {
            decide(&Question {
                policy: &self.want.policy,
                network: &self.want.network,
                candidate,
                own: self.want.own,
                statements: &statements,
                now,
            })
        }))
    }
}

impl Machine for Fetch {
    type In = FetchIn;
    type Out = FetchOut;

    fn handle(&mut self, input: FetchIn, now: Now, out: &mut Vec<FetchOut>) {
        match input {
            FetchIn::Start(held) => self.on_start(held, now, out),
            FetchIn::Reply(node, reply) => self.on_reply(node, reply, now, out),
            FetchIn::Failed(node) => self.look(LookupIn::Failed(node), now, out),
            FetchIn::Tick => self.look(LookupIn::Tick, now, out),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.lookup.deadline()
    }
}
