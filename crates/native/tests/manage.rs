//! Changing sources and credentials in place, and removing what others may depend on, on every database.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use larder_blobs::{Blobs, store::Store};
use larder_core::{Id, Kind, Result, format::Format};
use larder_db::{
    Batch, Db,
    changes::{Change as Told, Watcher},
    events::{self, Actor, Recorded, Wanted},
    packages::{self, Artifact, Package, Version},
    sources::{self as rows, Kept, Source},
    upstream_checks::{self as checks, Check},
    upstream_documents::{self as documents, Document},
};
use larder_native::{
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    change::{Change, Changed, Opened},
    credentials::{self, NewCredential},
    fetch::Authorization,
    manage::{KeptFiles, NewGitSource},
    registry::{self, Dists, FRESH, NewRegistry},
    settings::{GitSettings as Settings, KeepWord},
    vault::{SecretKey, Vault},
    work::SYNC,
};
use larder_testkit::{FakeClock, Scratch, Things};
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3_600);
const HIDDEN: &str = "hidden-secret";

struct House {
    db: Db,
    clock: FakeClock,
    vault: Vault,
    sources: Sources,
    blobs: Blobs,
    _folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    /// With an upstream `up`, and a Git source `lib`.
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let db = scratch.db(&host).await;
            let store: Arc<dyn Store> = Arc::new(Disk::open(folder.path()).unwrap());
            let blobs = Blobs::new(db.clone(), store, host.clone());
            let git = Arc::new(GitProgram::new(GitSettings::below(folder.path())));
            let vault = Vault::new(SecretKey::new([3; 32]), []);
            let formats: [Arc<dyn Format>; 1] = [Arc::new(Things("things"))];
            let sources =
                Sources::new(db.clone(), blobs.clone(), git, vault.clone(), formats.into(), Limits::default(), false);
            let new = NewRegistry {
                format: "things",
                url: "https://up.example.org",
                name: Some("up"),
                credential: None,
                only: Vec::new(),
                fresh: FRESH,
                prefix: None,
                dists: Dists::Here,
                show_source: None,
            };
            sources.add_registry(&Actor::command_line(), new).await.unwrap();
            let new = NewGitSource {
                url: "https://git.example.org/acme/lib.git",
                name: None,
                credential: None,
                every: HOUR,
                settings: Settings::default(),
            };
            sources.add_git(&Actor::command_line(), new).await.unwrap();
            houses.push(Self { db, clock, vault, sources, blobs, _folder: folder, _scratch: scratch });
        }
        houses
    }

    async fn source(&self, name: &str) -> Source {
        self.sources.find(name).await.unwrap()
    }

    async fn change(&self, name: &str, change: Change<'_>) -> Result<Changed> {
        self.sources.change(&Actor::command_line(), name, &change).await
    }

    /// Why a change is refused.
    async fn refuses(&self, name: &str, change: Change<'_>) -> (Kind, String) {
        let before = self.source(name).await;
        let error = self.change(name, change).await.unwrap_err();
        let after = self.source(name).await;
        assert_eq!(
            (before.url, before.credential_id, before.every, before.settings),
            (after.url, after.credential_id, after.every, after.settings)
        );
        (error.kind(), error.message().to_owned())
    }

    async fn credential(&self, name: &str, host: Option<&str>) {
        let new = NewCredential { name, kind: "basic", username: Some("me"), host };
        credentials::add(&self.db, &self.vault, &Actor::command_line(), new, HIDDEN).await.unwrap();
    }

    async fn events(&self, action: &str) -> Vec<Recorded> {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 100).await.unwrap()
    }

    /// A package of a source, one of its versions, and a file of that.
    async fn has(&self, source: Id, name: &str, version: &str, file: Option<&[u8]>) {
        let (host, now) = (self.db.host(), self.db.host().now());
        if packages::find(&self.db, "things", name).await.unwrap().is_none() {
            let package = Package {
                id: host.new_id(),
                format: "things".into(),
                name: name.into(),
                source_id: Some(source),
                summary: "{}".into(),
                created_at: now,
                changed_at: now,
            };
            self.db.commit(Batch::from(packages::insert(&package))).await.unwrap();
        }
        let id = packages::find(&self.db, "things", name).await.unwrap().unwrap().id;
        let version = Version {
            id: host.new_id(),
            version: version.into(),
            display: version.into(),
            reference: version.into(),
            stable: true,
            listed: false,
            origin: "upstream".into(),
            folder: String::new(),
            released_at: now,
            metadata: "{}".into(),
            sha1: None,
        };
        self.db.commit(Batch::from(packages::insert_version(id, &version, now))).await.unwrap();
        let Some(file) = file else { return };
        let mut writer = self.blobs.begin().await.unwrap();
        writer.write(Bytes::copy_from_slice(file)).await.unwrap();
        let stored = writer.finish().await.unwrap();
        let artifact = Artifact { digest: stored.digest, size: stored.size, sha1: stored.sha1 };
        let insert = packages::insert_artifact(host.new_id(), version.id, "thing", &artifact, now);
        self.db.commit(Batch::from(insert)).await.unwrap();
    }

    /// The topics that are told while `work` is done.
    async fn told(&self, work: impl Future<Output = ()>) -> Vec<String> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut watcher = Watcher::new(self.db.clone());
        let (to, from) = (Arc::clone(&heard), heard);
        watcher.subscribe(Box::new(move |change| {
            if let Told::Topic(topic) = change {
                to.lock().unwrap().push(topic.clone());
            }
        }));
        watcher.look().await.unwrap();
        from.lock().unwrap().clear();
        self.clock.advance(Duration::from_millis(1));
        work.await;
        watcher.look().await.unwrap();
        std::mem::take(&mut *from.lock().unwrap())
    }
}

/// What is different, by name.
fn names(changed: &Changed) -> Vec<&str> {
    let mut names: Vec<_> = changed.what.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_named_stays_and_what_is_is_told() {
    for house in House::each().await {
        house.credential("key", None).await;
        let before = house.source("up").await;
        let change = Change {
            credential: Some(Opened::By("key")),
            fresh: Some(HOUR),
            only: Some(vec!["acme/*".parse().unwrap()]),
            dists: Some(Dists::Upstream),
            show_source: Some(true),
            ..Change::default()
        };
        let topics = house
            .told(async {
                let changed = house.change("up", change.clone()).await.unwrap();
                assert_eq!(names(&changed), ["credential", "dists", "fresh", "only", "show_source"]);
            })
            .await;
        assert!(topics.iter().any(|topic| topic == registry::TOPIC), "{topics:?}");
        let upstream = registry::Upstream::read(house.source("up").await).unwrap();
        assert_eq!((upstream.source.every, upstream.settings.dists), (HOUR, Dists::Upstream));
        assert_eq!((upstream.name_there("acme/a"), upstream.name_there("b/a")), (Some("acme/a"), None));
        assert!(upstream.shows_source() && upstream.source.url == before.url && upstream.source.id == before.id);

        let event = house.events("source.set").await.remove(0);
        assert_eq!(event.subject, "source:up");
        assert_eq!(
            event.detail,
            json!({
                "credential": { "from": null, "to": "key" }, "dists": { "from": "here", "to": "upstream" },
                "fresh": { "from": "5m", "to": "1h" }, "only": { "from": [], "to": ["acme/*"] },
                "show_source": { "from": null, "to": true },
            })
        );
        assert!(house.change("up", change).await.unwrap().what.is_empty(), "it is like that already");
        let back = Change { only: Some(Vec::new()), credential: Some(Opened::ByNone), ..Change::default() };
        assert_eq!(house.change("up", back).await.unwrap().what.len(), 2);
        assert_eq!(house.events("source.set").await.len(), 2, "what changes nothing is no event");
        assert_eq!(house.source("up").await.credential_id, None);
        credentials::remove(&house.db, &Actor::command_line(), "key").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    for house in House::each().await {
        let only = || Some(vec!["acme/*".parse().unwrap()]);
        let cases: [(&str, Change<'_>, &str); 8] = [
            ("lib", Change { only: only(), ..Change::default() }, "--only"),
            ("lib", Change { list_every: Some(HOUR), ..Change::default() }, "--list-every"),
            ("up", Change { every: Some(HOUR), ..Change::default() }, "--every"),
            ("lib", Change { every: Some(Duration::from_secs(1)), ..Change::default() }, "every minute"),
            ("up", Change { fresh: Some(HOUR * 24 * 31), ..Change::default() }, "30 days"),
            ("up", Change { url: Some("http://up.example.org"), ..Change::default() }, "not encrypted"),
            ("lib", Change { url: Some("file:///srv/lib.git"), ..Change::default() }, "LARDER_ALLOW_LOCAL_SOURCES"),
            ("lib", Change { url: Some("https://a:b@git.example.org/x.git"), ..Change::default() }, "credential add"),
        ];
        for (name, change, words) in cases {
            let (kind, message) = house.refuses(name, change).await;
            assert!(kind == Kind::Invalid && message.contains(words), "{words}: {message}");
        }
        let change = Change { credential: Some(Opened::By("nobody")), ..Change::default() };
        assert_eq!(house.refuses("up", change).await.0, Kind::NotFound);
        assert_eq!(house.events("source.set").await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_named_again_for_another_host() {
    for house in House::each().await {
        house.credential("key", None).await;
        house.credential("git", None).await;
        let open = |name| Change { credential: Some(Opened::By(name)), ..Change::default() };
        house.change("up", open("key")).await.unwrap();
        house.change("lib", open("git")).await.unwrap();
        for (name, same, other) in [
            ("up", "https://up.example.org/new/", "https://evil.example.org/"),
            ("lib", "https://git.example.org/acme/new.git", "https://git.example.org:8443/acme/lib.git"),
        ] {
            let to = |url| Change { url: Some(url), ..Change::default() };
            assert_eq!(house.change(name, to(same)).await.unwrap().source.url, same, "the same host");
            let (kind, message) = house.refuses(name, to(other)).await;
            assert!(kind == Kind::Invalid && message.contains("--no-credential"), "{message}");
            let own = if name == "up" { "key" } else { "git" };
            let again = Change { credential: Some(Opened::By(own)), ..to(other) };
            let (_, message) = house.refuses(name, again).await;
            assert!(message.contains("add another credential for that host"), "{message}");
            let without = Change { credential: Some(Opened::ByNone), ..to(other) };
            assert_eq!(house.change(name, without).await.unwrap().source.url, other);
        }
        // The same host in another way: a password is no key.
        house.change("lib", Change { url: Some("https://git.example.org/a.git"), ..open("git") }).await.unwrap();
        let (_, message) =
            house.refuses("lib", Change { url: Some("git@git.example.org:a.git"), ..Change::default() }).await;
        assert!(message.contains("ssh"), "{message}");
        let all = format!("{:?}", house.events("source.set").await);
        assert!(!all.contains(HIDDEN));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_elsewhere_is_believed_nothing_that_another_one_said() {
    for house in House::each().await {
        let up = house.source("up").await;
        let keep = Batch::new()
            .with(checks::put(up.id, "root", &Check { checked_at: house.db.host().now(), validator: "1".into() }))
            .with(documents::put(up.id, "root", &Document::new(b"old", "1", house.db.host().now())));
        house.db.commit(keep).await.unwrap();
        house.change("up", Change { fresh: Some(HOUR), ..Change::default() }).await.unwrap();
        assert!(checks::find(&house.db, up.id, "root").await.unwrap().is_some(), "that is still true");

        house.has(up.id, "acme/a", "1.0", Some(b"file")).await;
        let url = Some("https://new.example.org/");
        let (kind, message) = house.refuses("up", Change { url, ..Change::default() }).await;
        assert!(
            kind == Kind::Conflict && message.contains("1 package of `up`") && message.contains("--yes"),
            "{message}"
        );
        assert!(documents::find(&house.db, up.id, "root").await.unwrap().is_some());
        house.change("up", Change { url, accept_address: true, ..Change::default() }).await.unwrap();
        assert!(checks::find(&house.db, up.id, "root").await.unwrap().is_none());
        assert!(documents::find(&house.db, up.id, "root").await.unwrap().is_none());
        assert_eq!(rows::kept(&house.db, up.id).await.unwrap().versions, 1, "files that were fetched stay");
        let event = house.events("source.set").await.into_iter().find(|event| event.detail["url"].is_object()).unwrap();
        assert_eq!(event.detail["url"]["from"], "https://up.example.org/");

        let narrow = Change { only: Some(vec!["other/*".parse().unwrap()]), ..Change::default() };
        assert_eq!(house.change("up", narrow).await.unwrap().unwanted, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_source_is_looked_at_again_at_once() {
    for house in House::each().await {
        let lib = house.source("lib").await;
        let due = async || {
            let jobs = larder_db::jobs::of_subject(&house.db, SYNC, &lib.id.to_string(), 5).await.unwrap();
            jobs.into_iter().map(|job| job.run_at).collect::<Vec<_>>()
        };
        let later = house.db.host().now().plus(HOUR * 4);
        larder_jobs::queue::ensure(&house.db, SYNC, &lib.id.to_string(), later).await.unwrap();
        assert_eq!(due().await, [later]);
        house.has(lib.id, "acme/lib", "1.0", None).await;
        let seen = rows::SourceRef {
            name: "refs/tags/1.0".into(),
            commit: "c0ffee".into(),
            skipped: None,
            warning: None,
            changed_at: house.db.host().now(),
        };
        house.db.commit(Batch::from(rows::put_ref(lib.id, &seen))).await.unwrap();
        house.change("lib", Change { every: Some(HOUR * 2), ..Change::default() }).await.unwrap();
        assert_eq!(due().await, [house.db.host().now()]);
        assert_eq!(rows::refs(&house.db, lib.id).await.unwrap()[0], seen, "nothing to read again");
        let topics = house
            .told(async {
                let change = Change { show_source: Some(false), keep: Some(KeepWord::Full), ..Change::default() };
                house.change("lib", change).await.unwrap();
            })
            .await;
        assert!(topics.contains(&packages::topic("things", "acme/lib")), "{topics:?}");
        assert_ne!(rows::refs(&house.db, lib.id).await.unwrap()[0].commit, seen.commit, "it is read again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_forge_found_follows_its_credential_unless_it_has_its_own() {
    for house in House::each().await {
        for (name, host) in [("old", "git.example.org"), ("new", "git.example.org"), ("own", "git.example.org")] {
            let new = NewCredential { name, kind: "gitea", username: None, host: Some(host) };
            credentials::add(&house.db, &house.vault, &Actor::command_line(), new, HIDDEN).await.unwrap();
        }
        let id = async |name: &str| Some(credentials::find(&house.db, name).await.unwrap().id);
        let settings = json!({
            "owner": "acme", "pattern": "acme/*", "repositories_every": 3600, "repositories": Settings::default(),
        });
        let forge = Source {
            id: house.db.host().new_id(),
            name: "forge".into(),
            kind: "gitea".into(),
            url: "https://git.example.org/api/v1/".into(),
            credential_id: id("old").await,
            settings: settings.to_string(),
            ..house.source("lib").await
        };
        house.db.commit(Batch::from(rows::insert(&forge))).await.unwrap();
        for (name, credential) in [("one", "old"), ("two", "own")] {
            let child = Source {
                id: house.db.host().new_id(),
                name: name.into(),
                credential_id: id(credential).await,
                ..house.source("lib").await
            };
            let batch = Batch::new().with(rows::insert(&child)).with(rows::adopt(child.id, forge.id, false));
            house.db.commit(batch).await.unwrap();
        }
        let change = Change {
            credential: Some(Opened::By("new")),
            list_every: Some(HOUR * 2),
            every: Some(HOUR * 3),
            ..Change::default()
        };
        let changed = house.change("forge", change).await.unwrap();
        assert_eq!(changed.followed, 1);
        assert_eq!(names(&changed), ["credential", "every", "list_every"]);
        assert_eq!(house.source("one").await.credential_id, id("new").await);
        assert_eq!(house.source("two").await.credential_id, id("own").await);
        let url = Change { url: Some("https://git.example.org/x.git"), ..Change::default() };
        assert!(house.refuses("one", url.clone()).await.1.contains("its forge says"));
        assert!(house.refuses("forge", url).await.1.contains("cannot be changed"));
        house.credential("password", None).await;
        let wrong = Change { credential: Some(Opened::By("password")), ..Change::default() };
        assert!(house.refuses("forge", wrong).await.1.contains("--kind gitea"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_what_somebody_else_has_changed_writes_nothing() {
    for house in House::each().await {
        let before = house.source("up").await;
        house.change("up", Change { fresh: Some(HOUR), ..Change::default() }).await.unwrap();
        let late = Batch::new().with(rows::is_same(&before)).with(rows::set(&before));
        let error = house.db.commit(late).await.unwrap_err();
        assert!(error.is_guard("source is the same"));
        assert_eq!(house.source("up").await.every, HOUR);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_opens_what_the_old_one_did() {
    for house in House::each().await {
        house.credential("key", None).await;
        house.change("up", Change { credential: Some(Opened::By("key")), ..Change::default() }).await.unwrap();
        let find = async || credentials::find(&house.db, "key").await.unwrap();
        let opens = async || credentials::open_for_host(&house.vault, &find().await, "up.example.org").unwrap();
        let rotate = async |username, secret| {
            credentials::rotate(&house.db, &house.vault, &Actor::command_line(), "key", username, secret).await
        };
        let is = |shown: Authorization, name: &str, secret: &str| matches!(shown, Authorization::Basic { username, password } if username == name && password == secret);
        let before = find().await;
        let topics = house.told(async { drop(rotate(None, "another-hidden\n").await.unwrap()) }).await;
        assert!(topics.iter().any(|topic| topic == credentials::TOPIC), "{topics:?}");
        let after = find().await;
        assert!(is(opens().await, "me", "another-hidden"));
        assert_eq!((after.id, &after.host, &after.kind), (before.id, &before.host, &before.kind));
        assert_eq!(house.source("up").await.credential_id, Some(after.id));
        rotate(Some("you"), "third-hidden").await.unwrap();
        assert!(is(opens().await, "you", "third-hidden"));
        assert!(credentials::open_for_host(&house.vault, &find().await, "evil.example.org").is_err());

        for (username, secret) in [(None, " \n"), (None, "two\nlines"), (Some("a:b"), "x")] {
            assert_eq!(rotate(username, secret).await.unwrap_err().kind(), Kind::Invalid);
        }
        assert!(is(opens().await, "you", "third-hidden"), "what is refused changes nothing");
        let late = Batch::new().with(larder_db::credentials::is_same(&before));
        assert!(house.db.commit(late).await.unwrap_err().is_guard("credential is the same"));
        let events = house.events("credential.rotate").await;
        assert_eq!(events.len(), 2);
        let renamed = events.iter().find(|event| event.detail["username"].is_object()).unwrap();
        assert_eq!(renamed.detail["username"], json!({ "from": "me", "to": "you" }));
        assert!(!format!("{events:?}").contains("hidden"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_goes_with_its_kept_files_only_if_somebody_says_so() {
    for house in House::each().await {
        let up = house.source("up").await;
        let kept = async || house.sources.kept(&up).await.unwrap();
        house.has(up.id, "acme/a", "1.0", None).await;
        assert_eq!(kept().await, Kept::default(), "a version without files is nothing to lose");
        house.has(up.id, "acme/a", "1.1", Some(b"shared")).await;
        house.has(up.id, "acme/a", "1.2", Some(b"other file")).await;
        house.has(up.id, "acme/b", "1.0", Some(b"shared")).await;
        house.has(house.source("lib").await.id, "acme/lib", "1.0", Some(b"built")).await;
        assert_eq!(kept().await, Kept { packages: 2, versions: 3, bytes: 16 });

        let remove = async |name: &str, files| house.sources.remove(&Actor::command_line(), name, files).await;
        let error = remove("up", KeptFiles::Spare).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(
            error.message().contains("3 versions of 2 packages from it are kept here (16 bytes)")
                && error.message().contains("--yes"),
            "{error}"
        );
        assert!(packages::find(&house.db, "things", "acme/a").await.unwrap().is_some());
        remove("up", KeptFiles::Drop).await.unwrap();
        assert!(packages::find(&house.db, "things", "acme/a").await.unwrap().is_none());
        let event = house.events("source.remove").await.remove(0);
        assert_eq!((&event.detail["kept_versions"], &event.detail["kept_bytes"]), (&json!(3), &json!(16)));
        // What is built from a Git repository can be built again.
        remove("lib", KeptFiles::Spare).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_at_one_address_are_noticed() {
    for house in House::each().await {
        let add = async |name, url| {
            let every = HOUR;
            let new = NewGitSource { url, name: Some(name), credential: None, every, settings: Settings::default() };
            house.sources.add_git(&Actor::command_line(), new).await.unwrap()
        };
        let names = async |source: &Source| {
            let others = house.sources.at_the_same_address(source).await.unwrap();
            others.into_iter().map(|other| other.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&add("again", "https://git.example.org/acme/lib").await).await, ["lib"]);
        assert_eq!(names(&add("other", "https://git.example.org/acme/lib2.git").await).await, [""; 0]);
    }
}
