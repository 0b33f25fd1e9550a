//! Logs of builds, by their digest: what an observation names, kept by whoever built.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use qk_protocol::hash::Blake3;

use crate::home::create_private_dir;

/// Bytes that all logs together may take; the oldest go.
pub const LOGS_BYTES_MAX: u64 = 256 << 20;
/// A log is at most this long, and a little more where it was cut off.
const LOG_BYTES_MAX: u64 = 17 << 20;

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
        fs::write(logs.path(&two), "something else").unwrap();
        let said = logs.read(&two).unwrap_err().to_string();
        assert!(said.contains("is damaged"), "{said}");
    }
}
