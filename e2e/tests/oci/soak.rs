//! Everything at once for a while: images are pushed, pulled, deleted and pushed again, others refer to them, garbage is
//! collected every second, and the power goes again and again. Nothing that was acknowledged is lost, and nothing that
//! is not needed stays.
//!
//! `LARDER_TEST_SOAK_SECONDS` says for how long (25 without it; from 120 on the kills are as far apart as an operator would
//! have them); `LARDER_TEST_SOAK_SEED` repeats the throws of an earlier run.

mod load;
mod world;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use larder_e2e::{Dice, Ground, Options, Server, Stored, oci::Registry, on_every_ground, setting};
use serde_json::Value;
use tokio::task::JoinSet;

use self::world::World;

on_every_ground!(under_load_collection_and_power_cuts_nothing_is_lost_and_nothing_is_left,);

/// What the server is told, so that all of it happens within seconds.
pub(crate) const LEASE: Duration = Duration::from_secs(8);
pub(crate) const UNTAGGED: Duration = Duration::from_secs(4);

const PUSHERS: usize = 8;
const PULLERS: usize = 8;

struct Plan {
    seed: u64,
    lasts: Duration,
    between_kills: Duration,
}

impl Plan {
    fn new() -> Self {
        let number = |name: &str| setting(name).and_then(|text| text.parse::<u64>().ok());
        let seconds = number("LARDER_TEST_SOAK_SECONDS").unwrap_or(25);
        Self {
            seed: number("LARDER_TEST_SOAK_SEED").unwrap_or(u64::from(std::process::id())),
            lasts: Duration::from_secs(seconds),
            between_kills: Duration::from_secs(if seconds < 120 { 6 } else { 20 }),
        }
    }
}

async fn under_load_collection_and_power_cuts_nothing_is_lost_and_nothing_is_left(ground: Ground) {
    let plan = Plan::new();
    let mut server = Server::start_with(&Arc::new(ground), impatient()).await;
    let token = server.token("soak", &["*:oci:*"]).await;
    let world = Arc::new(World::new(Registry::new(&[server.address()], &token), plan.seed));
    let collected = run(&mut server, &world, &plan).await;
    world.judge(&format!("seed {}", plan.seed));
    assert!(collected > 0, "nothing was collected under load: then nothing was proven");
    eprintln!("soak: seed {}, {}, {collected} blobs collected by hand meanwhile", plan.seed, world.counted());
    for tag in world.tags() {
        world.check_at_rest(tag).await;
    }
    world.judge(&format!("at rest, seed {}", plan.seed));
    let proven = server.fsck().await;
    assert!(proven.contains("all is well"), "{proven}");
    settle(&server, false).await;
    for tag in world.tags() {
        world.delete_at_rest(tag).await;
    }
    settle(&server, true).await;
    server.fsck().await;
    server.close().await;
}

/// A server that keeps what nobody needs for seconds, not for days.
pub(crate) fn impatient() -> Options {
    let options = [
        ("LARDER_GC_EVERY", "1s"),
        ("LARDER_OCI_UNTAGGED", "4s"),
        ("LARDER_BLOBS_LEASE", "8s"),
        ("LARDER_BLOBS_GRACE", "1s"),
        ("LARDER_BLOBS_ABANDONED", "30s"),
        ("LARDER_UPLOADS_IDLE", "10s"),
    ];
    options.iter().fold(Options::default(), |options, (name, value)| options.with(name, value))
}

/// The load, with a collection by hand about every second and a kill now and then. Gives how many blobs were collected.
async fn run(server: &mut Server, world: &Arc<World>, plan: &Plan) -> u64 {
    let mut tasks = JoinSet::new();
    let mut seed = plan.seed;
    let mut dice = || {
        seed = seed.wrapping_add(1);
        Dice::new(seed)
    };
    for number in 0..PUSHERS {
        tasks.spawn(load::push(Arc::clone(world), dice(), number));
    }
    for _ in 0..PULLERS {
        tasks.spawn(load::pull(Arc::clone(world), dice()));
    }
    for number in 0..2_u64 {
        tasks.spawn(load::delete(Arc::clone(world), dice(), number));
        tasks.spawn(load::refer(Arc::clone(world), dice(), number));
    }
    let (begun, mut dice, mut collected) = (Instant::now(), dice(), 0);
    let mut killed = Instant::now();
    while begun.elapsed() < plan.lasts && !world.has_failed() {
        let is_time = killed.elapsed() >= plan.between_kills;
        let moment = Duration::from_millis(dice.throw() % 700);
        // A kill also comes in the middle of a collection by hand, which goes down with the machine.
        tokio::select! {
            found = collect(server) => collected += found,
            () = tokio::time::sleep(moment), if is_time => {}
        }
        if is_time {
            server.kill().await;
            world.note_kill();
            server.resume().await;
            world.registry.lead_to(server.address());
            killed = Instant::now();
        } else {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    world.end();
    let ended = tokio::time::timeout(Duration::from_secs(90), async {
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or_else(|error| panic!("seed {}: {error}", plan.seed));
        }
    });
    ended.await.unwrap_or_else(|_| panic!("seed {}: a request never ends", plan.seed));
    collected
}

/// Collects by hand, manifests and then blobs, and says how many blobs went. The server's own collection rests for a
/// while after each kill, until it is believed to be dead.
pub(crate) async fn collect(server: &Server) -> u64 {
    server.json(&["oci", "retention"]).await;
    let said = server.json(&["gc"]).await;
    said["sums"]["blobs"].as_u64().unwrap_or_else(|| panic!("it counts what it took away: {said}"))
}

/// Waits until nothing is on its way any more, and then until nothing is left at all if `empty`; and proves that the
/// database knows of each stored byte.
pub(crate) async fn settle(server: &Server, empty: bool) {
    let stored = Stored::of(server);
    let begun = Instant::now();
    loop {
        for _ in 0..2 {
            collect(server).await;
        }
        let usage = server.json(&["oci", "usage"]).await;
        let of = |name: &str| usage["database"][name].as_u64().unwrap_or_else(|| panic!("it counts {name}: {usage}"));
        let is_settled = of("trash") == 0 && of("uploads") == 0 && (!empty || of("blobs") == 0);
        let bytes = stored.bytes().await;
        if is_settled && bytes == of("sum") {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "the database says {}, the store has {bytes} bytes: {:?}\n{}",
            usage["database"],
            stored.list().await,
            explained(server).await
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Why what is kept is kept.
async fn explained(server: &Server) -> Value {
    server.json(&["gc", "--explain"]).await
}
