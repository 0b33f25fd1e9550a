//! How a verifier learns of what was published: which points there are, and what is stated there.

use std::collections::BTreeSet;
use std::sync::Arc;

use qk_protocol::decide::Held;
use qk_protocol::hash::{NetworkId, Point, StatementId};
use qk_protocol::index::{Rules, Shelf};
use qk_protocol::lookup::{ASK_TIMEOUT, WIDTH};
use qk_protocol::message::{Answer, Contact, POINTS_MAX, Reply, Request};
use qk_protocol::watch::patrol::{LOOKS_MAX, Survey};
use tokio::task::JoinSet;

use super::member::{Member, unix_now};
use super::shelf::StoreShelf;
use super::{Node, NodeError};

/// Nodes that are asked because somebody named them, parents and mirrors first.
const NAMED_ASKED_MAX: usize = 3;
/// Nodes that are asked because they are nearest.
const NEAREST_ASKED_MAX: usize = 5;
/// Points that are looked at at once.
const LOOKS_AT_ONCE: usize = 4;
/// Statements that are returned of all points together.
const HELD_MAX: usize = 16_384;

impl Node {
    /// Lists the points around `point` where something is stated, as several nodes and, of a running
    /// node, its own store give them.
    ///
    /// # Errors
    /// When the network is not joined, or the store cannot be read.
    pub async fn survey(&self, network: NetworkId, point: Point) -> Result<Survey, NodeError> {
        let member = self.member(network)?;
        let own = match self.runs() {
            true => {
                let own =
                    move |store: &_| Ok(StoreShelf { store, network }.near(point, POINTS_MAX));
                Some(self.blocking(own).await?)
            }
            false => None,
        };
        self.survey_with(&member, point, own).await
    }

    /// The same with what is listed `here`, if anything is.
    pub(super) async fn survey_with(
        &self,
        member: &Arc<Member>,
        point: Point,
        here: Option<Vec<Point>>,
    ) -> Result<Survey, NodeError> {
        self.up(member).await?;
        let nearest = member.find(point).await.answered;
        let places: Vec<Point> = nearest
            .iter()
            .map(|one| one.node.point())
            .take(WIDTH)
            .collect();
        let mut asked = BTreeSet::new();
        let named = member.seeds(point).await.into_iter().take(NAMED_ASKED_MAX);
        let whom: Vec<Contact> = named
            .chain(nearest.into_iter().take(NEAREST_ASKED_MAX))
            .filter(|contact| asked.insert(contact.node.clone()))
            .collect();
        let mut answers = list(member, point, whom).await;
        answers.extend(here);
        Ok(Survey::of(point, &places, &answers))
    }

    /// Everything that is stated at some points, here and in the network; of what is new, principals'
    /// statements are kept. At most [`LOOKS_MAX`] points are looked at.
    ///
    /// # Errors
    /// When the network is not joined, or the store cannot be read or written.
    pub async fn look(
        &self,
        network: NetworkId,
        points: Vec<Point>,
    ) -> Result<Vec<Held>, NodeError> {
        let member = self.member(network)?;
        self.up(&member).await?;
        let mut looking = JoinSet::new();
        let mut all = Vec::new();
        for point in points.into_iter().take(LOOKS_MAX) {
            if looking.len() >= LOOKS_AT_ONCE
                && let Some(Ok(found)) = looking.join_next().await
            {
                all.push(found);
            }
            let member = member.clone();
            looking.spawn(async move { (point, member.find(point).await.statements) });
        }
        all.extend(looking.join_all().await);
        let joined = member.joined();
        let rules = Rules {
            network: &joined.network,
            key: member.key(),
        };
        let mut held = Vec::new();
        for (point, mut statements) in all {
            // A holder may answer with statements of other points, or of other networks.
            statements.retain(|one| one.network() == network && rules.point(one) == point);
            self.keep(&member, statements.clone()).await?;
            let here = move |store: &_| Ok(StoreShelf { store, network }.held(point));
            let here = self.blocking(here).await?;
            let known: BTreeSet<StatementId> = here.iter().map(|one| one.statement.id()).collect();
            statements.retain(|one| !known.contains(&one.id()));
            held.extend(here);
            held.extend(statements.into_iter().map(|statement| Held {
                statement,
                stored: unix_now(),
            }));
        }
        held.truncate(HELD_MAX);
        Ok(held)
    }
}

/// What each of these nodes lists around a point, as far as it answers.
async fn list(member: &Arc<Member>, point: Point, whom: Vec<Contact>) -> Vec<Vec<Point>> {
    let mut asking = JoinSet::new();
    for contact in whom {
        let member = member.clone();
        let request = Request::Near {
            point,
            limit: POINTS_MAX as u32,
        };
        asking.spawn(async move { member.ask(&contact, &request, ASK_TIMEOUT).await });
    }
    let answers = asking.join_all().await.into_iter();
    let points = answers.filter_map(|answered| match answered {
        Ok(Reply {
            answer: Answer::Points(points),
            ..
        }) => Some(points),
        Ok(_) | Err(_) => None,
    });
    points.collect()
}
