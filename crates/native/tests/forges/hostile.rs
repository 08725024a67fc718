//! What a host must not be able to do that says other things than a forge would.

use larder_core::Kind;
use larder_db::{forges::RepositoryState, sources::SourceState};
use larder_sources::forges::ForgeKind;
use larder_testkit::Forge;

use crate::{
    KINDS,
    api::{Repo, list, place},
    five,
    house::{House, MANIFEST},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_goes_to_no_other_host() {
    for kind in KINDS {
        for house in House::each(kind).await {
            let other = Forge::start().await;
            let mut repos = five();
            repos[0].clone = Some(other.url("acme/one"));
            repos[3].clone = Some("https://elsewhere.example.org/acme/three.git".to_owned());
            house.has(repos);
            house.credential("own", kind.word()).await;
            let forge = house.add_with("acme/*", Some("own")).await.unwrap();
            let (header, value) = match kind {
                ForgeKind::Github | ForgeKind::Bitbucket => ("authorization", "Bearer sesame"),
                ForgeKind::Gitlab => ("private-token", "sesame"),
                ForgeKind::Gitea => ("authorization", "token sesame"),
            };
            house.teller.world().token = Some((header, value.to_owned()));
            let found = house.discover(&forge).await.unwrap();
            assert_eq!(found.added, ["acme-two"], "{kind:?}");
            assert_eq!(found.refused.keys().collect::<Vec<_>>(), ["acme/one", "acme/three"]);
            assert!(found.refused["acme/three"].contains("elsewhere.example.org"), "{:?}", found.refused);
            assert_eq!(house.state("acme/one").await, Some(RepositoryState::Refused));
            let child = house.source("acme-two").await;
            assert_eq!(child.credential_id, forge.credential_id);
            house.sync(&child).await;

            // One that is a source already says that it moved there.
            house.teller.world().repos[2].clone = Some(other.url("acme/two"));
            let found = house.discover(&forge).await.unwrap();
            assert!(found.refused.contains_key("acme/two") && found.moved.is_empty());
            assert_eq!(house.source("acme-two").await.url, house.git.url("acme/two"), "it stays where it was");
            // Its list goes on there.
            let next = format!("<{}/api/v3/x?page=2>; rel=\"next\"", other.base());
            house.teller.world().instead = Some((200, paged(kind, &next), Some(next)));
            assert_eq!(house.discover(&forge).await.unwrap_err().kind(), Kind::Upstream);
            assert_eq!(other.traffic().0, 0, "nobody asked the other host");
            assert!(other.authorizations().is_empty());
        }
    }
}

/// An empty page that goes on at an address that stands in a `Link` header.
fn paged(kind: ForgeKind, link: &str) -> Vec<u8> {
    let address = link.trim_start_matches('<').split('>').next().unwrap();
    match kind {
        ForgeKind::Bitbucket => serde_json::json!({ "values": [], "next": address }).to_string().into_bytes(),
        _ => b"[]".to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_changes_nothing_and_is_told() {
    for kind in KINDS {
        for house in House::each(kind).await {
            house.has(five());
            let forge = house.add("acme/*").await;
            house.discover(&forge).await.unwrap();
            let own = format!("<{}{}{}?page=7>; rel=\"next\"", house.git.base(), place(kind), list(kind));
            let above = format!("<{}/elsewhere?page=2>; rel=\"next\"", house.git.base());
            let huge = vec![b' '; 9 * 1024 * 1024];
            for (what, body, link, kind_of_error) in [
                ("HTML", b"<!doctype html><title>Sign in</title>".to_vec(), None, Kind::Upstream),
                ("another shape", b"{\"message\":\"hello\"}".to_vec(), None, Kind::Upstream),
                ("half of it", b"[{\"id\":1,\"full_name\":\"acme/o".to_vec(), None, Kind::Upstream),
                ("deep", b"[".repeat(100_000), None, Kind::Upstream),
                ("huge", huge, None, Kind::TooLarge),
                ("a circle", paged(kind, &own), Some(own.clone()), Kind::Upstream),
                ("above the API", paged(kind, &above), Some(above), Kind::Upstream),
            ] {
                house.teller.world().instead = Some((200, body, link));
                let error = house.discover(&forge).await.unwrap_err();
                assert_eq!(error.kind(), kind_of_error, "{what}: {error}");
                let failed = house.source(&forge.name).await;
                assert_eq!(
                    (failed.state, failed.problem.as_deref()),
                    (SourceState::Failed, Some(error.message())),
                    "{what}"
                );
                assert_eq!(house.children(&forge).await, 3, "{what}");
                assert_eq!(house.source("acme-one").await.state, SourceState::New, "{what}");
            }
            house.teller.world().instead = None;
            house.discover(&forge).await.unwrap();
            assert_eq!(house.source(&forge.name).await.state, SourceState::Ok, "and it is well again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_repositories_are_no_sources() {
    for house in House::each(ForgeKind::Github).await {
        let mut repos = five();
        for (id, path, clone) in [
            (11, "acme/../../etc", None),
            (12, "acme/a b", None),
            (13, "acme/option", Some("--upload-pack=id".to_owned())),
            (14, "acme/helper", Some("ext::sh -c id".to_owned())),
            (15, "acme/file", Some("file:///etc".to_owned())),
            (16, "acme/secret", Some(house.git.url("acme/one").replace("http://", "http://me:hidden@"))),
            (17, "acme/ssh", Some("git@127.0.0.1:acme/one.git".to_owned())),
            (18, "other/lib", None),
        ] {
            repos.push(Repo { clone, ..Repo::new(id, path, &[MANIFEST]) });
        }
        house.has(five());
        house.teller.world().repos = repos;
        let forge = house.add("acme/**").await;
        let found = house.discover(&forge).await.unwrap();
        assert_eq!(found.added, ["acme-one", "acme-three", "acme-two"]);
        assert_eq!(
            found.refused.keys().collect::<Vec<_>>(),
            ["acme/file", "acme/helper", "acme/option", "acme/secret", "acme/ssh"]
        );
        assert!(!format!("{:?} {}", found.refused, house.report(&forge).await).contains("hidden"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_not_there_and_a_credential_that_is_refused() {
    for house in House::each(ForgeKind::Gitlab).await {
        let nobody = house.add("nobody/*").await;
        let error = house.discover(&nobody).await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.message().contains("no `nobody`"), "{error}");
        house.credential("other", "github").await;
        let error = house.add_with("acme/*", Some("other")).await.unwrap_err();
        assert!(error.message().contains("--kind gitlab"), "{error}");
        house.credential("own", "gitlab").await;
        let forge = house.add_with("acme/*", Some("own")).await.unwrap();
        house.teller.world().token = Some(("private-token", "another".to_owned()));
        let error = house.discover(&forge).await.unwrap_err();
        assert!(error.kind() == Kind::Forbidden && error.message().contains("larder credential test own"), "{error}");
        assert!(!error.message().contains("sesame"));
    }
}
