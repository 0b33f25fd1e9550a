//! A scenario file: what there is, what goes wrong, and how it is to end.

use serde::Deserialize;

/// Nodes that a scenario may have: each is asked at most once or twice, and all know each other.
pub(crate) const NODES_MAX: usize = 1000;
/// Principals of the scenario's network.
pub(crate) const PRINCIPALS: usize = 3;
/// Largest artifact, which is held in memory a few times.
pub(crate) const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What there is, what goes wrong, and how it is to end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Size of the artifact: random bytes of the seed.
    pub artifact_bytes: u64,
    /// Nodes beside the client.
    pub nodes: usize,
    /// Principals that observed the artifact.
    pub observations: usize,
    /// Principals that the client asks for.
    pub threshold: u32,
    /// How the fetch is to end.
    pub expect: Expect,
    /// Latency, bandwidth and loss.
    pub wire: WireModel,
    /// What goes wrong beside lost messages.
    #[serde(default)]
    pub faults: Faults,
}

/// How a fetch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The artifact is here.
    Done,
    /// Too few principals observed it.
    Unproven,
}

/// Latency, bandwidth and loss.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireModel {
    /// Shortest latency of a message, drawn anew for each.
    pub latency_ms_min: u64,
    /// Longest latency.
    pub latency_ms_max: u64,
    /// How much a message's length adds: bytes in a millisecond.
    pub bytes_per_ms: u64,
    /// Of every so many messages exactly one is lost, so that loss is never only possible; 0: none.
    #[serde(default)]
    pub lost_one_in: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Nodes that announce the artifact and change a bit of every answer.
    pub lying_providers: usize,
    /// Nodes that are known to the client and never answer.
    pub silent_nodes: usize,
}

/// Why a text is no scenario.
#[derive(Debug)]
pub enum ScenarioError {
    /// Not TOML, or not of this shape.
    Toml(toml::de::Error),
    /// A value that cannot be played.
    Value(&'static str),
}

impl std::fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Toml(error) => write!(f, "scenario: {error}"),
            Self::Value(what) => write!(f, "scenario: {what}"),
        }
    }
}

impl std::error::Error for ScenarioError {}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(ScenarioError::Toml)?;
        scenario.check().map_err(ScenarioError::Value)?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), &'static str> {
        let Faults {
            lying_providers,
            silent_nodes,
        } = self.faults;
        let odd = lying_providers.saturating_add(silent_nodes);
        let wire = &self.wire;
        match () {
            () if self.artifact_bytes == 0 || self.artifact_bytes > ARTIFACT_BYTES_MAX => {
                Err("artifact_bytes is from 1 to 268435456")
            }
            () if self.nodes > NODES_MAX => Err("nodes is at most 1000"),
            () if odd >= self.nodes => Err("at least one node has to be honest"),
            () if self.observations > PRINCIPALS => Err("there are three principals to observe"),
            () if self.threshold == 0 => Err("a threshold of 0 would trust what nobody observed"),
            () if wire.latency_ms_min > wire.latency_ms_max || wire.latency_ms_max > 60_000 => {
                Err("latency_ms_min ≤ latency_ms_max ≤ 60000")
            }
            () if wire.bytes_per_ms == 0 => Err("bytes_per_ms is at least 1"),
            () if wire.lost_one_in == 1 => Err("lost_one_in = 1 would lose everything"),
            () => Ok(()),
        }
    }
}
