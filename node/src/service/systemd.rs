//! systemd: of the user, or of the system.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::NamedTempFile;
use tokio::process::Command;

use super::{
    Installed, Order, Removed, SYSTEM_GROUP, SYSTEM_HOME, Scope, ServiceError, Undone, unit,
};
use crate::control;
use crate::home::Home;

const UNIT: &str = "qk.service";
/// What makes the system's user and group.
const SYSUSERS: &str = "/etc/sysusers.d/qk.conf";
/// What `systemctl is-system-running` says where a manager runs, in whatever state.
const ALIVE: [&str; 6] = [
    "initializing",
    "starting",
    "running",
    "degraded",
    "maintenance",
    "stopping",
];
/// Characters of what a command said that an error repeats.
const SAID_CHARS_MAX: usize = 1000;

pub(super) async fn install(order: &Order) -> Result<Installed, ServiceError> {
    let manager = Manager::of(order.scope)?;
    let text = unit::text(order)?;
    check_program(order)?;
    let service = manager.main_process().await;
    if let Some(process) = control::running(&order.home).map_err(at(order.home.dir()))?
        && Some(process) != service
    {
        let home = order.home.dir().to_owned();
        return Err(ServiceError::Running { home, process });
    }
    let users = match order.scope {
        Scope::User => None,
        Scope::System => make_system_user().await?,
    };
    let path = manager.unit_path();
    let changed = write_if_other(&path, &text)?;
    let mut installed = Installed {
        scope: order.scope,
        unit: path,
        changed,
        enabled: false,
        running: false,
        undone: users,
    };
    if installed.undone.is_some() {
        return Ok(installed);
    }
    if let Some(why) = manager.missing().await {
        let systemctl = manager.shown(&["enable", "--now", UNIT]);
        installed.undone = Some(Undone {
            why: format!("{why}, so that the service was neither enabled nor started"),
            next: format!("{}\n{systemctl}", manager.shown(&["daemon-reload"])),
        });
        return Ok(installed);
    }
    manager.call(&["daemon-reload"]).await?;
    manager.call(&["enable", UNIT]).await?;
    installed.enabled = true;
    // Type=notify: it returns when the node has said that it is ready.
    let start = if changed { "restart" } else { "start" };
    manager.call(&[start, UNIT]).await.map_err(|error| {
        let journal = match order.scope {
            Scope::User => "journalctl --user -u qk",
            Scope::System => "journalctl -u qk",
        };
        match error {
            ServiceError::Manager { command, said } => ServiceError::Manager {
                command,
                said: format!("{said}; `{journal}` says more"),
            },
            other => other,
        }
    })?;
    installed.running = true;
    Ok(installed)
}

pub(super) async fn uninstall(
    scope: Scope,
    home: &Home,
    purge: bool,
) -> Result<Removed, ServiceError> {
    let manager = Manager::of(scope)?;
    let service = manager.main_process().await;
    let running = control::running(home).map_err(at(home.dir()))?;
    let other = running.filter(|process| Some(*process) != service);
    if let (true, Some(process)) = (purge, other) {
        let home = home.dir().to_owned();
        return Err(ServiceError::Running { home, process });
    }
    if purge {
        check_home(home)?;
    }
    let path = manager.unit_path();
    let alive = manager.missing().await.is_none();
    let mut removed = Removed {
        still_running: other,
        ..Removed::default()
    };
    if alive && path.exists() {
        manager.call(&["disable", "--now", UNIT]).await?;
    }
    // Those that `disable` removes are gone by now; without a manager nobody else does it.
    for file in [manager.wanted_path(), path] {
        removed
            .files
            .extend(remove_if_there(&file)?.then_some(file));
    }
    if alive && !removed.files.is_empty() {
        manager.call(&["daemon-reload"]).await?;
        // Nothing is there to be reset unless it failed.
        let _ = manager.call(&["reset-failed", UNIT]).await;
    }
    if purge {
        removed.purged = remove_home(home)?;
    }
    if purge && scope == Scope::System {
        remove_system_user(&mut removed).await?;
    }
    Ok(removed)
}

/// The service manager of one scope.
struct Manager {
    scope: Scope,
    /// Where its units lie.
    units: PathBuf,
}

impl Manager {
    fn of(scope: Scope) -> Result<Self, ServiceError> {
        if scope == Scope::System && !rustix::process::geteuid().is_root() {
            return Err(ServiceError::NotRoot);
        }
        let units = match scope {
            Scope::User => user_config()?.join("systemd/user"),
            Scope::System => PathBuf::from("/etc/systemd/system"),
        };
        Ok(Self { scope, units })
    }

    fn unit_path(&self) -> PathBuf {
        self.units.join(UNIT)
    }

    /// The link that enables it.
    fn wanted_path(&self) -> PathBuf {
        let target = match self.scope {
            Scope::User => "default.target.wants",
            Scope::System => "multi-user.target.wants",
        };
        self.units.join(target).join(UNIT)
    }

    /// Why nothing can be asked of it; `None` when it runs.
    async fn missing(&self) -> Option<String> {
        let whose = match self.scope {
            Scope::User => "no systemd runs for this user",
            Scope::System => "systemd does not run this system",
        };
        match self.run(&["is-system-running"]).await {
            Ok(output) => {
                let state = String::from_utf8_lossy(&output.stdout);
                let alive = ALIVE.contains(&state.trim());
                (!alive).then(|| whose.to_owned())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Some("systemctl is not installed".to_owned())
            }
            Err(error) => Some(format!("systemctl does not start ({error})")),
        }
    }

    /// The process of the running service.
    async fn main_process(&self) -> Option<u32> {
        let show = ["show", "--property=MainPID", "--value", UNIT];
        let output = self.run(&show).await.ok()?;
        let process = String::from_utf8_lossy(&output.stdout);
        process.trim().parse().ok().filter(|process| *process != 0)
    }

    async fn call(&self, args: &[&str]) -> Result<(), ServiceError> {
        let failed = |said: String| ServiceError::Manager {
            command: self.shown(args),
            said: said.trim().chars().take(SAID_CHARS_MAX).collect(),
        };
        let output = self.run(args).await;
        let output = output.map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }

    async fn run(&self, args: &[&str]) -> io::Result<std::process::Output> {
        let mut command = Command::new("systemctl");
        if self.scope == Scope::User {
            command.arg("--user");
        }
        command.args(["--no-pager", "--no-ask-password"]).args(args);
        // Whoever interrupts this interrupts that, too.
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.output().await
    }

    fn shown(&self, args: &[&str]) -> String {
        let systemctl = match self.scope {
            Scope::User => "systemctl --user",
            Scope::System => "systemctl",
        };
        format!("{systemctl} {}", args.join(" "))
    }
}

fn user_config() -> Result<PathBuf, ServiceError> {
    let set = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.filter(|path| path.is_absolute())
    };
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    config.ok_or_else(|| ServiceError::Io {
        path: PathBuf::from("~/.config"),
        error: io::Error::new(
            ErrorKind::NotFound,
            "neither XDG_CONFIG_HOME nor HOME is set",
        ),
    })
}

/// Whether the service will be able to start the program: the system's runs as another user, which
/// sees no home directories.
fn check_program(order: &Order) -> Result<(), ServiceError> {
    let program = &order.program;
    let no = |why: String| {
        Err(ServiceError::Program {
            program: program.clone(),
            why,
        })
    };
    if order.scope == Scope::User {
        return Ok(());
    }
    let install = "put it to /usr/local/bin, for instance";
    if ["/home", "/root", "/run/user", "/tmp", "/var/tmp"]
        .iter()
        .any(|hidden| program.starts_with(hidden))
    {
        return no(format!(
            "the service does not see this directory; {install}"
        ));
    }
    for part in program.ancestors() {
        let mode = fs::metadata(part).map_err(at(part))?.permissions().mode();
        if mode & 0o001 == 0 {
            return no(format!(
                "{} is closed to other users; {install}",
                part.display()
            ));
        }
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return no(format!("anybody may change {}; {install}", part.display()));
        }
    }
    Ok(())
}

/// The user and group of the system's node. What is not done is said.
async fn make_system_user() -> Result<Option<Undone>, ServiceError> {
    let text = format!(
        "# Written by `qk node install --system`.\nu {SYSTEM_GROUP} - \"qk node\" {SYSTEM_HOME}\n"
    );
    write_if_other(Path::new(SYSUSERS), &text)?;
    let made = Command::new("systemd-sysusers")
        .arg(SYSUSERS)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let why = match made.await {
        Ok(output) if output.status.success() => return Ok(None),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("systemd-sysusers does not start ({error})"),
    };
    Ok(Some(Undone {
        why: format!("the user {SYSTEM_GROUP} was not made: {why}"),
        next: format!(
            "useradd --system --user-group --home-dir {SYSTEM_HOME} {SYSTEM_GROUP}\nqk node install --system"
        ),
    }))
}

async fn remove_system_user(removed: &mut Removed) -> Result<(), ServiceError> {
    let made = PathBuf::from(SYSUSERS);
    // One that somebody else made stays.
    if !remove_if_there(&made)? {
        return Ok(());
    }
    removed.files.push(made);
    let output = Command::new("userdel")
        .arg(SYSTEM_GROUP)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        // 6: there is none.
        Ok(output) if output.status.code() == Some(6) => Ok(()),
        Ok(output) => Err(ServiceError::Manager {
            command: format!("userdel {SYSTEM_GROUP}"),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
        Err(error) => Err(at(Path::new("userdel"))(error)),
    }
}

/// Only what is certainly a home of qk's is removed as a whole.
fn check_home(home: &Home) -> Result<(), ServiceError> {
    let dir = home.dir();
    let no = |why: &str| {
        Err(ServiceError::NotPurged {
            dir: dir.to_owned(),
            why: why.to_owned(),
        })
    };
    let Ok(found) = fs::symlink_metadata(dir) else {
        return Ok(());
    };
    if !found.is_dir() {
        return no("it is not a directory");
    }
    let users = std::env::var_os("HOME").map(PathBuf::from);
    if dir.parent().is_none() || users.is_some_and(|users| users.starts_with(dir)) {
        return no("other things lie in it");
    }
    let empty = fs::read_dir(dir).map_err(at(dir))?.next().is_none();
    let ours = ["keys", "store", "networks"].iter();
    if !empty && !ours.clone().any(|one| dir.join(one).is_dir()) {
        return no("nothing in it is qk's; remove it yourself if it is to go");
    }
    Ok(())
}

fn remove_home(home: &Home) -> Result<Option<PathBuf>, ServiceError> {
    let dir = home.dir();
    if !dir.exists() {
        return Ok(None);
    }
    // No node starts on it meanwhile.
    let _held = control::exclude(home).map_err(|problem| ServiceError::NotPurged {
        dir: dir.to_owned(),
        why: problem.message,
    })?;
    fs::remove_dir_all(dir).map_err(at(dir))?;
    Ok(Some(dir.to_owned()))
}

/// Replaces a file as a whole, unless it says the same already.
fn write_if_other(path: &Path, text: &str) -> Result<bool, ServiceError> {
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let written = || {
        fs::create_dir_all(dir)?;
        let mut temp = NamedTempFile::new_in(dir)?;
        temp.write_all(text.as_bytes())?;
        let mode = fs::Permissions::from_mode(0o644);
        temp.as_file().set_permissions(mode)?;
        temp.as_file().sync_all()?;
        temp.persist(path).map_err(|error| error.error)
    };
    written().map_err(at(path))?;
    Ok(true)
}

fn remove_if_there(path: &Path) -> Result<bool, ServiceError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    move |error| ServiceError::Io {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refused(home: &Path) -> String {
        check_home(&Home::at(home)).unwrap_err().to_string()
    }

    #[test]
    fn only_a_home_of_qk_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("documents");
        assert!(
            check_home(&Home::at(&here)).is_ok(),
            "nothing there, nothing to do"
        );
        fs::create_dir(&here).unwrap();
        fs::write(here.join("thesis"), "years of work").unwrap();
        assert!(refused(&here).contains("nothing in it is qk's"));
        // As it would be without the check.
        fs::create_dir(here.join("keys")).unwrap();
        assert!(check_home(&Home::at(&here)).is_ok());
        assert!(refused(Path::new("/")).contains("other things"));
        let user = std::env::var_os("HOME").map(PathBuf::from);
        if let Some(user) = user.filter(|user| user.is_dir()) {
            assert!(refused(&user).contains("other things"));
        }
        let link = dir.path().join("link");
        symlink(&here, &link).unwrap();
        assert!(refused(&link).contains("not a directory"));
    }

    #[test]
    fn a_file_that_says_the_same_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/qk.service");
        assert!(write_if_other(&path, "one").unwrap());
        assert!(!write_if_other(&path, "one").unwrap());
        assert!(write_if_other(&path, "two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
