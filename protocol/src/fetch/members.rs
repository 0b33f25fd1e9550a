//! Members of the committee that are asked directly, because the index has nothing of theirs.
//!
//! A principal's nodes are those whose identity is one of its active keys: an operator that wants to be
//! asked has the key of its node in the manifest, as a mirror has, and who dials it proves that it is the
//! one. No address has to be kept up to date; where a node is, routing tables know.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decide::Roll;
use crate::manifest::{KeyState, Network, Principal, PrincipalRole};
use crate::message::NodeId;
use crate::time::Now;

/// How long a member may take to be found and to answer, where nothing is trusted yet.
pub const MEMBER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long members are waited for where the policy is met without them: time for a dissent that the
/// index does not show, from nodes whose addresses are known.
pub const MEMBER_GRACE: Duration = Duration::from_millis(300);
/// How long the first of the mirrors that were asked is waited for then: time to connect with one that is far
/// away. Nobody else may know of the dissent.
pub const MIRROR_GRACE: Duration = Duration::from_secs(1);
/// Nodes of members that one fetch asks.
pub const MEMBERS_ASKED_MAX: usize = 16;
/// Keys of one principal that are taken for nodes.
const MEMBER_KEYS_MAX: usize = 4;

/// Who was asked, and until when it is waited for; `None` once that is over.
#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<NodeId, Option<Duration>>);

impl Members {
    /// Whether there is room for this one; it is waited for until then.
    pub(super) fn ask(&mut self, node: NodeId, until: Duration) -> bool {
        let is_new = !self.0.contains_key(&node) && self.0.len() < MEMBERS_ASKED_MAX;
        if is_new {
            self.0.insert(node, Some(until));
        }
        is_new
    }

    pub(super) fn were_asked(&self, node: &NodeId) -> bool {
        self.0.contains_key(node)
    }

    /// Whether an answer of this one is still wanted; from now on it is not.
    pub(super) fn end(&mut self, node: &NodeId) -> bool {
        self.0
            .get_mut(node)
            .is_some_and(|until| until.take().is_some())
    }

    pub(super) fn awaited(&self, now: Now) -> bool {
        self.pending().any(|until| until > now.mono)
    }

    /// When the next one is no longer waited for.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.pending().min()
    }

    /// Gives up those whose time is over.
    pub(super) fn end_late(&mut self, now: Now) {
        for until in self.0.values_mut() {
            *until = until.filter(|until| *until > now.mono);
        }
    }

    fn pending(&self) -> impl Iterator<Item = Duration> {
        self.0.values().flatten().copied()
    }
}

/// The nodes of the principals on a roll that are called and silent.
pub(super) fn silent_nodes(network: &Network, roll: &Roll) -> Vec<NodeId> {
    let silent = roll.silent();
    nodes_of(silent.filter_map(|seat| network.principal_by_id(seat.principal)))
}

/// The nodes of the network's mirrors.
pub(super) fn mirror_nodes(network: &Network) -> Vec<NodeId> {
    let principals = network.manifest().principals.iter();
    nodes_of(principals.filter(|one| one.roles.contains(&PrincipalRole::Mirror)))
}

fn nodes_of<'a>(principals: impl Iterator<Item = &'a Principal>) -> Vec<NodeId> {
    let keys = principals.flat_map(|principal| {
        let keys = principal.keys.iter();
        let active = keys.filter(|key| key.state == KeyState::Active);
        active.take(MEMBER_KEYS_MAX)
    });
    keys.map(|key| NodeId::of_key(&key.key)).collect()
}
