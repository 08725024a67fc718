//! How a remote becomes settings of one git command: the checked address, the credential for that host only, the ssh
//! command. It looks up names and writes the key file; it sends nothing.

use std::{net::SocketAddr, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use base64::Engine;
use larder_core::{Error, Kind, Result};
use larder_sources::{
    git::{GitSecret, Remote},
    url::{GitUrl, Transport},
};

use super::{
    GitProgram,
    failure::{Failure, Reason},
    mirror,
    process::{Call, Outcome},
    redirect,
};
use crate::guard::Guard;

/// A key file older than this belongs to nobody: its process was killed before it could remove it.
const KEY_FORGOTTEN: Duration = Duration::from_secs(6 * 3_600);

/// What one command needs to reach one URL.
pub(super) struct Access {
    config: Vec<(String, String)>,
    env: Vec<(&'static str, String)>,
    secrets: Vec<String>,
    /// The folder of the ssh key, removed when the command is done.
    folders: Vec<tempfile::TempDir>,
}

impl Access {
    /// Checks where `at` leads and prepares the credential of `remote`, if `at` is where it belongs.
    pub(super) async fn open(git: &GitProgram, remote: &Remote, at: &GitUrl) -> Result<Self> {
        let secret = remote.secret.as_ref().filter(|_| belongs(remote, at));
        let mut access = Self {
            config: vec![("remote.origin.url".into(), at.as_str().into())],
            env: Vec::new(),
            secrets: Vec::new(),
            folders: Vec::new(),
        };
        let scheme = match at.transport() {
            Transport::Https => "https",
            Transport::Http => "http",
            Transport::Ssh => "ssh",
            Transport::File => "file",
        };
        access.env.push(("GIT_ALLOW_PROTOCOL", scheme.into()));
        match at.transport() {
            Transport::File if !git.settings.allow_local => {
                return Err(Error::invalid(format!(
                    "{at} is on this machine: set LARDER_ALLOW_LOCAL_SOURCES=true if sources like this are meant"
                )));
            }
            Transport::File => {}
            Transport::Https | Transport::Http => access.over_http(git, at, scheme, secret).await?,
            Transport::Ssh => access.over_ssh(git, at, secret).await?,
        }
        Ok(access)
    }

    async fn over_http(
        &mut self,
        git: &GitProgram,
        at: &GitUrl,
        scheme: &str,
        secret: Option<&GitSecret>,
    ) -> Result<()> {
        if secret.is_some() && scheme == "http" && !git.settings.allow_local {
            return Err(Error::invalid(format!(
                "the credential for {} would travel readable for everyone on the way: use https",
                at.origin()
            )));
        }
        let port = at.port().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let addresses = Guard::new(git.settings.allow_local).addresses(at.host(), port).await?;
        if at.host().parse::<std::net::IpAddr>().is_err() {
            self.config.push(("http.curloptResolve".into(), pinned(at.host(), port, &addresses)));
        }
        if let Some(value) = secret.map(|secret| authorization(at, secret)).transpose()? {
            let key = format!("http.{scheme}://{}/.extraHeader", bracketed(at));
            self.secrets.extend(value.split_once(' ').map(|(_, sealed)| sealed.to_owned()));
            self.secrets.extend(secret.and_then(plain_text).filter(|text| text.len() > 3).map(str::to_owned));
            self.config.push((key, format!("Authorization: {value}")));
        }
        Ok(())
    }

    async fn over_ssh(&mut self, git: &GitProgram, at: &GitUrl, secret: Option<&GitSecret>) -> Result<()> {
        let port = at.port().unwrap_or(22);
        let addresses = Guard::new(git.settings.allow_local).addresses(at.host(), port).await?;
        let identity = match secret {
            None => "none".into(),
            Some(GitSecret::Ssh { key }) => {
                let (folder, file) = key_file(git, key).await?;
                self.folders.push(folder);
                file
            }
            Some(_) => {
                return Err(Error::invalid(format!(
                    "{} is reached by ssh, and its credential is not a key: store one with `larder credential add NAME --kind ssh`",
                    at.host()
                )));
            }
        };
        let alias = if port == 22 { at.host().to_owned() } else { format!("[{}]:{port}", at.host()) };
        let idle = git.settings.limits.idle.as_secs().max(3);
        let options = [
            ("BatchMode", "yes".to_owned()),
            ("IdentitiesOnly", "yes".into()),
            ("IdentityAgent", "none".into()),
            ("IdentityFile", identity),
            ("HostName", addresses[0].ip().to_string()),
            ("HostKeyAlias", alias),
            ("CheckHostIP", "no".into()),
            ("StrictHostKeyChecking", "accept-new".into()),
            ("UserKnownHostsFile", git.settings.known_hosts.display().to_string()),
            ("HashKnownHosts", "no".into()),
            ("UpdateHostKeys", "no".into()),
            ("ConnectTimeout", idle.min(30).to_string()),
            ("ServerAliveInterval", (idle / 3).to_string()),
            ("ServerAliveCountMax", "3".into()),
            ("ForwardAgent", "no".into()),
            ("ControlPath", "none".into()),
            ("PermitLocalCommand", "no".into()),
            ("ProxyCommand", "none".into()),
            ("LogLevel", "ERROR".into()),
        ];
        let options = options.map(|(name, value)| format!("-o {}", quoted(&format!("{name}={}", ssh_value(&value)))));
        self.env.push(("GIT_SSH_COMMAND", format!("ssh -F none {}", options.join(" "))));
        self.env.push(("GIT_SSH_VARIANT", "ssh".into()));
        Ok(())
    }

    fn apply(&self, mut call: Call) -> Call {
        for (key, value) in &self.config {
            call = call.config(key, value);
        }
        for (name, value) in &self.env {
            call = call.env(name, value);
        }
        call.hide(&self.secrets)
    }
}

impl GitProgram {
    /// Runs a command that talks to `remote` (which it knows as `origin`) and returns what it wrote, at most `output`
    /// bytes. Follows a redirect of the whole repository, to where Larder itself has looked.
    pub(super) async fn talk(
        &self,
        remote: &Remote,
        call: &(dyn Fn() -> Call + Sync),
        input: &[u8],
        output: u64,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let known = self.moved_to(&remote.url);
        let mut at = known.clone().unwrap_or_else(|| remote.url.clone());
        for attempt in 0..3 {
            let access = Access::open(self, remote, &at).await?;
            let ended = access.apply(call()).run(self, input.to_vec(), output, limit).await?;
            if ended.outcome == Outcome::Success {
                return Ok(ended.stdout);
            }
            let failure = Failure::explain(&ended, &at, remote.secret.is_some(), limit);
            if known.is_some() && attempt == 0 && matches!(failure.reason, Reason::Redirected | Reason::Other) {
                self.forget_move(&remote.url);
                at = remote.url.clone();
            } else if matches!(failure.reason, Reason::Redirected) && attempt < 2 {
                at = redirect::target(self, remote).await?;
                self.remember_move(&remote.url, &at);
            } else {
                return Err(failure);
            }
        }
        Err(Error::new(Kind::Upstream, format!("{} keeps redirecting: give the address that it ends at", remote.url))
            .into())
    }
}

/// Whether the credential of `remote` may go to `at`: the same host and port, and never from https to http.
pub(super) fn belongs(remote: &Remote, at: &GitUrl) -> bool {
    at.origin() == remote.url.origin()
        && (at.transport() == remote.url.transport() || at.transport() == Transport::Https)
}

/// The value of the `Authorization` header for an http remote.
pub(super) fn authorization(at: &GitUrl, secret: &GitSecret) -> Result<String> {
    let value = match secret {
        GitSecret::Basic { username, password } => {
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
        }
        GitSecret::Bearer(token) => format!("Bearer {token}"),
        GitSecret::Ssh { .. } => {
            return Err(Error::invalid(format!(
                "{} is reached by {}, and its credential is an ssh key: use git@{}:… or store a token",
                at.host(),
                if at.transport() == Transport::Https { "https" } else { "http" },
                at.host()
            )));
        }
    };
    if value.chars().any(char::is_control) {
        return Err(Error::invalid(format!("the credential for {} holds a line break: store it again", at.host())));
    }
    Ok(value)
}

fn plain_text(secret: &GitSecret) -> Option<&str> {
    match secret {
        GitSecret::Basic { password, .. } => Some(password),
        GitSecret::Bearer(token) => Some(token),
        GitSecret::Ssh { .. } => None,
    }
}

/// `host:port:address,address` as curl reads it.
fn pinned(host: &str, port: u16, addresses: &[SocketAddr]) -> String {
    let list: Vec<String> = addresses
        .iter()
        .map(|address| match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        })
        .collect();
    format!("{host}:{port}:{}", list.join(","))
}

/// The origin as it stands in a URL.
fn bracketed(at: &GitUrl) -> String {
    let host = if at.host().contains(':') { format!("[{}]", at.host()) } else { at.host().to_owned() };
    at.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// Writes the key where only this user can read it, in memory if the system has such a folder.
async fn key_file(git: &GitProgram, key: &str) -> Result<(tempfile::TempDir, String)> {
    let own = git.settings.mirrors.join("keys");
    let text = format!("{}\n", key.replace("\r\n", "\n").trim_end());
    let written = tokio::task::spawn_blocking(move || {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory } else { own.as_path() };
        std::fs::create_dir_all(folder)?;
        remove_forgotten_keys(folder);
        let folder = tempfile::Builder::new().prefix("larder-key-").tempdir_in(folder)?;
        let path = folder.path().join("key");
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok((folder, path.display().to_string()))
    });
    match written.await {
        Ok(written) => written.map_err(|error| mirror::disk("writing an ssh key for git", error)),
        Err(error) => Err(Error::internal("writing an ssh key for git", error)),
    }
}

fn remove_forgotten_keys(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|written| written.elapsed().is_ok_and(|age| age > KEY_FORGOTTEN));
        if old
            && entry.file_name().to_string_lossy().starts_with("larder-key-")
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, "cannot remove an ssh key that a killed process left");
        }
    }
}

/// As one word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// As one value for ssh, which splits at spaces and expands `%`.
fn ssh_value(value: &str) -> String {
    let value = value.replace('%', "%%");
    if value.contains(' ') { format!("\"{value}\"") } else { value }
}
