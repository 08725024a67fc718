//! Several servers on one database and one store: what one does the others know, nothing is done twice, and the death of
//! one is an ordinary day.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use larder_e2e::{Ground, Options, Server, packages, until, wait::within, wire};
use larder_testkit::Forge;

/// What is promised, with what a busy test machine adds.
const A_SECOND: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_added_on_one_server_is_served_by_the_other_within_a_second() {
    let Some([one, two]) = pair().await else { return };
    let forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let token = one.token("ci", &[]).await;
    for server in [&one, &two] {
        within(A_SECOND, "the token works", || status(server, "/packages.json", &token, StatusCode::OK)).await;
        assert_eq!(server.versions(&token, "acme/text", false).await.len(), 0);
    }
    one.add("text", &forge.url("text"), &[]).await;
    within(A_SECOND, "the other serves it", || status(&two, "/p2/acme/text.json", &token, StatusCode::OK)).await;
    within(A_SECOND, "the other lists it", || async {
        two.get("/packages.json", Some(&token)).await.text().contains("acme/text").then_some(())
    })
    .await;
    let dist =
        two.versions(&token, "acme/text", false).await[0]["dist"]["reference"].as_str().unwrap_or_default().to_owned();
    let path = format!("/dist/acme/text/1.0.0.0/{dist}.zip");
    let (ours, theirs) = (one.get(&path, Some(&token)).await, two.get(&path, Some(&token)).await);
    assert_eq!((ours.status, theirs.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(ours.body, theirs.body);
    two.ok(&["token", "revoke", "ci"]).await;
    for server in [&one, &two] {
        within(A_SECOND, "the token is dead", || status(server, "/packages.json", &token, StatusCode::UNAUTHORIZED))
            .await;
    }
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_are_asked_at_once_sync_once() {
    let Some([one, two]) = pair().await else { return };
    let forge = Forge::start().await;
    for name in ["alone", "both"] {
        packages::repository(&forge, name, &["v1.0.0"], |version| packages::named(&format!("acme/{name}"), version));
    }
    let token = one.token("ci", &[]).await;
    one.add("alone", &forge.url("alone"), &[]).await;
    one.add("both", &forge.url("both"), &[]).await;
    let built = ["acme/alone", "acme/both"];
    for package in built {
        until("its dist is built", || async {
            (one.versions(&token, package, false).await[0]["dist"]["shasum"] != "").then_some(())
        })
        .await;
    }
    let _ = forge.traffic();
    one.ok(&["source", "sync", "alone"]).await;
    let (of_one, _) = forge.traffic();
    forge.rule(|rules| rules.delay = Duration::from_millis(300));
    let sync = ["source", "sync", "both"];
    let (first, second, third) = tokio::join!(one.larder(&sync), two.larder(&sync), one.larder(&sync));
    for ran in [first, second, third] {
        ran.ok();
    }
    let (of_all, _) = forge.traffic();
    // Whoever asks while one runs may want what came after it began: that is one more, and never one for each.
    assert!(of_all >= of_one && of_all <= 2 * of_one, "{of_all} requests, where one sync makes {of_one}");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_that_syncs_is_killed_the_other_takes_over_and_nothing_is_there_twice() {
    let Some([mut one, two]) = pair().await else { return };
    let forge = Forge::start().await;
    let tags: Vec<String> = (0..20).map(|number| format!("1.{number}.0")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    packages::repository(&forge, "text", &tags, packages::text);
    let token = two.token("ci", &[]).await;
    forge.rule(|rules| rules.delay = Duration::from_millis(1_500));
    let mut two = two;
    // Alone, so that it is the one that syncs.
    two.stop().await;
    one.ok(&["source", "add", "git", &forge.url("text"), "--name", "text"]).await;
    until("the sync is on its way", || async {
        let shown = one.json(&["source", "show", "text"]).await;
        (shown["running"].as_str().is_some() && forge.traffic().0 > 0).then_some(())
    })
    .await;
    two.resume().await;
    one.kill().await;
    forge.rule(|rules| rules.delay = Duration::ZERO);
    within(Duration::from_secs(120), "the other took over", || async {
        (two.versions(&token, "acme/text", false).await.len() == 20).then_some(())
    })
    .await;
    let shown = two.json(&["source", "show", "text"]).await;
    assert_eq!(
        (&shown["state"], &shown["packages"][0]["versions"]),
        (&"ok".into(), &21.into()),
        "20 tags and a branch"
    );
    let events = two.json(&["audit", "list", "--action", "source.sync"]).await;
    let events = events.as_array().or(events["events"].as_array()).cloned().unwrap_or_default();
    assert_eq!(events.len(), 1, "{events:?}");
    one.resume().await;
    assert_eq!(one.versions(&token, "acme/text", false).await.len(), 20);
    two.fsck().await;
    one.close().await;
    two.close().await;
}

async fn pair() -> Option<[Server; 2]> {
    let ground = Arc::new(Ground::shared().await?);
    let one = Server::start_with(&ground, Options::default()).await;
    Some([one, Server::start_with(&ground, Options::default()).await])
}

async fn status(server: &Server, path: &str, token: &str, expected: StatusCode) -> Option<()> {
    let answer = wire::send(server.address(), wire::get(path, Some(token))).await;
    answer.is_ok_and(|answer| answer.status == expected).then_some(())
}
