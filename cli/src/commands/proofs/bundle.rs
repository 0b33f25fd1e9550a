//! `qk proofs --export` and `--check`: bundles.

use std::path::Path;

use qk_node::home::Joined;
use qk_node::node::{policy_of, unix_now};
use qk_node::registry::Ask;
use qk_protocol::bundle::{BUNDLE_BYTES_MAX, Bundle, BundleError, Checked};
use qk_protocol::decide::{Decision, Verdict};
use qk_protocol::hash::{KeyId, NetworkId};
use qk_protocol::key::ArtifactKey;
use qk_protocol::policy::Policy;
use qk_protocol::time::UnixTime;
use serde::Serialize;

use super::{Looked, in_one_line, statements};
use crate::args::{CrateSpec, ProofsArgs};
use crate::commands::network::{read_bytes, write_bytes};
use crate::commands::of_decision;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, bytes, count};
use crate::session::{Session, failed};

/// What was written.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Exported {
    file: String,
    bytes: usize,
    network: String,
    network_id: NetworkId,
    key_id: KeyId,
    statements: usize,
    /// What the bundle says by itself.
    verdict: Verdict,
}

/// What a bundle came to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    network: String,
    network_id: NetworkId,
    /// Why the network's principals are believed; absent where nobody said that they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_network: Option<Trust>,
    manifest_version: u64,
    /// A newer version that is known here and counted as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    newer_version: Option<u64>,
    timestamp_issued: UnixTime,
    timestamp_expires: UnixTime,
    /// The time that everything was judged at: now, or the end of the timestamp.
    as_of: UnixTime,
    /// Whether that is the end of the timestamp.
    ended: bool,
    key: ArtifactKey,
    key_id: KeyId,
    /// What it comes to, a newer version included.
    result: Decision,
    /// By the manifest in the bundle, a line for each statement.
    verdict: Verdict,
    /// What is said of the result in one line.
    #[serde(skip)]
    summary: String,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Why a network's principals are believed.
#[derive(Debug, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
enum Trust {
    Joined,
    Named,
}

/// Writes what decides about a crate: by the network that trusts it, or the only one.
pub(super) fn export(session: &Session, path: &Path, looked: &[Looked<'_>]) -> Outcome {
    let of = |one: &Looked<'_>| {
        let verdict = one.report.verdict.as_ref();
        verdict.map(|verdict| verdict.decision.clone())
    };
    let trusted = looked
        .iter()
        .find(|one| matches!(of(one), Some(Decision::Trusted(_))));
    let one = match (trusted, looked) {
        (Some(one), _) | (None, [one]) => one,
        (None, []) => {
            return Err(Failure::new(
                Kind::Unproven,
                "no joined network serves its registry",
            ));
        }
        (None, _) => {
            let failure = Failure::new(Kind::Usage, "no network trusts it: name one to export");
            return Err(failure.hint("--network NAME"));
        }
    };
    let nothing = || Failure::new(Kind::Unproven, "nothing is stated about it");
    let candidate = one.candidate.as_ref().ok_or_else(nothing)?;
    let key = match of(one) {
        Some(Decision::Trusted(trusted)) => trusted.key,
        _ => {
            let network = &one.joined.network;
            let held = one.held.iter().map(|held| &held.statement);
            let mut about = held.filter(|one| {
                candidate.matches(one.key()) && network.principal(one.observer()).is_some()
            });
            about.next().ok_or_else(nothing)?.key().clone()
        }
    };
    let bundle = Bundle::new(&one.joined.network, &key, &one.held).map_err(|error| {
        let kind = match error {
            BundleError::Empty => Kind::Unproven,
            _ => Kind::Other,
        };
        Failure::new(kind, error)
    })?;
    let verdict = bundle
        .decide(None, None, unix_now())
        .map_err(failed)?
        .verdict;
    // A reader of the bundle would believe what this client does not.
    if let (Some(here), Decision::Trusted(_)) = (&one.report.verdict, &verdict.decision)
        && matches!(
            here.decision,
            Decision::Disputed { .. } | Decision::Blocked { .. }
        )
    {
        let message = format!(
            "a bundle would not show why it is refused here: {}",
            in_one_line(here)
        );
        return Err(Failure::new(of_decision(&here.decision), message));
    }
    let written = bundle.to_bytes().map_err(failed)?;
    write_bytes(path, &written)?;
    let exported = Exported {
        file: path.display().to_string(),
        bytes: written.len(),
        network: one.report.network.clone(),
        network_id: one.report.network_id,
        key_id: key.id(),
        statements: bundle.statements().len(),
        verdict,
    };
    session.output.result(&exported, |exported| {
        format!(
            "{}, {}: {}, {}\n  by itself: {}\n  `qk proofs --check {} --network {}` checks it",
            exported.file,
            bytes(exported.bytes as u64),
            count(exported.statements, "statement"),
            exported.network,
            in_one_line(&exported.verdict),
            exported.file,
            exported.network_id
        )
    });
    Ok(())
}

/// Decides from a bundle alone. Reads neither network nor registry nor store.
pub(super) fn check(
    session: &Session,
    path: &Path,
    about: Option<&CrateSpec>,
    args: &ProofsArgs,
) -> Outcome {
    let corrupt = |error: &dyn std::fmt::Display| {
        Failure::new(Kind::Corrupt, format!("{}: {error}", path.display()))
    };
    let read = read_bytes(path, BUNDLE_BYTES_MAX)?;
    let bundle = Bundle::parse(&read).map_err(|error| corrupt(&error))?;
    if let Some(about) = about {
        same_release(about, bundle.key()).map_err(|why| corrupt(&why))?;
    }
    let known = session.home.networks().map_err(failed)?;
    let id = bundle.network().id();
    let joined = known.iter().find(|one| one.network.id() == id);
    let trust = trust(args.network.as_deref(), id, joined).map_err(|why| corrupt(&why))?;
    let policy = own_policy(session, &bundle)?;
    let checked = bundle.decide(joined.map(|one| &one.network), Some(&policy), unix_now());
    let checked = checked.map_err(|error| corrupt(&error))?;
    let failure = failure(&checked, trust, id);
    let report = report(&bundle, &checked, trust, failure.as_ref());
    session.output.result(&report, describe);
    match failure {
        None => Ok(()),
        // The text says what was decided; what is wrong with the network is said at its end.
        Some(failure) => Err(failure.printed(session.output.json)),
    }
}

fn same_release(about: &CrateSpec, key: &ArtifactKey) -> Result<(), String> {
    let version = &key.version;
    let is_it = match &about.ask {
        Ask::Newest => true,
        Ask::Exact(asked) => asked.to_string() == *version,
        Ask::Matching(req) => version.parse().is_ok_and(|version| req.matches(&version)),
    };
    if about.name == key.name && is_it {
        return Ok(());
    }
    Err(format!("it is about {}, not about {about}", key.release()))
}

/// Whether the user believes the network: joined it, or named it here.
fn trust(
    named: Option<&str>,
    id: NetworkId,
    joined: Option<&Joined>,
) -> Result<Option<Trust>, String> {
    let Some(named) = named else {
        return Ok(joined.map(|_| Trust::Joined));
    };
    if named == id.to_string() {
        return Ok(Some(Trust::Named));
    }
    let name = |one: &&Joined| one.network.manifest().name == named;
    match joined.filter(name) {
        Some(_) => Ok(Some(Trust::Joined)),
        None => Err(format!(
            "it is of network {id}, not of {named}: name a joined network, or a whole fingerprint"
        )),
    }
}

/// What the user and the project here ask for beside the manifest.
fn own_policy(session: &Session, bundle: &Bundle) -> Outcome<Policy> {
    let config = session.home.config().map_err(failed)?;
    let own = policy_of(&config, bundle.network().manifest());
    Ok(match session.project_policy()? {
        Some(project) => own.stricter(&project),
        None => own,
    })
}

fn failure(checked: &Checked, trust: Option<Trust>, id: NetworkId) -> Option<Failure> {
    match (checked.decision(), trust) {
        (Decision::Trusted(_), Some(_)) => None,
        (Decision::Trusted(_), None) => {
            let message =
                format!("nobody here said that the principals of network {id} are to be believed");
            let failure = Failure::new(Kind::Unproven, message);
            Some(failure.hint("if they are: `--network FINGERPRINT`, or join the network"))
        }
        (decision, _) => {
            let message = in_one_line(checked.decisive());
            Some(Failure::new(of_decision(decision), message))
        }
    }
}

fn report(
    bundle: &Bundle,
    checked: &Checked,
    trusted_network: Option<Trust>,
    failure: Option<&Failure>,
) -> Report {
    let network = bundle.network();
    let timestamp = network.timestamp();
    Report {
        network: network.manifest().name.clone(),
        network_id: network.id(),
        trusted_network,
        manifest_version: network.manifest().version,
        newer_version: checked.newer.as_ref().map(|(version, _)| *version),
        timestamp_issued: timestamp.issued,
        timestamp_expires: timestamp.expires,
        as_of: checked.as_of,
        ended: checked.as_of == timestamp.expires,
        key: bundle.key().clone(),
        key_id: bundle.key().id(),
        result: checked.decision().clone(),
        verdict: checked.verdict.clone(),
        summary: in_one_line(checked.decisive()),
        exit_code: failure.map_or(0, |failure| failure.exit_code),
        error: failure.map(|failure| failure.error.clone()),
    }
}

fn describe(report: &Report) -> String {
    let key = &report.key;
    let whose = match report.trusted_network {
        Some(Trust::Joined) => "joined here",
        Some(Trust::Named) => "named by you",
        None => "NOT known here",
    };
    let when = match report.ended {
        false => "now".to_owned(),
        true => format!(
            "as of {}, when the bundle's timestamp ended",
            ago(unix_now().since(report.as_of))
        ),
    };
    let mut lines = vec![
        format!("{} for {}", key.release(), key.target),
        format!("  network     {}, {whose}", report.network),
        format!("  fingerprint {}", report.network_id),
        format!(
            "  judged      {when}, by version {} of its manifest",
            report.manifest_version
        ),
    ];
    if let Some(version) = report.newer_version {
        lines.push(format!(
            "              and by version {version}, which is known here"
        ));
    }
    lines.push(format!("  {}", report.summary));
    lines.extend(statements(&report.verdict.lines, &report.verdict.notes));
    if let Decision::Trusted(trusted) = &report.result {
        let subject = &trusted.subject;
        lines.push(format!(
            "  root        blake3 {}, {} bytes",
            subject.root, subject.size
        ));
        lines.push(format!("              sha256 {}", subject.sha256));
    }
    let flags = &key.flags;
    lines.push(format!("  key         {}", report.key_id));
    lines.push(format!("  source      sha256 {}", flags.source));
    let features: Vec<&str> = flags.features.iter().map(String::as_str).collect();
    if !features.is_empty() || !flags.default_features {
        let default = if flags.default_features {
            ""
        } else {
            ", without the default ones"
        };
        lines.push(format!("  features    {}{default}", features.join(", ")));
    }
    lines.push("  checked: every version of the manifest and its signatures, the timestamp, every statement's signature, the policy of the manifest and yours".to_owned());
    lines.push("  not checked: that the registry lists this source, that no dissent was left out of the bundle, what was taken back since, and the artifact itself (`b3sum` prints its root)".to_owned());
    lines.join("\n")
}
