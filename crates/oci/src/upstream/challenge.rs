//! What a 401 asks for (RFC 9110, 11.6.1): a token that is to be fetched somewhere, or a user name and a password.

use http::{HeaderMap, header};
use larder_core::{Error, Kind, Result};
use larder_sources::fetch;
use url::{Host, Url};

/// How an upstream wants to be shown who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, to be fetched at `realm` for `service`.
    Bearer { realm: Url, service: Option<String> },
    /// A user name and a password.
    Basic,
}

impl Challenge {
    /// The best one of an answer; `None` if it has none that we know.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<_> = values.flat_map(split).collect();
        let bearer = all.iter().find(|(scheme, _)| scheme == "bearer").and_then(|(_, parameters)| {
            let get = |name: &str| parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
            let realm = fetch::address(&get("realm")?).ok()?;
            Some(Self::Bearer { realm, service: get("service") })
        });
        bearer.or_else(|| all.iter().any(|(scheme, _)| scheme == "basic").then_some(Self::Basic))
    }
}

/// Whether a credential for `registry` may be shown to the place where that registry says that tokens are made.
///
/// It may if that place is the same host, or below it, or (for a registry that is itself below a domain) in that domain:
/// so `auth.docker.io` for `registry-1.docker.io`, and `gitlab.com` for `registry.gitlab.com`. Nobody else ever sees it,
/// whatever a registry says.
pub(super) fn may_show(registry: &Url, realm: &Url) -> Result<()> {
    let refused = || {
        Error::new(
            Kind::Upstream,
            format!(
                "{} wants the credential to be shown to {}, which is another house, so that it is not: add the source without a credential",
                fetch::origin(registry),
                fetch::origin(realm)
            ),
        )
    };
    if registry.scheme() == "https" && realm.scheme() != "https" {
        return Err(refused());
    }
    let (Some(own), Some(other)) = (registry.host(), realm.host()) else { return Err(refused()) };
    if own == other {
        return Ok(());
    }
    let (Host::Domain(own), Host::Domain(other)) = (own, other) else { return Err(refused()) };
    let is_within =
        |domain: &str| other == domain || other.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let domain = own.split_once('.').map(|(_, domain)| domain).filter(|domain| domain.contains('.'));
    if is_within(own) || domain.is_some_and(is_within) { Ok(()) } else { Err(refused()) }
}

/// A scheme in lower case, and its parameters.
type Parts = (String, Vec<(String, String)>);

/// The challenges in one header: a comma divides both them and their parameters.
fn split(text: &str) -> Vec<Parts> {
    let mut found: Vec<Parts> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            return found;
        }
        let (word, after) = rest.split_at(end);
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = quoted(value.trim_start());
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
        rest = after;
    }
}

/// A value, in quotes or not, and what follows it.
fn quoted(text: &str) -> (String, &str) {
    let Some(inside) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => (value.push(c), escaped = false).1,
            '\\' => escaped = true,
            '"' => return (value, &inside[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::try_from(*value).unwrap());
        }
        Challenge::read(&headers)
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.parse().unwrap(), service: service.map(str::to_owned) })
        };
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let auth = bearer("https://auth.docker.io/token", Some("registry.docker.io"));
        assert_eq!(read(&[hub]), auth);
        assert_eq!(read(&[r#"Basic realm="x, y""#, hub]), auth);
        assert_eq!(read(&[&format!(r#"Basic realm="a \"b\", Bearer c=d", {hub}"#)]), auth);
        assert_eq!(read(&["bearer Realm=https://a.example.org/t , error=x"]), bearer("https://a.example.org/t", None));
        assert_eq!(read(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(read(&["Basic"]), Some(Challenge::Basic));
        for none in
            ["", ",", "=", "Bearer", "Negotiate abc==", r#"Bearer realm="ftp://x""#, r#"Bearer realm="unclosed"#]
        {
            assert_eq!(read(&[none]), None, "{none}");
        }
    }

    #[test]
    fn a_credential_stays_in_its_house() {
        let cases = [
            ("https://registry-1.docker.io/", "https://auth.docker.io/token", true),
            ("https://registry.gitlab.com/", "https://gitlab.com/jwt/auth", true),
            ("https://ghcr.io/", "https://ghcr.io/token", true),
            ("https://example.org/", "https://auth.example.org/", true),
            ("https://r.example.org:5000/", "https://r.example.org:8443/", true),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:6000/", true),
            ("https://ghcr.io/", "https://evil.io/token", false),
            ("https://registry-1.docker.io/", "http://auth.docker.io/token", false),
            ("https://registry-1.docker.io/", "https://evildocker.io/token", false),
            ("https://registry-1.docker.io/", "https://docker.io.evil.org/token", false),
            ("https://10.0.0.1/", "https://0.0.1/", false),
            ("https://10.0.0.1/", "https://10.0.0.2/", false),
        ];
        for (registry, realm, expected) in cases {
            let allowed = may_show(&registry.parse().unwrap(), &realm.parse().unwrap());
            assert_eq!(allowed.is_ok(), expected, "{registry} {realm}");
        }
    }
}
