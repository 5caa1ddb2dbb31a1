//! The values that stand in a request's JSON: of each kind one type, which refuses the other kinds in plain words.
//!
//! Owns what a value may look like, and the messages for one that may not. It must not know which fields there are.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, value::MapAccessDeserializer},
};

/// How many characters of a client's text an error message repeats.
const EXCERPT_CHARS: usize = 60;
/// Whole numbers below this are told as they were given. JSON's larger ones are read as the nearest `f64`.
const EXACT_BELOW: f64 = 18_446_744_073_709_551_616.0;

/// A string.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Given")]
pub(super) struct Text(pub(super) String);

/// A whole number of any size, so that one out of range is refused as that, by name, and not as another type. `10.0` and
/// `1e1` are whole numbers, too: JSON has one kind of number, and several languages write it so.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Given")]
pub(super) enum Whole {
    Exactly(i128),
    /// Larger than any range here.
    About(f64),
}

/// A number.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Given")]
pub(super) struct Number(pub(super) f64);

/// True or false.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Given")]
pub(super) struct Flag(pub(super) bool);

/// An object with the fields of `T`. (What serde derives for `T` takes an array of its fields' values, too.)
#[derive(Debug, Default)]
pub(super) struct Object<T>(pub(super) T);

impl Whole {
    /// The number as an integer of the kind that is wanted, if it is one.
    pub(super) fn get<I: TryFrom<i128>>(self) -> Option<I> {
        match self {
            Self::Exactly(number) => I::try_from(number).ok(),
            Self::About(_) => None,
        }
    }

    pub(super) fn is_negative(self) -> bool {
        match self {
            Self::Exactly(number) => number < 0,
            Self::About(number) => number < 0.0,
        }
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(number) => number.fmt(f),
            Self::About(number) => write!(f, "{number:e}"),
        }
    }
}

impl TryFrom<Given> for Text {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        match given {
            Given::Text(text) => Ok(Self(text)),
            other => Err(other.instead_of("a string")),
        }
    }
}

impl TryFrom<Given> for Whole {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        match given {
            Given::Whole(number) => Ok(Self::Exactly(number)),
            // Without a fraction and in this range the conversion is exact.
            Given::Float(number) if number.fract() == 0.0 && number.abs() < EXACT_BELOW => {
                Ok(Self::Exactly(number as i128))
            }
            Given::Float(number) if number.fract() == 0.0 => Ok(Self::About(number)),
            other => Err(other.instead_of("a whole number")),
        }
    }
}

impl TryFrom<Given> for Number {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        match given {
            Given::Whole(number) => Ok(Self(number as f64)),
            Given::Float(number) => Ok(Self(number)),
            other => Err(other.instead_of("a number")),
        }
    }
}

impl TryFrom<Given> for Flag {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        match given {
            Given::Flag(flag) => Ok(Self(flag)),
            other => Err(other.instead_of("true or false")),
        }
    }
}

/// Text of a client as it may stand in a message: in quotes, its control characters escaped, not too long.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}..", text.get(..end).unwrap_or_default()),
    }
}

/// Any value.
enum Given {
    Null,
    Flag(bool),
    Whole(i128),
    Float(f64),
    Text(String),
    Array,
    Object,
}

impl Given {
    fn instead_of(&self, wanted: &str) -> String {
        let given = match self {
            Self::Null => "null".to_owned(),
            Self::Flag(flag) => flag.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => format!("the string {}", excerpt(text)),
            Self::Array => "an array".to_owned(),
            Self::Object => "an object".to_owned(),
        };
        let quoted = matches!(self, Self::Text(_)) && wanted != "a string";
        let hint = if quoted { ", without quotes" } else { "" };
        format!("is {given}; {wanted} is wanted{hint}")
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Given;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Given, E> {
                Ok(Given::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
                Ok(Given::Flag(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Given, E> {
                Ok(Given::Whole(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Given, E> {
                Ok(Given::Whole(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Given, E> {
                Ok(Given::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Given, E> {
                Ok(Given::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Given, E> {
                Ok(Given::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Given, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Given::Array)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Given, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Given::Object)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries)).map(Object)
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}
