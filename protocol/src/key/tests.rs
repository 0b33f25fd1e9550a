use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::testing;

fn refusal(change: impl FnOnce(&mut ArtifactKey)) -> String {
    let mut key = testing::key();
    key.check().unwrap();
    change(&mut key);
    let checked = key.check().map_err(|error| error.to_string());
    let parsed = ArtifactKey::parse(&key.to_bytes()).map(|_| ());
    assert_eq!(
        checked,
        parsed.map_err(|error| error.to_string()),
        "check and parse agree"
    );
    checked.expect_err("refused")
}

#[test]
fn every_member_has_bounds() {
    assert_snapshot!(refusal(|key| key.registry.clear()), @r#"artifact key: registry "" is not allowed: a source id of cargo"#);
    assert_snapshot!(refusal(|key| key.registry = "a b".to_owned()), @r#"artifact key: registry "a b" is not allowed: a source id of cargo"#);
    assert_snapshot!(refusal(|key| key.name = "../etc".to_owned()), @r#"artifact key: name "../etc" is not allowed: letters, digits, - and _, a letter first"#);
    assert_snapshot!(refusal(|key| key.name = "1password".to_owned()), @r#"artifact key: name "1password" is not allowed: a letter first"#);
    assert_snapshot!(refusal(|key| key.name = "a".repeat(65)), @r#"artifact key: name "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is not allowed: letters, digits, - and _, a letter first"#);
    assert_snapshot!(refusal(|key| key.version = "1.2".to_owned()), @r#"artifact key: version "1.2" is not allowed: an exact version"#);
    assert_snapshot!(refusal(|key| key.version = "01.2.3".to_owned()), @r#"artifact key: version "01.2.3" is not allowed: an exact version"#);
    assert_snapshot!(refusal(|key| key.version = format!("1.2.3-{}", "a".repeat(200))), @r#"artifact key: version "1.2.3-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is not allowed: an exact version"#);
    assert_snapshot!(refusal(|key| key.target = "x86_64/linux".to_owned()), @r#"artifact key: target "x86_64/linux" is not allowed: a target triple"#);
    assert_snapshot!(refusal(|key| key.flags.profile = "a b".to_owned()), @r#"artifact key: profile "a b" is not allowed: a profile of cargo"#);
    assert_snapshot!(refusal(|key| key.flags.features = ["default".to_owned()].into()), @r#"artifact key: features "default" is not allowed: said by default_features instead"#);
    assert_snapshot!(refusal(|key| key.flags.features = ["a\u{7}".to_owned()].into()), @r#"artifact key: features "a\u{7}" is not allowed: a feature's name"#);
    assert_snapshot!(refusal(|key| key.flags.features = (0..65).map(|n| format!("f{n}")).collect()), @r#"artifact key: flags "" is not allowed: at most 64 features and 64 rustflags"#);
    assert_snapshot!(refusal(|key| key.flags.features = (10..74).map(|n| format!("{n}{}", "f".repeat(126))).collect()), @"artifact key: 9072 bytes are more than the 8192 allowed");
    assert_snapshot!(refusal(|key| key.flags.rustc.commit_hash = "abc".to_owned()), @r#"artifact key: rustc.commit_hash "abc" is not allowed: 40 hex digits"#);
    assert_snapshot!(refusal(|key| key.flags.rustc.commit_hash = "A".repeat(40)), @r#"artifact key: rustc.commit_hash "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" is not allowed: 40 hex digits"#);
    assert_snapshot!(refusal(|key| key.flags.recipe = 2), @r#"artifact key: recipe "2" is not allowed: only recipe 1 is known here"#);
    assert_snapshot!(refusal(|key| key.flags.rustflags = ["-Clinker=x".to_owned()].into()), @r#"artifact key: rustflags "-Clinker=x" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
    assert_snapshot!(refusal(|key| key.flags.rustflags = ["-Copt-level=2", "-Copt-level=3"].map(str::to_owned).into()), @r#"artifact key: rustflags "-Copt-level=3" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
    assert_snapshot!(refusal(|key| key.flags.rustflags = ["-C opt-level=3".to_owned()].into()), @r#"artifact key: rustflags "-C opt-level=3" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
    assert_snapshot!(refusal(|key| key.flags.rustflags = ["-Ctarget-cpu=native".to_owned()].into()), @r#"artifact key: rustflags "-Ctarget-cpu=native" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
}

fn with_glibc(target: &str, glibc: Option<&str>) -> Result<(), KeyError> {
    let mut key = testing::key();
    key.target = target.to_owned();
    let Linker::Zig { glibc: member, .. } = &mut key.flags.linker else {
        unreachable!("the fixture links with zig");
    };
    *member = glibc.map(str::to_owned);
    key.check()
}

#[test]
fn a_glibc_belongs_to_linux_gnu_alone() {
    for target in ["aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf"] {
        assert!(with_glibc(target, Some("2.17")).is_ok(), "{target}");
        assert!(with_glibc(target, None).is_err(), "{target}");
    }
    for target in [
        "x86_64-unknown-linux-musl",
        "x86_64-pc-windows-gnu",
        "aarch64-apple-darwin",
    ] {
        assert!(with_glibc(target, Some("2.17")).is_err(), "{target}");
        assert!(with_glibc(target, None).is_ok(), "{target}");
    }
    for version in ["2", "2.", "+2.17", "02.17", "2.17.1", "2.99999999999"] {
        assert!(
            with_glibc("x86_64-unknown-linux-gnu", Some(version)).is_err(),
            "{version}"
        );
    }
}

fn canonical(flags: &str) -> String {
    match rustflags(flags.split(' ')) {
        Ok(flags) => Vec::from_iter(flags).join(" "),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_spelling_of_a_rustflag_is_one() {
    for spelling in [
        "-Copt-level=3",
        "-C opt-level=3",
        "-C opt_level=3",
        "--codegen=opt-level=3",
        "--codegen opt-level=3",
    ] {
        assert_eq!(canonical(spelling), "-Copt-level=3", "{spelling}");
    }
    assert_snapshot!(canonical("-C strip=symbols -Ctarget-feature=+aes,-sse3 --codegen=lto=fat"), @"-Clto=fat -Cstrip=symbols -Ctarget-feature=+aes,-sse3");
}

#[test]
fn what_rustc_or_the_allow_list_refuses() {
    for spelling in [
        "-C=opt-level=3",
        "--codegenopt-level=3",
        "--codegen==opt-level=3",
        "-C -Copt-level=3",
        "-C",
        "--codegen",
        "-Clto",
        "-Copt-level=",
        "-Copt-level=3 -C opt-level=2",
        "-Ctarget-cpu=native",
        "-C target_cpu=native",
        "-Clink-arg=-s",
        "-Cpanic=abort\n",
        "-O",
        "-Zthreads=8",
        "",
    ] {
        assert!(rustflags(spelling.split(' ')).is_err(), "{spelling}");
    }
    assert_snapshot!(canonical("-C target-cpu=native"), @r#"artifact key: rustflags "-Ctarget-cpu=native" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
    assert_snapshot!(canonical("-O"), @r#"artifact key: rustflags "-O" is not allowed: only -C of target-feature, target-cpu (not native), opt-level, lto, panic, strip, codegen-units, each once"#);
}

#[test]
fn only_canonical_bytes_are_a_key() {
    let text = String::from_utf8(testing::key().to_bytes()).unwrap();
    assert_eq!(ArtifactKey::parse(text.as_bytes()).unwrap(), testing::key());
    let why = |text: String| ArtifactKey::parse(text.as_bytes()).unwrap_err().to_string();
    assert_snapshot!(why(text.replacen(':', ": ", 1)), @"artifact key: not in canonical form (RFC 8785)");
    assert_snapshot!(why(text.replacen('{', r#"{"zone":1,"#, 1)), @"artifact key: not the expected JSON: unknown field `zone`, expected one of `registry`, `name`, `version`, `target`, `flags` at line 1 column 7");
    assert_snapshot!(why(text.replace(r#""name":"hello""#, r#""name":"hello","name":"hello""#)), @"artifact key: not the expected JSON: duplicate field `name` at line 1 column 595");
    assert_snapshot!(why(text.replace(r#""output":"bins""#, r#""output":"unit""#)), @"artifact key: not the expected JSON: unknown variant `unit`, expected `bins` at line 1 column 253");
    assert_snapshot!(why(text.replace(r#"["color"]"#, r#"["color","blue"]"#)), @"artifact key: not in canonical form (RFC 8785)");
    assert_snapshot!(why(text.replace(r#"["color"]"#, r#"["color","color"]"#)), @"artifact key: not in canonical form (RFC 8785)");
    assert_snapshot!(why(text.replace(r#""recipe":1"#, r#""recipe":1.0"#)), @"artifact key: not the expected JSON: invalid type: floating point `1.0`, expected u32 at line 1 column 286");
    assert_snapshot!(why(text.replace(r#""glibc":"2.17","#, r#""glibc":null,"#)), @"artifact key: not in canonical form (RFC 8785)");
}

fn keys() -> impl Strategy<Value = ArtifactKey> {
    let features = prop::collection::btree_set("[a-z][a-z0-9_-]{0,9}", 0..4)
        .prop_filter("said otherwise", |features| !features.contains("default"));
    (
        "[a-z][a-z0-9_-]{0,20}",
        "[1-9]{1,3}\\.[0-9]\\.[0-9](-rc\\.[1-9])?",
        features,
        any::<bool>(),
        any::<[u8; 32]>(),
        "[0-3sz]",
    )
        .prop_map(
            |(name, version, features, default_features, source, level)| {
                let mut key = testing::key();
                key.name = name;
                key.version = version;
                key.flags.features = features;
                key.flags.default_features = default_features;
                key.flags.source = Sha256(source);
                key.flags.rustflags = [format!("-Copt-level={level}")].into();
                key
            },
        )
}

proptest! {
    #[test]
    fn keys_survive_their_bytes(key in keys()) {
        prop_assert_eq!(ArtifactKey::parse(&key.to_bytes()).unwrap(), key);
    }

    /// Another byte is another key or none: no two byte strings are one key.
    #[test]
    fn a_changed_byte_is_another_key_or_none(key in keys(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = key.to_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(other) = ArtifactKey::parse(&bytes) {
            prop_assert_ne!(other.id(), key.id());
            prop_assert_eq!(other.to_bytes(), bytes);
        }
    }

    #[test]
    fn rustflags_are_stable(words in prop::collection::vec("(-C|--codegen=)(opt[-_]level|lto|target-cpu)=[a-z0-9]{1,8}", 0..4)) {
        if let Ok(flags) = rustflags(words.iter().map(String::as_str)) {
            prop_assert_eq!(rustflags(flags.iter().map(String::as_str)).unwrap(), flags);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_written_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(key) = ArtifactKey::parse(&bytes) {
            prop_assert_eq!(key.to_bytes(), bytes);
        }
    }
}
