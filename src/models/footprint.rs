//! How many bytes the networks' feature maps take at a size, from the layers' shapes.
//!
//! Owns the formulas, which follow the networks' passes layer by layer; a test compares them with what passes really hold.
//! Weights are not counted.

use candle_core::{DType, Device};

use super::{Tiling, UnetConfig, VaeConfig, vae::BLOCKS_IN_STRIPS};
use crate::nn::{band_bytes, has_kernels, most_score_bytes};

/// Bytes of a network's numbers on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberBytes {
    /// Of the sums that go on through the UNet.
    sum: usize,
    /// Of all others.
    product: usize,
    /// What the tensor library needs besides for each number that goes into a layer; nothing for the kernels.
    scratch: usize,
}

impl NumberBytes {
    /// Those of a network that computes in `dtype`.
    #[must_use]
    pub fn new(device: &Device, dtype: DType) -> Self {
        let product = dtype.size_in_bytes();
        if has_kernels(device, dtype) {
            Self { sum: DType::F32.size_in_bytes(), product, scratch: 0 }
        } else {
            // A group norm in f32, which has three maps at a time, or a 3×3 convolution as a product of the map's parts.
            let scratch = (3 * DType::F32.size_in_bytes()).max(9 * product);
            Self { sum: product, product, scratch }
        }
    }

    /// What the kernels' transformed rows of a map take: at most all of its rows, twice as wide.
    fn band(self, (height, width): (usize, usize), channels: usize) -> usize {
        if self.scratch > 0 {
            return 0;
        }
        band_bytes(width, channels, self.product).min(2 * height * width * channels * self.product)
    }

    /// What the scores of an attention take.
    fn scores(self) -> usize {
        if self.scratch == 0 { 0 } else { most_score_bytes() }
    }
}

impl UnetConfig {
    /// The most bytes that a pass holds for `batch` latents of `size`, height and width.
    #[must_use]
    pub fn pass_bytes(&self, size: (usize, usize), batch: usize, bytes: NumberBytes) -> usize {
        let channels = &self.block_out_channels;
        let last = channels.len() - 1;
        // A batch's maps are one below the other.
        let size = |level: usize| (batch * size.0.div_ceil(1 << level), size.1.div_ceil(1 << level));
        let pixels = |level: usize| size(level).0 * size(level).1;
        let mut skips = vec![(channels[0], pixels(0))];
        let (mut held, mut most) = (skips[0].0 * skips[0].1 * bytes.sum, 0);
        let mut inputs = channels[0];
        for (index, &outputs) in channels.iter().enumerate() {
            for layer in 0..self.layers_per_block.of(index) {
                let attends = self.attends_down(index) && self.transformer_layers_down(index, layer) > 0;
                most = most.max(held + layer_bytes((inputs, outputs), attends, size(index), bytes));
                skips.push((outputs, pixels(index)));
                held += outputs * pixels(index) * bytes.sum;
                inputs = outputs;
            }
            if index < last {
                skips.push((outputs, pixels(index + 1)));
                held += outputs * pixels(index + 1) * bytes.sum;
            }
        }
        most = most.max(held + layer_bytes((inputs, inputs), self.middle_attends(), size(last), bytes));
        for index in 0..=last {
            let mirror = last - index;
            let outputs = channels[mirror];
            for _ in 0..=self.layers_per_block.of(mirror) {
                let Some((skip, skip_pixels)) = skips.pop() else { break };
                // The map, and the map with the skip.
                let joined = pixels(mirror) * bytes.sum * (inputs + inputs + skip);
                let layer = layer_bytes((inputs + skip, outputs), self.attends_up(index), size(mirror), bytes);
                most = most.max(held + joined + layer);
                held -= skip * skip_pixels * bytes.sum;
                inputs = outputs;
            }
        }
        most
    }
}

/// What a residual block, and a transformer behind it, hold besides what comes in.
fn layer_bytes((inputs, outputs): (usize, usize), attends: bool, size: (usize, usize), bytes: NumberBytes) -> usize {
    let pixels = size.0 * size.1;
    let shortcut = if inputs == outputs { 0 } else { outputs };
    let maps = (2 * outputs + shortcut) * bytes.sum + inputs.max(outputs) * bytes.scratch;
    let resnet = pixels * maps + bytes.band(size, inputs.max(outputs));
    // The map, the tokens and the next ones; a norm's result, queries, keys, values and what they find, or the perceptron.
    let transformer = pixels * outputs * (3 * bytes.sum + 5 * bytes.product) + bytes.scores();
    if attends { resnet.max(transformer) } else { resnet }
}

impl VaeConfig {
    /// The most bytes that decoding one picture of `size`, height and width in pixels, holds.
    #[must_use]
    pub fn decode_bytes(&self, size: (usize, usize), tiling: Tiling, bytes: NumberBytes) -> usize {
        let channels = &self.block_out_channels;
        let mut inputs = channels[channels.len() - 1];
        let mut most = 0;
        for (level, &outputs) in channels.iter().enumerate().rev() {
            let of_block = self.block_bytes(size, level, (inputs, outputs), tiling, bytes);
            // A doubling has its input and its result.
            let doubled = if level + 1 < channels.len() { 1 } else { 0 };
            let doubling = pixels(size, level) * inputs * bytes.product * (4 + doubled) / 4;
            let is_whole = tiling == Tiling::Off || level >= BLOCKS_IN_STRIPS;
            most = most.max(of_block).max(if is_whole { doubling } else { 0 });
            inputs = outputs;
        }
        // What is made of the picture's values until they are bytes comes when the maps have gone.
        most.max(3 * size.0 * size.1 * self.out_channels * DType::F32.size_in_bytes())
    }

    /// The most bytes that encoding one picture of `size`, height and width in pixels, holds.
    #[must_use]
    pub fn encode_bytes(&self, size: (usize, usize), tiling: Tiling, bytes: NumberBytes) -> usize {
        let channels = &self.block_out_channels;
        let mut inputs = channels[0];
        let mut most = 0;
        for (level, &outputs) in channels.iter().enumerate() {
            most = most.max(self.block_bytes(size, level, (inputs, outputs), tiling, bytes));
            inputs = outputs;
        }
        // The picture itself stays.
        most + size.0 * size.1 * self.in_channels * bytes.product
    }

    /// Of the residual blocks at a level, 0 for the picture's size.
    fn block_bytes(
        &self,
        size: (usize, usize),
        level: usize,
        (inputs, outputs): (usize, usize),
        tiling: Tiling,
        bytes: NumberBytes,
    ) -> usize {
        let shortcut = if inputs == outputs { 0 } else { outputs };
        match tiling {
            Tiling::Strips(rows) if level < BLOCKS_IN_STRIPS => {
                // Two maps, or the input's one, and a strip's share of what a layer holds of whole maps.
                let maps = pixels(size, level) * inputs.max(2 * outputs) * bytes.product;
                let strip = (2 + (rows >> level), size.1 >> level);
                let layer = 2 * (inputs + outputs) * bytes.product + inputs.max(outputs) * bytes.scratch;
                maps + bytes.band(strip, inputs) + strip.0 * strip.1 * layer
            }
            _ => {
                let maps = (inputs + 2 * outputs + shortcut).max(3 * outputs) * bytes.product;
                let band = bytes.band((size.0 >> level, size.1 >> level), inputs);
                pixels(size, level) * (maps + inputs.max(outputs) * bytes.scratch) + band
            }
        }
    }
}

/// Pixels of a map that is halved `level` times.
fn pixels((height, width): (usize, usize), level: usize) -> usize {
    (height >> level) * (width >> level)
}
