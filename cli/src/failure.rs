//! How a command ends when it does not end well: a kind, a message, a hint, an exit code.

use std::fmt;

use qk_node::build::Reason;
use serde::Serialize;

use crate::output::Output;

/// Why a command failed. Each kind has one exit code, which scripts may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Other,
    Usage,
    NotFound,
    Unproven,
    Disputed,
    BuildFailed,
    Network,
    Corrupt,
    Incompatible,
    Stale,
}

impl Kind {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 10,
            Self::Unproven => 11,
            Self::Disputed => 12,
            Self::BuildFailed => 13,
            Self::Network => 14,
            Self::Corrupt => 15,
            Self::Incompatible => 16,
            Self::Stale => 17,
        }
    }
}

impl Kind {
    /// What to do next, where nothing better is known.
    fn next_step(self) -> &'static str {
        match self {
            Self::Other => "`qk doctor` says what is not in order here; QK_LOG=debug tells more",
            Self::Usage => {
                "`qk COMMAND --help` shows what it takes, `qk doctor` reads the configuration"
            }
            Self::NotFound => "`qk search` looks for crates, `qk store ls` lists what is here",
            Self::Unproven => "`qk proofs CRATE` shows what was observed, and what is missing",
            Self::Disputed => "`qk proofs CRATE` shows who observed what",
            Self::BuildFailed => "`qk doctor` says whether this machine has what building needs",
            Self::Network => "`qk doctor` looks whether nodes can be reached",
            Self::Corrupt => {
                "nothing of it was used; `qk store fsck` looks for damage on this machine"
            }
            Self::Incompatible => "`qk build` builds it for this machine, `--target` names another",
            Self::Stale => "`qk doctor` says which network's word ended, and why",
        }
    }

    /// The kind behind the exit code of another `qk`.
    pub(crate) fn from_exit_code(code: Option<i32>) -> Self {
        let all = [
            Self::Usage,
            Self::NotFound,
            Self::Unproven,
            Self::Disputed,
            Self::BuildFailed,
            Self::Network,
            Self::Corrupt,
            Self::Incompatible,
            Self::Stale,
        ];
        let same = |kind: &Self| code == Some(kind.exit_code().into());
        all.into_iter().find(same).unwrap_or(Self::Other)
    }
}

/// A failure as a person sees it.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Failure {
    pub kind: Kind,
    pub exit_code: u8,
    pub error: String,
    /// Why a build gave nothing: one of the classes of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip)]
    pub printed: bool,
    /// What each statement did to a decision, for who asks why.
    #[serde(skip)]
    pub explained: Vec<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, error: impl fmt::Display) -> Self {
        Self {
            kind,
            exit_code: kind.exit_code(),
            error: error.to_string(),
            reason: None,
            hint: Some(kind.next_step().to_owned()),
            printed: false,
            explained: Vec::new(),
        }
    }

    /// Marks a failure that the result shows already, so that it is not printed again.
    pub(crate) fn printed(mut self, printed: bool) -> Self {
        self.printed = printed;
        self
    }

    pub(crate) fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Where the message says all that there is to say.
    pub(crate) fn without_hint(mut self) -> Self {
        self.hint = None;
        self
    }

    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// What of a call failed, and what the whole call ends with.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Failures {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Failed {
    /// As it was asked for.
    #[serde(rename = "crate")]
    krate: String,
    #[serde(flatten)]
    failure: Failure,
}

impl Failures {
    /// One more; `at_once` says it where it happens, and not only in the end.
    pub(crate) fn add(
        &mut self,
        output: Output,
        krate: impl fmt::Display,
        failure: Failure,
        at_once: bool,
    ) {
        let shown = at_once && !output.json;
        if shown {
            output.failure(&failure);
        }
        self.failures.push(Failed {
            krate: krate.to_string(),
            failure: failure.printed(shown),
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    pub(crate) fn crates(&self) -> Vec<&str> {
        self.failures.iter().map(|one| &*one.krate).collect()
    }

    pub(crate) fn sort_by_key<K: Ord>(&mut self, key: impl Fn(&str) -> K) {
        self.failures.sort_by_key(|one| key(&one.krate));
    }

    /// What all of them come to: one keeps its own reason, several for different reasons give exit code 1.
    pub(crate) fn end(&mut self, what: &str) -> Option<Failure> {
        let failure = match &self.failures[..] {
            [] => return None,
            [one] => one.failure.clone(),
            [first, rest @ ..] => {
                let kind = first.failure.kind;
                let same = rest.iter().all(|other| other.failure.kind == kind);
                let kind = if same { kind } else { Kind::Other };
                Failure::new(kind, format!("{} {what} failed", self.failures.len()))
            }
        };
        self.exit_code = Some(failure.exit_code);
        self.error = Some(failure.error.clone());
        Some(failure)
    }
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_went_wrong_and_what_to_do_next() {
        let bare = Failure::new(Kind::Network, "none of the 3 known nodes answered");
        insta::assert_snapshot!(bare, @r"
        error: none of the 3 known nodes answered
          hint: `qk doctor` looks whether nodes can be reached
        ");
        let told = bare.hint("join another network");
        insta::assert_snapshot!(serde_json::to_string(&told).unwrap(), @r#"{"kind":"network","exit_code":14,"error":"none of the 3 known nodes answered","hint":"join another network"}"#);
        insta::assert_snapshot!(told.without_hint(), @"error: none of the 3 known nodes answered");
        let codes: Vec<u8> = (0..=17)
            .map(|code| Kind::from_exit_code(Some(code)).exit_code())
            .collect();
        insta::assert_snapshot!(format!("{codes:?}"), @"[1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 10, 11, 12, 13, 14, 15, 16, 17]");
    }
}
