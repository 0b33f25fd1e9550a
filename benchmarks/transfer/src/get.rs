//! A reader: the product's download, or the same answers written without a look at them.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use qk_node::blocks::behaviour::Lanes;
use qk_node::blocks::download::{DownloadOptions, Progress, STALL_MAX, download};
use qk_node::blocks::lane::Buffers;
use qk_node::blocks::part::Part;
use qk_node::blocks::source::Source;
use qk_node::net::{Contact, Net, PeerId};
use qk_node::store::{Keep, Options, Store};
use qk_protocol::blocks::{
    BLOCK_SIZE, Blob, BlockRange, CHUNK_BYTES, Encoding, Ranges, Request, UNIT_BLOCKS_MAX, wire_len,
};
use qk_protocol::time::UnixTime;
use qk_protocol::transfer::PIPELINE_MAX;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{Get, net};

/// More than a dial on one machine takes.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);

/// What came over the lanes for good.
#[derive(Default)]
struct Taken {
    /// Of the blob.
    bytes: u64,
    /// With the proofs.
    wire_bytes: u64,
    failures: Vec<String>,
}

pub async fn run(args: Get) -> Result<()> {
    let blob = Blob::new(args.root, args.size)?;
    let store = Store::open(&args.store, Options::default())?;
    let net = net::start(None).await?;

    let start = Instant::now();
    let peers = connect(&net, &args).await?;
    let connected = start.elapsed();
    let _kept: Vec<_> = peers.iter().map(|peer| net.keep(*peer)).collect();
    let (taken, downloaded) = match args.no_verify {
        true => {
            let taken = unverified(&net.lanes(), &store, blob, &peers, args.lanes).await?;
            (taken, start.elapsed())
        }
        false => verified(&net, store, blob, &peers, start).await?,
    };
    let done = json!({
        "seconds": start.elapsed().as_secs_f64(),
        "connect_seconds": connected.as_secs_f64(),
        "download_seconds": downloaded.as_secs_f64(),
        "bytes": taken.bytes,
        "wire_bytes": taken.wire_bytes,
        "failures": taken.failures,
    });
    println!("{done}");
    net.shutdown().await;
    Ok(())
}

async fn connect(net: &Net, args: &Get) -> Result<Vec<PeerId>> {
    let mut peers = Vec::new();
    for address in &args.providers {
        let contact = net.name(address)?;
        let Contact { peer, .. } = contact;
        net.connect(contact, DIAL_TIME_MAX).await?;
        peers.push(peer);
    }
    Ok(peers)
}

/// As a fetch does it, to the rename into the store. The second value is when all was on disk.
async fn verified(
    net: &Net,
    store: Store,
    blob: Blob,
    peers: &[PeerId],
    start: Instant,
) -> Result<(Taken, Duration)> {
    let (sender, providers) = mpsc::channel(peers.len());
    for peer in peers {
        sender.send(Source::Peer(*peer).into()).await?;
    }
    drop(sender);
    let part = Part::open(&Store::parts_in(store.dir())?, blob)?;
    let mut taken = Taken::default();
    let progress = |step: Progress| match step {
        Progress::Verified { range, bytes, .. } => {
            taken.bytes += bytes;
            taken.wire_bytes += wire_len(&blob, &range.into()).map_or(0, u64::from);
        }
        Progress::Failed { from, why } => taken.failures.push(format!("{from}: {why}")),
        _ => {}
    };
    let options = DownloadOptions::default();
    let finished = download(net.lanes(), part, providers, options, progress).await?;
    let downloaded = start.elapsed();
    let adopted = tokio::task::spawn_blocking(move || -> Result<()> {
        store.adopt_finished(&finished, Keep::Cache, UnixTime(0))?;
        Ok(finished.remove()?)
    });
    adopted.await??;
    Ok((taken, downloaded))
}

/// The same answers over the same lanes, cut at the places where blocks and nodes begin, and
/// written to the same files.
///
/// There is no such switch in qk itself. Without a scheduler this is, if anything, faster than the
/// download minus its verification, so that the comparison flatters nobody.
async fn unverified(
    lanes: &Lanes,
    store: &Store,
    blob: Blob,
    peers: &[PeerId],
    lanes_each: usize,
) -> Result<Taken> {
    let dir = Store::parts_in(store.dir())?.join(blob.root().to_string());
    std::fs::create_dir(&dir)?;
    let data = File::create_new(dir.join("data.tar"))?;
    data.set_len(blob.size())?;
    let outboard = File::create_new(dir.join("outboard.obao4"))?;
    outboard.set_len(blob.outboard_bytes())?;
    let files = Arc::new(Files {
        blob,
        data,
        outboard,
        writing: Mutex::default(),
        buffers: Buffers::default(),
    });

    let units: Vec<_> = blob.units(UNIT_BLOCKS_MAX).collect();
    let number = lanes_each * peers.len();
    let mut tasks = JoinSet::new();
    for lane in 0..number {
        let mine: VecDeque<_> = units.iter().skip(lane).step_by(number).copied().collect();
        let (lanes, files) = (lanes.clone(), Arc::clone(&files));
        tasks.spawn(pull(lanes, peers[lane % peers.len()], mine, files));
    }
    let mut taken = Taken::default();
    while let Some(one) = tasks.join_next().await {
        let one = one??;
        taken.bytes += one.bytes;
        taken.wire_bytes += one.wire_bytes;
    }
    Ok(taken)
}

struct Files {
    blob: Blob,
    data: File,
    outboard: File,
    /// As in a part.
    writing: Mutex<()>,
    buffers: Buffers,
}

async fn pull(
    lanes: Lanes,
    peer: PeerId,
    units: VecDeque<BlockRange>,
    files: Arc<Files>,
) -> Result<Taken> {
    let mut lane = lanes.open(peer, STALL_MAX).await?;
    let mut ahead = units.clone().into_iter();
    let mut writing = JoinSet::new();
    let mut taken = Taken::default();
    for unit in ahead.by_ref().take(PIPELINE_MAX) {
        lane.ask(&request(&files.blob, unit)).await?;
    }
    for unit in units {
        let pulled = lane.answer_in(files.buffers.take()).await?;
        if let Some(next) = ahead.next() {
            lane.ask(&request(&files.blob, next)).await?;
        }
        taken.wire_bytes += u64::from(pulled.received());
        let files = Arc::clone(&files);
        writing.spawn_blocking(move || files.write(unit, pulled.unpack()?));
    }
    while let Some(written) = writing.join_next().await {
        taken.bytes += written??;
    }
    Ok(taken)
}

fn request(blob: &Blob, unit: BlockRange) -> Request {
    Request {
        blob: *blob,
        encoding: Encoding::Raw,
        ranges: Ranges::from(unit),
    }
}

impl Files {
    /// Puts blocks and nodes where they belong, whatever they are, in the writes of the product.
    fn write(&self, unit: BlockRange, wire: Vec<u8>) -> Result<u64> {
        let tree = BaoTree::new(self.blob.size(), BLOCK_SIZE);
        let bytes = self.blob.bytes_of(unit);
        let chunks = |at: u64| ChunkNum(at.div_ceil(CHUNK_BYTES));
        let ranges = ChunkRanges::from(chunks(bytes.start)..chunks(bytes.end));
        let mut read = 0;
        let mut nodes: Vec<(u64, Vec<u8>)> = Vec::new();
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for item in tree.ranges_pre_order_chunks_iter_ref(&ranges, 0) {
            let size = match item {
                BaoChunk::Parent { .. } => 64,
                BaoChunk::Leaf { size, .. } => size,
            };
            let piece = wire.get(read..read + size).context("a short answer")?;
            read += size;
            match item {
                BaoChunk::Leaf { start_chunk, .. } => {
                    self.data.write_all_at(piece, start_chunk.to_bytes())?;
                }
                BaoChunk::Parent { node, .. } => {
                    let Some(index) = tree.pre_order_offset(node) else {
                        continue;
                    };
                    match nodes.last_mut() {
                        Some((at, pairs)) if *at + pairs.len() as u64 == index * 64 => {
                            pairs.extend_from_slice(piece);
                        }
                        _ => nodes.push((index * 64, piece.to_vec())),
                    }
                }
            }
        }
        for (at, pairs) in nodes {
            self.outboard.write_all_at(&pairs, at)?;
        }
        self.buffers.give(wire);
        Ok(bytes.end - bytes.start)
    }
}
