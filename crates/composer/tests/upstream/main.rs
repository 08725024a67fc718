//! Packages of other registries, over real HTTP on loopback. Freshness and patience run on a clock that the tests set.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod dists;
mod house;
mod probe;
mod server;

use std::time::Duration;

use futures_util::future::join_all;
use house::{House, until};
use larder_composer::{ID, upstream::Looked};
use larder_core::Kind;
use larder_db::{
    events::Actor,
    packages::{self, Package},
    sources::SourceState,
    upstream_checks as checks,
};
use larder_sources::registry::{self, Place};
use serde_json::json;
use server::Server;

const NAME: &str = "acme/lib";
const HERE: Result<Looked, Kind> = Ok(Looked::Here { changed: false });
const CHANGED: Result<Looked, Kind> = Ok(Looked::Here { changed: true });
const ABSENT: Result<Looked, Kind> = Ok(Looked::Absent);
const FILE: &str = "/p2/acme/lib.json";
const AGAIN: &str = "/p2/acme/lib.json ?";
const BRANCHES: &str = "/p2/acme/lib~dev.json";
const ROOT: &str = "/packages.json";
const ROOT_AGAIN: &str = "/packages.json ?";
const MINUTE: u64 = 60;

fn has(server: &Server, versions: &[&str]) {
    let versions: Vec<_> = versions.iter().map(|version| server.version(NAME, version, "")).collect();
    server.package(NAME, &versions);
}

fn is_stale(looked: &Result<Looked, Kind>) -> bool {
    matches!(looked, Ok(Looked::Stale { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_want_a_package_ask_once_and_nobody_asks_while_it_is_fresh() {
    for (mut house, server) in House::each().await {
        has(&server, &["1.1", "1.0"]);
        let looks = join_all((0..50).map(|_| house.look(NAME))).await;
        assert!(looks.iter().all(|looked| *looked == CHANGED), "{looks:?}");
        assert_eq!(server.asked(), [FILE, ROOT]);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.1", "1.0"]);
        house.hear().await;
        assert_eq!(house.look(NAME).await, HERE);
        house.restart().await;
        house.later(4 * MINUTE).await;
        assert_eq!(house.look(NAME).await, HERE);
        // Without the database, and so also without its changes.
        assert_eq!(house.look(NAME).await, HERE);
        assert_eq!(server.asked(), [] as [&str; 0]);
        assert_eq!(house.events("package.add").await, 1);
        // Its branches are another file, which nobody wanted so far.
        server.package("acme/lib~dev", &[server.version(NAME, "dev-main", "")]);
        assert_eq!(house.look("acme/lib~dev").await, CHANGED);
        assert_eq!(server.asked(), [BRANCHES]);
        assert_eq!(house.versions("acme/lib~dev").await.unwrap(), ["dev-main"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_fresh_is_served_and_looked_at_behind_and_later_waited_for() {
    for (mut house, server) in House::each().await {
        has(&server, &["1.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        server.asked();
        house.later(6 * MINUTE).await;
        has(&server, &["1.1", "1.0"]);
        assert_eq!(house.look(NAME).await, HERE);
        until(|| server.was_asked(AGAIN)).await;
        let mut told = Vec::new();
        while told.len() != 2 {
            told = house.versions(NAME).await.unwrap();
        }
        assert_eq!(server.asked(), [AGAIN, ROOT_AGAIN]);
        house.hear().await;
        assert_eq!(house.look(NAME).await, HERE);
        // Nothing new: one conditional question, and it is fresh again.
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, HERE);
        assert_eq!(server.asked(), [AGAIN, ROOT_AGAIN]);
        assert_eq!(house.look(NAME).await, HERE);
        assert_eq!(server.asked(), [] as [&str; 0]);
        // Something new: whoever waited is told so.
        house.later(11 * MINUTE).await;
        has(&server, &["1.2"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_changes_nothing() {
    for (mut house, server) in House::each().await {
        has(&server, &["1.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        let bad = json!({ "packages": { NAME: [{ "name": NAME, "version": "no version" }] } }).to_string();
        let mut large = server.version(NAME, "9.0", "");
        large["description"] = "x".repeat(2 * 1024 * 1024).into();
        let large = json!({ "packages": { NAME: [large] } }).to_string();
        for trouble in 0..7 {
            match trouble {
                0 => server.page(FILE, 500, "oh"),
                1 => server.page(FILE, 200, "<!doctype html><title>Log in</title>"),
                2 => server.page(FILE, 403, "no"),
                3 => server.half(FILE, json!({ "packages": { NAME: [server.version(NAME, "9.0", "")] } }).to_string()),
                4 => server.file(FILE, bad.clone()),
                5 => server.file(FILE, large.clone()),
                _ => server.page(FILE, 429, "slowly"),
            }
            house.later(11 * MINUTE).await;
            server.asked();
            let looked = house.look(NAME).await;
            assert!(is_stale(&looked), "{trouble}: {looked:?}");
            assert!(!server.asked().is_empty());
            // And it is left alone for a while.
            assert!(is_stale(&house.look(NAME).await));
            assert_eq!(server.asked(), [] as [&str; 0], "{trouble}");
            assert_eq!(house.versions(NAME).await.unwrap(), ["1.0"], "{trouble}");
        }
        house.later(11 * MINUTE).await;
        has(&server, &["1.0", "0.9"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.0", "0.9"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_slow_is_waited_for_for_a_moment_only() {
    for (mut house, server) in House::each().await {
        has(&server, &["1.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        server.asked();
        house.later(11 * MINUTE).await;
        let new = json!({ "packages": { NAME: [server.version(NAME, "2.0", "")] } }).to_string();
        let pace = server.paced(FILE, new);
        let (looked, ()) = tokio::join!(house.look(NAME), async {
            until(|| server.was_asked(AGAIN)).await;
            house.clock.advance(Duration::from_secs(3));
        });
        assert!(is_stale(&looked), "{looked:?}");
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.0"]);
        // What comes late is not lost.
        pace.add_permits(1);
        while house.versions(NAME).await.unwrap() != ["2.0"] {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.asked(), [AGAIN, ROOT_AGAIN]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nowhere_is_asked_for_again_after_half_a_minute() {
    for (mut house, server) in House::each().await {
        let looks =
            join_all((0..20).map(|number| house.look(if number % 2 == 0 { NAME } else { "acme/lib~dev" }))).await;
        assert!(looks.iter().all(|looked| *looked == ABSENT), "{looks:?}");
        assert_eq!(server.asked(), [FILE, BRANCHES, ROOT]);
        house.later(29).await;
        assert_eq!(house.look(NAME).await, ABSENT);
        assert_eq!(server.asked(), [] as [&str; 0]);
        has(&server, &["1.0"]);
        house.later(2).await;
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(server.asked(), [FILE]);
        for odd in ["acme", "acme/lib/x", "Acme/Lib", "acme/lib~dev~dev", "php", ""] {
            assert_eq!(house.look(odd).await, ABSENT, "{odd}");
        }
        assert_eq!(server.asked(), [] as [&str; 0]);
        // An upstream that says what it has is not asked for anything else.
        server.root(&json!({ "available-packages": [NAME] }));
        house.later(11 * MINUTE).await;
        assert_eq!(house.look("acme/other").await, ABSENT);
        assert_eq!(server.asked(), [ROOT_AGAIN]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_ends_the_search_and_who_brought_a_package_keeps_it() {
    for (mut house, first) in House::each().await {
        let second = Server::new().await;
        house.add("second", &second).await;
        has(&second, &["1.0"]);
        first.page(FILE, 500, "oh");
        assert_eq!(house.look(NAME).await, Err(Kind::Upstream));
        assert_eq!((first.asked().len(), second.asked().len()), (2, 0));
        assert_eq!(house.look(NAME).await, Err(Kind::Upstream));
        assert_eq!((first.asked().len(), second.asked().len()), (0, 0));
        first.forget(FILE);
        house.later(6).await;
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(first.asked(), [FILE, BRANCHES]);
        // From now on the first one is not asked for it, whatever it has.
        has(&first, &["9.0"]);
        has(&second, &["1.1"]);
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.1"]);
        second.forget(FILE);
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, ABSENT);
        assert_eq!(house.versions(NAME).await, None);
        assert_eq!(house.events("package.vanish").await, 1);
        assert_eq!(house.look("acme/lib~dev").await, ABSENT);
        house.later(31).await;
        assert_eq!(house.look(NAME).await, ABSENT);
        assert_eq!(first.asked(), [] as [&str; 0]);
        // The order decides who is asked first for the next one.
        house.sources.move_registry(&Actor::command_line(), "second", Place::First).await.unwrap();
        house.hear().await;
        second.asked();
        for server in [&first, &second] {
            server.package("acme/next", &[server.version("acme/next", "1.0", "")]);
        }
        assert_eq!(house.look("acme/next").await, CHANGED);
        assert!(first.asked().is_empty() && !second.asked().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_did_not_have_before_it_failed_is_not_taken_from_the_next_one() {
    for (mut house, first) in House::each().await {
        let second = Server::new().await;
        house.add("second", &second).await;
        let listed = json!({ "available-packages": ["acme/first"] });
        first.root(&listed);
        first.package("acme/first", &[first.version("acme/first", "1.0", "")]);
        has(&second, &["9.0"]);
        assert_eq!(house.look("acme/first").await, CHANGED);
        first.page(ROOT, 500, "oh");
        house.later(11 * MINUTE).await;
        // Also while it is left alone, and also by another process, which has its root from before.
        for _ in 0..2 {
            for name in [NAME, "acme/nowhere"] {
                assert_eq!(house.look(name).await, Err(Kind::Upstream));
            }
            house.restart().await;
        }
        assert_eq!(house.look("acme/first").await, HERE);
        assert_eq!(second.asked(), [] as [&str; 0]);
        assert!(house.package(NAME).await.is_none());
        first.root(&listed);
        house.later(6).await;
        assert_eq!(house.look("acme/nowhere").await, ABSENT);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["9.0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_shown_with_the_source_until_it_is_over() {
    for (mut house, server) in House::each().await {
        server.page(ROOT, 500, "oh");
        assert_eq!(house.look(NAME).await, Err(Kind::Upstream));
        let problem = house.state_of("up", SourceState::Failed).await.unwrap();
        assert!(problem.contains("500"), "{problem}");
        // Also for another process, which only hears that it is well again.
        house.restart().await;
        server.root(&json!({}));
        has(&server, &["1.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.state_of("up", SourceState::Ok).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_names_and_reserved_ones_are_never_mentioned() {
    for (mut house, server) in House::each().await {
        for name in ["acme/own", "secret/lib"] {
            server.package(name, &[server.version(name, "99.0", "")]);
        }
        let now = house.db.host().now();
        let own = Package {
            id: house.db.host().new_id(),
            format: ID.to_owned(),
            name: "acme/own".to_owned(),
            source_id: None,
            summary: "{}".to_owned(),
            created_at: now,
            changed_at: now,
        };
        house.db.commit(packages::insert(&own).into()).await.unwrap();
        house.sources.reserve(&Actor::command_line(), Some(ID), &"secret/*".parse().unwrap(), false).await.unwrap();
        house.hear().await;
        for part in ["acme/own", "acme/own~dev", "secret/lib", "secret/lib~dev", "secret/other"] {
            assert_eq!(house.look(part).await, Ok(Looked::Own), "{part}");
            assert_eq!(house.look(part).await, Ok(Looked::Own), "{part}");
        }
        assert_eq!(server.asked(), [] as [&str; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_without_releases_belongs_to_whoever_has_its_branches() {
    for (house, server) in House::each().await {
        server.package("acme/lib~dev", &[server.version(NAME, "dev-main", "")]);
        assert_eq!(house.look(NAME).await, ABSENT);
        assert!(house.package(NAME).await.is_some());
        assert_eq!(house.look("acme/lib~dev").await, HERE);
        assert_eq!(server.asked(), [FILE, BRANCHES, ROOT]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_no_client_could_read_is_left_out_alone() {
    for (house, server) in House::each().await {
        let mut bad = server.version(NAME, "1.1", "");
        bad["require"] = json!({ "a/b": "what is this" });
        server.package(NAME, &[bad, server.version(NAME, "1.0", "")]);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["1.0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_about_changes_answers_for_all_that_did_not_change() {
    for (mut house, server) in House::each().await {
        server.root(&json!({ "metadata-changes-url": server.url("/changes") }));
        server.file("/changes", json!({ "timestamp": 100, "actions": [] }).to_string());
        has(&server, &["1.0"]);
        server.package("acme/b", &[server.version("acme/b", "1.0", "")]);
        for name in [NAME, "acme/b"] {
            assert_eq!(house.look(name).await, CHANGED);
        }
        // What was just brought is asked for once more, and the upstream for what to begin with.
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, HERE);
        let source = house.sources.find("up").await.unwrap().id;
        while checks::find(&house.db, source, "changes").await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        house.later(11 * MINUTE).await;
        server.asked();
        for name in [NAME, "acme/b"] {
            assert_eq!(house.look(name).await, HERE);
        }
        assert_eq!(server.asked(), ["/changes?since=100", "/p2/acme/b.json ?", AGAIN, ROOT_AGAIN]);
        // From now on the changes are enough, also for another process.
        house.restart().await;
        house.later(11 * MINUTE).await;
        for name in [NAME, "acme/b"] {
            assert_eq!(house.look(name).await, HERE);
        }
        assert_eq!(server.asked(), ["/changes?since=100", ROOT_AGAIN]);
        // What is mentioned is asked for, and not covered before it was found unchanged twice.
        let update = json!({ "timestamp": 200, "actions": [{ "type": "update", "package": NAME, "time": 150 }] });
        server.file("/changes", update.to_string());
        has(&server, &["1.1", "1.0"]);
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.look("acme/b").await, HERE);
        assert_eq!(server.asked(), ["/changes?since=100", AGAIN, ROOT_AGAIN]);
        server.file("/changes", json!({ "timestamp": 300, "actions": [] }).to_string());
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, HERE);
        assert_eq!(server.asked(), ["/changes?since=200", AGAIN, ROOT_AGAIN]);
        house.later(11 * MINUTE).await;
        assert_eq!(house.look(NAME).await, HERE);
        assert_eq!(server.asked(), ["/changes?since=300", ROOT_AGAIN]);
        // A gap, or no answer: everything is asked for one by one.
        let resync = json!({ "timestamp": 400, "actions": [{ "type": "resync", "package": "*", "time": 1 }] });
        server.file("/changes", resync.to_string());
        house.later(11 * MINUTE).await;
        assert_eq!(house.look("acme/b").await, HERE);
        assert_eq!(server.asked(), ["/changes?since=300", "/p2/acme/b.json ?", ROOT_AGAIN]);
        server.page("/changes", 500, "oh");
        house.later(11 * MINUTE).await;
        assert_eq!(house.look("acme/b").await, HERE);
        assert_eq!(server.asked(), ["/changes?since=400", "/p2/acme/b.json ?", ROOT_AGAIN]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_has_everything_looked_at_again() {
    for (mut house, server) in House::each().await {
        has(&server, &["1.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        server.asked();
        let source = house.sources.find("up").await.unwrap();
        registry::make_stale(&house.db, &Actor::command_line(), &source).await.unwrap();
        house.hear().await;
        has(&server, &["2.0"]);
        assert_eq!(house.look(NAME).await, CHANGED);
        assert_eq!(house.versions(NAME).await.unwrap(), ["2.0"]);
    }
}
