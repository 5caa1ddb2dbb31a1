//! What goes into the engine and what comes out of it.

use std::time::{Duration, Instant};

use image::DynamicImage;

use super::{CancelReason, Cancellation};
use crate::{Error, pipeline::StageTimings, sampling::SamplingConfig};

/// One drawing to be made.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The job's id, echoed in logs.
    pub job_id: String,
    /// What to draw.
    pub config: SamplingConfig,
    /// Stops the job, before or while it is drawn.
    pub cancellation: Cancellation,
    /// When the job has to be done; past it, it ends with [`ErrorCode::DeadlineExceeded`].
    pub deadline: Option<Instant>,
    /// The span that the job's log lines belong to.
    pub span: tracing::Span,
}

impl GenerationRequest {
    /// A request without a deadline, in the current tracing span.
    pub fn new(job_id: impl Into<String>, config: SamplingConfig) -> Self {
        Self {
            job_id: job_id.into(),
            config,
            cancellation: Cancellation::new(),
            deadline: None,
            span: tracing::Span::current(),
        }
    }
}

/// What the engine says of one job, in order. `Complete`, `Error` and `Cancelled` are the last word: exactly one of them
/// is sent for every accepted request, unless the receiver has gone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum GenerationResponse {
    /// The request was accepted.
    Queued {
        /// How many requests were accepted and not yet ended before this one.
        position: usize,
    },
    /// The drawing begins.
    Started {
        /// How long the request waited in the queue.
        queue_wait: Duration,
    },
    /// A denoising step is done. Left out when the receiver's channel is full.
    Progress {
        /// Steps done, over all the images of the request.
        step: usize,
        /// Steps in all.
        total: usize,
        /// How long this step took.
        step_time: Duration,
        /// Images that its network passes drew, of this job and of those that share them.
        images_together: usize,
    },
    /// What the picture looks like so far. Left out when the receiver's channel is full.
    Preview {
        /// After this many steps.
        step: usize,
        /// The picture.
        image: DynamicImage,
    },
    /// The pictures.
    Complete {
        /// Image `i` was drawn with `seed + i`.
        images: Vec<DynamicImage>,
        /// Where the time went.
        timings: JobTimings,
        /// What the caller should know, such as a prompt that was cut.
        warnings: Vec<String>,
    },
    /// The job failed.
    Error {
        /// What kind of failure.
        code: ErrorCode,
        /// What happened, for a person.
        message: String,
        /// The parameter at fault, where one is.
        field: Option<&'static str>,
    },
    /// The job was stopped.
    Cancelled {
        /// Why.
        reason: CancelReason,
    },
}

impl GenerationResponse {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Complete { .. } | Self::Error { .. } | Self::Cancelled { .. })
    }
}

/// What kind of failure ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// A parameter that the model refuses.
    InvalidParameter,
    /// A parameter that this build or model cannot honour.
    UnsupportedParameter,
    /// The job's deadline passed.
    DeadlineExceeded,
    /// Anything else: the drawing itself failed.
    GenerationFailed,
}

impl ErrorCode {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidParameter => "invalid_parameter",
            Self::UnsupportedParameter => "unsupported_parameter",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::GenerationFailed => "generation_failed",
        }
    }
}

impl From<&Error> for GenerationResponse {
    /// The last word of a job that failed with `error`.
    fn from(error: &Error) -> Self {
        let (code, field) = match error {
            Error::InvalidParameter { field, .. } => (ErrorCode::InvalidParameter, Some(*field)),
            Error::UnsupportedParameter { field, .. } => (ErrorCode::UnsupportedParameter, Some(*field)),
            _ => (ErrorCode::GenerationFailed, None),
        };
        Self::Error { code, message: error.to_string(), field }
    }
}

/// Where a job's time went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobTimings {
    /// From acceptance to the start of the drawing.
    pub queue_ms: u64,
    /// The pipeline's stages.
    pub stages: StageTimings,
    /// From acceptance to the end of the drawing.
    pub total_ms: u64,
}
