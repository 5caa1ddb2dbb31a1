//! A prompt's brackets: `(more)`, `(more:1.3)`, `[less]`, `\(`, and `BREAK`, as AUTOMATIC1111's web UI reads them.
//!
//! Owns that syntax. Every text is one: a bracket that closes nothing is a character, and one that is never closed holds to
//! the end. Three things differ from the web UI: a `\` before anything but a bracket or a `\` is a character and not dropped,
//! a `BREAK` inside brackets breaks, and weights are bounded. Next: the pieces are tokenized one by one. Two fifths of the
//! file are its tests.

/// What a pair of `(` and `)` multiplies weights by; a pair of `[` and `]` divides by it.
const EMPHASIS: f64 = 1.1;
/// No text weighs more than this, nor less than its negative.
pub(super) const MAX_WEIGHT: f64 = 10.0;
/// Keeps products of nested weights finite until they are limited.
const MAX_PRODUCT: f64 = 1e9;
/// Starts a chunk.
const BREAK: &str = "BREAK";

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Text of one weight.
    Text {
        /// Without the brackets, and with escapes resolved.
        text: String,
        /// 1 where nothing weighs it.
        weight: f32,
    },
    /// What follows starts a chunk.
    Break,
}

/// What a prompt says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parsed {
    /// At least one; neighbours differ in weight.
    pub(super) pieces: Vec<Piece>,
    /// Whether a weight was beyond [`MAX_WEIGHT`].
    pub(super) limited: bool,
}

/// Reads a prompt, in time that grows with its length alone.
pub(super) fn parse(prompt: &str) -> Parsed {
    let marks = marks(prompt);
    let factors = factors(&marks);
    let mut writer = Writer::default();
    // Of each kind of brackets, the weight inside all that are open.
    let (mut round, mut square) = (vec![1.0], vec![1.0]);
    for (mark, factor) in marks.iter().zip(factors) {
        match (mark, factor) {
            (Mark::Open(kind), Some(factor)) => {
                let open = if *kind == Kind::Round { &mut round } else { &mut square };
                let outer: f64 = open.last().copied().unwrap_or(1.0);
                open.push((outer * factor).clamp(-MAX_PRODUCT, MAX_PRODUCT));
            }
            (Mark::Close { kind, .. }, Some(_)) => {
                let open = if *kind == Kind::Round { &mut round } else { &mut square };
                open.pop();
            }
            (Mark::Text(text), _) => writer.write(text),
            (Mark::Close { source, .. } | Mark::Escaped(source), _) => writer.add(source),
            (Mark::Open(_), None) => {}
        }
        writer.weight = round.last().unwrap_or(&1.0) * square.last().unwrap_or(&1.0);
    }
    writer.end()
}

/// A text such that `parse` finds it as it is, with nothing weighed: for programs that read prompts by this syntax. (A
/// word `BREAK` is written small, which is the same to the text encoders.)
#[must_use]
pub fn literal_prompt(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = split_at_break(rest) {
        escape(before, &mut literal);
        literal.push_str(&BREAK.to_lowercase());
        rest = after;
    }
    escape(rest, &mut literal);
    literal
}

fn escape(text: &str, into: &mut String) {
    for character in text.chars() {
        if is_special(character) {
            into.push('\\');
        }
        into.push(character);
    }
}

fn is_special(character: char) -> bool {
    matches!(character, '(' | ')' | '[' | ']' | '\\')
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Round,
    Square,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mark<'a> {
    Text(&'a str),
    /// A character that a `\` stood before.
    Escaped(&'a str),
    Open(Kind),
    /// With `:1.3)` the factor of what it closes.
    Close {
        kind: Kind,
        factor: Option<f64>,
        source: &'a str,
    },
}

/// Brackets, escapes, and the text between them.
fn marks(prompt: &str) -> Vec<Mark<'_>> {
    let mut marks = Vec::new();
    let mut rest = prompt;
    while !rest.is_empty() {
        let end = rest.find(|c: char| is_special(c) || c == ':').unwrap_or(rest.len());
        if end > 0 {
            marks.push(Mark::Text(&rest[..end]));
            rest = &rest[end..];
            continue;
        }
        // All special characters are one byte.
        let (first, after) = rest.split_at(1);
        let (mark, length) = match first {
            "(" => (Mark::Open(Kind::Round), 1),
            "[" => (Mark::Open(Kind::Square), 1),
            ")" => (Mark::Close { kind: Kind::Round, factor: None, source: first }, 1),
            "]" => (Mark::Close { kind: Kind::Square, factor: None, source: first }, 1),
            ":" => match weighted_end(rest) {
                Some((factor, length)) => {
                    let source = &rest[..length];
                    (Mark::Close { kind: Kind::Round, factor: Some(factor), source }, length)
                }
                None => (Mark::Text(first), 1),
            },
            _ if after.starts_with(is_special) => (Mark::Escaped(&after[..1]), 2),
            _ => (Mark::Text(first), 1),
        };
        marks.push(mark);
        rest = &rest[length..];
    }
    marks
}

/// The number and the length of a `:1.3)` that `text` starts with.
fn weighted_end(text: &str) -> Option<(f64, usize)> {
    let after = text.strip_prefix(':')?.trim_start();
    let end = after.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))?;
    let number: f64 = after[..end].parse().ok()?;
    let rest = after[end..].trim_start().strip_prefix(')')?;
    Some((number.clamp(-MAX_PRODUCT, MAX_PRODUCT), text.len() - rest.len()))
}

/// For each bracket that opens, what it multiplies weights by; for each that closes one, the same. `None` for all else.
fn factors(marks: &[Mark]) -> Vec<Option<f64>> {
    let mut factors = vec![None; marks.len()];
    let (mut round, mut square) = (Vec::new(), Vec::new());
    for (index, mark) in marks.iter().enumerate() {
        match mark {
            Mark::Open(kind) => {
                let (open, factor) = match kind {
                    Kind::Round => (&mut round, EMPHASIS),
                    Kind::Square => (&mut square, 1.0 / EMPHASIS),
                };
                open.push(index);
                // Also what is never closed weighs.
                factors[index] = Some(factor);
            }
            Mark::Close { kind, factor, .. } => {
                let open = if *kind == Kind::Round { &mut round } else { &mut square };
                if let Some(opened) = open.pop() {
                    factors[opened] = factor.or(factors[opened]);
                    factors[index] = factors[opened];
                }
            }
            Mark::Text(_) | Mark::Escaped(_) => {}
        }
    }
    factors
}

/// Pieces, as they are put together.
struct Writer {
    pieces: Vec<Piece>,
    weight: f64,
    limited: bool,
}

impl Default for Writer {
    fn default() -> Self {
        Self { pieces: Vec::new(), weight: 1.0, limited: false }
    }
}

impl Writer {
    /// Adds text that may have breaks.
    fn write(&mut self, mut text: &str) {
        while let Some((before, after)) = split_at_break(text) {
            self.add(before.trim_end());
            self.pieces.push(Piece::Break);
            text = after.trim_start();
        }
        self.add(text);
    }

    fn add(&mut self, added: &str) {
        if added.is_empty() {
            return;
        }
        let limited = self.weight.clamp(-MAX_WEIGHT, MAX_WEIGHT);
        self.limited |= limited != self.weight;
        #[expect(clippy::cast_possible_truncation, reason = "states are in f32")]
        let of_added = limited as f32;
        match self.pieces.last_mut() {
            Some(Piece::Text { text, weight }) if *weight == of_added => text.push_str(added),
            _ => self.pieces.push(Piece::Text { text: added.to_owned(), weight: of_added }),
        }
    }

    fn end(mut self) -> Parsed {
        if self.pieces.is_empty() {
            self.pieces.push(Piece::Text { text: String::new(), weight: 1.0 });
        }
        Parsed { pieces: self.pieces, limited: self.limited }
    }
}

/// What is before and after the first word `BREAK`.
fn split_at_break(text: &str) -> Option<(&str, &str)> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(BREAK).find_map(|(start, _)| {
        let (before, after) = (&text[..start], &text[start + BREAK.len()..]);
        (!before.ends_with(in_word) && !after.starts_with(in_word)).then_some((before, after))
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    fn text(text: &str, weight: f32) -> Piece {
        Piece::Text { text: text.to_owned(), weight }
    }

    #[expect(clippy::cast_possible_truncation, reason = "states are in f32")]
    const LESS: f32 = (1.0_f64 / 1.1) as f32;

    fn pieces(prompt: &str) -> Vec<Piece> {
        parse(prompt).pieces
    }

    #[test]
    fn brackets_weigh_text() {
        let (more, less) = (1.1, LESS);
        let cases: &[(&str, &[Piece])] = &[
            ("", &[text("", 1.0)]),
            ("a red fox: 3, \"quick\"", &[text("a red fox: 3, \"quick\"", 1.0)]),
            ("a (red) fox", &[text("a ", 1.0), text("red", more), text(" fox", 1.0)]),
            ("a [red] fox", &[text("a ", 1.0), text("red", less), text(" fox", 1.0)]),
            ("((red))", &[text("red", 1.21)]),
            ("(red:1.3)", &[text("red", 1.3)]),
            ("(red : 1.3 )", &[text("red ", 1.3)]),
            ("(red:+.5)(fox:-2)", &[text("red", 0.5), text("fox", -2.0)]),
            ("(a (red:1.5) fox:0.5)", &[text("a ", 0.5), text("red", 0.75), text(" fox", 0.5)]),
            ("((red:2))", &[text("red", 2.2)]),
            ("[(red)]", &[text("red", 1.0)]),
            ("(red)(fox)", &[text("redfox", more)]),
            ("(a [red) fox]", &[text("a ", more), text("red", 1.0), text(" fox", less)]),
            ("(a:0)", &[text("a", 0.0)]),
        ];
        for (prompt, wanted) in cases {
            assert_eq!(&pieces(prompt), wanted, "{prompt}");
        }
    }

    #[test]
    fn what_is_no_pair_of_brackets_is_text_and_what_stays_open_weighs() {
        let cases: &[(&str, &[Piece])] = &[
            ("a fox)", &[text("a fox)", 1.0)]),
            ("a fox:1.3)", &[text("a fox:1.3)", 1.0)]),
            ("a] fox", &[text("a] fox", 1.0)]),
            ("a (fox", &[text("a ", 1.0), text("fox", 1.1)]),
            ("a (fox:1.3", &[text("a ", 1.0), text("fox:1.3", 1.1)]),
            ("(fox:1.2.3)", &[text("fox:1.2.3", 1.1)]),
            ("(fox:-)", &[text("fox:-", 1.1)]),
            ("[fox:1.3]", &[text("fox:1.3", LESS)]),
            ("[fox:1.3)", &[text("fox:1.3)", LESS)]),
            ("()", &[text("", 1.0)]),
            ("a()b", &[text("ab", 1.0)]),
        ];
        for (prompt, wanted) in cases {
            assert_eq!(&pieces(prompt), wanted, "{prompt}");
        }
    }

    #[test]
    fn escapes_are_characters() {
        let cases: &[(&str, &[Piece])] = &[
            (r"\(fox\)", &[text("(fox)", 1.0)]),
            (r"\[a\] \\ b", &[text(r"[a] \ b", 1.0)]),
            (r"a\b\", &[text(r"a\b\", 1.0)]),
            (r"(a \(red\) fox:1.2)", &[text("a (red) fox", 1.2)]),
            (r"(fox:1.3\)", &[text("fox:1.3)", 1.1)]),
            (r"\\(fox)", &[text(r"\", 1.0), text("fox", 1.1)]),
        ];
        for (prompt, wanted) in cases {
            assert_eq!(&pieces(prompt), wanted, "{prompt}");
        }
    }

    #[test]
    fn the_word_break_breaks() {
        let cases: &[(&str, &[Piece])] = &[
            ("a fox BREAK in the snow", &[text("a fox", 1.0), Piece::Break, text("in the snow", 1.0)]),
            ("a\nBREAK,b", &[text("a", 1.0), Piece::Break, text(",b", 1.0)]),
            ("(a BREAK b:1.5)", &[text("a", 1.5), Piece::Break, text("b", 1.5)]),
            ("BREAK BREAK", &[Piece::Break, Piece::Break]),
            ("break BREAKFAST _BREAK", &[text("break BREAKFAST _BREAK", 1.0)]),
        ];
        for (prompt, wanted) in cases {
            assert_eq!(&pieces(prompt), wanted, "{prompt}");
        }
    }

    #[test]
    fn weights_are_limited() {
        assert!(!parse("(fox:10)(fox:-10)").limited);
        for (prompt, weight) in [
            ("(fox:10.1)".to_owned(), 10.0),
            ("(fox:-1000)".to_owned(), -10.0),
            ("(".repeat(25) + "fox", 10.0),
            (format!("(fox:{})", "9".repeat(400)), 10.0),
        ] {
            assert_eq!(parse(&prompt), Parsed { pieces: vec![text("fox", weight)], limited: true }, "{prompt}");
        }
        // However much is around it, nothing times anything is nothing.
        assert_eq!(pieces(&format!("{}(fox:0)", "(".repeat(9000))), [text("fox", 0.0)]);
        assert_eq!(pieces(&format!("{}fox:0)", "[".repeat(9000) + "(")), [text("fox", 0.0)]);
    }

    /// Each of these would take hours in time that grows with the square of the length.
    #[test]
    fn long_texts_are_read_in_time() {
        let many = 2_000_000;
        assert_eq!(pieces(&"(".repeat(many)), [text("", 1.0)]);
        assert_eq!(pieces(&")".repeat(many)), [text(&")".repeat(many), 1.0)]);
        assert!(pieces(&"(a".repeat(many)).len() > 20);
        assert!(pieces(&"([a".repeat(many)).len() > 20);
        assert_eq!(pieces(&":1".repeat(many)), [text(&":1".repeat(many), 1.0)]);
        assert_eq!(pieces(&"BREAK ".repeat(many)).len(), many);
        assert_eq!(pieces(&"BREAKS".repeat(many)), [text(&"BREAKS".repeat(many), 1.0)]);
    }

    /// Texts of all that the syntax knows, and of what it does not.
    fn random_text(random: &mut SmallRng, alphabet: &[&str]) -> String {
        let length = random.random_range(0..40);
        (0..length).map(|_| alphabet[random.random_range(0..alphabet.len())]).collect()
    }

    const ORDINARY: [&str; 16] =
        ["a", "fox", " ", ",", ":", "1", ".5", "-", "é", "狐", "\n", "BREAKS", "{", "}", "_", "🦊"];
    const SPECIAL: [&str; 10] = ["(", ")", "[", "]", "\\", ":1.3)", ": -2 )", " BREAK ", "BREAK", "(a:0)"];

    #[test]
    fn text_without_syntax_is_one_piece_as_it_is() {
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..20_000 {
            let prompt = random_text(&mut random, &ORDINARY);
            assert_eq!(parse(&prompt), Parsed { pieces: vec![text(&prompt, 1.0)], limited: false });
        }
    }

    #[test]
    fn every_text_is_read_and_loses_nothing_but_syntax() {
        let mut random = SmallRng::seed_from_u64(2);
        let all = [&ORDINARY[..], &SPECIAL].concat();
        let letters = |text: &str| text.chars().filter(|c| c.is_alphabetic()).collect::<String>();
        for _ in 0..50_000 {
            let prompt = random_text(&mut random, &all);
            let found = pieces(&prompt);
            assert!(!found.is_empty());
            let mut read = String::new();
            for piece in &found {
                match piece {
                    Piece::Text { text, weight } => {
                        assert!(weight.abs() <= 10.0, "{prompt:?}: {found:?}");
                        read += text;
                    }
                    Piece::Break => read += BREAK,
                }
            }
            assert_eq!(letters(&read), letters(&prompt), "{prompt:?}: {found:?}");
            let literal = literal_prompt(&prompt);
            let small = parse(&literal).pieces;
            assert!(
                matches!(&small[..], [Piece::Text { text, weight: 1.0 }]
                if text.to_lowercase() == prompt.to_lowercase()),
                "{prompt:?}: {literal:?}"
            );
        }
    }
}
