//! Composer's version rules against its own test suites, written out as data in `vectors/`: one JSON file for each
//! question, one row for each case, and `null` for what Composer refuses. Rows noted as beyond the suite, and all tags
//! and branches, were answered by composer/semver 3.4 and by Composer 2.10's `VcsRepository` themselves.
//!
//! Every test runs all of its rows and then reports every one that failed.

use std::collections::BTreeSet;
use std::fmt::Debug;

use larder_composer::branch::{self, Skip};
use larder_composer::constraint::{Constraint, ConstraintError, Operator};
use larder_composer::names::{self, NameError};
use larder_composer::version::{self, MAX_LENGTH, Stability, Version, VersionError};
use proptest::prelude::*;
use serde_json::Value;

macro_rules! rows {
    ($name:literal) => {
        serde_json::from_str::<Vec<Value>>(include_str!(concat!("vectors/", $name, ".json")))
            .expect("the vectors are JSON lists")
    };
}

/// Collects what failed, and speaks of all of it at the end.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn check<T: PartialEq + Debug>(&mut self, row: &Value, expected: &T, found: &T) {
        if expected != found {
            self.0.push(format!("{row}\n    found {found:?}"));
        }
    }

    fn finish(self) {
        assert!(self.0.is_empty(), "{} rows failed:\n{}", self.0.len(), self.0.join("\n"));
    }
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("`{key}` is a text in {row}"))
}

/// Runs a question with one text for input and one text, or a refusal, for answer.
fn answers(rows: Vec<Value>, answer: impl Fn(&str) -> Option<String>) {
    let mut report = Report::default();
    for row in rows {
        let expected = row["expected"].as_str().map(str::to_owned);
        report.check(&row, &expected, &answer(text(&row, "input")));
    }
    report.finish();
}

#[test]
fn versions_are_normalised() {
    answers(rows!("versions"), |input| version::normalize(input).ok());
}

#[test]
fn branches_are_normalised() {
    answers(rows!("normalized-branches"), |input| version::normalize_branch(input).ok());
}

#[test]
fn stabilities_are_recognised() {
    answers(rows!("stabilities"), |input| Some(Stability::of(input).to_string()));
    answers(rows!("stability-names"), |input| input.parse::<Stability>().ok().map(|known| known.to_string()));
}

#[test]
fn numeric_branches_have_a_prefix() {
    answers(rows!("numeric-prefixes"), version::numeric_alias_prefix);
}

#[test]
fn constraints_are_read() {
    answers(rows!("constraints"), |input| Constraint::parse(input).ok().map(|read| read.to_string()));
}

#[test]
fn constraints_match_versions() {
    let mut report = Report::default();
    for row in rows!("satisfies") {
        let constraint = Constraint::parse(text(&row, "constraint"));
        let version = Version::parse(text(&row, "version"));
        let found = constraint.ok().zip(version.ok()).map(|(constraint, version)| constraint.matches(&version));
        report.check(&row, &row["expected"].as_bool(), &found);
    }
    report.finish();
}

fn operator(text: &str) -> Operator {
    match text {
        "=" | "==" => Operator::Equal,
        "!=" | "<>" => Operator::NotEqual,
        "<" => Operator::Less,
        "<=" => Operator::LessOrEqual,
        ">" => Operator::Greater,
        ">=" => Operator::GreaterOrEqual,
        other => panic!("{other} is no operator"),
    }
}

#[test]
fn versions_are_compared() {
    let mut report = Report::default();
    for row in rows!("comparisons") {
        let version = |side| Version::from_normalized(text(&row, side), text(&row, side));
        let found = operator(text(&row, "operator")).holds_in_a_listing(&version("left"), &version("right"));
        report.check(&row, &row["expected"].as_bool(), &Some(found));
    }
    report.finish();
}

#[test]
fn versions_are_sorted() {
    let mut report = Report::default();
    for row in rows!("sorted") {
        let list = |key: &str| -> Vec<String> {
            let items = row[key].as_array().expect("a list");
            items.iter().map(|item| item.as_str().expect("a version").to_owned()).collect()
        };
        let mut versions: Vec<_> =
            list("input").iter().map(|input| Version::parse(input).expect("a version")).collect();
        let pretty = |versions: &[Version]| -> Vec<String> {
            versions.iter().map(|version| version.pretty().to_owned()).collect()
        };
        versions.sort();
        report.check(&row, &list("oldest-first"), &pretty(&versions));
        versions.reverse();
        report.check(&row, &list("newest-first"), &pretty(&versions));
    }
    report.finish();
}

/// `"> 1.0"`, `"*"`, `{"all": […]}` or `{"either": […]}`, with versions as they are.
fn raw_constraint(value: &Value) -> Constraint {
    let parts = |parts: &Value| parts.as_array().expect("a list").iter().map(raw_constraint).collect();
    match value {
        Value::String(all) if all == "*" => Constraint::Any,
        Value::String(comparison) => {
            let (sign, version) = comparison.split_once(' ').expect("an operator and a version");
            Constraint::Compare(operator(sign), Version::from_normalized(version, version))
        }
        Value::Object(group) if group.contains_key("all") => Constraint::All(parts(&group["all"])),
        Value::Object(group) => Constraint::Either(parts(&group["either"])),
        other => panic!("{other} is no constraint"),
    }
}

#[test]
fn constraints_meet() {
    let mut report = Report::default();
    for row in rows!("intersections") {
        let (required, provided) = (raw_constraint(&row["required"]), raw_constraint(&row["provided"]));
        let found = [required.intersects(&provided), provided.intersects(&required)].map(Some);
        report.check(&row, &[row["expected"].as_bool(); 2], &found);
    }
    report.finish();
}

#[test]
fn every_comparison_meets_those_it_should() {
    let mut report = Report::default();
    let rows = rows!("intersection-matrix");
    let all: Vec<&str> = rows.iter().map(|row| text(row, "required")).collect();
    for row in &rows {
        let met = row["met-by"].as_array().expect("a list");
        let expected: BTreeSet<&str> = met.iter().filter_map(Value::as_str).collect();
        let required = raw_constraint(&row["required"]);
        let meets = |provided: &&str| required.intersects(&raw_constraint(&Value::from(*provided)));
        report.check(row, &expected, &all.iter().copied().filter(meets).collect());
    }
    report.finish();
}

fn kind_of_skip(skip: &Skip) -> &'static str {
    match skip {
        Skip::TagName(_) => "tag-name",
        Skip::DevelopmentTag(_) => "development",
        Skip::DeclaredVersion(_) => "declared",
        Skip::Mismatch { .. } => "mismatch",
        Skip::SameAs { .. } => "same-as",
        Skip::BranchName(_) | Skip::BranchConstraint(_) => "branch",
    }
}

fn both_texts(version: &Version) -> (String, String) {
    (version.pretty().to_owned(), version.normalized().to_owned())
}

#[test]
fn tags_become_versions() {
    let mut report = Report::default();
    for row in rows!("tags") {
        let tags = row["tags"].as_array().expect("a list of tags");
        let found = branch::versions_of_tags(tags.iter().map(|tag| (text(tag, "tag"), tag["declared"].as_str())));
        for (tag, found) in tags.iter().zip(found) {
            let expected = match tag["skipped"].as_str() {
                Some(skipped) => Err(skipped),
                None => Ok((text(tag, "pretty").to_owned(), text(tag, "normalized").to_owned())),
            };
            let found = found.as_ref().map(both_texts).map_err(kind_of_skip);
            report.check(&row, &expected, &found);
        }
    }
    report.finish();
}

#[test]
fn branches_become_versions() {
    let mut report = Report::default();
    for row in rows!("branches") {
        let expected = row["pretty"].as_str().map(|pretty| (pretty.to_owned(), text(&row, "normalized").to_owned()));
        let found = branch::version_of_branch(text(&row, "branch")).ok();
        report.check(&row, &expected, &found.as_ref().map(both_texts));
    }
    report.finish();
}

#[test]
fn of_two_branches_with_one_version_the_first_counts() {
    let found = branch::versions_of_branches(["1.x", "1", "main", "v1.x"]);
    let kinds: Vec<_> = found.iter().map(|found| found.as_ref().map(Version::pretty).map_err(kind_of_skip)).collect();
    assert_eq!(kinds, [Ok("1.x-dev"), Err("same-as"), Ok("dev-main"), Err("same-as")]);
}

#[test]
fn branches_have_aliases() {
    let mut report = Report::default();
    for row in rows!("aliases") {
        let declared = row["branch-alias"].as_array().expect("a list of pairs");
        let declared =
            declared.iter().map(|pair| (pair[0].as_str().expect("a branch"), pair[1].as_str().expect("a target")));
        let is_default = row["default-branch"].as_bool().expect("a flag");
        let expected = row["expected"]
            .is_object()
            .then(|| (text(&row["expected"], "pretty").to_owned(), text(&row["expected"], "normalized").to_owned()));
        let found = branch::alias(text(&row, "version"), declared, is_default);
        report.check(&row, &expected, &found.as_ref().map(both_texts));
    }
    report.finish();
}

#[test]
fn names_are_checked() {
    let mut report = Report::default();
    for row in rows!("names") {
        let name = text(&row, "name");
        let found = if row["as"] == "link" { names::check_link(name) } else { names::check_package(name) };
        let (kind, suggestion) = match &found {
            Ok(()) => ("ok", None),
            Err(NameError::Shape(_)) => ("shape", None),
            Err(NameError::Reserved { .. }) => ("reserved", None),
            Err(NameError::JsonSuffix(_)) => ("json-suffix", None),
            Err(NameError::Capitals { suggestion, .. }) => ("capitals", Some(suggestion.as_str())),
            Err(NameError::TooLong(_)) => ("too-long", None),
            Err(NameError::Platform(_)) => ("platform", None),
        };
        report.check(&row, &(text(&row, "expected"), row["suggestion"].as_str()), &(kind, suggestion));
    }
    report.finish();
}

#[test]
fn the_platform_is_recognised_and_never_a_package() {
    let mut report = Report::default();
    for row in rows!("platform") {
        let name = text(&row, "name");
        report.check(&row, &row["expected"].as_bool(), &Some(names::is_platform(name)));
        if names::is_platform(name) {
            report.check(&row, &Ok(()), &names::check_link(name));
            report.check(&row, &Err(NameError::Platform(name.to_owned())), &names::check_package(name));
        }
    }
    report.finish();
}

#[test]
fn bin_paths_stay_inside() {
    let mut report = Report::default();
    for row in rows!("bins") {
        report.check(&row, &row["expected"].as_str(), &names::check_bin(text(&row, "path")).ok());
    }
    report.finish();
    assert!(names::check_bin("").is_err());
    assert!(names::check_bin("/").is_err());
    assert!(names::check_bin("bin/a\nb").is_err());
}

#[test]
fn errors_say_what_and_where() {
    let error = Constraint::parse(" ^1.0 || ~2.x, >=foo").expect_err("both are wrong");
    assert_eq!(
        error.to_string(),
        "cannot read `~2.x` in the constraint ` ^1.0 || ~2.x, >=foo` (at byte 9): `~2.x` is not a version: expected \
         numbers like 1.2.3 or 1.2.3-beta1, a date, or a branch like dev-main"
    );
    let error = Constraint::parse("^1.0 ||").expect_err("the end is missing");
    assert!(error.to_string().ends_with("(at byte 7): a constraint is missing here"), "{error}");
    let error = Constraint::parse("~>1.2").expect_err("another operator");
    assert!(error.to_string().ends_with("there is no operator `~>`, use `~`"), "{error}");
    let error = Constraint::parse("~1.99999999999999999999.0").expect_err("a range of huge numbers");
    assert!(error.to_string().ends_with("the number 99999999999999999999 is too large for a range"), "{error}");
    let error = branch::version_of_tag("1.0.0", Some("1.1")).expect_err("they differ");
    assert!(error.to_string().starts_with("the tag (1.0.0.0) and the `version` in its manifest (1.1.0.0) differ"));
}

#[test]
fn self_version_is_the_version_of_the_package() {
    let own = Constraint::parse_link("self.version", "1.x-dev").expect("a version is a constraint");
    assert_eq!(own.to_string(), "== 1.9999999.9999999.9999999-dev");
    assert!(Constraint::parse("self.version").is_err());
}

#[test]
fn long_texts_and_control_characters_are_refused() {
    let long = "1".repeat(MAX_LENGTH + 1);
    assert_eq!(version::normalize(&long), Err(VersionError::TooLong(MAX_LENGTH + 1)));
    assert_eq!(Constraint::parse(&long), Err(ConstraintError::TooLong(MAX_LENGTH + 1)));
    assert!(matches!(branch::version_of_branch(&long), Err(Skip::BranchName(_))));
    assert!(matches!(names::check_package(&long), Err(NameError::TooLong(_))));
    assert!(matches!(version::normalize("dev-a\nb"), Err(VersionError::ControlCharacter(_))));
    assert!(matches!(Constraint::parse("dev-a\0b || ^1"), Err(ConstraintError::Part { .. })));
    assert!(Constraint::parse("^1\n||\n^2").is_ok());
}

/// Texts of the pieces that the grammar knows, so that most of them come close to something valid.
fn nearly_valid() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "0", "1", "2", "10", "2010", "01", ".", ".", ".", "-", "_", " ", " ", ",", "|", "||", "~", "^", ">", "<", "=",
        "!", "@", "#", "+", "*", "x", "v", "as", " as ", "dev", "-dev", "dev-", ".x-dev", "alpha", "beta", "b", "RC",
        "p", "stable", "@dev", " - ", "/", ":", "é", "\t",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

fn asks_everything(text: &str) {
    let read = Version::parse(text);
    let constraint = Constraint::parse(text);
    if let (Ok(version), Ok(constraint)) = (&read, &constraint) {
        let _ = (constraint.matches(version), constraint.intersects(constraint));
    }
    let _ = (Stability::of(text), version::numeric_alias_prefix(text));
    let _ = branch::version_of_branch(text);
    let _ = branch::version_of_tag(text, Some(text));
    branch::alias(text, [(text, text)], true);
    let _ = (names::check_package(text), names::check_link(text), names::check_bin(text));
}

proptest! {
    #[test]
    fn nothing_panics_on_any_text(text in any::<String>()) {
        asks_everything(&text);
    }

    #[test]
    fn nothing_panics_on_nearly_valid_text(text in nearly_valid()) {
        asks_everything(&text);
    }

    #[test]
    fn nothing_panics_on_the_longest_repetitions(text in nearly_valid()) {
        let times = MAX_LENGTH / text.len().max(1);
        asks_everything(&text.repeat(times));
    }

    /// The normalised form of a version with four numbers is a version itself, and its own constraint. (Composer makes
    /// `2010.10` of the date 2010-10, but 2010.10.0.0 of that.)
    #[test]
    fn a_normalised_release_stays_as_it_is(text in nearly_valid()) {
        if let Ok(version) = Version::parse(&text)
            && !version.is_named_branch()
            && !version.normalized().contains("-stable")
            && version.normalized().split('-').next().map(|numbers| numbers.split('.').count()) == Some(4)
        {
            let again = version::normalize(version.normalized());
            prop_assert_eq!(again.as_deref(), Ok(version.normalized()));
            let own = Constraint::parse(version.normalized()).expect("a version is a constraint");
            prop_assert!(own.matches(&version));
        }
    }

    #[test]
    fn the_order_is_total(texts in prop::collection::vec(nearly_valid(), 3)) {
        let all: Vec<_> = texts.iter().map(|text| Version::from_normalized(text.clone(), text.clone())).collect();
        prop_assert_eq!(all[0].cmp(&all[1]), all[1].cmp(&all[0]).reverse());
        prop_assert_eq!(all[0].cmp(&all[1]).is_eq(), all[0] == all[1]);
        prop_assert_eq!(all[0].cmp(&all[1]), version::compare(all[0].normalized(), all[1].normalized()));
        if all[0] <= all[1] && all[1] <= all[2] {
            prop_assert!(all[0] <= all[2]);
        }
    }
}
