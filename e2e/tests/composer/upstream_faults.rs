//! Upstreams on bad days: what they give then is never taken for an answer, what is here goes on, and when they are well
//! again so is everything.

use std::sync::Arc;

use bytes::Bytes;
use larder_e2e::{
    Composer, Ground, Options, Project, Server, Stored, Upstream, on_every_ground, until,
    upstream::{Catalogue, Fault, Layout, Protocol, Release, zip},
    wire,
};

use crate::upstream::{dist_path, follow, following};

on_every_ground!(
    nothing_that_a_sick_upstream_says_of_packages_is_taken_for_an_answer,
    nothing_that_a_sick_upstream_gives_for_a_dist_is_served_or_kept,
    a_client_is_told_what_is_wrong_and_goes_on_with_what_is_here,
    an_upstream_that_is_inside_is_not_asked,
);

/// What the largest answers may take together that are allowed: a root of 128 MB, documents of 64 MB, each with what it
/// takes to read it. Without limits it would be all that there is.
const BOUND: u64 = 800 * 1024 * 1024;

/// What may happen to a document.
fn of_documents() -> Vec<Fault> {
    vec![
        Fault::BreakOff,
        Fault::Half,
        Fault::Silence,
        Fault::Stall,
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(403),
        Fault::Busy(2),
        Fault::Page,
        Fault::Loop,
        Fault::Redirect("http://127.0.0.1:1/nobody".to_owned()),
        Fault::Deep,
        Fault::Endless,
        Fault::Bomb,
        Fault::Bytes(Bytes::new()),
        Fault::Bytes(Bytes::from_static(b"null")),
        Fault::Bytes(Bytes::from_static(b"[]")),
        Fault::Bytes(Bytes::from_static(b"{\"packages\": 7}")),
    ]
}

/// What may happen to a dist.
fn of_dists() -> Vec<Fault> {
    let other = Release::new("initech/other", "v6.6.6", &[]).zip;
    vec![
        Fault::BreakOff,
        Fault::Half,
        Fault::Silence,
        Fault::Stall,
        Fault::Status(500),
        Fault::Status(404),
        Fault::Busy(2),
        Fault::Page,
        Fault::Loop,
        Fault::Endless,
        Fault::Bytes(Bytes::new()),
        Fault::Bytes(other),
    ]
}

/// A vendor of its own with a registry of its own: one that is not well is left alone for a while, as a whole.
async fn vendor(server: &Server, number: usize, layout: Layout) -> (String, Upstream) {
    let vendor = format!("vendor{number}");
    let mut catalogue = Catalogue::default();
    for name in ["warm", "cold", "root"] {
        catalogue.release(&format!("{vendor}/{name}"), "v1.0.0");
    }
    let upstream = Upstream::start(catalogue, layout).await;
    follow(server, &vendor, &upstream, &vendor, &["--only", &format!("{vendor}/*"), "--fresh", "0s"]).await;
    (vendor, upstream)
}

async fn nothing_that_a_sick_upstream_says_of_packages_is_taken_for_an_answer(ground: Ground) {
    let server = Arc::new(Server::start(ground).await);
    let token = server.token("ci", &[]).await;
    let mut vendors = Vec::new();
    for (number, fault) in of_documents().into_iter().enumerate() {
        let (vendor, upstream) = vendor(&server, number, Layout::of(Protocol::Metadata)).await;
        server.until_versions(&token, &format!("{vendor}/warm"), false, &["v1.0.0"]).await;
        // One half fails as a whole, the other one in its documents alone.
        upstream.fault(if number % 2 == 0 { "*" } else { "/p2/*" }, fault.clone());
        vendors.push((vendor, upstream, fault));
    }
    let asking: Vec<_> = vendors
        .iter()
        .flat_map(|(vendor, _, fault)| {
            [("cold", vendor.clone(), fault.clone()), ("warm", vendor.clone(), fault.clone())]
        })
        .map(|(name, vendor, fault)| {
            let (server, token) = (Arc::clone(&server), token.clone());
            tokio::spawn(async move {
                let path = format!("/p2/{vendor}/{name}.json");
                let answer = wire::send(server.address(), wire::get(&path, Some(&token))).await;
                (name, answer.unwrap_or_else(|error| panic!("{fault:?}: {path}: {error}")), fault)
            })
        })
        .collect();
    for asked in asking {
        let (name, answer, fault) = asked.await.expect("everybody is answered");
        if name == "warm" {
            assert!(answer.status.is_success(), "{fault:?}: what is here is served: {}", answer.text());
            assert!(answer.text().contains("v1.0.0"), "{fault:?}: {}", answer.text());
        } else {
            assert!(answer.status.is_server_error(), "{fault:?}: {} {}", answer.status, answer.text());
            let why = answer.json()["warning"].as_str().unwrap_or_default().len();
            assert!(why > 20, "{fault:?}: a client prints why: {}", answer.text());
        }
    }
    bounded(&server);
    for (_, upstream, _) in &vendors {
        upstream.recover();
    }
    for (vendor, _, fault) in &vendors {
        for name in ["cold", "warm"] {
            let path = format!("/p2/{vendor}/{name}.json");
            until(&format!("{path} is well again after {fault:?}"), || async {
                let answer = server.get(&path, Some(&token)).await;
                (answer.status.is_success() && answer.text().contains("v1.0.0")).then_some(())
            })
            .await;
        }
    }
    Arc::into_inner(server).expect("everybody is done").close().await;
}

async fn nothing_that_a_sick_upstream_gives_for_a_dist_is_served_or_kept(ground: Ground) {
    let server = Arc::new(Server::start(ground).await);
    let token = server.token("ci", &[]).await;
    let mut vendors = Vec::new();
    for (number, fault) in of_dists().into_iter().enumerate() {
        let (vendor, upstream) = vendor(&server, number, Layout::of(Protocol::Metadata)).await;
        let path = dist_path(&server, &token, &format!("{vendor}/cold"), "v1.0.0").await;
        upstream.fault("*.zip", fault.clone());
        vendors.push((vendor, upstream, fault, path));
    }
    let asking: Vec<_> = vendors
        .iter()
        .map(|(_, _, fault, path)| (fault.clone(), path.clone()))
        .map(|(fault, path)| {
            let (server, token) = (Arc::clone(&server), token.clone());
            tokio::spawn(async move { (wire::send(server.address(), wire::get(&path, Some(&token))).await, fault) })
        })
        .collect();
    for asked in asking {
        let (answer, fault) = asked.await.expect("everybody is answered");
        // Bytes that were on their way already break off: no client takes that for a dist.
        if let Ok(answer) = answer {
            assert!(answer.status.is_client_error() || answer.status.is_server_error(), "{fault:?}: {answer:?}");
        }
    }
    let stored = Stored::of(&server);
    assert_eq!(stored.bytes().await, 0, "nothing of it is kept: {:?}", stored.list().await);
    bounded(&server);
    for (_, upstream, _, _) in &vendors {
        upstream.recover();
    }
    for (vendor, upstream, fault, path) in &vendors {
        let right = upstream.catalogue().get(&format!("{vendor}/cold"), "v1.0.0").zip.clone();
        until(&format!("{path} is well again after {fault:?}"), || async {
            let answer = wire::send(server.address(), wire::get(path, Some(&token))).await.ok()?;
            answer.status.is_success().then(|| assert!(answer.body == right, "{fault:?}"))
        })
        .await;
    }
    server.fsck().await;
    Arc::into_inner(server).expect("everybody is done").close().await;
}

async fn a_client_is_told_what_is_wrong_and_goes_on_with_what_is_here(ground: Ground) {
    let mut upstream = Upstream::start(Catalogue::chain("initech", 4), Layout::of(Protocol::Metadata)).await;
    let (server, token) = following(ground, &upstream, &["--fresh", "0s"]).await;
    let wrong = zip("wrong", &[("composer.json".to_owned(), b"{}".to_vec())]);
    let dist = upstream.layout().dist_path("initech/part-04", upstream.catalogue().get("initech/part-04", "v1.2.0"));
    upstream.fault(&dist, Fault::Bytes(wrong));
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        let ran = project.composer(&["require", "initech/part-04:^1.0"]).await;
        assert!(!ran.status.success(), "{}", ran.all());
        let said: String = ran.all().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("the dist of initech/part-04 cannot be had"), "it is told what is wrong: {said}");
    }
    assert!(server.log().contains("has the SHA-1"), "whoever runs the server is told why");
    upstream.recover();
    let mut projects = Vec::new();
    for composer in Composer::each() {
        let project = Project::new(&composer, &server, &token);
        until("it works again", || async {
            let ran = project.composer(&["require", "initech/part-04:^1.0"]).await;
            ran.status.success().then_some(())
        })
        .await;
        projects.push(project);
    }
    upstream.fault("*", Fault::Status(500));
    for project in &projects {
        project.forget_cache();
        project.composer(&["update"]).await.ok();
        let ran = project.composer(&["require", "initech/unknown"]).await;
        assert!(!ran.status.success(), "{}", ran.all());
        let said: String = ran.all().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("500"), "it is told what is wrong: {said}");
    }
    upstream.stop().await;
    for project in &projects {
        project.forget_cache();
        project.composer(&["update"]).await.ok();
    }
    let old = server.get("/p2/initech/part-01.json", Some(&token)).await;
    let warning = old.headers.get("warning").map(|value| value.to_str().unwrap_or_default());
    assert!(warning.is_some_and(|warning| warning.contains("outdated")), "{} {warning:?}", old.status);
    server.close().await;
}

async fn an_upstream_that_is_inside_is_not_asked(ground: Ground) {
    let upstream = Upstream::start(Catalogue::chain("initech", 1), Layout::of(Protocol::Metadata)).await;
    let options = Options { refuse_local_sources: true, ..Options::default() };
    let server = Server::start_with(&Arc::new(ground), options).await;
    let token = server.token("ci", &[]).await;
    let port = upstream.base().rsplit(':').next().unwrap_or_default().to_owned();
    for (name, url) in [
        ("loopback", upstream.url()),
        ("number", format!("http://2130706433:{port}")),
        ("metadata", "https://169.254.169.254".to_owned()),
        ("six", format!("https://[::ffff:127.0.0.1]:{port}")),
    ] {
        let added = server.larder(&["source", "add", "composer", &url, "--name", name]).await;
        if added.status.success() {
            until(&format!("{url} is refused"), || async {
                let answer = server.get(&format!("/p2/initech/{name}.json"), Some(&token)).await;
                (answer.status.is_server_error() && answer.text().contains("is not asked from here")).then_some(())
            })
            .await;
            // Clients hear nothing of the network that the server is in; whoever runs it does.
            assert!(server.log().contains("LARDER_ALLOW_LOCAL_SOURCES"), "{url}: {}", server.log());
            server.ok(&["source", "list"]).await;
            server.ok(&["source", "remove", name]).await;
        }
    }
    assert!(upstream.asked().is_empty(), "it was asked");
    server.close().await;
}

fn bounded(server: &Server) {
    let peak = server.peak_memory();
    assert!(peak < BOUND, "the server had {} MB", peak >> 20);
}
