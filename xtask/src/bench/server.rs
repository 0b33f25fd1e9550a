//! A web server for files.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_taken_from_what_python_says() {
        let line = "Serving HTTP on 127.0.0.1 port 4711 (http://127.0.0.1:4711/) ...\n";
        assert_eq!(port(line), Some(4711));
        assert_eq!(port("Traceback (most recent call last):"), None);
    }
}
