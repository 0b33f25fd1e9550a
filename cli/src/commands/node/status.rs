//! `qk status` and `qk peers`.

use qk_node::access::Status;
use qk_node::node::NodeOptions;

use super::super::of_problem;
use crate::args::StatusArgs;
use crate::failure::Outcome;
use crate::output::bytes;
use crate::session::Session;

pub(crate) async fn run(session: &Session, _args: &StatusArgs) -> Outcome {
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let status = access.status().await;
    let status = status.map_err(|problem| of_problem(&problem))?;
    session.output.result(&status, describe);
    Ok(())
}

pub(crate) async fn peers(session: &Session) -> Outcome {
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let peers = access.peers().await;
    let peers = peers.map_err(|problem| of_problem(&problem))?;
    session.output.result(&peers, |peers| {
        let lines = peers.iter().map(|peer| peer.peer.clone());
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

fn describe(status: &Status) -> String {
    let stored = bytes(status.store.artifact_bytes);
    format!(
        "{} {stored} {}",
        status.peers,
        super::manners::sharing(status)
    )
}
