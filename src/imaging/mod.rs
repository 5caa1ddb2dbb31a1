//! Pictures as rows of bytes: what has to be done to them, bit for bit as the reference does it, before they become
//! tensors.
//!
//! Owns the resampling filter and the reading of a client's picture as RGB. It must not know HTTP or tensors.

mod canvas;
mod flatten;
mod resize;

pub use canvas::{Margins, Region, cover};
pub use flatten::{flatten, oriented};
pub use resize::{Plane, resize};
