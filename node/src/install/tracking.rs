//! `.crates.toml` and `.crates2.json`: what cargo knows to be installed in a root.
//!
//! Both are rewritten in place, as cargo does it: cargo locks the files themselves, so a new file
//! under the old name would leave a waiting cargo with the lock of a file that is gone. What a
//! crash may tear is repaired from the journal ([`super::journal`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use toml_edit::{Array, DocumentMut, Item, Table};

use super::{InstallError, InstallMeta, io};

const TOML: &str = ".crates.toml";
const JSON: &str = ".crates2.json";
/// Either file may be this long.
const TRACKING_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest wait for a cargo that installs into the same root.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Both files, locked against cargo and other qk, in cargo's order.
#[derive(Debug)]
pub(super) struct Locked {
    toml: (PathBuf, File),
    json: (PathBuf, File),
}

impl Locked {
    /// Opens, creates and locks the files of a root.
    pub(super) fn take(root: &Path) -> Result<Self, InstallError> {
        Ok(Self {
            toml: lock(root.join(TOML))?,
            json: lock(root.join(JSON))?,
        })
    }

    /// The contents of `.crates.toml` and `.crates2.json`.
    pub(super) fn texts(&self) -> Result<[String; 2], InstallError> {
        Ok([text(&self.toml)?, text(&self.json)?])
    }

    /// Where they are.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.toml.0.clone(), self.json.0.clone()]
    }

    /// Replaces the contents of both. They are not on the disk yet.
    pub(super) fn write(&self, [toml, json]: &[String; 2]) -> Result<(), InstallError> {
        // `.crates.toml` is the truth; cargo brings the other one in line with it.
        for ((path, file), text) in [(&self.toml, toml), (&self.json, json)] {
            let mut file: &File = file;
            file.rewind()
                .and_then(|()| file.set_len(0))
                .and_then(|()| file.write_all(text.as_bytes()))
                .map_err(io(path))?;
        }
        Ok(())
    }

    /// Reads what is installed.
    pub(super) fn read(&self) -> Result<Tracking, InstallError> {
        let texts = self.texts()?;
        Tracking::parse(&texts).map_err(|why| self.bad(why))
    }

    fn bad(&self, (json, why): (bool, String)) -> InstallError {
        let path = if json { &self.json.0 } else { &self.toml.0 };
        InstallError::Tracking {
            path: path.clone(),
            why,
        }
    }
}

/// What is installed, with everything in the files that is not ours.
#[derive(Debug)]
pub(super) struct Tracking {
    toml: DocumentMut,
    json: Map<String, Value>,
}

impl Tracking {
    /// Reads both files of a root without a lock: good for a look, not for a change.
    pub(super) fn glance(root: &Path) -> Option<Self> {
        let read = |name: &str| {
            let path = root.join(name);
            let file = File::open(&path).ok()?;
            text(&(path, file)).ok()
        };
        Self::parse(&[read(TOML)?, read(JSON)?]).ok()
    }

    /// The error says whether it is about the JSON file.
    fn parse([toml, json]: &[String; 2]) -> Result<Self, (bool, String)> {
        let toml: DocumentMut = toml
            .parse()
            .map_err(|error: toml_edit::TomlError| (false, error.to_string()))?;
        let json = match json.trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).map_err(|error| (true, error.to_string()))?,
        };
        let mut tracking = Self { toml, json };
        tracking.check()?;
        tracking.align();
        Ok(tracking)
    }

    /// The text of both files.
    pub(super) fn texts(&self) -> Result<[String; 2], InstallError> {
        let json = serde_json::to_string(&self.json).map_err(|error| InstallError::Tracking {
            path: JSON.into(),
            why: error.to_string(),
        })?;
        Ok([self.toml.to_string(), json])
    }

    /// Every package with its executables.
    pub(super) fn packages(&self) -> BTreeMap<String, BTreeSet<String>> {
        let packages = self.toml.get("v1").and_then(Item::as_table_like);
        packages
            .into_iter()
            .flat_map(|table| table.iter())
            .map(|(key, bins)| (key.to_owned(), bins_of(bins)))
            .collect()
    }

    /// Whether a package was installed with the same choices, as far as cargo compares them.
    pub(super) fn is_current(&self, key: &str, meta: &InstallMeta) -> bool {
        let Some(info) = self.json.get("installs").and_then(|all| all.get(key)) else {
            return false;
        };
        let features: Option<BTreeSet<&str>> = info["features"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).collect());
        features == Some(meta.features.iter().map(String::as_str).collect())
            && info["all_features"] == meta.all_features
            && info["no_default_features"] == meta.no_default_features
            && info["profile"] == meta.profile
            && (info["target"].is_null() || info["target"] == meta.target)
    }

    /// Notes that a package owns these executables, and that no other one does.
    pub(super) fn record(&mut self, key: &str, bins: &BTreeSet<String>, meta: &InstallMeta) {
        for other in self.packages().keys().filter(|other| *other != key) {
            self.forget(other, bins);
        }
        let all: Array = bins.iter().collect();
        self.v1().insert(key, Item::Value(all.into()));
        let fields = json!({
            "version_req": meta.version_req,
            "bins": bins,
            "features": meta.features,
            "all_features": meta.all_features,
            "no_default_features": meta.no_default_features,
            "profile": meta.profile,
            "target": meta.target,
            "rustc": meta.rustc,
        });
        let info = self.installs().entry(key).or_insert_with(|| json!({}));
        if !info.is_object() {
            *info = json!({});
        }
        if let (Some(info), Value::Object(fields)) = (info.as_object_mut(), fields) {
            info.extend(fields);
        }
    }

    /// Notes that a package does not own these executables any more; a package without any is
    /// gone.
    pub(super) fn forget(&mut self, key: &str, bins: &BTreeSet<String>) {
        let Some(owned) = self.packages().remove(key) else {
            return;
        };
        let left: BTreeSet<String> = owned.difference(bins).cloned().collect();
        if left.len() == owned.len() && !left.is_empty() {
            return;
        }
        if left.is_empty() {
            self.v1().remove(key);
            self.installs().remove(key);
            return;
        }
        let array: Array = left.iter().collect();
        self.v1().insert(key, Item::Value(array.into()));
        if let Some(info) = self.installs().get_mut(key) {
            info["bins"] = json!(left);
        }
    }

    fn check(&self) -> Result<(), (bool, String)> {
        let v1 = self.toml.get("v1");
        if v1.is_some_and(|v1| !v1.is_table_like()) {
            return Err((false, "v1 is not a table".to_owned()));
        }
        let Some(installs) = self.json.get("installs") else {
            return Ok(());
        };
        match installs.as_object() {
            Some(all) if all.values().all(Value::is_object) => Ok(()),
            _ => Err((true, "installs is not an object of objects".to_owned())),
        }
    }

    /// Brings the JSON file in line with `.crates.toml`, which older cargos write alone.
    fn align(&mut self) {
        let packages = self.packages();
        let installs = self.installs();
        installs.retain(|key, _| packages.contains_key(key));
        for (key, bins) in packages {
            let info = installs.entry(key).or_insert_with(|| {
                json!({
                    "version_req": null, "features": [], "all_features": false,
                    "no_default_features": false, "profile": "release", "target": null,
                    "rustc": null,
                })
            });
            info["bins"] = json!(bins);
        }
    }

    fn v1(&mut self) -> &mut dyn toml_edit::TableLike {
        self.toml
            .entry("v1")
            .or_insert_with(|| Item::Table(Table::new()))
            .as_table_like_mut()
            .expect("checked when it was read")
    }

    fn installs(&mut self) -> &mut Map<String, Value> {
        self.json
            .entry("installs")
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .expect("checked when it was read")
    }
}

fn bins_of(bins: &Item) -> BTreeSet<String> {
    let list = bins.as_array().into_iter().flatten();
    list.filter_map(|bin| bin.as_str().map(str::to_owned))
        .collect()
}

fn lock(path: PathBuf) -> Result<(PathBuf, File), InstallError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io(&path))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok((path, file)),
            // Cargo goes on without a lock where the file system has none, and so does this.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                return Ok((path, file));
            }
            Err(TryLockError::Error(error)) => return Err(io(&path)(error)),
            Err(TryLockError::WouldBlock) if started.elapsed() > LOCK_TIMEOUT => {
                return Err(InstallError::Busy(path));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
        }
    }
}

fn text((path, file): &(PathBuf, File)) -> Result<String, InstallError> {
    let mut text = String::new();
    let mut file: &File = file;
    file.rewind()
        .and_then(|()| file.take(TRACKING_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(io(path))?;
    if text.len() as u64 > TRACKING_BYTES_MAX {
        return Err(InstallError::Tracking {
            path: path.clone(),
            why: "is longer than 16 MiB".to_owned(),
        });
    }
    Ok(text)
}
