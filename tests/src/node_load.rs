//! `kill -9` of a whole node at random points, while statements are put to it over the network:
//! what it acknowledged is there when it runs again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ed25519_dalek::SigningKey;
use qk_node::access::{FindSpec, Problem};
use qk_protocol::hash::{NetworkId, Root, Sha256, StatementId};
use qk_protocol::key::{ArtifactKey, Release};
use qk_protocol::message::{Answer, Request};
use qk_protocol::statement::{Role, Statement, Subject};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::artifact;
use crate::lab::{ALICE, BOB, CAROL, Lab, observe};
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
    let source = Arc::new(Source::new(&lab));
    let mut held = BTreeMap::new();
    let mut figures = Figures::default();
    for round in 0..rounds {
        if rng.random_bool(0.15) && figures.start_max > Duration::ZERO {
            let most = figures.start_max.as_micros() as u64;
            lab.start_alice_and_kill(Duration::from_micros(rng.random_range(0..most)));
            figures.kills += 1;
            figures.kills_while_starting += 1;
        }
        let new = round_of(&mut lab, &source, &mut rng, &mut figures);
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
        look_up(&lab, source.network, looked_up.collect(), &mut figures)
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

/// Who states what, and what comes next.
#[derive(Debug)]
struct Source {
    network: NetworkId,
    key: ArtifactKey,
    signers: [SigningKey; 2],
    next: AtomicU64,
}

impl Source {
    fn new(lab: &Lab) -> Self {
        let network = lab.joined(ALICE).network;
        let wanted = artifact::wanted(&artifact::release().resolved);
        let signer = |name| lab.home(name).key("observer").expect("a key");
        Self {
            network: network.id(),
            key: wanted.candidates(&network.manifest().builds)[0].key(Sha256::of(b"a lock")),
            signers: [signer(BOB), signer(CAROL)],
            next: AtomicU64::new(0),
        }
    }

    /// Statements about releases of their own, so that each has a point of its own.
    fn statements(&self, count: u64) -> Vec<Arc<Statement>> {
        (0..count).map(|_| Arc::new(self.statement())).collect()
    }

    fn statement(&self) -> Statement {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let key = ArtifactKey {
            version: format!("1.0.{number}"),
            ..self.key.clone()
        };
        let archive = number.to_le_bytes();
        let subject = Subject {
            root: Root::of(&archive),
            sha256: Sha256::of(&archive),
            size: 8,
        };
        let signer = &self.signers[usize::from(number.is_multiple_of(2))];
        observe(self.network, Role::Verifier, &key, subject, signer)
    }
}

/// A request, and whether it was answered with "I hold all of this".
type Put = (Vec<Arc<Statement>>, bool);

/// Puts statements to the node at an address until it answers no more.
async fn put(
    source: Arc<Source>,
    address: String,
    mut rng: StdRng,
    done: mpsc::UnboundedSender<Put>,
) {
    let peer = Peer::start(source.network, None).await;
    loop {
        let statements = source.statements(rng.random_range(1..8));
        let taken = Answer::Taken {
            taken: statements.len() as u32,
            refused: 0,
        };
        let reply = peer.ask(&address, &Request::Put(statements.clone())).await;
        let held = reply.is_some_and(|reply| reply.answer == taken);
        if done.send((statements, held)).is_err() || !held {
            break;
        }
    }
    peer.net().shutdown().await;
}

/// Starts the node, has statements put to it and kills it meanwhile; returns what it acknowledged.
fn round_of(
    lab: &mut Lab,
    source: &Arc<Source>,
    rng: &mut StdRng,
    figures: &mut Figures,
) -> Vec<(StatementId, Release)> {
    start(lab, figures);
    let address = lab.addresses(ALICE)[0].clone();
    let (done, mut answers) = mpsc::unbounded_channel();
    let mut putting = JoinSet::new();
    for _ in 0..PEERS {
        let rng = StdRng::seed_from_u64(rng.random());
        let put = put(source.clone(), address.clone(), rng, done.clone());
        putting.spawn_on(put, lab.runtime().handle());
    }
    drop(done);
    // Not before the first answer, or many rounds would do nothing.
    let first = answers.blocking_recv();
    std::thread::sleep(Duration::from_micros(rng.random_range(0..150_000)));
    lab.kill(ALICE);
    figures.kills += 1;
    let mut new = Vec::new();
    for (statements, held) in first
        .into_iter()
        .chain(std::iter::from_fn(|| answers.blocking_recv()))
    {
        match held {
            true => new.extend(statements.iter().map(|one| (one.id(), one.key().release()))),
            false => figures.cut_off += 1,
        }
    }
    lab.runtime().block_on(putting.join_all());
    new
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
