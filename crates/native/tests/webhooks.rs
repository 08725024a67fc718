//! Webhooks, on every database, as forges send them: recorded deliveries of each forge go through the site into the room,
//! and what is looked at is what they left behind in the queue and in the log.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use larder_blobs::Blobs;
use larder_core::{Error, Kind, Result, digest::hex, grant::Principal};
use larder_db::{
    Batch, Db, Statement, deliveries,
    events::{self, Actor, Recorded, Wanted},
    sources::Source,
};
use larder_http::{Access, AccessLog, Authenticator, Part, Readiness, Received, RequestBody, Response, Room, Site};
use larder_jobs::{State, queue};
use larder_native::{
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    manage::{KeptFiles, NewGitSource},
    settings::GitSettings as Settings,
    vault::{SecretKey, Vault},
    work::SYNC,
};
use larder_testkit::{FakeClock, Scratch};
use larder_webhooks::{LARGEST, WebhookRoom};
use sha2::Sha256;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Each recorded delivery, the forge that it is taken for, and what it must be answered.
const RECORDED: &[(&str, &str, u16)] = &[
    ("bitbucket-cloud-comment", "bitbucket", 200),
    ("bitbucket-cloud-push", "bitbucket", 202),
    ("bitbucket-cloud-tag", "bitbucket", 202),
    ("bitbucket-server-ping", "bitbucket", 200),
    ("bitbucket-server-push", "bitbucket", 202),
    ("bitbucket-server-tag", "bitbucket", 202),
    ("forgejo-create", "forgejo", 202),
    ("forgejo-delete", "forgejo", 202),
    ("forgejo-issues", "forgejo", 200),
    ("forgejo-push", "forgejo", 202),
    ("generic-bearer", "generic", 202),
    ("generic-signed", "generic", 202),
    ("generic-token", "generic", 202),
    ("gitea-create", "gitea", 202),
    ("gitea-delete", "gitea", 202),
    ("gitea-issues", "gitea", 200),
    ("gitea-push", "gitea", 202),
    ("github-create", "github", 202),
    ("github-delete", "github", 202),
    ("github-issues", "github", 200),
    ("github-ping", "github", 200),
    ("github-push", "github", 202),
    ("github-push-of-a-tag", "github", 202),
    ("github-release", "github", 202),
    ("gitlab-issue", "gitlab", 200),
    ("gitlab-push", "gitlab", 202),
    ("gitlab-release", "gitlab", 202),
    ("gitlab-tag", "gitlab", 202),
    ("gitlab-tag-deleted", "gitlab", 202),
];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "webhooks", "tests", "deliveries"].iter().collect()
}

/// A delivery as it was recorded: headers, in which `{secret}` and `{hmac}` stand for what depends on the secret, an empty
/// line, and the body.
#[derive(Clone)]
struct Delivery {
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Delivery {
    fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        let (head, body) = text.split_once("\n\n").unwrap();
        let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        Self { headers: head.lines().map(pair).collect(), body: Bytes::from(body.to_owned()) }
    }

    /// The headers as a forge that was given `secret` sends them.
    fn signed(&self, secret: &str) -> HeaderMap {
        let mac = <Hmac<Sha256>>::new_from_slice(secret.as_bytes()).unwrap().chain_update(&self.body);
        let mac = hex(&mac.finalize().into_bytes());
        let fill = |value: &str| value.replace("{secret}", secret).replace("{hmac}", &mac);
        let header = |(name, value): &(String, String)| {
            let name = HeaderName::try_from(name.as_str()).unwrap();
            (name, HeaderValue::try_from(fill(value)).unwrap())
        };
        self.headers.iter().map(header).collect()
    }

    /// The same with another value of a header.
    fn with(mut self, name: &str, value: &str) -> Self {
        let header = self.headers.iter_mut().find(|(own, _)| own.eq_ignore_ascii_case(name)).unwrap();
        value.clone_into(&mut header.1);
        self
    }
}

/// A server on which anonymous may do nothing and nobody has a token, and what it wrote into its access log.
#[derive(Default)]
struct Around {
    refused: Mutex<Vec<(u16, String)>>,
}

#[async_trait]
impl Authenticator for Around {
    fn cached(&self, _: Option<&str>) -> Option<Arc<Principal>> {
        None
    }

    async fn authenticate(&self, token: Option<&str>, _: IpAddr) -> Result<Arc<Principal>> {
        match token {
            None => Ok(Arc::default()),
            Some(_) => Err(Error::new(Kind::Unauthenticated, "this token is not known here")),
        }
    }
}

impl AccessLog for Around {
    fn record(&self, access: Access<'_>) {
        assert!(access.note.action.is_none());
        let about = format!("{}:{}", access.note.format, access.note.package.as_deref().unwrap_or(""));
        self.refused.lock().unwrap().push((access.status.as_u16(), about));
    }
}

#[async_trait]
impl Readiness for Around {
    async fn check(&self) -> Vec<Part> {
        Vec::new()
    }
}

struct House {
    db: Db,
    clock: FakeClock,
    sources: Sources,
    site: Site,
    around: Arc<Around>,
    source: Source,
    secret: String,
    folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let db = scratch.db(&host).await;
            let sources = sources(&db, &folder, 7);
            let around = Arc::<Around>::default();
            let room: Arc<dyn Room> = Arc::new(WebhookRoom(sources.clone()));
            let site = Site::new(host, around.clone(), around.clone(), around.clone()).with_room(&room);
            let actor = Actor::command_line();
            let source = sources.add_git(&actor, source("lib")).await.unwrap();
            let secret = sources.webhook_secret(&actor, &source).await.unwrap();
            queue::ensure(&db, SYNC, &source.id.to_string(), db.host().now().plus(4 * HOUR)).await.unwrap();
            houses.push(Self { db, clock, sources, site, around, source, secret, folder, _scratch: scratch });
        }
        houses
    }

    async fn post(&self, path: &str, headers: HeaderMap, body: impl Into<RequestBody>) -> Response {
        let address = IpAddr::from([192, 0, 2, 1]);
        let (method, uri) = (Method::POST, path.parse().unwrap());
        self.site.answer(Received { method, uri, headers, body: body.into(), address }).await
    }

    /// Sends a delivery signed with the secret, and gives the status of the answer.
    async fn send(&self, delivery: &Delivery) -> u16 {
        let path = format!("/webhooks/{}", self.source.name);
        let response = self.post(&path, delivery.signed(&self.secret), delivery.body.clone()).await;
        assert!(!text(&response).contains(&self.secret));
        response.status.as_u16()
    }

    /// Takes the job that is due now, if one is, and ends it as the runner would, with its next time in four hours.
    async fn did_sync(&self) -> bool {
        let jobs = larder_db::jobs::of_subject(&self.db, SYNC, &self.source.id.to_string(), 10).await.unwrap();
        let waiting: Vec<_> = jobs.iter().filter(|job| job.state == State::Waiting).collect();
        assert_eq!(waiting.len(), 1, "{jobs:?}");
        let now = self.db.host().now();
        if waiting[0].run_at > now {
            return false;
        }
        let job = larder_db::jobs::claim(&self.db, "test", &[SYNC], now.plus(MINUTE)).await.unwrap().unwrap();
        self.db.commit(Batch::from(larder_db::jobs::finish(&job, now, None, None))).await.unwrap();
        queue::ensure(&self.db, SYNC, &self.source.id.to_string(), now.plus(4 * HOUR)).await.unwrap();
        true
    }

    /// The events of webhooks, the newest first.
    async fn events(&self) -> Vec<Recorded> {
        let wanted = Wanted { action: Some("webhook".to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 1_000).await.unwrap()
    }

    async fn remembered(&self) -> i64 {
        let row = self.db.read_one(Statement::read("select count(*) from deliveries", [])).await.unwrap();
        row.unwrap().cells().int().unwrap()
    }
}

fn sources(db: &Db, folder: &tempfile::TempDir, key: u8) -> Sources {
    let host = db.host().clone();
    let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host);
    let git = Arc::new(GitProgram::new(GitSettings::below(folder.path())));
    let vault = Vault::new(SecretKey::new([key; 32]), []);
    Sources::new(db.clone(), blobs, git, vault, Arc::new([]), Limits::default(), false)
}

fn source(name: &str) -> NewGitSource<'_> {
    NewGitSource {
        url: "https://git.example.org/acme/lib.git",
        name: Some(name),
        credential: None,
        every: 4 * HOUR,
        settings: Settings::default(),
    }
}

fn text(response: &Response) -> String {
    match &response.body {
        larder_http::Body::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn each_forge_is_believed_and_its_pushes_make_the_sync_due() {
    let mut names: Vec<_> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, RECORDED.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), "every recorded delivery is tried");
    for house in House::each().await {
        for (name, forge, status) in RECORDED {
            let before = house.events().await.len();
            assert_eq!(house.send(&Delivery::read(name)).await, *status, "{name}");
            let events = house.events().await;
            let is_sync = *status == 202;
            assert_eq!(events.len() - before, usize::from(is_sync), "{name}");
            assert_eq!(house.did_sync().await, is_sync, "{name}");
            if is_sync {
                let event = &events[0];
                assert_eq!(
                    (event.actor.as_str(), event.action.as_str()),
                    (&*format!("webhook:{forge}"), "webhook.accept")
                );
                assert_eq!(event.subject, "source:lib");
                assert!(!event.detail.to_string().contains(&house.secret));
            }
            house.clock.advance(Duration::from_secs(1));
        }
        assert!(house.around.refused.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn whoever_does_not_know_the_secret_learns_nothing_and_does_nothing() {
    for house in House::each().await {
        let other = house.sources.add_git(&Actor::command_line(), source("other")).await.unwrap();
        let others = house.sources.webhook_secret(&Actor::command_line(), &other).await.unwrap();
        let mut answers = Vec::new();
        for (name, ..) in RECORDED {
            let delivery = Delivery::read(name);
            let mut altered = delivery.body.to_vec();
            altered.push(b' ');
            let without: HeaderMap = delivery.signed(&house.secret).into_iter().filter_map(without_proof).collect();
            let right = delivery.signed(&house.secret);
            let mut refused = vec![
                ("/webhooks/lib", delivery.signed("wrong"), delivery.body.clone()),
                ("/webhooks/lib", delivery.signed(""), delivery.body.clone()),
                ("/webhooks/lib", delivery.signed(&others), delivery.body.clone()),
                ("/webhooks/lib", without, delivery.body.clone()),
                ("/webhooks/nothing", right.clone(), delivery.body.clone()),
                ("/webhooks/nothing", delivery.signed("wrong"), delivery.body.clone()),
                ("/webhooks/larder_guard", delivery.signed("wrong"), Bytes::new()),
            ];
            if delivery.headers.iter().any(|(_, value)| value.contains("{hmac}")) {
                refused.push(("/webhooks/lib", right, altered.into()));
            }
            for (path, headers, body) in refused {
                let response = house.post(path, headers, body).await;
                assert_eq!(response.status, StatusCode::UNAUTHORIZED, "{name} {path}");
                answers.push((format!("{:?}", response.headers), text(&response)));
            }
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "all are refused alike: {answers:?}");
        assert!(house.events().await.is_empty());
        assert!(!house.did_sync().await);
        assert_eq!(house.remembered().await, 0);
        let refused = std::mem::take(&mut *house.around.refused.lock().unwrap());
        assert!(refused.iter().all(|(status, _)| *status == 401));
        assert!(refused.iter().any(|(_, about)| about == "webhook:lib"));
        assert!(refused.iter().all(|(_, about)| about == "webhook:lib" || about == "webhook:"), "{refused:?}");
    }
}

/// Every header but those that show a secret.
fn without_proof((name, value): (Option<HeaderName>, HeaderValue)) -> Option<(HeaderName, HeaderValue)> {
    let name = name?;
    let shows = ["signature", "token", "authorization"].iter().any(|word| name.as_str().contains(word));
    // What is left of GitHub's old signature is one with SHA-1.
    (!shows || name == "x-hub-signature" && value.as_bytes().starts_with(b"sha1=")).then_some((name, value))
}

#[tokio::test]
async fn what_was_told_before_is_not_done_again() {
    for house in House::each().await {
        let push = Delivery::read("github-push");
        assert_eq!(house.send(&push).await, 202);
        assert!(house.did_sync().await);
        house.clock.advance(HOUR);
        assert_eq!(house.send(&push).await, 200, "delivered again");
        assert!(!house.did_sync().await);
        assert_eq!(house.events().await.len(), 1);

        let next = push.clone().with("X-GitHub-Delivery", "another");
        assert_eq!(house.send(&next).await, 202, "another delivery of the same content");
        assert!(house.did_sync().await);
        let mut same_name = push.clone();
        same_name.body = Bytes::from_static(b"{}");
        assert_eq!(house.send(&same_name).await, 202, "another content under the same name");
        assert!(house.did_sync().await);

        let script = Delivery::read("generic-token");
        assert_eq!(house.send(&script).await, 202);
        assert_eq!(house.send(&script).await, 200);
        assert!(house.did_sync().await);
        house.clock.advance(MINUTE);
        assert_eq!(house.send(&script).await, 202, "a minute later it is another one");
        assert!(house.did_sync().await);

        house.clock.advance(deliveries::RETENTION);
        house.db.commit(deliveries::sweep(house.db.host().now()).into()).await.unwrap();
        assert_eq!(house.remembered().await, 0);
        assert_eq!(house.send(&push).await, 202);
    }
}

#[tokio::test]
async fn the_same_delivery_told_to_many_at_once_is_one() {
    for house in House::each().await {
        let push = Delivery::read("gitea-push");
        let statuses = futures_util::future::join_all((0..8).map(|_| house.send(&push))).await;
        assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 202].contains(status)), "{statuses:?}");
        assert_eq!(house.events().await.len(), 1);
        // Different ones are all accepted, and are one sync.
        for number in 0..5 {
            let name = format!("delivery {number}");
            assert_eq!(house.send(&push.clone().with("X-Gitea-Delivery", &name)).await, 202);
        }
        assert!(house.did_sync().await);
        assert!(!house.did_sync().await);
    }
}

#[tokio::test]
async fn a_push_during_a_sync_is_followed_by_another_sync() {
    for house in House::each().await {
        assert_eq!(house.send(&Delivery::read("gitlab-push")).await, 202);
        let now = house.db.host().now();
        let running = larder_db::jobs::claim(&house.db, "test", &[SYNC], now.plus(MINUTE)).await.unwrap().unwrap();
        assert_eq!(house.send(&Delivery::read("gitlab-tag")).await, 202);
        house.db.commit(Batch::from(larder_db::jobs::finish(&running, now, None, None))).await.unwrap();
        assert!(house.did_sync().await);
    }
}

#[tokio::test]
async fn only_so_many_deliveries_are_remembered() {
    for house in House::each().await {
        let start = house.db.host().now();
        for part in 0..3 {
            let batch = (part * 500..part * 500 + 500).map(|number| {
                let at = start.plus(Duration::from_millis(number));
                deliveries::put(house.source.id, &format!("delivery {number}"), at)
            });
            let batch: Batch = batch.chain([deliveries::trim(house.source.id)]).collect();
            house.db.commit(batch).await.unwrap();
        }
        assert_eq!(house.remembered().await, 1_000);
        let is_new = |name: &str| -> Batch { deliveries::is_new(house.source.id, name, start.minus(MINUTE)).into() };
        assert!(house.db.commit(is_new("delivery 499")).await.is_ok());
        assert!(house.db.commit(is_new("delivery 500")).await.is_err());
    }
}

#[tokio::test]
async fn a_huge_body_is_refused_as_soon_as_it_is_known_to_be() {
    for house in House::each().await {
        let headers = Delivery::read("generic-token").signed(&house.secret);
        let read = Arc::new(Mutex::new(0));
        let body = |length: u64| {
            let (piece, read) = (Bytes::from(vec![b'x'; 1024 * 1024]), Arc::clone(&read));
            let pieces = (0..length / piece.len() as u64).map(move |_| {
                *read.lock().unwrap() += 1;
                Ok(Frame::data(piece.clone()))
            });
            RequestBody::arriving(StreamBody::new(stream::iter(pieces)))
        };
        let response = house.post("/webhooks/lib", headers.clone(), body(LARGEST)).await;
        assert_eq!(response.status, StatusCode::ACCEPTED);
        *read.lock().unwrap() = 0;
        let response = house.post("/webhooks/lib", headers.clone(), body(LARGEST * 100)).await;
        assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(*read.lock().unwrap(), 26, "it is not read to its end");
        // Whoever cannot be right is not listened to.
        *read.lock().unwrap() = 0;
        let wrong = Delivery::read("generic-token").signed("wrong");
        let response = house.post("/webhooks/lib", wrong, body(LARGEST)).await;
        assert_eq!((response.status, *read.lock().unwrap()), (StatusCode::UNAUTHORIZED, 0));
        let announced = Bytes::from(vec![b'x'; usize::try_from(LARGEST).unwrap() + 1]);
        assert_eq!(house.post("/webhooks/lib", headers, announced).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test]
async fn secrets_differ_are_sealed_and_can_be_made_anew() {
    for house in House::each().await {
        let actor = Actor::command_line();
        let push = Delivery::read("forgejo-push");
        assert!(house.secret.starts_with("lrw_") && house.secret.len() >= 40, "it is long");
        assert_eq!(house.sources.webhook_secret(&actor, &house.source).await.unwrap(), house.secret);
        let sealed = house.db.read_one(Statement::read("select sealed from webhooks", [])).await.unwrap().unwrap();
        let sealed = sealed.cells().bytes().unwrap();
        assert!(!sealed.windows(house.secret.len()).any(|window| window == house.secret.as_bytes()));

        let next = house.sources.rotate_webhook(&actor, &house.source).await.unwrap();
        assert_ne!(next, house.secret);
        assert_eq!(house.send(&push).await, 401, "the old secret");
        let by_id = format!("/webhooks/{}", house.source.id);
        let response = house.post(&by_id, push.signed(&next), push.body.clone()).await;
        assert_eq!(response.status, StatusCode::ACCEPTED, "the new one, at the source's id");
        assert_eq!(house.events().await[1].action, "webhook.rotate");

        // With another key nothing can be opened, which is nobody's business but the operator's.
        let elsewhere = sources(&house.db, &house.folder, 8);
        let error = elsewhere.webhook_secret(&actor, &house.source).await.unwrap_err();
        assert!(error.message().contains("rotate-webhook lib"), "{error}");
        assert!(elsewhere.check_delivery("lib", None).await.is_err_and(|error| error.kind() == Kind::Unauthenticated));

        house.sources.remove(&actor, "lib", KeptFiles::Drop).await.unwrap();
        assert_eq!(house.remembered().await, 0);
        let response = house.post(&by_id, push.signed(&next), push.body.clone()).await;
        assert_eq!(response.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_source_from_before_webhooks_gets_a_secret_when_somebody_looks() {
    for house in House::each().await {
        house.db.commit(Statement::write("delete from webhooks", []).into()).await.unwrap();
        assert_eq!(house.send(&Delivery::read("github-push")).await, 401);
        let actor = Actor::command_line();
        let (one, other) = futures_util::future::join(
            house.sources.webhook_secret(&actor, &house.source),
            house.sources.webhook_secret(&actor, &house.source),
        )
        .await;
        let secret = one.unwrap();
        assert_eq!(secret, other.unwrap(), "both see the same");
        assert_eq!(house.events().await.iter().filter(|event| event.action == "webhook.create").count(), 1);
        let push = Delivery::read("github-push");
        let response = house.post("/webhooks/lib", push.signed(&secret), push.body.clone()).await;
        assert_eq!(response.status, StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn only_a_post_to_a_source_is_a_delivery() {
    for house in House::each().await {
        let address = IpAddr::from([192, 0, 2, 1]);
        for (method, path, status) in [
            (Method::GET, "/webhooks/lib", 405),
            (Method::GET, "/webhooks/nothing", 405),
            (Method::PUT, "/webhooks/lib", 405),
            (Method::POST, "/webhooks/", 404),
            (Method::POST, "/webhooks", 404),
            (Method::POST, "/webhooks/lib/more", 404),
            (Method::POST, "/webhooks/lib%2fmore", 401),
        ] {
            let (uri, headers) = (path.parse().unwrap(), Delivery::read("generic-token").signed(&house.secret));
            let received = Received { method, uri, headers, body: RequestBody::default(), address };
            assert_eq!(house.site.answer(received).await.status.as_u16(), status, "{path}");
        }
        assert!(house.events().await.is_empty());
    }
}
