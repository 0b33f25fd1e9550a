//! A release of qk, built and proven by qk itself.
//!
//! The packages are made of what is committed, as `cargo publish` would upload them but for one thing: the
//! workspace's profile `dist` is qk's own profile `release`, since a package is built without a workspace
//! around it. They lie with all their dependencies in a registry on disk that stands for crates.io. From there `qk build qk` builds in the sandbox, with the pinned
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
    json(qk(&["proofs", &spec, "--json", "--export"]).arg(&proof))?;
    let root = built["root"].as_str().context("no root")?;
    // Its exit code says what the policy decides.
    match json(qk(&["proofs", "--json", "--check"]).arg(&proof)) {
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
    let sources = scratch.join("sources");
    stage(&sources)?;
    let mut package = cargo::command();
    package.current_dir(&sources);
    package.args(["package", "--no-verify", "--target-dir"]);
    package.arg(scratch);
    package.args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo::run_aside(package.stdin(Stdio::null()))?;
    // What cargo itself resolved the packages against, but for members that it leaves open.
    let registry = scratch.join("package/tmp-registry");
    for name in PACKAGES {
        let path = registry.join("index").join(cargo::index_place(name));
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

/// What is committed, with the profile in the package that is built.
fn stage(sources: &Path) -> Result<()> {
    fs::create_dir(sources)?;
    let archive = sources.with_extension("tar");
    let mut git = Command::new("git");
    git.args(["archive", "--output"]).arg(&archive).arg("HEAD");
    cargo::run(git.current_dir(cargo::workspace()))?;
    let mut tar = Command::new("tar");
    cargo::run(tar.arg("-xf").arg(archive).arg("-C").arg(sources))?;
    let workspace = fs::read_to_string(sources.join("Cargo.toml"))?;
    let path = sources.join("cli/Cargo.toml");
    let package = fs::read_to_string(&path)?;
    Ok(fs::write(path, package + &released_profile(&workspace)?)?)
}

/// The workspace's profile `dist`, as a package has its profile `release`.
fn released_profile(workspace: &str) -> Result<String> {
    let manifest: toml::Table = toml::from_str(workspace)?;
    let dist = manifest.get("profile").and_then(|it| it.get("dist"));
    let dist = dist.and_then(toml::Value::as_table);
    let mut dist = dist.context("the workspace has no profile `dist`")?.clone();
    dist.remove("inherits");
    let profile = toml::Table::from_iter([("release".to_owned(), dist.into())]);
    let tables = toml::Table::from_iter([("profile".to_owned(), profile.into())]);
    Ok(format!("\n{}", toml::to_string(&tables)?))
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
        let path = into.join("index").join(cargo::index_place(&locked.name));
        fs::create_dir_all(path.parent().unwrap_or(into))?;
        // Another version of the same crate may be there.
        let known = fs::read_to_string(&path).unwrap_or_default();
        Ok(fs::write(path, known + &line)?)
    }

    fn line(&self, locked: &Locked) -> Result<String> {
        for index in &self.index {
            let path = index.join(".cache").join(cargo::index_place(&locked.name));
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
    let entry = format!("  {}", name.to_string_lossy());
    let line = cargo::sha256(archive)? + &entry;
    let path = directory.join("SHA256SUMS");
    let known = fs::read_to_string(&path).unwrap_or_default();
    let mut lines: Vec<&str> = known.lines().collect();
    lines.retain(|one| !one.ends_with(&entry));
    lines.push(&line);
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
    fn the_profile_of_releases_is_the_workspaces() {
        let workspace = "[profile.dist]\ninherits = \"release\"\nlto = \"fat\"\n\n\
            [profile.dist.package.ring]\nopt-level = 3\n\n[profile.dev]\nopt-level = 1\n";
        assert_eq!(
            released_profile(workspace).unwrap(),
            "\n[profile.release]\nlto = \"fat\"\n\n[profile.release.package.ring]\nopt-level = 3\n"
        );
        assert!(released_profile("[profile.dev]\n").is_err());
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
}
