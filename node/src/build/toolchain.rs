//! The pinned part of the toolchain: zig and cargo-zigbuild, each from a Python wheel whose
//! SHA-256 is a constant here, installed below qk's data directory.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_protocol::hash::Sha256;
use sha2::Digest;

use super::sandbox::{Choice, Sandbox};

/// A file of the Python package index, by checksum.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// Name of the project.
    pub project: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// SHA-256 of the wheel for x86-64 Linux, in hex.
    pub sha256: &'static str,
    /// The executable in it, relative to the unpacked wheel.
    pub executable: &'static str,
    /// What it does for a build, for a person who lacks it.
    pub purpose: &'static str,
}

/// C compiler and linker.
pub const ZIG: Wheel = Wheel {
    project: "ziglang",
    version: "0.17.0",
    sha256: "97079827064a7492cce5541ceb438ae8003ce1e54e399676da2d62fb7a5dc08b",
    executable: "ziglang/zig",
    purpose: "the pinned C compiler and linker",
};

/// What makes cargo use zig.
pub const ZIGBUILD: Wheel = Wheel {
    project: "cargo-zigbuild",
    version: "0.24.0",
    sha256: "484412e39e4c6039474535ce97ee75a22bab22d58233056f8ec8a8f9034bb957",
    executable: "cargo_zigbuild-0.24.0.data/scripts/cargo-zigbuild",
    purpose: "the pinned bridge from cargo to zig",
};

/// A wheel is at most this large.
const WHEEL_BYTES_MAX: u64 = 512 << 20;

/// Something that a build needs and this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What, in a few words.
    pub what: String,
    /// The command that gets it.
    pub how: String,
}

/// What setup is doing, for a person who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupEvent {
    /// Gets a wheel through pip.
    Downloading {
        /// Project and version.
        what: String,
    },
    /// Unpacks it.
    Unpacking {
        /// Project and version.
        what: String,
    },
    /// Installs packages of the distribution.
    Packages {
        /// Their names.
        names: Vec<String>,
    },
}

/// Why a toolchain could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Needs a person.
    #[error("{} is missing: {}", .0.what, .0.how)]
    Missing(Missing),
    /// pip failed.
    #[error("pip could not download {what}: {said}")]
    Download {
        /// Project and version.
        what: String,
        /// The end of what it said.
        said: String,
    },
    /// Another file than the pinned one.
    #[error("the wheel of {what} has SHA-256 {got}, not {want}")]
    Checksum {
        /// Project and version.
        what: String,
        /// The pinned checksum.
        want: String,
        /// That of the file.
        got: Sha256,
    },
    /// The machine did not do what was asked.
    #[error("toolchain: {doing}: {error}")]
    Io {
        /// What was under way.
        doing: &'static str,
        /// What came back.
        error: io::Error,
    },
}

fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> SetupError {
    move |error| SetupError::Io { doing, error }
}

impl Wheel {
    /// The pinned checksum.
    ///
    /// # Panics
    /// Never for the wheels of this module, which a test reads.
    pub fn checksum(&self) -> Sha256 {
        self.sha256.parse().expect("a constant of 64 hex digits")
    }

    fn name(&self) -> String {
        format!("{} {}", self.project, self.version)
    }
}

/// The toolchains below one directory.
#[derive(Debug, Clone)]
pub struct Toolchains {
    directory: PathBuf,
}

impl Toolchains {
    /// Those below `directory`, which is created when something is installed.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
        }
    }

    /// The directory itself, for caches that belong to it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a wheel is unpacked; the checksum is in the name, so another one is another place.
    pub fn unpacked(&self, wheel: &Wheel) -> PathBuf {
        let short = &wheel.sha256[..12];
        self.directory
            .join(format!("{}-{}-{short}", wheel.project, wheel.version))
    }

    /// A wheel's executable, if it is installed.
    pub fn executable(&self, wheel: &Wheel) -> Option<PathBuf> {
        let path = self.unpacked(wheel).join(wheel.executable);
        path.is_file().then_some(path)
    }

    /// What is missing for builds on this machine, each with the way to get it. Empty when builds
    /// can start.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = missing_packages();
        for wheel in [&ZIG, &ZIGBUILD] {
            if self.executable(wheel).is_none() {
                missing.push(Missing {
                    what: format!("{}, {}", wheel.name(), wheel.purpose),
                    how: "run `qk setup`".into(),
                });
            }
        }
        missing
    }

    /// Installs what [`missing`](Self::missing) names.
    ///
    /// # Errors
    /// When something needs a person, or the network or the disk fail; what is installed by then
    /// stays.
    pub fn setup(&self, progress: &mut dyn FnMut(SetupEvent)) -> Result<(), SetupError> {
        install_packages(progress)?;
        for wheel in [&ZIG, &ZIGBUILD] {
            if self.executable(wheel).is_none() {
                self.install(wheel, progress)?;
            }
        }
        Ok(())
    }

    fn install(
        &self,
        wheel: &Wheel,
        progress: &mut dyn FnMut(SetupEvent),
    ) -> Result<(), SetupError> {
        fs::create_dir_all(&self.directory).map_err(doing("create its directory"))?;
        let scratch = tempfile::tempdir_in(&self.directory)
            .map_err(doing("create a directory to unpack in"))?;
        let what = wheel.name();
        progress(SetupEvent::Downloading { what: what.clone() });
        let file = download(wheel, scratch.path())?;
        check(wheel, &file)?;
        progress(SetupEvent::Unpacking { what });
        let unpacked = scratch.path().join("unpacked");
        // Only now, after the checksum: an unzip that python brings along is good enough for a
        // file that is known byte by byte.
        let mut unzip = Command::new("python3");
        unzip
            .args(["-m", "zipfile", "-e"])
            .arg(&file)
            .arg(&unpacked);
        said(&mut unzip, wheel)?;
        let executable = unpacked.join(wheel.executable);
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))
            .map_err(doing("make it executable"))?;
        match fs::rename(&unpacked, self.unpacked(wheel)) {
            // Another process was faster.
            Err(_) if self.executable(wheel).is_some() => Ok(()),
            renamed => renamed.map_err(doing("move it into place")),
        }
    }
}

/// Through the user's pip, so that its mirrors, proxy and certificates stay in force.
fn download(wheel: &Wheel, scratch: &Path) -> Result<PathBuf, SetupError> {
    let requirements = scratch.join("requirements.txt");
    let line = format!(
        "{}=={} --hash=sha256:{}\n",
        wheel.project, wheel.version, wheel.sha256
    );
    fs::write(&requirements, line).map_err(doing("write pip's requirements"))?;
    let wheels = scratch.join("wheels");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "download"])
        .args(["--quiet", "--no-deps", "--only-binary", ":all:"])
        .args(["--require-hashes", "-r"])
        .arg(&requirements)
        .arg("-d")
        .arg(&wheels);
    said(&mut pip, wheel)?;
    let mut found = fs::read_dir(&wheels).map_err(doing("read what pip downloaded"))?;
    let first = found.next().transpose();
    let first = first.map_err(doing("read what pip downloaded"))?;
    first
        .map(|entry| entry.path())
        .ok_or_else(|| SetupError::Download {
            what: wheel.name(),
            said: "it wrote no file".into(),
        })
}

fn said(command: &mut Command, wheel: &Wheel) -> Result<(), SetupError> {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SetupError::Missing(python()));
        }
        Err(error) => return Err(doing("start python3")(error)),
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("No module named pip") {
        return Err(SetupError::Missing(python()));
    }
    let skipped = text.chars().count().saturating_sub(600);
    Err(SetupError::Download {
        what: wheel.name(),
        said: text.chars().skip(skipped).collect::<String>().trim().into(),
    })
}

fn python() -> Missing {
    Missing {
        what: "Python 3 with pip".into(),
        how: "as root run `apt-get install python3-pip`".into(),
    }
}

fn check(wheel: &Wheel, file: &Path) -> Result<(), SetupError> {
    let got = sha256_file(file, WHEEL_BYTES_MAX).map_err(doing("read the wheel"))?;
    if got == wheel.checksum() {
        return Ok(());
    }
    Err(SetupError::Checksum {
        what: wheel.name(),
        want: wheel.sha256.into(),
        got,
    })
}

/// SHA-256 of a file of at most `bytes_max` bytes.
pub(crate) fn sha256_file(path: &Path, bytes_max: u64) -> io::Result<Sha256> {
    let mut file = fs::File::open(path)?.take(bytes_max + 1);
    let mut hasher = HashWriter(sha2::Sha256::new());
    if io::copy(&mut file, &mut hasher)? > bytes_max {
        return Err(io::Error::other(format!("larger than {bytes_max} bytes")));
    }
    Ok(Sha256(hasher.0.finalize().into()))
}

struct HashWriter(sha2::Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packages of the distribution that bring what a build needs of the host: (program, package).
const PACKAGES: &[(&str, &str)] = &[
    ("bwrap", "bubblewrap"),
    ("make", "make"),
    ("nm", "binutils"),
    ("awk", "mawk"),
    ("diff", "diffutils"),
];

fn packages() -> Vec<&'static str> {
    let lacking = |(program, _): &&(&str, &str)| super::host::which(program).is_none();
    let lacking = PACKAGES.iter().filter(lacking);
    // bubblewrap would not help where user namespaces are off, and Landlock holds builds there.
    let needless = |package: &&str| *package == "bubblewrap" && builds_without_namespaces();
    let lacking = lacking.map(|&(_, package)| package);
    lacking.filter(|package| !needless(package)).collect()
}

fn builds_without_namespaces() -> bool {
    let unshared = Command::new("unshare").args(["--user", "true"]).output();
    let namespaces = unshared.is_ok_and(|output| output.status.success());
    !namespaces && Sandbox::choose(Choice::Landlock).is_ok()
}

fn missing_packages() -> Vec<Missing> {
    let lacking = packages().into_iter().map(|package| Missing {
        what: package.into(),
        how: format!("run `qk setup` as root, or `sudo apt-get install {package}`"),
    });
    lacking.collect()
}

fn install_packages(progress: &mut dyn FnMut(SetupEvent)) -> Result<(), SetupError> {
    let lacking = packages();
    if lacking.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = lacking.iter().map(ToString::to_string).collect();
    let missing = || {
        SetupError::Missing(Missing {
            what: names.join(", "),
            how: format!("as root run `apt-get install {}`", names.join(" ")),
        })
    };
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "apt-get"]);
        sudo
    };
    let names = names.clone();
    progress(SetupEvent::Packages { names });
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(&lacking)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let done = command.output().is_ok_and(|output| output.status.success());
    if done && packages().is_empty() {
        Ok(())
    } else {
        Err(missing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_checksums_can_be_read() {
        for wheel in [&ZIG, &ZIGBUILD] {
            assert_eq!(wheel.checksum().to_string(), wheel.sha256);
        }
    }

    #[test]
    fn a_wheel_with_another_byte_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.whl");
        fs::write(&file, b"not zig").unwrap();
        let error = check(&ZIG, &file).unwrap_err().to_string();
        assert!(error.contains("not 97079827"), "{error}");
    }
}
