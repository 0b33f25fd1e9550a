//! `binstall/crates-v1.json`: what cargo-binstall notes of what it installed.
//!
//! The format is cargo-binstall's: JSON objects one after another, each with `name`, `version_req`,
//! `current_version`, `source`, `target` and `bins`. It goes by `.crates.toml` where the two
//! differ; others that read this file do not, so it is brought in line, where it is there.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::InstallMeta;

/// Where it lies below the install root.
pub(super) const RECORDS: &str = "binstall/crates-v1.json";

/// The records, with everything in them that is not ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Records(Vec<Map<String, Value>>);

impl Records {
    /// Reads the file; the error is in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let records = serde_json::Deserializer::from_str(text).into_iter();
        let records: Result<_, _> = records.collect();
        records.map(Self).map_err(|error| error.to_string())
    }

    /// The text of the file.
    pub(super) fn text(&self) -> String {
        let records = self.0.iter();
        records
            .map(|record| Value::Object(record.clone()).to_string())
            .collect()
    }

    /// Notes what is installed of a package that cargo's files name by `key`.
    pub(super) fn record(&mut self, key: &str, bins: &BTreeSet<String>, meta: &InstallMeta) {
        let Some((name, version, source)) = super::parts_of(key) else {
            return;
        };
        let (kind, url) = source_of(source);
        let fields = json!({
            "name": name,
            "version_req": meta.version_req.as_deref().unwrap_or("*"),
            "current_version": version,
            "source": { "source_type": kind, "url": url },
            "target": meta.target,
            "bins": bins,
        });
        let is_same = |record: &Map<String, Value>| record.get("name").is_some_and(|it| it == name);
        let mut record = match self.0.iter().position(is_same) {
            Some(at) => self.0.remove(at),
            None => Map::new(),
        };
        self.0.retain(|record| !is_same(record));
        if let Value::Object(fields) = fields {
            record.extend(fields);
        }
        let name_of = |record: &Map<String, Value>| record.get("name")?.as_str().map(str::to_owned);
        let at = self
            .0
            .partition_point(|other| name_of(other).as_deref() < Some(name));
        self.0.insert(at, record);
    }

    /// Notes that a package has only these executables left; none: that it is gone.
    pub(super) fn leave(&mut self, key: &str, left: &BTreeSet<String>) {
        let Some((name, version, _)) = super::parts_of(key) else {
            return;
        };
        let is_it = |record: &Map<String, Value>| {
            record.get("name").is_some_and(|it| it == name)
                && record
                    .get("current_version")
                    .is_some_and(|it| it == version)
        };
        if left.is_empty() {
            self.0.retain(|record| !is_it(record));
        }
        for record in self.0.iter_mut().filter(|record| is_it(record)) {
            record.insert("bins".to_owned(), json!(left));
        }
    }
}

/// Cargo's source id as cargo-binstall has it.
fn source_of(source: &str) -> (&'static str, &str) {
    let kinds = [
        ("registry+", "Registry"),
        ("sparse+", "Sparse"),
        ("git+", "Git"),
        ("path+", "Path"),
    ];
    kinds
        .iter()
        .find_map(|(prefix, kind)| Some((*kind, source.strip_prefix(prefix)?)))
        .unwrap_or(("Registry", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form that binstalk-types 0.10 gives to its `CrateInfo`, with a member of a later version.
    const WRITTEN: &str = concat!(
        r#"{"name":"bat","version_req":"*","current_version":"0.25.0","source":{"source_type":"Registry","#,
        r#""url":"https://github.com/rust-lang/crates.io-index"},"target":"x86_64-unknown-linux-gnu","bins":["bat"],"later":1}"#,
        r#"{"name":"tool","version_req":"^1","current_version":"1.0.0","source":{"source_type":"Registry","#,
        r#""url":"https://github.com/rust-lang/crates.io-index"},"target":"x86_64-unknown-linux-musl","bins":["one","two"]}"#,
    );
    const KEY: &str = "bat 0.26.1 (registry+https://github.com/rust-lang/crates.io-index)";

    fn bins(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_not_touched_stays_as_it_is() {
        let records = Records::parse(WRITTEN).unwrap();
        let lines: Vec<Value> = serde_json::Deserializer::from_str(&records.text())
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap();
        let before: Vec<Value> = serde_json::Deserializer::from_str(WRITTEN)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(lines, before);
        assert_eq!(Records::parse("").unwrap().text(), "");
        assert!(Records::parse("{\"name\":").is_err());
        assert!(Records::parse("[]").is_err());
    }

    #[test]
    fn a_newer_version_takes_its_place_and_keeps_what_others_noted() {
        let mut records = Records::parse(WRITTEN).unwrap();
        let meta = InstallMeta {
            target: "x86_64-unknown-linux-gnu".into(),
            ..InstallMeta::default()
        };
        records.record(KEY, &bins(&["bat"]), &meta);
        records.record(
            "ant 1.0.0 (sparse+https://registry.example/)",
            &bins(&["ant"]),
            &meta,
        );
        let text = records.text();
        assert_eq!(text.matches("\"bat\"").count(), 2, "{text}");
        assert!(
            text.contains("\"later\":1") && text.contains("0.26.1"),
            "{text}"
        );
        let names: Vec<_> = records.0.iter().map(|record| &record["name"]).collect();
        assert_eq!(names, ["ant", "bat", "tool"]);
        assert_eq!(records.0[0]["source"]["source_type"], "Sparse");
    }

    #[test]
    fn what_is_uninstalled_is_gone_and_another_version_is_not() {
        let mut records = Records::parse(WRITTEN).unwrap();
        records.leave(KEY, &bins(&[]));
        assert_eq!(records.0.len(), 2);
        let key = "tool 1.0.0 (registry+https://github.com/rust-lang/crates.io-index)";
        records.leave(key, &bins(&["two"]));
        assert_eq!(records.0[1]["bins"], json!(["two"]));
        records.leave(key, &bins(&[]));
        assert_eq!(records.0.len(), 1);
    }
}
