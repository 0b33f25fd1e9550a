//! Attacks that a rebuild finds out: these tests build, crates so small that it takes a second.

use std::fs;

use qk_protocol::hash::{Sha256, Work};
use qk_protocol::statement::Subject;
use qk_tests::artifact::forged;
use qk_tests::registry::Crates;
use serde_json::{Value, json};

use super::{Case, DISPUTED, End, Ground, TROJAN, UNPROVEN, effects, signer};

/// A registry of one's own for all commands.
fn registry(ground: &mut Ground) -> Crates {
    let registry = Crates::new();
    let (variable, value) = registry.variable();
    ground.lab.set(variable, value);
    registry
}

/// A release of a crate there: nobody made anything of it yet.
fn tiny(
    ground: &Ground,
    registry: &Crates,
    name: &str,
    prints: &str,
    files: &[(&str, &str)],
) -> Case {
    let of = registry.printing(name, prints, files);
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
    let registry = registry(&mut ground);
    let case = tiny(&ground, &registry, "qk-in-league", "\"\"", &[]);
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

impl Ground {
    /// The home of a principal, with the key that signs what it observes.
    fn owner(&self, who: &str) {
        self.lab.add(who, "");
        let home = self.lab.home(who);
        // Bob has a home in every lab.
        let _ = fs::remove_file(home.dir().join("keys/observer"));
        let kept = home.keep_key("observer", &signer(who));
        kept.expect("a key");
    }

    /// `qk build` or `qk verify` of the case by a principal; what it printed.
    fn makes(&self, who: &str, command: &str, case: &Case) -> Value {
        self.owner(who);
        self.lab.qk(who, &[command, &case.args[0]]).done()
    }
}

/// What was built, as `qk build` and `qk verify` say it.
fn subject(report: &Value) -> Subject {
    serde_json::from_value(json!({
        "root": report["root"],
        "sha256": report["sha256"],
        "size": report["size"],
    }))
    .expect("an artifact")
}

#[test]
fn a_copied_observation() {
    let mut ground = Ground::new();
    let registry = registry(&mut ground);
    let asks = "threshold = 4\ncount = \"assigned\"";
    // Three of the committee build. The fourth waits for the first of them, and states what that one got.
    let copied = |feature: &str, work: Option<Work>| {
        let case = tiny(&ground, &registry, feature, "\"\"", &[]);
        let (on, _) = ground.drawn(&case);
        let built = ground.makes(on[0], "build", &case);
        let copy = ground.statement_but(on[1], &case.right, |observation| {
            observation.subject = subject(&built);
            observation.work = work;
        });
        ground
            .lab
            .put(&ground.client(""), None, copy)
            .expect("published");
        for who in &on[2..] {
            let rebuilt = ground.makes(who, "verify", &case);
            assert_eq!(rebuilt["root"], built["root"]);
        }
        let proofs = ground.proofs(asks, &case);
        let said = effects(&proofs, on[1]);
        (said, proofs["verdict"].clone())
    };
    let (said, verdict) = copied("qk-copied", Some(Work([7; 32])));
    assert_eq!(said, ["work-differs"]);
    assert_eq!((&verdict["have"], &verdict["need"]), (&3.into(), &4.into()));
    // Who leaves its `work` away cannot be found out.
    let (said, verdict) = copied("qk-unmarked", None);
    assert_eq!(said, ["counts"]);
    assert_eq!(verdict["decision"], "trusted", "{verdict}");
}

#[test]
fn a_publishers_lock_that_rebuilders_do_not_read() {
    let mut ground = Ground::new();
    let registry = registry(&mut ground);
    let case = tiny(&ground, &registry, "qk-locked", "\"\"", &[]);
    let lock = b"# Other dependencies than the author's.\nversion = 4\n";
    let mut key = case.right.key.clone();
    key.flags.lock = Sha256::of(lock);
    let other = forged(key, lock, TROJAN);
    ground.say(&["ann"], &other);
    ground.owner("bob");
    let ran = ground.lab.qk("bob", &["verify", &case.args[0]]);
    ran.failed(12, &["\"identical\":false"]);
    // What bob states is about the key with the author's lock.
    assert_eq!(ran.json()["key_id"], case.right.key.id().to_string());
    assert_eq!(ground.takes("", &case), DISPUTED);
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
    let registry = registry(&mut ground);
    let case = tiny(&ground, &registry, "qk-fickle", "env!(\"BUILT\")", &files);
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
