//! What a node gives, and `qk node pause` and `qk node resume`.

use qk_node::access::Status;
use qk_node::manners::{PauseReason, ShareFlags};
use qk_node::node::unix_now;
use qk_protocol::time::UnixTime;
use serde::Serialize;

use super::super::of_problem;
use super::at_rest;
use crate::args::ShareArgs;
use crate::failure::Outcome;
use crate::output::bytes;
use crate::session::Session;

pub(super) async fn pause(session: &Session, time: Option<u64>) -> Outcome {
    let until = time.map(|seconds| UnixTime(unix_now().0.saturating_add(seconds)));
    let access = session.access(at_rest()).await?;
    let paused = access.pause(until).await;
    tell_paused(session, &paused.map_err(|problem| of_problem(&problem))?);
    Ok(())
}

pub(super) async fn resume(session: &Session) -> Outcome {
    let access = session.access(at_rest()).await?;
    let paused = access.resume().await;
    tell_paused(session, &paused.map_err(|problem| of_problem(&problem))?);
    Ok(())
}

/// Why the node pauses now, if it does.
fn tell_paused(session: &Session, reasons: &[PauseReason]) {
    let paused = Paused { paused: reasons };
    session
        .output
        .result(&paused, |paused| match paused.paused {
            [] => "not paused".to_owned(),
            reasons => format!("paused: {}", told(reasons)),
        });
}

/// Why a node rests; it works, if nothing is named.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Paused<'a> {
    paused: &'a [PauseReason],
}

/// Reasons in a line.
pub(super) fn told(reasons: &[PauseReason]) -> String {
    let reasons: Vec<String> = reasons.iter().map(reason).collect();
    reasons.join("; ")
}

fn reason(reason: &PauseReason) -> String {
    match reason {
        PauseReason::Request { until: Some(until) } => {
            let minutes = until.since(unix_now()).div_ceil(60);
            format!("on request, for {minutes} min more")
        }
        PauseReason::Request { until: None } | PauseReason::Battery | PauseReason::Metered => {
            reason.to_string()
        }
    }
}

pub(super) fn flags(args: &ShareArgs, laptop: bool) -> ShareFlags {
    ShareFlags {
        share: args.share,
        leech: args.leech,
        no_announce: args.no_announce,
        upload_rate: args.upload_rate,
        download_rate: args.download_rate,
        connections: args.connections,
        quota: args.quota,
        laptop,
    }
}

/// What is given, how much of it this month, and why nothing is.
pub(super) fn sharing(status: &Status) -> String {
    let share = &status.share;
    let what = match (status.paused.is_empty(), share.leech, share.gives) {
        (false, ..) => "nothing while it is paused",
        (true, true, _) => "nothing, as told",
        (true, false, false) => "nothing until this month ends: its bytes are used up",
        (true, false, true) if share.fetched => "what was built and fetched",
        (true, false, true) => "what was built here",
    };
    let up = match share.upload_month {
        Some(cap) => format!("{} of {}", bytes(share.month.uploaded_bytes), bytes(cap)),
        None => bytes(share.month.uploaded_bytes),
    };
    let down = bytes(share.month.downloaded_bytes);
    let announced = status.announced;
    format!("{what}, {announced} artifacts announced; this month {up} given, {down} taken")
}
