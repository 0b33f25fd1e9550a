//! What the store has of what is wanted, and what that comes to without asking anybody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::candidate::Candidate;
use qk_protocol::decide::{Decision, Held, Question, Trusted, choose, decide};
use qk_protocol::fetch::Decided;
use qk_protocol::hash::{PublicKey, Root};
use qk_protocol::policy::Policy;
use qk_protocol::time::UnixTime;

use super::fetch::Asked;
use super::member::{Member, unix_now};
use super::shelf::StoreShelf;
use super::{Node, NodeError};
use crate::store::{Store, StoreError};

/// How long an archive that was named to somebody stays, whatever the quota: time to install it.
pub(super) const INSTALL_TIME: Duration = Duration::from_secs(600);

/// What the store has of what is wanted.
pub(super) struct Here {
    /// The release's statements.
    pub held: Vec<Held>,
    /// What they come to now.
    pub decided: Decided,
    /// Trusted, intact and asked for, with what it is trusted on.
    pub archive: Option<Archive>,
}

/// A trusted artifact in the store.
pub(super) struct Archive {
    pub decided: Decided,
    pub trusted: Trusted,
    pub path: PathBuf,
}

/// All that a decision needs beside statements.
struct Judge {
    member: Arc<Member>,
    policy: Policy,
    own: Option<PublicKey>,
    candidates: Vec<Candidate>,
}

impl Judge {
    fn decide(&self, held: &[Held], now: UnixTime) -> Decided {
        let joined = self.member.joined();
        let verdicts = self.candidates.iter().map(|candidate| {
            decide(&Question {
                policy: &self.policy,
                network: &joined.network,
                candidate,
                own: self.own,
                statements: held,
                now,
            })
        });
        let (candidate, verdict) = choose(verdicts).expect("there is at least one candidate");
        Decided {
            candidate,
            verdict,
            statements: held.iter().map(|held| held.statement.clone()).collect(),
            answered: 0,
            known: 0,
        }
    }

    /// Past the end of a network's timestamp nothing new is trusted, and what was accepted stays
    /// usable: what the statements that were here by then came to.
    fn decide_by_then(&self, held: &[Held]) -> Option<Decided> {
        let end = self.member.joined().network.timestamp().expires;
        if unix_now() <= end {
            return None;
        }
        let by_then = held.iter().filter(|one| one.stored <= end);
        Some(self.decide(&by_then.cloned().collect::<Vec<_>>(), end))
    }
}

impl Node {
    /// What the store has of what is wanted. One opening of the store, as each takes a command
    /// milliseconds; none where no store was begun.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn here(
        &self,
        member: &Arc<Member>,
        candidates: Vec<Candidate>,
        Asked { spec, whose, .. }: Asked<'_>,
    ) -> Result<Here, NodeError> {
        let judge = Judge {
            member: member.clone(),
            policy: self.policy_for(member, spec),
            own: self.own_for(whose),
            candidates,
        };
        if !self.door().is_begun() {
            return Ok(Here {
                held: Vec::new(),
                decided: judge.decide(&[], unix_now()),
                archive: None,
            });
        }
        let point = spec.wanted.release.location(member.key()).point();
        let (network, wants_archive) = (member.id(), !spec.refresh);
        self.blocking(move |store| {
            let held = StoreShelf { store, network }.held(point);
            let decided = judge.decide(&held, unix_now());
            let mut archive = None;
            if wants_archive {
                let before = judge.decide_by_then(&held);
                for decided in before.into_iter().chain([decided.clone()]) {
                    archive = match archive {
                        None => archive_of(store, decided)?,
                        found => found,
                    };
                }
            }
            Ok(Here {
                held,
                decided,
                archive,
            })
        })
        .await
    }

    /// The archive of a root, if it is here and intact.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn archive(&self, root: Root) -> Result<Option<PathBuf>, NodeError> {
        self.blocking(move |store| archive(store, root)).await
    }
}

/// The artifact of a decision, if it is trusted and here.
fn archive_of(store: &Store, decided: Decided) -> Result<Option<Archive>, StoreError> {
    let Decision::Trusted(trusted) = &decided.verdict.decision else {
        return Ok(None);
    };
    let trusted = (**trusted).clone();
    let path = archive(store, trusted.subject.root)?;
    Ok(path.map(|path| Archive {
        decided,
        trusted,
        path,
    }))
}

/// The archive of a root, if it is here and intact; leased for [`INSTALL_TIME`].
pub(super) fn archive(store: &Store, root: Root) -> Result<Option<PathBuf>, StoreError> {
    let blob = match store.open_blob(&root) {
        Err(StoreError::CorruptBlob { .. }) => None,
        opened => opened?,
    };
    if blob.is_some() {
        store.lease_for(root, INSTALL_TIME);
    }
    store.touch(&root, unix_now())?;
    Ok(blob.map(|_| store.blob_path(&root)))
}
