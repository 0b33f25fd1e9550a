use super::*;
use crate::key::ArtifactKey;
use crate::manifest::{Manifest, PrincipalRole};
use crate::testing::*;

fn ranking(key: &ArtifactKey) -> Ranking {
    Ranking::of(network(), &Candidate::of(key))
}

/// The names of the fixture's verifiers, first rank first.
fn ranked() -> Vec<&'static str> {
    let ranks = ranking(&key());
    let ranks = ranks.ranks().iter();
    let name = |rank: &Rank| {
        VERIFIERS
            .into_iter()
            .find(|name| principal_id(name) == rank.principal)
    };
    ranks.filter_map(name).collect()
}

fn duty_of(scenario: &Scenario, who: &str) -> Option<Duty> {
    duty(
        &scenario.network,
        &scenario.candidate,
        &scenario.held,
        principal_id(who),
    )
}

#[test]
fn nothing_that_a_publisher_may_vary_draws_anew() {
    let drawn = ranking(&key());
    assert_eq!(drawn.ranks().len(), VERIFIERS.len());
    assert_eq!(drawn.committee().len(), 3);
    let variations: [fn(&mut ArtifactKey); 7] = [
        |key| key.flags.lock.0[0] ^= 1,
        |key| key.flags.features.clear(),
        |key| key.flags.default_features = false,
        |key| key.flags.rustflags = ["-Copt-level=3".to_owned()].into(),
        |key| key.flags.rustc.version = "1.96.0".to_owned(),
        |key| key.flags.profile = "dev".to_owned(),
        |key| key.flags.recipe += 1,
    ];
    for vary in variations {
        let mut varied = key();
        vary(&mut varied);
        assert_ne!(varied, key());
        assert_eq!(ranking(&varied), drawn);
    }
}

#[test]
fn every_release_source_and_target_is_drawn_by_itself() {
    let others: [fn(&mut ArtifactKey, u8); 4] = [
        |key, n| key.version = format!("1.0.{n}"),
        |key, n| key.name = format!("hello{n}"),
        |key, n| key.flags.source.0[0] = n,
        |key, n| key.target = format!("target{n}"),
    ];
    for other in others {
        let drawn: BTreeSet<_> = (0..20)
            .map(|n| {
                let mut changed = key();
                other(&mut changed, n);
                ranking(&changed).committee()
            })
            .collect();
        assert!(drawn.len() > 5, "over many keys, everybody gets a seat");
    }
}

#[test]
fn only_verifiers_of_the_target_with_the_toolchain_are_ranked() {
    let of = |change: fn(&mut Manifest)| {
        let mut manifest = manifest();
        manifest.committee.size = 9;
        change(&mut manifest);
        Ranking::of(&network_of(&manifest), &Candidate::of(&key())).committee()
    };
    let some = of(|manifest| {
        manifest.principals[0].roles = [PrincipalRole::Publisher].into();
        manifest.principals[1].targets = ["aarch64-apple-darwin".to_owned()].into();
        manifest.principals[2].targets = [key().target].into();
        manifest.principals[3].toolchains = ["1.80.0".to_owned()].into();
        manifest.principals[4].toolchains = [key().flags.rustc.version].into();
    });
    assert_eq!(some, ["cyd", "eve"].map(principal_id).into());
    assert_eq!(of(|_| ()), VERIFIERS.map(principal_id).into());
}

#[test]
fn who_leaves_moves_only_those_behind() {
    let all = ranking(&key());
    for gone in 0..VERIFIERS.len() {
        let mut fewer = manifest();
        let left = all.ranks()[gone].principal;
        fewer.principals.retain(|one| one.id != left);
        let expected = all.ranks().iter().filter(|rank| rank.principal != left);
        let ranks = Ranking::of(&network_of(&fewer), &Candidate::of(&key()));
        assert!(ranks.ranks().iter().eq(expected));
    }
}

#[test]
fn rounds_follow_one_another() {
    let ranks = ranking(&key());
    let rounds: Vec<_> = ranked()
        .iter()
        .map(|who| ranks.round_of(principal_id(who)))
        .collect();
    assert_eq!(rounds, [0, 0, 0, 1, 1].map(Some));
    assert_eq!(ranks.round_of(principal_id("mia")), None);
    assert_eq!(ranks.first(2).len(), 5);
    assert_eq!(ranks.first(usize::MAX).len(), 5);
}

#[test]
fn the_committee_is_to_build_until_it_has() {
    let who = ranked();
    let nobody_yet = scenario().says("zoe", "right");
    assert_eq!(duty_of(&nobody_yet, who[0]), Some(Duty::Assigned));
    assert_eq!(duty_of(&nobody_yet, who[3]), None);
    assert_eq!(duty_of(&nobody_yet, "mia"), None);
    let built = scenario().says(who[0], "right").fails(who[1]);
    assert_eq!(duty_of(&built, who[0]), None);
    assert_eq!(
        duty_of(&built, who[1]),
        Some(Duty::Assigned),
        "a failure is no answer for good"
    );
    let elsewhere = scenario().says_but(who[0], "right", |draft| draft.key.flags.features.clear());
    assert_eq!(duty_of(&elsewhere, who[0]), Some(Duty::Assigned));
}

#[test]
fn a_dissent_calls_the_next_round_and_names_its_dissenter() {
    let who = ranked();
    let two = || scenario().says(who[0], "right").says(who[1], "right");
    assert_eq!(duty_of(&two(), who[3]), None);
    let dissent = two().says(who[2], "wrong");
    let by = principal_id(who[2]);
    assert_eq!(duty_of(&dissent, who[3]), Some(Duty::Called { by }));
    assert_eq!(duty_of(&dissent, who[4]), Some(Duty::Called { by }));
    let answered = dissent.says(who[3], "right");
    assert_eq!(duty_of(&answered, who[3]), None);
    // What strangers, mirrors and lost keys say calls nobody.
    let noise = two()
        .says("zoe", "wrong")
        .says("mia", "wrong")
        .says("eve.lost", "wrong");
    assert_eq!(duty_of(&noise, who[3]), None);
}

#[test]
fn one_round_for_each_dissenter_however_often_it_says_so() {
    let mut small = manifest();
    small.committee.size = 1;
    let network = network_of(&small);
    let who = ranked();
    let lone = scenario_in(network)
        .says(who[0], "right")
        .says(who[1], "wrong")
        .says(who[1], "right")
        .says_but(who[1], "wrong", |draft| draft.observation.subject.size += 1);
    let called = |scenario: &Scenario| -> Vec<_> {
        who.iter()
            .map(|who| duty_of(scenario, who).is_some())
            .collect()
    };
    assert_eq!(called(&lone), [false; 5], "round 1 is its own");
    let two = lone.says(who[2], "wrong");
    assert_eq!(
        called(&two),
        [false, false, false, false, false],
        "rounds 1 and 2 have answered"
    );
    let outsider = scenario_in(two.network)
        .says(who[0], "right")
        .says(who[4], "wrong");
    assert_eq!(called(&outsider), [false, true, false, false, false]);
}

#[test]
fn a_verifier_answers_ten_calls_of_one_dissenter_a_day() {
    let (liar, other) = (principal_id("ann"), principal_id("bob"));
    let key = |n: u8| KeyId([n; 32]);
    let mut calls = Calls::default();
    let mut answered = |by, n, now| calls.answer(by, key(n), now);
    for n in 0..10 {
        assert!(answered(liar, n, NOW));
        assert!(
            answered(liar, n, NOW),
            "once a day, however often it is asked"
        );
    }
    assert!(!answered(liar, 10, NOW));
    assert!(answered(other, 10, NOW));
    assert!(answered(liar, 10, NOW.plus(DAY)));
    let text = serde_json::to_string(&calls).unwrap();
    assert_eq!(serde_json::from_str::<Calls>(&text).unwrap(), calls);
}
