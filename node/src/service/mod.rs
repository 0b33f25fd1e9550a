//! The node as a background service: installed, started, stopped and removed by the service
//! manager of this system. Linux with systemd is what there is; elsewhere `qk node` runs in the
//! foreground, under whatever starts it there.

pub mod notify;
#[cfg(target_os = "linux")]
mod systemd;
#[cfg(target_os = "linux")]
mod unit;

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::home::Home;

/// The home of the node of the whole system.
pub const SYSTEM_HOME: &str = "/var/lib/qk";
/// Its control socket, which the members of [`SYSTEM_GROUP`] may use.
pub const SYSTEM_SOCKET: &str = "/run/qk/qk.sock";
/// The user that it runs as, and the group of those who may fetch and query.
pub const SYSTEM_GROUP: &str = "qk";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This user's.
    User,
    /// The whole system's.
    System,
}

/// What is to run.
#[derive(Debug, Clone)]
pub struct Order {
    /// Whose service.
    pub scope: Scope,
    /// Where its node keeps things.
    pub home: Home,
    /// The executable.
    pub program: PathBuf,
    /// What follows `qk node`.
    pub args: Vec<String>,
}

/// What an installation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Installed {
    /// Whose service.
    pub scope: Scope,
    /// The file that describes it.
    pub unit: PathBuf,
    /// Whether that file is new or was changed.
    pub changed: bool,
    /// Whether it starts by itself from now on.
    pub enabled: bool,
    /// Whether it runs, and has said that it is ready.
    pub running: bool,
    /// What was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undone: Option<Undone>,
}

/// What was not done, why, and how a person does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Undone {
    /// Why not.
    pub why: String,
    /// Commands, one a line.
    pub next: String,
}

/// What a removal came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Removed {
    /// Files that were removed; none if there was no service.
    pub files: Vec<PathBuf>,
    /// The home, if it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purged: Option<PathBuf>,
    /// A node that still runs on the home: it is not the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still_running: Option<u32>,
}

/// Why a service was not installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another system.
    #[error("services are not supported on this system: run `qk node`")]
    NotSupported,
    /// Only root may.
    #[error("the system's service is root's to change: run it again as root")]
    NotRoot,
    /// Another node has the home.
    #[error("a node that is not the service runs on {home}: process {process}; stop it first")]
    Running {
        /// The home.
        home: PathBuf,
        /// The node's process.
        process: u32,
    },
    /// The service could not start this program.
    #[error("{program} cannot be the service's program: {why}")]
    Program {
        /// Which one.
        program: PathBuf,
        /// Why not.
        why: String,
    },
    /// A text that cannot stand in the service's description.
    #[error("{0:?} has a control character or is no UTF-8: it cannot stand in a unit")]
    Text(String),
    /// Not a directory that may be removed as qk's home.
    #[error("{dir} is not removed: {why}")]
    NotPurged {
        /// Which one.
        dir: PathBuf,
        /// Why not.
        why: String,
    },
    /// The service manager did not do what it was asked for.
    #[error("`{command}` failed: {said}")]
    Manager {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// A file.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Writes the service's description, has it started now and from now on. Doing it again changes
/// what is different and nothing else.
///
/// # Errors
/// See [`ServiceError`]. That no service manager runs is none: see [`Installed::undone`].
pub async fn install(order: &Order) -> Result<Installed, ServiceError> {
    #[cfg(target_os = "linux")]
    return systemd::install(order).await;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = order;
        Err(ServiceError::NotSupported)
    }
}

/// Stops the service and removes its description; with `purge` also the node's home, keys included.
/// Doing it again does nothing.
///
/// # Errors
/// See [`ServiceError`].
pub async fn uninstall(scope: Scope, home: &Home, purge: bool) -> Result<Removed, ServiceError> {
    #[cfg(target_os = "linux")]
    return systemd::uninstall(scope, home, purge).await;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (scope, home, purge);
        Err(ServiceError::NotSupported)
    }
}
