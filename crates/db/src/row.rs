//! Reads the values of a row, in the order of the select list. A value that is not what the reader expects is our own
//! mistake (or a damaged database), never the asker's.

use std::{fmt::Display, vec};

use larder_core::{Digest, Error, Id, Result, Time};

use crate::executor::{Row, Value};

impl Row {
    /// Starts at the first value.
    pub fn cells(self) -> Cells {
        Cells { values: self.0.into_iter(), at: 0 }
    }
}

/// A place in a row; each call reads the next value.
#[derive(Debug)]
pub struct Cells {
    values: vec::IntoIter<Value>,
    at: usize,
}

macro_rules! plain {
    ($($name:ident, $optional:ident: $type:ty = $variant:ident, $what:literal;)*) => {$(
        #[doc = concat!("Reads ", $what, ".")]
        pub fn $name(&mut self) -> Result<$type> {
            let found = self.$optional()?;
            self.required(found, $what)
        }

        #[doc = concat!("Reads ", $what, " or NULL.")]
        pub fn $optional(&mut self) -> Result<Option<$type>> {
            match self.next()? {
                Value::$variant(value) => Ok(value),
                other if is_null(&other) => Ok(None),
                other => Err(self.wrong($what, &kind_of(&other))),
            }
        }
    )*};
}

macro_rules! derived {
    ($($name:ident, $optional:ident: $type:ty = $from:ident, $what:literal, $convert:expr;)*) => {$(
        #[doc = concat!("Reads ", $what, ".")]
        pub fn $name(&mut self) -> Result<$type> {
            let found = self.$optional()?;
            self.required(found, $what)
        }

        #[doc = concat!("Reads ", $what, " or NULL.")]
        pub fn $optional(&mut self) -> Result<Option<$type>> {
            let found = self.$from()?;
            found.map($convert).transpose().map_err(|error| self.wrong($what, &error))
        }
    )*};
}

impl Cells {
    plain! {
        int, optional_int: i64 = Int, "an integer";
        text, optional_text: String = Text, "a text";
        bytes, optional_bytes: Vec<u8> = Bytes, "bytes";
        float, optional_float: f64 = Float, "a number";
    }

    derived! {
        id, optional_id: Id = optional_text, "an id", |text: String| text.parse::<Id>();
        digest, optional_digest: Digest = optional_text, "a digest", |text: String| text.parse::<Digest>();
        time, optional_time: Time = optional_int, "a time", |micros: i64| Ok::<_, Error>(Time::from_micros(micros));
        boolean, optional_boolean: bool = optional_int, "0 or 1", |int: i64| match int {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(other),
        };
        count, optional_count: u64 = optional_int, "a count", |int: i64| u64::try_from(int);
    }

    fn next(&mut self) -> Result<Value> {
        let value = self.values.next();
        self.at += 1;
        value.ok_or_else(|| self.wrong("a value", &"there are no more"))
    }

    fn required<T>(&self, found: Option<T>, expected: &str) -> Result<T> {
        found.ok_or_else(|| self.wrong(expected, &"it is NULL"))
    }

    fn wrong(&self, expected: &str, found: &dyn Display) -> Error {
        Error::internal(
            "reading from the database",
            format!("value {} of a row should be {expected}: {found}", self.at),
        )
    }
}

fn is_null(value: &Value) -> bool {
    matches!(value, Value::Int(None) | Value::Text(None) | Value::Bytes(None) | Value::Float(None))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Int(_) => "it is an integer",
        Value::Text(_) => "it is a text",
        Value::Bytes(_) => "it is bytes",
        Value::Float(_) => "it is a float",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: impl Into<Vec<Value>>) -> Cells {
        Row(values.into()).cells()
    }

    #[test]
    fn values_come_in_their_order() {
        let digest = Digest::of(b"abc");
        let id = Id::new(Time::from_seconds(1), [7; 10]);
        let mut cells = row([
            Value::from(1),
            "a".into(),
            id.into(),
            digest.into(),
            true.into(),
            vec![0_u8, 255].into(),
            Time::from_seconds(3).into(),
            1.5.into(),
        ]);
        assert_eq!(cells.int().unwrap(), 1);
        assert_eq!(cells.text().unwrap(), "a");
        assert_eq!(cells.id().unwrap(), id);
        assert_eq!(cells.digest().unwrap(), digest);
        assert!(cells.boolean().unwrap());
        assert_eq!(cells.bytes().unwrap(), [0, 255]);
        assert_eq!(cells.time().unwrap(), Time::from_seconds(3));
        assert!((cells.float().unwrap() - 1.5).abs() < f64::EPSILON);
        assert!(cells.int().unwrap_err().chain().contains("value 9"));
    }

    #[test]
    fn a_null_may_have_any_type() {
        let mut cells = row([Value::Int(None), Value::Text(None), Value::Text(None), Value::Int(None)]);
        assert_eq!(cells.optional_text().unwrap(), None);
        assert_eq!(cells.optional_time().unwrap(), None);
        assert_eq!(cells.optional_bytes().unwrap(), None);
        assert!(cells.id().unwrap_err().chain().contains("NULL"));
    }

    #[test]
    fn what_is_not_expected_is_told_to_the_log_only() {
        let error = row([Value::from("x")]).int().unwrap_err();
        assert_eq!(error.kind(), larder_core::Kind::Internal);
        assert!(!error.message().contains("integer"), "{error}");
        assert!(error.chain().contains("value 1 of a row should be an integer: it is a text"));
        assert!(row([Value::from("x")]).id().is_err());
        assert!(row([Value::from(2)]).boolean().is_err());
        assert!(row([Value::from(-1)]).count().is_err());
    }
}
