//! What there is before the run: crates that were published and rebuilt, and who has them.

use std::collections::BTreeMap;

use qk_protocol::assign::Ranking;
use qk_protocol::lookup::WIDTH;
use qk_protocol::message::Provider;
use qk_protocol::time::UnixTime;
use rand::RngExt;

use crate::publishing::HOSTILE_PROVIDE;
use crate::stage::{BEGIN, Character};
use crate::world::World;

impl World<'_> {
    /// What there is before the run: crates that were published and rebuilt.
    pub(crate) fn preload(&mut self) {
        let work = &self.scenario.workload;
        let stored = UnixTime(BEGIN.0 - (work.age_hours * 3600.0) as u64);
        for number in 0..work.crates {
            let by = self.observers(number);
            let artifact = &self.artifacts[number as usize];
            let point = artifact.point;
            let mut holders = self.routing.nearest(&point, WIDTH, 0, &self.nodes);
            holders.extend(self.mirrors.iter().copied());
            for operator in by {
                let artifact = &self.artifacts[number as usize];
                let one = &self.stage.operators[operator as usize];
                let digest = !self.scenario.without.work_digest;
                let work = digest.then(|| self.stage.work(one, artifact, artifact.right));
                let statement =
                    self.stage
                        .observe(one, artifact, artifact.right, stored, work, [].into());
                let honest = holders
                    .iter()
                    .copied()
                    .filter(|one| self.nodes[*one as usize].is_honest());
                let honest: Vec<u32> = honest.collect();
                for holder in &honest {
                    self.nodes[*holder as usize].keep(point, statement.clone());
                }
                let stated = self.state(statement, number, operator);
                self.stated[stated as usize].holders = honest;
            }
            self.artifacts[number as usize].published = Some(0);
            self.preload_providers(number, &holders);
        }
    }

    /// The publisher, and honest verifiers as they are ranked.
    fn observers(&self, number: u32) -> Vec<u32> {
        let proofs = self.scenario.workload.proofs as usize;
        let mut by = vec![number % self.scenario.principals.publishers];
        if proofs > 0 {
            let candidate = self.artifacts[number as usize].candidate();
            let ranking = Ranking::of(&self.stage.network, &candidate);
            let operators = || self.stage.operators.iter().enumerate();
            let honest: BTreeMap<_, _> = operators()
                .filter(|(_, one)| one.character == Character::Honest)
                .map(|(at, one)| (one.id, at as u32))
                .collect();
            let ranked = ranking.ranks().iter();
            by.extend(
                ranked
                    .filter_map(|rank| honest.get(&rank.principal))
                    .take(proofs),
            );
        }
        by
    }

    fn preload_providers(&mut self, number: u32, holders: &[u32]) {
        let work = &self.scenario.workload;
        let servers = self.scenario.nodes.servers;
        let mut providers = Vec::new();
        if work.publisher_provides {
            providers.push(self.at[(number % self.scenario.principals.publishers) as usize]);
        }
        let mut tries = 0;
        let wanted = providers.len() + work.providers as usize;
        while providers.len() < wanted && tries < 50 * wanted {
            tries += 1;
            let one = self.streams.workload.random_range(0..servers);
            if self.nodes[one as usize].is_honest() && !providers.contains(&one) {
                providers.push(one);
            }
        }
        if number < HOSTILE_PROVIDE {
            let hostile = (0..servers).filter(|one| self.nodes[*one as usize].is_bad_provider());
            providers.extend(hostile);
        }
        let artifact = &self.artifacts[number as usize];
        let (point, root) = (artifact.point, artifact.right.root);
        for provider in providers {
            self.nodes[provider as usize].take_blob(number * 2);
            let contact = self.contact(provider);
            for holder in holders {
                let hint = Provider {
                    root,
                    contact: contact.clone(),
                };
                self.nodes[*holder as usize].hints.add(point, hint, BEGIN);
            }
        }
    }
}
