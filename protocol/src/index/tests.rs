use proptest::prelude::*;

use super::*;
use crate::hash::Sha256;
use crate::message::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};
use crate::statement::Failure;
use crate::testing::{DAY, NOW, failure, key, network, observation, secret};

fn network_key() -> NetworkKey {
    network().key(None)
}

fn with_rules<T>(test: impl FnOnce(&Rules<'_>) -> T) -> T {
    let key = network_key();
    test(&Rules {
        network: network(),
        key: &key,
    })
}

/// A short statement of `who`, each number another one.
fn says(who: &str, number: usize) -> Arc<Statement> {
    let failure = Failure {
        detail: format!("number {number}"),
        ..failure()
    };
    let body = Body::Failure(failure);
    Arc::new(Statement::sign(network().id(), key(), body, &secret(who)).unwrap())
}

fn contact(id: &[u8]) -> Contact {
    Contact {
        node: NodeId(id.to_vec()),
        addrs: vec![b"somewhere".to_vec().into()],
    }
}

fn provider(root: u8, id: &[u8]) -> Provider {
    Provider {
        root: Root([root; 32]),
        contact: contact(id),
    }
}

#[derive(Default)]
struct Holder {
    shelf: MemoryShelf,
    hints: Hints,
}

impl Holder {
    fn ask_from(&mut self, from: &Contact, request: Request) -> Answer {
        let (reply, writes) = with_rules(|rules| {
            let (shelf, hints) = (&self.shelf, &self.hints);
            answer(shelf, hints, rules, from, request, Vec::new(), NOW)
        });
        for write in writes {
            match write {
                Write::Keep(point, statement) => self.shelf.keep(point, statement),
                Write::Hint(point, provider) => assert!(self.hints.add(point, provider, NOW)),
            }
        }
        reply.answer
    }

    fn put(&mut self, statements: Vec<Arc<Statement>>) -> (u32, u32) {
        taken(self.ask_from(&contact(b"any"), Request::Put(statements)))
    }

    fn page(&mut self, get: &Get) -> (Vec<Arc<Statement>>, Vec<Provider>, Option<Cursor>) {
        match self.ask_from(&contact(b"any"), Request::Get(get.clone())) {
            Answer::Statements {
                statements,
                providers,
                next,
            } => (statements, providers, next),
            other => panic!("{other:?}"),
        }
    }

    /// All pages, one after the other.
    fn pages(&mut self, mut get: Get) -> (Vec<StatementId>, Vec<Provider>, usize) {
        let (mut ids, mut named, mut count) = (Vec::new(), Vec::new(), 0);
        loop {
            let (statements, providers, next) = self.page(&get);
            count += 1;
            assert!(statements.len() <= STATEMENTS_MAX && providers.len() <= HINTS_MAX);
            let bytes: usize = statements.iter().map(|one| one.envelope().len()).sum();
            assert!(bytes <= STATEMENT_BYTES_TOTAL_MAX);
            ids.extend(statements.iter().map(|one| one.id()));
            named.extend(providers);
            match next {
                Some(next) => assert!(get.after.replace(next) < Some(next), "it goes on"),
                None => return (ids, named, count),
            }
        }
    }
}

fn taken(answer: Answer) -> (u32, u32) {
    match answer {
        Answer::Taken { taken, refused } => (taken, refused),
        other => panic!("{other:?}"),
    }
}

fn everything(point: Point, bits: u16) -> Get {
    Get {
        point,
        bits,
        observer: None,
        after: None,
    }
}

fn here() -> Point {
    with_rules(|rules| rules.point(&says("ann", 0)))
}

#[test]
fn what_is_put_is_found_and_put_again_is_no_change() {
    let mut holder = Holder::default();
    let both = vec![says("ann", 1), says("zoe", 2)];
    assert_eq!(holder.put(both.clone()), (2, 0));
    assert_eq!(holder.put([both.clone(), both].concat()), (4, 0));
    assert_eq!(holder.pages(everything(here(), 256)).0.len(), 2);
    let ann = Get {
        observer: Some(says("ann", 1).observer()),
        ..everything(here(), 256)
    };
    assert_eq!(holder.pages(ann).0, [says("ann", 1).id()]);
}

#[test]
fn strangers_have_caps_and_keep_no_principal_out() {
    let mut holder = Holder::default();
    let one = (0..9).map(|number| says("zoe", number)).collect();
    let most = u32::try_from(ONE_STRANGER_STATEMENTS_MAX).unwrap();
    assert_eq!(holder.put(one), (most, 9 - most));
    let many = (0..100).map(|number| says(&format!("stranger {number}"), 0));
    let rest = u32::try_from(STRANGER_STATEMENTS_MAX).unwrap() - most;
    assert_eq!(holder.put(many.collect()), (rest, 100 - rest));
    assert_eq!(holder.put(vec![says("ann", 1), says("ann.2", 2)]), (2, 0));
}

#[test]
fn a_principal_has_a_cap_over_all_its_keys() {
    with_rules(|rules| {
        let held = vec![says("ann.2", 1); PRINCIPAL_STATEMENTS_MAX];
        let admit = |who| rules.admit(&held, &says(who, 2), NOW);
        assert_eq!(admit("ann"), Err(Refusal::Principal));
        assert_eq!(admit("bob"), Ok(()));
        assert_eq!(rules.admit(&held[1..], &says("ann", 2), NOW), Ok(()));
    });
}

/// Whoever has a key that its owner lost or laid down must not fill the owner's room with it.
#[test]
fn lost_and_retired_keys_do_not_take_the_room_of_their_principal() {
    with_rules(|rules| {
        let lost = rules.admit(&[], &says("ann.lost", 1), NOW);
        assert_eq!(lost, Err(Refusal::Compromised));
        for key in ["ann.lost", "ann.old"] {
            let held = vec![says(key, 1); PRINCIPAL_STATEMENTS_MAX];
            assert_eq!(rules.admit(&held, &says("ann", 2), NOW), Ok(()), "{key}");
        }
        let held = vec![says("ann.old", 1); ONE_STRANGER_STATEMENTS_MAX];
        let old = rules.admit(&held, &says("ann.old", 2), NOW);
        assert_eq!(old, Err(Refusal::Strangers));
    });
}

#[test]
fn what_does_not_belong_is_refused_and_not_looked_up() {
    struct NoShelf;
    impl Shelf for NoShelf {
        fn at(&self, _: Point) -> Vec<Arc<Statement>> {
            panic!("read for a statement that says itself that it does not belong")
        }
        fn near(&self, _: Point, _: usize) -> Vec<Point> {
            Vec::new()
        }
    }
    let mut other_registry = key();
    other_registry.registry = "registry+https://other.example/index".to_owned();
    let mut late = observation("right");
    late.finished = UnixTime(NOW.0 + DAY);
    let sign =
        |network, key, body| Arc::new(Statement::sign(network, key, body, &secret("ann")).unwrap());
    let right = || Body::Observation(observation("right"));
    let odd = vec![
        sign(crate::hash::NetworkId([9; 32]), key(), right()),
        sign(network().id(), other_registry, right()),
        sign(network().id(), key(), Body::Observation(late)),
        says("ann.lost", 1),
    ];
    with_rules(|rules| {
        let refusals = odd
            .iter()
            .map(|one| rules.admit(&[], one, NOW).unwrap_err());
        assert_eq!(
            refusals.collect::<Vec<_>>(),
            [
                Refusal::OtherNetwork,
                Refusal::Registry,
                Refusal::InFuture,
                Refusal::Compromised,
            ]
        );
        let (from, hints) = (contact(b"any"), Hints::default());
        let put = Request::Put(odd);
        let (reply, writes) = answer(&NoShelf, &hints, rules, &from, put, Vec::new(), NOW);
        assert_eq!(taken(reply.answer), (0, 4));
        assert!(writes.is_empty());
    });
}

#[test]
fn an_answer_stays_within_the_limits_of_a_message() {
    let mut odd = contact(b"odd");
    odd.addrs = vec![vec![0; ADDRESS_BYTES_MAX + 1].into()];
    odd.addrs
        .extend(vec![b"good".to_vec().into(); 3 * ADDRESSES_MAX]);
    let mut holder = Holder::default();
    let have = Request::Have(Have {
        roots: vec![(here(), Root([1; 32]))],
        addrs: Vec::new(),
    });
    assert_eq!(taken(holder.ask_from(&odd, have)), (1, 0));
    with_rules(|rules| {
        let get = Request::Get(everything(here(), 256));
        let closer = vec![odd.clone(); 3 * CLOSER_MAX];
        let (shelf, hints) = (&holder.shelf, &holder.hints);
        let (reply, _) = answer(shelf, hints, rules, &odd, get, closer, NOW);
        assert_eq!(reply.closer.len(), CLOSER_MAX);
        let decoded = Reply::decode(&reply.encode()).unwrap();
        assert_eq!(decoded.message, reply);
    });
}

#[test]
fn hints_have_caps_and_the_answer_says_how_many_were_taken() {
    let mut holder = Holder::default();
    let point = |number: usize| Point(Sha256::of(&number.to_be_bytes()).0);
    let have = |points: &mut dyn Iterator<Item = usize>| {
        Request::Have(Have {
            roots: points
                .map(|number| (point(number), Root([1; 32])))
                .collect(),
            addrs: Vec::new(),
        })
    };
    // One node, everywhere.
    let node = contact(b"busy");
    let mut sum = (0, 0);
    for page in 0..(NODE_HINTS_MAX / HINTS_MAX + 1) {
        let mut numbers = page * HINTS_MAX..(page + 1) * HINTS_MAX;
        let (taken, refused) = taken(holder.ask_from(&node, have(&mut numbers)));
        sum = (sum.0 + taken, sum.1 + refused);
    }
    assert_eq!(sum.0 as usize, NODE_HINTS_MAX);
    assert_eq!(sum.1 as usize, HINTS_MAX);
    assert_eq!(holder.hints.len(), NODE_HINTS_MAX);
    let again = holder.ask_from(&node, have(&mut (0..3)));
    assert_eq!(taken(again), (3, 0), "known ones are renewed");
    // Many nodes, one place.
    let taken_here = |id: usize, holder: &mut Holder| {
        let node = contact(&id.to_be_bytes());
        taken(holder.ask_from(&node, have(&mut std::iter::once(77_777)))).0
    };
    let sum: u32 = (0..200).map(|id| taken_here(id, &mut holder)).sum();
    assert_eq!(sum as usize, POINT_HINTS_MAX);
}

#[test]
fn hints_end_and_give_their_room_back() {
    let mut hints = Hints::default();
    let point = here();
    let ids: Vec<[u8; 8]> = (0..=POINT_HINTS_MAX as u64).map(u64::to_be_bytes).collect();
    for id in &ids[1..] {
        assert!(hints.add(point, provider(1, id), NOW));
    }
    assert!(!hints.add(point, provider(1, &ids[0]), NOW));
    assert!(hints.add(point, provider(1, &ids[1]), NOW), "renewed");
    assert_eq!(hints.len(), POINT_HINTS_MAX);
    let end = NOW.plus(HINT_SECONDS_MAX);
    assert_eq!(
        hints.at(point, UnixTime(end.0 - 1)).count(),
        POINT_HINTS_MAX
    );
    assert_eq!(hints.at(point, end).count(), 0);
    assert!(hints.add(point, provider(1, &ids[0]), end), "there is room");
    assert_eq!((hints.len(), hints.by_node.len()), (1, 1));
    hints.forget(end.plus(HINT_SECONDS_MAX));
    assert!(hints.is_empty() && hints.by_node.is_empty() && hints.by_point.is_empty());
}

#[test]
fn hints_are_bounded_in_all() {
    let mut hints = Hints::default();
    let point = |number: usize| Point(Sha256::of(&number.to_be_bytes()).0);
    let node = |number: usize| (number / NODE_HINTS_MAX).to_be_bytes();
    let mut add = |number: usize, now| hints.add(point(number), provider(1, &node(number)), now);
    assert!((0..HINTS_TOTAL_MAX).all(|number| add(number, NOW)));
    assert!(!add(HINTS_TOTAL_MAX, NOW));
    assert!(add(HINTS_TOTAL_MAX, NOW.plus(HINT_SECONDS_MAX)));
    assert_eq!(hints.len(), 1);
}

#[test]
fn pages_cut_between_providers_lose_none() {
    let mut holder = Holder::default();
    let statement = says("ann", 1);
    let points: Vec<Point> = (0..10_u8).map(|byte| Point([byte; 32])).collect();
    for point in &points {
        holder.shelf.keep(*point, statement.clone());
        for id in 0..100_u8 {
            assert!(holder.hints.add(*point, provider(point.0[0], &[id]), NOW));
        }
    }
    // Of nobody's statements: pages of providers alone.
    let get = Get {
        observer: Some(says("bob", 1).observer()),
        ..everything(points[0], 0)
    };
    for get in [get, everything(points[0], 0)] {
        let (ids, mut named, pages) = holder.pages(get.clone());
        assert_eq!(ids.len(), if get.observer.is_some() { 0 } else { 10 });
        assert_eq!((named.len(), pages), (1000, 5));
        named.sort();
        named.dedup();
        assert_eq!(named.len(), 1000);
    }
}

/// More statements than one page holds, signed once.
fn many() -> &'static [Arc<Statement>] {
    static MANY: std::sync::LazyLock<Vec<Arc<Statement>>> =
        std::sync::LazyLock::new(|| (0..600).map(|number| says("ann", number)).collect());
    &MANY
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn pages_give_every_statement_once(places in prop::collection::vec(0..6_u8, 600), bits in prop_oneof![0..=8_u16, Just(256)], at in 0..6_u8) {
        let mut holder = Holder::default();
        // Points that share from no to seven bits.
        let point = |place: u8| Point([place << 3 | place; 32]);
        let mut expected = Vec::new();
        for (place, statement) in places.iter().zip(many()) {
            holder.shelf.keep(point(*place), statement.clone());
            if point(*place).shares_prefix(&point(at), bits) {
                expected.push((point(*place), statement.id()));
            }
        }
        expected.sort();
        let expected: Vec<StatementId> = expected.into_iter().map(|(_, id)| id).collect();
        let (ids, _, pages) = holder.pages(everything(point(at), bits));
        prop_assert_eq!(ids, expected);
        prop_assert!(pages <= 4);
    }

    #[test]
    fn counts_of_hints_are_right(steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..5_u8, 0..9_u64), 0..80)) {
        let mut hints = Hints::default();
        let mut all: BTreeMap<(u8, u8, u8), UnixTime> = BTreeMap::new();
        let mut now = NOW;
        for (place, root, id, hours) in steps {
            now = now.plus(hours * 3600);
            let added = hints.add(Point([place; 32]), provider(root, &[id]), now);
            prop_assert!(added);
            all.insert((place, root, id), now.plus(HINT_SECONDS_MAX));
            all.retain(|_, until| *until > now);
            hints.forget(now);
            prop_assert_eq!(hints.len(), all.len());
            prop_assert_eq!(hints.by_node.values().sum::<usize>(), all.len());
            for place in 0..4_u8 {
                let here = all.keys().filter(|(other, _, _)| *other == place).count();
                prop_assert_eq!(hints.at(Point([place; 32]), now).count(), here);
            }
        }
    }
}
