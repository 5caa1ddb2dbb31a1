//! Where a hub and its cache are, from the environment variables that every program of a machine shares.
//!
//! The names, their order and their meaning are `huggingface_hub`'s, with one rule added: an empty variable is not set.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Hub;

const PUBLIC_HUB: &str = "https://huggingface.co";
/// How long a hub may take to list a repository's files, before what is in the cache is used instead.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl Hub {
    /// The hub and the cache that the environment names.
    ///
    /// # Errors
    ///
    /// No place for a cache: no variable names one and the user has no home.
    pub fn from_env() -> Result<Self, String> {
        Environment { get: &|name| env::var_os(name), home: env::home_dir() }.hub()
    }
}

struct Environment<'a> {
    get: &'a dyn Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
}

impl Environment<'_> {
    fn hub(&self) -> Result<Hub, String> {
        let hub_home = self.hub_home();
        let cache = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(hub_home.as_ref()?.join("hub"))).ok_or_else(|| {
            "there is no place for a cache, because this user has no home directory; set HF_HUB_CACHE or HF_HOME"
                .to_owned()
        })?;
        let endpoint = self.text("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let seconds = self.text("HF_HUB_ETAG_TIMEOUT").and_then(|text| text.trim().parse().ok());
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: self.token(hub_home.as_deref()),
            offline: self.is_true("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
            answer_within: seconds.filter(|seconds| *seconds > 0).map_or(ANSWER_WITHIN, Duration::from_secs),
        })
    }

    /// The folder of everything that the hub's programs keep.
    fn hub_home(&self) -> Option<PathBuf> {
        let caches = || self.path("XDG_CACHE_HOME").or_else(|| Some(self.home()?.join(".cache")));
        self.path("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
    }

    fn token(&self, hub_home: Option<&Path>) -> Option<String> {
        if self.is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN", "") {
            return None;
        }
        let clean =
            |text: String| Some(text.replace(['\r', '\n'], "").trim().to_owned()).filter(|text| !text.is_empty());
        let given = self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN"));
        given.and_then(clean).or_else(|| {
            let file = self.path("HF_TOKEN_PATH").or_else(|| Some(hub_home?.join("token")))?;
            clean(std::fs::read_to_string(file).ok()?)
        })
    }

    fn home(&self) -> Option<&Path> {
        self.home.as_deref().filter(|home| !home.as_os_str().is_empty())
    }

    /// A variable that is set and not empty.
    fn variable(&self, name: &str) -> Option<OsString> {
        (self.get)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.variable(name).and_then(|value| value.into_string().ok())
    }

    /// Whether a variable, or else an older one, says yes.
    fn is_true(&self, name: &str, older: &str) -> bool {
        let value = self.text(name).or_else(|| self.text(older));
        value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
    }

    /// A path, with the user's home for `~` and variables for `$NAME` and `${NAME}`.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let text = match self.variable(name)?.into_string() {
            Ok(text) => text,
            // What is no text has nothing to replace.
            Err(path) => return Some(path.into()),
        };
        let text = match (text.strip_prefix('~'), self.home()) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", home.display()),
            _ => text,
        };
        Some(self.with_variables(&text).into())
    }

    /// `text` with the variables that it names; those that are not set stay as they are written.
    fn with_variables(&self, text: &str) -> String {
        let mut pieces = text.split('$');
        let mut done = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, rest) = match piece.strip_prefix('{').and_then(|piece| piece.split_once('}')) {
                Some(braced) => braced,
                None => piece.split_at(piece.find(|c| !is_part(c)).unwrap_or(piece.len())),
            };
            match self.text(name) {
                Some(value) => done.extend([value.as_str(), rest]),
                None => done.extend(["$", piece]),
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)], home: Option<&str>) -> Result<Hub, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Environment { get: &get, home: home.map(PathBuf::from) }.hub()
    }

    #[test]
    fn the_cache_is_where_the_most_particular_variable_says() {
        for (variables, cache) in [
            (&[][..], "/home/ann/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", ""), ("XDG_CACHE_HOME", "")], "/home/ann/.cache/huggingface/hub"),
            (&[("HF_HOME", "~/models")], "/home/ann/models/hub"),
            (&[("HF_HUB_CACHE", "$DATA/${KIND}s$"), ("DATA", "/d"), ("KIND", "hub")], "/d/hubs$"),
            (&[("HF_HUB_CACHE", "/a/$NONE/b")], "/a/$NONE/b"),
        ] {
            assert_eq!(hub(variables, Some("/home/ann")).unwrap().cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn without_a_home_a_cache_has_to_be_named() {
        for home in [None, Some("")] {
            let message = hub(&[], home).unwrap_err();
            assert!(message.contains("no home directory; set HF_HUB_CACHE or HF_HOME"), "{message}");
            assert_eq!(hub(&[("HF_HOME", "/h")], home).unwrap().cache, Path::new("/h/hub"));
            assert_eq!(hub(&[("HF_HUB_CACHE", "/c")], home).unwrap().cache, Path::new("/c"));
        }
    }

    #[test]
    fn switches_are_read_as_the_hubs_own_tools_read_them() {
        let offline = |variables: &[(&str, &str)]| hub(variables, Some("/")).unwrap().offline;
        for yes in ["1", "true", "True", "yes", "ON"] {
            assert!(offline(&[("HF_HUB_OFFLINE", yes)]), "{yes}");
            assert!(offline(&[("TRANSFORMERS_OFFLINE", yes)]), "{yes}");
        }
        for no in ["", "0", "false", "no", "off", "2"] {
            assert!(!offline(&[("HF_HUB_OFFLINE", no)]), "{no}");
        }
        assert!(!offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]));
        let endpoint = |value: &str| hub(&[("HF_ENDPOINT", value)], Some("/")).unwrap().endpoint;
        assert_eq!((endpoint(""), endpoint("http://h:1/hf/")), (PUBLIC_HUB.to_owned(), "http://h:1/hf".to_owned()));
        let wait = |value: &str| hub(&[("HF_HUB_ETAG_TIMEOUT", value)], Some("/")).unwrap().answer_within.as_secs();
        assert_eq!((wait(""), wait("3"), wait("0"), wait("soon")), (10, 3, 10, 10));
    }

    #[test]
    fn a_token_is_given_or_stored() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "stored\n").unwrap();
        std::fs::write(folder.path().join("other"), " other \r\n").unwrap();
        let other = format!("{home}/other");
        let token = |more: &[(&str, &str)]| hub(&[&[("HF_HOME", home)], more].concat(), None).unwrap().token;
        for (variables, found) in [
            (&[][..], Some("stored")),
            (&[("HF_TOKEN_PATH", other.as_str())], Some("other")),
            (&[("HF_TOKEN", "")], Some("stored")),
            (&[("HF_TOKEN", " given\n"), ("HUGGING_FACE_HUB_TOKEN", "older")], Some("given")),
            (&[("HUGGING_FACE_HUB_TOKEN", "older")], Some("older")),
            (&[("HF_TOKEN", "given"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
            (&[("HF_TOKEN_PATH", "/no/such/file")], None),
        ] {
            assert_eq!(token(variables).as_deref(), found, "{variables:?}");
        }
    }
}
