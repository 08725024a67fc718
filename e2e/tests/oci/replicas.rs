//! Two servers on one database and one bucket, and clients who never know which of them they speak to: each request goes to the
//! other one than the one before it.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header};
use larder_e2e::{
    Ground, Options, Server,
    oci::{Ask, Blob, Manifest, Registry, Way, location, with_digest},
    until,
    wait::within,
    wire,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::refusals::writing;

/// What is promised, with what a busy test machine adds.
const A_SECOND: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_one_upload_come_to_both() {
    let Some(Pair { one, two, both, .. }) = pair().await else { return };
    let kib = 1 << 10;
    for (seed, (size, chunk)) in (1..).zip([
        (1_000 * kib, 100 * kib),
        (700, 100),
        (20_000 * kib, 5_000 * kib),
        (40_000 * kib + 1, 8_200 * kib),
        (12_000 * kib, 12_000 * kib),
    ]) {
        let blob = Blob::noise(seed, size);
        let mut at = both.begin("team/app").await.expect("an upload begins");
        for begin in (0..size).step_by(chunk) {
            let end = size.min(begin + chunk);
            let patched = both.ask(Ask::patch(&at).chunk(begin, blob.bytes.slice(begin..end))).await;
            assert_eq!(patched.status, StatusCode::ACCEPTED, "{begin} of {size}: {}", patched.text());
            assert_eq!(patched.header("range"), format!("0-{}", end - 1));
            at = location(&patched);
            // Two, so that the next chunk goes to the other server.
            for _ in 0..2 {
                let status = both.ask(Ask::get(&at)).await;
                assert_eq!(
                    (status.status, status.header("range")),
                    (StatusCode::NO_CONTENT, &*format!("0-{}", end - 1))
                );
            }
        }
        let done = both.ask(Ask::put(with_digest(&at, &blob.digest))).await;
        assert_eq!(done.status, StatusCode::CREATED, "{size} in chunks of {chunk}: {}", done.text());
        for _ in 0..2 {
            let got = both.ask(Ask::get(format!("/v2/team/app/blobs/{}", blob.digest))).await;
            assert!(got.body == blob.bytes, "{size} in chunks of {chunk}");
        }
    }
    for (seed, way) in (10..).zip([Way::Streamed, Way::Put, Way::Post, Way::Chunked(65_536)]) {
        let image = Manifest::image(&format!("{way:?}"), &[Blob::noise(seed, 300_000)]);
        for blob in &image.blobs {
            both.push_blob("team/app", blob, way).await.unwrap_or_else(|trouble| panic!("{way:?}: {trouble}"));
        }
        both.push_manifest("team/app", "way", &image).await.unwrap_or_else(|trouble| panic!("{way:?}: {trouble}"));
        within(A_SECOND, "both have it", || async {
            let pulled = [both.pull("team/app", "way").await, both.pull("team/app", "way").await];
            pulled.iter().all(|pulled| pulled.as_ref().is_ok_and(|digest| digest == image.digest())).then_some(())
        })
        .await;
    }
    one.fsck().await;
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_write_to_one_upload_on_two_servers_one_is_refused() {
    let Some(Pair { one, two, token, .. }) = pair().await else { return };
    let [first, second] = [&one, &two].map(|server| Registry::new(&[server.address()], &token));
    let blob = Blob::noise(1, 400_000);
    let at = first.begin("team/app").await.expect("an upload begins");
    let slow = writing(one.address(), &token, &second, &at, blob.bytes.slice(..300_000)).await;
    let finish = second.ask(Ask::put(with_digest(&at, &Blob::of("").digest))).await;
    let busy = [StatusCode::RANGE_NOT_SATISFIABLE, StatusCode::CONFLICT];
    assert!(busy.contains(&finish.status), "{} {}", finish.status, finish.text());
    slow.await.expect("the first one is not disturbed");
    assert_eq!(second.ask(Ask::get(&at)).await.header("range"), "0-299999");
    let rest = Ask::put(with_digest(&at, &blob.digest)).chunk(300_000, blob.bytes.slice(300_000..));
    let done = second.ask(rest).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
    assert!(first.ask(Ask::get(location(&done))).await.body == blob.bytes);
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_of_an_upload_dies_the_other_goes_on() {
    let Some(Pair { mut one, two, token, .. }) = pair().await else { return };
    let [first, second] = [&one, &two].map(|server| Registry::new(&[server.address()], &token));
    let blob = Blob::noise(1, 14_000_000);
    let at = first.begin("team/app").await.expect("an upload begins");
    let patched = first.ask(Ask::patch(&at).chunk(0, blob.bytes.slice(..9_000_000))).await;
    assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.text());
    let mut slow = TcpStream::connect(one.address()).await.expect("the server listens");
    let head = format!(
        "PATCH {at} HTTP/1.1\r\nHost: larder.test\r\nAuthorization: {}\r\nContent-Length: 5000000\r\n\r\n",
        wire::basic("ci", &token)
    );
    slow.write_all(head.as_bytes()).await.expect("a head is sent");
    slow.write_all(&blob.bytes[9_000_000..10_000_000]).await.expect("a part of a body is sent");
    one.kill().await;
    // Not at once: the other one cannot know yet that nobody writes any more.
    let at = until("the other one goes on", || async {
        let status = second.ask(Ask::get(&at)).await;
        assert_eq!(status.status, StatusCode::NO_CONTENT, "{}", status.text());
        let offset = offset(status.header("range"));
        assert!((9_000_000..=10_000_000).contains(&offset), "what was acknowledged is kept: {offset}");
        let patched = second.ask(Ask::patch(&at).chunk(offset, blob.bytes.slice(offset..))).await;
        (patched.status == StatusCode::ACCEPTED).then(|| location(&patched))
    })
    .await;
    let done = second.ask(Ask::put(with_digest(&at, &blob.digest))).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
    one.resume().await;
    first.lead_to(one.address());
    assert!(first.ask(Ask::get(location(&done))).await.body == blob.bytes);
    two.fsck().await;
    one.close().await;
    two.close().await;
}

/// How many bytes an upload has, from its `Range`.
pub(crate) fn offset(range: &str) -> usize {
    let last = range.strip_prefix("0-").and_then(|last| last.parse::<usize>().ok());
    last.map_or_else(|| panic!("an upload tells how far it is: `{range}`"), |last| if last == 0 { 0 } else { last + 1 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_push_the_same_layers_and_tags_at_once_all_succeed() {
    let Some(Pair { one, two, both, .. }) = pair().await else { return };
    let layers: Vec<Blob> = (0..6).map(|seed| Blob::noise(seed, 50_000 << seed)).collect();
    let same = Manifest::image("same", &layers);
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (both, same, layers) = (both.clone(), same.clone(), layers.clone());
            tokio::spawn(async move {
                let own = Manifest::image(&format!("client {number}"), &layers);
                let index = Manifest::index(&[same.clone(), own.clone()]);
                for round in 0..3 {
                    for (repository, tag, manifest) in [
                        ("team/app", "same".to_owned(), &same),
                        ("team/web", "latest".to_owned(), &own),
                        ("team/app", format!("own-{number}"), &own),
                        ("team/web", "index".to_owned(), &index),
                    ] {
                        let pushed = both.push(repository, &tag, manifest).await;
                        pushed.unwrap_or_else(|trouble| {
                            panic!("client {number}, round {round}, {repository}:{tag}: {trouble}")
                        });
                    }
                }
                [own.digest().to_owned(), index.digest().to_owned()]
            })
        })
        .collect();
    let (mut images, mut indexes) = (Vec::new(), Vec::new());
    for client in clients {
        let [own, index] = client.await.expect("every push succeeds");
        images.push(own);
        indexes.push(index);
    }
    for _ in 0..2 {
        assert_eq!(both.pull("team/app", "same").await.expect("it is pulled"), same.digest());
        assert!(images.contains(&both.pull("team/web", "latest").await.expect("it is pulled")));
        assert!(indexes.contains(&both.pull("team/web", "index").await.expect("it is pulled")));
    }
    within(A_SECOND, "both agree on what is latest", || async {
        let [left, right] = [both.pull("team/web", "latest").await, both.pull("team/web", "latest").await];
        (left.ok() == right.ok()).then_some(())
    })
    .await;
    one.fsck().await;
    let usage = one.json(&["oci", "usage"]).await;
    let once: u64 = layers.iter().map(|layer| layer.bytes.len() as u64).sum();
    let together = usage["together"].as_u64().unwrap_or_else(|| panic!("it counts what is stored: {usage}"));
    assert!((once..once + 100_000).contains(&together), "each layer is there once: {together}, not {once}");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_deletes_the_other_does_not_have_within_a_second() {
    let Some(Pair { one, two, token, .. }) = pair().await else { return };
    let [first, second] = [&one, &two].map(|server| Registry::new(&[server.address()], &token));
    let [image, other] = ["one", "other"].map(|name| Manifest::image(name, &[Blob::noise(1, 1_000)]));
    let loose = Blob::noise(2, 1_000);
    first.push("team/app", "1", &image).await.expect("an image is pushed");
    first.push("team/app", "2", &other).await.expect("an image is pushed");
    first.push_blob("team/app", &loose, Way::Post).await.expect("a blob is pushed");
    for path in [
        "/v2/team/app/manifests/1".to_owned(),
        format!("/v2/team/app/manifests/{}", other.digest()),
        format!("/v2/team/app/blobs/{}", loose.digest),
    ] {
        let status = async |registry: &Registry, ask: Ask| registry.ask(ask).await.status;
        // Both have it warm.
        for _ in 0..2 {
            assert_eq!(status(&second, Ask::get(&path)).await, StatusCode::OK, "{path}");
            assert_eq!(status(&first, Ask::get(&path)).await, StatusCode::OK, "{path}");
        }
        assert_eq!(status(&first, Ask::delete(&path)).await, StatusCode::ACCEPTED, "{path}");
        assert_eq!(status(&first, Ask::get(&path)).await, StatusCode::NOT_FOUND, "{path}");
        within(A_SECOND, "the other does not have it", || async {
            (status(&second, Ask::get(&path)).await == StatusCode::NOT_FOUND).then_some(())
        })
        .await;
    }
    // A tag that moves on one moves on the other.
    first.push("team/app", "1", &image).await.expect("an image is pushed");
    until("the other has it", || async { second.pull("team/app", "1").await.ok() }).await;
    first.push("team/app", "1", &other).await.expect("an image is pushed");
    within(A_SECOND, "the tag moved", || async {
        second.pull("team/app", "1").await.ok().filter(|digest| digest == other.digest())
    })
    .await;
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_of_one_is_good_at_the_other() {
    let Some(Pair { one, two, both, token }) = pair().await else { return };
    let image = Manifest::image("pass", &[]);
    both.push("team/app", "1", &image).await.expect("an image is pushed");
    let [first, second] = [&one, &two].map(|server| Registry::new(&[server.address()], &token));
    let scope = "scope=repository:team/app:pull";
    let given = first.ask(Ask::get(format!("/v2/token?service=x&offline_token=true&{scope}"))).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.text());
    let of = |name: &str| given.json()[name].as_str().unwrap_or_else(|| panic!("there is a {name}")).to_owned();
    let holder = second.as_somebody(Some(format!("Bearer {}", of("token"))));
    assert_eq!(holder.pull("team/app", "1").await.expect("the pass is good"), image.digest());
    let form = Ask::post("/v2/token").with(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let form = form.body(format!("grant_type=refresh_token&service=x&refresh_token={}&{scope}", of("refresh_token")));
    let refreshed = second.as_somebody(None).ask(form).await;
    assert_eq!(refreshed.status, StatusCode::OK, "{}", refreshed.text());
    two.ok(&["token", "revoke", "ci"]).await;
    for server in [&one, &two] {
        let holder = holder.as_somebody(Some(format!("Bearer {}", of("token"))));
        holder.lead_to(server.address());
        within(A_SECOND, "it dies with its token on both", || async {
            (holder.ask(Ask::get("/v2/team/app/manifests/1")).await.status == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
    }
    one.close().await;
    two.close().await;
}

struct Pair {
    one: Server,
    two: Server,
    /// Each request to the other one than the one before.
    both: Registry,
    token: String,
}

async fn pair() -> Option<Pair> {
    let ground = Arc::new(Ground::shared().await?);
    let one = Server::start_with(&ground, Options::default()).await;
    let two = Server::start_with(&ground, Options::default()).await;
    let token = one.token("ci", &["*:oci:*"]).await;
    let both = Registry::new(&[one.address(), two.address()], &token);
    for _ in 0..2 {
        until("both know the token", || async { both.ask(Ask::get("/v2/")).await.status.is_success().then_some(()) })
            .await;
    }
    Some(Pair { one, two, both, token })
}
