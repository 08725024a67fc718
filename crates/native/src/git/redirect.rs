//! Where a Git host that redirects leads to. Git itself is told to follow nothing, because it would check no address and
//! would not say where it went; so Larder asks, one small request per hop, and judges each hop.

use std::sync::PoisonError;

use larder_core::{Error, Kind, Result};
use larder_sources::{
    fetch::{Authorization, Fetch as _, FetchRequest, Secret, origin, shown},
    git::Remote,
    url::GitUrl,
};
use url::Url;

use super::{
    GitProgram,
    access::{authorization, belongs},
};
use crate::fetch::{FetchSettings, HttpFetch};

/// How many redirects are followed.
const HOPS: usize = 3;

/// How many moved repositories are remembered.
const REMEMBERED: usize = 1_000;

/// What git asks a repository for first.
const FIRST: &str = "/info/refs";

/// Follows the redirects of `remote` to their end.
pub(super) async fn target(git: &GitProgram, remote: &Remote) -> Result<GitUrl> {
    let mut at = first_request(&remote.url)?;
    for hop in 0..=HOPS {
        let Some(next) = location(git, remote, &at).await? else {
            return repository(&remote.url, &at);
        };
        if hop == HOPS {
            break;
        }
        let same_place = next.origin() == at.origin();
        if !(same_place || next.scheme() == "https") || !next.username().is_empty() || next.password().is_some() {
            return Err(Error::invalid(format!(
                "{} redirects to {}, which is not followed: only https, or another path on the same host",
                remote.url,
                shown(&next)
            )));
        }
        at = next;
    }
    Err(Error::new(
        Kind::Upstream,
        format!("{} redirects more than {HOPS} times: give the address that it ends at", remote.url),
    ))
}

/// Where the answer to `at` redirects to; `None` if it does not.
async fn location(git: &GitProgram, remote: &Remote, at: &Url) -> Result<Option<Url>> {
    let strange = || Error::new(Kind::Upstream, format!("{} redirects to a place that is not a URL", remote.url));
    let place = repository(&remote.url, at)?;
    let secret = match remote.secret.as_ref().filter(|_| belongs(remote, &place)) {
        Some(secret) => Some(Secret {
            origin: origin(at),
            authorization: Authorization::Header {
                name: http::header::AUTHORIZATION.to_string(),
                value: authorization(&place, secret)?,
            },
        }),
        None => None,
    };
    let request =
        FetchRequest { secret, redirects: 0, head: git.settings.limits.list, ..FetchRequest::get(at.clone()) };
    let fetch = HttpFetch::new(FetchSettings::new(git.settings.allow_local))?;
    let answer = fetch.fetch(request).await.map_err(|error| {
        Error::new(error.kind(), format!("{} redirects to {}: {error}", remote.url, shown(at))).caused_by(error)
    })?;
    if !answer.status.is_redirection() {
        return Ok(None);
    }
    let location = answer.headers.get(http::header::LOCATION).and_then(|value| value.to_str().ok());
    location.and_then(|location| at.join(location).ok()).map(Some).ok_or_else(strange)
}

fn first_request(url: &GitUrl) -> Result<Url> {
    let text = format!("{}{FIRST}?service=git-upload-pack", url.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|error| Error::internal("reading a Git URL", error))
}

/// The repository that `at` is the first request for.
fn repository(from: &GitUrl, at: &Url) -> Result<GitUrl> {
    let mut base = at.clone();
    base.set_query(None);
    base.set_fragment(None);
    let path = base.path().strip_suffix(FIRST).map(str::to_owned);
    let Some(path) = path.filter(|_| matches!(at.scheme(), "http" | "https")) else {
        return Err(Error::invalid(format!("{from} redirects to {}, which is not a Git repository", shown(at))));
    };
    base.set_path(&path);
    GitUrl::parse(base.as_str())
}

impl GitProgram {
    /// Where `url` was seen to redirect to, as far as this process remembers.
    pub(super) fn moved_to(&self, url: &GitUrl) -> Option<GitUrl> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).get(url.as_str()).cloned()
    }

    pub(super) fn remember_move(&self, from: &GitUrl, to: &GitUrl) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.len() >= REMEMBERED {
            moved.clear();
        }
        moved.insert(from.as_str().to_owned(), to.clone());
    }

    pub(super) fn forget_move(&self, from: &GitUrl) {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).remove(from.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::GitSettings;

    #[tokio::test]
    async fn a_redirect_into_the_own_network_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let git = GitProgram::new(GitSettings::below(data.path()));
        let remote = Remote { url: GitUrl::parse("https://git.example.org/a.git").unwrap(), secret: None };
        for target in
            ["https://127.0.0.1:8443/a.git", "https://169.254.169.254/a.git", "https://[::ffff:10.0.0.1]/a.git"]
        {
            let at = Url::parse(&format!("{target}{FIRST}?service=git-upload-pack")).unwrap();
            let error = location(&git, &remote, &at).await.unwrap_err();
            let host = at.host_str().unwrap();
            assert!(error.message().contains("git.example.org/a.git redirects to") && error.message().contains(host));
            assert!(error.message().contains("LARDER_ALLOW_LOCAL_SOURCES"), "{error}");
        }
    }

    #[test]
    fn only_a_repository_is_redirected_to() {
        let from = GitUrl::parse("https://git.example.org/a.git").unwrap();
        let to = |text: &str| repository(&from, &Url::parse(text).unwrap()).map(|url| url.to_string());
        assert_eq!(to("https://b.example.org/c.git/info/refs?service=x#y").unwrap(), "https://b.example.org/c.git");
        for text in ["https://b.example.org/login?return=/info/refs", "file:///c.git/info/refs", "ssh://b/c/info/refs"]
        {
            assert!(to(text).is_err(), "{text}");
        }
    }
}
