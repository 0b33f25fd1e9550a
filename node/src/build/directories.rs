//! The directories of a build on the host, and what makes sure that they go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::landlock::Place;
use super::remove::remove_all;
use super::run::{EPOCH, doing};
use super::{BuildError, Cancel, Sandbox, SandboxError};

/// The directories of one build on the host.
#[derive(Debug)]
pub struct Work {
    root: Root,
    out: tempfile::TempDir,
}

/// Where they lie; emptied with this value, whatever untrusted code did to it.
#[derive(Debug)]
enum Root {
    Scratch(Scratch),
    Fixed(Place),
}

/// A directory that goes with this value.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_all(&self.0);
    }
}

impl Work {
    /// Directories below `parent`, or where the sandbox has them lie; those that a phase may write belong
    /// to the build's uid.
    ///
    /// # Errors
    /// When they cannot be made, and [`BuildError::Cancelled`].
    pub fn new(parent: &Path, sandbox: &Sandbox, cancel: &Cancel) -> Result<Self, BuildError> {
        let prefix = format!("{WORK_PREFIX}{}-", std::process::id());
        let make = || tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let make = || make().map_err(doing("create a work directory"));
        let root = match sandbox.place(cancel) {
            Ok(Some(place)) => Root::Fixed(place),
            Ok(None) => Root::Scratch(Scratch(make()?.keep())),
            Err(SandboxError::Cancelled) => return Err(BuildError::Cancelled),
            Err(error) => return Err(error.into()),
        };
        let work = Self { root, out: make()? };
        for name in ["scratch", "src", "tools"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
        }
        for name in ["vendor", "fetch-home", "home", "cargo", "cache", "target"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
            sandbox.own(&work.at(name))?;
        }
        Ok(work)
    }

    /// One of them; seen below `/qk` by the build.
    pub fn at(&self, name: &str) -> PathBuf {
        match &self.root {
            Root::Scratch(Scratch(path)) => path.join(name),
            Root::Fixed(place) => place.path().join(name),
        }
    }

    /// Where the outputs are put, which no build sees.
    pub(crate) fn out(&self) -> &Path {
        self.out.path()
    }

    /// Removes all but the outputs.
    pub(crate) fn keep_out(self) -> tempfile::TempDir {
        self.out
    }
}

/// Before the id of the process that a work directory belongs to.
const WORK_PREFIX: &str = "build-";

/// Removes the work directories of processes that were killed.
pub(crate) fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(WORK_PREFIX);
        let pid = pid.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_all(&entry.path());
        }
    }
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
