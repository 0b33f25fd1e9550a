//! The node of a whole system: a user of its own, and a group that may fetch and query.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qk_node::home::Home;
use qk_tests::artifact::{SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, Ran, listing, run, send, wait};

/// Users and a group that nothing on a machine should have.
const NODE: u32 = 61_001;
const GROUP: u32 = 61_002;
const MEMBER: u32 = 61_003;
const STRANGER: u32 = 61_004;

/// A lab with a node of the client's home that runs as a user of its own.
struct Shared {
    lab: Lab,
    qk: PathBuf,
    node: Child,
}

/// `None`, and said loudly, where this process may not be others.
fn shared() -> Option<Shared> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can run processes of other users, as this needs");
        return None;
    }
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let dir = lab.dir().to_owned();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let qk = dir.join("qk");
    fs::copy(qk_tests::qk(), &qk).unwrap();
    give(lab.home(CLIENT).dir(), NODE);
    let run_dir = dir.join("run");
    fs::create_dir(&run_dir).unwrap();
    give(&run_dir, NODE);
    for (name, user) in [("member", MEMBER), ("stranger", STRANGER)] {
        fs::create_dir(dir.join(name)).unwrap();
        give(&dir.join(name), user);
    }
    let home = lab.home(CLIENT).dir().to_owned();
    let group = GROUP.to_string();
    let args = [
        "node",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--json",
        "--socket-group",
        &group,
    ];
    let mut node = as_user(&dir, &qk, NODE, Some(GROUP), &args)
        .env("QK_HOME", home)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(node.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("listening"), "{line}");
    Some(Shared { lab, qk, node })
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    let below = fs::metadata(path).unwrap().is_dir();
    for entry in fs::read_dir(path).into_iter().flatten().filter(|_| below) {
        give(&entry.unwrap().path(), user);
    }
}

fn as_user(dir: &Path, program: &Path, user: u32, group: Option<u32>, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={user}"));
    match group {
        Some(group) => command.arg(format!("--groups={group}")),
        None => command.arg("--clear-groups"),
    };
    let home = match user {
        STRANGER => dir.join("stranger"),
        _ => dir.join("member"),
    };
    command
        .arg(program)
        .args(args)
        .current_dir("/")
        .env("HOME", &home)
        .env("CARGO_HOME", home.join("cargo"))
        .env("QK_HOME", home.join("qk"))
        .env("QK_SOCKET", dir.join("run/qk.sock"))
        .env_remove("QK_LOG")
        .stdin(Stdio::null());
    command
}

impl Shared {
    fn command(&self, user: u32, args: &[&str]) -> Command {
        let group = (user == MEMBER).then_some(GROUP);
        let mut command = as_user(self.lab.dir(), &self.qk, user, group, args);
        command.arg("--json");
        command
    }

    fn qk(&self, user: u32, args: &[&str]) -> Ran {
        run(&mut self.command(user, args))
    }

    fn fetch(&self, user: u32) -> Ran {
        let root = self.lab.dir().join("member/root");
        let root = root.to_str().unwrap();
        self.qk(
            user,
            &[
                "fetch",
                SPEC,
                "--fallback",
                "none",
                "--force",
                "--root",
                root,
            ],
        )
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

#[test]
fn members_of_the_group_fetch_and_query_and_change_nothing() {
    let Some(mut shared) = shared() else {
        return;
    };
    let socket = shared.lab.dir().join("run/qk.sock");
    let found = fs::metadata(&socket).unwrap();
    assert_eq!(
        (found.mode() & 0o7777, found.uid(), found.gid()),
        (0o660, NODE, GROUP)
    );

    // A user's own policy stays a floor, although another user's node decides.
    let config = shared.lab.dir().join("member/qk/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, "[policy]\nthreshold = 3\n").unwrap();
    give(&shared.lab.dir().join("member"), MEMBER);
    shared.fetch(MEMBER).failed(11, &["unproven"]);
    fs::remove_file(&config).unwrap();

    let done = shared.fetch(MEMBER).done();
    assert_eq!(done["crates"][0]["how"], "network");
    let installed = listing(&shared.lab.dir().join("member/root"));
    assert!(
        installed.keys().any(|path| path.ends_with("bin/hexyl")),
        "{installed:?}"
    );
    // It had to be sent: the node's store is closed to this user.
    let root = done["crates"][0]["root"].as_str().unwrap().parse().unwrap();
    let blob = shared.lab.blob(CLIENT, root);
    assert!(blob.exists());
    let cat = ["/dev/null", blob.to_str().unwrap()];
    let cat = as_user(
        shared.lab.dir(),
        Path::new("cat"),
        MEMBER,
        Some(GROUP),
        &cat,
    )
    .output();
    assert!(!cat.unwrap().status.success());
    // And nothing of it stays beside what was installed.
    let work = shared.lab.dir().join("member/qk/work");
    assert_eq!(fs::read_dir(&work).map_or(0, Iterator::count), 0);
    assert_eq!(shared.fetch(MEMBER).done()["crates"][0]["how"], "store");

    let status = shared.qk(MEMBER, &["status"]).done();
    assert_eq!(status["process"], shared.node.id());
    shared.qk(MEMBER, &["peers"]).done();
    assert_eq!(
        shared.qk(MEMBER, &["store", "ls"]).done()["artifacts"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let root = root.to_string();
    let commands: [&[&str]; 4] = [
        &["store", "gc"],
        &["store", "fsck"],
        &["store", "pin", &root],
        &["store", "unpin", &root],
    ];
    for command in commands {
        shared
            .qk(MEMBER, command)
            .failed(1, &["for the administrator of this node"]);
    }
    // The same done by those who may: whoever the node runs as, and root.
    for command in commands {
        shared.qk(NODE, command).done();
        shared.qk(0, command).done();
    }

    let refused = shared.qk(STRANGER, &["status"]);
    refused.failed(1, &["you are not in its group"]);
    // What keeps the stranger out is the group alone.
    let mut joined = as_user(
        shared.lab.dir(),
        &shared.qk,
        STRANGER,
        Some(GROUP),
        &["status"],
    );
    run(joined.arg("--json")).done();

    send(shared.node.id(), "TERM");
    assert_eq!(wait(&mut shared.node).code(), Some(0));
    assert!(!socket.exists());
    shared
        .qk(MEMBER, &["status"])
        .failed(1, &["no node answers on"]);
}

#[test]
fn a_socket_that_anybody_could_have_put_there_is_not_asked() {
    let Some(shared) = shared() else {
        return;
    };
    let run_dir = shared.lab.dir().join("run");
    shared.qk(MEMBER, &["status"]).done();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o777)).unwrap();
    shared
        .qk(MEMBER, &["status"])
        .failed(1, &["served by another user: not asked"]);
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&run_dir, Some(STRANGER), Some(STRANGER)).unwrap();
    shared
        .qk(MEMBER, &["status"])
        .failed(1, &["served by another user: not asked"]);
}

#[test]
fn who_joined_no_network_finds_the_node_of_the_system() {
    let Some(shared) = shared() else {
        return;
    };
    let member = shared.lab.dir().join("member/qk");
    let status = |more: &str| {
        // Its socket has one place in the file system: in a file system of one's own.
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir /run/qk && mount --bind {}/run /run/qk && \
             exec setpriv --reuid={MEMBER} --regid={MEMBER} {more} {} status --json",
            shared.lab.dir().display(),
            shared.qk.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        run(command.env("QK_HOME", &member).env_remove("QK_SOCKET"))
    };
    let in_group = format!("--groups={GROUP}");
    let found = status(&in_group);
    if found.code() != 0 && found.stderr.contains("unshare") {
        eprintln!(
            "skipped: no mount namespace to be had here: {}",
            found.stderr
        );
        return;
    }
    assert_eq!(found.done()["process"], shared.node.id());
    assert_eq!(status("--clear-groups").done()["running"], false);
    // Who joined a network asks that one, by his own decision.
    fs::create_dir_all(&member).unwrap();
    let networks = Home::at(shared.lab.home(ALICE).dir())
        .dir()
        .join("networks");
    fs::create_dir_all(member.join("networks")).unwrap();
    for entry in fs::read_dir(networks).unwrap() {
        let entry = entry.unwrap();
        fs::copy(
            entry.path(),
            member.join("networks").join(entry.file_name()),
        )
        .unwrap();
    }
    give(&member, MEMBER);
    assert_eq!(status(&in_group).done()["running"], false);
}
