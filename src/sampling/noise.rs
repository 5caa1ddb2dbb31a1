//! Seeded noise that is torch's own: `torch.randn` with `torch.Generator("cpu").manual_seed(seed)`.
//!
//! The stream is MT19937's (Matsumoto and Nishimura 1998); uniforms take its low 24 bits, normals come from them by Box
//! and Muller's method in blocks of 16. With plain `logf`, `cosf` and `sinf` the values are within 1.3e-6 of torch's,
//! whose vector code rounds differently.

const N: usize = 624;
const M: usize = 397;
/// Normals are made in blocks of this many: eight radii, eight angles.
const BLOCK: usize = 16;

/// A generator of normal noise, one for each image.
#[derive(Debug, Clone)]
pub struct NoiseGenerator {
    engine: Mt19937,
    /// The second normal of a pair, which the small-size method keeps for its next call.
    spare: Option<f64>,
}

impl NoiseGenerator {
    /// The generator that `torch.Generator("cpu").manual_seed(seed)` is. As torch's, it depends on the seed's low 32 bits
    /// alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed), spare: None }
    }

    /// The next `count` values of `torch.randn`, mean 0 and variance 1.
    #[must_use]
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal_alone()).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.engine.uniform_f32()).collect();
        let whole = count - count % BLOCK;
        for block in values[..whole].chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if whole < count {
            // torch draws the last 16 anew when they do not fill a block, over what was there.
            let last = &mut values[count - BLOCK..];
            last.fill_with(|| self.engine.uniform_f32());
            box_muller(last);
        }
        values
    }

    /// One normal in f64, rounded: what torch does for fewer than 16 values.
    #[expect(clippy::cast_possible_truncation, reason = "torch rounds the f64 to f32 here")]
    fn normal_alone(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        let (angle, radius) = (self.engine.uniform_f64(), self.engine.uniform_f64());
        let radius = (-2.0 * (-radius).ln_1p()).sqrt();
        let angle = std::f64::consts::TAU * angle;
        self.spare = Some(radius * angle.sin());
        (radius * angle.cos()) as f32
    }
}

/// Turns 16 uniforms in [0, 1) into 16 normals: the first eight give radii, the others angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *first).ln()).sqrt();
        let angle = std::f32::consts::TAU * *second;
        *first = radius * angle.cos();
        *second = radius * angle.sin();
    }
}

/// The 32-bit Mersenne Twister.
#[derive(Debug, Clone)]
struct Mt19937 {
    state: Vec<u32>,
    next: usize,
}

impl Mt19937 {
    fn new(seed: u64) -> Self {
        let mut state = Vec::with_capacity(N);
        #[expect(clippy::cast_possible_truncation, reason = "torch seeds with the low 32 bits")]
        let mut last = seed as u32;
        state.push(last);
        for index in 1..N as u32 {
            last = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index);
            state.push(last);
        }
        Self { state, next: N }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In [0, 1), a multiple of 2^-24.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & ((1 << 24) - 1)) as f32 / (1 << 24) as f32
    }

    /// In [0, 1), a multiple of 2^-53.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
    fn uniform_f64(&mut self) -> f64 {
        let bits = (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_mersenne_twister_s() {
        // The 10000th output for the default seed 5489, as the C++ standard gives it (26.6.5).
        let mut engine = Mt19937::new(5489);
        let last = (0..10_000).map(|_| engine.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn the_seed_s_low_bits_alone_count() {
        let noise = |seed| NoiseGenerator::new(seed).normals(20);
        assert_eq!(noise(5), noise((1 << 32) + 5));
        assert_ne!(noise(5), noise(6));
    }
}
