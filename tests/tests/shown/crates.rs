//! Crates that others built: fetched, installed, run, looked at, and the tools of a project.

use std::fs;

use insta::assert_snapshot;
use qk_tests::lab::{ALICE, CAROL, CLIENT};
use qk_tests::registry::GOOD;

use super::Shown;

pub(super) fn shown(shown: &mut Shown) {
    shown.prove("tool", "1.0.0");
    installed(shown);
    run(shown);
    looked_at(shown);
    disputed(shown);
    stored(shown);
    project(shown);
}

fn installed(shown: &mut Shown) {
    let root = shown.path("installed");
    let root = &*root;
    assert_snapshot!(shown.text(CLIENT, &["fetch", "tool", "--root", root, "--dry-run", "--explain"]), @"
    tool 1.0.0  would be fetched, N.N KiB, 2 of 3 principals, newest N s ago
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
    ");
    assert_snapshot!(shown.json(CLIENT, &["fetch", "tool", "--root", root, "--dry-run"]), @r#"{"crates":[],"planned":[{"bytes":"…","how":"network","name":"tool","network":"lab","observations":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"principals":3,"root":"HASH","target":"x86_64-unknown-linux-gnu","version":"1.0.0"}],"schema":1,"seconds":"…"}"#);
    assert_snapshot!(shown.text(CLIENT, &["fetch", "tool@1.0.0", "--root", root]), @"
    tool 1.0.0  N.N KiB  2 of 3 principals, newest N s ago
      installed DIR/installed/bin/tool
    --- stderr
    for the first time something is to be taken from network lab
      fingerprint HASH
      who vouches
        alice  publisher, verifier
        bob    verifier
        carol  verifier
      what is trusted
        what 2 of them observed alike
        where one differs, nothing
    ");
    assert_snapshot!(shown.json(CLIENT, &["fetch", "tool", "--root", root, "--force"]), @r#"{"crates":[{"archive":"DIR/client/store/blobs/HH/HASH.tar","blocks_verified":2,"bytes":"…","how":"store","installed":["DIR/installed/bin/tool"],"key_id":"HASH","lock":"HASH","name":"tool","network":"lab","observations":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"principals":3,"providers":[],"rebuilt":false,"root":"HASH","source":"HASH","stages":"…","version":"1.0.0","yanked":false}],"schema":1,"seconds":"…"}"#);
    assert_snapshot!(shown.text(CLIENT, &["fetch", "tool", "--root", root]), @"tool 1.0.0  is up to date");
    assert_snapshot!(shown.error(CLIENT, &["fetch", "absent", "--root", root]), @"
    --- stderr
    error: there is no crate absent in crates.io
      hint: `qk search` looks for crates, `qk store ls` lists what is here
    --- exit code 10
    ");
    assert_snapshot!(shown.error(CLIENT, &["fetch", "tool", "absent", "--root", root]), @"
    tool 1.0.0  is up to date
    2 crates: 1 up to date, 1 failed: absent
    --- stderr
    error: there is no crate absent in crates.io
      hint: `qk search` looks for crates, `qk store ls` lists what is here
    --- exit code 10
    ");
    assert_snapshot!(shown.error(CLIENT, &["fetch"]), @"
    --- stderr
    error: no crate is named, and there is no qk.toml in this directory
      hint: `qk fetch CRATE`, or a qk.toml with [tools]
    --- exit code 2
    ");
    assert_snapshot!(shown.error(CLIENT, &["fetch", "tool", "--profile", "dev"]), @"
    --- stderr
    error: --profile dev: artifacts are built as release; under another profile it is another artifact, which nobody observes
      hint: `cargo install CRATE --profile dev` builds it here
    --- exit code 2
    ");
    assert_snapshot!(shown.error(CLIENT, &["fetch", "tool", "--examples"]), @"
    --- stderr
    error: --examples: an artifact has the executables of a crate, and none of its examples
      hint: `cargo install CRATE --examples` builds it here
    --- exit code 2
    ");

    assert_snapshot!(shown.text(CLIENT, &["list", "--root", root]), @"
    tool v1.0.0:
        tool
    ");
    assert_snapshot!(shown.json(CLIENT, &["list", "--root", root]), @r#"{"packages":[{"all_features":false,"bins":["tool"],"features":[],"name":"tool","no_default_features":false,"partial":false,"profile":"release","rustc":"…","source":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0","version_req":null}],"schema":1}"#);
    let file = shown.path("file");
    fs::write(&file, "").unwrap();
    assert_snapshot!(shown.error(CLIENT, &["list", "--root", &file]), @"
    --- stderr
    error: DIR/file/.crates.toml: Not a directory (os error 20)
      hint: `qk doctor` says what is not in order here; QK_LOG=debug tells more
    --- exit code 1
    ");

    assert_snapshot!(shown.text(CLIENT, &["fetch", "tool@^1", "--root", root, "--force"]), @"
    tool 1.0.0  N.N KiB  2 of 3 principals, newest N s ago
      installed DIR/installed/bin/tool
    ");
    shown.prove("tool", "1.1.0");
    assert_snapshot!(shown.text(CLIENT, &["upgrade", "--root", root]), @"
    tool 1.1.0  N.N KiB  2 of 3 principals, newest N s ago
      installed DIR/installed/bin/tool, in place of 1.0.0
    ");
    assert_snapshot!(shown.json(CLIENT, &["upgrade", "--root", root]), @r#"{"crates":[],"schema":1,"seconds":"…","up_to_date":[{"name":"tool","version":"1.1.0"}]}"#);
    assert_snapshot!(shown.error(CLIENT, &["upgrade", "absent", "--root", root]), @"
    --- stderr
    error: absent is not installed
      hint: `qk fetch absent` installs it
    --- exit code 10
    ");

    assert_snapshot!(shown.text(CLIENT, &["uninstall", "tool", "--root", root]), @"tool 1.1.0  removed DIR/installed/bin/tool");
    shown.text(CLIENT, &["fetch", "tool", "--root", root]);
    assert_snapshot!(shown.json(CLIENT, &["uninstall", "tool", "--root", root]), @r#"{"crates":[{"executables":["DIR/installed/bin/tool"],"name":"tool","version":"1.1.0"}],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["uninstall", "tool", "--root", root]), @"
    --- stderr
    error: tool is not installed in DIR/installed
      hint: `qk list` shows what is installed
    --- exit code 10
    ");
}

fn run(shown: &mut Shown) {
    assert_snapshot!(shown.text(CLIENT, &["run", "tool@1.1.0", "--", "given"]), @"
    tool 1.1.0
    given
    ");
    assert_snapshot!(shown.error(CLIENT, &["run", "tool@1.1.0", "--bin", "other"]), @"
    --- stderr
    error: tool@1.1.0 has no executable other
      hint: --bin names one of: tool
    --- exit code 10
    ");
}

fn looked_at(shown: &mut Shown) {
    assert_snapshot!(shown.text(CLIENT, &["search", "tool"]), @"
    tool 1.1.0               x86_64-unknown-linux-gnu
        proven: 2 principals agree, newest N s ago, N.N KiB, in the store
    ");
    assert_snapshot!(shown.json(CLIENT, &["search", "tool", "--offline"]), @r#"{"hits":[{"default_features":true,"executables":["tool"],"here":true,"name":"tool","network":"lab","newest":"N","principals":2,"registry":"registry+https://github.com/rust-lang/crates.io-index","root":"HASH","size":"…","state":"proven","target":"x86_64-unknown-linux-gnu","version":"1.1.0"}],"left_out":0,"networks":[{"answered":false,"network":"lab","whole":true}],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["search", "absent"]), @"
    --- stderr
    error: nothing that is known is like that
      hint: a shorter QUERY finds more, and `qk fetch` takes what a network knows by its whole name
    --- exit code 10
    ");

    let bundle = shown.path("tool.qkproof");
    assert_snapshot!(shown.text(CLIENT, &["proofs", "tool@1.0.0"]), @"
    tool@1.0.0 in network lab (asked 2 of 2 known nodes)
      trusted: HASH
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
      assigned: 3; answered: WHO, WHO; silent: WHO
      drawn with seed HASH:
          0  HASH  WHO
          1  HASH  WHO
          2  HASH  WHO
      HASH given by 1 node
    ");
    assert_snapshot!(shown.json(CLIENT, &["proofs", "tool@1.0.0"]), @r#"{"networks":[{"answered":2,"known":2,"network":"lab","network_id":"HASH","others":0,"providers":[["HASH",1]],"release":{"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","version":"1.0.0"},"roll":{"release":{"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","version":"1.0.0"},"rounds":1,"seats":[{"called":true,"digest":"HASH","name":"alice","principal":"HASH","round":0,"said":"observation"},{"called":true,"digest":"HASH","name":"bob","principal":"HASH","round":0,"said":"observation"},{"called":true,"digest":"HASH","name":"carol","principal":"HASH","round":0,"said":"nothing"}],"seed":"HASH","size":"…","source":"HASH","target":"x86_64-unknown-linux-gnu"},"verdict":{"decision":"trusted","key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"key_id":"HASH","lines":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"notes":[],"proof":["HASH","HASH"],"root":"HASH","sha256":"HASH","size":"…"}}],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["proofs", "absent"]), @"
    --- stderr
    error: there is no crate absent in crates.io
      hint: `qk search` looks for crates, `qk store ls` lists what is here
    --- exit code 10
    ");
    assert_snapshot!(shown.text(CLIENT, &["proofs", "tool@1.0.0", "--export", &bundle]), @"
    DIR/tool.qkproof, N.N KiB: 2 statements, lab
      by itself: trusted: HASH
      `qk proofs --check DIR/tool.qkproof --network HASH` checks it
    ");
    assert_snapshot!(shown.json(CLIENT, &["proofs", "tool@1.0.0", "--export", &bundle]), @r#"{"bytes":"…","file":"DIR/tool.qkproof","key_id":"HASH","network":"lab","network_id":"HASH","schema":1,"statements":"…","verdict":{"decision":"trusted","key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"key_id":"HASH","lines":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"notes":[],"proof":["HASH","HASH"],"root":"HASH","sha256":"HASH","size":"…"}}"#);
    assert_snapshot!(shown.text(CLIENT, &["proofs", "--check", &bundle]), @"
    tool@1.0.0 for x86_64-unknown-linux-gnu
      network     lab, joined here
      fingerprint HASH
      judged      now, by version 3 of its manifest
      trusted: HASH
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
      root        blake3 HASH, 21504 bytes
                  sha256 HASH
      key         HASH
      source      sha256 HASH
      checked: every version of the manifest and its signatures, the timestamp, every statement's signature, the policy of the manifest and yours
      not checked: that the registry lists this source, that no dissent was left out of the bundle, what was taken back since, and the artifact itself (`b3sum` prints its root)
    ");
    assert_snapshot!(shown.json(CLIENT, &["proofs", "--check", &bundle]), @r#"{"as_of":"N","ended":false,"exit_code":0,"key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"key_id":"HASH","manifest_version":3,"network":"lab","network_id":"HASH","result":{"decision":"trusted","key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"key_id":"HASH","proof":["HASH","HASH"],"root":"HASH","sha256":"HASH","size":"…"},"schema":1,"timestamp_expires":"N","timestamp_issued":"N","trusted_network":"joined","verdict":{"decision":"trusted","key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"key_id":"HASH","lines":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"notes":[],"proof":["HASH","HASH"],"root":"HASH","sha256":"HASH","size":"…"}}"#);
    assert_snapshot!(shown.error("stranger", &["proofs", "--check", &bundle]), @"
    tool@1.0.0 for x86_64-unknown-linux-gnu
      network     lab, NOT known here
      fingerprint HASH
      judged      now, by version 3 of its manifest
      trusted: HASH
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
      root        blake3 HASH, 21504 bytes
                  sha256 HASH
      key         HASH
      source      sha256 HASH
      checked: every version of the manifest and its signatures, the timestamp, every statement's signature, the policy of the manifest and yours
      not checked: that the registry lists this source, that no dissent was left out of the bundle, what was taken back since, and the artifact itself (`b3sum` prints its root)
    --- stderr
    error: nobody here said that the principals of network HASH are to be believed
      hint: if they are: `--network FINGERPRINT`, or join the network
    --- exit code 11
    ");

    let bill = shown.path("tool.cdx.json");
    // A format of others, in full in the tests of what artifacts are made of.
    let said = shown.text(CLIENT, &["sbom", "tool@1.0.0"]);
    assert!(said.contains("\"bomFormat\": \"CycloneDX\""), "{said}");
    assert_snapshot!(shown.json(CLIENT, &["sbom", "tool@1.0.0", "--output", &bill]), @r#"{"file":"DIR/tool.cdx.json","schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["sbom", "absent"]), @"
    --- stderr
    error: no artifact of absent is in the store
      hint: `qk fetch` gets artifacts, `qk store ls` lists those that are here
    --- exit code 10
    ");

    let database = shown.path("advisory-db");
    let database = &*database;
    assert_snapshot!(shown.error(CLIENT, &["audit", "--database", database]), @"
    --- stderr
    error: no advisory database is at DIR/advisory-db
      hint: `git clone https://github.com/RustSec/advisory-db` gets it, `--database DIR` says where it is; `cargo audit` keeps one where qk looks
    --- exit code 10
    ");
    let advisories = shown.lab.dir().join("advisory-db/crates/tool");
    fs::create_dir_all(&advisories).unwrap();
    let advisory = "```toml\n[advisory]\nid = \"RUSTSEC-2020-0001\"\npackage = \"tool\"\ndate = \"2020-01-02\"\ninformational = \"unmaintained\"\n[versions]\npatched = []\n```\n\n# Nobody looks after tool\n\nMore about it.\n";
    fs::write(advisories.join("RUSTSEC-2020-0001.md"), advisory).unwrap();
    assert_snapshot!(shown.text(CLIENT, &["audit", "tool@1.0.0", "--database", database]), @"
    tool 1.0.0 for x86_64-unknown-linux-gnu, 1 package:
      unmaintained  tool 1.0.0  RUSTSEC-2020-0001: Nobody looks after tool
    0 vulnerabilities and 1 warning in 1 artifact, by 1 advisory in DIR/advisory-db
    ");
    assert_snapshot!(shown.json(CLIENT, &["audit", "tool@1.0.0", "--database", database]), @r#"{"advisories":1,"artifacts":[{"findings":[{"aliases":[],"id":"RUSTSEC-2020-0001","kind":"unmaintained","package":"tool","patched":[],"title":"Nobody looks after tool","version":"1.0.0"}],"name":"tool","packages":1,"root":"HASH","target":"x86_64-unknown-linux-gnu","version":"1.0.0"}],"database":"DIR/advisory-db","exit_code":0,"not_looked_at":[],"schema":1,"vulnerabilities":0,"warnings":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["audit", "tool@1.0.0", "--database", database, "--deny-warnings"]), @"
    tool 1.0.0 for x86_64-unknown-linux-gnu, 1 package:
      unmaintained  tool 1.0.0  RUSTSEC-2020-0001: Nobody looks after tool
    0 vulnerabilities and 1 warning in 1 artifact, by 1 advisory in DIR/advisory-db
    --- stderr
    error: 0 vulnerabilities and 1 warning
      hint: newer versions may have mended it: `qk fetch CRATE` gets the newest
    --- exit code 1
    ");
}

fn disputed(shown: &mut Shown) {
    shown.registry.add("fickle", "1.0.0", GOOD, None);
    let one = shown.release("fickle", "1.0.0", &[ALICE], "");
    let two = shown.release("fickle", "1.0.0", &[CAROL], ", built at 1795671000 s");
    assert_snapshot!(shown.error(CLIENT, &["fetch", "fickle", "--explain"]), @"
    --- stderr
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
    error: fickle@1.0.0: network lab does not vouch for it: disputed: principals observed different artifacts (HASH by WHO, HASH by WHO)
      hint: `qk proofs` shows who observed what; `qk build` builds it here
    --- exit code 12
    ");
    assert_snapshot!(shown.text(CLIENT, &["proofs", "fickle"]), @"
    fickle@1.0.0 in network lab (asked 2 of 2 known nodes)
      disputed: principals observed different artifacts (HASH by WHO, HASH by WHO)
        WHO  HASH  counts  N s ago
        WHO  HASH  counts  N s ago
      assigned: 3; answered: WHO, WHO; silent: WHO
      drawn with seed HASH:
          0  HASH  WHO
          1  HASH  WHO
          2  HASH  WHO
      HASH given by 1 node
    ");
    let (one, two) = (one.path(), two.path());
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    assert_snapshot!(shown.text(CLIENT, &["diff", one, one]), @"identical: HASH");
    assert_snapshot!(shown.json(CLIENT, &["diff", one, one]), @r#"{"files":[],"roots":["HASH","HASH"],"same_key":true,"schema":1}"#);
    // Which sections differ is the C compiler's to say.
    let said = shown.error(CLIENT, &["diff", one, two]);
    let lines = said.lines().filter(|line| !line.starts_with("    "));
    let sections = |line: &str| match line.split_once(", in .") {
        Some((before, _)) => format!("{before}, in SECTIONS"),
        None => line.to_owned(),
    };
    assert_snapshot!(lines.map(sections).collect::<Vec<_>>().join("\n"), @"
    HASH
    HASH
      irreproducible: the bytes show a cause in what was built
      bin/fickle differs: N.N KiB and N.N KiB, in SECTIONS
    --- exit code 12
    ");
    assert_snapshot!(shown.error(CLIENT, &["diff", one]), @"
    --- stderr
    error: two artifacts are compared, and this names 1 artifact
      hint: a crate stands for all artifacts that principals observed of it
    --- exit code 2
    ");
}

fn stored(shown: &mut Shown) {
    // In the order of the roots.
    let listed = shown.text(CLIENT, &["store", "ls"]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_snapshot!(listed.join("\n"), @"
    HASH  N.N KiB  tool 1.0.0 x86_64-unknown-linux-gnu  used N s ago
    HASH  N.N KiB  tool 1.1.0 x86_64-unknown-linux-gnu  used N s ago
    ");
    assert_snapshot!(shown.json(CLIENT, &["store", "ls"]), @r#"{"artifacts":[{"bytes":"…","executables":["tool"],"key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.0.0"},"pinned":false,"root":"HASH","used":"N"},{"bytes":"…","executables":["tool"],"key":{"flags":{"default_features":true,"features":[],"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"lock":"HASH","output":"bins","profile":"release","recipe":1,"rustc":"…","rustflags":[],"source":"HASH"},"name":"tool","registry":"registry+https://github.com/rust-lang/crates.io-index","target":"x86_64-unknown-linux-gnu","version":"1.1.0"},"pinned":false,"root":"HASH","used":"N"}],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["store", "ls", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk store ls [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
    let stored = shown.lab.qk(CLIENT, &["store", "ls"]).done();
    let root = stored["artifacts"][0]["root"].as_str().unwrap().to_owned();
    assert_snapshot!(shown.text(CLIENT, &["store", "pin", &root]), @"HASH is kept whatever the quota");
    assert_snapshot!(shown.json(CLIENT, &["store", "pin", &root]), @r#"{"changed":false,"pinned":true,"root":"HASH","schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["store", "pin", "root"]), @r#"
    --- stderr
    error: expected 64 lower-case hex digits, got "root"
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    "#);
    assert_snapshot!(shown.text(CLIENT, &["store", "unpin", &root]), @"HASH is no longer pinned");
    assert_snapshot!(shown.json(CLIENT, &["store", "unpin", &root]), @r#"{"changed":false,"pinned":false,"root":"HASH","schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["store", "unpin"]), @"
    --- stderr
    error: the following required arguments were not provided:
      <ROOT>

    Usage: qk store unpin <ROOT>

    For more information, try '--help'.
    --- exit code 2
    ");
    assert_snapshot!(shown.text(CLIENT, &["store", "gc"]), @"
    removed 0 artifacts: N.N KiB before, N.N KiB now
    removed 0 unpacked programs: N.N KiB before, N.N KiB now
    ");
    assert_snapshot!(shown.json(CLIENT, &["store", "gc"]), @r#"{"bytes_after":43136,"bytes_before":43136,"evicted":[],"journal":{"bytes_freed":0,"bytes_moved":0,"segments":0},"parts_removed":0,"programs":{"bytes_after":16208,"bytes_before":16208,"roots":[]},"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["store", "gc", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk store gc [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
    assert_snapshot!(shown.text(CLIENT, &["store", "fsck"]), @"everything is what its name says");
    assert_snapshot!(shown.json(CLIENT, &["store", "fsck"]), @r#"{"blob_bytes":"…","blobs":2,"damage":[],"frames":8,"schema":1}"#);
    let blob = shown.lab.blob(CLIENT, root.parse().unwrap());
    fs::write(blob, "something else").unwrap();
    assert_snapshot!(shown.error(CLIENT, &["store", "fsck"]), @"
    --- stderr
    error: 1 damaged: blob HASH: block 0 does not match its hash; moved to DIR/client/store/aside/HASH.tar.1
      hint: what was damaged was moved aside and is not served; `qk fetch` gets an artifact again
    --- exit code 15
    ");
}

fn project(shown: &mut Shown) {
    let project = shown.lab.dir().join("project/qk.toml");
    fs::write(&project, "[tools]\ntool = \"=1.0.0\"\n").unwrap();
    assert_snapshot!(shown.text(CLIENT, &["fetch"]), @"
    tool 1.0.0  N.N KiB  2 principals, newest N s ago, pinned
      runs tool
    DIR/project/.qk/bin: 1 tool; qk.lock written
    ");
    assert_snapshot!(shown.json(CLIENT, &["fetch", "--locked"]), @r#"{"bin":"DIR/project/.qk/bin","executables":{"tool":"HASH"},"schema":1,"up_to_date":true}"#);
    fs::write(&project, "[tools]\ntool = \"1\"\n").unwrap();
    assert_snapshot!(shown.error(CLIENT, &["fetch", "--locked"]), @"
    --- stderr
    error: qk.lock is not what qk.toml asks for: tool was locked when qk.toml asked for something else
      hint: `qk fetch` without --locked brings it in line
    --- exit code 2
    ");
    assert_snapshot!(shown.text(CLIENT, &["update", "--dry-run"]), @"tool 1.0.0 -> 1.1.0  trusted: HASH");
    assert_snapshot!(shown.text(CLIENT, &["update"]), @"
    tool 1.0.0 -> 1.1.0
    qk.lock written; `qk fetch` links what it pins
    ");
    assert_snapshot!(shown.json(CLIENT, &["update"]), @r#"{"lock_written":"…","schema":1,"tools":[{"from":"1.1.0","moved":false,"name":"tool","to":"1.1.0"}]}"#);
    assert_snapshot!(shown.error(CLIENT, &["update", "other"]), @"
    --- stderr
    error: qk.toml has no tool other
      hint: it has: tool
    --- exit code 2
    ");
    assert_snapshot!(shown.json(CLIENT, &["fetch"]), @r#"{"bin":"DIR/project/.qk/bin","lock_written":"…","schema":1,"tools":[{"bytes":"…","executables":["tool"],"how":"store","name":"tool","network":"lab","observations":[{"at":"N","effect":"counts","observer":"HASH","principal":"alice","root":"HASH","statement":"HASH"},{"at":"N","effect":"counts","observer":"HASH","principal":"bob","root":"HASH","statement":"HASH"}],"pinned":false,"root":"HASH","target":"x86_64-unknown-linux-gnu","version":"1.1.0"}],"up_to_date":false}"#);
    fs::remove_file(project).unwrap();
}
