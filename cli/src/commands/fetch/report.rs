//! What is said of the crates of a call.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use qk_node::access::Stage;
use qk_node::node::{Share, unix_now};
use qk_protocol::decide::{Effect, Line};
use qk_protocol::hash::{KeyId, Root, Sha256};
use serde::Serialize;

use super::dry::Planned;
use super::{Came, How, Job, Ready};
use crate::args::{CrateSpec, HowArgs};
use crate::commands::proofs::statements;
use crate::failure::{Failure, Failures, Outcome};
use crate::output::{ago, bytes};
use crate::session::Session;

/// What happened to the crates of one call.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Fetched"))]
pub(crate) struct Summary {
    crates: Vec<Done>,
    /// What there was nothing to do for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    up_to_date: Vec<Current>,
    /// What would be done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    planned: Vec<Planned>,
    #[serde(flatten)]
    failures: Failures,
    /// How long all of it took; the stages of several crates overlap.
    seconds: f64,
    #[serde(skip)]
    began: Instant,
    /// Place of each crate in the call.
    #[serde(skip)]
    order: BTreeMap<String, usize>,
}

/// On whose word an artifact is trusted; on nobody's else, where it was built here.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Word {
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    observations: Vec<Line>,
    /// How many principals could have counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    principals: Option<usize>,
    /// The principal that observed another artifact, where the policy trusts this one all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    contested_by: Option<String>,
    /// What each statement did, for people.
    #[serde(skip)]
    explained: Vec<String>,
}

/// One crate that is installed now.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "FetchedCrate"))]
pub(super) struct Done {
    name: String,
    version: String,
    how: How,
    /// The version that it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    source: Sha256,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock: Option<Sha256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<KeyId>,
    root: Root,
    bytes: u64,
    /// Who gave how much of what was fetched.
    providers: Vec<Share>,
    blocks_verified: u64,
    #[serde(flatten)]
    word: Word,
    /// Whether the release was withdrawn from its registry.
    yanked: bool,
    /// Whether it was rebuilt here, as the policy asks for a share of fetches; it came out the same.
    rebuilt: bool,
    archive: PathBuf,
    installed: Vec<PathBuf>,
    stages: Vec<Stage>,
}

/// One crate that was installed already.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "CurrentCrate"))]
pub(super) struct Current {
    pub name: String,
    pub version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub installed: Vec<PathBuf>,
}

impl Summary {
    pub(super) fn of(jobs: &[Job]) -> Self {
        let names = jobs.iter().map(|job| job.krate.name.clone());
        Self {
            crates: Vec::new(),
            up_to_date: Vec::new(),
            planned: Vec::new(),
            failures: Failures::default(),
            seconds: 0.0,
            began: Instant::now(),
            order: names.zip(0..).collect(),
        }
    }

    pub(super) fn add(&mut self, came: Came) {
        match came {
            Came::Done(done) => self.crates.push(*done),
            Came::Current(current) => self.up_to_date.push(current),
            Came::Planned(planned) => self.planned.push(*planned),
        }
    }

    /// Several: each is said where it happens, not all at the end.
    pub(super) fn fail(&mut self, session: &Session, krate: &CrateSpec, failure: Failure) {
        let at_once = self.order.len() > 1;
        self.failures.add(session.output, krate, failure, at_once);
    }

    /// One failure fails with its own reason, several for different reasons with exit code 1; what was
    /// installed stays installed.
    pub(super) fn finish(mut self, session: &Session, how: &HowArgs) -> Outcome {
        self.seconds = self.began.elapsed().as_secs_f64();
        // In the order of the call, whichever was ready first.
        let place = |name: &str| self.order.get(name).copied();
        self.crates.sort_by_key(|one| place(&one.name));
        self.planned.sort_by_key(|one| place(&one.name));
        self.failures
            .sort_by_key(|krate| place(krate.split('@').next().unwrap_or(krate)));
        let failure = self.failures.end("crates");
        if self.order.len() > 1 {
            let seconds = match how.timings {
                true => format!(", in {:.1} ms", self.seconds * 1000.0),
                false => String::new(),
            };
            session.output.line(self.in_one_line() + &seconds);
        }
        session.output.summary(&self, failure)
    }

    fn in_one_line(&self) -> String {
        let failed = self.failures.crates();
        let parts = [
            (self.crates.len(), "installed", String::new()),
            (self.planned.len(), "would be installed", String::new()),
            (self.up_to_date.len(), "up to date", String::new()),
            (failed.len(), "failed", format!(": {}", failed.join(", "))),
        ];
        let parts = parts.into_iter().filter(|(count, ..)| *count > 0);
        let parts: Vec<_> = parts
            .map(|(count, what, which)| format!("{count} {what}{which}"))
            .collect();
        format!("{} crates: {}", self.order.len(), parts.join(", "))
    }
}

impl Done {
    pub(super) fn of(
        ready: Ready,
        installed: Vec<PathBuf>,
        yanked: bool,
        before: Option<String>,
    ) -> Self {
        Self {
            before: before.filter(|before| *before != ready.key.version),
            name: ready.key.name,
            version: ready.key.version,
            how: ready.how,
            source: ready.key.flags.source,
            lock: ready.key_id.map(|_| ready.key.flags.lock),
            key_id: ready.key_id,
            root: ready.subject.root,
            bytes: ready.subject.size,
            providers: ready.providers,
            blocks_verified: ready.blocks_verified,
            word: ready.word,
            yanked,
            rebuilt: ready.rebuilt,
            archive: ready.archive,
            installed,
            stages: ready.stages,
        }
    }

    /// One line a crate, as a person reads it: what, on whose word, where.
    fn describe(&self, how: &HowArgs) -> String {
        let word = match self.how {
            How::Built => "built here".to_owned(),
            How::Store | How::Network => self.word.in_words(),
        };
        let paths: Vec<_> = self
            .installed
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let rebuilt = match self.rebuilt {
            true => ", rebuilt here: identical",
            false => "",
        };
        let mut text = format!(
            "{} {}  {}  {word}{rebuilt}{}\n  installed {}",
            self.name,
            self.version,
            bytes(self.bytes),
            self.word.contest(),
            paths.join(", ")
        );
        if let Some(before) = &self.before {
            text.push_str(&format!(", in place of {before}"));
        }
        text.push_str(&self.word.explained(how));
        for stage in self.stages.iter().filter(|_| how.timings) {
            text.push_str(&format!(
                "\n  {:>10}  {:7.1} ms",
                stage.name,
                stage.seconds * 1000.0
            ));
        }
        text
    }
}

impl Came {
    pub(super) fn describe(&self, how: &HowArgs) -> String {
        match self {
            Self::Done(done) => done.describe(how),
            Self::Current(one) => format!("{} {}  is up to date", one.name, one.version),
            Self::Planned(planned) => planned.describe(how),
        }
    }
}

impl Word {
    pub(crate) fn of(
        network: String,
        principals: Option<usize>,
        lines: &[Line],
        notes: &[String],
    ) -> Self {
        let dissent = lines.iter().find(|line| line.effect == Effect::Dissents);
        let observations = lines.iter().filter(|line| line.root.is_some());
        Self {
            network: Some(network),
            principals,
            contested_by: dissent.and_then(|line| line.principal.clone()),
            explained: statements(lines, notes),
            observations: observations.cloned().collect(),
        }
    }

    /// How many principals of how many agree, and since when.
    pub(crate) fn in_words(&self) -> String {
        let counts = |line: &&Line| line.effect == Effect::Counts;
        let counting: Vec<&Line> = self.observations.iter().filter(counts).collect();
        let Some(newest) = counting.iter().map(|line| line.at).max() else {
            return "your own build".to_owned();
        };
        let of = match self.principals {
            Some(of) => format!(" of {}", of.max(counting.len())),
            None => String::new(),
        };
        format!(
            "{}{of} principals, newest {}",
            counting.len(),
            ago(unix_now().since(newest))
        )
    }

    /// A line about who observed another artifact than the one that is trusted.
    pub(crate) fn contest(&self) -> String {
        match &self.contested_by {
            Some(name) => {
                format!("\n  CONTESTED: {name} observed another artifact; see `qk proofs`")
            }
            None => String::new(),
        }
    }

    /// A line for each statement, for who asks.
    pub(super) fn explained(&self, how: &HowArgs) -> String {
        let lines = self.explained.iter().filter(|_| how.explain);
        lines.map(|line| format!("\n{line}")).collect()
    }
}
