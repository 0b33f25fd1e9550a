//! What a machine needs before qk can build, test or show anything.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::cargo;

/// One program that must be there.
struct Need {
    /// What a person calls it.
    name: &'static str,
    /// A command that succeeds if and only if it is there.
    probe: &'static [&'static str],
    /// How to get it, as the end of a sentence.
    how: &'static str,
}

const RUSTC: Need = Need {
    name: "the Rust compiler",
    probe: &["rustc", "--version"],
    how: "install it with rustup",
};
const CC: Need = Need {
    name: "a C compiler",
    probe: &["cc", "--version"],
    how: "install gcc, on Debian and Ubuntu: apt-get install gcc libc6-dev",
};
const PYTHON: Need = Need {
    name: "Python 3",
    probe: &["python3", "--version"],
    how: "install it, on Debian and Ubuntu: apt-get install python3",
};
const PIP: Need = Need {
    name: "pip for Python 3",
    probe: &["python3", "-m", "pip", "--version"],
    how: "install it, on Debian and Ubuntu: apt-get install python3-pip",
};
const BUBBLEWRAP: Need = Need {
    name: "bubblewrap",
    probe: &["bwrap", "--version"],
    how: "install it with the distribution's package manager, on Debian and Ubuntu: \
          apt-get install bubblewrap",
};
const NGINX: Need = Need {
    name: "nginx",
    probe: &["nginx", "-v"],
    how: "install it, on Debian and Ubuntu: apt-get install nginx-light",
};
const CURL: Need = Need {
    name: "curl",
    probe: &["curl", "--version"],
    how: "install it, on Debian and Ubuntu: apt-get install curl",
};
const OPENSSL: Need = Need {
    name: "openssl",
    probe: &["openssl", "version"],
    how: "install it, on Debian and Ubuntu: apt-get install openssl",
};

/// What only some tests need; without it they say that they are skipped.
const FOR_TESTS: [Need; 4] = [
    Need {
        name: "nftables",
        probe: &["nft", "--version"],
        how: "install it with the distribution's package manager, on Debian and Ubuntu: \
              apt-get install nftables",
    },
    Need {
        name: "iproute2",
        probe: &["ip", "-Version"],
        how: "install it with the distribution's package manager, on Debian and Ubuntu: \
              apt-get install iproute2",
    },
    Need {
        name: "chromium",
        probe: &["chromium", "--version"],
        how: "install it with the distribution's package manager, on Debian: apt-get install chromium",
    },
    Need {
        name: "tcpdump",
        probe: &["tcpdump", "--version"],
        how: "install it with the distribution's package manager, on Debian and Ubuntu: \
              apt-get install tcpdump",
    },
];

impl Need {
    /// Whether the program is found along `path`, the value of `PATH`.
    fn met(&self, path: &OsStr) -> bool {
        runs(Command::new(self.probe[0]).args(&self.probe[1..]), path)
    }

    fn sentence(&self) -> String {
        format!("{} is missing: {}", self.name, self.how)
    }
}

/// Prepares the machine and returns the path of the built `qk`.
///
/// # Errors
/// Names everything that is missing and cannot be installed from here, one per line.
pub fn run() -> Result<PathBuf> {
    prepare()?;
    let qk = cargo::build("qk", &["--package", "qk"])?;
    toolchain(&qk)?;
    Ok(qk)
}

/// Checks the programs that a person has to install, and installs bubblewrap and what some tests need.
///
/// # Errors
/// As [`run`].
pub fn prepare() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = missing(&[RUSTC, CC, PYTHON, PIP], &path);
    if !BUBBLEWRAP.met(&path)
        && let Err(error) = install("bubblewrap", &path)
    {
        missing.push(format!("{} ({error:#})", BUBBLEWRAP.sentence()));
    }
    for need in FOR_TESTS.iter().filter(|need| !need.met(&path)) {
        // Those are not worth a failure.
        if let Err(error) = install(need.name, &path) {
            eprintln!("warning: {} ({error:#})", need.sentence());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{}", missing.join("\n       "))
}

/// Installs what transfers are measured against.
///
/// # Errors
/// As [`run`].
pub fn rivals() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = Vec::new();
    for (need, package) in [(NGINX, "nginx-light"), (CURL, "curl"), (OPENSSL, "openssl")] {
        if !need.met(&path)
            && let Err(error) = install(package, &path)
        {
            missing.push(format!("{} ({error:#})", need.sentence()));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{}", missing.join("\n       "))
}

/// Lets qk install its pinned zig and cargo-zigbuild, and check what it installed earlier.
///
/// # Errors
/// When `qk setup` fails; it has said why.
pub fn toolchain(qk: &Path) -> Result<()> {
    let mut setup = Command::new(qk);
    setup.arg("setup").stdin(Stdio::null());
    cargo::forget_caller(&mut setup);
    cargo::run_aside(&mut setup)
}

fn missing(needs: &[Need], path: &OsStr) -> Vec<String> {
    needs
        .iter()
        .filter(|need| !need.met(path))
        .map(Need::sentence)
        .collect()
}

/// Installs a package of Debian or Ubuntu, as root or by a `sudo` that asks nothing.
fn install(package: &str, path: &OsStr) -> Result<()> {
    if !runs(Command::new("apt-get").arg("--version"), path) {
        bail!("there is no apt-get here");
    }
    let root = rustix::process::geteuid().is_root();
    if !root && !runs(Command::new("sudo").args(["-n", "true"]), path) {
        bail!("this is neither root nor a user whose sudo asks for no password");
    }
    eprintln!("Installing {package} with apt-get");
    // The lists of a fresh container are empty, those of a laptop usually are not.
    if apt_get(root, &["install", "--no-install-recommends", package]).is_err() {
        apt_get(root, &["update"])?;
        apt_get(root, &["install", "--no-install-recommends", package])?;
    }
    Ok(())
}

fn apt_get(root: bool, args: &[&str]) -> Result<()> {
    let mut line: Vec<&str> = Vec::new();
    if !root {
        line.extend(["sudo", "-n"]);
    }
    line.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    // Another apt-get may be at work, and a machine that just started runs one by itself.
    line.extend(["--quiet", "--yes", "-o", "DPkg::Lock::Timeout=300"]);
    line.extend(args);
    cargo::run_aside(Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()))
}

/// Whether a command, found along `path`, can be started and succeeds; its output is dropped.
fn runs(command: &mut Command, path: &OsStr) -> bool {
    command
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory to be used as `PATH`, with programs that do what their script says.
    fn machine(programs: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn each_missing_program_has_a_sentence_of_its_own() {
        let bare = machine(&[]);
        let lines = missing(&[RUSTC, CC, PYTHON, PIP], bare.path().as_os_str());
        assert_eq!(
            lines,
            [
                "the Rust compiler is missing: install it with rustup",
                "a C compiler is missing: \
                 install gcc, on Debian and Ubuntu: apt-get install gcc libc6-dev",
                "Python 3 is missing: install it, on Debian and Ubuntu: apt-get install python3",
                "pip for Python 3 is missing: \
                 install it, on Debian and Ubuntu: apt-get install python3-pip",
            ]
        );
    }

    #[test]
    fn python_without_pip_is_told_apart() {
        let machine = machine(&[("python3", "[ \"$1\" = --version ]")]);
        let lines = missing(&[PYTHON, PIP], machine.path().as_os_str());
        assert_eq!(lines, [PIP.sentence()]);
    }

    #[test]
    fn nothing_is_installed_without_apt_get() {
        let bare = machine(&[]);
        let error = install("bubblewrap", bare.path().as_os_str()).unwrap_err();
        assert_eq!(error.to_string(), "there is no apt-get here");
    }
}
