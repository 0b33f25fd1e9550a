use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};

use super::*;
use crate::hash::{Point, StatementId};
use crate::time::UnixTime;

const TARGET: Point = Point([0x5a; 32]);

fn now(mono: Duration) -> Now {
    Now {
        mono,
        unix: UnixTime(0),
    }
}

fn get() -> Get {
    Get {
        point: TARGET,
        bits: 256,
        observer: None,
        after: None,
    }
}

fn contact(id: &[u8]) -> Contact {
    Contact {
        node: NodeId(id.to_vec()),
        addrs: vec![b"somewhere".to_vec().into()],
    }
}

fn statements(next: Option<Cursor>) -> Answer {
    Answer::Statements {
        statements: Vec::new(),
        providers: Vec::new(),
        next,
    }
}

fn reply(closer: Vec<Contact>, next: Option<Cursor>) -> Reply {
    Reply {
        closer,
        answer: statements(next),
    }
}

fn cursor(number: u64) -> Cursor {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Cursor {
        point: TARGET,
        statement: StatementId(id),
    }
}

/// Drives a look-up: `behave` answers or, with `None`, is silent. Inputs come in a random order.
struct Drive {
    lookup: Lookup,
    rng: Xoshiro256PlusPlus,
    clock: Duration,
    asked: Vec<NodeId>,
}

impl Drive {
    fn new(seeds: Vec<Contact>, seed: u64) -> Self {
        Self {
            lookup: Lookup::new(get(), seeds),
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            clock: Duration::ZERO,
            asked: Vec::new(),
        }
    }

    fn run(&mut self, mut behave: impl FnMut(&NodeId, &Get) -> Option<Reply>) {
        let mut waiting = Vec::new();
        let mut input = Some(LookupIn::Start);
        loop {
            let mut out = Vec::new();
            if let Some(input) = input.take() {
                self.lookup.handle(input, now(self.clock), &mut out);
            }
            for LookupOut::Ask(contact, request) in out {
                let Request::Get(get) = request else {
                    panic!("a look-up gets");
                };
                self.asked.push(contact.node.clone());
                if let Some(reply) = behave(&contact.node, &get) {
                    waiting.push((contact.node, reply));
                }
            }
            if waiting.is_empty() {
                let Some(deadline) = self.lookup.deadline() else {
                    break;
                };
                self.clock = self.clock.max(deadline);
                input = Some(LookupIn::Tick);
            } else {
                self.clock += Duration::from_millis(1);
                let next = self.rng.random_range(0..waiting.len());
                let (node, reply) = waiting.swap_remove(next);
                input = Some(LookupIn::Reply(node, reply));
            }
        }
        assert!(self.lookup.is_done());
    }

    fn answered(&self) -> Vec<Point> {
        self.lookup.answered().map(|one| one.node.point()).collect()
    }
}

/// Nodes with the routing tables of kad: of each bucket twenty.
struct Topology {
    nodes: Vec<Contact>,
    tables: BTreeMap<NodeId, Vec<Contact>>,
    silent: BTreeSet<NodeId>,
}

impl Topology {
    fn new(count: usize, silent: usize, rng: &mut Xoshiro256PlusPlus) -> Self {
        let mut nodes: Vec<Contact> = (0..count)
            .map(|_| contact(&rng.random::<[u8; 32]>()))
            .collect();
        let tables = nodes
            .iter()
            .map(|node| (node.node.clone(), table(&node.node, &nodes, rng)))
            .collect();
        nodes.shuffle(rng);
        let silent = nodes.iter().take(silent).map(|one| one.node.clone());
        Self {
            silent: silent.collect(),
            tables,
            nodes,
        }
    }

    fn ask(&self, node: &NodeId) -> Option<Reply> {
        if self.silent.contains(node) {
            return None;
        }
        let mut closer = self.tables[node].clone();
        closer.sort_by_key(|other| other.node.point().distance(&TARGET));
        closer.truncate(CLOSER_MAX);
        Some(reply(closer, None))
    }

    /// Of the closest twenty those that answer, by looking at everybody.
    fn closest(&self) -> Vec<Point> {
        let mut nodes: Vec<&NodeId> = self.nodes.iter().map(|one| &one.node).collect();
        nodes.sort_by_key(|node| node.point().distance(&TARGET));
        nodes.truncate(WIDTH);
        nodes.retain(|node| !self.silent.contains(*node));
        nodes.into_iter().map(NodeId::point).collect()
    }
}

fn table(own: &NodeId, nodes: &[Contact], rng: &mut impl Rng) -> Vec<Contact> {
    let mut others: Vec<Contact> = nodes
        .iter()
        .filter(|one| one.node != *own)
        .cloned()
        .collect();
    others.shuffle(rng);
    let mut buckets: BTreeMap<usize, usize> = BTreeMap::new();
    others.retain(|other| {
        let distance = other.node.point().distance(&own.point());
        let bucket = (0..256_u16)
            .take_while(|bit| distance[usize::from(bit / 8)] & (0x80 >> (bit % 8)) == 0);
        let size = buckets.entry(bucket.count()).or_default();
        *size += 1;
        *size <= 20
    });
    others
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_truly_closest_answer(seed: u64, count in prop_oneof![Just(24_usize), 2_usize..160]) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let topology = Topology::new(count, 0, &mut rng);
        let mut drive = Drive::new(topology.nodes[..1].to_vec(), seed);
        drive.run(|node, _| topology.ask(node));
        let mut answered = drive.answered();
        answered.truncate(WIDTH);
        prop_assert_eq!(answered, topology.closest());
        let asked: BTreeSet<_> = drive.asked.iter().collect();
        prop_assert_eq!(asked.len(), drive.asked.len(), "each is asked once");
    }

    #[test]
    fn silent_nodes_cost_time_and_nothing_else(seed: u64, silent in 1_usize..12) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let topology = Topology::new(40, silent, &mut rng);
        // The last ones are not silent.
        let mut drive = Drive::new(topology.nodes[38..].to_vec(), seed);
        drive.run(|node, _| topology.ask(node));
        let closest = topology.closest();
        let mut answered = drive.answered();
        answered.truncate(closest.len());
        prop_assert_eq!(answered, closest);
        prop_assert!(drive.clock < LOOKUP_TIMEOUT);
    }

    /// The first request of each of eight is lost: all are found all the same.
    #[test]
    fn lost_requests_hide_nobody(seed: u64) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let topology = Topology::new(40, 0, &mut rng);
        let mut lost: BTreeSet<NodeId> = topology.nodes[..ASKED_AGAIN_MAX]
            .iter()
            .map(|one| one.node.clone())
            .collect();
        let mut drive = Drive::new(topology.nodes[38..].to_vec(), seed);
        drive.run(|node, _| match lost.remove(node) {
            true => None,
            false => topology.ask(node),
        });
        let closest = topology.closest();
        let mut answered = drive.answered();
        answered.truncate(closest.len());
        prop_assert_eq!(answered, closest);
    }

    /// Everybody lies as much as possible: new nodes without end, each closer, and pages without end.
    #[test]
    fn hostile_nodes_do_not_keep_it_running(seed: u64, silent_percent in 0_u32..100) {
        let mut names = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut pages = 0;
        let mut drive = Drive::new((0..4_u8).map(|id| contact(&[id])).collect(), seed);
        drive.run(|_, _| {
            if names.random_range(0..100) < silent_percent {
                return None;
            }
            pages += 1;
            let closer = (0..30).map(|_| contact(&names.random::<[u8; 32]>()));
            Some(reply(closer.collect(), Some(cursor(pages))))
        });
        prop_assert!(drive.asked.len() <= ASKS_MAX);
        prop_assert!(drive.clock <= LOOKUP_TIMEOUT);
        prop_assert!(drive.lookup.known() <= PEERS_MAX);
        let mut each: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for node in &drive.asked {
            *each.entry(node).or_default() += 1;
        }
        prop_assert!(each.values().all(|asks| *asks <= PAGES_MAX));
    }
}

/// One hostile node among honest ones: its own pages, the twenty that it named and some of them
/// twice, and no more.
#[test]
fn one_hostile_node_costs_a_stated_number_of_requests() {
    let honest: Vec<Contact> = (0..5_u8).map(|id| contact(&[id])).collect();
    let hostile = contact(b"hostile");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut pages = 0;
    let mut drive = Drive::new([&honest[..], std::slice::from_ref(&hostile)].concat(), 1);
    drive.run(|node, _| {
        if *node == hostile.node {
            pages += 1;
            let closer = (0..20).map(|_| contact(&rng.random::<[u8; 32]>()));
            return Some(reply(closer.collect(), Some(cursor(pages))));
        }
        let honest = honest.iter().any(|one| one.node == *node);
        honest.then(|| reply(Vec::new(), None))
    });
    assert!(drive.asked.len() <= honest.len() + PAGES_MAX + CLOSER_MAX + ASKED_AGAIN_MAX);
    assert_eq!(drive.answered().len(), honest.len() + 1);
}

#[test]
fn a_cursor_that_goes_in_a_circle_ends_the_pages() {
    let mut drive = Drive::new(vec![contact(b"loop")], 1);
    drive.run(|_, _| Some(reply(Vec::new(), Some(cursor(7)))));
    assert_eq!(drive.asked.len(), 2);
    let mut drive = Drive::new(vec![contact(b"honest")], 1);
    let mut page = 0;
    drive.run(|_, _| {
        page += 1;
        Some(reply(Vec::new(), (page < 4).then(|| cursor(page))))
    });
    assert_eq!(drive.asked.len(), 4, "one that goes on is followed");
}

#[test]
fn far_nodes_make_room_for_near_ones() {
    let mut ids: Vec<Contact> = (0..2000_u32).map(|id| contact(&id.to_be_bytes())).collect();
    ids.sort_by_key(|one| std::cmp::Reverse(one.node.point().distance(&TARGET)));
    let nearest = ids.last().unwrap().clone();
    let mut lookup = Lookup::new(get(), ids);
    assert_eq!(lookup.known(), PEERS_MAX);
    let mut out = Vec::new();
    lookup.handle(LookupIn::Start, now(Duration::ZERO), &mut out);
    lookup.handle(
        LookupIn::Failed(NodeId(Vec::new())),
        now(Duration::ZERO),
        &mut out,
    );
    for seed in lookup.seeds.clone() {
        let node = lookup.peers[&seed].contact.node.clone();
        let input = LookupIn::Reply(node, reply(Vec::new(), None));
        lookup.handle(input, now(Duration::ZERO), &mut out);
    }
    assert!(out.contains(&LookupOut::Ask(nearest, Request::Get(get()))));
}

/// A mirror is rarely near the point: what is named first is asked first.
#[test]
fn the_most_promising_are_asked_first_wherever_they_are() {
    let mut seeds: Vec<Contact> = (0..100_u8).map(|id| contact(&[id])).collect();
    seeds.sort_by_key(|one| std::cmp::Reverse(one.node.point().distance(&TARGET)));
    let mut lookup = Lookup::new(get(), seeds.clone());
    let mut out = Vec::new();
    lookup.handle(LookupIn::Start, now(Duration::ZERO), &mut out);
    let asked: Vec<Contact> = out
        .into_iter()
        .map(|LookupOut::Ask(contact, _)| contact)
        .collect();
    assert_eq!(asked, seeds[..SEEDS_MAX]);
}

#[test]
fn only_answers_that_are_due_count() {
    let mut lookup = Lookup::new(get(), vec![contact(b"a")]);
    let mut out = Vec::new();
    let at = Duration::ZERO;
    let a = NodeId(b"a".to_vec());
    lookup.handle(
        LookupIn::Reply(a.clone(), reply(Vec::new(), None)),
        now(at),
        &mut out,
    );
    assert_eq!(lookup.answered().count(), 0, "nobody asked");
    let mut lookup = Lookup::new(get(), vec![contact(b"a")]);
    lookup.handle(LookupIn::Start, now(at), &mut out);
    let refused = Reply::only(Answer::Refused("not now".to_owned()));
    lookup.handle(LookupIn::Reply(a.clone(), refused), now(at), &mut out);
    assert_eq!(lookup.answered().count(), 0, "a refusal is no answer");
    let mut lookup = Lookup::new(get(), vec![contact(b"a")]);
    lookup.handle(LookupIn::Start, now(at), &mut out);
    for time in [ASK_TIMEOUT, 2 * ASK_TIMEOUT] {
        assert!(!lookup.is_done());
        lookup.handle(LookupIn::Tick, now(at + time), &mut out);
    }
    assert!(lookup.is_done());
    lookup.handle(
        LookupIn::Reply(a, reply(Vec::new(), None)),
        now(at + 2 * ASK_TIMEOUT),
        &mut out,
    );
    assert_eq!(lookup.answered().count(), 1, "a late answer is one");
}

/// The only node that is known, and one request is lost on its way.
#[test]
fn a_lost_request_is_made_once_more() {
    let (seed, other) = (contact(b"seed"), contact(b"other"));
    for (lost, found) in [(0, 2), (1, 2), (2, 0)] {
        let mut asks = 0;
        let mut drive = Drive::new(vec![seed.clone()], 1);
        drive.run(|node, _| {
            if *node == other.node {
                return Some(reply(Vec::new(), None));
            }
            asks += 1;
            (asks > lost).then(|| reply(vec![other.clone()], None))
        });
        assert_eq!(drive.answered().len(), found, "{lost} lost");
        let time = ASK_TIMEOUT * lost;
        assert!(drive.clock >= time && drive.clock < time + Duration::from_millis(10));
    }
}

/// A page that is lost is asked for again, and not the whole answer.
#[test]
fn a_lost_page_is_asked_for_again_after_the_same_cursor() {
    let mut after = Vec::new();
    let mut drive = Drive::new(vec![contact(b"a")], 1);
    drive.run(|_, get| {
        after.push(get.after);
        match after.len() {
            1 => Some(reply(Vec::new(), Some(cursor(1)))),
            2 => None,
            _ => Some(reply(Vec::new(), None)),
        }
    });
    assert_eq!(after, [None, Some(cursor(1)), Some(cursor(1))]);
    assert_eq!(drive.answered().len(), 1);
}

/// Who never answers costs the time of one more request, however many they are, and a request each
/// for eight of them: those first that the look-up began with.
#[test]
fn the_silent_are_asked_again_all_at_once_and_last() {
    let seeds: Vec<Contact> = (0..4_u8).map(|id| contact(&[id])).collect();
    let named: Vec<Contact> = (10..30_u8).map(|id| contact(&[id])).collect();
    let mut drive = Drive::new(seeds.clone(), 1);
    drive.run(|node, _| (*node == seeds[0].node).then(|| reply(named.clone(), None)));
    let once = seeds.len() + named.len();
    assert_eq!(drive.asked.len(), once + ASKED_AGAIN_MAX);
    let first: BTreeSet<&NodeId> = drive.asked[..once].iter().collect();
    assert_eq!(first.len(), once, "nobody twice before everybody once");
    let again: BTreeSet<&NodeId> = drive.asked[once..].iter().collect();
    assert_eq!(again.len(), ASKED_AGAIN_MAX);
    assert!(seeds[1..].iter().all(|seed| again.contains(&seed.node)));
    let rounds = once.div_ceil(PARALLEL) + 1;
    assert!(drive.clock <= ASK_TIMEOUT * u32::try_from(rounds).unwrap());
}

/// A parent's time is long enough for TCP to have repeated what was lost.
#[test]
fn a_silent_parent_is_not_asked_again() {
    let (parent, other) = (contact(b"parent"), contact(b"other"));
    let lookup = Lookup::new(get(), vec![parent.clone(), other.clone()]);
    let mut drive = Drive::new(Vec::new(), 1);
    drive.lookup = lookup.with_parents([&parent.node]);
    drive.run(|_, _| None);
    let asked = |one: &Contact| drive.asked.iter().filter(|node| **node == one.node).count();
    assert_eq!((asked(&parent), asked(&other)), (1, 2));
    assert!(drive.clock <= PARENT_TIMEOUT + ASK_TIMEOUT);
}

#[test]
fn a_parent_suffices_after_a_grace_and_nobody_else_does() {
    let (a, b) = (contact(b"a"), contact(b"b"));
    let at = |millis| now(Duration::from_millis(millis));
    let answer = |lookup: &mut Lookup, from: &Contact, next, millis| {
        let input = LookupIn::Reply(from.node.clone(), reply(Vec::new(), next));
        lookup.handle(input, at(millis), &mut Vec::new());
    };
    let begin = |parents: &[&NodeId]| {
        let lookup = Lookup::new(get(), vec![a.clone(), b.clone()]);
        let mut lookup = lookup.with_parents(parents.iter().copied());
        lookup.handle(LookupIn::Start, at(0), &mut Vec::new());
        lookup
    };
    let grace = u64::try_from(PARENT_GRACE.as_millis()).unwrap();
    let mut lookup = begin(&[&a.node]);
    answer(&mut lookup, &b, None, 10);
    lookup.handle(LookupIn::Tick, at(1000), &mut Vec::new());
    assert!(!lookup.parent_suffices(), "no parent has answered");
    // Only its last page ends what it has to say.
    let mut lookup = begin(&[&a.node]);
    answer(&mut lookup, &a, Some(cursor(1)), 10);
    lookup.handle(LookupIn::Tick, at(10 + grace), &mut Vec::new());
    assert!(!lookup.parent_suffices());
    answer(&mut lookup, &a, None, 500);
    assert_eq!(lookup.deadline(), Some(at(500 + grace).mono));
    lookup.handle(LookupIn::Tick, at(499 + grace), &mut Vec::new());
    assert!(!lookup.parent_suffices());
    lookup.handle(LookupIn::Tick, at(500 + grace), &mut Vec::new());
    assert!(lookup.parent_suffices());
    assert_eq!(
        lookup.deadline(),
        Some(ASK_TIMEOUT),
        "b is waited for, no past time"
    );
    // The same answers of a node that is no parent.
    let mut lookup = begin(&[]);
    answer(&mut lookup, &a, None, 500);
    lookup.handle(LookupIn::Tick, at(500 + grace), &mut Vec::new());
    assert!(!lookup.parent_suffices());
}

#[test]
fn a_parent_that_refuses_does_not_suffice() {
    let a = contact(b"a");
    let lookup = Lookup::new(get(), vec![a.clone(), contact(b"b")]);
    let mut lookup = lookup.with_parents([&a.node]);
    lookup.handle(LookupIn::Start, now(Duration::ZERO), &mut Vec::new());
    let refused = Reply::only(Answer::Refused("not now".to_owned()));
    let input = LookupIn::Reply(a.node, refused);
    lookup.handle(input, now(Duration::ZERO), &mut Vec::new());
    lookup.handle(LookupIn::Tick, now(PARENT_GRACE), &mut Vec::new());
    assert!(!lookup.parent_suffices());
}
