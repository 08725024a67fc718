//! Blobs on real databases and a real disk: what is put can be had, what is damaged is found and healed, what nobody needs
//! goes, and whatever fails on the way leaves nothing that claims to be there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    TryStreamExt,
    future::{join, join_all},
};
use larder_blobs::{
    ABANDONED, Accounted, Blobs, Collected, Difference, Finding, GRACE, Garbage, LEASE, Sort, Step, StoredBlob,
    store::{Checkpoint, Object, Store, Stored, Upload},
};
use larder_core::{Digest, Error, Host, Kind, Result, Time};
use larder_db::{
    Batch, Db,
    blobs::State,
    events,
    packages::{self, Artifact, Package, Version},
};
use larder_native::store::{Disk, S3Options, open_store};
use larder_testkit::{FakeClock, Scratch};

/// Larger than what is kept in memory.
const LARGE: usize = 3 << 20;

/// A database, a folder, and the blobs over both.
struct House {
    folder: tempfile::TempDir,
    store: Arc<Disk>,
    db: Db,
    host: Host,
    clock: FakeClock,
    blobs: Blobs,
    _scratch: Scratch,
}

impl House {
    async fn each() -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let store = Arc::new(Disk::open(folder.path()).unwrap());
            let db = scratch.db(&host).await;
            let blobs = Blobs::new(db.clone(), store.clone(), host.clone());
            houses.push(Self { folder, store, db, host, clock, blobs, _scratch: scratch });
        }
        houses
    }

    /// The same blobs as another process sees them: nothing of them is in memory.
    fn again(&self) -> Blobs {
        self.over(self.store.clone())
    }

    fn over(&self, store: Arc<dyn Store>) -> Blobs {
        Blobs::new(self.db.clone(), store, self.host.clone())
    }

    /// The one file that has the bytes of a blob.
    async fn file(&self, blob: &StoredBlob) -> PathBuf {
        self.folder.path().join(self.blobs.stat(&blob.digest).await.unwrap().unwrap().location)
    }

    async fn state(&self, blob: &StoredBlob) -> Option<State> {
        self.blobs.stat(&blob.digest).await.unwrap().map(|row| row.state)
    }

    /// Lets an artifact of a new package refer to a blob, and gives the size that it says.
    async fn refer(&self, blob: &StoredBlob, size: u64) {
        let now = self.host.now();
        let (package, version) = (self.host.new_id(), self.host.new_id());
        let batch = Batch::new()
            .with(packages::insert(&Package {
                id: package,
                format: "test".into(),
                name: format!("acme/{package}"),
                source_id: None,
                summary: "{}".into(),
                created_at: now,
                changed_at: now,
            }))
            .with(packages::insert_version(
                package,
                &Version {
                    id: version,
                    version: "1.0.0.0".into(),
                    display: "1.0.0".into(),
                    reference: "c0ffee".into(),
                    stable: true,
                    listed: true,
                    origin: "refs/tags/1.0.0".into(),
                    folder: String::new(),
                    released_at: now,
                    metadata: "{}".into(),
                    sha1: None,
                },
                now,
            ))
            .with(larder_db::blobs::is_live(&blob.digest))
            .with(packages::insert_artifact(
                self.host.new_id(),
                version,
                "dist.zip",
                &Artifact { digest: blob.digest, size, sha1: blob.sha1.clone() },
                now,
            ));
        self.db.commit(batch).await.unwrap();
    }

    async fn gc(&self) -> (Collected, Vec<Garbage>) {
        let mut garbage = Vec::new();
        let sums = self.blobs.gc(false, &mut |one| garbage.push(one)).await.unwrap();
        (sums, garbage)
    }

    async fn fsck(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut progress = None;
        let sums = self
            .blobs
            .fsck(&mut |step| match step {
                Step::Found(finding) => found.push(finding),
                Step::Progress(now) => progress = Some(now),
            })
            .await
            .unwrap();
        assert_eq!(sums.damaged + sums.notices, found.len() as u64);
        if let Some(progress) = progress {
            assert_eq!(progress.blobs, progress.of_blobs);
        }
        found
    }

    async fn differences(&self) -> Vec<Difference> {
        self.fsck().await.into_iter().map(|finding| finding.difference).collect()
    }

    async fn events(&self) -> Vec<String> {
        let all = events::list(&self.db, &events::Wanted::default(), None, 100).await.unwrap();
        all.into_iter().map(|event| event.action).collect()
    }

    /// What the database says of all bytes is what is on the disk.
    async fn adds_up(&self) {
        let Accounted { blobs, trash, uploads } = self.blobs.accounted().await.unwrap();
        let on_disk: u64 = files(self.folder.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert_eq!(blobs + trash + uploads, on_disk, "{blobs} of blobs, {trash} in the trash, {uploads} of uploads");
    }

    /// Far after everything that the files say of themselves.
    fn go_to_the_future(&self) {
        self.clock.set(Time::parse("2100-01-01").unwrap());
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

/// Different bytes for each seed.
fn bytes(seed: u8, size: usize) -> Bytes {
    (0..size).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
}

async fn put(blobs: &Blobs, bytes: &Bytes) -> Result<StoredBlob> {
    let mut writer = blobs.begin().await?;
    for chunk in bytes.chunks(300_000) {
        writer.write(bytes.slice_ref(chunk)).await?;
    }
    writer.finish().await
}

async fn read(blobs: &Blobs, digest: &Digest, range: Option<Range<u64>>) -> Result<Vec<u8>> {
    let open = blobs.open(digest, range).await?;
    let streamed = open.stream.try_fold(Vec::new(), |all, chunk| async move { Ok([all, chunk.to_vec()].concat()) });
    let streamed = streamed.await?;
    if let Some(whole) = open.whole {
        assert!(whole == streamed, "in memory or streamed, it is the same");
    }
    Ok(streamed)
}

async fn kind_of_read(blobs: &Blobs, blob: &StoredBlob) -> Kind {
    read(blobs, &blob.digest, None).await.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_can_be_had() {
    for house in House::each().await {
        for size in [0, 1, 300_000, 2 << 20, LARGE] {
            let content = bytes(1, size);
            let blob = put(&house.blobs, &content).await.unwrap();
            assert_eq!((blob.digest, blob.size), (Digest::of(&content), size as u64));
            for blobs in [&house.again(), &house.blobs, &house.blobs] {
                assert!(read(blobs, &blob.digest, None).await.unwrap() == content);
                for range in [0..0, 0..size / 2, size / 2..size, size..size] {
                    let part = Some(range.start as u64..range.end as u64);
                    assert!(read(blobs, &blob.digest, part).await.unwrap() == content[range]);
                }
                assert_eq!(blobs.open(&blob.digest, None).await.unwrap().size, size as u64);
                for wrong in [0..size as u64 + 1, size as u64 + 1..size as u64 + 1] {
                    assert_eq!(blobs.open(&blob.digest, Some(wrong)).await.err().unwrap().kind(), Kind::Invalid);
                }
            }
        }
        let abc = put(&house.blobs, &Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(abc.sha1, "a9993e364706816aba3e25717850c26c9cd0d89d");
        let nobody = StoredBlob { digest: Digest::of(b"never put"), ..abc };
        assert_eq!(kind_of_read(&house.blobs, &nobody).await, Kind::NotFound);
        assert_eq!(house.differences().await, []);
        assert!(house.events().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_are_kept_once_and_renew_the_lease() {
    for house in House::each().await {
        let content = bytes(2, 500_000);
        let first = put(&house.blobs, &content).await.unwrap();
        let lease = house.blobs.stat(&first.digest).await.unwrap().unwrap().lease_until;
        assert_eq!(lease, house.host.now().plus(LEASE));
        house.clock.advance(Duration::from_secs(1_800));
        assert_eq!(put(&house.blobs, &content).await.unwrap(), first);
        let renewed = house.blobs.stat(&first.digest).await.unwrap().unwrap().lease_until;
        assert_eq!(renewed, house.host.now().plus(LEASE));
        // A clock that jumps back takes nothing from a lease.
        house.clock.set(Time::from_seconds(1_000));
        put(&house.blobs, &content).await.unwrap();
        assert_eq!(house.blobs.stat(&first.digest).await.unwrap().unwrap().lease_until, renewed);
        assert_eq!(files(house.folder.path()).len(), 1);

        let other = bytes(3, LARGE);
        let (one, two) = join(put(&house.blobs, &other), put(&house.again(), &other)).await;
        assert_eq!(one.unwrap(), two.unwrap());
        assert_eq!(files(house.folder.path()).len(), 2, "the slower one has taken its bytes back");
        assert_eq!(house.differences().await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finished_leaves_nothing() {
    for house in House::each().await {
        let content = bytes(4, LARGE);
        let begun = async || {
            let mut writer = house.blobs.begin().await.unwrap();
            writer.write(content.clone()).await.unwrap();
            writer
        };
        begun().await.abort().await;
        let wrong_size = begun().await.finish_expecting(None, Some(5)).await.unwrap_err();
        assert!(wrong_size.message().contains("5 bytes were promised"), "{wrong_size}");
        let wrong_digest = begun().await.finish_expecting(Some(Digest::of(b"x")), None).await.unwrap_err();
        assert_eq!(wrong_digest.kind(), Kind::Invalid);
        assert_eq!(files(house.folder.path()), Vec::<PathBuf>::new());
        assert!(house.blobs.stat(&Digest::of(&content)).await.unwrap().is_none());

        // As a process leaves it that is killed in the middle.
        std::mem::forget(begun().await);
        assert!(house.again().stat(&Digest::of(&content)).await.unwrap().is_none());
        assert_eq!(house.differences().await, []);
        assert_eq!(house.gc().await.0, Collected::default(), "it may still be going on");
        house.go_to_the_future();
        let (sums, garbage) = house.gc().await;
        assert_eq!((sums.uploads, sums.failed), (1, 0));
        assert!(garbage[0].reason.contains("never ended"), "{garbage:?}");
        assert_eq!(files(house.folder.path()), Vec::<PathBuf>::new());

        let kept = begun().await.finish_expecting(Some(Digest::of(&content)), Some(LARGE as u64)).await.unwrap();
        assert_eq!(house.state(&kept).await, Some(State::Live));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_noticed_by_readers_and_healed_by_a_put() {
    let truncate = |file: &Path| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(1000).unwrap();
    let remove = |file: &Path| fs::remove_file(file).unwrap();
    let lengthen = |file: &Path| fs::write(file, vec![0; LARGE + 1]).unwrap();
    let damages: [&dyn Fn(&Path); 3] = [&truncate, &remove, &lengthen];
    for house in House::each().await {
        for (seed, damage) in (10..).zip(damages) {
            for size in [200_000, LARGE] {
                let content = bytes(seed, size);
                let blob = put(&house.blobs, &content).await.unwrap();
                let file = house.file(&blob).await;
                damage(&file);
                let blobs = house.again();
                assert_eq!(kind_of_read(&blobs, &blob).await, Kind::Damaged);
                assert_eq!(house.state(&blob).await, Some(State::Missing));
                assert_eq!(kind_of_read(&blobs, &blob).await, Kind::Damaged, "and it stays so");
                assert_eq!(put(&blobs, &content).await.unwrap(), blob);
                assert!(read(&blobs, &blob.digest, None).await.unwrap() == content);
                assert!(!file.exists(), "the damaged bytes are gone");
            }
        }
        assert_eq!(house.events().await, ["blob.damaged"; 6]);
        // A put looks for itself: nobody has to read a damaged blob first.
        let content = bytes(20, 1000);
        let blob = put(&house.blobs, &content).await.unwrap();
        remove(&house.file(&blob).await);
        put(&house.blobs, &content).await.unwrap();
        assert!(read(&house.again(), &blob.digest, None).await.unwrap() == content);
        assert_eq!(house.differences().await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_shrinks_while_it_is_read_ends_with_an_error() {
    for house in House::each().await {
        let blob = put(&house.blobs, &bytes(5, LARGE)).await.unwrap();
        let open = house.blobs.open(&blob.digest, None).await.unwrap();
        let file = fs::OpenOptions::new().write(true).open(house.file(&blob).await).unwrap();
        file.set_len(1 << 20).unwrap();
        let read: Result<Vec<Bytes>> = open.stream.try_collect().await;
        assert_eq!(read.unwrap_err().kind(), Kind::Damaged);
        assert_eq!(house.state(&blob).await, Some(State::Missing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_come_from_memory_and_are_loaded_once() {
    for house in House::each().await {
        let blob = put(&house.blobs, &bytes(6, 1 << 20)).await.unwrap();
        let counting = Arc::new(Unsteady::new(house.store.clone(), usize::MAX));
        let blobs = house.over(counting.clone());
        for opened in join_all((0..20).map(|_| blobs.open(&blob.digest, None))).await {
            assert_eq!(opened.unwrap().whole.unwrap().len(), 1 << 20);
        }
        assert_eq!(counting.calls(), 1, "twenty readers, one look at the disk");
        // Bytes of another digest are never kept in memory.
        fs::write(house.file(&blob).await, bytes(7, 1 << 20)).unwrap();
        assert!(read(&blobs, &blob.digest, None).await.is_ok());
        assert_eq!(kind_of_read(&house.again(), &blob).await, Kind::Damaged);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_explains_every_difference() {
    for house in House::each().await {
        let good = put(&house.blobs, &bytes(30, LARGE)).await.unwrap();
        house.refer(&good, good.size).await;
        let rotten = put(&house.blobs, &bytes(31, LARGE)).await.unwrap();
        house.refer(&rotten, rotten.size).await;
        let short = put(&house.blobs, &bytes(32, 1000)).await.unwrap();
        let gone = put(&house.blobs, &bytes(33, 1000)).await.unwrap();
        assert_eq!(house.differences().await, []);

        fs::write(house.file(&rotten).await, bytes(34, LARGE)).unwrap();
        fs::write(house.file(&short).await, "short").unwrap();
        let (place, aside) = (house.file(&gone).await, house.folder.path().join("aside"));
        fs::rename(&place, &aside).unwrap();
        house.refer(&good, 77).await;
        let found = house.fsck().await;
        let of = |difference| found.iter().find(|finding| finding.difference == difference).unwrap();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(of(Difference::WrongDigest).name, rotten.digest.to_string());
        assert!(of(Difference::WrongDigest).advice.contains("dist.zip of test acme/"), "{found:?}");
        assert!(of(Difference::WrongSize).found.contains("5 bytes instead of 1000"), "{found:?}");
        assert!(of(Difference::MissingBytes).advice.contains("no artifact refers to it"), "{found:?}");
        assert!(of(Difference::Unfounded).found.contains("says 77 bytes"), "{found:?}");
        for damaged in [&rotten, &short, &gone] {
            assert_eq!(house.state(damaged).await, Some(State::Missing));
        }
        assert_eq!(house.fsck().await.len(), 4, "what is marked already is told again");

        fs::rename(&aside, &place).unwrap();
        put(&house.blobs, &bytes(31, LARGE)).await.unwrap();
        let found = house.differences().await;
        for expected in [Difference::Restored, Difference::WrongSize, Difference::Unfounded] {
            assert!(found.contains(&expected), "{found:?}");
        }
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(read(&house.again(), &gone.digest, None).await.is_ok());
        assert!(read(&house.again(), &rotten.digest, None).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_takes_what_nobody_needs_and_nothing_else() {
    for house in House::each().await {
        let used = put(&house.blobs, &bytes(40, 1000)).await.unwrap();
        house.refer(&used, used.size).await;
        let unused = put(&house.blobs, &bytes(41, LARGE)).await.unwrap();
        let small = put(&house.blobs, &bytes(42, 10)).await.unwrap();
        read(&house.blobs, &small.digest, None).await.unwrap();
        assert_eq!(house.gc().await.0, Collected::default(), "all leases are running");

        house.clock.advance(LEASE + Duration::from_secs(1));
        let mut would = Vec::new();
        house.blobs.gc(true, &mut |one| would.push(one)).await.unwrap();
        assert_eq!(house.state(&unused).await, Some(State::Live));
        let mut reading = house.blobs.open(&unused.digest, None).await.unwrap().stream;
        let (sums, garbage) = house.gc().await;
        assert_eq!(garbage, would);
        assert_eq!(sums, Collected { blobs: 2, bytes: unused.size + 10, ..Collected::default() });
        house.adds_up().await;
        assert!(garbage.iter().all(|one| one.sort == Sort::Blob && one.reason.contains("no artifact")), "{garbage:?}");
        for collected in [&unused, &small] {
            assert_eq!(house.state(collected).await, None);
            assert_eq!(kind_of_read(&house.blobs, collected).await, Kind::NotFound);
        }
        assert_eq!(house.blobs.accounted().await.unwrap().trash, unused.size + 10);
        assert_eq!(house.gc().await.0, Collected::default(), "somebody may still be reading");
        while reading.try_next().await.unwrap().is_some() {}
        house.clock.advance(GRACE);
        assert_eq!(house.differences().await, []);
        let (sums, garbage) = house.gc().await;
        assert_eq!(sums, Collected { trash: 2, ..Collected::default() });
        assert!(garbage.iter().all(|one| one.sort == Sort::Trash && one.reason.contains("sha256:")), "{garbage:?}");
        assert!(read(&house.blobs, &used.digest, None).await.is_ok());
        assert_eq!(files(house.folder.path()).len(), 1);
        house.adds_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_go_after_a_day_and_foreign_files_never() {
    for house in House::each().await {
        let blob = put(&house.blobs, &bytes(43, 1000)).await.unwrap();
        house.refer(&blob, blob.size).await;
        let file = house.file(&blob).await;
        // Bytes that were committed just before a crash, and a file of an operator.
        let stray = file.with_file_name(format!("{}-0123456789abcdef", blob.digest.hex()));
        fs::copy(&file, &stray).unwrap();
        fs::write(house.folder.path().join("blobs/notes.txt"), "mine").unwrap();
        house.clock.set(house.store.list(None, 1).await.unwrap()[0].modified);
        assert_eq!(house.gc().await.0, Collected::default());
        assert_eq!(house.differences().await, []);

        house.clock.advance(ABANDONED + Duration::from_secs(60));
        let found = house.differences().await;
        assert_eq!(found, [Difference::Foreign, Difference::Stray]);
        assert!(!found.iter().any(|difference| difference.is_damage()));
        let (sums, garbage) = house.gc().await;
        assert_eq!((sums.strays, sums.bytes), (1, 1000), "{garbage:?}");
        assert!(!stray.exists());
        assert_eq!(house.differences().await, [Difference::Foreign]);
        assert!(read(&house.again(), &blob.digest, None).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_races_a_collection_keeps_its_bytes() {
    for house in House::each().await {
        let content = bytes(50, 100_000);
        let mut collected = 0;
        // Long before the files were written, or their uploads would soon count as abandoned.
        house.clock.set(Time::parse("2020-01-01").unwrap());
        for _ in 0..60 {
            house.clock.advance(LEASE * 2);
            let (stored, (sums, _)) = join(put(&house.blobs, &content), house.gc()).await;
            collected += sums.blobs;
            let stored = stored.unwrap();
            assert!(read(&house.again(), &stored.digest, None).await.unwrap() == content);
            let lease = house.blobs.stat(&stored.digest).await.unwrap().unwrap().lease_until;
            assert_eq!(lease, house.host.now().plus(LEASE));
        }
        eprintln!("{collected} of 60 races were won by the collection");
        house.adds_up().await;
        house.clock.advance(GRACE);
        house.gc().await;
        assert_eq!(house.differences().await, []);
        assert_eq!(files(house.folder.path()).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_leaves_nothing_that_claims_to_be_there() {
    for house in House::each().await {
        let (mut kept, mut failed, mut problems) = (0, 0, 0);
        for every in [2, 3, 5, 31] {
            let blobs = house.over(Arc::new(Unsteady::new(house.store.clone(), every)));
            for seed in 0..30 {
                let content = bytes(seed % 20, if seed % 2 == 0 { 1000 } else { LARGE });
                match put(&blobs, &content).await {
                    Ok(blob) => {
                        kept += 1;
                        assert!(read(&house.again(), &blob.digest, None).await.unwrap() == content);
                    }
                    Err(error) => {
                        failed += 1;
                        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
                    }
                }
                // A reader that meets a failure says so, and does not call the blob damaged.
                let read = read(&blobs, &Digest::of(&content), None).await;
                assert!(!matches!(read, Err(error) if error.kind() == Kind::Damaged));
            }
            assert_eq!(house.differences().await, []);
            house.go_to_the_future();
            // What cannot be taken away is told and passed over; a list that cannot be had ends the run.
            let run = blobs.gc(false, &mut |one| problems += u64::from(one.problem.is_some())).await;
            assert!(run.is_ok() || every < 31);
            house.gc().await;
            house.clock.advance(GRACE);
            house.gc().await;
            assert_eq!(files(house.folder.path()), Vec::<PathBuf>::new());
            house.clock.set(larder_testkit::host::START);
        }
        assert!(kept > 20 && failed > 20 && problems > 0, "{kept} kept, {failed} failed, {problems} problems");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_in_a_bucket_are_kept_found_and_collected_alike() {
    let Some(store) = bucket() else { return };
    let [house] = &House::each().await[..1] else { unreachable!("SQLite is always there") };
    let blobs = house.over(store.clone());
    let (small, large) = (bytes(60, 1000), bytes(61, 20 << 20));
    for content in [&small, &large] {
        let blob = put(&blobs, content).await.unwrap();
        house.refer(&blob, blob.size).await;
        let location = blobs.stat(&blob.digest).await.unwrap().unwrap().location;
        assert_eq!(location.starts_with("large/"), content.len() > 8 << 20);
        assert!(read(&house.over(store.clone()), &blob.digest, None).await.unwrap() == *content);
        store.delete(&location).await.unwrap();
        assert_eq!(kind_of_read(&house.over(store.clone()), &blob).await, Kind::Damaged);
        put(&blobs, content).await.unwrap();
        assert!(read(&house.over(store.clone()), &blob.digest, Some(5..900)).await.unwrap() == content[5..900]);
    }
    let (one, two) = join(put(&blobs, &bytes(62, 9 << 20)), put(&blobs, &bytes(62, 9 << 20))).await;
    assert_eq!(one.unwrap(), two.unwrap());
    let unused = put(&blobs, &bytes(63, 1000)).await.unwrap();
    assert_eq!(store.list(None, 100).await.unwrap().len(), 4);
    let mut abandoned = blobs.begin().await.unwrap();
    abandoned.write(large.clone()).await.unwrap();
    std::mem::forget(abandoned);

    house.go_to_the_future();
    let mut found = Vec::new();
    let checked = blobs.fsck(&mut |step| found.extend(matches!(step, Step::Found(_)).then_some(step))).await.unwrap();
    assert_eq!((found, checked.blobs), (Vec::new(), 4));
    let sums = blobs.gc(false, &mut |_| {}).await.unwrap();
    assert_eq!((sums.blobs, sums.uploads, sums.strays, sums.failed), (2, 1, 0, 0));
    assert!(blobs.stat(&unused.digest).await.unwrap().is_none());
    house.clock.advance(GRACE);
    assert_eq!(blobs.gc(false, &mut |_| {}).await.unwrap(), Collected { trash: 2, ..Collected::default() });
    assert_eq!(store.list(None, 100).await.unwrap().len(), 2);
    assert!(read(&house.over(store.clone()), &Digest::of(&large), None).await.unwrap() == large);
}

/// A place of this run's own in the bucket that `LARDER_TEST_S3_*` names, as `scripts/with-s3` does.
#[expect(clippy::disallowed_methods, reason = "scripts/with-s3 says in the environment where the server is")]
fn bucket() -> Option<Arc<dyn Store>> {
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
    Some(open_store(&format!("s3://{}/blobs-{}", of("BUCKET").unwrap(), std::process::id()), options).unwrap())
}

/// A store of which every n-th call fails, and that counts its calls.
struct Unsteady {
    inner: Arc<Disk>,
    shared: Arc<Counter>,
}

struct Counter {
    every: usize,
    calls: AtomicUsize,
}

impl Counter {
    fn call(&self) -> Result<()> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call.is_multiple_of(self.every) {
            return Err(Error::new(Kind::Unavailable, "the store fails now and then"));
        }
        Ok(())
    }
}

impl Unsteady {
    fn new(inner: Arc<Disk>, every: usize) -> Self {
        Self { inner, shared: Arc::new(Counter { every, calls: AtomicUsize::new(0) }) }
    }

    fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Unsteady {
    async fn begin(&self) -> Result<Box<dyn Upload>> {
        self.shared.call()?;
        Ok(Box::new(UnsteadyUpload { inner: self.inner.begin().await?, shared: self.shared.clone() }))
    }

    async fn resume(&self, state: &str) -> Result<Box<dyn Upload>> {
        self.shared.call()?;
        Ok(Box::new(UnsteadyUpload { inner: self.inner.resume(state).await?, shared: self.shared.clone() }))
    }

    async fn get(&self, location: &str, range: Range<u64>) -> Result<Object> {
        self.shared.call()?;
        self.inner.get(location, range).await
    }

    async fn size(&self, location: &str) -> Result<Option<u64>> {
        self.shared.call()?;
        self.inner.size(location).await
    }

    async fn delete(&self, location: &str) -> Result<()> {
        self.shared.call()?;
        self.inner.delete(location).await
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        self.shared.call()?;
        self.inner.list(after, limit).await
    }

    async fn abandoned(&self, before: Time, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        self.shared.call()?;
        self.inner.abandoned(before, after, limit).await
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
}

struct UnsteadyUpload {
    inner: Box<dyn Upload>,
    shared: Arc<Counter>,
}

#[async_trait]
impl Upload for UnsteadyUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.shared.call()?;
        self.inner.write(bytes).await
    }

    fn unsent(&self) -> u64 {
        self.inner.unsent()
    }

    async fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.shared.call()?;
        self.inner.checkpoint().await
    }

    async fn commit(self: Box<Self>, key: &str) -> Result<String> {
        let location = self.inner.commit(key).await?;
        // The worst moment: all is done, and nobody hears of it.
        self.shared.call()?;
        Ok(location)
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}
