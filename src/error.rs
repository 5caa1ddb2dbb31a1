//! The domain's errors: what can go wrong between a parameter and a picture.
//!
//! Owns the one error enum of the library. It must not know HTTP: `http` turns these into status codes, in one place.
//! A message is lower case, names the offender, what was given and what is allowed.

use std::path::PathBuf;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this library can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter's value is outside what is allowed.
    #[error("{field}: {message}")]
    InvalidParameter {
        /// The parameter, by its name in the HTTP contract.
        field: &'static str,
        /// What was given and what is allowed.
        message: String,
    },
    /// A parameter that this build or the loaded model cannot honour.
    #[error("{field}: {message}")]
    UnsupportedParameter {
        /// The parameter, by its name in the HTTP contract.
        field: &'static str,
        /// What was given and what can be done instead.
        message: String,
    },
    /// The bounded queue has no room: the request was refused at once.
    #[error("the queue is full: {capacity} requests are waiting already")]
    QueueFull {
        /// How many requests may wait.
        capacity: usize,
    },
    /// The engine is shutting down, or was never started.
    #[error("the engine takes no work: {reason}")]
    NotAccepting {
        /// Why, for a person.
        reason: &'static str,
    },
    /// The caller asked the drawing to stop.
    #[error("the drawing was stopped before it was finished")]
    Interrupted,
    /// A network gave values that are not numbers, in f32 too.
    #[error("{stage} gave values that are not finite: the weights or the parameters drive this model out of range")]
    NotFinite {
        /// The stage of the pipeline.
        stage: &'static str,
    },
    /// A file of the checkpoint that is not there.
    #[error("{}: no such file; {wanted}", path.display())]
    MissingFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What the file is for, and which names would do.
        wanted: String,
    },
    /// A file of the checkpoint that cannot be read as what it should be.
    #[error("{}: {message}", path.display())]
    BrokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A configuration of the checkpoint that asks for something this build cannot do.
    #[error("{}: {message}", path.display())]
    UnsupportedCheckpoint {
        /// The configuration file.
        path: PathBuf,
        /// The key, its value and what is supported.
        message: String,
    },
    /// A tensor that the network needs and the weight file lacks.
    #[error("{}: tensor {tensor} is missing; wanted shape {wanted:?}", path.display())]
    MissingTensor {
        /// The weight file, or its index.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration calls for.
        wanted: Vec<usize>,
    },
    /// A tensor whose shape contradicts the configuration.
    #[error("{}: tensor {tensor} has shape {found:?}; the configuration calls for {wanted:?}", path.display())]
    TensorShape {
        /// The weight file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration calls for.
        wanted: Vec<usize>,
    },
    /// The device that was asked for is not there or not built in.
    #[error("device {device}: {message}")]
    Device {
        /// The device as asked for.
        device: String,
        /// What is wrong, and what can be used.
        message: String,
    },
    /// A picture that does not fit in what is free of the device's memory.
    #[error("{width}x{height} pixels do not fit in memory: {message}")]
    OutOfMemory {
        /// The picture's width in pixels.
        width: usize,
        /// The picture's height in pixels.
        height: usize,
        /// What is needed and what is free, or what the device said.
        message: String,
    },
    /// An image that cannot be decoded or encoded.
    #[error("image: {0}")]
    Image(String),
    /// A model that cannot be fetched from a hub.
    #[error("{repository}: {message}")]
    Hub {
        /// The hub id.
        repository: String,
        /// What went wrong.
        message: String,
    },
    /// The pipeline panicked: a fault of this program, which costs this one job.
    #[error("the pipeline panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// An error of the tensor library: a fault of the device or of this program.
    #[error("tensor arithmetic failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// A parameter outside what is allowed; `message` says what was given and what is allowed.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidParameter { field, message: message.into() }
    }

    /// Whether a device ran out of memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            Self::Tensor(error) => crate::memory::is_out_of_memory(error),
            _ => false,
        }
    }

    /// A parameter that cannot be honoured; `message` says what was given and what can be done instead.
    pub fn unsupported(field: &'static str, message: impl Into<String>) -> Self {
        Self::UnsupportedParameter { field, message: message.into() }
    }
}
