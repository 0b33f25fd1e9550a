use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command as Process;

use proptest::prelude::*;

use super::*;

mod blobs;
mod damage;

const NETWORK: NetworkId = NetworkId([9; 32]);

fn options() -> Options {
    Options {
        free_floor_bytes: 0,
        reserve_bytes: 0,
        ..Options::default()
    }
}

fn hash(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

/// A record of its own for every `n`; four in a row share a point.
fn record(n: u64) -> Record {
    Record {
        id: StatementId(hash(n)),
        network: NETWORK,
        point: Point(hash(n / 4 + 1_000_000)),
        key: KeyId(hash(n / 2 + 2_000_000)),
        observer: PublicKey(hash(n % 3 + 3_000_000)),
        root: (!n.is_multiple_of(5)).then(|| Root(hash(n % 7 + 4_000_000))),
        stored: UnixTime(n),
        bytes: format!("envelope {n}")
            .into_bytes()
            .repeat(1 + (n % 30) as usize),
    }
}

fn records(range: std::ops::Range<u64>) -> Vec<Record> {
    range.map(record).collect()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path(), options()).unwrap()
}

fn all_there(store: &Store, range: std::ops::Range<u64>) {
    for n in range {
        assert_eq!(
            store.get(&StatementId(hash(n))).unwrap(),
            Some(record(n)),
            "statement {n}"
        );
    }
}

fn segment_path(dir: &tempfile::TempDir, number: u64) -> PathBuf {
    dir.path().join(format!("journal/{number:08}.log"))
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// What `kill -9` leaves: the files as they are, without a clean end.
fn kill_copy(store: &Store) -> tempfile::TempDir {
    let copy = dir();
    let status = Process::new("cp")
        .arg("-a")
        .arg(store.dir().join("."))
        .arg(copy.path())
        .status();
    assert!(status.unwrap().success());
    copy
}

#[test]
fn points_are_found_by_what_the_index_knows_of_their_statements() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..40)).unwrap();
    store.remove(&[StatementId(hash(0))]).unwrap();
    let (observer, day) = (record(3).observer, UnixTime(9));
    let of = |wanted: &dyn Fn(&Record) -> bool| -> BTreeSet<Point> {
        let wanted = records(1..40).into_iter().filter(wanted);
        wanted.map(|record| record.point).collect()
    };
    let own = store.points_of(|entry| entry.observer == observer, 100);
    let expected = of(&|record| record.observer == observer);
    assert_eq!(own.unwrap(), expected);
    let roots = store.points_of(|entry| entry.root.is_some() && entry.stored > day, 100);
    assert_eq!(
        roots.unwrap(),
        of(&|record| record.root.is_some() && record.stored > day)
    );
    assert!(expected.len() > 3);
    assert_eq!(store.points_of(|_| true, 3).unwrap().len(), 3);
    assert!(store.points_of(|_| false, 3).unwrap().is_empty());
}

#[test]
fn what_is_appended_is_found_by_every_way_and_after_reopening() {
    let dir = dir();
    let store = open(&dir);
    assert_eq!(store.append(records(0..40)).unwrap(), 40);
    assert_eq!(store.append(records(30..50)).unwrap(), 10);
    assert!(store.pin(Root([1; 32])).unwrap());
    assert!(!store.pin(Root([1; 32])).unwrap());
    assert!(store.pin(Root([2; 32])).unwrap());
    assert!(store.unpin(Root([2; 32])).unwrap());
    assert!(!store.unpin(Root([2; 32])).unwrap());
    assert_eq!(
        store
            .remove(&[
                StatementId(hash(3)),
                StatementId(hash(3)),
                StatementId(hash(777))
            ])
            .unwrap(),
        1
    );
    let look = |store: &Store| {
        let sorted = |wanted: &dyn Fn(&Record) -> bool| {
            let mut found: Vec<_> = records(0..50).into_iter().filter(wanted).collect();
            found.retain(|r| r.id != StatementId(hash(3)));
            found.sort_by_key(|r| r.id);
            found
        };
        let like = record(0);
        let at = store.statements_at(&NETWORK, &like.point).unwrap();
        assert_eq!(at, sorted(&|r| r.point == like.point));
        assert_eq!(at.len(), 3);
        assert_eq!(
            store.by_key(&NETWORK, &like.key).unwrap(),
            sorted(&|r| r.key == like.key)
        );
        let root = record(1).root.unwrap();
        assert_eq!(
            store.by_root(&root).unwrap(),
            sorted(&|r| r.root == Some(root))
        );
        assert_eq!(
            store
                .statements_at(&NetworkId([8; 32]), &like.point)
                .unwrap(),
            []
        );
        assert!(
            store.contains(&like.id).unwrap() && !store.contains(&StatementId(hash(3))).unwrap()
        );
        assert_eq!(store.pins().unwrap(), [Root([1; 32])]);
        assert_eq!(store.counts().unwrap().statements, 49);
        assert_eq!(store.scrub().unwrap(), None);
        assert_eq!(store.damage(), []);
    };
    look(&store);
    let killed = kill_copy(&store);
    drop(store);
    look(&open(&dir));
    look(&open(&killed));
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    look(&open(&dir));
}

#[test]
fn the_first_envelope_of_an_id_stays() {
    let dir = dir();
    let store = open(&dir);
    let other = Record {
        bytes: b"another envelope".to_vec(),
        ..record(1)
    };
    assert_eq!(store.append(vec![record(1), other.clone()]).unwrap(), 1);
    assert_eq!(store.append(vec![other]).unwrap(), 0);
    assert_eq!(store.get(&record(1).id).unwrap(), Some(record(1)));
}

#[test]
fn each_refusal_names_the_thing() {
    let dir = dir();
    let store = open(&dir);
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Locked { path } if path == dir.path()),
        "{error}"
    );
    let big = Record {
        bytes: vec![0; STATEMENT_BYTES_MAX + 1],
        ..record(1)
    };
    insta::assert_snapshot!(store.append(vec![big.clone()]).unwrap_err(), @"statement of 16385 bytes, the limit is 16384");
    assert!(store.submit(vec![big]).is_err());
    drop(store);
    fs::write(dir.path().join("version"), "2\n").unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::NewerVersion {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    fs::write(dir.path().join("version"), "x\n").unwrap();
    assert!(matches!(
        Store::open(dir.path(), options()),
        Err(StoreError::NotAStore { .. })
    ));
    fs::remove_file(dir.path().join("version")).unwrap();
    assert!(matches!(
        Store::open(dir.path(), options()),
        Err(StoreError::NotAStore { .. })
    ));
    let error = Store::open("/proc/no", options()).unwrap_err();
    insta::assert_snapshot!(error, @"/proc/no: No such file or directory (os error 2)");
}

#[test]
fn a_journal_of_a_later_format_is_refused_and_left_alone() {
    let dir = dir();
    drop(open(&dir));
    let mut header = frame::Header {
        number: 1,
        salt: [0; 32],
    }
    .encode();
    for copy in header.chunks_exact_mut(64) {
        copy[8] = 7;
        let sum: [u8; 8] = frame::first(blake3::derive_key("qk journal header v1", &copy[..56]));
        copy[56..].copy_from_slice(&sum);
    }
    header.extend_from_slice(b"frames of the future");
    fs::write(segment_path(&dir, 1), &header).unwrap();
    let error = Store::open(dir.path(), options()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::NewerVersion {
                found: 7,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(segment_path(&dir, 1)).unwrap(), header);
}

#[test]
fn writers_at_once_are_all_answered() {
    let dir = dir();
    let store = open(&dir);
    thread::scope(|scope| {
        for part in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in part * 20..part * 20 + 20 {
                    assert_eq!(store.append(vec![record(n)]).unwrap(), 1);
                }
            });
        }
    });
    let waiting = store.submit(records(160..170)).unwrap();
    assert_eq!(waiting.blocking_recv().unwrap().unwrap(), 10);
    all_there(&store, 0..170);
}

#[test]
fn damage_in_the_middle_is_reported_and_only_that_is_lost() {
    let dir = dir();
    let store = open(&dir);
    let mut starts = Vec::new();
    for n in 0..10 {
        starts.push(fs::metadata(segment_path(&dir, 1)).map_or(128, |m| m.len()));
        store.append(vec![record(n)]).unwrap();
    }
    drop(store);
    flip(&segment_path(&dir, 1), starts[4] + 60);
    let store = open(&dir);
    assert_eq!(store.get(&record(4).id).unwrap(), None);
    let report = store.fsck().unwrap();
    assert_eq!(report.frames, 9);
    assert!(
        matches!(&report.damage[..], [Damage::Frame { offset, .. }] if *offset == starts[4]),
        "{report:?}"
    );
    assert_eq!(
        store.append(vec![record(4)]).unwrap(),
        1,
        "a damaged statement can be stored again"
    );
    all_there(&store, 0..10);
    drop(store);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(&dir);
    all_there(&store, 0..10);
    assert_eq!(store.damage().len(), 1);
}

#[test]
fn a_header_that_is_lost_takes_its_segment_and_nothing_else() {
    let dir = dir();
    let small = Options {
        segment_bytes_max: 2000,
        ..options()
    };
    let store = Store::open(dir.path(), small.clone()).unwrap();
    for n in 0..30 {
        store.append(vec![record(n)]).unwrap();
    }
    let kept: Vec<u64> = {
        let index = store.shared.index().unwrap();
        (0..30)
            .filter(|n| {
                index
                    .entry(&record(*n).id)
                    .unwrap()
                    .unwrap()
                    .position
                    .segment
                    != 2
            })
            .collect()
    };
    assert!(kept.len() < 30);
    drop(store);
    for at in [20, 84] {
        flip(&segment_path(&dir, 2), at);
    }
    fs::write(segment_path(&dir, 99), b"qkjournl, cut short").unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path(), small).unwrap();
    for n in kept {
        assert_eq!(store.get(&record(n).id).unwrap(), Some(record(n)));
    }
    assert!(matches!(&store.damage()[..], [Damage::Segment { moved_to, .. }] if moved_to.exists()));
    assert!(!segment_path(&dir, 99).exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens to bytes after the acknowledged ones, the acknowledged ones stay.
    #[test]
    fn damage_at_the_tail_loses_only_what_was_not_acknowledged(
        acknowledged in 1u64..12, more in 1u64..8, cut: bool, garbage in 0usize..80, at: prop::sample::Index, keep_index: bool,
    ) {
        let dir = dir();
        let store = open(&dir);
        store.append(records(0..acknowledged)).unwrap();
        let safe = fs::metadata(segment_path(&dir, 1)).unwrap().len();
        let killed = kill_copy(&store);
        store.append(records(acknowledged..acknowledged + more)).unwrap();
        drop(store);
        let path = segment_path(&killed, 1);
        fs::copy(segment_path(&dir, 1), &path).unwrap();
        let all = fs::metadata(&path).unwrap().len();
        let at = safe + at.index((all - safe) as usize) as u64;
        if cut {
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(at).unwrap();
        } else {
            flip(&path, at);
        }
        let noise: Vec<u8> = (0..garbage).map(|n| (n * 37) as u8).collect();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&noise).unwrap();
        if !keep_index {
            fs::remove_dir_all(killed.path().join("index")).unwrap();
        }
        let store = open(&killed);
        all_there(&store, 0..acknowledged);
        for n in acknowledged..acknowledged + more {
            let found = store.get(&record(n).id).unwrap();
            prop_assert!(found.is_none_or(|found| found == record(n)));
        }
        store.append(records(100..103)).unwrap();
        drop(store);
        fs::remove_dir_all(killed.path().join("index")).unwrap();
        let store = open(&killed);
        all_there(&store, 0..acknowledged);
        all_there(&store, 100..103);
    }

    /// The oracle is a sort of everything.
    #[test]
    fn near_agrees_with_brute_force(seeds: Vec<u8>, shift in 0usize..31, target: [u8; 32], limit in 0usize..20) {
        let dir = dir();
        let index = Index::fresh(dir.path()).unwrap();
        let mut changes = index::Changes::new(&index).unwrap();
        let mut points = BTreeSet::new();
        for (n, seed) in seeds.iter().enumerate() {
            // Points that agree in all but a byte or two, so that prefixes matter.
            let mut point = target;
            point[shift] ^= seed & 0x3c;
            point[shift + 1] ^= seed & 0x81;
            let record = Record { point: Point(point), ..record(n as u64) };
            let elsewhere = Record { network: NetworkId([1; 32]), ..super::tests::record(n as u64 + 500) };
            let at = journal::Position { segment: 1, offset: n as u64, len: 1 };
            changes.put_statement(&record, at).unwrap();
            changes.put_statement(&elsewhere, at).unwrap();
            points.insert(Point(point));
        }
        changes.commit(1, 0).unwrap();
        let target = Point(target);
        let mut expected: Vec<_> = points.into_iter().collect();
        expected.sort_by_key(|point| point.distance(&target));
        expected.truncate(limit);
        prop_assert_eq!(index.near(&NETWORK, &target, limit).unwrap(), expected);
        index.scrub().unwrap();
    }
}

#[test]
fn near_agrees_with_brute_force_on_many_points() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..400)).unwrap();
    for seed in 0..20 {
        let target = Point(hash(seed));
        let mut expected: Vec<_> = records(0..400).iter().map(|r| r.point).collect();
        expected.sort_by_key(|point| point.distance(&target));
        expected.dedup();
        expected.truncate(10);
        assert_eq!(store.near(&NETWORK, &target, 10).unwrap(), expected);
    }
}

#[test]
fn bits_flipped_in_sled_never_lose_a_statement() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..200)).unwrap();
    store.pin(Root([1; 32])).unwrap();
    drop(store);
    let mut made_again = 0;
    for round in 0..12u64 {
        let index = dir.path().join("index");
        let newest = fs::read_dir(&index)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|path| path.is_dir())
            .max()
            .unwrap();
        let db = newest.join("db");
        let len = fs::metadata(&db).unwrap().len();
        for n in 0..40 {
            let at = u64::from_le_bytes(hash(round * 1000 + n)[..8].try_into().unwrap())
                % len.min(100_000);
            flip(&db, at);
        }
        let store = open(&dir);
        all_there(&store, 0..200);
        assert_eq!(
            store
                .statements_at(&NETWORK, &record(0).point)
                .unwrap()
                .len(),
            4
        );
        assert_eq!(store.pins().unwrap(), [Root([1; 32])]);
        made_again += store.damage().len();
        drop(store);
    }
    assert!(
        made_again > 0,
        "no flip was noticed: the test damages nothing"
    );
}

#[test]
fn an_index_of_garbage_or_of_another_journal_is_made_again() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..20)).unwrap();
    drop(store);
    let db = dir.path().join("index/1/db");
    fs::write(&db, vec![0xa5; 700_000]).unwrap();
    let store = open(&dir);
    all_there(&store, 0..20);
    drop(store);
    // An index that is ahead of its journal.
    let path = segment_path(&dir, 1);
    let len = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len - 5)
        .unwrap();
    let store = open(&dir);
    all_there(&store, 0..19);
    assert_eq!(store.append(vec![record(19)]).unwrap(), 1);
}

#[test]
fn a_failed_sync_is_never_asked_again() {
    let dir = dir();
    let (mut writer, lock) = Store::prepare(dir.path(), options()).unwrap();
    writer.journal.tail().unwrap();
    writer.journal.failing_syncs = 1;
    let store = Store::start(writer, lock).unwrap();
    assert_eq!(store.append(records(0..5)).unwrap(), 5);
    assert!(
        segment_path(&dir, 2).exists(),
        "written again to a new segment"
    );
    assert_eq!(
        fs::metadata(segment_path(&dir, 1)).unwrap().len(),
        frame::HEADER_LEN
    );
    all_there(&store, 0..5);
    drop(store);
    let (mut writer, lock) = Store::prepare(dir.path(), options()).unwrap();
    writer.journal.failing_syncs = 2;
    let store = Store::start(writer, lock).unwrap();
    let error = store.append(records(5..9)).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(
        !store.contains(&record(5).id).unwrap(),
        "not acknowledged, not there"
    );
    assert_eq!(store.append(records(5..9)).unwrap(), 4);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    drop(store);
    all_there(&open(&dir), 0..9);
}

#[test]
fn compaction_keeps_what_lives_and_frees_the_rest() {
    let dir = dir();
    let small = Options {
        segment_bytes_max: 4000,
        ..options()
    };
    let store = Store::open(dir.path(), small.clone()).unwrap();
    for n in 0..100 {
        store.append(vec![record(n)]).unwrap();
    }
    store.pin(Root([1; 32])).unwrap();
    store.pin(Root([2; 32])).unwrap();
    store.unpin(Root([2; 32])).unwrap();
    assert_eq!(
        store.compact().unwrap(),
        CompactReport::default(),
        "all of it lives"
    );
    let dead: Vec<_> = (0..100)
        .filter(|n| n % 10 != 0)
        .map(|n| record(n).id)
        .collect();
    store.remove(&dead).unwrap();
    store.append(vec![record(1)]).unwrap();
    let before = store.counts().unwrap();
    let uncompacted = kill_copy(&store);
    let report = store.compact().unwrap();
    let after = store.counts().unwrap();
    assert!(report.segments > 3 && report.bytes_moved > 0);
    assert!(
        after.journal_bytes < before.journal_bytes / 2,
        "{before:?} {after:?}"
    );
    assert_eq!(after.live_bytes, before.live_bytes);
    let look = |store: &Store| {
        let left: Vec<u64> = (0..100).filter(|n| n % 10 == 0 || *n == 1).collect();
        for n in 0..100 {
            let expected = left.contains(&n).then(|| record(n));
            assert_eq!(store.get(&record(n).id).unwrap(), expected, "statement {n}");
        }
        assert_eq!(store.pins().unwrap(), [Root([1; 32])]);
        assert_eq!(store.scrub().unwrap(), None);
    };
    look(&store);
    let killed = kill_copy(&store);
    drop(store);
    look(&Store::open(killed.path(), small.clone()).unwrap());
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    look(&Store::open(dir.path(), small.clone()).unwrap());
    // Killed after the copies were synced and before the old segments were deleted.
    for number in 1..100 {
        let (from, to) = (
            segment_path(&uncompacted, number),
            segment_path(&killed, number),
        );
        if from.exists() && !to.exists() {
            fs::copy(from, to).unwrap();
        }
    }
    look(&Store::open(killed.path(), small.clone()).unwrap());
    fs::remove_dir_all(killed.path().join("index")).unwrap();
    let store = Store::open(killed.path(), small).unwrap();
    look(&store);
    store.compact().unwrap();
    look(&store);
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let Some(disk) = TinyDisk::mount("3m") else {
        return;
    };
    for reserve_bytes in [0, 1 << 20] {
        let dir = disk.0.path().join(format!("store-{reserve_bytes}"));
        let full = Options {
            reserve_bytes,
            ..options()
        };
        let store = Store::open(&dir, full.clone()).unwrap();
        let big = |n: u64| Record {
            bytes: vec![n as u8; 16_000],
            ..record(n)
        };
        let mut acknowledged = 0;
        let error = loop {
            match store.append(vec![big(acknowledged)]) {
                Ok(1) => acknowledged += 1,
                Ok(other) => panic!("{other} of 1"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::StorageFull { .. }), "{error}");
        assert!(acknowledged > 10);
        if reserve_bytes > 0 {
            for n in 0..acknowledged {
                assert_eq!(store.get(&record(n).id).unwrap(), Some(big(n)));
            }
        }
        drop(store);
        // On another disk, because a full one has no room for an index either.
        let elsewhere = tempfile::tempdir().unwrap();
        let copied = Process::new("cp")
            .arg("-a")
            .arg(dir.join("."))
            .arg(elsewhere.path())
            .status();
        assert!(copied.unwrap().success());
        fs::remove_dir_all(&dir).unwrap();
        let store = Store::open(elsewhere.path(), options()).unwrap();
        for n in 0..acknowledged {
            assert_eq!(store.get(&record(n).id).unwrap(), Some(big(n)));
        }
        let torn = store
            .damage()
            .iter()
            .filter(|d| matches!(d, Damage::Frame { .. }))
            .count();
        assert_eq!(torn, 0, "{:?}", store.damage());
        assert_eq!(store.append(vec![big(5000)]).unwrap(), 1);
    }
}

/// A file system of a few megabytes, which only root can make.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = dir();
        let mut mount = Process::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path());
        if mount.output().is_ok_and(|out| out.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("SKIPPED: a full disk needs a tmpfs of its own, and mounting one needs root");
        None
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        Process::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status()
            .ok();
    }
}

#[test]
fn a_segment_of_random_bytes_holds_no_frames() {
    for seed in 0..8 {
        let dir = dir();
        let store = open(&dir);
        store.append(records(0..3)).unwrap();
        drop(store);
        let noise: Vec<u8> = (0..4000).flat_map(|n| hash(seed * 10_000 + n)).collect();
        let header = frame::Header {
            number: 2,
            salt: [3; 32],
        };
        let codec = frame::Codec::new(header.salt);
        let mut bytes = header.encode();
        // Markers as only somebody who knows the salt can plant them, before lengths at random.
        for piece in noise.chunks(500) {
            bytes.extend_from_slice(codec.marker());
            bytes.extend_from_slice(piece);
        }
        fs::write(segment_path(&dir, 2), &bytes).unwrap();
        let store = open(&dir);
        all_there(&store, 0..3);
        assert_eq!(store.counts().unwrap().statements, 3);
        assert_eq!(store.append(vec![record(3)]).unwrap(), 1);
        drop(store);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        all_there(&open(&dir), 0..4);
    }
}

#[test]
fn a_statement_cannot_contain_a_frame() {
    for knows_the_salt in [false, true] {
        let dir = dir();
        let store = open(&dir);
        store.append(vec![record(0)]).unwrap();
        let before = fs::read(segment_path(&dir, 1)).unwrap();
        let secret = frame::Header::decode(&before).unwrap().salt;
        let salt = if knows_the_salt { secret } else { [0; 32] };
        // What a stranger signs: an envelope that holds a frame where it will stand.
        let offset = (before.len() + frame::PREFIX_LEN + frame::RECORD_FIXED_LEN) as u64;
        let mut inner = Vec::new();
        frame::Codec::new(salt).encode(&Frame::Statement(record(66)), offset, &mut inner);
        let carrier = Record {
            bytes: inner,
            ..record(1)
        };
        store.append(vec![carrier]).unwrap();
        store.append(vec![record(2)]).unwrap();
        drop(store);
        // The frame around it is damaged, so that what follows is searched for.
        flip(&segment_path(&dir, 1), before.len() as u64 + 40);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let store = open(&dir);
        assert_eq!(store.contains(&record(66).id).unwrap(), knows_the_salt);
        assert_eq!(store.get(&record(1).id).unwrap(), None);
        assert_eq!(store.get(&record(2).id).unwrap(), Some(record(2)));
    }
}

#[test]
fn a_store_that_stays_marked_is_whole_before_and_after_a_boot() {
    let dir = dir();
    let open_marked = || {
        let options = Options {
            stays_marked: true,
            ..options()
        };
        Store::open(dir.path(), options).unwrap()
    };
    open_marked().append(records(0..20)).unwrap();
    let store = open_marked();
    all_there(&store, 0..20);
    drop(store);
    let mark = dir.path().join("boot");
    assert!(fs::read_to_string(&mark).unwrap().starts_with("open "));
    // What the next boot finds: another boot's mark, and an index that was never synced.
    fs::write(&mark, "open another-boot\n").unwrap();
    fs::write(dir.path().join("index/torn"), b"half a page").unwrap();
    let store = open_marked();
    all_there(&store, 0..20);
    assert!(!dir.path().join("index/torn").exists(), "made again");
    drop(store);
    // A node that ends as it should closes it.
    drop(open(&dir));
    assert_eq!(fs::read_to_string(&mark).unwrap(), "closed\n");
}
