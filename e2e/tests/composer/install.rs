//! From Git repositories to an installed, running project; and how little a client has to ask for.

use larder_e2e::{Composer, Ground, Project, Server, not_tested, on_every_ground, packages, until};
use larder_testkit::{Forge, forge::SshForge};

on_every_ground!(
    a_project_installs_from_three_git_repositories_and_again_when_they_are_gone,
    a_small_view_costs_one_request_and_later_one_that_says_nothing_changed,
    a_large_view_costs_one_request_per_package_and_later_only_unchanged_ones,
);

const RUN: &str =
    "require 'vendor/autoload.php'; echo Globex\\Shop\\Till::bill(1999), ' ', Acme\\Money\\Price::VERSION;";

async fn a_project_installs_from_three_git_repositories_and_again_when_they_are_gone(ground: Ground) {
    let mut forge = Forge::start().await;
    let password = "forge-pass-93f1";
    forge.rule(|rules| rules.authorization = Some(larder_e2e::wire::basic("robot", password)));
    packages::repository(&forge, "text", &["v1.0.0", "v1.1.0"], packages::text);
    let money = packages::repository(&forge, "money", &["v1.0.0", "2.0.0", "2.1.0"], packages::money);
    packages::repository(&forge, "shop", &["1.0.0"], packages::shop);
    let server = Server::start(ground).await;
    server.guard(password);
    let host = forge.base();
    let host = host.trim_start_matches("http://");
    let add = ["credential", "add", "forge", "--kind", "basic", "--username", "robot", "--host", host];
    server.larder_with(&add, password).await.ok();
    server.add("text", &forge.url("text"), &["--credential", "forge"]).await;
    let ssh = match larder_e2e::setting("LARDER_TEST_SSHD") {
        Some(_) => Some(SshForge::start().await.expect("sshd runs, because LARDER_TEST_SSHD says that it is there")),
        None => None,
    };
    if let Some(ssh) = &ssh {
        server.larder_with(&["credential", "add", "deploy", "--kind", "ssh"], &ssh.key()).await.ok();
        server.add("money", &ssh.url(&money), &["--credential", "deploy"]).await;
    } else {
        not_tested("a Git source over ssh: LARDER_TEST_SSHD is not set");
        server.add("money", &forge.url("money"), &["--credential", "forge"]).await;
    }
    server.add("shop", &forge.file_url("shop"), &[]).await;
    let token = server.token("ci", &[]).await;

    let composers = Composer::each();
    let mut projects = Vec::new();
    for composer in &composers {
        let project = Project::new(composer, &server, &token);
        project.composer(&["require", "globex/shop:^1.0"]).await.ok();
        assert_eq!(project.locked(), ["acme/money 2.1.0", "acme/text v1.1.0", "globex/shop 1.0.0"]);
        assert_eq!(project.php(RUN).await.ok(), "Hello, 19.99 EUR 2.1.0");
        projects.push(project);
    }
    forge.stop().await;
    drop(ssh);
    std::fs::remove_dir_all(forge.root()).expect("the repositories can be removed");
    for project in &projects {
        project.forget_vendor();
        project.forget_cache();
        project.composer(&["install"]).await.ok();
        assert_eq!(project.php(RUN).await.ok(), "Hello, 19.99 EUR 2.1.0");
    }
    server.fsck().await;
    server.close().await;
}

async fn a_small_view_costs_one_request_and_later_one_that_says_nothing_changed(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let token = server.token("ci", &[]).await;
    until_built(&server, &token).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        drop(server.gate.seen());
        project.composer(&["require", "globex/shop:^1.0"]).await.ok();
        let cold = requests(&server);
        assert_eq!(
            cold,
            [
                "GET /dist/acme/money 200",
                "GET /dist/acme/text 200",
                "GET /dist/globex/shop 200",
                "GET /packages.json 200",
                "POST /downloads 200"
            ]
        );
        project.composer(&["update"]).await.ok();
        assert_eq!(requests(&server), ["GET /packages.json 304"]);
        project.forget_vendor();
        project.composer(&["install"]).await.ok();
        let from_lock = requests(&server);
        assert!(from_lock.iter().all(|one| one == "POST /downloads 200"), "{from_lock:?}");
    }
    until("installs are counted", || async {
        let shown = server.json(&["package", "show", "composer", "globex/shop"]).await.to_string();
        shown.contains("install").then_some(())
    })
    .await;
    server.close().await;
}

async fn a_large_view_costs_one_request_per_package_and_later_only_unchanged_ones(ground: Ground) {
    let (forge, server) = with_three_packages(ground, &[]).await;
    let large = forge.repository("large");
    large.history(
        600,
        |number| format!("1.{number}.0"),
        |number| packages::named("initech/large", &number.to_string()),
    );
    server.add("large", &forge.url("large"), &[]).await;
    let token = server.token("ci", &[]).await;
    until_built(&server, &token).await;
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        drop(server.gate.seen());
        project.composer(&["require", "globex/shop:^1.0"]).await.ok();
        let cold = requests(&server);
        assert_eq!(
            cold,
            [
                "GET /dist/acme/money 200",
                "GET /dist/acme/text 200",
                "GET /dist/globex/shop 200",
                "GET /p2/acme/money.json 200",
                "GET /p2/acme/text.json 200",
                "GET /p2/globex/shop.json 200",
                "GET /packages.json 200",
                "POST /downloads 200"
            ]
        );
        project.composer(&["update"]).await.ok();
        assert_eq!(
            requests(&server),
            [
                "GET /p2/acme/money.json 304",
                "GET /p2/acme/text.json 304",
                "GET /p2/globex/shop.json 304",
                "GET /packages.json 304"
            ]
        );
    }
    server.close().await;
}

/// A forge and a server with `acme/text`, `acme/money` and `globex/shop`.
pub async fn with_three_packages(ground: Ground, more: &[&str]) -> (Forge, Server) {
    let forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0", "v1.1.0"], packages::text);
    packages::repository(&forge, "money", &["v1.0.0", "2.0.0", "2.1.0"], packages::money);
    packages::repository(&forge, "shop", &["1.0.0"], packages::shop);
    let server = Server::start(ground).await;
    for name in ["text", "money", "shop"] {
        server.add(name, &forge.url(name), more).await;
    }
    (forge, server)
}

/// Waits until the newest releases have their dists, after which no metadata changes by itself.
async fn until_built(server: &Server, token: &str) {
    for package in server.get("/list.json", Some(token)).await.json()["packageNames"].as_array().into_iter().flatten() {
        let package = package.as_str().unwrap_or_default();
        until(&format!("the newest dists of {package} are built"), || async {
            let versions = server.versions(token, package, false).await;
            versions.iter().take(3).all(|version| version["dist"]["shasum"] != "").then_some(())
        })
        .await;
    }
}

/// What clients asked for since this was last asked, sorted, dists by their package.
fn requests(server: &Server) -> Vec<String> {
    let mut requests: Vec<String> = server
        .gate
        .seen()
        .into_iter()
        .map(|seen| {
            let path = match seen.path.strip_prefix("/dist/") {
                Some(dist) => format!("/dist/{}", dist.split('/').take(2).collect::<Vec<_>>().join("/")),
                None => seen.path,
            };
            format!("{} {path} {}", seen.method, seen.status)
        })
        .collect();
    requests.sort();
    requests
}
