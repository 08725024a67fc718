//! What the branches and tags of a Git repository become: which version, under which alias, or why none.
//!
//! What this is not: reading the repository or the manifest. It sees names, and what a manifest says about its version.
//!
//! Written after Composer's `VcsRepository.php` (tags, branches), `ArrayLoader::getBranchAlias` and the alias checks of
//! `ValidatingArrayLoader.php`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::constraint::{Constraint, ConstraintError};
use crate::version::{
    DEFAULT_BRANCH_ALIAS, Version, VersionError, normalize, normalize_branch, numeric_alias_prefix,
    strip_prefix_ignore_case, strip_suffix_ignore_case, with_wildcard,
};

/// Why a tag or a branch gives no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// The name of the tag cannot be read as a version.
    #[error("the tag is not a version: {0}")]
    TagName(VersionError),
    /// Tags are for releases; development versions are branches.
    #[error("the tag is `{0}`, but a tag cannot be a development version (`dev-` in front or `dev` behind)")]
    DevelopmentTag(String),
    /// The manifest of the tag has a `version` that cannot be read.
    #[error("the manifest of the tag says a `version` that is none: {0}")]
    DeclaredVersion(VersionError),
    /// The manifest of the tag has another `version` than the tag.
    #[error(
        "the tag ({tag}) and the `version` in its manifest ({declared}) differ: remove `version` from the manifest"
    )]
    Mismatch {
        /// The version of the tag, normalised.
        tag: String,
        /// The version of the manifest, normalised.
        declared: String,
    },
    /// Two tags, or two branches, are the same version; the first one counts.
    #[error("it is the same version as `{other}`: both are {normalized}")]
    SameAs {
        /// The version of the other one, as written.
        other: String,
        /// Their version, normalised.
        normalized: String,
    },
    /// The name of the branch is too long or has control characters.
    #[error("the branch is not a version: {0}")]
    BranchName(VersionError),
    /// No client could ever ask for the branch.
    #[error("the name of the branch cannot be written in a constraint: {0}")]
    BranchConstraint(ConstraintError),
}

/// The version of a branch: `1.x` is `1.x-dev`, `v2` is `v2.x-dev`, `main` is `dev-main`, `foo#bar` is `dev-foo+bar`.
pub fn version_of_branch(name: &str) -> Result<Version, Skip> {
    let normalized = normalize_branch(name).map_err(Skip::BranchName)?;
    Constraint::parse(&normalized).map_err(Skip::BranchConstraint)?;
    if normalized.starts_with("dev-") {
        // A `#` would begin a commit in a constraint.
        let pretty = format!("dev-{}", name.replace('#', "+"));
        return Ok(Version::from_normalized(pretty, normalized.replace('#', "+")));
    }
    let prefix = if name.starts_with('v') { "v" } else { "" };
    let pretty = format!("{prefix}{}", with_wildcard(&normalized));
    Ok(Version::from_normalized(pretty, normalized))
}

/// The version of a tag whose manifest declares the given `version`, if it declares one.
///
/// ```
/// use larder_composer::branch::{Skip, version_of_tag};
/// assert_eq!(version_of_tag("v1.2", None)?.normalized(), "1.2.0.0");
/// assert!(matches!(version_of_tag("v1.2", Some("1.3.0")), Err(Skip::Mismatch { .. })));
/// # Ok::<(), Skip>(())
/// ```
pub fn version_of_tag(tag: &str, declared: Option<&str>) -> Result<Version, Skip> {
    let tag = tag.replace("release-", "");
    let of_tag = normalize(&tag).map_err(Skip::TagName)?;
    if without_dev(&of_tag) != of_tag {
        return Err(Skip::DevelopmentTag(of_tag));
    }
    let Some(declared) = declared else {
        return Ok(Version::from_normalized(without_dev_behind(&tag), of_tag));
    };
    let normalized = normalize(declared).map_err(Skip::DeclaredVersion)?;
    let normalized = without_dev(&normalized);
    if normalized != of_tag {
        return Err(Skip::Mismatch { tag: of_tag, declared: normalized.to_owned() });
    }
    Ok(Version::from_normalized(without_dev_behind(declared), of_tag))
}

/// The versions of all tags (name, declared version) of one package, in their order. Of two tags with the same version
/// (`1.0` and `v1.0.0`) the first counts; Git lists tags by name.
pub fn versions_of_tags<'a>(tags: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Vec<Result<Version, Skip>> {
    first_of_each(tags.into_iter().map(|(tag, declared)| version_of_tag(tag, declared)), |version| {
        version.place().clone()
    })
}

/// The versions of all branches of one package, in their order. Of two branches with the same version (`1.x` and `1`)
/// the first counts; Composer puts the default branch first.
pub fn versions_of_branches<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Result<Version, Skip>> {
    first_of_each(names.into_iter().map(version_of_branch), |version| version.normalized().to_owned())
}

fn first_of_each<K: Ord>(
    versions: impl Iterator<Item = Result<Version, Skip>>,
    key: fn(&Version) -> K,
) -> Vec<Result<Version, Skip>> {
    let mut taken: BTreeMap<K, String> = BTreeMap::new();
    versions
        .map(|version| {
            let version = version?;
            match taken.entry(key(&version)) {
                Entry::Occupied(other) => {
                    Err(Skip::SameAs { other: other.get().clone(), normalized: version.normalized().to_owned() })
                }
                Entry::Vacant(free) => {
                    free.insert(version.pretty().to_owned());
                    Ok(version)
                }
            }
        })
        .collect()
}

fn without_dev(normalized: &str) -> &str {
    let rest = strip_prefix_ignore_case(normalized, "dev-").unwrap_or(normalized);
    without_dev_behind(rest)
}

fn without_dev_behind(version: &str) -> &str {
    match strip_suffix_ignore_case(version, "dev") {
        Some(rest) => rest.strip_suffix(['.', '-']).unwrap_or(rest),
        None => version,
    }
}

/// Why an entry of `extra.branch-alias` has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AliasProblem {
    /// An alias is a development version.
    #[error("the alias must end in -dev")]
    NotDevelopment,
    /// An alias is a number.
    #[error("the alias must be a number like 2.0-dev or 2.x-dev")]
    NotNumeric,
    /// A numeric branch can only be an alias of a part of itself: `4.x-dev` of `4.1.x-dev`, not of `3.x-dev`.
    #[error("the alias must begin with the number of its branch")]
    OtherNumber,
}

/// The alias that `extra.branch-alias` gives with `"branch": "target"`.
pub fn checked_alias(branch: &str, target: &str) -> Result<Version, AliasProblem> {
    let name = target.strip_suffix("-dev").ok_or(AliasProblem::NotDevelopment)?;
    let normalized = if target == DEFAULT_BRANCH_ALIAS {
        target.to_owned()
    } else {
        normalize_branch(name).map_err(|_| AliasProblem::NotNumeric)?
    };
    if !normalized.ends_with("-dev") {
        return Err(AliasProblem::NotNumeric);
    }
    match (numeric_alias_prefix(branch), numeric_alias_prefix(target)) {
        (Some(source), Some(target)) if !target.starts_with(&source) => {
            return Err(AliasProblem::OtherNumber);
        }
        _ => {}
    }
    Ok(Version::from_normalized(with_wildcard(&normalized), normalized))
}

/// The second version under which a development version is known, if there is one.
///
/// `version` is the version as written (`dev-main`); `aliases` are the text entries of `extra.branch-alias`. The first
/// valid entry for the version counts. Without one, the default branch is [`DEFAULT_BRANCH_ALIAS`], unless it has a
/// number.
pub fn alias<'a>(
    version: &str,
    aliases: impl IntoIterator<Item = (&'a str, &'a str)>,
    is_default_branch: bool,
) -> Option<Version> {
    if !version.starts_with("dev-") && !version.ends_with("-dev") {
        return None;
    }
    let declared = aliases
        .into_iter()
        .filter(|(branch, _)| branch.eq_ignore_ascii_case(version))
        .find_map(|(branch, target)| checked_alias(branch, target).ok());
    let has_number = || {
        let number = version.strip_prefix('v').unwrap_or(version);
        numeric_alias_prefix(number).is_some()
    };
    declared.or_else(|| {
        (is_default_branch && !has_number())
            .then(|| Version::from_normalized(DEFAULT_BRANCH_ALIAS, DEFAULT_BRANCH_ALIAS))
    })
}
