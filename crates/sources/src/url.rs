//! Git URLs as people write them: `https://…`, `ssh://…`, `git@host:path`, `file:///…`. Everything else is refused,
//! because `git` would otherwise run helpers (`ext::`) or read options (`--upload-pack=`) out of them.

use std::fmt;

use larder_core::{Error, Result};

/// How a repository is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `https://`
    Https,
    /// `http://`: only where local sources are allowed, or without a credential.
    Http,
    /// `ssh://` or `user@host:path`
    Ssh,
    /// `file://`: only where local sources are allowed.
    File,
}

/// A checked Git URL, without any secret in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitUrl {
    text: String,
    transport: Transport,
    host: String,
    port: Option<u16>,
}

/// The longest URL that is accepted, in bytes.
const LONGEST: usize = 2_048;

impl GitUrl {
    /// Checks a URL as a person wrote it.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::invalid(format!(
                "`{text}` cannot be a Git source: {why}. Write https://host/path.git, ssh://git@host/path.git or git@host:path.git"
            )))
        };
        if text.len() > LONGEST {
            return Err(Error::invalid(format!(
                "a Git URL of {} bytes is too long: {LONGEST} is the limit",
                text.len()
            )));
        }
        // `ext::…` is a helper program; within the brackets of an IPv6 address `::` is a part of it.
        let helper = text.split_once("::").is_some_and(|(before, _)| !before.contains("://["));
        if text.starts_with('-') || helper || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse("it would be read as an option or a helper program of git");
        }
        if !text.contains("://") {
            return Self::parse_scp(text).map_or_else(|| refuse("it has no scheme that Larder knows"), Ok);
        }
        let Ok(url) = url::Url::parse(text) else { return refuse("it is not a URL") };
        if url.password().is_some() {
            return Err(Error::invalid(format!(
                "the Git URL for {} holds a password: leave it out, and store it with `larder credential add`",
                url.host_str().unwrap_or("this source")
            )));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("it has a query or a fragment");
        }
        let transport = match url.scheme() {
            "https" => Transport::Https,
            "http" => Transport::Http,
            "ssh" => Transport::Ssh,
            "file" => Transport::File,
            _ => return refuse("only https, http, ssh and file are spoken"),
        };
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        // The parser would take the first segment of `https:///x` as the host; git would not.
        let slashes = text.split_once("://").is_some_and(|(_, rest)| rest.starts_with('/'));
        if (transport == Transport::File) != (host.is_empty() || slashes) {
            return refuse(if host.is_empty() {
                "it has no host"
            } else {
                "a file URL has three slashes: file:///path"
            });
        }
        // `host.` is the same machine under a name that other parts (curl's table of addresses) take for another one.
        if host.ends_with('.') {
            return refuse("its host ends in a dot");
        }
        if host.starts_with('-') || url.username().starts_with('-') || url.path().starts_with("/-") {
            return refuse("a part of it starts with a dash");
        }
        if transport != Transport::Ssh && !url.username().is_empty() {
            // Not repeated: forges take a token there.
            return Err(Error::invalid(format!(
                "the Git URL for {host} holds a user name or a token: leave it out, and store it with `larder credential add`"
            )));
        }
        Ok(Self { text: url.to_string(), transport, host, port: url.port() })
    }

    /// `user@host:path`, which is ssh.
    fn parse_scp(text: &str) -> Option<Self> {
        let (login, path) = text.split_once(':')?;
        let (user, host) = login.split_once('@')?;
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let path_ok = !path.is_empty() && !path.starts_with('-') && !path.contains(['\'', '"', '\\', '$', '`']);
        (word(user) && word(host) && !host.ends_with('.') && path_ok).then(|| Self {
            text: text.to_owned(),
            transport: Transport::Ssh,
            host: host.to_ascii_lowercase(),
            port: None,
        })
    }

    /// The text that `git` is given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How it is reached.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The host in lower case; empty for `file`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where it is not the usual one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// `host` or `host:port`: what a credential is bound to. Unencrypted http has its port always: what was made for
    /// https does not go there.
    pub fn origin(&self) -> String {
        let port = self.port.or((self.transport == Transport::Http).then_some(80));
        port.map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }

    /// The path's last segment without `.git`: the default name of a source.
    pub fn short_name(&self) -> &str {
        let trimmed = self.text.trim_end_matches('/');
        let last = trimmed.rsplit(['/', ':']).next().unwrap_or(trimmed);
        last.strip_suffix(".git").unwrap_or(last)
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, transport, origin, name) in [
            ("https://git.example.org/acme/lib.git", Transport::Https, "git.example.org", "lib"),
            ("https://git.example.org:8443/acme/lib", Transport::Https, "git.example.org:8443", "lib"),
            ("git@git.example.org:acme/lib.git", Transport::Ssh, "git.example.org", "lib"),
            ("ssh://git@git.example.org:2222/acme/lib.git", Transport::Ssh, "git.example.org:2222", "lib"),
            ("file:///srv/git/lib.git/", Transport::File, "", "lib"),
            ("http://git.example.org/acme/lib.git", Transport::Http, "git.example.org:80", "lib"),
            ("http://[::1]:3000/lib.git", Transport::Http, "::1:3000", "lib"),
        ] {
            let url = GitUrl::parse(text).unwrap();
            assert_eq!((url.transport(), url.origin().as_str(), url.short_name()), (transport, origin, name), "{text}");
        }
    }

    #[test]
    fn what_git_must_never_see() {
        for text in [
            "ext::sh -c id",
            "ext::sh",
            "--upload-pack=id",
            "-oProxyCommand=id",
            "ssh://-oProxyCommand=id/x",
            "git@-oProxyCommand=id:x",
            "ssh://git@host/-x",
            "git@host:-x",
            "git@host:x'$(id)'",
            "https://user:secret@host/x.git",
            "https://user@host/x.git",
            "https://host./x.git",
            "git@host.:x",
            "https:///x.git",
            "file://host/x.git",
            "ftp://host/x.git",
            "/srv/git/x.git",
            "https://host/x.git\nfoo",
            "",
        ] {
            assert!(GitUrl::parse(text).is_err(), "{text}");
        }
        for text in ["https://user:secret@host/x.git", "https://secret@host/x.git"] {
            assert!(!GitUrl::parse(text).unwrap_err().to_string().contains("secret"), "{text}");
        }
    }
}
