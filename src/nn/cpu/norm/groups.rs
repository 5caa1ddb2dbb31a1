//! What a group norm multiplies each channel of an image with and adds.

use rayon::prelude::*;

use super::{Affine, NormalMaps, ROWS};
use crate::nn::cpu::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes},
};

/// What each channel of an image is multiplied with and then has added, in f32.
#[derive(Debug)]
pub struct Factors {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

/// How the values of a group are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    pub count: f64,
    pub mean: f64,
    /// The sum of squares about the mean.
    pub squares: f64,
}

impl Moments {
    /// Those of both groups' values together (Chan et al. 1983).
    pub fn and(self, other: Self) -> Self {
        let (count, apart) = (self.count + other.count, other.mean - self.mean);
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + apart * share,
            squares: self.squares + other.squares + apart * apart * self.count * share,
        }
    }
}

/// The factors that normalise each image's groups of channels.
pub fn group_factors<E: Element>(isa: Isa, maps: &NormalMaps<'_, E>) -> Vec<Factors> {
    group_moments(isa, maps).iter().map(|moments| factors(moments, maps.affine)).collect()
}

/// How each image's groups of channels are spread.
pub fn group_moments<E: Element>(isa: Isa, maps: &NormalMaps<'_, E>) -> Vec<Vec<Moments>> {
    let NormalMaps { data, groups, affine, .. } = *maps;
    let (pixels, channels) = (maps.pixels(), maps.channels());
    assert!(data.len() == maps.images() * pixels * channels, "maps are whole");
    assert!(channels.is_multiple_of(groups) && affine.bias.len() == channels, "groups divide channels");
    let of_image = |image: &[E]| {
        let origin: Vec<f32> = image[..channels].iter().map(|x| x.widen()).collect();
        let parts: Vec<Sums> = image.par_chunks(ROWS * channels).map(|rows| sums(isa, rows, &origin)).collect();
        moments(&parts, &origin, pixels, groups)
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

/// How each group is spread. The variance is found about each channel's first value and then moved to the mean (Chan et
/// al. 1983), so that a mean far from zero costs no digits.
#[expect(clippy::cast_precision_loss, reason = "a map has fewer than 2^52 pixels")]
fn moments(parts: &[Sums], origin: &[f32], pixels: usize, groups: usize) -> Vec<Moments> {
    let width = origin.len() / groups;
    let count = pixels as f64;
    let sum =
        |of: fn(&Sums) -> &Vec<f32>, channel: usize| parts.iter().map(|part| f64::from(of(part)[channel])).sum::<f64>();
    let of_group = |group: usize| {
        let own = (group * width..(group + 1) * width).map(|channel| {
            let (first, second) = (sum(|sums| &sums.first, channel), sum(|sums| &sums.second, channel));
            (f64::from(origin[channel]) + first / count, second - first * first / count)
        });
        let own: Vec<(f64, f64)> = own.collect();
        let mean = own.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
        let squares = own.iter().map(|(own, squares)| squares + count * (own - mean).powi(2)).sum::<f64>();
        Moments { count: count * width as f64, mean, squares }
    };
    (0..groups).map(of_group).collect()
}

/// What each channel is multiplied with and has added, so that groups of these moments become normal.
#[expect(clippy::cast_possible_truncation, reason = "f32 is what maps are in")]
pub fn factors(moments: &[Moments], affine: Affine<'_>) -> Factors {
    let channels = affine.weight.len();
    let width = channels / moments.len();
    let mut scale = vec![0.0; channels];
    let mut shift = vec![0.0; channels];
    for (group, Moments { count, mean, squares }) in moments.iter().enumerate() {
        let deviation = (squares / count + affine.epsilon).sqrt();
        for channel in group * width..(group + 1) * width {
            let factor = f64::from(affine.weight[channel]) / deviation;
            scale[channel] = factor as f32;
            shift[channel] = (f64::from(affine.bias[channel]) - mean * factor) as f32;
        }
    }
    Factors { scale, shift }
}
