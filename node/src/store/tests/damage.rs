//! What goes wrong on disks and was once not withstood.

use super::*;

#[test]
fn a_flipped_bit_in_a_mark_is_mended_and_named() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    for (name, left_open) in [("version", false), ("boot", false), ("boot", true)] {
        let path = dir.path().join(name);
        if left_open {
            fs::write(&path, layout::with_sum("open another boot's")).unwrap();
        }
        let intact = fs::read(&path).unwrap();
        for bit in 0..intact.len() * 8 {
            let mut bytes = intact.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let store = open(&dir);
            all_there(&store, 0..3);
            let told = store.fsck().unwrap().damage;
            let named = told
                .iter()
                .any(|one| matches!(one, Damage::Mark { path: of, .. } if *of == path));
            assert!(named, "bit {bit} of {name}: {told:?}");
            assert_eq!(store.fsck().unwrap().damage, [], "told once");
        }
    }
    // An earlier version's file has no sum, and a damaged one says nothing without a journal.
    let version = dir.path().join("version");
    fs::write(&version, "1\n").unwrap();
    assert_eq!(open(&dir).damage(), []);
    assert_ne!(fs::read(&version).unwrap(), b"1\n");
    fs::write(&version, "3 0123456789abcdef\n").unwrap();
    fs::rename(segment_path(&dir, 1), dir.path().join("gone")).unwrap();
    assert!(matches!(
        Store::open(dir.path(), options()),
        Err(StoreError::NotAStore { .. })
    ));
}

#[test]
fn an_index_without_the_mark_of_its_boot_is_not_trusted() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    fs::remove_file(dir.path().join("boot")).unwrap();
    fs::write(dir.path().join("index/of before"), b"").unwrap();
    let store = open(&dir);
    all_there(&store, 0..3);
    assert!(!dir.path().join("index/of before").exists(), "begun anew");
}

/// A removal that failed must not be found by the next start, when its statement was acknowledged
/// again in between: the disk must have cut it off before anything is acknowledged.
#[test]
fn what_was_refused_is_cut_off_before_anything_is_acknowledged() {
    let dir = dir();
    let small = options();
    let store = Store::open(dir.path(), small.clone()).unwrap();
    store.append(records(0..3)).unwrap();
    drop(store);
    let (mut writer, lock) = Store::prepare(dir.path(), small.clone()).unwrap();
    // The removal's sync, the cut behind it, the cut before the second attempt, and one more.
    (writer.journal.failing_syncs, writer.journal.failing_cuts) = (1, 3);
    let store = Store::start(writer, lock).unwrap();
    store.remove(&[record(1).id]).unwrap_err();
    let uncut = kill_copy(&store);
    let again = store.append(vec![record(1)]);
    assert!(again.is_err(), "acknowledged before the cut: {again:?}");
    assert_eq!(store.append(vec![record(1)]).unwrap(), 0);
    let cut = kill_copy(&store);
    for (copy, there) in [(&uncut, false), (&cut, true)] {
        fs::remove_dir_all(copy.path().join("index")).unwrap();
        let found = open(copy).get(&record(1).id).unwrap();
        assert_eq!(found.is_some(), there, "without the cut it is lost");
    }
}

/// What the sync did not write seems to be there as long as the machine runs.
#[test]
fn what_may_be_in_memory_only_is_written_again_by_the_next_process() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    let doubt = dir.path().join("journal/doubt");
    for failing_cuts in [1, 9] {
        let (mut writer, lock) = Store::prepare(dir.path(), options()).unwrap();
        (writer.journal.failing_syncs, writer.journal.failing_cuts) = (1, failing_cuts);
        let store = Store::start(writer, lock).unwrap();
        let done = store.append(vec![record(100 + u64::from(failing_cuts))]);
        drop(store);
        assert_eq!(doubt.exists(), done.is_err(), "{failing_cuts}: {done:?}");
        all_there(&open(&dir), 0..3);
        assert!(!doubt.exists());
    }
}

/// An index that is made again meanwhile must not know the frames that are about to be cut off.
#[test]
fn an_index_is_not_made_of_what_was_refused() {
    let dir = dir();
    let (mut writer, lock) = Store::prepare(dir.path(), options()).unwrap();
    writer.journal.tail().unwrap();
    (writer.journal.failing_syncs, writer.journal.failing_cuts) = (1, 3);
    let store = Store::start(writer, lock).unwrap();
    store.append(records(0..2)).unwrap_err();
    assert!(store.rebuild("as if it had failed").is_err());
    store.rebuild("once more").unwrap();
    assert!(!store.contains(&record(0).id).unwrap());
    assert_eq!(store.append(records(0..2)).unwrap(), 2);
    all_there(&store, 0..2);
}

/// A segment that could not be deleted comes back with the next start; the later segments that say
/// what of it was taken back have to be there then, too.
#[test]
fn a_segment_that_cannot_be_deleted_is_not_forgotten() {
    let dir = dir();
    let small = Options {
        segment_bytes_max: 2000,
        ..options()
    };
    let store = Store::open(dir.path(), small.clone()).unwrap();
    for n in 0..60 {
        store.append(vec![record(n)]).unwrap();
    }
    let ids: Vec<_> = (0..60).map(|n| record(n).id).collect();
    for id in &ids[..50] {
        store.remove(&[*id]).unwrap();
    }
    // A directory cannot be deleted as a file.
    let (first, saved) = (segment_path(&dir, 1), dir.path().join("saved"));
    fs::rename(&first, &saved).unwrap();
    fs::create_dir(&first).unwrap();
    for _ in 0..3 {
        assert!(store.compact().is_err(), "it goes no further than this one");
    }
    fs::remove_dir(&first).unwrap();
    fs::rename(&saved, &first).unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path(), small).unwrap();
    for id in &ids[..50] {
        assert_eq!(store.get(id).unwrap(), None, "taken back and there again");
    }
    all_there(&store, 50..60);
    assert!(store.compact().unwrap().segments > 3);
    all_there(&store, 50..60);
}

#[test]
fn a_bad_end_of_a_closed_journal_is_named() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    let path = segment_path(&dir, 1);
    let len = fs::metadata(&path).unwrap().len();
    flip(&path, len - 3);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(&dir);
    all_there(&store, 0..2);
    let told = store.fsck().unwrap().damage;
    assert!(matches!(&told[..], [Damage::Frame { .. }]), "{told:?}");
}

/// The disk was full when a segment was begun: half of its header is there.
#[test]
fn a_segment_with_half_a_header_is_begun_anew() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    let half = frame::Header {
        number: 2,
        salt: [1; 32],
    };
    let half = half.encode()[..64].to_vec();
    fs::write(segment_path(&dir, 2), half).unwrap();
    let store = open(&dir);
    assert_eq!(store.fsck().unwrap().damage, []);
    assert_eq!(store.append(records(3..5)).unwrap(), 2);
    all_there(&store, 0..5);
    assert!(!segment_path(&dir, 2).exists());
}

/// The sync of its header may have failed: after a power cut everything in it would be lost.
#[test]
fn a_segment_without_frames_is_not_trusted() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    let unsynced = frame::Header {
        number: 2,
        salt: [1; 32],
    };
    let path = segment_path(&dir, 2);
    fs::write(&path, unsynced.encode()).unwrap();
    let store = open(&dir);
    assert!(!path.exists());
    assert_eq!(store.append(records(3..5)).unwrap(), 2);
    drop(store);
    all_there(&open(&dir), 0..5);
}

#[test]
fn a_damaged_copy_of_a_header_is_named_and_mended() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    drop(store);
    let path = segment_path(&dir, 1);
    let intact = fs::read(&path).unwrap();
    for at in [20, 84] {
        flip(&path, at);
        let told = open(&dir).fsck().unwrap().damage;
        assert!(matches!(&told[..], [Damage::Frame { .. }]), "{told:?}");
        assert_eq!(fs::read(&path).unwrap(), intact);
    }
}

/// What a flipped bit in sled's file did in one of some three hundred tries: rows are missing, and nothing tells.
#[test]
fn an_index_that_lost_rows_is_noticed_when_it_is_opened() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..9)).unwrap();
    drop(store);
    let index = dir.path().join("index");
    let db = sled::open(index.join("1")).unwrap();
    db.remove(index::key(b'i', &[&record(4).id.0])).unwrap();
    db.flush().unwrap();
    drop(db);
    let unchecked = Index::open_unchecked(&index).unwrap();
    assert_eq!(
        unchecked.entry(&record(4).id).unwrap(),
        None,
        "nothing tells"
    );
    drop(unchecked);
    let store = open(&dir);
    all_there(&store, 0..9);
    assert!(matches!(&store.damage()[..], [Damage::Index { .. }]));
    drop(store);
    // The next opening reads no rows: the files are as they were left.
    assert_eq!(open(&dir).damage(), []);
}

#[test]
fn a_flipped_bit_in_sled_is_refused_or_replayed() {
    const FLIPS: usize = 20;
    let dir = dir();
    let store = open(&dir);
    for n in 0..150 {
        store.append(records(n * 20..n * 20 + 20)).unwrap();
    }
    let segments = store.shared.segments.clone();
    drop(store);
    let db = fs::read(dir.path().join("index/1/db")).unwrap();
    let used = db.len() - db.iter().rev().take_while(|byte| **byte == 0).count();
    let mut refused = 0;
    for n in 0..FLIPS {
        let copy = tempfile::tempdir().unwrap();
        let to = copy.path().join("index");
        let mut cp = Process::new("cp");
        let copied = cp.arg("-a").arg(dir.path().join("index")).arg(&to);
        assert!(copied.status().unwrap().success());
        flip(&to.join("1/db"), (n * 7919 * 31 % used) as u64);
        let opened = Index::open(&to);
        let Some(index) = opened
            .ok()
            .filter(|index| writer::replay(index, &segments, Left::Killed).is_ok())
        else {
            refused += 1;
            continue;
        };
        assert_eq!(index.scrub().map_err(|e| e.to_string()), Ok(()), "flip {n}");
        assert_eq!(index.meta().unwrap().statements, 3000, "flip {n}");
    }
    assert!(refused > 0, "no flip was noticed: the test damages nothing");
}

#[test]
fn a_check_does_not_bring_back_what_a_lost_frame_took_away() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    let at = fs::metadata(segment_path(&dir, 1)).unwrap().len();
    store.remove(&[record(1).id]).unwrap();
    store.append(records(3..5)).unwrap();
    drop(store);
    flip(&segment_path(&dir, 1), at + 40);
    let store = open(&dir);
    let told = store.fsck().unwrap().damage;
    assert!(matches!(&told[..], [Damage::Frame { .. }]), "{told:?}");
    assert_eq!(store.get(&record(1).id).unwrap(), None);
}

/// Earlier versions kept network manifests in the journal.
#[test]
fn a_journal_with_manifests_in_it_still_opens() {
    let dir = dir();
    let store = open(&dir);
    store.append(records(0..3)).unwrap();
    let segment = store.shared.segments.all().remove(0);
    drop(store);
    let mut bytes = Vec::new();
    segment.encode_form(5, segment.len().unwrap(), &[7; 5000], &mut bytes);
    let file = fs::OpenOptions::new().append(true).open(&segment.path);
    file.unwrap().write_all(&bytes).unwrap();
    let store = open(&dir);
    assert_eq!(store.append(records(3..5)).unwrap(), 2);
    drop(store);
    for index_is_lost in [false, true] {
        if index_is_lost {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let store = open(&dir);
        all_there(&store, 0..5);
        let report = store.fsck().unwrap();
        assert_eq!((report.frames, report.damage), (6, vec![]));
    }
}
