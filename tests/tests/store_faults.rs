//! ENOSPC and EIO at every operation that writes, one after the other: what was acknowledged is
//! there afterwards, what was not is there or not, nothing is wrong, nothing panics or hangs.
//!
//! `QK_FAULT_ROUNDS` sets how many of all faults are tried (default 42, spread over all kinds),
//! `QK_FAULT_SEED` which: `cargo xtask faults --rounds 2000`. With more rounds than there are faults
//! each is tried once. `QK_FAULT_ONLY` takes one fault as a failed run names it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use qk_node::store::{Damage, Keep, Options, Store, StoreError};
use qk_protocol::time::UnixTime;
use qk_tests::faults::{Failure, Fault, FaultFs, Kind, Tree};
use qk_tests::namespace::{self, Needs};
use qk_tests::store_load::{self, Expected, Op, What};
use qk_tests::writer::{Watch, number};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// How long a round may take; beyond, it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the campaign did, printed at its end.
#[derive(Debug, Default)]
struct Figures {
    faults_possible: usize,
    faults_by_kind: BTreeMap<Kind, u64>,
    rounds: u64,
    rounds_failed: u64,
    rounds_without_the_fault: u64,
    operations_acknowledged: u64,
    operations_refused: u64,
    openings_refused: u64,
    comparisons: u64,
    indexes_made_again: u64,
    panics_inside_sled: u64,
}

#[test]
fn no_failing_operation_loses_what_was_acknowledged() {
    let test = "no_failing_operation_loses_what_was_acknowledged";
    if !namespace::inside(test, &[Needs::Fuse]) {
        return;
    }
    let rounds = number("QK_FAULT_ROUNDS", 42) as usize;
    let seed = number("QK_FAULT_SEED", 1);
    let panics = Arc::new(AtomicU64::new(0));
    let seen = panics.clone();
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // The store catches those of sled's and makes the index again.
        let of_sled = info
            .location()
            .is_some_and(|at| at.file().contains("sled-"));
        seen.fetch_add(u64::from(of_sled), Ordering::Relaxed);
        if !of_sled {
            told(info);
        }
    }));
    let dir = tempfile::tempdir().unwrap();
    let fs = FaultFs::new(dir.path()).unwrap();
    let mut figures = Figures::default();
    let faults = possible(&fs, &mut figures);
    figures.faults_possible = faults.values().map(Vec::len).sum();
    for fault in chosen(faults, rounds, seed) {
        let name = format!("seed {seed}, {fault:?}");
        let watch = Watch::new(name.clone(), PATIENCE);
        *figures.faults_by_kind.entry(fault.kind).or_default() += 1;
        figures.rounds += 1;
        if let Err(error) = round(&fs, fault, &mut figures) {
            eprintln!("{name}: {error:#}");
            figures.rounds_failed += 1;
        }
        drop(watch);
    }
    figures.panics_inside_sled = panics.load(Ordering::Relaxed);
    eprintln!("{figures:#?}");
    assert_eq!(figures.rounds_failed, 0);
    assert!(figures.operations_refused + figures.openings_refused > 0);
}

/// Every fault that a run without one can meet, by kind and manner.
fn possible(fs: &FaultFs, figures: &mut Figures) -> BTreeMap<usize, Vec<Fault>> {
    let mut expected = Expected::default();
    let mut run = Figures::default();
    fs.set(None);
    work(fs.path(), &mut expected, &mut run);
    assert_eq!((run.operations_refused, run.openings_refused), (0, 0));
    let counts = fs.counts();
    eprintln!("operations of a run without a fault: {counts:?}");
    check(fs, &expected, figures).expect("nothing failed");
    let mut faults = BTreeMap::<usize, Vec<Fault>>::new();
    let manners = [Failure::Full, Failure::Broken].map(|e| [(e, false), (e, true)]);
    for (manner, (error, lasting)) in manners.into_iter().flatten().enumerate() {
        for (n, kind) in Kind::ALL.into_iter().enumerate() {
            let count = counts.get(&kind).copied().unwrap_or(0);
            // Files are cut only behind writes that failed, and then with them.
            assert!(
                count > 0 || kind == Kind::Truncate,
                "{kind:?} never happens"
            );
            let all = (0..count).map(|nth| Fault {
                kind,
                nth,
                error,
                lasting,
            });
            faults
                .entry(manner * Kind::ALL.len() + n)
                .or_default()
                .extend(all);
        }
    }
    faults
}

/// As many of each kind, in an order that the seed gives; or those that are asked for.
fn chosen(faults: BTreeMap<usize, Vec<Fault>>, rounds: usize, seed: u64) -> Vec<Fault> {
    if let Ok(only) = std::env::var("QK_FAULT_ONLY") {
        let all = faults.into_values().flatten();
        return all.filter(|fault| format!("{fault:?}") == only).collect();
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut groups: Vec<_> = faults.into_values().collect();
    groups.iter_mut().for_each(|group| group.shuffle(&mut rng));
    let mut chosen = Vec::new();
    while chosen.len() < rounds && groups.iter().any(|group| !group.is_empty()) {
        chosen.extend(groups.iter_mut().filter_map(Vec::pop));
    }
    chosen.truncate(rounds);
    chosen
}

fn round(fs: &FaultFs, fault: Fault, figures: &mut Figures) -> anyhow::Result<()> {
    fs.put(Tree::empty());
    fs.set(Some(fault));
    let mut expected = Expected::default();
    work(fs.path(), &mut expected, figures);
    figures.rounds_without_the_fault += u64::from(fs.fired() == 0);
    fs.set(None);
    check(fs, &expected, figures)
}

/// Opens what a fault left: as it is; made of the journal alone; and what a power cut leaves of it.
fn check(fs: &FaultFs, expected: &Expected, figures: &mut Figures) -> anyhow::Result<()> {
    let dir = fs.path().join("store");
    let left = fs.tree();
    for index_is_lost in [false, true] {
        if index_is_lost {
            std::fs::remove_dir_all(dir.join("index"))?;
        }
        let store = Store::open(&dir, options())?;
        let looked = store_load::check(&store, &mut expected.clone(), true);
        figures.comparisons += looked.context(match index_is_lost {
            true => "made of the journal alone",
            false => "as it was left",
        })?;
        for damage in store.fsck()?.damage {
            // No file was damaged, and what failed was cleaned up.
            anyhow::ensure!(matches!(damage, Damage::Index { .. }), "{damage}");
            figures.indexes_made_again += 1;
        }
        anyhow::ensure!(
            store.append(vec![store_load::record(900_000)])? == u64::from(!index_is_lost),
            "it goes on"
        );
    }
    fs.put(left.after_a_cut());
    if dir.exists() {
        std::fs::write(dir.join("boot"), "open elsewhere\n")?;
    }
    let store = Store::open(&dir, options())?;
    let looked = store_load::check(&store, &mut expected.clone(), true);
    figures.comparisons += looked.context("after a power cut")?;
    store.fsck()?;
    Ok(())
}

/// Small segments, so that rotation and compaction take part.
fn options() -> Options {
    Options {
        segment_bytes_max: 8 << 10,
        ..store_load::options()
    }
}

/// All that a store does which writes, twice opened and closed.
fn work(fs: &Path, expected: &mut Expected, figures: &mut Figures) {
    let dir = fs.join("store");
    let mut run = Run { expected, figures };
    let Some(store) = run.open(&dir) else {
        return;
    };
    for n in 0..12 {
        run.append(&store, 3 * n..3 * n + 3);
    }
    run.pin(&store, 100, true);
    run.pin(&store, 101, true);
    run.pin(&store, 101, false);
    run.blob(&store, 200, Keep::Durable);
    run.blob(&store, 201, Keep::Durable);
    run.blob(&store, 202, Keep::Cache);
    for n in 0..9 {
        run.remove(&store, 3 * n..3 * n + 3);
    }
    run.any(store.compact());
    run.any(store.scrub());
    run.append(&store, 2..4);
    run.append(&store, 24..30);
    run.unblob(&store, 201);
    run.blob(&store, 203, Keep::Durable);
    run.append(&store, 36..38);
    drop(store);
    let Some(store) = run.open(&dir) else {
        return;
    };
    run.append(&store, 2..4);
    run.append(&store, 40..46);
    run.pin(&store, 101, true);
    run.blob(&store, 200, Keep::Durable);
    run.any(store.gc(UnixTime(1)));
    run.any(store.fsck());
}

struct Run<'a> {
    expected: &'a mut Expected,
    figures: &'a mut Figures,
}

impl Run<'_> {
    /// Opens the store, at the second attempt if need be, as a fault may be over then.
    fn open(&mut self, dir: &Path) -> Option<Store> {
        for _ in 0..2 {
            match Store::open(dir, options()) {
                Ok(store) => return Some(store),
                Err(_) => self.figures.openings_refused += 1,
            }
        }
        None
    }

    fn append(&mut self, store: &Store, numbers: std::ops::Range<u64>) {
        let records = numbers.clone().map(store_load::record).collect();
        let done = store.append(records);
        self.note(true, What::Statement, numbers, done);
    }

    fn remove(&mut self, store: &Store, numbers: std::ops::Range<u64>) {
        let ids: Vec<_> = numbers.clone().map(|n| store_load::record(n).id).collect();
        let done = store.remove(&ids);
        self.note(false, What::Statement, numbers, done);
    }

    fn pin(&mut self, store: &Store, number: u64, put: bool) {
        let root = store_load::pin(number);
        let done = match put {
            true => store.pin(root),
            false => store.unpin(root),
        };
        self.note(put, What::Pin, number..number + 1, done);
    }

    fn blob(&mut self, store: &Store, number: u64, keep: Keep) {
        let (root, bytes) = store_load::blob(number);
        let put = || {
            let mut temp = store.begin()?;
            temp.write_all(&bytes).map_err(anyhow::Error::from)?;
            store.commit(temp, root, keep, UnixTime(number))?;
            anyhow::Ok(())
        };
        let done = put();
        if keep == Keep::Cache {
            let (put, what) = (true, What::Blob);
            self.expected.cut_off(Op { put, what, number });
        } else {
            self.note(true, What::Blob, number..number + 1, done);
        }
    }

    fn unblob(&mut self, store: &Store, number: u64) {
        let done = store.remove_blob(&store_load::blob(number).0);
        self.note(false, What::Blob, number..number + 1, done);
    }

    fn note<T, E: Debug>(
        &mut self,
        put: bool,
        what: What,
        numbers: std::ops::Range<u64>,
        done: Result<T, E>,
    ) {
        for number in numbers {
            let op = Op { put, what, number };
            match &done {
                Ok(_) => self.expected.acknowledged(op),
                Err(_) => self.expected.cut_off(op),
            }
        }
        self.count(&done);
    }

    /// Of what changes nothing that was acknowledged, whether it succeeds or not.
    fn any<T>(&mut self, done: Result<T, StoreError>) {
        self.count(&done);
    }

    fn count<T, E: Debug>(&mut self, done: &Result<T, E>) {
        match done {
            Ok(_) => self.figures.operations_acknowledged += 1,
            Err(error) => {
                let text = format!("{error:?}");
                assert!(!text.starts_with("Closed"), "the writer has ended: {text}");
                self.figures.operations_refused += 1;
            }
        }
    }
}
