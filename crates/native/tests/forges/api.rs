//! The APIs of forges as their documentation shows them, beside real repositories: one list of repositories, told in the
//! words of each kind, with pages, entity tags and limits, and with what a hostile host would say instead.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{HeaderMap, Response, Uri};
use larder_sources::forges::ForgeKind;
use larder_testkit::forge::Api;
use serde_json::{Value, json};

/// A repository as the API tells of it.
#[derive(Clone, Debug)]
pub struct Repo {
    pub id: u64,
    pub path: String,
    /// Names of files in its root folder; those that end in a slash are folders.
    pub files: Vec<&'static str>,
    pub changed: &'static str,
    pub archived: bool,
    pub empty: bool,
    /// Where it says that it is cloned from; beside the API if it does not say.
    pub clone: Option<String>,
}

/// What the API answers.
pub struct World {
    pub kind: ForgeKind,
    pub base: String,
    pub repos: Vec<Repo>,
    pub at_once: usize,
    /// The header without which everything is hidden.
    pub token: Option<(&'static str, String)>,
    /// Limit, what is left of it, and when it is whole again.
    pub rate: Option<(u64, u64, i64)>,
    pub retry_after: Option<u64>,
    pub tags: bool,
    /// Said in place of every list: status, body, `Link`.
    pub instead: Option<(u16, Vec<u8>, Option<String>)>,
    /// Whether the owner is a user rather than an organisation.
    pub user: bool,
    pub account: Value,
    pub account_headers: Vec<(&'static str, String)>,
    /// How many lists were said to be the same as before.
    pub unchanged: usize,
    asked: Vec<String>,
}

#[derive(Clone)]
pub struct Teller(Arc<Mutex<World>>);

impl Teller {
    pub fn new(kind: ForgeKind, base: String) -> Self {
        Self(Arc::new(Mutex::new(World {
            kind,
            base,
            repos: Vec::new(),
            at_once: 2,
            token: None,
            rate: None,
            retry_after: None,
            tags: true,
            instead: None,
            user: false,
            account: json!({ "login": "ada", "username": "ada", "name": "larder" }),
            account_headers: Vec::new(),
            unchanged: 0,
            asked: Vec::new(),
        })))
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// The paths that were asked for since the last look, below the base.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.world().asked)
    }

    pub fn api(&self) -> Api {
        let world = Arc::clone(&self.0);
        Api(Arc::new(move |uri, headers| world.lock().unwrap().answer(uri, headers)))
    }
}

impl Repo {
    pub fn new(id: u64, path: &str, files: &[&'static str]) -> Self {
        Self {
            id,
            path: path.to_owned(),
            files: files.to_vec(),
            changed: "2026-11-01T10:00:00Z",
            archived: false,
            empty: false,
            clone: None,
        }
    }

    fn told(&self, kind: ForgeKind, base: &str) -> Value {
        let clone = self.clone.clone().unwrap_or_else(|| format!("{base}/{}.git", self.path));
        let ada = clone.replace("http://", "http://ada@");
        match kind {
            ForgeKind::Github => json!({
                "id": self.id, "full_name": self.path, "clone_url": clone, "archived": self.archived,
                "pushed_at": (!self.empty).then_some(self.changed), "default_branch": "main",
                "size": if self.empty { 0 } else { 10 }, "private": true, "owner": { "login": "acme" },
            }),
            ForgeKind::Gitlab => json!({
                "id": self.id, "path_with_namespace": self.path, "http_url_to_repo": clone, "archived": self.archived,
                "last_activity_at": self.changed, "default_branch": "main", "empty_repo": self.empty,
            }),
            ForgeKind::Bitbucket => json!({
                "uuid": format!("{{{}}}", self.id), "full_name": self.path, "updated_on": self.changed,
                "mainbranch": (!self.empty).then(|| json!({ "name": "main" })),
                "links": { "clone": [{ "name": "ssh", "href": "git@host:x" }, { "name": "https", "href": ada }] },
            }),
            ForgeKind::Gitea => json!({
                "id": self.id, "full_name": self.path, "clone_url": clone, "archived": self.archived,
                "updated_at": self.changed, "default_branch": "main", "empty": self.empty,
            }),
        }
    }

    fn root(&self, kind: ForgeKind) -> Value {
        let entries = self.files.iter().map(|file| {
            let (name, folder) = file.strip_suffix('/').map_or((*file, false), |name| (name, true));
            match kind {
                ForgeKind::Github => json!({ "path": name, "type": if folder { "tree" } else { "blob" } }),
                ForgeKind::Gitlab => json!({ "name": name, "type": if folder { "tree" } else { "blob" } }),
                ForgeKind::Gitea => json!({ "name": name, "type": if folder { "dir" } else { "file" } }),
                ForgeKind::Bitbucket => {
                    json!({ "path": name, "type": if folder { "commit_directory" } else { "commit_file" } })
                }
            }
        });
        let entries: Value = entries.collect();
        match kind {
            ForgeKind::Github => json!({ "tree": entries, "truncated": false }),
            ForgeKind::Bitbucket => json!({ "values": entries }),
            ForgeKind::Gitlab | ForgeKind::Gitea => entries,
        }
    }

    fn root_path(&self, kind: ForgeKind) -> String {
        match kind {
            ForgeKind::Github => format!("repos/{}/git/trees/HEAD", self.path),
            ForgeKind::Gitlab => format!("projects/{}/repository/tree", self.id),
            ForgeKind::Bitbucket => format!("repositories/{}/src/main/", self.path),
            ForgeKind::Gitea => format!("repos/{}/contents", self.path),
        }
    }
}

/// Where the API of each kind is.
pub fn place(kind: ForgeKind) -> &'static str {
    match kind {
        ForgeKind::Github => "/api/v3/",
        ForgeKind::Gitlab => "/api/v4/",
        ForgeKind::Bitbucket => "/2.0/",
        ForgeKind::Gitea => "/api/v1/",
    }
}

/// Where the repositories of an organisation are listed.
pub fn list(kind: ForgeKind) -> &'static str {
    match kind {
        ForgeKind::Github | ForgeKind::Gitea => "orgs/acme/repos",
        ForgeKind::Gitlab => "groups/acme/projects",
        ForgeKind::Bitbucket => "repositories/acme",
    }
}

impl World {
    fn answer(&mut self, uri: &Uri, headers: &HeaderMap) -> Option<Response<Bytes>> {
        let path = uri.path().strip_prefix(place(self.kind))?.replace("Acme", "acme");
        self.asked.push(path.clone());
        if let Some((name, value)) = &self.token
            && headers.get(*name).is_none_or(|given| given != value)
        {
            return Some(response(401, &[], b"{}".to_vec()));
        }
        let mut told = Vec::new();
        if let Some((limit, left, reset)) = &mut self.rate {
            let spent = *left == 0;
            *left = left.saturating_sub(1);
            told.push(("x-ratelimit-limit", limit.to_string()));
            told.push(("x-ratelimit-remaining", left.to_string()));
            told.push(("x-ratelimit-reset", reset.to_string()));
            if spent {
                return Some(response(403, &told, b"{\"message\":\"API rate limit exceeded\"}".to_vec()));
            }
        }
        if let Some(seconds) = self.retry_after {
            return Some(response(429, &[("retry-after", seconds.to_string())], b"{}".to_vec()));
        }
        let (status, more, body) = self.about(&path, uri, headers);
        told.extend(more);
        self.unchanged += usize::from(status == 304);
        Some(response(status, &told, body))
    }

    fn about(&self, path: &str, uri: &Uri, headers: &HeaderMap) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
        if path == "user" || path == "personal_access_tokens/self" {
            return (200, self.account_headers.clone(), self.account.to_string().into_bytes());
        }
        if let Some(repo) = self.repos.iter().find(|repo| repo.root_path(self.kind) == path) {
            let status = if repo.empty { 404 } else { 200 };
            return (status, Vec::new(), repo.root(self.kind).to_string().into_bytes());
        }
        let lists: &[&str] = match (self.kind, self.user) {
            (ForgeKind::Github, true) => &["users/acme/repos", "user/repos"],
            (ForgeKind::Github | ForgeKind::Gitea, false) => &["orgs/acme/repos"],
            (ForgeKind::Gitea, true) => &["users/acme/repos"],
            (ForgeKind::Gitlab, false) => &["groups/acme/projects"],
            (ForgeKind::Gitlab, true) => &["users/acme/projects"],
            (ForgeKind::Bitbucket, _) => &["repositories/acme"],
        };
        if !lists.contains(&path) {
            return (404, Vec::new(), b"{\"message\":\"Not Found\"}".to_vec());
        }
        if let Some((status, body, link)) = &self.instead {
            return (*status, link.iter().map(|link| ("link", link.clone())).collect(), body.clone());
        }
        self.list(path, uri, headers)
    }

    /// One page of the list.
    fn list(&self, path: &str, uri: &Uri, headers: &HeaderMap) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
        let query = uri.query().unwrap_or_default();
        let page: usize =
            query.split('&').find_map(|pair| pair.strip_prefix("page=")).map_or(1, |page| page.parse().unwrap());
        let told: Vec<Value> = self.repos.iter().map(|repo| repo.told(self.kind, &self.base)).collect();
        let here = told.chunks(self.at_once).nth(page - 1).unwrap_or_default();
        let next = (page * self.at_once < told.len())
            .then(|| format!("{}{}{path}?page={}", self.base, place(self.kind), page + 1));
        let mut more = Vec::new();
        let body = if self.kind == ForgeKind::Bitbucket {
            json!({ "values": here, "next": next, "pagelen": self.at_once }).to_string()
        } else {
            more.extend(next.map(|next| ("link", format!("<{next}>; rel=\"next\", <{next}>; rel=\"last\""))));
            json!(here).to_string()
        };
        if self.tags {
            let tag = format!("W/\"{}\"", larder_core::Digest::of(body.as_bytes()));
            if headers.get("if-none-match").is_some_and(|given| *given == tag) {
                return (304, Vec::new(), Vec::new());
            }
            more.push(("etag", tag));
        }
        (200, more, body.into_bytes())
    }
}

fn response(status: u16, headers: &[(&'static str, String)], body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Bytes::from(body)).unwrap()
}
