//! Guidance: how far images are pushed along what they are told, away from what the network says without it.
//!
//! Owns the arithmetic on the network's outputs, and which steps it is for. Next: the outputs become denoised latents.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// How far one image is pushed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Push {
    /// Along its prompt.
    pub scale: f64,
    /// Along the picture that it edits; `None` where the network is shown none.
    pub image_scale: Option<f64>,
    /// φ of Lin et al. 2023, section 3.4: 0 leaves the guided output's deviation as it is, 1 makes it that of the output
    /// with the prompt.
    pub rescale: f64,
}

/// The steps of `count` that are guided: step `i` where `start <= i / count < end`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "steps are few")]
pub fn guided_steps(start: f64, end: f64, count: usize) -> Range<usize> {
    let before = |part: f64| (0..count).take_while(|step| (*step as f64) / (count as f64) < part).count();
    before(start)..before(end)
}

/// How far each image of a batch is pushed.
#[derive(Debug)]
pub struct Guidance {
    scales: PerImage,
    image_scales: Option<PerImage>,
    /// `None` where no image is rescaled.
    rescales: Option<PerImage>,
}

/// A factor of each image of a batch.
#[derive(Debug)]
enum PerImage {
    /// One for all.
    Same(f64),
    /// Each has its own: `(b, 1, 1, 1)` f32.
    Each(Tensor),
}

impl PerImage {
    #[expect(clippy::cast_possible_truncation, reason = "latents are f32")]
    fn new(factors: &[f64], device: &Device) -> Result<Self> {
        if let Some(first) = factors.first().filter(|first| factors.iter().all(|factor| factor == *first)) {
            return Ok(Self::Same(*first));
        }
        let factors: Vec<f32> = factors.iter().map(|factor| *factor as f32).collect();
        Ok(Self::Each(Tensor::from_slice(&factors, (factors.len(), 1, 1, 1), device)?))
    }

    fn times(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Same(factor) => (x * *factor)?,
            Self::Each(factors) => x.broadcast_mul(factors)?,
        })
    }
}

impl Guidance {
    /// The guidance of a batch of images. All of them edit a picture or none does.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub fn new(pushes: &[Push], device: &Device) -> Result<Self> {
        let per_image = |of: fn(&Push) -> f64| PerImage::new(&pushes.iter().map(of).collect::<Vec<_>>(), device);
        let image_scales: Option<Vec<f64>> = pushes.iter().map(|push| push.image_scale).collect();
        let rescales = pushes.iter().any(|push| push.rescale > 0.0);
        Ok(Self {
            scales: per_image(|push| push.scale)?,
            image_scales: image_scales.map(|scales| PerImage::new(&scales, device)).transpose()?,
            rescales: if rescales { Some(per_image(|push| push.rescale)?) } else { None },
        })
    }

    /// How many outputs of the network there are for each image.
    #[must_use]
    pub const fn passes(&self) -> usize {
        if self.image_scales.is_some() { 3 } else { 2 }
    }

    /// Classifier-free guidance (Ho and Salimans 2022) on a network's outputs: those of all images without their prompts
    /// before those with them, `(2b, c, h, w)` to `(b, c, h, w)` f32. Where pictures are edited (Brooks et al. 2023,
    /// equation 3), there are `3b`: with nothing, with the picture, with the picture and the prompt.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) for a batch of another size.
    pub fn guide(&self, outputs: &Tensor) -> Result<Tensor> {
        let images = outputs.dim(0)? / self.passes();
        let of_pass = |pass: usize| outputs.narrow(0, pass * images, images);
        let (without, with) = (of_pass(0)?, of_pass(self.passes() - 1)?);
        let guided = match &self.image_scales {
            None => (&without + self.scales.times(&(&with - &without)?)?)?,
            Some(image_scales) => {
                let shown = of_pass(1)?;
                let along_text = self.scales.times(&(&with - &shown)?)?;
                let along_picture = image_scales.times(&(shown - &without)?)?;
                ((without + along_text)? + along_picture)?
            }
        };
        match &self.rescales {
            Some(rescales) => rescaled(&guided, &with, rescales),
            None => Ok(guided),
        }
    }
}

/// Guided outputs with deviations nearer to those of the outputs with the prompt (Lin et al. 2023, equations 14 to 16).
fn rescaled(guided: &Tensor, with: &Tensor, rescales: &PerImage) -> Result<Tensor> {
    let ratio = (deviation(with)? / deviation(guided)?)?;
    // φ σ_pos / σ_cfg + (1 - φ)
    let factor = (rescales.times(&(ratio - 1.0)?)? + 1.0)?;
    Ok(guided.broadcast_mul(&factor)?)
}

/// The standard deviation of each image, `(b, c, h, w)` to `(b, 1, 1, 1)`, in f32.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let values = x.flatten_from(1)?.to_dtype(DType::F32)?;
    let centred = values.broadcast_sub(&values.mean_keepdim(1)?)?;
    Ok(centred.sqr()?.mean_keepdim(1)?.sqrt()?.reshape(((), 1, 1, 1))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{NoiseGenerator, select};

    const PLAIN: Push = Push { scale: 7.5, image_scale: None, rescale: 0.0 };

    fn numbers(count: usize, shape: (usize, usize, usize, usize)) -> Tensor {
        Tensor::from_vec(NoiseGenerator::new(9).normals(count), shape, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The largest difference between each image guided together and alone.
    fn largest_difference(pushes: [Push; 2]) -> f32 {
        let guidance = Guidance::new(&pushes, &Device::Cpu).unwrap();
        let passes = guidance.passes();
        let outputs = numbers(2 * passes * 6, (2 * passes, 1, 2, 3));
        let guided = guidance.guide(&outputs).unwrap();
        let mut largest = 0.0_f32;
        for (image, push) in pushes.into_iter().enumerate() {
            let rows: Vec<usize> = (0..passes).map(|pass| 2 * pass + image).collect();
            let own = select(&outputs, &rows).unwrap();
            let alone = Guidance::new(&[push], &Device::Cpu).unwrap().guide(&own).unwrap();
            let together = values(&guided.narrow(0, image, 1).unwrap());
            let differences = together.iter().zip(values(&alone)).map(|(a, b)| (a - b).abs());
            largest = differences.fold(largest, f32::max);
        }
        largest
    }

    #[test]
    fn each_image_is_guided_by_its_own_scales() {
        assert_eq!(largest_difference([PLAIN, Push { scale: 2.0, ..PLAIN }]), 0.0);
        assert!(largest_difference([Push { rescale: 0.7, ..PLAIN }, PLAIN]) < 1e-5);
        let edits = |scale, image_scale| Push { scale, image_scale: Some(image_scale), ..PLAIN };
        assert_eq!(largest_difference([edits(7.5, 1.5), edits(3.0, 2.0)]), 0.0);
    }

    #[test]
    fn rescaling_gives_the_guided_output_the_deviation_of_the_one_with_the_prompt() {
        let outputs = numbers(2 * 24, (2, 1, 4, 6));
        let of = |rescale: f64| {
            let guided = Guidance::new(&[Push { rescale, ..PLAIN }], &Device::Cpu).unwrap().guide(&outputs).unwrap();
            values(&deviation(&guided).unwrap())[0]
        };
        let wanted = values(&deviation(&outputs.narrow(0, 1, 1).unwrap()).unwrap())[0];
        assert!(of(0.0) > 2.0 * wanted, "guidance makes it larger: {}", of(0.0));
        assert!((of(1.0) - wanted).abs() < 1e-5 * wanted);
        assert!((of(0.5) - (of(0.0) + wanted) / 2.0).abs() < 1e-5 * of(0.0));
    }

    #[test]
    fn a_step_is_guided_from_the_start_on_and_before_the_end() {
        assert_eq!(guided_steps(0.0, 1.0, 7), 0..7);
        assert_eq!(guided_steps(0.3, 0.7, 10), 3..7);
        assert_eq!(guided_steps(0.31, 0.71, 10), 4..8);
        assert_eq!(guided_steps(0.5, 1.0, 1), 1..1);
        assert!(guided_steps(0.55, 0.59, 10).is_empty());
    }
}
