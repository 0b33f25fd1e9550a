//! A test in a network namespace of its own, where it may have as many addresses as it wants.

use std::process::Command;

/// Set in the process that runs inside.
const INSIDE: &str = "QK_TEST_ALONE";

/// Runs the test of this name again in a process whose network is its own, with these addresses on
/// its loopback interface, and returns false when that has passed. In that process it returns true at
/// once: the test goes on there. Where the system makes no network namespaces for this user, it says
/// so and returns false.
///
/// # Panics
/// When the test fails inside.
pub fn alone(test: &str, addresses: &[String]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let tried = unshare().args(["ip", "link", "set", "lo", "up"]).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED {test}: no network namespaces for this user, or no `ip` and `unshare`");
        return false;
    }
    let mut script = "ip link set lo up".to_owned();
    for address in addresses {
        script += &format!(" && ip address add {address} dev lo");
    }
    script += " && exec \"$@\"";
    let this = std::env::current_exe().expect("the path of this program");
    let inside = unshare()
        .args(["sh", "-ec", &script, "sh"])
        .arg(this)
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("it starts");
    assert!(inside.success(), "{test} failed inside: {inside}");
    false
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
}
