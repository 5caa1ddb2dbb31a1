//! Where a convolution's inputs are.

use super::element::Element;

/// How a convolution finds its inputs in a map `[batch][height][width][channels]`.
#[derive(Debug)]
pub struct Gather<'a, E> {
    /// The map.
    pub data: &'a [E],
    /// Its channels.
    pub channels: usize,
    /// Its height and width.
    pub size: (usize, usize),
    /// Its height and width after it is scaled up to the nearest value; as `size` where it is not.
    pub scaled: (usize, usize),
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros before and after the scaled map: its columns, then its rows.
    pub padding: [(usize, usize); 2],
}

impl<E: Element> Gather<'_, E> {
    /// The output's height and width.
    pub fn output_size(&self) -> (usize, usize) {
        let [down, right] = self.padding;
        let side =
            |side: usize, padding: (usize, usize)| (side + padding.0 + padding.1 - self.kernel) / self.stride + 1;
        (side(self.scaled.0, down), side(self.scaled.1, right))
    }

    /// The vectors of every tap for output `row`, into place `slot` of each tap.
    #[inline(always)]
    pub(super) fn point<const T: usize>(&self, row: usize, zeros: &[E], slot: usize, vectors: &mut [[*const E; T]]) {
        let (height, width) = self.output_size();
        let (image, pixel) = (row / (height * width), row % (height * width));
        let (top, left) = (pixel / width * self.stride, pixel % width * self.stride);
        let image = &self.data[image * self.size.0 * self.size.1 * self.channels..];
        let scaled = |at: usize, padding: usize, from: usize, to: usize| {
            let inside = at.checked_sub(padding).filter(|at| *at < to)?;
            Some(if from == to { inside } else { inside * from / to })
        };
        for down in 0..self.kernel {
            let y = scaled(top + down, self.padding[0].0, self.size.0, self.scaled.0);
            for right in 0..self.kernel {
                let x = scaled(left + right, self.padding[1].0, self.size.1, self.scaled.1);
                let vector = match (y, x) {
                    (Some(y), Some(x)) => &image[(y * self.size.1 + x) * self.channels..][..self.channels],
                    _ => zeros,
                };
                vectors[down * self.kernel + right][slot] = vector.as_ptr();
            }
        }
    }
}
