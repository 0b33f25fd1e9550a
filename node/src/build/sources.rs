//! Sources: a `.crate` file unpacked strictly, and the configuration with which cargo fetches the
//! dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::sandbox::Bind;

/// A `.crate` file is at most this large (crates.io takes 10 MiB, other registries more).
pub const CRATE_BYTES_MAX: u64 = 256 << 20;
/// Unpacked it is at most this large.
pub const UNPACKED_BYTES_MAX: u64 = 1 << 30;
/// And has at most this many files and directories.
pub const ENTRIES_MAX: usize = 50_000;
/// A lock file is at most this large.
pub const LOCK_BYTES_MAX: u64 = 4 << 20;
/// A user's configuration file is at most this large.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// At the top of a package these would tell cargo which compiler, wrapper or flags to use.
const REMOVED: &[&str] = &[".cargo", "rust-toolchain", "rust-toolchain.toml"];

/// What is wrong with a `.crate` file.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a gzipped tar, or cut off.
    #[error("the .crate file cannot be read: {0}")]
    Read(#[from] io::Error),
    /// An entry that is not allowed in a `.crate`.
    #[error("the .crate file holds {path:?}: {why}")]
    Entry {
        /// The beginning of its path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than the limits above.
    #[error("the .crate file unpacks to more than {what}")]
    TooMuch {
        /// Which limit.
        what: String,
    },
}

/// Unpacks the files below `<name>-<version>/` into `into`, which exists and is empty.
///
/// # Errors
/// For anything but regular files and directories below that prefix, each once, within the
/// limits. What was written by then is left for the caller to remove.
pub fn unpack(crate_file: &Path, prefix: &str, into: &Path) -> Result<(), UnpackError> {
    let packed = File::open(crate_file)?.take(CRATE_BYTES_MAX);
    // One byte more than allowed, so that too much is told from just enough.
    let plain = flate2::read::GzDecoder::new(packed).take(UNPACKED_BYTES_MAX + 1);
    let mut archive = tar::Archive::new(plain);
    let mut left = UNPACKED_BYTES_MAX;
    for (number, entry) in archive.entries()?.enumerate() {
        if number >= ENTRIES_MAX {
            let what = format!("{ENTRIES_MAX} files");
            return Err(UnpackError::TooMuch { what });
        }
        let mut entry = entry?;
        left = left
            .checked_sub(entry.size())
            .ok_or_else(|| UnpackError::TooMuch {
                what: format!("{UNPACKED_BYTES_MAX} bytes"),
            })?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        let executable = entry.header().mode()? & 0o111 != 0;
        let relative = below(&path, prefix)?;
        if relative.as_os_str().is_empty() || removed(&relative) {
            continue;
        }
        let target = into.join(&relative);
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
        } else if kind.is_file() {
            write(&mut entry, &target, executable).map_err(|error| duplicate(error, &path))?;
        } else {
            return Err(odd(&path, "neither a file nor a directory"));
        }
    }
    Ok(())
}

fn write(entry: &mut impl Read, target: &Path, executable: bool) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(target)?;
    io::copy(entry, &mut file).map(drop)
}

fn duplicate(error: io::Error, path: &Path) -> UnpackError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => odd(path, "twice"),
        _ => error.into(),
    }
}

fn below(path: &Path, prefix: &str) -> Result<PathBuf, UnpackError> {
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    if !path.components().all(plain) {
        return Err(odd(path, "not a plain relative path"));
    }
    let relative = path.strip_prefix(prefix);
    relative
        .map(Path::to_path_buf)
        .map_err(|_| odd(path, "not below the directory of its name and version"))
}

fn removed(relative: &Path) -> bool {
    let first = relative.components().next();
    first.is_some_and(|first| REMOVED.iter().any(|name| first.as_os_str() == *name))
}

fn odd(path: &Path, why: &'static str) -> UnpackError {
    let path = path.to_string_lossy().chars().take(200).collect();
    UnpackError::Entry { path, why }
}

/// How the fetch phase reaches registries: the user's source replacement, proxy and certificates,
/// and nothing else of the user's configuration.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The tables `source`, `registries`, `http` and `net` that are passed on.
    config: toml::Table,
    /// Environment variables that are passed on.
    env: Vec<(String, OsString)>,
    /// The certificates, and registries that are directories of this machine.
    binds: Vec<Bind>,
}

const INSIDE_CA: &str = "/qk/certificates.pem";
const PASSED: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "CARGO_HTTP_PROXY",
    "CARGO_HTTP_TIMEOUT",
    "CARGO_HTTP_MULTIPLEXING",
    "CARGO_HTTP_CHECK_REVOKE",
    "CARGO_NET_RETRY",
    "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
];
const HTTP: &[&str] = &[
    "proxy",
    "timeout",
    "check-revoke",
    "multiplexing",
    "low-speed-limit",
    "ssl-version",
    "user-agent",
];
const CA_VARIABLES: &[&str] = &["CARGO_HTTP_CAINFO", "SSL_CERT_FILE", "CURL_CA_BUNDLE"];
const CA_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Access {
    /// Reads the user's `$CARGO_HOME/config.toml` and environment. A configuration that cannot be
    /// read counts as none: cargo itself would complain about it elsewhere.
    pub fn of_user() -> Self {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
        Self::of_cargo_home(&home.unwrap_or_default())
    }

    /// The same with another directory in place of the user's `$CARGO_HOME`.
    pub fn of_cargo_home(home: &Path) -> Self {
        let config = ["config.toml", "config"]
            .iter()
            .find_map(|name| read_config(&home.join(name)));
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::new(&config.unwrap_or_default(), &variable)
    }

    fn new(user: &toml::Table, variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let mut access = Self::default();
        for table in ["source", "registries"] {
            access.registries(user, table);
        }
        let http = user.get("http").and_then(toml::Value::as_table);
        let mut kept = toml::Table::new();
        for (name, value) in http.into_iter().flatten() {
            if HTTP.contains(&name.as_str()) {
                kept.insert(name.clone(), value.clone());
            }
        }
        let ca = CA_VARIABLES
            .iter()
            .find_map(|name| variable(name).map(PathBuf::from))
            .or_else(|| http?.get("cainfo")?.as_str().map(PathBuf::from))
            .into_iter()
            .chain(CA_FILES.iter().map(PathBuf::from))
            .find(|path| path.is_file());
        if let Some(ca) = ca {
            access.binds.push(Bind::read(ca, INSIDE_CA));
            kept.insert("cainfo".into(), INSIDE_CA.into());
        }
        access.config.insert("http".into(), kept.into());
        for &name in PASSED {
            if let Some(value) = variable(name) {
                access.env.push((name.to_owned(), value));
            }
        }
        access
    }

    /// Keeps what says where a registry is; a directory is bound and named by its new place.
    fn registries(&mut self, user: &toml::Table, table: &str) {
        const KEPT: &[&str] = &["registry", "replace-with", "index"];
        const DIRECTORIES: &[&str] = &["local-registry", "directory"];
        let mut all = toml::Table::new();
        let given = user.get(table).and_then(toml::Value::as_table);
        for (name, source) in given.into_iter().flatten() {
            let mut kept = toml::Table::new();
            for (key, value) in source.as_table().into_iter().flatten() {
                if KEPT.contains(&key.as_str()) {
                    kept.insert(key.clone(), value.clone());
                }
                let path = value.as_str().map(PathBuf::from);
                let path = path.filter(|path| path.is_absolute() && path.is_dir());
                if let Some(path) = path.filter(|_| DIRECTORIES.contains(&key.as_str())) {
                    let inside = format!("/qk/registries/{}", self.binds.len());
                    kept.insert(key.clone(), inside.clone().into());
                    self.binds.push(Bind::read(path, inside));
                }
            }
            all.insert(name.clone(), kept.into());
        }
        if !all.is_empty() {
            self.config.insert(table.to_owned(), all.into());
        }
    }

    /// The text of the `config.toml` that the fetch phase gets.
    pub(crate) fn config(&self) -> String {
        self.config.to_string()
    }

    pub(crate) fn env(&self) -> &[(String, OsString)] {
        &self.env
    }

    /// Certificates, local registries, and what name look-ups need.
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let mut binds = self.binds.clone();
        for path in ["/etc/resolv.conf", "/etc/hosts"] {
            if Path::new(path).is_file() {
                binds.push(Bind::read(path, path));
            }
        }
        binds
    }
}

fn read_config(path: &Path) -> Option<toml::Table> {
    let text = read_text(path, CONFIG_BYTES_MAX).ok()?;
    text.parse().ok()
}

/// Reads a text file of at most `bytes_max` bytes.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(bytes_max + 1)
        .read_to_string(&mut text)?;
    if read as u64 > bytes_max {
        return Err(io::Error::other(format!("larger than {bytes_max} bytes")));
    }
    Ok(text)
}

/// The `config.toml` of the build phase: every registry that the lock names is the vendored
/// directory, and cargo stays offline.
///
/// # Errors
/// Names a source that is no registry: a published crate has none, and qk builds no other.
pub(crate) fn vendored_config(lock: &str, vendor: &str) -> Result<String, String> {
    let lock: toml::Table = lock.parse().map_err(|_| "it is not TOML".to_owned())?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let sources: BTreeSet<&str> = packages
        .into_iter()
        .flatten()
        .filter_map(|package| package.get("source")?.as_str())
        .collect();
    let mut tables: BTreeMap<String, toml::Table> = BTreeMap::new();
    let replaced = || toml::Table::from_iter([("replace-with".to_owned(), "vendored".into())]);
    tables.insert("crates-io".into(), replaced());
    for source in sources {
        let index = match source.strip_prefix("registry+") {
            Some(index) => index,
            None if source.starts_with("sparse+") => source,
            None => return Err(format!("it names {source}, which is no registry")),
        };
        if is_crates_io(source) {
            continue;
        }
        let mut table = replaced();
        table.insert("registry".into(), index.into());
        tables.insert(index.to_owned(), table);
    }
    let directory = toml::Table::from_iter([("directory".to_owned(), vendor.into())]);
    tables.insert("vendored".into(), directory);
    let mut config = toml::Table::new();
    let tables = tables.into_iter().map(|(name, table)| (name, table.into()));
    config.insert("source".into(), toml::Table::from_iter(tables).into());
    let offline = toml::Table::from_iter([("offline".to_owned(), true.into())]);
    config.insert("net".into(), offline.into());
    Ok(config.to_string())
}

fn is_crates_io(source: &str) -> bool {
    let git = source.strip_prefix("registry+");
    git == Some(tame_index::CRATES_IO_INDEX) || source == tame_index::CRATES_IO_HTTP_INDEX
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Packs entries of (path, type, content or link target) without checking them.
    fn packed(entries: &[(&str, u8, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.crate");
        let gzip = flate2::write::GzEncoder::new(
            File::create(&file).unwrap(),
            flate2::Compression::fast(),
        );
        let mut archive = tar::Builder::new(gzip);
        for (path, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_mode(0o644);
            let link = matches!(kind, b'1' | b'2');
            if link {
                header.set_link_name(text).unwrap();
            }
            let text = if link { "" } else { text };
            header.set_size(text.len() as u64);
            header.set_cksum();
            archive.append(&header, text.as_bytes()).unwrap();
        }
        let mut gzip = archive.into_inner().unwrap();
        gzip.flush().unwrap();
        gzip.finish().unwrap();
        (directory, file)
    }

    fn said(entries: &[(&str, u8, &str)]) -> String {
        let (directory, file) = packed(entries);
        let into = directory.path().join("into");
        fs::create_dir(&into).unwrap();
        match unpack(&file, "x-1.0.0", &into) {
            Ok(()) => "unpacked".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_plain_files_below_the_crate_are_unpacked() {
        assert_eq!(
            said(&[("x-1.0.0/a", b'0', "a"), ("x-1.0.0/d", b'5', "")]),
            "unpacked"
        );
        let refused = |path: &str, kind: u8, why: &str| {
            let text = said(&[(path, kind, "/etc/passwd")]);
            assert_eq!(text, format!("the .crate file holds {path:?}: {why}"));
        };
        refused("x-1.0.0/../../a", b'0', "not a plain relative path");
        refused("/etc/cron.d/a", b'0', "not a plain relative path");
        refused(
            "y-1.0.0/a",
            b'0',
            "not below the directory of its name and version",
        );
        refused("x-1.0.0/a", b'2', "neither a file nor a directory");
        refused("x-1.0.0/a", b'1', "neither a file nor a directory");
        refused("x-1.0.0/a", b'3', "neither a file nor a directory");
        let twice = said(&[("x-1.0.0/a", b'0', "1"), ("x-1.0.0/a", b'0', "2")]);
        assert_eq!(twice, "the .crate file holds \"x-1.0.0/a\": twice");
    }

    #[test]
    fn what_would_configure_cargo_is_left_out() {
        let (directory, file) = packed(&[
            ("x-1.0.0/.cargo/config.toml", b'0', "evil"),
            ("x-1.0.0/rust-toolchain", b'0', "evil"),
            ("x-1.0.0/rust-toolchain.toml", b'0', "evil"),
            ("x-1.0.0/tests/.cargo/config.toml", b'0', "data of a test"),
        ]);
        let into = directory.path().join("into");
        fs::create_dir(&into).unwrap();
        unpack(&file, "x-1.0.0", &into).unwrap();
        let names: Vec<_> = fs::read_dir(&into)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["tests"]);
    }

    #[test]
    fn the_fetch_phase_gets_the_way_to_registries_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, "").unwrap();
        let user: toml::Table = "
            [source.crates-io]
            replace-with = 'mirror'
            [source.mirror]
            registry = 'sparse+https://registry.example/index/'
            token = 'secret'
            [build]
            rustc-wrapper = '/tmp/evil'
            [env]
            LD_PRELOAD = '/tmp/evil.so'
            [http]
            proxy = 'proxy.example:3128'
            debug = true
        "
        .parse()
        .unwrap();
        let variable = |name: &str| (name == "SSL_CERT_FILE").then(|| ca.clone().into_os_string());
        let access = Access::new(&user, &variable);
        insta::assert_snapshot!(access.config(), @r#"
        [http]
        cainfo = "/qk/certificates.pem"
        proxy = "proxy.example:3128"

        [source.crates-io]
        replace-with = "mirror"

        [source.mirror]
        registry = "sparse+https://registry.example/index/"
        "#);
        assert_eq!(access.binds[0].host, ca);
    }
}
