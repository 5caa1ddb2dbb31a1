//! What both ways into the worker share about a request: the seed that nobody chose, and what is written into a file.
//!
//! Owns no state. It must not know HTTP: the server and the command line both call it.

use rand::Rng;
use serde::Serialize;

use crate::sampling::{SamplerKind, SamplingConfig, SpacingKind};

/// The largest seed that a client can send and be sent: JSON readers keep integers exactly up to here.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// A seed that nobody chose, such that the last of `n` images has one that can be asked for again.
#[must_use]
pub fn random_seed(n: usize) -> u64 {
    rand::rng().random_range(0..=MAX_SEED.saturating_sub(n as u64))
}

/// Everything that decides a picture, by the names of the HTTP contract.
#[derive(Debug, Serialize)]
pub struct DrawingParameters<'a> {
    prompt: &'a str,
    negative_prompt: Option<&'a str>,
    width: Option<usize>,
    height: Option<usize>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    n: usize,
    sampler: Option<&'static str>,
    scheduler: Option<&'static str>,
    clip_skip: usize,
}

impl<'a> DrawingParameters<'a> {
    /// The request as a whole.
    #[must_use]
    pub fn of_request(config: &'a SamplingConfig) -> Self {
        Self {
            prompt: &config.prompt,
            negative_prompt: config.negative_prompt.as_deref(),
            width: config.width,
            height: config.height,
            steps: config.steps,
            guidance_scale: config.guidance_scale,
            seed: config.seed,
            n: config.n,
            sampler: config.sampler.map(SamplerKind::name),
            scheduler: config.scheduler.map(SpacingKind::name),
            clip_skip: config.clip_skip,
        }
    }

    /// The request that draws image `index` of `config` on its own: its pixels do not depend on its neighbours.
    #[must_use]
    pub fn of_image(config: &'a SamplingConfig, index: usize) -> Self {
        Self { seed: config.seed + index as u64, n: 1, ..Self::of_request(config) }
    }

    /// As JSON, which `POST /generate` takes again.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }
}
