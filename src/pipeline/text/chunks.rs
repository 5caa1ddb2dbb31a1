//! A prompt as windows of tokens with weights: one, or as many chunks as it needs.
//!
//! Chunks are AUTOMATIC1111's web UI's: each is start, up to a window of the prompt's tokens, end and padding; where a chunk
//! is full, what follows a comma among its last 20 tokens goes to the next one; `BREAK` ends a chunk.

use super::{
    MAX_CHUNKS,
    parse::{Parsed, Piece, parse},
};
use crate::{
    Error, Result,
    models::PromptTokenizer,
    sampling::{LongPrompt, PromptSyntax, SamplingConfig},
};

/// How far before the end of a full chunk a comma may be, for the text after it to go to the next chunk: the web UI's
/// default of `comma_padding_backtrack`.
const COMMA_BACKTRACK: usize = 20;

/// How texts are read.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct Reading {
    pub(super) syntax: PromptSyntax,
    pub(super) long: LongPrompt,
}

impl Reading {
    /// As diffusers reads them.
    pub(in crate::pipeline) const PLAIN: Self = Self { syntax: PromptSyntax::Plain, long: LongPrompt::Truncate };

    /// As a request asks.
    pub(super) fn of(config: &SamplingConfig) -> Self {
        Self { syntax: config.prompt_syntax, long: config.long_prompt }
    }
}

/// One window of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// As many as the window has.
    pub(super) ids: Vec<u32>,
    /// One for each id; `None` where all are 1.
    pub(super) weights: Option<Vec<f32>>,
}

/// A prompt's windows.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::pipeline) struct Chunks {
    /// At least one.
    pub(super) chunks: Vec<Chunk>,
    /// How many of the prompt's tokens are in none.
    pub(super) left_out: usize,
    /// Whether a weight was limited.
    pub(super) limited: bool,
}

impl Chunks {
    /// Reads the text of a request's `field`.
    ///
    /// # Errors
    ///
    /// A token that the text encoder does not know; a `BREAK` where there is one chunk alone.
    pub(super) fn read(tokenizer: &PromptTokenizer, field: &'static str, text: &str, reading: Reading) -> Result<Self> {
        let Parsed { pieces, limited } = match reading.syntax {
            PromptSyntax::Weights => parse(text),
            PromptSyntax::Plain => {
                Parsed { pieces: vec![Piece::Text { text: text.to_owned(), weight: 1.0 }], limited: false }
            }
        };
        if reading.long == LongPrompt::Truncate && pieces.contains(&Piece::Break) {
            let message = "has a BREAK, which starts a chunk; with long_prompt \"truncate\" there is one chunk alone";
            return Err(Error::invalid(field, message));
        }
        let mut splitter = Splitter::new(tokenizer.room(), tokenizer.comma());
        for piece in &pieces {
            match piece {
                Piece::Break => splitter.end_chunk(),
                Piece::Text { text, weight } => {
                    let tokens = tokenizer.ids(field, text)?.into_iter().map(|id| Token { id, weight: *weight });
                    match reading.long {
                        LongPrompt::Chunks => tokens.for_each(|token| splitter.push(token)),
                        LongPrompt::Truncate => splitter.open.extend(tokens),
                    }
                }
            }
        }
        let (kept, left_out) = splitter.end(tokenizer);
        let chunk = |tokens: Vec<Token>| {
            let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            tokenizer.check_known(field, &ids)?;
            let weights: Vec<f32> = tokens.iter().map(|token| token.weight).collect();
            let weighted = weights.iter().any(|weight| *weight != 1.0);
            Ok(Chunk {
                ids: tokenizer.window_of(&ids),
                weights: weighted.then(|| tokenizer.window_with(&weights, 1.0)),
            })
        };
        Ok(Self { chunks: kept.into_iter().map(chunk).collect::<Result<_>>()?, left_out, limited })
    }

    /// Adds chunks of no text until there are `count`.
    pub(super) fn pad(&mut self, count: usize, tokenizer: &PromptTokenizer) {
        let empty = Chunk { ids: tokenizer.window_of(&[]), weights: None };
        let missing = count.saturating_sub(self.chunks.len());
        self.chunks.extend(std::iter::repeat_n(empty, missing));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Token {
    id: u32,
    weight: f32,
}

/// Puts tokens into chunks.
struct Splitter {
    room: usize,
    comma: Option<u32>,
    done: Vec<Vec<Token>>,
    open: Vec<Token>,
    /// Where in the open chunk the last comma is.
    last_comma: Option<usize>,
}

impl Splitter {
    fn new(room: usize, comma: Option<u32>) -> Self {
        Self { room, comma, done: Vec::new(), open: Vec::new(), last_comma: None }
    }

    fn push(&mut self, token: Token) {
        // Where a window has no room, all of the text is left out in the end.
        let full = self.room > 0 && self.open.len() == self.room;
        if Some(token.id) == self.comma {
            if full {
                self.end_chunk();
            } else {
                self.last_comma = Some(self.open.len());
            }
        } else if full {
            let near = self.last_comma.filter(|comma| self.open.len() - comma <= COMMA_BACKTRACK);
            let moved = near.map_or_else(Vec::new, |comma| self.open.split_off(comma + 1));
            self.end_chunk();
            self.open = moved;
        }
        self.open.push(token);
    }

    fn end_chunk(&mut self) {
        self.done.push(std::mem::take(&mut self.open));
        self.last_comma = None;
    }

    /// The chunks that are read, and how many tokens are in none of them.
    fn end(mut self, tokenizer: &PromptTokenizer) -> (Vec<Vec<Token>>, usize) {
        if !self.open.is_empty() || self.done.is_empty() {
            self.end_chunk();
        }
        let all: usize = self.done.iter().map(Vec::len).sum();
        self.done.truncate(MAX_CHUNKS);
        // Only where long prompts are cut is a chunk too long.
        let kept: Vec<_> = self.done.iter().map(|chunk| tokenizer.cut(chunk).to_vec()).collect();
        let left_out = all - kept.iter().map(Vec::len).sum::<usize>();
        (kept, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMA: u32 = 7;

    /// The ids of each chunk; a 0 is a break.
    fn split(room: usize, ids: &[u32]) -> Vec<Vec<u32>> {
        let mut splitter = Splitter::new(room, Some(COMMA));
        for id in ids {
            match id {
                0 => splitter.end_chunk(),
                _ => splitter.push(Token { id: *id, weight: 1.0 }),
            }
        }
        if !splitter.open.is_empty() || splitter.done.is_empty() {
            splitter.end_chunk();
        }
        splitter.done.iter().map(|chunk| chunk.iter().map(|token| token.id).collect()).collect()
    }

    #[test]
    fn full_chunks_end_at_a_comma_that_is_near() {
        assert_eq!(split(3, &[]), [Vec::<u32>::new()]);
        assert_eq!(split(3, &[1, 2, 3]), [[1, 2, 3]]);
        assert_eq!(split(3, &[1, 2, 3, 4]), [vec![1, 2, 3], vec![4]]);
        assert_eq!(split(3, &[1, COMMA, 3, 4, 5]), [vec![1, COMMA], vec![3, 4, 5]]);
        assert_eq!(split(3, &[1, 2, COMMA, 4]), [vec![1, 2, COMMA], vec![4]]);
        // A comma after a full chunk moves nothing, and is not looked for later.
        assert_eq!(split(3, &[1, COMMA, 3, COMMA, 5, 6, 4]), [vec![1, COMMA, 3], vec![COMMA, 5, 6], vec![4]]);
        // Only among the last 20 tokens.
        let far: Vec<u32> = [vec![1, COMMA], vec![2; 20], vec![3]].concat();
        assert_eq!(split(22, &far), [[vec![1, COMMA], vec![2; 20]].concat(), vec![3]]);
        let near: Vec<u32> = [vec![1, COMMA], vec![2; 19], vec![3]].concat();
        assert_eq!(split(21, &near), [vec![1, COMMA], [vec![2; 19], vec![3]].concat()]);
    }

    #[test]
    fn breaks_end_chunks() {
        assert_eq!(split(3, &[1, 0, 2]), [[1], [2]]);
        assert_eq!(split(3, &[1, 0]), [[1]]);
        assert_eq!(split(3, &[0, 1]), [vec![], vec![1]]);
        assert_eq!(split(3, &[1, 2, 3, 0, 4]), [vec![1, 2, 3], vec![4]]);
        assert_eq!(split(3, &[1, COMMA, 0, 4, 5, 6, 8]), [vec![1, COMMA], vec![4, 5, 6], vec![8]]);
    }
}
