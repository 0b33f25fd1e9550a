//! What a newer version of a network widens is shown to its user before it is used, and once.

use std::io::IsTerminal;

use qk_node::home::Joined;
use qk_node::node::unix_now;
use qk_protocol::hash::NetworkId;
use qk_protocol::manifest::Change;
use serde::Serialize;

use crate::args::NetworkAcceptArgs;
use crate::failure::Outcome;
use crate::output::lasting;
use crate::session::{Session, failed};

/// Says what joined networks widened since their user was told last, and which timestamps end soon.
/// What was shown on a terminal is not shown again, unless the user wants to say yes to it.
pub(crate) fn tell(session: &Session) -> Outcome {
    if session.output.json || session.output.quiet {
        return Ok(());
    }
    let confirms = session.config()?.confirm_changes;
    for joined in session.home.networks().map_err(failed)? {
        let (network, manifest) = (&joined.network, joined.network.manifest());
        if let Some(warning) = warn_of_end(&joined) {
            session.output.note(format!("note: {warning}"));
        }
        let news = joined.news();
        if !news.is_empty() {
            session.output.note(told(&joined, &news));
        }
        if joined.accepted < manifest.version && !confirms && std::io::stderr().is_terminal() {
            let accepted = session.home.accept(network.id(), manifest.version);
            accepted.map_err(failed)?;
        }
    }
    Ok(())
}

fn told(joined: &Joined, news: &[Change]) -> String {
    let manifest = joined.network.manifest();
    let mut text = format!(
        "note: network {} is at version {} and trusts more than in version {}:",
        manifest.name, manifest.version, joined.accepted
    );
    for line in lines(news) {
        text.push('\n');
        text.push_str(&line);
    }
    text
}

/// That a timestamp ends soon, where that is to be warned of.
pub(crate) fn warn_of_end(joined: &Joined) -> Option<String> {
    let left = joined.network.ends_soon(unix_now())?;
    Some(format!(
        "the timestamp of network {} ends in {} and was not renewed: after that nothing new is trusted",
        joined.network.manifest().name,
        lasting(left)
    ))
}

/// A line for each change; `!` marks those that widen trust.
pub(super) fn lines(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let mark = if change.widens { '!' } else { ' ' };
        format!("  {mark} {}", change.text)
    };
    changes.iter().map(line).collect()
}

/// What was accepted.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Accepted {
    network: NetworkId,
    name: String,
    version: u64,
    changes: Vec<Change>,
}

pub(super) async fn accept(session: &Session, args: &NetworkAcceptArgs) -> Outcome {
    let joined = session.network(args.network.as_deref())?;
    let network = &joined.network;
    let accepted = Accepted {
        network: network.id(),
        name: network.manifest().name.clone(),
        version: network.manifest().version,
        changes: joined.news(),
    };
    // The version that was shown, not one that a node takes meanwhile.
    let done = session.home.accept(accepted.network, accepted.version);
    done.map_err(failed)?;
    session.reload_node().await;
    session.output.result(&accepted, |accepted| {
        let mut text = vec![format!(
            "network {}: everything up to version {} counts",
            accepted.name, accepted.version
        )];
        text.extend(lines(&accepted.changes));
        text.join("\n")
    });
    Ok(())
}
