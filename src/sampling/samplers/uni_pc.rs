//! UniPC: a predictor, and a corrector that needs no second look at the network.

use candle_core::Tensor;

use super::{
    super::{Bh, level::signal_share},
    ddim::transfer,
};
use crate::Result;

/// Of what order the method is: the predictor of this, the corrector of one more.
const ORDER: usize = 2;

/// One drawing's history.
#[derive(Debug)]
pub(super) struct UniPc {
    bh: Bh,
    /// The last x₀ and their σ, newest first.
    denoised: Vec<(Tensor, f64)>,
    /// Where the last step began, and its order.
    last: Option<(Tensor, usize)>,
    steps_left: usize,
    lower_order_final: bool,
}

impl UniPc {
    pub(super) fn new(bh: Bh, steps: usize, lower_order_final: bool) -> Self {
        Self { bh, denoised: Vec::new(), last: None, steps_left: steps, lower_order_final }
    }

    /// Zhao et al. 2023, algorithms 5 and 6, with x₀ predicted: the latents are corrected by what the network has just
    /// taken them to be, then the next are predicted.
    pub(super) fn step(&mut self, x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
        let x = match self.last.take() {
            Some((start, order)) => self.corrected(&start, denoised, from, order)?,
            None => x.clone(),
        };
        self.denoised.insert(0, (denoised.clone(), from));
        self.denoised.truncate(ORDER);
        let most = if self.lower_order_final || to == 0.0 { self.steps_left } else { ORDER };
        let order = self.denoised.len().min(most);
        self.steps_left = self.steps_left.saturating_sub(1);
        let predicted = self.predicted(&x, from, to, order)?;
        self.last = Some((x, order));
        Ok(predicted)
    }

    /// Everything that is kept from one step to the next.
    pub(super) fn history(&mut self) -> Vec<&mut Tensor> {
        let denoised = self.denoised.iter_mut().map(|(tensor, _)| tensor);
        denoised.chain(self.last.iter_mut().map(|(start, _)| start)).collect()
    }

    /// UniP: equation 9 with ρ₁ = 1/2.
    fn predicted(&self, x: &Tensor, from: f64, to: f64, order: usize) -> Result<Tensor> {
        let newest = &self.denoised[0].0;
        let moved = transfer(x, newest, from, to)?;
        if order < ORDER {
            return Ok(moved);
        }
        let (difference, _) = self.difference(from, to)?;
        let factor = signal_share(to) * self.bh.of((from / to).ln());
        Ok((moved - (difference * (factor * 0.5))?)?)
    }

    /// UniC: equation 8, from the last step's `start` again to the level `to` where the network gave `denoised`.
    fn corrected(&self, start: &Tensor, denoised: &Tensor, to: f64, order: usize) -> Result<Tensor> {
        let (newest, from) = (&self.denoised[0].0, self.denoised[0].1);
        let h = (from / to).ln();
        let moved = transfer(start, newest, from, to)?;
        let last = (denoised - newest)?;
        let factor = signal_share(to) * self.bh.of(h);
        if order < ORDER {
            return Ok((moved - (last * (factor * 0.5))?)?);
        }
        let (difference, r) = self.difference(from, to)?;
        // Of the equations ρ₁ + ρ₂ = b₁ and r ρ₁ + ρ₂ = b₂, by φ of −h.
        let phi_2 = (-h).exp_m1() / -h - 1.0;
        let phi_3 = phi_2 / -h - 0.5;
        let (b_1, b_2) = (phi_2 / self.bh.of(h), 2.0 * phi_3 / self.bh.of(h));
        let rho_1 = (b_1 - b_2) / (1.0 - r);
        let correction = ((difference * rho_1)? + (last * (b_1 - rho_1))?)?;
        Ok((moved - (correction * factor)?)?)
    }

    /// D₁ / r of the last two x₀ for a step between these σ, and r.
    fn difference(&self, from: f64, to: f64) -> Result<(Tensor, f64)> {
        let (newest, (before, before_sigma)) = (&self.denoised[0].0, &self.denoised[1]);
        // λ = −ln σ.
        let r = (from / before_sigma).ln() / (from / to).ln();
        Ok((((before - newest)? / r)?, r))
    }
}

impl Bh {
    /// B(h) for a step of length h in λ, with x₀ predicted.
    fn of(self, h: f64) -> f64 {
        match self {
            Self::One => -h,
            Self::Two => (-h).exp_m1(),
        }
    }
}
