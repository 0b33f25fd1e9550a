//! A store with many statements, all of them signed and of the network that was joined.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use qk_node::home::{Home, Joined};
use qk_node::store::{Options, Record, Store};
use qk_protocol::hash::{Blake3, Root, Sha256};
use qk_protocol::key::{ArtifactKey, Flags, Linker, Output, Rustc};
use qk_protocol::statement::{Body, Environment, Observation, Role, Statement, Subject};
use qk_protocol::time::UnixTime;

use crate::Fill;

/// What one append takes.
const BATCH: usize = 1000;
/// Some day in the past.
const BUILT: UnixTime = UnixTime(1_760_000_000);

pub fn run(args: Fill) -> Result<()> {
    let home = Home::at(&args.home);
    let joined = home.networks()?;
    let joined = joined.first().context("no network is joined")?;
    // What a node holds is mostly what others state; what it states itself it tells the others again
    // whenever it starts.
    let signer = Home::at(&args.signer).key("observer")?;
    let store = Store::open(home.store(), Options::default())?;
    let mut batch = Vec::new();
    for number in 0..args.statements {
        let key = key(joined, number);
        let point = key.release().location(&joined.key()).point();
        let body = Body::Observation(observation(number));
        let statement = Statement::sign(joined.network.id(), key, body, &signer)?;
        batch.push(Record {
            id: statement.id(),
            network: statement.network(),
            point,
            key: statement.key_id(),
            observer: statement.observer(),
            root: statement
                .observation()
                .map(|observed| observed.subject.root),
            stored: BUILT,
            bytes: statement.envelope().to_vec(),
        });
        if batch.len() == BATCH || number + 1 == args.statements {
            store.append(std::mem::take(&mut batch))?;
        }
    }
    let held = store.counts()?.statements;
    println!("{}", serde_json::json!({ "statements": held }));
    Ok(())
}

fn key(joined: &Joined, number: usize) -> ArtifactKey {
    let manifest = joined.network.manifest();
    let registry = manifest.registries.first().cloned();
    ArtifactKey {
        registry: registry.unwrap_or_default(),
        name: format!("crate-{number}"),
        version: "1.2.3".to_owned(),
        target: "x86_64-unknown-linux-gnu".to_owned(),
        flags: Flags {
            source: Sha256::of(&number.to_le_bytes()),
            lock: Sha256::of(b"lock"),
            features: [].into(),
            default_features: true,
            profile: "release".to_owned(),
            rustflags: [].into(),
            rustc: Rustc {
                version: "1.95.0".to_owned(),
                commit_hash: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                host: "x86_64-unknown-linux-gnu".to_owned(),
                sysroot: Blake3::of(b"sysroot"),
            },
            linker: Linker::Zig {
                wheel: Sha256::of(b"wheel"),
                glibc: Some("2.17".to_owned()),
            },
            recipe: 1,
            output: Output::Bins,
        },
    }
}

fn observation(number: usize) -> Observation {
    let artifact = number.to_le_bytes();
    Observation {
        subject: Subject {
            root: Root::of(&artifact),
            sha256: Sha256::of(&artifact),
            size: 4 << 20,
        },
        role: Role::Publisher,
        environment: Environment {
            os: "debian 12".to_owned(),
            kernel: "6.1.0".to_owned(),
            tools: BTreeMap::from([("bwrap".to_owned(), "0.8.0".to_owned())]),
            sandbox: "bubblewrap".to_owned(),
            cpus: 2,
        },
        log: Blake3::of(b"log"),
        started: BUILT,
        finished: UnixTime(BUILT.0 + 60),
        work: None,
        work_checks: [].into(),
    }
}
