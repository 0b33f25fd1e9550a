//! Inbound handshakes under way are a [`Crowd`]: an honest one takes milliseconds, one of somebody who
//! connects and says nothing lasts until its time is over.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent,
};

use super::address::Prefix;
use crate::crowd::{Crowd, Place};

/// Longer than an honest handshake takes, also far away.
const SLOW_AFTER: Duration = Duration::from_secs(2);

/// A transport whose inbound handshakes are at most so many.
pub(super) struct Handshakes<T> {
    inner: Boxed<T>,
    under_way: Arc<Crowd>,
}

impl<T> Handshakes<T> {
    /// At most `max` handshakes of `inner`.
    pub(super) fn new(inner: Boxed<T>, max: usize) -> Self {
        Self {
            inner,
            under_way: Crowd::new(max, SLOW_AFTER),
        }
    }
}

/// An inbound handshake.
pub(super) struct Handshake<F> {
    inner: F,
    /// None for one that found no place.
    place: Option<Place>,
}

impl<T, F: Future<Output = io::Result<T>> + Unpin> Future for Handshake<F> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = |place: &Place| place.poll_end(cx).is_ready();
        if self.place.as_ref().is_none_or(ended) {
            return Poll::Ready(Err(io::Error::other("made room for other handshakes")));
        }
        Pin::new(&mut self.inner).poll(cx)
    }
}

impl<T> Transport for Handshakes<T> {
    type Output = T;
    type Error = io::Error;
    type ListenerUpgrade = Handshake<<Boxed<T> as Transport>::ListenerUpgrade>;
    type Dial = <Boxed<T> as Transport>::Dial;

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
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let under_way = self.under_way.clone();
        let event = Pin::new(&mut self.inner).poll(cx);
        event.map(|event| {
            let from = match &event {
                TransportEvent::Incoming { send_back_addr, .. } => send_back_addr.clone(),
                // Only what comes in has an upgrade.
                _ => Multiaddr::empty(),
            };
            event.map_upgrade(|inner| Handshake {
                inner,
                place: under_way.enter(Prefix::of(&from)),
            })
        })
    }
}
