//! What is known of one provider: its rate, its lanes, its window and its faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::rate::{Packing, Rate, per_second, time_for};
use super::{
    FAULTS_MAX, LANES_MAX, Lane, NO_LANE_FOR, NO_LANE_MAX, PIPELINE_MAX, PROBE_BLOCKS_MAX, REST,
    Slot, WINDOW_BLOCKS_MAX, WINDOW_TIME,
};
use crate::blocks::{BLOCK_BYTES, Encoding, UNIT_BLOCKS_MAX, UNIT_BLOCKS_MIN};

/// Below this rate, in bytes a second, one lane does: ranges that come one after the other end
/// earlier than ranges that come beside each other.
const ONE_LANE_BELOW: u64 = 4 << 20;
/// A range is to take about this long, so that what is slow is cut finer.
const RANGE_TIME: Duration = Duration::from_millis(500);
/// How much later than its rate promises a provider may deliver before it is overdue.
const GRACE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// Until it is named again.
    Unreachable,
    /// For good.
    Dropped,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    slot: Slot,
    blocks: u32,
}

#[derive(Debug)]
pub(super) struct Provider {
    /// In which order they were named.
    pub(super) order: usize,
    pub(super) faults: u32,
    pub(super) gone: Option<Gone>,
    pub(super) rests_until: Duration,
    /// Until when it gives no further lane, unless it is said that it does.
    pub(super) no_lane_until: Duration,
    /// How often in a row it gave none.
    no_lanes: u32,
    /// Since when there is none at all.
    without_since: Option<Duration>,
    /// The most blocks to ask for at once, where it lacked more.
    unit_blocks: u32,
    /// First blocks of the units that it was asked for in vain.
    pub(super) lacks: BTreeSet<u32>,
    rate: Rate,
    packing: Packing,
    /// When it delivered last, or was asked after having had nothing to do.
    since: Duration,
    /// What it may have in flight, whatever its rate: lateness halves it.
    cap_blocks: u32,
    lanes: BTreeMap<Lane, VecDeque<Pending>>,
    /// Lanes on which nothing more is asked, because others need them.
    closing: BTreeSet<Lane>,
}

impl Provider {
    /// Asked for answers as `at_first`, until its rate is known.
    pub(super) fn new(order: usize, at_first: Encoding) -> Self {
        Self {
            order,
            faults: 0,
            gone: None,
            rests_until: Duration::ZERO,
            no_lane_until: Duration::ZERO,
            no_lanes: 0,
            without_since: None,
            unit_blocks: UNIT_BLOCKS_MAX,
            lacks: BTreeSet::new(),
            rate: Rate::default(),
            packing: Packing::new(at_first),
            since: Duration::ZERO,
            cap_blocks: WINDOW_BLOCKS_MAX,
            lanes: BTreeMap::new(),
            closing: BTreeSet::new(),
        }
    }

    pub(super) fn is_awake(&self, now: Duration) -> bool {
        let has_lane = || self.lanes.keys().any(|lane| !self.closing.contains(lane));
        let is_heard = self.no_lane_until <= now || has_lane();
        self.gone.is_none() && self.rests_until <= now && is_heard
    }

    /// Bytes a second, as far as anything was measured.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate.per_second()
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.packing.encoding()
    }

    pub(super) fn in_flight_blocks(&self) -> u32 {
        self.pending().map(|pending| pending.blocks).sum()
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.lanes.values().flatten()
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = Lane> {
        self.lanes.keys().copied()
    }

    /// Blocks that it may have in flight: three seconds of data, within its cap.
    fn window_blocks(&self) -> u32 {
        let Some(rate) = self.rate() else {
            return PROBE_BLOCKS_MAX.min(self.cap_blocks);
        };
        let bytes = u128::from(rate) * WINDOW_TIME.as_micros() / 1_000_000;
        let blocks = u32::try_from(bytes / u128::from(BLOCK_BYTES)).unwrap_or(u32::MAX);
        blocks.clamp(UNIT_BLOCKS_MIN, self.cap_blocks.max(UNIT_BLOCKS_MIN))
    }

    /// How many blocks one range for it should have.
    pub(super) fn range_blocks(&self) -> u32 {
        let Some(rate) = self.rate() else {
            return UNIT_BLOCKS_MIN;
        };
        let wanted = rate.saturating_mul(RANGE_TIME.as_millis() as u64) / 1000 / BLOCK_BYTES;
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        unit(wanted.min(self.unit_blocks).min(self.window_blocks()))
    }

    /// Whether a range of `blocks` may be asked of it on top of what is in flight.
    pub(super) fn has_room(&self, blocks: u32) -> bool {
        let in_flight = self.in_flight_blocks();
        in_flight == 0 || in_flight + blocks <= self.window_blocks()
    }

    /// The lane on which to ask next: the emptiest one with a place; a new one, as `None` within,
    /// where all are full. Lanes whose slots are `losers` take nothing more, nor do those that are closing.
    pub(super) fn lane(&self, losers: &BTreeSet<Slot>, now: Duration) -> Option<Option<Lane>> {
        let has_place = |lane: &VecDeque<Pending>| {
            lane.len() < PIPELINE_MAX && !lane.iter().any(|one| losers.contains(&one.slot))
        };
        let open = self.lanes.iter();
        let open = open.filter(|(name, lane)| has_place(lane) && !self.closing.contains(name));
        if let Some((lane, _)) = open.min_by_key(|(_, lane)| lane.len()) {
            return Some(Some(*lane));
        }
        let is_slow = self.rate().is_none_or(|rate| rate < ONE_LANE_BELOW);
        let most = if is_slow { 1 } else { LANES_MAX };
        // A lane that waits for its reset does not keep a slow one from going on.
        let resetting = self
            .lanes
            .values()
            .filter(|lane| lane.iter().any(|one| losers.contains(&one.slot)));
        let used = self.lanes.len();
        let may = self.no_lane_until <= now && used < LANES_MAX;
        (may && used - resetting.count() < most).then_some(None)
    }

    pub(super) fn ask(&mut self, lane: Lane, slot: Slot, blocks: u32, now: Duration) {
        if self.in_flight_blocks() == 0 {
            self.since = now;
        }
        let pending = Pending { slot, blocks };
        self.lanes.entry(lane).or_default().push_back(pending);
    }

    /// The slot ended, and its lane goes on, unless it was the last one of a lane to be closed, which is
    /// returned.
    pub(super) fn ended(&mut self, slot: Slot) -> Option<Lane> {
        for lane in self.lanes.values_mut() {
            lane.retain(|pending| pending.slot != slot);
        }
        self.closed()
    }

    /// One lane is for others: the one with the least asked on it. Returned when it is to be closed now.
    pub(super) fn give_back(&mut self) -> Option<Lane> {
        let kept = self.lanes.iter();
        let kept = kept.filter(|(lane, _)| !self.closing.contains(lane));
        let (lane, _) = kept.min_by_key(|(_, pending)| pending.len())?;
        self.closing.insert(*lane);
        self.closed()
    }

    /// Forgets a lane that is closing and has nothing asked on it.
    fn closed(&mut self) -> Option<Lane> {
        let is_over = |lane: &&Lane| self.lanes.get(lane).is_none_or(VecDeque::is_empty);
        let lane = *self.closing.iter().find(is_over)?;
        self.drop_lane(lane);
        Some(lane)
    }

    pub(super) fn has_no_lane(&mut self, now: Duration) {
        let patience = NO_LANE_FOR.saturating_mul(1 << self.no_lanes.min(16));
        self.no_lane_until = now.saturating_add(patience.min(REST));
        self.no_lanes += 1;
        let since = *self.without_since.get_or_insert(now);
        if !self.lanes.is_empty() {
            self.without_since = None;
        } else if now.saturating_sub(since) >= NO_LANE_MAX {
            self.without_since = None;
            self.fault(REST, now);
        }
    }

    pub(super) fn has_a_lane(&mut self) {
        self.no_lane_until = Duration::ZERO;
        self.no_lanes = 0;
        self.without_since = None;
    }

    /// Drops a lane and returns what was asked on it.
    pub(super) fn drop_lane(&mut self, lane: Lane) -> Vec<Slot> {
        self.closing.remove(&lane);
        let pending = self.lanes.remove(&lane).unwrap_or_default();
        pending.into_iter().map(|pending| pending.slot).collect()
    }

    /// Whether something useful is sent on the lane before this slot.
    pub(super) fn is_behind(&self, lane: Lane, slot: Slot, losers: &BTreeSet<Slot>) -> bool {
        let lane = self.lanes.get(&lane).into_iter().flatten();
        let mut before = lane.take_while(|pending| pending.slot != slot);
        before.any(|pending| !losers.contains(&pending.slot))
    }

    /// Counts what it delivered, `received` bytes over the wire.
    pub(super) fn delivered(
        &mut self,
        as_asked: Encoding,
        blocks: u32,
        received: u32,
        now: Duration,
    ) {
        let took = now.saturating_sub(self.since);
        let (bytes, received) = (bytes(blocks), u64::from(received));
        self.rate.add(bytes, received, took);
        self.packing.add(as_asked, bytes, received, took);
        self.since = now;
        self.without_since = None;
        self.faults = self.faults.saturating_sub(1);
        self.cap_blocks = (self.cap_blocks + UNIT_BLOCKS_MIN).min(WINDOW_BLOCKS_MAX);
    }

    /// Counts the time in which it delivered nothing of what was taken from it.
    pub(super) fn lost(&mut self, now: Duration) {
        self.rate.add(0, 0, now.saturating_sub(self.since));
        self.since = now;
    }

    pub(super) fn does_not_pack(&mut self) {
        self.packing.give_up();
    }

    pub(super) fn halve_window(&mut self) {
        let half = self.window_blocks() / 2;
        self.cap_blocks = half.max(UNIT_BLOCKS_MIN);
    }

    /// It may have parts of what it does not have as a whole.
    pub(super) fn lacks(&mut self, blocks: u32, cells: impl Iterator<Item = u32>) {
        self.unit_blocks = UNIT_BLOCKS_MIN;
        if blocks <= UNIT_BLOCKS_MIN {
            self.lacks.extend(cells);
        }
    }

    /// Counts a failure; the provider goes behind those with fewer, and rests.
    pub(super) fn fault(&mut self, rest: Duration, now: Duration) {
        if self.rests_until > now {
            // Several lanes that fail of one cause are one failure.
            return;
        }
        let factor = 1 << self.faults.min(FAULTS_MAX);
        self.rests_until = now.saturating_add(rest * factor);
        self.faults += 1;
        if self.faults >= FAULTS_MAX && !rest.is_zero() {
            self.gone = Some(Gone::Dropped);
        }
    }

    /// When it will have delivered all that is in flight and `more` blocks, from when it last did.
    pub(super) fn time_for(&self, more: u32) -> Option<Duration> {
        Some(time_for(
            bytes(self.in_flight_blocks() + more),
            self.rate()?,
        ))
    }

    /// Bytes that are being sent, one range on each lane.
    fn heads_bytes(&self) -> u64 {
        let heads = self.lanes.values().filter_map(VecDeque::front);
        heads.map(|pending| bytes(pending.blocks)).sum()
    }

    /// How long it has delivered nothing although it was asked.
    fn gap(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// Its rate as the present gap in its deliveries bounds it, at least one byte a second.
    pub(super) fn pace(&self, now: Duration) -> u64 {
        let heads = self.heads_bytes();
        let bound = match heads {
            0 => u64::MAX,
            _ => per_second(heads, self.gap(now)),
        };
        self.rate().unwrap_or(u64::MAX).min(bound)
    }

    /// Half as late again as its rate promises. Not before something was measured.
    pub(super) fn is_overdue(&self, now: Duration) -> bool {
        let heads = self.heads_bytes();
        let promised = self.rate().map(|rate| time_for(heads, rate));
        heads > 0 && promised.is_some_and(|promised| self.gap(now) > promised * 3 / 2 + GRACE)
    }

    /// When, by its rate, it will have been silent `times` longer than promised.
    pub(super) fn silent_at(&self, times: u32) -> Option<Duration> {
        let promised = time_for(self.heads_bytes(), self.rate()?);
        Some(self.since.saturating_add(promised.saturating_mul(times)))
    }

    /// When it will be `times` slower than `best` by its silence alone, `least` after its last
    /// delivery or later.
    pub(super) fn slower_at(&self, times: u64, best: u64, least: Duration) -> Duration {
        let silence = time_for(self.heads_bytes().saturating_mul(times), best);
        self.since.saturating_add(silence.max(least))
    }

    /// How much longer the answer for `slot` will take. One that should have been here is expected
    /// to take as long again as it has taken.
    pub(super) fn remaining(&self, slot: Slot, now: Duration) -> Duration {
        let is_head = self
            .lanes
            .values()
            .any(|lane| lane.front().is_some_and(|head| head.slot == slot));
        let before = match is_head {
            true => self.heads_bytes(),
            false => bytes(self.in_flight_blocks()),
        };
        let gap = self.gap(now);
        match self.rate().map(|rate| time_for(before, rate)) {
            Some(promised) if promised > gap => promised - gap,
            Some(_) | None => gap,
        }
    }
}

/// The largest size of an aligned range that is at most `blocks`.
pub(super) fn unit(blocks: u32) -> u32 {
    match blocks {
        64.. => 64,
        32.. => 32,
        _ => UNIT_BLOCKS_MIN,
    }
}

pub(super) fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES
}
