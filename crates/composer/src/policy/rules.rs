//! What a policy may say, and the two changes that people make to one most often: blocking versions, and no longer.

use std::{fmt, str::FromStr, time::Duration};

use larder_core::{
    Error, Result,
    pattern::Pattern,
    time::{format_duration, parse_duration},
};
use larder_db::events::Actor;
use larder_sources::policies::{self, Book};
use serde::{Deserialize, Serialize};

use crate::{ID, advisories::Severity, names, versions::Versions};

/// How many blocks, and how many exemptions, one policy may have.
const MOST: usize = 500;

/// How long a reason may be, in bytes: a client prints it in its terminal.
const LONGEST_REASON: usize = 500;

/// The rules of a policy. What it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Versions that nobody gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<Vec<Block>>,
    /// How old a release of an upstream must be before it is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age: Option<Age>,
    /// Versions for which `min_age` does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempt: Option<Vec<Versions>>,
    /// From which severity on versions with a known vulnerability are not offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_advisories: Option<Floor>,
    /// Whether its maintainers have abandoned it, whatever they say themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Abandoned>,
}

/// Versions that nobody gets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Which.
    #[serde(default)]
    pub versions: Versions,
    /// Why, for whoever wants one.
    pub reason: String,
    /// Where more is to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whether it does harm: clients from 2.10 on then refuse to install it from a lock file, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub malware: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A length of time, written like `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Age {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        age.to_string()
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.0))
    }
}

/// From which severity on an advisory keeps a version back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Floor {
    /// None does.
    Off,
    /// Every advisory does.
    Low,
    /// Medium, high and critical ones.
    Medium,
    /// High and critical ones.
    High,
    /// Critical ones.
    Critical,
}

impl Floor {
    /// Whether an advisory of this severity keeps versions back. One that tells none is taken for the worst.
    pub fn holds(self, severity: Option<Severity>) -> bool {
        let least = match self {
            Self::Off => return false,
            Self::Low => Severity::Low,
            Self::Medium => Severity::Medium,
            Self::High => Severity::High,
            Self::Critical => Severity::Critical,
        };
        severity.is_none_or(|severity| severity >= least)
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for Floor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Off, Self::Low, Self::Medium, Self::High, Self::Critical];
        all.into_iter().find(|floor| floor.as_str() == text).ok_or_else(|| {
            Error::invalid(format!("`{text}` is not a severity: write off, low, medium, high or critical"))
        })
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What `abandoned` of a version says: `false`, `true`, or the name of the package to use in its place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Abandoned {
    /// Whether it is; without a replacement.
    Is(bool),
    /// It is, and this package takes its place.
    For(String),
}

impl policies::Rules for Rules {
    const FORMAT: &'static str = ID;

    fn check(&self, pattern: &Pattern) -> Result<()> {
        if *self == Self::default() {
            return Err(Error::invalid(format!(
                "a policy that says nothing changes nothing: give it a rule, or remove it with `larder composer policy remove '{pattern}'`"
            )));
        }
        if pattern.as_str().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::invalid(format!(
                "`{pattern}` names no package, because their names are lowercase: write `{}`",
                pattern.as_str().to_ascii_lowercase()
            )));
        }
        let (blocks, exempt) = (self.block.iter().flatten(), self.exempt.iter().flatten());
        if blocks.clone().count() > MOST || exempt.count() > MOST {
            return Err(Error::invalid(format!(
                "a policy may have {MOST} blocks and {MOST} exemptions: join some of them"
            )));
        }
        blocks.into_iter().try_for_each(Block::check)?;
        match &self.abandoned {
            Some(Abandoned::For(name)) => names::check_package(name)
                .map_err(|error| Error::invalid(format!("the replacement is no package: {error}"))),
            _ => Ok(()),
        }
    }
}

impl Block {
    fn check(&self) -> Result<()> {
        let reason = self.reason.trim();
        if reason.is_empty() || reason.len() > LONGEST_REASON || reason.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "whoever is refused a version wants to know why: give a reason, in one line of at most {LONGEST_REASON} bytes"
            )));
        }
        if self.url.as_deref().is_some_and(|url| !is_web_address(url)) {
            return Err(Error::invalid("the URL of a block begins with https:// or http:// and has no spaces"));
        }
        Ok(())
    }
}

/// Whether a text is something that a browser opens, and nothing that a terminal takes for more.
pub(crate) fn is_web_address(text: &str) -> bool {
    let begins = text.starts_with("https://") || text.starts_with("http://");
    begins && text.len() <= 2_000 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Makes nobody get some versions, in addition to what the policy of this pattern says already. The same versions blocked
/// again get the new reason.
pub async fn block(book: &Book<Rules>, actor: &Actor, pattern: &Pattern, block: &Block) -> Result<()> {
    let change = |rules: Option<Rules>| {
        let mut rules = rules.unwrap_or_default();
        let mut blocks = rules.block.take().unwrap_or_default();
        blocks.retain(|known| known.versions != block.versions);
        blocks.push(block.clone());
        Ok(Some(Rules { block: Some(blocks), ..rules }))
    };
    book.edit(actor, pattern, change).await
}

/// Takes back the block of some versions, or (`None`) all blocks of this pattern. A policy that then says nothing goes.
pub async fn unblock(book: &Book<Rules>, actor: &Actor, pattern: &Pattern, versions: Option<&Versions>) -> Result<()> {
    let change = |rules: Option<Rules>| {
        let mut rules = rules.unwrap_or_default();
        let blocks = rules.block.take().unwrap_or_default();
        let stays = |block: &Block| versions.is_some_and(|versions| block.versions != *versions);
        let kept: Vec<Block> = blocks.iter().filter(|block| stays(block)).cloned().collect();
        if kept.len() == blocks.len() {
            return Err(Error::not_found(format!(
                "no such versions of `{pattern}` are blocked: `larder composer policy list` shows all blocks"
            )));
        }
        let rules = Rules { block: (!kept.is_empty()).then_some(kept), ..rules };
        Ok((rules != Rules::default()).then_some(rules))
    };
    book.edit(actor, pattern, change).await
}

/// Replaces all rules of a pattern but its blocks.
pub async fn set(book: &Book<Rules>, actor: &Actor, pattern: &Pattern, rules: &Rules) -> Result<()> {
    let change = |before: Option<Rules>| {
        let block = before.and_then(|before| before.block);
        Ok(Some(Rules { block, ..rules.clone() }))
    };
    if *rules == Rules::default() {
        return policies::Rules::check(rules, pattern);
    }
    book.edit(actor, pattern, change).await
}

#[cfg(test)]
mod tests {
    use larder_sources::policies::Rules as _;

    use super::*;

    #[test]
    fn a_policy_that_cannot_be_kept_is_refused() {
        let check =
            |pattern: &str, rules: &str| serde_json::from_str::<Rules>(rules).unwrap().check(&pattern.parse().unwrap());
        assert!(check("a/*", r#"{"min_age":"7d"}"#).is_ok());
        assert!(check("*", "{}").is_err());
        assert!(check("Acme/*", r#"{"min_age":"7d"}"#).is_err());
        assert!(check("a/b", r#"{"abandoned":"not a name"}"#).is_err());
        assert!(check("a/b", r#"{"block":[{"reason":" "}]}"#).is_err());
        assert!(check("a/b", r#"{"block":[{"reason":"a\u001b[31m"}]}"#).is_err());
        assert!(check("a/b", r#"{"block":[{"reason":"x","url":"javascript:alert(1)"}]}"#).is_err());
        for wrong in [
            r#"{"min_aeg":"7d"}"#,
            r#"{"min_age":"7"}"#,
            r#"{"exempt":["1.2 ||"]}"#,
            r#"{"block":[{"versions":"=>1","reason":"x"}]}"#,
            r#"{"block":[{"versions":"*"}]}"#,
            r#"{"block_advisories":"severe"}"#,
        ] {
            assert!(serde_json::from_str::<Rules>(wrong).is_err(), "{wrong}");
        }
    }
}
