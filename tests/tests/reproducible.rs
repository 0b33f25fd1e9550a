//! Crates of the public registry, built again with other jobs, host name, time or system: the
//! same archive, byte by byte.

use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::build::{Builder, Cancel, Options, Order, Toolchains};
use qk_protocol::archive::Identity;
use qk_protocol::hash::Sha256;

const NAME: &str = "hexyl";
const VERSION: &str = "0.17.0";

#[test]
fn two_builds_give_one_root() {
    let fixture = Fixture::new(NAME, VERSION);
    let one = fixture.build("one", 1);
    let another = fixture.build("another", 3);
    assert_eq!(one, another);
}

/// A crate of the public registry, on disk.
struct Fixture {
    directory: tempfile::TempDir,
    toolchains: Toolchains,
    order: Order,
}

impl Fixture {
    fn new(name: &str, version: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let toolchains = Toolchains::new(&toolchain_directory());
        toolchains
            .setup(&mut |event| println!("{event:?}"))
            .unwrap();
        let crate_file = download(directory.path(), name, version);
        let source = Sha256::of(&std::fs::read(&crate_file).unwrap());
        let registry = "registry+https://registry.example/index";
        let order = Order::new(registry, name, version, crate_file, source);
        Self {
            directory,
            toolchains,
            order,
        }
    }

    /// Builds on a host of this name, in a directory of its own, and runs what came out.
    fn build(&self, hostname: &str, jobs: u32) -> Identity {
        let work = self.directory.path().join(hostname);
        let builder = Builder::new(self.toolchains.clone(), &work).unwrap();
        let options = Options {
            jobs,
            hostname: hostname.to_owned(),
            ..Options::default()
        };
        let (mut quiet, cancel) = (|_| {}, Cancel::default());
        let built = builder
            .build(&self.order, &options, &cancel, &mut quiet)
            .unwrap();
        let archive = self.directory.path().join(format!("{hostname}.tar"));
        let key = built.key.clone().expect("the crate has a lock");
        let identity = built.pack(key, &archive).unwrap().identity;
        let (name, version) = (&self.order.name, &self.order.version);
        let output = Command::new(&built.bins[name]).arg("--version").output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(said.trim(), format!("{name} {version}"));
        let system = &built.environment.os;
        println!(
            "{name} {version} on {system}, {jobs} jobs: {}",
            identity.root
        );
        identity
    }
}

/// Through cargo, so that the user's registry replacement and proxy are in force.
fn download(directory: &Path, name: &str, version: &str) -> PathBuf {
    let package = directory.join("fetch");
    std::fs::create_dir_all(package.join("src")).unwrap();
    std::fs::write(package.join("src/lib.rs"), "").unwrap();
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{name} = \"={version}\"\n[workspace]\n"
    );
    std::fs::write(package.join("Cargo.toml"), manifest).unwrap();
    let mut cargo = Command::new("cargo");
    cargo.args(["fetch", "--quiet"]).current_dir(&package);
    assert!(cargo.status().unwrap().success());
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cargo"));
    let file = format!("{name}-{version}.crate");
    let caches = std::fs::read_dir(home.join("registry/cache")).unwrap();
    let mut found = caches.flatten().map(|cache| cache.path().join(&file));
    found
        .find(|path| path.is_file())
        .expect("cargo keeps what it fetches")
}

fn toolchain_directory() -> PathBuf {
    let given = std::env::var_os("QK_TOOLCHAINS").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("toolchains"))
}
