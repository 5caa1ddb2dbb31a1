//! Which tokens a tokenizer takes whole, as the files beside it name them.
//!
//! Owns the rules of transformers 5 for `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and the list
//! inside `tokenizer.json`: which file wins, in what order tokens are added, and what flags each has. Next: `tokenizer` adds
//! them to its vocabulary.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::Checkpoint;
use crate::Result;

/// The tokens with a role, in the order in which they are added, and what each is where no file names it.
const NAMED: [(&str, Option<&str>); 7] = [
    ("bos_token", Some("<|startoftext|>")),
    ("eos_token", Some("<|endoftext|>")),
    ("unk_token", Some("<|endoftext|>")),
    ("sep_token", None),
    ("pad_token", Some("<|endoftext|>")),
    ("cls_token", None),
    ("mask_token", None),
];
/// The list of further special tokens, by its name and by its older one, which counts where the newer is absent.
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";
const CONFIG: &str = "tokenizer_config.json";

/// What the files beside a vocabulary say.
#[derive(Debug, Default)]
pub(super) struct TokenizerSettings {
    /// The tokens to add, in this order: of several with one content the last counts.
    pub tokens: Vec<AddedToken>,
    /// Start, end and padding of every prompt, and what stands for a token that is unknown.
    pub start: String,
    pub end: String,
    pub padding: String,
    pub unknown: String,
    /// The most tokens that the tokenizer gives out.
    pub most_tokens: Option<usize>,
    /// Which end of a prompt that is too long is cut off, and which end of a short one is padded.
    pub cut_side: Option<Side>,
    pub padding_side: Option<Side>,
    /// Whether a special token in a prompt is ordinary text.
    pub split_special_tokens: bool,
}

/// An end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Side {
    #[serde(rename = "left", alias = "Left")]
    Left,
    #[serde(rename = "right", alias = "Right")]
    Right,
}

/// A token as a file writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Described(Described),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Described {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Whether it is looked for in the normalised text; absent means that it is unless it is special.
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// A token of `tokenizer.json`'s list.
#[derive(Debug, Deserialize)]
pub(super) struct Numbered {
    id: u64,
    #[serde(flatten)]
    token: Described,
}

impl Written {
    fn content(&self) -> &str {
        match self {
            Self::Text(content) | Self::Described(Described { content, .. }) => content,
        }
    }
}

/// Reads a value of a file's map; what is `null` is absent.
fn get<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    file: &str,
    map: &Map<String, Value>,
    key: &str,
) -> Result<Option<T>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            T::deserialize(value).map(Some).map_err(|error| checkpoint.broken(file, format!("{key}: {error}")))
        }
    }
}

impl TokenizerSettings {
    /// Reads the files in `folder`; `listed` are the added tokens of its `tokenizer.json`, if it has one.
    ///
    /// # Errors
    ///
    /// A file that is broken, by its path and key.
    pub(super) fn read(checkpoint: &Checkpoint, folder: &str, listed: Vec<Numbered>) -> Result<Self> {
        let file = format!("{folder}/{CONFIG}");
        let config: Map<String, Value> = optional(checkpoint, &file)?;
        let side = |key: &str| get::<Side>(checkpoint, &file, &config, key);
        let (cut_side, padding_side) = (side("truncation_side")?, side("padding_side")?);
        let most = |key: &str| get::<f64>(checkpoint, &file, &config, key);
        // Some files write "no limit" as a number of 30 digits.
        let most_tokens = most("model_max_length")?.or(most("max_len")?);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let most_tokens = most_tokens.map(|most| most as usize);
        let split_special_tokens = get(checkpoint, &file, &config, "split_special_tokens")?.unwrap_or(false);

        let mut named = NamedTokens::read(checkpoint, &file, &config)?;
        if named.extra.is_empty() {
            named.extra = std::mem::take(&mut named.additional);
        }
        let numbered = match get::<BTreeMap<u64, Described>>(checkpoint, &file, &config, "added_tokens_decoder")? {
            // A configuration that numbers its tokens is the newer form, which needs no other file.
            Some(numbered) => numbered,
            None => legacy(checkpoint, folder, listed, &mut named)?,
        };
        let role = |key: &str| named.role(key).map_or(String::new(), |token| token.content().to_owned());
        Ok(Self {
            start: role("bos_token"),
            end: role("eos_token"),
            padding: role("pad_token"),
            unknown: role("unk_token"),
            tokens: named.in_order(numbered.into_values()),
            most_tokens,
            cut_side,
            padding_side,
            split_special_tokens,
        })
    }
}

/// The numbered tokens of a tokenizer whose configuration does not number them.
fn legacy(
    checkpoint: &Checkpoint,
    folder: &str,
    listed: Vec<Numbered>,
    named: &mut NamedTokens,
) -> Result<BTreeMap<u64, Described>> {
    let file = format!("{folder}/special_tokens_map.json");
    let mut map = NamedTokens::read(checkpoint, &file, &optional(checkpoint, &file)?)?;
    map.mark_special();
    named.overwrite(map);

    let added: BTreeMap<String, u64> = optional(checkpoint, &format!("{folder}/added_tokens.json"))?;
    let mut numbered = BTreeMap::new();
    for (content, id) in added {
        let special = named.contains(&content);
        let normalized = Some(!special);
        numbered
            .insert(id, Described { content, single_word: false, lstrip: false, rstrip: false, normalized, special });
    }
    numbered.extend(listed.into_iter().map(|Numbered { id, token }| (id, token)));
    Ok(numbered)
}

fn is_named(key: &str) -> bool {
    NAMED.iter().any(|(known, _)| *known == key)
}

fn optional<T: DeserializeOwned + Default>(checkpoint: &Checkpoint, file: &str) -> Result<T> {
    if checkpoint.has(file) { checkpoint.json(file, "the tokenizer's special tokens") } else { Ok(T::default()) }
}

/// The special tokens of one file.
#[derive(Debug, Default)]
struct NamedTokens {
    /// By key, those of [`NAMED`] first.
    roles: Vec<(String, Written)>,
    extra: Vec<Written>,
    additional: Vec<Written>,
}

impl NamedTokens {
    fn read(checkpoint: &Checkpoint, file: &str, map: &Map<String, Value>) -> Result<Self> {
        let mut found = Self::default();
        let known = NAMED.iter().map(|(key, _)| *key);
        let others = map.keys().map(String::as_str).filter(|key| {
            // A model may have further tokens under names of its own; flags such as `add_bos_token` are none.
            let is_token = matches!(map.get(*key), Some(Value::String(_) | Value::Object(_)));
            key.ends_with("_token") && is_token && !is_named(key)
        });
        for key in known.chain(others) {
            if let Some(token) = get(checkpoint, file, map, key)? {
                found.roles.push((key.to_owned(), token));
            }
        }
        if map.get(EXTRA).is_some_and(Value::is_object) {
            let named: Option<BTreeMap<String, Written>> = get(checkpoint, file, map, EXTRA)?;
            found.roles.extend(named.unwrap_or_default());
        } else {
            found.extra = get(checkpoint, file, map, EXTRA)?.unwrap_or_default();
        }
        found.additional = get(checkpoint, file, map, ADDITIONAL)?.unwrap_or_default();
        Ok(found)
    }

    /// Whatever `special_tokens_map.json` names is special.
    fn mark_special(&mut self) {
        let roles = self.roles.iter_mut().map(|(_, token)| token);
        for token in roles.chain(&mut self.extra).chain(&mut self.additional) {
            if let Written::Described(described) = token {
                described.special = true;
            }
        }
    }

    /// Takes over what `other` names.
    fn overwrite(&mut self, other: Self) {
        for (key, token) in other.roles {
            match self.roles.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = token,
                None => self.roles.push((key, token)),
            }
        }
        for token in other.extra {
            if !self.extra.contains(&token) {
                self.extra.push(token);
            }
        }
        if !other.additional.is_empty() {
            self.additional = other.additional;
        }
    }

    /// Whether a token of `added_tokens.json` is special.
    fn contains(&self, content: &str) -> bool {
        let named = self.roles.iter().filter(|(key, _)| is_named(key)).map(|(_, token)| token);
        named.chain(&self.extra).any(|token| token.content() == content)
    }

    fn role(&self, key: &str) -> Option<Written> {
        let given = self.roles.iter().find(|(known, _)| known == key).map(|(_, token)| token.clone());
        let default = NAMED.iter().find(|(known, _)| *known == key).and_then(|(_, default)| *default);
        given.or_else(|| default.map(|default| Written::Text(default.to_owned())))
    }

    /// The numbered tokens by their numbers, then those with a role, then the others, each with its flags.
    fn in_order(&self, numbered: impl Iterator<Item = Described>) -> Vec<AddedToken> {
        let mut tokens: Vec<Written> = numbered.map(Written::Described).collect();
        let known = tokens.len();
        let named = NAMED.iter().filter_map(|(key, _)| self.role(key));
        let others = self.roles.iter().filter(|(key, _)| !is_named(key)).map(|(_, token)| token.clone());
        let roles: Vec<Written> = named.chain(others).collect();
        let extra = if self.extra.is_empty() { &self.additional } else { &self.extra };
        for token in roles.iter().chain(extra) {
            let listed = tokens[..known].iter().any(|known| known.content() == token.content());
            if !listed && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        let has_role = |content: &str| roles.iter().any(|token| token.content() == content);
        let with_flags = |token: Written| match token {
            Written::Text(content) => AddedToken::from(content, true),
            Written::Described(token) => {
                let special = token.special || has_role(&token.content);
                AddedToken::from(token.content, special)
                    .single_word(token.single_word)
                    .lstrip(token.lstrip)
                    .rstrip(token.rstrip)
                    .normalized(token.normalized.unwrap_or(!special))
            }
        };
        tokens.into_iter().map(with_flags).collect()
    }
}
