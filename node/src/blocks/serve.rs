//! Answers to requests for blocks: bounded in memory, time and lanes, and never a corrupt byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId;
use qk_protocol::blocks::{
    self, Blob, EncodeError, Encoding, REQUEST_HEAD_BYTES, Ranges, Request, RequestError, Status,
    wire_len,
};
use qk_protocol::hash::Root;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::behaviour::Reader;
use super::pack::pack;
use crate::counters::Counters;
use crate::crowd::{Crowd, Place};
use crate::manners::{Grant, Uploads};

/// How often somebody has to go while a request waits for memory.
const PRESS_EVERY: Duration = Duration::from_millis(100);

/// A blob that is here, opened. Files that are unlinked meanwhile stay readable.
#[derive(Debug)]
pub struct Held {
    /// The blob.
    pub data: File,
    /// Its pre-order outboard.
    pub outboard: File,
    /// Bytes of the blob.
    pub size: u64,
}

/// Where blobs come from: the store.
pub trait Blobs: Send + Sync + 'static {
    /// Opens a complete blob; none when it is not here. Called off the reactor.
    fn open(&self, root: Root) -> io::Result<Option<Held>>;

    /// Told when the copy of `root` turned out not to be what its root says. It was not sent.
    fn is_corrupt(&self, root: Root, error: &EncodeError);
}

/// What brings blobs that are not here: a cache.
pub trait Obtain: Send + Sync + 'static {
    /// Waits until these ranges of a blob are here, or will not be for now; less long than a reader
    /// waits for the first byte of an answer.
    fn obtain(&self, peer: PeerId, blob: Blob, ranges: Ranges) -> BoxFuture<'_, Obtained>;

    /// Opens what is here of a blob whose download is under way; none when there is nothing. Called
    /// off the reactor.
    fn part(&self, blob: Blob) -> io::Result<Option<Held>>;
}

/// What came of obtaining a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obtained {
    /// The whole of it is here.
    Here,
    /// The ranges asked for are in the part that is being written.
    Part,
    /// Not yet: come again.
    Busy,
    /// Not here, and not to be had here.
    Lacks,
}

/// How much serving may cost.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Encoded bytes in memory, over all peers. At least 2 MiB, one answer.
    pub encoded_bytes_max: u32,
    /// Lanes of one peer.
    pub lanes_per_peer_max: usize,
    /// Lanes of all peers.
    pub lanes_max: usize,
    /// How long a request waits for memory before the answer is [`Status::Busy`].
    pub busy_after: Duration,
    /// How long a lane may be without a request, and a request without its end.
    pub idle_max: Duration,
    /// How long 64 KiB may take to leave: slower readers are dropped.
    pub piece_timeout: Duration,
    /// How long they may take while others want lanes or memory, and how long a lane may be without a
    /// request then.
    pub slow_after: Duration,
}

impl Default for ServeLimits {
    /// 16 MiB, 4 lanes a peer, 64 in all; slower than 8 KiB/s is dropped, in a crowd than 32 KiB/s.
    fn default() -> Self {
        Self {
            encoded_bytes_max: 16 << 20,
            lanes_per_peer_max: 4,
            lanes_max: 64,
            busy_after: Duration::from_secs(2),
            idle_max: Duration::from_secs(30),
            piece_timeout: Duration::from_secs(8),
            slow_after: Duration::from_secs(2),
        }
    }
}

impl ServeLimits {
    /// For the cache of a laboratory, whose readers come all at once: 64 MiB, 1024 lanes.
    pub fn cache() -> Self {
        Self {
            encoded_bytes_max: 64 << 20,
            lanes_max: 1024,
            busy_after: Duration::from_secs(8),
            ..Self::default()
        }
    }
}

/// Why a lane ended that its reader did not close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It has as many lanes as it may, or all peers together have.
    #[error("too many lanes")]
    TooManyLanes,
    /// It does not speak the protocol.
    #[error("malformed request: {0}")]
    Malformed(#[from] RequestError),
    /// No request, or the rest of one, came.
    #[error("no request in time")]
    Idle,
    /// The answer was not read fast enough.
    #[error("reads too slowly")]
    Slow,
    /// Others wanted the room of a reader that dawdles, or has many lanes.
    #[error("made room for others")]
    Crowded,
    /// The connection broke.
    #[error("lane broke: {0}")]
    Io(#[from] io::Error),
}

/// Serves the blobs of one store to all peers.
pub struct Server {
    blobs: Arc<dyn Blobs>,
    obtain: Option<Arc<dyn Obtain>>,
    limits: ServeLimits,
    uploads: Uploads,
    memory: Arc<Semaphore>,
    crowd: Arc<Crowd>,
    lanes: Mutex<BTreeMap<PeerId, usize>>,
    sent_bytes: AtomicU64,
    counters: Counters,
}

impl Server {
    /// A server of `blobs` within `limits`, which gives whatever is asked for at once.
    pub fn new(blobs: Arc<dyn Blobs>, limits: ServeLimits) -> Arc<Self> {
        Self::with(blobs, limits, Uploads::default(), Counters::default())
    }

    /// A server that gives as its owner allows, and counts what it gives together with others.
    pub fn with(
        blobs: Arc<dyn Blobs>,
        limits: ServeLimits,
        uploads: Uploads,
        counters: Counters,
    ) -> Arc<Self> {
        Self::obtaining(blobs, limits, uploads, counters, None)
    }

    /// As [`with`](Self::with); what is not here may be obtained.
    pub fn obtaining(
        blobs: Arc<dyn Blobs>,
        limits: ServeLimits,
        uploads: Uploads,
        counters: Counters,
        obtain: Option<Arc<dyn Obtain>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            blobs,
            obtain,
            uploads,
            memory: Arc::new(Semaphore::new(limits.encoded_bytes_max as usize)),
            crowd: Crowd::new(limits.lanes_max, limits.slow_after),
            limits,
            lanes: Mutex::default(),
            sent_bytes: AtomicU64::new(0),
            counters,
        })
    }

    /// Lanes open now, over all peers.
    pub fn lanes(&self) -> usize {
        self.crowd.taken()
    }

    /// Peers with a lane.
    pub fn readers(&self) -> usize {
        self.lanes_by_peer().len()
    }

    /// Bytes of answers that were sent whole, since the start.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Answers the requests of one lane until its reader closes it, or does what it may not.
    pub async fn serve<S>(self: Arc<Self>, reader: Reader, stream: S) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let _counted = self.count(reader.peer).ok_or(ServeError::TooManyLanes)?;
        let place = self.crowd.enter(reader.prefix);
        let place = place.ok_or(ServeError::TooManyLanes)?;
        select! {
            served = self.answer_all(reader.peer, stream, &place) => served,
            () = place.end() => Err(ServeError::Crowded),
        }
    }

    async fn answer_all<S>(
        &self,
        peer: PeerId,
        mut stream: S,
        place: &Place,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(request) = self.read(&mut stream).await? {
            place.renew();
            let answer = self.answer(peer, request, place).await;
            let (status, bytes) = (answer.status, answer.wire.len());
            self.write(&mut stream, answer, place).await?;
            self.counters.blocks_answered(status, bytes);
        }
        Ok(())
    }

    async fn read(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Request>, ServeError> {
        let read = timeout(self.limits.idle_max, read_request(stream)).await;
        read.map_err(|_| ServeError::Idle)?
    }

    async fn answer(&self, peer: PeerId, request: Request, place: &Place) -> Answer {
        let answer = self.answer_with(&request, place, Self::open_whole).await;
        let Some(obtain) = &self.obtain else {
            return answer;
        };
        if answer.status != Status::Lacks {
            return answer;
        }
        // No memory is held meanwhile.
        let obtaining = obtain.obtain(peer, request.blob, request.ranges.clone());
        // That it takes its time is not the reader's doing.
        let renewing = async {
            loop {
                place.renew();
                sleep(PRESS_EVERY).await;
            }
        };
        let obtained = select! {
            obtained = obtaining => obtained,
            never = renewing => never,
        };
        match obtained {
            Obtained::Here => self.answer_with(&request, place, Self::open_whole).await,
            Obtained::Part => self.answer_with(&request, place, Self::open_part).await,
            Obtained::Busy => Status::Busy.into(),
            Obtained::Lacks => Status::Lacks.into(),
        }
    }

    async fn answer_with(&self, request: &Request, place: &Place, open: Opener) -> Answer {
        let Ok(bytes) = wire_len(&request.blob, &request.ranges) else {
            return Status::BadRange.into();
        };
        let grant = match self.uploads.admit(bytes).await {
            Ok(grant) => grant,
            Err(status) => return status.into(),
        };
        let Some(memory) = self.memory_for(bytes, place).await else {
            return Status::Busy.into();
        };
        let (blobs, obtain) = (Arc::clone(&self.blobs), self.obtain.clone());
        let request = request.clone();
        let encoding = tokio::task::spawn_blocking(move || {
            let source = open(&*blobs, obtain.as_deref(), request.blob)?;
            encode(&source, &*blobs, &request)
        });
        match encoding.await {
            Ok(Ok(wire)) => Answer {
                status: Status::Ok,
                wire,
                grant: Some(grant),
                _memory: Some(memory),
            },
            Ok(Err(status)) => status.into(),
            // The task panicked or the runtime ends.
            Err(_) => Status::Lacks.into(),
        }
    }

    fn open_whole(blobs: &dyn Blobs, _: Option<&dyn Obtain>, blob: Blob) -> Result<Source, Status> {
        let held = blobs.open(blob.root()).ok().flatten();
        held.map(Source::Whole).ok_or(Status::Lacks)
    }

    /// What is being written, or what came of it meanwhile.
    fn open_part(
        blobs: &dyn Blobs,
        obtain: Option<&dyn Obtain>,
        blob: Blob,
    ) -> Result<Source, Status> {
        if let Ok(whole) = Self::open_whole(blobs, obtain, blob) {
            return Ok(whole);
        }
        let part = obtain.and_then(|obtain| obtain.part(blob).ok().flatten());
        part.map(Source::Part).ok_or(Status::Busy)
    }

    /// While it waits, those who dawdle or have many lanes have to go.
    async fn memory_for(&self, bytes: u32, place: &Place) -> Option<OwnedSemaphorePermit> {
        let wait = Arc::clone(&self.memory).acquire_many_owned(bytes);
        let pressed = async {
            loop {
                sleep(PRESS_EVERY).await;
                place.press();
            }
        };
        let wait = async {
            select! {
                memory = wait => memory.ok(),
                never = pressed => never,
            }
        };
        timeout(self.limits.busy_after, wait).await.ok().flatten()
    }

    async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        answer: Answer,
        place: &Place,
    ) -> Result<(), ServeError> {
        self.in_time(stream.write_all(&[answer.status.byte()]))
            .await?;
        if let Some(mut grant) = answer.grant {
            for piece in answer.wire.chunks(grant.piece_bytes()) {
                grant.take(piece.len()).await;
                // The owner's rate made it wait, not the reader.
                place.renew();
                self.in_time(stream.write_all(piece)).await?;
                place.renew();
            }
        }
        self.in_time(stream.flush()).await?;
        self.sent_bytes
            .fetch_add(answer.wire.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn in_time(&self, write: impl Future<Output = io::Result<()>>) -> Result<(), ServeError> {
        let written = timeout(self.limits.piece_timeout, write).await;
        Ok(written.map_err(|_| ServeError::Slow)??)
    }

    fn count(self: &Arc<Self>, peer: PeerId) -> Option<Counted> {
        let mut lanes = self.lanes_by_peer();
        let of_peer = lanes.entry(peer).or_default();
        if *of_peer >= self.limits.lanes_per_peer_max {
            return None;
        }
        *of_peer += 1;
        Some(Counted {
            server: Arc::clone(self),
            peer,
        })
    }

    fn lanes_by_peer(&self) -> MutexGuard<'_, BTreeMap<PeerId, usize>> {
        // Counts are whole after every step under the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A lane that counts while this lives.
struct Counted {
    server: Arc<Server>,
    peer: PeerId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut lanes = self.server.lanes_by_peer();
        if let Some(of_peer) = lanes.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                lanes.remove(&self.peer);
            }
        }
    }
}

struct Answer {
    status: Status,
    wire: Vec<u8>,
    grant: Option<Grant>,
    _memory: Option<OwnedSemaphorePermit>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self {
            status,
            wire: Vec::new(),
            grant: None,
            _memory: None,
        }
    }
}

/// None where the reader closed the lane between two requests.
pub(crate) async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Request>, ServeError> {
    let mut bytes = vec![0; REQUEST_HEAD_BYTES];
    if stream.read(&mut bytes[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[1..]).await?;
    let mut head = [0; REQUEST_HEAD_BYTES];
    head.copy_from_slice(&bytes);
    bytes.resize(REQUEST_HEAD_BYTES + Request::rest_bytes(&head)?, 0);
    stream.read_exact(&mut bytes[REQUEST_HEAD_BYTES..]).await?;
    Ok(Some(Request::decode(&bytes)?))
}

/// Where an answer is read from.
enum Source {
    /// A blob of the store: what is wrong with it is damage.
    Whole(Held),
    /// One that is being written: what is wrong with it is only not there yet.
    Part(Held),
}

type Opener = fn(&dyn Blobs, Option<&dyn Obtain>, Blob) -> Result<Source, Status>;

/// Reads and checks the files: off the reactor.
fn encode(source: &Source, blobs: &dyn Blobs, request: &Request) -> Result<Vec<u8>, Status> {
    let root = request.blob.root();
    let (Source::Whole(held) | Source::Part(held)) = source;
    if held.size != request.blob.size() {
        return Err(Status::BadRange);
    }
    let encoded = blocks::encode(&request.blob, &request.ranges, &held.data, &held.outboard);
    let packed = |raw: Vec<u8>| match request.encoding {
        Encoding::Raw => raw,
        Encoding::Zstd => pack(&raw),
    };
    encoded.map(packed).map_err(|error| {
        match (source, &error) {
            (_, EncodeError::Range(_)) => return Status::BadRange,
            (Source::Part(_), _) => return Status::Busy,
            (Source::Whole(_), EncodeError::Corrupt { .. } | EncodeError::Short { .. }) => {
                blobs.is_corrupt(root, &error);
            }
            (Source::Whole(_), EncodeError::Read { .. }) => tracing::warn!(%error, "cannot serve"),
        }
        Status::Lacks
    })
}
