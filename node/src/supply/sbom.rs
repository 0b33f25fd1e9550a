//! A bill of materials: CycloneDX 1.6 as JSON, of an artifact's own lock file.
//!
//! There is no time and no random number in it: the serial number follows from the root. Two machines write
//! the same bytes where they know the same licences, which is all that depends on what is at hand.

use std::collections::BTreeSet;
use std::fmt::Write;

use qk_protocol::hash::{Root, Sha256};
use rustsec::cargo_lock::Package;
use serde_json::{Value, json};

use super::{Inventory, Licence, Licences};
use crate::registry::crates_io_id;

/// The bill of materials of an artifact.
pub fn sbom(inventory: &Inventory, licences: &Licences) -> Value {
    let key = &inventory.key;
    let itself = reference(&key.name, &key.version, &of_source(&key.registry));
    let dependencies = inventory
        .packages
        .iter()
        .filter(|one| !inventory.is_itself(one));
    let components: Vec<Value> = dependencies
        .clone()
        .map(|package| library(package, &licences.of(package)))
        .collect();
    let own = inventory
        .packages
        .iter()
        .find(|one| inventory.is_itself(one));
    let depends = |reference: &str, package: &Package| json!({ "ref": reference, "dependsOn": depended(inventory, package, &itself) });
    let mut graph = vec![match own {
        Some(package) => depends(&itself, package),
        None => json!({ "ref": itself, "dependsOn": [] }),
    }];
    graph.extend(dependencies.map(|package| depends(&reference_of(package), package)));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial_number(inventory.root),
        "version": 1,
        "metadata": {
            "lifecycles": [{ "phase": "build" }],
            "tools": { "components": [{ "type": "application", "name": "qk" }] },
            "component": application(inventory, &itself, licences),
            "properties": [property("qk:packages", "all of the lock file: those of other targets and features are among them")],
        },
        "components": components,
        "dependencies": graph,
    })
}

fn application(inventory: &Inventory, reference: &str, licences: &Licences) -> Value {
    let key = &inventory.key;
    let source = &key.flags.source;
    let licence = licences.of_release(&key.name, &key.version, source);
    let mut component = json!({
        "type": "application",
        "bom-ref": reference,
        "name": key.name,
        "version": key.version,
        "purl": reference,
        // BLAKE3 of the archive.
        "hashes": [{ "alg": "BLAKE3", "content": inventory.root.to_string() }],
        "externalReferences": [{
            "type": "source-distribution",
            "url": reference,
            "hashes": [sha256(source)],
        }],
        "properties": [
            property("qk:key", &key.id().to_string()),
            property("qk:root", &inventory.root.to_string()),
            property("qk:rustc", &key.flags.rustc.version),
            property("qk:target", &key.target),
        ],
    });
    let texts: Vec<Value> = inventory
        .licence_files
        .iter()
        .map(|(name, text)| json!({ "license": { "name": name, "text": { "contentType": "text/plain", "content": text } } }))
        .collect();
    if !texts.is_empty() {
        component["evidence"] = json!({ "licenses": texts });
    }
    with_licence(component, &licence)
}

fn library(package: &Package, licence: &Licence) -> Value {
    let reference = reference_of(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": reference,
        "name": package.name.as_str(),
        "version": package.version.to_string(),
        "purl": reference,
    });
    let checksum = package.checksum.as_ref().and_then(|one| one.as_sha256());
    if let Some(checksum) = checksum {
        component["hashes"] = json!([sha256(&Sha256(checksum))]);
    }
    with_licence(component, licence)
}

fn with_licence(mut component: Value, licence: &Licence) -> Value {
    match licence {
        Licence::Expression(words) => {
            component["licenses"] = json!([{ "expression": words }]);
        }
        Licence::Named(words) => {
            component["licenses"] = json!([{ "license": { "name": words } }]);
        }
        // Not a licence of that name: nobody looked.
        Licence::Unknown => {
            let unknown = property("qk:license", "unknown");
            match component["properties"].as_array_mut() {
                Some(properties) => properties.push(unknown),
                None => component["properties"] = json!([unknown]),
            }
        }
    }
    component
}

/// What a package depends on, as far as the lock file says which that is.
fn depended(inventory: &Inventory, package: &Package, itself: &str) -> Vec<String> {
    let mut all = BTreeSet::new();
    for dependency in &package.dependencies {
        let same = |one: &&Package| {
            dependency.matches(one)
                && (dependency.source.is_none()
                    || one.source.is_none()
                    || dependency.source == one.source)
        };
        if let Some(found) = inventory.packages.iter().find(same) {
            all.insert(match inventory.is_itself(found) {
                true => itself.to_owned(),
                false => reference_of(found),
            });
        }
    }
    all.into_iter().collect()
}

fn reference_of(package: &Package) -> String {
    let source = match &package.source {
        Some(source) if !source.is_default_registry() => of_source(&source.to_string()),
        Some(_) | None => String::new(),
    };
    reference(package.name.as_str(), &package.version.to_string(), &source)
}

/// A package URL, which is unique in a lock file.
fn reference(name: &str, version: &str, qualifiers: &str) -> String {
    format!(
        "pkg:cargo/{}@{}{qualifiers}",
        escaped(name),
        escaped(version)
    )
}

/// Where a package is from, unless that is crates.io.
fn of_source(source: &str) -> String {
    if source == crates_io_id() {
        return String::new();
    }
    match source.strip_prefix("git+") {
        Some(_) => format!("?vcs_url={}", escaped(source)),
        None => format!("?repository_url={}", escaped(source)),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("a String grows"),
        }
    }
    escaped
}

/// A UUID of the kind that is left to whoever makes it (version 8 of RFC 9562).
fn serial_number(root: Root) -> String {
    let hash = blake3::derive_key("qk sbom serial number v1", &root.0);
    let mut id: [u8; 16] = std::array::from_fn(|at| hash[at]);
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    let hex = hex::encode(id);
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn sha256(digest: &Sha256) -> Value {
    json!({ "alg": "SHA-256", "content": digest.to_string() })
}

fn property(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}
