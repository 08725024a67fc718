//! Packages that somebody sends: they install like all others, what is once published stays what it is, and what is refused
//! leaves nothing.

use std::{io::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use futures_util::future::join_all;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use larder_e2e::{
    Composer, Ground, Options, Project, Server, Stored, on_every_ground, packages,
    wire::{self, Answer},
};
use larder_testkit::Forge;
use rawzip::{CompressionMethod, ZipArchiveWriter, path::EntryPath};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

on_every_ground!(
    an_uploaded_package_installs_and_runs_however_deep_it_lies_in_its_zip,
    what_is_published_stays_what_it_is_also_when_ten_come_at_once,
    whoever_may_not_publish_is_told_before_a_byte_is_read,
    hostile_zips_are_refused_and_leave_nothing,
    a_described_package_stays_when_the_place_that_it_came_from_is_gone,
);

/// What an upload may cost in memory, with all else that a server needs.
const BOUND: u64 = 250 * 1024 * 1024;

type Files = Vec<(String, Vec<u8>)>;

/// `acme/hello` as of `version`, below `folder`.
fn hello(folder: &str, version: Option<&str>) -> Files {
    let mut manifest = json!({
        "name": "acme/hello",
        "description": "Says hello",
        "autoload": {"psr-4": {"Acme\\Hello\\": "src/"}},
        "config": {"token": "stays-at-home"},
    });
    if let Some(version) = version {
        manifest["version"] = version.into();
    }
    let said = version.unwrap_or("nobody knows");
    let class =
        format!("<?php\nnamespace Acme\\Hello;\n\nfinal class Hello\n{{\n    public const VERSION = '{said}';\n}}\n");
    vec![
        (format!("{folder}composer.json"), manifest.to_string().into_bytes()),
        (format!("{folder}src/Hello.php"), class.into_bytes()),
    ]
}

fn zip(files: &[(String, Vec<u8>)]) -> Bytes {
    zip_with(files, false, 0o100_644)
}

fn zip_with(files: &[(String, Vec<u8>)], encrypted: bool, mode: u32) -> Bytes {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (path, bytes) in files {
        let (mut entry, config) = archive
            .new_file(EntryPath::verbatim(path.as_bytes()))
            .compression_method(CompressionMethod::DEFLATE)
            .unix_permissions(mode)
            .encrypted(encrypted)
            .start()
            .expect("a zip can be written");
        let mut data = config.wrap(DeflateEncoder::new(&mut entry, Compression::fast()));
        data.write_all(bytes).expect("memory takes everything");
        let (encoder, descriptor) = data.finish().expect("memory takes everything");
        encoder.finish().expect("memory takes everything");
        entry.finish(descriptor).expect("memory takes everything");
    }
    archive.finish().expect("memory takes everything").into()
}

async fn send(server: &Server, method: Method, path: &str, token: Option<&str>, kind: &str, body: Bytes) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("/api/v1/composer/{path}"));
    request = request.header(header::HOST, "larder.test").header(header::CONTENT_TYPE, kind);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body)).expect("the test's request is well-formed");
    wire::send(server.address(), request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

async fn put(server: &Server, path: &str, token: &str, zip: &Bytes) -> Answer {
    send(server, Method::PUT, path, Some(token), "application/zip", zip.clone()).await
}

async fn publisher(server: &Server) -> String {
    server.token("publisher", &["read,publish:composer:acme/**"]).await
}

fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

async fn an_uploaded_package_installs_and_runs_however_deep_it_lies_in_its_zip(ground: Ground) {
    let server = Server::start(ground).await;
    let token = publisher(&server).await;
    let mut beside = hello("build/out/", Some("1.3.0"));
    beside.push(("__MACOSX/._out".to_owned(), b"junk".to_vec()));
    for (version, files, path) in [
        ("1.0.0", hello("", Some("1.0.0")), "acme/hello"),
        ("1.1.0", hello("hello-1.1.0/", None), "acme/hello/1.1.0"),
        ("1.3.0", beside, "acme/hello/v1.3.0"),
    ] {
        let zip = zip(&files);
        let answer = put(&server, path, &token, &zip).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{version}: {}", answer.text());
        let said = answer.json();
        assert_eq!(
            (&said["name"], &said["normalized"]),
            (&json!("acme/hello"), &json!(format!("{version}.0"))),
            "{said}"
        );
        let url = said["url"].as_str().unwrap_or_default().replace(&server.url(), "");
        let answer = server.get(&url, Some(&token)).await;
        assert_eq!(answer.status, StatusCode::OK, "{url}");
        assert_eq!(answer.body == zip, version != "1.3.0", "only what clients would not find is packed anew");
        assert_eq!(said["warnings"].as_array().map_or(0, Vec::len), usize::from(version == "1.3.0"), "{said}");
    }
    let file = server.data().with_file_name("hello.zip");
    std::fs::write(&file, zip(&hello("", Some("1.2.0")))).expect("a file can be written");
    let file = file.display().to_string();
    let published = server.json(&["package", "publish", &file, "--name", "acme/hello"]).await;
    assert_eq!((&published["version"], &published["new"]), (&json!("1.2.0"), &json!(true)));
    let said = server.ok(&["package", "publish", &file]).await;
    assert!(said.contains("was here already"), "{said}");
    let said = server.larder(&["package", "publish", &file, "--name", "acme/other"]).await.failed(1);
    assert!(said.contains("acme/hello") && said.contains("acme/other"), "{said}");
    server.until_versions(&token, "acme/hello", false, &["1.3.0", "1.2.0", "1.1.0", "1.0.0"]).await;
    let metadata = server.get("/p2/acme/hello.json", Some(&token)).await.text();
    assert!(!metadata.contains("stays-at-home"), "{metadata}");
    for composer in Composer::each() {
        for (version, told) in [("1.0.0", "1.0.0"), ("1.1.0", "nobody knows"), ("1.2.0", "1.2.0"), ("1.3.0", "1.3.0")] {
            let project = Project::new(&composer, &server, &token);
            project.composer(&["require", &format!("acme/hello:{version}")]).await.ok();
            let run = "require 'vendor/autoload.php'; echo Acme\\Hello\\Hello::VERSION;";
            assert_eq!(project.php(run).await.ok(), told, "{version}");
            assert!(!project.path().join("vendor/acme/hello/__MACOSX").exists());
        }
    }
    let gone = send(&server, Method::DELETE, "acme/hello/1.2.0", Some(&token), "", Bytes::new()).await;
    assert_eq!(gone.status, StatusCode::FORBIDDEN);
    let remover = server.token("remover", &["read,delete:composer:acme/**"]).await;
    let gone = send(&server, Method::DELETE, "acme/hello/1.2.0", Some(&remover), "", Bytes::new()).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text());
    server.until_versions(&token, "acme/hello", false, &["1.3.0", "1.1.0", "1.0.0"]).await;
    let events = server.json(&["audit", "list", "--action", "version"]).await;
    let by = |action: &str| {
        let events = events.as_array().into_iter().flatten().filter(|event| event["action"] == action);
        events.map(|event| event["actor"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(by("version.remove"), ["token:remover"]);
    assert_eq!(by("version.publish"), ["cli", "token:publisher", "token:publisher", "token:publisher"]);
    server.fsck().await;
    server.close().await;
}

async fn what_is_published_stays_what_it_is_also_when_ten_come_at_once(ground: Ground) {
    let server = Server::start(ground).await;
    let token = publisher(&server).await;
    let variants: Vec<Bytes> = (0..10)
        .map(|number| {
            let mut files = hello("", Some("1.0.0"));
            files.push(("number".to_owned(), format!("{number}").into_bytes()));
            zip(&files)
        })
        .collect();
    let answers = join_all(variants.iter().map(|zip| put(&server, "acme/hello", &token, zip))).await;
    let won: Vec<usize> = (0..10).filter(|at| answers[*at].status == StatusCode::CREATED).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    for answer in answers.iter().filter(|answer| answer.status != StatusCode::CREATED) {
        assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.text());
        assert!(error(answer).contains("new version") && error(answer).contains("package remove"), "{}", answer.text());
    }
    let winner = &variants[won[0]];
    for answer in join_all((0..10).map(|_| put(&server, "acme/hello", &token, winner))).await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.json()["new"], false);
    }
    let objects = Stored::of(&server).list().await;
    assert_eq!(
        objects.iter().map(|object| object.size).collect::<Vec<_>>(),
        [winner.len() as u64],
        "losers leave nothing"
    );

    // Ten of the same at once, of a name that nobody has yet.
    let same = zip(&[("composer.json".to_owned(), br#"{"name":"acme/same","version":"2.0.0"}"#.to_vec())]);
    let answers = join_all((0..10).map(|_| put(&server, "acme/same", &token, &same))).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::OK)), (1, 9), "{answers:?}");

    // A branch goes on; what it was can still be had.
    let (first, second) = (&variants[0], &variants[1]);
    let one = put(&server, "acme/hello/dev-feature/x", &token, first).await;
    let two = put(&server, "acme/hello/dev-feature/x", &token, second).await;
    assert_eq!((one.status, two.status), (StatusCode::CREATED, StatusCode::CREATED), "{} {}", one.text(), two.text());
    assert_eq!(put(&server, "acme/hello/dev-feature/x", &token, second).await.status, StatusCode::OK);
    server.until_versions(&token, "acme/hello", true, &["dev-feature/x"]).await;
    let shown = &server.versions(&token, "acme/hello", true).await[0]["dist"];
    assert_eq!(shown["reference"], two.json()["reference"]);
    let before = one.json()["url"].as_str().unwrap_or_default().replace(&server.url(), "");
    assert_eq!(&server.get(&before, Some(&token)).await.body, first);
    server.close().await;
}

async fn whoever_may_not_publish_is_told_before_a_byte_is_read(ground: Ground) {
    let forge = Forge::start().await;
    packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let options = Options::default().with("LARDER_LIMITS_ARTIFACT", "1000000");
    let server = Server::start_with(&Arc::new(ground), options).await;
    server.add("text", &forge.url("text"), &[]).await;
    let reader = server.token("reader", &["read:composer:acme/**"]).await;
    let other = server.token("other", &["read,publish:composer:globex/**"]).await;
    let token = publisher(&server).await;
    let good = zip(&hello("", Some("1.0.0")));
    let refused = put(&server, "acme/hello", &reader, &good).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(error(&refused).contains("larder grant add token:reader publish"), "{}", refused.text());
    assert_eq!(put(&server, "acme/hello", &other, &good).await.status, StatusCode::NOT_FOUND);
    let nobody = send(&server, Method::PUT, "acme/hello", None, "application/zip", good.clone()).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    // The answer comes although nothing of the body does.
    for (token, length, expected) in [(&reader, 900_000, "403"), (&other, 900_000, "404"), (&token, 1_000_001, "413")] {
        let head = format!(
            "PUT /api/v1/composer/acme/hello HTTP/1.1\r\nHost: larder.test\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let said = wire::raw(server.address(), head.as_bytes(), Duration::from_secs(5)).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {expected} ")), "{said}");
    }
    let endless = format!(
        "PUT /api/v1/composer/acme/hello HTTP/1.1\r\nHost: larder.test\r\nAuthorization: Bearer {token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n{}",
        format!("ffff\r\n{}\r\n", "x".repeat(0xffff)).repeat(20)
    );
    let said = wire::raw(server.address(), endless.as_bytes(), Duration::from_secs(5)).await;
    assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("limits.artifact"), "{said}");

    let mine = [("composer.json".to_owned(), br#"{"name":"acme/text","version":"9.0.0"}"#.to_vec())];
    let refused = put(&server, "acme/text", &token, &zip(&mine)).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(error(&refused).contains("the source `text`"), "{}", refused.text());
    let misnamed = put(&server, "acme/wrong", &token, &good).await;
    assert_eq!(misnamed.status, StatusCode::BAD_REQUEST);
    for (path, version) in [("acme/hello/1.2.0", Some("1.0.0")), ("acme/hello", None), ("acme/hello/what", None)] {
        let answer = put(&server, path, &token, &zip(&hello("", version))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {version:?}: {}", answer.text());
    }
    assert_eq!(
        send(&server, Method::GET, "acme/hello/1.0.0", Some(&token), "", Bytes::new()).await.status.as_u16(),
        405
    );
    assert_eq!(server.get("/p2/acme/hello.json", Some(&token)).await.status, StatusCode::NOT_FOUND);
    server.close().await;
}

/// A zip whose end says that it has ten million entries.
fn ten_million() -> Bytes {
    let mut bytes = zip(&hello("", Some("1.0.0"))).to_vec();
    let end = bytes.split_off(bytes.len() - 22);
    let position = bytes.len() as u64;
    bytes.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
    for number in [10_000_000, 10_000_000, position - 100, 100] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend(position.to_le_bytes());
    bytes.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    bytes.extend([0xff; 12]);
    bytes.extend(&end[20..]);
    bytes.into()
}

fn with(path: &str, bytes: impl Into<Vec<u8>>) -> Files {
    let mut files = hello("", Some("1.0.0"));
    files.push((path.to_owned(), bytes.into()));
    files
}

async fn hostile_zips_are_refused_and_leave_nothing(ground: Ground) {
    let server = Server::start(ground).await;
    let token = publisher(&server).await;
    let many: Files = (0..200_000).map(|number| (format!("f/{number}"), Vec::new())).collect();
    let whole = zip(&hello("", Some("1.0.0")));
    let link = zip_with(&[("out".to_owned(), b"../../../../etc/passwd".to_vec())], false, 0o120_777);
    for (name, zip, expected) in [
        ("a bomb", zip(&with("zeros", vec![0; 300 << 20])), "bomb"),
        ("one that climbs out", zip(&with("../../evil", "x")), "`..`"),
        ("an absolute name", zip(&with("/etc/cron.d/evil", "x")), "absolute"),
        ("a Windows name", zip(&with("..\\..\\evil", "x")), "backslash"),
        ("an encrypted one", zip_with(&hello("", Some("1.0.0")), true, 0o100_644), "encrypted"),
        ("a link that leads out", link, "no composer.json"),
        ("two of one name", zip(&with("composer.JSON", "{}")), "differs only in case"),
        ("ten million entries", ten_million(), "10000000 entries"),
        ("many entries", zip(&many), "200000 entries"),
        ("one that was cut off", whole.slice(..whole.len() - 30), "no zip"),
        ("something in front", [b"#!/bin/sh\n".as_slice(), &whole].concat().into(), "the zip is refused"),
        ("something behind", [&whole[..], b"more"].concat().into(), "behind its end"),
        ("no zip at all", Bytes::from_static(b"<html>"), "no zip"),
        ("nothing", Bytes::new(), "no zip"),
        (
            "a wrong constraint",
            zip(&[(
                "composer.json".to_owned(),
                br#"{"name":"acme/hello","version":"1.0.0","require":{"a/b":"="}}"#.to_vec(),
            )]),
            "constraint",
        ),
    ] {
        let answer = put(&server, "acme/hello", &token, &zip).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}: {}", answer.text());
        assert!(error(&answer).contains(expected), "{name}: {}", answer.text());
        assert_eq!(Stored::of(&server).list().await, [], "{name} left something");
    }
    assert!(server.peak_memory() < BOUND, "{} bytes", server.peak_memory());
    let events = server.json(&["audit", "list", "--action", "version"]).await;
    assert_eq!(events, json!([]));
    assert_eq!(server.get("/p2/acme/hello.json", Some(&token)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(put(&server, "acme/hello", &token, &whole).await.status, StatusCode::CREATED, "and it goes on");
    server.close().await;
}

/// Answers every request with these bytes, until it is dropped.
async fn shelf(bytes: Bytes) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}/old-1.0.zip", listener.local_addr().expect("it listens"));
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4_096];
            drop(stream.read(&mut head).await);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.write_all(&bytes).await);
        }
    });
    (url, serving)
}

async fn a_described_package_stays_when_the_place_that_it_came_from_is_gone(ground: Ground) {
    let server = Server::start(ground).await;
    let token = publisher(&server).await;
    // No composer.json in it at all: that is why it is described.
    let old = zip(&[("old-1.0/src/Old.php".to_owned(), b"<?php\nfinal class Old { const IS = 'old'; }\n".to_vec())]);
    let (url, serving) = shelf(old.clone()).await;
    let described = |dist: Value| {
        let package = json!({"name": "acme/old", "version": "1.0", "dist": dist, "autoload": {"classmap": ["src/"]}});
        Bytes::from(package.to_string())
    };
    let send = async |dist: Value| {
        send(&server, Method::PUT, "acme/old", Some(&token), "application/json", described(dist)).await
    };
    for (dist, status) in [
        (json!({"type": "zip", "url": url, "shasum": "0".repeat(40)}), StatusCode::BAD_REQUEST),
        (json!({"type": "tar", "url": url}), StatusCode::BAD_REQUEST),
        (json!({"type": "zip", "url": "file:///etc/passwd"}), StatusCode::BAD_REQUEST),
        (json!({"type": "zip", "url": "http://127.0.0.1:1/x.zip"}), StatusCode::BAD_GATEWAY),
        (json!({"url": url}), StatusCode::BAD_REQUEST),
    ] {
        let answer = send(dist.clone()).await;
        assert_eq!(answer.status, status, "{dist}: {}", answer.text());
    }
    assert_eq!(Stored::of(&server).list().await, []);
    let answer = send(json!({"type": "zip", "url": url})).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let shasum = answer.json()["shasum"].clone();
    assert_eq!(send(json!({"type": "zip", "url": url, "shasum": shasum})).await.status, StatusCode::OK);
    serving.abort();
    drop(serving.await);
    assert_eq!(send(json!({"type": "zip", "url": url})).await.status, StatusCode::BAD_GATEWAY);
    if let Some(composer) = Composer::any() {
        let project = Project::new(&composer, &server, &token);
        project.composer(&["require", "acme/old:^1.0"]).await.ok();
        assert_eq!(project.php("require 'vendor/autoload.php'; echo Old::IS;").await.ok(), "old");
    }
    server.close().await;
}
