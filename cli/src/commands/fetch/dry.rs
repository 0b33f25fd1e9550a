//! `--dry-run`: what would be fetched, and on whose word; nothing is downloaded or installed.

use qk_node::access::Access;
use qk_protocol::decide::Decision;
use qk_protocol::hash::Root;
use serde::Serialize;

use super::one::{electorate, may_build};
use super::report::Word;
use super::{How, Want};
use crate::args::{Fallback, HowArgs};
use crate::commands::{describe as in_one_line, of_decision, of_problem, proofs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::bytes;
use crate::session::{Session, failed};
use qk_node::registry::Resolved;

/// What would be done for one crate.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Planned {
    pub name: String,
    version: String,
    how: How,
    /// The version that is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Root>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(flatten)]
    word: Word,
    /// Why it would have to be built.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Decides as a fetch does, from what the store has and, unless offline, the network states.
pub(super) async fn plan(
    session: &Session,
    access: &Access,
    want: &Want<'_>,
    resolved: &Resolved,
) -> Outcome<Planned> {
    let release = &resolved.release;
    let wanted = Session::wanted(resolved, want.flags, want.targets.to_vec());
    let mut last = Session::no_network();
    for joined in session.home.networks().map_err(failed)? {
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(&release.registry) {
            continue;
        }
        let found = proofs::find(access, joined.network.id(), release, want.offline).await?;
        let judged = proofs::judge(session, &joined, &wanted, &found.held, want.policy.as_ref())?;
        let Some((candidate, verdict)) = judged else {
            let message = format!("network {} builds nothing for this target", manifest.name);
            last = Failure::new(Kind::NotFound, message);
            continue;
        };
        if let Decision::Trusted(trusted) = &verdict.decision {
            let store = access.store_ls().await;
            let store = store.map_err(|problem| of_problem(&problem))?;
            let here = |one: &qk_node::access::Artifact| one.blob.root == trusted.subject.root;
            return Ok(Planned {
                name: release.name.clone(),
                version: release.version.clone(),
                how: match store.iter().any(here) {
                    true => How::Store,
                    false => How::Network,
                },
                before: None,
                target: Some(candidate.build.target.clone()),
                root: Some(trusted.subject.root),
                bytes: Some(trusted.subject.size),
                word: Word::of(
                    manifest.name.clone(),
                    Some(electorate(session, &joined, &trusted.key)?),
                    &verdict.lines,
                    &verdict.notes,
                ),
                why: None,
            });
        }
        let message = format!(
            "network {} does not vouch for it: {}",
            manifest.name,
            in_one_line(&verdict)
        );
        last = Failure::new(of_decision(&verdict.decision), message);
        if !matches!(verdict.decision, Decision::Unproven(_)) {
            break;
        }
    }
    let why = last.error;
    last.error = format!("{release}: {why}");
    if want.fallback == Fallback::None || want.offline || !may_build(&last) {
        return Err(last);
    }
    Ok(Planned {
        name: release.name.clone(),
        version: release.version.clone(),
        how: How::Built,
        before: None,
        target: wanted.targets.first().cloned(),
        root: None,
        bytes: None,
        word: Word::default(),
        why: Some(why),
    })
}

impl Planned {
    /// The same, over a version that is installed.
    pub(super) fn over(self, before: Option<String>) -> Self {
        Self { before, ..self }
    }

    pub(super) fn describe(&self, how: &HowArgs) -> String {
        let before = self.before.as_ref();
        let before = before.filter(|before| **before != self.version);
        let before = before.map_or(String::new(), |before| format!(" in place of {before}"));
        let word = || self.word.in_words();
        let size = bytes(self.bytes.unwrap_or(0));
        let would = match (self.how, &self.why) {
            (How::Built, Some(why)) => format!("would be built here: {why}"),
            (How::Built, None) => "would be built here".to_owned(),
            (How::Store, _) => format!("would be installed from the store, {size}, {}", word()),
            (How::Network, _) => format!("would be fetched, {size}, {}", word()),
        };
        format!(
            "{} {}{before}  {would}{}{}",
            self.name,
            self.version,
            self.word.contest(),
            self.word.explained(how)
        )
    }
}
