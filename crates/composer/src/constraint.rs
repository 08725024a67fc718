//! Version constraints as Composer reads them (`^1.2 || ~2.0.3, !=2.1`), and what they match.
//!
//! What this is not: choosing versions. That is the client's work; Larder only needs to know what a constraint allows,
//! and to say clearly what is wrong with one that Composer would refuse.
//!
//! Written after composer/semver's `VersionParser::parseConstraints`, `Constraint.php` and `MultiConstraint.php`, and
//! checked row by row against them. Stricter on purpose: texts over [`MAX_LENGTH`] bytes, control characters, and a
//! number over 64 bits where a range has to count on from it (PHP would go on with a rounded one).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::version::{
    MAX_LENGTH, Modifier, Stability, Version, VersionError, checked, ends_in_dashed_modifier, is_comma_or_space,
    is_space, normalize, stability_flag, strip_prefix_ignore_case, take_digits, take_modifier, without_alias,
    without_v,
};

/// The constraint that stands for the version of the package it is written in.
pub const SELF_VERSION: &str = "self.version";

/// Why a text is not a constraint: which part of it, where, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Over [`MAX_LENGTH`] bytes.
    #[error("a constraint of {0} bytes is too long: at most {MAX_LENGTH} are read")]
    TooLong(usize),
    /// One part cannot be read.
    #[error("cannot read `{part}` in the constraint `{constraint}` (at byte {offset}): {problem}")]
    Part {
        /// The whole text.
        constraint: String,
        /// The part between two separators.
        part: String,
        /// Where the part begins in the whole text, in bytes.
        offset: usize,
        /// What is wrong with the part.
        problem: Problem,
    },
}

/// What is wrong with one part of a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing between two separators, or nothing at all.
    #[error("a constraint is missing here")]
    Empty,
    /// `~>` is another ecosystem's operator.
    #[error("there is no operator `~>`, use `~`")]
    TildeArrow,
    /// The range would have to count on from a number over 64 bits.
    #[error("the number {0} is too large for a range")]
    NumberTooLarge(String),
    /// The version in it is none.
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// How one version is compared with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=` or `==`, also when nothing is written.
    Equal,
    /// `!=` or `<>`.
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Operator {
    /// Composer's own spelling: `==`, `!=`, `<`, `<=`, `>`, `>=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    /// Whether `left OPERATOR right` holds. A branch with a name only ever equals itself and has no place among the
    /// numbers.
    #[must_use]
    pub fn holds(self, left: &Version, right: &Version) -> bool {
        let branches = (left.is_named_branch(), right.is_named_branch());
        match (self, branches) {
            (_, (false, false)) => self.accepts(left.compare(right)),
            (Self::NotEqual, _) => left.normalized() != right.normalized(),
            (Self::Equal, (true, true)) => left.normalized() == right.normalized(),
            _ => false,
        }
    }

    /// Whether `left OPERATOR right` holds when a branch counts as older than every number, as for a listing.
    #[must_use]
    pub fn holds_in_a_listing(self, left: &Version, right: &Version) -> bool {
        match (left.is_named_branch(), right.is_named_branch(), self) {
            (true, false, _) if self != Self::NotEqual => self.accepts(Ordering::Less),
            (false, true, _) if self != Self::NotEqual => self.accepts(Ordering::Greater),
            _ => self.holds(left, right),
        }
    }

    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }

    /// `<` and `<=` look one way, `>` and `>=` the other, `==` and `!=` neither.
    fn direction(self) -> Ordering {
        match self {
            Self::Less | Self::LessOrEqual => Ordering::Less,
            Self::Greater | Self::GreaterOrEqual => Ordering::Greater,
            Self::Equal | Self::NotEqual => Ordering::Equal,
        }
    }

    fn take(text: &str) -> (Option<Self>, &str) {
        let spellings = [
            ("<>", Self::NotEqual),
            ("!=", Self::NotEqual),
            (">=", Self::GreaterOrEqual),
            (">", Self::Greater),
            ("<=", Self::LessOrEqual),
            ("<", Self::Less),
            ("==", Self::Equal),
            ("=", Self::Equal),
        ];
        spellings
            .into_iter()
            .find_map(|(spelling, operator)| Some((Some(operator), text.strip_prefix(spelling)?)))
            .unwrap_or((None, text))
    }
}

/// What versions are allowed.
///
/// Printed in Composer's normal form: `^1.2` is `[>= 1.2.0.0-dev < 2.0.0.0-dev]`.
///
/// ```
/// use larder_composer::constraint::Constraint;
/// use larder_composer::version::Version;
/// let constraint = Constraint::parse("^1.2 || dev-main")?;
/// assert!(constraint.matches(&Version::parse("1.9.3")?));
/// assert!(!constraint.matches(&Version::parse("2.0.0-alpha1")?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constraint {
    /// `*`
    Any,
    /// One operator and one version.
    Compare(Operator, Version),
    /// All of them: `>=1.0 <2.0`. At least two.
    All(Vec<Constraint>),
    /// One of them: `^1.0 || ^2.0`. At least two.
    Either(Vec<Constraint>),
}

impl Constraint {
    /// Reads a constraint.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        if text.len() > MAX_LENGTH {
            return Err(ConstraintError::TooLong(text.len()));
        }
        let trimmed = text.trim_matches([' ', '\n', '\r', '\t', '\x0b', '\0']);
        let start = text.find(trimmed).unwrap_or(0);
        let mut alternatives = Vec::new();
        for (at, alternative) in split_or(trimmed) {
            let mut parts = Vec::new();
            for (within, part) in split_and(alternative) {
                let found = parse_part(part).map_err(|problem| ConstraintError::Part {
                    constraint: text.to_owned(),
                    part: part.to_owned(),
                    offset: start + at + within,
                    problem,
                })?;
                parts.extend(found);
            }
            alternatives.push(one_or(parts, Self::All));
        }
        Ok(one_or(join_adjacent(alternatives), Self::Either))
    }

    /// Reads a constraint of a package whose own version is `own_version` (as written), which `self.version` names.
    pub fn parse_link(text: &str, own_version: &str) -> Result<Self, ConstraintError> {
        Self::parse(if text == SELF_VERSION { own_version } else { text })
    }

    /// Whether the version is allowed.
    #[must_use]
    pub fn matches(&self, version: &Version) -> bool {
        match self {
            Self::Any => true,
            Self::Compare(operator, bound) => operator.holds(version, bound),
            Self::All(parts) => parts.iter().all(|part| part.matches(version)),
            Self::Either(parts) => parts.iter().any(|part| part.matches(version)),
        }
    }

    /// Whether some version can be allowed by both, as for a requirement and what another package provides.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Either(parts), _) => parts.iter().any(|part| other.intersects(part)),
            (_, Self::Either(_)) => other.intersects(self),
            (Self::All(parts), _) => parts.iter().all(|part| other.intersects(part)),
            (_, Self::All(_)) => other.intersects(self),
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Compare(left, a), Self::Compare(right, b)) => both_hold((*left, a), (*right, b)),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, separator) = match self {
            Self::Any => return f.write_str("*"),
            Self::Compare(operator, version) => {
                return write!(f, "{} {}", operator.as_str(), version.normalized());
            }
            Self::All(parts) => (parts, " "),
            Self::Either(parts) => (parts, " || "),
        };
        f.write_str("[")?;
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                f.write_str(separator)?;
            }
            write!(f, "{part}")?;
        }
        f.write_str("]")
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Whether one version can stand in both comparisons.
fn both_hold(required: (Operator, &Version), provided: (Operator, &Version)) -> bool {
    let (operator, version) = required;
    let (other_operator, other_version) = provided;
    let not_equal = (operator == Operator::NotEqual, other_operator == Operator::NotEqual);
    match not_equal {
        (true, true) => true,
        (true, false) => all_but_one(version, other_operator, other_version),
        (false, true) => all_but_one(other_version, operator, version),
        (false, false) if operator == Operator::Equal => other_operator.holds(version, other_version),
        (false, false) if other_operator == Operator::Equal => operator.holds(other_version, version),
        // Two half-lines in one direction always meet, unless one hangs on a branch, which has no place on the line.
        (false, false) if operator.direction() == other_operator.direction() => {
            !version.is_named_branch() && !other_version.is_named_branch()
        }
        (false, false) => {
            let inclusive = |side| matches!(side, Operator::LessOrEqual | Operator::GreaterOrEqual);
            operator.holds(other_version, version)
                && (inclusive(other_operator) || !inclusive(operator) || version.compare(other_version).is_ne())
        }
    }
}

/// Whether `!=excluded` leaves anything of the other comparison: always, unless that allows one version only, or none.
fn all_but_one(excluded: &Version, operator: Operator, version: &Version) -> bool {
    match operator {
        Operator::Equal => Operator::NotEqual.holds(version, excluded),
        _ => !version.is_named_branch(),
    }
}

fn one_or(mut parts: Vec<Constraint>, many: fn(Vec<Constraint>) -> Constraint) -> Constraint {
    if parts.len() == 1 { parts.remove(0) } else { many(parts) }
}

/// `[>=1 <2] || [>=2 <3]` is `[>=1 <3]`.
fn join_adjacent(alternatives: Vec<Constraint>) -> Vec<Constraint> {
    let mut joined: Vec<Constraint> = Vec::with_capacity(alternatives.len());
    for right in alternatives {
        if let (Some(Constraint::All(left)), Constraint::All(right)) = (joined.last_mut(), &right)
            && let [Constraint::Compare(Operator::GreaterOrEqual, _), Constraint::Compare(Operator::Less, end)] =
                left.as_slice()
            && let [Constraint::Compare(Operator::GreaterOrEqual, begin), upper @ Constraint::Compare(bound, _)] =
                right.as_slice()
            && bound.direction() == Ordering::Less
            && end == begin
        {
            left[1] = upper.clone();
        } else {
            joined.push(right);
        }
    }
    joined
}

/// The alternatives between `|` or `||`, with their offsets.
fn split_or(text: &str) -> Vec<(usize, &str)> {
    let mut alternatives = Vec::new();
    let mut start = 0;
    while let Some(bar) = text[start..].find('|').map(|at| start + at) {
        alternatives.push((start, text[start..bar].trim_end_matches(is_space)));
        let after = &text[bar + 1..];
        let rest = after.strip_prefix('|').unwrap_or(after);
        start = text.len() - rest.trim_start_matches(is_space).len();
    }
    alternatives.push((start, &text[start..]));
    alternatives
}

/// The parts between commas or spaces, with their offsets. The spaces of `1.0 - 2.0`, of `dev-main as 1.0` and behind
/// an operator do not separate.
fn split_and(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 1;
    while at < text.len() {
        match separator_end(text, at) {
            Some(end) => {
                parts.push((start, &text[start..at]));
                start = end;
                at = end.max(at + 1);
            }
            None => at += 1,
        }
    }
    parts.push((start, &text[start..]));
    parts
}

/// Where the separator that begins at `at` ends, if one does. The longest run of spaces is tried first on both sides
/// of the comma or space that separates, then shorter ones.
fn separator_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let before = &bytes[..at];
    if before.ends_with(b"as") || matches!(before.last(), Some(b'=' | b'>' | b'<' | b' ' | b',')) {
        return None;
    }
    let spaces = |from: usize| bytes[from..].iter().take_while(|b| **b == b' ').count();
    (at..=at + spaces(at)).rev().find_map(|separator| {
        let next = separator + 1;
        let separates = matches!(bytes.get(separator), Some(b',' | b' '))
            && bytes[separator - 1] != b'-'
            && bytes.get(next) != Some(&b'-');
        if !separates {
            return None;
        }
        (next..=next + spaces(next)).rev().find(|end| {
            let rest = &bytes[*end..];
            !rest.is_empty() && !rest.starts_with(b",") && !rest.starts_with(b"as")
        })
    })
}

fn parse_part(part: &str) -> Result<Vec<Constraint>, Problem> {
    checked(part)?;
    let part = without_alias(part);
    let (part, flag) = match stability_flag(part) {
        Some((before, _)) if before.contains(is_comma_or_space) => (part, None),
        Some((before, flag)) => (if before.is_empty() { "*" } else { before }, Some(flag)),
        None => (part, None),
    };
    let part = without_commit(part);
    if part.is_empty() {
        return Err(Problem::Empty);
    }
    if let Some(everything) = wildcard(part) {
        return Ok(vec![everything]);
    }
    for range in [tilde, caret, wildcard_range, hyphen_range] {
        if let Some(bounds) = range(part)? {
            return Ok(bounds);
        }
    }
    comparison(part, flag.filter(|flag| *flag != "stable")).map(|found| vec![found])
}

/// `dev-main#abc123` is `dev-main`: the commit is the concern of the project that wrote it.
fn without_commit(part: &str) -> &str {
    let cut = |end: usize| {
        let (before, behind) = part.split_at_checked(end)?;
        (behind.len() > 1 && !before.contains(|c| c == '@' || is_comma_or_space(c))).then_some(before)
    };
    let named = || {
        strip_prefix_ignore_case(part, "dev-")?;
        let bytes = part.as_bytes().get(5..)?;
        cut(5 + bytes.iter().position(|b| *b == b'#')?)
    };
    let numeric = || {
        let small = part.to_ascii_lowercase();
        let (at, _) = small.match_indices(".x-dev#").find(|(at, _)| *at > 0)?;
        cut(at + ".x-dev".len())
    };
    named().or_else(numeric).unwrap_or(part)
}

/// `*` is everything; `v*` and `*.*` are everything with a number.
fn wildcard(part: &str) -> Option<Constraint> {
    let bare = without_v(part);
    let all_wild = bare.split('.').all(|piece| matches!(piece, "x" | "X" | "*"));
    all_wild.then(|| {
        if part.len() == 1 { Constraint::Any } else { compare(Operator::GreaterOrEqual, "0.0.0.0-dev".to_owned()) }
    })
}

type Bounds = Option<Vec<Constraint>>;

/// `~1.2` allows the last written number to rise: `>=1.2 <2.0`, `~1.2.3` is `>=1.2.3 <1.3`.
fn tilde(part: &str) -> Result<Bounds, Problem> {
    let Some(rest) = part.strip_prefix('~') else {
        return Ok(None);
    };
    if rest.strip_prefix('>').and_then(Partial::read).is_some() {
        return Err(Problem::TildeArrow);
    }
    let Some(partial) = Partial::read(rest) else {
        return Ok(None);
    };
    let written = partial.numbers.iter().rposition(|number| !number.is_empty()).unwrap_or(0) + 1;
    // `~2.0.x-dev` counts its x as a number.
    let position = written + usize::from(partial.wildcard_dev);
    partial.range(rest, position.saturating_sub(1).max(1)).map(Some)
}

/// `^1.2` allows everything up to the next breaking version: the leftmost number that is not 0 stays.
fn caret(part: &str) -> Result<Bounds, Problem> {
    let Some((rest, partial)) = part.strip_prefix('^').and_then(|rest| Some((rest, Partial::read(rest)?))) else {
        return Ok(None);
    };
    let position = match partial.numbers {
        ["0", "0", third, _] if !third.is_empty() => 3,
        ["0", second, ..] if !second.is_empty() => 2,
        _ => 1,
    };
    partial.range(rest, position).map(Some)
}

/// `1.2.*`
fn wildcard_range(part: &str) -> Result<Bounds, Problem> {
    let Some((first, mut rest)) = take_digits(part.strip_prefix('v').unwrap_or(part)) else {
        return Ok(None);
    };
    let mut numbers = [first, "", "", ""];
    let mut position = 1;
    while position < 3
        && let Some((number, after)) = rest.strip_prefix('.').and_then(take_digits)
    {
        numbers[position] = number;
        position += 1;
        rest = after;
    }
    let wild = rest.strip_prefix('.').is_some_and(|rest| rest.split('.').all(|piece| matches!(piece, "x" | "X" | "*")));
    if !wild {
        return Ok(None);
    }
    let low = counted_on(numbers, position, 0)? + "-dev";
    let high = compare(Operator::Less, counted_on(numbers, position, 1)? + "-dev");
    Ok(Some(if low == "0.0.0.0-dev" { vec![high] } else { vec![compare(Operator::GreaterOrEqual, low), high] }))
}

/// `1.0 - 2.0`: both ends belong to it, and a short second version stands for everything that begins like it.
fn hyphen_range(part: &str) -> Result<Bounds, Problem> {
    let ends = || {
        let (from, rest) = part.split_once(' ')?;
        let rest = rest.trim_start_matches(' ').strip_prefix("- ")?;
        let to = rest.trim_start_matches(' ');
        Some((from, Partial::read(from)?, to, Partial::read(to)?))
    };
    let Some((from, low, to, high)) = ends() else {
        return Ok(None);
    };
    let low = compare(Operator::GreaterOrEqual, normalize(from)? + low.suffix());
    let end = normalize(to)?;
    let complete = !high.numbers[1].is_empty() && !high.numbers[2].is_empty();
    let high = if complete || high.suffix().is_empty() {
        compare(Operator::LessOrEqual, end)
    } else {
        let position = if high.numbers[1].is_empty() { 1 } else { 2 };
        compare(Operator::Less, counted_on(high.numbers, position, 1)? + "-dev")
    };
    Ok(Some(vec![low, high]))
}

/// `>=1.2`, `!=1.3.0`, `dev-main`, `1.2.3`.
fn comparison(part: &str, flag: Option<&str>) -> Result<Constraint, Problem> {
    let (operator, rest) = Operator::take(part);
    let operator = operator.unwrap_or(Operator::Equal);
    let written = rest.trim_start_matches(is_space);
    let mut version = normalize(written).or_else(|error| match named_branch(written) {
        Some(branch) => normalize(&format!("dev-{branch}")),
        None => Err(error),
    })?;
    let stable = || Stability::of(&version) == Stability::Stable;
    match (operator, flag) {
        (Operator::Equal, _) => {}
        (_, Some(flag)) if stable() => {
            version.push('-');
            version.push_str(flag);
        }
        (Operator::Less | Operator::GreaterOrEqual, _)
            if !written.starts_with("dev-") && !ends_in_dashed_modifier(written) =>
        {
            version.push_str("-dev");
        }
        _ => {}
    }
    Ok(compare(operator, version))
}

/// `feature-dev` has always been taken for `dev-feature`.
fn named_branch(written: &str) -> Option<&str> {
    let simple = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'/');
    written.strip_suffix("-dev").filter(|name| name.bytes().all(simple))
}

fn compare(operator: Operator, normalized: String) -> Constraint {
    Constraint::Compare(operator, Version::from_normalized(normalized.clone(), normalized))
}

/// A version in a range: one to four numbers (absent ones are empty) and what follows them.
struct Partial<'a> {
    numbers: [&'a str; 4],
    modifier: Modifier<'a>,
    wildcard_dev: bool,
}

impl<'a> Partial<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (first, mut rest) = take_digits(without_v(text))?;
        let mut numbers = [first, "", "", ""];
        for number in &mut numbers[1..] {
            let Some((found, after)) = rest.strip_prefix('.').and_then(take_digits) else {
                break;
            };
            *number = found;
            rest = after;
        }
        let (modifier, after) = take_modifier(rest);
        if is_build_or_end(after) {
            return Some(Self { numbers, modifier, wildcard_dev: false });
        }
        let after = rest.strip_prefix('.')?.strip_prefix(['x', 'X', '*'])?;
        let after = after.strip_prefix(['.', '-']).unwrap_or(after);
        let after = strip_prefix_ignore_case(after, "dev")?;
        is_build_or_end(after).then_some(Self { numbers, modifier: Modifier::default(), wildcard_dev: true })
    }

    /// A bound without a stability of its own lets the unstable versions of its number in.
    fn suffix(&self) -> &'static str {
        let plain = self.modifier.stability.is_empty() && !self.modifier.dev && !self.wildcard_dev;
        if plain { "-dev" } else { "" }
    }

    /// From this version up to where the number at `position` (the first is 1) is one higher.
    fn range(&self, written: &str, position: usize) -> Result<Vec<Constraint>, Problem> {
        let low = normalize(&format!("{written}{}", self.suffix()))?;
        let high = counted_on(self.numbers, position, 1)? + "-dev";
        Ok(vec![compare(Operator::GreaterOrEqual, low), compare(Operator::Less, high)])
    }
}

fn is_build_or_end(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix('+').is_some_and(|build| !build.is_empty() && !build.contains(is_space))
}

/// The numbers up to `position` (the first is 1), that one raised by `by`, and zeros behind it.
fn counted_on(numbers: [&str; 4], position: usize, by: u64) -> Result<String, Problem> {
    let mut counted = Vec::with_capacity(numbers.len());
    for (index, number) in numbers.into_iter().enumerate() {
        counted.push(match (index + 1).cmp(&position) {
            Ordering::Less => number.to_owned(),
            Ordering::Equal if by == 0 => number.to_owned(),
            Ordering::Equal => u64::from_str(number)
                .ok()
                .and_then(|number| number.checked_add(by))
                .ok_or_else(|| Problem::NumberTooLarge(number.to_owned()))?
                .to_string(),
            Ordering::Greater => "0".to_owned(),
        });
    }
    Ok(counted.join("."))
}
