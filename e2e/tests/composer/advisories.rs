//! What is known to be wrong with versions: written here, imported, or told by another server; and what clients make of it.

use std::sync::Arc;

use http::StatusCode;
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, packages, server::Options, wait::until};
use larder_testkit::Forge;
use serde_json::{Value, json};

on_every_ground!(
    an_advisory_of_ones_own_fails_an_audit_and_a_rule_keeps_its_versions_back,
    a_server_tells_another_what_it_knows_and_everybody_what_they_may_read,
    a_folder_is_all_that_a_feed_has_to_say,
);

const TITLE: &str = "The cellar can be opened from outside";

const ALL: &str = "/api/security-advisories/?updatedSince=0";

/// A server with `acme/text` 1.0.0 and 1.1.0 from Git.
async fn server(ground: Ground) -> (Forge, Server, String) {
    let forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0", "v1.1.0"], packages::text);
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    (forge, server, token)
}

async fn own(server: &Server) -> String {
    let add = ["advisory", "add", "acme/text", "--affected", "<1.1", "--title", TITLE, "--severity", "high"];
    server.json(&add).await["advisoryId"].as_str().expect("it has a name").to_owned()
}

async fn an_advisory_of_ones_own_fails_an_audit_and_a_rule_keeps_its_versions_back(ground: Ground) {
    let (_forge, server, token) = server(ground).await;
    let versions = server.versions(&token, "acme/text", false).await;
    let url = versions[1]["dist"]["url"].as_str().expect("it has a dist").to_owned();
    let path = url.strip_prefix(&server.url()).expect("the dist is here").to_owned();
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/text:1.0.0"]).await.ok();
        projects.push(project);
    }
    let id = own(&server).await;
    until("metadata tell it", || async {
        let document = server.get("/p2/acme/text.json", Some(&token)).await.json();
        (document["security-advisories"][0]["advisoryId"] == id.as_str()).then_some(())
    })
    .await;
    for project in &projects {
        // A client looks at a root file again that is ten minutes old.
        project.forget_cache();
        let ran = project.composer(&["audit"]).await;
        assert!(!ran.status.success() && ran.all().contains("The cellar can be opened"), "{}", ran.all());
    }
    assert_eq!(server.get(&path, Some(&token)).await.status, StatusCode::OK, "an advisory alone hides nothing");
    server.ok(&["composer", "policy", "set", "acme/*", "--block-advisories", "critical"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.1.0", "v1.0.0"]).await;
    server.ok(&["composer", "policy", "set", "acme/*", "--block-advisories", "high"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.1.0"]).await;
    let answer = server.get(&path, Some(&token)).await;
    assert!(answer.status == StatusCode::GONE && answer.text().contains(TITLE), "{}", answer.text());
    server.ok(&["advisory", "remove", &id]).await;
    server.until_versions(&token, "acme/text", false, &["v1.1.0", "v1.0.0"]).await;

    server.ok(&["composer", "block", "acme/text", "1.0.0", "--reason", "it does harm", "--malware"]).await;
    server.until_versions(&token, "acme/text", false, &["v1.1.0"]).await;
    let root = server.get("/packages.json", Some(&token)).await.json();
    assert_eq!(root["filter"]["lists"], json!({"malware": {"enabled": true}}));
    let summary = server.get("/filter.json", Some(&token)).await.json();
    assert_eq!(summary, json!({"filter": {"malware": {"acme/text": "1.0.0"}}}));
    server.close().await;
}

async fn a_server_tells_another_what_it_knows_and_everybody_what_they_may_read(ground: Ground) {
    let (_forge, first, _) = server(Ground::local()).await;
    own(&first).await;
    let key = first.token("second", &[]).await;
    let nosy = first.token("nosy", &["read:composer:globex/*"]).await;
    let names = |answer: Value| answer["advisories"].as_object().map(|all| all.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names(first.get(ALL, Some(&key)).await.json()), Some(vec!["acme/text".to_owned()]));
    assert_eq!(names(first.get(ALL, Some(&nosy)).await.json()), Some(Vec::new()));
    assert_eq!(first.get(ALL, None).await.status, StatusCode::UNAUTHORIZED);

    let second = Server::start_with(&Arc::new(ground), Options::default()).await;
    let host = first.url();
    let host = host.trim_start_matches("http://");
    second.larder_with(&["credential", "add", "first", "--kind", "bearer", "--host", host], &key).await.ok();
    second.ok(&["source", "add", "composer", &first.url(), "--name", "first", "--credential", "first"]).await;
    let imported = second.json(&["advisory", "refresh"]).await;
    assert_eq!((&imported[0]["source"], &imported[0]["imported"]["added"]), (&json!("first"), &json!(1)), "{imported}");
    let again = second.json(&["advisory", "refresh"]).await;
    assert_eq!(again[0]["imported"]["unchanged"], 1, "{again}");
    let token = second.token("ci", &[]).await;
    assert_eq!(names(second.get(ALL, Some(&token)).await.json()), Some(vec!["acme/text".to_owned()]));
    first.close().await;
    let failed = second.larder(&["advisory", "refresh"]).await;
    assert!(!failed.status.success() && failed.all().contains("still holds"), "{}", failed.all());
    assert_eq!(names(second.get(ALL, Some(&token)).await.json()), Some(vec!["acme/text".to_owned()]));
    second.close().await;
}

async fn a_folder_is_all_that_a_feed_has_to_say(ground: Ground) {
    let (_forge, server, _) = server(ground).await;
    let folder = server.data().with_file_name("osv");
    let below = folder.join("2026");
    std::fs::create_dir_all(&below).expect("a folder can be made");
    let write = |name: &str, fixed: &str| {
        let document = json!({
            "id": name, "summary": TITLE, "modified": "2026-01-02T03:04:05Z",
            "affected": [{
                "package": {"ecosystem": "Packagist", "name": "acme/text"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}],
            }],
        });
        std::fs::write(below.join(format!("{name}.json")), document.to_string()).expect("a file can be written");
    };
    write("GHSA-one", "1.1");
    write("GHSA-two", "1.0.5");
    std::fs::write(folder.join("README.md"), "no advisory").expect("a file can be written");
    let path = folder.display().to_string();
    let import = ["advisory", "import", path.as_str()];
    let sums = |added: u64, changed: u64, unchanged: u64, removed: u64| json!({"added": added, "changed": changed, "unchanged": unchanged, "removed": removed});
    let first = server.json(&import).await;
    assert_eq!((&first["feed"], &first["imported"]), (&json!("osv"), &sums(2, 0, 0, 0)));
    std::fs::remove_file(below.join("GHSA-two.json")).expect("a file can be removed");
    write("GHSA-one", "1.0.9");
    std::fs::write(below.join("broken.json"), "{").expect("a file can be written");
    let ran = server.larder(&[&import[..], &["--json"]].concat()).await;
    let second: Value = serde_json::from_str(&ran.stdout).expect("it says what became of the others");
    let refused = ran.failed(1);
    assert!(refused.contains("2026/broken.json") && refused.contains("the others were taken in"), "{refused}");
    assert_eq!(second["imported"], sums(0, 1, 0, 0), "nothing goes while a file cannot be read: {second}");
    assert_eq!(second["problems"][0]["what"], "2026/broken.json");
    std::fs::remove_file(below.join("broken.json")).expect("a file can be removed");
    assert_eq!(server.json(&import).await["imported"], sums(0, 0, 1, 1));
    let listed = server.json(&["advisory", "list", "acme/text"]).await;
    assert_eq!((&listed[0]["advisoryId"], &listed[0]["affectedVersions"]), (&json!("GHSA-one"), &json!("<1.0.9")));
    let missing = server.larder(&["advisory", "import", "/nowhere/at/all"]).await;
    assert!(!missing.status.success() && missing.all().contains("cannot be read"), "{}", missing.all());
    server.close().await;
}
