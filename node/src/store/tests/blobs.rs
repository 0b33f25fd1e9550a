use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bao_tree::io::sync::encode_ranges_validated;
use bao_tree::{ChunkNum, ChunkRanges};

use super::*;
use crate::blocks::part::Part;

fn archive(n: u64, len: usize) -> (Root, Vec<u8>) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&n.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    (Root::of(&bytes), bytes)
}

fn put(store: &Store, bytes: &[u8], root: Root, used: u64) -> Result<(), StoreError> {
    let mut temp = store.begin()?;
    temp.write_all(bytes).unwrap();
    store.commit(temp, root, Keep::Durable, UnixTime(used))
}

/// The directory of a download under way.
fn part_dir(store: &Store, root: &Root) -> PathBuf {
    let parts = Store::parts_in(store.dir()).unwrap();
    let dir = parts.join(root.to_string());
    fs::create_dir(&dir).unwrap();
    dir
}

fn blob_path(dir: &tempfile::TempDir, root: &Root, extension: &str) -> PathBuf {
    let name = root.to_string();
    dir.path()
        .join("blobs")
        .join(&name[..2])
        .join(format!("{name}.{extension}"))
}

/// As the node serves: every block checked against the outboard while it is read.
fn serve(blob: &Blob, ranges: &ChunkRanges) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    encode_ranges_validated(&blob.data, blob.outboard(), ranges, &mut out)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

#[test]
fn blobs_are_what_their_names_say() {
    let dir = dir();
    let store = open(&dir);
    for (n, len) in [0, 1, 1024, 16_384, 16_385, 300_000]
        .into_iter()
        .enumerate()
    {
        let (root, bytes) = archive(n as u64, len);
        assert!(store.open_blob(&root).unwrap().is_none());
        put(&store, &bytes, root, 1).unwrap();
        let blob = store.open_blob(&root).unwrap().unwrap();
        assert_eq!(blob.read_all().unwrap(), bytes);
        assert!(serve(&blob, &ChunkRanges::all()).unwrap().len() >= len);
        let outboard_len = fs::metadata(blob_path(&dir, &root, "obao4")).unwrap().len();
        assert_eq!(outboard_len, blob.tree().outboard_size());
    }
    let (root, bytes) = archive(0, 5000);
    let error = put(&store, &bytes, Root([0; 32]), 1).unwrap_err();
    assert!(
        matches!(error, StoreError::WrongRoot { found, .. } if found == root),
        "{error}"
    );
    assert!(!store.has_blob(&root) && !store.has_blob(&Root([0; 32])));
    assert_eq!(fs::read_dir(dir.path().join("temp")).unwrap().count(), 0);
    let file = dir.path().join("artifact.tar");
    fs::write(&file, &bytes).unwrap();
    assert!(
        store
            .import(&file, Root([0; 32]), Keep::Cache, UnixTime(1))
            .is_err()
    );
    store.import(&file, root, Keep::Cache, UnixTime(1)).unwrap();
    assert!(file.exists() && store.has_blob(&root));
    assert!(
        store
            .import(Path::new("/dev/zero"), root, Keep::Cache, UnixTime(1))
            .is_err()
    );
    assert!(store.remove_blob(&root).unwrap() && !store.remove_blob(&root).unwrap());
    let part = part_dir(&store, &root).join("data");
    fs::write(&part, &bytes).unwrap();
    store
        .adopt(&part, root, Keep::Durable, UnixTime(1))
        .unwrap();
    assert_eq!(
        store.open_blob(&root).unwrap().unwrap().read_all().unwrap(),
        bytes
    );
}

#[test]
fn a_finished_download_is_renamed_with_its_outboard() {
    use qk_protocol::blocks::{Ranges, encode, outboard, verify};

    let dir = dir();
    let store = open(&dir);
    let (root, bytes) = archive(3, 700_000);
    let (blob, tree) = outboard(&bytes[..], 700_000).unwrap();
    let part = Part::open(&Store::parts_in(dir.path()).unwrap(), blob).unwrap();
    for unit in blob.units(64) {
        let ranges = Ranges::from(unit);
        let wire = encode(&blob, &ranges, &bytes[..], &tree[..]).unwrap();
        part.write_verified(&verify(&blob, &ranges, &wire).unwrap())
            .unwrap();
    }
    let finished = part.finish().unwrap();
    store
        .adopt_finished(&finished, Keep::Cache, UnixTime(1))
        .unwrap();
    assert!(!finished.data.exists() && !finished.outboard.exists());
    finished.remove().unwrap();
    let blob = store.open_blob(&root).unwrap().unwrap();
    assert_eq!(blob.read_all().unwrap(), bytes);
    assert!(serve(&blob, &ChunkRanges::all()).is_ok());
    assert_eq!(store.fsck().unwrap().damage, []);
}

#[test]
fn a_flipped_bit_is_never_served_and_fsck_names_it() {
    let dir = dir();
    let store = open(&dir);
    let (root, bytes) = archive(7, 200_000);
    put(&store, &bytes, root, 1).unwrap();
    let (good, good_bytes) = archive(8, 100_000);
    put(&store, &good_bytes, good, 1).unwrap();
    let blob = store.open_blob(&root).unwrap().unwrap();
    flip(&blob_path(&dir, &root, "tar"), 3 * 16_384 + 100);
    let block = |n: u64| ChunkRanges::from(ChunkNum(n * 16)..ChunkNum(n * 16 + 16));
    assert!(serve(&blob, &block(2)).is_ok(), "other blocks are intact");
    assert!(serve(&blob, &block(3)).is_err());
    assert_eq!(
        blob.read_all().unwrap_err(),
        "block 3 does not match its hash"
    );
    // Without the check the wrong bytes would have gone out.
    let mut raw = vec![0; 16_384];
    blob.data.read_exact_at(&mut raw, 3 * 16_384).unwrap();
    assert_ne!(raw, bytes[3 * 16_384..4 * 16_384]);
    let report = store.fsck().unwrap();
    assert_eq!((report.blobs, report.blob_bytes), (2, 300_000));
    let [
        Damage::Blob {
            root: named,
            why,
            moved_to,
        },
    ] = &report.damage[..]
    else {
        panic!("{report:?}");
    };
    assert_eq!(
        (named, why.as_str()),
        (&root, "block 3 does not match its hash")
    );
    assert!(moved_to.exists());
    assert!(store.open_blob(&root).unwrap().is_none());
    put(&store, &bytes, root, 2).unwrap();
    assert_eq!(
        store.open_blob(&root).unwrap().unwrap().read_all().unwrap(),
        bytes,
        "fetched again"
    );
    assert_eq!(store.fsck().unwrap().damage, []);
}

#[test]
fn a_wrong_outboard_is_made_again() {
    let dir = dir();
    let store = open(&dir);
    let (root, bytes) = archive(7, 200_000);
    put(&store, &bytes, root, 1).unwrap();
    let outboard = blob_path(&dir, &root, "obao4");
    flip(&outboard, 70);
    let blob = store.open_blob(&root).unwrap().unwrap();
    assert!(serve(&blob, &ChunkRanges::all()).is_err());
    store.report_corrupt(&root).unwrap();
    let blob = store.open_blob(&root).unwrap().unwrap();
    assert!(serve(&blob, &ChunkRanges::all()).is_ok());
    fs::remove_file(&outboard).unwrap();
    assert!(
        serve(
            &store.open_blob(&root).unwrap().unwrap(),
            &ChunkRanges::all()
        )
        .is_ok()
    );
    assert_eq!(store.damage(), vec![Damage::Outboard { root }; 2]);
}

#[test]
fn after_an_unclean_boot_nothing_is_trusted_unseen() {
    let dir = dir();
    let store = open(&dir);
    let (root, bytes) = archive(7, 200_000);
    let (good, good_bytes) = archive(8, 100_000);
    put(&store, &bytes, root, 1).unwrap();
    put(&store, &good_bytes, good, 1).unwrap();
    store.append(records(0..9)).unwrap();
    drop(store);
    flip(&blob_path(&dir, &root, "tar"), 5);
    // Closed cleanly, it is opened without hashing it (and the wrong block is found when served).
    assert!(
        serve(
            &open(&dir).open_blob(&root).unwrap().unwrap(),
            &ChunkRanges::all()
        )
        .is_err()
    );
    fs::write(
        dir.path().join("boot"),
        "open 00000000-0000-0000-0000-000000000000\n",
    )
    .unwrap();
    let stale = dir.path().join("index/1/left-over");
    fs::write(&stale, b"").unwrap();
    let store = open(&dir);
    assert!(!stale.exists(), "the index was begun anew");
    all_there(&store, 0..9);
    let error = store.open_blob(&root).unwrap_err();
    assert!(
        matches!(&error, StoreError::CorruptBlob { moved_to, .. } if moved_to.exists()),
        "{error}"
    );
    assert!(store.open_blob(&root).unwrap().is_none());
    assert_eq!(
        store.open_blob(&good).unwrap().unwrap().read_all().unwrap(),
        good_bytes
    );
}

#[test]
fn eviction_takes_the_least_recently_used_and_spares_pins_and_leases() {
    let dir = dir();
    let store = Store::open(
        dir.path(),
        Options {
            quota_bytes: 100_000,
            ..options()
        },
    )
    .unwrap();
    let blobs: Vec<_> = (0..9).map(|n| archive(n, 10_000)).collect();
    for (n, (root, bytes)) in blobs.iter().enumerate().take(8) {
        put(&store, bytes, *root, 100 + n as u64).unwrap();
    }
    assert_eq!(
        store.gc(UnixTime(1000)).unwrap().evicted,
        [],
        "80 % is not over 80 %"
    );
    put(&store, &blobs[8].1, blobs[8].0, 108).unwrap();
    store.pin(blobs[0].0).unwrap();
    let lease = store.open_blob(&blobs[1].0).unwrap();
    store.touch(&blobs[2].0, UnixTime(500)).unwrap();
    let report = store.gc(UnixTime(1000)).unwrap();
    let evicted: Vec<_> = report.evicted.iter().map(|blob| blob.root).collect();
    assert_eq!(evicted, [blobs[3].0, blobs[4].0, blobs[5].0]);
    assert_eq!((report.bytes_before, report.bytes_after), (90_000, 60_000));
    drop(lease);
    let report = store.make_room(30_000, UnixTime(1000)).unwrap();
    let evicted: Vec<_> = report.evicted.iter().map(|blob| blob.root).collect();
    assert_eq!(evicted, [blobs[1].0, blobs[6].0, blobs[7].0]);
    assert!(store.has_blob(&blobs[0].0) && !store.has_blob(&blobs[1].0));
    assert_eq!(
        store
            .ls()
            .unwrap()
            .iter()
            .filter(|blob| blob.pinned)
            .count(),
        1
    );
}

/// What [`Store::amount`] says, and what a look at the disk says.
fn amounts(store: &Store) -> [(usize, u64); 2] {
    let amount = store.amount().unwrap();
    let listed = store.list().unwrap();
    let bytes = listed.iter().map(|blob| blob.bytes).sum();
    [(amount.artifacts, amount.bytes), (listed.len(), bytes)]
}

#[test]
fn how_much_is_here_is_known_without_a_look() {
    let dir = dir();
    let store = open(&dir);
    let blobs: Vec<_> = (0..4).map(|n| archive(n, 20_000 + n as usize)).collect();
    put(&store, &blobs[0].1, blobs[0].0, 1).unwrap();
    let check = |artifacts: usize| {
        let [told, seen] = amounts(&store);
        assert_eq!((told, told.0), (seen, artifacts));
    };
    check(1);
    for (root, bytes) in &blobs {
        put(&store, bytes, *root, 1).unwrap();
    }
    check(4);
    store.remove_blob(&blobs[0].0).unwrap();
    fs::write(blob_path(&dir, &blobs[1].0, "tar"), "damaged").unwrap();
    store.report_corrupt(&blobs[1].0).unwrap_err();
    check(2);
    // What somebody removes by hand is noticed by the next listing, and not by a look at each.
    fs::remove_file(blob_path(&dir, &blobs[2].0, "tar")).unwrap();
    let [told, seen] = amounts(&store);
    assert_eq!((told.0, seen.0), (2, 1));
    store.gc(UnixTime(1)).unwrap();
    check(1);
    let again = Store::open(dir.path(), options());
    assert!(again.is_err(), "nobody else changes it");
}

/// A store that has to evict all that it may.
fn cramped() -> Options {
    Options {
        quota_bytes: 1,
        ..options()
    }
}

#[test]
fn what_was_named_to_somebody_stays_for_a_while() {
    let dir = dir();
    let store = Store::open(dir.path(), cramped()).unwrap();
    let ((root, bytes), (other, other_bytes)) = (archive(1, 10_000), archive(2, 10_000));
    put(&store, &bytes, root, 1).unwrap();
    put(&store, &other_bytes, other, 2).unwrap();
    store.lease_for(root, Duration::from_secs(600));
    // A shorter one does not end a longer one.
    store.lease_for(root, Duration::ZERO);
    store.lease_for(other, Duration::ZERO);
    let report = store.gc(UnixTime(1000)).unwrap();
    let evicted: Vec<_> = report.evicted.iter().map(|blob| blob.root).collect();
    assert_eq!(evicted, [other], "the attack: without a lease it is gone");
    assert!(store.has_blob(&root));
    // Another process has other leases.
    drop(store);
    let store = Store::open(dir.path(), cramped()).unwrap();
    assert_eq!(store.gc(UnixTime(1000)).unwrap().evicted.len(), 1);
}

#[test]
fn what_a_command_found_stays_until_that_ends() {
    let dir = dir();
    let (root, bytes) = archive(1, 10_000);
    let brief = Options {
        file_leases: Some(FileLeases::default()),
        ..options()
    };
    let store = Store::open(dir.path(), brief.clone()).unwrap();
    put(&store, &bytes, root, 1).unwrap();
    store.lease_for(root, Duration::from_secs(600));
    drop(store);
    let store = Store::open(dir.path(), cramped()).unwrap();
    assert_eq!(store.gc(UnixTime(1000)).unwrap().evicted, []);
    assert!(store.has_blob(&root));
    drop(brief);
    assert_eq!(store.gc(UnixTime(1000)).unwrap().evicted.len(), 1);
}

#[test]
fn the_floor_evicts_whatever_the_quota_says() {
    let Some(disk) = TinyDisk::mount("4m") else {
        return;
    };
    let store = Store::open(
        disk.0.path().join("store"),
        Options {
            free_floor_bytes: 2 << 20,
            ..options()
        },
    )
    .unwrap();
    for n in 0..7 {
        let (root, bytes) = archive(n, 400_000);
        put(&store, &bytes, root, n).unwrap();
    }
    assert!(store.shared.free_bytes().unwrap() < 2 << 20);
    let report = store.make_space(0, UnixTime(9)).unwrap();
    assert!(!report.evicted.is_empty() && report.evicted[0].root == archive(0, 400_000).0);
    assert!(store.shared.free_bytes().unwrap() >= 2 << 20);
    assert_eq!(store.make_space(0, UnixTime(9)).unwrap().evicted, []);
    let (root, bytes) = archive(100, 3_500_000);
    let mut temp = store.begin().unwrap();
    assert_eq!(
        temp.write_all(&bytes).unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
    drop(temp);
    assert!(!store.has_blob(&root));
}

#[test]
fn old_downloads_are_given_up() {
    let dir = dir();
    let store = open(&dir);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    fs::write(part_dir(&store, &Root([1; 32])).join("data"), b"begun").unwrap();
    part_dir(&store, &Root([2; 32]));
    let lease = store.lease(Root([2; 32]));
    assert_eq!(store.gc(UnixTime(now + 3600)).unwrap().parts_removed, 0);
    assert_eq!(
        store
            .gc(UnixTime(now + 8 * 24 * 3600))
            .unwrap()
            .parts_removed,
        1
    );
    drop(lease);
    assert_eq!(
        store
            .gc(UnixTime(now + 8 * 24 * 3600))
            .unwrap()
            .parts_removed,
        1
    );
}

#[test]
fn a_copy_that_was_not_synced_is_checked_again_after_a_boot() {
    let dir = dir();
    let store = open(&dir);
    let (root, bytes) = archive(7, 50_000);
    let (kept, kept_bytes) = archive(8, 50_000);
    for (root, bytes, keep) in [
        (root, &bytes, Keep::Cache),
        (kept, &kept_bytes, Keep::Durable),
    ] {
        let mut temp = store.begin().unwrap();
        temp.write_all(bytes).unwrap();
        store.commit(temp, root, keep, UnixTime(1)).unwrap();
    }
    // As if both stemmed from a boot before, and the store was closed cleanly in between.
    let index = store.shared.index().unwrap();
    assert_eq!(index.blob(&kept).unwrap().unwrap().unsynced_in, None);
    let row = index.blob(&root).unwrap().unwrap();
    assert_eq!(row.unsynced_in, Some(store.shared.layout.boot_number()));
    let before = index::BlobRow {
        unsynced_in: Some(1),
        ..row
    };
    index.put_blob(&root, before).unwrap();
    flip(&blob_path(&dir, &root, "tar"), 100);
    let error = store.open_blob(&root).unwrap_err();
    assert!(matches!(error, StoreError::CorruptBlob { .. }), "{error}");
    put(&store, &bytes, root, 1).unwrap();
    let temp = {
        let mut temp = store.begin().unwrap();
        temp.write_all(&bytes).unwrap();
        temp
    };
    store.commit(temp, root, Keep::Cache, UnixTime(2)).unwrap();
    assert_eq!(
        index.blob(&root).unwrap().unwrap().unsynced_in,
        None,
        "stays durable"
    );
}
