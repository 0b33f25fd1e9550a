//! Attacks by keys: variants of a release that nobody asked for.

use std::collections::BTreeSet;
use std::fs;

use qk_node::node::unix_now;
use qk_protocol::assign::Ranking;
use qk_protocol::candidate::Candidate;
use qk_protocol::hash::{Fields, PrincipalId, Sha256};
use qk_protocol::key::ArtifactKey;
use qk_protocol::policy::Policy;
use qk_tests::artifact::{CRATE, Options};

use super::{COMMITTEE, Case, DISPUTED, End, Ground, UNPROVEN, VERIFIERS, principal};

/// What an attacker says the checksum of its source is.
const OWN_SOURCE: Sha256 = Sha256([0xbd; 32]);

/// How many statements `qk proofs` saw that are about other keys of the release.
fn others(ground: &Ground, case: &Case) -> u64 {
    let proofs = ground.proofs("", case);
    proofs["others"].as_u64().expect("a number")
}

/// What a draw over the whole key would give, whatever a publisher may vary in it.
fn drawn_by_key(key: &ArtifactKey) -> BTreeSet<PrincipalId> {
    let mut ids = VERIFIERS.map(|name| principal(name, &[]).id);
    ids.sort_by_key(|id| {
        Fields::derive("by key id")
            .id(&key.id().0)
            .id(&id.0)
            .finish()
    });
    ids.into_iter().take(COMMITTEE as usize).collect()
}

#[test]
fn a_publisher_that_varies_flags_to_draw_another_committee() {
    let ground = Ground::new();
    let plain = ground.case("plain");
    let (_, off) = ground.drawn(&plain);
    let colluders = [off[0], off[1]].map(|name| principal(name, &[]).id);
    // The attacker looks for a variant that draws both of its people.
    let variant = |number: u32| {
        let mut key = plain.right.key.clone();
        let feature = format!("variant-{number}");
        key.flags.features = [feature.clone()].into();
        (feature, key)
    };
    let mut variants = (0..1000).map(variant);
    let (feature, key) = variants
        .find(|(_, key)| colluders.iter().all(|id| drawn_by_key(key).contains(id)))
        .expect("a variant");
    let case = ground.case(&feature);
    assert_eq!(case.right.key, key);
    ground.say(&off[..2], &case.wrong);
    assert_eq!(ground.takes("count = \"assigned\"", &case), UNPROVEN);
    let drawn = |key: &ArtifactKey| Ranking::of(&ground.network(), &Candidate::of(key));
    assert_eq!(drawn(&plain.right.key), drawn(&key));
    // Who counts those of a draw over the whole key counts the attacker's people.
    let ids: Vec<String> = drawn_by_key(&key)
        .iter()
        .map(|id| format!("{:?}", id.to_string()))
        .collect();
    let by_key = format!("principals = [{}]", ids.join(", "));
    assert_eq!(ground.takes(&by_key, &case), End::Trojan);
}

#[test]
fn a_publisher_with_a_source_of_its_own() {
    let ground = Ground::new();
    let other = Options {
        rekey: Some(|key| key.flags.source = OWN_SOURCE),
        ..Options::default()
    };
    let case = ground.case_with("source", other);
    ground.say(&["ann", "bob"], &case.wrong);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    assert_eq!(others(&ground, &case), 2);
    // A client that lets the attacker say the checksum: its registry is the attacker's.
    let cargo = ground.lab.dir().join("cargo");
    let registry = cargo.join("registry");
    let (name, version) = CRATE;
    let index = registry.join("index").join(&name[..2]).join(&name[2..4]);
    fs::create_dir_all(&index).expect("a directory");
    let line = format!(
        r#"{{"name":"{name}","vers":"{version}","deps":[],"cksum":"{OWN_SOURCE}","features":{{}},"yanked":false}}"#
    );
    fs::write(index.join(name), line).expect("an index");
    let config = format!(
        "[source.crates-io]\nreplace-with = \"own\"\n[source.own]\nlocal-registry = {registry:?}\n"
    );
    fs::write(cargo.join("config.toml"), config).expect("a configuration");
    let mut fetch = ground.lab.fetch_command(&ground.client(""), &case.args);
    assert_eq!(
        ground.ends(&case, fetch.env("CARGO_HOME", cargo)),
        End::Trojan
    );
}

#[test]
fn a_publisher_with_a_lock_of_its_own() {
    let ground = Ground::new();
    let own = || Options {
        lock: Some(b"# Other dependencies than the author's.\nversion = 4\n".to_vec()),
        ..Options::default()
    };
    let case = ground.case_with("lock", own());
    assert_ne!(case.right.key.id(), case.wrong.key.id());
    ground.say(&["ann"], &case.wrong);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    // Who rebuilds reads the lock from the source, and so states another key, of the same release.
    ground.say(&["bob"], &case.right);
    assert_eq!(ground.takes("", &case), DISPUTED);
    // Who believed the publisher's lock would state what the publisher wants.
    let case = ground.case_with("believed-lock", own());
    ground.say(&["ann", "bob"], &case.wrong);
    assert_eq!(ground.takes("", &case), End::Trojan);
}

#[test]
fn a_variant_with_an_old_compiler() {
    let mut ground = Ground::new();
    let old = |key: &mut ArtifactKey| key.flags.rustc.version = "1.56.0".to_owned();
    let with_old = Options {
        rekey: Some(old),
        ..Options::default()
    };
    let case = ground.case_with("old", with_old);
    ground.say(&["ann", "bob"], &case.wrong);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    assert_eq!(others(&ground, &case), 2);
    let build = Candidate::of(&case.wrong.key).build;
    ground.revise(|manifest| manifest.builds.push(build));
    assert_eq!(ground.takes("", &case), End::Trojan);
}

#[test]
fn a_variant_with_odd_rustflags() {
    let ground = Ground::new();
    let odd = |key: &mut ArtifactKey| key.flags.rustflags = ["-Copt-level=0".to_owned()].into();
    let with_odd = Options {
        rekey: Some(odd),
        ..Options::default()
    };
    let case = ground.case_with("odd", with_odd);
    ground.say(&["ann", "bob"], &case.wrong);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    assert_eq!(others(&ground, &case), 2);
    // It is only that nobody asks about it: whoever did would be given it.
    let stated = ["ann", "bob"].map(|who| ground.statement(who, &case.wrong));
    assert!(ground.decides(&Policy::default(), &stated, unix_now()));
}
