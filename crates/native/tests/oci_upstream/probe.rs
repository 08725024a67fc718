//! What is said of a registry that nobody wants anything of yet.

use larder_blobs::Blobs;
use larder_db::events::Actor;
use larder_native::fetch::{FetchSettings, HttpFetch};
use larder_oci::{Proxy, Registry};
use larder_sources::{
    credentials::{self, NewCredential},
    probe::Probed,
};

use crate::{
    house::House,
    upstream::{Upstream, page},
};

impl House {
    async fn probe(&self, name: &str) -> Probed {
        let fetch = std::sync::Arc::new(HttpFetch::new(FetchSettings::new(true)).unwrap());
        let blobs: Blobs = self.blobs.clone();
        let proxy = Proxy::new(Registry::new(self.db.clone(), blobs), self.vault.clone(), fetch, true);
        proxy.probe(&self.sources.find(name).await.unwrap()).await.unwrap()
    }
}

fn locks(upstream: &Upstream, key: &str, challenge: &str) {
    *upstream.lock.lock().unwrap() = Some((key.to_owned(), challenge.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_for_the_root_of_its_api() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        assert_eq!(house.probe("up").await.word(), "no registry");
        upstream.set("/v2/", page("200 OK\r\nContent-Type: text/html", "<html>welcome</html>"));
        assert_eq!(house.probe("up").await.word(), "no registry");
        upstream.set("/v2/", page("500 Oh", ""));
        assert_eq!(house.probe("up").await.word(), "unreachable");
        upstream.set("/v2/", page("429 Slowly\r\nRetry-After: 7", ""));
        assert!(house.probe("up").await.problem().unwrap().contains("try again in 7 s"));
        upstream.asked();
        upstream.set("/v2/", page("200 OK\r\nContent-Type: application/json", "{}"));
        assert_eq!(house.probe("up").await.sentence(), "works");
        assert_eq!(upstream.asked(), ["GET /v2/"]);
        upstream.die().await;
        assert_eq!(house.probe("up").await.word(), "unreachable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_takes_a_credential_or_does_not() {
    for (house, upstream) in House::each().await {
        upstream.set("/v2/", page("200 OK", "{}"));
        locks(&upstream, "authorization: basic bWU6aGlkZGVu", "Basic realm=\"x\"");
        house.add(&upstream, "stranger", &["a/*"], |_| {}).await;
        assert_eq!(house.probe("stranger").await.sentence(), "works, shows strangers only what is public");
        for (name, secret) in [("good", "hidden"), ("old", "other")] {
            let new = NewCredential { name, kind: "basic", username: Some("me"), host: None };
            credentials::add(&house.db, &house.vault, &Actor::command_line(), new, secret).await.unwrap();
            house.add(&upstream, name, &[&format!("{name}/*")], |new| new.credential = Some(name)).await;
        }
        assert_eq!(house.probe("good").await.word(), "works");
        assert!(house.probe("old").await.problem().unwrap().contains("may have expired"));

        // Rotated in place, it opens.
        let actor = Actor::command_line();
        credentials::rotate(&house.db, &house.vault, &actor, "old", None, "hidden").await.unwrap();
        assert_eq!(house.probe("old").await.word(), "works");

        // Tokens made for nothing in particular.
        let realm = format!("Bearer realm=\"{}/token\",service=\"s\"", upstream.url().trim_end_matches('/'));
        locks(&upstream, "authorization: bearer pass", &realm);
        upstream.set("/token?service=s", page("200 OK", "{\"token\":\"pass\"}"));
        assert_eq!(house.probe("good").await.word(), "works");
        assert!(upstream.asked().iter().any(|one| one == "GET /token?service=s"), "no repository is named");
        upstream.set("/token?service=s", page("401 Who", ""));
        assert_eq!(house.probe("good").await.word(), "refused");
        assert_eq!(house.probe("stranger").await.word(), "works");
    }
}
