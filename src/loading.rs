//! From what the configuration names to something that draws.
//!
//! Owns the one place where the pipeline is put into the worker. It blocks: the server and the command line call it on
//! a thread of its own.

use std::sync::Arc;

use crate::{
    Result,
    config::ModelConfig,
    pipeline::{Generate, InferencePipeline, LoadOptions},
    sampling::Limits,
};

/// How far a model's loading is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LoadStage {
    /// Its files are read.
    Reading {
        /// How much is done, 0 to 1.
        fraction: f32,
    },
    /// It draws for the first time, for nobody.
    Warming,
}

/// Loads the model that `config` names, reporting each stage.
///
/// # Errors
///
/// When the model cannot be found or is not what it should be, naming the file, and the tensor where one is at fault.
pub fn load_model(
    config: &ModelConfig,
    limits: Limits,
    report: &mut dyn FnMut(LoadStage),
) -> Result<Arc<dyn Generate>> {
    Ok(Arc::new(load_pipeline(config, limits, report)?))
}

/// Loads it as the one kind of pipeline that there is.
///
/// # Errors
///
/// As [`load_model`].
pub fn load_pipeline(
    config: &ModelConfig,
    limits: Limits,
    report: &mut dyn FnMut(LoadStage),
) -> Result<InferencePipeline> {
    let options = LoadOptions {
        source: config.source()?,
        device: config.device,
        dtype: config.dtype,
        limits,
        vae_tiling: config.vae_tiling,
        memory_limit: config.memory_limit,
        batch: config.batch,
    };
    let pipeline = InferencePipeline::load(&options, &mut |fraction| report(LoadStage::Reading { fraction }))?;
    report(LoadStage::Warming);
    pipeline.warm_up()?;
    Ok(pipeline)
}
