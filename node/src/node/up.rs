//! How a node takes its place in a network: what it listens on, whom it begins with, what it serves.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};

use super::cache::Neighbours;
use super::given::GivenLogs;
use super::kin::Named;
use super::member::Member;
use super::{Node, NodeError, addresses, listen, parents_of};
use crate::blocks::behaviour::serving;
use crate::blocks::serve::{Obtain, ServeLimits, Server};
use crate::home::Joined;
use crate::net::{
    self, Contact, Event, LanRole, Limits, Multiaddr, NatConfig, Net, NetConfig, PreSharedKey,
};
use crate::secret::{Secret, SecretError};

impl Node {
    /// A network whose network side is not started.
    pub(super) fn new_member(&self, joined: Joined) -> Result<Arc<Member>, NodeError> {
        let identity = net::identity_of(self.home.key("node")?.to_bytes())?;
        let own = identity.public().to_peer_id();
        let is_other = |contact: &Contact| contact.peer != own;
        let mut named = Named::default();
        if self.is_on_web() {
            // Gateways are asked in their place.
            return Ok(self.member_of(joined, named));
        }
        named.parents = parents_of(&self.options, &self.config())?;
        for text in &joined.network.manifest().bootstrap {
            let parsed = text.parse::<Multiaddr>().map_err(|error| error.to_string());
            let contact = parsed
                .and_then(|address| Contact::named(&address).map_err(|error| error.to_string()));
            match contact {
                Ok(contact) => named.bootstrap.push(contact),
                Err(error) => {
                    tracing::warn!(address = text, %error, "a bootstrap address is left out");
                }
            }
        }
        // A parent in the next room does not make a public network a laboratory's, where strangers may
        // name private addresses; a network without bootstrap nodes is where its parents are.
        let tell = match named.bootstrap.is_empty() {
            true => &named.parents,
            false => &named.bootstrap,
        };
        let is_lab = tell.iter().flat_map(|one| &one.addrs).any(is_local);
        named.is_local = is_lab;
        named.parents.retain(is_other);
        let (others, itself) = named.bootstrap.into_iter().partition(is_other);
        named.bootstrap = others;
        let itself: Vec<Contact> = itself;
        named.itself = itself.into_iter().flat_map(|one| one.addrs).collect();
        Ok(self.member_of(joined, named))
    }

    fn member_of(&self, joined: Joined, named: Named) -> Arc<Member> {
        let web = match self.is_on_web() {
            true => self.gateways(),
            false => Vec::new(),
        };
        Member::new(
            joined,
            self.door.clone(),
            GivenLogs::new(self.home.logs(), self.manners.clone()),
            named,
            web,
            self.cache.clone(),
            self.counters.clone(),
        )
    }

    /// Starts the network side of a network, unless it has started or the node is offline.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn up(&self, member: &Arc<Member>) -> Result<(), NodeError> {
        if self.options.offline || self.is_on_web() || member.net().is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.starting.lock().await;
        if member.net().is_some() {
            return Ok(());
        }
        let joined = member.joined();
        let general = addresses(&self.options.listen)?;
        let is_first = self.members().iter().all(|other| other.net().is_none());
        let listening = listen::listening(&self.config(), &general, &joined, is_first)?;
        if listening.moved {
            let network = &joined.network.manifest().name;
            tracing::warn!(
                network,
                "listens on free ports: the given ones are another network's; `[networks.NAME] listen` in the configuration gives it its own"
            );
        }
        let config = self.net_config(member, &joined, listening.addresses)?;
        let answering = member.clone();
        let answer = move |peer, observed, bytes| answering.clone().answer(peer, observed, bytes);
        // Only a node that holds the store open serves from it.
        let hold = self.options.hold;
        let serve = hold.then(|| serving(member.server(|| self.server(member))));
        let net = Net::start(config, answer, serve).await?;
        if hold {
            tokio::spawn(tell_moves(net.events(), self.moved.clone()));
        }
        member.set_net(net);
        Ok(())
    }

    fn net_config(
        &self,
        member: &Member,
        joined: &Joined,
        listen: Vec<Multiaddr>,
    ) -> Result<NetConfig, NodeError> {
        let pre_shared = joined.secret.as_ref().map(pre_shared_key);
        if pre_shared.is_none() && joined.network.manifest().secret_id.is_some() {
            let network = joined.network.manifest().name.clone();
            return Err(NodeError::Secret(SecretError::Missing { network }));
        }
        let config = self.config();
        let named = member.named();
        let bootstrap: Vec<Multiaddr> = named.all().flat_map(full_addresses).collect();
        // Whom the manifest names can be reached there; the owner says more.
        let external = named.itself.iter().cloned();
        let external = external.chain(addresses(&config.relay.external)?);
        let external: Vec<Multiaddr> = match listen.is_empty() {
            true => Vec::new(),
            false => external.collect(),
        };
        // Where nobody is named, others are found on the LAN.
        let on_lan = bootstrap.is_empty() && external.is_empty();
        let private = pre_shared.is_some() || named.is_local;
        let hold = self.options.hold;
        // A command looks around only where there may be a cache, and announces nothing.
        let looks = config.mdns.unwrap_or(true) && (hold || member.expects_lan());
        let role = match self.cache {
            Some(_) => LanRole::Cache,
            None => LanRole::Node,
        };
        let limits = match (&self.cache, listen.is_empty()) {
            (Some(_), _) => Limits::cache(),
            (None, true) => Limits::laptop(),
            (None, false) => Limits::server(),
        };
        Ok(NetConfig {
            identity: net::identity_of(self.home.key("node")?.to_bytes())?,
            network: member.id(),
            bootstrap,
            external,
            server: !listen.is_empty(),
            nat: NatConfig {
                traverse: config.relay.traverse.unwrap_or(!private && !on_lan),
                relay: config.relay.serve,
            },
            limits: match self.manners.connections() {
                Some(connections) => limits.connections(connections),
                None => limits,
            },
            listen,
            lan: looks.then_some(role),
            pre_shared,
            quic: config.quic.unwrap_or(true),
            allow_private: private,
        })
    }

    /// What serves artifacts in a network: on a cache, also those that are not here yet.
    fn server(&self, member: &Arc<Member>) -> Arc<Server> {
        let (uploads, counters) = (self.manners.uploads(), self.counters.clone());
        let server = match self.cache.clone() {
            None => Server::with(self.given(), ServeLimits::default(), uploads, counters),
            Some(cache) => {
                let neighbours: Arc<dyn Obtain> = Arc::new(Neighbours {
                    cache,
                    member: Arc::downgrade(member),
                    manners: self.manners.clone(),
                });
                let limits = ServeLimits::cache();
                Server::obtaining(self.given(), limits, uploads, counters, Some(neighbours))
            }
        };
        self.traffic.serves(server.clone());
        server
    }
}

/// What the nodes of a private network encrypt their connections with, beside their own keys.
fn pre_shared_key(secret: &Secret) -> PreSharedKey {
    PreSharedKey::new(blake3::derive_key("qk pre-shared key v1", secret.bytes()))
}

/// Tells when a node is reached at other addresses than before, until its network side ends.
async fn tell_moves(mut events: broadcast::Receiver<Event>, moved: Arc<Notify>) {
    loop {
        match events.recv().await {
            Ok(Event::Reach(_)) | Err(RecvError::Lagged(_)) => moved.notify_one(),
            Ok(Event::Routed(_) | Event::OnLan(_) | Event::Forgotten(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// A contact's addresses, each with its peer id at the end.
fn full_addresses(contact: &Contact) -> Vec<Multiaddr> {
    let full = |address: &Multiaddr| address.clone().with_p2p(contact.peer).ok();
    contact.addrs.iter().filter_map(full).collect()
}

/// Whether an address lies on this machine or in a private range: then the network is one of a
/// laboratory, and its nodes may name such addresses to each other.
pub(super) fn is_local(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        _ => false,
    }
}
