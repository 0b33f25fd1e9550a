//! Floods: a node under attack from many addresses goes on serving those who are honest, and its
//! memory stays bounded.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use qk_node::net::{Keypair, Limits, protocol_name};
use qk_protocol::blocks::{self, Blob, BlockRange, Encoding, Ranges};
use qk_protocol::hash::{NetworkId, Point};
use qk_protocol::message::{Get, Request};
use qk_tests::alone::alone;
use qk_tests::artifact::{Options, SPEC, artifact_with, release};
use qk_tests::enemy::{Wire, connect, stuff};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, until};
use tokio::task::JoinSet;

/// Networks that the attacks come from, each a /24 of its own.
const PREFIXES: u8 = 24;
/// Connections that the attacks keep trying to have, from all of them.
const CONNECTIONS: usize = 600;
/// How soon an attacker tries again.
const AGAIN: Duration = Duration::from_millis(200);
/// The same of one that wants to hold a connection: with more of them nobody's handshake is ever done.
const HOLD_AGAIN: Duration = Duration::from_secs(1);
/// Honest fetches during each attack.
const FETCHES: usize = 3;
/// What a node's memory may grow by under all of this: see "Memory" in ARCHITECTURE.md.
const GROWTH_MAX_MIB: u64 = 256;

const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// What an attack knows, and what came of it.
#[derive(Debug)]
struct Target {
    address: SocketAddr,
    network: NetworkId,
    blob: Blob,
    /// For an attacker who is one node everywhere.
    identity: Keypair,
    /// What the attack tried, and what of it the node let it do.
    tried: AtomicUsize,
    done: AtomicUsize,
    /// Connections that the node lets it keep.
    held: AtomicUsize,
}

type Attack = fn(Arc<Target>, usize) -> futures::future::BoxFuture<'static, ()>;

/// Name, what one attacker does over and over, how many attackers there are.
const ATTACKS: [(&str, Attack, usize); 8] = [
    (
        "silent connections",
        |target, n| Box::pin(silent(target, n)),
        CONNECTIONS,
    ),
    (
        "idle connections",
        |target, n| Box::pin(idle(target, n)),
        CONNECTIONS,
    ),
    (
        "connections of one node",
        |target, n| Box::pin(same(target, n)),
        CONNECTIONS,
    ),
    (
        "stuffed streams",
        |target, n| Box::pin(stuffed(target, n)),
        200,
    ),
    ("requests", |target, n| Box::pin(requests(target, n)), 64),
    (
        "oversize frames",
        |target, n| Box::pin(oversize(target, n)),
        64,
    ),
    ("garbage", |target, n| Box::pin(garbage(target, n)), 64),
    ("slow readers", |target, n| Box::pin(slow(target, n)), 128),
];

#[test]
fn floods_do_not_keep_the_honest_out() {
    // Outside, where the registry is: the fetches below find it in cargo's files.
    release();
    let addresses: Vec<String> = (0..=PREFIXES)
        .map(|net| format!("198.18.{net}.1/24"))
        .collect();
    if !alone("enemies::floods_do_not_keep_the_honest_out", &addresses) {
        return;
    }
    let mut lab = Lab::on(NODE);
    lab.start_alice();
    let joined = lab.joined(ALICE);
    let options = Options {
        padding_bytes: 3_000_000,
        ..Options::default()
    };
    let artifact = artifact_with(&joined.network, &options);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let port = lab.addresses(ALICE)[0]
        .split('/')
        .nth(4)
        .unwrap()
        .parse()
        .unwrap();
    let (process, before) = (lab.process(ALICE), resident_mib(lab.process(ALICE)));
    for (name, attack, attackers) in ATTACKS {
        let target = Arc::new(Target {
            address: (NODE, port).into(),
            network: joined.network.id(),
            blob: Blob::new(artifact.subject.root, artifact.subject.size).unwrap(),
            identity: Keypair::generate_ed25519(),
            tried: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        });
        let mut attacking = JoinSet::new();
        for number in 0..attackers {
            let target = target.clone();
            attacking.spawn_on(
                async move {
                    loop {
                        target.tried.fetch_add(1, Ordering::SeqCst);
                        attack(target.clone(), number).await;
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                lab.runtime().handle(),
            );
        }
        until("the attack is under way", || {
            target.tried.load(Ordering::SeqCst) >= attackers
        });
        for _ in 0..FETCHES {
            // Who is honest may have to ask again, where all of this shares a loaded machine.
            let mut tries = 0;
            until("an honest fetch is served", || {
                tries += 1;
                let _ = fs::remove_dir_all(lab.home(CLIENT).store());
                let ran = lab.fetch(&[SPEC]);
                if ran.code() != 0 {
                    eprintln!("{name}: not served: {ran:?}");
                }
                ran.code() == 0
            });
            eprintln!("{name}: served after {tries} tries");
        }
        // With other identities it has more than one node may have.
        let of_one = 2 * Limits::server().per_peer_max;
        match name {
            "idle connections" => until("it holds many connections", || held(&target) > of_one),
            "connections of one node" => {
                until("it holds a connection", || held(&target) > 0);
                assert!(held(&target) <= of_one, "{} connections", held(&target));
            }
            _ => {}
        }
        let (done, now) = (target.done.load(Ordering::SeqCst), resident_mib(process));
        eprintln!("{name}: {done} times, {before} MiB before, {now} MiB now");
        assert!(
            now < before + GROWTH_MAX_MIB,
            "{name}: from {before} to {now} MiB"
        );
        lab.runtime().block_on(attacking.shutdown());
    }
}

/// Where attacker `number` sits.
fn seat(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 1 + (number % usize::from(PREFIXES)) as u8, 1)
}

/// Connects and says nothing.
async fn silent(target: Arc<Target>, number: usize) {
    let Ok(mut socket) = connect(seat(number), target.address).await else {
        return;
    };
    target.done.fetch_add(1, Ordering::SeqCst);
    // Until the node closes it.
    let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 1024]).await;
    let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 1024]).await;
}

/// Connects as a node does and then says nothing.
async fn idle(target: Arc<Target>, number: usize) {
    if let Ok(wire) = Wire::dial(seat(number), target.address).await {
        hold(&target, &wire).await;
    }
    tokio::time::sleep(HOLD_AGAIN).await;
}

/// The same, as one and the same node from everywhere.
async fn same(target: Arc<Target>, number: usize) {
    let dialled = Wire::dial_as(&target.identity, seat(number), target.address);
    if let Ok(wire) = dialled.await {
        hold(&target, &wire).await;
    }
    tokio::time::sleep(HOLD_AGAIN).await;
}

/// Keeps a connection for as long as the node does.
async fn hold(target: &Target, wire: &Wire) {
    target.done.fetch_add(1, Ordering::SeqCst);
    // Whoever is not let in has learnt that by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    if wire.stream().await.is_err() {
        return;
    }
    target.held.fetch_add(1, Ordering::SeqCst);
    while wire.stream().await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    target.held.fetch_sub(1, Ordering::SeqCst);
}

fn held(target: &Target) -> usize {
    target.held.load(Ordering::SeqCst)
}

/// Opens as many streams as it may, and sends on each what nobody reads.
async fn stuffed(target: Arc<Target>, number: usize) {
    let Ok(wire) = Wire::dial(seat(number), target.address).await else {
        return;
    };
    let mut streams = JoinSet::new();
    for _ in 0..32 {
        let Ok(mut stream) = wire.stream().await else {
            return;
        };
        streams.spawn(async move {
            stuff(&mut stream, 1 << 20).await;
            stream
        });
    }
    target.done.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// Asks as fast as it can.
async fn requests(target: Arc<Target>, number: usize) {
    let Ok(wire) = Wire::dial(seat(number), target.address).await else {
        return;
    };
    let index = protocol_name(&target.network, "index/1");
    let get = Request::Get(Get {
        point: Point([number as u8; 32]),
        bits: 8,
        observer: None,
        after: None,
    });
    let bytes = get.encode();
    while let Ok(mut stream) = wire.speak(index.as_ref()).await {
        let length = (bytes.len() as u32).to_be_bytes();
        let sent = stream.write_all(&[&length[..], &bytes].concat()).await;
        if sent.is_err() || stream.flush().await.is_err() {
            return;
        }
        target.done.fetch_add(1, Ordering::SeqCst);
        // Whether it was answered or not.
        let _ = stream.read(&mut [0; 64]).await;
    }
}

/// Announces four gigabytes and sends as much as is taken.
async fn oversize(target: Arc<Target>, number: usize) {
    let Ok(wire) = Wire::dial(seat(number), target.address).await else {
        return;
    };
    let index = protocol_name(&target.network, "index/1");
    for length in [u32::MAX, 1 << 20] {
        let Ok(mut stream) = wire.speak(index.as_ref()).await else {
            return;
        };
        let _ = stream.write_all(&length.to_be_bytes()).await;
        target.done.fetch_add(1, Ordering::SeqCst);
        // One byte less than announced, and then nothing.
        stuff(&mut stream, (1 << 20) - (16 << 10)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Sends what is no request, on the streams of both protocols.
async fn garbage(target: Arc<Target>, number: usize) {
    let Ok(wire) = Wire::dial(seat(number), target.address).await else {
        return;
    };
    for protocol in ["index/1", "blocks/1", "kad/1"] {
        let name = protocol_name(&target.network, protocol);
        let Ok(mut stream) = wire.speak(name.as_ref()).await else {
            return;
        };
        let garbage: Vec<u8> = (0..2000_usize).map(|i| (i * (number + 7)) as u8).collect();
        let _ = stream.write_all(&garbage).await;
        let _ = stream.flush().await;
        target.done.fetch_add(1, Ordering::SeqCst);
    }
}

/// Asks for a mebibyte on every lane that it gets, and reads next to nothing of it.
async fn slow(target: Arc<Target>, number: usize) {
    let Ok(wire) = Wire::dial(seat(number), target.address).await else {
        return;
    };
    let name = protocol_name(&target.network, "blocks/1");
    let request = blocks::Request {
        blob: target.blob,
        encoding: Encoding::Raw,
        ranges: Ranges::from(BlockRange::new(0, 64).unwrap()),
    };
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let Ok(mut lane) = wire.speak(name.as_ref()).await else {
            return;
        };
        let bytes = request.encode();
        let _ = lane.write_all(&bytes).await;
        let _ = lane.flush().await;
        lanes.push(lane);
    }
    target.done.fetch_add(1, Ordering::SeqCst);
    for _ in 0..20 {
        for lane in &mut lanes {
            let mut some = [0; 1024];
            let read = lane.read(&mut some);
            let _ = tokio::time::timeout(Duration::from_millis(100), read).await;
        }
    }
}

/// The memory of a process that is in use now, in MiB.
fn resident_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib >> 10
}
