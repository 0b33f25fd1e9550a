//! What a build ran on, as statements tell it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sandbox::Sandbox;
use super::sources::read_text;
use super::toolchain::{ZIG, ZIGBUILD};

/// What a build ran on. Nothing here enters the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Environment {
    /// The system that the tools came from, as `/etc/os-release` names it.
    pub os: String,
    /// The kernel's release.
    pub kernel: String,
    /// Versions of what took part, by name.
    pub tools: BTreeMap<String, String>,
    /// What held it: `bubblewrap+seccomp` or `landlock+seccomp`, with `+cgroup` where memory is limited as
    /// a whole.
    pub sandbox: String,
    /// Processors that are online.
    pub cpus: u32,
}

impl Environment {
    pub(crate) fn of(root: &Path, sandbox: &Sandbox, cgroup: bool) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let tools = [
            (sandbox.name(), sandbox.version()),
            (ZIG.project, ZIG.version),
            (ZIGBUILD.project, ZIGBUILD.version),
        ];
        let tools = tools.map(|(name, version)| (name.to_owned(), bounded(version)));
        let group = if cgroup { "+cgroup" } else { "" };
        let uname = rustix::system::uname();
        Self {
            os: bounded(&system(root).unwrap_or_else(|| "Linux".into())),
            kernel: bounded(&uname.release().to_string_lossy()),
            tools: tools.into(),
            sandbox: format!("{}+seccomp{group}", sandbox.name()),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        }
    }
}

fn system(root: &Path) -> Option<String> {
    let text = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| read_text(&root.join(path), 64 * 1024).ok())?;
    let name = |line: &str| line.strip_prefix("PRETTY_NAME=").map(str::to_owned);
    let name = text.lines().find_map(name)?;
    Some(name.trim_matches('"').to_owned())
}

/// Statements bound their texts; so do we where they come from the host.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
