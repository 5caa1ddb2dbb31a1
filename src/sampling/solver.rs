//! What a checkpoint's solver of the DPM-Solver kind is told to be.
//!
//! Owns the choices that `scheduler_config.json` has for these solvers; the formulas are those of `samplers`.

/// The function B(h) of UniPC (Zhao et al. 2023, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bh {
    /// The step's length in λ.
    One,
    /// Its exponential less one.
    Two,
}

/// What DPM-Solver solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The probability-flow ODE, of ε (Lu et al. 2022, DPM-Solver).
    DpmSolver,
    /// The same, of x₀ (Lu et al. 2022, DPM-Solver++).
    DpmSolverPp,
    /// The reverse SDE, of ε.
    SdeDpmSolver,
    /// The same, of x₀.
    SdeDpmSolverPp,
}

impl Algorithm {
    /// The name in `scheduler_config.json`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::DpmSolver => "dpmsolver",
            Self::DpmSolverPp => "dpmsolver++",
            Self::SdeDpmSolver => "sde-dpmsolver",
            Self::SdeDpmSolverPp => "sde-dpmsolver++",
        }
    }

    /// Whether it adds noise.
    pub(super) const fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPp)
    }

    /// Whether it extrapolates x₀, and not ε.
    pub(super) const fn is_of_x0(self) -> bool {
        matches!(self, Self::DpmSolverPp | Self::SdeDpmSolverPp)
    }
}

/// How DPM-Solver weighs the slope of its second order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SolverType {
    /// By half of what weighs the value.
    Midpoint,
    /// By the exact integral.
    Heun,
}

/// How a solver of the DPM-Solver kind goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Solver {
    /// What is solved.
    pub algorithm: Algorithm,
    /// Of what order at most, 1..=3.
    pub order: usize,
    /// The second order's kind.
    pub kind: SolverType,
    /// Whether the last steps of a short schedule are of lower order.
    pub lower_order_final: bool,
    /// Whether the last step is of first order in any case.
    pub euler_at_final: bool,
}

/// How UniPC goes, besides what [`Solver`] says.
#[derive(Debug, Clone, PartialEq)]
pub struct UniPcOptions {
    /// B(h).
    pub bh: Bh,
    /// Whether x₀ is extrapolated, and not ε.
    pub predicts_x0: bool,
    /// The steps after which latents are not corrected, by their number in the whole schedule.
    pub uncorrected: Vec<usize>,
}

/// The noise that DDPM adds (Ho et al. 2020, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variance {
    /// The posterior's.
    Small,
    /// The whole step's.
    Large,
}

/// How networks were preconditioned as EDM's (Karras et al. 2022, table 1), and which σ they are asked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edm {
    /// The deviation of the data.
    pub sigma_data: f64,
    /// Equation 5's exponent; `None` spaces σ evenly in their logarithm.
    pub rho: Option<f64>,
}
