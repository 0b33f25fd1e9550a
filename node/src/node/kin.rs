//! Whom a member asks first: parents, neighbours on the LAN that the manifest or the user names, and
//! mirrors.
//!
//! Anybody on a LAN can announce anything, and whoever is asked learns what is fetched. So a LAN node
//! is asked by itself only if its peer id stands at the end of a bootstrap address of the manifest,
//! belongs to an active key of a principal that the manifest gives the role of a mirror (a mirror's
//! key is its node's), or was named by the user as a parent. A peer id is proven when it is dialled.
//! In the same way a key of a principal that is its node's makes that node one to ask for what the
//! principal observed, when it is assigned and the index has nothing of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::hash::PublicKey;
use qk_protocol::manifest::{KeyState, Manifest, PrincipalRole};
use qk_protocol::message;
use tokio::sync::broadcast::error::RecvError;

use super::member::Member;
use crate::net::{Contact, LanRole, Multiaddr, PeerId};

/// Nodes that a user or a manifest names.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// By the user, as parents.
    pub(super) parents: Vec<Contact>,
    /// By the manifest, as bootstrap nodes.
    pub(super) bootstrap: Vec<Contact>,
    /// Where the manifest says that this very node is.
    pub(super) itself: Vec<Multiaddr>,
    /// Whether the network is a laboratory's: a bootstrap address, this node's own included, is of a
    /// private range, and so may be those of all others.
    pub(super) is_local: bool,
}

impl Named {
    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Contact> {
        self.parents.iter().chain(&self.bootstrap)
    }

    /// How the node with this identity was named.
    pub(super) fn find(&self, node: &message::NodeId) -> Option<&Contact> {
        let mut all = self.all().filter(|one| !one.addrs.is_empty());
        all.find(|one| one.peer.to_bytes() == node.0)
    }
}

/// The mirrors of a manifest, by the peer ids of their keys.
pub(super) fn mirrors(manifest: &Manifest) -> BTreeSet<PeerId> {
    let mirrors = manifest
        .principals
        .iter()
        .filter(|one| one.roles.contains(&PrincipalRole::Mirror));
    let active = mirrors
        .flat_map(|one| &one.keys)
        .filter(|key| key.state == KeyState::Active);
    active.filter_map(|key| peer_of(key.key)).collect()
}

/// The peer id of the node with this key.
fn peer_of(key: PublicKey) -> Option<PeerId> {
    PeerId::from_bytes(&message::NodeId::of_key(&key).0).ok()
}

/// A contact from what a user typed: an address that ends in a peer id, or `/p2p/` and a peer id
/// alone, which is looked for on the LAN.
pub(super) fn parent(address: &Multiaddr) -> Result<Contact, crate::net::ContactError> {
    let mut contact = Contact::named(address)?;
    contact.addrs.retain(|address| !address.is_empty());
    Ok(contact)
}

impl Member {
    /// Nodes to ask first and to take blocks from first: those that the user named, and caches on the
    /// LAN that the manifest names.
    pub(super) async fn parents(&self) -> Vec<message::Contact> {
        self.look_around().await;
        let mut parents: Vec<Contact> = Vec::new();
        let on_lan = self.on_lan();
        for parent in &self.named().parents {
            let mut parent = parent.clone();
            let found = on_lan.iter().filter(|(one, _)| one.peer == parent.peer);
            parent
                .addrs
                .extend(found.flat_map(|(one, _)| one.addrs.clone()));
            parents.push(parent);
        }
        for (contact, role) in on_lan {
            let known = parents.iter().any(|one| one.peer == contact.peer);
            if role == LanRole::Cache && !known {
                parents.push(contact);
            }
        }
        parents.retain(|parent| !parent.addrs.is_empty());
        parents.iter().map(Contact::to_message).collect()
    }

    /// The LAN nodes that may be asked, as they announce themselves now.
    async fn look_around(&self) {
        let Some(net) = self.net() else {
            return;
        };
        let joined = self.joined();
        let mut may: BTreeSet<PeerId> = mirrors(joined.network.manifest());
        may.extend(self.named().all().map(|one| one.peer));
        let heard = net.lan().await.unwrap_or_default();
        let may_be_asked = heard
            .into_iter()
            .filter(|node| may.contains(&node.contact.peer))
            .map(|node| (node.contact, node.role));
        self.set_on_lan(may_be_asked.collect());
    }

    /// A contact with addresses: its own, or those that this node's routing table knows, or else those
    /// that nodes nearest to it name. `None` when nobody knows where it is.
    pub(super) async fn located(
        self: &Arc<Self>,
        contact: &message::Contact,
    ) -> Option<message::Contact> {
        if self.gateway(&contact.node).is_some() {
            return Some(contact.clone());
        }
        let dialled = self.to_dial(contact);
        if !contact.addrs.is_empty() || dialled.is_some_and(|one| !one.addrs.is_empty()) {
            return Some(contact.clone());
        }
        let known = self.net()?.contacts().await.unwrap_or_default();
        let mut known = known.iter().map(Contact::to_message);
        if let Some(known) = known.find(|one| one.node == contact.node) {
            return Some(known);
        }
        // Who is there answers what is asked nearest to itself.
        let answered = self.find(contact.node.point()).await.answered;
        answered.into_iter().find(|one| one.node == contact.node)
    }

    /// Whether a parent may be on the LAN whose address only its announcement tells.
    pub(super) fn expects_lan(&self) -> bool {
        let joined = self.joined();
        let unplaced = |one: &Contact| one.addrs.is_empty();
        self.named().parents.iter().any(unplaced) || !mirrors(joined.network.manifest()).is_empty()
    }

    /// Waits a moment for a parent on the LAN, where there may be one and none is known: a command
    /// has just begun to listen.
    pub(super) async fn await_lan(&self, patience: Duration) {
        let Some(net) = self.net() else {
            return;
        };
        if !self.expects_lan() {
            return;
        }
        let mut events = net.events();
        let found = async {
            while self.parents().await.is_empty() {
                // That some were missed is no reason not to look.
                if let Err(RecvError::Closed) = events.recv().await {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(patience, found).await;
    }

    /// Whether a connected peer's packets come from the local network; on a private network
    /// everybody is a neighbour.
    pub(super) async fn is_neighbour(&self, peer: PeerId) -> bool {
        if self.joined().secret.is_some() {
            return true;
        }
        let Some(net) = self.net() else {
            return false;
        };
        let peers = net.peers().await.unwrap_or_default();
        let connections = peers
            .iter()
            .filter(|one| one.peer == peer)
            .flat_map(|one| &one.connections);
        connections.clone().count() > 0
            && connections
                .clone()
                .all(|one| super::up::is_local(&one.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_of_a_key_is_what_libp2p_calls_it() {
        let keypair = libp2p::identity::Keypair::generate_ed25519();
        let key = keypair.public().try_into_ed25519().unwrap();
        let peer = peer_of(PublicKey(key.to_bytes())).unwrap();
        assert_eq!(peer, keypair.public().to_peer_id());
    }
}
