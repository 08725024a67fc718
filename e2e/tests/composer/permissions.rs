//! Who sees what: a grant decides about every address in the same way, and a change of it is felt within a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use larder_e2e::{Composer, Ground, Project, Server, on_every_ground, wait::within, wire};

use crate::install::with_three_packages;

on_every_ground!(
    a_token_for_one_vendor_sees_nothing_else_anywhere,
    without_a_token_everything_is_refused_until_anonymous_is_allowed_something,
    a_revoked_token_is_refused_within_a_second_while_others_load_the_server,
    a_new_grant_and_a_new_token_work_within_a_second,
);

/// What is promised, with what a busy test machine adds.
const A_SECOND: Duration = Duration::from_millis(1_500);

async fn a_token_for_one_vendor_sees_nothing_else_anywhere(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let everything = server.token("everything", &[]).await;
    let acme = server.token("acme", &["read:composer:acme/*"]).await;
    let names = |answer: wire::Answer, key: &str| {
        let document = answer.json();
        let mut names: Vec<String> = match &document[key] {
            serde_json::Value::Object(packages) => packages.keys().cloned().collect(),
            list => list
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| one["name"].as_str().or(one.as_str()).unwrap_or_default().to_owned())
                .collect(),
        };
        names.sort();
        names
    };
    for (path, key) in [
        ("/packages.json", "packages"),
        ("/packages.json", "available-packages"),
        ("/list.json", "packageNames"),
        ("/search.json?q=", "results"),
    ] {
        assert_eq!(names(server.get(path, Some(&acme)).await, key), ["acme/money", "acme/text"], "{path} {key}");
        assert_eq!(names(server.get(path, Some(&everything)).await, key).len(), 3, "{path} {key}");
    }
    assert!(!server.get("/packages.json", Some(&acme)).await.text().contains("globex"));
    assert_eq!(names(server.get("/search.json?q=shop", Some(&acme)).await, "results"), [""; 0]);
    for path in ["/p2/globex/shop.json", "/p2/globex/shop~dev.json"] {
        let (hidden, absent) =
            (server.get(path, Some(&acme)).await, server.get(&path.replace("shop", "none"), Some(&acme)).await);
        assert_eq!(hidden.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(
            hidden.text().replace("shop", "none"),
            absent.text(),
            "what is hidden looks as if it were not there"
        );
        assert_eq!(server.get(path, Some(&everything)).await.status, StatusCode::OK, "{path}");
    }
    let dist = server.versions(&everything, "globex/shop", false).await[0]["dist"]["url"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let dist = dist.strip_prefix(&server.url()).expect("the dist is at the public URL").to_owned();
    assert_eq!(server.get(&dist, Some(&everything)).await.status, StatusCode::OK);
    assert_eq!(server.get(&dist, Some(&acme)).await.status, StatusCode::NOT_FOUND, "a guessed dist, warm");
    let stolen = dist.replacen("/globex/shop/", "/acme/text/", 1);
    assert_eq!(
        server.get(&stolen, Some(&acme)).await.status,
        StatusCode::NOT_FOUND,
        "a hidden commit under a visible name"
    );
    for trick in [
        dist.replacen("/dist/", "/dist/acme/../", 1),
        dist.replacen("globex", "GLOBEX", 1),
        dist.replacen("globex", "%67lobex", 1),
    ] {
        let status = server.get(&trick, Some(&acme)).await.status;
        assert!(status.is_client_error(), "{trick}: {status}");
    }
    if let Some(composer) = Composer::any() {
        let project = Project::new(&composer, &server, &acme);
        project.composer(&["require", "acme/money:^2.0"]).await.ok();
        let refused = project.composer(&["require", "globex/shop:^1.0"]).await;
        assert!(!refused.status.success() && refused.all().contains("globex/shop"), "{}", refused.all());
    }
    server.close().await;
}

async fn without_a_token_everything_is_refused_until_anonymous_is_allowed_something(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let paths = [
        "/packages.json",
        "/p2/acme/text.json",
        "/p2/none/none.json",
        "/list.json",
        "/search.json?q=x",
        "/dist/acme/text/1.0.0.0/0000000000000000000000000000000000000000.zip",
        "/nothing",
        "/",
    ];
    let never = format!("lrd_{}", "a".repeat(46));
    for path in paths {
        for token in [None, Some(never.as_str()), Some("nonsense")] {
            let answer = server.get(path, token).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} with {token:?}");
            assert!(answer.header("www-authenticate").starts_with("Basic"), "{path}");
        }
    }
    assert_eq!(server.get("/healthz", None).await.status, StatusCode::OK);
    server.ok(&["grant", "add", "anonymous", "read:composer:acme/*"]).await;
    within(A_SECOND, "anonymous sees acme", || async {
        status(&server, "/p2/acme/text.json", None, StatusCode::OK).await
    })
    .await;
    assert_eq!(server.get("/p2/globex/shop.json", None).await.status, StatusCode::UNAUTHORIZED);
    let root = server.get("/packages.json", None).await.text();
    assert!(root.contains("acme/text") && !root.contains("globex"));
    server.ok(&["grant", "remove", "anonymous", "read:composer:acme/*"]).await;
    within(A_SECOND, "anonymous sees nothing", || async {
        status(&server, "/p2/acme/text.json", None, StatusCode::UNAUTHORIZED).await
    })
    .await;
    server.close().await;
}

async fn a_revoked_token_is_refused_within_a_second_while_others_load_the_server(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let (staying, leaving) = (server.token("staying", &[]).await, server.token("leaving", &[]).await);
    let (enough, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (to, token, enough, answers) =
                (server.address(), staying.clone(), Arc::clone(&enough), Arc::clone(&answers));
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    let answer =
                        wire::send(to, wire::get("/packages.json", Some(&token))).await.expect("the server answers");
                    assert_eq!(answer.status, StatusCode::OK);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    within(A_SECOND * 10, "the load is on", || async { (answers.load(Ordering::Relaxed) > 50).then_some(()) }).await;
    for path in ["/packages.json", "/p2/acme/text.json"] {
        assert_eq!(server.get(path, Some(&leaving)).await.status, StatusCode::OK);
    }
    server.ok(&["token", "revoke", "leaving"]).await;
    for path in ["/packages.json", "/p2/acme/text.json", "/list.json"] {
        within(A_SECOND, "the revoked token is refused", || async {
            status(&server, path, Some(&leaving), StatusCode::UNAUTHORIZED).await
        })
        .await;
    }
    assert_eq!(server.get("/packages.json", Some(&staying)).await.status, StatusCode::OK);
    enough.store(true, Ordering::Relaxed);
    for one in load {
        one.await.expect("nobody else noticed anything");
    }
    server.close().await;
}

async fn a_new_grant_and_a_new_token_work_within_a_second(ground: Ground) {
    let (_forge, server) = with_three_packages(ground, &[]).await;
    let first = server.token("first", &["read:composer:acme/text"]).await;
    within(A_SECOND, "the new token works", || async {
        status(&server, "/p2/acme/text.json", Some(&first), StatusCode::OK).await
    })
    .await;
    assert_eq!(server.get("/p2/acme/money.json", Some(&first)).await.status, StatusCode::NOT_FOUND);
    server.ok(&["grant", "add", "token:first", "read:composer:acme/money"]).await;
    within(A_SECOND, "the new grant works", || async {
        status(&server, "/p2/acme/money.json", Some(&first), StatusCode::OK).await
    })
    .await;
    server.ok(&["grant", "remove", "token:first", "read:composer:acme/text"]).await;
    within(A_SECOND, "the removed grant is felt", || async {
        status(&server, "/p2/acme/text.json", Some(&first), StatusCode::NOT_FOUND).await
    })
    .await;
    let second = server.ok(&["token", "rotate", "first"]).await;
    server.guard(&second);
    within(A_SECOND, "the new secret works", || async {
        status(&server, "/p2/acme/money.json", Some(&second), StatusCode::OK).await
    })
    .await;
    within(A_SECOND, "the old secret is dead", || async {
        status(&server, "/p2/acme/money.json", Some(&first), StatusCode::UNAUTHORIZED).await
    })
    .await;
    server.close().await;
}

async fn status(server: &Server, path: &str, token: Option<&str>, expected: StatusCode) -> Option<()> {
    (server.get(path, token).await.status == expected).then_some(())
}
