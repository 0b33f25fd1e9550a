//! `qk store`: what is kept here.

use qk_node::access::{Access, Artifact, Cleaned};
use qk_node::node::NodeOptions;
use qk_node::programs::{PROGRAMS_QUOTA_BYTES, Programs, Removed};
use qk_protocol::hash::Root;
use serde::Serialize;

use super::of_problem;
use crate::args::StoreCommand;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, bytes, count};
use crate::session::{Session, failed};

/// What is in the store.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Stored {
    artifacts: Vec<Artifact>,
}

/// What is kept whatever the quota, or no longer.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Pin {
    root: Root,
    pinned: bool,
    /// Whether it was otherwise before.
    changed: bool,
}

/// What a clean-up removed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct AllCleaned {
    #[serde(flatten)]
    cleaned: Cleaned,
    /// Executables that `qk run` unpacked.
    programs: Removed,
}

pub(crate) async fn run(session: &Session, command: StoreCommand) -> Outcome {
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    match command {
        StoreCommand::Ls => ls(session, &access).await,
        StoreCommand::Gc => gc(session, &access).await,
        StoreCommand::Fsck => fsck(session, &access).await,
        StoreCommand::Pin { root } => pin(session, &access, &root, true).await,
        StoreCommand::Unpin { root } => pin(session, &access, &root, false).await,
    }
}

async fn ls(session: &Session, access: &Access) -> Outcome {
    let artifacts = access
        .store_ls()
        .await
        .map_err(|problem| of_problem(&problem))?;
    session.output.result(&Stored { artifacts }, |stored| {
        let now = qk_node::node::unix_now();
        let line = |one: &Artifact| {
            let name = one.key.as_ref().map_or_else(
                || "unreadable".to_owned(),
                |key| format!("{} {} {}", key.name, key.version, key.target),
            );
            let pinned = if one.blob.pinned { "  pinned" } else { "" };
            format!(
                "{}  {:>10}  {name}  used {}{pinned}",
                one.blob.root,
                bytes(one.blob.bytes),
                ago(now.since(one.blob.used))
            )
        };
        match &stored.artifacts[..] {
            [] => "the store is empty".to_owned(),
            artifacts => artifacts.iter().map(line).collect::<Vec<_>>().join("\n"),
        }
    });
    Ok(())
}

async fn gc(session: &Session, access: &Access) -> Outcome {
    let cleaned = access
        .store_gc()
        .await
        .map_err(|problem| of_problem(&problem))?;
    let quota = session.config()?.programs_quota_bytes;
    let programs = Programs::of(&session.home);
    let programs =
        tokio::task::spawn_blocking(move || programs.clean(quota.unwrap_or(PROGRAMS_QUOTA_BYTES)));
    let all = AllCleaned {
        cleaned,
        programs: programs.await.map_err(failed)?.map_err(failed)?,
    };
    session.output.result(&all, |all| {
        let (artifacts, programs) = (&all.cleaned.artifacts, &all.programs);
        format!(
            "removed {}: {} before, {} now\nremoved {}: {} before, {} now",
            count(artifacts.evicted.len(), "artifact"),
            bytes(artifacts.bytes_before),
            bytes(artifacts.bytes_after),
            count(programs.roots.len(), "unpacked program"),
            bytes(programs.bytes_before),
            bytes(programs.bytes_after)
        )
    });
    Ok(())
}

async fn fsck(session: &Session, access: &Access) -> Outcome {
    let bar = session.output.spinner("reading everything");
    let report = access
        .store_fsck()
        .await
        .map_err(|problem| of_problem(&problem))?;
    bar.finish_and_clear();
    if report.damage.is_empty() {
        session
            .output
            .result(&report, |_| "everything is what its name says".to_owned());
        return Ok(());
    }
    let named: Vec<_> = report.damage.iter().map(ToString::to_string).collect();
    let message = format!("{} damaged: {}", named.len(), named.join("; "));
    let failure = Failure::new(Kind::Corrupt, message);
    Err(failure.hint(
        "what was damaged was moved aside and is not served; `qk fetch` gets an artifact again",
    ))
}

async fn pin(session: &Session, access: &Access, root: &str, keep: bool) -> Outcome {
    let root: Root = root
        .parse()
        .map_err(|error| Failure::new(Kind::Usage, error))?;
    let changed = match keep {
        true => access.store_pin(root).await,
        false => access.store_unpin(root).await,
    };
    let changed = changed.map_err(|problem| of_problem(&problem))?;
    let pin = Pin {
        root,
        pinned: keep,
        changed,
    };
    session
        .output
        .result(&pin, |pin| match (pin.pinned, pin.changed) {
            (true, true) => format!("{root} is kept whatever the quota"),
            (true, false) => format!("{root} was pinned already"),
            (false, true) => format!("{root} is no longer pinned"),
            (false, false) => format!("{root} was not pinned"),
        });
    Ok(())
}
