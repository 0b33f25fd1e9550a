use proptest::prelude::*;

use super::*;
use crate::log::LogPiece;
use crate::testing::scenario;

fn contact(byte: u8) -> Contact {
    Contact {
        node: NodeId(vec![byte; 34]),
        addrs: vec![ByteBuf::from(vec![byte; 8])],
    }
}

/// CBOR as this module's own encoder writes it, of a message that may break its limits.
fn cbor(message: &impl Serialize) -> Vec<u8> {
    encode(message)
}

fn refused<M>(decoded: Result<Decoded<M>, MessageError>) -> String {
    match decoded {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn requests() -> Vec<Request> {
    let statements = scenario().says("ann", "right").says("zoe", "wrong").held;
    vec![
        Request::Put(
            statements
                .iter()
                .map(|held| held.statement.clone())
                .collect(),
        ),
        Request::Have(Have {
            roots: vec![(Point([1; 32]), Root([2; 32]))],
            addrs: contact(3).addrs,
        }),
        Request::Get(Get {
            point: Point([1; 32]),
            bits: 256,
            observer: Some(PublicKey([4; 32])),
            after: Some(Cursor {
                point: Point([1; 32]),
                statement: StatementId([5; 32]),
            }),
        }),
        Request::Near {
            point: Point([1; 32]),
            limit: 7,
        },
        Request::Network {
            version: 1,
            issued: UnixTime(9),
        },
        Request::Log {
            point: Point([1; 32]),
            digest: Blake3([8; 32]),
            offset: 1 << 20,
        },
    ]
}

fn replies() -> Vec<Reply> {
    let held = scenario().says("ann", "right");
    let statements = vec![held.held[0].statement.clone()];
    let answers = [
        Answer::Taken {
            taken: 1,
            refused: 2,
        },
        Answer::Statements {
            statements,
            providers: vec![Provider {
                root: Root([2; 32]),
                contact: contact(6),
            }],
            next: None,
        },
        Answer::Points(vec![Point([1; 32])]),
        Answer::Network(Some(held.network.file().clone())),
        Answer::Network(None),
        Answer::Log(LogPiece {
            total: 3,
            bytes: ByteBuf::from(b"log".to_vec()),
        }),
        Answer::Refused("not now".to_owned()),
    ];
    let reply = |answer| Reply {
        closer: vec![contact(7)],
        answer,
    };
    answers.map(reply).into()
}

#[test]
fn messages_survive_the_wire() {
    for message in requests() {
        let decoded = Request::decode(&message.encode()).unwrap();
        assert_eq!((decoded.message, decoded.invalid), (message, 0));
    }
    for message in replies() {
        let decoded = Reply::decode(&message.encode()).unwrap();
        assert_eq!((decoded.message, decoded.invalid), (message, 0));
    }
}

#[test]
fn statements_that_do_not_verify_are_left_out_and_counted() {
    let good = scenario().says("ann", "right").held[0].statement.clone();
    let mut forged = good.envelope().to_vec();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    let wire = [good.envelope().to_vec(), forged, Vec::new()].map(ByteBuf::from);
    let decoded = Request::decode(&cbor(&Request::Put(wire.to_vec()))).unwrap();
    assert_eq!(decoded.message, Request::Put(vec![good.clone()]));
    assert_eq!(decoded.invalid, 2);
    let reply = Reply {
        closer: Vec::new(),
        answer: Answer::Statements {
            statements: wire.to_vec(),
            providers: Vec::new(),
            next: None,
        },
    };
    let decoded = Reply::decode(&cbor(&reply)).unwrap();
    assert_eq!(decoded.invalid, 2);
}

#[test]
fn every_list_has_its_limit() {
    let empty = |count| vec![ByteBuf::new(); count];
    let put = |count| Request::decode(&cbor(&Request::Put(empty(count))));
    assert_eq!(put(STATEMENTS_MAX).unwrap().invalid, STATEMENTS_MAX);
    insta::assert_snapshot!(
        refused(put(STATEMENTS_MAX + 1)),
        @"message: Semantic(None, \"invalid length 257, expected a list of at most 256 elements\")"
    );
    let have = |roots, addrs| {
        let roots = vec![(Point([0; 32]), Root([0; 32])); roots];
        Request::decode(&cbor(&Request::<ByteBuf>::Have(Have { roots, addrs })))
    };
    assert!(have(HINTS_MAX, empty(ADDRESSES_MAX)).is_ok());
    assert!(have(HINTS_MAX + 1, Vec::new()).is_err());
    assert!(have(1, empty(ADDRESSES_MAX + 1)).is_err());
    assert!(have(1, vec![ByteBuf::from(vec![0; ADDRESS_BYTES_MAX + 1])]).is_err());
    let get = |bits| {
        Request::decode(&cbor(&Request::<ByteBuf>::Get(Get {
            point: Point([0; 32]),
            bits,
            observer: None,
            after: None,
        })))
    };
    assert!(get(256).is_ok());
    assert!(get(257).is_err());
    let reply = |closer, answer: Answer<ByteBuf>| Reply::decode(&cbor(&Reply { closer, answer }));
    let none = || Answer::Network(None);
    assert!(reply(vec![contact(0); CLOSER_MAX], none()).is_ok());
    assert!(reply(vec![contact(0); CLOSER_MAX + 1], none()).is_err());
    let mut long = contact(0);
    long.node = NodeId(vec![0; NODE_ID_BYTES_MAX + 1]);
    assert!(reply(vec![long], none()).is_err());
    let points = |count| Answer::Points(vec![Point([0; 32]); count]);
    assert!(reply(Vec::new(), points(POINTS_MAX)).is_ok());
    assert!(reply(Vec::new(), points(POINTS_MAX + 1)).is_err());
    let found = |providers| Answer::Statements {
        statements: Vec::new(),
        providers: vec![
            Provider {
                root: Root([0; 32]),
                contact: contact(0),
            };
            providers
        ],
        next: None,
    };
    assert!(reply(Vec::new(), found(HINTS_MAX)).is_ok());
    assert!(reply(Vec::new(), found(HINTS_MAX + 1)).is_err());
    assert!(reply(Vec::new(), Answer::Refused("x".repeat(257))).is_err());
}

#[test]
fn what_is_too_long_or_goes_on_is_not_read() {
    insta::assert_snapshot!(
        refused(Request::decode(&vec![0; REQUEST_BYTES_MAX + 1])),
        @"message: 1048577 bytes are more than the 1048576 allowed"
    );
    let mut more = requests().remove(3).encode();
    more.push(0);
    assert_eq!(
        refused(Request::decode(&more)),
        "message: bytes after the message"
    );
    // Nested deeper than any message is.
    assert!(Request::decode(&vec![0x81; 100_000]).is_err());
}

/// The largest page that an answer is made of, and the largest `Put`, fit their messages.
#[test]
fn a_full_message_fits() {
    let most = STATEMENT_BYTES_TOTAL_MAX + STATEMENTS_MAX * 5;
    let contact_bytes_max = NODE_ID_BYTES_MAX + ADDRESSES_MAX * (ADDRESS_BYTES_MAX + 3) + 20;
    let reply = most + (HINTS_MAX + CLOSER_MAX) * (contact_bytes_max + 64) + 1000;
    assert!(reply <= REPLY_BYTES_MAX, "{reply}");
    assert!(most + 100 <= REQUEST_BYTES_MAX);
    // A network file is its own text and little around it.
    const { assert!(crate::manifest::NETWORK_FILE_BYTES_MAX + 4096 * 16 <= REPLY_BYTES_MAX) };
}

#[test]
fn a_contact_is_cut_to_what_a_message_holds() {
    let mut odd = contact(1);
    odd.addrs = vec![ByteBuf::from(vec![0; ADDRESS_BYTES_MAX + 1]); 1];
    odd.addrs
        .extend(vec![ByteBuf::from(vec![1]); ADDRESSES_MAX + 1]);
    let cut = odd.clone().bounded().unwrap();
    assert_eq!(cut.addrs, vec![ByteBuf::from(vec![1]); ADDRESSES_MAX]);
    let reply = |contact| Reply {
        closer: vec![contact],
        answer: Answer::Network(None),
    };
    assert!(Reply::decode(&reply(odd.clone()).encode()).is_err());
    assert!(Reply::decode(&reply(cut).encode()).is_ok());
    odd.node = NodeId(vec![0; NODE_ID_BYTES_MAX + 1]);
    assert_eq!(odd.bounded(), None);
}

/// Or a page would not go on.
const _: () = assert!(crate::statement::STATEMENT_BYTES_MAX <= STATEMENT_BYTES_TOTAL_MAX);

proptest! {
    #[test]
    fn no_bytes_confuse_the_decoders(at in any::<prop::sample::Index>(), with in any::<[u8; 3]>(), which in 0_usize..11) {
        let mut all: Vec<Vec<u8>> = requests().iter().map(Request::encode).collect();
        all.extend(replies().iter().map(Reply::encode));
        let mut bytes = all.swap_remove(which);
        let at = at.index(bytes.len());
        let end = (at + with.len()).min(bytes.len());
        bytes.splice(at..end, with);
        if let Ok(Decoded { message, .. }) = Request::decode(&bytes) {
            prop_assert_eq!(Request::decode(&message.encode()).unwrap().message, message);
        }
        if let Ok(Decoded { message, .. }) = Reply::decode(&bytes) {
            prop_assert_eq!(Reply::decode(&message.encode()).unwrap().message, message);
        }
    }
}
