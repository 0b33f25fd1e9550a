//! One tool of a project: what its lock pins, or what is to be pinned.

use qk_node::access::{Access, FetchReport, FindSpec};
use qk_node::deadline::Clock;
use qk_node::node::{FetchSpec, LockedSpec, policy_of, unix_now};
use qk_node::registry::{Ask, Registry, RegistryOptions, Resolved};
use qk_protocol::bundle::Bundle;
use qk_protocol::candidate::Wanted;
use qk_protocol::decide::{Decision, Question, choose, decide};
use qk_protocol::hash::NetworkId;
use qk_protocol::policy::Policy;
use qk_protocol::project::Tool;
use qk_protocol::project::lock::{Lock, Locked};
use qk_protocol::statement::Subject;

use crate::commands::fetch::{fetch, show};
use crate::commands::{describe, of_problem};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed, host_target, of_registry};

/// What holds for all tools.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub session: &'a Session,
    pub access: &'a Access,
    pub policy: Option<Policy>,
    /// The only network that counts, if the project names one.
    pub network: Option<NetworkId>,
    pub offline: bool,
    /// How long it may take.
    pub clock: Clock,
}

/// An artifact that was pinned anew.
#[derive(Debug)]
pub(super) struct Pinned {
    pub report: FetchReport,
    pub bundle: Bundle,
}

impl Call<'_> {
    /// What the lock pins, by its own proof.
    pub(super) async fn locked(&self, lock: &Lock, locked: &Locked) -> Outcome<FetchReport> {
        let corrupt = |error: &dyn std::fmt::Display| {
            Failure::new(Kind::Corrupt, format!("qk.lock: {error}"))
        };
        let bundle = lock.bundle(locked).map_err(|error| corrupt(&error))?;
        let id = bundle.network().id();
        if let Some(named) = self.network.filter(|named| *named != id) {
            let text = format!(
                "{}: its proof is of network {id}, and qk.toml names {named}",
                locked.name
            );
            return Err(corrupt(&text));
        }
        let bytes = bundle.to_bytes().map_err(failed)?;
        let spec = LockedSpec {
            bundle: String::from_utf8(bytes).map_err(failed)?,
            subject: Subject {
                root: locked.root,
                sha256: locked.sha256,
                size: locked.size,
            },
            offline: self.offline,
            policy: self.policy.clone(),
        };
        let name = format!("{}@{}", locked.name, locked.version);
        let report = show(self.session.output, &name, self.clock, async |on_event| {
            self.access.fetch_locked(&spec, on_event).await
        });
        report.await.map_err(|failure| match failure.kind {
            Kind::Unproven | Kind::Stale => {
                failure.hint("`qk update` looks for a proof that holds now")
            }
            _ => failure,
        })
    }

    /// The newest release that is asked for, as the registry has it.
    pub(super) async fn resolve(&self, name: &str, tool: &Tool) -> Outcome<(Resolved, Wanted)> {
        let (krate, ask) = (name.to_owned(), Ask::Matching(tool.version.clone()));
        let options = RegistryOptions {
            offline: self.offline,
            ..RegistryOptions::default()
        };
        let resolving =
            tokio::task::spawn_blocking(move || Registry::open(&options)?.resolve(&krate, &ask));
        let resolved = resolving.await.map_err(failed)?;
        let resolved = resolved.map_err(|error| of_registry(&error))?;
        let wanted = Wanted {
            release: resolved.release.clone(),
            source: resolved.checksum,
            targets: tool.targets(&host_target()),
            features: tool.features.clone(),
            default_features: tool.default_features,
            rustflags: [].into(),
        };
        Ok((resolved, wanted))
    }

    /// What is to be pinned: proven in a network, in a way that others can check.
    pub(super) async fn pin(&self, name: &str, tool: &Tool, refresh: bool) -> Outcome<Pinned> {
        let (_, wanted) = self.resolve(name, tool).await?;
        let release = wanted.release.clone();
        let spec = FetchSpec {
            wanted,
            refresh,
            offline: self.offline,
            network: self.network,
            policy: self.policy.clone(),
        };
        let report = fetch(self.session, self.access, &spec, self.clock).await?;
        let joined = self.session.home.networks().map_err(failed)?;
        let joined = joined
            .into_iter()
            .find(|one| one.network.id() == report.network);
        let joined = joined.ok_or_else(|| {
            let text = format!(
                "{release}: network {} is not joined here",
                report.network_name
            );
            Failure::new(Kind::Unproven, text).hint("a lock is made by who joined it: `qk join`")
        })?;
        let find = FindSpec {
            network: report.network,
            release: release.clone(),
            offline: true,
        };
        let found = self.access.find(&find).await;
        let held = found.map_err(|problem| of_problem(&problem))?.held;
        let bundle = Bundle::new(&joined.network, &report.trusted.key, &held);
        let bundle =
            bundle.map_err(|error| Failure::new(Kind::Other, format!("{release}: {error}")))?;
        let checked = bundle.decide(None, self.policy.as_ref(), unix_now());
        let checked = checked.map_err(failed)?;
        let proven = match checked.decision() {
            Decision::Trusted(trusted) => trusted.subject == report.trusted.subject,
            _ => false,
        };
        if !proven {
            let why = describe(checked.decisive());
            let text = format!("{release} is trusted here, and would not be elsewhere: {why}");
            let failure = Failure::new(Kind::Unproven, text);
            return Err(failure
                .hint("one's own build and observations by retired keys prove nothing to others"));
        }
        Ok(Pinned { report, bundle })
    }

    /// What the network makes of the newest release, without fetching it.
    pub(super) async fn preview(&self, name: &str, tool: &Tool) -> Outcome<(String, String)> {
        let (resolved, wanted) = self.resolve(name, tool).await?;
        let config = self.session.config()?;
        let networks = self.session.home.networks().map_err(failed)?;
        let mut said = "unproven: no network that counts serves its registry".to_owned();
        for joined in networks {
            let network = &joined.network;
            let manifest = network.manifest();
            let counts = self.network.is_none_or(|only| only == network.id());
            if !counts || !manifest.registries.contains(&resolved.release.registry) {
                continue;
            }
            let find = FindSpec {
                network: network.id(),
                release: resolved.release.clone(),
                offline: self.offline,
            };
            let found = self.access.find(&find).await;
            let held = found.map_err(|problem| of_problem(&problem))?.held;
            let mut policy = policy_of(&config, manifest);
            if let Some(project) = &self.policy {
                policy = policy.stricter(project);
            }
            let candidates = wanted.candidates(&manifest.builds);
            let verdicts = candidates.iter().map(|candidate| {
                decide(&Question {
                    policy: &policy,
                    network,
                    candidate,
                    own: None,
                    statements: &held,
                    now: unix_now(),
                })
            });
            let Some((_, verdict)) = choose(verdicts) else {
                continue;
            };
            said = describe(&verdict);
            if matches!(verdict.decision, Decision::Trusted(_)) {
                break;
            }
        }
        Ok((resolved.release.version, said))
    }
}
