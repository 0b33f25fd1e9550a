//! Toolchains have a quota of their own: which of them go when they take more, and which never do.
//!
//! What a build uses is locked, by a lock on its directory that ends with the process, and marked as
//! used by the directory's time of change. Both hold for several versions of qk that share one
//! directory.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use qk_protocol::hash::Sha256;

use crate::store::Locked;

use super::toolchain::{Toolchains, Wheel, ZIG, ZIGBUILD};

/// What toolchains may take unless their owner says otherwise.
pub const TOOLCHAINS_QUOTA_BYTES: u64 = 4 << 30;
/// How many hex digits of a wheel's checksum stand in the names of directories.
const SHORT_LEN: usize = 12;
/// Beginnings of the names of directories that are qk's.
const PREFIXES: [&str; 3] = ["ziglang-", "cargo-zigbuild-", "zig-cache-"];
/// What is being removed; of a process that was killed, it stays until the next time.
const REMOVING_PREFIX: &str = "removing-";

/// Toolchains that a build uses. Nobody removes them while this lives.
#[derive(Debug)]
pub struct InUse {
    _locked: Vec<Locked>,
}

/// A toolchain that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The name of its directory.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A directory that may go.
struct Unnamed {
    path: PathBuf,
    name: String,
    used: SystemTime,
}

impl Toolchains {
    /// Keeps the toolchains of these wheels while the answer lives, and notes that they were used.
    /// Those that are not here are left out: the caller finds that out by itself.
    pub fn in_use(&self, wheels: &[&Wheel]) -> InUse {
        let locked = wheels
            .iter()
            .filter_map(|wheel| lock(&self.unpacked(wheel)));
        InUse {
            _locked: locked.collect(),
        }
    }

    /// Removes the least recently used toolchains that neither this version of qk builds with nor
    /// `named` lists, the wheels of all joined networks, until the rest takes at most `quota_bytes`.
    /// One that a build uses stays.
    ///
    /// # Errors
    /// When a directory cannot be read or removed.
    pub fn gc(&self, quota_bytes: u64, named: &BTreeSet<Sha256>) -> io::Result<Vec<Removed>> {
        let (mut unnamed, all) = match self.unnamed(named) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found?,
        };
        // Their files are many: counted only when something could go.
        if unnamed.is_empty() {
            return Ok(Vec::new());
        }
        unnamed.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        let mut total: u64 = all.iter().map(|path| bytes_of(path)).sum();
        let mut removed = Vec::new();
        for Unnamed { path, name, .. } in unnamed {
            if total <= quota_bytes {
                break;
            }
            let bytes = bytes_of(&path);
            if self.remove(&path)? {
                total -= bytes;
                removed.push(Removed { name, bytes });
            }
        }
        Ok(removed)
    }

    /// The directories that may go, and all that count.
    fn unnamed(&self, named: &BTreeSet<Sha256>) -> io::Result<(Vec<Unnamed>, Vec<PathBuf>)> {
        let short = |digest: &Sha256| digest.to_string()[..SHORT_LEN].to_owned();
        let built_in = [&ZIG, &ZIGBUILD].map(|wheel| short(&wheel.checksum()));
        let stay: BTreeSet<String> = named.iter().map(short).chain(built_in).collect();
        let (mut unnamed, mut all) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.directory())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(REMOVING_PREFIX) {
                // Another process may be at it, too.
                let _ = fs::remove_dir_all(entry.path());
            }
            let shorts = shorts_in(&name);
            if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || shorts.is_empty() {
                continue;
            }
            let meta = entry.metadata()?;
            if !meta.is_dir() {
                continue;
            }
            all.push(entry.path());
            if !shorts.is_subset(&stay) {
                unnamed.push(Unnamed {
                    path: entry.path(),
                    name,
                    used: meta.modified()?,
                });
            }
        }
        Ok((unnamed, all))
    }

    /// Moves a directory out of the way, then removes it; false when a build uses it.
    fn remove(&self, path: &Path) -> io::Result<bool> {
        let Some(_alone) = Locked::alone(File::open(path)?)? else {
            return Ok(false);
        };
        let aside = tempfile::Builder::new()
            .prefix(REMOVING_PREFIX)
            .tempdir_in(self.directory())?;
        fs::rename(path, aside.path().join("toolchain"))?;
        aside.close()?;
        Ok(true)
    }
}

/// Locks a toolchain's directory for reading; none while it is being removed, or was.
fn lock(path: &Path) -> Option<Locked> {
    let dir = File::open(path).ok()?;
    let now = SystemTime::now();
    // Where it is somebody else's, it is only less recently used than it could be.
    let _ = dir.set_times(FileTimes::new().set_accessed(now).set_modified(now));
    Locked::shared(dir)
}

/// The abbreviated checksums in the name of a directory.
fn shorts_in(name: &str) -> BTreeSet<String> {
    let is_short =
        |part: &&str| part.len() == SHORT_LEN && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split('-')
        .filter(is_short)
        .map(str::to_owned)
        .collect()
}

fn bytes_of(path: &Path) -> u64 {
    let files = walkdir::WalkDir::new(path).into_iter().flatten();
    let sizes = files.filter_map(|entry| entry.metadata().ok().filter(fs::Metadata::is_file));
    sizes.map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Shelf {
        dir: tempfile::TempDir,
        toolchains: Toolchains,
    }

    impl Shelf {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let toolchains = Toolchains::new(dir.path());
            Self { dir, toolchains }
        }

        /// A toolchain of 1000 bytes that was last used so many hours ago.
        fn has(&self, name: &str, hours: u64) {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.join("lib")).unwrap();
            fs::write(path.join("lib/x"), [0; 1000]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(hours * 3600);
            let times = FileTimes::new().set_modified(used);
            File::open(&path).unwrap().set_times(times).unwrap();
        }

        fn gc(&self, quota_bytes: u64, named: &[Sha256]) -> Vec<String> {
            let named = named.iter().copied().collect();
            let removed = self.toolchains.gc(quota_bytes, &named).unwrap();
            removed.into_iter().map(|one| one.name).collect()
        }

        fn there(&self) -> BTreeSet<String> {
            let entries = fs::read_dir(self.dir.path()).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    fn name(wheel: &Wheel) -> String {
        let path = Toolchains::new(Path::new("/")).unpacked(wheel);
        path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    const OLD: &str = "ziglang-0.13.0-aaaaaaaaaaaa";
    const OLDER: &str = "ziglang-0.12.0-bbbbbbbbbbbb";
    const NAMED: &str = "ziglang-0.14.0-cccccccccccc";

    #[test]
    fn the_least_recently_used_that_nobody_names_goes_first() {
        let shelf = Shelf::new();
        let own = name(&ZIG);
        for (toolchain, hours) in [(OLD, 1), (OLDER, 2), (NAMED, 50), (&own, 99)] {
            shelf.has(toolchain, hours);
        }
        shelf.has(
            "zig-cache-bbbbbbbbbbbb-484412e39e4c-x86_64-unknown-linux-gnu.2.17",
            3,
        );
        shelf.has("rustup-aaaaaaaaaaaa", 999);
        fs::write(shelf.dir.path().join("sysroots.json"), "{}").unwrap();
        let named = Sha256([0xcc; 32]);
        assert!(shelf.gc(5000, &[named]).is_empty(), "5 of 1000 bytes each");
        let cache = "zig-cache-bbbbbbbbbbbb-484412e39e4c-x86_64-unknown-linux-gnu.2.17";
        assert_eq!(shelf.gc(3500, &[named]), [cache, OLDER]);
        assert_eq!(shelf.gc(0, &[named]), [OLD]);
        // What is named, what this version builds with, and what is not qk's stays at any quota.
        let stays = [NAMED, &own, "rustup-aaaaaaaaaaaa", "sysroots.json"];
        assert_eq!(shelf.there(), stays.map(str::to_owned).into());
        assert_eq!(shelf.gc(0, &[]), [NAMED]);
    }

    #[test]
    fn one_that_a_build_uses_stays_and_counts_as_used() {
        let shelf = Shelf::new();
        let wheel = Wheel {
            version: "0.12.0",
            sha256: "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
            ..ZIG
        };
        shelf.has(OLDER, 99);
        shelf.has(OLD, 1);
        let used = shelf.toolchains.in_use(&[&wheel]);
        assert_eq!(shelf.gc(0, &[]), [OLD]);
        assert_eq!(shelf.there(), [OLDER.to_owned()].into());
        drop(used);
        shelf.has(OLD, 1);
        assert_eq!(
            shelf.gc(1000, &[]),
            [OLD],
            "the other one was used just now"
        );
        assert_eq!(shelf.gc(0, &[]), [OLDER]);
        assert!(shelf.gc(0, &[]).is_empty());
        let nothing = Toolchains::new(Path::new("/does/not/exist"));
        assert!(nothing.gc(0, &BTreeSet::new()).unwrap().is_empty());
    }
}
