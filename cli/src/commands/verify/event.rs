//! What `qk verify --watch` tells as it happens.

use qk_node::node::unix_now;
use qk_protocol::hash::KeyId;
use qk_protocol::key::ArtifactKey;
use qk_protocol::time::UnixTime;
use qk_protocol::watch::budget::Wait;
use qk_protocol::watch::{Agreement, Class, Why};
use serde::Serialize;

use super::Report;
use crate::output::{count, lasting};

/// What is told as it happens: lines of JSON with `--json`, plain lines otherwise.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// Something new is to be rebuilt.
    Noticed {
        #[serde(flatten)]
        what: What,
        /// Seconds since the first observation of it that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        after_seconds: Option<u64>,
    },
    Rebuilding {
        #[serde(flatten)]
        what: What,
    },
    Rebuilt {
        #[serde(flatten)]
        why: Why,
        agreement: Agreement,
        #[serde(flatten)]
        report: &'a Report,
    },
    Failed {
        #[serde(flatten)]
        what: What,
        class: Class,
        detail: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        again: Option<UnixTime>,
    },
    Stopped {
        #[serde(flatten)]
        what: What,
    },
    Waiting {
        waits: &'a [Wait],
    },
    Note {
        text: &'a str,
    },
}

/// What is rebuilt, and why.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct What {
    network: String,
    name: String,
    version: String,
    target: String,
    key_id: KeyId,
    #[serde(flatten)]
    why: Why,
}

impl Event<'_> {
    /// A line for people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Noticed {
                what,
                after_seconds,
            } => {
                let after = after_seconds
                    .map(|seconds| format!(", {} after the first observation", lasting(seconds)));
                let why = in_words(what.why);
                format!(
                    "noticed     {}: {why}{}",
                    what.short(),
                    after.unwrap_or_default()
                )
            }
            Self::Rebuilding { what } => {
                format!("rebuilding  {} for {}", what.short(), what.network)
            }
            Self::Rebuilt {
                agreement, report, ..
            } => {
                let others: usize = report.others.iter().map(|other| other.observers).sum();
                let said = match agreement {
                    Agreement::First => "nobody had observed it before".to_owned(),
                    Agreement::Identical => {
                        format!("identical to {}", count(others, "other observation"))
                    }
                    Agreement::Differs => "DIFFERS from what others observed".to_owned(),
                };
                let counted = match report.principal {
                    Some(_) => "",
                    None => ", not counted",
                };
                format!(
                    "rebuilt     {} {} in {}: {said}; root {}; published{counted}",
                    report.name,
                    report.version,
                    lasting(report.seconds),
                    report.subject.root.short()
                )
            }
            Self::Failed {
                what,
                class,
                detail,
                again,
            } => {
                let again = again.map(|at| {
                    let seconds = at.since(unix_now());
                    format!("; again in {}", lasting(seconds))
                });
                format!(
                    "failed      {}: {}: {detail}{}",
                    what.short(),
                    class.in_words(),
                    again.unwrap_or_default()
                )
            }
            Self::Stopped { what } => {
                format!("stopped     {}: it stays in the queue", what.short())
            }
            Self::Waiting { waits } => match waits.first() {
                Some(_) => format!("waiting     {}", all(waits)),
                None => "waiting     no more".to_owned(),
            },
            Self::Note { text } => format!("note        {text}"),
        }
    }
}

impl What {
    pub(super) fn of(network: String, key: &ArtifactKey, why: Why) -> Self {
        Self {
            network,
            name: key.name.clone(),
            version: key.version.clone(),
            target: key.target.clone(),
            key_id: key.id(),
            why,
        }
    }

    fn short(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// Why something is rebuilt, for people.
pub(super) fn in_words(why: Why) -> &'static str {
    match why {
        Why::Called { .. } => "a dissent calls this principal's rank",
        Why::Assigned => "assigned to this principal",
        Why::Audit => "drawn for an audit",
    }
}

/// Reasons in a line.
pub(super) fn all(waits: &[Wait]) -> String {
    let waits: Vec<String> = waits.iter().map(Wait::to_string).collect();
    waits.join("; ")
}
