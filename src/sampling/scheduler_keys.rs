//! The keys of `scheduler_config.json`: which of diffusers' classes read each, its defaults, and what becomes of it here.
//!
//! Owns the table, [`KEYS`], and the values that a file may have. `tests/reference/data/scheduler_keys.json` has the keys
//! and defaults of diffusers itself, which a test below compares. The file is long because the table is. Next:
//! `scheduler_reader` reads a file by it.

use std::fmt;

use serde::{Deserialize, de::IgnoredAny};

use super::SamplerKind::{
    self, Ddim, Ddpm, Deis, Dpm2, Dpm2Ancestral, DpmSingle, Dpmpp2m, DpmppSde, EdmDpmpp2m, EdmEuler, Euler,
    EulerAncestral, Heun, Lcm, Lms, Pndm, Tcd, UniPc,
};

/// A value in `scheduler_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// Not set: the same as a key that is absent.
    Null,
    /// True or false.
    Flag(bool),
    /// A number; whole ones are exact up to 2^53.
    Number(f64),
    /// A name.
    Text(String),
    /// A list of numbers.
    Numbers(Vec<f64>),
    /// A list of names.
    Texts(Vec<String>),
    /// What no key of the table takes.
    Other(IgnoredAny),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Numbers(numbers) => write!(f, "a list of {} numbers", numbers.len()),
            Self::Texts(texts) => write!(f, "a list of {} strings", texts.len()),
            Self::Other(_) => f.write_str("an object or a mixed list"),
        }
    }
}

/// A value in the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fixed {
    Null,
    Flag(bool),
    Number(f64),
    Text(&'static str),
    /// A list of no numbers.
    Empty,
}

impl From<Fixed> for Setting {
    fn from(fixed: Fixed) -> Self {
        match fixed {
            Fixed::Null => Self::Null,
            Fixed::Flag(flag) => Self::Flag(flag),
            Fixed::Number(number) => Self::Number(number),
            Fixed::Text(text) => Self::Text(text.to_owned()),
            Fixed::Empty => Self::Numbers(Vec::new()),
        }
    }
}

/// What becomes of a key of the class that draws.
#[derive(Debug)]
pub(super) enum Treatment {
    /// The drawing follows it, as in diffusers.
    Honoured,
    /// Any other value is refused.
    Only(&'static [Fixed]),
    /// It has no effect in diffusers either, while what this table allows of other keys holds.
    Idle,
}

/// One key of `scheduler_config.json`.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    /// The classes that take it.
    pub taken_by: &'static [SamplerKind],
    /// Classes that do not take it, yet read it from the file.
    pub also_read_by: &'static [SamplerKind],
    /// Classes that ignore it in diffusers, where the drawing follows it all the same if a request chose the class.
    pub beyond: &'static [SamplerKind],
    pub default: Fixed,
    /// Defaults of single classes.
    pub except: &'static [(SamplerKind, Fixed)],
    /// The default where a request chose the class and the file is another's, if that is not the class's own.
    pub when_chosen: Option<Fixed>,
    pub treatment: Treatment,
}

impl Key {
    const fn new(name: &'static str, taken_by: &'static [SamplerKind], default: Fixed, treatment: Treatment) -> Self {
        Self { name, taken_by, also_read_by: &[], beyond: &[], default, except: &[], when_chosen: None, treatment }
    }

    const fn except(self, except: &'static [(SamplerKind, Fixed)]) -> Self {
        Self { except, ..self }
    }

    const fn also_read_by(self, also_read_by: &'static [SamplerKind]) -> Self {
        Self { also_read_by, ..self }
    }

    const fn beyond(self, beyond: &'static [SamplerKind]) -> Self {
        Self { beyond, ..self }
    }

    const fn when_chosen(self, setting: Fixed) -> Self {
        Self { when_chosen: Some(setting), ..self }
    }

    /// Whether drawings of a checkpoint's own class depend on the key.
    pub(super) fn is_read_by(&self, class: SamplerKind) -> bool {
        self.taken_by.contains(&class) || self.also_read_by.contains(&class)
    }

    /// Whether drawings of a class depend on the key that a request chose for a checkpoint of another class.
    pub(super) fn is_read_by_chosen(&self, class: SamplerKind) -> bool {
        self.is_read_by(class) || self.beyond.contains(&class)
    }

    /// What a class takes where the file does not say.
    pub(super) fn default_of(&self, class: SamplerKind) -> Fixed {
        self.except.iter().find(|(other, _)| *other == class).map_or(self.default, |(_, setting)| *setting)
    }

    /// The row of a key.
    pub(super) fn named(name: &str) -> &'static Self {
        KEYS.iter().find(|key| key.name == name).expect("every key that is read has a row")
    }
}

use Fixed::{Empty, Flag, Null, Number, Text};
use Treatment::{Honoured, Idle, Only};

const NO: Fixed = Flag(false);
const YES: Fixed = Flag(true);

/// The classes whose networks were trained by a list of betas.
const TRAINED: &[SamplerKind] = &[
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Heun,
    Dpmpp2m,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    UniPc,
    Deis,
    Ddpm,
    DpmppSde,
    DpmSingle,
    Lcm,
    Tcd,
];
/// The classes whose networks were preconditioned as EDM's (Karras et al. 2022).
const EDM: &[SamplerKind] = &[EdmEuler, EdmDpmpp2m];
const ALL: &[SamplerKind] = &[
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Heun,
    Dpmpp2m,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    UniPc,
    Deis,
    Ddpm,
    DpmppSde,
    DpmSingle,
    Lcm,
    Tcd,
    EdmEuler,
    EdmDpmpp2m,
];
/// The classes that have a choice of timesteps.
const VISITORS: &[SamplerKind] = &[
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Heun,
    Dpmpp2m,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    UniPc,
    Deis,
    Ddpm,
    DpmppSde,
    Lcm,
    Tcd,
];
/// The classes that can space σ otherwise than timesteps do.
const SPACERS: &[SamplerKind] = &[Euler, Heun, Dpmpp2m, Dpm2, Dpm2Ancestral, Lms, UniPc, Deis, DpmppSde, DpmSingle];
const SPACE_BY_UNTAKEN: &[SamplerKind] = &[Heun, Dpmpp2m, Dpm2, Dpm2Ancestral, Lms, Deis, DpmppSde, DpmSingle];
const THRESHOLDERS: &[SamplerKind] = &[Ddim, Dpmpp2m, UniPc, Deis, Ddpm, DpmSingle, Lcm, Tcd, EdmDpmpp2m];
/// The classes of the DPM-Solver kind.
const SOLVERS: &[SamplerKind] = &[Dpmpp2m, UniPc, Deis, DpmSingle, EdmDpmpp2m];
/// Of these, those that know flow matching.
const FLOWS: &[SamplerKind] = &[Dpmpp2m, UniPc, Deis, DpmSingle];
/// The classes of networks that were distilled to few steps.
const DISTILLED: &[SamplerKind] = &[Lcm, Tcd];

/// Every key that a class takes.
pub(super) static KEYS: &[Key] = &[
    // How the network was trained.
    Key::new("num_train_timesteps", ALL, Number(1000.0), Honoured),
    Key::new("beta_start", TRAINED, Number(0.0001), Honoured).except(&[
        (Heun, Number(0.00085)),
        (Dpm2, Number(0.00085)),
        (Dpm2Ancestral, Number(0.00085)),
        (DpmppSde, Number(0.00085)),
        (Lcm, Number(0.00085)),
        (Tcd, Number(0.00085)),
    ]),
    Key::new("beta_end", TRAINED, Number(0.02), Honoured).except(&[
        (Heun, Number(0.012)),
        (Dpm2, Number(0.012)),
        (Dpm2Ancestral, Number(0.012)),
        (DpmppSde, Number(0.012)),
        (Lcm, Number(0.012)),
        (Tcd, Number(0.012)),
    ]),
    Key::new("beta_schedule", TRAINED, Text("linear"), Honoured)
        .except(&[(Lcm, Text("scaled_linear")), (Tcd, Text("scaled_linear"))]),
    Key::new("trained_betas", TRAINED, Null, Honoured),
    // `sample` is drawn by every sampler of these, though some of diffusers' classes have no rule for it.
    Key::new("prediction_type", ALL, Text("epsilon"), Honoured),
    // The others would draw such a network from levels that it does not know.
    Key::new("rescale_betas_zero_snr", &[Ddim, Euler, EulerAncestral, Dpmpp2m, UniPc, Ddpm, Lcm, Tcd], NO, Honoured)
        .beyond(&[Pndm, Heun, Dpm2, Dpm2Ancestral, Lms, Deis, DpmppSde, DpmSingle]),
    // A variance that the network learned needs twice the channels that networks of latents have. With `fixed_large_log`
    // diffusers takes the root of a negative number.
    Key::new(
        "variance_type",
        &[Dpmpp2m, DpmSingle, Ddpm],
        Null,
        Only(&[Null, Text("fixed_small"), Text("fixed_small_log"), Text("fixed_large")]),
    )
    .except(&[(Ddpm, Text("fixed_small"))]),
    Key::new("sigma_data", EDM, Number(0.5), Honoured),
    // Which levels a drawing visits. Distilled networks choose among their own and have no use for a spacing.
    Key::new("timestep_spacing", VISITORS, Text("linspace"), Honoured).except(&[
        (Ddim, Text("leading")),
        (Pndm, Text("leading")),
        (Ddpm, Text("leading")),
        (Lcm, Text("leading")),
        (Tcd, Text("leading")),
    ]),
    Key::new("steps_offset", VISITORS, Number(0.0), Honoured),
    Key::new("original_inference_steps", DISTILLED, Number(50.0), Honoured),
    Key::new("set_alpha_to_one", &[Ddim, Pndm, Lcm, Tcd], YES, Honoured).except(&[(Pndm, NO)]),
    // DEIS ends at the least σ, and has no choice.
    Key::new("final_sigmas_type", &[Euler, Dpmpp2m, UniPc, DpmSingle, EdmEuler, EdmDpmpp2m], Text("zero"), Honoured)
        .except(&[(Deis, Text("sigma_min"))]),
    Key::new("timestep_type", &[Euler], Text("discrete"), Honoured),
    Key::new("interpolation_type", &[Euler], Text("linear"), Honoured),
    Key::new("lambda_min_clipped", &[Dpmpp2m, DpmSingle], Number(f64::NEG_INFINITY), Honoured),
    Key::new("use_karras_sigmas", SPACERS, NO, Honoured),
    Key::new("sigma_min", &[Euler, UniPc, EdmEuler, EdmDpmpp2m], Null, Honoured)
        .except(&[(EdmEuler, Number(0.002)), (EdmDpmpp2m, Number(0.002))])
        .also_read_by(SPACE_BY_UNTAKEN),
    Key::new("sigma_max", &[Euler, UniPc, EdmEuler, EdmDpmpp2m], Null, Honoured)
        .except(&[(EdmEuler, Number(80.0)), (EdmDpmpp2m, Number(80.0))])
        .also_read_by(SPACE_BY_UNTAKEN),
    Key::new("sigma_schedule", EDM, Text("karras"), Honoured),
    Key::new("rho", EDM, Number(7.0), Honoured),
    Key::new("use_exponential_sigmas", SPACERS, NO, Honoured),
    Key::new("use_beta_sigmas", SPACERS, NO, Honoured),
    Key::new("use_lu_lambdas", &[Dpmpp2m], NO, Honoured),
    Key::new("use_flow_sigmas", FLOWS, NO, Only(&[NO])),
    // Read with use_flow_sigmas alone.
    Key::new("flow_shift", FLOWS, Number(1.0), Idle),
    Key::new("shift_terminal", &[UniPc], Null, Only(&[Null])),
    // Read where a pipeline passes mu, which Stable Diffusion's do not.
    Key::new("use_dynamic_shifting", FLOWS, NO, Idle),
    Key::new("time_shift_type", FLOWS, Text("exponential"), Idle),
    // How a step goes. Clipping is for networks that draw pixels: it spoils latents, so that a request for `ddim` does
    // not get it by the mere default of that class.
    Key::new("clip_sample", &[Ddim, Heun, Ddpm, Lcm, Tcd], NO, Honoured)
        .except(&[(Ddim, YES), (Ddpm, YES)])
        .when_chosen(NO),
    Key::new("clip_sample_range", &[Ddim, Heun, Ddpm, Lcm, Tcd], Number(1.0), Honoured),
    Key::new("thresholding", THRESHOLDERS, NO, Honoured),
    Key::new("dynamic_thresholding_ratio", THRESHOLDERS, Number(0.995), Honoured),
    Key::new("sample_max_value", THRESHOLDERS, Number(1.0), Honoured),
    Key::new("timestep_scaling", DISTILLED, Number(10.0), Honoured),
    // A request for `pndm` means the linear multi-step method.
    Key::new("skip_prk_steps", &[Pndm], NO, Honoured).when_chosen(YES),
    Key::new("solver_order", SOLVERS, Number(2.0), Only(&[Number(1.0), Number(2.0), Number(3.0)])),
    // Each class takes some other's name for its own.
    Key::new("algorithm_type", &[Dpmpp2m, Deis, DpmSingle, EdmDpmpp2m], Text("dpmsolver++"), Honoured)
        .except(&[(Deis, Text("deis"))]),
    // diffusers takes the names of its other multi-step solvers for midpoint, for DEIS' logrho or UniPC's bh2.
    Key::new("solver_type", SOLVERS, Text("midpoint"), Honoured)
        .except(&[(UniPc, Text("bh2")), (Deis, Text("logrho"))]),
    Key::new("lower_order_final", SOLVERS, YES, Honoured).except(&[(DpmSingle, NO)]),
    Key::new("predict_x0", &[UniPc], YES, Honoured),
    Key::new("disable_corrector", &[UniPc], Empty, Honoured),
    Key::new("solver_p", &[UniPc], Null, Only(&[Null])),
    Key::new("euler_at_final", &[Dpmpp2m, EdmDpmpp2m], NO, Honoured),
    // The noise is the request's own, by its seed.
    Key::new("noise_sampler_seed", &[DpmppSde], Null, Only(&[Null])),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Deserialize)]
    struct Class {
        taken: BTreeMap<String, Setting>,
        read: Vec<String>,
    }

    /// The keys of diffusers' own classes.
    fn classes() -> BTreeMap<String, Class> {
        serde_json::from_str(include_str!("../../tests/reference/data/scheduler_keys.json")).unwrap()
    }

    #[test]
    fn the_table_has_every_key_of_every_class_with_its_default_and_no_other() {
        let classes = classes();
        assert_eq!(classes.len(), ALL.len());
        for sampler in ALL.iter().copied() {
            let class = &classes[sampler.class()];
            for (name, default) in &class.taken {
                let key = KEYS.iter().find(|key| key.name == name).unwrap_or_else(|| panic!("{name} has no row"));
                assert!(key.taken_by.contains(&sampler), "{sampler} takes {name}");
                // JSON has no infinity.
                let infinite = *default == Setting::Text("-inf".to_owned());
                let default = if infinite { &Setting::Number(f64::NEG_INFINITY) } else { default };
                assert_eq!(Setting::from(key.default_of(sampler)), *default, "{sampler}, {name}");
            }
            let names = |has: fn(&Key) -> &'static [SamplerKind]| {
                let mut names: Vec<_> =
                    KEYS.iter().filter(|key| has(key).contains(&sampler)).map(|key| key.name.to_owned()).collect();
                names.sort();
                names
            };
            assert_eq!(names(|key| key.taken_by), class.taken.keys().cloned().collect::<Vec<_>>(), "{sampler}");
            assert_eq!(names(|key| key.also_read_by), class.read, "{sampler}");
        }
    }

    #[test]
    fn no_key_has_two_rows_and_refused_keys_are_none_that_a_class_s_default_needs() {
        for (number, key) in KEYS.iter().enumerate() {
            assert!(KEYS[number + 1..].iter().all(|other| other.name != key.name), "{}", key.name);
            if let Only(allowed) = key.treatment {
                for sampler in key.taken_by {
                    assert!(allowed.contains(&key.default_of(*sampler)), "{sampler}, {}", key.name);
                }
            }
        }
    }
}
