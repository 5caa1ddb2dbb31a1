//! Whether a machine's driver and GPU run a program that was compiled for some CUDA and some GPU: arithmetic alone.

use std::fmt;

/// A version of two numbers, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Before the point.
    pub major: u32,
    /// Behind the point.
    pub minor: u32,
}

impl Version {
    /// A version as CUDA counts them: 13000 is 13.0, 12080 is 12.8.
    pub const fn of_cuda(number: u32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The CUDA that this program was compiled with.
#[cfg(feature = "cuda")]
pub const BUILT_FOR: Version = Version::of_cuda(match u32::from_str_radix(env!("DARKROOM_CUDA_VERSION"), 10) {
    Ok(number) => number,
    Err(_) => panic!("the build script writes a number"),
});

/// What GPUs compiled kernels are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The compute capability.
    pub capability: Version,
    /// Whether later GPUs run them, too. What is compiled for Hopper and later uses what each GPU alone has.
    pub or_later: bool,
}

impl Target {
    /// What kernels in PTX, CUDA's assembly, are for: their line `.target sm_86`, or `.target sm_90a` for one GPU alone.
    pub fn of_ptx(ptx: &str) -> Option<Self> {
        let target = ptx.split_once(".target sm_")?.1;
        let digits: String = target.chars().take_while(char::is_ascii_digit).collect();
        let number: u32 = digits.parse().ok()?;
        let or_later = !target[digits.len()..].starts_with(['a', 'f']);
        Some(Self { capability: Version { major: number / 10, minor: number % 10 }, or_later })
    }

    fn runs_on(self, capability: Version) -> bool {
        capability == self.capability || (self.or_later && capability > self.capability)
    }
}

/// What a driver says.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The newest CUDA that the driver runs.
    pub driver: Version,
    /// How many devices there are.
    pub devices: usize,
    /// The compute capability of the device that is asked for, where it is there.
    pub capability: Option<Version>,
}

impl Machine {
    /// Why device `number` does not run a program compiled with CUDA `built` for the GPUs of `target`.
    pub fn refusal(&self, number: usize, built: Version, target: Option<Target>) -> Option<String> {
        if self.driver < built {
            return Some(format!(
                "the driver runs CUDA {} and this program needs {built}: install a newer driver, or compile with CUDA {}",
                self.driver, self.driver
            ));
        }
        let Some(capability) = self.capability else {
            return Some(match self.devices {
                0 => "the driver finds no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or draw on \"cpu\""
                    .to_owned(),
                1 => format!("there is no device {number}; the one there is is cuda:0"),
                devices => format!("there is no device {number}; cuda:0 to cuda:{} are there", devices - 1),
            });
        };
        let target = target.filter(|target| !target.runs_on(capability))?;
        let or_later = if target.or_later { " or later" } else { "" };
        Some(format!(
            "the GPU has compute capability {capability} and this program was compiled for {}{or_later}: compile with \
             CUDA_COMPUTE_CAP={}{}",
            target.capability, capability.major, capability.minor
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: Version = Version::of_cuda(13000);
    const HOPPER: Target = Target { capability: Version { major: 9, minor: 0 }, or_later: false };
    const AMPERE: Target = Target { capability: Version { major: 8, minor: 6 }, or_later: true };

    fn refusal(driver: u32, devices: usize, number: usize, capability: Option<(u32, u32)>) -> Option<String> {
        refusal_of(driver, devices, number, capability, HOPPER)
    }

    fn refusal_of(
        driver: u32,
        devices: usize,
        number: usize,
        capability: Option<(u32, u32)>,
        target: Target,
    ) -> Option<String> {
        let capability = capability.map(|(major, minor)| Version { major, minor });
        Machine { driver: Version::of_cuda(driver), devices, capability }.refusal(number, BUILT, Some(target))
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_to_do() {
        assert_eq!(refusal(13000, 1, 0, Some((9, 0))), None);
        // A later driver runs what was compiled before it, and mostly so does a later GPU.
        assert_eq!(refusal(13020, 2, 1, Some((9, 0))), None);
        assert_eq!(refusal_of(13000, 1, 0, Some((12, 0)), AMPERE), None);
        let old = refusal(12080, 1, 0, Some((9, 0))).unwrap();
        assert!(old.starts_with("the driver runs CUDA 12.8 and this program needs 13.0: install a newer"), "{old}");
        assert_eq!(refusal(13000, 1, 3, None).unwrap(), "there is no device 3; the one there is is cuda:0");
        assert_eq!(refusal(13000, 4, 4, None).unwrap(), "there is no device 4; cuda:0 to cuda:3 are there");
        assert!(refusal(13000, 0, 0, None).unwrap().starts_with("the driver finds no GPU"));
        let other = refusal(13000, 1, 0, Some((10, 0))).unwrap();
        assert!(
            other.ends_with("10.0 and this program was compiled for 9.0: compile with CUDA_COMPUTE_CAP=100"),
            "{other}"
        );
        let older = refusal_of(13000, 1, 0, Some((7, 5)), AMPERE).unwrap();
        assert!(
            older.ends_with("7.5 and this program was compiled for 8.6 or later: compile with CUDA_COMPUTE_CAP=75")
        );
    }

    #[test]
    fn kernels_say_what_they_were_compiled_for() {
        let of = |target: &str| Target::of_ptx(&format!("//\n.version 9.0\n.target {target}\n.address_size 64\n"));
        assert_eq!(of("sm_90a"), Some(HOPPER));
        assert_eq!(of("sm_86"), Some(AMPERE));
        assert_eq!(of("sm_120"), Some(Target { capability: Version { major: 12, minor: 0 }, or_later: true }));
        assert_eq!(Target::of_ptx("no kernels"), None);
    }
}
