//! `qk run`: the same proof as `qk fetch`, and what becomes the program.

use std::fs::{self, File, FileTimes};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use qk_protocol::manifest::Blocked;
use qk_tests::artifact::{Artifact, CRATE, Options, SPEC, artifact, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run, send, wait};

/// `qk run`, without building.
fn ran(lab: &Lab, args: &[&str]) -> Ran {
    run(&mut command(lab, args))
}

fn command(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.command(CLIENT, &["run", "--fallback", "none"]);
    command.args(args);
    command
}

fn proven() -> (Lab, Artifact) {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    (lab, artifact)
}

/// Where the client's executable is, once it ran.
fn program(lab: &Lab, artifact: &Artifact) -> PathBuf {
    let programs = lab.home(CLIENT).dir().join("programs");
    let root = artifact.subject.root.to_string();
    programs.join(root).join("bin").join(CRATE.0)
}

#[test]
fn the_program_gets_arguments_signals_and_the_exit_code() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    ran(&lab, &[SPEC]).failed(11, &["unproven", "qk proofs"]);
    assert!(!program(&lab, &artifact).exists());
    lab.publish(BOB, &artifact);
    let first = ran(&lab, &[SPEC, "--", "one", "--two", ""]);
    first.done();
    assert_eq!(first.stdout, "hexyl 0.17.0\none\n--two\n\n");
    assert!(first.stderr.contains("fetched"), "{}", first.stderr);
    // From here on nobody is needed.
    lab.kill(ALICE);
    for _ in 0..2 {
        let again = ran(&lab, &[SPEC, "--", "exit", "42"]);
        assert_eq!((again.code(), again.stderr.as_str()), (42, ""));
        // What decided is looked at again when it changed.
        lab.configure(CLIENT, "[policy]\nthreshold = 2\n");
    }
    let mut waits = command(&lab, &[SPEC, "--", "wait"]);
    let mut child = waits.stdout(Stdio::piped()).spawn().expect("a process");
    let mut lines = BufReader::new(child.stdout.take().expect("output")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "hexyl 0.17.0");
    send(child.id(), "TERM");
    assert_eq!(wait(&mut child).signal(), Some(15));
    // Nothing was installed.
    assert!(lab.installed().is_empty());
    ran(&lab, &[SPEC, "one"]).failed(2, &["--"]);
}

#[test]
fn a_policy_or_a_block_that_came_since_is_heeded() {
    let (lab, artifact) = proven();
    ran(&lab, &[SPEC]).done();
    lab.configure(CLIENT, "[policy]\nthreshold = 3\n");
    ran(&lab, &[SPEC]).failed(11, &["unproven"]);
    lab.configure(CLIENT, "");
    ran(&lab, &[SPEC]).done();
    // A project asks for more.
    let project = lab.dir().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("qk.toml"), "[policy]\nthreshold = 3\n").unwrap();
    let strict = run(command(&lab, &[SPEC]).current_dir(&project));
    strict.failed(11, &["unproven"]);
    // A dissent that another command learned of.
    let options = Options {
        mark: " of another kind".to_owned(),
        ..Options::default()
    };
    let other = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(CAROL, &other);
    ran(&lab, &[SPEC]).done();
    lab.fetch(&["--refresh", SPEC]).failed(12, &["disputed"]);
    ran(&lab, &[SPEC]).failed(12, &["disputed"]);
    let blocked = lab.next_version(|next| {
        next.blocked.push(Blocked {
            key: None,
            root: Some(artifact.subject.root),
            reason: "it eats files".to_owned(),
        });
    });
    lab.know(CLIENT, blocked);
    ran(&lab, &[SPEC]).failed(12, &["blocked", "it eats files"]);
}

#[test]
fn a_changed_file_is_not_run() {
    let (lab, artifact) = proven();
    ran(&lab, &[SPEC]).done();
    let program = program(&lab, &artifact);
    let genuine = fs::read(&program).unwrap();
    let time = fs::metadata(&program).unwrap().modified().unwrap();
    let trojan = b"#!/bin/sh\necho trojan\n";
    let write = |bytes: &[u8]| {
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&program, bytes).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        let file = File::open(&program).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    };
    // As long, and of the same time.
    let mut padded = trojan.to_vec();
    padded.resize(genuine.len(), b'#');
    write(&padded);
    // Whoever runs what lies there is lost.
    assert_eq!(run(&mut Command::new(&program)).stdout, "trojan\n");
    assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
    assert_eq!(fs::read(&program).unwrap(), genuine);
    // Touched, and what it was.
    write(&genuine);
    assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
    // Another file under its name, or a link to one.
    let beside = program.with_file_name("beside");
    fs::write(&beside, &padded).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o555)).unwrap();
    fs::remove_file(&program).unwrap();
    std::os::unix::fs::symlink(&beside, &program).unwrap();
    assert_eq!(run(&mut Command::new(&program)).stdout, "trojan\n");
    assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
    // A store that lost it asks the network again.
    fs::remove_dir_all(lab.home(CLIENT).dir().join("programs")).unwrap();
    assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
}

#[test]
fn which_executable_is_named_or_obvious() {
    let mut lab = Lab::new();
    lab.start_alice();
    let options = Options {
        bin: Some("hx"),
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    for _ in 0..2 {
        assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
        assert_eq!(ran(&lab, &[SPEC, "--bin", "hx"]).stdout, "hexyl 0.17.0\n");
        let none = ran(&lab, &[SPEC, "--bin", "hexyl"]);
        none.failed(
            10,
            &[
                "hexyl@0.17.0 has no executable hexyl",
                "--bin names one of: hx",
            ],
        );
    }
}

#[test]
fn unpacked_executables_have_a_quota() {
    let (lab, artifact) = proven();
    ran(&lab, &[SPEC]).done();
    let program = program(&lab, &artifact);
    lab.configure(CLIENT, "programs_quota_bytes = 1\n");
    // What was used just now stays: somebody may be about to run it.
    let cleaned = lab.qk(CLIENT, &["store", "gc"]).done();
    assert_eq!(cleaned["programs"]["roots"].as_array().unwrap().len(), 0);
    let seal = program.parent().unwrap().with_file_name("seal.json");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let times = FileTimes::new().set_modified(long_ago);
    File::open(&seal).unwrap().set_times(times).unwrap();
    let cleaned = lab.qk(CLIENT, &["store", "gc"]).done();
    let root = artifact.subject.root.to_string();
    assert_eq!(cleaned["programs"]["roots"][0], root);
    assert_eq!(cleaned["programs"]["bytes_after"], 0);
    assert!(!program.exists());
    assert_eq!(ran(&lab, &[SPEC]).stdout, "hexyl 0.17.0\n");
}
