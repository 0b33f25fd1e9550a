//! One run: everybody is put in place, then one event after the other happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::hash::{KeyId, Point, PublicKey, Root};
use qk_protocol::message::{Contact, NodeId, Request};
use qk_protocol::statement::Statement;
use qk_protocol::time::{Now, UnixTime};
use qk_protocol::transfer::Slot;
use rand::{Rng, RngExt};

use crate::engine::{HOUR, Key, Micros, Queue, SECOND, Slab, Streams, Trace, mix};
use crate::job::{Input, Job};
use crate::node::{Kind, Manners, Node, first_bytes};
use crate::routing::Routing;
use crate::scenario::Scenario;
use crate::stage::{Artifact, BEGIN, Character, Stage};
use crate::tally::Tally;
use crate::verifier::Verifier;
use crate::wire::{
    Body, Cause, DIAL_BYTES, Message, REGION_PERCENT, latency, line_time, lines, minutes,
};

/// How long unfinished jobs may take after the end.
const AFTERWARDS: Micros = 300 * SECOND;
/// What happens at most once in so many events is done then: progress is told.
const TELL_EVERY: u64 = 1 << 14;

/// Something that happens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Arrives(Key),
    Tick(Key),
    /// A range did not begin to arrive.
    Late(Key, Slot),
    /// A connection to a provider came about, or did not.
    Connected(Key, u32, bool),
    /// A session ends or begins.
    Session(u32),
    Announce(u32),
    Refresh(u32),
    Repair(u32),
    Walk(u32),
    Survey(u32),
    Built(u32),
    Fetch(u32),
    Burst,
    Release,
    /// Of this crate.
    ReleaseOf(u32),
    /// An operator states the right root of an artifact.
    Publish(u32, u32),
    /// An operator states the wrong root of an artifact; beyond the operators are strangers.
    Collude(u32, u32),
    Partition(u32, bool),
    Heal,
    Probe,
}

/// A statement that somebody made in this run, and who acknowledged it.
#[derive(Debug)]
pub(crate) struct Stated {
    pub(crate) statement: Arc<Statement>,
    pub(crate) artifact: u32,
    /// Beyond the operators are strangers.
    pub(crate) operator: u32,
    pub(crate) by_node: u32,
    pub(crate) holders: Vec<u32>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Simulated time.
    pub at: Duration,
    /// When it ends.
    pub end: Duration,
    /// Events so far.
    pub events: u64,
}

pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) stage: Stage,
    pub(crate) streams: Streams,
    pub(crate) queue: Queue<Event>,
    pub(crate) messages: Slab<Message>,
    pub(crate) jobs: Slab<Job>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) routing: Routing,
    /// Nodes that run under a key of the manifest.
    pub(crate) named: BTreeMap<NodeId, u32>,
    pub(crate) mirrors: Vec<u32>,
    pub(crate) sybils: Vec<u32>,
    /// Points around which there are Sybils.
    pub(crate) targets: Vec<Point>,
    pub(crate) cache: Option<u32>,
    /// What the cache was asked and will answer when it knows: by the point's first bytes.
    pub(crate) asked_cache: BTreeMap<u64, Vec<(u32, Key, Request)>>,
    /// The node of each operator, then of each stranger.
    pub(crate) at: Vec<u32>,
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) points: BTreeMap<u64, (Point, u32)>,
    pub(crate) by_key: BTreeMap<KeyId, u32>,
    pub(crate) roots: BTreeMap<Root, u32>,
    /// The newest published artifact of each crate.
    pub(crate) newest: Vec<u32>,
    pub(crate) released: Vec<u32>,
    pub(crate) zipf: Vec<f64>,
    pub(crate) verifiers: Vec<Verifier>,
    pub(crate) stated: Vec<Stated>,
    pub(crate) cut: Vec<u32>,
    pub(crate) healed: bool,
    pub(crate) end: Micros,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    /// Statements that the final look-ups found, of those looked for.
    pub(crate) probes: BTreeMap<u32, bool>,
    /// How the final fetches ended: who wanted what, and why it does not have it if so.
    pub(crate) arrivals: Vec<(u32, u32, Option<String>)>,
    pub(crate) awaited: BTreeSet<Key>,
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, seed: u64) -> anyhow::Result<Self> {
        let stage = Stage::new(scenario)?;
        let mut streams = Streams::new(seed);
        let mut world = Self {
            nodes: people(scenario, &stage, &mut streams),
            scenario,
            streams,
            queue: Queue::default(),
            messages: Slab::default(),
            jobs: Slab::default(),
            routing: Routing::new([]),
            named: BTreeMap::new(),
            mirrors: Vec::new(),
            sybils: Vec::new(),
            targets: Vec::new(),
            cache: None,
            asked_cache: BTreeMap::new(),
            at: Vec::new(),
            artifacts: Vec::new(),
            points: BTreeMap::new(),
            by_key: BTreeMap::new(),
            roots: BTreeMap::new(),
            newest: Vec::new(),
            released: Vec::new(),
            zipf: zipf(scenario.workload.crates, scenario.workload.zipf),
            verifiers: Vec::new(),
            stated: Vec::new(),
            cut: Vec::new(),
            healed: false,
            end: (scenario.hours * HOUR as f64) as Micros,
            trace: Trace::default(),
            tally: Tally::default(),
            probes: BTreeMap::new(),
            arrivals: Vec::new(),
            awaited: BTreeSet::new(),
            stage,
        };
        for number in 0..scenario.workload.crates {
            let artifact = world.new_artifact(number);
            world.newest.push(artifact);
        }
        world.send_sybils();
        world.find_names();
        let servers = world.nodes.iter().enumerate();
        let servers = servers.filter(|(_, node)| node.kind.is_server());
        world.routing = Routing::new(servers.map(|(at, node)| (at as u32, &node.point)));
        world.preload();
        world.schedule();
        Ok(world)
    }

    pub(crate) fn play(&mut self, tell: &mut dyn FnMut(Progress)) {
        let end = self.end + AFTERWARDS;
        while let Some(event) = self.queue.next_before(end) {
            self.happen(event);
            if self.queue.happened.is_multiple_of(TELL_EVERY) {
                tell(Progress {
                    at: Duration::from_micros(self.queue.now),
                    end: Duration::from_micros(self.end),
                    events: self.queue.happened,
                });
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives(key) => {
                if let Some(message) = self.messages.take(key) {
                    self.arrives(message);
                }
            }
            Event::Tick(job) => self.step(job, Input::Tick),
            Event::Late(job, slot) => self.step(job, Input::Late(slot)),
            Event::Connected(job, provider, is) => self.step(job, Input::Connected(provider, is)),
            Event::Session(node) => self.turn(node),
            Event::Announce(node) => self.announce(node),
            Event::Refresh(node) => self.refresh(node),
            Event::Repair(node) => self.repair(node),
            Event::Walk(mirror) => self.walk(mirror),
            Event::Survey(verifier) => self.survey(verifier),
            Event::Built(verifier) => self.built(verifier),
            Event::Fetch(node) => self.fetch_some(node),
            Event::Burst => self.burst(),
            Event::Release => self.release(),
            Event::ReleaseOf(of) => self.release_of(of),
            Event::Publish(operator, artifact) => self.publish(operator, artifact),
            Event::Collude(operator, artifact) => self.collude(operator, artifact),
            Event::Partition(number, begins) => self.partition(number, begins),
            Event::Heal => self.heal(),
            Event::Probe => self.probe(),
        }
    }

    fn arrives(&mut self, message: Message) {
        let node = &self.nodes[message.to as usize];
        if !node.is_up() {
            return;
        }
        self.trace.record(
            self.queue.now,
            16 + message.body.kind(),
            message.from,
            message.to,
            0,
        );
        match message.body {
            Body::Ask(request) => self.asked(
                message.to,
                message.from,
                message.job,
                message.cause,
                request,
            ),
            Body::Pull { .. } => self.pulled(&message),
            Body::Reply(reply) => self.step(message.job, Input::Reply(message.from, reply)),
            Body::Range { slot, end } => self.step(message.job, Input::Range(slot, end)),
        }
    }

    /// The time as a node has it.
    pub(crate) fn now(&self, node: u32) -> Now {
        Now {
            mono: Duration::from_micros(self.queue.now),
            unix: UnixTime(
                self.unix()
                    .0
                    .saturating_add_signed(i64::from(self.nodes[node as usize].skew)),
            ),
        }
    }

    pub(crate) fn unix(&self) -> UnixTime {
        BEGIN.plus(self.queue.now / SECOND)
    }

    pub(crate) fn contact(&self, node: u32) -> Contact {
        self.nodes[node as usize].contact(node)
    }

    /// The nodes nearest to a point that a node knows.
    pub(crate) fn closest(&self, node: u32, point: &Point, count: usize) -> Vec<u32> {
        let (own, times) = (&self.nodes[node as usize].point, self.table_times(node));
        let owner = (node, own);
        self.routing
            .closest(owner, point, count, times, &self.nodes)
    }

    /// All nodes that a node knows.
    pub(crate) fn neighbours(&self, node: u32) -> Vec<u32> {
        let own = &self.nodes[node as usize].point;
        self.routing
            .known((node, own), self.table_times(node), &self.nodes)
    }

    /// When a node last looked through its table, and now.
    fn table_times(&self, node: u32) -> (Micros, Micros) {
        let (now, every) = (self.queue.now, minutes(self.scenario.network.table_minutes));
        // Each looks through its table at another time.
        let phase = mix(u64::from(node), 0x7ab1e) % every;
        (now.saturating_sub((now + phase) % every), now)
    }

    /// Sends a message, which arrives later or never; `delay` is what comes before it.
    pub(crate) fn send(&mut self, message: Message, delay: Micros) {
        let bytes = message.body.bytes();
        let (from, to) = (message.from as usize, message.to as usize);
        let is_local = self.nodes[from].kind.is_local() && self.nodes[to].kind.is_local();
        let upstream = !is_local && self.nodes[to].kind.is_local();
        self.tally.sent(message.cause, bytes, upstream);
        let lost = self.is_lost(message.from, message.to);
        let kind = message.body.kind() | u8::from(lost) << 6;
        self.trace
            .record(self.queue.now, kind, message.from, message.to, bytes);
        if lost {
            return;
        }
        let model = &self.scenario.network;
        let (up, down) = match is_local {
            true => (1000.0, 1000.0),
            false => {
                let of = |node: &Node| lines(model, node.kind.is_server());
                (of(&self.nodes[from]).0, of(&self.nodes[to]).1)
            }
        };
        let sender = &mut self.nodes[from];
        let begins = (self.queue.now + delay).max(sender.up_free);
        let sent = begins + line_time(bytes, up);
        // A request that waits for its connection does not hold the line.
        if delay == 0 {
            sender.up_free = sent;
        }
        let random = self.streams.network.next_u64();
        let (here, there) = (self.nodes[from].region, self.nodes[to].region);
        let way = latency(here, there, is_local, random);
        let receiver = &mut self.nodes[to];
        let arrives = (sent + way).max(receiver.down_free) + line_time(bytes, down);
        if delay == 0 {
            receiver.down_free = arrives;
        }
        let held_up = self.held_up();
        if self.happens(model.duplicate_percent) {
            self.tally.fault("duplication");
            let again = self.messages.add(message.clone());
            self.queue.at(arrives + way, Event::Arrives(again));
        }
        let key = self.messages.add(message);
        self.queue.at(arrives + held_up, Event::Arrives(key));
    }

    /// Sends a request; dials first, unless the two are on one local network.
    pub(crate) fn ask(
        &mut self,
        from: u32,
        to: u32,
        job: Key,
        cause: Cause,
        request: Request,
        wait: Micros,
    ) {
        let delay = wait + self.dial_time(from, to);
        if delay > wait {
            self.tally.bytes(cause, DIAL_BYTES);
        }
        let body = Body::Ask(request);
        self.send(
            Message {
                from,
                to,
                job,
                cause,
                body,
            },
            delay,
        );
    }

    pub(crate) fn dial_time(&self, from: u32, to: u32) -> Micros {
        let (from, to) = (&self.nodes[from as usize], &self.nodes[to as usize]);
        if from.kind.is_local() && to.kind.is_local() {
            return 0;
        }
        let trips = u64::from(self.scenario.network.dial_round_trips);
        2 * trips * latency(from.region, to.region, false, 0)
    }

    fn is_lost(&mut self, from: u32, to: u32) -> bool {
        for number in &self.cut {
            let partition = &self.scenario.partitions[*number as usize];
            let inside = |node: u32| {
                let draw = mix(u64::from(node), 0xc0de + u64::from(*number)) % 1000;
                (draw as f64) < partition.share_percent * 10.0
            };
            if inside(from) != inside(to) && (!partition.one_way || inside(from)) {
                let name = if partition.one_way {
                    "one-way partition"
                } else {
                    "partition"
                };
                self.tally.fault(name);
                return true;
            }
        }
        let lost = self.happens(self.scenario.network.loss_percent);
        if lost {
            self.tally.fault("loss");
        }
        lost
    }

    fn held_up(&mut self) -> Micros {
        if !self.happens(self.scenario.network.reorder_percent) {
            return 0;
        }
        self.tally.fault("reordering");
        self.streams.faults.random_range(20_000..400_000)
    }

    /// Whether something that happens to so many percent happens now.
    fn happens(&mut self, percent: f64) -> bool {
        percent > 0.0 && !self.healed && self.streams.faults.random_range(0.0..100.0) < percent
    }

    /// Adds the next release of a crate.
    pub(crate) fn new_artifact(&mut self, crate_number: u32) -> u32 {
        let at = crate_number as usize;
        if self.released.len() <= at {
            self.released.resize(at + 1, 0);
        }
        let release = self.released[at];
        self.released[at] += 1;
        // Most are small, a few are large.
        let spread: f64 = self.streams.workload.random_range(-1.0..1.0);
        let kib =
            (self.scenario.workload.artifact_kib as f64 * (spread * 1.2).exp() * 0.8).max(1.0);
        let artifact = self.stage.artifact(crate_number, release, kib as u64);
        let number = self.artifacts.len() as u32;
        self.points
            .insert(first_bytes(&artifact.point), (artifact.point, number));
        self.by_key.insert(artifact.key_id, number);
        self.roots.insert(artifact.right.root, number * 2);
        self.roots.insert(artifact.wrong.root, number * 2 + 1);
        self.artifacts.push(artifact);
        number
    }

    /// Sybils look for identities near the locations of what clients ask for.
    fn send_sybils(&mut self) {
        let hostile = &self.scenario.hostile;
        let honest = self
            .nodes
            .iter()
            .filter(|node| node.kind.is_server())
            .count() as f64;
        for number in 0..hostile.sybil_crates.min(self.scenario.workload.crates) {
            let target = if hostile.hide_dissent_only {
                // The next release of a victim.
                self.stage.artifact(number, 1, 1).point
            } else {
                // Behind the victims, whose dissents are a matter of their own.
                let of = (number + hostile.victims).min(self.scenario.workload.crates - 1);
                self.artifacts[of as usize].point
            };
            self.targets.push(target);
            // Nearer than the nearest honest node, most likely.
            let bits = (honest.log2().ceil() as u16) + 2;
            for _ in 0..hostile.sybils {
                let node = loop {
                    let key = PublicKey(self.streams.nodes.random());
                    let node = Node::new(key, Kind::Sybil, 0);
                    if node.point.shared_bits(&target) >= bits {
                        break node;
                    }
                };
                self.sybils.push(self.nodes.len() as u32);
                self.nodes.push(Node {
                    manners: Manners::Sybil(number),
                    up_from: Micros::MAX,
                    ..node
                });
            }
        }
    }

    fn find_names(&mut self) {
        for (at, node) in self.nodes.iter().enumerate() {
            match node.kind {
                Kind::Mirror if !self.scenario.without.mirrors => self.mirrors.push(at as u32),
                Kind::Operator => self.at.push(at as u32),
                Kind::Cache => self.cache = Some(at as u32),
                _ => {}
            }
        }
        // Strangers speak from anywhere.
        for stranger in 0..self.stage.strangers.len() {
            self.at
                .push((stranger % self.scenario.nodes.servers as usize) as u32);
        }
        for at in self.at.iter().chain(&self.mirrors) {
            let node = &self.nodes[*at as usize];
            self.named.insert(NodeId::of_key(&node.key), *at);
        }
        for (operator, one) in self.stage.operators.iter().enumerate() {
            if one.character != Character::Publisher {
                let start = Point(self.streams.nodes.random());
                let node = self.at[operator];
                self.verifiers
                    .push(Verifier::new(operator as u32, node, start));
            }
        }
    }

    /// Who signs as this operator or stranger.
    pub(crate) fn operator(&self, number: u32) -> &crate::stage::Operator {
        let operators = &self.stage.operators;
        let at = number as usize;
        operators
            .get(at)
            .unwrap_or_else(|| &self.stage.strangers[at - operators.len()])
    }
}

/// All nodes but Sybils, those with the same part together.
fn people(scenario: &Scenario, stage: &Stage, streams: &mut Streams) -> Vec<Node> {
    let (who, hostile) = (&scenario.nodes, &scenario.hostile);
    let rng = &mut streams.nodes;
    let mut nodes = Vec::new();
    let mut add = |kind: Kind, key: Option<PublicKey>| {
        let key = key.unwrap_or_else(|| PublicKey(rng.random()));
        let mut draw = rng.random_range(0..100);
        let region = REGION_PERCENT.iter().position(|percent| {
            let here = draw < *percent;
            draw = draw.saturating_sub(*percent);
            here
        });
        let region = if kind.is_local() {
            0
        } else {
            region.unwrap_or(0) as u8
        };
        let mut node = Node::new(key, kind, region);
        if rng.random_range(0.0..100.0) < scenario.network.skewed_percent {
            let most = scenario.network.skew_seconds as i32;
            node.skew = rng.random_range(-most..=most);
        }
        node.shares = match kind {
            Kind::Laptop => rng.random_range(0.0..100.0) < who.sharing_percent,
            Kind::Ci | Kind::Lab => false,
            _ => true,
        };
        nodes.push(node);
    };
    (0..who.servers).for_each(|_| add(Kind::Server, None));
    for one in &stage.operators {
        add(
            Kind::Operator,
            scenario.principals.nodes_have_keys.then_some(one.public),
        );
    }
    stage
        .mirrors
        .iter()
        .for_each(|key| add(Kind::Mirror, Some(*key)));
    if who.lab > 0 && who.lab_cache {
        add(Kind::Cache, None);
    }
    (0..who.laptops).for_each(|_| add(Kind::Laptop, None));
    (0..who.ci).for_each(|_| add(Kind::Ci, None));
    (0..who.lab).for_each(|_| add(Kind::Lab, None));
    // The last servers mean harm, so that strangers speak from honest ones.
    let odd = [
        (Manners::Forging, hostile.forging),
        (Manners::Stalling, hostile.stalling),
        (Manners::Lacking, hostile.lacking),
        (Manners::Silent, hostile.silent),
    ];
    let mut last = who.servers as usize;
    for (manners, count) in odd {
        for node in &mut nodes[last - count as usize..last] {
            node.manners = manners;
        }
        last -= count as usize;
    }
    let laptops = nodes.iter_mut().filter(|node| node.kind == Kind::Laptop);
    for node in laptops.take(hostile.eclipsed as usize) {
        node.eclipsed = true;
        node.skew = 0;
    }
    nodes
}

/// Cumulative shares of crates by Zipf's law.
fn zipf(crates: u32, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let each = (1..=crates).map(|rank| {
        sum += f64::from(rank).powf(-exponent);
        sum
    });
    each.collect()
}
