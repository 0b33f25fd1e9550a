//! One crate of the public registry, built twice with other jobs, host name and time: the same
//! archive, byte by byte.

use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::build::{Builder, Cancel, Options, Order, Toolchains};
use qk_protocol::hash::Sha256;

const NAME: &str = "hexyl";
const VERSION: &str = "0.17.0";

#[test]
fn two_builds_give_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let toolchains = Toolchains::new(&toolchain_directory());
    toolchains
        .setup(&mut |event| println!("{event:?}"))
        .unwrap();
    let crate_file = download(directory.path());
    let source = Sha256::of(&std::fs::read(&crate_file).unwrap());
    let registry = "registry+https://registry.example/index";
    let order = Order::new(registry, NAME, VERSION, crate_file, source);
    let mut roots = Vec::new();
    for (jobs, hostname) in [(1, "one"), (3, "another")] {
        // Other directories on the host, too.
        let work = directory.path().join(hostname);
        let builder = Builder::new(toolchains.clone(), &work).unwrap();
        let options = Options {
            jobs,
            hostname: hostname.to_owned(),
            ..Options::default()
        };
        let mut quiet = |_| {};
        let built = builder
            .build(&order, &options, &Cancel::default(), &mut quiet)
            .unwrap();
        let archive = directory.path().join(format!("{hostname}.tar"));
        let key = built.key.clone().expect("the crate has a lock");
        let packed = built.pack(key, &archive).unwrap();
        assert_eq!(packed.key, built.key.clone().unwrap());
        let output = Command::new(&built.bins[NAME]).arg("--version").output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(said.trim(), format!("{NAME} {VERSION}"));
        println!(
            "{} with {jobs} jobs: {}",
            packed.identity.root, packed.identity.size
        );
        roots.push(packed.identity);
    }
    assert_eq!(roots[0], roots[1]);
}

/// Through cargo, so that the user's registry replacement and proxy are in force.
fn download(directory: &Path) -> PathBuf {
    let package = directory.join("fetch");
    std::fs::create_dir_all(package.join("src")).unwrap();
    std::fs::write(package.join("src/lib.rs"), "").unwrap();
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{NAME} = \"={VERSION}\"\n[workspace]\n"
    );
    std::fs::write(package.join("Cargo.toml"), manifest).unwrap();
    let status = Command::new("cargo")
        .args(["fetch", "--quiet"])
        .current_dir(&package)
        .status();
    assert!(status.unwrap().success());
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cargo"));
    let file = format!("{NAME}-{VERSION}.crate");
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
