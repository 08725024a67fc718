//! Why a git command failed: what it said on stderr, turned into what the rest of the port can act on and into words
//! that a person can act on. The texts are git's own (2.31 to 2.52, `LC_ALL=C`), curl's and OpenSSH's.

use std::time::Duration;

use larder_core::{Error, Kind};
use larder_sources::url::{GitUrl, Transport};

use super::process::{Ended, Outcome};

/// What the port can do about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The host wants the repository to be asked for elsewhere.
    Redirected,
    /// The remote no longer has this ref or commit.
    Gone(String),
    /// The host only gives what it lists (an old one): ask by name.
    ByNameOnly,
    /// The host cannot give a part of the history: ask for all of it.
    NoDepth,
    /// Something among what was asked for is broken on the host, or too large.
    Spoiled,
    /// The local copy is broken.
    Damaged,
    /// Nothing but to report it.
    Other,
}

/// A failure with its reason.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the port can do.
    pub(super) reason: Reason,
    /// What a person is told.
    pub(super) error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { reason: Reason::Other, error }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        if failure.reason == Reason::Damaged {
            Self::new(Kind::Damaged, DAMAGED).caused_by(failure.error)
        } else {
            failure.error
        }
    }
}

/// What a person reads where the local copy is damaged.
pub(super) const DAMAGED: &str = "the local copy of a Git source is damaged: it is made again by the next attempt";

/// One row of the table below: texts of which one must be there, the kind, and what to say after the host's name.
type Row = (&'static [&'static str], Kind, &'static str);

/// Failures of reaching the host, the most telling first.
const REACHING: &[Row] = &[
    (
        &["REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key verification failed"],
        Kind::Forbidden,
        "shows another ssh host key than before: if that is right, remove its line from `known_hosts` in the data folder",
    ),
    (
        &[
            "SSL certificate problem",
            "server certificate verification failed",
            "certificate has expired",
            "SSL peer certificate",
        ],
        Kind::Upstream,
        "has a TLS certificate that this machine does not trust: install its authority's certificate",
    ),
    (&["Could not resolve host"], Kind::Upstream, "is not known: check its name and this machine's DNS"),
    (
        &["Operation too slow", "Operation timed out", "Connection timed out", "Timeout, server"],
        Kind::Timeout,
        "does not answer in time",
    ),
    (
        &[
            "Failed to connect",
            "Couldn't connect",
            "Connection refused",
            "No route to host",
            "Network is unreachable",
            "Connection reset",
            "Connection closed",
            "Empty reply from server",
            "gnutls_handshake",
            "SSL_connect",
        ],
        Kind::Upstream,
        "is not reachable",
    ),
    (&["error: 429", "HTTP 429"], Kind::Upstream, "says that it is asked too often: sync later or less often"),
    (&["error: 5", "HTTP 5", "Internal Server Error"], Kind::Upstream, "fails with an error of its own"),
];

impl Failure {
    /// Reads what a command that talked to `at` left behind.
    pub(super) fn explain(ended: &Ended, at: &GitUrl, with_secret: bool, limit: Duration) -> Self {
        let host = if at.transport() == Transport::File { at.to_string() } else { at.origin() };
        match ended.outcome {
            Outcome::TimeUp => {
                let text = format!("{host} took longer than {} s", limit.as_secs());
                return Error::new(Kind::Timeout, text).into();
            }
            Outcome::TooMuch => {
                return Error::new(Kind::TooLarge, format!("{host} lists more than Larder's limit allows")).into();
            }
            Outcome::Success | Outcome::Failure => {}
        }
        let said = ended.stderr.as_str();
        let has = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        let reason = Self::reason(said);
        let error = if has(&["No space left on device"]) && !has(&["remote: fatal", "remote: error"]) {
            Error::new(Kind::Full, "the disk with the local copies of Git sources is full: make room and sync again")
        } else if has(&["File too large", "signal 25", "Out of memory", "out of memory", "malloc failed"]) {
            Error::new(Kind::TooLarge, format!("{at} gives more than Larder's limits for one fetch allow"))
        } else if Self::is_refusal(said) {
            Self::refused(at, &host, with_secret)
        } else if Self::is_missing(said) {
            let also = if with_secret { "" } else { ", or add a credential if it is private" };
            Error::not_found(format!("{host} has no repository {at}: check the address{also}"))
        } else if reason == Reason::Redirected {
            Error::new(Kind::Upstream, format!("{at} redirects in the middle: give the address that it ends at"))
        } else if let Some((_, kind, text)) = REACHING.iter().find(|(texts, ..)| has(texts)) {
            Error::new(*kind, format!("{host} {text}"))
        } else {
            Error::new(Kind::Upstream, format!("git could not get what it asked {host} for: {}", last_words(said)))
        };
        Self { reason, error: error.caused_by(said.to_owned()) }
    }

    fn reason(said: &str) -> Reason {
        let has = |text: &str| said.contains(text);
        let after = |text: &str| {
            said.split_once(text)
                .and_then(|(_, rest)| rest.split_whitespace().next())
                .map(str::to_owned)
                .map(Reason::Gone)
        };
        if let Some(gone) = after("not our ref ").or_else(|| after("couldn't find remote ref ")) {
            gone
        } else if ["error: 301", "error: 302", "error: 303", "error: 307", "error: 308", "HTTP 30"].into_iter().any(has)
        {
            Reason::Redirected
        } else if has("Server does not allow request for unadvertised object") {
            Reason::ByNameOnly
        } else if has("does not support shallow") || has("does not support --depth") {
            Reason::NoDepth
        } else if Self::is_spoiled(said) {
            Reason::Spoiled
        } else if is_damage(said) {
            Reason::Damaged
        } else {
            Reason::Other
        }
    }

    fn is_spoiled(said: &str) -> bool {
        ["remote corruption", "repository corruption on the remote", "did not send all necessary objects"]
            .into_iter()
            .chain([
                "remote: fatal: bad",
                "remote: error: Could not read",
                "remote: fatal: unable to",
                "remote error: upload-pack",
            ])
            .chain(["File too large", "signal 25", "pack exceeds maximum allowed size"])
            .any(|text| said.contains(text))
    }

    fn is_refusal(said: &str) -> bool {
        [
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied (",
            "error: 401",
            "error: 403",
            "HTTP 401",
            "HTTP 403",
            "Access denied",
            "Too many authentication failures",
        ]
        .into_iter()
        .any(|text| said.contains(text))
    }

    fn is_missing(said: &str) -> bool {
        [
            "does not appear to be a git repository",
            "Repository not found",
            "repository not found",
            "error: 404",
            "HTTP 404",
            "project you were looking for could not be found",
        ]
        .into_iter()
        .any(|text| said.contains(text))
            || said.lines().any(|line| line.starts_with("fatal: repository '") && line.ends_with("' not found"))
    }

    fn refused(at: &GitUrl, host: &str, with_secret: bool) -> Error {
        let text = match (with_secret, at.transport()) {
            (true, _) => format!(
                "{host} refused the credential for {at}: check that it is still valid and may read this repository, then store it again with `larder credential add`"
            ),
            (false, Transport::Ssh) => format!(
                "{host} wants to know who asks for {at}: add a key with `larder credential add NAME --kind ssh` and give it to the source"
            ),
            (false, _) => format!(
                "{host} wants to know who asks for {at}: add a token with `larder credential add NAME --kind github|gitlab|bitbucket|gitea|basic|bearer` and give it to the source"
            ),
        };
        Error::new(Kind::Forbidden, text)
    }
}

/// Whether git complains about the repository that it works in.
pub(super) fn is_damage(said: &str) -> bool {
    said.lines().filter(|line| !line.starts_with("remote:")).any(|line| {
        [
            "not a git repository",
            "bad config",
            "is corrupt",
            "cannot be accessed",
            "does not match index",
            "claims to have",
            "is far too short",
            "is too small",
            "wrong index",
            "wrong object index",
            "bad index",
            "inflate: data stream error",
            "unable to unpack",
            "unable to read",
            "bad object",
            "invalid sha1 pointer",
            "object file",
            "missing object",
            // Git trusts its own files and may crash over them.
            "ended by signal 6",
            "ended by signal 7",
            "ended by signal 11",
            "non-monotonic index",
            "invalid object",
        ]
        .into_iter()
        .any(|text| line.contains(text))
    })
}

/// The line that says most, fit to be shown.
fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    let telling =
        |line: &&&str| ["fatal:", "error:", "ERROR:", "remote:"].into_iter().any(|start| line.starts_with(start));
    let line = lines.iter().rev().find(telling).or(lines.last()).copied().unwrap_or("it said nothing");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(url: &str, said: &str) -> Failure {
        let ended = Ended { outcome: Outcome::Failure, stdout: Vec::new(), stderr: said.to_owned() };
        Failure::explain(&ended, &GitUrl::parse(url).unwrap(), false, Duration::from_secs(1))
    }

    #[test]
    fn what_git_says_and_what_people_read() {
        let https = "https://git.example.org/a.git";
        for (url, said, kind, word) in [
            (
                https,
                "fatal: could not read Username for 'https://git.example.org': terminal prompts disabled",
                Kind::Forbidden,
                "--kind github",
            ),
            (
                https,
                "fatal: unable to access 'https://git.example.org/a.git/': The requested URL returned error: 403",
                Kind::Forbidden,
                "credential",
            ),
            (
                https,
                "remote: Repository not found.\nfatal: repository 'https://git.example.org/a.git/' not found",
                Kind::NotFound,
                "no repository",
            ),
            (
                https,
                "fatal: unable to access 'x': Failed to connect to git.example.org port 443: Connection refused",
                Kind::Upstream,
                "not reachable",
            ),
            (
                https,
                "fatal: unable to access 'x': The requested URL returned error: 502",
                Kind::Upstream,
                "error of its own",
            ),
            (
                https,
                "error: RPC failed; curl 28 Operation too slow. Less than 1 bytes/sec transferred the last 60 seconds",
                Kind::Timeout,
                "in time",
            ),
            (https, "fatal: write error: No space left on device", Kind::Full, "full"),
            (
                "git@git.example.org:a.git",
                "git@x: Permission denied (publickey).\nfatal: Could not read from remote repository.",
                Kind::Forbidden,
                "--kind ssh",
            ),
            (
                "git@git.example.org:a.git",
                "Host key verification failed.\nfatal: Could not read from remote repository.",
                Kind::Forbidden,
                "known_hosts",
            ),
        ] {
            let error = explained(url, said).error;
            assert_eq!(error.kind(), kind, "{said}");
            assert!(error.message().contains(word), "{error}");
            assert!(error.message().contains("git.example.org") || kind == Kind::Full, "{error}");
        }
    }

    #[test]
    fn what_the_port_can_act_on() {
        for (said, reason) in [
            ("fatal: remote error: upload-pack: not our ref 1234\n", Reason::Gone("1234".into())),
            ("fatal: couldn't find remote ref refs/tags/v1\n", Reason::Gone("refs/tags/v1".into())),
            ("error: Server does not allow request for unadvertised object 12\n", Reason::ByNameOnly),
            ("fatal: dumb http transport does not support shallow capabilities\n", Reason::NoDepth),
            ("fatal: unable to access 'x': The requested URL returned error: 302\n", Reason::Redirected),
            ("remote: aborting due to possible repository corruption on the remote side.\n", Reason::Spoiled),
            ("error: index-pack died of signal 25\n", Reason::Spoiled),
            ("error: packfile ./objects/pack/pack-1.pack does not match index\n", Reason::Damaged),
            ("fatal: the remote end hung up unexpectedly\n", Reason::Other),
        ] {
            assert_eq!(explained("https://git.example.org/a", said).reason, reason, "{said}");
        }
    }
}
