//! Which range of a blob to ask of whom: one provider at a time, the next one when it fails.
//!
//! The machine does not see bytes. Whoever drives it fetches what an [`Out::Pull`] names, verifies
//! and writes it, and reports how that ended; a range counts only when it was reported as verified.
//! A lane is the driver's to drop after any end but verified, lacks and busy.
//! A wrong hash is the provider's fault by construction, so it is never asked again; one that lacks
//! a unit is not asked for that unit again; one that is busy or late rests for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::blocks::{Blob, Block, BlockRange, Ranges, UNIT_BLOCKS_MAX, UNIT_BLOCKS_MIN, wire_len};
use crate::time::{Machine, Now};

/// Providers of one transfer, failed ones included; later announcements are ignored.
pub const PROVIDERS_MAX: usize = 256;
/// Ranges under way at the beginning.
pub const WINDOW_START: usize = 2;
/// Ranges under way at most: 4 MiB.
pub const WINDOW_MAX: usize = 4;
/// A provider that failed so often, less its successes since, is not asked again.
pub const FAULTS_MAX: u32 = 5;
/// A range that has not ended after this long is late, whatever the driver says. The driver itself
/// is to give up much earlier when no byte arrives at all.
pub const RANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a busy or late provider rests the first time; twice as long each time after.
pub const REST: Duration = Duration::from_secs(1);

/// Names one asked range in the talk between machine and driver; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

/// What a transfer is told. `P` names a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum In<P> {
    /// Somebody says to have the blob. Said again it gives one that was not reachable another
    /// chance, and nobody else.
    Provider(P),
    /// The look-up is over: nobody else will be named.
    NoMoreProviders,
    /// A range that was asked for ended. Slots that are not known (any more) are ignored.
    Range(Slot, RangeEnd),
    /// Time passed.
    Tick,
}

/// How a range ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeEnd {
    /// Every block of it was verified and written.
    Verified,
    /// It was not.
    Failed(Why),
}

/// Why a range was not obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// A hash did not match: forged.
    #[error("block {0} is forged")]
    Wrong(Block),
    /// Bytes that this protocol does not have.
    #[error("does not speak the protocol")]
    Malformed,
    /// It said that it lacks the range; the lane goes on.
    #[error("lacks the range")]
    Lacks,
    /// The answer ended early, and the lane with it: it lacks the rest.
    #[error("lacks the rest of the range")]
    Ended,
    /// It asked to come again later.
    #[error("is busy")]
    Busy,
    /// No byte came for too long, or the lane closed before an answer began.
    #[error("is late")]
    Late,
    /// It could not be reached, or the connection broke.
    #[error("is not reachable")]
    Unreachable,
    /// Not the provider's fault: what it sent could not be written here.
    #[error("cannot be written here")]
    NotWritten,
}

/// What a transfer wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out<P> {
    /// Ask `from` for `range`: the raw answer has `wire_len` bytes after its status.
    Pull {
        /// To report with.
        slot: Slot,
        /// Whom to ask.
        from: P,
        /// What to ask for.
        range: BlockRange,
        /// How much to read.
        wire_len: u32,
    },
    /// Drop the lane on which this was asked. Everything on that lane is reset by its own output.
    Reset(Slot),
    /// Refuse this provider from now on, also elsewhere, and drop its connections.
    Ban(P, Why),
    /// Every block is verified and written.
    Done,
    /// It cannot go on; what was written stays.
    Failed(TransferError),
}

/// Why a transfer ended without the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Nobody left who might have what is missing.
    #[error("no provider left for {missing} of {blocks} blocks")]
    NoProviders {
        /// Blocks that are not here.
        missing: u32,
        /// Blocks of the blob.
        blocks: u32,
    },
    /// The driver could not write: see its own error.
    #[error("blocks could not be written here")]
    NotWritten,
}

/// The transfer of one blob.
#[derive(Debug)]
pub struct Transfer<P> {
    blob: Blob,
    /// First blocks of the units of [`UNIT_BLOCKS_MIN`] that are neither here nor asked for.
    open: BTreeSet<u32>,
    asked: BTreeMap<Slot, Asked<P>>,
    providers: BTreeMap<P, Provider>,
    current: Option<P>,
    window: usize,
    slots: u64,
    more_providers: bool,
    ended: bool,
}

#[derive(Debug)]
struct Asked<P> {
    from: P,
    range: BlockRange,
    late_at: Duration,
}

#[derive(Debug)]
struct Provider {
    /// In which order they were named.
    order: usize,
    faults: u32,
    /// Not asked any more.
    gone: Option<Gone>,
    rests_until: Duration,
    /// The most blocks to ask for at once.
    unit_blocks: u32,
    /// First blocks of the units that it was asked for in vain.
    lacks: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// Until it is named again.
    Unreachable,
    /// For good.
    Dropped,
}

impl<P: Clone + Ord> Transfer<P> {
    /// A transfer of what is missing of `blob` where `valid` is on disk and right.
    /// Nothing is asked before the first input; [`In::Tick`] will do.
    pub fn new(blob: Blob, valid: &[BlockRange]) -> Self {
        let mut open: BTreeSet<u32> = blob
            .units(UNIT_BLOCKS_MIN)
            .map(|unit| unit.start().0)
            .collect();
        // A unit of which only a part is valid is fetched whole.
        for range in valid {
            let whole = cells(*range)
                .filter(|cell| (cell + UNIT_BLOCKS_MIN).min(blob.blocks()) <= range.end().0);
            whole.for_each(|cell| {
                open.remove(&cell);
            });
        }
        Self {
            blob,
            open,
            asked: BTreeMap::new(),
            providers: BTreeMap::new(),
            current: None,
            window: WINDOW_START,
            slots: 0,
            more_providers: true,
            ended: false,
        }
    }

    /// Blocks that are not verified yet, those asked for included.
    pub fn missing_blocks(&self) -> u32 {
        let end = self.blob.blocks();
        let open = self
            .open
            .iter()
            .map(|cell| (cell + UNIT_BLOCKS_MIN).min(end) - cell);
        let asked = self.asked.values().map(|asked| asked.range.blocks());
        open.chain(asked).sum()
    }

    /// Whether [`Out::Done`] or [`Out::Failed`] was said.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn on_provider(&mut self, provider: P) {
        let order = self.providers.len();
        if let Some(known) = self.providers.get_mut(&provider) {
            known.gone = known.gone.filter(|gone| *gone != Gone::Unreachable);
        } else if order < PROVIDERS_MAX {
            let unknown = Provider {
                order,
                faults: 0,
                gone: None,
                rests_until: Duration::ZERO,
                unit_blocks: UNIT_BLOCKS_MAX,
                lacks: BTreeSet::new(),
            };
            self.providers.insert(provider, unknown);
        }
    }

    fn on_range(&mut self, slot: Slot, end: RangeEnd, now: Now, out: &mut Vec<Out<P>>) {
        let Some(asked) = self.asked.remove(&slot) else {
            return;
        };
        match end {
            RangeEnd::Verified => self.on_verified(&asked.from),
            RangeEnd::Failed(why) => {
                self.open.extend(cells(asked.range));
                self.on_failed(&asked, why, now, out);
            }
        }
    }

    fn on_verified(&mut self, from: &P) {
        self.window = (self.window + 1).min(WINDOW_MAX);
        if let Some(provider) = self.providers.get_mut(from) {
            provider.faults = provider.faults.saturating_sub(1);
        }
    }

    fn on_failed(&mut self, asked: &Asked<P>, why: Why, now: Now, out: &mut Vec<Out<P>>) {
        let from = &asked.from;
        match why {
            Why::Wrong(_) | Why::Malformed => {
                self.give_up(from, Gone::Dropped);
                self.reset(from, out);
                out.push(Out::Ban(from.clone(), why));
            }
            Why::Unreachable => {
                self.give_up(from, Gone::Unreachable);
                self.reset(from, out);
            }
            Why::Lacks => {
                self.on_lacks(asked);
                self.fault(from, Duration::ZERO, now);
            }
            Why::Ended => {
                self.on_lacks(asked);
                self.fault(from, Duration::ZERO, now);
                self.reset(from, out);
            }
            Why::Busy => self.fault(from, REST, now),
            Why::Late => {
                self.window = (self.window / 2).max(1);
                self.fault(from, REST, now);
                self.reset(from, out);
            }
            Why::NotWritten => self.end(Out::Failed(TransferError::NotWritten), out),
        }
    }

    fn give_up(&mut self, from: &P, gone: Gone) {
        if let Some(provider) = self.providers.get_mut(from) {
            provider.gone = Some(gone);
        }
    }

    /// It may have parts of what it does not have as a whole.
    fn on_lacks(&mut self, asked: &Asked<P>) {
        if let Some(provider) = self.providers.get_mut(&asked.from) {
            provider.unit_blocks = UNIT_BLOCKS_MIN;
            if asked.range.blocks() <= UNIT_BLOCKS_MIN {
                provider.lacks.extend(cells(asked.range));
            }
        }
    }

    /// Counts a failure; the provider goes behind those with fewer, and rests.
    fn fault(&mut self, from: &P, rest: Duration, now: Now) {
        if let Some(provider) = self.providers.get_mut(from) {
            let factor = 1 << provider.faults.min(FAULTS_MAX);
            provider.rests_until = now.mono.saturating_add(rest * factor);
            provider.faults += 1;
            if provider.faults >= FAULTS_MAX && rest > Duration::ZERO {
                provider.gone = Some(Gone::Dropped);
            }
        }
        if self.current.as_ref() == Some(from) {
            self.current = None;
        }
    }

    /// Takes back everything that was asked of `from`.
    fn reset(&mut self, from: &P, out: &mut Vec<Out<P>>) {
        let slots: Vec<Slot> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.from == *from)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in slots {
            if let Some(asked) = self.asked.remove(&slot) {
                self.open.extend(cells(asked.range));
                out.push(Out::Reset(slot));
            }
        }
    }

    fn on_tick(&mut self, now: Now, out: &mut Vec<Out<P>>) {
        let late: Vec<Slot> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.late_at <= now.mono)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in late {
            // The lane is dropped with the first; the others are no longer known then.
            if self.asked.contains_key(&slot) {
                out.push(Out::Reset(slot));
            }
            self.on_range(slot, RangeEnd::Failed(Why::Late), now, out);
        }
    }

    fn assign(&mut self, now: Now, out: &mut Vec<Out<P>>) {
        while self.asked.len() < self.window && !self.open.is_empty() {
            let Some((from, range)) = self.next(now) else {
                break;
            };
            let Ok(wire_len) = wire_len(&self.blob, &Ranges::from(range)) else {
                // Cannot be: units are cut from this very blob.
                break;
            };
            for cell in cells(range) {
                self.open.remove(&cell);
            }
            self.slots += 1;
            let slot = Slot(self.slots);
            let late_at = now.mono.saturating_add(RANGE_TIMEOUT);
            self.current = Some(from.clone());
            self.asked.insert(
                slot,
                Asked {
                    from: from.clone(),
                    range,
                    late_at,
                },
            );
            out.push(Out::Pull {
                slot,
                from,
                range,
                wire_len,
            });
        }
    }

    /// Whom to ask for what: the current provider while it can be asked for anything, else the one
    /// with the fewest faults, the first named among equals.
    fn next(&self, now: Now) -> Option<(P, BlockRange)> {
        let awake = |name: &P| {
            let provider = self.providers.get(name)?;
            (provider.gone.is_none() && provider.rests_until <= now.mono).then_some(provider)
        };
        let current = self
            .current
            .as_ref()
            .and_then(|name| Some((name.clone(), self.range_for(awake(name)?)?)));
        current.or_else(|| {
            self.providers
                .keys()
                .filter_map(|name| {
                    let provider = awake(name)?;
                    let range = self.range_for(provider)?;
                    Some(((provider.faults, provider.order), name, range))
                })
                .min_by_key(|(rank, _, _)| *rank)
                .map(|(_, name, range)| (name.clone(), range))
        })
    }

    /// The first open range that `provider` may have, up to the next multiple of its unit.
    fn range_for(&self, provider: &Provider) -> Option<BlockRange> {
        let may = |cell: &u32| self.open.contains(cell) && !provider.lacks.contains(cell);
        let start = *self.open.iter().find(|cell| may(cell))?;
        let stop = (start / provider.unit_blocks + 1) * provider.unit_blocks;
        let mut end = start;
        while end < stop && may(&end) {
            end += UNIT_BLOCKS_MIN;
        }
        BlockRange::new(start, end.min(self.blob.blocks())).ok()
    }

    fn end_if_over(&mut self, out: &mut Vec<Out<P>>) {
        if !self.asked.is_empty() {
            return;
        }
        if self.open.is_empty() {
            return self.end(Out::Done, out);
        }
        let hope = self
            .providers
            .values()
            .any(|provider| provider.gone.is_none() && !self.open.is_subset(&provider.lacks));
        if !hope && !self.more_providers {
            let (missing, blocks) = (self.missing_blocks(), self.blob.blocks());
            self.end(
                Out::Failed(TransferError::NoProviders { missing, blocks }),
                out,
            );
        }
    }

    fn end(&mut self, how: Out<P>, out: &mut Vec<Out<P>>) {
        self.ended = true;
        out.extend(self.asked.keys().map(|slot| Out::Reset(*slot)));
        for asked in std::mem::take(&mut self.asked).into_values() {
            self.open.extend(cells(asked.range));
        }
        out.push(how);
    }
}

impl<P: Clone + Ord> Machine for Transfer<P> {
    type In = In<P>;
    type Out = Out<P>;

    fn handle(&mut self, input: In<P>, now: Now, out: &mut Vec<Out<P>>) {
        if self.ended {
            return;
        }
        match input {
            In::Provider(provider) => self.on_provider(provider),
            In::NoMoreProviders => self.more_providers = false,
            In::Range(slot, end) => self.on_range(slot, end, now, out),
            In::Tick => self.on_tick(now, out),
        }
        if !self.ended {
            self.assign(now, out);
            self.end_if_over(out);
        }
    }

    fn deadline(&self) -> Option<Duration> {
        if self.ended {
            return None;
        }
        let late = self.asked.values().map(|asked| asked.late_at).min();
        // Somebody who rests matters only while nobody else is asked.
        let rested = || {
            self.providers
                .values()
                .filter(|provider| provider.gone.is_none() && !self.open.is_subset(&provider.lacks))
                .map(|provider| provider.rests_until)
                .min()
        };
        late.or_else(rested)
    }
}

/// First blocks of the units of [`UNIT_BLOCKS_MIN`] that begin in `range`.
fn cells(range: BlockRange) -> impl Iterator<Item = u32> {
    (range.start().0..range.end().0).step_by(UNIT_BLOCKS_MIN as usize)
}

#[cfg(test)]
mod tests;
