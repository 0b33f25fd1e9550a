//! A scenario file: who is there, what goes wrong, what is done, and what has to hold.
//!
//! Everything has a default, so that a file names only what it is about. A file that cannot be played is
//! refused with the line, the field and what is allowed.

use std::ops::RangeInclusive;

use qk_protocol::policy::{Count, OnDissent};
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

/// Nodes of one run, all kinds together.
const NODES_MAX: u32 = 1_000_000;

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
    /// Sybils show what is stated, without the dissent.
    pub hide_dissent_only: bool,
    /// Crates for which colluding principals and strangers state a wrong root.
    pub victims: u32,
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

/// Why a text is no scenario: says the line, the field and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError(String);

impl std::fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "scenario: {}", self.0)
    }
}

impl std::error::Error for ScenarioError {}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// Says the line, the field and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        // What serde refuses it names with the line and what would be allowed.
        let scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError(error.to_string().trim_end().to_owned()))?;
        scenario.check().map_err(|wrong| {
            let line =
                line_of(text, &wrong.field).map_or(String::new(), |at| format!("line {at}: "));
            ScenarioError(format!("{line}{} {}", wrong.field, wrong.allowed))
        })?;
        Ok(scenario)
    }

    /// As [`parse`](Self::parse), with some fields set, each as `table.field=value`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and for what is no such field or value.
    pub fn parse_with(text: &str, sets: &[String]) -> Result<Self, ScenarioError> {
        if sets.is_empty() {
            return Self::parse(text);
        }
        Self::parse(text)?;
        let wrong = |set: &str, why: &str| ScenarioError(format!("--set {set}: {why}"));
        let mut root: toml::Table =
            toml::from_str(text).map_err(|error| ScenarioError(error.to_string()))?;
        for set in sets {
            let (field, value) = set
                .split_once('=')
                .ok_or_else(|| wrong(set, "is not of the form table.field=value"))?;
            let read: toml::Table = toml::from_str(&format!("value = {value}"))
                .map_err(|_| wrong(set, "the value is not TOML; texts are in quotes"))?;
            let (tables, last) = match field.rsplit_once('.') {
                Some((tables, last)) => (tables.split('.').collect(), last),
                None => (Vec::new(), field),
            };
            let mut at = &mut root;
            for table in tables {
                let entry = at.entry(table).or_insert_with(|| toml::Table::new().into());
                at = entry
                    .as_table_mut()
                    .ok_or_else(|| wrong(set, "there is no such table"))?;
            }
            at.insert(last.to_owned(), read["value"].clone());
        }
        let scenario: Self = root.try_into().map_err(|error: toml::de::Error| {
            ScenarioError(error.to_string().trim_end().to_owned())
        })?;
        scenario
            .check()
            .map_err(|wrong| ScenarioError(wrong.to_string()))?;
        Ok(scenario)
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The first field that cannot be played.
    pub fn check(&self) -> Result<(), Wrong> {
        let (nodes, who, hostile) = (&self.nodes, &self.principals, &self.hostile);
        let (network, work) = (&self.network, &self.workload);
        within("hours", self.hours, 0.01..=24.0 * 400.0)?;
        within("nodes.sharing_percent", nodes.sharing_percent, 0.0..=100.0)?;
        whole("nodes.servers", nodes.servers, 1..=NODES_MAX)?;
        for (field, value) in [
            ("nodes.laptops", nodes.laptops),
            ("nodes.ci", nodes.ci),
            ("nodes.lab", nodes.lab),
        ] {
            whole(field, value, 0..=NODES_MAX)?;
        }
        whole("nodes.mirrors", nodes.mirrors, 0..=8)?;
        whole("principals.publishers", who.publishers, 1..=100)?;
        whole("principals.verifiers", who.verifiers, 1..=1000)?;
        whole("principals.colluding", who.colluding, 0..=who.verifiers)?;
        let left = who.verifiers - who.colluding;
        whole("principals.lazy", who.lazy, 0..=left)?;
        whole("principals.lying", who.lying, 0..=left - who.lazy)?;
        within("principals.builds_a_day", who.builds_a_day, 0.1..=10_000.0)?;
        within("principals.survey_minutes", who.survey_minutes, 0.5..=1e5)?;
        whole("policy.threshold", self.policy.threshold, 1..=100)?;
        whole("policy.committee", self.policy.committee, 1..=100)?;
        for (field, percent) in [
            ("network.loss_percent", network.loss_percent),
            ("network.duplicate_percent", network.duplicate_percent),
            ("network.reorder_percent", network.reorder_percent),
        ] {
            within(field, percent, 0.0..=50.0)?;
        }
        within("network.punch_percent", network.punch_percent, 0.0..=100.0)?;
        within(
            "network.skewed_percent",
            network.skewed_percent,
            0.0..=100.0,
        )?;
        whole("network.skew_seconds", network.skew_seconds, 0..=86_400)?;
        whole("network.dial_round_trips", network.dial_round_trips, 0..=10)?;
        for (field, mbit) in [
            ("network.server_mbit", network.server_mbit),
            ("network.client_up_mbit", network.client_up_mbit),
            ("network.client_down_mbit", network.client_down_mbit),
        ] {
            within(field, mbit, 0.1..=100_000.0)?;
        }
        within(
            "network.refresh_minutes",
            network.refresh_minutes,
            1.0..=1e6,
        )?;
        within("network.table_minutes", network.table_minutes, 1.0..=1e6)?;
        if let Some(churn) = &self.churn {
            within("churn.shape", churn.shape, 0.2..=5.0)?;
            within("churn.server_up_hours", churn.server_up_hours, 0.01..=1e5)?;
            within("churn.laptop_up_hours", churn.laptop_up_hours, 0.01..=1e5)?;
            within("churn.down_hours", churn.down_hours, 0.01..=1e5)?;
            within(
                "churn.lose_store_percent",
                churn.lose_store_percent,
                0.0..=100.0,
            )?;
        }
        for (at, partition) in self.partitions.iter().enumerate() {
            let field = |name: &str| format!("partitions.{at}.{name}");
            within(
                field("at_minutes"),
                partition.at_minutes,
                0.0..=self.hours * 60.0,
            )?;
            within(
                field("for_minutes"),
                partition.for_minutes,
                0.1..=self.hours * 60.0,
            )?;
            within(field("share_percent"), partition.share_percent, 1.0..=99.0)?;
        }
        whole("hostile.sybils", hostile.sybils, 0..=64)?;
        whole(
            "hostile.sybil_crates",
            hostile.sybil_crates,
            0..=work.crates,
        )?;
        whole("hostile.victims", hostile.victims, 0..=work.crates)?;
        whole("hostile.strangers", hostile.strangers, 0..=64)?;
        whole("hostile.lies_one_in", hostile.lies_one_in, 1..=1_000_000)?;
        let odd = [
            hostile.forging,
            hostile.stalling,
            hostile.lacking,
            hostile.silent,
        ];
        let mut room = nodes.servers - 1;
        for (field, count) in ["forging", "stalling", "lacking", "silent"].iter().zip(odd) {
            whole(format!("hostile.{field}"), count, 0..=room)?;
            room -= count;
        }
        whole("hostile.eclipsed", hostile.eclipsed, 0..=nodes.laptops)?;
        whole("workload.crates", work.crates, 1..=1_000_000)?;
        whole(
            "workload.proofs",
            work.proofs,
            0..=who.verifiers - who.colluding - who.lazy - who.lying,
        )?;
        whole("workload.providers", work.providers, 0..=nodes.servers)?;
        within("workload.zipf", work.zipf, 0.0..=3.0)?;
        within("workload.releases_a_day", work.releases_a_day, 0.0..=1e6)?;
        within("workload.fetches_a_day", work.fetches_a_day, 0.0..=10_000.0)?;
        within("workload.bursts_a_day", work.bursts_a_day, 0.0..=1000.0)?;
        whole("workload.burst_crates", work.burst_crates, 1..=1000)?;
        within(
            "workload.lab_fetches_a_day",
            work.lab_fetches_a_day,
            0.0..=10_000.0,
        )?;
        within(
            "workload.artifact_kib",
            work.artifact_kib as f64,
            1.0..=2_000_000.0,
        )?;
        whole("workload.prefix_bits", u32::from(work.prefix_bits), 0..=256)?;
        within(
            "check.heal_minutes",
            self.check.heal_minutes,
            0.0..=self.hours * 60.0,
        )
    }

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

/// A field that cannot be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    field: String,
    allowed: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.field, self.allowed)
    }
}

impl std::error::Error for Wrong {}

fn within(field: impl Into<String>, value: f64, allowed: RangeInclusive<f64>) -> Result<(), Wrong> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let (least, most) = (allowed.start(), allowed.end());
    Err(Wrong {
        field: field.into(),
        allowed: format!("is {value}: allowed is {least} to {most}"),
    })
}

fn whole(field: impl Into<String>, value: u32, allowed: RangeInclusive<u32>) -> Result<(), Wrong> {
    within(
        field,
        f64::from(value),
        f64::from(*allowed.start())..=f64::from(*allowed.end()),
    )
}

/// The line on which a field stands; that of the table where it has its default.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut at = None;
    let mut table = Some(root.get_ref());
    let mut list = None;
    for part in field.split('.') {
        let value = match (table, list) {
            (Some(table), _) => table.get(part)?,
            (None, Some(list)) => {
                let list: &toml::de::DeArray<'_> = list;
                list.get(part.parse::<usize>().ok()?)?
            }
            (None, None) => break,
        };
        at = Some(value.span().start);
        (table, list) = match value.get_ref() {
            DeValue::Table(table) => (Some(table), None),
            DeValue::Array(array) => (None, Some(array)),
            _ => (None, None),
        };
    }
    at.map(|at| text[..at].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Scenario::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_a_small_network() {
        assert_eq!(Scenario::parse("").unwrap(), Scenario::default());
    }

    #[test]
    fn what_cannot_be_played_is_named_with_its_line_and_what_is_allowed() {
        let text = "hours = 2\n\n[policy]\nthreshold = 0\n";
        assert_eq!(
            error(text),
            "scenario: line 4: policy.threshold is 0: allowed is 1 to 100"
        );
        let text =
            "hours = 2\n[[partitions]]\n[[partitions]]\none_way = true\nshare_percent = 100\n";
        assert_eq!(
            error(text),
            "scenario: line 5: partitions.1.share_percent is 100: allowed is 1 to 99"
        );
        let text = "[principals]\nverifiers = 3\ncolluding = 2\nlazy = 2\n";
        assert_eq!(
            error(text),
            "scenario: line 4: principals.lazy is 2: allowed is 0 to 1"
        );
    }

    #[test]
    fn unknown_fields_and_words_are_named_with_what_there_is() {
        let text = error("[nodes]\nserver = 3\n");
        assert!(
            text.contains("line 2") && text.contains("`server`"),
            "{text}"
        );
        assert!(text.contains("`servers`, `laptops`"), "{text}");
        let text = error("[policy]\ncount = \"some\"\n");
        assert!(
            text.contains("line 2") && text.contains("`any` or `assigned`"),
            "{text}"
        );
    }

    #[test]
    fn fields_can_be_set_beside_the_file() {
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|one| (*one).to_owned()).collect();
            Scenario::parse_with("[nodes]\nservers = 3\n", &sets).map_err(|error| error.to_string())
        };
        let read = with(&["nodes.servers=5", "hours=2", "policy.count=\"assigned\""]).unwrap();
        assert_eq!(
            (read.nodes.servers, read.hours, read.policy.count),
            (5, 2.0, Count::Assigned)
        );
        for (set, told) in [
            ("nodes.servers", "table.field=value"),
            ("policy.count=assigned", "in quotes"),
            ("nodes.servers.more=1", "no such table"),
            ("nodes.server=1", "unknown field `server`"),
            ("nodes.servers=0", "nodes.servers is 0: allowed is 1 to"),
        ] {
            let error = with(&[set]).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn each_defence_can_be_switched_off_by_its_name() {
        for name in Without::ALL {
            let text = format!("[without]\n{name} = true\n");
            let read = Scenario::parse(&text).unwrap().without;
            assert_eq!(Some(read), Without::only(name));
        }
        assert_eq!(Without::only("luck"), None);
    }
}
