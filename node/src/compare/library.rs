//! Differences of two Rust libraries, which are `ar` archives of objects.

use std::collections::{BTreeMap, BTreeSet};

use object::read::archive::ArchiveFile;

use super::cause::{Cause, causes};

/// Members that are looked at.
const MEMBERS_MAX: usize = 65_536;

/// What the bytes of two builds of a library suggest as the cause of their difference. Anything that is
/// no library is compared as it is.
pub(crate) fn causes_in_library(one: &[u8], other: &[u8]) -> BTreeSet<Cause> {
    let (Some(mine), Some(yours)) = (members(one), members(other)) else {
        return causes(one, other);
    };
    let mut found = BTreeSet::new();
    let names: BTreeSet<&String> = mine.keys().chain(yours.keys()).collect();
    for name in names {
        let is_rust = name.contains(".rcgu.") || name.contains("lib.rmeta");
        match (mine.get(name), yours.get(name)) {
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) => {
                if !is_rust {
                    found.insert(Cause::CCode);
                }
                found.extend(causes(one, other));
            }
            // One build found code that the other did not: it looked around on its host.
            _ if !is_rust => {
                found.extend([Cause::CCode, Cause::HostLibrary]);
            }
            _ => {}
        }
    }
    found
}

/// Members by name; those of one name are numbered.
fn members(bytes: &[u8]) -> Option<BTreeMap<String, &[u8]>> {
    let archive = ArchiveFile::parse(bytes).ok()?;
    let mut found = BTreeMap::new();
    for (number, member) in archive.members().take(MEMBERS_MAX).enumerate() {
        let member = member.ok()?;
        let name = String::from_utf8_lossy(member.name()).into_owned();
        let data = member.data(bytes).ok()?;
        if found.insert(name.clone(), data).is_some() {
            found.insert(format!("{name}#{number}"), data);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `ar` archive as the tools write it.
    fn library(members: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = b"!<arch>\n".to_vec();
        for (name, data) in members {
            let size = data.len();
            let head = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644);
            bytes.extend(head.as_bytes());
            bytes.extend(data.as_bytes());
            bytes.extend((size % 2 == 1).then_some(b'\n'));
        }
        bytes
    }

    #[test]
    fn members_tell_whose_code_differs() {
        let said = |one: &[(&str, &str)], other: &[(&str, &str)]| {
            causes_in_library(&library(one), &library(other))
        };
        let rust = said(
            &[("a.rcgu.o/", "on 2026-01-01")],
            &[("a.rcgu.o/", "on 2026-01-02")],
        );
        assert_eq!(rust, [Cause::Time].into());
        let c = said(
            &[("inflate.o/", "something")],
            &[("inflate.o/", "different")],
        );
        assert_eq!(c, [Cause::CCode].into());
        let host = said(
            &[("a.rcgu.o/", "x")],
            &[("a.rcgu.o/", "x"), ("inflate.o/", "y")],
        );
        assert_eq!(host, [Cause::CCode, Cause::HostLibrary].into());
        let same = said(&[("inflate.o/", "x")], &[("inflate.o/", "x")]);
        assert_eq!(same, BTreeSet::new());
        assert_eq!(
            causes_in_library(b"no library 1", b"no library 2"),
            BTreeSet::new()
        );
    }
}
