//! All that `--json` prints: one type for each document, and the commands that print it.

use serde::Serialize;

use crate::commands::{
    build, demo, diff, doctor, fetch, installed, log, network, node, project, proofs, repro, shell,
    store, supply, verify,
};
use crate::failure::Failure;

/// The version of all documents. Within it members and kinds of documents are only added; another one
/// is for what is renamed, removed or means something else.
const SCHEMA: u32 = 1;

/// What `--json` prints as one object on one line.
pub(crate) trait Document: Serialize {}

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    document: &'a T,
}

/// A document as it is printed.
pub(crate) fn document(document: &impl Document) -> serde_json::Result<String> {
    serde_json::to_string(&Versioned {
        schema: SCHEMA,
        document,
    })
}

/// A failure is what any command may print.
impl Document for Failure {}

macro_rules! documents {
    ($($document:ty: $($command:literal)+;)+) => {
        $(impl Document for $document {})+

        /// Commands, by their names with `-` between them, and what each prints.
        #[cfg(test)]
        fn all(schemas: &mut schemars::SchemaGenerator) -> Vec<(&'static str, schemars::Schema)> {
            let mut all = Vec::new();
            $(
                let commands = [$($command),+];
                let schema = match commands.len() {
                    1 => <$document as schemars::JsonSchema>::json_schema(schemas),
                    _ => schemas.subschema_for::<$document>(),
                };
                all.extend(commands.map(|command| (command, schema.clone())));
            )+
            all
        }
    };
}

documents! {
    build::Report: "build";
    demo::Report: "demo";
    diff::Report: "diff";
    doctor::Report: "doctor" "setup";
    fetch::report::Summary: "fetch" "upgrade";
    installed::Installed: "list";
    installed::Removed: "uninstall";
    log::Report: "log";
    network::AllShown: "network-show";
    network::Key: "network-key";
    network::Order: "network-order";
    network::Shown: "join" "network-add" "network-block" "network-change" "network-edit" "network-new"
        "network-publish" "network-remove" "network-renew" "network-root" "network-set"
        "network-state" "network-unblock";
    network::news::Accepted: "network-accept";
    network::next::Drafted: "network-add" "network-block" "network-change" "network-edit"
        "network-remove" "network-root" "network-set" "network-sign" "network-state"
        "network-unblock";
    network::request::Asked: "network-request";
    node::Listening: "node";
    node::gateway::Key: "node-gateway-key";
    node::manners::Paused<'_>: "node-pause" "node-resume";
    node::service::Told: "node-install";
    qk_node::service::Removed: "node-uninstall";
    qk_node::access::Status: "status";
    node::status::NotRunning: "status";
    node::status::Watched<'_>: "status";
    node::status::Peers: "peers";
    project::Current<'_>: "fetch";
    project::Summary: "fetch";
    project::Updated: "update";
    proofs::Proofs: "proofs";
    proofs::bundle::Exported: "proofs";
    proofs::bundle::Report: "proofs";
    repro::Report: "repro";
    qk_node::node::SearchReport: "search";
    shell::Pages: "man";
    store::AllCleaned: "store-gc";
    store::Pin: "store-pin" "store-unpin";
    store::Stored: "store-ls";
    qk_node::store::FsckReport: "store-fsck";
    supply::Audit: "audit";
    supply::Written: "sbom";
    verify::NothingDrawn: "verify";
    verify::Report: "verify";
    verify::event::Event<'_>: "verify";
    verify::status::Report: "verify";
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use clap::CommandFactory;
    use schemars::Schema;
    use schemars::generate::SchemaSettings;
    use schemars::transform::{RecursiveTransform, Transform};
    use serde_json::{Value, json};

    use super::*;

    /// Where the schemas are for who reads what is printed.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.json");

    const RULE: &str = "`$defs` has what each command of qk prints with --json: `network-show` is what \
        `qk network show --json` prints. It is one object on one line; `qk node`, `qk status --watch` and \
        `qk verify --watch` print one after the other. Each has the member `schema`, the version of all of \
        them. Within a version members and kinds of objects are only added, so readers leave alone what \
        they do not know. A command that fails ends with the exit code that `exit_code` names. The bill of \
        materials that `qk sbom` prints is CycloneDX's own format, and without a version of qk's.";

    /// The whole document, from the types.
    fn written() -> Value {
        // What is only for reading is left away: defaults, and that nothing else may be there.
        let mut only_written = RecursiveTransform(|schema: &mut Schema| {
            schema.remove("default");
            if schema.get("additionalProperties") == Some(&json!(false)) {
                schema.remove("additionalProperties");
            }
        });
        let mut schemas = SchemaSettings::draft2020_12()
            .for_serialize()
            .with_transform(only_written.clone())
            .into_generator();
        let mut commands: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (command, mut schema) in all(&mut schemas) {
            only_written.transform(&mut schema);
            commands.entry(command).or_default().push(schema.to_value());
        }
        let failure = schemas.subschema_for::<Failure>().to_value();
        let mut defs = schemas.take_definitions(true);
        for (command, mut kinds) in commands {
            kinds.push(failure.clone());
            let document = json!({
                "type": "object",
                "properties": { "schema": { "const": SCHEMA } },
                "required": ["schema"],
                "anyOf": kinds,
            });
            defs.insert(command.to_owned(), document);
        }
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "What qk prints with --json",
            "description": RULE,
            "$defs": defs,
        })
    }

    #[test]
    fn the_committed_schemas_are_those_of_the_types() {
        let text = serde_json::to_string_pretty(&written()).unwrap() + "\n";
        if std::env::var_os("QK_WRITE_SCHEMA").is_some() {
            std::fs::write(COMMITTED, &text).unwrap();
        }
        let committed = std::fs::read_to_string(COMMITTED).unwrap();
        // Not assert_eq!, which would print both.
        assert!(
            committed == text,
            "QK_WRITE_SCHEMA=1 with this test writes {COMMITTED} anew; say in CHANGELOG.md what is new"
        );
    }

    #[test]
    fn no_document_has_a_member_of_the_versions_name() {
        let mut schemas = SchemaSettings::draft2020_12()
            .for_serialize()
            .into_generator();
        for (command, schema) in all(&mut schemas) {
            let name = schema.get("$ref").and_then(Value::as_str);
            let name = name.and_then(|name| name.strip_prefix("#/$defs/"));
            let schema = match name {
                Some(name) => schemas.definitions()[name].clone(),
                None => schema.to_value(),
            };
            let kinds = schema["oneOf"].as_array().into_iter().flatten();
            for kind in kinds.chain([&schema]) {
                assert!(kind["properties"]["schema"].is_null(), "{command}");
            }
        }
    }

    #[test]
    fn every_command_has_a_document_unless_it_prints_none() {
        fn walk(command: &clap::Command, name: &str, names: &mut BTreeSet<String>) {
            for one in command.get_subcommands() {
                let name = format!("{name}{}", one.get_name());
                walk(one, &format!("{name}-"), names);
                if one.get_subcommands().next().is_none() || !one.is_subcommand_required_set() {
                    names.insert(name);
                }
            }
        }
        let mut commands = BTreeSet::new();
        walk(&crate::args::Cli::command(), "", &mut commands);
        let settings = SchemaSettings::draft2020_12().for_serialize();
        let documented: BTreeSet<String> = all(&mut settings.into_generator())
            .into_iter()
            .map(|(command, _)| command.to_owned())
            .collect();
        let others: Vec<_> = commands.symmetric_difference(&documented).collect();
        // A script for a shell, and a program that takes this one's place.
        assert_eq!(others, ["completions", "run"]);
    }
}
