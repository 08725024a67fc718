//! One contract for every store, told as stories, and run on a disk and (when `LARDER_TEST_S3_*` is set, as
//! `scripts/with-s3` does) on an S3 server. What only a disk can suffer comes after.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use larder_blobs::store::{Object, Store, Tail, Upload};
use larder_core::{Kind, Result, Time};
use larder_native::store::{Disk, S3Options, open_store};

const LATER: Time = Time::from_micros(i64::MAX);

/// Bytes that differ from each other, so that a wrong offset shows.
fn noise(size: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

async fn read(object: Object) -> Result<Vec<u8>> {
    object
        .stream
        .try_fold(Vec::new(), |mut all, chunk| async move { Ok([std::mem::take(&mut all), chunk.to_vec()].concat()) })
        .await
}

async fn put(store: &dyn Store, key: &str, bytes: &Bytes) -> String {
    let mut upload = store.begin().await.unwrap();
    for chunk in bytes.chunks(100_000) {
        upload.write(bytes.slice_ref(chunk)).await.unwrap();
    }
    upload.commit(key).await.unwrap()
}

async fn contract(store: &dyn Store) {
    store.check().await.unwrap();
    what_is_committed_can_be_read_in_parts(store).await;
    nothing_is_visible_before_the_commit(store).await;
    large_objects_come_back_whole(store).await;
    lists_have_pages(store).await;
    abandoned_uploads_are_found_and_taken_away(store).await;
    impossible_names_are_refused(store).await;
    an_upload_goes_on_wherever_it_stopped(store).await;
    an_upload_goes_on_from_the_state_that_is_asked_for(store).await;
    an_upload_that_is_gone_does_not_go_on(store).await;
    assert!(store.abandoned(LATER, None, 100).await.unwrap().is_empty(), "a story left an upload behind");
}

async fn what_is_committed_can_be_read_in_parts(store: &dyn Store) {
    let bytes = noise(700_001);
    for (key, bytes) in [("blobs/t/a", &bytes), ("blobs/t/one", &bytes.slice(..1)), ("blobs/t/none", &Bytes::new())] {
        let location = put(store, key, bytes).await;
        assert_eq!(location, key, "a small object goes where it is told");
        let size = bytes.len() as u64;
        assert_eq!(store.size(key).await.unwrap(), Some(size));
        for range in
            [0..size, 0..0, 0..1, 1..size.max(1), 262_143..262_145, 700_000..700_001, 5..9_000_000, 700_001..700_005]
        {
            let object = store.get(key, range.clone()).await.unwrap();
            assert_eq!(object.size, size, "the size is that of the whole object");
            let (start, end) = (range.start.min(size), range.end.min(size));
            let part = &bytes[usize::try_from(start).unwrap()..usize::try_from(end.max(start)).unwrap()];
            assert!(read(object).await.unwrap() == part, "{key} {range:?}");
        }
    }
    let other = noise(9);
    put(store, "blobs/t/a", &other).await;
    assert_eq!(read(store.get("blobs/t/a", 0..9).await.unwrap()).await.unwrap(), other, "a key can be written again");
    for key in ["blobs/t/a", "blobs/t/one", "blobs/t/none", "blobs/t/none"] {
        store.delete(key).await.unwrap();
        assert_eq!(store.size(key).await.unwrap(), None);
        for range in [0..1, 0..0] {
            assert_eq!(store.get(key, range).await.err().unwrap().kind(), Kind::NotFound);
        }
    }
}

async fn nothing_is_visible_before_the_commit(store: &dyn Store) {
    let mut upload = store.begin().await.unwrap();
    upload.write(noise(600_000)).await.unwrap();
    assert!(store.list(None, 10).await.unwrap().is_empty());
    upload.abort().await;
    assert!(store.list(None, 10).await.unwrap().is_empty());
    assert!(store.abandoned(LATER, None, 10).await.unwrap().is_empty());

    let mut upload = store.begin().await.unwrap();
    upload.write(noise(20 << 20)).await.unwrap();
    // A second write waits for the first: from here on something is there that can be taken back.
    upload.write(noise(20 << 20)).await.unwrap();
    drop(upload);
    until("a dropped upload is taken back", async || store.abandoned(LATER, None, 10).await.unwrap().is_empty()).await;
    assert!(store.list(None, 10).await.unwrap().is_empty());
}

/// What happens on another thread, or at a server, is waited for, but not for ever.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), looking).await.is_ok(), "{what}");
}

async fn large_objects_come_back_whole(store: &dyn Store) {
    // Around the size at which an S3 store begins to send parts, and well above it.
    for size in [(8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20, 21_000_003] {
        let bytes = noise(size);
        let location = put(store, "blobs/t/large", &bytes).await;
        let size = size as u64;
        assert_eq!(store.size(&location).await.unwrap(), Some(size));
        assert!(read(store.get(&location, 0..size).await.unwrap()).await.unwrap() == bytes, "{size}");
        let tail = store.get(&location, size - 3..size).await.unwrap();
        assert_eq!(read(tail).await.unwrap(), bytes[bytes.len() - 3..]);
        let listed = store.list(None, 10).await.unwrap();
        assert_eq!(
            listed.iter().map(|object| (&object.location, object.size)).collect::<Vec<_>>(),
            [(&location, size)]
        );
        assert!(store.abandoned(LATER, None, 10).await.unwrap().is_empty());
        store.delete(&location).await.unwrap();
        assert!(store.list(None, 10).await.unwrap().is_empty());
    }
}

async fn lists_have_pages(store: &dyn Store) {
    // `-` sorts before `/`, and `/` before letters and digits: an order by folders is not one by bytes.
    let keys = ["a-1", "a/1", "a/2", "a/b-c", "a/b/c", "a0", "b/1"].map(|key| format!("blobs/{key}"));
    for key in keys.iter().rev() {
        put(store, key, &noise(10)).await;
    }
    for limit in 1..=keys.len() + 1 {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(after.as_deref(), limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.location.clone());
            listed.extend(page.into_iter().map(|object| object.location));
        }
        listed.sort_unstable();
        assert_eq!(listed, keys, "pages of {limit}");
    }
    for key in keys {
        store.delete(&key).await.unwrap();
    }
}

async fn abandoned_uploads_are_found_and_taken_away(store: &dyn Store) {
    let mut upload = store.begin().await.unwrap();
    upload.write(noise(20 << 20)).await.unwrap();
    // As a process leaves it that is killed.
    std::mem::forget(upload);
    until("it is found", async || store.abandoned(LATER, None, 10).await.unwrap().len() == 1).await;
    assert!(store.abandoned(Time::from_seconds(1), None, 10).await.unwrap().is_empty(), "it is younger than that");
    assert!(store.list(None, 10).await.unwrap().is_empty());
    let [found] = &store.abandoned(LATER, None, 10).await.unwrap()[..] else { panic!("one upload") };
    store.delete(&found.location).await.unwrap();
    store.delete(&found.location).await.unwrap();
    assert!(store.abandoned(LATER, None, 10).await.unwrap().is_empty());
}

async fn begun(store: &dyn Store, bytes: &Bytes) -> Box<dyn Upload> {
    let mut upload = store.begin().await.unwrap();
    write(upload.as_mut(), bytes).await;
    upload
}

async fn write(upload: &mut dyn Upload, bytes: &Bytes) {
    for chunk in bytes.chunks(3_000_001) {
        upload.write(bytes.slice_ref(chunk)).await.unwrap();
    }
}

/// Commits, and proves that exactly `bytes` are there, and nothing else any more.
async fn commits(store: &dyn Store, upload: Box<dyn Upload>, bytes: &[u8]) -> String {
    let location = upload.commit("blobs/t/resumed").await.unwrap();
    let object = store.get(&location, 0..bytes.len() as u64).await.unwrap();
    assert_eq!(object.size, bytes.len() as u64);
    assert!(read(object).await.unwrap() == bytes, "{} bytes", bytes.len());
    let listed: Vec<String> = store.list(None, 10).await.unwrap().into_iter().map(|one| one.location).collect();
    assert_eq!(listed, std::slice::from_ref(&location));
    until("nothing is left of it", async || store.abandoned(LATER, None, 10).await.unwrap().is_empty()).await;
    location
}

async fn forget(store: &dyn Store, tail: Option<Tail>) {
    if let Some(tail) = tail {
        store.delete(&tail.location).await.unwrap();
    }
}

async fn an_upload_goes_on_wherever_it_stopped(store: &dyn Store) {
    let bytes = noise(20_000_003);
    // Around the size of a part, and of two.
    for cut in [0, 1, 5 << 20, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20, (16 << 20) + 1, bytes.len()] {
        for end in [cut, cut + 1, bytes.len()] {
            let end = end.min(bytes.len());
            let mut upload = begun(store, &bytes.slice(..cut)).await;
            let checkpoint = upload.checkpoint().await.unwrap();
            assert_eq!(upload.unsent(), 0);
            drop(upload);
            let abandoned = store.abandoned(LATER, None, 10).await.unwrap();
            assert_eq!(abandoned.first().map(|one| &one.location), checkpoint.staged.as_ref());
            let mut upload = store.resume(&checkpoint.state).await.unwrap();
            write(upload.as_mut(), &bytes.slice(cut..end)).await;
            let location = commits(store, upload, &bytes[..end]).await;
            store.delete(&location).await.unwrap();
        }
    }
    // In many steps, each in another process, and some of them with several checkpoints.
    let mut upload = store.begin().await.unwrap();
    let (mut at, mut tail) = (0, None);
    for step in [1, 2_000_000, 7_000_000, 0, 5, 8 << 20, 1_000_000] {
        write(upload.as_mut(), &bytes.slice(at..at + step)).await;
        at += step;
        let checkpoint = upload.checkpoint().await.unwrap();
        assert_eq!(upload.checkpoint().await.unwrap(), checkpoint, "nothing new, nothing to do");
        if tail != checkpoint.tail {
            forget(store, tail).await;
        }
        tail = checkpoint.tail;
        if !at.is_multiple_of(2) {
            drop(upload);
            upload = store.resume(&checkpoint.state).await.unwrap();
        }
    }
    let location = commits(store, upload, &bytes[..at]).await;
    store.delete(&location).await.unwrap();
}

async fn an_upload_goes_on_from_the_state_that_is_asked_for(store: &dyn Store) {
    let (bytes, other) = (noise(18_000_000), Bytes::from(vec![7; 9_000_000]));
    for cut in [3_000_000, 9_000_000] {
        // What came after the older checkpoint is forgotten, whether a later one knew of it or not.
        let mut upload = begun(store, &bytes.slice(..cut)).await;
        let old = upload.checkpoint().await.unwrap();
        write(upload.as_mut(), &other).await;
        let new = upload.checkpoint().await.unwrap();
        write(upload.as_mut(), &other).await;
        drop(upload);
        // Twice from one state: the first goes on wrongly, and goes away.
        let mut wrong = store.resume(&old.state).await.unwrap();
        write(wrong.as_mut(), &other).await;
        let astray = wrong.checkpoint().await.unwrap();
        forget(store, astray.tail).await;
        drop(wrong);
        let mut upload = store.resume(&old.state).await.unwrap();
        write(upload.as_mut(), &bytes.slice(cut..)).await;
        forget(store, new.tail).await;
        // A multipart upload that the older state did not know of is another one.
        for staged in
            [new.staged, astray.staged].into_iter().flatten().filter(|staged| Some(staged) != old.staged.as_ref())
        {
            store.delete(&staged).await.unwrap();
        }
        let location = commits(store, upload, &bytes).await;
        store.delete(&location).await.unwrap();
    }
    // Somebody still writes to it: what is too small to be shared is not.
    let mut hangs = begun(store, &bytes.slice(..1000)).await;
    let checkpoint = hangs.checkpoint().await.unwrap();
    let mut upload = store.resume(&checkpoint.state).await.unwrap();
    write(hangs.as_mut(), &other.slice(..500_000)).await;
    write(upload.as_mut(), &bytes.slice(1000..400_000)).await;
    drop(hangs);
    let location = upload.commit("blobs/t/taken-over").await.unwrap();
    assert!(read(store.get(&location, 0..400_000).await.unwrap()).await.unwrap() == bytes[..400_000]);
    store.delete(&location).await.unwrap();
    if let Some(staged) = checkpoint.staged {
        store.delete(&staged).await.unwrap();
    }
    forget(store, checkpoint.tail).await;
}

async fn an_upload_that_is_gone_does_not_go_on(store: &dyn Store) {
    let kind = async |state: &str| store.resume(state).await.err().map(|error| error.kind());
    for size in [1000, 9_000_000] {
        let mut upload = begun(store, &noise(size)).await;
        let checkpoint = upload.checkpoint().await.unwrap();
        write(upload.as_mut(), &noise(10)).await;
        upload.abort().await;
        assert_eq!(kind(&checkpoint.state).await, Some(Kind::NotFound));
        assert!(store.list(None, 10).await.unwrap().is_empty());

        let checkpoint = begun(store, &noise(size)).await.checkpoint().await.unwrap();
        let mut resumed = store.resume(&checkpoint.state).await.unwrap();
        write(resumed.as_mut(), &noise(10)).await;
        resumed.abort().await;
        assert_eq!(kind(&checkpoint.state).await, Some(Kind::NotFound));
        assert!(store.list(None, 10).await.unwrap().is_empty());
        assert!(store.abandoned(LATER, None, 10).await.unwrap().is_empty());
    }
    for wrong in ["", "{}{", "{\"staged\":\"../secret\"}"] {
        assert_eq!(kind(wrong).await, Some(Kind::NotFound), "{wrong}");
    }
}

async fn impossible_names_are_refused(store: &dyn Store) {
    for name in ["", "/etc/passwd", "blobs/../secret", "../blobs/a", "elsewhere/a", "blobs/.hidden", "blobs/a\0b"] {
        assert!(store.size(name).await.is_err(), "{name}");
        assert!(store.get(name, 0..1).await.is_err(), "{name}");
        assert!(store.delete(name).await.is_err(), "{name}");
        assert!(store.begin().await.unwrap().commit(name).await.is_err(), "{name}");
    }
    assert!(store.begin().await.unwrap().commit("uploads/a").await.is_err(), "nothing is committed as an upload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(&Disk::open(folder.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_keeps_the_contract() {
    let Some(store) = s3("contract") else { return };
    contract(store.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_says_what_is_wrong() {
    let Some((bucket, options)) = s3_options() else { return };
    let wrong_secret = S3Options { secret_key: Some("wrong".into()), ..options.clone() };
    let error = open_store(&format!("s3://{bucket}"), wrong_secret).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Upstream);
    assert!(error.message().contains("access key"), "{error}");
    let nobody = S3Options { endpoint: Some("http://127.0.0.1:9".into()), ..options.clone() };
    assert!(!format!("{nobody:?}").contains(&nobody.secret_key.clone().unwrap()));
    let error = open_store("s3://no-such-bucket-of-ours", options).unwrap().size("blobs/a").await;
    assert!(!matches!(error, Ok(Some(_))));
    let half = S3Options { access_key: Some("a".into()), ..S3Options::default() };
    assert!(open_store("s3://bucket", half).is_err());
}

fn s3(story: &str) -> Option<Arc<dyn Store>> {
    let (bucket, options) = s3_options()?;
    // The server is a new one for each run, and each story has its own place on it.
    Some(open_store(&format!("s3://{bucket}/{story}-{}", std::process::id()), options).unwrap())
}

#[expect(clippy::disallowed_methods, reason = "scripts/with-s3 says in the environment where the server is")]
fn s3_options() -> Option<(String, S3Options)> {
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
    Some((of("BUCKET").unwrap(), options))
}

#[tokio::test]
async fn only_the_owner_can_read_what_a_disk_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("made/by/us");
    let store = Disk::open(&root).unwrap();
    put(&store, "blobs/sha256/ab/x", &noise(5)).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for made in [folder.path().join("made"), root.clone(), root.join("uploads"), root.join("blobs/sha256/ab")] {
        assert_eq!(mode(&made), 0o700, "{}", made.display());
    }
    assert_eq!(mode(&root.join("blobs/sha256/ab/x")), 0o600);
}

#[tokio::test]
async fn what_is_not_a_plain_file_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    let store = Disk::open(folder.path().join("store")).unwrap();
    let blobs = folder.path().join("store/blobs");
    symlink("../../secret", blobs.join("link")).unwrap();
    symlink("../..", blobs.join("outside")).unwrap();
    fs::write(blobs.join(".hidden"), "x").unwrap();
    fs::create_dir(blobs.join("folder")).unwrap();
    assert_eq!(store.list(None, 10).await.unwrap(), []);
    for name in ["blobs/link", "blobs/folder"] {
        assert_eq!(store.size(name).await.unwrap(), None, "{name}");
        assert_eq!(store.get(name, 0..6).await.err().unwrap().kind(), Kind::NotFound, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_ends_early() {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    let bytes = noise(4 << 20);
    put(&store, "blobs/a", &bytes).await;
    let object = store.get("blobs/a", 0..4 << 20).await.unwrap();
    fs::OpenOptions::new().write(true).open(folder.path().join("blobs/a")).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(read(object).await.unwrap(), bytes[..1 << 20]);
}

#[test]
fn a_folder_that_cannot_be_made_says_why() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    let error = Disk::open(folder.path().join("file/store")).unwrap_err();
    assert!(error.message().contains("in the way"), "{error}");
    let error = Disk::open(folder.path().join("file")).unwrap_err();
    assert!(error.message().contains("file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_says_so_and_keeps_nothing_half() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mount) = SmallDisk::mount(folder.path()) else { return };
    let store = Disk::open(folder.path()).unwrap();
    put(&store, "blobs/a", &noise(300_000)).await;
    for size in [3 << 20, 10 << 20] {
        let mut upload = store.begin().await.unwrap();
        let written = upload.write(noise(size)).await;
        let error = match written {
            Ok(()) => upload.commit("blobs/b").await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), Kind::Full, "{error}");
        assert!(error.message().contains(folder.path().to_str().unwrap()), "{error}");
    }
    let listed = store.list(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|object| object.location.as_str()).collect::<Vec<_>>(), ["blobs/a"]);
    until("what was half written is gone", async || store.abandoned(LATER, None, 10).await.unwrap().is_empty()).await;
    put(&store, "blobs/b", &noise(1 << 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_writer_on_a_disk_never_reaches_what_was_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    let bytes = noise(5 << 20);
    let mut hangs = begun(&store, &bytes.slice(..1 << 20)).await;
    let checkpoint = hangs.checkpoint().await.unwrap();
    let mut upload = store.resume(&checkpoint.state).await.unwrap();
    let taken = upload.checkpoint().await.unwrap();
    assert_ne!(taken.staged, checkpoint.staged, "it is a copy");
    write(upload.as_mut(), &bytes.slice(1 << 20..)).await;
    let location = upload.commit("blobs/taken").await.unwrap();
    write(hangs.as_mut(), &Bytes::from(vec![7; 9 << 20])).await;
    hangs.checkpoint().await.unwrap();
    drop(hangs);
    assert!(read(store.get(&location, 0..9 << 20).await.unwrap()).await.unwrap() == bytes);
    // It is gone, as after a kill: then nobody has the file, and it needs no copy.
    let resumed = store.resume(&checkpoint.state).await.unwrap().checkpoint().await.unwrap();
    assert_eq!((resumed.state, &resumed.staged), (checkpoint.state.clone(), &checkpoint.staged));
    // Fewer bytes than the state says, or another start of the machine: they are not what they were.
    let file = folder.path().join(checkpoint.staged.unwrap());
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1000).unwrap();
    assert_eq!(store.resume(&checkpoint.state).await.err().unwrap().kind(), Kind::NotFound);
    let mut state: serde_json::Value = serde_json::from_str(&taken.state).unwrap();
    state["boot"] = "another".into();
    assert_eq!(store.resume(&state.to_string()).await.err().unwrap().kind(), Kind::NotFound);
}

/// A file system of 2 MiB, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "larder-test"]).arg(path).output();
        if mounted.is_ok_and(|mounted| mounted.status.success()) {
            return Some(Self(path));
        }
        eprintln!("SKIPPED: a full disk; this user may not mount one");
        None
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: a thread may still hold a file that is about to be deleted.
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}
