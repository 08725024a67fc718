//! The REST API of Gitea and Forgejo below `/api/v1`. Shapes: docs.gitea.com and forgejo.org, "API usage", and the
//! description that each of them serves at `/api/swagger`.

use serde::Deserialize;

use super::{
    Account, Found, Page,
    client::{segment, segments},
    dialect::{Dialect, Entry, items, number, parse},
};

pub(super) struct Gitea;

#[derive(Deserialize)]
struct Repository {
    id: serde_json::Number,
    full_name: String,
    clone_url: String,
    #[serde(default)]
    archived: bool,
    updated_at: Option<String>,
    default_branch: Option<String>,
    #[serde(default)]
    empty: bool,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    r#type: String,
}

#[derive(Deserialize)]
struct User {
    login: String,
}

impl Dialect for Gitea {
    fn listings(&self, owner: &str, _deep: bool) -> Vec<String> {
        let owner = segment(owner);
        // 50 are the most that it gives as it comes.
        vec![format!("orgs/{owner}/repos?limit=50"), format!("users/{owner}/repos?limit=50")]
    }

    fn page(&self, body: &[u8]) -> Result<Page, serde_json::Error> {
        items(body, |repository: Repository| Found {
            id: number(&repository.id),
            name: repository.full_name,
            clone: repository.clone_url,
            archived: repository.archived,
            changed: repository.updated_at.unwrap_or_default(),
            branch: repository.default_branch,
            empty: repository.empty,
        })
    }

    fn root(&self, repository: &Found) -> String {
        format!("repos/{}/contents", segments(&repository.name))
    }

    fn entries(&self, body: &[u8]) -> Result<(Vec<Entry>, Option<String>), serde_json::Error> {
        let list: Vec<Item> = parse(body)?;
        let entry = |item: Item| Entry { folder: item.r#type == "dir", name: item.name };
        Ok((list.into_iter().map(entry).collect(), None))
    }

    fn whoami(&self) -> &'static str {
        "user"
    }

    fn account(&self, body: &[u8]) -> Result<Account, serde_json::Error> {
        let user: User = parse(body)?;
        Ok(Account { name: user.login, ..Account::default() })
    }

    fn lacking(&self, _scopes: &[String]) -> Option<String> {
        None
    }
}
