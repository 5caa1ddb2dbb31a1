//! The pipeline: text to latents to image.
//!
//! Owns `InferencePipeline` and the one denoise loop. It must not know the queue or the network server: whoever calls
//! it watches and stops it through a [`Monitor`].

mod generate;

pub use generate::{Generate, Generated, ModelInfo, Monitor, StageTimings};
