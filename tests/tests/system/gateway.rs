//! The gateway of a node: what it serves, and what it tells those who watch it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use qk_tests::artifact::{Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, Lab, free_port, until};
use qk_tests::web::get;
use serde_json::Value;

/// The reference parser of the format, which is strict.
const PARSER: &str = "prometheus_client==0.22.1";
const PARSE: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
print(json.dumps([
    {'name': f.name, 'type': f.type, 'unit': f.unit, 'help': f.documentation,
     'samples': [{'name': s.name, 'labels': s.labels, 'value': s.value} for s in f.samples]}
    for f in text_string_to_metric_families(sys.stdin.read())]))
";

/// Configures a gateway for somebody's node, and says where it will be.
fn gateway(lab: &Lab, name: &str) -> String {
    let address = format!("127.0.0.1:{}", free_port());
    lab.configure(name, &format!("[gateway]\nlisten = \"{address}\"\n"));
    address
}

/// All samples, as name and labels; the last line says that nothing is missing.
fn samples(address: &str) -> BTreeMap<String, f64> {
    let (status, body) = get(address, "/metrics").expect("an answer");
    assert_eq!(status, 200);
    let text = String::from_utf8(body).expect("text");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a sample");
        (name.to_owned(), value.parse().expect("a number"))
    });
    samples.collect()
}

#[test]
fn a_node_serves_over_http_and_counts_what_it_does() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE);
    lab.start_alice();
    let (status, body) = get(&address, "/readyz").expect("an answer");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let before = samples(&address);

    let artifact = artifact_with(
        &lab.joined(ALICE).network,
        &Options {
            padding_bytes: 700_000,
            ..Options::default()
        },
    );
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let (status, body) = get(&address, &format!("/artifacts/{}", artifact.subject.root)).unwrap();
    assert_eq!(status, 200);
    assert!(body == fs::read(artifact.path()).unwrap(), "other bytes");
    lab.fetch(&[SPEC]).done();

    // The store's sizes are looked at every few seconds.
    let mut after = BTreeMap::new();
    until("the store was looked at again", || {
        after = samples(&address);
        after["qk_store_artifacts"] == 1.0
    });
    let size = artifact.subject.size as f64;
    let grew = |name: &str| after[name] - before[name];
    assert!(grew("qk_blocks_requests_total{status=\"ok\"}") >= 1.0);
    assert_eq!(grew("qk_blocks_requests_total{status=\"bad_range\"}"), 0.0);
    assert!(grew("qk_blocks_sent_bytes_total") >= size);
    assert!(grew("qk_index_requests_total{kind=\"get\"}") >= 1.0);
    assert!(grew("qk_index_requests_total{kind=\"put\"}") >= 1.0);
    assert_eq!(after["qk_statements"], 2.0);
    assert!(after["qk_store_bytes"] >= size);
    assert!(after["qk_store_quota_bytes"] > after["qk_store_bytes"]);
    let served = "qk_http_requests_total{route=\"artifacts\",status=\"200\"}";
    assert_eq!(after[served], 1.0);
    assert!(after["qk_http_sent_bytes_total"] >= size);
    assert_eq!(after["qk_fetches_total{outcome=\"network\"}"], 0.0);

    // What alice fetches herself counts, too: here, from her store.
    lab.qk(ALICE, &["store", "ls"]).done();
    let mut own = lab.fetch_command(ALICE, &[SPEC]);
    qk_tests::lab::run(&mut own).done();
    assert_eq!(
        samples(&address)["qk_fetches_total{outcome=\"store\"}"],
        1.0
    );
}

#[test]
fn a_client_counts_what_it_receives() {
    let mut lab = Lab::new();
    lab.start_alice();
    let address = gateway(&lab, BOB);
    lab.start_any(BOB);
    let artifact = artifact_with(
        &lab.joined(ALICE).network,
        &Options {
            padding_bytes: 700_000,
            ..Options::default()
        },
    );
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    qk_tests::lab::run(&mut lab.fetch_command(BOB, &[SPEC])).done();
    let after = samples(&address);
    assert_eq!(after["qk_fetches_total{outcome=\"network\"}"], 1.0);
    assert_eq!(
        after["qk_blocks_received_bytes_total"],
        artifact.subject.size as f64
    );
    let peers = after.iter().find(|(name, _)| name.starts_with("qk_peers{"));
    assert!(peers.is_some_and(|(_, number)| *number >= 1.0), "{after:?}");
}

#[test]
fn where_it_cannot_listen_it_says_so() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE);
    lab.start_alice();
    let listen = ["node", "--listen", "/ip4/127.0.0.1/tcp/0", "--gateway"];
    let with = |address: &str| lab.qk(BOB, &[&listen[..], &[address]].concat());
    with(&address).failed(1, &[&address, "in use"]);
    with("nowhere").failed(2, &["nowhere", "expected an IP address and a port"]);
    lab.configure(BOB, "[gateway]\nlisten = \"nowhere\"\n");
    lab.qk(BOB, &listen[..3]).failed(2, &["nowhere"]);
    lab.configure(BOB, "[gateway]\nlissen = \"127.0.0.1:0\"\n");
    lab.qk(BOB, &listen[..3]).failed(2, &["lissen"]);
}

#[test]
fn a_connection_to_the_gateway_does_not_keep_a_node_from_ending() {
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE);
    lab.start_alice();
    let mut held = TcpStream::connect(&address).unwrap();
    held.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        .unwrap();
    // Accepted before this one, which is answered.
    assert_eq!(get(&address, "/healthz").unwrap().0, 200);
    let (status, took) = lab.stop(ALICE, "TERM");
    assert_eq!(status.code(), Some(0), "{}", lab.log(ALICE));
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(get(&address, "/healthz").is_none());
}

/// The parser, installed beside the test's executable; nothing where that is not possible.
fn parser() -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let dir = this.parent()?.join("qk-tests-parser");
    if dir.join("prometheus_client").is_dir() {
        return Some(dir);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
    let installed = pip.arg(&dir).arg(PARSER).stdout(Stdio::null()).status();
    installed
        .is_ok_and(|status| status.success())
        .then_some(dir)
}

fn parse(parser: &Path, text: &[u8]) -> Vec<Value> {
    let mut python = Command::new("python3")
        .args(["-c", PARSE])
        .env("PYTHONPATH", parser)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    python.stdin.take().unwrap().write_all(text).unwrap();
    let done = python.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(text)
    );
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn metrics_are_what_the_reference_parser_takes() {
    let Some(parser) = parser() else {
        eprintln!("SKIPPED: {PARSER} cannot be installed with pip, so the metrics were not parsed");
        return;
    };
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE);
    lab.start_alice();
    get(&address, "/nothing");
    let (_, text) = get(&address, "/metrics").unwrap();
    let families = parse(&parser, &text);
    assert!(families.len() >= 20, "{families:?}");
    for family in &families {
        let word = |name: &str| family[name].as_str().unwrap_or_default();
        let name = word("name");
        assert!(
            name.starts_with("qk_") || name == "process_start_time_seconds",
            "{name}"
        );
        assert!(word("help").len() > 5, "{name}");
        let unit = word("unit");
        assert!(unit.is_empty() || name.ends_with(unit), "{name} {unit}");
        assert!(["", "bytes", "seconds"].contains(&unit), "{name} {unit}");
        for sample in family["samples"].as_array().into_iter().flatten() {
            let of = sample["name"].as_str().unwrap_or_default();
            assert!(of.starts_with(name), "{of}");
            assert_eq!(word("type") == "counter", of.ends_with("_total"), "{of}");
            let value = sample["value"].as_f64().expect("a number");
            assert!(value >= 0.0, "{of} {value}");
        }
    }
    // And it is strict: it refuses what is cut off.
    let cut = text.strip_suffix(b"# EOF\n").unwrap();
    let refused = std::panic::catch_unwind(|| parse(&parser, cut));
    assert!(refused.is_err());
}

#[test]
fn every_metric_of_the_dashboard_is_there() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/grafana/qk.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty());
        for target in targets {
            let names = names(target["expr"].as_str().expect("an expression"));
            assert!(!names.is_empty(), "{target}");
            asked.extend(names);
        }
    }
    let mut lab = Lab::new();
    let address = gateway(&lab, ALICE);
    lab.start_alice();
    // The histogram has series only after the first answer.
    get(&address, "/healthz");
    let there: BTreeSet<String> = samples(&address)
        .into_keys()
        .map(|sample| sample.split('{').next().unwrap_or_default().to_owned())
        .collect();
    let missing: Vec<&String> = asked.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?} of {there:?}");
    let unseen = [
        "qk_http_request_duration_seconds_count",
        "qk_http_request_duration_seconds_sum",
    ];
    let unshown: Vec<&String> = there
        .difference(&asked)
        .filter(|name| !unseen.contains(&name.as_str()))
        .collect();
    assert!(unshown.is_empty(), "{unshown:?} are in no panel");
}

/// The metrics that an expression names.
fn names(expression: &str) -> BTreeSet<String> {
    expression
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("qk_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}
