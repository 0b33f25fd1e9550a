//! Real swarms on loopback, in one process.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use libp2p::futures::future::{join_all, pending};
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::request_response;
use libp2p::swarm::SwarmEvent;

use qk_protocol::blocks::{self, Blob, BlockRange, Encoding};
use qk_protocol::hash::Root;

use super::*;
use crate::blocks::lane::PullError;

const NETWORK: NetworkId = NetworkId([7; 32]);
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const SECOND: Duration = Duration::from_secs(1);
/// Longer than any of these tests should wait.
const LONG: Duration = Duration::from_secs(20);

fn config(listen: &[&str]) -> NetConfig {
    NetConfig {
        identity: Keypair::generate_ed25519(),
        network: NETWORK,
        listen: listen.iter().map(|text| text.parse().unwrap()).collect(),
        external: Vec::new(),
        bootstrap: Vec::new(),
        server: true,
        nat: NatConfig::default(),
        lan: None,
        pre_shared: None,
        quic: true,
        allow_private: true,
        limits: Limits::server(),
    }
}

/// Answers with the request, a mark before it.
async fn echo(_: PeerId, _: Multiaddr, request: Vec<u8>) -> Vec<u8> {
    [b"echo ".as_slice(), &request].concat()
}

async fn node(config: NetConfig) -> Net {
    Net::start(config, echo, None).await.unwrap()
}

async fn contact(net: &Net) -> Contact {
    Contact {
        peer: net.local_peer(),
        addrs: net.listen_addrs().await.unwrap(),
    }
}

/// Waits until `check` holds; the caller's assertion comes after.
async fn until<F: Future<Output = bool>>(check: impl Fn() -> F) {
    let start = Instant::now();
    while !check().await && start.elapsed() < LONG {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn asks_over_tcp_and_quic() {
    for listen in [TCP, QUIC] {
        let server = node(config(&[listen])).await;
        let client = node(config(&[])).await;
        let there = contact(&server).await;
        for _ in 0..3 {
            let reply = client.ask(there.clone(), b"hello".to_vec(), LONG).await;
            assert_eq!(reply, Ok(b"echo hello".to_vec()), "{listen}");
        }
        let peers = client.peers().await.unwrap();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].connections.len(), 1);
        assert!(peers[0].connections[0].dialled);
        let transport = if listen == TCP { "tcp" } else { "quic" };
        assert_eq!(peers[0].connections[0].transport, transport);
        let mirrored = server.peers().await.unwrap();
        assert!(!mirrored[0].connections[0].dialled);
        client.shutdown().await;
        until(|| async { server.peers().await.unwrap().is_empty() }).await;
        assert!(server.peers().await.unwrap().is_empty());
        let ended = client.ask(there, Vec::new(), LONG).await;
        assert_eq!(ended, Err(AskError::Ended));
    }
}

#[tokio::test]
async fn identify_names_the_program() {
    let server = node(config(&[TCP])).await;
    let client = node(config(&[])).await;
    client.connect(contact(&server).await, LONG).await.unwrap();
    until(|| async {
        let peers = client.peers().await.unwrap();
        peers
            .first()
            .is_some_and(|peer| peer.server && peer.rtt.is_some())
    })
    .await;
    let peer = &client.peers().await.unwrap()[0];
    assert_eq!(peer.agent, concat!("qk/", env!("CARGO_PKG_VERSION")));
    assert!(peer.server);
}

#[tokio::test]
async fn messages_of_exactly_the_bound_pass_and_longer_ones_do_not() {
    let reply_bytes = Arc::new(AtomicUsize::new(REPLY_BYTES_MAX));
    let asked = reply_bytes.clone();
    let server = Net::start(
        config(&[TCP]),
        move |_, _, _| {
            let reply = vec![1; asked.load(Ordering::SeqCst)];
            async move { reply }
        },
        None,
    )
    .await
    .unwrap();
    let client = node(config(&[])).await;
    let there = contact(&server).await;
    let request = vec![0; REQUEST_BYTES_MAX];
    let reply = client.ask(there.clone(), request, LONG).await.unwrap();
    assert_eq!(reply.len(), REPLY_BYTES_MAX);

    let request = vec![0; REQUEST_BYTES_MAX + 1];
    assert_eq!(
        client.ask(there.clone(), request, LONG).await,
        Err(AskError::TooLong {
            bytes: REQUEST_BYTES_MAX + 1
        })
    );
    reply_bytes.store(REPLY_BYTES_MAX + 1, Ordering::SeqCst);
    assert_eq!(
        client.ask(there.clone(), vec![1], LONG).await,
        Err(AskError::Refused)
    );
}

#[tokio::test]
async fn a_silent_peer_meets_our_deadline() {
    let server = Net::start(config(&[TCP]), |_, _, _| pending(), None)
        .await
        .unwrap();
    let client = node(config(&[])).await;
    let there = contact(&server).await;
    let start = Instant::now();
    let reply = client
        .ask(there, b"hello".to_vec(), Duration::from_millis(200))
        .await;
    assert_eq!(reply, Err(AskError::TimedOut));
    assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_address_that_does_not_answer_frees_its_place() {
    // A listener that accepts and says nothing: the dial hangs in the handshake.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut limited = config(&[]);
    limited.limits.pending_out_max = 1;
    let client = node(limited).await;
    let nobody = Contact {
        peer: PeerId::random(),
        addrs: vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()],
    };
    let reply = client
        .ask(nobody, vec![1], Duration::from_millis(100))
        .await;
    assert_eq!(reply, Err(AskError::TimedOut));

    let server = node(config(&[TCP])).await;
    let there = contact(&server).await;
    let reply = client.ask(there, b"hello".to_vec(), LONG).await;
    assert_eq!(reply, Ok(b"echo hello".to_vec()));
}

#[tokio::test]
async fn failures_say_what_they_are() {
    let client = node(config(&[TCP])).await;
    let peer = PeerId::random();
    let addrs = Vec::new();
    let nowhere = client.ask(Contact { peer, addrs }, vec![1], LONG).await;
    assert_eq!(nowhere, Err(AskError::NoAddress));
    let oneself = client.ask(contact(&client).await, vec![1], LONG).await;
    assert_eq!(oneself, Err(AskError::Oneself));

    // The address is another node's than the one named.
    let server = node(config(&[TCP])).await;
    let addrs = server.listen_addrs().await.unwrap();
    let wrong = client.ask(Contact { peer, addrs }, vec![1], LONG).await;
    assert!(matches!(wrong, Err(AskError::Dial(_))), "{wrong:?}");

    let mut foreign = config(&[TCP]);
    foreign.network = NetworkId([8; 32]);
    let foreign = node(foreign).await;
    let there = contact(&foreign).await;
    let other = client.ask(there, vec![1], LONG).await;
    assert_eq!(other, Err(AskError::OtherNetwork));
    assert!(client.contacts().await.unwrap().is_empty());
}

/// What is greeted at an address where nobody answers is asked at another one all the same.
#[tokio::test]
async fn a_greeting_in_vain_holds_nobody_up() {
    // It accepts connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let server = node(config(&[TCP])).await;
    let there = contact(&server).await;
    let mut greeting = config(&[]);
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    greeting.bootstrap = vec![address.with_p2p(there.peer).unwrap()];
    let client = node(greeting).await;
    let (_held, _) = silent.accept().await.unwrap();
    let reply = client
        .ask(there, b"x".to_vec(), limits::HANDSHAKE_TIME_MAX / 2)
        .await;
    assert_eq!(reply, Ok(b"echo x".to_vec()));
}

#[tokio::test]
async fn strangers_addresses_are_not_dialled_unless_named() {
    let server = node(config(&[TCP])).await;
    let mut public = config(&[]);
    public.allow_private = false;
    let client = node(public).await;
    let there = contact(&server).await;
    let reply = client.ask(there.clone(), vec![1], LONG).await;
    assert!(matches!(reply, Err(AskError::Dial(_))), "{reply:?}");
    assert!(server.peers().await.unwrap().is_empty());

    let address = there.addrs[0].clone().with_p2p(there.peer).unwrap();
    let named = client.name(&address).unwrap();
    assert_eq!(
        client.ask(named, b"x".to_vec(), LONG).await,
        Ok(b"echo x".to_vec())
    );
}

/// A server that lets `max` connections in, and four clients that each want one.
async fn four_clients(max: usize) -> (Net, Vec<Net>, usize) {
    let mut limited = config(&[TCP]);
    limited.limits.established_in_max = max;
    let server = node(limited).await;
    let there = contact(&server).await;
    let mut clients = Vec::new();
    let mut answered = 0;
    for _ in 0..4 {
        let client = node(config(&[])).await;
        let reply = client.ask(there.clone(), vec![1], 5 * SECOND).await;
        answered += usize::from(reply.is_ok());
        clients.push(client);
    }
    (server, clients, answered)
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let (_, _, answered) = four_clients(100).await;
    assert_eq!(answered, 4, "all come in where the limit is high");
    let (server, clients, answered) = four_clients(2).await;
    let there = contact(&server).await;
    assert_eq!(answered, 2);
    assert_eq!(server.peers().await.unwrap().len(), 2);

    // Places that become free are given again.
    clients[0].shutdown().await;
    until(|| async { server.peers().await.unwrap().len() < 2 }).await;
    let client = node(config(&[])).await;
    assert!(client.ask(there, vec![1], LONG).await.is_ok());
}

#[tokio::test]
async fn whoever_was_not_heard_of_for_longest_makes_room() {
    let mut limited = config(&[TCP]);
    limited.limits.established_in_max = 8;
    let crowded = limited.limits.crowded_in();
    assert_eq!(crowded, 7);
    let server = node(limited).await;
    let there = contact(&server).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        let client = node(config(&[])).await;
        let reply = client.ask(there.clone(), vec![1], LONG).await;
        assert!(reply.is_ok(), "client {}: {reply:?}", clients.len());
        clients.push(client);
        until(|| async { server.peers().await.unwrap().len() <= crowded }).await;
    }
    // The last ones are there still.
    let peers = server.peers().await.unwrap();
    let last = clients[11].local_peer();
    assert!(peers.iter().any(|one| one.peer == last));
    assert!(!peers.iter().any(|one| one.peer == clients[0].local_peer()));
}

#[tokio::test]
async fn inbound_connections_are_closed_when_memory_is_short() {
    for (memory_bytes_max, stays) in [(u64::MAX, true), (1, false)] {
        let mut config = config(&[TCP]);
        config.limits.memory_bytes_max = memory_bytes_max;
        let server = node(config).await;
        let client = node(self::config(&[])).await;
        let there = contact(&server).await;
        client.connect(there.clone(), LONG).await.unwrap();
        let _kept = client.keep(there.peer);
        if stays {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(server.peers().await.unwrap().len(), 1);
        } else {
            until(|| async { server.peers().await.unwrap().is_empty() }).await;
            until(|| async { client.peers().await.unwrap().is_empty() }).await;
        }
    }
}

#[tokio::test]
async fn a_banned_peer_is_cut_off_in_both_directions() {
    let server = node(config(&[TCP])).await;
    let client = node(config(&[TCP])).await;
    let there = contact(&server).await;
    assert!(client.ask(there.clone(), vec![1], LONG).await.is_ok());
    server
        .ban(client.local_peer(), "sent nonsense")
        .await
        .unwrap();
    until(|| async { client.peers().await.unwrap().is_empty() }).await;
    assert!(client.ask(there, vec![1], 2 * SECOND).await.is_err());
    let back = server.ask(contact(&client).await, vec![1], LONG).await;
    let why = "sent nonsense".to_owned();
    assert_eq!(back, Err(AskError::Banned { why }));
    assert_eq!(server.bans().await.unwrap()[0].peer, client.local_peer());
}

/// How many of ten requests in a row are served where `burst` of them may come at once.
async fn served_of_ten(burst: f64) -> (Contact, usize, Net) {
    let mut limited = config(&[TCP]);
    limited.limits.requests_per_second = 0.001;
    limited.limits.requests_burst = burst;
    let server = node(limited).await;
    let there = contact(&server).await;
    let client = node(config(&[])).await;
    let mut served = 0;
    for _ in 0..10 {
        match client.ask(there.clone(), vec![1], LONG).await {
            Ok(_) => served += 1,
            Err(error) => assert_eq!(error, AskError::Refused),
        }
    }
    (there, served, server)
}

#[tokio::test]
async fn requests_over_the_rate_are_refused() {
    assert_eq!(served_of_ten(100.0).await.1, 10);
    let (there, served, _server) = served_of_ten(5.0).await;
    assert_eq!(served, 5);
    let other = node(config(&[])).await;
    assert!(other.ask(there, vec![1], LONG).await.is_ok());
}

#[tokio::test]
async fn only_so_many_requests_are_answered_at_once() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let mut limited = config(&[TCP]);
    limited.limits.answering_per_peer_max = 3;
    let counted = (running.clone(), most.clone());
    let server = Net::start(
        limited,
        move |_, _, _| {
            let (running, most) = counted.clone();
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(300)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                vec![1]
            }
        },
        None,
    )
    .await
    .unwrap();
    let there = contact(&server).await;
    let client = node(config(&[])).await;
    let replies = join_all((0..10).map(|_| client.ask(there.clone(), vec![1], LONG))).await;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 3);
    assert!(replies.contains(&Err(AskError::Refused)));
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_handler_that_panics_harms_nobody() {
    let server = Net::start(
        config(&[TCP]),
        |_, _, request: Vec<u8>| {
            assert_ne!(request, b"panic");
            async { vec![1] }
        },
        None,
    )
    .await
    .unwrap();
    let there = contact(&server).await;
    let client = node(config(&[])).await;
    let panicked = client.ask(there.clone(), b"panic".to_vec(), LONG).await;
    assert_eq!(panicked, Err(AskError::Refused));
    assert_eq!(client.ask(there, b"fine".to_vec(), LONG).await, Ok(vec![1]));
}

#[tokio::test]
async fn garbage_on_the_wire_does_nothing() {
    let server = node(config(&[TCP])).await;
    let there = contact(&server).await;
    let text = there.addrs[0].to_string();
    let port = text.rsplit('/').next().unwrap().to_owned();
    let garbage = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        for number in 0..20_u8 {
            let mut socket = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
            // A server that hangs up at once is fine too.
            let _ = match number % 3 {
                0 => socket.write_all(&[number; 70_000]),
                1 => socket
                    .write_all(b"\x13/multistream/1.0.0\n\x10/qk/noise-aes/1\n\x01\xff\xff\xff"),
                _ => socket.write_all(b"GET / HTTP/1.1\r\n\r\n"),
            };
            open.push(socket);
        }
        open
    })
    .await
    .unwrap();
    let client = node(config(&[])).await;
    assert!(client.ask(there, vec![1], LONG).await.is_ok());
    assert_eq!(server.peers().await.unwrap().len(), 1);
    drop(garbage);
}

/// Twenty-four nodes know one bootstrap node each; their tables fill, and every table names the
/// nodes nearest to a point as a sorted list of all nodes does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closest_agrees_with_brute_force() {
    let first = node(config(&[TCP])).await;
    let seed = contact(&first).await;
    let mut nodes = vec![first];
    for _ in 1..24 {
        let mut joining = config(&[TCP]);
        joining.bootstrap = vec![seed.addrs[0].clone().with_p2p(seed.peer).unwrap()];
        nodes.push(node(joining).await);
    }
    let nodes = &nodes;
    // kad holds 20 nodes a bucket: half of the others share the farthest one.
    let known = || async {
        let tables = join_all(nodes.iter().map(|net| net.contacts())).await;
        tables
            .iter()
            .all(|table| table.as_ref().unwrap().len() == nodes.len() - 1)
    };
    until(known).await;
    for (number, net) in nodes.iter().enumerate() {
        let point = qk_protocol::hash::Location([number as u8; 32]).point();
        let mut all: Vec<PeerId> = nodes.iter().map(Net::local_peer).collect();
        all.retain(|peer| *peer != net.local_peer());
        all.sort_by_key(|peer| point_of(peer).distance(&point));
        let near = net.closest(point, 5).await.unwrap();
        let near: Vec<PeerId> = near.into_iter().map(|contact| contact.peer).collect();
        assert_eq!(near, all[..5], "node {number}");
    }
}

#[tokio::test]
async fn a_node_that_is_gone_leaves_the_table() {
    let server = node(config(&[TCP])).await;
    let client = node(config(&[TCP])).await;
    let there = contact(&server).await;
    let mut events = client.events();
    client.connect(there.clone(), LONG).await.unwrap();
    until(|| async { !client.contacts().await.unwrap().is_empty() }).await;
    assert!(
        matches!(events.recv().await, Ok(Event::Routed(contact)) if contact.peer == there.peer)
    );
    server.shutdown().await;
    until(|| async { client.peers().await.unwrap().is_empty() }).await;
    for _ in 0..2 {
        let reply = client.ask(there.clone(), vec![1], LONG).await;
        assert!(matches!(reply, Err(AskError::Dial(_))), "{reply:?}");
    }
    until(|| async { client.contacts().await.unwrap().is_empty() }).await;
    assert!(client.contacts().await.unwrap().is_empty());
    assert_eq!(events.recv().await, Ok(Event::Forgotten(there.peer)));
}

#[tokio::test]
async fn clients_do_not_enter_the_table() {
    let server = node(config(&[TCP])).await;
    let mut client = config(&[TCP]);
    client.server = false;
    let client = node(client).await;
    client.connect(contact(&server).await, LONG).await.unwrap();
    until(|| async { !client.contacts().await.unwrap().is_empty() }).await;
    until(|| async {
        server
            .peers()
            .await
            .unwrap()
            .iter()
            .any(|peer| !peer.agent.is_empty())
    })
    .await;
    assert_eq!(client.contacts().await.unwrap().len(), 1);
    assert!(server.contacts().await.unwrap().is_empty());
}

#[tokio::test]
async fn nodes_find_each_other_on_the_lan() {
    let on_lan = |role| NetConfig {
        lan: Some(role),
        ..config(&[TCP, QUIC])
    };
    let cache = node(on_lan(LanRole::Cache)).await;
    let other = node(on_lan(LanRole::Node)).await;
    let mut foreign = on_lan(LanRole::Node);
    foreign.network = NetworkId([8; 32]);
    let foreign = node(foreign).await;
    let found = |net: &Net| {
        let net = net.clone();
        async move { net.lan().await.unwrap() }
    };
    until(|| async { !found(&other).await.is_empty() && !found(&cache).await.is_empty() }).await;
    let there = &found(&other).await[0];
    assert_eq!(there.role, LanRole::Cache);
    assert_eq!(there.contact.peer, cache.local_peer());
    let reply = other.ask(there.contact.clone(), b"x".to_vec(), LONG).await;
    assert_eq!(reply, Ok(b"echo x".to_vec()));
    assert!(found(&foreign).await.is_empty());
}

#[tokio::test]
async fn a_private_network_is_closed_to_those_without_its_key() {
    let with_key = |byte| NetConfig {
        pre_shared: Some(PreSharedKey::new([byte; 32])),
        ..config(&[TCP])
    };
    let server = node(with_key(1)).await;
    let there = contact(&server).await;
    let member = node(with_key(1)).await;
    assert!(member.ask(there.clone(), vec![1], LONG).await.is_ok());
    for outsider in [with_key(2), config(&[TCP])] {
        let outsider = node(outsider).await;
        let reply = outsider.ask(there.clone(), vec![1], SECOND / 2).await;
        assert!(reply.is_err());
    }
    assert_eq!(server.peers().await.unwrap().len(), 1);
    // QUIC would go around the key.
    let quic = NetConfig {
        listen: vec![QUIC.parse().unwrap()],
        ..with_key(1)
    };
    let started = Net::start(quic, echo, None).await;
    assert!(matches!(started, Err(StartError::Listen { .. })));
}

#[tokio::test]
async fn a_look_up_reaches_more_nodes_than_there_are_places() {
    let mut small = config(&[]);
    small.limits.established_out_max = 3;
    let client = node(small).await;
    let servers = join_all((0..8).map(|_| node(config(&[TCP])))).await;
    let kept = contact(&servers[0]).await;
    client.connect(kept.clone(), LONG).await.unwrap();
    let mark = client.keep(kept.peer);
    for server in &servers[1..] {
        let there = contact(server).await;
        assert!(client.ask(there, vec![1], LONG).await.is_ok());
    }
    let peers = client.peers().await.unwrap();
    assert!(peers.len() <= 3);
    assert!(peers.iter().any(|peer| peer.peer == kept.peer), "in use");
    drop(mark);
}

#[tokio::test]
async fn lanes_go_over_the_connections_of_the_node() {
    let (opened, mut lanes) = mpsc::unbounded_channel();
    let on_lane: OnLane = Arc::new(move |peer, stream| {
        let _ = opened.send((peer, stream));
    });
    let server = Net::start(config(&[TCP]), echo, Some(on_lane))
        .await
        .unwrap();
    let client = node(config(&[])).await;
    let there = contact(&server).await;
    let unconnected = client.lanes().open(there.peer, LONG).await;
    assert!(unconnected.is_err(), "lanes dial nobody");
    client.connect(there.clone(), LONG).await.unwrap();
    let blob = Blob::new(Root([1; 32]), 1).unwrap();
    let request = blocks::Request {
        ranges: BlockRange::new(0, 1).unwrap().into(),
        blob,
        encoding: Encoding::Raw,
    };
    // Which protocol a lane speaks goes with the first request.
    let mut lane = client.lanes().open(there.peer, LONG).await.unwrap();
    lane.ask(&request).await.unwrap();
    let (reader, _) = lanes.recv().await.unwrap();
    assert_eq!(reader.peer, client.local_peer());
    // The client offers no blocks itself.
    let mut back = server
        .lanes()
        .open(client.local_peer(), LONG)
        .await
        .unwrap();
    let answer = back.pull(&request).await;
    assert!(matches!(answer, Err(PullError::Io(_))), "{answer:?}");
}

/// A peer with a swarm of its own and no regard for limits. It sends `bytes` as a request, as they
/// are, and returns what it gets back.
async fn hostile(server: &Contact, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let keypair = Keypair::generate_ed25519();
    let rules = AddressRules {
        allow_private: true,
        quic: false,
    };
    let transport = transport::build(&keypair, None, None, Arc::new(Permits::new(rules))).unwrap();
    let index = Protocols::of(&NETWORK).index;
    let full = libp2p::request_response::ProtocolSupport::Full;
    let behaviour =
        request_response::Behaviour::with_codec(Raw, [(index, full)], Default::default());
    let local = keypair.public().to_peer_id();
    let settings = libp2p::swarm::Config::with_tokio_executor();
    let mut swarm = Swarm::new(transport, behaviour, local, settings);
    swarm
        .behaviour_mut()
        .send_request_with_addresses(&server.peer, bytes, server.addrs.clone());
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            }) => return Ok(response),
            SwarmEvent::Behaviour(request_response::Event::OutboundFailure { error, .. }) => {
                return Err(error.to_string());
            }
            _ => {}
        }
    }
}

/// Writes and reads bytes without a frame.
#[derive(Clone)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = libp2p::StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &Self::Protocol, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Err(io::Error::other("it only asks"))
    }

    async fn read_response<T>(&mut self, _: &Self::Protocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn write_request<T>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(
        &mut self,
        _: &Self::Protocol,
        _: &mut T,
        _: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Err(io::Error::other("it only asks"))
    }
}

#[tokio::test]
async fn an_oversize_request_never_reaches_the_handler() {
    let longest = Arc::new(AtomicUsize::new(0));
    let seen = longest.clone();
    let server = Net::start(
        config(&[TCP]),
        move |_, _, request| {
            seen.fetch_max(request.len(), Ordering::SeqCst);
            async { vec![1] }
        },
        None,
    )
    .await
    .unwrap();
    let there = contact(&server).await;
    let framed = |length: usize, sent: usize| {
        let mut bytes = (length as u32).to_be_bytes().to_vec();
        bytes.resize(4 + sent, 7);
        bytes
    };
    let served = Ok(vec![0, 0, 0, 1, 1]);
    let max = REQUEST_BYTES_MAX;
    assert_eq!(hostile(&there, framed(max, max)).await, served);
    assert_ne!(hostile(&there, framed(max + 1, max + 1)).await, served);
    assert_ne!(
        hostile(&there, framed(u32::MAX as usize, 100)).await,
        served
    );
    assert_ne!(hostile(&there, framed(100, 99)).await, served);
    assert_ne!(hostile(&there, vec![0, 0]).await, served);
    assert_eq!(longest.load(Ordering::SeqCst), max);
    assert_eq!(hostile(&there, framed(3, 3)).await, served, "still there");
}

#[tokio::test]
async fn listening_twice_on_one_port_is_an_error() {
    let server = node(config(&[TCP])).await;
    let taken = server.listen_addrs().await.unwrap().remove(0);
    let started = Net::start(config(&[&taken.to_string()]), echo, None).await;
    assert!(matches!(started, Err(StartError::Listen { .. })));
}

/// Not a check, a measurement: `cargo test -p qk-node --lib net:: -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and machines differ"]
async fn latency_of_a_cold_ask() {
    for listen in [TCP, QUIC] {
        let server = node(config(&[listen])).await;
        let there = contact(&server).await;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let client = node(config(&[])).await;
            for times in [&mut cold, &mut warm] {
                let start = Instant::now();
                client.ask(there.clone(), vec![0; 100], LONG).await.unwrap();
                times.push(start.elapsed());
            }
            client.shutdown().await;
        }
        cold.sort();
        warm.sort();
        println!(
            "{listen}: cold {:?} … {:?} … {:?}",
            cold[0], cold[10], cold[19]
        );
        println!(
            "{listen}: warm {:?} … {:?} … {:?}",
            warm[0], warm[10], warm[19]
        );
    }
}
