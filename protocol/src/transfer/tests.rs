use proptest::prelude::*;

use super::*;
use crate::hash::Root;
use crate::time::UnixTime;

fn blob(blocks: u32) -> Blob {
    let size = u64::from(blocks) * crate::blocks::BLOCK_BYTES - 1;
    Blob::new(Root([9; 32]), size).expect("in bounds")
}

fn at(seconds: u64) -> Now {
    Now {
        mono: Duration::from_secs(seconds),
        unix: UnixTime(seconds),
    }
}

/// One transfer whose provider is named by a letter, and lines that say what it wants.
struct Script {
    transfer: Transfer<char>,
    slots: BTreeMap<String, Slot>,
}

impl Script {
    fn new(blocks: u32) -> Self {
        Self {
            transfer: Transfer::new(blob(blocks), &[]),
            slots: BTreeMap::new(),
        }
    }

    fn put(&mut self, input: In<char>, seconds: u64) -> String {
        let mut out = Vec::new();
        self.transfer.handle(input, at(seconds), &mut out);
        let lines = out.into_iter().map(|out| self.line(out));
        lines.collect::<Vec<_>>().join(", ")
    }

    fn end(&mut self, name: &str, end: RangeEnd, seconds: u64) -> String {
        let slot = self.slots[name];
        self.put(In::Range(slot, end), seconds)
    }

    fn line(&mut self, out: Out<char>) -> String {
        match out {
            Out::Pull {
                slot, from, range, ..
            } => {
                let name = format!("{from} {range}");
                self.slots.insert(name.clone(), slot);
                name
            }
            Out::Reset(slot) => {
                let name = self.slots.iter().find(|(_, known)| **known == slot);
                format!("reset {}", name.map_or("?", |(name, _)| name))
            }
            Out::Ban(provider, why) => format!("ban {provider}: {why}"),
            Out::Done => "done".to_owned(),
            Out::Failed(error) => format!("failed: {error}"),
        }
    }
}

use RangeEnd::{Failed, Verified};

#[test]
fn a_forger_is_banned_and_the_next_one_asked() {
    let mut script = Script::new(100);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..64, a 64..100");
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"");
    let forged = Failed(Why::Wrong(Block(70)));
    insta::assert_snapshot!(
        script.end("a 64..100", forged, 1),
        @"reset a 0..64, ban a: block 70 is forged, b 0..64, b 64..100"
    );
    insta::assert_snapshot!(script.end("a 0..64", Verified, 1), @"");
    insta::assert_snapshot!(script.end("b 0..64", Verified, 1), @"");
    insta::assert_snapshot!(script.end("b 64..100", Verified, 1), @"done");
    assert_eq!(script.transfer.missing_blocks(), 0);
}

#[test]
fn who_lacks_a_range_is_asked_for_its_parts_last() {
    let mut script = Script::new(32);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..32");
    insta::assert_snapshot!(script.end("a 0..32", Failed(Why::Lacks), 0), @"a 0..16, a 16..32");
    insta::assert_snapshot!(script.end("a 0..16", Failed(Why::Lacks), 0), @"");
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"b 0..16");
    insta::assert_snapshot!(script.end("a 16..32", Verified, 0), @"");
    insta::assert_snapshot!(script.end("b 0..16", Verified, 0), @"done");
}

#[test]
fn the_late_rest_and_the_window_shrinks() {
    let mut script = Script::new(512);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..64, a 64..128");
    insta::assert_snapshot!(script.end("a 0..64", Verified, 1), @"a 128..192, a 192..256");
    insta::assert_snapshot!(
        script.end("a 128..192", Failed(Why::Late), 10),
        @"reset a 64..128, reset a 192..256"
    );
    assert_eq!(script.transfer.deadline(), Some(Duration::from_secs(11)));
    insta::assert_snapshot!(script.put(In::Tick, 11), @"a 64..128");
    // The driver may say nothing at all.
    assert_eq!(script.transfer.deadline(), Some(Duration::from_secs(71)));
    insta::assert_snapshot!(script.put(In::Provider('b'), 12), @"");
    insta::assert_snapshot!(script.put(In::Tick, 71), @"reset a 64..128, b 64..128");
}

#[test]
fn nobody_left_is_said_only_after_the_look_up() {
    let mut script = Script::new(32);
    script.put(In::Provider('a'), 0);
    insta::assert_snapshot!(script.end("a 0..32", Failed(Why::Unreachable), 0), @"");
    insta::assert_snapshot!(
        script.put(In::NoMoreProviders, 0),
        @"failed: no provider left for 32 of 32 blocks"
    );
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"");
}

#[test]
fn the_unreachable_get_another_chance_and_forgers_do_not() {
    let mut script = Script::new(16);
    script.put(In::Provider('a'), 0);
    script.end("a 0..16", Failed(Why::Unreachable), 0);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..16");
    script.end("a 0..16", Failed(Why::Wrong(Block(0))), 0);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"");
}

#[test]
fn a_full_disk_ends_it() {
    let mut script = Script::new(128);
    script.put(In::Provider('a'), 0);
    insta::assert_snapshot!(
        script.end("a 0..64", Failed(Why::NotWritten), 0),
        @"reset a 64..128, failed: blocks could not be written here"
    );
}

#[test]
fn what_is_valid_is_not_asked_for() {
    let blob = blob(70);
    let valid: Vec<_> = blob.units(16).skip(1).collect();
    let mut transfer = Transfer::new(blob, &valid);
    let mut out = Vec::new();
    transfer.handle(In::Provider('a'), at(0), &mut out);
    assert!(matches!(&out[..], [Out::Pull { range, .. }] if range.to_string() == "0..16"));

    let whole: Vec<_> = blob.units(64).collect();
    let mut transfer = Transfer::<char>::new(blob, &whole);
    let mut out = Vec::new();
    transfer.handle(In::Tick, at(0), &mut out);
    assert_eq!(out, [Out::Done]);
}

#[derive(Debug, Clone)]
enum Kind {
    /// Has the units that are set; says so of the others.
    Honest(Vec<bool>),
    Always(Why),
    /// Never answers.
    Silent,
    /// Verified and failing in turn.
    Mixed(Why),
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![
        Just(Why::Wrong(Block(3))),
        Just(Why::Malformed),
        Just(Why::Lacks),
        Just(Why::Ended),
        Just(Why::Busy),
        Just(Why::Late),
        Just(Why::Unreachable),
    ]
}

fn kinds(units: usize) -> impl Strategy<Value = Vec<Kind>> {
    let kind = prop_oneof![
        prop::collection::vec(any::<bool>(), units).prop_map(Kind::Honest),
        why().prop_map(Kind::Always),
        Just(Kind::Silent),
        why().prop_map(Kind::Mixed),
    ];
    prop::collection::vec(kind, 0..7)
}

/// Whether the units that somebody honest has, with those on disk, are all.
fn is_covered(kinds: &[Kind], valid: &[bool]) -> bool {
    (0..valid.len()).all(|unit| {
        valid[unit]
            || kinds
                .iter()
                .any(|kind| matches!(kind, Kind::Honest(has) if has[unit]))
    })
}

struct World {
    kinds: Vec<Kind>,
    done: Vec<bool>,
    /// What is asked, and not reset.
    asked: BTreeMap<Slot, (usize, BlockRange)>,
    banned: BTreeSet<usize>,
    turns: u32,
    seconds: Duration,
    ended: Option<Out<usize>>,
}

impl World {
    fn answer(&mut self, from: usize, range: BlockRange) -> Option<RangeEnd> {
        self.turns += 1;
        match &self.kinds[from] {
            Kind::Honest(has) => {
                let all = cells(range).all(|cell| has[(cell / UNIT_BLOCKS_MIN) as usize]);
                Some(if all { Verified } else { Failed(Why::Lacks) })
            }
            Kind::Always(why) => Some(Failed(*why)),
            Kind::Silent => None,
            Kind::Mixed(_) if self.turns % 2 == 0 => Some(Verified),
            Kind::Mixed(why) => Some(Failed(*why)),
        }
    }

    fn feed(&mut self, transfer: &mut Transfer<usize>, input: In<usize>) {
        let now = Now {
            mono: self.seconds,
            unix: UnixTime(0),
        };
        let mut out = Vec::new();
        transfer.handle(input, now, &mut out);
        out.into_iter().for_each(|out| self.take(transfer, out));
        assert!(self.asked.len() <= WINDOW_MAX);
    }

    fn take(&mut self, transfer: &Transfer<usize>, out: Out<usize>) {
        assert!(self.ended.is_none(), "nothing after the end");
        match out {
            Out::Pull {
                slot,
                from,
                range,
                wire_len: bytes,
            } => {
                assert!(from < self.kinds.len() && !self.banned.contains(&from));
                assert_eq!(wire_len(&transfer.blob, &range.into()), Ok(bytes));
                let twice = self
                    .asked
                    .values()
                    .any(|(_, other)| other.start() < range.end() && range.start() < other.end());
                assert!(!twice, "{range} is asked for twice");
                assert!(cells(range).all(|cell| !self.done[(cell / UNIT_BLOCKS_MIN) as usize]));
                assert!(
                    self.asked.insert(slot, (from, range)).is_none(),
                    "slot used twice"
                );
            }
            Out::Reset(slot) => assert!(self.asked.remove(&slot).is_some(), "reset of nothing"),
            Out::Ban(provider, _) => {
                assert!(matches!(
                    self.kinds[provider],
                    Kind::Always(_) | Kind::Mixed(_)
                ));
                self.banned.insert(provider);
            }
            Out::Done => {
                assert!(self.done.iter().all(|done| *done), "done with a hole");
                self.ended = Some(out);
            }
            Out::Failed(_) => self.ended = Some(out),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_ends_with_the_blob_whenever_the_honest_have_it(
        (valid, kinds) in (1_usize..14).prop_flat_map(|units| {
            (prop::collection::vec(prop::bool::weighted(0.3), units), kinds(units))
        }),
        blocks_short in 0_u32..16,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let blob = blob(valid.len() as u32 * UNIT_BLOCKS_MIN - blocks_short);
        let here: Vec<_> = blob
            .units(UNIT_BLOCKS_MIN)
            .zip(&valid)
            .filter_map(|(unit, here)| here.then_some(unit))
            .collect();
        let covered = is_covered(&kinds, &valid);
        let mut transfer = Transfer::new(blob, &here);
        let mut world = World {
            kinds,
            done: valid,
            asked: BTreeMap::new(),
            banned: BTreeSet::new(),
            turns: 0,
            seconds: Duration::ZERO,
            ended: None,
        };
        for provider in 0..world.kinds.len() {
            world.feed(&mut transfer, In::Provider(provider));
        }
        world.feed(&mut transfer, In::NoMoreProviders);

        let mut silent = BTreeSet::new();
        for step in 0..20_000 {
            if world.ended.is_some() {
                break;
            }
            let waiting: Vec<_> = world.asked.keys().filter(|slot| !silent.contains(*slot)).copied().collect();
            if waiting.is_empty() {
                let deadline = transfer.deadline();
                prop_assert!(deadline.is_some(), "it waits for nothing");
                world.seconds = world.seconds.max(deadline.unwrap_or_default());
                world.feed(&mut transfer, In::Tick);
                continue;
            }
            let slot = *picks[step % picks.len()].get(&waiting);
            let (from, range) = world.asked[&slot];
            match world.answer(from, range) {
                None => {
                    silent.insert(slot);
                }
                Some(end) => {
                    world.asked.remove(&slot);
                    if end == Verified {
                        for cell in cells(range) {
                            world.done[(cell / UNIT_BLOCKS_MIN) as usize] = true;
                        }
                    }
                    world.feed(&mut transfer, In::Range(slot, end));
                }
            }
        }
        match world.ended {
            Some(Out::Done) => {}
            Some(Out::Failed(_)) => prop_assert!(!covered, "failed although the honest have it all"),
            other => prop_assert!(false, "did not end: {:?}", other),
        }
    }
}
