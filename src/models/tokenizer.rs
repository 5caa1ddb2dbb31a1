//! Prompts to token ids, as CLIP reads them (Radford et al. 2021).

use serde::Deserialize;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::{self, Lowercase, NFC, replace::Replace, replace::ReplacePattern},
    pre_tokenizers::{self, byte_level::ByteLevel, split::Split, split::SplitPattern},
};

use super::Checkpoint;
use crate::{Error, Result};

/// How CLIP splits text before it looks for pairs of bytes.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The tokens around every prompt, unless the checkpoint names others.
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// A prompt's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// As many ids as the encoder's window has: start, the prompt, end, padding.
    pub ids: Vec<u32>,
    /// How many of the prompt's tokens did not fit.
    pub left_out: usize,
}

/// Turns prompts into ids for one text encoder.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    window: usize,
    start: u32,
    end: u32,
    padding: u32,
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecialTokens {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    /// Some files write "no limit" as a float of 30 digits.
    model_max_length: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Described { content: String },
}

impl SpecialToken {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Described { content: text } => text,
        }
    }
}

impl PromptTokenizer {
    /// Reads the tokenizer in `folder`, from `vocab.json` and `merges.txt` or from `tokenizer.json`, for an encoder that
    /// sees `window` tokens.
    ///
    /// # Errors
    ///
    /// A file that is missing or broken, or a special token that the vocabulary lacks.
    pub fn load(checkpoint: &Checkpoint, folder: &str, window: usize) -> Result<Self> {
        let optional = |file: &str| -> Result<SpecialTokens> {
            let file = format!("{folder}/{file}");
            if checkpoint.has(&file) {
                checkpoint.json(&file, "the tokenizer's special tokens")
            } else {
                Ok(SpecialTokens::default())
            }
        };
        let (config, map) = (optional("tokenizer_config.json")?, optional("special_tokens_map.json")?);
        let special = |of: fn(&SpecialTokens) -> &Option<SpecialToken>, default: &str| {
            of(&config).as_ref().or(of(&map).as_ref()).map_or(default, SpecialToken::text).to_owned()
        };
        let start = special(|tokens| &tokens.bos_token, START);
        let end = special(|tokens| &tokens.eos_token, END);
        let padding = special(|tokens| &tokens.pad_token, &end);

        let json = format!("{folder}/tokenizer.json");
        let tokenizer = if checkpoint.has(&json) {
            let bytes = checkpoint.read(&json, "the tokenizer")?;
            Tokenizer::from_bytes(bytes).map_err(|error| checkpoint.broken(&json, error.to_string()))?
        } else {
            from_vocabulary(checkpoint, folder, &start, &end)?
        };
        let id = |token: &str| {
            let lacking = || checkpoint.broken(&format!("{folder}/vocab.json"), format!("has no token {token:?}"));
            tokenizer.token_to_id(token).ok_or_else(lacking)
        };
        let (start, end, padding) = (id(&start)?, id(&end)?, id(&padding)?);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let window = window.min(config.model_max_length.map_or(usize::MAX, |most| most as usize)).max(2);
        Ok(Self { tokenizer, window, start, end, padding })
    }

    /// A prompt's ids, cut to fit the window.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a prompt that the tokenizer refuses.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        let encoding = self.tokenizer.encode_fast(prompt, false);
        let encoding = encoding.map_err(|error| Error::invalid("prompt", format!("cannot be tokenized: {error}")))?;
        let room = self.window - 2;
        let found = encoding.get_ids();
        let kept = &found[..found.len().min(room)];
        let mut ids = Vec::with_capacity(self.window);
        ids.push(self.start);
        ids.extend_from_slice(kept);
        ids.push(self.end);
        ids.resize(self.window, self.padding);
        Ok(Tokens { ids, left_out: found.len() - kept.len() })
    }

    /// How many tokens of a prompt fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.window - 2
    }
}

/// CLIP's byte-pair tokenizer from its vocabulary and merges.
fn from_vocabulary(checkpoint: &Checkpoint, folder: &str, start: &str, end: &str) -> Result<Tokenizer> {
    let vocabulary_file = format!("{folder}/vocab.json");
    let wanted = "the tokenizer's vocabulary; a tokenizer.json would do, too";
    let vocabulary: Vocab = checkpoint.json(&vocabulary_file, wanted)?;
    let merges_file = format!("{folder}/merges.txt");
    let text = checkpoint.read(&merges_file, "the tokenizer's merges")?;
    let text = String::from_utf8(text).map_err(|_| checkpoint.broken(&merges_file, "is not UTF-8"))?;
    let merges = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .map(|line| {
            let pair = line.split_once(' ').map(|(first, second)| (first.to_owned(), second.to_owned()));
            pair.ok_or_else(|| checkpoint.broken(&merges_file, format!("has the line {line:?}, which is no pair")))
        })
        .collect::<Result<Vec<_>>>()?;
    let broken = |error: tokenizers::Error| checkpoint.broken(&vocabulary_file, error.to_string());
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(end.to_owned())
        .end_of_word_suffix("</w>".to_owned())
        .build()
        .map_err(broken)?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(broken)?;
    let words = SplitPattern::Regex(format!("{}|{}|{WORDS}", START.replace('|', r"\|"), END.replace('|', r"\|")));
    let split = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(broken)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(normalizers))).map_err(broken)?;
    let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(steps)));
    let special: Vec<AddedToken> = [start, end].map(|token| AddedToken::from(token, true)).into();
    tokenizer.add_special_tokens(special).map_err(broken)?;
    Ok(tokenizer)
}
