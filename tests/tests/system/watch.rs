//! Volunteers: `qk verify --watch` among real nodes, with real sandboxes and crates so small that they
//! build in seconds.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use qk_node::access::FindSpec;
use qk_protocol::assign::Ranking;
use qk_protocol::candidate::Candidate;
use qk_protocol::hash::{Root, Sha256};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::{Body, Reason, Statement, Subject};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, run, send, until, wait};
use qk_tests::registry::{BROKEN, Crates, ENDLESS, GOOD, GREEDY};
use serde_json::Value;

/// Longer than any step takes, however loaded the machine is: some of them build.
const PATIENCE: Duration = Duration::from_secs(240);

/// A process that watches, and what it tells.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
    told: VecDeque<Value>,
}

impl Watcher {
    fn start(lab: &Lab, crates: &Crates, name: &str, args: &[&str]) -> Self {
        Self::spawn(lab, crates, name, args, &[])
    }

    fn spawn(
        lab: &Lab,
        crates: &Crates,
        name: &str,
        args: &[&str],
        env: &[(&str, &std::path::Path)],
    ) -> Self {
        let mut all = vec!["verify", "--watch", "--json", "--every", "1s"];
        all.extend(args);
        let mut command = crates.used_by(lab.command(name, &all));
        let mut child = command
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qk starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("{line}");
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            lines,
            told: VecDeque::new(),
        }
    }

    /// Waits for an event of this sort; those before it stay to be waited for.
    #[track_caller]
    fn event(&mut self, sort: &str, name: &str) -> Value {
        let is =
            |event: &Value| event["event"] == sort && (name.is_empty() || event["name"] == name);
        if let Some(at) = self.told.iter().position(is) {
            return self.told.remove(at).expect("it is there");
        }
        let began = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("waited in vain for {sort} {name}"));
            let event: Value = serde_json::from_str(&line).expect("a line of JSON");
            assert_eq!(qk_tests::schema::check("verify", &event), Ok(()));
            if is(&event) {
                return event;
            }
            self.told.push_back(event);
        }
    }

    /// Ctrl-C.
    fn stop(mut self) {
        send(self.child.id(), "INT");
        let status = wait(&mut self.child);
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qk(lab: &Lab, crates: &Crates, name: &str, args: &[&str]) -> Ran {
    run(crates.used_by(lab.command(name, args)).arg("--json"))
}

fn status(lab: &Lab, crates: &Crates, name: &str) -> Value {
    qk(lab, crates, name, &["verify", "--status"]).done()
}

/// What alice's node knows that somebody stated about a key.
fn stated_by(lab: &Lab, name: &str, key: &ArtifactKey) -> Vec<Statement> {
    let spec = FindSpec {
        network: lab.joined(ALICE).network.id(),
        release: key.release(),
        offline: false,
    };
    let own = qk_protocol::dsse::public_key(&lab.home(name).key("observer").unwrap());
    let found = lab.with_access(ALICE, async |access| access.find(&spec).await);
    let held = found.unwrap().held.into_iter();
    held.map(|held| (*held.statement).clone())
        .filter(|one| one.observer() == own && one.key() == key)
        .collect()
}

/// An artifact that nobody gets by building.
fn made_up(mark: &str) -> Subject {
    Subject {
        root: Root::of(mark.as_bytes()),
        sha256: Sha256::of(mark.as_bytes()),
        size: mark.len() as u64,
    }
}

/// Publishes somebody's observation of what was never built.
fn claim(lab: &Lab, name: &str, key: &ArtifactKey, mark: &str) {
    let statement = lab.observe(name, key, made_up(mark));
    lab.put(name, None, statement).expect("it is taken");
}

/// The processes below this one, itself excluded, by `/proc`.
fn below(process: u32) -> Vec<u32> {
    let mut all = Vec::new();
    // Threads start processes, too.
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in text.split_whitespace().filter_map(|one| one.parse().ok()) {
            all.push(child);
            all.extend(below(child));
        }
    }
    all
}

/// Whether a build script runs below a process.
fn build_script_runs(process: u32) -> bool {
    below(process).into_iter().any(|one| {
        let name = fs::read_to_string(format!("/proc/{one}/comm")).unwrap_or_default();
        name.starts_with("build-script")
    })
}

/// The nice value of a process.
fn nice(process: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(16)?.parse().ok()
}

#[test]
fn what_is_published_is_noticed_rebuilt_and_published() {
    let crates = Crates::new();
    crates.add("tiny", "1.0.0", GOOD, None);
    let mut lab = Lab::new();
    lab.start_alice();
    let mut bob = Watcher::start(&lab, &crates, BOB, &["--jobs", "1"]);
    let greeting = bob.event("note", "");
    assert_eq!(greeting["text"], "rebuilds for bob in network lab");
    let built = qk(&lab, &crates, ALICE, &["build", "tiny@1.0.0", "--no-gate"]).done();
    let noticed = bob.event("noticed", "tiny");
    let latency = noticed["after_seconds"].as_u64().unwrap();
    println!("noticed {latency} s after it was built, looking every second");
    assert!(latency <= 30, "{noticed}");
    assert_eq!(noticed["why"], "assigned");
    bob.event("rebuilding", "tiny");
    let process = bob.child.id();
    until("the build runs at the lowest priority", || {
        let below = below(process).into_iter();
        below.filter_map(nice).any(|nice| nice == 19)
    });
    let rebuilt = bob.event("rebuilt", "tiny");
    assert_eq!(rebuilt["root"], built["root"], "{rebuilt}");
    assert_eq!(
        (&rebuilt["agreement"], &rebuilt["principal"]),
        (&"identical".into(), &"bob".into())
    );
    let key = crates.key(&lab.joined(ALICE).network, "tiny", "1.0.0");
    assert_eq!(stated_by(&lab, BOB, &key).len(), 1);
    let said = status(&lab, &crates, BOB);
    assert_eq!(
        (&said["running"], &said["process"]),
        (&true.into(), &process.into()),
        "{said}"
    );
    assert_eq!(said["rebuilt"]["identical"], 1);
    assert_eq!(said["results"][0]["release"]["name"], "tiny");
    // A second one would rebuild everything twice.
    qk(&lab, &crates, BOB, &["verify", "--watch"])
        .failed(1, &["runs here already", &process.to_string()]);
    bob.stop();
    assert_eq!(status(&lab, &crates, BOB)["running"], false);
    // Two principals agree: that suffices to the client, who now audits it, and counts for nobody.
    let mut client = Watcher::start(&lab, &crates, CLIENT, &[]);
    let greeting = client.event("note", "");
    let text = greeting["text"].as_str().unwrap();
    assert!(text.contains("published, and not counted"), "{text}");
    assert_eq!(client.event("noticed", "tiny")["why"], "audit");
    let rebuilt = client.event("rebuilt", "tiny");
    assert_eq!(
        (&rebuilt["agreement"], &rebuilt["principal"]),
        (&"identical".into(), &Value::Null)
    );
    client.stop();
}

#[test]
fn an_endless_crate_and_a_killed_process_hold_up_nothing() {
    let crates = Crates::new();
    crates.add("endless", "1.0.0", GOOD, Some(ENDLESS));
    crates.add("broken", "1.0.0", BROKEN, None);
    crates.add("good", "1.0.0", GOOD, None);
    let mut lab = Lab::new();
    lab.start_alice();
    let network = lab.joined(ALICE).network;
    let key = |name: &str| crates.key(&network, name, "1.0.0");
    let mut carol = Watcher::start(&lab, &crates, CAROL, &[]);
    claim(&lab, ALICE, &key("endless"), "endless");
    carol.event("rebuilding", "endless");
    for name in ["broken", "good"] {
        claim(&lab, ALICE, &key(name), name);
        carol.event("noticed", name);
    }
    let process = carol.child.id();
    until("its build script runs", || build_script_runs(process));
    let said = status(&lab, &crates, CAROL);
    assert_eq!(said["building"]["name"], "endless", "{said}");
    assert_eq!(said["queue"].as_array().unwrap().len(), 2, "{said}");
    let inside = below(process);
    carol.child.kill().unwrap();
    assert_eq!(carol.child.wait().unwrap().signal(), Some(9));
    until("its build is gone, too", || {
        inside
            .iter()
            .all(|one| !std::path::Path::new(&format!("/proc/{one}")).exists())
    });
    assert!(stated_by(&lab, CAROL, &key("endless")).is_empty());
    let said = status(&lab, &crates, CAROL);
    assert_eq!(
        (&said["running"], &said["building"]["name"]),
        (&false.into(), &"endless".into())
    );
    // What was under way when it died comes last, and has its time.
    let mut carol = Watcher::start(&lab, &crates, CAROL, &["--time-limit", "20s"]);
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(carol.event("rebuilding", "")["name"].clone());
    }
    assert_eq!(order[2], "endless", "{order:?}");
    assert_eq!(carol.event("rebuilt", "good")["agreement"], "differs");
    let failed = carol.event("failed", "broken");
    assert_eq!(failed["class"], "compile-error", "{failed}");
    let failed = carol.event("failed", "endless");
    assert_eq!(failed["class"], "time-out", "{failed}");
    let said = status(&lab, &crates, CAROL);
    let expected = serde_json::json!({"compile-error": 1, "time-out": 1, "interrupted": 1});
    assert_eq!(said["failed"], expected, "{said}");
    for waiting in said["queue"].as_array().unwrap() {
        let (found, due) = (
            waiting["found"].as_u64().unwrap(),
            waiting["due"].as_u64().unwrap(),
        );
        assert!(due > found + 20 * 3600, "{waiting}");
    }
    for (name, reason) in [
        ("broken", Reason::CompileError),
        ("endless", Reason::TimeOut),
    ] {
        let stated = stated_by(&lab, CAROL, &key(name));
        assert_eq!(stated.len(), 1);
        let Body::Failure(failure) = stated[0].body() else {
            panic!("{:?}", stated[0]);
        };
        assert_eq!(failure.reason, reason);
    }
    carol.stop();
    let work = fs::read_dir(lab.home(CAROL).work()).unwrap();
    let left: Vec<_> = work.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_fills_the_disk_is_stopped_in_time() {
    let crates = Crates::new();
    crates.add("greedy", "1.0.0", GOOD, Some(GREEDY));
    let mut lab = Lab::new();
    lab.start_alice();
    let key = crates.key(&lab.joined(ALICE).network, "greedy", "1.0.0");
    claim(&lab, ALICE, &key, "greedy");
    let mut bob = Watcher::start(&lab, &crates, BOB, &["--disk", "400MiB"]);
    let failed = bob.event("failed", "greedy");
    assert_eq!(failed["class"], "disk-full", "{failed}");
    // It says nothing about the crate.
    assert!(stated_by(&lab, BOB, &key).is_empty());
    assert_eq!(status(&lab, &crates, BOB)["queue"][0]["last"], "disk-full");
    bob.stop();
}

#[test]
fn ctrl_c_leaves_nothing_and_keeps_the_queue() {
    let crates = Crates::new();
    crates.add("endless", "1.0.0", GOOD, Some(ENDLESS));
    let mut lab = Lab::new();
    lab.start_alice();
    let key = crates.key(&lab.joined(ALICE).network, "endless", "1.0.0");
    claim(&lab, ALICE, &key, "endless");
    let mut bob = Watcher::start(&lab, &crates, BOB, &[]);
    bob.event("rebuilding", "endless");
    let process = bob.child.id();
    until("its build script runs", || build_script_runs(process));
    let inside = below(process);
    bob.stop();
    for one in inside {
        assert!(
            !std::path::Path::new(&format!("/proc/{one}")).exists(),
            "{one} lives on"
        );
    }
    let work = fs::read_dir(lab.home(BOB).work()).unwrap();
    let left: Vec<_> = work.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let said = status(&lab, &crates, BOB);
    assert_eq!(said["building"], Value::Null, "{said}");
    assert_eq!(
        (&said["queue"][0]["name"], &said["queue"][0]["tries"]),
        (&"endless".into(), &0.into())
    );
    // A damaged queue is found again.
    fs::write(lab.home(BOB).dir().join("watch.json"), "{").unwrap();
    let mut bob = Watcher::start(&lab, &crates, BOB, &[]);
    bob.event("noticed", "endless");
    bob.event("rebuilding", "endless");
    bob.stop();
}

#[test]
fn a_dissent_calls_the_next_rank() {
    let crates = Crates::new();
    let mut lab = Lab::new();
    let file = lab.network_file();
    let file = file.to_str().unwrap();
    lab.qk(
        ALICE,
        &["network", "set", "--committee", "1", "--output", file],
    )
    .done();
    for name in [BOB, CAROL, CLIENT] {
        lab.qk(name, &["join", file]).done();
    }
    let network = lab.joined(ALICE).network;
    assert_eq!(network.manifest().committee.size, 1);
    let id = |name: &str| {
        let mut all = network.manifest().principals.iter();
        all.find(|one| one.name == name).expect("a principal").id
    };
    // The release of which alice is the committee, and bob the next rank.
    let key = (0..100).find_map(|minor| {
        let version = format!("1.{minor}.0");
        crates.add("tiny", &version, GOOD, None);
        let key = crates.key(&network, "tiny", &version);
        let ranking = Ranking::of(&network, &Candidate::of(&key));
        let rounds = [ALICE, BOB].map(|name| ranking.round_of(id(name)));
        (rounds == [Some(0), Some(1)]).then_some(key)
    });
    let key = key.expect("one of a hundred");
    lab.start_alice();
    claim(&lab, ALICE, &key, "right");
    claim(&lab, CAROL, &key, "wrong");
    let mut bob = Watcher::start(&lab, &crates, BOB, &[]);
    let noticed = bob.event("noticed", "tiny");
    assert_eq!(noticed["why"], "called", "{noticed}");
    let dissenter = noticed["by"].as_str().expect("whose dissent");
    assert!(
        [id(ALICE), id(CAROL)]
            .iter()
            .any(|one| one.to_string() == dissenter),
        "{noticed}"
    );
    assert_eq!(bob.event("rebuilt", "tiny")["agreement"], "differs");
    assert_eq!(stated_by(&lab, BOB, &key).len(), 1);
    bob.stop();
}

#[test]
fn bad_budgets_are_named_and_good_ones_wait() {
    let crates = Crates::new();
    crates.add("tiny", "1.0.0", GOOD, None);
    let mut lab = Lab::new();
    let bad: &[(&[&str], &[&str])] = &[
        (&["--cpu-hours", "0"], &["--cpu-hours", "more than 0"]),
        (&["--cpu-hours", "many"], &["--cpu-hours", "such as 4"]),
        (&["--jobs", "0"], &["--jobs", "from 1 to"]),
        (&["--disk", "5"], &["--disk", "at least 64 MiB"]),
        (&["--disk", "much"], &["--disk", "no size such as"]),
        (&["--hours", "22"], &["--hours", "such as 22-06"]),
        (&["--time-limit", "3d"], &["--time-limit", "from 1s to 24h"]),
        (&["--every", "0s"], &["--every", "from 1s to 24h"]),
    ];
    for (args, words) in bad {
        let all: Vec<&str> = ["verify", "--watch"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        qk(&lab, &crates, BOB, &all).failed(2, words);
    }
    qk(&lab, &crates, BOB, &["verify", "--once", "--jobs", "1"]).failed(2, &["--jobs", "--once"]);
    lab.configure(BOB, "[verify]\njobs = 0\n");
    qk(&lab, &crates, BOB, &["verify", "--watch"]).failed(2, &["verify.jobs"]);
    lab.configure(BOB, "");
    let mut without = crates.used_by(lab.command(BOB, &["verify", "--watch", "--json"]));
    run(without.env("QK_TOOLCHAINS", lab.dir().join("nothing")))
        .failed(13, &["building needs", "qk setup"]);
    qk(&lab, &crates, "nobody", &["verify", "--watch"]).failed(11, &["no network is joined"]);
    let said = status(&lab, &crates, BOB);
    assert_eq!(
        (&said["running"], said["queue"].as_array().map(Vec::len)),
        (&false.into(), Some(0))
    );

    lab.start_alice();
    let key = crates.key(&lab.joined(ALICE).network, "tiny", "1.0.0");
    claim(&lab, ALICE, &key, "tiny");
    let supply = lab.dir().join("supplies");
    let battery = |state: &str| {
        fs::create_dir_all(supply.join("BAT0")).unwrap();
        fs::write(supply.join("BAT0/type"), "Battery").unwrap();
        fs::write(supply.join("BAT0/status"), state).unwrap();
    };
    let load = lab.dir().join("loadavg");
    fs::write(&load, "99.00 99.00 99.00 9/99 999").unwrap();
    battery("Discharging");
    let env = [
        ("QK_POWER_SUPPLY_DIR", supply.as_path()),
        ("QK_LOADAVG_FILE", load.as_path()),
    ];
    let mut bob = Watcher::spawn(&lab, &crates, BOB, &["--idle", "--cpu-hours", "2"], &env);
    let waits = |event: &Value| event["waits"].clone();
    assert_eq!(
        waits(&bob.event("waiting", "")),
        serde_json::json!(["paused", "busy"])
    );
    assert_eq!(
        status(&lab, &crates, BOB)["waits"],
        serde_json::json!(["paused", "busy"])
    );
    battery("Full");
    assert_eq!(
        waits(&bob.event("waiting", "")),
        serde_json::json!(["busy"])
    );
    // It looks round all the same, and says what is left.
    bob.event("noticed", "tiny");
    let said = status(&lab, &crates, BOB);
    assert_eq!(said["cpu_seconds_left"], 7200);
    fs::write(&load, "0.10 0.10 0.10 1/99 999").unwrap();
    assert_eq!(waits(&bob.event("waiting", "")), serde_json::json!([]));
    bob.event("rebuilt", "tiny");
    until("what it took is counted", || {
        status(&lab, &crates, BOB)["cpu_seconds_left"].as_u64() < Some(7200)
    });
    bob.stop();
    // For people.
    let shown = run(&mut crates.used_by(lab.command(BOB, &["verify", "--status"])));
    for words in ["not watching", "CPU time left today", "1 rebuilt", "DIFFER"] {
        assert!(shown.stdout.contains(words), "{}", shown.stdout);
    }
}
