//! Tokens, grants and who is recognised, on real databases: one story per promise, told on each of them.

use std::{sync::Arc, time::Duration};

use larder_auth::{Authenticator, grants, tokens};
use larder_core::{
    Kind,
    grant::{Action, Grant, Principal, PrincipalName},
};
use larder_db::{
    Db,
    changes::Watcher,
    events::{self, Actor, Wanted},
};
use larder_testkit::{Fault, Faulty, Scratch, host};

fn grant(text: &str) -> Grant {
    text.parse().expect("the test writes grants well")
}

fn cli() -> Actor {
    Actor::command_line()
}

async fn kind_of(authenticator: &Authenticator, token: Option<&str>) -> Result<Arc<Principal>, Kind> {
    authenticator.recognise(token).await.map_err(|error| error.kind())
}

/// An authenticator with its watcher, as a replica has them; the test decides when it looks.
fn replica(db: &Db) -> (Authenticator, Watcher) {
    let authenticator = Authenticator::new(db.clone());
    let mut watcher = Watcher::new(db.clone());
    let hearing = authenticator.clone();
    watcher.subscribe(Box::new(move |change| hearing.hear(change)));
    (authenticator, watcher)
}

#[tokio::test]
async fn the_life_of_a_token() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, mut watcher) = replica(&db);
        watcher.look().await.unwrap();

        let allow = [grant("read:*:acme/*"), grant("publish:x:acme/app")];
        let (token, secret) = tokens::create(&db, &cli(), "ci", &allow, None).await.unwrap();
        let principal = authenticator.recognise(Some(secret.reveal())).await.unwrap();
        assert_eq!(principal.name, PrincipalName::Token("ci".to_owned()));
        assert_eq!(principal.token, Some(token.id));
        let mut sorted = allow.to_vec();
        sorted.sort();
        assert_eq!(principal.grants, sorted);

        let refused = tokens::create(&db, &cli(), "ci", &[], None).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
        assert!(refused.message().contains("larder token rotate ci"), "{refused}");
        assert_eq!(tokens::create(&db, &cli(), "c i", &[], None).await.unwrap_err().kind(), Kind::Invalid);

        let second = Duration::from_secs(1);
        clock.advance(second);
        let (rotated, other) = tokens::rotate(&db, &cli(), "ci").await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(rotated.id, token.id);
        assert_eq!(kind_of(&authenticator, Some(secret.reveal())).await.unwrap_err(), Kind::Unauthenticated);
        assert_eq!(kind_of(&authenticator, Some(other.reveal())).await.unwrap().grants, sorted);

        clock.advance(second);
        tokens::revoke(&db, &cli(), "ci").await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(kind_of(&authenticator, Some(other.reveal())).await.unwrap_err(), Kind::Unauthenticated);
        let again = tokens::revoke(&db, &cli(), &token.id.to_string()).await.unwrap();
        assert!(again.revoked_at.is_some());
        assert_eq!(tokens::revoke(&db, &cli(), "ci").await.unwrap_err().kind(), Kind::NotFound);
        let dead = tokens::rotate(&db, &cli(), &token.id.to_string()).await.unwrap_err();
        assert_eq!(dead.kind(), Kind::Conflict);

        // A new token of the same name inherits nothing.
        clock.advance(second);
        let (_, reborn) = tokens::create(&db, &cli(), "ci", &[], None).await.unwrap();
        watcher.look().await.unwrap();
        assert!(kind_of(&authenticator, Some(reborn.reveal())).await.unwrap().grants.is_empty());

        let told = events::list(&db, &Wanted::default(), None, 100).await.unwrap();
        let actions: Vec<&str> = told.iter().rev().map(|event| event.action.as_str()).collect();
        assert_eq!(actions, ["token.create", "token.rotate", "token.revoke", "token.create"]);
        assert!(told.iter().all(|event| event.actor == "cli" && event.subject == "token:ci"));
        let text = format!("{told:?}");
        assert!([&secret, &other, &reborn].iter().all(|secret| !text.contains(&secret.reveal()[4..])));
    }
}

#[tokio::test]
async fn a_token_expires_by_the_clock_and_lives_as_long_again_when_rotated() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, mut watcher) = replica(&db);
        let (day, second) = (Duration::from_secs(86_400), Duration::from_secs(1));
        let (_, secret) = tokens::create(&db, &cli(), "ci", &[], Some(day)).await.unwrap();
        clock.advance(day.saturating_sub(second));
        assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());
        clock.advance(second);
        // Known to memory, and refused all the same.
        let refused = authenticator.recognise_warm(Some(secret.reveal())).unwrap().unwrap_err();
        assert_eq!(refused.kind(), Kind::Unauthenticated);
        assert!(refused.message().contains("expired"), "{refused}");

        let (rotated, secret) = tokens::rotate(&db, &cli(), "ci").await.unwrap();
        assert_eq!(rotated.expires_at, Some(host.now().plus(day)));
        watcher.look().await.unwrap();
        assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());
    }
}

#[tokio::test]
async fn grants_come_and_go() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, mut watcher) = replica(&db);
        watcher.look().await.unwrap();
        let (anonymous, ci) = (PrincipalName::Anonymous, PrincipalName::Token("ci".to_owned()));

        assert!(kind_of(&authenticator, None).await.unwrap().grants.is_empty());
        assert!(grants::add(&db, &cli(), &anonymous, &grant("read:*:open/*")).await.unwrap());
        assert!(!grants::add(&db, &cli(), &anonymous, &grant("read:*:open/*")).await.unwrap());
        watcher.look().await.unwrap();
        let somebody = kind_of(&authenticator, None).await.unwrap();
        assert!(somebody.grants[0].allows(Action::Read, "x", "open/lib"));

        clock.advance(Duration::from_secs(1));
        let nobody = grants::add(&db, &cli(), &ci, &grant("read:*:*")).await.unwrap_err();
        assert_eq!(nobody.kind(), Kind::NotFound);
        tokens::create(&db, &cli(), "ci", &[], None).await.unwrap();
        assert!(grants::add(&db, &cli(), &ci, &grant("*:x:acme/**")).await.unwrap());
        assert_eq!(grants::of(&db, &ci).await.unwrap(), [grant("*:x:acme/**")]);

        let all = grants::list(&db, None, 10).await.unwrap();
        assert_eq!(all, [(anonymous.clone(), grant("read:*:open/*")), (ci.clone(), grant("*:x:acme/**"))]);
        assert_eq!(grants::list(&db, all.first(), 10).await.unwrap(), all[1..]);

        clock.advance(Duration::from_secs(1));
        grants::remove(&db, &cli(), &anonymous, &grant("read:*:open/*")).await.unwrap();
        let gone = grants::remove(&db, &cli(), &anonymous, &grant("read:*:open/*")).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
        watcher.look().await.unwrap();
        assert!(kind_of(&authenticator, None).await.unwrap().grants.is_empty());

        let wanted = Wanted { action: Some("grant".to_owned()), ..Wanted::default() };
        let told = events::list(&db, &wanted, None, 10).await.unwrap();
        let lines: Vec<String> =
            told.iter().rev().map(|event| format!("{} {} {}", event.action, event.subject, event.detail)).collect();
        assert_eq!(
            lines,
            [
                r#"grant.add anonymous {"grant":"read:*:open/*"}"#,
                r#"grant.add token:ci {"grant":"*:x:acme/**"}"#,
                r#"grant.remove anonymous {"grant":"read:*:open/*"}"#,
            ]
        );
    }
}

#[tokio::test]
async fn of_two_who_want_one_name_one_gets_it() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let (one, other) = (scratch.db(&host).await, scratch.db(&host).await);
        let actor = cli();
        let made = futures_util::future::join_all(
            (0..10).map(|n| tokens::create(if n % 2 == 0 { &one } else { &other }, &actor, "ci", &[], None)),
        )
        .await;
        let kinds: Vec<Kind> =
            made.iter().filter_map(|made| made.as_ref().err()).map(larder_core::Error::kind).collect();
        assert_eq!(kinds, [Kind::Conflict; 9]);
        assert_eq!(tokens::list(&one, "", 10).await.unwrap().len(), 1);
        assert_eq!(events::list(&one, &Wanted::default(), None, 100).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_revoked_token_is_refused_within_a_second_everywhere() {
    for scratch in Scratch::each().await {
        let host = larder_native::host::system();
        let (here, there) = (scratch.db(&host).await, scratch.db(&host).await);
        let (authenticator, watcher) = replica(&there);
        let watching = tokio::spawn(watcher.run());
        let (_, secret) = tokens::create(&here, &cli(), "ci", &[grant("read:*:*")], None).await.unwrap();
        assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());

        tokens::revoke(&here, &cli(), "ci").await.unwrap();
        let refused = async {
            while kind_of(&authenticator, Some(secret.reveal())).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let within_a_second = tokio::time::timeout(Duration::from_secs(1), refused).await;
        watching.abort();
        assert!(within_a_second.is_ok(), "still let in after a second");
    }
}

#[tokio::test]
async fn one_look_serves_everybody_who_waits_and_noise_costs_none() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let faulty = Faulty::over(scratch.executor().await);
        let db = Db::open(faulty.clone(), host).await.unwrap();
        let authenticator = Authenticator::new(db.clone());
        let (_, secret) = tokens::create(&db, &cli(), "ci", &[], None).await.unwrap();
        let (_, gone) = tokens::create(&db, &cli(), "gone", &[], None).await.unwrap();
        tokens::revoke(&db, &cli(), "gone").await.unwrap();

        let before = faulty.queries();
        let all = futures_util::future::join_all((0..50).map(|_| authenticator.recognise(Some(secret.reveal())))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(faulty.queries() - before, 1);
        assert!(authenticator.recognise_warm(Some(secret.reveal())).unwrap().is_ok());

        let before = faulty.queries();
        for _ in 0..50 {
            assert_eq!(kind_of(&authenticator, Some(gone.reveal())).await.unwrap_err(), Kind::Unauthenticated);
            let mistyped = secret.reveal().replace("lrd_", "lrd-");
            assert_eq!(kind_of(&authenticator, Some(&mistyped)).await.unwrap_err(), Kind::Unauthenticated);
            assert_eq!(kind_of(&authenticator, Some("")).await.unwrap_err(), Kind::Unauthenticated);
        }
        assert_eq!(faulty.queries() - before, 1);
    }
}

#[tokio::test]
async fn without_a_database_trust_ends() {
    let (host, clock) = host::host();
    let scratch = Scratch::sqlite();
    let faulty = Faulty::over(scratch.executor().await);
    let db = Db::open(faulty.clone(), host).await.unwrap();
    let authenticator = Authenticator::new(db.clone());
    let (_, secret) = tokens::create(&db, &cli(), "ci", &[], None).await.unwrap();
    assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());

    faulty.set(Fault::Away);
    clock.advance(Duration::from_secs(29));
    assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());
    clock.advance(Duration::from_secs(1));
    assert_eq!(kind_of(&authenticator, Some(secret.reveal())).await.unwrap_err(), Kind::Unavailable);
    faulty.set(Fault::None);
    assert!(kind_of(&authenticator, Some(secret.reveal())).await.is_ok());

    // While the database answers, trust is renewed behind the requests. All tasks share one thread here, so whoever
    // sees the answer sees it remembered.
    for _ in 0..10 {
        clock.advance(Duration::from_secs(20));
        let before = faulty.queries();
        assert!(authenticator.recognise_warm(Some(secret.reveal())).unwrap().is_ok());
        while faulty.queries() == before {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn the_last_use_is_noted_once_a_minute() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let faulty = Faulty::over(scratch.executor().await);
        let db = Db::open(faulty.clone(), host.clone()).await.unwrap();
        let authenticator = Authenticator::new(db.clone());
        let (token, secret) = tokens::create(&db, &cli(), "ci", &[], None).await.unwrap();
        let used_at = async || tokens::list(&db, "", 1).await.unwrap()[0].used_at;

        authenticator.recognise(Some(secret.reveal())).await.unwrap();
        assert_eq!(used_at().await, None);
        faulty.set(Fault::Away);
        authenticator.write_uses().await.unwrap_err();
        faulty.set(Fault::None);
        authenticator.write_uses().await.unwrap();
        let first = host.now();
        assert_eq!(used_at().await, Some(first));

        clock.advance(Duration::from_secs(9));
        let before = faulty.batches();
        authenticator.recognise(Some(secret.reveal())).await.unwrap();
        authenticator.write_uses().await.unwrap();
        assert_eq!(faulty.batches(), before);

        clock.advance(Duration::from_secs(60));
        authenticator.recognise(Some(secret.reveal())).await.unwrap();
        authenticator.write_uses().await.unwrap();
        assert_eq!(used_at().await, Some(host.now()));
        assert_eq!(tokens::list(&db, "", 1).await.unwrap()[0].id, token.id);
    }
}
