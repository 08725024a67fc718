//! The REST API of GitLab below `/api/v4`. Shapes: docs.gitlab.com, "Groups API", "Repositories API", "Personal access
//! tokens API".

use std::time::Duration;

use larder_core::Time;
use serde::Deserialize;

use super::{
    Account, Found, Page,
    client::segment,
    dialect::{Dialect, Entry, items, number, parse},
};

pub(super) struct Gitlab;

#[derive(Deserialize)]
struct Project {
    id: serde_json::Number,
    path_with_namespace: String,
    http_url_to_repo: String,
    #[serde(default)]
    archived: bool,
    last_activity_at: Option<String>,
    default_branch: Option<String>,
    #[serde(default)]
    empty_repo: bool,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    r#type: String,
}

#[derive(Deserialize)]
struct Token {
    name: String,
    scopes: Option<Vec<String>>,
    expires_at: Option<String>,
}

impl Dialect for Gitlab {
    fn listings(&self, owner: &str, deep: bool) -> Vec<String> {
        let owner = segment(owner);
        let rest = "with_shared=false&order_by=id&sort=asc&per_page=100";
        vec![
            format!("groups/{owner}/projects?include_subgroups={deep}&{rest}"),
            format!("users/{owner}/projects?order_by=id&sort=asc&per_page=100"),
        ]
    }

    fn page(&self, body: &[u8]) -> Result<Page, serde_json::Error> {
        items(body, |project: Project| Found {
            id: number(&project.id),
            name: project.path_with_namespace,
            clone: project.http_url_to_repo,
            archived: project.archived,
            changed: project.last_activity_at.unwrap_or_default(),
            branch: project.default_branch,
            empty: project.empty_repo,
        })
    }

    /// «Last activity» is written once an hour at most.
    fn settles(&self) -> Duration {
        Duration::from_secs(70 * 60)
    }

    fn root(&self, repository: &Found) -> String {
        format!("projects/{}/repository/tree?per_page=100", segment(&repository.id))
    }

    fn entries(&self, body: &[u8]) -> Result<(Vec<Entry>, Option<String>), serde_json::Error> {
        let list: Vec<Item> = parse(body)?;
        let entry = |item: Item| Entry { folder: item.r#type == "tree", name: item.name };
        Ok((list.into_iter().map(entry).collect(), None))
    }

    fn whoami(&self) -> &'static str {
        "personal_access_tokens/self"
    }

    fn account(&self, body: &[u8]) -> Result<Account, serde_json::Error> {
        let token: Token = parse(body)?;
        let expires_at = token.expires_at.and_then(|text| Time::parse(&text).ok());
        Ok(Account { name: format!("the token «{}»", token.name), scopes: token.scopes, expires_at })
    }

    fn lacking(&self, scopes: &[String]) -> Option<String> {
        let has = |scope: &str| scopes.iter().any(|own| own == scope);
        let api = has("api");
        let mut lacking = Vec::new();
        if !api && !has("read_api") {
            lacking.push("`read_api` (to list projects)");
        }
        if !api && !has("read_repository") && !has("write_repository") {
            lacking.push("`read_repository` (to clone them)");
        }
        (!lacking.is_empty()).then(|| format!("it lacks the scope {}", lacking.join(" and ")))
    }
}
