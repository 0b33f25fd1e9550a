//! The simulator's routing tables against those of real libp2p-kad nodes: the same identities and keys, the
//! twenty nearest that a look-up ends with, and how many steps it takes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::transport::{MemoryTransport, Transport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryId, QueryResult};
use libp2p::swarm::{Config, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, identify, yamux};
use qk_node::net::noise::Noise;
use qk_protocol::hash::{Point, Sha256};
use qk_simulator::routing::{BUCKET, Presence, Routing};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot};

/// Real nodes: enough that the farthest buckets have more candidates than places.
const NODES: usize = 120;
/// Keys that are looked up.
const KEYS: usize = 24;
/// How long one look-up of kad's may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
}

/// What a node is asked to do.
enum Command {
    /// Take another one into the table.
    Meet(PeerId, Multiaddr),
    /// Look up everything around itself, and then around random places.
    Bootstrap(oneshot::Sender<()>),
    /// Everybody in the table.
    Table(oneshot::Sender<Vec<PeerId>>),
    /// The nodes nearest to a key, by kad's own look-up.
    LookUp(Vec<u8>, oneshot::Sender<Vec<PeerId>>),
}

struct Node {
    peer: PeerId,
    address: Multiaddr,
    commands: mpsc::Sender<Command>,
}

impl Node {
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.expect("it runs");
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.expect("it answers in time").expect("it answers")
    }

    fn start(number: usize) -> Self {
        let identity = Keypair::generate_ed25519();
        let peer = identity.public().to_peer_id();
        let noise = Noise::new(&identity).expect("a key of its own");
        let transport = MemoryTransport::default()
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(yamux::Config::default())
            .boxed();
        let protocol = StreamProtocol::new("/qk/test/kad/1");
        let mut config = kad::Config::new(protocol);
        config.set_periodic_bootstrap_interval(None);
        let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
        kad.set_mode(Some(kad::Mode::Server));
        let identify = identify::Config::new("/qk/test/1".to_owned(), identity.public());
        let behaviour = Behaviour {
            kad,
            identify: identify::Behaviour::new(identify),
        };
        let idle =
            Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(5));
        let mut swarm = Swarm::new(transport, behaviour, peer, idle);
        let address: Multiaddr = format!("/memory/{}", 7_000_000 + number).parse().unwrap();
        swarm.listen_on(address.clone()).unwrap();
        let (commands, waiting) = mpsc::channel(4);
        tokio::spawn(run(swarm, waiting));
        Self {
            peer,
            address,
            commands,
        }
    }
}

async fn run(mut swarm: Swarm<Behaviour>, mut commands: mpsc::Receiver<Command>) {
    let mut bootstrapping: Option<(QueryId, oneshot::Sender<()>)> = None;
    let mut looking: Option<(QueryId, oneshot::Sender<Vec<PeerId>>)> = None;
    loop {
        let event = tokio::select! {
            command = commands.recv() => {
                let kad = &mut swarm.behaviour_mut().kad;
                match command {
                    None => return,
                    Some(Command::Meet(peer, address)) => {
                        kad.add_address(&peer, address);
                    }
                    Some(Command::Bootstrap(reply)) => {
                        bootstrapping = Some((kad.bootstrap().expect("it knows somebody"), reply));
                    }
                    Some(Command::Table(reply)) => {
                        let table = kad.kbuckets().flat_map(|bucket| {
                            let peers = bucket.iter().map(|entry| *entry.node.key.preimage());
                            peers.collect::<Vec<_>>()
                        });
                        let _ = reply.send(table.collect());
                    }
                    Some(Command::LookUp(key, reply)) => {
                        looking = Some((kad.get_closest_peers(key), reply));
                    }
                }
                continue;
            }
            event = swarm.select_next_some() => event,
        };
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                for address in info.listen_addrs {
                    swarm.behaviour_mut().kad.add_address(&peer_id, address);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result,
                step,
                ..
            })) => match result {
                QueryResult::Bootstrap(_) if step.last => {
                    if let Some((_, reply)) = bootstrapping.take_if(|(of, _)| *of == id) {
                        let _ = reply.send(());
                    }
                }
                QueryResult::GetClosestPeers(found) => {
                    if let Some((_, reply)) = looking.take_if(|(of, _)| *of == id) {
                        let peers = match found {
                            Ok(found) => found.peers,
                            Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                        };
                        let _ = reply.send(peers.into_iter().map(|one| one.peer_id).collect());
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

struct Always;

impl Presence for Always {
    fn was_there(&self, _: u32, _: u64) -> bool {
        true
    }
}

fn point(peer: &PeerId) -> Point {
    Point(Sha256::of(&peer.to_bytes()).0)
}

/// A look-up over tables: asks the nearest three that it knows and has not asked, until the twenty nearest
/// have answered. Returns these, and over how many nodes the nearest became known.
fn walk(
    from: u32,
    target: &Point,
    points: &[Point],
    closest: &dyn Fn(u32, &Point) -> Vec<u32>,
) -> (BTreeSet<u32>, usize) {
    let distance = |node: &u32| points[*node as usize].distance(target);
    let mut known: Vec<(u32, usize)> = closest(from, target)
        .into_iter()
        .map(|one| (one, 1))
        .collect();
    let mut asked = BTreeSet::from([from]);
    loop {
        known.sort_by_key(|(node, _)| distance(node));
        let next: Vec<(u32, usize)> = known
            .iter()
            .take(BUCKET)
            .filter(|(node, _)| !asked.contains(node))
            .take(3)
            .copied()
            .collect();
        if next.is_empty() {
            let nearest = known.iter().take(BUCKET).map(|(node, _)| *node);
            return (nearest.collect(), known[0].1);
        }
        for (node, hops) in next {
            asked.insert(node);
            for one in closest(node, target) {
                if one != from && known.iter().all(|(other, _)| *other != one) {
                    known.push((one, hops + 1));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modelled_tables_lead_where_real_ones_lead() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..NODES {
        let node = Node::start(number);
        if number > 0 {
            for _ in 0..2 {
                let other = &nodes[rng.random_range(0..nodes.len())];
                let meet = Command::Meet(other.peer, other.address.clone());
                node.commands.send(meet).await.expect("it runs");
            }
            node.ask(Command::Bootstrap).await;
        }
        nodes.push(node);
    }
    // As every node does hourly.
    for node in &nodes {
        node.ask(Command::Bootstrap).await;
    }
    let points: Vec<Point> = nodes.iter().map(|node| point(&node.peer)).collect();
    let number = |peer: &PeerId| {
        nodes
            .iter()
            .position(|node| node.peer == *peer)
            .expect("one of them")
    };
    let mut tables: Vec<Vec<u32>> = Vec::new();
    for node in &nodes {
        let table = node.ask(Command::Table).await;
        tables.push(table.iter().map(|peer| number(peer) as u32).collect());
    }
    let routing = Routing::new(points.iter().enumerate().map(|(at, one)| (at as u32, one)));
    let modelled = |from: u32, target: &Point| {
        let own = (from, &points[from as usize]);
        routing.closest(own, target, BUCKET, (0, 0), &Always)
    };
    let real = |from: u32, target: &Point| {
        let mut table = tables[from as usize].clone();
        table.sort_by_key(|one| points[*one as usize].distance(target));
        table.truncate(BUCKET);
        table
    };
    // Tables are as large, and near their owners the same.
    let mut sizes = (0, 0);
    let mut neighbours = 0;
    for (from, table) in (0_u32..).zip(&tables) {
        let own = points[from as usize];
        let model: BTreeSet<u32> = (0..256_u16)
            .flat_map(|bit| {
                let mut target = own;
                target.0[usize::from(bit / 8)] ^= 0x80 >> (bit % 8);
                modelled(from, &target)
            })
            .collect();
        sizes = (sizes.0 + table.len(), sizes.1 + model.len());
        let (real, modelled) = (real(from, &own), modelled(from, &own));
        neighbours += real.iter().filter(|one| modelled.contains(one)).count();
    }
    let (real_size, model_size) = (sizes.0 as f64 / NODES as f64, sizes.1 as f64 / NODES as f64);
    let neighbours = neighbours as f64 / (NODES * BUCKET) as f64;
    // Look-ups of the same keys from the same nodes.
    let (mut by_kad, mut by_model, mut hops) = (0, 0, (0, 0));
    for key in 0..KEYS {
        let from = rng.random_range(0..NODES);
        let preimage = format!("key {key}").into_bytes();
        let target = Point(Sha256::of(&preimage).0);
        let mut truth: Vec<u32> = (0..NODES as u32)
            .filter(|one| *one as usize != from)
            .collect();
        truth.sort_by_key(|one| points[*one as usize].distance(&target));
        truth.truncate(BUCKET);
        let found = nodes[from]
            .ask(|reply| Command::LookUp(preimage, reply))
            .await;
        by_kad += found
            .iter()
            .filter(|peer| truth.contains(&(number(peer) as u32)))
            .count();
        let (found, modelled_hops) = walk(from as u32, &target, &points, &modelled);
        by_model += truth.iter().filter(|one| found.contains(one)).count();
        let (_, real_hops) = walk(from as u32, &target, &points, &real);
        hops = (hops.0 + real_hops, hops.1 + modelled_hops);
    }
    let share = |found: usize| found as f64 / (KEYS * BUCKET) as f64;
    let hops = (hops.0 as f64 / KEYS as f64, hops.1 as f64 / KEYS as f64);
    println!(
        "table {real_size:.1} real, {model_size:.1} modelled; neighbours alike {neighbours:.3}"
    );
    println!(
        "nearest found {:.3} by kad, {:.3} by the model",
        share(by_kad),
        share(by_model)
    );
    println!(
        "hops {:.2} over real tables, {:.2} over modelled ones",
        hops.0, hops.1
    );
    assert!(
        (real_size / model_size - 1.0).abs() < 0.2,
        "{real_size} against {model_size}"
    );
    assert!(neighbours > 0.9, "{neighbours}");
    assert!(share(by_kad) > 0.95 && share(by_model) > 0.95);
    assert!((hops.0 - hops.1).abs() < 0.5, "{hops:?}");
}
