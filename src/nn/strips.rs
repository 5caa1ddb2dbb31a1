//! Feature maps in strips of rows, for pictures whose maps would not fit in memory several times.
//!
//! A layer goes from strip to strip. Each is given the rows of its neighbours that a convolution meets, and a group norm
//! the moments of the whole map, so that the result is that of the whole map and has no seams. A strip is let go of once
//! its layer has no use for it: a layer holds its input or its result, strip by strip, and not both.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::{Conv2d, NormalConv, cpu::Moments, feature_map};
use crate::Result;

/// How the values of each image's groups of channels are spread.
#[derive(Debug)]
pub(super) struct Spread(pub(super) Vec<Vec<Moments>>);

impl Spread {
    fn and(self, other: Self) -> Self {
        let groups = |(own, other): (Vec<Moments>, Vec<Moments>)| {
            own.into_iter().zip(other).map(|(own, other)| own.and(other)).collect()
        };
        Self(self.0.into_iter().zip(other.0).map(groups).collect())
    }
}

/// The neighbours that a layer needs a row of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halo {
    /// The strip above and the one below.
    Both,
    /// The strip below.
    Below,
}

/// A feature map in strips, from its top down.
#[derive(Debug)]
pub struct Strips(VecDeque<Tensor>);

/// A strip with a row of each neighbour.
#[derive(Debug)]
pub(super) struct Strip {
    own: Tensor,
    whole: Tensor,
    above: usize,
    below: usize,
}

impl Strips {
    /// A map in strips of `rows` rows; the last has what is left, too.
    ///
    /// # Errors
    ///
    /// A tensor that is no feature map.
    pub fn split(map: &Tensor, rows: usize) -> Result<Self> {
        let (height, _) = feature_map::size(map)?;
        let count = (height / rows).max(1);
        let strip = |number| {
            let start = number * rows;
            feature_map::rows(map, start, if number + 1 == count { height - start } else { rows })
        };
        (0..count).map(strip).collect::<Result<_>>().map(Self)
    }

    /// The whole map.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub fn join(self) -> Result<Tensor> {
        feature_map::concat_rows(&self.0.iter().collect::<Vec<_>>())
    }

    /// The map behind a convolution that keeps its size.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn convolve(self, conv: &Conv2d) -> Result<Self> {
        self.each(Halo::Both, |strip| strip.crop(&conv.forward(strip.whole())?, 1))
    }

    /// The map behind a convolution that [halves it, rounding down](Conv2d::halving_down). All strips but the last have an
    /// even number of rows.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn halve_down(self, conv: &Conv2d) -> Result<Self> {
        // Of the rows below a strip, the last output meets the first. The zeros below that meet none.
        self.each(Halo::Below, |strip| conv.forward(strip.whole()))
    }

    /// The planes, `(b, c, h, w)`, of the map behind a norm, its activation and a convolution.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn convolve_normal(self, conv: &NormalConv) -> Result<Self> {
        let spread = self.spread(conv)?;
        self.each(Halo::Both, |strip| strip.crop(&conv.forward_by(strip.whole(), &spread, super::After::default())?, 1))
    }

    /// How many strips there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How the whole map's groups are spread.
    pub(super) fn spread(&self, conv: &NormalConv) -> Result<Spread> {
        let mut all: Option<Spread> = None;
        for strip in &self.0 {
            let own = conv.spread(strip)?;
            all = Some(match all {
                Some(all) => all.and(own),
                None => own,
            });
        }
        Ok(all.expect("a map has a strip"))
    }

    /// What `layer` makes of each strip.
    pub(super) fn each(self, halo: Halo, mut layer: impl FnMut(&Strip) -> Result<Tensor>) -> Result<Self> {
        let mut waiting = self.0;
        let mut made = VecDeque::with_capacity(waiting.len());
        let mut above: Option<Tensor> = None;
        while let Some(own) = waiting.pop_front() {
            let below = waiting.front().map(|next| feature_map::rows(next, 0, 1)).transpose()?;
            let parts: Vec<&Tensor> = above.iter().chain([&own]).chain(&below).collect();
            let whole = if parts.len() == 1 { own.clone() } else { feature_map::concat_rows(&parts)? };
            let rows = feature_map::size(&own)?.0;
            let last = feature_map::rows(&own, rows - 1, 1)?;
            let strip = Strip { whole, above: above.iter().len(), below: below.iter().len(), own };
            // A copy, so that the strip's memory does not stay with its last row.
            above = (halo == Halo::Both).then(|| last.force_contiguous()).transpose()?;
            drop(last);
            made.push_back(layer(&strip)?);
        }
        Ok(Self(made))
    }
}

impl Strip {
    /// The strip alone.
    pub(super) fn own(&self) -> &Tensor {
        &self.own
    }

    /// The strip with its neighbours' rows.
    pub(super) fn whole(&self) -> &Tensor {
        &self.whole
    }

    /// Of what was made of the strip and its neighbours' rows, `scale` rows of each, the strip's.
    pub(super) fn crop(&self, made: &Tensor, scale: usize) -> Result<Tensor> {
        feature_map::rows(made, scale * self.above, scale * feature_map::size(&self.own)?.0)
    }

    /// A map of the strip's rows with any rows where its neighbours' are.
    pub(super) fn extend(&self, map: &Tensor) -> Result<Tensor> {
        let rows = feature_map::size(map)?.0;
        let (first, last) = (feature_map::rows(map, 0, self.above)?, feature_map::rows(map, rows - 1, self.below)?);
        let parts: Vec<&Tensor> = [&first, map, &last].into_iter().filter(|part| part.elem_count() > 0).collect();
        if parts.len() == 1 { Ok(map.clone()) } else { feature_map::concat_rows(&parts) }
    }
}
