//! What becomes of a repository's branches and tags, and of changes that teams make to them.

use http::StatusCode;
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, packages, until};
use larder_testkit::{
    Forge,
    forge::{File, Repository},
};
use serde_json::{Value, json};

on_every_ground!(
    branches_become_the_versions_that_a_client_expects,
    a_new_tag_appears_and_a_deleted_one_leaves_while_lock_files_still_install,
    a_moved_tag_stays_what_it_was_and_both_commits_stay_downloadable,
    a_moved_tag_is_followed_where_that_is_wanted,
    a_broken_manifest_skips_its_tag_alone,
    a_sync_that_would_drop_too_much_is_held_until_somebody_accepts_it,
    an_old_release_that_was_never_built_is_built_without_its_host_where_everything_is_kept,
);

async fn branches_become_the_versions_that_a_client_expects(ground: Ground) {
    let forge = Forge::start().await;
    let repository = forge.repository("text");
    let files = |version: &str| {
        let manifest = json!({
            "name": "acme/text",
            "extra": {"branch-alias": {"dev-main": "2.x-dev"}},
            "autoload": {"files": ["version.php"]},
        });
        vec![
            packages::manifest_file(&manifest),
            File::new("version.php", format!("<?php\nconst TEXT = '{version}';\n")),
        ]
    };
    packages::release(&repository, "v1.0.0", files("1.0.0"));
    repository.commit("1.x", "Maintain", &files("1.x"));
    repository.commit("feature/long-words", "Try", &files("feature"));
    let main = repository.commit("main", "Go on", &files("main"));
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    let branches = server.versions(&token, "acme/text", true).await;
    let default: Vec<_> = branches.iter().filter(|version| version["default-branch"] == true).collect();
    assert_eq!(default.len(), 1);
    assert_eq!((&default[0]["version"], &default[0]["source"]["reference"]), (&json!("dev-main"), &json!(main)));
    for composer in Composer::each() {
        for (constraint, stability, locked, installed) in [
            ("dev-feature/long-words", "stable", "dev-feature/long-words", "feature"),
            ("1.x-dev", "stable", "1.x-dev", "1.x"),
            ("^2.0", "dev", "dev-main", "main"),
            ("2.x-dev", "stable", "dev-main", "main"),
            ("^1.0", "stable", "v1.0.0", "1.0.0"),
            ("*@dev", "dev", "dev-main", "main"),
        ] {
            let project = Project::new(&composer, &server, &token);
            project.edit(|document| {
                document["require"] = json!({"acme/text": constraint});
                document["minimum-stability"] = json!(stability);
            });
            project.composer(&["update"]).await.ok();
            assert_eq!(project.locked(), [format!("acme/text {locked}")], "{constraint}");
            assert_eq!(project.php("require 'vendor/autoload.php'; echo TEXT;").await.ok(), installed, "{constraint}");
        }
    }
    let newer = repository.commit("main", "Go on again", &files("newer"));
    server.ok(&["source", "sync", "text"]).await;
    until("the branch moved on", || async {
        let branches = server.versions(&token, "acme/text", true).await;
        branches.iter().any(|version| version["dist"]["reference"] == newer.as_str()).then_some(())
    })
    .await;
    server.close().await;
}

async fn a_new_tag_appears_and_a_deleted_one_leaves_while_lock_files_still_install(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0", "v1.1.0", "v1.2.0"], packages::text);
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    let mut old = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/text:1.1.0"]).await.ok();
        old.push(project);
    }
    let kept = dist_of(&server, &token, "v1.1.0").await;
    assert_eq!(server.get(&kept, Some(&token)).await.status, StatusCode::OK);

    packages::release(&repository, "v1.3.0", packages::text("1.3.0"));
    repository.remove("refs/tags/v1.1.0");
    server.ok(&["source", "sync", "text"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.3.0", "v1.2.0", "v1.0.0"]).await;
    assert_eq!(server.get(&kept, Some(&token)).await.status, StatusCode::OK, "the dist of a deleted tag");
    for project in &old {
        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install"]).await.ok();
        assert_eq!(project.locked(), ["acme/text v1.1.0"]);
        project.edit(|document| document["require"] = json!({"acme/text": "^1.0"}));
        project.composer(&["update"]).await.ok();
        assert_eq!(project.locked(), ["acme/text v1.3.0"]);
    }
    server.close().await;
}

async fn a_moved_tag_stays_what_it_was_and_both_commits_stay_downloadable(ground: Ground) {
    let (forge, repository) = tagged_twice().await;
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    let before = server.versions(&token, "acme/text", false).await[0].clone();
    let (from, to) = move_tag(&repository);
    server.ok(&["source", "sync", "text"]).await;
    let event = event(&server, "move").await;
    assert!(event.contains(&from) && event.contains(&to), "{event}");
    let after = server.versions(&token, "acme/text", false).await[0].clone();
    assert_eq!(after["dist"]["reference"], from.as_str(), "{after}");
    assert_eq!(after["dist"]["url"], before["dist"]["url"]);
    both_are_downloadable(&server, &token, &after, [&from, &to]).await;
    let shown = server.json(&["source", "show", "text"]).await;
    assert_eq!((&shown["moved_tags"][0]["serves"], &shown["moved_tags"][0]["now_at"]), (&json!(from), &json!(to)));
    server.close().await;
}

async fn a_moved_tag_is_followed_where_that_is_wanted(ground: Ground) {
    let (forge, repository) = tagged_twice().await;
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &["--moved-tags", "follow"]).await;
    let token = server.token("ci", &[]).await;
    let (from, to) = move_tag(&repository);
    server.ok(&["source", "sync", "text"]).await;
    until("the release follows its tag", || async {
        let versions = server.versions(&token, "acme/text", false).await;
        (versions[0]["dist"]["reference"] == to.as_str()).then_some(())
    })
    .await;
    assert!(event(&server, "move").await.contains(&to));
    let after = server.versions(&token, "acme/text", false).await[0].clone();
    both_are_downloadable(&server, &token, &after, [&from, &to]).await;
    server.close().await;
}

async fn a_broken_manifest_skips_its_tag_alone(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    for (tag, text) in [
        ("v1.1.0", "{\"name\": \"acme/text\","),
        ("v1.2.0", "{\"description\": \"nameless\"}"),
        ("v1.3.0", "{\"name\": \"acme/text\", \"require\": {\"php\": \"not a constraint !!\"}}"),
        ("v1.4.0", "[]"),
        ("not-a-version", "{\"name\": \"acme/text\"}"),
    ] {
        packages::release(&repository, tag, vec![File::new("composer.json", text)]);
    }
    packages::release(&repository, "v1.5.0", packages::text("1.5.0"));
    packages::release(&repository, "v1.6.0", vec![File::new("README.md", "no manifest\n")]);
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    server.until_versions(&token, "acme/text", false, &["v1.5.0", "v1.0.0"]).await;
    let shown = server.json(&["source", "show", "text"]).await;
    let skipped: Vec<_> =
        shown["refs"].as_array().into_iter().flatten().filter(|seen| !seen["skipped"].is_null()).collect();
    let names: Vec<_> = skipped.iter().map(|seen| seen["name"].as_str().unwrap_or_default()).collect();
    for tag in ["v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0", "v1.6.0", "not-a-version"] {
        assert!(names.contains(&format!("refs/tags/{tag}").as_str()), "{tag}: {names:?}");
    }
    assert_eq!(shown["state"], "ok");
    server.close().await;
}

async fn a_sync_that_would_drop_too_much_is_held_until_somebody_accepts_it(ground: Ground) {
    let forge = Forge::start().await;
    let tags = ["v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0", "v1.5.0"];
    let repository = packages::repository(&forge, "text", &tags, packages::text);
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    for tag in &tags[..4] {
        repository.remove(&format!("refs/tags/{tag}"));
    }
    let refused = server.larder(&["source", "sync", "text"]).await.failed(1);
    assert!(refused.contains("--accept-removals"), "{refused}");
    assert_eq!(server.versions(&token, "acme/text", false).await.len(), 6, "nothing was changed");
    assert_eq!(server.json(&["source", "show", "text"]).await["state"], "held");
    server.larder(&["source", "sync", "text"]).await.failed(1);
    assert_eq!(server.versions(&token, "acme/text", false).await.len(), 6, "it stays held");
    let holds = server.json(&["audit", "list", "--action", "source.hold"]).await;
    let holds = holds.as_array().or(holds["events"].as_array()).cloned().unwrap_or_default();
    assert_eq!(holds.len(), 1, "what stays as it is was told once: {holds:?}");
    server.ok(&["source", "sync", "text", "--accept-removals"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.5.0", "v1.4.0"]).await;
    assert_eq!(server.json(&["source", "show", "text"]).await["state"], "ok");
    server.close().await;
}

async fn an_old_release_that_was_never_built_is_built_without_its_host_where_everything_is_kept(ground: Ground) {
    let mut forge = Forge::start().await;
    let tags = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"];
    packages::repository(&forge, "full", &tags, |version| packages::named("acme/full", version));
    packages::repository(&forge, "light", &tags, |version| packages::named("acme/light", version));
    let server = Server::start(ground).await;
    server.add("full", &forge.url("full"), &["--keep", "full"]).await;
    server.add("light", &forge.url("light"), &[]).await;
    let token = server.token("ci", &[]).await;
    forge.stop().await;
    let oldest = async |package: &str| {
        let versions = server.versions(&token, package, false).await;
        let version = versions.last().expect("there are versions").clone();
        assert_eq!((&version["version"], &version["dist"]["shasum"]), (&json!("1.0.0"), &json!("")));
        server.get(path_of(&server, &version).as_str(), Some(&token)).await
    };
    let built = oldest("acme/full").await;
    assert_eq!(built.status, StatusCode::OK, "{}", built.text());
    let gone = oldest("acme/light").await;
    assert!([502, 503, 504].contains(&gone.status.as_u16()), "{} {}", gone.status, gone.text());
    assert!(gone.json()["warning"].is_string(), "{}", gone.text());
    server.close().await;
}

async fn tagged_twice() -> (Forge, Repository) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    (forge, repository)
}

/// Moves `v1.0.0` to another commit and returns both.
fn move_tag(repository: &Repository) -> (String, String) {
    let from = repository.resolve("refs/tags/v1.0.0").expect("the tag is there");
    let to = packages::release(repository, "v1.0.0", packages::text("1.0.0, but other bytes"));
    (from, to)
}

async fn both_are_downloadable(server: &Server, token: &str, version: &Value, references: [&String; 2]) {
    let shown = version["dist"]["reference"].as_str().unwrap_or_default();
    let path = path_of(server, version);
    let mut bodies = Vec::new();
    for reference in references {
        let answer = server.get(&path.replace(shown, reference), Some(token)).await;
        assert_eq!(answer.status, StatusCode::OK, "{reference}: {}", answer.text());
        bodies.push(answer.body);
    }
    assert!(bodies[0] != bodies[1]);
}

/// The latest event whose action has `action` in it, as JSON.
async fn event(server: &Server, action: &str) -> String {
    let events = server.json(&["audit", "list"]).await;
    let events = events.as_array().or(events["events"].as_array()).cloned().unwrap_or_default();
    let found = events.iter().find(|event| event["action"].as_str().is_some_and(|found| found.contains(action)));
    found.unwrap_or_else(|| panic!("no event about `{action}` in {events:?}")).to_string()
}

async fn dist_of(server: &Server, token: &str, version: &str) -> String {
    let versions = server.versions(token, "acme/text", false).await;
    path_of(server, versions.iter().find(|one| one["version"] == version).expect("the version is there"))
}

/// The path of a version's dist.
fn path_of(server: &Server, version: &Value) -> String {
    let url = version["dist"]["url"].as_str().unwrap_or_default();
    url.strip_prefix(&server.url()).expect("the dist is at the public URL").to_owned()
}
