//! What takes longer than it may.

use std::future::pending;

use qk_node::build::Reason;
use qk_node::deadline::{Clock, Limit, Source};

use crate::failure::{Failure, Kind, Outcome};
use crate::output::lasting;

/// Waits for something no longer than its source may take.
pub(super) async fn within<T>(
    clock: Clock,
    source: Source,
    what: &str,
    work: impl Future<Output = T>,
) -> Outcome<T> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        failure = late(clock, source, what) => Err(failure),
    }
}

/// The same for a look-up that becomes a download when `begun` is.
pub(super) async fn within_both<T>(
    clock: Clock,
    what: &str,
    work: impl Future<Output = T>,
    begun: impl Future<Output = ()>,
) -> Outcome<T> {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return Ok(done),
        () = begun => {}
        failure = late(clock, Source::Lookup, what) => return Err(failure),
    }
    within(clock, Source::Download, what, work).await
}

/// Ends when the source has to be done; never, if nobody set a limit.
async fn late(clock: Clock, source: Source, what: &str) -> Failure {
    let Some(limit) = clock.limit(source) else {
        return pending().await;
    };
    tokio::time::sleep_until(limit.end.into()).await;
    too_late(limit, source, what)
}

fn too_late(limit: Limit, source: Source, what: &str) -> Failure {
    let given = lasting(limit.given.as_secs());
    let (kind, did, name) = match source {
        Source::Registry => (Kind::Network, "the registry did not answer", "registry"),
        Source::Lookup => (Kind::Network, "the network did not answer", "lookup"),
        Source::Download => (Kind::Network, "the download was not done", "download"),
        Source::Build => (Kind::BuildFailed, "the build was not done", "build"),
    };
    let whose = match limit.is_total {
        true => format!("the deadline of {given}"),
        false => format!("{given}, `fetch.{name}` of the configuration"),
    };
    let failure = Failure::new(kind, format!("{what}: {did} within {whose}"));
    match source {
        Source::Build => failure.reason(Reason::TimeOut),
        Source::Download => failure.hint("what was fetched is kept: the next call goes on there"),
        Source::Registry | Source::Lookup => failure,
    }
}
