//! Nodes go for good and others come: what was stated stays findable.

use qk_protocol::hash::Point;
use qk_protocol::message::{Answer, Get, Request};
use qk_tests::artifact::{Artifact, artifact};
use qk_tests::lab::{ALICE, BOB, CAROL, Lab, until};
use qk_tests::peer::Peer;

/// How many statements the node at an address gives at a point.
fn held(lab: &Lab, peer: &Peer, name: &str, point: Point) -> usize {
    let request = Request::Get(Get {
        point,
        bits: 256,
        observer: None,
        after: None,
    });
    let asked = peer.ask(&lab.addresses(name)[0], &request);
    match lab.runtime().block_on(asked).map(|reply| reply.answer) {
        Some(Answer::Statements { statements, .. }) => statements.len(),
        _ => 0,
    }
}

/// What the node of a home does by itself now and then, now.
fn maintain(lab: &Lab, name: &str) {
    let announced = lab.with_access(name, async |access| access.announce().await);
    announced.expect("it is told");
}

fn comes(lab: &mut Lab, name: &str, knows: &str) {
    let address = lab.addresses(knows)[0].clone();
    lab.add(name, &format!("parent = [{address:?}]\n"));
    lab.start_any(name);
}

/// Waits until a node has as many others in its routing table.
fn knows(lab: &Lab, name: &str, nodes: usize) {
    until("the newcomers are known", || {
        let status = lab.with_access(name, async |access| access.status().await);
        status.is_ok_and(|status| status.networks[0].contacts >= nodes)
    });
}

#[test]
fn what_goes_with_its_holders_is_put_to_those_who_come() {
    let mut lab = Lab::new();
    lab.start_alice();
    let first = ["dan", "eve", "fay"];
    for name in first {
        comes(&mut lab, name, ALICE);
    }
    // Observed by principals whose own nodes are not there, and who will not put it again.
    let one: Artifact = artifact(&lab.joined(ALICE).network);
    for name in [BOB, CAROL] {
        lab.state(name, &one);
    }
    let key = lab.joined(ALICE).key();
    let point = one.key.release().location(&key).point();
    let peer = lab
        .runtime()
        .block_on(Peer::asking(lab.joined(ALICE).network.id()));
    for name in first {
        assert_eq!(held(&lab, &peer, name, point), 2, "{name}");
    }
    for name in [ALICE, "dan", "eve"] {
        lab.kill(name);
        std::fs::remove_dir_all(lab.home(name).store()).unwrap();
    }
    // Two generations, each of which sees only the one before it.
    let mut last = "fay";
    for newcomers in [["gus", "hal"], ["ida", "joe"]] {
        for name in newcomers {
            comes(&mut lab, name, last);
        }
        knows(&lab, last, 2);
        for name in newcomers {
            assert_eq!(
                held(&lab, &peer, name, point),
                0,
                "{name}, before {last} looked after it"
            );
        }
        maintain(&lab, last);
        for name in newcomers {
            assert_eq!(held(&lab, &peer, name, point), 2, "{name}");
        }
        lab.kill(last);
        std::fs::remove_dir_all(lab.home(last).store()).unwrap();
        last = newcomers[0];
    }
    // Nobody who was there when it was stated is left.
    assert_eq!(held(&lab, &peer, "joe", point), 2);
}
