//! What a scenario may ask for, beyond what its types say.

use std::ops::RangeInclusive;

use qk_protocol::lookup::WIDTH;

use super::Scenario;

/// Nodes of one run, all kinds together.
const NODES_MAX: u32 = 1_000_000;

/// A field that cannot be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub(super) field: String,
    pub(super) allowed: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.field, self.allowed)
    }
}

impl std::error::Error for Wrong {}

impl Scenario {
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
        whole("nodes.seeds", nodes.seeds, 1..=WIDTH as u32)?;
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
        within(
            "hostile.dissent_minutes",
            hostile.dissent_minutes,
            0.0..=self.hours * 60.0,
        )?;
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
        within("workload.age_hours", work.age_hours, 0.0..=1000.0)?;
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
}

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
