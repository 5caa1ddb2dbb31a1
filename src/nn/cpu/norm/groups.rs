//! What a group norm multiplies each channel of an image with and adds.

use rayon::prelude::*;

use super::{Affine, NormalMaps, ROWS};
use crate::nn::cpu::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes},
};

/// What each channel of an image is multiplied with and then has added, in f32.
pub struct Factors {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

/// The factors that normalise each image's groups of channels.
pub fn group_factors<E: Element>(isa: Isa, maps: &NormalMaps<'_, E>) -> Vec<Factors> {
    let NormalMaps { data, groups, affine, .. } = *maps;
    let (pixels, channels) = (maps.pixels(), maps.channels());
    assert!(data.len() == maps.images() * pixels * channels, "maps are whole");
    assert!(channels.is_multiple_of(groups) && affine.bias.len() == channels, "groups divide channels");
    let of_image = |image: &[E]| {
        let origin: Vec<f32> = image[..channels].iter().map(|x| x.widen()).collect();
        let parts: Vec<Sums> = image.par_chunks(ROWS * channels).map(|rows| sums(isa, rows, &origin)).collect();
        factors(&parts, &origin, pixels, groups, affine)
    };
    data.par_chunks(pixels * channels).map(of_image).collect()
}

/// Each channel's sum, and its sum of squares, of values less the channel's first.
struct Sums {
    first: Vec<f32>,
    second: Vec<f32>,
}

fn sums<E: Element>(isa: Isa, rows: &[E], origin: &[f32]) -> Sums {
    let mut sums = Sums { first: vec![0.0; origin.len()], second: vec![0.0; origin.len()] };
    add_rows(isa, rows, origin, &mut sums);
    sums
}

versions! {
    fn add_rows<E: Element> = add_rows_body(rows: &[E], origin: &[f32], sums: &mut Sums)
}

/// Vectors of channels whose sums stay in registers while rows go by.
const VECTORS: usize = 2;

/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn add_rows_body<E: Element, L: Lanes>(rows: &[E], origin: &[f32], sums: &mut Sums) {
    let channels = origin.len();
    let mut column = 0;
    while column + VECTORS * LANES <= channels {
        // SAFETY: every row, the origin and the sums have as many numbers from this column on.
        unsafe { add_columns::<E, L, VECTORS>(rows, origin, sums, column) };
        column += VECTORS * LANES;
    }
    while column + LANES <= channels {
        // SAFETY: as above.
        unsafe { add_columns::<E, L, 1>(rows, origin, sums, column) };
        column += LANES;
    }
    if column == channels {
        return;
    }
    for row in rows.chunks_exact(channels) {
        let sums = sums.first.iter_mut().zip(&mut sums.second).skip(column);
        for ((x, origin), (first, second)) in row.iter().zip(origin).skip(column).zip(sums) {
            let x = x.widen() - origin;
            *first += x;
            *second += x * x;
        }
    }
}

/// The sums of `V` vectors of channels.
///
/// # Safety
///
/// There are as many channels from `column` on, and the processor has the instructions of `L`.
#[inline(always)]
unsafe fn add_columns<E: Element, L: Lanes, const V: usize>(
    rows: &[E],
    origin: &[f32],
    sums: &mut Sums,
    column: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut first, mut second, mut base) = ([L::splat(0.0); V], [L::splat(0.0); V], [L::splat(0.0); V]);
        for (part, base) in base.iter_mut().enumerate() {
            *base = L::load(origin.as_ptr().add(column + part * LANES));
        }
        for row in rows.chunks_exact(origin.len()) {
            for part in 0..V {
                let x: L = E::load(row.as_ptr().add(column + part * LANES));
                let x = x.sub(base[part]);
                first[part] = first[part].add(x);
                second[part] = x.mul_add(x, second[part]);
            }
        }
        for part in 0..V {
            first[part].store(sums.first.as_mut_ptr().add(column + part * LANES));
            second[part].store(sums.second.as_mut_ptr().add(column + part * LANES));
        }
    }
}

/// What each channel is multiplied with and has added. The variance is found about each channel's first value and then
/// moved to the mean (Chan et al. 1983), so that a mean far from zero costs no digits.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what maps are in")]
fn factors(parts: &[Sums], origin: &[f32], pixels: usize, groups: usize, affine: Affine<'_>) -> Factors {
    let channels = origin.len();
    let width = channels / groups;
    let count = pixels as f64;
    let sum =
        |of: fn(&Sums) -> &Vec<f32>, channel: usize| parts.iter().map(|part| f64::from(of(part)[channel])).sum::<f64>();
    let mut scale = vec![0.0; channels];
    let mut shift = vec![0.0; channels];
    for group in 0..groups {
        let members = group * width..(group + 1) * width;
        let moments = members.clone().map(|channel| {
            let (first, second) = (sum(|sums| &sums.first, channel), sum(|sums| &sums.second, channel));
            (f64::from(origin[channel]) + first / count, second - first * first / count)
        });
        let moments: Vec<(f64, f64)> = moments.collect();
        let mean = moments.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
        let squares = moments.iter().map(|(own, squares)| squares + count * (own - mean).powi(2)).sum::<f64>();
        let deviation = (squares / (count * width as f64) + affine.epsilon).sqrt();
        for channel in members {
            let factor = f64::from(affine.weight[channel]) / deviation;
            scale[channel] = factor as f32;
            shift[channel] = (f64::from(affine.bias[channel]) - mean * factor) as f32;
        }
    }
    Factors { scale, shift }
}
