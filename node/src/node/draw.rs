//! Which entry of the index a verifier audits next: carries out [`audit`].

use std::collections::BTreeMap;
use std::sync::Arc;

use qk_protocol::assign::audit;
use qk_protocol::hash::{NetworkId, Point};
use qk_protocol::key::ArtifactKey;
use qk_protocol::statement::Statement;
use tokio::task::JoinSet;

use super::member::{Member, unix_now};
use super::{Node, NodeError};

/// Random points whose entries are chosen from.
const POINTS: usize = 8;
/// How often other points are drawn where nothing is left to do.
const DRAWS_MAX: usize = 4;
/// Points that are looked at for one random point: a node may name one where nothing is.
const NEAREST_MAX: usize = 4;

impl Node {
    /// Draws an entry that this node's owner has stated nothing about: some are taken near random points,
    /// as several nodes say, so that none of them chooses what is audited, and one of these is chosen as
    /// [`audit::choose`] says.
    ///
    /// # Errors
    /// When the network is not joined.
    pub async fn draw(&self, network: NetworkId) -> Result<Option<ArtifactKey>, NodeError> {
        let member = self.member(network)?;
        self.up(&member).await?;
        // Drawn once: who draws again until there is something only strangers state would give those
        // more than their share.
        let random = [rand::random(), rand::random()];
        let mut seen = BTreeMap::new();
        let mut entries = Vec::new();
        for _ in 0..DRAWS_MAX {
            let before = seen.len();
            for nearest in near_random_points(&member).await {
                look(&member, nearest, &mut seen).await;
            }
            let joined = member.joined();
            let statements: Vec<Arc<Statement>> = seen.values().flatten().cloned().collect();
            entries = audit::entries(&joined.network, &statements, unix_now());
            entries.retain(|entry| {
                let mut about = statements.iter().filter(|one| *one.key() == entry.key);
                about.all(|one| one.observer() != self.own())
            });
            if entries.len() >= POINTS || seen.len() == before {
                break;
            }
        }
        Ok(audit::choose(&entries, random).map(|entry| entry.key.clone()))
    }
}

/// For each of some random points the nearest ones where something is stated, as several nodes say.
async fn near_random_points(member: &Arc<Member>) -> Vec<Vec<Point>> {
    let mut asking = JoinSet::new();
    for _ in 0..POINTS {
        let member = member.clone();
        asking.spawn(async move { member.nearest_entries(Point(rand::random())).await });
    }
    asking.join_all().await
}

/// Takes what is stated at the first of these points where anything is.
async fn look(
    member: &Arc<Member>,
    nearest: Vec<Point>,
    seen: &mut BTreeMap<Point, Vec<Arc<Statement>>>,
) {
    for point in nearest.into_iter().take(NEAREST_MAX) {
        let known = seen.get(&point).map(Vec::is_empty);
        let is_empty = match known {
            Some(is_empty) => is_empty,
            None => {
                let here = member.find(point).await.statements;
                seen.entry(point).or_insert(here).is_empty()
            }
        };
        if !is_empty {
            return;
        }
    }
}
