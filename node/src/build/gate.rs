//! The determinism gate: a second build of the same order under other circumstances, and what of it
//! came out differently.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::linked::Input;
use super::{Collected, Linked, Options};
use crate::compare::{self, Cause, CompareError, Comparison, causes_in_library};

/// Inputs of the linker that are larger are only said to differ.
const LOOKED_INTO_BYTES_MAX: u64 = 256 << 20;

/// What two builds of one order came to.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Findings {
    /// Whether both gave the same archive.
    pub same_root: bool,
    /// Whether the linker was given the same; nothing where there is no record of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_work: Option<bool>,
    /// The first thing that the linker was given and that differs, in the order in which it was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<First>,
    /// The archives beside each other, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

/// The first library, or object of the package's own, that two builds made differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct First {
    /// The package as the lock names it, `name version`, or the crate as the file does.
    pub package: String,
    /// Whether it is the package that was built itself.
    pub own: bool,
    /// What the bytes suggest.
    pub causes: BTreeSet<Cause>,
}

impl Options {
    /// The same build under other circumstances: half the jobs (two instead of one) and another host
    /// name. Directory and time are others anyway.
    #[must_use]
    pub fn varied(&self) -> Self {
        Self {
            jobs: if self.jobs == 1 { 2 } else { self.jobs / 2 },
            hostname: compare::OTHER_HOST.to_owned(),
            ..self.clone()
        }
    }
}

impl Findings {
    /// Compares two builds of `name`, each with its archive. Both were made with
    /// [`Options::keep_linked`].
    ///
    /// # Errors
    /// When an archive cannot be read.
    pub fn of(
        name: &str,
        one: (&Collected, &Path),
        other: (&Collected, &Path),
    ) -> Result<Self, CompareError> {
        let comparison = compare::archives(one.1, other.1)?;
        let same_root = comparison.roots[0] == comparison.roots[1];
        let linked = one.0.linked.as_ref().zip(other.0.linked.as_ref());
        Ok(Self {
            same_root,
            same_work: linked.map(|(one, other)| one.work_digest() == other.work_digest()),
            first: linked.and_then(|(mine, yours)| first(name, &one.0.lock, mine, yours)),
            comparison: (!same_root).then_some(comparison),
        })
    }

    /// Whether the artifact may be published.
    pub fn passed(&self) -> bool {
        self.same_root
    }
}

/// Finds the first difference.
fn first(name: &str, lock: &[u8], one: &Linked, other: &Linked) -> Option<First> {
    let others: BTreeMap<_, _> = other
        .inputs()
        .iter()
        .map(|input| ((&input.link, &input.name), input))
        .collect();
    let differing = one.inputs().iter().filter_map(|input| {
        let pair = others.get(&(&input.link, &input.name)).copied();
        let differs = pair.is_none_or(|pair| pair.digest != input.digest);
        differs.then_some((input, pair))
    });
    // The linker is given what uses something before what is used, and objects before libraries.
    let (input, pair) = differing.max_by_key(|(input, _)| (is_library(input), input.place))?;
    let read = |linked: &Linked, input: &Input| {
        let file = linked.file(input)?;
        let small = fs::metadata(&file).ok()?.len() <= LOOKED_INTO_BYTES_MAX;
        small.then(|| fs::read(file).ok())?
    };
    let bytes = read(one, input).zip(pair.and_then(|pair| read(other, pair)));
    let krate = library_name(&input.name);
    let package = match &krate {
        Some(krate) => package(krate, lock),
        None => name.to_owned(),
    };
    let same = |a: &str, b: &str| a.replace('-', "_") == b.replace('-', "_");
    Some(First {
        own: krate.is_none_or(|krate| same(&krate, name)),
        package,
        causes: bytes.map_or_else(BTreeSet::new, |(one, other)| {
            causes_in_library(&one, &other)
        }),
    })
}

fn is_library(input: &Input) -> bool {
    input.name.ends_with(".rlib")
}

/// `foo_bar` of `libfoo_bar-0123456789abcdef.rlib`; nothing for an object.
fn library_name(file: &str) -> Option<String> {
    let name = file.strip_prefix("lib")?.strip_suffix(".rlib")?;
    let name = name.rsplit_once('-').map_or(name, |(name, _)| name);
    Some(name.to_owned())
}

/// The package that a library is of, with its version if the lock has one of that name alone.
fn package(krate: &str, lock: &[u8]) -> String {
    let lock: Option<toml::Table> = std::str::from_utf8(lock)
        .ok()
        .and_then(|text| text.parse().ok());
    let packages = lock
        .as_ref()
        .and_then(|lock| lock.get("package")?.as_array());
    let found: Vec<String> = packages
        .into_iter()
        .flatten()
        .filter_map(|package| {
            let name = package.get("name")?.as_str()?;
            let version = package.get("version")?.as_str()?;
            (name.replace('-', "_") == krate).then(|| format!("{name} {version}"))
        })
        .collect();
    match &found[..] {
        [one] => one.clone(),
        _ => krate.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_build_has_other_jobs_and_another_host() {
        let jobs = |jobs| {
            let options = Options {
                jobs,
                ..Options::default()
            };
            let varied = options.varied();
            assert_ne!(varied.hostname, options.hostname);
            varied.jobs
        };
        assert_eq!([1, 2, 3, 16].map(jobs), [2, 1, 1, 8]);
    }

    #[test]
    fn files_are_named_by_their_packages() {
        let lock = b"[[package]]\nname = \"libz-sys\"\nversion = \"1.1.20\"\n\
            [[package]]\nname = \"syn\"\nversion = \"1.0.0\"\n\
            [[package]]\nname = \"syn\"\nversion = \"2.0.0\"\n";
        let named = |file: &str| library_name(file).map(|krate| package(&krate, lock));
        assert_eq!(
            named("liblibz_sys-0f.rlib").as_deref(),
            Some("libz-sys 1.1.20")
        );
        assert_eq!(named("libsyn-0f.rlib").as_deref(), Some("syn"));
        assert_eq!(named("libother-0f.rlib").as_deref(), Some("other"));
        assert_eq!(named("main-0f.main.1-cgu.0.rcgu.o"), None);
    }
}
