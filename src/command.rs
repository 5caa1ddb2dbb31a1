//! `darkroom generate`: a picture without a server.
//!
//! Owns the way from flags to files. It draws through the same engine as the server, so that the two cannot differ.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::DynamicImage;
use tokio::sync::mpsc;

use crate::{
    Error, Result,
    bars::{bar, loading_bar, show_stage},
    config::{GenerateConfig, PictureConfig},
    drawing::{DrawingParameters, random_seed},
    engine::{CancelReason, ErrorCode, GenerationEngine, GenerationRequest, GenerationResponse},
    imaging::PictureTexts,
    loading::LoadStage,
    output::{OutputFormat, OutputOptions, encode},
    pictures::{Encoded, GivenPictures, read_file},
    pipeline::{Generate, ModelInfo},
    redraw::{Beside, Recorded, Source, check_beside},
    sampling::{SamplingConfig, steps_of_sigmas},
};

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// What was asked for cannot be.
    #[error("{0}")]
    BadArgument(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
    /// Somebody stopped it.
    #[error("interrupted")]
    Interrupted,
}

impl From<Error> for GenerateError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidParameter { .. } | Error::UnsupportedParameter { .. } => Self::BadArgument(error.to_string()),
            Error::Interrupted => Self::Interrupted,
            error => Self::Failed(error.to_string()),
        }
    }
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// The seed that draws it again.
    pub seed: u64,
}

/// Draws what `config` asks for with what `load` gives, and writes the files. `interrupted` stops it.
///
/// # Errors
///
/// [`GenerateError`]; no half-written file is left behind.
pub async fn generate<L>(
    config: &GenerateConfig,
    interrupted: impl Future<Output = ()>,
    load: L,
) -> Result<Vec<Written>, GenerateError>
where
    L: FnOnce(&mut dyn FnMut(LoadStage)) -> Result<Arc<dyn Generate>> + Send + 'static,
{
    // What is wrong with the arguments alone is said before the model is loaded.
    let (picture, source) = with_source(config.picture.clone()).await?;
    let output = output_options(&picture)?;
    tokio::pin!(interrupted);
    let pipeline = tokio::select! {
        pipeline = load_shown(load) => pipeline?,
        () = &mut interrupted => return Err(GenerateError::Interrupted),
    };
    let (limits, pictures) = (pipeline.model().limits, pipeline.model().pictures);
    let given = given_pictures(&picture);
    let pictures = tokio::task::spawn_blocking(move || given.decode(&limits, pictures))
        .await
        .unwrap_or_else(|error| Err(Error::Panicked { message: format!("while a picture was read: {error}") }))?;
    let sampling = sampling_config(&picture, pipeline.model(), pictures)?;
    sampling.validate(&pipeline.model().limits)?;
    pipeline.check(&sampling)?;

    let mut engine = GenerationEngine::new(1);
    engine.start(Arc::clone(&pipeline));
    let images = draw(&engine, &sampling, interrupted).await?;
    engine.shutdown().await;
    tokio::task::spawn_blocking(move || {
        let model = pipeline.model();
        if output.metadata
            && let Some(warning) = source.and_then(|source| source.warning(model.digest.wait()))
        {
            tracing::warn!("{warning}");
        }
        let texts = |index| DrawingParameters::of_image(&sampling, index).texts(model, &output);
        let files = encode_all(&images, &output, texts)?;
        write_all(&files, sampling.seed, &picture.output)
    })
    .await
    .unwrap_or_else(|error| Err(GenerateError::Failed(error.to_string())))
}

/// What is asked for, with what it leaves out filled in from the picture that is to be drawn again, if there is one.
async fn with_source(mut picture: PictureConfig) -> Result<(PictureConfig, Option<Source>), GenerateError> {
    let Some(path) = picture.from.take() else { return Ok((picture, None)) };
    let read = move || {
        let bytes = read_file(&path).map_err(|error| match error {
            Error::Image(message) => Error::invalid("from", message),
            error => error,
        })?;
        Source::read(&bytes)
    };
    let source = tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| Err(Error::Panicked { message: format!("while a picture was read: {error}") }))?;
    draw_again(&mut picture, Recorded::parse(&source.request)?)?;
    Ok((picture, Some(source)))
}

/// Fills in what `picture` leaves out.
fn draw_again(picture: &mut PictureConfig, mut recorded: Recorded) -> Result<()> {
    // A spacing replaces levels that are listed, and levels replace a spacing and its number of steps.
    if picture.sigmas.is_some() {
        (recorded.scheduler, recorded.steps) = (None, None);
    } else if picture.scheduler.is_some() {
        recorded.sigmas = None;
    }
    let given = Beside { image: picture.image.is_some(), mask: picture.mask.is_some() || picture.extend.is_some() };
    // A picture that was edited has no strength.
    let had_image = recorded.strength.is_some() || recorded.image_guidance_scale.is_some();
    check_beside(had_image, recorded.mask_blur.is_some(), given)?;
    // Every field by its name, so that none is forgotten. Each file holds one image.
    macro_rules! fill_in {
        ($output:ident; $($field:ident),* $(,)?) => {
            let Recorded { $($field,)* n: _, $output } = recorded;
            $(picture.$field = picture.$field.take().or($field);)*
        };
    }
    fill_in!(
        output;
        prompt,
        negative_prompt,
        width,
        height,
        steps,
        guidance_scale,
        seed,
        sampler,
        scheduler,
        sigmas,
        clip_skip,
        eta,
        prompt_syntax,
        long_prompt,
        prompt_2,
        negative_prompt_2,
        original_size,
        crop,
        target_size,
        strength,
        mask_blur,
        inpaint_padding,
        guidance_rescale,
        guidance_start,
        guidance_end,
        image_guidance_scale,
    );
    let is_jpeg = picture.output.extension().is_some_and(|extension| {
        OutputFormat::from_extension(&extension.to_string_lossy()) == Some(OutputFormat::Jpeg)
    });
    picture.quality = picture.quality.or_else(|| output?.quality.filter(|_| is_jpeg));
    Ok(())
}

fn output_options(picture: &PictureConfig) -> Result<OutputOptions, GenerateError> {
    let extension = picture.output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let format = OutputFormat::from_extension(extension).ok_or_else(|| {
        let path = picture.output.display();
        GenerateError::BadArgument(format!(
            "output: is {path}; a name that ends in .png, .jpg, .jpeg or .webp is allowed"
        ))
    })?;
    let quality = OutputOptions::parse_quality(format, picture.quality.map(i128::from))?;
    Ok(OutputOptions { format, quality, metadata: !picture.no_metadata })
}

async fn load_shown<L>(load: L) -> Result<Arc<dyn Generate>>
where
    L: FnOnce(&mut dyn FnMut(LoadStage)) -> Result<Arc<dyn Generate>> + Send + 'static,
{
    let load = move || {
        let bar = loading_bar();
        let loaded = load(&mut |stage| {
            show_stage(&bar, stage);
        });
        bar.finish_and_clear();
        loaded
    };
    tokio::task::spawn_blocking(load)
        .await
        .unwrap_or_else(|error| Err(Error::Panicked { message: format!("while the model was loaded: {error}") }))
}

fn given_pictures(picture: &PictureConfig) -> GivenPictures {
    GivenPictures {
        image: picture.image.clone().map(Encoded::File),
        mask: picture.mask.clone().map(Encoded::File),
        strength: picture.strength,
        mask_blur: picture.mask_blur,
        mask_invert: picture.mask_invert,
        inpaint_padding: picture.inpaint_padding,
        extend: picture.extend,
    }
}

fn sampling_config(picture: &PictureConfig, model: &ModelInfo, pictures: SamplingConfig) -> Result<SamplingConfig> {
    let pictures = SamplingConfig { width: picture.width, height: picture.height, ..pictures };
    let (width, height) = model.size_for(&pictures)?;
    Ok(SamplingConfig {
        prompt: picture.prompt.clone().unwrap_or_default(),
        negative_prompt: picture.negative_prompt.clone(),
        width: Some(width),
        height: Some(height),
        steps: picture.steps.unwrap_or(picture.sigmas.as_deref().map_or(model.default_steps, steps_of_sigmas)),
        guidance_scale: picture.guidance_scale.unwrap_or(model.default_guidance_scale),
        seed: picture.seed.unwrap_or_else(|| random_seed(picture.n)),
        n: picture.n,
        sampler: Some(picture.sampler.unwrap_or(model.default_sampler)),
        scheduler: picture.scheduler.or_else(|| picture.sigmas.is_none().then_some(model.default_scheduler)),
        sigmas: picture.sigmas.clone(),
        prompt_syntax: picture.prompt_syntax.unwrap_or_default(),
        long_prompt: picture.long_prompt.unwrap_or_default(),
        prompt_2: picture.prompt_2.clone(),
        negative_prompt_2: picture.negative_prompt_2.clone(),
        original_size: picture.original_size,
        crop: picture.crop,
        target_size: picture.target_size,
        clip_skip: picture.clip_skip.unwrap_or(0),
        eta: picture.eta,
        guidance_rescale: picture.guidance_rescale.unwrap_or(0.0),
        guidance_start: picture.guidance_start.unwrap_or(0.0),
        guidance_end: picture.guidance_end.unwrap_or(1.0),
        image_guidance_scale: picture.image_guidance_scale.or(model.pictures.image_guidance_scale()),
        ..pictures
    })
}

/// Draws, showing each step.
async fn draw(
    engine: &GenerationEngine,
    sampling: &SamplingConfig,
    mut interrupted: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Result<Vec<DynamicImage>, GenerateError> {
    let request = GenerationRequest::new(uuid::Uuid::now_v7().to_string(), sampling.clone());
    let cancellation = request.cancellation.clone();
    let (response_tx, mut responses) = mpsc::channel(32);
    engine.submit(request, response_tx).await?;
    let bar = bar((sampling.steps_drawn() * sampling.n) as u64, "drawing");
    let mut stopping = false;
    loop {
        let response = tokio::select! {
            response = responses.recv() => response,
            () = &mut interrupted, if !stopping => {
                stopping = true;
                cancellation.cancel(CancelReason::Requested);
                continue;
            }
        };
        match response {
            Some(GenerationResponse::Progress { step, total, .. }) => {
                bar.set_length(total as u64);
                bar.set_position(step as u64);
            }
            Some(GenerationResponse::Complete { images, warnings, .. }) => {
                bar.finish_and_clear();
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                return Ok(images);
            }
            Some(GenerationResponse::Error { code, message, .. }) => {
                return Err(match code {
                    ErrorCode::InvalidParameter | ErrorCode::UnsupportedParameter => {
                        GenerateError::BadArgument(message)
                    }
                    ErrorCode::DeadlineExceeded | ErrorCode::GenerationFailed => GenerateError::Failed(message),
                });
            }
            Some(GenerationResponse::Cancelled { .. }) => return Err(GenerateError::Interrupted),
            Some(_) => {}
            None => return Err(GenerateError::Failed("the engine ended without a picture".to_owned())),
        }
    }
}

/// The bytes of each picture's file, which says what `texts` gives for it.
fn encode_all(
    images: &[DynamicImage],
    output: &OutputOptions,
    texts: impl Fn(usize) -> PictureTexts,
) -> Result<Vec<Vec<u8>>> {
    images.iter().enumerate().map(|(index, image)| encode(image, output, &texts(index))).collect()
}

fn write_all(files: &[Vec<u8>], seed: u64, path: &Path) -> Result<Vec<Written>, GenerateError> {
    let mut written = Vec::with_capacity(files.len());
    for (index, bytes) in files.iter().enumerate() {
        let path = if files.len() == 1 { path.to_owned() } else { numbered(path, index) };
        write_atomically(&path, bytes)
            .map_err(|error| GenerateError::Failed(format!("{}: cannot be written: {error}", path.display())))?;
        written.push(Written { path, seed: seed + index as u64 });
    }
    Ok(written)
}

/// `fox.png` becomes `fox-0.png`.
fn numbered(path: &Path, index: usize) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_os_string();
    let mut name = part(path.file_stem());
    name.push(format!("-{index}."));
    name.push(part(path.extension()));
    path.with_file_name(name)
}

/// Writes beside the file and renames, so that nobody ever sees a part of a picture.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(name);
    let done = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path));
    if done.is_err() {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(&beside);
    }
    done
}
