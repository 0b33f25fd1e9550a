//! Gateways as providers of blocks: alone, beside peers, and such that lie.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use qk_node::gateway::{Gateway, GatewayConfig, GatewayLimits};
use qk_node::manners::{ShareFlags, Size};
use qk_node::node::{Node, NodeOptions, unix_now};
use qk_node::store::Keep;
use qk_protocol::blocks;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, free_port, run, until};
use qk_tests::web::{Server, certificate, get, lying, proxy};
use tempfile::TempDir;

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
        Self::start_at(lab, artifact, None)
    }

    /// One that gives so many bytes a second.
    fn start_at(lab: &Lab, artifact: &Artifact, upload_rate: Option<Size>) -> Self {
        let (path, root) = (artifact.path(), artifact.subject.root);
        let options = NodeOptions {
            hold: true,
            offline: true,
            share: ShareFlags {
                share: true,
                upload_rate,
                ..ShareFlags::default()
            },
            ..NodeOptions::default()
        };
        let home = lab.home(CAROL);
        lab.runtime().block_on(async {
            let node = Arc::new(Node::start(home.clone(), options).await.unwrap());
            let kept =
                node.blocking(move |store| store.import(&path, root, Keep::Cache, unix_now()));
            kept.await.unwrap();
            let (limits, config) = (GatewayLimits::default(), GatewayConfig::default());
            let gateway = Gateway::bind("127.0.0.1:0", limits, &config, &home).await;
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
        assert!(!self.node.manners().is_paused());
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
    // At full speed the one may have given all of it before the other has begun.
    let address = lab.alices_address().to_owned();
    lab.start_with(ALICE, &address, &["--upload-rate", "4MiB"], &[]);
    let artifact = artifact(&lab, 12_000_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let site = Site::start_at(&lab, &artifact, Some("4MiB".parse().unwrap()));
    use_gateways(&lab, &[site.url()]);
    lab.fetch(&[SPEC]).done();
    assert!(runs(&lab));
    assert!(site.parts_served() >= 1);
    assert!(lab.sent_bytes(ALICE) > 0);
}

fn fetch_beside_a_liar(lab: &Lab, liar: &Server, serves: &str) -> String {
    use_gateways(lab, &[liar.url()]);
    // The honest provider sleeps until the lie is found out: else it may have given everything before
    // that, and what the liar sends is not looked at any more.
    lab.signal(serves, "STOP");
    let mut fetch = lab.command(CLIENT, &["fetch", "--fallback", "none", SPEC, "--root"]);
    fetch
        .arg(lab.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut fetching = fetch.spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(fetching.stderr.take().unwrap()).lines() {
        said += &format!("{}\n", line.unwrap());
        if said
            .lines()
            .any(|line| line.contains("refused from now on"))
        {
            lab.signal(serves, "CONT");
        }
    }
    assert!(liar.asked() > 0);
    assert!(fetching.wait().unwrap().success(), "{said}");
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

/// A plain web server with the two files of an artifact, over https with a certificate of its own.
struct Https {
    nginx: Child,
    dir: TempDir,
    port: u16,
    /// Where the same is to be had without encryption.
    http_port: u16,
}

impl Drop for Https {
    fn drop(&mut self) {
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
    }
}

impl Https {
    /// Below `/` the files, below `/plain/` a redirect to `plain`. `None` where nginx or openssl is
    /// not installed.
    fn start(artifact: &Artifact, plain: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        let files = dir.path().join("files/artifacts");
        fs::create_dir_all(&files).unwrap();
        let archive = fs::read(artifact.path()).unwrap();
        let (blob, outboard) = blocks::outboard(&archive[..], archive.len() as u64).unwrap();
        fs::write(files.join(blob.root().to_string()), archive).unwrap();
        fs::write(files.join(format!("{}.obao4", blob.root())), outboard).unwrap();
        certificate(dir.path())?;
        let (port, http_port) = (free_port(), free_port());
        let temps = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temps: String = temps
            .iter()
            .map(|one| format!("{one}_temp_path {at}/{one};\n"))
            .collect();
        // Read by whoever nginx runs as.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\n\
             http {{ access_log off; {temps} server {{\n\
             listen 127.0.0.1:{port} ssl; listen 127.0.0.1:{http_port}; root {at}/files;\n\
             ssl_certificate {at}/own.pem; ssl_certificate_key {at}/key.pem;\n\
             location /plain/ {{ rewrite ^/plain/(.*)$ {plain}$1 redirect; }}\n\
             }} }}\n"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-e").arg(dir.path().join("error.log"));
        nginx.arg("-c").arg(dir.path().join("nginx.conf"));
        let nginx = nginx.stdin(Stdio::null()).spawn().ok()?;
        let mut https = Self {
            nginx,
            dir,
            port,
            http_port,
        };
        until("nginx listens", || {
            let ended = https.nginx.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended: {ended:?}");
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Some(https)
    }

    fn fetch(&self, lab: &Lab, path: &str, trusted: &str) -> Ran {
        use_gateways(lab, &[format!("https://127.0.0.1:{}{path}", self.port)]);
        let mut fetch = lab.fetch_command(CLIENT, &[SPEC]);
        run(fetch.env("SSL_CERT_FILE", self.dir.path().join(trusted)))
    }
}

#[test]
fn https_is_verified_and_not_left() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 600_000);
    lab.state(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let site = Site::start(&lab, &artifact);
    let Some(https) = Https::start(&artifact, &site.url()) else {
        eprintln!(
            "SKIPPED: nginx or openssl is not installed, so gateways over https were not tested"
        );
        return;
    };
    // A certificate that nobody vouches for.
    use_gateways(&lab, &[format!("https://127.0.0.1:{}/", https.port)]);
    lab.fetch(&[SPEC]).failed(14, &["could not be had"]);
    // A redirect to where others can watch. Who began there is led on, as the end shows.
    https
        .fetch(&lab, "/plain/", "trusted.pem")
        .failed(14, &["could not be had"]);
    assert_eq!(site.parts_served(), 0);
    https.fetch(&lab, "/", "trusted.pem").done();
    assert!(runs(&lab));
    fs::remove_dir_all(lab.home(CLIENT).store()).unwrap();
    use_gateways(
        &lab,
        &[format!("http://127.0.0.1:{}/plain/", https.http_port)],
    );
    lab.fetch(&[SPEC]).done();
    assert!(site.parts_served() >= 1);
}
