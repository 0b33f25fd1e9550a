//! The first phase of a build: sources, with network and without any code of the crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::compile::shims;
use super::run::{Job, doing};
use super::sandbox::{Bind, Line};
use super::sources::{self, UnpackError};
use super::{BuildError, Event, Reason, linked};

/// A licence text is at most this large, and a crate has at most this many.
const LICENSE_BYTES_MAX: u64 = 1 << 20;
const LICENSES_MAX: usize = 32;

impl Job<'_> {
    /// Returns whether the crate brings its own lock.
    pub(super) fn unpack(&mut self) -> Result<bool, BuildError> {
        let order = self.order;
        let prefix = format!("{}-{}", order.name, order.version);
        let source = self.work.at("src");
        sources::unpack(&order.crate_file, &prefix, &source)
            .map_err(|error| self.failed(unpacking(&error), error.to_string()))?;
        if source.join("Cargo.lock").is_file() {
            return Ok(true);
        }
        if !order.resolve_lock {
            let detail = "the .crate holds no Cargo.lock".to_owned();
            return Err(self.failed(Reason::NoLock, detail));
        }
        // cargo writes the lock beside the manifest; no code of the crate runs while it may.
        self.builder.sandbox.own(&source)?;
        Ok(false)
    }

    pub(super) fn fetch(&mut self, own_lock: bool) -> Result<(), BuildError> {
        let access = &self.builder.access;
        let config = self.work.at("scratch").join("fetch.toml");
        fs::write(&config, access.config()).map_err(doing("write cargo's configuration"))?;
        let nsswitch = self.work.at("scratch").join("nsswitch.conf");
        fs::write(&nsswitch, "hosts: files dns\n").map_err(doing("write nsswitch.conf"))?;
        let mut binds = self.tools.binds();
        binds.extend(access.binds());
        binds.push(Bind::read(nsswitch, "/etc/nsswitch.conf"));
        binds.push(Bind::write(self.work.at("fetch-home"), "/qk/fetch-home"));
        binds.push(Bind::read(config, "/qk/fetch-home/config.toml"));
        binds.push(Bind::write(self.work.at("vendor"), "/qk/vendor"));
        binds.push(Bind {
            writable: !own_lock,
            ..Bind::read(self.work.at("src"), "/qk/src")
        });
        let mut words = vec!["/qk/rust/bin/cargo", "vendor", "--versioned-dirs"];
        words.extend(own_lock.then_some("--locked"));
        words.extend(["--respect-source-config", "--color=never", "/qk/vendor"]);
        let mut run = self.base(binds, &words);
        run.network = true;
        run.env.push(("CARGO_HOME".into(), "/qk/fetch-home".into()));
        run.env.extend(access.env().iter().cloned());
        let end = self.watch(&run, |line| {
            let Line::Err(text) = line else {
                return None;
            };
            let line = text.trim();
            let worth = line.starts_with("Download") || line.starts_with("Updating");
            worth.then(|| Event::Fetching { line: line.into() })
        })?;
        self.judge(end, Reason::Fetch)
    }

    pub(super) fn lock(&mut self) -> Result<Vec<u8>, BuildError> {
        let path = self.work.at("src").join("Cargo.lock");
        let text = sources::read_text(&path, sources::LOCK_BYTES_MAX);
        let text = text.map_err(|error| {
            let detail = format!("its Cargo.lock cannot be read: {error}");
            self.failed(Reason::BadCrate, detail)
        })?;
        Ok(text.into_bytes())
    }

    /// Writes what the build phase needs besides the sources.
    pub(super) fn prepare(&mut self, lock: &[u8]) -> Result<(), BuildError> {
        let text = String::from_utf8_lossy(lock);
        let config = sources::vendored_config(&text, "/qk/vendor")
            .map_err(|why| self.failed(Reason::BadCrate, format!("its Cargo.lock: {why}")))?;
        let tools = self.work.at("tools");
        let write = |name: &str, text: &str| {
            let mut file = File::create(tools.join(name))?;
            file.write_all(text.as_bytes())?;
            let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
            file.set_permissions(mode)
        };
        write("config.toml", &config).map_err(doing("write cargo's configuration"))?;
        for (name, text) in shims() {
            write(name, &text).map_err(doing("write the linker's shims"))?;
        }
        let linker = linked::linker(&self.order.target);
        write("linker", &linker).map_err(doing("write the linker's wrapper"))?;
        Ok(())
    }
}

/// Whose fault it is that a `.crate` cannot be unpacked.
fn unpacking(error: &UnpackError) -> Reason {
    const FULL: &[io::ErrorKind] = &[
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
    ];
    match error {
        UnpackError::Read(error) if FULL.contains(&error.kind()) => Reason::DiskFull,
        UnpackError::Read(_) | UnpackError::Entry { .. } | UnpackError::TooMuch { .. } => {
            Reason::BadCrate
        }
    }
}

/// The texts at the top of the crate whose names begin as those of licences do; part of recipe 1.
pub(super) fn licenses(source: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    const BEGINNINGS: &[&str] = &["license", "licence", "copying", "notice", "unlicense"];
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let lower = name.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        let chosen = BEGINNINGS.iter().any(|start| lower.starts_with(start));
        if chosen && entry.file_type()?.is_file() && name.chars().all(plain) && name.len() <= 80 {
            names.insert(name);
        }
    }
    let mut texts = BTreeMap::new();
    for name in names.into_iter().take(LICENSES_MAX) {
        let mut bytes = Vec::new();
        let file = File::open(source.join(&name))?;
        file.take(LICENSE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= LICENSE_BYTES_MAX {
            texts.insert(name, bytes);
        }
    }
    Ok(texts)
}
