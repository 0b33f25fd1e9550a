//! Reading from gateways: ours, a plain web server with the two files, and servers that lie.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use qk_protocol::blocks::{self, Blob, BlockRange, Ranges, VerifyError, verify};
use qk_protocol::transfer::Why;
use tokio::net::TcpListener;

use super::super::client::{Client, GatewayUrl};
use super::*;

fn client(address: SocketAddr, path: &str) -> Client {
    let url = GatewayUrl::parse(&format!("http://{address}{path}")).unwrap();
    Client::with_silence(url, Duration::from_secs(60))
}

/// Fetches a blob range by range, and returns what was verified.
async fn fetch(client: &Client, blob: Blob) -> Vec<u8> {
    let remote = client.open(blob).await.unwrap();
    let mut bytes = vec![0; blob.size() as usize];
    for range in blob.units(64) {
        let wire = remote.pull(range).await.unwrap();
        let verified = verify(&blob, &Ranges::from(range), &wire).unwrap();
        for (at, some) in verified.data() {
            bytes[at as usize..][..some.len()].copy_from_slice(some);
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gives_what_verifies_over_one_connection() {
    let site = Site::start(GatewayLimits::default()).await;
    let client = client(site.address, "/");
    for size in [1, 16 << 10, 300_000, 5_000_001] {
        let bytes = test_bytes(size, size as u64);
        let root = site.keep(&bytes).await;
        let blob = Blob::new(root, size as u64).unwrap();
        assert_eq!(fetch(&client, blob).await, bytes);
    }
    let text = site.get("/metrics", "").await.text();
    // This question is the second one.
    assert!(
        text.contains("qk_http_connections_accepted_total 2\n"),
        "{text}"
    );
    let absent = Blob::new(Root::of(b"absent"), 100_000).unwrap();
    let error = client.open(absent).await.unwrap_err();
    assert_eq!(error.why(), Why::Lacks);
    site.end().await;
}

/// A web server that knows nothing of qk.
struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Nginx {
    /// `None` where there is no nginx.
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let at = dir.path().display();
        let temps = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temps: String = temps
            .iter()
            .map(|one| format!("{one}_temp_path {at}/{one};\n"))
            .collect();
        let user = match rustix::process::geteuid().is_root() {
            true => "user root;",
            false => "",
        };
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; {user}\n\
             events {{}}\n\
             http {{ access_log off; {temps} server {{ listen {address}; root {at}/files; }} }}\n"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        std::fs::create_dir_all(dir.path().join("files/artifacts")).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-e").arg(dir.path().join("error.log"));
        nginx
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .arg("-p")
            .arg(dir.path());
        let mut child = nginx
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let up = async {
            while TcpStream::connect(address).await.is_err() {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "nginx ended: {ended:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
        Some(Self {
            child,
            dir,
            address,
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_web_server_with_both_files_is_enough() {
    let Some(nginx) = Nginx::start().await else {
        eprintln!(
            "SKIPPED: nginx is not installed, so reading from a plain web server was not tested"
        );
        return;
    };
    let bytes = test_bytes(5_000_001, 1);
    let (blob, outboard) = blocks::outboard(&bytes[..], 5_000_001).unwrap();
    let path = nginx
        .dir
        .path()
        .join("files/artifacts")
        .join(blob.root().to_string());
    std::fs::write(&path, &bytes).unwrap();
    std::fs::write(path.with_extension("obao4"), &outboard).unwrap();
    let client = client(nginx.address, "");
    assert_eq!(fetch(&client, blob).await, bytes);
    // Another size than that of the file is not a reason to believe the file.
    let longer = Blob::new(blob.root(), 5_000_002).unwrap();
    let remote = client.open(longer).await.unwrap();
    let last = BlockRange::new(256, 306).unwrap();
    assert_eq!(remote.pull(last).await.unwrap_err().why(), Why::Malformed);
    std::fs::write(&path, &bytes[..4_000_000]).unwrap();
    let remote = client.open(blob).await.unwrap();
    assert_eq!(remote.pull(last).await.unwrap_err().why(), Why::Lacks);
    let cut = BlockRange::new(192, 256).unwrap();
    assert_eq!(remote.pull(cut).await.unwrap_err().why(), Why::Malformed);
}

/// A server of one connection after the other that answers every request with these bytes, or with
/// silence.
async fn canned(answer: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, counted) = (answer.clone(), counted.clone());
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                counted.fetch_add(1, Ordering::SeqCst);
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    (address, asked)
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// What asking such a server for the outboard of a blob comes to.
async fn opened(blob: Blob, answer: Vec<u8>) -> Why {
    let (address, asked) = canned(answer).await;
    let url = GatewayUrl::parse(&format!("http://{address}/")).unwrap();
    let client = Client::with_silence(url, Duration::from_secs(1));
    let why = client.open(blob).await.unwrap_err().why();
    assert!(asked.load(Ordering::SeqCst) >= 1);
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_do_wrong_is_told_apart() {
    let bytes = test_bytes(1_000_000, 1);
    let (blob, outboard) = blocks::outboard(&bytes[..], 1_000_000).unwrap();
    let length = outboard.len();
    let mut flipped = outboard.clone();
    flipped[length / 2] ^= 1;
    let sized = format!("200 OK\r\nContent-Length: {length}");
    is(opened(blob, answer(&sized, &flipped)).await, "Wrong");
    is(
        opened(blob, answer(&sized, &outboard[..100])).await,
        "Ended",
    );
    is(
        opened(blob, answer("200 OK\r\nContent-Length: 5", b"short")).await,
        "Malformed",
    );
    is(
        opened(
            blob,
            answer("200 OK\r\nContent-Length: 99999999999", &outboard),
        )
        .await,
        "Malformed",
    );
    // Without a length, and more than that: read no further than one byte too many.
    is(
        opened(blob, answer("200 OK", &test_bytes(50_000_000, 2))).await,
        "Malformed",
    );
    let encoded = format!("{sized}\r\nContent-Encoding: gzip");
    is(opened(blob, answer(&encoded, &outboard)).await, "Malformed");
    is(
        opened(blob, answer("404 Not Found\r\nContent-Length: 0", b"")).await,
        "Lacks",
    );
    is(
        opened(blob, answer("503 Busy\r\nContent-Length: 0", b"")).await,
        "Busy",
    );
    is(
        opened(blob, answer("429 Slow\r\nContent-Length: 0", b"")).await,
        "Busy",
    );
    is(
        opened(
            blob,
            answer("302 Found\r\nLocation: /again\r\nContent-Length: 0", b""),
        )
        .await,
        "Malformed",
    );
    is(opened(blob, Vec::new()).await, "Late");
    is(
        opened(blob, b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()).await,
        "Malformed",
    );
    let long = format!("{sized}\r\nX: {}", "a".repeat(1 << 20));
    is(opened(blob, answer(&long, &outboard)).await, "Malformed");
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = client(nobody, "/").open(blob).await.unwrap_err();
    is(error.why(), "Unreachable");
}

#[track_caller]
fn is(why: Why, expected: &str) {
    assert!(format!("{why:?}").starts_with(expected), "{why:?}");
}

/// A gateway that has an honest outboard, and answers requests for ranges with something else.
async fn pulled(
    bytes: &[u8],
    answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> Result<Vec<u8>, Why> {
    let (blob, outboard) = blocks::outboard(bytes, bytes.len() as u64).unwrap();
    let bytes = bytes.to_vec();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let answer = match head.contains(".obao4") {
                true => super::client::answer("200 OK", &outboard),
                false => answer(&head, &bytes),
            };
            let _ = stream.write_all(&answer).await;
        }
    });
    let remote = client(address, "/").open(blob).await.unwrap();
    let range = BlockRange::new(16, 32).unwrap();
    let wire = remote.pull(range).await.map_err(|error| error.why())?;
    match verify(&blob, &range.into(), &wire) {
        Ok(_) => Ok(wire),
        Err(VerifyError::Wrong { block, .. }) => Err(Why::Wrong(block)),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_wrong_are_told_apart() {
    const SPAN: std::ops::Range<usize> = (256 << 10)..(512 << 10);
    const PART: &str = "206 Partial\r\nContent-Range: bytes 262144-524287/1000000";
    let bytes = test_bytes(1_000_000, 1);
    let honest = pulled(&bytes, |head, bytes| {
        assert!(
            head.to_ascii_lowercase()
                .contains("range: bytes=262144-524287\r\n"),
            "{head}"
        );
        answer(PART, &bytes[SPAN])
    });
    assert!(honest.await.is_ok());
    let forged = pulled(&bytes, |_, bytes| {
        let mut part = bytes[SPAN].to_vec();
        part[100_000] ^= 1;
        answer(PART, &part)
    });
    assert!(matches!(forged.await, Err(Why::Wrong(_))));
    let shorter = pulled(&bytes, |_, bytes| answer(PART, &bytes[SPAN][..1000]));
    assert_eq!(shorter.await, Err(Why::Ended));
    let longer = pulled(&bytes, |_, bytes| answer(PART, &bytes[SPAN.start..]));
    assert_eq!(longer.await, Err(Why::Malformed));
    let other = pulled(&bytes, |_, bytes| {
        answer(
            "206 Partial\r\nContent-Range: bytes 0-262143/1000000",
            &bytes[..SPAN.start],
        )
    });
    assert_eq!(other.await, Err(Why::Malformed));
    let size = pulled(&bytes, |_, bytes| {
        answer(
            "206 Partial\r\nContent-Range: bytes 262144-524287/1000001",
            &bytes[SPAN],
        )
    });
    assert_eq!(size.await, Err(Why::Malformed));
    let whole = pulled(&bytes, |_, bytes| answer("200 OK", bytes));
    assert_eq!(whole.await, Err(Why::Malformed));
    let lacks = pulled(&bytes, |_, _| answer("416 No\r\nContent-Length: 0", b""));
    assert_eq!(lacks.await, Err(Why::Lacks));
}
