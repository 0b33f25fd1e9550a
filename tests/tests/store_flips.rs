//! One flipped bit in each file of a store, one after the other: nothing wrong is served, only what
//! was flipped is lost, and a check names it.
//!
//! `QK_FLIP_ROUNDS` sets how many bits of each file are tried (default 1; of sled's and of the
//! journal's files four times as many), `QK_FLIP_SEED` which: `cargo xtask flips --rounds 20`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qk_node::store::{Keep, Options, Store, StoreError};
use qk_protocol::time::UnixTime;
use qk_tests::store_load::{self, Expected, Op, What};
use qk_tests::writer::{Watch, number};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How long a round may take; beyond, it hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// The blob that lies in `part/`, fetched but not taken over.
const PART: u64 = 300;

/// What the campaign did, printed at its end.
#[derive(Debug, Default)]
struct Figures {
    flips: BTreeMap<String, u64>,
    comparisons: usize,
    things_lost: usize,
    flips_named: u64,
    flips_in_bytes_that_mean_nothing: u64,
}

/// How a store is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Closed,
    Killed,
    Unclean,
}

#[test]
fn a_flipped_bit_in_any_file_costs_no_more_than_itself() {
    let rounds = number("QK_FLIP_ROUNDS", 1);
    let seed = number("QK_FLIP_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut figures = Figures::default();
    for left in [Left::Closed, Left::Killed, Left::Unclean] {
        let (template, expected) = template(left);
        let files = files(template.path());
        // The check is fair: without a flip nothing is wrong.
        let nothing = round(template.path(), None, &expected).unwrap();
        assert_eq!((nothing.lost.len(), &nothing.damage[..]), (0, &[][..]));
        for file in files {
            let name = file.strip_prefix(template.path()).unwrap().to_owned();
            let kind = kind(&name);
            let len = fs::metadata(&file).unwrap().len();
            let many = matches!(&*kind, "journal" | "index/db");
            for _ in 0..if many { 4 * rounds } else { rounds } {
                let bit = rng.random_range(0..len * 8);
                let what = format!("seed {seed}, {left:?}, bit {bit} of {}", name.display());
                let watch = Watch::new(what.clone(), PATIENCE);
                let found = round(template.path(), Some((&name, bit)), &expected)
                    .unwrap_or_else(|error| panic!("{what}: {error:#}"));
                judge(&what, &kind, &name, left, &found, template.path());
                *figures.flips.entry(kind.clone()).or_default() += 1;
                figures.comparisons += found.comparisons;
                figures.things_lost += found.lost.len();
                figures.flips_named += u64::from(!found.damage.is_empty());
                figures.flips_in_bytes_that_mean_nothing +=
                    u64::from(found.damage.is_empty() && found.lost.is_empty());
                drop(watch);
            }
        }
    }
    eprintln!("{figures:#?}");
    let kinds: Vec<_> = figures.flips.keys().map(String::as_str).collect();
    let all = [
        "blob",
        "boot",
        "index/conf",
        "index/db",
        "index/sum",
        "journal",
        "outboard",
        "part",
        "version",
    ];
    for kind in all {
        assert!(kinds.contains(&kind), "no {kind} was flipped: {kinds:?}");
    }
    assert!(figures.things_lost > 0, "a flip that hits a blob costs it");
}

/// What a store with one flipped bit answers.
struct Found {
    comparisons: usize,
    lost: Vec<(What, u64)>,
    damage: Vec<String>,
}

fn round(
    template: &Path,
    flip: Option<(&Path, u64)>,
    expected: &Expected,
) -> anyhow::Result<Found> {
    let dir = tempfile::tempdir()?;
    copy(template, dir.path())?;
    if let Some((name, bit)) = flip {
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path)?;
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        fs::write(&path, bytes)?;
    }
    let store = Store::open(dir.path(), options())?;
    let (comparisons, lost) = store_load::differences(&store, expected)?;
    let report = store.fsck()?;
    let damage = report.damage.iter().map(ToString::to_string).collect();
    let again = store_load::differences(&store, expected)?.1;
    anyhow::ensure!(
        again == lost,
        "a check took away {again:?} instead of {lost:?}"
    );
    take_over(&store, flip.map(|(name, _)| name))?;
    let (number, fresh) = (900_000, store_load::record(900_000));
    anyhow::ensure!(store.append(vec![fresh])? == 1, "statement {number}");
    Ok(Found {
        comparisons,
        lost,
        damage,
    })
}

/// What was fetched becomes a blob only if it is what it should be.
fn take_over(store: &Store, flipped: Option<&Path>) -> anyhow::Result<()> {
    let (root, bytes) = store_load::blob(PART);
    let part = part(store.dir());
    match store.adopt(&part, root, Keep::Durable, UnixTime(1)) {
        Ok(()) => {
            let blob = store.open_blob(&root)?.map(|blob| blob.read_all());
            anyhow::ensure!(
                blob == Some(Ok(bytes)),
                "the part was taken over and differs"
            );
        }
        Err(StoreError::WrongRoot { .. }) => {
            anyhow::ensure!(flipped.is_some_and(|path| kind(path) == "part"), "refused");
        }
        Err(other) => return Err(other.into()),
    }
    Ok(())
}

fn judge(what: &str, kind: &str, name: &Path, left: Left, found: &Found, template: &Path) {
    let Found { lost, damage, .. } = found;
    let most = usize::from(matches!(kind, "journal" | "blob"));
    assert!(
        lost.len() <= most,
        "{what}: lost {lost:?}, named {damage:?}"
    );
    let stem = name.file_stem().unwrap_or_default().to_string_lossy();
    let named = damage.iter().any(|one| one.contains(&*stem));
    let must_be_named = match kind {
        "blob" | "outboard" | "version" => true,
        // An end that a crash may have left is cut off: nobody knows whether it was acknowledged.
        "journal" => left == Left::Closed || !is_newest(template, name),
        // The mark of another boot, as an earlier version left it, has no sum.
        "boot" => left != Left::Unclean,
        // Of sled's bytes many mean nothing; what is fetched is compared when it is taken over.
        _ => false,
    };
    assert!(named || !must_be_named, "{what}: named {damage:?}");
}

/// A store with something of everything in it.
fn template(left: Left) -> (tempfile::TempDir, Expected) {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Expected::default();
    let mut note = |put, what, number| expected.acknowledged(Op { put, what, number });
    let store = Store::open(dir.path(), options()).unwrap();
    for n in 0..40 {
        store.append(vec![store_load::record(n)]).unwrap();
        note(true, What::Statement, n);
    }
    for n in 10..15 {
        store.remove(&[store_load::record(n).id]).unwrap();
        note(false, What::Statement, n);
    }
    for n in 100..103 {
        store.pin(store_load::pin(n)).unwrap();
        note(true, What::Pin, n);
    }
    store.unpin(store_load::pin(101)).unwrap();
    note(false, What::Pin, 101);
    for n in 200..203 {
        let (root, bytes) = store_load::blob(n);
        let mut temp = store.begin().unwrap();
        temp.write_all(&bytes).unwrap();
        store
            .commit(temp, root, Keep::Durable, UnixTime(n))
            .unwrap();
        note(true, What::Blob, n);
    }
    let part = part(dir.path());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, store_load::blob(PART).1).unwrap();
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path()).unwrap();
    drop(store);
    let dir = if left == Left::Killed { killed } else { dir };
    if left == Left::Unclean {
        fs::write(dir.path().join("boot"), store_load::mark_of_another_boot()).unwrap();
    }
    (dir, expected)
}

/// Small segments, so that there are several.
fn options() -> Options {
    Options {
        segment_bytes_max: 16 << 10,
        ..store_load::options()
    }
}

fn part(dir: &Path) -> PathBuf {
    let root = store_load::blob(PART).0;
    dir.join("part").join(root.to_string()).join("data.tar")
}

/// Which kind of file a path in a store is.
fn kind(name: &Path) -> String {
    let name = name.display().to_string();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    match (name.split('/').next(), extension) {
        (Some("blobs"), Some("tar")) => "blob".to_owned(),
        (Some("blobs"), Some("obao4")) => "outboard".to_owned(),
        (Some("index"), Some("sum")) => "index/sum".to_owned(),
        (Some("index"), _) => match name.rsplit('/').next() {
            Some(file) if file.starts_with("snap") => "index/snap".to_owned(),
            Some(file @ ("db" | "conf")) => format!("index/{file}"),
            _ => "index/blobs".to_owned(),
        },
        (Some(first), _) => first.to_owned(),
        (None, _) => name,
    }
}

fn is_newest(template: &Path, name: &Path) -> bool {
    let segments = files(&template.join("journal"));
    segments.last().is_some_and(|last| last.ends_with(name))
}

/// All files below a directory that have bytes, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}
