//! The machine and its node.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use insta::assert_snapshot;
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, send, until, wait};

use super::{Form, Shown};

pub(super) fn shown(shown: &mut Shown) {
    node(shown);
    service(shown);
    rest(shown);
}

fn node(shown: &mut Shown) {
    assert_snapshot!(listening(shown, BOB, Form::Text), @"
    listening on /ip4/127.0.0.1/tcp/PORT/p2p/PEER
    Ctrl-C stops
    ");
    assert_snapshot!(listening(shown, CAROL, Form::Json), @r#"{"schema":1,"event":"listening","peer":"PEER","addresses":["/ip4/127.0.0.1/tcp/PORT/p2p/PEER"],"gateway":null}"#);
    assert_snapshot!(shown.error(CLIENT, &["node", "--listen", "here"]), @r#"
    --- stderr
    error: address "here": invalid multiaddr
      hint: `qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration
    --- exit code 2
    "#);

    shown.lab.start_any(BOB);
    until("bob's node is a peer", || {
        let peers = shown.lab.qk(ALICE, &["peers"]).done();
        peers["peers"][0]["rtt_seconds"].is_number()
    });
    let status = shown.text(ALICE, &["status"]);
    assert_snapshot!(status.replace("N request,", "N requests,"), @"
    running for N s, process N, qk VERSION
    network   lab version 3, fresh for N days, 1 peer, N known, reachability public
              on /ip4/127.0.0.1/tcp/PORT
    peers     1
    received  N B
    sent  N B, 0 readers now
    answered  N requests, 0 for blocks
    shares    what was built here, 0 artifacts announced; this month N B given, N B taken
    store     0 artifacts, N B of N.N GiB (0 %), 0 statements
    home      DIR/alice
    peer id   PEER
    signs as  HASH
    ");
    assert_snapshot!(shown.json(ALICE, &["status"]), @r#"{"announced":0,"counters":{"blocks_answered":"…","readers":0,"received_bytes":"…","requests_answered":"…","sent_bytes":"…"},"downloads":[],"home":"DIR/alice","networks":[{"contacts":"…","expires":"…","external":["/ip4/127.0.0.1/tcp/PORT"],"fresh":true,"id":"HASH","listening":["/ip4/127.0.0.1/tcp/PORT"],"name":"lab","online":true,"peers":1,"private":false,"reachability":"public","relayed":[],"sent_bytes":"…","version":3}],"observer":"HASH","paused":[],"peer":"PEER","peers":1,"process":"…","running":true,"schema":1,"share":{"announces":true,"downloaded_bytes":"…","fetched":false,"gives":true,"leech":false,"uploaded_bytes":"…"},"store":{"artifact_bytes":"…","artifacts":0,"dir":"DIR/alice/store","journal_bytes":"…","live_bytes":"…","quota_bytes":"…","segments":0,"statements":"…"},"uptime_seconds":"…","version":"VERSION"}"#);
    assert_snapshot!(shown.text(CLIENT, &["status"]), @"
    no node is running: `qk node` starts one, `qk node install` for good
    network   lab version 3, fresh for N days, not connected
    store     0 artifacts, N B of N.N GiB (0 %), 0 statements
    home      DIR/client
    peer id   PEER
    signs as  HASH
    ");
    assert_snapshot!(shown.error(CLIENT, &["status", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk status [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
    assert_snapshot!(shown.text(CLIENT, &["peers"]), @"no node is running: `qk node` starts one, `qk node install` for good");
    assert_snapshot!(shown.text(ALICE, &["peers"]), @"PEER  lab         server  N.N ms  N s  qk/VERSION  from /ip4/127.0.0.1/tcp/PORT (tcp)");
    assert_snapshot!(shown.json(ALICE, &["peers"]), @r#"{"peers":[{"agent":"qk/VERSION","connected_seconds":"…","connections":[{"address":"/ip4/127.0.0.1/tcp/PORT","dialled":false,"transport":"tcp"}],"network":"lab","peer":"PEER","rtt_seconds":"…","server":true}],"running":true,"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["peers", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk peers [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");

    assert_snapshot!(shown.text(ALICE, &["node", "pause", "--for", "2h"]), @"paused: on request, for N min more");
    assert_snapshot!(shown.json(ALICE, &["node", "pause"]), @r#"{"paused":[{"reason":"request"}],"schema":1}"#);
    assert_snapshot!(shown.error(ALICE, &["node", "pause", "--for", "long"]), @r#"
    --- stderr
    error: invalid value 'long' for '--for <TIME>': "long" is no time such as 90s, 30m, 2h or 1d

    For more information, try '--help'.
    --- exit code 2
    "#);
    assert_snapshot!(shown.text(ALICE, &["node", "resume"]), @"not paused");
    assert_snapshot!(shown.json(ALICE, &["node", "resume"]), @r#"{"paused":[],"schema":1}"#);
    assert_snapshot!(shown.error(ALICE, &["node", "resume", "now"]), @"
    --- stderr
    error: unexpected argument 'now' found

    Usage: qk node resume [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
    let key = shown.text(ALICE, &["node", "gateway-key"]);
    assert!(key.starts_with("RW") && key.trim_end().len() == 56, "{key}");
    assert!(
        shown
            .json(ALICE, &["node", "gateway-key"])
            .contains("\"key\":\"RW")
    );
    assert_snapshot!(shown.error(ALICE, &["node", "gateway-key", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk node gateway-key [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
}

/// What a node says as soon as it listens.
fn listening(shown: &mut Shown, who: &str, form: Form) -> String {
    let mut args = vec!["node", "--listen", "/ip4/127.0.0.1/tcp/0"];
    if form == Form::Json {
        args.push("--json");
    }
    shown.saw(&args, form);
    let mut command = shown.command(who, &args);
    let mut node = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        let is_last = form == Form::Json || line.starts_with("Ctrl-C");
        said.push(line);
        if is_last {
            break;
        }
    }
    send(node.id(), "INT");
    assert_eq!(wait(&mut node).code(), Some(0));
    let said = said.join("\n");
    if form == Form::Json {
        let document = serde_json::from_str(&said).unwrap();
        assert_eq!(qk_tests::schema::check("node", &document), Ok(()));
    }
    shown.masked(&said)
}

fn service(shown: &mut Shown) {
    assert_snapshot!(shown.text(CLIENT, &["node", "install"]), @"
    wrote DIR/config/systemd/user/qk.service
    it gives others what is built and fetched here, so that they can find out what you fetched; `qk node install --no-share` keeps that to yourself, as does `fetched = false` below [share] in config.toml
    --- stderr
    error: no systemd runs for this user, so that the service was neither enabled nor started
      hint: then:
        systemctl --user daemon-reload
        systemctl --user enable --now qk.service
    --- exit code 1
    ");
    assert_snapshot!(shown.json(CLIENT, &["node", "install"]), @r#"{"changed":false,"enabled":false,"gives":true,"running":false,"schema":1,"scope":"user","shares_fetched":true,"undone":{"next":"systemctl --user daemon-reload\nsystemctl --user enable --now qk.service","why":"no systemd runs for this user, so that the service was neither enabled nor started"},"unit":"DIR/config/systemd/user/qk.service"}"#);
    assert_snapshot!(shown.error(CLIENT, &["node", "install", "--share", "--no-share"]), @"
    --- stderr
    error: the argument '--share' cannot be used with '--no-share'

    Usage: qk node install --share

    For more information, try '--help'.
    --- exit code 2
    ");
    assert_snapshot!(shown.text(CLIENT, &["node", "uninstall"]), @"removed DIR/config/systemd/user/qk.service");
    assert_snapshot!(shown.json(CLIENT, &["node", "uninstall"]), @r#"{"files":[],"schema":1}"#);
    assert_snapshot!(shown.error(CLIENT, &["node", "uninstall", "--yes"]), @"
    --- stderr
    error: the following required arguments were not provided:
      --purge

    Usage: qk node uninstall --purge --yes

    For more information, try '--help'.
    --- exit code 2
    ");
}

fn rest(shown: &mut Shown) {
    let pages = shown.path("pages");
    let file = shown.path("qk.toml");
    assert_snapshot!(shown.text(CLIENT, &["man", &pages]), @"55 manual pages in DIR/pages");
    assert!(
        shown
            .json(CLIENT, &["man", &pages])
            .contains("DIR/pages/qk-man.1")
    );
    std::fs::write(&file, "").unwrap();
    assert_snapshot!(shown.error(CLIENT, &["man", &file]), @"
    --- stderr
    error: manual pages in DIR/qk.toml: File exists (os error 17)
      hint: name a directory that you may write to
    --- exit code 1
    ");

    let script = shown.text(CLIENT, &["completions", "bash"]);
    assert!(script.starts_with("_qk()"), "{script}");
    assert_snapshot!(shown.error(CLIENT, &["completions", "shell"]), @"
    --- stderr
    error: invalid value 'shell' for '<SHELL>'
      [possible values: bash, elvish, fish, powershell, zsh]

    For more information, try '--help'.
    --- exit code 2
    ");

    assert_snapshot!(shown.error(CLIENT, &["demo", "--crate", "no crate"]), @r#"
    --- stderr
    error: invalid value 'no crate' for '--crate <CRATE[@VER]>': artifact key: name "no crate" is not allowed: letters, digits, - and _, a letter first

    For more information, try '--help'.
    --- exit code 2
    "#);
    assert_snapshot!(shown.error(CLIENT, &["setup", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk setup [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
    // What is in order here depends on the machine.
    for command in ["setup", "doctor"] {
        let said = shown.text(CLIENT, &[command]);
        assert!(said.lines().any(|line| line.starts_with("ok ")), "{said}");
        let said = shown.json(CLIENT, &[command]);
        assert!(said.contains("\"about\":\"sandbox\""), "{said}");
    }
    assert_snapshot!(shown.error(CLIENT, &["doctor", "more"]), @"
    --- stderr
    error: unexpected argument 'more' found

    Usage: qk doctor [OPTIONS]

    For more information, try '--help'.
    --- exit code 2
    ");
}
