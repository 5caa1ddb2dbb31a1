//! Where a model comes from, as it is named on the command line.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::Error;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model inside this program.
    Bundled,
    /// A directory in diffusers layout.
    Directory(PathBuf),
    /// A repository on a hub: `owner/name`, or `owner/name@revision`.
    Hub(String),
}

impl FromStr for ModelSource {
    type Err = Error;

    /// Reads `bundled`, the path of a directory, or a hub id. What exists as a path is one.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "bundled" {
            return Ok(Self::Bundled);
        }
        let path = PathBuf::from(text);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        let broken = |message: String| Error::BrokenFile { path: path.clone(), message };
        if path.is_file() {
            return Err(broken("is a file; a directory in diffusers layout or a hub id is needed".to_owned()));
        }
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        // A revision becomes a part of paths in the cache.
        let whole = |part: &str| !part.is_empty() && part != "." && part != "..";
        let is_revision = revision.split('/').all(whole);
        let part = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        match name.split_once('/') {
            Some((owner, model)) if part(owner) && part(model) && is_revision => Ok(Self::Hub(text.to_owned())),
            _ => Err(broken("is neither a directory, nor a hub id of the form owner/name, nor \"bundled\"".to_owned())),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str("bundled"),
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub(id) => f.write_str(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_what_it_looks_like() {
        let here = env!("CARGO_MANIFEST_DIR");
        assert_eq!("bundled".parse::<ModelSource>().unwrap(), ModelSource::Bundled);
        assert_eq!(here.parse::<ModelSource>().unwrap(), ModelSource::Directory(here.into()));
        for id in ["owner/name", "owner/name-1.5_x@refs/pr/1"] {
            assert_eq!(id.parse::<ModelSource>().unwrap(), ModelSource::Hub(id.to_owned()));
        }
        for wrong in
            ["", "name", "/no/such/directory", "./gone", "owner/name/more", "../up", "owner/name@", "owner/name@../up"]
        {
            let message = wrong.parse::<ModelSource>().unwrap_err().to_string();
            assert!(message.contains("neither a directory"), "{message}");
        }
        let file = format!("{here}/Cargo.toml");
        assert!(file.parse::<ModelSource>().unwrap_err().to_string().contains("is a file"));
    }
}
