//! Whether the peer has left, or only has nothing more to send.
//!
//! Both look the same: the end of what can be read. The difference shows when something is sent: a peer that has closed
//! its socket answers with a reset, one that has half-closed takes it. So the beginning of the answer, which is the same
//! for all, is sent ahead of it, a byte at a time and ever more rarely. A client that takes the whole answer sees no
//! difference. A few bytes that wait behind the request do not hide the end, since the system tells of it beside them. So many
//! that the system takes no more do, so a peer is asked as well when bytes are left unread for a while.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{io::Interest, net::TcpStream};

use super::state::State;

/// What the end of the peer's bytes is told through, without being woken for bytes that wait.
#[cfg(any(target_os = "linux", target_os = "android"))]
const END_OF_BYTES: Interest = Interest::PRIORITY;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const END_OF_BYTES: Interest = Interest::READABLE;
/// How soon to look again where bytes that wait hide the end, and for how long they may be left unread.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The longest pause between two bytes that are sent ahead is 2 to this power, in seconds.
const LONGEST_PAUSE_EXPONENT: usize = 6;
/// When the system asks a silent peer's system whether the connection still stands, and how often in vain. This finds
/// machines that are gone, and a peer that leaves when all of the beginning is sent.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(15), 4);
/// Unsent bytes that the system holds for a peer. A peer that reads no such amount in the time for a write is one that
/// does not read.
const UNSENT_BYTES: u32 = 128 << 10;

/// Sets up an accepted socket.
///
/// # Errors
///
/// When the system refuses an option, as for a socket whose peer has reset it.
pub(super) fn set_up(stream: &TcpStream) -> io::Result<()> {
    // An answer is written in few, large pieces; events are small and must not wait for one another.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let (idle, interval, retries) = KEEP_ALIVE;
    let keep_alive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    #[cfg(unix)]
    let keep_alive = keep_alive.with_retries(retries);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

/// Resolves when the peer has left. `state` is told before that it may have.
pub(super) async fn left(stream: &TcpStream, state: &State) {
    tokio::select! {
        () = reset(stream) => return,
        () = end_of_bytes(stream) => {}
        () = bytes_left_unread(stream, state) => {}
    }
    state.doubt();
    // The answer that is being sent may have something to say to a peer in doubt, and is asked first.
    tokio::task::yield_now().await;
    tokio::select! {
        () = reset(stream) => {}
        () = ask(stream, state) => {}
    }
}

/// Resolves when the connection is reset.
async fn reset(stream: &TcpStream) {
    // An error here is the end of the runtime, which ends the connection as well.
    let _ = stream.ready(Interest::ERROR).await;
}

/// Resolves when the peer sends nothing more.
async fn end_of_bytes(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(END_OF_BYTES).await
        && !ready.is_read_closed()
    {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Resolves when the peer has sent more behind its request than is read before the answer. An end behind these bytes does not
/// arrive while they fill the system's buffer.
async fn bytes_left_unread(stream: &TcpStream, state: &State) {
    // The end and a broken connection show elsewhere.
    while let Ok(1..) = stream.peek(&mut [0]).await {
        let reads = state.reads();
        tokio::time::sleep(LOOK_AGAIN).await;
        if state.has_left_unread_since(reads) {
            return;
        }
    }
    std::future::pending().await
}

/// Sends the answer's beginning ahead for as long as there is no answer, so that a peer that has left resets the
/// connection.
async fn ask(stream: &TcpStream, state: &State) {
    loop {
        let sent = state.send_ahead(stream);
        let pause = Duration::from_secs(1 << sent.saturating_sub(1).min(LONGEST_PAUSE_EXPONENT));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = state.request_began() => {}
        }
    }
}
