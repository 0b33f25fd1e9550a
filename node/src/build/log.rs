//! The log of a build, and what its end says about why it failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Reason;

/// Lines that an error shows.
const TAIL_LINES: usize = 40;
/// Longest line of them.
const TAIL_LINE_CHARS: usize = 500;

/// A file of bounded size, and its last lines in memory.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    left: u64,
    tail: VecDeque<String>,
}

impl Log {
    pub(crate) fn create(path: &Path, bytes_max: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(File::create_new(path)?),
            left: bytes_max,
            tail: VecDeque::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line. A log that cannot be written does not stop a build.
    pub(crate) fn line(&mut self, line: &str) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        let kept = line.chars().filter(|c| !c.is_control() || *c == '\t');
        self.tail.push_back(kept.take(TAIL_LINE_CHARS).collect());
        let size = line.len() as u64 + 1;
        let Some(left) = self.left.checked_sub(size) else {
            if std::mem::take(&mut self.left) > 0 {
                let _ = writeln!(self.file, "(cut off here)");
            }
            return;
        };
        self.left = left;
        let _ = writeln!(self.file, "{line}");
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

/// What the end of a log says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A class of failure, and the line that shows it.
    Reason(Reason, String),
    /// The crate asks for this version of rustc at least.
    NewerRustc(String),
}

/// Pieces of messages of cargo, rustc, linkers and widely used build crates, and what they mean.
/// The first match counts.
const SIGNS: &[(&str, Reason)] = &[
    (
        "needs to be updated but --locked was passed",
        Reason::StaleLock,
    ),
    ("cannot update the lock file", Reason::StaleLock),
    ("cannot create the lock file", Reason::NoLock),
    ("No space left on device", Reason::DiskFull),
    ("File size limit exceeded", Reason::DiskFull),
    ("File too large", Reason::DiskFull),
    ("memory allocation of", Reason::OutOfMemory),
    ("Cannot allocate memory", Reason::OutOfMemory),
    ("LLVM ERROR: out of memory", Reason::OutOfMemory),
    ("CPU time limit exceeded", Reason::TimeOut),
    ("signal: 24, SIGXCPU", Reason::TimeOut),
    ("is `cmake` not installed?", Reason::BuildTool),
    ("cmake: not found", Reason::BuildTool),
    ("perl: not found", Reason::BuildTool),
    ("Command 'perl' not found", Reason::BuildTool),
    ("Error running the command: perl", Reason::BuildTool),
    ("Could not find `protoc`", Reason::BuildTool),
    ("Unable to find libclang", Reason::BuildTool),
    (
        "pkg-config command could not be found",
        Reason::SystemLibrary,
    ),
    ("Could not find directory of OpenSSL", Reason::SystemLibrary),
    ("The system library", Reason::SystemLibrary),
    (
        "unable to find dynamic system library",
        Reason::SystemLibrary,
    ),
    ("unable to find library", Reason::SystemLibrary),
    ("could not find system library", Reason::SystemLibrary),
    ("' file not found", Reason::SystemLibrary),
];

/// Finds the class; `otherwise` if nothing is recognised.
pub(crate) fn classify(tail: &str, otherwise: Reason) -> Found {
    if let Some(version) = newer_rustc(tail) {
        return Found::NewerRustc(version);
    }
    for (sign, reason) in SIGNS {
        if let Some(line) = tail.lines().find(|line| line.contains(sign)) {
            return Found::Reason(*reason, line.trim().to_owned());
        }
    }
    let error = |line: &&str| line.trim_start().starts_with("error");
    let line = tail.lines().find(error).or_else(|| tail.lines().last());
    Found::Reason(
        otherwise,
        line.unwrap_or("it said nothing").trim().to_owned(),
    )
}

/// `package `x v1` cannot be built because it requires rustc 1.99 or newer`, and cargo's list
/// `x@1 requires rustc 1.99`.
fn newer_rustc(tail: &str) -> Option<String> {
    let after = tail.lines().find_map(|line| {
        let about = line.contains("cannot be built because it") || line.trim_start().contains('@');
        line.split_once("requires rustc ").filter(|_| about)
    })?;
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let version: String = after.1.chars().take_while(|&c| digits(c)).collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(tail: &str) -> Found {
        classify(tail, Reason::Compile)
    }

    #[test]
    fn messages_become_reasons() {
        let stale =
            "error: the lock file /qk/src/Cargo.lock needs to be updated but --locked was passed";
        assert!(matches!(reason(stale), Found::Reason(Reason::StaleLock, _)));
        let library = "x\n  The pkg-config command could not be found.\ny";
        assert!(matches!(
            reason(library),
            Found::Reason(Reason::SystemLibrary, _)
        ));
        let plain = "   Compiling x\nerror[E0308]: mismatched types\n --> src/main.rs";
        assert_eq!(
            reason(plain),
            Found::Reason(Reason::Compile, "error[E0308]: mismatched types".into())
        );
        let newer = "error: rustc 1.95.0 is not supported by the following package:\n  x@0.1.0 requires rustc 1.99";
        assert_eq!(reason(newer), Found::NewerRustc("1.99".into()));
    }

    #[test]
    fn a_log_is_cut_off_and_keeps_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::create(&path, 20).unwrap();
        for number in 0..100 {
            log.line(&format!("line {number}"));
        }
        assert!(log.tail().ends_with("line 99"));
        drop(log);
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, "line 0\nline 1\n(cut off here)\n");
    }
}
