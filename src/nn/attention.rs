//! Scaled dot-product attention with several heads (Vaswani et al. 2017).

use candle_core::{DType, Tensor};

use super::{
    cpu::{self, AttentionInputs, AttentionSizes},
    host::{Number, by_number, is_kernels, tensor_of, with_values},
    work::count_product,
};
use crate::Result;

/// The most scores held at a time: queries are taken in parts, so that a large picture does not need a matrix of all
/// pixels by all pixels.
const MOST_SCORES: usize = 1 << 25;

/// What scores take at most where the tensor library computes them, with their shares.
#[must_use]
pub const fn most_score_bytes() -> usize {
    // Scores in the network's type and in f32, and their shares, which are in f32 first.
    if cfg!(feature = "flash-attn") { 0 } else { 3 * MOST_SCORES * size_of::<f32>() }
}

/// Attention of queries `(b, n, c)` to keys and values `(b, m, c)`, split in `heads`, with `mask` `(n, m)` added to the
/// scores: `(b, n, c)`. Scores are in f32.
///
/// # Errors
///
/// Shapes that do not fit, or a channel count that `heads` does not divide.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (b, n, c) = q.dims3()?;
    let m = k.dim(1)?;
    // The scores and their sums of values: as many products each.
    count_product(2 * b * n, c, m);
    if is_kernels(q) {
        let sizes = AttentionSizes { batch: b, queries: n, keys: m, heads, width: c / heads };
        return by_number!(q.dtype(), N => on_host::<N>(q, k, v, mask, sizes));
    }
    #[cfg(feature = "flash-attn")]
    if q.device().is_cuda() && q.dtype() != DType::F32 && mask.is_none() && c / heads <= 256 && (c / heads) % 8 == 0 {
        return flash(q, k, v, heads);
    }
    #[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
    let scale = 1.0 / ((c / heads) as f64).sqrt();
    let split = |x: &Tensor, length| x.reshape((b, length, heads, c / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(&(q * scale)?, n)?, split(k, m)?, split(v, m)?);
    let part = (MOST_SCORES / (b * heads * m)).clamp(1, n);
    let mut parts = Vec::new();
    for start in (0..n).step_by(part) {
        let rows = part.min(n - start);
        let scores = scores(&q.narrow(2, start, rows)?.contiguous()?, &k)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(&mask.narrow(0, start, rows)?)?,
            None => scores,
        };
        let shares = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        parts.push(shares.matmul(&v)?);
    }
    let joined = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 2)? };
    Ok(joined.transpose(1, 2)?.reshape((b, n, c))?)
}

/// Each query times each key: `(b, h, n, c)` and `(b, h, m, c)` to `(b, h, n, m)` f32.
fn scores(queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if queries.device().is_cuda() && queries.dtype() != DType::F32 {
        return Ok(super::cuda::scores(queries, keys)?);
    }
    Ok(queries.matmul(&keys.t()?)?.to_dtype(DType::F32)?)
}

/// By the CPU kernels.
fn on_host<N: Number>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    sizes: AttentionSizes,
) -> Result<Tensor> {
    let run = |mask: Option<&[f32]>| {
        with_values::<N, _>(q, |queries| {
            with_values::<N, _>(k, |keys| {
                with_values::<N, _>(v, |values| {
                    Ok(cpu::attention(AttentionInputs { queries, keys, values, mask }, sizes))
                })
            })
        })
    };
    let result = match mask {
        Some(mask) => with_values(mask, |mask| run(Some(mask)))?,
        None => run(None)?,
    };
    tensor_of(result, q.dims().to_vec())
}

/// The fused kernel of Dao et al. 2022.
#[cfg(feature = "flash-attn")]
fn flash(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, c) = q.dims3()?;
    let m = k.dim(1)?;
    #[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
    let scale = 1.0 / ((c / heads) as f32).sqrt();
    let split = |x: &Tensor, length| x.reshape((b, length, heads, c / heads));
    let joined = candle_flash_attn::flash_attn(&split(q, n)?, &split(k, m)?, &split(v, m)?, scale, false)?;
    Ok(joined.reshape((b, n, c))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::NoiseGenerator;

    fn random(seed: u64, shape: (usize, usize, usize)) -> Tensor {
        let values = NoiseGenerator::new(seed).normals(shape.0 * shape.1 * shape.2);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// One head's channels of one query, in f64.
    fn expected(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let dot = |key: &Vec<f32>| q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let scores: Vec<f64> = keys.iter().map(|key| (dot(key) / (q.len() as f64).sqrt()).exp()).collect();
        let sum: f64 = scores.iter().sum();
        let channel = |c: usize| values.iter().zip(&scores).map(|(v, s)| f64::from(v[c]) * s / sum).sum();
        (0..q.len()).map(channel).collect()
    }

    #[test]
    fn each_head_is_a_mean_of_values_weighted_by_scores() {
        let (heads, channels) = (3, 12);
        let (q, k, v) = (random(1, (2, 5, channels)), random(2, (2, 7, channels)), random(3, (2, 7, channels)));
        let found = attention(&q, &k, &v, heads, None).unwrap().to_vec3::<f32>().unwrap();
        let width = channels / heads;
        for (b, found) in found.iter().enumerate() {
            for head in 0..heads {
                let part = |x: &Tensor| -> Vec<Vec<f32>> {
                    x.get(b).unwrap().narrow(1, head * width, width).unwrap().to_vec2().unwrap()
                };
                for (row, query) in part(&q).iter().enumerate() {
                    for (c, wanted) in expected(query, &part(&k), &part(&v)).into_iter().enumerate() {
                        let error = (f64::from(found[row][head * width + c]) - wanted).abs();
                        assert!(error < 1e-5, "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn queries_in_parts_give_what_they_give_at_once() {
        // 9000 keys and 2 heads leave 1864 queries a part.
        let (q, k) = (random(4, (1, 4000, 4)), random(5, (1, 9000, 4)));
        let all = attention(&q, &k, &k, 2, None).unwrap();
        let last = attention(&q.narrow(1, 3990, 10).unwrap(), &k, &k, 2, None).unwrap();
        let difference = (all.narrow(1, 3990, 10).unwrap() - last).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
    }
}
