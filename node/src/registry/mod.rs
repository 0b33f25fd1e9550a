//! Reads registries as cargo does: its configuration, its cache, its choice of versions.
//!
//! Everything here blocks; on the reactor it belongs into `spawn_blocking`.

mod ask;
mod config;
mod error;
mod http;
mod index;
mod package;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use qk_protocol::hash::Sha256;
use qk_protocol::key::{Release, check_crate_name};
use semver::Version;
use tame_index::external::http::{HeaderName, HeaderValue, StatusCode, header};
use tame_index::index::cache::{HttpRevision, Revision};
use tame_index::index::{IndexLocation, LocalIndex};
use tame_index::{IndexUrl, KrateName, SparseIndex};

pub use ask::Ask;
pub use config::CargoConfig;
pub use error::RegistryError;
pub use http::HttpError;
pub use index::IndexError;
pub(crate) use package::manifest_in;
pub use package::{CRATE_BYTES_MAX, LOCK_BYTES_MAX, PackageError, lock_digest};

use ask::{nearest, pick};
use config::Source;
use http::{Client, redacted};
use index::{Entry, Line};

/// `config.json` of an index may be this long.
const INDEX_CONFIG_BYTES_MAX: u64 = 64 * 1024;
/// How cargo names directories of its cache since 1.85; older ones get a cache of their own.
const CACHE_LAYOUT: Version = Version::new(1, 85, 0);

/// Which registry, and how to reach it.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// `$CARGO_HOME`; without it, that of the environment.
    pub cargo_home: Option<PathBuf>,
    /// A registry of cargo's configuration, `--registry`. Without it and `index`, crates.io.
    pub name: Option<String>,
    /// The URL of an index, `--index`.
    pub index: Option<String>,
    /// Stay off the network, whatever cargo's configuration says.
    pub offline: bool,
    /// How long the registry is not asked again about a crate after cargo or qk asked it. Zero: each
    /// time, as cargo does.
    pub fresh: Duration,
}

/// A registry, as cargo on this machine sees it.
#[derive(Debug)]
pub struct Registry {
    config: CargoConfig,
    source_id: String,
    place: Place,
    client: Client,
    offline: bool,
    fresh: Duration,
}

/// What is read in place of the registry.
enum Place {
    Sparse(SparseIndex),
    Local(PathBuf),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sparse(index) => write!(f, "Sparse({})", redacted(index.url())),
            Self::Local(dir) => write!(f, "Local({})", dir.display()),
        }
    }
}

/// A release that the registry has, and what its index says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Registry (cargo's canonical source id), name and version, spelled as the registry does.
    pub release: Release,
    /// SHA-256 of the `.crate` file.
    pub checksum: Sha256,
    /// Whether the release was withdrawn. Only [`Registry::release`] gives such ones.
    pub yanked: bool,
    /// Every feature and what it turns on; optional dependencies may be features beside these.
    pub features: BTreeMap<String, BTreeSet<String>>,
    /// The lowest Rust that the crate says it needs.
    pub rust_version: Option<String>,
    /// Whether this was read from cargo's cache without asking the registry.
    pub from_cache: bool,
}

/// Whether the registry has to be asked.
enum Found {
    Cached(Vec<Line>),
    Asked(Vec<Line>),
}

impl Registry {
    /// Opens a registry. Nothing is asked of the network yet.
    ///
    /// # Errors
    /// When cargo's configuration is unusable, or names a kind of registry that is not read here.
    pub fn open(options: &RegistryOptions) -> Result<Self, RegistryError> {
        let config = CargoConfig::load(options.cargo_home.as_deref())?;
        Self::with_config(config, options)
    }

    fn with_config(config: CargoConfig, options: &RegistryOptions) -> Result<Self, RegistryError> {
        let index = match (&options.name, &options.index) {
            (_, Some(index)) => Some(index.clone()),
            (Some(name), None) if name == "crates-io" => None,
            (Some(name), None) => Some(config.registry_index(name).ok_or_else(|| {
                RegistryError::Config(format!("cargo's configuration has no registry {name}"))
            })?),
            (None, None) => None,
        };
        let (source_id, source) = match &index {
            Some(url) if !is_crates_io(url) => (source_id(url)?, config.with_index(url)?),
            _ => (crates_io_id(), config.crates_io()?),
        };
        let place = Place::new(&source, &config, &source_id)?;
        Ok(Self {
            offline: options.offline || config.offline(),
            fresh: options.fresh,
            client: Client::new(&config),
            source_id,
            place,
            config,
        })
    }

    /// Cargo's canonical source id of the registry, whatever replaces it on this machine.
    pub fn source_id(&self) -> &str {
        &self.source_id
    }

    /// The configuration that the registry was opened with.
    pub fn config(&self) -> &CargoConfig {
        &self.config
    }

    /// Finds the release that is asked for, as `cargo install` would. An exact version that is in
    /// cargo's cache costs no network: name and version never change their checksum.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn resolve(&self, name: &str, ask: &Ask) -> Result<Resolved, RegistryError> {
        if let Some(found) = self.cached(name, ask)? {
            return Ok(self.resolved(found, true));
        }
        let (lines, from_cache) = match self.lines(name)? {
            Found::Cached(lines) => (lines, true),
            Found::Asked(lines) => (lines, false),
        };
        let line = pick(name, lines, ask)?;
        Ok(self.resolved(line, from_cache))
    }

    /// What the registry says about exactly this version, yanked or not: what a rebuild needs.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn release(&self, name: &str, version: &Version) -> Result<Resolved, RegistryError> {
        if let Some(line) = self.cached_line(name, version)? {
            return Ok(self.resolved(line, true));
        }
        let (lines, from_cache) = match self.lines(name)? {
            Found::Cached(lines) => (lines, true),
            Found::Asked(lines) => (lines, false),
        };
        let nearest = nearest(&lines, &Ask::Exact(version.clone()));
        let line = lines.into_iter().find(|line| line.vers == *version);
        match line {
            Some(line) => Ok(self.resolved(line, from_cache)),
            None => Err(RegistryError::NoVersion {
                name: name.to_owned(),
                asked: version.to_string(),
                nearest,
            }),
        }
    }

    /// Puts the `.crate` file of a release at `dest/NAME-VERSION.crate`: from there, from cargo's
    /// cache or from the registry. The file has the given checksum.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn download(
        &self,
        release: &Release,
        checksum: &Sha256,
        dest: &Path,
    ) -> Result<PathBuf, RegistryError> {
        if release.registry != self.source_id {
            return Err(RegistryError::Config(format!(
                "{release} belongs to another registry than {}",
                self.source_id
            )));
        }
        krate_name(&release.name)?;
        let version: Version = release
            .version
            .parse()
            .map_err(|error| RegistryError::Name(format!("{release}: {error}")))?;
        let file_name = format!("{}-{version}.crate", release.name);
        let target = dest.join(&file_name);
        if let Some(found) = package::take_file(&target, dest, checksum)? {
            return Ok(found);
        }
        for dir in self.crate_dirs() {
            if let Some(found) = package::take_file(&dir.join(&file_name), dest, checksum)? {
                return Ok(found);
            }
        }
        let index = match &self.place {
            Place::Sparse(index) if !self.offline => index,
            _ => return Err(PackageError::Offline(release.to_string()).into()),
        };
        let template = self.download_template(index)?;
        let url = download_url(&template, &release.name, &version, checksum)?;
        package::download(&self.client, &url, release, checksum, &target)?;
        Ok(target)
    }

    /// Where `.crate` files of any registry may already be.
    fn crate_dirs(&self) -> Vec<PathBuf> {
        if let Place::Local(dir) = &self.place {
            return vec![dir.clone()];
        }
        let cache = self.config.home().join("registry/cache");
        let dirs = std::fs::read_dir(cache).into_iter().flatten().flatten();
        let mut dirs: Vec<_> = dirs.map(|dir| dir.path()).take(64).collect();
        dirs.sort();
        dirs
    }

    /// What cargo's cache says, where the registry need not be asked.
    fn cached(&self, name: &str, ask: &Ask) -> Result<Option<Line>, RegistryError> {
        if let Ask::Exact(version) = ask {
            let line = self.cached_line(name, version)?;
            return Ok(line.filter(|line| !line.yanked));
        }
        let krate = krate_name(name)?;
        let Place::Sparse(index) = &self.place else {
            return Ok(None);
        };
        let file = index.cache().cache_path(krate);
        let file = file.as_std_path();
        if !self.offline && age(file).is_none_or(|age| age >= self.fresh) {
            return Ok(None);
        }
        let line = Entry::from_cache(file).and_then(|entry| entry.newest(ask));
        Ok(line.filter(|line| line.name == name))
    }

    fn cached_line(&self, name: &str, version: &Version) -> Result<Option<Line>, RegistryError> {
        let krate = krate_name(name)?;
        let Place::Sparse(index) = &self.place else {
            return Ok(None);
        };
        let entry = Entry::from_cache(index.cache().cache_path(krate).as_std_path());
        let line = entry.and_then(|entry| entry.line(version));
        Ok(line.filter(|line| line.name == name))
    }

    /// All lines of a crate: the registry's, or the cached ones where that cannot be reached.
    fn lines(&self, name: &str) -> Result<Found, RegistryError> {
        let krate = krate_name(name)?;
        let index = match &self.place {
            Place::Sparse(index) => index,
            Place::Local(dir) => return self.local_lines(dir, name, krate).map(Found::Asked),
        };
        let cached = || -> Option<Vec<Line>> {
            let file = index.cache().cache_path(krate);
            let lines = Entry::from_cache(file.as_std_path())?.lines().ok()?;
            (lines.first()?.name == name).then_some(lines)
        };
        if self.offline {
            let (name, registry) = (name.to_owned(), self.shown());
            let offline = RegistryError::Offline { name, registry };
            return cached().map(Found::Cached).ok_or(offline);
        }
        match self.ask(index, name, krate) {
            Ok(Some(lines)) => self.same_name(name, lines).map(Found::Asked),
            Ok(None) => Err(self.unknown(name, self.similar(index, name))),
            Err(error) if error.is_transport() => match cached() {
                Some(lines) => {
                    tracing::warn!(%error, "the registry cannot be reached; using cargo's cache");
                    Ok(Found::Cached(lines))
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// One request to a sparse index. `None` where it has no such crate.
    fn ask(
        &self,
        index: &SparseIndex,
        name: &str,
        krate: KrateName<'_>,
    ) -> Result<Option<Vec<Line>>, RegistryError> {
        let file = index.cache().cache_path(krate);
        let file = file.as_std_path();
        let url = index.crate_url(krate);
        let network = |error| self.network(format!("crate {name}"), error);
        let bad = |error: IndexError| self.bad_index(name, &error);

        let cached = Entry::from_cache(file);
        let usable = cached.as_ref().and_then(|entry| entry.lines().ok());
        let condition = match (&usable, cached.as_ref().and_then(Entry::revision)) {
            (Some(_), Some(revision)) => condition(&revision),
            _ => None,
        };
        let (status, revision, body) = self
            .client
            .get(&url, &headers(condition), ABSENT, |response| {
                let revision = revision_of(response.headers());
                let status = response.status();
                Ok((
                    status,
                    revision,
                    http::body(response, index::ENTRY_BYTES_MAX)?,
                ))
            })
            .map_err(network)?;
        if ABSENT.contains(&status) {
            return Ok(None);
        }
        if status == StatusCode::NOT_MODIFIED {
            // It is as good as one that was written now.
            let touched = std::fs::File::options().append(true).open(file);
            let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
            let unasked = HttpError::Status(StatusCode::NOT_MODIFIED);
            return usable.map(Some).ok_or_else(|| network(unasked));
        }
        let entry = Entry::from_lines(body).map_err(bad)?;
        let lines = entry.lines().map_err(bad)?;
        let revision = match &revision {
            Some((true, etag)) => Revision::Http(HttpRevision::Etag(etag)),
            Some((false, date)) => Revision::Http(HttpRevision::LastModified(date)),
            None => Revision::Unknown,
        };
        if let Err(error) = entry.store(file, &revision) {
            tracing::debug!(%error, "cargo's cache of the index cannot be written");
        }
        Ok(Some(lines))
    }

    fn local_lines(
        &self,
        dir: &Path,
        name: &str,
        krate: KrateName<'_>,
    ) -> Result<Vec<Line>, RegistryError> {
        let bad = |error: &dyn std::fmt::Display| self.bad_index(name, error);
        let root = tame_index::PathBuf::from_path_buf(dir.join("index"))
            .map_err(|_| RegistryError::Config(format!("{} is not UTF-8", dir.display())))?;
        let file = LocalIndex::open(root)
            .map_err(|error| bad(&error))?
            .krate_path(krate);
        let bytes = match std::fs::metadata(&file) {
            Err(_) => return Err(self.unknown(name, Vec::new())),
            Ok(meta) if meta.len() > index::ENTRY_BYTES_MAX => return Err(bad(&"too long")),
            Ok(_) => std::fs::read(&file).map_err(|error| bad(&error))?,
        };
        let entry = Entry::from_lines(bytes).map_err(|error| bad(&error))?;
        self.same_name(name, entry.lines().map_err(|error| bad(&error))?)
    }

    /// Indexes are looked up without regard to case; crates are not.
    fn same_name(&self, name: &str, lines: Vec<Line>) -> Result<Vec<Line>, RegistryError> {
        match lines.iter().find(|line| line.name != name) {
            None => Ok(lines),
            Some(other) => Err(self.unknown(name, vec![other.name.clone()])),
        }
    }

    /// Crates whose names are the same but for `-` and `_`, with a few requests.
    fn similar(&self, index: &SparseIndex, name: &str) -> Vec<String> {
        let spellings = BTreeSet::from([name.replace('_', "-"), name.replace('-', "_")]);
        let mut found = BTreeSet::new();
        for other in spellings.iter().filter(|other| *other != name) {
            let Ok(krate) = krate_name(other) else {
                continue;
            };
            if let Ok(Some(lines)) = self.ask(index, other, krate) {
                found.extend(lines.into_iter().next_back().map(|line| line.name));
            }
        }
        found.into_iter().collect()
    }

    /// The URL template of `.crate` files: from cargo's cache of the index, or asked for.
    fn download_template(&self, index: &SparseIndex) -> Result<String, RegistryError> {
        let bad = |why: &dyn std::fmt::Display| self.bad_index("config.json", why);
        let config = match index.index_config() {
            Ok(config) => config,
            Err(_) => {
                let url = format!("{}config.json", index.url());
                let read = |response| http::body(response, INDEX_CONFIG_BYTES_MAX);
                let body = self
                    .client
                    .get(&url, &headers(None), &[], read)
                    .map_err(|error| self.network("config.json".to_owned(), error))?;
                serde_json::from_slice::<tame_index::index::IndexConfig>(&body)
                    .map_err(|error| bad(&error))?
            }
        };
        if config.auth_required {
            return Err(RegistryError::Token(self.shown()));
        }
        if !config.dl.starts_with("https://") && !config.dl.starts_with("http://") {
            return Err(bad(&"its dl is not an http URL"));
        }
        Ok(config.dl)
    }

    fn resolved(&self, line: Line, from_cache: bool) -> Resolved {
        Resolved {
            features: line.all_features(),
            release: Release {
                registry: self.source_id.clone(),
                name: line.name,
                version: line.vers.to_string(),
            },
            checksum: line.cksum,
            yanked: line.yanked,
            rust_version: line.rust_version,
            from_cache,
        }
    }

    fn shown(&self) -> String {
        if self.source_id == crates_io_id() {
            "crates.io".to_owned()
        } else {
            redacted(&self.source_id)
        }
    }

    fn unknown(&self, name: &str, similar: Vec<String>) -> RegistryError {
        RegistryError::UnknownCrate {
            name: name.to_owned(),
            registry: self.shown(),
            similar,
        }
    }

    fn network(&self, what: String, error: HttpError) -> RegistryError {
        match error {
            HttpError::Status(StatusCode::UNAUTHORIZED) => RegistryError::Token(self.shown()),
            error => RegistryError::Network {
                registry: self.shown(),
                what,
                error,
            },
        }
    }

    fn bad_index(&self, name: &str, why: &dyn std::fmt::Display) -> RegistryError {
        RegistryError::BadIndex {
            registry: self.shown(),
            name: name.to_owned(),
            why: why.to_string(),
        }
    }
}

/// How long ago a file was written; none for one that is not there, or was written in the future.
fn age(file: &Path) -> Option<Duration> {
    let modified = file.metadata().ok()?.modified().ok()?;
    SystemTime::now().duration_since(modified).ok()
}

impl Place {
    fn new(source: &Source, config: &CargoConfig, id: &str) -> Result<Self, RegistryError> {
        let unsupported = |why| RegistryError::Unsupported {
            registry: redacted(id),
            why,
        };
        match source {
            Source::Sparse(url) => {
                let home = tame_index::PathBuf::from_path_buf(config.home().to_owned())
                    .map_err(|_| RegistryError::Config("CARGO_HOME is not UTF-8".to_owned()))?;
                let mut location =
                    IndexLocation::new(IndexUrl::NonCratesIo(url.into())).with_root(Some(home));
                // Without a version the library would start cargo to ask for it.
                location.cargo_version = Some(CACHE_LAYOUT);
                SparseIndex::new(location).map(Self::Sparse).map_err(|_| {
                    RegistryError::Config(format!("{} is not a sparse index", redacted(url)))
                })
            }
            Source::Local(dir) => Ok(Self::Local(dir.clone())),
            Source::Git(_) => Err(unsupported("has a git index")),
            Source::Directory(_) => Err(unsupported("is replaced by vendored sources")),
        }
    }
}

/// What a sparse index answers for a crate that it does not have.
const ABSENT: &[StatusCode] = &[
    StatusCode::NOT_FOUND,
    StatusCode::GONE,
    StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
];

/// Reads a small document that the user named, within the bounds and with the proxies and
/// certificates that cargo's configuration gives.
///
/// # Errors
/// When it cannot be had, or is longer than `bytes_max`.
pub fn get_small(url: &str, bytes_max: usize) -> Result<Vec<u8>, RegistryError> {
    let failed = |error| RegistryError::Network {
        registry: redacted(url),
        what: "a document".to_owned(),
        error,
    };
    let client = Client::new(&CargoConfig::load(None)?);
    client
        .get(url, &[], &[], |answer| http::body(answer, bytes_max as u64))
        .map_err(failed)
}

/// Cargo's source id of crates.io, which names its git index whatever is read.
pub fn crates_io_id() -> String {
    format!("registry+{}", tame_index::CRATES_IO_INDEX)
}

fn is_crates_io(url: &str) -> bool {
    url.strip_prefix("registry+").unwrap_or(url) == tame_index::CRATES_IO_INDEX
        || url.trim_end_matches('/') == tame_index::CRATES_IO_HTTP_INDEX.trim_end_matches('/')
}

/// Cargo's source id of a registry with this index.
fn source_id(url: &str) -> Result<String, RegistryError> {
    let url = url.strip_prefix("registry+").unwrap_or(url);
    if redacted(url) != url {
        return Err(RegistryError::Config(format!(
            "{}: the URL of an index may not hold a user, password, query or fragment",
            redacted(url)
        )));
    }
    if url.starts_with("sparse+") {
        Ok(url.to_owned())
    } else {
        Ok(format!("registry+{url}"))
    }
}

fn krate_name(name: &str) -> Result<KrateName<'_>, RegistryError> {
    check_crate_name(name).map_err(|error| RegistryError::Name(error.to_string()))?;
    KrateName::try_from(name).map_err(|error| RegistryError::Name(format!("{name}: {error}")))
}

fn headers(condition: Option<(HeaderName, HeaderValue)>) -> Vec<(HeaderName, HeaderValue)> {
    let cargo = HeaderName::from_static("cargo-protocol");
    let mut headers = vec![
        (cargo, HeaderValue::from_static("version=1")),
        (header::ACCEPT, HeaderValue::from_static("text/plain")),
    ];
    headers.extend(condition);
    headers
}

fn condition(revision: &HttpRevision<'_>) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = match revision {
        HttpRevision::Etag(etag) => (header::IF_NONE_MATCH, *etag),
        HttpRevision::LastModified(date) => (header::IF_MODIFIED_SINCE, *date),
    };
    Some((name, HeaderValue::from_str(value.trim()).ok()?))
}

/// The revision that an answer came with; `true` for an etag.
fn revision_of(headers: &tame_index::external::http::HeaderMap) -> Option<(bool, String)> {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.trim().to_owned());
    text(header::ETAG)
        .map(|etag| (true, etag))
        .or_else(|| text(header::LAST_MODIFIED).map(|date| (false, date)))
}

/// Fills in the markers of `dl` in an index's `config.json`, or appends cargo's default path.
fn download_url(
    dl: &str,
    name: &str,
    version: &Version,
    checksum: &Sha256,
) -> Result<String, RegistryError> {
    let mut prefix = String::new();
    krate_name(name)?.prefix(&mut prefix, '/');
    let markers = [
        ("{crate}", name.to_owned()),
        ("{version}", version.to_string()),
        ("{prefix}", prefix.clone()),
        ("{lowerprefix}", prefix.to_lowercase()),
        ("{sha256-checksum}", checksum.to_string()),
    ];
    if !markers.iter().any(|(marker, _)| dl.contains(marker)) {
        let dl = dl.trim_end_matches('/');
        return Ok(format!("{dl}/{name}/{version}/download"));
    }
    let fill = |url: String, (marker, value): &(&str, String)| url.replace(marker, value);
    Ok(markers.iter().fold(dl.to_owned(), fill))
}

#[cfg(test)]
mod tests;
