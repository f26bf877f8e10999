//! Reading JSON the way flannel's Go code does: field names match whatever their case, the last of several
//! counts, `null` counts as absent, unknown fields are passed over. What is wrong is said by key and value.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
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

/// `text` as JSON, of which no object has two fields that differ in case only.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let foreign = |what: &str| {
        JsonError::Syntax(format!("{what}, which JSON does not allow: save it as UTF-8 without that mark"))
    };
    match text {
        [0xef, 0xbb, 0xbf, ..] => return Err(foreign("it begins with a byte order mark (BOM)")),
        // The last is what is left of the others where what is no UTF-8 has been replaced.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd, ..] => {
            return Err(foreign("it begins with the byte order mark (BOM) of UTF-16"));
        }
        _ => {}
    }
    let Folded(value) = serde_json::from_slice(text)?;
    Ok(value)
}

/// A value read as Go reads into its structures: of fields that differ in case only, the last that is not `null`
/// counts. The fields keep the names that they are given.
struct Folded(Value);

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Folder).map(Self)
    }
}

struct Folder;

impl<'de> Visitor<'de> for Folder {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Folded(element)) = elements.next_element()? {
            all.push(element);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all: BTreeMap<String, (String, Value)> = BTreeMap::new();
        while let Some((name, Folded(value))) = fields.next_entry::<String, Folded>()? {
            let folded = name.to_ascii_lowercase();
            if !value.is_null() || !all.contains_key(&folded) {
                all.insert(folded, (name, value));
            }
        }
        Ok(Value::Object(all.into_values().collect()))
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
        let mut fields = self.0.iter();
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        found.filter(|value| !value.is_null())
    }

    /// The names of its fields.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.keys().map(String::as_str)
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
        self.number_of(key, range.clone(), || {
            format!("a whole number from {} to {}", range.start(), range.end())
        })
    }

    /// The same; `allowed` says what it must be.
    pub fn number_of(
        &self,
        key: &'static str,
        range: RangeInclusive<u32>,
        allowed: impl Fn() -> String,
    ) -> Result<Option<u32>, JsonError> {
        let as_number = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                let quoted = if value.is_string() { ", without quotation marks" } else { "" };
                JsonError::field(key, value, allowed() + quoted)
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
    fn of_fields_that_differ_in_case_only_the_last_counts_as_in_go() {
        for (text, port) in [
            (r#"{"Port":1,"port":2}"#, Some(2)),
            (r#"{"port":2,"Port":1}"#, Some(1)),
            (r#"{"Port":1,"PORT":2,"Port":3}"#, Some(3)),
            (r#"{"Port":1,"port":null}"#, Some(1)),
            (r#"{"Port":null,"port":1}"#, Some(1)),
            (r#"{"Port":null}"#, None),
        ] {
            let inner = parse(text.as_bytes()).unwrap();
            assert_eq!(Object::of(&inner).unwrap().number("Port", 0..=9).unwrap(), port, "{text}");
            let outer = parse(format!(r#"{{"b":[{text}]}}"#).as_bytes()).unwrap();
            let element = &outer["b"][0];
            assert_eq!(Object::of(element).unwrap().number("Port", 0..=9).unwrap(), port, "{text}");
        }
        let text = r#"{"a":[null,true,-1,1.5,"x",18446744073709551615,{}],"b":{"C":[]}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_byte_order_mark_is_named() {
        for text in
            [&b"\xef\xbb\xbf{}"[..], b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}", "\u{fffd}\u{fffd}{".as_bytes()]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("byte order mark (BOM)") && error.contains("save it as UTF-8"), "{error}");
        }
    }

    #[test]
    fn an_error_names_key_value_and_what_is_allowed() {
        let value = serde_json::json!({"VNI": 16_777_216});
        let error = Object::of(&value).unwrap().number("Backend.VNI", 0..=0xff_ffff).unwrap_err();
        assert_eq!(error.to_string(), "Backend.VNI is 16777216: must be a whole number from 0 to 16777215");
        let value = serde_json::json!({"SubnetLen": "24"});
        let error = Object::of(&value).unwrap().number("SubnetLen", 0..=30).unwrap_err();
        let said = "SubnetLen is \"24\": must be a whole number from 0 to 30, without quotation marks";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(shorten(&"ü".repeat(300)).chars().count(), MESSAGE_CHARS + 1);
        assert_eq!(shorten("short"), "short");
    }
}
