//! Attacks by nodes of the index: what they withhold, drop, and show where it does not belong.

use std::fs;

use qk_node::net::Multiaddr;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::NetworkId;
use qk_protocol::index::{ONE_STRANGER_STATEMENTS_MAX, STRANGER_STATEMENTS_MAX};
use qk_protocol::manifest::{KeyState, PrincipalKey};
use qk_protocol::message::{Answer, Contact, NodeId, Provider, Request};
use qk_protocol::statement::{Body, Role, Statement};
use qk_protocol::time::UnixTime;
use qk_tests::artifact::Artifact;
use qk_tests::lab::{ALICE, CLIENT, observation};
use qk_tests::peer::{Peer, giving};
use serde_bytes::ByteBuf;

use super::{Case, DISPUTED, End, Ground, UNPROVEN, effects, principal, signer};

/// A node that the manifest names beside alice's, which gives this artifact to whoever asks. Killing
/// alice's node leaves a client one path, which ends at the liar.
pub(super) struct Liar {
    peer: Peer,
    provider: Provider,
}

impl Liar {
    pub(super) fn new(ground: &mut Ground, artifact: &Artifact) -> Self {
        let id = ground.network().id();
        let lane = giving(fs::read(artifact.path()).expect("an archive"));
        let (peer, address, addrs) = ground.lab.runtime().block_on(async {
            let peer = Peer::start(id, Some(lane)).await;
            let address = peer.address().await;
            let addrs = peer.net().listen_addrs().await.expect("it runs");
            (peer, address, addrs)
        });
        ground.revise(|manifest| {
            manifest.bootstrap.insert(address);
        });
        let addrs = addrs.iter().map(|addr| ByteBuf::from(addr.to_vec()));
        let node = NodeId(peer.net().local_peer().to_bytes());
        let contact = Contact {
            node,
            addrs: addrs.collect(),
        };
        let root = artifact.subject.root;
        let provider = Provider { root, contact };
        Self { peer, provider }
    }

    /// From now on it answers everybody with these statements alone.
    pub(super) fn shows(&self, statements: &[Statement]) {
        self.peer.says(Answer::Statements {
            statements: statements.iter().cloned().map(Into::into).collect(),
            providers: vec![self.provider.clone()],
            next: None,
        });
    }
}

#[test]
fn index_nodes_that_withhold_dissent() {
    let mut ground = Ground::new();
    let case = ground.case("withheld");
    let liar = Liar::new(&mut ground, &case.wrong);
    let stated = ["ann", "bob"].map(|who| ground.statement(who, &case.wrong));
    liar.shows(&stated);
    for one in stated {
        ground.publish(&case.wrong, one);
    }
    ground.say(&["cyd"], &case.right);
    assert_eq!(ground.takes("", &case), DISPUTED);
    ground.lab.kill(ALICE);
    assert_eq!(ground.takes("", &case), End::Trojan);
}

#[test]
fn two_observations_of_one_signer() {
    let mut ground = Ground::new();
    let case = ground.case("two-faced");
    let liar = Liar::new(&mut ground, &case.wrong);
    let stated = ["ann", "bob"].map(|who| ground.statement(who, &case.wrong));
    liar.shows(&stated);
    for one in stated {
        ground.publish(&case.wrong, one);
    }
    // The same bob tells others what is right.
    ground.say(&["bob"], &case.right);
    assert_eq!(ground.takes("", &case), DISPUTED);
    let proofs = ground.proofs("", &case);
    assert_eq!(effects(&proofs, "bob"), ["contradicts", "contradicts"]);
    assert_eq!(effects(&proofs, "ann"), ["counts"]);
    ground.lab.kill(ALICE);
    assert_eq!(ground.takes("", &case), End::Trojan);
}

/// Somebody states what is right, without a node of their own; how many have it, as they are told.
fn told(ground: &Ground, who: &str, case: &Case) -> usize {
    let statement = ground.statement(who, &case.right);
    let published = ground.lab.put(&ground.client(""), None, statement);
    published.expect("published").holders
}

#[test]
fn index_nodes_that_drop_statements() {
    let mut ground = Ground::new();
    let case = ground.case("dropped");
    let liar = Liar::new(&mut ground, &case.right);
    liar.shows(&[]);
    liar.peer.drops();
    assert_eq!(told(&ground, "ann", &case), 3);
    assert_eq!(told(&ground, "bob", &case), 3);
    let proofs = ground.proofs("", &case);
    assert_eq!(proofs["verdict"]["decision"], "trusted", "{proofs}");
    let case = ground.case("lost");
    ground.lab.kill(ALICE);
    // Publishers are told that two have it: they themselves, and the liar.
    assert_eq!(told(&ground, "ann", &case), 2);
    assert_eq!(told(&ground, "bob", &case), 2);
    ground.lab.start_alice();
    let proofs = ground.proofs("", &case);
    assert_eq!(proofs["verdict"]["decision"], "unproven", "{proofs}");
    assert_eq!(proofs["verdict"]["lines"].as_array().map(Vec::len), Some(0));
}

#[test]
fn statements_of_another_network() {
    let mut ground = Ground::new();
    let case = ground.case("elsewhere");
    let liar = Liar::new(&mut ground, &case.wrong);
    // A network of the attacker's own, where the same people rebuild for practice, say.
    let other = NetworkId([7; 32]);
    let elsewhere = ["ann", "bob"].map(|who| {
        let body = Body::Observation(observation(Role::Verifier, case.wrong.subject));
        let key = case.wrong.key.clone();
        Statement::sign(other, key, body, &signer(who)).expect("a statement")
    });
    let put = Request::Put(elsewhere.iter().cloned().map(Into::into).collect());
    let address = ground.lab.addresses(ALICE)[0].clone();
    let asked = liar.peer.ask(&address, &put);
    let reply = ground.lab.runtime().block_on(asked).expect("an answer");
    let (taken, refused) = (0, 2);
    assert_eq!(reply.answer, Answer::Taken { taken, refused });
    liar.shows(&elsewhere);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    ground.lab.kill(ALICE);
    assert_eq!(ground.takes("", &case), UNPROVEN, "whatever the paths");
    liar.shows(&["ann", "bob"].map(|who| ground.statement(who, &case.wrong)));
    assert_eq!(ground.takes("", &case), End::Trojan);
}

#[test]
fn index_nodes_that_lose_what_the_committee_states() {
    let mut ground = Ground::new();
    let case = ground.case("silent");
    let liar = Liar::new(&mut ground, &case.right);
    let (on, _) = ground.drawn(&case);
    let (shown, lost) = (on[0], on[1]);
    // All that anybody is shown at the place of this release, and nobody is named there.
    liar.shows(&[ground.statement(shown, &case.right)]);
    liar.peer.drops();
    ground.lab.kill(ALICE);
    // A member of the committee with a node that says what it observed to who asks it.
    ground.lab.add(lost, "[relay]\ntraverse = false\n");
    let home = ground.lab.home(lost);
    home.keep_key("observer", &signer(lost)).expect("a key");
    ground.lab.start_any(lost);
    let statement = ground.statement(lost, &case.right);
    let put = ground.lab.put(lost, Some(case.right.path()), statement);
    put.expect("published");
    let node = public_key(&home.key("node").expect("a key"));
    let addrs = ground.lab.addresses(lost).iter();
    let addrs = addrs.map(|addr| addr.parse::<Multiaddr>().expect("an address"));
    let contact = Contact {
        node: NodeId::of_key(&node),
        addrs: addrs.map(|addr| ByteBuf::from(addr.to_vec())).collect(),
    };
    let location = case
        .right
        .key
        .release()
        .location(&ground.lab.joined(ALICE).key());
    liar.peer.names(vec![contact], location.point());
    assert_eq!(ground.takes("", &case), UNPROVEN);
    let network = ground.lab.next_version(|manifest| {
        let mut principals = manifest.principals.iter_mut();
        let member = principals
            .find(|one| one.name == lost)
            .expect("a principal");
        member.keys.push(PrincipalKey {
            key: node,
            state: KeyState::Active,
            retired: None,
        });
    });
    ground.lab.know(CLIENT, network);
    assert_eq!(ground.takes("", &case), End::Right);
}

#[test]
fn a_flood_of_strangers_at_a_location() {
    let mut ground = Ground::new();
    // Ann is a principal, and zoe is none yet.
    let case = ground.case("flooded");
    let address = ground.lab.addresses(ALICE)[0].clone();
    let id = ground.network().id();
    let peer = ground.lab.runtime().block_on(Peer::asking(id));
    let put = |ground: &Ground, who: &str, change: u64| {
        let statement = ground.statement_but(who, &case.wrong, |one| {
            one.started = UnixTime(one.started.0 - change);
        });
        let put = Request::Put(vec![statement.into()]);
        let reply = ground.lab.runtime().block_on(peer.ask(&address, &put));
        match reply.expect("an answer").answer {
            Answer::Taken { taken, refused } => (taken, refused),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(put(&ground, "ann", 0), (1, 0));
    let each = |stranger: usize| {
        let name = format!("stranger-{stranger}");
        let numbers = 0..=ONE_STRANGER_STATEMENTS_MAX as u64;
        numbers
            .map(|number| put(&ground, &name, number).0 as usize)
            .sum::<usize>()
    };
    let strangers = STRANGER_STATEMENTS_MAX / ONE_STRANGER_STATEMENTS_MAX;
    let taken: Vec<usize> = (0..strangers + 4).map(each).collect();
    // Each only so many, and all of them together.
    assert!(
        taken.iter().all(|one| *one <= ONE_STRANGER_STATEMENTS_MAX),
        "{taken:?}"
    );
    assert_eq!(taken.iter().sum::<usize>(), STRANGER_STATEMENTS_MAX);
    assert_eq!(put(&ground, "zoe", 0), (0, 1), "there is no room left");
    assert_eq!(
        put(&ground, "bob", 0),
        (1, 0),
        "and there is for a principal"
    );
    let proofs = ground.proofs("", &case);
    assert_eq!(proofs["verdict"]["decision"], "trusted", "{proofs}");
    let lines = proofs["verdict"]["lines"].as_array().map(Vec::len);
    assert_eq!(
        lines,
        Some(STRANGER_STATEMENTS_MAX + 2),
        "and what ann said is still there"
    );
    // What made the difference is the manifest.
    ground.revise(|manifest| manifest.principals.push(principal("zoe", &["zoe"])));
    let address = ground.lab.addresses(ALICE)[0].clone();
    let statement = ground.statement("zoe", &case.wrong);
    let put = Request::Put(vec![statement.into()]);
    let reply = ground.lab.runtime().block_on(peer.ask(&address, &put));
    let (taken, refused) = (1, 0);
    assert_eq!(
        reply.map(|reply| reply.answer),
        Some(Answer::Taken { taken, refused })
    );
}
