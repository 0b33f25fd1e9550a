//! Attacks by those who state: principals who lie, copy or collude, and people who are none.

use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, StatementId};
use qk_protocol::manifest::Manifest;
use qk_protocol::message::{Answer, Request};
use qk_protocol::policy::OnDissent;
use qk_protocol::statement::{Observation, Statement};
use qk_protocol::work::WorkDigest;
use qk_tests::artifact::Artifact;
use qk_tests::lab::ALICE;
use qk_tests::peer::Peer;

use super::{Case, DISPUTED, End, Ground, UNPROVEN, effects, principal, signer};

/// What the linker is given in a build of the crate, for whoever builds it.
fn linked() -> WorkDigest {
    WorkDigest::of([Blake3::of(b"main.o"), Blake3::of(b"liba.rlib")]).expect("a digest")
}

/// States `digest`, and what it says of earlier observations, as a rebuilder does.
fn working<'a>(
    ground: &'a Ground,
    who: &'a str,
    artifact: &'a Artifact,
    digest: WorkDigest,
    earlier: &'a [Statement],
) -> impl FnOnce(&mut Observation) + 'a {
    let (own, key, subject) = (
        public_key(&signer(who)),
        artifact.key.id(),
        artifact.subject,
    );
    let network = ground.network().id();
    move |observation| {
        observation.work = Some(digest.work(network, own, key, subject.root));
        observation.work_checks = digest.checks(own, key, subject, earlier);
    }
}

/// People who observe the same, one after the other: each states the work of its digest and checks that
/// of those before it.
fn rebuild(
    ground: &Ground,
    artifact: &Artifact,
    people: &[(&str, WorkDigest)],
) -> Vec<StatementId> {
    let mut earlier: Vec<Statement> = Vec::new();
    for (who, digest) in people {
        let work = working(ground, who, artifact, *digest, &earlier);
        let statement = ground.statement_but(who, artifact, work);
        ground.publish(artifact, statement.clone());
        earlier.push(statement);
    }
    earlier.iter().map(Statement::id).collect()
}

#[test]
fn a_false_accusation_about_work() {
    let mut ground = Ground::new();
    let asks = "threshold = 3\ncount = \"assigned\"";
    let case = ground.case("accused");
    let (on, off) = ground.drawn(&case);
    // Two in league vouch for each other, and say of everybody else that it only copied.
    let lie = WorkDigest::of([Blake3::of(b"a lie")]).expect("a digest");
    let honest = on[..3].iter().map(|who| (*who, linked()));
    let liars = off[..2].iter().map(|who| (*who, lie));
    let all: Vec<_> = honest.chain(liars).collect();
    rebuild(&ground, &case.right, &all);
    assert_eq!(ground.takes(asks, &case), End::Right);
    let proofs = ground.proofs(asks, &case);
    assert_eq!(effects(&proofs, on[0]), ["counts"]);
    // Were everybody assigned, everybody could accuse.
    ground.revise(|manifest| manifest.committee.size = manifest.principals.len() as u32);
    assert_eq!(ground.takes(asks, &case), UNPROVEN);
    let proofs = ground.proofs(asks, &case);
    assert_eq!(effects(&proofs, on[0]), ["work-differs"]);
}

#[test]
fn colluders_outside_the_committee() {
    let ground = Ground::new();
    let case = ground.case("colluders");
    let (_, off) = ground.drawn(&case);
    ground.say(&off[..2], &case.wrong);
    assert_eq!(ground.takes("count = \"assigned\"", &case), UNPROVEN);
    assert_eq!(ground.takes("count = \"any\"", &case), End::Trojan);
}

#[test]
fn principals_that_no_manifest_names() {
    let mut ground = Ground::new();
    let case = ground.case("strangers");
    let strangers = ["zoe", "yan"];
    put_as_a_peer(&ground, &case, &strangers);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    let proofs = ground.proofs("", &case);
    let lines = proofs["verdict"]["lines"].as_array().expect("lines");
    assert!(
        lines.len() == 2 && lines.iter().all(|line| line["effect"] == "stranger"),
        "{proofs}"
    );
    ground.revise(|manifest| {
        let named = strangers.map(|name| principal(name, &[name]));
        manifest.principals.extend(named);
    });
    assert_eq!(ground.takes("", &case), End::Trojan);
}

/// As anybody can: by a message to a node of the index. Alice's own node gives the artifact.
fn put_as_a_peer(ground: &Ground, case: &Case, who: &[&str]) {
    let stated: Vec<_> = who
        .iter()
        .map(|who| ground.statement(who, &case.wrong))
        .collect();
    let taken = Answer::Taken {
        taken: 2,
        refused: 0,
    };
    let put = Request::Put(stated.iter().cloned().map(Into::into).collect());
    let address = ground.lab.addresses(ALICE)[0].clone();
    ground.lab.runtime().block_on(async {
        let peer = Peer::asking(ground.network().id()).await;
        let reply = peer.ask(&address, &put).await;
        assert_eq!(reply.map(|reply| reply.answer), Some(taken));
    });
    ground.publish(&case.wrong, stated[0].clone());
}

#[test]
fn two_keys_of_one_principal() {
    let mut ground = Ground::new();
    let two = |manifest: &mut Manifest, principals: [(&str, &[&str]); 2]| {
        manifest
            .principals
            .retain(|one| !one.name.starts_with("ann"));
        let named = principals.into_iter().filter(|(_, keys)| !keys.is_empty());
        let named = named.map(|(name, keys)| principal(name, keys));
        manifest.principals.extend(named);
    };
    ground.revise(|manifest| two(manifest, [("ann", &["ann", "ann.2"]), ("", &[])]));
    let case = ground.case("keys");
    ground.say(&["ann", "ann.2"], &case.wrong);
    assert_eq!(ground.takes("", &case), UNPROVEN);
    let mut effects = effects(&ground.proofs("", &case), "ann");
    effects.sort();
    assert_eq!(effects, ["counts", "repeats"]);
    ground.revise(|manifest| two(manifest, [("ann", &["ann"]), ("ann again", &["ann.2"])]));
    assert_eq!(ground.takes("", &case), End::Trojan);
}

#[test]
fn a_publisher_with_a_trojaned_binary() {
    let mut ground = Ground::new();
    ground.revise(|manifest| manifest.policy.threshold = 1);
    let case = ground.case("trojaned");
    ground.say(&["ann"], &case.wrong);
    assert_eq!(ground.takes("threshold = 2", &case), UNPROVEN);
    assert_eq!(ground.takes("threshold = 1", &case), End::Trojan);
    // One honest rebuild, and it is refused even there.
    ground.say(&["bob"], &case.right);
    assert_eq!(ground.takes("threshold = 1", &case), DISPUTED);
}

#[test]
fn a_lying_dissenter() {
    let mut ground = Ground::new();
    ground.revise(|manifest| manifest.policy.on_dissent = Some(OnDissent::Escalate));
    let case = ground.case("dissenter");
    let (on, off) = ground.drawn(&case);
    ground.say(&on[..3], &case.right);
    assert_eq!(ground.takes("", &case), End::Right);
    ground.say(&on[3..], &case.wrong);
    // For the one round that it takes the next ranks, which it called.
    assert_eq!(ground.takes("", &case), DISPUTED);
    let proofs = ground.proofs("", &case);
    let seats = proofs["roll"]["seats"].as_array().expect("seats");
    let called = |name: &str| {
        seats
            .iter()
            .any(|seat| seat["name"] == name && seat["called"] == true)
    };
    assert!(off.iter().all(|name| called(name)), "{proofs}");
    ground.say(&off[..1], &case.right);
    assert_eq!(ground.takes("", &case), End::Right);
    assert_eq!(effects(&ground.proofs("", &case), on[3]), ["dissents"]);
    // With `refuse` one liar is enough, for good.
    ground.say(&off[1..], &case.right);
    assert_eq!(ground.takes("on_dissent = \"refuse\"", &case), DISPUTED);
}
