//! Credentials: adding, listing, removing them, and the one place where a sealed secret is opened and handed to the
//! Git port, for the one host that it was made for.

use http::{HeaderName, header};
use larder_core::{Error, Kind, Result, grant::check_name};
use larder_db::{
    Batch, Db, changes, credentials as rows,
    credentials::Credential,
    events,
    events::{Actor, Event},
};

use crate::{
    fetch::Authorization,
    git::GitSecret,
    url::{GitUrl, Transport},
    vault::{Binding, Sealed, Vault},
};

/// The topic under which a change of the credentials is told to the caches ([`changes`]).
pub const TOPIC: &str = "credentials";

/// How a credential is shown to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// HTTP Basic with a user name.
    Basic,
    /// `Authorization: Bearer`.
    Bearer,
    /// A GitHub token.
    Github,
    /// A GitLab token.
    Gitlab,
    /// A Bitbucket access token, or an app password with a user name.
    Bitbucket,
    /// A Gitea or Forgejo token.
    Gitea,
    /// An OpenSSH private key.
    Ssh,
    /// A header of a registry's own, whose name stands in place of the user's.
    Header,
}

impl CredentialKind {
    /// Every kind with its word.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Basic, "basic"),
        (Self::Bearer, "bearer"),
        (Self::Github, "github"),
        (Self::Gitlab, "gitlab"),
        (Self::Bitbucket, "bitbucket"),
        (Self::Gitea, "gitea"),
        (Self::Ssh, "ssh"),
        (Self::Header, "header"),
    ];

    /// The kind of this word.
    pub fn parse(word: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(kind, _)| *kind).ok_or_else(|| {
            let words: Vec<_> = Self::ALL.iter().map(|(_, word)| *word).collect();
            Error::invalid(format!("`{word}` is not a kind of credential: write one of {}", words.join(", ")))
        })
    }

    /// What a secret of this kind is to the Git port. Forges take a token as the password of a user of their own.
    fn open(self, username: Option<&str>, secret: String) -> Result<GitSecret> {
        let basic = |default: &str, secret: String| GitSecret::Basic {
            username: username.unwrap_or(default).to_owned(),
            password: secret,
        };
        Ok(match self {
            Self::Header => return Err(not_for_git()),
            Self::Basic => basic("", secret),
            Self::Bearer => GitSecret::Bearer(secret),
            Self::Github => basic("x-access-token", secret),
            Self::Gitlab => basic("oauth2", secret),
            // An API token goes with an address of mail at the API, and with this name in Git.
            Self::Bitbucket if username.is_some_and(|name| name.contains('@')) => {
                GitSecret::Basic { username: "x-bitbucket-api-token-auth".to_owned(), password: secret }
            }
            Self::Bitbucket => basic("x-token-auth", secret),
            Self::Gitea => basic("git", secret),
            Self::Ssh => GitSecret::Ssh { key: secret },
        })
    }
}

fn not_for_git() -> Error {
    Error::invalid("the credential is a header for a registry, and Git cannot send it: add a token or a password")
}

/// The hosts of forges whose API is not where their repositories are. Nothing that a forge answers adds to them.
const PAIRS: [(CredentialKind, &str, &str); 2] = [
    (CredentialKind::Github, "github.com", "api.github.com"),
    (CredentialKind::Bitbucket, "bitbucket.org", "api.bitbucket.org"),
];

/// What every GitHub of one company's own ends in; `api.` goes in front of it.
const OWN_GITHUB: &str = ".ghe.com";

/// The API of a forge whose repositories are at `origin`, and the other way round, if the two are different hosts.
pub fn other_host(kind: CredentialKind, origin: &str) -> Option<String> {
    let pair = PAIRS.iter().filter(|pair| pair.0 == kind).find_map(|(_, clone, api)| match origin {
        origin if origin == *clone => Some(*api),
        origin if origin == *api => Some(*clone),
        _ => None,
    });
    if pair.is_some() || kind != CredentialKind::Github {
        return pair.map(str::to_owned);
    }
    let name = origin.strip_suffix(OWN_GITHUB)?;
    let (name, api) = name.strip_prefix("api.").map_or((name, false), |name| (name, true));
    let usable = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    usable.then(|| format!("{}{name}{OWN_GITHUB}", if api { "" } else { "api." }))
}

/// Whether a credential that belongs to the host `bound` may be sent to `origin`.
fn reaches(kind: CredentialKind, bound: &str, origin: &str) -> bool {
    bound == origin || other_host(kind, origin).is_some_and(|other| other == bound)
}

/// A credential that is about to be added.
#[derive(Clone, Debug)]
pub struct NewCredential<'a> {
    /// The name that people give it.
    pub name: &'a str,
    /// The word of its kind.
    pub kind: &'a str,
    /// The user name that goes with it.
    pub username: Option<&'a str>,
    /// The one host that it may be sent to; without it the host of the first source that uses it.
    pub host: Option<&'a str>,
}

/// Adds a credential, sealed.
pub async fn add(db: &Db, vault: &Vault, actor: &Actor, new: NewCredential<'_>, secret: &str) -> Result<Credential> {
    check_name(new.name)?;
    let kind = CredentialKind::parse(new.kind)?;
    let secret = checked_secret(kind, secret)?;
    check_username(kind, new.username)?;
    let (host, id) = (db.host(), db.host().new_id());
    let at_host = new.host.map(str::to_ascii_lowercase);
    let id_text = id.to_string();
    let binding = Binding { id: &id_text, kind: new.kind, username: new.username, host: at_host.as_deref() };
    let sealed = vault.seal(host, binding, &secret)?;
    let credential = Credential {
        id,
        name: new.name.to_owned(),
        kind: new.kind.to_owned(),
        username: new.username.map(str::to_owned),
        host: at_host,
        key_id: sealed.key_id,
        sealed: sealed.bytes,
        created_at: host.now(),
    };
    let event = Event::new(actor, "credential.add", format!("credential:{}", new.name))
        .with(serde_json::json!({"kind": new.kind, "host": credential.host}));
    let batch =
        Batch::new().with(rows::name_free(new.name)).with(rows::insert(&credential)).with(events::record(host, &event));
    db.commit(batch).await.map_err(|error| match error {
        error if error.is_guard("credential name is free") => Error::conflict(format!(
            "there is a credential called `{}` already: choose another name, or remove that one first",
            new.name
        )),
        error => error.into(),
    })?;
    Ok(credential)
}

/// Gives a credential another secret in place: whatever uses it goes on with that one. Its kind and the host that it may be
/// sent to stay; its user name as well, unless there is another one.
pub async fn rotate(
    db: &Db,
    vault: &Vault,
    actor: &Actor,
    name_or_id: &str,
    username: Option<&str>,
    secret: &str,
) -> Result<Credential> {
    let before = find(db, name_or_id).await?;
    let kind = CredentialKind::parse(&before.kind)?;
    let secret = checked_secret(kind, secret)?;
    let username = username.or(before.username.as_deref());
    check_username(kind, username)?;
    let (host, id) = (db.host(), before.id.to_string());
    let binding = Binding { id: &id, kind: &before.kind, username, host: before.host.as_deref() };
    let sealed = vault.seal(host, binding, &secret)?;
    let after = Credential {
        username: username.map(str::to_owned),
        key_id: sealed.key_id,
        sealed: sealed.bytes,
        ..before.clone()
    };
    let mut detail = serde_json::json!({"kind": after.kind, "host": after.host});
    if after.username != before.username {
        detail["username"] = serde_json::json!({"from": before.username, "to": after.username});
    }
    let event = Event::new(actor, "credential.rotate", format!("credential:{}", after.name)).with(detail);
    let batch = Batch::new()
        .with(rows::is_same(&before))
        .with(rows::reseal(after.id, username, &after.key_id, after.sealed.clone()))
        .with(events::record(host, &event))
        .with(changes::notify(host, TOPIC));
    db.commit(batch).await.map_err(|error| match error {
        error if error.is_guard("credential is the same") => Error::conflict(format!(
            "somebody else has changed the credential `{}` just now: look at it (`larder credential list`), and try again",
            after.name
        )),
        error => error.into(),
    })?;
    Ok(after)
}

fn check_username(kind: CredentialKind, username: Option<&str>) -> Result<()> {
    if kind == CredentialKind::Basic && username.is_none() {
        return Err(Error::invalid("a basic credential needs a user name: add --username NAME"));
    }
    if kind == CredentialKind::Header {
        check_header(username)?;
    }
    if username.is_some_and(|name| name.is_empty() || name.contains([':', '\n', '\r', '\0'])) {
        return Err(Error::invalid("a user name is neither empty nor does it hold a colon or a line break"));
    }
    Ok(())
}

/// Checks the name of a header that holds a secret. Those of the connection are not for that.
fn check_header(name: Option<&str>) -> Result<()> {
    let name = name.and_then(|name| name.parse::<HeaderName>().ok()).ok_or_else(|| {
        Error::invalid("a header needs its name in place of the user's: add --username HEADER, such as X-Api-Key")
    })?;
    let of_the_connection =
        [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT];
    if of_the_connection.contains(&name) {
        return Err(Error::invalid(format!("the header `{name}` belongs to the connection and holds no secret")));
    }
    Ok(())
}

/// A secret as it is used: tokens without the line break that `echo` adds, keys with the one that OpenSSH wants.
fn checked_secret(kind: CredentialKind, secret: &str) -> Result<String> {
    let trimmed = secret.trim();
    if trimmed.is_empty() {
        return Err(Error::invalid(
            "the secret is empty: give it on standard input, for example `larder credential add … < token.txt`",
        ));
    }
    if secret.len() > 64 * 1024 {
        return Err(Error::new(Kind::TooLarge, "the secret is larger than 64 KiB: that is no token and no key"));
    }
    if kind == CredentialKind::Ssh {
        if !trimmed.starts_with("-----BEGIN ") || !trimmed.contains("PRIVATE KEY-----") {
            return Err(Error::invalid(
                "this is not a private key: give the file that `ssh-keygen` made, without `.pub`",
            ));
        }
        return Ok(format!("{}\n", trimmed.replace("\r\n", "\n")));
    }
    if trimmed.chars().any(char::is_control) {
        return Err(Error::invalid("the secret has a line break or another control character in it"));
    }
    Ok(trimmed.to_owned())
}

/// The credential with this name or id, or an error that says how to see which there are.
pub async fn find(db: &Db, name_or_id: &str) -> Result<Credential> {
    rows::find(db, name_or_id).await?.ok_or_else(|| {
        Error::not_found(format!("there is no credential called `{name_or_id}`: `larder credential list` shows all"))
    })
}

/// Whether the vault can still open a credential; if not, the error says why and what to do.
pub fn check_seal(vault: &Vault, credential: &Credential) -> Result<()> {
    unseal(vault, credential).map(drop)
}

/// Takes a credential away that no source uses.
pub async fn remove(db: &Db, actor: &Actor, name_or_id: &str) -> Result<Credential> {
    let credential = find(db, name_or_id).await?;
    let event = Event::new(actor, "credential.remove", format!("credential:{}", credential.name));
    let batch = Batch::new()
        .with(rows::unused(credential.id))
        .with(rows::remove(credential.id))
        .with(events::record(db.host(), &event));
    db.commit(batch).await.map_err(|error| match error {
        error if error.is_guard("credential is not used") => Error::conflict(format!(
            "the credential `{}` is in use: remove the sources that need it first (`larder credential list`), or give them another one (`larder source set`)",
            credential.name
        )),
        error => error.into(),
    })?;
    Ok(credential)
}

/// Checks that a credential can open `url`, and binds it to that host if it is bound to none yet.
pub async fn bind(db: &Db, vault: &Vault, actor: &Actor, credential: &Credential, url: &GitUrl) -> Result<()> {
    let kind = CredentialKind::parse(&credential.kind)?;
    let ssh = url.transport() == Transport::Ssh;
    if url.transport() == Transport::File {
        return Err(Error::invalid("a file source needs no credential"));
    }
    if kind == CredentialKind::Header {
        return Err(not_for_git());
    }
    if ssh != (kind == CredentialKind::Ssh) {
        let (wanted, given) =
            if ssh { ("an ssh credential", "it is none") } else { ("a token or password", "it is an ssh key") };
        return Err(Error::invalid(format!("{url} needs {wanted}, but `{}` will not do: {given}", credential.name)));
    }
    bind_to(db, vault, actor, credential, &url.origin()).await
}

/// Checks that a credential can open the registry at `origin` ([`fetch::origin`](crate::fetch::origin)), and binds it to
/// that host if it is bound to none yet.
pub async fn bind_to_host(db: &Db, vault: &Vault, actor: &Actor, credential: &Credential, origin: &str) -> Result<()> {
    if CredentialKind::parse(&credential.kind)? == CredentialKind::Ssh {
        return Err(Error::invalid(format!(
            "{origin} needs a token or password, but `{}` will not do: it is an ssh key",
            credential.name
        )));
    }
    bind_to(db, vault, actor, credential, origin).await
}

async fn bind_to(db: &Db, vault: &Vault, actor: &Actor, credential: &Credential, origin: &str) -> Result<()> {
    let kind = CredentialKind::parse(&credential.kind)?;
    match &credential.host {
        Some(host) if reaches(kind, host, origin) => return Ok(()),
        Some(host) => return Err(bound_elsewhere(credential, host, origin)),
        None => {}
    }
    let secret = unseal(vault, credential)?;
    let id = credential.id.to_string();
    let binding =
        Binding { id: &id, kind: &credential.kind, username: credential.username.as_deref(), host: Some(origin) };
    let sealed = vault.seal(db.host(), binding, &secret)?;
    let event = Event::new(actor, "credential.bind", format!("credential:{}", credential.name))
        .with(serde_json::json!({"host": origin}));
    let batch = Batch::new()
        .with(rows::unbound(credential.id))
        .with(rows::bind(credential.id, origin, &sealed.key_id, sealed.bytes))
        .with(events::record(db.host(), &event))
        .with(changes::notify(db.host(), TOPIC));
    db.commit(batch).await?;
    Ok(())
}

/// Opens the secret of a credential for `url`, whose host must be the one that it was made for.
pub fn open_for(vault: &Vault, credential: &Credential, url: &GitUrl) -> Result<GitSecret> {
    open_at(vault, credential, &url.origin())
}

/// Opens the secret of a credential for the registry at `origin`, which must be the host that it was made for.
pub fn open_for_host(vault: &Vault, credential: &Credential, origin: &str) -> Result<Authorization> {
    if let (CredentialKind::Header, Some(name)) = (CredentialKind::parse(&credential.kind)?, &credential.username) {
        let value = unseal_at(vault, credential, origin)?;
        return Ok(Authorization::Header { name: name.clone(), value });
    }
    open_at(vault, credential, origin)?.try_into()
}

/// Opens the secret of a credential for the API of a forge at `origin`, as this kind of forge wants to be shown it.
pub fn open_for_api(vault: &Vault, credential: &Credential, origin: &str) -> Result<Authorization> {
    let kind = CredentialKind::parse(&credential.kind)?;
    let secret = match open_at(vault, credential, origin)? {
        GitSecret::Basic { password, .. } => password,
        other => return other.try_into(),
    };
    Ok(match (kind, &credential.username) {
        (CredentialKind::Gitlab, _) => Authorization::Header { name: "private-token".to_owned(), value: secret },
        (CredentialKind::Gitea, _) => {
            Authorization::Header { name: "authorization".to_owned(), value: format!("token {secret}") }
        }
        (CredentialKind::Basic | CredentialKind::Bitbucket, Some(username)) => {
            Authorization::Basic { username: username.clone(), password: secret }
        }
        _ => Authorization::Bearer(secret),
    })
}

fn open_at(vault: &Vault, credential: &Credential, origin: &str) -> Result<GitSecret> {
    let kind = CredentialKind::parse(&credential.kind)?;
    kind.open(credential.username.as_deref(), unseal_at(vault, credential, origin)?)
}

fn unseal_at(vault: &Vault, credential: &Credential, origin: &str) -> Result<String> {
    let kind = CredentialKind::parse(&credential.kind)?;
    match &credential.host {
        Some(host) if reaches(kind, host, origin) => unseal(vault, credential),
        other => Err(bound_elsewhere(credential, other.as_deref().unwrap_or("no host yet"), origin)),
    }
}

/// The header of a registry, out of what Git would be shown.
impl TryFrom<GitSecret> for Authorization {
    type Error = Error;

    fn try_from(secret: GitSecret) -> Result<Self> {
        match secret {
            GitSecret::Basic { username, password } => Ok(Self::Basic { username, password }),
            GitSecret::Bearer(token) => Ok(Self::Bearer(token)),
            GitSecret::Ssh { .. } => Err(Error::invalid(
                "a registry needs a token or a password, and the credential is an ssh key: add another one",
            )),
        }
    }
}

fn unseal(vault: &Vault, credential: &Credential) -> Result<String> {
    let id = credential.id.to_string();
    let binding = Binding {
        id: &id,
        kind: &credential.kind,
        username: credential.username.as_deref(),
        host: credential.host.as_deref(),
    };
    vault.open(binding, &Sealed { key_id: credential.key_id.clone(), bytes: credential.sealed.clone() })
}

fn bound_elsewhere(credential: &Credential, host: &str, origin: &str) -> Error {
    Error::invalid(format!(
        "the credential `{}` belongs to {host} and is not sent to {origin}: add another credential for that host",
        credential.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_reaches_its_host_and_the_other_half_of_its_forge() {
        use CredentialKind::{Basic, Bitbucket, Github, Gitlab};
        for (kind, bound, origin) in [
            (Github, "github.com", "api.github.com"),
            (Github, "api.github.com", "github.com"),
            (Github, "acme.ghe.com", "api.acme.ghe.com"),
            (Github, "api.acme.ghe.com", "acme.ghe.com"),
            (Github, "git.example.org", "git.example.org"),
            (Bitbucket, "bitbucket.org", "api.bitbucket.org"),
            (Gitlab, "gitlab.com", "gitlab.com"),
            (Basic, "127.0.0.1:80", "127.0.0.1:80"),
        ] {
            assert!(reaches(kind, bound, origin), "{bound} {origin}");
        }
        for (kind, bound, origin) in [
            (Github, "github.com", "api.github.com:80"),
            (Github, "github.com", "api.bitbucket.org"),
            (Github, "github.com", "raw.github.com"),
            (Github, "git.example.org", "api.git.example.org"),
            (Github, "acme.ghe.com", "api.other.ghe.com"),
            (Github, "acme.ghe.com", "api.ghe.com"),
            (Github, "acme.ghe.com", "api.api.acme.ghe.com"),
            (Github, "acme.ghe.com", "acme.ghe.com:8443"),
            (Bitbucket, "bitbucket.org", "api.github.com"),
            (Basic, "github.com", "api.github.com"),
            (Gitlab, "gitlab.com", "api.gitlab.com"),
        ] {
            assert!(!reaches(kind, bound, origin), "{bound} {origin}");
        }
    }

    #[test]
    fn an_api_token_has_a_name_of_its_own_in_git() {
        let shown = |username| match CredentialKind::Bitbucket.open(username, "x".into()) {
            Ok(GitSecret::Basic { username, .. }) => username,
            _ => unreachable!("Git is shown a user name and a password"),
        };
        assert_eq!(shown(None), "x-token-auth");
        assert_eq!(shown(Some("ada")), "ada");
        assert_eq!(shown(Some("ada@example.org")), "x-bitbucket-api-token-auth");
    }

    #[test]
    fn a_header_has_a_name_and_is_not_for_git() {
        assert!(CredentialKind::Header.open(Some("X-Api-Key"), "x".into()).is_err());
        assert!(check_header(Some("X-Api-Key")).is_ok() && check_header(Some("authorization")).is_ok());
        for name in [None, Some(""), Some("X Api"), Some("Host"), Some("Transfer-Encoding")] {
            assert_eq!(check_header(name).unwrap_err().kind(), Kind::Invalid, "{name:?}");
        }
    }
}
