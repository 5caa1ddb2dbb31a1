//! Sampling: what is asked for, the noise levels to visit, and the rules that move latents between them.
//!
//! Owns [`SamplingConfig`], the schedules, the samplers, prediction types, guidance and seeded noise. It must not know
//! any network: a network reaches it as a function from latents and a noise level to denoised latents.

mod config;

pub use config::{Limits, SamplerKind, SamplingConfig, SpacingKind};
