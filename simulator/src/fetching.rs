//! A client's fetch: `Fetch` up to the decision, `Transfer` after it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use qk_protocol::blocks::Blob;
use qk_protocol::decide::Decision;
use qk_protocol::fetch::{Decided, Fetch, FetchIn, FetchOut, Want};
use qk_protocol::hash::Root;
use qk_protocol::message::NodeId;
use qk_protocol::statement::Subject;
use qk_protocol::time::Machine;
use qk_protocol::transfer::{In, Out, RangeEnd, Slot, Transfer, Why};

use crate::engine::{Key, MINUTE, Micros, SECOND, mix};
use crate::job::{Hops, Input, Then, Work};
use crate::node::{Kind, number_of};
use crate::wire::{Blocks, Body, Cause, Message};
use crate::world::{Event, World};

/// How long a client waits for a connection to a provider.
const CONNECT_TIMEOUT: Micros = 5 * SECOND;
/// How long it waits for the first byte of a range.
const FIRST_BYTE: Micros = 10 * SECOND;
/// Round trips that punching a hole takes more than dialling.
const PUNCH_TRIPS: Micros = 3;

#[derive(Debug)]
pub(crate) struct Fetching {
    fetch: Fetch,
    transfer: Option<Transfer<u32>>,
    pulls: BTreeSet<Slot>,
    pub(crate) artifact: u32,
    began: Micros,
    decided: Option<Box<Decided>>,
    trusted: Option<Subject>,
    /// Connections that may still come about.
    connecting: u32,
    /// Nobody else will be named.
    named_all: bool,
    /// A forged block was written.
    tampered: bool,
    done: bool,
    hops: Hops,
    /// Who of those that answered is nearest, and how near.
    nearest: Option<([u8; 32], u32)>,
    is_probe: bool,
}

impl Fetching {
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let transfer = self.transfer.as_ref().and_then(Machine::deadline);
        self.fetch.deadline().into_iter().chain(transfer).min()
    }
}

impl World<'_> {
    /// A client wants an artifact.
    pub(crate) fn fetch(&mut self, owner: u32, artifact: u32, is_probe: bool) -> Option<Key> {
        let want = Want {
            network: self.stage.network.clone(),
            network_key: self.stage.network_key,
            policy: self.stage.policy.clone(),
            own: None,
            hidden: None,
            candidates: vec![self.artifacts[artifact as usize].candidate()],
        };
        let point = self.artifacts[artifact as usize].point;
        let mut seeds = self.seeds(owner, &point);
        let mut parents = Vec::new();
        if self.nodes[owner as usize].kind == Kind::Lab
            && let Some(cache) = self.cache
        {
            parents.push(self.contact(cache));
            seeds.insert(0, self.contact(cache));
        }
        if self.nodes[owner as usize].eclipsed {
            self.tally.fault("eclipse");
        }
        self.tally.count("fetches");
        let fetching = Fetching {
            fetch: Fetch::new(want, seeds)?.with_parents(parents),
            transfer: None,
            pulls: BTreeSet::new(),
            artifact,
            began: self.queue.now,
            decided: None,
            trusted: None,
            connecting: 0,
            named_all: false,
            tampered: false,
            done: false,
            hops: Hops::default(),
            nearest: None,
            is_probe,
        };
        Some(self.begin(owner, Work::Fetch(Box::new(fetching))))
    }

    pub(crate) fn step_fetch(
        &mut self,
        key: Key,
        owner: u32,
        it: &mut Fetching,
        input: Input,
    ) -> bool {
        match input {
            Input::Start => self.look(key, owner, it, FetchIn::Start(Vec::new())),
            Input::Reply(from, reply) => {
                it.hops.named(from, &reply.closer);
                let (node, point) = (
                    &self.nodes[from as usize],
                    self.artifacts[it.artifact as usize].point,
                );
                let here = (node.point.distance(&point), from);
                it.nearest = it
                    .nearest
                    .map_or(Some(here), |nearest| Some(nearest.min(here)));
                let node = NodeId::of_key(&node.key);
                self.look(key, owner, it, FetchIn::Reply(node, reply));
            }
            Input::Tick => {
                self.look(key, owner, it, FetchIn::Tick);
                self.transfer(key, owner, it, In::Tick);
            }
            Input::Range(slot, end) => {
                if it.pulls.remove(&slot) {
                    let end = self.verified(it, end);
                    self.transfer(key, owner, it, In::Range(slot, end));
                }
            }
            Input::Late(slot) => {
                if it.pulls.remove(&slot) {
                    let late = RangeEnd::Failed(Why::Late);
                    self.transfer(key, owner, it, In::Range(slot, late));
                }
            }
            Input::Connected(provider, is_connected) => {
                it.connecting -= 1;
                if is_connected {
                    self.transfer(key, owner, it, In::Provider(provider));
                } else {
                    self.tally.count("providers not reached");
                }
                self.maybe_all_named(key, owner, it);
            }
        }
        it.done
    }

    /// What verifying a range says. Blocks are typed here; in a node their hashes say it.
    fn verified(&self, it: &mut Fetching, end: Result<Blocks, Why>) -> RangeEnd {
        match end {
            Ok(blocks) if blocks.forged && !self.scenario.without.verification => {
                RangeEnd::Failed(Why::Wrong(blocks.range.start()))
            }
            Ok(blocks) => {
                it.tampered |= blocks.forged;
                RangeEnd::Verified {
                    received: blocks.wire_len,
                }
            }
            Err(why) => RangeEnd::Failed(why),
        }
    }

    fn look(&mut self, key: Key, owner: u32, it: &mut Fetching, input: FetchIn) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            it.fetch.handle(input, self.now(owner), &mut out);
            for one in out {
                match one {
                    FetchOut::Ask(contact, request) => match self.locate(&contact) {
                        Some((to, wait)) => self.ask(owner, to, key, Cause::LookUp, request, wait),
                        None => inputs.push_back(FetchIn::Failed(contact.node)),
                    },
                    // The transfer waits for the decision here.
                    FetchOut::Likely(..) => {}
                    FetchOut::Decided(decided) => self.decided(it, decided),
                    FetchOut::Provider(contact) => {
                        if let Some(provider) = number_of(&contact).filter(|one| *one != owner) {
                            it.connecting += 1;
                            self.connect(key, owner, provider);
                        }
                    }
                    FetchOut::NoMoreProviders => {
                        it.named_all = true;
                        self.maybe_all_named(key, owner, it);
                    }
                }
            }
        }
    }

    fn decided(&mut self, it: &mut Fetching, decided: Box<Decided>) {
        let took = (self.queue.now - it.began) as f64 / 1e6;
        self.tally.measure("seconds to a decision", took);
        if let Some((_, nearest)) = it.nearest {
            self.tally.measure("hops", f64::from(it.hops.of(nearest)));
        }
        self.tally
            .measure("nodes that answered", decided.answered as f64);
        let found = !decided.statements.is_empty();
        self.tally.count(if found {
            "look-ups with statements"
        } else {
            "look-ups without"
        });
        self.past_dissent(it, decided.root());
        match &decided.verdict.decision {
            Decision::Trusted(trusted) => {
                it.trusted = Some(trusted.subject);
                let right = self.artifacts[it.artifact as usize].right;
                let is_right = trusted.subject == right;
                self.tally.count(if is_right {
                    "trusted right"
                } else {
                    "trusted wrong"
                });
                match Blob::new(trusted.subject.root, trusted.subject.size) {
                    Ok(blob) => it.transfer = Some(Transfer::new(blob, &[])),
                    Err(_) => it.done = true,
                }
            }
            Decision::Unproven(_) => self.not_trusted(it, "unproven"),
            Decision::Disputed { .. } => self.not_trusted(it, "disputed"),
            Decision::Stale { .. } => self.not_trusted(it, "stale"),
            Decision::Blocked { .. } => self.not_trusted(it, "blocked"),
        }
        it.decided = Some(decided);
    }

    /// What a client that began after a dissent was stated made of it.
    fn past_dissent(&mut self, it: &Fetching, trusted: Option<Root>) {
        let about = &self.artifacts[it.artifact as usize];
        let is_attacked = self.is_victim(it.artifact)
            && (self.targets.is_empty() || self.targets.contains(&about.point));
        let Some(since) = about
            .dissented
            .filter(|since| is_attacked && *since <= it.began)
        else {
            return;
        };
        let (is_wrong, after) = (trusted == Some(about.wrong.root), it.began - since);
        self.tally.count("decisions after a dissent");
        if is_wrong {
            self.tally.count("dissents that stayed hidden");
            let after = after as f64 / MINUTE as f64;
            self.tally
                .measure("minutes that a dissent stays hidden", after);
        }
    }

    fn not_trusted(&mut self, it: &mut Fetching, why: &'static str) {
        self.tally.count(why);
        it.done = true;
    }

    fn connect(&mut self, key: Key, owner: u32, provider: u32) {
        let (own, other) = (&self.nodes[owner as usize], &self.nodes[provider as usize]);
        let both_behind_nat = !own.kind.is_server() && !other.kind.is_server();
        let (low, high) = (owner.min(provider), owner.max(provider));
        let punched = (mix(u64::from(low), u64::from(high)) % 1000) as f64;
        let punched = punched < self.scenario.network.punch_percent * 10.0;
        let reached = other.is_up() && (!both_behind_nat || punched);
        if both_behind_nat && !punched {
            self.tally.fault("nat");
        }
        let dial = self.dial_time(owner, provider);
        let takes = match (reached, other.kind.is_server()) {
            (false, _) => CONNECT_TIMEOUT,
            (true, true) => dial,
            (true, false) => dial * (1 + PUNCH_TRIPS) / 2,
        };
        self.queue.at(
            self.queue.now + takes,
            Event::Connected(key, provider, reached),
        );
    }

    fn maybe_all_named(&mut self, key: Key, owner: u32, it: &mut Fetching) {
        if it.named_all && it.connecting == 0 {
            self.transfer(key, owner, it, In::NoMoreProviders);
        }
    }

    fn transfer(&mut self, key: Key, owner: u32, it: &mut Fetching, input: In<u32>) {
        let (Some(transfer), Some(subject)) = (&mut it.transfer, it.trusted) else {
            return;
        };
        let mut out = Vec::new();
        transfer.handle(input, self.now(owner), &mut out);
        for one in out {
            match one {
                Out::Pull {
                    slot,
                    from,
                    range,
                    wire_len,
                    ..
                } => {
                    let Some(blob) = self.blob_of(it.artifact, subject.root) else {
                        continue;
                    };
                    it.pulls.insert(slot);
                    let body = Body::Pull {
                        slot,
                        blob,
                        range,
                        wire_len,
                    };
                    let message = Message {
                        from: owner,
                        to: from,
                        job: key,
                        cause: Cause::Blocks,
                        body,
                    };
                    self.send(message, 0);
                    if !self.scenario.without.deadlines {
                        self.queue
                            .at(self.queue.now + FIRST_BYTE, Event::Late(key, slot));
                    }
                }
                Out::Reset(slot) => {
                    it.pulls.remove(&slot);
                }
                // Lanes are not modelled.
                Out::Close(_) => {}
                Out::Ban(..) => self.tally.count("bans"),
                Out::Done | Out::Failed(_) => {
                    it.done = true;
                    let is_whole = matches!(one, Out::Done);
                    self.tally
                        .count(if is_whole { "arrived" } else { "not delivered" });
                    if !is_whole {
                        it.trusted = None;
                    } else {
                        let took = (self.queue.now - it.began) as f64 / 1e6;
                        self.tally.measure("seconds to arrive", took);
                    }
                }
            }
        }
    }

    /// A fetch has ended, one way or another.
    pub(crate) fn fetched(&mut self, key: Key, owner: u32, it: Fetching) {
        let right = self.artifacts[it.artifact as usize].right;
        let has_right = it.trusted == Some(right) && !it.tampered;
        if it.tampered {
            self.tally.count("tampered");
        }
        if it.is_probe {
            self.awaited.remove(&key);
            let ended = match &it.decided {
                _ if has_right => None,
                Some(decided) => Some(format!(
                    "{:?}, {} of {} nodes answered",
                    decided.verdict.decision, decided.answered, decided.known
                )),
                None => Some("no decision".to_owned()),
            };
            self.arrivals.push((owner, it.artifact, ended));
        }
        let kind = self.nodes[owner as usize].kind;
        if has_right {
            let blob = it.artifact * 2;
            if kind == Kind::Cache || self.nodes[owner as usize].shares {
                self.nodes[owner as usize].take_blob(blob);
            }
            if kind != Kind::Cache && self.nodes[owner as usize].shares && !it.is_probe {
                let point = self.artifacts[it.artifact as usize].point;
                self.find(owner, point, 256, Cause::Announce, Then::Have(blob));
            }
        }
        if kind == Kind::Cache {
            let known = it.decided.map_or(Vec::new(), |decided| decided.statements);
            self.cache_answers(owner, it.artifact, &known);
        }
    }
}
