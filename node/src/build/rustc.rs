//! The Rust compilers of this machine, and the digest of the files that compile.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_protocol::hash::Blake3;
use qk_protocol::key::{self, Rustc};
use serde::{Deserialize, Serialize};

use super::sandbox::Bind;
use super::toolchain::Toolchains;

/// The only target that this version builds for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A cache file larger than this is not ours.
const CACHE_BYTES_MAX: u64 = 1 << 20;
const CACHE_NAME: &str = "sysroots.json";

/// A toolchain that a build asks for and that is not on this machine. Never a mismatch of roots:
/// nothing was built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not here; run `{run}`")]
pub struct NotHere {
    /// Which toolchain.
    pub what: String,
    /// The command that gets it.
    pub run: String,
}

/// Why no compiler was found.
#[derive(Debug, thiserror::Error)]
pub enum RustcError {
    /// Another one is needed.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// `rustc` did not answer as it should.
    #[error("{path}: {why}")]
    Odd {
        /// Which one.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// A file of it could not be read.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

/// An installed compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RustToolchain {
    /// As keys name it.
    pub rustc: Rustc,
    /// Its root, with `bin` and `lib`.
    pub sysroot: PathBuf,
    /// The files that compile, by path below the root.
    files: Vec<String>,
}

impl RustToolchain {
    /// The one that `rustc` runs in this environment, with the files for `target`.
    ///
    /// # Errors
    /// When there is none, or it lacks the target.
    pub fn active(toolchains: &Toolchains, target: &str) -> Result<Self, RustcError> {
        let sysroot = active_sysroot()?;
        Self::at(&sysroot, toolchains, target)
    }

    /// The one that a key names: the active one or any that rustup has installed.
    ///
    /// # Errors
    /// [`NotHere`] with the command that gets it.
    pub fn find(wanted: &Rustc, toolchains: &Toolchains, target: &str) -> Result<Self, RustcError> {
        let mut near = None;
        for sysroot in candidates() {
            let Ok(says) = ask(&sysroot.join("bin/rustc")) else {
                continue;
            };
            if says != (Says::of(wanted)) {
                continue;
            }
            let found = Self::at(&sysroot, toolchains, target)?;
            if found.rustc == *wanted {
                return Ok(found);
            }
            near = Some(found.rustc.sysroot);
        }
        let version = &wanted.version;
        let what = match near {
            Some(here) => format!(
                "rustc {version} with files {} (here: {})",
                wanted.sysroot.short(),
                here.short()
            ),
            None => format!("rustc {version} ({})", &wanted.commit_hash[..9]),
        };
        let run = format!("rustup toolchain install {version} --profile minimal");
        Err(NotHere { what, run }.into())
    }

    /// The one installed at `sysroot`.
    ///
    /// # Errors
    /// When it is not a compiler for `target`.
    pub fn at(sysroot: &Path, toolchains: &Toolchains, target: &str) -> Result<Self, RustcError> {
        let says = ask(&sysroot.join("bin/rustc"))?;
        let std = sysroot.join("lib/rustlib").join(target).join("lib");
        if !std.is_dir() {
            let version = &says.version;
            return Err(NotHere {
                what: format!("the standard library of rustc {version} for {target}"),
                run: format!("rustup target add {target} --toolchain {version}"),
            }
            .into());
        }
        let files = compiling_files(sysroot, &says.host, target)?;
        let digest = digest(sysroot, target, &files, toolchains)?;
        Ok(Self {
            rustc: Rustc {
                version: says.version,
                commit_hash: says.commit_hash,
                host: says.host,
                sysroot: digest,
            },
            sysroot: sysroot.to_path_buf(),
            files,
        })
    }

    /// Exactly the files that the digest covers: no component that only some installations have
    /// (rustfmt, sources, other targets) is seen by a build.
    pub fn binds(&self, inside: &Path) -> Vec<Bind> {
        let mut binds = Vec::new();
        let mut directories = std::collections::BTreeSet::new();
        for file in &self.files {
            match file.strip_prefix("lib/rustlib/") {
                Some(rest) => {
                    let parts: Vec<&str> = rest.splitn(3, '/').take(2).collect();
                    directories.insert(format!("lib/rustlib/{}", parts.join("/")));
                }
                None => binds.push(Bind::read(self.sysroot.join(file), inside.join(file))),
            }
        }
        for directory in directories {
            let host = self.sysroot.join(&directory);
            binds.push(Bind::read(host, inside.join(directory)));
        }
        binds
    }

    /// Its programs and shared libraries, to find out what they need of the host.
    pub fn programs(&self) -> Vec<PathBuf> {
        let loaded = |file: &&String| !file.starts_with("lib/rustlib/");
        let loaded = self.files.iter().filter(loaded);
        loaded.map(|file| self.sysroot.join(file)).collect()
    }
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
struct Says {
    version: String,
    commit_hash: String,
    host: String,
}

impl Says {
    fn of(rustc: &Rustc) -> Self {
        Self {
            version: rustc.version.clone(),
            commit_hash: rustc.commit_hash.clone(),
            host: rustc.host.clone(),
        }
    }
}

fn ask(rustc: &Path) -> Result<Says, RustcError> {
    let text = output(rustc, &["-vV"])?;
    let field = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.map(str::to_owned).ok_or_else(|| RustcError::Odd {
            path: rustc.to_path_buf(),
            why: format!("`-vV` names no {}", name.trim_end_matches(": ")),
        })
    };
    Ok(Says {
        version: field("release: ")?,
        commit_hash: field("commit-hash: ")?,
        host: field("host: ")?,
    })
}

fn output(rustc: &Path, arguments: &[&str]) -> Result<String, RustcError> {
    let odd = |why: String| RustcError::Odd {
        path: rustc.to_path_buf(),
        why,
    };
    // Not in the user's directory, whose rust-toolchain.toml is for the user's own builds.
    let output = Command::new(rustc)
        .args(arguments)
        .current_dir("/")
        .output();
    let output = output.map_err(|error| odd(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(odd(said.chars().take(300).collect()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn active_sysroot() -> Result<PathBuf, RustcError> {
    let missing = || NotHere {
        what: "a Rust compiler".into(),
        run: "rustup toolchain install stable --profile minimal".into(),
    };
    let rustc = Path::new("rustc");
    match output(rustc, &["--print", "sysroot"]) {
        Ok(path) => Ok(PathBuf::from(path.trim())),
        Err(_) => Err(missing().into()),
    }
}

/// The active toolchain and those of rustup, without duplicates.
fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = active_sysroot().into_iter().collect();
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".rustup")));
    let installed = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let mut others: Vec<PathBuf> = installed
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok())
        .filter(|path| path.join("bin/rustc").is_file())
        .collect();
    others.sort();
    for other in others {
        if !found.contains(&other) {
            found.push(other);
        }
    }
    found
}

/// The files of recipe 1's digest, sorted.
fn compiling_files(sysroot: &Path, host: &str, target: &str) -> Result<Vec<String>, RustcError> {
    let mut files = vec!["bin/cargo".to_owned(), "bin/rustc".to_owned()];
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| RustcError::Io { path, error }
    };
    let lib = sysroot.join("lib");
    for entry in fs::read_dir(&lib).map_err(io(&lib))? {
        let name = entry.map_err(io(&lib))?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".so") || name.contains(".so.") {
            files.push(format!("lib/{name}"));
        }
    }
    for triple in [host, target] {
        for part in ["bin", "lib"] {
            let below = sysroot.join("lib/rustlib").join(triple).join(part);
            if below.is_dir() {
                walk(sysroot, &below, &mut files)?;
            }
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn walk(sysroot: &Path, below: &Path, files: &mut Vec<String>) -> Result<(), RustcError> {
    for entry in walkdir::WalkDir::new(below).follow_links(true) {
        let entry = entry.map_err(|error| RustcError::Io {
            path: below.to_path_buf(),
            error: error.into(),
        })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let path = entry.path().strip_prefix(sysroot).unwrap_or(entry.path());
        files.push(path.to_string_lossy().into_owned());
    }
    Ok(())
}

/// One digest that was computed before, and what the files looked like then.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    seen: Blake3,
    digest: Blake3,
}

/// The digest over the files, from the cache as long as no file changed its time, size or inode.
fn digest(
    sysroot: &Path,
    target: &str,
    files: &[String],
    toolchains: &Toolchains,
) -> Result<Blake3, RustcError> {
    let mut seen = Vec::new();
    for file in files {
        let path = sysroot.join(file);
        let meta = fs::metadata(&path).map_err(|error| RustcError::Io { path, error })?;
        let (size, inode) = (meta.size(), meta.ino());
        let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
        seen.extend(format!("{file}\0{size}\0{inode}\0{seconds}\0{nanos}\n").into_bytes());
    }
    let seen = Blake3::of(&seen);
    let cache = toolchains.directory().join(CACHE_NAME);
    let mut known = read_cache(&cache);
    let name = format!("{target} {}", sysroot.display());
    if let Some(found) = known.get(&name).filter(|found| found.seen == seen) {
        return Ok(found.digest);
    }
    let digest = hash_all(sysroot, files)?;
    known.insert(name, Known { seen, digest });
    // Only a cache: where it cannot be written the next call hashes again.
    let _ = write_cache(&cache, &known);
    Ok(digest)
}

fn hash_all(sysroot: &Path, files: &[String]) -> Result<Blake3, RustcError> {
    let mut digests = BTreeMap::new();
    for file in files {
        let path = sysroot.join(file);
        let mut hasher = blake3::Hasher::new();
        fs::File::open(&path)
            .and_then(|opened| hasher.update_reader(opened).map(drop))
            .map_err(|error| RustcError::Io { path, error })?;
        digests.insert(file.clone(), Blake3(*hasher.finalize().as_bytes()));
    }
    Ok(key::sysroot(&digests))
}

fn read_cache(path: &Path) -> BTreeMap<String, Known> {
    let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= CACHE_BYTES_MAX);
    let bytes = small.then(|| fs::read(path).ok()).flatten();
    let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    known.unwrap_or_default()
}

fn write_cache(path: &Path, known: &BTreeMap<String, Known>) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(directory)?;
    let file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&file, known)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
