//! Takes files out of a directory that untrusted code wrote.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// An executable is at most this large.
pub(crate) const BINARY_BYTES_MAX: u64 = 1 << 30;

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// Nothing there.
    #[error("{0} was not built")]
    Missing(String),
    /// A link, a device, a directory, or too large.
    #[error("{0} is {1}")]
    Odd(String, &'static str),
    /// The machine did not do what was asked.
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

/// Opens the regular file `relative` below `directory`, following no link on the way and leaving no
/// path out of `directory`. Nothing may write to `directory` any more.
pub(crate) fn open(directory: &Path, relative: &Path) -> Result<File, TakeError> {
    let name = relative.display().to_string();
    let io = |error: rustix::io::Errno| TakeError::Io(name.clone(), error.into());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).map_err(io)?;
    // NONBLOCK: a planted fifo must not hold us up. openat2 refuses every link, the last one too.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = match openat2(&directory, relative, flags, Mode::empty(), resolve) {
        Ok(opened) => opened,
        Err(rustix::io::Errno::NOENT) => return Err(TakeError::Missing(name)),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => {
            return Err(TakeError::Odd(name, "a link, not a file"));
        }
        Err(error) => return Err(io(error)),
    };
    let stat = fstat(&opened).map_err(io)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TakeError::Odd(name, "not a regular file"));
    }
    Ok(opened.into())
}

/// Copies a file that is [opened](open) so to `to`.
pub(crate) fn take(directory: &Path, relative: &Path, to: &Path) -> Result<(), TakeError> {
    let name = relative.display().to_string();
    let mut source = open(directory, relative)?.take(BINARY_BYTES_MAX + 1);
    let plain = |error: io::Error| TakeError::Io(name.clone(), error);
    let mut target = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(to)
        .map_err(plain)?;
    if io::copy(&mut source, &mut target).map_err(plain)? > BINARY_BYTES_MAX {
        return Err(TakeError::Odd(name, "larger than an executable may be"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_below_the_directory_are_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("target/release")).unwrap();
        fs::write(at("secret"), "secret").unwrap();
        fs::write(at("target/release/plain"), "plain").unwrap();
        symlink(at("secret"), at("target/release/link")).unwrap();
        symlink(scratch.path(), at("target/up")).unwrap();
        let fifo = std::process::Command::new("mkfifo")
            .arg(at("target/release/fifo"))
            .status();
        assert!(fifo.unwrap().success());

        // What an ordinary copy does with the link.
        fs::copy(at("target/release/link"), at("stolen")).unwrap();
        assert_eq!(fs::read_to_string(at("stolen")).unwrap(), "secret");

        let said = |relative: &str| {
            let to = at(&format!("out-{}", relative.replace('/', "-")));
            take(&at("target"), Path::new(relative), &to).map_err(|error| error.to_string())
        };
        assert_eq!(said("release/plain"), Ok(()));
        assert_eq!(
            fs::read_to_string(at("out-release-plain")).unwrap(),
            "plain"
        );
        let refused = |relative: &str, why: &str| {
            assert_eq!(said(relative).unwrap_err(), format!("{relative} {why}"));
        };
        refused("release/link", "is a link, not a file");
        refused("up/secret", "is a link, not a file");
        refused("../secret", "is a link, not a file");
        refused("release/fifo", "is not a regular file");
        refused("release/none", "was not built");
    }
}
