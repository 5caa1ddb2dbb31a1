//! One connection: its requests one after another, until it is done, overdue, given up, or its peer has left.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    accept::Shared,
    answer::answer,
    peer,
    places::{Admission, Place},
    state::State,
    wire::Wire,
};

/// Most bytes of a request's head, and of what is read or written at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How long a connection on a probe's place may wait for its request's head.
const PROBE_HEAD_WAIT: Duration = Duration::from_secs(2);
/// How long the rest of a request that was not read is taken in after its answer, so that the answer is not lost in a
/// reset, and how many bytes of it.
const LAST_READ: (Duration, usize) = (Duration::from_secs(1), 1 << 20);

/// Serves `stream` to its end.
pub(super) async fn serve(stream: TcpStream, state: Arc<State>, place: Place, router: Router, shared: Arc<Shared>) {
    let peer = stream.peer_addr().ok();
    let why = match peer::set_up(&stream) {
        Ok(()) => run(Arc::new(stream), &state, place.admission, router, shared).await,
        Err(error) => format!("the socket cannot be set up: {error}"),
    };
    tracing::debug!(peer = peer.map(tracing::field::display), requests = state.requests(), why, "connection ended");
    drop(place);
}

/// Serves to the end, and says why that came.
async fn run(
    stream: Arc<TcpStream>,
    state: &Arc<State>,
    admission: Admission,
    router: Router,
    shared: Arc<Shared>,
) -> String {
    let io = TokioIo::new(Wire::new(Arc::clone(&stream), Arc::clone(state)));
    let service = {
        let (state, shared) = (Arc::clone(state), Arc::clone(&shared));
        service_fn(move |request| {
            let shared = Arc::clone(&shared);
            answer(Arc::clone(&state), router.clone(), admission, request, move || shared.is_draining())
        })
    };
    let mut builder = http1::Builder::new();
    // A peer that has half-closed is answered; `peer` finds out about one that has left. The head's time is `State`'s,
    // which tells a head that has begun from a connection that is idle.
    builder.half_close(true).header_read_timeout(None).max_buf_size(BUFFER_BYTES);
    builder.keep_alive(admission == Admission::Full);
    let mut timeouts = shared.timeouts;
    if admission == Admission::ProbesOnly {
        timeouts.head = timeouts.head.min(PROBE_HEAD_WAIT);
    }

    let mut exchange = pin!(builder.serve_connection(io, service));
    let mut left = pin!(peer::left(&stream, state));
    let mut evicted = pin!(state.evicted());
    let mut close = pin!(shared.close.cancelled());
    let (mut closing, mut alarm) = (false, Alarm::default());
    let done = poll_fn(|cx| {
        if evicted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err("given up for another connection"));
        }
        if !closing && close.as_mut().poll(cx).is_ready() {
            closing = true;
            exchange.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if left.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err("the peer has left"));
        }
        alarm.poll(cx, || state.due(&timeouts)).map(Err)
    });
    match done.await {
        Ok(Ok(())) => {
            read_the_rest(&stream).await;
            "done".to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(why) => why.to_owned(),
    }
}

/// Takes in what the peer still sends. Closing a socket with unread bytes resets it, and a reset takes along what the peer
/// has not read yet.
async fn read_the_rest(stream: &TcpStream) {
    let (wait, most) = LAST_READ;
    let mut scratch = [0; 4096];
    let mut left = most;
    let rest = async {
        while let Ok(read) = stream.try_read(&mut scratch)
            && read > 0
            && left > 0
        {
            left = left.saturating_sub(read);
            if stream.ready(Interest::READABLE).await.is_err() {
                break;
            }
        }
    };
    // Time that is over is as good as an end.
    let _ = tokio::time::timeout(wait, rest).await;
}

/// Goes off when a connection is overdue. What is due changes with every request and is asked anew, so the timer itself is
/// only set when it has to go off earlier than before, or did so too early.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    fn poll(&mut self, cx: &mut Context<'_>, due: impl Fn() -> Option<(Instant, &'static str)>) -> Poll<&'static str> {
        let Some((at, why)) = due() else { return Poll::Pending };
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if at < sleep.deadline() {
            sleep.as_mut().reset(at);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if at <= sleep.deadline() {
                return Poll::Ready(why);
            }
            sleep.as_mut().reset(at);
        }
        Poll::Pending
    }
}
