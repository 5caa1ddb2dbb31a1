//! What is made of each key of a configuration: a table for each file, and what it says of a file that was parsed.

use super::{Node, Value};

/// What is made of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It is read, and checked where it is used.
    Honoured,
    /// As [`Honoured`](Self::Honoured); `null` has a meaning of its own, which is not that of a key left out.
    NullCounts,
    /// It may have one of these values, written as JSON, which leave the network as it is built here.
    Only(&'static [&'static str]),
    /// As [`Only`](Self::Only), or a list of nothing else.
    OnlyEach(&'static [&'static str]),
    /// It has no effect when drawing.
    Idle,
}

/// A key, what is made of it, and why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    /// Read by people.
    #[cfg_attr(not(test), expect(dead_code, reason = "the table is documentation, too; a test reads it"))]
    pub(crate) why: &'static str,
}

/// What a file's `_class_name` is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Class {
    /// Not looked at.
    Absent,
    /// It has to be one of these.
    OneOf(&'static [&'static str]),
    /// Advice: another file names the class, which is this one.
    Named(&'static str),
}

/// A key of a file that has no effect, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unheeded<'a> {
    pub(crate) key: &'a str,
    pub(crate) why: &'static str,
}

/// The keys of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyTable {
    pub(crate) class: Class,
    pub(crate) keys: &'static [Key],
}

impl Key {
    pub(crate) const fn honoured(name: &'static str) -> Self {
        Self { name, rule: Rule::Honoured, why: "" }
    }

    pub(crate) const fn null_counts(name: &'static str, why: &'static str) -> Self {
        Self { name, rule: Rule::NullCounts, why }
    }

    pub(crate) const fn only(name: &'static str, allowed: &'static [&'static str], why: &'static str) -> Self {
        Self { name, rule: Rule::Only(allowed), why }
    }

    pub(crate) const fn only_each(name: &'static str, allowed: &'static [&'static str], why: &'static str) -> Self {
        Self { name, rule: Rule::OnlyEach(allowed), why }
    }

    pub(crate) const fn idle(name: &'static str, why: &'static str) -> Self {
        Self { name, rule: Rule::Idle, why }
    }
}

impl KeyTable {
    /// Keys of a file's object that diffusers, too, passes over: those that are not in the table and begin with no
    /// underscore, and a `_class_name` that another file overrules.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub(crate) fn check<'a>(&self, file: &'a Node) -> Result<Vec<Unheeded<'a>>, String> {
        let Value::Object(entries) = &file.value else { return Ok(Vec::new()) };
        // The class first: keys of another class say less.
        let mut unheeded: Vec<Unheeded> = self.check_class(file)?.into_iter().collect();
        for (name, node) in entries {
            match self.keys.iter().find(|key| key.name == name) {
                Some(key) => key.check(node)?,
                None if name.starts_with('_') => {}
                None => unheeded.push(Unheeded { key: name, why: "this key is unknown" }),
            }
        }
        Ok(unheeded)
    }

    fn check_class(&self, file: &Node) -> Result<Option<Unheeded<'static>>, String> {
        let Some(class) = file.get("_class_name").filter(|class| class.value != Value::Null) else { return Ok(None) };
        let is = |name: &str| matches!(&class.value, Value::String(class) if class == name);
        match self.class {
            Class::OneOf(names) if !names.iter().any(|name| is(name)) => {
                let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
                Err(refusal("_class_name", &class.value, &names))
            }
            Class::Named(name) if !is(name) => {
                Ok(Some(Unheeded { key: "_class_name", why: "model_index.json names the class" }))
            }
            _ => Ok(None),
        }
    }

    /// The keys whose `null` is not absence.
    pub(crate) fn null_counts(&self) -> Vec<&'static str> {
        self.keys.iter().filter(|key| key.rule == Rule::NullCounts).map(|key| key.name).collect()
    }
}

impl Key {
    fn check(&self, node: &Node) -> Result<(), String> {
        let (allowed, lists) = match self.rule {
            Rule::Honoured | Rule::NullCounts | Rule::Idle => return Ok(()),
            Rule::Only(allowed) => (allowed, false),
            Rule::OnlyEach(allowed) => (allowed, true),
        };
        let fits = |value: &Value| *value == Value::Null || allowed.iter().any(|wanted| equal(value, &literal(wanted)));
        let fits = match &node.value {
            Value::Array(items) if lists => items.iter().all(|item| fits(&item.value)),
            value => fits(value),
        };
        if fits { Ok(()) } else { Err(refusal(self.name, &node.value, allowed)) }
    }
}

fn refusal<T: AsRef<str>>(key: &str, found: &Value, allowed: &[T]) -> String {
    let allowed: Vec<&str> = allowed.iter().map(AsRef::as_ref).collect();
    match allowed.as_slice() {
        [one] => format!("{key} is {found}; only {one} is supported"),
        several => format!("{key} is {found}; supported are {}", several.join(", ")),
    }
}

/// A value that a table writes as JSON.
fn literal(text: &str) -> Value {
    super::Document::parse(text.as_bytes()).expect("tables are written as JSON").root.value
}

/// Whether two values are the same to Python, where 1 is 1.0.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| equal(&a.value, &b.value))
        }
        _ => one == other || one.number().is_some_and(|number| Some(number) == other.number()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Holds a table against the list of keys that a class takes, as `tests/reference/keys.py` found it.
    pub(crate) fn assert_complete(table: &KeyTable, class: &str) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/keys.json");
        let lists: std::collections::BTreeMap<String, Vec<String>> =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list = &lists[class];
        assert!(list.len() > 8, "{class} {list:?}");
        for name in list {
            let rows = table.keys.iter().filter(|key| key.name == name).count();
            assert_eq!(rows, 1, "{class}.{name}");
        }
        for key in table.keys {
            let said = !key.why.is_empty() || key.rule == Rule::Honoured;
            assert!(said, "{} has no reason", key.name);
            // What the class does not take stands in files of other versions, and the row says so.
            let foreign = !list.iter().any(|name| name == key.name);
            assert!(!foreign || !key.why.is_empty(), "{class} takes no {}", key.name);
        }
    }

    const TABLE: KeyTable = KeyTable {
        class: Class::OneOf(&["Net"]),
        keys: &[
            Key::honoured("size"),
            Key::null_counts("middle", "none"),
            Key::only("scale", &["1", "2.5"], "test"),
            Key::only_each("cross", &["false"], "test"),
            Key::only("part", &[r#"["lib", "Part"]"#], "test"),
            Key::idle("dropout", "training"),
        ],
    };

    fn check(json: &str) -> Result<Vec<String>, String> {
        let document = super::super::Document::parse(json.as_bytes()).unwrap();
        TABLE.check(&document.root).map(|found| found.into_iter().map(|unheeded| unheeded.key.to_owned()).collect())
    }

    #[test]
    fn neutral_values_pass_and_others_are_named() {
        let neutral = r#"{"_class_name": "Net", "size": 3, "scale": 1.0, "cross": [false, false], "part": ["lib", "Part"],
                          "dropout": 0.5, "_mark": 1, "middle": null}"#;
        assert_eq!(check(neutral).unwrap(), [""; 0]);
        assert_eq!(check(r#"{"scale": null, "cross": false, "_class_name": null}"#).unwrap(), [""; 0]);
        let cases = [
            (r#"{"scale": 3}"#, "scale is 3; supported are 1, 2.5"),
            (r#"{"scale": [1]}"#, "scale is [1]; supported are 1, 2.5"),
            (r#"{"cross": [false, true]}"#, "cross is [false, true]; only false is supported"),
            (r#"{"cross": 0}"#, "cross is 0; only false is supported"),
            (r#"{"part": [null, null]}"#, r#"part is [null, null]; only ["lib", "Part"] is supported"#),
            (r#"{"scale": 3, "_class_name": "Other"}"#, r#"_class_name is "Other"; only "Net" is supported"#),
            (r#"{"scale": {"a": Infinity}}"#, r#"scale is {"a": Infinity}; supported are 1, 2.5"#),
        ];
        for (json, said) in cases {
            assert_eq!(check(json).unwrap_err(), said);
        }
    }

    #[test]
    fn unknown_keys_are_listed_but_for_those_with_an_underscore() {
        assert_eq!(check(r#"{"colour": 1, "_private": 2, "sizes": null}"#).unwrap(), ["colour", "sizes"]);
        assert_eq!(TABLE.null_counts(), ["middle"]);
    }

    #[test]
    fn a_class_that_another_file_names_is_advice() {
        let table = KeyTable { class: Class::Named("Net"), ..TABLE };
        let unheeded = |json: &str| {
            let document = super::super::Document::parse(json.as_bytes()).unwrap();
            table.check(&document.root).unwrap().into_iter().map(|unheeded| unheeded.key.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(unheeded(r#"{"_class_name": "FlaxNet"}"#), ["_class_name"]);
        for json in [r#"{"_class_name": "Net"}"#, r#"{"_class_name": null}"#, "{}"] {
            assert_eq!(unheeded(json), [""; 0], "{json}");
        }
    }
}
