//! Who is asking, and what they may do: principals, actions and grants. Deciding is `larder-auth`'s.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{error::Error, id::Id, pattern::Pattern, time::Time};

/// What can be done to a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// See its metadata and download its artifacts.
    Read,
    /// Add versions to it.
    Publish,
    /// Take versions of it away.
    Delete,
}

impl Action {
    const ALL: [(Self, &'static str); 3] = [(Self::Read, "read"), (Self::Publish, "publish"), (Self::Delete, "delete")];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A set of actions: `read`, `read,publish`, `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actions(u8);

impl Actions {
    /// Every action, also ones not invented yet.
    pub const ALL: Self = Self(u8::MAX);
    /// Reading alone.
    pub const READ: Self = Self(1);

    /// Whether `action` is in the set.
    pub fn contain(self, action: Action) -> bool {
        self.0 & (1 << action as u8) != 0
    }

    /// The actions that are in both; `None` if none is.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        Some(Self(self.0 & other.0)).filter(|both| both.0 != 0)
    }
}

impl FromStr for Actions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        text.split(',').try_fold(Self(0), |set, word| {
            let action = Action::ALL.iter().find(|(_, name)| *name == word);
            let (action, _) = action.ok_or_else(|| {
                Error::invalid(format!(
                    "`{word}` is not an action: write read, publish, delete, several with commas, or *"
                ))
            })?;
            Ok(Self(set.0 | 1 << *action as u8))
        })
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("*");
        }
        let words: Vec<_> =
            Action::ALL.iter().filter(|(action, _)| self.contain(*action)).map(|(_, word)| *word).collect();
        f.write_str(&words.join(","))
    }
}

/// What a principal may do: `ACTIONS:FORMAT:PATTERN`, for example `read:*:acme/*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The actions that it allows.
    pub actions: Actions,
    /// The id of the format that it is about; `None` for every format.
    pub format: Option<String>,
    /// The package names that it is about.
    pub pattern: Pattern,
}

impl Grant {
    /// The default grant of a new token: `read:*:*`.
    pub fn read_everything() -> Self {
        Self { actions: Actions::READ, format: None, pattern: Pattern::everything() }
    }

    /// Whether it allows `action` on the package `name` of `format`.
    pub fn allows(&self, action: Action, format: &str, name: &str) -> bool {
        self.covers(action, format) && self.pattern.matches(name)
    }

    /// Whether it allows `action` on any package of `format` at all.
    pub fn covers(&self, action: Action, format: &str) -> bool {
        self.actions.contain(action) && self.format.as_deref().is_none_or(|own| own == format)
    }

    /// What both allow, as far as one grant can say it ([`Pattern::and`]); never more.
    #[must_use]
    pub fn and(&self, other: &Self) -> Option<Self> {
        let format = match (&self.format, &other.format) {
            (Some(own), Some(other)) if own != other => return None,
            (own, other) => own.as_ref().or(other.as_ref()).cloned(),
        };
        Some(Self { actions: self.actions.and(other.actions)?, format, pattern: self.pattern.and(&other.pattern)? })
    }
}

impl FromStr for Grant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.splitn(3, ':');
        let (Some(actions), Some(format), Some(pattern)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::invalid(format!(
                "`{text}` is not a grant: write ACTIONS:FORMAT:PATTERN, for example read:*:acme/*"
            )));
        };
        let well_formed = |format: &str| {
            !format.is_empty()
                && format.len() <= 32
                && format.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let format = match format {
            "*" => None,
            id if well_formed(id) => Some(id.to_owned()),
            other => {
                return Err(Error::invalid(format!("`{other}` is not a format: write the id of one, or * for all")));
            }
        };
        Ok(Self { actions: actions.parse()?, format, pattern: pattern.parse()? })
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.actions, self.format.as_deref().unwrap_or("*"), self.pattern)
    }
}

/// Who can be given grants, as people write it: `anonymous`, `token:NAME`. Later `user:`, `team:`, `customer:`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrincipalName {
    /// Whoever shows no token.
    #[default]
    Anonymous,
    /// The bearer of the token with this name.
    Token(String),
}

impl FromStr for PrincipalName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            None if text == "anonymous" => Ok(Self::Anonymous),
            Some(("token", name)) => Ok(Self::Token(check_name(name)?.to_owned())),
            _ => Err(Error::invalid(format!("`{text}` is not a principal: write anonymous or token:NAME"))),
        }
    }
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Token(name) => write!(f, "token:{name}"),
        }
    }
}

/// Checks a name that a person gives to a token, a credential or a source: 1 to 64 letters, digits, `.`, `_`, `-`,
/// starting with a letter or digit.
pub fn check_name(name: &str) -> Result<&str, Error> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Ok(name);
    }
    Err(Error::invalid(format!(
        "`{name}` is not a name: use 1 to 64 letters, digits, dots, dashes and underscores, starting with a letter or a digit"
    )))
}

/// Who is asking, once recognised, with everything needed to decide. The default is anonymous, who may do nothing.
#[derive(Clone, Debug, Default)]
pub struct Principal {
    /// Its name, as it stands in the audit log.
    pub name: PrincipalName,
    /// The token that was shown, if one was.
    pub token: Option<Id>,
    /// When the secret of that token was made. What stands for the token dies with its secret.
    pub token_made_at: Option<Time>,
    /// Everything that it may do, sorted, without doubles.
    pub grants: Vec<Grant>,
    /// Whether something that stands for the token was shown, and lets less be done than the token itself. Whoever asks
    /// with more may be allowed what this refuses.
    pub limited: bool,
    /// Who is behind it, if it is limited: with all that he may do.
    pub behind: Option<Arc<Principal>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grants_read_back_as_written() {
        for text in ["read:*:*", "read,publish:x:@acme/*", "*:*:acme/**", "delete:y:acme/app"] {
            assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
        }
        for wrong in ["", "read", "read:*", "write:*:*", "read:*:", "read:a b:*", "read,:*:*", ":*:*"] {
            assert!(wrong.parse::<Grant>().is_err(), "{wrong}");
        }
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let actions = prop_oneof![Just("read"), Just("publish"), Just("read,delete"), Just("*")];
        let format = prop_oneof![Just("*"), Just("x"), Just("y")];
        let pattern = prop_oneof!["[ab*/]{1,4}", "[ab/]{1,4}", Just("*".to_owned())];
        (actions, format, pattern).prop_map(|(a, f, p)| format!("{a}:{f}:{p}").parse().unwrap())
    }

    proptest! {
        #[test]
        fn two_grants_together_allow_what_both_do(one in any_grant(), other in any_grant(), name in "[ab/]{0,4}") {
            let both = one.and(&other);
            for (action, _) in Action::ALL {
                for format in ["x", "y", "z"] {
                    let allows = |both: &Option<Grant>| both.as_ref().is_some_and(|both| both.allows(action, format, &name));
                    let allowed = allows(&both);
                    prop_assert_eq!(allowed, allows(&other.and(&one)));
                    let expected = one.allows(action, format, &name) && other.allows(action, format, &name);
                    if one.pattern.is_name() || one.pattern.is_everything() {
                        prop_assert_eq!(allowed, expected);
                    }
                    prop_assert!(expected || !allowed);
                }
            }
        }
    }

    #[test]
    fn a_grant_allows_what_it_says() {
        let grant: Grant = "read:x:acme/*".parse().unwrap();
        assert!(grant.allows(Action::Read, "x", "acme/lib"));
        assert!(!grant.allows(Action::Publish, "x", "acme/lib"));
        assert!(!grant.allows(Action::Read, "y", "acme/lib"));
        assert!(!grant.allows(Action::Read, "x", "other/lib"));
    }
}
