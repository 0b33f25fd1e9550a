//! What holds for every set of statements and every policy, against a second, naive decision.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::observed::{Got, got};
use super::*;
use crate::assign::Ranking;
use crate::hash::{NetworkId, Work};
use crate::manifest::KeyState;
use crate::policy::{Count, Group, OnDissent, Override};
use crate::statement::{Body, Observation};
use crate::testing::*;

const OBSERVERS: [&str; 12] = [
    "ann", "ann.2", "ann.old", "ann.lost", "bob", "bob.2", "cyd", "cyd.old", "dan", "eve", "mia",
    "zoe",
];

/// Every kind of statement, signed once for all cases.
static POOL: LazyLock<Vec<Held>> = LazyLock::new(pool);

fn pool() -> Vec<Held> {
    let mut all = scenario();
    for who in OBSERVERS {
        all = all
            .says(who, "right")
            .says(who, "wrong")
            .says_but(who, "right", |draft| {
                draft.observation.started = UnixTime(NOW.0 - 60 * DAY);
                draft.observation.finished = UnixTime(NOW.0 - 60 * DAY);
                draft.stored = UnixTime(NOW.0 - 60 * DAY);
            });
        let newest = all.held.len() - 1;
        all = all
            .fails(who)
            .retracts(who, newest)
            .retracts(who, newest - 2);
    }
    for who in ["ann", "bob", "zoe"] {
        all = all
            .says_but(who, "right", |draft| {
                draft.observation.subject.sha256.0[0] ^= 1
            })
            .says_but(who, "right", |draft| {
                draft.observation.finished = NOW.plus(DAY)
            })
            .says_but(who, "right", |draft| draft.network = NetworkId([7; 32]))
            .says_but(who, "right", |draft| draft.key.flags.source.0[0] ^= 1)
            .says_but(who, "right", |draft| draft.key.flags.lock.0[0] ^= 1);
    }
    with_work(all).held
}

/// What principals say of each other's `work`: cyd, dan and eve agree that bob's differs, zoe and one of
/// them that ann's does.
fn with_work(mut all: Scenario) -> Scenario {
    let mut says = |who: &str, checks: &[(usize, bool)]| {
        let checks = checks.to_vec();
        let held = all.held.clone();
        all = std::mem::replace(&mut all, scenario()).says_but(who, "right", |draft| {
            let of = |(index, agrees): (usize, bool)| (held[index].statement.id(), agrees);
            draft.observation.work = Some(Work([7; 32]));
            draft.observation.work_checks = checks.into_iter().map(of).collect();
        });
        all.held.len() - 1
    };
    let ann = says("ann", &[]);
    let bob = says("bob", &[(ann, true)]);
    let cyd = says("cyd", &[(ann, true), (bob, false)]);
    let dan = says("dan", &[(cyd, true), (bob, false)]);
    says(
        "eve",
        &[(ann, false), (cyd, true), (dan, false), (bob, false)],
    );
    says("zoe", &[(ann, false), (bob, false)]);
    all
}

/// Mostly statements for `right`, so that trust is reached often enough to say something.
fn statements() -> impl Strategy<Value = Vec<Held>> {
    let right: Vec<Held> = POOL
        .iter()
        .filter(|held| supports_right(held))
        .cloned()
        .collect();
    let some = (
        subsequence(right.clone(), 0..=8),
        subsequence(POOL.clone(), 0..=2),
    );
    let some = some.prop_map(|(right, any)| [right, any].concat());
    let of = |which: fn(&Held) -> bool| POOL.iter().filter(|held| which(held)).cloned().collect();
    let wrong: Vec<Held> = of(|held| {
        let observation = held.statement.observation();
        observation.is_some_and(|one| one.subject == subject("wrong"))
    });
    let all_but_one = (subsequence(right.clone(), 4..=12), select(wrong));
    let all_but_one = all_but_one.prop_map(|(right, wrong)| [right, vec![wrong]].concat());
    let working: Vec<Held> = of(|held| {
        let observation = held.statement.observation();
        observation.is_some_and(|one| one.work.is_some())
    });
    let length = working.len();
    let working = (
        subsequence(working, 3..=length),
        subsequence(POOL.clone(), 0..=2),
    );
    let working = working.prop_map(|(working, any)| [working, any].concat());
    prop_oneof![
        3 => subsequence(right, 0..=10),
        3 => some,
        2 => all_but_one,
        2 => working,
        1 => subsequence(POOL.clone(), 0..=12),
    ]
}

fn failure() -> impl Strategy<Value = Held> {
    let failures = POOL
        .iter()
        .filter(|held| matches!(held.statement.body(), Body::Failure(_)));
    select(Vec::from_iter(failures.cloned()))
}

fn supports_right(held: &Held) -> bool {
    held.statement
        .observation()
        .is_some_and(|observation| observation.subject == subject("right"))
        && held.statement.key_id() == key().id()
}

fn principals() -> impl Strategy<Value = BTreeSet<PrincipalId>> {
    let all = VERIFIERS.map(principal_id).to_vec();
    prop_oneof![2 => Just(BTreeSet::new()), 1 => subsequence(all, 1..=4).prop_map(BTreeSet::from_iter)]
}

fn count() -> impl Strategy<Value = Count> {
    prop_oneof![2 => Just(Count::Any), 1 => Just(Count::Assigned)]
}

fn policy() -> impl Strategy<Value = Policy> {
    let group = (0..3u32, principals(), count()).prop_map(|(threshold, of, count)| Group {
        name: "group".to_owned(),
        threshold,
        of,
        count,
    });
    let names = select(vec!["hello", "Hello", "other"]);
    let over =
        (names, 0..4u32).prop_map(|(name, threshold)| (name.to_owned(), Override { threshold }));
    (
        0..4u32,
        count(),
        principals(),
        prop::collection::vec(group, 0..2),
        prop::option::of(Just(30)),
        prop::collection::btree_map(
            select(vec!["hello", "other"]).prop_map(str::to_owned),
            (0..4u32).prop_map(|threshold| Override { threshold }),
            0..2,
        ),
        prop::option::of(over),
        select(vec![
            None,
            Some(OnDissent::Refuse),
            Some(OnDissent::Escalate),
            Some(OnDissent::Escalate),
        ]),
    )
        .prop_map(
            |(threshold, count, principals, groups, max_age_days, mut crates, over, on_dissent)| {
                crates.extend(over);
                Policy {
                    threshold,
                    count,
                    principals,
                    groups,
                    max_age_days,
                    crates,
                    on_dissent,
                    ..Policy::default()
                }
            },
        )
}

fn verdict(policy: &Policy, statements: &[Held]) -> Verdict {
    decide(&Question {
        policy,
        network: network(),
        candidate: &Candidate::of(&key()),
        own: None,
        statements,
        now: NOW,
    })
}

fn decision(policy: &Policy, statements: &[Held]) -> Decision {
    verdict(policy, statements).decision
}

fn trusted(decision: &Decision) -> Option<Subject> {
    match decision {
        Decision::Trusted(trusted) => Some(trusted.subject),
        Decision::Unproven(_)
        | Decision::Disputed { .. }
        | Decision::Stale { .. }
        | Decision::Blocked { .. } => None,
    }
}

/// The observations that a principal may make for or against a root, said as plainly as possible.
fn spoken(statements: &[Held]) -> Vec<(PrincipalId, &Held)> {
    let mut spoken = Vec::new();
    for held in statements {
        let statement = &held.statement;
        let Some((principal, key_state)) = network().principal(statement.observer()) else {
            continue;
        };
        let speaks = match key_state.state {
            KeyState::Active => true,
            KeyState::Retired => held.stored < RETIRED,
            KeyState::Compromised => false,
        };
        let same_lock = ArtifactKey {
            flags: crate::key::Flags {
                lock: key().flags.lock,
                ..statement.key().flags.clone()
            },
            ..statement.key().clone()
        };
        if speaks
            && principal.name != "mia"
            && statement.network() == network().id()
            && same_lock == key()
        {
            spoken.push((principal.id, held));
        }
    }
    spoken
}

/// What may be trusted, by counting in the open. Shares nothing with `decide` but the inputs.
fn naive(policy: &Policy, statements: &[Held]) -> Option<Subject> {
    let spoken = spoken(statements);
    let observed = |who: &PrincipalId| -> BTreeSet<Got> {
        let own = spoken.iter().filter(|(other, _)| other == who);
        own.filter_map(|(_, held)| got(&held.statement)).collect()
    };
    let gots: BTreeSet<Got> = spoken
        .iter()
        .filter_map(|(_, held)| got(&held.statement))
        .collect();
    let ranking = Ranking::of(network(), &Candidate::of(&key()));
    let overrides = policy
        .crates
        .iter()
        .filter(|(name, _)| name.to_lowercase() == "hello");
    let threshold = overrides
        .map(|(_, over)| over.threshold)
        .fold(policy.threshold.max(1), u32::max) as usize;
    let proven = |what: &Got| {
        let dissenters: BTreeSet<PrincipalId> = spoken
            .iter()
            .map(|(who, _)| *who)
            .filter(|who| observed(who).iter().any(|other| other != what))
            .collect();
        let escalates = policy.on_dissent() == OnDissent::Escalate;
        let allowed = if escalates { 1 } else { 0 };
        let called = ranking.first(1 + if escalates { dissenters.len() } else { 0 });
        let supporters: BTreeSet<PrincipalId> = spoken
            .iter()
            .filter(|(who, held)| {
                got(&held.statement) == Some(*what)
                    && observed(who).len() == 1
                    && is_timely(policy, held.statement.observation().unwrap())
                    && !is_taken_back(statements, &spoken, held, *who)
                    && !is_dropped(&spoken, held, *who, &called)
                    && (policy.principals.is_empty() || policy.principals.contains(who))
            })
            .map(|(who, _)| *who)
            .collect();
        let number =
            |of: &BTreeSet<PrincipalId>, count: Count, assigned: &BTreeSet<PrincipalId>| {
                let counted = supporters
                    .iter()
                    .filter(|who| of.is_empty() || of.contains(who))
                    .filter(|who| count == Count::Any || assigned.contains(who));
                counted.count()
            };
        let met = |assigned: &BTreeSet<PrincipalId>| {
            let mut groups = policy.groups.iter();
            number(&BTreeSet::new(), policy.count, assigned) >= threshold
                && groups.all(|group| {
                    number(&group.of, group.count, assigned) >= group.threshold.max(1) as usize
                })
        };
        match dissenters.len() {
            0 => met(&ranking.committee()),
            one if one <= allowed => {
                let of_committee = supporters.intersection(&ranking.committee()).count();
                met(&ranking.committee())
                    && of_committee >= threshold
                    && number(&BTreeSet::new(), policy.count, &called) >= 2 * threshold
            }
            _ => false,
        }
    };
    let proven: Vec<&Got> = gots.iter().filter(|what| proven(what)).collect();
    assert!(proven.len() <= 1, "never two");
    proven.first().map(|(_, subject)| *subject)
}

fn is_timely(policy: &Policy, observation: &Observation) -> bool {
    observation.finished.0 <= NOW.0 + 600
        && policy
            .max_age_days
            .is_none_or(|days| observation.finished.0 + u64::from(days) * DAY >= NOW.0)
}

fn is_taken_back(
    statements: &[Held],
    spoken: &[(PrincipalId, &Held)],
    observed: &Held,
    by: PrincipalId,
) -> bool {
    statements.iter().any(|held| {
        let Body::Retraction(retraction) = held.statement.body() else {
            return false;
        };
        let speaks = spoken
            .iter()
            .any(|(who, one)| *who == by && one.statement.id() == held.statement.id());
        retraction.retracts == observed.statement.id()
            && (speaks || held.statement.observer() == observed.statement.observer())
    })
}

/// Whether two of `assigned` whose work agrees say that this one's differs.
fn is_dropped(
    spoken: &[(PrincipalId, &Held)],
    accused: &Held,
    by: PrincipalId,
    assigned: &BTreeSet<PrincipalId>,
) -> bool {
    let says = |one: &Held, of: &Held| {
        let observation = one.statement.observation().unwrap();
        observation.work_checks.get(&of.statement.id()).copied()
    };
    let accusers: Vec<_> = spoken
        .iter()
        .filter(|(who, held)| {
            *who != by
                && assigned.contains(who)
                && got(&held.statement).is_some()
                && got(&held.statement) == got(&accused.statement)
                && held.statement.observation().unwrap().work.is_some()
                && says(held, accused) == Some(false)
        })
        .collect();
    accused.statement.observation().unwrap().work.is_some()
        && accusers.iter().any(|(one, first)| {
            accusers.iter().any(|(other, second)| {
                one != other
                    && says(first, second) == Some(true)
                    && says(second, first) != Some(false)
            })
        })
}

/// How many statements of each principal count.
fn counting(policy: &Policy, statements: &[Held]) -> BTreeMap<Option<String>, usize> {
    let mut counting = BTreeMap::new();
    let lines = verdict(policy, statements).lines.into_iter();
    for line in lines.filter(|line| line.effect == Effect::Counts) {
        *counting.entry(line.principal).or_default() += 1;
    }
    counting
}

/// Adds one statement to a set and says what the decisions before and after were.
fn adding(policy: &Policy, statements: &[Held], held: &Held) -> (Decision, Decision) {
    let more = [statements, std::slice::from_ref(held)].concat();
    (decision(policy, statements), decision(policy, &more))
}

#[test]
fn the_cases_reach_trust_and_every_refusal() {
    // Otherwise the properties below could hold for want of cases.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for _ in 0..500 {
        let case = (policy(), statements()).new_tree(&mut runner).unwrap();
        let (policy, statements) = proptest::strategy::ValueTree::current(&case);
        let verdict = verdict(&policy, &statements);
        if verdict
            .lines
            .iter()
            .any(|line| line.effect == Effect::WorkDiffers)
        {
            *seen.entry("work differs").or_insert(0) += 1;
        }
        let name = match verdict.decision {
            Decision::Trusted(trusted) if trusted.contested.is_some() => "contested",
            Decision::Trusted(_) => "trusted",
            Decision::Unproven(_) => "unproven",
            Decision::Disputed { .. } => "disputed",
            Decision::Stale { .. } => "stale",
            Decision::Blocked { .. } => "blocked",
        };
        *seen.entry(name).or_insert(0) += 1;
    }
    for name in ["trusted", "unproven", "disputed"] {
        assert!(seen.get(name).is_some_and(|count| *count > 50), "{seen:?}");
    }
    for name in ["contested", "stale", "work differs"] {
        assert!(seen.get(name).is_some_and(|count| *count >= 5), "{seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, max_global_rejects: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn decide_agrees_with_counting_in_the_open(policy in policy(), statements in statements()) {
        prop_assert_eq!(trusted(&decision(&policy, &statements)), naive(&policy, &statements));
    }

    #[test]
    fn order_and_repetition_never_matter(
        policy in policy(),
        (statements, shuffled) in statements().prop_flat_map(|s| (Just(s.clone()), Just([s.clone(), s].concat()).prop_shuffle())),
    ) {
        prop_assert_eq!(verdict(&policy, &statements), verdict(&policy, &shuffled));
    }

    /// By a stranger, a mirror, a compromised key, a key that had retired, in another network or
    /// about another source: the decision stays the very same.
    #[test]
    fn who_has_no_say_changes_nothing(policy in policy(), statements in statements(), held in select(POOL.clone())) {
        prop_assume!(spoken(std::slice::from_ref(&held)).is_empty());
        // But for taking back what the same key stated.
        prop_assume!(!matches!(held.statement.body(), Body::Retraction(_)));
        let (before, after) = adding(&policy, &statements, &held);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn failures_change_nothing(policy in policy(), statements in statements(), held in failure()) {
        let (before, after) = adding(&policy, &statements, &held);
        prop_assert_eq!(before, after);
    }

    /// A principal that counts already counts no more often for another statement or another key,
    /// and none of them turns a refusal into trust.
    #[test]
    fn a_principal_counts_once(policy in policy(), statements in statements(), held in select(POOL.clone())) {
        let principal = network().principal(held.statement.observer()).map(|(principal, _)| principal.name.clone());
        prop_assume!(counting(&policy, &statements).contains_key(&principal));
        let more = [statements.clone(), vec![held.clone()]].concat();
        prop_assert!(counting(&policy, &more).values().all(|count| *count == 1));
        let (before, after) = adding(&policy, &statements, &held);
        prop_assert!(trusted(&before).is_some() || trusted(&after).is_none());
    }

    /// Whatever is stated of one artifact, no other one is trusted afterwards that was not before; and
    /// under `refuse` nothing at all where two principals differ.
    #[test]
    fn a_dissent_never_helps(policy in policy(), statements in statements(), held in select(POOL.clone())) {
        let gots: BTreeSet<_> = spoken(&statements).iter().filter_map(|(_, held)| got(&held.statement)).collect();
        let other = got(&held.statement);
        prop_assume!(other.is_some() && !gots.is_empty() && gots.iter().any(|one| Some(*one) != other));
        let (before, after) = adding(&policy, &statements, &held);
        let stated = other.map(|(_, subject)| subject);
        prop_assert!(trusted(&after).is_none() || trusted(&after) == stated || trusted(&after) == trusted(&before));
        let dissents = !spoken(std::slice::from_ref(&held)).is_empty();
        if dissents && policy.on_dissent() == OnDissent::Refuse {
            prop_assert_eq!(trusted(&after), None);
        }
        if let (true, Decision::Trusted(after)) = (dissents, after) {
            prop_assert!(after.contested.is_some());
        }
    }

    /// `escalate` trusts nothing else than `refuse` would without the dissenter, and never with two.
    #[test]
    fn a_contested_root_is_what_all_but_one_observed(policy in policy(), statements in statements()) {
        if let Decision::Trusted(contested) = decision(&policy, &statements)
            && let Some(dissenter) = contested.contested
        {
            let others: Vec<Held> = statements
                .iter()
                .filter(|held| network().principal(held.statement.observer()).is_none_or(|(one, _)| one.id != dissenter))
                .cloned()
                .collect();
            let refuse = Policy { on_dissent: Some(OnDissent::Refuse), ..policy };
            prop_assert_eq!(trusted(&decision(&refuse, &others)), Some(contested.subject));
            prop_assert!(contested.proof.len() >= 2 * refuse.threshold_of("hello") as usize);
            let signers = contested.proof.iter().map(|id| statements.iter().find(|one| one.statement.id() == *id).unwrap());
            let mut signers = signers.map(|held| network().principal(held.statement.observer()).unwrap().0.id);
            prop_assert!(signers.all(|one| one != dissenter));
        }
    }

    /// The monotonicity that holds. Leaving out statements of which none is a veto never makes anything
    /// trusted. Vetoes against an artifact are observations of others, retractions, and what is said
    /// against somebody's `work`: who withholds one of those delays it.
    #[test]
    fn leaving_statements_out_never_helps_but_for_vetoes(
        policy in policy(),
        (statements, fewer) in statements().prop_flat_map(|s| { let n = s.len(); (Just(s.clone()), subsequence(s, 0..=n)) }),
    ) {
        let Some(after) = trusted(&decision(&policy, &fewer)) else {
            return Ok(());
        };
        let kept: BTreeSet<_> = fewer.iter().map(|held| held.statement.id()).collect();
        let is_veto = |held: &Held| match held.statement.body() {
            Body::Observation(one) => one.subject != after
                || held.statement.key_id() != key().id()
                || one.work_checks.values().any(|agrees| !agrees),
            Body::Retraction(_) => true,
            Body::Failure(_) => false,
        };
        let left_out = statements.iter().filter(|held| !kept.contains(&held.statement.id()));
        if left_out.clone().all(|held| !is_veto(held)) {
            prop_assert_eq!(trusted(&decision(&policy, &statements)), Some(after));
        }
    }

    #[test]
    fn the_stricter_of_two_trusts_only_what_both_do(one in policy(), two in policy(), statements in statements()) {
        // Without an opinion on dissent one leaves it to the other.
        let opinionated = |policy: Policy| Policy { on_dissent: Some(policy.on_dissent()), ..policy };
        let (one, two) = (opinionated(one), opinionated(two));
        let both = trusted(&decision(&one.stricter(&two), &statements));
        if both.is_some() {
            prop_assert_eq!(both, trusted(&decision(&one, &statements)));
            prop_assert_eq!(both, trusted(&decision(&two, &statements)));
        }
        prop_assert_eq!(both, trusted(&decision(&two.stricter(&one), &statements)));
    }

    #[test]
    fn a_proof_names_each_principal_once(policy in policy(), statements in statements()) {
        if let Decision::Trusted(trusted) = decision(&policy, &statements) {
            let signers: BTreeSet<_> = trusted.proof.iter().map(|id| {
                let held = statements.iter().find(|held| held.statement.id() == *id).unwrap();
                network().principal(held.statement.observer()).unwrap().0.id
            }).collect();
            prop_assert_eq!(signers.len(), trusted.proof.len());
            prop_assert!(trusted.proof.len() >= policy.threshold as usize);
        }
    }
}
