//! Gateways as providers of blocks: alone, beside peers, and such that lie.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use qk_node::gateway::{Gateway, GatewayLimits};
use qk_node::node::{Node, NodeOptions, unix_now};
use qk_node::store::Keep;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, run, until};
use qk_tests::web::{Server, get, lying, proxy};

fn artifact(lab: &Lab, padding_bytes: usize) -> Artifact {
    let options = Options {
        padding_bytes,
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

/// A gateway of this process on carol's home, which has the artifact and tells nobody.
struct Site {
    address: SocketAddr,
    node: Arc<Node>,
}

impl Site {
    fn start(lab: &Lab, artifact: &Artifact) -> Self {
        let (path, root) = (artifact.path(), artifact.subject.root);
        let options = NodeOptions {
            hold: true,
            offline: true,
            ..NodeOptions::default()
        };
        let home = lab.home(CAROL);
        lab.runtime().block_on(async {
            let node = Arc::new(Node::start(home, options).await.unwrap());
            let kept =
                node.blocking(move |store| store.import(&path, root, Keep::Cache, unix_now()));
            kept.await.unwrap();
            let gateway = Gateway::bind("127.0.0.1:0", GatewayLimits::default()).await;
            let gateway = gateway.unwrap();
            let address = gateway.address();
            // It ends with the runtime.
            tokio::spawn(gateway.serve(node.clone(), std::future::pending()));
            Self { address, node }
        })
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Answers with a part of an archive.
    fn parts_served(&self) -> u64 {
        assert!(self.node.holds());
        let (_, text) = get(&self.address.to_string(), "/metrics").unwrap();
        let text = String::from_utf8(text).unwrap();
        let counted = "qk_http_requests_total{route=\"artifacts\",status=\"206\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(counted));
        line.map_or(0, |number| number.parse().unwrap())
    }
}

fn use_gateways(lab: &Lab, urls: &[String]) {
    lab.configure(CLIENT, &format!("[gateway]\nfrom = {urls:?}\n"));
}

fn runs(lab: &Lab) -> bool {
    run(&mut Command::new(lab.root().join("bin/hexyl"))).stdout == "hexyl 0.17.0\n"
}

#[test]
fn an_artifact_comes_from_a_gateway_alone() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 3_000_000);
    // Statements are here, and nobody of the network has the artifact.
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC]).failed(14, &["could not be had"]);
    let site = Site::start(&lab, &artifact);
    use_gateways(&lab, &[site.url()]);
    let done = lab.fetch(&[SPEC]).done();
    assert_eq!(done["crates"][0]["how"], "network");
    assert_eq!(done["crates"][0]["root"], artifact.subject.root.to_string());
    assert!(runs(&lab));
    assert!(site.parts_served() >= 3);
}

#[test]
fn the_environment_names_gateways_and_a_proxy() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 1_000_000);
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let site = Site::start(&lab, &artifact);
    // The configuration's is another one, and not asked.
    use_gateways(&lab, &["https://gateway.invalid/".to_owned()]);
    let proxy = proxy();
    let mut fetch = lab.fetch_command(CLIENT, &[SPEC]);
    fetch
        .env("QK_GATEWAY", site.url())
        .env("HTTPS_PROXY", format!("http://{}", proxy.address))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    run(&mut fetch).done();
    assert!(runs(&lab));
    assert!(proxy.asked() >= 1);
    assert!(site.parts_served() >= 1);
}

#[test]
fn what_is_no_address_of_a_gateway_is_refused() {
    let lab = Lab::new();
    for url in [
        "gateway.example",
        "ftp://gateway.example/",
        "https://user:word@gateway.example/",
    ] {
        use_gateways(&lab, &[url.to_owned()]);
        let ran = lab.fetch(&[SPEC]);
        assert_ne!(ran.code(), 0, "{url}");
        assert!(ran.error().contains("gateway"), "{url}: {}", ran.error());
    }
}

#[test]
fn a_gateway_and_a_peer_serve_beside_each_other() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 12_000_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let site = Site::start(&lab, &artifact);
    use_gateways(&lab, &[site.url()]);
    lab.fetch(&[SPEC]).done();
    assert!(runs(&lab));
    assert!(site.parts_served() >= 1);
}

fn fetch_beside_a_liar(lab: &Lab, liar: &Server, serves: &str) -> String {
    use_gateways(lab, &[liar.url()]);
    // The honest provider sleeps until the liar was asked.
    lab.signal(serves, "STOP");
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    fetch
        .arg(lab.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let fetching = fetch.spawn().unwrap();
    until("the liar is asked", || liar.asked() > 0);
    lab.signal(serves, "CONT");
    let done = fetching.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    said
}

#[test]
fn a_lying_gateway_is_dropped_and_a_peer_used() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_any(BOB);
    let artifact = artifact(&lab, 3_000_000);
    lab.state(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    let liar = lying(fs::read(artifact.path()).unwrap());
    let said = fetch_beside_a_liar(&lab, &liar, BOB);
    assert!(said.contains(&format!("provider {}", liar.url())), "{said}");
    assert!(said.contains("is forged, refused from now on"), "{said}");
    assert!(runs(&lab));
}

#[test]
fn a_lying_gateway_alone_gives_nothing() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 1_000_000);
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let liar = lying(fs::read(artifact.path()).unwrap());
    use_gateways(&lab, &[liar.url()]);
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    let ran = run(fetch.arg(lab.root()));
    ran.failed(
        14,
        &[
            &liar.url(),
            "is forged, refused from now on",
            "could not be had",
        ],
    );
    assert!(liar.asked() > 0);
    assert!(lab.installed().is_empty());
}
