//! What holds whatever the providers do; the world checks each single output.

use proptest::prelude::*;

use super::world::{Kind, Peer, World, blob};
use super::*;

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![
        Just(Why::Wrong(Block(3))),
        Just(Why::Malformed),
        Just(Why::Lacks),
        Just(Why::Ended),
        Just(Why::Busy),
        Just(Why::NoLane),
        Just(Why::NotSpoken),
        Just(Why::Late),
        Just(Why::Unreachable),
    ]
}

fn peer(units: usize) -> impl Strategy<Value = Peer> {
    let time = || (0_u64..8_000).prop_map(Duration::from_millis);
    let kind = prop_oneof![
        Just(Kind::Whole),
        prop::collection::vec(any::<bool>(), units).prop_map(Kind::Honest),
        why().prop_map(Kind::Always),
        why().prop_map(Kind::Mixed),
        time().prop_map(Kind::Stalls),
        time().prop_map(Kind::Vanishes),
        (time(), time(), 1..LANES_MAX).prop_map(|(from, back, most)| Kind::Lanes {
            from,
            most,
            back,
            why: Why::NoLane,
        }),
    ];
    let rate = (10_u32..28).prop_map(|log| 1_u64 << log);
    (kind, rate, 0_u64..500, time()).prop_map(|(kind, rate, latency, named)| Peer {
        kind,
        rate: rate.max(100_000),
        latency: Duration::from_millis(latency),
        named,
    })
}

/// Whether the units that somebody honest has, with those on disk, are all.
fn is_covered(peers: &[Peer], valid: &[bool]) -> bool {
    (0..valid.len()).all(|unit| {
        let has = |peer: &Peer| match &peer.kind {
            Kind::Whole | Kind::Lanes { .. } => true,
            Kind::Honest(has) => has[unit],
            Kind::Always(_) | Kind::Mixed(_) | Kind::Stalls(_) | Kind::Vanishes(_) => false,
        };
        valid[unit] || peers.iter().any(has)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_ends_with_the_blob_whenever_the_honest_have_it(
        (valid, peers) in (1_usize..60).prop_flat_map(|units| {
            let peers = prop::collection::vec(peer(units), 0..7);
            (prop::collection::vec(prop::bool::weighted(0.2), units), peers)
        }),
        blocks_short in 0_u32..16,
    ) {
        let blob = blob(valid.len() as u32 * UNIT_BLOCKS_MIN - blocks_short);
        let here: Vec<_> = blob
            .units(UNIT_BLOCKS_MIN)
            .zip(&valid)
            .filter_map(|(unit, here)| here.then_some(unit))
            .collect();
        let covered = is_covered(&peers, &valid);
        let mut world = World::new(blob, &here, peers);
        world.play(100_000);
        match world.ended {
            Some(Out::Done) => {}
            Some(Out::Failed(_)) => prop_assert!(!covered, "failed although the honest have it all"),
            other => prop_assert!(false, "did not end: {:?}", other),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Providers that do nothing wrong, whatever their rates: hardly anything is sent twice.
    #[test]
    fn duplicates_are_few_among_the_honest(
        rates in prop::collection::vec(18_u32..28, 1..6),
        latency in 0_u64..200,
    ) {
        let peers: Vec<Peer> = rates
            .iter()
            .map(|log| Peer {
                latency: Duration::from_millis(latency),
                ..Peer::whole(1 << log)
            })
            .collect();
        let blob = blob(8192);
        let mut world = World::new(blob, &[], peers);
        world.play(100_000);
        prop_assert_eq!(&world.ended, &Some(Out::Done));
        let duplicates = world.duplicates_percent();
        prop_assert!(duplicates <= 2.0, "{}", duplicates);
    }
}

/// A fast one whose every other answer ends too early: the lane that closed makes place for a new one.
#[test]
fn a_lane_that_failed_makes_place_at_once() {
    let fails = Peer {
        kind: Kind::Mixed(Why::Ended),
        latency: Duration::ZERO,
        ..Peer::whole(1 << 23)
    };
    let slow = Peer {
        latency: Duration::from_millis(3),
        ..Peer::whole(1 << 20)
    };
    let mut world = World::new(blob(30 * UNIT_BLOCKS_MIN), &[], vec![fails, slow]);
    world.play(100_000);
    assert_eq!(world.ended, Some(Out::Done));
}
