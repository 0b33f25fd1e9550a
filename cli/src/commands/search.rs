//! `qk search`: what is known of crates.

use qk_node::access::Access;
use qk_node::node::{NetworkHit, NodeOptions, SearchReport, SearchSpec, Searched, unix_now};
use qk_node::registry::Ask;
use qk_protocol::key::check_crate_name;
use qk_protocol::search::{Query, State};

use super::of_problem;
use crate::args::{CrateSpec, SearchArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, bytes};
use crate::session::Session;

pub(crate) async fn run(session: &Session, args: &SearchArgs) -> Outcome {
    let query = Query {
        text: args.query.clone(),
        bin: args.bin.clone(),
        targets: args.target.iter().cloned().collect(),
        proven: args.proven,
        all: args.all,
    };
    query
        .check()
        .map_err(|why| Failure::new(Kind::Usage, why))?;
    if session.home.networks().is_ok_and(|all| all.is_empty()) && !is_shared(session).await {
        return Err(Session::no_network());
    }
    let access = session
        .access(NodeOptions {
            offline: args.offline,
            ..NodeOptions::default()
        })
        .await?;
    let spinner = session.output.spinner("searching");
    let spec = SearchSpec {
        query,
        limit: args.limit,
        offline: args.offline,
        release: newest(session, args).await,
        policy: session.project_policy()?,
    };
    let report = access.search(&spec).await;
    spinner.finish_and_clear();
    access.shutdown().await;
    let report = report.map_err(|problem| of_problem(&problem))?;
    for one in &report.networks {
        note(session, one, args.offline);
    }
    if report.hits.is_empty() {
        let failure = Failure::new(Kind::NotFound, "nothing that is known is like that");
        return Err(failure.hint(
            "a shorter QUERY finds more, and `qk fetch` takes what a network knows by its whole name",
        ));
    }
    session.output.result(&report, describe);
    Ok(())
}

/// Whether a node of the whole system answers, for somebody who joined nothing.
async fn is_shared(session: &Session) -> bool {
    matches!(Access::running(&session.home).await, Ok(Some(_)))
}

/// The newest release of a crate that is called exactly so, if the registry knows one.
async fn newest(session: &Session, args: &SearchArgs) -> Option<qk_protocol::key::Release> {
    if args.offline || check_crate_name(&args.query).is_err() {
        return None;
    }
    let krate = CrateSpec {
        name: args.query.clone(),
        ask: Ask::Newest,
    };
    let resolved = session.resolve(&krate, false).await.ok()?;
    Some(resolved.release)
}

fn note(session: &Session, searched: &Searched, offline: bool) {
    let name = &searched.network;
    if !offline && !searched.answered {
        let text = format!("note: no node of {name} answered; this is what is known here");
        session.output.note(text);
    } else if !searched.whole {
        let text = format!("note: {name} knows more than can be listed in a few seconds");
        session.output.note(text);
    }
}

fn describe(report: &SearchReport) -> String {
    let several = report.networks.len() > 1;
    let mut lines: Vec<String> = report.hits.iter().map(|hit| line(hit, several)).collect();
    if report.left_out > 0 {
        lines.push(format!("and {} more: --limit shows them", report.left_out));
    }
    lines.join("\n")
}

fn line(found: &NetworkHit, several: bool) -> String {
    let hit = &found.hit;
    let mut said = vec![word(found)];
    said.extend(hit.size.map(bytes));
    said.extend(found.here.then(|| "in the store".to_owned()));
    if let Some(bins) = &hit.executables
        && (bins.len() != 1 || !bins.contains(&hit.release.name))
    {
        let bins: Vec<&str> = bins.iter().map(String::as_str).collect();
        said.push(format!("runs {}", bins.join(", ")));
    }
    if !hit.features.is_empty() {
        let features: Vec<&str> = hit.features.iter().map(String::as_str).collect();
        said.push(format!("with {}", features.join(", ")));
    }
    said.extend((!hit.default_features).then(|| "without default features".to_owned()));
    said.extend(several.then(|| format!("network {}", found.network)));
    let release = format!("{} {}", hit.release.name, hit.release.version);
    format!("{release:<24} {}\n    {}", hit.target, said.join(", "))
}

fn word(found: &NetworkHit) -> String {
    let hit = &found.hit;
    let when = hit.newest.map(|at| ago(unix_now().since(at)));
    match (hit.state, hit.principals, when) {
        (State::Proven, 0, _) => "proven: your own build".to_owned(),
        (State::Proven, count, Some(when)) => {
            format!("proven: {count} principals agree, newest {when}")
        }
        (State::Proven, count, None) => format!("proven: {count} principals agree"),
        (State::Unproven, 0, _) => "unproven".to_owned(),
        (State::Unproven, 1, _) => "unproven: 1 principal".to_owned(),
        (State::Unproven, count, _) => format!("unproven: {count} principals"),
        (State::Disputed, _, _) => "DISPUTED".to_owned(),
        (State::Blocked, _, _) => "BLOCKED by the network".to_owned(),
        (State::Stale, _, _) => "stale".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use qk_protocol::hash::Root;
    use qk_protocol::key::Release;
    use qk_protocol::search::Hit;

    use super::*;

    fn found(name: &str, state: State, principals: usize, bins: &[&str]) -> NetworkHit {
        NetworkHit {
            network: "lab".to_owned(),
            here: state == State::Proven,
            hit: Hit {
                release: Release {
                    registry: "registry".to_owned(),
                    name: name.to_owned(),
                    version: "10.2.0".to_owned(),
                },
                target: "x86_64-unknown-linux-gnu".to_owned(),
                features: BTreeSet::new(),
                default_features: state != State::Disputed,
                state,
                principals,
                newest: None,
                root: (state != State::Disputed).then_some(Root([7; 32])),
                size: (state != State::Disputed).then_some(1_500_000),
                executables: (!bins.is_empty())
                    .then(|| bins.iter().map(|bin| (*bin).to_owned()).collect()),
            },
        }
    }

    #[test]
    fn a_hit_is_two_lines() {
        let report = SearchReport {
            hits: vec![
                found("fd-find", State::Proven, 3, &["fd"]),
                found("hexyl", State::Unproven, 1, &["hexyl"]),
                found("ripgrep", State::Disputed, 0, &[]),
            ],
            left_out: 4,
            networks: Vec::new(),
        };
        insta::assert_snapshot!(describe(&report), @r"
        fd-find 10.2.0           x86_64-unknown-linux-gnu
            proven: 3 principals agree, 1.43 MiB, in the store, runs fd
        hexyl 10.2.0             x86_64-unknown-linux-gnu
            unproven: 1 principal, 1.43 MiB
        ripgrep 10.2.0           x86_64-unknown-linux-gnu
            DISPUTED, without default features
        and 4 more: --limit shows them
        ");
    }
}
