//! `qk repro`: whether a crate is reproducible, and if not, what differs and likely why.

use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::build::{Findings, First, Order};
use qk_node::compare::FileDifference;
use qk_node::registry::crates_io_id;
use qk_protocol::hash::{KeyId, Root, Sha256};
use serde::{Deserialize, Serialize};

use super::build::{Maker, Place, Twice};
use super::of_build;
use crate::args::ReproArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::bytes;
use crate::session::{Session, failed, host_target};

/// What two builds came to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    name: String,
    version: String,
    target: String,
    /// Whether both builds gave the same artifact.
    reproducible: bool,
    /// The artifact key; none without a `Cargo.lock` in the package.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<KeyId>,
    /// What each build gave.
    builds: [BuiltReport; 2],
    #[serde(flatten)]
    findings: Findings,
    badge: Badge,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ReproBuild"))]
struct BuiltReport {
    root: Root,
    size: u64,
    seconds: u64,
    os: String,
}

/// What shields.io reads: <https://shields.io/badges/endpoint-badge>.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct Badge {
    schema_version: u32,
    label: &'static str,
    message: String,
    color: &'static str,
}

pub(crate) async fn run(session: &Session, args: &ReproArgs) -> Outcome {
    let mut maker = Maker::new(session).await?;
    maker.set_jobs(args.jobs);
    let other_root = args.sandbox_root.as_deref().map(std::path::absolute);
    let other_root = other_root.transpose().map_err(failed)?;
    // Holds the packaged directory as long as it is built.
    let scratch = tempfile::tempdir().map_err(failed)?;
    let order = match (&args.path, &args.krate) {
        (Some(directory), _) => local(directory, scratch.path(), args)?,
        (None, Some(krate)) => {
            let resolved = session.resolve(krate, false).await?;
            let targets = args.target.iter().cloned().collect();
            let wanted = Session::wanted(&resolved, &args.flags, targets);
            let place = Place::choose(session, &wanted)?;
            maker.order(&place, &wanted, &resolved).await?
        }
        (None, None) => return Err(Failure::new(Kind::Usage, "name a crate or --path")),
    };
    let twice = maker.twice(order, other_root).await?;
    let report = Report::new(twice.map_err(|error| of_build(&error))?);
    if let Some(path) = &args.badge {
        let text = serde_json::to_string_pretty(&report.badge).map_err(failed)?;
        std::fs::write(path, text + "\n")
            .map_err(|error| Failure::new(Kind::Other, format!("{}: {error}", path.display())))?;
    }
    session.output.result(&report, describe);
    if report.reproducible {
        return Ok(());
    }
    let message = format!(
        "{} {} is not reproducible{}",
        report.name,
        report.version,
        why(&report.findings)
    );
    let failure = Failure::new(Kind::Disputed, message);
    let failure = failure.hint("`--json` has all that differs");
    Err(failure.printed(session.output.json))
}

impl Report {
    fn new(twice: Twice) -> Self {
        let Twice {
            first,
            second,
            findings,
        } = twice;
        let builds = [&first, &second].map(|built| BuiltReport {
            root: built.subject.root,
            size: built.subject.size,
            seconds: built.collected.finished.since(built.collected.started),
            os: built.collected.environment.os.clone(),
        });
        Self {
            reproducible: findings.same_root,
            key_id: first.keyed.then(|| first.key.id()),
            badge: Badge::of(&findings),
            name: first.key.name,
            version: first.key.version,
            target: first.key.target,
            builds,
            findings,
        }
    }
}

impl Badge {
    fn of(findings: &Findings) -> Self {
        let (message, color) = match (findings.same_root, &findings.first) {
            (true, _) => ("yes".to_owned(), "brightgreen"),
            (false, Some(first)) if !first.own => (format!("no: {}", first.package), "red"),
            (false, _) => ("no".to_owned(), "red"),
        };
        Self {
            schema_version: 1,
            label: "reproducible",
            message,
            color,
        }
    }
}

/// An order for the package in a directory, packaged as cargo would publish it. None of its code runs.
fn local(directory: &Path, scratch: &Path, args: &ReproArgs) -> Outcome<Order> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        manifest_path: PathBuf,
        features: std::collections::BTreeMap<String, Vec<String>>,
    }
    let manifest = directory.join("Cargo.toml");
    let manifest = std::fs::canonicalize(&manifest)
        .map_err(|error| Failure::new(Kind::Usage, format!("{}: {error}", manifest.display())))?;
    let words = ["metadata", "--no-deps", "--format-version=1", "--quiet"];
    let text = cargo(&words, &manifest, scratch)?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(failed)?;
    let ours = |package: &Package| package.manifest_path == manifest;
    let package = metadata.packages.into_iter().find(ours).ok_or_else(|| {
        let message = format!("{} is of a workspace, not of a package", manifest.display());
        Failure::new(Kind::Usage, message).hint("name the directory of one of its packages")
    })?;
    cargo(
        &["package", "--no-verify", "--allow-dirty", "--quiet"],
        &manifest,
        scratch,
    )?;
    let file = format!("{}-{}.crate", package.name, package.version);
    let file = scratch.join("package").join(file);
    let packaged = std::fs::read(&file)
        .map_err(|error| Failure::new(Kind::Other, format!("{}: {error}", file.display())))?;
    let mut features: std::collections::BTreeSet<String> =
        args.flags.features.iter().cloned().collect();
    features.remove("default");
    if args.flags.all_features {
        features.extend(
            package
                .features
                .into_keys()
                .filter(|name| name != "default"),
        );
    }
    Ok(Order {
        target: args.target.clone().unwrap_or_else(host_target),
        features,
        default_features: !args.flags.no_default_features || args.flags.all_features,
        resolve_lock: true,
        ..Order::new(
            // Of a package that is from no registry: it only stands in a key that nobody signs.
            &crates_io_id(),
            &package.name,
            &package.version,
            file,
            Sha256::of(&packaged),
        )
    })
}

/// Runs cargo on a manifest, with all that it makes in `scratch`; returns what it prints.
fn cargo(words: &[&str], manifest: &Path, scratch: &Path) -> Outcome<Vec<u8>> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(words)
        .arg("--manifest-path")
        .arg(manifest)
        .env("CARGO_TARGET_DIR", scratch)
        .stdin(std::process::Stdio::null());
    let ran = cargo
        .output()
        .map_err(|error| Failure::new(Kind::Other, format!("cargo cannot be started: {error}")))?;
    if ran.status.success() {
        return Ok(ran.stdout);
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let message = format!("cargo {}: {}", words[0], said.trim());
    Err(Failure::new(Kind::BuildFailed, message))
}

/// For the end of a sentence that says that two builds differ.
pub(super) fn why(findings: &Findings) -> String {
    match &findings.first {
        Some(first) => format!(": {} differs first{}", subject(first), likely(first)),
        None => String::new(),
    }
}

fn subject(first: &First) -> String {
    match first.own {
        true => format!("the package itself ({})", first.package),
        false => first.package.clone(),
    }
}

fn likely(first: &First) -> String {
    let causes: Vec<_> = first.causes.iter().map(|cause| cause.describe()).collect();
    match causes.is_empty() {
        true => String::new(),
        false => format!(" (likely {})", causes.join(", ")),
    }
}

fn describe(report: &Report) -> String {
    let [one, other] = &report.builds;
    let mut lines = vec![format!(
        "{} {} for {}: {}",
        report.name,
        report.version,
        report.target,
        match report.reproducible {
            true => "reproducible",
            false => "NOT reproducible",
        }
    )];
    for built in [one, other] {
        lines.push(format!(
            "  root {}  {}, {} s on {}",
            built.root,
            bytes(built.size),
            built.seconds,
            built.os
        ));
    }
    match (report.findings.same_work, &report.findings.first) {
        (Some(true), _) => lines.push("  the linker was given the same".to_owned()),
        (_, Some(first)) => lines.push(format!(
            "  first difference in what was linked: {}{}",
            subject(first),
            likely(first)
        )),
        (Some(false), None) => lines.push("  the linker was given different things".to_owned()),
        (None, None) => lines.push("  no record of what the linker was given".to_owned()),
    }
    if let Some(comparison) = &report.findings.comparison {
        lines.extend(comparison.files.iter().map(file));
    }
    let badge = serde_json::to_string(&report.badge).unwrap_or_default();
    lines.push(format!("  badge {badge}"));
    lines.join("\n")
}

/// A line about a file that differs.
pub(super) fn file(file: &FileDifference) -> String {
    let size = |size: Option<u64>| size.map_or_else(|| "missing".to_owned(), bytes);
    let mut line = format!(
        "  {} differs: {} and {}",
        file.path,
        size(file.sizes[0]),
        size(file.sizes[1])
    );
    if !file.sections.is_empty() {
        let names: Vec<_> = file.sections.iter().map(|one| one.name.as_str()).collect();
        line += &format!(", in {}", names.join(" "));
    }
    let causes: Vec<_> = file.causes.iter().map(|cause| cause.describe()).collect();
    if !causes.is_empty() {
        line += &format!(" (likely {})", causes.join(", "));
    }
    line
}
