//! `qk list`, `qk upgrade` and `qk uninstall`: what is installed, whoever installed it.

use std::collections::BTreeSet;
use std::time::Duration;

use qk_node::install::{InstallOptions, Package, Uninstalled};
use qk_node::registry::{Ask, Registry};
use semver::Version;
use serde::Serialize;

use super::fetch::{Call, Job, carry_out, clock, install_root, of_install, registry_options};
use crate::args::{CrateName, CrateSpec, FlagArgs, ListArgs, UninstallArgs, UpgradeArgs};
use crate::failure::{Failure, Failures, Kind, Outcome};
use crate::session::{Session, of_registry};

/// Cargo's source id of crates.io.
pub(crate) const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(crate) fn list(session: &Session, args: &ListArgs) -> Outcome {
    let root = install_root(args.root.as_deref())?;
    let packages = root.list().map_err(|error| of_install(&error))?.packages();
    if session.output.json {
        session.output.document(&Installed { packages });
        return Ok(());
    }
    for package in &packages {
        session.output.outcome(listed(package));
    }
    for package in packages.iter().filter(|one| !one.missing.is_empty()) {
        let missing: Vec<&str> = package.missing.iter().map(String::as_str).collect();
        session.output.note(format!(
            "note: {} of {} is not there any more; `qk fetch {}` puts it back",
            missing.join(", "),
            package.name,
            package.name
        ));
    }
    Ok(())
}

/// What is installed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Installed {
    packages: Vec<Package>,
}

/// A package in cargo's words: scripts that read `cargo install --list` read this.
fn listed(package: &Package) -> String {
    let source = &*package.source;
    let from = match (source.strip_prefix("path+file://"), source.split_once('#')) {
        _ if source == CRATES_IO => String::new(),
        (Some(path), _) => format!(" ({path})"),
        (None, Some((url, commit))) if url.starts_with("git+") => {
            let short: String = commit.chars().take(8).collect();
            format!(" ({}#{short})", &url["git+".len()..])
        }
        (None, _) => {
            let url = source.strip_prefix("registry+").unwrap_or(source);
            format!(" (registry `{url}`)")
        }
    };
    let mut text = format!("{} v{}{from}:", package.name, package.version);
    for bin in &package.bins {
        text.push_str("\n    ");
        text.push_str(bin);
    }
    text
}

/// What was removed, and what could not be.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Removed {
    crates: Vec<Uninstalled>,
    #[serde(flatten)]
    failures: Failures,
}

pub(crate) async fn uninstall(session: &Session, args: &UninstallArgs) -> Outcome {
    let root = install_root(args.root.as_deref())?;
    let bins: BTreeSet<String> = args.bin.iter().cloned().collect();
    if !bins.is_empty() && args.crates.len() > 1 {
        let message = "--bin says which executables of one crate, and several are named";
        return Err(Failure::new(Kind::Usage, message));
    }
    let mut removed = Removed {
        crates: Vec::new(),
        failures: Failures::default(),
    };
    for krate in &args.crates {
        let version = match &krate.ask {
            Ask::Newest => None,
            Ask::Exact(version) => Some(version.to_string()),
            Ask::Matching(_) => {
                let message = format!("{krate}: which version? name it as NAME@1.2.3");
                return Err(Failure::new(Kind::Usage, message));
            }
        };
        let (root, name, bins) = (root.clone(), krate.name.clone(), bins.clone());
        // It may wait for another installation, and can be interrupted meanwhile.
        let done =
            tokio::task::spawn_blocking(move || root.uninstall(&name, version.as_deref(), &bins));
        match done.await.map_err(crate::session::failed)? {
            Ok(one) => {
                session.output.outcome(gone(&one));
                removed.crates.push(one);
            }
            Err(error) => {
                let failure = of_install(&error);
                removed.failures.add(session.output, krate, failure, true);
            }
        }
    }
    let failure = removed.failures.end("crates");
    session.output.summary(&removed, failure)
}

fn gone(one: &Uninstalled) -> String {
    let paths = one.executables.iter();
    let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    format!("{} {}  removed {}", one.name, one.version, paths.join(", "))
}

pub(crate) async fn upgrade(session: &Session, args: &UpgradeArgs) -> Outcome {
    let root = install_root(args.how.root.as_deref())?;
    let options = registry_options(&args.how);
    let registry = Registry::open(&options).map_err(|error| of_registry(&error))?;
    let listed = root.list().map_err(|error| of_install(&error))?;
    let jobs = jobs_of(listed.packages(), registry.source_id(), &args.crates)?;
    if jobs.is_empty() && !session.output.json {
        session
            .output
            .line(format!("nothing is installed in {}", root.path().display()));
        return Ok(());
    }
    let call = Call {
        how: &args.how,
        root,
        options: InstallOptions::default(),
        // It is asked for what is newer now.
        fresh: Duration::ZERO,
        policy: session.project_policy()?,
        clock: clock(session, &args.how)?,
    };
    carry_out(session, &call, jobs).await
}

/// What is to be looked at: all that is from the registry, or what is named.
fn jobs_of(packages: Vec<Package>, registry: &str, named: &[CrateName]) -> Outcome<Vec<Job>> {
    for CrateName(name) in named {
        let mut those = packages.iter().filter(|one| one.name == *name).peekable();
        if those.peek().is_none() {
            return Err(
                Failure::new(Kind::NotFound, format!("{name} is not installed"))
                    .hint(format!("`qk fetch {name}` installs it")),
            );
        }
        if those.all(|one| one.source != registry) {
            let message = format!("{name} was not installed from {registry}");
            return Err(Failure::new(Kind::NotFound, message));
        }
    }
    let wanted = |one: &Package| {
        let is_named = named.iter().any(|CrateName(name)| *name == one.name);
        one.source == registry && (named.is_empty() || is_named)
    };
    Ok(packages
        .into_iter()
        .filter(wanted)
        .filter_map(job_of)
        .collect())
}

/// The same choices again; nothing for a version that is none.
fn job_of(package: Package) -> Option<Job> {
    let version: Version = package.version.parse().ok()?;
    let meta = package.meta;
    let ask = match Ask::parse(meta.version_req.as_deref()) {
        // As cargo and qk write it down that exactly this one was asked for.
        Ok(Ask::Exact(_)) => Ask::Exact(version.clone()),
        Ok(Ask::Matching(req)) if req.to_string().starts_with('=') => Ask::Exact(version.clone()),
        Ok(ask) => ask,
        Err(_) => Ask::Newest,
    };
    Some(Job {
        krate: CrateSpec {
            name: package.name,
            ask,
        },
        flags: FlagArgs {
            features: meta.features.into_iter().collect(),
            all_features: meta.all_features,
            no_default_features: meta.no_default_features,
        },
        targets: Some(meta.target)
            .filter(|target| !target.is_empty())
            .into_iter()
            .collect(),
        bins: match meta.partial {
            true => package.bins,
            false => BTreeSet::new(),
        },
        newer_than: Some(version),
    })
}
