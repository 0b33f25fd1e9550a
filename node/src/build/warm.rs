//! What zig compiles once for itself: the start files, stubs of the C library and its own runtime.
//! Made by building a package without dependencies in the sandbox, and copied for every build: a
//! cache that a crate could write to would reach the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Order;
use super::sandbox::{Sandbox, SandboxError};
use super::toolchain::{Toolchains, ZIG, ZIGBUILD};

/// Where the cache for this order's target is or will be.
pub(crate) fn place(toolchains: &Toolchains, order: &Order) -> PathBuf {
    let (zig, bridge) = (&ZIG.sha256[..12], &ZIGBUILD.sha256[..12]);
    let glibc = order.linked_glibc().unwrap_or_default();
    let name = format!("zig-cache-{zig}-{bridge}-{}.{glibc}", order.target);
    toolchains.directory().join(name)
}

/// Writes the package that is built to fill the cache. It has a build script, so that the linking
/// for the host is in the cache too.
pub(crate) fn write_package(source: &Path) -> io::Result<()> {
    let manifest = "[package]\nname = \"warm\"\nversion = \"0.0.0\"\nedition = \"2021\"\n";
    let lock = "version = 4\n\n[[package]]\nname = \"warm\"\nversion = \"0.0.0\"\n";
    fs::create_dir(source.join("src"))?;
    fs::write(source.join("Cargo.toml"), manifest)?;
    fs::write(source.join("Cargo.lock"), lock)?;
    fs::write(source.join("build.rs"), "fn main() {}\n")?;
    fs::write(source.join("src/main.rs"), "fn main() {}\n")
}

/// Puts a filled cache into its place, all of it or nothing.
pub(crate) fn keep(filled: &Path, place: &Path) -> io::Result<()> {
    let parent = place.parent().ok_or(io::ErrorKind::NotFound)?;
    let scratch = tempfile::tempdir_in(parent)?;
    let copied = scratch.path().join("cache");
    copy(filled, &copied, &mut |_| Ok(()))?;
    match fs::rename(&copied, place) {
        // Another process was faster.
        Err(_) if place.is_dir() => Ok(()),
        renamed => renamed,
    }
}

/// Gives a build a copy of its own.
pub(crate) fn give(place: &Path, to: &Path, sandbox: &Sandbox) -> io::Result<()> {
    copy(place, to, &mut |path| {
        let owned = sandbox.own(path);
        owned.map_err(|error: SandboxError| io::Error::other(error.to_string()))
    })
}

fn copy(from: &Path, to: &Path, each: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry?;
        let relative = entry.path().strip_prefix(from).map_err(io::Error::other)?;
        let target = match relative.as_os_str().is_empty() {
            true => to.to_path_buf(),
            false => to.join(relative),
        };
        if entry.file_type().is_dir() {
            fs::create_dir(&target)?;
        } else if entry.file_type().is_file() {
            fs::copy(entry.path(), &target)?;
        } else {
            continue;
        }
        each(&target)?;
    }
    Ok(())
}
