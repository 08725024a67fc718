//! What a team sees that adds its whole organisation: every repository with a package is installable, and so is the next
//! one that somebody makes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Response, Uri, header};
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, packages, until};
use larder_testkit::{Forge, forge::Api};
use serde_json::{Value, json};

on_every_ground!(an_organisation_is_installable_and_so_is_what_it_makes_next,);

const SECRET: &str = "ghp_of_the_test";

/// The repositories of an organisation, as the API of GitHub lists them: two a page.
#[derive(Clone, Default)]
struct Organisation(Arc<Mutex<Vec<Value>>>);

impl Organisation {
    fn has(&self, id: u64, name: &str, base: &str) {
        self.0.lock().expect("no test panics in between").push(json!({
            "id": id, "full_name": format!("acme/{name}"), "clone_url": format!("{base}/acme/{name}.git"),
            "archived": false, "pushed_at": "2026-01-01T00:00:00Z", "default_branch": "main", "size": 1,
        }));
    }

    fn archive(&self, at: usize) {
        self.0.lock().expect("no test panics in between")[at]["archived"] = true.into();
    }

    fn answer(&self, base: &str, uri: &Uri, headers: &HeaderMap) -> Option<Response<Bytes>> {
        let path = uri.path().strip_prefix("/api/v3/")?;
        let told = Response::builder()
            .header("x-oauth-scopes", "repo")
            .header("x-ratelimit-limit", 5000)
            .header("x-ratelimit-remaining", 4321)
            .header("x-ratelimit-reset", 4_000_000_000_u64);
        let say = |told: http::response::Builder, body: Value| told.body(Bytes::from(body.to_string())).ok();
        if headers.get(header::AUTHORIZATION).is_none_or(|given| *given != format!("Bearer {SECRET}")) {
            return say(told.status(401), json!({"message": "Bad credentials"}));
        }
        if path == "user" {
            return say(told, json!({"login": "ada"}));
        }
        if path.starts_with("repos/acme/notes/") {
            return say(told, json!({"tree": [{"path": "README.md", "type": "blob"}]}));
        }
        if path.starts_with("repos/acme/") {
            return say(
                told,
                json!({"tree": [{"path": "src", "type": "tree"}, {"path": "composer.json", "type": "blob"}]}),
            );
        }
        let all = self.0.lock().expect("no test panics in between");
        let page = uri.query()?.split('&').find_map(|pair| pair.strip_prefix("page=")?.parse().ok()).unwrap_or(1_usize);
        let here: Vec<&Value> = all.chunks(2).nth(page - 1).unwrap_or_default().iter().collect();
        let told = if page * 2 < all.len() {
            told.header("link", format!("<{base}/api/v3/{path}?page={}>; rel=\"next\"", page + 1))
        } else {
            told
        };
        say(told, json!(here))
    }
}

async fn an_organisation_is_installable_and_so_is_what_it_makes_next(ground: Ground) {
    let forge = Forge::start().await;
    let organisation = Organisation::default();
    let base = forge.base();
    for (id, name) in [(1, "text"), (2, "notes"), (3, "money")] {
        organisation.has(id, name, &base);
    }
    packages::repository(&forge, "acme/text", &["v1.0.0"], packages::text);
    packages::repository(&forge, "acme/money", &["v2.0.0"], packages::money);
    let (teller, at) = (organisation.clone(), base.clone());
    forge.rule(|rules| rules.api = Some(Api(Arc::new(move |uri, headers| teller.answer(&at, uri, headers)))));

    let server = Server::start(ground).await;
    server.guard(SECRET);
    server.larder_with(&["credential", "add", "forge", "--kind", "github"], SECRET).await.ok();
    let api = format!("{base}/api/v3");
    server.ok(&["source", "add", "github", "acme/*", "--api", &api, "--credential", "forge"]).await;
    let token = server.token("ci", &[]).await;
    server.until_versions(&token, "acme/money", false, &["v2.0.0"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.0.0"]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/money:^2.0"]).await.ok();
        assert_eq!(project.locked(), ["acme/money v2.0.0", "acme/text v1.0.0"]);
    }
    let shown = server.ok(&["source", "show", "github-acme"]).await;
    for part in ["4321 of 5000 questions left", "acme/text: source `acme-text`", "Without packages: 1 more"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let tested = server.json(&["credential", "test", "forge"]).await;
    assert_eq!((&tested["forge"]["account"], &tested["forge"]["scopes"]), (&json!("ada"), &json!(["repo"])));
    assert_eq!(tested["sources"].as_array().map(Vec::len), Some(2), "{tested}");

    packages::repository(&forge, "acme/shop", &["v1.0.0"], packages::shop);
    organisation.has(4, "shop", &base);
    organisation.archive(0);
    let said = server.ok(&["source", "sync", "github-acme"]).await;
    assert!(said.contains("4 repositories listed, 1 added, 1 archived or no longer"), "{said}");
    server.until_versions(&token, "globex/shop", false, &["v1.0.0"]).await;
    let child = server.json(&["source", "show", "acme-text"]).await;
    assert_eq!((&child["archived"], &child["forge"]["source"]), (&json!(true), &json!("github-acme")));

    let refused = server.larder(&["source", "remove", "github-acme"]).await;
    assert!(
        refused.stderr.contains("3 repositories") && refused.stderr.contains("--keep-repositories"),
        "{}",
        refused.stderr
    );
    server.ok(&["source", "remove", "github-acme", "--with-repositories"]).await;
    assert_eq!(server.json(&["source", "list"]).await, json!([]));
    until("the packages to be gone", || async {
        server.versions(&token, "acme/text", false).await.is_empty().then_some(())
    })
    .await;
    server.close().await;
}
