//! The protocol in virtual time: the machines of `qk-protocol` among many nodes, over a network, against
//! faults and attackers that one seed decides.
//!
//! Clients are [`Fetch`](qk_protocol::fetch::Fetch) and [`Transfer`](qk_protocol::transfer::Transfer),
//! nodes answer by [`index::answer`](qk_protocol::index::answer), verifiers follow
//! [`watch`](qk_protocol::watch) and [`assign`](qk_protocol::assign). Nothing here knows of sockets, files
//! or the clock: the same scenario and seed give the same events, and [`Report::trace_hash`] says so.
//! What is modelled, and not the protocol's own: [routing tables](routing), latencies and lines, sessions,
//! builds; blocks are typed, so that a forged one is known to be so where it would be verified.

mod engine;
mod fetching;
mod figures;
mod finish;
mod job;
mod node;
mod plot;
mod preload;
mod probe;
mod publishing;
mod rebuilds;
mod report;
pub mod routing;
mod run;
mod scenario;
mod serve;
mod sessions;
mod stage;
mod tally;
mod upkeep;
mod verifier;
mod walking;
mod wire;
mod workload;
mod world;

pub use figures::{Size, figures};
pub use report::{Check, Difference, Fault, Performance, Quantiles, Report, compare};
pub use run::{Campaign, Failure, campaign, run, run_telling};
pub use scenario::{
    Check as CheckModel, Churn, Hostile, NetworkModel, Nodes, Partition, PolicyModel, Principals,
    Scenario, ScenarioError, Without, Workload, Wrong,
};
pub use world::Progress;
