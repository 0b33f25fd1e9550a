//! A principal that rebuilds: it surveys, looks, owes, draws and builds as `protocol::watch` and
//! `protocol::assign` say.

use std::collections::BTreeMap;
use std::sync::Arc;

use qk_protocol::assign::audit;
use qk_protocol::decide::Held;
use qk_protocol::hash::{Blake3, Point, StatementId};
use qk_protocol::message::{POINTS_MAX, Request};
use qk_protocol::statement::Statement;
use qk_protocol::watch::patrol::{Patrol, Survey};
use qk_protocol::watch::{Agreement, End, Queue, Why, duties};
use qk_protocol::work::WorkDigest;
use rand::{Rng, RngExt};

use crate::engine::{MINUTE, Micros, mix};
use crate::job::{After, Find, Then};
use crate::stage::{Character, subject};
use crate::wire::{Cause, minutes};
use crate::world::{Event, World};

/// As the node does it: nodes asked because they are named and because they are nearest, random points
/// of one draw, nodes asked about each, entries taken of each.
const NAMED_ASKED: usize = 3;
const NEAREST_ASKED: usize = 5;
const DRAW_POINTS: usize = 8;
const DRAW_ASKED: usize = 3;
const DRAW_NEAREST: u32 = 4;
/// What copying takes.
const COPYING: Micros = MINUTE;

#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) operator: u32,
    pub(crate) node: u32,
    pub(crate) patrol: Patrol,
    pub(crate) queue: Queue,
    /// Points of a draw that are still looked at, and in which session they are.
    drawing: usize,
    session: Micros,
    drawn: Vec<Arc<Statement>>,
    /// It drew since the last survey.
    has_drawn: bool,
}

impl Verifier {
    pub(crate) fn new(operator: u32, node: u32, start: Point) -> Self {
        Self {
            operator,
            node,
            patrol: Patrol::new(start),
            queue: Queue::default(),
            drawing: 0,
            session: 0,
            drawn: Vec::new(),
            has_drawn: false,
        }
    }
}

impl World<'_> {
    pub(crate) fn survey(&mut self, verifier: u32) {
        let every = minutes(self.scenario.principals.survey_minutes);
        if self.queue.now + every < self.end {
            self.queue
                .at(self.queue.now + every, Event::Survey(verifier));
        }
        let one = &mut self.verifiers[verifier as usize];
        one.has_drawn = false;
        let (node, at) = (one.node, one.patrol.at());
        if self.nodes[node as usize].is_up() {
            self.find(node, at, 256, Cause::Survey, Then::Survey(verifier));
        }
    }

    /// The nodes nearest to a point are known: they and those that are named list what is there.
    pub(crate) fn list(&mut self, verifier: u32, find: &Find) {
        let (node, point) = {
            let one = &self.verifiers[verifier as usize];
            (one.node, one.patrol.at())
        };
        let nearest: Vec<u32> = find.nearest().take(qk_protocol::lookup::WIDTH).collect();
        let places = nearest
            .iter()
            .map(|one| self.nodes[*one as usize].point)
            .collect();
        let named = self.mirrors.iter().take(NAMED_ASKED).copied();
        let whom: Vec<u32> = named
            .chain(nearest.iter().take(NEAREST_ASKED).copied())
            .collect();
        let request = Request::Near {
            point,
            limit: POINTS_MAX as u32,
        };
        self.ask_all(
            node,
            &whom,
            Cause::Survey,
            &request,
            After::Survey(verifier, point, places),
        );
    }

    pub(crate) fn surveyed(
        &mut self,
        verifier: u32,
        point: Point,
        places: &[Point],
        answers: &[Vec<Point>],
    ) {
        let survey = Survey::of(point, places, answers);
        let one = &mut self.verifiers[verifier as usize];
        let node = one.node;
        for point in one.patrol.take(&survey) {
            self.tally.count("looks");
            self.find(node, point, 256, Cause::Look, Then::Look(verifier));
        }
        self.wake(verifier);
    }

    pub(crate) fn looked(
        &mut self,
        verifier: u32,
        statements: BTreeMap<StatementId, Arc<Statement>>,
    ) {
        let stored = self.unix();
        let held: Vec<Held> = statements
            .into_values()
            .map(|statement| Held { statement, stored })
            .collect();
        let one = &mut self.verifiers[verifier as usize];
        let principal = self.stage.operators[one.operator as usize].id;
        for (key, why) in duties(&self.stage.network, &held, principal) {
            if one.queue.add(self.stage.network.id(), key, why, stored)
                && matches!(why, Why::Called { .. })
            {
                self.tally.count("calls answered");
            }
        }
        self.wake(verifier);
    }

    /// Begins what is due, or draws.
    pub(crate) fn wake(&mut self, verifier: u32) {
        let now = self.unix();
        let one = &mut self.verifiers[verifier as usize];
        let session = self.nodes[one.node as usize].up_from;
        if session == Micros::MAX || one.queue.building().is_some() {
            return;
        }
        if one.session != session {
            (one.session, one.drawing) = (session, 0);
        }
        if one.queue.wants_audit(now) && one.drawing == 0 && !one.has_drawn {
            one.has_drawn = true;
            self.draw(verifier);
        }
        let one = &mut self.verifiers[verifier as usize];
        if let Some(entry) = one.queue.begin(now) {
            let what = match entry.why {
                Why::Audit => "audits",
                Why::Assigned => "rebuilds assigned",
                Why::Called { .. } => "rebuilds called",
            };
            self.tally.count(what);
            let takes = match self.stage.operators[one.operator as usize].character {
                Character::Lazy => COPYING,
                _ => {
                    let day = minutes(24.0 * 60.0 / self.scenario.principals.builds_a_day);
                    self.streams.nodes.random_range(day / 2..day * 3 / 2)
                }
            };
            self.queue
                .at(self.queue.now + takes, Event::Built(verifier));
        }
    }

    fn draw(&mut self, verifier: u32) {
        let node = self.verifiers[verifier as usize].node;
        self.verifiers[verifier as usize].drawn.clear();
        self.verifiers[verifier as usize].drawing = DRAW_POINTS;
        for _ in 0..DRAW_POINTS {
            let point = Point(self.streams.nodes.random());
            let whom = self.closest(node, &point, DRAW_ASKED);
            let request = Request::Near {
                point,
                limit: DRAW_NEAREST,
            };
            self.ask_all(
                node,
                &whom,
                Cause::Survey,
                &request,
                After::Draw(verifier, point),
            );
        }
    }

    pub(crate) fn listed_near(&mut self, verifier: u32, point: Point, points: Vec<Vec<Point>>) {
        let nearest = points
            .into_iter()
            .flatten()
            .min_by_key(|one| one.distance(&point));
        let node = self.verifiers[verifier as usize].node;
        match nearest {
            Some(nearest) => self.find(node, nearest, 256, Cause::Survey, Then::Draw(verifier)),
            None => self.drawn(verifier, BTreeMap::new()),
        }
    }

    pub(crate) fn drawn(
        &mut self,
        verifier: u32,
        statements: BTreeMap<StatementId, Arc<Statement>>,
    ) {
        let random = [self.streams.nodes.next_u64(), self.streams.nodes.next_u64()];
        let now = self.unix();
        let one = &mut self.verifiers[verifier as usize];
        one.drawn.extend(statements.into_values());
        one.drawing = one.drawing.saturating_sub(1);
        if one.drawing > 0 {
            return;
        }
        let drawn = std::mem::take(&mut one.drawn);
        let own = self.stage.operators[one.operator as usize].public;
        let mut entries = audit::entries(&self.stage.network, &drawn, now);
        entries.retain(|entry| {
            let mut about = drawn.iter().filter(|one| *one.key() == entry.key);
            about.all(|one| one.observer() != own)
        });
        if let Some(entry) = audit::choose(&entries, random) {
            let key = entry.key.clone();
            one.queue.add(self.stage.network.id(), key, Why::Audit, now);
            self.wake(verifier);
        }
    }

    /// A build has ended: what others state of it is looked up, and where to put one's own.
    pub(crate) fn built(&mut self, verifier: u32) {
        let now = self.unix();
        let one = &mut self.verifiers[verifier as usize];
        let artifact = one
            .queue
            .building()
            .and_then(|building| self.by_key.get(&building.entry.key.id()));
        match artifact.copied() {
            Some(artifact) if self.nodes[one.node as usize].is_up() => {
                let (node, point) = (one.node, self.artifacts[artifact as usize].point);
                self.find(
                    node,
                    point,
                    256,
                    Cause::Publish,
                    Then::Build(verifier, artifact),
                );
            }
            // It is begun again when the machine is there again.
            _ => {
                one.queue.end(End::Stopped, now);
            }
        }
    }

    /// States what came out.
    pub(crate) fn observe(
        &mut self,
        verifier: u32,
        artifact: u32,
        found: &BTreeMap<StatementId, Arc<Statement>>,
        nearest: Vec<u32>,
    ) {
        let now = self.unix();
        let operator = self.verifiers[verifier as usize].operator;
        let node = self.verifiers[verifier as usize].node;
        let by = &self.stage.operators[operator as usize];
        let about = &self.artifacts[artifact as usize];
        let earlier: Vec<&Statement> = found
            .values()
            .map(AsRef::as_ref)
            .filter(|one| one.key_id() == about.key_id)
            .collect();
        let says_already = earlier.iter().any(|one| one.observer() == by.public);
        let others = || earlier.iter().filter_map(|one| one.observation());
        let is_victim = self.is_victim(artifact);
        let got = match by.character {
            Character::Colluding if is_victim => about.wrong,
            // The first that it sees.
            Character::Lazy => match others().min_by_key(|one| one.finished) {
                Some(first) => {
                    self.tally.fault("lazy");
                    first.subject
                }
                None => about.right,
            },
            Character::Lying if self.lies(operator, artifact) => {
                self.tally.fault("lying");
                subject(
                    &format!("lie of {operator} about {artifact}"),
                    about.right.size / 1024,
                )
            }
            _ => about.right,
        };
        let agreement = match others().all(|one| one.subject == got) {
            _ if earlier.is_empty() => Agreement::First,
            true => Agreement::Identical,
            false => Agreement::Differs,
        };
        if says_already {
            let queue = &mut self.verifiers[verifier as usize].queue;
            queue.end(End::Dropped, now);
            return self.wake(verifier);
        }
        let has_built = by.character != Character::Lazy;
        let digest = match has_built {
            true => Some(about.digest),
            false => WorkDigest::of([Blake3::of(b"a guess")]),
        };
        let digest = digest.filter(|_| !self.scenario.without.work_digest);
        let work =
            digest.map(|one| one.work(self.stage.network.id(), by.public, about.key_id, got.root));
        let checks = match digest.filter(|_| has_built) {
            Some(digest) => digest.checks(by.public, about.key_id, got, earlier.iter().copied()),
            None => BTreeMap::new(),
        };
        let statement = self
            .stage
            .observe(by, about, got, self.now(node).unix, work, checks);
        self.verifiers[verifier as usize]
            .queue
            .end(End::Built(agreement), now);
        let blob = (got == about.right && has_built).then_some(artifact * 2);
        let stated = self.state(statement, artifact, operator);
        self.put(node, vec![stated], blob, nearest);
        self.wake(verifier);
    }

    pub(crate) fn lies(&self, operator: u32, artifact: u32) -> bool {
        let one_in = u64::from(self.scenario.hostile.lies_one_in);
        !self.is_victim(artifact)
            && mix(u64::from(operator), u64::from(artifact)).is_multiple_of(one_in)
    }
}
