//! A crowd: real nodes that rebuild tiny crates in real sandboxes, as the draw assigns them and as
//! dissents call them and for no other reason, with liars among them who state a trojan whenever it is
//! their turn. In the end every honest client has what the source compiles to: from the network where at
//! most one principal dissents, and where more do, so that it is refused, by a build of its own.
//!
//! `QK_CROWD_NODES` (default 5), `QK_CROWD_KEYS` (2) and `QK_CROWD_LIARS` (1) set the size,
//! `QK_CROWD_SEED` who lies and who is drawn:
//!
//! ```text
//! cargo xtask crowd --nodes 20 --keys 10 --liars 3
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qk_node::access::FindSpec;
use qk_protocol::assign::duty;
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::Held;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, PrincipalId, Sha256};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::{KeyState, Principal, PrincipalKey, PrincipalRole};
use qk_protocol::policy::{Count, OnDissent};
use qk_tests::artifact::{Artifact, forged};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run};
use qk_tests::registry::{Crate, Crates, VERSION};
use qk_tests::writer::number;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// What the liars' program prints beside what is right.
const TROJAN: &str = " with a trojan";
/// Builds, and fetches, at the same time.
const AT_ONCE: usize = 2;
/// Rounds of asking everybody what there is to do: one for the committee, one for each liar's dissent,
/// one in which nothing is left.
const ROUNDS_MAX: usize = 8;

/// How large, and how long it may take.
#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: usize,
    keys: usize,
    liars: usize,
    /// Members of a committee.
    committee: u32,
}

impl Size {
    fn from_env() -> Self {
        let size = |name: &str, default| usize::try_from(number(name, default)).expect("a size");
        let nodes = size("QK_CROWD_NODES", 5);
        assert!(
            (5..=200).contains(&nodes),
            "a crowd of {nodes} nodes: 5 to 200"
        );
        Self {
            nodes,
            keys: size("QK_CROWD_KEYS", 2),
            liars: size("QK_CROWD_LIARS", 1),
            // One round more has to be there to be called.
            committee: if nodes < 10 { 3 } else { 5 },
        }
    }

    /// All but one of a committee, so that no number of liars below that makes a proof.
    fn threshold(self) -> u32 {
        self.committee - 1
    }

    /// How long the whole may take, on two processors that are busy with other things as well.
    fn bound(self) -> Duration {
        Duration::from_secs((180 + self.nodes * 2 + self.nodes * self.keys * 3) as u64)
    }
}

/// A key of the network.
struct Key {
    of: Crate,
    candidate: Candidate,
    key: ArtifactKey,
    /// What liars state.
    trojan: Artifact,
    /// Who stated it.
    lied: BTreeSet<String>,
}

struct Crowd {
    lab: Lab,
    _crates: Crates,
    size: Size,
    names: Vec<String>,
    liars: BTreeSet<String>,
    keys: Vec<Key>,
    figures: Figures,
}

/// What happened, printed at the end.
#[derive(Debug, Default)]
struct Figures {
    rounds: usize,
    look_ups: usize,
    rebuilds: usize,
    lies: usize,
    starting: Duration,
    rebuilding: Duration,
    fetching: Duration,
    fetches: usize,
    slowest_fetch: Duration,
    /// Clients that were refused a key and built it themselves.
    own_builds: usize,
}

#[test]
fn every_honest_client_ends_with_the_right_answer() {
    let (size, seed) = (Size::from_env(), number("QK_CROWD_SEED", 1));
    let began = Instant::now();
    let mut crowd = Crowd::new(size, seed);
    crowd.figures.starting = began.elapsed();
    crowd.publish();
    crowd.rebuild();
    crowd.figures.rebuilding = began.elapsed() - crowd.figures.starting;
    let before = Instant::now();
    crowd.fetch();
    crowd.figures.fetching = before.elapsed();
    crowd.check_work();
    let took = began.elapsed();
    let dissenters = crowd.keys.iter().map(|key| key.lied.len());
    let [agreed, contested] =
        [0, 1].map(|lied| dissenters.clone().filter(|one| *one == lied).count());
    let disputed = size.keys - agreed - contested;
    eprintln!("{size:?}, seed {seed}: {:?} lie", crowd.liars);
    eprintln!("{:#?}", crowd.figures);
    eprintln!("keys: {agreed} agreed, {contested} with one dissenter, {disputed} with more");
    let bound = size.bound().as_secs();
    eprintln!("in all {} s, bound {bound} s", took.as_secs());
    assert!(took < size.bound());
}

impl Crowd {
    /// Nodes that run, and a manifest that names them.
    fn new(size: Size, seed: u64) -> Self {
        let mut lab = Lab::new();
        let crates = Crates::new();
        let (variable, value) = crates.variable();
        lab.set(variable, value);
        let others = (3..size.nodes).map(|number| format!("node-{number}"));
        let names = [ALICE, BOB, CAROL].map(str::to_owned).into_iter();
        let names: Vec<String> = names.chain(others).collect();
        let mut shuffled = names.clone();
        shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
        let liars = shuffled.into_iter().take(size.liars).collect();
        for name in &names[3..] {
            lab.add(name, "");
        }
        let network = lab.next_version(|manifest| {
            manifest.principals = names.iter().map(|name| principal(&lab, name)).collect();
            manifest.committee.size = size.committee;
            manifest.committee.seed = Blake3::of(&seed.to_be_bytes());
            manifest.policy.threshold = size.threshold();
            manifest.policy.count = Count::Assigned;
            manifest.policy.on_dissent = Some(OnDissent::Escalate);
        });
        for name in names.iter().map(String::as_str).chain([CLIENT]) {
            // All can be reached on this machine, and need not find that out first.
            lab.configure(name, "[relay]\ntraverse = false\n");
            lab.know(name, network.clone());
        }
        lab.start_alice();
        for name in &names[1..] {
            lab.start_any(name);
        }
        let manifest = network.manifest();
        let source = manifest.registries.first().expect("a registry");
        let key = |number: usize| {
            let of = crates.printing(&format!("qk-crowd-{number}"), "\"\"", &[]);
            let candidate = of.candidate(source, &manifest.builds[0]);
            let key = candidate.key(Sha256::of(of.lock.as_bytes()));
            Key {
                trojan: forged(key.clone(), of.lock.as_bytes(), TROJAN),
                lied: BTreeSet::new(),
                of,
                candidate,
                key,
            }
        };
        let keys = (0..size.keys).map(key).collect();
        Self {
            lab,
            _crates: crates,
            size,
            names,
            liars,
            keys,
            figures: Figures::default(),
        }
    }

    /// Each key is published by somebody, assigned or not.
    fn publish(&mut self) {
        let (liars, names) = (&self.liars, &self.names);
        let whose = |number: usize| names[number % names.len()].clone();
        let all = (0..self.keys.len()).map(|number| (whose(number), number));
        let (lies, builds): (Vec<_>, Vec<_>) = all.partition(|(name, _)| liars.contains(name));
        at_once(&builds, |(name, number)| {
            let spec = self.keys[*number].of.spec();
            let built = self.lab.qk(name, &["build", &spec]).done();
            assert_eq!(built["key_id"], self.keys[*number].key.id().to_string());
        });
        self.figures.rebuilds += builds.len();
        self.lie(lies);
    }

    /// Everybody looks what there is to do, and does it, until there is nothing left.
    fn rebuild(&mut self) {
        for round in 1.. {
            assert!(round <= ROUNDS_MAX, "there is no end to it");
            let all = self.duties();
            if all.is_empty() {
                self.figures.rounds = round;
                return;
            }
            let liars = &self.liars;
            let (lies, builds): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|(name, _)| liars.contains(name));
            at_once(&builds, |(name, number)| self.verify(name, *number));
            self.figures.rebuilds += builds.len();
            self.lie(lies);
        }
    }

    /// Whom the draw, or a dissent, tells to rebuild what, as everybody's own node sees it.
    fn duties(&mut self) -> Vec<(String, usize)> {
        let joined = self.lab.joined(CLIENT).network;
        let asked = self.each_key(self.names.iter().map(String::as_str));
        self.figures.look_ups += asked.len();
        let due = Mutex::new(Vec::new());
        at_once(&asked, |(name, number)| {
            let candidate = &self.keys[*number].candidate;
            let held = self.held(name, candidate);
            if duty(&joined, candidate, &held, id(name)).is_some() {
                due.lock().expect("no panic").push((name.clone(), *number));
            }
        });
        due.into_inner().expect("no panic")
    }

    /// Each of these people with each key.
    fn each_key<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
        let numbers = 0..self.keys.len();
        let each = |name: &'a str| numbers.clone().map(move |number| (name.to_owned(), number));
        names.flat_map(each).collect()
    }

    fn held(&self, name: &str, candidate: &Candidate) -> Vec<Held> {
        let spec = FindSpec {
            network: self.lab.joined(name).network.id(),
            release: candidate.release.clone(),
            offline: false,
        };
        let found = self
            .lab
            .with_access(name, async |access| access.find(&spec).await);
        found.expect("a look-up").held
    }

    /// `qk verify`: a build in the sandbox, and a statement of what came out, whatever others say.
    fn verify(&self, name: &str, number: usize) {
        let ran = self.lab.qk(name, &["verify", &self.keys[number].of.spec()]);
        assert!([0, 12].contains(&ran.code()), "{name}: {ran:?}");
    }

    fn lie(&mut self, lies: Vec<(String, usize)>) {
        for (name, number) in lies {
            let key = &mut self.keys[number];
            self.lab.publish(&name, &key.trojan);
            key.lied.insert(name);
            self.figures.lies += 1;
        }
    }

    /// Every honest owner of a node, and somebody who has none, wants every crate.
    fn fetch(&mut self) {
        let honest = self.names.iter().filter(|name| !self.liars.contains(*name));
        let clients = honest.map(String::as_str).chain([CLIENT]);
        let all = self.each_key(clients);
        let times = Mutex::new(Vec::new());
        let refused = AtomicUsize::new(0);
        at_once(&all, |(client, number)| {
            let began = Instant::now();
            let ran = self.fetches(client, *number);
            times.lock().expect("no panic").push(began.elapsed());
            if ran.code() != 0 {
                let key = &self.keys[*number];
                ran.failed(12, &["disputed"]);
                assert!(
                    key.lied.len() > 1,
                    "{}: refused for {:?}",
                    key.of.name,
                    key.lied
                );
                refused.fetch_add(1, Ordering::SeqCst);
                // What was refused is built by whoever wants it.
                self.verify(client, *number);
                self.fetches(client, *number).done();
            }
            self.is_right(client, *number);
        });
        let times = times.into_inner().expect("no panic");
        self.figures.fetches = times.len();
        self.figures.slowest_fetch = times.into_iter().max().unwrap_or_default();
        self.figures.own_builds = refused.into_inner();
    }

    fn fetches(&self, client: &str, number: usize) -> Ran {
        let spec = self.keys[number].of.spec();
        let fetch = ["fetch", &spec, "--fallback", "none", "--json", "--root"];
        run(self.lab.command(client, &fetch).arg(self.root(client)))
    }

    fn root(&self, client: &str) -> std::path::PathBuf {
        self.lab.dir().join(format!("{client}-root"))
    }

    #[track_caller]
    fn is_right(&self, client: &str, number: usize) {
        let of = &self.keys[number].of;
        let program = self.root(client).join("bin").join(&of.name);
        let ran = run(&mut Command::new(&program));
        let right = format!("{} {}\n", of.name, VERSION);
        assert_eq!(ran.stdout, right, "{client}: {}", program.display());
        fs::remove_file(program).expect("it is there");
    }

    /// What honest people built is seen to be built.
    fn check_work(&self) {
        let names: BTreeMap<PrincipalId, &String> =
            self.names.iter().map(|name| (id(name), name)).collect();
        for key in &self.keys {
            let proofs = self.lab.qk(CLIENT, &["proofs", &key.of.spec()]).done();
            let lines = proofs["networks"][0]["verdict"]["lines"]
                .as_array()
                .expect("lines");
            let honest = lines.iter().filter(|line| {
                let name = line["principal"].as_str().unwrap_or_default();
                names.values().any(|one| *one == name) && !self.liars.contains(name)
            });
            let honest: Vec<_> = honest.collect();
            assert!(honest.len() >= self.size.threshold() as usize, "{proofs}");
            assert!(
                honest.iter().all(|line| line["work_differs"].is_null()),
                "{proofs}"
            );
            assert!(
                honest
                    .iter()
                    .any(|line| line["work_agrees"].as_u64() > Some(0)),
                "{proofs}"
            );
        }
    }
}

fn id(name: &str) -> PrincipalId {
    PrincipalId(Blake3::of(name.as_bytes()).0)
}

/// Somebody with the key that signs statements and that of the node, so that it can be asked directly.
fn principal(lab: &Lab, name: &str) -> Principal {
    let key = |which: &str| PrincipalKey {
        key: public_key(&lab.home(name).key(which).expect("a key")),
        state: KeyState::Active,
        retired: None,
    };
    Principal {
        id: id(name),
        name: name.to_owned(),
        roles: [PrincipalRole::Publisher, PrincipalRole::Verifier].into(),
        targets: [].into(),
        toolchains: [].into(),
        keys: ["observer", "node"].map(key).into(),
    }
}

/// Does something with each, [`AT_ONCE`] at a time.
fn at_once<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::SeqCst)) {
                    work(one);
                }
            });
        }
    });
}
