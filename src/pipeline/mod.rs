//! The pipeline: text to latents to image.
//!
//! Owns [`InferencePipeline`] and the one denoise loop. It must not know the queue or the network server: whoever calls
//! it watches and stops it through a [`Monitor`].

mod batch;
mod company;
mod denoise;
mod generate;
mod group;
mod load;
mod origin;
#[expect(clippy::module_inception, reason = "the pipeline's own file is its namesake")]
mod pipeline;
mod pixels;
mod previews;
mod recovery;
mod room;
#[cfg(test)]
pub(crate) mod scarcity;
mod self_check;
mod stages;
mod text;

pub use batch::BatchChoice;
pub use generate::{
    Generate, Generated, GroupJob, MemoryInfo, ModelInfo, Monitor, PictureUse, PromptSupport, StageTimings, Unwatched,
};
pub use load::LoadOptions;
pub use pipeline::InferencePipeline;
pub use room::TilingChoice;
pub use stages::{PreparedStage, Stage};
pub use text::{EncodedText, literal_prompt};
