//! Policies: what is kept, what never moves, and how much there may be, for the repositories that a pattern names.
//!
//! Several patterns may name a repository. Each rule is taken from the longest pattern that says something about it.

use std::{sync::Arc, time::Duration};

use larder_core::{Error, Result, pattern::Pattern};
use larder_db::events::Actor;
use larder_sources::policies;
use serde::{Deserialize, Serialize};

use crate::{ID, Registry, usage};

/// How long an untagged manifest is kept if no policy says otherwise, in days.
pub const UNTAGGED_DAYS: u32 = 7;

/// The rules of a policy. What it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Tags that never move and are never deleted, as patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutable: Option<Vec<Pattern>>,
    /// How many tags are kept: those that moved last. Others go, unless they moved within `keep_days`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// For how many days tags are kept that did not move. Others go, unless they are among the last `keep_last`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_days: Option<u32>,
    /// Tags that are kept for ever and not counted, as patterns. Without `keep_last` and `keep_days` all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_tags: Option<Vec<Pattern>>,
    /// How many days after nothing refers to it any more a manifest goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untagged_days: Option<u32>,
    /// How many bytes all repositories of the pattern may have together, shared blobs counted once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// Whether manifests may refer to what is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<bool>,
}

impl Rules {
    /// Whether a tag never moves.
    pub fn is_immutable(&self, tag: &str) -> bool {
        self.immutable.iter().flatten().any(|pattern| pattern.matches(tag))
    }

    /// Whether a tag is kept for ever.
    pub fn keeps(&self, tag: &str) -> bool {
        self.keep_tags.iter().flatten().any(|pattern| pattern.matches(tag))
    }

    /// Whether tags go at all.
    pub fn limits_tags(&self) -> bool {
        self.keep_last.is_some() || self.keep_days.is_some()
    }

    /// How long a manifest is kept that nothing refers to; `otherwise` if the policies do not say.
    pub fn untagged(&self, otherwise: Duration) -> Duration {
        self.untagged_days.map_or(otherwise, days)
    }

    /// Takes from `other` what this does not say.
    fn or(self, other: &Self) -> Self {
        Self {
            immutable: self.immutable.or_else(|| other.immutable.clone()),
            keep_last: self.keep_last.or(other.keep_last),
            keep_days: self.keep_days.or(other.keep_days),
            keep_tags: self.keep_tags.or_else(|| other.keep_tags.clone()),
            untagged_days: self.untagged_days.or(other.untagged_days),
            quota: self.quota.or(other.quota),
            sparse: self.sparse.or(other.sparse),
        }
    }
}

impl policies::Rules for Rules {
    const FORMAT: &'static str = ID;

    fn check(&self, pattern: &Pattern) -> Result<()> {
        if *self == Self::default() {
            return Err(Error::invalid(format!(
                "a policy that says nothing changes nothing: give it a rule, or remove it with `larder oci policy remove '{pattern}'`"
            )));
        }
        if self.untagged_days == Some(0) {
            return Err(Error::invalid(
                "the manifests of an index come before the index, and would go before it is there: keep untagged manifests for 1 day at least",
            ));
        }
        if self.quota.is_some() && usage::names(pattern).is_none() {
            return Err(Error::invalid(format!(
                "a quota cannot be counted for `{pattern}`: use only * or only ** in its pattern"
            )));
        }
        Ok(())
    }
}

/// All policies, the longest pattern first. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<policies::Policies<Rules>>);

impl Policies {
    /// The rules for a repository.
    pub fn of(&self, name: &str) -> Rules {
        self.0.matching(name).fold(Rules::default(), |rules, (_, other)| rules.or(other))
    }

    /// The quota that counts for a repository, with the pattern for whose repositories it is together.
    pub fn quota_of(&self, name: &str) -> Option<(&Pattern, u64)> {
        self.0
            .iter()
            .filter(|(pattern, _)| pattern.matches(name))
            .find_map(|(pattern, rules)| Some((pattern, rules.quota?)))
    }

    /// Each pattern with its rules.
    pub fn iter(&self) -> impl Iterator<Item = &(Pattern, Rules)> {
        self.0.iter()
    }
}

impl Registry {
    /// All policies, as they were within the last second.
    pub async fn policies(&self) -> Result<Policies> {
        Ok(Policies(self.book.all().await?))
    }

    /// Makes a policy, or replaces all rules of the one with this pattern.
    pub async fn set_policy(&self, actor: &Actor, pattern: &Pattern, rules: &Rules) -> Result<()> {
        self.book.set(actor, pattern, rules).await
    }

    /// Takes a policy away, and gives the rules that it had.
    pub async fn remove_policy(&self, actor: &Actor, pattern: &Pattern) -> Result<Rules> {
        self.book.remove(actor, pattern).await
    }
}

/// A number of days as a length of time.
pub(crate) fn days(count: u32) -> Duration {
    Duration::from_secs(u64::from(count) * 86_400)
}

#[cfg(test)]
mod tests {
    use larder_sources::policies::Rules as _;

    use super::*;

    fn policies(all: &[(&str, &str)]) -> Policies {
        let parse = |(pattern, rules): &(&str, &str)| (pattern.parse().unwrap(), serde_json::from_str(rules).unwrap());
        Policies(Arc::new(policies::Policies::sorted(all.iter().map(parse).collect())))
    }

    #[test]
    fn each_rule_is_taken_from_the_longest_pattern_that_says_something() {
        let all = policies(&[
            ("*", r#"{"untagged_days":3,"quota":1000,"immutable":["v*"]}"#),
            ("acme/**", r#"{"quota":500,"keep_last":5}"#),
            ("acme/app", r#"{"immutable":["1.*"],"sparse":true}"#),
        ]);
        let rules = all.of("acme/app");
        assert!(rules.is_immutable("1.0") && !rules.is_immutable("v1"));
        assert_eq!(
            (rules.keep_last, rules.quota, rules.untagged_days, rules.sparse),
            (Some(5), Some(500), Some(3), Some(true))
        );
        assert_eq!(all.quota_of("acme/app").map(|(pattern, quota)| (pattern.as_str(), quota)), Some(("acme/**", 500)));
        let rules = all.of("other");
        assert!(rules.is_immutable("v1") && !rules.limits_tags());
        assert_eq!(rules.untagged(Duration::ZERO), days(3));
        assert_eq!(policies(&[]).of("other").untagged(days(7)), days(7));
    }

    #[test]
    fn a_policy_that_cannot_be_kept_is_refused() {
        let check =
            |pattern: &str, rules: &str| serde_json::from_str::<Rules>(rules).unwrap().check(&pattern.parse().unwrap());
        assert!(check("*", "{}").is_err());
        assert!(check("*", r#"{"untagged_days":0}"#).is_err());
        assert!(check("a/*/b**", r#"{"quota":1}"#).is_err());
        assert!(check("a/*/b", r#"{"quota":1}"#).is_ok());
        assert!(serde_json::from_str::<Rules>(r#"{"imutable":["a"]}"#).is_err());
        assert!(serde_json::from_str::<Rules>(r#"{"immutable":["a b"]}"#).is_err());
    }
}
