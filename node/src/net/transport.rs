//! TCP with [noise](super::noise) and yamux, QUIC, and a guard in front of every dial. On a private network TCP
//! alone, inside a cipher whose key its members share.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent,
};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{Multiaddr, PeerId, dns, quic, relay, tcp, yamux};

use super::address::{AddressRules, Circuit, bare, is_circuit};
use super::limits::{
    DIAL_TIME_MAX, HANDSHAKE_TIME_MAX, NAMED_MAX, QUIC_CONNECTION_BYTES_MAX, QUIC_KEEP_ALIVE,
    QUIC_SILENCE_MAX, QUIC_STREAM_BYTES_MAX, STREAMS_PER_CONNECTION_MAX,
};
use super::noise::{Error as NoiseError, Noise};

type Connection = (PeerId, StreamMuxerBox);

/// Where this node may dial: what the rules permit of strangers' addresses, and what the owner
/// named or was found on the LAN, whatever it is.
///
/// kad dials addresses that other nodes gave it without asking anybody, so that the guard sits in
/// the transport, which every dial passes.
#[derive(Debug)]
pub(super) struct Permits {
    pub(super) rules: AddressRules,
    /// By the owner.
    named: RwLock<BTreeSet<Multiaddr>>,
    /// On the LAN, at this time.
    found: RwLock<BTreeSet<Multiaddr>>,
}

impl Permits {
    pub(super) fn new(rules: AddressRules) -> Self {
        Self {
            rules,
            named: RwLock::default(),
            found: RwLock::default(),
        }
    }

    /// Permits an address by name. Says no when [`NAMED_MAX`] are named already.
    pub(super) fn name(&self, address: &Multiaddr) -> bool {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let bare = bare(address);
        named.contains(&bare) || (named.len() < NAMED_MAX && named.insert(bare))
    }

    /// Permits the addresses that are on the LAN now, in place of those before.
    pub(super) fn set_found<'a>(&self, addrs: impl Iterator<Item = &'a Multiaddr>) {
        let now = addrs.map(bare).collect();
        *self.found.write().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether the owner named this address.
    pub(super) fn is_named(&self, address: &Multiaddr) -> bool {
        has(&self.named, address)
    }

    /// Over a relay, it is the relay that is dialled.
    fn permit(&self, address: &Multiaddr) -> bool {
        let direct = |address: &Multiaddr| {
            self.rules.permit(address) || self.is_named(address) || has(&self.found, address)
        };
        match is_circuit(address) {
            true => Circuit::of(address).is_some_and(|circuit| direct(&circuit.relay_address)),
            false => direct(address),
        }
    }
}

fn has(set: &RwLock<BTreeSet<Multiaddr>>, address: &Multiaddr) -> bool {
    let set = set.read().unwrap_or_else(PoisonError::into_inner);
    set.contains(&bare(address))
}

/// The transport of a node; over relays too, if it is given that.
pub(super) fn build(
    keypair: &Keypair,
    pre_shared: Option<PreSharedKey>,
    over_relays: Option<relay::client::Transport>,
    permits: Arc<Permits>,
) -> Result<Boxed<Connection>, NoiseError> {
    let quic = permits.rules.quic;
    let inner = match dns::tokio::Transport::system(for_numbers(keypair, pre_shared, quic)?) {
        Ok(resolving) => resolving.boxed(),
        Err(error) => {
            tracing::warn!(%error, "no name resolution: addresses must be numbers");
            for_numbers(keypair, pre_shared, quic)?
        }
    };
    let inner = match over_relays {
        None => inner,
        Some(relays) => secured(relays, keypair)?
            .or_transport(inner)
            .map(|either, _| either.into_inner())
            .boxed(),
    };
    Ok(Guard { inner, permits }.boxed())
}

/// What a relay carries is encrypted between the ends.
fn secured(
    relays: relay::client::Transport,
    keypair: &Keypair,
) -> Result<Boxed<Connection>, NoiseError> {
    Ok(relays
        .upgrade(Version::V1Lazy)
        .authenticate(Noise::new(keypair)?)
        .multiplex(muxing())
        .timeout(HANDSHAKE_TIME_MAX)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

fn muxing() -> yamux::Config {
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
    muxer
}

/// TCP and QUIC for addresses that begin with an IP address.
fn for_numbers(
    keypair: &Keypair,
    pre_shared: Option<PreSharedKey>,
    quic: bool,
) -> Result<Boxed<Connection>, NoiseError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default())
        .and_then(move |socket, _| async move {
            Ok::<_, io::Error>(match pre_shared {
                None => Either::Left(socket),
                Some(key) => {
                    let handshake = PnetConfig::new(key).handshake(socket).await;
                    Either::Right(handshake.map_err(io::Error::other)?)
                }
            })
        })
        .upgrade(Version::V1Lazy)
        .authenticate(Noise::new(keypair)?)
        .multiplex(muxing())
        .timeout(HANDSHAKE_TIME_MAX)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    if !quic {
        return Ok(tcp);
    }
    Ok(tcp
        .or_transport(quic::tokio::Transport::new(quic_config(keypair)))
        .map(|either, _| match either {
            Either::Left(connection) => connection,
            Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        })
        .boxed())
}

fn quic_config(keypair: &Keypair) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = HANDSHAKE_TIME_MAX;
    config.max_concurrent_stream_limit = STREAMS_PER_CONNECTION_MAX as u32;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_idle_timeout = QUIC_SILENCE_MAX.as_millis() as u32;
    config.max_stream_data = QUIC_STREAM_BYTES_MAX;
    config.max_connection_data = QUIC_CONNECTION_BYTES_MAX;
    config
}

/// A transport that dials only what [`Permits`] allows.
struct Guard {
    inner: Boxed<Connection>,
    permits: Arc<Permits>,
}

impl Transport for Guard {
    type Output = Connection;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Connection> as Transport>::ListenerUpgrade;
    type Dial = Pin<Box<dyn Future<Output = Result<Connection, io::Error>> + Send>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        match self.permits.permit(&address) {
            true => {
                // Over a relay two dials and more follow one another.
                let time = match is_circuit(&address) {
                    true => HANDSHAKE_TIME_MAX,
                    false => DIAL_TIME_MAX,
                };
                let dialling = self.inner.dial(address, options)?;
                Ok(Box::pin(async move {
                    let dialled = tokio::time::timeout(time, dialling).await;
                    dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                }))
            }
            false => Err(TransportError::Other(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "addresses of this kind are not dialled here",
            ))),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_names_what_strangers_may_not() {
        let permits = Permits::new(AddressRules {
            allow_private: false,
            quic: true,
        });
        let peer = PeerId::random();
        let lan: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let with_peer = lan.clone().with_p2p(peer).unwrap();
        assert!(!permits.permit(&lan));
        permits.set_found([&lan].into_iter());
        assert!(permits.permit(&lan) && permits.permit(&with_peer));
        assert!(permits.name(&with_peer));
        permits.set_found([].into_iter());
        assert!(permits.permit(&lan), "the owner's word holds");
    }

    #[test]
    fn what_left_the_lan_is_not_dialled() {
        let permits = Permits::new(AddressRules {
            allow_private: false,
            quic: true,
        });
        let lan: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        permits.set_found([&lan].into_iter());
        permits.set_found([].into_iter());
        assert!(!permits.permit(&lan));
    }
}
