//! The files of a checkpoint in diffusers layout, in a directory or inside this program.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    WeightsDigest, bundled,
    layout::{self, WeightChoice},
};
use crate::{
    Error, Result,
    json::{
        self,
        keys::{KeyTable, Unheeded},
    },
    nn::{WeightFile, mistaken_for},
};

/// A checkpoint's files, by their paths below its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// In a directory.
    Directory(PathBuf),
    /// The model inside this program.
    Bundled,
}

impl Checkpoint {
    /// A file's path, for messages.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Directory(root) => root.join(file),
            Self::Bundled => Path::new(bundled::ROOT).join(file),
        }
    }

    /// Whether the file is there.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        match self {
            Self::Directory(root) => root.join(file).is_file(),
            Self::Bundled => bundled::file(file).is_some(),
        }
    }

    /// A whole small file; `wanted` says what it is for.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`] or [`Error::BrokenFile`].
    pub fn read(&self, file: &str, wanted: &str) -> Result<Vec<u8>> {
        let missing = || Error::MissingFile { path: self.path(file), wanted: wanted.to_owned() };
        let bytes = match self {
            Self::Bundled => bundled::file(file).map(<[u8]>::to_vec).ok_or_else(missing)?,
            Self::Directory(root) => std::fs::read(root.join(file)).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => missing(),
                _ => self.broken(file, error.to_string()),
            })?,
        };
        mistaken_for(&bytes).map_or(Ok(bytes), |message| Err(self.broken(file, message)))
    }

    /// A JSON file as Python writes it, whose keys that are `null` are absent; `wanted` says what it is for.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`], or [`Error::BrokenFile`] naming the key, its value and its place.
    pub fn json<T: DeserializeOwned>(&self, file: &str, wanted: &str) -> Result<T> {
        let bytes = self.read(file, wanted)?;
        json::from_slice(&bytes).map_err(|message| self.broken(file, message))
    }

    /// A configuration whose keys are those of a table: those with values that are not supported are refused, and those
    /// that are not in it are passed over with a warning.
    ///
    /// # Errors
    ///
    /// As [`json`](Self::json), and [`Error::UnsupportedCheckpoint`] naming the key, its value and what is supported.
    pub(super) fn config<T: DeserializeOwned>(&self, file: &str, wanted: &str, table: &KeyTable) -> Result<T> {
        let bytes = self.read(file, wanted)?;
        let document = json::Document::parse(&bytes).map_err(|message| self.broken(file, message))?;
        for unheeded in table.check(&document.root).map_err(|message| self.unsupported(file, message))? {
            self.warn_of(file, unheeded);
        }
        document.read(&table.null_counts()).map_err(|message| self.broken(file, message))
    }

    /// Tells the log that a key has no effect.
    pub(super) fn warn_of(&self, file: &str, Unheeded { key, why }: Unheeded) {
        tracing::warn!(file = %self.path(file).display(), key, "{why}; it has no effect");
    }

    /// The weight files of a component: plain or sharded, else those of a variant.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`] naming what was looked for, [`Error::BrokenFile`] for an index that names a shard that is
    /// not there.
    pub fn weights(&self, component: &str) -> Result<Vec<WeightFile>> {
        match layout::choose_weights(component, &|file| self.has(file)) {
            Some(WeightChoice::Whole(file)) => return Ok(vec![self.weight_file(&file)]),
            Some(WeightChoice::Sharded(index)) => return self.shards(component, &index),
            None => {}
        }
        let base = layout::weights_stem(component);
        let pickled = if self.has(&format!("{base}.bin"))
            || component.starts_with("text_encoder") && self.has(&format!("{component}/pytorch_model.bin"))
        {
            "; there is a .bin file, which is pickled and is not read: convert it to safetensors"
        } else {
            ""
        };
        let wanted = format!(
            "the weights of {component}; a .safetensors.index.json or a .fp16.safetensors would do, too{pickled}"
        );
        Err(Error::MissingFile { path: self.path(&format!("{base}.safetensors")), wanted })
    }

    /// The digest of the weight files of these components.
    ///
    /// # Errors
    ///
    /// As [`weights`](Self::weights).
    pub fn digest<'a>(&self, components: impl IntoIterator<Item = &'a str>) -> Result<WeightsDigest> {
        let mut files = Vec::new();
        for component in components {
            for file in self.weights(component)? {
                let name = match &file {
                    WeightFile::Path(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    WeightFile::Embedded(path, _) => path.rsplit('/').next().unwrap_or_default().to_owned(),
                };
                files.push((format!("{component}/{name}"), file));
            }
        }
        Ok(WeightsDigest::of(files))
    }

    fn shards(&self, component: &str, index: &str) -> Result<Vec<WeightFile>> {
        let wanted = format!("a shard that {} names", self.path(index).display());
        let shard = |file: &String| self.need(file, &wanted).map(|()| self.weight_file(file));
        self.shard_files(component, index)?.iter().map(shard).collect()
    }

    /// The files that an index of sharded weights names, by their paths.
    ///
    /// # Errors
    ///
    /// An index that is missing or broken, or names a file elsewhere.
    pub(super) fn shard_files(&self, component: &str, index: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let read: Index = self.json(index, "the index of sharded weights")?;
        let names: BTreeSet<String> = read.weight_map.into_values().collect();
        let file = |name: String| {
            // A name from a file may not lead out of its folder.
            if name.contains(['/', '\\']) {
                return Err(self.broken(index, format!("names the shard {name:?}, which is not in its folder")));
            }
            Ok(format!("{component}/{name}"))
        };
        names.into_iter().map(file).collect()
    }

    /// Checks that a file is there; `wanted` says what it is for.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`].
    pub(super) fn need(&self, file: &str, wanted: &str) -> Result<()> {
        if self.has(file) {
            return Ok(());
        }
        Err(Error::MissingFile { path: self.path(file), wanted: wanted.to_owned() })
    }

    fn weight_file(&self, file: &str) -> WeightFile {
        match self {
            Self::Directory(root) => WeightFile::Path(root.join(file)),
            Self::Bundled => bundled::weight_file(file),
        }
    }

    /// A file that is not what it should be.
    pub(super) fn broken(&self, file: &str, message: impl Into<String>) -> Error {
        Error::BrokenFile { path: self.path(file), message: message.into() }
    }

    /// A configuration that asks for something that is not there.
    pub(super) fn unsupported(&self, file: &str, message: impl Into<String>) -> Error {
        Error::UnsupportedCheckpoint { path: self.path(file), message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[WeightFile]) -> Vec<String> {
        let name = |file: &WeightFile| match file {
            WeightFile::Path(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
            WeightFile::Embedded(path, _) => (*path).to_owned(),
        };
        files.iter().map(name).collect()
    }

    #[test]
    fn plain_weights_come_before_shards_and_shards_before_variants() {
        let folder = tempfile::tempdir().unwrap();
        let unet = folder.path().join("unet");
        std::fs::create_dir(&unet).unwrap();
        let checkpoint = Checkpoint::Directory(folder.path().to_owned());
        let missing = checkpoint.weights("unet").unwrap_err().to_string();
        assert!(missing.contains("unet/diffusion_pytorch_model.safetensors: no such file"), "{missing}");

        std::fs::write(unet.join("diffusion_pytorch_model.bin"), "").unwrap();
        assert!(checkpoint.weights("unet").unwrap_err().to_string().contains("pickled"));

        std::fs::write(unet.join("diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
        assert_eq!(names(&checkpoint.weights("unet").unwrap()), ["diffusion_pytorch_model.fp16.safetensors"]);

        let index = r#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors", "c": "s-1.safetensors"}}"#;
        std::fs::write(unet.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
        std::fs::write(unet.join("s-1.safetensors"), "").unwrap();
        let missing = checkpoint.weights("unet").unwrap_err().to_string();
        assert!(missing.contains("s-2.safetensors: no such file; a shard that"), "{missing}");
        std::fs::write(unet.join("s-2.safetensors"), "").unwrap();
        assert_eq!(names(&checkpoint.weights("unet").unwrap()), ["s-1.safetensors", "s-2.safetensors"]);

        std::fs::write(unet.join("diffusion_pytorch_model.safetensors"), "").unwrap();
        assert_eq!(names(&checkpoint.weights("unet").unwrap()), ["diffusion_pytorch_model.safetensors"]);
    }

    #[test]
    fn an_index_may_not_lead_out_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vae")).unwrap();
        let index = folder.path().join("vae/diffusion_pytorch_model.safetensors.index.json");
        std::fs::write(index, r#"{"weight_map": {"a": "../../secret.safetensors"}}"#).unwrap();
        let checkpoint = Checkpoint::Directory(folder.path().to_owned());
        assert!(checkpoint.weights("vae").unwrap_err().to_string().contains("not in its folder"));
    }

    /// What a log was told.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn unknown_keys_are_passed_over_with_a_warning_that_names_file_and_key() {
        #[derive(Deserialize)]
        struct Config {
            size: usize,
        }
        const KEYS: &[json::keys::Key] = &[json::keys::Key::honoured("size")];
        let table = KeyTable { class: json::keys::Class::Absent, keys: KEYS };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"size": 3, "colour": 1, "_private": 2}"#).unwrap();
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let checkpoint = Checkpoint::Directory(folder.path().to_owned());
        let config: Config = tracing::subscriber::with_default(subscriber, || {
            checkpoint.config("config.json", "a test", &table).unwrap()
        });
        assert_eq!(config.size, 3);
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("WARN") && said.contains("config.json") && said.contains("colour"), "{said}");
    }
}
