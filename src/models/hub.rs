//! Fetching a checkpoint from a Hugging Face hub into the local cache.
//!
//! Owns which files of a repository are needed and where they end up; `hf-hub` owns the protocol and the cache, which it
//! shares with every other program on the machine. Next: the directory it returns is opened as any other. The file is a little
//! long with its tests, which list what repositories hold.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, CacheRepo, Repo, RepoType,
    api::{
        Progress, RepoInfo,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};

use super::{
    Checkpoint,
    hub_cache::CachedRepository,
    layout::{self, COMPONENTS, INDEX, WeightChoice},
};
use crate::{Error, Result};

/// How often a broken transfer is taken up again, from where it broke.
const RETRIES: usize = 3;
/// The files at the root of a repository that are read.
const ROOT_FILES: [&str; 2] = [INDEX, "darkroom.json"];
/// The part of the work that the settings are, before the weights.
const SETTINGS_SHARE: f32 = 0.05;

/// Where a hub is, and where its files are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The cache's folder.
    pub cache: PathBuf,
    /// The access token.
    pub token: Option<String>,
    /// Whether only what is in the cache is used, and no connection is tried.
    pub offline: bool,
    /// How long the hub may take to list a repository's files.
    pub answer_within: Duration,
}

impl Hub {
    /// Fetches what is missing of `id` (`owner/name`, or `owner/name@revision`) and returns its local folder.
    /// `progress` is told the part that is done, 0 to 1. Offline, or when the hub does not answer, what an earlier call
    /// fetched whole is used as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`], naming the repository and the file.
    pub fn fetch(&self, id: &str, progress: &mut dyn FnMut(f32)) -> Result<PathBuf> {
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let failed = |message: String| Error::Hub { repository: id.to_owned(), message };
        let cached = CachedRepository::of(&self.cache, name);
        if self.offline {
            return whole_snapshot(&cached, revision)
                .map_err(|missing| failed(format!("cannot be fetched, because HF_HUB_OFFLINE is set, and {missing}")));
        }
        let api = self.connect().map_err(failed)?;
        let repository = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        let remote = api.repo(repository.clone());
        let listing = match self.list(&remote) {
            Ok(listing) => listing,
            Err(error) => {
                let snapshot = whole_snapshot(&cached, revision)
                    .map_err(|missing| failed(format!("{error}; nor can the cache be used: {missing}")))?;
                tracing::warn!(model = id, %error, "the hub does not answer; using what is in the cache");
                return Ok(snapshot);
            }
        };
        let plan = Plan::of(listing.siblings.into_iter().map(|file| file.rfilename).collect()).map_err(failed)?;
        // It becomes a folder's name.
        if !listing.sha.chars().all(|c| c.is_ascii_alphanumeric()) || listing.sha.is_empty() {
            return Err(failed(format!("{} gave {:?}, which is no commit", self.endpoint, listing.sha)));
        }
        let root = cached.snapshot(&listing.sha);
        let cache = Cache::new(self.cache.clone()).repo(repository);
        let has_others = cache.blob_path("").is_dir();
        let fetch = Fetch { api: &api, remote: &remote, cache: &cache, kept_in: &self.cache, has_others, root: &root };
        let (settings, weights) = (SETTINGS_SHARE, 1.0 - SETTINGS_SHARE);
        fetch.files(&plan.settings, &mut |part| progress(part * settings)).map_err(failed)?;
        // The index is fetched last, so where it is the rest is, too.
        let mut rest = plan.weights(&Checkpoint::Directory(root.clone()))?;
        rest.push(INDEX.to_owned());
        fetch.files(&rest, &mut |part| progress(settings + part * weights)).map_err(failed)?;
        Ok(root)
    }

    fn connect(&self) -> Result<Api, String> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_retries(RETRIES);
        builder.build().map_err(|error| format!("cannot set up the connection: {error}"))
    }

    /// The repository's files.
    fn list(&self, remote: &ApiRepo) -> Result<RepoInfo, String> {
        let request = remote.info_request().config().timeout_global(Some(self.answer_within)).build();
        let answer = request.call().and_then(|mut answer| answer.body_mut().read_json());
        answer.map_err(|error| format!("{}: {}", self.endpoint, explain(&error.to_string())))
    }
}

/// A snapshot in the cache that has every file that is needed.
fn whole_snapshot(cached: &CachedRepository, revision: &str) -> Result<PathBuf, String> {
    let root = cached.find(revision)?;
    let checkpoint = Checkpoint::Directory(root.clone());
    layout::check_whole(&checkpoint).map_err(|error| format!("its cache is not whole: {error}"))?;
    Ok(root)
}

/// What to fetch of a repository.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Everything that is small, the indexes of sharded weights included, the checkpoint's own index not.
    settings: Vec<String>,
    /// The weights of each component.
    weights: Vec<(&'static str, WeightChoice)>,
    names: BTreeSet<String>,
}

impl Plan {
    /// What is needed of the files with these names.
    ///
    /// # Errors
    ///
    /// A repository that is no checkpoint, or has weights in a form that is not read.
    fn of(names: BTreeSet<String>) -> Result<Self, String> {
        if !names.contains(INDEX) {
            return Err(format!("has no {INDEX}: it is no checkpoint in diffusers layout"));
        }
        let mut settings: Vec<String> = names.iter().filter(|name| is_setting(name)).cloned().collect();
        let mut weights = Vec::new();
        for component in COMPONENTS.into_iter().filter(|component| layout::has_weights(component)) {
            if !names.contains(&format!("{component}/config.json")) {
                continue;
            }
            let choice = layout::choose_weights(component, &|file| names.contains(file)).ok_or_else(|| {
                let stem = layout::weights_stem(component);
                format!("has no weights {stem}.safetensors; pickled weights (.bin) are not read")
            })?;
            if let WeightChoice::Sharded(index) = &choice {
                settings.push(index.clone());
            }
            weights.push((component, choice));
        }
        Ok(Self { settings, weights, names })
    }

    /// The weight files, once the indexes of those that are sharded are in `checkpoint`.
    fn weights(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for (component, choice) in &self.weights {
            match choice {
                WeightChoice::Whole(file) => files.push(file.clone()),
                WeightChoice::Sharded(index) => {
                    let shards = checkpoint.shard_files(component, index)?;
                    if let Some(missing) = shards.iter().find(|shard| !self.names.contains(*shard)) {
                        let message = format!("names {missing}, which the repository does not have");
                        return Err(checkpoint.broken(index, message));
                    }
                    files.extend(shards);
                }
            }
        }
        Ok(files)
    }
}

/// Whether a file is a configuration or a part of a tokenizer. Indexes are not: one of them may be chosen as weights.
fn is_setting(name: &str) -> bool {
    match name.split_once('/') {
        None => ROOT_FILES.contains(&name) && name != INDEX,
        Some((folder, file)) => {
            let read = [".json", ".txt"].iter().any(|end| file.ends_with(end));
            COMPONENTS.contains(&folder) && !file.contains('/') && read && !file.contains(".index.")
        }
    }
}

/// Fetches files of one commit.
struct Fetch<'a> {
    api: &'a Api,
    remote: &'a ApiRepo,
    /// The repository in the cache.
    cache: &'a CacheRepo,
    kept_in: &'a Path,
    /// Whether files of other commits may be there.
    has_others: bool,
    /// The commit's folder in the cache.
    root: &'a Path,
}

impl Fetch<'_> {
    /// Fetches those files that are not there.
    fn files(&self, names: &[String], progress: &mut dyn FnMut(f32)) -> Result<(), String> {
        let missing: Vec<&String> = names.iter().filter(|name| !self.root.join(name).exists()).collect();
        let mut done = 0.0;
        for &name in &missing {
            #[expect(clippy::cast_precision_loss, reason = "a share for a progress bar")]
            let share = 1.0 / missing.len() as f32;
            self.file(name, Watch { progress, before: done, share, size: 0, read: 0 })?;
            done += share;
            progress(done.min(1.0));
        }
        progress(1.0);
        Ok(())
    }

    fn file(&self, name: &str, watch: Watch) -> Result<(), String> {
        let path = self.root.join(name);
        if path.is_symlink() {
            // It leads nowhere: the blob was deleted, and the link would be in the way of a new one.
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let failed = |error: ApiError| match error {
            ApiError::IoError(error) => format!("{name}: cannot be kept in {}: {error}", self.kept_in.display()),
            error => format!("{name}: {}", explain(&error.to_string())),
        };
        if !self.link(name, &path).map_err(failed)? {
            self.remote.download_with_progress(name, watch).map_err(failed)?;
        }
        if path.exists() { Ok(()) } else { Err(format!("{name}: the repository changed meanwhile; try again")) }
    }

    /// Whether a file is there already from another commit, and now in this one, too: most commits change few files, and
    /// weights are large.
    fn link(&self, name: &str, path: &Path) -> Result<bool, ApiError> {
        if !self.has_others {
            return Ok(false);
        }
        let known = self.api.metadata(&self.remote.url(name))?;
        let blob = self.cache.blob_path(known.etag());
        let is_whole = blob.metadata().is_ok_and(|found| found.len() == known.size() as u64);
        if !is_whole || !self.root.ends_with(known.commit_hash()) {
            return Ok(false);
        }
        let folder = path.parent().unwrap_or(self.root);
        std::fs::create_dir_all(folder)?;
        #[cfg(unix)]
        {
            // Relative, so that a cache can be moved.
            let up = folder.components().count() - self.root.components().count() + 2;
            std::os::unix::fs::symlink(Path::new(&"../".repeat(up)).join("blobs").join(known.etag()), path)?;
        }
        #[cfg(not(unix))]
        std::fs::hard_link(&blob, path)?;
        self.cache.create_ref(known.commit_hash())?;
        Ok(true)
    }
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
fn explain(text: &str) -> String {
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

    fn plan(names: &[&str]) -> Result<Plan, String> {
        Plan::of(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_and_one_form_of_each_components_weights_are_fetched() {
        let found = plan(&[
            ".gitattributes",
            "README.md",
            "darkroom.json",
            "model_index.json",
            "v1-5-pruned.safetensors",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
            "text_encoder/pytorch_model.bin.index.json",
            "text_encoder_2/config.json",
            "text_encoder_2/model.fp16.safetensors",
            "text_encoder_2/model.safetensors",
            "tokenizer/deep/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bf16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
            "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        ])
        .unwrap();
        let settings = [
            "darkroom.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(found.settings, settings);
        let whole = |file: &str| WeightChoice::Whole(file.to_owned());
        let weights = [
            // The plain weights of the neighbour are not this one's.
            ("text_encoder", whole("text_encoder/model.fp16.safetensors")),
            ("text_encoder_2", whole("text_encoder_2/model.safetensors")),
            ("unet", whole("unet/diffusion_pytorch_model.bf16.safetensors")),
            ("vae", WeightChoice::Sharded("vae/diffusion_pytorch_model.safetensors.index.json".to_owned())),
        ];
        assert_eq!(found.weights, weights);
    }

    #[test]
    fn what_cannot_be_loaded_is_not_fetched() {
        let single = plan(&["v1-5-pruned.safetensors"]).unwrap_err();
        assert!(single.contains("has no model_index.json"), "{single}");
        let pickled = plan(&["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]).unwrap_err();
        assert!(pickled.contains("no weights unet/diffusion_pytorch_model.safetensors; pickled"), "{pickled}");
    }
}
