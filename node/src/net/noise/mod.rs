//! The encrypted channel under TCP and relayed connections: the Noise Protocol Framework's XX
//! handshake, `Noise_XX_25519_AESGCM_SHA256`, with libp2p identities.
//!
//! libp2p's own `/noise` has the same handshake with ChaCha20-Poly1305, which took about a third of
//! a transfer's processor time, copies each byte three times more, and asks the socket for 8 KiB at
//! a time. AES-256-GCM runs at several times the speed wherever the processor has instructions for
//! it, and messages are sealed and opened in place.
//!
//! `snow` conducts the handshake. Each side says in its encrypted payload who it is: its identity key,
//! and that key's signature of a fixed text and the static key of the handshake.

mod channel;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId;
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::{DecodingError, Keypair, PublicKey, SigningError};
use snow::HandshakeState;

pub use self::channel::Channel;
use self::channel::Cipher;

/// What multistream-select calls it. Also the prologue of the handshake.
const PROTOCOL: &str = "/qk/noise-aes/1";
/// Of the Noise Protocol Framework.
const PARAMETERS: &str = "Noise_XX_25519_AESGCM_SHA256";
/// What the signature of a static key begins with.
const SIGNED: &[u8] = b"qk noise static key v1";
/// The longest message of a handshake, which is three keys, a signature and two tags.
const HANDSHAKE_BYTES_MAX: usize = 512;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke.
    #[error("connection broke in the handshake: {0}")]
    Io(#[from] io::Error),
    /// The other side does not speak the same, or somebody meddles.
    #[error("noise: {0}")]
    Noise(#[from] snow::Error),
    /// A message of the handshake is longer than any can be.
    #[error("a handshake message of {0} bytes: at most {HANDSHAKE_BYTES_MAX}")]
    TooLong(usize),
    /// The other side's identity is none.
    #[error("no identity in the handshake")]
    Identity,
    /// Its key cannot be read.
    #[error("the other side's identity key: {0}")]
    Key(#[from] DecodingError),
    /// Its key did not sign this handshake's static key.
    #[error("the other side's identity did not sign its key for this handshake")]
    Signature,
    /// This node's own key does not sign.
    #[error("cannot sign the key for handshakes: {0}")]
    Signing(#[from] SigningError),
}

/// How this node's handshakes are made. Cheap to clone.
#[derive(Clone)]
pub struct Noise {
    /// Of this process, private.
    static_key: Arc<[u8]>,
    /// See [`payload`].
    identity: Arc<[u8]>,
}

impl Noise {
    /// Handshakes in the name of `identity`, with a static key of this process.
    ///
    /// # Errors
    /// When the identity cannot sign.
    pub fn new(identity: &Keypair) -> Result<Self, Error> {
        let keys = builder()?.generate_keypair()?;
        Ok(Self {
            identity: payload(identity, &keys.public)?.into(),
            static_key: keys.private.into(),
        })
    }

    fn initiator(&self) -> Result<HandshakeState, Error> {
        Ok(self.side()?.build_initiator()?)
    }

    fn responder(&self) -> Result<HandshakeState, Error> {
        Ok(self.side()?.build_responder()?)
    }

    fn side(&self) -> Result<snow::Builder<'_>, Error> {
        let side = builder()?.local_private_key(&self.static_key)?;
        Ok(side.prologue(PROTOCOL.as_bytes())?)
    }
}

fn builder() -> Result<snow::Builder<'static>, Error> {
    Ok(snow::Builder::new(PARAMETERS.parse()?))
}

/// The length of the identity key in one byte, that key as libp2p encodes it, and its signature.
fn payload(identity: &Keypair, static_key: &[u8]) -> Result<Vec<u8>, Error> {
    let key = identity.public().encode_protobuf();
    let length = u8::try_from(key.len()).map_err(|_| Error::Identity)?;
    let signature = identity.sign(&[SIGNED, static_key].concat())?;
    Ok([&[length], &key[..], &signature].concat())
}

/// Who signed the static key that a handshake was made with.
fn identity(payload: &[u8], state: &HandshakeState) -> Result<PeerId, Error> {
    let (length, rest) = payload.split_first().ok_or(Error::Identity)?;
    let parts = rest.split_at_checked(usize::from(*length));
    let (key, signature) = parts.ok_or(Error::Identity)?;
    let key = PublicKey::try_decode_protobuf(key)?;
    let static_key = state.get_remote_static().ok_or(Error::Identity)?;
    match key.verify(&[SIGNED, static_key].concat(), signature) {
        true => Ok(key.to_peer_id()),
        false => Err(Error::Signature),
    }
}

impl UpgradeInfo for Noise {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Upgrading<S> = Pin<Box<dyn Future<Output = Result<(PeerId, Channel<S>), Error>> + Send>>;

impl<S> InboundConnectionUpgrade<S> for Noise
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, Channel<S>);
    type Error = Error;
    type Future = Upgrading<S>;

    fn upgrade_inbound(self, mut socket: S, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let mut state = self.responder()?;
            receive(&mut socket, &mut state).await?;
            send(&mut socket, &mut state, &self.identity).await?;
            let theirs = receive(&mut socket, &mut state).await?;
            let peer = identity(&theirs, &state)?;
            let (inbound, outbound) = state.dangerously_get_raw_split();
            Ok((
                peer,
                Channel::new(socket, Cipher::new(&inbound), Cipher::new(&outbound)),
            ))
        })
    }
}

impl<S> OutboundConnectionUpgrade<S> for Noise
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, Channel<S>);
    type Error = Error;
    type Future = Upgrading<S>;

    fn upgrade_outbound(self, mut socket: S, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let mut state = self.initiator()?;
            send(&mut socket, &mut state, &[]).await?;
            let theirs = receive(&mut socket, &mut state).await?;
            let peer = identity(&theirs, &state)?;
            send(&mut socket, &mut state, &self.identity).await?;
            let (outbound, inbound) = state.dangerously_get_raw_split();
            Ok((
                peer,
                Channel::new(socket, Cipher::new(&inbound), Cipher::new(&outbound)),
            ))
        })
    }
}

/// Messages of the handshake have their length before them, as those of the channel, in two bytes.
async fn send(
    socket: &mut (impl AsyncWrite + Unpin),
    state: &mut HandshakeState,
    payload: &[u8],
) -> Result<(), Error> {
    let mut message = [0; 2 + HANDSHAKE_BYTES_MAX];
    let length = state.write_message(payload, &mut message[2..])?;
    // At most HANDSHAKE_BYTES_MAX.
    message[..2].copy_from_slice(&(length as u16).to_be_bytes());
    socket.write_all(&message[..2 + length]).await?;
    Ok(socket.flush().await?)
}

async fn receive(
    socket: &mut (impl AsyncRead + Unpin),
    state: &mut HandshakeState,
) -> Result<Vec<u8>, Error> {
    let mut length = [0; 2];
    socket.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > HANDSHAKE_BYTES_MAX {
        return Err(Error::TooLong(length));
    }
    let mut message = [0; HANDSHAKE_BYTES_MAX];
    socket.read_exact(&mut message[..length]).await?;
    let mut payload = vec![0; length];
    let bytes = state.read_message(&message[..length], &mut payload)?;
    payload.truncate(bytes);
    Ok(payload)
}
