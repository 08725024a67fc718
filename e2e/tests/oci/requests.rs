//! What the distribution specification promises to clients, request by request, written from its text. Nothing of this needs
//! another program, so it is checked on every machine.

use http::{HeaderName, HeaderValue, StatusCode, header};
use larder_e2e::{
    Ground,
    oci::{Ask, Blob, INDEX, MANIFEST, Manifest, Registry, Way, location, put_manifest, with_digest},
    on_every_ground,
    wire::Answer,
};
use serde_json::{Value, json};

use crate::{refused, spoken};

on_every_ground!(
    every_way_of_pushing_a_blob_ends_with_the_same_bytes,
    an_upload_tells_how_far_it_is_and_can_be_cancelled,
    chunks_must_come_in_order_and_a_refusal_tells_where_to_go_on,
    parts_of_a_blob_are_served_as_ranges,
    a_blob_is_mounted_from_where_it_may_be_read,
    a_manifest_comes_back_byte_for_byte,
    manifests_of_every_shape_are_taken,
    one_push_can_set_many_tags,
    tags_and_repositories_are_listed_in_pages,
    referrers_are_listed_filtered_and_paged,
    what_is_deleted_is_gone_at_once_and_nothing_else,
);

pub(crate) const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const NOWHERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

async fn every_way_of_pushing_a_blob_ends_with_the_same_bytes(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let sizes = [0, 1, 4_096, 300_000];
    for (seed, size) in (1..).zip(sizes) {
        for (number, way) in (1..).zip([Way::Streamed, Way::Chunked(1_000 + size / 3), Way::Put, Way::Post]) {
            let blob = Blob::noise(seed * 10 + number, size);
            registry.push_blob("team/app", &blob, way).await.unwrap_or_else(|trouble| panic!("{way:?}: {trouble}"));
            served(&registry, "team/app", &blob).await;
        }
        let blob = Blob::of_sha512(Blob::noise(seed * 100, size).bytes);
        for way in [Way::Put, Way::Post] {
            registry.push_blob("team/app", &blob, way).await.unwrap_or_else(|trouble| panic!("{way:?}: {trouble}"));
        }
        served(&registry, "team/app", &blob).await;
        // With the algorithm told at the beginning, all that comes in chunks is hashed by it.
        let blob = Blob::of_sha512(Blob::noise(seed * 1_000, size).bytes);
        let told = Ask::post("/v2/team/app/blobs/uploads/?digest-algorithm=sha512");
        let begun = registry.want(told, &[StatusCode::ACCEPTED]).await.expect("an upload by SHA-512 begins");
        registry.push_to(location(&begun), &blob, Way::Chunked(100_000)).await.expect("it ends");
        served(&registry, "team/app", &blob).await;
        // And without, it is hashed once more.
        let blob = Blob::of_sha512(Blob::noise(seed * 10_000, size).bytes);
        registry.push_blob("team/app", &blob, Way::Streamed).await.expect("the algorithm may be told at the end");
        served(&registry, "team/app", &blob).await;
    }
    // The last chunk may come with the end.
    let blob = Blob::noise(7, 5_000);
    let at = registry.begin("team/app").await.expect("an upload begins");
    let patched = registry.ask(Ask::patch(&at).chunk(0, blob.bytes.slice(..3_000))).await;
    assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.text());
    assert_eq!(patched.header("range"), "0-2999");
    let put = Ask::put(with_digest(&location(&patched), &blob.digest)).chunk(3_000, blob.bytes.slice(3_000..));
    let put = registry.ask(put).await;
    assert_eq!(put.status, StatusCode::CREATED, "{}", put.text());
    let at = location(&put);
    assert_eq!(registry.ask(Ask::get(at)).await.body, blob.bytes, "its location leads to the blob");
    server.fsck().await;
    server.close().await;
}

/// A blob is there, with all that is said of it.
async fn served(registry: &Registry, repository: &str, blob: &Blob) {
    let at = format!("/v2/{repository}/blobs/{}", blob.digest);
    // Layers are packed already, and their bytes are what their digest is of.
    let encodings = Ask::get(&at).with(header::ACCEPT_ENCODING, "zstd, gzip, br");
    for (answer, has_body) in [(registry.ask(encodings).await, true), (registry.ask(Ask::head(&at)).await, false)] {
        assert_eq!(answer.status, StatusCode::OK, "{at}: {}", answer.text());
        assert_eq!(answer.header("content-length"), blob.bytes.len().to_string(), "{at}");
        assert_eq!(answer.headers.get(&DIGEST).map(HeaderValue::as_bytes), Some(blob.digest.as_bytes()), "{at}");
        assert!(answer.header("content-encoding").is_empty(), "{at}");
        assert!(answer.body == if has_body { blob.bytes.clone() } else { bytes::Bytes::new() }, "{at}");
    }
}

async fn an_upload_tells_how_far_it_is_and_can_be_cancelled(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let begun = registry.ask(Ask::post("/v2/team/app/blobs/uploads/")).await;
    assert_eq!((begun.status, begun.body.len()), (StatusCode::ACCEPTED, 0));
    let at = location(&begun);
    // Some clients drop what is behind a question mark.
    assert!(!at.contains('?') && at.starts_with("/v2/team/app/blobs/uploads/"), "{at}");
    let least = begun.header("oci-chunk-min-length");
    assert!(least.is_empty() || least.parse::<u64>().is_ok(), "{least}");
    let status = registry.ask(Ask::get(&at)).await;
    assert_eq!(status.status, StatusCode::NO_CONTENT, "{}", status.text());
    assert!(status.header("range").starts_with("0-"), "even of nothing: {}", status.header("range"));
    let bytes = Blob::noise(1, 10_000).bytes;
    let mut at = location(&status);
    for (begin, end) in [(0, 1), (1, 4_000), (4_000, 10_000)] {
        let patched = registry.ask(Ask::patch(&at).chunk(begin, bytes.slice(begin..end))).await;
        assert_eq!(patched.status, StatusCode::ACCEPTED, "{}", patched.text());
        assert_eq!(patched.header("range"), format!("0-{}", end - 1));
        at = location(&patched);
        let status = registry.ask(Ask::get(&at)).await;
        assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, &*format!("0-{}", end - 1)));
        at = location(&status);
    }
    let cancelled = registry.ask(Ask::delete(&at)).await;
    assert_eq!(cancelled.status, StatusCode::NO_CONTENT, "{}", cancelled.text());
    for ask in [
        Ask::get(&at),
        Ask::delete(&at),
        Ask::patch(&at).stream("more"),
        Ask::put(with_digest(&at, &Blob::of(bytes.clone()).digest)),
        Ask::get("/v2/team/app/blobs/uploads/01234567-89ab-cdef-0123-456789abcdef"),
        Ask::get("/v2/team/app/blobs/uploads/nonsense"),
    ] {
        refused(&registry, ask, StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN").await;
    }
    server.fsck().await;
    server.close().await;
}

async fn chunks_must_come_in_order_and_a_refusal_tells_where_to_go_on(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let blob = Blob::noise(1, 9_000);
    let at = registry.begin("team/app").await.expect("an upload begins");
    let chunk = |begin: usize, end: usize| Ask::patch(&at).chunk(begin, blob.bytes.slice(begin..end));
    assert_eq!(registry.ask(chunk(0, 3_000)).await.status, StatusCode::ACCEPTED);
    let finish =
        |begin: usize, end: usize| Ask::put(with_digest(&at, &blob.digest)).chunk(begin, blob.bytes.slice(begin..end));
    for (why, ask) in [
        ("one is left out", chunk(6_000, 9_000)),
        ("one comes again", chunk(0, 3_000)),
        ("one overlaps", chunk(2_999, 6_000)),
        ("the last leaves one out", finish(6_000, 9_000)),
        ("the last comes too early", finish(0, 3_000)),
    ] {
        let answer = refused(&registry, ask, StatusCode::RANGE_NOT_SATISFIABLE, "").await;
        assert_eq!(answer.header("range"), "0-2999", "{why}");
        let at = answer.header("location");
        assert!(at.is_empty() || at.starts_with("/v2/"), "{why}: {at}");
    }
    let odd = |range: &str| Ask::patch(&at).with(header::CONTENT_RANGE, range).body(blob.bytes.slice(3_000..6_000));
    for range in ["3000-5998", "3000-6000", "5999-3000", "a-b", "3000-", "-3000", "3000", "3000-99999999999999999999"] {
        let answer = registry.ask(odd(range)).await;
        let right = [StatusCode::BAD_REQUEST, StatusCode::RANGE_NOT_SATISFIABLE];
        assert!(right.contains(&answer.status), "{range}: {} {}", answer.status, answer.text());
    }
    // What was refused left no byte behind.
    assert_eq!(registry.ask(Ask::get(&at)).await.header("range"), "0-2999");
    assert_eq!(registry.ask(chunk(3_000, 6_000)).await.status, StatusCode::ACCEPTED);
    let done = registry.ask(finish(6_000, 9_000)).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
    served(&registry, "team/app", &blob).await;
    server.close().await;
}

async fn parts_of_a_blob_are_served_as_ranges(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let blob = Blob::noise(1, 3_000);
    let image = Manifest::image("ranges", std::slice::from_ref(&blob));
    registry.push("team/app", "1", &image).await.expect("an image is pushed");
    let at = format!("/v2/team/app/blobs/{}", blob.digest);
    let get = async |range: &str| registry.ask(Ask::get(&at).with(header::RANGE, range)).await;
    for (range, begin, end) in [
        ("bytes=500-1499", 500, 1_500),
        ("bytes=500-", 500, 3_000),
        ("bytes=-500", 2_500, 3_000),
        ("bytes=2000-5000", 2_000, 3_000),
        ("bytes=0-0", 0, 1),
        ("bytes=2999-2999", 2_999, 3_000),
        ("bytes=-5000", 0, 3_000),
    ] {
        let answer = get(range).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {begin}-{}/3000", end - 1), "{range}");
        assert_eq!(answer.header("content-length"), (end - begin).to_string(), "{range}");
        assert!(answer.body == blob.bytes.slice(begin..end), "{range}");
    }
    for range in ["bytes=5000-10000", "bytes=3000-", "bytes=-0"] {
        let answer = get(range).await;
        assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE, "{range}");
        assert_eq!(answer.header("content-range"), "bytes */3000", "{range}");
    }
    // The conformance suite wants 416 here, though by RFC 9110 it is no range at all.
    assert_eq!(get("bytes=500-0").await.status, StatusCode::RANGE_NOT_SATISFIABLE);
    for range in ["pages=1-2", "bytes=a-b", "bytes"] {
        let answer = get(range).await;
        let right = [StatusCode::OK, StatusCode::RANGE_NOT_SATISFIABLE];
        assert!(right.contains(&answer.status), "{range}: {}", answer.status);
    }
    let several = get("bytes=0-99,1000-1099,-100").await;
    assert_eq!(several.status, StatusCode::PARTIAL_CONTENT);
    let right = [(0, 100), (1_000, 1_100), (2_900, 3_000)];
    let right: Vec<_> =
        right.map(|(begin, end)| (format!("bytes {begin}-{}/3000", end - 1), blob.bytes.slice(begin..end))).into();
    assert_eq!(parts(&several), right);
    let greedy = format!("bytes={}", vec!["0-2999"; 1_000].join(","));
    let answer = get(&greedy).await;
    assert!(answer.body.len() <= 2 * 3_000, "nobody gets more by asking often: {} bytes", answer.body.len());
    let etag = registry.ask(Ask::head(&at)).await.header("etag").to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    let unchanged = registry.ask(Ask::get(&at).with(header::IF_NONE_MATCH, &etag)).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (StatusCode::NOT_MODIFIED, 0));
    for (condition, status) in [(etag.as_str(), StatusCode::PARTIAL_CONTENT), ("\"another\"", StatusCode::OK)] {
        let ask = Ask::get(&at).with(header::RANGE, "bytes=0-9").with(header::IF_RANGE, condition);
        assert_eq!(registry.ask(ask).await.status, status, "If-Range: {condition}");
    }
    server.close().await;
}

/// The parts of an answer in several (RFC 9110, 14.6), each with its `Content-Range`.
fn parts(answer: &Answer) -> Vec<(String, bytes::Bytes)> {
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.unwrap_or_else(|| panic!("it is in parts: {:?}", answer.headers)).trim_matches('"');
    let (mark, mut rest) = (format!("--{boundary}"), answer.body.clone());
    let find = |bytes: &[u8], what: &str| bytes.windows(what.len()).position(|window| window == what.as_bytes());
    let mut found = Vec::new();
    while let Some(begin) = find(&rest, &mark) {
        rest = rest.slice(begin + mark.len()..);
        if rest.starts_with(b"--") {
            break;
        }
        let body = find(&rest, "\r\n\r\n").expect("a part has a head") + 4;
        let head = String::from_utf8_lossy(&rest[..body]).to_lowercase();
        let range = head.lines().find_map(|line| line.strip_prefix("content-range: ")).expect("a part has a range");
        let end = find(&rest, &format!("\r\n{mark}")).expect("a part ends");
        found.push((range.trim().to_owned(), rest.slice(body..end)));
        rest = rest.slice(end..);
    }
    found
}

async fn a_blob_is_mounted_from_where_it_may_be_read(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let blob = Blob::noise(1, 5_000);
    registry.push_blob("secret/app", &blob, Way::Put).await.expect("a blob is pushed");
    let ours = server.token("ours", &["*:oci:ours/*", "*:oci:more/*"]).await;
    let ours = registry.as_somebody(Some(larder_e2e::wire::basic("ci", &ours)));
    let mount = |to: &str, digest: &str, from: &str| Ask::post(format!("/v2/{to}/blobs/uploads/?mount={digest}{from}"));
    // A source that may not be read, one that is not there, one without the blob, and none named: all look the same.
    let absent = Blob::noise(2, 5_000);
    let mut heads = Vec::new();
    for (digest, from) in [
        (&blob.digest, "&from=secret/app"),
        (&absent.digest, "&from=secret/app"),
        (&blob.digest, "&from=secret/none"),
        (&blob.digest, ""),
        (&absent.digest, ""),
    ] {
        let answer = ours.ask(mount("ours/app", digest, from)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{from}: {}", answer.text());
        let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
        names.sort();
        heads.push((names, answer.body.clone()));
        assert!(!ours.has("ours/app", digest).await.expect("there is an answer"), "{from}");
    }
    assert!(heads.iter().all(|head| *head == heads[0]), "one tells nothing that another does not: {heads:?}");
    // What was not mounted goes on as an upload.
    let begun = ours.ask(mount("ours/app", &blob.digest, "&from=secret/app")).await;
    ours.push_to(location(&begun), &blob, Way::Streamed).await.expect("it goes on as an upload");
    for (to, from) in [("more/app", "&from=ours/app"), ("more/found", ""), ("more/app", "&from=more/app")] {
        let answer = ours.ask(mount(to, &blob.digest, from)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{to} {from}: {}", answer.text());
        assert_eq!(answer.header("docker-content-digest"), blob.digest);
        assert_eq!(ours.ask(Ask::get(location(&answer))).await.body, blob.bytes);
        served(&ours, to, &blob).await;
    }
    for ask in [mount("ours/app", "sha256:short", "&from=more/app"), mount("ours/app", "md5:00", "")] {
        refused(&ours, ask, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await;
    }
    server.fsck().await;
    server.close().await;
}

async fn a_manifest_comes_back_byte_for_byte(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("exact", &[Blob::noise(1, 100)]);
    registry.push("team/app", "plain", &image).await.expect("an image is pushed");
    let document = image.document();
    let odd = format!(
        "\n{{ \"layers\":{},\n\t\"x-unknown\" : [1.0, 1e2, null, \"\\u00e4\", {{}}], \"schemaVersion\" :2, \"config\":{}}}  \n",
        document["layers"], document["config"]
    );
    for (number, (sent, stored)) in [
        (MANIFEST, MANIFEST),
        ("application/vnd.oci.image.manifest.v1+json; charset=utf-8", MANIFEST),
        (
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // Bytes of their own for each type: the first type under which bytes came stays theirs.
        let blob = Blob::of(format!("{odd}{}", " ".repeat(number)));
        let put = Ask::put(format!("/v2/team/app/manifests/odd-{number}")).with(header::CONTENT_TYPE, sent);
        let put = registry.ask(put.body(blob.bytes.clone())).await;
        assert_eq!(put.status, StatusCode::CREATED, "{sent}: {}", put.text());
        assert_eq!(put.header("docker-content-digest"), blob.digest);
        let tag = format!("/v2/team/app/manifests/odd-{number}");
        let digest = format!("/v2/team/app/manifests/{}", blob.digest);
        for at in [tag.as_str(), &digest, &location(&put)] {
            let other = Ask::get(at).with(header::ACCEPT, "application/vnd.oci.image.index.v1+json");
            for ask in [Ask::get(at), other, Ask::head(at)] {
                let is_head = ask.to_string().starts_with("HEAD");
                let answer = registry.ask(ask).await;
                assert_eq!(answer.status, StatusCode::OK, "{at}");
                assert_eq!(answer.header("content-type"), stored, "{at}");
                assert_eq!(answer.header("docker-content-digest"), blob.digest, "{at}");
                assert_eq!(answer.header("content-length"), blob.bytes.len().to_string(), "{at}");
                assert!(answer.body == if is_head { bytes::Bytes::new() } else { blob.bytes.clone() }, "{at}");
            }
            let etag = registry.ask(Ask::head(at)).await.header("etag").to_owned();
            let again = registry.ask(Ask::get(at).with(header::IF_NONE_MATCH, etag)).await;
            assert_eq!(again.status, StatusCode::NOT_MODIFIED, "{at}");
        }
    }
    // By SHA-512, where the client says so.
    let blob = Blob::of_sha512(odd);
    let put = Ask::put(format!("/v2/team/app/manifests/{}", blob.digest)).with(header::CONTENT_TYPE, MANIFEST);
    let put = registry.ask(put.body(blob.bytes.clone())).await;
    assert_eq!((put.status, put.header("docker-content-digest")), (StatusCode::CREATED, blob.digest.as_str()));
    let got = registry.ask(Ask::get(location(&put))).await;
    assert_eq!((got.header("docker-content-digest"), &got.body), (blob.digest.as_str(), &blob.bytes));
    server.fsck().await;
    server.close().await;
}

async fn manifests_of_every_shape_are_taken(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("shape", &[Blob::noise(1, 100)]);
    registry.push("team/app", "image", &image).await.expect("an image is pushed");
    let empty = Manifest::image("empty", &[]);
    registry.push("team/app", "no-layers", &empty).await.expect("an image may have no layers");
    let index = Manifest::index(&[image.clone(), empty]);
    registry.push("team/app", "index", &index).await.expect("an index is pushed");
    let nested = Manifest::index(&[index.clone(), image.clone()]);
    registry.push("team/app", "nested", &nested).await.expect("an index may have indexes");
    assert_eq!(registry.pull("team/app", "nested").await.expect("it is pulled"), nested.digest());
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = image.document();
        change(&mut document);
        Manifest::of(&document)
    };
    let data = with(&|document| document["layers"][0]["data"] = json!("AAAA"));
    let absent = Blob::noise(9, 50);
    let elsewhere = with(&|document| {
        let mut layer = absent.descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        layer["urls"] = json!(["https://layers.example.org/1"]);
        document["layers"] = json!([layer]);
    });
    let twice = with(&|document| {
        let layer = document["layers"][0].clone();
        document["layers"] = json!([layer, layer, layer]);
    });
    // As large as every registry has to take.
    let large = with(&|document| document["annotations"] = json!({"org.example.large": "x".repeat(4 << 20)}));
    let mut large = large;
    let over = large.blob.bytes.len() - (4 << 20);
    large = with(&|document| document["annotations"] = json!({"org.example.large": "x".repeat((4 << 20) - over)}));
    assert_eq!(large.blob.bytes.len(), 4 << 20);
    let shapes = [
        ("empty-index", Manifest::index(&[])),
        ("data", data),
        ("elsewhere", elsewhere),
        ("twice", twice),
        ("large", large),
        ("artifact", Manifest::about(&image.descriptor(), "application/vnd.test.bill", 1)),
    ];
    registry.push_blob("team/app", &Blob::of("{}"), Way::Post).await.expect("the empty configuration is pushed");
    for (tag, manifest) in &shapes {
        let pushed = registry
            .push_manifest("team/app", tag, manifest)
            .await
            .unwrap_or_else(|trouble| panic!("{tag}: {trouble}"));
        assert_eq!(pushed.header("docker-content-digest"), manifest.digest(), "{tag}");
        let got = registry.ask(Ask::get(format!("/v2/team/app/manifests/{tag}"))).await;
        assert!(got.body == manifest.blob.bytes, "{tag}");
    }
    // What something is about may come later, or never.
    let subject = json!({"mediaType": MANIFEST, "digest": NOWHERE, "size": 1});
    let about = Manifest::about(&subject, "application/vnd.test.bill", 2);
    let pushed = registry.push_manifest("team/app", about.digest(), &about).await.expect("its subject may be missing");
    assert_eq!(pushed.headers.get(&SUBJECT).map(HeaderValue::as_bytes), Some(NOWHERE.as_bytes()));
    server.fsck().await;
    server.close().await;
}

async fn one_push_can_set_many_tags(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("tags", &[Blob::noise(1, 100)]);
    registry.push("team/app", "first", &image).await.expect("an image is pushed");
    let tags: Vec<String> = (0..12).map(|number| format!("v1.{number}")).collect();
    let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
    let to = format!("{}?{}", image.digest(), query.join("&"));
    let answer = registry.ask(put_manifest("team/app", &to, &image)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let said: Vec<String> = answer
        .headers
        .get_all(&TAG)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(", ").map(str::to_owned))
        .collect();
    assert_eq!(said, tags);
    for tag in tags.iter().map(String::as_str).chain(["first"]) {
        assert_eq!(registry.pull("team/app", tag).await.expect("every tag is pulled"), image.digest());
    }
    let bad = format!("{}?tag=good&tag=-bad", image.digest());
    let answer = registry.ask(put_manifest("team/app", &bad, &image)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
    let good = registry.ask(Ask::head("/v2/team/app/manifests/good")).await;
    assert_eq!(good.status, StatusCode::NOT_FOUND, "a push with a bad tag sets none");
    server.close().await;
}

async fn tags_and_repositories_are_listed_in_pages(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("lists", &[]);
    let tags = ["A", "B", "_x", "a", "b", "v1.0", "v1.10", "v1.9"];
    for tag in tags.iter().rev() {
        registry.push("team/app", tag, &image).await.expect("an image is pushed");
    }
    for repository in ["a/a", "a/b", "b", "team-2/app"] {
        registry.push(repository, "1", &image).await.expect("an image is pushed");
    }
    for (path, list, all) in [
        ("/v2/team/app/tags/list", "tags", tags.to_vec()),
        ("/v2/_catalog", "repositories", vec!["a/a", "a/b", "b", "team-2/app", "team/app"]),
    ] {
        let names = |answer: &Answer| -> Vec<String> {
            let names = answer.json()[list].as_array().cloned().unwrap_or_else(|| panic!("a list: {}", answer.text()));
            names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let whole = registry.ask(Ask::get(path)).await;
        assert_eq!((whole.status, whole.header("content-type")), (StatusCode::OK, "application/json"));
        assert_eq!(names(&whole), all);
        assert!(whole.header("link").is_empty());
        for n in 1..=all.len() + 1 {
            let (mut found, mut at) = (Vec::new(), Some(format!("{path}?n={n}")));
            while let Some(page) = at {
                let answer = registry.ask(Ask::get(page)).await;
                assert!(names(&answer).len() <= n);
                found.extend(names(&answer));
                at = next(&answer);
            }
            assert_eq!(found, all, "in pages of {n}");
        }
        let none = registry.ask(Ask::get(format!("{path}?n=0"))).await;
        assert_eq!((none.status, names(&none).len(), none.header("link")), (StatusCode::OK, 0, ""));
        // A page begins behind a name whether or not that is there.
        for (last, begin) in [(all[1].to_owned(), 2), (format!("{}0", all[1]), 2), ("~".to_owned(), all.len())] {
            let answer = registry.ask(Ask::get(format!("{path}?last={last}"))).await;
            assert_eq!(names(&answer), all[begin..], "after {last}");
        }
        for n in ["-1", "x", "99999999999999999999999", "1.5", ""] {
            let answer = registry.ask(Ask::get(format!("{path}?n={n}"))).await;
            assert!(answer.status.as_u16() < 500, "n={n}: {}", answer.status);
        }
    }
    refused(&registry, Ask::get("/v2/no/such/tags/list"), StatusCode::NOT_FOUND, "NAME_UNKNOWN").await;
    server.close().await;
}

/// The address of the next page.
pub(crate) fn next(answer: &Answer) -> Option<String> {
    let (at, rest) = answer.header("link").strip_prefix('<')?.split_once('>')?;
    assert_eq!(rest, "; rel=\"next\"");
    assert!(at.starts_with('/'), "a link is relative: {at}");
    Some(at.to_owned())
}

async fn referrers_are_listed_filtered_and_paged(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("subject", &[]);
    let list = format!("/v2/team/app/referrers/{}", image.digest());
    for at in [list.as_str(), "/v2/no/such/referrers/sha512:00"] {
        if at.ends_with("00") {
            refused(&registry, Ask::get(at), StatusCode::BAD_REQUEST, "DIGEST_INVALID").await;
            continue;
        }
        let answer = registry.ask(Ask::get(at)).await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, INDEX), "{}", answer.text());
        let document = answer.json();
        assert_eq!((&document["schemaVersion"], &document["mediaType"]), (&json!(2), &json!(INDEX)));
        assert_eq!(document["manifests"], json!([]), "what nobody knows has no referrers");
    }
    let long = "x".repeat(150_000);
    let mut pushed = Vec::new();
    for number in 0..40 {
        let kind = format!("application/vnd.test.{}+json", if number % 4 == 0 { "rare" } else { "bill" });
        let mut document = Manifest::about(&image.descriptor(), &kind, number).document();
        // One that says nothing is what its configuration is.
        if number == 1 {
            document.as_object_mut().expect("it is an object").remove("artifactType");
        }
        document["annotations"]["org.example.long"] = json!(long);
        let mut manifest = Manifest::of(&document);
        manifest.blobs = vec![Blob::of("{}")];
        registry.push("team/app", manifest.digest(), &manifest).await.expect("a referrer is pushed before its subject");
        pushed.push(manifest);
    }
    registry.push("team/app", "1", &image).await.expect("the subject is pushed");
    let all = followed(&registry, &list, "").await;
    assert!(all.1 > 1, "so much is more than one page, which clients refuse from 4 MiB on");
    let mut right: Vec<_> = pushed.iter().map(|manifest| manifest.digest().to_owned()).collect();
    right.sort();
    assert_eq!(digests(&all.0), right);
    let of = |digest: &str| all.0.iter().find(|one| one["digest"] == digest).expect("it is listed");
    let first = of(pushed[0].digest());
    assert_eq!(first["artifactType"], "application/vnd.test.rare+json");
    assert_eq!((&first["mediaType"], &first["size"]), (&json!(MANIFEST), &json!(pushed[0].blob.bytes.len())));
    assert_eq!(first["annotations"], pushed[0].document()["annotations"]);
    assert_eq!(of(pushed[1].digest())["artifactType"], "application/vnd.oci.empty.v1+json");
    let rare = followed(&registry, &list, "artifactType=application/vnd.test.rare%2Bjson").await;
    assert_eq!(rare.0.len(), 10);
    let none = registry.ask(Ask::get(format!("{list}?artifactType=application/vnd.test.none"))).await;
    assert_eq!((none.status, &none.json()["manifests"]), (StatusCode::OK, &json!([])));
    // What a client put under the tag that stands in for this list where there is none.
    let stranger = Manifest::index(&[]);
    registry.push("team/app", "stranger", &stranger).await.expect("an index is pushed");
    let stand_in = Manifest::of(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [stranger.descriptor()]}));
    registry.push("team/app", &image.digest().replace(':', "-"), &stand_in).await.expect("the tag is pushed");
    let merged = followed(&registry, &list, "").await;
    assert_eq!(merged.0.len(), 41, "both are one list");
    let deleted = registry.ask(Ask::delete(format!("/v2/team/app/manifests/{}", pushed[0].digest()))).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert!(!digests(&followed(&registry, &list, "").await.0).contains(&pushed[0].digest().to_owned()));
    server.fsck().await;
    server.close().await;
}

fn digests(descriptors: &[Value]) -> Vec<String> {
    let mut digests: Vec<_> =
        descriptors.iter().map(|one| one["digest"].as_str().unwrap_or_default().to_owned()).collect();
    digests.sort();
    digests
}

/// All pages of a list of referrers, and how many they were.
async fn followed(registry: &Registry, list: &str, query: &str) -> (Vec<Value>, usize) {
    let (mut found, mut pages, mut at) = (Vec::new(), 0, Some(format!("{list}?{query}")));
    while let Some(page) = at {
        let answer = registry.ask(Ask::get(page)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.body.len() <= 4 << 20, "a page of {} bytes", answer.body.len());
        let filters = answer.headers.get(&FILTERS).and_then(|value| value.to_str().ok());
        assert_eq!(filters, (!query.is_empty()).then_some("artifactType"));
        found.extend(answer.json()["manifests"].as_array().cloned().unwrap_or_default());
        pages += 1;
        at = next(&answer);
    }
    (found, pages)
}

async fn what_is_deleted_is_gone_at_once_and_nothing_else(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let shared = Blob::noise(1, 1_000);
    let [one, two] = ["one", "two"].map(|name| Manifest::image(name, std::slice::from_ref(&shared)));
    for (repository, tag, manifest) in
        [("team/app", "1", &one), ("team/app", "one", &one), ("team/app", "2", &two), ("other/app", "1", &one)]
    {
        registry.push(repository, tag, manifest).await.expect("an image is pushed");
    }
    let at = |rest: &str| format!("/v2/team/app/{rest}");
    let delete = async |path: String| registry.ask(Ask::delete(path)).await.status;
    let status = async |path: String| registry.ask(Ask::get(path)).await.status;
    assert_eq!(delete(at("manifests/one")).await, StatusCode::ACCEPTED);
    assert_eq!(status(at("manifests/one")).await, StatusCode::NOT_FOUND, "a tag goes alone");
    for reference in ["1", one.digest()] {
        assert_eq!(registry.pull("team/app", reference).await.expect("the image stays"), one.digest());
    }
    refused(&registry, Ask::delete(at("manifests/one")), StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await;
    assert_eq!(delete(at(&format!("manifests/{}", one.digest()))).await, StatusCode::ACCEPTED);
    for reference in ["1", one.digest()] {
        assert_eq!(status(at(&format!("manifests/{reference}"))).await, StatusCode::NOT_FOUND, "with all its tags");
    }
    let gone = Ask::delete(at(&format!("manifests/{}", one.digest())));
    refused(&registry, gone, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await;
    let listed = registry.ask(Ask::get(at("tags/list"))).await.json();
    assert_eq!(listed["tags"], json!(["2"]));
    assert_eq!(registry.pull("team/app", "2").await.expect("the layer is needed"), two.digest());
    assert_eq!(registry.pull("other/app", "1").await.expect("it is another's too"), one.digest());
    // A blob that no manifest needs can be taken out of one repository; elsewhere it stays.
    let loose = Blob::noise(2, 1_000);
    for repository in ["team/app", "other/app"] {
        registry.push_blob(repository, &loose, Way::Post).await.expect("a blob is pushed");
    }
    let blob = at(&format!("blobs/{}", loose.digest));
    assert_eq!(delete(blob.clone()).await, StatusCode::ACCEPTED);
    for ask in [Ask::get(&blob), Ask::delete(&blob)] {
        refused(&registry, ask, StatusCode::NOT_FOUND, "BLOB_UNKNOWN").await;
    }
    served(&registry, "other/app", &loose).await;
    registry.push_blob("team/app", &loose, Way::Streamed).await.expect("it is pushed again");
    served(&registry, "team/app", &loose).await;
    server.fsck().await;
    server.close().await;
}
