//! A small tool from a cache on the LAN, beside a download of its `.tar.gz` without any check: as a
//! process of its own each time, near and at the end of a slow wire.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Options, Part};
use crate::bench::fetch::{curl_tar, pack};
use crate::bench::lab::{self, Lab};
use crate::bench::nginx::Nginx;
use crate::bench::sample::Samples;
use crate::bench::wire::{Shape, Wire};
use crate::bench::{Goal, Row};

/// Times what `curl | tar` takes on loopback.
const NEAR_MAX: f64 = 1.5;
/// Times what it takes at the end of the slow wire.
const FAR_MAX: f64 = 1.1;
/// A connection of a household in another part of the country.
const SLOW: Shape = Shape {
    mbit: 50,
    round_trip_ms: 40,
};
const ARCHIVE: &str = "tool.tar.gz";

/// Builds and proves the tool in a network, and fetches it over and over.
pub(super) fn rows(qk: &Path, program: &Path, options: &Options) -> Result<Vec<Row>> {
    let wire = match (options.wants(Part::Slow), Wire::possible()) {
        (false, _) => None,
        (true, Ok(())) => Some(Wire::new(program, SLOW)?),
        (true, Err(why)) => {
            eprintln!("NOT MEASURED: the fetch over a slow wire, as {why:#}");
            None
        }
    };
    let host = match wire {
        Some(_) => Wire::outside(),
        None => Ipv4Addr::LOCALHOST.into(),
    };
    let mut lab = Lab::start(qk, &options.tool, host)?;
    let cache = lab.client()?;
    let parent = lab.start_cache(&cache)?;
    // With the first fetch the cache has it, too.
    let client = lab.client()?;
    let (_, installed) = fetch(&lab, &client, &parent, options, None)?;
    let files = lab.directory()?;
    pack(&installed.join("bin"), &files.join(ARCHIVE))?;
    let bytes = std::fs::metadata(files.join(ARCHIVE))?.len();
    let nginx = Nginx::start(&files, &lab.directory()?.join("nginx"), host)?;

    let mut rows = vec![Row::new("tool_tar_gz", bytes as f64 / 1e6, "MB")];
    if options.wants(Part::Tool) {
        let goal = Goal::AtMost(NEAR_MAX);
        let near = compare("tool", goal, &mut lab, &parent, &nginx, options, None);
        rows.extend(near?);
    }
    if let Some(wire) = &wire {
        let goal = Goal::AtMost(FAR_MAX);
        let far = compare(
            "slow_tool",
            goal,
            &mut lab,
            &parent,
            &nginx,
            options,
            Some(wire),
        );
        rows.extend(far?);
    }
    Ok(rows)
}

fn compare(
    name: &str,
    goal: Goal,
    lab: &mut Lab,
    parent: &str,
    nginx: &Nginx,
    options: &Options,
    wire: Option<&Wire>,
) -> Result<Vec<Row>> {
    let (mut ours, mut its) = (Vec::new(), Vec::new());
    for round in 1..=options.runs {
        eprintln!("{name}: round {round} of {}", options.runs);
        let client = lab.client()?;
        ours.push(fetch(lab, &client, parent, options, wire)?.0);
        let curl = nginx.curl(ARCHIVE);
        let mut curl = match wire {
            Some(wire) => inside(wire, &curl),
            None => curl,
        };
        its.push(curl_tar(&mut curl, &lab.directory()?)?);
    }
    let ratios = Samples::of(
        ours.iter()
            .zip(&its)
            .map(|(ours, its)| ours / its)
            .collect(),
    )?;
    let (ours, its) = (Samples::of(ours)?, Samples::of(its)?);
    let mut rows = Vec::new();
    for (of, seconds) in [("fetch", &ours), ("curl_tar", &its)] {
        rows.push(Row::new(format!("{name}_{of}_s"), seconds.median(), "s"));
        rows.push(Row::new(format!("{name}_{of}_min_s"), seconds.min(), "s"));
        rows.push(Row::new(format!("{name}_{of}_max_s"), seconds.max(), "s"));
    }
    let ratio = format!("{name}_fetch_s/{name}_curl_tar_s");
    rows.push(Row::new(ratio.clone(), ratios.median(), "ratio").with_goal(goal));
    rows.push(Row::new(format!("{ratio}_min"), ratios.min(), "ratio"));
    rows.push(Row::new(format!("{ratio}_max"), ratios.max(), "ratio"));
    Ok(rows)
}

/// Seconds of one `qk fetch` by a process with an empty store, and where it installed.
fn fetch(
    lab: &Lab,
    client: &str,
    parent: &str,
    options: &Options,
    wire: Option<&Wire>,
) -> Result<(f64, PathBuf)> {
    let root = lab.directory()?;
    let text = root.to_string_lossy();
    let args = [
        "fetch",
        &options.tool,
        "--fallback",
        "none",
        "--root",
        &text,
    ];
    let mut command = match wire {
        Some(wire) => lab.extend(wire.within(lab.qk()), client, &args),
        None => lab.command(client, &args),
    };
    command.env("QK_PARENT", parent);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let printed = lab::json(&mut command)?;
    let seconds = start.elapsed().as_secs_f64();
    let how = printed["crates"][0]["how"].as_str().context("no how")?;
    ensure!(how == "network", "the tool came from the {how}");
    Ok((seconds, root))
}

/// The same command at the other end of the wire.
fn inside(wire: &Wire, command: &Command) -> Command {
    let mut inside = wire.within(Path::new(command.get_program()));
    inside.args(command.get_args());
    inside
}
