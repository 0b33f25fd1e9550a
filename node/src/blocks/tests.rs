//! Two or more swarms over TCP, noise and yamux on loopback; files on disk on both sides.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, Swarm, SwarmBuilder, noise, tcp, yamux};
use qk_protocol::blocks::{
    Blob, Block, BlockRange, EncodeError, Encoding, Ranges, Request, Status, encode, outboard,
    verify, wire_len,
};
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::transfer::{TransferError, Why};
use tokio::sync::{mpsc, oneshot};

use super::behaviour::{Behaviour, LaneError, Lanes, OnLane, serving};
use super::download::{DownloadError, DownloadOptions, Progress, download};
use super::lane::{Lane, PullError};
use super::part::{Finished, Part};
use super::serve::{Blobs, Held, ServeLimits, Server, read_request};
use super::test_bytes;

const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: NetworkId = NetworkId([7; 32]);

/// A swarm of nothing but blocks, in a task of its own.
struct Node {
    peer: PeerId,
    address: Multiaddr,
    lanes: Lanes,
    dials: mpsc::Sender<(Multiaddr, oneshot::Sender<PeerId>)>,
}

impl Node {
    async fn new(on_lane: Option<OnLane>) -> Self {
        let (behaviour, lanes) = Behaviour::new(&NETWORK, on_lane);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default().nodelay(true),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("noise")
            .with_behaviour(|_| behaviour)
            .expect("a behaviour")
            .build();
        let any = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
        swarm.listen_on(any).expect("listens");
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        let peer = *swarm.local_peer_id();
        let (dials, dialled) = mpsc::channel(8);
        tokio::spawn(run(swarm, dialled));
        Self {
            peer,
            address,
            lanes,
            dials,
        }
    }

    async fn connect(&self, other: &Self) {
        let (reply, connected) = oneshot::channel();
        let dial = (other.address.clone(), reply);
        self.dials.send(dial).await.expect("the swarm runs");
        assert_eq!(connected.await, Ok(other.peer));
    }
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    mut dialled: mpsc::Receiver<(Multiaddr, oneshot::Sender<PeerId>)>,
) {
    let mut waiting = BTreeMap::new();
    loop {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } = event
                    && let Some(reply) = waiting.remove(&endpoint.get_remote_address().to_string())
                {
                    let _: Result<(), PeerId> = oneshot::Sender::send(reply, peer_id);
                }
            }
            dial = dialled.recv() => {
                let Some((address, reply)) = dial else { return };
                waiting.insert(address.to_string(), reply);
                swarm.dial(address).expect("dials");
            }
        }
    }
}

/// Blobs as files in one directory.
struct Shelf {
    dir: PathBuf,
    corrupt: Mutex<Vec<String>>,
}

impl Blobs for Shelf {
    fn open(&self, root: Root) -> io::Result<Option<Held>> {
        let path = self.dir.join(root.to_string());
        let data = match File::open(&path) {
            Err(none) if none.kind() == io::ErrorKind::NotFound => return Ok(None),
            data => data?,
        };
        let outboard = File::open(path.with_extension("obao4"))?;
        let size = data.metadata()?.len();
        Ok(Some(Held {
            data,
            outboard,
            size,
        }))
    }

    fn is_corrupt(&self, _: Root, error: &EncodeError) {
        self.corrupt
            .lock()
            .expect("no panic")
            .push(error.to_string());
    }
}

struct Artifact {
    bytes: Vec<u8>,
    tree: Vec<u8>,
    blob: Blob,
}

fn artifact(size: usize) -> Artifact {
    let bytes = test_bytes(size, size as u64);
    let (blob, tree) = outboard(&bytes[..], size as u64).expect("a slice reads");
    Artifact { bytes, tree, blob }
}

impl Artifact {
    fn request(&self, start: u32, end: u32) -> Request {
        request(self.blob, start, end)
    }

    fn put(&self, dir: &Path) {
        let path = dir.join(self.blob.root().to_string());
        fs::write(&path, &self.bytes).expect("writes");
        fs::write(path.with_extension("obao4"), &self.tree).expect("writes");
    }
}

fn request(blob: Blob, start: u32, end: u32) -> Request {
    let ranges = Ranges::from(BlockRange::new(start, end).expect("aligned"));
    Request {
        blob,
        encoding: Encoding::Raw,
        ranges,
    }
}

/// An honest provider, and what it serves from.
struct Provider {
    node: Node,
    server: Arc<Server>,
    shelf: Arc<Shelf>,
    _dir: tempfile::TempDir,
}

async fn provider(artifact: &Artifact, limits: ServeLimits) -> Provider {
    let dir = tempfile::tempdir().expect("a directory");
    artifact.put(dir.path());
    let shelf = Arc::new(Shelf {
        dir: dir.path().to_owned(),
        corrupt: Mutex::default(),
    });
    let server = Server::new(Arc::clone(&shelf) as Arc<dyn Blobs>, limits);
    let node = Node::new(Some(serving(Arc::clone(&server)))).await;
    Provider {
        node,
        server,
        shelf,
        _dir: dir,
    }
}

/// A provider that answers with whatever `answer` makes of a request, status included; then it
/// closes the lane where that is none, or says nothing more where it is empty.
async fn hostile(answer: impl Fn(&Request) -> Option<Vec<u8>> + Send + Sync + 'static) -> Node {
    let answer = Arc::new(answer);
    let on_lane: OnLane = Arc::new(move |_, stream| {
        let answer = Arc::clone(&answer);
        tokio::spawn(misbehave(stream, answer));
    });
    Node::new(Some(on_lane)).await
}

async fn misbehave(mut stream: Stream, answer: Arc<impl Fn(&Request) -> Option<Vec<u8>>>) {
    while let Ok(Some(request)) = read_request(&mut stream).await {
        let Some(bytes) = answer(&request) else {
            let _ = stream.close().await;
            return;
        };
        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// The honest answer, status included.
fn honest(artifact: &Artifact, request: &Request) -> Vec<u8> {
    let wire = encode(
        &artifact.blob,
        &request.ranges,
        &artifact.bytes[..],
        &artifact.tree[..],
    );
    [vec![Status::Ok.byte()], wire.expect("encodes")].concat()
}

/// The honest answer with one bit of one block flipped.
fn flipped(artifact: &Artifact, request: &Request, block: u32) -> Vec<u8> {
    let mut answer = honest(artifact, request);
    let start = block as usize * 16384;
    let begin = &artifact.bytes[start..start + 64];
    if let Some(at) = answer.windows(64).position(|window| window == begin) {
        answer[at + 99] ^= 4;
    }
    answer
}

/// Where a client's parts are, and what it was told.
struct Client {
    node: Node,
    parts: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Progress>>>,
}

impl Client {
    async fn new() -> Self {
        let parts = tempfile::tempdir().expect("a directory");
        Self {
            node: Node::new(None).await,
            parts,
            seen: Arc::default(),
        }
    }

    async fn fetch(&self, blob: Blob, providers: &[&Node]) -> Result<Finished, DownloadError> {
        self.fetch_until(blob, providers, |_| {}).await
    }

    /// Fetches from providers in this order.
    async fn fetch_until(
        &self,
        blob: Blob,
        providers: &[&Node],
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Finished, DownloadError> {
        let (sender, receiver) = mpsc::channel(8);
        for provider in providers {
            self.node.connect(provider).await;
            sender.send(provider.peer).await.expect("has room");
        }
        drop(sender);
        let part = Part::open(self.parts.path(), blob)?;
        let options = DownloadOptions {
            stall_max: Duration::from_millis(400),
        };
        let fetch = download(self.node.lanes.clone(), part, receiver, options, |step| {
            self.seen.lock().expect("no panic").push(step);
            progress(step);
        });
        tokio::time::timeout(PATIENCE, fetch)
            .await
            .expect("in time")
    }

    async fn lane(&self, provider: &Node) -> Lane {
        self.node.connect(provider).await;
        self.node
            .lanes
            .open(provider.peer, PATIENCE)
            .await
            .expect("a lane")
    }

    fn seen(&self) -> Vec<Progress> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }

    fn failures(&self) -> Vec<(PeerId, Why)> {
        let seen = self.seen.lock().expect("no panic");
        let failures = seen.iter().filter_map(|step| match step {
            Progress::Failed { from, why } => Some((*from, *why)),
            _ => None,
        });
        failures.collect()
    }

    fn banned(&self) -> Vec<(PeerId, Why)> {
        let seen = self.seen.lock().expect("no panic");
        let banned = seen.iter().filter_map(|step| match step {
            Progress::Banned { provider, why } => Some((*provider, *why)),
            _ => None,
        });
        banned.collect()
    }
}

fn is_whole(artifact: &Artifact, finished: &Finished) -> bool {
    fs::read(&finished.data).expect("reads") == artifact.bytes
        && fs::read(&finished.outboard).expect("reads") == artifact.tree
}

fn fetched_bytes(seen: &[Progress]) -> u64 {
    let bytes = seen.iter().map(|step| match step {
        Progress::Verified { bytes, .. } => *bytes,
        _ => 0,
    });
    bytes.sum()
}

/// Waits for something that another task does.
async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_arrive_and_nothing_is_sent_twice() {
    let artifact = artifact(10_000_001);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let finished = client
        .fetch(artifact.blob, &[&provider.node])
        .await
        .expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.failures(), []);
    let wire: u64 = artifact
        .blob
        .units(64)
        .map(|unit| u64::from(wire_len(&artifact.blob, &unit.into()).expect("in the blob")))
        .sum();
    assert_eq!(provider.server.sent_bytes(), wire);
    until(|| provider.server.lanes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_was_dropped_goes_on_where_it_was() {
    let artifact = artifact(10_000_001);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let (enough, stop) = oneshot::channel();
    let (mut enough, mut sum) = (Some(enough), 0);
    let nodes = [&provider.node];
    let first = client.fetch_until(artifact.blob, &nodes, |step| {
        sum += fetched_bytes(&[step]);
        if sum >= 4 << 20
            && let Some(enough) = enough.take()
        {
            let _ = enough.send(());
        }
    });
    tokio::select! {
        biased;
        _ = stop => {}
        _ = first => panic!("was to be dropped before its end"),
    }
    let counted = fetched_bytes(&client.seen());
    assert!((4 << 20..artifact.blob.size()).contains(&counted));
    // What was sent may be on its way to the disk, and the part is locked until it is there.
    until(|| Part::open(client.parts.path(), artifact.blob).is_ok()).await;

    let finished = client
        .fetch(artifact.blob, &[&provider.node])
        .await
        .expect("arrives");
    assert!(is_whole(&artifact, &finished));
    let seen = client.seen();
    let Some(Progress::Resumed { bytes: resumed }) = seen.first() else {
        panic!("begins with what is there");
    };
    assert!(*resumed >= counted, "all that was counted is there");
    assert_eq!(
        resumed + fetched_bytes(&seen),
        artifact.blob.size(),
        "and not fetched again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_bans_its_sender_at_exactly_that_block() {
    let artifact = Arc::new(artifact(3_000_000));
    let forged = Arc::clone(&artifact);
    let liar = hostile(move |request| Some(flipped(&forged, request, 70))).await;
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let nodes = [&liar, &provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.banned(), [(liar.peer, Why::Wrong(Block(70)))]);
    let seen = client.seen();
    let by_liar =
        |step: &&Progress| matches!(step, Progress::Verified { from, .. } if *from == liar.peer);
    assert_eq!(
        fetched_bytes(&seen.iter().filter(by_liar).copied().collect::<Vec<_>>()),
        1 << 20
    );
}

/// The defence is the comparison with the root, nothing else: put where they belong without it,
/// the same bytes make a file of the right size with another content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_verification_the_flipped_bit_would_be_on_disk() {
    let artifact = Arc::new(artifact(1 << 20));
    let forged = Arc::clone(&artifact);
    let liar = hostile(move |request| Some(flipped(&forged, request, 17))).await;
    let client = Client::new().await;
    let request = artifact.request(0, 64);
    let wire = client
        .lane(&liar)
        .await
        .pull(&request)
        .await
        .expect("an answer");
    let error = verify(&artifact.blob, &request.ranges, &wire).expect_err("is forged");
    assert!(error.to_string().starts_with("block 17 of "), "{error}");

    let tree = bao_tree::BaoTree::new(1 << 20, qk_protocol::blocks::BLOCK_SIZE);
    let all = bao_tree::ChunkRanges::all();
    let (mut rest, mut taken) = (&wire[..], Vec::new());
    for item in tree.ranges_pre_order_chunks_iter_ref(&all, 0) {
        let (is_leaf, size) = match item {
            bao_tree::iter::BaoChunk::Parent { .. } => (false, 64),
            bao_tree::iter::BaoChunk::Leaf { size, .. } => (true, size),
        };
        let (piece, after) = rest.split_at(size);
        rest = after;
        if is_leaf {
            taken.extend_from_slice(piece);
        }
    }
    let differing: Vec<_> = (0..1 << 20)
        .filter(|at| taken[*at] != artifact.bytes[*at])
        .collect();
    assert_eq!(differing, [17 * 16384 + 99]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_an_answer_early_lacks_the_rest_and_is_not_banned() {
    let artifact = Arc::new(artifact(3_000_000));
    let short = Arc::clone(&artifact);
    let cut = move |mut stream: Stream, artifact: Arc<Artifact>| async move {
        if let Ok(Some(request)) = read_request(&mut stream).await {
            let answer = honest(&artifact, &request);
            let _ = stream.write_all(&answer[..answer.len() / 2]).await;
            let _ = stream.close().await;
        }
    };
    let on_lane: OnLane = Arc::new(move |_, stream| {
        tokio::spawn(cut(stream, Arc::clone(&short)));
    });
    let cutting = Node::new(Some(on_lane)).await;
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let nodes = [&cutting, &provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.failures(), [(cutting.peer, Why::Ended)]);
    assert_eq!(client.banned(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_bytes_than_asked_for_are_never_taken() {
    let artifact = Arc::new(artifact(3_000_000));
    let more = Arc::clone(&artifact);
    let chatty =
        hostile(move |request| Some([honest(&more, request), vec![0xee; 100_000]].concat())).await;
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let nodes = [&chatty, &provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.banned(), [(chatty.peer, Why::Malformed)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_with_another_size_is_told_so_instead_of_banning_the_honest() {
    let artifact = artifact(3_000_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let wrong = Blob::new(artifact.blob.root(), 2_999_999).expect("in bounds");
    let error = client
        .fetch(wrong, &[&provider.node])
        .await
        .expect_err("no such blob");
    assert!(
        matches!(
            error,
            DownloadError::Transfer(TransferError::NoProviders { .. })
        ),
        "{error}"
    );
    assert_eq!(client.banned(), []);

    // Without the size in the request it would look like a forgery.
    let unit = BlockRange::new(128, 184).expect("aligned").into();
    let answer = encode(
        &artifact.blob,
        &unit,
        &artifact.bytes[..],
        &artifact.tree[..],
    );
    assert!(verify(&wrong, &unit, &answer.expect("encodes")).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_end_or_not_spoken_is_answered_and_the_lane_goes_on() {
    let artifact = artifact(3_000_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    client.node.connect(&provider.node).await;
    let mut stream = client
        .node
        .lanes
        .stream(provider.node.peer)
        .await
        .expect("a stream");
    let other = Blob::new(Root([1; 32]), 3_000_000).expect("in bounds");
    let zstd = Request {
        encoding: Encoding::Zstd,
        ..artifact.request(0, 16)
    };
    let asked = [
        (artifact.request(192, 256), Status::BadRange),
        (artifact.request(0, 20), Status::BadRange),
        (zstd, Status::NotSpoken),
        (request(other, 0, 16), Status::Lacks),
        (artifact.request(0, 16), Status::Ok),
    ];
    for (request, status) in asked {
        stream.write_all(&request.encode()).await.expect("writes");
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("reads");
        assert_eq!(Status::from_byte(byte[0]), Some(status));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_the_protocol_is_dropped() {
    let artifact = artifact(100_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    client.node.connect(&provider.node).await;
    let mut stream = client
        .node
        .lanes
        .stream(provider.node.peer)
        .await
        .expect("a stream");
    stream.write_all(&[9; 64]).await.expect("writes");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    until(|| provider.server.lanes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_copy_is_reported_and_never_sent() {
    let artifact = artifact(3_000_000);
    let rotten = provider(&artifact, ServeLimits::default()).await;
    let path = rotten.shelf.dir.join(artifact.blob.root().to_string());
    let mut bytes = artifact.bytes.clone();
    bytes[100 * 16384] ^= 1;
    fs::write(&path, bytes).expect("writes");
    let good = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let nodes = [&rotten.node, &good.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.banned(), [], "who checks first is not banned");
    let reports = rotten.shelf.corrupt.lock().expect("no panic").clone();
    assert!(
        reports[0].ends_with("is corrupt at block 100"),
        "{reports:?}"
    );
    assert!(good.server.sent_bytes() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_says_nothing_is_left_for_the_next_one() {
    let artifact = artifact(3_000_000);
    let silent = hostile(|_| Some(Vec::new())).await;
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let nodes = [&silent, &provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.failures(), [(silent.peer, Why::Late)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_serves_nothing_or_is_not_there_is_not_waited_for() {
    let artifact = artifact(100_000);
    let (leech, client) = (Node::new(None).await, Client::new().await);
    client.node.connect(&leech).await;
    let none = client
        .node
        .lanes
        .stream(leech.peer)
        .await
        .expect_err("serves nothing");
    assert!(matches!(none, LaneError::NotSpoken(_)), "{none}");
    let nobody = client
        .node
        .lanes
        .stream(PeerId::random())
        .await
        .expect_err("not connected");
    assert!(matches!(nobody, LaneError::NotConnected(_)), "{nobody}");
    let error = client
        .fetch(artifact.blob, &[&leech])
        .await
        .expect_err("no provider");
    insta::assert_snapshot!(error, @"no provider left for 7 of 7 blocks");
}

/// Sends requests and reads no answer.
async fn slow_reader(client: &Client, artifact: &Artifact, provider: &Provider) -> Stream {
    let mut stream = client
        .node
        .lanes
        .stream(provider.node.peer)
        .await
        .expect("a stream");
    let request = artifact.request(0, 64).encode();
    stream.write_all(&request).await.expect("writes");
    stream.flush().await.expect("flushes");
    stream
}

/// Memory for two answers at once.
fn two_answers(piece_timeout: Duration) -> ServeLimits {
    ServeLimits {
        encoded_bytes_max: 2_200_000,
        busy_after: Duration::from_millis(50),
        piece_timeout,
        ..ServeLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_are_dropped_before_they_take_all_memory() {
    let artifact = artifact(4 << 20);
    let patient = provider(&artifact, two_answers(Duration::from_secs(3600))).await;
    let strict = provider(&artifact, two_answers(Duration::from_millis(100))).await;
    let (slow, client) = (Client::new().await, Client::new().await);
    let mut held = Vec::new();
    for provider in [&patient, &strict] {
        slow.node.connect(&provider.node).await;
        held.push(slow_reader(&slow, &artifact, provider).await);
        held.push(slow_reader(&slow, &artifact, provider).await);
    }
    until(|| strict.server.lanes() == 0).await;
    assert_eq!(patient.server.lanes(), 2, "without the time-out they stay");

    let request = artifact.request(64, 128);
    let refused = client.lane(&patient.node).await.pull(&request).await;
    assert!(
        matches!(refused, Err(PullError::Answered(Status::Busy))),
        "{refused:?}"
    );
    let served = client.lane(&strict.node).await.pull(&request).await;
    assert!(served.is_ok(), "{served:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_so_many_lanes_and_dropping_one_frees_it() {
    let artifact = artifact(100_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    client.node.connect(&provider.node).await;
    let open = || client.node.lanes.open(provider.node.peer, PATIENCE);
    let request = artifact.request(0, 7);
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let mut lane = open().await.expect("a lane");
        lane.pull(&request).await.expect("is served");
        lanes.push(lane);
    }
    let refused = open().await.expect("a stream").pull(&request).await;
    assert!(
        matches!(refused, Err(PullError::Closed | PullError::Io(_))),
        "{refused:?}"
    );
    lanes.pop();
    until(|| provider.server.lanes() == 3).await;
    open()
        .await
        .expect("a lane")
        .pull(&request)
        .await
        .expect("is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_pipelined_by_two_and_no_more() {
    let artifact = artifact(3_000_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let mut lane = client.lane(&provider.node).await;
    let (first, second) = (artifact.request(64, 128), artifact.request(0, 64));
    lane.ask(&first).await.expect("asks");
    lane.ask(&second).await.expect("asks");
    assert!(matches!(lane.ask(&first).await, Err(PullError::OutOfStep)));
    for request in [&first, &second] {
        let wire = lane.answer().await.expect("answers");
        assert!(verify(&artifact.blob, &request.ranges, &wire).is_ok());
    }
    assert!(matches!(lane.answer().await, Err(PullError::OutOfStep)));
}

/// Prints where the time of a large download goes; run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_two_hundred_megabytes() {
    let artifact = artifact(200_000_000);
    let rate = |what: &str, took: Duration| {
        println!(
            "{what:<36} {:>8.1} ms {:>7.0} MB/s",
            took.as_secs_f64() * 1e3,
            200.0 / took.as_secs_f64()
        );
    };
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    let root = artifact.blob.root();

    let start = std::time::Instant::now();
    let held = provider.shelf.open(root).expect("opens").expect("is here");
    let mut wires = Vec::new();
    for unit in artifact.blob.units(64) {
        wires.push((
            unit,
            encode(&artifact.blob, &unit.into(), &held.data, &held.outboard).expect("encodes"),
        ));
    }
    rate("encode alone, 1 thread", start.elapsed());
    let start = std::time::Instant::now();
    let verified: Vec<_> = wires
        .iter()
        .map(|(unit, wire)| verify(&artifact.blob, &(*unit).into(), wire).expect("verifies"))
        .collect();
    rate("verify alone, 1 thread", start.elapsed());
    let scratch = tempfile::tempdir().expect("a directory");
    let part = Part::open(scratch.path(), artifact.blob).expect("opens");
    let start = std::time::Instant::now();
    for one in &verified {
        part.write_verified(one).expect("writes");
    }
    rate("write alone, 1 thread", start.elapsed());
    let start = std::time::Instant::now();
    assert_eq!(part.valid().expect("reads").len(), 763);
    rate("find what is valid", start.elapsed());
    let start = std::time::Instant::now();
    part.finish().expect("is whole");
    rate("finish (whole check)", start.elapsed());
    drop((wires, verified));

    let mut lane = client.lane(&provider.node).await;
    let start = std::time::Instant::now();
    let units: Vec<_> = artifact.blob.units(64).collect();
    let ask = |unit: &BlockRange| artifact.request(unit.start().0, unit.end().0);
    lane.ask(&ask(&units[0])).await.expect("asks");
    for next in units.iter().skip(1) {
        lane.ask(&ask(next)).await.expect("asks");
        lane.answer().await.expect("answers");
    }
    lane.answer().await.expect("answers");
    rate("lane alone, encode and wire", start.elapsed());
    drop(lane);

    let start = std::time::Instant::now();
    let finished = client
        .fetch(artifact.blob, &[&provider.node])
        .await
        .expect("arrives");
    rate("download, everything", start.elapsed());
    assert!(is_whole(&artifact, &finished));
}
