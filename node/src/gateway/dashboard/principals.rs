//! Pages of principals: who it is, what it stated, with whom it agreed and with whom it did not.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use maud::{Markup, html};
use qk_protocol::decide::{Effect, Line};
use qk_protocol::hash::{PrincipalId, PublicKey};
use qk_protocol::manifest::{KeyState, Network, Principal, PrincipalKey, PrincipalRole};

use super::super::index::shown;
use super::super::server::{Client, Shared};
use super::crates::{Variant, label, said_of, variants};
use super::{ago, failed, may_look, message, page, turn};
use crate::node::Member;

/// Releases that are looked at.
const RELEASES_MAX: usize = 60;
/// Versions of a network that are looked through for when somebody came or went.
const VERSIONS_MAX: u64 = 64;

/// Where the page of a principal is.
pub(super) fn path(principal: &Principal) -> String {
    format!("/-/principals/{}", principal.id)
}

/// What is known of a principal of one network.
struct Known {
    principal: Principal,
    /// The version since which it is one, without a gap; none where there are more than are looked at.
    since: Option<u64>,
    /// The version without it, if it is none any more.
    left: Option<u64>,
}

impl Known {
    fn of(network: &Network, id: PrincipalId) -> Option<Self> {
        let newest = network.manifest().version;
        let looked_at = (1..=newest).rev().take(VERSIONS_MAX as usize);
        let mut found: Option<Self> = None;
        for number in looked_at {
            let manifest = network.version(number)?;
            let there = manifest.principals.into_iter().find(|one| one.id == id);
            match (there, &mut found) {
                (Some(principal), None) => {
                    let left = (number < newest).then_some(number + 1);
                    found = Some(Self {
                        principal,
                        since: None,
                        left,
                    });
                }
                (None, Some(known)) => {
                    known.since = Some(number + 1);
                    return found;
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        if let (Some(known), true) = (&mut found, newest <= VERSIONS_MAX) {
            known.since = Some(1);
        }
        found
    }

    /// Its standing, in the colour that goes with it.
    fn state(&self) -> (&'static str, &'static str) {
        let has = |state| self.principal.keys.iter().any(|key| key.state == state);
        if self.left.is_some() {
            ("other", "no principal any more")
        } else if has(KeyState::Active) {
            ("proven", "principal")
        } else if has(KeyState::Retired) {
            ("other", "retired")
        } else {
            ("against", "revoked")
        }
    }
}

/// `GET /-/principals/<id>`.
pub(super) async fn principal(
    State(shared): State<Shared>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Markup, Response> {
    may_look(&shared, client, &headers)?;
    let unknown = || {
        let text = "No network that this node takes part in has, or lately had, such a principal.";
        message(StatusCode::NOT_FOUND, "No such principal", text)
    };
    let id: PrincipalId = id.parse().map_err(|_| unknown())?;
    let _turn = turn(&shared).await?;
    for member in shown(&shared) {
        let joined = member.joined();
        let known = tokio::task::spawn_blocking(move || Known::of(&joined.network, id));
        if let Some(known) = known.await.map_err(failed)? {
            return shown_principal(&shared, &member, &known).await;
        }
    }
    Err(unknown())
}

async fn shown_principal(
    shared: &Shared,
    member: &Arc<Member>,
    known: &Known,
) -> Result<Markup, Response> {
    let principal = &known.principal;
    let keys: BTreeSet<PublicKey> = principal.keys.iter().map(|one| one.key).collect();
    let releases = shared
        .node
        .releases_stated_by(member, keys.clone(), RELEASES_MAX);
    let releases = releases.await.map_err(failed)?;
    let is_cut = releases.len() >= RELEASES_MAX;
    let mut stated: Vec<(Arc<Variant>, Line)> = Vec::new();
    for release in releases {
        for variant in variants(shared, member, &release).await? {
            let variant = Arc::new(variant);
            let by_it = variant.verdict.lines.iter().filter(|line| {
                let statement = variant.statement(line);
                statement.is_some_and(|one| keys.contains(&one.observer()))
            });
            stated.extend(by_it.map(|line| (variant.clone(), line.clone())));
        }
    }
    stated.sort_by_key(|(_, line)| Reverse(line.at));
    let (kind, word) = known.state();
    Ok(page(
        &principal.name,
        "",
        html! {
            h1 { (principal.name) " " span.state.(kind) { (word) } }
            p.lead { (standing(member, known)) }
            (figures(&stated, is_cut))
            (shown_keys(&principal.keys))
            section {
                h2 { "What it stated" }
                @if stated.is_empty() { p.quiet { "Nothing that is known here." } }
                @else { (table(&stated)) }
            }
        },
    ))
}

fn standing(member: &Member, known: &Known) -> String {
    let joined = member.joined();
    let manifest = joined.network.manifest();
    let roles = known.principal.roles.iter().map(|role| match role {
        PrincipalRole::Publisher => "publisher",
        PrincipalRole::Verifier => "verifier",
        PrincipalRole::Mirror => "mirror",
    });
    let roles: Vec<&str> = roles.collect();
    let roles = match roles.is_empty() {
        true => "without a role".to_owned(),
        false => roles.join(" and "),
    };
    let since = match known.since {
        Some(version) => format!("since version {version}"),
        None => format!("for more than {VERSIONS_MAX} versions"),
    };
    let left = match known.left {
        Some(version) => format!(", until version {version}"),
        None => String::new(),
    };
    let (name, version) = (&manifest.name, manifest.version);
    format!("{roles} of network {name} {since}{left}; this node knows version {version}.")
}

/// How often it agreed, dissented, or is one side of a dispute.
fn figures(stated: &[(Arc<Variant>, Line)], is_cut: bool) -> Markup {
    let count = |word: &[&str]| {
        let labels = stated
            .iter()
            .map(|(variant, line)| label(&variant.verdict.decision, line.effect).1);
        labels.filter(|label| word.contains(label)).count()
    };
    let failures = stated
        .iter()
        .filter(|(_, line)| line.effect == Effect::Failure);
    html! {
        section {
            div.figures {
                div { p.figure id="agreements" { (count(&["agrees", "repeats"])) } p.quiet { "agreements" } }
                div { p.figure id="dissents" { (count(&["dissents", "contradicts itself", "did not build it"])) } p.quiet { "dissents" } }
                div { p.figure id="disputes" { (count(&["in dispute"])) } p.quiet { "in dispute" } }
                div { p.figure id="failures" { (failures.count()) } p.quiet { "could not build" } }
            }
            @if let Some((_, first)) = stated.last() { p.quiet { "The first of it " (ago(first.at)) "."
                @if is_cut { " Only " (RELEASES_MAX) " releases are shown." } } }
        }
    }
}

fn shown_keys(keys: &[PrincipalKey]) -> Markup {
    html! {
        section {
            h2 { "Keys" }
            @for key in keys {
                @let (kind, word) = match key.state {
                    KeyState::Active => ("proven", "active"),
                    KeyState::Retired => ("other", "retired"),
                    KeyState::Compromised => ("against", "compromised"),
                };
                p { span.state.(kind) { (word) } " " code.wrap { (key.key.to_string()) }
                    @if let Some(at) = key.retired { span.quiet { " · " (ago(at)) } } }
            }
        }
    }
}

fn table(stated: &[(Arc<Variant>, Line)]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "Crate" } th { "Artifact" } th { "Says" } th { "When" } th { "Log" } } }
            tbody { @for (variant, line) in stated {
                @let release = &variant.candidate.release;
                tr {
                    td { a href=(format!("/-/crates/{}/{}", release.name, release.version)) {
                        (release.name) " " (release.version) }
                        @for feature in &variant.candidate.features { span.quiet { " +" (feature) } } }
                    (said_of(variant, line))
                }
            } }
        } }
    }
}
