//! A registry of tiny crates on disk, in place of crates.io: what cargo calls a local registry. Crates
//! without dependencies build in seconds.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::registry::{Ask, Registry, RegistryOptions, Resolved, lock_digest};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::Network;
use tempfile::TempDir;

use crate::artifact::wanted;

/// A program that builds.
pub const GOOD: &str = "fn main() { println!(\"works\"); }\n";
/// One that does not.
pub const BROKEN: &str = "fn main() { let it: u32 = \"broken\"; }\n";
/// A build script that never ends.
pub const ENDLESS: &str =
    "fn main() { loop { std::thread::sleep(std::time::Duration::from_secs(60)); } }\n";
/// A build script that fills the disk, slowly.
pub const GREEDY: &str = "fn main() {
    let out = std::path::PathBuf::from(std::env::var_os(\"OUT_DIR\").unwrap());
    for number in 0.. {
        std::fs::write(out.join(number.to_string()), vec![1; 1 << 20]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
";

/// The registry. Its files vanish when it is dropped.
#[derive(Debug)]
pub struct Crates {
    dir: TempDir,
}

impl Crates {
    /// One without crates.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("registry/index")).expect("a directory");
        fs::create_dir(dir.path().join("cargo")).expect("a directory");
        let config = format!(
            "[source.crates-io]\nreplace-with = \"tiny\"\n[source.tiny]\nlocal-registry = {:?}\n",
            dir.path().join("registry")
        );
        fs::write(dir.path().join("cargo/config.toml"), config).expect("a file");
        Self { dir }
    }

    /// The variable that makes programs use it.
    pub fn variable(&self) -> (&'static str, PathBuf) {
        ("CARGO_HOME", self.dir.path().join("cargo"))
    }

    /// Adds a crate with this program and, if there is one, build script.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn add(&self, name: &str, version: &str, main: &str, build: Option<&str>) {
        let below = format!("{name}-{version}");
        let source = self.dir.path().join(&below);
        let write = |path: &str, text: &str| {
            let path = source.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        };
        write(
            "Cargo.toml",
            &format!("[package]\nname = {name:?}\nversion = {version:?}\nedition = \"2021\"\n"),
        );
        write(
            "Cargo.lock",
            &format!("version = 4\n\n[[package]]\nname = {name:?}\nversion = {version:?}\n"),
        );
        write("src/main.rs", main);
        build.into_iter().for_each(|text| write("build.rs", text));
        let file = self
            .dir
            .path()
            .join("registry")
            .join(format!("{below}.crate"));
        let mut tar = Command::new("tar");
        tar.arg("czf").arg(&file).arg("-C").arg(self.dir.path());
        assert!(
            tar.arg(&below).status().expect("tar starts").success(),
            "{tar:?}"
        );
        let checksum = qk_protocol::hash::Sha256::of(&fs::read(&file).expect("a crate"));
        let line = serde_json::json!({
            "name": name, "vers": version, "deps": [], "cksum": checksum, "features": {}, "yanked": false,
        });
        let index = self.dir.path().join("registry/index").join(place(name));
        fs::create_dir_all(index.parent().expect("a directory")).expect("a directory");
        let known = fs::read_to_string(&index).unwrap_or_default();
        fs::write(index, format!("{known}{line}\n")).expect("a file");
    }

    /// Withdraws a release.
    ///
    /// # Panics
    /// When there is none.
    pub fn yank(&self, name: &str, version: &str) {
        let index = self.dir.path().join("registry/index").join(place(name));
        let known = fs::read_to_string(&index).expect("lines");
        let is_it = |line: &str| line.contains(&format!("\"vers\":\"{version}\""));
        let line = |line: &str| match is_it(line) {
            true => line.replace("\"yanked\":false", "\"yanked\":true") + "\n",
            false => format!("{line}\n"),
        };
        let changed: String = known.lines().map(line).collect();
        assert_ne!(changed, known, "no {name} {version}");
        fs::write(index, changed).expect("a file");
    }

    /// The key of a crate as a network's first build has it.
    ///
    /// # Panics
    /// When the registry does not have it.
    pub fn key(&self, network: &Network, name: &str, version: &str) -> ArtifactKey {
        let options = RegistryOptions {
            cargo_home: Some(self.variable().1),
            ..RegistryOptions::default()
        };
        let registry = Registry::open(&options).expect("a registry");
        let exact = Ask::parse(Some(version)).expect("a version");
        let resolved: Resolved = registry.resolve(name, &exact).expect("a release");
        let file = registry
            .download(&resolved.release, &resolved.checksum, self.dir.path())
            .expect("the crate");
        let lock = lock_digest(&file, &resolved.release).expect("a .crate file");
        let (lock, _) = lock.expect("a Cargo.lock");
        wanted(&resolved).candidates(&network.manifest().builds)[0].key(lock)
    }

    /// A command that uses it.
    pub fn used_by(&self, mut command: Command) -> Command {
        let (name, value) = self.variable();
        command.env(name, AsRef::<OsStr>::as_ref(&value));
        command
    }
}

impl Default for Crates {
    fn default() -> Self {
        Self::new()
    }
}

/// Where an index has a crate's lines.
fn place(name: &str) -> PathBuf {
    match name.len() {
        0..=2 => Path::new(&name.len().to_string()).join(name),
        3 => Path::new("3").join(&name[..1]).join(name),
        _ => Path::new(&name[..2]).join(&name[2..4]).join(name),
    }
}
