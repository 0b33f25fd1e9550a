//! What the bytes of two builds suggest as the cause of their difference.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// The name of the host that a second build sees, made to be found.
pub(crate) const OTHER_HOST: &str = "another-host";
/// Text that is shorter is taken for chance.
const TEXT_BYTES_MIN: usize = 6;
/// Texts that are looked at on each side.
const TEXTS_MAX: usize = 1_000_000;
/// With more bytes that differ, numbers that look like times are taken for chance.
const NUMBERS_MAX: usize = 64;

/// Why two builds may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A path that only one of them has.
    Path,
    /// A date or time.
    Time,
    /// The name of the host.
    Host,
    /// The same pieces in another order, as when a hash map is walked through.
    Order,
    /// C or other code that is not Rust's differs.
    CCode,
    /// A library or header of the system.
    HostLibrary,
}

impl Cause {
    /// For a sentence: "likely …".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Path => "a path",
            Self::Time => "a time",
            Self::Host => "the host's name",
            Self::Order => "an order, as of a hash map",
            Self::CCode => "C code",
            Self::HostLibrary => "a library of the host",
        }
    }
}

/// What differs between these bytes, as far as it shows. Nothing where they are the same.
pub(crate) fn causes(one: &[u8], other: &[u8]) -> BTreeSet<Cause> {
    let mut found = BTreeSet::new();
    if one == other {
        return found;
    }
    let (mine, yours) = only(&texts(one), &texts(other));
    for text in mine.iter().chain(&yours) {
        found.extend(of_text(text));
    }
    if numbers_are_times(one, other) {
        found.insert(Cause::Time);
    }
    // Texts that are the same but for their order, or bytes that are.
    let moved = mine.is_empty() && yours.is_empty() && histogram(one) == histogram(other);
    if moved && !found.contains(&Cause::Time) {
        found.insert(Cause::Order);
    }
    found
}

fn of_text(text: &str) -> BTreeSet<Cause> {
    let mut found = BTreeSet::new();
    if text.contains(OTHER_HOST) {
        found.insert(Cause::Host);
    }
    if is_time(text) {
        found.insert(Cause::Time);
    }
    if ["/usr/lib", "/usr/include", "/lib/x86_64"]
        .iter()
        .any(|at| text.contains(at))
    {
        found.insert(Cause::HostLibrary);
    } else if ["/tmp/", "/home/", "/root/", "/build", "/qk/"]
        .iter()
        .any(|at| text.contains(at))
    {
        found.insert(Cause::Path);
    }
    found
}

/// `2026-11-26`, `12:34:56`, or ten digits that are seconds of this decade or the next.
fn is_time(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    if shape.contains("0000-00-00") || shape.contains("00:00:00") {
        return true;
    }
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|digits| digits.len() == 10)
        .filter_map(|digits| digits.parse().ok())
        .any(is_recent)
}

fn is_recent(seconds: u64) -> bool {
    (1_600_000_000..2_200_000_000).contains(&seconds)
}

/// Whether a few bytes differ, and are parts of numbers that are seconds, less than a week apart.
fn numbers_are_times(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let differing: Vec<usize> = (0..one.len())
        .filter(|&at| one[at] != other[at])
        .take(NUMBERS_MAX + 1)
        .collect();
    let number = |bytes: &[u8], at: usize| {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        // What is text is no number.
        let is_text = four.iter().all(|byte| matches!(byte, b' '..=b'~'));
        (!is_text).then(|| u64::from(u32::from_le_bytes(four)))
    };
    differing.len() <= NUMBERS_MAX
        && differing.iter().any(|&at| {
            (at.saturating_sub(3)..=at).any(|start| {
                let pair = number(one, start).zip(number(other, start));
                pair.is_some_and(|(a, b)| {
                    is_recent(a) && is_recent(b) && a != b && a.abs_diff(b) < 7 * 86_400
                })
            })
        })
}

/// Printable text in bytes, with how often it is there.
fn texts(bytes: &[u8]) -> BTreeMap<&str, usize> {
    let mut found = BTreeMap::new();
    let printable = |byte: &u8| matches!(byte, b' '..=b'~');
    for piece in bytes.split(|byte| !printable(byte)).take(TEXTS_MAX) {
        if piece.len() >= TEXT_BYTES_MIN
            && let Ok(text) = std::str::from_utf8(piece)
        {
            *found.entry(text).or_default() += 1;
        }
    }
    found
}

/// What each has more often than the other.
fn only<'a>(
    one: &BTreeMap<&'a str, usize>,
    other: &BTreeMap<&'a str, usize>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let more = |a: &BTreeMap<&'a str, usize>, b: &BTreeMap<&'a str, usize>| {
        a.iter()
            .filter(|(text, count)| b.get(*text).is_none_or(|there| there < *count))
            .map(|(text, _)| *text)
            .collect()
    };
    (more(one, other), more(other, one))
}

fn histogram(bytes: &[u8]) -> [u64; 256] {
    let mut counts = [0; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(one: &str, other: &str) -> Vec<Cause> {
        causes(one.as_bytes(), other.as_bytes())
            .into_iter()
            .collect()
    }

    #[test]
    fn what_differs_tells_the_cause() {
        assert_eq!(said("built 2026-11-26", "built 2026-11-27"), [Cause::Time]);
        assert_eq!(said("at 1795671000 s", "at 1795671060 s"), [Cause::Time]);
        assert_eq!(said("made on qk", "made on another-host"), [Cause::Host]);
        assert_eq!(said("in /tmp/.x1/file", "in /tmp/.x2/file"), [Cause::Path]);
        let order = said("alpha_\0beta_1\0", "beta_1\0alpha_\0");
        assert_eq!(order, [Cause::Order]);
        assert_eq!(said("same", "same"), []);
        assert_eq!(said("something", "different"), []);
        // A path that both have is no cause.
        assert_eq!(said("/tmp/x\0version a", "/tmp/x\0version b"), []);
        let seconds = |n: u32| [b"head".as_slice(), &n.to_le_bytes(), b"tail"].concat();
        let times = causes(&seconds(1_795_671_000), &seconds(1_795_671_060));
        assert_eq!(times, [Cause::Time].into());
        let numbers = causes(&seconds(17), &seconds(60));
        assert_eq!(numbers, BTreeSet::new());
    }
}
