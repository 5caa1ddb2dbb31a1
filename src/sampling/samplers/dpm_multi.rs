//! DPM-Solver and DPM-Solver++ by multiple steps: `dpmpp_2m`, `dpmpp_2m_sde` and `edm_dpmpp_2m`.

use candle_core::Tensor;

use super::{
    super::{BatchNoise, Bound, Solver},
    deis::slope,
    dpm_solver::{Orders, Weights, multistep, weighed},
};
use crate::Result;

/// One drawing's history.
#[derive(Debug)]
pub(super) struct Multistep {
    solver: Solver,
    bound: Bound,
    orders: Orders,
    /// What the network last gave, x₀ or ε, with its σ; the newest first.
    pub outputs: Vec<(Tensor, f64)>,
}

impl Multistep {
    pub(super) const fn new(solver: Solver, bound: Bound, orders: Orders) -> Self {
        Self { solver, bound, orders, outputs: Vec::new() }
    }

    /// Lu et al. 2022 (DPM-Solver++), algorithm 2, of up to third order, or DPM-Solver's multistep form of it; for the reverse
    /// SDE with one normal for each latent, drawn whatever its weight.
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
        let order = self.orders.next();
        let noise = if algorithm.is_stochastic() { Some(noise.like(x)?) } else { None };
        // A last step may end where it begins.
        if from <= to {
            return Ok(x.clone());
        }
        let sigmas: Vec<f64> = self.outputs[..order].iter().map(|(_, sigma)| *sigma).collect();
        let weights = Weights::new(algorithm, from, to);
        let shares = multistep(&weights, self.solver.kind, &sigmas, to);
        let outputs = self.outputs.iter().map(|(output, _)| output).zip(shares);
        weighed(x, weights.latents, outputs.chain(noise.iter().map(|noise| (noise, weights.noise))))
    }
}
