//! The REST API of GitHub, and of GitHub Enterprise Server below `/api/v3`. Shapes: docs.github.com, "Repositories",
//! "Git trees", "Rate limits for the REST API".

use serde::Deserialize;

use super::{
    Account, Found, Page,
    client::{segment, segments},
    dialect::{Dialect, Entry, items, number, parse},
};

pub(super) struct Github;

#[derive(Deserialize)]
struct Repository {
    id: serde_json::Number,
    full_name: String,
    clone_url: String,
    #[serde(default)]
    archived: bool,
    pushed_at: Option<String>,
    default_branch: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Tree {
    tree: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct User {
    login: String,
}

impl Dialect for Github {
    fn listings(&self, owner: &str, _deep: bool) -> Vec<String> {
        let owner = segment(owner);
        vec![
            format!("orgs/{owner}/repos?type=all&sort=full_name&per_page=100"),
            format!("users/{owner}/repos?type=owner&sort=full_name&per_page=100"),
        ]
    }

    fn own_listing(&self) -> Option<&'static str> {
        Some("user/repos?affiliation=owner&sort=full_name&per_page=100")
    }

    fn page(&self, body: &[u8]) -> Result<Page, serde_json::Error> {
        items(body, |repository: Repository| Found {
            id: number(&repository.id),
            name: repository.full_name,
            clone: repository.clone_url,
            archived: repository.archived,
            empty: repository.pushed_at.is_none() && repository.size == Some(0),
            changed: repository.pushed_at.unwrap_or_default(),
            branch: repository.default_branch,
        })
    }

    fn root(&self, repository: &Found) -> String {
        format!("repos/{}/git/trees/HEAD", segments(&repository.name))
    }

    fn entries(&self, body: &[u8]) -> Result<(Vec<Entry>, Option<String>), serde_json::Error> {
        let tree: Tree = parse(body)?;
        let entry = |item: Item| Entry { folder: item.r#type == "tree", name: item.path };
        Ok((tree.tree.into_iter().map(entry).collect(), None))
    }

    fn whoami(&self) -> &'static str {
        "user"
    }

    fn account(&self, body: &[u8]) -> Result<Account, serde_json::Error> {
        let user: User = parse(body)?;
        Ok(Account { name: user.login, ..Account::default() })
    }

    fn lacking(&self, scopes: &[String]) -> Option<String> {
        let has = |scope: &str| scopes.iter().any(|own| own == scope);
        (!has("repo")).then(|| {
            "it lacks the scope `repo`: private repositories are neither listed nor cloned. A fine-grained token needs the \
             permissions Contents and Metadata (read) instead"
                .to_owned()
        })
    }
}
