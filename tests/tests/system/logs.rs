//! Logs of builds, from whoever observed them.

use qk_protocol::hash::{Blake3, Point};
use qk_protocol::log::{LOG_BYTES_MAX, LOG_PIECE_BYTES_MAX, LogPiece};
use qk_protocol::message::{Answer, Reply, Request};
use qk_tests::artifact::{Artifact, SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CLIENT, Lab, Ran, run};
use qk_tests::peer::Peer;
use qk_tests::registry::Crates;
use serde_bytes::ByteBuf;

/// What the lab's observations name.
const LOG: &[u8] = b"nothing was built";

fn digest() -> Blake3 {
    Blake3::of(LOG)
}

fn point(lab: &Lab, artifact: &Artifact) -> Point {
    let key = lab.joined(ALICE).key();
    artifact.key.release().location(&key).point()
}

fn log_by(lab: &Lab, name: &str, by: &str) -> Ran {
    lab.qk(name, &["log", SPEC, "--by", by])
}

/// What a node answers to who asks for the first piece of a log.
async fn asked(peer: &Peer, address: &str, point: Point, digest: Blake3) -> Answer {
    let request = Request::Log {
        point,
        digest,
        offset: 0,
    };
    let Reply { answer, .. } = peer.ask(address, &request).await.expect("an answer");
    answer
}

fn refused() -> Answer {
    Answer::Refused("no such log".to_owned())
}

#[test]
fn a_log_is_got_from_who_observed_and_kept() {
    let mut lab = Lab::new();
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    lab.state(BOB, &one);
    // Nobody has it any more.
    lab.qk(CLIENT, &["log", SPEC]).failed(
        10,
        &["none of them is here", "nor with those who observed them"],
    );
    log_by(&lab, CLIENT, "alice").failed(10, &["nobody who was asked has the log"]);
    log_by(&lab, CLIENT, "carol").failed(10, &["no build of hexyl@0.17.0 by carol is known"]);
    lab.home(ALICE).logs().keep(LOG).unwrap();
    let said = log_by(&lab, CLIENT, "alice").done();
    assert_eq!(said["log"], "nothing was built");
    assert_eq!(
        (&said["principal"], &said["digest"]),
        (&"alice".into(), &digest().to_string().into())
    );
    // It stays, whoever goes.
    lab.kill(ALICE);
    for args in [
        &["log", SPEC, "--offline"][..],
        &["log", &digest().to_string()],
    ] {
        assert_eq!(lab.qk(CLIENT, args).done()["log"], "nothing was built");
    }
    assert_eq!(lab.home(CLIENT).logs().read(&digest()).unwrap(), None);
}

#[test]
fn what_is_given_was_observed_in_this_network_and_is_what_it_was() {
    let mut lab = Lab::new();
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    let (address, here) = (lab.alices_address().to_owned(), point(&lab, &one));
    let address = format!(
        "{address}/p2p/{}",
        lab.addresses(ALICE)[0].rsplit('/').next().unwrap()
    );
    let logs = lab.home(ALICE).logs();
    let network = lab.joined(ALICE).network.id();
    // Somebody who guesses what was built here for nobody else.
    let secret = logs.keep(b"of a private crate").unwrap();
    lab.runtime().block_on(async {
        let peer = Peer::asking(network).await;
        assert_eq!(asked(&peer, &address, here, digest()).await, refused());
        logs.keep(LOG).unwrap();
        let piece = LogPiece {
            total: LOG.len() as u64,
            bytes: ByteBuf::from(LOG.to_vec()),
        };
        let given = Answer::Log(piece);
        assert_eq!(asked(&peer, &address, here, digest()).await, given);
        assert_eq!(asked(&peer, &address, here, secret).await, refused());
        let elsewhere = Point([1; 32]);
        assert_eq!(asked(&peer, &address, elsewhere, digest()).await, refused());
        // A disk that rots makes nobody a liar.
        let file = lab.home(ALICE).dir().join(format!("logs/{}.log", digest()));
        std::fs::write(&file, "nothing was burnt").unwrap();
        assert_eq!(asked(&peer, &address, here, digest()).await, refused());
        std::fs::write(&file, LOG).unwrap();
        assert_eq!(asked(&peer, &address, here, digest()).await, given);
    });
    // What rests gives nothing.
    lab.qk(ALICE, &["node", "pause"]).done();
    log_by(&lab, CLIENT, "alice").failed(10, &["nobody who was asked has the log"]);
    lab.qk(ALICE, &["node", "resume"]).done();
    log_by(&lab, CLIENT, "alice").done();
    // What somebody looked at is given to nobody, unless its owner shares.
    for (shares, given) in [("", false), ("[share]\nfetched = true\n", true)] {
        lab.configure(CLIENT, shares);
        lab.start_any(CLIENT);
        lab.qk(CLIENT, &["proofs", SPEC]).done();
        let address = lab.addresses(CLIENT)[0].clone();
        let answer = lab.runtime().block_on(async {
            let peer = Peer::asking(network).await;
            asked(&peer, &address, here, digest()).await
        });
        assert_eq!(answer != refused(), given, "{answer:?}");
        lab.kill(CLIENT);
    }
}

/// A node that says it has what bob observed, and answers for its log like this: what `qk log` says, and
/// how often it was asked for the log.
fn liar(lab: &Lab, artifact: &Artifact, lie: &LogPiece) -> (Ran, usize) {
    let network = lab.joined(ALICE).network.id();
    let here = point(lab, artifact);
    let peer = lab.runtime().block_on(async {
        let peer = Peer::start(network, None).await;
        let address = lab.addresses(ALICE)[0].clone();
        peer.announce(&address, here, artifact.subject.root).await;
        peer.says(Answer::Log(lie.clone()));
        // Whoever takes what it gives has the lie.
        let asking = Peer::asking(network).await;
        let answer = asked(&asking, &peer.address().await, here, digest()).await;
        assert_eq!(answer, Answer::Log(lie.clone()));
        peer
    });
    let ran = log_by(lab, CLIENT, "bob");
    let asked = peer.asked().into_iter();
    let requests = asked.filter_map(|bytes| Request::decode(&bytes).ok());
    let logs = requests.filter(|one| matches!(one.message, Request::Log { .. }));
    // One question was the test's own.
    (ran, logs.count() - 1)
}

#[test]
fn who_sends_another_log_or_one_without_end_is_not_believed() {
    let lies: [(u64, Vec<u8>, &str); 4] = [
        (
            LOG.len() as u64,
            b"nothing was burnt".to_vec(),
            "something else than the log",
        ),
        (
            LOG_BYTES_MAX + 1,
            vec![b'a'; LOG_PIECE_BYTES_MAX],
            "more than any may have",
        ),
        (LOG_BYTES_MAX, vec![b'a'; 1], "do not make a log"),
        // The same piece again and again, up to the bound.
        (
            LOG_BYTES_MAX,
            vec![b'a'; LOG_PIECE_BYTES_MAX],
            "something else than the log",
        ),
    ];
    for (total, bytes, said) in lies {
        let mut lab = Lab::new();
        lab.start_alice();
        let one = artifact(&lab.joined(ALICE).network);
        lab.state(BOB, &one);
        let whole = bytes.len() == LOG_PIECE_BYTES_MAX && total == LOG_BYTES_MAX;
        let bytes = ByteBuf::from(bytes);
        let (ran, asked) = liar(&lab, &one, &LogPiece { total, bytes });
        ran.failed(10, &["nobody who was asked has the log", said]);
        assert_eq!(asked, if whole { 17 } else { 1 });
        let others = lab.home(CLIENT).logs().of_others();
        assert_eq!(others.read(&digest()).unwrap(), None);
        // Beside it is one who has it.
        lab.home(BOB).logs().keep(LOG).unwrap();
        lab.start_any(BOB);
        lab.publish(BOB, &one);
        assert_eq!(
            log_by(&lab, CLIENT, "bob").done()["log"],
            "nothing was built"
        );
    }
}

/// A build script that gives another program each time.
const FICKLE: &str = "fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    println!(\"cargo:rustc-env=BUILT={}\", now.unwrap().as_nanos());
}
";

#[test]
fn who_dissents_keeps_both_logs() {
    let crates = Crates::new();
    let main = "fn main() { println!(\"{}\", env!(\"BUILT\")); }\n";
    crates.add("fickle", "1.0.0", main, Some(FICKLE));
    let mut lab = Lab::new();
    let qk = |lab: &Lab, name: &str, args: &[&str]| -> Ran {
        run(crates.used_by(lab.command(name, args)).arg("--json"))
    };
    lab.start_alice();
    qk(&lab, ALICE, &["build", "fickle@1.0.0", "--no-gate"]).done();
    let ran = qk(&lab, BOB, &["verify", "fickle@1.0.0"]);
    ran.failed(12, &[]);
    let difference = &ran.json()["difference"];
    assert_eq!(difference["other_log"], true, "{}", ran.stdout);
    lab.kill(ALICE);
    for digest in difference["logs"].as_array().unwrap() {
        let log = qk(&lab, BOB, &["log", digest.as_str().unwrap()]).done();
        let log = log["log"].as_str().unwrap();
        assert!(log.contains("Compiling fickle"), "{log}");
    }
    assert_ne!(difference["logs"][0], difference["logs"][1]);
}
