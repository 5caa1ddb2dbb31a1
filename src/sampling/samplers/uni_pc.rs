//! UniPC: a predictor, and a corrector that needs no second look at the network.

use candle_core::Tensor;

use super::{
    super::{
        Bh, Bound, SchedulerOptions, UniPcOptions,
        level::{noise_share, signal_share},
    },
    ddim::transfer,
    deis::slope,
    dpm_solver::weighed,
};
use crate::Result;

/// One drawing's history.
#[derive(Debug)]
pub(super) struct UniPc {
    options: UniPcOptions,
    /// Of what order the predictor is at most, and the corrector of one more.
    most: usize,
    lower_order_final: bool,
    bound: Bound,
    /// What the network last gave, x₀ or ε, with its σ; the newest first.
    outputs: Vec<(Tensor, f64)>,
    /// Where the last step began, and its order.
    last: Option<(Tensor, usize)>,
    steps_left: usize,
    whole: usize,
}

impl UniPc {
    /// For `steps` steps, the last of a schedule of `whole`.
    pub(super) fn new(options: &SchedulerOptions, steps: usize, whole: usize) -> Self {
        Self {
            options: options.uni_pc.clone(),
            most: options.solver.order,
            lower_order_final: options.solver.lower_order_final,
            bound: options.bound,
            outputs: Vec::new(),
            last: None,
            steps_left: steps,
            whole,
        }
    }

    /// Zhao et al. 2023, algorithms 5 and 6 for x₀, 7 and 8 for ε: the latents are corrected by what the network has just
    /// taken them to be, then the next are predicted.
    pub(super) fn step(&mut self, x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
        let output =
            if self.options.predicts_x0 { self.bound.of(denoised.clone())? } else { slope(x, denoised, from)? };
        let number = self.whole - self.steps_left;
        let x = match self.last.take() {
            Some((start, order)) if !self.options.uncorrected.contains(&(number - 1)) => {
                self.corrected(&start, &output, from, order)?
            }
            _ => x.clone(),
        };
        self.outputs.insert(0, (output, from));
        self.outputs.truncate(self.most);
        let most = match (self.lower_order_final, to == 0.0) {
            (true, _) => self.steps_left.min(self.most),
            (false, true) => 1,
            (false, false) => self.most,
        };
        let order = self.outputs.len().min(most);
        self.steps_left = self.steps_left.saturating_sub(1);
        let predicted = self.predicted(&x, from, to, order)?;
        self.last = Some((x, order));
        Ok(predicted)
    }

    /// Everything that is kept from one step to the next.
    pub(super) fn history(&mut self) -> Vec<&mut Tensor> {
        let outputs = self.outputs.iter_mut().map(|(tensor, _)| tensor);
        outputs.chain(self.last.iter_mut().map(|(start, _)| start)).collect()
    }

    /// UniP: equation 9. diffusers takes ρ₁ = 1/2 for the second order.
    fn predicted(&self, x: &Tensor, from: f64, to: f64, order: usize) -> Result<Tensor> {
        let moved = self.moved(x, from, to)?;
        if order == 1 {
            return Ok(moved);
        }
        let equations = Equations::new(self, from, to, order);
        let rho = if order == 2 { vec![0.5] } else { equations.solved(order - 1) };
        self.with_differences(moved, &equations, &rho, to)
    }

    /// UniC: equation 8, from the last step's `start` again to the level `to` where the network gave `output`.
    fn corrected(&self, start: &Tensor, output: &Tensor, to: f64, order: usize) -> Result<Tensor> {
        let (newest, from) = (&self.outputs[0].0, self.outputs[0].1);
        let equations = Equations::new(self, from, to, order);
        let rho = if order == 1 { vec![0.5] } else { equations.solved(order) };
        let moved = self.with_differences(self.moved(start, from, to)?, &equations, &rho[..order - 1], to)?;
        let weight = self.share(to) * equations.scale * rho[order - 1];
        Ok((moved - ((output - newest)? * weight)?)?)
    }

    /// The step of first order.
    fn moved(&self, x: &Tensor, from: f64, to: f64) -> Result<Tensor> {
        let newest = &self.outputs[0].0;
        if self.options.predicts_x0 {
            return transfer(x, newest, from, to);
        }
        weighed(x, signal_share(to) / signal_share(from), [(newest, -signal_share(to) * (from - to))])
    }

    /// `moved` less the older outputs' differences from the newest, each over its place and times its ρ.
    fn with_differences(&self, moved: Tensor, equations: &Equations, rho: &[f64], to: f64) -> Result<Tensor> {
        let factor = self.share(to) * equations.scale;
        let weights = rho.iter().zip(&equations.places).map(|(rho, place)| -factor * rho / place);
        let weights: Vec<f64> = weights.collect();
        let of_newest = -weights.iter().sum::<f64>();
        let older = self.outputs[1..].iter().map(|(output, _)| output).zip(weights);
        weighed(&moved, 1.0, older.chain([(&self.outputs[0].0, of_newest)]))
    }

    /// The factor of what is extrapolated.
    fn share(&self, to: f64) -> f64 {
        if self.options.predicts_x0 { signal_share(to) } else { noise_share(to) }
    }
}

/// Theorem 3.1's equations R ρ = b for a step.
struct Equations {
    /// Where the older outputs are, in steps: r.
    places: Vec<f64>,
    right: Vec<f64>,
    /// B(h).
    scale: f64,
}

impl Equations {
    fn new(rule: &UniPc, from: f64, to: f64, order: usize) -> Self {
        let h = (from / to).ln();
        let older = rule.outputs[1..].iter().take(order - 1);
        let places = older.map(|(_, sigma)| (from / sigma).ln() / h).collect();
        let signed = if rule.options.predicts_x0 { -h } else { h };
        let scale = match rule.options.bh {
            Bh::One => signed,
            Bh::Two => signed.exp_m1(),
        };
        let (mut phi, mut factorial) = (signed.exp_m1() / signed - 1.0, 1.0);
        let right = (1..=order).map(|number| {
            let right = phi * factorial / scale;
            #[expect(clippy::cast_precision_loss, reason = "orders are three at most")]
            {
                factorial *= (number + 1) as f64;
            }
            phi = phi / signed - 1.0 / factorial;
            right
        });
        Self { right: right.collect(), places, scale }
    }

    /// The first `count` equations, solved for as many ρ: those of the older outputs, then that of the newest.
    fn solved(&self, count: usize) -> Vec<f64> {
        let places: Vec<f64> = self.places.iter().copied().chain([1.0]).take(count).collect();
        let mut rows: Vec<Vec<f64>> = Vec::new();
        let mut powers = vec![1.0; count];
        for right in &self.right[..count] {
            rows.push(powers.iter().copied().chain([*right]).collect());
            powers.iter_mut().zip(&places).for_each(|(power, place)| *power *= place);
        }
        eliminated(rows)
    }
}

/// The solution of linear equations, each its coefficients and then its right side, by Gauss's elimination: the places that
/// make them differ, and their first column is of ones.
fn eliminated(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let count = rows.len();
    for pivot in 0..count {
        let (above, below) = rows.split_at_mut(pivot + 1);
        let above = &above[pivot];
        for row in below {
            let share = row[pivot] / above[pivot];
            row.iter_mut().zip(above).for_each(|(value, above)| *value -= share * above);
        }
    }
    let mut solution = vec![0.0; count];
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count).map(|column| rows[row][column] * solution[column]).sum();
        solution[row] = (rows[row][count] - known) / rows[row][row];
    }
    solution
}
