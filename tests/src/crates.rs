//! A registry of this machine in the place of crates.io, with crates of a test's own: so small that the
//! sandbox builds them in a second or two.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_protocol::candidate::{Build, Candidate, Wanted};
use qk_protocol::hash::Sha256;
use qk_protocol::key::Release;

use crate::lab::run;

/// The version of every crate here.
pub const VERSION: &str = "1.0.0";

/// A local registry, and a `$CARGO_HOME` whose configuration puts it in the place of crates.io.
#[derive(Debug)]
pub struct Registry {
    crates: PathBuf,
    cargo_home: PathBuf,
}

/// A crate of a [`Registry`].
#[derive(Debug, Clone)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Checksum of its `.crate`.
    pub source: Sha256,
    /// Its `Cargo.lock`.
    pub lock: String,
}

impl Registry {
    /// One without crates, in two new directories below `dir`.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn new(dir: &Path) -> Self {
        let (crates, cargo_home) = (dir.join("crates"), dir.join("cargo-home"));
        for one in [&crates, &cargo_home] {
            fs::create_dir(one).expect("a directory");
        }
        let config = format!(
            "[source.crates-io]\nreplace-with = \"own\"\n[source.own]\nlocal-registry = {crates:?}\n"
        );
        fs::write(cargo_home.join("config.toml"), config).expect("a configuration");
        Self { crates, cargo_home }
    }

    /// What commands that use this registry have as `CARGO_HOME`.
    pub fn cargo_home(&self) -> &Path {
        &self.cargo_home
    }

    /// Publishes a crate whose program prints its name, its version and what `main` makes of that: the
    /// text of a `format!` without arguments. `files` lie beside its `src`.
    ///
    /// # Panics
    /// When it cannot be packed. The name has to be of four characters or more.
    pub fn publish(&self, name: &str, prints: &str, files: &[(&str, &str)]) -> Crate {
        let top = format!("{name}-{VERSION}");
        let dir = self.crates.join(&top);
        fs::create_dir_all(dir.join("src")).expect("a directory");
        let lock =
            format!("version = 4\n\n[[package]]\nname = \"{name}\"\nversion = \"{VERSION}\"\n");
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"{VERSION}\"\nedition = \"2021\"\nlicense = \"MIT\"\n"
        );
        let main = format!("fn main() {{ println!(\"{name} {VERSION}{{}}\", {prints}); }}\n");
        let own = [
            ("Cargo.toml", &*manifest),
            ("Cargo.lock", &*lock),
            ("src/main.rs", &*main),
        ];
        for (path, text) in own.iter().chain(files) {
            fs::write(dir.join(path), text).expect("a file");
        }
        let file = self.crates.join(format!("{top}.crate"));
        let mut pack = Command::new("tar");
        // The same bytes whenever it is packed, so that the same people are drawn for it.
        pack.args(["--create", "--use-compress-program=gzip --no-name"]);
        pack.args([
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ]);
        pack.arg("--file").arg(&file);
        pack.arg("--directory").arg(&self.crates).arg(&top);
        let packed = run(&mut pack);
        assert!(packed.status.success(), "{packed:?}");
        fs::remove_dir_all(dir).expect("it was made here");
        let source = Sha256::of(&fs::read(&file).expect("a .crate"));
        let index = self.crates.join("index").join(&name[..2]).join(&name[2..4]);
        fs::create_dir_all(&index).expect("a directory");
        let line = format!(
            r#"{{"name":"{name}","vers":"{VERSION}","deps":[],"cksum":"{source}","features":{{}},"yanked":false}}"#
        );
        fs::write(index.join(name), line).expect("an index");
        let name = name.to_owned();
        Crate { name, source, lock }
    }
}

impl Crate {
    /// Name and version, as they are typed.
    pub fn spec(&self) -> String {
        format!("{}@{VERSION}", self.name)
    }

    /// What a client wants of it that asks for nothing special, built like this.
    pub fn candidate(&self, registry: &str, build: &Build) -> Candidate {
        let wanted = Wanted {
            release: Release {
                registry: registry.to_owned(),
                name: self.name.clone(),
                version: VERSION.to_owned(),
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
