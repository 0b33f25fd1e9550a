//! Programs of others, written in Python, that read what qk writes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Python that has these packages, in an environment of its own with this name; `None` where pip cannot
/// get them. `import` tells whether they are there.
pub fn with(name: &str, packages: &[&str], import: &str) -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let dir = this.parent()?.join(format!("qk-tests-{name}"));
    let python = dir.join("bin/python");
    let quiet = |command: &mut Command| {
        let done = command.stdout(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    };
    let has = |python: &Path| {
        let mut command = Command::new(python);
        quiet(command.args(["-c", import]).stderr(Stdio::null()))
    };
    if has(&python) {
        return Some(python);
    }
    let made = quiet(Command::new("python3").args(["-m", "venv"]).arg(&dir));
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet"]).args(packages);
    (made && quiet(&mut pip) && has(&python)).then_some(python)
}
