//! Whose a name is, who is asked for it, and what is shown to whom.

use std::sync::Arc;

use http::{StatusCode, header};
use larder_core::{Digest, grant::Principal};
use larder_db::{changes::Change, events::Actor};
use larder_sources::{
    credentials::{self, NewCredential},
    manage::KeptFiles,
    registry,
};

use crate::{
    house::{House, image, refused, text},
    upstream::{Upstream, page},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_here_is_never_mentioned_anywhere_else() {
    for (mut house, upstream) in House::each().await {
        let ours = image(&[b"ours"]);
        for blob in [b"{}".as_slice(), b"ours"] {
            assert_eq!(house.upload("library/ours", blob).await.status, StatusCode::CREATED);
        }
        assert_eq!(house.push("library/ours", "1", &ours).await.status, StatusCode::CREATED);
        house.add(&upstream, "up", &["library/*"], |_| {}).await;
        upstream.has("library/ours", "evil", &[b"evil"]);
        upstream.has("acme/ours", "evil", &[b"evil"]);

        let missing = Digest::of(b"evil");
        for name in ["library/ours", "acme/ours", "library/a/b", "libraryx/a"] {
            for rest in
                ["manifests/evil", &format!("manifests/{missing}"), &format!("blobs/{missing}"), "manifests/latest"]
            {
                let answer = house.get(&format!("/v2/{name}/{rest}")).await;
                assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name}/{rest}");
            }
            house.get(&format!("/v2/{name}/tags/list")).await;
            house.get(&format!("/v2/{name}/referrers/{missing}")).await;
        }
        assert_eq!(house.read("/v2/library/ours/manifests/1").await, ours.to_string());
        assert_eq!(house.push("library/ours", "2", &ours).await.status, StatusCode::CREATED);
        assert_eq!(upstream.asked(), [""; 0], "and so nobody there knows that it exists");

        // What is theirs is not pushed here, whether something of it is here or not.
        upstream.has("library/theirs", "1", &[b"theirs"]);
        house.read("/v2/library/theirs/manifests/1").await;
        for name in ["library/theirs", "library/new"] {
            refused(&house.upload(name, b"ours").await, 403, &["DENIED", "`up`"]);
            refused(&house.push(name, "1", &ours).await, 403, &["DENIED", "`up`"]);
        }
        upstream.asked();

        // Who may not read here asks nobody there.
        let mut nobody = Principal::clone(&house.asker);
        nobody.grants = vec!["read:*:acme/**".parse().unwrap()];
        house.asker = Arc::new(nobody);
        refused(&house.get("/v2/library/theirs/manifests/1").await, 404, &["NAME_UNKNOWN"]);
        refused(&house.get("/v2/library/new/manifests/1").await, 404, &["NAME_UNKNOWN"]);
        assert_eq!(upstream.asked(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_source_whose_pattern_matches_is_asked() {
    for (house, first) in House::each().await {
        let second = Upstream::new().await;
        house.add(&first, "zz-first", &["library/*"], |_| {}).await;
        house.later(1);
        house.add(&second, "aa-second", &[], |_| {}).await;
        let one = first.has("library/a", "1", &[b"first"]);
        second.has("library/a", "1", &[b"second"]);
        second.has("library/b", "1", &[b"second"]);
        let other = second.has("other/a", "1", &[b"second"]);
        assert_eq!(house.read("/v2/library/a/manifests/1").await, one.to_string());
        refused(&house.get("/v2/library/b/manifests/1").await, 404, &["MANIFEST_UNKNOWN"]);
        assert_eq!(second.asked(), [""; 0]);
        assert_eq!(house.read("/v2/other/a/manifests/1").await, other.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_where_the_upstream_says_and_used_until_they_are_over() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        upstream.has("a/b", "1", &[b"one"]);
        upstream.has("a/c", "1", &[b"one"]);
        let challenge = format!(r#"Bearer realm="{}/token",service="s,x",scope="repository:a/b:pull""#, upstream.url());
        *upstream.lock.lock().unwrap() = Some(("authorization: bearer good".into(), challenge));
        upstream.set("/token", page("200 OK", r#"{"token":"good","expires_in":300}"#));
        house.read("/v2/a/b/manifests/1").await;
        let asked = upstream.asked();
        let token = "GET /token?service=s%2Cx&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(asked, ["GET /v2/a/b/manifests/1", token, "GET /v2/a/b/manifests/1"]);
        house.read(&format!("/v2/a/b/blobs/{}", Digest::of(b"one"))).await;
        assert_eq!(upstream.asked().len(), 1, "the token is still good");
        house.read("/v2/a/c/manifests/1").await;
        assert_eq!(upstream.asked().len(), 2, "a token for the other repository, without being told so");
        house.later(301);
        house.read("/v2/a/b/manifests/1").await;
        assert_eq!(upstream.asked()[0], token);

        upstream.set("/token", page("401 No", ""));
        house.later(301);
        refused(&house.get("/v2/a/b/manifests/2").await, 404, &["NAME_UNKNOWN", "credential"]);
        let stale = house.get("/v2/a/b/manifests/1").await;
        assert!(stale.status == StatusCode::OK && stale.headers.contains_key(header::WARNING));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_shown_to_its_own_house_only() {
    for (house, upstream) in House::each().await {
        for name in ["own", "basic", "other"] {
            let new = NewCredential { name, kind: "basic", username: Some("me"), host: None };
            credentials::add(&house.db, &house.vault, &Actor::command_line(), new, "hidden").await.unwrap();
        }
        let [own, basic, other] = [upstream, Upstream::new().await, Upstream::new().await];
        // `me:hidden`
        let shown = "authorization: basic bWU6aGlkZGVu";
        own.has("own/a", "1", &[]);
        own.set("/token", page("200 OK", r#"{"access_token":"good"}"#));
        let realm = |at: String| format!(r#"Bearer realm="{at}/token""#);
        *own.lock.lock().unwrap() = Some(("authorization: bearer good".into(), realm(own.url())));
        basic.has("basic/a", "1", &[]);
        *basic.lock.lock().unwrap() = Some((shown.into(), r#"Basic realm="x""#.into()));
        other.has("other/a", "1", &[]);
        let elsewhere = own.url().replace("127.0.0.1", "localhost");
        *other.lock.lock().unwrap() = Some(("authorization: bearer good".into(), realm(elsewhere)));
        for (upstream, name) in [(&own, "own"), (&basic, "basic"), (&other, "other")] {
            house.add(upstream, name, &[&format!("{name}/*")], |new| new.credential = Some(name)).await;
        }
        house.read("/v2/own/a/manifests/1").await;
        house.read("/v2/basic/a/manifests/1").await;
        own.asked();
        let answer = house.get("/v2/other/a/manifests/1").await;
        refused(&answer, 502, &["another house", "localhost"]);
        assert!(!text(&answer).contains("hidden"));
        assert_eq!(own.asked(), [""; 0], "the place that the other one names is not even asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_chosen_by_the_host_that_clients_mean() {
    for (house, upstream) in House::each().await {
        let ours = image(&[]);
        house.upload("library/app", b"{}").await;
        assert_eq!(house.push("library/app", "1", &ours).await.status, StatusCode::CREATED);
        let theirs = upstream.has("library/app", "1", &[b"theirs"]);
        house.add(&upstream, "hub", &["library/*"], |new| new.prefix = Some("hub")).await;
        let namespace = upstream.at.to_string();
        for _ in 0..2 {
            let answer = house.get(&format!("/v2/library/app/manifests/1?ns={namespace}")).await;
            assert_eq!(text(&answer), theirs.to_string());
            let said = answer.headers.iter().find(|(name, _)| name.as_str().ends_with("-namespace"));
            assert_eq!(said.unwrap().1, namespace.as_str());
            assert_eq!(house.read("/v2/hub/library/app/manifests/1").await, theirs.to_string());
            assert_eq!(house.read("/v2/library/app/manifests/1").await, ours.to_string());
        }
        let blob = format!("/v2/library/app/blobs/{}", Digest::of(b"theirs"));
        refused(&house.get(&blob).await, 404, &["BLOB_UNKNOWN"]);
        assert_eq!(house.read(&format!("{blob}?ns={namespace}")).await, "theirs");
        for (path, ns) in
            [("library/app", "other.example.org"), ("acme/app", &namespace), ("hub/library/app", &namespace)]
        {
            refused(&house.get(&format!("/v2/{path}/manifests/1?ns={ns}")).await, 404, &["NAME_UNKNOWN"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_refreshed_is_asked_again_and_one_that_is_removed_takes_its_repositories_along() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        upstream.has("a/b", "1", &[b"one"]);
        house.read("/v2/a/b/manifests/1").await;
        let source = house.sources.find("up").await.unwrap();
        registry::make_stale(&house.db, &Actor::command_line(), &source).await.unwrap();
        house.room.on_change(&Change::Topic(registry::TOPIC.to_owned()));
        upstream.asked();
        house.read("/v2/a/b/manifests/1").await;
        assert_eq!(upstream.asked(), ["HEAD /v2/a/b/manifests/1"]);

        house.sources.remove(&Actor::command_line(), "up", KeptFiles::Drop).await.unwrap();
        house.room.on_change(&Change::Everything);
        assert_eq!(house.get("/v2/a/b/manifests/1").await.status, StatusCode::NOT_FOUND);
        assert_eq!(house.upload("a/b", b"{}").await.status, StatusCode::CREATED, "the name is free again");
        assert_eq!(upstream.asked(), [""; 0]);
    }
}
