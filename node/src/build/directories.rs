//! The directories of a build on the host, and what makes sure that they go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::run::{EPOCH, doing};
use super::{BuildError, Sandbox};

/// The directories of one build on the host.
pub(super) struct Work {
    root: Scratch,
    out: tempfile::TempDir,
}

/// A directory that goes with this value, whatever untrusted code did to it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_all(&self.0);
    }
}

impl Work {
    /// Directories below `parent`; those that a phase may write belong to the build's uid.
    pub(super) fn new(parent: &Path, sandbox: &Sandbox) -> Result<Self, BuildError> {
        let prefix = format!("{WORK_PREFIX}{}-", std::process::id());
        let make = || tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let work = Self {
            root: Scratch(make().map_err(doing("create a work directory"))?.keep()),
            out: make().map_err(doing("create a work directory"))?,
        };
        for name in ["scratch", "src", "tools"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
        }
        for name in ["vendor", "fetch-home", "home", "cargo", "cache", "target"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
            sandbox.own(&work.at(name))?;
        }
        Ok(work)
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.root.0.join(name)
    }

    pub(super) fn out(&self) -> &Path {
        self.out.path()
    }

    pub(super) fn keep_out(self) -> tempfile::TempDir {
        self.out
    }
}

/// Before the id of the process that a work directory belongs to.
const WORK_PREFIX: &str = "build-";

/// Removes the work directories of processes that were killed.
pub(super) fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(WORK_PREFIX);
        let pid = pid.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_all(&entry.path());
        }
    }
}

/// Removes what untrusted code may have made hard to remove.
fn remove_all(path: &Path) {
    // The last process of a stopped sandbox may still be on its way out.
    for _ in 0..20 {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        for entry in walkdir::WalkDir::new(path).into_iter().flatten() {
            if entry.file_type().is_dir() {
                let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
                let _ = fs::set_permissions(entry.path(), open);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tracing::warn!("could not remove {}", path.display());
}

/// Gives all sources one time, which build scripts can see. Nothing runs in them meanwhile.
pub(super) fn settle(roots: &[PathBuf]) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec {
        tv_sec: EPOCH.cast_signed(),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    for entry in roots.iter().flat_map(walkdir::WalkDir::new) {
        utimensat(CWD, entry?.path(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
