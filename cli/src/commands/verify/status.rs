//! `qk verify --status`: what waits, what is being rebuilt, what came out, what is left of the budget.

use std::collections::BTreeMap;

use qk_node::node::unix_now;
use qk_node::watch::{self, Kept};
use qk_protocol::hash::{KeyId, NetworkId};
use qk_protocol::time::UnixTime;
use qk_protocol::watch::budget::{Budget, Wait};
use qk_protocol::watch::{Agreement, Class, Done, Entry, Why};
use serde::Serialize;

use super::super::of_problem;
use super::event::{all, in_words};
use crate::failure::Outcome;
use crate::output::{ago, bytes, lasting};
use crate::session::Session;

/// Lines of each list that a person is shown.
const SHOWN_MAX: usize = 10;

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Report {
    /// Whether `qk verify --watch` runs here.
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<Budget>,
    /// Seconds of the processors that rebuilds took today.
    cpu_seconds: u64,
    /// What is left of them, where there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_seconds_left: Option<u64>,
    /// Why nothing is rebuilt.
    waits: Vec<Wait>,
    #[serde(skip_serializing_if = "Option::is_none")]
    building: Option<Building>,
    /// What waits, the next one first.
    queue: Vec<Waiting>,
    /// Artifacts that came out, by what others had observed.
    rebuilt: BTreeMap<Agreement, u64>,
    /// Tries that came to nothing, by why.
    failed: BTreeMap<Class, u64>,
    /// The last ones, newest first.
    results: Vec<Done>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "RebuildNow"))]
struct Building {
    #[serde(flatten)]
    what: What,
    since: UnixTime,
}

#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "RebuildWaiting")
)]
struct Waiting {
    #[serde(flatten)]
    what: What,
    found: UnixTime,
    due: UnixTime,
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Class>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct What {
    network: NetworkId,
    name: String,
    version: String,
    target: String,
    key_id: KeyId,
    #[serde(flatten)]
    why: Why,
}

impl From<&Entry> for What {
    fn from(entry: &Entry) -> Self {
        let key = &entry.key;
        Self {
            network: entry.network,
            name: key.name.clone(),
            version: key.version.clone(),
            target: key.target.clone(),
            key_id: key.id(),
            why: entry.why,
        }
    }
}

pub(super) fn run(session: &Session) -> Outcome {
    let looked = watch::look(&session.home).map_err(|problem| of_problem(&problem))?;
    let report = match looked {
        Some((kept, process)) => of(&kept, process),
        None => Report {
            running: false,
            process: None,
            budget: None,
            cpu_seconds: 0,
            cpu_seconds_left: None,
            waits: Vec::new(),
            building: None,
            queue: Vec::new(),
            rebuilt: BTreeMap::new(),
            failed: BTreeMap::new(),
            results: Vec::new(),
        },
    };
    session
        .output
        .result(&report, |report| describe(report, unix_now()));
    Ok(())
}

fn of(kept: &Kept, process: Option<u32>) -> Report {
    let (queue, now) = (&kept.queue, unix_now());
    let running = process.is_some();
    let waiting = |entry: &Entry| Waiting {
        what: entry.into(),
        found: entry.found,
        due: entry.due,
        tries: entry.tries,
        last: entry.last,
    };
    Report {
        running,
        process: process.filter(|process| *process != 0),
        cpu_seconds: queue.spent().cpu_seconds(&kept.budget, now),
        cpu_seconds_left: kept.budget.cpu_left(queue.spent(), now),
        budget: Some(kept.budget.clone()),
        waits: if running {
            kept.waits.clone()
        } else {
            Vec::new()
        },
        building: queue.building().map(|building| Building {
            what: (&building.entry).into(),
            since: building.since,
        }),
        queue: queue.waiting(now).into_iter().map(waiting).collect(),
        rebuilt: queue.agreed().clone(),
        failed: queue.failed().clone(),
        results: queue.results().cloned().collect(),
    }
}

fn describe(report: &Report, now: UnixTime) -> String {
    let mut lines = vec![match (report.running, report.process, &report.budget) {
        (true, Some(process), _) => format!("watching, process {process}"),
        (true, None, _) => "watching".to_owned(),
        (false, _, Some(_)) => "not watching: `qk verify --watch` goes on".to_owned(),
        (false, _, None) => return "nothing was watched here yet: `qk verify --watch`".to_owned(),
    }];
    if let Some(building) = &report.building {
        let (what, since) = (&building.what, lasting(now.since(building.since)));
        lines.push(match report.running {
            true => format!("  now     {} {} for {since}", what.name, what.version),
            false => format!("  now     {} {} was under way", what.name, what.version),
        });
    }
    if !report.waits.is_empty() {
        lines.push(format!("  waits   {}", all(&report.waits)));
    }
    if let Some(budget) = &report.budget {
        lines.push(format!("  budget  {}", given(budget, report)));
    }
    lines.push(format!("  queue   {} wait", report.queue.len()));
    lines.extend(
        report
            .queue
            .iter()
            .take(SHOWN_MAX)
            .map(|one| waits(one, now)),
    );
    let rebuilt: u64 = report.rebuilt.values().sum();
    let failed: u64 = report.failed.values().sum();
    lines.push(format!(
        "  done    {rebuilt} rebuilt, {failed} tries came to nothing"
    ));
    let agreed = report.rebuilt.iter().map(|(agreement, count)| {
        let said = match agreement {
            Agreement::First => "nobody had observed before",
            Agreement::Identical => "identical to what others observed",
            Agreement::Differs => "DIFFER from what others observed",
        };
        format!("    {count} {said}")
    });
    lines.extend(agreed);
    let failed = report.failed.iter();
    lines.extend(failed.map(|(class, count)| format!("    {count} failed: {}", class.in_words())));
    if !report.results.is_empty() {
        lines.push("  last".to_owned());
    }
    lines.extend(
        report
            .results
            .iter()
            .take(SHOWN_MAX)
            .map(|one| came(one, now)),
    );
    lines.join("\n")
}

fn given(budget: &Budget, report: &Report) -> String {
    let cpu = match (budget.cpu_seconds, report.cpu_seconds_left) {
        (Some(all), Some(left)) => {
            format!("{} of {} CPU time left today", lasting(left), lasting(all))
        }
        _ => format!("{} CPU time taken today", lasting(report.cpu_seconds)),
    };
    let mut parts = vec![
        cpu,
        format!("{} processors", budget.jobs),
        format!("{} of the disk", bytes(budget.disk_bytes)),
        format!("{} for each phase", lasting(budget.time_limit_seconds)),
    ];
    parts.extend(budget.hours.map(|hours| format!("only {hours}")));
    parts.extend(budget.idle.then(|| "only while idle".to_owned()));
    parts.join(", ")
}

fn waits(one: &Waiting, now: UnixTime) -> String {
    let what = &one.what;
    let when = match one.due.since(now) {
        0 => String::new(),
        seconds => format!(", in {}", lasting(seconds)),
    };
    let last = one
        .last
        .map(|last| format!("; {} times: {}", one.tries, last.in_words()));
    let last = last.unwrap_or_default();
    format!(
        "    {} {}: {}{when}{last}",
        what.name,
        what.version,
        in_words(what.why)
    )
}

fn came(one: &Done, now: UnixTime) -> String {
    let said = match (one.agreement, one.class) {
        (Some(Agreement::First), _) => "the first observation".to_owned(),
        (Some(Agreement::Identical), _) => "identical".to_owned(),
        (Some(Agreement::Differs), _) => "DIFFERS".to_owned(),
        (None, Some(class)) => format!("{}: {}", class.in_words(), one.detail),
        (None, None) => String::new(),
    };
    let when = ago(now.since(one.at));
    format!(
        "    {} {}, {when}, {}: {said}",
        one.release.name,
        one.release.version,
        lasting(one.seconds)
    )
}
