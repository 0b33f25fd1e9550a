//! Removes what untrusted code may have made hard to remove.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// How often removing is tried: the last process of a stopped sandbox may still be on its way out.
const ATTEMPTS: u32 = 20;
/// So many entries of a directory are held in memory.
const ENTRIES_AT_ONCE: usize = 4096;

/// Removes a directory and all below it.
pub(crate) fn remove_all(path: &Path) {
    remove_below(path);
    if let Err(error) = fs::remove_dir(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("could not remove {}: {error}", path.display());
    }
}

/// Removes all that is below a directory.
pub(crate) fn remove_below(path: &Path) {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match flatten(path) {
            Ok(()) | Err(Errno::NOENT) => return,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tracing::warn!("could not empty {}: {last:?}", path.display());
}

/// Empties a directory without ever being deeper than two levels in it: a tree of a hundred thousand
/// levels has neither paths that the kernel takes nor room on the stack. Directories within
/// directories are moved to the top first. Nothing else may write there.
fn flatten(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty())?;
    let mut number = 0_u64;
    each(&top, &mut |name, is_dir| {
        if !is_dir {
            return rustix::fs::unlinkat(&top, name, AtFlags::empty());
        }
        open_up(&top, name)?;
        let directory = rustix::fs::openat(&top, name, flags, Mode::empty())?;
        each(&directory, &mut |below, is_dir| {
            if !is_dir {
                return rustix::fs::unlinkat(&directory, below, AtFlags::empty());
            }
            if rustix::fs::unlinkat(&directory, below, AtFlags::REMOVEDIR).is_ok() {
                return Ok(());
            }
            // Moving a directory writes to it: its `..` is another one then.
            open_up(&directory, below)?;
            let free = free_name(&top, &mut number)?;
            rustix::fs::renameat(&directory, below, &top, &free)
        })?;
        rustix::fs::unlinkat(&top, name, AtFlags::REMOVEDIR)
    })
}

/// Hands every entry of a directory, and whether it is a directory, to `take`, which takes it away; until
/// there is none.
fn each(
    directory: &OwnedFd,
    take: &mut dyn FnMut(&OsStr, bool) -> Result<(), Errno>,
) -> Result<(), Errno> {
    loop {
        let entries = entries(directory)?;
        if entries.is_empty() {
            return Ok(());
        }
        for (name, is_dir) in entries {
            take(&name, is_dir)?;
        }
    }
}

/// The first entries of a directory, and which are directories.
fn entries(directory: &OwnedFd) -> Result<Vec<(OsString, bool)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name, kind == FileType::Directory));
        if found.len() == ENTRIES_AT_ONCE {
            break;
        }
    }
    Ok(found)
}

/// Makes a directory readable and writable for its owner.
fn open_up(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())
}

fn free_name(top: &OwnedFd, number: &mut u64) -> Result<OsString, Errno> {
    loop {
        *number += 1;
        let name = OsString::from(format!("qk-remove-{number}"));
        match rustix::fs::statat(top, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(name),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_made_to_stay_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = scratch.path().join("kept");
        fs::write(&kept, "").unwrap();
        let work = scratch.path().join("work");
        fs::create_dir(&work).unwrap();
        // Deeper than any path may be long, each level with a file and closed to its owner.
        let closed = Mode::empty();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = rustix::fs::open(&work, flags, Mode::empty()).unwrap();
        let mut levels = vec![at.try_clone().unwrap()];
        for level in 0..3000 {
            let name = if level % 7 == 0 {
                "qk-remove-1"
            } else {
                "level"
            };
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, closed).unwrap();
            let below = rustix::fs::openat(&at, name, flags, Mode::empty()).unwrap();
            if level % 100 == 0 {
                levels.push(below.try_clone().unwrap());
            }
            at = below;
        }
        for level in levels.iter().skip(1) {
            rustix::fs::fchmod(level, closed).unwrap();
        }
        for number in 0..5000 {
            symlink(&kept, work.join(format!("link {number}"))).unwrap();
        }
        symlink(scratch.path(), work.join("up")).unwrap();
        fs::create_dir(work.join("closed")).unwrap();
        fs::set_permissions(work.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_all(&work);
        assert!(!work.exists());
        assert!(kept.exists());
        remove_all(&work);
    }
}
