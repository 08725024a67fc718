//! Versions as Composer reads and compares them: normalising, stability, order.
//!
//! What this is not: constraints (`constraint.rs`), and what a Git ref becomes (`branch.rs`).
//!
//! Written after composer/semver's `VersionParser.php`, `Comparator.php` and PHP's `version_compare`, and checked row
//! by row against them. Two things are stricter here on purpose: a text over [`MAX_LENGTH`] bytes is an error, so
//! that no answer is ever slow, and so is a control character inside the text, which no Git ref can have and which
//! would end up in logs and headers.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// The longest version or constraint that is read, in bytes.
pub const MAX_LENGTH: usize = 1000;

/// The version that every default branch without a number is also known as, so that it sorts above all releases.
pub const DEFAULT_BRANCH_ALIAS: &str = "9999999-dev";

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Nothing that Composer's grammar knows.
    #[error("`{0}` is not a version: expected numbers like 1.2.3 or 1.2.3-beta1, a date, or a branch like dev-main")]
    Unknown(String),
    /// Over [`MAX_LENGTH`] bytes.
    #[error("a version of {0} bytes is too long: at most {MAX_LENGTH} are read")]
    TooLong(usize),
    /// A line break or another control character in the middle.
    #[error("`{}` has a control character in it", .0.escape_debug())]
    ControlCharacter(String),
}

/// How finished a version says it is, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stability {
    /// A branch, or a version ending in `-dev`.
    Dev,
    /// `-alpha`, `-a`.
    Alpha,
    /// `-beta`, `-b`.
    Beta,
    /// `-RC`.
    Rc,
    /// Everything else, patches (`-p1`) included.
    Stable,
}

impl Stability {
    /// The stability that a version text (normalised or not) shows.
    ///
    /// ```
    /// use larder_composer::version::Stability;
    /// assert_eq!(Stability::of("2.0B1"), Stability::Beta);
    /// assert_eq!(Stability::of("v2.0.x-dev#abc123"), Stability::Dev);
    /// ```
    #[must_use]
    pub fn of(version: &str) -> Self {
        let version = without_reference(version);
        if version.starts_with("dev-") || version.ends_with("-dev") {
            return Self::Dev;
        }
        let Some(modifier) = trailing_modifier(version) else {
            return Self::Stable;
        };
        if modifier.dev {
            return Self::Dev;
        }
        match modifier.stability.to_ascii_lowercase().as_str() {
            "a" | "alpha" => Self::Alpha,
            "b" | "beta" => Self::Beta,
            "rc" => Self::Rc,
            _ => Self::Stable,
        }
    }

    /// Composer's spelling: `dev`, `alpha`, `beta`, `RC`, `stable`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Alpha => "alpha",
            Self::Beta => "beta",
            Self::Rc => "RC",
            Self::Stable => "stable",
        }
    }
}

impl fmt::Display for Stability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of Composer's five stabilities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a stability: expected stable, RC, beta, alpha or dev")]
pub struct UnknownStability(String);

impl FromStr for Stability {
    type Err = UnknownStability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Dev, Self::Alpha, Self::Beta, Self::Rc, Self::Stable]
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownStability(text.chars().take(40).collect()))
    }
}

/// One version: as written, and as Composer compares it.
///
/// Two versions are equal when their normalised texts are. The order is Composer's: releases by `version_compare`,
/// below them all named branches, above them the branches `master`, `trunk` and `default` (as [`DEFAULT_BRANCH_ALIAS`]).
/// Where `version_compare` sees no difference (`1.0.0.0`, `1.00.0.0`) the text decides, so that a listing is stable.
///
/// ```
/// use larder_composer::version::Version;
/// let version = Version::parse("v1.2-b5")?;
/// assert_eq!(version.normalized(), "1.2.0.0-beta5");
/// assert!(version < Version::parse("1.2.0")?);
/// # Ok::<(), larder_composer::version::VersionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Version {
    pretty: String,
    normalized: String,
    place: Place,
}

impl Version {
    /// Reads a version as a person or a manifest writes it.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        let normalized = normalize(text)?;
        Ok(Self::from_normalized(text, normalized))
    }

    /// A version whose normalised form is already known, from the database or from a document of another registry.
    #[must_use]
    pub fn from_normalized(pretty: impl Into<String>, normalized: impl Into<String>) -> Self {
        let normalized = normalized.into();
        Self { pretty: pretty.into(), place: Place::of(&normalized), normalized }
    }

    /// As written: `v1.2`, `dev-main`, `2.x-dev`.
    #[must_use]
    pub fn pretty(&self) -> &str {
        &self.pretty
    }

    /// As compared: `1.2.0.0`, `dev-main`, `2.9999999.9999999.9999999-dev`.
    #[must_use]
    pub fn normalized(&self) -> &str {
        &self.normalized
    }

    /// How finished it says it is.
    #[must_use]
    pub fn stability(&self) -> Stability {
        Stability::of(&self.normalized)
    }

    /// Whether it is a branch without a number (`dev-main`), which only its own name matches.
    #[must_use]
    pub fn is_named_branch(&self) -> bool {
        self.normalized.starts_with("dev-")
    }

    /// `version_compare`: equal also where only the writing differs (`1.0.0.0`, `1.00.0.0`).
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place)
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pretty)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.normalized == other.normalized
    }
}

impl Eq for Version {}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.normalized.hash(state);
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place).then_with(|| self.normalized.cmp(&other.normalized))
    }
}

/// The order of two normalised versions, oldest first: that of [`Version`]. For a long list, sort [`Version`]s instead.
#[must_use]
pub fn compare(left: &str, right: &str) -> Ordering {
    Place::of(left).cmp(&Place::of(right)).then_with(|| left.cmp(right))
}

/// Where a normalised version stands among all others, worked out once so that sorting is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Branch,
    Release(Vec<Segment>),
}

/// What `version_compare` sees between two dots, lowest first. `End` closes every list: a version that goes on with
/// a number is newer than one that stops there, one that goes on with `beta` is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Segment {
    Unknown,
    Dev,
    Alpha,
    Beta,
    Rc,
    End,
    Number(u64),
    Patch,
}

impl Place {
    fn of(normalized: &str) -> Self {
        match normalized {
            "dev-master" | "dev-trunk" | "dev-default" => Self::Release(segments(DEFAULT_BRANCH_ALIAS)),
            branch if branch.starts_with("dev-") => Self::Branch,
            release => Self::Release(segments(release)),
        }
    }
}

fn segments(version: &str) -> Vec<Segment> {
    let mut found = Vec::with_capacity(8);
    for run in version.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut rest = run;
        while let Some(first) = rest.bytes().next() {
            let end = rest.bytes().position(|b| b.is_ascii_digit() != first.is_ascii_digit()).unwrap_or(rest.len());
            found.push(Segment::of(&rest[..end]));
            rest = &rest[end..];
        }
    }
    found.push(Segment::End);
    found
}

impl Segment {
    /// PHP's table of special forms: matched by how the segment starts, capitals included.
    fn of(text: &str) -> Self {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            // strtol stops at the largest signed number; no two versions above it are told apart.
            return Self::Number(i64::from_str(text).unwrap_or(i64::MAX).unsigned_abs());
        }
        let forms = [
            ("dev", Self::Dev),
            ("a", Self::Alpha),
            ("b", Self::Beta),
            ("RC", Self::Rc),
            ("rc", Self::Rc),
            ("p", Self::Patch),
        ];
        forms.into_iter().find(|(name, _)| text.starts_with(name)).map_or(Self::Unknown, |(_, form)| form)
    }
}

/// The form of a version that Composer compares (`v1.2-b5` is `1.2.0.0-beta5`), or why it is none.
pub fn normalize(text: &str) -> Result<String, VersionError> {
    let original = checked(text)?;
    let text = without_alias(original);
    let text = without_stability_flag(text).unwrap_or(text);
    if matches!(text, "master" | "trunk" | "default") {
        return Ok(format!("dev-{text}"));
    }
    if let Some(branch) = strip_prefix_ignore_case(text, "dev-") {
        return Ok(format!("dev-{branch}"));
    }
    let text = without_build(text);
    classical(text)
        .or_else(|| date(text))
        .or_else(|| development_of_number(text))
        .ok_or_else(|| VersionError::Unknown(original.to_owned()))
}

/// The form of a branch name that Composer compares: `1.x` is `1.9999999.9999999.9999999-dev`, `main` is `dev-main`.
pub fn normalize_branch(name: &str) -> Result<String, VersionError> {
    let name = checked(name)?;
    Ok(numeric_branch(name).unwrap_or_else(|| format!("dev-{name}")))
}

/// The numbers in front of a numeric development version, with a closing dot: `2.1.x-dev` gives `2.1.`, `dev-main`
/// gives nothing.
#[must_use]
pub fn numeric_alias_prefix(branch: &str) -> Option<String> {
    let numbers = strip_suffix_ignore_case(branch, "-dev")?;
    let numbers = strip_suffix_ignore_case(numbers, ".x").unwrap_or(numbers);
    numbers
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        .then(|| format!("{numbers}."))
}

/// A numeric development version as people write it: each run of `.9999999` becomes one `.x`.
#[must_use]
pub(crate) fn with_wildcard(normalized: &str) -> String {
    const NINES: &str = ".9999999";
    let mut pretty = String::with_capacity(normalized.len());
    let mut rest = normalized;
    while let Some(at) = rest.find(NINES) {
        pretty.push_str(&rest[..at]);
        pretty.push_str(".x");
        rest = rest[at..].trim_start_matches(NINES);
    }
    pretty.push_str(rest);
    pretty
}

/// Trims what PHP's `trim` trims and refuses what is too long or holds control characters.
pub(crate) fn checked(text: &str) -> Result<&str, VersionError> {
    if text.len() > MAX_LENGTH {
        return Err(VersionError::TooLong(text.len()));
    }
    let text = text.trim_matches([' ', '\n', '\r', '\t', '\x0b', '\0']);
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(VersionError::ControlCharacter(text.to_owned()));
    }
    Ok(text)
}

/// `dev-main as 1.0` is `dev-main`: an alias is the concern of the project that wrote it.
pub(crate) fn without_alias(text: &str) -> &str {
    let plain = |word: &str| !word.is_empty() && !word.contains(is_comma_or_space);
    let split = || {
        let (version, rest) = text.split_once(' ')?;
        let rest = rest.trim_start_matches(' ').strip_prefix("as")?;
        let alias = rest.trim_start_matches(' ');
        (alias.len() < rest.len() && plain(version) && plain(alias)).then_some(version)
    };
    split().unwrap_or(text)
}

/// What stands in front of a closing `@dev`, `@beta`... and nothing when there is no such flag.
fn without_stability_flag(text: &str) -> Option<&str> {
    stability_flag(text).map(|(before, _)| before)
}

pub(crate) fn stability_flag(text: &str) -> Option<(&str, &str)> {
    let (before, flag) = text.rsplit_once('@')?;
    Stability::from_str(flag).ok().map(|_| (before, flag))
}

/// Everything in front of the first `#` that has something behind it.
fn without_reference(text: &str) -> &str {
    match text.find('#') {
        Some(at) if at + 1 < text.len() => &text[..at],
        _ => text,
    }
}

fn without_build(text: &str) -> &str {
    match text.split_once('+') {
        Some((version, build))
            if !version.is_empty()
                && !build.is_empty()
                && !version.contains(is_comma_or_space)
                && !build.contains(is_space) =>
        {
            version
        }
        _ => text,
    }
}

/// One to four numbers, as in `v1.2.3-beta2`.
fn classical(text: &str) -> Option<String> {
    let (major, mut rest) = take_digits(without_v(text))?;
    if major.len() > 5 {
        return None;
    }
    let mut numbers = major.to_owned();
    for _ in 0..3 {
        match rest.strip_prefix('.').and_then(take_digits) {
            Some((number, after)) => {
                numbers.push('.');
                numbers.push_str(number);
                rest = after;
            }
            None => numbers.push_str(".0"),
        }
    }
    with_modifier(numbers, rest)
}

/// A date with or without separators and time, and up to two short numbers behind it: `2010-01-02-10-20-30.5`.
fn date(text: &str) -> Option<String> {
    let text = without_v(text);
    let end_of_year = after_digits(text, 0, 4)?;
    let mut ends = Vec::new();
    let mut at = end_of_year;
    for _ in 0..6 {
        match after_digits(text, after_separator(text, at), 2) {
            Some(next) => at = next,
            None => break,
        }
        ends.push(at);
    }
    for _ in 0..2 {
        for start in ends.clone() {
            let start = after_separator(text, start);
            ends.extend((1..=3).filter_map(|count| after_digits(text, start, count)));
        }
        ends.sort_unstable();
        ends.dedup();
    }
    ends.into_iter().rev().find_map(|end| {
        let dotted = text[..end].replace(|c: char| !c.is_ascii_digit(), ".");
        with_modifier(dotted, &text[end..])
    })
}

fn after_separator(text: &str, at: usize) -> usize {
    at + usize::from(text[at..].starts_with(['.', ':', '-']))
}

fn after_digits(text: &str, at: usize, count: usize) -> Option<usize> {
    let digits = text.as_bytes().get(at..at + count)?;
    digits.iter().all(u8::is_ascii_digit).then_some(at + count)
}

/// `1.x-dev`, `20100102.x-dev`: a numeric branch with `dev` behind it. A named branch is only one with `dev-` in front.
fn development_of_number(text: &str) -> Option<String> {
    let name = strip_suffix_ignore_case(text, "dev")?;
    numeric_branch(name.strip_suffix(['.', '-']).unwrap_or(name))
}

fn numeric_branch(name: &str) -> Option<String> {
    let name = name.trim_matches([' ', '\n', '\r', '\t', '\x0b', '\0']);
    let (major, mut rest) = take_digits(without_v(name))?;
    let mut normalized = major.to_owned();
    for _ in 0..3 {
        let part = rest
            .strip_prefix('.')
            .and_then(|after| take_digits(after).or_else(|| Some(("9999999", after.strip_prefix(['x', 'X', '*'])?))));
        let (number, after) = part.unwrap_or(("9999999", rest));
        normalized.push('.');
        normalized.push_str(number);
        rest = after;
    }
    rest.is_empty().then(|| normalized + "-dev")
}

/// Adds what follows the numbers in Composer's spelling, when it is a modifier and nothing else.
fn with_modifier(mut version: String, rest: &str) -> Option<String> {
    let (modifier, rest) = take_modifier(rest);
    if !rest.is_empty() {
        return None;
    }
    // Only the small letters are dropped; Composer keeps `-STABLE` as `-stable`, and what followed it.
    if modifier.stability == "stable" {
        return Some(version);
    }
    if !modifier.stability.is_empty() {
        version.push('-');
        version.push_str(&spelled_out(modifier.stability));
        version.push_str(modifier.number.trim_start_matches(['.', '-']));
    }
    if modifier.dev {
        version.push_str("-dev");
    }
    Some(version)
}

fn spelled_out(stability: &str) -> String {
    match stability.to_ascii_lowercase().as_str() {
        "a" => "alpha".to_owned(),
        "b" => "beta".to_owned(),
        "p" | "pl" => "patch".to_owned(),
        "rc" => "RC".to_owned(),
        other => other.to_owned(),
    }
}

/// What may follow the numbers of a version: `-beta.2-dev` has the stability `beta`, the number `.2`, and is dev.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Modifier<'a> {
    pub(crate) stability: &'a str,
    pub(crate) number: &'a str,
    pub(crate) dev: bool,
}

/// Reads a modifier, possibly an empty one, and returns what is left. No part of it can be read in two ways, so
/// taking the longest at each step never needs to be taken back.
pub(crate) fn take_modifier(text: &str) -> (Modifier<'_>, &str) {
    const WORDS: [&str; 9] = ["stable", "beta", "b", "rc", "alpha", "a", "patch", "pl", "p"];
    let mut modifier = Modifier::default();
    let mut rest = text.strip_prefix(['.', '_', '-']).unwrap_or(text);
    let word = WORDS.into_iter().find_map(|word| strip_prefix_ignore_case(rest, word));
    if let Some(after) = word {
        modifier.stability = &rest[..rest.len() - after.len()];
        rest = after;
        while let Some((_, after)) = take_digits(rest.strip_prefix(['.', '-']).unwrap_or(rest)) {
            rest = after;
        }
        let number = after.len() - rest.len();
        modifier.number = &after[..number];
    }
    let bare = rest.strip_prefix(['.', '-']).unwrap_or(rest);
    if let Some(after) = strip_prefix_ignore_case(bare, "dev") {
        modifier.dev = true;
        rest = after;
    }
    (modifier, rest)
}

/// The modifier at the end of a text, build metadata aside: the earliest place from which nothing else follows.
fn trailing_modifier(text: &str) -> Option<Modifier<'_>> {
    text.char_indices().find_map(|(at, _)| {
        let (modifier, rest) = take_modifier(&text[at..]);
        (rest.is_empty() || rest.starts_with('+')).then_some(modifier)
    })
}

/// Whether some `-` is followed by a modifier and then by nothing. `RC` does not count: Composer looks for the capitals
/// in a text that it has just made small, so that `<1.0-RC1` means `<1.0.0.0-RC1-dev` to every client.
pub(crate) fn ends_in_dashed_modifier(text: &str) -> bool {
    text.match_indices('-').any(|(at, _)| {
        let (modifier, rest) = take_modifier(&text[at + 1..]);
        rest.is_empty() && !modifier.stability.eq_ignore_ascii_case("rc")
    })
}

pub(crate) fn without_v(text: &str) -> &str {
    text.strip_prefix(['v', 'V']).unwrap_or(text)
}

pub(crate) fn take_digits(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

pub(crate) fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

pub(crate) fn strip_suffix_ignore_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let (rest, end) = text.split_at_checked(text.len().checked_sub(suffix.len())?)?;
    end.eq_ignore_ascii_case(suffix).then_some(rest)
}

pub(crate) fn is_comma_or_space(c: char) -> bool {
    c == ',' || is_space(c)
}

/// PCRE's `\s`.
pub(crate) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
