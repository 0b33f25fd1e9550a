//! What nodes have under way: look-ups, requests to several nodes at once, fetches.
//!
//! A job is stepped by what arrives for it and by its own deadline. What is left when its owner went
//! away is dropped when its next event comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::hash::{Point, StatementId};
use qk_protocol::lookup::{ASK_TIMEOUT, Lookup, LookupIn, LookupOut, WIDTH};
use qk_protocol::message::{Answer, Contact, Get, NodeId, Reply, Request};
use qk_protocol::statement::Statement;
use qk_protocol::time::Machine;
use qk_protocol::transfer::{Slot, Why};

use crate::engine::{Key, Micros};
use crate::fetching::Fetching;
use crate::node::number_of;
use crate::walking::Walking;
use crate::wire::{Blocks, Cause};
use crate::world::{Event, World};

/// How long a member of a committee that is only known by name takes to be found.
const LOCATE: Micros = 400_000;

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) owner: u32,
    /// When the session of its owner began in which it was begun.
    session: Micros,
    tick_at: Option<Micros>,
    work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    Find(Box<Find>),
    Batch(Batch),
    Fetch(Box<Fetching>),
    Walk(Box<Walking>),
    /// It is being stepped.
    Away,
}

/// What happens to a job.
#[derive(Debug)]
pub(crate) enum Input {
    Start,
    Reply(u32, Reply),
    Tick,
    Range(Slot, Result<Blocks, Why>),
    Late(Slot),
    Connected(u32, bool),
}

/// How long the chains were by which nodes became known.
#[derive(Debug, Default)]
pub(crate) struct Hops(BTreeMap<u32, u8>);

impl Hops {
    /// A reply of `from` names these.
    pub(crate) fn named(&mut self, from: u32, closer: &[Contact]) {
        let next = self.0.entry(from).or_insert(1).saturating_add(1);
        for node in closer.iter().filter_map(number_of) {
            self.0.entry(node).or_insert(next);
        }
    }

    pub(crate) fn of(&self, node: u32) -> u8 {
        self.0.get(&node).copied().unwrap_or(1)
    }
}

/// A look-up that ends when the nearest have answered.
#[derive(Debug)]
pub(crate) struct Find {
    lookup: Lookup,
    pub(crate) statements: BTreeMap<StatementId, Arc<Statement>>,
    pub(crate) answers: u32,
    /// Bytes of the answers.
    pub(crate) bytes: u64,
    pub(crate) began: Micros,
    hops: Hops,
    cause: Cause,
    then: Then,
}

impl Find {
    pub(crate) fn nearest(&self) -> impl Iterator<Item = u32> {
        self.lookup.answered().filter_map(number_of)
    }
}

/// What a look-up is for.
#[derive(Debug, Clone)]
pub(crate) enum Then {
    /// Put statements that were made, then say who has the artifact.
    Put(Vec<u32>, Option<u32>),
    /// Say that one has an artifact.
    Have(u32),
    Survey(u32),
    Look(u32),
    Draw(u32),
    Build(u32, u32),
    /// Is this statement found?
    Probe(u32),
    /// What a reader by prefix would get.
    Prefix,
}

/// Requests to several nodes at once.
#[derive(Debug)]
pub(crate) struct Batch {
    waiting: Vec<u32>,
    until: Micros,
    pub(crate) answered: Vec<u32>,
    pub(crate) points: Vec<Vec<Point>>,
    then: After,
}

/// What is done when they have answered, or did not in time.
#[derive(Debug, Clone)]
pub(crate) enum After {
    Put(Vec<u32>, Option<u32>),
    /// What is near a point, with the places of the nodes nearest to it.
    Survey(u32, Point, Vec<Point>),
    Draw(u32, Point),
    /// What a node that came lists around itself.
    Repair(u32),
    Nothing,
}

impl World<'_> {
    pub(crate) fn begin(&mut self, owner: u32, work: Work) -> Key {
        let session = self.nodes[owner as usize].up_from;
        let key = self.jobs.add(Job {
            owner,
            session,
            tick_at: None,
            work,
        });
        self.step(key, Input::Start);
        key
    }

    /// Whom a node asks first: mirrors, and those that it knows nearest to the point.
    pub(crate) fn seeds(&self, owner: u32, point: &Point) -> Vec<Contact> {
        let mut seeds: Vec<u32> = self.mirrors.clone();
        if self.nodes[owner as usize].eclipsed {
            seeds.extend(
                self.sybils
                    .iter()
                    .filter(|one| self.nodes[**one as usize].is_up()),
            );
        } else {
            let count = self.scenario.nodes.seeds as usize;
            seeds.extend(self.closest(owner, point, count));
        }
        let mut known = BTreeSet::from([owner]);
        seeds.retain(|one| known.insert(*one));
        seeds.into_iter().map(|one| self.contact(one)).collect()
    }

    /// Looks for everything at a point, or at all points that share its first bits.
    pub(crate) fn find(&mut self, owner: u32, point: Point, bits: u16, cause: Cause, then: Then) {
        let get = Get {
            point,
            bits,
            observer: None,
            after: None,
        };
        let find = Find {
            lookup: Lookup::new(get, self.seeds(owner, &point)),
            statements: BTreeMap::new(),
            answers: 0,
            bytes: 0,
            began: self.queue.now,
            hops: Hops::default(),
            cause,
            then,
        };
        self.begin(owner, Work::Find(Box::new(find)));
    }

    /// Sends one request to several nodes.
    pub(crate) fn ask_all(
        &mut self,
        owner: u32,
        to: &[u32],
        cause: Cause,
        request: &Request,
        then: After,
    ) {
        let timeout = ASK_TIMEOUT.as_micros() as Micros;
        let mut waiting = to.to_vec();
        waiting.sort_unstable();
        waiting.dedup();
        waiting.retain(|one| *one != owner);
        let batch = Batch {
            waiting,
            until: self.queue.now + timeout,
            answered: Vec::new(),
            points: Vec::new(),
            then,
        };
        let whom = batch.waiting.clone();
        let session = self.nodes[owner as usize].up_from;
        let key = self.jobs.add(Job {
            owner,
            session,
            tick_at: None,
            work: Work::Batch(batch),
        });
        for one in whom {
            self.ask(owner, one, key, cause, request.clone(), 0);
        }
        self.step(key, Input::Start);
    }

    /// Steps a job, if it is still there and so is its owner.
    pub(crate) fn step(&mut self, key: Key, input: Input) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        let owner = job.owner;
        if matches!(input, Input::Tick) {
            // One that was woken too early says so again.
            job.tick_at = None;
        }
        if self.nodes[owner as usize].up_from != job.session {
            self.tally.count("jobs of nodes that went away");
            self.jobs.take(key);
            return;
        }
        let mut work = std::mem::replace(&mut job.work, Work::Away);
        let ended = match &mut work {
            Work::Find(find) => self.step_find(key, owner, find, input),
            Work::Batch(batch) => step_batch(batch, input, self.queue.now),
            Work::Fetch(fetching) => self.step_fetch(key, owner, fetching, input),
            Work::Walk(walking) => self.step_walk(key, owner, walking, input),
            Work::Away => unreachable!("a job is stepped by one event at a time"),
        };
        if ended {
            self.jobs.take(key);
            return self.ended(key, owner, work);
        }
        let deadline = match &work {
            Work::Find(find) => self.in_time(find.lookup.deadline()),
            Work::Batch(batch) => Some(batch.until),
            Work::Fetch(fetching) => self.in_time(fetching.deadline()),
            Work::Walk(walking) => Some(walking.until),
            Work::Away => None,
        };
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        job.work = work;
        if let Some(deadline) = deadline
            && job.tick_at.is_none_or(|at| deadline < at)
        {
            job.tick_at = Some(deadline);
            self.queue.at(deadline, Event::Tick(key));
        }
    }

    fn in_time(&self, deadline: Option<Duration>) -> Option<Micros> {
        let deadline = deadline.filter(|_| !self.scenario.without.deadlines)?;
        Some(deadline.as_micros() as Micros)
    }

    fn step_find(&mut self, key: Key, owner: u32, find: &mut Find, input: Input) -> bool {
        let input = match input {
            Input::Start => LookupIn::Start,
            Input::Tick => LookupIn::Tick,
            Input::Reply(from, reply) => {
                let node = NodeId::of_key(&self.nodes[from as usize].key);
                if let Answer::Statements { statements, .. } = &reply.answer {
                    for one in statements {
                        find.statements
                            .entry(one.id())
                            .or_insert_with(|| one.clone());
                    }
                }
                find.hops.named(from, &reply.closer);
                find.answers += 1;
                find.bytes += crate::wire::reply_bytes(&reply);
                LookupIn::Reply(node, reply)
            }
            Input::Range(..) | Input::Late(_) | Input::Connected(..) => return false,
        };
        let mut out = Vec::new();
        find.lookup.handle(input, self.now(owner), &mut out);
        for LookupOut::Ask(contact, request) in out {
            if let Some(to) = number_of(&contact) {
                self.ask(owner, to, key, find.cause, request, 0);
            }
        }
        find.lookup.is_done()
    }

    /// Whom a contact means, and how long it takes to find it out.
    pub(crate) fn locate(&self, contact: &Contact) -> Option<(u32, Micros)> {
        let by_name = || Some((*self.named.get(&contact.node)?, LOCATE));
        number_of(contact).map(|node| (node, 0)).or_else(by_name)
    }

    fn ended(&mut self, key: Key, owner: u32, work: Work) {
        match work {
            Work::Find(find) => self.found(owner, *find),
            Work::Batch(batch) => self.batch_ended(owner, batch),
            Work::Fetch(fetching) => self.fetched(key, owner, *fetching),
            Work::Walk(_) | Work::Away => {}
        }
    }

    fn found(&mut self, owner: u32, find: Find) {
        if matches!(find.cause, Cause::LookUp | Cause::Publish) {
            if let Some(nearest) = find.nearest().next() {
                self.tally.measure("hops", f64::from(find.hops.of(nearest)));
            }
            let took = (self.queue.now - find.began) as f64 / 1e6;
            self.tally.measure("whole look-up seconds", took);
        }
        match find.then.clone() {
            Then::Put(stated, blob) => {
                let nearest: Vec<u32> = find.nearest().take(WIDTH).collect();
                self.put(owner, stated, blob, nearest);
            }
            Then::Have(blob) => {
                let nearest: Vec<u32> = find.nearest().take(WIDTH).collect();
                self.have(owner, blob, &nearest);
            }
            Then::Survey(verifier) => self.list(verifier, &find),
            Then::Look(verifier) => self.looked(verifier, find.statements),
            Then::Draw(verifier) => self.drawn(verifier, find.statements),
            Then::Build(verifier, artifact) => {
                let nearest: Vec<u32> = find.nearest().take(WIDTH).collect();
                self.observe(verifier, artifact, &find.statements, nearest);
            }
            Then::Probe(stated) => {
                let id = self.stated[stated as usize].statement.id();
                let is_found = find.statements.contains_key(&id);
                self.probes.insert(stated, is_found);
            }
            Then::Prefix => {
                let releases: BTreeSet<_> = find
                    .statements
                    .values()
                    .map(|one| one.key().release())
                    .collect();
                self.tally
                    .measure("releases by prefix", releases.len() as f64);
                self.tally.measure("bytes by prefix", find.bytes as f64);
                self.tally
                    .measure("answers by prefix", f64::from(find.answers));
            }
        }
    }

    fn batch_ended(&mut self, owner: u32, batch: Batch) {
        match batch.then {
            After::Put(stated, blob) => self.was_put(owner, &stated, blob, &batch.answered),
            After::Survey(verifier, point, places) => {
                self.surveyed(verifier, point, &places, &batch.points);
            }
            After::Draw(verifier, point) => self.listed_near(verifier, point, batch.points),
            After::Repair(newcomer) => {
                if let Some(has) = batch.points.first() {
                    self.repair_at(owner, newcomer, has);
                }
            }
            After::Nothing => {}
        }
    }
}

fn step_batch(batch: &mut Batch, input: Input, now: Micros) -> bool {
    if let Input::Reply(from, reply) = input
        && let Some(at) = batch.waiting.iter().position(|one| *one == from)
    {
        batch.waiting.swap_remove(at);
        match reply.answer {
            Answer::Points(points) => batch.points.push(points),
            Answer::Taken { taken: 0, .. } => return batch.waiting.is_empty(),
            Answer::Taken { .. }
            | Answer::Statements { .. }
            | Answer::Network(_)
            | Answer::Log(_)
            | Answer::Refused(_) => {}
        }
        batch.answered.push(from);
    }
    batch.waiting.is_empty() || now >= batch.until
}
