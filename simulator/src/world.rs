//! One run: everybody is put on stage, then one event after the other happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::blocks;
use qk_protocol::fetch::{Fetch, Want};
use qk_protocol::hash::Root;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::{Contact, Have, NodeId, Request};
use qk_protocol::time::{Now, UnixTime};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

use crate::client::{Action, Client, Outcome};
use crate::node::{Copy, Kind, Node};
use crate::report::{Check, Fault, Report};
use crate::scenario::{Expect, Scenario};
use crate::setup::{self, BEGIN, Stage};
use crate::wire::{Event, Message, Place, Wire};

/// When a run that has not ended is given up.
const RUN_MAX: Duration = Duration::from_secs(3600);
/// How long the client waits for an answer to a range.
const RANGE_WAIT: Duration = Duration::from_secs(5);
/// Nodes that answer of those that the client knows in the beginning. Two, since a look-up asks each
/// twice at most: with one, the loss of two messages leaves nobody to ask.
const KNOWN_ANSWERING: usize = 2;

/// Plays a scenario to its end.
///
/// # Errors
/// When the stage cannot be set. That a check fails is no error, but in the report.
pub fn run(scenario: &Scenario, seed: u64) -> anyhow::Result<Report> {
    let mut world = World::new(scenario, seed)?;
    world.play();
    Ok(world.report(seed))
}

struct World<'a> {
    scenario: &'a Scenario,
    wire: Wire,
    nodes: Vec<Node>,
    places: BTreeMap<NodeId, usize>,
    client: Client,
    own: Contact,
    root: Root,
    tick_at: Option<Duration>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> anyhow::Result<Self> {
        // Apart from the wire's, so that a change of the stage does not move every latency.
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(!seed);
        let mut data = vec![0; usize::try_from(scenario.artifact_bytes)?];
        rng.fill_bytes(&mut data);
        let stage = setup::stage(&data, scenario.observations, scenario.threshold)?;
        let (blob, outboard) = blocks::outboard(&data[..], scenario.artifact_bytes)?;
        let copy = Arc::new(Copy {
            blob,
            data,
            outboard,
        });
        let mut contacts: Vec<Contact> = (0..=scenario.nodes).map(|_| contact(&mut rng)).collect();
        let own = contacts.remove(0);
        let mut nodes = people(scenario, contacts, &stage, &copy);
        fill_index(&mut nodes, &stage, blob.root());
        let places = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.contact.node.clone(), index))
            .collect();
        let want = Want {
            network_key: stage.network.key(None),
            network: stage.network,
            policy: stage.policy,
            own: None,
            candidates: vec![stage.candidate],
            hidden: None,
        };
        let mut seeds: Vec<&Node> = nodes.iter().collect();
        seeds.sort_by_key(|node| node.kind != Kind::Silent);
        let known = KNOWN_ANSWERING + scenario.faults.silent_nodes;
        let seeds = seeds.iter().take(known).map(|node| node.contact.clone());
        let Some(fetch) = Fetch::new(want, seeds.collect()) else {
            anyhow::bail!("a fetch of nothing");
        };
        Ok(Self {
            scenario,
            wire: Wire::new(scenario.wire.clone(), seed),
            nodes,
            places,
            client: Client::new(fetch),
            own,
            root: blob.root(),
            tick_at: None,
        })
    }

    fn now(&self) -> Now {
        let mono = self.wire.now();
        let unix = BEGIN.plus(mono.as_secs());
        Now { mono, unix }
    }

    fn play(&mut self) {
        let actions = self.client.start(self.now());
        self.carry_out(actions);
        while self.client.outcome.is_none()
            && let Some(event) = self.wire.next()
            && self.wire.now() < RUN_MAX
        {
            let actions = self.happen(event);
            self.carry_out(actions);
        }
    }

    fn happen(&mut self, event: Event) -> Vec<Action> {
        let now = self.now();
        match event {
            Event::Arrived {
                from: _,
                to: Place::Node(index),
                message,
            } => {
                self.serve(index, message, now.unix);
                Vec::new()
            }
            Event::Arrived {
                from,
                to: Place::Client,
                message,
            } => match (from, message) {
                (Place::Node(index), Message::Reply(reply)) => {
                    let node = self.nodes[index].contact.node.clone();
                    self.client.on_reply(node, reply, now)
                }
                (_, Message::Range(slot, answer)) => self.client.on_range(slot, answer, now),
                // The client serves nothing.
                (_, Message::Ask(_) | Message::Pull(..) | Message::Reply(_)) => Vec::new(),
            },
            Event::Tick => {
                self.tick_at = None;
                self.client.on_tick(now)
            }
            Event::Late(slot) => self.client.on_late(slot, now),
        }
    }

    fn serve(&mut self, index: usize, message: Message, now: UnixTime) {
        let answer = match message {
            Message::Ask(request) => {
                let closer = self.closer(index, &request);
                let reply = self.nodes[index].on_ask(&self.own, request, closer, now);
                reply.map(Message::Reply)
            }
            Message::Pull(slot, request) => self.nodes[index]
                .on_pull(&request)
                .map(|answer| Message::Range(slot, answer)),
            // Answers to nobody's question.
            Message::Reply(_) | Message::Range(..) => None,
        };
        if let Some(answer) = answer {
            self.wire.send(Place::Node(index), Place::Client, answer);
        }
    }

    /// The routing table is modelled: every node knows all others.
    fn closer(&self, index: usize, request: &Request) -> Vec<Contact> {
        let Request::Get(get) = request else {
            return Vec::new();
        };
        let others = self.nodes.iter().enumerate();
        let mut closer: Vec<Contact> = others
            .filter(|(other, _)| *other != index)
            .map(|(_, node)| node.contact.clone())
            .collect();
        closer.sort_by_key(|contact| contact.node.point().distance(&get.point));
        closer.truncate(WIDTH);
        closer
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (node, message) = match action {
                Action::Ask(node, request) => (node, Message::Ask(request)),
                Action::Pull(node, slot, request) => {
                    let late = self.wire.now() + RANGE_WAIT;
                    self.wire.at(late, Event::Late(slot));
                    (node, Message::Pull(slot, request))
                }
            };
            if let Some(index) = self.places.get(&node) {
                self.wire.send(Place::Client, Place::Node(*index), message);
            }
        }
        // Woken too early it says so again: only the earliest wish is kept.
        if let Some(deadline) = self.client.deadline()
            && self.tick_at.is_none_or(|at| deadline < at)
        {
            self.tick_at = Some(deadline);
            self.wire.at(deadline, Event::Tick);
        }
    }

    fn report(&self, seed: u64) -> Report {
        let outcome = match &self.client.outcome {
            Some(Outcome::Done) => "done".to_owned(),
            Some(Outcome::Unproven) => "unproven".to_owned(),
            Some(Outcome::Other(why)) => why.clone(),
            None => "did not end".to_owned(),
        };
        let faults = self.faults();
        Report {
            seed,
            outcome,
            virtual_ms: u64::try_from(self.wire.now().as_millis()).unwrap_or(u64::MAX),
            messages: self.wire.messages,
            bytes: self.wire.bytes,
            trace_hash: self.wire.trace_hash(),
            checks: self.checks(&faults),
            faults,
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let fired = |kind| {
            let of_kind = self.nodes.iter().filter(|node| node.kind == kind);
            of_kind.map(|node| node.fired).sum()
        };
        let enabled = &self.scenario.faults;
        let all = [
            (
                enabled.lying_providers > 0,
                "lying_providers",
                fired(Kind::Lying),
            ),
            (
                enabled.silent_nodes > 0,
                "silent_nodes",
                fired(Kind::Silent),
            ),
            (
                self.scenario.wire.lost_one_in > 0,
                "lost_one_in",
                self.wire.lost,
            ),
        ];
        all.into_iter()
            .filter(|(enabled, _, _)| *enabled)
            .map(|(_, name, fired)| Fault { name, fired })
            .collect()
    }

    fn checks(&self, faults: &[Fault]) -> Vec<Check> {
        let check = |name: &str, held| Check {
            name: name.to_owned(),
            held,
        };
        let (client, scenario) = (&self.client, self.scenario);
        let wanted = match scenario.expect {
            Expect::Done => Outcome::Done,
            Expect::Unproven => Outcome::Unproven,
        };
        let done = client.outcome == Some(Outcome::Done);
        // Who observed is known from the scenario here, not from what the client was told.
        let proven = scenario.observations >= scenario.threshold as usize;
        let right = client.root() == Some(self.root) && Root::of(&client.file) == self.root;
        let mut checks = vec![
            check("it ends as expected", client.outcome == Some(wanted)),
            check(
                "nothing is accepted below the threshold",
                proven || client.root().is_none(),
            ),
            check("what arrived is what was observed", !done || right),
        ];
        checks.extend(
            faults
                .iter()
                .map(|fault| check(&format!("{} did happen", fault.name), fault.fired > 0)),
        );
        checks
    }
}

fn contact(rng: &mut Xoshiro256PlusPlus) -> Contact {
    let mut id = vec![0; 32];
    rng.fill_bytes(&mut id);
    Contact {
        addrs: vec![id.clone().into()],
        node: NodeId(id),
    }
}

/// Who is who. Liars have the smallest identities and so are named first, or they might never be
/// asked; a silent node has nothing, every other one has the artifact.
fn people(
    scenario: &Scenario,
    mut contacts: Vec<Contact>,
    stage: &Stage,
    copy: &Arc<Copy>,
) -> Vec<Node> {
    contacts.sort();
    let lying = scenario.faults.lying_providers;
    let kind = |index| match index {
        _ if index < lying => Kind::Lying,
        _ if index < lying + scenario.faults.silent_nodes => Kind::Silent,
        _ => Kind::Honest,
    };
    let node = |(index, contact)| {
        let copy = (kind(index) != Kind::Silent).then(|| copy.clone());
        Node::new(contact, kind(index), stage.network.clone(), copy)
    };
    contacts.into_iter().enumerate().map(node).collect()
}

/// Everybody holds the statements and was told who has the artifact, before the run begins.
fn fill_index(nodes: &mut [Node], stage: &Stage, root: Root) {
    let point = stage
        .candidate
        .release
        .location(&stage.network.key(None))
        .point();
    let providers: Vec<Contact> = nodes
        .iter()
        .filter(|node| node.kind != Kind::Silent)
        .map(|node| node.contact.clone())
        .collect();
    for node in nodes.iter_mut().filter(|node| node.kind != Kind::Silent) {
        let put = Request::Put(stage.statements.clone());
        let own = node.contact.clone();
        node.on_ask(&own, put, Vec::new(), BEGIN);
        for provider in &providers {
            let have = Request::Have(Have {
                roots: vec![(point, root)],
                addrs: provider.addrs.clone(),
            });
            node.on_ask(provider, have, Vec::new(), BEGIN);
        }
    }
}
