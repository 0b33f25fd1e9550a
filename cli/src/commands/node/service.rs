//! `qk node install` and `qk node uninstall`.

use std::fs;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory};
use qk_node::home::Home;
use qk_node::service::{
    self, Installed, Order, Removed, SYSTEM_GROUP, SYSTEM_HOME, SYSTEM_SOCKET, Scope, ServiceError,
};
use serde::Serialize;

use super::manners;
use crate::args::{Cli, NodeArgs, NodeInstallArgs, NodeUninstallArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::ask;
use crate::session::{Session, failed};

/// What an installation came to, and what the node gives from now on.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Told {
    #[serde(flatten)]
    installed: Installed,
    /// Whether it gives anything.
    gives: bool,
    /// Whether it gives and announces what was fetched, too.
    shares_fetched: bool,
}

pub(crate) async fn install(session: &Session, args: &NodeInstallArgs) -> Outcome {
    let (scope, home) = whose(session, args.system);
    // What it would end with on every start.
    let config = home.config();
    let config = config.map_err(|error| Failure::new(Kind::Usage, error))?;
    let mut forwarded = forwarded(&Cli::command().get_matches())?;
    let mut flags = manners::flags(&args.node.share, false);
    if !(args.no_share || flags.share || flags.leech) {
        flags.share = true;
        forwarded.push("--share".to_owned());
    }
    let order = Order {
        scope,
        home,
        program: std::env::current_exe().map_err(failed)?,
        args: forwarded,
    };
    let is_cache = args.node.cache || config.cache.enabled;
    let share = config.share.with(&flags);
    let installed = service::install(&order).await.map_err(of_service)?;
    let told = Told {
        shares_fetched: (is_cache || share.fetched == Some(true)) && !share.leech,
        gives: !share.leech,
        installed,
    };
    session.output.result(&told, describe);
    match &told.installed.undone {
        None => Ok(()),
        Some(undone) => Err(Failure::new(Kind::Other, &undone.why)
            .hint(format!(
                "then:\n    {}",
                undone.next.replace('\n', "\n    ")
            ))
            .printed(session.output.json)),
    }
}

pub(crate) async fn uninstall(session: &Session, args: &NodeUninstallArgs) -> Outcome {
    let (scope, home) = whose(session, args.system);
    if args.purge && !args.yes && home.dir().exists() && !agreed(&home).await? {
        return Err(Failure::new(Kind::Other, "nothing was removed"));
    }
    let removed = service::uninstall(scope, &home, args.purge).await;
    let removed = removed.map_err(of_service)?;
    session.output.result(&removed, describe_removed);
    Ok(())
}

fn whose(session: &Session, system: bool) -> (Scope, Home) {
    match system {
        true => (Scope::System, Home::at(SYSTEM_HOME)),
        false => (Scope::User, session.home.clone()),
    }
}

/// What was given of `qk node`'s own arguments, to be given again: whatever arguments it has.
fn forwarded(matches: &ArgMatches) -> Outcome<Vec<String>> {
    let given = matches
        .subcommand_matches("node")
        .and_then(|node| node.subcommand_matches("install"));
    let Some(given) = given else {
        return Ok(Vec::new());
    };
    let mut args = Vec::new();
    for arg in NodeArgs::augment_args(clap::Command::new("node")).get_arguments() {
        let id = arg.get_id().as_str();
        let by_hand = given.value_source(id) == Some(ValueSource::CommandLine);
        let Some(long) = arg.get_long().filter(|_| by_hand) else {
            continue;
        };
        let takes_value = arg.get_action().takes_values();
        for value in given.get_raw(id).into_iter().flatten() {
            args.push(format!("--{long}"));
            if takes_value {
                let text = value.to_str().ok_or_else(|| {
                    Failure::new(Kind::Usage, format!("--{long}: {value:?} is no UTF-8"))
                })?;
                args.push(text.to_owned());
            }
        }
    }
    Ok(args)
}

fn of_service(error: ServiceError) -> Failure {
    match &error {
        ServiceError::NotRoot | ServiceError::Program { .. } | ServiceError::Text(_) => {
            Failure::new(Kind::Usage, error)
        }
        ServiceError::NotSupported
        | ServiceError::Running { .. }
        | ServiceError::NotPurged { .. }
        | ServiceError::Manager { .. }
        | ServiceError::Io { .. } => Failure::new(Kind::Other, error),
    }
}

fn describe(told: &Told) -> String {
    let installed = &told.installed;
    let unit = installed.unit.display();
    let mut lines = vec![match installed.changed {
        true => format!("wrote {unit}"),
        false => format!("{unit} is as it should be"),
    }];
    if installed.running {
        lines.push("the node runs, and starts by itself from now on: `qk status`".to_owned());
    }
    lines.push(given(told).to_owned());
    match installed.scope {
        Scope::User if installed.running => lines.push(
            "it ends with your last session; `loginctl enable-linger` lets it run without one"
                .to_owned(),
        ),
        Scope::User => {}
        Scope::System => lines.push(format!(
            "members of the group {SYSTEM_GROUP} may use it over {SYSTEM_SOCKET}; to change what it \
             trusts: `sudo -u {SYSTEM_GROUP} env QK_HOME={SYSTEM_HOME} qk join FILE|URL`, then \
             `systemctl reload qk`"
        )),
    }
    lines.join("\n")
}

/// The one default that tells others something about the owner.
fn given(told: &Told) -> &'static str {
    match (told.gives, told.shares_fetched) {
        (false, _) => "it gives others nothing",
        (true, false) => "it gives others what is built here, and nothing that is fetched",
        (true, true) => {
            "it gives others what is built and fetched here, so that they can find out what you \
             fetched; `qk node install --no-share` keeps that to yourself, as does `fetched = false` \
             below [share] in config.toml"
        }
    }
}

fn describe_removed(removed: &Removed) -> String {
    let mut lines: Vec<String> = removed
        .files
        .iter()
        .map(|file| format!("removed {}", file.display()))
        .collect();
    if let Some(home) = &removed.purged {
        lines.push(format!("removed {}", home.display()));
    }
    if lines.is_empty() {
        lines.push("no service was installed".to_owned());
    }
    if let Some(process) = removed.still_running {
        lines.push(format!(
            "a node that is not the service still runs: process {process}"
        ));
    }
    lines.join("\n")
}

/// Asks before keys are removed: they cannot be made again.
async fn agreed(home: &Home) -> Outcome<bool> {
    let question = format!(
        "This removes {} with everything in it. {}\nRemove it?",
        home.dir().display(),
        keys(home.dir())
    );
    ask(&question).await?.ok_or_else(|| {
        let failure = Failure::new(
            Kind::Usage,
            "--purge asks first, and nobody is there to answer",
        );
        failure.hint(format!("{}; --yes agrees", keys(home.dir())))
    })
}

/// Names the keys in a home, and what their loss means.
fn keys(home: &Path) -> String {
    let entries = fs::read_dir(home.join("keys")).into_iter().flatten();
    let mut keys: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    keys.sort();
    match keys.is_empty() {
        true => "There are no keys in it".to_owned(),
        false => format!(
            "The keys {} cannot be made again: whoever trusts them has to be told new ones",
            keys.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(args: &[&str]) -> Vec<String> {
        let all = ["qk", "node", "install"].iter().chain(args);
        forwarded(&Cli::command().try_get_matches_from(all).unwrap()).unwrap()
    }

    #[test]
    fn what_the_node_takes_is_given_to_the_service() {
        assert!(passed_on(&[]).is_empty());
        assert!(passed_on(&["--system", "--no-share", "--json", "-q"]).is_empty());
        let args = [
            "--listen",
            "/ip4/0.0.0.0/tcp/4433",
            "--listen",
            "/ip6/::/tcp/4433",
            "--log-format",
            "json",
        ];
        assert_eq!(passed_on(&args), args);
        let command = |args: &[String]| {
            let all = ["qk", "node"].map(str::to_owned);
            Cli::command().try_get_matches_from(all.into_iter().chain(args.to_vec()))
        };
        assert!(command(&passed_on(&args)).is_ok(), "and the node takes it");
    }
}
