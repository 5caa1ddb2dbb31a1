//! JSON as Python writes and reads it: what the files of a checkpoint are.
//!
//! It is JSON with `Infinity`, `-Infinity` and `NaN` for numbers, and it may begin with a byte-order mark. Here `null` is
//! Python's "not set": an object's keys that are `null` are not there for who reads it, but for those that the caller
//! wants to see. Of a key that stands twice the last counts, as in Python.
//!
//! The file parses by itself what no crate in use does, and leaves strings and finite numbers to `serde_json`. Requests
//! are never read with it. It is long because the parser, its errors with their places, and what serde asks of it belong
//! together.

pub(crate) mod keys;

use std::{collections::HashMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer, Unexpected, Visitor, value::StringDeserializer},
    forward_to_deserialize_any,
};

/// How deep arrays and objects may lie in one another.
const DEEPEST: usize = 128;

/// What UTF-8 files of some editors begin with.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What a file is without its byte-order mark, if it has one.
pub(crate) fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Reads a value from a file's bytes; keys that are `null` are absent.
///
/// # Errors
///
/// The key, its value and what is wanted, or what is no JSON, each with its line and column.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let document = Document::parse(bytes)?;
    document.read(&[])
}

/// A value of JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// Finite or not.
    Float(f64),
    Unsigned(u64),
    Signed(i64),
    String(String),
    Array(Vec<Node>),
    /// In the file's order, each key once.
    Object(Vec<(String, Node)>),
}

impl Value {
    /// The value of a number.
    #[expect(clippy::cast_precision_loss, reason = "numbers of this size are compared with small ones")]
    fn number(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }
}

/// As Python writes it, long strings cut.
impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Float(f64::INFINITY) => out.write_str("Infinity"),
            Self::Float(f64::NEG_INFINITY) => out.write_str("-Infinity"),
            Self::Float(value) => write!(out, "{value}"),
            Self::Unsigned(value) => write!(out, "{value}"),
            Self::Signed(value) => write!(out, "{value}"),
            Self::String(text) => out.write_str(&short(text)),
            Self::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| item.value.to_string()).collect();
                write!(out, "[{}]", items.join(", "))
            }
            Self::Object(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|(key, node)| format!("{}: {}", short(key), node.value)).collect();
                write!(out, "{{{}}}", entries.join(", "))
            }
        }
    }
}

/// A value and where it begins in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    offset: usize,
}

impl Node {
    /// The value of a key, where this is an object that has it, be it `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Object(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }
}

/// A file that was parsed.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    text: &'a str,
    pub(crate) root: Node,
}

impl<'a> Document<'a> {
    /// Parses a file's bytes.
    ///
    /// # Errors
    ///
    /// What is no JSON, with its line and column.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let text =
            std::str::from_utf8(without_byte_order_mark(bytes)).map_err(|error| format!("is not UTF-8: {error}"))?;
        let mut parser = Parser { text, at: 0, depth: 0 };
        let root = parser.document().map_err(|(message, offset)| format!("{message} at {}", place(text, offset)))?;
        Ok(Self { text, root })
    }

    /// What the file says, as a `T`. Keys that are `null` are absent, but those of the outermost object that are in
    /// `null_counts`.
    ///
    /// # Errors
    ///
    /// The key, its value and what is wanted, with line and column.
    pub(crate) fn read<T: DeserializeOwned>(&self, null_counts: &[&str]) -> Result<T, String> {
        let reader = Reader { node: &self.root, null_counts };
        serde_path_to_error::deserialize(reader).map_err(|error| {
            let place = place(self.text, follow(&self.root, error.path()).offset);
            let message = error.inner().to_string();
            match error.path().to_string().as_str() {
                "." => format!("{message} at {place}"),
                key if message.starts_with("is ") => format!("{key} {message} at {place}"),
                key => format!("{key}: {message} at {place}"),
            }
        })
    }
}

/// The value at the end of a path, or as far as the path can be followed.
fn follow<'a>(root: &'a Node, path: &serde_path_to_error::Path) -> &'a Node {
    let mut node = root;
    for segment in path {
        let next = match (segment, &node.value) {
            (serde_path_to_error::Segment::Map { key }, _) => node.get(key),
            (serde_path_to_error::Segment::Seq { index }, Value::Array(items)) => items.get(*index),
            _ => None,
        };
        let Some(next) = next else { break };
        node = next;
    }
    node
}

/// A place in a text, for people.
fn place(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    format!("line {line} column {}", before.len() - line_start + 1)
}

/// What is wrong, and where.
type Fault = (String, usize);

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<Node, Fault> {
        let root = self.node()?;
        match self.peek() {
            None => Ok(root),
            Some(_) => Err(self.fault("trailing characters")),
        }
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blank = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += blank;
        rest.get(blank).copied()
    }

    fn fault(&self, message: impl Into<String>) -> Fault {
        (message.into(), self.at)
    }

    fn node(&mut self) -> Result<Node, Fault> {
        let first = self.peek().ok_or_else(|| self.fault("the file ends where a value is wanted"))?;
        let offset = self.at;
        let value = match first {
            b'{' => self.nested(Self::object)?,
            b'[' => self.nested(Self::array)?,
            b'"' => Value::String(self.string()?),
            b'-' | b'0'..=b'9' => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { value, offset })
    }

    fn nested(&mut self, inside: fn(&mut Self) -> Result<Value, Fault>) -> Result<Value, Fault> {
        if self.depth == DEEPEST {
            return Err(self.fault(format!("values lie more than {DEEPEST} deep in one another")));
        }
        self.depth += 1;
        self.at += 1;
        let value = inside(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn array(&mut self) -> Result<Value, Fault> {
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.node()?);
            if self.ends(b']')? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn object(&mut self) -> Result<Value, Fault> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(entries));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.fault("a key in double quotes is wanted"));
            }
            let key = self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.fault(format!("a colon is wanted behind the key {key:?}")));
            }
            self.at += 1;
            let node = self.node()?;
            match places.get(&key) {
                Some(place) => entries[*place].1 = node,
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, node));
                }
            }
            if self.ends(b'}')? {
                return Ok(Value::Object(entries));
            }
        }
    }

    /// Whether what is behind a value closes the array or object; else it has to be a comma.
    fn ends(&mut self, closing: u8) -> Result<bool, Fault> {
        let next = self.peek();
        if next != Some(closing) && next != Some(b',') {
            return Err(self.fault(format!("a comma or {} is wanted", char::from(closing))));
        }
        self.at += 1;
        Ok(next == Some(closing))
    }

    fn string(&mut self) -> Result<String, Fault> {
        let bytes = &self.text.as_bytes()[self.at..];
        let mut length = 1;
        loop {
            match bytes.get(length) {
                Some(b'"') => break,
                Some(b'\\') => length += 2,
                Some(_) => length += 1,
                None => return Err(self.fault("a string without an end")),
            }
        }
        let whole = &bytes[..=length];
        let string = serde_json::from_slice(whole).map_err(|_| self.fault("a string with a wrong escape in it"))?;
        self.at += whole.len();
        Ok(string)
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let rest = &self.text[self.at..];
        if rest.starts_with("-Infinity") {
            return self.word();
        }
        let inside = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let text = &rest[..rest.bytes().take_while(|byte| inside(byte)).count()];
        let number: serde_json::Number = serde_json::from_str(text).map_err(|_| self.fault("no number"))?;
        self.at += text.len();
        let float = || number.as_f64().map(Value::Float);
        let whole = number.as_u64().map(Value::Unsigned).or_else(|| number.as_i64().map(Value::Signed));
        whole.or_else(float).ok_or_else(|| self.fault("no number"))
    }

    fn word(&mut self) -> Result<Value, Fault> {
        let rest = &self.text[self.at..];
        let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'-').count();
        let value = match &rest[..length] {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "Infinity" => Value::Float(f64::INFINITY),
            "-Infinity" => Value::Float(f64::NEG_INFINITY),
            "NaN" => Value::Float(f64::NAN),
            _ => return Err(self.fault("no value of JSON")),
        };
        self.at += length;
        Ok(value)
    }
}

/// A node as serde reads it.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    /// Keys of this object whose `null` is not the same as absence.
    null_counts: &'a [&'a str],
}

impl<'a> Reader<'a> {
    fn inner(node: &'a Node) -> Self {
        Self { node, null_counts: &[] }
    }
}

/// Why a value is not what is wanted.
#[derive(Debug)]
pub(crate) struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Unit | Unexpected::Option => "null".to_owned(),
            Unexpected::Str(text) => short(text),
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Unsigned(value) => value.to_string(),
            Unexpected::Signed(value) => value.to_string(),
            Unexpected::Float(value) => value.to_string(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            other => other.to_string(),
        };
        Self(format!("is {found}; {} is wanted", plain(&wanted.to_string())))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::invalid_type(found, wanted)
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self(format!("is {}; supported are {}", short(found), known.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("{field} is missing"))
    }
}

/// A string of the file in quotes, not too much of it.
fn short(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// What serde calls a type, in plain words.
fn plain(wanted: &str) -> &str {
    match wanted {
        "a boolean" => "true or false",
        "usize" | "u8" | "u16" | "u32" | "u64" => "a whole number, 0 or more,",
        "isize" | "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "an object",
        other => other,
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => {
                let mut items = de::value::SeqDeserializer::new(items.iter().map(Reader::inner));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(entries) => {
                let counts = |key: &str, node: &Node| node.value != Value::Null || self.null_counts.contains(&key);
                let present = entries.iter().filter(|(key, node)| counts(key, node));
                let pairs = present.map(|(key, node)| (key.as_str(), Reader::inner(node)));
                visitor.visit_map(de::value::MapDeserializer::new(pairs))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    /// Structs are objects; serde would take lists for them, too.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.node.value {
            Value::Array(_) => Err(Mismatch("is a list; an object is wanted".to_owned())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::String(text) => {
                let variant: StringDeserializer<Mismatch> = text.clone().into_deserializer();
                variant.deserialize_enum(name, variants, visitor)
            }
            _ => Err(Mismatch(format!("is no string; one of {} is wanted", variants.join(", ")))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Mismatch> for Reader<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default)]
    struct Config {
        clipped: f64,
        upcast: bool,
        spacing: Spacing,
        sizes: Vec<usize>,
        seed: u64,
        name: Option<String>,
        inner: Option<Box<Config>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Spacing {
        Leading,
        Trailing,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                clipped: 1.0,
                upcast: true,
                spacing: Spacing::Leading,
                sizes: vec![7],
                seed: 0,
                name: None,
                inner: None,
            }
        }
    }

    fn read(json: &str) -> Config {
        from_slice(json.as_bytes()).unwrap()
    }

    fn refused(json: &str) -> String {
        from_slice::<Config>(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn numbers_of_python_are_numbers_and_strings_stay_strings() {
        assert_eq!(read(r#"{"clipped": -Infinity}"#).clipped, f64::NEG_INFINITY);
        assert_eq!(read(r#"{"clipped": Infinity}"#).clipped, f64::INFINITY);
        assert!(read(r#"{"clipped": NaN}"#).clipped.is_nan());
        assert_eq!(read(r#"{"name": "-Infinity, NaN"}"#).name.as_deref(), Some("-Infinity, NaN"));
        assert_eq!(
            refused(r#"{"clipped": "-Infinity"}"#),
            "clipped is \"-Infinity\"; a number is wanted at line 1 column 13"
        );
        assert!(refused(r#"{"sizes": [Infinity]}"#).starts_with("sizes[0] is inf; a whole number"));
        for wrong in ["-NaN", "+Infinity", "inf", "nan", "infinity", "1.", ".5", "01", "-", "1e", "0x1", "1e999"] {
            assert!(from_slice::<f64>(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn null_is_absence_for_every_type_and_at_every_depth() {
        let nulls = r#"{"clipped": null, "upcast": null, "spacing": null, "sizes": null, "seed": null, "name": null}"#;
        assert_eq!(read(nulls), Config::default());
        let nested = read(&format!(r#"{{"inner": {nulls}}}"#));
        assert_eq!(nested.inner.as_deref(), Some(&Config::default()));
    }

    #[test]
    fn null_is_seen_where_it_counts() {
        #[derive(Deserialize)]
        struct Block {
            #[serde(default = "some")]
            middle: Option<u8>,
        }
        fn some() -> Option<u8> {
            Some(1)
        }
        let document = Document::parse(br#"{"middle": null}"#).unwrap();
        assert_eq!(document.read::<Block>(&[]).unwrap().middle, Some(1));
        assert_eq!(document.read::<Block>(&["middle"]).unwrap().middle, None);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        assert_eq!(read("\u{feff}{\"seed\": 3}").seed, 3);
    }

    #[test]
    fn large_numbers_escapes_and_keys_that_stand_twice_are_read_as_python_does() {
        let config = read(r#"{"seed": 1, "name": "\u00e9\ud83e\udd8a\n\"", "seed": 18446744073709551615}"#);
        assert_eq!((config.seed, config.name.as_deref()), (u64::MAX, Some("é🦊\n\"")));
        assert_eq!(
            from_slice::<f64>(b"1000000000000000019884624838656").unwrap(),
            1_000_000_000_000_000_019_884_624_838_656.0
        );
        assert_eq!(from_slice::<f64>(b"-0.1e-3").unwrap(), -0.000_1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_value_and_place() {
        let cases = [
            ("{\n  \"upcast\": \"yes\"\n}", "upcast is \"yes\"; true or false is wanted at line 2 column 13"),
            (
                r#"{"inner": {"seed": -1}}"#,
                "inner.seed is -1; a whole number, 0 or more, is wanted at line 1 column 20",
            ),
            (r#"{"spacing": "other"}"#, "spacing is \"other\"; supported are leading, trailing at line 1 column 13"),
            (r#"{"spacing": 3}"#, "spacing is no string; one of leading, trailing is wanted at line 1 column 13"),
            (r#"{"sizes": 3}"#, "sizes is 3; a list is wanted at line 1 column 11"),
            (r#"{"sizes": [1, null]}"#, "sizes[1] is null; a whole number, 0 or more, is wanted at line 1 column 15"),
            ("[]", "is a list; an object is wanted at line 1 column 1"),
            ("{\"seed\": 1,\n}", "a key in double quotes is wanted at line 2 column 1"),
            ("{\"seed\" 1}", "a colon is wanted behind the key \"seed\" at line 1 column 9"),
            ("{\"seed\": 1 2}", "a comma or } is wanted at line 1 column 12"),
            ("{\"name\": \"x", "a string without an end at line 1 column 10"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("", "the file ends where a value is wanted at line 1 column 1"),
            ("{\"name\": 'x'}", "no value of JSON at line 1 column 10"),
        ];
        for (json, said) in cases {
            assert_eq!(refused(json), said);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(from_slice::<f64>(deep.as_bytes()).unwrap_err().contains("more than 128 deep"));
    }
}
