//! Sampling: what is asked for, the noise levels to visit, and the rules that move latents between them.
//!
//! Owns [`SamplingConfig`], the schedules, the samplers, prediction types, guidance and seeded noise. It must not know
//! any network: a network reaches it as a function from latents and a noise level to denoised latents.

mod aligned;
mod batch;
mod beta;
mod bound;
mod config;
mod distilled;
mod edm;
mod guidance;
mod level;
mod noise;
mod prediction;
mod prompts;
mod samplers;
mod schedule;
mod scheduler_config;
mod scheduler_keys;
mod scheduler_options;
mod scheduler_reader;
mod solver;
mod spacing;
mod timesteps;
mod training;

pub use aligned::AlignedLevels;
pub use batch::BatchNoise;
pub(crate) use batch::select;
pub use bound::Bound;
pub use config::{
    DEFAULT_IMAGE_GUIDANCE_SCALE, DEFAULT_STRENGTH, Limits, SIDE_PX, SamplerKind, SamplingConfig, SpacingKind,
    steps_of_sigmas,
};
pub use guidance::{Guidance, Push, guided_steps};
pub use level::noisy;
pub use noise::NoiseGenerator;
pub use prediction::PredictionType;
pub use prompts::{CropOffset, LongPrompt, MAX_TOLD_PX, PictureSize, PromptSyntax};
pub use samplers::{Asked, Between, Denoise, Sampler, Stepped};
pub use schedule::{Level, Schedule, SecondLook, Step, steps_of_strength};
pub use scheduler_config::SchedulerConfig;
pub use scheduler_keys::Setting;
pub use scheduler_options::{BetaSchedule, FinalSigmas, Interpolation, SchedulerOptions, TimestepSpacing};
pub use solver::{Algorithm, Bh, Edm, Solver, SolverType, UniPcOptions, Variance};
