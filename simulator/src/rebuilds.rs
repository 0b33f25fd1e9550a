//! Rebuilding alone, for questions of many keys, verifiers and days: no messages, an index that shows
//! everybody at once what was stated.
//!
//! Who owes what, what is drawn, in which order it is built, and what is trusted are the protocol's
//! machines. Modelled are how long a committee takes to notice a release (a round of its patrol), the points
//! of an audit (entries at random), builds, and clients, which decide at random times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qk_protocol::assign::{Ranking, audit, duty};
use qk_protocol::decide::{Decision, Held, Question, decide};
use qk_protocol::hash::{Blake3, KeyId, PrincipalId};
use qk_protocol::manifest::Network;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use qk_protocol::watch::{Agreement, End, Queue as Owed, Why};
use qk_protocol::work::WorkDigest;
use rand::{Rng, RngExt};

use crate::engine::{HOUR, MINUTE, Micros, Queue, SECOND, Streams, Trace, mix};
use crate::report::{Check, Performance, Report};
use crate::scenario::Scenario;
use crate::stage::{Artifact, BEGIN, Character, Stage, subject};
use crate::tally::Tally;
use crate::wire::minutes;
use crate::workload::exponential;
use crate::world::Progress;

/// Entries that one draw of an audit chooses from.
const DRAWN: usize = 8;
/// Nodes for each minute that a round of a patrol takes.
const NODES_A_MINUTE: u32 = 10;
const TELL_EVERY: u64 = 256;

#[derive(Debug, Clone, Copy)]
enum Event {
    Release,
    /// Somebody bad states something.
    Harm(u32, u32),
    /// A member notices an artifact.
    Noticed(u32, u32),
    Wake(u32),
    Built(u32),
    Client,
}

struct Rebuilds<'a> {
    scenario: &'a Scenario,
    stage: Stage,
    /// As renewed today.
    network: Network,
    streams: Streams,
    queue: Queue<Event>,
    artifacts: Vec<Artifact>,
    by_key: BTreeMap<KeyId, u32>,
    by_principal: BTreeMap<PrincipalId, u32>,
    held: Vec<Vec<Held>>,
    /// When something wrong was said of an artifact that is not settled yet.
    blocked: BTreeMap<u32, Micros>,
    /// Copies that nobody has found out, and when they were made.
    copies: BTreeMap<u32, Vec<(usize, Micros)>>,
    owed: Vec<Owed>,
    end: Micros,
    trace: Trace,
    tally: Tally,
}

/// Plays a scenario whose index is perfect.
///
/// # Errors
/// When the stage cannot be set.
pub(crate) fn play(
    scenario: &Scenario,
    seed: u64,
    tell: &mut dyn FnMut(Progress),
) -> anyhow::Result<Report> {
    let stage = Stage::new(scenario)?;
    let operators = stage.operators.iter().enumerate();
    let mut it = Rebuilds {
        network: stage.network.as_ref().clone(),
        by_principal: operators.map(|(at, one)| (one.id, at as u32)).collect(),
        owed: stage.operators.iter().map(|_| Owed::default()).collect(),
        scenario,
        stage,
        streams: Streams::new(seed),
        queue: Queue::default(),
        artifacts: Vec::new(),
        by_key: BTreeMap::new(),
        held: Vec::new(),
        blocked: BTreeMap::new(),
        copies: BTreeMap::new(),
        end: (scenario.hours * HOUR as f64) as Micros,
        trace: Trace::default(),
        tally: Tally::default(),
    };
    it.begin();
    while let Some(event) = it.queue.next_before(it.end) {
        it.happen(event)?;
        if it.queue.happened.is_multiple_of(TELL_EVERY) {
            tell(Progress {
                at: Duration::from_micros(it.queue.now),
                end: Duration::from_micros(it.end),
                events: it.queue.happened,
            });
        }
    }
    Ok(it.report(seed))
}

impl Rebuilds<'_> {
    fn now(&self) -> UnixTime {
        BEGIN.plus(self.queue.now / SECOND)
    }

    fn verifiers(&self) -> std::ops::Range<u32> {
        self.scenario.principals.publishers..self.stage.operators.len() as u32
    }

    fn begin(&mut self) {
        for number in 0..self.scenario.workload.crates {
            let artifact = self.publish(number, 0);
            self.call(artifact);
        }
        for verifier in self.verifiers() {
            let at = self.streams.nodes.random_range(0..HOUR);
            self.queue.at(at, Event::Wake(verifier));
        }
        self.later(self.scenario.workload.releases_a_day, Event::Release);
        self.later(self.clients_a_day(), Event::Client);
    }

    fn clients_a_day(&self) -> f64 {
        f64::from(self.scenario.nodes.laptops) * self.scenario.workload.fetches_a_day
    }

    fn later(&mut self, a_day: f64, event: Event) {
        if a_day > 0.0 {
            let wait = exponential(&mut self.streams.workload, 24.0 / a_day);
            self.queue.at(self.queue.now + wait, event);
        }
    }

    fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        // The day's timestamp, as the node beside its key renews it.
        if self.now().since(self.network.timestamp().issued) > 24 * 3600 {
            self.network = self.network.renew(&self.stage.clock, self.now())?;
        }
        match event {
            Event::Release => self.release(),
            Event::Harm(operator, artifact) => self.harm(operator, artifact),
            Event::Noticed(operator, artifact) => self.noticed(operator, artifact),
            Event::Wake(operator) => self.wake(operator),
            Event::Built(operator) => self.built(operator),
            Event::Client => self.client(),
        }
        Ok(())
    }

    /// A release with its publisher's statement; without one if it is bad from the beginning.
    fn publish(&mut self, crate_number: u32, release: u32) -> u32 {
        let artifact = self.stage.artifact(crate_number, release, 1024);
        let number = self.artifacts.len() as u32;
        self.by_key.insert(artifact.key_id, number);
        self.artifacts.push(artifact);
        self.held.push(Vec::new());
        self.artifacts[number as usize].published = Some(self.queue.now);
        if !self.is_victim(number) {
            let publisher = number % self.scenario.principals.publishers;
            let right = self.artifacts[number as usize].right;
            self.state(publisher, number, right, true);
        }
        number
    }

    fn is_victim(&self, artifact: u32) -> bool {
        let of = self.artifacts[artifact as usize].crate_number;
        of < self.scenario.hostile.victims && artifact >= self.scenario.workload.crates
    }

    fn release(&mut self) {
        self.later(self.scenario.workload.releases_a_day, Event::Release);
        let of = self
            .streams
            .workload
            .random_range(0..self.scenario.workload.crates);
        let artifact = self.publish(of, self.artifacts.len() as u32);
        self.tally.count("releases");
        let operators = (0..).zip(&self.stage.operators);
        let harmful: Vec<(u32, Character)> = operators
            .filter(|(_, one)| matches!(one.character, Character::Colluding | Character::Lying))
            .map(|(at, one)| (at, one.character))
            .collect();
        for (operator, character) in harmful {
            let harms = match character {
                Character::Colluding => self.is_victim(artifact),
                _ => self.lies(operator, artifact),
            };
            if harms {
                let wait = self.streams.faults.random_range(0..10 * MINUTE);
                self.queue
                    .at(self.queue.now + wait, Event::Harm(operator, artifact));
            }
        }
        if self.is_victim(artifact) {
            let operators = self.stage.operators.len() as u32;
            for stranger in 0..self.scenario.hostile.strangers {
                self.queue
                    .at(self.queue.now, Event::Harm(operators + stranger, artifact));
            }
        }
        self.call(artifact);
    }

    fn lies(&self, operator: u32, artifact: u32) -> bool {
        let one_in = u64::from(self.scenario.hostile.lies_one_in);
        mix(u64::from(operator), u64::from(artifact)).is_multiple_of(one_in)
    }

    /// The committee notices an artifact within a round of its patrol.
    fn call(&mut self, artifact: u32) {
        if !self.scenario.principals.committee {
            return;
        }
        let candidate = self.artifacts[artifact as usize].candidate();
        let ranking = Ranking::of(&self.network, &candidate);
        let members = ranking.ranks().iter().take(ranking.size());
        let members: Vec<u32> = members
            .filter_map(|rank| self.by_principal.get(&rank.principal).copied())
            .collect();
        self.notice(&members, artifact);
    }

    fn notice(&mut self, members: &[u32], artifact: u32) {
        let round = minutes(f64::from(
            self.scenario.nodes.servers.div_ceil(NODES_A_MINUTE),
        ));
        for member in members {
            let wait = self.streams.nodes.random_range(0..round.max(MINUTE));
            self.queue
                .at(self.queue.now + wait, Event::Noticed(*member, artifact));
        }
    }

    fn noticed(&mut self, operator: u32, artifact: u32) {
        let now = self.now();
        let candidate = self.artifacts[artifact as usize].candidate();
        let own = self.stage.operators[operator as usize].id;
        let held = &self.held[artifact as usize];
        if let Some(why) = duty(&self.network, &candidate, held, own) {
            let key = self.artifacts[artifact as usize].key.clone();
            self.owed[operator as usize].add(self.network.id(), key, why.into(), now);
        }
        self.wake(operator);
    }

    fn wake(&mut self, operator: u32) {
        let now = self.now();
        if self.owed[operator as usize].building().is_some() {
            return;
        }
        if self.owed[operator as usize].wants_audit(now) {
            self.draw(operator);
        }
        let Some(entry) = self.owed[operator as usize].begin(now) else {
            return self.queue.at(self.queue.now + HOUR, Event::Wake(operator));
        };
        self.tally.count(match entry.why {
            Why::Audit => "audits",
            Why::Assigned => "rebuilds assigned",
            Why::Called { .. } => "rebuilds called",
        });
        if let (Why::Audit, Some(artifact)) = (entry.why, self.by_key.get(&entry.key.id()))
            && self.artifacts[*artifact as usize].proofs.len()
                >= self.scenario.policy.threshold as usize
        {
            self.tally.count("audits of what was proven");
        }
        let day = minutes(24.0 * 60.0 / self.scenario.principals.builds_a_day);
        let takes = match self.stage.operators[operator as usize].character {
            Character::Lazy => MINUTE,
            _ => self.streams.nodes.random_range(day / 2..day * 3 / 2),
        };
        self.queue
            .at(self.queue.now + takes, Event::Built(operator));
    }

    fn draw(&mut self, operator: u32) {
        let rng = &mut self.streams.nodes;
        let drawn: BTreeSet<usize> = (0..DRAWN)
            .map(|_| rng.random_range(0..self.artifacts.len()))
            .collect();
        let mut random = [rng.next_u64(), rng.next_u64()];
        if !self.scenario.principals.uniform_floor {
            // Beyond the uniform share and that of strangers.
            let rest = audit::UNIFORM_PERCENT + audit::STRANGERS_PERCENT;
            random[0] = rest + random[0] % (100 - rest);
        }
        let own = self.stage.operators[operator as usize].public;
        let fresh = drawn.into_iter().filter(|at| {
            self.held[*at]
                .iter()
                .all(|one| one.statement.observer() != own)
        });
        let statements: Vec<_> = fresh
            .flat_map(|at| self.held[at].iter().map(|one| one.statement.clone()))
            .collect();
        let now = self.now();
        let entries = audit::entries(&self.network, &statements, now);
        if let Some(entry) = audit::choose(&entries, random) {
            self.owed[operator as usize].add(self.network.id(), entry.key.clone(), Why::Audit, now);
        }
    }

    fn built(&mut self, operator: u32) {
        let building = self.owed[operator as usize].building();
        let artifact = building.and_then(|one| self.by_key.get(&one.entry.key.id()));
        let Some(artifact) = artifact.copied() else {
            return;
        };
        let about = &self.artifacts[artifact as usize];
        let held = &self.held[artifact as usize];
        let own = self.stage.operators[operator as usize].public;
        let end = if held.iter().any(|one| one.statement.observer() == own) {
            End::Dropped
        } else {
            let first = held.iter().filter_map(|one| one.statement.observation());
            let first = first.min_by_key(|one| one.finished);
            let (got, has_built) = match self.stage.operators[operator as usize].character {
                Character::Lazy => (first.map_or(about.right, |one| one.subject), false),
                Character::Colluding if self.is_victim(artifact) => (about.wrong, true),
                _ => (about.right, true),
            };
            self.state(operator, artifact, got, has_built);
            End::Built(Agreement::Identical)
        };
        let now = self.now();
        self.owed[operator as usize].end(end, now);
        self.wake(operator);
    }

    fn harm(&mut self, operator: u32, artifact: u32) {
        let about = &self.artifacts[artifact as usize];
        let got = match self
            .stage
            .operators
            .get(operator as usize)
            .map(|one| one.character)
        {
            Some(Character::Lying) => {
                self.blocked.insert(artifact, self.queue.now);
                self.tally.count("lies");
                subject(&format!("lie of {operator} about {artifact}"), 1024)
            }
            _ => about.wrong,
        };
        self.state(operator, artifact, got, true);
    }

    /// Somebody states something, and everybody knows it.
    fn state(
        &mut self,
        operator: u32,
        artifact: u32,
        got: qk_protocol::statement::Subject,
        has_built: bool,
    ) {
        let now = self.now();
        let operators = &self.stage.operators;
        let by = operators.get(operator as usize);
        let by = by.unwrap_or_else(|| &self.stage.strangers[operator as usize - operators.len()]);
        let about = &self.artifacts[artifact as usize];
        let digest = match has_built {
            true => Some(about.digest),
            false => WorkDigest::of([Blake3::of(b"a guess")]),
        };
        let digest = digest.filter(|_| !self.scenario.without.work_digest);
        let work = digest.map(|one| one.work(self.network.id(), by.public, about.key_id, got.root));
        let earlier = self.held[artifact as usize]
            .iter()
            .map(|one| one.statement.as_ref());
        let earlier: Vec<&Statement> = earlier.collect();
        let checks = match digest.filter(|_| has_built) {
            Some(digest) => digest.checks(by.public, about.key_id, got, earlier),
            None => BTreeMap::new(),
        };
        let is_right = got == about.right;
        let is_lazy = by.character == Character::Lazy;
        let is_verifier = by.character != Character::Publisher && operator < operators.len() as u32;
        let finds: Vec<_> = checks
            .iter()
            .filter(|(_, agrees)| !**agrees)
            .map(|(id, _)| *id)
            .collect();
        let statement = self.stage.observe(by, about, got, now, work, checks);
        self.trace
            .record(self.queue.now, 0, operator, artifact, u64::from(is_right));
        self.held[artifact as usize].push(Held {
            statement,
            stored: now,
        });
        if is_lazy {
            let at = self.held[artifact as usize].len() - 1;
            self.copies
                .entry(artifact)
                .or_default()
                .push((at, self.queue.now));
            self.tally.count("copies");
        }
        if !finds.is_empty() {
            self.found_out(artifact, &finds);
        }
        if is_right && is_verifier {
            self.proven(operator, artifact);
        }
        self.dissents(artifact);
    }

    /// An honest rebuild says of these that they were copied.
    fn found_out(&mut self, artifact: u32, finds: &[qk_protocol::hash::StatementId]) {
        let (held, now) = (&self.held[artifact as usize], self.queue.now);
        if let Some(copies) = self.copies.get_mut(&artifact) {
            let found = |(at, _): &(usize, Micros)| finds.contains(&held[*at].statement.id());
            for (_, since) in copies.iter().filter(|one| found(one)) {
                self.tally
                    .measure("hours to find a copy", (now - since) as f64 / HOUR as f64);
            }
            copies.retain(|one| !found(one));
        }
    }

    fn proven(&mut self, operator: u32, artifact: u32) {
        let one = &mut self.artifacts[artifact as usize];
        one.proofs.push(operator);
        let is_new = artifact >= self.scenario.workload.crates;
        let since = one.published.unwrap_or_default();
        let name = match (one.proofs.len(), is_new) {
            (1, true) => "hours to 1 proof",
            (2, true) => "hours to 2 proofs",
            (3, true) => "hours to 3 proofs",
            (1, false) => "hours to 1 proof of the backlog",
            _ => return,
        };
        self.tally
            .measure(name, (self.queue.now - since) as f64 / HOUR as f64);
    }

    /// Dissents call further ranks, and are over when clients trust all the same.
    fn dissents(&mut self, artifact: u32) {
        let held = &self.held[artifact as usize];
        let mut roots = held.iter().filter_map(|one| one.statement.observation());
        let Some(first) = roots.next().map(|one| one.subject) else {
            return;
        };
        if roots.all(|one| one.subject == first) {
            return;
        }
        if let Some(since) = self.blocked.get(&artifact).copied()
            && self.trusts(artifact) == Some(true)
        {
            self.blocked.remove(&artifact);
            let hours = (self.queue.now - since) as f64 / HOUR as f64;
            self.tally.measure("hours that a lie blocks", hours);
        }
        if !self.scenario.principals.committee || self.scenario.without.escalation {
            return;
        }
        let candidate = self.artifacts[artifact as usize].candidate();
        let ranking = Ranking::of(&self.network, &candidate);
        let held = &self.held[artifact as usize];
        let ranks = ranking
            .ranks()
            .iter()
            .take(3 * ranking.size())
            .skip(ranking.size());
        let called = ranks.filter(|rank| {
            let owes = duty(&self.network, &candidate, held, rank.principal);
            matches!(owes, Some(qk_protocol::assign::Duty::Called { .. }))
        });
        let called: Vec<u32> = called
            .filter_map(|rank| self.by_principal.get(&rank.principal).copied())
            .collect();
        self.notice(&called, artifact);
    }

    /// Whether a client that knows everything trusts the right root, or the wrong one.
    fn trusts(&self, artifact: u32) -> Option<bool> {
        let about = &self.artifacts[artifact as usize];
        let verdict = decide(&Question {
            policy: &self.stage.policy,
            network: &self.network,
            candidate: &about.candidate(),
            own: None,
            statements: &self.held[artifact as usize],
            now: self.now(),
        });
        match verdict.decision {
            Decision::Trusted(trusted) => Some(trusted.subject == about.right),
            Decision::Unproven(_)
            | Decision::Disputed { .. }
            | Decision::Stale { .. }
            | Decision::Blocked { .. } => None,
        }
    }

    /// A client wants one of what was released in this run, or of what was there where nothing was.
    fn client(&mut self) {
        self.later(self.clients_a_day(), Event::Client);
        let from = self.scenario.workload.crates as usize;
        let from = if from < self.artifacts.len() { from } else { 0 };
        let artifact = self
            .streams
            .workload
            .random_range(from..self.artifacts.len()) as u32;
        let trusted = self.trusts(artifact);
        self.trace
            .record(self.queue.now, 1, 0, artifact, trusted.map_or(2, u64::from));
        self.tally.count("clients");
        match trusted {
            Some(true) => self.tally.count("trusted right"),
            Some(false) => self.tally.count("trusted wrong"),
            None => self.tally.count("not trusted"),
        }
    }

    fn report(mut self, seed: u64) -> Report {
        let mut measures: BTreeMap<String, f64> = self
            .tally
            .counts()
            .map(|(name, count)| (name.to_owned(), count as f64))
            .collect();
        let counted = |what: &str| self.tally.counted(what) as f64;
        let mut put = |name: &str, value: f64| {
            measures.insert(name.to_owned(), value);
        };
        let clients = counted("clients").max(1.0);
        put("trusted wrong, share", counted("trusted wrong") / clients);
        put("trusted right, share", counted("trusted right") / clients);
        let audits = counted("audits");
        let builds = audits + counted("rebuilds assigned") + counted("rebuilds called");
        put(
            "builds spent on what was proven, share",
            counted("audits of what was proven") / builds.max(1.0),
        );
        put("lies that still block", self.blocked.len() as f64);
        put(
            "copies not found",
            self.copies.values().map(Vec::len).sum::<usize>() as f64,
        );
        for (name, proofs) in [
            ("keys with 1 proof, share", 1),
            ("keys with 3 proofs, share", 3),
        ] {
            let enough = self
                .artifacts
                .iter()
                .filter(|one| one.proofs.len() >= proofs)
                .count();
            put(name, enough as f64 / self.artifacts.len() as f64);
        }
        let who = &self.scenario.principals;
        let wrong = self.tally.counted("trusted wrong");
        let mut checks = Vec::new();
        if who.colluding + who.lazy < self.scenario.policy.threshold {
            checks.push(Check {
                name: "safety".to_owned(),
                held: wrong == 0,
                detail: format!("{wrong} clients trusted a wrong root"),
            });
        }
        Report {
            about: self.scenario.about.clone(),
            seed,
            hours: self.scenario.hours,
            nodes: u64::from(self.scenario.nodes.servers),
            events: self.queue.happened,
            trace_hash: self.trace.hash(),
            measures,
            quantiles: self.tally.quantiles(),
            faults: Vec::new(),
            checks,
            performance: Performance::default(),
        }
    }
}
