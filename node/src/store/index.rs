//! The index: sled over positions in the journal. It can always be made again from the journal, so
//! every doubt about it, panics of sled included, ends in making it again.
//!
//! One tree, so that a batch and the journal position that it brings the index to are one:
//!
//! ```text
//! m                              -> Meta
//! i ‖ statement id               -> Entry
//! s ‖ network ‖ point ‖ id       -> (empty)
//! k ‖ network ‖ key id ‖ id      -> (empty)
//! r ‖ root ‖ id                  -> (empty)
//! p ‖ root                       -> Position of the pin
//! b ‖ root                       -> BlobRow of a blob that was checked
//! ```
//!
//! Every value ends in eight bytes of a hash over key and value. `Meta` also holds the XOR of such
//! hashes over all rows but `m` and `b`: a row that went missing or stale is found by a scrub.

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io, thread};

use qk_protocol::hash::{KeyId, NetworkId, Point, PublicKey, Root, StatementId};
use qk_protocol::time::UnixTime;

use super::frame::{Reader, first};
use super::journal::Position;
use super::{Record, layout};

const CACHE_BYTES: u64 = 8 << 20;
const SUM_LEN: usize = 8;
/// How long sled's flush is waited for before a second one is asked as well.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
const META: &[u8] = b"m";

/// Why the index did not answer. All of them are cured by making it again.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum IndexError {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
    #[error("{0} does not match its checksum or form")]
    Corrupt(&'static str),
    #[error("{0}")]
    Files(String),
}

/// What the index knows of one statement, without reading it; as in [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The network that it names.
    pub network: NetworkId,
    /// The point of its location.
    pub point: Point,
    /// The artifact key that it speaks of.
    pub key: KeyId,
    /// Who signed it.
    pub observer: PublicKey,
    /// The root that was observed, if it is an observation.
    pub root: Option<Root>,
    /// When it was stored here.
    pub stored: UnixTime,
    pub(super) position: Position,
}

/// Up to where the journal is in the index, and sums over its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The segment of the next frame to apply, 0 before the first.
    pub(super) segment: u64,
    /// Its offset there.
    pub(super) offset: u64,
    /// Rows under `i`.
    pub(super) statements: u64,
    /// Bytes of the frames that rows point to.
    pub(super) live_bytes: u64,
    /// XOR of the rows' hashes.
    pub(super) digest: [u8; 16],
}

/// What the index knows of a blob that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobRow {
    /// When it was last used.
    pub(super) used: UnixTime,
    /// The boot in which it was written without being synced; a later boot has to check it again.
    pub(super) unsynced_in: Option<u64>,
}

/// Builds a key: one letter and the parts after it.
pub(super) fn key(letter: u8, parts: &[&[u8; 32]]) -> Vec<u8> {
    let mut key = vec![letter];
    parts.iter().for_each(|part| key.extend_from_slice(*part));
    key
}

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    path: PathBuf,
    generation: u64,
}

impl Index {
    /// Opens the newest index in `dir`, or an empty one.
    pub(super) fn open(dir: &Path) -> Result<Self, IndexError> {
        let newest = generations(dir)?.pop().unwrap_or(1);
        // Before sled opens them, which changes them.
        let sum = sum_of_files(&dir.join(newest.to_string())).ok();
        let index = Self::open_generation(dir, newest)?;
        index.check_files(sum)?;
        Ok(index)
    }

    /// As sled opens it.
    #[cfg(test)]
    pub(super) fn open_unchecked(dir: &Path) -> Result<Self, IndexError> {
        Self::open_generation(dir, generations(dir)?.pop().unwrap_or(1))
    }

    /// Begins an empty index beside those in `dir`. Each has a directory of its own, because sled
    /// may still hold files of the failed one. That one stays for a look, older ones go.
    pub(super) fn fresh(dir: &Path) -> Result<Self, IndexError> {
        let before = generations(dir)?;
        let newest = before.last().copied().unwrap_or(0);
        for old in before.into_iter().filter(|old| *old < newest) {
            let old = dir.join(old.to_string());
            fs::remove_file(sum_path(&old)).ok();
            layout::remove_dir(&old).map_err(|error| IndexError::Files(error.to_string()))?;
        }
        Self::open_generation(dir, newest + 1)
    }

    fn open_generation(dir: &Path, generation: u64) -> Result<Self, IndexError> {
        layout::create_dir(dir).map_err(|error| IndexError::Files(error.to_string()))?;
        let path = dir.join(generation.to_string());
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let db = Some(guard(|| config.open())?);
        Ok(Self {
            db,
            path,
            generation,
        })
    }

    /// Which index this is; grows by one with each that is made again.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Closes it and leaves a sum over its files, by which the next opening knows them again.
    pub(super) fn close(self) {
        let path = self.path.clone();
        drop(self);
        // Unsynced, and no loss: files without a sum that fits are scrubbed.
        if let Ok(sum) = sum_of_files(&path) {
            fs::write(sum_path(&path), sum).ok();
        }
    }

    /// Fails where the files are not as they were left and a row is wrong, stale or missing. sled
    /// answers from a damaged file as if the damaged rows had never been written.
    fn check_files(&self, sum: Option<[u8; 32]>) -> Result<(), IndexError> {
        let left = fs::read(sum_path(&self.path)).ok();
        match (left, sum) {
            (Some(left), Some(sum)) if left == sum => Ok(()),
            (_, _) => self.scrub(),
        }
    }

    /// Up to where the journal is applied.
    pub(super) fn meta(&self) -> Result<Meta, IndexError> {
        self.get(META)?.map_or(Ok(Meta::default()), |value| {
            Meta::decode(&value).ok_or(IndexError::Corrupt("meta row"))
        })
    }

    /// What is known of a statement.
    pub(super) fn entry(&self, id: &StatementId) -> Result<Option<Entry>, IndexError> {
        self.get(&key(b'i', &[&id.0]))?
            .map(|value| Entry::decode(&value).ok_or(IndexError::Corrupt("statement row")))
            .transpose()
    }

    /// The last 32 bytes of every key that begins with `prefix`, in order.
    pub(super) fn last_parts(&self, prefix: &[u8]) -> Result<Vec<[u8; 32]>, IndexError> {
        let rows = || -> Result<Vec<[u8; 32]>, IndexError> {
            let mut found = Vec::new();
            for row in self.db()?.scan_prefix(prefix) {
                let (key, value) = row?;
                unseal(&key, &value)?;
                let part = key.last_chunk::<32>().ok_or(IndexError::Corrupt("key"))?;
                found.push(*part);
            }
            Ok(found)
        };
        catch(rows)
    }

    /// The points of `network` with statements, nearest to `point` first, at most `limit`.
    pub(super) fn near(
        &self,
        network: &NetworkId,
        point: &Point,
        limit: usize,
    ) -> Result<Vec<Point>, IndexError> {
        let mut found = Vec::new();
        self.guard(|db| {
            let mut pending = vec![([0; 32], [0xff; 32])];
            while let Some((low, high)) = pending.pop() {
                if found.len() >= limit {
                    break;
                }
                let Some((first, last)) = ends(db, network, low, high)? else {
                    continue;
                };
                if first == last {
                    found.push(Point(first));
                    continue;
                }
                // All between share the bits before the one in which the ends differ; the half
                // that agrees with `point` there is nearer as a whole.
                let (left, right) = split(low, high, &first, &last);
                if bit(&point.0, first_difference(&first, &last)) {
                    pending.extend([left, right]);
                } else {
                    pending.extend([right, left]);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The points, at most `limit`, of the statements that `wants` picks.
    pub(super) fn points_of(
        &self,
        wants: impl Fn(&Entry) -> bool,
        limit: usize,
    ) -> Result<BTreeSet<Point>, IndexError> {
        let rows = || -> Result<BTreeSet<Point>, IndexError> {
            let mut found = BTreeSet::new();
            for row in self.db()?.scan_prefix(b"i") {
                let (key, value) = row?;
                let (payload, _) = unseal(&key, &value)?;
                let entry = Entry::decode(payload).ok_or(IndexError::Corrupt("statement row"))?;
                if wants(&entry) {
                    found.insert(entry.point);
                }
                if found.len() >= limit {
                    break;
                }
            }
            Ok(found)
        };
        catch(rows)
    }

    /// What is known of a blob; `None` if it was not checked since the index was begun.
    pub(super) fn blob(&self, root: &Root) -> Result<Option<BlobRow>, IndexError> {
        self.get(&key(b'b', &[&root.0]))?
            .map(|value| BlobRow::decode(&value).ok_or(IndexError::Corrupt("blob row")))
            .transpose()
    }

    /// Notes what is known of a blob that was checked.
    pub(super) fn put_blob(&self, root: &Root, row: BlobRow) -> Result<(), IndexError> {
        let key = key(b'b', &[&root.0]);
        let (value, _) = seal(&key, row.encode());
        self.guard(|db| db.insert(&key, value).map(drop))
    }

    /// Forgets a blob.
    pub(super) fn remove_blob(&self, root: &Root) -> Result<(), IndexError> {
        self.guard(|db| db.remove(key(b'b', &[&root.0])).map(drop))
    }

    /// Writes out what sled holds in memory; survives kill -9, not a power cut.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        // Where a write fails, sled may wake a waiting flush a moment before it waits, and never
        // again. One that begins later sees the failure at once, and its answer is as good.
        let (answer, answered) = mpsc::channel();
        let mut patience = FLUSH_PATIENCE;
        loop {
            let (db, answer) = (self.db()?.clone(), answer.clone());
            let flush = move || {
                let done = guard(|| db.flush().map(drop));
                drop(db); // Before the answer, or the next opening could find its files locked.
                answer.send(done).ok();
            };
            let thread = thread::Builder::new().name("qk-flush".to_owned());
            thread
                .spawn(flush)
                .map_err(|error| IndexError::Files(error.to_string()))?;
            match answered.recv_timeout(patience) {
                Ok(done) => return done,
                Err(_) => patience *= 2,
            }
        }
    }

    /// Writes out what sled holds in memory, durably.
    pub(super) fn sync(&self) -> Result<(), IndexError> {
        self.flush()?;
        // sled 0.34 calls sync_file_range, which does not wait for the disk's own cache.
        let db = self.path.join("db");
        let synced = fs::File::open(&db).and_then(|file| file.sync_all());
        synced.map_err(|error| IndexError::Files(format!("{}: {error}", db.display())))
    }

    /// Reads every row and compares the sums; fails on any that is wrong, stale or missing.
    pub(super) fn scrub(&self) -> Result<(), IndexError> {
        let meta = self.meta()?;
        let (mut digest, mut statements) = ([0; 16], 0);
        let rows = || -> Result<(), IndexError> {
            for row in self.db()?.iter() {
                let (key, value) = row?;
                let (_, piece) = unseal(&key, &value)?;
                match key.first() {
                    Some(b'm' | b'b') => continue,
                    Some(b'i') => statements += 1,
                    Some(_) | None => {}
                }
                xor(&mut digest, piece);
            }
            Ok(())
        };
        catch(rows)?;
        if (digest, statements) != (meta.digest, meta.statements) {
            return Err(IndexError::Corrupt("the sum over the rows"));
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        match self.guard(|db| db.get(key))? {
            Some(value) => Ok(Some(unseal(key, &value)?.0.to_vec())),
            None => Ok(None),
        }
    }

    fn guard<T>(&self, run: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        let db = self.db()?;
        guard(|| run(db))
    }

    fn db(&self) -> Result<&sled::Db, IndexError> {
        self.db.as_ref().ok_or(IndexError::Corrupt("closed index"))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // sled's own end flushes, too; with nothing left to write or after a failure it cannot wait.
        self.flush().ok();
        let db = self.db.take();
        guard(|| {
            drop(db);
            Ok(())
        })
        .ok();
    }
}

/// Rows to be written together with the journal position that they bring the index to.
pub(super) struct Changes<'a> {
    index: &'a Index,
    rows: std::collections::BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    meta: Meta,
}

impl<'a> Changes<'a> {
    pub(super) fn new(index: &'a Index) -> Result<Self, IndexError> {
        Ok(Self {
            index,
            rows: std::collections::BTreeMap::new(),
            meta: index.meta()?,
        })
    }

    /// What is known of a statement with these changes.
    pub(super) fn entry(&self, id: &StatementId) -> Result<Option<Entry>, IndexError> {
        self.get(&key(b'i', &[&id.0]))?
            .map(|value| Entry::decode(&value).ok_or(IndexError::Corrupt("statement row")))
            .transpose()
    }

    /// Where the pin of a root stands with these changes.
    pub(super) fn pin(&self, root: &Root) -> Result<Option<Position>, IndexError> {
        self.get(&key(b'p', &[&root.0]))?
            .map(|value| decode_position(&value).ok_or(IndexError::Corrupt("position row")))
            .transpose()
    }

    /// Makes `position` the place of this statement.
    pub(super) fn put_statement(
        &mut self,
        record: &Record,
        position: Position,
    ) -> Result<(), IndexError> {
        self.remove_statement(&record.id)?;
        let entry = Entry {
            network: record.network,
            point: record.point,
            key: record.key,
            observer: record.observer,
            root: record.root,
            stored: record.stored,
            position,
        };
        for side in side_keys(&record.id, &entry) {
            self.put(side, Vec::new());
        }
        self.put(key(b'i', &[&record.id.0]), entry.encode());
        self.meta.statements += 1;
        self.meta.live_bytes += u64::from(position.len);
        Ok(())
    }

    /// Forgets a statement.
    pub(super) fn remove_statement(&mut self, id: &StatementId) -> Result<(), IndexError> {
        let Some(entry) = self.entry(id)? else {
            return Ok(());
        };
        for side in side_keys(id, &entry) {
            self.delete(side)?;
        }
        self.delete(key(b'i', &[&id.0]))?;
        self.meta.statements = self.meta.statements.saturating_sub(1);
        self.dead(entry.position);
        Ok(())
    }

    /// Sets or clears where the pin of a root stands.
    pub(super) fn set_pin(
        &mut self,
        root: &Root,
        position: Option<Position>,
    ) -> Result<(), IndexError> {
        if let Some(old) = self.pin(root)? {
            self.dead(old);
        }
        let key = key(b'p', &[&root.0]);
        self.delete(key.clone())?;
        if let Some(position) = position {
            self.meta.live_bytes += u64::from(position.len);
            self.put(key, encode_position(position));
        }
        Ok(())
    }

    /// How many rows are to be written.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Writes the rows; the next frame to apply stands at `offset` of `segment`.
    pub(super) fn commit(mut self, segment: u64, offset: u64) -> Result<(), IndexError> {
        (self.meta.segment, self.meta.offset) = (segment, offset);
        let mut batch = sled::Batch::default();
        for (key, value) in self.rows {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(META, seal(META, self.meta.encode()).0);
        self.index.guard(|db| db.apply_batch(batch))
    }

    fn dead(&mut self, position: Position) {
        let len = u64::from(position.len);
        self.meta.live_bytes = self.meta.live_bytes.saturating_sub(len);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        match self.rows.get(key) {
            Some(Some(value)) => Ok(Some(unseal(key, value)?.0.to_vec())),
            Some(None) => Ok(None),
            None => self.index.get(key),
        }
    }

    /// Adds a row that is not there.
    fn put(&mut self, key: Vec<u8>, payload: Vec<u8>) {
        let (value, piece) = seal(&key, payload);
        xor(&mut self.meta.digest, piece);
        self.rows.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) -> Result<(), IndexError> {
        if let Some(old) = self.get(&key)? {
            xor(&mut self.meta.digest, seal(&key, old).1);
        }
        self.rows.insert(key, None);
        Ok(())
    }
}

/// The keys under which a statement is found.
fn side_keys(id: &StatementId, entry: &Entry) -> Vec<Vec<u8>> {
    let mut keys = vec![
        key(b's', &[&entry.network.0, &entry.point.0, &id.0]),
        key(b'k', &[&entry.network.0, &entry.key.0, &id.0]),
    ];
    keys.extend(entry.root.map(|root| key(b'r', &[&root.0, &id.0])));
    keys
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(224);
        for id in [
            &self.network.0,
            &self.point.0,
            &self.key.0,
            &self.observer.0,
        ] {
            out.extend_from_slice(id);
        }
        out.push(u8::from(self.root.is_some()));
        out.extend_from_slice(&self.root.map_or([0; 32], |root| root.0));
        out.extend_from_slice(&self.stored.0.to_le_bytes());
        out.extend_from_slice(&encode_position(self.position));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            network: NetworkId(reader.array()?),
            point: Point(reader.array()?),
            key: KeyId(reader.array()?),
            observer: PublicKey(reader.array()?),
            root: reader.root()?,
            stored: UnixTime(reader.u64()?),
            position: decode_position(reader.0)?,
        })
    }
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        for number in [self.segment, self.offset, self.statements, self.live_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.digest);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            segment: reader.u64()?,
            offset: reader.u64()?,
            statements: reader.u64()?,
            live_bytes: reader.u64()?,
            digest: reader.array()?,
        })
    }
}

impl BlobRow {
    fn encode(self) -> Vec<u8> {
        let mut out = self.used.0.to_le_bytes().to_vec();
        out.extend(self.unsynced_in.iter().flat_map(|boot| boot.to_le_bytes()));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            used: UnixTime(reader.u64()?),
            unsynced_in: reader.u64(),
        })
    }
}

fn encode_position(position: Position) -> Vec<u8> {
    let mut out = position.segment.to_le_bytes().to_vec();
    out.extend_from_slice(&position.offset.to_le_bytes());
    out.extend_from_slice(&position.len.to_le_bytes());
    out
}

fn decode_position(bytes: &[u8]) -> Option<Position> {
    let mut reader = Reader(bytes);
    Some(Position {
        segment: reader.u64()?,
        offset: reader.u64()?,
        len: reader.u32()?,
    })
}

/// Runs something of sled's; a panic in it is an answer, not the end of the node.
fn catch<T>(run: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|_| IndexError::Panicked)?
}

fn guard<T>(run: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    catch(|| run().map_err(IndexError::from))
}

/// Where the sum over the files of the index in `path` is.
fn sum_path(path: &Path) -> PathBuf {
    path.with_extension("sum")
}

/// A sum over names and contents of all files of the index in `path`.
fn sum_of_files(path: &Path) -> io::Result<[u8; 32]> {
    let mut sum = blake3::Hasher::new();
    let mut dirs = vec![path.to_owned()];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => dirs.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.sort_unstable();
    for file in files {
        let name = file.strip_prefix(path).unwrap_or(&file);
        sum.update(blake3::hash(name.as_os_str().as_encoded_bytes()).as_bytes());
        let mut content = blake3::Hasher::new();
        content.update_reader(fs::File::open(&file)?)?;
        sum.update(content.finalize().as_bytes());
    }
    Ok(*sum.finalize().as_bytes())
}

/// The numbers of the indexes in `dir`, ascending.
fn generations(dir: &Path) -> Result<Vec<u64>, IndexError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => {
            entries.map_err(|error| IndexError::Files(format!("{}: {error}", dir.display())))?
        }
    };
    let mut found: Vec<u64> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

fn hash(key: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(payload);
    *hasher.finalize().as_bytes()
}

/// The value to store, and the row's piece of the digest.
fn seal(key: &[u8], mut payload: Vec<u8>) -> (Vec<u8>, [u8; 16]) {
    let hash = hash(key, &payload);
    payload.extend_from_slice(&first::<SUM_LEN>(hash));
    (payload, std::array::from_fn(|i| hash[16 + i]))
}

fn unseal<'v>(key: &[u8], value: &'v [u8]) -> Result<(&'v [u8], [u8; 16]), IndexError> {
    let (payload, sum) = value
        .split_last_chunk::<SUM_LEN>()
        .ok_or(IndexError::Corrupt("value"))?;
    let hash = hash(key, payload);
    if first::<SUM_LEN>(hash) != *sum {
        return Err(IndexError::Corrupt("value"));
    }
    Ok((payload, std::array::from_fn(|i| hash[16 + i])))
}

fn xor(digest: &mut [u8; 16], piece: [u8; 16]) {
    digest.iter_mut().zip(piece).for_each(|(d, p)| *d ^= p);
}

/// The first and the last point of `network` between `low` and `high`, both included.
fn ends(
    db: &sled::Db,
    network: &NetworkId,
    low: [u8; 32],
    high: [u8; 32],
) -> sled::Result<Option<([u8; 32], [u8; 32])>> {
    let from = key(b's', &[&network.0, &low, &[0; 32]]);
    let to = key(b's', &[&network.0, &high, &[0xff; 32]]);
    let mut range = db.range(from..=to).keys();
    let point = |key: sled::IVec| {
        key.get(33..)
            .and_then(|rest| rest.first_chunk::<32>().copied())
    };
    let Some(first) = range.next().transpose()?.and_then(point) else {
        return Ok(None);
    };
    let last = range.next_back().transpose()?.and_then(point);
    Ok(Some((first, last.unwrap_or(first))))
}

fn first_difference(a: &[u8; 32], b: &[u8; 32]) -> usize {
    let byte = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
    byte * 8 + (a[byte] ^ b[byte]).leading_zeros() as usize
}

fn bit(point: &[u8; 32], index: usize) -> bool {
    point[index / 8] & (0x80 >> (index % 8)) != 0
}

type Span = ([u8; 32], [u8; 32]);

/// Cuts a span in two between `first` and `last`, at the first bit in which they differ.
fn split(low: [u8; 32], high: [u8; 32], first: &[u8; 32], last: &[u8; 32]) -> (Span, Span) {
    let at = first_difference(first, last);
    let (byte, mask) = (at / 8, 0xff >> (at % 8));
    let (mut left_end, mut right_start) = (*first, *last);
    left_end[byte] |= mask;
    left_end[byte] &= !(0x80 >> (at % 8));
    left_end[byte + 1..].fill(0xff);
    right_start[byte] &= !mask;
    right_start[byte] |= 0x80 >> (at % 8);
    right_start[byte + 1..].fill(0);
    ((low, left_end), (right_start, high))
}
