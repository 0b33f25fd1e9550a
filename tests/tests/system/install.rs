//! What `qk fetch`, `list`, `upgrade` and `uninstall` share with cargo: flags, files, choices.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use qk_tests::artifact::{SPEC, artifact, forged};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, Ran, free_port, run};
use qk_tests::registry::{Crates, GOOD};
use qk_tests::web::certificate;
use serde_json::{Value, json};

/// A network that vouches for crates of a registry of its own.
pub(crate) struct Tools {
    pub(crate) lab: Lab,
    pub(crate) crates: Crates,
}

impl Tools {
    pub(crate) fn new() -> Self {
        let (mut lab, crates) = (Lab::new(), Crates::new());
        let (name, value) = crates.variable();
        lab.set(name, value);
        lab.start_alice();
        Self { lab, crates }
    }

    /// A release that two principals vouch for.
    pub(crate) fn publish(&self, name: &str, version: &str) {
        self.crates.add(name, version, GOOD, None);
        let network = self.lab.joined(ALICE).network;
        let key = self.crates.key(&network, name, version);
        let lock = format!("version = 4\n\n[[package]]\nname = {name:?}\nversion = {version:?}\n");
        let artifact = forged(key, lock.as_bytes(), "");
        self.lab.publish(ALICE, &artifact);
        self.lab.state(BOB, &artifact);
    }

    /// A command of the client's on the lab's install root.
    pub(crate) fn qk(&self, args: &[&str]) -> Ran {
        let root = self.lab.root();
        let root = ["--root", root.to_str().unwrap()];
        self.lab.qk(CLIENT, &[args, &root].concat())
    }

    /// The same as people see it.
    pub(crate) fn said(&self, args: &[&str]) -> String {
        let mut command = self.lab.command(CLIENT, args);
        let ran = run(command.arg("--root").arg(self.lab.root()));
        let all = format!("{}{}", ran.stdout, ran.stderr);
        all.replace(self.lab.root().to_str().unwrap(), "ROOT")
    }

    pub(crate) fn cargo(&self, args: &[&str]) -> String {
        let mut cargo = self.crates.used_by(Command::new("cargo"));
        cargo.args(args).arg("--root").arg(self.lab.root());
        let target = self.lab.dir().join("target");
        let ran = run(cargo
            .env("CARGO_TARGET_DIR", target)
            .env_remove("RUSTFLAGS"));
        assert_eq!(ran.code(), 0, "{}", ran.stderr);
        ran.stdout
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.lab.root().join("bin").join(name)
    }
}

#[test]
fn what_is_up_to_date_is_left_alone_without_asking_anybody() {
    let fetch = |lab: &Lab, more: &[&str]| {
        let root = lab.root();
        let args = [
            "fetch",
            SPEC,
            "--fallback",
            "none",
            "--root",
            root.to_str().unwrap(),
        ];
        lab.qk(CLIENT, &[&args, more].concat())
    };
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    fetch(&lab, &[]).done();
    let program = lab.root().join("bin/hexyl");
    let written = fs::metadata(&program).unwrap().modified().unwrap();
    lab.kill(ALICE);
    let began = Instant::now();
    let again = fetch(&lab, &[]).done();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "nobody is waited for"
    );
    assert_eq!(again["up_to_date"][0]["name"], "hexyl", "{again}");
    assert_eq!(
        again["up_to_date"][0]["installed"][0],
        program.to_str().unwrap()
    );
    assert_eq!(again["crates"].as_array().unwrap().len(), 0);
    assert_eq!(fs::metadata(&program).unwrap().modified().unwrap(), written);
    // Other choices are another thing, and so is one that is not there any more.
    fetch(&lab, &["--features", "x"]).failed(14, &["none of the 1 known nodes"]);
    let asked = fetch(&lab, &["--refresh"]).done();
    assert_eq!(
        asked["crates"][0]["how"], "store",
        "whoever says so asks anew"
    );
    fs::remove_file(&program).unwrap();
    assert_eq!(fetch(&lab, &[]).done()["crates"][0]["how"], "store");
    assert_eq!(
        fetch(&lab, &["--force"]).done()["crates"][0]["how"],
        "store"
    );
}

#[test]
fn requirements_choose_as_cargo_does() {
    let tools = Tools::new();
    for version in ["1.0.0", "1.2.0", "2.0.0"] {
        tools.publish("tool", version);
    }
    for (args, version) in [
        (&["fetch", "tool@1.0.0"][..], "1.0.0"),
        (&["fetch", "tool@^1.0"], "1.2.0"),
        (&["fetch", "tool", "--version", "~1.0"], "1.0.0"),
        (&["install", "tool", "--vers", ">=1, <3"], "2.0.0"),
        (&["fetch", "tool"], "2.0.0"),
    ] {
        tools.qk(args).done();
        let list = tools.cargo(&["install", "--list"]);
        assert_eq!(list, format!("tool v{version}:\n    tool\n"), "{args:?}");
    }
    tools
        .qk(&["fetch", "tool@1.0.0", "--version", "2.0.0"])
        .failed(2, &["tool@1.0.0 and --version both say which version"]);
    tools
        .qk(&["fetch", "tool@1.0.0", "tool@2.0.0"])
        .failed(2, &["tool@1.0.0 and tool@2.0.0 cannot both be installed"]);
    tools
        .qk(&["fetch", "tool@^3"])
        .failed(10, &["tool", "^3", "2.0.0"]);
}

#[test]
fn many_crates_are_one_call_and_a_failure_leaves_the_others() {
    let tools = Tools::new();
    let names: Vec<String> = (0..12).map(|number| format!("tool-{number}")).collect();
    names.iter().for_each(|name| tools.publish(name, "1.0.0"));
    let mut args = vec!["fetch", "--fallback", "none"];
    args.extend(names.iter().map(String::as_str));
    args.insert(5, "not-there");
    let ran = tools.qk(&args);
    ran.failed(10, &["not-there"]);
    let done = ran.json();
    let installed: Vec<_> = done["crates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(installed, names, "in the order of the call");
    assert_eq!(done["failures"][0]["crate"], "not-there");
    assert_eq!(
        tools
            .cargo(&["install", "--list"])
            .matches("v1.0.0")
            .count(),
        12
    );
    let again = tools.said(&args);
    assert!(
        again.ends_with("13 crates: 12 up to date, 1 failed: not-there\n")
            || again.contains("13 crates: 12 up to date, 1 failed: not-there\n"),
        "{again}"
    );
}

#[test]
fn what_qk_installed_cargo_knows_and_the_other_way_round() {
    let tools = Tools::new();
    tools.publish("one", "1.0.0");
    tools.publish("two", "1.0.0");
    tools.qk(&["fetch", "one", "two"]).done();
    let list = tools.cargo(&["install", "--list"]);
    assert_eq!(tools.said(&["list"]), list);
    tools.cargo(&["uninstall", "one"]);
    assert!(!tools.program("one").exists());
    let left = tools.qk(&["list"]).done();
    assert_eq!(left["packages"][0]["name"], "two", "{left}");
    assert_eq!(left["packages"].as_array().unwrap().len(), 1);

    // What cargo built itself.
    tools.crates.add("built", "0.1.0", GOOD, None);
    tools.cargo(&["install", "built", "--offline"]);
    let list = tools.cargo(&["install", "--list"]);
    assert_eq!(tools.said(&["list"]), list);
    assert!(list.contains("built v0.1.0:"), "{list}");
    let same = tools.qk(&["fetch", "built@0.1.0"]).done();
    assert_eq!(same["up_to_date"][0]["name"], "built", "{same}");
    tools.publish("built", "0.2.0");
    let upgraded = tools.qk(&["upgrade"]).done();
    assert_eq!(upgraded["crates"][0]["name"], "built", "{upgraded}");
    assert_eq!(upgraded["crates"][0]["before"], "0.1.0");
    let list = tools.cargo(&["install", "--list"]);
    assert_eq!(list, "built v0.2.0:\n    built\ntwo v1.0.0:\n    two\n");
    let gone = tools.qk(&["uninstall", "built", "two"]).done();
    assert_eq!(
        gone["crates"][0]["executables"][0],
        tools.program("built").to_str().unwrap()
    );
    assert_eq!(tools.cargo(&["install", "--list"]), "");
    assert!(!tools.program("built").exists());
    tools
        .qk(&["uninstall", "two"])
        .failed(10, &["two is not installed in"]);
    tools
        .qk(&["uninstall", "a", "b", "--bin", "c"])
        .failed(2, &["--bin"]);
}

#[test]
fn upgrades_stay_within_what_was_asked_for() {
    let tools = Tools::new();
    for name in ["pinned", "within", "newest"] {
        tools.publish(name, "1.0.0");
    }
    tools
        .qk(&["fetch", "pinned@1.0.0", "within@^1", "newest"])
        .done();
    for name in ["pinned", "within", "newest"] {
        tools.publish(name, "1.1.0");
        tools.publish(name, "2.0.0");
    }
    let planned = tools.qk(&["upgrade", "--dry-run"]).done();
    let would: Vec<_> = planned["planned"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["name"].as_str().unwrap(),
                one["version"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(would, [("newest", "2.0.0"), ("within", "1.1.0")]);
    assert_eq!(
        tools
            .cargo(&["install", "--list"])
            .matches("v1.0.0")
            .count(),
        3,
        "nothing was done"
    );
    assert_eq!(
        tools.qk(&["upgrade", "within"]).done()["crates"][0]["version"],
        "1.1.0"
    );
    tools.qk(&["upgrade"]).done();
    assert_eq!(
        tools.cargo(&["install", "--list"]),
        "newest v2.0.0:\n    newest\npinned v1.0.0:\n    pinned\nwithin v1.1.0:\n    within\n"
    );
    tools
        .qk(&["upgrade", "other"])
        .failed(10, &["other is not installed", "qk fetch other"]);
    let again = tools.qk(&["upgrade"]).done();
    assert_eq!(again["up_to_date"].as_array().unwrap().len(), 3, "{again}");
}

#[test]
fn a_dry_run_downloads_and_installs_nothing() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    tools.crates.add("unknown", "1.0.0", GOOD, None);
    let planned = tools.qk(&["fetch", "tool", "unknown", "--dry-run"]).done();
    assert_eq!(planned["planned"][0]["how"], "network", "{planned}");
    assert_eq!(planned["planned"][0]["principals"], 3);
    assert_eq!(planned["planned"][1]["how"], "built", "{planned}");
    assert!(
        planned["planned"][1]["why"]
            .as_str()
            .unwrap()
            .contains("unproven")
    );
    assert!(tools.lab.installed().is_empty());
    assert_eq!(
        tools.lab.qk(CLIENT, &["store", "ls"]).done()["artifacts"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    tools
        .qk(&["fetch", "unknown", "--dry-run", "--fallback", "none"])
        .failed(11, &["unproven"]);
    tools.qk(&["fetch", "tool"]).done();
    let planned = tools.qk(&["fetch", "tool", "--dry-run"]).done();
    assert_eq!(planned["up_to_date"][0]["name"], "tool", "{planned}");
    let planned = tools.qk(&["fetch", "tool", "--dry-run", "--force"]).done();
    assert_eq!(planned["planned"][0]["how"], "store", "{planned}");
}

#[test]
fn executables_of_others_stay_unless_forced_and_untracked_ones_are_nobodys() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    fs::create_dir_all(tools.lab.root().join("bin")).unwrap();
    fs::write(tools.program("tool"), "mine").unwrap();
    tools
        .qk(&["fetch", "tool"])
        .failed(1, &["tool already exists in", "--force overwrites it"]);
    assert_eq!(fs::read_to_string(tools.program("tool")).unwrap(), "mine");
    tools.qk(&["fetch", "tool", "--no-track", "--force"]).done();
    assert_eq!(
        run(&mut Command::new(tools.program("tool"))).stdout,
        "tool 1.0.0\n"
    );
    assert_eq!(tools.cargo(&["install", "--list"]), "");
    tools
        .qk(&["fetch", "tool", "--no-track"])
        .failed(1, &["already exists"]);
    tools.qk(&["fetch", "tool", "--force"]).done();
    assert_eq!(
        tools.cargo(&["install", "--list"]),
        "tool v1.0.0:\n    tool\n"
    );
    tools
        .qk(&["fetch", "tool", "--force", "--bin", "other"])
        .failed(10, &["tool has no executable other; it has tool"]);
    tools.qk(&["fetch", "tool", "--bin", "tool"]).done();
}

#[test]
fn people_read_this() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    tools.publish("more", "1.0.0");
    let ago = |text: String| {
        let words = text.split(' ').collect::<Vec<_>>();
        let secs = words
            .iter()
            .position(|word| *word == "ago" || word.starts_with("ago\n"));
        assert!(secs.is_some(), "{text}");
        text
    };
    // Who vouches is shown once, before anything is installed.
    let planned = ago(tools.said(&["fetch", "more", "tool", "--dry-run"]));
    assert!(!planned.contains("who vouches"), "{planned}");
    let first = tools.said(&["fetch", "more"]);
    let (done, screen) = first.split_at(first.find("for the first time").unwrap());
    assert!(done.ends_with("\n  installed ROOT/bin/more\n"), "{done}");
    let network = tools.lab.joined(CLIENT).network.id().to_string();
    assert_eq!(
        screen.replace(&network, "NETWORK"),
        "for the first time something is to be taken from network lab\n\
         \x20 fingerprint NETWORK\n\
         \x20 who vouches\n\
         \x20   alice  publisher, verifier\n\
         \x20   bob    verifier\n\
         \x20   carol  verifier\n\
         \x20 what is trusted\n\
         \x20   what 2 of them observed alike\n\
         \x20   where one differs, nothing\n"
    );

    let planned = ago(tools.said(&["fetch", "tool", "--dry-run"]));
    assert!(
        planned.starts_with("tool 1.0.0  would be fetched, "),
        "{planned}"
    );
    assert!(
        planned.contains(" KiB, 2 of 3 principals, newest "),
        "{planned}"
    );
    let done = ago(tools.said(&["fetch", "tool"]));
    assert!(
        done.contains("  2 of 3 principals, newest ")
            && done.ends_with("\n  installed ROOT/bin/tool\n"),
        "{done}"
    );
    assert_eq!(
        tools.said(&["fetch", "tool"]),
        "tool 1.0.0  is up to date\n"
    );
    tools.qk(&["uninstall", "more"]).done();
    assert_eq!(tools.said(&["list"]), "tool v1.0.0:\n    tool\n");
    fs::remove_file(tools.program("tool")).unwrap();
    assert_eq!(
        tools.said(&["list"]),
        "tool v1.0.0:\n    tool\nnote: tool of tool is not there any more; `qk fetch tool` puts it back\n"
    );
    tools.publish("tool", "1.1.0");
    let upgraded = tools.said(&["upgrade"]);
    assert!(
        upgraded.ends_with("  installed ROOT/bin/tool, in place of 1.0.0\n"),
        "{upgraded}"
    );
    assert_eq!(
        tools.said(&["uninstall", "tool"]),
        "tool 1.1.0  removed ROOT/bin/tool\n"
    );
    assert_eq!(
        tools.said(&["uninstall", "tool"]),
        "error: tool is not installed in ROOT\n  hint: `qk list` shows what is installed\n"
    );
    assert_eq!(tools.said(&["upgrade"]), "nothing is installed in ROOT\n");
}

/// A document with what differs from run to run left out.
fn stable(document: &Value) -> Value {
    const VARYING: [&str; 12] = [
        "source",
        "lock",
        "key_id",
        "root",
        "bytes",
        "providers",
        "blocks_verified",
        "observations",
        "archive",
        "stages",
        "seconds",
        "rustc",
    ];
    match document {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| match VARYING.contains(&name.as_str()) {
                true => (name.clone(), json!("…")),
                false => (name.clone(), stable(value)),
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(all) => all.iter().map(stable).collect(),
        other => other.clone(),
    }
}

#[test]
fn programs_read_this() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    let program = tools.program("tool");
    let root = tools.lab.root();
    let document = |args: &[&str]| {
        let mut said = stable(&tools.qk(args).json());
        assert_eq!(
            said.as_object_mut().unwrap().remove("schema"),
            Some(1.into())
        );
        said
    };

    assert_eq!(
        document(&["fetch", "tool", "--dry-run"]),
        json!({"crates": [], "seconds": "…", "planned": [{
            "name": "tool", "version": "1.0.0", "how": "network", "target": "x86_64-unknown-linux-gnu",
            "root": "…", "bytes": "…", "network": "lab", "observations": "…", "principals": 3,
        }]})
    );
    assert_eq!(
        document(&["fetch", "tool"]),
        json!({"seconds": "…", "crates": [{
            "name": "tool", "version": "1.0.0", "how": "network", "source": "…", "lock": "…", "key_id": "…",
            "root": "…", "bytes": "…", "providers": "…", "blocks_verified": "…", "network": "lab",
            "observations": "…", "principals": 3, "yanked": false, "rebuilt": false, "archive": "…",
            "installed": [program], "stages": "…",
        }]})
    );
    assert_eq!(
        document(&["fetch", "tool", "not-there", "--fallback", "none"]),
        json!({
            "crates": [], "seconds": "…",
            "up_to_date": [{"name": "tool", "version": "1.0.0", "installed": [program]}],
            "failures": [{
                "crate": "not-there", "kind": "not-found", "exit_code": 10,
                "error": "there is no crate not-there in crates.io",
                "hint": "`qk search` looks for crates, `qk store ls` lists what is here",
            }],
            "exit_code": 10, "error": "there is no crate not-there in crates.io",
        })
    );
    assert_eq!(
        document(&["list"]),
        json!({"packages": [{
            "name": "tool", "version": "1.0.0", "source": "…", "bins": ["tool"], "version_req": null,
            "features": [], "all_features": false, "no_default_features": false, "profile": "release",
            "target": "x86_64-unknown-linux-gnu", "rustc": "…", "partial": false,
        }]})
    );
    assert_eq!(
        document(&["upgrade"]),
        json!({"crates": [], "seconds": "…", "up_to_date": [{"name": "tool", "version": "1.0.0"}]})
    );
    let missing = format!("a is not installed in {}", root.display());
    assert_eq!(
        document(&["uninstall", "tool", "a"]),
        json!({
            "crates": [{"name": "tool", "version": "1.0.0", "executables": [program]}],
            "failures": [{
                "crate": "a", "kind": "not-found", "exit_code": 10, "error": missing,
                "hint": "`qk list` shows what is installed",
            }],
            "exit_code": 10, "error": missing,
        })
    );
    assert_eq!(document(&["list"]), json!({"packages": []}));
    assert_eq!(
        document(&["upgrade"]),
        json!({"crates": [], "seconds": "…"})
    );
}

#[test]
fn what_was_yanked_is_taken_only_by_its_own_name() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    tools.publish("tool", "1.1.0");
    tools.crates.yank("tool", "1.1.0");
    assert_eq!(
        tools.qk(&["fetch", "tool"]).done()["crates"][0]["version"],
        "1.0.0"
    );
    tools.qk(&["fetch", "tool@^1.1"]).failed(
        10,
        &["tool 1.1.0 was yanked from its registry; there is 1.0.0"],
    );
    let said = tools.said(&["fetch", "tool@1.1.0"]);
    assert!(said.contains("warning: tool@1.1.0 was yanked"), "{said}");
    let one = tools.qk(&["fetch", "tool@1.1.0", "--force"]).done();
    assert_eq!(one["crates"][0]["yanked"], true, "{one}");
}

#[test]
fn the_root_is_where_cargo_has_it() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    let dir = tools.lab.dir();
    let [named, configured] = ["named", "configured"].map(|name| dir.join(name));
    let home = tools.crates.variable().1;
    let fetch = |variable: Option<&PathBuf>| {
        let mut fetch = tools.lab.command(CLIENT, &["fetch", "tool", "--json"]);
        fetch.env_remove("CARGO_INSTALL_ROOT");
        if let Some(root) = variable {
            fetch.env("CARGO_INSTALL_ROOT", root);
        }
        run(&mut fetch).done()["crates"][0]["installed"][0].clone()
    };
    let program = |root: &PathBuf| root.join("bin/tool").to_str().unwrap().to_owned();
    assert_eq!(fetch(None), program(&home));
    let config = home.join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[install]\nroot = {configured:?}\n")).unwrap();
    assert_eq!(fetch(None), program(&configured));
    assert_eq!(fetch(Some(&named)), program(&named));
    let explicit = tools.qk(&["fetch", "tool"]).done();
    assert_eq!(
        explicit["crates"][0]["installed"][0],
        program(&tools.lab.root())
    );
}

/// `QK_CARGO_BINSTALL` names the program, which takes minutes to build and is not built here.
#[test]
#[ignore = "needs cargo-binstall"]
fn what_binstall_installed_qk_knows_and_the_other_way_round() {
    let binstall = std::env::var_os("QK_CARGO_BINSTALL").expect("a path to cargo-binstall");
    let mut lab = Lab::new();
    // It takes nothing but HTTPS.
    let address = format!("127.0.0.1:{}", free_port());
    let home = lab.home(ALICE).dir().to_owned();
    certificate(&home).expect("openssl is installed");
    let files = "tls_certificate = \"own.pem\"\ntls_key = \"key.pem\"\n";
    lab.configure(
        ALICE,
        &format!("[gateway]\nlisten = \"{address}\"\n{files}"),
    );
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let root = lab.root();
    let binstall = |more: &[&str]| {
        let url = format!("https://{address}/{{ name }}/{{ version }}/{{ target }}.tgz");
        let mut command = Command::new(&binstall);
        command
            .args([
                SPEC,
                "--no-confirm",
                "--disable-telemetry",
                "--strategies",
                "crate-meta-data",
            ])
            .args([
                "--pkg-fmt",
                "tgz",
                "--bin-dir",
                "{ bin }{ binary-ext }",
                "--pkg-url",
                &url,
                "--root-certificates",
            ])
            .arg(home.join("own.pem"))
            .args(more)
            .arg("--root")
            .arg(&root);
        command
    };
    let install = |more: &[&str]| {
        let ran = run(&mut binstall(more));
        assert_eq!(ran.code(), 0, "{ran:?}");
        format!("{}{}", ran.stdout, ran.stderr)
    };
    let qk = |args: &[&str]| {
        let root = ["--root", root.to_str().unwrap()];
        lab.qk(CLIENT, &[args, &root].concat()).done()
    };
    let records = || fs::read_to_string(root.join("binstall/crates-v1.json")).unwrap();
    install(&[]);
    assert!(
        records().contains(r#""current_version":"0.17.0""#),
        "{}",
        records()
    );
    assert_eq!(qk(&["list"])["packages"][0]["name"], "hexyl");
    assert_eq!(qk(&["fetch", SPEC])["up_to_date"][0]["name"], "hexyl");
    qk(&["uninstall", "hexyl"]);
    assert_eq!(records(), "");
    assert_eq!(qk(&["list"])["packages"], json!([]));
    // The other way round: what qk wrote down is read, and left alone.
    qk(&["fetch", SPEC]);
    let written = records();
    assert!(
        written.contains(r#""current_version":"0.17.0""#),
        "{written}"
    );
    let said = install(&[]);
    assert!(said.contains("already installed"), "{said}");
    install(&["--force"]);
    assert_eq!(qk(&["list"])["packages"][0]["version"], "0.17.0");
    // It checks the gateway's signature where a manifest names the key, and takes nothing by another one.
    let signed_by = |who: &str| {
        let key = run(&mut lab.command(who, &["node", "gateway-key"])).stdout;
        let dir = lab.dir().join("signed");
        fs::create_dir_all(dir.join("src")).unwrap();
        fs::write(dir.join("src/main.rs"), "fn main() {}\n").unwrap();
        let manifest = format!(
            "[package]\nname = \"hexyl\"\nversion = \"0.17.0\"\nedition = \"2021\"\n\
             [package.metadata.binstall.signing]\nalgorithm = \"minisign\"\npubkey = {:?}\n",
            key.trim()
        );
        fs::write(dir.join("Cargo.toml"), manifest).unwrap();
        let dir = dir.to_str().unwrap();
        run(&mut binstall(&[
            "--force",
            "--only-signed",
            "--manifest-path",
            dir,
        ]))
    };
    let ran = signed_by(ALICE);
    assert_eq!(ran.code(), 0, "{ran:?}");
    let ran = signed_by(BOB);
    assert!(
        ran.code() != 0 && ran.stdout.contains("different key"),
        "{ran:?}"
    );
}
