//! Nodes, providers and clients that the tests are made of.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncWriteExt, StreamExt};
use libp2p::StreamProtocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, Swarm, SwarmBuilder, tcp, yamux};
use qk_protocol::blocks::{
    Blob, BlockRange, EncodeError, Encoding, Ranges, Request, Status, encode, outboard,
};
use qk_protocol::hash::Root;
use qk_protocol::transfer::Why;
use tokio::sync::{mpsc, oneshot};

use super::super::behaviour::{Behaviour, Lanes, OnLane, serving};
use super::super::download::{DownloadError, DownloadOptions, Progress, download};
use super::super::lane::Lane;
use super::super::part::{Finished, Part, PartError};
use super::super::serve::{Blobs, Held, ServeLimits, Server, read_request};
use super::super::source::Source;
use super::super::test_bytes;
use crate::net::noise::Noise;

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/qk/test/blocks/1");

/// A swarm of nothing but blocks, in a task of its own.
pub(super) struct Node {
    pub(super) peer: PeerId,
    pub(super) address: Multiaddr,
    pub(super) lanes: Lanes,
    dials: mpsc::Sender<(Multiaddr, oneshot::Sender<PeerId>)>,
}

impl Node {
    pub(super) async fn new(on_lane: Option<OnLane>) -> Self {
        let (behaviour, lanes) = Behaviour::new(PROTOCOL, on_lane);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default().nodelay(true),
                Noise::new,
                yamux::Config::default,
            )
            .expect("a transport")
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

    pub(super) async fn connect(&self, other: &Self) {
        let (reply, connected) = oneshot::channel();
        let dial = (other.address.clone(), reply);
        self.dials.send(dial).await.expect("the swarm runs");
        assert_eq!(connected.await, Ok(other.peer));
    }
}

pub(super) async fn run(
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
pub(super) struct Shelf {
    pub(super) dir: PathBuf,
    pub(super) corrupt: Mutex<Vec<String>>,
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

pub(super) struct Artifact {
    pub(super) bytes: Vec<u8>,
    pub(super) tree: Vec<u8>,
    pub(super) blob: Blob,
}

pub(super) fn artifact(size: usize) -> Artifact {
    let bytes = test_bytes(size, size as u64);
    let (blob, tree) = outboard(&bytes[..], size as u64).expect("a slice reads");
    Artifact { bytes, tree, blob }
}

impl Artifact {
    pub(super) fn request(&self, start: u32, end: u32) -> Request {
        request(self.blob, start, end)
    }

    pub(super) fn put(&self, dir: &Path) {
        let path = dir.join(self.blob.root().to_string());
        fs::write(&path, &self.bytes).expect("writes");
        fs::write(path.with_extension("obao4"), &self.tree).expect("writes");
    }
}

pub(super) fn request(blob: Blob, start: u32, end: u32) -> Request {
    let ranges = Ranges::from(BlockRange::new(start, end).expect("aligned"));
    Request {
        blob,
        encoding: Encoding::Raw,
        ranges,
    }
}

/// An honest provider, and what it serves from.
pub(super) struct Provider {
    pub(super) node: Node,
    pub(super) server: Arc<Server>,
    pub(super) shelf: Arc<Shelf>,
    _dir: tempfile::TempDir,
}

pub(super) async fn provider(artifact: &Artifact, limits: ServeLimits) -> Provider {
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
pub(super) async fn hostile(
    answer: impl Fn(&Request) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Node {
    let answer = Arc::new(answer);
    let on_lane: OnLane = Arc::new(move |_, stream| {
        let answer = Arc::clone(&answer);
        tokio::spawn(misbehave(stream, answer));
    });
    Node::new(Some(on_lane)).await
}

pub(super) async fn misbehave(
    mut stream: Stream,
    answer: Arc<impl Fn(&Request) -> Option<Vec<u8>>>,
) {
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
pub(super) fn honest(artifact: &Artifact, request: &Request) -> Vec<u8> {
    let wire = encode(
        &artifact.blob,
        &request.ranges,
        &artifact.bytes[..],
        &artifact.tree[..],
    );
    [vec![Status::Ok.byte()], wire.expect("encodes")].concat()
}

/// The honest answer with one bit of one block flipped.
pub(super) fn flipped(artifact: &Artifact, request: &Request, block: u32) -> Vec<u8> {
    let mut answer = honest(artifact, request);
    let start = block as usize * 16384;
    let begin = &artifact.bytes[start..start + 64];
    if let Some(at) = answer.windows(64).position(|window| window == begin) {
        answer[at + 99] ^= 4;
    }
    answer
}

/// Where a client's parts are, and what it was told.
pub(super) struct Client {
    pub(super) node: Node,
    pub(super) parts: tempfile::TempDir,
    pub(super) stall_max: Duration,
    pub(super) patience: Duration,
    seen: Arc<Mutex<Vec<Progress>>>,
}

impl Client {
    pub(super) async fn new() -> Self {
        Self::with(Node::new(None).await)
    }

    pub(super) fn with(node: Node) -> Self {
        let parts = tempfile::tempdir().expect("a directory");
        Self {
            node,
            parts,
            stall_max: PATIENCE,
            patience: PATIENCE,
            seen: Arc::default(),
        }
    }

    pub(super) async fn fetch(
        &self,
        blob: Blob,
        providers: &[&Node],
    ) -> Result<Finished, DownloadError> {
        self.fetch_until(blob, providers, |_| {}).await
    }

    /// Connects first, and tells `progress` how it goes.
    pub(super) async fn fetch_until(
        &self,
        blob: Blob,
        providers: &[&Node],
        progress: impl FnMut(Progress) + Send,
    ) -> Result<Finished, DownloadError> {
        for provider in providers {
            self.node.connect(provider).await;
        }
        self.fetch_connected(blob, providers, progress).await
    }

    /// Fetches from providers in this order.
    pub(super) async fn fetch_connected(
        &self,
        blob: Blob,
        providers: &[&Node],
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Finished, DownloadError> {
        let (sender, receiver) = mpsc::channel(8);
        for provider in providers {
            sender
                .send(Source::from(provider.peer).into())
                .await
                .expect("has room");
        }
        drop(sender);
        // What a download before this one verifies last holds its lock until that is done.
        let part = loop {
            match Part::open(self.parts.path(), blob) {
                Err(PartError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                opened => break opened?,
            }
        };
        let options = DownloadOptions {
            stall_max: self.stall_max,
            ..DownloadOptions::default()
        };
        let fetch = download(self.node.lanes.clone(), part, receiver, options, |step| {
            self.seen.lock().expect("no panic").push(step.clone());
            progress(step);
        });
        tokio::time::timeout(self.patience, fetch)
            .await
            .expect("in time")
    }

    pub(super) async fn lane(&self, provider: &Node) -> Lane {
        self.node.connect(provider).await;
        self.node
            .lanes
            .open(provider.peer, PATIENCE)
            .await
            .expect("a lane")
    }

    pub(super) fn seen(&self) -> Vec<Progress> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }

    pub(super) fn failures(&self) -> Vec<(PeerId, Why)> {
        let seen = self.seen.lock().expect("no panic");
        let failures = seen.iter().filter_map(|step| match step {
            Progress::Failed { from, why } => Some((peer(from), *why)),
            _ => None,
        });
        failures.collect()
    }

    pub(super) fn banned(&self) -> Vec<(PeerId, Why)> {
        let seen = self.seen.lock().expect("no panic");
        let banned = seen.iter().filter_map(|step| match step {
            Progress::Banned { provider, why } => Some((peer(provider), *why)),
            _ => None,
        });
        banned.collect()
    }
}

pub(super) fn peer(source: &Source) -> PeerId {
    match source {
        Source::Peer(peer) => *peer,
        Source::Gateway(gateway) => panic!("no gateway takes part: {gateway}"),
    }
}

pub(super) fn is_whole(artifact: &Artifact, finished: &Finished) -> bool {
    fs::read(&finished.data).expect("reads") == artifact.bytes
        && fs::read(&finished.outboard).expect("reads") == artifact.tree
}

pub(super) fn fetched_bytes(seen: &[Progress]) -> u64 {
    let bytes = seen.iter().map(|step| match step {
        Progress::Verified { bytes, .. } => *bytes,
        _ => 0,
    });
    bytes.sum()
}

/// Waits for something that another task does.
pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}
