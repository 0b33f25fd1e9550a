//! The gateway over real sockets, with clients that do what they should and others.

mod client;
mod hostile;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::hash::Root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Gateway, GatewayConfig, GatewayLimits};
use crate::blocks::test_bytes;
use crate::control::tests::fixture::TestHome;
use crate::manners::ShareFlags;
use crate::node::{Node, NodeOptions, unix_now};
use crate::store::Keep;

/// Longer than anything here should take, however loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node with a gateway and no network.
struct Site {
    home: TestHome,
    node: Arc<Node>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Site {
    async fn start(limits: GatewayLimits) -> Self {
        let home = TestHome::new();
        // What it gives is not what it built: it shares.
        let share = ShareFlags {
            share: true,
            ..ShareFlags::default()
        };
        Self::sharing(home, share, limits).await
    }

    async fn sharing(home: TestHome, share: ShareFlags, limits: GatewayLimits) -> Self {
        let options = NodeOptions {
            hold: true,
            offline: true,
            share,
            ..NodeOptions::default()
        };
        let node = Node::start(home.home.clone(), options).await.unwrap();
        Self::of(home, Arc::new(node), limits).await
    }

    async fn of(home: TestHome, node: Arc<Node>, limits: GatewayLimits) -> Self {
        Self::configured(home, node, limits, GatewayConfig::default()).await
    }

    async fn configured(
        home: TestHome,
        node: Arc<Node>,
        limits: GatewayLimits,
        config: GatewayConfig,
    ) -> Self {
        let gateway = Gateway::bind("127.0.0.1:0", limits, &config, &home.home)
            .await
            .unwrap();
        let address = gateway.address();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(gateway.serve(node.clone(), async {
            let _ = stopped.await;
        }));
        Self {
            home,
            node,
            address,
            stop,
            serving,
        }
    }

    /// Takes bytes into the store.
    async fn keep(&self, bytes: &[u8]) -> Root {
        let (root, path) = (Root::of(bytes), self.home.path().join("import"));
        std::fs::write(&path, bytes).unwrap();
        let kept = self
            .node
            .blocking(move |store| store.import(&path, root, Keep::Cache, unix_now()));
        kept.await.unwrap();
        root
    }

    /// Flips a bit of a file in the store.
    async fn flip(&self, root: Root, suffix: &str, offset: u64) {
        let path = self.node.blocking(move |store| Ok(store.blob_path(&root)));
        let path = path.await.unwrap().with_extension(suffix);
        let options = std::fs::File::options().read(true).write(true).open(path);
        let (file, mut byte) = (options.unwrap(), [0]);
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 16], offset).unwrap();
    }

    async fn get(&self, path: &str, headers: &str) -> Answer {
        let asked = self.ask("GET", path, headers).await;
        asked.expect("an answer")
    }

    /// `None` when the connection ended without an answer.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Option<Answer> {
        let mut stream = connect(self.address, "127.0.0.1").await;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
        // Who is refused may be told so while it still writes.
        let _ = stream.write_all(head.as_bytes()).await;
        read_answer(&mut stream).await
    }

    async fn end(self) {
        let _ = self.stop.send(());
        tokio::time::timeout(PATIENCE, self.serving)
            .await
            .unwrap()
            .unwrap();
        self.node.shutdown().await;
    }
}

async fn connect(to: SocketAddr, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    socket.connect(to).await.unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads until the connection ends, however it does.
async fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("in time");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Some(Answer {
        status,
        headers: headers.collect(),
        body: bytes[end + 4..].to_vec(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_served_whole_and_in_parts() {
    let site = Site::start(GatewayLimits::default()).await;
    let bytes = test_bytes(1_000_001, 1);
    let root = site.keep(&bytes).await;
    let path = format!("/artifacts/{root}");

    let whole = site.get(&path, "").await;
    assert_eq!((whole.status, &whole.body), (200, &bytes));
    assert_eq!(whole.header("etag"), format!("\"{root}\""));
    assert_eq!(whole.header("content-length"), "1000001");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let cached = whole.header("cache-control");
    assert!(cached.contains("public") && cached.contains("immutable"));

    // Within a block, over the border of a unit, the tail.
    for (from, to) in [
        (0, 0),
        (5, 20),
        (262_143, 262_144),
        (16_000, 700_000),
        (999_990, 1_000_000),
    ] {
        let part = site
            .get(&path, &format!("Range: bytes={from}-{to}\r\n"))
            .await;
        assert_eq!(part.status, 206);
        assert_eq!(part.body, &bytes[from..=to]);
        let content = format!("bytes {from}-{to}/1000001");
        assert_eq!(part.header("content-range"), content);
        assert_eq!(part.header("content-length"), (to - from + 1).to_string());
    }
    let beyond = site.get(&path, "Range: bytes=1000001-\r\n").await;
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, "bytes */1000001")
    );

    let head = site
        .ask("HEAD", &path, "Range: bytes=0-1\r\n")
        .await
        .unwrap();
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, "1000001")
    );
    assert!(head.body.is_empty());

    let tag = format!("If-None-Match: \"{root}\"\r\n");
    let known = site.get(&path, &tag).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(known.header("etag"), format!("\"{root}\""));
    let same = format!("If-Range: \"{root}\"\r\nRange: bytes=0-1\r\n");
    assert_eq!(site.get(&path, &same).await.status, 206);
    let other = "If-Range: \"other\"\r\nRange: bytes=0-1\r\n";
    assert_eq!(site.get(&path, other).await.body.len(), bytes.len());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outboard_is_served_likewise() {
    let site = Site::start(GatewayLimits::default()).await;
    let bytes = test_bytes(30_000_000, 2);
    let (_, outboard) = qk_protocol::blocks::outboard(&bytes[..], 30_000_000).unwrap();
    let root = site.keep(&bytes).await;
    let path = format!("/artifacts/{root}.obao4");
    let whole = site.get(&path, "").await;
    assert_eq!((whole.status, &whole.body), (200, &outboard));
    assert_eq!(whole.header("etag"), format!("\"{root}.obao4\""));
    let part = site.get(&path, "Range: bytes=70000-70099\r\n").await;
    assert_eq!(
        (part.status, &part.body[..]),
        (206, &outboard[70_000..70_100])
    );
    // One block has no nodes above it.
    let small = site.keep(b"small").await;
    let empty = site.get(&format!("/artifacts/{small}.obao4"), "").await;
    assert_eq!((empty.status, empty.header("content-length")), (200, "0"));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_not_found_and_nothing_else_is_there() {
    let site = Site::start(GatewayLimits::default()).await;
    let root = site.keep(b"something").await;
    let absent = Root::of(b"absent");
    for path in [
        format!("/artifacts/{absent}"),
        format!("/artifacts/{absent}.obao4"),
        format!("/artifacts/{}", root.to_string().to_uppercase()),
        format!("/artifacts/{root}.tar"),
        format!("/artifacts/{root}/"),
        format!("/artifacts/../artifacts/{root}x"),
        "/artifacts/..%2f..%2fconfig.toml".to_owned(),
        "/artifacts/%00".to_owned(),
        "/artifacts/".to_owned(),
        "/config.toml".to_owned(),
        "/".to_owned(),
    ] {
        assert_eq!(site.get(&path, "").await.status, 404, "{path}");
    }
    let posted = site.ask("POST", &format!("/artifacts/{root}"), "").await;
    assert_eq!(posted.unwrap().status, 405);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_never_served() {
    let site = Site::start(GatewayLimits::default()).await;
    let bytes = test_bytes(1_000_000, 3);
    let root = site.keep(&bytes).await;
    let path = format!("/artifacts/{root}");
    site.flip(root, "tar", 600_000).await;
    // What is intact is served, what is not is not, and an answer breaks off before it.
    assert_eq!(
        site.get(&path, "Range: bytes=0-99\r\n").await.body,
        &bytes[..100]
    );
    let broken = site.get(&path, "").await;
    assert_eq!(broken.status, 200);
    assert_eq!(broken.body, &bytes[..512 << 10]);
    // It was moved aside.
    assert_eq!(site.get(&path, "Range: bytes=0-99\r\n").await.status, 404);

    let root = site.keep(&bytes).await;
    site.flip(root, "tar", 600_000).await;
    let alone = site.get(&path, "Range: bytes=600001-600001\r\n").await;
    assert_eq!(alone.status, 404);

    // A wrong outboard is made again.
    let root = site.keep(&bytes).await;
    let outboard = format!("{path}.obao4");
    let honest = site.get(&outboard, "").await.body;
    site.flip(root, "obao4", 1000).await;
    let broken = site.get(&outboard, "").await;
    assert!(
        broken.status == 404 || broken.body.len() <= 1000,
        "{broken:?}"
    );
    assert_eq!(site.get(&outboard, "").await.body, honest);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_what_peers_would_get() {
    let bytes = test_bytes(100_000, 6);
    for (share, leech, pauses, status) in [
        (true, false, false, 200),
        (false, false, false, 404),
        (true, true, false, 404),
        (true, false, true, 404),
    ] {
        let share = ShareFlags {
            share,
            leech,
            ..ShareFlags::default()
        };
        let site = Site::sharing(TestHome::new(), share, GatewayLimits::default()).await;
        let root = site.keep(&bytes).await;
        if pauses {
            site.node.manners().pause(None).unwrap();
        }
        for path in [
            format!("/artifacts/{root}"),
            format!("/artifacts/{root}.obao4"),
        ] {
            assert_eq!(site.get(&path, "").await.status, status, "{leech} {pauses}");
        }
        let text = site.get("/metrics", "").await.text();
        let paused = format!("qk_paused {}\n", u8::from(pauses));
        assert!(
            text.contains(&paused) || text.contains(&paused.replace('\n', ".0\n")),
            "{text}"
        );
        site.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_when_a_network_is_fresh_and_listens() {
    let site = Site::start(GatewayLimits::default()).await;
    assert_eq!(site.get("/healthz", "").await.status, 200);
    let unready = site.get("/readyz", "").await;
    assert_eq!(unready.status, 503);
    assert!(
        unready.text().contains("no network is joined"),
        "{}",
        unready.text()
    );
    site.end().await;

    let home = TestHome::new();
    home.join("lab", &[]);
    for (listen, status) in [
        (vec![], 503),
        (vec!["/ip4/127.0.0.1/tcp/0".to_owned()], 200),
    ] {
        let options = NodeOptions {
            hold: true,
            listen,
            ..NodeOptions::default()
        };
        let node = Node::start(home.home.clone(), options).await.unwrap();
        let of = TestHome::new();
        let site = Site::of(of, Arc::new(node), GatewayLimits::default()).await;
        let ready = site.get("/readyz", "").await;
        assert_eq!(ready.status, status, "{}", ready.text());
        assert_eq!(ready.text().contains("not listening"), status == 503);
        site.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_clients_make_no_series() {
    let site = Site::start(GatewayLimits::default()).await;
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    for _ in 0..2 {
        site.get("/nothing", "").await;
        site.get("/metrics", "").await;
    }
    let before = site.get("/metrics", "").await.text();
    for number in 0..50 {
        site.get(&format!("/nothing-{number}\"\\"), "").await;
    }
    let after = site.get("/metrics", "").await.text();
    assert_eq!(series(&before), series(&after), "{before}\n{after}");
    let counted = "qk_http_requests_total{route=\"unknown\",status=\"404\"} ";
    let count = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(counted));
        line.map(|count| count.parse::<u64>().unwrap())
    };
    assert_eq!(count(&before), Some(2), "{before}");
    // Those with a quotation mark in their path are no HTTP.
    assert!(
        count(&after) == Some(52) || count(&after) == Some(2),
        "{after}"
    );
    assert!(after.ends_with("# EOF\n"));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_with_the_node_and_lets_an_answer_end() {
    let site = Site::start(GatewayLimits::default()).await;
    let bytes = test_bytes(4_000_000, 4);
    let root = site.keep(&bytes).await;
    let idle = connect(site.address, "127.0.0.1").await;
    let mut busy = connect(site.address, "127.0.0.1").await;
    let head = format!("GET /artifacts/{root} HTTP/1.1\r\nHost: a\r\n\r\n");
    busy.write_all(head.as_bytes()).await.unwrap();
    // The answer has begun.
    busy.readable().await.unwrap();
    let address = site.address;
    let (ended, answer) = tokio::join!(site.end(), read_answer(&mut busy));
    let () = ended;
    assert_eq!(answer.unwrap().body, bytes);
    drop(idle);
    assert!(TcpStream::connect(address).await.is_err());
}
