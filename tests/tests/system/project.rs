//! A project's tools: `qk.toml`, `qk.lock`, `qk fetch` without crates and `qk update`.

use std::fs::{self, File, FileTimes};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use qk_node::home::Home;
use qk_node::programs::Programs;
use qk_protocol::manifest::Blocked;
use qk_protocol::project::lock::Lock;
use qk_protocol::statement::Subject;
use qk_tests::artifact::{Artifact, forged};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run, send, wait};
use qk_tests::lan::Namespace;
use qk_tests::registry::{Crates, GOOD};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

/// A network, two crates in a registry, both proven, and a project that asks for them.
struct Project {
    lab: Lab,
    crates: Crates,
    dir: PathBuf,
}

impl Project {
    fn new() -> Self {
        Self::of(Lab::new())
    }

    fn of(mut lab: Lab) -> Self {
        lab.start_alice();
        let crates = Crates::new();
        let dir = lab.dir().join("project");
        fs::create_dir(&dir).unwrap();
        let project = Self { lab, crates, dir };
        for (name, version) in [("one", "1.0.0"), ("two", "2.0.0")] {
            project.prove(name, version);
        }
        project.asks("one = \"1\"\ntwo = { version = \"2\" }\n", "");
        project
    }

    /// Publishes a release, observed by two principals.
    fn prove(&self, name: &str, version: &str) -> Artifact {
        let artifact = self.release(name, version, "");
        self.lab.publish(ALICE, &artifact);
        self.lab.publish(BOB, &artifact);
        artifact
    }

    fn release(&self, name: &str, version: &str, mark: &str) -> Artifact {
        let network = self.lab.joined(ALICE).network;
        let key = || self.crates.key(&network, name, version);
        let is_there = std::panic::catch_unwind(std::panic::AssertUnwindSafe(key)).is_ok();
        if !is_there {
            self.crates.add(name, version, GOOD, None);
        }
        let lock = format!("version = 4\n\n[[package]]\nname = {name:?}\nversion = {version:?}\n");
        forged(key(), lock.as_bytes(), mark)
    }

    fn asks(&self, tools: &str, more: &str) {
        fs::write(self.dir.join("qk.toml"), format!("[tools]\n{tools}{more}")).unwrap();
    }

    fn qk(&self, who: &str, args: &[&str]) -> Ran {
        run(self.command(who, args).arg("--json"))
    }

    fn command(&self, who: &str, args: &[&str]) -> Command {
        let mut command = self.lab.command(who, args);
        command.current_dir(&self.dir);
        self.crates.used_by(command)
    }

    /// What is pinned, as lines.
    fn pinned(&self) -> Vec<String> {
        let lock = Lock::parse(&self.lock()).expect("a whole lock");
        let tools = lock.tools().iter();
        tools
            .map(|one| format!("{} {}", one.name, one.version))
            .collect()
    }

    /// What a linked executable prints.
    fn prints(&self, name: &str) -> String {
        run(&mut Command::new(self.dir.join(".qk/bin").join(name))).stdout
    }

    fn lock(&self) -> Vec<u8> {
        fs::read(self.dir.join("qk.lock")).unwrap()
    }

    fn change_lock(&self, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&self.lock()).unwrap();
        change(&mut value);
        fs::write(
            self.dir.join("qk.lock"),
            serde_json::to_vec_pretty(&value).unwrap(),
        )
        .unwrap();
    }
}

#[test]
fn all_tools_are_fetched_linked_and_pinned() {
    let mut project = Project::new();
    project
        .qk(CLIENT, &["fetch", "--locked"])
        .failed(2, &["there is no qk.lock"]);
    let fetched = project.qk(CLIENT, &["fetch"]).done();
    assert_eq!(fetched["lock_written"], true);
    let tools = fetched["tools"].as_array().unwrap();
    assert_eq!(
        (tools.len(), &tools[0]["how"], &tools[0]["pinned"]),
        (2, &"network".into(), &true.into())
    );
    assert_eq!(project.prints("one"), "one 1.0.0\n");
    assert_eq!(project.prints("two"), "two 2.0.0\n");
    assert_eq!(
        fs::read_to_string(project.dir.join(".qk/.gitignore")).unwrap(),
        "*\n"
    );
    let lock = project.lock();
    project.lab.kill(ALICE);
    // Nobody is needed from here on.
    for args in [&["fetch"][..], &["fetch", "--locked"]] {
        let again = project.qk(CLIENT, args).done();
        assert_eq!(again["up_to_date"], true, "{again}");
    }
    // A link that is gone or leads elsewhere is made again; so is what was decided by something else.
    fs::remove_file(project.dir.join(".qk/bin/one")).unwrap();
    project.lab.configure(CLIENT, "[policy]\nthreshold = 2\n");
    let again = project.qk(CLIENT, &["fetch", "--locked"]).done();
    assert_eq!(again["up_to_date"], false);
    assert_eq!(again["tools"][0]["how"], "store");
    assert_eq!(project.prints("one"), "one 1.0.0\n");
    assert_eq!(project.lock(), lock);
    // What is not asked for any more goes.
    project.asks("two = { version = \"2\" }\n", "");
    project
        .qk(CLIENT, &["fetch", "--locked"])
        .failed(2, &["one is locked, and not asked for"]);
    project.qk(CLIENT, &["fetch"]).done();
    assert!(!project.dir.join(".qk/bin/one").exists());
    assert_eq!(Lock::parse(&project.lock()).unwrap().tools().len(), 1);
    assert_eq!(project.prints("two"), "two 2.0.0\n");
}

#[test]
fn the_same_in_another_home_that_accepts_the_network() {
    let project = Project::new();
    project.qk(CLIENT, &["fetch"]).done();
    let lock = project.lock();
    let home = project.lab.dir().join("dave");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("config.toml"), "mdns = false\nquic = false\n").unwrap();
    let id = project.lab.joined(ALICE).network.id().to_string();
    let file = project.lab.network_file();
    let network = format!("[network]\nfrom = {file:?}\nfingerprint = {id:?}\n");
    project.asks("one = \"1\"\ntwo = { version = \"2\" }\n", &network);
    project
        .qk("dave", &["fetch", "--locked"])
        .failed(11, &[&id, "not joined", "--accept-network"]);
    assert!(
        !home.join("networks").exists(),
        "nothing in a project joins a network"
    );
    let wrong = "0".repeat(64);
    project
        .qk("dave", &["fetch", "--locked", "--accept-network", &wrong])
        .failed(2, &["and not 000"]);
    fs::remove_dir_all(project.dir.join(".qk")).unwrap();
    let fetched = project
        .qk("dave", &["fetch", "--locked", "--accept-network", &id])
        .done();
    assert_eq!(fetched["tools"][0]["how"], "network", "{fetched}");
    assert_eq!(project.prints("one"), "one 1.0.0\n");
    assert_eq!(project.lock(), lock);
    // The file under that name is another network's.
    let other = Lab::new();
    let file = other.network_file();
    let network = format!("[network]\nfrom = {file:?}\nfingerprint = {id:?}\n");
    project.asks("one = \"1\"\ntwo = { version = \"2\" }\n", &network);
    fs::remove_dir_all(home.join("networks")).unwrap();
    project
        .qk("dave", &["fetch", "--locked", "--accept-network", &id])
        .failed(15, &["defines network"]);
}

/// Two machines that cannot reach each other, nor each other's node.
#[test]
fn a_lock_gives_the_same_wherever_it_is_installed() {
    let (Some(here), Some(there)) = (Namespace::new(), Namespace::new()) else {
        return;
    };
    let mut project = Project::new();
    project.lab.kill(ALICE);
    project.lab.add("dave", "");
    let artifacts = [("one", "1.0.0"), ("two", "2.0.0")]
        .map(|(name, version)| project.release(name, version, ""));
    for (node, client, namespace) in [(BOB, CLIENT, &here), (CAROL, "dave", &there)] {
        let lab = &mut project.lab;
        lab.place(node, namespace.name());
        lab.place(client, namespace.name());
        lab.start_any(node);
        for artifact in &artifacts {
            lab.publish(node, artifact);
            for principal in [ALICE, BOB] {
                let statement = lab.observe(principal, &artifact.key, artifact.subject);
                lab.put(node, None, statement).unwrap();
            }
        }
    }
    let fetch = |who: &str, from: &str, args: &[&str]| {
        let mut command = project.command(who, &["fetch", "--json"]);
        command.args(args);
        run(command.env("QK_PARENT", &project.lab.addresses(from)[0]))
    };
    let programs =
        || ["one", "two"].map(|name| fs::read(project.dir.join(".qk/bin").join(name)).unwrap());
    let first = fetch(CLIENT, BOB, &[]).done();
    assert_eq!(first["tools"][1]["how"], "network", "{first}");
    let (lock, first) = (project.lock(), programs());
    fs::remove_dir_all(project.dir.join(".qk")).unwrap();

    assert_ne!(
        fetch("dave", BOB, &["--locked"]).code(),
        0,
        "bob can be reached"
    );
    let second = fetch("dave", CAROL, &["--locked"]).done();
    for tool in second["tools"].as_array().unwrap() {
        assert_eq!(tool["how"], "network", "{second}");
    }
    assert_eq!(second["lock_written"], false);
    assert!(project.lab.sent_bytes(CAROL) > 0);
    assert!(programs() == first, "other bytes");
    assert!(project.lock() == lock, "another lock");
    fetch("dave", CAROL, &[]).done();
    assert!(project.lock() == lock, "another lock");

    // One that is made anew pins the same, by whatever statements.
    fs::remove_file(project.dir.join("qk.lock")).unwrap();
    fetch("dave", CAROL, &["--refresh"]).done();
    let pins = |lock: &[u8]| {
        let lock = Lock::parse(lock).unwrap();
        let pin = |one: &qk_protocol::project::lock::Locked| {
            (one.key.id(), one.root, one.sha256, one.size)
        };
        lock.tools().iter().map(pin).collect::<Vec<_>>()
    };
    assert_eq!(pins(&project.lock()), pins(&lock));
    assert!(programs() == first, "other bytes");
}

#[test]
fn whatever_interrupts_it_the_old_or_the_new_lock_is_there() {
    const ROUNDS: usize = 24;
    let project = Project::new();
    project.prove("one", "1.1.0");
    project.prove("two", "2.1.0");
    let versions = [["1.0.0", "2.0.0"], ["1.1.0", "2.1.0"]];
    let ask = |[one, two]: [&str; 2]| {
        project.asks(&format!("one = \"={one}\"\ntwo = \"={two}\"\n"), "");
        vec![format!("one {one}"), format!("two {two}")]
    };
    let began = Instant::now();
    for versions in versions {
        ask(versions);
        project.qk(CLIENT, &["fetch"]).done();
    }
    let whole = began.elapsed() / 2;
    let is_new_file = || {
        let mut files = fs::read_dir(&project.dir).unwrap().flatten();
        files.any(|file| file.file_name().to_string_lossy().starts_with(".qk.lock."))
    };
    let mut rng = StdRng::seed_from_u64(9);
    let (mut interrupted, mut old, mut new) = (0, 0, 0);
    for round in 0..ROUNDS {
        let before = project.lock();
        let next = match project.pinned().contains(&"one 1.0.0".to_owned()) {
            true => ask(versions[1]),
            false => ask(versions[0]),
        };
        let mut command = project.command(CLIENT, &[["fetch", "update"][round % 2]]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = whole.mul_f64(rng.random_range(0.0..1.0));
        let begin = Instant::now();
        // At any moment, or when the new file is being written.
        let waits = |child: &mut std::process::Child| match round % 4 {
            0 | 1 => begin.elapsed() < until,
            _ => !is_new_file() && child.try_wait().unwrap().is_none(),
        };
        while waits(&mut child) {
            std::thread::sleep(Duration::from_micros(50));
        }
        if child.try_wait().unwrap().is_none() {
            send(child.id(), ["INT", "KILL"][round / 4 % 2]);
        }
        interrupted += usize::from(!wait(&mut child).success());
        match project.lock() == before {
            true => old += 1,
            false => {
                assert_eq!(project.pinned(), next, "round {round}");
                new += 1;
            }
        }
        for file in fs::read_dir(&project.dir).unwrap().flatten() {
            if file.file_name().to_string_lossy().starts_with(".qk.lock.") {
                fs::remove_file(file.path()).unwrap();
            }
        }
    }
    println!("{interrupted} of {ROUNDS} interrupted, {old} old, {new} new");
    assert!(
        interrupted > 4 && old > 2 && new > 2,
        "{interrupted}, {old}, {new}"
    );
    // What a killed process left is cleaned up, unless somebody is writing it.
    let names = ["left.new", "fresh.new", "swp"];
    let [left, fresh, editors] = names.map(|name| project.dir.join(format!(".qk.lock.{name}")));
    for path in [&left, &fresh, &editors] {
        fs::write(path, "half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let times = FileTimes::new().set_modified(long_ago);
    for path in [&left, &editors] {
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(times).unwrap();
    }
    for versions in versions {
        let next = ask(versions);
        project.qk(CLIENT, &["fetch"]).done();
        assert_eq!(project.pinned(), next);
        assert_eq!(project.prints("one"), format!("{}\n", next[0]));
    }
    assert!(!left.exists() && fresh.exists() && editors.exists());
}

/// More tools than a provider has lanes for one reader, and no second of rest.
#[test]
fn many_at_once_from_one_provider_are_all_served() {
    let project = Project::new();
    let names: Vec<String> = (10..22).map(|number| format!("tool-{number}")).collect();
    let tools: String = names
        .iter()
        .map(|name| format!("{name} = \"1\"\n"))
        .collect();
    for name in &names {
        project.prove(name, "1.0.0");
    }
    project.asks(&tools, "");
    let root = project.lab.root();
    let crates = names.iter().map(String::as_str);
    let crates = [
        "fetch",
        "--fallback",
        "none",
        "--root",
        root.to_str().unwrap(),
    ]
    .into_iter()
    .chain(crates);
    for args in [&["fetch"][..], &crates.collect::<Vec<_>>()] {
        let ran = run(&mut project.command(CLIENT, args));
        ran.done();
        let all = format!("{}{}", ran.stdout, ran.stderr);
        assert!(names.iter().all(|name| all.contains(name)), "{all}");
        assert!(!all.contains("note: provider"), "{all}");
        fs::remove_dir_all(project.lab.home(CLIENT).store()).unwrap();
    }
}

#[test]
fn a_lock_that_was_tampered_with_is_refused() {
    let project = Project::new();
    project.qk(CLIENT, &["fetch"]).done();
    let honest = project.lock();
    let again = || {
        fs::write(project.dir.join("qk.lock"), &honest).unwrap();
        project.lab.configure(CLIENT, "");
    };
    let locked = |who: &str| project.qk(who, &["fetch", "--locked"]);
    // Another root, which somebody in the network gives.
    let trojan = project.release("one", "1.0.0", " with a trojan");
    project
        .lab
        .put(
            CAROL,
            Some(trojan.path()),
            project.lab.observe(CAROL, &trojan.key, trojan.subject),
        )
        .unwrap();
    let Subject { root, sha256, size } = trojan.subject;
    project.change_lock(|lock| {
        lock["tools"][0]["root"] = root.to_string().into();
        lock["tools"][0]["sha256"] = sha256.to_string().into();
        lock["tools"][0]["size"] = size.into();
    });
    // Whoever took the lock's word would run it.
    let elsewhere = Programs::of(&Home::at(project.lab.dir().join("elsewhere")));
    let pinned = Lock::parse(&project.lock()).unwrap().tools()[0].clone();
    let believed = Subject {
        root: pinned.root,
        sha256: pinned.sha256,
        size: pinned.size,
    };
    let program = elsewhere
        .add(&trojan.path(), &believed, &pinned.key)
        .unwrap();
    let ran = run(&mut Command::new(&program.bins["one"]));
    assert_eq!(ran.stdout, "one 1.0.0 with a trojan\n");
    locked(CLIENT).failed(15, &["its proof is of", "which the lock names"]);
    assert_eq!(project.prints("one"), "one 1.0.0\n", "what was there stays");
    // A statement less, a statement of another key, no proof at all.
    again();
    project.change_lock(|lock| {
        lock["tools"][0]["statements"]
            .as_array_mut()
            .unwrap()
            .remove(0);
    });
    locked(CLIENT).failed(11, &["unproven", "qk update"]);
    again();
    project.change_lock(|lock| {
        let others = lock["tools"][1]["statements"].clone();
        lock["tools"][0]["statements"] = others;
    });
    locked(CLIENT).failed(15, &["another artifact key"]);
    // A network that somebody else founded, and in which all of it is proven.
    again();
    let theirs = Lab::new();
    let key = project
        .crates
        .key(&theirs.joined(ALICE).network, "one", "1.0.0");
    assert_eq!(key, trojan.key, "the same toolchain");
    project.change_lock(|lock| {
        let of_theirs = serde_json::to_value(theirs.joined(ALICE).network.file()).unwrap();
        let name = lock["tools"][0]["network"].as_str().unwrap().to_owned();
        let envelope =
            |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
        let manifests = of_theirs["manifests"].as_array().unwrap();
        lock["networks"][&name]["manifests"] = manifests.iter().map(envelope).collect();
        lock["networks"][&name]["timestamp"] = envelope(&of_theirs["timestamp"]);
        for tool in lock["tools"].as_array_mut().unwrap() {
            let key = serde_json::from_value(tool["key"].clone()).unwrap();
            let subject = Subject {
                root: tool["root"].as_str().unwrap().parse().unwrap(),
                sha256: serde_json::from_value(tool["sha256"].clone()).unwrap(),
                size: tool["size"].as_u64().unwrap(),
            };
            let mut all = [ALICE, BOB].map(|name| theirs.observe(name, &key, subject));
            all.sort_by_key(|one| one.id());
            tool["statements"] = all
                .iter()
                .map(|one| serde_json::from_slice::<Value>(one.envelope()).unwrap())
                .collect();
        }
    });
    // It verifies: only that nobody here believes that network is in its way.
    let forged = Lock::parse(&project.lock()).unwrap();
    forged
        .bundle(&forged.tools()[0])
        .expect("every signature is right");
    locked(CLIENT).failed(2, &["is not joined here"]);
    again();
    project.qk(CLIENT, &["fetch", "--locked"]).done();
}

#[test]
fn what_was_taken_back_since_is_refused() {
    let project = Project::new();
    project.qk(CLIENT, &["fetch"]).done();
    let root = Lock::parse(&project.lock()).unwrap().tools()[0].root;
    // A dissent that another command learned of.
    let other = project.release("two", "2.0.0", " of another kind");
    project.lab.publish(CAROL, &other);
    let looked = project.qk(CLIENT, &["proofs", "two@2.0.0"]);
    looked.done();
    let refused = project.qk(CLIENT, &["fetch", "--locked"]);
    refused.failed(12, &["two@2.0.0", "disputed"]);
    // The other tool is there all the same.
    assert_eq!(refused.json()["tools"][0]["name"], "one");
    let blocked = project.lab.next_version(|next| {
        next.blocked.push(Blocked {
            key: None,
            root: Some(root),
            reason: "it eats files".to_owned(),
        });
    });
    project.lab.know(CLIENT, blocked);
    project.asks("one = \"1\"\n", "");
    project
        .qk(CLIENT, &["fetch"])
        .failed(12, &["it eats files"]);
}

#[test]
fn pins_are_moved_on_request_only() {
    let project = Project::new();
    project.qk(CLIENT, &["fetch"]).done();
    project.prove("one", "1.1.0");
    project.crates.add("two", "2.1.0", GOOD, None);
    assert_eq!(project.qk(CLIENT, &["fetch"]).done()["up_to_date"], true);
    let lock = project.lock();
    let preview = project.qk(CLIENT, &["update", "--dry-run"]).done();
    assert_eq!(preview["tools"][0]["to"], "1.1.0");
    assert!(
        preview["tools"][0]["verdict"]
            .as_str()
            .unwrap()
            .starts_with("trusted")
    );
    assert!(
        preview["tools"][1]["verdict"]
            .as_str()
            .unwrap()
            .starts_with("unproven")
    );
    assert_eq!(project.lock(), lock);
    // What is not proven stays as it is.
    let updated = project.qk(CLIENT, &["update"]);
    updated.failed(11, &["two@2.1.0", "unproven"]);
    assert_eq!(updated.json()["tools"][0]["from"], "1.0.0");
    let versions: Vec<String> = Lock::parse(&project.lock())
        .unwrap()
        .tools()
        .iter()
        .map(|one| one.version.clone())
        .collect();
    assert_eq!(versions, ["1.1.0", "2.0.0"]);
    assert_eq!(project.prints("one"), "one 1.0.0\n");
    project.qk(CLIENT, &["fetch", "--locked"]).done();
    assert_eq!(project.prints("one"), "one 1.1.0\n");
    project
        .qk(CLIENT, &["update", "three"])
        .failed(2, &["no tool three", "one, two"]);
}

#[test]
fn bad_files_are_named_and_lose_nothing() {
    let project = Project::new();
    project.qk(CLIENT, &["fetch"]).done();
    let honest = project.lock();
    let path = project.dir.join("qk.lock");
    let text = String::from_utf8(honest.clone()).unwrap();
    for (bad, words) in [
        (
            text.replacen("{\n", "{\n<<<<<<< HEAD\n", 1),
            "line 2 is a mark of a merge",
        ),
        (
            text.replacen("\"version\": 1", "\"version\": 9", 1),
            "a newer qk is needed",
        ),
        (String::new(), "qk.lock"),
    ] {
        fs::write(&path, &bad).unwrap();
        for args in [&["fetch"][..], &["fetch", "--locked"], &["update"]] {
            project.qk(CLIENT, args).failed(15, &[words]);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), bad, "it stays as it is");
    }
    fs::write(&path, &honest).unwrap();
    project.asks("one = { verson = \"1\" }\n", "");
    project
        .qk(CLIENT, &["fetch"])
        .failed(2, &["line 2", "verson", "`version`"]);
    project.asks("", "");
    project
        .qk(CLIENT, &["fetch"])
        .failed(2, &["lists no tools"]);
    fs::remove_file(project.dir.join("qk.toml")).unwrap();
    project
        .qk(CLIENT, &["fetch"])
        .failed(2, &["no crate is named", "qk.toml"]);
    // One that may not be written.
    project.asks("one = \"1\"\n", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    project
        .qk(CLIENT, &["fetch"])
        .failed(1, &["read-only", "--locked"]);
    assert_eq!(project.lock(), honest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    // Somebody else's file under the name of an executable.
    let root = project.dir.join("tools");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/one"), "mine").unwrap();
    let there = project.qk(CLIENT, &["fetch", "--root", "tools"]);
    there.failed(1, &["bin/one", "--force"]);
    assert_eq!(read(&root.join("bin/one")), "mine");
    project
        .qk(CLIENT, &["fetch", "--root", "tools", "--force"])
        .done();
    assert_eq!(
        run(&mut Command::new(root.join("bin/one"))).stdout,
        "one 1.0.0\n"
    );
    let left = fs::read_dir(&project.dir).unwrap().flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with(".qk.lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}
