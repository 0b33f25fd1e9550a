//! Who of several transfers of one reader has the lanes of one provider.
//!
//! A provider gives one reader [`LANES_MAX`] lanes, or fewer, whatever they are for. So transfers of the
//! same node take them here before they open them. Who has none waits in the order of coming and is
//! handed the next one that is given back. For somebody who waits, whoever has several is asked for
//! one at once, and whoever has a single one after a [`TURN`]: nobody waits for the end of another
//! transfer, however large.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::LANES_MAX;

/// How long a transfer keeps its only lane while others have none.
pub const TURN: Duration = Duration::from_secs(1);
/// How long it is remembered that a provider gives fewer lanes.
pub const FEWER_FOR: Duration = Duration::from_secs(10);

/// The lanes of one provider; `T` names a transfer.
#[derive(Debug, Clone)]
pub struct Sharing<T> {
    holders: BTreeMap<T, Held>,
    /// Those without a lane, and since when.
    waiting: VecDeque<(T, Duration)>,
    /// How many lanes the provider gives, as far as it refused more, and until when that holds.
    fewer: Option<(usize, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lanes: usize,
    /// How many of them it was asked to give back.
    asked_back: usize,
    since: Duration,
}

impl Held {
    fn kept(&self) -> usize {
        self.lanes - self.asked_back
    }
}

/// What comes of asking for a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken<T> {
    /// It may be opened.
    Lane,
    /// Not now. Who has none is handed one later.
    NotNow {
        /// Who is to give one back.
        asks_back: Option<T>,
    },
}

impl<T> Default for Sharing<T> {
    fn default() -> Self {
        Self {
            holders: BTreeMap::new(),
            waiting: VecDeque::new(),
            fewer: None,
        }
    }
}

impl<T: Copy + Ord> Sharing<T> {
    /// Whether nobody has or wants a lane.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.waiting.is_empty()
    }

    /// Lanes that are taken.
    pub fn lanes(&self) -> usize {
        self.holders.values().map(|held| held.lanes).sum()
    }

    /// `who` wants one more lane. Who waits asks again from time to time.
    pub fn take(&mut self, who: T, now: Duration) -> Taken<T> {
        let is_next = self.waiting.front().is_none_or(|(next, _)| *next == who);
        if is_next && self.lanes() < self.most(now) {
            self.leave(who);
            self.give(who, now);
            return Taken::Lane;
        }
        if self.holders.contains_key(&who) {
            return Taken::NotNow { asks_back: None };
        }
        self.wait(who, now);
        Taken::NotNow {
            asks_back: self.ask_back(now),
        }
    }

    /// The provider closed a lane of `who` instead of serving it. Says whether it serves others: then
    /// it gives no more than these, and who has none waits.
    pub fn refused(&mut self, who: T, now: Duration) -> bool {
        self.lose(who);
        let most = self.lanes();
        if most == 0 {
            return false;
        }
        self.fewer = Some((most, now.saturating_add(FEWER_FOR)));
        if !self.holders.contains_key(&who) {
            self.wait(who, now);
        }
        true
    }

    /// A lane of `who` was closed. Returns who has it now instead.
    pub fn give_back(&mut self, who: T, now: Duration) -> Option<T> {
        self.lose(who);
        if self.lanes() >= self.most(now) {
            return None;
        }
        let (next, _) = self.waiting.pop_front()?;
        self.give(next, now);
        Some(next)
    }

    /// `who` waits no longer. Lanes that it has are given back one by one.
    pub fn leave(&mut self, who: T) {
        self.waiting.retain(|(waits, _)| *waits != who);
    }

    fn most(&self, now: Duration) -> usize {
        let fewer = self.fewer.filter(|(_, until)| now < *until);
        fewer.map_or(LANES_MAX, |(most, _)| most)
    }

    fn wait(&mut self, who: T, now: Duration) {
        if self.waiting.iter().all(|(waits, _)| *waits != who) {
            self.waiting.push_back((who, now));
        }
    }

    fn lose(&mut self, who: T) {
        let Some(held) = self.holders.get_mut(&who) else {
            return;
        };
        held.lanes -= 1;
        held.asked_back = held.asked_back.saturating_sub(1);
        if held.lanes == 0 {
            self.holders.remove(&who);
        }
    }

    fn give(&mut self, who: T, now: Duration) {
        let held = self.holders.entry(who).or_insert(Held {
            lanes: 0,
            asked_back: 0,
            since: now,
        });
        held.lanes += 1;
    }

    /// Who is to give a lane back for those who wait: whoever has most, of these the one that has had
    /// them longest.
    fn ask_back(&mut self, now: Duration) -> Option<T> {
        let asked_back = self.holders.values().map(|held| held.asked_back);
        let unserved = self.waiting.get(asked_back.sum::<usize>())?.1;
        let has_waited = |since: Duration| now.saturating_sub(since) >= TURN;
        let most = self.holders.iter_mut();
        let (who, held) =
            most.max_by_key(|(_, held)| (held.kept(), std::cmp::Reverse(held.since)))?;
        let is_due = match held.kept() {
            0 => false,
            1 => has_waited(unserved) && has_waited(held.since),
            _ => true,
        };
        if !is_due {
            return None;
        }
        held.asked_back += 1;
        Some(*who)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const NOT_NOW: Taken<u8> = Taken::NotNow { asks_back: None };

    #[test]
    fn whoever_has_several_gives_one_back_for_whoever_has_none() {
        let mut sharing = Sharing::default();
        for _ in 0..LANES_MAX {
            assert_eq!(sharing.take(1, NOW), Taken::Lane);
        }
        assert_eq!(sharing.take(1, NOW), NOT_NOW, "it has some");
        let asks_back = Some(1);
        assert_eq!(sharing.take(2, NOW), Taken::NotNow { asks_back });
        assert_eq!(sharing.take(2, NOW), NOT_NOW, "it was asked for");
        assert_eq!(sharing.take(3, NOW), Taken::NotNow { asks_back });
        assert_eq!(sharing.give_back(1, NOW), Some(2));
        assert_eq!(sharing.give_back(1, NOW), Some(3));
        assert_eq!(sharing.take(4, NOW), Taken::NotNow { asks_back });
        sharing.leave(4);
        assert_eq!(sharing.give_back(1, NOW), None, "nobody waits any more");
        assert_eq!(sharing.take(5, NOW), Taken::Lane);
    }

    #[test]
    fn whoever_has_one_keeps_it_for_a_turn() {
        let mut sharing = Sharing::default();
        for who in 0..4 {
            let at = Duration::from_millis(who.into());
            assert_eq!(sharing.take(who, at), Taken::Lane);
        }
        assert_eq!(sharing.take(9, NOW), NOT_NOW);
        assert_eq!(sharing.take(9, TURN / 2), NOT_NOW);
        let asks_back = Some(0);
        assert_eq!(sharing.take(9, TURN), Taken::NotNow { asks_back });
        assert_eq!(sharing.take(9, TURN * 2), NOT_NOW, "it was asked for");
        assert_eq!(sharing.give_back(0, TURN * 2), Some(9));
        // Back in the line, it has its turn from whoever has had one longest.
        assert_eq!(sharing.take(0, TURN * 2), NOT_NOW);
        let asks_back = Some(1);
        assert_eq!(sharing.take(0, TURN * 3), Taken::NotNow { asks_back });
    }

    #[test]
    fn a_provider_that_gives_fewer_lanes_is_believed_for_a_while() {
        let mut sharing = Sharing::default();
        for who in [1, 1, 2] {
            assert_eq!(sharing.take(who, NOW), Taken::Lane);
        }
        assert!(sharing.refused(2, NOW), "it serves another one");
        let asks_back = Some(1);
        assert_eq!(sharing.take(2, NOW), Taken::NotNow { asks_back });
        assert_eq!(sharing.give_back(1, NOW), Some(2));
        assert_eq!(sharing.take(1, NOW), NOT_NOW);
        assert_eq!(sharing.take(1, FEWER_FOR), Taken::Lane);

        let mut sharing = Sharing::default();
        assert_eq!(sharing.take(1, NOW), Taken::Lane);
        assert!(!sharing.refused(1, NOW), "it serves nobody");
        assert_eq!(
            sharing.take(1, NOW),
            Taken::Lane,
            "whoever comes again may try"
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u8),
        GiveBack(u8),
        Leave(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..8).prop_map(Step::Take),
            2 => (0_u8..8).prop_map(Step::GiveBack),
            1 => (0_u8..8).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn never_more_lanes_than_there_are_and_the_first_to_wait_is_the_first_served(
            steps in prop::collection::vec((step(), 0_u64..2000), 0..200),
        ) {
            let mut sharing = Sharing::default();
            let (mut has, mut line) = (BTreeMap::<u8, usize>::new(), Vec::<u8>::new());
            let mut now = NOW;
            for (step, millis) in steps {
                now += Duration::from_millis(millis);
                match step {
                    Step::Take(who) => match sharing.take(who, now) {
                        Taken::Lane => {
                            prop_assert!(line.is_empty(), "{who} overtook {line:?}");
                            *has.entry(who).or_default() += 1;
                        }
                        Taken::NotNow { asks_back } => {
                            let of = |who: u8| has.get(&who).copied().unwrap_or_default();
                            prop_assert!(asks_back.is_none_or(|one| of(one) > 0));
                            if of(who) == 0 && !line.contains(&who) {
                                line.push(who);
                            }
                        }
                    },
                    Step::GiveBack(who) if has.get(&who).is_some_and(|lanes| *lanes > 0) => {
                        *has.entry(who).or_default() -= 1;
                        let next = sharing.give_back(who, now);
                        prop_assert_eq!(next, line.first().copied());
                        if let Some(next) = next {
                            line.remove(0);
                            *has.entry(next).or_default() += 1;
                        }
                    }
                    Step::GiveBack(_) => {}
                    Step::Leave(who) => {
                        line.retain(|waits| *waits != who);
                        sharing.leave(who);
                    }
                }
                let taken: usize = has.values().sum();
                prop_assert_eq!(sharing.lanes(), taken);
                prop_assert!(taken <= LANES_MAX);
                prop_assert!(line.is_empty() || taken == LANES_MAX, "a lane lies idle");
            }
        }

        /// However long the transfers are, who waits and asks again has a lane after a turn of each of
        /// those before it.
        #[test]
        fn nobody_waits_for_the_end_of_another(transfers in 5_usize..16) {
            let mut sharing = Sharing::default();
            let mut served = std::collections::BTreeSet::new();
            let mut now = NOW;
            let turns = transfers.div_ceil(LANES_MAX) as u32;
            while now <= TURN * turns * 2 {
                for who in 0..transfers {
                    match sharing.take(who, now) {
                        Taken::Lane => _ = served.insert(who),
                        Taken::NotNow { asks_back: Some(holder) } => {
                            served.extend(sharing.give_back(holder, now));
                        }
                        Taken::NotNow { asks_back: None } => {}
                    }
                }
                now += Duration::from_millis(100);
            }
            prop_assert_eq!(served.len(), transfers);
        }
    }
}
