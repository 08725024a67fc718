//! What must be refused: with the status and the code of the specification, with a word on what to do, and without a trace
//! in the store.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode, header};
use larder_e2e::{
    Ground,
    oci::{Ask, Blob, INDEX, LAYER, MANIFEST, Manifest, Registry, Way, location, with_digest},
    on_every_ground, until, wire,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{refused, spoken};

on_every_ground!(
    what_is_no_digest_is_refused_everywhere,
    bytes_that_are_not_those_of_their_digest_are_not_kept,
    names_and_tags_that_are_none_are_refused,
    manifests_that_cannot_be_right_are_refused,
    a_manifest_needs_everything_that_it_refers_to,
    of_two_that_write_to_one_upload_one_is_refused,
    requests_that_no_client_sends_get_their_4xx,
);

const BAD: StatusCode = StatusCode::BAD_REQUEST;

async fn what_is_no_digest_is_refused_everywhere(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let hex = "0123456789abcdef".repeat(8);
    let bad = [
        "sha256:".to_owned(),
        "sha256:short".to_owned(),
        format!("sha256:{}", &hex[..63]),
        format!("sha256:{}", &hex[..65]),
        format!("sha256:{}", &hex[..64].to_uppercase()),
        format!("sha256:{}g", &hex[..63]),
        format!("SHA256:{}", &hex[..64]),
        format!("sha512:{}", &hex[..64]),
        format!("sha384:{}", &hex[..96]),
        format!("md5:{}", &hex[..32]),
        format!(":{}", &hex[..64]),
        format!("sha256:sha256:{}", &hex[..64]),
        format!("sha256:{}%00", &hex[..64]),
        format!("sha256:..%2f..%2f{}", &hex[..56]),
    ];
    for digest in &bad {
        for ask in [
            Ask::get(format!("/v2/team/app/blobs/{digest}")),
            Ask::head(format!("/v2/team/app/blobs/{digest}")),
            Ask::delete(format!("/v2/team/app/blobs/{digest}")),
            Ask::get(format!("/v2/team/app/manifests/{digest}")),
            Ask::delete(format!("/v2/team/app/manifests/{digest}")),
            Ask::put(format!("/v2/team/app/manifests/{digest}")).body("{}"),
            Ask::get(format!("/v2/team/app/referrers/{digest}")),
            Ask::post(format!("/v2/team/app/blobs/uploads/?digest={digest}")).body("x"),
            Ask::post(format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/other")),
        ] {
            // A path with a zero byte or a way up in it is refused before anybody looks for a digest.
            if digest.contains('%') && !ask.to_string().contains('?') {
                let answer = registry.ask(ask).await;
                assert_eq!(answer.status, BAD, "{}", answer.text());
                continue;
            }
            refused(&registry, ask, BAD, "DIGEST_INVALID").await;
        }
        let at = registry.begin("team/app").await.expect("an upload begins");
        refused(&registry, Ask::put(with_digest(&at, digest)).body("x"), BAD, "DIGEST_INVALID").await;
    }
    let at = registry.begin("team/app").await.expect("an upload begins");
    refused(&registry, Ask::put(&at).body("x"), BAD, "DIGEST_INVALID").await;
    for algorithm in ["md5", "sha384", "SHA256", "sha256:"] {
        let ask = Ask::post(format!("/v2/team/app/blobs/uploads/?digest-algorithm={algorithm}"));
        refused(&registry, ask, BAD, "DIGEST_INVALID").await;
    }
    server.fsck().await;
    server.close().await;
}

async fn bytes_that_are_not_those_of_their_digest_are_not_kept(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let wrong = |seed: u64| Blob { digest: Blob::noise(seed, 9).digest, bytes: Blob::noise(seed + 100, 200_000).bytes };
    for (seed, way) in (1..).zip([Way::Streamed, Way::Chunked(50_000), Way::Put, Way::Post]) {
        let blob = wrong(seed);
        let trouble = registry.push_blob("team/app", &blob, way).await.expect_err("its digest is another's");
        assert!(trouble.is("DIGEST_INVALID"), "{way:?}: {trouble}");
        assert_eq!(trouble.answer().map(|answer| answer.status), Some(BAD), "{way:?}: {trouble}");
        for digest in [&blob.digest, &Blob::of(blob.bytes.clone()).digest] {
            assert!(!registry.has("team/app", digest).await.expect("there is an answer"), "{way:?}");
        }
        // The right bytes come in as if nothing had been.
        registry.push_blob("team/app", &Blob::noise(seed, 9), way).await.expect("the right bytes are taken");
    }
    let long = Blob { digest: Blob::of_sha512("a").digest, bytes: "b".into() };
    let trouble = registry.push_blob("team/app", &long, Way::Post).await.expect_err("its digest is another's");
    assert!(trouble.is("DIGEST_INVALID"), "{trouble}");
    let image = Manifest::image("mismatch", &[]);
    let ask = Ask::put(format!("/v2/team/app/manifests/{}", Blob::of("other").digest));
    let ask = ask.with(header::CONTENT_TYPE, MANIFEST).body(image.blob.bytes.clone());
    refused(&registry, ask, BAD, "DIGEST_INVALID").await;
    server.fsck().await;
    server.close().await;
}

async fn names_and_tags_that_are_none_are_refused(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let long = "a/".repeat(127) + "aa";
    let names = [
        "Team/app", "team/App", "-a", "a-", "a..b", "a___b", "a/.b", "a/_b", "a._b", "a%20b", "a%2bb", "%C3%A4", &long,
    ];
    for name in names {
        for ask in [
            Ask::get(format!("/v2/{name}/manifests/1")),
            Ask::head(format!("/v2/{name}/blobs/{}", Blob::of("x").digest)),
            Ask::put(format!("/v2/{name}/manifests/1")).body("{}"),
            Ask::post(format!("/v2/{name}/blobs/uploads/")),
            Ask::get(format!("/v2/{name}/tags/list")),
            Ask::get(format!("/v2/{name}/referrers/{}", Blob::of("x").digest)),
        ] {
            refused(&registry, ask, BAD, "NAME_INVALID").await;
        }
    }
    let image = Manifest::image("names", &[]);
    let longest = "a/".repeat(127) + "a";
    for name in ["a", "0", "a.b_c__d---e/f", "tags/list", "blobs/uploads", "manifests/blobs", &longest] {
        registry.push(name, "1", &image).await.unwrap_or_else(|trouble| panic!("{name}: {trouble}"));
        assert_eq!(
            registry.pull(name, "1").await.unwrap_or_else(|trouble| panic!("{name}: {trouble}")),
            image.digest()
        );
    }
    registry.push_blob("team/app", &image.blobs[0], Way::Post).await.expect("a blob is pushed");
    let long = "a".repeat(129);
    for tag in [".a", "-a", "a+b", "a%20b", "a@b", "%C3%A4", &long] {
        for method in [Method::PUT, Method::GET, Method::DELETE] {
            let ask = Ask::new(method.clone(), format!("/v2/team/app/manifests/{tag}"));
            let ask = if method == Method::PUT { ask.body(image.blob.bytes.clone()) } else { ask };
            let answer = registry.ask(ask).await;
            let right: &[StatusCode] = if method == Method::PUT { &[BAD] } else { &[BAD, StatusCode::NOT_FOUND] };
            assert!(right.contains(&answer.status), "{method} {tag}: {} {}", answer.status, answer.text());
        }
    }
    for tag in ["a", "_", "0.-_", &"z".repeat(128)] {
        registry.push_manifest("team/app", tag, &image).await.unwrap_or_else(|trouble| panic!("{tag}: {trouble}"));
    }
    server.close().await;
}

async fn manifests_that_cannot_be_right_are_refused(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let image = Manifest::image("right", &[Blob::noise(1, 100)]);
    registry.push("team/app", "right", &image).await.expect("an image is pushed");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = image.document();
        change(&mut document);
        document.to_string()
    };
    let text = image.document().to_string();
    let deep = format!(r#"{{"schemaVersion":2,"layers":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(&str, String, &str)> = vec![
        ("nothing", String::new(), MANIFEST),
        ("no JSON", "layers".to_owned(), MANIFEST),
        ("half of it", text[..text.len() / 2].to_owned(), MANIFEST),
        ("two documents", format!("{text}{text}"), MANIFEST),
        ("a list", "[]".to_owned(), MANIFEST),
        ("without end", deep, MANIFEST),
        ("a key twice", text.replacen('{', r#"{"schemaVersion":2,"#, 1), MANIFEST),
        ("a list twice", text.replacen('{', r#"{"layers":[],"#, 1), MANIFEST),
        ("a digest twice", text.replacen(r#""digest""#, r#""digest":"sha256:00","digest""#, 1), MANIFEST),
        ("version 1", with(&|document| document["schemaVersion"] = json!(1)), MANIFEST),
        ("a version that is a text", with(&|document| document["schemaVersion"] = json!("2")), MANIFEST),
        ("layers that are no list", with(&|document| document["layers"] = json!({})), MANIFEST),
        ("a layer that is a text", with(&|document| document["layers"] = json!(["sha256:00"])), MANIFEST),
        ("another type than it says", text.clone(), INDEX),
        (
            "a type that is none",
            with(&|document| drop(document.as_object_mut().map(|all| all.remove("mediaType")))),
            "a b",
        ),
        ("an image and an index", with(&|document| document["manifests"] = json!([])), MANIFEST),
        (
            "a layer without a digest",
            with(&|document| document["layers"] = json!([{"mediaType": LAYER, "size": 1}])),
            MANIFEST,
        ),
        ("a negative size", with(&|document| document["layers"][0]["size"] = json!(-1)), MANIFEST),
        ("a size that is none", with(&|document| document["layers"][0]["size"] = json!("100")), MANIFEST),
        ("another size", with(&|document| document["layers"][0]["size"] = json!(101)), MANIFEST),
        ("another size of the configuration", with(&|document| document["config"]["size"] = json!(1)), MANIFEST),
    ];
    for (why, body, media_type) in cases {
        let ask = Ask::put("/v2/team/app/manifests/wrong").with(header::CONTENT_TYPE, media_type).body(body);
        let answer = registry.ask(ask.clone()).await;
        assert_eq!(answer.status, BAD, "{why}: {}", answer.text());
        refused(&registry, ask, BAD, "MANIFEST_INVALID").await;
    }
    for digest in ["sha256:short", "md5:00", "", "sha256"] {
        let body = with(&|document| document["layers"][0]["digest"] = json!(digest));
        let answer = registry
            .ask(Ask::put("/v2/team/app/manifests/wrong").with(header::CONTENT_TYPE, MANIFEST).body(body))
            .await;
        assert_eq!(answer.status, BAD, "`{digest}` in a manifest: {}", answer.text());
    }
    let large = with(&|document| document["annotations"] = json!({"x": "x".repeat(4 << 20)}));
    for ask in [
        Ask::put("/v2/team/app/manifests/wrong").body(large.clone()),
        Ask::put("/v2/team/app/manifests/wrong").stream(large),
    ] {
        refused(&registry, ask.with(header::CONTENT_TYPE, MANIFEST), StatusCode::PAYLOAD_TOO_LARGE, "").await;
    }
    let tags = registry.ask(Ask::get("/v2/team/app/tags/list")).await.json();
    assert_eq!(tags["tags"], json!(["right"]), "nothing that was refused is there");
    server.fsck().await;
    server.close().await;
}

async fn a_manifest_needs_everything_that_it_refers_to(ground: Ground) {
    let (server, registry) = spoken(ground).await;
    let layers: Vec<Blob> = (1..=7).map(|seed| Blob::noise(seed, 100)).collect();
    let image = Manifest::image("needs", &layers);
    // It is in this house, but not in this repository.
    registry.push("other/app", "1", &image).await.expect("an image is pushed");
    let put = |to: &str, manifest: &Manifest| larder_e2e::oci::put_manifest("team/app", to, manifest);
    let answer = refused(&registry, put("1", &image), StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN").await;
    assert!(answer.text().contains(&image.blobs[0].digest), "it says what is missing: {}", answer.text());
    for blob in image.blobs.iter().filter(|blob| **blob != layers[2]) {
        registry.push_blob("team/app", blob, Way::Put).await.expect("a blob is pushed");
    }
    let answer = refused(&registry, put("1", &image), StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN").await;
    let said = answer.text();
    assert!(said.contains(&layers[2].digest) && !said.contains(&layers[1].digest), "only what is missing: {said}");
    let index = Manifest::index(std::slice::from_ref(&image));
    for to in ["index", index.digest()] {
        let answer = refused(&registry, put(to, &index), StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN").await;
        assert!(answer.text().contains(image.digest()), "{}", answer.text());
    }
    for reference in ["1", "index", image.digest(), index.digest()] {
        let got = registry.ask(Ask::get(format!("/v2/team/app/manifests/{reference}"))).await;
        assert_eq!(got.status, StatusCode::NOT_FOUND, "nothing of what was refused is there");
    }
    // What says so does what it says: then all of it is taken.
    registry.push_blob("team/app", &layers[2], Way::Put).await.expect("a blob is pushed");
    registry.push_manifest("team/app", "1", &image).await.expect("now everything is there");
    registry.push_manifest("team/app", "index", &index).await.expect("and so is the index's");
    assert_eq!(registry.pull("team/app", "index").await.expect("it is pulled"), index.digest());
    // A repository that was never heard of is not made by a push that fails.
    let nowhere = larder_e2e::oci::put_manifest("new/app", "1", &image);
    refused(&registry, nowhere, StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN").await;
    refused(&registry, Ask::get("/v2/new/app/tags/list"), StatusCode::NOT_FOUND, "NAME_UNKNOWN").await;
    server.fsck().await;
    server.close().await;
}

/// Somebody who takes about 36 seconds for a chunk at the beginning of an upload. The server reads it already.
pub(crate) async fn writing(
    to: SocketAddr,
    token: &str,
    registry: &Registry,
    at: &str,
    chunk: Bytes,
) -> JoinHandle<()> {
    let mut slow = TcpStream::connect(to).await.expect("the server listens");
    let head = format!(
        "PATCH {at} HTTP/1.1\r\nHost: larder.test\r\nAuthorization: {}\r\nContent-Range: 0-{}\r\nContent-Length: {}\r\n\r\n",
        wire::basic("ci", token),
        chunk.len() - 1,
        chunk.len(),
    );
    slow.write_all(head.as_bytes()).await.expect("a head is sent");
    let writing = tokio::spawn(async move {
        for piece in chunk.chunks(chunk.len() / 144) {
            slow.write_all(piece).await.expect("the server takes what comes");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let mut said = [0; 12];
        slow.read_exact(&mut said).await.expect("the server says something");
        assert_eq!(&said, b"HTTP/1.1 202", "{}", String::from_utf8_lossy(&said));
    });
    // A chunk that goes on nowhere takes nothing from anybody, and learns whether somebody writes.
    until("the server knows of the first one", || async {
        let probe = registry.ask(Ask::patch(at).chunk(1_000_000, "x")).await;
        assert_eq!(probe.status, StatusCode::RANGE_NOT_SATISFIABLE, "{}", probe.text());
        probe.text().contains("another request writes").then_some(())
    })
    .await;
    writing
}

async fn of_two_that_write_to_one_upload_one_is_refused(ground: Ground) {
    let (server, token) = crate::registry(ground).await;
    let registry = Registry::new(&[server.address()], &token);
    let blob = Blob::noise(1, 300_000);
    let at = registry.begin("team/app").await.expect("an upload begins");
    let slow = writing(server.address(), &token, &registry, &at, blob.bytes.slice(..200_000)).await;
    let busy = [StatusCode::RANGE_NOT_SATISFIABLE, StatusCode::CONFLICT];
    // The server waits a while for the first one to end, so all at once.
    let others = [
        Ask::patch(&at).stream("x"),
        Ask::patch(&at).chunk(0, blob.bytes.slice(..10)),
        Ask::patch(&at).chunk(150_000, blob.bytes.slice(150_000..)),
        Ask::put(with_digest(&at, &blob.digest)).body(blob.bytes.clone()),
        Ask::put(with_digest(&at, &Blob::of("").digest)),
    ];
    let others = others.map(|ask| {
        let registry = registry.clone();
        tokio::spawn(async move { (ask.to_string(), registry.ask(ask).await) })
    });
    for other in others {
        let (shown, answer) = other.await.expect("it ends");
        assert!(busy.contains(&answer.status), "{shown}: {} {}", answer.status, answer.text());
    }
    slow.await.expect("the first one is not disturbed");
    assert_eq!(registry.ask(Ask::get(&at)).await.header("range"), "0-199999");
    // Many at once with the same chunk: exactly one is taken.
    let chunk = blob.bytes.slice(200_000..250_000);
    let all = (0..8).map(|_| {
        let (registry, ask) = (registry.clone(), Ask::patch(&at).chunk(200_000, chunk.clone()));
        tokio::spawn(async move { registry.ask(ask).await })
    });
    let mut accepted = 0;
    for one in all.collect::<Vec<_>>() {
        let answer = one.await.expect("it ends");
        match answer.status {
            StatusCode::ACCEPTED => accepted += 1,
            status => assert!(busy.contains(&status), "{status}: {}", answer.text()),
        }
    }
    assert_eq!(accepted, 1, "one chunk is taken once");
    let last = Ask::patch(&at).chunk(250_000, blob.bytes.slice(250_000..));
    let last = registry.ask(last).await;
    assert_eq!(last.status, StatusCode::ACCEPTED, "{}", last.text());
    let done = registry.ask(Ask::put(with_digest(&location(&last), &blob.digest))).await;
    assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
    assert_eq!(registry.ask(Ask::get(location(&done))).await.body, blob.bytes);
    server.fsck().await;
    server.close().await;
}

/// Why, the request's line, more headers, the body, and the statuses that are right.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], &'a [u16]);

async fn requests_that_no_client_sends_get_their_4xx(ground: Ground) {
    let (server, token) = crate::registry(ground).await;
    let registry = Registry::new(&[server.address()], &token);
    let image = Manifest::image("odd", &[Blob::noise(1, 3_000)]);
    registry.push("team/app", "1", &image).await.expect("an image is pushed");
    let at = registry.begin("team/app").await.expect("an upload begins");
    let blob = format!("/v2/team/app/blobs/{}", image.blobs[1].digest);
    for (method, path) in [
        (Method::POST, "/v2/team/app/manifests/1"),
        (Method::PATCH, "/v2/team/app/manifests/1"),
        (Method::PUT, blob.as_str()),
        (Method::POST, &blob),
        (Method::PUT, "/v2/team/app/blobs/uploads/"),
        (Method::DELETE, "/v2/team/app/blobs/uploads/"),
        (Method::POST, &at),
        (Method::DELETE, "/v2/team/app/tags/list"),
        (Method::POST, "/v2/_catalog"),
        (Method::DELETE, "/v2/"),
        (Method::PUT, "/v2/token"),
    ] {
        let answer =
            refused(&registry, Ask::new(method.clone(), path).body(""), StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")
                .await;
        assert!(!answer.header("allow").is_empty(), "{method} {path}: it says what is allowed");
    }
    for path in
        ["/v2/x", "/v2/team/app", "/v2/team/app/nothing/1", "/v2/team/app/tags", "/v2/team/app/blobs/uploads/a/b"]
    {
        let answer = registry.ask(Ask::get(path)).await;
        assert!([StatusCode::NOT_FOUND, BAD].contains(&answer.status), "{path}: {}", answer.status);
    }
    let send = async |request: &str, more: &str, body: &[u8]| {
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{more}\r\n"
        );
        let said = wire::raw(server.address(), &[head.as_bytes(), body].concat(), Duration::from_secs(10)).await;
        said.get(9..12).and_then(|code| code.parse::<u16>().ok()).unwrap_or_default()
    };
    let patch = format!("PATCH {at}");
    let cases: [Case<'_>; 8] = [
        ("two lengths", &patch, "Content-Length: 1\r\nContent-Length: 2\r\n", b"ab", &[400]),
        ("chunks that are none", &patch, "Transfer-Encoding: chunked\r\n", b"zz\r\nab\r\n", &[400]),
        ("a body in gzip", &patch, "Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"ab", &[202, 400, 415]),
        (
            "two ranges",
            &patch,
            "Content-Range: 0-1\r\nContent-Range: 2-3\r\nContent-Length: 2\r\n",
            b"ab",
            &[202, 400, 416],
        ),
        ("a manifest of no length", "PUT /v2/team/app/manifests/2", "Content-Length: 0\r\n", b"", &[400]),
        ("a way up", "GET /v2/team/../../etc/passwd", "", b"", &[400]),
        ("a slash within", "GET /v2/team%2fapp/manifests/1", "", b"", &[200, 400, 404]),
        ("100 query parameters", &format!("GET /v2/_catalog?{}", "n=1&".repeat(100)), "", b"", &[200, 400]),
    ];
    for (why, request, more, body, right) in cases {
        let status = send(request, more, body).await;
        assert!(right.contains(&status), "{why}: {status}, not one of {right:?}");
    }
    assert_eq!(registry.pull("team/app", "1").await.expect("it goes on as if nothing had been"), image.digest());
    server.close().await;
}
