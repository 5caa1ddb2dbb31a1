//! What a checkpoint's file is when it is not what its name says.
//!
//! Published files reach a machine by way of Git, browsers and converters, and each of them leaves its own kind of wrong file.
//! This module names the kind and what to do about it.

/// How every Git LFS pointer begins.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// How many bytes of a page are looked at.
const BEGINNING: usize = 512;

/// What `bytes` are, where they are neither JSON, nor text, nor a safetensors file.
#[must_use]
pub fn mistaken_for(bytes: &[u8]) -> Option<String> {
    let begins = |with: &[u8]| bytes.starts_with(with);
    let pickled = "pickled weights, which may run code and are not read: convert them to safetensors";
    let kind = if bytes.is_empty() {
        "is empty: fetch the file again"
    } else if begins(LFS_POINTER) {
        return Some(lfs_pointer(bytes));
    } else if is_page(bytes) {
        "is a web page or another document in markup, such as an error or a login page: fetch the file again, from its \
         download link"
    } else if begins(b"PK\x03\x04") {
        return Some(format!("is a zip archive, as PyTorch writes {pickled}"));
    } else if matches!(bytes, [0x80, 2..=5, ..]) {
        return Some(format!("is {pickled}"));
    } else if begins(b"GGUF") {
        "is a GGUF file, which is not read: fetch the safetensors file"
    } else if begins(b"\x89HDF\r\n") {
        "is an HDF5 file, as TensorFlow writes weights, which is not read: fetch the safetensors file"
    } else if begins(b"\x1f\x8b") {
        "is compressed with gzip: decompress it"
    } else {
        return None;
    };
    Some(kind.to_owned())
}

/// A pointer says in a line how large the file is that it stands for.
fn lfs_pointer(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BEGINNING)]);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let of = size.map_or(String::new(), |size| format!(" to {size} bytes"));
    format!("is a Git LFS pointer{of} and not the file itself: run `git lfs pull` in its repository")
}

fn is_page(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BEGINNING)]).to_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    ["<!doctype", "<html", "<head", "<?xml", "<error"].iter().any(|tag| text.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_are_is_said_with_what_to_do() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n";
        for (bytes, said) in [
            (&pointer[..], "is a Git LFS pointer to 3438167540 bytes and not the file itself: run `git lfs pull`"),
            (&pointer[..50], "is a Git LFS pointer and not"),
            (b"", "is empty"),
            (b"\xef\xbb\xbf\n <!DOCTYPE html><title>404</title>", "is a web page"),
            (b"<html><body>Access denied", "is a web page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", "is a web page"),
            (b"PK\x03\x04\0\0", "is a zip archive, as PyTorch writes pickled weights"),
            (b"\x80\x02}q\0", "is pickled weights"),
            (b"GGUF\x03\0\0\0", "is a GGUF file"),
            (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
            (b"\x1f\x8b\x08", "is compressed with gzip"),
        ] {
            let found = mistaken_for(bytes).unwrap();
            assert!(found.starts_with(said), "{found}");
        }
        for right in [&b"{\"a\": 1}"[..], b"[1]", b"#version: 0.2\na b\n", b"\x08\0\0\0\0\0\0\0{}      ", b"<|a|>"] {
            assert_eq!(mistaken_for(right), None, "{right:?}");
        }
        // A safetensors file whose header is as long as a pickle's first bytes say.
        assert_eq!(mistaken_for(b"\x80\x01\0\0\0\0\0\0{"), None);
    }
}
