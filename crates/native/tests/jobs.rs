//! The queue on real databases: each job is done once, by somebody, whatever happens to whoever does it.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use larder_core::{Error, Host, Id, Kind, Result, host::BoxFuture};
use larder_db::{Batch, Db, Statement, jobs};
use larder_jobs::{Handler, Job, Runner, State, queue};
use larder_testkit::{Scratch, host};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const LONG: Duration = Duration::from_secs(3_600);

type Work = Box<dyn for<'a> Fn(&'a Job) -> BoxFuture<'a, Result<()>> + Send + Sync>;

/// Does what the test says, and tells each beginning and each drop.
struct Told {
    work: Work,
    tell: UnboundedSender<&'static str>,
}

struct Dropped(UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[async_trait]
impl Handler for Told {
    fn kind(&self) -> &'static str {
        "test.work"
    }

    async fn run(&self, job: &Job) -> Result<()> {
        let _ = self.tell.send("begun");
        let dropped = Dropped(self.tell.clone());
        let result = (self.work)(job).await;
        std::mem::forget(dropped);
        let _ = self.tell.send("ended");
        result
    }

    async fn given_up(&self, job: &Job) {
        job.repeat_at(host::START.plus(LONG));
        let _ = self.tell.send("given up");
    }
}

fn runner(
    db: &Db,
    work: impl for<'a> Fn(&'a Job) -> BoxFuture<'a, Result<()>> + Send + Sync + 'static,
) -> (Runner, UnboundedReceiver<&'static str>) {
    let (tell, hear) = unbounded_channel();
    let handler: Arc<dyn Handler> = Arc::new(Told { work: Box::new(work), tell });
    (Runner::new(db.clone(), "test", 4, [handler]), hear)
}

async fn ask(db: &Db, subject: &str) -> Id {
    queue::enqueue(db, "test.work", subject, db.host().now()).await.expect("anybody may ask for a job")
}

async fn state(db: &Db, id: Id) -> State {
    queue::get(db, id).await.expect("the job is there").state
}

#[tokio::test]
async fn a_job_is_done_and_says_so() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let (runner, _) = runner(&db, |job| {
            job.progress("all of it");
            Box::pin(async move {
                assert_eq!((job.subject(), job.attempt(), job.is_lost()), ("a", 1, false));
                Ok(())
            })
        });
        assert!(runner.run_one(id).await.unwrap());
        assert!(!runner.run_one(id).await.unwrap());
        let job = queue::get(&db, id).await.unwrap();
        assert_eq!(
            (job.state, job.progress.as_deref(), job.finished_at),
            (State::Done, Some("all of it"), Some(host.now()))
        );
    }
}

#[tokio::test]
async fn twenty_who_ask_get_one_job() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let (one, other) = (scratch.db(&host).await, scratch.db(&host).await);
        let later = host.now().plus(LONG);
        let first = queue::enqueue(&one, "test.work", "a", later).await.unwrap();
        let ids =
            futures_util::future::join_all((0..20).map(|n| ask(if n % 2 == 0 { &one } else { &other }, "a"))).await;
        assert!(ids.iter().all(|id| *id == first));
        // At the earlier of the times.
        assert_eq!(queue::get(&one, first).await.unwrap().run_at, host.now());
        queue::enqueue(&one, "test.work", "a", later).await.unwrap();
        assert_eq!(queue::get(&one, first).await.unwrap().run_at, host.now());
        assert_ne!(ask(&one, "b").await, first);
        assert_eq!(jobs::of_subject(&one, "test.work", "a", 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn of_many_who_take_each_job_has_one() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let (one, other) = (scratch.db(&host).await, scratch.db(&host).await);
        for number in 0..30 {
            ask(&one, &number.to_string()).await;
        }
        let take = async |db: Db, worker: String| {
            let mut taken = Vec::new();
            while let Some(job) = jobs::claim(&db, &worker, &["test.work"], db.host().now().plus(LONG)).await.unwrap() {
                taken.push(job.subject.parse::<u32>().unwrap());
            }
            taken
        };
        let takers = (0..6).map(|n| take(if n % 2 == 0 { one.clone() } else { other.clone() }, format!("w{n}")));
        let mut taken: Vec<u32> = futures_util::future::join_all(takers).await.concat();
        taken.sort_unstable();
        assert_eq!(taken, (0..30).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn two_runners_do_every_job_once() {
    for scratch in Scratch::each().await {
        let host = larder_native::host::system();
        let (one, other) = (scratch.db(&host).await, scratch.db(&host).await);
        let done: Arc<Mutex<Vec<String>>> = Arc::default();
        let counting = |db: &Db| {
            let done = done.clone();
            runner(db, move |job| {
                let (done, subject) = (done.clone(), job.subject().to_owned());
                Box::pin(async move {
                    tokio::task::yield_now().await;
                    done.lock().unwrap().push(subject);
                    Ok(())
                })
            })
        };
        let ((first, _), (second, _)) = (counting(&one), counting(&other));
        let running = [first.clone(), second.clone()].map(|runner| tokio::spawn(async move { runner.run().await }));
        let mut ids = Vec::new();
        for number in 0..20 {
            ids.push(ask(&one, &format!("{number:02}")).await);
            first.poke();
            second.poke();
        }
        for id in ids {
            assert_eq!(queue::wait(&one, id, LONG, |_| ()).await.unwrap().state, State::Done);
        }
        first.stop(LONG).await;
        second.stop(LONG).await;
        for ended in running {
            ended.await.unwrap();
        }
        let mut subjects = done.lock().unwrap().clone();
        subjects.sort();
        assert_eq!(subjects, (0..20).map(|number| format!("{number:02}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn one_waits_while_another_of_its_subject_runs() {
    for scratch in Scratch::each().await {
        let (host, _clock) = host::host();
        let db = scratch.db(&host).await;
        let lease = host.now().plus(LONG);
        let first = ask(&db, "a").await;
        let claimed = jobs::claim(&db, "w1", &["test.work"], lease).await.unwrap().unwrap();
        assert_eq!(claimed.id, first);
        let second = ask(&db, "a").await;
        assert_ne!(second, first);
        assert_eq!(ask(&db, "a").await, second);
        assert_eq!(jobs::claim(&db, "w2", &["test.work"], lease).await.unwrap(), None);
        assert_eq!(jobs::claim_one(&db, second, "w2", lease).await.unwrap(), None);
        assert_eq!(jobs::claim(&db, "w2", &["other", "test"], lease).await.unwrap(), None);
        db.commit(Batch::from(jobs::finish(&claimed, host.now(), None, None))).await.unwrap();
        assert_eq!(jobs::claim(&db, "w2", &["other", "test.work"], lease).await.unwrap().unwrap().id, second);

        let queued = queue::queued(&db).await.unwrap();
        assert_eq!((queued[0].waiting, queued[0].running), (0, 1));
    }
}

/// A runner in a world of its own, which a test can end as a power cut would.
fn doomed(scratch: &Scratch, host: &Host) -> (tokio::runtime::Runtime, UnboundedReceiver<&'static str>) {
    let world = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (give, take) = std::sync::mpsc::channel();
    let (url, mut host) = (scratch.url().to_owned(), host.clone());
    world.spawn(async move {
        host.spawn = Arc::new(larder_native::host::Tokio::current());
        let db =
            Db::new(larder_native::database::connect(&url).await.expect("the scratch database can be opened"), host);
        let (runner, hear) = runner(&db, |_| Box::pin(pending()));
        give.send(hear).expect("the test waits for it");
        runner.run().await;
    });
    (world, take.recv().expect("the runner is there"))
}

#[tokio::test]
async fn when_a_worker_dies_another_takes_over_after_the_lease() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let (world, mut hear) = doomed(&scratch, &host);
        assert_eq!(hear.recv().await, Some("begun"));
        world.shutdown_background();
        let (other, _) = runner(&db, |_| Box::pin(async { Ok(()) }));
        clock.advance(Duration::from_secs(15));
        assert!(!other.run_one(id).await.unwrap(), "the lease is not over");
        clock.advance(Duration::from_micros(1));
        let running = other.clone();
        let running = tokio::spawn(async move { running.run().await });
        while state(&db, id).await != State::Done {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue::get(&db, id).await.unwrap().attempts, 2);
        other.stop(LONG).await;
        running.await.unwrap();
    }
}

#[tokio::test]
async fn who_lost_the_lease_is_stopped_and_writes_nothing() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let guards: Arc<Mutex<Vec<Statement>>> = Arc::default();
        let (slow, mut hear) = runner(&db, {
            let guards = guards.clone();
            move |job| {
                guards.lock().unwrap().push(job.still_mine());
                Box::pin(pending())
            }
        });
        let slow_one = slow.clone();
        let working = tokio::spawn(async move { slow_one.run_one(id).await });
        assert_eq!(hear.recv().await, Some("begun"));
        let guard = guards.lock().unwrap()[0].clone();
        db.commit(Batch::from(guard.clone())).await.unwrap();

        // The machine slept: the clock jumps, and the other one is faster.
        let claimed = {
            clock.advance(Duration::from_secs(16));
            jobs::claim_one(&db, id, "other", host.now().plus(LONG)).await.unwrap().unwrap()
        };
        assert_eq!(hear.recv().await, Some("dropped"));
        assert!(working.await.unwrap().unwrap());
        assert!(db.commit(Batch::from(guard)).await.unwrap_err().is_guard("job_is_mine"));
        let job = queue::get(&db, id).await.unwrap();
        assert_eq!((job.state, job.worker.as_deref(), job.attempts), (State::Running, Some("other"), 2));
        let end =
            Batch::from(jobs::still_mine(id, &claimed.worker)).with(jobs::finish(&claimed, host.now(), None, None));
        db.commit(end).await.unwrap();
    }
}

#[tokio::test]
async fn a_long_job_keeps_its_lease_and_tells_its_progress() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let (end, mut ended) = tokio::sync::watch::channel(false);
        ended.mark_unchanged();
        let (worker, mut hear) = runner(&db, move |job| {
            let mut ended = ended.clone();
            job.progress("half of it");
            Box::pin(async move { ended.changed().await.map_err(|error| Error::internal("testing", error)) })
        });
        let working = tokio::spawn(async move { worker.run_one(id).await });
        assert_eq!(hear.recv().await, Some("begun"));
        for _ in 0..10 {
            while !clock.is_awaited(host.now().plus(Duration::from_secs(1))) {
                tokio::task::yield_now().await;
            }
            let lease = queue::get(&db, id).await.unwrap().lease_until.unwrap();
            clock.advance(Duration::from_secs(5));
            while queue::get(&db, id).await.unwrap().lease_until == Some(lease) {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(queue::get(&db, id).await.unwrap().progress.as_deref(), Some("half of it"));
        end.send(true).unwrap();
        assert!(working.await.unwrap().unwrap());
        let job = queue::get(&db, id).await.unwrap();
        assert_eq!((job.state, job.attempts), (State::Done, 1));
    }
}

#[tokio::test]
async fn failures() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let (runner, _) = runner(&db, |job| {
            Box::pin(async move {
                match (job.subject(), job.attempt()) {
                    ("panics", _) => panic!("at the disco"),
                    ("wrong", _) => Err(Error::invalid("it is wrong")),
                    ("away", attempt) if attempt < 3 => Err(Error::new(Kind::Upstream, format!("away {attempt}"))),
                    ("never", _) => Err(Error::new(Kind::Upstream, "never there")),
                    _ => Ok(()),
                }
            })
        });
        for subject in ["panics", "wrong"] {
            let id = ask(&db, subject).await;
            runner.run_one(id).await.unwrap();
            let job = queue::get(&db, id).await.unwrap();
            assert_eq!(job.state, State::Failed, "{subject}");
            assert!(!job.problem.unwrap().contains("disco"), "the inside is for the log");
        }

        let id = ask(&db, "away").await;
        for (attempt, shortest, longest) in [(1, 10, 13), (2, 30, 38)] {
            runner.run_one(id).await.unwrap();
            let job = queue::get(&db, id).await.unwrap();
            assert_eq!((job.state, job.problem), (State::Waiting, Some(format!("away {attempt}"))));
            let wait = job.run_at.since(host.now()).as_secs();
            assert!((shortest..longest).contains(&wait), "{wait}");
            assert_eq!(jobs::claim(&db, "w", &["test.work"], host.now()).await.unwrap(), None, "not before its time");
            clock.advance(Duration::from_secs(longest));
        }
        runner.run_one(id).await.unwrap();
        let job = queue::get(&db, id).await.unwrap();
        assert_eq!((job.state, job.problem), (State::Done, None));

        let id = ask(&db, "never").await;
        for _ in 0..5 {
            assert!(runner.run_one(id).await.unwrap());
        }
        assert_eq!(state(&db, id).await, State::Failed);
    }
}

#[tokio::test]
async fn a_failed_attempt_makes_way_for_a_newer_job() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let again = db.clone();
        let (runner, _) = runner(&db, move |_| {
            clock.advance(Duration::from_micros(1));
            let db = again.clone();
            Box::pin(async move {
                ask(&db, "a").await;
                Err(Error::new(Kind::Upstream, "away"))
            })
        });
        let id = ask(&db, "a").await;
        runner.run_one(id).await.unwrap();
        let states: Vec<State> =
            jobs::of_subject(&db, "test.work", "a", 10).await.unwrap().iter().map(|job| job.state).collect();
        assert_eq!(states, [State::Waiting, State::Failed]);
        assert_eq!(state(&db, id).await, State::Failed);
    }
}

#[tokio::test]
async fn a_job_whose_workers_die_is_given_up_and_its_schedule_goes_on() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        for number in 0..5 {
            let lease = host.now().plus(Duration::from_secs(15));
            assert!(jobs::claim_one(&db, id, &format!("w{number}"), lease).await.unwrap().is_some());
            clock.advance(Duration::from_secs(16));
        }
        let behind = queue::behind(&queue::queued(&db).await.unwrap(), host.now());
        assert_eq!(behind, Duration::from_secs(1));
        let (runner, mut hear) = runner(&db, |_| Box::pin(async { Ok(()) }));
        assert!(runner.run_one(id).await.unwrap());
        assert_eq!(hear.recv().await, Some("given up"));
        assert_eq!(state(&db, id).await, State::Failed);
        let next = &jobs::of_subject(&db, "test.work", "a", 1).await.unwrap()[0];
        assert_eq!((next.state, next.run_at), (State::Waiting, host::START.plus(LONG)));
    }
}

#[tokio::test]
async fn a_schedule_lives_in_the_table() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let rounds = Arc::new(AtomicUsize::new(0));
        let (runner, _) = runner(&db, {
            let (rounds, clock) = (rounds.clone(), host.clock.clone());
            move |job| {
                job.repeat_at(clock.now().plus(LONG));
                let round = rounds.fetch_add(1, Ordering::SeqCst);
                Box::pin(async move { if round == 1 { Err(Error::invalid("once")) } else { Ok(()) } })
            }
        });
        queue::ensure(&db, "test.work", "a", host.now()).await.unwrap();
        queue::ensure(&db, "test.work", "a", host.now()).await.unwrap();
        for round in 0..3 {
            let all = jobs::of_subject(&db, "test.work", "a", 10).await.unwrap();
            assert_eq!(all.len(), round + 1);
            assert!(runner.run_one(all[0].id).await.unwrap());
            // Begun is begun: it asks for nothing where something waits.
            queue::ensure(&db, "test.work", "a", host.now()).await.unwrap();
            clock.advance(LONG);
        }
        let states: Vec<State> =
            jobs::of_subject(&db, "test.work", "a", 10).await.unwrap().iter().map(|job| job.state).collect();
        assert_eq!(states, [State::Waiting, State::Done, State::Failed, State::Done]);

        assert_eq!(queue::sweep(&db, LONG * 2).await.unwrap(), 1);
        db.commit(Batch::from(jobs::forget_waiting("test.work", "a"))).await.unwrap();
        assert_eq!(queue::behind(&queue::queued(&db).await.unwrap(), host.now()), Duration::ZERO);
    }
}

#[tokio::test]
async fn whoever_stops_hands_back_what_does_not_end() {
    for scratch in Scratch::each().await {
        let (host, clock) = host::host();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let (runner, mut hear) = runner(&db, |_| Box::pin(pending()));
        let running = runner.clone();
        let running = tokio::spawn(async move { running.run().await });
        assert_eq!(hear.recv().await, Some("begun"));
        let stopping = runner.clone();
        let stopping = tokio::spawn(async move { stopping.stop(Duration::from_millis(1)).await });
        running.await.unwrap();
        clock.advance(Duration::from_millis(1));
        assert_eq!(hear.recv().await, Some("dropped"));
        stopping.await.unwrap();
        let job = queue::get(&db, id).await.unwrap();
        assert_eq!((job.state, job.attempts, job.worker), (State::Waiting, 0, None));
    }
}

#[tokio::test]
async fn the_command_line_does_a_job_that_nobody_takes() {
    for scratch in Scratch::each().await {
        let host = larder_native::host::system();
        let db = scratch.db(&host).await;
        let id = ask(&db, "a").await;
        let (here, _) = runner(&db, |_| Box::pin(async { Err(Error::new(Kind::Upstream, "away")) }));
        let job = here.run_or_wait(id, Duration::from_millis(1), LONG, |_| ()).await.unwrap();
        assert_eq!((job.state, job.problem.as_deref()), (State::Waiting, Some("away")));
        let waited = queue::wait(&db, id, LONG, |_| ()).await.unwrap();
        assert_eq!((waited.state, waited.problem), (job.state, job.problem));
        ask(&db, "a").await;
        assert_eq!(queue::get(&db, id).await.unwrap().problem, None, "asked for anew");
        let missing = host.new_id();
        assert_eq!(queue::wait(&db, missing, LONG, |_| ()).await.unwrap_err().kind(), Kind::NotFound);
        let never = queue::wait(&db, ask(&db, "b").await, Duration::ZERO, |_| ()).await.unwrap_err();
        assert_eq!(never.kind(), Kind::Timeout);
    }
}
