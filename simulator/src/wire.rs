//! What travels, how long it is, and what may happen to it on the way.

use qk_protocol::blocks::BlockRange;
use qk_protocol::hash::Root;
use qk_protocol::message::{Answer, Contact, Reply, Request};
use qk_protocol::transfer::{Slot, Why};

use crate::engine::{Key, MINUTE, Micros};
use crate::scenario::NetworkModel;

/// What travels. Messages are typed; statements in them are shared and were verified when they were made.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Ask(Request),
    Reply(Reply),
    /// Asks for blocks of an artifact; `wire_len` is how long the answer will be.
    Pull {
        slot: Slot,
        blob: u32,
        range: BlockRange,
        wire_len: u32,
    },
    /// The answer; whether its blocks are what they should be is seen where it arrives.
    Range {
        slot: Slot,
        end: Result<Blocks, Why>,
    },
}

/// Blocks as they arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) range: BlockRange,
    pub(crate) wire_len: u32,
    pub(crate) forged: bool,
}

/// What a message is sent for, by which bytes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    LookUp,
    Blocks,
    Publish,
    Announce,
    Refresh,
    /// What nodes that came are to hold.
    Repair,
    /// A mirror's walk through an index.
    Mirror,
    /// A verifier's patrol: which points there are.
    Survey,
    /// What is stated at them.
    Look,
}

impl Cause {
    pub(crate) const ALL: [Self; 9] = [
        Self::LookUp,
        Self::Blocks,
        Self::Publish,
        Self::Announce,
        Self::Refresh,
        Self::Repair,
        Self::Mirror,
        Self::Survey,
        Self::Look,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LookUp => "look-up",
            Self::Blocks => "blocks",
            Self::Publish => "publish",
            Self::Announce => "announce",
            Self::Refresh => "refresh",
            Self::Repair => "repair",
            Self::Mirror => "mirror",
            Self::Survey => "survey",
            Self::Look => "look",
        }
    }
}

/// A message under way.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Whose answer it is or will be.
    pub(crate) job: Key,
    pub(crate) cause: Cause,
    pub(crate) body: Body,
}

/// Frame of the transport: TCP, IP, noise and yamux.
const FRAME_BYTES: u64 = 90;
/// What dialling takes beside its round trips: noise and the choice of protocols.
pub(crate) const DIAL_BYTES: u64 = 700;

impl Body {
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Ask(_) => 0,
            Self::Reply(_) => 1,
            Self::Pull { .. } => 2,
            Self::Range { .. } => 3,
        }
    }

    /// Its bytes on the wire, without encoding it.
    pub(crate) fn bytes(&self) -> u64 {
        FRAME_BYTES
            + match self {
                Self::Ask(request) => request_bytes(request),
                Self::Reply(reply) => reply_bytes(reply),
                Self::Pull { .. } => 48,
                Self::Range {
                    end: Ok(blocks), ..
                } => 1 + u64::from(blocks.wire_len),
                Self::Range { end: Err(_), .. } => 1,
            }
    }
}

/// As many bytes as CBOR takes for a request, but for a few.
pub(crate) fn request_bytes(request: &Request) -> u64 {
    match request {
        Request::Put(statements) => {
            6 + statements
                .iter()
                .map(|one| one.envelope().len() as u64 + 3)
                .sum::<u64>()
        }
        Request::Have(have) => 20 + 70 * have.roots.len() as u64 + 9 * have.addrs.len() as u64,
        Request::Get(_) => 80,
        Request::Near { .. } => 60,
        Request::Network { .. } => 40,
        Request::Log { .. } => 100,
    }
}

/// As many bytes as CBOR takes for a reply, but for a few.
pub(crate) fn reply_bytes(reply: &Reply) -> u64 {
    let contact = |contact: &Contact| {
        let addrs: usize = contact.addrs.iter().map(|addr| addr.len() + 1).sum();
        (15 + contact.node.0.len() + addrs) as u64
    };
    let closer: u64 = reply.closer.iter().map(contact).sum();
    let answer = match &reply.answer {
        Answer::Taken { .. } => 24,
        Answer::Statements {
            statements,
            providers,
            ..
        } => {
            let statements = statements.iter().map(|one| one.envelope().len() as u64 + 3);
            let providers = providers.iter().map(|one| 50 + contact(&one.contact));
            50 + statements.sum::<u64>() + providers.sum::<u64>()
        }
        Answer::Points(points) => 10 + 34 * points.len() as u64,
        Answer::Network(_) => 12,
        Answer::Log(piece) => 80 + piece.bytes.len() as u64,
        Answer::Refused(why) => 12 + why.len() as u64,
    };
    17 + closer + answer
}

/// One-way latency between regions in milliseconds: Europe, North America's east and west, Asia, South
/// America; rounded medians of what public clouds measure between their regions, halved.
const REGIONS_MS: [[u64; 5]; 5] = [
    [12, 42, 70, 110, 95],
    [42, 12, 33, 95, 60],
    [70, 33, 12, 60, 88],
    [110, 95, 60, 25, 150],
    [95, 60, 88, 150, 15],
];
/// Share of nodes in each of them, in percent.
pub(crate) const REGION_PERCENT: [u64; 5] = [40, 25, 12, 17, 6];
const LOCAL: Micros = 500;

/// Half a round trip, without what queues add.
pub(crate) fn latency(from: u8, to: u8, is_local: bool, random: u64) -> Micros {
    if is_local {
        return LOCAL;
    }
    let base = REGIONS_MS[usize::from(from)][usize::from(to)] * 1000;
    // Up to a third more, mostly little: the square of what is drawn.
    let part = random % 1000;
    base + base * part * part / 3_000_000 + 2000
}

/// Time that bytes take on a line.
pub(crate) fn line_time(bytes: u64, mbit: f64) -> Micros {
    (bytes as f64 * 8.0 / mbit) as Micros
}

pub(crate) fn minutes(minutes: f64) -> Micros {
    (minutes * MINUTE as f64) as Micros
}

/// The lines of a node.
pub(crate) fn lines(model: &NetworkModel, is_server: bool) -> (f64, f64) {
    if is_server {
        (model.server_mbit, model.server_mbit)
    } else {
        (model.client_up_mbit, model.client_down_mbit)
    }
}

/// The number of an artifact's right or wrong blob.
pub(crate) fn blob(artifact: u32, root: Root, right: Root) -> u32 {
    artifact * 2 + u32::from(root != right)
}

#[cfg(test)]
mod tests {
    use qk_protocol::hash::{Point, PublicKey};
    use qk_protocol::message::{Get, Have, Provider};

    use super::*;
    use crate::node::{Kind, Node};
    use crate::scenario::Scenario;
    use crate::stage::{BEGIN, Stage};

    fn close(estimated: u64, encoded: usize) {
        let encoded = encoded as f64;
        let off = (estimated as f64 - encoded).abs();
        assert!(off <= 8.0 + 0.08 * encoded, "{estimated} for {encoded}");
    }

    #[test]
    fn messages_are_as_long_as_their_encodings() {
        let stage = Stage::new(&Scenario::default()).unwrap();
        let artifact = stage.artifact(3, 1, 100);
        let by = &stage.operators[0];
        let statement = stage.observe(by, &artifact, artifact.right, BEGIN, None, [].into());
        let contact = Node::new(PublicKey([7; 32]), Kind::Server, 0).contact(70_000);
        let root = artifact.right.root;
        let requests = [
            Request::Put(vec![statement.clone(), statement.clone()]),
            Request::Have(Have {
                roots: vec![(artifact.point, root); 3],
                addrs: contact.addrs.clone(),
            }),
            Request::Get(Get {
                point: Point([9; 32]),
                bits: 256,
                observer: None,
                after: None,
            }),
            Request::Near {
                point: Point([9; 32]),
                limit: 1024,
            },
            Request::Network {
                version: 3,
                issued: BEGIN,
            },
        ];
        for request in requests {
            close(request_bytes(&request), request.encode().len());
        }
        let provider = Provider {
            root,
            contact: contact.clone(),
        };
        let answers = [
            Answer::Taken {
                taken: 3,
                refused: 0,
            },
            Answer::Statements {
                statements: vec![statement.clone(), statement],
                providers: vec![provider; 5],
                next: None,
            },
            Answer::Points(vec![Point([200; 32]); 40]),
            Answer::Network(None),
        ];
        for answer in answers {
            for closer in [Vec::new(), vec![contact.clone(); 20]] {
                let reply = Reply {
                    closer,
                    answer: answer.clone(),
                };
                close(reply_bytes(&reply), reply.encode().len());
            }
        }
    }
}
