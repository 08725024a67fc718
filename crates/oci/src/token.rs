//! The gate: who is asking, in the words that clients of container registries know.
//!
//! A client that is told 401 fetches a short-lived pass at `/v2/token`, for the repositories and actions that it names, and
//! shows it as a bearer token. A pass never opens more than the token that it was made from: what that may do is looked
//! up again whenever the pass is shown. Basic authentication with the token itself works everywhere as well.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, StatusCode, header};
use larder_auth::{Authenticator, Decision, View, decide, unauthenticated};
use larder_core::{
    Error, Host, Kind,
    grant::{Action, Actions, Grant, Principal, PrincipalName},
    pattern::Pattern,
};
use larder_http::{AccessNote, Query, Request, Response};
use serde_json::json;

use crate::{
    ID,
    endpoint::Endpoint,
    error::{Code, Refusal},
    names,
};

/// How long a pass lasts: long enough for the slowest push of one layer, since clients fetch another when it is over.
const PASS: Duration = Duration::from_secs(15 * 60);

/// How long a client that asks for an offline token may come back for passes with it.
const REFRESH: Duration = Duration::from_secs(90 * 86_400);

/// The largest form, in bytes.
const FORM: usize = 64 * 1024;

/// How many repositories one pass is good for.
const MOST_SCOPES: usize = 100;

/// The actions in the words of a scope.
const WORDS: [(&str, Action); 3] = [("pull", Action::Read), ("push", Action::Publish), ("delete", Action::Delete)];

/// Gives out passes, and tells clients where.
pub struct Gate {
    authenticator: Authenticator,
    host: Host,
    /// Where clients reach the server, without a slash at its end; if nobody said so, where they say that they reached it.
    public_url: Option<String>,
}

/// What a client asks of `/v2/token`.
#[derive(Debug, Default)]
struct Asked {
    scopes: Vec<String>,
    offline: bool,
    grant_type: String,
    username: String,
    password: String,
    refresh_token: String,
}

impl Asked {
    fn read(query: Query<'_>) -> Self {
        let mut asked = Self::default();
        for (name, value) in query.pairs() {
            match name.as_ref() {
                // Several, in several parameters or in one with spaces.
                "scope" => asked.scopes.extend(value.split_whitespace().map(str::to_owned)),
                "offline_token" => asked.offline = value == "true" || value == "1",
                "access_type" => asked.offline = value == "offline",
                "grant_type" => asked.grant_type = value.into_owned(),
                "username" => asked.username = value.into_owned(),
                "password" => asked.password = value.into_owned(),
                "refresh_token" => asked.refresh_token = value.into_owned(),
                _ => {}
            }
        }
        asked
    }
}

impl Gate {
    /// For a server that clients reach at `public_url`, if that was configured.
    pub fn new(authenticator: Authenticator, host: Host, public_url: Option<String>) -> Self {
        Self { authenticator, host, public_url }
    }

    /// What a principal sees of all repositories.
    pub(crate) fn view(&self, principal: &Principal) -> Arc<View> {
        self.authenticator.view(principal, ID)
    }

    /// 401, with where to get a pass, and for what.
    pub(crate) fn who_are_you(&self, request: &Request, wanted: Option<(&str, Action)>) -> Refusal {
        Refusal::new(
            Code::Unauthorized,
            "a token is needed here",
            "log in with any user name and a token as the password: `larder token create NAME` makes one",
        )
        .with(header::WWW_AUTHENTICATE, self.challenge(request, wanted, false))
    }

    /// 401 to somebody whose pass is for something else: clients fetch another one then.
    pub(crate) fn ask_for_more(&self, request: &Request, name: &str, action: Action) -> Refusal {
        Refusal::new(
            Code::Denied,
            format!("you may not {} `{name}`", action.as_str()),
            format!("`larder grant add PRINCIPAL {}:{ID}:{name}` allows it", action.as_str()),
        )
        .status(StatusCode::UNAUTHORIZED)
        .with(header::WWW_AUTHENTICATE, self.challenge(request, Some((name, action)), true))
    }

    /// Adds the challenge to what the site itself refuses.
    pub(crate) fn dressed(&self, request: &Request, error: &Error, face: Response) -> Response {
        if error.kind() != Kind::Unauthenticated {
            return face;
        }
        let path = request.decoded_path();
        let endpoint = Endpoint::parse(&path);
        if endpoint == Some(Endpoint::Token) {
            return face
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="Larder", charset="UTF-8""#));
        }
        let action = match request.method {
            Method::GET | Method::HEAD => Action::Read,
            Method::DELETE => Action::Delete,
            _ => Action::Publish,
        };
        let name = endpoint.as_ref().and_then(Endpoint::name).filter(|name| names::check_name(name).is_ok());
        face.with(header::WWW_AUTHENTICATE, self.challenge(request, name.map(|name| (name, action)), false))
    }

    fn challenge(&self, request: &Request, wanted: Option<(&str, Action)>, insufficient: bool) -> HeaderValue {
        let here = || {
            // The listener believes nobody about this but trusted proxies.
            let scheme = request.header("x-forwarded-proto").filter(|scheme| *scheme == "https").unwrap_or("http");
            format!("{scheme}://{}", request.header(header::HOST).filter(|host| is_plain(host)).unwrap_or("localhost"))
        };
        let url = self.public_url.clone().unwrap_or_else(here);
        let service = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
        let mut text = format!(r#"Bearer realm="{url}/v2/token",service="{service}""#);
        if let Some((name, action)) = wanted {
            let words = match action {
                Action::Read => "pull",
                Action::Publish => "pull,push",
                Action::Delete => "delete",
            };
            text = format!(r#"{text},scope="repository:{name}:{words}""#);
        }
        if insufficient {
            text.push_str(r#",error="insufficient_scope""#);
        }
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Bearer"))
    }

    /// `GET` or `POST /v2/token`.
    pub(crate) async fn give(
        &self,
        request: &mut Request,
        shown: &Arc<Principal>,
        access: &mut AccessNote,
    ) -> Result<Response, Refusal> {
        let (who, asked) = if request.method == Method::POST {
            let form = request.body.read_all(FORM).await?;
            let form = std::str::from_utf8(&form).map_err(|_| wrong("the form is not text"))?;
            let asked = Asked::read(Query::parse(form)?);
            let who = self.recognise(shown, &asked).await;
            if who.is_err() {
                // The site writes down who is refused by their headers; nobody but this sees what is in a form.
                access.action = Some(Action::Read);
            }
            (who?, asked)
        } else {
            (Arc::clone(shown), Asked::read(request.query()?))
        };
        if who.token.is_none() && who.grants.is_empty() {
            return Err(unauthenticated().into());
        }
        let limits = limits(&who, &asked.scopes);
        let granted: Vec<String> = limits.iter().map(scope_of).collect();
        let text = self.authenticator.pass(&who, limits, PASS)?;
        let mut answer = json!({
            "token": text,
            "access_token": text,
            "expires_in": PASS.as_secs(),
            "issued_at": self.host.now().to_string(),
            "scope": granted.join(" "),
        });
        if asked.offline && who.name != PrincipalName::Anonymous {
            answer["refresh_token"] = self.authenticator.pass_for_passes(&who, REFRESH)?.into();
        } else if asked.grant_type == "refresh_token" {
            answer["refresh_token"] = asked.refresh_token.into();
        }
        let response = Response::json(StatusCode::OK, &answer);
        Ok(response.with(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
    }

    /// Who shows what is in a form.
    async fn recognise(&self, shown: &Arc<Principal>, asked: &Asked) -> Result<Arc<Principal>, Refusal> {
        let secret = match asked.grant_type.as_str() {
            "refresh_token" => return Ok(self.authenticator.recognise_secret(&asked.refresh_token).await?),
            // Some clients show the same credentials in the headers, and leave the form without them.
            "password" if asked.password.is_empty() && asked.username.is_empty() => return Ok(Arc::clone(shown)),
            "password" if asked.username.starts_with("lrd_") && !asked.password.starts_with("lrd_") => &asked.username,
            "password" => &asked.password,
            other => return Err(wrong(&format!("grant_type={other} is not known: write password or refresh_token"))),
        };
        // Clients that keep an identity token show it as a password too.
        Ok(self.authenticator.recognise_secret(secret).await?)
    }
}

/// What of the wanted scopes the asker may do.
fn limits(asker: &Principal, scopes: &[String]) -> Vec<Grant> {
    let mut limits: Vec<Grant> = Vec::new();
    for scope in scopes.iter().take(MOST_SCOPES) {
        let Some((kind, rest)) = scope.split_once(':') else { continue };
        let Some((name, wanted)) = rest.rsplit_once(':') else { continue };
        if kind == "registry" && name == "catalog" {
            // The list shows what its asker may read, and no more.
            limits.push(Grant { actions: Actions::READ, format: Some(ID.to_owned()), pattern: Pattern::everything() });
            continue;
        }
        if kind != "repository" || names::check_name(name).is_err() {
            continue;
        }
        let is_wanted = |word: &str| wanted.split(',').any(|wanted| wanted == word || wanted == "*");
        let allowed: Vec<&str> = WORDS
            .into_iter()
            .filter(|(word, action)| is_wanted(word) && decide(asker, *action, ID, name) == Decision::Allow)
            .map(|(_, action)| action.as_str())
            .collect();
        if let (Ok(actions), Ok(pattern)) = (allowed.join(",").parse::<Actions>(), name.parse::<Pattern>()) {
            limits.push(Grant { actions, format: Some(ID.to_owned()), pattern });
        }
    }
    limits
}

/// A grant in the words of a scope.
fn scope_of(grant: &Grant) -> String {
    if grant.pattern.is_everything() {
        return "registry:catalog:*".to_owned();
    }
    let words: Vec<&str> =
        WORDS.into_iter().filter(|(_, action)| grant.actions.contain(*action)).map(|(word, _)| word).collect();
    format!("repository:{}:{}", grant.pattern, words.join(","))
}

/// Whether a host can stand between quotes.
fn is_plain(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
}

fn wrong(what: &str) -> Refusal {
    Refusal::new(Code::Unsupported, what, "see the documentation of Docker's token authentication")
        .status(StatusCode::BAD_REQUEST)
}
