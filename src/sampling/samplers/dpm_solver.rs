//! What the solvers of the DPM-Solver kind share: the weights of their formulas, and of what order each step is.

use candle_core::Tensor;

use super::super::{
    Algorithm, Solver, SolverType,
    level::{noise_share, signal_share},
};
use crate::Result;

/// How many steps or more make the last steps of full order, where they do not end at σ = 0.
const LONG: usize = 15;

/// The weights of a step between two σ: of the latents, of what the network gives, of that's first and second derivative
/// in λ = −ln σ, times the step's length h, and of fresh noise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub latents: f64,
    pub value: f64,
    /// As the exact integral has it.
    pub slope: f64,
    /// As the midpoint rule has it.
    pub midpoint: f64,
    pub curve: f64,
    pub noise: f64,
}

impl Weights {
    /// The integrals of Lu et al. 2022: of ε those of DPM-Solver, equation 3.4; of x₀ those of DPM-Solver++, equation 8; with
    /// noise, those of the latter's section 5. `from` is above `to`.
    pub(super) fn new(algorithm: Algorithm, from: f64, to: f64) -> Self {
        let (signal, noise) = (signal_share(to), noise_share(to));
        // e^−h, which stays finite where `to` is zero and h is not.
        let (h, shrunk) = ((from / to).ln(), to / from);
        match algorithm {
            Algorithm::DpmSolverPp => Self {
                latents: noise / noise_share(from),
                value: signal * (1.0 - shrunk),
                slope: signal * ((shrunk - 1.0) / h + 1.0),
                midpoint: signal * (1.0 - shrunk) * 0.5,
                curve: signal * (0.5 - (shrunk - 1.0 + h) / (h * h)),
                noise: 0.0,
            },
            Algorithm::DpmSolver => Self {
                latents: signal / signal_share(from),
                value: -signal * (from - to),
                slope: -noise * ((1.0 / shrunk - 1.0) / h - 1.0),
                midpoint: -signal * (from - to) * 0.5,
                curve: -noise * ((1.0 / shrunk - 1.0 - h) / (h * h) - 0.5),
                noise: 0.0,
            },
            Algorithm::SdeDpmSolverPp => {
                let left = 1.0 - shrunk * shrunk;
                Self {
                    latents: noise / noise_share(from) * shrunk,
                    value: signal * left,
                    slope: signal * (1.0 - left / (2.0 * h)),
                    midpoint: signal * left * 0.5,
                    // diffusers' sign of the half, which is not that of the integral: see `dpmpp_3m_sde`.
                    curve: signal * ((left - 2.0 * h) / (4.0 * h * h) - 0.5),
                    noise: noise * left.sqrt(),
                }
            }
            Algorithm::SdeDpmSolver => Self {
                latents: signal / signal_share(from),
                value: -2.0 * signal * (from - to),
                slope: -2.0 * noise * ((1.0 / shrunk - 1.0) / h - 1.0),
                midpoint: -signal * (from - to),
                // diffusers has no third order of it.
                curve: 0.0,
                noise: signal * (from * from - to * to).sqrt(),
            },
        }
    }

    /// The slope's weight in a step of second order.
    pub(super) const fn second_order(&self, kind: SolverType) -> f64 {
        match kind {
            SolverType::Midpoint => self.midpoint,
            SolverType::Heun => self.slope,
        }
    }
}

/// The weights of what the network gave at `sigmas`, the newest first, in a step of as many orders: the derivatives are
/// differences over λ (Lu et al. 2022, DPM-Solver++, algorithm 2).
pub(super) fn multistep(weights: &Weights, kind: SolverType, sigmas: &[f64], to: f64) -> Vec<f64> {
    let h = (sigmas[0] / to).ln();
    match *sigmas {
        [_] => vec![weights.value],
        [newest, before] => {
            let slope = weights.second_order(kind) * h / (before / newest).ln();
            vec![weights.value + slope, -slope]
        }
        [newest, before, oldest, ..] => {
            let (first, second) = ((before / newest).ln() / h, (oldest / before).ln() / h);
            let (both, share) = (first + second, first / (first + second));
            let of_late = (weights.slope * (1.0 + share) + weights.curve / both) / first;
            let of_early = -(weights.slope * share + weights.curve / both) / second;
            vec![weights.value + of_late, of_early - of_late, -of_early]
        }
        [] => Vec::new(),
    }
}

/// Latents and what the network gave, each times its weight: all `(b, c, h, w)` f32.
pub(super) fn weighed<'a>(
    latents: &Tensor,
    weight: f64,
    others: impl IntoIterator<Item = (&'a Tensor, f64)>,
) -> Result<Tensor> {
    let mut sum = (latents * weight)?;
    for (tensor, weight) in others.into_iter().filter(|(_, weight)| *weight != 0.0) {
        sum = (sum + (tensor * weight)?)?;
    }
    Ok(sum)
}

/// Of what order each step is.
#[derive(Debug)]
pub(super) struct Orders {
    most: usize,
    /// Whether the last steps are of lower order, for a schedule is short.
    falls: bool,
    last_is_first_order: bool,
    steps_left: usize,
    done: usize,
}

impl Orders {
    /// For `steps` steps, the last of a schedule of `whole`, that end at σ = 0 or not.
    pub(super) const fn new(solver: &Solver, steps: usize, whole: usize, ends_at_zero: bool) -> Self {
        let falls = solver.lower_order_final && whole < LONG;
        let last_is_first_order = solver.euler_at_final || ends_at_zero || falls;
        Self { most: solver.order, falls, last_is_first_order, steps_left: steps, done: 0 }
    }

    /// The next step's.
    pub(super) fn next(&mut self) -> usize {
        let left = self.steps_left;
        self.steps_left = left.saturating_sub(1);
        let known = self.done + 1;
        self.done = known;
        let allowed = match left {
            0 | 1 if self.last_is_first_order => 1,
            2 if self.falls => 2,
            _ => self.most,
        };
        self.most.min(known).min(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_constant_all_solvers_are_exact() {
        // With x₀ or ε fixed the ODE's end is known, whatever the order.
        for (algorithm, wanted) in [
            (Algorithm::DpmSolverPp, [noise_share(0.5) / noise_share(3.0), 0.0]),
            (Algorithm::DpmSolver, [signal_share(0.5) / signal_share(3.0), 0.0]),
        ] {
            let weights = Weights::new(algorithm, 3.0, 0.5);
            assert!((weights.latents - wanted[0]).abs() < 1e-12);
            for sigmas in [&[3.0][..], &[3.0, 5.0], &[3.0, 5.0, 9.0]] {
                let sum: f64 = multistep(&weights, SolverType::Heun, sigmas, 0.5).iter().sum();
                assert!((sum - weights.value).abs() < 1e-12, "{algorithm:?} {sigmas:?}");
            }
        }
    }

    #[test]
    fn orders_rise_and_fall() {
        let solver = |order, lower_order_final| Solver {
            algorithm: Algorithm::DpmSolverPp,
            order,
            kind: SolverType::Midpoint,
            lower_order_final,
            euler_at_final: false,
        };
        let all = |order, falls, steps, zero| {
            let mut orders = Orders::new(&solver(order, falls), steps, steps, zero);
            (0..steps).map(|_| orders.next()).collect::<Vec<_>>()
        };
        assert_eq!(all(3, true, 6, true), [1, 2, 3, 3, 2, 1]);
        assert_eq!(all(3, false, 6, false), [1, 2, 3, 3, 3, 3]);
        assert_eq!(all(2, false, 4, true), [1, 2, 2, 1]);
        assert_eq!(all(3, true, 15, false)[12..], [3, 3, 3]);
        assert_eq!(all(3, true, 1, true), [1]);
    }
}
