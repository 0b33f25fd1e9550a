//! Crates of the public registry, built again with other jobs, host name, time, system or kind of
//! sandbox: the same archive, byte by byte.

use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::build::{Builder, Cancel, Choice, Options, Order, Sandbox, Toolchains};
use qk_protocol::archive::Identity;
use qk_protocol::hash::Sha256;
use qk_protocol::work::WorkDigest;
use serde_json::{Value, json};

const NAME: &str = "hexyl";
const VERSION: &str = "0.17.0";

#[test]
fn two_builds_give_one_root() {
    let fixture = Fixture::new(NAME, VERSION);
    let one = fixture.build("one", 1, Choice::Bubblewrap);
    let other = match Sandbox::choose(Choice::Landlock) {
        Ok(_) => Choice::Landlock,
        Err(error) => {
            println!("SKIPPED Landlock: {error}");
            Choice::Bubblewrap
        }
    };
    let another = fixture.build("another", 3, other);
    assert_eq!(one, another);
}

/// What passes and what fails the gate differ in one line of a build script.
#[test]
fn a_crate_that_records_the_time_is_found_out() {
    let scratch = tempfile::tempdir().unwrap();
    let badge = scratch.path().join("badge.json");
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    Toolchains::new(&toolchain_directory())
        .setup(&mut |event| println!("{event:?}"))
        .unwrap();
    let repro = |more: &[&str]| {
        let ran = Command::new(qk_tests::qk())
            .args(["repro", "--json", "--path"])
            .arg(crates.join("fickle"))
            .arg("--badge")
            .arg(&badge)
            .args(more)
            .env("QK_HOME", scratch.path().join("home"))
            .env("QK_TOOLCHAINS", toolchain_directory())
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&ran.stderr));
        let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let badge: Value = serde_json::from_slice(&std::fs::read(&badge).unwrap()).unwrap();
        (ran.status.code(), said, badge)
    };

    let (code, said, badge) = repro(&[]);
    assert_eq!(code, Some(12), "{said}");
    assert_eq!(
        (&said["reproducible"], &said["same_work"]),
        (&false.into(), &false.into())
    );
    let first = json!({"package": "fickle", "own": true, "causes": ["time"]});
    assert_eq!(said["first"], first);
    assert_eq!(said["comparison"]["files"][0]["path"], "bin/fickle");
    let expected =
        json!({"schemaVersion": 1, "label": "reproducible", "message": "no", "color": "red"});
    assert_eq!(badge, expected);

    let (code, said, badge) = repro(&["--features", "steady"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&said["reproducible"], &said["same_work"]),
        (&true.into(), &true.into())
    );
    assert_eq!(badge["message"], "yes");
    // Nothing of the package's directory was changed.
    assert!(!crates.join("fickle/Cargo.lock").exists());
    assert!(!crates.join("fickle/target").exists());
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
    fn build(&self, hostname: &str, jobs: u32, sandbox: Choice) -> (Identity, WorkDigest) {
        let work = self.directory.path().join(hostname);
        let sandbox = Sandbox::choose(sandbox).unwrap();
        let builder = Builder::in_sandbox(sandbox, self.toolchains.clone(), &work).unwrap();
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
        let linked = built.linked.as_ref().expect("a record of what was linked");
        let work = linked.work_digest().expect("a work digest");
        let (name, version) = (&self.order.name, &self.order.version);
        let output = Command::new(&built.bins[name]).arg("--version").output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(said.trim(), format!("{name} {version}"));
        let system = &built.environment.os;
        println!(
            "{name} {version} on {system}, {jobs} jobs, {}: {}",
            built.environment.sandbox, identity.root
        );
        (identity, work)
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
