//! darkroom: an HTTP image-generation worker.
//!
//! The modules in reading order, each knowing only those below it.

pub mod config;
pub mod error;
pub mod http;
pub mod image_utils;

pub mod engine;
pub mod pipeline;
pub mod sampling;

pub mod models;
pub mod nn;

pub use error::{Error, Result};
