//! Attacks on what is trusted, with real nodes, a real index and real `qk fetch` and `qk proofs`: each
//! is kept out, and succeeds once its defence is switched off. Where a policy or a manifest has a switch,
//! that one is used; where qk has none, on purpose, the test's own code leaves the check out. "Succeeds"
//! means that a client installs a trojan, unless the table says otherwise.
//!
//! | attack | defence | switched off by |
//! |---|---|---|
//! | copied observation | `work`, which only who built can make (it succeeds when a copy counts) | a copier who leaves its own away |
//! | false accusation about `work` | two assigned principals have to say so (it succeeds when a true proof is dropped) | a committee that everybody is on |
//! | colluders outside the committee | `count = "assigned"` | `count = "any"` |
//! | principals not in the manifest | only the manifest's principals count | a manifest that names them |
//! | two keys of one principal | all keys of a principal count once | a manifest where each key is a principal |
//! | publisher with a trojaned binary | a threshold of two | a threshold of one |
//! | lying dissenter | `escalate` (it succeeds when nothing is installed) | `refuse` |
//! | two observations of one signer | both are shown, and count for neither | a reader with one path, to a node that withholds one |
//! | index nodes that withhold dissent | answers over separate paths | the same |
//! | index nodes that drop statements | statements are put to several nodes (it succeeds when nothing is found) | only that node to put to |
//! | index nodes that lose what the committee states | who is assigned and silent is asked directly (it succeeds when nothing is proven) | a manifest without the key of its node |
//! | flood of strangers' statements at a location | principals have room of their own (it succeeds when an observation is refused) | a manifest that does not name the observer |
//! | statement of another network | every statement names its network | the same words, in this network |
//! | replayed old statement | `max_age_days`, retired keys | no age; a manifest from before the key retired |
//! | replayed old manifest | versions do not go back | a client that never knew the newer one |
//! | frozen manifest | the timestamp's end | a timestamp that has not ended |
//! | publisher that varies flags for another committee | nothing that it may vary enters the draw | a policy that counts whom a draw over the whole key gives |
//! | publisher with its own `source` | the checksum is that of the client's own registry | a registry of the attacker's |
//! | publisher with its own lock | rebuilders read the lock from the `.crate` | an observer who believes the publisher's |
//! | variant with an old rustc | clients derive what they accept from the manifest's builds | a manifest that builds with it |
//! | variant with odd rustflags | the same (it succeeds when that is trusted) | the decision alone, asked about the variant: `qk` has no way to ask for it |
//! | principals in league, as many as are asked for | `rebuild_percent` | none |
//! | crate that never comes out the same | the gate (it succeeds when it is published) | `qk build --no-gate` |
//! | clock an hour off | more than ten minutes in the future does not count (it succeeds when that counts) | the decision alone, an hour later |
//!
//! Elsewhere: manifests that are replayed, have gaps or too few signatures in `manifest.rs` and
//! `trust.rs`; archives that no honest build gives in `hostile.rs`; floods in `enemies.rs`.

mod index;
mod keys;
mod principals;
mod rebuilds;
mod time;

use std::cell::Cell;
use std::fs;
use std::process::Command;

use ed25519_dalek::SigningKey;
use qk_node::node::unix_now;
use qk_protocol::assign::Ranking;
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::{Decision, Held, Question, decide};
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, PrincipalId, StatementId};
use qk_protocol::manifest::{KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole};
use qk_protocol::policy::Policy;
use qk_protocol::statement::{Body, Observation, Role, Statement};
use qk_protocol::time::UnixTime;
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, CLIENT, Lab, observation, run};
use serde_json::Value;

/// The principals of the network, all of them verifiers. Their keys are the test's.
const VERIFIERS: [&str; 7] = ["ann", "bob", "cyd", "dan", "eve", "fay", "gus"];
/// Members of a committee.
const COMMITTEE: u32 = 4;
/// What a trojaned program prints beside its name.
const TROJAN: &str = " with a trojan";

/// What a client ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// What the source compiles to is installed.
    Right,
    /// The attacker's is installed.
    Trojan,
    /// Nothing is installed, and `qk fetch` ends with this code.
    Refused(i32),
}

/// Unproven.
const UNPROVEN: End = End::Refused(11);
/// Disputed.
const DISPUTED: End = End::Refused(12);
/// Stale.
const STALE: End = End::Refused(17);

/// A network of the [`VERIFIERS`] whose index is alice's node, who is none of them.
struct Ground {
    lab: Lab,
    clients: Cell<usize>,
}

/// One key with two artifacts: what the source compiles to and what an attacker wants installed.
struct Case {
    /// What is typed to ask for it.
    args: Vec<String>,
    right: Artifact,
    wrong: Artifact,
}

fn signer(name: &str) -> SigningKey {
    SigningKey::from_bytes(&Blake3::of(name.as_bytes()).0)
}

fn principal(name: &str, keys: &[&str]) -> Principal {
    let key = |name: &&str| PrincipalKey {
        key: public_key(&signer(name)),
        state: KeyState::Active,
        retired: None,
    };
    Principal {
        id: PrincipalId(Blake3::of(name.as_bytes()).0),
        name: name.to_owned(),
        roles: [PrincipalRole::Verifier].into(),
        targets: [].into(),
        toolchains: [].into(),
        keys: keys.iter().map(key).collect(),
    }
}

impl Ground {
    /// The network, and alice's node.
    fn new() -> Self {
        let mut ground = Self {
            lab: Lab::new(),
            clients: Cell::new(0),
        };
        // It gives what others built, too: whether somebody gives an artifact is not what is tested.
        ground.lab.configure(ALICE, "[share]\nfetched = true\n");
        ground.lab.start_alice();
        ground.revise(|manifest| {
            let verifiers = VERIFIERS.map(|name| principal(name, &[name]));
            manifest.principals = verifiers.into();
            manifest.committee.size = COMMITTEE;
            // So that the same are drawn in every run.
            manifest.committee.seed = Blake3::of(b"attacks");
        });
        ground
    }

    /// The next version of the manifest, for alice and for clients from now on.
    fn revise(&mut self, change: impl FnOnce(&mut Manifest)) {
        let network = self.lab.next_version(change);
        self.lab.kill(ALICE);
        for name in [ALICE, CLIENT] {
            self.lab.know(name, network.clone());
        }
        self.lab.start_alice();
    }

    fn network(&self) -> Network {
        self.lab.joined(ALICE).network
    }

    /// A case with a key of its own.
    fn case(&self, feature: &str) -> Case {
        self.case_with(feature, Options::default())
    }

    /// As [`case`](Self::case), where the attacker's archive is made with these options.
    fn case_with(&self, feature: &str, attackers: Options) -> Case {
        let network = self.network();
        let features = [feature.to_owned()];
        let right = Options {
            features: features.clone().into(),
            ..Options::default()
        };
        let wrong = Options {
            features: features.into(),
            mark: TROJAN.to_owned(),
            ..attackers
        };
        Case {
            args: [SPEC, "--features", feature].map(str::to_owned).into(),
            right: artifact_with(&network, &right),
            wrong: artifact_with(&network, &wrong),
        }
    }

    /// Who is drawn for the crate of all cases, and who is not, first rank first.
    fn drawn(&self, case: &Case) -> (Vec<&'static str>, Vec<&'static str>) {
        let ranking = Ranking::of(&self.network(), &Candidate::of(&case.right.key));
        let mut names = VERIFIERS.to_vec();
        names.sort_by_key(|name| {
            let id = principal(name, &[]).id;
            ranking.ranks().iter().position(|rank| rank.principal == id)
        });
        let off = names.split_off(COMMITTEE as usize);
        (names, off)
    }

    /// What somebody states of an artifact.
    fn statement(&self, who: &str, artifact: &Artifact) -> Statement {
        self.statement_but(who, artifact, |_| ())
    }

    /// As [`statement`](Self::statement), changed before it is signed.
    fn statement_but(
        &self,
        who: &str,
        artifact: &Artifact,
        change: impl FnOnce(&mut Observation),
    ) -> Statement {
        let mut observation = observation(Role::Verifier, artifact.subject);
        change(&mut observation);
        let body = Body::Observation(observation);
        let id = self.network().id();
        Statement::sign(id, artifact.key.clone(), body, &signer(who)).expect("a statement")
    }

    /// Puts a statement and the artifact that it is about into the network, through alice's node.
    fn publish(&self, artifact: &Artifact, statement: Statement) -> StatementId {
        let id = statement.id();
        let put = self.lab.put(ALICE, Some(artifact.path()), statement);
        put.unwrap_or_else(|problem| panic!("not published: {problem}"));
        id
    }

    /// These people observe the artifact, in this order.
    fn say(&self, people: &[&str], artifact: &Artifact) {
        for who in people {
            self.publish(artifact, self.statement(who, artifact));
        }
    }

    /// The home of a client that never asked before and has this `[policy]` beside the manifest's.
    fn client(&self, policy: &str) -> String {
        let number = self.clients.get();
        self.clients.set(number + 1);
        let name = format!("client-{number}");
        self.lab.add(&name, &format!("[policy]\n{policy}\n"));
        name
    }

    /// What a new client with this policy ends with.
    fn takes(&self, policy: &str, case: &Case) -> End {
        self.fetches(&self.client(policy), case)
    }

    /// What this client ends with.
    fn fetches(&self, client: &str, case: &Case) -> End {
        self.ends(case, &mut self.lab.fetch_command(client, &case.args))
    }

    /// What a `qk fetch` of the case ends with.
    fn ends(&self, case: &Case, fetch: &mut Command) -> End {
        let _ = fs::remove_dir_all(self.lab.root());
        let ran = run(fetch);
        if ran.code() != 0 {
            assert!(self.lab.installed().is_empty(), "{ran:?}");
            eprintln!("refused: {}", ran.error());
            return End::Refused(ran.code());
        }
        let program = self.lab.root().join("bin").join(&case.right.key.name);
        let program = run(&mut Command::new(program));
        match program.stdout.trim_end().ends_with(TROJAN) {
            true => End::Trojan,
            false => End::Right,
        }
    }

    /// What a new client with this policy is told by `qk proofs` about the first network.
    fn proofs(&self, policy: &str, case: &Case) -> Value {
        let client = self.client(policy);
        let args = [&["proofs".to_owned()], &case.args[..]].concat();
        self.lab.qk(&client, &args).done()["networks"][0].take()
    }

    /// Whether these statements suffice for what they are about, for who asks about that at `now`.
    fn decides(&self, policy: &Policy, statements: &[Statement], now: UnixTime) -> bool {
        let held = |one: &Statement| Held {
            statement: one.clone().into(),
            stored: unix_now(),
        };
        let held: Vec<Held> = statements.iter().map(held).collect();
        let question = Question {
            policy,
            network: &self.network(),
            candidate: &Candidate::of(statements[0].key()),
            own: None,
            statements: &held,
            now,
        };
        matches!(decide(&question).decision, Decision::Trusted(_))
    }
}

/// What each statement of somebody did, as `qk proofs` shows it.
fn effects(proofs: &Value, who: &str) -> Vec<String> {
    let lines = proofs["verdict"]["lines"].as_array().expect("lines");
    let own = lines.iter().filter(|line| line["principal"] == who);
    own.map(|line| line["effect"].as_str().unwrap_or_default().to_owned())
        .collect()
}
