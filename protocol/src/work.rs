//! The work digest: what shows that an observer built, and did not copy what another one stated.
//!
//! `D` is a hash of what the linker was given. It is the same for whoever builds the key, and nobody
//! knows it who did not. An observer signs [`Work`] instead, which is keyed with its own name: it can be
//! checked by everybody who has `D`, and made by nobody else. `D` leaves the process that built
//! neither in a statement nor in a log, which is why it has no serialised form and prints as nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::hash::{Blake3, Fields, KeyId, NetworkId, PublicKey, Root, StatementId, Work};
use crate::statement::{Statement, Subject, WORK_CHECKS_MAX};

/// `D` of one build: `derive_key("qk work digest v1", …)` of the digests of what the linker was given
/// for the target, sorted, each once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WorkDigest([u8; 32]);

impl fmt::Debug for WorkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkDigest(..)")
    }
}

impl WorkDigest {
    /// `D` of these inputs, in any order; nothing for none, which everybody could compute.
    pub fn of(inputs: impl IntoIterator<Item = Blake3>) -> Option<Self> {
        let sorted: BTreeSet<Blake3> = inputs.into_iter().collect();
        if sorted.is_empty() {
            return None;
        }
        let fields = Fields::derive("qk work digest v1");
        let fields = sorted.iter().fold(fields, |fields, one| fields.id(&one.0));
        Some(Self(fields.finish()))
    }

    /// What this observer of `root` states: keyed with
    /// `derive_key("qk work v1", network ‖ observer ‖ key id)`, over `D ‖ root`.
    pub fn work(&self, network: NetworkId, observer: PublicKey, key: KeyId, root: Root) -> Work {
        let whose = Fields::derive("qk work v1")
            .id(&network.0)
            .id(&observer.0)
            .id(&key.0)
            .finish();
        Work(Fields::keyed(&whose).id(&self.0).id(&root.0).finish())
    }

    /// What the `work` of earlier observations is worth for who built the key itself and got `subject`:
    /// of each one that has any, is of that key and that subject, and by somebody else than `own`. The
    /// first [`WORK_CHECKS_MAX`] by statement id; give only those that are worth checking.
    pub fn checks<'a>(
        &self,
        own: PublicKey,
        key: KeyId,
        subject: Subject,
        earlier: impl IntoIterator<Item = &'a Statement>,
    ) -> BTreeMap<StatementId, bool> {
        let checked = earlier.into_iter().filter_map(|statement| {
            let observation = statement.observation()?;
            let same = statement.key_id() == key && observation.subject == subject;
            let other = statement.observer() != own;
            let stated = observation.work.filter(|_| same && other)?;
            let (network, observer) = (statement.network(), statement.observer());
            let expected = self.work(network, observer, key, subject.root);
            Some((statement.id(), stated == expected))
        });
        let checked: BTreeMap<_, _> = checked.collect();
        checked.into_iter().take(WORK_CHECKS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Body, Observation};
    use crate::testing::{key, observation, public, secret, subject};

    const NETWORK: NetworkId = NetworkId([7; 32]);

    fn digest(inputs: &[&str]) -> Option<WorkDigest> {
        WorkDigest::of(inputs.iter().map(|one| Blake3::of(one.as_bytes())))
    }

    fn built() -> WorkDigest {
        digest(&["liba.rlib", "main.o"]).unwrap()
    }

    /// An observation of `artifact` by `who`, with the work that `with` gives.
    fn stated(who: &str, artifact: &str, with: Option<Work>) -> Statement {
        let observation = Observation {
            work: with,
            ..observation(artifact)
        };
        let body = Body::Observation(observation);
        Statement::sign(NETWORK, key(), body, &secret(who)).unwrap()
    }

    fn work(digest: WorkDigest, who: &str, artifact: &str) -> Option<Work> {
        let root = subject(artifact).root;
        Some(digest.work(NETWORK, public(who), key().id(), root))
    }

    #[test]
    fn the_order_of_inputs_does_not_matter_and_none_make_no_digest() {
        assert_eq!(digest(&["main.o", "liba.rlib", "main.o"]), Some(built()));
        assert_ne!(digest(&["main.o"]), Some(built()));
        assert_eq!(digest(&[]), None);
        assert_eq!(format!("{:?}", built()), "WorkDigest(..)");
    }

    #[test]
    fn a_copied_work_is_told_from_one_that_was_made() {
        let honest = stated("ann", "good", work(built(), "ann", "good"));
        // What a copier can do: repeat another's, or make one without having built.
        let repeated = stated("bob", "good", work(built(), "ann", "good"));
        let guessed = stated(
            "cid",
            "good",
            work(digest(&["guess"]).unwrap(), "cid", "good"),
        );
        // A work for another root is none for this one, though both are of one build.
        let moved = stated("dan", "good", work(built(), "dan", "other"));
        let silent = stated("eve", "good", None);
        let dissent = stated("fay", "other", work(built(), "fay", "other"));
        let own = stated("gus", "good", work(built(), "gus", "good"));
        let all = [
            &honest, &repeated, &guessed, &moved, &silent, &dissent, &own,
        ];
        let said = built().checks(public("gus"), key().id(), subject("good"), all);
        let expected = [
            (honest.id(), true),
            (repeated.id(), false),
            (guessed.id(), false),
            (moved.id(), false),
        ];
        assert_eq!(said, expected.into());
    }

    #[test]
    fn one_observation_checks_no_more_than_it_may_carry() {
        let many: Vec<_> = (0..WORK_CHECKS_MAX + 6)
            .map(|n| stated(&format!("v{n}"), "good", work(built(), "x", "good")))
            .collect();
        let said = built().checks(public("me"), key().id(), subject("good"), &many);
        assert_eq!(said.len(), WORK_CHECKS_MAX);
    }

    #[test]
    fn golden() {
        let work = work(built(), "ann", "good").unwrap();
        insta::assert_snapshot!(work, @"344360961c35a23fb126ff18673bd8ba7f2edbf62dcc68f7dd64909d44448eee");
    }
}
