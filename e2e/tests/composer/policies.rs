//! What the house allows of packages that others publish: clients are told, with the reason, and no old lock file gets
//! around it.

use larder_e2e::{
    Composer, Ground, Project, Ran, Server, Upstream, on_every_ground, until,
    upstream::{Catalogue, Layout, Protocol, Release},
};
use serde_json::json;

use crate::upstream::{dist_path, following};

on_every_ground!(
    a_blocked_version_is_neither_resolved_nor_installed_from_a_lock_file_and_the_client_says_why,
    a_blocked_package_is_as_if_it_were_not_there_and_the_client_says_why,
    what_turns_out_to_be_malware_is_refused_also_to_those_who_only_download,
    a_release_that_is_too_young_waits,
    an_advisory_reaches_audits_and_updates_and_nobody_outside_hears_of_it,
);

const REASON: &str = "it leaks the contents of the cellar";

async fn server(ground: Ground) -> (Upstream, Server, String) {
    let upstream = Upstream::start(Catalogue::chain("initech", 3), Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    (upstream, server, token)
}

/// What a client printed, without the line breaks that it makes for a terminal.
fn said(ran: &Ran) -> String {
    ran.all().split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn a_blocked_version_is_neither_resolved_nor_installed_from_a_lock_file_and_the_client_says_why(ground: Ground) {
    let (_upstream, server, token) = server(ground).await;
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-03:^1.0"]).await.ok();
        assert!(project.locked().contains(&"initech/part-02 v1.2.0".to_owned()), "{:?}", project.locked());
        projects.push((composer, project));
    }
    let path = dist_path(&server, &token, "initech/part-02", "v1.2.0").await;
    server.ok(&["composer", "block", "initech/part-02", ">=1.2", "--reason", REASON]).await;
    server.until_versions(&token, "initech/part-02", false, &["v1.1.0", "v1.0.0"]).await;
    let answer = server.get(&path, Some(&token)).await;
    assert!(answer.status.is_client_error(), "{} {}", answer.status, answer.text());
    assert!(answer.text().contains(REASON), "{}", answer.text());
    let explained = server.ok(&["explain", "composer", "initech/part-02"]).await;
    assert!(explained.contains(REASON) && explained.contains("1.2.0"), "{explained}");
    for (composer, project) in &projects {
        project.forget_vendor();
        project.forget_cache();
        let ran = project.composer(&["install"]).await;
        assert!(!ran.status.success(), "an old lock file does not get around it: {}", ran.all());
        assert!(said(&ran).contains(REASON), "{composer:?} prints the reason: {}", ran.all());
        project.composer(&["update"]).await.ok();
        assert!(project.locked().contains(&"initech/part-02 v1.1.0".to_owned()), "{:?}", project.locked());
    }
    server.ok(&["composer", "unblock", "initech/part-02"]).await;
    server.until_versions(&token, "initech/part-02", false, &["v1.2.0", "v1.1.0", "v1.0.0"]).await;
    server.close().await;
}

async fn a_blocked_package_is_as_if_it_were_not_there_and_the_client_says_why(ground: Ground) {
    let (_upstream, server, token) = server(ground).await;
    server.ok(&["composer", "block", "initech/part-02", "--reason", REASON]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        let ran = project.composer(&["require", "initech/part-02"]).await;
        assert!(!ran.status.success(), "{}", ran.all());
        assert!(said(&ran).contains(REASON), "{composer:?} prints the reason: {}", ran.all());
        project.composer(&["require", "initech/part-01"]).await.ok();
    }
    server.close().await;
}

async fn what_turns_out_to_be_malware_is_refused_also_to_those_who_only_download(ground: Ground) {
    let (upstream, server, token) = server(ground).await;
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-03:^1.0"]).await.ok();
        projects.push((composer, project));
    }
    let path = dist_path(&server, &token, "initech/part-02", "v1.2.0").await;
    assert_eq!(server.get(&path, Some(&token)).await.status, 200);
    upstream.change_all(|_, layout| drop(layout.malware.insert("initech/part-02".to_owned(), "1.2.0".to_owned())));
    // Nobody asks for metadata from here on.
    let answer = until("the registry was asked behind a download", || async {
        let answer = server.get(&path, Some(&token)).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 410, "{}", answer.text());
    assert!(answer.text().contains("it mines coins"), "{}", answer.text());
    for (composer, project) in &projects {
        project.forget_vendor();
        project.forget_cache();
        let ran = project.composer(&["install", "--no-plugins"]).await;
        assert!(!ran.status.success(), "{}", ran.all());
        assert!(said(&ran).contains("it mines coins"), "{composer:?} prints the reason: {}", ran.all());
    }
    server.close().await;
}

async fn a_release_that_is_too_young_waits(ground: Ground) {
    let (upstream, server, token) = server(ground).await;
    let young = Release::new("initech/part-02", "v1.3.0", &[]).with("time", json!("2199-01-01T00:00:00+00:00"));
    upstream.change(|catalogue| catalogue.add("initech/part-02", young));
    server.until_versions(&token, "initech/part-02", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    let path = dist_path(&server, &token, "initech/part-02", "v1.3.0").await;
    server.ok(&["composer", "policy", "set", "*", "--min-age", "7d"]).await;
    server.until_versions(&token, "initech/part-02", false, &["v1.2.0", "v1.1.0", "v1.0.0"]).await;
    let answer = server.get(&path, Some(&token)).await;
    assert!(answer.status.is_client_error(), "{} {}", answer.status, answer.text());
    let explained = server.ok(&["explain", "composer", "initech/part-02"]).await;
    assert!(explained.contains("too short a time ago") && explained.contains("1.3.0"), "{explained}");
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-02:*"]).await.ok();
        assert!(project.locked().contains(&"initech/part-02 v1.2.0".to_owned()), "{:?}", project.locked());
    }
    server.ok(&["composer", "policy", "set", "initech/*", "--exempt", "1.3.0"]).await;
    server.until_versions(&token, "initech/part-02", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    server.close().await;
}

async fn an_advisory_reaches_audits_and_updates_and_nobody_outside_hears_of_it(ground: Ground) {
    let (upstream, server, token) = server(ground).await;
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-03:^1.0"]).await.ok();
        project.composer(&["audit"]).await.ok();
        projects.push((composer, project));
    }
    drop(upstream.asked());
    let file = server.data().with_file_name("advisories.json");
    let advisory = json!({
        "advisoryId": "PKSA-test-0001", "packageName": "initech/part-02", "remoteId": "initech/part-02/CVE-2026-99999.yaml",
        "title": "Cellar overflow", "link": "https://example.org/advisory", "cve": "CVE-2026-99999",
        "affectedVersions": ">=1.2.0,<1.3.0", "source": "Example", "reportedAt": "2026-01-02 03:04:05", "severity": "high",
        "composerRepository": "https://example.org", "sources": [{"name": "Example", "remoteId": "CVE-2026-99999"}],
    });
    let document = json!({"advisories": {"initech/part-02": [advisory]}});
    std::fs::write(&file, document.to_string()).expect("a file can be written");
    server.ok(&["advisory", "import", &file.display().to_string()]).await;
    for (composer, project) in &projects {
        let ran = until("the running server has heard of the advisory", || async {
            // It keeps what the registry says of itself for ten minutes.
            project.forget_cache();
            let ran = project.composer(&["audit"]).await;
            (!ran.status.success()).then_some(ran)
        })
        .await;
        assert!(ran.all().contains("CVE-2026-99999"), "{composer:?} tells which one: {}", ran.all());
    }
    // A current client leaves such versions alone by itself.
    if let Some((composer, _)) = projects.last().filter(|_| projects.len() > 1) {
        let project = Project::new(composer, &server, &token);
        project.composer(&["require", "initech/part-03:^1.0"]).await.ok();
        assert!(project.locked().contains(&"initech/part-02 v1.1.0".to_owned()), "{:?}", project.locked());
    }
    for one in upstream.asked() {
        assert_eq!(one.method, "GET", "nothing leaves the house: {one:?}");
    }
    server.close().await;
}
