//! A fetch up to the transfer: look up, decide, name providers.
//!
//! The machine asks nodes ever closer to the release's point, decides again whenever an answer
//! brings statements, and decides finally when the policy is met by enough separate answers, or by a
//! parent's answer and what came in a short grace after it, or nobody is left to ask. Where the index has
//! nothing of some who were assigned, these are asked directly before that. It then names those who say
//! that they have the root, as long as late answers name more. What the answers so far prove is said
//! before, so that its transfer does not wait for those who may dissent. The transfer is a machine of its own ([`crate::transfer`]), since a blob is
//! also fetched when nothing has to be decided: to replace a damaged one.

mod members;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::members::{MEMBER_GRACE, MEMBER_TIMEOUT, MEMBERS_ASKED_MAX, MIRROR_GRACE};
use self::members::{Members, mirror_nodes, silent_nodes};
use crate::candidate::Candidate;
use crate::decide::{Decision, Held, Question, Roll, Verdict, choose, decide};
use crate::hash::{NetworkKey, PrincipalId, PublicKey, Root, StatementId};
use crate::hidden::hidden;
use crate::index::principal_of;
use crate::lookup::{Lookup, LookupIn, LookupOut};
use crate::manifest::Network;
use crate::message::{Answer, Contact, NodeId, Provider, Reply, Request};
use crate::policy::Policy;
use crate::statement::Statement;
use crate::time::{Machine, Now, UnixTime};

/// Separate answers that are waited for before a met policy ends the look-up, if so many nodes are
/// known at all.
pub const ANSWERS_MIN: usize = 3;
/// Statements by one principal that one fetch takes in; a release has a handful. Everybody has room
/// of their own, so that nobody's dissent is kept out by a flood.
pub const FETCH_PRINCIPAL_STATEMENTS_MAX: usize = 1024;
/// Statements by strangers that one fetch takes in. They decide nothing and are shown to people.
pub const FETCH_STRANGER_STATEMENTS_MAX: usize = 256;
/// Providers of one root that one fetch remembers, each with each set of addresses.
pub const FETCH_PROVIDERS_MAX: usize = 256;
/// Providers of one root that are taken of one node: a node that names many false ones leaves room
/// for those that others name.
pub const FETCH_PROVIDERS_OF_ONE_MAX: usize = 16;

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
    /// How many first bits of the release's point may be told to those who are asked
    /// ([`crate::hidden`]); all of them without.
    pub hidden: Option<u16>,
}

/// What happens to a fetch.
#[derive(Debug)]
pub enum FetchIn {
    /// Begin, with what is known here already.
    Start(Vec<Held>),
    /// A node answered.
    Reply(NodeId, Reply),
    /// A node could not be reached, or answered nonsense. Who is late is noticed here.
    Failed(NodeId),
    /// Time passed.
    Tick,
}

/// What a fetch wants done.
#[derive(Debug)]
pub enum FetchOut {
    /// Ask this node. Without addresses it is a member of the committee, which has to be found first.
    Ask(Contact, Request),
    /// What the answers so far prove, and who has it, at most once and before the decision. Its
    /// transfer may begin; it may not be used before the decision says the same, since a dissent may
    /// still arrive.
    Likely(Box<Decided>, Vec<Contact>),
    /// The decision, once. Unless it is trusted, nothing follows.
    Decided(Box<Decided>),
    /// This node says that it has the trusted root. It comes again when somebody names it with other
    /// addresses: the first ones may be a lie.
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

impl Decided {
    /// The root that is trusted, if one is.
    pub fn root(&self) -> Option<Root> {
        match &self.verdict.decision {
            Decision::Trusted(trusted) => Some(trusted.subject.root),
            Decision::Unproven(_)
            | Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => None,
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Fetch {
    want: Want,
    lookup: Lookup,
    statements: BTreeMap<StatementId, Held>,
    /// Statements taken from the network, by principal; `None` for strangers.
    taken: BTreeMap<Option<PrincipalId>, usize>,
    providers: BTreeMap<Root, Vec<Contact>>,
    parents: Vec<Contact>,
    members: Members,
    phase: Phase,
    /// Whether it was said what is likely.
    said_likely: bool,
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
        let point = release.location(&want.network_key).point();
        let get = hidden(point, want.hidden.unwrap_or(256));
        Some(Self {
            lookup: Lookup::new(get, seeds),
            want,
            statements: BTreeMap::new(),
            taken: BTreeMap::new(),
            providers: BTreeMap::new(),
            parents: Vec::new(),
            members: Members::default(),
            phase: Phase::Looking,
            said_likely: false,
        })
    }

    /// How long a node may take to answer.
    pub fn time_of(&self, node: &NodeId) -> Duration {
        match self.members.were_asked(node) {
            true => MEMBER_TIMEOUT,
            false => self.lookup.time_of(node),
        }
    }

    /// Nodes that are asked first and whose answer suffices after a short grace if it meets the
    /// policy; see [`Lookup::with_parents`]. They are to be among the seeds. Those that answered are
    /// named as providers before all others: a cache fetches what it is asked for.
    pub fn with_parents(mut self, parents: Vec<Contact>) -> Self {
        let nodes = parents.iter().map(|contact| &contact.node);
        self.lookup = self.lookup.with_parents(nodes);
        self.parents = parents;
        self
    }

    fn on_start(&mut self, held: Vec<Held>, now: Now, out: &mut Vec<FetchOut>) {
        for one in held {
            self.statements.insert(one.statement.id(), one);
        }
        self.look(LookupIn::Start, now, out);
    }

    fn on_reply(&mut self, node: NodeId, reply: Reply, now: Now, out: &mut Vec<FetchOut>) {
        let is_member = self.members.end(&node);
        let page = match self.lookup.page_due(&node) {
            Some(page) => page,
            // Of a member one page will do: what it observed of a release is a handful.
            None if is_member => 0,
            None => return,
        };
        if let Answer::Statements {
            statements,
            providers,
            ..
        } = &reply.answer
        {
            for statement in statements {
                self.take_statement(statement, now.unix);
            }
            if self.lookup.is_by_prefix() {
                // Those of each point come with its first statements; of other points' there is no end.
                let wanted = providers.iter().filter(|one| self.is_observed(one.root));
                let wanted: Vec<Provider> = wanted.cloned().collect();
                self.take_providers(&wanted, out);
            } else if page == 0 {
                // All are on the first page: further ones are no way to name more.
                self.take_providers(providers, out);
            }
        }
        self.look(LookupIn::Reply(node, reply), now, out);
    }

    fn take_statement(&mut self, statement: &Arc<Statement>, now: UnixTime) {
        let network = &self.want.network;
        let mut candidates = self.want.candidates.iter();
        let release = statement.key().release();
        let here = candidates.any(|candidate| candidate.release == release);
        if !here
            || statement.network() != network.id()
            || self.statements.contains_key(&statement.id())
        {
            return;
        }
        let observer = statement.observer();
        let principal = principal_of(network, observer);
        let taken = self.taken.entry(principal).or_default();
        let max = match principal {
            Some(_) => FETCH_PRINCIPAL_STATEMENTS_MAX,
            None => FETCH_STRANGER_STATEMENTS_MAX,
        };
        // One's own decides by itself, principal or not.
        if *taken >= max && self.want.own != Some(observer) {
            return;
        }
        *taken += 1;
        let held = Held {
            statement: statement.clone(),
            stored: now,
        };
        self.statements.insert(statement.id(), held);
    }

    fn is_observed(&self, root: Root) -> bool {
        let mut observed = self
            .statements
            .values()
            .filter_map(|held| held.statement.observation());
        observed.any(|observation| observation.subject.root == root)
    }

    /// Takes what one node names, a few of each root.
    fn take_providers(&mut self, providers: &[Provider], out: &mut Vec<FetchOut>) {
        let mut by_root: BTreeMap<Root, usize> = BTreeMap::new();
        for provider in providers {
            let trusted = self.phase == Phase::Naming(provider.root);
            let of_one = by_root.entry(provider.root).or_default();
            if *of_one >= FETCH_PROVIDERS_OF_ONE_MAX {
                continue;
            }
            *of_one += 1;
            let of_root = self.providers.entry(provider.root).or_default();
            if of_root.len() < FETCH_PROVIDERS_MAX && !of_root.contains(&provider.contact) {
                of_root.push(provider.contact.clone());
                if trusted {
                    out.push(FetchOut::Provider(provider.contact.clone()));
                }
            }
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
        let enough = answered >= ANSWERS_MIN.min(known) && !self.lookup.awaits_parent();
        let enough = enough || self.lookup.parent_suffices();
        let over = self.lookup.is_done();
        if !over && !enough {
            return self.say_likely(now, out);
        }
        let Some((candidate, verdict)) = self.decide(now.unix) else {
            return;
        };
        let is_met = matches!(verdict.decision, Decision::Trusted(_));
        if !over && !is_met {
            return;
        }
        if answered > 0 && !(is_met && self.lookup.parent_suffices()) {
            self.ask_members(candidate, is_met, now, out);
        }
        if self.members.awaited(now) {
            return self.say_likely(now, out);
        }
        let decided = self.decided(candidate, verdict);
        let root = decided.root();
        out.push(FetchOut::Decided(Box::new(decided)));
        self.phase = root.map_or(Phase::Over, Phase::Naming);
        if let Some(root) = root {
            let named = self.having(root).into_iter();
            out.extend(named.map(FetchOut::Provider));
        }
    }

    /// Says once what the answers so far prove, unless a parent is to be heard first or nobody has it.
    fn say_likely(&mut self, now: Now, out: &mut Vec<FetchOut>) {
        if self.said_likely || self.lookup.awaits_parent() {
            return;
        }
        let Some((candidate, verdict)) = self.decide(now.unix) else {
            return;
        };
        let likely = self.decided(candidate, verdict);
        let having = likely.root().map(|root| self.having(root));
        if let Some(having) = having.filter(|having| !having.is_empty()) {
            self.said_likely = true;
            out.push(FetchOut::Likely(Box::new(likely), having));
        }
    }

    fn decided(&self, candidate: usize, verdict: Verdict) -> Decided {
        let statements = self.statements.values();
        Decided {
            candidate,
            verdict,
            statements: statements.map(|held| held.statement.clone()).collect(),
            answered: self.lookup.answered().count(),
            known: self.lookup.known(),
        }
    }

    /// Who has a root as far as is known: parents that answered, and then those who were named.
    fn having(&mut self, root: Root) -> Vec<Contact> {
        let asked = |parent: &&Contact| self.lookup.answered().any(|one| one.node == parent.node);
        let parents: Vec<Contact> = self.parents.iter().filter(asked).cloned().collect();
        let of_root = self.providers.entry(root).or_default();
        of_root.retain(|one| !parents.contains(one));
        of_root.splice(0..0, parents);
        of_root.clone()
    }

    /// Asks those who are called and of whom nothing arrived, once. Where the policy is met, only those
    /// whose addresses are known, and for a moment: what they could add is a dissent.
    fn ask_members(&mut self, candidate: usize, is_met: bool, now: Now, out: &mut Vec<FetchOut>) {
        let held = self.held();
        let roll = Roll::of(&self.want.network, &self.want.candidates[candidate], &held);
        let until = now.mono + if is_met { MEMBER_GRACE } else { MEMBER_TIMEOUT };
        let silent = silent_nodes(&self.want.network, &roll);
        self.await_mirror(&silent, now.mono + MIRROR_GRACE);
        for node in silent {
            let known = self.lookup.contact(&node).cloned();
            if self.lookup.has_asked(&node) {
                if self.lookup.awaits(&node) {
                    self.members.ask(node, until);
                }
            } else if (known.is_some() || !is_met) && self.members.ask(node.clone(), until) {
                let addrs = Vec::new();
                let contact = known.unwrap_or(Contact { node, addrs });
                let get = self.lookup.question().clone();
                out.push(FetchOut::Ask(contact, Request::Get(get)));
            }
        }
    }

    /// Waits for one mirror that was asked with the first: it knows of a dissent that hostile nodes near the
    /// release withhold, and these may be nearer to the client.
    fn await_mirror(&mut self, silent: &[NodeId], until: Duration) {
        let mut mirrors = mirror_nodes(&self.want.network);
        mirrors.retain(|mirror| !silent.contains(mirror));
        let has_one = mirrors.iter().any(|mirror| {
            let mut answered = self.lookup.answered();
            answered.any(|contact| contact.node == *mirror)
        });
        for mirror in mirrors {
            if has_one {
                self.members.end(&mirror);
            } else if self.lookup.awaits(&mirror) {
                self.members.ask(mirror, until);
            }
        }
    }

    fn held(&self) -> Vec<Held> {
        self.statements.values().cloned().collect()
    }

    fn decide(&self, now: UnixTime) -> Option<(usize, Verdict)> {
        let statements = self.held();
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
        if self.phase == Phase::Over {
            return;
        }
        match input {
            FetchIn::Start(held) => self.on_start(held, now, out),
            FetchIn::Reply(node, reply) => self.on_reply(node, reply, now, out),
            FetchIn::Failed(node) => {
                self.members.end(&node);
                self.look(LookupIn::Failed(node), now, out);
            }
            FetchIn::Tick => {
                self.members.end_late(now);
                self.look(LookupIn::Tick, now, out);
            }
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Looking => self
                .lookup
                .deadline()
                .into_iter()
                .chain(self.members.deadline())
                .min(),
            Phase::Naming(_) => self.lookup.deadline(),
            Phase::Over => None,
        }
    }
}

#[cfg(test)]
mod tests;
