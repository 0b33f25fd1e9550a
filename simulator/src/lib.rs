//! The protocol in virtual time: the machines of `qk-protocol` over a wire that one seed decides.
//!
//! This is the first piece: one client ([`Fetch`](qk_protocol::fetch::Fetch), then
//! [`Transfer`](qk_protocol::transfer::Transfer)) and a few nodes that answer with
//! [`index::answer`](qk_protocol::index::answer) and encode blocks of an artifact in memory.
//! Nothing here knows of sockets, files or the clock: the same scenario and seed give the same
//! events, byte for byte, and [`Report::trace_hash`] says so.

mod client;
mod node;
mod report;
mod scenario;
mod setup;
mod wire;
mod world;

pub use report::{Check, Fault, Report};
pub use scenario::{Expect, Faults, Scenario, ScenarioError, WireModel};
pub use world::run;
