//! Two or more swarms over TCP, noise and yamux on loopback; files on disk on both sides.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use qk_protocol::blocks::{
    Blob, Block, BlockRange, Encoding, Request, Status, encode, verify, wire_len,
};
use qk_protocol::hash::Root;
use qk_protocol::transfer::{TransferError, Why};
use tokio::sync::oneshot;

use super::behaviour::{LaneError, OnLane};
use super::download::{DownloadError, Progress};
use super::lane::PullError;
use super::part::Part;
use super::serve::{ServeLimits, read_request};

mod measure;
mod swarm;

use swarm::*;

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
    let ranges: Vec<BlockRange> = client
        .seen()
        .iter()
        .filter_map(|step| match step {
            Progress::Verified { range, .. } => Some(*range),
            _ => None,
        })
        .collect();
    let blocks: u32 = ranges.iter().map(BlockRange::blocks).sum();
    assert_eq!(blocks, artifact.blob.blocks(), "each once");
    let wire: u64 = ranges
        .iter()
        .map(|range| u64::from(wire_len(&artifact.blob, &(*range).into()).expect("in the blob")))
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
    let error = client.fetch(artifact.blob, &[&liar]).await;
    error.expect_err("nobody else has it");
    assert_eq!(client.banned(), [(liar.peer, Why::Wrong(Block(70)))]);
    client.seen();
    let nodes = [&provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    let seen = client.seen();
    let Some(Progress::Resumed { bytes: resumed }) = seen.first() else {
        panic!("begins with what is there");
    };
    assert_eq!(resumed + fetched_bytes(&seen), artifact.blob.size());
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
        .expect("an answer")
        .unpack()
        .expect("raw");
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
    let error = client.fetch(artifact.blob, &[&cutting]).await;
    error.expect_err("nobody else has it");
    let failures = client.failures();
    assert!(!failures.is_empty());
    for failure in failures {
        assert_eq!(failure, (cutting.peer, Why::Ended));
    }
    let nodes = [&provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
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
    assert!(verify(&wrong, &unit, answer.expect("encodes")).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_end_is_answered_and_the_lane_goes_on() {
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
    let asked = [
        (artifact.request(192, 256), Status::BadRange),
        (artifact.request(0, 20), Status::BadRange),
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
    let error = client.fetch(artifact.blob, &[&rotten.node]).await;
    error.expect_err("nobody else has it");
    let nodes = [&good.node];
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
async fn a_provider_that_says_nothing_is_helped_out_long_before_its_lane_is_given_up() {
    let artifact = artifact(3_000_000);
    let silent = hostile(|_| Some(Vec::new())).await;
    let provider = provider(&artifact, ServeLimits::default()).await;
    let mut client = Client::new().await;
    client.stall_max = Duration::from_secs(3600);
    let nodes = [&silent, &provider.node];
    let finished = client.fetch(artifact.blob, &nodes).await.expect("arrives");
    assert!(is_whole(&artifact, &finished));
    assert_eq!(client.failures(), []);

    // Alone it is given up when nothing has come for so long.
    client.stall_max = Duration::from_millis(50);
    client.parts = tempfile::tempdir().expect("a directory");
    let error = client.fetch(artifact.blob, &[&silent]).await;
    error.expect_err("is given up");
    assert_eq!(client.failures().first(), Some(&(silent.peer, Why::Late)));
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

/// Both directions of one connection are full: lanes of their own keep them apart. With
/// `QK_SOAK_MIB` in the environment so many MiB go each way instead of 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_fetch_from_each_other_over_one_connection() {
    let mebibytes = std::env::var("QK_SOAK_MIB").map(|mib| mib.parse().expect("a number of MiB"));
    let bytes = mebibytes.unwrap_or(20) << 20;
    let (one, other) = (artifact(bytes), artifact(bytes + 1));
    let has_one = provider(&one, ServeLimits::default()).await;
    let has_other = provider(&other, ServeLimits::default()).await;
    has_one.node.connect(&has_other.node).await;
    // The other side takes note of the connection a little later.
    while has_other
        .node
        .lanes
        .stream(has_one.node.peer)
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut wants_other = Client::with(has_one.node);
    let mut wants_one = Client::with(has_other.node);
    // A deadlock would last for ever; a second for each MiB is far more than a loaded machine needs.
    let patience = PATIENCE.max(Duration::from_secs((bytes >> 20) as u64));
    (wants_other.patience, wants_one.patience) = (patience, patience);
    let (from_other, from_one) = ([&wants_one.node], [&wants_other.node]);
    let (got_other, got_one) = tokio::join!(
        wants_other.fetch_connected(other.blob, &from_other, |_| {}),
        wants_one.fetch_connected(one.blob, &from_one, |_| {}),
    );
    assert!(is_whole(&other, &got_other.expect("arrives")));
    assert!(is_whole(&one, &got_one.expect("arrives")));
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

/// Sixteen downloads at once over the four or two lanes that there are: none of them is turned away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_share_the_lanes_of_a_provider() {
    let artifacts: Vec<_> = (0..16).map(|more| artifact(900_000 + more)).collect();
    for lanes_per_peer_max in [4, 2] {
        let limits = ServeLimits {
            lanes_per_peer_max,
            ..ServeLimits::default()
        };
        let provider = provider(&artifacts[0], limits).await;
        artifacts[1..]
            .iter()
            .for_each(|one| one.put(&provider.shelf.dir));
        let client = Client::new().await;
        client.node.connect(&provider.node).await;
        let nodes = [&provider.node];
        let all = artifacts
            .iter()
            .map(|one| client.fetch_connected(one.blob, &nodes, |_| {}));
        let all = futures::future::join_all(all).await;
        for (artifact, finished) in artifacts.iter().zip(all) {
            assert!(is_whole(artifact, &finished.expect("arrives")));
        }
        assert_eq!(client.failures(), [], "{lanes_per_peer_max} lanes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_download_does_not_wait_for_the_end_of_a_large_one() {
    let (large, small) = (artifact(128 << 20), artifact(100_000));
    let provider = provider(&large, ServeLimits::default()).await;
    small.put(&provider.shelf.dir);
    let client = Client::new().await;
    let nodes = [&provider.node];
    let (begun, has_begun) = oneshot::channel();
    let mut begun = Some(begun);
    let download_large = client.fetch_until(large.blob, &nodes, |step| {
        // By now it has all lanes.
        if matches!(step, Progress::Verified { range, .. } if range.end().0 > 1000) {
            begun.take().map(|begun| begun.send(()));
        }
    });
    let download_small = async {
        has_begun.await.expect("begins");
        client.fetch_connected(small.blob, &nodes, |_| {}).await
    };
    let mut download_large = Box::pin(download_large);
    tokio::select! {
        biased;
        finished = download_small => assert!(is_whole(&small, &finished.expect("arrives"))),
        _ = &mut download_large => panic!("had to wait for all of the large one"),
    }
    assert!(is_whole(&large, &download_large.await.expect("arrives")));
    assert_eq!(client.failures(), []);
}

/// What is waited for are one's own downloads, not those who take no lane from anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_takes_no_lane_at_all_is_late() {
    let artifact = artifact(100_000);
    let provider = provider(&artifact, ServeLimits::default()).await;
    let client = Client::new().await;
    client.node.connect(&provider.node).await;
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let lane = client.node.lanes.open(provider.node.peer, PATIENCE).await;
        let mut lane = lane.expect("a lane");
        lane.pull(&artifact.request(0, 7)).await.expect("is served");
        lanes.push(lane);
    }
    let nodes = [&provider.node];
    let fetching = client.fetch_connected(artifact.blob, &nodes, |step| {
        if let Progress::Failed { .. } = step {
            lanes.clear();
        }
    });
    assert!(is_whole(&artifact, &fetching.await.expect("arrives")));
    assert_eq!(client.failures(), [(provider.node.peer, Why::Late)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_packed_where_that_is_asked_for() {
    let noise = artifact(1 << 20);
    let provider = provider(&noise, ServeLimits::default()).await;
    let client = Client::new().await;
    let mut lane = client.lane(&provider.node).await;
    for encoding in [Encoding::Raw, Encoding::Zstd] {
        let request = Request {
            encoding,
            ..noise.request(0, 64)
        };
        let pulled = lane.pull(&request).await.expect("an answer");
        let raw_bytes = wire_len(&noise.blob, &request.ranges).expect("in bounds");
        assert_eq!(pulled.received(), raw_bytes, "noise does not shrink");
        let wire = pulled.unpack().expect("an answer");
        assert!(verify(&noise.blob, &request.ranges, &wire).is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_packs_into_more_than_there_is_is_dropped_before_it_is_read() {
    let noise = artifact(1 << 20);
    let liar = hostile(|_| Some([&[Status::Ok.byte()][..], &[0xff; 4]].concat())).await;
    let client = Client::new().await;
    let request = Request {
        encoding: Encoding::Zstd,
        ..noise.request(0, 64)
    };
    let pulled = client.lane(&liar).await.pull(&request).await;
    let error = pulled.expect_err("is refused");
    assert!(matches!(error, PullError::Packed), "{error}");
    assert_eq!(error.why(), Why::Malformed);
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
        let wire = lane.answer().await.expect("answers").unpack();
        let wire = wire.expect("raw");
        assert!(verify(&artifact.blob, &request.ranges, &wire).is_ok());
    }
    assert!(matches!(lane.answer().await, Err(PullError::OutOfStep)));
}
