//! Two laptops behind different NATs, and a public node between them: real processes in network
//! namespaces, nftables as the NATs, and counters on the wires.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use qk_tests::artifact::{Artifact, Options, SPEC, artifact_with};
use qk_tests::lab::{ALICE, BOB, CAROL, CLIENT, Lab, PATIENCE, Ran};
use serde_json::Value;

/// Addresses that qk takes for public ones; they lead nowhere outside of these namespaces.
const PUBLIC: &str = "45.10.1.1";
const CAROL_PUBLIC: &str = "45.10.4.1";
const ROUTERS: [(&str, &str); 2] = [(BOB, "45.10.2.1"), (CLIENT, "45.10.3.1")];
/// More than all that is not the artifact: look-ups, probes of reachability, the relay.
const ARTIFACT_BYTES: usize = 12_000_000;
/// Worlds of this process, so that each has names of its own.
static WORLDS: AtomicUsize = AtomicUsize::new(0);
/// How a laptop listens.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"];

/// A public network with two routers and a host behind each. The namespaces are removed when it is
/// dropped.
struct World {
    prefix: String,
    made: Vec<String>,
}

impl World {
    /// None, with a loud word about it, where this process may not make namespaces or NATs.
    fn new() -> Option<Self> {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let mut world = Self {
            prefix: format!("qk{}-{number}", std::process::id()),
            made: Vec::new(),
        };
        for name in ["wire", ALICE, BOB, CAROL, CLIENT, "bob-nat", "client-nat"] {
            let namespace = world.namespace(name);
            if let Err(why) = call("ip", &["netns", "add", &namespace]) {
                eprintln!("SKIPPED: NAT traversal is not tested, since {why}");
                return None;
            }
            world.made.push(namespace);
        }
        if let Err(why) = world.inside("bob-nat", "nft", &["list", "ruleset"]) {
            eprintln!("SKIPPED: NAT traversal is not tested, since {why}");
            return None;
        }
        world.build();
        Some(world)
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn build(&self) {
        self.must("wire", "ip", &["link", "add", "br0", "type", "bridge"]);
        self.must("wire", "ip", &["link", "set", "br0", "up"]);
        self.plug("wire", "w0", ALICE, "pub", Some(&format!("{PUBLIC}/16")));
        let address = format!("{CAROL_PUBLIC}/16");
        self.plug("wire", "w9", CAROL, "pub", Some(&address));
        for (index, (laptop, public)) in ROUTERS.into_iter().enumerate() {
            let nat = format!("{laptop}-nat");
            let wire = format!("w{}", index + 1);
            self.plug("wire", &wire, &nat, "pub", Some(&format!("{public}/16")));
            self.plug(&nat, "lan", laptop, "eth", Some("192.168.1.2/24"));
            self.must(&nat, "ip", &["addr", "add", "192.168.1.1/24", "dev", "lan"]);
            let route = ["route", "add", "default", "via", "192.168.1.1"];
            self.must(laptop, "ip", &route);
            let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
            self.must(&nat, "sh", &["-c", forward]);
            self.rules(&nat, public, false);
        }
    }

    /// A cable between two namespaces; the far end gets an address, a near end at the wire goes into
    /// its bridge.
    fn plug(&self, near: &str, near_end: &str, far: &str, far_end: &str, address: Option<&str>) {
        let (near_ns, far_ns) = (self.namespace(near), self.namespace(far));
        let link = [
            "-n", &near_ns, "link", "add", near_end, "type", "veth", "peer", "name", far_end,
            "netns", &far_ns,
        ];
        call("ip", &link).unwrap();
        if near == "wire" {
            self.must(near, "ip", &["link", "set", near_end, "master", "br0"]);
        }
        if let Some(address) = address {
            self.must(far, "ip", &["addr", "add", address, "dev", far_end]);
        }
        for (namespace, end) in [(near, near_end), (far, far_end)] {
            self.must(namespace, "ip", &["link", "set", end, "up"]);
            self.must(namespace, "ip", &["link", "set", "lo", "up"]);
        }
    }

    /// What a router at home does: it rewrites what goes out, and lets in what answers that. What
    /// goes from one router to the other is counted, or dropped.
    fn rules(&self, nat: &str, own: &str, cut: bool) {
        let other = ROUTERS.into_iter().find(|(_, public)| *public != own);
        let other = other.expect("two routers").1;
        let verdict = match cut {
            true => "drop",
            false => "accept",
        };
        let rules = format!(
            "flush ruleset
             table ip home {{
               counter direct {{ }}
               chain prerouting {{ type filter hook prerouting priority -200;
                 ip saddr {other} counter name direct {verdict};
               }}
               chain forward {{ type filter hook forward priority 0; policy drop;
                 ip daddr {other} counter name direct {verdict}
                 iifname \"lan\" accept
                 ct state established,related accept;
               }}
               chain input {{ type filter hook input priority 0; policy drop;
                 iifname \"lan\" accept
                 ct state established,related accept;
               }}
               chain postrouting {{ type nat hook postrouting priority 100;
                 oifname \"pub\" masquerade;
               }}
             }}"
        );
        self.must(nat, "nft", &[&rules]);
    }

    /// Lets nothing pass between the two routers.
    fn cut(&self) {
        for (laptop, public) in ROUTERS {
            self.rules(&format!("{laptop}-nat"), public, true);
        }
    }

    /// Bytes that went through a public node, in and out.
    fn through(&self, name: &str) -> u64 {
        ["rx_bytes", "tx_bytes"]
            .iter()
            .map(|counter| {
                let path = format!("/sys/class/net/pub/statistics/{counter}");
                // Its own view of /sys comes with `ip netns exec`.
                let text = self.must(name, "cat", &[&path]);
                text.trim().parse::<u64>().expect("a number")
            })
            .sum()
    }

    /// Bytes that went between the two routers, as one of them saw them.
    fn between_routers(&self) -> u64 {
        let args = ["-j", "list", "counter", "ip", "home", "direct"];
        let text = self.must("client-nat", "nft", &args);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let objects = json["nftables"].as_array().expect("objects");
        let mut bytes = objects
            .iter()
            .filter_map(|one| one["counter"]["bytes"].as_u64());
        bytes.next().expect("a counter")
    }

    fn inside(&self, name: &str, program: &str, args: &[&str]) -> Result<String, String> {
        let namespace = self.namespace(name);
        let mut all = vec!["netns", "exec", &namespace, program];
        all.extend(args);
        call("ip", &all)
    }

    #[track_caller]
    fn must(&self, name: &str, program: &str, args: &[&str]) -> String {
        let done = self.inside(name, program, args);
        done.unwrap_or_else(|why| panic!("{why}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in &self.made {
            let _ = call("ip", &["netns", "delete", namespace]);
        }
    }
}

/// What a program printed, or the reason that it failed.
fn call(program: &str, args: &[&str]) -> Result<String, String> {
    let ran = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program} does not start: {error}"))?;
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(format!(
            "`{program} {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&ran.stderr).trim()
        )),
    }
}

/// Alice's public node relays, and carol's if she is one of the relays; bob's laptop has an artifact that both vouch for; the client's laptop
/// wants it.
struct Street {
    // Before the namespaces that its processes live in.
    lab: Lab,
    world: World,
    artifact: Artifact,
}

impl Street {
    /// Everything, up to bob's laptop having told the public node over which relay it can be asked.
    fn new() -> Option<Self> {
        Self::with_relays(&[ALICE])
    }

    fn with_relays(relays: &[&str]) -> Option<Self> {
        let world = World::new()?;
        let mut lab = Lab::empty();
        for name in [ALICE, BOB, CAROL, CLIENT] {
            let relay = match relays.contains(&name) {
                true => "[relay]\nserve = true\n",
                false => "",
            };
            let config = format!("mdns = false\n{relay}");
            fs::write(lab.home(name).dir().join("config.toml"), config).unwrap();
        }
        let mut bootstrap = at(PUBLIC).to_vec();
        if relays.contains(&CAROL) {
            let peer = lab.qk(CAROL, &["network", "key"]).done()["peer"].clone();
            let named = |address| format!("{address}/p2p/{}", peer.as_str().expect("a peer id"));
            bootstrap.extend(at(CAROL_PUBLIC).map(named));
        }
        found(&lab, &bootstrap);
        for name in [ALICE, BOB, CAROL, CLIENT] {
            let namespace = world.namespace(name);
            lab.place(name, &namespace);
        }
        for (name, host) in [(ALICE, PUBLIC), (CAROL, CAROL_PUBLIC)] {
            if relays.contains(&name) {
                lab.start_at(name, &at(host).each_ref().map(String::as_str));
            }
        }
        lab.start_at(BOB, &LISTEN);
        let options = Options {
            padding_bytes: ARTIFACT_BYTES,
            ..Options::default()
        };
        let artifact = artifact_with(&lab.joined(ALICE).network, &options);
        lab.state(ALICE, &artifact);
        lab.publish(BOB, &artifact);
        let street = Self {
            lab,
            world,
            artifact,
        };
        street.wait_for_bob(relays.len());
        Some(street)
    }

    /// Over which relays bob's laptop can be asked.
    fn relays_of_bob(&self) -> Vec<String> {
        let relayed = self.reach(BOB)["relayed"].clone();
        let relayed = relayed.as_array().into_iter().flatten();
        relayed.map(|one| one.to_string()).collect()
    }

    fn wait_for_bob(&self, relays: usize) {
        self.waits("bob has his reservations", || {
            self.relays_of_bob().len() == relays
        });
        let root = self.artifact.subject.root;
        self.waits("bob's artifact is announced", || {
            let providers = self.find().get(&root).copied();
            providers == Some(1)
        });
    }

    /// What the public node tells bob's.
    fn find(&self) -> std::collections::BTreeMap<qk_protocol::hash::Root, usize> {
        let spec = qk_node::access::FindSpec {
            network: self.lab.joined(BOB).network.id(),
            release: self.artifact.key.release(),
            offline: false,
        };
        let found = self
            .lab
            .with_access(BOB, async |access| access.find(&spec).await);
        found.map(|found| found.providers).unwrap_or_default()
    }

    fn waits(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(
                began.elapsed() < 2 * PATIENCE,
                "waited in vain until {what}; alice:\n{}\nbob:\n{}\ncarol:\n{}",
                self.lab.log(ALICE),
                self.lab.log(BOB),
                self.lab.log(CAROL)
            );
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    /// What somebody's node says of where it is reached.
    fn reach(&self, name: &str) -> Value {
        let status = self.lab.qk(name, &["status"]).json();
        status["networks"][0].clone()
    }

    /// Whether alice's node takes somebody for a server of the network; none if they are not
    /// connected.
    fn server(&self, name: &str) -> Option<bool> {
        let peer = self.lab.qk(name, &["status"]).json()["peer"].clone();
        let connected = self
            .lab
            .with_access(ALICE, async |access| access.peers().await);
        let mut connected = connected.expect("peers").into_iter();
        let one = connected.find(|one| peer == one.peer.as_str())?;
        Some(one.server)
    }

    fn fetch(&self) -> Ran {
        self.lab.fetch(&[SPEC])
    }
}

/// Where a public node listens.
fn at(host: &str) -> [String; 2] {
    let tcp = format!("/ip4/{host}/tcp/4001");
    [tcp, format!("/ip4/{host}/udp/4001/quic-v1")]
}

/// Founds the network with alice and bob, whose node is to be found at these addresses.
fn found(lab: &Lab, bootstrap: &[String]) {
    let file = lab.network_file();
    let file = file.to_str().expect("a path of ASCII");
    let mut new = vec!["network", "new", "street", "--principal", ALICE];
    for address in bootstrap {
        new.extend(["--bootstrap", address]);
    }
    new.extend(["--output", file]);
    lab.qk(ALICE, &new).done();
    let key = lab.qk(BOB, &["network", "key"]).done();
    let key = key["key"].as_str().expect("a key");
    let add = [
        "network", "add", BOB, key, "--role", "verifier", "--output", file,
    ];
    lab.qk(ALICE, &add).done();
    for name in [BOB, CAROL, CLIENT] {
        lab.qk(name, &["join", file]).done();
    }
}

/// The client's node listens behind its own NAT.
#[test]
fn an_artifact_goes_directly_from_one_nat_to_the_other() {
    let Some(mut street) = Street::new() else {
        return;
    };
    street.lab.start_at(CLIENT, &LISTEN);
    arrives_directly(&street, ALICE);
    // Who cannot be reached is no server; who was named by the manifest is.
    assert_eq!(street.server(BOB), Some(false));
    let bob = street.reach(BOB);
    assert_eq!(bob["reachability"], "private");
    assert_eq!(bob["external"], Value::Array(Vec::new()));
    let alice = street.reach(ALICE);
    assert_eq!(alice["reachability"], "public");
    assert_eq!(alice["relayed"], Value::Array(Vec::new()));
    // Only alice herself could be in a routing table so far.
    assert_eq!(alice["contacts"], 0);

    // Nobody named carol's node, which others can dial.
    street.lab.start_at(CAROL, &LISTEN);
    street.waits("carol is known to be reachable", || {
        street.reach(CAROL)["reachability"] == "public"
    });
    let external = street.reach(CAROL)["external"].to_string();
    assert!(external.contains(CAROL_PUBLIC), "{external}");
    street.waits("carol is in alice's routing table", || {
        street.reach(ALICE)["contacts"] == 1
    });
    assert_eq!(street.server(BOB), Some(false));
}

/// A command without a node, which listens nowhere.
#[test]
fn a_command_that_listens_nowhere_gets_it_too() {
    if let Some(street) = Street::new() {
        arrives_directly(&street, ALICE);
    }
}

fn arrives_directly(street: &Street, relay: &str) {
    let (public, direct) = (street.world.through(relay), street.world.between_routers());
    let ran = street.fetch();
    let public = street.world.through(relay) - public;
    let direct = street.world.between_routers() - direct;
    assert_eq!(ran.done()["crates"][0]["how"], "network", "{ran:?}");
    let size = street.artifact.subject.size;
    eprintln!("{size} bytes: {direct} between the NATs, {public} through the public node");
    assert!(direct > size, "{direct} bytes went directly, of {size}");
    assert!(
        public < size / 10,
        "{public} bytes went through the public node, of {size}"
    );
}

/// Two public nodes relay, and one dies.
#[test]
fn a_relay_that_dies_leaves_the_other() {
    let Some(mut street) = Street::with_relays(&[ALICE, CAROL]) else {
        return;
    };
    street.lab.kill(ALICE);
    street.waits("bob has carol's relay alone", || {
        let relays = street.relays_of_bob();
        relays.len() == 1 && relays[0].contains(CAROL_PUBLIC)
    });
    arrives_directly(&street, CAROL);
    // It is used again when it is there again.
    street
        .lab
        .start_at(ALICE, &at(PUBLIC).each_ref().map(String::as_str));
    street.wait_for_bob(2);
}

#[test]
fn without_a_direct_way_nothing_is_fetched_and_the_reason_is_said() {
    let Some(street) = Street::new() else {
        return;
    };
    street.world.cut();
    let public = street.world.through(ALICE);
    let began = Instant::now();
    let ran = street.fetch();
    let public = street.world.through(ALICE) - public;
    ran.failed(
        14,
        &[
            "is trusted, but could not be had",
            "no direct connection came about",
        ],
    );
    eprintln!(
        "said so after {:?}, {public} bytes through the public node",
        began.elapsed()
    );
    assert!(began.elapsed() < PATIENCE);
    assert!(public < street.artifact.subject.size / 10, "{public}");
    assert!(
        !street
            .lab
            .blob(CLIENT, street.artifact.subject.root)
            .exists()
    );
}
