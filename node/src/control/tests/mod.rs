//! A node in this process, its real socket, and who talks to it.

pub(crate) mod fixture;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use qk_protocol::decide::Decision;
use rustix::fs::Uid;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::fixture::{TestHome, artifact_key, fetch_of};
use super::peer::may_ask;
use super::server::Events;
use super::{Client, FetchReport, FindSpec, Listener, Problem, ProblemKind, REQUEST_BYTES_MAX};
use crate::access::Access;
use crate::home::Home;
use crate::node::{FetchEvent, From, NodeOptions};

async fn open(home: &TestHome) -> Access {
    Access::open(home.home.clone(), NodeOptions::default())
        .await
        .unwrap()
}

/// A node to begin with that takes connections and never says a word.
fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = libp2p::identity::Keypair::generate_ed25519()
        .public()
        .to_peer_id();
    (listener, format!("/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"))
}

/// Sends bytes to the socket and reads until the node closes the connection.
fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The node may have answered and closed before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

async fn raw_off(home: &Home, bytes: Vec<u8>) -> String {
    let socket = home.socket();
    tokio::task::spawn_blocking(move || raw(&socket, &bytes))
        .await
        .unwrap()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "POST {path} HTTP/1.1\r\nhost: qk\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[tokio::test]
async fn what_is_published_is_found_listed_and_fetched() {
    let home = TestHome::new();
    let network = home.join("lab", &[]);
    let running = home.run().await;
    let access = open(&home).await;
    assert!(access.is_daemon());

    let (archive, statement) = home.built(network);
    let root = statement.observation().unwrap().subject.root;
    let published = access
        .publish(Some(archive), statement.clone())
        .await
        .unwrap();
    assert_eq!(published.holders, 1);

    let spec = FindSpec {
        network,
        release: artifact_key("hello").release(),
        offline: false,
    };
    let found = access.find(&spec).await.unwrap();
    assert_eq!(found.held.len(), 1);
    assert_eq!(*found.held[0].statement, statement);
    assert!(found.held[0].stored.0 > 0);

    let listed = access.store_ls().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].blob.root, &listed[0].key),
        (root, &Some(artifact_key("hello")))
    );

    // One's own build suffices for oneself.
    let report = access.fetch(&fetch_of("hello"), &|_| {}).await.unwrap();
    assert_eq!(
        (report.trusted.subject.root, report.from),
        (root, From::Store)
    );
    assert_eq!(
        (report.network, report.network_name.as_str()),
        (network, "lab")
    );
    assert_eq!(report.trusted.proof, [statement.id()]);
    assert_eq!(
        fs::read(&report.archive).unwrap(),
        fs::read(home.archive_path()).unwrap()
    );

    let status = access.status().await.unwrap();
    assert!(status.running);
    assert_eq!(status.home, home.path());
    assert_eq!(status.observer, running.node.own());
    assert_eq!(
        (status.store.artifacts, status.store.counts.statements),
        (1, 1)
    );
    assert_eq!(status.networks.len(), 1);
    let shown = &status.networks[0];
    assert_eq!(
        (
            shown.name.as_str(),
            shown.version,
            shown.fresh,
            shown.online
        ),
        ("lab", 1, true, true)
    );
    assert!(
        shown.listening[0].starts_with("/ip4/127.0.0.1/tcp/"),
        "{:?}",
        shown.listening
    );
    access.announce().await.unwrap();
    running.end().await;
}

#[tokio::test]
async fn the_store_is_looked_after_through_the_socket() {
    let home = TestHome::new();
    let network = home.join("lab", &[]);
    let running = home.run().await;
    let access = open(&home).await;
    let (archive, statement) = home.built(network);
    let root = statement.observation().unwrap().subject.root;
    access.publish(Some(archive), statement).await.unwrap();

    assert!(access.store_pin(root).await.unwrap());
    assert!(!access.store_pin(root).await.unwrap());
    assert!(access.store_ls().await.unwrap()[0].blob.pinned);
    assert!(access.store_unpin(root).await.unwrap());
    assert!(!access.store_unpin(root).await.unwrap());
    assert!(
        access
            .store_gc()
            .await
            .unwrap()
            .artifacts
            .evicted
            .is_empty()
    );
    assert_eq!(access.peers().await.unwrap(), []);

    let report = access.store_fsck().await.unwrap();
    assert_eq!((report.blobs, report.damage.len()), (1, 0));
    let artifact = access
        .fetch(&fetch_of("hello"), &|_| {})
        .await
        .unwrap()
        .archive;
    let mut bytes = fs::read(&artifact).unwrap();
    bytes[1000] ^= 1;
    fs::set_permissions(&artifact, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&artifact, bytes).unwrap();
    let report = access.store_fsck().await.unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(
        report.damage[0].to_string().contains(&root.to_string()),
        "{}",
        report.damage[0]
    );
    running.end().await;
}

#[tokio::test]
async fn a_problem_is_the_same_through_the_socket_and_without() {
    let home = TestHome::new();
    home.join("lab", &[]);
    let mut unserved = fetch_of("hello");
    unserved.wanted.release.registry = "registry+https://other.example/index".to_owned();
    let mut elsewhere = fetch_of("hello");
    elsewhere.wanted.targets = vec!["wasm32-wasip1".to_owned()];
    let specs = [unserved, elsewhere, fetch_of("hello")];

    let mut without = Vec::new();
    let own = open(&home).await;
    assert!(!own.is_daemon());
    assert!(!own.status().await.unwrap().running);
    for spec in &specs {
        without.push(own.fetch(spec, &|_| {}).await.unwrap_err());
    }
    own.shutdown().await;
    let running = home.run().await;
    let access = open(&home).await;
    for (spec, without) in specs.iter().zip(&without) {
        assert_eq!(&access.fetch(spec, &|_| {}).await.unwrap_err(), without);
    }
    let kinds: Vec<_> = without.iter().map(|problem| problem.kind).collect();
    assert_eq!(
        kinds,
        [
            ProblemKind::Registry,
            ProblemKind::Target,
            ProblemKind::NotTrusted
        ]
    );
    let verdict = without[2].verdict.as_ref().unwrap();
    assert!(matches!(&verdict.decision, Decision::Unproven(unproven) if unproven.need == 2));
    running.end().await;
}

#[tokio::test]
async fn a_second_node_on_the_same_home_is_told_so() {
    let home = TestHome::new();
    let running = home.run().await;
    let problem = Listener::bind(&home.home).unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Running);
    let (dir, process) = (home.path().display(), std::process::id());
    assert_eq!(
        problem.message,
        format!("another node is running on {dir}: process {process}")
    );
    // It did no harm.
    assert!(open(&home).await.is_daemon());
    running.end().await;
    assert!(!home.home.socket().exists());
    assert!(Client::connect(&home.home).await.unwrap().is_none());
    drop(Listener::bind(&home.home).unwrap());
}

#[tokio::test]
async fn a_dead_nodes_socket_is_replaced_and_another_file_is_not() {
    let home = TestHome::new();
    let socket = home.home.socket();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    assert!(Client::connect(&home.home).await.unwrap().is_none());
    drop(Listener::bind(&home.home).unwrap());

    fs::write(&socket, "mine").unwrap();
    assert_eq!(
        Listener::bind(&home.home).unwrap_err().kind,
        ProblemKind::Malformed
    );
    assert_eq!(fs::read(&socket).unwrap(), b"mine");
}

#[tokio::test]
async fn nobody_else_may_open_the_socket() {
    let home = TestHome::new();
    let _listener = Listener::bind(&home.home).unwrap();
    let mode = fs::metadata(home.home.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn only_the_same_user_and_root_are_answered() {
    assert!(may_ask(1000, 1000));
    assert!(may_ask(0, 1000));
    assert!(!may_ask(1001, 1000));
    assert!(!may_ask(1000, 0));
}

/// Another user's threads are only to be had as root.
fn as_another_user<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let thread = std::thread::spawn(|| {
        let nobody = Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        work()
    });
    Some(thread.join().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_not_answered_whatever_the_mode() {
    let home = TestHome::new();
    let running = home.run().await;
    let socket = home.home.socket();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let request = b"GET /status HTTP/1.1\r\nhost: qk\r\nconnection: close\r\n\r\n".to_vec();
    let own = raw_off(&home.home, request.clone()).await;
    assert!(own.starts_with("HTTP/1.1 200 OK"), "{own}");
    let others =
        tokio::task::spawn_blocking(move || as_another_user(move || raw(&socket, &request)));
    if let Some(answer) = others.await.unwrap() {
        assert_eq!(answer, "");
    }
    running.end().await;
}

#[tokio::test]
async fn another_users_socket_is_not_asked() {
    let home = TestHome::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = home.home.socket();
    if let Some(_listener) = as_another_user(move || UnixListener::bind(socket).unwrap()) {
        let problem = Client::connect(&home.home).await.unwrap_err();
        assert!(problem.message.contains("another user"), "{problem}");
    }
    // The same socket by this user would be asked.
    let _ = fs::remove_file(home.home.socket());
    let _listener = UnixListener::bind(home.home.socket()).unwrap();
    assert!(Client::connect(&home.home).await.unwrap().is_some());
}

#[tokio::test]
async fn garbage_is_refused_and_the_node_goes_on() {
    let home = TestHome::new();
    let running = home.run().await;
    let mut noise = vec![0; 100_000];
    blake3::Hasher::new()
        .update(b"noise")
        .finalize_xof()
        .fill(&mut noise);
    let answer = raw_off(&home.home, noise).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    for (path, body) in [
        ("/fetch", "{"),
        ("/fetch", "{\"wanted\":{}}"),
        ("/publish", "{\"archive\":null,\"envelope\":\"{}\"}"),
        ("/store/pin", "{\"root\":\"../../etc\"}"),
        ("/store/pin", "{\"root\":\"00\",\"more\":1}"),
        ("/nothing", ""),
        ("/status", ""),
    ] {
        let answer = raw_off(&home.home, post(path, body.as_bytes())).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.kind, ProblemKind::Protocol, "{path}: {problem}");
    }
    assert!(open(&home).await.status().await.unwrap().running);
    running.end().await;
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let home = TestHome::new();
    let running = home.run().await;
    let root = "00".repeat(32);
    let mut body = format!("{{\"root\":\"{root}\"}}").into_bytes();
    body.resize(REQUEST_BYTES_MAX, b' ');
    let answer = raw_off(&home.home, post("/store/pin", &body)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    body.push(b' ');
    let answer = raw_off(&home.home, post("/store/pin", &body)).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("longer than 131072 bytes"),
        "{answer}"
    );

    // Without a length before it, it is counted as it comes.
    let mut chunked = b"POST /store/pin HTTP/1.1\r\nhost: qk\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(format!("{:x}\r\n", body.len()).into_bytes());
    chunked.extend(&body);
    chunked.extend(b"\r\n0\r\n\r\n");
    let answer = raw_off(&home.home, chunked).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("longer than 131072 bytes"),
        "{answer}"
    );
    running.end().await;
}

#[tokio::test]
async fn a_relative_path_of_an_archive_is_refused() {
    let home = TestHome::new();
    let network = home.join("lab", &[]);
    let running = home.run().await;
    let (_, statement) = home.built(network);
    let envelope = String::from_utf8(statement.envelope().to_vec()).unwrap();
    let body = serde_json::json!({ "archive": "built.tar", "envelope": envelope });
    let answer = raw_off(&home.home, post("/publish", body.to_string().as_bytes())).await;
    assert!(answer.contains("not absolute"), "{answer}");
    running.end().await;
}

/// A fetch in a task of its own, which has begun to ask the network.
async fn asking(home: &TestHome) -> JoinHandle<Result<FetchReport, Problem>> {
    let client = Client::connect(&home.home).await.unwrap().unwrap();
    let (told, mut events) = mpsc::unbounded_channel();
    let fetch = tokio::spawn(async move {
        let tell = move |event| drop(told.send(event));
        client.fetch(&fetch_of("hello"), &tell).await
    });
    let asking = FetchEvent::Asking {
        network: "lab".to_owned(),
    };
    assert_eq!(events.recv().await, Some(asking));
    fetch
}

#[tokio::test]
async fn a_fetch_ends_when_its_client_goes_away() {
    let home = TestHome::new();
    let (_listener, address) = silent();
    home.join("lab", &[address]);
    let running = home.run().await;

    // The first stays and shows that such a fetch does not end by itself meanwhile.
    let mut stays = asking(&home).await;
    let of_one = Arc::strong_count(&running.node);
    let goes = asking(&home).await;
    assert!(Arc::strong_count(&running.node) > of_one);
    goes.abort();
    let ends = async {
        while Arc::strong_count(&running.node) > of_one {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = ends => {}
        result = &mut stays => panic!("the fetch whose client went away outlived another: {result:?}"),
    }
    let problem = stays.await.unwrap().unwrap_err();
    assert_eq!(
        (problem.kind, problem.answered),
        (ProblemKind::Silent, Some(0))
    );
    running.end().await;
}

#[tokio::test]
async fn a_fetch_ends_when_the_node_does() {
    let home = TestHome::new();
    let (_listener, address) = silent();
    home.join("lab", &[address]);
    let running = home.run().await;
    let fetch = asking(&home).await;
    running.end().await;
    assert_eq!(
        fetch.await.unwrap().unwrap_err().kind,
        ProblemKind::Stopping
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_start_and_end_without_a_restart() {
    let home = TestHome::new();
    let running = home.run().await;
    let access = open(&home).await;
    let problem = access.fetch(&fetch_of("hello"), &|_| {}).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::NoNetwork);

    let lab = home.join("lab", &[]);
    let reloaded = access.reload().await.unwrap();
    assert_eq!(
        (reloaded.joined, reloaded.advanced, reloaded.left),
        (vec![lab], vec![], vec![])
    );
    let status = access.status().await.unwrap();
    assert_eq!(status.networks.len(), 1);
    assert!(status.networks[0].online);
    let problem = access.fetch(&fetch_of("hello"), &|_| {}).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::NotTrusted);

    home.rename(lab, "laboratory");
    let reloaded = access.reload().await.unwrap();
    assert_eq!(
        (reloaded.joined, reloaded.advanced, reloaded.left),
        (vec![], vec![lab], vec![])
    );
    let shown = &access.status().await.unwrap().networks[0];
    assert_eq!((shown.name.as_str(), shown.version), ("laboratory", 2));

    home.home.leave_network(lab).unwrap();
    let reloaded = access.reload().await.unwrap();
    assert_eq!(
        (reloaded.joined, reloaded.advanced, reloaded.left),
        (vec![], vec![], vec![lab])
    );
    assert_eq!(access.status().await.unwrap().networks, []);
    running.end().await;
}

#[test]
fn slow_readers_lose_no_verified_bytes() {
    let (events, mut receiver) = Events::new();
    for _ in 0..10_000 {
        events.tell(FetchEvent::Verified { bytes: 16_384 });
    }
    let mut told = 0;
    let mut lines = 0;
    while let Ok(FetchEvent::Verified { bytes }) = receiver.try_recv() {
        told += bytes;
        lines += 1;
    }
    assert!(lines < 10_000);
    let Some(FetchEvent::Verified { bytes }) = events.rest() else {
        panic!("the rest is missing");
    };
    assert_eq!(told + bytes, 10_000 * 16_384);
}
