//! Whether an executable runs on this machine, found out before it is placed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::FileHeader;
use qk_protocol::archive::{Executable, Format};

/// The C library of this machine may be this long.
const LIBC_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The loader's cache of library names may be this long.
const LOADER_CACHE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why an executable does not run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// Made for another operating system.
    #[error("made for another operating system: its format is {0:?}")]
    Format(Format),
    /// Made for another processor.
    #[error("made for {wants}, and this machine is {has}")]
    Machine {
        /// The executable's processor.
        wants: String,
        /// This machine's.
        has: String,
    },
    /// Asks for a newer C library.
    #[error("needs glibc {wants}, and this machine has {}.{}", has.0, has.1)]
    Glibc {
        /// What the executable asks for.
        wants: String,
        /// What there is: major and minor version.
        has: (u32, u32),
    },
    /// A system with musl as its C library.
    #[error(
        "needs glibc, and this machine has musl; a musl target is needed, {0}-unknown-linux-musl"
    )]
    Musl(String),
    /// No loader, and so no C library that it could use.
    #[error("needs glibc, and its loader {} is not here", .0.display())]
    NoLoader(PathBuf),
    /// The version of the C library is not to be found out.
    #[error("needs glibc {0}, and the version of this machine's cannot be read")]
    UnknownGlibc(String),
    /// A library that is not installed.
    #[error("needs {0}, which is not installed here")]
    Library(String),
}

/// A machine that executables are to run on.
#[derive(Debug, Clone)]
pub struct Host {
    machine: String,
    root: PathBuf,
    library_path: Option<std::ffi::OsString>,
}

/// Whether an executable runs on this machine.
///
/// # Errors
/// Says what stands against it.
pub fn runs_here(executable: &Executable) -> Result<(), Incompatible> {
    Host::here().check(executable)
}

impl Host {
    /// This machine.
    pub fn here() -> Self {
        let machine = rustix::system::uname()
            .machine()
            .to_string_lossy()
            .into_owned();
        Self {
            machine,
            root: "/".into(),
            library_path: std::env::var_os("LD_LIBRARY_PATH"),
        }
    }

    /// Checks what an executable asks for against what there is.
    ///
    /// # Errors
    /// Names the first thing that is missing.
    pub fn check(&self, executable: &Executable) -> Result<(), Incompatible> {
        if executable.format != Format::Elf {
            return Err(Incompatible::Format(executable.format));
        }
        if !self.runs_machine(&executable.machine) {
            return Err(Incompatible::Machine {
                wants: executable.machine.clone(),
                has: self.machine.clone(),
            });
        }
        let wants_glibc = executable.glibc.is_some() || executable.needed.contains("libc.so.6");
        let mut dirs = self.library_dirs();
        if wants_glibc {
            let libc = self.check_glibc(executable)?;
            dirs.extend(libc.parent().map(Path::to_owned));
        }
        self.check_libraries(&executable.needed, &dirs)
    }

    fn runs_machine(&self, machine: &str) -> bool {
        machine == self.machine
            || match self.machine.as_str() {
                "x86_64" => machine == "x86",
                "i386" | "i486" | "i586" | "i686" => machine == "x86",
                "armv6l" | "armv7l" => machine == "arm",
                _ => false,
            }
    }

    /// The C library's file, if it is new enough.
    fn check_glibc(&self, executable: &Executable) -> Result<PathBuf, Incompatible> {
        let loader = match executable.machine.as_str() {
            "x86_64" => "lib64/ld-linux-x86-64.so.2",
            "x86" => "lib/ld-linux.so.2",
            "aarch64" => "lib/ld-linux-aarch64.so.1",
            "arm" => "lib/ld-linux-armhf.so.3",
            "riscv64" => "lib/ld-linux-riscv64-lp64d.so.1",
            "powerpc64" => "lib64/ld64.so.2",
            "s390x" => "lib/ld64.so.1",
            _ => "lib/ld-linux.so.2",
        };
        let Ok(found) = std::fs::canonicalize(self.root.join(loader)) else {
            let musl = self.root.join(format!("lib/ld-musl-{}.so.1", self.machine));
            return Err(if musl.exists() {
                Incompatible::Musl(self.machine.clone())
            } else {
                Incompatible::NoLoader(Path::new("/").join(loader))
            });
        };
        // Distributions keep the C library beside its loader.
        let libc = found.with_file_name("libc.so.6");
        let Some(wants) = &executable.glibc else {
            return Ok(libc);
        };
        let unknown = || Incompatible::UnknownGlibc(wants.clone());
        let has = glibc_of(&libc).ok_or_else(unknown)?;
        let asked = version(wants).ok_or_else(unknown)?;
        if asked > has {
            let wants = wants.clone();
            return Err(Incompatible::Glibc { wants, has });
        }
        Ok(libc)
    }

    fn check_libraries(
        &self,
        needed: &BTreeSet<String>,
        dirs: &[PathBuf],
    ) -> Result<(), Incompatible> {
        let elsewhere = needed
            .iter()
            .filter(|name| !dirs.iter().any(|dir| dir.join(name.as_str()).exists()));
        let mut elsewhere = elsewhere.peekable();
        if elsewhere.peek().is_none() {
            return Ok(());
        }
        let cache = self.root.join("etc/ld.so.cache");
        let cache = bounded(&cache, LOADER_CACHE_BYTES_MAX).unwrap_or_default();
        let names: BTreeSet<&[u8]> = cache.split(|byte| *byte == 0).collect();
        match elsewhere.find(|name| !names.contains(name.as_bytes())) {
            None => Ok(()),
            Some(missing) => Err(Incompatible::Library(missing.clone())),
        }
    }

    fn library_dirs(&self) -> Vec<PathBuf> {
        let fixed = ["lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib"];
        let own = self.library_path.as_ref();
        let own = own.map(|dirs| std::env::split_paths(dirs).collect::<Vec<_>>());
        let fixed = fixed.iter().map(|dir| self.root.join(dir));
        own.unwrap_or_default().into_iter().chain(fixed).collect()
    }
}

/// The highest `GLIBC_x.y` that a C library defines.
fn glibc_of(libc: &Path) -> Option<(u32, u32)> {
    let data = bounded(libc, LIBC_BYTES_MAX)?;
    let data = data.as_slice();
    match object::FileKind::parse(data).ok()? {
        object::FileKind::Elf64 => highest::<elf::FileHeader64<object::Endianness>>(data),
        object::FileKind::Elf32 => highest::<elf::FileHeader32<object::Endianness>>(data),
        _ => None,
    }
}

fn highest<Elf: FileHeader<Endian = object::Endianness>>(data: &[u8]) -> Option<(u32, u32)> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, data).ok()?;
    let (mut definitions, strings) = sections.gnu_verdef(endian, data).ok()??;
    let strings = sections.strings(endian, data, strings).ok()?;
    let mut highest = None;
    while let Ok(Some((_, mut names))) = definitions.next() {
        let Ok(Some(name)) = names.next() else {
            continue;
        };
        let name = name.name(endian, strings).ok()?;
        let name = std::str::from_utf8(name).ok()?;
        highest = highest.max(name.strip_prefix("GLIBC_").and_then(version));
    }
    highest
}

/// Major and minor version of `2.17` or `2.2.5`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn bounded(file: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(file).ok()?;
    (meta.is_file() && meta.len() <= bytes_max).then(|| std::fs::read(file).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use qk_protocol::hash::Blake3;

    fn wants(glibc: Option<&str>, needed: &[&str]) -> Executable {
        Executable {
            format: Format::Elf,
            size: 1,
            blake3: Blake3::of(b""),
            machine: Host::here().machine,
            glibc: glibc.map(str::to_owned),
            needed: needed.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn agrees_with_getconf() {
        let Ok(output) = std::process::Command::new("getconf")
            .arg("GNU_LIBC_VERSION")
            .output()
        else {
            println!("no getconf on this machine: not compared");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        let has = text.trim().strip_prefix("glibc ").unwrap();
        let (major, minor) = version(has).unwrap();
        let needed = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
        assert_eq!(runs_here(&wants(Some(has), &needed)), Ok(()));
        let next = format!("{major}.{}", minor + 1);
        assert_eq!(
            runs_here(&wants(Some(&next), &needed)),
            Err(Incompatible::Glibc {
                wants: next,
                has: (major, minor)
            })
        );
        let missing = runs_here(&wants(None, &["libc.so.6", "libnot-here.so.3"]));
        assert_eq!(
            missing,
            Err(Incompatible::Library("libnot-here.so.3".into()))
        );
        assert_eq!(runs_here(&wants(None, &[])), Ok(()));
    }

    #[test]
    fn other_machines_and_c_libraries_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            machine: "x86_64".into(),
            root: dir.path().to_owned(),
            library_path: None,
        };
        let mut executable = wants(Some("2.17"), &["libc.so.6"]);
        executable.machine = "x86_64".into();
        let error = |executable: &Executable| host.check(executable).unwrap_err().to_string();
        insta::assert_snapshot!(error(&executable), @"needs glibc, and its loader /lib64/ld-linux-x86-64.so.2 is not here");
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        std::fs::write(dir.path().join("lib/ld-musl-x86_64.so.1"), "").unwrap();
        insta::assert_snapshot!(error(&executable), @"needs glibc, and this machine has musl; a musl target is needed, x86_64-unknown-linux-musl");
        executable.machine = "aarch64".into();
        insta::assert_snapshot!(error(&executable), @"made for aarch64, and this machine is x86_64");
        executable.format = Format::Pe;
        insta::assert_snapshot!(error(&executable), @"made for another operating system: its format is Pe");
        let still = wants(None, &[]);
        assert_eq!(Host::here().check(&still), Ok(()));
    }
}
