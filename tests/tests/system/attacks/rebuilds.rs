//! Attacks that a rebuild finds out: these tests build, crates so small that it takes a second.

use qk_protocol::hash::Sha256;
use qk_tests::artifact::forged;
use qk_tests::crates::Registry;

use super::{Case, DISPUTED, End, Ground, TROJAN, UNPROVEN};

/// A release of a crate in a registry of one's own: nobody made anything of it yet.
fn tiny(ground: &mut Ground, name: &str, prints: &str, files: &[(&str, &str)]) -> Case {
    let registry = Registry::new(ground.lab.dir());
    ground.lab.set("CARGO_HOME", registry.cargo_home());
    let of = registry.publish(name, prints, files);
    let network = ground.network();
    let manifest = network.manifest();
    let source = manifest.registries.first().expect("a registry");
    let lock = of.lock.as_bytes();
    let key = of
        .candidate(source, &manifest.builds[0])
        .key(Sha256::of(lock));
    Case {
        args: vec![of.spec()],
        right: forged(key.clone(), lock, ""),
        wrong: forged(key, lock, TROJAN),
    }
}

#[test]
fn principals_in_league_whom_a_clients_own_rebuild_finds_out() {
    let mut ground = Ground::new();
    let case = tiny(&mut ground, "qk-in-league", "\"\"", &[]);
    ground.say(&["ann", "bob"], &case.wrong);
    assert_eq!(ground.takes("rebuild_percent = 0", &case), End::Trojan);
    let client = ground.client("rebuild_percent = 100");
    assert_eq!(ground.fetches(&client, &case), DISPUTED);
    // What it built itself, it believes.
    assert_eq!(ground.fetches(&client, &case), End::Right);
    // And everybody can see that somebody got something else.
    let proofs = ground.proofs("", &case);
    assert_eq!(proofs["verdict"]["lines"].as_array().map(Vec::len), Some(3));
}

/// A build script that gives another program each time.
const FICKLE: &str = "fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    println!(\"cargo:rustc-env=BUILT={}\", now.unwrap().as_nanos());
}
";

#[test]
fn a_crate_that_never_comes_out_the_same() {
    let mut ground = Ground::new();
    let files = [("build.rs", FICKLE)];
    let case = tiny(&mut ground, "qk-fickle", "env!(\"BUILT\")", &files);
    let publisher = ground.client("");
    let build = |more: &[&str]| {
        let args = [&["build", &case.args[0]], more].concat();
        ground.lab.qk(&publisher, &args)
    };
    let stated = || {
        let proofs = ground.proofs("", &case);
        proofs["verdict"]["lines"].as_array().map_or(0, Vec::len)
    };
    build(&[]).failed(
        12,
        &["a second build gave another artifact, so nothing was published"],
    );
    assert_eq!(stated(), 0);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    build(&["--no-gate"]).done();
    assert_eq!(stated(), 1);
}
