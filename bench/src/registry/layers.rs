//! One layer of a gibibyte: pushed, pulled beside nginx that has it as a file, and read in parts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Setting,
    client::{Connection, Door},
    compare,
    content::Image,
    peers::Running,
    repeat::{Ask, repeat},
    settle,
    table::Table,
};
use crate::{
    fixture::noise,
    machine,
    nginx::Nginx,
    numbers::{megabytes, verdict},
};

/// Bytes of the layer.
const SIZE: usize = 1 << 30;
/// How often it is pulled in one measurement: once takes too few ticks of processor time.
const PULLS: u32 = 4;
/// Bytes of a part.
const PART: u64 = 64 * 1024;
/// Where it is pushed.
const REPOSITORY: &str = "bench/layer";

/// Of everything that moves many bytes.
pub const COLUMNS: [(&str, usize); 3] = [("MB/s", 0), ("CPU s/GiB", 2), ("memory at most, MB", 1)];

pub async fn measure(setting: &Setting<'_>) -> Result<()> {
    let first = push(setting).await?;
    pull(setting, &first).await?;
    parts(setting, &first).await
}

/// Pushes another layer in each round; gives the first one.
async fn push(setting: &Setting<'_>) -> Result<Image> {
    let mut table = Table::new("Push of a layer of 1 GiB: POST, PATCH as a stream, PUT".to_owned(), &COLUMNS);
    let mut first = None;
    for round in 0..setting.options.rounds {
        let image = Image::new("layer", std::iter::once(noise(100 + round as u64, SIZE).as_slice()));
        for registry in setting.turns(round) {
            let layer = &image.blobs[0];
            // More than the layer, because not all of what is touched is found again.
            settle(setting.place, 2 * SIZE).await?;
            let mut connection = Connection::open(&registry.door).await?;
            let figures =
                watched(&[registry.pid], SIZE, async { connection.push_blob(REPOSITORY, layer).await }).await?;
            table.add(registry.name, figures);
            connection.push_blob(REPOSITORY, &image.blobs[1]).await?;
            connection.push_manifest(REPOSITORY, &format!("round-{round}"), &image.manifest).await?;
        }
        first.get_or_insert(image);
    }
    table.print();
    compare(table.larder_to("distribution-3", 0), "distribution-3: MB/s");
    compare(table.larder_to("distribution-3", 1), "distribution-3: CPU time");
    if let Some(ratio) = table.larder_to("distribution-3", 1) {
        verdict("times distribution-3 in bytes per CPU second", 1.0 / ratio.median(), 2.0, true);
    }
    Ok(first.unwrap_or_else(|| Image::new("layer", std::iter::empty())))
}

async fn pull(setting: &Setting<'_>, image: &Image) -> Result<()> {
    let title = format!("Pull of the layer of 1 GiB, {PULLS} times over one connection, from the page cache");
    let mut table = Table::new(title, &COLUMNS);
    let layer = &image.blobs[0];
    let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let nginx = Nginx::start(&[(path, noise(100, SIZE))]).await?;
    let file = Door { address: nginx.address, authorization: None };
    settle(setting.place, 0).await?;
    for round in 0..=setting.options.rounds {
        for turn in 0..=setting.registries.len() {
            let number = (round + turn) % (setting.registries.len() + 1);
            let (name, door, pids) = match setting.registries.get(number) {
                Some(registry) => (registry.name, &registry.pulls, &[registry.pid][..]),
                None => ("nginx", &file, &nginx.pids[..]),
            };
            let mut connection = Connection::open(door).await?;
            let mut work = async || {
                for _ in 0..PULLS {
                    connection.pull_blob(REPOSITORY, layer).await?;
                }
                Ok(())
            };
            let figures = watched(pids, SIZE * PULLS as usize, work()).await?;
            // The first round brings the files into the page cache.
            if round > 0 {
                table.add(name, figures);
            }
        }
    }
    table.print();
    nginx.stop().await?;
    compare(table.larder_to("nginx", 1), "nginx: CPU time");
    if let Some(ratio) = table.larder_to("nginx", 0) {
        compare(Some(ratio.clone()), "nginx: MB/s");
        verdict("of nginx's rate", ratio.median(), 0.8, true);
    }
    Ok(())
}

/// Parts of the layer, and questions whether it is there.
async fn parts(setting: &Setting<'_>, image: &Image) -> Result<()> {
    let path = format!("/v2/{REPOSITORY}/blobs/{}", image.blobs[0].digest);
    let asked = AtomicU64::new(0);
    let range = || {
        // A multiplicative generator (Knuth); the order of the connections does not matter.
        let number = asked.fetch_add(1, Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005) >> 11;
        let start = number % (SIZE as u64 - PART);
        format!("Range: bytes={start}-{}\r\n", start + PART - 1)
    };
    let none = String::new;
    compare_asks(setting, "Random parts of 64 KiB of the layer", |it| &it.pulls, &Ask::new("GET", &path, 206, &range))
        .await?;
    let head = Ask::new("HEAD", &path, 200, &none);
    compare_asks(setting, "HEAD of the layer, by one who may only pull", |it| &it.pulls, &head).await?;
    compare_asks(setting, "HEAD of the layer, by one who may push and will rely on it", |it| &it.door, &head).await
}

async fn compare_asks(
    setting: &Setting<'_>,
    title: &str,
    door: impl Fn(&Running) -> &Door,
    ask: &Ask<'_>,
) -> Result<()> {
    let title = format!("{title}, {} connections", setting.options.connections);
    let mut table = Table::new(title, &[("requests/s", 0), ("CPU µs/request", 1), ("p50 µs", 0), ("p99 µs", 0)]);
    for round in 0..setting.options.rounds {
        for registry in setting.turns(round) {
            let time = Duration::from_secs(setting.options.seconds);
            let run = repeat(door(registry), registry.pid, ask, setting.options.connections, time).await?;
            table.add(registry.name, vec![run.rate, run.processor, run.p50, run.p99]);
        }
    }
    table.print();
    compare(table.larder_to("distribution-3", 1), "distribution-3: CPU time");
    Ok(())
}

/// The figures of [`COLUMNS`] of a server's processes while they move `bytes`.
pub async fn watched(pids: &[u32], bytes: usize, work: impl Future<Output = Result<()>>) -> Result<Vec<f64>> {
    pids.iter().try_for_each(|pid| machine::forget_peak(*pid))?;
    let before = machine::processor_time(pids);
    let began = Instant::now();
    work.await?;
    let took = began.elapsed();
    let used = machine::processor_time(pids).saturating_sub(before);
    let peak = pids.iter().map(|pid| machine::memory(*pid).peak).sum();
    let moved = megabytes(bytes as u64);
    Ok(vec![moved / took.as_secs_f64(), used.as_secs_f64() * megabytes(1 << 30) / moved, megabytes(peak)])
}
