//! Artifacts for tests: the canonical archive of a small program for a real release of a real
//! crate, and archives that no honest build gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use qk_node::registry::{Ask, Registry, RegistryOptions, Resolved, lock_digest};
use qk_protocol::archive::{self, Contents};
use qk_protocol::candidate::Wanted;
use qk_protocol::hash::{Root, Sha256};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::Network;
use qk_protocol::statement::Subject;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

/// The crate that the artifacts claim to be of, and its version.
pub const CRATE: (&str, &str) = ("hexyl", "0.17.0");
/// Both, as they are typed.
pub const SPEC: &str = "hexyl@0.17.0";
/// Tar's unit.
const BLOCK: usize = 512;

/// An archive on disk, and what it is the artifact of.
#[derive(Debug)]
pub struct Artifact {
    /// Its key.
    pub key: ArtifactKey,
    /// Its digests and size.
    pub subject: Subject,
    dir: TempDir,
}

/// What makes artifacts differ.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the program prints after the crate's name and version.
    pub mark: String,
    /// Bytes that do not compress, so that the artifact is large.
    pub padding_bytes: usize,
    /// Features in the key, which is how one release has several keys.
    pub features: BTreeSet<String>,
    /// Let the program ask for a glibc that is not there yet.
    pub future_glibc: bool,
    /// The processor that the program says it is for, as ELF numbers them; this machine's, if none.
    pub machine: Option<u16>,
    /// What is changed about the key that a client of the network would derive.
    pub rekey: Option<fn(&mut ArtifactKey)>,
    /// Name of the executable, where it is not the crate's.
    pub bin: Option<&'static str>,
    /// A `Cargo.lock` in place of the release's own.
    pub lock: Option<Vec<u8>>,
}

/// A program that prints `hexyl 0.17.0` and what it is given, as the artifact of a network's first build. `exit 3` has it end
/// with that exit code, `wait` never.
///
/// # Panics
/// When something that is needed is missing: a C compiler, the registry.
pub fn artifact(network: &Network) -> Artifact {
    artifact_with(network, &Options::default())
}

/// As [`artifact`], with options.
///
/// # Panics
/// As [`artifact`].
pub fn artifact_with(network: &Network, options: &Options) -> Artifact {
    let release = release();
    let (lock, lock_digest) = match &options.lock {
        None => (&release.lock, release.lock_digest),
        Some(lock) => (lock, Sha256::of(lock)),
    };
    let wanted = Wanted {
        features: options.features.clone(),
        ..wanted(&release.resolved)
    };
    let mut key = wanted.candidates(&network.manifest().builds)[0].key(lock_digest);
    if let Some(rekey) = options.rekey {
        rekey(&mut key);
    }
    written(key, lock, options)
}

/// An artifact of any key, whatever an honest build of it gives: a program that prints the crate's name
/// and version and what the options say.
///
/// # Panics
/// When something that is needed is missing: a C compiler.
pub fn forged(key: ArtifactKey, lock: &[u8], mark: &str) -> Artifact {
    let options = Options {
        mark: mark.to_owned(),
        ..Options::default()
    };
    written(key, lock, &options)
}

fn written(key: ArtifactKey, lock: &[u8], options: &Options) -> Artifact {
    let dir = tempfile::tempdir().expect("a directory");
    let program = program(dir.path(), &key, options);
    let executable = archive::inspect(BufReader::new(File::open(&program).expect("a program")));
    let path = format!("bin/{}", options.bin.unwrap_or(&key.name));
    let contents = Contents {
        key: key.clone(),
        executables: [(path, executable.expect("an executable"))].into(),
    };
    let licenses = BTreeMap::from([("LICENSE-MIT".to_owned(), b"of no warranty\n".to_vec())]);
    let out = File::create(dir.path().join("artifact.tar")).expect("a file");
    let open = |_: &str| File::open(&program);
    let identity = archive::write(out, &contents, lock, &licenses, open).expect("an archive");
    Artifact {
        key,
        subject: Subject {
            root: identity.root,
            sha256: identity.sha256,
            size: identity.size,
        },
        dir,
    }
}

impl Artifact {
    /// The archive.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("artifact.tar")
    }

    /// The same key with another archive: what colluding principals may state.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn replaced(mut self, bytes: &[u8]) -> Self {
        fs::write(self.path(), bytes).expect("an archive");
        self.subject = Subject {
            root: Root::of(bytes),
            sha256: Sha256::of(bytes),
            size: bytes.len() as u64,
        };
        self
    }

    /// The entries of the archive.
    ///
    /// # Panics
    /// When it is not a tar.
    pub fn entries(&self) -> Vec<Entry> {
        let bytes = fs::read(self.path()).expect("an archive");
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        while rest[0] != 0 {
            let (header, behind) = rest.split_at(BLOCK);
            let digits = std::str::from_utf8(&header[124..135]).expect("digits");
            let size = usize::from_str_radix(digits, 8).expect("a size");
            let (data, behind) = behind.split_at(size.next_multiple_of(BLOCK));
            entries.push(Entry {
                header: header.try_into().expect("a block"),
                data: data.to_vec(),
            });
            rest = behind;
        }
        entries
    }
}

/// An entry of a tar as it lies there: a header and padded data.
#[derive(Debug, Clone)]
pub struct Entry {
    header: [u8; BLOCK],
    data: Vec<u8>,
}

impl Entry {
    /// Whether it has this path.
    pub fn is(&self, path: &str) -> bool {
        self.header.starts_with(path.as_bytes()) && self.header[path.len()] == 0
    }

    /// With another path.
    #[must_use]
    pub fn named(self, path: &str) -> Self {
        self.with(0, 100, path.as_bytes())
    }

    /// As something else than a regular file, which points at `target`.
    #[must_use]
    pub fn of_type(self, kind: u8, target: &str) -> Self {
        let linked = self.with(156, 1, &[kind]).with(157, 100, target.as_bytes());
        Self {
            data: Vec::new(),
            ..linked
        }
        .stating(0)
    }

    /// With another size in its header, and its data as it is.
    #[must_use]
    pub fn stating(self, size: u64) -> Self {
        self.with(124, 12, format!("{size:011o}\0").as_bytes())
    }

    /// With other data, and the right size in its header.
    #[must_use]
    pub fn holding(self, bytes: &[u8]) -> Self {
        let mut data = bytes.to_vec();
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        Self { data, ..self }.stating(bytes.len() as u64)
    }

    /// With one bit of its data flipped.
    #[must_use]
    pub fn flipped(mut self) -> Self {
        self.data[100] ^= 1;
        self
    }

    fn with(mut self, offset: usize, length: usize, bytes: &[u8]) -> Self {
        self.header[offset..offset + length].fill(0);
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

/// The tar of these entries.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let parts = entries
        .iter()
        .flat_map(|entry| [&entry.header[..], &entry.data[..]]);
    let mut bytes: Vec<u8> = parts.flatten().copied().collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// What a client of this release wants that asks for nothing special.
pub fn wanted(resolved: &Resolved) -> Wanted {
    Wanted {
        release: resolved.release.clone(),
        source: resolved.checksum,
        targets: vec!["x86_64-unknown-linux-gnu".to_owned()],
        features: BTreeSet::new(),
        default_features: true,
        rustflags: BTreeSet::new(),
    }
}

/// A real release, as the registry has it.
#[derive(Debug)]
pub struct Release {
    /// What the registry's index says.
    pub resolved: Resolved,
    lock: Vec<u8>,
    lock_digest: Sha256,
}

/// The release of [`CRATE`]: asked of the registry once, from files after that.
///
/// # Panics
/// When the registry cannot be reached and nothing is there yet.
pub fn release() -> &'static Release {
    static RELEASE: OnceLock<Release> = OnceLock::new();
    RELEASE.get_or_init(|| {
        let (name, version) = CRATE;
        let registry = Registry::open(&RegistryOptions::default()).expect("cargo's configuration");
        let exact = Ask::parse(Some(version)).expect("a version");
        let resolved = registry
            .resolve(name, &exact)
            .expect("the registry answers");
        let dir = beside_this_program().join("qk-tests-crates");
        fs::create_dir_all(&dir).expect("a directory");
        let file = registry
            .download(&resolved.release, &resolved.checksum, &dir)
            .expect("the crate");
        let lock = lock_digest(&file, &resolved.release).expect("a .crate file");
        let (lock_digest, lock) = lock.expect("a Cargo.lock");
        Release {
            resolved,
            lock,
            lock_digest,
        }
    })
}

fn beside_this_program() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    this.parent().expect("a directory").to_owned()
}

/// Compiles the program.
fn program(dir: &Path, key: &ArtifactKey, options: &Options) -> PathBuf {
    let padding = dir.join("padding");
    let mut bytes = vec![0; options.padding_bytes.max(1)];
    StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
    fs::write(&padding, bytes).expect("a file");
    let (name, version) = (&key.name, &key.version);
    let source = format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
         __asm__(\".section .rodata\\n.incbin \\\"{}\\\"\\n.text\\n\");\n\
         int main(int count, char **args) {{\n\
           puts(\"{name} {version}{}\");\n\
           for (int i = 1; i < count; i++) puts(args[i]);\n\
           fflush(stdout);\n\
           if (count > 1 && !strcmp(args[1], \"wait\")) sleep(600);\n\
           return count > 2 && !strcmp(args[1], \"exit\") ? atoi(args[2]) : 0;\n\
         }}\n",
        padding.display(),
        options.mark,
    );
    fs::write(dir.join("program.c"), source).expect("a file");
    let program = dir.join("program");
    let mut compile = Command::new("cc");
    compile.arg(dir.join("program.c")).arg("-o").arg(&program);
    assert!(
        compile.status().expect("a C compiler").success(),
        "{compile:?}"
    );
    if options.future_glibc {
        ask_for_glibc_2_99(&program);
    }
    if let Some(machine) = options.machine {
        let mut bytes = fs::read(&program).expect("a program");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        fs::write(&program, bytes).expect("a program");
    }
    program
}

/// Rewrites the newest version of glibc that a program asks for.
fn ask_for_glibc_2_99(program: &Path) {
    let mut bytes = fs::read(program).expect("a program");
    let asks = archive::inspect(std::io::Cursor::new(&bytes)).expect("an executable");
    let version = format!(
        "GLIBC_{}\0",
        asks.glibc.expect("a program that asks for glibc")
    );
    let other = b"GLIBC_2.99\0";
    assert_eq!(version.len(), other.len(), "{version}");
    let places: Vec<usize> = bytes
        .windows(version.len())
        .enumerate()
        .filter_map(|(at, window)| (window == version.as_bytes()).then_some(at))
        .collect();
    assert!(!places.is_empty(), "{version}");
    for at in places {
        bytes[at..at + other.len()].copy_from_slice(other);
    }
    fs::write(program, bytes).expect("a program");
}
