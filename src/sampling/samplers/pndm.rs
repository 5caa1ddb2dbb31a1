//! Pseudo numerical methods: the linear multi-step rule, and its start by Runge and Kutta's method.

use candle_core::Tensor;

use super::{
    super::{
        PredictionType,
        schedule::{Level, SecondLook, Step},
    },
    Asked, Stepped,
    ddim::transfer,
    dpm_solver::weighed,
};
use crate::Result;

/// One drawing's history.
#[derive(Debug)]
pub(super) struct Pndm {
    /// What the network last gave, the newest first.
    pub outputs: Vec<Tensor>,
    prediction: PredictionType,
    /// Where the steps that start by Runge and Kutta's method end, the next last.
    ends: Vec<Level>,
}

impl Pndm {
    /// The first steps start by Runge and Kutta's method where `ends` has their ends.
    pub(super) fn new(prediction: PredictionType, mut ends: Vec<Level>) -> Self {
        ends.reverse();
        Self { outputs: Vec::new(), prediction, ends }
    }

    /// Liu et al. 2022, equation 12: a linear multi-step rule on the network's outputs, of up to fourth order, then DDIM's
    /// step. As in diffusers, the outputs are combined as the network gives them, and turned into x₀ at the latents' level.
    pub(super) fn step(&mut self, x: &Tensor, denoised: &Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
        let (from, to) = (step.level.sigma, step.next_sigma);
        self.outputs.insert(0, self.prediction.output(x, denoised, from)?);
        self.outputs.truncate(4);
        if let Some(second) = step.second {
            return match self.ends.pop() {
                Some(end) => self.runge_kutta(x, denoised, from, second, end, asked),
                None => self.improved_euler(x, denoised, step, second, asked),
            };
        }
        let weights: &[f64] = match self.outputs.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let others = self.outputs.iter().zip(weights.iter().copied()).skip(1);
        let combined = weighed(&self.outputs[0], weights[0], others)?;
        let denoised = self.prediction.denoised(x, &combined, from)?;
        Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised })
    }

    /// The pseudo improved Euler step of latent diffusion's PLMS.
    fn improved_euler(
        &self,
        x: &Tensor,
        denoised: &Tensor,
        step: &Step,
        second: SecondLook,
        asked: Asked<'_>,
    ) -> Result<Stepped> {
        let predicted = transfer(x, denoised, step.level.sigma, step.next_sigma)?;
        let predicted = (asked.between)(predicted, second.level)?;
        let again = (asked.denoise)(&predicted, second.level)?;
        let output = self.prediction.output(&predicted, &again, second.level.sigma)?;
        let mean = ((output + &self.outputs[0])? * 0.5)?;
        let denoised = self.prediction.denoised(x, &mean, second.from_sigma)?;
        Ok(Stepped { latents: transfer(x, &denoised, second.from_sigma, second.next_sigma)?, denoised })
    }

    /// Liu et al. 2022, equation 13, the pseudo Runge-Kutta method: the network is asked four times, at the step's start,
    /// twice half way and at its end.
    fn runge_kutta(
        &self,
        x: &Tensor,
        denoised: &Tensor,
        from: f64,
        half: SecondLook,
        end: Level,
        asked: Asked<'_>,
    ) -> Result<Stepped> {
        let mut sum = weighed(&self.outputs[0], 1.0 / 6.0, [])?;
        let mut denoised = denoised.clone();
        let looks = [
            (half.from_sigma, half.level, 1.0 / 3.0),
            (half.level.sigma, half.level, 1.0 / 3.0),
            (half.next_sigma, end, 1.0 / 6.0),
        ];
        for (to, level, weight) in looks {
            let ahead = (asked.between)(transfer(x, &denoised, from, to)?, level)?;
            let given = (asked.denoise)(&ahead, level)?;
            let output = self.prediction.output(&ahead, &given, level.sigma)?;
            sum = (sum + (&output * weight)?)?;
            denoised = self.prediction.denoised(x, &output, from)?;
        }
        let denoised = self.prediction.denoised(x, &sum, from)?;
        Ok(Stepped { latents: transfer(x, &denoised, from, half.next_sigma)?, denoised })
    }
}
