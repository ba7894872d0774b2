//! The task of one carrier: what comes goes to the state machine, and what that has to say goes out.

use super::engine::Engine;
use super::out::{Out, SLICES};
use crate::carrier::BoxCarrier;
use crate::pool::Buffer;
use crate::session::CarrierId;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes that are taken to be written at once.
const CHUNK: usize = 64 * 1024;
/// How long the other side may take to close after the last word.
const LINGER: Duration = Duration::from_secs(1);
/// Reads in a row, before the others have their turn.
const TURN: usize = 8;

struct Line {
    carrier: CarrierId,
    io: BoxCarrier,
    out: Out,
    flushed: bool,
}

/// Carries until the carrier is lost or closed.
pub(super) async fn carry(engine: Arc<Engine>, carrier: CarrierId, io: BoxCarrier) {
    let mut line = Line {
        carrier,
        io,
        out: Out::default(),
        flushed: true,
    };
    let ended = poll_fn(|cx| line.poll(&engine, cx)).await;
    engine.lock().carrier_lost(carrier);
    match ended {
        Ok(true) => line.linger().await,
        Ok(false) => {}
        Err(error) => tracing::debug!(carrier = carrier.0, %error, "carrier lost"),
    }
}

impl Line {
    fn poll(&mut self, engine: &Engine, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let closing = engine.lock().closing(self.carrier, cx);
        if closing == Some(false) {
            return Poll::Ready(Ok(false));
        }
        if closing.is_none() && self.poll_input(engine, cx)?.is_ready() {
            return Poll::Ready(Ok(false));
        }
        // What came may have closed it.
        let closing = engine.lock().closing(self.carrier, cx);
        if closing == Some(false) {
            return Poll::Ready(Ok(false));
        }
        let written = self.poll_output(engine, cx)?;
        if engine.lock().closing(self.carrier, cx).is_some() && written.is_ready() {
            return Pin::new(&mut self.io).poll_shutdown(cx).map_ok(|()| true);
        }
        Poll::Pending
    }

    /// Bytes that come and are not read would take back, with RST, what was just sent.
    async fn linger(&mut self) {
        let rest = async {
            let mut buf = vec![0; 4096];
            while self.io.read(&mut buf).await.is_ok_and(|count| count > 0) {}
        };
        let _ = tokio::time::timeout(LINGER, rest).await;
    }

    /// Ready when the other side has closed.
    fn poll_input(&mut self, engine: &Engine, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A session that is idle has no buffer.
        let mut buffer = Buffer::new();
        for _ in 0..TURN {
            let mut buf = ReadBuf::new(buffer.whole());
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let count = buf.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            engine.lock().received(self.carrier, buffer.share(count));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when there is nothing more to write.
    fn poll_output(&mut self, engine: &Engine, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.is_empty() {
                engine.lock().fill(self.carrier, &mut self.out, CHUNK);
                if self.out.is_empty() {
                    break;
                }
            }
            let count = ready!(self.poll_write(cx))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
            self.flushed = false;
        }
        if !self.flushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushed = true,
                other @ (Poll::Ready(Err(_)) | Poll::Pending) => return other,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        if !io.is_write_vectored() {
            return io.poll_write(cx, self.out.flatten());
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.out.slices(&mut slices);
        io.poll_write_vectored(cx, &slices[..count])
    }
}
