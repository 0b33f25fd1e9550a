use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::hash::{Blake3, Root};
use crate::manifest::PrincipalRole;
use crate::policy::{Count, Group, Override};
use crate::testing::{NOW, manifest, public, subject};

/// The changes, a line each; `!` before those that widen trust.
fn shown(before: &Manifest, after: &Manifest) -> String {
    let line = |change: &Change| {
        let mark = if change.widens { "! " } else { "  " };
        // Keys are long, and their beginnings suffice here.
        let short = |word: &str| match word.len() >= 64 {
            true => format!("{}…", &word[..8]),
            false => word.to_owned(),
        };
        let words: Vec<String> = change.text.split(' ').map(short).collect();
        format!("{mark}{}", words.join(" "))
    };
    changes(before, after)
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

fn after(change: impl FnOnce(&mut Manifest)) -> String {
    let mut next = manifest();
    change(&mut next);
    shown(&manifest(), &next)
}

#[test]
fn members_and_their_keys() {
    let mut next = manifest();
    let added = Principal {
        id: crate::testing::principal_id("zoe"),
        name: "zoe".to_owned(),
        roles: [PrincipalRole::Verifier, PrincipalRole::Publisher].into(),
        keys: vec![PrincipalKey {
            key: public("zoe"),
            state: KeyState::Active,
            retired: None,
        }],
        ..next.principals[0].clone()
    };
    next.principals.remove(1);
    next.principals.push(added);
    next.principals[0].keys[0].state = KeyState::Compromised;
    next.principals[1].keys[1] = PrincipalKey {
        key: public("cyd.2"),
        state: KeyState::Retired,
        retired: Some(NOW),
    };
    next.principals[2].roles.insert(PrincipalRole::Publisher);
    next.principals[2].targets = ["wasm32-wasip1".to_owned()].into();
    next.principals[3].keys[3].state = KeyState::Active;
    assert_snapshot!(shown(&manifest(), &next), @r"
    ! principal zoe (publisher, verifier; 2306decb… is added
    ! principal eve: key 135545a2… compromised becomes active
    ! principal dan: verifier becomes publisher, verifier
      principal cyd: key 608b3fa6… active becomes retired
      principal ann: key b02b42aa… active becomes compromised
      principal dan: targets all become wasm32-wasip1
      principal bob is removed
    ");
    // The same read backwards: what went comes.
    assert_snapshot!(shown(&next, &manifest()), @r"
    ! principal cyd: key 608b3fa6… retired becomes active
    ! principal ann: key b02b42aa… compromised becomes active
    ! principal bob (verifier; a4f5338f… 5261885b… 42c779ea… 9f575460… is added
      principal eve: key 135545a2… active becomes compromised
      principal dan: publisher, verifier becomes verifier
      principal dan: targets wasm32-wasip1 become all
      principal zoe is removed
    ");
}

#[test]
fn what_is_asked_for() {
    let mut next = manifest();
    next.policy = Policy {
        threshold: 1,
        count: Count::Assigned,
        max_age_days: Some(90),
        groups: vec![Group {
            name: "labs".to_owned(),
            threshold: 1,
            of: [].into(),
            count: Count::Any,
        }],
        crates: [("openssl".to_owned(), Override { threshold: 3 })].into(),
        on_dissent: Some(OnDissent::Escalate),
        ..Policy::default()
    };
    assert_snapshot!(shown(&manifest(), &next), @r#"
    ! principals that have to agree: 2 becomes 1
    ! a dissent no longer refuses, but calls others
      who counts: any becomes assigned
      observations count for 90 days
      group "labs": 1 are asked for
      principals that have to agree about openssl: 2 becomes 3
    "#);
    assert_snapshot!(shown(&next, &manifest()), @r#"
    ! who counts: assigned becomes any
    ! observations count whatever their age
    ! group "labs" is no longer asked for as it was
    ! principals that have to agree about openssl: 3 becomes 2
      principals that have to agree: 1 becomes 2
      a dissent refuses
    "#);
}

#[test]
fn what_a_network_is() {
    let mut next = manifest();
    next.name = "other".to_owned();
    next.root.threshold = 1;
    next.root.keys = ["root1", "new"].map(public).into();
    next.timestamp = public("clock2");
    next.registries
        .insert("registry+https://other.example/index".to_owned());
    next.builds[0].rustc.version = "1.96.0".to_owned();
    next.committee.seed = Blake3::of(b"other");
    next.blocked.push(Blocked {
        key: None,
        root: Some(subject("wrong").root),
        reason: "a bad compiler".to_owned(),
    });
    assert_snapshot!(shown(&manifest(), &next), @r"
    ! registry registry+https://other.example/index is added
    ! committees are drawn anew: the seed is another one
    ! build for x86_64-unknown-linux-gnu with rustc 1.96.0 (5d773a4e), recipe 1, zig ba599261, glibc 2.17 is added
    ! root keys that have to sign: 2 becomes 1
    ! root key be84d669… is added
    ! timestamp key: d371184b… becomes b8e1e30c…
      name: test becomes other
      build for x86_64-unknown-linux-gnu with rustc 1.95.0 (5d773a4e), recipe 1, zig ba599261, glibc 2.17 is removed
      root key 60305842… is removed
      root key d1f8ede4… is removed
      root 388df24a… is blocked: a bad compiler
    ");
    assert_snapshot!(shown(&next, &manifest()), @r"
    ! committees are drawn anew: the seed is another one
    ! build for x86_64-unknown-linux-gnu with rustc 1.95.0 (5d773a4e), recipe 1, zig ba599261, glibc 2.17 is added
    ! root key 60305842… is added
    ! root key d1f8ede4… is added
    ! timestamp key: b8e1e30c… becomes d371184b…
    ! root 388df24a… is no longer blocked
      name: other becomes test
      registry registry+https://other.example/index is removed
      build for x86_64-unknown-linux-gnu with rustc 1.96.0 (5d773a4e), recipe 1, zig ba599261, glibc 2.17 is removed
      root keys that have to sign: 1 becomes 2
      root key be84d669… is removed
    ");
    assert_snapshot!(after(|next| next.principals.reverse()), @"! builds, principals or policy are written in another way");
    assert_eq!(
        after(|next| next.version = 2),
        "",
        "a version more is not news"
    );
}

proptest! {
    /// Nothing is passed over in silence.
    #[test]
    fn another_manifest_has_changes(which in 0..12usize, n in 1..1000u32) {
        let mut next = manifest();
        match which {
            0 => next.name = format!("n{n}"),
            1 => next.timestamp = public(&n.to_string()),
            2 => drop(next.bootstrap.insert(n.to_string())),
            3 => next.registries.clear(),
            4 => next.secret_id = Some(Blake3::of(&n.to_be_bytes())),
            5 => next.root.threshold = 1,
            6 => next.committee.size += n,
            7 => next.policy.threshold += n,
            8 => next.builds[0].rustc.sysroot = Blake3::of(&n.to_be_bytes()),
            9 => drop(next.principals.remove(n as usize % 6)),
            10 => next.principals[n as usize % 6].name = format!("n{n}"),
            _ => next.blocked.push(Blocked {
                key: None,
                root: Some(Root::of(&n.to_be_bytes())),
                reason: "why".to_owned(),
            }),
        }
        prop_assert!(!changes(&manifest(), &next).is_empty());
        prop_assert!(!changes(&next, &manifest()).is_empty());
    }
}
