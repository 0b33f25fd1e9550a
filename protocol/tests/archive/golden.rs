//! The bytes of an archive are fixed, and other programs read them as we mean them.

use std::path::PathBuf;
use std::process::Command;

use qk_protocol::hash::{Root, Sha256};

use crate::fixture::{self, small};

fn vector() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/archive-1.tar")
}

/// The vector, made anew first where `QK_BLESS=1` asks for it.
fn golden() -> Vec<u8> {
    if std::env::var_os("QK_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(vector(), small().write().unwrap().0).unwrap();
    }
    std::fs::read(vector()).unwrap()
}

#[test]
fn the_bytes_are_the_golden_ones() {
    let golden = golden();
    let (bytes, identity) = small().write().unwrap();
    assert!(
        bytes == golden,
        "the writer gives other bytes than {}",
        vector().display()
    );
    insta::assert_snapshot!(identity.root, @"49eaa27031a1f96a3de0813c1841f8babdbf8653273befeb6a5238191e89047d");
    insta::assert_snapshot!(identity.sha256, @"0bdbb635db20318123cdb885356e86fe438e50c2f8df15a2a49ac24e659f3c2c");
    assert_eq!(identity.root, Root::of(&golden));
    assert_eq!(identity.sha256, Sha256::of(&golden));
    assert_eq!(identity.size, golden.len() as u64);
}

#[test]
fn the_golden_archive_is_read_back() {
    let (parts, identity) = fixture::read(&golden()).unwrap();
    let small = small();
    assert_eq!(parts.contents, small.contents);
    assert_eq!(parts.lock, small.lock);
    assert_eq!(parts.licenses, small.licenses);
    assert_eq!(parts.executables, small.executables);
    assert_eq!(identity.root, Root::of(&golden()));
}

#[test]
fn the_contents_are_as_documented() {
    let golden = golden();
    let size = usize::from_str_radix(str::from_utf8(&golden[124..135]).unwrap(), 8).unwrap();
    let description = str::from_utf8(&golden[512..512 + size]).unwrap();
    insta::assert_snapshot!(description.replace(",\"", ",\n\""), @r#"
    {"executables":{"bin/hello":{"blake3":"293d2197a10add48a5b8bb307543587bb9cd0a754ef8882d1a0ea5bfa66d69e9",
    "format":"elf",
    "glibc":"2.17",
    "machine":"x86_64",
    "needed":["libc.so.6",
    "libm.so.6"],
    "size":390},
    "bin/static":{"blake3":"23c3c5ba7304ea1843686bb8826190a08c626a8c831a736b8bb41d928de432e2",
    "format":"elf",
    "machine":"x86_64",
    "needed":[],
    "size":241}},
    "key":{"flags":{"default_features":true,
    "features":["color"],
    "linker":{"zig":{"glibc":"2.17",
    "wheel":"0303030303030303030303030303030303030303030303030303030303030303"}},
    "lock":"083791b01c1a67ae66aca99070c9ee48082d04307473d494376e6de7cf9a654a",
    "output":"bins",
    "profile":"release",
    "recipe":1,
    "rustc":{"commit_hash":"0123456789abcdef0123456789abcdef01234567",
    "host":"x86_64-unknown-linux-gnu",
    "sysroot":"0202020202020202020202020202020202020202020202020202020202020202",
    "version":"1.95.0"},
    "rustflags":[],
    "source":"0101010101010101010101010101010101010101010101010101010101010101"},
    "name":"hello",
    "registry":"registry+https://registry.example/index",
    "target":"x86_64-unknown-linux-gnu",
    "version":"1.0.0"}}
    "#);
}

/// The tar crate, which shares no code with us, reads the same files.
#[test]
fn the_tar_crate_lists_the_same() {
    let golden = golden();
    let lines: Vec<String> = tar::Archive::new(&golden[..])
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            format!(
                "{:04o} {}:{} {} {} {}",
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                header.mtime().unwrap(),
                header.size().unwrap(),
                entry.path().unwrap().display(),
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    0644 0:0 0 1053 qk.json
    0644 0:0 0 12 Cargo.lock
    0755 0:0 0 390 bin/hello
    0755 0:0 0 241 bin/static
    0644 0:0 0 7 licenses/LICENSE-MIT
    "#);
}

/// GNU tar, told to leave everything out that qk leaves out, gives the same archive byte by byte.
#[cfg(target_os = "linux")]
#[test]
fn gnu_tar_writes_the_same_bytes() {
    use std::os::unix::fs::PermissionsExt;

    let golden = golden();
    let directory = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for entry in tar::Archive::new(&golden[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let file = directory.path().join(&path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::io::copy(&mut entry, &mut std::fs::File::create(&file).unwrap()).unwrap();
        let mode = if path.starts_with("bin") {
            0o755
        } else {
            0o644
        };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        paths.push(path);
    }
    let output = Command::new("tar")
        .current_dir(directory.path())
        .args([
            "--create",
            "--file=-",
            "--format=ustar",
            "--blocking-factor=1",
        ])
        .args(["--mtime=@0", "--owner=:0", "--group=:0", "--numeric-owner"])
        .args(&paths)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == golden, "GNU tar gives other bytes");

    let listed = Command::new("tar")
        .args(["--list", "--file"])
        .arg(vector())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(listed.stdout)
            .unwrap()
            .lines()
            .collect::<Vec<_>>(),
        paths
            .iter()
            .map(|path| path.to_str().unwrap())
            .collect::<Vec<_>>(),
    );
}
