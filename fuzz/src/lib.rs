//! One function for each decoder of `qk-protocol`, given any bytes.
//!
//! Three things call them: `protocol/tests/fuzz.rs` on the seeds and on a few thousand mutations of
//! them, so that they run with the ordinary tests; `cargo xtask fuzz` for as long as asked; and
//! libFuzzer, which needs a nightly compiler and is guided by coverage
//! (`cargo +nightly fuzz run archive fuzz/corpus/archive fuzz/seeds/archive`). Each function checks more than that
//! nothing panics: what a decoder accepts must encode to the same bytes.
//!
//! A new decoder is a function here, a line in [`TARGETS`], a file in `fuzz_targets/` with its
//! `[[bin]]` in Cargo.toml, and a directory in `seeds/`; the test names what is missing.

use std::collections::BTreeMap;
use std::io::Cursor;

use ed25519_dalek::SigningKey;
use qk_protocol::archive::{self, Contents, EntryKind, Limits, Reader};
use qk_protocol::bundle::Bundle;
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::draft::Draft;
use qk_protocol::manifest::membership::Membership;
use qk_protocol::manifest::{Manifest, Network, NetworkFile};
use qk_protocol::message::{Reply, Request};
use qk_protocol::project::Project;
use qk_protocol::project::lock::Lock;
use qk_protocol::statement::{STATEMENT_BYTES_MAX, Statement};
use qk_protocol::{canonical, dsse};

/// Takes any bytes, panics if the decoder breaks a promise, and returns whether it took them.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by the names of their files and seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("bundle", bundle),
    ("canonical", canonical),
    ("contents", contents),
    ("draft", draft),
    ("dsse", dsse),
    ("inspect", inspect),
    ("key", key),
    ("lock", lock),
    ("manifest", manifest),
    ("membership", membership),
    ("network", network),
    ("project", project),
    ("reply", reply),
    ("request", request),
    ("statement", statement),
];

/// A whole archive: what is read is written as the same bytes.
pub fn archive(data: &[u8]) -> bool {
    let Ok(mut reader) = Reader::new(data, data.len() as u64, Limits::default()) else {
        return false;
    };
    let (mut lock, mut licenses, mut executables) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut bytes = Vec::new();
        if reader.copy(&mut bytes).is_err() {
            return false;
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
        return false;
    };
    let mut out = Vec::new();
    let open = |path: &str| Ok(Cursor::new(&executables[path]));
    let written = archive::write(&mut out, &contents, &lock, &licenses, open).unwrap();
    assert_eq!(written, identity);
    assert!(out == data);
    true
}

/// A bundle: what is verified is written as the same bytes, and can be decided about.
pub fn bundle(data: &[u8]) -> bool {
    let Ok(bundle) = Bundle::parse(data) else {
        return false;
    };
    assert_eq!(bundle.to_bytes().unwrap(), data);
    let now = bundle.network().timestamp().expires;
    assert!(bundle.decide(Some(bundle.network()), None, now).is_ok());
    true
}

/// A project's tools: what is read can be asked about.
pub fn project(data: &[u8]) -> bool {
    let Ok(project) = Project::parse(data) else {
        return false;
    };
    let lock = Lock::default();
    for (name, tool) in &project.tools {
        assert!(lock.locked(name, tool, "x86_64-unknown-linux-gnu").is_err());
    }
    true
}

/// What pins a project's tools: it is written the same each time, and what proves something can be decided about.
pub fn lock(data: &[u8]) -> bool {
    let Ok(lock) = Lock::parse(data) else {
        return false;
    };
    let bytes = lock.to_bytes();
    assert_eq!(Lock::parse(&bytes).unwrap().to_bytes(), bytes);
    for tool in lock.tools() {
        if let Ok(bundle) = lock.bundle(tool) {
            assert_eq!(*bundle.key(), tool.key);
            let now = bundle.network().timestamp().expires;
            assert!(bundle.decide(Some(bundle.network()), None, now).is_ok());
        }
    }
    true
}

/// A version of a manifest in the making.
pub fn draft(data: &[u8]) -> bool {
    let Ok(draft) = Draft::parse(data) else {
        return false;
    };
    assert_eq!(Draft::parse(&draft.to_bytes()).unwrap(), draft);
    assert_eq!(draft.clone().merge(draft.clone()).unwrap(), draft);
    true
}

/// A request to become a member of a network.
pub fn membership(data: &[u8]) -> bool {
    let Ok(membership) = Membership::read(data) else {
        return false;
    };
    assert!(!membership.keys.is_empty());
    true
}

/// Any canonical JSON.
pub fn canonical(data: &[u8]) -> bool {
    let Ok(value) = canonical::from_bytes::<serde_json::Value>(data, 1 << 20) else {
        return false;
    };
    assert_eq!(canonical::to_bytes(&value).unwrap(), data);
    true
}

/// The `qk.json` of an archive.
pub fn contents(data: &[u8]) -> bool {
    let limits = Limits::default();
    let Ok(contents) = Contents::parse(data, &limits) else {
        return false;
    };
    assert_eq!(contents.to_bytes(&limits).unwrap(), data);
    true
}

/// An executable: what is said of it may stand in a `qk.json`.
pub fn inspect(data: &[u8]) -> bool {
    let Ok(executable) = archive::inspect(Cursor::new(data)) else {
        return false;
    };
    assert_eq!(executable.size, data.len() as u64);
    let bytes = canonical::to_bytes(&executable).unwrap();
    let back: archive::Executable = canonical::from_bytes(&bytes, 1 << 20).unwrap();
    assert_eq!(back, executable);
    executable.check("bin/x").unwrap();
    true
}

/// An artifact key.
pub fn key(data: &[u8]) -> bool {
    let Ok(key) = ArtifactKey::parse(data) else {
        return false;
    };
    assert_eq!(key.to_bytes(), data);
    true
}

/// An envelope, of the type of a statement's or of a manifest's.
pub fn dsse(data: &[u8]) -> bool {
    let mut taken = false;
    for payload_type in [STATEMENT_TYPE, "application/vnd.qk.network+toml"] {
        if let Ok(signed) = dsse::verify(data, payload_type, 1 << 20) {
            assert!(!signed.signers.is_empty());
            let value: serde_json::Value = canonical::from_bytes(data, 1 << 20).unwrap();
            assert_eq!(canonical::to_bytes(&value).unwrap(), data);
            let same = dsse::cosign(data, payload_type, 1 << 20, &[]).unwrap();
            assert_eq!(same, data);
            taken = true;
        }
    }
    taken
}

/// The TOML of a network manifest.
pub fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::parse(data) else {
        return false;
    };
    let written = manifest.to_toml().unwrap();
    assert_eq!(Manifest::parse(written.as_bytes()).unwrap(), manifest);
    true
}

/// A network file: what is verified survives its own bytes.
pub fn network(data: &[u8]) -> bool {
    let Ok(file) = NetworkFile::parse(data) else {
        return false;
    };
    assert_eq!(NetworkFile::parse(&file.to_bytes()).unwrap(), file);
    let Ok(network) = Network::verify(file) else {
        return false;
    };
    assert_eq!(Network::verify(network.file().clone()).unwrap(), network);
    assert_eq!(network.advance(network.file().clone()).unwrap(), network);
    true
}

/// A request of `/qk/index/1`: the statements in it that do not verify are left out.
pub fn request(data: &[u8]) -> bool {
    let Ok(decoded) = Request::decode(data) else {
        return false;
    };
    let again = Request::decode(&decoded.message.encode()).unwrap();
    assert_eq!(again.message, decoded.message);
    assert_eq!(again.invalid, 0);
    true
}

/// A reply of `/qk/index/1`.
pub fn reply(data: &[u8]) -> bool {
    let Ok(decoded) = Reply::decode(data) else {
        return false;
    };
    let again = Reply::decode(&decoded.message.encode()).unwrap();
    assert_eq!(again.message, decoded.message);
    assert_eq!(again.invalid, 0);
    true
}

/// A statement: as an envelope, and as a payload that somebody signed, whatever it says.
pub fn statement(data: &[u8]) -> bool {
    let signer = SigningKey::from_bytes(&[11; 32]);
    let mut taken = false;
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
            taken = true;
        }
    }
    taken
}

const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
