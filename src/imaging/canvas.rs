//! Which part of a picture is drawn, and on what canvas: margins to grow by, and the region around a mask.

use image::{GrayImage, ImageBuffer, Luma, RgbImage, imageops};

use super::{Plane, resize};

/// How far a picture grows on each side, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Margins {
    /// To the left.
    pub left: u32,
    /// Above.
    pub top: u32,
    /// To the right.
    pub right: u32,
    /// Below.
    pub bottom: u32,
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub x: u32,
    /// The first row.
    pub y: u32,
    /// How many columns.
    pub width: u32,
    /// How many rows.
    pub height: u32,
}

impl Margins {
    /// Whether nothing grows.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// `picture` with room around it, its edges continued outwards.
    #[must_use]
    pub fn around<P: Plane + Clone>(self, picture: &P) -> P {
        if self.is_empty() {
            return picture.clone();
        }
        let (width, height) = picture.size();
        let inside = |at: u32, before: u32, size: u32| at.saturating_sub(before).min(size - 1) as usize;
        let (grown_width, grown_height) = (width + self.left + self.right, height + self.top + self.bottom);
        let mut bytes = Vec::with_capacity(grown_width as usize * grown_height as usize * P::CHANNELS);
        for y in 0..grown_height {
            let row = inside(y, self.top, height) * width as usize;
            for x in 0..grown_width {
                let first = (row + inside(x, self.left, width)) * P::CHANNELS;
                bytes.extend_from_slice(&picture.bytes()[first..first + P::CHANNELS]);
            }
        }
        P::from_bytes(grown_width, grown_height, bytes)
    }

    /// The mask of a picture of `width` by `height` that grew: white in the room around it, inside as `mask` has it, or
    /// black.
    #[must_use]
    pub fn mask(self, width: u32, height: u32, mask: Option<&GrayImage>) -> GrayImage {
        let mut grown =
            GrayImage::from_pixel(width + self.left + self.right, height + self.top + self.bottom, Luma([u8::MAX]));
        let old = mask.map_or_else(|| GrayImage::new(width, height), |mask| resize(mask, width, height));
        imageops::replace(&mut grown, &old, self.left.into(), self.top.into());
        grown
    }
}

impl Region {
    /// The region of all that is not black in `mask`, `padding` pixels wider on each side, and then grown to the
    /// proportions of a drawing of `width` by `height` as far as the mask reaches; `None` for a mask that is all black.
    /// The numbers are diffusers' `get_crop_region`'s.
    #[must_use]
    pub fn around(mask: &GrayImage, padding: u32, (width, height): (u32, u32)) -> Option<Self> {
        let white = || mask.enumerate_pixels().filter(|(.., value)| value.0[0] > 0);
        let (left, right) = (white().map(|(x, ..)| x).min()?, white().map(|(x, ..)| x).max()? + 1);
        let (top, bottom) = (white().map(|(_, y, _)| y).min()?, white().map(|(_, y, _)| y).max()? + 1);
        let (most_x, most_y) = mask.dimensions();
        let x = (left.saturating_sub(padding), (right + padding).min(most_x));
        let y = (top.saturating_sub(padding), (bottom + padding).min(most_y));
        let ratio = f64::from(width) / f64::from(height);
        let (across, down) = (f64::from(x.1 - x.0), f64::from(y.1 - y.0));
        let (x, y) = if across / down > ratio {
            (x, grow(y, across / ratio, most_y))
        } else {
            (grow(x, down * ratio, most_x), y)
        };
        Some(Self { x: x.0, y: y.0, width: x.1 - x.0, height: y.1 - y.0 })
    }

    /// This part of a picture.
    #[must_use]
    pub fn of<P: image::Pixel<Subpixel = u8> + 'static>(
        self,
        picture: &ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>> {
        imageops::crop_imm(picture, self.x, self.y, self.width, self.height).to_image()
    }

    /// Where a picture of this region's size lies on a canvas of `width` by `height` when it is enlarged or shrunk to fit,
    /// its proportions kept, in the middle.
    #[must_use]
    pub fn fitted(self, width: u32, height: u32) -> Self {
        let (own_width, own_height) = (u64::from(self.width), u64::from(self.height));
        let (wide, high) = (u64::from(width), u64::from(height));
        // Compared as products, so that equal proportions are equal.
        let flatter = wide * own_height < own_width * high;
        let side = |value: u64| u32::try_from(value.max(1)).unwrap_or(u32::MAX);
        let inner_width = if flatter { width } else { side(own_width * high / own_height) };
        let inner_height = if flatter { side(own_height * wide / own_width) } else { height };
        let (x, y) = (width / 2 - inner_width / 2, height / 2 - inner_height / 2);
        Self { x, y, width: inner_width, height: inner_height }
    }
}

/// A picture enlarged or shrunk to cover `width` by `height`, its proportions kept, and cut to that in its middle.
#[must_use]
pub fn cover(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (own_width, own_height) = (u64::from(picture.width()), u64::from(picture.height()));
    let flatter = u64::from(width) * own_height > own_width * u64::from(height);
    let side = |value: u64| u32::try_from(value.max(1)).unwrap_or(u32::MAX);
    let whole_width = if flatter { width } else { side(own_width * u64::from(height) / own_height) };
    let whole_height = if flatter { side(own_height * u64::from(width) / own_width) } else { height };
    let whole = resize(picture, whole_width.max(width), whole_height.max(height));
    let (x, y) = (whole.width() / 2 - width / 2, whole.height() / 2 - height / 2);
    Region { x: x.min(whole.width() - width), y: y.min(whole.height() - height), width, height }.of(&whole)
}

/// Grows a range to `wanted`, evenly on both ends, and shifts it back within 0 to `most`.
#[expect(clippy::cast_possible_truncation, reason = "sides are small and whole pixels are wanted")]
fn grow((first, end): (u32, u32), wanted: f64, most: u32) -> (u32, u32) {
    let (mut first, mut end, most) = (i64::from(first), i64::from(end), i64::from(most));
    let more = (wanted - (end - first) as f64) as i64;
    first -= more.div_euclid(2);
    end += more - more.div_euclid(2);
    if end >= most {
        first -= end - most;
        end = most;
    }
    if first < 0 {
        end -= first;
        first = 0;
    }
    let side = |value: i64| u32::try_from(value).unwrap_or(0);
    (side(first), side(end.min(most)))
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn a_picture_grows_with_its_edges_continued_and_the_room_white() {
        let picture = RgbImage::from_fn(2, 2, |x, y| Rgb([x as u8, y as u8, 7]));
        let margins = Margins { left: 1, top: 0, right: 2, bottom: 1 };
        let grown = margins.around(&picture);
        assert_eq!(grown.dimensions(), (5, 3));
        assert_eq!((grown.get_pixel(0, 0).0, grown.get_pixel(4, 2).0), ([0, 0, 7], [1, 1, 7]));
        let mask = margins.mask(2, 2, None);
        let white: Vec<bool> = mask.pixels().map(|pixel| pixel.0 == [255]).collect();
        assert_eq!(white[..5], [true, false, false, true, true]);
        assert!(white[10..].iter().all(|white| *white));
        let all = margins.mask(2, 2, Some(&GrayImage::from_pixel(4, 4, Luma([255]))));
        assert!(all.pixels().all(|pixel| pixel.0 == [255]));
    }

    #[test]
    fn a_fitted_picture_keeps_its_proportions() {
        let region = |width, height| Region { x: 9, y: 9, width, height };
        assert_eq!(region(50, 50).fitted(64, 64), Region { x: 0, y: 0, width: 64, height: 64 });
        assert_eq!(region(50, 25).fitted(64, 64), Region { x: 0, y: 16, width: 64, height: 32 });
        assert_eq!(region(25, 50).fitted(64, 64), Region { x: 16, y: 0, width: 32, height: 64 });
        assert_eq!(region(1, 1000).fitted(64, 64), Region { x: 32, y: 0, width: 1, height: 64 });
    }

    #[test]
    fn a_black_mask_has_no_region() {
        assert_eq!(Region::around(&GrayImage::new(8, 8), 4, (64, 64)), None);
    }
}
