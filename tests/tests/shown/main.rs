//! What every command shows: to a person, as JSON, and where it fails. One lab for all of them; what varies
//! from run to run is masked.

mod builds;
mod crates;
mod machine;
mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use qk_tests::artifact::{Artifact, forged};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run};
use qk_tests::registry::{Crates, GOOD};
use serde_json::Value;

/// What somebody sees of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Text,
    Json,
    Error,
}

/// A lab with a registry of its own and a project, and what was seen of the commands in it.
struct Shown {
    lab: Lab,
    registry: Crates,
    commands: BTreeSet<String>,
    /// What is said of this machine, and what is shown in its place.
    accidents: [(String, &'static str); 3],
    seen: BTreeMap<String, BTreeSet<Form>>,
}

#[test]
fn every_command_shows_what_it_did_as_text_and_json_and_why_it_failed() {
    let mut shown = Shown::new();
    machine::shown(&mut shown);
    crates::shown(&mut shown);
    builds::shown(&mut shown);
    networks::shown(&mut shown);

    // They have no document, and a demo is a test of its own.
    let without: &[(&str, &[Form])] = &[
        ("completions", &[Form::Json]),
        ("run", &[Form::Json]),
        ("demo", &[Form::Text, Form::Json]),
    ];
    for command in &shown.commands {
        let seen = shown.seen.get(command).cloned().unwrap_or_default();
        let has_none = without.iter().find(|(name, _)| name == command);
        let has_none = has_none.map_or(&[][..], |(_, forms)| forms);
        for form in [Form::Text, Form::Json, Form::Error] {
            let is_seen = seen.contains(&form) != has_none.contains(&form);
            assert!(is_seen, "qk {command}: {form:?} is not shown here");
        }
    }
}

impl Shown {
    fn new() -> Self {
        let mut lab = Lab::new();
        lab.start_alice();
        for directory in ["project", "runtime"] {
            std::fs::create_dir(lab.dir().join(directory)).unwrap();
        }
        let pages = lab.dir().join("pages");
        let said = lab.qk(CLIENT, &["man", pages.to_str().unwrap()]).done();
        let pages = said["pages"].as_array().unwrap().iter();
        let names = pages.filter_map(|page| {
            let name = Path::new(page.as_str()?).file_stem()?.to_str()?;
            Some(name.strip_prefix("qk-")?.to_owned())
        });
        let commands: BTreeSet<String> = names.collect();
        // `qk network` alone does nothing, `qk node` runs one.
        let groups = ["network", "store"].map(str::to_owned);
        let network = lab.joined(ALICE).network;
        let rustc = network.manifest().builds[0].rustc.version.clone();
        let os = std::fs::read_to_string("/etc/os-release").unwrap();
        let os = os
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let os = os.unwrap().trim_matches('"').to_owned();
        let own = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            lab,
            registry: Crates::new(),
            commands: &commands - &groups.into(),
            accidents: [(rustc, "RUSTC"), (os, "OS"), (own, "VERSION")],
            seen: BTreeMap::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.lab.dir().join(name).to_str().unwrap().to_owned()
    }

    /// A command of somebody's in the project, without a service manager.
    fn command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = self.registry.used_by(self.lab.command(who, args));
        command
            .current_dir(self.lab.dir().join("project"))
            .env("XDG_CONFIG_HOME", self.lab.dir().join("config"))
            .env("XDG_RUNTIME_DIR", self.lab.dir().join("runtime"))
            .env_remove("DBUS_SESSION_BUS_ADDRESS");
        command
    }

    fn run(&mut self, who: &str, args: &[&str], form: Form) -> Ran {
        self.saw(args, form);
        let mut command = self.command(who, args);
        if form == Form::Json {
            command.arg("--json");
        }
        run(&mut command)
    }

    fn saw(&mut self, args: &[&str], form: Form) {
        let both = args[..args.len().min(2)].join("-");
        let one = [both, args[0].to_owned()];
        let name = one.into_iter().find(|name| self.commands.contains(name));
        let name = name.unwrap_or_else(|| panic!("no command {args:?}"));
        self.seen.entry(name).or_default().insert(form);
    }

    /// What it prints for a person, and what it says beside that.
    fn text(&mut self, who: &str, args: &[&str]) -> String {
        let ran = self.run(who, args, Form::Text);
        self.said(&ran, args)
    }

    /// The document that it prints.
    fn json(&mut self, who: &str, args: &[&str]) -> String {
        let ran = self.run(who, args, Form::Json);
        let document: Value = serde_json::from_str(&ran.stdout).expect("a document");
        assert!(document["kind"].is_null(), "{args:?}: {document}");
        masked(&document, self).to_string()
    }

    /// Why it fails.
    fn error(&mut self, who: &str, args: &[&str]) -> String {
        let ran = self.run(who, args, Form::Error);
        assert_ne!(ran.code(), 0, "{args:?}: {ran:?}");
        self.said(&ran, args)
    }

    fn said(&self, ran: &Ran, args: &[&str]) -> String {
        let mut said = ran.stdout.clone();
        if !ran.stderr.is_empty() {
            said += &format!("--- stderr\n{}", ran.stderr);
        }
        if ran.code() != 0 {
            said += &format!("--- exit code {}", ran.code());
        }
        let said = self.masked(&said);
        match args.contains(&"proofs") || args.contains(&"--explain") {
            true => anonymous(&said),
            false => said,
        }
    }

    /// Text without what differs from run to run and from machine to machine.
    fn masked(&self, text: &str) -> String {
        let mut text = text.replace(self.lab.dir().to_str().unwrap(), "DIR");
        for (accident, word) in &self.accidents {
            text = text.replace(accident, word);
        }
        let mut masked = String::new();
        let mut rest = &*text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
            let (before, word) = rest.split_at(start);
            let end = word.find(|c: char| !c.is_ascii_alphanumeric());
            let (word, after) = word.split_at(end.unwrap_or(word.len()));
            masked.push_str(before);
            let word = without_accident(&masked, word, after);
            // In a column, whose width it does not have any more.
            if word == "N" && masked.ends_with("  ") {
                masked.truncate(masked.trim_end_matches(' ').len());
                masked.push_str("  ");
            }
            masked.push_str(&word);
            rest = after;
        }
        masked.push_str(rest);
        // However long it takes here.
        ["min", "h"].iter().fold(masked, |text, unit| {
            text.replace(&format!("N {unit} ago"), "N s ago")
                .replace(&format!("running for N {unit}"), "running for N s")
        })
    }

    /// Publishes a release of a small program, observed by these.
    fn release(&self, name: &str, version: &str, by: &[&str], mark: &str) -> Artifact {
        let network = self.lab.joined(ALICE).network;
        let key = self.registry.key(&network, name, version);
        let lock = format!("version = 4\n\n[[package]]\nname = {name:?}\nversion = {version:?}\n");
        let artifact = forged(key, lock.as_bytes(), mark);
        for (at, who) in by.iter().enumerate() {
            match (at, *who) {
                (0, _) => drop(self.lab.publish(who, &artifact)),
                _ => drop(self.lab.state(who, &artifact)),
            }
        }
        artifact
    }

    fn prove(&self, name: &str, version: &str) -> Artifact {
        self.registry.add(name, version, GOOD, None);
        self.release(name, version, &[ALICE, BOB], "")
    }
}

/// A word of what a command says, or what stands for it.
fn without_accident(before: &str, word: &str, after: &str) -> String {
    let is = |test: fn(u8) -> bool| word.bytes().all(test);
    let is_number = is(|byte| byte.is_ascii_digit());
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let units = [" s", " ms", " min", " B", " KiB", " MiB", " GiB"];
    let counts = units.iter().any(|unit| {
        let end = after.strip_prefix(unit);
        end.is_some_and(|end| !end.starts_with(|c: char| c.is_ascii_alphanumeric()))
    });
    let fraction = after.strip_prefix('.').is_some_and(|after| {
        let digits = after.trim_start_matches(|c: char| c.is_ascii_digit());
        units.iter().any(|unit| digits.starts_with(unit))
    });
    match word {
        _ if word.starts_with("12D3KooW") => "PEER".to_owned(),
        _ if is(hex) && [8, 64].contains(&word.len()) => "HASH".to_owned(),
        _ if is(hex) && word.len() > 8 && !is_number => "HASH".to_owned(),
        _ if is_number && (counts || fraction || word.len() >= 9) => "N".to_owned(),
        _ if is_number
            && ["process ", "fresh for ", "answered  "]
                .iter()
                .any(|it| before.ends_with(it)) =>
        {
            "N".to_owned()
        }
        _ if before.ends_with("blobs/") => "HH".to_owned(),
        _ if is_number && after.starts_with(" known, ") => "N".to_owned(),
        _ if is_number && before.ends_with("/tcp/") => "PORT".to_owned(),
        _ => word.to_owned(),
    }
}

/// A document without what differs from run to run and from machine to machine.
fn masked(document: &Value, shown: &Shown) -> Value {
    const VARYING: [&str; 13] = [
        "environment",
        "block",
        "contacts",
        "expires",
        "lock_written",
        "log",
        "os",
        "process",
        "rustc",
        "seconds",
        "size",
        "stages",
        "statements",
    ];
    let varies = |name: &str| {
        VARYING.contains(&name)
            || ["bytes", "_seconds", "_answered"]
                .iter()
                .any(|end| name.ends_with(end))
    };
    match document {
        Value::String(text) => shown.masked(text).into(),
        Value::Number(number) if number.as_u64().is_none_or(|number| number > 100_000) => {
            "N".into()
        }
        // What stands in the order of keys or of times stands in another one each time.
        Value::Array(all) => {
            let mut all: Vec<Value> = all.iter().map(|one| masked(one, shown)).collect();
            all.sort_by_key(Value::to_string);
            all.into()
        }
        Value::Object(members) => {
            let one = |(name, value): (&String, &Value)| match varies(name) {
                true => (name.clone(), "…".into()),
                false => (shown.masked(name), masked(value, shown)),
            };
            let members = members.iter().map(one);
            members.collect::<serde_json::Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// What is said of principals, whose order is drawn by keys.
fn anonymous(said: &str) -> String {
    [ALICE, BOB, CAROL]
        .iter()
        .fold(said.to_owned(), |said, name| {
            let mut parts = said.split(*name);
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |said, rest| {
                // A name in a column takes its blanks with it.
                match rest.strip_prefix("  ") {
                    Some(rest) => format!("{said}WHO  {}", rest.trim_start_matches(' ')),
                    None => format!("{said}WHO{rest}"),
                }
            })
        })
}
