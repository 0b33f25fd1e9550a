//! `qk fetch`: find, require proof, download, install.

mod dry;
mod elsewhere;
mod late;
mod one;
mod place;
pub(crate) mod report;
mod trust;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use qk_node::access::{Access, Stage};
use qk_node::deadline::{Clock, Source};
use qk_node::install::{InstallMeta, InstallOptions, InstallRoot, Listed};
use qk_node::node::NodeOptions;
use qk_node::registry::{Ask, Registry, RegistryError, RegistryOptions, Resolved};
use qk_protocol::policy::Policy;
use semver::Version;

use self::elsewhere::suggest;
use self::one::stage;
pub(crate) use self::one::{How, Ready, Want, fetch, fetched, may_build, obtain, show};
pub(crate) use self::place::{install_root, of_host, of_install, of_unpack};
use self::report::{Current, Done, Summary};
pub(crate) use self::trust::introduce;
use crate::args::{CrateSpec, FetchArgs, FlagArgs, HowArgs, OtherBuildArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{FRESH, Session, failed, host_target, of_registry};

/// Crates that are asked for in the registry at a time.
const RESOLVES_MAX: usize = 16;
/// Crates that are looked up and downloaded at a time.
const FETCHES_MAX: usize = 8;

/// One crate of a call.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub krate: CrateSpec,
    pub flags: FlagArgs,
    /// In order of preference; empty: this machine's.
    pub targets: Vec<String>,
    /// The executables that are wanted; empty: all.
    pub bins: BTreeSet<String>,
    /// Only a newer release than this one is wanted.
    pub newer_than: Option<Version>,
}

/// What holds for all crates of a call.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub how: &'a HowArgs,
    pub root: InstallRoot,
    pub options: InstallOptions,
    /// How long the registry is not asked again about a crate.
    pub fresh: Duration,
    /// Of the project that asks.
    pub policy: Option<Policy>,
    /// How long it may take.
    pub clock: Clock,
}

/// A crate, its release and what is there of it.
#[derive(Debug)]
struct Found {
    job: Job,
    resolved: Resolved,
    /// The version of it that is installed.
    before: Option<String>,
    resolve: Stage,
}

/// What came of a crate.
enum Came {
    Done(Box<Done>),
    Current(Current),
    Planned(Box<dry::Planned>),
}

/// Why there is no other profile.
const OTHER_PROFILE: &str = "artifacts are built as release; under another profile it is another artifact, which nobody observes";
/// Why there are no examples.
const NO_EXAMPLES: &str = "an artifact has the executables of a crate, and none of its examples";

pub(crate) async fn run(session: &Session, args: &FetchArgs) -> Outcome {
    as_everybody_builds(&args.other)?;
    if args.crates.is_empty() {
        return super::project::fetch(session, args).await;
    }
    let jobs = jobs_of(args)?;
    let call = Call {
        how: &args.how,
        root: install_root(args.how.root.as_deref())?,
        options: InstallOptions {
            force: args.force,
            track: !args.no_track,
        },
        fresh: match args.how.refresh {
            true => Duration::ZERO,
            false => FRESH,
        },
        policy: session.project_policy()?,
        clock: clock(session, &args.how)?,
    };
    carry_out(session, &call, jobs).await
}

/// Refuses what would be built otherwise than by all others, so that nobody could vouch for it.
fn as_everybody_builds(other: &OtherBuildArgs) -> Outcome {
    let profile = other.profile.as_deref().filter(|name| *name != "release");
    let (flag, why) = match (profile, &other.example[..]) {
        (Some(name), _) => (format!("--profile {name}"), OTHER_PROFILE),
        (None, _) if other.debug => ("--debug".to_owned(), OTHER_PROFILE),
        (None, [name, ..]) => (format!("--example {name}"), NO_EXAMPLES),
        (None, []) if other.examples => ("--examples".to_owned(), NO_EXAMPLES),
        (None, []) => return Ok(()),
    };
    let failure = Failure::new(Kind::Usage, format!("{flag}: {why}"));
    Err(failure.hint(format!("`cargo install CRATE {flag}` builds it here")))
}

/// The limits of a call, from now on.
pub(crate) fn clock(session: &Session, how: &HowArgs) -> Outcome<Clock> {
    let mut limits = session.config()?.fetch;
    limits.deadline = how.deadline.or(limits.deadline);
    Ok(Clock::start(limits))
}

fn jobs_of(args: &FetchArgs) -> Outcome<Vec<Job>> {
    let mut jobs: Vec<Job> = Vec::new();
    for krate in &args.crates {
        let mut krate = krate.clone();
        match (&args.req, &krate.ask) {
            (Some(req), Ask::Newest) => krate.ask = req.clone(),
            (Some(_), _) => {
                let message = format!("{krate} and --version both say which version");
                return Err(Failure::new(Kind::Usage, message));
            }
            (None, _) => {}
        }
        match jobs.iter().find(|job| job.krate.name == krate.name) {
            Some(job) if job.krate == krate => continue,
            Some(job) => {
                let message = format!("{} and {krate} cannot both be installed", job.krate);
                return Err(Failure::new(Kind::Usage, message));
            }
            None => {}
        }
        jobs.push(Job {
            krate,
            flags: args.flags.clone(),
            targets: args.target.clone(),
            bins: args.bin.iter().cloned().collect(),
            newer_than: None,
        });
    }
    Ok(jobs)
}

/// Fetches and installs, several at a time; a failure of one leaves the others alone.
pub(crate) async fn carry_out(session: &Session, call: &Call<'_>, jobs: Vec<Job>) -> Outcome {
    super::network::tell(session)?;
    let mut summary = Summary::of(&jobs);
    let take = |summary: &mut Summary, krate: &CrateSpec, came: Outcome<Came>| match came {
        Ok(came) => {
            session.output.outcome(came.describe(call.how));
            summary.add(came);
        }
        Err(failure) => {
            let failure = suggest(&krate.name, failure);
            for line in failure.explained.iter().filter(|_| call.how.explain) {
                session.output.note(line);
            }
            summary.fail(session, krate, failure);
        }
    };
    let mut left = Vec::new();
    // One that cannot be read is no reason not to look what there is; installing says what is wrong.
    let listed = call.root.list().ok();
    for (krate, found) in resolve_all(session, call, jobs).await? {
        match found {
            Ok(mut found) => match current(call, listed.as_ref(), &mut found) {
                Some(current) => take(&mut summary, &krate, Ok(Came::Current(current))),
                None => left.push(found),
            },
            Err(failure) => take(&mut summary, &krate, Err(failure)),
        }
    }
    if !left.is_empty() {
        if !call.how.dry_run {
            let registries = left.iter().map(|one| &*one.resolved.release.registry);
            introduce(session, call.policy.as_ref(), &registries.collect()).await?;
        }
        let begin = Instant::now();
        let options = NodeOptions {
            offline: call.how.offline,
            only: call.how.only.gateway.clone(),
            ..NodeOptions::default()
        };
        let access = session.access(options).await?;
        // The first crate bears what all of them need.
        let mut start = Some(stage("start", begin));
        let going = left.into_iter().map(|found| {
            let (access, start) = (&access, start.take());
            async move {
                let krate = found.job.krate.clone();
                (krate, one(session, access, call, found, start).await)
            }
        });
        let mut going = futures::stream::iter(going).buffer_unordered(FETCHES_MAX);
        while let Some((krate, came)) = going.next().await {
            take(&mut summary, &krate, came);
        }
        drop(going);
        access.shutdown().await;
    }
    summary.finish(session, call.how)
}

/// Finds the release of each, as cargo does, in their order.
async fn resolve_all(
    session: &Session,
    call: &Call<'_>,
    jobs: Vec<Job>,
) -> Outcome<Vec<(CrateSpec, Outcome<Found>)>> {
    let options = RegistryOptions {
        fresh: call.fresh,
        ..registry_options(call.how)
    };
    let registry = Arc::new(Registry::open(&options).map_err(|error| of_registry(&error))?);
    let all = jobs.into_iter().map(|job| {
        let registry = registry.clone();
        async move {
            let krate = job.krate.clone();
            (krate, resolve(session, call.clock, registry, job).await)
        }
    });
    Ok(futures::stream::iter(all)
        .buffered(RESOLVES_MAX)
        .collect()
        .await)
}

pub(crate) fn registry_options(how: &HowArgs) -> RegistryOptions {
    RegistryOptions {
        name: how.registry.registry.clone(),
        index: how.registry.index.clone(),
        offline: how.offline,
        ..RegistryOptions::default()
    }
}

async fn resolve(
    session: &Session,
    clock: Clock,
    registry: Arc<Registry>,
    job: Job,
) -> Outcome<Found> {
    let begin = Instant::now();
    let krate = job.krate.clone();
    let asked = tokio::task::spawn_blocking(move || {
        match (registry.resolve(&krate.name, &krate.ask), &krate.ask) {
            // Who asks for exactly this one gets it, and a warning.
            (Err(RegistryError::Yanked { .. }), Ask::Exact(version)) => {
                registry.release(&krate.name, version)
            }
            (resolved, _) => resolved,
        }
    });
    let resolved = late::within(clock, Source::Registry, &job.krate.name, asked).await?;
    let resolved = resolved.map_err(failed)?;
    let resolved = resolved.map_err(|error| of_registry(&error))?;
    if resolved.yanked {
        session.output.note(format!(
            "warning: {} was yanked from its registry; it is taken because exactly it was asked for",
            resolved.release
        ));
    }
    Ok(Found {
        job,
        resolved,
        before: None,
        resolve: stage("resolve", begin),
    })
}

/// What is installed already, if there is nothing to do.
fn current(call: &Call<'_>, listed: Option<&Listed>, found: &mut Found) -> Option<Current> {
    let listed = listed.filter(|_| call.options.track)?;
    let (job, release) = (&found.job, &found.resolved.release);
    let there = listed.packages().into_iter();
    let there = there.filter(|one| one.name == release.name && one.source == release.registry);
    found.before = there.map(|one| one.version).next_back();
    let version: Option<Version> = release.version.parse().ok();
    if let (Some(installed), true) = (&job.newer_than, version <= job.newer_than) {
        return Some(Current {
            name: release.name.clone(),
            version: installed.to_string(),
            installed: Vec::new(),
        });
    }
    if call.options.force || call.how.refresh {
        return None;
    }
    let bins = targets(job).iter().find_map(|target| {
        let meta = meta(job, target, String::new());
        listed.current(release, &meta, &job.bins)
    })?;
    Some(Current {
        name: release.name.clone(),
        version: release.version.clone(),
        installed: bins.iter().map(|bin| call.root.bin().join(bin)).collect(),
    })
}

/// The targets of a job, most wanted first.
fn targets(job: &Job) -> Vec<String> {
    match job.targets.is_empty() {
        true => vec![host_target()],
        false => job.targets.clone(),
    }
}

/// What cargo's files are to say of it.
fn meta(job: &Job, target: &str, rustc: String) -> InstallMeta {
    let features = job.flags.features.iter();
    InstallMeta {
        version_req: match &job.krate.ask {
            Ask::Newest => None,
            Ask::Exact(version) => Some(format!("={version}")),
            Ask::Matching(req) => Some(req.to_string()),
        },
        features: features
            .flat_map(|some| some.split_whitespace())
            .map(str::to_owned)
            .collect(),
        all_features: job.flags.all_features,
        no_default_features: job.flags.no_default_features,
        profile: "release".to_owned(),
        target: target.to_owned(),
        rustc,
        partial: !job.bins.is_empty(),
    }
}

async fn one(
    session: &Session,
    access: &Access,
    call: &Call<'_>,
    found: Found,
    start: Option<Stage>,
) -> Outcome<Came> {
    let Found { job, resolved, .. } = &found;
    let mut targets = targets(job);
    loop {
        let want = Want {
            flags: &job.flags,
            targets: &targets,
            registry: &call.how.registry,
            fallback: call.how.fallback,
            jobs: call.how.jobs,
            offline: call.how.offline,
            refresh: call.how.refresh,
            policy: call.policy.clone(),
            clock: call.clock,
        };
        if call.how.dry_run {
            let planned = dry::plan(session, access, &want, resolved);
            let what = resolved.release.to_string();
            let planned = late::within(call.clock, Source::Lookup, &what, planned).await??;
            let planned = Box::new(planned.over(found.before));
            return Ok(Came::Planned(planned));
        }
        let mut ready = obtain(session, access, &want, resolved).await?;
        let (mut stages, target) = (Vec::from_iter(start.clone()), ready.key.target.clone());
        stages.push(found.resolve.clone());
        ready.stages.splice(0..0, stages);
        match place::place(session, call, job, &mut ready).await {
            Ok(installed) => {
                let done = Done::of(ready, installed, resolved.yanked, found.before);
                return Ok(Came::Done(Box::new(done)));
            }
            Err(failure) => {
                let at = targets.iter().position(|one| *one == target);
                let others = at.map_or(Vec::new(), |at| targets.split_off(at + 1));
                if failure.kind != Kind::Incompatible || others.is_empty() {
                    return Err(failure);
                }
                session.output.note(format!(
                    "note: {} for {target}: {}; trying {}",
                    resolved.release,
                    failure.error,
                    others.join(", ")
                ));
                targets = others;
            }
        }
    }
}
