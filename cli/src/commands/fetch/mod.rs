//! `qk fetch`: find, require proof, download, install.

mod one;
mod place;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use qk_node::access::{Access, Stage};
use qk_node::node::{NodeOptions, Share, unix_now};
use qk_protocol::decide::{Effect, Line};
use qk_protocol::hash::{KeyId, Root, Sha256};
use serde::Serialize;

use self::one::stage;
pub(crate) use self::one::{How, Ready, Want, fetch, fetched, may_build, obtain};
use self::place::place;
pub(crate) use self::place::{of_host, of_unpack};
use crate::args::{CrateSpec, FetchArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, bytes};
use crate::session::Session;

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
    let want = Want {
        krate,
        flags: &args.flags,
        targets: &args.target,
        fallback: args.fallback,
        offline: args.offline,
        refresh: args.refresh,
        policy: session.project_policy()?,
    };
    let mut ready = obtain(session, access, &want).await?;
    ready.stages.splice(0..0, start);
    let installed = place(session, args, &mut ready).await?;
    Ok(done(ready, installed))
}

fn done(ready: Ready, installed: Vec<PathBuf>) -> Done {
    Done {
        name: ready.key.name,
        version: ready.key.version,
        how: ready.how,
        source: ready.key.flags.source,
        lock: ready.key_id.map(|_| ready.key.flags.lock),
        key_id: ready.key_id,
        root: ready.subject.root,
        bytes: ready.subject.size,
        providers: ready.providers,
        blocks_verified: ready.blocks_verified,
        network: ready.network,
        contested_by: ready
            .lines
            .iter()
            .find(|line| line.effect == Effect::Dissents)
            .and_then(|line| line.principal.clone()),
        rebuilt: ready.rebuilt,
        observations: ready
            .lines
            .into_iter()
            .filter(|line| line.root.is_some())
            .collect(),
        archive: ready.archive,
        installed,
        stages: ready.stages,
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
