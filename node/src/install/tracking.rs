//! `.crates.toml` and `.crates2.json`: what cargo knows to be installed in a root, and what
//! cargo-binstall noted there.
//!
//! They are rewritten in place, as cargo does it: cargo locks the files themselves, so a new file
//! under the old name would leave a waiting cargo with the lock of a file that is gone. What a
//! crash may tear is repaired from the journal ([`super::journal`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use toml_edit::{Array, DocumentMut, Item, Table};

use super::binstall::{RECORDS, Records};
use super::{InstallError, InstallMeta, io};

const TOML: &str = ".crates.toml";
const JSON: &str = ".crates2.json";
/// Member of `.crates2.json` that cargo passes on: only some executables were asked for.
const PARTIAL: &str = "partial";
/// Either file may be this long.
const TRACKING_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest wait for a cargo that installs into the same root.
const LOCK_TIMEOUT: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The files of a root, locked against cargo, cargo-binstall and other qk: `.crates.toml`,
/// `.crates2.json` and, where it is there, cargo-binstall's.
#[derive(Debug)]
pub(super) struct Locked {
    files: Vec<(PathBuf, File)>,
    /// Directory of the root, which only qk locks: also an installation that cargo's files are not to
    /// know of is the only one of its time.
    _root: File,
}

impl Locked {
    /// Opens, creates and locks the files of a root, in the order in which cargo-binstall and cargo
    /// do: otherwise two could wait for each other.
    pub(super) fn take(root: &Path) -> Result<Self, InstallError> {
        let lone = Self::untracked(root)?;
        let records = match root.join(RECORDS) {
            path if path.is_file() => Some(lock(path)?),
            _ => None,
        };
        let mut files = vec![lock(root.join(TOML))?, lock(root.join(JSON))?];
        files.extend(records);
        Ok(Self { files, ..lone })
    }

    /// Locks a root whose files stay as they are.
    pub(super) fn untracked(root: &Path) -> Result<Self, InstallError> {
        let dir = File::open(root).map_err(io(root))?;
        // Some file systems lock no directories; cargo's files are locked all the same.
        match wait_for(&dir, root) {
            Err(InstallError::Io { .. }) | Ok(()) => {}
            Err(busy) => return Err(busy),
        }
        Ok(Self {
            files: Vec::new(),
            _root: dir,
        })
    }

    /// The contents of all of them.
    pub(super) fn texts(&self) -> Result<Vec<String>, InstallError> {
        self.files.iter().map(text).collect()
    }

    /// Where they are.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Replaces the contents of them. They are not on the disk yet.
    pub(super) fn write(&self, texts: &[String]) -> Result<(), InstallError> {
        // `.crates.toml` is the truth; cargo brings the other one in line with it.
        for ((path, file), text) in self.files.iter().zip(texts) {
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
        Tracking::parse(&self.paths(), &self.texts()?)
    }
}

/// What is installed, with everything in the files that is not ours.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    toml: DocumentMut,
    json: Map<String, Value>,
    /// None where cargo-binstall keeps no list, or one that cannot be read: it is left alone.
    records: Option<Records>,
}

impl Tracking {
    /// Reads cargo's files of a root without a lock: good for a look, not for a change.
    pub(super) fn glance(root: &Path) -> Result<Self, InstallError> {
        let paths = [TOML, JSON].map(|name| root.join(name));
        let read = |path: &PathBuf| match File::open(path) {
            Ok(file) => text(&(path.clone(), file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(io(path)(error)),
        };
        let texts: Result<Vec<String>, _> = paths.iter().map(read).collect();
        Self::parse(&paths, &texts?)
    }

    fn parse(paths: &[PathBuf], texts: &[String]) -> Result<Self, InstallError> {
        let ([toml, json, records @ ..], [of_toml, of_json, ..]) = (texts, paths) else {
            return Ok(Self::default());
        };
        let bad = |path: &Path, why: String| InstallError::Tracking {
            path: path.to_owned(),
            why,
        };
        let toml = toml.parse::<DocumentMut>();
        let toml = toml.map_err(|error| bad(of_toml, error.to_string()))?;
        let json = match json.trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).map_err(|error| bad(of_json, error.to_string()))?,
        };
        let records = records.first().and_then(|text| {
            let records = Records::parse(text);
            let warn = |why: &String| tracing::warn!(why, "{RECORDS} cannot be read; left alone");
            records.inspect_err(warn).ok()
        });
        let mut tracking = Self {
            toml,
            json,
            records,
        };
        tracking.check().map_err(|(is_json, why)| match is_json {
            true => bad(of_json, why),
            false => bad(of_toml, why),
        })?;
        tracking.align();
        Ok(tracking)
    }

    /// The text of the files, as [`Locked`] has them.
    pub(super) fn texts(&self) -> Result<Vec<String>, InstallError> {
        let json = serde_json::to_string(&self.json).map_err(|error| InstallError::Tracking {
            path: JSON.into(),
            why: error.to_string(),
        })?;
        let records = self.records.iter().map(Records::text);
        Ok([self.toml.to_string(), json]
            .into_iter()
            .chain(records)
            .collect())
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
            && (meta.partial || info[PARTIAL] != true)
    }

    /// The choices that a package was installed with, as far as they are known.
    pub(super) fn meta(&self, key: &str) -> InstallMeta {
        let info = self.json.get("installs").and_then(|all| all.get(key));
        let info = info.unwrap_or(&Value::Null);
        let text = |name: &str| info[name].as_str().map(str::to_owned);
        let features = info["features"].as_array().into_iter().flatten();
        InstallMeta {
            version_req: text("version_req"),
            features: features
                .filter_map(|one| one.as_str().map(str::to_owned))
                .collect(),
            all_features: info["all_features"] == true,
            no_default_features: info["no_default_features"] == true,
            profile: text("profile").unwrap_or_default(),
            target: text("target").unwrap_or_default(),
            rustc: text("rustc").unwrap_or_default(),
            partial: info[PARTIAL] == true,
        }
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
            info.remove(PARTIAL);
            if meta.partial {
                info.insert(PARTIAL.to_owned(), true.into());
            }
        }
        if let Some(records) = &mut self.records {
            records.record(key, bins, meta);
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
        if let Some(records) = &mut self.records {
            records.leave(key, &left);
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
    match wait_for(&file, &path) {
        // Cargo goes on without a lock where the file system has none, and so does this.
        Err(InstallError::Io { error, .. }) if error.kind() == ErrorKind::Unsupported => {
            Ok((path, file))
        }
        waited => waited.map(|()| (path, file)),
    }
}

fn wait_for(file: &File, path: &Path) -> Result<(), InstallError> {
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(io(path)(error)),
            Err(TryLockError::WouldBlock) if started.elapsed() > LOCK_TIMEOUT => {
                return Err(InstallError::Busy(path.to_owned()));
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
