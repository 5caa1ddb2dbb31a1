//! What a batch of images has of its own for each: noise, and a row of every tensor.

use candle_core::Tensor;

use super::NoiseGenerator;
use crate::Result;

/// The noise of a batch of images, each from its own generator, so that no image's noise depends on the batch that it is
/// drawn in.
#[derive(Debug, Clone)]
pub struct BatchNoise {
    generators: Vec<NoiseGenerator>,
}

impl BatchNoise {
    /// The noise of images with these generators, in their order.
    #[must_use]
    pub fn new(generators: Vec<NoiseGenerator>) -> Self {
        Self { generators }
    }

    /// The next noise of each image, in `x`'s shape `(b, c, h, w)`, f32.
    ///
    /// # Errors
    ///
    /// The tensor library's, for a batch of another size too.
    pub fn like(&mut self, x: &Tensor) -> Result<Tensor> {
        let count = x.elem_count() / self.generators.len().max(1);
        let mut drawn = self.generators.iter_mut().map(|generator| generator.normals(count));
        let mut values = drawn.next().unwrap_or_default();
        for more in drawn {
            values.extend(more);
        }
        Ok(Tensor::from_vec(values, x.shape(), x.device())?)
    }

    /// Keeps the noise of the images at `kept`, in that order.
    pub(crate) fn select(&mut self, kept: &[usize]) {
        self.generators = kept.iter().map(|image| self.generators[*image].clone()).collect();
    }
}

/// The images at `kept` of a batch, in that order: `(b, ..)` to `(kept.len(), ..)`.
pub(crate) fn select(batch: &Tensor, kept: &[usize]) -> Result<Tensor> {
    let images = kept.iter().map(|image| batch.narrow(0, *image, 1)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&images, 0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(count: usize, shape: (usize, usize, usize, usize)) -> Tensor {
        Tensor::from_vec(NoiseGenerator::new(9).normals(count), shape, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn each_image_has_the_noise_that_it_has_alone() {
        let seeds = [5, 6, 5];
        let mut together = BatchNoise::new(seeds.into_iter().map(NoiseGenerator::new).collect());
        let mut alone: Vec<_> = seeds.into_iter().map(NoiseGenerator::new).collect();
        let x = numbers(3 * 20, (3, 1, 4, 5));
        let first: Vec<f32> = alone.iter_mut().flat_map(|generator| generator.normals(20)).collect();
        assert_eq!(values(&together.like(&x).unwrap()), first);
        together.select(&[1]);
        let second = alone[1].normals(20);
        assert_eq!(values(&together.like(&x.narrow(0, 1, 1).unwrap()).unwrap()), second);
    }
}
