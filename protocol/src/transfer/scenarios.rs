//! How long a transfer takes, in virtual time, with slow, silent and equal providers.

use super::world::{Kind, Peer, World, blob};
use super::*;

/// 64 MiB.
const BLOCKS: u32 = 4096;
const MIB: u64 = 1 << 20;

struct Ran {
    seconds: f64,
    /// Bytes sent beside those that were needed, of a hundred.
    duplicates: f64,
    world: World,
}

fn ran(blocks: u32, peers: Vec<Peer>) -> Ran {
    let blob = blob(blocks);
    let mut world = World::new(blob, &[], peers);
    world.play(200_000);
    assert_eq!(world.ended, Some(Out::Done));
    let duplicates = world.duplicates_percent();
    Ran {
        seconds: world.now.as_secs_f64(),
        duplicates,
        world,
    }
}

/// About as much as takes a second or more.
fn blocks_for(rate: u64) -> u32 {
    if rate > 20 * MIB { 4 * BLOCKS } else { BLOCKS }
}

fn equals(count: usize, rate: u64) -> Vec<Peer> {
    vec![Peer::whole(rate); count]
}

#[test]
fn four_equal_providers_are_almost_four_times_as_fast_as_one() {
    for rate in [MIB, 10 * MIB, 100 * MIB] {
        let one = ran(BLOCKS, equals(1, rate));
        let four = ran(BLOCKS, equals(4, rate));
        let factor = one.seconds / four.seconds;
        assert!(factor >= 3.6, "{rate}: {factor}");
        assert!(four.duplicates < 2.0, "{rate}: {} %", four.duplicates);
        let shares = four
            .world
            .from
            .values()
            .map(|blocks| u64::from(BLOCKS) / blocks);
        assert!(shares.max() <= Some(5), "{rate}: {:?}", four.world.from);
    }
}

#[test]
fn a_provider_that_stalls_costs_little() {
    for rate in [MIB, 10 * MIB, 100 * MIB] {
        let three = ran(blocks_for(rate), equals(3, rate)).seconds;
        for percent in [0, 1, 5, 20, 50, 90, 97, 100] {
            let at = Duration::from_secs_f64(three * 0.75 * f64::from(percent) / 100.0);
            let mut peers = equals(4, rate);
            peers[1].kind = Kind::Stalls(at);
            let stalled = ran(blocks_for(rate), peers);
            let factor = stalled.seconds / three;
            assert!(factor <= 1.15, "{rate}, at {percent} %: {factor}");
            assert!(
                stalled.duplicates < 2.0,
                "{rate}, at {percent} %: {} %",
                stalled.duplicates
            );
        }
    }
}

#[test]
fn a_slow_provider_never_makes_it_slower() {
    for rate in [MIB, 10 * MIB, 100 * MIB] {
        for fast in 1..4 {
            let without = ran(BLOCKS, equals(fast, rate)).seconds;
            for slower in [10, 30, 100] {
                let mut peers = equals(fast, rate);
                peers.insert(0, Peer::whole(rate / slower));
                let with = ran(BLOCKS, peers);
                let factor = with.seconds / without;
                assert!(
                    factor <= 1.05,
                    "{rate}, {fast}, {slower} times slower: {factor}"
                );
                assert!(
                    with.duplicates < 2.0,
                    "{rate}, {fast}, {slower}: {} %",
                    with.duplicates
                );
            }
        }
    }
}

#[test]
fn without_help_a_stall_costs_its_timeout() {
    let rate = 10 * MIB;
    let mut peers = equals(4, rate);
    peers[1].kind = Kind::Stalls(Duration::from_millis(900));
    let helped = ran(BLOCKS, peers.clone()).seconds;
    let mut alone = World::new(blob(BLOCKS), &[], peers).without_help();
    alone.play(200_000);
    assert_eq!(alone.ended, Some(Out::Done));
    assert!(alone.now.as_secs_f64() > 10.0, "{:?}", alone.now);
    assert!(helped < 3.0, "{helped}");
}

#[test]
fn a_provider_that_is_named_late_gets_its_share() {
    let mut peers = equals(2, 10 * MIB);
    peers[1].named = Duration::from_secs(1);
    let late = ran(BLOCKS, peers);
    // Alone it takes 6.4 s: 1 s alone, the rest shared.
    assert!(late.seconds < 4.0, "{}", late.seconds);
}

#[test]
fn small_blobs_are_not_asked_for_twice() {
    for blocks in [1, 7, 16, 100, 300] {
        let three = ran(blocks, equals(3, 10 * MIB));
        assert!(three.duplicates < 2.0, "{blocks}: {} %", three.duplicates);
    }
}

fn lanes(from: Duration, most: usize, why: Why) -> Peer {
    let back = Duration::MAX;
    Peer {
        kind: Kind::Lanes {
            from,
            most,
            back,
            why,
        },
        ..Peer::whole(100 * MIB)
    }
}

/// What another transfer has of a provider is no reason to rest.
#[test]
fn a_provider_that_gives_fewer_lanes_is_as_fast() {
    let all = ran(BLOCKS, equals(1, 100 * MIB)).seconds;
    let some = |most, why| ran(BLOCKS, vec![lanes(Duration::ZERO, most, why)]).seconds;
    for most in 1..LANES_MAX {
        let factor = some(most, Why::NoLane) / all;
        assert!(factor < 1.05, "{most}: {factor}");
    }
    // It rests with some of it under way.
    let rested = some(1, Why::Late);
    assert!(rested > all + REST.as_secs_f64() * 0.9, "{rested}");
}

#[test]
fn a_transfer_without_a_lane_begins_when_there_is_one() {
    let from = Duration::from_millis(150);
    let waits = |why| ran(16, vec![lanes(from, 1, why)]).seconds;
    // Looked for after 20, 60, 140 and 300 ms.
    assert!(waits(Why::NoLane) < 0.32, "{}", waits(Why::NoLane));
    assert!(waits(Why::Late) > 1.0);
}
