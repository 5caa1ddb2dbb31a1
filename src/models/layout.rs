//! Which files make a checkpoint in diffusers layout.
//!
//! Owns the one rule by which a component's weights are chosen, so that what is fetched from a hub is what is opened, and the
//! list of files without which a checkpoint is not whole.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Checkpoint;
use crate::Result;

/// The index at a checkpoint's root.
pub(super) const INDEX: &str = "model_index.json";
/// The folders of a repository that are read.
pub(super) const COMPONENTS: [&str; 7] =
    ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];
/// The variants of weights that are taken where a component has no plain ones, the first found.
const VARIANTS: [&str; 3] = ["fp16", "bf16", "non_ema"];

/// The weights of a component, by their path below the checkpoint's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WeightChoice {
    /// One file.
    Whole(String),
    /// The index of several files.
    Sharded(String),
}

/// Whether a component has weights, rather than settings alone.
pub(super) fn has_weights(component: &str) -> bool {
    component.starts_with("text_encoder") || ["unet", "vae"].contains(&component)
}

/// What a component's weights are called, without their ending.
pub(super) fn weights_stem(component: &str) -> String {
    let stem = if component.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" };
    format!("{component}/{stem}")
}

/// The weights of a component among the files that are there: plain or sharded, else those of a variant.
pub(super) fn choose_weights(component: &str, has: &dyn Fn(&str) -> bool) -> Option<WeightChoice> {
    let stem = weights_stem(component);
    let whole = |file: String| has(&file).then_some(WeightChoice::Whole(file));
    let sharded = |file: String| has(&file).then_some(WeightChoice::Sharded(file));
    let plain = || whole(format!("{stem}.safetensors")).or_else(|| sharded(format!("{stem}.safetensors.index.json")));
    let of_variant = |variant: &&str| {
        whole(format!("{stem}.{variant}.safetensors"))
            .or_else(|| sharded(format!("{stem}.safetensors.index.{variant}.json")))
            .or_else(|| sharded(format!("{stem}.{variant}.safetensors.index.json")))
    };
    plain().or_else(|| VARIANTS.iter().find_map(of_variant))
}

/// Checks that every file is there that the checkpoint's index calls for.
///
/// # Errors
///
/// [`Error::MissingFile`](crate::Error::MissingFile) for the first that is not; what is wrong with an index.
pub(super) fn check_whole(checkpoint: &Checkpoint) -> Result<()> {
    let index: BTreeMap<String, Value> = checkpoint.json(INDEX, "the index of a checkpoint in diffusers layout")?;
    let is_used = |component: &&str| {
        // `[null, null]` stands for a component that the pipeline goes without.
        let entry = index.get(*component).and_then(Value::as_array);
        entry.is_some_and(|entry| entry.first().is_some_and(|library| !library.is_null()))
    };
    for component in COMPONENTS.into_iter().filter(is_used) {
        let needed: &[&str] = match component {
            "scheduler" => &["scheduler_config.json"],
            tokenizer if tokenizer.starts_with("tokenizer") => {
                let whole = checkpoint.has(&format!("{tokenizer}/tokenizer.json"));
                if whole { &[] } else { &["vocab.json", "merges.txt"] }
            }
            _ => &["config.json"],
        };
        for file in needed {
            checkpoint.need(&format!("{component}/{file}"), "which the index calls for")?;
        }
        if has_weights(component) {
            checkpoint.weights(component)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_weights_come_before_variants_and_each_component_is_chosen_apart() {
        let choose = |component: &str, names: &[&str]| {
            choose_weights(component, &|file: &str| names.iter().any(|name| file == format!("{component}/{name}")))
        };
        let whole = |file: &str| Some(WeightChoice::Whole(file.to_owned()));
        let sharded = |file: &str| Some(WeightChoice::Sharded(file.to_owned()));
        for (names, chosen) in [
            (&["diffusion_pytorch_model.bin", "model.safetensors"][..], None),
            (&["diffusion_pytorch_model.ema.safetensors"], None),
            (
                &["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bf16.safetensors"],
                whole("unet/diffusion_pytorch_model.bf16.safetensors"),
            ),
            (
                &["diffusion_pytorch_model.safetensors.index.bf16.json"],
                sharded("unet/diffusion_pytorch_model.safetensors.index.bf16.json"),
            ),
            (
                &["diffusion_pytorch_model.fp16.safetensors.index.json", "diffusion_pytorch_model.bf16.safetensors"],
                sharded("unet/diffusion_pytorch_model.fp16.safetensors.index.json"),
            ),
            (
                &["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
                sharded("unet/diffusion_pytorch_model.safetensors.index.json"),
            ),
        ] {
            assert_eq!(choose("unet", names), chosen, "{names:?}");
        }
        assert_eq!(choose("text_encoder_2", &["model.safetensors"]), whole("text_encoder_2/model.safetensors"));
        // A neighbour whose name begins alike is another component.
        let other = |file: &str| file == "text_encoder_2/model.safetensors";
        assert_eq!(choose_weights("text_encoder", &other), None);
    }
}
