//! Artifacts by the names that people and other tools know them by.
//!
//! Only what this node's own policy trusts is served, and its own builds count as anybody's. Whoever asks
//! is told why something is not: in words, or as JSON.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use qk_protocol::candidate::Wanted;
use qk_protocol::decide::{Decision, Effect};
use qk_protocol::key::check_crate_name;
use semver::Version;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::artifact::{About, File, answer, given, not_found, open, unreadable};
use super::forms::{Form, Packing, Source};
use super::server::{Client, Shared};
use crate::control::{FetchReport, Problem, ProblemKind};
use crate::node::FetchSpec;
use crate::registry::{Ask, Registry, RegistryError, RegistryOptions, Resolved};

/// Requests that are looked into at once; each may bring about a look-up and a download.
const LOOKING_MAX: usize = 16;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Releases whose checksum is remembered.
const RELEASES_MAX: usize = 4096;
/// How long it is remembered that the registry does not have something.
const ABSENT_TIME: Duration = Duration::from_secs(60);
/// A policy may change its mind: caches ask each time, which costs no bytes.
const CACHE_CONTROL: &str = "no-cache";
const SIGNATURE_SUFFIX: &str = ".sig";
const REPORT_SUFFIX: &str = ".json";

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) target: String,
}

/// Which file of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Form(Form),
    Signature(Form),
    Report,
}

/// Why something is not served.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) problem: Option<Box<Problem>>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl ToString) -> Self {
        Self {
            status,
            kind,
            message: message.to_string(),
            problem: None,
        }
    }

    fn response(self, headers: &HeaderMap) -> Response {
        let accepts = headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok());
        let body = match accepts.is_some_and(|accepts| accepts.contains("application/json")) {
            true => Json(json!({
                "kind": self.kind,
                "error": self.message,
                "network": self.problem.as_ref().and_then(|one| one.network.clone()),
                "verdict": self.problem.as_ref().and_then(|one| one.verdict.clone()),
            }))
            .into_response(),
            false => format!("{}: {}\n", self.kind, self.message).into_response(),
        };
        let headers = [
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (self.status, headers, body).into_response()
    }
}

/// What is looked into, and what was found of the registry.
#[derive(Debug)]
pub(super) struct Names {
    turns: Semaphore,
    releases: Mutex<BTreeMap<(String, Version), Found>>,
}

#[derive(Debug, Clone)]
enum Found {
    Here(Box<Resolved>),
    Absent(Instant, String),
}

impl Default for Names {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(LOOKING_MAX),
            releases: Mutex::default(),
        }
    }
}

impl Names {
    /// What the registry's index says of a release: that binds what is served to its source.
    async fn release(&self, name: &Name) -> Result<Resolved, Refusal> {
        let key = (name.name.clone(), name.version.clone());
        let absent = |why: String| Refusal::new(StatusCode::NOT_FOUND, "not-found", why);
        let known = self.releases().get(&key).cloned();
        match known {
            Some(Found::Here(resolved)) => return Ok(*resolved),
            Some(Found::Absent(at, why)) if at.elapsed() < ABSENT_TIME => return Err(absent(why)),
            Some(Found::Absent(..)) | None => {}
        }
        let (crate_name, ask) = (name.name.clone(), Ask::Exact(name.version.clone()));
        let asked = tokio::task::spawn_blocking(move || {
            Registry::open(&RegistryOptions::default())?.resolve(&crate_name, &ask)
        });
        let asked = asked
            .await
            .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "other", error))?;
        match asked {
            Ok(resolved) => {
                self.remember(key, Found::Here(Box::new(resolved.clone())));
                Ok(resolved)
            }
            Err(
                error @ (RegistryError::Name(_)
                | RegistryError::UnknownCrate { .. }
                | RegistryError::NoVersion { .. }
                | RegistryError::Yanked { .. }),
            ) => {
                let why = error.to_string();
                self.remember(key, Found::Absent(Instant::now(), why.clone()));
                Err(absent(why))
            }
            Err(error) => {
                tracing::warn!(%error, "the gateway cannot ask the registry");
                let why = "the registry's index cannot be read now";
                Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "network",
                    why,
                ))
            }
        }
    }

    fn releases(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, Version), Found>> {
        // A map of what was read: whole after every step.
        self.releases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: (String, Version), found: Found) {
        let mut releases = self.releases();
        if releases.len() >= RELEASES_MAX {
            releases.clear();
        }
        releases.insert(key, found);
    }
}

/// `/{name}/{version}/{target}.tgz` and the other forms.
pub(super) async fn by_release(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path((name, version, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let parsed =
        part(&file).and_then(|(target, part)| Some((read(&name, &version, target)?, part)));
    serve(&shared, client, parsed, &method, &headers).await
}

/// `/{name}-{version}/{name}-{version}-{target}.tar.gz`, as cargo-quickinstall lays its files out.
pub(super) async fn quick(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path((release, file)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let parsed = read_quick(&release, &file);
    serve(&shared, client, parsed, &method, &headers).await
}

fn part(file: &str) -> Option<(&str, Part)> {
    if let Some(target) = file.strip_suffix(REPORT_SUFFIX) {
        return Some((target, Part::Report));
    }
    match file.strip_suffix(SIGNATURE_SUFFIX) {
        Some(signed) => Form::split(signed).map(|(target, form)| (target, Part::Signature(form))),
        None => Form::split(file).map(|(target, form)| (target, Part::Form(form))),
    }
}

fn read_quick(release: &str, file: &str) -> Option<(Name, Part)> {
    let (target, part) = part(file.strip_prefix(release)?.strip_prefix('-')?)?;
    // Names have no dots and versions two, so only one of the hyphens is right.
    let hyphens = release.match_indices('-').map(|(at, _)| at);
    let name = hyphens
        .filter_map(|at| read(&release[..at], &release[at + 1..], target))
        .next()?;
    Some((name, part))
}

pub(super) fn read(name: &str, version: &str, target: &str) -> Option<Name> {
    check_crate_name(name).ok()?;
    let parsed: Version = version.parse().ok()?;
    let is_target = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let good = parsed.to_string() == version
        && (1..=64).contains(&target.len())
        && target.bytes().all(is_target);
    good.then(|| Name {
        name: name.to_owned(),
        version: parsed,
        target: target.to_owned(),
    })
}

async fn serve(
    shared: &Shared,
    client: Client,
    parsed: Option<(Name, Part)>,
    method: &Method,
    headers: &HeaderMap,
) -> Response {
    let Some((name, part)) = parsed else {
        return not_found(
            "expected /NAME/VERSION/TARGET.tgz, .tar, .tar.gz, .tar.zst, or the same with .qk.tar",
        );
    };
    let report = match vouched(shared, client, &name).await {
        Ok(report) => report,
        Err(refusal) => return refusal.response(headers),
    };
    let file = match part {
        Part::Report => return Json(described(shared, &name, &report)).into_response(),
        Part::Form(form) => sent(shared, &name, &report, form, method, headers).await,
        Part::Signature(form) => signature(shared, &name, &report, form).await,
    };
    file.unwrap_or_else(|refusal| refusal.response(headers))
}

/// The artifact of a name, if the policy trusts it; fetched for who asks, if this node is a cache that does
/// so.
pub(super) async fn vouched(
    shared: &Shared,
    client: Client,
    name: &Name,
) -> Result<FetchReport, Refusal> {
    let busy = |_| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many ask: come again",
        )
    };
    let turn = timeout(PATIENCE, shared.names.turns.acquire()).await;
    let _turn = turn.map_err(busy)?;
    let resolved = shared.names.release(name).await?;
    let obtains = shared.node.obtains_for_others(&name.name)
        && (client.is_local() || shared.guard.has_token() || shared.node.obtains_for_everybody());
    let spec = FetchSpec {
        wanted: Wanted {
            release: resolved.release,
            source: resolved.checksum,
            targets: vec![name.target.clone()],
            features: std::collections::BTreeSet::new(),
            default_features: true,
            rustflags: std::collections::BTreeSet::new(),
        },
        refresh: false,
        offline: !obtains,
        network: None,
        policy: None,
    };
    let fetched = shared.node.fetch_for_others(&spec).await;
    fetched.map_err(|error| refused(error.into()))
}

fn refused(problem: Problem) -> Refusal {
    let (status, kind, message) = match problem.verdict.as_deref().map(|one| &one.decision) {
        Some(Decision::Blocked { reason }) => (
            StatusCode::FORBIDDEN,
            "blocked",
            format!("the network says that nobody is to take it: {reason}"),
        ),
        Some(Decision::Disputed { roots }) => (
            StatusCode::FORBIDDEN,
            "disputed",
            format!("principals observed {} different artifacts", roots.len()),
        ),
        Some(Decision::Stale { why }) => (StatusCode::SERVICE_UNAVAILABLE, "stale", why.clone()),
        Some(Decision::Unproven(unproven)) => (
            StatusCode::NOT_FOUND,
            "unproven",
            format!(
                "{} of {} principals vouch for it: {}",
                unproven.have, unproven.need, unproven.missing
            ),
        ),
        Some(Decision::Trusted(_)) | None => match problem.kind {
            ProblemKind::NoNetwork | ProblemKind::Registry | ProblemKind::Target => {
                (StatusCode::NOT_FOUND, "not-found", problem.message.clone())
            }
            ProblemKind::Download => (StatusCode::NOT_FOUND, "not-here", problem.message.clone()),
            ProblemKind::NotAccepted => (
                StatusCode::FORBIDDEN,
                "not-accepted",
                problem.message.clone(),
            ),
            ProblemKind::Silent => (
                StatusCode::SERVICE_UNAVAILABLE,
                "network",
                problem.message.clone(),
            ),
            _ => {
                // What it says may name files.
                tracing::warn!(error = %problem, "the gateway cannot look something up");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "other",
                    "it cannot be looked up here".to_owned(),
                )
            }
        },
    };
    Refusal {
        status,
        kind,
        message,
        problem: Some(Box::new(problem)),
    }
}

/// Names of those whose observations count for what is trusted.
pub(super) fn principals(report: &FetchReport) -> Vec<&str> {
    let counting = report
        .lines
        .iter()
        .filter(|line| line.effect == Effect::Counts);
    counting
        .filter_map(|line| line.principal.as_deref())
        .collect()
}

fn described(shared: &Shared, name: &Name, report: &FetchReport) -> serde_json::Value {
    let subject = &report.trusted.subject;
    json!({
        "name": name.name,
        "version": name.version.to_string(),
        "target": name.target,
        "network": report.network_name,
        "network_id": report.network,
        "key_id": report.trusted.key_id,
        "root": subject.root,
        "sha256": subject.sha256,
        "size": subject.size,
        "principals": principals(report),
        "observations": report.lines,
        "signing_key": shared.forms.key().public(),
    })
}

async fn sent(
    shared: &Shared,
    name: &Name,
    report: &FetchReport,
    form: Form,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let root = report.trusted.subject.root;
    let (blobs, uploads) = gives(shared)?;
    let (blobs, root) = match form {
        Form {
            is_archive: true,
            packing: Packing::Tar,
        } => (blobs, root),
        _ => {
            let made = made(shared, name, report, form).await?;
            let root = made.root;
            (std::sync::Arc::new(made) as _, root)
        }
    };
    let opened = tokio::task::spawn_blocking(move || open(blobs, root, File::Archive)).await;
    let opened = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return Err(not_given()),
        Ok(Err(error)) => return Ok(unreadable(root, &error)),
        Err(error) => return Ok(unreadable(root, &error)),
    };
    let about = About {
        etag: format!("\"{root}\""),
        kind: form.kind(),
        cache_control: CACHE_CONTROL,
    };
    Ok(answer(opened, &about, method, headers, uploads).await)
}

async fn signature(
    shared: &Shared,
    name: &Name,
    report: &FetchReport,
    form: Form,
) -> Result<Response, Refusal> {
    gives(shared)?;
    let made = made(shared, name, report, form).await?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, CACHE_CONTROL),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, made.signature).into_response())
}

fn gives(
    shared: &Shared,
) -> Result<
    (
        std::sync::Arc<dyn crate::blocks::serve::Blobs>,
        crate::manners::Uploads,
    ),
    Refusal,
> {
    let given = given(shared).filter(|_| shared.node.manners().gives());
    given.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "not-given", "nothing is given now"))
}

fn not_given() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "not-given",
        "it is trusted, and this node does not give what it fetched",
    )
}

/// A form of what is trusted, if this node gives it at all.
async fn made(
    shared: &Shared,
    name: &Name,
    report: &FetchReport,
    form: Form,
) -> Result<super::forms::Made, Refusal> {
    let root = report.trusted.subject.root;
    let (blobs, _) = gives(shared)?;
    let is_given =
        tokio::task::spawn_blocking(move || Ok::<_, std::io::Error>(blobs.open(root)?.is_some()));
    if !matches!(is_given.await, Ok(Ok(true))) {
        return Err(not_given());
    }
    let source = Source {
        archive: report.archive.clone(),
        subject: report.trusted.subject,
        key: report.trusted.key.clone(),
        comment: format!(
            "{}-{}-{}{} blake3:{root} network:{} principals:{}",
            name.name,
            name.version,
            name.target,
            form.suffix(),
            report.network,
            principals(report).join(","),
        ),
    };
    shared.forms.get(source, form).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::TimedOut {
            let why = "too much is being packed: come again";
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why);
        }
        tracing::warn!(%root, %error, "the gateway cannot pack an artifact");
        let why = "it cannot be packed here";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "other", why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(release: &str, file: &str) -> Option<(String, String, String)> {
        let (name, _) = read_quick(release, file)?;
        Some((name.name, name.version.to_string(), name.target))
    }

    #[test]
    fn names_of_quickinstall_are_taken_apart() {
        let target = "x86_64-unknown-linux-gnu";
        for (name, version) in [
            ("hexyl", "0.17.0"),
            ("cargo-deny", "0.19.2"),
            ("a-1", "2.0.0"),
            ("a", "1.0.0-rc.1"),
            ("a-b_c", "1.0.0-2.0.0+build.7"),
        ] {
            let release = format!("{name}-{version}");
            let found = quick(&release, &format!("{release}-{target}.tar.gz"));
            let expected = (name.to_owned(), version.to_owned(), target.to_owned());
            assert_eq!(found, Some(expected));
        }
        for (release, file) in [
            (
                "hexyl-0.17.0",
                "hexyl-0.17.1-x86_64-unknown-linux-gnu.tar.gz",
            ),
            ("hexyl-0.17.0", "hexyl-0.17.0-.tar.gz"),
            ("hexyl-0.17", "hexyl-0.17-x86_64-unknown-linux-gnu.tar.gz"),
            (
                "hexyl-00.17.0",
                "hexyl-00.17.0-x86_64-unknown-linux-gnu.tar.gz",
            ),
            ("..-0.17.0", "..-0.17.0-x86_64-unknown-linux-gnu.tar.gz"),
            ("hexyl-0.17.0", "hexyl-0.17.0-../../etc.tar.gz"),
            ("", ""),
            ("-", "--.tar.gz"),
        ] {
            assert_eq!(quick(release, file), None, "{release}/{file}");
        }
    }

    #[test]
    fn paths_of_no_release_name_nothing() {
        let at = |file| part(file).and_then(|(target, _)| read("hexyl", "0.17.0", target));
        assert!(at("x86_64-unknown-linux-gnu.tgz.sig").is_some());
        for file in [
            "../x.tgz",
            "a/b.tgz",
            "a\0.tgz",
            ".tgz",
            "é.tgz",
            "a.sig",
            "a.tgz.sig.sig",
        ] {
            assert_eq!(at(file), None, "{file}");
        }
        assert_eq!(read("../etc", "0.17.0", "a"), None);
        assert_eq!(read("hexyl", "0.17.0 ", "a"), None);
        assert_eq!(read("hexyl", "0.17.0", &"a".repeat(65)), None);
    }
}
