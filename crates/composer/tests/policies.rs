//! Policies and advisories where they are kept, on every database: what is set holds at once and for every replica, what is
//! told twice is kept once, and what a feed tells no more goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use larder_composer::{
    ID,
    advisories::{
        self, Advisory, Severity, api,
        board::{self, Imported, Own, Telling},
        formats,
    },
    policy::{
        Policies, Rules,
        rules::{Block, block, set, unblock},
    },
};
use larder_core::{
    Kind, Time,
    grant::{Grant, Principal, PrincipalName},
    pattern::Pattern,
};
use larder_db::{
    Db,
    changes::{Change, Watcher},
    events::{self, Actor, Recorded, Wanted},
};
use larder_http::{Body, Request, RequestBody, RequestId};
use larder_sources::policies::Book;
use larder_testkit::{FakeClock, Scratch};
use serde_json::{Value, json};

/// A database.
struct House {
    db: Db,
    clock: FakeClock,
    actor: Actor,
    scratch: Scratch,
}

impl House {
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let db = scratch.db(&host).await;
            houses.push(Self { db, clock, actor: Actor::command_line(), scratch });
        }
        houses
    }

    async fn events(&self, action: &str) -> Vec<Recorded> {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 100).await.unwrap()
    }

    /// Takes in documents of a feed.
    async fn import(&self, feed: &str, is_all: bool, documents: &[Value]) -> Imported {
        let mut read = formats::Read::default();
        for document in documents {
            read.and(formats::read(document.to_string().as_bytes()).unwrap());
        }
        let telling = Telling { actor: &self.actor, feed, is_all, guard: None };
        board::take_in(&self.db, &telling, read).await.unwrap()
    }

    /// Names and versions of the advisories about a package.
    async fn about(&self, package: &str) -> Vec<(String, String)> {
        let found = advisories::of_package(&self.db, package).await.unwrap();
        found.into_iter().map(|advisory| (advisory.id, advisory.affected.to_string())).collect()
    }

    /// What caches were told since the last call.
    async fn topics(&self, watcher: &mut Watcher, heard: &Arc<std::sync::Mutex<Vec<String>>>) -> Vec<String> {
        watcher.look().await.unwrap();
        let mut topics: Vec<String> = heard.lock().unwrap().drain(..).collect();
        topics.sort();
        topics
    }
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn rules(text: Value) -> Rules {
    serde_json::from_value(text).unwrap()
}

fn blocked(versions: &str, reason: &str) -> Block {
    Block { versions: versions.parse().unwrap(), reason: reason.to_owned(), url: None, malware: false }
}

/// An OSV document about one package.
fn osv(id: &str, package: &str, fixed: &str) -> Value {
    json!({
        "id": id, "published": "2026-01-02T03:04:05Z", "summary": format!("{id} happens"),
        "affected": [{
            "package": {"ecosystem": "Packagist", "name": package},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}],
        }],
        "database_specific": {"severity": "HIGH"},
    })
}

fn imported(added: u64, changed: u64, unchanged: u64, removed: u64) -> Imported {
    Imported { added, changed, unchanged, removed }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_come_and_go_beside_the_other_rules() {
    for house in House::each().await {
        let book = Book::<Rules>::new(house.db.clone());
        let (actor, name) = (&house.actor, pattern("acme/lib"));
        block(&book, actor, &name, &blocked("<1.0", "old")).await.unwrap();
        set(&book, actor, &name, &rules(json!({"min_age": "7d"}))).await.unwrap();
        block(&book, actor, &name, &blocked("2.0.1", "broken")).await.unwrap();
        block(&book, actor, &name, &blocked("<1.0", "too old")).await.unwrap();
        let of = |all: &larder_sources::policies::Policies<Rules>| json!(all.exactly(&name));
        let both = json!([{"versions": "2.0.1", "reason": "broken"}, {"versions": "<1.0", "reason": "too old"}]);
        assert_eq!(of(&book.all().await.unwrap()), json!({"block": both, "min_age": "7d"}));
        let missing = unblock(&book, actor, &name, Some(&"^9".parse().unwrap())).await.unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
        unblock(&book, actor, &name, Some(&"<1.0".parse().unwrap())).await.unwrap();
        unblock(&book, actor, &name, None).await.unwrap();
        assert_eq!(of(&book.all().await.unwrap()), json!({"min_age": "7d"}));
        assert_eq!(book.remove(actor, &name).await.unwrap(), rules(json!({"min_age": "7d"})));
        block(&book, actor, &name, &blocked("*", "gone")).await.unwrap();
        unblock(&book, actor, &name, None).await.unwrap();
        assert_eq!(book.all().await.unwrap().iter().count(), 0, "a policy that says nothing goes");
        let nothing = set(&book, actor, &name, &Rules::default()).await.unwrap_err();
        assert_eq!(nothing.kind(), Kind::Invalid);
        let events = house.events("policy").await;
        assert_eq!(events.len(), 9, "{events:?}");
        assert!(events.iter().all(|event| event.subject == format!("policy:{ID}:acme/lib")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_block_at_once_are_both_heard() {
    for house in House::each().await {
        let (one, other) = (Book::<Rules>::new(house.db.clone()), Book::<Rules>::new(house.db.clone()));
        let name = pattern("acme/lib");
        let (first, second) = (blocked("1.0", "one"), blocked("2.0", "other"));
        let (a, b) =
            tokio::join!(block(&one, &house.actor, &name, &first), block(&other, &house.actor, &name, &second),);
        a.unwrap();
        b.unwrap();
        let fresh = Book::<Rules>::new(house.db.clone());
        let all = fresh.all().await.unwrap();
        assert_eq!(all.exactly(&name).unwrap().block.as_ref().unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_is_heard_at_once_or_within_a_second() {
    for house in House::each().await {
        let elsewhere = Book::<Rules>::new(house.db.clone());
        let (told, alone) = (Book::<Rules>::new(house.db.clone()), Book::<Rules>::new(house.db.clone()));
        told.on_change(&Change::Everything);
        for book in [&told, &alone] {
            assert!(Policies::from(book.all().await.unwrap()).of("a/b").is_silent());
        }
        block(&elsewhere, &house.actor, &pattern("a/*"), &blocked("*", "no")).await.unwrap();
        for book in [&told, &alone] {
            assert!(Policies::from(book.all().await.unwrap()).of("a/b").is_silent(), "it is remembered");
        }
        told.on_change(&Change::Topic("grants".to_owned()));
        assert!(Policies::from(told.all().await.unwrap()).of("a/b").is_silent(), "that was about something else");
        told.on_change(&Change::Topic(larder_db::policies::TOPIC.to_owned()));
        assert!(!Policies::from(told.all().await.unwrap()).of("a/b").is_silent());
        house.clock.advance(Duration::from_secs(1));
        assert!(!Policies::from(alone.all().await.unwrap()).of("a/b").is_silent());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_again_changes_nothing_and_what_is_told_no_more_goes() {
    for house in House::each().await {
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = Arc::clone(&heard);
        let mut watcher = Watcher::new(house.db.clone());
        watcher.subscribe(Box::new(move |change| {
            if let Change::Topic(topic) = change {
                told.lock().unwrap().push(topic.clone());
            }
        }));
        house.topics(&mut watcher, &heard).await;
        let all =
            [osv("GHSA-1", "acme/lib", "1.2"), osv("GHSA-2", "acme/lib", "1.3"), osv("GHSA-3", "acme/app", "2.0")];
        assert_eq!(house.import("osv", true, &all).await, imported(3, 0, 0, 0));
        let topic = |name: &str| larder_db::packages::topic(ID, name);
        assert_eq!(house.topics(&mut watcher, &heard).await, [topic("acme/app"), topic("acme/lib")]);
        house.clock.advance(Duration::from_secs(60));
        assert_eq!(house.import("osv", true, &all).await, imported(0, 0, 3, 0));
        assert!(house.topics(&mut watcher, &heard).await.is_empty());
        assert_eq!(house.events("advisory.import").await.len(), 1, "nothing happened the second time");

        // Another feed that tells the same is none of its business.
        house.import("others", true, &[osv("GHSA-1", "acme/lib", "1.2")]).await;
        assert_eq!(house.about("acme/lib").await.len(), 2, "clients are told each once");
        let changed = [osv("GHSA-1", "acme/lib", "1.2"), osv("GHSA-2", "acme/lib", "1.4")];
        assert_eq!(house.import("osv", true, &changed).await, imported(0, 1, 1, 1));
        let pair = |id: &str, versions: &str| (id.to_owned(), versions.to_owned());
        assert_eq!(house.about("acme/lib").await, [pair("GHSA-1", "<1.2"), pair("GHSA-2", "<1.4")]);
        assert!(house.about("acme/app").await.is_empty());

        let mut withdrawn = osv("GHSA-2", "acme/lib", "1.4");
        withdrawn["withdrawn"] = "2026-05-01T00:00:00Z".into();
        assert_eq!(house.import("osv", false, &[withdrawn]).await, imported(0, 0, 0, 1));
        assert_eq!(house.about("acme/lib").await, [pair("GHSA-1", "<1.2")]);
        let nothing = Telling { actor: &house.actor, feed: "osv", is_all: true, guard: None };
        let refused = board::take_in(&house.db, &nothing, formats::Read::default()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "an empty folder takes nothing away");
        assert_eq!(board::remove_feed(&house.db, &house.actor, "osv").await.unwrap(), 1);
        assert_eq!(house.about("acme/lib").await.len(), 1, "the other feed still says so");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_no_longer_be_read_still_holds() {
    for house in House::each().await {
        house.import("osv", true, &[osv("GHSA-1", "acme/lib", "1.2"), osv("GHSA-2", "acme/lib", "1.3")]).await;
        let odd = [osv("GHSA-1", "acme/lib", "soon"), osv("GHSA-2", "acme/lib", "1.3")];
        assert_eq!(house.import("osv", true, &odd).await, imported(0, 0, 1, 0));
        assert_eq!(house.about("acme/lib").await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_feed_is_one_word_to_the_caches() {
    for house in House::each().await {
        let all: Vec<Value> = (0..450).map(|at| osv(&format!("GHSA-{at}"), &format!("acme/lib{at}"), "1.2")).collect();
        assert_eq!(house.import("osv", true, &all).await, imported(450, 0, 0, 0));
        let events = house.events("advisory.import").await;
        let written: u64 = events.iter().map(|event| event.detail["written"].as_u64().unwrap()).sum();
        assert_eq!((events.len(), written), (3, 450));
        let topics = house.scratch_topics().await;
        assert_eq!(topics, ["advisories"; 3]);
        let names: Vec<String> = (0..450).map(|at| format!("acme/lib{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(board::of_packages(&house.db, &names).await.unwrap().len(), 450);
        assert_eq!(house.import("osv", true, &all[..400]).await, imported(0, 0, 400, 50));
    }
}

impl House {
    /// Every topic that was ever told, in order.
    async fn scratch_topics(&self) -> Vec<String> {
        use larder_db::Statement;
        let executor = self.scratch.executor().await;
        let rows = executor.query(Statement::read("select topic from changes order by id", [])).await.unwrap();
        rows.into_iter().map(|row| row.cells().text().unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn advisories_of_ones_own() {
    for house in House::each().await {
        let own = Own {
            package: "Acme/Lib".to_owned(),
            affected: "<1.2.3".parse().unwrap(),
            title: "Anybody may log in".to_owned(),
            cve: None,
            link: Some("https://example.org/why".to_owned()),
            severity: Some(Severity::Critical),
        };
        let added: Advisory = board::add(&house.db, &house.actor, own.clone()).await.unwrap();
        assert!(added.id.starts_with("LRD-") && added.package == "acme/lib");
        assert_eq!(advisories::of_package(&house.db, "acme/lib").await.unwrap(), std::slice::from_ref(&added));
        assert!(advisories::are_there(&house.db).await.unwrap());
        for wrong in [
            Own { package: "lib".to_owned(), ..own.clone() },
            Own { title: " ".to_owned(), ..own.clone() },
            Own { link: Some("file:///etc".to_owned()), ..own.clone() },
            Own { cve: Some("CVE 1".to_owned()), ..own.clone() },
        ] {
            assert_eq!(board::add(&house.db, &house.actor, wrong).await.unwrap_err().kind(), Kind::Invalid);
        }
        assert_eq!(board::remove(&house.db, &house.actor, &added.id).await.unwrap(), std::slice::from_ref(&added));
        assert_eq!(board::remove(&house.db, &house.actor, &added.id).await.unwrap_err().kind(), Kind::NotFound);
        assert!(!advisories::are_there(&house.db).await.unwrap());
        let told = board::feed_of(house.db.host().new_id());
        house.import(&told, false, &[osv("GHSA-9", "acme/lib", "1.2")]).await;
        assert_eq!(board::remove(&house.db, &house.actor, "GHSA-9").await.unwrap_err().kind(), Kind::Conflict);
        let mut events: Vec<_> = house.events("advisory").await.into_iter().map(|event| event.action).collect();
        // All of one moment.
        events.sort();
        assert_eq!(events, ["advisory.add", "advisory.import", "advisory.remove"]);
    }
}

fn asker(grants: &[&str]) -> Principal {
    let grants = grants.iter().map(|grant| grant.parse::<Grant>().unwrap()).collect();
    Principal { name: PrincipalName::Token("ci".to_owned()), grants, ..Principal::default() }
}

/// Asks the API as a client does.
async fn ask(house: &House, asker: &Principal, query: &str, form: &str) -> (StatusCode, Value) {
    let method = if form.is_empty() { Method::GET } else { Method::POST };
    let uri = format!("{}?{query}", api::API).parse().unwrap();
    let (client, id) = (IpAddr::from([127, 0, 0, 1]), RequestId { process: 1, number: 1 });
    let body = RequestBody::from(Bytes::from(form.to_owned()));
    let mut request = Request::new(method, uri, HeaderMap::new(), body, client, id).unwrap();
    match api::answer(&house.db, &mut request, asker).await {
        Ok(response) => {
            let Body::Bytes(bytes) = &response.body else { panic!("a document") };
            (response.status, serde_json::from_slice(bytes).unwrap())
        }
        Err(error) => (StatusCode::BAD_REQUEST, json!(error.message())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_what_it_may_not_read() {
    for house in House::each().await {
        let begun = house.db.host().now();
        house.import("osv", true, &[osv("GHSA-1", "acme/lib", "1.2"), osv("GHSA-2", "acme/secret", "1.3")]).await;
        house.clock.advance(Duration::from_secs(100));
        house.import("more", true, &[osv("GHSA-3", "other/lib", "1.3")]).await;
        let names =
            |answer: &Value| -> Vec<String> { answer["advisories"].as_object().unwrap().keys().cloned().collect() };
        let (everybody, some) = (asker(&["read:*:*"]), asker(&[&format!("read:{ID}:acme/lib")]));
        let form = "packages%5B0%5D=acme%2Flib&packages%5B1%5D=acme%2Fsecret&packages%5B2%5D=acme%2Ffine";
        let (status, answer) = ask(&house, &everybody, "", form).await;
        assert_eq!((status, names(&answer)), (StatusCode::OK, vec!["acme/lib".into(), "acme/secret".into()]));
        assert_eq!(answer["advisories"]["acme/lib"][0]["affectedVersions"], "<1.2");
        assert_eq!(names(&ask(&house, &some, "", form).await.1), ["acme/lib"]);
        let all = format!("updatedSince={}", begun.seconds());
        assert_eq!(names(&ask(&house, &everybody, &all, "").await.1), ["acme/lib", "acme/secret", "other/lib"]);
        assert_eq!(names(&ask(&house, &some, &all, "").await.1), ["acme/lib"]);
        let later = format!("updatedSince={}", begun.plus(Duration::from_secs(50)).seconds());
        assert_eq!(names(&ask(&house, &everybody, &later, "").await.1), ["other/lib"]);
        assert_eq!(ask(&house, &everybody, "", "").await.0, StatusCode::BAD_REQUEST);

        // What one Larder answers, another one reads.
        let (_, answer) = ask(&house, &everybody, "updatedSince=0", "").await;
        let read = formats::read(answer.to_string().as_bytes()).unwrap();
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        let told: HashMap<_, _> = read.told.into_iter().map(|told| (told.package.clone(), told)).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told["acme/lib"].reported, Some(Time::parse("2026-01-02T03:04:05Z").unwrap()));
    }
}
