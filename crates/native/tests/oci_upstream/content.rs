//! What comes, how often it is asked for, and who waits for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream::BoxStream};
use http::{HeaderValue, Method, StatusCode, header};
use larder_core::{Digest, Result};
use larder_db::events::{self, Wanted};
use larder_http::Body;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    house::{AT_MOST, House, INDEX, descriptor, digest_of, image_type, noise, refused, text, whole},
    upstream::{Answer, Upstream, page},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_once_and_is_looked_at_again_when_it_is_not_fresh() {
    for (mut house, upstream) in House::each().await {
        house.add(&upstream, "up", &["library/*"], |_| {}).await;
        let manifest = upstream.has("library/app", "1", &[b"one", b"two"]);
        let (digest, tag) = (digest_of(&manifest), "/v2/library/app/manifests/1");
        let by_digest = format!("/v2/library/app/manifests/{digest}");

        let came = house.get(tag).await;
        assert_eq!(came.headers[header::ETAG], format!("\"{digest}\"").as_str());
        assert_eq!(
            (came.headers[header::CONTENT_TYPE].to_str().unwrap(), text(&came)),
            (image_type().as_str(), manifest.to_string())
        );
        for blob in [b"{}".as_slice(), b"one", b"two"] {
            assert_eq!(house.read(&format!("/v2/library/app/blobs/{}", Digest::of(blob))).await, blob);
        }
        assert_eq!(upstream.asked().len(), 4);

        // Fresh, also for somebody who starts now; digests always are.
        house.restart();
        house.later(299);
        assert_eq!(house.read(tag).await, manifest.to_string());
        assert_eq!(house.head(tag).await.status, StatusCode::OK);
        house.read(&by_digest).await;
        for blob in [b"{}".as_slice(), b"one", b"two"] {
            assert_eq!(house.read(&format!("/v2/library/app/blobs/{}", Digest::of(blob))).await, blob);
        }
        assert_eq!(upstream.asked(), [""; 0]);

        house.later(2);
        house.read(tag).await;
        house.read(tag).await;
        assert_eq!(upstream.asked(), [format!("HEAD {tag}")], "looked at once, and fresh again");

        let moved = upstream.has("library/app", "1", &[b"one", b"three"]);
        house.later(301);
        assert_eq!(house.read(tag).await, moved.to_string());
        assert_eq!(upstream.asked(), [format!("HEAD {tag}"), format!("GET {tag}")]);
        house.read(&format!("/v2/library/app/blobs/{}", Digest::of(b"three"))).await;
        assert_eq!(upstream.asked().len(), 1, "the layer that it shares with the one before is here");
        house.read(&by_digest).await;

        let wanted = Wanted { action: Some("pointer.set".to_owned()), ..Wanted::default() };
        let recorded = events::list(&house.db, &wanted, None, 10).await.unwrap();
        assert_eq!(
            (recorded.len(), &recorded[0].detail["source"], recorded[0].actor.as_str()),
            (2, &json!("up"), "larder")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multi_arch_image_comes_part_by_part() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let [one, two] = [b"one", b"two"].map(|layer| upstream.has("a/b", "unused", &[layer]));
        let part = |manifest: &Value| descriptor(&image_type(), manifest.to_string().as_bytes());
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [part(&one), part(&two)] });
        upstream.names("a/b", "latest", &index);
        assert_eq!(house.read("/v2/a/b/manifests/latest").await, index.to_string());
        assert_eq!(house.read(&format!("/v2/a/b/manifests/{}", digest_of(&two))).await, two.to_string());
        assert_eq!(house.read(&format!("/v2/a/b/blobs/{}", Digest::of(b"two"))).await, "two");
        assert_eq!(upstream.asked().len(), 3, "the other part was not asked for");
        let unknown = house.get(&format!("/v2/a/b/blobs/{}", Digest::of(b"one"))).await;
        refused(&unknown, 404, &["BLOB_UNKNOWN"]);
        assert_eq!(upstream.asked(), [""; 0], "no manifest here refers to it, so that it is not fetched for anybody");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_are_one_request_and_all_read_while_it_arrives() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let layer = noise(3_000_000);
        let manifest = upstream.has("a/b", "1", &[&layer]);
        let answers = join_all((0..50).map(|_| house.get("/v2/a/b/manifests/1"))).await;
        let expected = manifest.to_string();
        assert!(answers.iter().all(|answer| text(answer) == expected));
        assert_eq!(upstream.asked(), ["GET /v2/a/b/manifests/1"]);

        let (pace, path) = (Arc::new(Semaphore::new(0)), format!("/v2/a/b/blobs/{}", Digest::of(&layer)));
        upstream.set(&path, Answer::Paced(layer.clone(), 100_000, Arc::clone(&pace)));
        let answers = join_all((0..50).map(|_| house.get(&path))).await;
        let range = house.send(Method::GET, &path, &[("range", "bytes=10-19")], Bytes::new());
        let mut streams: Vec<BoxStream<'static, Result<Bytes>>> = Vec::new();
        for answer in answers {
            assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, Some(3_000_000)));
            streams.push(answer.body.into_stream());
        }
        pace.add_permits(3);
        let firsts = join_all(streams.iter_mut().map(|stream| timeout(AT_MOST, stream.next()))).await;
        assert_eq!(house.blobs().await, 1, "the manifest; the layer is still on its way");
        pace.add_permits(100);
        let rests = streams.into_iter().zip(firsts).map(|(rest, first)| async move {
            let first = first.unwrap().unwrap().unwrap();
            let body = Body::Stream { len: None, stream: rest };
            [first, whole(body).await.unwrap()].concat()
        });
        let (all, range) = tokio::join!(join_all(rests), range);
        assert!(all.iter().all(|bytes| *bytes == layer));
        let range = range.unwrap();
        assert_eq!(
            (range.status, whole(range.body).await.unwrap()),
            (StatusCode::PARTIAL_CONTENT, layer.slice(10..20))
        );
        assert_eq!(upstream.asked(), [format!("GET {path}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_gets_all_of_it_and_holds_nobody_up() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let layer = noise(8_000_000);
        upstream.has("a/b", "1", &[&layer]);
        house.read("/v2/a/b/manifests/1").await;
        let path = format!("/v2/a/b/blobs/{}", Digest::of(&layer));
        let pace = Arc::new(Semaphore::new(0));
        upstream.set(&path, Answer::Paced(layer.clone(), 100_000, Arc::clone(&pace)));
        let answers = join_all([house.get(&path), house.get(&path), house.get(&path)]).await;
        let [slow, quick, gone] = answers.try_into().unwrap();
        drop(gone);
        pace.add_permits(1_000);
        let quick = tokio::spawn(whole(quick.body));
        // Everybody waits for the slow one only so long.
        while !quick.is_finished() {
            house.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
        assert_eq!(quick.await.unwrap().unwrap(), layer);
        assert_eq!(whole(slow.body).await.unwrap(), layer);
        assert_eq!(upstream.asked().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_when_its_reader_leaves() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let layer = noise(500_000);
        upstream.has("a/b", "1", &[&layer]);
        house.read("/v2/a/b/manifests/1").await;
        let path = format!("/v2/a/b/blobs/{}", Digest::of(&layer));
        let pace = Arc::new(Semaphore::new(1));
        upstream.set(&path, Answer::Paced(layer.clone(), 100_000, Arc::clone(&pace)));
        drop(house.get(&path).await);
        pace.add_permits(10);
        assert_eq!(house.read(&path).await, layer);
        assert_eq!(upstream.asked().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_goes_on_where_it_was() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let layer = noise(5_000_000);
        upstream.has("a/b", "1", &[&layer]);
        house.read("/v2/a/b/manifests/1").await;
        let path = format!("/v2/a/b/blobs/{}", Digest::of(&layer));
        upstream.set(&path, Answer::Breaking(layer.clone(), 1_500_000));
        upstream.asked();
        assert_eq!(house.read(&path).await, layer);
        assert_eq!(upstream.asked().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_two_repositories_of_one_registry_share_comes_once() {
    for (house, upstream) in House::each().await {
        assert_eq!(house.upload("ours/app", b"secret").await.status, StatusCode::CREATED);
        house.add(&upstream, "up", &["theirs/*"], |_| {}).await;
        let blob = |name: &str, bytes: &[u8]| format!("/v2/theirs/{name}/blobs/{}", Digest::of(bytes));
        upstream.has("theirs/one", "1", &[b"base"]);
        house.read("/v2/theirs/one/manifests/1").await;
        house.read(&blob("one", b"base")).await;
        upstream.has("theirs/two", "1", &[b"base", b"secret"]);
        house.read("/v2/theirs/two/manifests/1").await;
        upstream.asked();
        assert_eq!(house.read(&blob("two", b"base")).await, "base");
        assert_eq!(upstream.asked(), [""; 0]);

        // That a manifest names a blob of ours is no proof that its author has it.
        upstream.forget(&blob("two", b"secret"));
        refused(&house.get(&blob("two", b"secret")).await, 404, &["BLOB_UNKNOWN"]);
        assert_eq!(upstream.asked(), [format!("GET {}", blob("two", b"secret"))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_blob_is_only_looked_at_for_a_head_and_redirects_are_followed_without_secrets() {
    for (house, upstream) in House::each().await {
        let store = Upstream::new().await;
        house.add(&upstream, "up", &[], |_| {}).await;
        upstream.has("a/b", "1", &[b"layer"]);
        house.read("/v2/a/b/manifests/1").await;
        upstream.asked();
        let path = format!("/v2/a/b/blobs/{}", Digest::of(b"layer"));
        let head = house.head(&path).await;
        assert_eq!((head.status, &head.headers[header::CONTENT_LENGTH]), (StatusCode::OK, &HeaderValue::from(5)));
        assert_eq!(upstream.asked(), [format!("HEAD {path}")]);
        assert_eq!(house.blobs().await, 1);

        upstream.set(&path, page(&format!("307 There\r\nLocation: {}/layer?signature=x", store.url()), ""));
        store.set("/layer", page("200 OK", "layer"));
        assert_eq!(house.read(&path).await, "layer");
        assert_eq!(store.asked(), ["GET /layer?signature=x"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_from_the_upstream_as_long_as_it_answers() {
    for (house, upstream) in House::each().await {
        house.add(&upstream, "up", &[], |_| {}).await;
        let manifest = upstream.has("a/b", "1", &[b"one"]);
        let next = r#"200 OK\r\nLink: </v2/a/b/tags/list?n=2&last=2>; rel="next""#.replace(r"\r\n", "\r\n");
        upstream.set("/v2/a/b/tags/list", page(&next, r#"{"name":"a/b","tags":["2","1"]}"#));
        upstream.set("/v2/a/b/tags/list?n=2&last=2", page("200 OK", r#"{"name":"a/b","tags":["3"]}"#));
        assert_eq!(house.read("/v2/a/b/tags/list").await, r#"{"name":"a/b","tags":["1","2","3"]}"#);
        assert_eq!(house.read("/v2/a/b/tags/list?n=1&last=1").await, r#"{"name":"a/b","tags":["2"]}"#);
        assert_eq!(upstream.asked().len(), 2, "two pages, once");

        let digest = digest_of(&manifest);
        let about = |kind: &str| json!({ "mediaType": image_type(), "digest": Digest::of(kind.as_bytes()).to_string(), "size": 1, "artifactType": kind });
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [about("a/x"), about("b/y")] });
        let path = format!("/v2/a/b/referrers/{digest}");
        // Some registries have such lists only under a tag.
        let tag = format!("/v2/a/b/manifests/{}", digest.to_string().replace(':', "-"));
        upstream.set(&tag, page(&format!("200 OK\r\nContent-Type: {INDEX}"), list.to_string()));
        let found: Value = serde_json::from_slice(&house.read(&path).await).unwrap();
        assert_eq!(found, list);
        house.later(301);
        upstream.set(&path, page(&format!("200 OK\r\nContent-Type: {INDEX}"), list.to_string()));
        let filtered: Value = serde_json::from_slice(&house.read(&format!("{path}?artifactType=b/y")).await).unwrap();
        assert_eq!(filtered["manifests"], json!([about("b/y")]));
    }
}
