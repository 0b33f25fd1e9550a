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

use ed25519_dalek::SigningKey;
use qk_protocol::archive::{self, Contents, EntryKind, Limits, Reader};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::{Manifest, Network, NetworkFile};
use qk_protocol::message::{Reply, Request};
use qk_protocol::statement::{STATEMENT_BYTES_MAX, Statement};
use qk_protocol::{canonical, dsse};

/// Takes any bytes and panics if the decoder breaks a promise.
pub type Target = fn(&[u8]);

/// All targets, by the names of their files and seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("canonical", canonical),
    ("contents", contents),
    ("dsse", dsse),
    ("inspect", inspect),
    ("key", key),
    ("manifest", manifest),
    ("network", network),
    ("reply", reply),
    ("request", request),
    ("statement", statement),
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

/// An envelope, of the type of a statement's or of a manifest's.
pub fn dsse(data: &[u8]) {
    for payload_type in [STATEMENT_TYPE, "application/vnd.qk.network+toml"] {
        if let Ok(signed) = dsse::verify(data, payload_type, 1 << 20) {
            assert!(!signed.signers.is_empty());
            let value: serde_json::Value = canonical::from_bytes(data, 1 << 20).unwrap();
            assert_eq!(canonical::to_bytes(&value).unwrap(), data);
            let same = dsse::cosign(data, payload_type, 1 << 20, &[]).unwrap();
            assert_eq!(same, data);
        }
    }
}

/// The TOML of a network manifest.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        let written = manifest.to_toml().unwrap();
        assert_eq!(Manifest::parse(written.as_bytes()).unwrap(), manifest);
    }
}

/// A network file: what is verified survives its own bytes.
pub fn network(data: &[u8]) {
    let Ok(file) = NetworkFile::parse(data) else {
        return;
    };
    assert_eq!(NetworkFile::parse(&file.to_bytes()).unwrap(), file);
    if let Ok(network) = Network::verify(file) {
        assert_eq!(Network::verify(network.file().clone()).unwrap(), network);
        assert_eq!(network.advance(network.file().clone()).unwrap(), network);
    }
}

/// An answer of the index: what is read survives its own bytes. Not the same ones: CBOR has several
/// ways to say one thing, and nothing hashes or signs a message.
pub fn reply(data: &[u8]) {
    if let Ok(decoded) = Reply::decode(data) {
        let again = Reply::decode(&decoded.message.encode()).unwrap();
        assert_eq!((again.message, again.invalid), (decoded.message, 0));
    }
}

/// A request to the index, as [`reply`].
pub fn request(data: &[u8]) {
    if let Ok(decoded) = Request::decode(data) {
        let again = Request::decode(&decoded.message.encode()).unwrap();
        assert_eq!((again.message, again.invalid), (decoded.message, 0));
    }
}

/// A statement: as an envelope, and as a payload that somebody signed, whatever it says.
pub fn statement(data: &[u8]) {
    let signer = SigningKey::from_bytes(&[11; 32]);
    let sealed = dsse::sign(STATEMENT_TYPE, data, &[&signer]);
    for envelope in [data, &sealed] {
        if let Ok(statement) = Statement::read(envelope) {
            assert_eq!(statement.envelope(), envelope);
            let key = statement.key().clone();
            let body = statement.body().clone();
            if statement.observer() == dsse::public_key(&signer) {
                // There is one way to say it.
                let again = Statement::sign(statement.network(), key, body, &signer).unwrap();
                assert_eq!(again, statement);
            }
            assert!(envelope.len() <= STATEMENT_BYTES_MAX);
        }
    }
}

const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
