//! A stream of Noise transport messages: two bytes of length, a ciphertext, its tag of 16 bytes.
//!
//! One buffer each way. Messages are opened where they were read, and sealed where they are written
//! from; buffers grow while much goes through, and shrink when little does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const LENGTH_BYTES: usize = 2;
const TAG_BYTES: usize = 16;
/// The longest message of the Noise Protocol Framework.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// What fits into one.
const PLAIN_BYTES_MAX: usize = MESSAGE_BYTES_MAX - TAG_BYTES;
/// What a connection at rest keeps for each direction.
const REST_BYTES: usize = 4 << 10;
/// What is read at once where much comes. At least one whole message.
const READ_BYTES_MAX: usize = 128 << 10;
/// Reads in a row that need little of a large buffer before it shrinks.
const LITTLE_READS_MAX: u8 = 8;
/// Messages under one key, 64 GiB of long ones. RFC 8446, 5.5, permits TLS six times as much with
/// AES-GCM.
const KEY_MESSAGES_MAX: u64 = 1 << 20;

/// The cipher of one direction: each message has its number as the nonce.
pub(super) struct Cipher {
    key: LessSafeKey,
    next: u64,
    key_messages_max: u64,
}

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self::with_key_messages_max(key, KEY_MESSAGES_MAX)
    }

    pub(super) fn with_key_messages_max(key: &[u8; 32], key_messages_max: u64) -> Self {
        Self {
            key: cipher(key),
            next: 0,
            key_messages_max,
        }
    }

    /// A number is used once only. As each key is used for the same number of messages, both sides
    /// go over to the next at the same one.
    fn nonce(&mut self) -> Nonce {
        if self.next > 0 && self.next.is_multiple_of(self.key_messages_max) {
            self.rekey();
        }
        let nonce = nonce(self.next);
        self.next += 1;
        nonce
    }

    /// `REKEY` of the Noise Protocol Framework, 4.2: numbers go on.
    fn rekey(&mut self) {
        let mut key = [0; 32];
        // It fails for plaintexts of some 64 GiB only.
        let _tag = self
            .key
            .seal_in_place_separate_tag(nonce(u64::MAX), Aad::empty(), &mut key);
        self.key = cipher(&key);
    }

    /// Encrypts in place.
    fn seal(&mut self, plain: &mut [u8]) -> io::Result<[u8; TAG_BYTES]> {
        let nonce = self.nonce();
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), plain);
        let tag = sealed.map_err(|_| io::Error::other("a message that cannot be encrypted"))?;
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Decrypts ciphertext and tag in place, and says how long the plaintext is.
    fn open(&mut self, message: &mut [u8]) -> io::Result<usize> {
        let nonce = self.nonce();
        let opened = self.key.open_in_place(nonce, Aad::empty(), message);
        let plain = opened.map_err(|_| invalid("a message that the other side did not send"))?;
        Ok(plain.len())
    }
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key);
    LessSafeKey::new(key.expect("32 bytes are a key"))
}

/// As the Noise Protocol Framework has it for AESGCM: four zero bytes, then the number, big-endian.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An encrypted stream over another one.
pub struct Channel<S> {
    socket: S,
    inbox: Inbox,
    outbox: Outbox,
}

impl<S> Channel<S> {
    pub(super) fn new(socket: S, inbound: Cipher, outbound: Cipher) -> Self {
        Self {
            socket,
            inbox: Inbox {
                cipher: inbound,
                bytes: Vec::new(),
                plain: 0..0,
                sealed: 0..0,
                little_reads: 0,
            },
            outbox: Outbox {
                cipher: outbound,
                bytes: Vec::new(),
                sent: 0,
                sealed: 0,
                is_fresh: false,
            },
        }
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.inbox.bytes.capacity() + self.outbox.bytes.capacity()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Channel<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, inbox, .. } = self.get_mut();
        loop {
            let plain = inbox.take(buffer);
            if plain > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(plain));
            }
            if inbox.open()? {
                continue;
            }
            match Pin::new(&mut *socket).poll_read(cx, inbox.space()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => match read? {
                    0 if inbox.sealed.is_empty() => return Poll::Ready(Ok(0)),
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    bytes => inbox.came(bytes),
                },
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, outbox, .. } = self.get_mut();
        if outbox.plain_bytes() == PLAIN_BYTES_MAX {
            outbox.seal()?;
        }
        // One message is written at a time.
        if outbox.sealed > 0 {
            ready!(outbox.poll_send(socket, cx))?;
        }
        Poll::Ready(Ok(outbox.put(bytes)))
    }

    /// Where something was written since the last flush, whoever writes gets another turn before it
    /// goes out: a muxer flushes after each frame, and several frames fit into one message.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, outbox, .. } = self.get_mut();
        if std::mem::take(&mut outbox.is_fresh) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(outbox.poll_send_all(socket, cx))?;
        Pin::new(socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, outbox, .. } = self.get_mut();
        ready!(outbox.poll_send_all(socket, cx))?;
        Pin::new(socket).poll_close(cx)
    }
}

/// `plain` is what was opened and not yet taken, `sealed`, behind it, what was only read.
struct Inbox {
    cipher: Cipher,
    bytes: Vec<u8>,
    plain: std::ops::Range<usize>,
    sealed: std::ops::Range<usize>,
    little_reads: u8,
}

impl Inbox {
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let bytes = self.plain.len().min(buffer.len());
        let end = self.plain.start + bytes;
        buffer[..bytes].copy_from_slice(&self.bytes[self.plain.start..end]);
        self.plain.start = end;
        bytes
    }

    /// Opens the next message; `false` when it is not here whole. One that cannot be opened stays where
    /// it is, so that nothing behind it is ever read.
    fn open(&mut self) -> io::Result<bool> {
        let Some(message) = self.message() else {
            return Ok(false);
        };
        if message.len() < TAG_BYTES {
            return Err(invalid("a message shorter than its tag"));
        }
        let plain = self.cipher.open(&mut self.bytes[message.clone()])?;
        self.sealed.start = message.end;
        self.plain = message.start..message.start + plain;
        Ok(true)
    }

    fn message(&self) -> Option<std::ops::Range<usize>> {
        let sealed = &self.bytes[self.sealed.clone()];
        let (length, rest) = sealed.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let start = self.sealed.start + LENGTH_BYTES;
        (rest.len() >= length).then_some(start..start + length)
    }

    /// Room for more, at least for the rest of the message that has begun. Nothing is opened and
    /// not taken now.
    fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.sealed.clone(), 0);
        (self.plain, self.sealed) = (0..0, 0..self.sealed.len());
        let whole = match self.bytes[self.sealed.clone()].first_chunk::<LENGTH_BYTES>() {
            Some(length) => LENGTH_BYTES + usize::from(u16::from_be_bytes(*length)),
            None => REST_BYTES,
        };
        if self.bytes.len() < whole {
            self.bytes.resize(whole, 0);
        }
        &mut self.bytes[self.sealed.end..]
    }

    /// So much was read into the room. A buffer that was filled doubles, one that stays nearly empty
    /// is given back.
    fn came(&mut self, bytes: usize) {
        self.sealed.end += bytes;
        let size = self.bytes.len();
        if self.sealed.end == size && size < READ_BYTES_MAX {
            self.bytes.resize((2 * size).min(READ_BYTES_MAX), 0);
        }
        self.little_reads = match self.sealed.end < size / 8 {
            true => self.little_reads + 1,
            false => 0,
        };
        if self.little_reads == LITTLE_READS_MAX {
            self.little_reads = 0;
            self.bytes.truncate(self.sealed.end.max(REST_BYTES));
            self.bytes.shrink_to_fit();
        }
    }
}

/// What is to be written: `sent..sealed` is encrypted, and behind it a message has its length's
/// place and the plaintext so far.
struct Outbox {
    cipher: Cipher,
    bytes: Vec<u8>,
    sent: usize,
    sealed: usize,
    /// Something was put here since the last flush was asked for.
    is_fresh: bool,
}

impl Outbox {
    fn plain_bytes(&self) -> usize {
        (self.bytes.len() - self.sealed).saturating_sub(LENGTH_BYTES)
    }

    fn put(&mut self, bytes: &[u8]) -> usize {
        if self.bytes.len() == self.sealed {
            self.bytes.extend([0; LENGTH_BYTES]);
        }
        let bytes = &bytes[..bytes.len().min(PLAIN_BYTES_MAX - self.plain_bytes())];
        self.bytes.extend_from_slice(bytes);
        self.is_fresh = true;
        bytes.len()
    }

    /// Ends the message that has begun, if one has.
    fn seal(&mut self) -> io::Result<()> {
        if self.plain_bytes() == 0 {
            return Ok(());
        }
        let message = &mut self.bytes[self.sealed..];
        let (length, plain) = message.split_at_mut(LENGTH_BYTES);
        // At most MESSAGE_BYTES_MAX.
        length.copy_from_slice(&((plain.len() + TAG_BYTES) as u16).to_be_bytes());
        let tag = self.cipher.seal(plain)?;
        self.bytes.extend(tag);
        self.sealed = self.bytes.len();
        Ok(())
    }

    fn poll_send_all(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.seal()?;
        self.poll_send(socket, cx)
    }

    /// Writes what is sealed. Nothing may have begun behind it.
    fn poll_send(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.sealed {
            let left = &self.bytes[self.sent..self.sealed];
            match ready!(Pin::new(&mut *socket).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.sent += bytes,
            }
        }
        let was_short = self.sealed < REST_BYTES / 4;
        self.bytes.clear();
        (self.sent, self.sealed) = (0, 0);
        if was_short {
            self.bytes.shrink_to(REST_BYTES);
        }
        Poll::Ready(Ok(()))
    }
}
