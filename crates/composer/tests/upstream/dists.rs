//! Dists: fetched once, compared with what the upstream says of them, kept for ever.

use futures_util::{StreamExt as _, future::join_all};
use larder_composer::{
    DIST,
    entry::Entry,
    upstream::{Looked, dist_key},
};
use larder_core::{Id, Kind, digest::Sha1};
use larder_db::{
    Statement,
    packages::{self, Artifact, topic},
};

use crate::{CHANGED, NAME, house::House, server::Server};

const DIST_1: &str = "/d/1.0.zip";

/// Something that begins as a zip does.
fn zip(text: &str) -> Vec<u8> {
    [b"PK\x03\x04", text.repeat(300).as_bytes()].concat()
}

fn sha1(bytes: &[u8]) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(bytes);
    sha1.finish()
}

async fn bring(house: &House, version: &str) -> Result<(Id, Artifact), (Kind, String)> {
    let package = house.package(NAME).await.unwrap();
    let told = house.proxy.told(&package).await.unwrap().unwrap().tagged.unwrap();
    let entry: &Entry = told.entries.iter().find(|entry| entry.text("version").as_deref() == Some(version)).unwrap();
    let (key, normal) = (dist_key(entry).unwrap(), entry.text("version_normalized").unwrap());
    let brought = house.proxy.bring(&package, &normal, &key, entry, Some(&told.document)).await;
    brought.map_err(|error| (error.kind(), error.message().to_owned()))
}

/// How often it was said that something of the package has changed.
async fn told_to_have_changed(house: &House) -> usize {
    let sql = "select topic from changes where topic = $1";
    house.db.read(Statement::read(sql, [topic("composer", NAME).into()])).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dist_that_comes_changes_no_document_but_one_that_tells_other_bytes() {
    for (house, server) in House::each().await {
        let content = zip("one");
        with_version(&house, &server, &sha1(&content)).await;
        server.file(DIST_1, content.clone());
        let before = told_to_have_changed(&house).await;
        bring(&house, "1.0").await.unwrap();
        assert_eq!(told_to_have_changed(&house).await, before);

        let package = house.package(NAME).await.unwrap();
        let told = house.proxy.told(&package).await.unwrap().unwrap().tagged.unwrap();
        for (version, document) in [("7.0.0.0", Some("another one")), ("8.0.0.0", None)] {
            let before = told_to_have_changed(&house).await;
            house.proxy.bring(&package, version, "abc", &told.entries[0], document).await.unwrap();
            assert_eq!(told_to_have_changed(&house).await, before + 1, "{document:?}");
        }
    }
}

async fn bytes(house: &House, artifact: &Artifact) -> Vec<u8> {
    let opened = house.blobs.open(&artifact.digest, None).await.unwrap();
    let pieces: Vec<_> = opened.stream.map(Result::unwrap).collect().await;
    pieces.concat()
}

/// With one version, whose dist has this SHA-1.
async fn with_version(house: &House, server: &Server, shasum: &str) {
    server.package(NAME, &[server.version(NAME, "1.0", shasum)]);
    assert_eq!(house.look(NAME).await, CHANGED);
    server.asked();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_want_a_dist_fetch_it_once_and_it_is_kept() {
    for (mut house, server) in House::each().await {
        let content = zip("one");
        with_version(&house, &server, &sha1(&content)).await;
        server.file(DIST_1, content.clone());
        let brought = join_all((0..50).map(|_| bring(&house, "1.0"))).await;
        let (id, artifact) = brought[0].clone().unwrap();
        assert!(brought.iter().all(|one| one.as_ref().is_ok_and(|one| *one == (id, artifact.clone()))));
        assert_eq!(server.asked(), [DIST_1]);
        assert_eq!(bytes(&house, &artifact).await, content);
        assert_eq!(artifact.sha1, sha1(&content));
        let (row, package) = packages::version_with_package(&house.db, id, DIST).await.unwrap().unwrap();
        assert_eq!((row.version.as_str(), row.display.as_str(), row.reference.as_str()), ("1.0.0.0", "1.0", "ref1.0"));
        assert_eq!(row.released_at.rfc3339(), "2026-01-02T03:04:05+00:00");
        assert!(row.stable && !row.listed);
        // Nothing lists it, so the package looks as its upstream tells it.
        assert!(packages::visible(&house.db, package.id, DIST).await.unwrap().is_empty());
        assert_eq!(house.events("artifact.fetch").await, 1);
        // Other bytes at the same place later are nobody's business, and neither is another process.
        server.file(DIST_1, zip("two"));
        house.restart().await;
        assert_eq!(bring(&house, "1.0").await.unwrap(), (id, artifact));
        assert_eq!(server.asked(), [] as [&str; 0]);
        // When the upstream forgets the package, its bytes stay.
        server.forget("/p2/acme/lib.json");
        house.later(700).await;
        assert_eq!(house.look(NAME).await, Ok(Looked::Absent));
        assert_eq!(packages::by_reference(&house.db, package.id, "ref1.0", DIST).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_should_be_leaves_nothing() {
    for (mut house, server) in House::each().await {
        with_version(&house, &server, &sha1(b"something else")).await;
        let page = "<!DOCTYPE html><title>Log in</title>".repeat(20);
        let large = [zip("x"), vec![0; 2 * 1024 * 1024]].concat();
        for (trouble, expected) in
            ["has the SHA-1", "is a web page", "is a web page", "is something else", "bytes", "1.0", "500", "more than"]
                .into_iter()
                .enumerate()
        {
            match trouble {
                0 => server.file(DIST_1, zip("one")),
                1 => server.file(DIST_1, page.clone()),
                2 => server.page(DIST_1, 200, "  <html>"),
                3 => server.page(DIST_1, 200, "{\"error\":\"sorry\"}"),
                4 => server.half(DIST_1, zip("one")),
                5 => server.forget(DIST_1),
                6 => server.page(DIST_1, 500, "oh"),
                _ => server.file(DIST_1, large.clone()),
            }
            house.later(10).await;
            let (kind, message) = bring(&house, "1.0").await.unwrap_err();
            assert_eq!(kind, if trouble == 5 { Kind::NotFound } else { Kind::Upstream }, "{trouble}: {message}");
            assert!(trouble == 4 || trouble == 7 || message.contains(expected), "{trouble}: {message}");
            let asked = server.asked();
            assert_eq!(asked, [DIST_1], "{trouble}");
            // It is not asked for again at once.
            assert_eq!(bring(&house, "1.0").await.unwrap_err().0, kind);
            assert_eq!(server.asked(), [] as [&str; 0]);
            let package = house.package(NAME).await.unwrap();
            assert!(packages::kept(&house.db, package.id, DIST).await.unwrap().is_empty(), "{trouble}");
        }
        assert_eq!(house.events("artifact.mismatch").await, 1);
        assert_eq!(house.blobs.accounted().await.unwrap().blobs, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dist_whose_bytes_are_lost_comes_again_if_it_is_the_same() {
    for (mut house, server) in House::each().await {
        let content = zip("one");
        with_version(&house, &server, "").await;
        server.file(DIST_1, content.clone());
        let (id, artifact) = bring(&house, "1.0").await.unwrap();
        server.asked();
        lose(&house, &artifact).await;
        server.file(DIST_1, zip("two"));
        let (kind, message) = bring(&house, "1.0").await.unwrap_err();
        assert_eq!(kind, Kind::Damaged, "{message}");
        house.later(10).await;
        server.file(DIST_1, content.clone());
        assert_eq!(bring(&house, "1.0").await.unwrap(), (id, artifact.clone()));
        assert_eq!(bytes(&house, &artifact).await, content);
    }
}

/// Takes the bytes of a blob away, as a broken disk does.
async fn lose(house: &House, artifact: &Artifact) {
    let row = house.blobs.stat(&artifact.digest).await.unwrap().unwrap();
    house.blobs.store().delete(&row.location).await.unwrap();
}
