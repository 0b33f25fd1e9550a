//! What stands against an installation: wrong words, other owners, bad disks, no time, odd terminals.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qk_protocol::key::Linker;
use qk_tests::artifact::{Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, run};
use qk_tests::registry::{ENDLESS, GOOD};

use crate::install::Tools;
use crate::interrupted::Small;

#[test]
fn words_that_contradict_each_other_are_named() {
    let lab = Lab::empty();
    for (args, says) in [
        (
            &["tool", "--offline", "--refresh"][..],
            "cannot be used with",
        ),
        (
            &["tool", "--index", "a", "--registry", "b"],
            "cannot be used with",
        ),
        (
            &["tool", "--deadline", "0"],
            "in no time nothing can be done",
        ),
        (&["tool", "--deadline", "soon"], "is no time such as 90s"),
        (&["tool", "--version", "1"], "give all three numbers"),
        (
            &["tool", "--registry", "nowhere"],
            "has no registry nowhere",
        ),
        (&["tool", "--index", "file:///nowhere"], "file:///nowhere"),
        (&["tool@"], "not a version"),
        (&["-"], "name"),
        (&[], "CRATE"),
    ] {
        let ran = lab.qk(CLIENT, &[&["fetch"], args].concat());
        assert!([1, 2].contains(&ran.code()), "{args:?}: {ran:?}");
        ran.failed(ran.code(), &[says]);
    }
    let invalid = OsStr::from_bytes(b"to\xffol");
    lab.qk(CLIENT, &[OsStr::new("fetch"), invalid])
        .failed(2, &["invalid UTF-8"]);
    lab.qk(CLIENT, &["uninstall", "tool@^1"])
        .failed(2, &["tool@^1: which version?"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn without_a_home_it_says_what_to_set() {
    let lab = Lab::empty();
    let mut list = lab.command(CLIENT, &["list"]);
    list.env_remove("HOME")
        .env_remove("QK_HOME")
        .env_remove("XDG_DATA_HOME");
    run(&mut list).failed(1, &["set QK_HOME to a directory"]);
    // With one for qk the user's own is not needed.
    let mut list = lab.command(CLIENT, &["list"]);
    let list = list.env_remove("HOME").arg("--root").arg(lab.root());
    assert_eq!(run(list).code(), 0);
}

#[test]
fn an_executable_of_another_crate_is_not_taken() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    let other = tools.lab.dir().join("other");
    fs::create_dir_all(other.join("src/bin")).unwrap();
    let manifest = "[package]\nname = 'other'\nversion = '0.1.0'\nedition = '2021'\n[workspace]\n";
    fs::write(other.join("Cargo.toml"), manifest).unwrap();
    fs::write(other.join("src/bin/tool.rs"), GOOD).unwrap();
    tools.cargo(&["install", "--offline", "--path", other.to_str().unwrap()]);
    let before = tools.lab.installed();
    tools.qk(&["fetch", "tool"]).failed(
        1,
        &[
            "tool already exists in",
            "as part of other 0.1.0",
            "--force overwrites it",
        ],
    );
    let after = tools.lab.installed();
    assert_eq!(before, after);
    tools
        .qk(&["upgrade", "other"])
        .failed(10, &["other was not installed from"]);
    tools.qk(&["fetch", "tool", "--force"]).done();
    assert_eq!(
        tools.cargo(&["install", "--list"]),
        "tool v1.0.0:\n    tool\n"
    );
}

#[test]
fn a_root_that_cannot_be_written_loses_nothing() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    let root = tools.lab.root();
    let Some(_small) = Small::with(&root, "size=8m,ro") else {
        eprintln!("skipped: only root may mount the file system that this needs");
        return;
    };
    tools.qk(&["fetch", "tool"]).failed(
        1,
        &["Read-only file system", "--root DIR installs elsewhere"],
    );
    tools
        .qk(&["uninstall", "tool"])
        .failed(10, &["not installed"]);
    // What was fetched is kept.
    let elsewhere = tools.lab.dir().join("elsewhere");
    let args = [
        "fetch",
        "tool",
        "--offline",
        "--root",
        elsewhere.to_str().unwrap(),
    ];
    assert_eq!(
        tools.lab.qk(CLIENT, &args).done()["crates"][0]["how"],
        "store"
    );
}

#[test]
fn a_root_without_space_stays_as_it_was() {
    let mut lab = Lab::new();
    let root = lab.root();
    let Some(_small) = Small::with(&root, "size=4m") else {
        eprintln!("skipped: only root may mount the file system that this needs");
        return;
    };
    lab.start_alice();
    let options = Options {
        padding_bytes: 6 << 20,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.fetch(&[SPEC])
        .failed(1, &["No space left", "free some space"]);
    let left: Vec<_> = lab
        .installed()
        .into_iter()
        .filter(|(_, (bytes, _))| *bytes > 0)
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let mut more = Command::new("mount");
    assert_eq!(
        run(more.args(["-o", "remount,size=100m"]).arg(&root)).code(),
        0
    );
    assert_eq!(lab.fetch(&[SPEC]).done()["crates"][0]["how"], "store");
}

#[test]
fn two_fetches_of_one_crate_do_not_disturb_each_other() {
    let mut lab = Lab::new();
    lab.start_alice();
    let options = Options {
        padding_bytes: 8 << 20,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let fetching: Vec<_> = (0..4)
        .map(|_| {
            let mut fetch = lab.fetch_command(CLIENT, &[SPEC]);
            fetch
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for one in fetching {
        let ran: qk_tests::lab::Ran = one.wait_with_output().unwrap().into();
        ran.done();
    }
    let program = run(&mut Command::new(lab.root().join("bin/hexyl")));
    assert_eq!(program.stdout, "hexyl 0.17.0\n");
    assert_eq!(lab.installed().len(), 3, "{:?}", lab.installed());
}

#[test]
fn a_deadline_holds_for_a_network_that_is_silent() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.signal(ALICE, "STOP");
    let began = Instant::now();
    lab.fetch(&[SPEC, "--deadline", "2s"]).failed(
        14,
        &[
            "hexyl@0.17.0",
            "the network did not answer within the deadline of 2 s",
        ],
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    lab.configure(CLIENT, "[fetch]\nlookup = \"1s\"\n");
    lab.fetch(&[SPEC]).failed(
        14,
        &["did not answer within 1 s, `fetch.lookup` of the configuration"],
    );
    assert!(lab.installed().is_empty());
    lab.signal(ALICE, "CONT");
    lab.fetch(&[SPEC, "--deadline", "60s"]).done();
}

#[test]
fn the_build_in_place_of_a_proof_is_bounded_too_and_says_why_it_was_needed() {
    let tools = Tools::new();
    tools.crates.add("endless", "1.0.0", GOOD, Some(ENDLESS));
    let began = Instant::now();
    let ran = tools.qk(&["fetch", "endless", "--deadline", "25s"]);
    if ran.error().contains("building needs") {
        eprintln!("skipped: the toolchain that builds is not here");
        return;
    }
    ran.failed(
        13,
        &[
            "the build was not done within the deadline of 25 s",
            "time-out",
        ],
    );
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let said = tools.said(&["fetch", "endless", "--deadline", "12s"]);
    assert!(
        said.contains("unproven: nobody observed it; building it here")
            || said.contains("; building it here"),
        "{said}"
    );
    // Without a build it ends with what the network said.
    tools
        .qk(&[
            "fetch",
            "endless",
            "--deadline",
            "25s",
            "--fallback",
            "none",
        ])
        .failed(11, &["unproven"]);
    assert!(tools.lab.installed().is_empty());
}

#[test]
fn a_dispute_is_never_answered_by_a_build() {
    let mut lab = Lab::new();
    lab.start_alice();
    let network = lab.joined(ALICE).network;
    lab.publish(ALICE, &artifact(&network));
    let options = Options {
        mark: " of bob's".to_owned(),
        ..Options::default()
    };
    lab.publish(BOB, &artifact_with(&network, &options));
    let root = lab.root();
    let args = [
        "fetch",
        SPEC,
        "--fallback",
        "build",
        "--root",
        root.to_str().unwrap(),
    ];
    lab.qk(CLIENT, &args)
        .failed(12, &["disputed", "alice", "bob"]);
    lab.qk(CLIENT, &[&args[..], &["--dry-run"]].concat())
        .failed(12, &["disputed"]);
    let explained = run(lab.command(CLIENT, &args).arg("--explain"));
    assert_eq!(explained.code(), 12);
    assert!(
        explained.stderr.contains("\n    alice            "),
        "{}",
        explained.stderr
    );
    assert!(lab.installed().is_empty());
}

#[test]
fn a_narrow_terminal_and_none_at_all_are_served() {
    let tools = Tools::new();
    tools.publish("tool", "1.0.0");
    let root = tools.lab.root();
    let none = run(tools
        .lab
        .command(CLIENT, &["fetch", "tool", "--root"])
        .arg(&root));
    assert!(
        !format!("{}{}", none.stdout, none.stderr).contains('\u{1b}'),
        "{none:?}"
    );
    // A terminal of 20 columns, where somebody says no and then yes.
    let at_terminal = |answer: &str| {
        let qk = tools
            .lab
            .command(CLIENT, &["fetch", "tool", "--force", "--root"]);
        let words: Vec<_> = qk.get_args().map(|word| word.to_str().unwrap()).collect();
        let line = format!(
            "stty cols 20; {} {} {}",
            qk.get_program().to_str().unwrap(),
            words.join(" "),
            root.display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        for (name, value) in qk.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        qk_tests::lab::feed(&mut script, answer)
    };
    let network = tools.lab.joined(CLIENT).network.id();
    let marker = tools
        .lab
        .home(CLIENT)
        .dir()
        .join(format!("networks/{network}.introduced"));
    fs::remove_file(&marker).expect("what was shown is remembered");
    let no = at_terminal("n\n");
    assert_eq!(no.code(), 11, "{no:?}");
    assert!(
        no.stdout.contains("take what they vouch for? [y/N]"),
        "{no:?}"
    );
    assert!(
        no.stdout
            .contains("network lab was not accepted: nothing was done")
    );
    assert!(!marker.exists());
    let yes = at_terminal("y\n");
    assert_eq!(yes.code(), 0, "{yes:?}");
    assert!(
        yes.stdout.contains("installed ") && marker.exists(),
        "{yes:?}"
    );
    let again = at_terminal("");
    assert!(!again.stdout.contains("who vouches"), "{again:?}");
}

const GNU: &str = "x86_64-unknown-linux-gnu";
const MUSL: &str = "x86_64-unknown-linux-musl";

fn without_glibc(linker: &mut Linker) {
    if let Linker::Zig { glibc, .. } = linker {
        *glibc = None;
    }
}

/// A network that builds for musl, too, and what its principals made of the crate for this machine.
fn with_musl(options: &Options) -> Lab {
    let mut lab = Lab::new();
    let next = lab.next_version(|manifest| {
        let mut musl = manifest.builds[0].clone();
        MUSL.clone_into(&mut musl.target);
        without_glibc(&mut musl.linker);
        manifest.builds.push(musl);
    });
    for name in [ALICE, BOB, CLIENT] {
        lab.know(name, next.clone());
    }
    lab.start_alice();
    let made = artifact_with(&next, options);
    let musl = Options {
        rekey: Some(|key| {
            key.target = MUSL.to_owned();
            without_glibc(&mut key.flags.linker);
        }),
        ..Options::default()
    };
    for artifact in [made, artifact_with(&next, &musl)] {
        lab.publish(ALICE, &artifact);
        lab.state(BOB, &artifact);
    }
    lab
}

#[test]
fn a_program_for_another_processor_is_not_installed() {
    let options = Options {
        machine: Some(183),
        ..Options::default()
    };
    let lab = with_musl(&options);
    lab.fetch(&[SPEC])
        .failed(16, &["hexyl: made for aarch64, and this machine is x86_64"]);
    assert!(lab.installed().is_empty());
}

#[test]
fn the_next_target_is_taken_where_the_first_does_not_run_here() {
    let options = Options {
        future_glibc: true,
        ..Options::default()
    };
    let lab = with_musl(&options);
    lab.fetch(&[SPEC, "--target", GNU])
        .failed(16, &["needs glibc 2.99"]);
    let ran = lab.fetch(&[SPEC, "--target", GNU, "--target", MUSL]);
    assert_eq!(ran.done()["crates"][0]["how"], "network");
    let tracked = fs::read_to_string(lab.root().join(".crates2.json")).unwrap();
    assert!(
        tracked.contains(&format!("\"target\":\"{MUSL}\"")),
        "{tracked}"
    );
    let mut said = lab.command(CLIENT, &["fetch", SPEC, "--force", "--target"]);
    let said = run(said
        .arg(format!("{GNU},{MUSL}"))
        .arg("--root")
        .arg(lab.root()));
    let expected = format!("hexyl@0.17.0 for {GNU}: hexyl: needs glibc 2.99");
    assert!(said.stderr.contains(&expected), "{said:?}");
    assert!(said.stderr.contains(&format!("trying {MUSL}")), "{said:?}");
}
