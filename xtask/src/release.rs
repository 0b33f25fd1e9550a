//! A release of qk, built and proven by qk itself.
//!
//! The packages are made as `cargo publish` would upload them, and lie with all their dependencies in a
//! registry on disk that stands for crates.io. From there `qk build qk` builds in the sandbox, with the pinned
//! linker and its glibc floor, and publishes in the network that this user joined; others do the same and
//! agree or do not. So the key, the root and the proof are those that anybody gets once the packages are
//! published.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tame_index::index::cache::ValidCacheEntry;

use crate::bench::lab::json;
use crate::cargo;

/// In the order in which they depend on each other.
const PACKAGES: [&str; 3] = ["qk-protocol", "qk-node", "qk"];
/// No index entry of a crate is larger.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// What is made, and how.
#[derive(Debug)]
pub struct Options {
    /// The directory that gets the release's files.
    pub output: PathBuf,
    /// Arguments passed on to `qk build`.
    pub build: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

/// Builds qk with `qk` and writes archive, checksums, proof and install script.
///
/// # Errors
/// When a step fails. That there is no proof yet is none: what is missing is printed.
pub fn run(qk: &Path, options: &Options) -> Result<()> {
    fs::create_dir_all(&options.output)?;
    let scratch = tempfile::Builder::new().prefix("qk-release-").tempdir()?;
    let home = scratch.path().join("cargo");
    registry(scratch.path(), &home)?;
    let spec = format!("qk@{}", env!("CARGO_PKG_VERSION"));
    let qk = |args: &[&str]| {
        let mut command = Command::new(qk);
        command.args(args).env("CARGO_HOME", &home);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        cargo::forget_caller(&mut command);
        command
    };
    let artifact = scratch.path().join("qk.tar");
    let words = ["build", &spec, "--json", "--output"];
    let mut build = qk(&words);
    let built = json(build.arg(&artifact).args(&options.build))?;
    let target = built["target"].as_str().context("no target")?;
    let name = format!("{}-{target}", spec.replace('@', "-"));
    let archive = options.output.join(format!("{name}.tar.gz"));
    pack(&artifact, scratch.path(), &archive)?;
    sums(&options.output, &archive)?;
    let script = cargo::workspace().join("ci/install.sh");
    fs::copy(script, options.output.join("install.sh"))?;
    let proof = options.output.join(format!("{name}.qkproof"));
    let proven = json(qk(&["proofs", &spec, "--json", "--export"]).arg(&proof));
    let root = &built["root"];
    match proven {
        Ok(_) => eprintln!("{} with root {root}, proven", archive.display()),
        Err(error) => eprintln!(
            "{} with root {root}, not proven yet: others build it too, then run this again\n{error:#}",
            archive.display()
        ),
    }
    Ok(())
}

/// A home of cargo's in which crates.io is a directory with the packages and all that they depend on.
fn registry(scratch: &Path, home: &Path) -> Result<()> {
    let mut package = cargo::command();
    package.args(["package", "--no-verify", "--allow-dirty", "--target-dir"]);
    package.arg(scratch);
    package.args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo::run_aside(package.stdin(Stdio::null()))?;
    // What cargo itself resolved the packages against, but for members that it leaves open.
    let registry = scratch.join("package/tmp-registry");
    for name in PACKAGES {
        let path = registry.join("index").join(place(name));
        fs::write(&path, published(&fs::read_to_string(&path)?)?)?;
    }
    cargo::run_aside(cargo::command().args(["fetch", "--locked"]))?;
    let lock = fs::read_to_string(cargo::workspace().join("Cargo.lock"))?;
    let lock: Lock = toml::from_str(&lock)?;
    let caches = Caches::find()?;
    for locked in lock.package.iter().filter(|one| one.source.is_some()) {
        caches
            .copy(locked, &registry)
            .with_context(|| format!("{} {}", locked.name, locked.version))?;
    }
    fs::create_dir_all(home)?;
    let config = format!(
        "[source.crates-io]\nreplace-with = \"release\"\n[source.release]\nlocal-registry = {:?}\n",
        registry
    );
    fs::write(home.join("config.toml"), config)?;
    Ok(())
}

/// A line of an index as a registry would give it: cargo writes `null` for what only a registry knows.
fn published(line: &str) -> Result<String> {
    let mut line: serde_json::Map<String, Value> = serde_json::from_str(line)?;
    line.retain(|_, value| !value.is_null());
    line.insert("yanked".to_owned(), false.into());
    let dependencies = line.get_mut("deps").and_then(Value::as_array_mut);
    for dependency in dependencies.into_iter().flatten() {
        if let Some(members) = dependency.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
    }
    Ok(serde_json::to_string(&line)? + "\n")
}

/// What cargo keeps of registries.
struct Caches {
    index: Vec<PathBuf>,
    crates: Vec<PathBuf>,
}

impl Caches {
    fn find() -> Result<Self> {
        let home = tame_index::utils::cargo_home()?;
        let below = |name: &str| -> Result<Vec<PathBuf>> {
            let entries = fs::read_dir(home.join("registry").join(name).as_std_path())?;
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths.collect()
        };
        Ok(Self {
            index: below("index")?,
            crates: below("cache")?,
        })
    }

    /// Copies a package and its line of the index.
    fn copy(&self, locked: &Locked, into: &Path) -> Result<()> {
        let file = format!("{}-{}.crate", locked.name, locked.version);
        let found = self.crates.iter().map(|dir| dir.join(&file));
        let found = found.into_iter().find(|path| path.exists());
        let found = found.context("cargo has not downloaded it")?;
        fs::copy(found, into.join(file))?;
        let line = self.line(locked)?;
        let path = into.join("index").join(place(&locked.name));
        fs::create_dir_all(path.parent().unwrap_or(into))?;
        // Another version of the same crate may be there.
        let known = fs::read_to_string(&path).unwrap_or_default();
        Ok(fs::write(path, known + &line)?)
    }

    fn line(&self, locked: &Locked) -> Result<String> {
        for index in &self.index {
            let path = index.join(".cache").join(place(&locked.name));
            let Ok(about) = fs::metadata(&path) else {
                continue;
            };
            ensure!(
                about.len() <= INDEX_BYTES_MAX,
                "its index entry is too large"
            );
            let bytes = fs::read(&path)?;
            let entry = ValidCacheEntry::read(&bytes)?;
            let mut krate = entry.to_krate(None)?.context("its index entry is empty")?;
            krate.versions.retain(|one| one.version == locked.version);
            let mut line = Vec::new();
            krate.write_json_lines(&mut line)?;
            let line = String::from_utf8(line)?;
            let parsed: Value = serde_json::from_str(&line).context("the index lacks it")?;
            ensure!(
                parsed["cksum"].as_str() == locked.checksum.as_deref(),
                "the index and Cargo.lock name different checksums"
            );
            return Ok(line);
        }
        bail!("cargo's index cache lacks it")
    }
}

/// Where an index has a crate's lines.
fn place(name: &str) -> PathBuf {
    let name = name.to_ascii_lowercase();
    match name.len() {
        0..=2 => Path::new(&name.len().to_string()).join(&name),
        3 => Path::new("3").join(&name[..1]).join(&name),
        _ => Path::new(&name[..2]).join(&name[2..4]).join(&name),
    }
}

/// The executable alone, in an archive of the same bytes whoever makes it.
fn pack(artifact: &Path, scratch: &Path, archive: &Path) -> Result<()> {
    let mut unpack = Command::new("tar");
    unpack.args(["--strip-components=1", "-xf"]).arg(artifact);
    cargo::run(unpack.arg("-C").arg(scratch).arg("bin/qk"))?;
    let mut tar = Command::new("tar");
    tar.args([
        "--format=ustar",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ])
    .args(["--mtime=@0", "--mode=0755"])
    .args(["--use-compress-program", "gzip -9n", "-cf"])
    .arg(archive)
    .arg("-C")
    .arg(scratch)
    .arg("qk");
    cargo::run(&mut tar)
}

/// Names the archive in `SHA256SUMS`, beside others of the same release.
fn sums(directory: &Path, archive: &Path) -> Result<()> {
    let name = archive.file_name().context("an archive has a name")?;
    let mut sum = Command::new("sha256sum");
    let output = sum.arg(name).current_dir(directory).output()?;
    ensure!(
        output.status.success(),
        "sha256sum failed: {}",
        output.status
    );
    let line = String::from_utf8(output.stdout)?;
    let path = directory.join("SHA256SUMS");
    let known = fs::read_to_string(&path).unwrap_or_default();
    let name = name.to_string_lossy();
    let mut lines: Vec<&str> = known.lines().collect();
    lines.retain(|one| !one.ends_with(&*name));
    lines.push(line.trim_end());
    lines.sort_unstable();
    Ok(fs::write(path, lines.join("\n") + "\n")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_a_line_for_each_archive() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("b.tar.gz", "b"), ("a.tar.gz", "a"), ("b.tar.gz", "c")] {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            sums(dir.path(), &path).unwrap();
        }
        let text = fs::read_to_string(dir.path().join("SHA256SUMS")).unwrap();
        let names: Vec<_> = text.lines().map(|line| &line[66..]).collect();
        let mut names_sorted = names.clone();
        names_sorted.sort_unstable();
        assert_eq!(names_sorted, ["a.tar.gz", "b.tar.gz"]);
        let check = Command::new("sha256sum")
            .args(["--check", "--quiet", "SHA256SUMS"])
            .current_dir(dir.path())
            .status();
        assert!(check.unwrap().success());
    }

    #[test]
    fn what_cargo_leaves_open_is_left_out() {
        let line =
            r#"{"deps":[{"name":"a","target":null}],"name":"qk","vers":"1.0.0","yanked":null}"#;
        let line = published(line).unwrap();
        assert_eq!(
            line,
            "{\"deps\":[{\"name\":\"a\"}],\"name\":\"qk\",\"vers\":\"1.0.0\",\"yanked\":false}\n"
        );
    }

    #[test]
    fn short_names_have_places_of_their_own() {
        let shown =
            ["a", "qk", "sha", "anyhow", "RustyXML"].map(|name| place(name).display().to_string());
        assert_eq!(
            shown,
            ["1/a", "2/qk", "3/s/sha", "an/yh/anyhow", "ru/st/rustyxml"]
        );
    }
}
