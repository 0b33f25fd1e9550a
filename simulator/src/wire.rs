//! Virtual time: a queue of events, and a wire whose latency and losses the seed decides.

use std::collections::BTreeMap;
use std::time::Duration;

use qk_protocol::blocks::{Request as BlocksRequest, Status};
use qk_protocol::message::{Reply, Request};
use qk_protocol::transfer::Slot;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::scenario::WireModel;

/// Who sends or receives: an index into the nodes, or the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Client,
    Node(usize),
}

/// What travels. Messages are typed; their length is that of their bytes.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Ask(Request),
    Reply(Reply),
    Pull(Slot, BlocksRequest),
    /// The raw answer, or a status that says why there is none.
    Range(Slot, Result<Vec<u8>, Status>),
}

impl Message {
    /// The bytes that a socket would carry, but for the framing.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ask(request) => request.encode(),
            Self::Reply(reply) => reply.encode(),
            Self::Pull(_, request) => request.encode(),
            Self::Range(_, Ok(wire)) => [&[Status::Ok.byte()], &wire[..]].concat(),
            Self::Range(_, Err(status)) => vec![status.byte()],
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Ask(_) => 0,
            Self::Reply(_) => 1,
            Self::Pull(..) => 2,
            Self::Range(..) => 3,
        }
    }
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    Arrived {
        from: Place,
        to: Place,
        message: Message,
    },
    /// The client's machines asked to be woken about now.
    Tick,
    /// No answer came to this range for too long.
    Late(Slot),
}

/// The queue, the clock and the wire.
#[derive(Debug)]
pub(crate) struct Wire {
    model: WireModel,
    rng: Xoshiro256PlusPlus,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    serial: u64,
    lost_next: u64,
    trace: blake3::Hasher,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) lost: u64,
}

impl Wire {
    pub(crate) fn new(model: WireModel, seed: u64) -> Self {
        let mut wire = Self {
            model,
            // Named, because its numbers are to be the same on every machine and with every version.
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            serial: 0,
            lost_next: 0,
            trace: blake3::Hasher::new(),
            messages: 0,
            bytes: 0,
            lost: 0,
        };
        wire.draw_loss();
        wire
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn trace_hash(&self) -> String {
        self.trace.finalize().to_hex().to_string()
    }

    /// Sends a message, which arrives later or never.
    pub(crate) fn send(&mut self, from: Place, to: Place, message: Message) {
        let bytes = message.bytes();
        let lost = self.is_lost();
        self.messages += 1;
        self.bytes += bytes.len() as u64;
        self.record(&[message.kind(), u8::from(lost)], Some((from, to)), &bytes);
        if lost {
            self.lost += 1;
            return;
        }
        let latency = self
            .rng
            .random_range(self.model.latency_ms_min * 1000..=self.model.latency_ms_max * 1000);
        let length = bytes.len() as u64 * 1000 / self.model.bytes_per_ms;
        self.at(
            self.now + Duration::from_micros(latency + length),
            Event::Arrived { from, to, message },
        );
    }

    /// Has an event happen at a time, or now if that is past.
    pub(crate) fn at(&mut self, when: Duration, event: Event) {
        // The serial number keeps events of one instant in the order in which they were made.
        self.serial += 1;
        self.queue.insert((when.max(self.now), self.serial), event);
    }

    /// The next event; the clock goes on to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let ((when, _), event) = self.queue.pop_first()?;
        self.now = when;
        match &event {
            Event::Arrived { from, to, message } => {
                self.record(&[8 + message.kind()], Some((*from, *to)), &[]);
            }
            Event::Tick => self.record(&[16], None, &[]),
            Event::Late(slot) => self.record(&[17], None, &slot.0.to_le_bytes()),
        }
        Some(event)
    }

    fn record(&mut self, kind: &[u8], way: Option<(Place, Place)>, bytes: &[u8]) {
        let place = |place| match place {
            Place::Client => 0,
            Place::Node(index) => index as u64 + 1,
        };
        let (from, to) = way.map_or((0, 0), |(from, to)| (place(from), place(to)));
        let micros = u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX);
        for number in [micros, from, to, bytes.len() as u64] {
            self.trace.update(&number.to_le_bytes());
        }
        self.trace.update(kind).update(bytes);
    }

    fn is_lost(&mut self) -> bool {
        let one_in = self.model.lost_one_in;
        if one_in == 0 {
            return false;
        }
        if self.messages.is_multiple_of(one_in) {
            self.draw_loss();
        }
        self.messages % one_in == self.lost_next
    }

    fn draw_loss(&mut self) {
        if self.model.lost_one_in > 0 {
            self.lost_next = self.rng.random_range(0..self.model.lost_one_in);
        }
    }
}
