//! What `qk doctor` says of the clock, the joined networks and trust.

use qk_node::access::Access;
use qk_node::home::Joined;
use qk_node::node::{NodeOptions, policy_of, unix_now};
use qk_protocol::hash::Point;
use qk_protocol::manifest::CLOCK_SKEW_SECONDS_MAX;
use qk_protocol::policy::Policy;
use qk_protocol::time::UnixTime;

use super::{About, Check};
use crate::commands::network::warn_of_end;
use crate::failure::Outcome;
use crate::output::lasting;
use crate::session::{Session, host_target};

/// Everything about networks; nobody is asked `offline`.
pub(super) async fn all(session: &Session, offline: bool) -> Outcome<Vec<Check>> {
    let networks = match session.home.networks() {
        Ok(networks) => networks,
        Err(error) => return Ok(vec![About::Network.bad("the joined networks", error)]),
    };
    if networks.is_empty() {
        let how = "nobody vouches for anything: `qk join FILE|URL` joins one, `qk network new NAME` makes one";
        return Ok(vec![About::Network.bad("no network is joined", how)]);
    }
    let mut checks = vec![clock(&networks, unix_now())];
    // One that cannot be read was said to be.
    let config = session.home.config().unwrap_or_default();
    let project = session.project_policy()?;
    for joined in &networks {
        checks.push(timestamp(joined));
        let policy = policy_of(&config, joined.network.manifest());
        let policy = match &project {
            Some(project) => policy.stricter(project),
            None => policy,
        };
        checks.push(trust(joined, &policy));
    }
    if !offline {
        checks.extend(nodes(session, &networks).await?);
    }
    Ok(checks)
}

/// The networks' timestamps say when it was at least.
fn clock(networks: &[Joined], now: UnixTime) -> Check {
    let issued = networks.iter().map(|one| one.network.timestamp().issued);
    let latest = issued.max().unwrap_or(now);
    let behind = latest.since(now);
    if behind > CLOCK_SKEW_SECONDS_MAX {
        let what = format!("the clock is {} behind", lasting(behind));
        let how = "a network's timestamp was issued later than this machine says it is, so nothing new is trusted: set the clock, for instance with `timedatectl set-ntp true`";
        return About::Clock.bad(what, how);
    }
    About::Clock.good("the clock is not behind the networks' timestamps")
}

/// Whether a network's word is in force, and for how long.
fn timestamp(joined: &Joined) -> Check {
    let network = &joined.network;
    let name = &network.manifest().name;
    let what = format!("the timestamp of network {name}");
    if !network.fresh(unix_now()) {
        let how = "it ended, or this machine's clock is ahead, and nothing new is trusted: can its nodes be reached? Whoever runs it has newer ones";
        return About::Network.bad(what, how);
    }
    match warn_of_end(joined) {
        Some(warning) => About::Network.bad(what, warning),
        None => About::Network.good(what),
    }
}

/// Whether enough principals are there for anything to be trusted.
fn trust(joined: &Joined, policy: &Policy) -> Check {
    let manifest = joined.network.manifest();
    let (name, target) = (&manifest.name, host_target());
    let what = format!("the policy in network {name}");
    if !manifest.builds.iter().any(|build| build.target == target) {
        let how = format!(
            "the network builds nothing for {target}: whoever runs it can add it, `qk network set --help`"
        );
        return About::Trust.bad(what, how);
    }
    let short = policy.shortages(manifest, &target);
    if short.is_empty() {
        return About::Trust.good(format!("{what} can be met"));
    }
    let how = format!(
        "nothing can be trusted: {}; ask for less in [policy] of config.toml or qk.toml, or have whoever runs the network add principals (`qk network add`)",
        short.join("; ")
    );
    About::Trust.bad(what, how)
}

/// Whether nodes of the networks answer.
async fn nodes(session: &Session, networks: &[Joined]) -> Outcome<Vec<Check>> {
    let access = match session.access(NodeOptions::default()).await {
        Ok(access) => access,
        Err(failure) => {
            let how = match &failure.hint {
                Some(hint) => format!("{}: {hint}", failure.error),
                None => failure.error,
            };
            return Ok(vec![About::Network.bad("this machine's node", how)]);
        }
    };
    let mut checks = Vec::new();
    for joined in networks {
        checks.push(answers(&access, joined).await);
    }
    access.shutdown().await;
    Ok(checks)
}

async fn answers(access: &Access, joined: &Joined) -> Check {
    let manifest = joined.network.manifest();
    let what = format!("nodes of network {}", manifest.name);
    // Around no place in particular.
    let survey = access.survey(joined.network.id(), Point([0; 32])).await;
    // A running node counts itself.
    let itself = usize::from(access.is_daemon());
    match survey.map(|survey| survey.answered.saturating_sub(itself)) {
        Err(problem) => About::Network.bad(what, problem),
        Ok(0) if manifest.bootstrap.is_empty() => About::Network.bad(
            what,
            "none is known: its manifest names no address, so nodes are found on the local network alone, or by `parent` in config.toml",
        ),
        Ok(0) => {
            let named: Vec<&str> = manifest.bootstrap.iter().map(String::as_str).collect();
            let how = format!(
                "none answered: do {} run, and does a firewall or proxy let TCP through to there? QK_PARENT names another node",
                named.join(", ")
            );
            About::Network.bad(what, how)
        }
        Ok(answered) => About::Network.good(format!("{what} answer ({answered})")),
    }
}
