//! A lane that sends only so fast, or only so much, and counts.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite, FutureExt};
use tokio::time::Sleep;

/// What is taken from a lane's writer at once where there is a cap.
const PIECE_BYTES: usize = 16 << 10;
/// How far a sender that was idle may be ahead of its cap.
const BURST: Duration = Duration::from_millis(20);

/// What all lanes of a provider together may send.
#[derive(Debug)]
pub struct Budget {
    /// Bytes a second.
    pub cap: Option<u64>,
    /// After so many nothing leaves any more.
    pub stall_after: Option<u64>,
    spent: Mutex<Spent>,
}

#[derive(Debug)]
struct Spent {
    bytes: u64,
    /// When the next byte may leave.
    next: Instant,
}

impl Budget {
    pub fn new(cap: Option<u64>, stall_after: Option<u64>) -> Arc<Self> {
        let spent = Spent {
            bytes: 0,
            next: Instant::now(),
        };
        Arc::new(Self {
            cap,
            stall_after,
            spent: Mutex::new(spent),
        })
    }

    /// Bytes that left, over all lanes.
    pub fn sent(&self) -> u64 {
        self.lock().bytes
    }

    /// How many of `wanted` bytes may leave; when to ask again if none.
    fn allow(&self, wanted: usize) -> Result<usize, Option<Instant>> {
        let spent = self.lock();
        if self.stall_after.is_some_and(|most| spent.bytes >= most) {
            return Err(None);
        }
        match self.cap {
            None => Ok(wanted),
            Some(_) if spent.next > Instant::now() => Err(Some(spent.next)),
            Some(_) => Ok(wanted.min(PIECE_BYTES)),
        }
    }

    fn spend(&self, bytes: usize) {
        let mut spent = self.lock();
        spent.bytes += bytes as u64;
        if let Some(cap) = self.cap {
            let from = spent.next.max(Instant::now() - BURST);
            spent.next = from + Duration::from_secs_f64(bytes as f64 / cap as f64);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream whose writes are within a budget.
pub struct Throttled<S> {
    stream: S,
    budget: Arc<Budget>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl<S> Throttled<S> {
    pub fn new(stream: S, budget: Arc<Budget>) -> Self {
        Self {
            stream,
            budget,
            wait: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Throttled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Throttled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.poll_unpin(cx));
                self.wait = None;
            }
            let bytes = match self.budget.allow(buffer.len()) {
                Ok(bytes) => bytes,
                Err(Some(at)) => {
                    self.wait = Some(Box::pin(tokio::time::sleep_until(at.into())));
                    continue;
                }
                // Nobody wakes this up: a provider that hangs.
                Err(None) => return Poll::Pending,
            };
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buffer[..bytes]))?;
            self.budget.spend(written);
            return Poll::Ready(Ok(written));
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
