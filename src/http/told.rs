//! The parts of a request's body that say how a picture is told to Stable Diffusion XL: its sizes, and what was cut away.

use serde::Deserialize;

use super::{problem::Problem, values::Whole};
use crate::sampling::{CropOffset, MAX_TOLD_PX, PictureSize};

/// A picture's size in pixels, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SizeBody {
    width: Option<Whole>,
    height: Option<Whole>,
}

/// What was cut away, in pixels, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CropBody {
    left: Option<Whole>,
    top: Option<Whole>,
}

impl SizeBody {
    /// The size in this `field`.
    pub(super) fn size(self, field: &'static str) -> Result<PictureSize, Problem> {
        let (Some(width), Some(height)) = (self.width, self.height) else {
            return Err(Problem::invalid(field, "lacks a side; width and height are wanted"));
        };
        let side = |name, given| side(field, name, given, 1);
        Ok(PictureSize { width: side("width", width)?, height: side("height", height)? })
    }
}

impl CropBody {
    /// The offset in this `field`; a side that is not named is 0.
    pub(super) fn offset(self, field: &'static str) -> Result<CropOffset, Problem> {
        let offset = |name, given: Option<Whole>| given.map_or(Ok(0), |given| side(field, name, given, 0));
        Ok(CropOffset { left: offset("left", self.left)?, top: offset("top", self.top)? })
    }
}

/// One side, `least` pixels or more.
fn side(field: &'static str, name: &str, given: Whole, least: u32) -> Result<u32, Problem> {
    let pixels = given.get().filter(|pixels| (least..=MAX_TOLD_PX).contains(pixels));
    pixels
        .ok_or_else(|| Problem::invalid(field, format!("has a {name} of {given}; {least} to {MAX_TOLD_PX} is allowed")))
}
