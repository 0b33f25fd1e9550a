//! What happens by itself: sessions, announcements, releases, fetches, what goes wrong and heals.

use std::collections::BTreeMap;
use std::sync::Arc;

use qk_protocol::assign::Ranking;
use qk_protocol::decide::{Decision, Held, Question, decide};
use qk_protocol::hash::Point;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::{Have, Provider, Request};
use qk_protocol::policy::Policy;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use qk_protocol::upkeep::{ANNOUNCE_SECONDS, put_again};
use rand::RngExt;

use crate::engine::{HOUR, MINUTE, Micros, Random, SECOND};
use crate::job::{After, Then};
use crate::node::Kind;
use crate::stage::{BEGIN, Character};
use crate::wire::{Cause, minutes};
use crate::world::{Event, Stated, World};

/// Part of a run after which Sybils are there.
const SYBILS_AFTER: f64 = 0.1;
/// Time that final fetches and look-ups have.
const PROBE_TIME: f64 = 15.0;
/// Popular crates that hostile providers have or say to have.
const HOSTILE_PROVIDE: u32 = 8;

impl World<'_> {
    /// What there is before the run: crates that were published and rebuilt.
    pub(crate) fn preload(&mut self) {
        let work = &self.scenario.workload;
        let stored = UnixTime(BEGIN.0 - 3600);
        for number in 0..work.crates {
            let by = self.observers(number);
            let artifact = &self.artifacts[number as usize];
            let point = artifact.point;
            let mut holders = self.routing.nearest(&point, WIDTH, 0, &self.nodes);
            holders.extend(self.mirrors.iter().copied());
            for operator in by {
                let artifact = &self.artifacts[number as usize];
                let one = &self.stage.operators[operator as usize];
                let digest = !self.scenario.without.work_digest;
                let work = digest.then(|| self.stage.work(one, artifact, artifact.right));
                let statement =
                    self.stage
                        .observe(one, artifact, artifact.right, stored, work, [].into());
                let honest = holders
                    .iter()
                    .copied()
                    .filter(|one| self.nodes[*one as usize].is_honest());
                let honest: Vec<u32> = honest.collect();
                for holder in &honest {
                    self.nodes[*holder as usize].keep(point, statement.clone());
                }
                let stated = self.state(statement, number, operator);
                self.stated[stated as usize].holders = honest;
            }
            self.artifacts[number as usize].published = Some(0);
            self.preload_providers(number, &holders);
        }
    }

    /// The publisher, and honest verifiers as they are ranked.
    fn observers(&self, number: u32) -> Vec<u32> {
        let proofs = self.scenario.workload.proofs as usize;
        let mut by = vec![number % self.scenario.principals.publishers];
        if proofs > 0 {
            let candidate = self.artifacts[number as usize].candidate();
            let ranking = Ranking::of(&self.stage.network, &candidate);
            let operators = || self.stage.operators.iter().enumerate();
            let honest: BTreeMap<_, _> = operators()
                .filter(|(_, one)| one.character == Character::Honest)
                .map(|(at, one)| (one.id, at as u32))
                .collect();
            let ranked = ranking.ranks().iter();
            by.extend(
                ranked
                    .filter_map(|rank| honest.get(&rank.principal))
                    .take(proofs),
            );
        }
        by
    }

    fn preload_providers(&mut self, number: u32, holders: &[u32]) {
        let work = &self.scenario.workload;
        let servers = self.scenario.nodes.servers;
        let mut providers = Vec::new();
        if work.publisher_provides {
            providers.push(self.at[(number % self.scenario.principals.publishers) as usize]);
        }
        let mut tries = 0;
        let wanted = providers.len() + work.providers as usize;
        while providers.len() < wanted && tries < 50 * wanted {
            tries += 1;
            let one = self.streams.workload.random_range(0..servers);
            if self.nodes[one as usize].is_honest() && !providers.contains(&one) {
                providers.push(one);
            }
        }
        if number < HOSTILE_PROVIDE {
            let hostile = (0..servers).filter(|one| self.nodes[*one as usize].is_bad_provider());
            providers.extend(hostile);
        }
        let artifact = &self.artifacts[number as usize];
        let (point, root) = (artifact.point, artifact.right.root);
        for provider in providers {
            self.nodes[provider as usize].take_blob(number * 2);
            let contact = self.contact(provider);
            for holder in holders {
                let hint = Provider {
                    root,
                    contact: contact.clone(),
                };
                self.nodes[*holder as usize].hints.add(point, hint, BEGIN);
            }
        }
    }

    pub(crate) fn schedule(&mut self) {
        let scenario = self.scenario;
        for node in 0..self.nodes.len() as u32 {
            self.schedule_node(node);
        }
        for verifier in 0..self.verifiers.len() as u32 {
            let within = minutes(scenario.principals.survey_minutes);
            let at = self.streams.nodes.random_range(0..within.max(2));
            self.queue.at(at, Event::Survey(verifier));
        }
        for sybil in self.sybils.clone() {
            self.queue.at(
                (self.end as f64 * SYBILS_AFTER) as Micros,
                Event::Session(sybil),
            );
        }
        for (number, one) in scenario.partitions.iter().enumerate() {
            let begin = minutes(one.at_minutes);
            self.queue.at(begin, Event::Partition(number as u32, true));
            self.queue.at(
                begin + minutes(one.for_minutes),
                Event::Partition(number as u32, false),
            );
        }
        self.later(scenario.workload.releases_a_day, Event::Release);
        self.later(scenario.workload.bursts_a_day, Event::Burst);
        let heal = minutes(scenario.check.heal_minutes);
        if heal > 0 {
            self.queue.at(self.end - heal, Event::Heal);
        }
        if scenario.check.fetches + scenario.check.statements > 0 {
            let before = minutes(PROBE_TIME).min(self.end / 2);
            self.queue.at(self.end - before, Event::Probe);
        }
    }

    fn schedule_node(&mut self, node: u32) {
        let kind = self.nodes[node as usize].kind;
        if let Some(mean) = self.session_hours(node)
            && let Some(churn) = &self.scenario.churn
        {
            let up = mean / (mean + churn.down_hours);
            let is_up = self.streams.nodes.random_range(0.0..1.0) < up;
            if !is_up {
                self.nodes[node as usize].up_from = Micros::MAX;
            }
            // Somewhere in a session.
            let part = self.streams.nodes.random_range(0.0..1.0);
            let takes = self.session_time(node, is_up) as f64 * part;
            self.queue.at(takes as Micros, Event::Session(node));
        }
        let refresh = minutes(self.scenario.network.refresh_minutes);
        if matches!(
            kind,
            Kind::Server | Kind::Mirror | Kind::Operator | Kind::Cache | Kind::Laptop
        ) {
            let at = self.streams.nodes.random_range(0..refresh);
            self.queue.at(at, Event::Refresh(node));
            let at = self
                .streams
                .nodes
                .random_range(0..ANNOUNCE_SECONDS * SECOND);
            self.queue.at(at, Event::Announce(node));
        }
        if matches!(kind, Kind::Laptop | Kind::Lab) {
            self.later(self.fetches_a_day(kind), Event::Fetch(node));
        }
    }

    fn fetches_a_day(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Lab => self.scenario.workload.lab_fetches_a_day,
            _ => self.scenario.workload.fetches_a_day,
        }
    }

    /// Has something happen that happens so often a day, at random.
    fn later(&mut self, a_day: f64, event: Event) {
        if a_day > 0.0 {
            let wait = exponential(&mut self.streams.workload, 24.0 / a_day);
            if self.queue.now + wait < self.end {
                self.queue.at(self.queue.now + wait, event);
            }
        }
    }

    /// Mean session of a node that comes and goes.
    fn session_hours(&self, node: u32) -> Option<f64> {
        let churn = self.scenario.churn.as_ref()?;
        let own = &self.nodes[node as usize];
        match own.kind {
            // Who means harm is there.
            Kind::Server => own.is_honest().then_some(churn.server_up_hours),
            Kind::Laptop => Some(churn.laptop_up_hours),
            _ => None,
        }
    }

    fn session_time(&mut self, node: u32, is_up: bool) -> Micros {
        let (Some(mean), Some(churn)) = (self.session_hours(node), &self.scenario.churn) else {
            return Micros::MAX / 2;
        };
        match is_up {
            true => weibull(&mut self.streams.nodes, churn.shape, mean),
            false => exponential(&mut self.streams.nodes, churn.down_hours),
        }
    }

    /// A session ends or begins.
    pub(crate) fn turn(&mut self, node: u32) {
        let was_up = self.nodes[node as usize].is_up();
        if was_up && self.healed {
            return;
        }
        let now = self.queue.now;
        self.trace.record(now, 32 + u8::from(was_up), node, node, 0);
        if was_up {
            self.tally.fault("churn");
            let loses = self
                .scenario
                .churn
                .as_ref()
                .map_or(0.0, |churn| churn.lose_store_percent);
            let loses = loses > 0.0 && self.streams.faults.random_range(0.0..100.0) < loses;
            let own = &mut self.nodes[node as usize];
            (own.was_from, own.was_to, own.up_from) = (own.up_from, now, Micros::MAX);
            own.hints = Default::default();
            (own.up_free, own.down_free) = (0, 0);
            if loses {
                own.held.clear();
                own.blobs.clear();
                self.tally.fault("lost store");
            }
        } else {
            self.nodes[node as usize].up_from = now;
            self.announce_all(node);
        }
        if self.session_hours(node).is_some() && !self.healed {
            let takes = self.session_time(node, !was_up).max(SECOND);
            self.queue.at(now + takes, Event::Session(node));
        }
    }

    /// A turn of telling others what is here.
    pub(crate) fn announce(&mut self, node: u32) {
        let next = self.queue.now + ANNOUNCE_SECONDS * SECOND;
        if next < self.end {
            self.queue.at(next, Event::Announce(node));
        }
        self.announce_all(node);
    }

    fn announce_all(&mut self, node: u32) {
        let own = &self.nodes[node as usize];
        if !own.is_up() || !own.shares {
            return;
        }
        if own.kind == Kind::Operator {
            self.put_due(node);
        }
        for blob in self.nodes[node as usize].blobs.clone() {
            let point = self.artifacts[(blob / 2) as usize].point;
            let nearest = self.closest(node, &point, WIDTH);
            self.have(node, blob, &nearest);
        }
    }

    /// An operator's own statements are put again when it is their turn.
    fn put_due(&mut self, node: u32) {
        let now = self.unix();
        let due = |(_, one): &(usize, &Stated)| {
            let stored = one.statement.observation().map_or(now, |one| one.finished);
            let point = &self.artifacts[one.artifact as usize].point;
            one.by_node == node && put_again(point, stored, now)
        };
        let all = self.stated.iter().enumerate().filter(due);
        let mut by_artifact: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (at, one) in all {
            by_artifact.entry(one.artifact).or_default().push(at as u32);
        }
        for (artifact, stated) in by_artifact {
            let point = self.artifacts[artifact as usize].point;
            self.find(node, point, 256, Cause::Announce, Then::Put(stated, None));
        }
    }

    /// Tells these nodes that one has an artifact.
    pub(crate) fn have(&mut self, node: u32, blob: u32, nearest: &[u32]) {
        let artifact = &self.artifacts[(blob / 2) as usize];
        let subject = if blob.is_multiple_of(2) {
            artifact.right
        } else {
            artifact.wrong
        };
        let (point, own) = (artifact.point, self.contact(node));
        let now = self.now(node).unix;
        let hint = Provider {
            root: subject.root,
            contact: own.clone(),
        };
        self.nodes[node as usize].hints.add(point, hint, now);
        let request = Request::Have(Have {
            roots: vec![(point, subject.root)],
            addrs: own.addrs,
        });
        self.ask_all(node, nearest, Cause::Announce, &request, After::Nothing);
    }

    pub(crate) fn refresh(&mut self, node: u32) {
        let next = self.queue.now + minutes(self.scenario.network.refresh_minutes);
        if next < self.end {
            self.queue.at(next, Event::Refresh(node));
        }
        if !self.nodes[node as usize].is_up() {
            return;
        }
        let network = &self.stage.network;
        let request = Request::Network {
            version: network.manifest().version,
            issued: network.timestamp().issued,
        };
        let whom = self.closest(node, &Point(network.id().0), WIDTH);
        self.ask_all(node, &whom, Cause::Refresh, &request, After::Nothing);
    }

    /// Somebody made a statement; its own node holds it.
    pub(crate) fn state(&mut self, statement: Arc<Statement>, artifact: u32, operator: u32) -> u32 {
        let node = self.at[operator as usize];
        let point = self.artifacts[artifact as usize].point;
        self.nodes[node as usize].keep(point, statement.clone());
        self.stated.push(Stated {
            statement,
            artifact,
            operator,
            by_node: node,
            holders: Vec::new(),
        });
        self.stated.len() as u32 - 1
    }

    /// Puts statements to the nearest nodes and to mirrors.
    pub(crate) fn put(
        &mut self,
        owner: u32,
        stated: Vec<u32>,
        blob: Option<u32>,
        mut nearest: Vec<u32>,
    ) {
        nearest.extend(self.mirrors.iter().copied());
        let statements = stated
            .iter()
            .map(|at| self.stated[*at as usize].statement.clone());
        let request = Request::Put(statements.collect());
        self.ask_all(
            owner,
            &nearest,
            Cause::Publish,
            &request,
            After::Put(stated, blob),
        );
    }

    pub(crate) fn was_put(
        &mut self,
        owner: u32,
        stated: &[u32],
        blob: Option<u32>,
        answered: &[u32],
    ) {
        for at in stated {
            let one = &self.stated[*at as usize];
            let (artifact, operator) = (one.artifact, one.operator);
            let point = self.artifacts[artifact as usize].point;
            let holds = |node: &&u32| {
                let node = &self.nodes[**node as usize];
                node.is_honest() && node.holds(&point, &one.statement)
            };
            let holders: Vec<u32> = answered.iter().filter(holds).copied().collect();
            let is_right = one.statement.observation().map(|one| one.subject)
                == Some(self.artifacts[artifact as usize].right);
            if holders.is_empty() {
                continue;
            }
            self.stated[*at as usize].holders.extend(holders);
            self.acknowledged(artifact, operator, is_right);
        }
        if let Some(blob) = blob {
            self.nodes[owner as usize].take_blob(blob);
            self.have(owner, blob, answered);
        }
    }

    fn acknowledged(&mut self, artifact: u32, operator: u32, is_right: bool) {
        let now = self.queue.now;
        if self.artifacts[artifact as usize].published.is_none() {
            self.bad_providers_follow(artifact);
        }
        let one = &mut self.artifacts[artifact as usize];
        let since = *one.published.get_or_insert(now);
        let newest = &mut self.newest[one.crate_number as usize];
        *newest = (*newest).max(artifact);
        let operators = &self.stage.operators;
        let rebuilt = operators.get(operator as usize);
        let rebuilt = rebuilt.is_some_and(|one| one.character != Character::Publisher);
        if is_right && rebuilt && !one.proofs.contains(&operator) {
            one.proofs.push(operator);
            let name = match one.proofs.len() {
                1 => "minutes to 1 rebuild",
                2 => "minutes to 2 rebuilds",
                3 => "minutes to 3 rebuilds",
                _ => return,
            };
            if artifact >= self.scenario.workload.crates {
                self.tally
                    .measure(name, (now - since) as f64 / MINUTE as f64);
            }
        }
    }

    /// Providers that mean harm say that they have what was just published.
    fn bad_providers_follow(&mut self, artifact: u32) {
        let point = self.artifacts[artifact as usize].point;
        for node in 0..self.scenario.nodes.servers {
            if self.nodes[node as usize].is_bad_provider() {
                self.nodes[node as usize].take_blob(artifact * 2);
                let nearest = self.closest(node, &point, WIDTH);
                self.have(node, artifact * 2, &nearest);
            }
        }
    }

    /// Whether it is one of those of which a wrong root is stated.
    pub(crate) fn is_victim(&self, artifact: u32) -> bool {
        let of = self.artifacts[artifact as usize].crate_number;
        of < self.scenario.hostile.victims && artifact >= self.scenario.workload.crates
    }

    pub(crate) fn release(&mut self) {
        self.later(self.scenario.workload.releases_a_day, Event::Release);
        let victims = self.scenario.hostile.victims;
        let of = match victims > 0 && self.streams.workload.random_range(0..2) == 0 {
            true => self.streams.workload.random_range(0..victims),
            false => self.some_crate(),
        };
        let artifact = self.new_artifact(of);
        self.artifacts[artifact as usize].released = self.queue.now;
        self.tally.count("releases");
        if self.is_victim(artifact) {
            let strangers = self.stage.operators.len() as u32..self.at.len() as u32;
            let colluding = self.stage.operators.iter().enumerate();
            let colluding = colluding.filter(|(_, one)| one.character == Character::Colluding);
            let all: Vec<u32> = colluding
                .map(|(at, _)| at as u32)
                .chain(strangers)
                .collect();
            for operator in all {
                let wait = self.streams.faults.random_range(0..10 * MINUTE);
                self.queue
                    .at(self.queue.now + wait, Event::Collude(operator, artifact));
            }
            return;
        }
        let publisher = artifact % self.scenario.principals.publishers;
        let about = &self.artifacts[artifact as usize];
        let by = &self.stage.operators[publisher as usize];
        let digest = !self.scenario.without.work_digest;
        let work = digest.then(|| self.stage.work(by, about, about.right));
        let node = self.at[publisher as usize];
        let now = self.now(node).unix;
        let statement = self
            .stage
            .observe(by, about, about.right, now, work, [].into());
        let point = about.point;
        let stated = self.state(statement, artifact, publisher);
        let then = Then::Put(vec![stated], Some(artifact * 2));
        self.find(node, point, 256, Cause::Publish, then);
    }

    /// An operator or stranger states the wrong root.
    pub(crate) fn collude(&mut self, operator: u32, artifact: u32) {
        let is_stranger = operator as usize >= self.stage.operators.len();
        self.tally.fault(if is_stranger {
            "strangers"
        } else {
            "colluding"
        });
        let (by, about) = (self.operator(operator), &self.artifacts[artifact as usize]);
        let digest = !self.scenario.without.work_digest;
        let work = digest.then(|| self.stage.work(by, about, about.wrong));
        let node = self.at[operator as usize];
        let now = self.now(node).unix;
        let statement = self
            .stage
            .observe(by, about, about.wrong, now, work, [].into());
        let point = about.point;
        let stated = self.state(statement, artifact, operator);
        let then = Then::Put(vec![stated], Some(artifact * 2 + 1));
        self.find(node, point, 256, Cause::Publish, then);
    }

    fn some_crate(&mut self) -> u32 {
        let total = self.zipf.last().copied().unwrap_or(1.0);
        let draw = self.streams.workload.random_range(0.0..total);
        let rank = self.zipf.partition_point(|sum| *sum <= draw);
        rank.min(self.zipf.len() - 1) as u32
    }

    pub(crate) fn fetch_some(&mut self, node: u32) {
        self.later(
            self.fetches_a_day(self.nodes[node as usize].kind),
            Event::Fetch(node),
        );
        if !self.nodes[node as usize].is_up() {
            return;
        }
        let of = self.some_crate();
        let artifact = self.newest[of as usize];
        let bits = self.scenario.workload.prefix_bits;
        if bits > 0 {
            let point = self.artifacts[artifact as usize].point;
            self.find(node, point, bits, Cause::LookUp, Then::Prefix);
        } else if !self.nodes[node as usize].has(artifact * 2) {
            self.fetch(node, artifact, false);
        }
    }

    /// All CI clients begin at once.
    pub(crate) fn burst(&mut self) {
        self.later(self.scenario.workload.bursts_a_day, Event::Burst);
        let crates: Vec<u32> = (0..self.scenario.workload.burst_crates)
            .map(|_| self.some_crate())
            .collect();
        let ci = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.kind == Kind::Ci);
        let ci: Vec<u32> = ci.map(|(at, _)| at as u32).collect();
        for node in ci {
            for of in &crates {
                self.fetch(node, self.newest[*of as usize], false);
            }
        }
    }

    pub(crate) fn partition(&mut self, number: u32, begins: bool) {
        self.cut.retain(|one| *one != number);
        if begins && !self.healed {
            self.cut.push(number);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.cut.clear();
        for node in 0..self.nodes.len() as u32 {
            if !self.nodes[node as usize].is_up() {
                self.turn(node);
            }
        }
    }

    /// What is known of each artifact to somebody who knows every acknowledged statement.
    pub(crate) fn known(&self) -> BTreeMap<u32, Vec<Held>> {
        let mut known: BTreeMap<u32, Vec<Held>> = BTreeMap::new();
        for one in self.stated.iter().filter(|one| !one.holders.is_empty()) {
            known.entry(one.artifact).or_default().push(Held {
                statement: one.statement.clone(),
                stored: BEGIN,
            });
        }
        known
    }

    /// The policy with all its defences.
    fn whole_policy(&self) -> Policy {
        Policy {
            threshold: self.scenario.policy.threshold,
            on_dissent: Some(self.scenario.policy.on_dissent),
            ..self.stage.policy.clone()
        }
    }

    /// The last fetches and look-ups, whose end is checked.
    pub(crate) fn probe(&mut self) {
        let (policy, now) = (self.whole_policy(), self.unix());
        let mut wanted = Vec::new();
        for (artifact, statements) in self.known() {
            let about = &self.artifacts[artifact as usize];
            let verdict = decide(&Question {
                policy: &policy,
                network: &self.stage.network,
                candidate: &about.candidate(),
                own: None,
                statements: &statements,
                now,
            });
            let is_right =
                matches!(&verdict.decision, Decision::Trusted(one) if one.subject == about.right);
            let has = |node: &crate::node::Node| {
                node.is_up() && node.is_honest() && node.kind.is_server() && node.has(artifact * 2)
            };
            if is_right && self.nodes.iter().any(has) {
                wanted.push(artifact);
            }
        }
        let nodes = self.nodes.iter().enumerate();
        let can_ask = nodes.filter(|(_, node)| {
            node.is_up() && node.is_honest() && node.kind != Kind::Operator && node.skew == 0
        });
        let mut clients: Vec<u32> = can_ask.map(|(at, _)| at as u32).collect();
        clients.sort_by_key(|one| !self.nodes[*one as usize].eclipsed);
        for number in 0..self.scenario.check.fetches as usize {
            if wanted.is_empty() || clients.is_empty() {
                break;
            }
            let eclipsed = clients
                .get(number)
                .filter(|one| self.nodes[**one as usize].eclipsed);
            let client = eclipsed
                .copied()
                .unwrap_or_else(|| clients[self.streams.workload.random_range(0..clients.len())]);
            let artifact = wanted[number % wanted.len()];
            if let Some(key) = self.fetch(client, artifact, true)
                && self.jobs.get_mut(key).is_some()
            {
                self.awaited.insert(key);
            }
        }
        self.probe_statements(&clients);
    }

    fn probe_statements(&mut self, clients: &[u32]) {
        let lives = |one: &Stated| {
            let point = self.artifacts[one.artifact as usize].point;
            one.holders.iter().any(|holder| {
                let node = &self.nodes[*holder as usize];
                node.is_up() && node.holds(&point, &one.statement)
            })
        };
        let stated = self.stated.iter().enumerate().filter(|(_, one)| lives(one));
        let living: Vec<u32> = stated.map(|(at, _)| at as u32).collect();
        let wanted = (self.scenario.check.statements as usize).min(living.len());
        // The newest first, and then at random.
        for number in 0..wanted {
            let at = match number < wanted / 2 {
                true => living[living.len() - 1 - number],
                false => living[self.streams.workload.random_range(0..living.len())],
            };
            if clients.is_empty() || self.probes.insert(at, false).is_some() {
                continue;
            }
            let client = clients[self.streams.workload.random_range(0..clients.len())];
            let point = self.artifacts[self.stated[at as usize].artifact as usize].point;
            self.find(client, point, 256, Cause::LookUp, Then::Probe(at));
        }
    }
}

pub(crate) fn exponential(random: &mut Random, mean_hours: f64) -> Micros {
    let draw: f64 = 1.0 - random.random_range(0.0..1.0);
    (-draw.ln() * mean_hours * HOUR as f64) as Micros
}

/// A Weibull distribution with this shape and mean.
fn weibull(random: &mut Random, shape: f64, mean_hours: f64) -> Micros {
    let draw: f64 = 1.0 - random.random_range(0.0..1.0);
    let scale = mean_hours / gamma(1.0 + 1.0 / shape);
    ((-draw.ln()).powf(1.0 / shape) * scale * HOUR as f64) as Micros
}

/// The gamma function above 1 by Stirling's series, after its recurrence brought the argument beyond 8.
fn gamma(mut x: f64) -> f64 {
    let mut below = 1.0;
    while x < 8.0 {
        below *= x;
        x += 1.0;
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3));
    ((x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series).exp() / below
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn sessions_have_the_mean_that_was_asked_for() {
        assert!((gamma(5.0) - 24.0).abs() < 1e-4);
        assert!((gamma(1.5) - 0.886_227).abs() < 1e-4);
        let mut random = Random::seed_from_u64(1);
        for shape in [0.5, 1.0, 2.0] {
            let draws = 40_000;
            let sum: u64 = (0..draws)
                .map(|_| weibull(&mut random, shape, 3.0) / 1000)
                .sum();
            let mean = sum as f64 / f64::from(draws) / (HOUR as f64 / 1000.0);
            assert!((mean - 3.0).abs() < 0.15, "{shape}: {mean}");
        }
    }
}
