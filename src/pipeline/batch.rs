//! How many images a network pass draws together.

use std::{fmt, num::NonZeroUsize, str::FromStr};

use candle_core::Device;

/// The most images that a pass draws where nobody says how many.
const AUTOMATIC: usize = 8;
/// The most that can be asked for.
const MOST: usize = 64;

/// How many images a network pass draws together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchChoice {
    /// One on the CPU, which gains nothing from more; up to eight elsewhere.
    #[default]
    Auto,
    /// So many, at most.
    Most(NonZeroUsize),
}

impl BatchChoice {
    /// The most images for a device.
    pub(super) fn resolve(self, device: &Device) -> usize {
        match self {
            Self::Most(most) => most.get(),
            Self::Auto if device.is_cpu() => 1,
            Self::Auto => AUTOMATIC,
        }
    }
}

impl fmt::Display for BatchChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Most(most) => most.fmt(f),
        }
    }
}

impl FromStr for BatchChoice {
    type Err = String;

    fn from_str(choice: &str) -> Result<Self, String> {
        if choice == "auto" {
            return Ok(Self::Auto);
        }
        let most = choice.parse().ok().filter(|most: &NonZeroUsize| most.get() <= MOST);
        most.map(Self::Most).ok_or_else(|| format!("is \"{choice}\"; auto or 1 to {MOST} is allowed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_draws_one_by_one_unless_it_is_told_otherwise() {
        assert_eq!(BatchChoice::Auto.resolve(&Device::Cpu), 1);
        assert_eq!("4".parse::<BatchChoice>().unwrap().resolve(&Device::Cpu), 4);
    }

    #[test]
    fn a_choice_is_read_back_and_a_wrong_one_refused() {
        for choice in ["auto", "1", "64"] {
            assert_eq!(choice.parse::<BatchChoice>().unwrap().to_string(), choice);
        }
        for choice in ["0", "65", "-1", "many", ""] {
            let wanted = format!("is \"{choice}\"; auto or 1 to 64 is allowed");
            assert_eq!(choice.parse::<BatchChoice>(), Err(wanted));
        }
    }
}
