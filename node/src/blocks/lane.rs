//! A reader's end of a lane: requests out, answers of known length in.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use qk_protocol::blocks::{RangeError, Request, Status, wire_len};
use qk_protocol::transfer::{PIPELINE_MAX, Why};
use tokio::time::timeout;

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
            Self::Answered(Status::Ok) | Self::Status(_) => Why::Malformed,
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
    asked: VecDeque<u32>,
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

    /// Reads the answer to the oldest request: the encoding without its status, not yet verified.
    pub async fn answer(&mut self) -> Result<Vec<u8>, PullError> {
        let bytes = self.asked.pop_front().ok_or(PullError::OutOfStep)?;
        self.answers.next(bytes).await
    }

    /// Asks and reads the answer.
    pub async fn pull(&mut self, request: &Request) -> Result<Vec<u8>, PullError> {
        self.ask(request).await?;
        self.answer().await
    }

    /// Both directions, to be used at the same time.
    pub(crate) fn split(self) -> (Asker, Answers) {
        (self.asker, self.answers)
    }
}

/// The direction of requests.
#[derive(Debug)]
pub(crate) struct Asker {
    write: WriteHalf<Stream>,
    stall_max: Duration,
}

impl Asker {
    /// Sends a request and says how many bytes its answer has.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<u32, PullError> {
        let bytes = wire_len(&request.blob, &request.ranges)?;
        let encoded = request.encode();
        let send = async {
            self.write.write_all(&encoded).await?;
            self.write.flush().await
        };
        let sent = timeout(self.stall_max, send).await;
        sent.map_err(|_| PullError::Stalled(self.stall_max))??;
        Ok(bytes)
    }
}

/// The direction of answers.
#[derive(Debug)]
pub(crate) struct Answers {
    read: ReadHalf<Stream>,
    stall_max: Duration,
}

impl Answers {
    /// Reads a status and, if that is well, exactly `bytes` more.
    pub(crate) async fn next(&mut self, bytes: u32) -> Result<Vec<u8>, PullError> {
        let mut status = [0];
        if self.some(&mut status).await? == 0 {
            return Err(PullError::Closed);
        }
        match Status::from_byte(status[0]) {
            Some(Status::Ok) => {}
            Some(status) => return Err(PullError::Answered(status)),
            None => return Err(PullError::Status(status[0])),
        }
        let mut wire = vec![0; bytes as usize];
        let mut got = 0;
        while got < wire.len() {
            match self.some(&mut wire[got..]).await? {
                0 => {
                    return Err(PullError::Truncated {
                        got,
                        expected: bytes,
                    });
                }
                more => got += more,
            }
        }
        Ok(wire)
    }

    async fn some(&mut self, buffer: &mut [u8]) -> Result<usize, PullError> {
        let read = timeout(self.stall_max, self.read.read(buffer)).await;
        Ok(read.map_err(|_| PullError::Stalled(self.stall_max))??)
    }
}
