use super::world::blob;
use super::*;
use crate::time::UnixTime;

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
                slot,
                from,
                range,
                lane,
                encoding,
                ..
            } => {
                let name = format!("{from} {range}");
                self.slots.insert(name.clone(), slot);
                let packed = if encoding == Encoding::Zstd {
                    " packed"
                } else {
                    ""
                };
                format!("{name} on {}{packed}", lane.0)
            }
            Out::Reset(slot) => {
                let name = self.slots.iter().find(|(_, known)| **known == slot);
                format!("reset {}", name.map_or("?", |(name, _)| name))
            }
            Out::Close(lane) => format!("close {}", lane.0),
            Out::Ban(provider, why) => format!("ban {provider}: {why}"),
            Out::Done => "done".to_owned(),
            Out::Failed(error) => format!("failed: {error}"),
        }
    }
}

const VERIFIED: RangeEnd = RangeEnd::Verified { received: 262_144 };
use RangeEnd::Failed;

#[test]
fn a_forger_is_banned_and_the_next_one_asked() {
    let mut script = Script::new(40);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..16 on 1, a 16..32 on 1");
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"b 32..40 on 2");
    let forged = Failed(Why::Wrong(Block(10)));
    insta::assert_snapshot!(
        script.end("a 0..16", forged, 1),
        @"reset a 16..32, ban a: block 10 is forged, b 0..16 on 2"
    );
    insta::assert_snapshot!(script.end("b 32..40", VERIFIED, 1), @"");
    script.end("b 0..16", VERIFIED, 1);
    insta::assert_snapshot!(script.end("b 16..32", VERIFIED, 1), @"done");
    assert_eq!(script.transfer.missing_blocks(), 0);
}

#[test]
fn who_lacks_a_range_is_asked_for_the_others() {
    let mut script = Script::new(32);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..16 on 1, a 16..32 on 1");
    insta::assert_snapshot!(script.end("a 0..16", Failed(Why::Lacks), 0), @"");
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"b 0..16 on 2");
    insta::assert_snapshot!(script.end("a 16..32", VERIFIED, 0), @"");
    insta::assert_snapshot!(script.end("b 0..16", VERIFIED, 0), @"done");
}

#[test]
fn the_late_rest() {
    let mut script = Script::new(512);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..16 on 1, a 16..32 on 1");
    insta::assert_snapshot!(script.end("a 0..16", Failed(Why::Late), 10), @"reset a 16..32");
    assert_eq!(script.transfer.deadline(), Some(Duration::from_secs(11)));
    insta::assert_snapshot!(script.put(In::Tick, 11), @"a 0..16 on 2");
    // The driver may say nothing at all.
    assert_eq!(script.transfer.deadline(), Some(Duration::from_secs(71)));
    insta::assert_snapshot!(script.put(In::Provider('b'), 12), @"b 16..32 on 3, b 32..48 on 3");
    let said = script.put(In::Tick, 71);
    assert!(said.starts_with("reset a 0..16"), "{said}");
}

#[test]
fn without_a_lane_it_waits_for_one_and_does_not_count_that_as_a_fault() {
    let mut script = Script::new(512);
    for seconds in 0..60 {
        script.put(In::Provider('a'), seconds);
        script.put(In::Tick, seconds);
        let said = script.end("a 0..16", Failed(Why::NoLane), seconds);
        assert_eq!(said, "reset a 16..32");
    }
    // In the last second, and not before, as nobody says that there is one.
    assert_eq!(script.transfer.deadline(), Some(Duration::from_secs(60)));
    insta::assert_snapshot!(
        script.put(In::LaneFree('a'), 59),
        @"a 0..16 on 61, a 16..32 on 61"
    );
    insta::assert_snapshot!(script.put(In::GiveBack('a'), 59), @"");
    insta::assert_snapshot!(script.end("a 0..16", VERIFIED, 60), @"");
    let said = script.end("a 16..32", VERIFIED, 61);
    assert!(
        said.starts_with("close 61, a ") && said.contains(" on 62"),
        "{said}"
    );
}

#[test]
fn one_lane_is_reset_and_the_others_go_on() {
    let mut script = Script::new(4096);
    script.put(In::Provider('a'), 0);
    // A range in an instant: fast enough for several lanes.
    let said = script.end("a 0..16", VERIFIED, 0);
    assert!(said.contains(" on 1") && said.contains(" on 2"), "{said}");
    let (on_2, _) = said
        .split(", ")
        .find_map(|one| one.split_once(" on 2"))
        .expect("one");
    let said = script.end(on_2, Failed(Why::Ended), 0);
    let resets: Vec<&str> = said
        .split(", ")
        .filter(|one| one.starts_with("reset"))
        .collect();
    assert_eq!(resets.len(), 1, "{said}");
    assert!(!said.contains(" on 2"), "{said}");
}

#[test]
fn nobody_left_is_said_only_after_the_look_up() {
    let mut script = Script::new(16);
    script.put(In::Provider('a'), 0);
    insta::assert_snapshot!(script.end("a 0..16", Failed(Why::Unreachable), 0), @"");
    insta::assert_snapshot!(
        script.put(In::NoMoreProviders, 0),
        @"failed: no provider left for 16 of 16 blocks"
    );
    insta::assert_snapshot!(script.put(In::Provider('b'), 0), @"");
}

#[test]
fn the_unreachable_get_another_chance_and_forgers_do_not() {
    let mut script = Script::new(16);
    script.put(In::Provider('a'), 0);
    script.end("a 0..16", Failed(Why::Unreachable), 0);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"a 0..16 on 2");
    script.end("a 0..16", Failed(Why::Wrong(Block(0))), 0);
    insta::assert_snapshot!(script.put(In::Provider('a'), 0), @"");
}

#[test]
fn a_full_disk_ends_it() {
    let mut script = Script::new(128);
    script.put(In::Provider('a'), 0);
    insta::assert_snapshot!(
        script.end("a 0..16", Failed(Why::NotWritten), 0),
        @"reset a 16..32, failed: blocks could not be written here"
    );
}

#[test]
fn the_slow_are_asked_for_packed_answers_if_they_speak_that() {
    let mut script = Script::new(4096);
    script.put(In::Provider('a'), 0);
    let said = script.end("a 0..16", VERIFIED, 1);
    let (packed, _) = said.split_once(" on 1 packed").expect("is slow");
    let packed = packed.to_owned();
    script.end("a 16..32", VERIFIED, 2);
    let said = script.end(&packed, Failed(Why::NotSpoken), 3);
    assert!(said.contains(&packed) && !said.contains("packed"), "{said}");
    let raw = Failed(Why::NotSpoken);
    assert!(
        script.end(&packed, raw, 4).contains("ban a"),
        "raw is always spoken"
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
