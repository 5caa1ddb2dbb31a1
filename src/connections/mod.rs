//! The server's connections, from the listener to their end.
//!
//! Owns the accept loop, how many connections are open, how long each may wait for its peer, and how a peer that has left
//! is told from one that only has nothing more to send. It must not know jobs or what a request asks for: every request
//! goes to the router, and what a connection has to know of an answer is in the answer's extensions ([`Filler`],
//! [`Receipt`]). Next: [`http`](crate::http) answers.

mod accept;
mod answer;
mod connection;
mod open_files;
mod peer;
mod places;
mod state;
mod wire;

pub use accept::{ConnectionLimits, Connections};
pub use answer::{Filler, ProbesOnly, Receipt};
