//! Attacks with time: what is old is shown as new, and clocks are wrong.

use qk_node::node::unix_now;
use qk_protocol::dsse::public_key;
use qk_protocol::manifest::{
    KeyState, Manifest, Network, NetworkFile, TIMESTAMP_SECONDS_MAX, Timestamp,
};
use qk_protocol::message::{Answer, Request};
use qk_protocol::policy::Policy;
use qk_protocol::statement::Statement;
use qk_protocol::time::{DAY_SECONDS, UnixTime};
use qk_tests::lab::ALICE;
use qk_tests::peer::Peer;

use super::index::Liar;
use super::{Case, End, Ground, STALE, UNPROVEN, effects, signer};

const HOUR: u64 = 3600;

/// Changes what bob's key is worth.
fn bobs_key(manifest: &mut Manifest, state: KeyState) {
    let bob = public_key(&signer("bob"));
    let mut keys = manifest.principals.iter_mut().flat_map(|one| &mut one.keys);
    let key = keys.find(|one| one.key == bob).expect("bob's key");
    key.state = state;
    key.retired = (state == KeyState::Retired).then(unix_now);
}

/// A network with a timestamp that was issued then.
fn issued(ground: &Ground, network: &Network, at: UnixTime) -> Network {
    let clock = ground.lab.network_key("timestamp");
    Network::verify(NetworkFile {
        timestamp: Timestamp::sign(network, at, TIMESTAMP_SECONDS_MAX, &clock),
        ..network.file().clone()
    })
    .expect("a network")
}

/// What a new client ends with that knows this of the network.
fn takes_knowing(ground: &Ground, network: Network, case: &Case) -> End {
    let client = ground.client("");
    ground.lab.know(&client, network);
    ground.fetches(&client, case)
}

#[test]
fn a_replayed_old_statement() {
    let mut ground = Ground::new();
    let case = ground.case("aged");
    for who in ["ann", "bob"] {
        let statement = ground.statement_but(who, &case.wrong, |observation| {
            observation.finished = UnixTime(unix_now().0 - 60 * DAY_SECONDS);
            observation.started = observation.finished;
        });
        ground.publish(&case.wrong, statement);
    }
    assert_eq!(ground.takes("max_age_days = 30", &case), STALE);
    assert_eq!(ground.takes("", &case), End::Trojan);
    // Whoever got hold of a key that was put out of use dates its statements as it likes.
    let case = ground.case("retired");
    let before = ground.network();
    ground.revise(|manifest| bobs_key(manifest, KeyState::Retired));
    for who in ["ann", "bob"] {
        let statement = ground.statement_but(who, &case.wrong, |observation| {
            observation.finished = UnixTime(unix_now().0 - DAY_SECONDS);
            observation.started = observation.finished;
        });
        ground.publish(&case.wrong, statement);
    }
    assert_eq!(ground.takes("", &case), UNPROVEN);
    assert_eq!(effects(&ground.proofs("", &case), "bob"), ["key-retired"]);
    assert_eq!(takes_knowing(&ground, before, &case), End::Trojan);
}

/// Ann lies, and bob's key is lost: what it signs is what the thief wants. `Liar` shows both.
fn stolen(ground: &mut Ground, feature: &str) -> (Case, Liar) {
    let case = ground.case(feature);
    let liar = Liar::new(ground, &case.wrong);
    liar.shows(&["ann", "bob"].map(|who| ground.statement(who, &case.wrong)));
    (case, liar)
}

#[test]
fn a_replayed_old_manifest() {
    let mut ground = Ground::new();
    let (case, _liar) = stolen(&mut ground, "replayed");
    let old = ground.network();
    let file = ground.lab.dir().join("old.qknet");
    std::fs::write(&file, old.file().to_bytes()).expect("a file");
    ground.revise(|manifest| bobs_key(manifest, KeyState::Compromised));
    ground.lab.kill(ALICE);
    let client = ground.client("");
    let join = ["join", file.to_str().expect("a path")];
    let joined = ground.lab.qk(&client, &join);
    joined.failed(15, &["does not follow", "known already"]);
    assert_eq!(ground.fetches(&client, &case), UNPROVEN);
    assert_eq!(takes_knowing(&ground, old, &case), End::Trojan);
}

#[test]
fn a_frozen_manifest() {
    let mut ground = Ground::new();
    let (case, _liar) = stolen(&mut ground, "frozen");
    let old = ground.network();
    ground.revise(|manifest| bobs_key(manifest, KeyState::Compromised));
    ground.lab.kill(ALICE);
    let ended = UnixTime(unix_now().0 - TIMESTAMP_SECONDS_MAX - 60);
    let ended = issued(&ground, &old, ended);
    assert_eq!(takes_knowing(&ground, ended.clone(), &case), STALE);
    assert_eq!(takes_knowing(&ground, old.clone(), &case), End::Trojan);
    // And whoever can ask anybody honest hears what happened: within a day, since timestamps are renewed
    // daily, and not only when the last one ends.
    let yesterday = issued(&ground, &old, UnixTime(unix_now().0 - DAY_SECONDS - 60));
    assert_eq!(
        takes_knowing(&ground, yesterday.clone(), &case),
        End::Trojan
    );
    ground.lab.start_alice();
    assert_eq!(takes_knowing(&ground, yesterday, &case), UNPROVEN);
    assert_eq!(takes_knowing(&ground, ended, &case), UNPROVEN);
}

#[test]
fn a_clock_an_hour_off() {
    let ground = Ground::new();
    let dated = |who: &str, case: &Case, ahead: u64| -> Statement {
        ground.statement_but(who, &case.right, |one| {
            one.finished = unix_now().plus(ahead)
        })
    };
    // Of an observer.
    let case = ground.case("ahead");
    let ahead = [dated("ann", &case, 0), dated("bob", &case, HOUR)];
    let put = Request::Put(ahead.iter().cloned().map(Into::into).collect());
    let address = ground.lab.addresses(ALICE)[0].clone();
    let taken = ground.lab.runtime().block_on(async {
        let peer = Peer::asking(ground.network().id()).await;
        peer.ask(&address, &put).await.map(|reply| reply.answer)
    });
    assert_eq!(
        taken,
        Some(Answer::Taken {
            taken: 1,
            refused: 1
        })
    );
    for one in &ahead {
        ground.publish(&case.right, one.clone());
    }
    assert_eq!(ground.takes("", &case), UNPROVEN);
    assert_eq!(effects(&ground.proofs("", &case), "bob"), ["in-future"]);
    let policy = Policy::default();
    assert!(!ground.decides(&policy, &ahead, unix_now()));
    assert!(ground.decides(&policy, &ahead, unix_now().plus(HOUR)));
    // Clocks may differ a little.
    let case = ground.case("nearly");
    for one in [dated("ann", &case, 0), dated("bob", &case, 300)] {
        ground.publish(&case.right, one);
    }
    assert_eq!(ground.takes("", &case), End::Right);
    // Of a client, which is behind the network's timestamp, or ahead of it.
    let network = ground.network();
    let behind = issued(&ground, &network, unix_now().plus(HOUR));
    assert_eq!(takes_knowing(&ground, behind, &case), STALE);
    let ahead = issued(&ground, &network, UnixTime(unix_now().0 - HOUR));
    assert_eq!(takes_knowing(&ground, ahead, &case), End::Right);
}
