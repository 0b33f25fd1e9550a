//! Hidden reads: what a node of the index learns from those who ask it.

use std::sync::Arc;

use qk_protocol::hash::Point;
use qk_protocol::hidden::{HIDDEN_AMONG_MIN, hidden};
use qk_protocol::message::{Answer, Cursor, Get, Request};
use qk_protocol::statement::Statement;
use qk_tests::artifact::{Artifact, SPEC, artifact};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab};
use qk_tests::peer::Peer;

/// Releases in the index.
const RELEASES: usize = 1200;
/// Statements of one message.
const PUT: usize = 32;

/// Fills alice's index with what bob and carol observed of many releases; where these lie.
fn fill(lab: &Lab, artifact: &Artifact, peer: &Peer) -> Vec<Point> {
    let key = lab.joined(ALICE).key();
    let (mut statements, mut points) = (Vec::new(), Vec::new());
    for number in 0..RELEASES {
        let mut of = artifact.key.clone();
        of.name = format!("crate-{number}");
        points.push(of.release().location(&key).point());
        for name in [BOB, CAROL] {
            let statement: Statement = lab.observe(name, &of, artifact.subject);
            statements.push(Arc::new(statement));
        }
    }
    let address = lab.addresses(ALICE)[0].clone();
    lab.runtime().block_on(async {
        for some in statements.chunks(PUT) {
            let put = Request::Put(some.to_vec());
            let reply = peer.ask(&address, &put).await.expect("an answer");
            let taken = Answer::Taken {
                taken: some.len() as u32,
                refused: 0,
            };
            assert_eq!(reply.answer, taken);
        }
    });
    points
}

/// Bytes of all pages that alice answers to this, and how many pages.
fn bytes_of(lab: &Lab, peer: &Peer, get: &Get) -> (usize, usize) {
    let address = lab.addresses(ALICE)[0].clone();
    let (mut bytes, mut pages, mut after): (usize, usize, Option<Cursor>) = (0, 0, None);
    loop {
        let request = Request::Get(Get {
            after,
            ..get.clone()
        });
        let asked = peer.ask(&address, &request);
        let reply = lab.runtime().block_on(asked).expect("an answer");
        (bytes, pages) = (bytes + reply.encode().len(), pages + 1);
        match reply.answer {
            Answer::Statements {
                next: Some(next), ..
            } => after = Some(next),
            _ => return (bytes, pages),
        }
    }
}

#[test]
fn an_index_node_learns_a_prefix_that_many_releases_share() {
    let mut lab = Lab::new();
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    lab.publish(BOB, &one);
    let network = lab.joined(ALICE).network.id();
    let key = lab.joined(ALICE).key();
    let asking = lab.runtime().block_on(Peer::asking(network));
    let points = fill(&lab, &one, &asking);
    let wanted = one.key.release().location(&key).point();
    for hides in [false, true] {
        // A node of the index that wants to know what is asked for.
        let curious = lab.runtime().block_on(Peer::start(network, None));
        let address = lab.runtime().block_on(curious.address());
        let setting = format!("parent = [{address:?}]\nhidden_reads = {hides}\n");
        let who = format!("reader-{hides}");
        lab.add(&who, &setting);
        let fetch = |args: &[&str]| {
            let ran = lab.fetch_command(&who, args).output().expect("it starts");
            qk_tests::lab::Ran::from(ran)
        };
        let fetched = fetch(&[SPEC, "--force"]).done();
        assert_eq!(fetched["crates"][0]["root"], one.subject.root.to_string());
        lab.qk(&who, &["proofs", SPEC]).done();
        assert_eq!(curious.was_told_of(&one.key.release(), &key), !hides);
        let asked = curious.asked().into_iter();
        let gets = asked.filter_map(|bytes| match Request::decode(&bytes).ok()?.message {
            Request::Get(get) => Some(get),
            _ => None,
        });
        let about: Vec<Get> = gets
            .filter(|get| get.point == hidden(wanted, get.bits).point)
            .collect();
        assert!(!about.is_empty(), "it was not asked");
        for get in about {
            let among = points
                .iter()
                .filter(|one| one.shares_prefix(&get.point, get.bits));
            let among = among.count() as u64;
            let (bytes, pages) = bytes_of(&lab, &asking, &get);
            println!(
                "hidden_reads = {hides}: {} bits, which {among} other releases share; {bytes} bytes in {pages} pages",
                get.bits
            );
            assert_eq!(among >= HIDDEN_AMONG_MIN, hides);
        }
    }
}

#[test]
fn who_has_what_a_lock_pins_is_asked_as_hiddenly() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_any(BOB);
    let one = artifact(&lab.joined(ALICE).network);
    // Alice, whom everybody asks first, does not have it.
    lab.publish(BOB, &one);
    lab.state(CAROL, &one);
    let (network, key) = (lab.joined(ALICE).network.id(), lab.joined(ALICE).key());
    let dir = lab.dir().join("project");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("qk.toml"), "[tools]\nhexyl = \"=0.17.0\"\n").unwrap();
    let fetch = |who: &str, args: &[&str]| {
        let words = [&["fetch", "--fallback", "none", "--json"][..], args].concat();
        let mut command = lab.command(who, &words);
        qk_tests::lab::run(command.current_dir(&dir)).done()
    };
    fetch(CLIENT, &[]);
    for hides in [false, true] {
        let curious = lab.runtime().block_on(Peer::start(network, None));
        let address = lab.runtime().block_on(curious.address());
        let setting = format!("parent = [{address:?}]\nhidden_reads = {hides}\n");
        let who = format!("reader-{hides}");
        lab.add(&who, &setting);
        let root = lab.dir().join(&who).join("root");
        fetch(&who, &["--locked", "--root", root.to_str().unwrap()]);
        assert_eq!(curious.was_told_of(&one.key.release(), &key), !hides);
    }
}

#[test]
fn in_a_small_network_everything_is_asked_for() {
    let mut lab = Lab::new();
    lab.configure(CLIENT, "hidden_reads = true\n");
    lab.start_alice();
    let one = artifact(&lab.joined(ALICE).network);
    lab.publish(ALICE, &one);
    lab.publish(BOB, &one);
    let fetched = lab.fetch(&[SPEC]).done();
    assert_eq!(fetched["crates"][0]["root"], one.subject.root.to_string());
    // A running node reads its configuration anew when it is told to.
    lab.start_any(CLIENT);
    lab.configure(CLIENT, "hidden_reads = false\n");
    lab.signal(CLIENT, "HUP");
    qk_tests::lab::until("the setting is taken", || {
        lab.log(CLIENT).contains("hidden_reads")
    });
}
