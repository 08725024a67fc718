//! Repositories and hosts that nobody should meet: a clear error on that source or ref, everything else goes on, and the
//! server's memory stays bounded.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;
use larder_e2e::{Ground, Options, Server, on_every_ground, packages};
use larder_testkit::{
    Forge,
    forge::{File, Manner},
};

on_every_ground!(
    a_url_that_git_would_run_or_that_leads_inside_is_refused,
    a_host_that_never_answers_or_never_ends_costs_its_own_source_alone,
    hostile_manifests_skip_their_tags_alone,
    twenty_thousand_tags_are_read_up_to_the_limit_in_bounded_memory,
    a_huge_file_costs_its_own_dist_alone_and_no_memory,
);

/// Far above what a server needs, far below what any of the inputs would take.
const BOUND: u64 = 250 * 1024 * 1024;

async fn a_url_that_git_would_run_or_that_leads_inside_is_refused(ground: Ground) {
    let options = Options { refuse_local_sources: true, ..Options::default() };
    let server = Server::start_with(&Arc::new(ground), options).await;
    let proof = server.data().with_file_name("proof");
    let touch = format!("touch {}", proof.display());
    for url in [
        format!("ext::sh -c {touch}"),
        format!("ext::{}", touch.replace(' ', "% ")),
        format!("--upload-pack={touch}"),
        format!("ssh://-oProxyCommand={}/x", touch.replace(' ', "%20")),
        "git@-oProxyCommand=id:x".to_owned(),
        "https://user:hunter2@git.example.org/x.git".to_owned(),
        "file:///etc".to_owned(),
        "/etc".to_owned(),
        "fd::17".to_owned(),
        "https://git.example.org/x.git\nurl = ext::sh".to_owned(),
    ] {
        let ran = server.larder(&["source", "add", "git", "--name", "evil", "--", &url]).await;
        let said = ran.failed(1);
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains("source") || said.contains("Git"), "{url}: {said}");
    }
    assert!(!proof.exists(), "something was run");
    let forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    for (name, url) in [
        ("loopback", forge.url("text")),
        ("metadata", "http://169.254.169.254/x.git".to_owned()),
        ("number", forge.url("text").replace("127.0.0.1", "2130706433")),
    ] {
        let added = server.larder(&["source", "add", "git", &url, "--name", name]).await;
        if added.status.success() {
            let said = server.larder(&["source", "sync", name]).await.failed(1);
            assert!(said.contains("LARDER_ALLOW_LOCAL_SOURCES"), "{url}: {said}");
        }
    }
    assert_eq!(forge.traffic().0, 0, "a private address was asked");
    server.close().await;
}

async fn a_host_that_never_answers_or_never_ends_costs_its_own_source_alone(ground: Ground) {
    let (silent, endless, moved, inner, good) =
        (Forge::start().await, Forge::start().await, Forge::start().await, Forge::start().await, Forge::start().await);
    silent.rule(|rules| rules.manner = Manner::Silence);
    endless.rule(|rules| rules.manner = Manner::Endless);
    moved.rule(|rules| rules.manner = Manner::Redirect(inner.base()));
    for forge in [&inner, &good] {
        packages::repository(forge, "text", &["v1.0.0"], packages::text);
    }
    let options = Options::default().with("LARDER_LIMITS_GIT_LIST", "3s").with("LARDER_LIMITS_GIT_IDLE", "2s");
    let server = Server::start_with(&Arc::new(ground), options).await;
    server.guard("forge-pass-93f1");
    let host = moved.base().replace("http://", "");
    let add = ["credential", "add", "forge", "--kind", "basic", "--username", "robot", "--host", &host];
    server.larder_with(&add, "forge-pass-93f1").await.ok();
    let begun = Instant::now();
    for (name, url, more) in [
        ("silent", silent.url("text"), [].as_slice()),
        ("endless", endless.url("text"), &[]),
        ("moved", moved.url("text"), &["--credential", "forge"]),
        ("nowhere", "http://127.0.0.1:1/text.git".to_owned(), &[]),
        ("good", good.url("text"), &[]),
    ] {
        server.ok(&[&["source", "add", "git", &url, "--name", name], more].concat()).await;
    }
    server.ok(&["source", "sync", "good"]).await;
    for (name, reason) in [("silent", ""), ("endless", ""), ("moved", "redirect"), ("nowhere", "reach")] {
        let said = server.larder(&["source", "sync", name]).await.failed(1);
        assert!(said.contains(reason), "{name}: {said}");
        let shown = server.json(&["source", "show", name]).await;
        assert_eq!(shown["state"], "failed", "{name}");
        assert!(shown["problem"].as_str().is_some_and(|problem| problem.len() > 10), "{name}: {shown}");
    }
    assert_eq!((inner.traffic().0, inner.authorizations()), (0, Vec::new()), "a redirect was followed");
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    let token = server.token("ci", &[]).await;
    assert_eq!(server.versions(&token, "acme/text", false).await.len(), 1);
    bounded(&server);
    server.close().await;
}

async fn hostile_manifests_skip_their_tags_alone(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let nested = format!("{{\"name\": \"acme/text\", \"extra\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let objects =
        format!("{{\"name\": \"acme/text\", \"extra\": {}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let large = format!("{{\"name\": \"acme/text\", \"description\": \"{}\"}}", "a".repeat(5 << 20));
    for (number, manifest) in [
        large.into_bytes(),
        nested.into_bytes(),
        objects.into_bytes(),
        b"{\"name\": \"acme/text\", \"description\": \"\xff\xfe\"}".to_vec(),
        b"{\"name\": \"../../etc/passwd\"}".to_vec(),
        b"{\"name\": \"acme/..\"}".to_vec(),
        b"{\"name\": \"acme/te\\u0000xt\"}".to_vec(),
        b"{\"name\": \"acme/text\", \"bin\": [\"../../../bin/sh\"]}".to_vec(),
        b"\x00\x01\x02".to_vec(),
        Vec::new(),
    ]
    .into_iter()
    .enumerate()
    {
        packages::release(&repository, &format!("v2.{number}.0"), vec![File::new("composer.json", manifest)]);
    }
    packages::release(&repository, "v3.0.0", vec![File::link("composer.json", "/etc/passwd")]);
    let mut outward = packages::text("1.1.0");
    outward.extend([File::link("out", "../../../../etc/passwd"), File::link("root", "/etc/passwd")]);
    packages::release(&repository, "v1.1.0", outward);
    packages::repository(&forge, "other", &["v1.0.0"], |version| packages::named("acme/other", version));
    let server = Server::start(ground).await;
    server.add("text", &forge.url("text"), &[]).await;
    server.add("other", &forge.url("other"), &[]).await;
    let token = server.token("ci", &[]).await;
    server.until_versions(&token, "acme/text", false, &["v1.1.0", "v1.0.0"]).await;
    server.until_versions(&token, "acme/other", false, &["v1.0.0"]).await;
    let list = server.get("/list.json", Some(&token)).await.json();
    assert_eq!(list["packageNames"], serde_json::json!(["acme/other", "acme/text"]));
    let shown = server.json(&["source", "show", "text"]).await;
    for seen in shown["refs"].as_array().into_iter().flatten() {
        let name = seen["name"].as_str().unwrap_or_default();
        let skipped = seen["skipped"].as_str().unwrap_or_default();
        assert_eq!(!skipped.is_empty(), name.starts_with("refs/tags/v2.") || name == "refs/tags/v3.0.0", "{seen}");
        assert!(skipped.len() < 2_000, "a reason is short: {} bytes", skipped.len());
    }
    bounded(&server);
    server.close().await;
}

async fn twenty_thousand_tags_are_read_up_to_the_limit_in_bounded_memory(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "many", &["v0.0.1"], |version| packages::named("acme/many", version));
    let commit = repository.resolve("refs/heads/main").expect("the branch is there");
    let tag = |number: usize| format!("create refs/tags/1.{}.{} {commit}\n", number / 100, number % 100);
    let tags = (1..=20_000).map(tag).collect::<Vec<_>>().concat();
    repository.git_bytes(&["update-ref", "--stdin"], tags.as_bytes());
    repository.git(&["pack-refs", "--all"]);
    let server = Server::start_with(&Arc::new(ground), Options::default().with("LARDER_LIMITS_REFS", "2000")).await;
    server.add("many", &forge.url("many"), &[]).await;
    packages::repository(&forge, "other", &["v1.0.0"], |version| packages::named("acme/other", version));
    server.add("other", &forge.url("other"), &[]).await;
    let token = server.token("ci", &[]).await;
    let versions = server.versions(&token, "acme/many", false).await;
    assert_eq!(versions.len(), 1_999, "2,000 refs, one of them a branch");
    assert_eq!(versions[0]["version"], "1.200.0", "the newest are the ones that are read");
    let shown = server.ok(&["source", "show", "many"]).await;
    assert!(shown.contains("20002") && shown.contains("limits.refs"), "{shown}");
    assert_eq!(server.versions(&token, "acme/other", false).await.len(), 1);
    bounded(&server);
    server.close().await;
}

async fn a_huge_file_costs_its_own_dist_alone_and_no_memory(ground: Ground) {
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let mut huge = packages::text("2.0.0");
    huge.push(File::new("huge.bin", noise(100 << 20)));
    packages::release(&repository, "v2.0.0", huge);
    packages::release(&repository, "v2.1.0", packages::text("2.1.0"));
    let server =
        Server::start_with(&Arc::new(ground), Options::default().with("LARDER_LIMITS_ARTIFACT", "10000000")).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    for (version, right) in
        [("v2.0.0", StatusCode::PAYLOAD_TOO_LARGE), ("v2.1.0", StatusCode::OK), ("v1.0.0", StatusCode::OK)]
    {
        let versions = server.versions(&token, "acme/text", false).await;
        let dist =
            versions.iter().find(|one| one["version"] == version).expect("the version is there")["dist"]["url"].clone();
        let path = dist.as_str().unwrap_or_default().replace(&server.url(), "");
        let answer = server.get(&path, Some(&token)).await;
        assert_eq!(answer.status, right, "{version}: {}", answer.text().get(..500).unwrap_or_default());
        assert!(right.is_success() || answer.json()["warning"].is_string(), "a client prints why: {}", answer.text());
    }
    assert!(server.log().contains("limits.artifact"), "the operator is told what to do");
    bounded(&server);
    server.fsck().await;
    server.close().await;
}

/// Bytes that no compressor makes smaller, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn bounded(server: &Server) {
    let peak = server.peak_memory();
    assert!(peak < BOUND, "the server had {} MB", peak >> 20);
}
