//! A scenario file: who is there, what goes wrong, what is done, and what has to hold.
//!
//! Everything has a default, so that a file names only what it is about. A file that cannot be played is
//! refused with the line, the field and what is allowed.

mod check;
mod read;

use qk_protocol::lookup::WIDTH;
use qk_protocol::policy::{Count, OnDissent};
use serde::{Deserialize, Serialize};

pub use self::check::Wrong;
pub use self::read::ScenarioError;

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// One line for people.
    pub about: String,
    /// Simulated time.
    pub hours: f64,
    /// Rebuilding alone: everybody knows at once what was stated, and no messages are sent.
    pub perfect_index: bool,
    /// Who is there.
    pub nodes: Nodes,
    /// Who observes.
    pub principals: Principals,
    /// What clients ask before they trust.
    pub policy: PolicyModel,
    /// What a message goes through.
    pub network: NetworkModel,
    /// Coming and going; without it everybody stays.
    pub churn: Option<Churn>,
    /// Times at which some nodes do not reach the others.
    pub partitions: Vec<Partition>,
    /// Who means harm.
    pub hostile: Hostile,
    /// What is published and fetched.
    pub workload: Workload,
    /// What is looked at in the end.
    pub check: Check,
    /// Defences that are switched off, to show what they are good for.
    pub without: Without,
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nodes {
    /// Reachable nodes that hold the index, have what they fetched, and fetch as well.
    pub servers: u32,
    /// Clients behind NAT, which come and go.
    pub laptops: u32,
    /// Clients that share nothing and fetch in bursts.
    pub ci: u32,
    /// Mirrors that the manifest names; all know them from the beginning.
    pub mirrors: u32,
    /// Machines of a laboratory, on one local network.
    pub lab: u32,
    /// Whether the laboratory has a cache.
    pub lab_cache: bool,
    /// Share of laptops that give what they fetched, in percent.
    pub sharing_percent: f64,
    /// Nodes of its own table that a look-up begins with, beside mirrors; with one it has a single path.
    pub seeds: u32,
}

/// Who observes. Those that mean harm are among `verifiers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Principals {
    /// Principals that publish.
    pub publishers: u32,
    /// Principals that rebuild.
    pub verifiers: u32,
    /// Of these, how many agree on one wrong root for each of `hostile.victims`.
    pub colluding: u32,
    /// Of these, how many copy what others observed.
    pub lazy: u32,
    /// Of these, how many state a root of their own for one in `hostile.lies_one_in` of what they owe.
    pub lying: u32,
    /// Whether a principal's node runs under its key, so that clients can ask it directly.
    pub nodes_have_keys: bool,
    /// Whether releases have a committee; otherwise there are only audits. Of a perfect index alone.
    pub committee: bool,
    /// Whether a share of audits is drawn with the same chance for all. Of a perfect index alone.
    pub uniform_floor: bool,
    /// Rebuilds that one verifier manages in a day.
    pub builds_a_day: f64,
    /// How often a verifier surveys a range of the index.
    pub survey_minutes: f64,
}

/// What clients ask before they trust.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyModel {
    /// Distinct principals.
    pub threshold: u32,
    /// Which of them count.
    pub count: Count,
    /// What a dissent does.
    pub on_dissent: OnDissent,
    /// Members of a committee.
    pub committee: u32,
}

/// What a message goes through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkModel {
    /// Share of messages that is lost, in percent.
    pub loss_percent: f64,
    /// Share that arrives twice.
    pub duplicate_percent: f64,
    /// Share that is held up, so that later ones overtake it.
    pub reorder_percent: f64,
    /// Line of a server, up and down.
    pub server_mbit: f64,
    /// Uplink of a client.
    pub client_up_mbit: f64,
    /// Downlink of a client.
    pub client_down_mbit: f64,
    /// Round trips before a request to a node that one is not connected with.
    pub dial_round_trips: u32,
    /// Share of pairs between which a hole can be punched, in percent.
    pub punch_percent: f64,
    /// Share of nodes whose clock is wrong, in percent.
    pub skewed_percent: f64,
    /// By how much at most, either way.
    pub skew_seconds: u32,
    /// How often a node asks others for a newer manifest.
    pub refresh_minutes: f64,
    /// Whether holders put what they hold to nodes that came and are to hold it, too.
    pub repair: bool,
    /// How often a node looks through its routing table; until then it names who has gone.
    pub table_minutes: f64,
}

/// Sessions: how long a node stays is Weibull, how long it is away exponential.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Churn {
    /// Shape of the Weibull distribution; below 1 most sessions are short and some very long.
    pub shape: f64,
    /// Mean session of a server.
    pub server_up_hours: f64,
    /// Mean session of a laptop.
    pub laptop_up_hours: f64,
    /// Mean time away.
    pub down_hours: f64,
    /// Share of ends of a session in which the store is lost, in percent.
    pub lose_store_percent: f64,
}

/// A time in which some nodes do not reach the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Partition {
    /// When it begins.
    pub at_minutes: f64,
    /// How long it lasts.
    pub for_minutes: f64,
    /// Share of nodes on the smaller side, in percent.
    pub share_percent: f64,
    /// Only what the smaller side sends is lost.
    pub one_way: bool,
}

/// Who means harm, beside principals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hostile {
    /// Nodes with identities nearer to the location of one crate than any other, for each of
    /// `sybil_crates`. They say that they hold everything, and show nothing.
    pub sybils: u32,
    /// Crates around whose locations they are.
    pub sybil_crates: u32,
    /// Sybils show what is stated, without the dissent: of the first release of each victim, which comes
    /// once at a seventh of the run.
    pub hide_dissent_only: bool,
    /// Crates for which colluding principals and strangers state a wrong root.
    pub victims: u32,
    /// So long after a victim's release the first of its committee that means well states the right root:
    /// the dissent. At 0 verifiers state it when their own patrol found the release.
    pub dissent_minutes: f64,
    /// Strangers that state the wrong root of each victim.
    pub strangers: u32,
    /// A lying principal states its own root for one in so many keys.
    pub lies_one_in: u32,
    /// Servers that forge blocks.
    pub forging: u32,
    /// Servers that take a request for blocks and answer nothing.
    pub stalling: u32,
    /// Servers that announce what they lack.
    pub lacking: u32,
    /// Servers that answer nothing at all.
    pub silent: u32,
    /// Clients that know nobody but Sybils and whom the manifest names.
    pub eclipsed: u32,
}

/// What is published and fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Crates that are there in the beginning.
    pub crates: u32,
    /// How long before the run they were observed: what is older than a day is put again once a week.
    pub age_hours: f64,
    /// Honest principals that observed each of them before the run.
    pub proofs: u32,
    /// Providers of each of them before the run, beside its publisher.
    pub providers: u32,
    /// Whether the publisher stays a provider.
    pub publisher_provides: bool,
    /// Exponent of Zipf's law over crates.
    pub zipf: f64,
    /// New releases in a day.
    pub releases_a_day: f64,
    /// Fetches of one client in a day.
    pub fetches_a_day: f64,
    /// Times in a day at which all CI clients fetch the same crates at once.
    pub bursts_a_day: f64,
    /// How many crates.
    pub burst_crates: u32,
    /// Fetches of one laboratory machine in a day.
    pub lab_fetches_a_day: f64,
    /// Mean size of an artifact.
    pub artifact_kib: u64,
    /// Bits of a point that a reader names who hides what it is after; 0: whole points.
    pub prefix_bits: u16,
}

/// What is looked at in the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// So long before the end everything that is not hostile heals.
    pub heal_minutes: f64,
    /// Fetches that have to arrive then.
    pub fetches: u32,
    /// Acknowledged statements that have to be found then.
    pub statements: u32,
    /// Whether a run in which an enabled fault did not happen has failed.
    pub faults_fire: bool,
}

/// Defences that are switched off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Without {
    /// One observation suffices.
    pub threshold: bool,
    /// Strangers count as principals.
    pub manifest: bool,
    /// Blocks are taken as they come.
    pub verification: bool,
    /// The manifest names no mirrors.
    pub mirrors: bool,
    /// Nobody is given up who does not answer.
    pub deadlines: bool,
    /// Nobody states or checks what was linked.
    pub work_digest: bool,
    /// A dissent calls nobody and always refuses.
    pub escalation: bool,
}

impl Without {
    /// The names of all of them.
    pub const ALL: [&str; 7] = [
        "threshold",
        "manifest",
        "verification",
        "mirrors",
        "deadlines",
        "work_digest",
        "escalation",
    ];

    /// All defences but the one of this name; `None` for a name that is none.
    pub fn only(name: &str) -> Option<Self> {
        let mut without = Self::default();
        let switch = match name {
            "threshold" => &mut without.threshold,
            "manifest" => &mut without.manifest,
            "verification" => &mut without.verification,
            "mirrors" => &mut without.mirrors,
            "deadlines" => &mut without.deadlines,
            "work_digest" => &mut without.work_digest,
            "escalation" => &mut without.escalation,
            _ => return None,
        };
        *switch = true;
        Some(without)
    }
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            hours: 1.0,
            perfect_index: false,
            nodes: Nodes::default(),
            principals: Principals::default(),
            policy: PolicyModel::default(),
            network: NetworkModel::default(),
            churn: None,
            partitions: Vec::new(),
            hostile: Hostile::default(),
            workload: Workload::default(),
            check: Check::default(),
            without: Without::default(),
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            servers: 20,
            laptops: 0,
            ci: 0,
            mirrors: 0,
            lab: 0,
            lab_cache: true,
            sharing_percent: 50.0,
            seeds: WIDTH as u32,
        }
    }
}

impl Default for Principals {
    fn default() -> Self {
        Self {
            publishers: 1,
            verifiers: 3,
            colluding: 0,
            lazy: 0,
            lying: 0,
            nodes_have_keys: true,
            committee: true,
            uniform_floor: true,
            builds_a_day: 10.0,
            survey_minutes: 1.0,
        }
    }
}

impl Default for PolicyModel {
    fn default() -> Self {
        Self {
            threshold: 2,
            count: Count::Any,
            on_dissent: OnDissent::Refuse,
            committee: 5,
        }
    }
}

impl Default for NetworkModel {
    fn default() -> Self {
        Self {
            loss_percent: 0.0,
            duplicate_percent: 0.0,
            reorder_percent: 0.0,
            server_mbit: 500.0,
            client_up_mbit: 20.0,
            client_down_mbit: 100.0,
            dial_round_trips: 2,
            punch_percent: 70.0,
            skewed_percent: 0.0,
            skew_seconds: 300,
            refresh_minutes: 10.0,
            repair: true,
            table_minutes: 60.0,
        }
    }
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            shape: 0.6,
            server_up_hours: 24.0,
            laptop_up_hours: 3.0,
            down_hours: 4.0,
            lose_store_percent: 0.0,
        }
    }
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            at_minutes: 0.0,
            for_minutes: 10.0,
            share_percent: 30.0,
            one_way: false,
        }
    }
}

impl Default for Hostile {
    fn default() -> Self {
        Self {
            sybils: 0,
            sybil_crates: 1,
            hide_dissent_only: false,
            victims: 0,
            dissent_minutes: 0.0,
            strangers: 0,
            lies_one_in: 4,
            forging: 0,
            stalling: 0,
            lacking: 0,
            silent: 0,
            eclipsed: 0,
        }
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            crates: 10,
            age_hours: 1.0,
            proofs: 2,
            providers: 2,
            publisher_provides: true,
            zipf: 1.0,
            releases_a_day: 0.0,
            fetches_a_day: 1.0,
            bursts_a_day: 0.0,
            burst_crates: 3,
            lab_fetches_a_day: 5.0,
            artifact_kib: 4096,
            prefix_bits: 0,
        }
    }
}

impl Default for Check {
    fn default() -> Self {
        Self {
            heal_minutes: 0.0,
            fetches: 0,
            statements: 0,
            faults_fire: true,
        }
    }
}

impl Scenario {
    /// The same with fewer or more nodes of each kind that there may be many of.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        let of = |count: u32| (f64::from(count) * factor).round() as u32;
        self.nodes.servers = of(self.nodes.servers).max(1);
        self.nodes.laptops = of(self.nodes.laptops);
        self.nodes.ci = of(self.nodes.ci);
        self
    }
}
