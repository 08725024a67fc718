//! One name, one origin: what is made here or reserved is nobody else's, however high the versions are that others offer.

use larder_e2e::{
    Composer, Ground, Project, Server, Upstream, on_every_ground, packages, until,
    upstream::{Catalogue, Layout, Protocol},
};
use larder_testkit::Forge;

use crate::upstream::{follow, following};

on_every_ground!(
    a_look_alike_of_a_private_package_is_never_offered_requested_or_mentioned,
    a_reserved_name_is_never_asked_for_before_there_is_a_package,
    a_package_that_becomes_private_is_private_from_then_on,
    a_registry_that_starts_to_offer_a_private_name_is_reported,
);

/// A public registry with look-alikes of private packages.
async fn public(layout: Layout) -> Upstream {
    let mut catalogue = Catalogue::chain("initech", 2);
    for name in ["acme/secret", "acme/text", "acme/planned"] {
        catalogue.release(name, "v99.0.0");
    }
    Upstream::start(catalogue, layout).await
}

/// A Git host with `acme/secret` and `acme/text`.
async fn private() -> Forge {
    let forge = Forge::start().await;
    packages::repository(&forge, "secret", &["v1.0.0"], |version| packages::named("acme/secret", version));
    packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    forge
}

/// What the upstream was asked names nobody of ours.
fn unmentioned(upstream: &Upstream) {
    let asked = upstream.asked();
    for one in &asked {
        assert!(!format!("{one:?}").contains("acme"), "a private name left the house: {one:?}");
    }
}

async fn a_look_alike_of_a_private_package_is_never_offered_requested_or_mentioned(ground: Ground) {
    let (upstream, forge) = (public(Layout::of(Protocol::Metadata)).await, private().await);
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    for name in ["secret", "text"] {
        server.add(name, &forge.url(name), &[]).await;
    }
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/secret:*", "acme/text:>=1.0", "initech/part-02:^1.0"]).await.ok();
        let locked = project.locked();
        assert_eq!(
            locked,
            ["acme/secret v1.0.0", "acme/text v1.0.0", "initech/part-01 v1.2.0", "initech/part-02 v1.2.0"]
        );
        project.composer(&["update"]).await.ok();
        let refused = project.composer(&["require", "acme/secret:^99.0"]).await;
        assert!(!refused.status.success(), "{}", refused.all());
        drop(project.composer(&["audit"]).await);
        drop(project.composer(&["outdated"]).await);
        drop(project.composer(&["search", "secret"]).await);
        drop(project.composer(&["show", "--all", "acme/secret"]).await);
    }
    for path in [
        "/p2/acme/secret.json",
        "/p2/acme/secret~dev.json",
        "/p2/ACME/secret.json",
        "/list.json",
        "/search.json?q=acme",
    ] {
        let answer = server.get(path, Some(&token)).await;
        assert!(!answer.text().contains("99.0.0"), "{path}: {}", answer.text());
    }
    server.ok(&["source", "sync", "--all"]).await;
    unmentioned(&upstream);
    server.close().await;
}

async fn a_reserved_name_is_never_asked_for_before_there_is_a_package(ground: Ground) {
    let upstream = public(Layout::of(Protocol::Metadata)).await;
    let server = Server::start(ground).await;
    server.ok(&["reserve", "add", "acme/*"]).await;
    follow(&server, "upstream", &upstream, "initech", &[]).await;
    let token = server.token("ci", &[]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        let refused = project.composer(&["require", "acme/planned"]).await;
        assert!(!refused.status.success(), "{}", refused.all());
        project.composer(&["require", "initech/part-02:^1.0"]).await.ok();
    }
    for path in ["/p2/acme/planned.json", "/p2/Acme/Planned.json", "/p2/acme/any~dev.json"] {
        assert_eq!(server.get(path, Some(&token)).await.status, http::StatusCode::NOT_FOUND, "{path}");
    }
    unmentioned(&upstream);
    server.close().await;
}

async fn a_package_that_becomes_private_is_private_from_then_on(ground: Ground) {
    let (upstream, forge) = (public(Layout::of(Protocol::Metadata)).await, private().await);
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    // Too late for this one question, which somebody asked before anything was here.
    server.until_versions(&token, "acme/secret", false, &["v99.0.0"]).await;
    server.ok(&["reserve", "add", "acme/*", "--take-over"]).await;
    until("the look-alike is gone", || async {
        let answer = server.get("/p2/acme/secret.json", Some(&token)).await;
        (answer.status == http::StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    drop(upstream.asked());
    server.add("secret", &forge.url("secret"), &[]).await;
    server.until_versions(&token, "acme/secret", false, &["v1.0.0"]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/secret:*"]).await.ok();
        assert_eq!(project.locked(), ["acme/secret v1.0.0"]);
    }
    unmentioned(&upstream);
    server.close().await;
}

async fn a_registry_that_starts_to_offer_a_private_name_is_reported(ground: Ground) {
    // This one tells all that it has, so that nobody has to ask for a name to see it.
    let upstream =
        Upstream::start(Catalogue::chain("initech", 2), Layout { listed: true, ..Layout::of(Protocol::Metadata) })
            .await;
    let forge = private().await;
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    server.add("secret", &forge.url("secret"), &[]).await;
    server.ok(&["source", "sync", "upstream"]).await;
    let doctor = async || server.larder(&["doctor"]).await.all();
    assert!(!doctor().await.contains("acme/secret"));
    upstream.change(|catalogue| catalogue.release("acme/secret", "v99.0.0"));
    server.ok(&["source", "sync", "upstream"]).await;
    until("an event says so", || async {
        // Whoever asks for anything of that registry makes Larder look at its list.
        server.get("/p2/initech/part-01.json", Some(&token)).await;
        let events = server.ok(&["audit", "list", "--action", "name.offered"]).await;
        events.contains("acme/secret").then_some(())
    })
    .await;
    let warned = doctor().await;
    assert!(warned.contains("acme/secret"), "a warning says so: {warned}");
    server.until_versions(&token, "acme/secret", false, &["v1.0.0"]).await;
    for one in upstream.asked() {
        assert!(!one.path.contains("acme"), "{one:?}");
    }
    server.close().await;
}
