//! The REST API of Bitbucket Cloud. Shapes: developer.atlassian.com, "Repositories", "Source", "Pagination". It archives
//! nothing.

use serde::Deserialize;
use url::Url;

use super::{
    Account, Found, Page,
    client::{segment, segments},
    dialect::{Dialect, Entry, parse},
};

pub(super) struct Bitbucket;

#[derive(Deserialize)]
struct Paged<T> {
    values: Vec<T>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    uuid: String,
    full_name: String,
    links: Links,
    updated_on: Option<String>,
    mainbranch: Option<Branch>,
}

#[derive(Deserialize)]
struct Links {
    clone: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    name: String,
    href: String,
}

#[derive(Deserialize)]
struct Branch {
    name: String,
}

#[derive(Deserialize)]
struct Item {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct User {
    username: Option<String>,
    display_name: Option<String>,
}

impl Dialect for Bitbucket {
    fn listings(&self, owner: &str, _deep: bool) -> Vec<String> {
        let fields = "next,values.uuid,values.full_name,values.links.clone,values.updated_on,values.mainbranch.name";
        vec![format!("repositories/{}?sort=full_name&pagelen=100&fields={fields}", segment(owner))]
    }

    fn page(&self, body: &[u8]) -> Result<Page, serde_json::Error> {
        let page: Paged<Repository> = parse(body)?;
        let repositories = page.values.into_iter().map(|repository| {
            let clone = repository.links.clone.into_iter().find(|link| link.name == "https");
            Found {
                id: repository.uuid,
                name: repository.full_name,
                clone: clone.map(|link| without_user(link.href)).unwrap_or_default(),
                archived: false,
                changed: repository.updated_on.unwrap_or_default(),
                // One without any commit has no main branch.
                empty: repository.mainbranch.is_none(),
                branch: repository.mainbranch.map(|branch| branch.name),
            }
        });
        Ok(Page { repositories: repositories.collect(), next: page.next })
    }

    fn root(&self, repository: &Found) -> String {
        let rest = "?pagelen=100&fields=next,values.path,values.type";
        let name = segments(&repository.name);
        match repository.branch.as_deref().filter(|branch| !branch.contains('/')) {
            Some(branch) => format!("repositories/{name}/src/{}/{rest}", segment(branch)),
            // It sends on to the main branch, whose name with slashes cannot stand in the path.
            None => format!("repositories/{name}/src{rest}"),
        }
    }

    fn entries(&self, body: &[u8]) -> Result<(Vec<Entry>, Option<String>), serde_json::Error> {
        let page: Paged<Item> = parse(body)?;
        let entry = |item: Item| Entry { folder: item.r#type == "commit_directory", name: item.path };
        Ok((page.values.into_iter().map(entry).collect(), page.next))
    }

    fn whoami(&self) -> &'static str {
        "user"
    }

    fn account(&self, body: &[u8]) -> Result<Account, serde_json::Error> {
        let user: User = parse(body)?;
        let name = user.username.or(user.display_name).unwrap_or_else(|| "somebody without a name".to_owned());
        Ok(Account { name, ..Account::default() })
    }

    fn lacking(&self, scopes: &[String]) -> Option<String> {
        // `repository`, `repository:write`, `read:repository:bitbucket`, …
        let reads = scopes.iter().any(|scope| scope.split(':').any(|word| word == "repository"));
        (!reads).then(|| {
            "it lacks a scope that reads repositories (`repository`, or `read:repository:bitbucket`)".to_owned()
        })
    }
}

/// The address of a clone as Bitbucket gives it has the name of whoever asks in front of the host. A password is left in,
/// so that the address is refused.
fn without_user(address: String) -> String {
    let Ok(mut url) = Url::parse(&address) else { return address };
    if url.password().is_none() && url.set_username("").is_ok() { url.into() } else { address }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_who_asks() {
        assert_eq!(without_user("https://ada@bitbucket.org/acme/lib.git".into()), "https://bitbucket.org/acme/lib.git");
        for other in ["https://bitbucket.org/acme/lib.git", "https://ada:x@bitbucket.org/acme/lib.git", "nonsense"] {
            assert_eq!(without_user(other.into()), other);
        }
    }
}
