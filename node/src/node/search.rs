//! Searching: what is stated about crates, here and, within bounds, in the networks.
//!
//! Nobody is asked what is looked for. One node lists its index, as it does for mirrors, and the search
//! goes on here; so no node needs another role, and none learns the question. Only where that index is
//! too large to be listed within the bounds, and somebody looks for a crate by its whole name, that
//! one's newest release is looked up, which shows as much as fetching it would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::decide::Held;
use qk_protocol::hash::{NetworkId, Point, PublicKey, Root};
use qk_protocol::index::Rules;
use qk_protocol::key::Release;
use qk_protocol::mirror::Walk;
use qk_protocol::policy::Policy;
use qk_protocol::search::{Hit, Known, Query, crate_of, search};
use qk_protocol::statement::Statement;
use serde::{Deserialize, Serialize};

use super::member::{Member, unix_now};
use super::report::executables_of;
use super::shelf::StoreShelf;
use super::{Node, NodeError};
use crate::store::{Store, StoreError};

/// Places of a store's index that one search goes through.
const PLACES_MAX: usize = 65_536;
/// Requests that one search makes in one network.
const ASKS_MAX: usize = 64;
/// How long all of them may take.
const ASK_TIME_MAX: Duration = Duration::from_secs(4);
/// How long one may.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes that are tried until one answers.
const SOURCES_MAX: usize = 3;

/// What is looked for, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSpec {
    /// What is looked for.
    pub query: Query,
    /// Hits that are wanted at most.
    pub limit: usize,
    /// Look only at what is here.
    pub offline: bool,
    /// A release that is looked up where the index is too large to be listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// A policy of the project that asks; it can only make the owner's stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SearchReport {
    /// The hits, best first.
    pub hits: Vec<NetworkHit>,
    /// Further hits that `limit` left out.
    pub left_out: usize,
    /// What was gone through, a network each.
    pub networks: Vec<Searched>,
}

/// A hit and where it is known from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkHit {
    /// The network's name.
    pub network: String,
    /// What was found there.
    #[serde(flatten)]
    pub hit: Hit,
    /// Whether the artifact is in the store.
    pub here: bool,
}

/// What was gone through in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Searched {
    /// Its name.
    pub network: String,
    /// Whether a node of it answered.
    pub answered: bool,
    /// Whether that node's whole index was listed.
    pub whole: bool,
}

/// What the store knows.
struct Here {
    executables: BTreeMap<Root, BTreeSet<String>>,
    held: Vec<Held>,
    /// Places where something is stated.
    places: BTreeSet<Point>,
    /// Whether there are more of them.
    is_cut: bool,
}

/// What a network knows.
#[derive(Default)]
struct There {
    statements: Vec<Arc<Statement>>,
    answered: bool,
    whole: bool,
}

impl Node {
    /// Searches what is stated here and in the joined networks.
    ///
    /// # Errors
    /// When the store cannot be read. A network that does not answer is no error: the report says so.
    pub async fn search(&self, spec: &SearchSpec) -> Result<SearchReport, NodeError> {
        self.search_as(spec, Some(self.own())).await
    }

    /// The same for others, whom the owner's own builds do not suffice.
    pub(crate) async fn search_for_others(
        &self,
        spec: &SearchSpec,
    ) -> Result<SearchReport, NodeError> {
        self.search_as(spec, None).await
    }

    async fn search_as(
        &self,
        spec: &SearchSpec,
        own: Option<PublicKey>,
    ) -> Result<SearchReport, NodeError> {
        let mut report = SearchReport::default();
        for member in self.members() {
            let name = member.joined().network.manifest().name.clone();
            let here = self.known_here(member.id(), &spec.query).await?;
            let there = match spec.offline {
                true => There::default(),
                false => self.known_there(&member, spec, &here.places).await,
            };
            report.networks.push(Searched {
                network: name.clone(),
                answered: there.answered,
                whole: there.whole || (spec.offline && !here.is_cut),
            });
            let hits = self.hits(&member, spec, own, &here, there.statements);
            report.hits.extend(hits.into_iter().map(|hit| NetworkHit {
                network: name.clone(),
                here: (hit.root).is_some_and(|root| here.executables.contains_key(&root)),
                hit,
            }));
        }
        report.left_out = report.hits.len().saturating_sub(spec.limit);
        report.hits.truncate(spec.limit);
        Ok(report)
    }

    fn hits(
        &self,
        member: &Member,
        spec: &SearchSpec,
        own: Option<PublicKey>,
        here: &Here,
        there: Vec<Arc<Statement>>,
    ) -> Vec<Hit> {
        let (joined, now) = (member.joined(), unix_now());
        let policy = self.policy(member);
        let policy = match &spec.policy {
            Some(project) => policy.stricter(project),
            None => policy,
        };
        let mut statements = here.held.clone();
        statements.extend(there.into_iter().map(|statement| Held {
            statement,
            stored: now,
        }));
        search(
            &spec.query,
            &Known {
                network: &joined.network,
                policy: &policy,
                own,
                statements: &statements,
                executables: &here.executables,
                now,
            },
        )
    }

    async fn known_here(&self, network: NetworkId, query: &Query) -> Result<Here, NodeError> {
        let query = query.clone();
        match self.door().is_begun() {
            true => {
                let read = move |store: &_| known_here(store, network, &query);
                self.blocking(read).await
            }
            false => Ok(Here {
                executables: BTreeMap::new(),
                held: Vec::new(),
                places: BTreeSet::new(),
                is_cut: false,
            }),
        }
    }

    /// What the first node that answers has beside what is here.
    async fn known_there(
        &self,
        member: &Arc<Member>,
        spec: &SearchSpec,
        here: &BTreeSet<Point>,
    ) -> There {
        let mut there = There::default();
        if let Err(error) = self.up(member).await {
            tracing::debug!(%error, "a network was not searched");
            return there;
        }
        for source in member
            .seeds(Point(rand::random()))
            .await
            .iter()
            .take(SOURCES_MAX)
        {
            let mut walk = Walk::new(0);
            let listing = async {
                for _ in 0..ASKS_MAX {
                    let Some(request) = walk.step() else {
                        there.whole = true;
                        return;
                    };
                    let Ok(reply) = member.ask(source, &request, ASK_TIMEOUT).await else {
                        return;
                    };
                    there.answered = true;
                    let is_known = |point: &Point| here.contains(point);
                    there
                        .statements
                        .extend(walk.answered(reply.answer, is_known));
                }
                there.whole = walk.step().is_none();
            };
            // What was listed until then counts.
            let _ = tokio::time::timeout(ASK_TIME_MAX, listing).await;
            if there.answered {
                break;
            }
        }
        if let (false, Some(release)) = (there.whole, &spec.release)
            && let Ok(found) = self.look_up(member, release).await
        {
            there.answered |= !found.answered.is_empty();
            there.statements.extend(found.statements);
        }
        let joined = member.joined();
        let rules = Rules {
            network: &joined.network,
            key: member.key(),
        };
        there
            .statements
            .retain(|one| rules.admit(&[], one, unix_now()).is_ok());
        there
    }
}

fn known_here(store: &Store, network: NetworkId, query: &Query) -> Result<Here, StoreError> {
    let mut executables = BTreeMap::new();
    for blob in store.ls()? {
        if let Some((_, names)) = executables_of(&store.blob_path(&blob.root)) {
            executables.insert(blob.root, names);
        }
    }
    let places = store.points_of(|entry| entry.network == network, PLACES_MAX)?;
    let runs: Vec<Root> = executables
        .iter()
        .filter(|(_, names)| query.runs(names))
        .map(|(root, _)| *root)
        .collect();
    let mut wanted = store.points_of(
        |entry| entry.network == network && entry.root.is_some_and(|root| runs.contains(&root)),
        PLACES_MAX,
    )?;
    for point in &places {
        // All statements at a point are about one release.
        let first = store.statements_at(&network, point)?.into_iter().next();
        let name = first.and_then(|first| crate_of(&first.bytes));
        if name.is_some_and(|name| query.names(&name)) {
            wanted.insert(*point);
        }
    }
    let shelf = StoreShelf { store, network };
    let held = wanted.into_iter().flat_map(|point| shelf.held(point));
    Ok(Here {
        held: held.collect(),
        is_cut: places.len() >= PLACES_MAX,
        executables,
        places,
    })
}
