//! The range that x₀ is kept in, for networks that draw pixels.

use candle_core::Tensor;

use crate::Result;

/// What is done with x₀ before a step takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Nothing, as latents need it.
    None,
    /// It is cut off at ± this.
    Range(f64),
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): it is cut off at ± the quantile of its absolute values, and
    /// divided by that. The quantile is taken as 1 at least.
    Dynamic {
        /// Which quantile, 0..=1.
        ratio: f64,
        /// The most that the quantile is taken as.
        most: f64,
        /// What x₀ is multiplied by for this: the data's deviation, where latents are in units of it.
        scale: f64,
    },
}

impl Bound {
    /// x₀ within the bound: `(b, c, h, w)` f32. Each image has its own quantile.
    pub(super) fn of(self, denoised: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(denoised),
            Self::Range(range) => Ok(denoised.clamp(-range, range)?),
            Self::Dynamic { ratio, most, scale } => {
                let images = denoised.dim(0)?;
                let kept = (0..images).map(|image| {
                    let one = (denoised.narrow(0, image, 1)? * scale)?;
                    let values = one.abs()?.flatten_all()?.to_vec1::<f32>()?;
                    let threshold = f64::from(quantile(values, ratio)).max(1.0).min(most);
                    Ok((one.clamp(-threshold, threshold)? / (threshold * scale))?)
                });
                Ok(Tensor::cat(&kept.collect::<Result<Vec<_>>>()?, 0)?)
            }
        }
    }
}

/// The quantile of values, linearly between the two nearest, as torch has it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the ratio is from 0 to 1, and latents are few"
)]
fn quantile(mut values: Vec<f32>, ratio: f64) -> f32 {
    values.sort_by(f32::total_cmp);
    let rank = ratio * (values.len() - 1) as f64;
    let below = values[rank.floor() as usize];
    let above = values[rank.ceil() as usize];
    below + (above - below) * rank.fract() as f32
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn each_image_has_its_own_threshold_of_one_at_least() {
        let values = [[[[4.0_f32, -2.0, 1.0]]], [[[0.5, -0.25, 0.1]]]];
        let x = Tensor::new(&values, &Device::Cpu).unwrap();
        let kept = Bound::Dynamic { ratio: 0.75, most: 10.0, scale: 1.0 }.of(x.clone()).unwrap();
        let kept = kept.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Between 2 and 4 the quantile is 3.
        for (found, wanted) in kept.into_iter().zip([1.0, -2.0 / 3.0, 1.0 / 3.0, 0.5, -0.25, 0.1]) {
            assert!((found - wanted).abs() < 1e-6, "{found}, wanted {wanted}");
        }
        let most = Bound::Dynamic { ratio: 1.0, most: 2.0, scale: 1.0 }.of(x).unwrap();
        assert_eq!(most.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..2], [1.0, -1.0]);
    }
}
