//! Which version is asked for, and which one that is.

use semver::{Version, VersionReq};

use super::RegistryError;
use super::index::Line;

/// Most versions that a message lists.
const LISTED_MAX: usize = 5;

/// Which version of a crate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The newest one that is neither yanked nor a pre-release.
    Newest,
    /// This one.
    Exact(Version),
    /// The newest one that meets a requirement.
    Matching(VersionReq),
}

impl Ask {
    /// Reads what stands behind the `@` of `CRATE@VERSION`: nothing, a whole version, or a
    /// requirement that begins with an operator, as `cargo install` takes it.
    ///
    /// # Errors
    /// For anything else, with cargo's advice.
    pub fn parse(text: Option<&str>) -> Result<Self, RegistryError> {
        let Some(text) = text else {
            return Ok(Self::Newest);
        };
        let bad = |why: &dyn std::fmt::Display| {
            RegistryError::Name(format!("{text:?} is not a version: {why}"))
        };
        if text.len() > qk_protocol::key::NAME_BYTES_MAX {
            return Err(bad(&"too long"));
        }
        if text.starts_with(['<', '>', '=', '^', '~', '*']) {
            return match text.parse() {
                Ok(req) => Ok(Self::Matching(req)),
                Err(error) => Err(bad(&error)),
            };
        }
        match text.parse() {
            Ok(version) => Ok(Self::Exact(version)),
            Err(_) if text.parse::<VersionReq>().is_ok() => Err(bad(&format!(
                "give all three numbers, or ask for a range with ^{text}"
            ))),
            Err(error) => Err(bad(&error)),
        }
    }

    pub(super) fn matches(&self, version: &Version) -> bool {
        match self {
            Self::Newest => VersionReq::STAR.matches(version),
            // A requirement ignores build metadata, and so does cargo.
            Self::Exact(exact) => exact.cmp_precedence(version).is_eq(),
            Self::Matching(req) => req.matches(version),
        }
    }
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newest => write!(f, "that is not a pre-release"),
            Self::Exact(version) => write!(f, "{version}"),
            Self::Matching(req) => write!(f, "that meets {req}"),
        }
    }
}

/// The newest line that is asked for and not yanked.
pub(super) fn pick(name: &str, lines: Vec<Line>, ask: &Ask) -> Result<Line, RegistryError> {
    let near = nearest(&lines, ask);
    let (yanked, good): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .filter(|line| ask.matches(&line.vers))
        .partition(|line| line.yanked);
    if let Some(line) = good.into_iter().max_by(|a, b| a.vers.cmp(&b.vers)) {
        return Ok(line);
    }
    let name = name.to_owned();
    if yanked.is_empty() {
        let asked = ask.to_string();
        return Err(RegistryError::NoVersion {
            name,
            asked,
            nearest: near,
        });
    }
    let mut yanked: Vec<_> = yanked.into_iter().map(|line| line.vers).collect();
    yanked.sort_by(|a, b| b.cmp(a));
    yanked.truncate(LISTED_MAX);
    Err(RegistryError::Yanked {
        name,
        yanked,
        nearest: near,
    })
}

/// A few versions to choose from instead: of the same major version first, newest first.
pub(super) fn nearest(lines: &[Line], ask: &Ask) -> Vec<Version> {
    let major = match ask {
        Ask::Newest => None,
        Ask::Exact(version) => Some(version.major),
        Ask::Matching(req) => req.comparators.first().map(|first| first.major),
    };
    let good = lines.iter().filter(|line| !line.yanked);
    let mut versions: Vec<_> = good.map(|line| line.vers.clone()).collect();
    versions.sort_by(|a, b| b.cmp(a));
    let order = |version: &Version| (Some(version.major) != major, !version.pre.is_empty());
    versions.sort_by_key(order);
    versions.truncate(LISTED_MAX);
    versions
}
