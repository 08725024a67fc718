//! Registries that lie, fail, hang, or have nothing.

use futures_util::StreamExt as _;
use http::{HeaderValue, StatusCode, header};
use larder_core::Digest;
use tokio::time::timeout;

use crate::{
    house::{AT_MOST, House, digest_of, image, image_type, noise, refused, text},
    upstream::{Answer, manifest_page, page},
};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_right_are_never_complete_and_never_kept() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let layer = noise(2_000_000);
        upstream.has("a/b", "1", &[&layer]);
        house.read("/v2/a/b/manifests/1").await;
        let path = format!("/v2/a/b/blobs/{}", Digest::of(&layer));
        let mut wrong = layer.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        let lies = [
            page("200 OK", wrong),
            Answer::Cut(layer.clone(), 1_500_000),
            Answer::Cut(layer.clone(), 0),
            page("200 OK", layer.slice(1..)),
            page("200 OK", [&layer[..], b"more"].concat()),
            page("200 OK", "<html>please log in</html>"),
        ];
        for lie in lies {
            upstream.set(&path, lie);
            let answer = house.get(&path).await;
            if answer.status == StatusCode::OK {
                let mut stream = answer.body.into_stream();
                let mut taken = 0;
                let error = loop {
                    match timeout(AT_MOST, stream.next()).await.unwrap() {
                        Some(Ok(piece)) => taken += piece.len(),
                        Some(Err(error)) => break error,
                        None => panic!("a clean end after {taken} bytes"),
                    }
                };
                assert!(taken < layer.len(), "{taken} bytes looked complete; {error}");
            } else {
                assert!(answer.status.is_server_error(), "{} {}", answer.status, text(&answer));
            }
            assert_eq!(house.blobs().await, 1, "only the manifest");
        }
        upstream.set(&path, page("200 OK", layer.clone()));
        assert_eq!(house.read(&path).await, layer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_not_right_are_not_kept() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let manifest = image(&[b"one"]);
        let (digest, path) = (digest_of(&manifest), "/v2/a/b/manifests/1");
        let announced =
            |digest: &Digest| format!("200 OK\r\nContent-Type: {}\r\nDocker-Content-Digest: {digest}", image_type());
        let lies = [
            (page(&announced(&Digest::of(b"other")), manifest.to_string()), "other bytes"),
            (page("200 OK\r\nContent-Type: text/html", "<html>please log in</html>"), "not answer with a manifest"),
            (page(&format!("200 OK\r\nContent-Type: {}", image_type()), " ".repeat(5 << 20)), "limit"),
            (Answer::Cut(manifest.to_string().into(), 20), "before its answer was complete"),
        ];
        for (lie, words) in lies {
            upstream.set(path, lie);
            let answer = house.get(path).await;
            refused(&answer, 502, &[words]);
        }
        let by_digest = format!("/v2/a/b/manifests/{digest}");
        upstream.set(&by_digest, manifest_page(&image(&[b"other"])));
        refused(&house.get(&by_digest).await, 502, &["other bytes"]);
        assert_eq!(house.blobs().await, 0);
        upstream.names("a/b", "1", &manifest);
        assert_eq!(house.read(path).await, manifest.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_served_when_the_upstream_is_busy_broken_slow_or_gone() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let manifest = upstream.has("a/b", "1", &[b"one"]);
        let path = "/v2/a/b/manifests/1";
        house.read(path).await;
        house.read(&format!("/v2/a/b/blobs/{}", Digest::of(b"one"))).await;
        let mut age = 0;
        for (status, cold) in
            [("429 Too Many\r\nRetry-After: 20", 429), ("500 Oh", 502), ("503 Busy", 502), ("302 Elsewhere", 502)]
        {
            house.later(700);
            age += 700;
            upstream.set(path, page(status, "<html>"));
            let answer = house.get(path).await;
            assert_eq!((answer.status, text(&answer)), (StatusCode::OK, manifest.to_string()), "{status}");
            assert_eq!(answer.headers[header::WARNING].to_str().unwrap()[..7], *"299 - \"");
            assert_eq!(answer.headers[header::AGE], HeaderValue::from(age));
            upstream.asked();
            house.get(path).await;
            assert_eq!(upstream.asked(), [""; 0], "it is not asked again at once");
            upstream.set("/v2/a/b/manifests/cold", page(status, "<html>"));
            let answer = house.get("/v2/a/b/manifests/cold").await;
            assert_eq!(answer.status.as_u16(), cold, "{}", text(&answer));
            if cold == 429 {
                assert_eq!(answer.headers[header::RETRY_AFTER], "20");
                refused(&answer, 429, &["TOOMANYREQUESTS", "try again in 20 s"]);
                upstream.asked();
                house.later(19);
                age += 19;
                refused(&house.get("/v2/a/b/manifests/cold").await, 429, &[]);
                assert_eq!(upstream.asked(), [""; 0], "it is left alone as long as it wants");
            }
        }
        // Slow: whoever asks waits a moment, and it is looked at behind.
        house.later(700);
        upstream.set(path, Answer::Hang);
        let (answer, ()) = tokio::join!(house.get(path), async {
            while house.clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            house.later(5);
        });
        assert!(answer.status == StatusCode::OK && answer.headers.contains_key(header::WARNING));

        upstream.die().await;
        house.later(700);
        let answer = house.get("/v2/a/b/tags/list").await;
        assert_eq!(text(&answer), r#"{"name":"a/b","tags":["1"]}"#);
        assert!(answer.headers.contains_key(header::WARNING));
        let answer = house.get(&format!("/v2/a/b/referrers/{}", digest_of(&manifest))).await;
        assert!(answer.status == StatusCode::OK && answer.headers.contains_key(header::WARNING));
        assert_eq!(house.read(&format!("/v2/a/b/blobs/{}", Digest::of(b"one"))).await, "one");
        refused(&house.get("/v2/a/c/manifests/1").await, 502, &["refuses the connection"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_remembered_for_a_moment_and_what_goes_there_goes_here() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let path = "/v2/a/b/manifests/1";
        for _ in 0..3 {
            refused(&house.get(path).await, 404, &["MANIFEST_UNKNOWN"]);
        }
        assert_eq!(upstream.asked().len(), 1);
        let manifest = upstream.has("a/b", "1", &[b"one"]);
        house.later(31);
        house.read(path).await;

        upstream.forget(path);
        house.read(path).await;
        house.later(301);
        refused(&house.get(path).await, 404, &["MANIFEST_UNKNOWN"]);
        house.read(&format!("/v2/a/b/manifests/{}", digest_of(&manifest))).await;
    }
}
