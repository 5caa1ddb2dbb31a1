//! Which weights draw: their SHA-256, so that a picture says what drew it.
//!
//! Owns the hash of a checkpoint's weight files. It is computed once, when somebody first waits for it, since a large
//! checkpoint takes seconds.

use std::{
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, OnceLock},
};

use sha2::{Digest, Sha256};

use crate::nn::WeightFile;

/// How much of a file is read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// How many hexadecimal digits AUTOMATIC1111's web UI shows of a hash.
const SHORT_DIGITS: usize = 10;

/// The SHA-256 of a checkpoint's weights.
///
/// Of one file it is that file's. Of several it is that of the list `sha256sum` prints of them: a line each, of the
/// file's own SHA-256, two spaces and its path below the checkpoint's root, in the order of the paths.
#[derive(Debug, Clone, Default)]
pub struct WeightsDigest {
    files: Arc<Vec<(String, WeightFile)>>,
    found: Arc<OnceLock<Option<String>>>,
}

impl WeightsDigest {
    /// The digest of files, each with its path below the checkpoint's root. Nothing is read yet.
    #[must_use]
    pub fn of(mut files: Vec<(String, WeightFile)>) -> Self {
        files.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { files: Arc::new(files), found: Arc::default() }
    }

    /// The digest in hexadecimal, if it is known already.
    #[must_use]
    pub fn known(&self) -> Option<&str> {
        self.found.get()?.as_deref()
    }

    /// The digest in hexadecimal. The first call reads every file; others wait for it. `None` when there are no files, or
    /// one cannot be read any more.
    #[must_use]
    pub fn wait(&self) -> Option<&str> {
        self.found.get_or_init(|| self.compute()).as_deref()
    }

    fn compute(&self) -> Option<String> {
        let mut list = Sha256::new();
        let mut last = None;
        for (path, file) in self.files.iter() {
            let digest = match file {
                WeightFile::Embedded(_, bytes) => hex(&Sha256::digest(bytes)),
                WeightFile::Path(path) => match of_file(path) {
                    Ok(digest) => digest,
                    Err(error) => {
                        tracing::warn!(file = %path.display(), %error, "the weights' hash cannot be computed");
                        return None;
                    }
                },
            };
            list.update(format!("{digest}  {path}\n"));
            last = Some(digest);
        }
        if self.files.len() > 1 { Some(hex(&list.finalize())) } else { last }
    }
}

/// The first digits of a digest, by which the web UI calls a model.
#[must_use]
pub fn short_digest(digest: &str) -> &str {
    digest.get(..SHORT_DIGITS).unwrap_or(digest)
}

fn of_file(path: &Path) -> std::io::Result<String> {
    if let Some(name) = stored_by_digest(path) {
        return Ok(name);
    }
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&digest.finalize())),
            read => digest.update(&chunk[..read]),
        }
    }
}

/// The name of the file that a link in a hub's cache leads to, which is the SHA-256 of large files.
fn stored_by_digest(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let in_store = target.parent()?.file_name()? == "blobs";
    let name = target.file_name()?.to_str()?;
    let is_digest = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (in_store && is_digest).then(|| name.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn one_file_has_its_own_digest_and_several_that_of_their_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, "abc").unwrap();
        let one = WeightsDigest::of(vec![("a.safetensors".to_owned(), WeightFile::Path(path.clone()))]);
        assert_eq!(one.known(), None);
        assert_eq!(one.wait(), Some(OF_ABC));
        assert_eq!(one.clone().known(), Some(OF_ABC));
        assert_eq!(short_digest(OF_ABC), "ba7816bf8f");

        let two = WeightsDigest::of(vec![
            ("vae/b".to_owned(), WeightFile::Embedded("b", b"abc")),
            ("unet/a".to_owned(), WeightFile::Path(path)),
        ]);
        // printf '%s  unet/a\n%s  vae/b\n' HASH HASH | sha256sum
        let list = format!("{OF_ABC}  unet/a\n{OF_ABC}  vae/b\n");
        assert_eq!(two.wait(), Some(hex(&Sha256::digest(list)).as_str()));
    }

    #[test]
    fn a_file_that_has_gone_costs_the_digest_alone() {
        let gone = WeightsDigest::of(vec![("a".to_owned(), WeightFile::Path("/nowhere/a".into()))]);
        assert_eq!(gone.wait(), None);
        assert_eq!(WeightsDigest::default().wait(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_hubs_cache_names_files_by_their_digest() {
        let folder = tempfile::tempdir().unwrap();
        let name = "0123456789abcdef".repeat(4);
        std::fs::create_dir(folder.path().join("blobs")).unwrap();
        std::fs::write(folder.path().join("blobs").join(&name), "abc").unwrap();
        let link = folder.path().join("model.safetensors");
        std::os::unix::fs::symlink(Path::new("blobs").join(&name), &link).unwrap();
        assert_eq!(of_file(&link).unwrap(), name);
        // A link to anywhere else says nothing.
        let elsewhere = folder.path().join("other.safetensors");
        std::os::unix::fs::symlink("model.safetensors", &elsewhere).unwrap();
        assert_eq!(of_file(&elsewhere).unwrap(), OF_ABC);
    }
}
