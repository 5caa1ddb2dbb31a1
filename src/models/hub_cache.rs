//! The folder in which every program of a machine keeps what it fetched from a hub.
//!
//! Owns the cache's layout, `models--OWNER--NAME/snapshots/COMMIT`, and how a revision becomes a commit. It opens no
//! connection. Next: a snapshot's folder is opened as any other checkpoint.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::layout::INDEX;
use crate::{Error, Result};

/// The most folders that are looked through, and named, for a hint.
const MOST_FOLDERS: usize = 1000;
const MOST_NAMED: usize = 5;
const PREFIX: &str = "models--";
const SNAPSHOTS: &str = "snapshots";

/// The folder of a repository in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CachedRepository {
    folder: PathBuf,
}

impl CachedRepository {
    /// The folder of `name` (`owner/name`).
    pub(super) fn of(cache: &Path, name: &str) -> Self {
        Self { folder: cache.join(format!("{PREFIX}{}", name.replace('/', "--"))) }
    }

    /// A commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join(SNAPSHOTS).join(commit)
    }

    /// The snapshot of a branch, a tag or a commit, as far as this machine knows it.
    ///
    /// # Errors
    ///
    /// What is missing, and what is there.
    pub(super) fn find(&self, revision: &str) -> Result<PathBuf, String> {
        let folder = self.folder.display();
        if !self.folder.is_dir() {
            return Err(format!("there is no {folder}"));
        }
        let named = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = named.as_deref().map_or(revision, str::trim);
        let snapshot = self.snapshot(commit);
        if snapshot.is_dir() {
            return Ok(snapshot);
        }
        if named.is_some() {
            return Err(format!("{folder} has no snapshot {commit}, which its revision {revision} is"));
        }
        Err(format!("{folder} has no revision {revision}; its snapshots are {}", list(&self.snapshots())))
    }

    /// The names of all snapshots, sorted.
    fn snapshots(&self) -> Vec<String> {
        folders(&self.folder.join(SNAPSHOTS))
    }
}

/// The folder of the checkpoint that `path` stands for: itself, or the snapshot of a cache's repository.
///
/// # Errors
///
/// A repository of which no snapshot is the one to take, and a folder that only leads to checkpoints, naming them.
pub fn checkpoint_folder(path: &Path) -> Result<PathBuf> {
    if path.join(INDEX).is_file() {
        return Ok(path.to_owned());
    }
    let is_snapshots = path.file_name().is_some_and(|name| name == SNAPSHOTS);
    let repository = match path.parent() {
        Some(parent) if is_snapshots => CachedRepository { folder: parent.to_owned() },
        _ => CachedRepository { folder: path.to_owned() },
    };
    if repository.folder.join(SNAPSHOTS).is_dir() {
        let broken = |message: String| Error::BrokenFile { path: path.to_owned(), message };
        if repository.folder.join("refs/main").is_file() {
            return repository.find("main").map_err(broken);
        }
        return match repository.snapshots().as_slice() {
            [] => Err(broken("is a repository of a hub's cache without any snapshot".to_owned())),
            [only] => Ok(repository.snapshot(only)),
            several => Err(broken(format!(
                "is a repository of a hub's cache without refs/main; name one of its snapshots: {}",
                list(several)
            ))),
        };
    }
    let leads_to = |name: &String| path.join(name).join(INDEX).is_file() || name.starts_with(PREFIX);
    let below: Vec<String> = folders(path).into_iter().filter(leads_to).collect();
    if below.is_empty() {
        return Ok(path.to_owned());
    }
    let wanted = format!("the index of a checkpoint in diffusers layout; below this folder are {}", list(&below));
    Err(Error::MissingFile { path: path.join(INDEX), wanted })
}

/// The `owner/name` of a repository's or a snapshot's folder in a cache.
#[must_use]
pub fn repository_name(path: &Path) -> Option<String> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.strip_prefix(PREFIX)?.replace("--", "/"));
    let above = |path: &Path| {
        let snapshots = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == SNAPSHOTS))?;
        name(snapshots.parent()?)
    };
    let whole = path.file_name().filter(|name| *name == SNAPSHOTS).and_then(|_| name(path.parent()?));
    name(path).or(whole).or_else(|| above(path))
}

/// The names of the folders in a folder, sorted; none where it cannot be read.
fn folders(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten().take(MOST_FOLDERS);
    let is_folder = |entry: &fs::DirEntry| entry.path().is_dir();
    let mut names: Vec<String> =
        entries.filter(is_folder).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn list(names: &[String]) -> String {
    let named = names[..names.len().min(MOST_NAMED)].join(", ");
    match names.len() {
        0 => "none".to_owned(),
        all if all > MOST_NAMED => format!("{named} and {} more", all - MOST_NAMED),
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_repository_of_a_cache_stands_for_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let root = cache.path().join("models--owner--name");
        put(&root, "snapshots/aaa/model_index.json", "{}");
        // The only snapshot needs no reference.
        assert_eq!(checkpoint_folder(&root).unwrap(), root.join("snapshots/aaa"));
        assert_eq!(checkpoint_folder(&root.join("snapshots")).unwrap(), root.join("snapshots/aaa"));
        assert_eq!(checkpoint_folder(&root.join("snapshots/aaa")).unwrap(), root.join("snapshots/aaa"));

        put(&root, "snapshots/bbb/model_index.json", "{}");
        let several = checkpoint_folder(&root).unwrap_err().to_string();
        let said = "is a repository of a hub's cache without refs/main; name one of its snapshots: aaa, bbb";
        assert_eq!(several, format!("{}: {said}", root.display()));
        put(&root, "refs/main", "bbb\n");
        assert_eq!(checkpoint_folder(&root).unwrap(), root.join("snapshots/bbb"));
        put(&root, "refs/main", "ccc");
        let gone = checkpoint_folder(&root).unwrap_err().to_string();
        assert!(gone.contains("has no snapshot ccc, which its revision main is"), "{gone}");

        // The cache itself leads to repositories, and names them.
        let above = checkpoint_folder(cache.path()).unwrap_err().to_string();
        assert!(above.contains("model_index.json: no such file; the index of a checkpoint"), "{above}");
        assert!(above.ends_with("below this folder are models--owner--name"), "{above}");
        let empty = cache.path().join("models--owner--empty");
        fs::create_dir_all(empty.join("snapshots")).unwrap();
        assert!(checkpoint_folder(&empty).unwrap_err().to_string().contains("without any snapshot"));
    }

    #[test]
    fn a_folder_of_folders_names_those_that_are_checkpoints() {
        let above = tempfile::tempdir().unwrap();
        // Nothing below is one: the index that is missing is this folder's own.
        put(above.path(), "notes/readme.txt", "");
        assert_eq!(checkpoint_folder(above.path()).unwrap(), above.path());
        for number in 0..7 {
            put(above.path(), &format!("model-{number}/model_index.json"), "{}");
        }
        let message = checkpoint_folder(above.path()).unwrap_err().to_string();
        let named = "below this folder are model-0, model-1, model-2, model-3, model-4 and 2 more";
        assert!(message.ends_with(named), "{message}");
    }

    #[test]
    fn a_cached_repository_has_its_name_on_the_hub() {
        for (path, name) in [
            ("/c/models--owner--name", Some("owner/name")),
            ("/c/models--owner--name/snapshots", Some("owner/name")),
            ("/c/models--owner--name/snapshots/0123", Some("owner/name")),
            ("/c/models--gpt2", Some("gpt2")),
            ("/c/owner--name", None),
            ("/c/models--owner--name/other/0123", None),
        ] {
            assert_eq!(repository_name(Path::new(path)).as_deref(), name, "{path}");
        }
    }
}
