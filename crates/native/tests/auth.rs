//! Tokens, grants and who is recognised, on real databases: one story per promise, told on each of them.

#![expect(clippy::unwrap_used, reason = "the functions around the tests are tests too")]

use std::{sync::Arc, time::Duration};

use larder_auth::{Authenticator, Opens, Pass, Passes, Secret, grants, tokens};
use larder_core::{
    Host, Kind,
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

fn passes() -> Passes {
    Passes::new([7; 32], [])
}

/// An authenticator with its watcher, as a replica has them; the test decides when it looks.
fn replica(db: &Db) -> (Authenticator, Watcher) {
    let authenticator = Authenticator::new(db.clone(), passes());
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
        let authenticator = Authenticator::new(db.clone(), passes());
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
    let authenticator = Authenticator::new(db.clone(), passes());
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
        let authenticator = Authenticator::new(db.clone(), passes());
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

const MINUTES: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

/// A token with these grants, and the principal behind it.
async fn token(db: &Db, authenticator: &Authenticator, name: &str, allow: &[&str]) -> (Arc<Principal>, Secret) {
    let allow: Vec<Grant> = allow.iter().map(|text| grant(text)).collect();
    let (_, secret) = tokens::create(db, &cli(), name, &allow, None).await.unwrap();
    (authenticator.recognise(Some(secret.reveal())).await.unwrap(), secret)
}

async fn grants_of(authenticator: &Authenticator, text: &str) -> Result<Vec<String>, Kind> {
    let principal = kind_of(authenticator, Some(text)).await?;
    assert!(principal.limited);
    Ok(principal.grants.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn a_pass_allows_what_it_says_and_its_token_still_may() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (here, mut watcher) = replica(&db);
        // Another replica knows of passes only what their texts say.
        let (there, mut watcher_there) = replica(&db);
        let allow = ["read:*:acme/*", "publish:x:acme/app", "*:x:own/**"];
        let (ci, _) = token(&db, &here, "ci", &allow).await;
        for (limits, expected) in [
            (vec!["read,publish:x:acme/app"], vec!["read:x:acme/app", "publish:x:acme/app"]),
            (vec!["read:x:acme/lib", "read:x:acme/app"], vec!["read:x:acme/app", "read:x:acme/lib"]),
            (vec!["publish:y:acme/app", "read:x:other/app", "read:x:acme/app/deep"], vec![]),
            (vec!["*:x:own/a/b"], vec!["*:x:own/a/b"]),
            (vec!["read:x:*"], vec!["read:x:acme/*", "read:x:own/**"]),
            (vec![], vec![]),
        ] {
            let limits = limits.into_iter().map(grant).collect();
            let text = here.pass(&ci, limits, MINUTES).unwrap();
            assert_eq!(grants_of(&there, &text).await.unwrap(), expected);
            let principal = there.recognise_warm(Some(&text)).unwrap().unwrap();
            assert_eq!((&principal.name, principal.token), (&ci.name, ci.token));
        }

        let text = here.pass(&ci, vec![grant("*:x:acme/app")], MINUTES).unwrap();
        assert_eq!(grants_of(&there, &text).await.unwrap(), ["read:x:acme/app", "publish:x:acme/app"]);
        clock.advance(SECOND);
        grants::remove(&db, &cli(), &ci.name, &grant("publish:x:acme/app")).await.unwrap();
        grants::add(&db, &cli(), &ci.name, &grant("delete:*:acme/app")).await.unwrap();
        watcher.look().await.unwrap();
        watcher_there.look().await.unwrap();
        assert_eq!(grants_of(&there, &text).await.unwrap(), ["read:x:acme/app", "delete:x:acme/app"]);

        // No pass begets another.
        let limited = kind_of(&here, Some(&text)).await.unwrap();
        assert_eq!(here.pass(&limited, Vec::new(), MINUTES).unwrap_err().kind(), Kind::Forbidden);
        assert_eq!(here.pass_for_passes(&limited, MINUTES).unwrap_err().kind(), Kind::Forbidden);
    }
}

#[tokio::test]
async fn a_pass_dies_by_the_clock_with_its_token_and_with_its_secret() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, mut watcher) = replica(&db);
        let limits = || vec![grant("read:x:acme/app")];

        let (ci, _) = token(&db, &authenticator, "ci", &["read:*:*"]).await;
        let text = authenticator.pass(&ci, limits(), MINUTES).unwrap();
        let refresh = authenticator.pass_for_passes(&ci, MINUTES * 10).unwrap();
        assert!(grants_of(&authenticator, &text).await.is_ok());
        clock.advance(MINUTES.saturating_sub(SECOND));
        assert!(grants_of(&authenticator, &text).await.is_ok());
        clock.advance(SECOND);
        // Known to memory, and refused all the same.
        let expired = authenticator.recognise_warm(Some(&text)).unwrap().unwrap_err();
        assert!(expired.kind() == Kind::Unauthenticated && expired.message().contains("expired"), "{expired}");

        let text = authenticator.pass(&ci, limits(), MINUTES).unwrap();
        assert!(grants_of(&authenticator, &text).await.is_ok());
        assert!(authenticator.recognise_secret(&refresh).await.is_ok());
        let (_, secret) = tokens::rotate(&db, &cli(), "ci").await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(grants_of(&authenticator, &text).await, Err(Kind::Unauthenticated));
        assert_eq!(authenticator.recognise_secret(&refresh).await.unwrap_err().kind(), Kind::Unauthenticated);
        // Neither does one that is made at this moment for whoever showed the old secret.
        let late = authenticator.pass(&ci, limits(), MINUTES).unwrap();
        assert_eq!(grants_of(&authenticator, &late).await, Err(Kind::Unauthenticated));

        let ci = authenticator.recognise(Some(secret.reveal())).await.unwrap();
        let text = authenticator.pass(&ci, limits(), MINUTES).unwrap();
        assert!(grants_of(&authenticator, &text).await.is_ok());
        clock.advance(SECOND);
        tokens::revoke(&db, &cli(), "ci").await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(grants_of(&authenticator, &text).await, Err(Kind::Unauthenticated));

        // A token that expires takes its passes along, without anybody saying so.
        clock.advance(SECOND);
        let (_, secret) = tokens::create(&db, &cli(), "brief", &[grant("read:*:*")], Some(SECOND * 2)).await.unwrap();
        watcher.look().await.unwrap();
        let brief = authenticator.recognise(Some(secret.reveal())).await.unwrap();
        let text = authenticator.pass(&brief, limits(), MINUTES).unwrap();
        assert!(grants_of(&authenticator, &text).await.is_ok());
        clock.advance(SECOND * 2);
        assert_eq!(grants_of(&authenticator, &text).await, Err(Kind::Unauthenticated));
    }
}

#[tokio::test]
async fn a_pass_of_anonymous_follows_what_anonymous_may_do() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, mut watcher) = replica(&db);
        grants::add(&db, &cli(), &PrincipalName::Anonymous, &grant("read:*:open/*")).await.unwrap();
        let nobody = kind_of(&authenticator, None).await.unwrap();
        assert!(!nobody.limited);
        let limits = vec![grant("read,publish:x:open/app"), grant("read:x:closed/app")];
        let text = authenticator.pass(&nobody, limits, MINUTES).unwrap();
        assert_eq!(grants_of(&authenticator, &text).await.unwrap(), ["read:x:open/app"]);
        assert_eq!(kind_of(&authenticator, Some(&text)).await.unwrap().name, PrincipalName::Anonymous);
        assert_eq!(authenticator.pass_for_passes(&nobody, MINUTES).unwrap_err().kind(), Kind::Forbidden);

        clock.advance(SECOND);
        grants::remove(&db, &cli(), &PrincipalName::Anonymous, &grant("read:*:open/*")).await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(grants_of(&authenticator, &text).await.unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn passes_for_packages_and_for_passes_are_not_mistaken_for_each_other() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let db = scratch.db(&host).await;
        let (authenticator, _watcher) = replica(&db);
        let (ci, secret) = token(&db, &authenticator, "ci", &["read:*:acme/*"]).await;
        let refresh = authenticator.pass_for_passes(&ci, MINUTES).unwrap();
        for _ in 0..2 {
            let whole = authenticator.recognise_secret(&refresh).await.unwrap();
            assert_eq!((whole.token, whole.limited, &whole.grants), (ci.token, false, &ci.grants));
            assert_eq!(kind_of(&authenticator, Some(&refresh)).await.unwrap_err(), Kind::Unauthenticated);
        }
        assert_eq!(authenticator.recognise_secret(secret.reveal()).await.unwrap().token, ci.token);
        let text = authenticator.pass(&ci, vec![grant("read:*:*")], MINUTES).unwrap();
        for wrong in [text.as_str(), "", "lrd_", &format!("{refresh}A"), &secret.reveal().replace("lrd_", "lrd-")] {
            assert_eq!(authenticator.recognise_secret(wrong).await.unwrap_err().kind(), Kind::Unauthenticated);
        }
    }
}

/// A pass as somebody with this key would make it.
fn forged(host: &Host, key: [u8; 32], principal: &Principal) -> String {
    let opens = Opens::Packages(vec![grant("*:*:*")]);
    let pass = Pass::of(principal, opens, host.now().plus(MINUTES)).unwrap();
    Passes::new(key, []).issue(host, &pass).unwrap()
}

#[tokio::test]
async fn forged_and_altered_passes_are_refused_without_a_look_into_the_database() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let faulty = Faulty::over(scratch.executor().await);
        let db = Db::open(faulty.clone(), host.clone()).await.unwrap();
        let authenticator = Authenticator::new(db.clone(), Passes::new([7; 32], [[8; 32]]));
        let (ci, _) = token(&db, &authenticator, "ci", &["read:*:*"]).await;
        for key in [[7; 32], [8; 32]] {
            assert_eq!(grants_of(&authenticator, &forged(&host, key, &ci)).await.unwrap(), ["read:*:*"]);
        }
        // A token that never was, with a good signature: the key alone does not make one.
        let stranger = Principal { token: Some(host.new_id()), ..(*ci).clone() };
        assert_eq!(grants_of(&authenticator, &forged(&host, [7; 32], &stranger)).await, Err(Kind::Unauthenticated));

        let before = faulty.queries();
        let good = forged(&host, [7; 32], &ci);
        let mut wrong = vec![forged(&host, [9; 32], &ci), good[1..].to_owned(), format!("{good}{}", "A".repeat(9_000))];
        wrong.extend((0..good.len()).map(|at| {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(bytes).unwrap()
        }));
        for text in wrong {
            assert_eq!(kind_of(&authenticator, Some(&text)).await.unwrap_err(), Kind::Unauthenticated, "{text}");
        }
        assert_eq!(faulty.queries(), before);
    }
}

#[tokio::test]
async fn many_passes_of_a_token_cost_one_look() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let faulty = Faulty::over(scratch.executor().await);
        let db = Db::open(faulty.clone(), host).await.unwrap();
        let authenticator = Authenticator::new(db.clone(), passes());
        let (ci, _) = token(&db, &authenticator, "ci", &["read:*:*"]).await;
        let texts: Vec<String> = (0..50)
            .map(|n| authenticator.pass(&ci, vec![grant(&format!("read:x:acme/app-{n}"))], MINUTES).unwrap())
            .collect();

        let before = faulty.queries();
        let all = futures_util::future::join_all(texts.iter().map(|text| authenticator.recognise(Some(text)))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(faulty.queries() - before, 1);
        // Warm, it is the very same principal, without anything to wait for.
        for (text, first) in texts.iter().zip(&all) {
            let warm = authenticator.recognise_warm(Some(text)).unwrap().unwrap();
            assert!(Arc::ptr_eq(&warm, first.as_ref().unwrap()));
        }
        // The use of a pass is a use of its token.
        authenticator.write_uses().await.unwrap();
        clock.advance(Duration::from_secs(61));
        authenticator.recognise(Some(&texts[0])).await.unwrap();
        authenticator.write_uses().await.unwrap();
        assert_eq!(tokens::list(&db, "", 1).await.unwrap()[0].used_at, Some(db.host().now()));

        faulty.set(Fault::Away);
        clock.advance(Duration::from_secs(31));
        assert_eq!(kind_of(&authenticator, Some(&texts[0])).await.unwrap_err(), Kind::Unavailable);
    }
}
