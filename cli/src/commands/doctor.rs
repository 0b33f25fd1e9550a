//! `qk setup` and `qk doctor`: what building needs.

use qk_node::build::{RustToolchain, Sandbox, SetupEvent};
use qk_node::home::Joined;
use qk_node::node::unix_now;
use serde::Serialize;

use super::network::warn_of_end;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed, host_target};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<String>,
}

pub(crate) async fn setup(session: &Session) -> Outcome {
    let toolchains = session.toolchains();
    let bar = session.output.spinner("setup");
    let output = session.output;
    let shown = bar.clone();
    let installed = tokio::task::spawn_blocking(move || {
        toolchains.setup(&mut |event| {
            let text = match event {
                SetupEvent::Downloading { what } => format!("downloading {what}"),
                SetupEvent::Unpacking { what } => format!("unpacking {what}"),
                SetupEvent::Packages { names } => format!("installing {}", names.join(", ")),
            };
            match shown.is_hidden() {
                true => output.note(text),
                false => shown.set_message(text),
            }
        })
    });
    installed.await.map_err(failed)?.map_err(failed)?;
    bar.finish_and_clear();
    doctor(session).await
}

pub(crate) async fn doctor(session: &Session) -> Outcome {
    let toolchains = session.toolchains();
    let checks = tokio::task::spawn_blocking(move || {
        let mut checks: Vec<Check> = toolchains
            .missing()
            .into_iter()
            .map(|missing| Check {
                what: missing.what,
                ok: false,
                how: Some(missing.how),
            })
            .collect();
        checks.push(match RustToolchain::active(&toolchains, &host_target()) {
            Ok(found) => good(format!(
                "rustc {} for {}",
                found.rustc.version,
                host_target()
            )),
            Err(error) => bad("a Rust toolchain", error),
        });
        checks.push(match Sandbox::probe() {
            Ok(sandbox) => good(format!(
                "the sandbox works, {} {}",
                sandbox.name(),
                sandbox.version()
            )),
            Err(error) => bad("the sandbox", error),
        });
        checks
    });
    let mut checks = checks.await.map_err(failed)?;
    for joined in session.home.networks().map_err(failed)? {
        checks.push(timestamp(&joined));
    }
    let report = Report::new(checks);
    session.output.result(&report, |report| {
        report
            .checks
            .iter()
            .map(describe)
            .collect::<Vec<_>>()
            .join("\n")
    });
    match report.error {
        None => Ok(()),
        Some(error) => Err(Failure::new(Kind::Other, error).printed(session.output.json)),
    }
}

/// Everything that was looked at, and how the command ends.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    exit_code: u8,
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let missing: Vec<_> = checks
            .iter()
            .filter(|check| !check.ok)
            .map(|check| check.what.as_str())
            .collect();
        let error = (!missing.is_empty()).then(|| format!("not in order: {}", missing.join(", ")));
        Self {
            exit_code: error.as_ref().map_or(0, |_| Kind::Other.exit_code()),
            error,
            checks,
        }
    }
}

/// Whether a network's word is in force, and for how long.
fn timestamp(joined: &Joined) -> Check {
    let network = &joined.network;
    let name = &network.manifest().name;
    let what = format!("the timestamp of network {name}");
    if !network.fresh(unix_now()) {
        let how = "it ended, and nothing new is trusted: can its nodes be reached? Whoever runs it has newer ones";
        return bad(&what, how);
    }
    match warn_of_end(joined) {
        Some(warning) => bad(&what, warning),
        None => good(what),
    }
}

fn good(what: String) -> Check {
    Check {
        what,
        ok: true,
        how: None,
    }
}

fn bad(what: &str, error: impl std::fmt::Display) -> Check {
    Check {
        what: what.to_owned(),
        ok: false,
        how: Some(error.to_string()),
    }
}

fn describe(check: &Check) -> String {
    let mark = if check.ok { "ok     " } else { "not ok " };
    match &check.how {
        Some(how) => format!("{mark}  {}: {how}", check.what),
        None => format!("{mark}  {}", check.what),
    }
}
