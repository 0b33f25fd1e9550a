//! A node that serves: the index by `index::answer`, blocks of the artifact by `blocks::encode`.

use std::sync::Arc;

use qk_protocol::blocks::{self, Blob, Encoding, Request as BlocksRequest, Status};
use qk_protocol::hash::NetworkKey;
use qk_protocol::index::{self, Hints, MemoryShelf, Rules, Write};
use qk_protocol::manifest::Network;
use qk_protocol::message::{Contact, Reply, Request};
use qk_protocol::time::UnixTime;

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Honest,
    /// Changes a bit of every blocks answer.
    Lying,
    /// Answers nothing.
    Silent,
}

/// The artifact as everybody who has it holds it.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) blob: Blob,
    pub(crate) data: Vec<u8>,
    pub(crate) outboard: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) contact: Contact,
    pub(crate) kind: Kind,
    /// How often its fault showed.
    pub(crate) fired: u64,
    network: Arc<Network>,
    key: NetworkKey,
    shelf: MemoryShelf,
    hints: Hints,
    copy: Option<Arc<Copy>>,
}

impl Node {
    pub(crate) fn new(
        contact: Contact,
        kind: Kind,
        network: Arc<Network>,
        copy: Option<Arc<Copy>>,
    ) -> Self {
        Self {
            contact,
            kind,
            fired: 0,
            key: network.key(None),
            network,
            shelf: MemoryShelf::default(),
            hints: Hints::default(),
            copy,
        }
    }

    /// What it answers to a request of `from`; `None` if it is silent.
    pub(crate) fn on_ask(
        &mut self,
        from: &Contact,
        request: Request,
        closer: Vec<Contact>,
        now: UnixTime,
    ) -> Option<Reply> {
        if self.kind == Kind::Silent {
            self.fired += 1;
            return None;
        }
        let rules = Rules {
            network: &self.network,
            key: &self.key,
        };
        let (reply, writes) =
            index::answer(&self.shelf, &self.hints, &rules, from, request, closer, now);
        for write in writes {
            match write {
                Write::Keep(point, statement) => self.shelf.keep(point, statement),
                Write::Hint(point, provider) => {
                    self.hints.add(point, provider, now);
                }
            }
        }
        Some(reply)
    }

    /// What it answers to a request for blocks; `None` if it is silent.
    pub(crate) fn on_pull(&mut self, request: &BlocksRequest) -> Option<Result<Vec<u8>, Status>> {
        if self.kind == Kind::Silent {
            self.fired += 1;
            return None;
        }
        // Packing is the node's work; here nobody speaks it.
        if request.encoding == Encoding::Zstd {
            return Some(Err(Status::NotSpoken));
        }
        let Some(copy) = self.copy.as_ref().filter(|copy| copy.blob == request.blob) else {
            return Some(Err(Status::Lacks));
        };
        let encoded = blocks::encode(
            &copy.blob,
            &request.ranges,
            &copy.data[..],
            &copy.outboard[..],
        );
        let Ok(mut wire) = encoded else {
            return Some(Err(Status::BadRange));
        };
        if self.kind == Kind::Lying
            && let Some(last) = wire.last_mut()
        {
            *last ^= 1;
            self.fired += 1;
        }
        Some(Ok(wire))
    }
}
