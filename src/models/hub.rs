//! Fetching a checkpoint from a Hugging Face hub into the local cache.
//!
//! Owns which files of a repository are needed and where they end up; `hf-hub` owns the protocol and the cache, which it
//! shares with every other program on the machine. Next: the directory it returns is opened as any other.

use std::{collections::BTreeSet, path::PathBuf};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};

use crate::{Error, Result};

/// How often a broken transfer is taken up again, from where it broke.
const RETRIES: usize = 3;
/// The folders of a repository that a checkpoint in diffusers layout is made of.
const COMPONENTS: [&str; 7] =
    ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];
/// The files at the root of a repository that are read.
const ROOT_FILES: [&str; 2] = ["model_index.json", "darkroom.json"];

/// Where a hub is, and where its files are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hub {
    /// The hub's address; `None` is `HF_ENDPOINT`, or else the public hub.
    pub endpoint: Option<String>,
    /// The cache's folder; `None` is `hub` below `HF_HOME`, or else the usual one of the user's home.
    pub cache: Option<PathBuf>,
    /// The access token; `None` is `HF_TOKEN`, or else the one that the hub's own tools have stored.
    pub token: Option<String>,
}

impl Hub {
    /// Fetches what is missing of `id` (`owner/name`, or `owner/name@revision`) and returns its local folder.
    /// `progress` is told the part that is done, 0 to 1. Without a connection, what an earlier call fetched whole is
    /// used as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`], naming the repository and the file.
    pub fn fetch(&self, id: &str, progress: &mut dyn FnMut(f32)) -> Result<PathBuf> {
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let repository = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        let failed = |message: String| Error::Hub { repository: id.to_owned(), message };

        let cache = self.cache.clone().map_or_else(Cache::from_env, Cache::new);
        let cached = cache.repo(repository.clone());
        let mut builder = ApiBuilder::from_env().with_progress(false).with_retries(RETRIES);
        builder = builder.with_cache_dir(cache.path().clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = self.token.clone().or_else(|| std::env::var("HF_TOKEN").ok()) {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build().map_err(|error| failed(format!("cannot set up the connection: {error}")))?;
        let remote = api.repo(repository);

        let listing = match remote.info() {
            Ok(listing) => listing,
            Err(error) => {
                // The index is fetched last, so where it is the rest is, too.
                let index = cached.get(ROOT_FILES[0]).ok_or_else(|| failed(explain(&error)))?;
                tracing::warn!(model = id, %error, "the hub does not answer; using what is in the cache");
                return root_of(index).ok_or_else(|| failed("its cache is damaged".to_owned()));
            }
        };
        let names = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let wanted = wanted(&names);
        if !wanted.iter().any(|name| name == ROOT_FILES[0]) {
            return Err(failed(format!("has no {}: it is no checkpoint in diffusers layout", ROOT_FILES[0])));
        }
        let missing: Vec<&String> = wanted.iter().filter(|name| cached.get(name).is_none()).collect();
        download(&remote, &missing, progress)
            .map_err(|(name, error)| failed(format!("{name}: {}", explain(&error))))?;
        let index = cached.get(ROOT_FILES[0]).ok_or_else(|| failed("its cache is damaged".to_owned()))?;
        root_of(index).ok_or_else(|| failed("its cache is damaged".to_owned()))
    }
}

/// The folder of a repository's index.
fn root_of(index: PathBuf) -> Option<PathBuf> {
    index.parent().map(PathBuf::from)
}

/// The files to fetch, the index last.
fn wanted(names: &BTreeSet<String>) -> Vec<String> {
    let mut wanted: Vec<String> = names.iter().filter(|name| is_wanted(name, names)).cloned().collect();
    wanted.sort_by_key(|name| (name == ROOT_FILES[0], name.clone()));
    wanted
}

/// Whether a file is a part of the checkpoint that is read: configurations, tokenizers, and of the weights one form.
fn is_wanted(name: &str, names: &BTreeSet<String>) -> bool {
    let Some((folder, file)) = name.split_once('/') else { return ROOT_FILES.contains(&name) };
    if !COMPONENTS.contains(&folder) || file.contains('/') {
        return false;
    }
    if file.ends_with(".safetensors.index.json") || file.ends_with(".safetensors") {
        // The plain weights, or the half-precision variant where a repository has no other.
        let plain = |name: &String| {
            name.strip_prefix(folder).is_some_and(|rest| rest.ends_with(".safetensors") && !is_variant(rest))
        };
        return if names.iter().any(plain) { !is_variant(file) } else { file.contains(".fp16") };
    }
    [".json", ".txt", ".model"].iter().any(|end| file.ends_with(end)) && !file.ends_with(".bin.index.json")
}

/// Whether a weight file is one of a variant, such as `model.fp16.safetensors` or `model.fp16-00001-of-2.safetensors`.
fn is_variant(file: &str) -> bool {
    ["fp16", "bf16", "non_ema", "ema"].iter().any(|variant| file.contains(&format!(".{variant}")))
}

fn download<'a>(
    remote: &ApiRepo,
    missing: &[&'a String],
    progress: &mut dyn FnMut(f32),
) -> Result<(), (&'a str, ApiError)> {
    let mut done = 0.0;
    for &name in missing {
        #[expect(clippy::cast_precision_loss, reason = "a share for a progress bar")]
        let share = 1.0 / missing.len() as f32;
        let watch = Watch { progress, before: done, share, size: 0, read: 0 };
        remote.download_with_progress(name, watch).map_err(|error| (name.as_str(), error))?;
        done += share;
        progress(done.min(1.0));
    }
    Ok(())
}

/// Tells the whole download's progress from one file's.
struct Watch<'a> {
    progress: &'a mut dyn FnMut(f32),
    before: f32,
    share: f32,
    size: usize,
    read: usize,
}

impl Progress for Watch<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        tracing::info!(file = filename, bytes = size, "fetching");
        self.size = size;
    }

    #[expect(clippy::cast_precision_loss, reason = "a share for a progress bar")]
    fn update(&mut self, size: usize) {
        self.read += size;
        let part = self.read as f32 / self.size.max(1) as f32;
        (self.progress)((self.before + self.share * part.min(1.0)).min(1.0));
    }

    fn finish(&mut self) {}
}

/// What a person can do about it, where the hub's answer tells.
fn explain(error: &ApiError) -> String {
    let text = error.to_string();
    let hint = if text.contains("401") || text.contains("403") {
        "; the repository is private or gated: set HF_TOKEN"
    } else if text.contains("404") {
        "; there is no such repository, revision or file"
    } else {
        ""
    };
    format!("{text}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Vec<String> {
        wanted(&names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_form_of_the_weights_is_fetched_and_the_index_last() {
        let names = [
            ".gitattributes",
            "README.md",
            "model_index.json",
            "v1-5-pruned.safetensors",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        ];
        let fetched = chosen(&names);
        assert_eq!(
            fetched,
            [
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "tokenizer/merges.txt",
                "tokenizer/vocab.json",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
                "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
                "vae/diffusion_pytorch_model.safetensors.index.json",
                "model_index.json",
            ]
        );
    }
}
