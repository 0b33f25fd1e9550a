//! What a node gives and takes at most, and when it rests.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qk_protocol::message::{Answer, Get, Request};
use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, Ran, free_port, run, until};
use qk_tests::peer::Peer;
use serde_json::Value;

/// Exit code of a fetch that is trusted and could not be had.
const NOT_HAD: i32 = 14;
const ANYWHERE: &str = "/ip4/127.0.0.1/tcp/0";

fn artifact(lab: &Lab, padding_bytes: usize) -> Artifact {
    let options = Options {
        padding_bytes,
        ..Options::default()
    };
    artifact_with(&lab.joined(ALICE).network, &options)
}

/// Somebody's fetch into a root of their own.
fn fetch(lab: &Lab, name: &str) -> Ran {
    run(&mut fetch_command(lab, name))
}

fn fetch_command(lab: &Lab, name: &str) -> Command {
    let mut command = lab.command(name, &["fetch", "--fallback", "none", "--json", "--force"]);
    let root = lab.dir().join(format!("root-{name}"));
    command.arg("--root").arg(root).arg(SPEC);
    command
}

fn status(lab: &Lab, name: &str) -> Value {
    lab.qk(name, &["status"]).done()
}

/// The reasons for which somebody's node pauses.
fn paused(lab: &Lab, name: &str) -> Vec<String> {
    let status = status(lab, name);
    let reasons = status["paused"].as_array().expect("a list of reasons");
    let reasons = reasons.iter().filter_map(|one| one["reason"].as_str());
    reasons.map(str::to_owned).collect()
}

fn how(ran: &Ran) -> Value {
    ran.done()["crates"][0]["how"].clone()
}

/// Forgets what somebody fetched.
fn forget(lab: &Lab, name: &str) {
    fs::remove_dir_all(lab.home(name).store()).unwrap();
}

#[test]
fn a_leech_gives_nothing_and_without_it_the_same_node_does() {
    let mut lab = Lab::new();
    lab.start_alice();
    let bobs = format!("/ip4/127.0.0.1/tcp/{}", free_port());
    lab.start_with(BOB, &bobs, &[], &[]);
    let artifact = artifact(&lab, 300_000);
    lab.state(ALICE, &artifact);
    // Alice remembers for a day that bob has it.
    assert!(lab.publish(BOB, &artifact).told >= 2);
    lab.stop(BOB, "TERM");
    lab.start_with(BOB, &bobs, &["--leech"], &[]);
    fetch(&lab, CLIENT).failed(NOT_HAD, &["could not be had"]);
    let share = &status(&lab, BOB)["share"];
    assert_eq!(
        (&share["leech"], &share["gives"]),
        (&true.into(), &false.into())
    );
    assert_eq!(share["uploaded_bytes"], 0);
    assert_eq!(lab.publish(BOB, &artifact).told, 0, "nobody is told");
    lab.stop(BOB, "TERM");
    lab.start_with(BOB, &bobs, &[], &[]);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    let given = status(&lab, BOB)["share"]["uploaded_bytes"].as_u64();
    assert!(given >= Some(artifact.subject.size), "{given:?}");
}

/// How many providers of an artifact somebody's node names when it is asked.
fn named_by(lab: &Lab, name: &str, artifact: &Artifact) -> usize {
    let joined = lab.joined(ALICE);
    let get = Request::Get(Get {
        point: artifact.key.release().location(&joined.key()).point(),
        bits: 256,
        observer: None,
        after: None,
    });
    let reply = lab.runtime().block_on(async {
        let peer = Peer::start(joined.network.id(), None).await;
        peer.ask(&lab.addresses(name)[0], &get).await
    });
    match reply.expect("an answer").answer {
        Answer::Statements { providers, .. } => providers.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_announces_nothing_tells_and_serves_only_those_who_ask_it() {
    let mut lab = Lab::new();
    lab.start_alice();
    lab.start_with(BOB, ANYWHERE, &["--no-announce"], &[]);
    let artifact = artifact(&lab, 300_000);
    lab.state(ALICE, &artifact);
    assert_eq!(lab.publish(BOB, &artifact).told, 1, "only itself");
    assert_eq!(named_by(&lab, ALICE, &artifact), 0);
    assert_eq!(named_by(&lab, BOB, &artifact), 1);
    let parent = format!("parent = [{:?}]\n", lab.addresses(BOB)[0]);
    lab.configure(CLIENT, &parent);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    // Without it others are told.
    lab.stop(BOB, "TERM");
    lab.start_any(BOB);
    assert_eq!(lab.publish(BOB, &artifact).told, 2);
    assert_eq!(named_by(&lab, ALICE, &artifact), 1);
}

#[test]
fn what_was_fetched_is_given_only_by_those_who_share() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 300_000);
    lab.state(ALICE, &artifact);
    for (args, code) in [(&[][..], NOT_HAD), (&["--share"][..], 0)] {
        lab.configure(CAROL, "");
        lab.start_any(BOB);
        lab.publish(BOB, &artifact);
        lab.start_with(CLIENT, ANYWHERE, args, &[]);
        assert_eq!(how(&fetch(&lab, CLIENT)), "network");
        let told = lab.with_access(CLIENT, async |access| access.announce().await);
        told.expect("it is told");
        lab.kill(BOB);
        let ran = fetch(&lab, CAROL);
        assert_eq!(ran.code(), code, "{args:?}: {ran:?}");
        // Nor by who asks it without having been told.
        let parent = format!("parent = [{:?}]\n", lab.addresses(CLIENT)[0]);
        lab.configure(CAROL, &parent);
        forget(&lab, CAROL);
        assert_eq!(fetch(&lab, CAROL).code(), code, "{args:?}, asked directly");
        lab.kill(CLIENT);
        forget(&lab, CLIENT);
    }
}

fn download_seconds(ran: &Ran) -> f64 {
    let done = ran.done();
    let stages = done["crates"][0]["stages"].as_array().expect("stages");
    let download = stages.iter().find(|stage| stage["name"] == "download");
    download
        .and_then(|stage| stage["seconds"].as_f64())
        .expect("it was downloaded")
}

/// Two readers at once, so that it is the process that has the limit and not the lane.
#[test]
fn an_upload_rate_is_not_passed() {
    const RATE: u64 = 1 << 20;
    let mut lab = Lab::new();
    let alices = lab.alices_address().to_owned();
    lab.start_with(ALICE, &alices, &["--upload-rate", "1MiB"], &[]);
    let artifact = artifact(&lab, 3 << 20);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let begin = std::time::Instant::now();
    let fetching = [CLIENT, CAROL].map(|name| {
        let mut command = fetch_command(&lab, name);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    });
    for mut child in fetching {
        assert!(child.wait().unwrap().success());
    }
    let seconds = begin.elapsed().as_secs_f64();
    let given = status(&lab, ALICE)["share"]["uploaded_bytes"]
        .as_u64()
        .unwrap();
    assert!(given >= 2 * artifact.subject.size, "{given}");
    let least = given as f64 / RATE as f64;
    println!("{given} bytes in {seconds:.2} s at {RATE} bytes/s: at least {least:.2} s");
    assert!(seconds >= 0.85 * least, "{given} bytes in {seconds} s");

    // Without the rate it takes a fraction of that.
    lab.stop(ALICE, "TERM");
    lab.start_alice();
    forget(&lab, CLIENT);
    let free = download_seconds(&fetch(&lab, CLIENT));
    println!("without it {free:.2} s for half of that");
    assert!(free < least / 4.0, "{free} s");
}

/// One's own fetches are slowed down only by who asks for it.
#[test]
fn a_download_rate_holds_for_own_fetches_only_where_the_owner_says_so() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 3 << 20);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let mut seconds = Vec::new();
    for own in [false, true] {
        let config = format!("[share]\ndownload_rate = \"1 MiB\"\ndownload_own = {own}\n");
        lab.configure(CLIENT, &config);
        seconds.push(download_seconds(&fetch(&lab, CLIENT)));
        forget(&lab, CLIENT);
    }
    println!(
        "free {:.2} s, own fetches too {:.2} s",
        seconds[0], seconds[1]
    );
    let least = artifact.subject.size as f64 / f64::from(1 << 20);
    assert!(seconds[1] >= 0.85 * least, "{seconds:?}");
    assert!(seconds[0] < least / 2.0, "{seconds:?}");
}

#[test]
fn a_months_bytes_last_through_a_kill_and_no_longer() {
    const CAP: u64 = 3 << 20;
    let mut lab = Lab::new();
    lab.configure(ALICE, "[share]\nupload_month = \"3 MiB\"\n");
    lab.start_alice();
    let artifact = artifact(&lab, 2_200_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    let given = || {
        status(&lab, ALICE)["share"]["uploaded_bytes"]
            .as_u64()
            .unwrap()
    };
    let once = given();
    assert!((artifact.subject.size..CAP).contains(&once), "{once}");
    fetch(&lab, CAROL).failed(NOT_HAD, &["could not be had"]);
    assert!(given() <= CAP);
    lab.kill(ALICE);
    lab.start_alice();
    let after = status(&lab, ALICE)["share"]["uploaded_bytes"]
        .as_u64()
        .unwrap();
    assert!(
        (once..=CAP + (64 << 10)).contains(&after),
        "{after}, before {once}"
    );
    forget(&lab, CAROL);
    fetch(&lab, CAROL).failed(NOT_HAD, &["could not be had"]);
    // It is the cap that refuses.
    lab.stop(ALICE, "TERM");
    lab.configure(ALICE, "[share]\nupload_month = \"30 MiB\"\n");
    lab.start_alice();
    assert_eq!(how(&fetch(&lab, CAROL)), "network");
}

/// A laptop, as the kernel describes one.
struct Laptop(PathBuf);

impl Laptop {
    fn new(lab: &Lab) -> Self {
        let laptop = Self(lab.dir().join("supplies"));
        laptop.says("BAT0/type", "Battery");
        laptop.says("BAT0/status", "Discharging");
        laptop.says("AC/type", "Mains");
        laptop.says("AC/online", "0");
        laptop
    }

    fn says(&self, attribute: &str, value: &str) {
        let path = self.0.join(attribute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn env(&self) -> [(&str, &OsStr); 1] {
        [("QK_POWER_SUPPLY_DIR", self.0.as_os_str())]
    }
}

#[test]
fn on_battery_others_get_nothing_and_the_owners_fetch_goes_on() {
    let mut lab = Lab::new();
    let laptop = Laptop::new(&lab);
    let alices = lab.alices_address().to_owned();
    lab.start_with(ALICE, &alices, &[], &laptop.env());
    lab.start_any(BOB);
    let artifact = artifact(&lab, 300_000);
    until("the battery is noticed", || {
        paused(&lab, ALICE) == ["battery"]
    });
    lab.state(ALICE, &artifact);
    lab.publish(BOB, &artifact);
    // Alice's own, by way of her node that rests.
    let own = fetch(&lab, ALICE);
    assert_eq!(how(&own), "network");
    lab.kill(BOB);
    fetch(&lab, CLIENT).failed(NOT_HAD, &["could not be had"]);
    assert_eq!(status(&lab, ALICE)["share"]["uploaded_bytes"], 0);
    // The index answers all the while.
    lab.qk(CLIENT, &["proofs", SPEC]).done();
    laptop.says("AC/online", "1");
    until("it is plugged in", || paused(&lab, ALICE).is_empty());
    // It makes up for what it did not announce.
    until("others get it", || fetch(&lab, CLIENT).code() == 0);
}

#[test]
fn who_does_not_want_to_pause_on_battery_does_not() {
    let mut lab = Lab::new();
    let laptop = Laptop::new(&lab);
    lab.configure(ALICE, "[pause]\nbattery = false\n");
    let alices = lab.alices_address().to_owned();
    lab.start_with(ALICE, &alices, &[], &laptop.env());
    let artifact = artifact(&lab, 300_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    assert!(paused(&lab, ALICE).is_empty());
}

#[test]
fn a_pause_on_request_survives_a_restart_and_ends_when_it_said() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 300_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    lab.qk(ALICE, &["node", "pause", "--for", "2 hours"])
        .failed(2, &["such as 90s, 30m, 2h"]);
    let done = lab.qk(ALICE, &["node", "pause", "--for", "2h"]).done();
    assert_eq!(done["paused"][0]["reason"], "request");
    assert!(done["paused"][0]["until"].is_u64(), "{done}");
    fetch(&lab, CLIENT).failed(NOT_HAD, &["could not be had"]);
    lab.kill(ALICE);
    lab.start_alice();
    assert_eq!(paused(&lab, ALICE), ["request"]);
    let resumed = lab.qk(ALICE, &["node", "resume"]).done();
    assert_eq!(resumed["paused"], Value::Array(Vec::new()));
    until("others get it again", || fetch(&lab, CLIENT).code() == 0);
    lab.qk(ALICE, &["node", "pause", "--for", "1s"]).done();
    until("it is over", || paused(&lab, ALICE).is_empty());
    // Without a node it is written down for the next.
    lab.stop(ALICE, "TERM");
    lab.qk(ALICE, &["node", "pause"]).done();
    lab.start_alice();
    assert_eq!(paused(&lab, ALICE), ["request"]);
    assert!(fs::metadata(lab.home(ALICE).dir().join("pause.json")).is_ok());
}

#[test]
fn what_a_fetch_named_is_not_evicted_before_it_is_installed() {
    let mut lab = Lab::new();
    lab.start_alice();
    let artifact = artifact(&lab, 300_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    let blob = lab.blob(CLIENT, artifact.subject.root);
    lab.start_with(CLIENT, ANYWHERE, &["--quota", "1KiB"], &[]);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    let cleaned = lab.qk(CLIENT, &["store", "gc"]).done();
    assert_eq!(cleaned["evicted"], Value::Array(Vec::new()), "{cleaned}");
    assert!(blob.exists());
    // Its leases end with the node: then the quota has its way.
    lab.stop(CLIENT, "TERM");
    lab.start_with(CLIENT, ANYWHERE, &["--quota", "1KiB"], &[]);
    until("it is evicted", || !blob.exists());
}

/// A bus of this test's own.
struct Bus {
    daemon: Child,
    address: String,
    network_manager: Option<Child>,
    python: PathBuf,
    library: PathBuf,
}

impl Bus {
    const NAME: &str = "org.freedesktop.NetworkManager";
    const PATH: &str = "/org/freedesktop/NetworkManager";

    /// None where this machine cannot have one, which is said.
    fn start(lab: &Lab) -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED: no test of metered links: {why}");
            None
        };
        let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
            let has = "import dbus, gi; from gi.repository import GLib";
            succeeds(Command::new(python).args(["-c", has]))
        });
        let Some(python) = python else {
            return skip(
                "python3 with dbus and gi is not here (apt-get install python3-dbus python3-gi)",
            );
        };
        let Some(library) = dbusmock(python) else {
            return skip("pip cannot install python-dbusmock");
        };
        let path = lab.dir().join("bus");
        let mut daemon = Command::new("dbus-daemon");
        daemon
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .arg(format!("--address=unix:path={}", path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(mut daemon) = daemon.spawn() else {
            return skip("dbus-daemon is not here (apt-get install dbus)");
        };
        // It listens once it says where. What it says names the daemon, too: the next one is another.
        let mut said = String::new();
        let stdout = daemon.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        Some(Self {
            daemon,
            address: format!("unix:path={}", path.display()),
            network_manager: None,
            python: python.into(),
            library,
        })
    }

    fn start_network_manager(&mut self, metered: u32) {
        let mut mock = self.python();
        mock.args([
            "-m",
            "dbusmock",
            "--system",
            Self::NAME,
            Self::PATH,
            Self::NAME,
        ]);
        mock.stdout(Stdio::null());
        self.network_manager = Some(mock.spawn().unwrap());
        let property = format!("variant:uint32:{metered}");
        until("NetworkManager is on the bus", || {
            let method = "org.freedesktop.DBus.Mock.AddProperty";
            self.call(&[
                method,
                &format!("string:{}", Self::NAME),
                "string:Metered",
                &property,
            ])
        });
    }

    fn stop_network_manager(&mut self) {
        let mut mock = self.network_manager.take().unwrap();
        mock.kill().unwrap();
        mock.wait().unwrap();
    }

    fn set(&self, metered: u32) {
        let property = format!("variant:uint32:{metered}");
        let method = "org.freedesktop.DBus.Properties.Set";
        let set = [
            method,
            &format!("string:{}", Self::NAME),
            "string:Metered",
            &property,
        ];
        assert!(self.call(&set), "Metered = {metered}");
    }

    fn call(&self, arguments: &[&str]) -> bool {
        let mut send = Command::new("dbus-send");
        send.args(["--system", "--print-reply", "--type=method_call"])
            .arg(format!("--dest={}", Self::NAME))
            .arg(Self::PATH)
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        succeeds(&mut send)
    }

    fn python(&self) -> Command {
        let mut python = Command::new(&self.python);
        python
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("PYTHONPATH", &self.library);
        python
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for child in self.network_manager.iter_mut().chain([&mut self.daemon]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Where python-dbusmock is, below `target`; installed if it is not.
fn dbusmock(python: &str) -> Option<PathBuf> {
    let target = qk_tests::qk().parent()?.parent()?.to_owned();
    let library = target.join("dbusmock");
    if !library.join("dbusmock").is_dir() {
        let mut pip = Command::new("python3");
        // What it needs beside itself is a library of C, and the system's.
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&library)
            .arg("python-dbusmock==0.38.1");
        succeeds(&mut pip).then_some(())?;
    }
    let mut import = Command::new(python);
    import
        .args(["-c", "import dbusmock"])
        .env("PYTHONPATH", &library);
    succeeds(&mut import).then_some(library)
}

#[test]
fn on_a_metered_link_others_get_nothing() {
    let mut lab = Lab::new();
    let Some(mut bus) = Bus::start(&lab) else {
        return;
    };
    let alices = lab.alices_address().to_owned();
    let address = bus.address.clone();
    let env = [("DBUS_SYSTEM_BUS_ADDRESS", OsStr::new(&address))];
    // A bus without NetworkManager: not metered.
    lab.start_with(ALICE, &alices, &[], &env);
    let artifact = artifact(&lab, 300_000);
    lab.publish(ALICE, &artifact);
    lab.state(BOB, &artifact);
    assert_eq!(how(&fetch(&lab, CLIENT)), "network");
    assert!(paused(&lab, ALICE).is_empty());

    // It appears, changes its mind, goes away and comes again.
    bus.start_network_manager(1);
    bus.set(1);
    until("it is metered", || paused(&lab, ALICE) == ["metered"]);
    forget(&lab, CLIENT);
    fetch(&lab, CLIENT).failed(NOT_HAD, &["could not be had"]);
    bus.set(4);
    until("a guess says no", || paused(&lab, ALICE).is_empty());
    bus.set(3);
    until("a guess says yes", || paused(&lab, ALICE) == ["metered"]);
    bus.stop_network_manager();
    until("nobody says anything", || paused(&lab, ALICE).is_empty());
    bus.start_network_manager(1);
    bus.set(1);
    until("it is metered again", || paused(&lab, ALICE) == ["metered"]);

    // The bus is started anew at the same address, with nobody on it.
    let path = address
        .trim_start_matches("unix:path=")
        .split(',')
        .next()
        .unwrap();
    bus.stop_network_manager();
    drop(bus);
    until("the bus is gone", || paused(&lab, ALICE).is_empty());
    let _ = fs::remove_file(Path::new(path));
    let mut bus = Bus::start(&lab).expect("it was here before");
    bus.start_network_manager(1);
    bus.set(1);
    until("the new bus is found", || {
        paused(&lab, ALICE) == ["metered"]
    });
    // All of that is the way of the world, and nothing to warn of.
    let log = lab.log(ALICE);
    let warned = |line: &str| line.contains("WARN") && line.contains("bus");
    assert!(!log.lines().any(warned), "{log}");
}
