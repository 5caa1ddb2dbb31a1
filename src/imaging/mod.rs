//! Pictures as rows of bytes: what has to be done to them, bit for bit as the reference does it, before they become
//! tensors.
//!
//! Owns the resampling filter, the reading of a client's picture as RGB, and what a file says of its picture. It must not know HTTP or tensors.

mod canvas;
mod flatten;
mod metadata;
mod resize;

pub use canvas::{Margins, Region, cover};
pub use flatten::{flatten, oriented};
pub use metadata::{Inspected, PictureTexts, inspect};
pub use resize::{Plane, resize};
