//! The commands, one module each.

pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod fetch;
pub(crate) mod installed;
pub(crate) mod log;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod project;
pub(crate) mod proofs;
pub(crate) mod repro;
pub(crate) mod run;
pub(crate) mod search;
pub(crate) mod shell;
pub(crate) mod store;
pub(crate) mod supply;
pub(crate) mod verify;

use qk_node::access::{Problem, ProblemKind};
use qk_node::build::BuildError;
use qk_node::programs::ProgramsError;
use qk_protocol::decide::{Decision, Effect, Line, Verdict};
use qk_protocol::hash::Root;

use crate::failure::{Failure, Kind};

/// A node's problem as the user sees it.
pub(crate) fn of_problem(problem: &Problem) -> Failure {
    let kind = match problem.kind {
        ProblemKind::NotTrusted => problem
            .verdict
            .as_ref()
            .map_or(Kind::Unproven, |verdict| of_decision(&verdict.decision)),
        ProblemKind::NoNetwork | ProblemKind::Registry | ProblemKind::NotAccepted => Kind::Unproven,
        ProblemKind::Target => Kind::NotFound,
        ProblemKind::Silent | ProblemKind::Download | ProblemKind::CannotHide => Kind::Network,
        ProblemKind::Corrupt => Kind::Corrupt,
        ProblemKind::NotJoined
        | ProblemKind::Address
        | ProblemKind::Manifest
        | ProblemKind::Malformed => Kind::Usage,
        ProblemKind::Full
        | ProblemKind::Locked
        | ProblemKind::Running
        | ProblemKind::NewerVersion
        | ProblemKind::Io
        | ProblemKind::Stopping
        | ProblemKind::NotAllowed
        | ProblemKind::Protocol
        | ProblemKind::Other => Kind::Other,
    };
    let why = problem.verdict.as_deref().map(describe);
    let message = match why {
        Some(why) => format!("{}: {why}", problem.message),
        None => problem.message.clone(),
    };
    let mut failure = Failure::new(kind, message);
    if let Some(verdict) = &problem.verdict {
        failure.explained = proofs::statements(&verdict.lines, &verdict.notes);
    }
    match hint(problem.kind, kind) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

pub(crate) fn of_decision(decision: &Decision) -> Kind {
    match decision {
        Decision::Trusted(_) => Kind::Other,
        Decision::Unproven(_) => Kind::Unproven,
        Decision::Disputed { .. } | Decision::Blocked { .. } => Kind::Disputed,
        Decision::Stale { .. } => Kind::Stale,
    }
}

/// A verdict in one line.
pub(crate) fn describe(verdict: &Verdict) -> String {
    match &verdict.decision {
        Decision::Trusted(trusted) => {
            let contested = contested(verdict).unwrap_or_default();
            format!("trusted{contested}: {}", trusted.subject.root)
        }
        Decision::Unproven(unproven) => format!("unproven: {}", unproven.missing),
        Decision::Disputed { roots } => {
            let roots = roots.iter().map(|root| who_got(*root, &verdict.lines));
            let notes = verdict.notes.iter().map(|note| format!("; {note}"));
            format!(
                "disputed: principals observed different artifacts ({}){}",
                roots.collect::<Vec<_>>().join(", "),
                notes.collect::<String>()
            )
        }
        Decision::Stale { why } => format!("stale: {why}"),
        Decision::Blocked { reason } => format!("blocked by the network: {reason}"),
    }
}

/// Who dissents from what is trusted all the same, for people.
fn contested(verdict: &Verdict) -> Option<String> {
    let mut lines = verdict.lines.iter();
    let dissent = lines.find(|line| line.effect == Effect::Dissents)?;
    let name = dissent.principal.as_deref().unwrap_or_default();
    Some(format!(", contested by {name}"))
}

/// A root and the principals that observed it.
fn who_got(root: Root, lines: &[Line]) -> String {
    let those = lines.iter().filter(|line| line.root == Some(root));
    let mut names: Vec<&str> = those.filter_map(|line| line.principal.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    format!("{} by {}", root.short(), names.join(" and "))
}

fn hint(problem: ProblemKind, kind: Kind) -> Option<&'static str> {
    match (problem, kind) {
        (ProblemKind::NoNetwork, _) => {
            Some("`qk join FILE|URL` joins a network, `qk network new NAME` makes one")
        }
        (ProblemKind::NotAccepted, _) => {
            Some("`qk network show` shows it, `qk network accept` lets it count")
        }
        (_, Kind::Unproven) => {
            Some("`qk proofs` shows what was observed; `--fallback build` builds it here")
        }
        (_, Kind::Disputed) => {
            Some("`qk proofs` shows who observed what; `qk build` builds it here")
        }
        (ProblemKind::Full, _) => Some("free some space; what was fetched is kept"),
        (ProblemKind::Silent, _) => Some(
            "are its nodes and the parent, if there is one, running and reachable from here? `qk network show` names the nodes; a cache can be named by `parent` in config.toml or QK_PARENT",
        ),
        _ => None,
    }
}

/// Executables that could not be made ready, as the user sees it.
pub(crate) fn of_programs(error: &ProgramsError) -> Failure {
    match error {
        ProgramsError::Unpack(error) => fetch::of_unpack(error),
        ProgramsError::Incompatible { name, error } => fetch::of_host(name, error),
        ProgramsError::Io { .. } => Failure::new(Kind::Other, error),
    }
}

/// A build that came to nothing, as the user sees it.
pub(crate) fn of_build(error: &BuildError) -> Failure {
    match error {
        BuildError::Failed { tail, reason, .. } => {
            let failure = Failure::new(Kind::BuildFailed, error).reason(*reason);
            if tail.is_empty() {
                failure
            } else {
                failure.hint(format!("the log ends with:\n{tail}"))
            }
        }
        BuildError::NotHere(_)
        | BuildError::Sandbox(_)
        | BuildError::Host(_)
        | BuildError::Rustc(_) => Failure::new(Kind::BuildFailed, error)
            .hint("`qk doctor` says what is missing, `qk setup` installs it"),
        BuildError::Source { .. } => Failure::new(Kind::Corrupt, error),
        BuildError::Cancelled | BuildError::Io { .. } => Failure::new(Kind::Other, error),
    }
}
