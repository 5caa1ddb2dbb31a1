//! A 3×3 convolution of a map that is scaled up to twice its size, from the map as it is.
//!
//! Scaled up to the nearest value, every two rows and columns are equal, so that of the nine taps of an output those that
//! meet equal values are one tap of their sum. Four 2×2 convolutions of the small map, one for each place that an output
//! can have among four, give the same with four ninths of the products (Shi et al. 2016 draw the same picture the other
//! way round).

use super::{
    element::Element,
    gather::Gather,
    isa::Isa,
    pack::{KERNEL_TAPS, LayerSizes, PackedWeights, read_kernels},
    product::{Finish, Part, Products, Source, Spread},
};

/// Rows and columns of the kernel, and of what is left of it.
const KERNEL: usize = 3;
const SIDE: usize = 2;
const SUMMED_TAPS: usize = SIDE * SIDE;
/// The places of an output among four.
const PHASES: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];

/// The weights of the four convolutions.
#[derive(Debug)]
pub struct DoublingWeights<E> {
    phases: [PackedWeights<E>; 4],
}

impl<E: Element> DoublingWeights<E> {
    /// Sums and packs weights of `[output][input][3][3]`, `channels` of each, and a bias. `read` copies some of the weights,
    /// from a place on.
    pub fn new(channels: usize, bias: &[f32], read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        Self::for_isa(Isa::detected(), (channels, channels), bias, read)
    }

    /// As [`new`](Self::new), for the instructions of `isa`, and counts of inputs and outputs.
    pub(super) fn for_isa(
        isa: Isa,
        (inputs, outputs): (usize, usize),
        bias: &[f32],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let sizes = LayerSizes { outputs, inputs, taps: SUMMED_TAPS };
        let phases = PHASES.map(|phase| {
            PackedWeights::for_isa(isa, sizes, bias, |start, into| {
                read_kernels(start, into, &read, |kernel| summed(kernel, phase));
            })
        });
        Self { phases }
    }

    /// Channels of the map.
    pub fn inputs(&self) -> usize {
        self.phases[0].inputs()
    }

    /// Channels of the result.
    pub fn outputs(&self) -> usize {
        self.phases[0].outputs()
    }
}

/// A kernel's sums for the outputs in one place: those taps are one that meet the same value.
fn summed(kernel: &[f32; KERNEL_TAPS], phase: (usize, usize)) -> [f32; SUMMED_TAPS] {
    // An even output lies between two values of the map, and meets the first with one tap; an odd one with two.
    let taps = |phase: usize, part: usize| if part == 0 { 0..1 + phase } else { 1 + phase..KERNEL };
    std::array::from_fn(|place| {
        let (down, right) = (taps(phase.0, place / SIDE), taps(phase.1, place % SIDE));
        down.flat_map(|down| right.clone().map(move |right| kernel[down * KERNEL + right])).sum()
    })
}

/// The convolution of `data`, maps of `size` (height and width), scaled up to twice that.
pub fn convolve_doubled<E: Element, O: Element>(
    data: &[E],
    size: (usize, usize),
    weights: &DoublingWeights<E>,
) -> Vec<O> {
    convolve_doubled_with(Isa::detected(), data, size, weights)
}

/// As [`convolve_doubled`], with the instructions of `isa`.
pub(super) fn convolve_doubled_with<E: Element, O: Element>(
    isa: Isa,
    data: &[E],
    size: (usize, usize),
    weights: &DoublingWeights<E>,
) -> Vec<O> {
    let channels = weights.inputs();
    let gathers = PHASES.map(|(down, right)| {
        let padding = [(1 - down, down), (1 - right, right)];
        Gather { data, channels, size, scaled: size, kernel: SIDE, stride: 1, padding }
    });
    let parts = std::array::from_fn::<_, 4, _>(|number| Part {
        source: Source::Map(&gathers[number]),
        weights: &weights.phases[number],
        spread: Spread::Doubled { width: size.1, phase: PHASES[number] },
    });
    Products { isa, parts: &parts, finish: &Finish::default() }.all(data.len() / channels)
}
