//! The one writer: drains the queue, writes, syncs once, brings the index along, acknowledges.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use qk_protocol::hash::StatementId;

use super::error::StoreError;
use super::frame::{Frame, FrameError, HEADER_LEN};
use super::index::{Changes, Index, IndexError};
use super::journal::{Journal, Position, Scanned, Segment, Segments, WriteError};
use super::layout::{self, Left};
use super::{CompactReport, Damage, Shared};

/// A batch is written when it has this many bytes, even if more is waiting.
const BATCH_BYTES: usize = 4 << 20;
/// Rows after which a replay writes what it has.
const REPLAY_ROWS: usize = 4096;
/// Journal bytes after which sled is flushed, so that a replay after kill -9 is short.
const FLUSH_EVERY_BYTES: u64 = 4 << 20;

/// Takes the answer to a command.
pub(super) type Ack<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// What the writer is asked to do.
pub(super) enum Command {
    /// Append these frames as far as they change anything; answers how many did.
    Write(Vec<Frame>, Ack<u64>),
    /// Make the index again if it is still this generation.
    Rebuild(Option<u64>, String, Ack<()>),
    /// Compare the index with its sums; answers what was wrong.
    Scrub(Ack<Option<Damage>>),
    /// Compact the oldest segments while that frees enough.
    Compact(Ack<CompactReport>),
    /// Read every frame; answers how many, and what is wrong with frames or index.
    Check(Ack<(u64, Vec<Damage>)>),
}

/// The writing side of a store.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    pub(super) unflushed_bytes: u64,
}

/// Why a batch was not written at the first attempt.
enum Attempt {
    Index(IndexError),
    Unsynced(StoreError),
    Refused(StoreError),
}

impl From<IndexError> for Attempt {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

impl From<StoreError> for Attempt {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl Writer {
    /// Works until the queue is closed, then leaves everything on the disk.
    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        let mut next = queue.recv().ok();
        while let Some(command) = next.take() {
            match command {
                Command::Write(frames, ack) => next = self.on_write(frames, ack, queue),
                Command::Rebuild(seen, why, ack) => ack(self.on_rebuild(seen, &why)),
                Command::Scrub(ack) => ack(self.on_scrub()),
                Command::Compact(ack) => ack(self.compact()),
                Command::Check(ack) => ack(self.check()),
            }
            next = next.or_else(|| queue.recv().ok());
        }
        self.close();
    }

    /// Writes these frames and what is waiting behind them; returns the command that ended the batch.
    fn on_write(
        &mut self,
        frames: Vec<Frame>,
        ack: Ack<u64>,
        queue: &Receiver<Command>,
    ) -> Option<Command> {
        let mut bytes: usize = frames.iter().map(Frame::size).sum();
        let (mut batch, mut acks) = (vec![frames], vec![ack]);
        let mut after = None;
        while bytes < BATCH_BYTES {
            match queue.try_recv() {
                Ok(Command::Write(frames, ack)) => {
                    bytes += frames.iter().map(Frame::size).sum::<usize>();
                    batch.push(frames);
                    acks.push(ack);
                }
                Ok(other) => {
                    after = Some(other);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        match self.write(&batch) {
            Ok(counts) => acks.into_iter().zip(counts).for_each(|(ack, n)| ack(Ok(n))),
            Err(error) => acks.into_iter().for_each(|ack| ack(Err(error.clone()))),
        }
        after
    }

    fn write(&mut self, batch: &[Vec<Frame>]) -> Result<Vec<u64>, StoreError> {
        self.shared.require_space()?;
        let (mut rebuilt, mut rotated) = (false, false);
        loop {
            match self.attempt(batch) {
                Ok(counts) => return Ok(counts),
                Err(Attempt::Index(error)) if !rebuilt => {
                    rebuilt = true;
                    self.rebuild(&error.to_string())?;
                }
                Err(Attempt::Index(error)) => return Err(self.shared.index_error(&error)),
                Err(Attempt::Unsynced(error)) if !rotated => {
                    rotated = true;
                    tracing::warn!(%error, "journal: writing the batch again to a new segment");
                }
                Err(Attempt::Unsynced(error) | Attempt::Refused(error)) => return Err(error),
            }
        }
    }

    fn attempt(&mut self, batch: &[Vec<Frame>]) -> Result<Vec<u64>, Attempt> {
        let index = self.shared.index()?;
        let (segment, start) = self.journal.tail()?;
        let segments = self.journal.segments().clone();
        let mut changes = Changes::new(&index)?;
        let (mut bytes, mut counts) = (Vec::new(), Vec::with_capacity(batch.len()));
        for frames in batch {
            let mut count = 0;
            for frame in frames {
                let pending = Some((segment.number, start));
                if !wants(&changes, &segments, frame, pending)? {
                    continue;
                }
                let offset = start + bytes.len() as u64;
                let position = segment.encode(frame, offset, &mut bytes);
                put(&mut changes, frame, position)?;
                count += 1;
            }
            counts.push(count);
        }
        self.append(&segment, start, &bytes, changes)?;
        Ok(counts)
    }

    /// Makes `bytes` durable and then known to the index.
    fn append(
        &mut self,
        segment: &Segment,
        start: u64,
        bytes: &[u8],
        changes: Changes<'_>,
    ) -> Result<(), Attempt> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.journal.write(bytes).map_err(|error| match error {
            WriteError::Refused(error) => Attempt::Refused(error),
            WriteError::Unsynced(error) => Attempt::Unsynced(error),
        })?;
        // Durable from here on. Whatever the index does, the frames are found by a rebuild.
        let end = start + bytes.len() as u64;
        if let Err(error) = changes.commit(segment.number, end) {
            self.rebuild(&error.to_string())?;
        }
        self.unflushed_bytes += bytes.len() as u64;
        if self.unflushed_bytes >= FLUSH_EVERY_BYTES {
            self.unflushed_bytes = 0;
            if let Err(error) = self.shared.index().and_then(|index| index.flush()) {
                self.rebuild(&error.to_string())?;
            }
        }
        Ok(())
    }

    fn on_rebuild(&mut self, seen: Option<u64>, why: &str) -> Result<(), StoreError> {
        let current = self.shared.index().ok().map(|index| index.generation());
        if current.is_some() && current != seen {
            return Ok(()); // Somebody else asked before.
        }
        self.rebuild(why)
    }

    /// Begins an empty index and applies the whole journal to it.
    fn rebuild(&mut self, why: &str) -> Result<(), StoreError> {
        tracing::warn!(why, "index: making it again from the journal");
        self.shared.set_index(None);
        self.shared.note([Damage::Index {
            why: why.to_owned(),
        }]);
        // Or the new index would know frames that are about to be cut off.
        self.journal.settle()?;
        let error = |error: IndexError| self.shared.index_error(&error);
        let index = Index::fresh(&self.shared.layout.index).map_err(error)?;
        match replay(&index, self.journal.segments(), Left::Killed) {
            Ok(replayed) => {
                self.shared.note(replayed.damage);
                self.shared.set_index(Some(index));
                Ok(())
            }
            Err(ReplayError::Index(failed)) => Err(error(failed)),
            Err(ReplayError::Store(failed)) => Err(failed),
        }
    }

    fn on_scrub(&mut self) -> Result<Option<Damage>, StoreError> {
        let Err(error) = self.shared.index().and_then(|index| index.scrub()) else {
            return Ok(None);
        };
        let why = error.to_string();
        self.rebuild(&why)?;
        Ok(Some(Damage::Index { why }))
    }

    /// Oldest segment first: its live frames are appended again and synced before it is deleted.
    fn compact(&mut self) -> Result<CompactReport, StoreError> {
        let mut report = CompactReport::default();
        let allowed = self.journal.segments().all().len();
        for _ in 0..allowed {
            if !self.worth_compacting()? {
                break;
            }
            let Some(oldest) = self.journal.segments().all().into_iter().next() else {
                break;
            };
            report.segments += 1;
            report.bytes_freed += oldest.len().unwrap_or(0);
            report.bytes_moved += self.compact_segment(&oldest)?;
        }
        Ok(report)
    }

    /// Whether more than half of the journal is dead, not counting the segment being written.
    fn worth_compacting(&self) -> Result<bool, StoreError> {
        let meta = self.shared.index().and_then(|index| index.meta());
        let live = meta
            .map_err(|error| self.shared.index_error(&error))?
            .live_bytes;
        let slack = self.shared.options.segment_bytes_max;
        let segments = self.journal.segments();
        Ok(segments.all().len() > 1
            && segments.bytes() > live.saturating_mul(2).saturating_add(slack))
    }

    fn compact_segment(&mut self, oldest: &Segment) -> Result<u64, StoreError> {
        let (mut moved, mut damaged) = (0, false);
        let mut scanner = oldest
            .scan(HEADER_LEN)
            .map_err(|e| StoreError::io(&oldest.path, e))?;
        let mut frames = Vec::new();
        loop {
            let next = scanner
                .next()
                .map_err(|e| StoreError::io(&oldest.path, e))?;
            let done = next.is_none();
            match next {
                Some(Scanned::Frame(position, frame)) => frames.push((position, *frame)),
                Some(Scanned::Bad { .. }) => damaged = true,
                None => {}
            }
            if done || frames.len() >= 1024 {
                moved += self.move_frames(&frames)?;
                frames.clear();
            }
            if done {
                break;
            }
        }
        // Before the deletion, or after kill -9 the index could point to what is gone.
        let synced = self.shared.index().and_then(|index| index.sync());
        synced.map_err(|error| self.shared.index_error(&error))?;
        self.journal
            .retire(oldest, damaged, &self.shared.layout.aside)?;
        Ok(moved)
    }

    /// Appends those frames again that the index still points to; returns their bytes.
    fn move_frames(&mut self, frames: &[(Position, Frame)]) -> Result<u64, StoreError> {
        for last_try in [false, true] {
            match self.try_move_frames(frames) {
                Ok(bytes) => return Ok(bytes),
                Err(Attempt::Index(error)) if !last_try => self.rebuild(&error.to_string())?,
                Err(Attempt::Index(error)) => return Err(self.shared.index_error(&error)),
                Err(Attempt::Unsynced(_)) if !last_try => {}
                Err(Attempt::Unsynced(error) | Attempt::Refused(error)) => return Err(error),
            }
        }
        Ok(0)
    }

    fn try_move_frames(&mut self, frames: &[(Position, Frame)]) -> Result<u64, Attempt> {
        let index = self.shared.index()?;
        let (segment, start) = self.journal.tail()?;
        let mut changes = Changes::new(&index)?;
        let mut bytes = Vec::new();
        for (position, frame) in frames {
            if place(&changes, frame)? == Some(*position) {
                let offset = start + bytes.len() as u64;
                let position = segment.encode(frame, offset, &mut bytes);
                put(&mut changes, frame, position)?;
            }
        }
        self.append(&segment, start, &bytes, changes)?;
        Ok(bytes.len() as u64)
    }

    /// Reads every frame of the journal and looks each live one up in the index.
    fn check(&mut self) -> Result<(u64, Vec<Damage>), StoreError> {
        let mut found = Vec::new();
        let (mut frames, mut live) = (0, std::collections::BTreeSet::<StatementId>::new());
        for segment in self.journal.segments().all() {
            let at = |error| StoreError::io(&segment.path, error);
            if let Some((offset, bytes)) = segment.mend_header().map_err(at)? {
                found.push(Damage::Frame {
                    segment: segment.path.clone(),
                    offset,
                    bytes,
                    why: "one of the two copies of the header; written again".to_owned(),
                });
            }
            let mut scanner = segment.scan(HEADER_LEN).map_err(at)?;
            while let Some(next) = scanner.next().map_err(at)? {
                match next {
                    Scanned::Frame(_, frame) => {
                        frames += 1;
                        match *frame {
                            Frame::Statement(record) => live.insert(record.id),
                            Frame::Removed(id) => live.remove(&id),
                            Frame::Pin(_) | Frame::Unpin(_) | Frame::Obsolete => false,
                        };
                    }
                    Scanned::Bad { from, to, why } => {
                        found.push(bad_frame(&segment, from, to, &why))
                    }
                }
            }
        }
        if !found.is_empty() {
            // A lost frame may be the one that took a statement back: the index may know better.
            live.clear();
        }
        if let Err(why) = self.check_index(&live) {
            self.rebuild(&why)?;
            found.push(Damage::Index { why });
        }
        Ok((frames, found))
    }

    fn check_index(&self, live: &std::collections::BTreeSet<StatementId>) -> Result<(), String> {
        let run = || -> Result<Option<StatementId>, IndexError> {
            let index = self.shared.index()?;
            index.scrub()?;
            for id in live {
                let entry = index.entry(id)?;
                let frame = entry.map(|entry| self.journal.segments().read(entry.position));
                match frame {
                    Some(Ok(Frame::Statement(record))) if record.id == *id => {}
                    Some(_) | None => return Ok(Some(*id)),
                }
            }
            Ok(None)
        };
        match run() {
            Ok(None) => Ok(()),
            Ok(Some(id)) => Err(format!("statement {id} is in the journal but not found")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn close(self) {
        if !self.shared.options.stays_marked {
            let synced = self.shared.index().and_then(|index| index.sync());
            let marked = match synced {
                Ok(()) => self.shared.layout.mark_closed(),
                Err(error) => Err(self.shared.index_error(&error)),
            };
            if let Err(error) = marked {
                tracing::warn!(%error, "store: not closed cleanly, the next start replays");
            }
        }
        let index = self.shared.index().ok();
        self.shared.set_index(None);
        if let Some(index) = index.and_then(Arc::into_inner) {
            index.close();
        }
    }
}

/// Whether a frame changes anything. `pending` is where a batch that is not written yet begins.
fn wants(
    changes: &Changes<'_>,
    segments: &Segments,
    frame: &Frame,
    pending: Option<(u64, u64)>,
) -> Result<bool, IndexError> {
    let place = place(changes, frame)?;
    Ok(match (frame, place) {
        (Frame::Obsolete, _) => false,
        (Frame::Statement(_) | Frame::Pin(_), None) => true,
        (Frame::Removed(_) | Frame::Unpin(_), place) => place.is_some(),
        (Frame::Statement(_) | Frame::Pin(_), Some(place))
            if pending.is_some_and(|from| (place.segment, place.offset) >= from) =>
        {
            false
        }
        // The first envelope of an id stays, unless it cannot be read back any more.
        (Frame::Statement(record), Some(place)) => {
            !matches!(segments.read(place), Ok(Frame::Statement(kept)) if kept.id == record.id)
        }
        (Frame::Pin(_), Some(place)) => segments.read(place).ok().as_ref() != Some(frame),
    })
}

/// Where the index says that this frame, or the one it speaks of, stands.
fn place(changes: &Changes<'_>, frame: &Frame) -> Result<Option<Position>, IndexError> {
    match frame {
        Frame::Statement(record) => Ok(changes.entry(&record.id)?.map(|entry| entry.position)),
        Frame::Removed(id) => Ok(changes.entry(id)?.map(|entry| entry.position)),
        Frame::Pin(root) | Frame::Unpin(root) => changes.pin(root),
        Frame::Obsolete => Ok(None),
    }
}

fn put(changes: &mut Changes<'_>, frame: &Frame, position: Position) -> Result<(), IndexError> {
    match frame {
        Frame::Statement(record) => changes.put_statement(record, position),
        Frame::Removed(id) => changes.remove_statement(id),
        Frame::Pin(root) => changes.set_pin(root, Some(position)),
        Frame::Unpin(root) => changes.set_pin(root, None),
        Frame::Obsolete => Ok(()),
    }
}

/// What a replay found.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Where the newest segment's last good frame ends.
    pub(super) tail_len: u64,
    /// Frames that are lost.
    pub(super) damage: Vec<Damage>,
}

/// Why a replay stopped.
pub(super) enum ReplayError {
    /// The index must be made again.
    Index(IndexError),
    /// The journal cannot be read.
    Store(StoreError),
}

impl From<IndexError> for ReplayError {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

/// Applies to the index what the journal has beyond it.
pub(super) fn replay(
    index: &Index,
    segments: &Segments,
    left: Left,
) -> Result<Replayed, ReplayError> {
    let meta = index.meta()?;
    let all = segments.all();
    let reached = all.iter().find(|segment| segment.number == meta.segment);
    let known = reached.and_then(|segment| segment.len().ok());
    if meta.segment != 0 && known.is_none_or(|len| len < meta.offset) {
        return Err(IndexError::Corrupt("journal position").into());
    }
    let mut replayed = Replayed::default();
    let newest = all.last().map(|segment| segment.number);
    for segment in all.iter().filter(|segment| segment.number >= meta.segment) {
        let from = if segment.number == meta.segment {
            meta.offset
        } else {
            HEADER_LEN
        };
        let torn = (Some(segment.number) == newest).then_some(left);
        replay_segment(index, segments, segment, from, torn, &mut replayed)?;
    }
    Ok(replayed)
}

fn replay_segment(
    index: &Index,
    segments: &Segments,
    segment: &Segment,
    from: u64,
    torn: Option<Left>,
    replayed: &mut Replayed,
) -> Result<(), ReplayError> {
    let at = |error| ReplayError::Store(StoreError::io(&segment.path, error));
    let mut changes = Changes::new(index)?;
    let mut scanner = segment.scan(from).map_err(at)?;
    let mut end = from.max(HEADER_LEN);
    while let Some(next) = scanner.next().map_err(at)? {
        match next {
            Scanned::Frame(position, frame) => {
                if wants(&changes, segments, &frame, None)? {
                    put(&mut changes, &frame, position)?;
                }
                end = position.offset + u64::from(position.len);
            }
            // A write that was never acknowledged, or damage; cut off in either case.
            Scanned::Bad { from, to, why }
                if to == scanner.end() && torn.is_some() && !matches!(why, FrameError::Form(_)) =>
            {
                if !torn.is_some_and(|left| is_rest(left, &why)) {
                    replayed.damage.push(bad_frame(segment, from, to, &why));
                }
            }
            Scanned::Bad { from, to, why } => {
                replayed.damage.push(bad_frame(segment, from, to, &why));
                end = to;
            }
        }
        if changes.len() >= REPLAY_ROWS {
            changes.commit(segment.number, end)?;
            changes = Changes::new(index)?;
        }
    }
    if end > from {
        changes.commit(segment.number, end)?;
    }
    replayed.tail_len = end;
    Ok(())
}

/// Whether the end of a journal that was left like that may be the rest of a write.
fn is_rest(left: Left, why: &FrameError) -> bool {
    match left {
        Left::Closed => false,
        Left::Killed => matches!(why, FrameError::Short),
        Left::Unclean => true,
    }
}

fn bad_frame(segment: &Segment, from: u64, to: u64, why: &FrameError) -> Damage {
    Damage::Frame {
        segment: segment.path.clone(),
        offset: from,
        bytes: to - from,
        why: why.to_string(),
    }
}

/// Opens the index and brings it up to the journal; makes it again where that fails.
pub(super) fn open_index(
    layout: &layout::Layout,
    segments: &Segments,
    left: Left,
    damage: &mut Vec<Damage>,
) -> Result<(Index, u64), StoreError> {
    let failed = |error: &IndexError| StoreError::Index {
        path: layout.dir.clone(),
        why: error.to_string(),
    };
    let opened = Index::open(&layout.index).map_err(ReplayError::Index);
    let first = opened.and_then(|index| Ok((replay(&index, segments, left)?, index)));
    let (replayed, index) = match first {
        Ok(done) => done,
        Err(ReplayError::Store(error)) => return Err(error),
        Err(ReplayError::Index(error)) => {
            tracing::warn!(%error, "index: making it again from the journal");
            damage.push(Damage::Index {
                why: error.to_string(),
            });
            let index = Index::fresh(&layout.index).map_err(|error| failed(&error))?;
            match replay(&index, segments, left) {
                Ok(replayed) => (replayed, index),
                Err(ReplayError::Store(error)) => return Err(error),
                Err(ReplayError::Index(error)) => return Err(failed(&error)),
            }
        }
    };
    damage.extend(replayed.damage);
    Ok((index, replayed.tail_len))
}
