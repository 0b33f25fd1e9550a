//! Clients that cost more than they should, beside one that only wants its file. Each attack is also
//! tried where nothing stands against it.

use super::*;

/// Tries of the honest client while an attack is to succeed.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(300);

/// One place for everybody, so that one attacker is enough.
fn one_place() -> GatewayLimits {
    GatewayLimits {
        connections_max: 1,
        connections_per_address_max: 1,
        header_timeout: NEVER,
        piece_timeout: NEVER,
        ..GatewayLimits::default()
    }
}

/// Whether the honest client gets its file sooner or later.
async fn is_served_at_last(site: &Site, path: &str) -> bool {
    let served = async {
        while site
            .ask("GET", path, "")
            .await
            .is_none_or(|one| one.status != 200)
        {
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.is_ok()
}

/// Whether the honest client gets nothing, however often it tries.
async fn is_kept_out(site: &Site, path: &str) -> bool {
    for _ in 0..TRIES {
        if site.ask("GET", path, "").await.is_some() {
            return false;
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_places() {
    for (per_address, is_open) in [(4, true), (8, false)] {
        let site = Site::start(GatewayLimits {
            connections_max: 8,
            connections_per_address_max: per_address,
            header_timeout: NEVER,
            ..GatewayLimits::default()
        })
        .await;
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(connect(site.address, "127.0.0.2").await);
        }
        // The last of them was accepted and closed: all before it were dealt with.
        let mut nothing = [0];
        let last = held.last_mut().unwrap().read(&mut nothing);
        let _ = tokio::time::timeout(PATIENCE, last).await.unwrap();
        if is_open {
            assert!(is_served_at_last(&site, "/healthz").await);
            let text = site.get("/metrics", "").await.text();
            assert!(text.contains("qk_http_connections_refused_total{reason=\"address\"} 16"));
        } else {
            assert!(is_kept_out(&site, "/healthz").await);
        }
        site.end().await;
    }
}

/// Sends a request's headers a byte at a time, and never the last one, until the other side ends it.
async fn dribble(mut stream: TcpStream) {
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
    while stream.write_all(b"a").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_never_end_are_not_waited_for() {
    for (header_timeout, is_open) in [(SOON, true), (NEVER, false)] {
        let site = Site::start(GatewayLimits {
            header_timeout,
            ..one_place()
        })
        .await;
        // Connected before anybody else, so the place is the attacker's.
        let attack = tokio::spawn(dribble(connect(site.address, "127.0.0.2").await));
        if is_open {
            tokio::time::timeout(PATIENCE, attack)
                .await
                .unwrap()
                .unwrap();
            assert!(is_served_at_last(&site, "/healthz").await);
        } else {
            assert!(is_kept_out(&site, "/healthz").await);
            assert!(!attack.is_finished());
            attack.abort();
        }
        site.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_get_on_with_tls_is_not_waited_for() {
    for (header_timeout, is_open) in [(SOON, true), (NEVER, false)] {
        let limits = GatewayLimits {
            header_timeout,
            ..one_place()
        };
        let home = TestHome::new();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let files = [
            ("own.pem", made.cert.pem()),
            ("key.pem", made.key_pair.serialize_pem()),
        ];
        for (name, text) in files {
            std::fs::write(home.path().join(name), text).unwrap();
        }
        let config = GatewayConfig {
            tls_certificate: Some("own.pem".into()),
            tls_key: Some("key.pem".into()),
            ..GatewayConfig::default()
        };
        let options = NodeOptions {
            hold: true,
            offline: true,
            ..NodeOptions::default()
        };
        let node = Node::start(home.home.clone(), options).await.unwrap();
        let site = Site::configured(home, Arc::new(node), limits, config).await;
        let mut silent = connect(site.address, "127.0.0.2").await;
        // The beginning of a greeting.
        silent.write_all(&[22, 3, 1]).await.unwrap();
        let mut nothing = [0];
        let ended = silent.read(&mut nothing);
        let ended = tokio::time::timeout(Duration::from_secs(if is_open { 120 } else { 2 }), ended);
        assert_eq!(ended.await.is_ok(), is_open);
        site.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_rests_too_long_is_closed() {
    for (header_timeout, is_open) in [(SOON, true), (NEVER, false)] {
        let site = Site::start(GatewayLimits {
            header_timeout,
            ..one_place()
        })
        .await;
        let mut resting = connect(site.address, "127.0.0.2").await;
        let asked = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        resting.write_all(asked).await.unwrap();
        resting.readable().await.unwrap();
        if is_open {
            assert_eq!(read_answer(&mut resting).await.unwrap().status, 200);
            assert!(is_served_at_last(&site, "/healthz").await);
        } else {
            assert!(is_kept_out(&site, "/healthz").await);
        }
        site.end().await;
    }
}

/// Asks for a file and reads a byte of it now and then, for ever.
async fn sip(mut stream: TcpStream, path: String) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    while stream.read_u8().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_byte_at_a_time_is_dropped() {
    // More than both kernels buffer.
    let bytes = test_bytes(48 << 20, 5);
    for (piece_timeout, is_open) in [(SOON, true), (NEVER, false)] {
        let site = Site::start(GatewayLimits {
            piece_timeout,
            ..one_place()
        })
        .await;
        let root = site.keep(&bytes).await;
        let path = format!("/artifacts/{root}");
        let attack = tokio::spawn(sip(connect(site.address, "127.0.0.2").await, path));
        if is_open {
            assert!(is_served_at_last(&site, "/healthz").await);
        } else {
            assert!(is_kept_out(&site, "/healthz").await);
            assert!(!attack.is_finished());
        }
        attack.abort();
        site.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_many_headers_are_refused() {
    let small = Site::start(GatewayLimits::default()).await;
    let large = Site::start(GatewayLimits {
        header_bytes_max: 256 << 10,
        ..GatewayLimits::default()
    })
    .await;
    let long = format!("X: {}\r\n", "a".repeat(20 << 10));
    assert_eq!(small.get("/healthz", &long).await.status, 431);
    assert_eq!(large.get("/healthz", &long).await.status, 200);
    let line = format!("/healthz?{}", "a".repeat(20 << 10));
    assert!([414, 431].contains(&small.get(&line, "").await.status));
    assert_eq!(large.get(&line, "").await.status, 200);
    let many: String = (0..200).map(|i| format!("X{i}: a\r\n")).collect();
    assert_eq!(large.get("/healthz", &many).await.status, 431);
    // The honest one beside them.
    assert_eq!(small.get("/healthz", "").await.status, 200);
    small.end().await;
    large.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_asked_for_is_not_waited_for() {
    let site = Site::start(GatewayLimits::default()).await;
    let mut stream = connect(site.address, "127.0.0.2").await;
    let head = b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\nab";
    stream.write_all(head).await.unwrap();
    // Answered, and closed: reading to the end ends.
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 200);
    for nonsense in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = connect(site.address, "127.0.0.2").await;
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.is_none_or(|one| one.status >= 400), "{nonsense:?}");
    }
    assert_eq!(site.get("/healthz", "").await.status, 200);
    site.end().await;
}
