//! `/qk` on the host.
//!
//! Paths enter what a compiler writes, so a build without a mount namespace has to lie where the
//! other kind of sandbox shows it. Rejected: any directory, and flags that rewrite its path. They miss
//! what crates take from their environment (`env!("OUT_DIR")`), and change the rlibs.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::remove::remove_below;
use super::super::sandbox::{Bind, Cancel, POLL, Run, SandboxError, doing, is_public};

/// The directory that builds see, in either kind of sandbox.
pub(super) const BASE: &str = "/qk";
/// Temporary files of a build.
pub(super) const TMP: &str = "/qk/tmp";
/// Where `PATH` points.
const TOOLS: &str = "/qk/bin";

/// The one build of this machine that lies at `/qk`; it is emptied when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    directory: File,
}

impl Place {
    /// Waits until no other build is there, and makes it empty but for a directory for temporary
    /// files.
    pub(crate) fn take(drop_to: Option<u32>, cancel: &Cancel) -> Result<Self, SandboxError> {
        let directory = loop {
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
            let directory = open(drop_to.is_some())?;
            match directory.try_lock() {
                Ok(()) if is_there(&directory) => break directory,
                // Whoever had it before has removed it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
                Err(TryLockError::Error(error)) => return Err(doing("lock /qk")(error)),
            }
        };
        // What was left by a process that was killed.
        remove_below(Path::new(BASE));
        let place = Self { directory };
        fs::create_dir(TMP).map_err(doing("create /qk/tmp"))?;
        if let Some(uid) = drop_to {
            std::os::unix::fs::lchown(TMP, Some(uid), Some(uid))
                .map_err(doing("give a directory to the build's uid"))?;
        }
        Ok(place)
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new(BASE)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove_below(Path::new(BASE));
        // Only root may; for others an administrator made it, to stay.
        let _ = fs::remove_dir(BASE);
        let _ = self.directory.unlock();
    }
}

/// Says why builds cannot lie there, before one does.
pub(super) fn check(root: bool) -> Result<(), SandboxError> {
    match existing() {
        Err(Errno::NOENT) if root => Ok(()),
        Err(Errno::NOENT) => Err(missing()),
        opened => owned(opened).map(drop),
    }
}

/// Opens `/qk`, which root makes where it is missing.
fn open(root: bool) -> Result<File, SandboxError> {
    loop {
        match existing() {
            Err(Errno::NOENT) if root => match DirBuilder::new().mode(0o755).create(BASE) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(doing("create /qk")(error));
                }
                _ => {}
            },
            Err(Errno::NOENT) => return Err(missing()),
            opened => return owned(opened),
        }
    }
}

fn existing() -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(BASE, flags, Mode::empty()).map(File::from)
}

/// What was opened, if nobody else may write to it.
fn owned(opened: Result<File, Errno>) -> Result<File, SandboxError> {
    let directory = opened.map_err(|error| foreign(&error.to_string()))?;
    let meta = directory.metadata().map_err(doing("look at /qk"))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign(&format!("it belongs to uid {}", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(foreign("others may write to it"));
    }
    Ok(directory)
}

fn missing() -> SandboxError {
    SandboxError::Unavailable {
        what: "there is no /qk, where builds without user namespaces have to lie".into(),
        how: "as root run `install -d -m 0700 -o USER /qk` with the user that qk runs as".into(),
    }
}

fn foreign(why: &str) -> SandboxError {
    SandboxError::Unavailable {
        what: format!("/qk cannot be used for builds: {why}"),
        how: "give it to the user that qk runs as, with mode 0700; only one user of a machine builds \
              without user namespaces"
            .into(),
    }
}

fn is_there(directory: &File) -> bool {
    let same = |opened: fs::Metadata| {
        let there = fs::symlink_metadata(BASE).ok()?;
        Some((there.dev(), there.ino()) == (opened.dev(), opened.ino()))
    };
    directory.metadata().ok().and_then(same).unwrap_or(false)
}

/// Something that a run may reach.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) path: PathBuf,
    pub(super) writable: bool,
}

/// Puts what a run sees to its place and returns what it may reach. What is there already stays: the
/// runs of a build share most of it.
pub(super) fn put(run: &Run) -> Result<Vec<Grant>, SandboxError> {
    let mut grants = Vec::new();
    for Bind {
        host,
        inside,
        writable,
    } in &run.binds
    {
        let host = fs::canonicalize(host).map_err(doing("find what a build may see"))?;
        let below = inside.starts_with(BASE);
        if below && *inside != host {
            if *writable {
                let error = io::Error::other(format!("{} is elsewhere", inside.display()));
                return Err(doing("place what a build writes")(error));
            }
            give(&host, inside).map_err(doing("place what a build reads"))?;
        }
        // A link is granted with what it points to.
        let path = fs::canonicalize(if below { inside } else { &host });
        grants.push(Grant {
            path: path.map_err(doing("find what a build may see"))?,
            writable: *writable,
        });
    }
    for (to, at) in &run.links {
        let at = Path::new(at);
        if at.starts_with(BASE) && at.symlink_metadata().is_err() {
            let parent = at.parent().unwrap_or(at);
            let made = fs::create_dir_all(parent).and_then(|()| symlink(to, at));
            made.map_err(doing("place a link"))?;
        }
    }
    Ok(grants)
}

/// The same files at another place: hard links where the file system allows, else copies. The system's
/// own tools, which say nothing of where they lie, are pointed to.
fn give(host: &Path, inside: &Path) -> io::Result<()> {
    if inside.symlink_metadata().is_ok() {
        return Ok(());
    }
    fs::create_dir_all(inside.parent().unwrap_or(inside))?;
    if inside.starts_with(TOOLS) && is_public(host) {
        return symlink(host, inside);
    }
    for entry in walkdir::WalkDir::new(host).follow_links(true) {
        let entry = entry?;
        let below = entry.path().strip_prefix(host).map_err(io::Error::other)?;
        let target = match below.as_os_str().is_empty() {
            true => inside.to_path_buf(),
            false => inside.join(below),
        };
        if entry.file_type().is_dir() {
            DirBuilder::new().mode(0o755).create(&target)?;
        } else if entry.file_type().is_file() {
            let real = fs::canonicalize(entry.path())?;
            fs::hard_link(&real, &target).or_else(|_| fs::copy(&real, &target).map(drop))?;
        }
    }
    Ok(())
}
