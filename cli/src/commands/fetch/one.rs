//! One crate: resolve, decide, download or build, until there is an artifact.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;
use qk_node::access::{Access, FetchReport, Problem, Stage};
use qk_node::deadline::{Clock, Source};
use qk_node::home::Joined;
use qk_node::node::{FetchEvent, FetchSpec, From, Share, policy_of};
use qk_node::registry::Resolved;
use qk_protocol::assign::Ranking;
use qk_protocol::candidate::Candidate;
use qk_protocol::hash::{KeyId, PrincipalId};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::PrincipalRole;
use qk_protocol::policy::{Count, Policy};
use qk_protocol::statement::{Role, Subject};
use serde::Serialize;

use super::late::{within, within_both};
use super::report::Word;
use crate::args::{Fallback, FlagArgs, RegistryArgs};
use crate::commands::build::{Built, Maker, Place, observed_by_principals, publish};
use crate::commands::of_problem;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::Output;
use crate::session::{Session, failed};

/// What is to be had, and how.
#[derive(Debug, Clone)]
pub(crate) struct Want<'a> {
    pub flags: &'a FlagArgs,
    /// In order of preference; empty: this machine's.
    pub targets: &'a [String],
    /// Where the sources are from.
    pub registry: &'a RegistryArgs,
    pub fallback: Fallback,
    /// Of a build.
    pub jobs: Option<u32>,
    pub offline: bool,
    pub refresh: bool,
    /// Of the project that asks.
    pub policy: Option<Policy>,
    /// How long it may take.
    pub clock: Clock,
}

/// Where an artifact came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    pub word: Word,
    pub rebuilt: bool,
    pub stages: Vec<Stage>,
    /// Holds the archive, if it is in no store.
    _directory: Option<tempfile::TempDir>,
}

/// One build at a time: each takes all processors.
static BUILDS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Gets an artifact of a release that the policy trusts, or one that was built here, where `want`
/// allows that. Nothing is installed. What a network vouches for is in the store then; what was built
/// here is not.
pub(crate) async fn obtain(
    session: &Session,
    access: &Access,
    want: &Want<'_>,
    resolved: &Resolved,
) -> Outcome<Ready> {
    let spec = FetchSpec {
        wanted: Session::wanted(resolved, want.flags, want.targets.to_vec()),
        refresh: want.refresh,
        offline: want.offline,
        network: None,
        policy: want.policy.clone(),
    };
    match fetch(session, access, &spec, want.clock).await {
        Ok(report) => {
            let begin = Instant::now();
            let rebuilt = rebuild(session, want, &spec, resolved, &report).await?;
            let mut ready = fetched(session, report)?;
            ready.rebuilt = rebuilt;
            if rebuilt {
                ready.stages.push(stage("rebuild", begin));
            }
            Ok(ready)
        }
        Err(failure)
            if want.fallback == Fallback::Build
                && may_build(&failure)
                && !want.offline
                && !want.clock.is_over() =>
        {
            build(session, want, &spec, resolved, failure).await
        }
        Err(failure) => Err(failure),
    }
}

/// Builds what nobody vouches for.
async fn build(
    session: &Session,
    want: &Want<'_>,
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
    let building = async {
        let _alone = BUILDS.lock().await;
        let mut maker = Maker::new(session).await?;
        maker.registry = want.registry.clone();
        maker.set_jobs(want.jobs);
        maker.make(&spec.wanted, resolved).await
    };
    let what = spec.wanted.release.to_string();
    let built = within(want.clock, Source::Build, &what, building).await??;
    Ok(own(built, stage("build", begin)))
}

/// Gets what the policy trusts into the store, and shows how it goes.
pub(crate) async fn fetch(
    session: &Session,
    access: &Access,
    spec: &FetchSpec,
    clock: Clock,
) -> Outcome<FetchReport> {
    let name = spec.wanted.release.to_string();
    show(session.output, &name, clock, async |on_event| {
        access.fetch(spec, on_event).await
    })
    .await
}

/// Shows how a fetch goes, and ends it when its time is over.
pub(crate) async fn show(
    output: Output,
    name: &str,
    clock: Clock,
    fetching: impl AsyncFnOnce(&(dyn Fn(FetchEvent) + Send + Sync)) -> Result<FetchReport, Problem>,
) -> Outcome<FetchReport> {
    let spinner = output.spinner(name);
    let bar = std::sync::OnceLock::<ProgressBar>::new();
    let begun = tokio::sync::Notify::new();
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
            begun.notify_one();
            spinner.finish_and_clear();
            let bar = bar.get_or_init(|| output.bytes_bar(size, name));
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
    let report = within_both(clock, name, fetching(&on_event), begun.notified()).await;
    spinner.finish_and_clear();
    if let Some(bar) = bar.get() {
        bar.finish_and_clear();
    }
    report?.map_err(|problem| {
        let mut failure = of_problem(&problem);
        failure.error = format!("{name}: {}", failure.error);
        failure
    })
}

/// Rebuilds what was fetched from others, if the policy asks for it this time, and publishes what came
/// out. Where that is something else, it is not installed.
async fn rebuild(
    session: &Session,
    want: &Want<'_>,
    spec: &FetchSpec,
    resolved: &Resolved,
    report: &FetchReport,
) -> Outcome<bool> {
    let networks = session.home.networks().map_err(failed)?;
    let joined = networks
        .iter()
        .find(|one| one.network.id() == report.network);
    let config = session.config()?;
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
    let building = async {
        let _alone = BUILDS.lock().await;
        let mut maker = Maker::new(session).await?;
        maker.registry = want.registry.clone();
        maker.set_jobs(want.jobs);
        maker.build(&place, &spec.wanted, resolved).await
    };
    let what = spec.wanted.release.to_string();
    let built = within(want.clock, Source::Build, &what, building).await??;
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

/// How many principals the policy could count for a key.
pub(super) fn electorate(session: &Session, joined: &Joined, key: &ArtifactKey) -> Outcome<usize> {
    let config = session.config()?;
    let manifest = joined.network.manifest();
    let policy = policy_of(&config, manifest);
    Ok(match policy.count {
        Count::Assigned => Ranking::of(&joined.network, &Candidate::of(key))
            .committee()
            .len(),
        Count::Any => {
            let builds = |role: &PrincipalRole| !matches!(role, PrincipalRole::Mirror);
            let counts =
                |id: &PrincipalId| policy.principals.is_empty() || policy.principals.contains(id);
            let all = manifest.principals.iter();
            all.filter(|one| one.roles.iter().any(builds) && counts(&one.id))
                .count()
        }
    })
}

/// What was fetched.
pub(crate) fn fetched(session: &Session, report: FetchReport) -> Outcome<Ready> {
    let networks = session.home.networks().map_err(failed)?;
    // A node of the whole system has joined networks that this user has not.
    let joined = networks
        .iter()
        .find(|one| one.network.id() == report.network);
    let principals = joined.map(|joined| electorate(session, joined, &report.trusted.key));
    Ok(Ready {
        word: Word::of(
            report.network_name,
            principals.transpose()?,
            &report.lines,
            &report.notes,
        ),
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
        rebuilt: false,
        stages: report.stages,
        _directory: None,
    })
}

fn own(built: Built, build: Stage) -> Ready {
    Ready {
        key_id: built.keyed.then(|| built.key.id()),
        word: Word::default(),
        key: built.key,
        subject: built.subject,
        archive: built.archive,
        how: How::Built,
        providers: Vec::new(),
        blocks_verified: 0,
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
