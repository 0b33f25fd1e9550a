//! `qk log`: what cargo said in a build.

use qk_node::node::NodeOptions;
use qk_protocol::hash::Blake3;
use qk_protocol::statement::Statement;
use qk_protocol::time::UnixTime;
use serde::Serialize;

use super::proofs;
use crate::args::{CrateSpec, LogArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

#[derive(Debug, Serialize)]
struct Report {
    digest: Blake3,
    log: String,
}

pub(crate) async fn run(session: &Session, args: &LogArgs) -> Outcome {
    let logs = session.home.logs();
    if let Ok(digest) = args.which.parse::<Blake3>() {
        let log = logs.read(&digest).map_err(failed)?;
        let message = format!("the log {digest} is not here");
        let hint = "logs are kept by whoever built, for a while";
        let log = log.ok_or_else(|| Failure::new(Kind::NotFound, message).hint(hint))?;
        return show(session, digest, &log);
    }
    let krate: CrateSpec = args.which.parse().map_err(|error| {
        let message = format!("neither a digest of 64 hex digits nor a crate: {error}");
        Failure::new(Kind::Usage, message)
    })?;
    let observed = observed(session, &krate).await?;
    for (_, digest) in &observed {
        if let Some(log) = logs.read(digest).map_err(failed)? {
            return show(session, *digest, &log);
        }
    }
    let message = match observed.len() {
        0 => format!("no build of {krate} is known here"),
        known => {
            format!("the logs of {known} builds of {krate} are known, and none of them is here")
        }
    };
    let hint = "logs are kept by whoever built, for a while; `qk build` makes one";
    Err(Failure::new(Kind::NotFound, message).hint(hint))
}

fn show(session: &Session, digest: Blake3, log: &[u8]) -> Outcome {
    if !session.output.json {
        // As it is to a file, and without what could steer a terminal otherwise.
        let text = String::from_utf8_lossy(log);
        let plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        let text: String = text.chars().filter(plain).collect();
        session.output.bytes(text.as_bytes());
        return Ok(());
    }
    let log = String::from_utf8_lossy(log).into_owned();
    session.output.document(&Report { digest, log });
    Ok(())
}

/// Digests of the logs of all builds of a release that this machine knows of, the latest first.
async fn observed(session: &Session, krate: &CrateSpec) -> Outcome<Vec<(UnixTime, Blake3)>> {
    let resolved = session.resolve(krate, false).await?;
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let mut found = Vec::new();
    for joined in session.home.networks().map_err(failed)? {
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(&resolved.release.registry) {
            continue;
        }
        let network = joined.network.id();
        let known = proofs::find(&access, network, &resolved.release, true).await?;
        found.extend(known.held.iter().filter_map(|held| log_of(&held.statement)));
    }
    access.shutdown().await;
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.dedup();
    Ok(found)
}

fn log_of(statement: &Statement) -> Option<(UnixTime, Blake3)> {
    let observation = statement.observation()?;
    Some((observation.finished, observation.log))
}
