//! What the file system says of a file, by which one knows that nobody changed it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A file as it was. Whoever writes to it, replaces it or changes its times leaves another one: the kernel
/// alone sets the time of the last change of a file's data or attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    inode: u64,
    size: u64,
    mode: u32,
    /// Seconds and nanoseconds.
    written: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file, or of a link itself.
    ///
    /// # Errors
    /// What the system says; also where nothing is there.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            inode: found.ino(),
            size: found.size(),
            mode: found.mode(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether it is a regular file that its owner may run and nobody may write.
    pub(super) fn is_executable(self) -> bool {
        self.mode & 0o170_777 == 0o100_555
    }

    /// Of a file that need not be there.
    pub(super) fn maybe(path: &Path) -> Option<Self> {
        Self::of(path).ok()
    }
}
