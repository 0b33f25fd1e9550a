//! What a fetch is measured against: building it, and downloading it from a web server without any
//! check.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Row;
use super::sample::{self, Samples};
use crate::cargo;

/// File that the web server gives out.
const ARCHIVE: &str = "binaries.tar.gz";

/// The rows that a fetch is measured against, for one crate: `cargo-install` and `curl-tar`.
///
/// # Errors
/// When a program that is measured fails.
pub fn rows(package: &str, runs: usize) -> Result<Vec<Row>> {
    let installed = tempfile::tempdir()?;
    let install = cargo_install(package, installed.path())?;
    let served = tempfile::tempdir()?;
    pack(&installed.path().join("bin"), &served.path().join(ARCHIVE))?;
    let server = FileServer::start(served.path())?;
    let download = Samples::take(runs, || {
        curl_tar(&server.url(ARCHIVE), tempfile::tempdir()?.path())
    })?;
    Ok(vec![
        Row::new("cargo-install", install, "s"),
        Row::new("curl-tar", download.median(), "s"),
    ])
}

/// A web server on loopback that gives out the files of one directory, until it is dropped.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    port: u16,
}

impl FileServer {
    /// Starts Python's web server on a free port and waits until it listens.
    ///
    /// # Errors
    /// When Python 3 cannot be started or does not say its port.
    pub fn start(directory: &Path) -> Result<Self> {
        let child = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"])
            .arg("--directory")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start python3")?;
        let mut server = Self { child, port: 0 };
        let stdout = server.child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        server.port =
            port(&line).with_context(|| format!("python3 said {line:?}, not its port"))?;
        Ok(server)
    }

    /// The address of a file in the directory.
    pub fn url(&self, file: &str) -> String {
        format!("http://127.0.0.1:{}/{file}", self.port)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // It may be gone already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes the port from `Serving HTTP on 127.0.0.1 port 4711 (…`.
fn port(line: &str) -> Option<u16> {
    line.split(' ')
        .skip_while(|word| *word != "port")
        .nth(1)?
        .parse()
        .ok()
}

/// Packs everything in `directory` into a `.tar.gz` at `archive`.
///
/// # Errors
/// When tar cannot be started or fails.
pub fn pack(directory: &Path, archive: &Path) -> Result<()> {
    cargo::run(
        Command::new("tar")
            .arg("--create")
            .arg("--gzip")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(directory)
            .arg("."),
    )
}

/// Seconds of `curl URL | tar xz` into `directory`.
///
/// # Errors
/// When either of them cannot be started or fails.
pub fn curl_tar(url: &str, directory: &Path) -> Result<f64> {
    let start = Instant::now();
    let mut curl = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start curl")?;
    let download = curl.stdout.take().context("no standard output")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--directory"])
        .arg(directory)
        .stdin(download)
        .status();
    let downloaded = curl.wait();
    let seconds = start.elapsed().as_secs_f64();
    let (unpacked, downloaded) = (unpacked.context("cannot start tar")?, downloaded?);
    ensure!(downloaded.success(), "`curl {url}` failed: {downloaded}");
    ensure!(unpacked.success(), "`tar` of {url} failed: {unpacked}");
    Ok(seconds)
}

/// Seconds of `cargo install NAME@VERSION --locked` into `root`, from nothing but the downloaded
/// sources. Runs twice, the first time for the download, which would measure the network.
///
/// # Errors
/// When cargo fails.
pub fn cargo_install(package: &str, root: &Path) -> Result<f64> {
    let target = tempfile::tempdir()?;
    cargo::run_aside(
        install(package, root, target.path())
            .args(["--no-track", "--debug"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )?;
    let target = tempfile::tempdir()?;
    sample::seconds(install(package, root, target.path()).arg("--force"))
}

fn install(package: &str, root: &Path, target: &Path) -> Command {
    let mut install = cargo::command();
    install
        .args(["install", "--locked", package, "--root"])
        .arg(root)
        .env("CARGO_TARGET_DIR", target)
        .current_dir(root)
        .stdin(Stdio::null());
    install
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_arrives() {
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join("bin")).unwrap();
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(files.path().join("bin/tool"), &content).unwrap();
        let served = tempfile::tempdir().unwrap();
        pack(files.path(), &served.path().join("tool.tar.gz")).unwrap();

        let server = FileServer::start(served.path()).unwrap();
        let here = tempfile::tempdir().unwrap();
        assert!(curl_tar(&server.url("tool.tar.gz"), here.path()).unwrap() > 0.0);
        assert!(std::fs::read(here.path().join("bin/tool")).unwrap() == content);

        let error = curl_tar(&server.url("other.tar.gz"), here.path()).unwrap_err();
        assert!(
            error.to_string().starts_with("`curl http://127.0.0.1:"),
            "{error}"
        );
        let url = server.url("tool.tar.gz");
        drop(server);
        assert!(curl_tar(&url, here.path()).is_err(), "the server is gone");
    }

    #[test]
    fn the_port_is_taken_from_what_python_says() {
        let line = "Serving HTTP on 127.0.0.1 port 4711 (http://127.0.0.1:4711/) ...\n";
        assert_eq!(port(line), Some(4711));
        assert_eq!(port("Traceback (most recent call last):"), None);
    }
}
