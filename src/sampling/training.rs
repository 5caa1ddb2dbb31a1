//! The noise levels of training, from a scheduler's betas.

use super::{BetaSchedule, PredictionType, SchedulerOptions, level::sigma_of};

/// diffusers' stand-in for the zero at the end of a zero-terminal-SNR schedule, where a finite σ is needed.
const LEAST_ALPHA_PRODUCT: f64 = 1.0 / (1_u64 << 24) as f64;

/// What the last σ of a zero-terminal-SNR schedule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TerminalSigma {
    /// Infinite, as in training.
    Exact,
    /// 4096, for samplers that compute with σ itself.
    Clamped,
}

impl SchedulerOptions {
    /// σ of every training timestep, growing. The last is infinite for v-prediction with zero terminal SNR, unless
    /// `clamped`.
    pub(super) fn training_sigmas(&self, end: TerminalSigma) -> Vec<f64> {
        let mut product = 1.0;
        let mut products: Vec<f64> = self
            .betas()
            .into_iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if self.rescale_betas_zero_snr {
            rescale_to_zero_terminal_snr(&mut products);
            // Noise cannot be divided out of latents that have no signal, so epsilon prediction needs a finite σ.
            if end == TerminalSigma::Clamped || self.prediction_type == PredictionType::Epsilon {
                *products.last_mut().expect("there are two timesteps or more") = LEAST_ALPHA_PRODUCT;
            }
        }
        products.into_iter().map(sigma_of).collect()
    }

    /// How many of the first timesteps have a λ = −ln σ of `lambda_min` or more; DPM-Solver starts at the last of these.
    pub(super) fn last_timestep(&self) -> usize {
        if self.lambda_min == f64::NEG_INFINITY {
            return self.num_train_timesteps;
        }
        let sigmas = self.training_sigmas(TerminalSigma::Clamped);
        sigmas.iter().filter(|sigma| -sigma.ln() >= self.lambda_min).count()
    }

    #[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
    fn betas(&self) -> Vec<f64> {
        if let Some(betas) = &self.trained_betas {
            return betas.clone();
        }
        let count = self.num_train_timesteps;
        let part = |index: usize| index as f64 / (count - 1) as f64;
        let between = |first: f64, last: f64, index| first + (last - first) * part(index);
        let capped = |index: usize, product: fn(f64) -> f64| {
            let (before, after) = (index as f64 / count as f64, (index + 1) as f64 / count as f64);
            (1.0 - product(after) / product(before)).min(0.999)
        };
        let beta = |index: usize| match self.beta_schedule {
            BetaSchedule::Linear => between(self.beta_start, self.beta_end, index),
            BetaSchedule::ScaledLinear => between(self.beta_start.sqrt(), self.beta_end.sqrt(), index).powi(2),
            BetaSchedule::SquaredcosCapV2 => {
                capped(index, |t| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2))
            }
            BetaSchedule::Exponential => capped(index, |t| (-12.0 * t).exp()),
        };
        (0..count).map(beta).collect()
    }
}

/// Lin et al. 2023, algorithm 1, on the cumulative products of alphas.
fn rescale_to_zero_terminal_snr(products: &mut [f64]) {
    let (first, last) = (products[0].sqrt(), products[products.len() - 1].sqrt());
    for product in products {
        *product = ((product.sqrt() - last) * first / (first - last)).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{SamplerKind, SchedulerConfig, SpacingKind};

    #[test]
    fn zero_terminal_snr_is_exact_for_v_prediction_alone() {
        let json = r#"{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#;
        let config: SchedulerConfig = serde_json::from_str(json).unwrap();
        let mut options = config.options(SamplerKind::Ddim, SpacingKind::Checkpoint).unwrap();
        assert_eq!(options.training_sigmas(TerminalSigma::Exact).last(), Some(&f64::INFINITY));
        let clamped = *options.training_sigmas(TerminalSigma::Clamped).last().unwrap();
        assert!((clamped - 4096.0).abs() < 1e-3, "{clamped}");
        options.prediction_type = PredictionType::Epsilon;
        assert!(options.training_sigmas(TerminalSigma::Exact).last().unwrap().is_finite());
    }
}
