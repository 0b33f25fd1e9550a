//! Tests that mount something run in namespaces of their own, so that nothing stays behind: with
//! the last process go its mounts, and with these their loop devices.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Command, Stdio};

/// Set inside to the test's name.
const INSIDE: &str = "QK_TEST_INSIDE";

/// What a test needs of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// File systems that are served by the test.
    Fuse,
    /// Disk images in files.
    Loop,
}

/// Runs `test` again, in a mount and a process namespace of its own. Inside it answers `true`;
/// outside it waits for the one inside and answers `false`, as it does, loudly, where the machine
/// lacks something.
///
/// # Panics
/// When the test inside fails.
pub fn inside(test: &str, needs: &[Needs]) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        end_with_the_outer_one();
        return true;
    }
    if let Err(why) = possible(needs) {
        eprintln!("SKIPPED: {test}: {why}");
        return false;
    }
    let this = std::env::current_exe().expect("the path of this program");
    let mut inner = unshare()
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test)
        .stdin(Stdio::piped())
        .spawn()
        .expect("unshare starts");
    let stdin = inner.stdin.take(); // Held until the other one has ended.
    let status = inner.wait().expect("its end can be awaited");
    drop(stdin);
    assert!(status.success(), "inside its namespaces: {status}");
    false
}

fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    unshare
}

fn possible(needs: &[Needs]) -> Result<(), String> {
    let devices = needs.iter().map(|need| match need {
        Needs::Fuse => "/dev/fuse",
        Needs::Loop => "/dev/loop-control",
    });
    for device in devices {
        let opened = OpenOptions::new().read(true).write(true).open(device);
        opened.map_err(|error| format!("{device}: {error}"))?;
    }
    let mut commands = vec![unshare()];
    commands[0].arg("true");
    if needs.contains(&Needs::Loop) {
        commands.extend([
            Command::new("mkfs.ext4"),
            Command::new("losetup"),
            Command::new("mount"),
        ]);
        commands[1..].iter_mut().for_each(|tool| {
            tool.arg("-V");
        });
    }
    for mut command in commands {
        let output = command.output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            return Err(format!("{command:?} does not work here: {output:?}"));
        }
    }
    Ok(())
}

/// The process that a namespace of processes began with takes all others along.
fn end_with_the_outer_one() {
    std::thread::spawn(|| {
        let ended = std::io::stdin().read_to_end(&mut Vec::new());
        eprintln!("the test was ended from outside: {ended:?}");
        std::process::exit(1);
    });
}
