//! Every layout of upstreams, over a port that answers from a list of files; in `trouble`, the ways in which one fails.

mod trouble;

use std::{
    collections::{BTreeMap, HashMap},
    future, mem,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use larder_core::{Digest, Result, Time, digest::Sha1};
use larder_db::{
    Db, credentials as credential_rows,
    events::Actor,
    sources::{self, Source, SourceState},
};
use larder_sources::{
    credentials::{self, NewCredential},
    fetch::{Authorization, Fetch, FetchRequest, FetchResponse},
    registry::{self, Upstream},
    vault::{SecretKey, Vault},
};
use larder_testkit::{FakeClock, Scratch};
use serde_json::{Value, json};

use super::*;

const BASE: &str = "https://up.example.org/repo";

/// The files of an upstream, and what was asked of it.
#[derive(Default)]
struct Upstreamed {
    files: Mutex<HashMap<String, File>>,
    asked: Mutex<Vec<Asked>>,
}

#[derive(Clone)]
struct File {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

struct Asked {
    url: String,
    headers: HeaderMap,
    secret: Option<fetch::Secret>,
}

#[async_trait]
impl Fetch for Upstreamed {
    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse> {
        let url = request.url.to_string();
        self.asked.lock().unwrap().push(Asked {
            url: url.clone(),
            headers: request.headers.clone(),
            secret: request.secret,
        });
        // Lets everybody else come to the same point.
        let mut came = false;
        future::poll_fn(|context| {
            if mem::replace(&mut came, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        let nothing = File { status: StatusCode::NOT_FOUND, headers: HeaderMap::new(), body: Bytes::new() };
        let mut file = self.files.lock().unwrap().get(&url).cloned().unwrap_or(nothing);
        let is_same = |condition: HeaderName, of: HeaderName| {
            let condition = request.headers.get(condition);
            condition.is_some() && condition == file.headers.get(of)
        };
        if is_same(header::IF_MODIFIED_SINCE, header::LAST_MODIFIED) || is_same(header::IF_NONE_MATCH, header::ETAG) {
            file.status = StatusCode::NOT_MODIFIED;
            file.body = Bytes::new();
        }
        let body = stream::iter([Ok(file.body.clone())]).boxed();
        let length = Some(file.body.len() as u64);
        Ok(FetchResponse { status: file.status, headers: file.headers, url: request.url, length, body })
    }
}

impl Upstreamed {
    fn put(&self, path: &str, body: impl Into<Bytes>) {
        self.answer(path, StatusCode::OK, &[], body);
    }

    fn answer(&self, path: &str, status: StatusCode, headers: &[(&str, &str)], body: impl Into<Bytes>) {
        let header = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        let file = File { status, headers: headers.iter().map(header).collect(), body: body.into() };
        self.files.lock().unwrap().insert(absolute(path), file);
    }

    fn remove(&self, path: &str) {
        self.files.lock().unwrap().remove(&absolute(path));
    }

    /// What was asked for since the last time, by its path.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap().drain(..).collect::<Vec<_>>();
        asked.into_iter().map(|asked| asked.url.strip_prefix(BASE).map_or(asked.url.clone(), str::to_owned)).collect()
    }

    fn last(&self) -> Asked {
        self.asked.lock().unwrap().pop().expect("something was asked")
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with("https:") { path.to_owned() } else { format!("{BASE}{path}") }
}

/// One source and its client.
struct House {
    _scratch: Scratch,
    db: Db,
    clock: FakeClock,
    vault: Vault,
    source: Source,
    up: Arc<Upstreamed>,
    client: Client,
}

impl House {
    async fn new() -> Self {
        Self::over(Scratch::sqlite()).await
    }

    async fn over(scratch: Scratch) -> Self {
        let (host, clock) = larder_testkit::host::host();
        let db = scratch.db(&host).await;
        let vault = Vault::new(SecretKey::new([7; 32]), []);
        let source = Source {
            id: host.new_id(),
            name: "up".into(),
            kind: crate::ID.into(),
            url: format!("{BASE}/"),
            credential_id: None,
            every: registry::FRESH,
            settings: json!({"only": [], "prefix": null}).to_string(),
            created_at: host.now(),
            state: SourceState::New,
            problem: None,
            synced_at: None,
            report: None,
            position: None,
            parent_id: None,
            archived: false,
        };
        db.commit(Batch::new().with(sources::insert(&source))).await.unwrap();
        let up = Arc::new(Upstreamed::default());
        let client = client(&db, &vault, &source, &up);
        Self { _scratch: scratch, db, clock, vault, source, up, client }
    }

    /// As another process would have it that starts now.
    fn restart(&mut self) {
        self.client = client(&self.db, &self.vault, &self.source, &self.up);
    }

    fn stale(&self) {
        self.clock.advance(registry::FRESH + Duration::from_secs(1));
    }

    /// The versions of a half, as they are written.
    async fn versions(&self, name: &str, dev: bool) -> Vec<String> {
        let told = self.client.package(name, dev, None).await.unwrap();
        let Told::Versions { document, .. } = told else { panic!("{name} is not there: {told:?}") };
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["minified"], "composer/2.0");
        let entries = document["packages"][name].as_array().unwrap();
        entries.iter().map(|entry| entry["version"].as_str().unwrap().to_owned()).collect()
    }

    async fn is_absent(&self, name: &str) -> bool {
        let told = self.client.package(name, false, None).await.unwrap();
        assert_eq!(self.client.package(name, true, None).await.unwrap(), told);
        told == Told::Absent
    }

    async fn failure(&self, name: &str) -> Failure {
        self.client.package(name, false, None).await.unwrap_err()
    }
}

fn client(db: &Db, vault: &Vault, source: &Source, up: &Arc<Upstreamed>) -> Client {
    let upstream = Upstream::read(source.clone()).unwrap();
    Client::new(upstream, db.clone(), vault.clone(), Arc::clone(up) as Arc<dyn Fetch>, false)
}

/// Versions of a package by their names, as an inline repository has them.
fn versions(name: &str, versions: &[&str]) -> Value {
    versions.iter().map(|version| ((*version).to_owned(), json!({"name": name, "version": version}))).collect()
}

/// A file about one package.
fn file(name: &str, some: &[&str]) -> String {
    json!({"packages": {name: versions(name, some)}}).to_string()
}

fn failed(failure: &Failure) -> &str {
    match failure {
        Failure::Failed(Kind::Upstream, message) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_for_tags_and_branches() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"packages":[],"metadata-url":"/repo/p2/%package%.json"}"#);
    let body = r#"{"packages":{"a/b":[{"name":"a/b","version":"1.1","x":1.0},{"version":"1.0","x":"__unset"}]},"minified":"composer/2.0"}"#;
    house.up.answer("/p2/a/b.json", StatusCode::OK, &[("last-modified", "yesterday, it was")], body);
    house.up.put("/p2/a/b~dev.json", file("a/b", &["dev-main"]));
    let Told::Versions { document, validator } = house.client.package("a/b", false, None).await.unwrap() else {
        panic!("it is there");
    };
    assert_eq!(document, body);
    assert_eq!(house.versions("a/b", true).await, ["dev-main"]);
    assert!(house.is_absent("a/c").await);
    assert_eq!(
        house.up.asked(),
        ["/packages.json", "/p2/a/b.json", "/p2/a/b~dev.json", "/p2/a/c.json", "/p2/a/c~dev.json"]
    );
    assert_eq!(house.client.package("a/b", false, Some(&validator)).await.unwrap(), Told::Same);
    assert_eq!(house.up.last().headers[header::IF_MODIFIED_SINCE], "yesterday, it was");
    let root = house.client.root().await.unwrap();
    assert_eq!((root.offers("a/b"), root.names()), (None, None));
    // A file without any date is the same if its bytes are.
    let Told::Versions { validator, .. } = house.client.package("a/b", true, None).await.unwrap() else { panic!() };
    assert_eq!(house.client.package("a/b", true, Some(&validator)).await.unwrap(), Told::Same);
    assert_ne!(house.client.package("a/b", true, Some("another")).await.unwrap(), Told::Same);
    house.up.answer("/p2/a/b~dev.json", StatusCode::OK, &[("last-modified", "now")], file("a/b", &["dev-main"]));
    let Told::Versions { validator, .. } = house.client.package("a/b", true, Some(&validator)).await.unwrap() else {
        panic!("its date is another one");
    };
    assert_eq!(house.client.package("a/b", true, Some(&validator)).await.unwrap(), Told::Same);
    assert_eq!(house.up.last().headers[header::IF_MODIFIED_SINCE], "now");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_certainly_not_there_is_not_asked_for() {
    let house = House::new().await;
    let root = json!({"metadata-url": "https://files.example.org/%package%.json", "packages": [],
        "available-packages": ["a/b", "C/D"], "available-package-patterns": ["e/*", "f/g-*-h"]});
    house.up.put("/packages.json", root.to_string());
    house.up.put("https://files.example.org/a/b.json", file("a/b", &["1.0"]));
    house.up.put("https://files.example.org/f/g-1-h.json", file("f/g-1-h", &["1.0"]));
    for name in ["acme/secret", "a/bb", "f/g-1-i", "ee/a"] {
        assert!(house.is_absent(name).await, "{name}");
    }
    assert_eq!(house.up.asked(), ["/packages.json"]);
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    assert_eq!(house.versions("f/g-1-h", false).await, ["1.0"]);
    let root = house.client.root().await.unwrap();
    assert_eq!((root.offers("c/d"), root.offers("e/x"), root.offers("e")), (Some(true), Some(true), Some(false)));
    assert_eq!(root.names(), None);

    let root = json!({"metadata-url": "/p2/%package%.json", "packages": {}, "available-packages": ["C/D", "a/b"]});
    house.up.put("/packages.json", root.to_string());
    house.stale();
    assert_eq!(house.client.root().await.unwrap().names(), Some(vec!["a/b", "c/d"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_in_the_root_beside_files() {
    let mut house = House::new().await;
    let root = json!({"metadata-url": "/repo/p2/%package%.json",
        "packages": {"A/in": versions("a/in", &["1.0", "dev-main", "2.0"])}});
    house.up.put("/packages.json", root.to_string());
    house.up.put("/p2/a/out.json", file("a/out", &["3.0"]));
    house.up.put("/p2/a/in.json", file("a/in", &["9.9"]));
    assert_eq!(house.versions("a/in", false).await, ["2.0", "1.0"]);
    assert_eq!(house.versions("a/in", true).await, ["dev-main"]);
    assert_eq!(house.versions("a/out", false).await, ["3.0"]);
    assert_eq!(house.up.asked(), ["/packages.json", "/p2/a/out.json"]);
    house.restart();
    assert_eq!(house.versions("a/in", false).await, ["2.0", "1.0"]);
    assert_eq!(house.up.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_for_both_halves() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"providers-lazy-url":"/repo/p/%package%.json"}"#);
    let body = json!({"packages": {"a/b": versions("a/b", &["1.0", "2.0.x-dev", "1.1"]), "a/other": {}}});
    house.up.answer("/p/a/b.json", StatusCode::OK, &[("etag", "\"e\"")], body.to_string());
    let (tagged, branches) = tokio::join!(house.versions("a/b", false), house.versions("a/b", true));
    assert_eq!((tagged, branches), (vec!["1.1".to_owned(), "1.0".to_owned()], vec!["2.0.x-dev".to_owned()]));
    assert_eq!(house.up.asked(), ["/packages.json", "/p/a/b.json"]);
    house.clock.advance(Duration::from_secs(60));
    assert_eq!(house.versions("a/b", true).await, ["2.0.x-dev"]);
    assert_eq!(house.up.last().headers[header::IF_NONE_MATCH], "\"e\"");
    house.up.remove("/p/a/b.json");
    house.clock.advance(Duration::from_secs(60));
    assert!(house.is_absent("a/b").await);
    house.up.asked();
    house.up.put("/p/a/empty.json", r#"{"packages":[]}"#);
    for name in ["a/nothing", "a/empty"] {
        assert!(house.is_absent(name).await);
        assert_eq!(house.up.asked(), [format!("/p/{name}.json")]);
        let check = upstream_checks::find(&house.db, house.source.id, &format!("{MIXED}{name}")).await.unwrap();
        assert_eq!(check, None, "anybody can make up names");
    }
    house.up.put("/p/a/nothing.json", file("a/nothing", &["1.0"]));
    house.clock.advance(Duration::from_secs(60));
    assert_eq!(house.versions("a/nothing", false).await, ["1.0"]);
    assert_eq!(house.client.root().await.unwrap().names(), None);
}

/// A registry whose packages' files are named by their hashes, and what they are.
fn hashed(house: &House, packages: &[(&str, String)]) {
    let hash = |text: &str| Digest::of(text.as_bytes()).hex();
    let providers: BTreeMap<_, _> =
        packages.iter().map(|(name, body)| (*name, json!({"sha256": hash(body)}))).collect();
    let listing = json!({"providers": providers}).to_string();
    for (name, body) in packages {
        house.up.put(&format!("/p/{name}${}.json", hash(body)), body.clone());
    }
    house.up.put(&format!("/p/latest${}.json", hash(&listing)), listing.clone());
    let root = json!({"packages": [], "providers-url": "/repo/p/%package%$%hash%.json",
        "provider-includes": {"p/latest$%hash%.json": {"sha256": hash(&listing)}}});
    house.up.put("/packages.json", root.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_named_by_their_hashes() {
    let mut house = House::new().await;
    let first = file("a/b", &["1.0", "dev-main"]);
    hashed(&house, &[("a/b", first.clone()), ("a/c", file("a/c", &["1.0"]))]);
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    assert_eq!(house.versions("a/b", true).await, ["dev-main"]);
    assert!(house.is_absent("acme/secret").await);
    let asked = house.up.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[1].starts_with("/p/latest$") && asked[2].starts_with("/p/a/b$"), "{asked:?}");
    assert_eq!(house.client.root().await.unwrap().names(), Some(vec!["a/b", "a/c"]));

    // What is named by its hash never changes, also in another process.
    house.stale();
    house.restart();
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);
    assert_eq!(house.up.asked(), ["/packages.json"]);

    hashed(&house, &[("a/b", file("a/b", &["1.1"]))]);
    house.stale();
    assert_eq!(house.versions("a/b", false).await, ["1.1"]);
    assert_eq!(house.client.package("a/b", true, None).await.unwrap(), Told::Absent);
    assert!(house.is_absent("a/c").await);
    // A file that went before the root was asked again is not known to be absent.
    hashed(&house, &[("a/b", file("a/b", &["1.2"]))]);
    house.stale();
    house.client.root().await.unwrap();
    house.clock.advance(Duration::from_secs(6));
    let file = house.up.files.lock().unwrap().keys().find(|url| url.contains("/a/b$")).cloned();
    house.up.files.lock().unwrap().retain(|url, _| !url.contains("/a/b$"));
    assert!(file.is_some() && failed(&house.failure("a/b").await).contains("announced"));
    hashed(&house, &[("a/b", first)]);
    assert_eq!(house.versions("a/b", false).await, ["1.0"], "the root was asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_another_hash_is_not_kept() {
    let house = House::new().await;
    let body = file("a/b", &["1.0"]);
    hashed(&house, &[("a/b", body.clone())]);
    let path = format!("/p/a/b${}.json", Digest::of(body.as_bytes()).hex());
    house.up.put(&path, file("a/b", &["6.6.6"]));
    assert!(failed(&house.failure("a/b").await).contains("announces"), "{:?}", house.failure("a/b").await);
    house.up.put(&path, body);
    assert_eq!(house.versions("a/b", false).await, ["1.0"]);

    let root = json!({"packages": [], "providers-url": "/repo/p/%package%.json", "provider-includes": {"l": {"sha256": "00"}}});
    house.up.put("/packages.json", root.to_string());
    house.up.put("/l", r#"{"providers":{}}"#);
    house.stale();
    assert_eq!(house.versions("a/b", false).await, ["1.0"], "the root that was right stays");
}

fn sha1(text: &str) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(text.as_bytes());
    sha1.finish()
}

/// A repository that is spread over files, one of which includes the next.
fn included(house: &House, newest: &str) -> String {
    let inner = json!({"packages": {"c/d": versions("c/d", &["1.0"]), "a/b": versions("a/b", &["0.9"])}}).to_string();
    let outer = json!({"packages": {"a/b": versions("a/b", &["1.0", newest, "dev-main"])},
        "includes": {"include/inner.json": {"sha1": sha1(&inner)}}})
    .to_string();
    house.up.put("/include/inner.json", inner);
    house.up.put("/include/outer.json", outer.clone());
    let root = json!({"packages": [], "includes": {"include/outer.json": {"sha1": sha1(&outer)}}});
    house.up.put("/packages.json", root.to_string());
    outer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_several_files() {
    let house = House::new().await;
    included(&house, "1.1");
    assert_eq!(house.versions("a/b", false).await, ["1.1", "1.0", "0.9"]);
    assert_eq!(house.versions("a/b", true).await, ["dev-main"]);
    assert_eq!(house.versions("c/d", false).await, ["1.0"]);
    assert!(house.is_absent("acme/secret").await);
    assert_eq!(house.up.asked(), ["/packages.json", "/include/outer.json", "/include/inner.json"]);
    assert_eq!(house.client.root().await.unwrap().names(), Some(vec!["a/b", "c/d"]));

    included(&house, "1.2");
    house.stale();
    assert_eq!(house.versions("a/b", false).await, ["1.2", "1.0", "0.9"]);
    assert_eq!(house.up.asked(), ["/packages.json", "/include/outer.json"], "the other file is the same");

    let outer = included(&house, "1.3");
    house.up.put("/include/outer.json", outer.replace("1.3", "6.6"));
    house.stale();
    assert_eq!(house.versions("a/b", false).await, ["1.2", "1.0", "0.9"], "what was right stays");
    house.up.put("/include/outer.json", outer);
    house.clock.advance(Duration::from_secs(6));
    assert_eq!(house.versions("a/b", false).await, ["1.3", "1.0", "0.9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_one_file() {
    for scratch in Scratch::each().await {
        let mut house = House::over(scratch).await;
        let list = json!([{"name": "c/d", "version": "1.0"}, {"name": "c/d", "version": "2.0"}]);
        let root = |a: Value| json!({"packages": {"a/b": a, "c/d": list, "e/f": []}}).to_string();
        house.up.put("/packages.json", root(versions("a/b", &["1.0", "dev-main", "v2.0"])));
        assert_eq!(house.versions("a/b", false).await, ["v2.0", "1.0"]);
        assert_eq!(house.versions("c/d", false).await, ["2.0", "1.0"]);
        assert!(house.is_absent("e/f").await && house.is_absent("x/y").await);
        let Told::Versions { validator, .. } = house.client.package("a/b", false, None).await.unwrap() else {
            panic!()
        };
        assert_eq!(house.client.package("a/b", false, Some(&validator)).await.unwrap(), Told::Same);
        let subjects = |page: Vec<(String, String)>| page.into_iter().map(|(subject, _)| subject).collect::<Vec<_>>();
        let page = documents::page(&house.db, house.source.id, whole::INLINE, "", 2).await.unwrap();
        assert_eq!(subjects(page), ["inline:a/b", "inline:a/b~dev"]);
        let page = documents::page(&house.db, house.source.id, whole::INLINE, "inline:a/b~dev", 9).await.unwrap();
        assert_eq!(subjects(page), ["inline:c/d"]);
        let came = documents::look(&house.db, house.source.id, "inline:c/d").await.unwrap();

        // Another process asks nobody as long as what is here is fresh.
        house.up.asked();
        house.restart();
        assert_eq!(house.versions("c/d", false).await, ["2.0", "1.0"]);
        assert_eq!(house.up.asked(), [""; 0]);

        house.up.put("/packages.json", root(versions("a/b", &["3.0"])));
        house.stale();
        assert_eq!(house.versions("a/b", false).await, ["3.0"]);
        assert_eq!(house.client.package("a/b", true, None).await.unwrap(), Told::Absent);
        assert_eq!(documents::look(&house.db, house.source.id, "inline:c/d").await.unwrap(), came, "not written again");

        house.up.put("/packages.json", r#"{"packages":[]}"#);
        house.stale();
        assert!(house.is_absent("a/b").await && house.is_absent("c/d").await);
        assert_eq!(documents::page(&house.db, house.source.id, "inline:", "", 9).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_advisories() {
    let house = House::new().await;
    house.up.put("/packages.json", r#"{"metadata-url":"/repo/p2/%package%.json"}"#);
    assert!(matches!(house.client.changes(None).await, Err(Failure::Absent)));
    assert!(matches!(house.client.advisories(Time::from_seconds(5)).await, Err(Failure::Absent)));
    let root = json!({"metadata-url": "/repo/p2/%package%.json", "metadata-changes-url": "/repo/changes.json",
        "security-advisories": {"metadata": true, "api-url": "https://up.example.org/repo/adv/"}});
    house.up.put("/packages.json", root.to_string());
    house.stale();
    house.up.answer(
        "/changes.json",
        StatusCode::BAD_REQUEST,
        &[],
        r#"{"error":"no since","timestamp":17000000000000}"#,
    );
    let begin = house.client.changes(None).await.unwrap();
    assert_eq!(begin, Changes { timestamp: "17000000000000".into(), actions: Vec::new(), resync: false });
    let answer = json!({"timestamp": 17_000_000_010_000_u64, "actions": [
        {"type": "update", "package": "A/b", "time": 1}, {"type": "update", "package": "a/b~dev", "time": 1},
        {"type": "delete", "package": "c/d", "time": 2}]});
    house.up.put("/changes.json?since=17000000000000", answer.to_string());
    let changes = house.client.changes(Some("17000000000000")).await.unwrap();
    let change = |package: &str, dev, deleted| Change { package: package.to_owned(), dev, deleted };
    assert_eq!(changes.actions, [change("a/b", false, false), change("a/b", true, false), change("c/d", false, true)]);
    assert!(!changes.resync);
    house.up.put("/changes.json?since=1", r#"{"timestamp":2,"actions":[{"type":"resync","package":"*","time":1}]}"#);
    assert!(house.client.changes(Some("1")).await.unwrap().resync);
    house.up.put("/changes.json?since=2", r#"{"actions":[]}"#);
    assert!(failed(&house.client.changes(Some("2")).await.unwrap_err()).contains("shape"));

    house.up.put("/adv/?updatedSince=5", r#"{"advisories":{"a/b":[{"advisoryId":"X"}]}}"#);
    let advisories = house.client.advisories(Time::from_seconds(5)).await.unwrap();
    assert!(advisories.ends_with(b"\"X\"}]}}"));
    assert_eq!(house.up.last().url, "https://up.example.org/repo/adv/?updatedSince=5");
    house.up.put("/adv/?updatedSince=6", r#"{"status":"error"}"#);
    assert!(failed(&house.client.advisories(Time::from_seconds(6)).await.unwrap_err()).contains("shape"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credential_is_for_one_host() {
    let mut house = House::new().await;
    let new = NewCredential { name: "c", kind: "header", username: Some("X-Api-Key"), host: Some("up.example.org") };
    let credential = credentials::add(&house.db, &house.vault, &Actor::command_line(), new, "hidden").await.unwrap();
    assert!(credential_rows::find(&house.db, "c").await.unwrap().is_some());
    house.source.credential_id = Some(credential.id);
    house.restart();
    house.up.put("/dists/x.zip", "zip");
    house.up.put("https://other.example.org/x.zip", "zip");
    for url in ["dists/x.zip", "/repo/dists/x.zip", "https://other.example.org/x.zip"] {
        let answer = house.client.dist(url, 10).await.unwrap();
        assert_eq!(answer.read_all(10).await.unwrap(), "zip");
        let secret = house.up.last().secret.unwrap();
        // The port sends it nowhere else, wherever the question goes.
        assert_eq!(secret.origin, "up.example.org");
        let Authorization::Header { name, value } = secret.authorization else { panic!() };
        assert_eq!((name.as_str(), value.as_str()), ("X-Api-Key", "hidden"));
    }
    assert!(matches!(house.client.dist("/nothing.zip", 10).await, Err(Failure::Absent)));
    assert!(failed(&house.client.dist("http://up.example.org/x.zip", 10).await.unwrap_err()).contains("not encrypted"));
    house.up.answer("https://other.example.org/y.zip", StatusCode::UNAUTHORIZED, &[], "");
    let Err(Failure::Refused(message)) = house.client.dist("https://other.example.org/y.zip", 10).await else {
        panic!()
    };
    assert!(message.contains("another host"), "{message}");
    house.up.answer("/packages.json", StatusCode::UNAUTHORIZED, &[], "");
    let Failure::Refused(message) = house.failure("a/b").await else { panic!() };
    assert!(message.contains("may have expired"), "{message}");
}
