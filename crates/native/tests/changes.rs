//! How replicas hear of changes, on every database: each test's replicas are watchers on executors of their own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use larder_core::Kind;
use larder_db::{
    Db,
    changes::{self, Change, Watcher},
};
use larder_testkit::{
    Scratch,
    host::{host, replica},
};

/// What a watcher has told, oldest first.
type Heard = Arc<Mutex<Vec<Change>>>;

fn listening(db: Db) -> (Watcher, Heard) {
    let heard = Heard::default();
    let into = Arc::clone(&heard);
    let mut watcher = Watcher::new(db);
    watcher.subscribe(Box::new(move |change| into.lock().unwrap().push(change.clone())));
    (watcher, heard)
}

fn told(heard: &Heard) -> Vec<Change> {
    std::mem::take(&mut heard.lock().unwrap())
}

fn topic(name: &str) -> Change {
    Change::Topic(name.to_owned())
}

async fn notify(db: &Db, name: &str) {
    db.commit(changes::notify(db.host(), name).into()).await.unwrap();
}

#[tokio::test]
async fn each_change_is_told_once() {
    for scratch in Scratch::each().await {
        let (host, clock) = host();
        let (here, there) = (scratch.db(&host).await, scratch.db(&host).await);
        notify(&there, "before the first look").await;
        let (mut watcher, heard) = listening(here);
        watcher.look().await.unwrap();
        assert_eq!(told(&heard), [Change::Everything]);
        for _ in 0..3 {
            notify(&there, "a").await;
            notify(&there, "b").await;
            watcher.look().await.unwrap();
            let mut found = told(&heard);
            found.sort_by_key(|change| format!("{change:?}"));
            assert_eq!(found, [topic("a"), topic("b")]);
            clock.advance(Duration::from_secs(20));
            assert_eq!(watcher.look().await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn clocks_that_differ_and_clocks_that_jump_hide_nothing() {
    for scratch in Scratch::each().await {
        let (host, clock) = host();
        let (other_host, other_clock) = replica(2);
        let (here, there) = (scratch.db(&host).await, scratch.db(&other_host).await);
        let (mut watcher, heard) = listening(here);
        watcher.look().await.unwrap();
        told(&heard);
        for seconds in [-25, 25, -1, 3_000] {
            let by = Duration::from_secs(u64::try_from(i64::abs(seconds)).unwrap());
            other_clock.set(if seconds < 0 { host.now().minus(by) } else { host.now().plus(by) });
            clock.advance(Duration::from_secs(1));
            notify(&there, "x").await;
            watcher.look().await.unwrap();
            assert_eq!(told(&heard), [topic("x")], "{seconds} s apart");
        }
        // The clock of the one that watches is set back by a day.
        clock.set(host.now().minus(Duration::from_secs(86_400)));
        other_clock.set(host.now());
        watcher.look().await.unwrap();
        told(&heard);
        notify(&there, "y").await;
        watcher.look().await.unwrap();
        assert_eq!(told(&heard), [topic("y")]);
    }
}

#[tokio::test]
async fn who_was_away_for_too_long_forgets_everything() {
    for scratch in Scratch::each().await {
        let (host, clock) = host();
        let db = scratch.db(&host).await;
        let (mut watcher, heard) = listening(scratch.db(&host).await);
        watcher.look().await.unwrap();
        told(&heard);
        clock.advance(Duration::from_secs(3_540));
        notify(&db, "still there").await;
        watcher.look().await.unwrap();
        assert_eq!(told(&heard), [topic("still there")]);
        clock.advance(changes::RETENTION + Duration::from_secs(1));
        db.commit(changes::sweep(host.now().minus(changes::RETENTION)).into()).await.unwrap();
        watcher.look().await.unwrap();
        assert_eq!(told(&heard), [Change::Everything]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_watcher_hears_others_within_a_fifth_of_a_second_and_itself_at_once() {
    for scratch in Scratch::each().await {
        let (host, clock) = host();
        let (here, there) = (scratch.db(&host).await, scratch.db(&host).await);
        let (tell, hear) = mpsc::channel();
        let mut watcher = Watcher::new(here.clone());
        watcher.subscribe(Box::new(|_| panic!("a listener of no use")));
        watcher.subscribe(Box::new(move |change| tell.send(change.clone()).unwrap()));
        let running = tokio::spawn(watcher.run());
        let next = || hear.recv_timeout(Duration::from_secs(30)).expect("the watcher tells something");
        tokio::task::block_in_place(|| assert_eq!(next(), Change::Everything));

        notify(&here, "own").await;
        tokio::task::block_in_place(|| assert_eq!(next(), topic("own")));

        notify(&there, "foreign").await;
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_millis(200));
        tokio::task::block_in_place(|| assert_eq!(next(), topic("foreign")));
        running.abort();
    }
}

#[tokio::test]
async fn a_look_that_fails_loses_nothing() {
    let (host, _clock) = host();
    let scratch = Scratch::sqlite();
    let there = scratch.db(&host).await;
    let (mut watcher, heard) = listening(scratch.db(&host).await);
    watcher.look().await.unwrap();
    told(&heard);
    let rename = |sql| there.commit(larder_db::Statement::write(sql, []).into());
    notify(&there, "kept").await;
    rename("alter table changes rename to away").await.unwrap();
    assert_eq!(watcher.look().await.unwrap_err().kind(), Kind::Internal);
    rename("alter table away rename to changes").await.unwrap();
    watcher.look().await.unwrap();
    assert_eq!(told(&heard), [topic("kept")]);
}
