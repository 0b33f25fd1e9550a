//! What artifacts were made of: bills of materials and audits.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_protocol::hash::Sha256;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, CLIENT, Lab, Ran, run};
use qk_tests::python;
use serde_json::{Value, json};

/// Who reads bills of materials, and how it is asked.
const VALIDATOR: &str = "cyclonedx-python-lib[json-validation]==11.6.0";
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(error) if error else 0)
";

/// A lab, alice's artifact in her store, and a cargo home of its own.
struct Stored {
    lab: Lab,
    artifact: Artifact,
    cargo: PathBuf,
}

/// A `.crate` file whose manifest states this.
fn crate_file(name: &str, states: &str) -> Vec<u8> {
    let manifest = format!("[package]\nname = {name:?}\nversion = \"1.0.0\"\n{states}\n");
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    let path = format!("{name}-1.0.0/Cargo.toml");
    tar.append_data(&mut header, path, manifest.as_bytes())
        .unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

impl Stored {
    fn new() -> Self {
        let lab = Lab::new();
        let cargo = lab.dir().join("cargo");
        let cache = cargo.join("registry/cache/an-index");
        fs::create_dir_all(&cache).unwrap();
        let mut lock = format!(
            "version = 4\n[[package]]\nname = \"hexyl\"\nversion = \"0.17.0\"\ndependencies = [{}]\n",
            ["dual", "filed", "gone", "odd", "swapped"]
                .map(|name| format!("{name:?}"))
                .join(", ")
        );
        for (name, states, kept) in [
            ("dual", "license = \"MIT/Apache-2.0\"", true),
            ("filed", "license-file = \"COPYING\"", true),
            ("gone", "license = \"MIT\"", false),
            ("odd", "license = \"whatever\"", true),
            ("swapped", "license = \"MIT\"", true),
        ] {
            let file = crate_file(name, states);
            lock += &format!(
                "[[package]]\nname = {name:?}\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{}\"\n",
                Sha256::of(&file)
            );
            // What lies in cargo's cache is not what the lock names.
            let file = match name {
                "swapped" => crate_file(name, "license = \"0BSD\""),
                _ => file,
            };
            if kept {
                fs::write(cache.join(format!("{name}-1.0.0.crate")), file).unwrap();
            }
        }
        let options = Options {
            lock: Some(lock.into_bytes()),
            ..Options::default()
        };
        let artifact = artifact_with(&lab.joined(ALICE).network, &options);
        lab.publish(ALICE, &artifact);
        Self {
            lab,
            artifact,
            cargo,
        }
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.lab.command(name, args);
        command.env("CARGO_HOME", &self.cargo);
        command
    }

    fn qk(&self, args: &[&str]) -> Ran {
        run(self.command(ALICE, args).arg("--json"))
    }

    fn text(&self, args: &[&str]) -> Ran {
        run(&mut self.command(ALICE, args))
    }

    /// Puts an advisory about a package into a database.
    fn advise(&self, database: &Path, number: u32, package: &str, more: &str) -> PathBuf {
        let dir = database.join("crates").join(package);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("RUSTSEC-2020-{number:04}.md"));
        let (about, versions) = more.split_once("---").unwrap_or((more, "patched = []"));
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2020-{number:04}\"\npackage = {package:?}\ndate = \"2020-01-02\"\n{about}\n[versions]\n{versions}\n```\n\n# A hole in {package}\n\nMore about it.\n"
        );
        fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        path
    }
}

fn licence(bill: &Value, name: &str) -> Value {
    let components = bill["components"].as_array().unwrap();
    let component = components.iter().find(|one| one["name"] == name).unwrap();
    match component.get("licenses") {
        Some(licences) => licences[0].clone(),
        None => component["properties"][0].clone(),
    }
}

#[test]
fn a_bill_of_materials_says_what_is_known_and_nothing_else() {
    let stored = Stored::new();
    let bill = stored.qk(&["sbom", SPEC]);
    let bill_text = bill.stdout.clone();
    let bill = bill.done();
    let root = stored.artifact.subject.root.to_string();
    let unknown = json!({ "name": "qk:license", "value": "unknown" });
    for (name, stated) in [
        ("dual", json!({ "expression": "MIT OR Apache-2.0" })),
        ("filed", json!({ "license": { "name": "see COPYING" } })),
        ("odd", json!({ "license": { "name": "whatever" } })),
        ("gone", unknown.clone()),
        ("swapped", unknown),
    ] {
        assert_eq!(licence(&bill, name), stated, "{name}");
    }
    let itself = &bill["metadata"]["component"];
    assert_eq!(itself["purl"], "pkg:cargo/hexyl@0.17.0");
    assert_eq!(itself["hashes"][0]["content"], root.as_str());
    assert_eq!(bill["components"].as_array().unwrap().len(), 5);
    let depends = bill["dependencies"][0]["dependsOn"].as_array().unwrap();
    assert_eq!(
        (depends.len(), &depends[0]),
        (5, &json!("pkg:cargo/dual@1.0.0"))
    );
    // The same bytes each time, however the artifact is named.
    let file = stored.lab.dir().join("bill.json");
    let named = file.to_str().unwrap();
    stored.qk(&["sbom", &root[..12], "--output", named]).done();
    assert_eq!(fs::read_to_string(&file).unwrap(), bill_text);
    let archive = stored.artifact.path();
    assert_eq!(
        stored.text(&["sbom", archive.to_str().unwrap()]).stdout,
        bill_text
    );

    let import = "import cyclonedx.validation.json, jsonschema";
    let Some(python) = python::with("cyclonedx", &[VALIDATOR], import) else {
        eprintln!(
            "SKIPPED: {VALIDATOR} cannot be installed with pip, so no other program read a bill"
        );
        return;
    };
    let validate = |file: &Path| {
        let mut command = Command::new(&python);
        run(command.args(["-c", VALIDATE]).arg(file))
    };
    let valid = validate(&file);
    assert_eq!(valid.code(), 0, "{}{}", valid.stdout, valid.stderr);
    // It does see what is wrong.
    fs::write(&file, bill_text.replacen("BLAKE3", "BLAKE4", 1)).unwrap();
    assert_ne!(validate(&file).code(), 0);
}

#[test]
fn what_is_not_there_has_no_bill() {
    let stored = Stored::new();
    stored
        .qk(&["sbom", "ripgrep"])
        .failed(10, &["no artifact of ripgrep", "qk fetch"]);
    stored
        .qk(&["sbom", "0123456789"])
        .failed(10, &["0123456789"]);
    stored
        .qk(&["sbom", "no crate!"])
        .failed(2, &["neither a file, nor a root, nor a crate"]);
    let bad = stored.lab.dir().join("bad.tar");
    fs::write(&bad, "no archive").unwrap();
    stored
        .qk(&["sbom", bad.to_str().unwrap()])
        .failed(15, &["bad.tar"]);
    stored
        .qk(&["sbom", SPEC, "--output", "/nonexistent/bill.json"])
        .failed(1, &["/nonexistent/bill.json"]);
    let other = run(stored.command(CLIENT, &["sbom", SPEC]).arg("--json"));
    other.failed(10, &["is in the store"]);
}

#[test]
fn an_audit_names_what_is_known_about_the_packages() {
    let stored = Stored::new();
    let database = stored.cargo.join("advisory-db");
    stored
        .qk(&["audit"])
        .failed(10, &["no advisory database", "git clone", "--database"]);
    stored.advise(&database, 1, "elsewhere", "");
    let none = stored.qk(&["audit", SPEC]).done();
    assert_eq!(
        (&none["vulnerabilities"], &none["advisories"]),
        (&json!(0), &json!(1))
    );
    // Patched, unaffected, withdrawn, of another system: nothing to worry about.
    stored.advise(&database, 2, "dual", "---patched = [\">= 1.0.0\"]");
    stored.advise(
        &database,
        3,
        "dual",
        "---patched = []\nunaffected = [\"< 2.0.0\"]",
    );
    stored.advise(&database, 4, "dual", "withdrawn = \"2020-02-02\"");
    stored.advise(
        &database,
        5,
        "dual",
        "---patched = []\n[affected]\nos = [\"windows\"]",
    );
    stored.advise(&database, 6, "odd", "informational = \"unmaintained\"");
    let warned = stored.qk(&["audit"]).done();
    assert_eq!(
        (&warned["vulnerabilities"], &warned["warnings"]),
        (&json!(0), &json!(1))
    );
    stored
        .qk(&["audit", "--deny-warnings"])
        .failed(1, &["0 vulnerabilities and 1 warning"]);
    let hole = "aliases = [\"CVE-2020-1\"]\ncvss = \"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H\"---patched = [\">= 1.0.1\"]";
    stored.advise(&database, 7, "dual", hole);
    let found = stored.qk(&["audit", SPEC]);
    found.failed(1, &["1 vulnerability and 1 warning"]);
    let finding = &found.json()["artifacts"][0]["findings"][0];
    assert_eq!(
        finding,
        &json!({
            "kind": "vulnerability", "id": "RUSTSEC-2020-0007", "package": "dual", "version": "1.0.0",
            "title": "A hole in dual", "severity": "critical", "aliases": ["CVE-2020-1"], "patched": [">=1.0.1"],
        })
    );
    let text = stored.text(&["audit", "--database", database.to_str().unwrap()]);
    assert_eq!(text.code(), 1);
    let expected = format!(
        "hexyl 0.17.0 for x86_64-unknown-linux-gnu, 6 packages:\n  vulnerability (critical)  dual 1.0.0  RUSTSEC-2020-0007: A hole in dual\n      mended in >=1.0.1\n  unmaintained  odd 1.0.0  RUSTSEC-2020-0006: A hole in odd\n1 vulnerability and 1 warning in 1 artifact, by 7 advisories in {}\n",
        database.display()
    );
    assert_eq!(text.stdout, expected);
    stored
        .qk(&["audit", "ripgrep"])
        .failed(10, &["no artifact of ripgrep"]);
}

#[test]
fn a_database_that_is_broken_audits_nothing() {
    let stored = Stored::new();
    let database = stored.lab.dir().join("database");
    let named = database.to_str().unwrap();
    let refused = |words: &[&str]| {
        let ran = stored.qk(&["audit", "--database", named]);
        ran.failed(15, words);
        assert!(!ran.stdout.contains("\u{1b}"), "{}", ran.stdout);
    };
    let good = stored.advise(&database, 1, "dual", "");
    let path = stored.advise(&database, 2, "dual", "");
    for text in [
        "",
        "no front matter",
        "```toml\n[advisory]\nid = \"\u{1b}[2J\"\n```\n\n# \u{1b}[2J\n",
        "```toml\n[advisory]\n```",
    ] {
        fs::write(&path, text).unwrap();
        refused(&["RUSTSEC-2020-0002.md is no advisory", "nothing was audited"]);
    }
    fs::write(&path, vec![0xff; 100]).unwrap();
    refused(&["RUSTSEC-2020-0002.md"]);
    let long = fs::read_to_string(&good).unwrap() + &"a".repeat(2 << 20);
    fs::write(&path, long).unwrap();
    refused(&["RUSTSEC-2020-0002.md", "more than"]);
    // What leads out of it is not read.
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    refused(&["RUSTSEC-2020-0002.md", "not a file"]);
    fs::remove_file(&path).unwrap();
    stored
        .qk(&["audit", "--database", named])
        .failed(1, &["1 vulnerability"]);
}
