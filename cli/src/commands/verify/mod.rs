//! `qk verify`: rebuild what others published, and publish what came out.

pub(crate) mod event;
pub(crate) mod status;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;

use qk_node::access::Access;
use qk_node::build::{Order, Reason};
use qk_node::compare::Class;
use qk_node::home::Joined;
use qk_node::node::{NodeOptions, Published, unix_now};
use qk_node::registry::Resolved;
use qk_protocol::candidate::{Candidate, Wanted};
use qk_protocol::decide::Held;
use qk_protocol::hash::{Blake3, KeyId, NetworkId, Root, Sha256, StatementId};
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::statement::{Role, Statement, Subject};
use serde::Serialize;

use super::build::{Built, Maker, Place, STRANGER, WorkSaid, environment, publish, state_failure};
use super::{diff, log, of_build, of_problem, proofs};
use crate::args::{CrateSpec, VerifyArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::count;
use crate::session::{Session, failed, parents};

/// What a rebuild came to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    name: String,
    version: String,
    target: String,
    network: String,
    key_id: KeyId,
    #[serde(flatten)]
    subject: Subject,
    seconds: u64,
    /// Whose observation it is in the network; a stranger's does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// Whether all principals who observed the key before got the same.
    identical: bool,
    /// What principals observed, each with how many observers.
    others: Vec<Other>,
    /// What the observation says about the work of earlier ones; absent if it has no work digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    work: Option<WorkSaid>,
    /// How it differs from the first other artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    statement: StatementId,
    published: Published,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Other {
    root: Root,
    size: u64,
    observers: usize,
}

/// A comparison with what somebody else observed, and where it and the logs are kept.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Difference {
    class: Class,
    /// The whole comparison.
    file: PathBuf,
    /// Digests of the logs, of this build and of the other one.
    logs: [Blake3; 2],
    /// Whether the other one's could be had; `qk log` shows it then.
    other_log: bool,
}

/// What is to be rebuilt.
struct Task {
    network: NetworkId,
    network_name: String,
    /// Who this machine's owner is in the network.
    principal: Option<String>,
    wanted: Wanted,
    candidate: Candidate,
    resolved: Resolved,
    held: Vec<Held>,
}

pub(crate) async fn run(session: &Session, args: &VerifyArgs) -> Outcome {
    if args.watch {
        return watch::run(session, args).await;
    }
    if args.status {
        return status::run(session);
    }
    let access = session.access(NodeOptions::default()).await?;
    let task = match &args.krate {
        Some(krate) => named(session, &access, krate).await?,
        None => drawn(session, &access).await?,
    };
    access.shutdown().await;
    let Some(task) = task else {
        session.output.result(&NothingDrawn { drawn: () }, |_| {
            "nothing to rebuild: every entry that was drawn has this machine's observation already".to_owned()
        });
        return Ok(());
    };
    rebuild(session, task).await
}

/// That no entry is left to be rebuilt.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct NothingDrawn {
    drawn: (),
}

/// The crate that was named, as the first network that knows it builds it.
async fn named(session: &Session, access: &Access, krate: &CrateSpec) -> Outcome<Option<Task>> {
    let resolved = session.resolve(krate, false).await?;
    let wanted = Session::wanted(&resolved, &Default::default(), Vec::new());
    let networks = session.home.networks().map_err(failed)?;
    if networks.is_empty() {
        return Err(Session::no_network());
    }
    for joined in networks {
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(&wanted.release.registry) {
            continue;
        }
        let network = joined.network.id();
        let held = observed_by_principals(access, &joined, &wanted.release).await?;
        let observed = |candidate: &Candidate| {
            held.iter()
                .any(|one| candidate.matches(one.statement.key()))
        };
        let candidates = wanted.candidates(&manifest.builds);
        let Some(candidate) = candidates
            .iter()
            .find(|one| observed(one))
            .or(candidates.first())
        else {
            continue;
        };
        return Ok(Some(Task {
            network,
            network_name: manifest.name.clone(),
            principal: session.own_principal(&joined)?,
            candidate: candidate.clone(),
            wanted,
            resolved,
            held,
        }));
    }
    let message = format!(
        "no joined network serves {} for this target",
        wanted.release
    );
    Err(Failure::new(Kind::NotFound, message))
}

/// An entry of the index drawn at random, which this machine has not observed yet.
async fn drawn(session: &Session, access: &Access) -> Outcome<Option<Task>> {
    let networks = session.home.networks().map_err(failed)?;
    if networks.is_empty() {
        return Err(Session::no_network());
    }
    for joined in networks {
        let network = joined.network.id();
        let drawn = access
            .draw(network)
            .await
            .map_err(|problem| of_problem(&problem))?;
        let Some(key) = drawn else {
            continue;
        };
        if let Some(task) = published(session, access, &joined, &key).await? {
            return Ok(Some(task));
        }
        session.output.note(format!(
            "note: {}: an entry names another source than the registry; passed over",
            key.release()
        ));
    }
    Ok(None)
}

/// What somebody published, if its source is the registry's.
async fn published(
    session: &Session,
    access: &Access,
    joined: &Joined,
    key: &ArtifactKey,
) -> Outcome<Option<Task>> {
    let resolved = session.release(&key.name, &key.version).await?;
    let candidate = Candidate::of(key);
    if candidate.source != resolved.checksum || candidate.release != resolved.release {
        return Ok(None);
    }
    let held = observed_by_principals(access, joined, &candidate.release).await?;
    Ok(Some(Task {
        network: joined.network.id(),
        network_name: joined.network.manifest().name.clone(),
        principal: session.own_principal(joined)?,
        wanted: Wanted {
            release: candidate.release.clone(),
            source: candidate.source,
            targets: vec![key.target.clone()],
            features: candidate.features.clone(),
            default_features: candidate.default_features,
            rustflags: candidate.rustflags.clone(),
        },
        candidate,
        resolved,
        held,
    }))
}

/// What strangers state neither agrees nor differs: anybody can state anything.
async fn observed_by_principals(
    access: &Access,
    joined: &Joined,
    release: &Release,
) -> Outcome<Vec<Held>> {
    let found = proofs::find(access, joined.network.id(), release, false).await?;
    let mut held = found.held;
    held.retain(|one| joined.network.principal(one.statement.observer()).is_some());
    Ok(held)
}

async fn rebuild(session: &Session, task: Task) -> Outcome {
    let maker = Maker::new(session).await?;
    let order = task.order(&maker).await?;
    let started = unix_now();
    let key = task.key(&order);
    let built = match maker.try_out(order).await? {
        Ok(built) => built,
        Err(error) => {
            // Published whatever it says: that it did not build is worth knowing, too.
            let on = maker.environment();
            if let Some(statement) =
                state_failure(session, task.network, &key, started, &on, &error)?
            {
                let access = session.access(NodeOptions::default()).await?;
                let told = access.publish(None, statement).await;
                told.map_err(|problem| of_problem(&problem))?;
                access.shutdown().await;
            }
            return Err(of_build(&error));
        }
    };
    let statement = task.observe(session, &built)?;
    let published = publish(session, &built, statement.clone()).await?;
    let report = task.report(session, &built, &statement, published).await;
    session.output.result(&report, describe);
    match report.identical {
        true => Ok(()),
        false => {
            let message = format!(
                "{} {}: others observed another artifact",
                report.name, report.version
            );
            let failure =
                Failure::new(Kind::Disputed, message).hint("`qk proofs` shows who observed what");
            Err(failure.printed(session.output.json))
        }
    }
}

impl Task {
    /// The order, with the `.crate` on disk.
    async fn order(&self, maker: &Maker<'_>) -> Outcome<Order> {
        let place = Place {
            network: Some(self.network),
            name: Some(self.network_name.clone()),
            principal: self.principal.clone(),
            candidate: self.candidate.clone(),
        };
        let order = maker.order(&place, &self.wanted, &self.resolved).await?;
        if order.lock.is_some() {
            return Ok(order);
        }
        let message = format!(
            "{} has no Cargo.lock, and so no artifact key",
            self.wanted.release
        );
        Err(Failure::new(Kind::BuildFailed, message).reason(Reason::NoLock))
    }

    fn key(&self, order: &Order) -> ArtifactKey {
        self.candidate.key(order.lock.unwrap_or(Sha256([0; 32])))
    }

    /// Signs what was seen.
    fn observe(&self, session: &Session, built: &Built) -> Outcome<Statement> {
        let digest = built.work_digest();
        built.observe(session, self.network, Role::Verifier, digest, &self.held)
    }

    async fn report(
        self,
        session: &Session,
        built: &Built,
        statement: &Statement,
        published: Published,
    ) -> Report {
        let log = statement.observation().map(|observation| observation.log);
        let others = others(&self);
        let difference = difference(session, &self, built, log).await;
        Report {
            name: built.key.name.clone(),
            version: built.key.version.clone(),
            target: built.key.target.clone(),
            network: self.network_name,
            principal: self.principal,
            key_id: built.key.id(),
            subject: built.subject,
            seconds: built.collected.finished.since(built.collected.started),
            identical: others.iter().all(|(subject, _)| *subject == built.subject),
            others: others
                .iter()
                .map(|(subject, observers)| Other {
                    root: subject.root,
                    size: subject.size,
                    observers: *observers,
                })
                .collect(),
            work: WorkSaid::of(statement),
            difference,
            statement: statement.id(),
            published,
        }
    }
}

/// Compares with the first observation of another artifact, if there is one. That it cannot be had is
/// said and changes nothing: the observation is published already.
async fn difference(
    session: &Session,
    task: &Task,
    built: &Built,
    log: Option<Blake3>,
) -> Option<Difference> {
    let matching = task
        .held
        .iter()
        .filter(|held| task.candidate.matches(held.statement.key()));
    let mut observed =
        matching.filter_map(|held| Some((&held.statement, held.statement.observation()?)));
    let (statement, other) = observed.find(|(_, one)| one.subject != built.subject)?;
    let options = NodeOptions {
        parent: parents(),
        ..NodeOptions::default()
    };
    let other_log = log::fetch(session, statement, options).await;
    if let Err(why) = &other_log {
        session.output.note(format!(
            "note: the other build's log could not be had: {why}"
        ));
    }
    let file = session
        .home
        .disputes()
        .join(format!("{}.json", built.key.id()));
    let own = environment(&built.collected.environment);
    let kept = diff::keep(
        session,
        (task.network, &task.wanted.release),
        (built.archive.as_path(), &own),
        (other.subject, &other.environment),
        &file,
    );
    match kept.await {
        Ok(report) => Some(Difference {
            class: report.class?,
            file,
            logs: [log?, other.log],
            other_log: other_log.is_ok(),
        }),
        Err(failure) => {
            let why = &failure.error;
            session.output.note(format!(
                "note: the other artifact could not be compared: {why}"
            ));
            None
        }
    }
}

/// What others observed of the same candidate, and how many of them.
fn others(task: &Task) -> Vec<(Subject, usize)> {
    let matching = task
        .held
        .iter()
        .filter(|held| task.candidate.matches(held.statement.key()));
    let observed: Vec<_> = matching
        .filter_map(|held| {
            Some((
                held.statement.observation()?.subject,
                held.statement.observer(),
            ))
        })
        .collect();
    let subjects: BTreeSet<Subject> = observed.iter().map(|(subject, _)| *subject).collect();
    let count = |subject: Subject| {
        let observers: BTreeSet<_> = observed
            .iter()
            .filter(|(one, _)| *one == subject)
            .map(|(_, who)| *who)
            .collect();
        (subject, observers.len())
    };
    subjects.into_iter().map(count).collect()
}

fn describe(report: &Report) -> String {
    let mut lines = vec![format!(
        "{} {} rebuilt in {} s: root {}",
        report.name, report.version, report.seconds, report.subject.root
    )];
    lines.push(match (report.identical, report.others.is_empty()) {
        (_, true) => "  nobody had observed it before".to_owned(),
        (true, false) => {
            let observers: usize = report.others.iter().map(|other| other.observers).sum();
            format!("  identical to {}", count(observers, "other observation"))
        }
        (false, false) => "  DIFFERS from what others observed:".to_owned(),
    });
    if !report.identical {
        for other in &report.others {
            lines.push(format!(
                "    {}  {} bytes, {}",
                other.root,
                other.size,
                count(other.observers, "observer")
            ));
        }
    }
    if let Some(difference) = &report.difference {
        lines.push(format!("  {}", diff::in_words(difference.class)));
        lines.push(format!("  compared in {}", difference.file.display()));
        let [own, other] = &difference.logs;
        lines.push(format!("  `qk log {own}` is this build's log"));
        if difference.other_log {
            lines.push(format!("  `qk log {other}` is the other one's"));
        }
    }
    lines.extend(report.work.as_ref().and_then(WorkSaid::line));
    lines.push(format!(
        "  published in {}: held by {}",
        report.network,
        count(report.published.holders, "node")
    ));
    if report.principal.is_none() {
        lines.push(format!("  {STRANGER}"));
    }
    lines.join("\n")
}
