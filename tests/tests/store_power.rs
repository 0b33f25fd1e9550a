//! Power cuts while a process works on a store, at random points, again and again: nothing that was
//! acknowledged is lost, nothing wrong is served. `qk_tests::disk` says what a power cut is here.
//!
//! `QK_POWER_ROUNDS` sets how often (default 6; the full campaign is 200), `QK_POWER_SEED` where
//! randomness begins: `cargo xtask power --rounds 200`.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qk_node::store::{Damage, Store};
use qk_tests::disk::{self, Disk, Mounted};
use qk_tests::namespace::{self, Needs};
use qk_tests::store_load::{self, Expected};
use qk_tests::writer::{self, Done, Watch, Writer, number};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const DISK_BYTES: usize = 192 << 20;
/// Rounds after which a new disk is taken, before this one is full.
const ROUNDS_PER_DISK: u64 = 20;
/// How long anything at all may take; beyond, it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const NEEDS: &[Needs] = &[Needs::Fuse, Needs::Loop];

/// What the campaign did, printed at its end.
#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    groups_acknowledged: u64,
    operations_acknowledged: u64,
    groups_cut_off: u64,
    cuts_while_opening_or_closing: u64,
    closings: u64,
    fsyncs: u64,
    writes_pending_at_a_cut: u64,
    writes_dropped: u64,
    writes_torn: u64,
    checks: u64,
    comparisons: u64,
    blobs_hashed: u64,
    writes_found_torn: u64,
    indexes_made_again: u64,
    longest_opening: Duration,
}

#[test]
fn nothing_acknowledged_is_lost_to_a_power_cut() {
    if !namespace::inside("nothing_acknowledged_is_lost_to_a_power_cut", NEEDS) {
        return;
    }
    let rounds = number("QK_POWER_ROUNDS", 6);
    let seed = number("QK_POWER_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut figures = Figures::default();
    while figures.rounds < rounds {
        let mut machine = Machine::new();
        let mut expected = Expected::default();
        let mut next_number = 0;
        for left in (0..(rounds - figures.rounds).min(ROUNDS_PER_DISK)).rev() {
            let name = format!("seed {seed}, round {}", figures.rounds);
            let watched = Watch::new(name.clone(), 3 * PATIENCE);
            next_number = round(
                &mut machine,
                &mut rng,
                next_number,
                &mut expected,
                &mut figures,
            );
            figures.rounds += 1;
            // Not after every cut, so that stores that lost power twice are opened, too.
            if rng.random_bool(0.6) || left == 0 {
                let all = left == 0;
                let dir = machine.mount(&mut rng);
                check(&dir, &mut expected, &mut figures, all)
                    .unwrap_or_else(|error| panic!("{name}: {error:#}"));
                machine.unmount();
            }
            drop(watched);
        }
        figures.fsyncs += machine.disk.fsyncs();
    }
    eprintln!("{figures:#?}");
    assert!(
        figures.operations_acknowledged > rounds && figures.writes_pending_at_a_cut > rounds,
        "too little was done: {figures:?}"
    );
}

fn round(
    machine: &mut Machine,
    rng: &mut StdRng,
    first: u64,
    expected: &mut Expected,
    figures: &mut Figures,
) -> u64 {
    let dir = machine.mount(rng);
    // The writes of an opening are some dozens.
    let requests = match rng.random_bool(0.2) {
        true => rng.random_range(0..60),
        false => rng.random_range(0..1200),
    };
    let args = [rng.random::<u64>().to_string(), first.to_string()];
    let args = std::iter::once(dir.as_os_str()).chain(args.iter().map(AsRef::as_ref));
    let program = env!("CARGO_BIN_EXE_store-writer");
    let said = machine.cut(requests, rng, figures, || Writer::start(program, args));
    let acknowledged = store_load::acknowledged_before_a_cut;
    let done = writer::take_down(&said, false, expected, acknowledged);
    figures.count(&done);
    done.next_number.max(first)
}

fn check(
    dir: &Path,
    expected: &mut Expected,
    figures: &mut Figures,
    all: bool,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let store = Store::open(dir, store_load::options())?;
    figures.longest_opening = figures.longest_opening.max(began.elapsed());
    figures.checks += 1;
    figures.comparisons += store_load::check(&store, expected, all)?;
    let mut damage = store.damage();
    damage.extend(store.scrub()?);
    let report = store.fsck()?;
    figures.blobs_hashed += report.blobs;
    damage.extend(report.damage);
    for one in damage {
        match one {
            // What was never acknowledged, or something acknowledged would be missing.
            Damage::Frame { .. } => figures.writes_found_torn += 1,
            Damage::Index { .. } => figures.indexes_made_again += 1,
            other => anyhow::bail!("{other}"),
        }
    }
    if all {
        drop(store);
        std::fs::remove_dir_all(dir.join("index"))?;
        let store = Store::open(dir, store_load::options())?;
        figures.comparisons += store_load::check(&store, expected, true)?;
    }
    Ok(())
}

/// sled's `flush` alone, in the same campaign: were it the only copy, what it acknowledged would be
/// lost. The same writer with an fsync of the file behind it shows that the campaign is fair.
#[test]
fn sled_alone_loses_what_its_flush_acknowledged() {
    if !namespace::inside("sled_alone_loses_what_its_flush_acknowledged", NEEDS) {
        return;
    }
    let rounds = number("QK_POWER_SLED_ROUNDS", 4);
    let seed = number("QK_POWER_SEED", 1);
    for (how, loses) in [("plain", true), ("synced", false)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut machine = Machine::new();
        let (mut acknowledged, mut lost, mut rounds_with_loss) = (0, 0, 0);
        for round in 0..rounds {
            let name = format!("sled {how}, seed {seed}, round {round}");
            let watched = Watch::new(name, 3 * PATIENCE);
            let mut expected = Expected::default();
            sled_round(&mut machine, &mut rng, how, round, &mut expected);
            let dir = machine.mount(&mut rng).join(round.to_string());
            let wanted = expected.statements().count() as u64;
            let found = sled_finds(&dir, &expected);
            machine.unmount();
            acknowledged += wanted;
            lost += wanted - found;
            rounds_with_loss += u64::from(found < wanted);
            drop(watched);
        }
        eprintln!(
            "sled {how}: of {acknowledged} acknowledged entries {lost} are lost, in \
             {rounds_with_loss} of {rounds} power cuts (seed {seed})"
        );
        assert!(acknowledged > rounds, "too little was done");
        assert_eq!(lost > 0, loses, "sled {how}");
    }
}

fn sled_round(
    machine: &mut Machine,
    rng: &mut StdRng,
    how: &str,
    round: u64,
    expected: &mut Expected,
) {
    let dir = machine.mount(rng).join(round.to_string());
    let args = [
        dir.display().to_string(),
        (round << 32).to_string(),
        how.to_owned(),
    ];
    let mut figures = Figures::default();
    let requests = rng.random_range(200..1000);
    let said = machine.cut(requests, rng, &mut figures, || {
        Writer::start(env!("CARGO_BIN_EXE_sled-writer"), args)
    });
    writer::take_down(&said, false, expected, Expected::acknowledged);
}

/// How many of the acknowledged entries sled finds; none if it does not open.
fn sled_finds(dir: &Path, expected: &Expected) -> u64 {
    let find = || {
        let Ok(db) = store_load::sled(dir) else {
            return 0;
        };
        let there = |number: &u64| {
            let record = store_load::record(*number);
            matches!(db.get(record.id.0), Ok(Some(bytes)) if bytes == record.bytes)
        };
        expected.statements().filter(there).count() as u64
    };
    panic::catch_unwind(AssertUnwindSafe(find)).unwrap_or(0)
}

/// A disk, and where it is mounted.
struct Machine {
    disk: Disk,
    mounted: Option<Mounted>,
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (served, at) = (dir.path().join("disk"), dir.path().join("mounted"));
        std::fs::create_dir(&served).unwrap();
        std::fs::create_dir(&at).unwrap();
        let disk = Disk::new(&served, DISK_BYTES).unwrap();
        disk::format(disk.path()).unwrap();
        Self {
            disk,
            mounted: None,
            at,
            _dir: dir,
        }
    }

    /// Mounts the disk; ext4 replays its own journal. Answers the store's directory.
    fn mount(&mut self, rng: &mut StdRng) -> PathBuf {
        // Without its help for programs that rename before they sync, in half of the rounds.
        let options = ["auto_da_alloc", "noauto_da_alloc"][usize::from(rng.random_bool(0.5))];
        self.mounted = Some(Mounted::new(self.disk.path(), &self.at, options).unwrap());
        self.at.join("store")
    }

    fn unmount(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount().unwrap();
        }
    }

    /// Cuts the power `requests` writes and fsyncs after a writer has started, and gives it back;
    /// answers what the writer said.
    fn cut(
        &mut self,
        requests: u64,
        rng: &mut StdRng,
        figures: &mut Figures,
        start: impl FnOnce() -> Writer,
    ) -> Vec<String> {
        let pending_min = [0, 2, 6, 12, 24][rng.random_range(0..5)];
        self.disk.cut_after(requests, pending_min);
        let mut writer = start();
        let went = self.disk.wait_for_cut(PATIENCE);
        assert!(went, "the writer stands still: {:?}", writer.ended());
        writer.kill();
        // It may wait for the disk, and dies with the answer.
        self.disk.fail();
        let said = writer.said();
        self.unmount();
        let cut = self.disk.restart(rng);
        figures.writes_pending_at_a_cut += cut.pending;
        figures.writes_dropped += cut.dropped;
        figures.writes_torn += cut.torn;
        said
    }
}

impl Figures {
    fn count(&mut self, done: &Done) {
        self.groups_acknowledged += done.groups;
        self.operations_acknowledged += done.operations;
        self.groups_cut_off += done.cut_off;
        self.cuts_while_opening_or_closing += u64::from(done.between);
        self.closings += done.closed;
    }
}
