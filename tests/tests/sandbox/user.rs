//! Builds of somebody who is not root, without user namespaces: they run as the user, who owns what they
//! must not reach. Landlock and the filter alone stand between.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::build::host::Host;
use qk_node::build::sandbox::{Bind, End, Line, Run};
use qk_node::build::{Cancel, Choice, Limits, Sandbox, Work};

use qk_tests::lab::{send, until};

use super::facts::{Report, facts, read};
use super::{FILE_MIB, MEMORY_MIB, PROCESSES, TMP_MIB, VISIBLE_TO_LANDLOCK, with_line};

/// Set inside to the path of the probes.
const INSIDE: &str = "QK_TEST_PROBES";
/// Nobody on the machine.
const USER: &str = "65531";
/// What a user may do to what is the user's own, so that no permissions keep a build from it.
const SHOWN: &[&str] = &[
    "abstract-socket",
    "chmod-host-file",
    "datagram-socket",
    "leave-memory",
    "limit-host-process",
    "link-host-file",
    "pin-host-process",
    "read-home",
    "read-host-environment",
    "read-host-process",
    "read-passwd",
    "read-secret-file",
    "renice-host-process",
    "see-host-directory",
    "signal-host-process",
    "tcp-loopback",
    "touch-host-file",
    "truncate-host-file",
    "udp-loopback",
    "unix-socket",
    "watch-host-directory",
    "write-shared-directory",
];
/// Of the script: this machine cannot do it.
const IMPOSSIBLE: i32 = 77;

/// Arguments: an empty directory, the user, this program, the probes, and words for this program.
/// The user gets a root file system that is this one, but for a `/qk` of the user's own.
const SCRIPT: &str = r#"
at=$1 user=$2 root=$1/root
mount -t tmpfs test "$at" && mkdir "$at/hidden" "$at/upper" "$at/work" "$root" &&
mknod "$at/hidden/qk" c 0 0 &&
mount -t overlay -o "lowerdir=$at/hidden:/,upperdir=$at/upper,workdir=$at/work" test "$root" || exit 77
for name in dev proc sys; do mount --rbind "/$name" "$root/$name" || exit 77; done
set -e
install -d -m 0700 -o "$user" -g "$user" "$root/qk" "$root/test/home"
cp "$3" "$root/test/sandbox"
cp "$4" "$root/test/probes"
shift 4
exec chroot --userspec="$user:$user" --groups= "$root" /test/sandbox "$@"
"#;

#[test]
fn nothing_gets_out_to_what_the_user_owns() {
    if let Some(probes) = std::env::var_os(INSIDE) {
        return inside(Path::new(&probes));
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become a user who has a /qk");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let probes = compiled(directory.path());
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT])
        .arg("sh")
        .arg(&root)
        .arg(USER)
        .arg(std::env::current_exe().unwrap())
        .arg(&probes)
        .args(["user::nothing_gets_out_to_what_the_user_owns", "--exact"])
        .arg("--nocapture")
        .env(INSIDE, "/test/probes")
        .env("HOME", "/test/home")
        .env("QK_TOOLCHAINS", "/test/home")
        .env("TMPDIR", "/tmp")
        .status()
        .unwrap();
    if status.code() == Some(IMPOSSIBLE) {
        println!("SKIPPED: no file system may be mounted over another here");
        return;
    }
    assert!(status.success(), "{status}");
}

/// The probes as a program.
fn compiled(directory: &Path) -> PathBuf {
    let source = directory.join("main.rs");
    let probes = super::fixture("hostile").join("probes.rs");
    let text = format!(
        "#[path = {probes:?}]\nmod probes;\nfn main() {{\n    let scratch = std::env::args().nth(1).unwrap();\n    \
         print!(\"{{}}\", probes::run(\"program\", scratch.as_ref()));\n}}\n"
    );
    fs::write(&source, text).unwrap();
    let program = directory.join("probes");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2021", "-o"]).arg(&program);
    assert!(rustc.arg(&source).status().unwrap().success());
    program
}

fn inside(probes: &Path) {
    let sandbox = match Sandbox::choose(Choice::Landlock) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("SKIPPED Landlock: {error}");
            return;
        }
    };
    assert_eq!(sandbox.build_uid().to_string(), USER);
    let directory = tempfile::tempdir().unwrap();
    let nonce = 1000 + std::process::id();
    let known = facts(directory.path(), nonce);
    let outside = without(probes, directory.path(), &known, nonce);
    let within = within(&sandbox, probes, directory.path(), &known);
    let mut shown = BTreeSet::new();
    let mut wrong = Vec::new();
    for (probe, (without, why)) in &outside {
        let (got, why_within) = &within[probe];
        println!("{probe}: {without} {why} / {got} {why_within}");
        let name = probe.strip_prefix("program ").unwrap();
        match (without.as_str(), got.as_str()) {
            // That it does not live on is asserted below.
            (_, "got") if name == "daemon" || VISIBLE_TO_LANDLOCK.contains(&name) => {}
            ("got", "denied") => {
                shown.insert(name);
            }
            (_, "denied" | "absent") => {}
            _ => wrong.push(format!("{probe}: {got} {why_within}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let missing: Vec<_> = SHOWN.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "not shown to work outside: {missing:?}");
    println!(
        "{} probes shown to work as the user without the sandbox",
        shown.len()
    );
    assert_eq!(daemons(nonce), [] as [u32; 0]);
}

fn without(probes: &Path, directory: &Path, facts: &str, nonce: u32) -> Report {
    fs::write(directory.join("facts.txt"), facts).unwrap();
    let output = Command::new(probes)
        .arg(directory)
        .env("CARGO_MANIFEST_DIR", directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // It has been started, and may not yet be called what it becomes.
    until("the daemon is seen", || !daemons(nonce).is_empty());
    for daemon in daemons(nonce) {
        send(daemon, "KILL");
    }
    until("it is gone", || daemons(nonce).is_empty());
    let removed = Command::new("ipcrm")
        .arg("-M")
        .arg(nonce.to_string())
        .status();
    assert!(removed.unwrap().success());
    read(&String::from_utf8(output.stdout).unwrap())
}

fn within(sandbox: &Sandbox, probes: &Path, directory: &Path, facts: &str) -> Report {
    let host = Host::find(Path::new("/"), &[probes.to_path_buf()]).unwrap();
    let parent = directory.join("builds");
    fs::create_dir(&parent).unwrap();
    let cancel = Cancel::default();
    let work = Work::new(&parent, sandbox, &cancel).unwrap();
    fs::write(work.at("src").join("facts.txt"), facts).unwrap();
    let mut binds = host.binds;
    binds.push(Bind::read(probes, "/qk/bin/probes"));
    binds.push(Bind::read(work.at("src"), "/qk/src"));
    binds.push(Bind::write(work.at("target"), "/qk/target"));
    let run = Run {
        argv: ["/qk/bin/probes", "/qk/target"].map(OsString::from).into(),
        env: vec![
            ("PATH".into(), "/qk/bin".into()),
            ("CARGO_MANIFEST_DIR".into(), "/qk/src".into()),
        ],
        cwd: "/qk/src".into(),
        binds,
        links: host.links,
        network: false,
        hostname: "qk".into(),
        background: false,
    };
    let limits = Limits {
        memory_bytes: MEMORY_MIB << 20,
        processes: PROCESSES,
        file_bytes: FILE_MIB << 20,
        tmp_bytes: TMP_MIB << 20,
        ..Limits::default()
    };
    let mut text = String::new();
    let ended = sandbox.run(
        &run,
        &limits,
        &work.at("scratch"),
        &cancel,
        |line| match line {
            Line::Out(line) => text += &(line + "\n"),
            Line::Err(line) => eprintln!("{line}"),
        },
    );
    assert_eq!(ended.unwrap().0, End::Exit(0), "{text}");
    read(&text)
}

fn daemons(nonce: u32) -> Vec<u32> {
    with_line(format!("sleep\0600.{nonce}\0").as_bytes())
}
