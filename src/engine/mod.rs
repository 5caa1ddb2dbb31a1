//! The engine: requests wait in a bounded queue, one background task draws them one after another.
//!
//! Owns [`GenerationEngine`], [`RequestQueue`], the requests and responses that travel through them, cancellation, and
//! the job board. It must not know candle or axum: it draws through the [`Generate`](crate::pipeline::Generate) trait
//! and answers on channels.

mod cancellation;
mod generation;
mod messages;
mod queue;

pub use cancellation::{CancelReason, Cancellation};
pub use generation::GenerationEngine;
pub use messages::{ErrorCode, GenerationRequest, GenerationResponse, JobTimings};
pub use queue::{QueueItem, RequestQueue};
