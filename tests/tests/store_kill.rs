//! `kill -9` of a process that works on a store, at random points, again and again: nothing that
//! was acknowledged is lost, nothing wrong is served.
//!
//! `QK_KILL_ROUNDS` sets how often (default 15; the full campaign is 300), `QK_KILL_SEED` where
//! randomness begins:
//!
//! ```text
//! QK_KILL_ROUNDS=300 cargo test -p qk-tests --test store_kill -- --nocapture
//! ```
//!
//! kill -9 proves nothing about power cuts: the kernel keeps what the process wrote.

use std::path::Path;
use std::time::Duration;

use qk_node::store::{Damage, Store};
use qk_tests::store_load::{self, Expected};
use qk_tests::writer::{self, Writer, number};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the campaign did, printed at its end.
#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    kills_meant_for_opening: u64,
    /// While a store was opened or closed.
    kills_between: u64,
    closings: u64,
    groups_acknowledged: u64,
    operations_acknowledged: u64,
    groups_cut_off: u64,
    checks: u64,
    comparisons: u64,
    blobs_hashed: u64,
    unclean_boots_pretended: u64,
    indexes_made_again: u64,
    segments_compacted: u64,
    /// How long the latest opening that was not disturbed took; kills meant for one fall within it.
    opening: Duration,
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let rounds = number("QK_KILL_ROUNDS", 15);
    let seed = number("QK_KILL_SEED", 1);
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut expected, mut figures) = (Expected::default(), Figures::default());
    let mut next_number = 0;
    for round in 0..rounds {
        if rng.random_bool(0.1) && round > 0 {
            // As if the machine had gone down: the next start makes the index again.
            std::fs::write(dir.path().join("boot"), "open elsewhere\n").unwrap();
            figures.unclean_boots_pretended += 1;
        }
        next_number = run_until_killed(
            dir.path(),
            &mut rng,
            next_number,
            &mut expected,
            &mut figures,
        );
        figures.rounds += 1;
        // Not after every kill, so that stores that were killed twice are opened, too.
        if rng.random_bool(0.5) || round + 1 == rounds {
            check(dir.path(), &mut expected, &mut figures, round + 1 == rounds)
                .unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error:#}"));
        }
    }
    eprintln!("{figures:#?}");
    assert!(
        figures.operations_acknowledged > rounds,
        "too little was done: {figures:?}"
    );
    assert!(
        figures.groups_cut_off > 0,
        "no kill hit a write: {figures:?}"
    );
}

fn check(
    dir: &Path,
    expected: &mut Expected,
    figures: &mut Figures,
    last: bool,
) -> anyhow::Result<()> {
    let store = Store::open(dir, store_load::options())?;
    figures.checks += 1;
    let all = last || figures.checks.is_multiple_of(15);
    figures.comparisons += store_load::check(&store, expected, all)?;
    figures.segments_compacted = first_segment(dir)?.saturating_sub(1);
    let mut damage = store.damage();
    damage.extend(store.scrub()?);
    if all {
        let report = store.fsck()?;
        figures.blobs_hashed += report.blobs;
        damage.extend(report.damage);
    }
    for one in damage {
        // kill -9 damages no file; an index may give up, which costs time and nothing else.
        anyhow::ensure!(matches!(one, Damage::Index { .. }), "{one}");
        eprintln!("check {}: {one}", figures.checks);
        figures.indexes_made_again += 1;
    }
    if last {
        drop(store);
        std::fs::remove_dir_all(dir.join("index"))?;
        let store = Store::open(dir, store_load::options())?;
        figures.comparisons += store_load::check(&store, expected, true)?;
    }
    Ok(())
}

fn first_segment(dir: &Path) -> anyhow::Result<u64> {
    let names = std::fs::read_dir(dir.join("journal"))?.filter_map(Result::ok);
    let first = names
        .filter_map(|entry| entry.file_name().to_str()?[..8].parse().ok())
        .min();
    Ok(first.unwrap_or(1))
}

/// Starts a writer and kills it; takes down what was acknowledged, and answers the next number that
/// is not used.
fn run_until_killed(
    dir: &Path,
    rng: &mut StdRng,
    first: u64,
    expected: &mut Expected,
    figures: &mut Figures,
) -> u64 {
    let args = [rng.random::<u64>().to_string(), first.to_string()];
    let args = std::iter::once(dir.as_os_str()).chain(args.iter().map(AsRef::as_ref));
    let mut writer = Writer::start(env!("CARGO_BIN_EXE_store-writer"), args);
    let meant_for_opening = rng.random_bool(0.15);
    let wait = Duration::from_secs(60);
    let (began, line) = writer.next_line(wait);
    assert_eq!(line, "opening");
    if meant_for_opening {
        figures.kills_meant_for_opening += 1;
        let most = figures.opening.max(Duration::from_millis(1)).as_micros() as u64;
        std::thread::sleep(Duration::from_micros(rng.random_range(0..most)));
    } else {
        let (opened, line) = writer.next_line(wait);
        assert_eq!(line, "open", "seen instead of it");
        figures.opening = opened - began;
        std::thread::sleep(Duration::from_micros(rng.random_range(0..300_000)));
    }
    writer.kill();
    let said = writer.said();
    let done = writer::take_down(&said, !meant_for_opening, expected, Expected::acknowledged);
    figures.groups_acknowledged += done.groups;
    figures.operations_acknowledged += done.operations;
    figures.groups_cut_off += done.cut_off;
    figures.kills_between += u64::from(done.between);
    figures.closings += done.closed;
    done.next_number.max(first)
}
