//! What nodes tell each other without being asked: what they have, their statements, newer manifests.

use std::collections::BTreeMap;

use qk_protocol::hash::Point;
use qk_protocol::index::Shelf;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::{Have, POINTS_MAX, Provider, Request};
use qk_protocol::repair::owed;
use qk_protocol::upkeep::{ANNOUNCE_SECONDS, put_again};

use crate::engine::{HOUR, Micros, SECOND};
use crate::job::{After, Then};
use crate::node::{Held, Kind};
use crate::wire::{Cause, minutes};
use crate::world::{Event, Stated, World};

/// As the node does it.
pub(crate) const REPAIR_EVERY: Micros = HOUR;

impl World<'_> {
    /// A turn of telling others what is here.
    pub(crate) fn announce(&mut self, node: u32) {
        let next = self.queue.now + ANNOUNCE_SECONDS * SECOND;
        if next < self.end {
            self.queue.at(next, Event::Announce(node));
        }
        self.announce_all(node);
    }

    pub(crate) fn announce_all(&mut self, node: u32) {
        let own = &self.nodes[node as usize];
        if !own.is_up() || !own.shares {
            return;
        }
        if own.kind == Kind::Operator {
            self.put_due(node);
        }
        for blob in self.nodes[node as usize].blobs.clone() {
            let point = self.artifacts[(blob / 2) as usize].point;
            let nearest = self.closest(node, &point, WIDTH);
            self.have(node, blob, &nearest);
        }
    }

    /// An operator's own statements are put again when it is their turn.
    fn put_due(&mut self, node: u32) {
        let now = self.unix();
        let due = |(_, one): &(usize, &Stated)| {
            let stored = one.statement.observation().map_or(now, |one| one.finished);
            let point = &self.artifacts[one.artifact as usize].point;
            one.by_node == node && put_again(point, stored, now)
        };
        let all = self.stated.iter().enumerate().filter(due);
        let mut by_artifact: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (at, one) in all {
            by_artifact.entry(one.artifact).or_default().push(at as u32);
        }
        for (artifact, stated) in by_artifact {
            let point = self.artifacts[artifact as usize].point;
            self.find(node, point, 256, Cause::Announce, Then::Put(stated, None));
        }
    }

    /// Tells these nodes that one has an artifact.
    pub(crate) fn have(&mut self, node: u32, blob: u32, nearest: &[u32]) {
        let artifact = &self.artifacts[(blob / 2) as usize];
        let subject = if blob.is_multiple_of(2) {
            artifact.right
        } else {
            artifact.wrong
        };
        let (point, own) = (artifact.point, self.contact(node));
        let now = self.now(node).unix;
        let hint = Provider {
            root: subject.root,
            contact: own.clone(),
        };
        self.nodes[node as usize].hints.add(point, hint, now);
        let request = Request::Have(Have {
            roots: vec![(point, subject.root)],
            addrs: own.addrs,
        });
        self.ask_all(node, nearest, Cause::Announce, &request, After::Nothing);
    }

    pub(crate) fn refresh(&mut self, node: u32) {
        let next = self.queue.now + minutes(self.scenario.network.refresh_minutes);
        if next < self.end {
            self.queue.at(next, Event::Refresh(node));
        }
        if !self.nodes[node as usize].is_up() {
            return;
        }
        let network = &self.stage.network;
        let request = Request::Network {
            version: network.manifest().version,
            issued: network.timestamp().issued,
        };
        let whom = self.closest(node, &Point(network.id().0), WIDTH);
        self.ask_all(node, &whom, Cause::Refresh, &request, After::Nothing);
    }

    /// Looks at the nodes that came to be known of; one that came itself knows of none yet.
    pub(crate) fn repair(&mut self, node: u32) {
        let now = self.queue.now;
        if now + REPAIR_EVERY < self.end {
            self.queue.at(now + REPAIR_EVERY, Event::Repair(node));
        }
        let own = &mut self.nodes[node as usize];
        if !own.is_up() || !own.is_honest() {
            return;
        }
        let since = match own.up_from > own.repaired {
            true => None,
            false => Some(own.repaired),
        };
        own.repaired = now;
        for newcomer in self.neighbours(node) {
            let other = &self.nodes[newcomer as usize];
            if since.is_none_or(|since| other.up_from > since) {
                let request = Request::Near {
                    point: other.point,
                    limit: POINTS_MAX as u32,
                };
                let then = After::Repair(newcomer);
                self.ask_all(node, &[newcomer], Cause::Repair, &request, then);
            }
        }
    }

    /// Puts to a node that came what it is to hold and does not list.
    pub(crate) fn repair_at(&mut self, node: u32, newcomer: u32, has: &[Point]) {
        let place = self.nodes[newcomer as usize].point;
        let mut known = self.neighbours(node);
        known.extend([node, newcomer]);
        known.sort_unstable();
        known.dedup();
        let nodes: Vec<Point> = known
            .iter()
            .map(|one| self.nodes[*one as usize].point)
            .collect();
        let own = &self.nodes[node as usize];
        let shelf = Held {
            held: &own.held,
            points: &self.points,
        };
        let here = shelf.near(place, POINTS_MAX);
        let puts: Vec<_> = owed(own.point, place, &here, has, &nodes)
            .into_iter()
            .map(|point| shelf.at(point))
            .collect();
        for statements in puts {
            self.tally.count("points put to nodes that came");
            let request = Request::Put(statements);
            self.ask_all(node, &[newcomer], Cause::Repair, &request, After::Nothing);
        }
    }
}
