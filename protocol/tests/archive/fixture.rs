//! A small artifact, built from nothing but what is written here.

use std::collections::BTreeMap;
use std::io::Cursor;

use qk_protocol::archive::{
    self, ArchiveError, Contents, Executable, Identity, Limits, Reader, inspect,
};
use qk_protocol::hash::{Blake3, Sha256};
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, RECIPE, Rustc};

/// What goes into an archive.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) contents: Contents,
    pub(crate) lock: Vec<u8>,
    pub(crate) licenses: BTreeMap<String, Vec<u8>>,
    pub(crate) executables: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    /// An artifact with these executables and one licence.
    pub(crate) fn new(executables: BTreeMap<String, Vec<u8>>) -> Self {
        let lock = b"version = 4\n".to_vec();
        let described = executables
            .iter()
            .map(|(path, bytes)| (path.clone(), describe(bytes)))
            .collect();
        Self {
            contents: Contents {
                key: key(Sha256::of(&lock)),
                executables: described,
            },
            lock,
            licenses: BTreeMap::from([("LICENSE-MIT".to_owned(), b"As is.\n".to_vec())]),
            executables,
        }
    }

    pub(crate) fn write(&self) -> Result<(Vec<u8>, Identity), ArchiveError> {
        let mut out = Vec::new();
        let open = |path: &str| Ok(Cursor::new(&self.executables[path]));
        let identity = archive::write(&mut out, &self.contents, &self.lock, &self.licenses, open)?;
        Ok((out, identity))
    }
}

/// The artifact of the golden vector: an executable for glibc and one that needs nothing.
pub(crate) fn small() -> Parts {
    Parts::new(BTreeMap::from([
        (
            "bin/hello".to_owned(),
            elf(
                &["libc.so.6", "libm.so.6"],
                &["GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.4"],
            ),
        ),
        ("bin/static".to_owned(), elf(&[], &[])),
    ]))
}

fn describe(bytes: &[u8]) -> Executable {
    inspect(Cursor::new(bytes)).unwrap_or_else(|_| Executable {
        format: archive::Format::Elf,
        size: bytes.len() as u64,
        blake3: Blake3::of(bytes),
        machine: "x86_64".to_owned(),
        glibc: None,
        needed: Default::default(),
    })
}

fn key(lock: Sha256) -> ArtifactKey {
    ArtifactKey {
        registry: "registry+https://registry.example/index".to_owned(),
        name: "hello".to_owned(),
        version: "1.0.0".to_owned(),
        target: "x86_64-unknown-linux-gnu".to_owned(),
        flags: Flags {
            source: Sha256([1; 32]),
            lock,
            features: ["color".to_owned()].into(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: Default::default(),
            rustc: Rustc {
                version: "1.95.0".to_owned(),
                commit_hash: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                host: "x86_64-unknown-linux-gnu".to_owned(),
                sysroot: Blake3([2; 32]),
            },
            linker: Linker::Zig {
                wheel: Sha256([3; 32]),
                glibc: Some("2.17".to_owned()),
            },
            recipe: RECIPE,
            output: Output::Bins,
        },
    }
}

/// Reads a whole archive, all entries with their bytes.
pub(crate) fn read(bytes: &[u8]) -> Result<(Parts, Identity), ArchiveError> {
    read_stated(bytes, bytes.len() as u64)
}

/// Reads an archive that is said to have `size` bytes.
pub(crate) fn read_stated(bytes: &[u8], size: u64) -> Result<(Parts, Identity), ArchiveError> {
    let mut reader = Reader::new(bytes, size, Limits::default())?;
    let mut files = BTreeMap::new();
    while let Some(entry) = reader.next_entry()? {
        let mut out = Vec::new();
        reader.copy(&mut out)?;
        files.insert(entry.path, out);
    }
    let (contents, identity) = reader.finish()?;
    let below = |prefix: &str, keep: usize| {
        files
            .iter()
            .filter(|(path, _)| path.starts_with(prefix))
            .map(|(path, bytes)| (path[keep..].to_owned(), bytes.clone()))
            .collect()
    };
    let parts = Parts {
        contents,
        lock: files["Cargo.lock"].clone(),
        licenses: below("licenses/", "licenses/".len()),
        executables: below("bin/", 0),
    };
    Ok((parts, identity))
}

/// A 64-bit ELF for x86-64 that asks for these libraries and these versions of the first one. With
/// no libraries it has no dynamic segment.
pub(crate) fn elf(needed: &[&str], versions: &[&str]) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let mut strings = vec![0];
    let mut intern = |text: &str| {
        let at = strings.len();
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at as u64
    };
    let names: Vec<u64> = needed.iter().map(|name| intern(name)).collect();
    let versions: Vec<u64> = versions.iter().map(|name| intern(name)).collect();
    let records = verneed(names.first().copied().unwrap_or(0), &versions);

    let dynamic_size = 16 * (names.len() + 4);
    let (versions_at, strings_at) = (
        (HEADERS + dynamic_size) as u64,
        (HEADERS + dynamic_size + records.len()) as u64,
    );
    let mut dynamic: Vec<(u64, u64)> = names.iter().map(|name| (1, *name)).collect();
    dynamic.push((5, strings_at)); // DT_STRTAB
    dynamic.push((10, strings.len() as u64)); // DT_STRSZ
    dynamic.push((
        if versions.is_empty() { 21 } else { 0x6fff_fffe },
        versions_at,
    )); // DT_DEBUG, DT_VERNEED
    dynamic.push((0, 0));

    let total = strings_at + strings.len() as u64;
    let dynamic_type = if needed.is_empty() { 0 } else { 2 };
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend(words16(&[3, 62])); // ET_DYN, EM_X86_64
    out.extend(1u32.to_le_bytes());
    out.extend(words64(&[0, 64, 0]));
    out.extend(0u32.to_le_bytes());
    out.extend(words16(&[64, 56, 2, 0, 0, 0]));
    out.extend(segment(1, 0, total));
    out.extend(segment(dynamic_type, HEADERS as u64, dynamic_size as u64));
    for (tag, value) in dynamic {
        out.extend(words64(&[tag, value]));
    }
    out.extend(records);
    out.extend(strings);
    out
}

fn verneed(library: u64, versions: &[u64]) -> Vec<u8> {
    if versions.is_empty() {
        return Vec::new();
    }
    let mut out = words16(&[1, versions.len() as u16]);
    for word in [library as u32, 16, 0] {
        out.extend(word.to_le_bytes());
    }
    for (index, version) in versions.iter().enumerate() {
        let next = if index + 1 == versions.len() { 0 } else { 16 };
        out.extend(0u32.to_le_bytes());
        out.extend(words16(&[0, index as u16 + 2]));
        out.extend((*version as u32).to_le_bytes());
        out.extend(u32::to_le_bytes(next));
    }
    out
}

fn segment(kind: u32, offset: u64, size: u64) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(4u32.to_le_bytes());
    out.extend(words64(&[offset, offset, offset, size, size, 8]));
    out
}

fn words16(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
