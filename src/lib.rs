//! darkroom: an HTTP image-generation worker.
//!
//! As a library, without HTTP:
//!
//! ```
//! use std::sync::Arc;
//!
//! use darkroom::{
//!     engine::{GenerationEngine, GenerationRequest, GenerationResponse},
//!     image_utils::image_to_base64,
//!     pipeline::{InferencePipeline, LoadOptions},
//!     sampling::SamplingConfig,
//! };
//! use tokio::sync::mpsc;
//!
//! # #[tokio::main]
//! # async fn main() -> darkroom::Result<()> {
//! let pipeline = Arc::new(InferencePipeline::load(&LoadOptions::default(), &mut |_| {})?);
//! let mut engine = GenerationEngine::new(10);
//! engine.start(pipeline);
//!
//! let config = SamplingConfig { prompt: "a red apple".into(), steps: 20, ..Default::default() };
//! let (response_tx, mut responses) = mpsc::channel(64);
//! engine.submit(GenerationRequest::new("my-job", config), response_tx).await?;
//! let mut drawn = 0;
//! while let Some(response) = responses.recv().await {
//!     match response {
//!         GenerationResponse::Progress { step, total, .. } => println!("{step}/{total}"),
//!         GenerationResponse::Complete { images, .. } => {
//!             for image in &images {
//!                 println!("{} characters of base64", image_to_base64(image)?.len());
//!             }
//!             drawn = images.len();
//!         }
//!         GenerationResponse::Error { message, .. } => eprintln!("failed: {message}"),
//!         _ => {}
//!     }
//! }
//! assert_eq!(drawn, 1);
//! engine.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! The modules in reading order, each knowing only those below it.

pub mod config;
pub mod environment;
pub mod error;

pub mod bench;
pub mod command;
pub mod server;

pub mod http;

pub mod connections;

pub mod bars;
pub mod drawing;
pub mod image_utils;
pub mod imaging;
pub mod infotext;
pub mod lines;
pub mod listen;
pub mod loading;
pub mod memory;
pub mod naming;
pub mod output;
pub mod pictures;
pub mod redraw;
pub mod signals;
pub mod telemetry;
pub mod threads;

pub mod engine;
pub mod pipeline;
pub mod sampling;

pub mod models;
pub mod nn;

mod json;

pub use error::{Error, Result};
pub use server::{run, serve};
