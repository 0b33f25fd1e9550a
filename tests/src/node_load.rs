//! `kill -9` of a whole node at random points, while statements are put to it over the network:
//! what it acknowledged is there when it runs again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use qk_node::access::{FindSpec, Problem};
use qk_protocol::hash::{NetworkId, Root, Sha256, StatementId};
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::message::{Answer, Request};
use qk_protocol::statement::{Statement, Subject};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::artifact;
use crate::lab::{ALICE, BOB, CAROL, Lab};
use crate::peer::Peer;

/// Peers that put statements at once.
const PEERS: u64 = 3;
/// Older statements that are looked up after each kill, beside all new ones.
const OLDER_LOOKED_UP: usize = 50;
/// Everything is looked up after so many rounds.
const ALL_EVERY: u64 = 20;

/// What a campaign did.
#[derive(Debug, Default)]
pub struct Figures {
    /// Kills.
    pub kills: u64,
    /// Of these, such that were meant to hit the start.
    pub kills_while_starting: u64,
    /// Statements that the node said to hold.
    pub acknowledged: u64,
    /// Requests that got no answer, since the node was killed first.
    pub cut_off: u64,
    /// Statements that were looked up after a kill.
    pub looked_up: u64,
    /// The longest time that a start took, clean-up after the kill included.
    pub start_max: Duration,
}

/// Runs `rounds` rounds with randomness from `seed`.
///
/// # Errors
/// When something acknowledged is lost.
///
/// # Panics
/// When a node does not start.
pub fn campaign(rounds: u64, seed: u64) -> anyhow::Result<Figures> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lab = Lab::new();
    let network = lab.joined(ALICE).network;
    let template = artifact::wanted(&artifact::release().resolved);
    let key = template.candidates(&network.manifest().builds)[0].key(Sha256::of(b"a lock"));
    let mut held = BTreeMap::new();
    let (mut figures, mut next) = (Figures::default(), 0);
    for round in 0..rounds {
        if rng.random_bool(0.15) && figures.start_max > Duration::ZERO {
            let most = figures.start_max.as_micros() as u64;
            lab.start_alice_and_kill(Duration::from_micros(rng.random_range(0..most)));
            figures.kills += 1;
            figures.kills_while_starting += 1;
        }
        let new = round_of(&mut lab, &key, &mut next, &mut rng, &mut figures);
        let all = round + 1 == rounds || (round + 1).is_multiple_of(ALL_EVERY);
        let older: Vec<_> = held
            .iter()
            .map(|(id, release)| (*id, Release::clone(release)))
            .collect();
        let looked_up: Vec<_> = match all {
            true => older,
            false => older.sample(&mut rng, OLDER_LOOKED_UP).cloned().collect(),
        };
        held.extend(new.iter().cloned());
        start(&mut lab, &mut figures);
        let looked_up = new.into_iter().chain(looked_up);
        look_up(&lab, network.id(), looked_up.collect(), &mut figures)
            .with_context(|| format!("seed {seed}, round {round}"))?;
        lab.kill(ALICE);
        figures.kills += 1;
    }
    figures.acknowledged = held.len() as u64;
    Ok(figures)
}

fn start(lab: &mut Lab, figures: &mut Figures) {
    let began = Instant::now();
    lab.start_alice();
    figures.start_max = figures.start_max.max(began.elapsed());
}

/// Starts the node, puts statements to it and kills it meanwhile; returns what it acknowledged.
fn round_of(
    lab: &mut Lab,
    key: &ArtifactKey,
    next: &mut u64,
    rng: &mut StdRng,
    figures: &mut Figures,
) -> Vec<(StatementId, Release)> {
    start(lab, figures);
    let network = lab.joined(ALICE).network.id();
    let address = lab.addresses(ALICE)[0].clone();
    let (acknowledge, mut acknowledged) = mpsc::unbounded_channel();
    let mut putting = JoinSet::new();
    for _ in 0..PEERS {
        let requests = requests(lab, key, next, rng);
        let (address, acknowledge) = (address.clone(), acknowledge.clone());
        let put = async move {
            let peer = Peer::start(network, None).await;
            for statements in requests {
                let request = Request::Put(statements.clone());
                let answer = peer.ask(&address, &request).await.map(|reply| reply.answer);
                let _ = acknowledge.send((statements, answer));
            }
            peer.net().shutdown().await;
        };
        putting.spawn_on(put, lab.runtime().handle());
    }
    drop(acknowledge);
    // Not before the first answer, or many rounds would do nothing.
    let first = acknowledged.blocking_recv();
    std::thread::sleep(Duration::from_micros(rng.random_range(0..150_000)));
    lab.kill(ALICE);
    figures.kills += 1;
    putting.abort_all();
    lab.runtime()
        .block_on(async { while putting.join_next().await.is_some() {} });
    let mut new = Vec::new();
    for (statements, answer) in first
        .into_iter()
        .chain(std::iter::from_fn(|| acknowledged.blocking_recv()))
    {
        let taken = Answer::Taken {
            taken: statements.len() as u32,
            refused: 0,
        };
        match answer {
            Some(answer) if answer == taken => {
                new.extend(statements.iter().map(|one| (one.id(), one.key().release())));
            }
            _ => figures.cut_off += 1,
        }
    }
    new
}

/// What one peer puts, a list for each request.
fn requests(
    lab: &Lab,
    key: &ArtifactKey,
    next: &mut u64,
    rng: &mut StdRng,
) -> Vec<Vec<Arc<Statement>>> {
    let lists = (0..20).map(|_| {
        let count = rng.random_range(1..8);
        let statements = (0..count).map(|_| {
            *next += 1;
            Arc::new(statement(lab, key, *next))
        });
        statements.collect()
    });
    lists.collect()
}

/// Statements about releases of their own, so that each has a point of its own.
fn statement(lab: &Lab, key: &ArtifactKey, number: u64) -> Statement {
    let key = ArtifactKey {
        version: format!("1.0.{number}"),
        ..key.clone()
    };
    let archive = number.to_le_bytes();
    let subject = Subject {
        root: Root::of(&archive),
        sha256: Sha256::of(&archive),
        size: 8,
    };
    lab.observe(
        if number.is_multiple_of(2) { BOB } else { CAROL },
        &key,
        subject,
    )
}

fn look_up(
    lab: &Lab,
    network: NetworkId,
    statements: Vec<(StatementId, Release)>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let missing = lab.with_access(ALICE, async |access| {
        let mut missing = Vec::new();
        for (id, release) in &statements {
            let spec = FindSpec {
                network,
                release: release.clone(),
                offline: true,
            };
            let found = access.find(&spec).await?;
            if !found.held.iter().any(|held| held.statement.id() == *id) {
                missing.push(release.to_string());
            }
        }
        Ok::<_, Problem>(missing)
    })?;
    figures.looked_up += statements.len() as u64;
    ensure!(
        missing.is_empty(),
        "acknowledged and lost: {}",
        missing.join(", ")
    );
    Ok(())
}
