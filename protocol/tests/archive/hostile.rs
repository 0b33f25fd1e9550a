//! Archives that a plain reader of tar takes and qk refuses, each for its own reason.

use std::io::{self, Cursor, Read};

use qk_protocol::archive::{ArchiveError, Contents, Limits, Reader};
use qk_protocol::canonical;

use crate::fixture::{self, Parts, small};

/// One entry as it stands in a tar.
#[derive(Clone)]
struct Raw {
    header: [u8; 512],
    data: Vec<u8>,
}

impl Raw {
    /// A header in qk's spelling, whatever the values.
    fn new(path: &[u8], data: &[u8]) -> Self {
        let mut raw = raw(&small()).remove(4);
        raw.header[..100].fill(0);
        raw.set(0, path);
        raw.resize(data);
        raw
    }

    fn executable(path: &[u8], data: &[u8]) -> Self {
        let mut raw = Self::new(path, data);
        raw.set(100, b"0000755");
        raw
    }

    /// Overwrites a part of the header and makes the checksum right again.
    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|&byte| u32::from(byte)).sum();
        self.header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.set(offset, bytes);
        self
    }

    fn resize(&mut self, data: &[u8]) {
        self.data = data.to_vec();
        self.set(124, format!("{:011o}", data.len()).as_bytes());
    }

    fn is_empty_type(&self) -> bool {
        !matches!(self.header[156], 0 | b'0' | b'x' | b'L' | b'7')
    }
}

/// Splits an archive: qk.json, Cargo.lock, bin/hello, bin/static, licenses/LICENSE-MIT.
fn raw(parts: &Parts) -> Vec<Raw> {
    let (bytes, _) = parts.write().unwrap();
    let mut out = Vec::new();
    let mut at = 0;
    while bytes[at] != 0 {
        let header: [u8; 512] = bytes[at..at + 512].try_into().unwrap();
        let size = str::from_utf8(&header[124..135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        let data = bytes[at + 512..at + 512 + size].to_vec();
        at += 512 + size.next_multiple_of(512);
        out.push(Raw { header, data });
    }
    out
}

fn join(entries: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend(entry.header);
        out.extend(&entry.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// What the tar crate sees that is not in the archive these cases start from.
fn plain(bytes: &[u8]) -> io::Result<String> {
    let list = |bytes: &[u8]| -> io::Result<Vec<String>> {
        tar::Archive::new(bytes)
            .entries()?
            .map(|entry| {
                let mut entry = entry?;
                io::copy(&mut entry, &mut io::sink())?;
                let header = entry.header();
                Ok(format!(
                    "{:?} {:04o} {:?}",
                    header.entry_type(),
                    header.mode()?,
                    String::from_utf8_lossy(&entry.path_bytes()),
                ))
            })
            .collect()
    };
    let usual = list(&small().write().unwrap().0)?;
    let mut here = list(bytes)?;
    here.retain(|line| !usual.contains(line));
    Ok(here.join(", "))
}

/// One line a case: what plain tar takes, and what qk says.
struct Report(String);

impl Report {
    fn case(&mut self, name: &str, entries: &[Raw]) {
        self.bytes(name, &join(entries), None);
    }

    fn bytes(&mut self, name: &str, bytes: &[u8], stated: Option<usize>) {
        let size = stated.unwrap_or(bytes.len()) as u64;
        let error = fixture::read_stated(bytes, size).expect_err(name);
        self.line(name, bytes, &error);
    }

    fn line(&mut self, name: &str, bytes: &[u8], error: &ArchiveError) {
        let plain = plain(bytes).unwrap_or_else(|error| panic!("tar refuses {name:?}: {error}"));
        let plain = match plain.as_str() {
            "" => String::new(),
            seen => format!(" [tar: {seen}]"),
        };
        self.0 += &format!("{name}{plain}: {error}\n");
    }
}

fn report(cases: impl FnOnce(&mut Report)) -> String {
    let mut report = Report(String::new());
    cases(&mut report);
    report.0
}

#[test]
fn the_cases_start_from_an_archive_that_is_read() {
    let entries = raw(&small());
    assert_eq!(join(&entries), small().write().unwrap().0);
    let same = Raw::new(b"licenses/LICENSE-MIT", b"As is.\n");
    assert_eq!(join(&[same]), join(&entries[4..]));
}

#[test]
fn other_types_than_regular_files() {
    let after = |entry: Raw| [raw(&small()), vec![entry]].concat();
    let text = report(|report| {
        for (name, kind) in [
            ("hard link", b"1"),
            ("symbolic link", b"2"),
            ("character device", b"3"),
            ("block device", b"4"),
            ("directory", b"5"),
            ("fifo", b"6"),
        ] {
            let mut entry = Raw::new(b"licenses/X", b"").with(156, kind);
            entry.set(157, b"/etc/passwd");
            assert!(entry.is_empty_type());
            report.case(name, &after(entry));
        }
        report.case(
            "contiguous",
            &after(Raw::new(b"licenses/X", b"x").with(156, b"7")),
        );
        report.case(
            "file of the old tar",
            &after(Raw::new(b"licenses/X", b"x").with(156, b"\0")),
        );
        let pax = Raw::new(b"licenses/W", b"22 path=../../escaped\n").with(156, b"x");
        let long = Raw::new(b"licenses/W", b"../../escaped\0").with(156, b"L");
        let file = Raw::new(b"licenses/X", b"x");
        report.case("pax header", &[after(pax), vec![file.clone()]].concat());
        report.case("GNU long name", &[after(long), vec![file]].concat());
    });
    insta::assert_snapshot!(text, @r#"
    hard link [tar: Link 0644 "licenses/X"]: "licenses/X" is a link; archives hold regular files only
    symbolic link [tar: Symlink 0644 "licenses/X"]: "licenses/X" is a link; archives hold regular files only
    character device [tar: Char 0644 "licenses/X"]: "licenses/X" is a device; archives hold regular files only
    block device [tar: Block 0644 "licenses/X"]: "licenses/X" is a device; archives hold regular files only
    directory [tar: Directory 0644 "licenses/X"]: "licenses/X" is a directory; archives hold regular files only
    fifo [tar: Fifo 0644 "licenses/X"]: "licenses/X" is a device; archives hold regular files only
    contiguous [tar: Continuous 0644 "licenses/X"]: "licenses/X" has tar entry type '7'; archives hold regular files only
    file of the old tar [tar: Regular 0644 "licenses/X"]: "licenses/X" has tar entry type '\0'; archives hold regular files only
    pax header [tar: Regular 0644 "../../escaped"]: "licenses/W" has tar entry type 'x'; archives hold regular files only
    GNU long name [tar: Regular 0644 "../../escaped"]: "licenses/W" has tar entry type 'L'; archives hold regular files only
    "#);
}

#[test]
fn paths() {
    let after = |path: &[u8]| [raw(&small()), vec![Raw::new(path, b"x")]].concat();
    let text = report(|report| {
        report.case("absolute", &after(b"/licenses/X"));
        report.case("parent", &after(b"licenses/../../X"));
        report.case("parent as name", &after(b"licenses/.."));
        report.case("NUL", &after(b"licenses/X\0/../../Y"));
        report.case("backslash", &after(b"licenses\\..\\X"));
        report.case("elsewhere", &after(b"share/X"));
        report.case("bare", &after(b"licenses"));
        report.case("deeper", &after(b"licenses/a/X"));
        report.case("doubled slash", &after(b"licenses//X"));
        report.case("dot", &after(b"./licenses/X"));
        report.case("hidden", &after(b"licenses/.X"));
        report.case("escape sequence", &after(b"licenses/\x1b[31mX"));
        report.case("not UTF-8", &after(b"licenses/\xff"));
        let mut split = raw(&small());
        split.push(Raw::new(b"X", b"x").with(345, b"licenses"));
        report.case("ustar prefix", &split);
        let mut split = raw(&small());
        split.push(Raw::new(b"licenses/X", b"x").with(345, b"../.."));
        report.case("ustar prefix out of the archive", &split);
    });
    insta::assert_snapshot!(text, @r#"
    absolute [tar: Regular 0644 "/licenses/X"]: path "/licenses/X" is absolute
    parent [tar: Regular 0644 "licenses/../../X"]: path "licenses/../../X" leads out of the archive
    parent as name [tar: Regular 0644 "licenses/.."]: path "licenses/.." leads out of the archive
    NUL [tar: Regular 0644 "licenses/X"]: path "licenses/X" has a NUL inside
    backslash [tar: Regular 0644 "licenses\\..\\X"]: path "licenses\\..\\X" has a backslash
    elsewhere [tar: Regular 0644 "share/X"]: path "share/X" is none of qk.json, Cargo.lock, bin/* and licenses/*
    bare [tar: Regular 0644 "licenses"]: path "licenses" is none of qk.json, Cargo.lock, bin/* and licenses/*
    deeper [tar: Regular 0644 "licenses/a/X"]: path "licenses/a/X" has a name other than letters, digits, . _ + - (not . or - first, not . last)
    doubled slash [tar: Regular 0644 "licenses//X"]: path "licenses//X" has a name other than letters, digits, . _ + - (not . or - first, not . last)
    dot [tar: Regular 0644 "./licenses/X"]: path "./licenses/X" is none of qk.json, Cargo.lock, bin/* and licenses/*
    hidden [tar: Regular 0644 "licenses/.X"]: path "licenses/.X" has a name other than letters, digits, . _ + - (not . or - first, not . last)
    escape sequence [tar: Regular 0644 "licenses/\u{1b}[31mX"]: path "licenses/\u{1b}[31mX" has a name other than letters, digits, . _ + - (not . or - first, not . last)
    not UTF-8 [tar: Regular 0644 "licenses/�"]: path "licenses/�" has a name other than letters, digits, . _ + - (not . or - first, not . last)
    ustar prefix [tar: Regular 0644 "licenses/X"]: path "X" is none of qk.json, Cargo.lock, bin/* and licenses/*
    ustar prefix out of the archive [tar: Regular 0644 "../../licenses/X"]: the header of "licenses/X" is not canonical: prefix
    "#);
}

#[test]
fn order_and_duplicates() {
    let text = report(|report| {
        let entries = raw(&small());
        let mut twice = entries.clone();
        twice.push(entries[4].clone());
        report.case("twice", &twice);
        let mut case = entries.clone();
        case.push(Raw::new(b"licenses/license-mit", b"x"));
        report.case("twice but for case", &case);
        let mut case = entries.clone();
        case.insert(2, Raw::executable(b"bin/Hello", b"x"));
        report.case("an executable in another case", &case);
        let mut twice = entries.clone();
        twice.insert(1, entries[0].clone());
        report.case("qk.json twice", &twice);
        let mut swapped = entries.clone();
        swapped.swap(2, 3);
        report.case("executables swapped", &swapped);
        let mut swapped = entries.clone();
        swapped.swap(1, 4);
        report.case("licence before lock", &swapped);
        let mut late = entries.clone();
        late.swap(0, 1);
        report.case("qk.json second", &late);
        report.case("no qk.json", &entries[1..]);
        report.case("nothing at all", &[]);
    });
    insta::assert_snapshot!(text, @r#"
    twice: "licenses/LICENSE-MIT" occurs twice (case does not count)
    twice but for case [tar: Regular 0644 "licenses/license-mit"]: "licenses/license-mit" occurs twice (case does not count)
    an executable in another case [tar: Regular 0755 "bin/Hello"]: "bin/Hello" is not listed in qk.json
    qk.json twice: "qk.json" occurs twice (case does not count)
    executables swapped: "bin/hello" is out of order: it stands after "bin/static"
    licence before lock: "bin/hello" is out of order: it stands after "licenses/LICENSE-MIT"
    qk.json second: the archive does not begin with qk.json
    no qk.json: the archive does not begin with qk.json
    nothing at all: the archive does not begin with qk.json
    "#);
}

#[test]
fn headers_in_another_spelling() {
    let change = |offset: usize, bytes: &[u8]| {
        let mut entries = raw(&small());
        entries[2].set(offset, bytes);
        entries
    };
    let text = report(|report| {
        report.case("not executable", &change(100, b"0000644"));
        report.case("setuid", &change(100, b"0004755"));
        report.case("mode in other digits", &change(100, b" 000755"));
        report.case("uid", &change(108, b"0001000"));
        report.case("gid", &change(116, b"0001000"));
        report.case("mtime", &change(136, b"00000000001"));
        report.case("size ended by a space", &change(135, b" "));
        report.case("size in binary", &{
            let size = raw(&small())[2].data.len() as u64;
            let mut binary = [0; 12];
            binary[0] = 0x80;
            binary[4..].copy_from_slice(&size.to_be_bytes());
            change(124, &binary)
        });
        report.case("link name", &change(157, b"x"));
        report.case("GNU magic", &change(257, b"ustar  \0"));
        report.case("user name", &change(265, b"root"));
        report.case("group name", &change(297, b"root"));
        report.case("device", &change(329, b"0000001"));
        report.case("bytes after the header's fields", &change(500, b"x"));
        let mut checksum = raw(&small());
        checksum[2].header[154..156].copy_from_slice(b" \0");
        report.case("checksum in another form", &checksum);
    });
    insta::assert_snapshot!(text, @r#"
    not executable [tar: Regular 0644 "bin/hello"]: "bin/hello" must have mode 0755
    setuid [tar: Regular 4755 "bin/hello"]: "bin/hello" must have mode 0755
    mode in other digits: "bin/hello" must have mode 0755
    uid: the header of "bin/hello" is not canonical: uid
    gid: the header of "bin/hello" is not canonical: gid
    mtime: the header of "bin/hello" is not canonical: mtime
    size ended by a space: the header of "bin/hello" is not canonical: size
    size in binary: the header of "bin/hello" is not canonical: size
    link name: the header of "bin/hello" is not canonical: link name
    GNU magic: the header of "bin/hello" is not canonical: magic
    user name: the header of "bin/hello" is not canonical: user name
    group name: the header of "bin/hello" is not canonical: group name
    device: the header of "bin/hello" is not canonical: device major
    bytes after the header's fields: the header of "bin/hello" is not canonical: padding
    checksum in another form: the header of "bin/hello" is not canonical: checksum
    "#);
}

#[test]
fn ends_and_sizes() {
    let whole = join(&raw(&small()));
    let cut = whole.len() - 1024;
    let text = report(|report| {
        report.bytes("end mark cut off", &whole[..cut], Some(whole.len()));
        report.bytes("end mark not in the stated size", &whole, Some(cut));
        report.bytes("half an end mark", &whole[..cut + 512], Some(whole.len()));
        let followed = [&whole[..cut + 512], &[b'x'; 512]].concat();
        report.bytes("a zero block and another", &followed, None);
        let more = [&whole[..], &[0; 512]].concat();
        report.bytes("more zeros", &more, None);
        let more = [&whole[..], b"hidden"].concat();
        report.bytes("more bytes", &more, None);
        report.bytes("more bytes than stated", &more, Some(whole.len()));
        report.bytes("stated too large", &whole, Some(3 << 30));

        let mut padded = whole.clone();
        padded[512 * 5 + 100] = 1; // after the 12 bytes of Cargo.lock
        report.bytes("bytes in the padding", &padded, None);
    });
    insta::assert_snapshot!(text, @r#"
    end mark cut off: the archive breaks off after 6144 bytes
    end mark not in the stated size: the archive goes on beyond its stated size of 6144 bytes
    half an end mark: the archive breaks off after 6656 bytes
    a zero block and another: the archive does not end with two zero blocks
    more zeros: the archive ends at byte 7168, but 7680 bytes were stated
    more bytes: the archive ends at byte 7168, but 7174 bytes were stated
    more bytes than stated: bytes follow the end of the archive
    stated too large: an archive of 3221225472 bytes is larger than the 2147483648 allowed
    bytes in the padding: the padding after "Cargo.lock" is not zero
    "#);
}

#[test]
fn what_qk_json_and_the_files_say() {
    let entries = raw(&small());
    let change = |index: usize, data: &[u8]| {
        let mut entries = entries.clone();
        entries[index].resize(data);
        entries
    };
    let text = report(|report| {
        let mut more = entries.clone();
        more.insert(4, Raw::executable(b"bin/zz", b"x"));
        report.case("unlisted executable", &more);
        let mut fewer = entries.clone();
        fewer.remove(3);
        report.case("missing executable", &fewer);
        let mut fewer = entries.clone();
        fewer.remove(1);
        report.case("missing lock", &fewer);
        report.case("larger executable", &change(2, &[0; 1000]));
        let mut flipped = entries[2].data.clone();
        flipped[200] ^= 1;
        report.case("other executable", &change(2, &flipped));
        report.case("other lock", &change(1, b"version = 3\n"));
    });
    insta::assert_snapshot!(text, @r#"
    unlisted executable [tar: Regular 0755 "bin/zz"]: "bin/zz" is not listed in qk.json
    missing executable: "bin/static" is missing
    missing lock: "Cargo.lock" is missing
    larger executable: "bin/hello" has 1000 bytes; qk.json says 390
    other executable: "bin/hello" has BLAKE3 e69845f14a57a0c88da1c37c95ae3e727bf6912d73a000561e95bfcf8d619974; qk.json says 293d2197a10add48a5b8bb307543587bb9cd0a754ef8882d1a0ea5bfa66d69e9
    other lock: Cargo.lock has SHA-256 a6302849064e016e520e513a22aef99a2d874333e7fcbf0b2c2260cb6ffb42f6; the key says 083791b01c1a67ae66aca99070c9ee48082d04307473d494376e6de7cf9a654a
    "#);
}

/// Replaces qk.json with `edit` of its text.
fn edited(edit: impl FnOnce(&str) -> String) -> Vec<Raw> {
    let mut entries = raw(&small());
    let text = edit(str::from_utf8(&entries[0].data).unwrap());
    entries[0].resize(text.as_bytes());
    entries
}

fn with_contents(change: impl FnOnce(&mut Contents)) -> Vec<Raw> {
    let mut contents = small().contents;
    change(&mut contents);
    edited(|_| String::from_utf8(canonical::to_bytes(&contents).unwrap()).unwrap())
}

#[test]
fn descriptions() {
    let replaced = |from: &str, to: &str| {
        edited(|text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        })
    };
    let text = report(|report| {
        report.case("no JSON", &edited(|_| "hello".to_owned()));
        report.case("white space", &edited(|text| format!("{text}\n")));
        report.case(
            "a set in another order",
            &replaced(
                r#"["libc.so.6","libm.so.6"]"#,
                r#"["libm.so.6","libc.so.6"]"#,
            ),
        );
        report.case(
            "a set with a duplicate",
            &replaced(
                r#"["libc.so.6","libm.so.6"]"#,
                r#"["libc.so.6","libc.so.6"]"#,
            ),
        );
        report.case(
            "unknown member",
            &replaced(r#","size":390"#, r#","size":390,"x":1"#),
        );
        report.case(
            "other format",
            &replaced(r#""format":"elf""#, r#""format":"com""#),
        );
        report.case(
            "key out of bounds",
            &with_contents(|contents| {
                contents.key.flags.profile.clear();
            }),
        );
        report.case(
            "no executables",
            &with_contents(|contents| contents.executables.clear()),
        );
        report.case(
            "executable outside of bin",
            &with_contents(|contents| {
                let executable = contents.executables["bin/hello"].clone();
                contents
                    .executables
                    .insert("licenses/x".to_owned(), executable);
            }),
        );
        report.case(
            "executable above the archive",
            &with_contents(|contents| {
                let executable = contents.executables["bin/hello"].clone();
                contents
                    .executables
                    .insert("bin/../../x".to_owned(), executable);
            }),
        );
        report.case(
            "executables that differ by case",
            &with_contents(|contents| {
                let executable = contents.executables["bin/hello"].clone();
                contents
                    .executables
                    .insert("bin/HELLO".to_owned(), executable);
            }),
        );
        let change = |change: fn(&mut qk_protocol::archive::Executable)| {
            with_contents(|contents| change(contents.executables.get_mut("bin/hello").unwrap()))
        };
        report.case(
            "size over the limit",
            &change(|executable| executable.size = 3 << 30),
        );
        report.case(
            "machine with an escape",
            &change(|executable| {
                executable.machine = "x86\x1b[31m".to_owned();
            }),
        );
        report.case(
            "glibc of no release",
            &change(|executable| {
                executable.glibc = Some("2.017".to_owned());
            }),
        );
        report.case(
            "library with a line break",
            &change(|executable| {
                executable.needed.insert("a\nb".to_owned());
            }),
        );
        report.case(
            "too many libraries",
            &change(|executable| {
                executable.needed = (0..257).map(|i| format!("lib{i}")).collect();
            }),
        );
    });
    insta::assert_snapshot!(text, @r#"
    no JSON: qk.json: not the expected JSON: expected value at line 1 column 1
    white space: qk.json: not in canonical form (RFC 8785)
    a set in another order: qk.json: not in canonical form (RFC 8785)
    a set with a duplicate: qk.json: not in canonical form (RFC 8785)
    unknown member: qk.json: not the expected JSON: unknown field `x`, expected one of `format`, `size`, `blake3`, `machine`, `glibc`, `needed`
    other format: qk.json: not the expected JSON: unknown variant `com`, expected one of `elf`, `macho`, `pe`
    key out of bounds: qk.json: artifact key: profile "" is not allowed: a profile of cargo
    no executables: qk.json lists no executable
    executable outside of bin: qk.json lists "licenses/x" as an executable; those are below bin/
    executable above the archive: path "bin/../../x" leads out of the archive
    executables that differ by case: "bin/hello" occurs twice (case does not count)
    size over the limit: "bin/hello" has 3221225472 bytes; 2147483648 are allowed
    machine with an escape: qk.json: machine of "bin/hello" cannot be "x86\u{1b}[31m"
    glibc of no release: qk.json: glibc of "bin/hello" cannot be "2.017"
    library with a line break: qk.json: needed of "bin/hello" cannot be "a\nb"
    too many libraries: more than 256 libraries of "bin/hello"
    "#);
}

#[test]
fn parts_over_the_limit() {
    let small_limits = Limits {
        archive_bytes_max: 1 << 20,
        contents_bytes_max: 2000,
        lock_bytes_max: 20,
        license_bytes_max: 20,
        licenses_max: 2,
        executables_max: 2,
    };
    let read = |bytes: &[u8], limits| {
        Reader::new(bytes, bytes.len() as u64, limits).and_then(Reader::finish)
    };
    let text = report(|report| {
        let mut case = |name: &str, change: &dyn Fn(&mut Parts)| {
            let mut parts = small();
            change(&mut parts);
            let (bytes, _) = Parts {
                contents: Contents {
                    key: parts.contents.key.clone(),
                    ..Parts::new(parts.executables.clone()).contents
                },
                ..parts
            }
            .write()
            .unwrap();
            read(&bytes, Limits::default()).expect(name);
            report.line(name, &bytes, &read(&bytes, small_limits).expect_err(name));
        };
        case("qk.json", &|parts| {
            parts.contents.key.flags.features =
                (0..60).map(|i| format!("a-long-feature-{i}")).collect();
        });
        case("lock", &|parts| {
            parts.lock = vec![b'#'; 21];
            parts.contents.key.flags.lock = qk_protocol::hash::Sha256::of(&parts.lock);
        });
        case("licence", &|parts| {
            parts
                .licenses
                .insert("LICENSE-MIT".to_owned(), vec![b'x'; 21]);
        });
        case("licences", &|parts| {
            for name in ["A", "B"] {
                parts.licenses.insert(name.to_owned(), Vec::new());
            }
        });
        case("executables", &|parts| {
            parts
                .executables
                .insert("bin/third".to_owned(), fixture::elf(&[], &[]));
        });
    });
    insta::assert_snapshot!(text, @r#"
    qk.json: "qk.json" has 2235 bytes; 2000 are allowed
    lock: "Cargo.lock" has 21 bytes; 20 are allowed
    licence: "licenses/LICENSE-MIT" has 21 bytes; 20 are allowed
    licences [tar: Regular 0644 "licenses/A", Regular 0644 "licenses/B"]: more than 2 licence files
    executables [tar: Regular 0755 "bin/third"]: more than 2 executables
    "#);
}

/// A reader that was told once that the archive is bad does not go on behind the bad entry.
#[test]
fn a_refusal_is_final() {
    let mut entries = raw(&small());
    entries.insert(4, Raw::executable(b"bin/zz", b""));
    let bytes = join(&entries);
    let mut reader = Reader::new(&bytes[..], bytes.len() as u64, Limits::default()).unwrap();
    let error = loop {
        match reader.next_entry() {
            Ok(entry) => assert!(entry.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ArchiveError::Unlisted { .. }));
    assert!(matches!(reader.next_entry(), Err(ArchiveError::Refused)));
    assert!(matches!(
        reader.copy(&mut io::sink()),
        Err(ArchiveError::Refused)
    ));
    assert!(matches!(reader.finish(), Err(ArchiveError::Refused)));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let refused = |change: &dyn Fn(&mut Parts)| {
        let mut parts = small();
        change(&mut parts);
        parts.write().map(|_| ()).unwrap_err().to_string()
    };
    let lines = [
        refused(&|parts| parts.lock.push(b'\n')),
        refused(&|parts| {
            parts.executables.get_mut("bin/hello").unwrap()[100] ^= 1;
        }),
        refused(&|parts| parts.executables.get_mut("bin/hello").unwrap().push(0)),
        refused(&|parts| {
            parts.executables.get_mut("bin/hello").unwrap().pop();
        }),
        refused(&|parts| {
            parts.licenses.insert("../X".to_owned(), Vec::new());
        }),
        refused(&|parts| {
            parts.licenses.insert("license-mit".to_owned(), Vec::new());
        }),
        refused(&|parts| {
            parts
                .licenses
                .insert("X".to_owned(), vec![0; (1 << 20) + 1]);
        }),
        refused(&|parts| parts.contents.executables.clear()),
        refused(&|parts| parts.contents.key.name.clear()),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    Cargo.lock has SHA-256 b840c1ece3c30560f15be984971bf5bb1ee3e91e906a017243dce7bb164eb448; the key says 083791b01c1a67ae66aca99070c9ee48082d04307473d494376e6de7cf9a654a
    "bin/hello" has BLAKE3 047b3cd7f60307ae27842f5fda63d615198b72a0e1b16fe2e1b06a012827d1a9; qk.json says 293d2197a10add48a5b8bb307543587bb9cd0a754ef8882d1a0ea5bfa66d69e9
    "bin/hello" has 391 bytes; qk.json says 390
    "bin/hello" has 389 bytes; qk.json says 390
    path "licenses/../X" leads out of the archive
    "licenses/license-mit" occurs twice (case does not count)
    "licenses/X" has 1048577 bytes; 1048576 are allowed
    qk.json lists no executable
    qk.json: artifact key: name "" is not allowed: letters, digits, - and _, a letter first
    "#);
}

/// An executable far larger than what is held of it passes through writer and reader.
#[test]
fn large_executables_stream() {
    const SIZE: u64 = 100 << 20;
    struct Zeros;
    impl Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0);
            Ok(buffer.len())
        }
    }
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut Zeros.take(SIZE), &mut hasher).unwrap();
    let mut parts = small();
    parts
        .contents
        .executables
        .retain(|path, _| path == "bin/hello");
    let executable = parts.contents.executables.get_mut("bin/hello").unwrap();
    executable.size = SIZE;
    executable.blake3 = qk_protocol::hash::Blake3(*hasher.finalize().as_bytes());

    // Of the archive only what is not the executable is kept, to be given back around zeros.
    let mut ends = Vec::new();
    struct Kept<'a>(&'a mut Vec<u8>, u64);
    impl io::Write for Kept<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += bytes.len() as u64;
            if bytes.len() <= 4096 {
                self.0.extend(bytes);
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut kept = Kept(&mut ends, 0);
    let identity = qk_protocol::archive::write(
        &mut kept,
        &parts.contents,
        &parts.lock,
        &parts.licenses,
        |_| Ok(Zeros.take(SIZE)),
    )
    .unwrap();
    assert_eq!(identity.size, kept.1);
    let tail = ends.split_off(ends.len() - 1024 - 1024);
    let archive = Cursor::new(ends)
        .chain(Zeros.take(SIZE))
        .chain(Cursor::new(tail));
    let reader = Reader::new(archive, identity.size, Limits::default()).unwrap();
    assert_eq!(reader.finish().unwrap().1, identity);
}
