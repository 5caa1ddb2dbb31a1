//! Prompts to token ids, as CLIP reads them (Radford et al. 2021).
//!
//! Owns the vocabulary and the window of one text encoder. As in transformers 5, of `tokenizer.json` only the vocabulary,
//! the merges and the added tokens count: how text is normalised and split is CLIP's in any case, and the truncation and the
//! padding of whoever wrote the file are theirs. Next: the ids go to a text encoder.

use std::borrow::Cow;

use serde::Deserialize;
use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{self, Lowercase, NFC, replace::Replace, replace::ReplacePattern},
    pre_tokenizers::{self, byte_level::ByteLevel, split::Split, split::SplitPattern},
};

use super::{
    Checkpoint,
    added_tokens::{Numbered, Side, TokenizerSettings},
};
use crate::{Error, Result};

/// How CLIP splits text before it looks for pairs of bytes.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A comma at the end of a word.
const COMMA: &str = ",</w>";

/// A prompt's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// As many ids as the encoder's window has: start, the prompt, end, padding.
    pub ids: Vec<u32>,
    /// How many of the prompt's tokens did not fit.
    pub left_out: usize,
}

/// What a tokenizer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextWindow {
    /// How many tokens the text encoder sees.
    pub tokens: usize,
    /// How many ids it knows: 0 to one less.
    pub vocabulary: usize,
}

/// Turns prompts into ids for one text encoder.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    window: TextWindow,
    start: u32,
    end: u32,
    padding: u32,
    cut_side: Side,
    padding_side: Side,
    /// Added tokens that stand for several, and the text with all of them.
    spread: Vec<(String, String)>,
}

/// What a `tokenizer.json` has that counts.
#[derive(Deserialize)]
struct TokenizerFile {
    model: Model,
    added_tokens: Option<Vec<Numbered>>,
    truncation: Option<Direction>,
    padding: Option<Direction>,
}

#[derive(Deserialize)]
struct Direction {
    direction: Option<Side>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Newer files write a merge as a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl PromptTokenizer {
    /// Reads the tokenizer in `folder`, from `tokenizer.json` or from `vocab.json` and `merges.txt`, for an encoder of
    /// `window`.
    ///
    /// # Errors
    ///
    /// A file that is missing or broken, or a special token that the vocabulary or the encoder lacks.
    pub fn load(checkpoint: &Checkpoint, folder: &str, window: TextWindow) -> Result<Self> {
        let json = format!("{folder}/tokenizer.json");
        let (file, parts) = if checkpoint.has(&json) {
            let parts = from_json(checkpoint, &json)?;
            (json, parts)
        } else {
            (format!("{folder}/vocab.json"), from_vocabulary(checkpoint, folder)?)
        };
        let Parts { vocabulary, merges, listed, cut_side, padding_side } = parts;
        let settings = TokenizerSettings::read(checkpoint, folder, listed)?;
        let cut_side = settings.cut_side.or(cut_side).unwrap_or(Side::Right);
        let padding_side = settings.padding_side.or(padding_side).unwrap_or(Side::Right);
        let tokenizer =
            build(vocabulary, merges, &settings).map_err(|error| checkpoint.broken(&file, error.to_string()))?;
        let id = |role: &str, token: &str| match tokenizer.token_to_id(token) {
            Some(id) if (id as usize) < window.vocabulary => Ok(id),
            _ => {
                let most = window.vocabulary;
                let message =
                    format!("has no token {token:?}, the {role}, among the {most} that the text encoder knows");
                Err(checkpoint.broken(&file, message))
            }
        };
        let tokens = window.tokens.min(settings.most_tokens.unwrap_or(usize::MAX)).max(2);
        Ok(Self {
            start: id("bos_token", &settings.start)?,
            end: id("eos_token", &settings.end)?,
            padding: id("pad_token", &settings.padding)?,
            window: TextWindow { tokens, ..window },
            cut_side,
            padding_side,
            spread: spread(&tokenizer),
            tokenizer,
        })
    }

    /// The ids of a prompt, cut to fit the window, as diffusers has them.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedParameter`] of `field` for a prompt with a token that the text encoder does not know,
    /// [`Error::InvalidParameter`] for one that the tokenizer refuses.
    pub fn encode(&self, field: &'static str, prompt: &str) -> Result<Tokens> {
        let found = self.ids(field, prompt)?;
        let kept = self.cut(&found);
        self.check_known(field, kept)?;
        Ok(Tokens { ids: self.window_of(kept), left_out: found.len() - kept.len() })
    }

    /// The ids of any text, however many.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] of `field` for a text that the tokenizer refuses.
    pub fn ids(&self, field: &'static str, text: &str) -> Result<Vec<u32>> {
        let text = self.spread_tokens(field, text)?;
        let encoding = self.tokenizer.encode_fast(text.as_ref(), false);
        let encoding = encoding.map_err(|error| not_tokenized(field, &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// What is left of a prompt where it is cut to fit the window.
    pub fn cut<'t, T>(&self, tokens: &'t [T]) -> &'t [T] {
        let left_out = tokens.len().saturating_sub(self.room());
        match self.cut_side {
            Side::Right => &tokens[..tokens.len() - left_out],
            Side::Left => &tokens[left_out..],
        }
    }

    /// Checks that the text encoder knows all `ids`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedParameter`] of `field`, naming the token.
    pub fn check_known(&self, field: &'static str, ids: &[u32]) -> Result<()> {
        let most = self.window.vocabulary;
        let Some(id) = ids.iter().find(|id| **id as usize >= most) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
        let message = format!("has the token {token:?} of id {id}; this model's text encoder knows ids below {most}");
        Err(Error::unsupported(field, message))
    }

    /// A whole window with `ids` in it: start, the ids, end, padding.
    #[must_use]
    pub fn window_of(&self, ids: &[u32]) -> Vec<u32> {
        self.around(ids, self.start, self.end, self.padding)
    }

    /// What stands for each token of a window, given that for each of the prompt's tokens in it; `other` for all else.
    #[must_use]
    pub fn window_with<T: Copy>(&self, of_prompt: &[T], other: T) -> Vec<T> {
        self.around(of_prompt, other, other, other)
    }

    fn around<T: Copy>(&self, tokens: &[T], start: T, end: T, padding: T) -> Vec<T> {
        let padding = vec![padding; self.room().saturating_sub(tokens.len())];
        let words = [&[start], tokens, &[end]].concat();
        match self.padding_side {
            Side::Right => [words, padding].concat(),
            Side::Left => [padding, words].concat(),
        }
    }

    /// The id of a comma, where the vocabulary has one.
    #[must_use]
    pub fn comma(&self) -> Option<u32> {
        self.tokenizer.token_to_id(COMMA)
    }

    /// How many ids it gives out.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window.tokens
    }

    /// How many tokens of a prompt fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.window() - 2
    }

    /// A prompt in which each token that stands for several is written as all of them: diffusers saves a textual inversion of
    /// three vectors as `<name>`, `<name>_1` and `<name>_2`, and prompts name the first.
    fn spread_tokens<'p>(&self, field: &'static str, prompt: &'p str) -> Result<Cow<'p, str>> {
        let mut spread = Cow::Borrowed(prompt);
        if !self.spread.iter().any(|(token, _)| prompt.contains(token)) {
            return Ok(spread);
        }
        // Unlike the fast way, this one keeps the tokens' texts.
        let encoding = self.tokenizer.encode(prompt, false);
        let encoding = encoding.map_err(|error| not_tokenized(field, &error))?;
        for (token, all) in &self.spread {
            if encoding.get_tokens().contains(token) {
                spread = Cow::Owned(spread.replace(token, all));
            }
        }
        Ok(spread)
    }
}

fn not_tokenized(field: &'static str, error: &tokenizers::Error) -> Error {
    Error::invalid(field, format!("cannot be tokenized: {error}"))
}

/// The added tokens that have siblings `_1`, `_2` and so on, with the text that names them all.
fn spread(tokenizer: &Tokenizer) -> Vec<(String, String)> {
    let added = tokenizer.get_added_vocabulary().get_vocab();
    let all = |token: &String| {
        let siblings = (1..).map(|number| format!("{token}_{number}")).take_while(|name| added.contains_key(name));
        siblings.fold(token.clone(), |all, name| format!("{all} {name}"))
    };
    let mut spread: Vec<_> = added.keys().map(|token| (token.clone(), all(token))).collect();
    spread.retain(|(token, all)| token != all);
    spread.sort();
    spread
}

/// What a tokenizer is made of, whichever files it is in.
struct Parts {
    vocabulary: Vocab,
    merges: Merges,
    listed: Vec<Numbered>,
    cut_side: Option<Side>,
    padding_side: Option<Side>,
}

fn from_json(checkpoint: &Checkpoint, file: &str) -> Result<Parts> {
    let TokenizerFile { model, added_tokens, truncation, padding } = checkpoint.json(file, "the tokenizer")?;
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(first, second) => Ok((first, second)),
        Merge::Text(text) => pair(&text).ok_or_else(|| checkpoint.broken(file, not_a_pair(&text))),
    });
    let side = |of: Option<Direction>| of.and_then(|of| of.direction);
    Ok(Parts {
        vocabulary: model.vocab,
        merges: merges.collect::<Result<_>>()?,
        listed: added_tokens.unwrap_or_default(),
        cut_side: side(truncation),
        padding_side: side(padding),
    })
}

fn from_vocabulary(checkpoint: &Checkpoint, folder: &str) -> Result<Parts> {
    let wanted = "the tokenizer's vocabulary; a tokenizer.json would do, too";
    let vocabulary = checkpoint.json(&format!("{folder}/vocab.json"), wanted)?;
    let file = format!("{folder}/merges.txt");
    let text = checkpoint.read(&file, "the tokenizer's merges")?;
    let text = String::from_utf8(text).map_err(|_| checkpoint.broken(&file, "is not UTF-8"))?;
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    let merges = lines.map(|line| pair(line).ok_or_else(|| checkpoint.broken(&file, not_a_pair(line))));
    let merges = merges.collect::<Result<_>>()?;
    Ok(Parts { vocabulary, merges, listed: Vec::new(), cut_side: None, padding_side: None })
}

fn pair(text: &str) -> Option<(String, String)> {
    text.split_once(' ').map(|(first, second)| (first.to_owned(), second.to_owned()))
}

fn not_a_pair(text: &str) -> String {
    format!("has the merge {text:?}, which is no pair")
}

/// CLIP's byte-pair tokenizer of a vocabulary and its merges. Where a prompt has one of the added tokens, it is one: a `!` is
/// padding to the tokenizers that pad with it.
fn build(vocabulary: Vocab, merges: Merges, settings: &TokenizerSettings) -> tokenizers::Result<Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(settings.unknown.clone())
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let words = SplitPattern::Regex(WORDS.to_owned());
    let split = Split::new(words, SplitDelimiterBehavior::Removed, true)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(normalizers)))?;
    let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(steps)));
    tokenizer.add_tokens(settings.tokens.iter().cloned())?;
    tokenizer.set_encode_special_tokens(settings.split_special_tokens);
    Ok(tokenizer)
}
