//! A reader's end of a lane: requests out, answers of known length in.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use qk_protocol::blocks::{
    Encoding, PACKED_HEAD_BYTES, RangeError, Request, Status, packed_len, wire_len,
};
use qk_protocol::transfer::{PIPELINE_MAX, Why};
use tokio::time::timeout;

use super::pack::{PackError, unpack};

/// Buffers that one download keeps, of about 1 MiB each.
const BUFFERS_MAX: usize = 8;

/// Why an answer was not read. After all but [`PullError::Answered`] the lane is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The provider says why not.
    #[error("the provider answered {0:?}")]
    Answered(Status),
    /// The answer ended early.
    #[error("the answer ended after {got} of {expected} bytes")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes of the answer.
        expected: u32,
    },
    /// The provider closed the lane instead of answering.
    #[error("the lane was closed before an answer")]
    Closed,
    /// Not a status.
    #[error("the provider answered with status {0}")]
    Status(u8),
    /// The length of a packed answer is none that there can be.
    #[error("the provider packs an answer into more than it is")]
    Packed,
    /// No byte came for too long.
    #[error("no byte came for {0:?}")]
    Stalled(Duration),
    /// The connection broke.
    #[error("the lane broke: {0}")]
    Io(#[from] io::Error),
    /// What was to be asked is not in the blob: the mistake is here.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// More than [`PIPELINE_MAX`] requests, or an answer without one: the mistake is here.
    #[error("requests and answers are out of step")]
    OutOfStep,
}

impl PullError {
    /// What it means for the transfer.
    pub fn why(&self) -> Why {
        match self {
            Self::Answered(Status::Busy) => Why::Busy,
            Self::Answered(Status::Lacks | Status::BadRange) => Why::Lacks,
            Self::Answered(Status::NotSpoken) => Why::NotSpoken,
            // `Ok` is no error.
            Self::Answered(Status::Ok) | Self::Status(_) | Self::Packed => Why::Malformed,
            Self::Truncated { .. } => Why::Ended,
            Self::Closed | Self::Stalled(_) => Why::Late,
            Self::Io(_) | Self::Range(_) | Self::OutOfStep => Why::Unreachable,
        }
    }
}

/// Asks on one stream. Dropping it cancels what was asked.
#[derive(Debug)]
pub struct Lane {
    asker: Asker,
    answers: Answers,
    asked: VecDeque<Expected>,
}

impl Lane {
    /// A lane on a fresh stream; `stall_max` is how long no byte may come while one is expected.
    pub fn new(stream: Stream, stall_max: Duration) -> Self {
        let (read, write) = stream.split();
        Self {
            asker: Asker { write, stall_max },
            answers: Answers { read, stall_max },
            asked: VecDeque::new(),
        }
    }

    /// Sends a request; at most [`PIPELINE_MAX`] may be unanswered.
    pub async fn ask(&mut self, request: &Request) -> Result<(), PullError> {
        if self.asked.len() >= PIPELINE_MAX {
            return Err(PullError::OutOfStep);
        }
        self.asked.push_back(self.asker.ask(request).await?);
        Ok(())
    }

    /// Reads the answer to the oldest request, not yet verified.
    pub async fn answer(&mut self) -> Result<Pulled, PullError> {
        self.answer_in(Vec::new()).await
    }

    /// As [`answer`](Self::answer), in a buffer that was used before.
    pub async fn answer_in(&mut self, buffer: Vec<u8>) -> Result<Pulled, PullError> {
        let expected = self.asked.pop_front().ok_or(PullError::OutOfStep)?;
        self.answers.next(expected, buffer).await
    }

    /// Asks and reads the answer.
    pub async fn pull(&mut self, request: &Request) -> Result<Pulled, PullError> {
        self.ask(request).await?;
        self.answer().await
    }

    /// Both directions, to be used at the same time.
    pub(crate) fn split(self) -> (Asker, Answers) {
        (self.asker, self.answers)
    }
}

/// Buffers of answers that were written, to be filled again: a fresh one costs a page fault for every
/// 4 KiB.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// One that was given back, or an empty one.
    pub fn take(&self) -> Vec<u8> {
        self.all().pop().unwrap_or_default()
    }

    /// Keeps a buffer, unless enough are kept.
    pub fn give(&self, buffer: Vec<u8>) {
        let mut all = self.all();
        if all.len() < BUFFERS_MAX {
            all.push(buffer);
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Whole after every step under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    raw_bytes: u32,
    encoding: Encoding,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Pulled {
    body: Vec<u8>,
    raw_bytes: u32,
}

impl Pulled {
    /// An answer that came by another way, as the encoding that it is.
    pub(crate) fn raw(body: Vec<u8>) -> Self {
        // An answer is shorter than 4 GiB: see the bounds of a request.
        let raw_bytes = body.len() as u32;
        Self { body, raw_bytes }
    }

    /// Bytes that came, without the status.
    pub fn received(&self) -> u32 {
        // At most as many as were asked for.
        self.body.len() as u32
    }

    /// The bao encoding, not yet verified. Off the reactor, where it may be packed.
    ///
    /// # Errors
    /// When it does not unpack to what was asked for.
    pub fn unpack(self) -> Result<Vec<u8>, PackError> {
        unpack(self.body, self.raw_bytes)
    }
}

/// The direction of requests.
#[derive(Debug)]
pub(crate) struct Asker {
    write: WriteHalf<Stream>,
    stall_max: Duration,
}

impl Asker {
    /// Sends a request and says what its answer is to be like.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Expected, PullError> {
        let raw_bytes = wire_len(&request.blob, &request.ranges)?;
        let encoded = request.encode();
        let send = async {
            self.write.write_all(&encoded).await?;
            self.write.flush().await
        };
        let sent = timeout(self.stall_max, send).await;
        sent.map_err(|_| PullError::Stalled(self.stall_max))??;
        Ok(Expected {
            raw_bytes,
            encoding: request.encoding,
        })
    }
}

/// The direction of answers.
#[derive(Debug)]
pub(crate) struct Answers {
    read: ReadHalf<Stream>,
    stall_max: Duration,
}

impl Answers {
    /// Reads a status and, if that is well, the answer, in place of what is in `body`.
    pub(crate) async fn next(
        &mut self,
        expected: Expected,
        mut body: Vec<u8>,
    ) -> Result<Pulled, PullError> {
        let mut status = [0];
        if self.some(&mut status).await? == 0 {
            return Err(PullError::Closed);
        }
        match Status::from_byte(status[0]) {
            Some(Status::Ok) => {}
            Some(status) => return Err(PullError::Answered(status)),
            None => return Err(PullError::Status(status[0])),
        }
        let Expected {
            raw_bytes,
            encoding,
        } = expected;
        let bytes = match encoding {
            Encoding::Raw => raw_bytes,
            Encoding::Zstd => {
                let mut head = [0; PACKED_HEAD_BYTES];
                self.whole(&mut head, raw_bytes).await?;
                packed_len(head, raw_bytes).ok_or(PullError::Packed)?
            }
        };
        body.resize(bytes as usize, 0);
        self.whole(&mut body, raw_bytes).await?;
        Ok(Pulled { body, raw_bytes })
    }

    /// Fills the buffer, which is a part of an answer of `expected` bytes.
    async fn whole(&mut self, buffer: &mut [u8], expected: u32) -> Result<(), PullError> {
        let mut got = 0;
        while got < buffer.len() {
            match self.some(&mut buffer[got..]).await? {
                0 => return Err(PullError::Truncated { got, expected }),
                more => got += more,
            }
        }
        Ok(())
    }

    async fn some(&mut self, buffer: &mut [u8]) -> Result<usize, PullError> {
        let read = timeout(self.stall_max, self.read.read(buffer)).await;
        Ok(read.map_err(|_| PullError::Stalled(self.stall_max))??)
    }
}
