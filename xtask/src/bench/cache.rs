//! A cache and many clients at once: how evenly they are served, and what it costs upstream.

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::{self, Lab};
use super::sample::Samples;
use super::{Goal, Row};

/// The slowest of a hundred clients, beside the middle one.
const P99_P50_MAX: f64 = 1.8;
/// Bytes that upstream sends, beside the size of the artifact.
const UPSTREAM_MAX: f64 = 1.1;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// `NAME@VERSION`: the crate.
    pub package: String,
    /// How many clients ask at once.
    pub clients: usize,
}

/// Builds and proves the crate, starts a cache that has nothing, and lets all clients ask it at once.
///
/// # Errors
/// When a program that is measured fails, or not all artifacts came from the network.
pub fn rows(qk: &Path, options: &Options) -> Result<Vec<Row>> {
    let mut lab = Lab::start(qk, &options.package, Ipv4Addr::LOCALHOST.into())?;
    let cache = lab.client()?;
    let parent = lab.start_cache(&cache)?;
    let clients: Vec<String> = (0..options.clients)
        .map(|_| lab.client())
        .collect::<Result<_>>()?;
    let before = lab.sent_bytes(&lab.publishers())?;
    eprintln!("Fetching it with {} clients at once", options.clients);
    let fetched: Vec<(f64, u64)> = thread::scope(|scope| {
        let fetch = |client: &str| fetch(&lab, client, &options.package, &parent);
        let all: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(move || fetch(client)))
            .collect();
        let done = all.into_iter().map(|one| {
            let joined = one.join();
            joined.unwrap_or_else(|_| Err(anyhow::anyhow!("a client's thread panicked")))
        });
        done.collect::<Result<_>>()
    })?;
    let upstream = lab.sent_bytes(&lab.publishers())? - before;
    let given = lab.sent_bytes(&[&cache])?;
    let size = fetched.first().context("at least one client is needed")?.1;
    let times = Samples::of(fetched.into_iter().map(|(seconds, _)| seconds).collect())?;
    let (p50, p99) = (times.median(), times.quantile(0.99));
    let seconds = |name, value| Row::new(name, value, "s");
    let ratio = |name, value: f64, goal| Row::new(name, value, "ratio").with_goal(goal);
    Ok(vec![
        seconds("cache_fetch_p50", p50),
        seconds("cache_fetch_p99", p99),
        ratio("cache_fetch_p99/p50", p99 / p50, Goal::AtMost(P99_P50_MAX)),
        Row::new("artifact_bytes", size as f64, "B"),
        Row::new("upstream_sent_bytes", upstream as f64, "B"),
        Row::new("cache_sent_bytes", given as f64, "B"),
        ratio(
            "upstream_sent/artifact",
            upstream as f64 / size as f64,
            Goal::AtMost(UPSTREAM_MAX),
        ),
    ])
}

/// One client's fetch: how long it took, and the artifact's size.
fn fetch(lab: &Lab, client: &str, package: &str, parent: &str) -> Result<(f64, u64)> {
    let root = lab.directory()?;
    let text = root.to_string_lossy();
    let args = ["fetch", package, "--fallback", "none", "--root", &text];
    let mut command = lab.command(client, &args);
    command.env("QK_PARENT", parent);
    let start = Instant::now();
    let printed: Value = lab::json(&mut command)?;
    let seconds = start.elapsed().as_secs_f64();
    let fetched = &printed["crates"][0];
    ensure!(fetched["how"] == "network", "it was not fetched: {printed}");
    Ok((seconds, fetched["bytes"].as_u64().context("no size")?))
}
