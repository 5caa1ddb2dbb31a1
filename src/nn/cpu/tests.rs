//! Every kernel on random shapes, with every instruction set of this machine, against the same in f64. The file is long
//! because each kernel is written down here once more, in the plainest way.

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    AttentionInputs, AttentionSizes, DoublingWeights, Element, Finish, Gather, Isa, LayerSizes, NormalMaps,
    PackedWeights, Source, Then, WinogradWeights,
    attention::attention_with,
    concat_rows, convert,
    doubling::convolve_doubled_with,
    norm::{Affine, group_norm_with, layer_norm_with},
    product::product_with,
    winograd::convolve_normal_with,
};
use crate::nn::Activation;

/// What a kernel may differ by from f64, relative to the largest number of its result.
trait Tolerance {
    const TOLERANCE: f64;
}

impl Tolerance for f32 {
    const TOLERANCE: f64 = 1e-5;
}

impl Tolerance for bf16 {
    const TOLERANCE: f64 = 4e-3;
}

/// Random numbers about 0, as the type has them.
fn numbers<E: Element>(random: &mut SmallRng, count: usize) -> Vec<E> {
    (0..count).map(|_| E::narrow(random.random_range(-1.0..1.0))).collect()
}

fn wide<E: Element>(x: E) -> f64 {
    f64::from(x.widen())
}

fn check<E: Element + Tolerance>(what: &str, found: &[E], wanted: &[f64]) {
    check_within(E::TOLERANCE, what, found, wanted);
}

fn check_within<E: Element>(tolerance: f64, what: &str, found: &[E], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (wide(*found) - wanted).abs() / largest;
        assert!(error <= tolerance, "{what}: number {index} is {found:?}, not {wanted}: {error:e}");
    }
}

/// As [`check`], of a kernel that rounds between its steps, too: the error of all numbers together, relative to all of them
/// together, and twice as much for a single one.
fn check_together<O: Element>(tolerance: f64, what: &str, found: &[O], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let length = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let errors: Vec<f64> = found.iter().zip(wanted).map(|(found, wanted)| wide(*found) - wanted).collect();
    let error = length(&mut errors.iter().copied()) / length(&mut wanted.iter().copied());
    assert!(error <= tolerance, "{what}: {error:e}");
    let largest = wanted.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let worst = errors.iter().fold(0.0_f64, |most, x| most.max(x.abs())) / largest;
    assert!(worst <= 2.0 * tolerance, "{what}: a number with an error of {worst:e}");
}

fn activated(activation: Option<Activation>, x: f64) -> f64 {
    match activation {
        None => x,
        Some(Activation::Silu) => x / (1.0 + (-x).exp()),
        Some(Activation::QuickGelu) => x / (1.0 + (-1.702 * x).exp()),
        Some(Activation::Gelu) => x * normal(x),
    }
}

/// The normal distribution's function, by its series (Marsaglia 2004), which far from 0 overflows.
fn normal(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while sum + term != sum {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// A layer with random weights, and what it follows its product with, of type `O` as its results.
struct Layer<E, O> {
    sizes: LayerSizes,
    weights: Vec<E>,
    bias: Vec<f32>,
    activation: Option<Activation>,
    per_image: Option<(Vec<O>, usize)>,
    residual: Option<Vec<O>>,
}

impl<E: Element + Tolerance, O: Element + Tolerance> Layer<E, O> {
    fn random(random: &mut SmallRng, sizes: LayerSizes, rows: usize, rows_of_image: usize) -> Self {
        let kinds = [None, Some(Activation::Silu), Some(Activation::Gelu), Some(Activation::QuickGelu)];
        let activation = kinds[random.random_range(0..kinds.len())];
        let weights = numbers(random, sizes.outputs * sizes.inputs * sizes.taps);
        let bias = numbers(random, sizes.outputs);
        let per_image =
            random.random_bool(0.5).then(|| (numbers(random, rows / rows_of_image * sizes.outputs), rows_of_image));
        let residual = random.random_bool(0.5).then(|| numbers(random, rows * sizes.outputs));
        Self { sizes, weights, bias, activation, per_image, residual }
    }

    fn packed(&self, isa: Isa) -> PackedWeights<E> {
        PackedWeights::for_isa(isa, self.sizes, &self.bias, |start, into| {
            into.iter_mut().zip(&self.weights[start..]).for_each(|(into, weight)| *into = weight.widen());
        })
    }

    /// What results may differ by: activations are as exact as the layer's type, and sums as exact as the results'.
    fn tolerance(&self) -> f64 {
        if self.activation.is_some() { E::TOLERANCE } else { O::TOLERANCE }
    }

    fn finish(&self) -> Finish<'_, O> {
        Finish {
            per_image: self.per_image.as_ref().map(|(added, rows)| (added.as_slice(), *rows)),
            activation: self.activation,
            residual: self.residual.as_deref(),
            gated: false,
        }
    }

    /// The product alone, with its bias: `input` gives a row's numbers.
    fn sums(&self, rows: usize, input: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
        let LayerSizes { outputs, inputs, taps } = self.sizes;
        let sum = |row: usize, output: usize| {
            let product = |input_number: usize, tap: usize| {
                wide(self.weights[(output * inputs + input_number) * taps + tap]) * input(row, tap, input_number)
            };
            let all = (0..inputs).flat_map(|input| (0..taps).map(move |tap| (input, tap)));
            f64::from(self.bias[output]) + all.map(|(input, tap)| product(input, tap)).sum::<f64>()
        };
        (0..rows * outputs).map(|index| sum(index / outputs, index % outputs)).collect()
    }

    fn wanted(&self, sums: &[f64]) -> Vec<f64> {
        let outputs = self.sizes.outputs;
        let finished = sums.iter().enumerate().map(|(index, sum)| {
            let (row, output) = (index / outputs, index % outputs);
            let added = self.per_image.as_ref().map_or(0.0, |(added, rows)| wide(added[row / rows * outputs + output]));
            let residual = self.residual.as_ref().map_or(0.0, |residual| wide(residual[index]));
            activated(self.activation, sum + added) + residual
        });
        finished.collect()
    }
}

fn check_linear<E: Element + Tolerance, O: Element + Tolerance>(
    isa: Isa,
    random: &mut SmallRng,
    rows: usize,
    sizes: LayerSizes,
) {
    let x: Vec<E> = numbers(random, rows * sizes.inputs);
    let layer = Layer::<E, O>::random(random, sizes, rows, rows);
    let sums = layer.sums(rows, |row, _, input| wide(x[row * sizes.inputs + input]));
    let found = product_with(isa, Source::Rows(&x), &layer.packed(isa), rows, &layer.finish());
    check_within(layer.tolerance(), &format!("{isa:?}, {rows} rows, {sizes:?}"), &found, &layer.wanted(&sums));
}

fn linear_layers<E: Element + Tolerance, O: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(1);
    for isa in Isa::all() {
        for _ in 0..12 {
            let rows = random.random_range(1..260);
            let sizes =
                LayerSizes { outputs: random.random_range(1..150), inputs: random.random_range(1..200), taps: 1 };
            check_linear::<E, O>(isa, &mut random, rows, sizes);
        }
    }
}

#[test]
fn linear_layers_are_those_of_f64() {
    linear_layers::<f32, f32>();
    linear_layers::<bf16, bf16>();
    linear_layers::<bf16, f32>();
}

fn long_sums<E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(2);
    for isa in Isa::all() {
        // More inputs than a block, and an odd count of them.
        check_linear::<E, E>(isa, &mut random, 7, LayerSizes { outputs: 33, inputs: 5431, taps: 1 });
    }
}

#[test]
fn sums_of_several_blocks_are_those_of_f64() {
    long_sums::<f32>();
    long_sums::<bf16>();
}

fn gated_layers<E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(3);
    for isa in Isa::all() {
        for (rows, inputs, outputs) in [(1, 20, 64), (50, 33, 128), (200, 64, 192)] {
            let sizes = LayerSizes { outputs, inputs, taps: 1 };
            let x: Vec<E> = numbers(&mut random, rows * inputs);
            let layer = Layer::<E, E>::random(&mut random, sizes, rows, rows);
            let packed = layer.packed(isa);
            assert!(packed.can_gate());
            let sums = layer.sums(rows, |row, _, input| wide(x[row * inputs + input]));
            let half = outputs / 2;
            let gate = |index: usize| {
                let (row, output) = (index / half, index % half);
                sums[row * outputs + output] * activated(Some(Activation::Gelu), sums[row * outputs + half + output])
            };
            let wanted: Vec<f64> = (0..rows * half).map(gate).collect();
            let finish: Finish<'_, E> = Finish { gated: true, ..Finish::default() };
            check(
                &format!("{isa:?}, {sizes:?}"),
                &product_with(isa, Source::Rows(&x), &packed, rows, &finish),
                &wanted,
            );
        }
    }
}

#[test]
fn gates_are_those_of_f64() {
    gated_layers::<f32>();
    gated_layers::<bf16>();
}

fn convolutions<E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(4);
    for isa in Isa::all() {
        for _ in 0..15 {
            let (images, channels) = (random.random_range(1..3), random.random_range(1..50));
            let size = (random.random_range(1..12), random.random_range(1..12));
            let kernel = if random.random_bool(0.7) { 3 } else { 1 };
            let (stride, [down, right]) = match (kernel, random.random_range(0..4)) {
                (3, 0) => (2, [(1, 1); 2]),
                (3, 1) if size.0 > 1 && size.1 > 1 => (2, [(0, 1); 2]),
                (3, 2) => (1, [(1, 2), (0, 3)]),
                _ => (1, [(kernel / 2, kernel / 2); 2]),
            };
            // As large, twice as large, or one less than that.
            let scaled = match random.random_range(0..3) {
                1 => (2 * size.0, 2 * size.1),
                2 if down.0 > 0 => (2 * size.0 - 1, 2 * size.1),
                _ => size,
            };
            let data: Vec<E> = numbers(&mut random, images * size.0 * size.1 * channels);
            let gather = Gather { data: &data, channels, size, scaled, kernel, stride, padding: [down, right] };
            let (height, width) = gather.output_size();
            let rows = images * height * width;
            let sizes = LayerSizes { outputs: random.random_range(1..70), inputs: channels, taps: kernel * kernel };
            let layer = Layer::<E, E>::random(&mut random, sizes, rows, height * width);
            let sums = layer.sums(rows, |row, tap, channel| {
                let (image, pixel) = (row / (height * width), row % (height * width));
                let place = |at: usize, tap: usize, padding: (usize, usize), from: usize, to: usize| {
                    (at * stride + tap).checked_sub(padding.0).filter(|at| *at < to).map(|at| at * from / to)
                };
                let y = place(pixel / width, tap / kernel, down, size.0, scaled.0);
                let x = place(pixel % width, tap % kernel, right, size.1, scaled.1);
                y.zip(x).map_or(0.0, |(y, x)| wide(data[((image * size.0 + y) * size.1 + x) * channels + channel]))
            });
            let found = product_with(isa, Source::Map(&gather), &layer.packed(isa), rows, &layer.finish());
            let what = format!("{isa:?}, {images} of {size:?} as {scaled:?}, {sizes:?}, {stride}, {down:?}, {right:?}");
            check(&what, &found, &layer.wanted(&sums));
        }
    }
}

#[test]
fn convolutions_are_those_of_f64() {
    convolutions::<f32>();
    convolutions::<bf16>();
}

/// As the 3×3 convolution of the map scaled up, whose kernels are in f64.
fn doublings<E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(8);
    for isa in Isa::all() {
        for _ in 0..8 {
            let (images, size) = (random.random_range(1..3), (random.random_range(1..12), random.random_range(1..12)));
            let (inputs, outputs) = (random.random_range(1..40), random.random_range(1..70));
            let data: Vec<E> = numbers(&mut random, images * size.0 * size.1 * inputs);
            // Numbers whose sums of four bf16 has, too.
            let weights: Vec<f32> =
                (0..outputs * inputs * 9).map(|_| random.random_range(-8..8) as f32 / 8.0).collect();
            let bias: Vec<f32> = numbers(&mut random, outputs);
            let packed = DoublingWeights::<E>::for_isa(isa, (inputs, outputs), &bias, |start, into| {
                into.copy_from_slice(&weights[start..][..into.len()]);
            });
            let mut wanted = Vec::new();
            for row in 0..images * 2 * size.0 {
                let (image, y) = (row / (2 * size.0), row % (2 * size.0));
                for x in 0..2 * size.1 {
                    for (output, bias) in bias.iter().enumerate() {
                        let mut sum = f64::from(*bias);
                        for tap in 0..9 {
                            let place = |at: usize, tap: usize, to: usize| {
                                (at + tap).checked_sub(1).filter(|at| *at < 2 * to).map(|at| at / 2)
                            };
                            let Some((y, x)) = place(y, tap / 3, size.0).zip(place(x, tap % 3, size.1)) else {
                                continue;
                            };
                            let pixel = &data[((image * size.0 + y) * size.1 + x) * inputs..][..inputs];
                            let kernels = weights[output * inputs * 9..].iter().skip(tap).step_by(9);
                            sum += pixel.iter().zip(kernels).map(|(x, w)| wide(*x) * f64::from(*w)).sum::<f64>();
                        }
                        wanted.push(sum);
                    }
                }
            }
            let found: Vec<E> = convolve_doubled_with(isa, &data, size, &packed);
            check(&format!("{isa:?}, {images} of {size:?}, {inputs} to {outputs}"), &found, &wanted);
        }
    }
}

#[test]
fn doubling_convolutions_are_those_of_f64() {
    doublings::<f32>();
    doublings::<bf16>();
}

/// Of maps of type `X`, in which the results are, too, by a layer of type `E`.
fn normal_convolutions<X: Element + Tolerance, E: Element + Tolerance>(least: (usize, usize, usize)) {
    let mut random = SmallRng::seed_from_u64(9);
    for isa in Isa::all() {
        for round in 0..12 {
            // More channels than a block's, then more rows than a band's as well.
            let (images, height, width) = match round {
                1 => (1, 40, 264 / size_of::<E>()),
                _ => (random.random_range(1..3), random.random_range(least.2..12), random.random_range(least.2..12)),
            };
            let (groups, of_group) =
                if round < 2 { (5, 51) } else { (random.random_range(1..5), random.random_range(least.0..20)) };
            let outputs = if round == 1 { 3 } else { random.random_range(least.1..70) };
            let sizes = LayerSizes { outputs, inputs: groups * of_group, taps: 9 };
            let x: Vec<X> = numbers(&mut random, images * height * width * sizes.inputs);
            let (weight, bias) = (numbers::<f32>(&mut random, sizes.inputs), numbers::<f32>(&mut random, sizes.inputs));
            let affine = Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
            let normal: Vec<f64> = normal_groups(&x, images, groups, affine)
                .into_iter()
                .map(|x| activated(Some(Activation::Silu), x))
                .collect();
            let layer = Layer::<E, X>::random(&mut random, sizes, images * height * width, height * width);
            // None follows these convolutions.
            let layer = Layer { activation: None, ..layer };
            let sums = layer.sums(images * height * width, |row, tap, channel| {
                let (image, y, x) = (row / (height * width), row / width % height, row % width);
                let place = |at: usize, tap: usize, to: usize| (at + tap).checked_sub(1).filter(|at| *at < to);
                let place = place(y, tap / 3, height).zip(place(x, tap % 3, width));
                place.map_or(0.0, |(y, x)| normal[((image * height + y) * width + x) * sizes.inputs + channel])
            });
            let packed =
                WinogradWeights::<E>::for_isa(isa, (sizes.inputs, sizes.outputs), &layer.bias, |start, into| {
                    into.iter_mut().zip(&layer.weights[start..]).for_each(|(into, weight)| *into = weight.widen());
                });
            let maps = NormalMaps { data: &x, size: (height, width), groups, affine };
            let found = convolve_normal_with(isa, &maps, &packed, &layer.finish());
            let what = format!("{isa:?}, {images} of {height}x{width}, {sizes:?}");
            check_together(E::TOLERANCE, &what, &found, &layer.wanted(&sums));
        }
    }
}

#[test]
fn convolutions_behind_a_norm_are_those_of_f64() {
    normal_convolutions::<f32, f32>((1, 1, 1));
    // Of few numbers that are rounded in between, a sum may be small by chance.
    normal_convolutions::<bf16, bf16>((12, 16, 4));
    normal_convolutions::<f32, bf16>((12, 16, 4));
}

fn attentions<E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(5);
    for isa in Isa::all() {
        for round in 0..7 {
            let sizes = AttentionSizes {
                batch: random.random_range(1..3),
                queries: random.random_range(1..100),
                // At times more than a block.
                keys: if round == 0 { 1500 } else { random.random_range(1..150) },
                heads: random.random_range(1..4),
                width: random.random_range(1..90),
            };
            let AttentionSizes { batch, queries, keys, heads, width } = sizes;
            let channels = heads * width;
            let q: Vec<E> = numbers(&mut random, batch * queries * channels);
            let k: Vec<E> = numbers(&mut random, batch * keys * channels);
            // Away from zero: a mean of many numbers about zero is mostly what they are rounded by.
            let v = numbers::<f32>(&mut random, batch * keys * channels);
            let v: Vec<E> = v.into_iter().map(|x| E::narrow(x + 0.5)).collect();
            let mask: Option<Vec<f32>> = random.random_bool(0.3).then(|| {
                let masked = |index: usize| if index % keys > index / keys { f32::NEG_INFINITY } else { 0.0 };
                (0..queries * keys).map(masked).collect()
            });
            let mut wanted = Vec::new();
            for row in 0..batch * queries {
                for head in 0..heads {
                    let q = &q[row * channels + head * width..][..width];
                    let token = |of: &[E], key: usize| {
                        let at = (row / queries * keys + key) * channels + head * width;
                        of[at..at + width].iter().map(|x| wide(*x)).collect::<Vec<f64>>()
                    };
                    let score = |key: usize| {
                        let dot = q.iter().zip(token(&k, key)).map(|(a, b)| wide(*a) * b).sum::<f64>();
                        let masked = mask.as_ref().map_or(0.0, |mask| f64::from(mask[row % queries * keys + key]));
                        (dot / (width as f64).sqrt() + masked).exp()
                    };
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let total: f64 = scores.iter().sum();
                    let mut sums = vec![0.0; width];
                    for (key, score) in scores.iter().enumerate() {
                        sums.iter_mut().zip(token(&v, key)).for_each(|(sum, v)| *sum += v * score / total);
                    }
                    wanted.extend(sums);
                }
            }
            let inputs = AttentionInputs { queries: &q, keys: &k, values: &v, mask: mask.as_deref() };
            check(&format!("{isa:?}, {sizes:?}"), &attention_with(isa, inputs, sizes), &wanted);
        }
    }
}

#[test]
fn attentions_are_those_of_f64() {
    attentions::<f32>();
    attentions::<bf16>();
}

/// Maps normalised over each image's groups of channels.
fn normal_groups<E: Element>(x: &[E], images: usize, groups: usize, affine: Affine<'_>) -> Vec<f64> {
    let channels = affine.weight.len();
    let (pixels, width) = (x.len() / images / channels, channels / groups);
    let mut normal = vec![0.0; x.len()];
    for image in 0..images {
        for group in 0..groups {
            let places = (0..pixels).flat_map(|pixel| {
                (0..width).map(move |channel| (image * pixels + pixel) * channels + group * width + channel)
            });
            let places: Vec<usize> = places.collect();
            let members: Vec<f64> = places.iter().map(|place| wide(x[*place])).collect();
            for (place, x) in places.into_iter().zip(normal_of(&members, affine.epsilon)) {
                normal[place] = affine_of(affine, place % channels, x);
            }
        }
    }
    normal
}

/// Numbers less their mean, divided by their deviation.
fn normal_of(members: &[f64], epsilon: f64) -> Vec<f64> {
    let mean = members.iter().sum::<f64>() / members.len() as f64;
    let variance = members.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / members.len() as f64;
    members.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()).collect()
}

fn affine_of(affine: Affine<'_>, channel: usize, x: f64) -> f64 {
    x * f64::from(affine.weight[channel]) + f64::from(affine.bias[channel])
}

fn norms<X: Element, E: Element + Tolerance>() {
    let mut random = SmallRng::seed_from_u64(6);
    for _ in 0..15 {
        let (images, pixels) = (random.random_range(1..3), random.random_range(1..300));
        let (groups, width) = (random.random_range(1..9), random.random_range(1..40));
        let channels = groups * width;
        let x: Vec<X> = numbers(&mut random, images * pixels * channels);
        let (weight, bias) = (numbers::<f32>(&mut random, channels), numbers::<f32>(&mut random, channels));
        let affine = Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
        let wanted = normal_groups(&x, images, groups, affine);
        let silu: Vec<f64> = wanted.iter().map(|x| activated(Some(Activation::Silu), *x)).collect();
        let rows = x.chunks_exact(channels).flat_map(|row| {
            let members: Vec<f64> = row.iter().map(|x| wide(*x)).collect();
            let normals = normal_of(&members, affine.epsilon).into_iter();
            normals.enumerate().map(|(channel, x)| affine_of(affine, channel, x)).collect::<Vec<f64>>()
        });
        let rows: Vec<f64> = rows.collect();
        for isa in Isa::all() {
            let what = format!("{isa:?}, {images} of {pixels}, {groups} groups of {width}");
            let maps = NormalMaps { data: &x, size: (pixels, 1), groups, affine };
            check::<E>(&what, &group_norm_with(isa, &maps, Then::Nothing), &wanted);
            check::<E>(&what, &group_norm_with(isa, &maps, Then::Silu), &silu);
            check::<E>(&what, &layer_norm_with(isa, &x, affine), &rows);
        }
    }
}

#[test]
fn norms_are_those_of_f64() {
    norms::<f32, f32>();
    norms::<bf16, bf16>();
    norms::<f32, bf16>();
}

#[test]
fn rows_are_joined_in_order() {
    let first: Vec<f32> = (0..600 * 3).map(|x| x as f32).collect();
    let second: Vec<f32> = (0..600 * 2).map(|x| -(x as f32)).collect();
    let joined = concat_rows(&first, &second, (3, 2));
    for (row, joined) in joined.chunks_exact(5).enumerate() {
        assert_eq!((&joined[..3], &joined[3..]), (&first[row * 3..][..3], &second[row * 2..][..2]));
    }
}

#[test]
fn numbers_are_converted_one_by_one() {
    let wide: Vec<f32> = numbers(&mut SmallRng::seed_from_u64(7), 100_003);
    let narrow: Vec<bf16> = convert(&wide);
    assert!(narrow.iter().zip(&wide).all(|(narrow, wide)| *narrow == bf16::from_f32(*wide)));
    let back: Vec<f32> = convert(&narrow);
    assert!(back.iter().zip(&narrow).all(|(back, narrow)| *back == narrow.to_f32()));
}
