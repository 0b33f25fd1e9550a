//! Providers in virtual time for the tests, who check with every step that the machine asks only
//! what it may.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;
use crate::blocks::BLOCK_BYTES;
use crate::hash::Root;
use crate::time::UnixTime;

/// When the driver gives up on a lane on which no byte comes.
const STALL_MAX: Duration = Duration::from_secs(10);

pub(super) fn blob(blocks: u32) -> Blob {
    let size = u64::from(blocks) * BLOCK_BYTES - 1;
    Blob::new(Root([9; 32]), size).expect("in bounds")
}

/// How a provider answers.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Has the units that are set; says so of the others.
    Honest(Vec<bool>),
    /// Has all of it.
    Whole,
    Always(Why),
    /// Verified and failing in turn.
    Mixed(Why),
    /// Has all of it and sends nothing from this time on.
    Stalls(Duration),
    /// Has all of it and cannot be reached from this time on.
    Vanishes(Duration),
    /// Has all of it, and gives no lane before `from`, because another transfer has them, then `most`. At
    /// `back` it wants one back. What it says of a lane that is one too many is `why`.
    Lanes {
        from: Duration,
        most: usize,
        back: Duration,
        why: Why,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) kind: Kind,
    /// Bytes a second over all its lanes.
    pub(super) rate: u64,
    /// From asking to the first byte.
    pub(super) latency: Duration,
    /// When it is named.
    pub(super) named: Duration,
}

impl Peer {
    /// Near where it is fast.
    pub(super) fn whole(rate: u64) -> Self {
        let is_near = rate > 20 << 20;
        Self {
            kind: Kind::Whole,
            rate,
            latency: Duration::from_millis(if is_near { 1 } else { 20 }),
            named: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
struct Pull {
    from: usize,
    lane: Lane,
    range: BlockRange,
    wire_len: u32,
    begins: Duration,
    last_byte: Duration,
    sent: f64,
}

/// One transfer from its first input to its end.
#[derive(Debug)]
pub(super) struct World {
    pub(super) transfer: Transfer<usize>,
    peers: Vec<Peer>,
    pub(super) now: Duration,
    pulls: BTreeMap<Slot, Pull>,
    lanes: BTreeMap<Lane, (usize, VecDeque<Slot>)>,
    dropped: BTreeSet<Lane>,
    /// Lanes that something was asked on.
    begun: BTreeSet<Lane>,
    refused: BTreeSet<Lane>,
    given_back: BTreeSet<usize>,
    named: BTreeSet<usize>,
    banned: BTreeSet<usize>,
    lacked: BTreeSet<(usize, u32)>,
    done: BTreeSet<u32>,
    turns: u32,
    /// Bytes that left each provider and were not needed: answers that were reset, units that were
    /// here already.
    in_vain: BTreeMap<usize, f64>,
    pub(super) from: BTreeMap<usize, u64>,
    pub(super) ended: Option<Out<usize>>,
}

impl World {
    pub(super) fn new(blob: Blob, valid: &[BlockRange], peers: Vec<Peer>) -> Self {
        Self {
            transfer: Transfer::new(blob, valid),
            peers,
            now: Duration::ZERO,
            pulls: BTreeMap::new(),
            lanes: BTreeMap::new(),
            dropped: BTreeSet::new(),
            begun: BTreeSet::new(),
            refused: BTreeSet::new(),
            given_back: BTreeSet::new(),
            named: BTreeSet::new(),
            banned: BTreeSet::new(),
            lacked: BTreeSet::new(),
            done: valid.iter().flat_map(|range| cells(*range)).collect(),
            turns: 0,
            in_vain: BTreeMap::new(),
            from: BTreeMap::new(),
            ended: None,
        }
    }

    /// A machine that leaves everybody alone with what they were asked for.
    pub(super) fn without_help(mut self) -> Self {
        self.transfer.helps = false;
        self
    }

    /// Plays until the machine ends, or for so many steps.
    pub(super) fn play(&mut self, steps_max: u32) {
        self.feed(In::Tick);
        for _ in 0..steps_max {
            if self.ended.is_some() {
                return;
            }
            self.step();
        }
        panic!("did not end: {:?}", self.transfer);
    }

    /// Bytes that were sent and not needed, per hundred of the blob. What somebody sent of ranges
    /// and then fell silent is lost, whatever is done about it, and does not count.
    pub(super) fn duplicates_percent(&self) -> f64 {
        let in_vain = self.in_vain.iter();
        let duplicates = in_vain.filter(|(peer, _)| match self.peers[**peer].kind {
            Kind::Stalls(at) => at > self.now,
            _ => true,
        });
        let sum: f64 = duplicates.map(|(_, bytes)| bytes).sum();
        sum * 100.0 / self.transfer.blob.size() as f64
    }

    fn step(&mut self) {
        let unnamed = (0..self.peers.len())
            .find(|peer| !self.named.contains(peer) && self.peers[*peer].named <= self.now);
        if let Some(peer) = unnamed {
            self.named.insert(peer);
            self.feed(In::Provider(peer));
            if self.named.len() == self.peers.len() {
                self.feed(In::NoMoreProviders);
            }
            return;
        }
        let back = |peer: &usize| matches!(self.peers[*peer].kind, Kind::Lanes { back, .. } if back <= self.now);
        let mut named = self.named.iter().copied();
        if let Some(peer) = named.find(|peer| back(peer) && !self.given_back.contains(peer)) {
            self.given_back.insert(peer);
            return self.feed(In::GiveBack(peer));
        }
        if self.peers.is_empty() {
            return self.feed(In::NoMoreProviders);
        }
        let at = self.next_event().expect("it waits for nothing");
        self.advance(at);
        match self.over() {
            Some((slot, end)) => self.end(slot, end),
            None => self.feed(In::Tick),
        }
    }

    /// The pulls that get bytes now, with how many a second.
    fn flowing(&self) -> Vec<(Slot, f64)> {
        let mut heads: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
        for (peer, queue) in self.lanes.values() {
            let stops = match self.peers[*peer].kind {
                Kind::Stalls(at) => at <= self.now,
                _ => false,
            };
            if let Some(head) = queue.front()
                && !stops
                && self.pulls[head].begins <= self.now
            {
                heads.entry(*peer).or_default().push(*head);
            }
        }
        let mut flowing = Vec::new();
        for (peer, heads) in heads {
            let each = self.peers[peer].rate as f64 / heads.len() as f64;
            flowing.extend(heads.into_iter().map(|slot| (slot, each)));
        }
        flowing
    }

    fn next_event(&self) -> Option<Duration> {
        let flows = self.flowing().into_iter().map(|(slot, each)| {
            let pull = &self.pulls[&slot];
            let left = f64::from(pull.wire_len) - pull.sent;
            self.now + Duration::from_secs_f64((left / each).max(0.0)) + Duration::from_nanos(1)
        });
        let begins = self.pulls.values().map(|pull| pull.begins);
        let heads = self.lanes.values().filter_map(|(_, queue)| queue.front());
        let stalls = heads.map(|head| self.pulls[head].last_byte + STALL_MAX);
        let peers = self.peers.iter().flat_map(|peer| {
            let turns = match peer.kind {
                Kind::Stalls(at) | Kind::Vanishes(at) | Kind::Lanes { back: at, .. } => at,
                _ => Duration::ZERO,
            };
            [peer.named, turns]
        });
        let wake = self.transfer.deadline();
        let later = begins.chain(peers).filter(|at| *at > self.now);
        let due = wake.into_iter().chain(stalls).map(|at| at.max(self.now));
        flows.chain(later).chain(due).min()
    }

    fn advance(&mut self, to: Duration) {
        let took = (to - self.now).as_secs_f64();
        for (slot, each) in self.flowing() {
            if let Some(pull) = self.pulls.get_mut(&slot) {
                let more = (each * took).min(f64::from(pull.wire_len) - pull.sent);
                pull.sent += more;
                pull.last_byte = to;
                *self.in_vain.entry(pull.from).or_default() += more;
            }
        }
        self.now = to;
    }

    /// A pull that is over now, and how.
    fn over(&mut self) -> Option<(Slot, RangeEnd)> {
        let heads: Vec<Slot> = self
            .lanes
            .values()
            .filter_map(|(_, queue)| queue.front().copied())
            .collect();
        for slot in heads {
            let pull = &self.pulls[&slot];
            let kind = &self.peers[pull.from].kind;
            if let Kind::Vanishes(at) = kind
                && *at <= self.now
            {
                return Some((slot, Failed(Why::Unreachable)));
            }
            let has_begun = pull.begins <= self.now;
            if has_begun && let Some(why) = self.refuses(slot) {
                return Some((slot, Failed(why)));
            }
            let pull = &self.pulls[&slot];
            if pull.sent + 0.5 >= f64::from(pull.wire_len) {
                let received = pull.wire_len;
                return Some((slot, Verified { received }));
            }
            if pull.last_byte + STALL_MAX <= self.now {
                return Some((slot, Failed(Why::Late)));
            }
        }
        None
    }

    fn refuses(&mut self, slot: Slot) -> Option<Why> {
        let pull = &self.pulls[&slot];
        match &self.peers[pull.from].kind {
            Kind::Lanes { why, .. } => self.refused.contains(&pull.lane).then_some(*why),
            Kind::Honest(has) => {
                let all = cells(pull.range).all(|cell| has[(cell / UNIT_BLOCKS_MIN) as usize]);
                (!all).then_some(Why::Lacks)
            }
            Kind::Always(why) => Some(*why),
            Kind::Mixed(why) => {
                self.turns += 1;
                self.turns.is_multiple_of(2).then_some(*why)
            }
            Kind::Whole | Kind::Stalls(_) | Kind::Vanishes(_) => None,
        }
    }

    fn end(&mut self, slot: Slot, end: RangeEnd) {
        let Some(pull) = self.pulls.remove(&slot) else {
            return;
        };
        if let Some((_, queue)) = self.lanes.get_mut(&pull.lane) {
            queue.retain(|other| *other != slot);
            if let Some(next) = queue.front().and_then(|next| self.pulls.get_mut(next)) {
                next.last_byte = next.last_byte.max(self.now);
            }
        }
        match end {
            Verified { .. } => {
                let new = cells(pull.range)
                    .filter(|cell| self.done.insert(*cell))
                    .count();
                let of = cells(pull.range).count();
                let useful = f64::from(pull.wire_len) * new as f64 / of as f64;
                *self.in_vain.entry(pull.from).or_default() -= useful;
                *self.from.entry(pull.from).or_default() += u64::from(pull.range.blocks());
            }
            Failed(Why::Lacks) if pull.range.blocks() <= UNIT_BLOCKS_MIN => {
                self.lacked
                    .extend(cells(pull.range).map(|cell| (pull.from, cell)));
            }
            Failed(Why::Lacks | Why::Busy | Why::NotSpoken) => {}
            Failed(_) => {
                self.dropped.insert(pull.lane);
            }
        }
        self.feed(In::Range(slot, end));
    }

    fn feed(&mut self, input: In<usize>) {
        let now = Now {
            mono: self.now,
            unix: UnixTime(0),
        };
        let mut out = Vec::new();
        self.transfer.handle(input, now, &mut out);
        out.into_iter().for_each(|out| self.take(out));
        for lane in &self.dropped {
            let left = self.lanes.remove(lane).map_or(0, |(_, queue)| queue.len());
            assert_eq!(left, 0, "{lane:?} was dropped with something on it");
        }
        let wake = self.transfer.deadline();
        assert!(wake.is_none_or(|at| at > self.now), "wakes in the past");
    }

    fn take(&mut self, out: Out<usize>) {
        assert!(self.ended.is_none(), "nothing after the end");
        match out {
            Out::Pull {
                slot,
                from,
                lane,
                range,
                wire_len,
                ..
            } => {
                self.pull(slot, from, lane, range, wire_len);
            }
            Out::Reset(slot) => {
                let pull = self.pulls.remove(&slot).expect("reset of nothing");
                self.dropped.insert(pull.lane);
                if let Some((_, queue)) = self.lanes.get_mut(&pull.lane) {
                    queue.retain(|other| *other != slot);
                }
            }
            Out::Close(lane) => {
                let (_, queue) = self.lanes.remove(&lane).expect("close of nothing");
                assert!(queue.is_empty(), "{lane:?} was closed with {queue:?} on it");
                self.dropped.insert(lane);
            }
            Out::Ban(peer, _) => {
                let kind = &self.peers[peer].kind;
                assert!(
                    matches!(kind, Kind::Always(_) | Kind::Mixed(_)),
                    "ban of the honest"
                );
                self.banned.insert(peer);
            }
            Out::Done => {
                let all = self.transfer.blob.units(UNIT_BLOCKS_MIN);
                let hole = all
                    .map(|unit| unit.start().0)
                    .find(|cell| !self.done.contains(cell));
                assert_eq!(hole, None, "done with a hole");
                assert!(self.pulls.is_empty(), "done with something under way");
                self.ended = Some(out);
            }
            Out::Failed(_) => self.ended = Some(out),
        }
    }

    fn pull(&mut self, slot: Slot, from: usize, lane: Lane, range: BlockRange, wire: u32) {
        assert!(self.named.contains(&from), "{from} has not said to have it");
        assert!(!self.banned.contains(&from), "{from} is banned");
        assert!(!self.dropped.contains(&lane), "{lane:?} was dropped");
        assert_eq!(wire_len(&self.transfer.blob, &range.into()), Ok(wire));
        for cell in cells(range) {
            assert!(!self.done.contains(&cell), "{cell} is here");
            assert!(!self.lacked.contains(&(from, cell)), "{from} lacks {cell}");
            let askers = self.pulls.values().filter(|pull| covers(pull.range, cell));
            let askers: Vec<usize> = askers.map(|pull| pull.from).collect();
            assert!(
                askers.len() < 4 && !askers.contains(&from),
                "{cell}: {askers:?} and {from}"
            );
        }
        let (owner, queue) = self.lanes.entry(lane).or_insert((from, VecDeque::new()));
        assert_eq!(*owner, from, "a lane of another");
        queue.push_back(slot);
        assert!(queue.len() <= PIPELINE_MAX);
        // A lane whose range has just failed is closed, and its place is free at once.
        let open = self
            .lanes
            .iter()
            .filter(|(lane, (owner, _))| *owner == from && !self.dropped.contains(lane));
        let open = open.count();
        assert!(open <= LANES_MAX);
        let is_new = self.lanes[&lane].1.len() == 1 && !self.begun.contains(&lane);
        self.begun.insert(lane);
        if let Kind::Lanes { from: at, most, .. } = self.peers[from].kind
            && is_new
            && (self.now < at || open > most)
        {
            self.refused.insert(lane);
        }
        let begins = self.now + self.peers[from].latency;
        let pull = Pull {
            from,
            lane,
            range,
            wire_len: wire,
            begins,
            last_byte: begins,
            sent: 0.0,
        };
        assert!(self.pulls.insert(slot, pull).is_none(), "slot used twice");
        let of_peer = self.pulls.values().filter(|pull| pull.from == from);
        let of_peer: u32 = of_peer.map(|pull| pull.range.blocks()).sum();
        assert!(
            of_peer <= WINDOW_BLOCKS_MAX,
            "{of_peer} blocks in flight at {from}"
        );
        let all: u32 = self.pulls.values().map(|pull| pull.range.blocks()).sum();
        assert!(all <= IN_FLIGHT_BLOCKS_MAX);
    }
}

use RangeEnd::{Failed, Verified};
