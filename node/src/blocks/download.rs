//! Drives a [`Transfer`]: the lanes that it names, blocks into a [`Part`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use qk_protocol::blocks::{Blob, BlockRange, Encoding, Ranges, Request, VerifyError, verify};
use qk_protocol::time::{Machine, Now, UnixTime};
use qk_protocol::transfer::{
    In, Lane, Out, PIPELINE_MAX, RangeEnd, Slot, Transfer, TransferError, Why,
};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError};
use tokio::time::Instant;

use super::behaviour::{LaneError, Lanes};
use super::lane::{Answers, Asker, Buffers, Expected, PullError, Pulled};
use super::part::{Finished, Part, PartError};
use super::shared::{Notice, Sharer, TakenLane};
use super::source::{GatewayLane, Offer, Source};
use crate::gateway::client::{Client, GatewayUrl};
use crate::manners::Downloads;

/// No byte for so long, and the lane is given up. What is asked on it is asked of others long before.
pub const STALL_MAX: Duration = Duration::from_secs(10);
/// Ends of ranges that wait for the machine; whoever has one more waits.
const ENDS_PENDING_MAX: usize = 64;

/// Why a blob was not obtained. What was verified is on disk.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nobody had the rest.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The disk did not take it.
    #[error(transparent)]
    Part(#[from] PartError),
    /// A task that reads or writes files did not end.
    #[error("a task broke off: {0}")]
    Task(#[from] JoinError),
}

/// What a download tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// That much was on disk already.
    Resumed {
        /// Bytes of the blob.
        bytes: u64,
    },
    /// A range was verified and written.
    Verified {
        /// Who sent it.
        from: Source,
        /// Which.
        range: BlockRange,
        /// Bytes of the blob.
        bytes: u64,
    },
    /// A range was not obtained.
    Failed {
        /// Who was asked.
        from: Source,
        /// Why.
        why: Why,
    },
    /// A provider that the swarm is to refuse from now on.
    Banned {
        /// Who.
        provider: Source,
        /// Why.
        why: Why,
    },
}

/// How a download goes about it.
#[derive(Debug, Clone)]
pub struct DownloadOptions {
    /// See [`STALL_MAX`].
    pub stall_max: Duration,
    /// Those that may be among the providers.
    pub gateways: Vec<Client>,
    /// How fast it may be.
    pub downloads: Downloads,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            stall_max: STALL_MAX,
            gateways: Vec::new(),
            downloads: Downloads::default(),
        }
    }
}

/// Fetches what is missing of `part` from `providers`, all at once; nodes among them are connected
/// already. More may come until their channel is closed. Dropping the future cancels everything and keeps what is on disk.
pub async fn download(
    lanes: Lanes,
    part: Part,
    providers: mpsc::Receiver<Offer>,
    options: DownloadOptions,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Finished, DownloadError> {
    let part = Arc::new(part);
    let valid = blocking(&part, |part| part.valid()).await??;
    let blob = *part.blob();
    let bytes = valid.iter().map(|range| bytes_of(&blob, *range)).sum();
    progress(Progress::Resumed { bytes });
    let gateways = options.gateways.iter().map(|client| {
        let lane = GatewayLane::new(client.clone(), blob);
        (client.url().clone(), lane)
    });
    let gateways = Arc::new(gateways.collect());
    let (ends, ended) = mpsc::channel(ENDS_PENDING_MAX);
    let driver = Driver {
        transfer: Transfer::new(blob, &valid),
        start: Instant::now(),
        sharer: lanes.shared.join(),
        shared: Shared {
            lanes,
            part: Arc::clone(&part),
            ends,
            gateways,
            options,
            buffers: Arc::default(),
        },
        workers: BTreeMap::new(),
        free: None,
        refused: VecDeque::new(),
        asked: BTreeMap::new(),
        failure: None,
    };
    driver.run(providers, ended, &mut progress).await?;
    Ok(blocking(&part, |part| part.finish()).await??)
}

async fn blocking<T: Send + 'static>(
    part: &Arc<Part>,
    work: impl FnOnce(&Part) -> T + Send + 'static,
) -> Result<T, JoinError> {
    let part = Arc::clone(part);
    tokio::task::spawn_blocking(move || work(&part)).await
}

fn bytes_of(blob: &Blob, range: BlockRange) -> u64 {
    let bytes = blob.bytes_of(range);
    bytes.end - bytes.start
}

/// How a range ended; for one that could not be written, with the reason.
struct End {
    slot: Slot,
    end: RangeEnd,
    failure: Option<PartError>,
}

struct Order {
    slot: Slot,
    range: BlockRange,
    request: Request,
    wire_len: u32,
}

/// What every worker has.
#[derive(Clone)]
struct Shared {
    lanes: Lanes,
    part: Arc<Part>,
    ends: mpsc::Sender<End>,
    gateways: Arc<BTreeMap<GatewayUrl, GatewayLane>>,
    options: DownloadOptions,
    buffers: Arc<Buffers>,
}

/// The task of one lane; dropping it drops the lane.
struct Worker {
    orders: mpsc::UnboundedSender<Order>,
    task: AbortHandle,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    transfer: Transfer<Source>,
    start: Instant,
    shared: Shared,
    sharer: Sharer,
    workers: BTreeMap<Lane, Worker>,
    /// One that was waited for, until the machine has said whether it needs it.
    free: Option<TakenLane>,
    /// Lanes that other transfers have, with what was to be asked on them.
    refused: VecDeque<(Lane, Slot)>,
    asked: BTreeMap<Slot, Asked>,
    failure: Option<PartError>,
}

struct Asked {
    from: Source,
    lane: Lane,
    range: BlockRange,
}

impl Driver {
    async fn run(
        mut self,
        mut providers: mpsc::Receiver<Offer>,
        mut ended: mpsc::Receiver<End>,
        progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<(), DownloadError> {
        let mut out = Vec::new();
        let mut more = true;
        let mut input = In::Tick;
        loop {
            self.transfer.handle(input, self.now(), &mut out);
            for out in out.drain(..) {
                match out {
                    Out::Pull {
                        slot,
                        from,
                        lane,
                        range,
                        encoding,
                        wire_len,
                    } => self.pull(slot, Asked { from, lane, range }, encoding, wire_len),
                    Out::Reset(slot) => self.drop_lane(slot),
                    Out::Close(lane) => _ = self.workers.remove(&lane),
                    Out::Ban(provider, why) => progress(Progress::Banned { provider, why }),
                    Out::Done => return Ok(()),
                    Out::Failed(error) => {
                        return Err(match self.failure.take() {
                            Some(failure) => failure.into(),
                            None => error.into(),
                        });
                    }
                }
            }
            self.free = None;
            if let Some((_, slot)) = self.refused.pop_front() {
                self.asked.remove(&slot);
                input = In::Range(slot, RangeEnd::Failed(Why::NoLane));
                continue;
            }
            let deadline = self.transfer.deadline().map(|mono| self.start + mono);
            input = tokio::select! {
                end = ended.recv() => match end {
                    Some(end) => self.ended(end, progress),
                    None => In::Tick,
                },
                provider = providers.recv(), if more => {
                    more = provider.is_some();
                    match provider {
                        None => In::NoMoreProviders,
                        Some(Offer { source, is_far: true }) => In::Far(source),
                        Some(Offer { source, is_far: false }) => In::Provider(source),
                    }
                }
                Some(notice) = self.sharer.notices.recv() => self.noticed(notice),
                () = sleep_until(deadline) => In::Tick,
            };
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Now {
            mono: self.start.elapsed(),
            unix: UnixTime(unix.as_secs()),
        }
    }

    fn pull(&mut self, slot: Slot, asked: Asked, encoding: Encoding, wire_len: u32) {
        let order = Order {
            slot,
            range: asked.range,
            request: Request {
                blob: *self.shared.part.blob(),
                encoding,
                ranges: Ranges::from(asked.range),
            },
            wire_len,
        };
        if let Some(worker) = self.worker(asked.lane, &asked.from, slot) {
            // A worker that is over has reported why: the slot is reset with that.
            let _ = worker.orders.send(order);
        }
        self.asked.insert(slot, asked);
    }

    /// None where other transfers have all lanes of that provider: the slot is refused then.
    fn worker(&mut self, lane: Lane, from: &Source, slot: Slot) -> Option<&Worker> {
        if self.refused.iter().any(|(refused, _)| *refused == lane) {
            return None;
        }
        let opened = match self.workers.entry(lane) {
            Entry::Occupied(known) => return Some(known.into_mut()),
            Entry::Vacant(opened) => opened,
        };
        let worker = match from {
            Source::Gateway(gateway) => spawn(self.shared.clone(), On::Gateway(gateway.clone())),
            Source::Peer(peer) => {
                let is_free = |free: &mut TakenLane| free.provider == *peer;
                let Some(taken) = self
                    .free
                    .take_if(is_free)
                    .or_else(|| self.sharer.take(*peer))
                else {
                    self.refused.push_back((lane, slot));
                    return None;
                };
                spawn(self.shared.clone(), On::Peer(taken))
            }
        };
        Some(opened.insert(worker))
    }

    fn noticed(&mut self, notice: Notice) -> In<Source> {
        match notice {
            Notice::Free(lane) => {
                let provider = Source::Peer(lane.provider);
                self.free = Some(lane);
                In::LaneFree(provider)
            }
            Notice::GiveBack(provider) => In::GiveBack(Source::Peer(provider)),
        }
    }

    fn drop_lane(&mut self, slot: Slot) {
        if let Some(asked) = self.asked.remove(&slot) {
            self.workers.remove(&asked.lane);
        }
    }

    fn ended(&mut self, end: End, progress: &mut impl FnMut(Progress)) -> In<Source> {
        let Some(Asked { from, lane, range }) = self.asked.remove(&end.slot) else {
            return In::Tick;
        };
        match end.end {
            RangeEnd::Verified { .. } => {
                let bytes = bytes_of(self.shared.part.blob(), range);
                progress(Progress::Verified { from, range, bytes });
            }
            RangeEnd::Failed(why) => {
                // That others are served is nobody's failure.
                if why != Why::NoLane {
                    progress(Progress::Failed { from, why });
                }
                if ends_lane(why) {
                    self.workers.remove(&lane);
                }
            }
        }
        self.failure = self.failure.take().or(end.failure);
        In::Range(end.slot, end.end)
    }
}

/// Whether the lane is of no more use afterwards.
fn ends_lane(why: Why) -> bool {
    match why {
        Why::Lacks | Why::Busy | Why::NotSpoken => false,
        Why::Wrong(_) | Why::Malformed | Why::Ended | Why::Late | Why::NoLane => true,
        Why::Unreachable | Why::NotWritten => true,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Where a lane leads.
enum On {
    Peer(TakenLane),
    Gateway(GatewayUrl),
}

fn spawn(shared: Shared, on: On) -> Worker {
    // Not more orders than the transfer pipelines.
    let (orders, ordered) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        match on {
            On::Peer(taken) => ask_peer(shared, taken, ordered).await,
            On::Gateway(gateway) => ask_gateway(shared, gateway, ordered).await,
        }
    });
    Worker {
        orders,
        task: task.abort_handle(),
    }
}

/// Carries out orders on one lane until that ends, or the orders do.
async fn ask_peer(shared: Shared, taken: TakenLane, mut ordered: mpsc::UnboundedReceiver<Order>) {
    let Some(first) = ordered.recv().await else {
        return;
    };
    let peer = taken.provider;
    let open = || shared.lanes.open(peer, shared.options.stall_max);
    let opened = match open().await {
        // There may be another connection.
        Err(LaneError::Broken(_)) => open().await,
        opened => opened,
    };
    let lane = match opened {
        Ok(lane) => lane,
        Err(error) => {
            tracing::debug!(%peer, %error, "no lane");
            let why = match error {
                // The connection is well: a later lane may be had.
                LaneError::TooMany(_) => Why::Late,
                LaneError::NotConnected(_)
                | LaneError::NotSpoken(_)
                | LaneError::Broken(_)
                | LaneError::Shutdown => Why::Unreachable,
            };
            return shared.fail(first.slot, why).await;
        }
    };
    let (asker, answers) = lane.split();
    // One more than the channel holds is being read.
    let (asked, answering) = mpsc::channel(PIPELINE_MAX - 1);
    let is_served = AtomicBool::new(false);
    let failed = tokio::select! {
        failed = ask(&shared, asker, first, ordered, asked) => failed,
        failed = answer(&shared, answers, answering, &is_served) => failed,
    };
    let Some((slot, error)) = failed else {
        return;
    };
    let why = match error {
        // Not taken, whichever way the transport says so.
        PullError::Closed | PullError::Io(_) if !is_served.load(Ordering::Relaxed) => {
            match taken.refused() {
                true => Why::NoLane,
                false => Why::Late,
            }
        }
        error => error.why(),
    };
    shared.fail(slot, why).await;
}

/// Why a lane is of no more use.
type Failed = Option<(Slot, PullError)>;

async fn ask(
    shared: &Shared,
    mut asker: Asker,
    first: Order,
    mut ordered: mpsc::UnboundedReceiver<Order>,
    asked: mpsc::Sender<(Order, Expected)>,
) -> Failed {
    let mut next = Some(first);
    while let Some(order) = next {
        let place = asked.reserve().await.ok()?;
        shared.options.downloads.take(order.wire_len).await;
        match asker.ask(&order.request).await {
            Ok(expected) => place.send((order, expected)),
            Err(error) => return Some((order.slot, error)),
        }
        next = ordered.recv().await;
    }
    // The driver is gone.
    None
}

async fn answer(
    shared: &Shared,
    mut answers: Answers,
    mut answering: mpsc::Receiver<(Order, Expected)>,
    is_served: &AtomicBool,
) -> Failed {
    while let Some((order, expected)) = answering.recv().await {
        match answers.next(expected, shared.buffers.take()).await {
            Ok(pulled) => shared.take(order, pulled),
            // The lane goes on.
            Err(error @ PullError::Answered(_)) => shared.fail(order.slot, error.why()).await,
            Err(error) => return Some((order.slot, error)),
        }
        is_served.store(true, Ordering::Relaxed);
    }
    None
}

/// Carries out orders, as many at once as are pipelined on a lane. A gateway packs nothing.
async fn ask_gateway(shared: Shared, url: GatewayUrl, mut ordered: mpsc::UnboundedReceiver<Order>) {
    let lane = shared.gateways.get(&url);
    let mut pulling = FuturesUnordered::new();
    let mut more = true;
    while more || !pulling.is_empty() {
        tokio::select! {
            order = ordered.recv(), if more => match (order, lane) {
                (None, _) => more = false,
                (Some(order), None) => shared.fail(order.slot, Why::Unreachable).await,
                (Some(order), Some(_)) if order.request.encoding == Encoding::Zstd => {
                    shared.fail(order.slot, Why::NotSpoken).await;
                }
                (Some(order), Some(lane)) => {
                    let downloads = &shared.options.downloads;
                    pulling.push(async move {
                        downloads.take(order.wire_len).await;
                        let pulled = lane.pull(order.range).await;
                        (order, pulled)
                    });
                }
            },
            Some((order, pulled)) = pulling.next() => match pulled {
                Ok(wire) => shared.take(order, Pulled::raw(wire)),
                Err(error) => {
                    tracing::debug!(%url, %error, "a gateway did not give a range");
                    shared.fail(order.slot, error.why()).await;
                }
            },
        }
    }
}

impl Shared {
    async fn fail(&self, slot: Slot, why: Why) {
        let end = RangeEnd::Failed(why);
        // Nobody listens after the end.
        let _ = self
            .ends
            .send(End {
                slot,
                end,
                failure: None,
            })
            .await;
    }

    /// Verifies and writes off the reactor, while the next answer is read.
    fn take(&self, order: Order, pulled: Pulled) {
        let (part, ends) = (Arc::clone(&self.part), self.ends.clone());
        let buffers = Arc::clone(&self.buffers);
        tokio::task::spawn_blocking(move || {
            let ranges = &order.request.ranges;
            let (end, failure) = verify_and_write(&part, ranges, pulled, &buffers);
            let slot = order.slot;
            let _ = ends.blocking_send(End { slot, end, failure });
        });
    }
}

fn verify_and_write(
    part: &Part,
    ranges: &Ranges,
    pulled: Pulled,
    buffers: &Buffers,
) -> (RangeEnd, Option<PartError>) {
    let received = pulled.received();
    let Ok(wire) = pulled.unpack() else {
        return (RangeEnd::Failed(Why::Malformed), None);
    };
    let verified = match verify(part.blob(), ranges, wire) {
        Ok(verified) => verified,
        Err(VerifyError::Wrong { block, .. }) => {
            return (RangeEnd::Failed(Why::Wrong(block)), None);
        }
        Err(VerifyError::Truncated { .. }) => return (RangeEnd::Failed(Why::Ended), None),
        Err(VerifyError::Excess { .. } | VerifyError::Range(_)) => {
            return (RangeEnd::Failed(Why::Malformed), None);
        }
    };
    let written = part.write_verified(&verified);
    buffers.give(verified.into_buffer());
    match written {
        Ok(()) => (RangeEnd::Verified { received }, None),
        Err(error) => (RangeEnd::Failed(Why::NotWritten), Some(error)),
    }
}
