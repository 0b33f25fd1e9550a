//! Logs of builds, by their digest: what an observation names, kept by whoever built.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use qk_protocol::hash::Blake3;
use qk_protocol::log::{LOG_BYTES_MAX, LogPiece};
use serde_bytes::ByteBuf;

use crate::home::create_private_dir;

/// Bytes that all logs together may take; the oldest go.
pub const LOGS_BYTES_MAX: u64 = 256 << 20;
/// How much of a log is in memory while it is looked through.
const BUFFER_BYTES: usize = 64 << 10;

/// A directory of logs, `<digest>.log` each.
#[derive(Debug, Clone)]
pub struct Logs {
    dir: PathBuf,
    bytes_max: u64,
}

impl Logs {
    /// The logs in a directory, which is made when it is needed.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            bytes_max: LOGS_BYTES_MAX,
        }
    }

    /// Logs that were got from others: a directory and a quota of their own, since what somebody looked at
    /// is nobody's business.
    #[must_use]
    pub fn of_others(&self) -> Self {
        Self {
            dir: self.dir.join("others"),
            bytes_max: self.bytes_max,
        }
    }

    /// Keeps a log, and lets the oldest go where there are too many.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, log: &[u8]) -> io::Result<Blake3> {
        let digest = Blake3::of(log);
        create_private_dir(&self.dir)?;
        let mut temp = tempfile::NamedTempFile::new_in(&self.dir)?;
        temp.write_all(log)?;
        temp.persist(self.path(&digest))?;
        self.clean()?;
        Ok(digest)
    }

    /// A log that is here, and is what its name says.
    ///
    /// # Errors
    /// When it cannot be read, or was damaged.
    pub fn read(&self, digest: &Blake3) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut log = Vec::new();
        file.take(LOG_BYTES_MAX).read_to_end(&mut log)?;
        if Blake3::of(&log) != *digest {
            let message = format!("{} is damaged", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Some(log))
    }

    /// The piece of a log that begins at `offset`, if the log is here and undamaged. Holds no more of it
    /// in memory than that.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn piece(&self, digest: &Blake3, offset: u64) -> io::Result<Option<LogPiece>> {
        let mut file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let total = file.metadata()?.len();
        if total > LOG_BYTES_MAX {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        if *hasher.finalize().as_bytes() != digest.0 {
            tracing::warn!(%digest, "a log is damaged, and not given");
            return Ok(None);
        }
        let mut bytes = vec![0; LogPiece::len_at(offset, total)];
        file.read_exact_at(&mut bytes, offset)?;
        let bytes = ByteBuf::from(bytes);
        Ok(Some(LogPiece { total, bytes }))
    }

    fn path(&self, digest: &Blake3) -> PathBuf {
        self.dir.join(format!("{digest}.log"))
    }

    fn clean(&self) -> io::Result<()> {
        let mut logs: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if is_log(&entry.path()) {
                // Another process may clean, too.
                let Ok(about) = entry.metadata() else {
                    continue;
                };
                logs.push((about.modified()?, about.len(), entry.path()));
            }
        }
        logs.sort();
        let mut sum: u64 = logs.iter().map(|(_, size, _)| size).sum();
        // The newest one stays, however large.
        logs.pop();
        for (_, size, path) in logs {
            if sum <= self.bytes_max {
                break;
            }
            let _ = fs::remove_file(path);
            sum -= size;
        }
        Ok(())
    }
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_what_they_are_named_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs {
            bytes_max: 10,
            ..Logs::at(directory.path().join("logs"))
        };
        assert_eq!(logs.read(&Blake3::of(b"one")).unwrap(), None);
        let one = logs.keep(b"the first").unwrap();
        assert_eq!(logs.read(&one).unwrap().unwrap(), b"the first");
        let old = File::options().write(true).open(logs.path(&one)).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let two = logs.keep(b"the second, longer than all may be").unwrap();
        assert_eq!(logs.read(&one).unwrap(), None);
        assert!(logs.read(&two).unwrap().is_some());
        let second = b"the second, longer than all may be";
        let piece = logs.piece(&two, 4).unwrap().unwrap();
        assert_eq!((piece.total, &piece.bytes[..]), (34, &second[4..]));
        let end = logs.piece(&two, 1000).unwrap().unwrap();
        assert_eq!((end.total, end.bytes.len()), (34, 0));
        assert_eq!(logs.piece(&one, 0).unwrap(), None);
        assert_eq!(logs.of_others().read(&two).unwrap(), None);
        fs::write(logs.path(&two), "something else").unwrap();
        assert_eq!(logs.piece(&two, 0).unwrap(), None);
        let said = logs.read(&two).unwrap_err().to_string();
        assert!(said.contains("is damaged"), "{said}");
    }
}
