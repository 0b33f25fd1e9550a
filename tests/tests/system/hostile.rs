//! Archives that no honest build gives, stated by enough principals that collude: the policy is met,
//! and they are refused all the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use qk_protocol::hash::Sha256;
use qk_protocol::statement::Subject;
use qk_tests::artifact::{Artifact, Entry, Options, SPEC, artifact_with, tar};
use qk_tests::lab::{ALICE, BOB, Lab, listing};

/// What is done to an honest archive's entries, and what the refusal says.
type Case = (&'static str, fn(Vec<Entry>) -> Vec<u8>, &'static str);

const PROGRAM: &str = "bin/hexyl";
/// A path that leaves a directory which has a `bin` in it.
const OUT_OF_IT: &str = "bin/../../planted";

const CASES: [Case; 16] = [
    (
        "parent",
        |all| tar(&renamed(all, OUT_OF_IT)),
        "leads out of the archive",
    ),
    (
        "absolute",
        |all| tar(&renamed(all, "/tmp/qk-planted")),
        "is absolute",
    ),
    (
        "symlink",
        |all| {
            tar(&followed(all, |one| {
                one.named("bin/link").of_type(b'2', "/etc/passwd")
            }))
        },
        "is a link",
    ),
    (
        "hardlink",
        |all| {
            tar(&followed(all, |one| {
                one.named("bin/link").of_type(b'1', "/etc/passwd")
            }))
        },
        "is a link",
    ),
    (
        "device",
        |all| {
            tar(&followed(all, |one| {
                one.named("bin/null").of_type(b'3', "")
            }))
        },
        "is a device",
    ),
    (
        "fifo",
        |all| {
            tar(&followed(all, |one| {
                one.named("bin/pipe").of_type(b'6', "")
            }))
        },
        "is a device",
    ),
    (
        "directory",
        |all| tar(&followed(all, |one| one.named("bin/dir").of_type(b'5', ""))),
        "is a directory",
    ),
    (
        "duplicate",
        |all| tar(&followed(all, |one| one)),
        "occurs twice",
    ),
    (
        "unlisted",
        |all| tar(&followed(all, |one| one.named("bin/zzz"))),
        "is not listed in qk.json",
    ),
    ("missing", |all| tar(&without(all)), "is missing"),
    (
        "shorter",
        |all| tar(&changed(all, |one| one.holding(b"short"))),
        "qk.json says",
    ),
    (
        "other-bytes",
        |all| tar(&changed(all, |one| one.flipped())),
        "has BLAKE3",
    ),
    (
        "too-large",
        |all| tar(&licensed(all, (1 << 20) + 1)),
        "has 1048577 bytes; 1048576 are allowed",
    ),
    (
        "beyond",
        |all| tar(&changed(all, |one| one.stating(1 << 32))),
        "qk.json says",
    ),
    ("cut-off", |all| cut(tar(&all)), "stated size"),
    (
        "trailing",
        |all| [tar(&all), vec![7; 512]].concat(),
        "bytes",
    ),
];

#[test]
fn hostile_archives_are_refused_and_nothing_is_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    for (name, change, says) in CASES {
        let honest = keyed(&lab, name);
        let bytes = change(honest.entries());
        let hostile = honest.replaced(&bytes);
        refused(&lab, name, &hostile, says);
    }
    assert!(!Path::new("/tmp/qk-planted").exists());
}

#[test]
fn archives_that_are_not_what_was_stated_are_refused() {
    let mut lab = Lab::new();
    lab.start_alice();
    // Of another key than the one that the principals vouch for.
    let (one, other) = (keyed(&lab, "one"), keyed(&lab, "other"));
    let swapped = one.replaced(&fs::read(other.path()).unwrap());
    refused(&lab, "one", &swapped, "of another artifact key");
    // Right by one digest and wrong by the other, and both principals say so.
    let mut half = keyed(&lab, "half");
    half.subject = Subject {
        sha256: Sha256::of(b"something else"),
        ..half.subject
    };
    refused(&lab, "half", &half, "holds another archive");
}

#[test]
fn an_honest_archive_made_the_same_way_is_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    let honest = keyed(&lab, "honest");
    let bytes = tar(&honest.entries());
    let honest = honest.replaced(&bytes);
    lab.publish(ALICE, &honest);
    lab.state(BOB, &honest);
    lab.fetch(&[SPEC, "--features", "honest"]).done();
    assert!(lab.root().join(PROGRAM).is_file());
}

/// That the attack is one: a tar program that trusts the archive writes outside of its directory.
#[test]
fn a_trusting_reader_is_led_out_of_its_directory() {
    let lab = Lab::new();
    let honest = keyed(&lab, "parent");
    let bytes = tar(&renamed(honest.entries(), OUT_OF_IT));
    let hostile = honest.replaced(&bytes);
    let into = lab.dir().join("trusting");
    fs::create_dir_all(into.join("bin")).unwrap();
    let mut trusting = Command::new("tar");
    trusting
        .args(["--absolute-names", "--extract", "--file"])
        .arg(hostile.path());
    trusting.arg("--directory").arg(&into);
    assert!(trusting.status().unwrap().success());
    assert!(lab.dir().join("planted").is_file());
}

/// An artifact with a key of its own.
fn keyed(lab: &Lab, feature: &str) -> Artifact {
    let options = Options {
        features: [feature.to_owned()].into(),
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

fn refused(lab: &Lab, feature: &str, hostile: &Artifact, says: &str) {
    lab.publish(ALICE, hostile);
    lab.state(BOB, hostile);
    let before = listing(lab.dir().parent().unwrap().join("qk-planted").as_path());
    let ran = lab.fetch(&[SPEC, "--features", feature]);
    assert_eq!(ran.code(), 15, "{feature}: {ran:?}");
    assert!(ran.error().contains(says), "{feature}: {}", ran.error());
    assert!(lab.installed().is_empty(), "{feature}");
    assert_eq!(
        before,
        listing(lab.dir().parent().unwrap().join("qk-planted").as_path())
    );
    let left = listing(&lab.home("client").work());
    assert!(left.is_empty(), "{feature}: {left:?}");
}

fn changed(all: Vec<Entry>, change: impl Fn(Entry) -> Entry) -> Vec<Entry> {
    let each = all
        .into_iter()
        .map(|one| if one.is(PROGRAM) { change(one) } else { one });
    each.collect()
}

fn renamed(all: Vec<Entry>, path: &str) -> Vec<Entry> {
    changed(all, |one| one.named(path))
}

/// With one more entry behind the program, made of it.
fn followed(all: Vec<Entry>, more: impl Fn(Entry) -> Entry) -> Vec<Entry> {
    let each = all.into_iter().flat_map(|one| match one.is(PROGRAM) {
        true => vec![one.clone(), more(one)],
        false => vec![one],
    });
    each.collect()
}

fn without(mut all: Vec<Entry>) -> Vec<Entry> {
    all.retain(|one| !one.is(PROGRAM));
    all
}

fn licensed(all: Vec<Entry>, bytes: usize) -> Vec<Entry> {
    let each = all
        .into_iter()
        .map(|one| match one.is("licenses/LICENSE-MIT") {
            true => one.holding(&vec![b'x'; bytes]),
            false => one,
        });
    each.collect()
}

fn cut(mut archive: Vec<u8>) -> Vec<u8> {
    archive.truncate(archive.len() / 2);
    archive
}
