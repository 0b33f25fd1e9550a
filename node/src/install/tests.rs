use std::process::Command;

use super::*;

const SOURCE: &str = "sparse+https://registry.example/index/";

fn release(name: &str, version: &str) -> Release {
    Release {
        registry: SOURCE.into(),
        name: name.into(),
        version: version.into(),
    }
}

fn meta() -> InstallMeta {
    InstallMeta {
        profile: "release".into(),
        target: "x86_64-unknown-linux-gnu".into(),
        rustc: "rustc 1.95.0".into(),
        ..InstallMeta::default()
    }
}

fn forced(force: bool) -> InstallOptions {
    InstallOptions {
        force,
        ..InstallOptions::default()
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A root, and a directory with files to install.
struct Place {
    dir: tempfile::TempDir,
    root: InstallRoot,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = InstallRoot(dir.path().join("root"));
        Self { dir, root }
    }

    fn install(
        &self,
        version: &str,
        bins: &[&str],
        force: bool,
    ) -> Result<Installed, InstallError> {
        let files = files(self.dir.path(), version, bins);
        self.root
            .install(&release("tool", version), &files, &meta(), forced(force))
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.root.bin().join(name)
    }

    /// The executables of version 1.0.0, if it is installed with these choices.
    fn current(&self, meta: &InstallMeta, bins: &[&str]) -> Option<BTreeSet<String>> {
        let listed = self.root.list().unwrap();
        listed.current(&release("tool", "1.0.0"), meta, &names(bins))
    }

    /// Every name in `bin` with its content.
    fn bins(&self) -> BTreeMap<String, String> {
        bins(&self.root)
    }

    fn cargo(&self, args: &[&str]) -> (bool, String) {
        let root = self.root.path().to_str().unwrap();
        let output = Command::new("cargo")
            .args(args)
            .args(["--root", root])
            .env("CARGO_TARGET_DIR", self.dir.path().join("target"))
            .env_remove("RUSTFLAGS")
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Has cargo itself install a package named `tool` with these executables.
    fn cargo_install(&self, version: &str, bins: &[&str]) {
        let package = self.dir.path().join(format!("tool-{version}"));
        std::fs::create_dir_all(package.join("src/bin")).unwrap();
        let manifest =
            format!("[package]\nname='tool'\nversion='{version}'\nedition='2021'\n[workspace]\n");
        std::fs::write(package.join("Cargo.toml"), manifest).unwrap();
        for bin in bins {
            let file = package.join(format!("src/bin/{bin}.rs"));
            std::fs::write(file, "fn main() {}").unwrap();
        }
        let (ok, text) = self.cargo(&["install", "--offline", "--path", package.to_str().unwrap()]);
        assert!(ok, "{text}");
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.path().join(name)).unwrap()
    }
}

fn files(dir: &Path, version: &str, bins: &[&str]) -> BTreeMap<String, PathBuf> {
    let file = |bin: &&str| {
        let file = dir.join(format!("{bin}-{version}"));
        std::fs::write(&file, format!("{bin} {version}")).unwrap();
        ((*bin).to_owned(), file)
    };
    bins.iter().map(file).collect()
}

fn bins(root: &InstallRoot) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(root.bin())
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let name = entry.file_name().into_string().unwrap();
            (name, String::from_utf8_lossy(&text).into_owned())
        })
        .collect()
}

#[test]
fn cargo_lists_and_uninstalls_what_was_installed() {
    let place = Place::new();
    let started = std::time::Instant::now();
    let done = place.install("1.0.0", &["one", "two"], false).unwrap();
    println!("installed in {:?}", started.elapsed());
    assert_eq!(done.executables, [place.bin("one"), place.bin("two")]);
    assert!(done.replaced.is_empty());
    let (ok, list) = place.cargo(&["install", "--list"]);
    assert!(ok);
    assert_eq!(
        list,
        format!("tool v1.0.0 (registry `{SOURCE}`):\n    one\n    two\n")
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = place.bin("one").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o022, 0o755);
    }
    assert_eq!(place.current(&meta(), &[]), Some(names(&["one", "two"])));
    assert!(place.current(&meta(), &["two"]).is_some());
    assert!(place.current(&meta(), &["three"]).is_none());
    let other = InstallMeta {
        all_features: true,
        ..meta()
    };
    assert_eq!(place.current(&other, &[]), None);

    let (ok, text) = place.cargo(&["uninstall", "tool"]);
    assert!(ok, "{text}");
    assert!(place.bins().is_empty());
    assert_eq!(place.current(&meta(), &[]), None);
}

#[test]
fn replaces_what_cargo_installed() {
    let place = Place::new();
    place.cargo_install("0.1.0", &["one", "gone"]);
    let done = place.install("1.0.0", &["one", "new"], false).unwrap();
    assert_eq!(done.replaced, ["one".to_owned()].into());
    assert_eq!(done.removed, ["gone".to_owned()].into());
    let (_, list) = place.cargo(&["install", "--list"]);
    assert_eq!(
        list,
        format!("tool v1.0.0 (registry `{SOURCE}`):\n    new\n    one\n")
    );
    assert_eq!(place.bins().keys().collect::<Vec<_>>(), ["new", "one"]);

    // And cargo replaces what was installed here.
    place.cargo_install("2.0.0", &["one"]);
    let (_, list) = place.cargo(&["install", "--list"]);
    assert!(list.starts_with("tool v2.0.0 ("), "{list}");
    assert_eq!(place.bins().keys().collect::<Vec<_>>(), ["one"]);
    insta::assert_snapshot!(place.install("3.0.0", &["../one"], true).unwrap_err(), @r#""../one" is not a name for an executable"#);
}

#[test]
fn keeps_what_is_not_its_own() {
    let place = Place::new();
    place.install("1.0.0", &["one"], false).unwrap();
    let key = package_key(&release("tool", "1.0.0"));
    let toml = format!("future = 1 # kept\n{}", place.text(".crates.toml"));
    std::fs::write(place.root.path().join(".crates.toml"), toml).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&place.text(".crates2.json")).unwrap();
    json["future"] = "kept".into();
    json["installs"][&key]["more"] = 7.into();
    std::fs::write(place.root.path().join(".crates2.json"), json.to_string()).unwrap();
    let (ok, text) = place.cargo(&["install", "--list"]);
    assert!(ok, "{text}");

    let other = files(place.dir.path(), "9", &["another"]);
    let result = place
        .root
        .install(&release("other", "9.0.0"), &other, &meta(), forced(false));
    result.unwrap();
    place.install("1.0.0", &["one"], false).unwrap();
    assert!(
        place
            .text(".crates.toml")
            .starts_with("future = 1 # kept\n")
    );
    let json: serde_json::Value = serde_json::from_str(&place.text(".crates2.json")).unwrap();
    assert_eq!(json["future"], "kept");
    assert_eq!(json["installs"][&key]["more"], 7);
    assert_eq!(json["installs"].as_object().unwrap().len(), 2);
}

#[test]
fn what_belongs_to_others_is_taken_by_force_only() {
    let place = Place::new();
    place.install("1.0.0", &["one", "two"], false).unwrap();
    std::fs::write(place.bin("mine"), "by hand").unwrap();
    let before = (
        place.bins(),
        place.text(".crates.toml"),
        place.text(".crates2.json"),
    );
    let install = |bins: &[&str], force| {
        let files = files(place.dir.path(), "5.0.0", bins);
        place
            .root
            .install(&release("other", "5.0.0"), &files, &meta(), forced(force))
    };
    let dir = place.root.bin().display().to_string();
    let refused = install(&["new", "two"], false).unwrap_err().to_string();
    insta::assert_snapshot!(refused.replace(&dir, "BIN"), @"two already exists in BIN as part of tool 1.0.0 (sparse+https://registry.example/index/); --force overwrites it");
    let refused = install(&["mine"], false).unwrap_err().to_string();
    insta::assert_snapshot!(refused.replace(&dir, "BIN"), @"mine already exists in BIN; --force overwrites it");
    assert_eq!(
        before,
        (
            place.bins(),
            place.text(".crates.toml"),
            place.text(".crates2.json")
        )
    );

    install(&["mine", "two"], true).unwrap();
    let (_, list) = place.cargo(&["install", "--list"]);
    let expected = format!(
        "other v5.0.0 (registry `{SOURCE}`):\n    mine\n    two\ntool v1.0.0 (registry `{SOURCE}`):\n    one\n"
    );
    assert_eq!(list, expected);
}

#[test]
fn an_error_half_way_restores_everything() {
    let place = Place::new();
    place.install("1.0.0", &["a", "b", "z"], false).unwrap();
    // A directory in the place of the last executable lets its renaming fail, after the others.
    std::fs::remove_file(place.bin("z")).unwrap();
    std::fs::create_dir(place.bin("z")).unwrap();
    let before = (
        place.bins(),
        place.text(".crates.toml"),
        place.text(".crates2.json"),
    );
    let error = place
        .install("2.0.0", &["a", "new", "z"], true)
        .unwrap_err();
    assert!(matches!(error, InstallError::Io { .. }), "{error}");
    assert_eq!(
        before,
        (
            place.bins(),
            place.text(".crates.toml"),
            place.text(".crates2.json")
        )
    );
    // The same where a file cannot be copied.
    let mut missing = files(place.dir.path(), "2.0.0", &["a"]);
    missing.insert("b".into(), place.dir.path().join("missing"));
    let release = release("tool", "2.0.0");
    assert!(
        place
            .root
            .install(&release, &missing, &meta(), forced(true))
            .is_err()
    );
    assert_eq!(
        before,
        (
            place.bins(),
            place.text(".crates.toml"),
            place.text(".crates2.json")
        )
    );
}

#[test]
fn files_that_a_crash_tore_are_whole_again() {
    let place = Place::new();
    place.install("1.0.0", &["a", "b"], false).unwrap();
    let before = [place.text(".crates.toml"), place.text(".crates2.json")];
    place.install("2.0.0", &["b", "c"], false).unwrap();
    let after = [place.text(".crates.toml"), place.text(".crates2.json")];
    let names = [".crates.toml", ".crates2.json"].map(|name| place.root.path().join(name));
    let plan = Plan {
        key: package_key(&release("tool", "2.0.0")),
        bins: ["b".to_owned(), "c".to_owned()].into(),
        orphans: BTreeMap::from([(
            package_key(&release("tool", "1.0.0")),
            ["a".to_owned()].into(),
        )]),
        meta: meta(),
        texts: after.to_vec(),
    };
    let torn = |text: &str| {
        (0..text.len())
            .step_by(7)
            .map(|end| text[..end].to_owned())
            .collect::<Vec<_>>()
    };
    let mut states: Vec<[String; 2]> = torn(&after[0])
        .into_iter()
        .map(|toml| [toml, before[1].clone()])
        .collect();
    states.extend(
        torn(&after[1])
            .into_iter()
            .map(|json| [after[0].clone(), json]),
    );
    states.push(before);
    for state in states {
        names
            .iter()
            .zip(&state)
            .for_each(|(file, text)| std::fs::write(file, text).unwrap());
        plan.commit(place.root.path(), &[]).unwrap();
        let locked = Locked::take(place.root.path()).unwrap();
        journal::recover(place.root.path(), &locked).unwrap();
        assert_eq!(locked.texts().unwrap(), after, "after {state:?}");
    }
}

#[test]
fn waits_for_cargos_lock() {
    let place = Place::new();
    place.install("1.0.0", &["one"], false).unwrap();
    let held = Locked::take(place.root.path()).unwrap();
    let (started, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let place = &place;
        scope.spawn(move || {
            place.install("2.0.0", &["one"], false).unwrap();
            started.send(()).unwrap();
        });
        let wait = std::time::Duration::from_millis(200);
        assert!(done.recv_timeout(wait).is_err());
        assert_eq!(place.bins()["one"], "one 1.0.0");
        drop(held);
        done.recv().unwrap();
    });
    assert_eq!(place.bins()["one"], "one 2.0.0");
}

#[test]
fn uninstalls_what_cargo_installed_and_all_or_some_of_it() {
    let place = Place::new();
    insta::assert_snapshot!(
        place.root.uninstall("tool", None, &names(&[])).unwrap_err().to_string().replace(place.root.path().to_str().unwrap(), "ROOT"),
        @"tool is not installed in ROOT"
    );
    assert!(!place.root.path().exists(), "a failure makes no files");
    place.cargo_install("0.1.0", &["one", "two", "three"]);
    let error = place.root.uninstall("tool", None, &names(&["one", "four"]));
    insta::assert_snapshot!(error.unwrap_err(), @"tool has no executable four; it has one, three, two");
    assert!(
        place
            .root
            .uninstall("tool", Some("9.0.0"), &names(&[]))
            .is_err()
    );
    assert_eq!(place.bins().len(), 3, "a failure takes nothing away");

    let done = place
        .root
        .uninstall("tool", None, &names(&["two"]))
        .unwrap();
    assert_eq!(done.executables, [place.bin("two")]);
    let (_, list) = place.cargo(&["install", "--list"]);
    assert!(list.ends_with("):\n    one\n    three\n"), "{list}");
    let packages = place.root.list().unwrap().packages();
    assert_eq!((packages.len(), &*packages[0].version), (1, "0.1.0"));
    assert!(
        packages[0].source.starts_with("path+file://"),
        "{packages:?}"
    );

    // One that is gone already does not keep the others.
    std::fs::remove_file(place.bin("one")).unwrap();
    let packages = place.root.list().unwrap().packages();
    assert_eq!(packages[0].missing, names(&["one"]));
    place
        .root
        .uninstall("tool", Some("0.1.0"), &names(&[]))
        .unwrap();
    assert!(place.bins().is_empty());
    let (_, list) = place.cargo(&["install", "--list"]);
    assert_eq!(list, "");
    assert!(place.root.list().unwrap().packages().is_empty());
}

#[test]
fn two_packages_of_one_name_are_told_apart() {
    let place = Place::new();
    place.cargo_install("0.1.0", &["one"]);
    place.install("1.0.0", &["two"], false).unwrap();
    let error = place.root.uninstall("tool", None, &names(&[])).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("tool is installed more than once: tool 0.1.0 (path+")
    );
    place
        .root
        .uninstall("tool", Some("1.0.0"), &names(&[]))
        .unwrap();
    assert_eq!(place.bins().keys().collect::<Vec<_>>(), ["one"]);
}

#[test]
fn a_part_is_not_the_whole() {
    let place = Place::new();
    let part = InstallMeta {
        partial: true,
        ..meta()
    };
    let files = files(place.dir.path(), "1.0.0", &["one"]);
    let install = |meta: &InstallMeta| {
        let done = place
            .root
            .install(&release("tool", "1.0.0"), &files, meta, forced(false));
        done.unwrap();
    };
    install(&part);
    assert_eq!(place.current(&meta(), &[]), None);
    assert!(place.current(&part, &["one"]).is_some());
    let (ok, text) = place.cargo(&["install", "--list"]);
    assert!(ok, "{text}");
    install(&meta());
    assert!(place.current(&meta(), &[]).is_some());
}

#[test]
fn what_is_not_tracked_touches_no_list_and_overwrites_nothing() {
    let place = Place::new();
    place.install("1.0.0", &["one"], false).unwrap();
    let before = [place.text(".crates.toml"), place.text(".crates2.json")];
    let untracked = |bins: &[&str], force| {
        let files = files(place.dir.path(), "5.0.0", bins);
        let options = InstallOptions {
            force,
            track: false,
        };
        place
            .root
            .install(&release("tool", "5.0.0"), &files, &meta(), options)
    };
    untracked(&["two", "three"], false).unwrap();
    assert!(matches!(
        untracked(&["one"], false),
        Err(InstallError::Taken { .. })
    ));
    untracked(&["two"], true).unwrap();
    assert_eq!(place.bins().len(), 3);
    assert_eq!(
        before,
        [place.text(".crates.toml"), place.text(".crates2.json")]
    );
    let fresh = InstallRoot(place.dir.path().join("fresh"));
    let files = files(place.dir.path(), "5.0.0", &["one"]);
    let options = InstallOptions {
        track: false,
        ..InstallOptions::default()
    };
    let done = fresh.install(&release("tool", "5.0.0"), &files, &meta(), options);
    done.unwrap();
    let made: Vec<_> = std::fs::read_dir(fresh.path()).unwrap().collect();
    assert_eq!(made.len(), 1, "only bin: {made:?}");
}

#[test]
fn an_untracked_installation_that_was_killed_is_finished_and_not_written_down() {
    let place = Place::new();
    std::fs::create_dir_all(place.root.bin()).unwrap();
    let plan = Plan {
        key: package_key(&release("tool", "1.0.0")),
        bins: names(&["a", "b"]),
        orphans: BTreeMap::new(),
        meta: meta(),
        texts: Vec::new(),
    };
    for bin in ["a", "b"] {
        std::fs::write(place.bin(&journal::copy_name(bin)), bin).unwrap();
    }
    plan.commit(place.root.path(), &[]).unwrap();
    std::fs::rename(place.bin(&journal::copy_name("a")), place.bin("a")).unwrap();
    let files = files(place.dir.path(), "1.0.0", &["c"]);
    let options = InstallOptions {
        track: false,
        ..InstallOptions::default()
    };
    let done = place
        .root
        .install(&release("other", "1.0.0"), &files, &meta(), options);
    done.unwrap();
    assert_eq!(place.bins().keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(place.root.list().unwrap().packages().is_empty());
}

#[test]
fn binstalls_list_is_brought_in_line_where_there_is_one() {
    let place = Place::new();
    let path = place.root.path().join(binstall::RECORDS);
    place.install("1.0.0", &["one"], false).unwrap();
    assert!(!path.exists(), "it is not made for those who do not use it");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, r#"{"name":"tool","version_req":"*","current_version":"1.0.0","source":{"source_type":"Sparse","url":"https://registry.example/index/"},"target":"x","bins":["one"]}"#).unwrap();
    place.install("2.0.0", &["one", "two"], false).unwrap();
    insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap(), @r#"{"bins":["one","two"],"current_version":"2.0.0","name":"tool","source":{"source_type":"Sparse","url":"https://registry.example/index/"},"target":"x86_64-unknown-linux-gnu","version_req":"*"}"#);
    place.root.uninstall("tool", None, &names(&[])).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    // One that cannot be read is left alone.
    std::fs::write(&path, "{").unwrap();
    place.install("2.0.0", &["one"], false).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
}

/// Not a test of its own: what `a_full_disk_leaves_everything` starts.
#[test]
#[ignore = "needs a root from its caller"]
fn install_once() {
    let root = InstallRoot(std::env::var_os("QK_TEST_ROOT").unwrap().into());
    let file = std::env::var_os("QK_TEST_FILE").unwrap().into();
    let bins = BTreeMap::from([("one".to_owned(), file)]);
    let error = root.install(&release("tool", "2.0.0"), &bins, &meta(), forced(false));
    assert!(matches!(error.unwrap_err(), InstallError::Io { .. }));
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_everything() {
    let place = Place::new();
    place.install("1.0.0", &["one"], false).unwrap();
    let toml = place.text(".crates.toml");
    let long = format!("{toml}# {}\n", "x".repeat(300_000));
    let large = place.dir.path().join("large");
    std::fs::write(&large, "x".repeat(300_000)).unwrap();
    let small = place.dir.path().join("small");
    std::fs::write(&small, "x").unwrap();
    // A write fails half way through an executable, and through the list of what is installed.
    for (toml, file) in [(toml, large), (long, small)] {
        std::fs::write(place.root.path().join(".crates.toml"), toml).unwrap();
        let before = (
            place.bins(),
            place.text(".crates.toml"),
            place.text(".crates2.json"),
        );
        let script = "trap '' XFSZ; ulimit -f 200; exec \"$0\" install::tests::install_once --exact --ignored";
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .env("QK_TEST_ROOT", place.root.path())
            .env("QK_TEST_FILE", file)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert_eq!(
            before,
            (
                place.bins(),
                place.text(".crates.toml"),
                place.text(".crates2.json")
            )
        );
    }
    let names: BTreeSet<_> = std::fs::read_dir(place.root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names,
        [".crates.toml", ".crates2.json", "bin"]
            .map(str::to_owned)
            .into()
    );
}

const VERSIONS: [(&str, [&str; 3]); 2] = [("1.0.0", ["a", "b", "c"]), ("2.0.0", ["b", "c", "d"])];

/// Not a test of its own: what `survives_being_killed` starts and kills.
#[test]
#[ignore = "runs until it is killed"]
fn install_for_ever() {
    let root = InstallRoot(std::env::var_os("QK_TEST_ROOT").unwrap().into());
    let dir = tempfile::tempdir_in(root.path()).unwrap();
    loop {
        for (version, names) in VERSIONS {
            let files = files(dir.path(), version, &names);
            let release = release("tool", version);
            root.install(&release, &files, &meta(), forced(false))
                .unwrap();
        }
        root.uninstall("tool", None, &names(&["b"])).unwrap();
    }
}

#[test]
fn survives_being_killed() {
    let place = Place::new();
    place.install("1.0.0", &VERSIONS[0].1, false).unwrap();
    let mut pending = 0;
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["install::tests::install_for_ever", "--exact", "--ignored"])
            .env("QK_TEST_ROOT", place.root.path())
            .env("TMPDIR", place.dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(20_000 + round * 777));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child ended by itself"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        pending += usize::from(journal::is_pending(place.root.path()));

        let locked = Locked::take(place.root.path()).unwrap();
        journal::recover(place.root.path(), &locked).unwrap();
        let packages = locked.read().unwrap().packages();
        // The last one is what an uninstallation of `b` leaves.
        let states = [VERSIONS[0], VERSIONS[1]].map(|(version, bins)| (version, names(&bins)));
        let left = ("2.0.0", names(&["c", "d"]));
        let state = states.iter().chain([&left]).find(|(version, names)| {
            let key = package_key(&release("tool", version));
            let content = |name: &String| (name.clone(), format!("{name} {version}"));
            packages == BTreeMap::from([(key, names.clone())])
                && place.bins() == names.iter().map(content).collect()
        });
        assert!(
            state.is_some(),
            "round {round}: {packages:?} {:?}",
            place.bins()
        );
    }
    println!("killed 40 times, {pending} of them with a journal to finish");
}
