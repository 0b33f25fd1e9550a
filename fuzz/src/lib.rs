//! One function for each decoder of `qk-protocol`, given any bytes.
//!
//! libFuzzer calls them (`cargo +nightly fuzz run archive fuzz/corpus/archive fuzz/seeds/archive`),
//! and `protocol/tests/fuzz.rs` calls the same functions on the seeds and on a few thousand
//! mutations of them, so that they run with the ordinary tests. Each function checks more than that
//! nothing panics: what a decoder accepts must encode to the same bytes.
//!
//! A new decoder is a function here, a line in [`TARGETS`], a file in `fuzz_targets/` with its
//! `[[bin]]` in Cargo.toml, and a directory in `seeds/`; the test names what is missing.

use std::collections::BTreeMap;
use std::io::Cursor;

use qk_protocol::archive::{self, Contents, EntryKind, Limits, Reader};
use qk_protocol::canonical;
use qk_protocol::key::ArtifactKey;

/// Takes any bytes and panics if the decoder breaks a promise.
pub type Target = fn(&[u8]);

/// All targets, by the names of their files and seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("canonical", canonical),
    ("contents", contents),
    ("inspect", inspect),
    ("key", key),
];

/// A whole archive: what is read is written as the same bytes.
pub fn archive(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data, data.len() as u64, Limits::default()) else {
        return;
    };
    let (mut lock, mut licenses, mut executables) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut bytes = Vec::new();
        if reader.copy(&mut bytes).is_err() {
            return;
        }
        assert_eq!(bytes.len() as u64, entry.size);
        match entry.kind {
            EntryKind::Lock => lock = bytes,
            EntryKind::Executable => {
                executables.insert(entry.path, bytes);
            }
            EntryKind::License => {
                let name = entry.path.strip_prefix(archive::LICENSES_PREFIX);
                licenses.insert(name.unwrap().to_owned(), bytes);
            }
        }
    }
    let Ok((contents, identity)) = reader.finish() else {
        return;
    };
    let mut out = Vec::new();
    let open = |path: &str| Ok(Cursor::new(&executables[path]));
    let written = archive::write(&mut out, &contents, &lock, &licenses, open).unwrap();
    assert_eq!(written, identity);
    assert!(out == data);
}

/// Any canonical JSON.
pub fn canonical(data: &[u8]) {
    if let Ok(value) = canonical::from_bytes::<serde_json::Value>(data, 1 << 20) {
        assert_eq!(canonical::to_bytes(&value).unwrap(), data);
    }
}

/// The `qk.json` of an archive.
pub fn contents(data: &[u8]) {
    let limits = Limits::default();
    if let Ok(contents) = Contents::parse(data, &limits) {
        assert_eq!(contents.to_bytes(&limits).unwrap(), data);
    }
}

/// An executable: what is said of it may stand in a `qk.json`.
pub fn inspect(data: &[u8]) {
    if let Ok(executable) = archive::inspect(Cursor::new(data)) {
        assert_eq!(executable.size, data.len() as u64);
        let bytes = canonical::to_bytes(&executable).unwrap();
        let back: archive::Executable = canonical::from_bytes(&bytes, 1 << 20).unwrap();
        assert_eq!(back, executable);
        executable.check("bin/x").unwrap();
    }
}

/// An artifact key.
pub fn key(data: &[u8]) {
    if let Ok(key) = ArtifactKey::parse(data) {
        assert_eq!(key.to_bytes(), data);
    }
}
