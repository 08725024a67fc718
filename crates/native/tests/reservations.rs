//! Names that never leave the house, on every database: reserving, taking over, races with what upstreams bring, and what
//! is noticed of what they offer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{sync::Arc, time::Duration};

use larder_blobs::Blobs;
use larder_core::{Id, Kind, Result, format::Format, pattern::Pattern};
use larder_db::{
    Batch, Db,
    changes::Watcher,
    events::{self, Actor, Recorded, Wanted},
    packages::{self, Package},
    sources::Source,
};
use larder_native::{
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    registry::{Dists, FRESH, NewRegistry, make_stale},
    reservations::Reservations,
    vault::{SecretKey, Vault},
};
use larder_testkit::{FakeClock, Scratch, Things};
use serde_json::json;

struct House {
    db: Db,
    clock: FakeClock,
    sources: Sources,
    up: Source,
    _folder: tempfile::TempDir,
    scratch: Scratch,
}

impl House {
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let db = scratch.db(&host).await;
            let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host.clone());
            let git = Arc::new(GitProgram::new(GitSettings::below(folder.path())));
            let formats: [Arc<dyn Format>; 2] = [Arc::new(Things("things")), Arc::new(Things("others"))];
            let vault = Vault::new(SecretKey::new([3; 32]), []);
            let sources = Sources::new(db.clone(), blobs, git, vault, formats.into(), Limits::default(), true);
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
            let up = sources.add_registry(&Actor::command_line(), new).await.unwrap();
            houses.push(Self { db, clock, sources, up, _folder: folder, scratch });
        }
        houses
    }

    /// A package, from the upstream or of our own.
    async fn has(&self, format: &str, name: &str, source: Option<Id>) -> Result<()> {
        self.db.commit(Batch::new().with(packages::insert(&self.package(format, name, source)))).await?;
        Ok(())
    }

    fn package(&self, format: &str, name: &str, source: Option<Id>) -> Package {
        let (id, now) = (self.db.host().new_id(), self.db.host().now());
        let (format, name) = (format.to_owned(), name.to_owned());
        Package { id, format, name, source_id: source, summary: "{}".into(), created_at: now, changed_at: now }
    }

    async fn reserve(&self, format: Option<&str>, text: &str, take_over: bool) -> Result<(bool, Vec<String>)> {
        let reserved = self.sources.reserve(&Actor::command_line(), format, &pattern(text), take_over).await?;
        Ok((reserved.added, reserved.taken.into_iter().map(|package| package.name).collect()))
    }

    async fn unreserve(&self, format: Option<&str>, text: &str) -> Result<()> {
        self.sources.unreserve(&Actor::command_line(), format, &pattern(text)).await
    }

    async fn events(&self, action: &str) -> Vec<Recorded> {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 10_000).await.unwrap()
    }

    async fn names(&self) -> Vec<String> {
        packages::list(&self.db, "*", "", 100).await.unwrap().into_iter().map(|package| package.name).collect()
    }
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_reserved_until_it_is_not() {
    for house in House::each().await {
        let reservations = Reservations::new(house.db.clone());
        assert!(!reservations.is_reserved("things", "acme/lib").await.unwrap());
        assert_eq!(house.reserve(None, "Acme/*", false).await.unwrap(), (true, Vec::new()));
        assert_eq!(house.reserve(None, "acme/*", false).await.unwrap(), (false, Vec::new()));
        assert_eq!(house.reserve(Some("things"), "acme/*", false).await.unwrap(), (true, Vec::new()));
        let all = house.sources.reservations().await.unwrap();
        assert_eq!(all.iter().map(|one| one.format.as_deref()).collect::<Vec<_>>(), [None, Some("things")]);

        // A process that nobody tells knows it within a second.
        house.clock.advance(Duration::from_secs(1));
        for (format, name, expected) in [
            ("things", "acme/lib", true),
            ("others", "ACME/lib", true),
            ("things", "acme/a/b", false),
            ("things", "b/c", false),
        ] {
            assert_eq!(reservations.is_reserved(format, name).await.unwrap(), expected, "{format} {name}");
        }
        house.unreserve(None, "ACME/*").await.unwrap();
        house.clock.advance(Duration::from_secs(1));
        assert!(reservations.is_reserved("things", "acme/lib").await.unwrap());
        assert!(!reservations.is_reserved("others", "acme/lib").await.unwrap());

        let gone = house.unreserve(None, "acme/*").await.unwrap_err();
        assert!(gone.kind() == Kind::NotFound && gone.message().contains("--format 'things'"), "{gone}");
        let unknown = house.reserve(Some("thing"), "a/*", false).await.unwrap_err();
        assert!(unknown.kind() == Kind::Invalid && unknown.message().contains("things or others"), "{unknown}");
        let told: Vec<_> =
            house.events("reservation").await.into_iter().map(|event| (event.action, event.subject)).collect();
        let expected = [
            ("reservation.remove", "reservation:*:acme/*"),
            ("reservation.add", "reservation:things:acme/*"),
            ("reservation.add", "reservation:*:acme/*"),
        ];
        assert_eq!(told, expected.map(|(action, subject)| (action.to_owned(), subject.to_owned())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hears_of_changes_knows_at_once() {
    for house in House::each().await {
        let reservations = Reservations::new(house.db.clone());
        let hearing = reservations.clone();
        let mut watcher = Watcher::new(house.db.clone());
        watcher.subscribe(Box::new(move |change| hearing.on_change(change)));
        watcher.look().await.unwrap();
        assert!(!reservations.is_reserved("things", "acme/lib").await.unwrap());
        house.reserve(None, "acme/*", false).await.unwrap();
        assert!(!reservations.is_reserved("things", "acme/lib").await.unwrap(), "it is remembered");
        watcher.look().await.unwrap();
        assert!(reservations.is_reserved("things", "acme/lib").await.unwrap(), "the clock stands still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn look_alikes_of_upstreams_are_named_and_taken_over() {
    for house in House::each().await {
        for (format, name, source) in [
            ("things", "acme/evil", Some(house.up.id)),
            ("things", "acme/worse", Some(house.up.id)),
            ("things", "acme/ours", None),
            ("things", "other/lib", Some(house.up.id)),
        ] {
            house.has(format, name, source).await.unwrap();
        }
        let refused = house.reserve(None, "acme/*", false).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        for part in ["acme/evil (from `up`)", "acme/worse", "--take-over"] {
            assert!(refused.message().contains(part), "{refused}");
        }
        assert!(!refused.message().contains("acme/ours") && !refused.message().contains("other/lib"), "{refused}");
        assert!(house.sources.reservations().await.unwrap().is_empty());
        assert_eq!(house.reserve(Some("others"), "acme/*", false).await.unwrap(), (true, Vec::new()));

        let (added, taken) = house.reserve(None, "acme/*", true).await.unwrap();
        assert_eq!((added, taken), (true, vec!["acme/evil".to_owned(), "acme/worse".to_owned()]));
        assert_eq!(house.names().await, ["acme/ours", "other/lib"]);
        let removed = house.events("package.remove").await;
        assert_eq!(removed.len(), 2);
        assert_eq!(removed[0].detail, json!({ "source": "up", "reserved": "acme/*" }));
        assert_eq!(
            house.events("reservation.add").await[0].detail,
            json!({ "taken_over": ["acme/evil", "acme/worse"] })
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_brings_meanwhile_is_not_brought() {
    for house in House::each().await {
        let reservations = Reservations::new(house.db.clone());
        let known = reservations.known().await.unwrap();
        let bringing = |name: &str| {
            let package = house.package("things", name, Some(house.up.id));
            Batch::new().with(known.unchanged()).with(packages::insert(&package))
        };
        house.db.commit(bringing("acme/first")).await.unwrap();
        // Another process reserves; this one has not heard of it.
        house.reserve(None, "other/*", false).await.unwrap();
        let late = house.db.commit(bringing("other/late")).await.unwrap_err();
        assert!(late.is_guard("reservations are as known"), "{late}");
        house.unreserve(None, "other/*").await.unwrap();
        let before = reservations.latest().await.unwrap();
        assert!(before.is_empty());
        house.reserve(None, "second/*", false).await.unwrap();
        assert!(house.db.commit(bringing("second/late")).await.is_err());

        // Both at once, many times: never is there a reserved name that an upstream has brought.
        let db = house.scratch.db(house.db.host()).await;
        for round in 0..20 {
            let name = format!("race{round}/lib");
            let bring = async {
                let known = Reservations::new(db.clone()).known().await.unwrap();
                let package = house.package("things", &name, Some(house.up.id));
                let batch = Batch::new().with(known.unchanged()).with(packages::insert(&package));
                known.covers("things", &name) || db.commit(batch).await.is_err()
            };
            let vendor = format!("race{round}/*");
            let (refused, reserved) = tokio::join!(bring, house.reserve(None, &vendor, false));
            assert_ne!(refused, reserved.is_err(), "one of them, in round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_offers_what_is_ours_is_noticed_once() {
    for house in House::each().await {
        let reservations = Reservations::new(house.db.clone());
        let offers = ["a/b", "acme/Secret", "made/here", "theirs/lib", "acme/public"];
        let note = || reservations.note_offered(&house.up, offers.into_iter());
        assert_eq!(note().await.unwrap(), 0, "nothing is ours yet");

        house.has("things", "made/here", None).await.unwrap();
        house.has("others", "a/b", None).await.unwrap();
        house.has("things", "theirs/lib", Some(house.up.id)).await.unwrap();
        house.reserve(Some("things"), "acme/*", false).await.unwrap();
        house.clock.advance(Duration::from_secs(1));
        assert_eq!(note().await.unwrap(), 3);
        assert_eq!(note().await.unwrap(), 0);
        let told = house.events("name.offered").await;
        let mut subjects: Vec<_> = told.iter().map(|event| event.subject.as_str()).collect();
        subjects.sort_unstable();
        assert_eq!(subjects, ["package:things:acme/public", "package:things:acme/secret", "package:things:made/here"]);
        let event = told.iter().find(|event| event.subject.ends_with("secret")).unwrap();
        assert_eq!(
            (event.actor.as_str(), &event.detail),
            ("larder", &json!({ "source": "up", "because": "the name is reserved" }))
        );

        // Asking again for everything is no reason to tell it again; and what is no longer ours is no longer shown.
        make_stale(&house.db, &Actor::command_line(), &house.up).await.unwrap();
        house.clock.advance(Duration::from_secs(2 * 86_400));
        assert_eq!(note().await.unwrap(), 0);
        let shown: Vec<_> = reservations.offered(&house.up).await.unwrap();
        assert_eq!(
            shown.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["acme/public", "acme/secret", "made/here"]
        );
        assert!(shown.iter().all(|(_, seen)| *seen == house.db.host().now()), "seen again today: {shown:?}");
        house.unreserve(Some("things"), "acme/*").await.unwrap();
        house.clock.advance(Duration::from_secs(1));
        let shown = reservations.offered(&house.up).await.unwrap();
        assert_eq!(shown.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["made/here"]);

        // Two replicas that see the same at once tell it once.
        house.has("things", "a/b", None).await.unwrap();
        let other = Reservations::new(house.scratch.db(house.db.host()).await);
        let (one, two) = tokio::join!(note(), other.note_offered(&house.up, offers.into_iter()));
        assert_eq!(one.unwrap() + two.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_offers_too_much_fills_nothing() {
    for house in House::each().await {
        house.reserve(None, "acme/*", false).await.unwrap();
        let reservations = Reservations::new(house.db.clone());
        let names: Vec<String> = (0..3_000).map(|at| format!("acme/{at}")).collect();
        let note = || reservations.note_offered(&house.up, names.iter().map(String::as_str));
        assert_eq!(note().await.unwrap(), 1_000);
        assert_eq!(note().await.unwrap(), 0);
        assert_eq!(house.events("name.offered").await.len(), 1_000);
    }
}
