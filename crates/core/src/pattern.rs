//! Patterns over package names, as grants, filters and reservations use them (design: contract, commands).
//!
//! `*` alone is every package. Inside a pattern `*` stays within one path segment and `**` crosses them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The longest pattern that is accepted, in bytes: no package name of any format is longer.
const LONGEST: usize = 255;

/// A glob over package names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that every package name matches.
    pub fn everything() -> Self {
        Self("*".to_owned())
    }

    /// Whether every package name matches.
    pub fn is_everything(&self) -> bool {
        self.0 == "*" || self.0 == "**"
    }

    /// Whether it is a name: without stars, it matches nothing but itself.
    pub fn is_name(&self) -> bool {
        !self.0.contains('*')
    }

    /// The pattern of the names that match both. `None` if there are none, and also if both have stars and neither is
    /// everything: what they share may then be no pattern.
    #[must_use]
    pub fn and(&self, other: &Self) -> Option<Self> {
        if self == other || other.is_everything() || self.is_name() && other.matches(&self.0) {
            return Some(self.clone());
        }
        (self.is_everything() || other.is_name() && self.matches(&other.0)).then(|| other.clone())
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `name` matches. Takes time proportional to both lengths multiplied, at worst.
    pub fn matches(&self, name: &str) -> bool {
        self.is_everything() || matches(self.0.as_bytes(), name.as_bytes())
    }
}

/// Iterative matching with one resume point per kind of star: the usual linear-space glob, in which
/// a single star may not swallow a slash.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let (mut single, mut double) = (None, None);
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            double = Some((p, n));
            single = None;
            continue;
        }
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            single = Some((p, n));
            continue;
        }
        if n < name.len() && pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
            continue;
        }
        if n == name.len() && p == pattern.len() {
            return true;
        }
        if let Some((after, from)) = single
            && name.get(from).is_some_and(|byte| *byte != b'/')
        {
            single = Some((after, from + 1));
            (p, n) = (after, from + 1);
            continue;
        }
        match double {
            Some((after, from)) if from < name.len() => {
                double = Some((after, from + 1));
                single = None;
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "*@/._-+~".contains(c);
        if text.is_empty() || text.len() > LONGEST || !text.chars().all(allowed) {
            return Err(Error::invalid(format!(
                "`{text}` is not a pattern over package names: write * for all, or something like acme/*, @acme/* or acme/**"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_segments() {
        let cases = [
            ("*", "acme/lib", true),
            ("acme/*", "acme/lib", true),
            ("acme/*", "acme/lib/sub", false),
            ("acme/**", "acme/lib/sub", true),
            ("acme/*", "acme/", true),
            ("acme/*", "acmeevil/lib", false),
            ("acme/*", "evil/acme/lib", false),
            ("@acme/*", "@acme/ui", true),
            ("acme/lib-*", "acme/lib-a", true),
            ("acme/lib-*", "acme/li", false),
            ("*/lib", "acme/lib", true),
            ("*/lib", "a/b/lib", false),
            ("**/lib", "a/b/lib", true),
            ("a*b*c/x", "aXbYc/x", true),
            ("a**c/*", "a/b/c/d", true),
            ("acme/lib", "acme/lib", true),
            ("acme/lib", "acme/libs", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        let pattern: Pattern = "a*".repeat(127).parse().unwrap();
        assert!(!pattern.matches(&"ab".repeat(126)));
        assert!("a b".parse::<Pattern>().is_err());
        assert!("".parse::<Pattern>().is_err());
    }
}
