//! Requests and replies of `/qk/<network>/index/1` on a stream: a length, then opaque bytes.
//!
//! The length is four bytes, big-endian. What is read takes its bytes from a budget shared by all
//! streams as they arrive, not as they are announced: to hold memory, a peer must send.

use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{Limits, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};

/// How much is read before the budget is asked again.
const SLICE_BYTES: usize = 64 << 10;

/// Bytes that were read, and their share of the budget until they are dropped.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) bytes: Vec<u8>,
    pub(super) share: Option<OwnedSemaphorePermit>,
}

impl From<Vec<u8>> for Carried {
    /// Bytes of our own, which count for no budget.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, share: None }
    }
}

/// Carries index requests and replies.
#[derive(Debug, Clone)]
pub(super) struct IndexCodec {
    requests: Arc<Semaphore>,
    replies: Arc<Semaphore>,
}

impl IndexCodec {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(limits.request_bytes_held_max)),
            replies: Arc::new(Semaphore::new(limits.reply_bytes_held_max)),
        }
    }
}

impl request_response::Codec for IndexCodec {
    type Protocol = StreamProtocol;
    type Request = Carried;
    type Response = Carried;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Carried>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REQUEST_BYTES_MAX, &self.requests).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Carried>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REPLY_BYTES_MAX, &self.replies).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Carried,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &request.bytes, REQUEST_BYTES_MAX).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        reply: Carried,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &reply.bytes, REPLY_BYTES_MAX).await
    }
}

async fn read<T: AsyncRead + Unpin>(
    io: &mut T,
    bytes_max: usize,
    budget: &Arc<Semaphore>,
) -> io::Result<Carried> {
    let mut prefix = [0; 4];
    io.read_exact(&mut prefix).await?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > bytes_max {
        return Err(too_long(length, bytes_max));
    }
    let mut bytes = Vec::new();
    let mut share = None;
    while bytes.len() < length {
        let start = bytes.len();
        let end = length.min(start + SLICE_BYTES);
        let slice = take(budget, end - start)?;
        match &mut share {
            None => share = Some(slice),
            Some(share) => share.merge(slice),
        }
        bytes.resize(end, 0);
        io.read_exact(&mut bytes[start..]).await?;
    }
    Ok(Carried { bytes, share })
}

fn take(budget: &Arc<Semaphore>, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
    u32::try_from(bytes)
        .ok()
        .and_then(|count| budget.clone().try_acquire_many_owned(count).ok())
        .ok_or_else(|| io::Error::other("no memory left for messages of peers"))
}

async fn write<T: AsyncWrite + Unpin>(
    io: &mut T,
    bytes: &[u8],
    bytes_max: usize,
) -> io::Result<()> {
    let length = match u32::try_from(bytes.len()) {
        Ok(length) if bytes.len() <= bytes_max => length,
        _ => return Err(too_long(bytes.len(), bytes_max)),
    };
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(bytes).await
}

fn too_long(length: usize, bytes_max: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a message of {length} bytes exceeds the {bytes_max} bytes allowed"),
    )
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::*;

    use super::*;

    fn budget(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(bytes))
    }

    fn framed(bytes: &[u8]) -> Vec<u8> {
        let mut io = Cursor::new(Vec::new());
        block_on(write(&mut io, bytes, bytes.len())).unwrap();
        io.into_inner()
    }

    proptest! {
        #[test]
        fn round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..200_000)) {
            let budget = budget(200_000);
            let read = block_on(read(&mut Cursor::new(framed(&bytes)), 200_000, &budget)).unwrap();
            prop_assert_eq!(&read.bytes, &bytes);
            prop_assert_eq!(budget.available_permits(), 200_000 - bytes.len());
            drop(read);
            prop_assert_eq!(budget.available_permits(), 200_000);
        }

        #[test]
        fn cut_frames_are_errors(bytes in proptest::collection::vec(any::<u8>(), 1..500), cut in 0usize..500) {
            let mut frame = framed(&bytes);
            frame.truncate(cut.min(frame.len() - 1));
            prop_assert!(block_on(read(&mut Cursor::new(frame), 500, &budget(500))).is_err());
        }
    }

    #[test]
    fn length_is_checked_before_anything_is_read_or_written() {
        let mut announced = (101u32).to_be_bytes().to_vec();
        announced.extend([0; 101]);
        let error = block_on(read(&mut Cursor::new(announced), 100, &budget(1000))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut io = Cursor::new(Vec::new());
        assert!(block_on(write(&mut io, &[0; 101], 100)).is_err());
        assert!(io.into_inner().is_empty());
    }

    #[test]
    fn an_announced_length_costs_one_slice_only() {
        let budget = budget(4 * SLICE_BYTES);
        let mut frame = (REQUEST_BYTES_MAX as u32).to_be_bytes().to_vec();
        frame.extend(vec![0; 5]);
        let mut io = Cursor::new(frame);
        assert!(block_on(read(&mut io, REQUEST_BYTES_MAX, &budget)).is_err());
        assert_eq!(budget.available_permits(), 4 * SLICE_BYTES);

        let whole = framed(&vec![7; 5 * SLICE_BYTES]);
        let error = block_on(read(&mut Cursor::new(whole), REQUEST_BYTES_MAX, &budget));
        assert!(error.unwrap_err().to_string().contains("no memory left"));
    }
}
