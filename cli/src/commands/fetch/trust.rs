//! Who vouches, shown before the first installation from a network, and once.

use std::collections::BTreeSet;

use qk_node::home::Joined;
use qk_node::node::policy_of;
use qk_protocol::manifest::Manifest;
use qk_protocol::policy::{Count, OnDissent, Policy};

use crate::failure::{Failure, Kind, Outcome};
use crate::output::ask;
use crate::session::{Session, failed};

/// Principals that are named.
const NAMED_MAX: usize = 16;

/// Shows who vouches in each network that is about to be asked for something of these registries for
/// the first time, and asks at a terminal whether to go on. What was shown is not shown again.
pub(crate) async fn introduce(
    session: &Session,
    project: Option<&Policy>,
    registries: &BTreeSet<&str>,
) -> Outcome {
    if session.output.json || session.output.quiet {
        return Ok(());
    }
    let config = session.config()?;
    for joined in session.home.networks().map_err(failed)? {
        let (id, manifest) = (joined.network.id(), joined.network.manifest());
        let serves = manifest
            .registries
            .iter()
            .any(|one| registries.contains(&**one));
        if session.home.is_introduced(id) || !serves {
            continue;
        }
        let policy = policy_of(&config, manifest);
        let policy = match project {
            Some(project) => policy.stricter(project),
            None => policy,
        };
        session.output.note(screen(&joined, &policy));
        if ask("take what they vouch for?").await? == Some(false) {
            let message = format!(
                "network {} was not accepted: nothing was done",
                manifest.name
            );
            return Err(Failure::new(Kind::Unproven, message).hint(
                "`qk network show` says more of it, and a [policy] in config.toml asks for more; \
                 the next `qk fetch` asks again",
            ));
        }
        session.home.introduce(id).map_err(failed)?;
    }
    Ok(())
}

fn screen(joined: &Joined, policy: &Policy) -> String {
    let manifest = joined.network.manifest();
    let mut lines = vec![
        format!(
            "for the first time something is to be taken from network {}",
            manifest.name
        ),
        format!("  fingerprint {}", joined.network.id()),
        "  who vouches".to_owned(),
    ];
    lines.extend(principals(manifest));
    lines.push("  what is trusted".to_owned());
    lines.extend(
        demands(manifest, policy)
            .into_iter()
            .map(|one| format!("    {one}")),
    );
    lines.join("\n")
}

fn principals(manifest: &Manifest) -> Vec<String> {
    let all = &manifest.principals;
    let width = all.iter().map(|one| one.name.len()).max().unwrap_or(0);
    let line = |one: &qk_protocol::manifest::Principal| {
        let roles = one.roles.iter();
        let roles: Vec<_> = roles
            .map(|role| format!("{role:?}").to_lowercase())
            .collect();
        format!("    {:<width$}  {}", one.name, roles.join(", "))
    };
    let mut lines: Vec<String> = all.iter().take(NAMED_MAX).map(line).collect();
    if all.len() > NAMED_MAX {
        let more = all.len() - NAMED_MAX;
        lines.push(format!("    and {more} more: `qk network show`"));
    }
    lines
}

/// What the policy asks, a line for each demand.
fn demands(manifest: &Manifest, policy: &Policy) -> Vec<String> {
    let who = match policy.count {
        Count::Any => "of them".to_owned(),
        Count::Assigned => format!(
            "of the {} that are drawn for a release",
            manifest.committee.size
        ),
    };
    let mut lines = vec![format!("what {} {who} observed alike", policy.threshold)];
    for group in &policy.groups {
        lines.push(format!("and {} of {}", group.threshold, group.name));
    }
    if let Some(days) = policy.max_age_days {
        lines.push(format!("not longer than {days} days ago"));
    }
    lines.push(match policy.on_dissent {
        Some(OnDissent::Escalate) => "where one differs, more are asked".to_owned(),
        Some(OnDissent::Refuse) | None => "where one differs, nothing".to_owned(),
    });
    if policy.rebuild_percent > 0 {
        lines.push(format!(
            "{} % of it is rebuilt here",
            policy.rebuild_percent
        ));
    }
    lines
}
