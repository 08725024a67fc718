//! Lock files: would they install from here, what is missing, and having them point here; and the addresses that other
//! servers wrote into them.

use std::path::Path;

use http::StatusCode;
use larder_e2e::{
    Composer, Ground, Project, Ran, Server, Upstream, on_every_ground, packages,
    upstream::{Catalogue, Layout, Protocol},
};
use larder_testkit::Forge;
use serde_json::{Value, json};

use crate::upstream::{dist_path, following};

on_every_ground!(
    a_lock_file_from_elsewhere_is_warmed_rewritten_and_installs_when_all_else_is_gone,
    a_lock_file_that_was_made_here_is_the_same_when_it_is_rewritten,
    a_lock_file_says_what_would_fail_and_what_may_be_another_package,
    addresses_of_other_servers_go_on_working,
);

const PARTS: usize = 6;

async fn upstream() -> Upstream {
    Upstream::start(Catalogue::chain("initech", PARTS), Layout::of(Protocol::Metadata)).await
}

/// `larder lock check`.
async fn check(server: &Server, file: &Path, more: &[&str]) -> Ran {
    let file = file.to_str().expect("its path is a text");
    server.larder(&[&["lock", "check", file], more].concat()).await
}

async fn check_json(server: &Server, file: &Path, more: &[&str]) -> Value {
    let ran = check(server, file, &[more, &["--json"]].concat()).await;
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.all()))
}

fn text(file: &Path) -> String {
    std::fs::read_to_string(file).expect("the file is there")
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn packages_of(document: &Value) -> &[Value] {
    document["packages"].as_array().map_or(&[], Vec::as_slice)
}

fn state(package: &Value) -> &str {
    package["state"].as_str().unwrap_or_default()
}

fn states(document: &Value) -> Vec<&str> {
    let mut states: Vec<_> = packages_of(document).iter().map(state).collect();
    states.dedup();
    states
}

async fn a_lock_file_from_elsewhere_is_warmed_rewritten_and_installs_when_all_else_is_gone(ground: Ground) {
    let mut upstream = upstream().await;
    let (server, token) = following(ground, &upstream, &[]).await;
    for composer in Composer::each() {
        let project = Project::at(&composer, &upstream.url());
        project.composer(&["require", "initech/part-06:^1.0"]).await.ok();
        let lock = project.path().join("composer.lock");
        let before = text(&lock);
        assert!(before.contains(&upstream.host()), "{before}");
        let warmed = check_json(&server, &lock, &["--warm"]).await;
        assert_eq!((states(&warmed), &warmed["failing"]), (vec!["stored"], &json!(0)), "{warmed}");
        check(&server, &lock, &["--rewrite"]).await.ok();
        let after = text(&lock);
        assert!(!after.contains(&upstream.host()), "{after}");
        let (old, new): (Value, Value) = (parsed(&before), parsed(&after));
        assert_eq!(old["content-hash"], new["content-hash"]);
        assert_eq!(old["packages"][0]["require"], new["packages"][0]["require"]);
        // Twice is once.
        check(&server, &lock, &["--rewrite"]).await.ok();
        assert_eq!(text(&lock), after);

        upstream.stop().await;
        let offline = check_json(&server, &lock, &["--offline"]).await;
        assert_eq!((states(&offline), &offline["failing"]), (vec!["stored"], &json!(0)), "{offline}");
        project.forget_vendor();
        project.forget_cache();
        project.log_in(&server, &token);
        let installed = project.composer(&["install"]).await;
        assert!(!installed.all().contains("not up to date"), "{}", installed.all());
        installed.ok();
        assert_eq!(project.locked().len(), PARTS);
        upstream.resume().await;
    }
    server.close().await;
}

async fn a_lock_file_that_was_made_here_is_the_same_when_it_is_rewritten(ground: Ground) {
    let upstream = upstream().await;
    let (server, token) = following(ground, &upstream, &[]).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "initech/part-06:^1.0"]).await.ok();
        let (lock, other) = (project.path().join("composer.lock"), project.path().join("other.lock"));
        check(&server, &lock, &["--rewrite", "--output", other.to_str().expect("its path is a text")]).await.ok();
        let [made, rewritten] = [lock, other].map(|file| text(&file));
        assert_eq!(rewritten, made, "as the client itself writes it, to the byte");
    }
    server.close().await;
}

async fn a_lock_file_says_what_would_fail_and_what_may_be_another_package(ground: Ground) {
    let upstream = upstream().await;
    let forge = Forge::start().await;
    packages::repository(&forge, "secret", &["v1.0.0"], |version| packages::named("acme/secret", version));
    let (server, token) = following(ground, &upstream, &[]).await;
    server.add("secret", &forge.url("secret"), &[]).await;
    server.ok(&["reserve", "add", "hidden/*"]).await;
    server.ok(&["composer", "block", "initech/part-02", "1.2.0", "--reason", "it steals keys"]).await;
    let entry = |name: &str, version: &str, reference: &str| {
        let url = format!("https://evil.example.org/{name}.zip");
        json!({ "name": name, "version": version, "dist": { "type": "zip", "url": url, "reference": reference, "shasum": "" } })
    };
    let part = |name: &str| upstream.catalogue().get(name, "v1.2.0").reference.clone();
    let own = server.versions(&token, "acme/secret", false).await[0]["dist"]["reference"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let lock = json!({
        "content-hash": "0",
        "packages": [
            entry("initech/part-01", "v1.2.0", &part("initech/part-01")),
            entry("initech/part-02", "v1.2.0", &part("initech/part-02")),
            entry("initech/part-03", "v1.2.0", "0000000000000000000000000000000000000000"),
            entry("initech/nothing", "v1.0.0", "0"),
        ],
        "packages-dev": [
            entry("acme/secret", "v1.0.0", &own),
            entry("acme/secret", "v9.0.0", "9"),
            entry("acme/alike", "v1.0.0", "9"),
            entry("hidden/lib", "v1.0.0", "9"),
            json!({ "name": "acme/here", "version": "dev-main", "dist": { "type": "path", "url": "../here", "reference": "" } }),
        ],
    });
    let folder = tempfile::tempdir().expect("a place for temporary files");
    let file = folder.path().join("composer.lock");
    std::fs::write(&file, lock.to_string()).expect("it can be written");
    // Nobody outside hears a name of the file that is not here, unless that is wanted.
    drop(upstream.asked());
    let stranger = check_json(&server, &file, &[]).await;
    assert!(packages_of(&stranger)[0]["why"].to_string().contains("--warm"), "{stranger}");
    let asked = upstream.asked();
    let names = ["part-", "nothing", "alike", "hidden"];
    assert!(asked.iter().all(|one| names.iter().all(|name| !one.path.contains(name))), "{asked:?}");
    for name in ["initech/part-01", "initech/part-02", "initech/part-03"] {
        server.versions(&token, name, false).await;
    }
    let ran = check(&server, &file, &[]).await;
    let said = ran.all();
    ran.failed(1);
    for part in ["it steals keys", "RISK", "6 packages of 9 could not be installed", "MISSING", "REFUSED"] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    let document = check_json(&server, &file, &[]).await;
    let found = packages_of(&document);
    let states: Vec<_> = found.iter().map(state).collect();
    assert_eq!(states[..4], ["known", "refused", "missing", "missing"], "{document}");
    assert!(["stored", "known"].contains(&states[4]), "its newest versions are built by themselves: {document}");
    assert_eq!(states[5..], ["missing", "missing", "missing", "nothing"], "{document}");
    let risks = |at: usize| found[at]["risks"].to_string();
    assert_eq!((risks(0).as_str(), risks(4).as_str()), ("[]", "[]"));
    assert!(risks(5).contains("the name is yours") && risks(5).contains("evil.example.org"), "{}", risks(5));
    assert!(risks(6).contains("of the vendor `acme`"), "{}", risks(6));
    assert!(risks(7).contains("reserved for you"), "{}", risks(7));
    assert!(found[2]["why"].to_string().contains("wants 0000"), "{document}");

    let broken = folder.path().join("broken.lock");
    std::fs::write(&broken, "{}").expect("it can be written");
    assert!(check(&server, &broken, &[]).await.failed(1).contains("no lock file"));
    server.close().await;
}

async fn addresses_of_other_servers_go_on_working(ground: Ground) {
    let upstream = upstream().await;
    let forge = Forge::start().await;
    packages::repository(&forge, "secret", &["v1.0.0"], |version| packages::named("acme/secret", version));
    let (server, token) = following(ground, &upstream, &[]).await;
    server.add("secret", &forge.url("secret"), &[]).await;
    let bytes = async |path: &str| {
        let answer = server.get(path, Some(&token)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        answer.body
    };
    // Nobody has asked for it here before, and nobody who installs from a lock file asks for metadata.
    let part = bytes("/dist/m/initech/part-01/1.2.0.0.zip").await;
    assert_eq!(part, bytes(&dist_path(&server, &token, "initech/part-01", "v1.2.0").await).await);
    let reference = upstream.catalogue().get("initech/part-01", "v1.2.0").reference.clone();
    let secret = bytes(&dist_path(&server, &token, "acme/secret", "v1.0.0").await).await;
    for (path, expected) in [
        ("/dist/m/initech/part-01/v1.2.0.zip".to_owned(), &part),
        (format!("/dist/initech/part-01/1.2.0/{reference}.zip"), &part),
        ("/dist/V1StGXR8_Z5jdHi6B-myT/initech/part-01/1.2.0.zip".to_owned(), &part),
        ("/dist/m/acme/secret/1.0.0.0.zip".to_owned(), &secret),
    ] {
        assert_eq!(&bytes(&path).await, expected, "{path}");
    }
    let told = server.get("/p/acme/secret.json", Some(&token)).await.json();
    assert_eq!(told["packages"]["acme/secret"]["v1.0.0"]["name"], "acme/secret", "{told}");

    // Who may not read it hears nothing, and no upstream hears the name of a package of ours.
    let other = server.token("other", &["read:composer:other/*"]).await;
    drop(upstream.asked());
    for path in ["/dist/m/acme/secret/1.0.0.0.zip", "/p/acme/secret.json", "/dist/acme/secret/1.0.0/none.zip"] {
        assert_eq!(server.get(path, Some(&other)).await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(server.get(path, None).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(server.get("/dist/acme/secret/1.0.0/none.zip", Some(&token)).await.status, StatusCode::NOT_FOUND);
    assert!(upstream.asked().iter().all(|one| !one.path.contains("secret")), "{:?}", upstream.asked());
    server.close().await;
}
