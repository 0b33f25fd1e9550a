//! The text of a systemd unit.

use std::path::Path;

use super::{Order, SYSTEM_GROUP, SYSTEM_SOCKET, Scope, ServiceError};

/// A guest on somebody's machine: last in every queue, and room for a build that the node may do.
/// What the manager may not set for a user's services it leaves out by itself.
const MODEST: &str = "\
Nice=10
CPUWeight=20
IOSchedulingClass=idle
IOWeight=20
MemoryHigh=25%
TasksMax=2048
";

/// What is sure not to disturb a build: bubblewrap makes namespaces of every kind, mounts a `/proc`
/// of its own and sets a host name, and what runs inside must meet no other filter than qk's, or it
/// could come out differently. So no RestrictNamespaces, no ProtectHostname, no SystemCallFilter,
/// and no option that hides a part of `/proc`: the kernel then refuses a new one.
const USER_HARDENING: &str = "\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
";

/// The system's node serves and does not build, so that it can be shut in altogether. It gives its
/// socket to its group, hence `@chown`, which without capabilities is good for nothing else.
const SYSTEM_HARDENING: &str = "\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=@chown
SystemCallErrorNumber=EPERM
UMask=0077
";

/// The whole unit.
///
/// # Errors
/// When a path or an argument cannot be written into one.
pub(super) fn text(order: &Order) -> Result<String, ServiceError> {
    let mut command = vec![quoted(path(&order.program)?)?, "node".to_owned()];
    let mut environment = vec![variable("QK_HOME", path(order.home.dir())?)?];
    let toolchains = order.home.toolchains();
    if toolchains != order.home.dir().join("toolchains") {
        environment.push(variable("QK_TOOLCHAINS", path(toolchains)?)?);
    }
    let (after, wanted_by, own) = match order.scope {
        Scope::User => ("", "default.target", USER_HARDENING.to_owned()),
        Scope::System => {
            environment.push(variable("QK_SOCKET", SYSTEM_SOCKET)?);
            command.extend(["--socket-group".to_owned(), SYSTEM_GROUP.to_owned()]);
            let own = format!(
                "User={SYSTEM_GROUP}\nGroup={SYSTEM_GROUP}\n\
                 StateDirectory=qk\nStateDirectoryMode=0700\n\
                 RuntimeDirectory=qk\nRuntimeDirectoryMode=0755\n{SYSTEM_HARDENING}"
            );
            let after = "Wants=network-online.target\nAfter=network-online.target\n";
            (after, "multi-user.target", own)
        }
    };
    for arg in &order.args {
        command.push(quoted(arg)?);
    }
    let (command, environment) = (command.join(" "), environment.concat());
    Ok(format!(
        "# Written by `qk node install`, removed by `qk node uninstall`.\n\
         [Unit]\n\
         Description=qk node\n\
         {after}\
         StartLimitIntervalSec=600\n\
         StartLimitBurst=5\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         {environment}\
         ExecStart={command}\n\
         ExecReload=kill -HUP $MAINPID\n\
         Restart=on-failure\n\
         RestartSec=10\n\
         # Exit code 2 is a mistake in the configuration: trying again does not help.\n\
         RestartPreventExitStatus=2\n\
         WatchdogSec=180\n\
         # A store that was not closed makes its index again first.\n\
         TimeoutStartSec=900\n\
         TimeoutStopSec=30\n\
         {MODEST}\
         {own}\
         \n\
         [Install]\n\
         WantedBy={wanted_by}\n"
    ))
}

fn path(path: &Path) -> Result<&str, ServiceError> {
    path.to_str()
        .ok_or_else(|| ServiceError::Text(path.display().to_string()))
}

/// A setting of a variable, in which only `%` has a meaning beside the quotes.
fn variable(name: &str, value: &str) -> Result<String, ServiceError> {
    Ok(format!(
        "Environment={}\n",
        in_quotes(&format!("{name}={value}"))?
    ))
}

/// A word of a command line, in which `$` begins a variable.
fn quoted(word: &str) -> Result<String, ServiceError> {
    in_quotes(&word.replace('$', "$$"))
}

/// systemd reads the backslash and both quotes as a shell does, and `%` as a specifier.
fn in_quotes(text: &str) -> Result<String, ServiceError> {
    if text.chars().any(char::is_control) {
        return Err(ServiceError::Text(text.to_owned()));
    }
    let mut quoted = String::from("\"");
    for one in text.chars() {
        match one {
            '"' | '\\' => quoted.extend(['\\', one]),
            '%' => quoted.push_str("%%"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    fn order(scope: Scope, args: &[&str]) -> Order {
        Order {
            scope,
            home: Home::at("/home/a b/qk"),
            program: "/opt/50% \"of\"/$qk".into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        }
    }

    #[test]
    fn words_reach_the_program_as_they_are() {
        let text = text(&order(Scope::User, &["--listen", "/ip4/0.0.0.0/tcp/4433"])).unwrap();
        let line = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines.next().unwrap().to_owned()
        };
        assert_eq!(
            line("ExecStart="),
            r#""/opt/50%% \"of\"/$$qk" node "--listen" "/ip4/0.0.0.0/tcp/4433""#
        );
        assert_eq!(line("Environment="), r#""QK_HOME=/home/a b/qk""#);
    }

    #[test]
    fn nothing_adds_a_line_of_its_own() {
        let evil = "x\nExecStartPre=/bin/evil";
        assert!(matches!(
            text(&order(Scope::User, &[evil])),
            Err(ServiceError::Text(_))
        ));
        // Without the check it would.
        assert!(
            format!("ExecStart=\"{evil}\"")
                .lines()
                .any(|line| line.starts_with("ExecStartPre="))
        );
    }

    #[test]
    fn a_users_node_may_build_and_the_systems_is_shut_in() {
        let user = text(&order(Scope::User, &[])).unwrap();
        let system = text(&order(Scope::System, &[])).unwrap();
        for breaks_builds in [
            "RestrictNamespaces",
            "ProtectHostname",
            "SystemCallFilter",
            "ProtectKernelTunables",
            "ProtectProc",
            "MemoryDenyWriteExecute",
        ] {
            let option = format!("{breaks_builds}=");
            assert!(!user.contains(&option), "{option}");
            assert!(system.contains(&option), "{option}");
        }
        assert!(system.contains("\nUser=qk\n") && !user.contains("User="));
        assert!(system.contains("node --socket-group qk\n"));
    }
}
