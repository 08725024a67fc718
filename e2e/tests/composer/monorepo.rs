//! Several packages in one Git repository, as real clients install them.

use std::collections::BTreeMap;

use http::StatusCode;
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, packages, program::run, until};
use larder_testkit::{
    Forge,
    forge::{File, Repository},
};
use serde_json::{Value, json};
use tokio::process::Command;

on_every_ground!(
    two_packages_of_one_repository_are_installed_together,
    a_dist_holds_the_folder_and_nothing_else,
    a_package_that_moves_within_the_repository_goes_on,
);

/// `acme/text`, and `acme/money` that needs it, each in a folder of one repository, and beside them what is no package.
fn both(version: &str) -> Vec<File> {
    let mut files = inside("packages/text", packages::text(version));
    files.extend(inside("packages/money", packages::money(version)));
    files.extend([
        packages::manifest_file(&json!({"name": "acme/all", "require": {"php": ">=7.4"}})),
        File::new("packages/README.md", "# Packages\n"),
        File::new("packages/broken/composer.json", "{\"name\": "),
        File::new("packages/text/tests/GreetingTest.php", "<?php\n"),
        File::new(".gitattributes", "tests export-ignore\n/packages/money export-ignore\n"),
    ]);
    files
}

fn inside(folder: &str, files: Vec<File>) -> Vec<File> {
    files.into_iter().map(|file| file.below(folder)).collect()
}

async fn a_server(ground: Ground) -> (Forge, Repository, Server, String) {
    let forge = Forge::start().await;
    let repository = forge.repository("all");
    for version in ["1.0.0", "2.0.0"] {
        packages::release(&repository, &format!("v{version}"), both(version));
    }
    let server = Server::start(ground).await;
    server.add("all", &forge.url("all"), &["--packages", "packages/*"]).await;
    let token = server.token("ci", &[]).await;
    (forge, repository, server, token)
}

async fn two_packages_of_one_repository_are_installed_together(ground: Ground) {
    let (_forge, repository, server, token) = a_server(ground).await;
    for package in ["acme/text", "acme/money"] {
        server.until_versions(&token, package, false, &["v2.0.0", "v1.0.0"]).await;
    }
    assert!(server.versions(&token, "acme/all", false).await.is_empty(), "the root is not among the folders");
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/money:^2.0"]).await.ok();
        // What it needs is in the same repository, in another version.
        assert_eq!(project.locked(), ["acme/money v2.0.0", "acme/text v1.0.0"]);
        let said = project.php("require 'vendor/autoload.php'; echo Acme\\Money\\Price::of(1999);").await.ok();
        assert_eq!(said, "Hello, 19.99 EUR");
        assert!(project.path().join("vendor/acme/text/composer.json").is_file());
        assert!(!project.path().join("vendor/acme/text/packages").exists());
        let lock = project.lock_of("acme/money");
        assert_eq!(lock["dist"]["reference"], repository.resolve("v2.0.0").expect("it was tagged"));
        assert!(lock["source"].is_null(), "a clone would be of the whole repository: {lock}");

        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install", "--prefer-source"]).await.ok();
        assert!(project.path().join("vendor/acme/money/src/Price.php").is_file());
    }
    let shown = server.json(&["source", "show", "all"]).await;
    let packages: BTreeMap<&str, &Value> = shown["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|package| (package["name"].as_str().unwrap_or_default(), &package["folders"]))
        .collect();
    assert_eq!(packages["acme/money"], &json!(["packages/money"]));
    assert_eq!((packages["acme/text"], packages.len()), (&json!(["packages/text"]), 2));
    let skipped = shown["refs"][0]["skipped"].as_str().unwrap_or_default();
    assert!(skipped.starts_with("packages/broken: "), "{skipped}");
    let text = server.ok(&["source", "show", "all"]).await;
    assert!(text.contains("folders     packages/*") && text.contains("acme/text: 3 versions, packages/text"), "{text}");
    server.close().await;
}

async fn a_dist_holds_the_folder_and_nothing_else(ground: Ground) {
    let (_forge, repository, server, token) = a_server(ground).await;
    // The root leaves `tests` out everywhere, and the folder of the other one as a whole, which is not about its own dist.
    let plain = [("acme/text", vec!["v1.0.0", "packages/text"], 2), ("acme/money", vec!["v1.0.0:packages/money"], 0)];
    for (package, args, strip) in plain {
        let versions = server.versions(&token, package, false).await;
        let url = versions[1]["dist"]["url"].as_str().unwrap_or_default().replace(&server.url(), "");
        let dist = server.get(&url, Some(&token)).await;
        assert_eq!(dist.status, StatusCode::OK, "{}", dist.text());
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("a file can be written");
        };
        write("dist.zip", &dist.body);
        write("git.tar", &repository.git_bytes(&[&["archive", "--format=tar"], args.as_slice()].concat(), &[]));
        let script = format!(
            "mkdir git zip && tar -xf git.tar -C git --strip-components={strip} && unzip -q dist.zip -d zip && \
             diff -r git zip && test -f zip/composer.json && test ! -e zip/tests && test ! -e zip/packages"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(folder.path());
        run(command, b"").await.ok();
    }
    server.fsck().await;
    server.close().await;
}

async fn a_package_that_moves_within_the_repository_goes_on(ground: Ground) {
    let (_forge, repository, server, token) = a_server(ground).await;
    let mut moved = inside("packages/greetings", packages::text("3.0.0"));
    moved.extend(inside("packages/money", packages::money("3.0.0")));
    packages::release(&repository, "v1.3.0", moved);
    server.ok(&["source", "sync", "all"]).await;
    until("the new version is there", || async {
        let versions = server.versions(&token, "acme/text", false).await;
        versions.iter().any(|version| version["version"] == "v1.3.0").then_some(())
    })
    .await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        for version in ["v1.3.0", "v1.0.0"] {
            project.edit(|document| document["require"] = json!({"acme/text": version.trim_start_matches('v')}));
            project.composer(&["update"]).await.ok();
            assert_eq!(project.locked(), [format!("acme/text {version}")]);
            assert!(project.path().join("vendor/acme/text/src/Greeting.php").is_file());
        }
    }
    let shown = server.json(&["source", "show", "all"]).await;
    let text = shown["packages"].as_array().into_iter().flatten().find(|package| package["name"] == "acme/text");
    assert_eq!(text.map(|package| &package["folders"]), Some(&json!(["packages/greetings", "packages/text"])));
    server.close().await;
}
