//! What a principal may read of one format, in a canonical form: the key under which documents are cached, and the
//! filter with which they are made. Two principals that may read the same have the same view.

use std::{fmt, sync::Arc};

use larder_core::{
    Digest,
    grant::{Action, Grant, Principal},
    pattern::Pattern,
};
use quick_cache::{Equivalent, sync::Cache};

/// The longest list of patterns that is a key by itself; a longer one is hashed.
const PLAIN_KEY: usize = 64;

/// The packages of one format that a principal may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    key: Arc<str>,
    patterns: Vec<Pattern>,
}

impl View {
    /// The view of everything.
    pub fn everything() -> Self {
        Self { key: Arc::from("*"), patterns: vec![Pattern::everything()] }
    }

    /// What stands for it in a cache: equal for equal views, at most 64 bytes, printable.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Whether the package `name` is in it. Agrees with [`decide`](crate::decide::decide) for reading.
    pub fn sees(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether no package can ever be in it.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether every package is in it.
    pub fn sees_everything(&self) -> bool {
        self.patterns.iter().any(Pattern::is_everything)
    }

    /// Its patterns: sorted, and none of them within another.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// The view that `principal` has of `format`. [`Views`] remembers it.
pub fn view(principal: &Principal, format: &str) -> View {
    of_grants(&principal.grants, format)
}

fn of_grants(grants: &[Grant], format: &str) -> View {
    let mut patterns: Vec<Pattern> =
        grants.iter().filter(|grant| grant.covers(Action::Read, format)).map(|grant| grant.pattern.clone()).collect();
    if patterns.iter().any(Pattern::is_everything) {
        return View::everything();
    }
    patterns.sort_unstable();
    patterns.dedup();
    let letters: Vec<Vec<Letter>> = patterns.iter().map(letters).collect();
    let kept: Vec<Pattern> = (0..patterns.len())
        .filter(|this| {
            !(0..patterns.len()).any(|other| {
                // Of two patterns that mean the same, the first one stays.
                other != *this
                    && covers(&letters[other], &letters[*this])
                    && (other < *this || !covers(&letters[*this], &letters[other]))
            })
        })
        .map(|index| patterns[index].clone())
        .collect();
    View { key: key(&kept), patterns: kept }
}

/// A space is in no pattern, so the joined text is the list.
fn key(patterns: &[Pattern]) -> Arc<str> {
    let text = patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" ");
    if text.len() <= PLAIN_KEY { Arc::from(text) } else { Arc::from(Digest::of(text.as_bytes()).hex()) }
}

/// Whether every name that `narrow` matches is matched by `wide`. `false` may also mean that it is too hard to say,
/// which costs a longer list and nothing else.
///
/// `narrow` is matched like a name in which each star is a letter of its own: one that only a star can swallow, and for
/// `**` one that only `**` can swallow. Whatever the stars of `narrow` stand for, the same stars of `wide` swallow it.
fn covers(wide: &[Letter], narrow: &[Letter]) -> bool {
    let fixed = wide.iter().take_while(|letter| matches!(letter, Letter::Byte(_))).count();
    if !narrow.starts_with(&wide[..fixed]) {
        return false;
    }
    let (wide, narrow) = (&wide[fixed..], &narrow[fixed..]);
    // row[n]: whether the letters of `wide` so far match the first n letters of `narrow`.
    let mut row = vec![false; narrow.len() + 1];
    row[0] = true;
    for letter in wide {
        let mut next = vec![false; narrow.len() + 1];
        let mut any = false;
        for n in 0..=narrow.len() {
            next[n] = match letter {
                Letter::Byte(_) => n > 0 && row[n - 1] && narrow[n - 1] == *letter,
                Letter::Star => row[n] || n > 0 && next[n - 1] && narrow[n - 1].within_a_segment(),
                Letter::DoubleStar => row[n] || n > 0 && next[n - 1],
            };
            any |= next[n];
        }
        if !any {
            return false;
        }
        row = next;
    }
    row[narrow.len()]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Letter {
    Byte(u8),
    Star,
    DoubleStar,
}

impl Letter {
    fn within_a_segment(self) -> bool {
        !matches!(self, Self::Byte(b'/') | Self::DoubleStar)
    }
}

/// Reads a pattern the way [`Pattern::matches`] does: two stars, from the left, are a double one.
fn letters(pattern: &Pattern) -> Vec<Letter> {
    let mut rest = pattern.as_str().as_bytes();
    if pattern.is_everything() {
        return vec![Letter::DoubleStar];
    }
    let mut letters = Vec::with_capacity(rest.len());
    while let Some(first) = rest.first() {
        let (letter, length) = match first {
            b'*' if rest.starts_with(b"**") => (Letter::DoubleStar, 2),
            b'*' => (Letter::Star, 1),
            byte => (Letter::Byte(*byte), 1),
        };
        letters.push(letter);
        rest = &rest[length..];
    }
    letters
}

/// Remembers views, because a view is asked for with every request and takes time to make when there are many grants.
/// It is never stale: a view depends on the grants alone, and those are the key.
pub struct Views(Cache<Key, Arc<View>>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    format: String,
    grants: Vec<Grant>,
}

#[derive(Hash)]
struct KeyRef<'a> {
    format: &'a str,
    grants: &'a [Grant],
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.format == key.format && self.grants == key.grants
    }
}

impl Views {
    /// Remembers at most `capacity` views.
    pub fn new(capacity: usize) -> Self {
        Self(Cache::new(capacity))
    }

    /// The view that `principal` has of `format`.
    pub fn of(&self, principal: &Principal, format: &str) -> Arc<View> {
        let key = KeyRef { format, grants: &principal.grants };
        if let Some(known) = self.0.get(&key) {
            return known;
        }
        let view = Arc::new(view(principal, format));
        self.0.insert(Key { format: format.to_owned(), grants: principal.grants.clone() }, Arc::clone(&view));
        view
    }
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Views({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use larder_core::grant::PrincipalName;
    use proptest::prelude::*;

    use super::*;
    use crate::decide::{Decision, decide};

    fn patterns(texts: &[&str]) -> View {
        let grants: Vec<Grant> = texts.iter().map(|text| format!("read:*:{text}").parse().unwrap()).collect();
        of_grants(&grants, "x")
    }

    #[test]
    fn the_same_rights_have_the_same_key() {
        let same: &[(&[&str], &str)] = &[
            (&["acme/*", "*"], "*"),
            (&["**"], "*"),
            (&["b/*", "a/*", "b/*"], "a/* b/*"),
            (&["acme/lib", "acme/*"], "acme/*"),
            (&["acme/lib-*", "acme/*-x", "acme/**", "acme/a/b"], "acme/**"),
            (&["acme/*/x", "acme/*"], "acme/* acme/*/x"),
            (&["acme/**", "**/lib"], "**/lib acme/**"),
            (&["a***", "a**"], "a**"),
            (&[], ""),
        ];
        for (written, key) in same {
            assert_eq!(&**patterns(written).key(), *key, "{written:?}");
        }
    }

    #[test]
    fn only_reading_and_only_this_format_count() {
        let grants: Vec<Grant> =
            ["publish:*:a/*", "read:y:b/*", "read,delete:x:c/*"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(&**of_grants(&grants, "x").key(), "c/*");
        assert_eq!(&**of_grants(&grants, "z").key(), "");
        assert!(of_grants(&grants, "z").is_empty());
    }

    #[test]
    fn a_long_list_has_a_short_key_that_tells_it_apart() {
        let many: Vec<String> = (0..1000).map(|n| format!("vendor-{n:04}/*")).collect();
        let texts: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = patterns(&texts);
        assert_eq!(all.key().len(), 64);
        assert_eq!(all.patterns().len(), 1000);
        assert_ne!(all.key(), patterns(&texts[1..]).key());
    }

    fn any_pattern() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[ab*/]{1,6}", 1 => Just("*".to_owned()), 1 => Just("**".to_owned())]
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let actions = prop_oneof![3 => Just("read"), 1 => Just("publish"), 1 => Just("read,delete"), 1 => Just("*")];
        let format = prop_oneof![3 => Just("*"), 2 => Just("x"), 1 => Just("y")];
        (actions, format, any_pattern()).prop_map(|(a, f, p)| format!("{a}:{f}:{p}").parse().unwrap())
    }

    proptest! {
        #[test]
        fn a_view_sees_what_may_be_read(
            grants in prop::collection::vec(any_grant(), 0..6),
            names in prop::collection::vec("[ab/]{0,8}", 1..20),
        ) {
            let principal = Principal { name: PrincipalName::Token("t".into()), grants, ..Principal::default() };
            let view = view(&principal, "x");
            for name in names {
                let allowed = decide(&principal, Action::Read, "x", &name) == Decision::Allow;
                prop_assert_eq!(view.sees(&name), allowed, "{} {:?}", name, principal.grants);
            }
        }

        #[test]
        fn order_and_doubles_do_not_matter(grants in prop::collection::vec(any_grant(), 0..6)) {
            let mut other = grants.clone();
            other.reverse();
            other.extend(grants.iter().take(1).cloned());
            prop_assert_eq!(of_grants(&grants, "x"), of_grants(&other, "x"));
        }

        #[test]
        fn what_is_covered_matches_nothing_more(wide in any_pattern(), narrow in any_pattern(), name in "[ab/]{0,8}") {
            let (wide, narrow): (Pattern, Pattern) = (wide.parse().unwrap(), narrow.parse().unwrap());
            if covers(&letters(&wide), &letters(&narrow)) && narrow.matches(&name) {
                prop_assert!(wide.matches(&name), "{} {} {}", wide, narrow, name);
            }
        }
    }

    #[test]
    fn remembered_views_are_the_same() {
        let views = Views::new(10);
        let mut principal = Principal { grants: vec!["read:*:acme/*".parse().unwrap()], ..Principal::default() };
        assert_eq!(*views.of(&principal, "x"), view(&principal, "x"));
        assert!(Arc::ptr_eq(&views.of(&principal, "x"), &views.of(&principal, "x")));
        principal.grants.clear();
        assert!(views.of(&principal, "x").is_empty());
    }
}
