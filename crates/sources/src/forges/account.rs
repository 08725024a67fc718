//! What a forge says of a credential: whom it stands for, what it may do, when it ends.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use larder_core::{Result, Time};
use larder_db::{credentials::Credential, sources as rows};
use url::Url;

use super::{
    Api, ForgeKind, Forges,
    client::{RateLimit, Said},
};
use crate::{credentials, fetch};

/// How long before the end of a credential people hear of it.
pub const SOON: Duration = Duration::from_secs(14 * 86_400);

/// What a forge says of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The API that said so.
    pub api: String,
    /// Whom it stands for, if the forge tells that to it.
    pub account: Option<String>,
    /// What it may do, in the forge's words; `None` if the forge does not say.
    pub scopes: Option<Vec<String>>,
    /// When it ends, if that is known.
    pub expires_at: Option<Time>,
    /// How often it may ask.
    pub rate: Option<RateLimit>,
    /// What is wrong with it, or soon will be.
    pub warnings: Vec<String>,
    /// Whether the forge takes it at all.
    pub accepted: bool,
}

impl Forges {
    /// Asks the forge of a credential what it thinks of it. `None`: it belongs to no forge whose API is known.
    pub async fn standing(&self, credential: &Credential) -> Result<Option<Standing>> {
        let Some(kind) = ForgeKind::parse(&credential.kind) else { return Ok(None) };
        let Some(base) = self.api_of(kind, credential).await? else { return Ok(None) };
        let secret = self.secret(credential, &base)?;
        let db = &self.sources.db;
        let mut api = Api::new(db.clone(), Arc::clone(&self.fetch), kind, base.clone(), Some(secret));
        let dialect = kind.dialect();
        let mut standing = Standing {
            api: base.to_string(),
            account: None,
            scopes: None,
            expires_at: None,
            rate: None,
            warnings: Vec::new(),
            accepted: true,
        };
        let url = api.url(dialect.whoami())?;
        match api.ask(&url, None).await? {
            Said::New(answer) => {
                let account = dialect
                    .account(&answer.body)
                    .map_err(|error| api.wrong(&url, "answers with something else").caused_by(error))?;
                standing.account = Some(account.name);
                standing.scopes = account.scopes.or_else(|| told_scopes(&answer.headers));
                standing.expires_at = account.expires_at.or(api.expires_at);
            }
            Said::Refused(status) if status == http::StatusCode::UNAUTHORIZED => {
                standing.accepted = false;
                standing.warnings.push("the forge does not take it: it ended, was revoked, or is wrong".to_owned());
            }
            Said::Refused(_) | Said::Nothing | Said::Same => {
                standing.warnings.push("it may not ask whom it stands for: its scopes are not known".to_owned());
            }
            Said::Later(at) => standing.warnings.push(format!("the forge is not asked before {at}: its rate limit")),
        }
        standing.rate = api.rate;
        if let Some(lacking) = standing.scopes.as_deref().and_then(|scopes| dialect.lacking(scopes)) {
            standing.warnings.push(lacking);
        }
        standing.warnings.extend(ending(standing.expires_at, db.host().now()));
        Ok(Some(standing))
    }

    /// The API that a credential is for: that of a source that uses it, or the usual one of its host. A credential that
    /// belongs to no host yet is shown to nobody.
    async fn api_of(&self, kind: ForgeKind, credential: &Credential) -> Result<Option<Url>> {
        let sources = rows::list(&self.sources.db).await?;
        let own = sources
            .iter()
            .find(|source| source.credential_id == Some(credential.id) && ForgeKind::of(source) == Some(kind));
        if let Some(source) = own {
            return self.api_url(kind, Some(&source.url)).map(Some);
        }
        let Some(host) = credential.host.as_deref() else { return Ok(None) };
        let usual = kind.usual_api().and_then(|text| Url::parse(text).ok()).filter(|usual| {
            let origin = fetch::origin(usual);
            origin == host || credentials::other_host(kind.credential(), &origin).as_deref() == Some(host)
        });
        if usual.is_some() {
            return Ok(usual);
        }
        let api = credentials::other_host(kind.credential(), host).unwrap_or_else(|| host.to_owned());
        self.api_url(kind, Some(&format!("https://{api}"))).map(Some)
    }
}

/// What people should hear of the end of a credential.
pub fn ending(expires_at: Option<Time>, now: Time) -> Option<String> {
    let at = expires_at?;
    if at <= now {
        return Some(format!("it ended at {at}: make another token, and add it as a credential"));
    }
    let days = at.since(now).as_secs() / 86_400;
    (at.since(now) < SOON).then(|| format!("it ends at {at}, in {days} days: make another token before that"))
}

/// The scopes that GitHub, Gitea and Bitbucket tell beside each answer.
fn told_scopes(headers: &HeaderMap) -> Option<Vec<String>> {
    let text = headers.get("x-oauth-scopes")?.to_str().ok()?;
    let scopes = text.split(',').map(str::trim).filter(|scope| !scope.is_empty());
    Some(scopes.map(str::to_owned).collect())
}
