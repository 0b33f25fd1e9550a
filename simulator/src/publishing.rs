//! Releases and what is stated of them, from the signature to the holders that acknowledge it.

use std::sync::Arc;

use qk_protocol::assign::Ranking;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::Request;
use qk_protocol::statement::{Statement, Subject};
use rand::RngExt;

use crate::engine::MINUTE;
use crate::job::{After, Then};
use crate::stage::Character;
use crate::wire::{Cause, minutes};
use crate::world::{Event, Stated, World};

/// Popular crates that hostile providers have or say to have.
pub(crate) const HOSTILE_PROVIDE: u32 = 8;

impl World<'_> {
    pub(crate) fn release(&mut self) {
        self.later(self.scenario.workload.releases_a_day, Event::Release);
        let victims = self.scenario.hostile.victims;
        let of = match victims > 0 && self.streams.workload.random_range(0..2) == 0 {
            true => self.streams.workload.random_range(0..victims),
            false => self.some_crate(),
        };
        self.release_of(of);
    }

    pub(crate) fn release_of(&mut self, of: u32) {
        let artifact = self.new_artifact(of);
        self.artifacts[artifact as usize].released = self.queue.now;
        self.tally.count("releases");
        if self.is_victim(artifact) {
            self.harm(artifact);
        } else {
            self.publish(artifact % self.scenario.principals.publishers, artifact);
        }
    }

    /// Colluding principals and strangers state the wrong root, and later somebody dissents.
    fn harm(&mut self, artifact: u32) {
        // That it is there the registry says, whoever hides what is stated of it.
        let of = self.artifacts[artifact as usize].crate_number;
        self.newest[of as usize] = artifact;
        let strangers = self.stage.operators.len() as u32..self.at.len() as u32;
        let operators = (0..).zip(&self.stage.operators);
        let colluding = operators.filter(|(_, one)| one.character == Character::Colluding);
        let all: Vec<u32> = colluding.map(|(at, _)| at).chain(strangers).collect();
        for operator in all {
            let wait = self.streams.faults.random_range(0..10 * MINUTE);
            self.queue
                .at(self.queue.now + wait, Event::Collude(operator, artifact));
        }
        let wait = minutes(self.scenario.hostile.dissent_minutes);
        if wait > 0
            && let Some(operator) = self.first_honest(artifact)
        {
            self.queue
                .at(self.queue.now + wait, Event::Publish(operator, artifact));
        }
    }

    /// Who is called first of those that mean well.
    fn first_honest(&self, artifact: u32) -> Option<u32> {
        let candidate = self.artifacts[artifact as usize].candidate();
        let ranking = Ranking::of(&self.stage.network, &candidate);
        let honest = |id| {
            let mut operators = self.stage.operators.iter();
            operators.position(|one| one.id == id && one.character == Character::Honest)
        };
        let mut ranks = ranking.ranks().iter();
        ranks.find_map(|rank| honest(rank.principal).map(|at| at as u32))
    }

    /// An operator states the right root.
    pub(crate) fn publish(&mut self, operator: u32, artifact: u32) {
        let right = self.artifacts[artifact as usize].right;
        self.say(operator, artifact, right, artifact * 2);
    }

    /// An operator or stranger states the wrong root.
    pub(crate) fn collude(&mut self, operator: u32, artifact: u32) {
        let is_stranger = operator as usize >= self.stage.operators.len();
        self.tally.fault(if is_stranger {
            "strangers"
        } else {
            "colluding"
        });
        let wrong = self.artifacts[artifact as usize].wrong;
        self.say(operator, artifact, wrong, artifact * 2 + 1);
    }

    fn say(&mut self, operator: u32, artifact: u32, got: Subject, blob: u32) {
        let (by, about) = (self.operator(operator), &self.artifacts[artifact as usize]);
        let digest = !self.scenario.without.work_digest;
        let work = digest.then(|| self.stage.work(by, about, got));
        let node = self.at[operator as usize];
        let now = self.now(node).unix;
        let statement = self.stage.observe(by, about, got, now, work, [].into());
        let point = about.point;
        let stated = self.state(statement, artifact, operator);
        let then = Then::Put(vec![stated], Some(blob));
        self.find(node, point, 256, Cause::Publish, then);
    }

    /// Whether it is one of those of which a wrong root is stated.
    pub(crate) fn is_victim(&self, artifact: u32) -> bool {
        let of = self.artifacts[artifact as usize].crate_number;
        of < self.scenario.hostile.victims && artifact >= self.scenario.workload.crates
    }

    /// Somebody made a statement; its own node holds it.
    pub(crate) fn state(&mut self, statement: Arc<Statement>, artifact: u32, operator: u32) -> u32 {
        let node = self.at[operator as usize];
        let point = self.artifacts[artifact as usize].point;
        self.nodes[node as usize].keep(point, statement.clone());
        let about = &mut self.artifacts[artifact as usize];
        let got = statement.observation().map(|one| one.subject);
        if got == Some(about.right) && self.stage.means_well(operator) {
            about.dissented.get_or_insert(self.queue.now);
        }
        self.stated.push(Stated {
            statement,
            artifact,
            operator,
            by_node: node,
            holders: Vec::new(),
        });
        self.stated.len() as u32 - 1
    }

    /// Puts statements to the nearest nodes and to mirrors.
    pub(crate) fn put(
        &mut self,
        owner: u32,
        stated: Vec<u32>,
        blob: Option<u32>,
        mut nearest: Vec<u32>,
    ) {
        nearest.extend(self.mirrors.iter().copied());
        let statements = stated
            .iter()
            .map(|at| self.stated[*at as usize].statement.clone());
        let request = Request::Put(statements.collect());
        self.ask_all(
            owner,
            &nearest,
            Cause::Publish,
            &request,
            After::Put(stated, blob),
        );
    }

    pub(crate) fn was_put(
        &mut self,
        owner: u32,
        stated: &[u32],
        blob: Option<u32>,
        answered: &[u32],
    ) {
        for at in stated {
            let one = &self.stated[*at as usize];
            let (artifact, operator) = (one.artifact, one.operator);
            let point = self.artifacts[artifact as usize].point;
            let holds = |node: &&u32| {
                let node = &self.nodes[**node as usize];
                node.is_honest() && node.holds(&point, &one.statement)
            };
            let holders: Vec<u32> = answered.iter().filter(holds).copied().collect();
            let is_right = one.statement.observation().map(|one| one.subject)
                == Some(self.artifacts[artifact as usize].right);
            if holders.is_empty() {
                continue;
            }
            self.stated[*at as usize].holders.extend(holders);
            self.acknowledged(artifact, operator, is_right);
        }
        if let Some(blob) = blob {
            self.nodes[owner as usize].take_blob(blob);
            self.have(owner, blob, answered);
        }
    }

    fn acknowledged(&mut self, artifact: u32, operator: u32, is_right: bool) {
        let now = self.queue.now;
        if self.artifacts[artifact as usize].published.is_none() {
            self.bad_providers_follow(artifact);
        }
        let one = &mut self.artifacts[artifact as usize];
        let since = *one.published.get_or_insert(now);
        let newest = &mut self.newest[one.crate_number as usize];
        *newest = (*newest).max(artifact);
        let operators = &self.stage.operators;
        let rebuilt = operators.get(operator as usize);
        let rebuilt = rebuilt.is_some_and(|one| one.character != Character::Publisher);
        if is_right && rebuilt && !one.proofs.contains(&operator) {
            one.proofs.push(operator);
            let name = match one.proofs.len() {
                1 => "minutes to 1 rebuild",
                2 => "minutes to 2 rebuilds",
                3 => "minutes to 3 rebuilds",
                _ => return,
            };
            if artifact >= self.scenario.workload.crates {
                self.tally
                    .measure(name, (now - since) as f64 / MINUTE as f64);
            }
        }
    }

    /// Providers that mean harm say that they have what was just published.
    fn bad_providers_follow(&mut self, artifact: u32) {
        let point = self.artifacts[artifact as usize].point;
        for node in 0..self.scenario.nodes.servers {
            if self.nodes[node as usize].is_bad_provider() {
                self.nodes[node as usize].take_blob(artifact * 2);
                let nearest = self.closest(node, &point, WIDTH);
                self.have(node, artifact * 2, &nearest);
            }
        }
    }
}
