//! `qk build`, and what `fetch` and `verify` build with.

use std::path::PathBuf;

use indicatif::ProgressBar;
use qk_node::build::{
    self, BuildError, Builder, Cancel, Collected, Event, Findings, Options, Order, RustToolchain,
};
use qk_node::node::{NodeOptions, Published, unix_now};
use qk_node::registry::{Registry, RegistryOptions, Resolved, lock_digest};
use qk_protocol::candidate::{Candidate, Wanted};
use qk_protocol::decide::Held;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{KeyId, NetworkId, PublicKey, Sha256, StatementId};
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::statement::{
    Body, Environment, Failure as Tried, Observation, Reason, Role, Statement, Subject,
};
use qk_protocol::work::WorkDigest;
use serde::Serialize;

use super::{of_build, of_problem, proofs, repro};
use crate::args::{BuildArgs, RegistryArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{bytes, count};
use crate::session::{Session, failed, of_registry};

/// What `qk build` says.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    name: String,
    version: String,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<KeyId>,
    #[serde(flatten)]
    subject: Subject,
    seconds: u64,
    /// What it was built on; none of it enters the artifact.
    environment: build::Environment,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observer: Option<PublicKey>,
    /// Whose observation it is in the network; a stranger's does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statement: Option<StatementId>,
    /// What the second build came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<Findings>,
    /// What the observation says about the work of earlier ones; absent if it has no work digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    work: Option<WorkSaid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Published>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(session: &Session, args: &BuildArgs) -> Outcome {
    let resolved = session.resolve(&args.krate, false).await?;
    let wanted = Session::wanted(
        &resolved,
        &args.flags,
        args.target.iter().cloned().collect(),
    );
    let mut maker = Maker::new(session).await?;
    maker.set_jobs(args.jobs);
    if let Some(root) = &args.sandbox_root {
        maker.options.root = std::path::absolute(root).map_err(failed)?;
    }
    let place = Place::choose(session, &wanted)?;
    let order = maker.order(&place, &wanted, &resolved).await?;
    let publishing = match (&place.network, args.no_publish, &order.lock) {
        (Some(network), false, Some(_)) => Some(*network),
        _ => None,
    };
    let gated = publishing.is_some() && !args.no_gate;
    let (built, gate) = match gated {
        false => (maker.carry_out(order).await?, None),
        true => {
            let twice = maker.twice(order, None).await?;
            let twice = twice.map_err(|error| of_build(&error))?;
            (twice.first, Some(twice.findings))
        }
    };
    if let Some(path) = &args.output {
        std::fs::copy(&built.archive, path)
            .map_err(|error| Failure::new(Kind::Other, format!("{}: {error}", path.display())))?;
    }
    if let Some(findings) = gate.as_ref().filter(|findings| !findings.same_root) {
        return Err(not_reproducible(&built.key, findings));
    }
    let mut report = Report {
        name: built.key.name.clone(),
        version: built.key.version.clone(),
        target: built.key.target.clone(),
        key_id: built.keyed.then(|| built.key.id()),
        subject: built.subject,
        seconds: built.collected.finished.since(built.collected.started),
        environment: built.collected.environment.clone(),
        network: place.name.clone(),
        observer: None,
        principal: None,
        statement: None,
        work: None,
        gate,
        published: None,
        output: args.output.clone(),
    };
    if let Some(network) = publishing {
        let same_work = report.gate.as_ref().and_then(|findings| findings.same_work);
        let digest = built.work_digest().filter(|_| same_work == Some(true));
        let earlier = match digest {
            Some(_) => observed_by_principals(session, network, &wanted.release).await?,
            None => Vec::new(),
        };
        let statement = built.observe(session, network, Role::Publisher, digest, &earlier)?;
        report.work = WorkSaid::of(&statement);
        report.principal = place.principal.clone();
        report.observer = Some(statement.observer());
        report.statement = Some(statement.id());
        report.published = Some(publish(session, &built, statement).await?);
    }
    let unsigned = match (
        &report.statement,
        built.keyed,
        &place.network,
        args.no_publish,
    ) {
        (Some(_), ..) => None,
        (None, false, ..) => {
            Some("the crate has no Cargo.lock: it has no artifact key, and nothing is signed")
        }
        (None, true, _, true) => Some("nothing was signed or published, as asked for"),
        (None, true, None, false) => Some("no network is joined: nothing was signed or published"),
        (None, true, Some(_), false) => None,
    };
    session.output.result(&report, describe);
    if let Some(why) = unsigned {
        session.output.note(format!("note: {why}"));
    }
    if report.statement.is_some() && report.work.is_none() {
        let why = match &report.gate {
            None => "there was no second build",
            Some(findings) if findings.same_work.is_none() => "the linker's record is of no use",
            Some(_) => "the two builds linked different things, though to the same result",
        };
        session
            .output
            .note(format!("note: published without a work digest: {why}"));
    }
    Ok(())
}

/// Why nothing is published.
fn not_reproducible(key: &ArtifactKey, findings: &Findings) -> Failure {
    let message = format!(
        "{} {}: a second build gave another artifact, so nothing was published{}",
        key.name,
        key.version,
        repro::why(findings)
    );
    Failure::new(Kind::Disputed, message).hint("`qk repro` shows what differs")
}

/// What principals of a network observed of a release so far.
pub(crate) async fn observed_by_principals(
    session: &Session,
    network: NetworkId,
    release: &Release,
) -> Outcome<Vec<Held>> {
    let joined = session.network(Some(&network.to_string()))?;
    let access = session.access(NodeOptions::default()).await?;
    let found = proofs::find(&access, network, release, false).await;
    access.shutdown().await;
    let mut held = found?.held;
    held.retain(|one| joined.network.principal(one.statement.observer()).is_some());
    Ok(held)
}

/// What one's own observation says about earlier ones of the same root.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WorkSaid {
    /// Whose work is what this build gives.
    pub agree: Vec<StatementId>,
    /// Whose is not: they did not build, or something else than the result differs.
    pub differ: Vec<StatementId>,
}

impl WorkSaid {
    /// Nothing for a statement without a work digest.
    pub(crate) fn of(statement: &Statement) -> Option<Self> {
        let observation = statement.observation()?;
        observation.work?;
        let those = |right: bool| {
            let all = observation.work_checks.iter();
            all.filter(|(_, said)| **said == right)
                .map(|(id, _)| *id)
                .collect()
        };
        Some(Self {
            agree: those(true),
            differ: those(false),
        })
    }

    /// One line, if there is something to say.
    pub(crate) fn line(&self) -> Option<String> {
        let (agree, differ) = (self.agree.len(), self.differ.len());
        (agree + differ > 0).then(|| match differ {
            0 => format!(
                "  work    of {}: built, not copied",
                count(agree, "earlier observation")
            ),
            _ => format!(
                "  work    of {}: built; that of {differ} is NOT what this build gives",
                count(agree, "earlier observation")
            ),
        })
    }
}

pub(crate) async fn publish(
    session: &Session,
    built: &Built,
    statement: Statement,
) -> Outcome<Published> {
    let access = session.access(NodeOptions::default()).await?;
    let published = access.publish(Some(built.archive.clone()), statement).await;
    let published = published.map_err(|problem| of_problem(&problem))?;
    if published.told == 0 {
        session
            .output
            .note("note: no running node of yours gives the artifact to others: `qk node` does");
    }
    access.shutdown().await;
    Ok(published)
}

fn describe(report: &Report) -> String {
    let mut lines = vec![
        format!(
            "{} {} for {} in {} s",
            report.name, report.version, report.target, report.seconds
        ),
        format!("  root    {}", report.subject.root),
        format!("  size    {}", bytes(report.subject.size)),
    ];
    if let Some(key) = &report.key_id {
        lines.push(format!("  key     {key}"));
    }
    if let (Some(published), Some(network)) = (&report.published, &report.network) {
        lines.push(format!(
            "  network {network}: the observation is held by {}, {} told that the artifact is here",
            count(published.holders, "node"),
            published.told
        ));
        if report.principal.is_none() {
            lines.push(format!("  {STRANGER}"));
        }
    }
    if report.gate.is_some() {
        lines.push(
            "  a second build with other jobs and another host name gave the same".to_owned(),
        );
    }
    lines.extend(report.work.as_ref().and_then(WorkSaid::line));
    if let Some(path) = &report.output {
        lines.push(format!("  written to {}", path.display()));
    }
    lines.join("\n")
}

/// What is said to somebody whose key is none of a principal's.
pub(super) const STRANGER: &str = "this machine's key is no principal's there: published, and not counted. \
`qk network key` prints the key for whoever runs the network";

/// For which network something is built, and with what.
pub(crate) struct Place {
    pub network: Option<NetworkId>,
    pub name: Option<String>,
    /// Who this machine's owner is in the network.
    pub principal: Option<String>,
    pub candidate: Candidate,
}

impl Place {
    /// The first joined network that serves the registry and builds for a target that is wanted; what
    /// this version of qk builds with, if no network is joined or none does.
    pub(crate) fn choose(session: &Session, wanted: &Wanted) -> Outcome<Self> {
        for joined in session.home.networks().map_err(failed)? {
            let manifest = joined.network.manifest();
            if !manifest.registries.contains(&wanted.release.registry) {
                continue;
            }
            if let Some(candidate) = wanted.candidates(&manifest.builds).into_iter().next() {
                return Ok(Self {
                    network: Some(joined.network.id()),
                    name: Some(manifest.name.clone()),
                    principal: session.own_principal(&joined)?,
                    candidate,
                });
            }
        }
        let mut build = session.compiled_in_build()?;
        if let Some(target) = wanted.targets.first() {
            build = build::build_with(build.rustc, target);
        }
        let candidate = wanted.candidates(&[build]).into_iter().next();
        Ok(Self {
            network: None,
            name: None,
            principal: None,
            candidate: candidate.ok_or_else(|| Failure::new(Kind::Usage, "no target is wanted"))?,
        })
    }
}

/// Something that was built here.
pub(crate) struct Built {
    pub key: ArtifactKey,
    /// Whether it has an artifact key: not without a `Cargo.lock` in the `.crate`.
    pub keyed: bool,
    pub subject: Subject,
    pub archive: PathBuf,
    pub collected: Collected,
}

impl Built {
    /// What shows that it was built here; nothing without a record of what was linked.
    pub(crate) fn work_digest(&self) -> Option<WorkDigest> {
        self.collected.linked.as_ref()?.work_digest()
    }

    /// Signs what was seen: with `work`, what shows that it was built, and whether that of `earlier`
    /// observations does.
    pub(crate) fn observe(
        &self,
        session: &Session,
        network: NetworkId,
        role: Role,
        work: Option<WorkDigest>,
        earlier: &[Held],
    ) -> Outcome<Statement> {
        let log = std::fs::read(&self.collected.log).map_err(failed)?;
        let log = session.home.logs().keep(&log).map_err(failed)?;
        let own = public_key(&session.home.key("observer").map_err(failed)?);
        let key_id = self.key.id();
        let checks = work.map(|digest| {
            let earlier = earlier.iter().map(|held| &*held.statement);
            digest.checks(own, key_id, self.subject, earlier)
        });
        let observation = Observation {
            subject: self.subject,
            role,
            environment: environment(&self.collected.environment),
            log,
            started: self.collected.started,
            finished: self.collected.finished,
            work: work.map(|digest| digest.work(network, own, key_id, self.subject.root)),
            work_checks: checks.unwrap_or_default(),
        };
        sign(
            session,
            network,
            self.key.clone(),
            Body::Observation(observation),
        )
    }
}

fn sign(session: &Session, network: NetworkId, key: ArtifactKey, body: Body) -> Outcome<Statement> {
    let observer = session.home.key("observer").map_err(failed)?;
    tracing::debug!(observer = %public_key(&observer), "signing");
    Statement::sign(network, key, body, &observer).map_err(failed)
}

/// A failure as a statement, if it says something about the crate.
pub(crate) fn state_failure(
    session: &Session,
    network: NetworkId,
    key: &ArtifactKey,
    started: qk_protocol::time::UnixTime,
    on: &build::Environment,
    error: &BuildError,
) -> Outcome<Option<Statement>> {
    let BuildError::Failed { reason, detail, .. } = error else {
        return Ok(None);
    };
    let reason = match reason {
        build::Reason::SystemLibrary | build::Reason::BuildTool => Reason::MissingSystemLibrary,
        build::Reason::Compile => Reason::CompileError,
        build::Reason::TimeOut => Reason::TimeOut,
        build::Reason::OutOfMemory => Reason::OutOfMemory,
        build::Reason::StaleLock => Reason::StaleLock,
        build::Reason::NoBinaries => Reason::NoBinaries,
        build::Reason::BadCrate => Reason::Other,
        // These say something about this machine.
        build::Reason::DiskFull | build::Reason::Fetch | build::Reason::NoLock => return Ok(None),
    };
    let detail = detail
        .chars()
        .filter(|c| !c.is_control())
        .take(250)
        .collect();
    let tried = Tried {
        reason,
        detail,
        environment: environment(on),
        log: None,
        started,
        finished: unix_now().max(started),
    };
    sign(session, network, key.clone(), Body::Failure(tried)).map(Some)
}

pub(super) fn environment(environment: &build::Environment) -> Environment {
    Environment {
        os: environment.os.clone(),
        kernel: environment.kernel.clone(),
        tools: environment.tools.clone(),
        sandbox: environment.sandbox.clone(),
        cpus: environment.cpus,
    }
}

/// Two builds of one order.
pub(crate) struct Twice {
    pub first: Built,
    pub second: Built,
    pub findings: Findings,
}

/// Builds, and shows how far it is.
pub(crate) struct Maker<'a> {
    session: &'a Session,
    builder: Builder,
    pub(super) options: Options,
    /// Shows how far it is; a bar of each build's own, if there is none.
    pub(super) bar: Option<ProgressBar>,
    /// Where the sources are from.
    pub(super) registry: RegistryArgs,
}

impl<'a> Maker<'a> {
    pub(crate) async fn new(session: &'a Session) -> Outcome<Self> {
        let (toolchains, work) = (session.toolchains(), session.home.work());
        if let Some(missing) = toolchains.missing().into_iter().next() {
            let failure = Failure::new(
                Kind::BuildFailed,
                format!("building needs {}", missing.what),
            );
            return Err(failure.hint(missing.how));
        }
        let builder = tokio::task::spawn_blocking(move || Builder::new(toolchains, &work));
        let builder = builder
            .await
            .map_err(failed)?
            .map_err(|error| of_build(&error))?;
        Ok(Self {
            session,
            builder,
            options: Options::default(),
            bar: None,
            registry: RegistryArgs::default(),
        })
    }

    /// Builds what is wanted, for the first network that builds it.
    pub(crate) async fn make(&self, wanted: &Wanted, resolved: &Resolved) -> Outcome<Built> {
        self.build(&Place::choose(self.session, wanted)?, wanted, resolved)
            .await
    }

    pub(crate) async fn build(
        &self,
        place: &Place,
        wanted: &Wanted,
        resolved: &Resolved,
    ) -> Outcome<Built> {
        let order = self.order(place, wanted, resolved).await?;
        self.carry_out(order).await
    }

    /// The order of a candidate, with the `.crate` on disk and its lock read.
    pub(crate) async fn order(
        &self,
        place: &Place,
        wanted: &Wanted,
        resolved: &Resolved,
    ) -> Outcome<Order> {
        let dir = self.session.home.crates();
        let (release, checksum) = (wanted.release.clone(), resolved.checksum);
        let options = RegistryOptions {
            name: self.registry.registry.clone(),
            index: self.registry.index.clone(),
            ..RegistryOptions::default()
        };
        let got = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&dir).map_err(failed)?;
            let registry = Registry::open(&options).map_err(|error| of_registry(&error))?;
            let file = registry
                .download(&release, &checksum, &dir)
                .map_err(|error| of_registry(&error))?;
            let lock = lock_digest(&file, &release).map_err(|error| of_registry(&error.into()))?;
            Ok::<_, Failure>((file, lock))
        });
        let (file, lock) = got.await.map_err(failed)??;
        let digest = lock.as_ref().map_or(Sha256([0; 32]), |(digest, _)| *digest);
        let key = place.candidate.key(digest);
        let order = Order::for_key(&key, file).map_err(|error| of_build(&error))?;
        Ok(match lock {
            Some(_) => order,
            None => Order {
                lock: None,
                resolve_lock: true,
                ..order
            },
        })
    }

    /// What it builds on.
    pub(crate) fn environment(&self) -> build::Environment {
        self.builder.environment()
    }

    async fn carry_out(&self, order: Order) -> Outcome<Built> {
        self.try_out(order).await?.map_err(|error| of_build(&error))
    }

    /// Parallel jobs, if somebody said how many.
    pub(super) fn set_jobs(&mut self, jobs: Option<u32>) {
        self.options.jobs = jobs.unwrap_or(self.options.jobs);
    }

    /// Builds and packs. The inner error is the build's own, which may be worth stating.
    pub(crate) async fn try_out(&self, order: Order) -> Outcome<Result<Built, BuildError>> {
        self.try_until(order, Cancel::default()).await
    }

    /// As [`try_out`](Self::try_out), until it is cancelled: when this returns, nothing of the build is
    /// left.
    pub(super) async fn try_until(
        &self,
        order: Order,
        cancel: Cancel,
    ) -> Outcome<Result<Built, BuildError>> {
        let name = format!("{} {}", order.name, order.version);
        self.build_as(&name, order, self.options.clone(), cancel)
            .await
    }

    /// Builds twice, the second time under other circumstances, and compares: the determinism gate.
    pub(crate) async fn twice(
        &self,
        order: Order,
        other_root: Option<PathBuf>,
    ) -> Outcome<Result<Twice, BuildError>> {
        let name = format!("{} {}", order.name, order.version);
        let options = Options {
            keep_linked: true,
            ..self.options.clone()
        };
        let mut varied = options.varied();
        varied.root = other_root.unwrap_or(varied.root);
        let first = self.build_as(&name, order.clone(), options, Cancel::default());
        let first = match first.await? {
            Ok(first) => first,
            Err(error) => return Ok(Err(error)),
        };
        let again = format!("{name}, again");
        let second = self.build_as(&again, order.clone(), varied, Cancel::default());
        let second = match second.await? {
            Ok(second) => second,
            Err(error) => return Ok(Err(error)),
        };
        tokio::task::spawn_blocking(move || {
            let (one, other) = (&first, &second);
            let findings = Findings::of(
                &order.name,
                (&one.collected, &one.archive),
                (&other.collected, &other.archive),
            );
            Ok(Ok(Twice {
                findings: findings.map_err(failed)?,
                first,
                second,
            }))
        })
        .await
        .map_err(failed)?
    }

    async fn build_as(
        &self,
        name: &str,
        order: Order,
        options: Options,
        cancel: Cancel,
    ) -> Outcome<Result<Built, BuildError>> {
        let own = || self.session.output.spinner(name);
        let bar = self.bar.clone().unwrap_or_else(own);
        bar.set_prefix(name.to_owned());
        let (shown, output) = (bar.clone(), self.session.output);
        let event = move |event: Event| {
            let text = match event {
                Event::Unpacking => "unpacking".to_owned(),
                Event::Preparing => "filling the linker's cache, once".to_owned(),
                Event::Fetching { line } => line,
                Event::Compiling { krate, done, total } => format!("{done}/{total} {krate}"),
                Event::Collecting => "taking the results".to_owned(),
            };
            shown.set_message(text);
        };
        if bar.is_hidden() && self.bar.is_none() {
            output.note(format!("building {name}"));
        }
        let rustc = order.rustc.clone();
        let collected = self
            .builder
            .build_in_background(order.clone(), options, cancel, event)
            .await;
        if self.bar.is_none() {
            bar.finish_and_clear();
        }
        let collected = match collected {
            Ok(collected) => collected,
            Err(error) => return Ok(Err(error)),
        };
        let keyed = collected.key.is_some();
        let key = match (&collected.key, rustc) {
            (Some(key), _) => key.clone(),
            (None, Some(rustc)) => order.key(&rustc, Sha256::of(&collected.lock)),
            (None, None) => {
                let active = RustToolchain::active(&self.session.toolchains(), &order.target);
                order.key(&active.map_err(failed)?.rustc, Sha256::of(&collected.lock))
            }
        };
        let archive = collected.directory.path().join("artifact.tar");
        let packed = collected.pack(key, &archive);
        let packed = packed.map_err(|error| Failure::new(Kind::BuildFailed, error))?;
        Ok(Ok(Built {
            key: packed.key,
            keyed,
            subject: Subject {
                root: packed.identity.root,
                sha256: packed.identity.sha256,
                size: packed.identity.size,
            },
            archive,
            collected,
        }))
    }
}
