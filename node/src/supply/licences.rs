//! Under which licence a package is, as its own manifest says: where the registry's file of it is at hand
//! and is the one that the lock file names. Nothing is downloaded for it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use qk_protocol::hash::Sha256;
use rustsec::cargo_lock::Package;
use serde::Deserialize;

use crate::registry::manifest_in;

/// A licence as it is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Licence {
    /// An SPDX expression.
    Expression(String),
    /// Other words: no SPDX expression, or the name of a file.
    Named(String),
    /// The package's file is not at hand, or says nothing.
    Unknown,
}

impl Licence {
    /// What stands for it in a table.
    pub fn word(&self) -> &str {
        match self {
            Self::Expression(words) | Self::Named(words) => words,
            Self::Unknown => "unknown",
        }
    }

    fn of(stated: Option<String>, file: Option<String>) -> Self {
        let stated = stated.filter(|words| !words.trim().is_empty());
        match (stated, file) {
            (Some(words), _) => match spdx::Expression::canonicalize(&words) {
                Ok(canonical) => {
                    let words = canonical.unwrap_or(words);
                    match spdx::Expression::parse(&words) {
                        Ok(_) => Self::Expression(words),
                        Err(_) => Self::Named(words),
                    }
                }
                Err(_) => Self::Named(words),
            },
            (None, Some(file)) => Self::Named(format!("see {file}")),
            (None, None) => Self::Unknown,
        }
    }
}

/// What cargo downloaded on this machine.
#[derive(Debug)]
pub struct Licences {
    caches: Vec<PathBuf>,
}

impl Licences {
    /// Those of packages that a cargo home has.
    pub fn of_cargo(home: &Path) -> Self {
        let listed = fs::read_dir(home.join("registry/cache"));
        let mut caches: Vec<PathBuf> = listed
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        caches.sort();
        Self { caches }
    }

    /// The licence of a package that the registry's file with this checksum states.
    pub fn of(&self, package: &Package) -> Licence {
        let checksum = package.checksum.as_ref().and_then(|one| one.as_sha256());
        checksum.map_or(Licence::Unknown, |checksum| {
            let (name, version) = (package.name.as_str(), package.version.to_string());
            self.of_release(name, &version, &Sha256(checksum))
        })
    }

    /// The same of a release.
    pub fn of_release(&self, name: &str, version: &str, checksum: &Sha256) -> Licence {
        let file_name = format!("{name}-{version}.crate");
        let files = self.caches.iter().map(|cache| cache.join(&file_name));
        let manifest = files
            .filter_map(|path| File::open(path).ok())
            .find_map(|file| manifest_in(file, name, version, checksum).ok().flatten());
        manifest.map_or(Licence::Unknown, |manifest| stated(&manifest))
    }
}

/// What a manifest states. One that cannot be read states nothing.
fn stated(manifest: &[u8]) -> Licence {
    #[derive(Deserialize)]
    struct Manifest {
        package: Stated,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Stated {
        license: Option<String>,
        license_file: Option<String>,
    }
    let text = String::from_utf8_lossy(manifest);
    match toml::from_str::<Manifest>(&text) {
        Ok(Manifest { package }) => Licence::of(package.license, package.license_file),
        Err(_) => Licence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_what_the_manifest_states() {
        let said = |words: &str| stated(format!("[package]\n{words}\n").as_bytes());
        let expression = |words: &str| Licence::Expression(words.to_owned());
        let named = |words: &str| Licence::Named(words.to_owned());
        assert_eq!(
            said("license = \"MIT OR Apache-2.0\""),
            expression("MIT OR Apache-2.0")
        );
        assert_eq!(
            said("license = \"MIT/Apache-2.0\""),
            expression("MIT OR Apache-2.0")
        );
        assert_eq!(said("license = \"ask me\""), named("ask me"));
        assert_eq!(said("license-file = \"COPYING\""), named("see COPYING"));
        assert_eq!(said("license = \" \""), Licence::Unknown);
        assert_eq!(said("name = \"a\""), Licence::Unknown);
        assert_eq!(stated(b"\xff no toml"), Licence::Unknown);
    }
}
