//! `qk setup` and `qk doctor`: what is not in order on this machine, and how to mend it.

mod network;

use std::path::Path;

use qk_node::build::{RustToolchain, Sandbox, SetupEvent, Toolchains};
use qk_node::home::Home;
use qk_node::install::InstallRoot;
use qk_node::node::store_options;
use qk_node::registry::CargoConfig;
use qk_node::watch::free_bytes;
use serde::Serialize;

use crate::failure::{Failure, Kind, Outcome};
use crate::output;
use crate::session::{Session, failed, host_target};

/// What a build takes on the disk, besides what is to stay free: some 2 GiB for a large crate.
const BUILD_BYTES: u64 = 2 << 30;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Check {
    about: About,
    what: String,
    ok: bool,
    /// How to mend it, or why it is not in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<String>,
}

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum About {
    Disk,
    Path,
    Toolchain,
    Sandbox,
    Clock,
    Network,
    Trust,
}

impl About {
    fn good(self, what: impl Into<String>) -> Check {
        Check {
            about: self,
            what: what.into(),
            ok: true,
            how: None,
        }
    }

    fn bad(self, what: impl Into<String>, how: impl std::fmt::Display) -> Check {
        Check {
            about: self,
            what: what.into(),
            ok: false,
            how: Some(how.to_string()),
        }
    }
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
    report(session, building(session).await?)
}

pub(crate) async fn doctor(session: &Session, offline: bool) -> Outcome {
    let mut checks = vec![disk(&session.home)];
    checks.push(path());
    checks.extend(building(session).await?);
    checks.extend(network::all(session, offline).await?);
    report(session, checks)
}

/// What building needs.
async fn building(session: &Session) -> Outcome<Vec<Check>> {
    let toolchains = session.toolchains();
    let checks = tokio::task::spawn_blocking(move || {
        let missing = toolchains.missing().into_iter();
        let mut checks: Vec<Check> = missing
            .map(|missing| About::Toolchain.bad(missing.what, missing.how))
            .collect();
        checks.push(rustc(&toolchains));
        checks.push(match Sandbox::probe() {
            Ok(sandbox) => About::Sandbox.good(format!(
                "the sandbox works, {} {}",
                sandbox.name(),
                sandbox.version()
            )),
            Err(error) => About::Sandbox.bad("the sandbox", error),
        });
        checks
    });
    checks.await.map_err(failed)
}

fn rustc(toolchains: &Toolchains) -> Check {
    let target = host_target();
    match RustToolchain::active(toolchains, &target) {
        Ok(found) => About::Toolchain.good(format!("rustc {} for {target}", found.rustc.version)),
        Err(error) => About::Toolchain.bad("a Rust toolchain", error),
    }
}

/// Whether qk can write where it keeps things, and how much.
fn disk(home: &Home) -> Check {
    let dir = home.dir();
    let shown = dir.display();
    if let Err(error) = writable(dir) {
        let how = format!("{error}: give it to yourself, or name another directory with QK_HOME");
        return About::Disk.bad(format!("{shown} cannot be written"), how);
    }
    let config = match home.config() {
        Ok(config) => config,
        Err(error) => return About::Disk.bad("config.toml", error),
    };
    let options = store_options(&config, &home.store());
    let Some(free) = free_bytes(dir) else {
        return About::Disk.bad(format!("the disk of {shown}"), "it cannot be looked at");
    };
    let what = format!("{} free on the disk of {shown}", output::bytes(free));
    let wanted = options.free_floor_bytes.saturating_add(BUILD_BYTES);
    if free < wanted {
        let how = format!(
            "a build needs some {}, and {} are to stay free (free_floor_bytes): `qk store gc` and a smaller quota_bytes make room, QK_HOME names another disk",
            output::bytes(BUILD_BYTES),
            output::bytes(options.free_floor_bytes)
        );
        return About::Disk.bad(what, how);
    }
    About::Disk.good(what)
}

fn writable(dir: &Path) -> std::io::Result<()> {
    qk_node::home::create_private_dir(dir)?;
    tempfile::tempfile_in(dir).map(drop)
}

/// Whether a shell finds what is installed.
fn path() -> Check {
    let config = match CargoConfig::load(None) {
        Ok(config) => config,
        Err(error) => return About::Path.bad("cargo's configuration", error),
    };
    let root = match InstallRoot::discover(None, &config) {
        Ok(root) => root,
        Err(error) => return About::Path.bad("where cargo installs", error),
    };
    let bin = root.bin();
    let bin = bin.display();
    match std::env::var_os("PATH").is_some_and(|path| root.is_on_path(&path)) {
        true => About::Path.good(format!("{bin} is on PATH")),
        false => About::Path.bad(
            format!("{bin} is not on PATH"),
            format!("what is installed is not found: add `export PATH=\"{bin}:$PATH\"` to your shell's start-up file"),
        ),
    }
}

/// Everything that was looked at, and how the command ends.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Checked"))]
pub(crate) struct Report {
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

fn report(session: &Session, checks: Vec<Check>) -> Outcome {
    let report = Report::new(checks);
    session.output.result(&report, |report| {
        let lines: Vec<String> = report.checks.iter().map(describe).collect();
        lines.join("\n")
    });
    match report.error {
        None => Ok(()),
        Some(error) => {
            let failure = Failure::new(Kind::Other, error).without_hint();
            Err(failure.printed(session.output.json))
        }
    }
}

fn describe(check: &Check) -> String {
    let mark = if check.ok { "ok     " } else { "not ok " };
    match &check.how {
        Some(how) => format!("{mark}  {}: {how}", check.what),
        None => format!("{mark}  {}", check.what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_and_says_how_to_mend_it() {
        let checks = vec![
            About::Clock.good("the clock"),
            About::Path.bad("/here/bin is not on PATH", "add it"),
        ];
        let report = Report::new(checks);
        let lines: Vec<String> = report.checks.iter().map(describe).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ok       the clock
        not ok   /here/bin is not on PATH: add it
        ");
        insta::assert_snapshot!(serde_json::to_string(&report).unwrap(), @r#"{"checks":[{"about":"clock","what":"the clock","ok":true},{"about":"path","what":"/here/bin is not on PATH","ok":false,"how":"add it"}],"error":"not in order: /here/bin is not on PATH","exit_code":1}"#);
    }
}
