//! What executables ask of a host, also those that lie about it.

use std::io::Cursor;

use proptest::prelude::*;
use qk_protocol::archive::{Executable, Format, InspectError, inspect};
use qk_protocol::hash::Blake3;

use crate::fixture::elf;

fn bytes(bytes: &[u8]) -> Result<Executable, InspectError> {
    inspect(Cursor::new(bytes))
}

#[test]
fn an_elf_names_its_libraries_and_glibc() {
    let file = elf(
        &["libm.so.6", "libc.so.6"],
        &["GLIBC_2.9", "GLIBC_2.17", "GCC_3.0"],
    );
    let executable = bytes(&file).unwrap();
    assert_eq!(executable.format, Format::Elf);
    assert_eq!(executable.size, file.len() as u64);
    assert_eq!(executable.blake3, Blake3::of(&file));
    assert_eq!(executable.machine, "x86_64");
    assert_eq!(executable.glibc.as_deref(), Some("2.17"));
    let needed: Vec<_> = executable.needed.iter().collect();
    assert_eq!(needed, ["libc.so.6", "libm.so.6"]);
}

#[test]
fn versions_of_glibc() {
    let glibc = |versions: &[&str]| bytes(&elf(&["libc.so.6"], versions)).map(|found| found.glibc);
    let version = |text: &str| Some(text.to_owned());
    assert_eq!(glibc(&["GLIBC_2.2.5"]).unwrap(), version("2.2"));
    assert_eq!(
        glibc(&["GLIBC_2.36", "GLIBC_2.4"]).unwrap(),
        version("2.36")
    );
    assert_eq!(
        glibc(&["GLIBC_2.4", "GLIBC_ABI_DT_RELR"]).unwrap(),
        version("2.36")
    );
    assert_eq!(glibc(&["GCC_3.0"]).unwrap(), None);
    assert_eq!(glibc(&[]).unwrap(), None);
    for odd in ["GLIBC_PRIVATE", "GLIBC_2", "GLIBC_2.x", "GLIBC_"] {
        assert!(
            matches!(glibc(&[odd]), Err(InspectError::Glibc(_))),
            "{odd}"
        );
    }
}

#[test]
fn a_static_elf_asks_for_nothing() {
    let executable = bytes(&elf(&[], &[])).unwrap();
    assert_eq!((executable.glibc, executable.needed.len()), (None, 0));
}

/// This test itself and what it is linked to, next to what binutils say.
#[cfg(target_os = "linux")]
#[test]
fn readelf_agrees() {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::process::Command;

    for path in [std::env::current_exe().unwrap(), "/bin/true".into()] {
        let found = inspect(File::open(&path).unwrap()).unwrap();
        let output = Command::new("readelf")
            .args(["--wide", "--dynamic", "--version-info"])
            .arg(&path)
            .output()
            .expect("readelf of binutils, which comes with the C compiler that Rust links with");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let needed: BTreeSet<String> = text
            .lines()
            .filter(|line| line.contains("(NEEDED)"))
            .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()))
            .collect();
        let glibc = text
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("GLIBC_"))
            .filter_map(|version| {
                let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
                Some((numbers.next()??, numbers.next()??))
            })
            .max()
            .map(|(major, minor)| format!("{major}.{minor}"));
        assert!(!needed.is_empty() && glibc.is_some(), "{text}");
        assert_eq!((found.needed, found.glibc), (needed, glibc));
        assert_eq!(found.machine, std::env::consts::ARCH);
    }
}

/// A Mach-O for arm64 that needs one library.
fn macho() -> Vec<u8> {
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let mut name = b"/usr/lib/libSystem.B.dylib".to_vec();
    name.resize(32, 0);
    let mut out = words(&[0xfeed_facf, 0x0100_000c, 0, 2, 1, 24 + 32, 0, 0]);
    out.extend(words(&[0xc, 24 + 32, 24, 0, 0, 0]));
    out.extend(name);
    out
}

/// A PE for x86-64 that imports from one library.
fn pe() -> Vec<u8> {
    let mut out = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664u16.to_le_bytes()); // machine
    put(0x46, &1u16.to_le_bytes()); // sections
    put(0x54, &240u16.to_le_bytes()); // size of the optional header
    put(0x56, &0x22u16.to_le_bytes()); // executable image
    put(0x58, &0x20bu16.to_le_bytes()); // PE32+
    put(0x58 + 108, &16u32.to_le_bytes()); // data directories
    put(0x58 + 120, &0x1000u32.to_le_bytes()); // of imports: address
    put(0x58 + 124, &40u32.to_le_bytes()); // and size
    let section = 0x58 + 240;
    put(section, b".rdata");
    put(section + 8, &0x200u32.to_le_bytes());
    put(section + 12, &0x1000u32.to_le_bytes());
    put(section + 16, &0x200u32.to_le_bytes());
    put(section + 20, &0x200u32.to_le_bytes());
    put(0x200 + 12, &0x1080u32.to_le_bytes()); // name of the first descriptor
    put(0x280, b"KERNEL32.dll\0");
    out
}

#[test]
fn formats_of_other_systems() {
    let found = bytes(&macho()).unwrap();
    assert_eq!(
        (found.format, found.machine.as_str()),
        (Format::MachO, "aarch64")
    );
    assert!(found.needed.contains("/usr/lib/libSystem.B.dylib"));
    let found = bytes(&pe()).unwrap();
    assert_eq!(
        (found.format, found.machine.as_str()),
        (Format::Pe, "x86_64")
    );
    assert!(found.needed.contains("KERNEL32.dll"));
}

#[test]
fn what_is_refused() {
    let change = |at: usize, bytes: &[u8]| {
        let mut file = elf(&["libc.so.6"], &["GLIBC_2.17"]);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut cases = vec![
        ("nothing", Vec::new()),
        ("a script", b"#!/bin/sh\necho not an executable\n".to_vec()),
        ("an object file", change(16, &[1])),
        ("a core dump", change(16, &[4])),
        ("another machine", change(18, &[0xff, 0xff])),
        ("segments outside of the file", change(32, &[0xff; 8])),
        (
            "dynamic segment outside of the file",
            change(64 + 56 + 8, &[0xff; 8]),
        ),
        ("strings in no segment", change(176 + 16 + 8, &[0xff; 8])),
        ("library with a control character", elf(&["a\x1b[31m"], &[])),
    ];
    let many: Vec<String> = (0..257).map(|i| format!("lib{i}.so")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    cases.push(("too many libraries", elf(&many, &[])));
    let lines: Vec<String> = cases
        .into_iter()
        .map(|(name, file)| format!("{name}: {}", bytes(&file).expect_err(name)))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    nothing: neither an ELF, a Mach-O nor a PE executable
    a script: neither an ELF, a Mach-O nor a PE executable
    an object file: an ELF file that is not an executable
    a core dump: an ELF file that is not an executable
    another machine: machine number 0xffff is not known
    segments outside of the file: malformed executable: Invalid ELF program header size or alignment
    dynamic segment outside of the file: malformed executable: Invalid ELF dynamic segment offset or size
    strings in no segment: malformed executable: a table is in no loaded segment
    library with a control character: needs a library with the name "a\u{1b}[31m"
    too many libraries: more libraries than the 256 that are looked at
    "#);
}

/// A table of versions can be as long as the file: only so many records are looked at.
#[test]
fn versions_are_bounded() {
    const RECORDS: usize = 70_000;
    // Version 1, no library and no versions of its own, the next record 16 bytes on.
    let record = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    let mut file = elf(&["libc.so.6"], &["GLIBC_2.17"]);
    let table = file.len() as u64;
    file.extend(record.repeat(RECORDS));
    let end = file.len();
    file[end - 4] = 0;
    let size = file.len() as u64;
    // The loaded segment covers the table, and the fourth dynamic entry points to it.
    file[64 + 32..64 + 40].copy_from_slice(&size.to_le_bytes());
    let versions = 64 + 2 * 56 + 3 * 16 + 8;
    file[versions..versions + 8].copy_from_slice(&table.to_le_bytes());
    assert!(matches!(
        bytes(&file),
        Err(InspectError::TooMany {
            what: "records",
            ..
        })
    ));
    // Without the limit it would be taken: a shorter table of the same kind is.
    let shorter = table as usize + 16 * 1000;
    file[shorter - 4] = 0;
    assert_eq!(bytes(&file).unwrap().glibc, None);
}

/// Tables that are said to be as large as the file are not read into memory.
#[test]
fn tables_are_bounded() {
    let mut file = elf(&["libc.so.6"], &[]);
    // A dynamic segment of 65 MiB that begins as before.
    let size = 65u64 << 20;
    file[64 + 56 + 32..64 + 56 + 40].copy_from_slice(&size.to_le_bytes());
    file.resize(66 << 20, 0);
    assert!(matches!(bytes(&file), Err(InspectError::Malformed(_))));
    let size = 1u64 << 20;
    file[64 + 56 + 32..64 + 56 + 40].copy_from_slice(&size.to_le_bytes());
    assert!(bytes(&file).unwrap().needed.contains("libc.so.6"));
}

fn mutated(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let interesting = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0xff), any::<u8>()];
    let edit = (any::<prop::sample::Index>(), interesting, 1usize..9);
    let cut = prop_oneof![4 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (proptest::collection::vec(edit, 1..6), cut).prop_map(move |(edits, cut)| {
        let mut file = original.clone();
        for (index, value, length) in edits {
            let at = index.index(file.len());
            let end = file.len().min(at + length);
            file[at..end].fill(value);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(original.len()));
        }
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is accepted is something that an archive may say.
    #[test]
    fn damage_never_panics(file in prop_oneof![
        mutated(elf(&["libc.so.6", "libm.so.6"], &["GLIBC_2.17", "GLIBC_2.4"])),
        mutated(macho()),
        mutated(pe()),
    ]) {
        if let Ok(found) = bytes(&file) {
            prop_assert_eq!(found.size, file.len() as u64);
            prop_assert!(found.needed.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_graphic())));
        }
    }
}

/// The same for a real one, damaged where its tables are.
#[cfg(target_os = "linux")]
#[test]
fn damage_to_a_real_executable_never_panics() {
    use rand::{RngExt, SeedableRng};

    let original = std::fs::read("/bin/true").unwrap();
    bytes(&original).unwrap();
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut file = original.clone();
        for _ in 0..rng.random_range(1..4) {
            // Headers and dynamic strings are at the beginning, the dynamic segment near the end.
            let window = [0..1024, 1024..8192, 0..file.len()][rng.random_range(0..3)].clone();
            let at = rng.random_range(window.start..window.end.min(file.len()));
            file[at] = rng.random();
        }
        match bytes(&file) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
    }
    // Both happen, so the damage is neither always fatal nor always beside the point.
    assert!(taken > 20 && refused > 20, "{taken} {refused}");
}
