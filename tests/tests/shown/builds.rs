//! What the sandbox builds: published, rebuilt, compared.

use insta::assert_snapshot;
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT};
use qk_tests::registry::{BROKEN, GOOD};

use super::Shown;

/// A program that says when it was built.
const FICKLE: &str = "fn main() {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    println!(\"cargo:rustc-env=WHEN={now}\");
}
";

pub(super) fn shown(shown: &mut Shown) {
    shown.registry.add("good", "1.0.0", GOOD, None);
    shown.registry.add("bad", "1.0.0", BROKEN, None);
    let when = "fn main() { println!(\"{}\", env!(\"WHEN\")); }\n";
    shown.registry.add("clock", "1.0.0", when, Some(FICKLE));

    assert_snapshot!(shown.text(ALICE, &["build", "good"]), @"
    good 1.0.0 for x86_64-unknown-linux-gnu in N s
      root    HASH
      size  N.N KiB
      key     HASH
      network lab: the observation is held by 2 nodes, 2 told that the artifact is here
      a second build with other jobs and another host name gave the same
    --- stderr
    building good 1.0.0
    building good 1.0.0, again
    ");
    assert_snapshot!(shown.json(ALICE, &["build", "good", "--no-publish"]), @r#"{"environment":"…","key_id":"HASH","name":"good","network":"lab","root":"HASH","schema":1,"seconds":"…","sha256":"HASH","size":"…","target":"x86_64-unknown-linux-gnu","version":"1.0.0"}"#);
    let failed = shown.error(ALICE, &["build", "bad", "--no-publish"]);
    assert_snapshot!(without_log(&failed), @"
    --- stderr
    building bad 1.0.0
    error: bad@1.0.0: error[E0308]: mismatched types
      hint: the log ends with:
    …
    --- exit code 13
    ");

    assert_snapshot!(shown.text(BOB, &["verify", "good"]), @"
    good 1.0.0 rebuilt in N s: root HASH
      identical to 1 other observation
      work    of 1 earlier observation: built, not copied
      published in lab: held by 2 nodes
    --- stderr
    building good 1.0.0
    ");
    assert_snapshot!(shown.json(CAROL, &["verify", "good"]), @r#"{"identical":true,"key_id":"HASH","name":"good","network":"lab","others":[{"observers":2,"root":"HASH","size":"…"}],"principal":"carol","published":{"holders":3,"told":0},"root":"HASH","schema":1,"seconds":"…","sha256":"HASH","size":"…","statement":"HASH","target":"x86_64-unknown-linux-gnu","version":"1.0.0","work":{"agree":["HASH","HASH"],"differ":[]}}"#);
    assert_snapshot!(shown.text(CAROL, &["verify", "--status"]), @"nothing was watched here yet: `qk verify --watch`");
    assert_snapshot!(shown.json(CAROL, &["verify", "--status"]), @r#"{"cpu_seconds":"…","failed":{},"queue":[],"rebuilt":{},"results":[],"running":false,"schema":1,"waits":[]}"#);
    let failed = shown.error(BOB, &["verify", "bad"]);
    assert_snapshot!(without_log(&failed), @"
    --- stderr
    building bad 1.0.0
    error: bad@1.0.0: error[E0308]: mismatched types
      hint: the log ends with:
    …
    --- exit code 13
    ");

    assert_snapshot!(shown.text(CLIENT, &["repro", "good"]), @r#"
    good 1.0.0 for x86_64-unknown-linux-gnu: reproducible
      root HASH  N.N KiB, N s on OS
      root HASH  N.N KiB, N s on OS
      the linker was given the same
      badge {"schemaVersion":1,"label":"reproducible","message":"yes","color":"brightgreen"}
    --- stderr
    building good 1.0.0
    building good 1.0.0, again
    "#);
    assert_snapshot!(shown.json(CLIENT, &["repro", "good"]), @r#"{"badge":{"color":"brightgreen","label":"reproducible","message":"yes","schemaVersion":1},"builds":[{"os":"…","root":"HASH","seconds":"…","size":"…"},{"os":"…","root":"HASH","seconds":"…","size":"…"}],"key_id":"HASH","name":"good","reproducible":true,"same_root":true,"same_work":true,"schema":1,"target":"x86_64-unknown-linux-gnu","version":"1.0.0"}"#);
    assert_snapshot!(shown.error(CLIENT, &["repro", "clock"]), @r#"
    clock 1.0.0 for x86_64-unknown-linux-gnu: NOT reproducible
      root HASH  N.N KiB, N s on OS
      root HASH  N.N KiB, N s on OS
      first difference in what was linked: the package itself (clock) (likely a time)
      bin/clock differs: N.N KiB and N.N KiB, in .rodata
      badge {"schemaVersion":1,"label":"reproducible","message":"no","color":"red"}
    --- stderr
    building clock 1.0.0
    building clock 1.0.0, again
    error: clock 1.0.0 is not reproducible: the package itself (clock) differs first (likely a time)
      hint: `--json` has all that differs
    --- exit code 12
    "#);

    let log = shown.text(CLIENT, &["log", "good", "--by", ALICE]);
    assert!(log.contains("Compiling good v1.0.0 (/qk/src)"), "{log}");
    assert_snapshot!(shown.json(CLIENT, &["log", "good", "--by", ALICE]), @r#"{"digest":"HASH","log":"…","observer":"HASH","principal":"alice","schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["log", "good", "--by", "dave"]), @"
    --- stderr
    error: no build of good by dave is known
      hint: `qk proofs good` shows who observed it
    --- exit code 10
    ");
}

/// What is qk's of what is said about a build that failed; the rest is the compiler's.
fn without_log(said: &str) -> String {
    let (before, log) = said.split_once("the log ends with:\n").unwrap();
    assert!(log.contains("error[E0308]"), "{log}");
    let (_, after) = log.rsplit_once("--- ").unwrap();
    format!("{before}the log ends with:\n…\n--- {after}")
}
