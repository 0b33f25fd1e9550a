//! A registry of tiny crates on disk, in place of crates.io: what cargo calls a local registry. Crates
//! without dependencies build in seconds.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::registry::{Ask, Registry, RegistryOptions, Resolved, lock_digest};
use qk_protocol::candidate::{Build, Candidate, Wanted};
use qk_protocol::hash::Sha256;
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::manifest::Network;
use tempfile::TempDir;

use crate::artifact::wanted;
use crate::process::run;

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

/// The version of crates where any will do.
pub const VERSION: &str = "1.0.0";

/// The registry. Its files vanish when it is dropped.
#[derive(Debug)]
pub struct Crates {
    dir: TempDir,
}

/// A crate of a registry.
#[derive(Debug, Clone)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Checksum of its `.crate`.
    pub source: Sha256,
    /// Its `Cargo.lock`.
    pub lock: String,
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
        let mut files = vec![("src/main.rs", main)];
        files.extend(build.map(|text| ("build.rs", text)));
        self.publish(name, version, &files);
    }

    /// Adds a crate whose program prints its name, its version and what `prints` makes of that: the
    /// text of a `format!` without arguments. `files` lie beside its `src`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn printing(&self, name: &str, prints: &str, files: &[(&str, &str)]) -> Crate {
        let main = format!("fn main() {{ println!(\"{name} {VERSION}{{}}\", {prints}); }}\n");
        let files = [&[("src/main.rs", &*main)], files].concat();
        self.publish(name, VERSION, &files)
    }

    /// Adds a crate of these files, its `Cargo.toml` and its `Cargo.lock`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn publish(&self, name: &str, version: &str, files: &[(&str, &str)]) -> Crate {
        let below = format!("{name}-{version}");
        let source = self.dir.path().join(&below);
        let manifest =
            format!("[package]\nname = {name:?}\nversion = {version:?}\nedition = \"2021\"\n");
        let lock = format!("version = 4\n\n[[package]]\nname = {name:?}\nversion = {version:?}\n");
        let own = [("Cargo.toml", &*manifest), ("Cargo.lock", &*lock)];
        for (path, text) in own.iter().chain(files) {
            let path = source.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let registry = self.dir.path().join("registry");
        let file = registry.join(format!("{below}.crate"));
        let mut pack = Command::new("tar");
        // The same bytes whenever it is packed, so that the same people are drawn for it.
        pack.args(["--create", "--use-compress-program=gzip --no-name"]);
        pack.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
        pack.arg("--numeric-owner").arg("--file").arg(&file);
        pack.arg("--directory").arg(self.dir.path()).arg(&below);
        let packed = run(&mut pack);
        assert!(packed.status.success(), "{packed:?}");
        fs::remove_dir_all(source).expect("it was made here");
        let source = Sha256::of(&fs::read(&file).expect("a .crate"));
        let line = serde_json::json!({
            "name": name, "vers": version, "deps": [], "cksum": source, "features": {}, "yanked": false,
        });
        let index = registry.join("index").join(place(name));
        fs::create_dir_all(index.parent().expect("a directory")).expect("a directory");
        let known = fs::read_to_string(&index).unwrap_or_default();
        fs::write(index, format!("{known}{line}\n")).expect("a file");
        Crate {
            name: name.to_owned(),
            version: version.to_owned(),
            source,
            lock,
        }
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

impl Crate {
    /// Name and version, as they are typed.
    pub fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// What a client wants of it that asks for nothing special, built like this.
    pub fn candidate(&self, registry: &str, build: &Build) -> Candidate {
        let wanted = Wanted {
            release: Release {
                registry: registry.to_owned(),
                name: self.name.clone(),
                version: self.version.clone(),
            },
            source: self.source,
            targets: vec![build.target.clone()],
            features: [].into(),
            default_features: true,
            rustflags: [].into(),
        };
        wanted.candidates(std::slice::from_ref(build)).remove(0)
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
