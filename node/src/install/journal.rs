//! One installation as a plan on disk: once it is there, the installation will be finished, by
//! this process or by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tracking::Locked;
use super::{InstallError, InstallMeta, check_bin_name, io, sync};

const JOURNAL: &str = ".qk-install.json";
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What all files begin with that an installation leaves behind when it is killed.
const TEMP_PREFIX: &str = ".qk-";

/// What is to be done. Everything is named relative to the root's `bin`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Key of the package in cargo's files.
    pub(super) key: String,
    /// Executables whose finished copies ([`copy_name`]) take their names.
    pub(super) bins: BTreeSet<String>,
    /// Executables of older versions that the package does not have any more, by their package.
    pub(super) orphans: BTreeMap<String, BTreeSet<String>>,
    /// What cargo's files say of it.
    pub(super) meta: InstallMeta,
    /// `.crates.toml`, `.crates2.json` and, where it is there, cargo-binstall's file after it; none
    /// for an installation that they are not to know of.
    pub(super) texts: Vec<String>,
}

/// A name in `bin` that changes hands, and where the former file is kept until all is done.
struct Step {
    target: PathBuf,
    backup: PathBuf,
    new: Option<PathBuf>,
}

impl Plan {
    /// Puts the plan on disk, and before it what it speaks of: the `copies` and their directory. From
    /// here on a crash is followed by the new state.
    pub(super) fn commit(&self, root: &Path, copies: &[PathBuf]) -> Result<(), InstallError> {
        let path = root.join(JOURNAL);
        let bytes = serde_json::to_vec(self).map_err(|error| InstallError::Tracking {
            path: path.clone(),
            why: error.to_string(),
        })?;
        let mut temp = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempfile_in(root)
            .map_err(io(&path))?;
        temp.write_all(&bytes).map_err(io(&path))?;
        // The plan takes its name when all that it speaks of is on the disk.
        sync(&[copies, &[temp.path().to_owned()]].concat())?;
        temp.persist(&path)
            .map_err(|error| io(&path)(error.error))?;
        sync(&[root.to_owned()])
    }

    /// Carries the plan out. On an error everything is as it was before.
    pub(super) fn carry_out(
        &self,
        root: &Path,
        locked: &Locked,
        before: &[String],
    ) -> Result<(), InstallError> {
        let steps = self.steps(&root.join("bin"));
        for (done, step) in steps.iter().enumerate() {
            if let Err(error) = step.swap() {
                // From here on a crash must not finish what is being undone.
                drop_journal(root)?;
                steps[..done].iter().rev().for_each(Step::undo);
                clean(root);
                return Err(io(&step.target)(error));
            }
        }
        let written = locked.write(&self.texts);
        let changed = [vec![root.join("bin")], locked.paths()].concat();
        if let Err(error) = written.and_then(|()| sync(&changed)) {
            // Should even this fail, the journal stays and completes the new state later.
            locked.write(before)?;
            sync(&locked.paths())?;
            drop_journal(root)?;
            steps.iter().rev().for_each(Step::undo);
            clean(root);
            return Err(error);
        }
        abandon(root)
    }

    fn steps(&self, bin: &Path) -> Vec<Step> {
        let step = |name: &String, new| Step {
            target: bin.join(name),
            backup: bin.join(format!("{TEMP_PREFIX}old-{name}")),
            new,
        };
        let new = |name: &String| Some(bin.join(copy_name(name)));
        let bins = self.bins.iter().map(|name| step(name, new(name)));
        let orphans = self.orphans.values().flatten();
        bins.chain(orphans.map(|name| step(name, None))).collect()
    }

    fn check(&self) -> Result<(), InstallError> {
        let orphans = self.orphans.values().flatten();
        let mut names = self.bins.iter().chain(orphans);
        names.try_for_each(|name| check_bin_name(name))
    }
}

impl Step {
    fn swap(&self) -> std::io::Result<()> {
        let exists = self.target.symlink_metadata().is_ok();
        match (&self.new, exists) {
            (Some(new), false) => std::fs::rename(new, &self.target),
            (Some(new), true) => {
                // A second name for the old file, so that there is one under the name at all times.
                let _ = std::fs::remove_file(&self.backup);
                if std::fs::hard_link(&self.target, &self.backup).is_err() {
                    std::fs::copy(&self.target, &self.backup)?;
                }
                std::fs::rename(new, &self.target)
            }
            (None, true) => std::fs::rename(&self.target, &self.backup),
            (None, false) => Ok(()),
        }
    }

    fn undo(&self) {
        let restored = match std::fs::rename(&self.backup, &self.target) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.new.is_some() => {
                std::fs::remove_file(&self.target)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        if let Err(error) = restored {
            tracing::error!(%error, path = %self.target.display(), "cannot be restored");
        }
    }
}

/// Finishes what an earlier process had planned and not done, and removes what it left.
pub(super) fn recover(root: &Path, locked: &Locked) -> Result<(), InstallError> {
    let path = root.join(JOURNAL);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => file
            .take(JOURNAL_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(io(&path))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            clean(root);
            return Ok(());
        }
        Err(error) => return Err(io(&path)(error)),
    };
    // A journal that cannot be read is one that never came to be: nothing was changed.
    match serde_json::from_slice::<Plan>(&bytes) {
        Ok(plan) if plan.check().is_ok() => plan.finish(root, locked)?,
        _ => tracing::warn!(path = %path.display(), "not a journal of this version; dropped"),
    }
    abandon(root)
}

impl Plan {
    fn finish(&self, root: &Path, locked: &Locked) -> Result<(), InstallError> {
        let bin = root.join("bin");
        for step in self.steps(&bin) {
            match &step.new {
                Some(new) if new.exists() => {
                    std::fs::rename(new, &step.target).map_err(io(&step.target))?;
                }
                Some(_) => {}
                None => match std::fs::remove_file(&step.target) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(io(&step.target)(error));
                    }
                    _ => {}
                },
            }
        }
        sync(std::slice::from_ref(&bin))?;
        if self.texts.is_empty() {
            return Ok(());
        }
        self.repair(locked)?;
        let mut tracking = locked.read()?;
        for (key, orphans) in &self.orphans {
            tracking.forget(key, orphans);
        }
        // Whoever uninstalled the package since has the last word.
        let present: BTreeSet<String> = self
            .bins
            .iter()
            .filter(|name| bin.join(name).is_file())
            .cloned()
            .collect();
        if !present.is_empty() {
            tracking.record(&self.key, &present, &self.meta);
        }
        locked.write(&tracking.texts()?)?;
        sync(&locked.paths())
    }

    /// A crash while cargo's files were written leaves the beginning of what was to be written.
    fn repair(&self, locked: &Locked) -> Result<(), InstallError> {
        let mut now = locked.texts()?;
        for (now, planned) in now.iter_mut().zip(&self.texts) {
            if planned.starts_with(now.as_str()) {
                planned.clone_into(now);
            }
        }
        locked.write(&now)
    }
}

/// Forgets a plan of which nothing was carried out.
pub(super) fn abandon(root: &Path) -> Result<(), InstallError> {
    drop_journal(root)?;
    clean(root);
    Ok(())
}

/// The name of an executable's copy until it takes its place.
pub(super) fn copy_name(bin: &str) -> String {
    format!("{TEMP_PREFIX}new-{bin}")
}

/// Whether there is an installation that was begun and not finished.
pub(super) fn is_pending(root: &Path) -> bool {
    root.join(JOURNAL).exists()
}

fn drop_journal(root: &Path) -> Result<(), InstallError> {
    let path = root.join(JOURNAL);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(&path)(error)),
        _ => Ok(()),
    }
}

/// Removes temporary files; only under the lock, and when no journal speaks of them.
fn clean(root: &Path) {
    for dir in [root.to_owned(), root.join("bin")] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_temp = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(TEMP_PREFIX) && name != JOURNAL);
            if is_temp && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
