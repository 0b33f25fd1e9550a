//! What holds for all archives.

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;
use qk_protocol::archive::{ArchiveError, Limits, Reader, check_path};
use qk_protocol::hash::{Root, Sha256};

use crate::fixture::{Parts, read, small};

fn names(directory: &'static str) -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..2000);
    proptest::collection::btree_map("[a-z0-9_+][a-z0-9._+-]{0,20}[a-z0-9]", bytes, 1..6).prop_map(
        move |files| {
            files
                .into_iter()
                .map(|(name, bytes)| (format!("{directory}{name}"), bytes))
                .collect()
        },
    )
}

fn parts() -> impl Strategy<Value = Parts> {
    let lock = proptest::collection::vec(any::<u8>(), 0..1500);
    (names("bin/"), names(""), lock).prop_map(|(executables, licenses, lock)| {
        let mut parts = Parts::new(executables);
        parts.contents.key.flags.lock = Sha256::of(&lock);
        Parts {
            lock,
            licenses,
            ..parts
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(parts in parts()) {
        let (bytes, identity) = parts.write().unwrap();
        prop_assert_eq!(bytes.len() % 512, 0);
        prop_assert_eq!(identity.root, Root::of(&bytes));
        let (back, same) = read(&bytes).unwrap();
        prop_assert_eq!(same, identity);
        prop_assert_eq!(&back.contents, &parts.contents);
        prop_assert_eq!(&back.lock, &parts.lock);
        prop_assert_eq!(&back.licenses, &parts.licenses);
        prop_assert_eq!(&back.executables, &parts.executables);
        // There is one spelling: what was read gives the same bytes again.
        prop_assert_eq!(back.write().unwrap().0, bytes);
    }

    #[test]
    fn the_tar_crate_agrees(parts in parts()) {
        let (bytes, _) = parts.write().unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            std::io::copy(&mut entry, &mut data).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), data);
        }
        files.remove("qk.json").unwrap();
        let mut expected = parts.executables.clone();
        expected.insert("Cargo.lock".to_owned(), parts.lock.clone());
        expected.extend(parts.licenses.iter().map(|(name, text)| (format!("licenses/{name}"), text.clone())));
        prop_assert_eq!(files, expected);
    }

    /// Headers, padding, the lock and executables are bound by the format or by qk.json, so any
    /// change there is refused. Only qk.json itself and licence texts are bound by nothing but the
    /// root, and that changes with every byte.
    #[test]
    fn no_byte_can_change_unseen(index in any::<prop::sample::Index>(), flip in 1u8..) {
        let (mut bytes, identity) = small().write().unwrap();
        let at = index.index(bytes.len());
        bytes[at] ^= flip;
        match read(&bytes) {
            Err(_) => {}
            Ok((_, other)) => {
                prop_assert_ne!(other.root, identity.root);
                prop_assert_ne!(other.sha256, identity.sha256);
                let free = [range(&small(), "qk.json"), range(&small(), "licenses/LICENSE-MIT")];
                prop_assert!(free.iter().any(|free| free.contains(&at)), "byte {}", at);
            }
        }
    }

    /// Whatever is read could have been written: arbitrary damage never gives a second spelling.
    #[test]
    fn what_is_read_is_canonical(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (mut bytes, _) = small().write().unwrap();
        for (index, value) in edits {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok((parts, _)) = read(&bytes) {
            prop_assert_eq!(parts.write().unwrap().0, bytes);
        }
    }

    #[test]
    fn a_cut_archive_is_refused(index in any::<prop::sample::Index>()) {
        let (bytes, _) = small().write().unwrap();
        let cut = index.index(bytes.len());
        let reader = |size: usize| {
            Reader::new(&bytes[..cut], size as u64, Limits::default()).and_then(Reader::finish)
        };
        let is_truncated = matches!(reader(bytes.len()), Err(ArchiveError::Truncated { .. }));
        prop_assert!(is_truncated);
        let is_beyond = matches!(reader(cut), Err(ArchiveError::BeyondStated { .. }));
        prop_assert!(is_beyond);
    }

    #[test]
    fn reading_in_small_pieces_is_the_same(parts in parts(), piece in 1usize..700) {
        struct Pieces<'a>(Cursor<&'a [u8]>, usize);
        impl std::io::Read for Pieces<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let n = self.1.min(buffer.len());
                self.0.read(&mut buffer[..n])
            }
        }
        let (bytes, identity) = parts.write().unwrap();
        let pieces = Pieces(Cursor::new(&bytes), piece);
        let reader = Reader::new(pieces, bytes.len() as u64, Limits::default()).unwrap();
        prop_assert_eq!(reader.finish().unwrap().1, identity);
    }

    /// An accepted path can be joined to a directory on any system and stays inside.
    #[test]
    fn paths_stay_inside(path in "(qk.json|bin/|licenses/|/|\\.\\./){0,2}[ -~]{0,12}") {
        if check_path(&path).is_ok() {
            let components: Vec<_> = std::path::Path::new(&path).components().collect();
            prop_assert!(components.iter().all(|component| matches!(component, std::path::Component::Normal(_))));
            prop_assert!(components.len() <= 2);
            prop_assert!(!path.contains(['\\', ':', '\0', ' ']));
        }
    }
}

/// Where in the archive the bytes of an entry are.
fn range(parts: &Parts, path: &str) -> std::ops::Range<usize> {
    let (bytes, _) = parts.write().unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let entry = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap().to_str() == Some(path))
        .unwrap();
    let start = entry.raw_file_position() as usize;
    start..start + entry.size() as usize
}
