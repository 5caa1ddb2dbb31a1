//! What is known of one connection: where it stands, since when, and what its peer still has to be sent.
//!
//! The connection's own task changes it. The accept loop reads it when all places are taken.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, sync::Notify, time::Instant};

use super::answer::Receipt;

/// What every answer begins with, in HTTP/1.0 and in HTTP/1.1.
pub(super) const ANSWER_BEGINNING: &[u8] = b"HTTP/1.";

/// How long a connection may wait for its peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// From the first byte of a request's head, or from the accept, to the whole head.
    pub(super) head: Duration,
    /// From an answer to the next request.
    pub(super) idle: Duration,
    /// From one write that the peer made room for to the next.
    pub(super) write: Duration,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It was accepted, or a request's head has begun and is not whole.
    Head,
    /// A request is answered.
    Busy,
    /// The last answer is sent and nothing of another request has come.
    Idle,
}

/// One connection's state.
#[derive(Debug)]
pub(super) struct State {
    inner: Mutex<Inner>,
    evicted: Notify,
    /// A request began after the peer came into doubt.
    request_began: Notify,
}

#[derive(Debug)]
struct Inner {
    stage: Stage,
    since: Instant,
    requests: u64,
    evicted: bool,
    /// The peer may have left.
    in_doubt: bool,
    /// How often bytes were read.
    reads: u64,
    /// A handler is at work, and nothing of its answer has been made yet.
    handling: bool,
    /// The answer's body has been taken to its end, or dropped.
    answer_over: bool,
    /// Everything that was made of answers so far is with the kernel.
    flushed: bool,
    blocked_since: Option<Instant>,
    /// How many bytes of the next answer's beginning were sent ahead of it.
    sent_ahead: usize,
    /// What is to be told once everything is flushed.
    receipts: Vec<Receipt>,
}

/// The connection was given up for another just before its request was whole.
#[derive(Debug, thiserror::Error)]
#[error("the connection was given up for another one")]
pub(super) struct Evicted;

impl State {
    pub(super) fn new() -> Self {
        let inner = Inner {
            stage: Stage::Head,
            since: Instant::now(),
            requests: 0,
            evicted: false,
            in_doubt: false,
            reads: 0,
            handling: false,
            answer_over: false,
            flushed: true,
            blocked_since: None,
            sent_ahead: 0,
            receipts: Vec::new(),
        };
        Self { inner: Mutex::new(inner), evicted: Notify::new(), request_began: Notify::new() }
    }

    /// Bytes came.
    pub(super) fn read(&self) {
        let mut inner = self.lock();
        inner.reads += 1;
        if inner.stage == Stage::Idle {
            inner.enter(Stage::Head);
        }
    }

    /// A request's head is whole, and its handler begins.
    ///
    /// # Errors
    ///
    /// When the connection has been given up.
    pub(super) fn begin_request(&self) -> Result<(), Evicted> {
        let mut inner = self.lock();
        if inner.evicted {
            return Err(Evicted);
        }
        inner.enter(Stage::Busy);
        inner.requests += 1;
        inner.handling = true;
        inner.answer_over = false;
        if inner.in_doubt {
            self.request_began.notify_one();
        }
        Ok(())
    }

    /// The handler has ended: with an answer, or because the connection does.
    pub(super) fn end_handler(&self) {
        self.lock().handling = false;
    }

    /// The answer's body was taken to its end, or dropped before; `receipt` is told once its bytes are flushed.
    pub(super) fn end_answer(&self, receipt: Option<Receipt>) {
        let mut inner = self.lock();
        inner.answer_over = true;
        inner.receipts.extend(receipt);
    }

    /// There is something to write.
    pub(super) fn writing(&self) {
        self.lock().flushed = false;
    }

    /// A write found no room.
    pub(super) fn write_blocked(&self) {
        self.lock().blocked_since.get_or_insert_with(Instant::now);
    }

    /// A write found room.
    pub(super) fn wrote(&self) {
        self.lock().blocked_since = None;
    }

    /// Everything that was written so far is with the kernel.
    pub(super) fn flushed(&self) {
        let receipts = {
            let mut inner = self.lock();
            inner.flushed = true;
            if inner.answer_over && inner.stage == Stage::Busy {
                inner.enter(Stage::Idle);
            }
            std::mem::take(&mut inner.receipts)
        };
        receipts.iter().for_each(Receipt::tell);
    }

    /// How many bytes of the answer that is written next were sent already.
    pub(super) fn sent_ahead(&self) -> usize {
        self.lock().sent_ahead
    }

    /// The answer that they belong to has begun without them.
    pub(super) fn head_begun(&self) {
        self.lock().sent_ahead = 0;
    }

    /// Sends one more byte of the beginning of the answer that is being made, where that cannot disturb another answer.
    /// Gives how many such bytes are sent.
    pub(super) fn send_ahead(&self, stream: &TcpStream) -> usize {
        let mut inner = self.lock();
        if inner.handling && inner.flushed {
            let sent = inner.sent_ahead;
            let next = &ANSWER_BEGINNING[sent..(sent + 1).min(ANSWER_BEGINNING.len())];
            // No room for it, or a broken connection, shows elsewhere.
            inner.sent_ahead += if next.is_empty() { 0 } else { stream.try_write(next).unwrap_or(0) };
        }
        inner.sent_ahead
    }

    /// The peer may have left: it has half-closed, or bytes that nobody reads would hide that it has.
    pub(super) fn doubt(&self) {
        self.lock().in_doubt = true;
    }

    /// Whether the peer may have left.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.lock().in_doubt
    }

    /// Resolves when a request begins on a connection whose peer is in doubt.
    pub(super) async fn request_began(&self) {
        self.request_began.notified().await;
    }

    /// How often bytes were read.
    pub(super) fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// Whether a request is being answered and nothing was read since `reads` was what is given.
    pub(super) fn has_left_unread_since(&self, reads: u64) -> bool {
        let inner = self.lock();
        inner.stage == Stage::Busy && inner.reads == reads
    }

    /// How many requests began.
    pub(super) fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// Since when the connection has waited for a request's head, if it does and has not been given up yet.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let inner = self.lock();
        (inner.stage != Stage::Busy && !inner.evicted).then_some(inner.since)
    }

    /// Gives the connection up, unless a request began on it meanwhile; returns whether it did.
    pub(super) fn evict(&self) -> bool {
        let mut inner = self.lock();
        if inner.stage == Stage::Busy || inner.evicted {
            return false;
        }
        inner.evicted = true;
        self.evicted.notify_one();
        true
    }

    /// Resolves when the connection is given up.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// When the connection is to end if its peer does nothing until then, and why.
    pub(super) fn due(&self, timeouts: &Timeouts) -> Option<(Instant, &'static str)> {
        let inner = self.lock();
        let stage = match inner.stage {
            Stage::Head => Some((inner.since + timeouts.head, "the request's head did not come in time")),
            Stage::Idle => Some((inner.since + timeouts.idle, "no other request came")),
            Stage::Busy => None,
        };
        let write = inner.blocked_since.map(|since| (since + timeouts.write, "the peer does not read"));
        stage.into_iter().chain(write).min_by_key(|(due, _)| *due)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under this lock is a few assignments that cannot panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = Instant::now();
    }
}
