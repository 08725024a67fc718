//! Clients that go away, disks that are full, buckets that fail, bytes that are lost: the specified error, and a store in which
//! nothing is half there.

use std::{path::Path, process::Stdio, sync::Arc};

use http::StatusCode;
use larder_e2e::{
    Gate, Ground, Options, Server, Stored, not_tested,
    oci::{Ask, Blob, Manifest, Registry, Trouble, Way, code_of, location, with_digest},
    on_every_ground, setting, until, wire,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, process::Command};

use crate::{
    replicas::offset,
    soak::{impatient, settle},
};

on_every_ground!(
    whoever_goes_away_in_the_middle_goes_on_where_the_server_says,
    after_a_power_cut_an_upload_goes_on_where_the_server_says,
    bytes_that_are_lost_behind_the_servers_back_are_pushed_again,
    what_does_not_end_well_leaves_nothing_behind,
);

/// Sends the head of a PATCH and `sent` bytes of its body, and holds the connection.
async fn half(server: &Server, token: &str, at: &str, length: Option<usize>, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.expect("the server listens");
    let length = match length {
        Some(length) => format!("Content-Length: {length}"),
        None => "Transfer-Encoding: chunked".to_owned(),
    };
    let head = format!(
        "PATCH {at} HTTP/1.1\r\nHost: larder.test\r\nAuthorization: {}\r\n{length}\r\n\r\n",
        wire::basic("ci", token)
    );
    stream.write_all(head.as_bytes()).await.expect("a head is sent");
    if length.starts_with("Transfer") {
        stream.write_all(format!("{:x}\r\n", body.len()).as_bytes()).await.expect("a chunk begins");
    }
    stream.write_all(body).await.expect("a part of a body is sent");
    stream
}

async fn whoever_goes_away_in_the_middle_goes_on_where_the_server_says(ground: Ground) {
    let (server, token) = crate::registry(ground).await;
    let registry = Registry::new(&[server.address()], &token);
    let blob = Blob::noise(1, 12_000_000);
    let at = registry.begin("team/app").await.expect("an upload begins");
    let mut there = 0;
    for (sent, length) in [(1_000, Some(blob.bytes.len())), (9_500_000, None), (100_000, Some(2_000_000))] {
        let mut stream = half(&server, &token, &at, length, &blob.bytes[there..there + sent]).await;
        stream.shutdown().await.expect("a client can go away");
        drop(stream);
        there += sent;
        until("all that came is kept", || async {
            let status = registry.ask(Ask::get(&at)).await;
            assert_eq!(status.status, StatusCode::NO_CONTENT, "{}", status.text());
            (offset(status.header("range")) == there).then_some(())
        })
        .await;
    }
    let patched = registry.ask(Ask::patch(&at).chunk(there, blob.bytes.slice(there..))).await;
    assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.text());
    let done = registry.ask(Ask::put(with_digest(&location(&patched), &blob.digest))).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
    assert!(registry.ask(Ask::get(location(&done))).await.body == blob.bytes);
    server.fsck().await;
    server.close().await;
}

async fn after_a_power_cut_an_upload_goes_on_where_the_server_says(ground: Ground) {
    let mut server = Server::start(ground).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    let registry = Registry::new(&[server.address()], &token);
    let blob = Blob::noise(1, 25_000_000);
    let at = registry.begin("team/app").await.expect("an upload begins");
    let mut there = 0;
    for (whole, part) in [(50_000, 20_000), (9_000_000, 1_000_000), (100_000, 6_000_000)] {
        let chunk = blob.bytes.slice(there..there + whole);
        // The one that was killed may be believed to be writing for a while.
        until("the upload goes on", || async {
            let patched = registry.ask(Ask::patch(&at).chunk(there, chunk.clone())).await;
            let right = [StatusCode::ACCEPTED, StatusCode::RANGE_NOT_SATISFIABLE, StatusCode::CONFLICT];
            assert!(right.contains(&patched.status), "{} {}", patched.status, patched.text());
            (patched.status == StatusCode::ACCEPTED).then_some(())
        })
        .await;
        there += whole;
        let stream = half(&server, &token, &at, Some(blob.bytes.len()), &blob.bytes[there..there + part]).await;
        server.kill().await;
        drop(stream);
        server.resume().await;
        registry.lead_to(server.address());
        let status = registry.ask(Ask::get(&at)).await;
        assert_eq!(status.status, StatusCode::NO_CONTENT, "{}", status.text());
        let kept = offset(status.header("range"));
        assert!((there..=there + part).contains(&kept), "{kept} of {there}, which were acknowledged, and {part} more");
        there = kept;
    }
    let done = until("the upload ends", || async {
        let put = Ask::put(with_digest(&at, &blob.digest)).chunk(there, blob.bytes.slice(there..));
        let done = registry.ask(put).await;
        (done.status == StatusCode::CREATED).then_some(done)
    })
    .await;
    assert!(registry.ask(Ask::get(location(&done))).await.body == blob.bytes);
    server.fsck().await;
    server.close().await;
}

async fn bytes_that_are_lost_behind_the_servers_back_are_pushed_again(ground: Ground) {
    let options = Options { may_log_errors: true, ..Options::default() };
    let server = Server::start_with(&Arc::new(ground), options).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    let registry = Registry::new(&[server.address()], &token);
    let stored = Stored::of(&server);
    let [small, large, cut] = [(1, 50_000), (2, 9_000_001), (3, 9_000_002)].map(|(seed, size)| Blob::noise(seed, size));
    let image = Manifest::image("lost", &[small.clone(), large.clone(), cut.clone()]);
    registry.push("team/app", "1", &image).await.expect("an image is pushed");
    // Warm, so that only the bytes themselves can tell.
    registry.pull("team/app", "1").await.expect("it is pulled");
    for blob in [&small, &large] {
        stored.remove(&stored.object_of(blob).await.location).await;
    }
    stored.replace(&stored.object_of(&cut).await.location, &cut.bytes[..1_000]).await;
    for blob in [&small, &large, &cut] {
        assert!(
            !registry.has("team/app", &blob.digest).await.expect("there is an answer"),
            "a push must send it again"
        );
        let got = registry.ask(Ask::get(format!("/v2/team/app/blobs/{}", blob.digest))).await;
        assert_eq!((got.status, code_of(&got).as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"), "{}", got.text());
    }
    let said = server.larder(&["fsck"]).await.failed(1) + &server.larder(&["fsck"]).await.stdout;
    assert!(!said.is_empty());
    registry.push("team/app", "1", &image).await.expect("the next push heals it");
    assert_eq!(registry.pull("team/app", "1").await.expect("it is pulled"), image.digest());
    server.fsck().await;
    // The same with the manifest's own bytes.
    stored.remove(&stored.object_of(&image.blob).await.location).await;
    registry.push("team/app", "1", &image).await.expect("the next push heals it");
    let mut server = server;
    server.stop().await;
    server.resume().await;
    registry.lead_to(server.address());
    assert_eq!(registry.pull("team/app", "1").await.expect("it is pulled"), image.digest());
    server.fsck().await;
    server.close().await;
}

async fn what_does_not_end_well_leaves_nothing_behind(ground: Ground) {
    let server = Server::start_with(&Arc::new(ground), impatient()).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    let registry = Registry::new(&[server.address()], &token);
    for (seed, size) in [(1, 0), (2, 100_000), (3, 12_000_000)] {
        let wrong = Blob { digest: Blob::of("another").digest, bytes: Blob::noise(seed, size).bytes };
        for way in [Way::Streamed, Way::Chunked(3_000_000), Way::Put, Way::Post] {
            let trouble = registry.push_blob("team/app", &wrong, way).await.expect_err("its digest is another's");
            assert!(trouble.is("DIGEST_INVALID"), "{trouble}");
        }
        // One is cancelled, one is forgotten, one is cut off.
        for how in 0..3 {
            let at = registry.begin("team/app").await.expect("an upload begins");
            let patched = registry.ask(Ask::patch(&at).stream(wrong.bytes.clone())).await;
            assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.text());
            match how {
                0 => assert_eq!(registry.ask(Ask::delete(location(&patched))).await.status, StatusCode::NO_CONTENT),
                1 => {}
                _ => drop(half(&server, &token, &location(&patched), Some(size + 1), &wrong.bytes[..size / 2]).await),
            }
        }
    }
    let image = Manifest::image("incomplete", &[Blob::noise(9, 1_000)]);
    for blob in &image.blobs[1..] {
        registry.push_blob("team/app", blob, Way::Post).await.expect("a blob is pushed");
    }
    let trouble = registry.push_manifest("team/app", "1", &image).await.expect_err("its configuration is missing");
    assert!(trouble.is("MANIFEST_BLOB_UNKNOWN"), "{trouble}");
    settle(&server, true).await;
    server.fsck().await;
    server.close().await;
}

/// A file system of its own, of so many MB, which is gone with this.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, and a word about it, where nobody may mount anything.
    async fn mount(megabytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder.path());
        let status = mount.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if status.is_ok_and(|status| status.success()) {
            return Some(Self { folder });
        }
        not_tested("a full disk: only root can mount a small one");
        None
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there loses it when it ends.
        drop(std::process::Command::new("umount").arg("-l").arg(self.folder.path()).status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_pushes_serves_what_it_has_and_recovers() {
    let Some(disk) = SmallDisk::mount(64).await else { return };
    let options = Options { data: Some(disk.path().join("data")), may_log_errors: true, ..impatient() };
    let server = Server::start_with(&Arc::new(Ground::local()), options).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    let registry = Registry::new(&[server.address()], &token);
    let image = Manifest::image("before", &[Blob::noise(1, 1_000_000)]);
    registry.push("team/app", "1", &image).await.expect("an image is pushed");
    let large = Blob::noise(2, 100_000_000);
    for way in [Way::Streamed, Way::Put, Way::Post, Way::Chunked(20_000_000)] {
        let trouble = registry.push_blob("team/app", &large, way).await.expect_err("there is no room for it");
        match &trouble {
            Trouble::Said(_, answer) => {
                assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{way:?}: {trouble}");
                assert!(!code_of(answer).is_empty(), "{way:?}: {trouble}");
            }
            // A client that does not listen while it sends may only learn that nobody takes any more.
            Trouble::Cut(_) => {}
        }
        assert!(!registry.has("team/app", &large.digest).await.expect("there is an answer"), "{way:?}");
        assert_eq!(registry.pull("team/app", "1").await.expect("what was there is served"), image.digest());
        // What was refused does not keep the room that the next one needs.
        let fits = Blob::noise(3, 15_000_000);
        until("there is room again", || async {
            let pushed = registry.push_blob("team/app", &fits, Way::Streamed).await;
            pushed.ok()
        })
        .await;
        let status = registry.ask(Ask::delete(format!("/v2/team/app/blobs/{}", fits.digest))).await.status;
        assert_eq!(status, StatusCode::ACCEPTED);
        settle(&server, false).await;
    }
    // Somebody else takes all that is left, to the last byte.
    let greed = disk.path().join("greed");
    drop(std::fs::write(&greed, vec![1; 70 << 20]));
    let refused =
        registry.push_blob("team/app", &Blob::noise(4, 100_000), Way::Post).await.expect_err("the disk is full");
    let status = refused.answer().map(|answer| answer.status);
    assert!(status.is_none_or(|status| status.is_server_error()), "{refused}");
    assert_eq!(registry.pull("team/app", "1").await.expect("what was there is served"), image.digest());
    std::fs::remove_file(greed).expect("there is room again");
    let after = Manifest::image("after", &[Blob::noise(5, 1_000_000)]);
    until("it recovers", || async { registry.push("team/app", "2", &after).await.ok() }).await;
    assert_eq!(registry.pull("team/app", "2").await.expect("it is pulled"), after.digest());
    server.fsck().await;
    settle(&server, false).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_fails_every_third_time_loses_nothing() {
    let Some(ground) = Ground::shared().await else { return };
    let gate = Gate::open().await;
    let endpoint = setting("LARDER_TEST_S3_ENDPOINT").unwrap_or_default();
    gate.lead_to(endpoint.trim_start_matches("http://").parse().expect("the S3 server is on loopback"));
    let options = Options { may_log_errors: true, ..impatient() }.with("LARDER_S3_ENDPOINT", &gate.url());
    let server = Server::start_with(&Arc::new(ground), options).await;
    let token = server.token("ci", &["*:oci:*"]).await;
    let registry = Registry::new(&[server.address()], &token);
    gate.fail(3);
    let mut images = Vec::new();
    let mut refused = Vec::new();
    for number in 0..8 {
        let sizes = [10, 100_000, 6_000_000, 12_000_000];
        let layers = (number..).zip(sizes).take(2 + number % 3).map(|(seed, size)| Blob::noise(seed as u64 * 10, size));
        let layers: Vec<Blob> = layers.collect();
        let image = Manifest::image(&format!("image {number}"), &layers);
        let tag = format!("v{number}");
        // Docker tries five times.
        for attempt in 1.. {
            match registry.push("team/app", &tag, &image).await {
                Ok(()) => break,
                Err(trouble) => {
                    let status = trouble.answer().map(|answer| answer.status);
                    assert!(status.is_some_and(|status| status.is_server_error()), "{trouble}");
                    assert!(!code_of(trouble.answer().expect("it has a status")).is_empty(), "{trouble}");
                    refused.push(trouble.to_string());
                    assert!(attempt < 5, "five times: {refused:?}");
                }
            }
        }
        images.push((tag, image));
    }
    for (tag, image) in &images {
        until("it is pulled", || async {
            registry.pull("team/app", tag).await.ok().filter(|digest| digest == image.digest())
        })
        .await;
    }
    gate.fail(0);
    assert!(gate.seen().iter().any(|seen| seen.status == 500), "the bucket failed");
    for (tag, image) in &images {
        assert_eq!(registry.pull("team/app", tag).await.expect("it is pulled"), image.digest());
    }
    server.fsck().await;
    settle(&server, false).await;
    server.close().await;
}
