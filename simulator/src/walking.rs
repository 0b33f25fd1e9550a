//! Mirrors go through the index of other nodes, so that they have what was put while they were not reached.

use qk_protocol::hash::Point;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::{Answer, Request};
use qk_protocol::mirror::Walk;
use rand::RngExt;

use crate::engine::{Key, MINUTE, Micros, SECOND};
use crate::job::{Input, Work};
use crate::node::first_bytes;
use crate::wire::Cause;
use crate::world::{Event, World};

/// As the node does it: how often, nodes gone through each time, what lies between two requests, and how long
/// one may take.
pub(crate) const WALK_EVERY: Micros = 10 * MINUTE;
const SOURCES_MAX: usize = 3;
const PACE: Micros = 25_000;
const ASK_TIMEOUT: Micros = 10 * SECOND;

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Walking {
    walk: Walk,
    source: u32,
    pub(crate) until: Micros,
}

impl World<'_> {
    pub(crate) fn walk(&mut self, mirror: u32) {
        let now = self.queue.now;
        if now + WALK_EVERY < self.end {
            self.queue.at(now + WALK_EVERY, Event::Walk(mirror));
        }
        let point = Point(self.streams.nodes.random());
        let mut sources = self.mirrors.clone();
        sources.extend(self.closest(mirror, &point, WIDTH));
        sources.retain(|one| *one != mirror);
        sources.truncate(SOURCES_MAX);
        for source in sources {
            let walking = Walking {
                walk: Walk::new(now / WALK_EVERY),
                source,
                until: now + ASK_TIMEOUT,
            };
            self.begin(mirror, Work::Walk(Box::new(walking)));
        }
    }

    /// One that does not answer is given up until the next time.
    pub(crate) fn step_walk(
        &mut self,
        key: Key,
        mirror: u32,
        it: &mut Walking,
        input: Input,
    ) -> bool {
        match input {
            Input::Start => {}
            Input::Reply(_, reply) => self.learn(mirror, it, reply.answer),
            Input::Tick => return self.queue.now >= it.until,
            Input::Range(..) | Input::Late(_) | Input::Connected(..) => return false,
        }
        let Some(request) = it.walk.step() else {
            return true;
        };
        it.until = self.queue.now + PACE + ASK_TIMEOUT;
        self.ask(mirror, it.source, key, Cause::Mirror, request, PACE);
        false
    }

    fn learn(&mut self, mirror: u32, it: &mut Walking, answer: Answer) {
        let held = &self.nodes[mirror as usize].held;
        let is_known = |point: &Point| {
            let first = first_bytes(point);
            held.binary_search_by_key(&first, |(other, _)| *other)
                .is_ok()
        };
        let statements = it.walk.answered(answer, is_known);
        if !statements.is_empty() {
            self.tally
                .add("statements that mirrors got", statements.len() as u64);
            // By the rules by which it takes what it is put.
            self.answer(mirror, it.source, Request::Put(statements));
        }
    }
}
