//! One crate: resolve, decide, download or build, until there is an artifact.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;
use qk_node::access::{Access, FetchReport, Stage};
use qk_node::node::{FetchEvent, FetchSpec, From, Share, policy_of};
use qk_node::registry::Resolved;
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::Line;
use qk_protocol::hash::KeyId;
use qk_protocol::key::ArtifactKey;
use qk_protocol::policy::Policy;
use qk_protocol::statement::{Role, Subject};
use serde::Serialize;

use crate::args::{CrateSpec, Fallback, FlagArgs};
use crate::commands::build::{Built, Maker, Place, observed_by_principals, publish};
use crate::commands::of_problem;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

/// What is to be had, and how.
#[derive(Debug, Clone)]
pub(crate) struct Want<'a> {
    pub krate: &'a CrateSpec,
    pub flags: &'a FlagArgs,
    /// In order of preference; empty: this machine's.
    pub targets: &'a [String],
    pub fallback: Fallback,
    pub offline: bool,
    pub refresh: bool,
    /// Of the project that asks.
    pub policy: Option<Policy>,
}

/// Where an artifact came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    Store,
    Network,
    Built,
}

/// An artifact that may be used, however it was come by.
pub(crate) struct Ready {
    pub key: ArtifactKey,
    /// Absent for a crate without a lock of its own, which has no key.
    pub key_id: Option<KeyId>,
    pub subject: Subject,
    pub archive: PathBuf,
    pub how: How,
    pub providers: Vec<Share>,
    pub blocks_verified: u64,
    pub network: Option<String>,
    pub lines: Vec<Line>,
    pub rebuilt: bool,
    pub stages: Vec<Stage>,
    /// Holds the archive, if it is in no store.
    _directory: Option<tempfile::TempDir>,
}

/// Gets an artifact that the policy trusts, or one that was built here, where `want` allows that.
/// Nothing is installed. What a network vouches for is in the store then; what was built here is
/// there only if it was published.
pub(crate) async fn obtain(session: &Session, access: &Access, want: &Want<'_>) -> Outcome<Ready> {
    let begin = Instant::now();
    let resolved = session.resolve(want.krate, want.offline).await?;
    let resolve = stage("resolve", begin);
    let spec = FetchSpec {
        wanted: Session::wanted(&resolved, want.flags, want.targets.to_vec()),
        refresh: want.refresh,
        offline: want.offline,
        policy: want.policy.clone(),
    };
    let mut ready = match fetch(session, access, &spec).await {
        Ok(report) => {
            let begin = Instant::now();
            let rebuilt = rebuild(session, &spec, &resolved, &report).await?;
            let mut ready = fetched(report);
            ready.rebuilt = rebuilt;
            if rebuilt {
                ready.stages.push(stage("rebuild", begin));
            }
            ready
        }
        Err(failure)
            if want.fallback == Fallback::Build && may_build(&failure) && !want.offline =>
        {
            build(session, &spec, &resolved, failure).await?
        }
        Err(failure) => return Err(failure),
    };
    ready.stages.insert(0, resolve);
    Ok(ready)
}

/// Builds what nobody vouches for.
async fn build(
    session: &Session,
    spec: &FetchSpec,
    resolved: &Resolved,
    failure: Failure,
) -> Outcome<Ready> {
    session
        .output
        .note(format!("{}; building it here", failure.error));
    let alone = session.home.networks().is_ok_and(|all| all.is_empty());
    if let Some(hint) = failure.hint.filter(|_| alone) {
        session.output.note(format!("  hint: {hint}"));
    }
    let begin = Instant::now();
    let built = Maker::new(session)
        .await?
        .make(&spec.wanted, resolved)
        .await?;
    Ok(own(built, stage("build", begin)))
}

/// Gets what the policy trusts into the store, and shows how it goes.
pub(crate) async fn fetch(
    session: &Session,
    access: &Access,
    spec: &FetchSpec,
) -> Outcome<FetchReport> {
    let release = &spec.wanted.release;
    let spinner = session.output.spinner(&release.to_string());
    let bar = std::sync::OnceLock::<ProgressBar>::new();
    let output = session.output;
    let name = release.to_string();
    let on_event = |event: FetchEvent| match event {
        FetchEvent::Asking { network } => spinner.set_message(format!("asking {network}")),
        FetchEvent::Waiting => {
            let text = "another fetch is downloading it; waiting for that one";
            match spinner.is_hidden() {
                true => output.note(format!("{name}: {text}")),
                false => spinner.set_message(text),
            }
        }
        FetchEvent::Begin { here, size } => {
            spinner.finish_and_clear();
            let bar = bar.get_or_init(|| output.bytes_bar(size, &name));
            bar.set_position(here);
        }
        FetchEvent::Verified { bytes } => {
            if let Some(bar) = bar.get() {
                bar.inc(bytes);
            }
        }
        FetchEvent::ProviderFailed {
            provider,
            why,
            banned,
        } => {
            let banned = if banned { ", refused from now on" } else { "" };
            output.note(format!("note: provider {provider} {why}{banned}"));
        }
    };
    let report = access.fetch(spec, &on_event).await;
    spinner.finish_and_clear();
    if let Some(bar) = bar.get() {
        bar.finish_and_clear();
    }
    report.map_err(|problem| {
        let mut failure = of_problem(&problem);
        failure.error = format!("{release}: {}", failure.error);
        failure
    })
}

/// Rebuilds what was fetched from others, if the policy asks for it this time, and publishes what came
/// out. Where that is something else, it is not installed.
async fn rebuild(
    session: &Session,
    spec: &FetchSpec,
    resolved: &Resolved,
    report: &FetchReport,
) -> Outcome<bool> {
    let networks = session.home.networks().map_err(failed)?;
    let joined = networks
        .iter()
        .find(|one| one.network.id() == report.network);
    let config = session.home.config().map_err(failed)?;
    // A node of the whole system has joined networks that this user has not.
    let mut policy = match joined {
        Some(joined) => policy_of(&config, joined.network.manifest()),
        None => config.policy.clone().unwrap_or_default(),
    };
    if let Some(project) = &spec.policy {
        policy = policy.stricter(project);
    }
    if report.from != From::Network || !policy.rebuilds(rand::random()) {
        return Ok(false);
    }
    session.output.note(format!(
        "{}: rebuilding it here, as the policy asks for {} % of fetches",
        spec.wanted.release, policy.rebuild_percent
    ));
    let place = Place {
        network: Some(report.network),
        name: Some(report.network_name.clone()),
        principal: None,
        candidate: Candidate::of(&report.trusted.key),
    };
    let built = Maker::new(session).await?;
    let built = built.build(&place, &spec.wanted, resolved).await?;
    if joined.is_some() {
        let earlier = observed_by_principals(session, report.network, &spec.wanted.release).await?;
        let work = built.work_digest();
        let statement = built.observe(session, report.network, Role::Verifier, work, &earlier)?;
        publish(session, &built, statement).await?;
    }
    if built.subject != report.trusted.subject {
        let message = format!(
            "{}: rebuilt here it is {}, but what principals observed is {}",
            spec.wanted.release, built.subject.root, report.trusted.subject.root
        );
        let failure = Failure::new(Kind::Disputed, message);
        return Err(failure.hint("nothing was installed; `qk proofs` shows who observed what"));
    }
    Ok(true)
}

/// Whether building from source is an answer to this: not to a dispute, which somebody has to look
/// at, and not to something that is wrong here.
pub(crate) fn may_build(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        Kind::Unproven | Kind::NotFound | Kind::Network | Kind::Stale
    )
}

/// What was fetched.
pub(crate) fn fetched(report: FetchReport) -> Ready {
    Ready {
        key_id: Some(report.trusted.key_id),
        subject: report.trusted.subject,
        key: report.trusted.key,
        archive: report.archive,
        how: match report.from {
            From::Store => How::Store,
            From::Network => How::Network,
        },
        providers: report.providers,
        blocks_verified: report.blocks_verified,
        network: Some(report.network_name),
        lines: report.lines,
        rebuilt: false,
        stages: report.stages,
        _directory: None,
    }
}

fn own(built: Built, build: Stage) -> Ready {
    Ready {
        key_id: built.keyed.then(|| built.key.id()),
        key: built.key,
        subject: built.subject,
        archive: built.archive,
        how: How::Built,
        providers: Vec::new(),
        blocks_verified: 0,
        network: None,
        lines: Vec::new(),
        rebuilt: false,
        stages: vec![build],
        _directory: Some(built.collected.directory),
    }
}

pub(super) fn stage(name: &str, begin: Instant) -> Stage {
    Stage {
        name: name.to_owned(),
        seconds: begin.elapsed().as_secs_f64(),
    }
}
