//! Logs of builds that others observed, asked of those who observed them, or of gateways.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use qk_protocol::fetch::MEMBER_TIMEOUT;
use qk_protocol::hash::{Blake3, Point, PublicKey};
use qk_protocol::log::{LogFault, LogReading};
use qk_protocol::manifest::{KeyState, Network};
use qk_protocol::message::{Contact, NodeId};
use qk_protocol::statement::Statement;

use super::member::Member;
use super::{Node, NodeError};
use crate::net::PeerId;

/// How long a node may take to give a piece of a log.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes that are asked for one log.
const ASKED_MAX: usize = 8;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The statement names none.
    #[error("the statement names no log")]
    None,
    /// Nobody gave it.
    #[error("nobody who was asked has the log {digest} any more ({asked} nodes){}", listed(.faults))]
    Nowhere {
        /// The log.
        digest: Blake3,
        /// Nodes that were asked.
        asked: usize,
        /// Those that sent something else, and what.
        faults: Vec<(String, LogFault)>,
    },
    /// It cannot be read or kept here.
    #[error("a log cannot be read or kept: {0}")]
    Io(#[from] io::Error),
    /// The node itself.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl Node {
    /// The log that an observation names: the one that is here, or one that those give who observed it, which
    /// is kept. Asked are nodes that say that they have what was observed, and those of the principal whose
    /// key the manifest has; where only gateways are asked, those.
    ///
    /// # Errors
    /// When nobody has it, the network does not serve the registry, or it cannot be kept.
    pub async fn log(&self, statement: &Statement) -> Result<Vec<u8>, LogError> {
        let observation = statement.observation().ok_or(LogError::None)?;
        let digest = observation.log;
        let (own, others) = (self.home.logs(), self.home.logs().of_others());
        if let Some(log) = own.read(&digest)? {
            return Ok(log);
        }
        if let Some(log) = others.read(&digest)? {
            return Ok(log);
        }
        let key = statement.key();
        let member = self.serving(statement.network(), &key.registry)?;
        self.up(&member).await?;
        let point = key.release().location(member.key()).point();
        let whom = match member.is_on_web() {
            true => member.seeds(point).await,
            false => {
                let found = self.look_up(&member, &key.release()).await?;
                let providers = found.providers.into_iter();
                let having = providers.filter(|one| one.root == observation.subject.root);
                let having = having.map(|one| one.contact);
                let of_observer = nodes_of(&member.joined().network, statement.observer());
                having.chain(of_observer).collect()
            }
        };
        let (mut asked, mut faults) = (BTreeSet::new(), Vec::new());
        for contact in whom {
            if asked.len() >= ASKED_MAX || !asked.insert(contact.node.clone()) {
                continue;
            }
            match member.read_log(&contact, point, digest).await {
                Ok(log) => {
                    let kept = tokio::task::spawn_blocking(move || others.keep(&log).map(|_| log));
                    return Ok(kept.await.map_err(|_| NodeError::Stopping)??);
                }
                Err(LogFault::Lacks) => {}
                Err(fault) => faults.push((self.blame(&member, &contact, fault).await, fault)),
            }
        }
        let asked = asked.len();
        Err(LogError::Nowhere {
            digest,
            asked,
            faults,
        })
    }

    /// Has nothing to do any more with who sent something else than what was asked for; says who it was.
    async fn blame(&self, member: &Member, contact: &Contact, fault: LogFault) -> String {
        if let Some(gateway) = member.gateway(&contact.node) {
            tracing::warn!(gateway = %gateway.url(), %fault, "not asked any more");
            self.ban_gateway(gateway.url());
            return gateway.url().to_string();
        }
        let Ok(peer) = PeerId::from_bytes(&contact.node.0) else {
            return "a node".to_owned();
        };
        tracing::warn!(%peer, %fault, "banned");
        if let Some(net) = member.net() {
            // One that has ended bans nobody, and asks nobody.
            let _ = net.ban(peer, fault.to_string()).await;
        }
        peer.to_string()
    }
}

impl Member {
    /// Reads a log from one node, piece by piece.
    async fn read_log(
        self: &Arc<Self>,
        contact: &Contact,
        point: Point,
        digest: Blake3,
    ) -> Result<Vec<u8>, LogFault> {
        let located = tokio::time::timeout(MEMBER_TIMEOUT, self.located(contact)).await;
        let contact = located.ok().flatten().ok_or(LogFault::Lacks)?;
        let mut reading = LogReading::new(point, digest);
        loop {
            let asked = self.ask(&contact, &reading.request(), PIECE_TIMEOUT).await;
            let reply = asked.map_err(|_| LogFault::Lacks)?;
            if let Some(log) = reading.take(reply.answer)? {
                return Ok(log);
            }
        }
    }
}

/// The nodes of the principal that a key belongs to, wherever they are.
fn nodes_of(network: &Network, observer: PublicKey) -> Vec<Contact> {
    let keys = network
        .principal(observer)
        .map(|(principal, _)| &principal.keys);
    let active = keys
        .into_iter()
        .flatten()
        .filter(|key| key.state == KeyState::Active && key.key != observer);
    let contact = |node| Contact {
        node,
        addrs: Vec::new(),
    };
    active
        .map(|key| contact(NodeId::of_key(&key.key)))
        .collect()
}

fn listed(faults: &[(String, LogFault)]) -> String {
    let each = faults
        .iter()
        .map(|(peer, fault)| format!("; {peer}: {fault}"));
    each.collect()
}
