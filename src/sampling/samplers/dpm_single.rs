//! DPM-Solver and DPM-Solver++ by single steps.

use candle_core::Tensor;

use super::{
    super::{BatchNoise, Bound, FinalSigmas, SchedulerOptions, Solver, SolverType},
    deis::slope,
    dpm_solver::{Weights, weighed},
};
use crate::Result;

/// One drawing's history.
#[derive(Debug)]
pub(super) struct Single {
    solver: Solver,
    bound: Bound,
    /// The orders of the steps that are left, the next last.
    orders: Vec<usize>,
    /// What the network last gave, x₀ or ε, with its σ; the newest first.
    outputs: Vec<(Tensor, f64)>,
    /// Where the last step of first order began.
    start: Option<Tensor>,
}

impl Single {
    /// For `steps` steps, the last of a schedule of `whole`.
    pub(super) fn new(options: &SchedulerOptions, steps: usize, whole: usize) -> Self {
        let mut orders = orders(&options.solver, whole, options.final_sigmas == FinalSigmas::Zero);
        orders.drain(..whole - steps);
        orders.reverse();
        Self { solver: options.solver.clone(), bound: options.bound, orders, outputs: Vec::new(), start: None }
    }

    /// Lu et al. 2022 (DPM-Solver++), algorithm 1, and DPM-Solver, algorithms 1 and 2: a step of second or third order begins
    /// again where the step of first order before it began, with what the network gave since. The network is asked once a
    /// step. For the reverse SDE each step draws one normal for each latent.
    pub(super) fn step(
        &mut self,
        x: &Tensor,
        denoised: &Tensor,
        (from, to): (f64, f64),
        noise: &mut BatchNoise,
    ) -> Result<Tensor> {
        let algorithm = self.solver.algorithm;
        let denoised = self.bound.of(denoised.clone())?;
        let output = if algorithm.is_of_x0() { denoised } else { slope(x, &denoised, from)? };
        self.outputs.insert(0, (output, from));
        self.outputs.truncate(self.solver.order);
        let noise = if algorithm.is_stochastic() { Some(noise.like(x)?) } else { None };
        // Where a picture was begun with, the outputs of a step's first part may be missing.
        let order = self.orders.pop().unwrap_or(1).min(self.outputs.len());
        let start = match &self.start {
            Some(start) if order > 1 => start.clone(),
            _ => x.clone(),
        };
        let sigmas: Vec<f64> = self.outputs[..order].iter().map(|(_, sigma)| *sigma).collect();
        let weights = Weights::new(algorithm, sigmas[order - 1], to);
        let shares = shares(&weights, self.solver.kind, &sigmas, to);
        let outputs = self.outputs.iter().map(|(output, _)| output).zip(shares);
        let latents =
            weighed(&start, weights.latents, outputs.chain(noise.iter().map(|noise| (noise, weights.noise))))?;
        self.start = Some(start);
        Ok(latents)
    }

    /// Everything that is kept from one step to the next.
    pub(super) fn history(&mut self) -> Vec<&mut Tensor> {
        self.outputs.iter_mut().map(|(tensor, _)| tensor).chain(&mut self.start).collect()
    }
}

/// The weights of what the network gave at `sigmas`, the newest first, in a step that begins at the last of them.
fn shares(weights: &Weights, kind: SolverType, sigmas: &[f64], to: f64) -> Vec<f64> {
    let start = sigmas[sigmas.len() - 1];
    // How much of the step lies before a σ.
    let part = |sigma: f64| (start / sigma).ln() / (start / to).ln();
    match *sigmas {
        [newest, _] => {
            let slope = weights.second_order(kind) / part(newest);
            vec![slope, weights.value - slope]
        }
        [newest, middle, _] => {
            let (late, early) = (part(newest), part(middle));
            let (of_late, of_early) = match kind {
                SolverType::Midpoint => (weights.slope / late, 0.0),
                SolverType::Heun => {
                    let of_late = (2.0 * weights.curve - early * weights.slope) / (late - early);
                    let of_early = (late * weights.slope - 2.0 * weights.curve) / (late - early);
                    (of_late / late, of_early / early)
                }
            };
            vec![of_late, of_early, weights.value - of_late - of_early]
        }
        _ => vec![weights.value],
    }
}

/// The orders of a schedule's steps, as diffusers has them: each step of second or third order ends a group that begins with
/// one of first order.
fn orders(solver: &Solver, steps: usize, ends_at_zero: bool) -> Vec<usize> {
    let most = solver.order;
    let falls = solver.lower_order_final || !steps.is_multiple_of(most) || ends_at_zero;
    let mut orders: Vec<usize> = (0..steps).map(|number| number % most + 1).collect();
    if falls && steps.is_multiple_of(most) {
        // The last group becomes one of lower order, and a step of first order.
        let last = steps - 1;
        orders[last] = 1;
    }
    if ends_at_zero {
        orders[steps - 1] = 1;
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Algorithm;

    #[test]
    fn orders_are_diffusers() {
        let solver = |order, lower_order_final| Solver {
            algorithm: Algorithm::DpmSolverPp,
            order,
            kind: SolverType::Midpoint,
            lower_order_final,
            euler_at_final: false,
        };
        let found = |order, falls, steps, zero| orders(&solver(order, falls), steps, zero);
        assert_eq!(found(3, true, 6, false), [1, 2, 3, 1, 2, 1]);
        assert_eq!(found(3, true, 7, false), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(found(3, true, 8, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(found(3, true, 8, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(found(3, false, 6, false), [1, 2, 3, 1, 2, 3]);
        assert_eq!(found(2, true, 6, false), [1, 2, 1, 2, 1, 1]);
        assert_eq!(found(2, false, 6, false), [1, 2, 1, 2, 1, 2]);
        assert_eq!(found(2, false, 6, true), [1, 2, 1, 2, 1, 1]);
        assert_eq!(found(1, true, 3, true), [1, 1, 1]);
    }
}
