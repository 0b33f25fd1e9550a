//! Pages of crates: what is stated about them, who agreed, who did not.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use qk_protocol::candidate::Candidate;
use qk_protocol::decide::{Decision, Effect, Held, Line, Question, Verdict, decide};
use qk_protocol::hash::Root;
use qk_protocol::key::{Release, check_crate_name};
use qk_protocol::search::{Query as Wanted, State as Proof};
use qk_protocol::statement::Statement;
use serde::Deserialize;
use serde_json::Value;

use super::super::index::shown;
use super::super::server::{Client, Shared};
use super::pictures::{self, Dot};
use super::principals;
use super::{ago, amount, failed, may_look, message, page, turn};
use crate::home::Joined;
use crate::node::{Member, NetworkHit, SearchSpec, unix_now};

/// Hits that a page lists.
const HITS_MAX: usize = 100;
const TEXT_CHARS_MAX: usize = 64;
/// Variants of one release that a page shows.
const VARIANTS_MAX: usize = 20;
/// Bytes of a comparison that is kept here.
const DISPUTE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct Search {
    #[serde(default)]
    q: String,
}

/// `GET /-/search?q=`.
pub(super) async fn found(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Query(search): Query<Search>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    let text: String = search.q.trim().chars().take(TEXT_CHARS_MAX).collect();
    let wanted = Wanted {
        text: text.clone(),
        ..Wanted::default()
    };
    let hits = hits(&shared, wanted).await?;
    Ok(page(
        "Search",
        &text,
        html! {
            @if text.is_empty() { h1 { "All crates" } } @else { h1 { "Crates like “" (text) "”" } }
            p.lead { "Of what this node's index has, the newest release and the newest proven one." }
            section { (listed(&hits)) }
        },
    ))
}

async fn hits(shared: &Shared, query: Wanted) -> Result<Vec<NetworkHit>, Response> {
    let _turn = turn(shared).await?;
    let spec = SearchSpec {
        query,
        limit: HITS_MAX,
        offline: true,
        release: None,
        policy: None,
    };
    let mut report = shared.node.search_for_others(&spec).await.map_err(failed)?;
    let names: Vec<String> = shown(shared).iter().map(|one| name_of(one)).collect();
    report.hits.retain(|hit| names.contains(&hit.network));
    Ok(report.hits)
}

fn name_of(member: &Member) -> String {
    member.joined().network.manifest().name.clone()
}

fn listed(hits: &[NetworkHit]) -> Markup {
    html! {
        @if hits.is_empty() { p.quiet { "Nothing is stated about such a crate here." } }
        @else {
            div.scroll { table {
                thead { tr { th { "Crate" } th { "State" } th { "Principals" } th { "Target" } th.right { "Size" } th { "Newest" } } }
                tbody {
                    @for NetworkHit { hit, here, .. } in hits { tr {
                        td { a href=(format!("/-/crates/{}/{}", hit.release.name, hit.release.version)) {
                            (hit.release.name) " " (hit.release.version) }
                            @if *here { span.quiet { " · here" } } }
                        td { (state(hit.state)) }
                        td { (hit.principals) }
                        td.quiet { (hit.target) @if !hit.features.is_empty() {
                            " +" (hit.features.iter().cloned().collect::<Vec<_>>().join(",")) } }
                        td.right { @if let Some(size) = hit.size { (amount(size)) } }
                        td.quiet { @if let Some(newest) = hit.newest { (ago(newest)) } }
                    } }
                }
            } }
        }
    }
}

fn word(proof: Proof) -> &'static str {
    match proof {
        Proof::Proven => "proven",
        Proof::Unproven => "unproven",
        Proof::Disputed => "disputed",
        Proof::Blocked => "blocked",
        Proof::Stale => "stale",
    }
}

fn state(proof: Proof) -> Markup {
    html! { span.state.(word(proof)) { (word(proof)) } }
}

/// `GET /-/crates/<name>`.
pub(super) async fn releases(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    check_crate_name(&name).map_err(|_| unknown())?;
    let wanted = Wanted {
        text: name.clone(),
        all: true,
        ..Wanted::default()
    };
    let mut hits = hits(&shared, wanted).await?;
    hits.retain(|hit| hit.hit.release.name == name);
    Ok(page(
        &name,
        &name,
        html! {
            h1 { (name) }
            p.lead { "All releases that something is stated about here." }
            section { (listed(&hits)) }
            section {
                h2 { "Badge" }
                p { img src=(format!("/-/badges/{name}.svg")) alt="the badge"; }
                p.quiet { code { "/-/badges/" (name) ".svg" } }
            }
        },
    ))
}

fn unknown() -> Response {
    let text = "No crate can have that name, or no release that version.";
    message(StatusCode::NOT_FOUND, "No such crate", text)
}

/// One choice of target, features and toolchain of a release, and what is decided about it.
pub(super) struct Variant {
    joined: Arc<Joined>,
    pub(super) candidate: Candidate,
    pub(super) verdict: Verdict,
    /// The statements about it.
    statements: Vec<Arc<Statement>>,
    dispute: Option<Value>,
}

/// `GET /-/crates/<name>/<version>`.
pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    check_crate_name(&name).map_err(|_| unknown())?;
    let parsed: semver::Version = version.parse().map_err(|_| unknown())?;
    let version = parsed.to_string();
    let _turn = turn(&shared).await?;
    let mut all = Vec::new();
    for member in shown(&shared) {
        let registries = member.joined().network.manifest().registries.clone();
        for registry in registries {
            let release = Release {
                registry,
                name: name.clone(),
                version: version.clone(),
            };
            for variant in variants(&shared, &member, &release).await? {
                all.push((name_of(&member), variant));
            }
        }
    }
    Ok(page(
        &format!("{name} {version}"),
        &name,
        html! {
            h1 { (name) " " span.quiet { (version) } }
            p.lead { a href=(format!("/-/crates/{name}")) { "all releases" } }
            @if all.is_empty() {
                section { p { "Nothing is stated about it here." }
                    p.quiet { code { "qk proofs " (name) "@" (version) } " asks the network." } }
            }
            @for (network, variant) in &all { (shown_variant(network, &name, &version, variant)) }
        },
    ))
}

impl Variant {
    pub(super) fn statement(&self, line: &Line) -> Option<&Arc<Statement>> {
        let is_it = |one: &&Arc<Statement>| one.id() == line.statement;
        self.statements.iter().find(is_it)
    }
}

pub(super) async fn variants(
    shared: &Shared,
    member: &Arc<Member>,
    release: &Release,
) -> Result<Vec<Variant>, Response> {
    let held = shared.node.held(member, release).await.map_err(failed)?;
    let joined = member.joined();
    let policy = shared.node.policy(member);
    let mut candidates: Vec<Candidate> = Vec::new();
    // Those of strangers are many for nothing.
    let of_principals = held
        .iter()
        .filter(|one| joined.network.principal(one.statement.observer()).is_some());
    for one in of_principals {
        let candidate = Candidate::of(one.statement.key());
        if !candidates.contains(&candidate) && candidates.len() < VARIANTS_MAX {
            candidates.push(candidate);
        }
    }
    let disputes = shared.node.home().disputes();
    let judged = candidates.into_iter().map(|candidate| {
        let verdict = decide(&Question {
            policy: &policy,
            network: &joined.network,
            candidate: &candidate,
            own: None,
            statements: &held,
            now: unix_now(),
        });
        let about = |one: &&Held| candidate.matches(one.statement.key());
        let statements: Vec<_> = held
            .iter()
            .filter(about)
            .map(|one| one.statement.clone())
            .collect();
        let dispute = statements.first().and_then(|one| {
            let path = disputes.join(format!("{}.json", one.key_id()));
            read_dispute(&path)
        });
        Variant {
            joined: joined.clone(),
            candidate,
            verdict,
            statements,
            dispute,
        }
    });
    Ok(judged.collect())
}

fn read_dispute(path: &std::path::Path) -> Option<Value> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(DISPUTE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The state of a decision, and what there is to say.
fn said(decision: &Decision) -> (Proof, String) {
    match decision {
        Decision::Trusted(trusted) => (
            Proof::Proven,
            format!(
                "{} principals observed the same artifact.",
                trusted.proof.len()
            ),
        ),
        Decision::Unproven(unproven) => (
            Proof::Unproven,
            format!(
                "{} of {} principals: {}",
                unproven.have, unproven.need, unproven.missing
            ),
        ),
        Decision::Disputed { roots } => (
            Proof::Disputed,
            format!("Principals observed {} different artifacts.", roots.len()),
        ),
        Decision::Stale { why } => (Proof::Stale, why.clone()),
        Decision::Blocked { reason } => (
            Proof::Blocked,
            format!("The network says that nobody is to take it: {reason}"),
        ),
    }
}

fn shown_variant(network: &str, name: &str, version: &str, variant: &Variant) -> Markup {
    let (proof, text) = said(&variant.verdict.decision);
    let build = &variant.candidate.build;
    let plain = variant.candidate.features.is_empty() && variant.candidate.default_features;
    let base = format!("/{name}/{version}/{}", build.target);
    html! {
        section {
            h2 { (build.target) " " (state(proof)) }
            p { (text) }
            p.quiet { "network " (network) " · rustc " (build.rustc.version)
                @if !variant.candidate.default_features { " · without default features" }
                @for feature in &variant.candidate.features { " · " (feature) } }
            (picture(variant))
            div.scroll { table {
                thead { tr { th { "Observer" } th { "Artifact" } th { "Says" } th { "When" } th { "Log" } } }
                tbody { @for line in &variant.verdict.lines { (row(variant, line)) } }
            } }
            @if let (Decision::Trusted(trusted), true) = (&variant.verdict.decision, plain) {
                ul.take {
                    @for form in [".tgz", ".tar.zst", ".qk.tar", ".tgz.sig", ".json"] {
                        li { a href=(format!("{base}{form}")) { (form) } }
                    }
                }
                p.quiet { (amount(trusted.subject.size)) " · root " code.wrap { (trusted.subject.root.to_string()) } }
            }
            @if let Some(dispute) = &variant.dispute { (difference(dispute)) }
        }
    }
}

fn roots(variant: &Variant) -> BTreeMap<Root, usize> {
    let roots = variant.verdict.lines.iter().filter_map(|line| line.root);
    let mut lanes = BTreeMap::new();
    for root in roots {
        let next = lanes.len();
        lanes.entry(root).or_insert(next);
    }
    lanes
}

fn picture(variant: &Variant) -> Markup {
    let lanes = roots(variant);
    let mut names = vec![String::new(); lanes.len()];
    lanes
        .iter()
        .for_each(|(root, lane)| names[*lane] = root.short().to_string());
    let dots: Vec<Dot> = variant
        .verdict
        .lines
        .iter()
        .filter_map(|line| {
            Some(Dot {
                name: line.principal.clone()?,
                lane: *lanes.get(&line.root?)?,
                counts: matches!(
                    line.effect,
                    Effect::Counts | Effect::Dissents | Effect::Contradicts
                ),
            })
        })
        .collect();
    let good = match &variant.verdict.decision {
        Decision::Trusted(trusted) => lanes.get(&trusted.subject.root).copied(),
        _ => None,
    };
    html! { @if !dots.is_empty() && lanes.len() <= 6 { (pictures::agreement(&names, &dots, good)) } }
}

fn row(variant: &Variant, line: &Line) -> Markup {
    let statement = variant.statement(line);
    let principal = statement.and_then(|one| variant.joined.network.principal(one.observer()));
    html! { tr {
        td { @match principal {
            Some((principal, _)) => { a href=(principals::path(principal)) { (principal.name) } }
            None => { span.quiet { "a stranger" } }
        } }
        (said_of(variant, line))
    } }
}

/// What a statement says of which artifact, when, and its log: four cells.
pub(super) fn said_of(variant: &Variant, line: &Line) -> Markup {
    let log = variant.statement(line).and_then(|one| one.observation());
    let log = log.map(|one| one.log);
    let (kind, text) = label(&variant.verdict.decision, line.effect);
    html! {
        td { @if let Some(root) = line.root { code title=(root.to_string()) { (root.short()) } } @else { "—" } }
        td { span.state.(kind) { (text) }
            @if line.work_agrees > 0 { span.quiet { " · work agrees with " (line.work_agrees) } } }
        td.quiet { (ago(line.at)) }
        td { @if let Some(log) = log { a href=(format!("/-/logs/{log}")) { "log" } } }
    }
}

/// The colour and the words for what a statement does to a decision.
pub(super) fn label(decision: &Decision, effect: Effect) -> (&'static str, &'static str) {
    let is_side = matches!(effect, Effect::Counts | Effect::Own | Effect::Dissents);
    if is_side && matches!(decision, Decision::Disputed { .. }) {
        // Where nothing is trusted, nobody can say who is right.
        return ("other", "in dispute");
    }
    match effect {
        Effect::Counts | Effect::Own => ("counts", "agrees"),
        Effect::Dissents => ("against", "dissents"),
        Effect::Contradicts => ("against", "contradicts itself"),
        Effect::WorkDiffers => ("against", "did not build it"),
        Effect::Repeats => ("other", "repeats"),
        Effect::Retracted => ("other", "retracted"),
        Effect::TooOld => ("other", "too old"),
        Effect::InFuture => ("other", "from the future"),
        Effect::KeyRetired => ("other", "key retired"),
        Effect::KeyCompromised => ("against", "key compromised"),
        Effect::NotCounted => ("other", "not counted"),
        Effect::Stranger => ("other", "stranger"),
        Effect::Failure => ("other", "could not build"),
        Effect::Retraction => ("other", "takes back"),
        Effect::OtherNetwork => ("other", "other network"),
    }
}

/// The comparison that `qk verify` kept when it got another artifact than others.
fn difference(dispute: &Value) -> Markup {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let size = |value: &Value| value.as_u64().map_or("—".to_owned(), amount);
    let empty = Vec::new();
    let list = |value: &Value, name: &str| value[name].as_array().unwrap_or(&empty).clone();
    html! {
        h2 { "Where they differ" }
        @if let Some(class) = dispute.get("class") { p { "It looks like: " (text(class)) } }
        div.scroll { table {
            thead { tr { th { "File" } th { "Section" } th.right { "One" } th.right { "Other" } th { "Hints" } } }
            tbody { @for file in list(dispute, "files").iter().take(50) {
                tr {
                    td.wrap { (text(&file["path"])) } td {}
                    td.right { (size(&file["sizes"][0])) } td.right { (size(&file["sizes"][1])) }
                    td.quiet.wrap { @for cause in list(file, "causes").iter().take(8) { (text(cause)) " " } }
                }
                @for section in list(file, "sections").iter().take(50) { tr {
                    td {} td.wrap { (text(&section["name"])) }
                    td.right { (size(&section["sizes"][0])) } td.right { (size(&section["sizes"][1])) } td {}
                } }
            } }
        } }
    }
}

/// `GET /-/badges/<name>.svg`: for anybody, as a page elsewhere shows it.
pub(super) async fn badge(
    State(shared): State<Shared>,
    Path(file): Path<String>,
) -> Result<Response, Response> {
    let name = file.strip_suffix(".svg").ok_or_else(unknown)?;
    check_crate_name(name).map_err(|_| unknown())?;
    let (value, colour) = newest(&shared, name).await?;
    let headers = [
        (header::CONTENT_TYPE, "image/svg+xml"),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    Ok((headers, pictures::badge("qk", &value, colour)).into_response())
}

async fn newest(shared: &Shared, name: &str) -> Result<(String, &'static str), Response> {
    let wanted = Wanted {
        text: name.to_owned(),
        ..Wanted::default()
    };
    let mut hits = hits(shared, wanted).await?;
    hits.retain(|hit| hit.hit.release.name == name);
    let version = |hit: &NetworkHit| hit.hit.release.version.parse::<semver::Version>().ok();
    let Some(newest) = hits
        .iter()
        .max_by_key(|hit| (version(hit), hit.hit.state == Proof::Proven))
    else {
        return Ok(("unknown".to_owned(), "#7a8380"));
    };
    let hit = &newest.hit;
    let value = match hit.state {
        Proof::Proven => format!("{} proven by {}", hit.release.version, hit.principals),
        state => format!("{} {}", hit.release.version, word(state)),
    };
    let colour = match hit.state {
        Proof::Proven => "#1a7f4b",
        Proof::Unproven => "#7a8380",
        Proof::Stale => "#8a5a00",
        Proof::Disputed | Proof::Blocked => "#b3372f",
    };
    Ok((value, colour))
}
