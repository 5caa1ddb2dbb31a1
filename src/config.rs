//! What the command line and the environment say, parsed before anything is opened or bound.
//!
//! Owns one small structure per concern. It must not know how a request is answered or how a model is drawn with.
//! Next: `main` runs what it says. The file is long because every flag is declared here, with the text of its help.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::{
    Result,
    connections::ConnectionLimits,
    drawing::MAX_SEED,
    engine::BoardLimits,
    imaging::Margins,
    listen::Host,
    models::{DeviceChoice, DtypeChoice, ModelSource},
    naming::{AllowedHost, BasePath},
    pipeline::{BatchChoice, TilingChoice},
    sampling::{CropOffset, Limits, LongPrompt, PictureSize, PromptSyntax, SamplerKind, SpacingKind},
    threads,
};

/// A day: more than that is a mistake in the unit.
const LONGEST_WAIT_SECONDS: u64 = 86_400;

const LONG_ABOUT: &str = "\
darkroom draws pictures from text. It serves over HTTP, or draws one picture and ends.

Alone it serves, the same as `darkroom serve`. It takes a prompt at POST /generate and answers with a job, with the \
job's events as they happen, or with the picture itself, whichever the request accepts. GET /ready says when it can \
draw.";

const EXAMPLES: &str = "\
Examples:
  darkroom                                      serve the bundled model on http://127.0.0.1:7860
  darkroom --port 0 --model ./sd-turbo          serve a directory in diffusers layout, on a free port
  darkroom --host 0.0.0.0 --device cuda         serve other machines, drawing on a GPU
  darkroom generate \"a red fox\" -o fox.png      draw one picture and end
  darkroom bench                                measure how fast this machine draws

  curl -o fox.png -H 'Accept: image/png' --json '{\"prompt\": \"a red fox\"}' 127.0.0.1:7860/generate

Each flag can be set in the environment, too: DARKROOM_PORT=8080 darkroom. An empty variable is not set.
DARKROOM_LOG filters the log: debug, or darkroom=trace
Exit codes: 0 done, 1 failed, 2 bad arguments, 64 bad configuration, 130 interrupted";

const GENERATE_EXAMPLES: &str = "\
Examples:
  darkroom generate \"a red fox in the snow\" --output fox.png
  darkroom generate \"a red fox\" -o fox.jpg --quality 80 --steps 30 --sampler dpmpp_2m --scheduler karras
  darkroom generate \"a red fox\" -o fox.png --seed 42 --n 4        writes fox-0.png to fox-3.png, seeds 42 to 45";

const BENCH_EXAMPLES: &str = "\
Examples:
  darkroom bench                                measure the bundled model at its own size
  darkroom bench --model ./sd15 --size 256 --runs 5 --json

One line a stage: the median of the runs, after one that does not count; what it multiplied and added a second; and the \
share of `peak`, which is the most that the processor did when it did nothing else.
  load        from the start to the first picture, which is small
  peak        multiply-adds on registers, on all threads
  text_pair   the text encoders, on two prompts
  unet_pair   the denoiser, on a guidance pair
  vae_decode  the decoder, on one picture
  vae_encode  the encoder, on one picture
  image       a request to a PNG's bytes: 20 steps of the checkpoint's own sampler, guided
With --json a line is an object: stage, seconds, gflops, peak_share, dtype, size, threads. The most memory that was \
held goes to stderr.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "darkroom",
    version,
    about = "An HTTP image-generation worker",
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do; to serve, when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve, when nothing else is to be done.
    #[command(flatten)]
    pub serve: ServeConfig,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, parsed once")]
pub enum Command {
    /// Serve over HTTP until told to stop (the default)
    #[command(after_help = EXAMPLES)]
    Serve(ServeConfig),
    /// Draw without a server and write the picture to a file
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(GenerateConfig),
    /// Measure how fast each stage of a drawing is here, and its share of what the processor can do
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchConfig),
}

impl Command {
    /// What to draw with.
    #[must_use]
    pub fn model(&self) -> &ModelConfig {
        match self {
            Self::Serve(config) => &config.model,
            Self::Generate(config) => &config.model,
            Self::Bench(config) => &config.model,
        }
    }

    /// What is said on stderr.
    #[must_use]
    pub fn log(&self) -> LogConfig {
        match self {
            Self::Serve(config) => config.log,
            Self::Generate(config) => config.log,
            Self::Bench(config) => config.log,
        }
    }

    /// What is logged when the environment says nothing: a server's life, or only what is wrong.
    #[must_use]
    pub const fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) => "info",
            Self::Generate(_) | Self::Bench(_) => "warn",
        }
    }
}

impl Cli {
    /// What to do, the default filled in.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.serve))
    }
}

/// Everything that serving needs to know.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Where to listen and to whom.
    #[command(flatten)]
    pub listen: ListenConfig,
    /// What to draw with.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What one request may cost.
    #[command(flatten)]
    pub cost: CostConfig,
    /// How work waits, and how long things live.
    #[command(flatten)]
    pub work: WorkConfig,
    /// What is said on stderr.
    #[command(flatten)]
    pub log: LogConfig,
}

impl Default for ServeConfig {
    /// Every flag at its default, whatever the environment says.
    fn default() -> Self {
        Self {
            listen: ListenConfig {
                host: Host::Address(IpAddr::from([127, 0, 0, 1])),
                port: 7860,
                cors_allow_origin: Vec::new(),
                max_body_bytes: 33_554_432,
                max_connections: 1024,
                head_timeout_seconds: 10,
                keep_alive_seconds: 75,
                allowed_host: Vec::new(),
                base_path: BasePath::default(),
            },
            model: ModelConfig {
                model: Some("bundled".to_owned()),
                device: DeviceChoice::Auto,
                dtype: DtypeChoice::Auto,
                threads: None,
                batch: BatchChoice::Auto,
                vae_tiling: TilingChoice::Auto,
                memory_limit: None,
            },
            cost: CostConfig { max_batch: 8, max_pixels: 4_194_304 },
            work: WorkConfig {
                queue_capacity: 10,
                result_ttl_seconds: 600,
                shutdown_grace_seconds: 30,
                drain_seconds: 0,
                ready_when_full: true,
            },
            log: LogConfig { log_format: None },
        }
    }
}

/// Where to listen, and whom to answer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct ListenConfig {
    /// Address to listen on, or a name for it, such as localhost; 0.0.0.0 is every network this machine is in, and :: those
    /// of IPv6, too
    #[arg(long, env = "DARKROOM_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: Host,
    /// Port to listen on; 0 picks a free one, which is logged and printed
    #[arg(long, env = "DARKROOM_PORT", default_value_t = 7860)]
    pub port: u16,
    /// Web page origin whose scripts may use this worker, such as <https://example.org>, or * for all; may be repeated
    #[arg(long, env = "DARKROOM_CORS_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub cors_allow_origin: Vec<String>,
    /// Largest request body; what is larger is refused with 413
    #[arg(long, env = "DARKROOM_MAX_BODY_BYTES", default_value_t = 33_554_432, value_name = "BYTES", value_parser = at_least_one)]
    pub max_body_bytes: usize,
    /// Most open connections; lowered at the start to what the limit of open files leaves. When all are in use, one that
    /// waits for a request makes room, and /health, /ready and /model are answered in any case
    #[arg(long, env = "DARKROOM_MAX_CONNECTIONS", default_value_t = 1024, value_name = "CONNECTIONS", value_parser = at_least_one)]
    pub max_connections: usize,
    /// How long a request's head may take to come, from its first byte or from the connection's start
    #[arg(long, env = "DARKROOM_HEAD_TIMEOUT_SECONDS", default_value_t = 10, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=LONGEST_WAIT_SECONDS))]
    pub head_timeout_seconds: u64,
    /// How long a connection is kept open between two requests; longer than a proxy in front keeps it, so that the proxy
    /// never sends a request into a connection that is being closed
    #[arg(long, env = "DARKROOM_KEEP_ALIVE_SECONDS", default_value_t = 75, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=LONGEST_WAIT_SECONDS))]
    pub keep_alive_seconds: u64,
    /// Host name that requests may ask for, besides IP addresses and localhost; .example.org is the domain and all below
    /// it, *.example.org all below it, * any host; may be repeated. Other names get 421 when --host is a loopback
    /// address, or once this is given [default: none]
    #[arg(long, env = "DARKROOM_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<AllowedHost>,
    /// Path under which clients see this worker behind a proxy, such as /darkroom; every URL in an answer begins with it,
    /// and requests are answered with it and without it
    #[arg(long, env = "DARKROOM_BASE_PATH", value_name = "PATH", default_value = "", hide_default_value = true)]
    pub base_path: BasePath,
}

impl ListenConfig {
    /// How many connections there may be, and how long each may wait.
    #[must_use]
    pub fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            most: self.max_connections,
            head: Duration::from_secs(self.head_timeout_seconds),
            idle: Duration::from_secs(self.keep_alive_seconds),
        }
    }
}

/// What to draw with.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelConfig {
    /// The model: "bundled", a directory in diffusers layout or a repository of a hub's cache, or a hub id such
    /// as owner/name; HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count
    #[arg(long, env = "DARKROOM_MODEL")]
    #[cfg_attr(feature = "bundled-model", arg(default_value = "bundled"))]
    pub model: Option<String>,
    /// The device: auto, cpu, cuda, cuda:1 or metal
    #[arg(long, env = "DARKROOM_DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// The networks' number type: auto, f32, f16 or bf16
    #[arg(long, env = "DARKROOM_DTYPE", default_value_t = DtypeChoice::Auto)]
    pub dtype: DtypeChoice,
    /// Threads that draw on the CPU, 1 to 1024 [default: the physical cores that this process may use]
    #[arg(long, env = "DARKROOM_THREADS", value_parser = thread_count)]
    pub threads: Option<usize>,
    /// Images that a network pass draws together, of one request or of several alike that wait: auto, or 1 to 64. auto is 1
    /// on the CPU, which gains nothing from more, and up to 8 on other devices
    #[arg(long, env = "DARKROOM_BATCH", default_value_t = BatchChoice::Auto, value_name = "IMAGES")]
    pub batch: BatchChoice,
    /// Whether the autoencoder takes large pictures in strips, with the same result: auto, on or off; auto does when whole
    /// ones do not fit in what is free
    #[arg(long, env = "DARKROOM_VAE_TILING", default_value_t = TilingChoice::Auto)]
    pub vae_tiling: TilingChoice,
    /// Most memory that a drawing may take besides the model's weights, such as 4GiB or a number of bytes; what needs more is
    /// refused [default: what the device, the machine or its control group has]
    #[arg(long, env = "DARKROOM_MEMORY_LIMIT", value_name = "SIZE", value_parser = byte_size)]
    pub memory_limit: Option<usize>,
}

impl ModelConfig {
    /// How many threads draw, the default filled in.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(threads::default_threads)
    }

    /// Where the model comes from.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenFile`](crate::Error::BrokenFile) when it names nothing that can be a model,
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) when none is named and none is built in.
    pub fn source(&self) -> Result<ModelSource> {
        match self.model.as_deref() {
            Some("bundled") if !cfg!(feature = "bundled-model") => {
                Err(crate::Error::invalid("model", "is \"bundled\", but no model is built into this program"))
            }
            Some(model) => model.parse(),
            None => Err(crate::Error::invalid("model", "is missing, and no model is built into this program")),
        }
    }
}

/// What one request may cost.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Limits")]
pub struct CostConfig {
    /// Most images in one request
    #[arg(long, env = "DARKROOM_MAX_BATCH", default_value_t = 8, value_name = "IMAGES", value_parser = at_least_one)]
    pub max_batch: usize,
    /// Most pixels in one image, drawn or sent
    #[arg(long, env = "DARKROOM_MAX_PIXELS", default_value_t = 4_194_304, value_name = "PIXELS", value_parser = at_least_one)]
    pub max_pixels: usize,
}

impl CostConfig {
    /// The same, as the drawing side reads it.
    #[must_use]
    pub fn limits(self) -> Limits {
        Limits { max_pixels: self.max_pixels, max_batch: self.max_batch }
    }
}

/// How work waits, and how long things live.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Work")]
pub struct WorkConfig {
    /// Requests that may wait; one more is refused with 429
    #[arg(long, env = "DARKROOM_QUEUE_CAPACITY", default_value_t = 10, value_name = "REQUESTS", value_parser = at_least_one)]
    pub queue_capacity: usize,
    /// How long a finished job and its pictures are kept
    #[arg(long, env = "DARKROOM_RESULT_TTL_SECONDS", default_value_t = 600, value_name = "SECONDS")]
    pub result_ttl_seconds: u64,
    /// On SIGTERM or SIGINT: how long the running job may go on before it is cancelled, and how long results that nobody
    /// has fetched are kept at hand; a second signal ends at once
    #[arg(long, env = "DARKROOM_SHUTDOWN_GRACE_SECONDS", default_value_t = 30, value_name = "SECONDS")]
    pub shutdown_grace_seconds: u64,
    /// On SIGTERM or SIGINT: how long to go on answering at least, with 503 at /ready and to new work. 0 suits a terminal,
    /// where Ctrl-C of an idle worker should end it; behind a load balancer, give it the time to notice, such as 5
    #[arg(long, env = "DARKROOM_DRAIN_SECONDS", default_value_t = 0, value_name = "SECONDS", value_parser = value_parser!(u64).range(..=LONGEST_WAIT_SECONDS))]
    pub drain_seconds: u64,
    /// Whether GET /ready stays 200 while the queue is full; with false, an orchestrator takes a full worker out of its
    /// service, and clients cannot fetch their pictures meanwhile
    #[arg(long, env = "DARKROOM_READY_WHEN_FULL", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub ready_when_full: bool,
}

impl WorkConfig {
    /// How much the job board keeps.
    #[must_use]
    pub fn board_limits(self) -> BoardLimits {
        BoardLimits { result_ttl: Duration::from_secs(self.result_ttl_seconds), ..BoardLimits::default() }
    }

    /// How long the running job may go on once the worker is told to stop.
    #[must_use]
    pub fn shutdown_grace(self) -> Duration {
        Duration::from_secs(self.shutdown_grace_seconds)
    }

    /// How long the worker answers at least once it is told to stop.
    #[must_use]
    pub fn drain_wait(self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// What is said on stderr.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Log")]
pub struct LogConfig {
    /// Form of the log on stderr [default: pretty on a terminal, else json]
    #[arg(long, env = "DARKROOM_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

/// A form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One object a line, for programs.
    Json,
}

/// Everything that drawing without a server needs to know.
#[derive(Debug, Clone, Args)]
pub struct GenerateConfig {
    /// What to draw, and where to write it.
    #[command(flatten)]
    pub picture: PictureConfig,
    /// What to draw with.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What the request may cost.
    #[command(flatten)]
    pub cost: CostConfig,
    /// What is said on stderr.
    #[command(flatten)]
    pub log: LogConfig,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct BenchConfig {
    /// Side of the square pictures in pixels, a multiple of 8 from 64 to 2048 [default: the model's longer side]
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    pub size: Option<usize>,
    /// Runs of each stage, of which the median counts
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    pub runs: usize,
    /// Stages to measure [default: all]
    #[arg(long, num_args = 1.., value_name = "STAGE")]
    pub stages: Vec<BenchStage>,
    /// Write one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// What to draw with.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What is said on stderr.
    #[command(flatten)]
    pub log: LogConfig,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BenchStage {
    /// The text encoders, on a prompt and a negative prompt
    TextPair,
    /// One step of a guided drawing
    UnetPair,
    /// From latents to pixels
    VaeDecode,
    /// From pixels to latents
    VaeEncode,
    /// A guided drawing in 20 steps, from the request to a PNG's bytes
    Image,
}

/// A picture as the command line asks for it. What is left out is the model's own.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Picture")]
pub struct PictureConfig {
    /// What to draw
    #[arg(required_unless_present = "from")]
    pub prompt: Option<String>,
    /// File to write; .png, .jpg, .jpeg or .webp decides the format; of several images, image 0 of fox.png is fox-0.png
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What to steer away from; Stable Diffusion XL draws one picture without it and another for ""
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Denoising steps, 1 to 150 [default: the model's]
    #[arg(long)]
    pub steps: Option<usize>,
    /// How closely to follow the prompt, 0 to 30 [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub guidance_scale: Option<f64>,
    /// The same seed draws the same picture [default: drawn at random and reported]
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    pub seed: Option<u64>,
    /// How many images; image i has seed + i
    #[arg(long, default_value_t = 1, value_name = "IMAGES")]
    pub n: usize,
    /// ddim, pndm, euler, euler_ancestral, heun, dpmpp_2m, dpm_2, dpm_2_ancestral, lms, uni_pc, deis, ddpm,
    /// dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde, dpm_single, lcm, tcd, edm_euler or edm_dpmpp_2m [default:
    /// the model's]
    #[arg(long)]
    pub sampler: Option<SamplerKind>,
    /// Spacing of the noise levels: checkpoint, karras, exponential, beta, lu, sgm_uniform, simple, ddim_uniform, kl_optimal,
    /// ays, leading, linspace or trailing [default: the model's]
    #[arg(long)]
    pub scheduler: Option<SpacingKind>,
    /// The noise levels themselves, falling, one for each step, such as 14.6,7.1,2.2,0
    #[arg(long, value_name = "SIGMA,..", value_delimiter = ',', allow_negative_numbers = true)]
    pub sigmas: Option<Vec<f64>>,
    /// How many of the text encoder's last layers to leave out [default: 0]
    #[arg(long, value_name = "LAYERS")]
    pub clip_skip: Option<usize>,
    /// How much noise each step of ddim adds, 0 to 1 [default: 0]; for tcd it is gamma [default: 0.3]
    #[arg(long)]
    pub eta: Option<f64>,
    /// Picture to start from; the drawing takes its size, rounded down to multiples of 8
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// What of the picture is drawn anew: white
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mask: Option<PathBuf>,
    /// How much of the picture is drawn anew, above 0 and up to 1 [default: 0.75; 1 with --extend]
    #[arg(long, requires = "image")]
    pub strength: Option<f64>,
    /// How far the mask's edge fades, in pixels [default: 0]
    #[arg(long, value_name = "PIXELS")]
    pub mask_blur: Option<f64>,
    /// Draw anew what is black in the mask
    #[arg(long, requires = "mask")]
    pub mask_invert: bool,
    /// Draw only the mask's region, this much wider on each side, at the model's full size, and put it back
    #[arg(long, value_name = "PIXELS")]
    pub inpaint_padding: Option<u32>,
    /// Grow the picture on its sides and draw what is new
    #[arg(long, value_name = "LEFT,TOP,RIGHT,BOTTOM", value_parser = margins, requires = "image")]
    pub extend: Option<Margins>,
    /// weights: (more), (more:1.3), less in square brackets, and BREAK mean something in prompts, and \( is a bracket;
    /// plain: nothing does [default: weights]
    #[arg(long, value_name = "SYNTAX")]
    pub prompt_syntax: Option<PromptSyntax>,
    /// chunks: a prompt that is too long for the text encoder is read in up to 10 parts; truncate: its end is left out
    /// [default: chunks]
    #[arg(long, value_name = "WAY")]
    pub long_prompt: Option<LongPrompt>,
    /// Stable Diffusion XL: what the second text encoder reads [default: the prompt]
    #[arg(long, value_name = "TEXT")]
    pub prompt_2: Option<String>,
    /// Stable Diffusion XL: what the second text encoder reads to steer away from [default: the negative prompt]
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt_2: Option<String>,
    /// Stable Diffusion XL: the size that the picture is said to have had before it was scaled [default: its own]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = picture_size)]
    pub original_size: Option<PictureSize>,
    /// Stable Diffusion XL: the pixels that are said to have been cut away [default: 0,0]
    #[arg(long, value_name = "LEFT,TOP", value_parser = crop_offset)]
    pub crop: Option<CropOffset>,
    /// Stable Diffusion XL: the size that the picture is said to be meant for [default: its own]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = picture_size)]
    pub target_size: Option<PictureSize>,
    /// How far guidance is kept from overexposing, 0 to 1 [default: 0]
    #[arg(long, value_name = "PART")]
    pub guidance_rescale: Option<f64>,
    /// The part of the steps before which there is no guidance, 0 to 1 [default: 0]
    #[arg(long, value_name = "PART")]
    pub guidance_start: Option<f64>,
    /// The part of the steps from which on there is no guidance, 0 to 1 [default: 1]
    #[arg(long, value_name = "PART")]
    pub guidance_end: Option<f64>,
    /// Models that edit pictures: how closely to follow the picture, 1 to 30 [default: 1.5]
    #[arg(long, value_name = "SCALE")]
    pub image_guidance_scale: Option<f64>,
    /// JPEG quality, 1 to 100 [default: 90]
    #[arg(long)]
    pub quality: Option<u8>,
    /// Leave the request out of the file, which holds it otherwise
    #[arg(long)]
    pub no_metadata: bool,
    /// Picture that darkroom drew, to be drawn again; what other flags say counts first
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
}

/// The units of sizes, with how many bytes each is.
const BYTE_UNITS: [(&str, usize); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("", 1),
];

/// Reads a size in bytes.
fn byte_size(text: &str) -> Result<usize, String> {
    let unit = BYTE_UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, bytes)));
    let size = unit.and_then(|(number, bytes)| number.trim().parse::<usize>().ok()?.checked_mul(*bytes));
    size.filter(|size| *size > 0).ok_or_else(|| {
        "a number of bytes, at least 1, is allowed, with or without one of KiB, MiB, GiB, kB, MB, GB".to_owned()
    })
}

/// Reads a count that must not be zero.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 is needed".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("a whole number from 1 is needed".to_owned()),
    }
}

/// Reads a seed. How large it may be is for the request to say.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!("a whole number from 0 to {MAX_SEED} is needed; leave --seed out for a random one, which is reported")
    })
}

/// Reads how many threads draw.
fn thread_count(text: &str) -> Result<usize, String> {
    let most = threads::MAX_THREADS;
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("a whole number from 1 to {most} is needed"))
}

/// Reads how far a picture grows on each side.
fn margins(text: &str) -> Result<Margins, String> {
    let sides: Option<Vec<u32>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides.as_deref() {
        Some(&[left, top, right, bottom]) if [left, top, right, bottom].iter().all(|side| *side <= 2048) => {
            Ok(Margins { left, top, right, bottom })
        }
        _ => Err("four whole numbers from 0 to 2048 are needed, such as 0,0,64,0".to_owned()),
    }
}

/// Reads a picture's size. How large it may be is for the request to say.
fn picture_size(text: &str) -> Result<PictureSize, String> {
    let size = text.split_once('x').and_then(|(width, height)| {
        Some(PictureSize { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
    });
    size.ok_or_else(|| "a width and a height are needed, such as 1024x768".to_owned())
}

/// Reads how much was cut away.
fn crop_offset(text: &str) -> Result<CropOffset, String> {
    let offset = text
        .split_once(',')
        .and_then(|(left, top)| Some(CropOffset { left: left.trim().parse().ok()?, top: top.trim().parse().ok()? }));
    offset.ok_or_else(|| "two whole numbers are needed, such as 0,64".to_owned())
}

/// Reads a picture's side.
fn side(text: &str) -> Result<usize, String> {
    let side = text.parse().ok().filter(|side| (64..=2048).contains(side) && side % 8 == 0);
    side.ok_or_else(|| "a multiple of 8 from 64 to 2048 is needed".to_owned())
}

/// Reads what a browser sends as `Origin`, or `*`.
fn origin(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let well_formed = authority.is_some_and(|rest| {
        !rest.is_empty() && !rest.contains(['/', '?', '#', ' ']) && rest.chars().all(|c| c.is_ascii_graphic())
    });
    if text == "*" || well_formed {
        return Ok(text.to_owned());
    }
    Err("a scheme, a host and maybe a port are needed, such as https://example.org, without a path; or *".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"darkroom").chain(args)).map(Cli::into_command)
    }

    #[test]
    fn the_definition_is_consistent_and_every_serving_flag_has_a_variable() {
        Cli::command().debug_assert();
        for arg in Cli::command().get_arguments().filter(|arg| arg.get_long().is_some()) {
            let name = arg.get_long().unwrap_or_default();
            if ["help", "version"].contains(&name) {
                continue;
            }
            let variable = format!("DARKROOM_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn sigmas_are_numbers_with_commas() {
        let Ok(Command::Generate(config)) = parse(&["generate", "a fox", "-o", "fox.png", "--sigmas", "14.6,7.1,0"])
        else {
            panic!("sigmas are not read")
        };
        assert_eq!(config.picture.sigmas, Some(vec![14.6, 7.1, 0.0]));
        assert!(parse(&["generate", "a fox", "-o", "fox.png", "--sigmas", "14.6,,x"]).is_err());
    }

    #[test]
    fn nothing_said_means_to_serve_with_the_documented_defaults() {
        for args in [&[][..], &["serve"]] {
            let Ok(Command::Serve(config)) = parse(args) else { panic!("{args:?}") };
            assert_eq!(format!("{config:?}"), format!("{:?}", ServeConfig::default()));
        }
    }

    #[test]
    fn names_are_listed_with_commas_or_one_by_one() {
        let args = ["--allowed-host", "a.test,.b.test", "--allowed-host", "c.test:80", "--base-path", "/darkroom/"];
        let Ok(Command::Serve(config)) = parse(&args) else { panic!() };
        assert_eq!(config.listen.allowed_host.len(), 3);
        assert_eq!(config.listen.base_path.as_str(), "/darkroom");
        let Ok(Command::Serve(config)) = parse(&["--ready-when-full", "false"]) else { panic!() };
        assert!(!config.work.ready_when_full);
        let error = parse(&["generate", "a fox", "-o", "fox.png", "--seed", "-1"]).unwrap_err().to_string();
        assert!(error.contains("leave --seed out for a random one"), "{error}");
    }

    #[test]
    fn generate_takes_the_parameters_of_a_request() {
        let args = ["generate", "a fox", "-o", "fox.png", "--n", "2", "--sampler", "euler_a", "--seed", "7"];
        let Ok(Command::Generate(config)) = parse(&args) else { panic!() };
        assert_eq!((config.picture.n, config.picture.seed), (2, Some(7)));
        assert_eq!(config.picture.sampler, Some(SamplerKind::EulerAncestral));
        assert_eq!((config.picture.prompt_syntax, config.picture.long_prompt), (None, None));
        let told = ["--prompt-2", "snow", "--negative-prompt-2", "", "--original-size", "96x64", "--crop", "8,16"];
        let more = ["--target-size", "1024x768", "--prompt-syntax", "plain", "--long-prompt", "truncate"];
        let args = [&["generate", "a fox", "-o", "fox.png"][..], &told, &more].concat();
        let Ok(Command::Generate(config)) = parse(&args) else { panic!() };
        let picture = config.picture;
        assert_eq!((picture.prompt_2.as_deref(), picture.negative_prompt_2.as_deref()), (Some("snow"), Some("")));
        assert_eq!(picture.original_size, Some(PictureSize { width: 96, height: 64 }));
        assert_eq!(picture.target_size, Some(PictureSize { width: 1024, height: 768 }));
        assert_eq!(picture.crop, Some(CropOffset { left: 8, top: 16 }));
        assert_eq!(
            (picture.prompt_syntax, picture.long_prompt),
            (Some(PromptSyntax::Plain), Some(LongPrompt::Truncate))
        );
    }

    #[test]
    fn what_cannot_be_is_a_bad_argument() {
        for args in [
            &["--queue-capacity", "0"][..],
            &["--max-connections", "0"],
            &["--head-timeout-seconds", "0"],
            &["--keep-alive-seconds", "86401"],
            &["--drain-seconds", "5s"],
            &["--port", "70000"],
            &["--host", "localhost:80"],
            &["--device", "gpu"],
            &["--threads", "0"],
            &["--threads", "1025"],
            &["generate", "a fox", "-o", "fox.png", "--threads", "two"],
            &["--cors-allow-origin", "example.org"],
            &["--cors-allow-origin", "https://example.org/path"],
            &["--log-format", "xml"],
            &["--allowed-host", "http://example.org"],
            &["--allowed-host", "example.org,a/b"],
            &["--base-path", "darkroom"],
            &["--base-path", "/a/../b"],
            &["--ready-when-full", "maybe"],
            &["--ready-when-full"],
            &["generate", "a fox", "-o", "fox.png", "--seed", "-1"],
            &["generate", "a fox"],
            &["generate", "a fox", "-o", "fox.png", "--original-size", "64"],
            &["generate", "a fox", "-o", "fox.png", "--crop", "1,-1"],
            &["generate", "a fox", "-o", "fox.png", "--prompt-syntax", "a1111"],
            &["generate", "a fox", "-o", "fox.png", "--long-prompt", "cut"],
            &["bench", "--size", "100"],
            &["bench", "--size", "4096"],
            &["bench", "--runs", "0"],
            &["bench", "--dtype", "f64"],
            &["draw"],
        ] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
        let Ok(Command::Serve(config)) = parse(&["--model", "/no/such/model"]) else { panic!() };
        assert!(config.model.source().is_err());
    }
}
