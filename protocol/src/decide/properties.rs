//! What holds for every set of statements and every policy, against a second, naive decision.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::hash::NetworkId;
use crate::policy::{Group, Override};
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
    all.held
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
    prop_oneof![3 => subsequence(right, 0..=10), 3 => some, 1 => subsequence(POOL.clone(), 0..=12)]
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
    )
        .prop_map(
            |(threshold, count, principals, groups, max_age_days, mut crates, over)| {
                crates.extend(over);
                Policy {
                    threshold,
                    count,
                    principals,
                    groups,
                    max_age_days,
                    crates,
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
    let gots: BTreeSet<Got> = spoken
        .iter()
        .filter_map(|(_, held)| got(&held.statement))
        .collect();
    let [(_, what)] = Vec::from_iter(gots)[..] else {
        return None;
    };
    let taken_back = |id: StatementId, by: PrincipalId| {
        statements.iter().any(|held| {
            let Body::Retraction(retraction) = held.statement.body() else {
                return false;
            };
            let observed = statements
                .iter()
                .find(|other| other.statement.id() == id)
                .unwrap();
            let speaks = spoken
                .iter()
                .any(|(who, one)| *who == by && one.statement.id() == held.statement.id());
            retraction.retracts == id
                && (speaks || held.statement.observer() == observed.statement.observer())
        })
    };
    let age = |observation: &Observation| {
        observation.finished.0 <= NOW.0 + 600
            && policy
                .max_age_days
                .is_none_or(|days| observation.finished.0 + u64::from(days) * DAY >= NOW.0)
    };
    let supporters: BTreeSet<PrincipalId> = spoken
        .iter()
        .filter(|(who, held)| {
            held.statement.observation().is_some_and(age)
                && !taken_back(held.statement.id(), *who)
                && (policy.principals.is_empty() || policy.principals.contains(who))
        })
        .map(|(who, _)| *who)
        .collect();
    let committee = Ranking::of(network(), &Candidate::of(&key())).committee();
    let enough = |threshold: u32, of: &BTreeSet<PrincipalId>, count: Count| {
        let count = supporters
            .iter()
            .filter(|who| of.is_empty() || of.contains(who))
            .filter(|who| count == Count::Any || committee.contains(who))
            .count();
        count >= threshold.max(1) as usize
    };
    let overrides = policy
        .crates
        .iter()
        .filter(|(name, _)| name.to_lowercase() == "hello");
    let threshold = overrides
        .map(|(_, over)| over.threshold)
        .fold(policy.threshold, u32::max);
    let met = enough(threshold, &BTreeSet::new(), policy.count)
        && policy
            .groups
            .iter()
            .all(|group| enough(group.threshold, &group.of, group.count));
    met.then_some(what)
}

fn have(policy: &Policy, statements: &[Held]) -> u32 {
    let counted = BTreeSet::from_iter(
        verdict(policy, statements)
            .lines
            .iter()
            .filter(|line| line.effect == Effect::Counts)
            .map(|line| line.principal.clone()),
    );
    u32::try_from(counted.len()).unwrap()
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
        let name = match decision(&policy, &statements) {
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
    assert!(seen.contains_key("stale"), "{seen:?}");
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
        let lines = verdict(&policy, &statements).lines;
        prop_assume!(lines.iter().any(|line| line.effect == Effect::Counts && line.principal == principal));
        let more = [statements.clone(), vec![held.clone()]].concat();
        prop_assert!(have(&policy, &more) <= have(&policy, &statements));
        let (before, after) = adding(&policy, &statements, &held);
        prop_assert!(trusted(&before).is_some() || trusted(&after).is_none());
    }

    /// Whatever is stated of another artifact than one that a principal stated: afterwards nothing
    /// is trusted that was not before, and where a principal stated it, nothing at all.
    #[test]
    fn a_dissent_never_helps(policy in policy(), statements in statements(), held in select(POOL.clone())) {
        let gots: BTreeSet<_> = spoken(&statements).iter().filter_map(|(_, held)| got(&held.statement)).collect();
        let other = got(&held.statement);
        prop_assume!(other.is_some() && !gots.is_empty() && gots.iter().any(|one| Some(*one) != other));
        let (before, after) = adding(&policy, &statements, &held);
        prop_assert!(trusted(&after).is_none() || trusted(&after) == trusted(&before));
        if !spoken(std::slice::from_ref(&held)).is_empty() {
            prop_assert_eq!(trusted(&after), None);
        }
    }

    /// The monotonicity that holds. Leaving statements out of a trusted set gives trust in the same
    /// artifact or in none. Out of a set that is not disputed and not trusted, leaving out anything
    /// but retractions never gives trust. (Leaving out a dissent or a retraction can: they are
    /// vetoes, and who withholds them delays them.)
    #[test]
    fn leaving_statements_out_never_helps_but_for_vetoes(
        policy in policy(),
        (statements, fewer) in statements().prop_flat_map(|s| { let n = s.len(); (Just(s.clone()), subsequence(s, 0..=n)) }),
        vetoes in any::<bool>(),
    ) {
        let before = decision(&policy, &statements);
        let kept: BTreeSet<_> = fewer.iter().map(|held| held.statement.id()).collect();
        let fewer: Vec<Held> = statements
            .iter()
            .filter(|held| kept.contains(&held.statement.id()) || (!vetoes && matches!(held.statement.body(), Body::Retraction(_))))
            .cloned()
            .collect();
        let after = decision(&policy, &fewer);
        match before {
            Decision::Trusted(before) => prop_assert!(trusted(&after).is_none_or(|subject| subject == before.subject)),
            Decision::Unproven(_) | Decision::Stale { .. } if !vetoes => prop_assert_eq!(trusted(&after), None),
            Decision::Unproven(_) | Decision::Stale { .. } | Decision::Disputed { .. } | Decision::Blocked { .. } => {}
        }
    }

    #[test]
    fn the_stricter_of_two_trusts_only_what_both_do(one in policy(), two in policy(), statements in statements()) {
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
