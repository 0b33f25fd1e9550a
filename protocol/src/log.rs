//! A log of a build, piece by piece, from a node that has it.
//!
//! An observation names its log by digest and not by size, so that nobody knows how much is to come:
//! the first piece says it, within a bound, each piece has exactly the length that follows from it, and
//! what was said is used only once the whole has the digest. So a liar costs a stated number of bytes,
//! and whoever sent something else is at fault.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::hash::{Blake3, Point};
use crate::message::{Answer, Request};

/// A log is at most this long: what a build may write, and a little more where it was cut off.
pub const LOG_BYTES_MAX: u64 = 17 << 20;
/// All pieces but the last are this long.
pub const LOG_PIECE_BYTES_MAX: usize = 1 << 20;

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPiece {
    /// Bytes of the whole log.
    pub total: u64,
    /// What follows the offset that was asked for.
    pub bytes: ByteBuf,
}

impl LogPiece {
    /// How long the piece is that begins at `offset`.
    pub fn len_at(offset: u64, total: u64) -> usize {
        let left = usize::try_from(total.saturating_sub(offset)).unwrap_or(usize::MAX);
        left.min(LOG_PIECE_BYTES_MAX)
    }
}

/// Why a node's answers are no log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// It does not have it, or does not give it now. Nothing to hold against it.
    #[error("it does not have the log")]
    Lacks,
    /// It says that it is longer than any may be.
    #[error("it says that the log has {0} bytes, more than any may have")]
    TooLong(u64),
    /// Its pieces do not fit each other, or it answered something else.
    #[error("its pieces do not make a log")]
    Pieces,
    /// Another log.
    #[error("it sent something else than the log")]
    OtherLog,
}

/// A log that is being read from one node.
#[derive(Debug)]
pub struct LogReading {
    point: Point,
    digest: Blake3,
    total: Option<u64>,
    log: Vec<u8>,
}

impl LogReading {
    /// Reads the log with this digest, which an observation at this point names.
    pub fn new(point: Point, digest: Blake3) -> Self {
        Self {
            point,
            digest,
            total: None,
            log: Vec::new(),
        }
    }

    /// What to ask next.
    pub fn request(&self) -> Request {
        Request::Log {
            point: self.point,
            digest: self.digest,
            offset: self.log.len() as u64,
        }
    }

    /// Takes the answer to the last request; returns the log once it is whole and what it should be.
    ///
    /// # Errors
    /// When the node is not to be asked again. All but [`LogFault::Lacks`] are its fault.
    pub fn take(&mut self, answer: Answer) -> Result<Option<Vec<u8>>, LogFault> {
        let piece = match answer {
            Answer::Log(piece) => piece,
            Answer::Refused(_) => return Err(LogFault::Lacks),
            Answer::Taken { .. }
            | Answer::Statements { .. }
            | Answer::Points(_)
            | Answer::Network(_) => return Err(LogFault::Pieces),
        };
        if piece.total > LOG_BYTES_MAX {
            return Err(LogFault::TooLong(piece.total));
        }
        let len = LogPiece::len_at(self.log.len() as u64, piece.total);
        if self.total.is_some_and(|total| total != piece.total) || piece.bytes.len() != len {
            return Err(LogFault::Pieces);
        }
        self.total = Some(piece.total);
        self.log.extend_from_slice(&piece.bytes);
        if (self.log.len() as u64) < piece.total {
            return Ok(None);
        }
        let log = std::mem::take(&mut self.log);
        match Blake3::of(&log) == self.digest {
            true => Ok(Some(log)),
            false => Err(LogFault::OtherLog),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Point = Point([1; 32]);

    fn piece(log: &[u8], offset: u64) -> Answer {
        let (total, begin) = (log.len() as u64, offset as usize);
        let bytes = log[begin..begin + LogPiece::len_at(offset, total)].to_vec();
        Answer::Log(LogPiece {
            total,
            bytes: ByteBuf::from(bytes),
        })
    }

    /// Reads from whoever answers so; with how many questions.
    fn read(
        digest: Blake3,
        mut answer: impl FnMut(u64) -> Answer,
    ) -> (Result<Vec<u8>, LogFault>, usize) {
        let mut reading = LogReading::new(HERE, digest);
        for asked in 1.. {
            let Request::Log { offset, .. } = reading.request() else {
                panic!("another request");
            };
            match reading.take(answer(offset)) {
                Ok(None) => {}
                Ok(Some(log)) => return (Ok(log), asked),
                Err(fault) => return (Err(fault), asked),
            }
        }
        unreachable!()
    }

    #[test]
    fn a_log_of_any_length_is_read_in_as_many_pieces_as_it_has() {
        for len in [0, 1, LOG_PIECE_BYTES_MAX, LOG_PIECE_BYTES_MAX + 1] {
            let log: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let (got, asked) = read(Blake3::of(&log), |offset| piece(&log, offset));
            assert_eq!(got.unwrap(), log);
            assert_eq!(asked, len.div_ceil(LOG_PIECE_BYTES_MAX).max(1));
        }
    }

    #[test]
    fn who_sends_something_else_is_at_fault_and_who_has_nothing_is_not() {
        let log = vec![7; 3 * LOG_PIECE_BYTES_MAX];
        let digest = Blake3::of(&log);
        let other = vec![8; log.len()];
        let fault = |answer: &dyn Fn(u64) -> Answer| read(digest, answer).0.unwrap_err();
        assert_eq!(fault(&|offset| piece(&other, offset)), LogFault::OtherLog);
        assert_eq!(
            fault(&|_| Answer::Refused("no such log".to_owned())),
            LogFault::Lacks
        );
        assert_eq!(fault(&|_| Answer::Points(Vec::new())), LogFault::Pieces);
        let says = |total: u64, len: usize| {
            let bytes = ByteBuf::from(vec![7; len]);
            Answer::Log(LogPiece { total, bytes })
        };
        let too_long = LOG_BYTES_MAX + 1;
        assert_eq!(
            fault(&|_| says(too_long, LOG_PIECE_BYTES_MAX)),
            LogFault::TooLong(too_long)
        );
        // One that says each time that there is more to come.
        let grows = |offset| says(offset + 2 * LOG_PIECE_BYTES_MAX as u64, LOG_PIECE_BYTES_MAX);
        assert_eq!(fault(&grows), LogFault::Pieces);
        // One that never ends, a byte or nothing at a time.
        assert_eq!(fault(&|_| says(1 << 20, 1)), LogFault::Pieces);
        assert_eq!(fault(&|_| says(1, 0)), LogFault::Pieces);
    }

    proptest! {
        /// Whatever is answered, what comes out has the digest, and it ends.
        #[test]
        fn nothing_but_the_log_comes_out(
            answers in prop::collection::vec((0..3_u64, 0..4_usize, any::<u8>()), 1..8),
            log in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let digest = Blake3::of(&log);
            let mut answers = answers.into_iter().cycle();
            let answer = |_| {
                let (total, len, byte) = answers.next().unwrap();
                Answer::Log(LogPiece { total, bytes: ByteBuf::from(vec![byte; len]) })
            };
            if let (Ok(got), _) = read(digest, answer) {
                prop_assert_eq!(got, log);
            }
        }
    }
}
