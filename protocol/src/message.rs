//! Messages of `/qk/index/1`: requests, replies, their limits and their CBOR form.
//!
//! Inside this crate messages are typed and share verified statements. [`Request::decode`] and
//! [`Reply::decode`] are the edge where bytes of a peer are bounded, read and verified; statements
//! that do not verify are left out and counted. Everything that names a place in the key space is a
//! [`Point`], never the location behind it: a server needs no more to answer.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_bytes::ByteBuf;

use crate::hash::{Blake3, Point, PublicKey, Root, Sha256, StatementId};
use crate::log::LogPiece;
use crate::manifest::NetworkFile;
use crate::statement::Statement;
use crate::time::UnixTime;

/// A request may be this long.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// A reply may be this long: room for a page of statements or a whole network file.
pub const REPLY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Statements of one message, in number.
pub const STATEMENTS_MAX: usize = 256;
/// Statements of one message, in bytes: leaves room for the rest of the message.
pub const STATEMENT_BYTES_TOTAL_MAX: usize = 768 * 1024;
/// Hints of one `Have`, and providers of one reply.
pub const HINTS_MAX: usize = 256;
/// Points of one reply to `Near`.
pub const POINTS_MAX: usize = 1024;
/// Closer nodes of one reply.
pub const CLOSER_MAX: usize = 20;
/// Addresses of one contact.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Longest node identity.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// The identity of a node in the network: the bytes of its libp2p peer id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl NodeId {
    /// The node whose identity is this ed25519 key: libp2p's peer id, an identity multihash of the key in
    /// protobuf.
    pub fn of_key(key: &PublicKey) -> Self {
        const HEADER: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
        Self([&HEADER[..], &key.0].concat())
    }

    /// Where the node lies in the key space, as kad has it.
    pub fn point(&self) -> Point {
        Point(Sha256::of(&self.0).0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.point().short())
    }
}

/// A node and where it may be reached, multiaddresses in binary form, most promising first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// The node.
    pub node: NodeId,
    /// Its addresses.
    #[serde(deserialize_with = "at_most::<ADDRESSES_MAX, _, _>")]
    pub addrs: Vec<ByteBuf>,
}

impl Contact {
    /// This contact with as many addresses as a message may hold, so that one odd node in an answer
    /// does not make the whole of it unreadable. `None` when its identity is too long.
    pub fn bounded(mut self) -> Option<Self> {
        self.addrs.retain(|addr| addr.len() <= ADDRESS_BYTES_MAX);
        self.addrs.truncate(ADDRESSES_MAX);
        (self.node.0.len() <= NODE_ID_BYTES_MAX).then_some(self)
    }
}

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "S: Deserialize<'de>"))]
pub enum Request<S = Arc<Statement>> {
    /// "Hold these statements."
    Put(#[serde(deserialize_with = "at_most::<STATEMENTS_MAX, _, _>")] Vec<S>),
    /// "I have these roots", at these points; unsigned, believed only of the sender itself.
    Have(Have),
    /// "Which statements do you hold here?"
    Get(Get),
    /// "Which points nearest to this one do you hold statements of?" Audits draw from it.
    Near {
        /// The point.
        point: Point,
        /// Most points wanted.
        limit: u32,
    },
    /// "Do you have a newer manifest or timestamp than this?"
    Network {
        /// Version known.
        version: u64,
        /// When its timestamp was issued.
        issued: UnixTime,
    },
    /// "Give me a piece of the log that an observation here names."
    Log {
        /// Where the observation belongs.
        point: Point,
        /// The log's digest.
        digest: Blake3,
        /// Where the piece begins.
        offset: u64,
    },
}

/// The sender has roots to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Have {
    /// Where the roots belong, and which they are.
    #[serde(deserialize_with = "at_most::<HINTS_MAX, _, _>")]
    pub roots: Vec<(Point, Root)>,
    /// Where the sender can be reached, as it believes.
    #[serde(deserialize_with = "at_most::<ADDRESSES_MAX, _, _>")]
    pub addrs: Vec<ByteBuf>,
}

/// Asks for statements and providers at a point, or at all points that share its first bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// The point.
    pub point: Point,
    /// How many of its bits matter; 256 for exactly this point.
    pub bits: u16,
    /// Only statements by this observer.
    pub observer: Option<PublicKey>,
    /// Go on after this.
    pub after: Option<Cursor>,
}

/// Where an answer was cut: statements are given in the order of point and id, the providers of a
/// point with the first of its statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The last point that was looked at.
    pub point: Point,
    /// The last statement of it that was looked at; the largest possible one for all of them.
    pub statement: StatementId,
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "S: Deserialize<'de>"))]
pub struct Reply<S = Arc<Statement>> {
    /// Nodes that are closer to what was asked about, as far as the sender knows.
    #[serde(deserialize_with = "at_most::<CLOSER_MAX, _, _>")]
    pub closer: Vec<Contact>,
    /// The answer itself.
    pub answer: Answer<S>,
}

/// The answer to each kind of request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "S: Deserialize<'de>"))]
pub enum Answer<S = Arc<Statement>> {
    /// To `Put` and `Have`: how many were taken, known ones included, and how many were not.
    Taken {
        /// Held now.
        taken: u32,
        /// Not held.
        refused: u32,
    },
    /// To `Get`.
    Statements {
        /// Statements held there.
        #[serde(deserialize_with = "at_most::<STATEMENTS_MAX, _, _>")]
        statements: Vec<S>,
        /// Who says that it has which root.
        #[serde(deserialize_with = "at_most::<HINTS_MAX, _, _>")]
        providers: Vec<Provider>,
        /// Ask again with this, if there is more.
        next: Option<Cursor>,
    },
    /// To `Near`.
    Points(#[serde(deserialize_with = "at_most::<POINTS_MAX, _, _>")] Vec<Point>),
    /// To `Network`: nothing, if what the asker has is as new.
    Network(Option<NetworkFile>),
    /// To `Log`.
    Log(LogPiece),
    /// To any: "not now" or "not this".
    Refused(String),
}

/// A hint: this node says that it has that root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Which root.
    pub root: Root,
    /// Who has it.
    pub contact: Contact,
}

/// Why the bytes of a peer are no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than a message may be.
    #[error("message: {bytes} bytes are more than the {bytes_max} allowed")]
    TooLarge {
        /// Length of what was given.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not CBOR of the expected shape.
    #[error("message: {0}")]
    Cbor(String),
    /// A number or text in it is larger or longer than allowed.
    #[error("message: too many or too long {0}")]
    Bounds(&'static str),
}

/// A message and how many of its statements did not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded<M> {
    /// The message without them.
    pub message: M,
    /// How many were left out.
    pub invalid: usize,
}

impl Request {
    /// The bytes of this request.
    pub fn encode(&self) -> Vec<u8> {
        encode(
            &self
                .clone()
                .map(|statement| ByteBuf::from(statement.envelope())),
        )
    }

    /// Reads and verifies what a peer sent.
    ///
    /// # Errors
    /// When it is too long, of another shape, or holds more than it may.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<Self>, MessageError> {
        let wire: Request<ByteBuf> = decode(bytes, REQUEST_BYTES_MAX)?;
        match &wire {
            Request::Have(have) => check_addrs(&have.addrs)?,
            Request::Get(get) => bound(get.bits.into(), 256, "bits")?,
            Request::Put(_)
            | Request::Near { .. }
            | Request::Network { .. }
            | Request::Log { .. } => {}
        }
        let mut invalid = 0;
        let message = match wire {
            Request::Put(statements) => Request::Put(verify(statements, &mut invalid)),
            Request::Have(have) => Request::Have(have),
            Request::Get(get) => Request::Get(get),
            Request::Near { point, limit } => Request::Near { point, limit },
            Request::Network { version, issued } => Request::Network { version, issued },
            Request::Log {
                point,
                digest,
                offset,
            } => Request::Log {
                point,
                digest,
                offset,
            },
        };
        Ok(Decoded { message, invalid })
    }
}

impl<S> Request<S> {
    fn map<T>(self, f: impl Fn(S) -> T) -> Request<T> {
        match self {
            Self::Put(statements) => Request::Put(statements.into_iter().map(f).collect()),
            Self::Have(have) => Request::Have(have),
            Self::Get(get) => Request::Get(get),
            Self::Near { point, limit } => Request::Near { point, limit },
            Self::Network { version, issued } => Request::Network { version, issued },
            Self::Log {
                point,
                digest,
                offset,
            } => Request::Log {
                point,
                digest,
                offset,
            },
        }
    }
}

impl Reply {
    /// An answer that names no closer nodes.
    pub fn only(answer: Answer) -> Self {
        Self {
            closer: Vec::new(),
            answer,
        }
    }

    /// The bytes of this reply.
    pub fn encode(&self) -> Vec<u8> {
        let answer = match &self.answer {
            Answer::Statements {
                statements,
                providers,
                next,
            } => Answer::Statements {
                statements: statements
                    .iter()
                    .map(|one| ByteBuf::from(one.envelope()))
                    .collect(),
                providers: providers.clone(),
                next: *next,
            },
            Answer::Taken { taken, refused } => Answer::Taken {
                taken: *taken,
                refused: *refused,
            },
            Answer::Points(points) => Answer::Points(points.clone()),
            Answer::Network(file) => Answer::Network(file.clone()),
            Answer::Log(piece) => Answer::Log(piece.clone()),
            Answer::Refused(why) => Answer::Refused(why.clone()),
        };
        encode(&Reply {
            closer: self.closer.clone(),
            answer,
        })
    }

    /// Reads and verifies what a peer sent. A network file in it is only read: verifying it needs
    /// the network that is known already ([`crate::manifest::Network::advance`]).
    ///
    /// # Errors
    /// When it is too long, of another shape, or holds more than it may.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<Self>, MessageError> {
        let wire: Reply<ByteBuf> = decode(bytes, REPLY_BYTES_MAX)?;
        wire.closer.iter().try_for_each(check_contact)?;
        let mut invalid = 0;
        let answer = match wire.answer {
            Answer::Statements {
                statements,
                providers,
                next,
            } => {
                providers
                    .iter()
                    .try_for_each(|provider| check_contact(&provider.contact))?;
                Answer::Statements {
                    statements: verify(statements, &mut invalid),
                    providers,
                    next,
                }
            }
            Answer::Points(points) => Answer::Points(points),
            Answer::Refused(why) => {
                bound(why.len(), 256, "words")?;
                Answer::Refused(why)
            }
            Answer::Taken { taken, refused } => Answer::Taken { taken, refused },
            Answer::Network(file) => Answer::Network(file),
            Answer::Log(piece) => Answer::Log(piece),
        };
        Ok(Decoded {
            message: Self {
                closer: wire.closer,
                answer,
            },
            invalid,
        })
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).expect("writing to memory does not fail");
    bytes
}

fn decode<M: DeserializeOwned>(mut bytes: &[u8], bytes_max: usize) -> Result<M, MessageError> {
    if bytes.len() > bytes_max {
        return Err(MessageError::TooLarge {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    let message = ciborium::de::from_reader_with_recursion_limit(&mut bytes, 16)
        .map_err(|error| MessageError::Cbor(error.to_string().chars().take(200).collect()))?;
    if bytes.is_empty() {
        Ok(message)
    } else {
        Err(MessageError::Cbor("bytes after the message".to_owned()))
    }
}

/// Reads a list of at most `MAX` elements. It stops at the first one too many: a list is bounded
/// while it is read, since a message of empty elements takes 24 times its length in memory.
fn at_most<'de, const MAX: usize, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<const MAX: usize, T>(PhantomData<T>);

    impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<MAX, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = list.next_element()? {
                if elements.len() == MAX {
                    return Err(de::Error::invalid_length(MAX + 1, &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(AtMost::<MAX, T>(PhantomData))
}

fn verify(envelopes: Vec<ByteBuf>, invalid: &mut usize) -> Vec<Arc<Statement>> {
    let mut verified = Vec::with_capacity(envelopes.len());
    for envelope in envelopes {
        match Statement::read(&envelope) {
            Ok(statement) => verified.push(Arc::new(statement)),
            Err(_) => *invalid += 1,
        }
    }
    verified
}

fn check_contact(contact: &Contact) -> Result<(), MessageError> {
    bound(contact.node.0.len(), NODE_ID_BYTES_MAX, "node identities")?;
    check_addrs(&contact.addrs)
}

fn check_addrs(addrs: &[ByteBuf]) -> Result<(), MessageError> {
    addrs
        .iter()
        .try_for_each(|addr| bound(addr.len(), ADDRESS_BYTES_MAX, "addresses"))
}

fn bound(len: usize, max: usize, what: &'static str) -> Result<(), MessageError> {
    if len > max {
        return Err(MessageError::Bounds(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
