//! A version as a client reads it: fields in their order, each value as its author wrote it. What nobody here knows passes
//! through untouched, to the last digit.
//!
//! `composer/metadata-minifier` is here too: the versions of a document as differences, each from the one before it.

use std::{
    collections::{
        HashMap,
        hash_map::Entry::{Occupied, Vacant},
    },
    fmt,
    sync::Arc,
};

use larder_core::{Error, Result, Time};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, MapAccess, Visitor},
    ser::SerializeMap as _,
};
use serde_json::value::RawValue;

/// How a minified document says that a field of the version before is not there any more.
pub(crate) const UNSET: &str = "\"__unset\"";

/// A JSON value, as the text that it came as. Cloning counts a reference.
#[derive(Clone)]
pub struct Raw(Arc<RawValue>);

impl Raw {
    /// A value of our own.
    pub fn of(value: &impl Serialize) -> Result<Self> {
        let raw = serde_json::value::to_raw_value(value)
            .map_err(|error| Error::internal("writing a field of a version", error))?;
        Ok(Self(raw.into()))
    }

    /// Its JSON.
    pub fn json(&self) -> &str {
        self.0.get()
    }

    /// Reads it; `None` if it is of another type.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.json()).ok()
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.json() == other.json()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.json())
    }
}

/// A version, or any other JSON object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry(Vec<(Arc<str>, Raw)>);

impl Entry {
    /// Reads a JSON object.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| Error::internal("reading a version's metadata", error))
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal("writing a version's metadata", error))
    }

    /// How many bytes its JSON has, about.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.json().len() + 4).sum()
    }

    /// Whether it has no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A field.
    pub fn get(&self, field: &str) -> Option<&Raw> {
        self.0.iter().find_map(|(name, value)| (name.as_ref() == field).then_some(value))
    }

    /// A field that is a text.
    pub fn text(&self, field: &str) -> Option<String> {
        self.get(field)?.read()
    }

    /// When it was published, or else when it was made, if it says either.
    pub fn released(&self) -> Option<Time> {
        ["published-time", "time"].iter().find_map(|field| Time::parse(&self.text(field)?).ok())
    }

    /// Replaces a field, or adds it at the end.
    pub fn set(&mut self, field: &str, value: &impl Serialize) -> Result<()> {
        self.put(field.into(), Raw::of(value)?);
        Ok(())
    }

    /// Takes a field away.
    pub fn remove(&mut self, field: &str) {
        self.0.retain(|(name, _)| name.as_ref() != field);
    }

    /// The fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Raw)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }

    fn put(&mut self, field: Arc<str>, value: Raw) {
        match self.0.iter_mut().find(|(name, _)| *name == field) {
            Some((_, there)) => *there = value,
            None => self.0.push((field, value)),
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name.as_ref(), value.0.as_ref())?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a version: an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut entry = Entry::default();
                // Others write them: what they repeat a million times is looked for in one step each.
                let mut places: HashMap<Arc<str>, usize> = HashMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    let value = Raw(value.into());
                    match places.entry(name.into()) {
                        Occupied(there) => entry.0[*there.get()].1 = value,
                        Vacant(free) => {
                            entry.0.push((Arc::clone(free.key()), value));
                            free.insert(entry.0.len() - 1);
                        }
                    }
                }
                Ok(entry)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Undoes [`minified`], as `MetadataMinifier::expand` does.
pub fn expanded(minified: Vec<Entry>) -> Vec<Entry> {
    let mut versions: Vec<Entry> = Vec::with_capacity(minified.len());
    for difference in minified {
        let mut version = versions.last().cloned().unwrap_or_default();
        for (name, value) in difference.0 {
            if value.json() == UNSET {
                version.remove(&name);
            } else {
                version.put(name, value);
            }
        }
        versions.push(version);
    }
    versions
}

/// Each version as what differs from the one before it, as `MetadataMinifier::minify` does.
pub fn minified(versions: &[Entry]) -> Result<Vec<Entry>> {
    let unset = Raw::of(&"__unset")?;
    let mut minified = Vec::with_capacity(versions.len());
    let nothing = Entry::default();
    let mut previous = &nothing;
    for version in versions {
        let changed = version.0.iter().filter(|(name, value)| previous.get(name) != Some(value)).cloned();
        let gone = previous.0.iter().filter(|(name, _)| version.get(name).is_none());
        let gone = gone.map(|(name, _)| (Arc::clone(name), unset.clone()));
        minified.push(Entry(changed.chain(gone).collect()));
        previous = version;
    }
    Ok(minified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_pass_through_to_the_last_digit() {
        let json = r#"{"name":"a/b","extra":{"x":1.10,"y":12345678901234567890123,"z":"\u00e9"},"n":null}"#;
        let mut entry = Entry::parse(json).unwrap();
        assert_eq!(entry.to_json().unwrap(), json);
        entry.set("name", &"c/d").unwrap();
        entry.set("time", &"now").unwrap();
        entry.remove("n");
        assert_eq!(entry.text("name").as_deref(), Some("c/d"));
        assert!(entry.to_json().unwrap().ends_with(r#""z":"\u00e9"},"time":"now"}"#));
        assert_eq!(entry.text("extra"), None);
        assert!(Entry::parse("[]").is_err() && Entry::parse("{").is_err());
    }

    #[test]
    fn what_is_minified_expands_to_the_same() {
        let texts = [r#"{"a":1,"b":[1, 2],"c":"x"}"#, r#"{"a":1,"b":[1, 2]}"#, r#"{"b":3,"d":null}"#, r"{}"];
        let versions: Vec<Entry> = texts.iter().map(|text| Entry::parse(text).unwrap()).collect();
        let small = minified(&versions).unwrap();
        let written: Vec<String> = small.iter().map(|entry| entry.to_json().unwrap()).collect();
        assert_eq!(written[1], r#"{"c":"__unset"}"#);
        assert_eq!(written[2], r#"{"b":3,"d":null,"a":"__unset"}"#);
        assert_eq!(expanded(small), versions);
    }
}
