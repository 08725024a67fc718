//! The one function that says what a principal may do. Listing, searching and rendering go through a
//! [`View`](crate::view::View), which agrees with it by construction and by test.

use larder_core::{
    Error, Kind, Result,
    grant::{Action, Principal, PrincipalName},
};

/// What is answered to somebody who wants to do something to a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Answer as if there were no such package.
    NotFound,
    /// The principal may see the package, but not do this to it.
    Forbidden,
    /// Nobody was recognised: ask for a token.
    Unauthenticated,
}

/// Whether `principal` may do `action` to the package `name` of `format`. It does not matter whether there is such
/// a package: nobody learns from the decision what exists.
pub fn decide(principal: &Principal, action: Action, format: &str, name: &str) -> Decision {
    let may = |action| principal.grants.iter().any(|grant| grant.allows(action, format, name));
    if may(action) {
        Decision::Allow
    } else if principal.name == PrincipalName::Anonymous {
        Decision::Unauthenticated
    } else if action != Action::Read && may(Action::Read) {
        Decision::Forbidden
    } else {
        Decision::NotFound
    }
}

/// [`decide`], with everything but [`Decision::Allow`] as the error that says what to do next.
pub fn demand(principal: &Principal, action: Action, format: &str, name: &str) -> Result<()> {
    match decide(principal, action, format, name) {
        Decision::Allow => Ok(()),
        Decision::NotFound => Err(Error::not_found(format!(
            "there is no package `{name}` for this token; `larder grant list` shows what it may do"
        ))),
        Decision::Forbidden => Err(Error::new(
            Kind::Forbidden,
            format!(
                "this token may not {verb} `{name}`; `larder grant add {who} {verb}:{format}:{name}` allows it",
                verb = action.as_str(),
                who = principal.name,
            ),
        )),
        Decision::Unauthenticated => Err(unauthenticated()),
    }
}

/// The refusal of everybody who shows no token.
pub fn unauthenticated() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "a token is needed: `larder token create NAME` makes one; send it as the password, or as a bearer token",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(name: &str, grants: &[&str]) -> Principal {
        let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
        Principal { name: name.parse().unwrap(), grants, ..Principal::default() }
    }

    #[test]
    fn decisions() {
        use Decision::{Allow, Forbidden, NotFound, Unauthenticated};
        let cases = [
            ("token:ci", "read:*:acme/*", Action::Read, "acme/lib", Allow),
            ("token:ci", "read:*:acme/*", Action::Read, "other/lib", NotFound),
            ("token:ci", "read:*:acme/*", Action::Publish, "acme/lib", Forbidden),
            ("token:ci", "read:*:acme/*", Action::Publish, "other/lib", NotFound),
            ("token:ci", "publish:*:acme/*", Action::Publish, "acme/lib", Allow),
            // Publishing alone is no reading.
            ("token:ci", "publish:*:acme/*", Action::Read, "acme/lib", NotFound),
            ("token:ci", "*:y:*", Action::Delete, "acme/lib", NotFound),
            ("anonymous", "read:x:open/**", Action::Read, "open/lib", Allow),
            ("anonymous", "read:x:open/**", Action::Read, "acme/lib", Unauthenticated),
            ("anonymous", "read:x:open/**", Action::Delete, "open/lib", Unauthenticated),
        ];
        for (name, grant, action, package, expected) in cases {
            let principal = principal(name, &[grant]);
            assert_eq!(decide(&principal, action, "x", package), expected, "{name} {grant} {action:?} {package}");
        }
        assert_eq!(decide(&principal("token:ci", &[]), Action::Read, "x", "a/b"), NotFound);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let ci = principal("token:ci", &["read:*:acme/*"]);
        let error = demand(&ci, Action::Publish, "x", "acme/lib").unwrap_err();
        assert!(error.message().contains("larder grant add token:ci publish:x:acme/lib"), "{error}");
        assert_eq!(demand(&ci, Action::Read, "x", "b/c").unwrap_err().kind(), Kind::NotFound);
    }
}
