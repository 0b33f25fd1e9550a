//! Fetches one root for neighbours, if this node's own policy trusts it.

use std::sync::Arc;

use qk_protocol::blocks::Blob;
use qk_protocol::candidate::{Candidate, Wanted};
use qk_protocol::hash::{NetworkId, Root};
use qk_protocol::manifest::Manifest;
use qk_protocol::statement::Statement;
use tokio::sync::watch;

use super::{Cache, ObtainError, Underway};
use crate::blocks::serve::Obtained;
use crate::manners::Whose;
use crate::node::fetch::Asked;
use crate::node::{FetchError, FetchSpec, Node};

/// Keys that one root is tried as; honest archives have one, as it stands in them.
const KEYS_MAX: usize = 8;

/// A root to fetch for neighbours, and where its progress is told.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) network: NetworkId,
    pub(super) blob: Blob,
    pub(super) state: Arc<watch::Sender<Underway>>,
}

impl Node {
    pub(super) async fn fulfil(&self, cache: &Cache, order: Order) {
        let (network, root) = (order.network, order.blob.root());
        let ended = match self.obtain(cache, &order).await {
            Ok(name) => {
                tracing::info!(%root, name, "fetched for neighbours");
                Obtained::Here
            }
            Err(error) => {
                tracing::info!(%root, %error, "not fetched for neighbours");
                Obtained::Lacks
            }
        };
        // First: who asks from now on finds it in the store, or begins anew.
        cache.ended(network, root);
        order.state.send_modify(|state| state.ended = Some(ended));
    }

    async fn obtain(&self, cache: &Cache, order: &Order) -> Result<String, ObtainError> {
        let member = self.member(order.network)?;
        let root = order.blob.root();
        let joined = member.joined();
        let manifest = joined.network.manifest();
        let candidates = self.candidates_of(order.network, order.blob).await?;
        let is_principal = |one: &Statement| joined.network.principal(one.observer()).is_some();
        let mut keys: Vec<Candidate> = Vec::new();
        for statement in candidates.iter().filter(|one| is_principal(one)) {
            let candidate = Candidate::of(statement.key());
            if !keys.contains(&candidate) && keys.len() < KEYS_MAX {
                keys.push(candidate);
            }
        }
        let mut last = ObtainError::Unknown;
        member.watch(root, order.state.clone());
        for candidate in keys {
            match self
                .obtain_as(cache, &member, manifest, candidate, root)
                .await
            {
                Err(error) => last = error,
                done => {
                    member.unwatch(root);
                    return done;
                }
            }
        }
        member.unwatch(root);
        Err(last)
    }

    async fn obtain_as(
        &self,
        cache: &Cache,
        member: &Arc<crate::node::Member>,
        manifest: &Manifest,
        candidate: Candidate,
        root: Root,
    ) -> Result<String, ObtainError> {
        let release = candidate.release.clone();
        if !cache.config.allows(&release.name) {
            return Err(ObtainError::NotAllowed(release.name));
        }
        let served = manifest.registries.contains(&release.registry);
        if !served || !manifest.builds.contains(&candidate.build) {
            return Err(ObtainError::OtherBuild);
        }
        let spec = FetchSpec {
            wanted: Wanted {
                release: candidate.release.clone(),
                source: candidate.source,
                targets: vec![candidate.build.target.clone()],
                features: candidate.features.clone(),
                default_features: candidate.default_features,
                rustflags: candidate.rustflags.clone(),
            },
            refresh: false,
            offline: false,
            network: None,
            policy: None,
        };
        let watched = self.traffic.watch(&release);
        let asked = Asked {
            spec: &spec,
            whose: Whose::Others,
            on_event: &|event| watched.see(&event),
        };
        let fetched = self.fetch_from(member, vec![candidate], asked).await;
        self.counters().fetch_ended(&fetched);
        let fetched = match fetched {
            Err(FetchError::Spent { .. }) => return Err(ObtainError::Rests),
            fetched => fetched?,
        };
        match fetched.trusted.subject.root == root {
            true => Ok(release.to_string()),
            false => Err(ObtainError::OtherRoot),
        }
    }

    /// Statements of a network that name this very blob.
    async fn candidates_of(
        &self,
        network: NetworkId,
        blob: Blob,
    ) -> Result<Vec<Statement>, ObtainError> {
        let found = self.blocking(move |store| {
            let records = store.by_root(&blob.root())?.into_iter();
            let of_network = records.filter(|record| record.network == network);
            let statements = of_network.filter_map(|record| Statement::read(&record.bytes).ok());
            let of_blob = |one: &Statement| {
                one.observation().is_some_and(|observation| {
                    let subject = &observation.subject;
                    (subject.root, subject.size) == (blob.root(), blob.size())
                })
            };
            Ok(statements.filter(of_blob).collect())
        });
        Ok(found.await?)
    }
}
