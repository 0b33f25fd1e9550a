//! What is under way at a slow or silent provider is asked of somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::provider::{Provider, bytes};
use super::rate::time_for;
use super::{Asked, Out, REST, Slot, Transfer, cells, covers};
use crate::blocks::BlockRange;

/// How often an idle provider is looked at that might help out soon.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// So many times slower than the best loses its ranges while others are open.
const SLOWER_WHILE_OPEN: u64 = 10;
/// So many times slower than an idle one has its ranges asked of that one once nothing is open.
const SLOWER_AT_END: u64 = 3;
/// The shortest silence that costs a provider its ranges while others are open.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// How many times longer than its rate promises a provider is silent before it loses ranges.
const SILENCE_TIMES: u32 = 3;
/// How long one waits for a first answer where nothing at all was measured.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
/// Of a hundred blocks so many are asked for twice although nobody is slow.
const HEDGED_PERCENT: u32 = 1;
/// Whom a unit is asked of at once, as long as one of them delivers as promised.
const ASKERS_MAX: usize = 2;
/// Whom a unit is asked of at once if none does.
const SLOW_ASKERS_MAX: usize = 4;

/// What an idle provider might do about ranges of others.
struct Help {
    range: BlockRange,
    remaining: Duration,
    is_hedge: bool,
}

impl<P: Clone + Ord> Transfer<P> {
    /// Resets lanes of which nothing is needed any more, and names the slots that are not needed but
    /// have something useful before them: those are reset when that has come.
    pub(super) fn drop_losers(&mut self, now: Duration, out: &mut Vec<Out<P>>) -> BTreeSet<Slot> {
        let mut losers: BTreeSet<Slot> = self
            .asked
            .iter()
            .filter(|(_, asked)| cells(asked.range).all(|cell| !self.missing.contains(&cell)))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in losers.clone() {
            let Some(asked) = self.asked.get(&slot) else {
                continue;
            };
            let (from, lane) = (asked.from.clone(), asked.lane);
            let Some(provider) = self.providers.get_mut(&from) else {
                continue;
            };
            if !provider.is_behind(lane, slot, &losers) {
                provider.lost(now);
                self.drop_lane(&from, lane, out);
            }
        }
        losers.retain(|slot| self.asked.contains_key(slot));
        losers
    }

    /// While ranges are open, takes those of a provider that has fallen silent.
    pub(super) fn take_from_stalled(&mut self, now: Duration, out: &mut Vec<Out<P>>) {
        if self.open.is_empty() {
            return;
        }
        #[cfg(test)]
        if !self.helps {
            return;
        }
        let stalled: Vec<P> = self
            .stalls(now)
            .filter(|(_, at)| *at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in stalled {
            if let Some(provider) = self.providers.get_mut(&name) {
                provider.halve_window();
                provider.lost(now);
                provider.fault(REST, now);
            }
            self.drop_all_lanes(&name, out);
        }
    }

    /// When next a provider will have been silent for too long.
    pub(super) fn next_stall(&self, now: Duration) -> Option<Duration> {
        if self.open.is_empty() {
            return None;
        }
        self.stalls(now)
            .map(|(_, at)| at)
            .filter(|at| *at > now)
            .min()
    }

    /// When each provider will have been silent for too long, if it stays so. Only of those that
    /// delivered before: a first answer may take long for other reasons.
    fn stalls(&self, now: Duration) -> impl Iterator<Item = (&P, Duration)> {
        self.providers.iter().filter_map(move |(name, provider)| {
            if provider.in_flight_blocks() == 0 {
                return None;
            }
            let others = self.providers.iter().filter(|(other, _)| *other != name);
            let others = others.filter(|(_, other)| other.is_awake(now) && !other.is_overdue(now));
            let best = others.filter_map(|(_, other)| other.rate()).max()?;
            let by_rate = provider.silent_at(SILENCE_TIMES)?;
            Some((
                name,
                by_rate.max(provider.slower_at(SLOWER_WHILE_OPEN, best, SILENCE_MIN)),
            ))
        })
    }

    /// Once nothing is open for them, asks the idle for what is under way elsewhere. Says whether
    /// one of them might help a little later.
    pub(super) fn copy(
        &mut self,
        losers: &BTreeSet<Slot>,
        now: Duration,
        out: &mut Vec<Out<P>>,
    ) -> bool {
        #[cfg(test)]
        if !self.helps {
            return false;
        }
        let mut waits = false;
        for name in self.by_rank(now) {
            let Some(provider) = self.providers.get(&name) else {
                continue;
            };
            if provider.in_flight_blocks() > 0 || !self.open.is_subset(&provider.lacks) {
                continue;
            }
            let (help, later) = self.help(&name, provider, now);
            let Some(help) = help else {
                waits |= later;
                continue;
            };
            if self.ask(&name, help.range, losers, now, out) && help.is_hedge {
                self.hedged_blocks += help.range.blocks();
            }
        }
        waits
    }

    /// The range that would take longest without this provider, if it is sooner; and whether there is
    /// one for which it might be sooner later.
    fn help(&self, name: &P, provider: &Provider, now: Duration) -> (Option<Help>, bool) {
        let askers = self.askers(now);
        let mut best: Option<Help> = None;
        let mut later = false;
        for (slot, asked) in self.asked.iter().filter(|(_, asked)| asked.from != *name) {
            let Some(owner) = self.providers.get(&asked.from) else {
                continue;
            };
            let Some(range) = self.copyable(asked, provider, &askers, now) else {
                continue;
            };
            let help = self.weigh(range, *slot, owner, provider, now);
            later |= help.is_none();
            let longest = best.as_ref().map_or(Duration::ZERO, |best| best.remaining);
            best = help.filter(|help| help.remaining > longest).or(best);
        }
        (best, later)
    }

    /// Who is asked for each unit: how many, and whether one of them delivers as promised.
    fn askers(&self, now: Duration) -> BTreeMap<u32, (usize, bool)> {
        let mut askers = BTreeMap::new();
        for asked in self.asked.values() {
            let owner = self.providers.get(&asked.from);
            let delivers =
                owner.is_some_and(|owner| owner.rate().is_some() && !owner.is_overdue(now));
            for cell in cells(asked.range) {
                let (count, somebody) = askers.entry(cell).or_insert((0, false));
                *count += 1;
                *somebody |= delivers;
            }
        }
        askers
    }

    /// The first part of a range that this provider may have and not too many are asked for.
    fn copyable(
        &self,
        asked: &Asked<P>,
        provider: &Provider,
        askers: &BTreeMap<u32, (usize, bool)>,
        now: Duration,
    ) -> Option<BlockRange> {
        let may = |cell: &u32| {
            let (count, delivers) = askers.get(cell).copied().unwrap_or_default();
            let most = if delivers {
                ASKERS_MAX
            } else {
                SLOW_ASKERS_MAX
            };
            covers(asked.range, *cell)
                && self.missing.contains(cell)
                && !provider.lacks.contains(cell)
                && count < most
        };
        let start = cells(asked.range).find(|cell| may(cell))?;
        let blocks = provider.range_blocks().min(self.range_blocks_max(now));
        self.run(start, blocks, may)
    }

    fn weigh(
        &self,
        range: BlockRange,
        slot: Slot,
        owner: &Provider,
        idle: &Provider,
        now: Duration,
    ) -> Option<Help> {
        let remaining = owner.remaining(slot, now);
        let any_rate = || self.providers.values().filter_map(Provider::rate).max();
        let Some(rate) = idle.rate().or_else(any_rate) else {
            return (remaining > FIRST_PATIENCE).then_some(Help {
                range,
                remaining,
                is_hedge: false,
            });
        };
        let is_slow = owner.pace(now).saturating_mul(SLOWER_AT_END) <= rate;
        let is_hedge = !is_slow && !owner.is_overdue(now);
        let hedged_max = self.blob.blocks() * HEDGED_PERCENT / 100;
        let is_afforded = !is_hedge || self.hedged_blocks + range.blocks() <= hedged_max;
        // Half as long again, or what is gained is not worth what was sent already.
        let is_sooner = time_for(bytes(range.blocks()), rate) * 3 / 2 < remaining;
        (is_sooner && is_afforded).then_some(Help {
            range,
            remaining,
            is_hedge,
        })
    }
}
