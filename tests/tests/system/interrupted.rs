//! Downloads that end too early, and disks that are too small.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qk_node::blocks::part::Part;
use qk_node::node::FetchSpec;
use qk_protocol::blocks::{BLOCK_BYTES, Blob};
use qk_protocol::transfer::WINDOW_BLOCKS_MAX;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with, release, wanted};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, listing, run, send, until, wait};

const PADDING_BYTES: usize = 60 << 20;
/// What a download from one provider may have under way when it ends: its window, and 2 MiB for
/// what the file system had allocated and not written.
const IN_FLIGHT_BYTES_MAX: u64 = WINDOW_BLOCKS_MAX as u64 * BLOCK_BYTES + (2 << 20);

fn proven(lab: &mut Lab) -> Artifact {
    lab.start_alice();
    let options = Options {
        padding_bytes: PADDING_BYTES,
        ..Options::default()
    };
    let artifact = artifact_with(&lab.joined(ALICE).network, &options);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    artifact
}

fn part_of(lab: &Lab, artifact: &Artifact) -> PathBuf {
    lab.home(CLIENT)
        .store()
        .join("part")
        .join(artifact.subject.root.to_string())
}

/// Bytes of a directory's files that are on the disk.
fn written(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

/// A fetch that has some of its artifact, and will get no more: alice's node sleeps.
fn stuck(lab: &Lab, artifact: &Artifact) -> Child {
    let mut fetch = lab.fetch_command(CLIENT, &[SPEC]);
    let mut child = fetch
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = part_of(lab, artifact);
    until("some of it is here", || written(&part) > 3 << 20);
    lab.signal(ALICE, "STOP");
    assert_eq!(
        child.try_wait().unwrap(),
        None,
        "it was faster than this test"
    );
    child
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let mut lab = Lab::new();
    let artifact = proven(&mut lab);
    let mut fetching = stuck(&lab, &artifact);
    fetching.kill().unwrap();
    assert_eq!(fetching.wait().unwrap().signal(), Some(9));
    lab.signal(ALICE, "CONT");
    assert!(lab.installed().is_empty());

    let blob = Blob::new(artifact.subject.root, artifact.subject.size).unwrap();
    let parts = lab.home(CLIENT).store().join("part");
    let on_disk = written(&part_of(&lab, &artifact));
    let part = Part::open(&parts, blob).unwrap();
    let valid = part.valid().unwrap();
    drop(part);
    let valid: u64 = valid
        .iter()
        .map(|range| blob.bytes_of(*range))
        .map(|bytes| bytes.end - bytes.start)
        .sum();
    assert!(valid > 0 && valid < blob.size(), "{valid}");
    assert!(
        valid + IN_FLIGHT_BYTES_MAX > on_disk,
        "{valid} of {on_disk} bytes on the disk are of use"
    );

    let spec = FetchSpec {
        wanted: wanted(&release().resolved),
        refresh: false,
        offline: false,
        network: None,
        policy: None,
    };
    let report = lab
        .with_access(CLIENT, async |access| access.fetch(&spec, &|_| {}).await)
        .unwrap();
    assert_eq!(
        report.fetched_bytes + valid,
        blob.size(),
        "nothing is fetched twice"
    );
    assert!(!part_of(&lab, &artifact).exists());
    assert_eq!(lab.fetch(&[SPEC]).done()["crates"][0]["how"], "store");
    assert_eq!(
        run(&mut Command::new(lab.root().join("bin/hexyl"))).stdout,
        "hexyl 0.17.0\n"
    );
}

#[test]
fn an_interrupted_fetch_leaves_no_trace_but_its_part() {
    let mut lab = Lab::new();
    let artifact = proven(&mut lab);
    let mut fetching = stuck(&lab, &artifact);
    send(fetching.id(), "INT");
    let status = wait(&mut fetching);
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(lab.installed().is_empty());
    let work = listing(&lab.home(CLIENT).work());
    assert!(work.is_empty(), "{work:?}");
    lab.signal(ALICE, "CONT");
    assert!(part_of(&lab, &artifact).is_dir());
    lab.fetch(&[SPEC]).done();
}

/// A small file system, until it is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    /// One of so many MiB; `None` where this process may not mount.
    fn mount(dir: &Path, mebibytes: u32) -> Option<Self> {
        Self::with(dir, &format!("size={mebibytes}m"))
    }

    /// One as these options of tmpfs say.
    pub(crate) fn with(dir: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(dir).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "qk-tests"])
            .arg(dir);
        run(&mut mount)
            .status
            .success()
            .then(|| Self(dir.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_full_disk_fails_with_its_reason_and_loses_nothing() {
    let mut lab = Lab::new();
    lab.configure(CLIENT, "free_floor_bytes = 0\n");
    let store = lab.home(CLIENT).store();
    let Some(small) = Small::mount(&store, 24) else {
        eprintln!("skipped: only root may mount the small file system that this needs");
        return;
    };
    let artifact = proven(&mut lab);
    lab.fetch(&[SPEC])
        .failed(1, &["disk full at", "free some space"]);
    assert!(lab.installed().is_empty());
    let mut more = Command::new("mount");
    more.args(["-o", "remount,size=200m"]).arg(&store);
    run(&mut more).done();
    // What it knew, it knows: the statements that it kept before the disk was full.
    let proofs = lab.qk(CLIENT, &["proofs", SPEC, "--offline"]).done();
    assert_eq!(
        proofs["networks"][0]["verdict"]["decision"], "trusted",
        "{proofs}"
    );
    assert!(
        listing(&part_of(&lab, &artifact)).len() > 1,
        "what was fetched is kept"
    );
    // With more space the same command goes on.
    lab.fetch(&[SPEC]).done();
    assert!(lab.blob(CLIENT, artifact.subject.root).is_file());
    drop(small);
}
