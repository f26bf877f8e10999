//! Reading JSON the way flannel's Go code does: field names match whatever their case, `null`
//! counts as absent, unknown fields are passed over. What is wrong is said by key and value.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Why a JSON text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Syntax(
        /// What was met, with line and column.
        String,
    ),
    /// The text is longer than any that is meant to be read.
    #[error("longer than {0} bytes")]
    TooLong(
        /// As long as it may be.
        usize,
    ),
    /// It is JSON, but not an object.
    #[error("not a JSON object: {0}")]
    NotAnObject(
        /// The value, shortened.
        String,
    ),
    /// A field is missing or has a value that is not allowed.
    #[error("{key} is {value}: must be {allowed}")]
    Field {
        /// The field, with the object it is in: `SubnetLen`, `Backend.VNI`.
        key: &'static str,
        /// The value as JSON, shortened; `missing` if there is none.
        value: String,
        /// What would have been accepted.
        allowed: String,
    },
}

impl JsonError {
    /// The error of a field that has a value, but not one of those allowed.
    pub fn field(key: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self::Field { key, value: shorten(&value.to_string()), allowed: allowed.into() }
    }

    /// The error of a field that has to be there.
    pub fn missing(key: &'static str, allowed: impl Into<String>) -> Self {
        Self::Field { key, value: "missing".to_owned(), allowed: allowed.into() }
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        Self::Syntax(error.to_string())
    }
}

/// An object whose fields are looked up by flannel's names.
#[derive(Clone, Copy)]
pub struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    /// `value` as an object.
    pub fn of(value: &'a Value) -> Result<Self, JsonError> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(JsonError::NotAnObject(shorten(&other.to_string()))),
        }
    }

    /// The field called by the last part of `key` (`Backend.VNI` looks for `VNI`), if it is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let name = key.rsplit('.').next().unwrap_or(key);
        self.0
            .get(name)
            .or_else(|| {
                self.0.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            })
            .filter(|value| !value.is_null())
    }

    /// The field as a text.
    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>, JsonError> {
        let as_text = |value: &'a Value| {
            value.as_str().ok_or_else(|| JsonError::field(key, value, "a text in quotation marks"))
        };
        self.get(key).map(as_text).transpose()
    }

    /// The field as `true` or `false`.
    pub fn flag(&self, key: &'static str) -> Result<Option<bool>, JsonError> {
        let as_flag =
            |value: &Value| value.as_bool().ok_or_else(|| JsonError::field(key, value, "true or false"));
        self.get(key).map(as_flag).transpose()
    }

    /// The field as a whole number within `range`.
    pub fn number(&self, key: &'static str, range: RangeInclusive<u32>) -> Result<Option<u32>, JsonError> {
        let as_number = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                JsonError::field(
                    key,
                    value,
                    format!("a whole number from {} to {}", range.start(), range.end()),
                )
            })
        };
        self.get(key).map(as_number).transpose()
    }
}

/// `text`, cut so that a message stays one line.
pub fn shorten(text: &str) -> String {
    cut(text, MESSAGE_CHARS)
}

/// The first `chars` characters of `text`, with a sign that there were more.
pub fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Long enough for any lease's value, short enough for a log line.
const MESSAGE_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_its_case_and_null_is_none() {
        let value = serde_json::json!({"subnetlen": 25, "Port": null});
        let object = Object::of(&value).unwrap();
        assert_eq!(object.number("SubnetLen", 0..=30).unwrap(), Some(25));
        assert_eq!(object.number("Backend.Port", 0..=1).unwrap(), None);
    }

    #[test]
    fn an_error_names_key_value_and_what_is_allowed() {
        let value = serde_json::json!({"VNI": 16_777_216});
        let error = Object::of(&value).unwrap().number("Backend.VNI", 0..=0xff_ffff).unwrap_err();
        assert_eq!(error.to_string(), "Backend.VNI is 16777216: must be a whole number from 0 to 16777215");
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(shorten(&"ü".repeat(300)).chars().count(), MESSAGE_CHARS + 1);
        assert_eq!(shorten("short"), "short");
    }
}
