//! What is recorded, on real databases: accesses and statistics that land in batches, and events that are found again.

use std::{net::IpAddr, time::Duration};

use larder_audit::{
    Access, Actor, Download, Event, Export, Recorder, Seen, WantedAccess, WantedEvents, list_access, list_events,
    of_days, of_versions, record, retention,
};
use larder_core::{Time, grant::PrincipalName};
use larder_db::{Batch, Db};
use larder_testkit::{Fault, Faulty, Scratch, host};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn seen<'a>(principal: &'a PrincipalName, package: &'a str, at: Time) -> Seen<'a> {
    Seen {
        at,
        principal,
        action: "metadata",
        format: "x",
        package,
        version: "",
        result: 200,
        address: HERE,
        user_agent: "client/1",
    }
}

async fn all(db: &Db) -> Vec<Access> {
    let mut all: Vec<Access> = Vec::new();
    loop {
        let before = all.last().map(|access| (access.last_at, access.id));
        let page = list_access(db, &WantedAccess::default(), before, 1_000).await.expect("accesses can be read");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

#[tokio::test]
async fn equal_accesses_are_one_line_with_their_count() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        let ci = PrincipalName::Token("ci".to_owned());
        let start = host.now();
        for _ in 0..3 {
            clock.advance(Duration::from_millis(1));
            recorder.record(&seen(&ci, "acme/lib", host.now()));
        }
        recorder.record(&Seen { result: 304, ..seen(&ci, "acme/lib", host.now()) });
        recorder.record(&seen(&PrincipalName::Anonymous, "acme/lib", host.now()));
        recorder.flush().await.unwrap();
        recorder.record(&seen(&ci, "acme/lib", host.now()));
        recorder.flush().await.unwrap();

        let mut lines: Vec<String> = all(&db)
            .await
            .iter()
            .map(|a| format!("{} {} {} {} {} {}", a.principal, a.package, a.result, a.address, a.user_agent, a.count))
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "anonymous acme/lib 200 127.0.0.1 client/1 1",
                "token:ci acme/lib 200 127.0.0.1 client/1 1",
                "token:ci acme/lib 200 127.0.0.1 client/1 3",
                "token:ci acme/lib 304 127.0.0.1 client/1 1",
            ]
        );
        let thrice = all(&db).await.into_iter().find(|access| access.count == 3).unwrap();
        assert_eq!(thrice.first_at, start.plus(Duration::from_millis(1)));
        assert_eq!(thrice.last_at, start.plus(Duration::from_millis(3)));
        let wanted = WantedAccess { principal: Some("anonymous".to_owned()), ..WantedAccess::default() };
        assert_eq!(list_access(&db, &wanted, None, 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn downloads_add_up_per_day_and_kind() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        let today = host.now().day();
        let one = Download { format: "x", package: "acme/lib", version: "1.0", kind: "download" };
        for _ in 0..5 {
            recorder.count(&one, host.now());
        }
        // More than one statement takes.
        for patch in 0..40 {
            recorder.count(&Download { version: &format!("2.{patch}"), ..one }, host.now());
        }
        recorder.flush().await.unwrap();
        clock.advance(Duration::from_secs(86_400));
        recorder.count(&one, host.now());
        recorder.count(&Download { kind: "install", ..one }, host.now());
        recorder.count(&Download { package: "acme/other", ..one }, host.now());
        recorder.flush().await.unwrap();
        recorder.count(&one, host.now());
        recorder.flush().await.unwrap();

        let versions = of_versions(&db, "x", "acme/lib", 0).await.unwrap();
        assert_eq!(
            versions[..2],
            [("1.0".to_owned(), "download".to_owned(), 7), ("1.0".to_owned(), "install".to_owned(), 1)]
        );
        assert_eq!(versions.len(), 42);
        let days = of_days(&db, "x", "acme/lib", today + 1).await.unwrap();
        assert_eq!(days, [(today + 1, "download".to_owned(), 2), (today + 1, "install".to_owned(), 1)]);
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_the_database_fails() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let faulty = Faulty::over(scratch.executor().await);
        let db = Db::open(faulty.clone(), host.clone()).await.unwrap();
        let recorder = Recorder::new(db.clone());
        let download = Download { format: "x", package: "acme/lib", version: "1.0", kind: "download" };
        for fault in [Fault::Away, Fault::AnswerLost, Fault::AnswerLost, Fault::Refuses] {
            recorder.record(&seen(&PrincipalName::Anonymous, "acme/lib", host.now()));
            recorder.count(&download, host.now());
            faulty.set(fault);
            recorder.flush().await.unwrap_err();
            faulty.set(Fault::None);
            recorder.flush().await.unwrap();
        }
        assert_eq!(all(&db).await.iter().map(|access| access.count).sum::<u64>(), 4);
        assert_eq!(of_versions(&db, "x", "acme/lib", 0).await.unwrap()[0].2, 4);

        // What the database will never take does not stand in the way for ever.
        recorder.record(&seen(&PrincipalName::Anonymous, "acme/refused", host.now()));
        faulty.set(Fault::Refuses);
        for _ in 0..2 {
            recorder.flush().await.unwrap_err();
        }
        recorder.flush().await.unwrap();
        faulty.set(Fault::None);
        recorder.record(&seen(&PrincipalName::Anonymous, "acme/after", host.now()));
        recorder.flush().await.unwrap();
        assert!(all(&db).await.iter().any(|access| access.package == "acme/after"));
    }
}

#[tokio::test]
async fn a_writer_that_is_cut_off_loses_nothing() {
    use futures_util::FutureExt as _;
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        for number in 0..1_000 {
            recorder.record(&seen(&PrincipalName::Anonymous, &format!("acme/{}", number % 600), host.now()));
            // Begun, and dropped at its first wait.
            assert!(recorder.flush().now_or_never().is_none());
        }
        recorder.flush().await.unwrap();
        assert_eq!(all(&db).await.iter().map(|access| access.count).sum::<u64>(), 1_000);
    }
}

#[tokio::test]
async fn a_flood_costs_detail_and_no_memory() {
    let (host, _clock) = host::host();
    let scratch = Scratch::sqlite();
    let db = scratch.db(&host).await;
    let recorder = Recorder::new(db.clone());
    for number in 0..60_000 {
        recorder.record(&seen(&PrincipalName::Anonymous, &format!("acme/{number}"), host.now()));
    }
    recorder.flush().await.unwrap();
    let accesses = all(&db).await;
    assert_eq!(accesses.len(), 50_001);
    assert_eq!(accesses.iter().map(|access| access.count).sum::<u64>(), 60_000);
    let folded = accesses.iter().find(|access| access.package == "*").unwrap();
    assert_eq!((folded.count, folded.address.as_str(), folded.user_agent.as_str()), (10_000, "", ""));
    // There is room again.
    recorder.record(&seen(&PrincipalName::Anonymous, "acme/later", host.now()));
    recorder.flush().await.unwrap();
    assert_eq!(
        list_access(&db, &WantedAccess { package: Some("acme/later".to_owned()), ..WantedAccess::default() }, None, 2)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn strangers_fill_no_disk() {
    for scratch in Scratch::each().await {
        let (host, _) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        let (ci, nobody) = (PrincipalName::Token("ci".to_owned()), PrincipalName::Anonymous);
        for number in 0..1_000 {
            let user_agent = format!("scanner/{number}");
            let refused = Seen { result: 401, user_agent: &user_agent, ..seen(&nobody, "", host.now()) };
            recorder.record(&refused);
            recorder.record(&Seen { result: 200, ..refused });
        }
        recorder.record(&seen(&ci, "acme/lib", host.now()));
        recorder.flush().await.unwrap();
        let (refused, others): (Vec<_>, Vec<_>) = all(&db).await.into_iter().partition(|access| access.result == 401);
        assert_eq!(others.len(), 1_001, "what was let in is kept in detail");
        assert!(refused.len() < 50, "{} rows", refused.len());
        assert_eq!(refused.iter().map(|access| access.count).sum::<u64>(), 1_000, "none is lost");

        recorder.record(&Seen { result: 401, user_agent: "later", ..seen(&nobody, "", host.now()) });
        recorder.flush().await.unwrap();
        assert!(all(&db).await.iter().any(|access| access.user_agent == "later"));
    }
}

#[tokio::test]
async fn what_clients_send_is_made_to_fit() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        let long = "é".repeat(1_000);
        for _ in 0..2 {
            let odd =
                Seen { user_agent: &long, version: "\0'; --", ..seen(&PrincipalName::Anonymous, "a\0b", host.now()) };
            recorder.record(&odd);
            recorder.count(&Download { format: "x", package: "a\0b", version: &long, kind: "install" }, host.now());
        }
        recorder.flush().await.unwrap();
        let accesses = all(&db).await;
        assert_eq!(accesses.len(), 1);
        assert_eq!((accesses[0].package.as_str(), accesses[0].version.as_str()), ("a\u{fffd}b", "\u{fffd}'; --"));
        assert_eq!((accesses[0].user_agent.as_str(), accesses[0].count), ("é".repeat(127).as_str(), 2));
        assert_eq!(of_versions(&db, "x", "a\u{fffd}b", 0).await.unwrap()[0].2, 2);
    }
}

#[tokio::test]
async fn many_threads_record_at_once() {
    let (host, _clock) = host::host();
    let scratch = Scratch::sqlite();
    let db = scratch.db(&host).await;
    let recorder = Recorder::new(db.clone());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (recorder, host) = (&recorder, &host);
            scope.spawn(move || {
                let principal = PrincipalName::Token(format!("t{}", thread % 2));
                for number in 0..5_000 {
                    recorder.record(&seen(&principal, if number % 2 == 0 { "a/a" } else { "a/b" }, host.now()));
                }
            });
        }
    });
    recorder.flush().await.unwrap();
    let counts: Vec<u64> = all(&db).await.iter().map(|access| access.count).collect();
    assert_eq!(counts, [5_000; 4]);
}

#[tokio::test]
async fn records_are_written_within_a_second() {
    for scratch in Scratch::each().await {
        let host = larder_native::host::system();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        let running = tokio::spawn(recorder.clone().run());
        recorder.record(&seen(&PrincipalName::Anonymous, "acme/lib", host.now()));
        let written = async { while all(&db).await.is_empty() {} };
        let in_time = tokio::time::timeout(Duration::from_secs(1), written).await;
        running.abort();
        assert!(in_time.is_ok(), "not there after a second");
    }
}

#[tokio::test]
async fn retention_takes_the_old_ones() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let recorder = Recorder::new(db.clone());
        for number in 0..2_500 {
            recorder.record(&seen(&PrincipalName::Anonymous, &format!("old/{number}"), host.now()));
        }
        recorder.flush().await.unwrap();
        clock.advance(retention::DEFAULT);
        recorder.record(&seen(&PrincipalName::Anonymous, "new/lib", host.now()));
        recorder.flush().await.unwrap();
        assert_eq!(retention::sweep(&db, retention::DEFAULT).await.unwrap(), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(retention::sweep(&db, retention::DEFAULT).await.unwrap(), 2_500);
        assert_eq!(all(&db).await.len(), 1);
    }
}

#[tokio::test]
async fn events_are_found_again() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let token: Actor = (&PrincipalName::Token("ci".to_owned())).into();
        let start = host.now();
        let mut batch = Batch::new();
        for number in 0..1_200 {
            // Several in one microsecond: pages must not lose any of them.
            if number % 7 == 0 {
                clock.advance(Duration::from_micros(1));
            }
            let (actor, action) =
                if number % 2 == 0 { (&token, "token.create") } else { (&Actor::house(), "tokens.else") };
            let event = Event::new(actor, action, format!("token:t{number}"));
            batch.push(record(&host, &event.with(serde_json::json!({ "number": number }))));
        }
        db.commit(batch).await.unwrap();

        let mut export = Export::new(db.clone(), WantedEvents::default());
        let mut lines = String::new();
        while let Some(page) = export.next().await.unwrap() {
            lines.push_str(&page);
        }
        let numbers: Vec<u64> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["detail"]["number"].as_u64().unwrap())
            .collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1_200).collect::<Vec<_>>());
        assert!(numbers[0] >= 1_197, "the newest come first");

        let count = async |wanted: WantedEvents| list_events(&db, &wanted, None, 2_000).await.unwrap().len();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(count(WantedEvents { actor: text("token:ci"), ..WantedEvents::default() }).await, 600);
        assert_eq!(count(WantedEvents { actor: text("token:other"), ..WantedEvents::default() }).await, 0);
        assert_eq!(count(WantedEvents { action: text("token"), ..WantedEvents::default() }).await, 600);
        assert_eq!(count(WantedEvents { action: text("token.create"), ..WantedEvents::default() }).await, 600);
        assert_eq!(count(WantedEvents { action: text("token.cre"), ..WantedEvents::default() }).await, 0);
        assert_eq!(count(WantedEvents { subject: text("token:t7"), ..WantedEvents::default() }).await, 1);
        let later = start.plus(Duration::from_micros(3));
        assert_eq!(count(WantedEvents { until: Some(later), ..WantedEvents::default() }).await, 14);
        assert_eq!(count(WantedEvents { since: Some(later), ..WantedEvents::default() }).await, 1_186);
    }
}
