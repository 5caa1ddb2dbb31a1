//! The engine: requests wait in a bounded queue, one background task draws them one after another, or
//! several together that can share network passes.
//!
//! Owns [`GenerationEngine`], [`RequestQueue`], the requests and responses that travel through them, cancellation, and
//! the job board. It must not know candle or axum: it draws through the [`Generate`](crate::pipeline::Generate) trait
//! and answers on channels.

mod board;
mod cancellation;
mod generation;
mod group;
mod job;
mod messages;
mod pace;
mod queue;
mod record;
#[cfg(test)]
mod scarcity;
mod waiting;
mod worker;

pub use board::{BoardLimits, Cancelling, JobBoard, Listing, Missing};
pub use cancellation::{CancelReason, Cancellation};
pub use generation::GenerationEngine;
pub use job::{Job, Subscription};
pub use messages::{ErrorCode, GenerationRequest, GenerationResponse, JobTimings};
pub use pace::Work;
pub use queue::{QueueItem, RequestQueue};
pub use record::{
    Fetched, JobEvent, JobSnapshot, JobStatus, JobTicket, NumberedEvent, Outcome, PreviewImage, ResultImage, StepDone,
};
