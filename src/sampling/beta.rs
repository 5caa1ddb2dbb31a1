//! Quantiles of the beta distribution with both parameters 0.6, which beta spacing takes σ by (Lee et al. 2024).

/// Both parameters of the distribution.
const SHAPE: f64 = 0.6;
/// Terms of the series; each is under half of the one before.
const TERMS: u32 = 60;
/// Halvings of the interval; each gives one bit.
const HALVINGS: u32 = 60;

/// The value below which a `part` of the distribution lies, for a part in 0..=1.
pub(super) fn beta_quantile(part: f64) -> f64 {
    if part > 0.5 {
        return 1.0 - beta_quantile(1.0 - part);
    }
    // The distribution is symmetric, so that half of it lies below 1/2: no gamma function is needed.
    let wanted = 2.0 * part * incomplete_beta(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if incomplete_beta(middle) < wanted { low = middle } else { high = middle }
    }
    if part == 0.0 { 0.0 } else { f64::midpoint(low, high) }
}

/// The incomplete beta function up to `x` in 0..=1/2, by its series (NIST's Digital Library of Mathematical Functions,
/// 8.17.7 with 15.2.1).
fn incomplete_beta(x: f64) -> f64 {
    let (mut power, mut sum) = (1.0, 0.0);
    for number in 0..TERMS {
        let number = f64::from(number);
        sum += power / (SHAPE + number);
        power *= x * (1.0 - SHAPE + number) / (number + 1.0);
    }
    sum * x.powf(SHAPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipy_s() {
        // scipy.stats.beta.ppf(part, 0.6, 0.6)
        let known = [
            (0.0, 0.0),
            (0.01, 0.0008612388215429059),
            (0.1, 0.03958440558878085),
            (0.37, 0.3227940020973615),
            (0.5, 0.5000000000000001),
            (0.9, 0.9604155944112192),
            (1.0, 1.0),
        ];
        for (part, wanted) in known {
            let found = beta_quantile(part);
            assert!((found - wanted).abs() < 1e-12, "{part}: {found}");
        }
    }
}
