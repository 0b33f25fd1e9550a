use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, NOW, network, public, secret};

fn signed(body: Body) -> Statement {
    Statement::sign(network().id(), testing::key(), body, &secret("ann")).unwrap()
}

fn observed() -> Statement {
    signed(Body::Observation(testing::observation("right")))
}

fn failed() -> Statement {
    signed(Body::Failure(testing::failure()))
}

fn retracted() -> Statement {
    signed(Body::Retraction(Retraction {
        retracts: observed().id(),
        detail: "built on the wrong machine".to_owned(),
        at: NOW,
    }))
}

fn payload(statement: &Statement) -> Vec<u8> {
    dsse::verify(statement.envelope(), PAYLOAD_TYPE, STATEMENT_BYTES_MAX)
        .unwrap()
        .payload
}

fn sealed(payload: &[u8]) -> Vec<u8> {
    dsse::sign(PAYLOAD_TYPE, payload, &[&secret("ann")])
}

fn why(envelope: &[u8]) -> String {
    Statement::read(envelope).expect_err("refused").to_string()
}

/// Why a statement is refused whose payload was changed by its own signer.
fn changed(statement: &Statement, change: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_slice(&payload(statement)).unwrap();
    change(&mut value);
    why(&sealed(&serde_json_canonicalizer::to_vec(&value).unwrap()))
}

/// As [`changed`], by replacing text.
fn respelled(from: &str, to: &str) -> String {
    let text = String::from_utf8(payload(&observed())).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    why(&sealed(text.replace(from, to).as_bytes()))
}

#[test]
fn what_is_signed_is_read() {
    for statement in [observed(), failed(), retracted()] {
        assert_eq!(Statement::read(statement.envelope()).unwrap(), statement);
        assert_eq!(statement.observer(), public("ann"));
        assert_eq!(statement.key(), &testing::key());
    }
}

#[test]
fn a_wrong_signature() {
    let text = String::from_utf8(observed().envelope().to_vec()).unwrap();
    let other = text.replace(&public("ann").to_string(), &public("bob").to_string());
    assert_snapshot!(why(other.as_bytes()), @"statement: envelope: the signature by key a4f5338f0ad1ed86a8cf70d9c6ccf8e58cc2fdfda76e3729c1288c8a505f8b12 is wrong");
    let sig = text.find(r#""sig":""#).unwrap() + 7;
    let letter = if text.as_bytes()[sig] == b'A' {
        "B"
    } else {
        "A"
    };
    let mut flipped = text.clone();
    flipped.replace_range(sig..=sig, letter);
    assert_snapshot!(why(flipped.as_bytes()), @"statement: envelope: the signature by key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f is wrong");
    // Bob signs what ann observed.
    let bobs = dsse::sign(PAYLOAD_TYPE, &payload(&observed()), &[&secret("bob")]);
    assert_snapshot!(why(&bobs), @"statement: names observer b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f, but a4f5338f0ad1ed86a8cf70d9c6ccf8e58cc2fdfda76e3729c1288c8a505f8b12 signed it");
    let of_another_type = dsse::sign("text/plain", &payload(&observed()), &[&secret("ann")]);
    assert_snapshot!(why(&of_another_type), @r#"statement: envelope: payload type "text/plain", expected "application/vnd.in-toto+json""#);
}

#[test]
fn a_signature_has_one_form() {
    // S and S + L verify alike where verification is lax, and would give a second valid envelope.
    let mut value: Value = serde_json::from_slice(observed().envelope()).unwrap();
    let sig = &mut value["signatures"][0]["sig"];
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    let mut bytes = engine.decode(sig.as_str().unwrap()).unwrap();
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (byte, add) in bytes[32..].iter_mut().zip(L) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    *sig = engine.encode(&bytes).into();
    assert_snapshot!(why(&serde_json_canonicalizer::to_vec(&value).unwrap()), @"statement: envelope: the signature by key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f is wrong");
}

#[test]
fn two_signatures() {
    let two = dsse::sign(
        PAYLOAD_TYPE,
        &payload(&observed()),
        &[&secret("ann"), &secret("bob")],
    );
    assert_snapshot!(why(&two), @"statement: 2 signatures, expected exactly one");
    let mut value: Value = serde_json::from_slice(observed().envelope()).unwrap();
    let first = value["signatures"][0].clone();
    value["signatures"].as_array_mut().unwrap().push(first);
    assert_snapshot!(why(&serde_json_canonicalizer::to_vec(&value).unwrap()), @"statement: envelope: two signatures by key b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f");
    value["signatures"] = json!([]);
    assert_snapshot!(why(&serde_json_canonicalizer::to_vec(&value).unwrap()), @"statement: envelope: 0 signatures, expected 1 to 32");
}

#[test]
fn json_that_is_not_canonical() {
    let envelope = String::from_utf8(observed().envelope().to_vec()).unwrap();
    assert_snapshot!(why(envelope.replacen(':', ": ", 1).as_bytes()), @"statement: envelope: not in canonical form (RFC 8785)");
    assert_snapshot!(why(format!("{envelope}\n").as_bytes()), @"statement: envelope: not in canonical form (RFC 8785)");
    assert_snapshot!(respelled(r#""role":"verifier""#, r#""role": "verifier""#), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(respelled(r#""role":"verifier""#, r#""role":"\u0076erifier""#), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(respelled(r#""cpus":2"#, r#""cpus":2.0"#), @"statement: payload: not the expected JSON: invalid type: floating point `2.0`, expected u32 at line 1 column 256");
    assert_snapshot!(respelled(r#""cpus":2"#, r#""cpus":null"#), @"statement: payload: not the expected JSON: invalid type: null, expected u32 at line 1 column 257");
    let reordered = envelope.replacen('{', r#"{"zzz":1,"#, 1);
    assert_snapshot!(why(reordered.as_bytes()), @"statement: envelope: not the expected JSON: unknown field `zzz`, expected one of `payload`, `payloadType`, `signatures` at line 1 column 6");
}

#[test]
fn duplicate_and_unknown_members() {
    assert_snapshot!(respelled(r#""role":"verifier""#, r#""role":"verifier","role":"verifier""#), @"statement: payload: not the expected JSON: duplicate field `role` at line 1 column 1392");
    assert_snapshot!(respelled(r#""cpus":2"#, r#""cpus":2,"cpus":2"#), @"statement: payload: not the expected JSON: duplicate field `cpus` at line 1 column 261");
    let id = format!(r#""key_id":"{}""#, testing::key().id());
    assert_snapshot!(respelled(&id, &format!("{id},{id}")), @"statement: payload: not the expected JSON: duplicate field `key_id` at line 1 column 1483");
    assert_snapshot!(respelled(r#""predicateType":"#, r#""predicateType":"x","predicateType":"#), @"statement: payload: not the expected JSON: duplicate field `predicateType` at line 1 column 1443");
    assert_snapshot!(respelled(r#""cpus":2"#, r#""cpus":2,"gpus":2"#), @"statement: payload: not the expected JSON: unknown field `gpus`, expected one of `os`, `kernel`, `tools`, `sandbox`, `cpus` at line 1 column 261");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["zone"] = 1.into()), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["artifact"]["zone"] = 1.into()), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["key"]["flags"]["zone"] = 1.into()), @"statement: payload: not the expected JSON: unknown field `zone`, expected one of `source`, `lock`, `features`, `default_features`, `profile`, `rustflags`, `rustc`, `linker`, `recipe`, `output` at line 1 column 1416");
    assert_snapshot!(changed(&observed(), |value| value["zone"] = 1.into()), @"statement: payload: not the expected JSON: unknown field `zone`, expected one of `_type`, `subject`, `predicateType`, `predicate` at line 1 column 1691");
}

#[test]
fn the_subject_is_the_one_of_the_predicate() {
    let zeros = "0".repeat(64);
    for digest in ["blake3", "sha256"] {
        changed(&observed(), |value| {
            value["subject"][0]["digest"][digest] = zeros.clone().into()
        });
        changed(&observed(), |value| {
            value["subject"][0]["digest"]
                .as_object_mut()
                .unwrap()
                .remove(digest);
        });
    }
    assert_snapshot!(changed(&observed(), |value| value["subject"][0]["name"] = "x".into()), @"statement: the subject is not the one that the predicate speaks of");
    changed(&observed(), |value| value["subject"] = json!([]));
    changed(&observed(), |value| {
        let twice = value["subject"][0].clone();
        value["subject"].as_array_mut().unwrap().push(twice);
    });
    changed(&failed(), |value| {
        value["subject"][0]["digest"]["sha256"] = zeros.clone().into()
    });
    changed(&retracted(), |value| {
        value["predicate"]["retracts"] = zeros.clone().into()
    });
}

#[test]
fn types_that_are_not_known() {
    assert_snapshot!(changed(&observed(), |value| value["_type"] = "https://in-toto.io/Statement/v0.1".into()), @r#"statement: _type is "https://in-toto.io/Statement/v0.1", which is not known here"#);
    assert_snapshot!(changed(&observed(), |value| value["predicateType"] = "urn:qk:predicate:request:v1".into()), @r#"statement: predicateType is "urn:qk:predicate:request:v1", which is not known here"#);
    // A failure that says it is an observation.
    assert_snapshot!(changed(&failed(), |value| value["predicateType"] = OBSERVATION.into()), @"statement: payload: not the expected JSON: missing field `artifact` at line 1 column 1194");
}

#[test]
fn another_key_than_its_id_says() {
    assert_snapshot!(changed(&failed(), |value| value["predicate"]["key"]["flags"]["lock"] = "0".repeat(64).into()), @"statement: key_id is 4f599859eb1d849f782326e1fbeead6fe77c51aaed45bdd8141ac7f006c47c81, but the key's id is 081e8b7d794102ee3aa56ebf7431b4d16883d2f0e6d9cae9ccbfad0879b30d61");
    assert_snapshot!(changed(&failed(), |value| value["predicate"]["key"]["flags"]["recipe"] = 2.into()), @r#"statement: artifact key: recipe "2" is not allowed: only recipe 1 is known here"#);
    assert_snapshot!(changed(&failed(), |value| value["predicate"]["observer"] = public("bob").to_string().into()), @"statement: names observer a4f5338f0ad1ed86a8cf70d9c6ccf8e58cc2fdfda76e3729c1288c8a505f8b12, but b02b42aa335240eda5757cc7eb1557e0c3cdb5aced77df50afdbe21f3238b17f signed it");
}

#[test]
fn bounds() {
    let set = |name: &'static str, to: Value| {
        changed(&observed(), move |value| value["predicate"][name] = to)
    };
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["artifact"]["size"] = 0.into()), @"statement: an artifact of no bytes or of more than 2 GiB");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["artifact"]["size"] = (ARTIFACT_BYTES_MAX + 1).into()), @"statement: an artifact of no bytes or of more than 2 GiB");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["artifact"]["size"] = (-1).into()), @"statement: payload: not the expected JSON: invalid value: integer `-1`, expected u64 at line 1 column 227");
    assert_snapshot!(set("finished", 1.into()), @"statement: finished before it started");
    assert_snapshot!(set("finished", (1u64 << 53).into()), @"statement: payload: a number that is no integer from 0 to 2^53 - 1 may not occur in a canonical document");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["environment"]["os"] = "x".repeat(129).into()), @"statement: an environment of more than 32 tools, or a text in it of more than 128 bytes or with control characters");
    assert_snapshot!(changed(&observed(), |value| value["predicate"]["environment"]["os"] = "\u{1b}[2J".into()), @"statement: an environment of more than 32 tools, or a text in it of more than 128 bytes or with control characters");
    let tools: BTreeMap<_, _> = (0..33).map(|n| (n.to_string(), "1".to_owned())).collect();
    changed(&observed(), |value| {
        value["predicate"]["environment"]["tools"] = json!(tools)
    });
    let checks: BTreeMap<_, _> = (0..65u8).map(|n| (StatementId([n; 32]), true)).collect();
    assert_snapshot!(set("work_checks", json!(checks)), @"statement: more than 64 work checks");
    assert_snapshot!(set("work_checks", json!({})), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(set("work", Value::Null), @"statement: payload: not in canonical form (RFC 8785)");
    assert_snapshot!(changed(&failed(), |value| value["predicate"]["detail"] = "x".repeat(1025).into()), @"statement: a detail of more than 1024 bytes or with control characters");
    assert_snapshot!(changed(&retracted(), |value| value["predicate"]["detail"] = "a\nb".into()), @"statement: a detail of more than 1024 bytes or with control characters");
    assert_snapshot!(why(&vec![b' '; STATEMENT_BYTES_MAX + 1]), @"statement: envelope: 16385 bytes are more than the 16384 allowed");
}

/// Every single byte, changed in three ways. None gives another valid envelope: the JSON has one
/// form, the payload is signed, and a signature has one form as well, so that nobody but the signer
/// makes two envelopes of a payload. (The signer can, by signing with another nonce: it has the same
/// id, and the first one that is seen is kept.)
#[test]
fn no_byte_of_an_envelope_can_be_another() {
    let envelope = observed().envelope().to_vec();
    for at in 0..envelope.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut other = envelope.clone();
            other[at] ^= flip;
            assert!(Statement::read(&other).is_err(), "byte {at} xor {flip}");
        }
        assert!(Statement::read(&envelope[..at]).is_err(), "cut at {at}");
    }
}

fn bodies() -> impl Strategy<Value = Body> {
    let text = "[ -~äß漢]{0,30}";
    let observation = (
        any::<[u8; 32]>(),
        1..ARTIFACT_BYTES_MAX,
        any::<bool>(),
        text,
        0..1u64 << 52,
        prop::option::of(any::<[u8; 32]>()),
        prop::collection::btree_map(any::<[u8; 32]>().prop_map(StatementId), any::<bool>(), 0..4),
    )
        .prop_map(|(bytes, size, publisher, os, started, work, work_checks)| {
            Body::Observation(Observation {
                subject: Subject {
                    root: Root(bytes),
                    sha256: Sha256(bytes),
                    size,
                },
                role: if publisher {
                    Role::Publisher
                } else {
                    Role::Verifier
                },
                environment: Environment {
                    os,
                    ..testing::environment()
                },
                started: UnixTime(started),
                finished: UnixTime(started + 7),
                work: work.map(Work),
                work_checks,
                log: Blake3(bytes),
            })
        });
    let failure = (text, prop::option::of(any::<[u8; 32]>())).prop_map(|(detail, log)| {
        Body::Failure(Failure {
            detail,
            log: log.map(Blake3),
            ..testing::failure()
        })
    });
    let retraction = (any::<[u8; 32]>(), text).prop_map(|(id, detail)| {
        Body::Retraction(Retraction {
            retracts: StatementId(id),
            detail,
            at: NOW,
        })
    });
    prop_oneof![observation, failure, retraction]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn statements_survive_their_envelopes(body in bodies()) {
        let statement = signed(body.clone());
        let read = Statement::read(statement.envelope()).unwrap();
        prop_assert_eq!(read.body(), &body);
        prop_assert_eq!(read, statement);
    }

    /// What its own signer may change of a payload is refused or is another statement.
    #[test]
    fn another_payload_is_another_statement_or_none(body in bodies(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let statement = signed(body);
        let mut payload = payload(&statement);
        let at = at.index(payload.len());
        prop_assume!(payload[at] != byte);
        payload[at] = byte;
        if let Ok(other) = Statement::read(&sealed(&payload)) {
            prop_assert_ne!(other.id(), statement.id());
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Statement::read(&bytes).is_err());
        prop_assert!(Statement::read(&sealed(&bytes)).is_err());
    }
}
