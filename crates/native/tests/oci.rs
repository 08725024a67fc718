//! What image repositories keep and what they let go, on every database: retention, tag history, usage and quotas. Clients'
//! requests go straight to the room; what is stored lies on a real disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::VecDeque,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use larder_auth::{Authenticator, Passes};
use larder_blobs::Blobs;
use larder_core::{
    Digest, Error, Kind,
    grant::{Grant, Principal, PrincipalName},
    pattern::Pattern,
};
use larder_db::{
    Db,
    changes::Change,
    events::{self, Actor, Recorded, Wanted},
};
use larder_http::{AccessNote, Body, Request, RequestBody, RequestId, Response, Room as _};
use larder_native::store::Disk;
use larder_oci::{
    Gate, ID, OciRoom, Registry,
    model::INDEX,
    policy::Rules,
    retention::{Sort, Swept, UNTAGGED, Verdict},
    usage::RepositoryUsage,
};
use larder_testkit::{FakeClock, Scratch};
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(86_400);

/// A database, a folder, the operations on repositories, and what answers clients.
struct House {
    db: Db,
    clock: FakeClock,
    blobs: Blobs,
    registry: Registry,
    room: OciRoom,
    asker: Arc<Principal>,
    _folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    async fn each() -> Vec<Self> {
        Self::each_leasing(larder_blobs::LEASE).await
    }

    /// With leases that last so long.
    async fn each_leasing(lease: Duration) -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let db = scratch.db(&host).await;
            let store = Arc::new(Disk::open(folder.path()).unwrap());
            let blobs = Blobs::new(db.clone(), store, host.clone()).with_lease(lease);
            let registry = Registry::new(db.clone(), blobs.clone());
            let authenticator = Authenticator::new(db.clone(), Passes::new([7; 32], []));
            let room = OciRoom::new(registry.clone(), Gate::new(authenticator, host.clone(), None));
            let grants = vec!["*:*:*".parse::<Grant>().unwrap()];
            let name = PrincipalName::Token("ci".to_owned());
            let asker = Arc::new(Principal { name, grants, token: Some(host.new_id()), ..Principal::default() });
            houses.push(Self { db, clock, blobs, registry, room, asker, _folder: folder, _scratch: scratch });
        }
        houses
    }

    async fn send(&self, method: Method, address: &str, kind: Option<&str>, body: Bytes) -> Response {
        self.send_body(method, address, kind, body.into()).await
    }

    async fn send_body(&self, method: Method, address: &str, kind: Option<&str>, body: RequestBody) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, HeaderValue::try_from(kind).unwrap());
        }
        let client = IpAddr::from([127, 0, 0, 1]);
        let id = RequestId { process: 1, number: 1 };
        let mut request = Request::new(method, address.parse().unwrap(), headers, body, client, id).unwrap();
        let mut access = AccessNote::default();
        self.room.handle(&mut request, &self.asker, &mut access).await.unwrap()
    }

    /// Pushes a blob as small clients do, in one request.
    async fn blob(&self, name: &str, bytes: &[u8]) -> Response {
        let address = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::of(bytes));
        self.send(Method::POST, &address, None, Bytes::copy_from_slice(bytes)).await
    }

    async fn put(&self, name: &str, reference: &str, manifest: &Value) -> Response {
        let kind = manifest["mediaType"].as_str().unwrap();
        let address = format!("/v2/{name}/manifests/{reference}");
        self.send(Method::PUT, &address, Some(kind), manifest.to_string().into()).await
    }

    /// Pushes an image of these layers with its blobs under a tag, or under its digest.
    async fn image(&self, name: &str, tag: Option<&str>, layers: &[&str]) -> Digest {
        let manifest = image(layers);
        for layer in layers.iter().chain(&["{}"]) {
            assert_eq!(self.blob(name, layer.as_bytes()).await.status, StatusCode::CREATED);
        }
        self.push(name, tag, &manifest).await
    }

    async fn push(&self, name: &str, tag: Option<&str>, manifest: &Value) -> Digest {
        let digest = digest_of(manifest);
        let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let response = self.put(name, &reference, manifest).await;
        assert_eq!(response.status, StatusCode::CREATED, "{}", text(&response));
        digest
    }

    async fn delete(&self, name: &str, reference: &str) -> Response {
        self.send(Method::DELETE, &format!("/v2/{name}/manifests/{reference}"), None, Bytes::new()).await
    }

    /// Whether clients find a manifest.
    async fn has(&self, name: &str, reference: impl ToString) -> bool {
        self.room.on_change(&Change::Everything);
        let address = format!("/v2/{name}/manifests/{}", reference.to_string());
        self.send(Method::GET, &address, None, Bytes::new()).await.status == StatusCode::OK
    }

    /// Whether clients find every blob of an image.
    async fn has_blobs(&self, name: &str, layers: &[&str]) -> bool {
        self.room.on_change(&Change::Everything);
        for layer in layers.iter().chain(&["{}"]) {
            let address = format!("/v2/{name}/blobs/{}", Digest::of(layer.as_bytes()));
            let response = self.send(Method::GET, &address, None, Bytes::new()).await;
            if response.status != StatusCode::OK {
                return false;
            }
        }
        true
    }

    async fn sweep(&self) -> (Swept, Vec<Verdict>) {
        let mut verdicts = Vec::new();
        let swept = self.registry.sweep(UNTAGGED, &mut |verdict| verdicts.push(verdict)).await.unwrap();
        assert!(verdicts.iter().all(|verdict| verdict.goes && verdict.problem.is_none()), "{verdicts:?}");
        (swept, verdicts)
    }

    async fn foresee(&self) -> (Swept, Vec<Verdict>) {
        let mut verdicts = Vec::new();
        let swept = self.registry.sweep_dry(UNTAGGED, &mut |verdict| verdicts.push(verdict)).await.unwrap();
        (swept, verdicts)
    }

    async fn set(&self, pattern: &str, rules: Value) {
        let rules: Rules = serde_json::from_value(rules).unwrap();
        self.registry.set_policy(&Actor::command_line(), &pattern.parse().unwrap(), &rules).await.unwrap();
    }

    async fn events(&self, action: &str) -> Vec<Recorded> {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 1_000).await.unwrap()
    }

    async fn tags(&self, name: &str) -> Vec<String> {
        self.room.on_change(&Change::Everything);
        let response = self.send(Method::GET, &format!("/v2/{name}/tags/list"), None, Bytes::new()).await;
        let list: Value = serde_json::from_str(&text(&response)).unwrap();
        serde_json::from_value(list["tags"].clone()).unwrap()
    }

    async fn usage(&self, pattern: &str) -> (Vec<RepositoryUsage>, Option<u64>) {
        let mut found = Vec::new();
        let pattern: Pattern = pattern.parse().unwrap();
        let together = self.registry.usage(&pattern, &mut |usage| found.push(usage)).await.unwrap();
        (found, together)
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

fn image(layers: &[&str]) -> Value {
    let layer = |layer: &&str| descriptor("test/layer", layer.as_bytes());
    json!({
        "schemaVersion": 2,
        "mediaType": INDEX.replace("index", "manifest"),
        "config": descriptor("test/config", b"{}"),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

fn index(parts: &[&Value]) -> Value {
    let part = |part: &&Value| descriptor(part["mediaType"].as_str().unwrap(), part.to_string().as_bytes());
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": parts.iter().map(part).collect::<Vec<_>>() })
}

/// A signature, or anything else that is about a manifest.
fn about(subject: &Value, word: &str) -> Value {
    let mut manifest = image(&[]);
    manifest["artifactType"] = format!("test/{word}").into();
    manifest["subject"] = descriptor(subject["mediaType"].as_str().unwrap(), subject.to_string().as_bytes());
    manifest
}

fn digest_of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}

fn text(response: &Response) -> String {
    match &response.body {
        Body::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}

fn names(verdicts: &[Verdict], sort: Sort) -> Vec<&str> {
    let mut names: Vec<_> = verdicts
        .iter()
        .filter(|verdict| verdict.sort == sort && verdict.goes)
        .map(|verdict| verdict.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_a_tag_leaves_goes_days_later_with_its_blobs() {
    for house in House::each().await {
        let old = house.image("acme/app", Some("1"), &["old", "base"]).await;
        let new = house.image("acme/app", Some("1"), &["new", "base"]).await;
        let (swept, _) = house.sweep().await;
        assert_eq!((swept.manifests, swept.waiting), (0, 1));
        house.clock.advance(6 * DAY);
        let (swept, verdicts) = house.foresee().await;
        assert_eq!((swept.manifests, swept.waiting), (0, 1));
        assert!(verdicts[0].reason.contains("2026-11-27"), "{verdicts:?}");
        assert_eq!(house.sweep().await.0.manifests, 0);
        house.clock.advance(DAY);
        let (swept, verdicts) = house.foresee().await;
        assert_eq!((swept.manifests, names(&verdicts, Sort::Manifest)), (1, vec![old.to_string().as_str()]));
        assert!(house.has("acme/app", old).await, "a dry run takes nothing away");
        assert_eq!(house.sweep().await.0.manifests, 1);
        assert!(!house.has("acme/app", old).await);
        assert!(house.has("acme/app", new).await && house.has("acme/app", "1").await);
        let removed = house.events("version.remove").await;
        assert_eq!((removed.len(), removed[0].actor.as_str()), (1, "larder"));
        assert_eq!(removed[0].detail["digest"], old.to_string());
        assert_eq!(removed[0].detail["reason"], "retention");
        let gone = house.blobs.gc(false, &mut |_| {}).await.unwrap();
        assert_eq!(gone.blobs, 2, "the manifest and its own layer: {gone:?}");
        assert!(house.has_blobs("acme/app", &["new", "base"]).await);
        assert!(house.blobs.stat(&Digest::of(b"old")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn children_and_referrers_go_with_what_they_belong_to() {
    for house in House::each().await {
        let (amd, arm, tagged) = (image(&["amd"]), image(&["arm"]), image(&["tagged"]));
        house.image("acme/app", None, &["amd"]).await;
        house.image("acme/app", None, &["arm"]).await;
        house.image("acme/app", Some("own"), &["tagged"]).await;
        let (first, second) = (index(&[&amd, &arm, &tagged]), index(&[&arm]));
        house.push("acme/app", Some("first"), &first).await;
        let nested = index(&[&second]);
        house.push("acme/app", None, &second).await;
        house.push("acme/app", Some("nested"), &nested).await;
        let (signature, list) = (about(&first, "signature"), about(&amd, "list"));
        let countersigned = about(&signature, "signature");
        for manifest in [&signature, &list, &countersigned] {
            house.push("acme/app", None, manifest).await;
        }
        house.clock.advance(30 * DAY);
        assert_eq!(house.sweep().await.0, Swept::default(), "everything belongs to something");

        assert_eq!(house.delete("acme/app", "first").await.status, StatusCode::ACCEPTED);
        house.sweep().await;
        house.clock.advance(7 * DAY);
        let mut expected: Vec<String> = [&first, &amd, &signature, &list, &countersigned]
            .iter()
            .map(|manifest| digest_of(manifest).to_string())
            .collect();
        expected.sort_unstable();
        let (_, foreseen) = house.foresee().await;
        assert_eq!(names(&foreseen, Sort::Manifest), expected);
        let (swept, verdicts) = house.sweep().await;
        assert_eq!(names(&verdicts, Sort::Manifest), expected);
        assert_eq!(swept, Swept { manifests: 5, ..Swept::default() });
        for kept in [&arm, &tagged, &second, &nested] {
            assert!(house.has("acme/app", digest_of(kept)).await);
        }

        // The nested index goes by hand: what it consists of follows later, to the end.
        assert_eq!(house.delete("acme/app", &digest_of(&nested).to_string()).await.status, StatusCode::ACCEPTED);
        assert_eq!(house.sweep().await.0.manifests, 0);
        house.clock.advance(7 * DAY);
        assert_eq!(house.sweep().await.0.manifests, 2);
        assert!(!house.has("acme/app", digest_of(&arm)).await);
        assert_eq!(house.tags("acme/app").await, ["own"]);
    }
}

#[tokio::test]
async fn whatever_is_referred_to_again_has_all_its_days_again() {
    for house in House::each().await {
        let (part, signed) = (image(&["part"]), image(&["signed"]));
        house.image("a", None, &["part"]).await;
        let waiting = about(&signed, "signature");
        house.blob("a", b"{}").await;
        house.push("a", None, &waiting).await;
        house.sweep().await;
        house.clock.advance(6 * DAY);
        assert_eq!(house.sweep().await.0.waiting, 2);
        // An index takes the one in, the subject of the other comes; then both leave again.
        let whole = index(&[&part]);
        house.push("a", Some("whole"), &whole).await;
        house.image("a", Some("signed"), &["signed"]).await;
        assert_eq!(house.sweep().await.0.waiting, 0);
        house.clock.advance(2 * DAY);
        for manifest in [&whole, &signed] {
            assert_eq!(house.delete("a", &digest_of(manifest).to_string()).await.status, StatusCode::ACCEPTED);
        }
        house.clock.advance(6 * DAY);
        assert_eq!(house.sweep().await.0.waiting, 2);
        assert!(house.has("a", digest_of(&part)).await && house.has("a", digest_of(&waiting)).await);
        house.clock.advance(DAY);
        assert_eq!(house.sweep().await.0.manifests, 2);
    }
}

#[tokio::test]
async fn whoever_skips_a_push_can_rely_on_what_is_here() {
    for house in House::each().await {
        // A part that goes with its whole, in a moment.
        let part = image(&["part"]);
        let digest = house.image("a", None, &["part"]).await.to_string();
        let whole = house.push("a", None, &index(&[&part])).await;
        house.sweep().await;
        house.clock.advance(7 * DAY);
        let address = format!("/v2/a/manifests/{digest}");
        let get = house.send(Method::GET, &address, None, Bytes::new()).await;
        let head = house.send(Method::HEAD, &address, None, Bytes::new()).await;
        assert_eq!((get.status, head.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!((house.sweep().await.0.manifests, house.has("a", whole).await), (1, false));
        assert_eq!(house.send(Method::HEAD, &address, None, Bytes::new()).await.status, StatusCode::OK);
        house.clock.advance(2 * DAY);
        assert_eq!(house.sweep().await.0.manifests, 1);
        // What is only in memory is not here.
        let head = house.send(Method::HEAD, &address, None, Bytes::new()).await;
        assert_eq!(head.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_tagged_referrer_outlives_its_subject_and_then_waits_in_full() {
    for house in House::each().await {
        let subject = image(&["subject"]);
        house.image("a", Some("1"), &["subject"]).await;
        let signature = about(&subject, "signature");
        house.push("a", Some("signature"), &signature).await;
        house.delete("a", &digest_of(&subject).to_string()).await;
        house.clock.advance(30 * DAY);
        house.sweep().await;
        assert!(house.has("a", "signature").await);
        house.delete("a", "signature").await;
        assert_eq!(house.sweep().await.0.manifests, 0, "it has not been untagged for long");
        assert!(house.has("a", digest_of(&signature)).await);
    }
}

#[tokio::test]
async fn tags_go_as_policies_say() {
    for house in House::each().await {
        house.set("acme/*", json!({ "keep_last": 2, "keep_tags": ["latest"], "immutable": ["v*"] })).await;
        house.set("acme/days", json!({ "keep_last": 1, "keep_days": 10 })).await;
        for (at, tag) in ["latest", "v1", "1", "2", "3"].iter().enumerate() {
            house.image("acme/app", Some(tag), &[&format!("layer {at}")]).await;
            house.image("acme/days", Some(tag), &[&format!("layer {at}")]).await;
            house.image("other", Some(tag), &[&format!("layer {at}")]).await;
            house.clock.advance(4 * DAY);
        }
        // What some clients make beside an image goes with the image, and counts for nothing.
        let [first, third] =
            ["layer 2", "layer 4"].map(|layer| digest_of(&image(&[layer])).to_string().replace(':', "-"));
        for tag in [&first, &third] {
            house.push("acme/app", Some(&format!("{tag}.sig")), &image(&["layer 0"])).await;
        }

        let (_, foreseen) = house.foresee().await;
        let (swept, verdicts) = house.sweep().await;
        assert_eq!((names(&verdicts, Sort::Tag), swept.tags), (vec!["1", "1"], 2));
        assert_eq!(names(&foreseen, Sort::Tag), names(&verdicts, Sort::Tag));
        let told =
            |tag: &str| foreseen.iter().find(|verdict| verdict.name == tag).map(|verdict| verdict.reason.as_str());
        assert_eq!(told("v1"), Some("it is immutable"));
        assert_eq!(told("latest"), Some("a pattern keeps it for ever"));
        assert_eq!(told("2"), Some("it is among the last 2 that moved"));
        let (first, third) = (format!("{first}.sig"), format!("{third}.sig"));
        assert_eq!(house.tags("acme/app").await, sorted(["2", "3", "latest", &first, &third, "v1"]));
        assert_eq!(
            house.tags("acme/days").await,
            ["2", "3", "latest", "v1"],
            "moved 8 and 4 days ago, and the other rules"
        );
        assert_eq!(house.tags("other").await.len(), 5);
        let removed = house.events("pointer.remove").await;
        assert_eq!(removed.len(), 2);
        assert!(removed.iter().all(|event| event.detail["reason"] == "retention" && event.detail["from"].is_string()));

        // Its image goes a week later, and what is about it with the next sweep after that.
        house.clock.advance(7 * DAY);
        assert!(house.sweep().await.0.manifests > 0);
        let (_, verdicts) = house.sweep().await;
        assert_eq!(names(&verdicts, Sort::Tag), [first]);
        assert!(house.delete("acme/app", "v1").await.status == StatusCode::FORBIDDEN);
    }
}

fn sorted<const N: usize>(mut tags: [&str; N]) -> [&str; N] {
    tags.sort_unstable();
    tags
}

#[tokio::test]
async fn policies_are_set_replaced_listed_and_removed() {
    for house in House::each().await {
        house.set("acme/**", json!({ "untagged_days": 1, "keep_last": 3 })).await;
        house.set("acme/**", json!({ "untagged_days": 2 })).await;
        house.set("acme/keeps", json!({ "untagged_days": 30 })).await;
        let policies = house.registry.policies().await.unwrap();
        assert_eq!(policies.iter().count(), 2);
        assert_eq!(policies.of("acme/app"), Rules { untagged_days: Some(2), ..Rules::default() });
        for name in ["acme/app", "acme/keeps", "other"] {
            house.image(name, None, &["layer"]).await;
        }
        house.sweep().await;
        house.clock.advance(2 * DAY);
        let (_, verdicts) = house.sweep().await;
        assert_eq!(verdicts.iter().map(|verdict| verdict.repository.as_str()).collect::<Vec<_>>(), ["acme/app"]);
        let pattern: Pattern = "acme/**".parse().unwrap();
        let actor = Actor::command_line();
        assert_eq!(house.registry.remove_policy(&actor, &pattern).await.unwrap().untagged_days, Some(2));
        assert_eq!(house.registry.remove_policy(&actor, &pattern).await.unwrap_err().kind(), Kind::NotFound);
        let nothing = house.registry.set_policy(&actor, &pattern, &Rules::default()).await;
        assert_eq!(nothing.unwrap_err().kind(), Kind::Invalid);
        let events = house.events("policy").await;
        let of: Vec<_> = events.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(of, ["policy.remove", "policy.set", "policy.set", "policy.set"]);
        assert!(events.iter().all(|event| event.subject.starts_with(&format!("policy:{ID}:acme/"))));
    }
}

/// Pushes an index of two images with a blob each. `false` if something was gone before what needs it came: where nothing
/// is waited for and leases are short that may be, and is said.
async fn push_whole(house: &House, layers: &[String; 2], tag: &str) -> bool {
    let parts = [image(&[&layers[0]]), image(&[&layers[1]])];
    for (layer, part) in layers.iter().zip(&parts) {
        for blob in [layer.as_bytes(), b"{}"] {
            assert_eq!(house.blob("race", blob).await.status, StatusCode::CREATED);
        }
        let put = house.put("race", &digest_of(part).to_string(), part).await;
        if put.status != StatusCode::CREATED {
            assert_eq!(put.status, StatusCode::NOT_FOUND, "{}", text(&put));
            return false;
        }
    }
    let put = house.put("race", tag, &index(&[&parts[0], &parts[1]])).await;
    assert!(matches!(put.status, StatusCode::CREATED | StatusCode::NOT_FOUND), "{}", text(&put));
    put.status == StatusCode::CREATED
}

#[tokio::test]
async fn what_is_published_while_sweeps_run_is_whole() {
    for house in House::each_leasing(Duration::from_secs(5)).await {
        let publish = async {
            let mut refused = 0;
            for round in 0..15 {
                let tag = format!("t{}", round % 3);
                while !push_whole(&house, &[format!("amd {round}"), format!("arm {round}")], &tag).await {
                    refused += 1;
                    assert!(refused < 500, "never done");
                }
            }
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        let publish = async {
            publish.await;
            done.store(true, std::sync::atomic::Ordering::Release);
        };
        let sweep = async {
            let mut swept = 0;
            for round in 0.. {
                if done.load(std::sync::atomic::Ordering::Acquire) {
                    break;
                }
                // Now and then nothing at all is waited for.
                let untagged = Duration::from_secs(round % 50);
                swept += house.registry.sweep(untagged, &mut |_| {}).await.unwrap().manifests;
                house.clock.advance(Duration::from_secs(1));
                tokio::task::yield_now().await;
            }
            swept
        };
        let ((), swept) = join(publish, sweep).await;
        assert!(swept > 0, "something went meanwhile");
        for round in 12..15 {
            let layers = [format!("amd {round}"), format!("arm {round}")];
            let parts = [image(&[&layers[0]]), image(&[&layers[1]])];
            assert!(house.has("race", format!("t{}", round % 3)).await);
            assert!(house.has("race", digest_of(&parts[0])).await && house.has("race", digest_of(&parts[1])).await);
            assert!(house.has_blobs("race", &[&layers[0], &layers[1]]).await);
        }
    }
}

#[tokio::test]
async fn a_tag_goes_back_to_where_it_was() {
    for house in House::each().await {
        let actor = Actor::command_line();
        let one = house.image("acme/app", Some("latest"), &["one"]).await.to_string();
        house.clock.advance(DAY);
        let two = house.image("acme/app", Some("latest"), &["two"]).await.to_string();
        let back = house.registry.rollback(&actor, "acme/app", "latest", None).await.unwrap();
        assert_eq!(back, (Some(two.clone()), one.clone()));
        // What was left behind may be called back as long as it is here.
        house.clock.advance(6 * DAY);
        house.sweep().await;
        let back = house.registry.rollback(&actor, "acme/app", "latest", None).await.unwrap();
        assert_eq!(back, (Some(one.clone()), two.clone()));
        house.clock.advance(30 * DAY);
        house.sweep().await;
        house.clock.advance(7 * DAY);
        assert_eq!(house.sweep().await.0.manifests, 1);
        let gone = house.registry.rollback(&actor, "acme/app", "latest", Some(one.parse().unwrap())).await.unwrap_err();
        assert!(gone.kind() == Kind::NotFound && gone.message().contains("push it again"), "{gone}");
        // A deleted tag comes back too.
        house.delete("acme/app", "latest").await;
        house.clock.advance(DAY);
        let back = house.registry.rollback(&actor, "acme/app", "latest", None).await.unwrap();
        assert_eq!(back, (None, two.clone()));
        assert!(house.has("acme/app", "latest").await);
        house.set("*", json!({ "immutable": ["latest"] })).await;
        let three = house.image("acme/app", None, &["three"]).await;
        let refused = house.registry.rollback(&actor, "acme/app", "latest", Some(three)).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Forbidden);

        let history = house.registry.tag_history("acme/app", "latest").await.unwrap();
        let told: Vec<_> = history
            .iter()
            .rev()
            .map(|event| (event.actor.as_str(), event.detail["from"].as_str(), event.detail["to"].as_str()))
            .collect();
        let (one, two) = (Some(one.as_str()), Some(two.as_str()));
        assert_eq!(
            told,
            [
                ("token:ci", None, one),
                ("token:ci", one, two),
                ("cli", two, one),
                ("cli", one, two),
                ("token:ci", two, None),
                ("cli", None, two),
            ]
        );
    }
}

#[tokio::test]
async fn usage_adds_up_and_says_what_would_be_free() {
    for house in House::each().await {
        let base = "b".repeat(1_000);
        let (mine, yours) = ("m".repeat(300), "y".repeat(50));
        house.image("acme/app", Some("1"), &[&base, &mine]).await;
        house.image("acme/app", Some("2"), &[&base]).await;
        house.image("acme/other/deep", Some("1"), &[&base, &yours]).await;
        house.image("acme/other/deep", None, &["untagged"]).await;
        house.blob("acme/app", &[b'p'; 77]).await;
        let size = |layers: &[&str]| image(layers).to_string().len() as u64;
        let manifests = size(&[&base, &mine]) + size(&[&base]);
        let (found, together) = house.usage("*").await;
        let app = RepositoryUsage {
            name: "acme/app".to_owned(),
            tags: 2,
            manifests: 2,
            untagged: 0,
            bytes: 1_302 + manifests,
            unique: 300 + manifests,
            shared: 1_002,
            pending: 77,
        };
        let others = size(&[&base, &yours]) + size(&["untagged"]);
        let deep = RepositoryUsage {
            name: "acme/other/deep".to_owned(),
            tags: 1,
            manifests: 2,
            untagged: 1,
            bytes: 1_060 + others,
            unique: 58 + others,
            shared: 1_002,
            pending: 0,
        };
        assert_eq!(found, [app.clone(), deep.clone()]);
        let all = 1_002 + 300 + 50 + 8 + manifests + others + 77;
        assert_eq!(together, Some(all));
        let accounted = house.blobs.accounted().await.unwrap();
        assert_eq!((accounted.blobs, accounted.trash, accounted.uploads), (all, 0, 0));
        let mut stored = 0;
        for object in house.blobs.store().list(None, 1_000).await.unwrap() {
            stored += object.size;
        }
        assert_eq!(stored, all);
        assert_eq!(house.usage("acme/*").await, (vec![app], Some(1_302 + 77 + manifests)));
        assert_eq!(house.usage("acme/*/**").await, (vec![deep], None));

        let freed = house.registry.frees("acme/app", "1").await.unwrap();
        assert_eq!((freed.bytes, freed.manifests.len()), (300 + size(&[&base, &mine]), 1));
        house.push("acme/app", Some("also"), &image(&[&base, &mine])).await;
        let freed = house.registry.frees("acme/app", "1").await.unwrap();
        assert!(freed.bytes == 0 && freed.kept.unwrap().contains("`also`"));
        // An index frees what only it has, with what is about any of that.
        let (part, tagged) = (image(&["part"]), image(&[&base]));
        house.image("acme/app", None, &["part"]).await;
        let whole = index(&[&part, &tagged]);
        house.push("acme/app", Some("whole"), &whole).await;
        let signature = about(&part, "signature");
        house.push("acme/app", None, &signature).await;
        let freed = house.registry.frees("acme/app", "whole").await.unwrap();
        let alone = [&whole, &part, &signature].iter().map(|manifest| manifest.to_string().len() as u64).sum::<u64>();
        assert_eq!((freed.bytes, freed.manifests.len()), (alone + 4, 3));
        assert_eq!(house.registry.frees("acme/app", "none").await.unwrap_err().kind(), Kind::NotFound);
    }
}

#[tokio::test]
async fn a_quota_is_for_all_repositories_of_its_pattern() {
    for house in House::each().await {
        house.set("acme/**", json!({ "quota": 3_000 })).await;
        house.set("acme/free/*", json!({ "quota": 1_000_000 })).await;
        let layer = "x".repeat(1_400);
        house.image("acme/a", Some("1"), &[&layer]).await;
        // Shared layers are counted once, however often they come.
        for name in ["acme/b", "acme/c/d", "acme/e"] {
            assert_eq!(house.blob(name, layer.as_bytes()).await.status, StatusCode::CREATED);
        }
        let refused = house.blob("acme/b", &[b'y'; 1_400]).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        let said = text(&refused);
        for word in ["DENIED", "quota exceeded", "acme/**", "3000", "1400", "policy set"] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
        assert_eq!(house.blob("acme/free/f", &[b'y'; 1_400]).await.status, StatusCode::CREATED);
        assert_eq!(house.blob("other", &[b'z'; 1_400]).await.status, StatusCode::CREATED);
        // It comes no other way either, and what is here already may be tagged again.
        let mount = format!("/v2/acme/b/blobs/uploads/?mount={}&from=other", Digest::of(&[b'z'; 1_400]));
        assert_eq!(house.send(Method::POST, &mount, None, Bytes::new()).await.status, StatusCode::FORBIDDEN);
        house.set("acme/**", json!({ "quota": 1 })).await;
        house.push("acme/a", Some("2"), &image(&[&layer])).await;
        assert_eq!(house.put("acme/a", "3", &about(&image(&[&layer]), "x")).await.status, StatusCode::FORBIDDEN);
        let begun = house.send(Method::POST, "/v2/acme/a/blobs/uploads/", None, Bytes::new()).await;
        assert_eq!(begun.status, StatusCode::FORBIDDEN);
        house.set("acme/**", json!({ "quota": 10_000 })).await;
        assert_eq!(house.blob("acme/b", &[b'z'; 1_400]).await.status, StatusCode::CREATED);
    }
}

/// Bytes of which nobody says beforehand how many they are.
struct Stream(VecDeque<Bytes>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn a_quota_counts_what_comes_without_a_length_and_before_its_end() {
    const PIECE: usize = 1024 * 1024;
    for house in House::each().await {
        house.set("acme/**", json!({ "quota": 3 * PIECE })).await;
        let stream = |pieces: usize| {
            let bytes = Bytes::from(vec![b'q'; PIECE]);
            RequestBody::arriving(Stream(std::iter::repeat_n(bytes, pieces).collect()))
        };
        let whole =
            |pieces: usize| format!("/v2/acme/a/blobs/uploads/?digest={}", Digest::of(&vec![b'q'; pieces * PIECE]));
        let refused = house.send_body(Method::POST, &whole(4), None, stream(4)).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", text(&refused));
        assert_eq!(house.usage("acme/**").await.1, Some(0));
        // A chunk is refused before it comes, and a stream when it has come too far.
        let begun = house.send(Method::POST, "/v2/acme/a/blobs/uploads/", None, Bytes::new()).await;
        let place = begun.headers[header::LOCATION].to_str().unwrap().to_owned();
        let chunk = Bytes::from(vec![b'q'; 4 * PIECE]);
        assert_eq!(house.send(Method::PATCH, &place, None, chunk).await.status, StatusCode::FORBIDDEN);
        let far = house.send_body(Method::PATCH, &place, None, stream(40)).await;
        assert_eq!(far.status, StatusCode::FORBIDDEN);
        assert_eq!(house.send_body(Method::POST, &whole(2), None, stream(2)).await.status, StatusCode::CREATED);
        assert_eq!(house.usage("acme/**").await.1, Some(2 * PIECE as u64));
    }
}

#[tokio::test]
async fn a_quota_holds_when_everybody_comes_at_once() {
    const PIECE: usize = 100_000;
    for house in House::each().await {
        house.set("acme/**", json!({ "quota": 3 * PIECE })).await;
        let push = async |number: u8| {
            let bytes = Bytes::from(vec![number; PIECE]);
            let path = format!("/v2/acme/a/blobs/uploads/?digest={}", Digest::of(&bytes));
            house.send(Method::POST, &path, None, bytes).await.status
        };
        let answers = join_all((0..12).map(push)).await;
        let came = answers.iter().filter(|status| **status == StatusCode::CREATED).count();
        assert_eq!(came, 3, "{answers:?}");
        assert!(answers.iter().all(|status| matches!(*status, StatusCode::CREATED | StatusCode::FORBIDDEN)));
        assert_eq!(house.usage("acme/**").await.1, Some(3 * PIECE as u64));
    }
}

#[tokio::test]
async fn what_a_tag_that_never_moves_consists_of_stays() {
    for house in House::each().await {
        house.set("acme/**", json!({ "immutable": ["v*"] })).await;
        let child = image(&["child"]);
        let digest = house.image("acme/a", None, &["child"]).await;
        let inner = index(&[&child]);
        house.push("acme/a", None, &inner).await;
        house.push("acme/a", Some("v1"), &index(&[&inner])).await;
        for reference in [digest.to_string(), digest_of(&inner).to_string()] {
            let refused = house.delete("acme/a", &reference).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN);
            assert!(text(&refused).contains("`v1`"), "{}", text(&refused));
        }
        let other = house.image("acme/a", Some("latest"), &["other"]).await;
        assert_eq!(house.delete("acme/a", &other.to_string()).await.status, StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn a_tag_that_comes_while_its_manifest_is_deleted_goes_only_if_it_may() {
    for house in House::each().await {
        house.set("acme/**", json!({ "immutable": ["v*"] })).await;
        let mut stayed = 0;
        for round in 0..20 {
            let layer = format!("layer {round}");
            let digest = house.image("acme/a", None, &[&layer]).await.to_string();
            let (tag, manifest) = (format!("v{round}"), image(&[&layer]));
            let (pushed, deleted) = join(house.put("acme/a", &tag, &manifest), house.delete("acme/a", &digest)).await;
            let is_there = house.has("acme/a", &tag).await;
            // Deleted first, the manifest came again with the push.
            assert_eq!(is_there, pushed.status == StatusCode::CREATED, "{round}: {}", deleted.status);
            stayed += usize::from(is_there);
        }
        assert!(stayed > 0, "no push ever won");
    }
}
