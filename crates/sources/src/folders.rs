//! Which folders of a tree hold packages: patterns over paths, walked down one folder at a time, so that only those are
//! looked into which can still match. It reads no trees: that is the [`git`](crate::git) port's.

use std::{fmt, str::FromStr};

use larder_core::Error;
use serde::{Deserialize, Serialize};

/// The root folder, as a pattern.
const ROOT: &str = ".";

/// As many names as may be in a path, at every depth.
const ANY_DEPTH: &str = "**";

/// The deepest folder that is looked at: `a/b/c` is 3 deep.
pub const DEEPEST: usize = 8;

/// The longest pattern and the longest name of a folder in bytes, and how many patterns a source may have.
const LONGEST: usize = 255;
const MOST: usize = 32;

/// A glob over the folders of a tree: `.` is the root, `*` stays within one name, `**` as a name of its own stands for any
/// number of folders. As in a shell, no star stands for the dot at the beginning of a name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct FolderPattern(String);

impl FolderPattern {
    /// As it was written, without slashes at its ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn names(&self) -> Vec<&str> {
        if self.0 == ROOT { Vec::new() } else { self.0.split('/').collect() }
    }
}

impl FromStr for FolderPattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let path = text.strip_prefix("./").unwrap_or(text).trim_matches('/');
        let fits = |name: &str| {
            let stars = !name.contains(ANY_DEPTH) || name == ANY_DEPTH;
            stars && !matches!(name, "" | "." | "..") && !name.contains(['\\', '?', '[', '{']) && is_plain(name)
        };
        if path.len() > LONGEST || path != ROOT && !path.split('/').all(fits) {
            return Err(Error::invalid(format!(
                "`{}` is not a pattern over folders: write something like packages/*, src/**/bundle, or . for the root",
                text.escape_debug()
            )));
        }
        if path.split('/').filter(|name| *name != ANY_DEPTH).count() > DEEPEST {
            return Err(Error::invalid(format!("`{path}` is deeper than {DEEPEST} folders: none is looked at there")));
        }
        Ok(Self(path.to_owned()))
    }
}

impl TryFrom<String> for FolderPattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<FolderPattern> for String {
    fn from(pattern: FolderPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for FolderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folders that hold packages, as one or more patterns say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders(Vec<FolderPattern>);

/// How far a folder has come in the patterns: for each of them the names that the next one below may match. Equal states
/// see the same in equal trees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Step(Vec<(u8, u8)>);

impl Folders {
    /// The root alone.
    pub fn root() -> Self {
        Self(vec![FolderPattern(ROOT.to_owned())])
    }

    /// With the patterns of a source; none of them is the root alone.
    pub fn matching(patterns: &[FolderPattern]) -> Self {
        if patterns.is_empty() { Self::root() } else { Self(patterns.to_vec()) }
    }

    /// Refuses more patterns than a source may have.
    pub fn check(patterns: &[FolderPattern]) -> Result<(), Error> {
        if patterns.len() > MOST {
            return Err(Error::invalid(format!(
                "{} patterns over folders are too many: {MOST} is the most that one source may have",
                patterns.len()
            )));
        }
        Ok(())
    }

    /// The patterns, for people.
    pub fn sentence(&self) -> String {
        self.0.iter().map(FolderPattern::as_str).collect::<Vec<_>>().join(" or ")
    }

    /// Whether only the root holds a package.
    pub fn is_root(&self) -> bool {
        self.0.iter().all(|pattern| pattern.0 == ROOT)
    }

    /// Where the root stands.
    pub fn begin(&self) -> Step {
        let begins = (0_u8..).zip(&self.0).map(|(pattern, _)| (pattern, 0));
        self.closed(begins.collect())
    }

    /// Where the folder `name` stands, in a folder that stands at `step`. Without [`goes_on`](Self::goes_on) and
    /// [`holds`](Self::holds) nothing in it counts.
    #[must_use]
    pub fn enter(&self, step: &Step, name: &str) -> Step {
        let mut next = Vec::new();
        for &(pattern, at) in &step.0 {
            match self.name(pattern, at) {
                Some(ANY_DEPTH) if !name.starts_with('.') => next.push((pattern, at)),
                Some(wanted) if wanted != ANY_DEPTH && matches(wanted, name) => next.push((pattern, at + 1)),
                _ => {}
            }
        }
        self.closed(next)
    }

    /// Whether a folder that stands at `step` may hold a package.
    pub fn holds(&self, step: &Step) -> bool {
        step.0.iter().any(|&(pattern, at)| self.name(pattern, at).is_none())
    }

    /// Whether folders in one that stands at `step` may hold packages.
    pub fn goes_on(&self, step: &Step) -> bool {
        step.0.iter().any(|&(pattern, at)| self.name(pattern, at).is_some())
    }

    fn name(&self, pattern: u8, at: u8) -> Option<&str> {
        self.0.get(usize::from(pattern))?.names().get(usize::from(at)).copied()
    }

    /// With what follows a `**`, which may stand for no folder at all.
    fn closed(&self, mut steps: Vec<(u8, u8)>) -> Step {
        let mut index = 0;
        while let Some(&(pattern, at)) = steps.get(index) {
            if self.name(pattern, at) == Some(ANY_DEPTH) {
                steps.push((pattern, at + 1));
            }
            index += 1;
        }
        steps.sort_unstable();
        steps.dedup();
        Step(steps)
    }
}

/// Whether this may be the name of a folder that holds a package: nothing in it leads anywhere else or breaks a line.
pub fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= LONGEST
        && !name.eq_ignore_ascii_case(".git")
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

/// Matches one name, with `*` for any number of characters.
fn matches(wanted: &str, name: &str) -> bool {
    if name.starts_with('.') && wanted.starts_with('*') {
        return false;
    }
    let mut parts = wanted.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(patterns: &[&str]) -> Folders {
        Folders::matching(&patterns.iter().map(|pattern| pattern.parse().unwrap()).collect::<Vec<_>>())
    }

    /// Whether a folder holds a package, and whether one in it could.
    fn at(folders: &Folders, path: &str) -> (bool, bool) {
        let names = path.split('/').filter(|name| !name.is_empty());
        let step = names.fold(folders.begin(), |step, name| folders.enter(&step, name));
        (folders.holds(&step), folders.goes_on(&step))
    }

    #[test]
    fn folders_that_match() {
        for (patterns, path, expected) in [
            (&[][..], "", (true, false)),
            (&[], "a", (false, false)),
            (&["packages/*"], "", (false, true)),
            (&["packages/*"], "packages", (false, true)),
            (&["packages/*"], "packages/a", (true, false)),
            (&["packages/*"], "packages/a/b", (false, false)),
            (&["packages/*"], "packages/.a", (false, false)),
            (&["packages/*"], "package/a", (false, false)),
            (&["packages/*", "."], "", (true, true)),
            (&["./packages/*/"], "packages/a", (true, false)),
            (&["*"], "a", (true, false)),
            (&["*"], "a/b", (false, false)),
            (&["**"], "", (true, true)),
            (&["**"], "a/b/c", (true, true)),
            (&["**"], "a/.b/c", (false, false)),
            (&["src/**/*-bundle"], "src/x-bundle", (true, true)),
            (&["src/**/*-bundle"], "src/a/b/x-bundle", (true, true)),
            (&["src/**/*-bundle"], "src/a/b/x-bundles", (false, true)),
            (&["src/**"], "src", (true, true)),
            (&["a/x", "a/*"], "a/x", (true, false)),
            (&[".hidden/*"], ".hidden/a", (true, false)),
            (&["p/a*b*c"], "p/aXbbYc", (true, false)),
            (&["p/a*b*c"], "p/aXc", (false, false)),
            (&["p/a*a"], "p/a", (false, false)),
            (&["p/名*"], "p/名前", (true, false)),
        ] {
            assert_eq!(at(&folders(patterns), path), expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn patterns_that_are_refused() {
        for text in
            ["", "/", "..", "a/../b", "a//b", "a/./b", "a\\b", "a/b**", "a\nb", "!a", ".git/x", "1/2/3/4/5/6/7/8/9"]
        {
            let taken = text.parse::<FolderPattern>();
            assert_eq!(taken.is_err(), text != "!a", "{text}: {taken:?}");
        }
        assert!("a".repeat(256).parse::<FolderPattern>().is_err());
        assert!(Folders::check(&vec!["a".parse().unwrap(); 33]).is_err());
    }
}
