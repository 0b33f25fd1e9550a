//! Keeps the whole index of each network here, so that a cache answers when its uplink is down.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::hash::Point;
use qk_protocol::message::{Answer, Contact};
use qk_protocol::mirror::Walk;

use super::Cache;
use crate::node::member::Member;
use crate::node::{Node, NodeError};

/// How often other nodes are asked for what is new in their index.
const WALK_EVERY: Duration = Duration::from_secs(600);
/// How soon it is tried again where nobody was to be reached.
const RETRY_AFTER: Duration = Duration::from_secs(20);
/// Nodes whose index one pass goes through: one alone may leave things out.
const SOURCES_MAX: usize = 3;
/// Between two requests of a walk: no node is kept busy by it.
const PACE: Duration = Duration::from_millis(25);
/// How long one request of a walk may take.
const WALK_ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one walk that may fail in a row.
const FAILURES_MAX: u32 = 3;

impl Node {
    /// Goes through the index of other nodes again and again.
    pub(super) async fn mirror(&self, cache: &Cache) {
        if !cache.config.mirror {
            return std::future::pending().await;
        }
        let mut pauses = self.manners().changes();
        let mut turn = 0;
        loop {
            if pauses.wait_for(Vec::is_empty).await.is_err() {
                return;
            }
            let mut all_reached = true;
            for member in self.members() {
                match self.mirror_once(&member, turn).await {
                    Ok(reached) => all_reached &= reached > 0,
                    Err(error) => tracing::warn!(%error, "the index could not be mirrored"),
                }
            }
            turn += 1;
            tokio::time::sleep(if all_reached { WALK_EVERY } else { RETRY_AFTER }).await;
        }
    }

    /// One pass through the indexes of some nodes of one network; how many could be gone through.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    async fn mirror_once(&self, member: &Arc<Member>, turn: u64) -> Result<usize, NodeError> {
        // The named ones first: mirrors and bootstrap nodes know most.
        let sources = member.seeds(Point(rand::random())).await;
        let mut reached = 0;
        let mut learned = 0;
        for source in sources.into_iter().take(SOURCES_MAX) {
            if let Some(new) = self.walk(member, &source, turn).await? {
                reached += 1;
                learned += new;
            }
        }
        let network = member.joined().network.manifest().name.clone();
        tracing::info!(network, reached, learned, "mirrored the index");
        Ok(reached)
    }

    /// Goes through one node's index; how many statements came, or `None` when it did not answer.
    async fn walk(
        &self,
        member: &Arc<Member>,
        source: &Contact,
        turn: u64,
    ) -> Result<Option<usize>, NodeError> {
        let mut walk = Walk::new(turn);
        let (mut learned, mut failures) = (0, 0);
        while let Some(request) = walk.step() {
            let Ok(reply) = member.ask(source, &request, WALK_ASK_TIMEOUT).await else {
                failures += 1;
                if failures >= FAILURES_MAX {
                    return Ok(None);
                }
                continue;
            };
            failures = 0;
            let known = match &reply.answer {
                Answer::Points(points) => self.known_of(member, points.clone()).await?,
                _ => BTreeSet::new(),
            };
            let statements = walk.answered(reply.answer, |point| known.contains(point));
            learned += statements.len();
            if !statements.is_empty() {
                self.keep(member, statements).await?;
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(Some(learned).filter(|_| failures == 0))
    }

    /// Which of these points have statements here.
    async fn known_of(
        &self,
        member: &Arc<Member>,
        points: Vec<Point>,
    ) -> Result<BTreeSet<Point>, NodeError> {
        let network = member.id();
        let known = self.blocking(move |store| {
            let mut known = BTreeSet::new();
            for point in points {
                if store.near(&network, &point, 1)?.first() == Some(&point) {
                    known.insert(point);
                }
            }
            Ok(known)
        });
        known.await
    }
}
