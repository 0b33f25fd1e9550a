//! Runs the probes from a build script, and what only a build script can do.

#[path = "probes.rs"]
mod probes;

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    let report = probes::run("build-script", &out);
    std::fs::write(out.join("report.txt"), report).unwrap();
    // Believed by whoever takes outputs from cargo's messages.
    println!("{}", probes::FORGED);
    tamper();
    if std::env::var_os("CARGO_FEATURE_PLANT").is_some() {
        plant(&out);
    }
    if std::env::var_os("CARGO_FEATURE_SWARM").is_some() {
        probes::swarm();
    }
    if std::env::var_os("CARGO_FEATURE_LINGER").is_some() {
        probes::daemon("linger");
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

/// Puts a link to something of the host's into the record of what is linked; only the sandbox has one.
fn tamper() {
    let record = Path::new("/qk/target/linked/hostile");
    if Path::new("/qk/target").exists() {
        std::fs::create_dir_all(record).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", record.join("1-passwd.o")).unwrap();
    }
}

/// `target/<triple>/release/build/<package>/out` → `target/<triple>/release/planted`.
fn plant(out: &Path) {
    let release = out.ancestors().nth(3).unwrap();
    let facts = probes::Facts::read();
    std::os::unix::fs::symlink(facts.get("secret"), release.join("planted")).unwrap();
}
