//! `qk fetch`: find, require proof, download, install.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use qk_node::access::{Access, FetchReport, Stage};
use qk_node::install::{Incompatible, InstallError, InstallMeta, InstallRoot, runs_here};
use qk_node::node::{FetchEvent, FetchSpec, From, NodeOptions, Share, policy_of, unix_now};
use qk_node::registry::{Registry, RegistryOptions, Resolved};
use qk_node::unpack::{UnpackError, unpack};
use qk_protocol::archive::EXECUTABLES_PREFIX;
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::{Effect, Line};
use qk_protocol::hash::{KeyId, Root, Sha256};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::{Role, Subject};
use serde::Serialize;

use super::build::{Built, Maker, Place, observed_by_principals, publish};
use super::of_problem;
use crate::args::{CrateSpec, Fallback, FetchArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, bytes};
use crate::session::{Session, failed, of_registry};

/// What happened to the crates of one call.
#[derive(Debug, Serialize)]
struct Summary {
    crates: Vec<Done>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failed {
    #[serde(rename = "crate")]
    krate: String,
    #[serde(flatten)]
    failure: Failure,
}

/// One crate that is installed now.
#[derive(Debug, Serialize)]
struct Done {
    name: String,
    version: String,
    how: How,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    observations: Vec<Line>,
    /// The principal that observed another artifact, where the policy trusts this one all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    contested_by: Option<String>,
    /// Whether it was rebuilt here, as the policy asks for a share of fetches; it came out the same.
    rebuilt: bool,
    archive: PathBuf,
    installed: Vec<PathBuf>,
    stages: Vec<Stage>,
}

/// Where an artifact came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Store,
    Network,
    Built,
}

pub(crate) async fn run(session: &Session, args: &FetchArgs) -> Outcome {
    let options = NodeOptions {
        offline: args.offline,
        ..NodeOptions::default()
    };
    super::network::tell(session)?;
    let begin = Instant::now();
    let access = session.access(options).await?;
    // The first crate bears what all of them need.
    let mut start = Some(stage("start", begin));
    let mut summary = Summary {
        crates: Vec::new(),
        failures: Vec::new(),
        exit_code: None,
        error: None,
    };
    for krate in &args.crates {
        let start = start.take();
        match one(session, &access, args, krate, start).await {
            Ok(done) => {
                session.output.outcome(describe(&done, args.timings));
                summary.crates.push(done);
            }
            Err(failure) => {
                // Several: each where it happens, not all at the end.
                let shown = args.crates.len() > 1 && !session.output.json;
                if shown {
                    session.output.failure(&failure);
                }
                let failure = failure.printed(shown);
                summary.failures.push(Failed {
                    krate: krate.to_string(),
                    failure,
                });
            }
        }
    }
    access.shutdown().await;
    finish(session, summary)
}

/// One failure fails with its own reason, several for different reasons with exit code 1; what was
/// installed stays installed.
fn finish(session: &Session, mut summary: Summary) -> Outcome {
    let failure = match &summary.failures[..] {
        [] => None,
        [one] => Some(one.failure.clone()),
        [first, rest @ ..] => {
            let same = rest
                .iter()
                .all(|other| other.failure.kind == first.failure.kind);
            let kind = if same {
                first.failure.kind
            } else {
                Kind::Other
            };
            Some(Failure::new(
                kind,
                format!("{} crates failed", summary.failures.len()),
            ))
        }
    };
    summary.exit_code = failure.as_ref().map(|failure| failure.exit_code);
    summary.error = failure.as_ref().map(|failure| failure.error.clone());
    if session.output.json {
        session.output.document(&summary);
    }
    match failure {
        Some(failure) => {
            let printed = failure.printed || session.output.json;
            Err(failure.printed(printed))
        }
        None => Ok(()),
    }
}

async fn one(
    session: &Session,
    access: &Access,
    args: &FetchArgs,
    krate: &CrateSpec,
    start: Option<Stage>,
) -> Outcome<Done> {
    let mut stages = Vec::from_iter(start);
    let begin = Instant::now();
    let resolved = session.resolve(krate, args.offline).await?;
    stages.push(stage("resolve", begin));
    let wanted = Session::wanted(&resolved, &args.flags, args.target.clone());
    let spec = FetchSpec {
        wanted,
        refresh: args.refresh,
        offline: args.offline,
        policy: session.project_policy()?,
    };
    match fetch(session, access, &spec).await {
        Ok(report) => {
            stages.extend(report.stages.iter().cloned());
            let begin = Instant::now();
            let rebuilt = rebuild(session, &spec, &resolved, &report).await?;
            if rebuilt {
                stages.push(stage("rebuild", begin));
            }
            let mut done = Ready {
                rebuilt,
                ..fetched(report)
            };
            place(session, args, &resolved, &mut done, &mut stages).await?;
            Ok(done.finish(stages))
        }
        Err(failure)
            if args.fallback == Fallback::Build && may_build(&failure) && !args.offline =>
        {
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
                .make(&spec.wanted, &resolved)
                .await?;
            stages.push(stage("build", begin));
            let mut done = own(built);
            place(session, args, &resolved, &mut done, &mut stages).await?;
            Ok(done.finish(stages))
        }
        Err(failure) => Err(failure),
    }
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
fn may_build(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        Kind::Unproven | Kind::NotFound | Kind::Network | Kind::Stale
    )
}

/// What is to be placed, however it was come by.
struct Ready {
    key: ArtifactKey,
    /// Absent for a crate without a lock of its own, which has no key.
    key_id: Option<KeyId>,
    subject: Subject,
    archive: PathBuf,
    how: How,
    providers: Vec<Share>,
    blocks_verified: u64,
    network: Option<String>,
    lines: Vec<Line>,
    rebuilt: bool,
    installed: Vec<PathBuf>,
    /// Holds the archive, if it is in no store.
    _directory: Option<tempfile::TempDir>,
}

impl Ready {
    fn finish(self, stages: Vec<Stage>) -> Done {
        Done {
            name: self.key.name,
            version: self.key.version,
            how: self.how,
            source: self.key.flags.source,
            lock: self.key_id.map(|_| self.key.flags.lock),
            key_id: self.key_id,
            root: self.subject.root,
            bytes: self.subject.size,
            providers: self.providers,
            blocks_verified: self.blocks_verified,
            network: self.network,
            contested_by: self
                .lines
                .iter()
                .find(|line| line.effect == Effect::Dissents)
                .and_then(|line| line.principal.clone()),
            rebuilt: self.rebuilt,
            observations: self
                .lines
                .into_iter()
                .filter(|line| line.root.is_some())
                .collect(),
            archive: self.archive,
            installed: self.installed,
            stages,
        }
    }
}

fn fetched(report: FetchReport) -> Ready {
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
        installed: Vec::new(),
        _directory: None,
    }
}

fn own(built: Built) -> Ready {
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
        installed: Vec::new(),
        _directory: Some(built.collected.directory),
    }
}

async fn fetch(session: &Session, access: &Access, spec: &FetchSpec) -> Outcome<FetchReport> {
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

/// Unpacks, checks that it runs here, and installs. Off this thread, for it may wait for another
/// installation to end, and can be interrupted meanwhile.
async fn place(
    session: &Session,
    args: &FetchArgs,
    resolved: &Resolved,
    ready: &mut Ready,
    stages: &mut Vec<Stage>,
) -> Outcome {
    let begin = Instant::now();
    let work = session.home.work();
    std::fs::create_dir_all(&work).map_err(failed)?;
    // Removed when this future is dropped, whatever the other thread is doing.
    let directory = tempfile::tempdir_in(&work).map_err(failed)?;
    let (archive, into) = (ready.archive.clone(), directory.path().to_owned());
    let (subject, key) = (ready.subject, ready.key.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpacked = unpack(&archive, &subject, &key, &into);
        let unpacked = unpacked.map_err(|error| of_unpack(&error))?;
        for (name, executable) in &unpacked.contents.executables {
            runs_here(executable).map_err(|error| of_host(name, &error))?;
        }
        Outcome::Ok(unpacked)
    });
    let unpacked = unpacked.await.map_err(failed)??;
    stages.push(stage("unpack", begin));
    let begin = Instant::now();
    let root = install_root(args.root.as_deref())?;
    let (to, release, force) = (root.clone(), resolved.release.clone(), args.force);
    let meta = meta(args, &ready.key);
    let installed =
        tokio::task::spawn_blocking(move || to.install(&release, &unpacked.bins, &meta, force));
    let installed = installed.await.map_err(failed)?;
    ready.installed = installed.map_err(|error| of_install(&error))?.executables;
    stages.push(stage("install", begin));
    if args.root.is_none() && !root.is_on_path(&std::env::var_os("PATH").unwrap_or_default()) {
        session
            .output
            .note(format!("note: {} is not on PATH", root.bin().display()));
    }
    Ok(())
}

fn install_root(explicit: Option<&Path>) -> Outcome<InstallRoot> {
    let registry = Registry::open(&RegistryOptions {
        offline: true,
        ..RegistryOptions::default()
    });
    let registry = registry.map_err(|error| of_registry(&error))?;
    InstallRoot::discover(explicit, registry.config()).map_err(|error| of_install(&error))
}

fn meta(args: &FetchArgs, key: &ArtifactKey) -> InstallMeta {
    let rustc = &key.flags.rustc;
    let asked = args.crates.iter().find(|krate| krate.name == key.name);
    InstallMeta {
        version_req: asked
            .and_then(|krate| krate.version.as_ref())
            .map(|version| format!("={version}")),
        features: key.flags.features.clone(),
        all_features: args.flags.all_features,
        no_default_features: args.flags.no_default_features,
        profile: key.flags.profile.clone(),
        target: key.target.clone(),
        rustc: format!(
            "rustc {} ({})\nbinary: rustc\ncommit-hash: {}\nhost: {}\nrelease: {}\n",
            rustc.version,
            &rustc.commit_hash[..9],
            rustc.commit_hash,
            rustc.host,
            rustc.version
        ),
    }
}

fn of_unpack(error: &UnpackError) -> Failure {
    match error {
        UnpackError::Archive { .. }
        | UnpackError::OtherArchive { .. }
        | UnpackError::OtherKey(_)
        | UnpackError::Executable { .. } => Failure::new(Kind::Corrupt, error),
        UnpackError::Io { .. } => Failure::new(Kind::Other, error),
    }
}

fn of_host(name: &str, error: &Incompatible) -> Failure {
    let name = name.strip_prefix(EXECUTABLES_PREFIX).unwrap_or(name);
    Failure::new(Kind::Incompatible, format!("{name}: {error}"))
}

fn of_install(error: &InstallError) -> Failure {
    Failure::new(Kind::Other, error)
}

fn stage(name: &str, begin: Instant) -> Stage {
    Stage {
        name: name.to_owned(),
        seconds: begin.elapsed().as_secs_f64(),
    }
}

/// One line a crate, as a person reads it: what, on whose word, where.
fn describe(done: &Done, timings: bool) -> String {
    let counting: Vec<&Line> = done
        .observations
        .iter()
        .filter(|line| line.effect == Effect::Counts)
        .collect();
    let newest = counting.iter().map(|line| line.at).max();
    let word = match (done.how, newest) {
        (How::Built, _) => "built here".to_owned(),
        (How::Store | How::Network, Some(newest)) => {
            format!(
                "{} principals agree, newest {}",
                counting.len(),
                ago(unix_now().since(newest))
            )
        }
        (How::Store | How::Network, None) => "your own build".to_owned(),
    };
    let paths: Vec<_> = done
        .installed
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let rebuilt = match done.rebuilt {
        true => ", rebuilt here: identical",
        false => "",
    };
    let contested = match &done.contested_by {
        Some(name) => format!("\n  CONTESTED: {name} observed another artifact; see `qk proofs`"),
        None => String::new(),
    };
    let mut text = format!(
        "{} {}  {}  {word}{rebuilt}{contested}\n  installed {}",
        done.name,
        done.version,
        bytes(done.bytes),
        paths.join(", ")
    );
    if timings {
        let all: BTreeMap<usize, &Stage> = done.stages.iter().enumerate().collect();
        for stage in all.values() {
            text.push_str(&format!(
                "\n  {:>10}  {:7.1} ms",
                stage.name,
                stage.seconds * 1000.0
            ));
        }
    }
    text
}
