//! Forges, on every database: what their APIs list becomes sources, and follows what happens there. The API is told as
//! documented (`api.rs`), the repositories behind it are real, and what is looked at is what is in the database.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod api;
mod hostile;
mod house;
mod standing;

use std::time::Duration;

use larder_core::{Kind, Time};
use larder_db::{forges::RepositoryState, sources::SourceState};
use larder_sources::{
    forges::{ForgeKind, Orphans},
    manage::KeptFiles,
};

use self::{
    api::{Repo, list},
    house::{House, MANIFEST},
};

const KINDS: [ForgeKind; 4] = [ForgeKind::Github, ForgeKind::Gitlab, ForgeKind::Bitbucket, ForgeKind::Gitea];
const HOUR: Duration = Duration::from_secs(3_600);

/// Five repositories, three of which hold a package.
fn five() -> Vec<Repo> {
    let mut empty = Repo::new(5, "acme/empty", &[]);
    empty.empty = true;
    vec![
        Repo::new(1, "acme/one", &[MANIFEST, "src/"]),
        Repo::new(2, "acme/notes", &["README.md", "src/"]),
        Repo::new(3, "acme/two", &["README.md", MANIFEST]),
        Repo::new(4, "acme/three", &[MANIFEST]),
        empty,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_read_and_what_holds_packages_becomes_a_source() {
    for kind in KINDS {
        for house in House::each(kind).await {
            house.has(five());
            let forge = house.add("acme/*").await;
            let found = house.discover(&forge).await.unwrap();
            assert_eq!(found.added, ["acme-one", "acme-three", "acme-two"], "{kind:?}");
            assert_eq!((found.listed, found.looked, found.refused.len()), (5, 4, 0), "{kind:?}");
            let is_list = |path: &&String| path.as_str() == list(kind);
            assert_eq!(house.teller.asked().iter().filter(is_list).count(), 3, "three pages of two");
            let child = house.source("acme-one").await;
            assert_eq!((child.parent_id, child.url.as_str()), (Some(forge.id), house.git.url("acme/one").as_str()));
            assert_eq!(child.every, 2 * HOUR);
            assert!(house.is_due(&child).await, "its first sync is asked for");
            house.sync(&child).await;
            assert_eq!(house.packages(&child).await, ["acme/one"], "{kind:?}");

            let again = house.discover(&house.source(&forge.name).await).await.unwrap();
            assert_eq!(
                (again.listed, again.looked, again.added.len()),
                (5, 0, 0),
                "nothing changed, nothing is looked into"
            );
            assert_eq!(house.teller.asked(), [list(kind); 3], "{kind:?}");
            assert_eq!(house.teller.world().unchanged, 2, "all but the last page are asked for only if they changed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_ones_appear_and_names_decide() {
    for house in House::each(ForgeKind::Github).await {
        house.has(five());
        let forge = house.add("Acme/t*").await;
        assert_eq!(house.discover(&forge).await.unwrap().added, ["acme-three", "acme-two"]);
        let mut notes = Repo::new(6, "acme/tales", &["README.md"]);
        house.teller.world().repos.push(notes.clone());
        assert_eq!(house.discover(&forge).await.unwrap().looked, 1);
        assert_eq!(house.discover(&forge).await.unwrap().looked, 0);
        // It is pushed to, and holds a package now.
        notes.files = vec![MANIFEST];
        notes.changed = "2026-11-20T07:00:00Z";
        *house.teller.world().repos.last_mut().unwrap() = notes;
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.looked, found.added), (1, vec!["acme-tales".to_owned()]));
        let events = house.events("source.add").await;
        assert_eq!(events.iter().filter(|event| event.detail["forge"] == forge.name.as_str()).count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_show_yet_is_looked_for_again() {
    for house in House::each(ForgeKind::Gitlab).await {
        // The clock stands at eight: its activity was half an hour ago, and GitLab may not write down more of it.
        let mut repo = Repo::new(1, "acme/one", &["README.md"]);
        repo.changed = "2026-11-20T07:30:00.123Z";
        house.has(vec![repo]);
        let forge = house.add("acme/*").await;
        assert_eq!(house.discover(&forge).await.unwrap().looked, 1);
        house.teller.world().repos[0].files.push(MANIFEST);
        house.clock.advance(HOUR);
        assert_eq!(house.discover(&forge).await.unwrap().added, ["acme-one"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_renamed_and_removed_ones_are_followed() {
    for kind in KINDS {
        for house in House::each(kind).await {
            house.has(five());
            let forge = house.add("acme/*").await;
            house.discover(&forge).await.unwrap();
            let before = house.source("acme-one").await;
            house.sync(&before).await;
            house.teller.world().repos[0].path = "acme/first".to_owned();
            house.rename("acme/one", "acme/first");
            if kind != ForgeKind::Bitbucket {
                house.teller.world().repos[2].archived = true;
            }
            let found = house.discover(&forge).await.unwrap();
            assert_eq!(
                (found.moved.as_slice(), found.added.len(), found.gone.len()),
                (&["acme-one".to_owned()][..], 0, 0)
            );
            let after = house.source("acme-one").await;
            assert_eq!((after.id, after.url), (before.id, house.git.url("acme/first")));
            assert_eq!(house.packages(&before).await, ["acme/one"]);
            house.sync(&house.source("acme-one").await).await;
            if kind != ForgeKind::Bitbucket {
                assert_eq!(found.archived, ["acme-two"]);
                let two = house.source("acme-two").await;
                assert!(two.archived);
                house.sync(&two).await;
                assert_eq!(house.next_look(&two).await, Some(house.clock_now().plus(24 * HOUR)), "once a day");
                house.teller.world().repos[2].archived = false;
                assert_eq!(house.discover(&forge).await.unwrap().archived, ["acme-two"]);
                assert!(!house.source("acme-two").await.archived && house.is_due(&two).await);
            }

            // It is removed: one of three, so it is marked, and stays.
            let gone = house.teller.world().repos.remove(0);
            assert_eq!(house.discover(&forge).await.unwrap().gone, ["acme-one"]);
            let marked = house.source("acme-one").await;
            assert_eq!(marked.state, SourceState::Failed);
            assert!(marked.problem.unwrap().contains("does not list it any more"));
            assert_eq!(house.packages(&before).await, ["acme/one"], "its packages stay");
            assert_eq!(house.state("acme/first").await, Some(RepositoryState::Gone));
            assert!(house.discover(&forge).await.unwrap().gone.is_empty(), "once is enough");
            // Made again under its old name, with another id: the same source.
            house.teller.world().repos.push(Repo { id: 99, ..gone });
            let found = house.discover(&forge).await.unwrap();
            assert_eq!(
                (found.back.as_slice(), found.added.len(), found.taken.len()),
                (&["acme-one".to_owned()][..], 0, 0)
            );
            assert_eq!(house.state("acme/first").await, Some(RepositoryState::Added));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_third_that_vanish_are_held() {
    for house in House::each(ForgeKind::Gitea).await {
        house.has(five());
        let forge = house.add("acme/*").await;
        house.discover(&forge).await.unwrap();
        let kept = house.teller.world().repos.split_off(3);
        house.teller.world().repos = kept;
        house.teller.world().repos.push(Repo::new(7, "acme/new", &[MANIFEST]));
        let error = house.discover(&forge).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        let held = house.source(&forge.name).await;
        assert_eq!(held.state, SourceState::Held);
        assert!(held.problem.as_deref().unwrap().contains("2 of the 3 repositories"), "{:?}", held.problem);
        assert_eq!(house.source("acme-one").await.state, SourceState::New, "nothing was changed");
        assert_eq!(house.children(&forge).await, 3, "nothing was added either");
        // They come back, and it is well again; they go once more, and somebody accepts it.
        let less = std::mem::replace(&mut house.teller.world().repos, five());
        house.discover(&held).await.unwrap();
        assert_eq!(house.source(&forge.name).await.state, SourceState::Ok);
        assert_eq!(house.children(&forge).await, 3);
        house.teller.world().repos = less;
        assert_eq!(house.discover(&forge).await.unwrap_err().kind(), Kind::Conflict);
        let released = house.sources.release(&house.actor, &house.source(&forge.name).await).await.unwrap();
        let found = house.discover(&released).await.unwrap();
        assert_eq!((found.gone.len(), found.added), (2, vec!["acme-new".to_owned()]));
        assert_eq!(house.source(&forge.name).await.state, SourceState::Ok);
        assert_eq!(house.events("source.hold").await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_stops_it_and_it_goes_on_where_it_was() {
    for kind in [ForgeKind::Github, ForgeKind::Gitlab] {
        for house in House::each(kind).await {
            house.has(five());
            let reset = house.clock_now().plus(HOUR / 2);
            // Three pages and two looks; the last one that is left is not used.
            house.teller.world().rate = Some((20, 6, reset.seconds()));
            let forge = house.add("acme/*").await;
            let stopped = house.run(&forge).await;
            assert_eq!(house.next_look(&forge).await, Some(reset), "{stopped:?}");
            assert_eq!(house.children(&forge).await, 1, "what was found is kept");
            let report = house.report(&forge).await;
            assert_eq!(report["rate_limit"]["remaining"], 1);
            assert_eq!(report["rate_limit"]["limit"], 20);
            assert_eq!(report["resume_at"], reset.rfc3339());
            let asked = house.teller.asked().len();
            assert_eq!(asked, 5);
            house.clock.set(reset);
            house.teller.world().rate = Some((5000, 4999, reset.plus(HOUR).seconds()));
            house.run(&forge).await;
            assert_eq!(house.children(&forge).await, 3);
            assert_eq!(house.next_look(&forge).await, Some(reset.plus(HOUR)));
            assert!(house.report(&forge).await["resume_at"].is_null());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_not_whole_lets_nothing_go() {
    for house in House::each(ForgeKind::Github).await {
        house.has(five());
        let forge = house.add("acme/*").await;
        house.discover(&forge).await.unwrap();
        house.clock.advance(HOUR);
        // The limit is spent within the list, and the forge says so with a refusal.
        let reset = house.clock_now().plus(HOUR);
        house.teller.world().rate = Some((0, 1, reset.seconds()));
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.resume_at, found.gone.len(), found.listed), (Some(reset), 0, 2));
        // It wants to be left alone without saying what is left.
        house.teller.world().rate = None;
        house.clock.set(reset);
        house.teller.world().retry_after = Some(300);
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.resume_at, found.gone.len()), (Some(reset.plus(Duration::from_secs(300))), 0));
        // It says so in words alone.
        house.teller.world().retry_after = None;
        let words = b"{\"message\":\"You have exceeded a secondary rate limit.\"}".to_vec();
        house.teller.world().instead = Some((403, words, None));
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.resume_at, found.gone.len()), (Some(reset.plus(Duration::from_secs(900))), 0));
        assert_eq!(house.children(&forge).await, 3);
        assert_eq!(house.source("acme-three").await.state, SourceState::New);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_a_source_already_is_left_alone_and_what_was_removed_stays_removed() {
    for house in House::each(ForgeKind::Gitlab).await {
        house.has(five());
        let own = house.add_git("mine", &house.git.url("acme/two")).await;
        let forge = house.add("acme/**").await;
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.taken.as_slice(), found.added.len()), (&["acme/two".to_owned()][..], 2));
        assert_eq!(house.source("mine").await.parent_id, None);
        house.sources.remove(&house.actor, "acme-one", KeptFiles::Drop).await.unwrap();
        let found = house.discover(&forge).await.unwrap();
        assert_eq!((found.added.len(), found.gone.len(), house.children(&forge).await), (0, 0, 1));
        // What was in the way is not any more.
        house.sources.remove(&house.actor, &own.name, KeptFiles::Drop).await.unwrap();
        assert_eq!(house.discover(&forge).await.unwrap().added, ["acme-two"]);

        let error = house.forges.remove(&house.actor, &forge.name, None, KeptFiles::Spare).await.unwrap_err();
        assert!(
            error.message().contains("2 repositories") && error.message().contains("--with-repositories"),
            "{error}"
        );
        house.forges.remove(&house.actor, &forge.name, Some(Orphans::Keep), KeptFiles::Spare).await.unwrap();
        assert_eq!(house.source("acme-two").await.parent_id, None);
        let other = house.add("acme/*").await;
        house.sources.remove(&house.actor, "acme-two", KeptFiles::Drop).await.unwrap();
        house.discover(&other).await.unwrap();
        house.forges.remove(&house.actor, &other.name, Some(Orphans::Remove), KeptFiles::Spare).await.unwrap();
        let left = larder_db::sources::list(&house.db).await.unwrap();
        assert_eq!(left.iter().map(|source| source.name.as_str()).collect::<Vec<_>>(), ["acme-three"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_listed_where_users_are() {
    for (kind, path) in [
        (ForgeKind::Github, "users/acme/repos"),
        (ForgeKind::Gitlab, "users/acme/projects"),
        (ForgeKind::Gitea, "users/acme/repos"),
    ] {
        for house in House::each(kind).await {
            house.has(five());
            house.teller.world().user = true;
            let forge = house.add("acme").await;
            assert_eq!(house.discover(&forge).await.unwrap().added.len(), 3);
            assert!(house.teller.asked().contains(&path.to_owned()));
        }
    }
    for house in House::each(ForgeKind::Github).await {
        // Who asks for its own sees what is private as well.
        house.has(five());
        house.credential("gh", "github").await;
        house.teller.world().user = true;
        house.teller.world().account = serde_json::json!({ "login": "Acme" });
        let forge = house.add_with("acme/*", Some("gh")).await.unwrap();
        house.discover(&forge).await.unwrap();
        let asked = house.teller.asked();
        assert!(
            asked.contains(&"user/repos".to_owned()) && !asked.contains(&"users/acme/repos".to_owned()),
            "{asked:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_look_is_after_its_own_time() {
    for house in House::each(ForgeKind::Github).await {
        house.has(five());
        let forge = house.add("acme/*").await;
        house.run(&forge).await;
        let now: Time = house.clock_now();
        assert_eq!(house.next_look(&forge).await, Some(now.plus(HOUR)));
        assert_eq!(house.source(&forge.name).await.state, SourceState::Ok);
        house.teller.world().instead = Some((500, Vec::new(), None));
        house.clock.advance(HOUR);
        house.run(&forge).await;
        let failed = house.source(&forge.name).await;
        assert_eq!(failed.state, SourceState::Failed);
        assert!(failed.problem.unwrap().contains("500"));
        assert_eq!(house.children(&forge).await, 3);
    }
}
