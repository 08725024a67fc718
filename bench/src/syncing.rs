//! Taking Git repositories in, beside `git clone --mirror` of the same ones from the same host on loopback.

use std::{path::Path, time::Duration, time::Instant};

use anyhow::{Context as _, Result, bail};
use larder_testkit::Forge;
use tokio::process::Command;

use crate::{
    Options, fixture, machine,
    numbers::{Figure, megabytes, verdict},
    program::{Larder, Server},
};

/// How many sources are synced at once.
const AT_ONCE: usize = 50;
/// How often memory is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long the processor is idle when everything is done.
const IDLE: Duration = Duration::from_secs(2);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures and prints.
pub async fn measure(larder: &Larder, forge: &Forge, options: &Options) -> Result<()> {
    let rounds = options.rounds;
    println!("\nSyncing over http on loopback: {rounds} rounds, median (least..most)");
    fixture::many(&forge.repository("tags-600"), "bench/tags", 600, 8, 120);
    let times = one(larder, forge, "tags-600", "600 tags, 4,800 commits, 120 files", rounds).await?;
    verdict("times a mirror clone, first sync of 600 tags", times.first, 1.0, false);
    verdict("s, sync without a change", times.again, 0.3, false);
    for (number, path) in options.also.iter().enumerate() {
        let name = format!("also-{number}");
        link(forge, &name, path)?;
        one(larder, forge, &name, &path.display().to_string(), rounds).await?;
    }
    let mut title = "200 MB, 1,200 tags".to_owned();
    if let Some(path) = &options.large {
        link(forge, "large", path)?;
        title = path.display().to_string();
    } else {
        fixture::large(&forge.repository("large"), 1_200, 200_000_000);
    }
    let times = one(larder, forge, "large", &title, rounds.min(3)).await?;
    verdict("times faster than a mirror clone, first sync of the large one", 1.0 / times.first, 4.0, true);
    verdict("of a mirror clone's bytes", times.bytes, 0.1, false);
    many_at_once(larder, forge).await
}

/// Lets the forge serve a repository that is elsewhere.
fn link(forge: &Forge, name: &str, path: &Path) -> Result<()> {
    let path = std::path::absolute(path)?;
    Ok(std::os::unix::fs::symlink(path, forge.root().join(format!("{name}.git")))?)
}

/// What came out for one repository.
struct Times {
    /// The first sync, as a share of the time of a mirror clone.
    first: f64,
    /// A sync without a change, in seconds.
    again: f64,
    /// The bytes of the first sync, as a share of those of a mirror clone.
    bytes: f64,
}

async fn one(larder: &Larder, forge: &Forge, name: &str, title: &str, rounds: usize) -> Result<Times> {
    let [mut clone, mut first, mut first_whole, mut again, mut again_whole, mut ratio] = [const { Figure::new() }; 6];
    let (mut cloned, mut synced, mut requests) = (0, 0, 0);
    for _ in 0..rounds {
        let folder = tempfile::tempdir()?;
        forge.traffic();
        let time = mirror_clone(&forge.url(name), &folder.path().join("clone.git")).await?;
        cloned = forge.traffic().1;

        let data = folder.path().join("data");
        larder.run(&data, &["source", "add", "git", &forge.url(name), "--name", name]).await?;
        forge.traffic();
        let sync = larder.sync(&data, name).await?;
        (requests, synced) = forge.traffic();
        let unchanged = larder.sync(&data, name).await?;
        clone.add_millis(time);
        first.add_millis(sync.own);
        first_whole.add_millis(sync.whole);
        again.add_millis(unchanged.own);
        again_whole.add_millis(unchanged.whole);
        ratio.add(sync.own.as_secs_f64() / time.as_secs_f64());
    }
    println!("\n{title}");
    println!("  git clone --mirror        {clone:.0} ms, {:.2} MB", megabytes(cloned));
    println!("  first sync                {first:.0} ms, {:.2} MB in {requests} requests", megabytes(synced));
    println!("    the whole command       {first_whole:.0} ms");
    println!("  sync without a change     {again:.0} ms");
    println!("    the whole command       {again_whole:.0} ms");
    println!("  first sync / clone        {ratio:.2} of its time, {:.3} of its bytes", share(synced, cloned));
    Ok(Times { first: ratio.median(), again: again.median() / 1e3, bytes: share(synced, cloned) })
}

fn share(part: u64, whole: u64) -> f64 {
    megabytes(part) / megabytes(whole.max(1))
}

async fn mirror_clone(url: &str, to: &Path) -> Result<Duration> {
    let began = Instant::now();
    let output = Command::new("git").args(["clone", "--quiet", "--mirror", url]).arg(to).output().await?;
    if !output.status.success() {
        bail!("git clone: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(began.elapsed())
}

/// Many sources that a server finds waiting when it starts.
async fn many_at_once(larder: &Larder, forge: &Forge) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    for number in 0..AT_ONCE {
        let name = format!("at-once-{number:02}");
        fixture::many(&forge.repository(&name), &format!("bench/at-once-{number:02}"), 50, 4, 40);
        larder.run(data, &["source", "add", "git", &forge.url(&name), "--name", &name]).await?;
    }
    let server = larder.serve(data, false)?;
    let (time, peak_of_git) = watch(&server).await?;
    let own = machine::memory(server.pid);
    println!("\n{AT_ONCE} sources of 50 tags each, waiting when the server starts");
    println!("  all synced after          {:.1} s", time.as_secs_f64());
    println!("  memory of the server      {:.1} MB at most, {:.1} MB after", megabytes(own.peak), megabytes(own.now));
    println!("  memory of its git         {:.1} MB at most, shared pages counted in each", megabytes(peak_of_git));
    verdict("MB at most, server", megabytes(own.peak), 200.0, false);
    verdict("MB at most, server and git", megabytes(own.peak + peak_of_git), 200.0, false);
    server.stop().await
}

/// Until all sources are synced and everything that follows is done: the time to the former, and the most memory that
/// the server's children had together.
async fn watch(server: &Server) -> Result<(Duration, u64)> {
    let mut peak = 0;
    let mut synced = None;
    let mut worked = (Instant::now(), Duration::ZERO);
    loop {
        let family = machine::family(server.pid);
        let children = family.get(1..).unwrap_or_default();
        peak = peak.max(children.iter().map(|pid| machine::memory(*pid).now).sum());
        if synced.is_none() && server.logged("synced")?.len() >= AT_ONCE {
            synced = Some(server.began.elapsed());
        }
        let used = machine::processor_time(&[server.pid]);
        // What runs once a second by itself takes less than this.
        if used > worked.1 + Duration::from_millis(50) || children.len() > 1 {
            worked = (Instant::now(), used);
        }
        if let Some(synced) = synced
            && worked.0.elapsed() > IDLE
        {
            return Ok((synced, peak));
        }
        if server.began.elapsed() > LIMIT {
            synced.context("the sources are not synced within five minutes")?;
            bail!("the server is still busy after five minutes");
        }
        tokio::time::sleep(LOOK).await;
    }
}
