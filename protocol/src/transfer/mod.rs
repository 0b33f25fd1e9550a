//! Which range of a blob to ask of whom: all providers at once, each as it is able.
//!
//! The machine does not see bytes. Whoever drives it fetches what an [`Out::Pull`] names, verifies
//! and writes it, and reports how that ended; a range counts only when it was reported as verified.
//! A wrong hash is the provider's fault by construction, so it is never asked again; one that lacks
//! a unit is not asked for that unit again; one that is busy or late rests for a while. One that gives
//! no further lane, because it serves other lanes of this reader, has done nothing wrong: what it serves
//! goes on, and a transfer without a lane waits until one is handed to it ([`sharing`]).
//!
//! Ranges are handed out in order, to each provider as many as its window has room for. Three rules
//! keep a slow or silent one from costing time:
//!
//! - Towards the end a provider gets no range that the others together would have sooner.
//! - While ranges are open, one that has delivered nothing for much longer than its rate promises,
//!   and is ten times slower than the best by that, loses what it was asked for.
//! - Once nothing is open, whoever is idle is asked for ranges that are under way elsewhere, if it
//!   will have them sooner: those of providers three times slower or overdue, and, up to a small
//!   share of the blob, of others. What is no longer needed then is reset.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::blocks::{Blob, Block, BlockRange, Encoding, Ranges, UNIT_BLOCKS_MIN, wire_len};
use crate::time::{Machine, Now};

mod provider;
mod rate;
pub mod sharing;
mod steal;

use provider::{Gone, Provider, unit};
pub use rate::{RAW_ABOVE, ZSTD_BELOW};

/// Providers of one transfer, failed ones included; later announcements are ignored.
pub const PROVIDERS_MAX: usize = 256;
/// Lanes of one provider.
pub const LANES_MAX: usize = 4;
/// Requests asked and not yet answered on one lane: one whose answer is read, one that the other
/// side prepares meanwhile.
pub const PIPELINE_MAX: usize = 2;
/// Blocks that one provider has in flight at most, over all its lanes: 4 MiB.
pub const WINDOW_BLOCKS_MAX: u32 = 256;
/// Blocks that a provider has in flight of which nothing was measured: 512 KiB.
pub const PROBE_BLOCKS_MAX: u32 = 32;
/// Blocks in flight over all providers: 32 MiB, which the driver may have to hold in memory.
pub const IN_FLIGHT_BLOCKS_MAX: u32 = 2048;
/// A provider has no more in flight than it delivers in this time by its measured rate, but for one
/// range.
pub const WINDOW_TIME: Duration = Duration::from_secs(3);
/// A provider that failed so often, less its successes since, is not asked again.
pub const FAULTS_MAX: u32 = 5;
/// A range that has not ended after this long is late, whatever the driver says. The driver itself
/// is to give up much earlier when no byte arrives at all.
pub const RANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a busy or late provider rests the first time; twice as long each time after.
pub const REST: Duration = Duration::from_secs(1);
/// How long no further lane is wanted of one that gave none, the first time; twice as long each time
/// after, up to [`REST`].
pub const NO_LANE_FOR: Duration = Duration::from_millis(20);
/// Who has given no lane at all for so long is late, whomever it serves.
pub const NO_LANE_MAX: Duration = RANGE_TIMEOUT;

/// Names one asked range in the talk between machine and driver; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

/// Names one lane of one provider: a stream whose requests are answered in their order. Never used
/// again once it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u64);

/// What a transfer is told. `P` names a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum In<P> {
    /// Somebody says to have the blob. Said again it gives one that was not reachable another
    /// chance, and nobody else.
    Provider(P),
    /// The same of one that is farther away than the local network: it is asked for packed answers
    /// until it proves fast.
    Far(P),
    /// The look-up is over: nobody else will be named.
    NoMoreProviders,
    /// A provider that gave no further lane gives one now.
    LaneFree(P),
    /// Another transfer of this reader needs a lane of this provider.
    GiveBack(P),
    /// A range that was asked for ended. Slots that are not known (any more) are ignored.
    Range(Slot, RangeEnd),
    /// Time passed.
    Tick,
}

/// How a range ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeEnd {
    /// Every block of it was verified and written.
    Verified {
        /// Bytes that came over the wire: what a rate is measured by.
        received: u32,
    },
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
    /// It asked to come again later; the lane goes on.
    #[error("is busy")]
    Busy,
    /// It serves other lanes of this reader, and did not take this one.
    #[error("gives no further lane")]
    NoLane,
    /// It does not speak the encoding that was asked for; the lane goes on.
    #[error("does not speak the encoding")]
    NotSpoken,
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
        /// On which of its lanes: one that is not open yet is to be opened. At most
        /// [`PIPELINE_MAX`] requests are on one.
        lane: Lane,
        /// What to ask for.
        range: BlockRange,
        /// How the answer is to be packed.
        encoding: Encoding,
        /// How long the raw answer is.
        wire_len: u32,
    },
    /// Drop the lane on which this was asked. Everything on that lane is reset by its own output,
    /// and the lane is not named again.
    Reset(Slot),
    /// Close this lane, on which nothing is asked any more. It is not named again.
    Close(Lane),
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
    /// First blocks of the units of [`UNIT_BLOCKS_MIN`] that are not verified yet.
    missing: BTreeSet<u32>,
    /// Those of them that nobody is asked for.
    open: BTreeSet<u32>,
    asked: BTreeMap<Slot, Asked<P>>,
    providers: BTreeMap<P, Provider>,
    slots: u64,
    lanes: u64,
    /// Blocks that were asked for twice although nobody was slow.
    hedged_blocks: u32,
    more_providers: bool,
    ended: bool,
    wake_at: Option<Duration>,
    /// Tests show what it costs without help.
    #[cfg(test)]
    helps: bool,
}

#[derive(Debug)]
struct Asked<P> {
    from: P,
    lane: Lane,
    range: BlockRange,
    encoding: Encoding,
    late_at: Duration,
}

impl<P: Clone + Ord> Transfer<P> {
    /// A transfer of what is missing of `blob` where `valid` is on disk and right.
    /// Nothing is asked before the first input; [`In::Tick`] will do.
    pub fn new(blob: Blob, valid: &[BlockRange]) -> Self {
        let mut missing: BTreeSet<u32> = blob
            .units(UNIT_BLOCKS_MIN)
            .map(|unit| unit.start().0)
            .collect();
        // A unit of which only a part is valid is fetched whole.
        for range in valid {
            let whole = cells(*range)
                .filter(|cell| (cell + UNIT_BLOCKS_MIN).min(blob.blocks()) <= range.end().0);
            whole.for_each(|cell| {
                missing.remove(&cell);
            });
        }
        Self {
            blob,
            open: missing.clone(),
            missing,
            asked: BTreeMap::new(),
            providers: BTreeMap::new(),
            slots: 0,
            lanes: 0,
            hedged_blocks: 0,
            more_providers: true,
            ended: false,
            wake_at: None,
            #[cfg(test)]
            helps: true,
        }
    }

    /// Blocks that are not verified yet, those asked for included.
    pub fn missing_blocks(&self) -> u32 {
        let end = self.blob.blocks();
        // Only the last unit may be short.
        let short = match self.missing.last() {
            Some(last) => (last + UNIT_BLOCKS_MIN).saturating_sub(end),
            None => 0,
        };
        self.missing.len() as u32 * UNIT_BLOCKS_MIN - short
    }

    /// Whether [`Out::Done`] or [`Out::Failed`] was said.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn on_provider(&mut self, provider: P, at_first: Encoding) {
        let order = self.providers.len();
        if let Some(known) = self.providers.get_mut(&provider) {
            known.gone = known.gone.filter(|gone| *gone != Gone::Unreachable);
        } else if order < PROVIDERS_MAX {
            self.providers
                .insert(provider, Provider::new(order, at_first));
        }
    }

    fn on_range(&mut self, slot: Slot, end: RangeEnd, now: Duration, out: &mut Vec<Out<P>>) {
        let Some(asked) = self.asked.remove(&slot) else {
            return;
        };
        if let Some(provider) = self.providers.get_mut(&asked.from) {
            out.extend(provider.ended(slot).map(Out::Close));
            if let RangeEnd::Verified { received } = end {
                let blocks = asked.range.blocks();
                provider.delivered(asked.encoding, blocks, received, now);
            }
        }
        match end {
            RangeEnd::Verified { .. } => {
                for cell in cells(asked.range) {
                    self.missing.remove(&cell);
                }
            }
            RangeEnd::Failed(why) => {
                self.reopen(asked.range);
                self.on_failed(&asked, why, now, out);
            }
        }
    }

    /// What nobody else is asked for is to be asked for again.
    fn reopen(&mut self, range: BlockRange) {
        for cell in cells(range) {
            let is_asked = self.asked.values().any(|asked| covers(asked.range, cell));
            if self.missing.contains(&cell) && !is_asked {
                self.open.insert(cell);
            }
        }
    }

    fn on_failed(&mut self, asked: &Asked<P>, why: Why, now: Duration, out: &mut Vec<Out<P>>) {
        let Some(provider) = self.providers.get_mut(&asked.from) else {
            return;
        };
        match why {
            Why::Wrong(_) | Why::Malformed => self.ban(asked, why, out),
            // Raw is always spoken.
            Why::NotSpoken if asked.encoding == Encoding::Raw => {
                self.ban(asked, Why::Malformed, out);
            }
            Why::NotSpoken => provider.does_not_pack(),
            Why::Unreachable => {
                provider.gone = Some(Gone::Unreachable);
                self.drop_all_lanes(&asked.from, out);
            }
            Why::Lacks | Why::Ended => {
                provider.lacks(asked.range.blocks(), cells(asked.range));
                provider.fault(Duration::ZERO, now);
                if why == Why::Ended {
                    self.drop_lane(&asked.from, asked.lane, out);
                }
            }
            Why::Busy => provider.fault(REST, now),
            Why::NoLane => {
                self.drop_lane(&asked.from, asked.lane, out);
                if let Some(provider) = self.providers.get_mut(&asked.from) {
                    provider.has_no_lane(now);
                }
            }
            Why::Late => {
                provider.halve_window();
                provider.lost(now);
                provider.fault(REST, now);
                self.drop_lane(&asked.from, asked.lane, out);
            }
            Why::NotWritten => self.end(Out::Failed(TransferError::NotWritten), out),
        }
    }

    fn on_lane_free(&mut self, from: &P) {
        if let Some(provider) = self.providers.get_mut(from) {
            provider.has_a_lane();
        }
    }

    fn on_give_back(&mut self, from: &P, out: &mut Vec<Out<P>>) {
        if let Some(provider) = self.providers.get_mut(from) {
            out.extend(provider.give_back().map(Out::Close));
        }
    }

    fn ban(&mut self, asked: &Asked<P>, why: Why, out: &mut Vec<Out<P>>) {
        if let Some(provider) = self.providers.get_mut(&asked.from) {
            provider.gone = Some(Gone::Dropped);
        }
        self.drop_all_lanes(&asked.from, out);
        out.push(Out::Ban(asked.from.clone(), why));
    }

    /// Takes back everything that was asked of `from`.
    fn drop_all_lanes(&mut self, from: &P, out: &mut Vec<Out<P>>) {
        let lanes: Vec<Lane> = match self.providers.get(from) {
            Some(provider) => provider.lanes().collect(),
            None => Vec::new(),
        };
        for lane in lanes {
            self.drop_lane(from, lane, out);
        }
    }

    /// Takes back everything that was asked on one lane.
    fn drop_lane(&mut self, from: &P, lane: Lane, out: &mut Vec<Out<P>>) {
        let Some(provider) = self.providers.get_mut(from) else {
            return;
        };
        for slot in provider.drop_lane(lane) {
            if let Some(asked) = self.asked.remove(&slot) {
                self.reopen(asked.range);
                out.push(Out::Reset(slot));
            }
        }
    }

    fn on_tick(&mut self, now: Duration, out: &mut Vec<Out<P>>) {
        let late: Vec<Slot> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.late_at <= now)
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

    /// Gives one range to each provider that has room for one, again and again.
    fn assign(&mut self, losers: &BTreeSet<Slot>, now: Duration, out: &mut Vec<Out<P>>) {
        let mut goes_on = true;
        while goes_on && !self.open.is_empty() {
            goes_on = false;
            for from in self.by_rank(now) {
                if let Some(range) = self.range_for(&from, now) {
                    goes_on |= self.ask(&from, range, losers, now, out);
                }
            }
        }
    }

    /// Who can be asked, whom best to ask first: with few faults, and soon at an end.
    fn by_rank(&self, now: Duration) -> Vec<P> {
        let awake = |(_, provider): &(&P, &Provider)| provider.is_awake(now);
        let mut names: Vec<_> = self.providers.iter().filter(awake).collect();
        names.sort_by_key(|(_, provider)| {
            (
                provider.faults,
                provider.time_for(0).unwrap_or_default(),
                provider.order,
            )
        });
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// The next open range for a provider, as large as its rate and the rest of the blob suggest.
    fn range_for(&self, from: &P, now: Duration) -> Option<BlockRange> {
        let provider = self.providers.get(from)?;
        let blocks = provider.range_blocks().min(self.range_blocks_max(now));
        if !provider.has_room(blocks) {
            return None;
        }
        let may = |cell: &u32| self.open.contains(cell) && !provider.lacks.contains(cell);
        let range = self.run(*self.open.iter().find(|cell| may(cell))?, blocks, may)?;
        (!self.others_are_sooner(from, range, now)).then_some(range)
    }

    /// The units from `start` on for which `may` holds, up to the next multiple of `blocks`.
    fn run(&self, start: u32, blocks: u32, may: impl Fn(&u32) -> bool) -> Option<BlockRange> {
        let stop = (start / blocks + 1) * blocks;
        let mut end = start;
        while end < stop && may(&end) {
            end += UNIT_BLOCKS_MIN;
        }
        BlockRange::new(start, end.min(self.blob.blocks())).ok()
    }

    /// Ranges shrink towards the end, so that all providers come to theirs at about the same time.
    fn range_blocks_max(&self, now: Duration) -> u32 {
        let awake = self.providers.values().filter(|one| one.is_awake(now));
        match u32::try_from(awake.count()) {
            Ok(awake @ 2..) => unit(self.missing_blocks() / (2 * awake)),
            Ok(0 | 1) | Err(_) => unit(u32::MAX),
        }
    }

    /// Whether the others would have all the rest before `from` had this range. Somebody else must
    /// be able to take it, or nobody would.
    fn others_are_sooner(&self, from: &P, range: BlockRange, now: Duration) -> bool {
        let Some(provider) = self.providers.get(from) else {
            return false;
        };
        let Some(time) = provider.time_for(range.blocks()) else {
            return false;
        };
        let own = provider.in_flight_blocks() + range.blocks();
        let rest = self.missing_blocks().saturating_sub(own);
        let mut sum = 0_u64;
        let mut somebody = false;
        for (name, other) in &self.providers {
            if name == from || !other.is_awake(now) {
                continue;
            }
            let pace = other.rate().map_or(0, |rate| rate.min(other.pace(now)));
            let is_sooner = other
                .time_for(range.blocks())
                .is_some_and(|of_other| of_other < time);
            somebody |=
                is_sooner && !other.is_overdue(now) && !other.lacks.contains(&range.start().0);
            sum = sum.saturating_add(pace);
        }
        somebody && time > rate::time_for(provider::bytes(rest), sum)
    }

    fn ask(
        &mut self,
        from: &P,
        range: BlockRange,
        losers: &BTreeSet<Slot>,
        now: Duration,
        out: &mut Vec<Out<P>>,
    ) -> bool {
        // Units are cut from this very blob, so that there is a length.
        let Ok(wire_len) = wire_len(&self.blob, &Ranges::from(range)) else {
            return false;
        };
        let in_flight: u32 = self.asked.values().map(|asked| asked.range.blocks()).sum();
        let Some(provider) = self.providers.get_mut(from) else {
            return false;
        };
        let Some(lane) = provider.lane(losers, now) else {
            return false;
        };
        if in_flight + range.blocks() > IN_FLIGHT_BLOCKS_MAX {
            return false;
        }
        let lane = lane.unwrap_or_else(|| {
            self.lanes += 1;
            Lane(self.lanes)
        });
        self.slots += 1;
        let slot = Slot(self.slots);
        provider.ask(lane, slot, range.blocks(), now);
        for cell in cells(range) {
            self.open.remove(&cell);
        }
        let encoding = provider.encoding();
        let asked = Asked {
            from: from.clone(),
            lane,
            range,
            encoding,
            late_at: now.saturating_add(RANGE_TIMEOUT),
        };
        self.asked.insert(slot, asked);
        out.push(Out::Pull {
            slot,
            from: from.clone(),
            lane,
            range,
            encoding,
            wire_len,
        });
        true
    }

    fn end_if_over(&mut self, out: &mut Vec<Out<P>>) {
        if self.missing.is_empty() {
            return self.end(Out::Done, out);
        }
        if !self.asked.is_empty() || self.more_providers {
            return;
        }
        let hope = self
            .providers
            .values()
            .any(|provider| provider.gone.is_none() && !self.open.is_subset(&provider.lacks));
        if !hope {
            let (missing, blocks) = (self.missing_blocks(), self.blob.blocks());
            let error = TransferError::NoProviders { missing, blocks };
            self.end(Out::Failed(error), out);
        }
    }

    fn end(&mut self, how: Out<P>, out: &mut Vec<Out<P>>) {
        self.ended = true;
        out.extend(self.asked.keys().map(|slot| Out::Reset(*slot)));
        self.asked.clear();
        self.open.clone_from(&self.missing);
        out.push(how);
    }

    /// Everything that follows from what happened.
    fn go_on(&mut self, now: Duration, out: &mut Vec<Out<P>>) {
        let losers = self.drop_losers(now, out);
        self.take_from_stalled(now, out);
        self.assign(&losers, now, out);
        let waits = self.copy(&losers, now, out);
        self.end_if_over(out);
        self.wake_at = match self.ended {
            true => None,
            false => self.next_wake(waits, now),
        };
    }

    fn next_wake(&self, waits: bool, now: Duration) -> Option<Duration> {
        let late = self.asked.values().map(|asked| asked.late_at);
        let rested = self.providers.values().filter_map(|provider| {
            let is_of_use = provider.gone.is_none() && !self.missing.is_subset(&provider.lacks);
            let again = [provider.rests_until, provider.no_lane_until];
            let again = again.into_iter().filter(|at| *at > now).min();
            again.filter(|_| is_of_use)
        });
        let looks = waits.then(|| now.saturating_add(steal::LOOK_AGAIN));
        let stalls = self.next_stall(now);
        late.chain(rested).chain(looks).chain(stalls).min()
    }
}

impl<P: Clone + Ord> Machine for Transfer<P> {
    type In = In<P>;
    type Out = Out<P>;

    fn handle(&mut self, input: In<P>, now: Now, out: &mut Vec<Out<P>>) {
        if self.ended {
            return;
        }
        let now = now.mono;
        match input {
            In::Provider(provider) => self.on_provider(provider, Encoding::Raw),
            In::Far(provider) => self.on_provider(provider, Encoding::Zstd),
            In::NoMoreProviders => self.more_providers = false,
            In::LaneFree(provider) => self.on_lane_free(&provider),
            In::GiveBack(provider) => self.on_give_back(&provider, out),
            In::Range(slot, end) => self.on_range(slot, end, now, out),
            In::Tick => self.on_tick(now, out),
        }
        if !self.ended {
            self.go_on(now, out);
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.wake_at
    }
}

/// First blocks of the units of [`UNIT_BLOCKS_MIN`] that begin in `range`.
fn cells(range: BlockRange) -> impl Iterator<Item = u32> {
    (range.start().0..range.end().0).step_by(UNIT_BLOCKS_MIN as usize)
}

fn covers(range: BlockRange, cell: u32) -> bool {
    (range.start().0..range.end().0).contains(&cell)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
