//! A connection whose other end has to read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What has to leave between two looks at the clock.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// Breaks with `TimedOut` when [`PIECE_BYTES`] wait longer to leave than they may. A time-out that
/// began anew with every byte would keep a connection for who reads a byte at a time.
pub(super) struct Paced<S> {
    stream: S,
    piece_timeout: Duration,
    /// Bytes that left since the clock runs.
    written: usize,
    running: bool,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, piece_timeout: Duration) -> Self {
        Self {
            stream,
            piece_timeout,
            written: 0,
            running: false,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    fn on_written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.written += bytes;
                if self.written >= PIECE_BYTES {
                    self.running = false;
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => ready!(self.poll_late(cx))?,
        }
        match written {
            Poll::Ready(written) => Poll::Ready(written),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Something waits to leave: ready with an error when it has waited too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.running {
            self.running = true;
            self.written = 0;
            let deadline = Instant::now() + self.piece_timeout;
            self.sleep.as_mut().reset(deadline);
        }
        ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.on_written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.on_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            // Everything left, and what comes next is another answer, or its next part.
            self.running = false;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
