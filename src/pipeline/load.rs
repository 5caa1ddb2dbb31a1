//! From the name of a model to a pipeline that draws with it.

use std::sync::Mutex;

use candle_core::DType;

use super::{
    BatchChoice, InferencePipeline, MemoryInfo, ModelInfo, PictureUse, TilingChoice,
    pipeline::Networks,
    room::Room,
    text::{self, TextEncoder},
};
use crate::{
    Error, Result,
    models::{
        BUNDLED_MODEL_NAME, Checkpoint, DeviceChoice, DtypeChoice, Hub, ModelSource, ModelSpec, PromptTokenizer,
        TextWindow, Unet, VaeDecoder, checkpoint_folder, device_name, repository_name,
    },
    nn::{LoadProgress, Weights},
    sampling::Limits,
};

/// What to load, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The model.
    pub source: ModelSource,
    /// The device that draws.
    pub device: DeviceChoice,
    /// The number type of the networks.
    pub dtype: DtypeChoice,
    /// What a request may cost.
    pub limits: Limits,
    /// How many images a network pass draws together.
    pub batch: BatchChoice,
    /// When the autoencoder's large maps are taken in strips.
    pub vae_tiling: TilingChoice,
    /// The most bytes of memory that a drawing may take besides the weights; no more than there are, in any case.
    pub memory_limit: Option<usize>,
}

impl Default for LoadOptions {
    /// The bundled model on the best device.
    fn default() -> Self {
        Self {
            source: ModelSource::Bundled,
            device: DeviceChoice::Auto,
            dtype: DtypeChoice::Auto,
            limits: Limits::default(),
            batch: BatchChoice::Auto,
            vae_tiling: TilingChoice::Auto,
            memory_limit: None,
        }
    }
}

impl InferencePipeline {
    /// Loads a model, on the calling thread. `progress` is told the part that is done, 0 to 1; a model from a hub is
    /// fetched first, which is its first half.
    ///
    /// # Errors
    ///
    /// What is wrong with the checkpoint, naming the file, the key or tensor, what was found and what is wanted; a device
    /// that is not there; a hub that does not answer.
    pub fn load(options: &LoadOptions, progress: &mut dyn FnMut(f32)) -> Result<Self> {
        let device = options.device.open()?;
        let dtype = options.dtype.resolve(&device);
        let (checkpoint, fetched) = locate(&options.source, progress)?;
        let mut report = |part: f32| progress(fetched + (1.0 - fetched) * part);
        let spec = ModelSpec::read(&checkpoint)?;

        // Every header is read before any tensor, so that a broken file is found at once.
        let loading = LoadProgress::new(&mut report);
        let open =
            |component: &str, dtype: DType| Weights::open(checkpoint.weights(component)?, &device, dtype, &loading);
        let vae_dtype = if spec.vae.force_upcast && dtype == DType::F16 { DType::F32 } else { dtype };
        let unet = open("unet", dtype)?;
        let vae = open("vae", vae_dtype)?;
        let encoders = spec.text_encoders.iter().map(|encoder| open(encoder.folder, dtype));
        let encoders = encoders.collect::<Result<Vec<_>>>()?;

        let encoder = |(number, weights): (usize, &Weights)| {
            let described = &spec.text_encoders[number];
            let config = &described.config;
            let window = TextWindow { tokens: config.max_position_embeddings, vocabulary: config.vocab_size };
            let tokenizer = PromptTokenizer::load(&checkpoint, described.tokenizer, window)?;
            TextEncoder::new(&spec, number, tokenizer, weights)
        };
        let text_encoders = encoders.iter().enumerate().map(encoder).collect::<Result<Vec<_>>>()?;
        check_windows(&spec, &checkpoint, &text_encoders)?;
        let of_text: usize = encoders.iter().map(Weights::bytes).sum();
        let weights_bytes = of_text + unet.bytes() + vae.bytes();
        let room = Room::new(options.vae_tiling, options.memory_limit, &device);
        let networks = Networks {
            text: text_encoders,
            unet: Unet::new(&spec.unet, &unet)?,
            vae: VaeDecoder::new(&spec.vae, &vae)?,
            vae_dtype,
            dtype,
            device: device.clone(),
        };
        let components = spec.text_encoders.iter().map(|encoder| encoder.folder).chain(["unet", "vae"]);
        let info = ModelInfo {
            name: name(&options.source),
            family: spec.family.name().to_owned(),
            device: device_name(&device),
            dtype: format!("{dtype:?}").to_lowercase(),
            width: spec.native_size().1,
            height: spec.native_size().0,
            default_steps: spec.default_steps,
            default_guidance_scale: spec.default_guidance_scale,
            default_sampler: spec
                .scheduler
                .own_sampler()
                .map_err(|message| Error::UnsupportedCheckpoint { path: checkpoint.path("scheduler"), message })?,
            samplers: spec.scheduler.samplers(),
            default_scheduler: spec.scheduler.own_spacing(),
            schedulers: spec.scheduler.spacings(),
            limits: options.limits,
            prompts: text::support(&spec, &networks.text),
            digest: checkpoint.digest(components)?,
            memory: MemoryInfo { weights_bytes, limit_bytes: room.limit },
            pictures: if spec.edits { PictureUse::Edit } else { PictureUse::Start },
        };
        Ok(Self {
            spec,
            info,
            networks,
            checkpoint,
            room,
            encoder: Mutex::default(),
            projection: Mutex::default(),
            batch: options.batch.resolve(&device),
            #[cfg(test)]
            scarcity: super::scarcity::Scarcity::default(),
        })
    }
}

/// Checks that the encoders' states can lie side by side.
fn check_windows(spec: &ModelSpec, checkpoint: &Checkpoint, encoders: &[TextEncoder]) -> Result<()> {
    let first = encoders[0].window();
    match encoders.iter().zip(&spec.text_encoders).find(|(encoder, _)| encoder.window() != first) {
        None => Ok(()),
        Some((encoder, described)) => Err(Error::UnsupportedCheckpoint {
            path: checkpoint.path(&format!("{}/tokenizer_config.json", described.tokenizer)),
            message: format!(
                "model_max_length leaves {} tokens, the first tokenizer gives {first}; they have to be the same",
                encoder.window()
            ),
        }),
    }
}

/// The checkpoint of a source, and the part of all the work that fetching it was.
fn locate(source: &ModelSource, progress: &mut dyn FnMut(f32)) -> Result<(Checkpoint, f32)> {
    match source {
        ModelSource::Bundled if cfg!(feature = "bundled-model") => Ok((Checkpoint::Bundled, 0.0)),
        ModelSource::Bundled => {
            let wanted = "this program was built without the feature \"bundled-model\"; name a directory or a hub id";
            Err(Error::MissingFile { path: BUNDLED_MODEL_NAME.into(), wanted: wanted.to_owned() })
        }
        ModelSource::Directory(path) => Ok((Checkpoint::Directory(checkpoint_folder(path)?), 0.0)),
        ModelSource::Hub(id) => {
            let hub = Hub::from_env().map_err(|message| Error::Hub { repository: id.clone(), message })?;
            let root = hub.fetch(id, &mut |part| progress(part / 2.0))?;
            Ok((Checkpoint::Directory(root), 0.5))
        }
    }
}

fn name(source: &ModelSource) -> String {
    match source {
        ModelSource::Bundled => BUNDLED_MODEL_NAME.to_owned(),
        ModelSource::Hub(id) => id.clone(),
        ModelSource::Directory(path) => {
            let full = path.canonicalize().unwrap_or_else(|_| path.clone());
            let folder = || full.file_name().map(|name| name.to_string_lossy().into_owned());
            repository_name(&full).or_else(folder).unwrap_or_else(|| path.display().to_string())
        }
    }
}
