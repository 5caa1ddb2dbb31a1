//! The parts of a request's body that say how a picture is told to Stable Diffusion XL: its sizes, and what was cut away.

use serde::Deserialize;

use super::{problem::Problem, values::Whole};
use crate::sampling::{CropOffset, PictureSize};

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
    /// The size in this `field`. How large it may be is for the request to say.
    pub(super) fn size(self, field: &'static str) -> Result<PictureSize, Problem> {
        let (Some(width), Some(height)) = (self.width, self.height) else {
            return Err(Problem::invalid(field, "lacks a side; width and height are wanted"));
        };
        Ok(PictureSize { width: side(field, "width", width)?, height: side(field, "height", height)? })
    }
}

impl CropBody {
    /// The offset in this `field`; a side that is not named is 0.
    pub(super) fn offset(self, field: &'static str) -> Result<CropOffset, Problem> {
        let offset = |name, given: Option<Whole>| given.map_or(Ok(0), |given| side(field, name, given));
        Ok(CropOffset { left: offset("left", self.left)?, top: offset("top", self.top)? })
    }
}

fn side(field: &'static str, name: &str, given: Whole) -> Result<u32, Problem> {
    given.get().ok_or_else(|| Problem::invalid(field, format!("has a {name} of {given}; 0 to 16384 is allowed")))
}
