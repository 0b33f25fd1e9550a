//! Attacks, each with and without what stands against it; then what a dissent does under `escalate`.

use insta::assert_snapshot;

use super::tests::drawn;
use super::*;
use crate::assign::{Rank, Ranking};
use crate::hash::{Fields, Work};
use crate::key::ArtifactKey;
use crate::manifest::PrincipalKey;
use crate::policy::{Count, OnDissent};
use crate::testing::*;

fn assigned() -> Scenario {
    scenario().policy(|policy| policy.count = Count::Assigned)
}

fn escalating() -> Scenario {
    scenario().policy(|policy| policy.on_dissent = Some(OnDissent::Escalate))
}

fn trusts(scenario: &Scenario, what: &str) -> bool {
    match scenario.verdict().decision {
        Decision::Trusted(trusted) => trusted.subject == subject(what),
        Decision::Unproven(_)
        | Decision::Disputed { .. }
        | Decision::Stale { .. }
        | Decision::Blocked { .. } => false,
    }
}

#[test]
fn colluders_outside_the_committee() {
    let (_, off) = drawn();
    let collude = |scenario: Scenario| scenario.says(off[0], "wrong").says(off[1], "wrong");
    assert_snapshot!(collude(assigned()).outcome(), @r"
    unproven: 0 of 2 assigned principals
    ann: NotCounted
    dan: NotCounted
    ");
    assert!(
        trusts(&collude(scenario()), "wrong"),
        "without the draw they suffice"
    );
}

#[test]
fn principals_that_no_manifest_names() {
    let collude = |scenario: Scenario| scenario.says("zoe", "wrong").says("yan", "wrong");
    assert_snapshot!(collude(scenario()).outcome(), @r"
    unproven: 0 of 2 principals
    zoe: Stranger
    yan: Stranger
    ");
    let mut naming = manifest();
    for name in ["zoe", "yan"] {
        let mut principal = naming.principals[0].clone();
        principal.id = principal_id(name);
        principal.name = name.to_owned();
        principal.keys.truncate(1);
        principal.keys[0].key = public(name);
        naming.principals.push(principal);
    }
    assert!(
        trusts(&collude(scenario_in(network_of(&naming))), "wrong"),
        "named, they suffice"
    );
}

#[test]
fn two_keys_of_one_principal() {
    let twice = |scenario: Scenario| scenario.says("ann", "wrong").says("ann.2", "wrong");
    assert_snapshot!(twice(scenario()).outcome(), @r"
    unproven: 1 of 2 principals
    ann: Counts
    ann.2: Repeats
    ");
    let mut splitting = manifest();
    let ann = splitting
        .principals
        .iter_mut()
        .find(|one| one.name == "ann")
        .unwrap();
    let moved: Vec<PrincipalKey> = ann.keys.extract_if(1..2, |_| true).collect();
    let other = crate::manifest::Principal {
        id: principal_id("ann again"),
        name: "ann again".to_owned(),
        keys: moved,
        ..ann.clone()
    };
    splitting.principals.push(other);
    assert!(
        trusts(&twice(scenario_in(network_of(&splitting))), "wrong"),
        "as two they suffice"
    );
}

#[test]
fn a_publisher_that_varies_flags_to_draw_another_committee() {
    let (_, colluders) = drawn();
    let variants = (0..64).map(|n: u8| {
        let mut variant = key();
        variant.flags.features = [format!("feature{n}")].into();
        variant
    });
    // What a draw over the whole key would do.
    let by_key_id = |key: &ArtifactKey| -> BTreeSet<PrincipalId> {
        let draw = |name: &&str| {
            let fields = Fields::derive("by key id").id(&key.id().0);
            fields.id(&principal_id(name).0).finish()
        };
        let mut names = VERIFIERS;
        names.sort_by_key(draw);
        names[..3].iter().map(|name| principal_id(name)).collect()
    };
    let seats = |committee: &BTreeSet<PrincipalId>| {
        let ids = colluders.iter().map(|name| principal_id(name));
        ids.filter(|id| committee.contains(id)).count()
    };
    let mut by_key_id_seats = 0;
    for variant in variants {
        by_key_id_seats = by_key_id_seats.max(seats(&by_key_id(&variant)));
        let mut varied = assigned();
        varied.candidate = Candidate::of(&variant);
        for colluder in &colluders {
            varied = varied.says_but(colluder, "wrong", |draft| draft.key = variant.clone());
        }
        assert!(!trusts(&varied, "wrong"));
    }
    assert_eq!(
        by_key_id_seats, 2,
        "drawn over the key, some variant gives both a seat"
    );
}

#[test]
fn two_observations_of_one_signer() {
    // Ann helps liars with one client and honest people with another one.
    let liars = || scenario().says("bob", "wrong").says("ann", "wrong");
    assert_snapshot!(liars().says("ann", "right").outcome(), @r"
    disputed: wrong, right
    bob: Counts
    ann: Contradicts
    ann: Contradicts
    ");
    assert!(
        trusts(&liars(), "wrong"),
        "who withholds the other one delays its finding out"
    );
    // Neither is it worth anything under `escalate`.
    let escalate = escalating().says("bob", "wrong").says("cyd", "wrong");
    let escalate = escalate
        .says("dan", "wrong")
        .says("ann", "wrong")
        .says("ann", "right");
    assert!(
        !trusts(&escalate, "wrong"),
        "three are not twice the threshold"
    );
}

#[test]
fn a_lying_dissenter() {
    let (on, off) = drawn();
    let one_lies = |scenario: Scenario| {
        scenario
            .says(on[0], "right")
            .says(on[1], "right")
            .says(on[2], "wrong")
    };
    assert!(matches!(
        one_lies(scenario()).verdict().decision,
        Decision::Disputed { .. }
    ));
    let refused = one_lies(scenario())
        .says(off[0], "right")
        .says(off[1], "right");
    assert!(
        !trusts(&refused, "right"),
        "under `refuse` it blocks for good"
    );
    assert_snapshot!(one_lies(escalating()).outcome(), @r"
    disputed: wrong, right
    bob: Counts
    cyd: Counts
    eve: Counts
    ");
    // One round later.
    let answered = one_lies(escalating())
        .says(off[0], "right")
        .says(off[1], "right");
    assert_snapshot!(answered.outcome(), @r"
    trusted: right by bob, cyd, ann, dan, contested
    bob: Counts
    cyd: Counts
    eve: Dissents
    ann: Counts
    dan: Counts
    ");
    assert_snapshot!(answered.verdict().notes.join("\n"), @"contested: eve alone observed another artifact, against 4 principals");
}

/// `who` observes right with a `work`, and says of others' whether it agrees.
fn checks(scenario: Scenario, who: &str, said: &[(usize, bool)]) -> Scenario {
    let of = |(index, agrees): &(usize, bool)| (scenario.held[*index].statement.id(), *agrees);
    let said = said.iter().map(of).collect();
    scenario.says_but(who, "right", |draft| {
        draft.observation.work = Some(Work(*blake3::hash(who.as_bytes()).as_bytes()));
        draft.observation.work_checks = said;
    })
}

#[test]
fn an_observation_that_was_copied() {
    let (on, _) = drawn();
    let copied = || checks(checks(assigned(), on[0], &[]), on[1], &[]);
    assert!(trusts(&copied(), "right"), "nobody has looked yet");
    let found_out = |scenario: Scenario| {
        let one = checks(scenario, on[0], &[(1, false)]);
        checks(one, on[2], &[(1, false), (2, true)])
    };
    let three = |policy: &mut Policy| policy.threshold = 3;
    assert_snapshot!(found_out(copied()).policy(three).outcome(), @r"
    unproven: 2 of 3 assigned principals
    bob: Counts
    cyd: WorkDiffers
    bob: Repeats
    eve: Counts
    ");
    let lines = found_out(copied()).verdict().lines;
    let line = lines
        .iter()
        .find(|line| line.effect == Effect::WorkDiffers)
        .unwrap();
    assert_eq!((line.work_agrees, line.work_differs), (0, 2));
}

#[test]
fn a_false_accusation_about_work() {
    let (on, off) = drawn();
    let two = || checks(checks(assigned(), on[0], &[]), on[1], &[]);
    let one = checks(two(), on[2], &[(0, true), (1, false)]);
    let harmless = [
        ("one principal", one),
        (
            "twice the same",
            checks(
                checks(two(), on[2], &[(1, false)]),
                &format!("{}.2", on[2]),
                &[(1, false), (2, true)],
            ),
        ),
        (
            "two strangers",
            checks(
                checks(two(), "zoe", &[(1, false)]),
                "yan",
                &[(1, false), (2, true)],
            ),
        ),
        (
            "two who are not assigned",
            checks(
                checks(two(), off[0], &[(1, false)]),
                off[1],
                &[(1, false), (2, true)],
            ),
        ),
        (
            "one who is and a stranger",
            checks(
                checks(two(), on[2], &[(1, false)]),
                "zoe",
                &[(1, false), (2, true)],
            ),
        ),
        (
            "two who do not vouch for each other",
            checks(checks(two(), on[0], &[(1, false)]), on[2], &[(1, false)]),
        ),
        (
            "two who deny each other",
            checks(
                checks(two(), on[0], &[(1, false)]),
                on[2],
                &[(1, false), (2, false)],
            ),
        ),
        (
            "itself and another",
            checks(
                checks(two(), on[1], &[(1, false)]),
                on[2],
                &[(1, false), (2, true)],
            ),
        ),
    ];
    for (who, scenario) in harmless {
        assert!(trusts(&scenario, "right"), "{who}: {}", scenario.outcome());
        let verdict = scenario.verdict();
        assert!(
            verdict
                .lines
                .iter()
                .all(|line| line.effect != Effect::WorkDiffers),
            "{who}"
        );
    }
    // Two assigned principals who vouch for each other are believed, true or not.
    let believed = checks(
        checks(two(), on[0], &[(1, false)]),
        on[2],
        &[(1, false), (2, true)],
    );
    let effects: Vec<_> = believed
        .verdict()
        .lines
        .iter()
        .map(|line| line.effect)
        .collect();
    assert!(effects.contains(&Effect::WorkDiffers));
    // Without a `work` of the accused, or of another artifact, nothing differs.
    let without = assigned().says(on[0], "right").says(on[1], "right");
    let without = checks(
        checks(without, on[0], &[(1, false)]),
        on[2],
        &[(1, false), (2, true)],
    );
    assert!(
        without
            .verdict()
            .lines
            .iter()
            .all(|line| line.effect != Effect::WorkDiffers)
    );
}

#[test]
fn what_was_dropped_is_still_a_dissent() {
    let (on, off) = drawn();
    let wrong = |scenario: Scenario, who: &str, said: &[(usize, bool)]| {
        let of = |(index, agrees): &(usize, bool)| (scenario.held[*index].statement.id(), *agrees);
        let said = said.iter().map(of).collect();
        scenario.says_but(who, "wrong", |draft| {
            draft.observation.work = Some(Work([9; 32]));
            draft.observation.work_checks = said;
        })
    };
    let dropped = wrong(
        scenario().says(off[0], "right").says(off[1], "right"),
        on[0],
        &[],
    );
    let dropped = wrong(
        wrong(dropped, on[1], &[(2, false)]),
        on[2],
        &[(2, false), (3, true)],
    );
    let effect = dropped
        .verdict()
        .lines
        .iter()
        .filter(|line| line.effect == Effect::WorkDiffers)
        .count();
    assert_eq!(effect, 1);
    assert!(matches!(
        dropped.verdict().decision,
        Decision::Disputed { .. }
    ));
}

#[test]
fn a_clock_an_hour_off() {
    const HOUR: u64 = 3600;
    let ends = |at: UnixTime| move |draft: &mut Draft| draft.observation.finished = at;
    // Of an observer: too far ahead to count, and it counts when that time has come.
    let ahead = || {
        let one = scenario().says("ann", "right");
        one.says_but("bob", "right", ends(NOW.plus(HOUR)))
    };
    assert!(!trusts(&ahead(), "right"));
    assert!(trusts(&ahead().at(NOW.plus(HOUR)), "right"));
    let behind = scenario()
        .says("ann", "right")
        .says_but("bob", "right", |draft| {
            draft.observation.started = UnixTime(NOW.0 - HOUR - 60);
            draft.observation.finished = UnixTime(NOW.0 - HOUR);
        });
    assert!(trusts(&behind, "right"));
    // Of the client: ahead, nothing happens; behind, it says so and trusts nothing new.
    let two = || scenario().says("ann", "right").says("bob", "right");
    assert!(trusts(&two().at(NOW.plus(HOUR)), "right"));
    assert_snapshot!(two().at(UnixTime(NOW.0 - HOUR)).outcome(), @r"
    stale: the network's timestamp was signed at 1800000000, but the clock here says 1799996400
    ann: InFuture
    bob: InFuture
    ");
    // Ten minutes are within what clocks may differ.
    assert!(trusts(&two().at(UnixTime(NOW.0 - 600)), "right"));
    // No clock makes a dissent go away.
    let disputed = two().says_but("cyd", "wrong", ends(NOW.plus(HOUR)));
    assert!(!trusts(&disputed, "right"));
}

#[test]
fn two_dissenters_refuse_whatever_the_rest_says() {
    let (on, off) = drawn();
    let low = escalating().policy(|policy| policy.threshold = 1);
    let one = low
        .says(on[0], "right")
        .says(on[1], "right")
        .says(off[0], "wrong");
    assert!(trusts(&one, "right"));
    assert!(!trusts(&one.says(off[1], "wrong"), "right"));
    let low = escalating().policy(|policy| policy.threshold = 1);
    let one = low
        .says(on[0], "right")
        .says(on[1], "right")
        .says(off[0], "wrong");
    assert!(
        trusts(&one.says(off[0], "other"), "right"),
        "one principal, however many roots"
    );
}

#[test]
fn the_first_committee_alone_has_to_meet_the_policy() {
    let (on, off) = drawn();
    // Four agree, but only one of them is of the committee: those called might be whoever comes.
    let by_others = escalating()
        .policy(|policy| policy.threshold = 2)
        .says(on[0], "right")
        .says(off[0], "right")
        .says(off[1], "right");
    assert!(trusts(&by_others, "right"));
    let mut dissent = by_others.says(on[1], "wrong");
    assert!(!trusts(&dissent, "right"));
    dissent = dissent.says(on[2], "right");
    assert!(
        trusts(&dissent, "right"),
        "two of the committee, and four in all"
    );
}

#[test]
fn who_is_called_counts_as_assigned_only_then() {
    let (on, off) = drawn();
    let both = || {
        assigned()
            .policy(|policy| policy.on_dissent = Some(OnDissent::Escalate))
            .says(on[0], "right")
            .says(off[0], "right")
            .says(off[1], "right")
    };
    assert_snapshot!(both().outcome(), @r"
    unproven: 1 of 2 assigned principals
    bob: Counts
    ann: NotCounted
    dan: NotCounted
    ");
    assert_snapshot!(both().says(on[1], "right").says(on[2], "wrong").outcome(), @r"
    trusted: right by bob, ann, dan, cyd, contested
    bob: Counts
    ann: Counts
    dan: Counts
    cyd: Counts
    eve: Dissents
    ");
}

#[test]
fn blocked_and_stale_come_before_disputed_and_contested() {
    let (on, off) = drawn();
    let contested = |scenario: Scenario| {
        let scenario = scenario.policy(|policy| policy.on_dissent = Some(OnDissent::Escalate));
        let scenario = scenario.says(on[0], "right").says(on[1], "right");
        scenario
            .says(off[0], "right")
            .says(off[1], "right")
            .says(on[2], "wrong")
    };
    assert!(trusts(&contested(scenario()), "right"));
    let late = contested(scenario()).at(NOW.plus(30 * DAY));
    assert!(matches!(late.verdict().decision, Decision::Stale { .. }));
    let blocking = |what: &str| {
        let mut blocking = manifest();
        blocking.blocked.push(crate::manifest::Blocked {
            key: None,
            root: Some(subject(what).root),
            reason: "a backdoor".to_owned(),
        });
        contested(scenario_in(network_of(&blocking)))
    };
    let blocked = blocking("right").verdict().decision;
    assert!(matches!(blocked, Decision::Blocked { .. }));
    assert!(
        trusts(&blocking("wrong"), "right"),
        "a lone liar blocks no longer with a blocked root"
    );
}

#[test]
fn the_roll_says_who_answered_and_can_be_drawn_again() {
    let (on, off) = drawn();
    let said = scenario()
        .says(on[0], "right")
        .fails(on[1])
        .says(off[0], "right")
        .says("zoe", "right");
    let roll = Roll::of(&said.network, &said.candidate, &said.held);
    let words: Vec<_> = roll
        .seats
        .iter()
        .map(|seat| {
            format!(
                "{} {} {} {:?}",
                seat.name, seat.round, seat.called, seat.said
            )
        })
        .collect();
    let silent: Vec<_> = roll.silent().map(|seat| seat.name.as_str()).collect();
    assert_eq!(silent, [on[2]]);
    assert!(
        words.contains(&format!("{} 0 true Failure", on[1])),
        "{words:?}"
    );
    assert!(
        words.contains(&format!("{} 1 false Observation", off[0])),
        "{words:?}"
    );
    for seat in &roll.seats {
        let again = Fields::derive("qk committee v1")
            .id(&roll.seed.0)
            .text(&roll.release.registry)
            .text(&roll.release.name)
            .text(&roll.release.version)
            .id(&roll.source.0)
            .text(&roll.target)
            .id(&seat.principal.0)
            .finish();
        assert_eq!(again, seat.digest.0);
    }
    let dissent = said.says(on[2], "wrong");
    let roll = Roll::of(&dissent.network, &dissent.candidate, &dissent.held);
    assert_eq!(roll.rounds, 2);
    assert_eq!(
        roll.silent().count(),
        1,
        "one of the two that are called now"
    );
    let ranking = Ranking::of(&dissent.network, &dissent.candidate);
    let digests = ranking.ranks().iter().map(|rank: &Rank| rank.digest);
    assert!(digests.eq(roll.seats.iter().map(|seat| seat.digest)));
}
