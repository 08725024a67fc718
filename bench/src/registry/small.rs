//! Images of many small layers, where what surrounds the bytes is what costs: questions, uploads, commits, rows.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::Result;
use futures_util::future::try_join_all;

use super::{
    Setting,
    client::{Connection, Door},
    compare,
    content::Image,
    peers::Running,
    settle,
    table::Table,
};
use crate::machine;

/// Layers of an image.
const LAYERS: usize = 50;
/// Bytes of a layer.
const SIZE: usize = 20 * 1024;
/// How many images one measurement takes: one alone takes too few ticks of processor time.
const IMAGES: usize = 4;
/// How many layers are on their way at once, as in crane.
const AT_ONCE: usize = 4;

const REPOSITORY: &str = "bench/small";
const COLUMNS: [(&str, usize); 2] = [("ms/image", 1), ("CPU ms/image", 1)];

pub async fn measure(setting: &Setting<'_>) -> Result<()> {
    let what = format!("of an image of {LAYERS} layers of 20 KiB over {AT_ONCE} connections");
    let mut pushes = Table::new(format!("Push {what}"), &COLUMNS);
    let mut pulls = Table::new(format!("Pull {what}"), &COLUMNS);
    for round in 0..setting.options.rounds {
        let images: Vec<_> =
            (0..IMAGES).map(|image| Image::noise((1_000 * (round + 1) + image) as u64, LAYERS, SIZE)).collect();
        for registry in setting.turns(round) {
            settle(setting.place, 16 * IMAGES * LAYERS * SIZE).await?;
            pushes.add(registry.name, timed(registry, &registry.door, &images, round, push).await?);
        }
        for registry in setting.turns(round) {
            pulls.add(registry.name, timed(registry, &registry.pulls, &images, round, pull).await?);
        }
    }
    for table in [pushes, pulls] {
        table.print();
        compare(table.larder_to("distribution-3", 0), "distribution-3: time");
        compare(table.larder_to("distribution-3", 1), "distribution-3: CPU time");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
async fn timed(
    registry: &Running,
    door: &Door,
    images: &[Image],
    round: usize,
    work: impl AsyncFn(&Door, &Image, &str) -> Result<()>,
) -> Result<Vec<f64>> {
    let pids = [registry.pid];
    let before = machine::processor_time(&pids);
    let began = Instant::now();
    for (number, image) in images.iter().enumerate() {
        work(door, image, &format!("{round}.{number}")).await?;
    }
    let took = began.elapsed();
    let used = machine::processor_time(&pids).saturating_sub(before);
    Ok([took, used].iter().map(|time| time.as_secs_f64() * 1e3 / images.len() as f64).collect())
}

async fn push(door: &Door, image: &Image, tag: &str) -> Result<()> {
    let next = AtomicUsize::new(0);
    let one = async || {
        let mut connection = Connection::open(door).await?;
        while let Some(blob) = image.blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            connection.misses(REPOSITORY, &blob.digest).await?;
            connection.push_blob(REPOSITORY, blob).await?;
        }
        Ok::<_, anyhow::Error>(connection)
    };
    let mut connections = try_join_all((0..AT_ONCE).map(|_| one())).await?;
    connections[0].push_manifest(REPOSITORY, tag, &image.manifest).await
}

async fn pull(door: &Door, image: &Image, tag: &str) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..AT_ONCE {
        connections.push(Connection::open(door).await?);
    }
    connections[0].pull_manifest(REPOSITORY, tag, image).await?;
    let next = AtomicUsize::new(0);
    let one = async |mut connection: Connection| {
        while let Some(blob) = image.blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            connection.pull_blob(REPOSITORY, blob).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    try_join_all(connections.into_iter().map(one)).await?;
    Ok(())
}
