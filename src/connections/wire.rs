//! The socket as the HTTP side reads and writes it.
//!
//! Reports what happens to the connection's [`State`], and leaves out of an answer the bytes that were sent ahead of it.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::state::{ANSWER_BEGINNING, State};

/// One connection's bytes.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    state: Arc<State>,
}

impl Wire {
    pub(super) fn new(stream: Arc<TcpStream>, state: Arc<State>) -> Self {
        Self { stream, state }
    }

    /// Writes with `write` as soon as there is room.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.state.writing();
        loop {
            let Poll::Ready(room) = self.stream.poll_write_ready(cx) else {
                self.state.write_blocked();
                return Poll::Pending;
            };
            room?;
            match write(&self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => {
                    self.state.wrote();
                    return Poll::Ready(written);
                }
            }
        }
    }

    /// Writes `answer`, whose first `ahead` bytes the peer has already. What was sent ahead counts as written.
    fn poll_send_rest(&self, cx: &mut Context<'_>, answer: &[u8], ahead: usize) -> Poll<io::Result<usize>> {
        // An answer's head is written as one piece, so its beginning is never cut.
        let Some(rest) = answer.strip_prefix(&ANSWER_BEGINNING[..ahead]).filter(|rest| !rest.is_empty()) else {
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, "the answer does not begin as announced")));
        };
        let written = ready!(self.poll_send(cx, |stream| stream.try_write(rest)))?;
        self.state.head_begun();
        Poll::Ready(Ok(ahead + written))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    if read > 0 {
                        self.state.read();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.state.sent_ahead() {
            0 => self.poll_send(cx, |stream| stream.try_write(buf)),
            ahead => self.poll_send_rest(cx, buf, ahead),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.state.sent_ahead() {
            0 => self.poll_send(cx, |stream| stream.try_write_vectored(bufs)),
            ahead => {
                // The rest follows with the next write.
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
                self.poll_send_rest(cx, first, ahead)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Is called when nothing is left to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}
