//! `qk log`: what cargo said in a build.

use std::cmp::Reverse;
use std::sync::Arc;

use qk_node::node::{LogError, Node, NodeOptions};
use qk_protocol::hash::{Blake3, PublicKey};
use qk_protocol::statement::{Observation, Statement};
use serde::Serialize;

use super::proofs;
use crate::args::{CrateSpec, LogArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

/// Builds whose logs are asked for, the latest first.
const BUILDS_MAX: usize = 8;

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    digest: Blake3,
    /// Who observed the build, and as which principal, where a crate was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    observer: Option<PublicKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    log: String,
}

/// Somebody's observation, and who it was.
struct Build {
    statement: Arc<Statement>,
    observation: Observation,
    principal: Option<String>,
}

pub(crate) async fn run(session: &Session, args: &LogArgs) -> Outcome {
    if let Ok(digest) = args.which.parse::<Blake3>() {
        return by_digest(session, digest);
    }
    let krate: CrateSpec = args.which.parse().map_err(|error| {
        let message = format!("neither a digest of 64 hex digits nor a crate: {error}");
        Failure::new(Kind::Usage, message)
    })?;
    let mut builds = observed(session, &krate, args).await?;
    if let Some(by) = &args.by {
        builds.retain(|build| build.is_by(by));
    }
    if builds.is_empty() {
        let by = args.by.as_ref().map(|by| format!(" by {by}"));
        let message = format!("no build of {krate}{} is known", by.unwrap_or_default());
        let hint = format!("`qk proofs {krate}` shows who observed it");
        return Err(Failure::new(Kind::NotFound, message).hint(hint));
    }
    for build in &builds {
        if let Some(log) = here(session, &build.observation.log)? {
            return build.show(session, &log);
        }
    }
    let mut tried = String::new();
    if !args.offline {
        let options = session.asking(asked(args))?;
        for build in builds.iter().take(BUILDS_MAX) {
            match fetch(session, &build.statement, options.clone()).await {
                Ok(log) => return build.show(session, &log),
                Err(LogError::Nowhere { .. }) if builds.len() > 1 => {}
                Err(error) => tried = format!(": {error}"),
            }
        }
    }
    let known = builds.len();
    let message = format!(
        "the logs of {known} builds of {krate} are known, and none of them is here{}{tried}",
        match args.offline {
            true => "",
            false => ", nor with those who observed them",
        }
    );
    let hint = "logs are kept by whoever built, for a while; `qk build` makes one";
    Err(Failure::new(Kind::NotFound, message).hint(hint))
}

fn by_digest(session: &Session, digest: Blake3) -> Outcome {
    if let Some(log) = here(session, &digest)? {
        let (observer, principal) = (None, None);
        return show(session, digest, (observer, principal), &log);
    }
    let message = format!("the log {digest} is not here");
    let hint = format!("`qk log CRATE --by {digest}` asks whoever observed the build of a crate");
    Err(Failure::new(Kind::NotFound, message).hint(hint))
}

/// A log that is here, whether of a build of this machine or of another's.
fn here(session: &Session, digest: &Blake3) -> Outcome<Option<Vec<u8>>> {
    let logs = session.home.logs();
    match logs.read(digest).map_err(failed)? {
        Some(log) => Ok(Some(log)),
        None => logs.of_others().read(digest).map_err(failed),
    }
}

/// The log of an observation: the one that is here, or what whoever observed gives, which is kept.
pub(super) async fn fetch(
    session: &Session,
    statement: &Statement,
    options: NodeOptions,
) -> Result<Vec<u8>, LogError> {
    let options = NodeOptions {
        hold: false,
        ..options
    };
    // One of this command's own: the running one has no use for it.
    let node = Node::start(session.home.clone(), options).await?;
    let log = node.log(statement).await;
    node.shutdown().await;
    log
}

impl Build {
    fn is_by(&self, who: &str) -> bool {
        self.principal.as_deref() == Some(who)
            || self.statement.observer().to_string() == who
            || self.observation.log.to_string() == who
    }

    fn show(&self, session: &Session, log: &[u8]) -> Outcome {
        let who = (Some(self.statement.observer()), self.principal.clone());
        show(session, self.observation.log, who, log)
    }
}

fn show(
    session: &Session,
    digest: Blake3,
    (observer, principal): (Option<PublicKey>, Option<String>),
    log: &[u8],
) -> Outcome {
    if !session.output.json {
        // As it is to a file, and without what could steer a terminal otherwise.
        let text = String::from_utf8_lossy(log);
        let plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        let text: String = text.chars().filter(plain).collect();
        session.output.bytes(text.as_bytes());
        return Ok(());
    }
    let log = String::from_utf8_lossy(log).into_owned();
    session.output.document(&Report {
        digest,
        observer,
        principal,
        log,
    });
    Ok(())
}

/// Who is asked.
fn asked(args: &LogArgs) -> NodeOptions {
    NodeOptions {
        offline: args.offline,
        only: args.only.gateway.clone(),
        ..NodeOptions::default()
    }
}

/// All builds of a release that are known of, the latest first.
async fn observed(session: &Session, krate: &CrateSpec, args: &LogArgs) -> Outcome<Vec<Build>> {
    let offline = args.offline;
    let resolved = session.resolve(krate, offline).await?;
    let access = session.access(asked(args)).await?;
    let mut found: Vec<Build> = Vec::new();
    for joined in session.home.networks().map_err(failed)? {
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(&resolved.release.registry) {
            continue;
        }
        let network = joined.network.id();
        let known = proofs::find(&access, network, &resolved.release, offline).await?;
        for statement in known.held.into_iter().map(|held| held.statement) {
            let principal = joined.network.principal(statement.observer());
            let principal = principal.map(|(principal, _)| principal.name.clone());
            if let Some(observation) = statement.observation().cloned() {
                found.push(Build {
                    statement,
                    observation,
                    principal,
                });
            }
        }
    }
    access.shutdown().await;
    let order = |build: &Build| (build.observation.finished, build.statement.id());
    found.sort_unstable_by_key(|build| Reverse(order(build)));
    Ok(found)
}
