use insta::assert_snapshot;

use super::*;
use crate::assign::Ranking;
use crate::hash::NetworkId;
use crate::manifest::Blocked;
use crate::policy::{Count, Group, OnDissent};
use crate::testing::*;

/// The committee of the key in the fixture, and who is not on it.
pub(super) fn drawn() -> (Vec<&'static str>, Vec<&'static str>) {
    let committee = Ranking::of(network(), &Candidate::of(&key())).committee();
    VERIFIERS
        .into_iter()
        .partition(|name| committee.contains(&principal_id(name)))
}

#[test]
fn as_many_principals_as_the_policy_asks() {
    assert_snapshot!(scenario().outcome(), @"unproven: 0 of 2 principals");
    assert_snapshot!(scenario().says("ann", "right").outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        ");
    assert_snapshot!(scenario().says("ann", "right").says("bob", "right").outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        ");
}

#[test]
fn the_verdict_as_json() {
    let verdict = scenario().says("ann", "right").verdict();
    assert_snapshot!(serde_json::to_string_pretty(&verdict).unwrap(), @r#"
        {
          "decision": "unproven",
          "have": 1,
          "need": 2,
          "missing": "1 of 2 principals",
          "lines": [
            {
              "statement": "336399f07a4596a08b47c6e37b716c1bbdb85054829c1e29e28a140b8ccb000b",
              "observer": "b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f",
              "principal": "ann",
              "root": "744caf711c80a1e8bfac2972e9b12c216ef03ea16489e78981a415c6eb11373a",
              "at": 1799999990,
              "effect": "counts"
            }
          ],
          "notes": []
        }
        "#);
}

#[test]
fn a_verdict_is_read_back_as_it_was_written() {
    let two = || scenario().says("ann", "right").says("bob", "right");
    let mut blocked = manifest();
    blocked.blocked.push(Blocked {
        key: None,
        root: Some(subject("right").root),
        reason: "built on a stolen machine".to_owned(),
    });
    let blocked = scenario_in(network_of(&blocked));
    let scenarios = [
        ("trusted", two()),
        ("unproven", scenario().says("zoe", "right").fails("ann")),
        ("disputed", two().says("cyd", "wrong").retracts("cyd", 2)),
        ("stale", two().at(NOW.plus(30 * DAY))),
        ("blocked", blocked.says("ann", "right").says("bob", "right")),
    ];
    for (decision, scenario) in scenarios {
        let verdict = scenario.verdict();
        let written = serde_json::to_string(&verdict).unwrap();
        assert!(
            written.starts_with(&format!("{{\"decision\":\"{decision}\"")),
            "{written}"
        );
        assert_eq!(serde_json::from_str::<Verdict>(&written).unwrap(), verdict);
    }
}

#[test]
fn a_principal_counts_once_whatever_it_signs_with() {
    // Two keys of two principals do, above.
    assert_snapshot!(scenario().says("ann", "right").says("ann.2", "right").outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        ann.2: Repeats
        ");
    let twice = scenario()
        .says("ann", "right")
        .says_but("ann", "right", |draft| draft.observation.log.0[0] ^= 1);
    assert_snapshot!(twice.outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        ann: Repeats
        ");
    let mut again = scenario().says("ann", "right");
    again.held.push(again.held[0].clone());
    assert_snapshot!(again.outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        ");
}

#[test]
fn strangers_and_mirrors_count_neither_for_nor_against() {
    assert_snapshot!(scenario().says("ann", "right").says("zoe", "right").says("mia", "right").outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        zoe: Stranger
        mia: NotCounted
        ");
    let against = scenario()
        .says("ann", "right")
        .says("bob", "right")
        .says("zoe", "wrong")
        .says("mia", "wrong");
    assert_snapshot!(against.outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        zoe: Stranger
        mia: NotCounted
        ");
}

#[test]
fn one_dissent_disputes() {
    let two = scenario().says("ann", "right").says("bob", "right");
    assert!(matches!(two.verdict().decision, Decision::Trusted(_)));
    assert_snapshot!(two.says("cyd", "wrong").outcome(), @r"
        disputed: wrong, right
        ann: Counts
        bob: Counts
        cyd: Counts
        ");
}

#[test]
fn both_digests_and_the_size_have_to_agree() {
    let sha256 = |draft: &mut Draft| draft.observation.subject.sha256.0[0] ^= 1;
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", sha256).outcome(), @r"
        disputed: right
        ann: Counts
        bob: Counts
        ");
    let size = |draft: &mut Draft| draft.observation.subject.size += 1;
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", size).outcome(), @r"
        disputed: right
        ann: Counts
        bob: Counts
        ");
}

#[test]
fn statements_about_something_else_are_passed_over() {
    let source = |draft: &mut Draft| draft.key.flags.source.0[0] ^= 1;
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", source).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: not about the candidate
        ");
    let version = |draft: &mut Draft| draft.key.version = "1.2.4".to_owned();
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", version).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: not about the candidate
        ");
    let features = |draft: &mut Draft| draft.key.flags.features.clear();
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", features).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: not about the candidate
        ");
    let compiler = |draft: &mut Draft| draft.key.flags.rustc.sysroot.0[0] ^= 1;
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", compiler).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: not about the candidate
        ");
    let network = |draft: &mut Draft| draft.network = NetworkId([7; 32]);
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", network).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: OtherNetwork
        ");
}

#[test]
fn another_lock_is_another_artifact() {
    let lock = |draft: &mut Draft| draft.key.flags.lock.0[0] ^= 1;
    assert_snapshot!(scenario().says("ann", "right").says_but("bob", "right", lock).outcome(), @r"
        disputed: right
        ann: Counts
        bob: Counts
        ");
}

#[test]
fn equivocation_counts_for_neither() {
    assert_snapshot!(scenario().says("ann", "right").says("ann.2", "wrong").outcome(), @r"
        disputed: wrong, right
        ann: Contradicts
        ann.2: Contradicts
        ");
    let others = scenario()
        .says("ann", "right")
        .says("ann", "wrong")
        .says("bob", "right")
        .says("cyd", "right");
    assert_snapshot!(others.outcome(), @r"
        disputed: wrong, right
        ann: Contradicts
        ann: Contradicts
        bob: Counts
        cyd: Counts
        ");
}

#[test]
fn what_was_retracted_remains_a_dissent() {
    let two = || scenario().says("ann", "right").says("bob", "right");
    assert_snapshot!(two().retracts("bob", 1).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: Retracted
        bob: Retraction
        ");
    assert_snapshot!(two().retracts("bob.2", 1).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: Retracted
        bob.2: Retraction
        ");
    assert_snapshot!(two().says("cyd", "wrong").retracts("cyd", 2).outcome(), @r"
        disputed: wrong, right
        ann: Counts
        bob: Counts
        cyd: Retracted
        cyd: Retraction
        ");
}

#[test]
fn only_the_author_retracts_and_only_in_this_network() {
    let two = || scenario().says("ann", "right").says("bob", "right");
    assert_snapshot!(two().retracts("cyd", 1).retracts("zoe", 1).retracts("bob.lost", 1).outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        cyd: Retraction
        zoe: Retraction
        bob.lost: Retraction
        ");
    assert_snapshot!(two().retracts_in(NetworkId([7; 32]), "bob", 1).outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        bob: OtherNetwork
        ");
}

#[test]
fn a_retired_key_counts_for_what_was_stored_before() {
    let one = || scenario().says("ann", "right");
    let stored = |at: u64| move |draft: &mut Draft| draft.stored = UnixTime(at);
    let before = one().says_but("bob.old", "right", stored(RETIRED.0 - 1));
    assert_snapshot!(before.outcome(), @r"
        trusted: right by ann, bob.old
        ann: Counts
        bob.old: Counts
        ");
    let after = one().says_but("bob.old", "right", stored(RETIRED.0));
    assert_snapshot!(after.outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob.old: KeyRetired
        ");
    // Neither may who took a retired key block what others state.
    let dissent = one()
        .says("bob", "right")
        .says_but("cyd.old", "wrong", stored(RETIRED.0));
    assert_snapshot!(dissent.outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        cyd.old: KeyRetired
        ");
    // Stored twice: what is younger does not make it younger.
    let mut twice = one().says_but("bob.old", "right", stored(RETIRED.0 - 1));
    twice.held.push(Held {
        stored: NOW,
        ..twice.held[1].clone()
    });
    assert_snapshot!(twice.outcome(), @r"
        trusted: right by ann, bob.old
        ann: Counts
        bob.old: Counts
        ");
}

#[test]
fn a_compromised_key_never_counts() {
    let early = |draft: &mut Draft| draft.stored = UnixTime(1);
    assert_snapshot!(scenario().says("ann", "right").says_but("bob.lost", "right", early).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob.lost: KeyCompromised
        ");
    let dissent = scenario()
        .says("ann", "right")
        .says("bob", "right")
        .says_but("cyd.lost", "wrong", early);
    assert_snapshot!(dissent.outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        cyd.lost: KeyCompromised
        ");
}

#[test]
fn failures_count_neither_for_nor_against() {
    assert_snapshot!(scenario().says("ann", "right").fails("bob").outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: Failure
        ");
    assert_snapshot!(scenario().says("ann", "right").says("bob", "right").fails("cyd").outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        cyd: Failure
        ");
}

#[test]
fn what_ends_in_the_future_does_not_count_but_disputes() {
    let ends =
        |seconds: u64| move |draft: &mut Draft| draft.observation.finished = NOW.plus(seconds);
    let one = || scenario().says("ann", "right");
    assert_snapshot!(one().says_but("bob", "right", ends(600)).outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        ");
    assert_snapshot!(one().says_but("bob", "right", ends(601)).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        bob: InFuture
        ");
    assert_snapshot!(one().says_but("bob", "wrong", ends(601)).outcome(), @r"
        disputed: wrong, right
        ann: Counts
        bob: InFuture
        ");
}

#[test]
fn the_oldest_that_counts() {
    let age = |seconds: u64| {
        move |draft: &mut Draft| {
            draft.observation.finished = UnixTime(NOW.0 - seconds);
            draft.observation.started = UnixTime(NOW.0 - seconds);
        }
    };
    let month = || {
        scenario()
            .policy(|policy| policy.max_age_days = Some(30))
            .says("ann", "right")
    };
    assert_snapshot!(month().says_but("bob", "right", age(30 * DAY)).outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        ");
    assert_snapshot!(month().says_but("bob", "right", age(30 * DAY + 1)).outcome(), @r"
        stale: enough principals agree, but not within the last 30 days
        ann: Counts
        bob: TooOld
        ");
    assert_snapshot!(month().says_but("ann.2", "right", age(30 * DAY + 1)).outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        ann.2: TooOld
        ");
    // Old dissent is dissent.
    assert_snapshot!(month().says("bob", "right").says_but("cyd", "wrong", age(300 * DAY)).outcome(), @r"
        disputed: wrong, right
        ann: Counts
        bob: Counts
        cyd: TooOld
        ");
}

#[test]
fn past_the_timestamp_only_own_builds_are_trusted() {
    let two = || scenario().says("ann", "right").says("bob", "right");
    let end = NOW.plus(7 * DAY);
    assert!(matches!(
        two().at(end).verdict().decision,
        Decision::Trusted(_)
    ));
    assert_snapshot!(two().at(end.plus(1)).outcome(), @r"
        stale: the network's timestamp ended at 1800604800 (it was signed at 1800000000); it is renewed by the node that holds the timestamp key
        ann: Counts
        bob: Counts
        ");
    assert_snapshot!(two().at(UnixTime(NOW.0 - 601)).outcome(), @r"
        stale: the network's timestamp was signed at 1800000000, but the clock here says 1799999399
        ann: Counts
        bob: Counts
        ");
    assert_snapshot!(two().at(end.plus(1)).own("ann").outcome(), @r"
        trusted: right by ann
        ann: Own
        bob: Counts
        ");
}

#[test]
fn ones_own_build_suffices_for_oneself() {
    assert_snapshot!(scenario().own("zoe").says("zoe", "right").outcome(), @r"
        trusted: right by zoe
        zoe: Own
        ");
    assert_snapshot!(scenario().own("zoe").says("zoe", "right").says("ann", "wrong").outcome(), @r"
        trusted: right by zoe
        zoe: Own
        ann: Counts
        ");
    assert_snapshot!(scenario().own("zoe").says("zoe", "right").says("zoe", "wrong").outcome(), @r"
        unproven: 0 of 2 principals
        zoe: Own
        zoe: Own
        ");
    assert_snapshot!(scenario().own("zoe").says("zoe", "right").retracts("zoe", 0).outcome(), @r"
        unproven: 0 of 2 principals
        zoe: Retracted
        zoe: Retraction
        ");
    // One stranger takes back nothing of another.
    assert_snapshot!(scenario().own("zoe").says("zoe", "right").retracts("yan", 0).outcome(), @r"
        trusted: right by zoe
        zoe: Own
        yan: Retraction
        ");
    let network = |draft: &mut Draft| draft.network = NetworkId([7; 32]);
    assert_snapshot!(scenario().own("zoe").says_but("zoe", "right", network).outcome(), @r"
        unproven: 0 of 2 principals
        zoe: OtherNetwork
        ");
}

fn blocking(key: Option<KeyId>, root: Option<&str>) -> Network {
    let mut manifest = manifest();
    manifest.blocked.push(Blocked {
        key,
        root: root.map(|name| subject(name).root),
        reason: "a backdoor".to_owned(),
    });
    network_of(&manifest)
}

#[test]
fn blocked_keys_and_roots_are_refused_even_when_built_here() {
    let root = scenario_in(blocking(None, Some("wrong")));
    assert_snapshot!(root.says("ann", "wrong").says("bob", "wrong").outcome(), @r"
        blocked: a backdoor
        ann: Counts
        bob: Counts
        ");
    let other = scenario_in(blocking(None, Some("wrong")));
    assert!(matches!(
        other
            .says("ann", "right")
            .says("bob", "right")
            .verdict()
            .decision,
        Decision::Trusted(_)
    ));
    let key = scenario_in(blocking(Some(key().id()), None));
    assert_snapshot!(key.says("ann", "right").says("bob", "right").outcome(), @r"
        blocked: a backdoor
        ann: Counts
        bob: Counts
        ");
    let own = scenario_in(blocking(None, Some("wrong"))).own("zoe");
    assert_snapshot!(own.says("zoe", "wrong").outcome(), @r"
        blocked: a backdoor
        zoe: Own
        ");
}

#[test]
fn nobody_blocks_by_stating_a_blocked_root() {
    let two = scenario_in(blocking(None, Some("wrong")))
        .says("ann", "right")
        .says("bob", "right");
    assert_snapshot!(two.says("zoe", "wrong").says("cyd.lost", "wrong").outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        zoe: Stranger
        cyd.lost: KeyCompromised
        ");
    let own = scenario_in(blocking(None, Some("wrong"))).own("zoe");
    assert_snapshot!(own.says("zoe", "right").says("ann", "wrong").outcome(), @r"
        trusted: right by zoe
        zoe: Own
        ann: Counts
        ");
}

#[test]
fn only_the_committee_counts_when_assigned() {
    let (on, off) = drawn();
    assert_eq!((on.len(), off.len()), (3, 2));
    let assigned = || scenario().policy(|policy| policy.count = Count::Assigned);
    let two = assigned().says(on[0], "right").says(on[1], "right");
    assert!(matches!(two.verdict().decision, Decision::Trusted(_)));
    assert_snapshot!(assigned().says(on[0], "right").says(off[0], "right").outcome(), @r"
        unproven: 1 of 2 assigned principals
        bob: Counts
        ann: NotCounted
        ");
    let proof = two.says(off[0], "right").verdict();
    let Decision::Trusted(trusted) = proof.decision else {
        panic!("{proof:?}");
    };
    assert_eq!(trusted.proof.len(), 2, "only what counts is in the proof");
    // Dissent enters from every principal.
    let dissent = assigned()
        .says(on[0], "right")
        .says(on[1], "right")
        .says(off[0], "wrong");
    assert!(matches!(
        dissent.verdict().decision,
        Decision::Disputed { .. }
    ));
}

#[test]
fn only_named_principals_count() {
    let named =
        || scenario().policy(|policy| policy.principals = ["ann", "bob"].map(principal_id).into());
    assert_snapshot!(named().says("ann", "right").says("cyd", "right").outcome(), @r"
        unproven: 1 of 2 principals
        ann: Counts
        cyd: NotCounted
        ");
    assert_snapshot!(named().says("ann", "right").says("bob", "right").outcome(), @r"
        trusted: right by ann, bob
        ann: Counts
        bob: Counts
        ");
    assert_snapshot!(named().says("ann", "right").says("bob", "right").says("cyd", "wrong").outcome(), @r"
        disputed: wrong, right
        ann: Counts
        bob: Counts
        cyd: NotCounted
        ");
}

#[test]
fn every_group_has_to_agree() {
    let group = |of: &[&str], threshold| Group {
        name: "distributions".to_owned(),
        threshold,
        of: of.iter().map(|name| principal_id(name)).collect(),
        count: Count::Any,
    };
    let one = scenario().policy(|policy| policy.groups.push(group(&["dan", "eve"], 1)));
    let one = one.says("ann", "right").says("bob", "right");
    assert_snapshot!(one.outcome(), @r#"
        unproven: 0 of 1 of group "distributions"
        ann: Counts
        bob: Counts
        "#);
    assert_snapshot!(one.says("eve", "right").outcome(), @r"
        trusted: right by ann, bob, eve
        ann: Counts
        bob: Counts
        eve: Counts
        ");
    // A group that asks for nobody asks for one.
    let none = scenario().policy(|policy| policy.groups.push(group(&["dan"], 0)));
    assert_snapshot!(none.says("ann", "right").says("bob", "right").outcome(), @r#"
        unproven: 0 of 1 of group "distributions"
        ann: Counts
        bob: Counts
        "#);
}

#[test]
fn a_threshold_of_zero_trusts_nothing_by_itself() {
    let zero = || scenario().policy(|policy| policy.threshold = 0);
    assert!(zero().policy.check().is_err());
    assert_snapshot!(zero().outcome(), @"unproven: 0 of 1 principals");
    let assigned = zero().policy(|policy| policy.count = Count::Assigned);
    assert_snapshot!(assigned.says(drawn().1[0], "right").outcome(), @r"
        unproven: 0 of 1 assigned principals
        ann: NotCounted
        ");
}

#[test]
fn an_override_holds_for_either_spelling_of_a_name() {
    let mut policy = Policy::default();
    policy.crates.insert(
        "proc_macro2".to_owned(),
        crate::policy::Override { threshold: 4 },
    );
    assert_eq!(policy.threshold_of("proc-macro2"), 4);
    assert_eq!(policy.threshold_of("Proc_Macro2"), 4);
    assert_eq!(policy.threshold_of("proc-macro"), 2);
}

#[test]
fn a_local_policy_without_an_opinion_leaves_a_dissent_to_the_network() {
    let local: Policy = toml::from_str("threshold = 3").unwrap();
    let of = |on_dissent| Policy {
        on_dissent: Some(on_dissent),
        ..Policy::default()
    };
    assert_eq!(local.on_dissent(), OnDissent::Refuse);
    for word in [OnDissent::Escalate, OnDissent::Refuse] {
        assert_eq!(of(word).stricter(&local).on_dissent(), word);
    }
    let strict = of(OnDissent::Escalate).stricter(&of(OnDissent::Refuse));
    assert_eq!(strict.on_dissent(), OnDissent::Refuse);
    let network: Policy = toml::from_str("threshold = 2").unwrap();
    let lenient = of(OnDissent::Escalate);
    let joined = network.with_opinion().stricter(&lenient);
    assert_eq!(joined.on_dissent(), OnDissent::Refuse);
    // What joining them would come to if the network's silence were no word.
    let joined = network.stricter(&lenient);
    assert_eq!(joined.on_dissent(), OnDissent::Escalate);
}

#[test]
fn a_share_of_fetches_is_rebuilt() {
    let rebuilt = |percent| {
        let policy = Policy {
            rebuild_percent: percent,
            ..Policy::default()
        };
        (0..1000).filter(|random| policy.rebuilds(*random)).count()
    };
    assert_eq!([0, 2, 100].map(rebuilt), [0, 20, 1000]);
}

#[test]
fn the_first_trusted_candidate_wins_and_a_veto_stops() {
    let unproven = || scenario().says("ann", "right").verdict();
    let nothing = || scenario().verdict();
    let trusted = || {
        scenario()
            .says("ann", "right")
            .says("bob", "right")
            .verdict()
    };
    let disputed = || {
        scenario()
            .says("ann", "right")
            .says("bob", "wrong")
            .verdict()
    };
    let stale = || {
        scenario()
            .at(NOW.plus(30 * DAY))
            .says("ann", "right")
            .verdict()
    };
    let own = || {
        scenario()
            .at(NOW.plus(30 * DAY))
            .own("ann")
            .says("ann", "right")
            .verdict()
    };
    let chosen = |verdicts: Vec<Verdict>| choose(verdicts).map(|(index, _)| index);
    assert_eq!(chosen(vec![]), None);
    assert_eq!(chosen(vec![unproven(), trusted(), trusted()]), Some(1));
    assert_eq!(chosen(vec![unproven(), disputed(), trusted()]), Some(1));
    assert_eq!(chosen(vec![nothing(), unproven(), unproven()]), Some(1));
    assert_eq!(chosen(vec![stale(), own()]), Some(1));
    assert_eq!(chosen(vec![nothing(), stale(), unproven()]), Some(1));
}
