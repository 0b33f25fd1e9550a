use insta::assert_snapshot;

use super::*;
use crate::testing::{NOW, network, principal_id, public, secret};

fn why<T: std::fmt::Debug>(result: Result<T, ManifestError>) -> String {
    result.expect_err("refused").to_string()
}

fn request() -> Membership {
    Membership {
        format: 1,
        network: network().id(),
        name: "zoe".to_owned(),
        roles: [PrincipalRole::Verifier].into(),
        targets: ["x86_64-unknown-linux-gnu".to_owned()].into(),
        toolchains: ["1.95.0".to_owned()].into(),
        keys: [].into(),
        issued: NOW,
    }
}

#[test]
fn a_request_shows_that_its_author_has_the_keys() {
    let envelope = request().sign(&[&secret("zoe"), &secret("zoe.2")]).unwrap();
    let read = Membership::read(&envelope).unwrap();
    assert_eq!(read.keys, ["zoe", "zoe.2"].map(public).into());
    let principal = read.principal(principal_id("zoe"));
    assert_eq!((principal.name.as_str(), principal.keys.len()), ("zoe", 2));
    let verifies = |target, rustc| principal.verifies(target, rustc);
    assert!(verifies("x86_64-unknown-linux-gnu", "1.95.0"));
    assert!(!verifies("other", "1.95.0") && !verifies("x86_64-unknown-linux-gnu", "1.94.0"));
    // Without the signatures anybody could ask with somebody else's key.
    let payload = |keys: &[&str]| {
        let keys = keys.iter().map(|name| public(name)).collect();
        canonical::to_bytes(&Membership { keys, ..request() }).unwrap()
    };
    for keys in [&["zoe", "ann"][..], &["ann"], &[]] {
        let stolen = dsse::sign(MEMBERSHIP_TYPE, &payload(keys), &[&secret("zoe")]);
        assert_eq!(
            why(Membership::read(&stolen)),
            "request: not signed by exactly the keys that it names"
        );
    }
}

#[test]
fn what_is_no_request() {
    let with = |change: &dyn Fn(&mut Membership)| {
        let mut request = request();
        change(&mut request);
        why(request.sign(&[&secret("zoe")]))
    };
    assert_snapshot!(with(&|one| one.format = 2), @"request: a format other than 1: a newer qk is needed");
    assert_snapshot!(with(&|one| one.roles.clear()), @"request: it asks for no role");
    assert_snapshot!(with(&|one| one.name.clear()), @"request: a name, target or toolchain that is empty, too long or has control characters");
    assert_snapshot!(with(&|one| one.name = "a\u{1b}[2J".to_owned()), @"request: a name, target or toolchain that is empty, too long or has control characters");
    assert_snapshot!(with(&|one| one.targets = (0..33).map(|n| n.to_string()).collect()), @"request: a list of more than 32 entries");
    assert_snapshot!(why(Membership::read(b"{}")), @"request: envelope: not the expected JSON: missing field `payload` at line 1 column 2");
    let mut envelope = request().sign(&[&secret("zoe")]).unwrap();
    let at = envelope.len() / 2;
    envelope[at] ^= 1;
    assert!(why(Membership::read(&envelope)).starts_with("request: envelope: "));
}
