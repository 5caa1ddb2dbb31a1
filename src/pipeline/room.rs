//! Whether a drawing fits in memory, and what is done so that it does.
//!
//! Owns the estimate of a drawing's memory and the comparison with what is free: first fewer images are drawn together,
//! then the autoencoder's maps are taken in strips, then the drawing is refused. An error of a device that ran out of
//! memory all the same costs one more try with as little as can be.

use std::{fmt, str::FromStr};

use candle_core::Device;

use super::{InferencePipeline, text};
use crate::{
    Error, Result, memory,
    models::{NumberBytes, Tiling},
    sampling::SamplingConfig,
};

/// When the autoencoder's large maps are taken in strips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TilingChoice {
    /// When whole ones do not fit in what is free.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl fmt::Display for TilingChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for TilingChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(Error::invalid("vae_tiling", format!("is {text:?}; auto, on or off is allowed"))),
        }
    }
}

impl TilingChoice {
    /// What is done where whole maps take `whole` bytes and `free` are there; `None` is unknown.
    fn resolve(self, whole: usize, free: Option<usize>) -> Tiling {
        match self {
            Self::On => Tiling::ON,
            Self::Auto if free.is_some_and(|free| whole > free) => Tiling::ON,
            Self::Auto | Self::Off => Tiling::Off,
        }
    }

    /// What needs least.
    fn least(self) -> Tiling {
        if self == Self::Off { Tiling::Off } else { Tiling::ON }
    }
}

/// What drawings may take of the device's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) tiling: TilingChoice,
    /// The most that a drawing may take, besides the weights: as configured, and no more than there can ever be.
    pub(super) limit: Option<usize>,
}

impl Room {
    pub(super) fn new(tiling: TilingChoice, configured: Option<usize>, device: &Device) -> Self {
        let limit = [configured, memory::total_bytes(device)].into_iter().flatten().min();
        Self { tiling, limit }
    }

    /// The most that a drawing can have now.
    fn free(&self, device: &Device) -> Option<usize> {
        [self.limit, memory::free_bytes(device)].into_iter().flatten().min()
    }
}

/// What is done with a picture by the autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Encode,
    Decode,
}

impl InferencePipeline {
    /// How many of `wished` images of a size, height and width in pixels, go through the networks together: as many as fit
    /// in what is free, at least one and at most as many as were configured.
    pub(super) fn images_that_fit(&self, size: (usize, usize), wished: usize) -> usize {
        let most = wished.clamp(1, self.batch);
        if most == 1 {
            return 1;
        }
        let free = self.room.free(&self.networks.device);
        let passes = text::most_passes(&self.spec);
        let fits = |images: &usize| free.is_none_or(|free| self.pass_bytes(size, passes * images) <= free);
        (1..=most).rev().find(fits).unwrap_or(1)
    }

    /// Checks that a drawing can fit in what this worker may ever use.
    pub(super) fn check_limit(&self, config: &SamplingConfig) -> Result<()> {
        let size = self.size_for(config)?;
        let needed = self.least_bytes(config, size);
        match self.room.limit {
            Some(limit) if needed > limit => Err(Error::invalid(
                "width",
                format!(
                    "{} times height {} needs {} of memory besides the model; {} are allowed",
                    size.1,
                    size.0,
                    Bytes(needed),
                    Bytes(limit)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Checks that a drawing fits in what is free now.
    pub(super) fn check_free(&self, config: &SamplingConfig) -> Result<()> {
        let size = self.size_for(config)?;
        self.check_bytes(self.least_bytes(config, size), size)
    }

    /// Checks that so many bytes for a picture of a size, height and width in pixels, fit in what is free now.
    pub(super) fn check_bytes(&self, needed: usize, size: (usize, usize)) -> Result<()> {
        match self.room.free(&self.networks.device) {
            Some(free) if needed > free => {
                Err(out_of_memory(size, format!("it needs {}, and {} are free", Bytes(needed), Bytes(free))))
            }
            _ => Ok(()),
        }
    }

    /// Height and width in pixels.
    fn size_for(&self, config: &SamplingConfig) -> Result<(usize, usize)> {
        self.info.size_for(config).map(|(width, height)| (height, width))
    }

    /// What a drawing of one image at a time takes at least.
    fn least_bytes(&self, config: &SamplingConfig, size: (usize, usize)) -> usize {
        let tiling = self.room.tiling.least();
        let pass =
            self.pass_bytes(size, if text::is_guided(&self.spec, config) { text::most_passes(&self.spec) } else { 1 });
        let encode = if config.image.is_some() { self.coding_bytes(Coding::Encode, size, tiling) } else { 0 };
        pass.max(encode).max(self.coding_bytes(Coding::Decode, size, tiling))
    }

    fn pass_bytes(&self, size: (usize, usize), batch: usize) -> usize {
        let factor = self.spec.vae.factor();
        let bytes = NumberBytes::new(&self.networks.device, self.networks.dtype);
        self.spec.unet.pass_bytes((size.0 / factor, size.1 / factor), batch, bytes)
    }

    fn coding_bytes(&self, coding: Coding, size: (usize, usize), tiling: Tiling) -> usize {
        let bytes = NumberBytes::new(&self.networks.device, self.networks.vae_dtype);
        match coding {
            Coding::Encode => self.spec.vae.encode_bytes(size, tiling, bytes),
            Coding::Decode => self.spec.vae.decode_bytes(size, tiling, bytes),
        }
    }

    /// Encodes or decodes a picture of a size, height and width in pixels, in strips where that is needed.
    pub(super) fn code<T>(
        &self,
        coding: Coding,
        size: (usize, usize),
        mut run: impl FnMut(Tiling) -> Result<T>,
    ) -> Result<T> {
        let free = self.room.free(&self.networks.device);
        let tiling = self.room.tiling.resolve(self.coding_bytes(coding, size, Tiling::Off), free);
        let ways = [tiling, self.room.tiling.least()];
        with_less(
            &ways,
            size,
            || self.forget_encoder(),
            |tiling| {
                #[cfg(test)]
                self.scarcity.meet(super::scarcity::Work::Code(coding, tiling))?;
                run(tiling)
            },
        )
    }

    /// Lets go of what can be read again.
    pub(super) fn forget_encoder(&self) {
        *self.encoder.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

/// Runs with the first of `ways`. Where the device runs out of memory, `free` lets go of what is not needed, and the last
/// way, which needs least, is tried: once.
pub(super) fn with_less<W: Copy, T>(
    ways: &[W; 2],
    size: (usize, usize),
    free: impl FnOnce(),
    mut run: impl FnMut(W) -> Result<T>,
) -> Result<T> {
    match run(ways[0]) {
        Err(error) if error.is_out_of_memory() => {
            tracing::warn!(%error, "the device is out of memory; trying once more with less");
            free();
        }
        done => return done,
    }
    run(ways[1]).map_err(|error| named_by_size(error, size))
}

/// A device's error that it is out of memory, as one that names the picture's size; others as they are.
pub(super) fn named_by_size(error: Error, size: (usize, usize)) -> Error {
    match error {
        Error::Tensor(error) if memory::is_out_of_memory(&error) => {
            out_of_memory(size, format!("the device has no more: {error}"))
        }
        error => error,
    }
}

fn out_of_memory((height, width): (usize, usize), message: String) -> Error {
    Error::OutOfMemory { width, height, message }
}

/// Bytes, for a person.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn no_memory() -> Error {
        Error::Tensor(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".to_owned()))
    }

    #[test]
    fn a_device_without_memory_gets_one_more_try_with_less() {
        let (tried, freed) = (RefCell::new(Vec::new()), Cell::new(false));
        let run = |way: Tiling| {
            tried.borrow_mut().push(way);
            if way == Tiling::Off { Err(no_memory()) } else { Ok(7) }
        };
        let drawn = with_less(&[Tiling::Off, Tiling::ON], (64, 128), || freed.set(true), run);
        assert_eq!(drawn.unwrap(), 7);
        assert_eq!(*tried.borrow(), [Tiling::Off, Tiling::ON]);
        assert!(freed.get());
    }

    #[test]
    fn a_device_without_memory_fails_by_the_pictures_size() {
        let count = Cell::new(0);
        let run = |_| {
            count.set(count.get() + 1);
            Err::<(), _>(no_memory())
        };
        let error = with_less(&[Tiling::Off, Tiling::ON], (64, 128), || {}, run).unwrap_err();
        assert_eq!(count.get(), 2);
        assert!(matches!(error, Error::OutOfMemory { width: 128, height: 64, .. }), "{error}");
        assert!(error.to_string().starts_with("128x64 pixels do not fit in memory"), "{error}");
    }

    #[test]
    fn other_errors_are_not_tried_again() {
        let count = Cell::new(0);
        let run = |_| {
            count.set(count.get() + 1);
            Err::<(), _>(Error::NotFinite { stage: "a test", step: None })
        };
        let error = with_less(&[Tiling::Off, Tiling::ON], (8, 8), || panic!("nothing is freed"), run).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }));
        assert_eq!(count.get(), 1);
    }

    #[test]
    fn strips_are_chosen_where_whole_maps_do_not_fit() {
        assert_eq!(TilingChoice::Auto.resolve(101, Some(100)), Tiling::ON);
        assert_eq!(TilingChoice::Auto.resolve(100, Some(100)), Tiling::Off);
        assert_eq!(TilingChoice::Auto.resolve(100, None), Tiling::Off);
        assert_eq!(TilingChoice::On.resolve(1, Some(100)), Tiling::ON);
        assert_eq!(TilingChoice::Off.resolve(101, Some(100)), Tiling::Off);
        for choice in [TilingChoice::Auto, TilingChoice::On, TilingChoice::Off] {
            assert_eq!(choice.to_string().parse::<TilingChoice>().unwrap(), choice);
        }
        assert!("maybe".parse::<TilingChoice>().is_err());
    }
}
