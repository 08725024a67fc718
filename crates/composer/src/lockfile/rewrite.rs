//! Pointing a lock file at this server. Clients from 2.10 on keep the address of a dist that stands in the lock file, so that
//! a project only moves when its lock file says so.
//!
//! Only what must change does: the rest of the text, `content-hash` included, stays byte for byte. What is written is written
//! as Composer would: slashes and letters plain, indented as the file is.

use std::ops::Range;

use larder_core::{Error, Result};
use serde::Serialize as _;
use serde_json::{Value, json, ser::PrettyFormatter};

use super::{Fields, Lock, span};
use crate::{
    entry::{Entry, Raw},
    render,
};

/// What Composer indents with, if a file does not show it.
const INDENT: &str = "    ";

/// Where a package is to be had, as our metadata say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// `type`, `url`, `reference` and `shasum`.
    pub dist: Option<Value>,
    /// The repository.
    pub source: Source,
}

/// What becomes of the repository of an entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Source {
    /// It stays as it is.
    #[default]
    Kept,
    /// It goes: our metadata do not tell it.
    Hidden,
    /// It is this.
    Told(Value),
}

impl Place {
    /// That of a version, as clients are told it.
    pub fn told(entry: &Entry) -> Self {
        let read = |field: &str| entry.get(field).and_then(Raw::read::<Value>).filter(Value::is_object);
        Self { dist: read("dist"), source: read("source").map_or(Source::Hidden, Source::Told) }
    }
}

/// Changes to a text, none of which touches another.
struct Edits<'a> {
    text: &'a str,
    indent: &'a str,
    changes: Vec<(Range<usize>, String)>,
}

impl Lock {
    /// Its text with each entry at its place, in their order; one without a place stays as it is.
    pub fn rewritten(&self, places: &[Option<Place>], public_url: &str) -> Result<String> {
        let mut edits = Edits { text: &self.text, indent: indent(&self.text), changes: Vec::new() };
        let mirrors = json!([{ "url": render::mirror_url(public_url), "preferred": true }]);
        let told_here = Value::from(render::notify_url(public_url));
        for (entry, place) in self.entries.iter().zip(places) {
            if let Some(place) = place {
                edits.entry(&self.text[entry.at.clone()], place, &mirrors, &told_here)?;
            }
        }
        let text = edits.applied();
        let again = Self::parse(text.into_bytes())?;
        if again.entries.len() != self.entries.len() {
            return Err(Error::internal("rewriting a lock file", "it has other packages now"));
        }
        Ok(again.text)
    }
}

impl<'a> Edits<'a> {
    fn entry(&mut self, json: &'a str, place: &Place, mirrors: &Value, told_here: &Value) -> Result<()> {
        let Some(fields) = Fields::parse(json) else { return Ok(()) };
        match (&place.source, fields.position("source")) {
            (Source::Hidden, Some(at)) => self.remove(json, &fields, at),
            (Source::Told(source), Some(at)) => self.replace(json, &fields, at, source)?,
            (Source::Kept, _) | (_, None) => {}
        }
        let Some(told) = &place.dist else { return Ok(()) };
        // Who serves it is who wants to hear that it was installed.
        if let Some(at) = fields.position("notification-url") {
            self.replace(json, &fields, at, told_here)?;
        }
        let there = fields.get("dist").and_then(|dist| Some((dist, Fields::parse(dist)?)));
        let Some((dist, there)) = there.filter(|(_, there)| !there.0.is_empty()) else {
            let mut dist = told.clone();
            dist["mirrors"] = mirrors.clone();
            return match fields.position("dist") {
                Some(at) => self.replace(json, &fields, at, &dist),
                None => self.add(json, &fields, "dist", &dist),
            };
        };
        let told = ["type", "url", "reference", "shasum"].map(|name| (name, &told[name]));
        let wanted = told.into_iter().chain([("mirrors", mirrors)]).filter(|(_, value)| !value.is_null());
        for (name, value) in wanted {
            match there.position(name) {
                Some(at) => self.replace(dist, &there, at, value)?,
                None => self.add(dist, &there, name, value)?,
            }
        }
        Ok(())
    }

    /// Where a value ends that stands before the field at `at` in `json`: another field's, or the object's brace.
    fn before(&self, json: &str, fields: &Fields<'_>, at: usize) -> usize {
        match at.checked_sub(1) {
            Some(before) => span(self.text, fields.0[before].1).end,
            None => span(self.text, json).start + 1,
        }
    }

    /// What stands between a field and the value before it: a line break and an indentation, or nothing of that.
    fn gap(&self, json: &str, fields: &Fields<'_>, at: usize) -> &'a str {
        let gap = &self.text[self.before(json, fields, at)..span(self.text, fields.0[at].1).start];
        let gap = gap.find('"').map_or("", |quote| &gap[..quote]);
        gap.rsplit_once(',').map_or(gap, |(_, gap)| gap)
    }

    fn replace(&mut self, json: &str, fields: &Fields<'_>, at: usize, value: &Value) -> Result<()> {
        let there = fields.0[at].1;
        if serde_json::from_str::<Value>(there).is_ok_and(|there| there == *value) {
            return Ok(());
        }
        let written = self.written(value, self.gap(json, fields, at))?;
        self.changes.push((span(self.text, there), written));
        Ok(())
    }

    fn remove(&mut self, json: &str, fields: &Fields<'_>, at: usize) {
        let (before, end) = (self.before(json, fields, at), span(self.text, fields.0[at].1).end);
        // Of the first field the comma behind it goes, of another one that before it.
        let behind = self.text[end..].find(|c: char| !c.is_whitespace()).map_or(end, |next| end + next);
        let end = if at == 0 && self.text[behind..].starts_with(',') { behind + 1 } else { end };
        self.changes.push((before..end, String::new()));
    }

    /// Adds a field at the end of an object, behind those that were added before.
    fn add(&mut self, json: &str, fields: &Fields<'_>, name: &str, value: &Value) -> Result<()> {
        let Some(last) = fields.0.len().checked_sub(1) else { return Ok(()) };
        let gap = self.gap(json, fields, last);
        let written = self.written(value, gap)?;
        let end = span(self.text, fields.0[last].1).end;
        let colon = if gap.is_empty() { ":" } else { ": " };
        self.changes.push((end..end, format!(",{gap}\"{name}\"{colon}{written}")));
        Ok(())
    }

    /// A value behind a field that has `gap` before it.
    fn written(&self, value: &Value, gap: &str) -> Result<String> {
        let failed = |error: serde_json::Error| Error::internal("rewriting a lock file", error);
        let Some((_, margin)) = gap.rsplit_once('\n') else { return serde_json::to_string(value).map_err(failed) };
        let mut bytes = Vec::new();
        let formatter = PrettyFormatter::with_indent(self.indent.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|error| Error::internal("rewriting a lock file", error))?;
        Ok(text.replace('\n', &format!("\n{margin}")))
    }

    fn applied(mut self) -> String {
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let mut text = String::with_capacity(self.text.len());
        let mut at = 0;
        for (range, new) in self.changes {
            text.push_str(&self.text[at..range.start]);
            text.push_str(&new);
            at = range.end;
        }
        text.push_str(&self.text[at..]);
        text
    }
}

/// What a file is indented with: what its second line begins with.
fn indent(text: &str) -> &str {
    let second = text.split_once('\n').map_or("", |(_, rest)| rest);
    let length = second.find(|c| c != ' ' && c != '\t').unwrap_or(0);
    if length == 0 { INDENT } else { &second[..length] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "https://larder.example.org";

    fn lock(entry: &str) -> Lock {
        Lock::parse(format!("{{\n    \"content-hash\": \"\\u00e9\",\n    \"packages\": [\n{entry}\n    ],\n    \"packages-dev\": []\n}}\n").into_bytes()).unwrap()
    }

    fn dist() -> Value {
        json!({ "type": "zip", "url": format!("{HERE}/dist/a/b/1.0.0.0/abc.zip"), "reference": "abc", "shasum": "123" })
    }

    /// The lines that a rewriting takes away, and those that it adds.
    fn difference(lock: &Lock, place: Place) -> (Vec<String>, Vec<String>) {
        let places = vec![Some(place); lock.entries().len()];
        let after = lock.rewritten(&places, HERE).unwrap();
        let again = Lock::parse(after.clone().into_bytes()).unwrap();
        assert_eq!(again.rewritten(&places, HERE).unwrap(), after, "twice is once");
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (before, after) = (lines(&lock.text), lines(&after));
        let only =
            |some: &[String], others: &[String]| some.iter().filter(|line| !others.contains(line)).cloned().collect();
        (only(&before, &after), only(&after, &before))
    }

    const ENTRY: &str = r#"        {
            "name": "a/b",
            "version": "v1.0.0",
            "source": {
                "type": "git",
                "url": "https://git.example.org/a/b.git",
                "reference": "abc"
            },
            "dist": {
                "type": "zip",
                "url": "https:\/\/old.example.org\/b.zip",
                "reference": "abc",
                "shasum": ""
            },
            "time": "2026-01-01T00:00:00+00:00"
        }"#;

    #[test]
    fn a_dist_moves_and_a_hidden_repository_goes() {
        let place = Place { dist: Some(dist()), source: Source::Hidden };
        let (gone, new) = difference(&lock(ENTRY), place);
        assert_eq!(
            gone,
            [
                r#"            "source": {"#,
                r#"                "type": "git","#,
                r#"                "url": "https://git.example.org/a/b.git","#,
                r#"                "reference": "abc""#,
                r#"                "url": "https:\/\/old.example.org\/b.zip","#,
                r#"                "shasum": """#,
            ]
        );
        assert_eq!(
            new,
            [
                r#"                "url": "https://larder.example.org/dist/a/b/1.0.0.0/abc.zip","#,
                r#"                "shasum": "123","#,
                r#"                "mirrors": ["#,
                r"                    {",
                r#"                        "url": "https://larder.example.org/dist/%package%/%version%/%reference%.%type%","#,
                r#"                        "preferred": true"#,
                r"                    }",
                r"                ]",
            ]
        );
    }

    #[test]
    fn a_repository_that_clients_may_know_stays_or_is_told_anew() {
        let told = json!({ "type": "git", "url": "https://git.example.org/a/b.git", "reference": "abc" });
        let same = Place { dist: None, source: Source::Told(told.clone()) };
        assert_eq!(difference(&lock(ENTRY), same), (Vec::new(), Vec::new()));
        assert_eq!(difference(&lock(ENTRY), Place::default()), (Vec::new(), Vec::new()));
        let mut moved = told;
        moved["url"] = "https://forge.example.org/a/b.git".into();
        let (gone, new) = difference(&lock(ENTRY), Place { dist: None, source: Source::Told(moved) });
        assert_eq!(
            (gone.len(), new),
            (1, vec![r#"                "url": "https://forge.example.org/a/b.git","#.to_owned()])
        );
    }

    #[test]
    fn whatever_the_file_looks_like_it_stays_json() {
        let entries = [
            r#"{"source":{"url":"x","reference":"abc"},"name":"a/b","version":"1.0.0"}"#,
            r#"{"name":"a/b","version":"1.0.0","source":{"url":"x","reference":"abc"}}"#,
            r#"{ "name" : "a/b" , "version" : "1.0.0" , "source" : {"reference":"abc"} , "dist" : null }"#,
            r#"{"dist":{},"name":"a/b","version":"1.0.0"}"#,
            r#"{"name":"a/b","version":"1.0.0","dist":{"url":"x","url":"y"},"extra":{"dist":"\"}"}}"#,
            "{\"name\":\"a/b\",\"version\":\"1.0.0\",\"dist\":{\r\n\t\t\"url\":\"x\"\r\n}}",
        ];
        for entry in entries {
            let lock = Lock::parse(format!(r#"{{"packages":[{entry},{entry}],"z":1.10}}"#).into_bytes()).unwrap();
            let place = Place { dist: Some(dist()), source: Source::Hidden };
            let text = lock.rewritten(&[Some(place), None], HERE).unwrap();
            let after: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(after["packages"][1], serde_json::from_str::<Value>(entry).unwrap(), "{text}");
            let first = &after["packages"][0];
            assert!(first.get("source").is_none() && text.ends_with(r#""z":1.10}"#), "{text}");
            assert_eq!(first["dist"]["url"], dist()["url"], "{text}");
        }
    }

    #[test]
    fn tabs_stay_tabs() {
        let text =
            "{\n\t\"packages\": [\n\t\t{\n\t\t\t\"name\": \"a/b\",\n\t\t\t\"version\": \"1.0.0\"\n\t\t}\n\t]\n}\n";
        let lock = Lock::parse(text.as_bytes().to_vec()).unwrap();
        let place = Place { dist: Some(json!({ "url": "u" })), source: Source::Hidden };
        let after = lock.rewritten(&[Some(place)], HERE).unwrap();
        assert!(
            after.contains(
                "\"version\": \"1.0.0\",\n\t\t\t\"dist\": {\n\t\t\t\t\"url\": \"u\",\n\t\t\t\t\"mirrors\": ["
            ),
            "{after}"
        );
    }
}
