//! What every command starts from: where things are, how to talk, who is asked.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use qk_node::access::Access;
use qk_node::build::{RustToolchain, Toolchains};
use qk_node::control::Client;
use qk_node::gateway::client::{GatewayUrl, gateways};
use qk_node::home::{Config, Home, HomeError, Joined};
use qk_node::node::NodeOptions;
use qk_node::registry::{Registry, RegistryError, RegistryOptions, Resolved};
use qk_protocol::candidate::Build;
use qk_protocol::candidate::Wanted;
use qk_protocol::dsse::public_key;
use tokio::signal::unix::{Signal, SignalKind, signal};

use qk_protocol::policy::Policy;
use qk_protocol::project::{PROJECT_BYTES_MAX, Project};

use crate::args::{CrateSpec, FlagArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::Output;

/// How long `qk fetch` does not ask a registry again for newer releases of a crate.
pub(crate) const FRESH: Duration = Duration::from_secs(600);

/// One run of `qk`.
#[derive(Debug)]
pub(crate) struct Session {
    pub home: Home,
    pub output: Output,
}

/// An error that has no kind of its own.
pub(crate) fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Other, error)
}

impl Session {
    pub(crate) fn new(output: Output) -> Outcome<Self> {
        let home = Home::from_env().map_err(failed)?;
        Ok(Self { home, output })
    }

    /// The node that runs here, or one of this process that only asks.
    pub(crate) async fn access(&self, options: NodeOptions) -> Outcome<Access> {
        let is_asked_for = !options.only.is_empty();
        let options = self.asking(options)?;
        let access = Access::open(self.home.clone(), options).await;
        let access = access.map_err(|problem| crate::commands::of_problem(&problem))?;
        if is_asked_for && access.is_daemon() {
            let message = "a node runs here, which asks the network and not the gateways";
            let failure = Failure::new(Kind::Usage, message);
            return Err(failure.hint("stop it, or leave --gateway out"));
        }
        Ok(access)
    }

    /// These options, and whom environment and configuration want asked.
    pub(crate) fn asking(&self, mut options: NodeOptions) -> Outcome<NodeOptions> {
        options.parent.extend(parents());
        if options.only.is_empty() && !options.offline {
            options.only = self.only_gateways()?;
        }
        Ok(options)
    }

    /// Gateways that the environment or the configuration wants asked in place of nodes.
    fn only_gateways(&self) -> Outcome<Vec<GatewayUrl>> {
        let config = self.config()?.gateway;
        let only = match std::env::var("QK_GATEWAY_ONLY").as_deref() {
            Ok("1" | "true") => true,
            Ok("0" | "false" | "") => false,
            Ok(other) => {
                let message = format!("QK_GATEWAY_ONLY is {other:?}: expected 1 or 0");
                return Err(Failure::new(Kind::Usage, message));
            }
            Err(_) => config.only,
        };
        if !only {
            return Ok(Vec::new());
        }
        let usage = |error: String| Failure::new(Kind::Usage, error);
        let gateways = gateways(&config).map_err(|error| usage(error.to_string()))?;
        match gateways.is_empty() {
            true => Err(
                usage("only gateways are to be asked, and none is named".to_owned())
                    .hint("QK_GATEWAY, or `from` below [gateway] in config.toml, names them"),
            ),
            false => Ok(gateways),
        }
    }

    /// What the user configured.
    pub(crate) fn config(&self) -> Outcome<Config> {
        self.home.config().map_err(|error| match error {
            HomeError::Malformed { .. } => Failure::new(Kind::Usage, error),
            error => failed(error),
        })
    }

    /// A joined network by name or by the beginning of its fingerprint; the only one without either.
    pub(crate) fn network(&self, wanted: Option<&str>) -> Outcome<Joined> {
        let mut networks = self.home.networks().map_err(failed)?;
        if networks.is_empty() {
            return Err(Self::no_network());
        }
        let names: Vec<_> = networks
            .iter()
            .map(|one| one.network.manifest().name.clone())
            .collect();
        let names = names.join(", ");
        if let Some(wanted) = wanted {
            networks.retain(|one| {
                let fingerprint = one.network.id().to_string();
                one.network.manifest().name == wanted
                    || (wanted.len() >= 8 && fingerprint.starts_with(wanted))
            });
        }
        match networks.len() {
            1 => Ok(networks.remove(0)),
            0 => Err(Failure::new(Kind::NotFound, "no such network is joined")
                .hint(format!("joined are: {names}"))),
            _ => {
                let failure = Failure::new(Kind::Usage, "several networks are joined");
                Err(failure.hint(format!("name one with --network: {names}")))
            }
        }
    }

    pub(crate) fn no_network() -> Failure {
        Failure::new(
            Kind::Unproven,
            "no network is joined, so nobody vouches for anything",
        )
        .hint("`qk join FILE|URL` joins one, `qk network new NAME` makes one")
    }

    /// The name of the principal that this machine's key belongs to in a network, if it is one's.
    pub(crate) fn own_principal(&self, joined: &Joined) -> Outcome<Option<String>> {
        let own = public_key(&self.home.key("observer").map_err(failed)?);
        let principal = joined.network.principal(own);
        Ok(principal.map(|(principal, _)| principal.name.clone()))
    }

    /// The policy of `qk.toml` in this directory, if there is one. It can only make the user's
    /// stricter: nothing in a project's directory weakens what its user asks for.
    pub(crate) fn project_policy(&self) -> Outcome<Option<Policy>> {
        Ok(self.project()?.and_then(|project| project.policy))
    }

    /// `qk.toml` in this directory, if there is one.
    pub(crate) fn project(&self) -> Outcome<Option<Project>> {
        let usage = |why: String| Failure::new(Kind::Usage, format!("qk.toml: {why}"));
        let file = match File::open("qk.toml") {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(usage(error.to_string())),
        };
        let mut bytes = Vec::new();
        let read = file
            .take(PROJECT_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes);
        read.map_err(|error| usage(error.to_string()))?;
        let project = Project::parse(&bytes).map_err(|error| usage(error.to_string()))?;
        Ok(Some(project))
    }

    /// Finds a release as cargo does.
    pub(crate) async fn resolve(&self, krate: &CrateSpec, offline: bool) -> Outcome<Resolved> {
        let krate = krate.clone();
        let options = RegistryOptions {
            offline,
            ..RegistryOptions::default()
        };
        let asked = tokio::task::spawn_blocking(move || {
            let registry = Registry::open(&options)?;
            registry.resolve(&krate.name, &krate.ask)
        });
        asked
            .await
            .map_err(failed)?
            .map_err(|error| of_registry(&error))
    }

    /// What the registry says of exactly this release, withdrawn or not: what a rebuild needs.
    pub(crate) async fn release(&self, name: &str, version: &str) -> Outcome<Resolved> {
        let version = version
            .parse()
            .map_err(|error| Failure::new(Kind::Corrupt, error))?;
        let name = name.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            Registry::open(&RegistryOptions::default())?.release(&name, &version)
        });
        asked
            .await
            .map_err(failed)?
            .map_err(|error| of_registry(&error))
    }

    /// What is wanted, derived before anybody is asked.
    pub(crate) fn wanted(resolved: &Resolved, flags: &FlagArgs, targets: Vec<String>) -> Wanted {
        let asked = flags
            .features
            .iter()
            .flat_map(|some| some.split_whitespace());
        let mut features: BTreeSet<String> = asked.map(str::to_owned).collect();
        let named_default = features.remove("default");
        if flags.all_features {
            features.extend(
                resolved
                    .features
                    .keys()
                    .filter(|name| *name != "default")
                    .cloned(),
            );
        }
        Wanted {
            release: resolved.release.clone(),
            source: resolved.checksum,
            targets: if targets.is_empty() {
                vec![host_target()]
            } else {
                targets
            },
            features,
            default_features: !flags.no_default_features || named_default || flags.all_features,
            rustflags: BTreeSet::new(),
        }
    }

    pub(crate) fn toolchains(&self) -> Toolchains {
        Toolchains::new(self.home.toolchains())
    }

    /// What this version of qk builds with on this machine, without a network's word.
    pub(crate) fn compiled_in_build(&self) -> Outcome<Build> {
        let target = host_target();
        let active = RustToolchain::active(&self.toolchains(), &target);
        let rustc = active.map_err(failed)?.rustc;
        Ok(qk_node::build::build_with(rustc, &target))
    }

    /// Tells a node that runs here that networks changed on disk. One that does not answer will see
    /// it by itself within minutes.
    pub(crate) async fn reload_node(&self) {
        let told = match Client::connect(&self.home).await {
            Ok(Some(client)) => client.reload().await.map(drop),
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = told {
            self.output.note(format!(
                "note: the running node did not take all of this: {problem}"
            ));
        }
    }
}

/// Nodes to ask first, as the environment names them: `QK_PARENT`, separated by commas.
pub(crate) fn parents() -> Vec<String> {
    let named = std::env::var("QK_PARENT").unwrap_or_default();
    let each = named.split(',').map(str::trim);
    each.filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Until a person or the service manager asks this process to stop, or the terminal goes away; from
/// now on, not from the first poll.
pub(crate) fn stopped() -> impl Future<Output = ()> {
    let mut stops = Stops::new();
    let mut hangup = signal(SignalKind::hangup());
    async move {
        tokio::select! {
            () = stops.next() => {}
            () = received(&mut hangup) => {}
        }
    }
}

/// Requests to stop: Ctrl-C and those of a service manager, from when this is made on.
#[derive(Debug)]
pub(crate) struct Stops([std::io::Result<Signal>; 2]);

impl Stops {
    pub(crate) fn new() -> Self {
        Self([SignalKind::interrupt(), SignalKind::terminate()].map(signal))
    }

    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            () = received(interrupt) => {}
            () = received(terminate) => {}
        }
    }
}

/// Until a signal comes that was caught.
pub(crate) async fn received(caught: &mut std::io::Result<Signal>) {
    match caught {
        Ok(signal) => {
            signal.recv().await;
        }
        // It keeps its usual effect.
        Err(error) => {
            tracing::warn!(%error, "a signal cannot be caught");
            std::future::pending::<()>().await;
        }
    }
}

/// The triple that this machine runs.
pub(crate) fn host_target() -> String {
    qk_node::build::rustc::TARGET.to_owned()
}

pub(crate) fn of_registry(error: &RegistryError) -> Failure {
    let kind = match error {
        RegistryError::Name(_) | RegistryError::Config(_) => Kind::Usage,
        RegistryError::UnknownCrate { .. }
        | RegistryError::NoVersion { .. }
        | RegistryError::Yanked { .. } => Kind::NotFound,
        RegistryError::Offline { .. } | RegistryError::Network { .. } | RegistryError::Token(_) => {
            Kind::Network
        }
        RegistryError::BadIndex { .. } => Kind::Corrupt,
        RegistryError::Unsupported { .. } | RegistryError::Package(_) => Kind::Other,
    };
    Failure::new(kind, error)
}
