//! A load for the store in which everything follows from numbers, so that whoever saw only the
//! acknowledgements can say what must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use qk_node::store::{Options, Record, Store, StoreError};
use qk_protocol::hash::{KeyId, NetworkId, Point, PublicKey, Root, StatementId};
use qk_protocol::time::UnixTime;

/// The network of all records and manifests.
pub const NETWORK: NetworkId = NetworkId([0x71; 32]);
/// Threads of a writer; each touches only numbers that leave its own number when divided by this.
pub const THREADS: u64 = 3;

/// Small segments, so that rotation and compaction take part.
pub fn options() -> Options {
    Options {
        free_floor_bytes: 0,
        segment_bytes_max: 256 << 10,
        ..Options::default()
    }
}

/// What a writer does with the thing of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A statement.
    Statement,
    /// A pin.
    Pin,
    /// A blob.
    Blob,
}

/// One thing is put or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// Put or taken away.
    pub put: bool,
    /// Which kind of thing.
    pub what: What,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.what {
            What::Statement => 's',
            What::Pin => 'p',
            What::Blob => 'b',
        };
        let sign = if self.put { '+' } else { '-' };
        write!(f, "{sign}{letter}{}", self.number)
    }
}

impl FromStr for Op {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (head, number) = text.split_at_checked(2).unwrap_or(("", text));
        let (put, what) = match head {
            "+s" => (true, What::Statement),
            "-s" => (false, What::Statement),
            "+p" => (true, What::Pin),
            "-p" => (false, What::Pin),
            "+b" => (true, What::Blob),
            "-b" => (false, What::Blob),
            _ => anyhow::bail!("not an operation: {text:?}"),
        };
        let number = number.parse()?;
        Ok(Self { put, what, number })
    }
}

fn hash(what: &str, number: u64) -> [u8; 32] {
    *blake3::hash(format!("{what} {number}").as_bytes()).as_bytes()
}

fn bytes(what: &str, number: u64, len_max: u64) -> Vec<u8> {
    let mut bytes = vec![0; (u64::from(hash("length", number)[0]) * len_max / 255) as usize];
    let mut stream = blake3::Hasher::new();
    stream.update(&hash(what, number));
    stream.finalize_xof().fill(&mut bytes);
    bytes
}

/// The record of a number; 200 to about 3000 bytes.
pub fn record(number: u64) -> Record {
    Record {
        id: StatementId(hash("statement", number)),
        network: NETWORK,
        point: Point(hash("point", number / 5)),
        key: KeyId(hash("key", number / 5)),
        observer: PublicKey(hash("observer", number % 5)),
        root: number.is_multiple_of(2).then(|| pin(number / 5)),
        stored: UnixTime(number),
        bytes: [vec![b'{'; 200], bytes("envelope", number, 2800)].concat(),
    }
}

/// The root that is pinned under a number.
pub fn pin(number: u64) -> Root {
    Root(hash("pin", number))
}

/// The blob of a number; 8 bytes to 200 kB, and no two alike.
pub fn blob(number: u64) -> (Root, Vec<u8>) {
    let mut bytes = bytes("blob", number, 200_000);
    bytes.extend_from_slice(&number.to_le_bytes());
    (Root::of(&bytes), bytes)
}

/// What the acknowledgements say.
#[derive(Debug, Default, Clone)]
pub struct Expected {
    /// `Some(true)` for what must be there, `Some(false)` for what must not, `None` for what may
    /// be, because an operation was under way.
    things: BTreeMap<(What, u64), Option<bool>>,
    /// Those that were touched since they were last compared.
    touched: BTreeSet<(What, u64)>,
}

impl Expected {
    /// An operation was acknowledged.
    pub fn acknowledged(&mut self, op: Op) {
        self.things.insert((op.what, op.number), Some(op.put));
        self.touched.insert((op.what, op.number));
    }

    /// The numbers of the statements that must be there.
    pub fn statements(&self) -> impl Iterator<Item = u64> {
        let wanted = self
            .things
            .iter()
            .filter(|(_, there)| **there == Some(true));
        wanted.filter_map(|((what, number), _)| (*what == What::Statement).then_some(*number))
    }

    /// An operation was begun and not acknowledged: things are as before or as they were to be.
    pub fn cut_off(&mut self, op: Op) {
        let before = self
            .things
            .entry((op.what, op.number))
            .or_insert(Some(false));
        if *before != Some(op.put) {
            *before = None;
        }
        self.touched.insert((op.what, op.number));
    }
}

/// As [`Expected::acknowledged`], where the next thing is a power cut: a blob that was taken away may
/// be there again, as removals of what can be fetched again are not synced.
pub fn acknowledged_before_a_cut(expected: &mut Expected, op: Op) {
    match op {
        Op {
            put: false,
            what: What::Blob,
            ..
        } => expected.cut_off(op),
        _ => expected.acknowledged(op),
    }
}

/// Compares a store with what was acknowledged, `all` of it or what was touched since it was last
/// compared; settles what was open, and counts the comparisons.
///
/// # Errors
/// What was acknowledged and is not so, or is served and is wrong.
pub fn check(store: &Store, expected: &mut Expected, all: bool) -> anyhow::Result<u64> {
    let pins = store.pins()?;
    let touched = std::mem::take(&mut expected.touched);
    let mut comparisons = 0;
    for ((what, number), expected) in &mut expected.things {
        if !all && !touched.contains(&(*what, *number)) {
            continue;
        }
        comparisons += 1;
        let found = match what {
            What::Statement => has_record(store, *number)?,
            What::Pin => pins.contains(&pin(*number)),
            What::Blob => has_intact_blob(store, *number)?,
        };
        let wanted = *expected.get_or_insert(found);
        anyhow::ensure!(
            found == wanted,
            "{what:?} {number}: acknowledged as {}, is {}",
            if wanted { "there" } else { "gone" },
            if found { "there" } else { "gone" },
        );
    }
    Ok(comparisons)
}

/// What is not as it was acknowledged, and how much was compared. A blob that is refused as corrupt
/// is not there.
///
/// # Errors
/// What is served and is wrong, or cannot be asked for.
pub fn differences(
    store: &Store,
    expected: &Expected,
) -> anyhow::Result<(usize, Vec<(What, u64)>)> {
    let pins = store.pins()?;
    let mut differences = Vec::new();
    for ((what, number), wanted) in &expected.things {
        let found = match what {
            What::Statement => has_record(store, *number)?,
            What::Pin => pins.contains(&pin(*number)),
            What::Blob => has_intact_blob(store, *number)?,
        };
        if wanted.is_some_and(|wanted| wanted != found) {
            differences.push((*what, *number));
        }
    }
    Ok((expected.things.len(), differences))
}

/// The mark in a store that was open when the machine went down.
pub fn mark_of_another_boot() -> String {
    "open elsewhere\n".to_owned()
}

/// One that is refused as corrupt is not there.
fn has_intact_blob(store: &Store, number: u64) -> anyhow::Result<bool> {
    let (root, wanted) = blob(number);
    let opened = match store.open_blob(&root) {
        Err(StoreError::CorruptBlob { .. }) => None,
        opened => opened?,
    };
    let Some(Ok(found)) = opened.map(|blob| blob.read_all()) else {
        return Ok(false);
    };
    anyhow::ensure!(found == wanted, "blob {number} was changed");
    Ok(true)
}

fn has_record(store: &Store, number: u64) -> anyhow::Result<bool> {
    let wanted = record(number);
    let found = store.get(&wanted.id)?;
    let listed = store
        .statements_at(&NETWORK, &wanted.point)?
        .contains(&wanted);
    anyhow::ensure!(
        found.is_some() == listed,
        "statement {number}: by id and by point differ"
    );
    if let Some(found) = &found {
        anyhow::ensure!(*found == wanted, "statement {number} was changed");
    }
    Ok(found.is_some())
}

/// sled as the store configures it.
///
/// # Errors
/// When it does not open.
pub fn sled(dir: &std::path::Path) -> sled::Result<sled::Db> {
    let config = sled::Config::new().path(dir).cache_capacity(8 << 20);
    config.flush_every_ms(None).open()
}
