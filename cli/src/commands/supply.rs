//! `qk sbom` and `qk audit`: what artifacts were made of, and what is known about that.

use std::path::{Path, PathBuf};

use qk_node::access::Artifact;
use qk_node::node::NodeOptions;
use qk_node::registry::{Ask, CargoConfig};
use qk_node::store::Store;
use qk_node::supply::{
    Advisories, AuditError, Finding, FindingKind, Inventory, InventoryError, Licences, sbom,
};
use qk_protocol::hash::Root;
use qk_protocol::key::ArtifactKey;
use semver::Version;
use serde::Serialize;

use super::fetch::{install_root, of_install};
use super::of_problem;
use crate::args::{AuditArgs, CrateSpec, SbomArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::count;
use crate::session::{Session, failed, of_registry};

/// Shortest beginning of a root that is taken for one.
const ROOT_LEN_MIN: usize = 8;

pub(crate) async fn bill(session: &Session, args: &SbomArgs) -> Outcome {
    let archive = archive(session, &args.what).await?;
    let home = cargo_home()?;
    let bill = off_reactor(move || {
        let inventory = Inventory::read(&archive)?;
        Ok(sbom(&inventory, &Licences::of_cargo(&home)))
    });
    let mut text = serde_json::to_string_pretty(&bill.await?).map_err(failed)?;
    text.push('\n');
    match &args.output {
        None => session.output.bytes(text.as_bytes()),
        Some(path) => {
            let written = std::fs::write(path, text);
            written.map_err(|error| {
                Failure::new(Kind::Other, format!("{}: {error}", path.display()))
                    .hint("name a file in a directory that can be written to")
            })?;
            let file = path.clone();
            session.output.result(&Written { file }, |written| {
                format!("wrote {}", written.file.display())
            });
        }
    }
    Ok(())
}

/// Where a bill of materials was written to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Written {
    file: PathBuf,
}

/// What is known about the artifacts that were looked at.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Audit {
    database: PathBuf,
    advisories: usize,
    artifacts: Vec<Audited>,
    /// What is installed, and is not in the store.
    not_looked_at: Vec<String>,
    vulnerabilities: usize,
    warnings: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    exit_code: u8,
}

/// One artifact, and what is known about it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Audited {
    name: String,
    version: String,
    target: String,
    root: Root,
    packages: usize,
    findings: Vec<Finding>,
}

pub(crate) async fn audit(session: &Session, args: &AuditArgs) -> Outcome {
    let database = match &args.database {
        Some(database) => database.clone(),
        None => cargo_home()?.join("advisory-db"),
    };
    let stored = stored(session).await?;
    let mut chosen: Vec<Root> = Vec::new();
    for spec in &args.crates {
        let of_spec = stored.iter().filter(|(_, key)| is_of(spec, key));
        let roots: Vec<Root> = of_spec.map(|(root, _)| *root).collect();
        if roots.is_empty() {
            return Err(not_stored(&spec.to_string()));
        }
        chosen.extend(roots);
    }
    if args.crates.is_empty() {
        chosen = stored.iter().map(|(root, _)| *root).collect();
    }
    let store = session.home.store();
    let at = database.clone();
    let (advisories, artifacts) = off_reactor(move || {
        let advisories = Advisories::read(&at)?;
        let mut artifacts = Vec::new();
        for root in chosen {
            let inventory = Inventory::read(&Store::blob_in(&store, &root))?;
            artifacts.push(Audited {
                findings: advisories.about(&inventory),
                packages: inventory.packages.len(),
                root: inventory.root,
                name: inventory.key.name,
                version: inventory.key.version,
                target: inventory.key.target,
            });
        }
        Ok((advisories.len(), artifacts))
    })
    .await?;
    let mut report = Audit::new(database, advisories, artifacts, args.deny_warnings);
    if args.crates.is_empty() {
        report.not_looked_at = not_stored_of(installed()?, &stored);
    }
    session.output.result(&report, describe);
    match &report.error {
        None => Ok(()),
        Some(error) => {
            let failure = Failure::new(Kind::Other, error);
            let failure =
                failure.hint("newer versions may have mended it: `qk fetch CRATE` gets the newest");
            Err(failure.printed(session.output.json))
        }
    }
}

impl Audit {
    fn new(
        database: PathBuf,
        advisories: usize,
        mut artifacts: Vec<Audited>,
        deny_warnings: bool,
    ) -> Self {
        artifacts.sort_by(|a, b| (&a.name, &a.version, a.root).cmp(&(&b.name, &b.version, b.root)));
        let all = || artifacts.iter().flat_map(|one| &one.findings);
        let bad = all().filter(|one| one.kind == FindingKind::Vulnerability);
        let vulnerabilities = bad.count();
        let warnings = all().count() - vulnerabilities;
        let error = (vulnerabilities > 0 || (deny_warnings && warnings > 0))
            .then(|| counted(vulnerabilities, warnings));
        Self {
            exit_code: error.as_ref().map_or(0, |_| Kind::Other.exit_code()),
            database,
            advisories,
            artifacts,
            not_looked_at: Vec::new(),
            vulnerabilities,
            warnings,
            error,
        }
    }
}

fn counted(vulnerabilities: usize, warnings: usize) -> String {
    format!(
        "{} and {}",
        count(vulnerabilities, "vulnerability"),
        count(warnings, "warning")
    )
}

fn describe(report: &Audit) -> String {
    let mut lines = Vec::new();
    for artifact in &report.artifacts {
        let Audited {
            name,
            version,
            target,
            packages,
            findings,
            ..
        } = artifact;
        let known = match findings.len() {
            0 => "nothing known",
            _ => "",
        };
        let packages = count(*packages, "package");
        let line = format!("{name} {version} for {target}, {packages}: {known}");
        lines.push(line.trim_end().to_owned());
        for one in findings {
            let severity = one.severity.as_ref().map(|word| format!(" ({word})"));
            lines.push(format!(
                "  {}{}  {} {}  {}: {}",
                one.kind.name(),
                severity.unwrap_or_default(),
                one.package,
                one.version,
                one.id,
                one.title
            ));
            if !one.patched.is_empty() {
                lines.push(format!("      mended in {}", one.patched.join(", ")));
            }
        }
    }
    if !report.not_looked_at.is_empty() {
        lines.push(format!(
            "not looked at, since they are installed and not in the store: {}",
            report.not_looked_at.join(", ")
        ));
    }
    if report.artifacts.is_empty() {
        lines.push("no artifact is in the store".to_owned());
    }
    lines.push(format!(
        "{} in {}, by {} in {}",
        counted(report.vulnerabilities, report.warnings),
        count(report.artifacts.len(), "artifact"),
        count(report.advisories, "advisory"),
        report.database.display()
    ));
    lines.join("\n")
}

/// The archive of a file, of a root in the store, or of a crate in the store.
async fn archive(session: &Session, what: &str) -> Outcome<PathBuf> {
    if Path::new(what).is_file() {
        return Ok(PathBuf::from(what));
    }
    let stored = stored(session).await?;
    let is_root = what.len() >= ROOT_LEN_MIN && what.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found: Vec<&(Root, ArtifactKey)> = if is_root {
        let begins = |(root, _): &&(Root, ArtifactKey)| root.to_string().starts_with(what);
        stored.iter().filter(begins).collect()
    } else {
        let spec: CrateSpec = what.parse().map_err(|error| {
            let message = format!("{what:?} is neither a file, nor a root, nor a crate: {error}");
            Failure::new(Kind::Usage, message).hint("for instance `qk sbom hexyl@0.17.0`")
        })?;
        stored.iter().filter(|(_, key)| is_of(&spec, key)).collect()
    };
    let version = |one: &(Root, ArtifactKey)| one.1.version.parse::<Version>().ok();
    let newest = found.iter().filter_map(|one| version(one)).max();
    found.retain(|one| is_root || version(one) == newest);
    match found[..] {
        [] => Err(not_stored(what)),
        [(root, _)] => Ok(Store::blob_in(&session.home.store(), root)),
        _ => {
            let roots = found
                .iter()
                .map(|(root, key)| format!("{} for {}", root.short(), key.target));
            let roots: Vec<String> = roots.collect();
            let message = format!("{what} stands for {} artifacts in the store", found.len());
            let hint = format!(
                "name one by the beginning of its root, `qk store ls` shows them: {}",
                roots.join(", ")
            );
            Err(Failure::new(Kind::Usage, message).hint(hint))
        }
    }
}

/// The artifacts in the store that say what they are of.
async fn stored(session: &Session) -> Outcome<Vec<(Root, ArtifactKey)>> {
    let options = NodeOptions {
        offline: true,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let listed = access.store_ls().await;
    access.shutdown().await;
    let listed = listed.map_err(|problem| of_problem(&problem))?;
    let keyed = |one: Artifact| Some((one.blob.root, one.key?));
    Ok(listed.into_iter().filter_map(keyed).collect())
}

fn is_of(spec: &CrateSpec, key: &ArtifactKey) -> bool {
    let is_asked = match &spec.ask {
        Ask::Newest => true,
        Ask::Exact(version) => version.to_string() == key.version,
        Ask::Matching(req) => key.version.parse().is_ok_and(|one| req.matches(&one)),
    };
    spec.name == key.name && is_asked
}

/// Names and versions of what cargo's files say is installed.
fn installed() -> Outcome<Vec<(String, String)>> {
    let listed = install_root(None)?
        .list()
        .map_err(|error| of_install(&error))?;
    let packages = listed.packages().into_iter();
    Ok(packages.map(|one| (one.name, one.version)).collect())
}

fn not_stored_of(installed: Vec<(String, String)>, stored: &[(Root, ArtifactKey)]) -> Vec<String> {
    let is_here = |(name, version): &(String, String)| {
        let same = |key: &ArtifactKey| key.name == *name && key.version == *version;
        stored.iter().any(|(_, key)| same(key))
    };
    let missing = installed.into_iter().filter(|one| !is_here(one));
    missing
        .map(|(name, version)| format!("{name} {version}"))
        .collect()
}

fn not_stored(what: &str) -> Failure {
    let message = format!("no artifact of {what} is in the store");
    Failure::new(Kind::NotFound, message)
        .hint("`qk fetch` gets artifacts, `qk store ls` lists those that are here")
}

fn cargo_home() -> Outcome<PathBuf> {
    let config = CargoConfig::load(None).map_err(|error| of_registry(&error))?;
    Ok(config.home().to_owned())
}

/// What reading files came to.
enum Unread {
    Inventory(InventoryError),
    Audit(AuditError),
}

impl From<InventoryError> for Unread {
    fn from(error: InventoryError) -> Self {
        Self::Inventory(error)
    }
}

impl From<AuditError> for Unread {
    fn from(error: AuditError) -> Self {
        Self::Audit(error)
    }
}

async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unread> + Send + 'static,
) -> Outcome<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(failed)?;
    done.map_err(|unread| match unread {
        Unread::Inventory(error @ InventoryError::Io { .. }) => Failure::new(Kind::Other, error)
            .hint("an artifact of another user's node cannot be read: fetch it with a node of your own"),
        Unread::Inventory(error) => Failure::new(Kind::Corrupt, error)
            .hint("`qk store fsck` looks for damage in the store"),
        Unread::Audit(error @ AuditError::None(_)) => Failure::new(Kind::NotFound, error).hint(
            "`git clone https://github.com/RustSec/advisory-db` gets it, `--database DIR` says where it is; `cargo audit` keeps one where qk looks",
        ),
        Unread::Audit(error @ AuditError::Io { .. }) => Failure::new(Kind::Other, error)
            .hint("`--database DIR` names another checkout"),
        Unread::Audit(error @ AuditError::Bad { .. }) => Failure::new(Kind::Corrupt, error)
            .hint("nothing was audited: bring the checkout in order, `git -C DIR status` shows what was changed in it"),
    })
}
