//! Processes of a test: run, fed, signalled and waited for, and what they leave on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qk_protocol::hash::Blake3;
use serde_json::Value;

use crate::schema;

/// Longer than anything here should take, however loaded the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, as text.
    pub stdout: String,
    /// What it said beside that.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// What it printed, as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    /// The message of the failure, wherever it stands.
    pub fn error(&self) -> String {
        match self.json()["error"].as_str() {
            Some(error) => error.to_owned(),
            None => self.stderr.clone(),
        }
    }

    /// Asserts that it succeeded; returns what it printed.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn done(&self) -> Value {
        assert_eq!(self.code(), 0, "{}", self.shown());
        self.json()
    }

    /// Asserts that it failed with this exit code, and that message and hint say all of `words`.
    ///
    /// # Panics
    /// When it did something else.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code(), code, "{}", self.shown());
        let said = format!("{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(
                said.contains(word),
                "{word:?} is missing in: {}",
                self.shown()
            );
        }
    }

    fn shown(&self) -> String {
        format!(
            "{}\n--- stdout\n{}--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it does not start, or when qk prints other JSON than its schema says.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    let ran = Ran::from(command.output().expect("it starts"));
    schema::check_printed(command, &ran.stdout);
    ran
}

/// Runs a command to its end with this on its standard input.
///
/// # Panics
/// When it does not start.
pub fn feed(command: &mut Command, input: &str) -> Ran {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may end without having read all of it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("an end").into()
}

/// Sends a signal by its name to one process.
///
/// # Panics
/// When there is no such process.
pub fn send(process: u32, signal: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(process.to_string())
        .status();
    assert!(
        sent.expect("kill starts").success(),
        "{signal} to {process}"
    );
}

/// Waits until a process has ended.
///
/// # Panics
/// When it has not after [`PATIENCE`].
pub fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("it ended")
}

/// Waits until something is so.
///
/// # Panics
/// When it is not after [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Every file below a directory, with its size and digest; nothing if it is not there.
pub fn listing(dir: &Path) -> BTreeMap<PathBuf, (u64, Blake3)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                found.insert(path, (bytes.len() as u64, Blake3::of(&bytes)));
            }
        }
    }
    found
}

/// A port that nobody listens on, below those that systems give to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        // Tests are processes of their own, so their numbers keep them apart.
        let number =
            u64::from(std::process::id()) * 13 + u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + u16::try_from(number % 18_000).expect("small");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
