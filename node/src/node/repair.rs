//! Pushes what this node holds to nodes that came and are to hold it, too ([`qk_protocol::repair`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use qk_protocol::hash::Point;
use qk_protocol::index::Shelf;
use qk_protocol::lookup::ASK_TIMEOUT;
use qk_protocol::message::{Answer, Contact, NodeId, POINTS_MAX, Reply, Request};
use qk_protocol::repair::{REPAIR_POINTS_MAX, owed};
use qk_protocol::statement::Statement;

use super::member::Member;
use super::shelf::StoreShelf;
use super::{Node, NodeError};
use crate::net::PeerId;

impl Node {
    /// Looks at the nodes that came to know of since, and puts there what they are to hold and lack; not in a
    /// pause.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn repair(&self) -> Result<(), NodeError> {
        if self.manners().is_paused() {
            self.unannounced.store(true, Ordering::Relaxed);
            return Ok(());
        }
        for member in self.members() {
            let Some(net) = member.net() else {
                continue;
            };
            let own = net.local_peer();
            let contacts = net.contacts().await.unwrap_or_default();
            let known: BTreeSet<PeerId> = contacts.iter().map(|one| one.peer).collect();
            // Who left and comes again may come without its store.
            member.repaired().retain(|peer| known.contains(peer));
            let place = |peer: PeerId| NodeId(peer.to_bytes()).point();
            let places: Vec<Point> = known.iter().copied().chain([own]).map(place).collect();
            for contact in contacts {
                if member.repaired().contains(&contact.peer) {
                    continue;
                }
                if self
                    .repair_at(&member, &contact.to_message(), place(own), &places)
                    .await?
                {
                    member.repaired().insert(contact.peer);
                }
            }
        }
        Ok(())
    }

    /// Puts to one node what it lacks; whether it has all of it now.
    async fn repair_at(
        &self,
        member: &Arc<Member>,
        contact: &Contact,
        own: Point,
        places: &[Point],
    ) -> Result<bool, NodeError> {
        let (place, network) = (contact.node.point(), member.id());
        let list = Request::Near {
            point: place,
            limit: POINTS_MAX as u32,
        };
        let Ok(Reply {
            answer: Answer::Points(has),
            ..
        }) = member.ask(contact, &list, ASK_TIMEOUT).await
        else {
            return Ok(false);
        };
        let held = self
            .blocking(move |store| Ok(StoreShelf { store, network }.near(place, POINTS_MAX)))
            .await?;
        let owed = owed(own, place, &held, &has, places);
        let all = owed.len() < REPAIR_POINTS_MAX;
        let mut taken = 0;
        for point in &owed {
            let at = *point;
            let statements = self
                .blocking(move |store| Ok(StoreShelf { store, network }.at(at)))
                .await?;
            let joined = member.joined();
            let registries = &joined.network.manifest().registries;
            // The manifest may have listed the registry once, and no longer.
            let listed = |one: &Arc<Statement>| registries.contains(&one.key().registry);
            let statements: Vec<_> = statements.into_iter().filter(listed).collect();
            taken += member
                .put(at, &statements, std::slice::from_ref(contact))
                .await;
        }
        if !owed.is_empty() {
            tracing::info!(node = %place.short(), points = owed.len(), taken, "put what a node lacked");
        }
        Ok(all && taken == owed.len())
    }
}
