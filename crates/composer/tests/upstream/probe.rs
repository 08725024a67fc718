//! What is said of a registry that nobody wants anything of yet.

use larder_db::{
    events::Actor,
    sources::{Source, SourceState},
};
use larder_sources::probe::Probed;
use serde_json::json;

use crate::{House, NAME, ROOT, ROOT_AGAIN, has};

async fn up(house: &House) -> Source {
    house.sources.find("up").await.unwrap()
}

async fn probe(house: &House) -> Probed {
    house.proxy.probe(&up(house).await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_says_how_it_tells_what_it_has() {
    for (house, server) in House::each().await {
        assert_eq!(probe(&house).await.sentence(), "works, metadata-url");
        server.root(&json!({ "available-packages": ["a/b", "a/c"] }));
        assert_eq!(probe(&house).await.sentence(), "works, metadata-url, names 2 packages");
        for (root, sentence) in [
            (json!({ "packages": { "a/b": [], "a/c": [] } }), "works, all packages in one file, names 2 packages"),
            (json!({ "packages": {}, "includes": { "more.json": {} } }), "works, all packages in one file"),
            (json!({ "providers-url": "/p/%package%$%hash%.json", "providers": {} }), "works, providers-url"),
            (json!({ "providers-lazy-url": "/p/%package%.json" }), "works, providers-lazy-url"),
        ] {
            server.file(ROOT, root.to_string());
            assert_eq!(probe(&house).await.sentence(), sentence);
        }
        assert_eq!(up(&house).await.state, SourceState::New, "nothing is written while all is well");
        assert_eq!(house.events("source.set").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_told_apart_and_shown_until_it_is_over() {
    for (house, server) in House::each().await {
        for (status, body, word) in [
            (404, "nothing", "no registry"),
            (200, "<!doctype html><title>Welcome</title>", "no registry"),
            (200, "{\"name\":\"something else\"}", "no registry"),
            (401, "who?", "refused"),
            (403, "not you", "refused"),
            (429, "slowly", "unreachable"),
            (500, "oh", "unreachable"),
        ] {
            server.page(ROOT, status, body);
            let probed = probe(&house).await;
            assert_eq!(probed.word(), word, "{status} {body}: {probed:?}");
            let source = up(&house).await;
            assert_eq!((source.state, source.problem.as_deref()), (SourceState::Failed, probed.problem()));
        }
        server.root(&json!({}));
        assert_eq!(probe(&house).await.word(), "works");
        assert_eq!((up(&house).await.state, up(&house).await.problem), (SourceState::Ok, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_no_answer_to_a_probe() {
    for (house, server) in House::each().await {
        has(&server, &["1.0"]);
        house.look(NAME).await.unwrap();
        server.asked();
        assert_eq!(probe(&house).await.word(), "works");
        assert_eq!(server.asked(), [ROOT], "the question is no conditional one");
        assert_ne!(ROOT, ROOT_AGAIN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_has_moved_is_asked_for_everything_again() {
    use larder_sources::change::Change;
    for (mut house, before) in House::each().await {
        let after = crate::server::Server::new().await;
        has(&before, &["1.0"]);
        has(&after, &["1.1", "1.0"]);
        house.look(NAME).await.unwrap();
        let url = after.url("/");
        let change = Change { url: Some(&url), ..Change::default() };
        let refused = house.sources.change(&Actor::command_line(), "up", &change).await.unwrap_err();
        assert!(refused.message().contains("--yes"), "{refused}");
        let change = Change { accept_address: true, ..change };
        let changed = house.sources.change(&Actor::command_line(), "up", &change).await.unwrap();
        assert_eq!(changed.what["url"], json!({ "from": before.url("/"), "to": url }));
        house.later(0).await;
        before.asked();
        house.look(NAME).await.unwrap();
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.1", "1.0"]);
        assert_eq!(before.asked(), [""; 0], "the other address is not asked any more");
        let asked = after.asked();
        assert!(asked.iter().all(|path| !path.ends_with('?')), "what another one said is no condition: {asked:?}");
        assert_eq!(house.events("source.set").await, 1);
        // Another replica that has not heard of it yet keeps what it is told at the old address.
        let back = Change { url: Some(&before.url("/")), accept_address: true, ..Change::default() };
        house.sources.change(&Actor::command_line(), "up", &back).await.unwrap();
        house.look(NAME).await.unwrap();
        house.clock.advance(std::time::Duration::from_secs(600));
        assert_eq!(house.look("acme/lib~dev").await, crate::ABSENT);
        house.hear().await;
        house.later(600).await;
        after.asked();
        before.asked();
        house.look(NAME).await.unwrap();
        let asked = before.asked();
        assert!(asked.iter().all(|path| !path.ends_with('?')), "nor is that: {asked:?}");
        assert_eq!(after.asked(), [""; 0]);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.0"]);
    }
}
