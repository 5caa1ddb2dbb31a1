//! How a request's texts are read, and what Stable Diffusion XL is told besides.
//!
//! Owns the values of these fields and their bounds. Next: the pipeline's text part reads prompts by them.

use std::{fmt, str::FromStr};

use super::SamplingConfig;
use crate::{Error, Result};

/// The longest prompt, in characters.
pub(super) const MAX_PROMPT_CHARS: usize = 10_000;
/// The longest side of a picture that a model can be told of, in pixels.
pub const MAX_TOLD_PX: u32 = 16_384;

/// Whether a prompt's brackets mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PromptSyntax {
    /// `(more)`, `(more:1.3)`, `[less]`, `\(` and `BREAK`, as AUTOMATIC1111's web UI reads them.
    #[default]
    Weights,
    /// Every character stands for itself, as in diffusers.
    Plain,
}

/// What becomes of a prompt that is longer than the text encoder's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LongPrompt {
    /// It is read in chunks of a window each, whose states are joined.
    #[default]
    Chunks,
    /// Only what fits in one window is read, as in diffusers.
    Truncate,
}

/// A picture's size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct PictureSize {
    /// From left to right.
    pub width: u32,
    /// From top to bottom.
    pub height: u32,
}

/// How much of a picture was cut away before its first pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct CropOffset {
    /// Pixels cut from the left.
    pub left: u32,
    /// Pixels cut from the top.
    pub top: u32,
}

impl PromptSyntax {
    /// Every syntax, the default first.
    pub const ALL: [Self; 2] = [Self::Weights, Self::Plain];

    /// The name on the wire and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Plain => "plain",
        }
    }
}

impl LongPrompt {
    /// Every way, the default first.
    pub const ALL: [Self; 2] = [Self::Chunks, Self::Truncate];

    /// The name on the wire and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chunks => "chunks",
            Self::Truncate => "truncate",
        }
    }
}

impl fmt::Display for PromptSyntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for LongPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PromptSyntax {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|syntax| syntax.name() == name);
        found.ok_or_else(|| unknown("prompt_syntax", name, &Self::ALL.map(Self::name)))
    }
}

impl FromStr for LongPrompt {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|way| way.name() == name);
        found.ok_or_else(|| unknown("long_prompt", name, &Self::ALL.map(Self::name)))
    }
}

fn unknown(field: &'static str, name: &str, allowed: &[&str]) -> Error {
    Error::invalid(field, format!("is {name:?}; one of {} is allowed", allowed.join(", ")))
}

impl SamplingConfig {
    /// Checks the texts, and the sizes that the model is told.
    pub(super) fn validate_prompts(&self) -> Result<()> {
        let texts = [
            ("prompt", Some(&self.prompt), 1),
            ("negative_prompt", self.negative_prompt.as_ref(), 0),
            ("prompt_2", self.prompt_2.as_ref(), 1),
            ("negative_prompt_2", self.negative_prompt_2.as_ref(), 0),
        ];
        for (field, text, least) in texts {
            let Some(characters) = text.map(|text| text.chars().count()) else { continue };
            if !(least..=MAX_PROMPT_CHARS).contains(&characters) {
                let allowed = if least == 0 { "at most" } else { "1 to" };
                let message = format!("has {characters} characters; {allowed} {MAX_PROMPT_CHARS} are allowed");
                return Err(Error::invalid(field, message));
            }
        }
        if self.negative_prompt_2.is_some() && self.negative_prompt.is_none() {
            // Without a negative prompt the conditioning may be zeros, which no text changes.
            let message = "is given without a negative_prompt, which may be empty";
            return Err(Error::invalid("negative_prompt_2", message));
        }
        for (field, size) in [("original_size", self.original_size), ("target_size", self.target_size)] {
            let allowed = 1..=MAX_TOLD_PX;
            if let Some(PictureSize { width, height }) = size
                && !(allowed.contains(&width) && allowed.contains(&height))
            {
                let message = format!("is {width}x{height}; 1 to {MAX_TOLD_PX} pixels a side are allowed");
                return Err(Error::invalid(field, message));
            }
        }
        if let Some(CropOffset { left, top }) = self.crop
            && left.max(top) > MAX_TOLD_PX
        {
            let message = format!("is {left},{top}; 0 to {MAX_TOLD_PX} pixels a side are allowed");
            return Err(Error::invalid("crop", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Limits;

    fn valid() -> SamplingConfig {
        SamplingConfig { prompt: "a fox".into(), ..SamplingConfig::default() }
    }

    #[test]
    fn names_are_read_and_others_refused_with_what_is_allowed() {
        for syntax in PromptSyntax::ALL {
            assert_eq!(syntax.to_string().parse::<PromptSyntax>().unwrap(), syntax);
        }
        for way in LongPrompt::ALL {
            assert_eq!(way.to_string().parse::<LongPrompt>().unwrap(), way);
        }
        let message = "a1111".parse::<PromptSyntax>().unwrap_err().to_string();
        assert_eq!(message, "prompt_syntax: is \"a1111\"; one of weights, plain is allowed");
        let message = "cut".parse::<LongPrompt>().unwrap_err().to_string();
        assert_eq!(message, "long_prompt: is \"cut\"; one of chunks, truncate is allowed");
    }

    #[test]
    fn values_past_their_limits_are_named() {
        let size = |width, height| Some(PictureSize { width, height });
        let whole = SamplingConfig {
            prompt_2: Some("é".repeat(MAX_PROMPT_CHARS)),
            negative_prompt: Some(String::new()),
            negative_prompt_2: Some(String::new()),
            original_size: size(1, MAX_TOLD_PX),
            target_size: size(MAX_TOLD_PX, 1),
            crop: Some(CropOffset { left: 0, top: MAX_TOLD_PX }),
            ..valid()
        };
        whole.validate(&Limits::default()).unwrap();
        let cases = [
            (SamplingConfig { prompt_2: Some(String::new()), ..valid() }, "prompt_2: has 0 characters; 1 to 10000"),
            (
                SamplingConfig { negative_prompt_2: Some("a".repeat(10_001)), ..whole.clone() },
                "negative_prompt_2: has 10001 characters; at most 10000",
            ),
            (
                SamplingConfig { negative_prompt_2: Some("a".into()), ..valid() },
                "negative_prompt_2: is given without a negative_prompt, which may be empty",
            ),
            (
                SamplingConfig { original_size: size(0, 8), ..valid() },
                "original_size: is 0x8; 1 to 16384 pixels a side are allowed",
            ),
            (
                SamplingConfig { target_size: size(8, 16_385), ..valid() },
                "target_size: is 8x16385; 1 to 16384 pixels a side are allowed",
            ),
            (
                SamplingConfig { crop: Some(CropOffset { left: 16_385, top: 0 }), ..valid() },
                "crop: is 16385,0; 0 to 16384 pixels a side are allowed",
            ),
        ];
        for (config, said) in cases {
            let message = config.validate(&Limits::default()).unwrap_err().to_string();
            assert!(message.starts_with(said), "{message}");
        }
    }
}
