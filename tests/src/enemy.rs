//! An enemy of a node: it speaks libp2p up to the streams of a connection, and then does as it likes.
//!
//! Each of its connections comes from an address and an identity of its choice, which is what an
//! enemy with many machines has.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;

use futures::{AsyncWrite, AsyncWriteExt};
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, SubstreamBox};
use libp2p::core::upgrade::OutboundConnectionUpgrade;
use libp2p::identity::Keypair;
use libp2p::yamux;
use multistream_select::{Negotiated, Version, dialer_select_proto};
use qk_node::net::noise::Noise;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_util::compat::TokioAsyncReadCompatExt;

/// A stream on which a protocol was agreed.
pub type Stream = Negotiated<SubstreamBox>;

type Opened = oneshot::Sender<io::Result<SubstreamBox>>;

/// A connection with a node, authenticated and multiplexed; closed when this is dropped.
#[derive(Debug)]
pub struct Wire {
    opening: mpsc::Sender<Opened>,
    task: AbortHandle,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A bare TCP connection from an address of this machine.
///
/// # Errors
/// When it is refused.
pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

impl Wire {
    /// Connects from an address of this machine, as a node that was never seen before.
    ///
    /// # Errors
    /// When the node does not let it in.
    pub async fn dial(from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        Self::dial_as(&Keypair::generate_ed25519(), from, to).await
    }

    /// As [`dial`](Self::dial), with an identity of one's choice.
    ///
    /// # Errors
    /// When the node does not let it in.
    pub async fn dial_as(identity: &Keypair, from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        let socket = connect(from, to).await?.compat();
        let noise = Noise::new(identity).map_err(io::Error::other)?;
        let (name, socket) = dialer_select_proto(socket, noise.protocol_info(), Version::V1)
            .await
            .map_err(io::Error::other)?;
        let (_, secure) = noise
            .upgrade_outbound(socket, name)
            .await
            .map_err(io::Error::other)?;
        let yamux = yamux::Config::default();
        let (name, secure) = dialer_select_proto(secure, yamux.protocol_info(), Version::V1)
            .await
            .map_err(io::Error::other)?;
        let muxer = yamux.upgrade_outbound(secure, name).await?;
        let (opening, waiting) = mpsc::channel(1);
        let task = tokio::spawn(drive(StreamMuxerBox::new(muxer), waiting)).abort_handle();
        Ok(Self { opening, task })
    }

    /// Opens a stream without agreeing on a protocol.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn stream(&self) -> io::Result<SubstreamBox> {
        let (reply, opened) = oneshot::channel();
        let closed = || io::Error::from(io::ErrorKind::ConnectionReset);
        self.opening.send(reply).await.map_err(|_| closed())?;
        opened.await.map_err(|_| closed())?
    }

    /// Opens a stream of a protocol.
    ///
    /// # Errors
    /// When the node does not speak it, or the connection is closed.
    pub async fn speak(&self, protocol: &str) -> io::Result<Stream> {
        let stream = self.stream().await?;
        let agreed = dialer_select_proto(stream, [protocol.to_owned()], Version::V1).await;
        agreed.map(|(_, stream)| stream).map_err(io::Error::other)
    }
}

/// Owns the connection: opens what is asked for, drops what the node opens.
async fn drive(mut muxer: StreamMuxerBox, mut waiting: mpsc::Receiver<Opened>) {
    let mut next: Option<Opened> = None;
    let closed = poll_fn(|cx| {
        loop {
            let mut muxer = Pin::new(&mut muxer);
            if let Poll::Ready(Err(error)) = muxer.as_mut().poll(cx) {
                return Poll::Ready(error);
            }
            match muxer.as_mut().poll_inbound(cx) {
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => {}
            }
            if next.is_none()
                && let Poll::Ready(Some(reply)) = waiting.poll_recv(cx)
            {
                next = Some(reply);
            }
            if next.is_none() {
                return Poll::Pending;
            }
            match muxer.as_mut().poll_outbound(cx) {
                Poll::Ready(opened) => {
                    if let Some(reply) = next.take() {
                        let _ = reply.send(opened);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let _ = closed.await;
}

/// Writes zeros until as many were taken, or the other side takes no more: the number taken.
pub async fn stuff(stream: &mut (impl AsyncWrite + Unpin), bytes_max: usize) -> usize {
    let zeros = vec![0; 16 << 10];
    let mut taken = 0;
    while taken < bytes_max {
        if stream.write_all(&zeros).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        taken += zeros.len();
    }
    taken
}
