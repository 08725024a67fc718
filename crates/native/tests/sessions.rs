//! Uploads that go on: on real databases, a real disk and (when `LARDER_TEST_S3_*` is set) a real S3 server, between replicas,
//! against each other, and through every failure that leaves them half done.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt, future::join_all};
use larder_blobs::{
    ABANDONED, Accounted, Blobs, Collected, GRACE, LEASE, Place, SESSION_IDLE, SessionError, SessionStatus,
    SessionWriter,
    store::{Checkpoint, Object, Store, Stored, Upload},
};
use larder_core::{Digest, Error, Host, Id, Kind, Result, Time, digest::Algorithm};
use larder_db::{Db, Statement, blobs::State, leases};
use larder_native::store::{Disk, S3Options, open_store};
use larder_testkit::{
    FakeClock, Scratch,
    faults::{Fault, Faulty},
    host::RepeatableRandom,
};

const PLACE: Place<'static> = Place { format: "test", package: "acme/app", principal: "token:ci" };
const BOTH: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

struct House {
    folder: Option<tempfile::TempDir>,
    store: Arc<dyn Store>,
    db: Db,
    database: Arc<Faulty>,
    host: Host,
    clock: FakeClock,
    blobs: Blobs,
    _scratch: Scratch,
}

impl House {
    /// Every database with every store that there is.
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for on_disk in [true, false] {
            for scratch in Scratch::each().await {
                let folder = on_disk.then(|| tempfile::tempdir().unwrap());
                let store = match &folder {
                    Some(folder) => Arc::new(Disk::open(folder.path()).unwrap()),
                    None => match bucket() {
                        Some(store) => store,
                        None => continue,
                    },
                };
                houses.push(Self::over(folder, store, scratch).await);
            }
        }
        houses
    }

    async fn over(folder: Option<tempfile::TempDir>, store: Arc<dyn Store>, scratch: Scratch) -> Self {
        let (host, clock) = larder_testkit::host::host();
        // Long before all that stores say of their objects, so that nothing counts as abandoned by accident.
        clock.set(Time::parse("2020-01-01").unwrap());
        let database = Faulty::over(scratch.executor().await);
        let db = Db::open(database.clone(), host.clone()).await.unwrap();
        let blobs = Blobs::new(db.clone(), store.clone(), host.clone());
        Self { folder, store, db, database, host, clock, blobs, _scratch: scratch }
    }

    /// The same blobs as another process has them.
    fn replica(&self) -> Blobs {
        static NUMBER: AtomicU64 = AtomicU64::new(100);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let host = Host { random: Arc::new(RepeatableRandom::new(number)), ..self.host.clone() };
        Blobs::new(self.db.clone(), self.store.clone(), host)
    }

    fn with_store(&self, store: Arc<dyn Store>) -> Blobs {
        Blobs::new(self.db.clone(), store, self.host.clone())
    }

    async fn open(&self, algorithm: Algorithm) -> Id {
        self.blobs.open_session(&PLACE, algorithm).await.unwrap()
    }

    async fn written(&self, id: Id) -> Option<u64> {
        self.blobs.session(id, &PLACE).await.unwrap().map(|status| status.written)
    }

    fn lease(&self, digest: &Digest) -> Vec<Statement> {
        vec![leases::put(PLACE.format, PLACE.package, digest, self.host.now().plus(LEASE))]
    }

    async fn is_leased(&self, digest: &Digest) -> bool {
        let seen = leases::seen(&self.db, PLACE.format, PLACE.package, digest).await.unwrap();
        seen.is_some_and(|seen| seen.leased_until.is_some())
    }

    async fn gc(&self) -> Collected {
        self.blobs.gc(false, &mut |one| assert_eq!(one.problem, None)).await.unwrap()
    }

    /// The objects in the store, and what the database says of their bytes, which agree.
    async fn objects(&self) -> usize {
        let Accounted { blobs, trash, uploads } = self.blobs.accounted().await.unwrap();
        let mut sizes: Vec<u64> =
            self.store.list(None, 100).await.unwrap().into_iter().map(|object| object.size).collect();
        if let Some(folder) = &self.folder {
            sizes = files(folder.path()).iter().map(|file| fs::metadata(file).unwrap().len()).collect();
            let sum: u64 = sizes.iter().sum();
            assert_eq!(blobs + trash + uploads, sum, "{blobs} of blobs, {trash} in the trash, {uploads} of uploads");
        }
        sizes.len()
    }

    /// Nothing but these blobs is left, and they are right.
    async fn keeps_only(&self, blobs: &[Digest]) {
        assert!(self.store.abandoned(Time::from_micros(i64::MAX), None, 10).await.unwrap().is_empty());
        assert_eq!(self.objects().await, blobs.len());
        let mut found = Vec::new();
        let checked = self.replica().fsck(&mut |step| found.push(step)).await.unwrap();
        assert_eq!((checked.blobs, checked.damaged, checked.notices), (blobs.len() as u64, 0, 0), "{found:?}");
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// A place of each caller's own in the bucket that `LARDER_TEST_S3_*` names, as `scripts/with-s3` does.
#[expect(clippy::disallowed_methods, reason = "scripts/with-s3 says in the environment where the server is")]
fn bucket() -> Option<Arc<dyn Store>> {
    static PLACES: AtomicU64 = AtomicU64::new(0);
    let of = |name: &str| std::env::var(format!("LARDER_TEST_S3_{name}")).ok();
    let Some(endpoint) = of("ENDPOINT") else {
        eprintln!("SKIPPED: no S3 server; run it as scripts/with-s3 cargo test");
        return None;
    };
    let options = S3Options {
        endpoint: Some(endpoint),
        region: of("REGION"),
        access_key: of("ACCESS_KEY"),
        secret_key: of("SECRET_KEY"),
        path_style: true,
    };
    let place = PLACES.fetch_add(1, Ordering::Relaxed);
    let url = format!("s3://{}/sessions-{}-{place}", of("BUCKET").unwrap(), std::process::id());
    Some(open_store(&url, options).unwrap())
}

/// Different bytes for each seed.
fn bytes(seed: u8, size: usize) -> Bytes {
    (0..size).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
}

async fn write(blobs: &Blobs, id: Id, bytes: &Bytes) -> SessionWriter {
    let mut writer = blobs.write_session(id, &PLACE, None).await.unwrap();
    for chunk in bytes.chunks(700_000) {
        writer.write(bytes.slice_ref(chunk)).await.unwrap();
    }
    writer
}

async fn read(blobs: &Blobs, digest: &Digest) -> Vec<u8> {
    let stream = blobs.open(digest, None).await.unwrap().stream;
    stream.try_fold(Vec::new(), |all, chunk| async move { Ok([all, chunk.to_vec()].concat()) }).await.unwrap()
}

/// What happens beside is waited for, but not for ever.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), looking).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_on_any_replica() {
    let content = bytes(1, 13_000_000);
    for house in House::each().await {
        let mut all = Vec::new();
        for (algorithm, end) in BOTH.into_iter().zip([12_999_999, 13_000_000]) {
            let id = house.open(algorithm).await;
            let mut at = 0;
            for next in [5, 5, 3_000_000, 12_000_000, 12_000_001] {
                let replica = house.replica();
                let writer = write(&replica, id, &content.slice(at..next)).await;
                assert_eq!(writer.written(), next as u64);
                assert_eq!(writer.pause().await.unwrap(), next as u64);
                assert_eq!(house.written(id).await, Some(next as u64));
                at = next;
            }
            let wrong = house.replica().write_session(id, &PLACE, Some(7)).await.err().unwrap();
            assert!(matches!(wrong, SessionError::Offset { written: 12_000_001 }), "{wrong}");
            let digest = Digest::of_as(algorithm, &content.slice(..end));
            let right = house.replica().write_session(id, &PLACE, Some(at as u64)).await.unwrap();
            right.pause().await.unwrap();
            let writer = write(&house.replica(), id, &content.slice(at..end)).await;
            let stored = writer.finish(digest, house.lease(&digest)).await.unwrap();
            assert_eq!((stored.digest, stored.size), (digest, end as u64));
            assert!(house.is_leased(&digest).await);
            assert_eq!(house.written(id).await, None);
            assert!(read(&house.replica(), &digest).await == content[..end]);
            all.push(digest);
        }
        house.keeps_only(&all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_empty_ones_too() {
    for house in House::each().await {
        let mut all = Vec::new();
        for content in [Bytes::new(), bytes(2, 1), bytes(2, 1000)] {
            for algorithm in BOTH {
                let digest = Digest::of_as(algorithm, &content);
                let id = house.open(algorithm).await;
                let writer = write(&house.blobs, id, &content).await;
                assert_eq!(writer.pause().await.unwrap(), content.len() as u64);
                write(&house.replica(), id, &Bytes::new()).await.finish(digest, Vec::new()).await.unwrap();
                assert!(read(&house.blobs, &digest).await == content);
                let mut whole = house.blobs.begin_as(algorithm).await.unwrap();
                whole.write(content.clone()).await.unwrap();
                let again = whole.finish_with(Some(digest), None, |_| house.lease(&digest)).await.unwrap();
                assert_eq!((again.digest, again.sha1.as_str()), (digest, ""));
                assert!(house.is_leased(&digest).await);
                all.push(digest);
            }
        }
        house.keeps_only(&all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_upload_of_who_began_it() {
    for house in House::each().await {
        let id = house.open(Algorithm::Sha256).await;
        let status = SessionStatus { written: 0, algorithm: Algorithm::Sha256 };
        assert_eq!(house.blobs.session(id, &PLACE).await.unwrap(), Some(status));
        let others = [
            Place { principal: "token:other", ..PLACE },
            Place { package: "acme/other", ..PLACE },
            Place { format: "other", ..PLACE },
        ];
        for other in &others {
            assert_eq!(house.blobs.session(id, other).await.unwrap(), None);
            let refused = house.blobs.write_session(id, other, None).await.err().unwrap();
            assert!(matches!(refused, SessionError::Unknown), "{refused}");
            assert!(!house.blobs.cancel_session(id, other).await.unwrap());
        }
        write(&house.blobs, id, &bytes(3, 9_000_000)).await.pause().await.unwrap();
        assert!(house.blobs.cancel_session(id, &PLACE).await.unwrap());
        assert!(!house.blobs.cancel_session(id, &PLACE).await.unwrap());
        assert_eq!(house.written(id).await, None);
        house.keeps_only(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_connection_broke_is_kept() {
    let content = bytes(4, 10_000_000);
    for house in House::each().await {
        let id = house.open(Algorithm::Sha256).await;
        drop(write(&house.blobs, id, &content.slice(..9_000_000)).await);
        until("the writer is paused beside", async || house.written(id).await == Some(9_000_000)).await;
        house.objects().await;
        let clock = house.clock.clone();
        // Perhaps the claim is let go only now.
        let waiting = tokio::spawn(async move {
            loop {
                clock.advance(Duration::from_millis(250));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let digest = Digest::of(&content);
        let writer = write(&house.replica(), id, &content.slice(9_000_000..)).await;
        waiting.abort();
        writer.finish(digest, Vec::new()).await.unwrap();
        house.keeps_only(&[digest]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writes_at_a_time() {
    let content = bytes(5, 9_500_000);
    for house in House::each().await {
        let id = house.open(Algorithm::Sha256).await;
        write(&house.blobs, id, &content.slice(..9_000_000)).await.pause().await.unwrap();
        let mut first = write(&house.blobs, id, &content.slice(9_000_000..9_100_000)).await;
        let replica = house.replica();
        let second = tokio::spawn(async move { replica.write_session(id, &PLACE, None).await.err().unwrap() });
        while !second.is_finished() {
            house.clock.advance(Duration::from_secs(3));
            first.write(Bytes::from_static(b"x")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let busy = second.await.unwrap();
        assert!(matches!(busy, SessionError::Busy { written: 9_000_000.. }), "{busy}");

        // The first one says nothing for too long.
        first.write(Bytes::from_static(b"wrong")).await.unwrap();
        house.clock.advance(Duration::from_secs(11));
        let at = usize::try_from(house.written(id).await.unwrap()).unwrap();
        let prefix = [&content[..at.min(9_100_000)], "x".repeat(at.saturating_sub(9_100_000)).as_bytes()].concat();
        let rest = bytes(6, 400_000);
        let mut second = house.replica().write_session(id, &PLACE, Some(at as u64)).await.unwrap();
        second.write(rest.clone()).await.unwrap();
        let late = first.write(bytes(7, 300_000)).await.unwrap_err();
        assert_eq!(late.kind(), Kind::Conflict, "{late}");
        drop(first);
        let whole = [prefix, rest.to_vec()].concat();
        let digest = Digest::of(&whole);
        second.finish(digest, Vec::new()).await.unwrap();
        assert!(read(&house.replica(), &digest).await == whole);
        until("the first one has let go of its file", async || {
            house.store.abandoned(Time::from_micros(i64::MAX), None, 10).await.unwrap().is_empty()
        })
        .await;
        house.keeps_only(&[digest]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_over_can_neither_finish_nor_harm() {
    let content = bytes(8, 8_800_000);
    for house in House::each().await {
        let id = house.open(Algorithm::Sha256).await;
        write(&house.blobs, id, &content.slice(..8_500_000)).await.pause().await.unwrap();
        let first = write(&house.blobs, id, &content.slice(8_500_000..)).await;
        let hangs = write_later(&house, id).await;
        let second = write(&house.replica(), id, &content.slice(8_500_000..)).await;
        let digest = Digest::of(&content);
        assert_eq!(first.finish(digest, house.lease(&digest)).await.unwrap_err().kind(), Kind::Conflict);
        assert!(!house.is_leased(&digest).await);
        assert_eq!(hangs.pause().await.unwrap_err().kind(), Kind::Conflict);
        second.finish(digest, Vec::new()).await.unwrap();
        house.keeps_only(&[digest]).await;
    }
}

/// A writer whose claim lapses although it has written.
async fn write_later(house: &House, id: Id) -> SessionWriter {
    house.clock.advance(Duration::from_secs(11));
    let writer = write(&house.replica(), id, &bytes(9, 200_000)).await;
    house.clock.advance(Duration::from_secs(11));
    writer
}

#[tokio::test(flavor = "multi_thread")]
async fn another_digest_ends_it_and_leaves_nothing() {
    for house in House::each().await {
        for size in [1000, 9_000_000] {
            for (begun, asked) in [(0, 0), (0, 1), (1, 0)] {
                for pauses in [true, false] {
                    let id = house.open(BOTH[begun]).await;
                    let mut writer = write(&house.blobs, id, &bytes(10, size)).await;
                    if pauses {
                        writer.pause().await.unwrap();
                        writer = write(&house.replica(), id, &Bytes::new()).await;
                    }
                    let wrong = Digest::of_as(BOTH[asked], b"something else");
                    let error = writer.finish(wrong, house.lease(&wrong)).await.unwrap_err();
                    assert_eq!(error.kind(), Kind::Invalid);
                    assert!(error.message().contains(&wrong.to_string()), "{error}");
                    assert_eq!(house.written(id).await, None);
                    assert!(!house.is_leased(&wrong).await);
                    until("nothing is left", async || {
                        house.store.abandoned(Time::from_micros(i64::MAX), None, 10).await.unwrap().is_empty()
                    })
                    .await;
                    house.keeps_only(&[]).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_whose_hash_is_not_known_are_read_back() {
    let forget = || Statement::write("update uploads set hash = null", []);
    for house in House::each().await {
        let mut all = Vec::new();
        for (seed, size) in [(11, 1000), (12, 9_000_000)] {
            let content = bytes(seed, size);
            for asked in BOTH {
                let id = house.open(Algorithm::Sha256).await;
                write(&house.blobs, id, &content.slice(..900)).await.pause().await.unwrap();
                // As another replica finds it that cannot go on with the hash.
                house.db.commit(forget().into()).await.unwrap();
                let digest = Digest::of_as(asked, &content);
                write(&house.replica(), id, &content.slice(900..)).await.finish(digest, Vec::new()).await.unwrap();
                assert!(read(&house.replica(), &digest).await == content);
                all.push(digest);
            }
            let id = house.open(Algorithm::Sha256).await;
            write(&house.blobs, id, &content).await.pause().await.unwrap();
            house.db.commit(forget().into()).await.unwrap();
            // A blob with that digest is here: that alone must not be enough.
            let writer = write(&house.replica(), id, &Bytes::from_static(b"more")).await;
            assert_eq!(writer.finish(all[0], Vec::new()).await.unwrap_err().kind(), Kind::Invalid);
        }
        house.keeps_only(&all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_at_once_are_kept_once() {
    for house in House::each().await {
        for content in [bytes(13, 50_000), bytes(14, 9_000_000)] {
            let digest = Digest::of(&content);
            let mut writers = Vec::new();
            for _ in 0..6 {
                let id = house.open(Algorithm::Sha256).await;
                writers.push(write(&house.replica(), id, &content).await);
            }
            for done in join_all(writers.into_iter().map(|writer| writer.finish(digest, house.lease(&digest)))).await {
                done.unwrap();
            }
            assert!(read(&house.replica(), &digest).await == content);
        }
        house.keeps_only(&[Digest::of(&bytes(13, 50_000)), Digest::of(&bytes(14, 9_000_000))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_in_time_keeps_it() {
    let content = bytes(15, 9_000_000);
    for house in House::each().await {
        let (kept, left) = (house.open(Algorithm::Sha256).await, house.open(Algorithm::Sha256).await);
        write(&house.blobs, kept, &content).await.pause().await.unwrap();
        write(&house.blobs, left, &content).await.pause().await.unwrap();
        house.clock.advance(SESSION_IDLE / 2);
        write(&house.blobs, kept, &Bytes::new()).await.pause().await.unwrap();
        house.clock.advance(SESSION_IDLE / 2 + Duration::from_secs(1));
        let mut would = Vec::new();
        house.blobs.gc(true, &mut |one| would.push(one)).await.unwrap();
        assert_eq!(would.len(), 1, "{would:?}");
        assert_eq!(would[0].name, left.to_string());
        assert_eq!(house.blobs.sweep_sessions().await.unwrap(), 1);
        assert_eq!((house.written(left).await, house.written(kept).await), (None, Some(9_000_000)));
        // However old its objects are: the row is what keeps them.
        let old = house.replica().with_abandoned(Duration::ZERO).with_session_idle(ABANDONED * 400 * 365);
        house.clock.set(Time::parse("2100-01-01").unwrap());
        assert_eq!(old.gc(false, &mut |one| panic!("{one:?}")).await.unwrap(), Collected::default());
        let digest = Digest::of(&content);
        write(&house.replica(), kept, &Bytes::new()).await.finish(digest, Vec::new()).await.unwrap();
        house.keeps_only(&[digest]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_never_takes_what_is_being_finished() {
    for house in House::each().await {
        let content = bytes(16, 100_000);
        let digest = Digest::of(&content);
        for _ in 0..15 {
            house.clock.advance(LEASE * 2);
            let id = house.open(Algorithm::Sha256).await;
            let writer = write(&house.replica(), id, &content).await;
            let collecting = house.blobs.clone();
            let collecting = tokio::spawn(async move { collecting.gc(false, &mut |_| {}).await.unwrap() });
            writer.finish(digest, house.lease(&digest)).await.unwrap();
            collecting.await.unwrap();
            assert!(house.is_leased(&digest).await);
            assert!(read(&house.replica(), &digest).await == content);
        }
        house.clock.advance(GRACE);
        house.gc().await;
        house.keeps_only(&[digest]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_loses_no_bytes_and_invents_none() {
    let content = bytes(17, 9_000_000);
    let digest = Digest::of(&content);
    for house in House::each().await {
        // Away when the writer pauses: the row tells of what was before, and that is still there.
        let id = house.open(Algorithm::Sha256).await;
        write(&house.blobs, id, &content.slice(..8_500_000)).await.pause().await.unwrap();
        let writer = write(&house.blobs, id, &content.slice(8_500_000..)).await;
        house.database.set(Fault::Away);
        assert_eq!(writer.pause().await.unwrap_err().kind(), Kind::Unavailable);
        house.database.set(Fault::None);
        house.clock.advance(Duration::from_secs(11));
        assert_eq!(house.written(id).await, Some(8_500_000));
        // Its answer is lost when the writer finishes: all of it is true, or nothing.
        let writer = write(&house.replica(), id, &content.slice(8_500_000..)).await;
        let before = house.database.batches();
        let lease = house.lease(&digest);
        let finishing = tokio::spawn(async move { writer.finish(digest, lease).await });
        until("the claim was renewed", async || house.database.batches() > before).await;
        house.database.set(Fault::AnswerLost);
        let finished = finishing.await.unwrap();
        house.database.set(Fault::None);
        assert_eq!(finished.unwrap_err().kind(), Kind::Unavailable);
        house.clock.advance(Duration::from_secs(11));
        assert!(house.is_leased(&digest).await);
        assert!(house.blobs.lease(&digest, Vec::new()).await.unwrap());
        assert!(read(&house.replica(), &digest).await == content);
        assert_eq!(house.written(id).await, None);
        // The end of the pause that failed lies there until it counts as left behind.
        house.clock.set(Time::parse("2100-01-01").unwrap());
        house.blobs.lease(&digest, Vec::new()).await.unwrap();
        house.gc().await;
        house.keeps_only(&[digest]).await;

        // Collected, and nobody heard of it: the bytes are in the trash, and go from there.
        house.clock.advance(LEASE * 2);
        house.database.set(Fault::AnswerLost);
        house.blobs.gc(false, &mut |_| {}).await.unwrap();
        house.database.set(Fault::None);
        assert!(house.blobs.stat(&digest).await.unwrap().is_none());
        house.objects().await;
        house.clock.advance(GRACE);
        assert_eq!(house.gc().await.trash, 1);
        house.keeps_only(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_says_so_and_the_upload_goes_on_later() {
    let content = bytes(18, 9_000_000);
    let digest = Digest::of(&content);
    for house in House::each().await {
        let full = Arc::new(AtomicBool::new(false));
        let blobs = house.with_store(Arc::new(Filling { inner: house.store.clone(), full: full.clone() }));
        let id = house.open(Algorithm::Sha256).await;
        write(&blobs, id, &content.slice(..8_500_000)).await.pause().await.unwrap();
        // In the middle of a write.
        let mut writer = write(&blobs, id, &content.slice(8_500_000..8_600_000)).await;
        full.store(true, Ordering::SeqCst);
        assert_eq!(writer.write(content.slice(8_600_000..)).await.unwrap_err().kind(), Kind::Full);
        assert_eq!(writer.pause().await.unwrap(), 8_500_000, "what was safe stays safe");
        // While pausing, and at the end.
        full.store(false, Ordering::SeqCst);
        let writer = write(&blobs, id, &content.slice(8_500_000..)).await;
        full.store(true, Ordering::SeqCst);
        assert_eq!(writer.pause().await.unwrap_err().kind(), Kind::Full);
        full.store(false, Ordering::SeqCst);
        let writer = write(&blobs, id, &content.slice(8_500_000..)).await;
        full.store(true, Ordering::SeqCst);
        assert_eq!(writer.finish(digest, house.lease(&digest)).await.unwrap_err().kind(), Kind::Full);
        assert!(house.blobs.stat(&digest).await.unwrap().is_none());
        full.store(false, Ordering::SeqCst);
        assert_eq!(house.written(id).await, Some(8_500_000));
        write(&blobs, id, &content.slice(8_500_000..)).await.finish(digest, Vec::new()).await.unwrap();
        assert!(read(&house.replica(), &digest).await == content);
        house.keeps_only(&[digest]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ones_are_made_safe_on_the_way() {
    let piece = bytes(19, 16 << 20);
    for house in House::each().await {
        let id = house.open(Algorithm::Sha512).await;
        let mut writer = house.blobs.write_session(id, &PLACE, None).await.unwrap();
        for _ in 0..6 {
            writer.write(piece.clone()).await.unwrap();
        }
        let safe = house.written(id).await.unwrap();
        assert!(safe >= 64 << 20, "{safe}");
        // As a kill leaves it.
        std::mem::forget(writer);
        house.clock.advance(Duration::from_secs(11));
        let replica = house.replica();
        let mut writer = replica.write_session(id, &PLACE, Some(safe)).await.unwrap();
        let whole = piece.repeat(6);
        let rest = Bytes::copy_from_slice(&whole[usize::try_from(safe).unwrap()..]);
        writer.write(rest).await.unwrap();
        let digest = Digest::of_as(Algorithm::Sha512, &whole);
        writer.finish(digest, Vec::new()).await.unwrap();
        assert_eq!(house.blobs.stat(&digest).await.unwrap().unwrap().size, whole.len() as u64);
        let checked = house.replica().fsck(&mut |_| {}).await.unwrap();
        assert_eq!((checked.blobs, checked.damaged), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_given_only_for_bytes_that_are_there() {
    for house in House::each().await {
        let content = bytes(20, 5000);
        let digest = Digest::of(&content);
        assert!(!house.blobs.lease(&digest, house.lease(&digest)).await.unwrap());
        assert!(!house.is_leased(&digest).await);
        let mut writer = house.blobs.begin_as(Algorithm::Sha256).await.unwrap();
        writer.write(content.clone()).await.unwrap();
        writer.finish().await.unwrap();
        house.clock.advance(Duration::from_secs(60));
        assert!(house.blobs.lease(&digest, house.lease(&digest)).await.unwrap());
        assert!(house.is_leased(&digest).await);
        let row = house.blobs.stat(&digest).await.unwrap().unwrap();
        assert_eq!(row.lease_until, house.host.now().plus(LEASE));

        // What is to become true with it, and cannot: then neither does.
        let never = larder_db::blobs::is_live(&Digest::of(b"nobody"));
        let other = bytes(21, 5000);
        let stored = house.store.list(None, 100).await.unwrap().len();
        let mut writer = house.blobs.begin_as(Algorithm::Sha256).await.unwrap();
        writer.write(other.clone()).await.unwrap();
        assert!(writer.finish_with(None, None, |_| vec![never.clone()]).await.is_err());
        assert_eq!(
            house.store.list(None, 100).await.unwrap().len(),
            stored,
            "who tries again and again fills no store"
        );
        assert!(house.blobs.stat(&Digest::of(&other)).await.unwrap().is_none());
        assert!(house.blobs.lease(&digest, vec![never]).await.is_err());

        house.store.delete(&row.location).await.unwrap();
        assert!(!house.blobs.lease(&digest, Vec::new()).await.unwrap());
        assert_eq!(house.blobs.stat(&digest).await.unwrap().unwrap().state, State::Missing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_bytes_are_lost_is_over() {
    for house in House::each().await {
        let id = house.open(Algorithm::Sha256).await;
        write(&house.blobs, id, &bytes(22, 1000)).await.pause().await.unwrap();
        for object in house.store.list(None, 10).await.unwrap() {
            house.store.delete(&object.location).await.unwrap();
        }
        for upload in house.store.abandoned(Time::from_micros(i64::MAX), None, 10).await.unwrap() {
            house.store.delete(&upload.location).await.unwrap();
        }
        let lost = house.replica().write_session(id, &PLACE, None).await.err().unwrap();
        assert!(matches!(lost, SessionError::Unknown), "{lost}");
        assert_eq!(house.written(id).await, None);
        house.keeps_only(&[]).await;
    }
}

/// A store that is full when a test says so: then nothing can be written, and what is there can be read and deleted.
struct Filling {
    inner: Arc<dyn Store>,
    full: Arc<AtomicBool>,
}

impl Filling {
    fn wrap(&self, inner: Box<dyn Upload>) -> Box<dyn Upload> {
        Box::new(FillingUpload { inner, full: self.full.clone() })
    }
}

#[async_trait]
impl Store for Filling {
    async fn begin(&self) -> Result<Box<dyn Upload>> {
        Ok(self.wrap(self.inner.begin().await?))
    }

    async fn resume(&self, state: &str) -> Result<Box<dyn Upload>> {
        Ok(self.wrap(self.inner.resume(state).await?))
    }

    async fn get(&self, location: &str, range: Range<u64>) -> Result<Object> {
        self.inner.get(location, range).await
    }

    async fn size(&self, location: &str) -> Result<Option<u64>> {
        self.inner.size(location).await
    }

    async fn delete(&self, location: &str) -> Result<()> {
        self.inner.delete(location).await
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        self.inner.list(after, limit).await
    }

    async fn abandoned(&self, before: Time, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        self.inner.abandoned(before, after, limit).await
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
}

struct FillingUpload {
    inner: Box<dyn Upload>,
    full: Arc<AtomicBool>,
}

impl FillingUpload {
    fn room(&self) -> Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Full, "the test has filled the store"));
        }
        Ok(())
    }
}

#[async_trait]
impl Upload for FillingUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.room()?;
        self.inner.write(bytes).await
    }

    fn unsent(&self) -> u64 {
        self.inner.unsent()
    }

    async fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.room()?;
        self.inner.checkpoint().await
    }

    async fn commit(self: Box<Self>, key: &str) -> Result<String> {
        self.room()?;
        self.inner.commit(key).await
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}
