//! TCP with noise and yamux, QUIC, and a guard in front of every dial.

use std::collections::BTreeSet;
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
use libp2p::{Multiaddr, PeerId, dns, noise, quic, tcp, yamux};

use super::address::{AddressRules, bare};
use super::limits::{
    HANDSHAKE_TIME_MAX, NAMED_MAX, QUIC_CONNECTION_BYTES_MAX, QUIC_STREAM_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
};

type Connection = (PeerId, StreamMuxerBox);

/// Where this node may dial: what the rules permit of strangers' addresses, and what the owner
/// named or was found on the LAN, whatever it is.
///
/// kad dials addresses that other nodes gave it without asking anybody, so that the guard sits in
/// the transport, which every dial passes.
#[derive(Debug)]
pub(super) struct Permits {
    pub(super) rules: AddressRules,
    named: RwLock<BTreeSet<Multiaddr>>,
}

impl Permits {
    pub(super) fn new(rules: AddressRules) -> Self {
        Self {
            rules,
            named: RwLock::default(),
        }
    }

    /// Permits an address by name. Says no when [`NAMED_MAX`] are named already.
    pub(super) fn name(&self, address: &Multiaddr) -> bool {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let bare = bare(address);
        named.contains(&bare) || (named.len() < NAMED_MAX && named.insert(bare))
    }

    /// Takes back [`Self::name`].
    pub(super) fn forget(&self, address: &Multiaddr) {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        named.remove(&bare(address));
    }

    pub(super) fn is_named(&self, address: &Multiaddr) -> bool {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.contains(&bare(address))
    }

    pub(super) fn permit(&self, address: &Multiaddr) -> bool {
        self.rules.permit(address) || self.is_named(address)
    }
}

/// The transport of a node.
pub(super) fn build(
    keypair: &Keypair,
    permits: Arc<Permits>,
) -> Result<Boxed<Connection>, noise::Error> {
    let quic = permits.rules.quic;
    let inner = match dns::tokio::Transport::system(for_numbers(keypair, quic)?) {
        Ok(resolving) => resolving.boxed(),
        Err(error) => {
            tracing::warn!(%error, "no name resolution: addresses must be numbers");
            for_numbers(keypair, quic)?
        }
    };
    Ok(Guard { inner, permits }.boxed())
}

/// TCP and QUIC for addresses that begin with an IP address.
fn for_numbers(keypair: &Keypair, quic: bool) -> Result<Boxed<Connection>, noise::Error> {
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(muxer)
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
    type Dial = <Boxed<Connection> as Transport>::Dial;

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
            true => self.inner.dial(address, options),
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
        assert!(permits.name(&with_peer));
        assert!(permits.permit(&lan) && permits.permit(&with_peer));
        permits.forget(&lan);
        assert!(!permits.permit(&with_peer));
    }
}
