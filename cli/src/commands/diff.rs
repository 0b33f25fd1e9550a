//! `qk diff`: where two artifacts differ, whether anybody trusts them or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qk_node::compare::{self, Class, Comparison};
use qk_node::home::Joined;
use qk_node::node::{Node, NodeOptions};
use qk_node::store::Store;
use qk_protocol::blocks::Blob;
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::key::Release;
use qk_protocol::statement::{Environment, Subject};
use serde::Serialize;

use super::{of_problem, proofs, repro};
use crate::args::{CrateSpec, DiffArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::count;
use crate::session::{Session, failed, parents};

/// What is compared, and how it differs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    #[serde(flatten)]
    pub comparison: Comparison,
    /// What the difference looks like, for people; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// What diffoscope says, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diffoscope: Option<String>,
}

/// An artifact on disk, and where one of those was who observed it, if that is known.
#[derive(Debug)]
struct Side {
    archive: PathBuf,
    environment: Option<Environment>,
}

pub(crate) async fn run(session: &Session, args: &DiffArgs) -> Outcome {
    let scratch = tempfile::tempdir().map_err(failed)?;
    let mut sides = Vec::new();
    for what in &args.what {
        sides.extend(find(session, what, scratch.path()).await?);
    }
    let [one, other] = &sides[..] else {
        let named = count(sides.len(), "artifact");
        let message = format!("two artifacts are compared, and this names {named}");
        let hint = "a crate stands for all artifacts that principals observed of it";
        return Err(Failure::new(Kind::Usage, message).hint(hint));
    };
    let mut report = compare(one, other).await?;
    if args.diffoscope {
        report.diffoscope = Some(diffoscope(&one.archive, &other.archive)?);
    }
    session.output.result(&report, describe);
    if report.class.is_none() {
        return Ok(());
    }
    let failure = Failure::new(Kind::Disputed, "the artifacts differ");
    Err(failure.printed(true))
}

async fn compare(one: &Side, other: &Side) -> Outcome<Report> {
    let (a, b) = (one.archive.clone(), other.archive.clone());
    let compared = tokio::task::spawn_blocking(move || compare::archives(&a, &b)).await;
    let comparison = compared
        .map_err(failed)?
        .map_err(|error| Failure::new(Kind::Corrupt, error))?;
    let environments = one.environment.as_ref().zip(other.environment.as_ref());
    let environments = environments.map(|(one, other)| [one, other]);
    let differs = comparison.roots[0] != comparison.roots[1];
    Ok(Report {
        class: differs.then(|| Class::of(&comparison, environments)),
        comparison,
        diffoscope: None,
    })
}

/// A file, a root in the store, or what principals observed of a crate.
async fn find(session: &Session, what: &str, scratch: &Path) -> Outcome<Vec<Side>> {
    let path = Path::new(what);
    if path.is_file() {
        return Ok(vec![Side {
            archive: path.to_owned(),
            environment: None,
        }]);
    }
    let hex = what.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex && (8..=64).contains(&what.len()) {
        return in_store(session, what).await.map(|side| vec![side]);
    }
    let krate: CrateSpec = what.parse().map_err(|error| {
        let message = format!("{what:?} is neither a file, nor a root, nor a crate: {error}");
        Failure::new(Kind::Usage, message)
    })?;
    let resolved = session.resolve(&krate, false).await?;
    let networks = session.home.networks().map_err(failed)?;
    let registry = &resolved.release.registry;
    let serves = |joined: &Joined| joined.network.manifest().registries.contains(registry);
    let joined = networks
        .into_iter()
        .find(serves)
        .ok_or_else(Session::no_network)?;
    let network = joined.network.id();
    let access = session.access(NodeOptions::default()).await?;
    let found = proofs::find(&access, network, &resolved.release, false).await?;
    access.shutdown().await;
    let mut observed: BTreeMap<Root, (Subject, Environment)> = BTreeMap::new();
    for held in &found.held {
        let principal = joined.network.principal(held.statement.observer());
        if let (Some(_), Some(observation)) = (principal, held.statement.observation()) {
            let about = (observation.subject, observation.environment.clone());
            observed.entry(observation.subject.root).or_insert(about);
        }
    }
    let mut sides = Vec::new();
    for (subject, environment) in observed.into_values() {
        let at = (network, &resolved.release);
        sides.push(Side {
            archive: archive(session, at, subject, scratch).await?,
            environment: Some(environment),
        });
    }
    Ok(sides)
}

async fn in_store(session: &Session, beginning: &str) -> Outcome<Side> {
    let access = session.access(NodeOptions::default()).await?;
    let listed = access
        .store_ls()
        .await
        .map_err(|problem| of_problem(&problem));
    access.shutdown().await;
    let mut roots = listed?.into_iter().map(|one| one.blob.root);
    let root = roots.find(|root| root.to_string().starts_with(beginning));
    let message = format!("no artifact in the store has a root that begins with {beginning}");
    let root = root.ok_or_else(|| Failure::new(Kind::NotFound, message))?;
    Ok(Side {
        archive: Store::blob_in(&session.home.store(), &root),
        environment: None,
    })
}

/// The archive of an observation: of the store, or of whoever has it, to look at and no more.
async fn archive(
    session: &Session,
    (network, release): (NetworkId, &Release),
    subject: Subject,
    scratch: &Path,
) -> Outcome<PathBuf> {
    let here = Store::blob_in(&session.home.store(), &subject.root);
    if here.is_file() {
        return Ok(here);
    }
    let blob = Blob::new(subject.root, subject.size)
        .map_err(|error| Failure::new(Kind::Corrupt, error))?;
    let options = NodeOptions {
        hold: false,
        parent: parents(),
        ..NodeOptions::default()
    };
    // One of this command's own, as a running one has no use for what nobody trusts.
    let node = Node::start(session.home.clone(), options)
        .await
        .map_err(failed)?;
    let pulled = node.pull(network, release, blob, scratch).await;
    node.shutdown().await;
    pulled.map_err(|error| Failure::new(Kind::Network, error))
}

/// Compares what was built here with another artifact that was observed of the same key, and keeps the
/// comparison beside both logs' digests.
pub(super) async fn keep(
    session: &Session,
    at: (NetworkId, &Release),
    own: (&Path, &Environment),
    other: (Subject, &Environment),
    to: &Path,
) -> Outcome<Report> {
    let scratch = tempfile::tempdir().map_err(failed)?;
    let side = |archive, environment: &Environment| Side {
        archive,
        environment: Some(environment.clone()),
    };
    let theirs = archive(session, at, other.0, scratch.path()).await?;
    let (one, other) = (side(own.0.to_owned(), own.1), side(theirs, other.1));
    let report = compare(&one, &other).await?;
    let text = serde_json::to_string_pretty(&report).map_err(failed)?;
    let io = |error| Failure::new(Kind::Other, format!("{}: {error}", to.display()));
    if let Some(directory) = to.parent() {
        qk_node::home::create_private_dir(directory).map_err(io)?;
    }
    std::fs::write(to, text + "\n").map_err(io)?;
    Ok(report)
}

/// Never by itself: it takes archives apart that nobody trusts, with a dozen programs and no sandbox.
fn diffoscope(one: &Path, other: &Path) -> Outcome<String> {
    let ran = Command::new("diffoscope")
        .args(["--text", "-", "--text-color", "never"])
        .args([one, other])
        .stdin(Stdio::null())
        .output();
    let ran = ran.map_err(|error| {
        let failure = Failure::new(
            Kind::Other,
            format!("diffoscope cannot be started: {error}"),
        );
        failure
            .hint("install it with the distribution's package manager, or leave --diffoscope away")
    })?;
    match ran.status.code() {
        Some(0 | 1) => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        _ => {
            let said = String::from_utf8_lossy(&ran.stderr);
            let message = format!("diffoscope: {}: {}", ran.status, said.trim());
            Err(Failure::new(Kind::Other, message))
        }
    }
}

fn describe(report: &Report) -> String {
    let [one, other] = &report.comparison.roots;
    let Some(class) = report.class else {
        return format!("identical: {one}");
    };
    let mut lines = vec![format!("{one}\n{other}\n  {}", in_words(class))];
    if !report.comparison.same_key {
        lines.push("  they are of different artifact keys".to_owned());
    }
    for file in &report.comparison.files {
        lines.push(repro::file(file));
        for section in &file.sections {
            let size =
                |size: Option<u64>| size.map_or_else(|| "none".to_owned(), |n| n.to_string());
            let [one, other] = section.sizes;
            lines.push(format!(
                "    {:<20} {} and {} bytes",
                section.name,
                size(one),
                size(other)
            ));
        }
    }
    lines.extend(report.diffoscope.clone());
    lines.join("\n")
}

/// What a class means.
pub(super) fn in_words(class: Class) -> &'static str {
    match class {
        Class::Irreproducible => "irreproducible: the bytes show a cause in what was built",
        Class::Environment => "environment: the builds ran on different systems",
        Class::Unexplained => "unexplained",
    }
}
