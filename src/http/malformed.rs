//! What to tell a client whose body is not the JSON that it should be.
//!
//! Owns the words: the parser's own speak of Rust's types. Next: `problem` sends them.

use serde_json::error::Category;

use super::problem::Problem;

/// What is wrong with the JSON `text`, where; `path` leads to the field that was being read.
pub(super) fn malformed(text: &str, path: &str, error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    let field = field_at_fault(path, &message);
    if error.classify() != Category::Data {
        let hint = hint(text, error.line(), error.column());
        return Problem::malformed_json(format!("{message}{hint}"), field);
    }
    // The field says better than a column where a value of the wrong kind stands.
    let message = message.split(" at line ").next().unwrap_or_default();
    let what = match message.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((given, wanted)) => format!("is {}; {wanted} is wanted", given.replace("sequence", "an array")),
        None => message.to_owned(),
    };
    let detail = match &field {
        Some(field) if what.starts_with("is ") => format!("{field}: {what}"),
        None if what.starts_with("is ") => format!("the body {what}"),
        _ => what,
    };
    Problem::malformed_json(detail, field)
}

/// What to write instead of what other languages write where JSON has a value. `line` and `column` count from 1.
fn hint(text: &str, line: usize, column: usize) -> &'static str {
    let line = text.split('\n').nth(line.saturating_sub(1)).unwrap_or_default().as_bytes();
    let of_word = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.'_".contains(byte);
    let (before, after) = line.split_at(column.saturating_sub(1).min(line.len()));
    let start = before.len() - before.iter().rev().take_while(of_word).count();
    let end = before.len() + after.iter().take_while(of_word).count();
    match line.get(start..end).unwrap_or_default() {
        [b'\'', ..] => "; strings stand in double quotes",
        b"True" | b"False" | b"None" => "; JSON writes true, false and null",
        b"NaN" | b"nan" | b"Infinity" | b"-Infinity" | b"inf" | b"-inf" => {
            "; JSON has no such number, and a field that is left out takes its default"
        }
        _ => "",
    }
}

/// The field that serde stumbled over, with the path to it. One that is unknown or
/// given twice is in the message only.
fn field_at_fault(path: &str, message: &str) -> Option<String> {
    let parent = Some(path).filter(|path| !["", ".", "?"].contains(path));
    let named = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("duplicate field `"));
    let unknown = named.and_then(|rest| rest.split_once('`')).map(|(name, _)| name);
    match (parent, unknown) {
        (Some(parent), Some(name)) if parent != name && !parent.ends_with(&format!(".{name}")) => {
            Some(format!("{parent}.{name}"))
        }
        (Some(parent), _) => Some(parent.to_owned()),
        (None, name) => name.map(str::to_owned),
    }
}
