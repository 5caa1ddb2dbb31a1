//! A picture's parameters as text in the form of AUTOMATIC1111's web UI, which galleries and other programs read.
//!
//! Owns that form: the prompt, a line `Negative prompt: ..`, and a last line of `Name: value` pairs. Next: `output` writes
//! it into the file.

use std::borrow::Cow;

use crate::{
    drawing::DrawingParameters,
    models::short_digest,
    pipeline::literal_prompt,
    sampling::{PromptSyntax, SamplerKind, SpacingKind},
};

/// The parameters of one image, drawn by the model of this name, whose weights have this digest.
#[must_use]
pub fn infotext(parameters: &DrawingParameters<'_>, model: &str, digest: Option<&str>) -> String {
    // The web UI has one syntax, in which texts of the other are written.
    let prompt = |text: &str| match parameters.prompt_syntax {
        PromptSyntax::Weights => text.trim().to_owned(),
        PromptSyntax::Plain => literal_prompt(text.trim()),
    };
    let mut text = prompt(parameters.prompt);
    let negative = prompt(parameters.negative_prompt.unwrap_or_default());
    if !negative.is_empty() {
        text += &format!("\nNegative prompt: {negative}");
    }
    let size = parameters.width.zip(parameters.height).map(|(width, height)| format!("{width}x{height}"));
    // They count from the last layer as 1; where nothing is left out they say nothing.
    let clip_skip = (parameters.clip_skip > 0).then(|| (parameters.clip_skip + 1).to_string());
    let pairs = [
        ("Steps", Some(parameters.steps.to_string())),
        ("Sampler", parameters.sampler.map(|sampler| sampler_label(sampler).to_owned())),
        ("Schedule type", parameters.scheduler.and_then(schedule_label).map(str::to_owned)),
        ("CFG scale", Some(parameters.guidance_scale.to_string())),
        ("Seed", Some(parameters.seed.to_string())),
        ("Size", size),
        ("Model hash", digest.map(|digest| short_digest(digest).to_owned())),
        ("Model", Some(model.to_owned())),
        ("Clip skip", clip_skip),
        ("Eta", parameters.eta.map(|eta| eta.to_string())),
        ("Denoising strength", parameters.strength.map(|strength| strength.to_string())),
        ("Mask blur", parameters.mask_blur.map(|blur| blur.to_string())),
        // The name that the web UI's extension CFG_Rescale_webui gives it.
        ("CFG Rescale", parameters.guidance_rescale.map(|rescale| rescale.to_string())),
        ("Image CFG scale", parameters.image_guidance_scale.map(|scale| scale.to_string())),
        ("Model SHA-256", digest.map(str::to_owned)),
        ("Version", Some(format!("darkroom {}", env!("CARGO_PKG_VERSION")))),
    ];
    let pairs = pairs.iter().filter_map(|(name, value)| Some(format!("{name}: {}", quoted(value.as_ref()?))));
    text + "\n" + &pairs.collect::<Vec<_>>().join(", ")
}

/// The web UI's name for an update rule.
const fn sampler_label(sampler: SamplerKind) -> &'static str {
    match sampler {
        SamplerKind::Ddim => "DDIM",
        SamplerKind::Pndm => "PLMS",
        SamplerKind::Euler => "Euler",
        SamplerKind::EulerAncestral => "Euler a",
        SamplerKind::Heun => "Heun",
        SamplerKind::Dpmpp2m => "DPM++ 2M",
        SamplerKind::Dpm2 => "DPM2",
        SamplerKind::Dpm2Ancestral => "DPM2 a",
        SamplerKind::Lms => "LMS",
        SamplerKind::UniPc => "UniPC",
        SamplerKind::Deis => "DEIS",
        SamplerKind::Ddpm => "DDPM",
        SamplerKind::Dpmpp2sAncestral => "DPM++ 2S a",
        SamplerKind::DpmppSde => "DPM++ SDE",
        SamplerKind::Dpmpp2mSde => "DPM++ 2M SDE",
        SamplerKind::Dpmpp3mSde => "DPM++ 3M SDE",
        SamplerKind::DpmSingle => "DPM++ 2S",
        SamplerKind::Lcm => "LCM",
        SamplerKind::Tcd => "TCD",
        SamplerKind::EdmEuler => "Euler EDM",
        SamplerKind::EdmDpmpp2m => "DPM++ 2M EDM",
    }
}

/// The web UI's name for a spacing; the checkpoint's own goes without saying.
const fn schedule_label(scheduler: SpacingKind) -> Option<&'static str> {
    match scheduler {
        SpacingKind::Checkpoint => None,
        SpacingKind::Karras => Some("Karras"),
        SpacingKind::Exponential => Some("Exponential"),
        SpacingKind::Beta => Some("Beta"),
        SpacingKind::Lu => Some("Lu"),
        SpacingKind::SgmUniform => Some("SGM Uniform"),
        SpacingKind::Simple => Some("Simple"),
        SpacingKind::DdimUniform => Some("DDIM"),
        SpacingKind::KlOptimal => Some("KL Optimal"),
        SpacingKind::Ays => Some("Align Your Steps"),
        SpacingKind::Leading => Some("Leading"),
        SpacingKind::Linspace => Some("Linspace"),
        SpacingKind::Trailing => Some("Trailing"),
        SpacingKind::Given => Some("Sigmas"),
    }
}

/// A value as it is, or as a JSON string where it would be read as more than one.
fn quoted(value: &str) -> Cow<'_, str> {
    if value.contains([',', ':', '\n']) {
        Cow::Owned(serde_json::Value::from(value).to_string())
    } else {
        Cow::Borrowed(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingConfig;

    fn config() -> SamplingConfig {
        SamplingConfig {
            prompt: "a red fox, in the snow\nat night: cold".to_owned(),
            width: Some(512),
            height: Some(768),
            steps: 20,
            guidance_scale: 7.5,
            seed: 41,
            n: 2,
            sampler: Some(SamplerKind::EulerAncestral),
            scheduler: Some(SpacingKind::Karras),
            ..SamplingConfig::default()
        }
    }

    fn text(config: &SamplingConfig, model: &str) -> String {
        infotext(&DrawingParameters::of_image(config, 1), model, None)
    }

    /// The pairs of the last line, split as the web UI does: at commas outside quotes, then at the first colon.
    fn pairs(text: &str) -> Vec<(String, String)> {
        let mut rest = text.lines().last().unwrap();
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            let (name, after) = rest.split_once(": ").unwrap();
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let (value, end) = match after.starts_with('"').then(|| values.next()) {
                Some(value) => (value.unwrap().unwrap(), values.byte_offset()),
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].to_owned(), end)
                }
            };
            pairs.push((name.to_owned(), value));
            rest = after[end..].trim_start_matches(", ");
        }
        pairs
    }

    #[test]
    fn the_text_is_the_web_uis() {
        assert_eq!(
            text(&config(), "sd15"),
            concat!(
                "a red fox, in the snow\nat night: cold\n",
                "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, ",
                "Model: sd15, Version: darkroom ",
                env!("CARGO_PKG_VERSION")
            )
        );
        let more = SamplingConfig {
            negative_prompt: Some("blurry, \"low\"".into()),
            clip_skip: 1,
            guidance_scale: 7.0,
            scheduler: Some(SpacingKind::Checkpoint),
            ..config()
        };
        let text = text(&more, "owner/a: \"b\", c");
        assert!(
            text.contains("\nNegative prompt: blurry, \"low\"\nSteps: 20, Sampler: Euler a, CFG scale: 7, "),
            "{text}"
        );
        let pairs = pairs(&text);
        let value = |name: &str| pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!((value("Clip skip"), value("Model")), (Some("2"), Some("owner/a: \"b\", c")));
        assert_eq!((value("Size"), value("Schedule type")), (Some("512x768"), None));
        assert_eq!(value("Version"), Some(concat!("darkroom ", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn brackets_that_mean_nothing_here_mean_nothing_to_the_web_ui() {
        let weighted = SamplingConfig {
            prompt: r"a (fox:1.2) \(red\)".into(),
            negative_prompt: Some("[owl] BREAK".into()),
            ..config()
        };
        let found = text(&weighted, "sd15");
        assert!(found.starts_with("a (fox:1.2) \\(red\\)\nNegative prompt: [owl] BREAK\nSteps: "), "{found}");
        let plain = SamplingConfig { prompt_syntax: PromptSyntax::Plain, ..weighted };
        let found = text(&plain, "sd15");
        let wanted = "a \\(fox:1.2\\) \\\\\\(red\\\\\\)\nNegative prompt: \\[owl\\] break\nSteps: ";
        assert!(found.starts_with(wanted), "{found}");
    }

    #[test]
    fn the_weights_are_named_in_short_and_in_full() {
        let digest = "0123456789abcdef".repeat(4);
        let text = infotext(&DrawingParameters::of_image(&config(), 0), "sd15", Some(&digest));
        assert!(text.contains(", Model hash: 0123456789, Model: sd15, "), "{text}");
        assert!(text.contains(&format!(", Model SHA-256: {digest}, Version: ")), "{text}");
    }

    #[test]
    fn eta_is_written_where_a_request_gave_it() {
        let config = SamplingConfig { sampler: Some(SamplerKind::Ddim), eta: Some(0.5), ..config() };
        assert!(pairs(&text(&config, "m")).contains(&("Eta".to_owned(), "0.5".to_owned())));
        let without = SamplingConfig { eta: None, ..config };
        assert!(!text(&without, "m").contains("Eta"));
    }

    #[test]
    fn every_sampler_has_the_web_uis_name() {
        let spacings = SpacingKind::ALL.map(schedule_label);
        assert_eq!(spacings[..4], [None, Some("Karras"), Some("Exponential"), Some("Beta")]);
        assert_eq!(spacings[5..9], ["SGM Uniform", "Simple", "DDIM", "KL Optimal"].map(Some));
        assert_eq!(spacings[9], Some("Align Your Steps"));
        let labels = SamplerKind::ALL.map(sampler_label);
        let usual = ["DDIM", "PLMS", "Euler", "Euler a", "Heun", "DPM++ 2M"];
        assert_eq!(labels[..6], usual);
        assert_eq!(labels[6..12], ["DPM2", "DPM2 a", "LMS", "UniPC", "DEIS", "DDPM"]);
        assert_eq!(labels[12..16], ["DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE"]);
        assert_eq!(labels[16..], ["DPM++ 2S", "LCM", "TCD", "Euler EDM", "DPM++ 2M EDM"]);
    }
}
