//! What people and other tools download: an artifact as one of several tars, made once and kept.
//!
//! ```text
//! packed/<root>.<form>/data, outboard    the bytes and their hash tree
//! packed/<root>.<form>/form.json         their root and size, and the gateway's signature
//! ```
//!
//! Made beside and renamed, so that what is there is whole; those that were not asked for the longest go
//! when all take more than their quota. A form is a blob of its own: what is sent of it is compared with its
//! root, and its root is its tag.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flate2::{Compression, GzBuilder};
use qk_protocol::blocks::{self, EncodeError};
use qk_protocol::hash::Root;
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Subject;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::sign::GatewayKey;
use crate::blocks::serve::{Blobs, Held};
use crate::unpack::unpack;

/// Forms that are made at once: each costs a processor.
const MAKING_MAX: usize = 2;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(60);
/// As `gzip -6`, and what cargo packages crates with.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 10;
/// What a directory that is not whole is called.
const UNFINISHED: &str = ".unfinished-";
const FORM_FILE: &str = "form.json";
const FORM_FILE_BYTES_MAX: u64 = 4096;

/// How a tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Packing {
    Tar,
    Gzip,
    Zstd,
}

/// One of the forms of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    /// The canonical archive; otherwise its executables alone, without a directory.
    pub(super) is_archive: bool,
    pub(super) packing: Packing,
}

/// Ends of file names and what they stand for; one that ends another one comes later.
const SUFFIXES: [(&str, Form); 9] = {
    const fn form(is_archive: bool, packing: Packing) -> Form {
        Form {
            is_archive,
            packing,
        }
    }
    [
        (".qk.tar", form(true, Packing::Tar)),
        (".qk.tar.gz", form(true, Packing::Gzip)),
        (".qk.tar.zst", form(true, Packing::Zstd)),
        (".tar", form(false, Packing::Tar)),
        (".tar.gz", form(false, Packing::Gzip)),
        (".tgz", form(false, Packing::Gzip)),
        (".tar.zst", form(false, Packing::Zstd)),
        (".tzst", form(false, Packing::Zstd)),
        (".tzstd", form(false, Packing::Zstd)),
    ]
};

impl Form {
    /// What stands before the suffix of a form, and the form.
    pub(super) fn split(name: &str) -> Option<(&str, Self)> {
        SUFFIXES
            .iter()
            .find_map(|(suffix, form)| Some((name.strip_suffix(suffix)?, *form)))
    }

    pub(super) fn suffix(self) -> &'static str {
        let found = SUFFIXES.iter().find(|(_, form)| *form == self);
        found.map_or("", |(suffix, _)| suffix)
    }

    pub(super) fn kind(self) -> &'static str {
        match self.packing {
            Packing::Tar => "application/x-tar",
            Packing::Gzip => "application/gzip",
            Packing::Zstd => "application/zstd",
        }
    }
}

/// What is to be packed, and what its signature says of it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) archive: PathBuf,
    pub(super) subject: Subject,
    pub(super) key: ArtifactKey,
    pub(super) comment: String,
}

/// A form that is there.
#[derive(Debug, Clone)]
pub(super) struct Made {
    dir: PathBuf,
    pub(super) root: Root,
    pub(super) signature: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FormFile {
    root: Root,
    size: u64,
    signature: String,
}

/// All forms of a gateway.
#[derive(Debug)]
pub(super) struct Forms {
    dir: PathBuf,
    bytes_max: u64,
    key: GatewayKey,
    turns: Semaphore,
}

impl Forms {
    /// Those in `dir`; what was being made when a process died is removed.
    pub(super) fn new(dir: PathBuf, bytes_max: u64, key: GatewayKey) -> Self {
        for (path, _) in listed(&dir) {
            if is_unfinished(&path) {
                let _ = fs::remove_dir_all(path);
            }
        }
        Self {
            dir,
            bytes_max,
            key,
            turns: Semaphore::new(MAKING_MAX),
        }
    }

    pub(super) fn key(&self) -> &GatewayKey {
        &self.key
    }

    /// A form, made if it is not there yet. `TimedOut` when too much else is being made.
    pub(super) async fn get(self: &Arc<Self>, source: Source, form: Form) -> io::Result<Made> {
        if let Some(made) = self.find(source.subject.root, form)? {
            return Ok(made);
        }
        let turn = timeout(PATIENCE, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let this = self.clone();
        // Goes on when the one who asked goes away: the next one finds it.
        let made = tokio::task::spawn_blocking(move || {
            // Somebody else may have made it meanwhile.
            match this.find(source.subject.root, form)? {
                Some(made) => Ok(made),
                None => this.make(&source, form),
            }
        });
        made.await.map_err(io::Error::other)?
    }

    fn place(&self, root: Root, form: Form) -> PathBuf {
        self.dir.join(format!("{root}{}", form.suffix()))
    }

    fn find(&self, root: Root, form: Form) -> io::Result<Option<Made>> {
        let dir = self.place(root, form);
        let file = match File::open(dir.join(FORM_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // When it was asked for last; where that cannot be noted it goes earlier.
        let _ = file.set_modified(SystemTime::now());
        let mut bytes = Vec::new();
        file.take(FORM_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        match serde_json::from_slice(&bytes) {
            Ok(FormFile {
                root, signature, ..
            }) => Ok(Some(Made {
                dir,
                root,
                signature,
            })),
            // Damaged: made again.
            Err(_) => {
                fs::remove_dir_all(&dir)?;
                Ok(None)
            }
        }
    }

    fn make(&self, source: &Source, form: Form) -> io::Result<Made> {
        crate::home::create_private_dir(&self.dir)?;
        let temp = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.dir)?;
        let path = temp.path().join("data");
        let out = BufWriter::new(File::create_new(&path)?);
        match form.is_archive {
            true => packed(form.packing, out, |out| copy_archive(source, out))?,
            false => packed(form.packing, out, |out| {
                let into = temp.path().join("bin");
                fs::create_dir(&into)?;
                let written = executables(source, &into, out);
                fs::remove_dir_all(&into)?;
                written
            })?,
        }
        let size = fs::metadata(&path)?.len();
        let (blob, outboard) = blocks::outboard(BufReader::new(File::open(&path)?), size)?;
        fs::write(temp.path().join("outboard"), outboard)?;
        let signature = self
            .key
            .sign(BufReader::new(File::open(&path)?), &source.comment)?;
        let file = FormFile {
            root: blob.root(),
            size,
            signature: signature.clone(),
        };
        fs::write(temp.path().join(FORM_FILE), serde_json::to_vec(&file)?)?;
        let dir = self.place(source.subject.root, form);
        match fs::rename(temp.path(), &dir) {
            // Somebody was first, with the same bytes.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            renamed => renamed?,
        }
        self.evict(&dir);
        Ok(Made {
            dir,
            root: blob.root(),
            signature,
        })
    }

    /// Removes what was not asked for the longest until the rest is within the quota; `latest` stays.
    fn evict(&self, latest: &Path) {
        let mut kept: BTreeMap<(SystemTime, PathBuf), u64> = BTreeMap::new();
        for (dir, _) in listed(&self.dir) {
            let used = fs::metadata(dir.join(FORM_FILE)).and_then(|file| file.modified());
            if let (Ok(used), false) = (used, is_unfinished(&dir)) {
                let bytes = listed(&dir).map(|(_, bytes)| bytes).sum();
                kept.insert((used, dir), bytes);
            }
        }
        let mut bytes: u64 = kept.values().sum();
        for ((_, dir), freed) in &kept {
            if bytes <= self.bytes_max {
                return;
            }
            if dir == latest {
                continue;
            }
            match fs::remove_dir_all(dir) {
                Ok(()) => bytes -= freed,
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a packed artifact cannot be removed");
                }
            }
        }
    }
}

fn is_unfinished(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(UNFINISHED)
}

/// What is in a directory, and how long each is; nothing if it is not there.
fn listed(dir: &Path) -> impl Iterator<Item = (PathBuf, u64)> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| {
        let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
        (entry.path(), bytes)
    })
}

impl Blobs for Made {
    fn open(&self, root: Root) -> io::Result<Option<Held>> {
        if root != self.root {
            return Ok(None);
        }
        let data = File::open(self.dir.join("data"))?;
        Ok(Some(Held {
            size: data.metadata()?.len(),
            outboard: File::open(self.dir.join("outboard"))?,
            data,
        }))
    }

    fn is_corrupt(&self, root: Root, error: &EncodeError) {
        tracing::error!(%root, %error, dir = %self.dir.display(), "a packed artifact is damaged: it is made again");
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::error!(%root, %error, "the damaged one cannot be removed");
        }
    }
}

/// Packs what `write` writes. The same bytes come of the same bytes, on every machine.
fn packed<W: Write>(
    packing: Packing,
    mut out: W,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    match packing {
        Packing::Tar => write(&mut out)?,
        Packing::Gzip => {
            // Without a name and a time.
            let level = Compression::new(GZIP_LEVEL);
            let mut encoder = GzBuilder::new().mtime(0).write(&mut out, level);
            write(&mut encoder)?;
            encoder.finish()?;
        }
        Packing::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut out, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            write(&mut encoder)?;
            encoder.finish()?;
        }
    }
    out.flush()
}

fn copy_archive(source: &Source, out: &mut dyn Write) -> io::Result<()> {
    let mut file = File::open(&source.archive)?.take(source.subject.size + 1);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let bytes = match file.read(&mut buffer)? {
            0 => break,
            read => &buffer[..read],
        };
        hasher.update(bytes);
        out.write_all(bytes)?;
    }
    match Root(*hasher.finalize().as_bytes()) == source.subject.root {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the stored archive is damaged",
        )),
    }
}

/// The executables as a tar, sorted by name. Everything is checked before any of it is written.
fn executables(source: &Source, into: &Path, out: &mut dyn Write) -> io::Result<()> {
    let unpacked = unpack(&source.archive, &source.subject, &source.key, into);
    let unpacked = unpacked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut tar = tar::Builder::new(out);
    for (name, path) in &unpacked.bins {
        let file = File::open(path)?;
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o755);
        header.set_size(file.metadata()?.len());
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, name, BufReader::new(file))?;
    }
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_their_form() {
        let target = "x86_64-unknown-linux-gnu";
        for (suffix, is_archive, packing) in [
            ("tgz", false, Packing::Gzip),
            ("tar.gz", false, Packing::Gzip),
            ("tar.zst", false, Packing::Zstd),
            ("tar", false, Packing::Tar),
            ("qk.tar", true, Packing::Tar),
            ("qk.tar.gz", true, Packing::Gzip),
            ("qk.tar.zst", true, Packing::Zstd),
        ] {
            let name = format!("{target}.{suffix}");
            let (rest, form) = Form::split(&name).unwrap();
            assert_eq!(
                (rest, form.is_archive, form.packing),
                (target, is_archive, packing)
            );
        }
        for name in ["tgz", "a.zip", "a.tar.xz", "", "a.tar.gz/"] {
            assert_eq!(Form::split(name), None, "{name}");
        }
    }

    /// Whoever changes what comes out, by another encoder or level, changes tags that clients have:
    /// harmless, and to be noticed.
    #[test]
    fn packing_gives_the_same_bytes_everywhere() {
        let bytes = crate::blocks::test_bytes(300_000, 7);
        let text = format!("{bytes:?}");
        let root = |packing| {
            let mut out = Vec::new();
            packed(packing, &mut out, |to| to.write_all(text.as_bytes())).unwrap();
            format!("{} {}", out.len(), Root::of(&out))
        };
        insta::assert_snapshot!(root(Packing::Gzip), @"434835 e4f82498f58a7ed2a6b1f1db18dcc28095f817ea933d813ea2a22142533ea944");
        insta::assert_snapshot!(root(Packing::Zstd), @"406888 f449625a8eec8ddc65a318200246a8b41f2a4ba32b1672d8e95accff2277fa05");
    }

    #[test]
    fn what_was_not_asked_for_the_longest_goes() {
        let temp = tempfile::tempdir().unwrap();
        let home = crate::home::Home::at(temp.path());
        let dir = temp.path().join("packed");
        let add = |name: &str, bytes: usize, age: u64| {
            let dir = dir.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("data"), vec![0; bytes]).unwrap();
            fs::write(dir.join(FORM_FILE), "").unwrap();
            let file = File::options()
                .write(true)
                .open(dir.join(FORM_FILE))
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .unwrap();
        };
        add("old", 400, 30);
        add("newer", 400, 20);
        add("latest", 400, 40);
        add(".unfinished-x", 4000, 0);
        let forms = Forms::new(dir.clone(), 900, GatewayKey::of(&home).unwrap());
        forms.evict(&dir.join("latest"));
        let mut left: Vec<_> = listed(&dir).map(|(path, _)| path).collect();
        left.sort();
        assert_eq!(left, [dir.join("latest"), dir.join("newer")]);
    }
}
