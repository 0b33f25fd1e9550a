//! `qk proofs`: what was observed, and what the policy makes of it.

pub(crate) mod bundle;

use qk_node::access::{Access, FindReport, FindSpec};
use qk_node::home::Joined;
use qk_node::node::{NodeOptions, policy_of, unix_now};
use qk_protocol::candidate::{Candidate, Wanted};
use qk_protocol::decide::{Held, Line, Question, Roll, Said, Seat, Verdict, choose, decide};
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::key::Release;
use qk_protocol::policy::Policy;
use serde::Serialize;

use super::{describe as in_one_line, of_problem};
use crate::args::{CrateSpec, ProofsArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, count};
use crate::session::{Session, failed};

/// What each network says about a release.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Proofs {
    networks: Vec<Report>,
}

/// What one network says about a release.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Proof"))]
struct Report {
    network: String,
    network_id: NetworkId,
    release: Release,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    /// Who is assigned and what they said, with all that is drawn from.
    #[serde(skip_serializing_if = "Option::is_none")]
    roll: Option<Roll>,
    /// Statements about other targets, flags or toolchains of the release.
    others: usize,
    providers: Vec<(Root, usize)>,
    answered: usize,
    known: usize,
}

pub(crate) async fn run(session: &Session, args: &ProofsArgs) -> Outcome {
    let krate = match (&args.check, &args.krate) {
        (Some(path), about) => return bundle::check(session, path, about.as_ref(), args),
        (None, Some(krate)) => krate,
        (None, None) => return Err(Failure::new(Kind::Usage, "which crate?")),
    };
    let networks = match &args.network {
        Some(_) => vec![session.network(args.network.as_deref())?],
        None => session.home.networks().map_err(failed)?,
    };
    if networks.is_empty() {
        return Err(Session::no_network());
    }
    let looked = look(session, args, krate, &networks).await?;
    if let Some(path) = &args.export {
        return bundle::export(session, path, &looked);
    }
    let networks = looked.into_iter().map(|one| one.report).collect();
    session.output.result(&Proofs { networks }, |proofs| {
        proofs
            .networks
            .iter()
            .map(describe)
            .collect::<Vec<_>>()
            .join("\n\n")
    });
    Ok(())
}

/// What was found in one network, and what is made of it.
struct Looked<'a> {
    joined: &'a Joined,
    held: Vec<Held>,
    /// What the verdict is about.
    candidate: Option<Candidate>,
    report: Report,
}

async fn look<'a>(
    session: &Session,
    args: &ProofsArgs,
    krate: &CrateSpec,
    networks: &'a [Joined],
) -> Outcome<Vec<Looked<'a>>> {
    let resolved = session.resolve(krate, args.offline).await?;
    let wanted = Session::wanted(
        &resolved,
        &args.flags,
        args.target.iter().cloned().collect(),
    );
    let options = NodeOptions {
        offline: args.offline,
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let project = session.project_policy()?;
    let mut looked = Vec::new();
    for joined in networks {
        let manifest = joined.network.manifest();
        if !manifest.registries.contains(&wanted.release.registry) {
            continue;
        }
        let found = find(&access, joined.network.id(), &wanted.release, args.offline).await?;
        let candidates = wanted.candidates(&manifest.builds);
        let judged = judge(session, joined, &wanted, &found.held, project.as_ref())?;
        let (candidate, verdict) = judged.unzip();
        let about = candidate.as_ref();
        looked.push(Looked {
            joined,
            report: Report {
                network: manifest.name.clone(),
                network_id: joined.network.id(),
                release: wanted.release.clone(),
                roll: about.map(|candidate| Roll::of(&joined.network, candidate, &found.held)),
                verdict,
                others: others(&found, &candidates),
                providers: found.providers.into_iter().collect(),
                answered: found.answered,
                known: found.known,
            },
            candidate,
            held: found.held,
        });
    }
    access.shutdown().await;
    Ok(looked)
}

/// What the policy makes of statements, as a fetch would have it; nothing where the network builds for
/// none of the targets.
pub(crate) fn judge(
    session: &Session,
    joined: &Joined,
    wanted: &Wanted,
    held: &[Held],
    project: Option<&Policy>,
) -> Outcome<Option<(Candidate, Verdict)>> {
    let config = session.config()?;
    let manifest = joined.network.manifest();
    let policy = match project {
        Some(project) => policy_of(&config, manifest).stricter(project),
        None => policy_of(&config, manifest),
    };
    let own = public_key(&session.home.key("observer").map_err(failed)?);
    let candidates = wanted.candidates(&manifest.builds);
    let verdicts = candidates.iter().map(|candidate| {
        decide(&Question {
            policy: &policy,
            network: &joined.network,
            candidate,
            own: Some(own),
            statements: held,
            now: unix_now(),
        })
    });
    let chosen = choose(verdicts);
    Ok(chosen.and_then(|(at, verdict)| Some((candidates.get(at)?.clone(), verdict))))
}

pub(crate) async fn find(
    access: &Access,
    network: NetworkId,
    release: &Release,
    offline: bool,
) -> Outcome<FindReport> {
    let spec = FindSpec {
        network,
        release: release.clone(),
        offline,
    };
    access
        .find(&spec)
        .await
        .map_err(|problem| of_problem(&problem))
}

fn others(found: &FindReport, candidates: &[Candidate]) -> usize {
    let matched = |key| candidates.iter().any(|candidate| candidate.matches(key));
    found
        .held
        .iter()
        .filter(|held| !matched(held.statement.key()))
        .count()
}

fn describe(report: &Report) -> String {
    let mut lines = vec![format!(
        "{} in network {} (asked {} of {})",
        report.release,
        report.network,
        report.answered,
        count(report.known, "known node")
    )];
    let Some(verdict) = &report.verdict else {
        lines.push("  the network builds nothing for this target".to_owned());
        return lines.join("\n");
    };
    lines.push(format!("  {}", in_one_line(verdict)));
    lines.extend(statements(&verdict.lines, &verdict.notes));
    lines.extend(report.roll.iter().flat_map(drawn));
    for (root, providers) in &report.providers {
        let providers = count(*providers, "node");
        lines.push(format!("  {} given by {providers}", root.short()));
    }
    if report.others > 0 {
        lines.push(format!(
            "  about other targets, flags or toolchains: {}",
            count(report.others, "statement")
        ));
    }
    lines.join("\n")
}

/// A line for each statement and each note.
pub(crate) fn statements(all: &[Line], notes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for line in all {
        let who = line
            .principal
            .clone()
            .unwrap_or_else(|| format!("stranger {}", line.observer.short()));
        let root = line.root.map_or_else(|| "-".repeat(8), |root| root.short());
        let effect = serde_json::to_value(line.effect).ok();
        let effect = effect
            .as_ref()
            .and_then(|effect| effect.as_str())
            .unwrap_or_default()
            .to_owned();
        lines.push(format!(
            "    {who:<16} {root}  {effect:<16} {}{}",
            ago(unix_now().since(line.at)),
            work(line)
        ));
    }
    lines.extend(notes.iter().map(|note| format!("  note: {note}")));
    lines
}

/// What others say of a statement's work digest.
fn work(line: &Line) -> String {
    match (line.work_agrees, line.work_differs) {
        (0, 0) => String::new(),
        (agree, 0) => format!("  work agrees: {agree}"),
        (agree, differ) => format!("  work agrees: {agree}, DIFFERS: {differ}"),
    }
}

/// Who is assigned and what they said; the rest of the ranking only by number.
fn drawn(roll: &Roll) -> Vec<String> {
    let of = |said: Said, called: bool| -> Vec<&str> {
        let seats = roll
            .seats
            .iter()
            .filter(|seat| seat.called && seat.said == said);
        let seats = seats.filter(|seat| (seat.round > 0) == called);
        seats.map(|seat| seat.name.as_str()).collect()
    };
    let mut lines = Vec::new();
    for (what, called) in [("assigned", false), ("called by dissent", true)] {
        let all = [Said::Observation, Said::Failure, Said::Nothing].map(|said| of(said, called));
        let number: usize = all.iter().map(Vec::len).sum();
        if number == 0 {
            continue;
        }
        let words = ["answered", "failed to build", "silent"];
        let some = words
            .iter()
            .zip(&all)
            .filter(|(_, names)| !names.is_empty());
        let some = some.map(|(word, names)| format!("{word}: {}", names.join(", ")));
        lines.push(format!(
            "  {what}: {number}; {}",
            some.collect::<Vec<_>>().join("; ")
        ));
    }
    let seat =
        |(rank, seat): (usize, &Seat)| format!("    {rank:>3}  {}  {}", seat.digest, seat.name);
    let called = roll.seats.iter().filter(|seat| seat.called);
    lines.push(format!("  drawn with seed {}:", roll.seed));
    lines.extend(called.enumerate().map(seat));
    let others = roll.seats.iter().filter(|seat| !seat.called).count();
    if others > 0 {
        lines.push(format!("    and {others} more, with `--json`"));
    }
    lines
}
