//! Packages of other registries through Larder: installed, kept when everything else is gone, asked for as little as can
//! be, and never with a secret that is somebody else's.

use std::sync::Arc;

use larder_e2e::{
    Composer, Ground, Options, Project, Server, Upstream, on_every_ground, packages, until,
    upstream::{Asked, Catalogue, Fault, Layout, Protocol, Release, document},
    wire,
};
use larder_testkit::Forge;
use serde_json::{Value, json};

on_every_ground!(
    a_project_installs_again_when_all_that_it_came_from_is_gone,
    a_fresh_answer_costs_the_upstream_nothing_and_an_old_one_a_question,
    an_upstream_that_tells_what_changes_is_asked_one_question_for_all,
    what_only_the_upstream_understands_passes_through_untouched,
    the_first_upstream_that_has_a_name_keeps_it_and_its_failure_is_nobody_elses_turn,
    names_outside_the_patterns_of_a_source_are_never_asked_for,
    a_secret_goes_to_its_own_host_alone,
    a_dist_stays_what_it_was_when_the_upstream_packs_it_again,
    a_dist_without_a_reference_stays_what_it_was_when_a_shop_packs_it_again,
    one_larder_follows_another,
    what_a_lock_file_needs_is_fetched_before_the_upstream_goes,
    a_source_is_changed_while_a_server_runs_and_takes_kept_files_along_only_if_somebody_says_so,
);

/// A server that takes packages from an upstream, with the name `upstream`, and a token that reads everything.
pub async fn following(ground: Ground, upstream: &Upstream, more: &[&str]) -> (Server, String) {
    let mut server = Server::prepare(&Arc::new(ground), Options::default()).await;
    server.ok(&[&["source", "add", "composer", &upstream.url(), "--name", "upstream"], more].concat()).await;
    // Whoever adds it asks whether it answers.
    drop(upstream.asked());
    let token = server.token("ci", &[]).await;
    server.resume().await;
    (server, token)
}

/// Adds an upstream to a running server, and waits until that has heard of it: until it asks there for `vendor/unknown`.
pub async fn follow(server: &Server, name: &str, upstream: &Upstream, vendor: &str, more: &[&str]) {
    let token = server.token(&format!("probe-{name}"), &[]).await;
    server.ok(&[&["source", "add", "composer", &upstream.url(), "--name", name], more].concat()).await;
    drop(upstream.asked());
    until("the running server has heard of the source", || async {
        server.get(&format!("/p2/{vendor}/unknown.json"), Some(&token)).await;
        (!upstream.asked().is_empty()).then_some(())
    })
    .await;
}

/// The path on this server of the dist of a version, as its metadata tells it.
pub async fn dist_path(server: &Server, token: &str, package: &str, version: &str) -> String {
    let versions = server.versions(token, package, version.starts_with("dev-")).await;
    let found = versions.iter().find(|one| one["version"] == version);
    let found = found.unwrap_or_else(|| panic!("{package} has no {version}: {versions:?}"));
    let url = found["dist"]["url"].as_str().unwrap_or_default();
    url.strip_prefix(&server.url()).unwrap_or_else(|| panic!("the dist is here: {found}")).to_owned()
}

async fn a_project_installs_again_when_all_that_it_came_from_is_gone(ground: Ground) {
    let mut forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0", "v1.1.0"], packages::text);
    packages::repository(&forge, "money", &["2.0.0", "2.1.0"], packages::money);
    packages::repository(&forge, "shop", &["1.0.0"], packages::shop);
    packages::repository(&forge, "four", &["v4.0.0"], |version| packages::named("acme/four", version));
    packages::repository(&forge, "five", &["v5.0.0"], |version| packages::named("acme/five", version));
    let mut upstream = Upstream::start(Catalogue::chain("initech", 32), Layout::of(Protocol::Metadata)).await;
    let (mut server, token) = following(ground, &upstream, &[]).await;
    for name in ["text", "money", "shop", "four", "five"] {
        server.add(name, &forge.url(name), &[]).await;
    }
    let wanted = ["initech/part-32:^1.0", "globex/shop:^1.0", "acme/four:^4.0", "acme/five:^5.0"];
    let telling = Catalogue::telling(["initech/part-01", "initech/part-16", "initech/part-32"]);
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&[&["require"], wanted.as_slice()].concat()).await.ok();
        assert_eq!(project.locked().len(), 37, "{:?}", project.locked());
        assert_eq!(project.php(&telling).await.ok(), "v1.2.0 v1.2.0 v1.2.0");
        for package in project.read("composer.lock")["packages"].as_array().into_iter().flatten() {
            let url = package["dist"]["url"].as_str().unwrap_or_default();
            assert!(url.starts_with(&server.url()), "a lock file names no other host: {package}");
        }
        projects.push(project);
    }
    let requests = upstream.requests();
    let mut once = requests.clone();
    once.dedup();
    assert_eq!(requests, once, "clients cost the upstream one request for each file, however many they are");
    assert!(requests.iter().all(|one| one.starts_with("GET /")), "installs are nobody else's business: {requests:?}");
    for private in ["acme", "globex"] {
        assert!(!requests.iter().any(|one| one.contains(private)), "{private} is made here: {requests:?}");
    }
    upstream.stop().await;
    forge.stop().await;
    std::fs::remove_dir_all(forge.root()).expect("the repositories can be removed");
    // What is only in memory does not count.
    server.stop().await;
    server.resume().await;
    for project in &projects {
        let locked = project.locked();
        for command in ["install", "update"] {
            project.forget_vendor();
            project.forget_cache();
            project.composer(&[command]).await.ok();
            assert_eq!(project.locked(), locked);
            assert_eq!(project.php(&telling).await.ok(), "v1.2.0 v1.2.0 v1.2.0");
        }
    }
    server.fsck().await;
    server.close().await;
}

async fn a_fresh_answer_costs_the_upstream_nothing_and_an_old_one_a_question(ground: Ground) {
    let upstream = Upstream::start(Catalogue::chain("initech", 8), Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &[]).await;
    let (asking, asking_token) = following(Ground::local(), &upstream, &["--fresh", "0s"]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-08:^1.0"]).await.ok();
        drop(upstream.asked());
        project.forget_cache();
        project.forget_vendor();
        project.composer(&["update"]).await.ok();
        assert_eq!(upstream.requests(), [""; 0], "what is fresh is not asked for");
        let project = Project::new(&composer, &asking, &asking_token);
        project.composer(&["require", "initech/part-08:^1.0"]).await.ok();
        drop(upstream.asked());
        project.forget_cache();
        project.composer(&["update"]).await.ok();
        let asked = upstream.asked();
        let questions: Vec<_> = asked.iter().filter(|one| one.path.contains("/p2/")).collect();
        assert!(questions.len() >= 8, "what is old is asked about: {questions:?}");
        for one in &asked {
            assert!(!one.header("if-modified-since").is_empty(), "a question is a conditional one: {one:?}");
            assert_eq!(one.status, 304, "{one:?}");
        }
    }
    upstream.change(|catalogue| catalogue.release("initech/part-08", "v1.3.0"));
    asking.until_versions(&asking_token, "initech/part-08", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    // The other one says what it knows for five minutes, unless somebody wants to know better.
    assert_eq!(server.versions(&token, "initech/part-08", false).await.len(), 3);
    server.ok(&["source", "sync", "upstream"]).await;
    server.until_versions(&token, "initech/part-08", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    server.close().await;
    asking.close().await;
}

async fn an_upstream_that_tells_what_changes_is_asked_one_question_for_all(ground: Ground) {
    let layout = Layout { changes: true, ..Layout::of(Protocol::Metadata) };
    let upstream = Upstream::start(Catalogue::chain("initech", 8), layout).await;
    let (server, token) = following(ground, &upstream, &["--fresh", "1s"]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-08:^1.0"]).await.ok();
        // Once the feed is known, what is found unchanged is believed until the feed mentions it.
        until("one question is enough for all documents", || async {
            drop(upstream.asked());
            project.forget_cache();
            project.composer(&["update"]).await.ok();
            let asked = upstream.asked();
            let asks = |what: &str| asked.iter().any(|one| one.path.contains(what));
            (asks("changes.json?since=") && !asks("/p2/")).then_some(())
        })
        .await;
    }
    upstream.change(|catalogue| catalogue.release("initech/part-03", "v1.3.0"));
    drop(upstream.asked());
    server.until_versions(&token, "initech/part-03", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    server.until_versions(&token, "initech/part-04", false, &["v1.2.0", "v1.1.0", "v1.0.0"]).await;
    let asked = upstream.asked();
    assert!(!asked.iter().any(|one| one.path.contains("part-04")), "only what has changed is asked for: {asked:?}");
    server.close().await;
}

async fn what_only_the_upstream_understands_passes_through_untouched(ground: Ground) {
    let odd = Release::new("initech/odd", "v1.0.0", &[])
        .with("x-vendor", json!({"empty": {}, "list": [], "null": null, "nested": [[1, {"a": []}]]}))
        .with("published-time", json!("2024-03-05T12:00:00+00:00"))
        .with("suggest", json!({"ext-intl": "für Umlaute / slashes"}))
        .with("transport-options", json!({"http": {"header": ["X-One: 1"]}}));
    let mut catalogue = Catalogue::default();
    catalogue.add("initech/odd", odd.clone());
    let upstream = Upstream::start(catalogue, Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &["--show-source"]).await;
    let told = Value::Object(upstream.layout().entry("initech/odd", &odd, &upstream.base()));
    let shown = server.versions(&token, "initech/odd", false).await.remove(0);
    for (key, value) in told.as_object().into_iter().flatten().filter(|(key, _)| *key != "dist") {
        assert_eq!(shown[key], *value, "{key}");
    }
    assert_eq!(shown["dist"]["shasum"], told["dist"]["shasum"]);
    assert_eq!(shown["dist"]["reference"], told["dist"]["reference"]);
    // What JSON can say and few programs can hold.
    let numbers = r#""x-numbers":[1.0,1e2,-0.0,12345678901234567890123.5,18446744073709551616]"#;
    let raw = document(
        "initech/raw",
        &[upstream.layout().entry("initech/raw", &Release::new("initech/raw", "v1.0.0", &[]), &upstream.base())],
    );
    let raw = raw.to_string().replacen("[{", &format!("[{{{numbers},"), 1);
    upstream.fault("/p2/initech/raw.json", Fault::Bytes(raw.into()));
    let answer = server.get("/p2/initech/raw.json", Some(&token)).await;
    assert!(answer.text().contains(numbers), "{}", answer.text());
    server.close().await;
}

async fn the_first_upstream_that_has_a_name_keeps_it_and_its_failure_is_nobody_elses_turn(ground: Ground) {
    let with = |names: &[(&str, &str)]| {
        let mut catalogue = Catalogue::default();
        for (name, version) in names {
            catalogue.release(name, version);
        }
        Upstream::start(catalogue, Layout::of(Protocol::Metadata))
    };
    let mut first = with(&[("initech/both", "v1.0.0"), ("initech/frail", "v1.0.0"), ("initech/first", "v1.0.0")]).await;
    let second = with(&[("initech/both", "v9.0.0"), ("initech/frail", "v9.0.0"), ("initech/second", "v9.0.0")]).await;
    let (server, token) = following(ground, &first, &["--fresh", "0s"]).await;
    follow(&server, "second", &second, "initech", &["--fresh", "0s"]).await;
    let only = async |package: &str| {
        let versions = server.versions(&token, package, false).await;
        assert_eq!(versions.len(), 1, "{package}: {versions:?}");
        versions[0]["version"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(only("initech/both").await, "v1.0.0");
    assert_eq!(only("initech/first").await, "v1.0.0");
    assert_eq!(only("initech/second").await, "v9.0.0");
    first.fault("/p2/initech/frail.json", Fault::Status(500));
    let asked: Vec<_> = second.requests();
    assert!(!asked.iter().any(|one| one.contains("initech/both") || one.contains("initech/first")), "{asked:?}");
    let answer = server.get("/p2/initech/frail.json", Some(&token)).await;
    assert!(answer.status.is_server_error(), "{} {}", answer.status, answer.text());
    first.stop().await;
    assert_eq!(only("initech/both").await, "v1.0.0");
    let answer = server.get("/p2/initech/frail.json", Some(&token)).await;
    assert!(answer.status.is_server_error(), "{} {}", answer.status, answer.text());
    let asked = second.requests();
    assert!(!asked.iter().any(|one| one.contains("frail")), "its failure is nobody else's turn: {asked:?}");
    first.resume().await;
    first.recover();
    until("the first one gives what it has", || async {
        let answer = server.get("/p2/initech/frail.json", Some(&token)).await;
        answer.status.is_success().then_some(())
    })
    .await;
    assert_eq!(only("initech/frail").await, "v1.0.0");
    server.close().await;
}

async fn names_outside_the_patterns_of_a_source_are_never_asked_for(ground: Ground) {
    let catalogue = Catalogue::chain("initech", 2).and(Catalogue::chain("hooli", 2));
    let upstream = Upstream::start(catalogue, Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &["--only", "initech/*"]).await;
    assert_eq!(server.versions(&token, "initech/part-02", false).await.len(), 3);
    assert_eq!(server.versions(&token, "hooli/part-02", false).await.len(), 0);
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        let ran = project.composer(&["require", "hooli/part-02"]).await;
        assert!(!ran.status.success(), "{}", ran.all());
    }
    let asked = upstream.requests();
    assert!(!asked.iter().any(|one| one.contains("hooli")), "{asked:?}");
    server.close().await;
}

async fn a_secret_goes_to_its_own_host_alone(ground: Ground) {
    let secret = "upstream-pass-5e1f";
    let catalogue = Catalogue::chain("initech", 3);
    let other = Upstream::start(catalogue.clone(), Layout::of(Protocol::Metadata)).await;
    let server = Server::start(ground).await;
    server.guard(secret);
    let token = server.token("ci", &[]).await;
    let kinds = [
        ("basic", Some("robot"), "authorization", wire::basic("robot", secret)),
        ("bearer", None, "authorization", format!("Bearer {secret}")),
        ("header", Some("X-Shop-Key"), "x-shop-key", secret.to_owned()),
    ];
    for (kind, user, header, value) in kinds {
        let vendor = format!("shop-{kind}");
        let catalogue = Catalogue::chain(&vendor, 3);
        // Its dists are on another host; and one of its documents has moved there.
        let layout = Layout { elsewhere: Some(other.base()), source: true, ..Layout::of(Protocol::Metadata) };
        let upstream = Upstream::start(catalogue.clone(), layout).await;
        upstream.lock(header, &value);
        other.change(|there| *there = catalogue);
        let moved = format!("/p2/{vendor}/part-02.json");
        upstream.fault(&moved, Fault::Redirect(format!("{}{moved}", other.base())));
        let add = ["credential", "add", kind, "--kind", kind, "--host", &upstream.host()];
        let user: Vec<_> = user.into_iter().flat_map(|user| ["--username", user]).collect();
        server.larder_with(&[&add, user.as_slice()].concat(), secret).await.ok();
        let only = format!("{vendor}/*");
        follow(&server, kind, &upstream, &vendor, &["--credential", kind, "--only", &only]).await;
        for composer in Composer::each() {
            let project = Project::new(&composer, &server, &token);
            project.composer(&["require", &format!("{vendor}/part-03:^1.0")]).await.ok();
            let lock = project.lock_of(&format!("{vendor}/part-03"));
            assert!(lock.get("source").is_none(), "whoever may not look there is not told where it is: {lock}");
            let text = project.read("composer.lock").to_string();
            assert!(!text.contains(secret) && !text.contains("git.example.org"), "{text}");
        }
        let (here, there) = (upstream.asked(), other.asked());
        assert!(here.iter().all(|one| one.header(header) == value), "{kind}: {here:?}");
        assert_eq!(there.iter().filter(|one| one.is_dist()).count(), 3, "{kind}: {there:?}");
        assert!(there.iter().any(|one| one.path == moved), "{kind}: {there:?}");
        for one in &there {
            let said = format!("{one:?}");
            assert!(!said.contains(secret) && one.header("authorization").is_empty(), "{kind}: {said}");
        }
        // The owner takes it back.
        upstream.change(|catalogue| catalogue.release(&format!("{vendor}/late"), "v1.0.0"));
        upstream.lock(header, "another one");
        let answer = server.get(&format!("/p2/{vendor}/late.json"), Some(&token)).await;
        assert!(answer.status.is_server_error(), "a refusal does not mean that there is nothing: {}", answer.status);
        assert!(answer.text().contains("401") && answer.text().contains("credential"), "{}", answer.text());
    }
    server.close().await;
}

async fn a_dist_stays_what_it_was_when_the_upstream_packs_it_again(ground: Ground) {
    stays_what_it_was(ground, Layout::of(Protocol::Metadata)).await;
}

async fn a_dist_without_a_reference_stays_what_it_was_when_a_shop_packs_it_again(ground: Ground) {
    stays_what_it_was(ground, Layout::shop()).await;
}

async fn stays_what_it_was(ground: Ground, layout: Layout) {
    let upstream = Upstream::start(Catalogue::chain("initech", 2), layout).await;
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-02:^1.0"]).await.ok();
        projects.push(project);
    }
    let old = upstream.catalogue().get("initech/part-02", "v1.2.0").clone();
    let path = dist_path(&server, &token, "initech/part-02", "v1.2.0").await;
    upstream.change(|catalogue| {
        let release = catalogue.get_mut("initech/part-02", "v1.2.0");
        *release = release.clone().repacked();
    });
    let looked = server.get("/p2/initech/part-02.json", Some(&token)).await;
    assert!(looked.status.is_success(), "{}", looked.text());
    for project in &projects {
        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install"]).await.ok();
        assert_eq!(project.php(&Catalogue::telling(["initech/part-02"])).await.ok(), "v1.2.0");
    }
    let answer = server.get(&path, Some(&token)).await;
    assert!(answer.body == old.zip, "what was once served is served for ever");
    // Whoever comes now gets something that is what it says.
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-02:^1.0"]).await.ok();
    }
    // A version that is gone upstream stays for lock files.
    upstream.change(|catalogue| {
        catalogue.packages.get_mut("initech/part-02").expect("it is there").retain(|one| one.version != "v1.2.0");
    });
    server.until_versions(&token, "initech/part-02", false, &["v1.1.0", "v1.0.0"]).await;
    for project in &projects {
        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install"]).await.ok();
    }
    server.fsck().await;
    server.close().await;
}

async fn one_larder_follows_another(ground: Ground) {
    let forge = Forge::start().await;
    let text = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    packages::repository(&forge, "money", &["2.0.0"], packages::money);
    let mut there = Server::start(Ground::local()).await;
    for name in ["text", "money"] {
        there.add(name, &forge.url(name), &[]).await;
    }
    let there_token = there.token("follower", &["read:composer:acme/*"]).await;
    let mut here = Server::prepare(&Arc::new(ground), Options::default()).await;
    here.guard(&there_token);
    here.larder_with(&["credential", "add", "there", "--kind", "bearer"], &there_token).await.ok();
    here.ok(&["source", "add", "composer", &there.url(), "--name", "there", "--credential", "there", "--fresh", "1s"])
        .await;
    let token = here.token("ci", &[]).await;
    here.resume().await;
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &here, &token);
        project.composer(&["require", "acme/money:^2.0"]).await.ok();
        assert_eq!(project.locked(), ["acme/money 2.0.0", "acme/text v1.0.0"]);
        let urls = project.read("composer.lock").to_string();
        assert!(!urls.contains(&there.url()), "clients know the first one alone: {urls}");
        projects.push(project);
    }
    packages::release(&text, "v1.1.0", packages::text("1.1.0"));
    there.ok(&["source", "sync", "text"]).await;
    here.until_versions(&token, "acme/text", false, &["v1.1.0", "v1.0.0"]).await;
    until("the feed of changes is read on", || async {
        assert_eq!(here.versions(&token, "acme/money", false).await.len(), 1);
        there.gate.seen().iter().any(|seen| seen.path.contains("/changes.json?since=")).then_some(())
    })
    .await;
    for project in &projects {
        project.composer(&["update"]).await.ok();
        assert_eq!(project.locked(), ["acme/money 2.0.0", "acme/text v1.1.0"]);
    }
    there.stop().await;
    for project in &projects {
        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install"]).await.ok();
    }
    there.close().await;
    here.fsck().await;
    here.close().await;
}

async fn what_a_lock_file_needs_is_fetched_before_the_upstream_goes(ground: Ground) {
    let mut upstream = Upstream::start(Catalogue::chain("initech", 6), Layout::of(Protocol::Metadata)).await;
    let Some(composer) = Composer::any() else { return };
    // Made without Larder, by somebody who is about to change.
    let project = Project::at(&composer, &upstream.url());
    project.composer(&["require", "initech/part-06:^1.0"]).await.ok();
    let (server, token) = following(ground, &upstream, &[]).await;
    drop(upstream.asked());
    let lock = project.path().join("composer.lock").display().to_string();
    server.ok(&["lock", "check", &lock, "--warm"]).await;
    let dists = upstream.asked().into_iter().filter(Asked::is_dist).count();
    assert_eq!(dists, 6, "each dist was fetched, once");
    upstream.stop().await;
    server.ok(&["lock", "check", &lock]).await;
    let ours = Project::new(&composer, &server, &token);
    ours.put("composer.lock", &project.read("composer.lock").to_string());
    let path = ours.path().join("composer.lock").display().to_string();
    server.ok(&["lock", "check", &path, "--rewrite"]).await;
    let theirs = project.read("composer.json")["require"].clone();
    ours.edit(|document| document["require"] = theirs);
    ours.composer(&["install"]).await.ok();
    assert_eq!(ours.php(&Catalogue::telling(["initech/part-06"])).await.ok(), "v1.2.0");
    for package in ours.read("composer.lock")["packages"].as_array().into_iter().flatten() {
        let url = package["dist"]["url"].as_str().unwrap_or_default();
        assert!(url.starts_with(&server.url()), "no dist is there any more: {package}");
    }
    server.close().await;
}

async fn a_source_is_changed_while_a_server_runs_and_takes_kept_files_along_only_if_somebody_says_so(ground: Ground) {
    let upstream = Upstream::start(Catalogue::chain("initech", 2), Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &[]).await;
    assert_eq!(server.versions(&token, "initech/part-02", false).await.len(), 3);
    upstream.change(|catalogue| catalogue.release("initech/part-02", "v1.3.0"));
    server.ok(&["source", "set", "upstream", "--fresh", "0s"]).await;
    server.until_versions(&token, "initech/part-02", false, &["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]).await;
    let path = dist_path(&server, &token, "initech/part-02", "v1.3.0").await;
    let before = server.get(&path, Some(&token)).await;
    assert_eq!(before.status, http::StatusCode::OK);

    // The registry has moved: what it had is here, and what it has is asked for there.
    let moved = Upstream::start(upstream.catalogue(), Layout::of(Protocol::Metadata)).await;
    let to_there = ["source", "set", "upstream", "--url", &moved.url()];
    let refused = server.larder(&to_there).await.failed(1);
    assert!(refused.contains("1 package of `upstream`") && refused.contains("--yes"), "{refused}");
    server.ok(&[&to_there[..], &["--yes"]].concat()).await;
    moved.change(|catalogue| catalogue.release("initech/part-02", "v1.4.0"));
    let all = ["v1.4.0", "v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"];
    server.until_versions(&token, "initech/part-02", false, &all).await;
    drop(upstream.asked());
    assert_eq!(server.get(&path, Some(&token)).await.body, before.body);
    assert_eq!(upstream.requests(), [""; 0]);

    let refused = server.larder(&["source", "remove", "upstream"]).await.failed(1);
    assert!(refused.contains("1 version of 1 package") && refused.contains("--yes"), "{refused}");
    assert_eq!(server.get(&path, Some(&token)).await.body, before.body);
    let gone = server.json(&["source", "remove", "upstream", "--yes"]).await;
    assert_eq!((&gone["packages"], &gone["versions"]), (&json!(1), &json!(1)));
    assert_eq!(gone["bytes"], json!(before.body.len()));
    server.close().await;
}
