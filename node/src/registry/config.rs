//! Cargo's configuration, as far as it says where crates come from and where executables go.
//!
//! Read as `cargo install` reads it: `.cargo/config.toml` beside and above `$CARGO_HOME`, then
//! `$CARGO_HOME/config.toml`, with the environment above both. The configuration of the directory
//! that a person happens to stand in does not take part, for cargo's reason and one more: a project
//! that replaces the registry's index would choose the checksums that artifacts are bound to.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::RegistryError;

/// A configuration file of cargo may be this long.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Most steps from a source to what replaces it, and from a file to what it includes.
const HOPS_MAX: usize = 16;
/// Values that are paths; they count from the directory that holds the `.cargo` directory.
const PATHS: [&[&str]; 2] = [&["install", "root"], &["http", "cainfo"]];
/// Members of a `[source]` that are paths.
const SOURCE_PATHS: [&str; 2] = ["local-registry", "directory"];

/// Cargo's configuration and the environment variables that override it.
#[derive(Debug, Clone)]
pub struct CargoConfig {
    home: PathBuf,
    table: Table,
    env: fn(&str) -> Option<OsString>,
}

/// Where a registry's index and crates really come from, after replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A sparse index, `sparse+https://…/`.
    Sparse(String),
    /// A git index, which this module does not read.
    Git(String),
    /// A local registry: `index/` and `NAME-VERSION.crate` in one directory.
    Local(PathBuf),
    /// Vendored sources, which have no `.crate` files.
    Directory(PathBuf),
}

impl CargoConfig {
    /// Reads the configuration for a `$CARGO_HOME`; without one, that of the environment.
    ///
    /// # Errors
    /// When there is no home directory, or a configuration file cannot be read or understood.
    pub fn load(cargo_home: Option<&Path>) -> Result<Self, RegistryError> {
        let home = match cargo_home {
            Some(home) => home.to_owned(),
            None => default_home()?,
        };
        Self::load_with(home, |name| std::env::var_os(name))
    }

    pub(super) fn load_with(
        home: PathBuf,
        env: fn(&str) -> Option<OsString>,
    ) -> Result<Self, RegistryError> {
        let home = std::path::absolute(&home).map_err(|error| config(&home, error))?;
        let mut table = Table::new();
        let mut seen = BTreeSet::new();
        let above = home.ancestors().map(|dir| dir.join(".cargo"));
        for dir in above.chain([home.clone()]) {
            // Cargo prefers the old name without an ending where both exist.
            let files = [dir.join("config"), dir.join("config.toml")];
            let Some(file) = files.iter().find(|file| file.is_file()) else {
                continue;
            };
            if seen.insert(file.clone()) {
                merge(&mut table, read_file(file, HOPS_MAX)?);
            }
        }
        Ok(Self { home, table, env })
    }

    /// `$CARGO_HOME`, absolute.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The install root that the environment or a configuration file names.
    pub fn install_root(&self) -> Option<PathBuf> {
        match (self.env)("CARGO_INSTALL_ROOT").filter(|root| !root.is_empty()) {
            Some(root) => Some(root.into()),
            None => self.get(&["install", "root"]).map(PathBuf::from),
        }
    }

    /// Whether cargo was told to stay off the network.
    pub(super) fn offline(&self) -> bool {
        match self.env_text("CARGO_NET_OFFLINE") {
            Some(text) => text == "true",
            None => self.value(&["net", "offline"]).and_then(Value::as_bool) == Some(true),
        }
    }

    /// A string member, with the environment variable that overrides it.
    pub(super) fn text(&self, path: &[&str]) -> Option<String> {
        let name = format!("CARGO_{}", path.join("_").to_uppercase().replace('-', "_"));
        self.env_text(&name)
            .or_else(|| self.get(path).map(str::to_owned))
    }

    /// A whole number, with the environment variable that overrides it.
    pub(super) fn number(&self, path: &[&str]) -> Option<u64> {
        self.text(path)
            .and_then(|text| text.parse().ok())
            .or_else(|| self.value(path)?.as_integer()?.try_into().ok())
    }

    /// An environment variable that is set, UTF-8 and not empty.
    pub(super) fn env_text(&self, name: &str) -> Option<String> {
        (self.env)(name)?
            .into_string()
            .ok()
            .filter(|text| !text.is_empty())
    }

    /// The index URL of a registry that `[registries]` or the environment names.
    pub(super) fn registry_index(&self, name: &str) -> Option<String> {
        self.text(&["registries", name, "index"])
    }

    /// Where crates.io's crates come from.
    pub(super) fn crates_io(&self) -> Result<Source, RegistryError> {
        let own = match self.text(&["registries", "crates-io", "protocol"]) {
            Some(protocol) if protocol == "git" => tame_index::CRATES_IO_INDEX,
            _ => tame_index::CRATES_IO_HTTP_INDEX,
        };
        self.replaced("crates-io", own)
    }

    /// Where the crates of the registry with this index come from.
    pub(super) fn with_index(&self, url: &str) -> Result<Source, RegistryError> {
        let sources = self.value(&["source"]).and_then(Value::as_table);
        let name = sources.into_iter().flatten().find_map(|(name, source)| {
            (source.get("registry")?.as_str()? == url).then_some(name.as_str())
        });
        match name {
            Some(name) => self.replaced(name, url),
            None => Ok(by_url(url)),
        }
    }

    /// Follows `replace-with` from the source `name`, whose own index is `own`.
    fn replaced(&self, name: &str, own: &str) -> Result<Source, RegistryError> {
        let mut at = name.to_owned();
        for _ in 0..HOPS_MAX {
            if let Some(next) = self.get(&["source", &at, "replace-with"]) {
                at = next.to_owned();
                continue;
            }
            if at == name {
                return Ok(by_url(own));
            }
            return self.defined(&at).ok_or_else(|| {
                RegistryError::Config(format!(
                    "cargo's configuration replaces source {name} with {at}, which it does not define"
                ))
            });
        }
        Err(RegistryError::Config(format!(
            "cargo's configuration replaces source {name} in a circle"
        )))
    }

    fn defined(&self, name: &str) -> Option<Source> {
        let member = |member| self.get(&["source", name, member]);
        if let Some(url) = member("registry") {
            return Some(by_url(url));
        }
        if let Some(dir) = member("local-registry") {
            return Some(Source::Local(dir.into()));
        }
        if let Some(dir) = member("directory") {
            return Some(Source::Directory(dir.into()));
        }
        self.registry_index(name).as_deref().map(by_url)
    }

    fn get(&self, path: &[&str]) -> Option<&str> {
        self.value(path)?.as_str()
    }

    fn value(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.table.get(*first)?, |value, name| value.get(name))
    }
}

/// `$CARGO_HOME`, or `.cargo` in the home directory.
fn default_home() -> Result<PathBuf, RegistryError> {
    tame_index::utils::cargo_home()
        .map(Into::into)
        .map_err(|error| RegistryError::Config(format!("no directory for CARGO_HOME: {error}")))
}

fn by_url(url: &str) -> Source {
    if url.starts_with("sparse+") {
        Source::Sparse(url.to_owned())
    } else {
        Source::Git(url.strip_prefix("registry+").unwrap_or(url).to_owned())
    }
}

/// Reads one file and what it includes; its own values win over the included ones.
fn read_file(file: &Path, hops: usize) -> Result<Table, RegistryError> {
    if hops == 0 {
        return Err(config(file, "includes too many files in a row"));
    }
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| config(file, error))?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(config(file, "is longer than 1 MiB"));
    }
    let mut table: Table = text.parse().map_err(|error| config(file, error))?;
    make_absolute(&mut table, file);
    let includes = table.remove("include");
    let includes = match &includes {
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    // Later includes win over earlier ones, the file itself over all.
    for include in includes.iter().rev() {
        let optional = include.get("optional").and_then(Value::as_bool) == Some(true);
        let path = include.as_str().or_else(|| include.get("path")?.as_str());
        let path = path.ok_or_else(|| config(file, "has an include without a path"))?;
        let path = file.with_file_name("").join(path);
        if !optional || path.exists() {
            merge(&mut table, read_file(&path, hops - 1)?);
        }
    }
    Ok(table)
}

fn make_absolute(table: &mut Table, file: &Path) {
    // `.cargo/config.toml` speaks of paths as seen from the directory around `.cargo`.
    let Some(base) = file.parent().and_then(Path::parent) else {
        return;
    };
    let join = |value: Option<&mut Value>| {
        if let Some(Value::String(path)) = value {
            *path = base.join(&*path).to_string_lossy().into_owned();
        }
    };
    for [section, member] in PATHS.map(|path| [path[0], path[1]]) {
        join(table.get_mut(section).and_then(|it| it.get_mut(member)));
    }
    if let Some(Value::Table(sources)) = table.get_mut("source") {
        for (_, source) in sources.iter_mut() {
            SOURCE_PATHS.iter().for_each(|it| join(source.get_mut(it)));
        }
    }
}

/// Adds what `base` does not have yet.
fn merge(base: &mut Table, more: Table) {
    for (name, value) in more {
        match (base.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (Some(_), _) => {}
            (None, value) => {
                base.insert(name, value);
            }
        }
    }
}

fn config(file: &Path, error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Config(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(dir: &Path, text: &str) -> CargoConfig {
        load_env(dir, text, |_| None)
    }

    fn load_env(dir: &Path, text: &str, env: fn(&str) -> Option<OsString>) -> CargoConfig {
        let home = dir.join("user/.cargo");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("config.toml"), text).unwrap();
        CargoConfig::load_with(home, env).unwrap()
    }

    #[test]
    fn replacement_is_followed_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let config = load(
            dir.path(),
            r#"
            [source.crates-io]
            replace-with = "a"
            [source.a]
            registry = "sparse+https://a.example/"
            replace-with = "b"
            [source.other]
            registry = "sparse+https://registry.example/index/"
            replace-with = "files"
            [source.files]
            local-registry = "mirror"
            [registries.b]
            index = "sparse+https://b.example/"
            "#,
        );
        let b = Source::Sparse("sparse+https://b.example/".into());
        assert_eq!(config.crates_io().unwrap(), b);
        let other = config.with_index("sparse+https://registry.example/index/");
        let mirror = dir.path().join("user/mirror");
        assert_eq!(other.unwrap(), Source::Local(mirror));
    }

    #[test]
    fn circles_and_unknown_names_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let circle = "[source.crates-io]\nreplace-with='a'\n[source.a]\nreplace-with='crates-io'";
        assert!(load(dir.path(), circle).crates_io().is_err());
        let unknown = "[source.crates-io]\nreplace-with='a'";
        let error = load(dir.path(), unknown).crates_io().unwrap_err();
        assert!(error.to_string().contains("does not define"), "{error}");
    }

    #[test]
    fn nearer_files_and_the_environment_win() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".cargo")).unwrap();
        let above = dir.path().join(".cargo/config.toml");
        std::fs::write(
            above,
            "[net]\noffline=true\n[install]\nroot='far'\n[http]\ncainfo='ca.pem'",
        )
        .unwrap();
        let text = "include = ['more.toml']\n[install]\nroot = 'near'";
        std::fs::create_dir_all(dir.path().join("user/.cargo")).unwrap();
        std::fs::write(
            dir.path().join("user/.cargo/more.toml"),
            "install.root = 'x'\nhttp.proxy = 'proxy.example:80'",
        )
        .unwrap();
        let config = load(dir.path(), text);
        assert_eq!(config.install_root(), Some(dir.path().join("user/near")));
        assert!(config.offline());
        let cainfo = dir.path().join("ca.pem");
        assert_eq!(config.get(&["http", "cainfo"]), cainfo.to_str());
        let proxy = config.text(&["http", "proxy"]);
        assert_eq!(proxy.as_deref(), Some("proxy.example:80"));

        let env = |name: &str| match name {
            "CARGO_INSTALL_ROOT" => Some("/opt/tools".into()),
            "CARGO_NET_OFFLINE" => Some("false".into()),
            "CARGO_REGISTRIES_MY_OWN_INDEX" => Some("sparse+https://registry.example/".into()),
            _ => None,
        };
        let config = load_env(dir.path(), text, env);
        assert_eq!(config.install_root(), Some("/opt/tools".into()));
        assert!(!config.offline());
        let index = config.registry_index("my-own").unwrap();
        assert_eq!(index, "sparse+https://registry.example/");
    }

    #[test]
    fn a_project_directory_takes_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("user/project");
        std::fs::create_dir_all(project.join(".cargo")).unwrap();
        std::fs::write(
            project.join(".cargo/config.toml"),
            "[source.crates-io]\nreplace-with='evil'\n[source.evil]\nregistry='sparse+https://evil.example/'",
        )
        .unwrap();
        let config = load(dir.path(), "");
        let own = Source::Sparse(tame_index::CRATES_IO_HTTP_INDEX.to_owned());
        assert_eq!(config.crates_io().unwrap(), own);

        // A reader that starts in the project's directory is led astray.
        let utf8 = |path: &Path| tame_index::PathBuf::from_path_buf(path.to_owned()).unwrap();
        let home = utf8(config.home());
        let index =
            tame_index::IndexUrl::crates_io(Some(utf8(&project)), Some(&home), Some("1.95.0"));
        assert_eq!(index.unwrap().as_str(), "sparse+https://evil.example/");
    }
}
