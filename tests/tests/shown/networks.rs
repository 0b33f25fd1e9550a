//! Networks: founded, joined, changed, signed apart.

use std::fs;

use insta::assert_snapshot;
use qk_tests::lab::{ALICE, BOB, CLIENT};

use super::Shown;

pub(super) fn shown(shown: &mut Shown) {
    founded(shown);
    asked_for(shown);
    changed(shown);
    drafted(shown);
}

fn founded(shown: &mut Shown) {
    let output = shown.path("own.qknet");
    let at = "/ip4/192.0.2.1/tcp/4433";
    for who in ["dave", "erin", "frank"] {
        shown.lab.add(who, "");
    }
    let new = [
        "network",
        "new",
        "own",
        "--principal",
        "dave",
        "--bootstrap",
        at,
    ];
    let new = [&new[..], &["--output", &output]].concat();
    assert_snapshot!(shown.text("dave", &new), @"
    network own (version 1)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   dave (publisher, verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/192.0.2.1/tcp/PORT/p2p/PEER
    written to DIR/own.qknet: others run `qk join DIR/own.qknet`
    ");
    assert_snapshot!(shown.json("erin", &new), @r#"{"blocked":[],"bootstrap":["/ip4/192.0.2.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"committee":{"seed":"HASH","size":"…"},"file":"DIR/own.qknet","format":1,"fresh":true,"name":"own","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"dave","roles":["publisher","verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":1}"#);
    assert_snapshot!(shown.error("frank", &["network", "new", "own", "--threshold", "0"]), @"
    --- stderr
    error: network manifest: policy: a threshold of 0 would trust what nobody observed
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    let file = shown.lab.network_file();
    let file = file.to_str().unwrap();
    assert_snapshot!(shown.text("dave", &["join", file, "--first"]), @"
    network lab (version 3)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
    ");
    assert_snapshot!(shown.json("frank", &["join", file]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":[],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":3}"#);
    assert_snapshot!(shown.error("frank", &["join", &shown.path("no.qknet")]), @"
    --- stderr
    error: DIR/no.qknet: No such file or directory (os error 2)
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    assert_snapshot!(shown.text("dave", &["network", "order", "own"]), @"
    1. own (HASH)
    2. lab (HASH)
    ");
    assert_snapshot!(shown.json("dave", &["network", "order"]), @r#"{"networks":[{"name":"lab","network":"HASH","private":false},{"name":"own","network":"HASH","private":false}],"schema":1}"#);
    assert_snapshot!(shown.error("dave", &["network", "order", "work"]), @"
    --- stderr
    error: no such network is joined
      hint: joined are: own, lab
    --- exit code 10
    ");

    assert_snapshot!(shown.text(CLIENT, &["network", "show", "--history"]), @"
    network lab (version 3)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
      version 3
      ! principal carol (verifier; HASH) is added
      version 2
      ! principal bob (verifier; HASH) is added
    ");
    assert_snapshot!(shown.json(CLIENT, &["network", "show"]), @r#"{"networks":[{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":[],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":3}],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["network", "show", "work"]), @"
    --- stderr
    error: no such network is joined
      hint: joined are: lab
    --- exit code 10
    ");
}

fn asked_for(shown: &mut Shown) {
    assert_snapshot!(shown.text(BOB, &["network", "key"]), @"
    HASH
    (peer id PEER)
    ");
    assert_snapshot!(shown.json(BOB, &["network", "key", "--root"]), @r#"{"key":"HASH","peer":"PEER","schema":1}"#);
    assert_snapshot!(shown.error(BOB, &["network", "key", "--root", "--node"]), @"
    --- stderr
    error: the argument '--root' cannot be used with '--node'

    Usage: qk network key --root

    For more information, try '--help'.
    --- exit code 2
    ");

    let ask = ["network", "request", "--role", "mirror", "--name"];
    let asked = shown.text("frank", &[&ask[..], &["frank"]].concat());
    let (block, said) = asked.split_once("--- stderr\n").unwrap();
    assert!(block.starts_with("{\"payload\":\""), "{block}");
    assert_snapshot!(said, @"for whoever runs lab: `qk network add FILE`, with this in the file");
    assert_snapshot!(shown.json("frank", &[&ask[..], &["frank"]].concat()), @r#"{"block":"…","format":1,"issued":"N","keys":["HASH"],"name":"frank","network":"HASH","roles":["mirror"],"schema":1,"targets":[],"toolchains":[]}"#);
    assert_snapshot!(shown.error("frank", &[&ask[..], &[""]].concat()), @"
    --- stderr
    error: request: a name, target or toolchain that is empty, too long or has control characters
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    let file = shown.path("frank.request");
    let block = shown
        .lab
        .qk("frank", &[&ask[..], &["frank"]].concat())
        .done();
    fs::write(&file, block["block"].as_str().unwrap()).unwrap();
    assert_snapshot!(shown.text(ALICE, &["network", "add", &file]), @"
    network lab (version 4)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      principal   frank (mirror)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
      ! principal frank (mirror; HASH) is added
    --- stderr
    frank asked N s ago, signed by each of its keys
    ");
    let key = shown.lab.qk("erin", &["network", "key"]).done();
    let key = key["key"].as_str().unwrap();
    assert_snapshot!(shown.json(ALICE, &["network", "add", "erin", key, "--role", "verifier"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principal erin (verifier; HASH) is added","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"erin","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"frank","roles":["mirror"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":5}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "add", "erin"]), @"
    --- stderr
    error: erin: No such file or directory (os error 2)
      hint: `qk network add NAME KEY` adds a key by hand
    --- exit code 2
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "state", key, "retired"]), @"
    network lab (version 6)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      principal   frank (mirror)
      principal   erin (verifier)
                  key HASH is retired
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
        principal erin: key HASH: active becomes retired
    ");
    assert_snapshot!(shown.json(ALICE, &["network", "state", key, "active"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principal erin: key HASH: retired becomes active","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"erin","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"frank","roles":["mirror"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":7}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "state", key, "active"]), @"
    --- stderr
    error: that is so already: nothing was changed
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "change", "erin", "--name", "eve"]), @"
    network lab (version 8)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      principal   frank (mirror)
      principal   eve (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
        name of a principal: erin becomes eve
    ");
    assert_snapshot!(shown.json(ALICE, &["network", "change", "eve", "--role", "publisher"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principal eve: verifier becomes publisher","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"eve","roles":["publisher"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"frank","roles":["mirror"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":9}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "change", "nobody", "--name", "bob"]), @"
    --- stderr
    error: no principal nobody
      hint: there are: alice, bob, carol, frank, eve
    --- exit code 10
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "remove", "eve"]), @"
    network lab (version 10)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      principal   frank (mirror)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
        principal eve is removed
    ");
    assert_snapshot!(shown.json(ALICE, &["network", "remove", "frank"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principal frank is removed","widens":false}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":11}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "remove", "eve"]), @"
    --- stderr
    error: no principal eve
      hint: there are: alice, bob, carol
    --- exit code 10
    ");
}

fn changed(shown: &mut Shown) {
    let hash = "5d".repeat(32);
    let block = ["network", "block", "--reason", "a trojan", "--root", &hash];
    assert_snapshot!(shown.text(ALICE, &block), @"
    network lab (version 12)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
      blocked     root HASH: a trojan
        root HASH is blocked: a trojan
    ");
    assert_snapshot!(shown.text(ALICE, &["network", "unblock", &hash]), @"
    network lab (version 13)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
      ! root HASH is no longer blocked
    ");
    assert_snapshot!(shown.json(ALICE, &block), @r#"{"blocked":[{"reason":"a trojan","root":"HASH"}],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"root HASH is blocked: a trojan","widens":false}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":14}"#);
    assert_snapshot!(shown.json(ALICE, &["network", "unblock", &hash]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"root HASH is no longer blocked","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":15}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "block", "--reason", "a trojan"]), @"
    --- stderr
    error: the following required arguments were not provided:
      <--key <ID>|--root <ROOT>>

    Usage: qk network block --reason <REASON> <--key <ID>|--root <ROOT>>

    For more information, try '--help'.
    --- exit code 2
    ");
    assert_snapshot!(shown.error(ALICE, &["network", "unblock", &hash]), @"
    --- stderr
    error: HASH is not blocked
      hint: `qk network show` names what is blocked
    --- exit code 10
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "set", "--threshold", "3"]), @"
    network lab (version 16)
      fingerprint HASH
      timestamp   in force
      trusts      what 3 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
        principals that have to agree: 2 becomes 3
    ");
    assert_snapshot!(shown.json(ALICE, &["network", "set", "--threshold", "2"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principals that have to agree: 3 becomes 2","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":17}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "set", "--threshold", "2"]), @"
    --- stderr
    error: that is so already: nothing was changed
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    assert_snapshot!(shown.text(CLIENT, &["network", "accept"]), @"network lab: everything up to version 3 counts");
    assert_snapshot!(shown.json(CLIENT, &["network", "accept"]), @r#"{"changes":[],"name":"lab","network":"HASH","schema":1,"version":3}"#);
    assert_snapshot!(shown.error(CLIENT, &["network", "accept", "work"]), @"
    --- stderr
    error: no such network is joined
      hint: joined are: lab
    --- exit code 10
    ");

    let file = shown.path("lab.toml");
    let toml = shown.text(ALICE, &["network", "show", "--toml"]);
    assert!(toml.starts_with("format = "), "{toml}");
    let manifest = |shown: &Shown, from: &str, to: &str| {
        let joined = shown.lab.joined(ALICE);
        let toml = joined.network.manifest().to_toml().unwrap();
        fs::write(&file, toml.replace(from, to)).unwrap();
    };
    let [two, three] = ["threshold = 2", "threshold = 3"];
    manifest(shown, two, three);
    assert_snapshot!(shown.text(ALICE, &["network", "edit", &file]), @"
    network lab (version 18)
      fingerprint HASH
      timestamp   in force
      trusts      what 3 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
        principals that have to agree: 2 becomes 3
    ");
    manifest(shown, three, two);
    assert_snapshot!(shown.json(ALICE, &["network", "edit", &file]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"principals that have to agree: 3 becomes 2","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":19}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "edit", &file]), @"
    --- stderr
    error: that is so already: nothing was changed
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "renew"]), @"
    network lab (version 19)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
    ");
    assert_snapshot!(shown.json(ALICE, &["network", "renew"]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":19}"#);
    assert_snapshot!(shown.error(BOB, &["network", "renew"]), @"
    --- stderr
    error: the timestamp key of this network, HASH, is not on this machine
      hint: run this where it is, beside the node that renews it
    --- exit code 2
    ");
}

fn drafted(shown: &mut Shown) {
    let key = shown.lab.qk(BOB, &["network", "key", "--root"]).done();
    let key = key["key"].as_str().unwrap();
    let (one, two) = (shown.path("one.qkdraft"), shown.path("two.qkdraft"));
    let add = [
        "network",
        "root",
        "--add",
        key,
        "--threshold",
        "2",
        "--draft",
    ];
    assert_snapshot!(shown.text(ALICE, &[&add[..], &[&one]].concat()), @"
    network lab, version 20
      fingerprint HASH
      ! root key HASH is added
        root keys that have to sign: 1 becomes 2
      missing     0 of 1 signatures by root keys of version 19
                  HASH
      missing     0 of 2 signatures by root keys of version 20
                  HASH
                  HASH
    written to DIR/one.qkdraft: run `qk network sign DIR/one.qkdraft` where root keys are
    ");
    assert_snapshot!(shown.json(ALICE, &[&add[..], &[&two]].concat()), @r#"{"changes":[{"text":"root key HASH is added","widens":true},{"text":"root keys that have to sign: 1 becomes 2","widens":false}],"draft":"DIR/two.qkdraft","name":"lab","network":"HASH","quorums":[{"have":0,"keys_of":19,"missing":["HASH"],"need":1},{"have":0,"keys_of":20,"missing":["HASH","HASH"],"need":2}],"ready":false,"schema":1,"signers":[],"version":20}"#);
    assert_snapshot!(shown.error(ALICE, &["network", "root", "--threshold", "9"]), @"
    --- stderr
    error: network manifest: a root threshold between 1 and the number of root keys is needed
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");

    assert_snapshot!(shown.text(ALICE, &["network", "sign", &one, "--yes"]), @"
    network lab, version 20
      fingerprint HASH
      ! root key HASH is added
        root keys that have to sign: 1 becomes 2
      signed by   HASH
      missing     1 of 2 signatures by root keys of version 20
                  HASH
    written to DIR/one.qkdraft: run `qk network sign DIR/one.qkdraft` where root keys are
    ");
    assert_snapshot!(shown.json(BOB, &["network", "sign", &one, "--yes"]), @r#"{"changes":[{"text":"root key HASH is added","widens":true},{"text":"root keys that have to sign: 1 becomes 2","widens":false}],"draft":"DIR/one.qkdraft","name":"lab","network":"HASH","quorums":[{"have":1,"keys_of":19,"missing":[],"need":1},{"have":2,"keys_of":20,"missing":[],"need":2}],"ready":true,"schema":1,"signers":["HASH","HASH"],"version":20}"#);
    assert_snapshot!(shown.error(CLIENT, &["network", "sign", &two, "--yes"]), @"
    --- stderr
    error: no root key of this network is on this machine
      hint: `qk network key --root` prints this machine's, for `qk network root --add`
    --- exit code 2
    ");

    assert_snapshot!(shown.error(ALICE, &["network", "publish", &two]), @"
    --- stderr
    error: network manifest version 20: signed by 0 of the 1 root keys needed (those of version 19)
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    ");
    assert_snapshot!(shown.text(ALICE, &["network", "publish", &one]), @"
    network lab (version 20)
      fingerprint HASH
      timestamp   in force
      trusts      what 2 principals observed alike
      principal   alice (publisher, verifier)
      principal   bob (verifier)
      principal   carol (verifier)
      builds      x86_64-unknown-linux-gnu with rustc RUSTC
      bootstrap   /ip4/127.0.0.1/tcp/PORT/p2p/PEER
      signed by   2 of 2 root keys
      ! root key HASH is added
        root keys that have to sign: 1 becomes 2
    ");
    let back = ["network", "root", "--threshold", "1", "--draft", &two];
    std::fs::remove_file(&two).unwrap();
    for args in [&back[..], &["network", "sign", &two, "--yes"]] {
        shown.lab.qk(ALICE, args).done();
    }
    shown
        .lab
        .qk(BOB, &["network", "sign", &two, "--yes"])
        .done();
    assert_snapshot!(shown.json(ALICE, &["network", "publish", &two]), @r#"{"blocked":[],"bootstrap":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"builds":[{"linker":{"zig":{"glibc":"2.17","wheel":"HASH"}},"recipe":1,"rustc":"…","target":"x86_64-unknown-linux-gnu"}],"changes":[{"text":"root keys that have to sign: 2 becomes 1","widens":true}],"committee":{"seed":"HASH","size":"…"},"format":1,"fresh":true,"name":"lab","network":"HASH","own_roles":["publisher","verifier"],"policy":{"count":"any","on_dissent":"refuse","rebuild_percent":0,"threshold":2},"principals":[{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"alice","roles":["publisher","verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"bob","roles":["verifier"],"targets":[],"toolchains":[]},{"id":"HASH","keys":[{"key":"HASH","state":"active"}],"name":"carol","roles":["verifier"],"targets":[],"toolchains":[]}],"registries":["registry+https://github.com/rust-lang/crates.io-index"],"root":{"keys":["HASH","HASH"],"threshold":1},"schema":1,"timestamp":"HASH","timestamp_expires":"N","timestamp_issued":"N","version":21}"#);
}
