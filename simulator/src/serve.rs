//! The serving side of a node: the index by `index::answer`, blocks as far as its line and its
//! manners allow.

use std::sync::Arc;

use qk_protocol::index::{self, Rules, Write};
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::{Answer, Contact, NodeId, Reply, Request};
use qk_protocol::statement::Statement;
use qk_protocol::transfer::Why;

use crate::engine::{Key, SECOND};
use crate::node::{Held, Kind, Manners, first_bytes};
use crate::wire::{Blocks, Body, Cause, Message, blob};
use crate::world::World;

/// A node whose line is busy for longer asks to come again.
const BUSY: u64 = 4 * SECOND;

impl World<'_> {
    /// A request arrived at `node`.
    pub(crate) fn asked(&mut self, node: u32, from: u32, job: Key, cause: Cause, request: Request) {
        let asked = &self.nodes[node as usize];
        if asked.manners == Manners::Silent {
            self.tally.fault("silent");
            return;
        }
        if asked.skew != 0 {
            self.tally.fault("skew");
        }
        if asked.kind == Kind::Cache
            && let Request::Get(get) = &request
        {
            let first = first_bytes(&get.point);
            if self.cache_lacks(node, first, from) {
                let waiting = self.asked_cache.entry(first).or_default();
                waiting.push((from, job, request));
                return;
            }
        }
        let reply = self.answer(node, from, request);
        let body = Body::Reply(reply);
        self.send(
            Message {
                from: node,
                to: from,
                job,
                cause,
                body,
            },
            0,
        );
    }

    fn cache_lacks(&mut self, cache: u32, first: u64, from: u32) -> bool {
        if self.nodes[from as usize].kind != Kind::Lab {
            return false;
        }
        let Some((_, artifact)) = self.points.get(&first).copied() else {
            return false;
        };
        if self.asked_cache.contains_key(&first) {
            return true;
        }
        let held = &self.nodes[cache as usize].held;
        let at = held.partition_point(|(other, _)| *other < first);
        if held.get(at).is_some_and(|(other, _)| *other == first)
            && self.nodes[cache as usize].has(artifact * 2)
        {
            return false;
        }
        self.asked_cache.insert(first, Vec::new());
        self.fetch(cache, artifact, false);
        true
    }

    /// The cache knows what it was asked, or never will.
    pub(crate) fn cache_answers(&mut self, cache: u32, artifact: u32, known: &[Arc<Statement>]) {
        let point = self.artifacts[artifact as usize].point;
        for statement in known {
            self.nodes[cache as usize].keep(point, statement.clone());
        }
        let waiting = self.asked_cache.remove(&first_bytes(&point));
        for (from, job, request) in waiting.into_iter().flatten() {
            let body = Body::Reply(self.answer(cache, from, request));
            self.send(
                Message {
                    from: cache,
                    to: from,
                    job,
                    cause: Cause::LookUp,
                    body,
                },
                0,
            );
        }
    }

    pub(crate) fn answer(&mut self, node: u32, from: u32, request: Request) -> Reply {
        if let Manners::Sybil(of) = self.nodes[node as usize].manners
            && let Some(reply) = self.sybil_answer(node, of, &request)
        {
            return reply;
        }
        let rules = Rules {
            network: &self.stage.network,
            key: &self.stage.network_key,
        };
        let point = index::point_of(&request, &rules);
        let closer = point.map_or(Vec::new(), |point| self.closest(node, &point, WIDTH));
        let closer = closer.into_iter().map(|one| self.contact(one)).collect();
        let now = self.now(node).unix;
        // Only whoever says to have something is remembered.
        let from = match &request {
            Request::Have(_) => self.contact(from),
            _ => Contact {
                node: NodeId(Vec::new()),
                addrs: Vec::new(),
            },
        };
        let own = &self.nodes[node as usize];
        let shelf = Held {
            held: &own.held,
            points: &self.points,
        };
        let (reply, writes) =
            index::answer(&shelf, &own.hints, &rules, &from, request, closer, now);
        let own = &mut self.nodes[node as usize];
        for write in writes {
            match write {
                Write::Keep(point, statement) => own.keep(point, statement),
                Write::Hint(point, provider) => {
                    own.hints.add(point, provider, now);
                }
            }
        }
        reply
    }

    /// What a Sybil says about the point that it is there for; `None`: it answers as others do.
    fn sybil_answer(&mut self, node: u32, of: u32, request: &Request) -> Option<Reply> {
        let target = first_bytes(&self.targets[of as usize]);
        let answer = match request {
            Request::Get(get) if first_bytes(&get.point) == target => {
                let mut statements = Vec::new();
                if self.scenario.hostile.hide_dissent_only {
                    let held = Held {
                        held: &self.nodes[node as usize].held,
                        points: &self.points,
                    };
                    statements = index::Shelf::at(&held, get.point);
                    if let Some((_, artifact)) = self.points.get(&target) {
                        let wrong = self.artifacts[*artifact as usize].wrong;
                        statements.retain(|one| {
                            one.observation().is_some_and(|one| one.subject == wrong)
                        });
                    }
                }
                Answer::Statements {
                    statements,
                    providers: Vec::new(),
                    next: None,
                }
            }
            Request::Near { .. } => Answer::Points(Vec::new()),
            // It stores what it shows a part of.
            Request::Put(_) if self.scenario.hostile.hide_dissent_only => return None,
            Request::Put(statements) => Answer::Taken {
                taken: statements.len() as u32,
                refused: 0,
            },
            Request::Get(_) | Request::Have(_) | Request::Network { .. } | Request::Log { .. } => {
                return None;
            }
        };
        self.tally.fault("sybils");
        let like = |one: &&u32| self.nodes[**one as usize].manners == Manners::Sybil(of);
        let closer = self.sybils.iter().filter(like);
        Some(Reply {
            closer: closer.map(|one| self.contact(*one)).collect(),
            answer,
        })
    }

    /// A request for blocks arrived.
    pub(crate) fn pulled(&mut self, message: &Message) {
        let Body::Pull {
            slot,
            blob,
            range,
            wire_len,
        } = message.body
        else {
            return;
        };
        let node = message.to;
        let own = &self.nodes[node as usize];
        let forged = own.manners == Manners::Forging;
        let end = match own.manners {
            Manners::Silent => return self.tally.fault("silent"),
            Manners::Stalling => return self.tally.fault("stalling"),
            Manners::Lacking => {
                self.tally.fault("lacking");
                Err(Why::Lacks)
            }
            Manners::Honest | Manners::Forging | Manners::Sybil(_) => {
                if !own.has(blob) {
                    // A cache is still fetching it.
                    let comes = own.kind == Kind::Cache;
                    Err(if comes { Why::Busy } else { Why::Lacks })
                } else if own.up_free > self.queue.now + BUSY {
                    Err(Why::Busy)
                } else {
                    Ok(Blocks {
                        range,
                        wire_len,
                        forged,
                    })
                }
            }
        };
        if end.is_ok() {
            self.nodes[node as usize].given += u64::from(wire_len);
            if forged {
                self.tally.fault("forging");
            }
        }
        let body = Body::Range { slot, end };
        self.send(
            Message {
                from: node,
                to: message.from,
                job: message.job,
                cause: message.cause,
                body,
            },
            0,
        );
    }

    /// The blob of a root, if it is one that somebody made.
    pub(crate) fn blob_of(&self, artifact: u32, root: qk_protocol::hash::Root) -> Option<u32> {
        let known = &self.artifacts[artifact as usize];
        let is_known = root == known.right.root || root == known.wrong.root;
        is_known.then(|| blob(artifact, root, known.right.root))
    }
}
