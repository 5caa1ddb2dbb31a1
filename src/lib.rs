//! darkroom: an HTTP image-generation worker.
//!
//! The modules in reading order, each knowing only those below it.

pub mod config;
pub mod error;

pub mod command;
pub mod server;

pub mod http;

pub mod bars;
pub mod drawing;
pub mod image_utils;
pub mod loading;
pub mod output;
pub mod signals;
pub mod telemetry;

pub mod engine;
pub mod pipeline;
pub mod sampling;

pub mod models;
pub mod nn;

pub use error::{Error, Result};
pub use server::{run, serve};
