//! Cargo, as the other tasks call it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The workspace's directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// `cargo`, the one that runs this program, to be started in the workspace's directory.
pub fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    forget_caller(&mut cargo);
    cargo
}

/// Removes what `cargo run` tells a program about itself, and would mislead build scripts that
/// the program starts in turn.
pub fn forget_caller(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// Runs to the end.
///
/// # Errors
/// When it cannot be started or reports a failure; the message is the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

/// Runs to the end with its output on our standard error, so that ours stays clean.
///
/// # Errors
/// As [`run`].
pub fn run_aside(command: &mut Command) -> Result<()> {
    run(command.stdout(Stdio::from(std::io::stderr())))
}

/// The program's file name and its arguments, for a person to read.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a subcommand of cargo is there.
pub fn has(subcommand: &str) -> bool {
    command()
        .args([subcommand, "--version"])
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Builds and returns the path of the executable `name`.
///
/// `selection` are cargo's arguments that say what is built, for example `["--package", "qk"]`.
///
/// # Errors
/// When the build fails, or builds no such executable.
pub fn build(name: &str, selection: &[&str]) -> Result<PathBuf> {
    let mut cargo = command();
    cargo
        .arg("build")
        .args(selection)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let line = describe(&cargo);
    let output = cargo
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    ensure!(
        output.status.success(),
        "`{line}` failed: {}",
        output.status
    );
    for message in output.stdout.split(|byte| *byte == b'\n') {
        if let Some(path) = executable(message, name) {
            return Ok(path);
        }
    }
    bail!("`{line}` built no executable named {name}")
}

/// Builds `qk` as it is released.
///
/// # Errors
/// As [`build`].
pub fn build_released() -> Result<PathBuf> {
    build("qk", &["--package", "qk", "--profile", "dist"])
}

/// Builds a program of the workspace `benchmarks`, as people would run it.
///
/// # Errors
/// As [`build`].
pub fn build_beside(name: &str) -> Result<PathBuf> {
    let manifest = workspace().join("benchmarks/Cargo.toml");
    let target = workspace().join("target");
    let (manifest, target) = (manifest.to_string_lossy(), target.to_string_lossy());
    let selection = ["--release", "--locked", "--manifest-path", &manifest];
    let selection = [
        &selection[..],
        &["--target-dir", &target, "--package", name],
    ]
    .concat();
    build(name, &selection)
}

/// Where an index of crates has a crate's lines.
pub fn index_place(name: &str) -> PathBuf {
    let name = name.to_ascii_lowercase();
    match name.len() {
        0..=2 => Path::new(&name.len().to_string()).join(&name),
        3 => Path::new("3").join(&name[..1]).join(&name),
        _ => Path::new(&name[..2]).join(&name[2..4]).join(&name),
    }
}

/// A file's SHA-256, in hexadecimal.
///
/// # Errors
/// When `sha256sum` fails.
pub fn sha256(file: &Path) -> Result<String> {
    let mut sum = Command::new("sha256sum");
    let output = sum.arg("--").arg(file).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "`{}` failed", describe(&sum));
    let line = String::from_utf8(output.stdout)?;
    let digest = line.split(' ').next().unwrap_or_default();
    Ok(digest.trim_start_matches('\\').to_owned())
}

/// The executable that one of cargo's messages announces, if it is the one called `name` and not
/// the test harness of the same name.
fn executable(message: &[u8], name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_slice(message).ok()?;
    if message["target"]["name"] != name
        || message["target"]["kind"] != serde_json::json!(["bin"])
        || message["profile"]["test"] != false
    {
        return None;
    }
    message["executable"].as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, kind: &str, test: bool) -> Vec<u8> {
        serde_json::json!({
            "reason": "compiler-artifact",
            "target": { "name": name, "kind": [kind] },
            "profile": { "test": test },
            "executable": "/t/debug/it",
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn only_the_executable_asked_for_is_taken() {
        let it = Some(PathBuf::from("/t/debug/it"));
        assert_eq!(executable(&message("qk", "bin", false), "qk"), it);
        assert_eq!(executable(&message("qk", "bin", true), "qk"), None);
        assert_eq!(executable(&message("qk", "test", false), "qk"), None);
        assert_eq!(executable(&message("other", "bin", false), "qk"), None);
        assert_eq!(executable(b"   Compiling qk", "qk"), None);
    }

    #[test]
    fn short_names_have_places_of_their_own() {
        let shown = ["a", "qk", "sha", "anyhow", "RustyXML"]
            .map(|name| index_place(name).display().to_string());
        assert_eq!(
            shown,
            ["1/a", "2/qk", "3/s/sha", "an/yh/anyhow", "ru/st/rustyxml"]
        );
    }

    #[test]
    fn a_failure_names_the_command_line() {
        let error = run(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` failed: exit status: 3");
        let error = run(&mut Command::new("/nonexistent/tool")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `tool`");
    }
}
