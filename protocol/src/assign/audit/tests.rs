use super::*;
use crate::testing::*;

fn entries_of(scenario: &Scenario) -> Vec<Entry> {
    let statements: Vec<_> = scenario
        .held
        .iter()
        .map(|one| one.statement.clone())
        .collect();
    entries(&scenario.network, &statements, NOW)
}

fn weight(scenario: &Scenario) -> u64 {
    let [entry] = &entries_of(scenario)[..] else {
        panic!("one entry");
    };
    entry.weight
}

fn of_release(n: u8) -> impl FnOnce(&mut Draft) {
    move |draft| draft.key.version = format!("1.0.{n}")
}

/// How often of a thousand times something is chosen, over all ways evenly.
fn share(entries: &[Entry], wanted: impl Fn(&Entry) -> bool) -> usize {
    let draws = (0..1000u64).map(|n| [n, n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16]);
    let chosen = draws.filter_map(|random| choose(entries, random));
    chosen.filter(|one| wanted(one)).count()
}

#[test]
fn missing_proofs_age_and_a_strangers_dissent_raise_the_weight() {
    let one = || scenario().says("ann", "right");
    let two = one().says("bob", "right");
    assert_eq!((weight(&one()), weight(&two)), (5, 1));
    let old = |weeks: u64| {
        let finished = UnixTime(NOW.0 - weeks * 7 * DAY);
        scenario()
            .says("ann", "right")
            .says_but("bob", "right", move |draft| {
                draft.observation.started = finished;
                draft.observation.finished = finished;
            })
    };
    assert_eq!(weight(&old(3)), 1, "ann looked at it today");
    let both_old = |weeks: u64| {
        let finished = UnixTime(NOW.0 - weeks * 7 * DAY);
        let aged = move |draft: &mut Draft| {
            draft.observation.started = finished;
            draft.observation.finished = finished;
        };
        scenario()
            .says_but("ann", "right", aged)
            .says_but("bob", "right", aged)
    };
    assert_eq!((weight(&both_old(3)), weight(&both_old(500))), (4, 27));
    let dissent = one().says("zoe", "wrong");
    assert_eq!(weight(&dissent), 20);
    assert_eq!(
        weight(&dissent.says("yan", "wrong").says("xyz", "other")),
        20
    );
    assert_eq!(
        weight(&one().says("zoe", "right")),
        5,
        "agreeing adds nothing"
    );
}

#[test]
fn what_no_client_would_take_is_no_entry() {
    let odd: [fn(&mut Draft); 3] = [
        |draft| draft.key.flags.rustc.version = "1.60.0".to_owned(),
        |draft| draft.key.registry = "registry+https://other.example/index".to_owned(),
        |draft| draft.network.0[0] ^= 1,
    ];
    for odd in odd {
        assert_eq!(entries_of(&scenario().says_but("ann", "right", odd)), []);
    }
    assert_eq!(
        entries_of(&scenario().fails("ann")),
        [],
        "nobody observed it"
    );
}

#[test]
fn mirrors_and_lost_keys_are_as_good_as_strangers() {
    let said = scenario().says("mia", "right").says("ann.lost", "right");
    assert!(entries_of(&said)[0].strangers_only);
    assert!(!entries_of(&said.says("ann.old", "right"))[0].strangers_only);
}

#[test]
fn at_most_one_in_twenty_goes_to_what_only_strangers_state() {
    let mut flood = scenario().says("ann", "right").says("bob", "right");
    for n in 0..40 {
        flood = flood.says_but("zoe", "wrong", of_release(n));
    }
    let entries = entries_of(&flood);
    assert_eq!(entries.len(), 41);
    assert_eq!(share(&entries, |one| one.strangers_only), 50);
    assert_eq!(share(&entries, |one| !one.strangers_only), 950);
    // By their number alone they would have nearly all.
    let strangers = entries.iter().filter(|one| one.strangers_only).count();
    assert!(strangers * 100 / entries.len() > 95);
    let only: Vec<_> = entries
        .into_iter()
        .filter(|one| one.strangers_only)
        .collect();
    assert_eq!(
        share(&only, |_| true),
        50,
        "what is left over is not theirs"
    );
}

#[test]
fn a_fifth_is_uniform_whatever_the_weights() {
    let light = scenario().says("ann", "right").says("bob", "right");
    let mut heavy = light;
    for n in 0..3 {
        heavy =
            heavy
                .says_but("ann", "right", of_release(n))
                .says_but("zoe", "wrong", of_release(n));
    }
    let entries = entries_of(&heavy);
    assert_eq!(entries.iter().map(|one| one.weight).sum::<u64>(), 61);
    let chosen = share(&entries, |one| one.weight == 1);
    // 200 uniform draws of four entries give it 50, 750 by weight a 61st part of them: 12.
    assert!((35..100).contains(&chosen), "{chosen}");
}

#[test]
fn nothing_is_chosen_of_nothing() {
    assert_eq!(choose(&[], [0, 0]), None);
    assert_eq!(choose(&[], [u64::MAX, u64::MAX]), None);
}

proptest::proptest! {
    #[test]
    fn the_choice_is_the_callers_randomness_alone(random in proptest::prelude::any::<[u64; 2]>()) {
        let said = scenario()
            .says("ann", "right")
            .says_but("bob", "right", of_release(1))
            .says_but("zoe", "right", of_release(2));
        let entries = entries_of(&said);
        let chosen = choose(&entries, random).unwrap();
        proptest::prop_assert_eq!(Some(chosen), choose(&entries, random));
        let strangers = (20..25).contains(&(random[0] % 100));
        proptest::prop_assert_eq!(chosen.strangers_only, strangers);
    }
}
