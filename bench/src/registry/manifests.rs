//! What is asked for most: a manifest by its tag, again and again over connections that stay open; and the list of many tags.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::try_join_all;

use super::{
    Setting,
    client::Connection,
    compare,
    content::{Image, MANIFEST},
    peers::Running,
    table::Table,
};
use crate::{load, numbers::verdict};

/// Where there is one tag.
const ONE: &str = "bench/manifest";
/// Where there are many.
const MANY: &str = "bench/tags";
/// How many tags the list has.
const TAGS: usize = 10_000;
/// How long making them may take; a registry that is not done by then has fewer, which is said.
const LIMIT: Duration = Duration::from_secs(60);
/// Over how many connections they are made.
const AT_ONCE: usize = 8;
/// How many layers the manifest names.
const LAYERS: usize = 10;

pub async fn measure(setting: &Setting<'_>) -> Result<()> {
    let image = Image::noise(7, LAYERS, 1024);
    let all: Vec<_> = setting.registries.iter().collect();
    for registry in &all {
        push(registry, ONE, &image).await?.push_manifest(ONE, "latest", &image.manifest).await?;
    }
    let title = format!("GET of a manifest of {} bytes by its tag", image.manifest.len());
    let table = beside(setting, &all, &title, &format!("/v2/{ONE}/manifests/latest")).await?;
    if let Some(rate) = table.larder(0) {
        verdict("manifests per second on one core", rate.median(), 20_000.0, true);
    }
    let mut filled = Vec::new();
    println!("\n{TAGS} tags on one manifest, made over {AT_ONCE} connections");
    for registry in all {
        let began = Instant::now();
        let made = fill(registry, &image).await?;
        println!("  {:<15}{made} in {:.1} s", registry.name, began.elapsed().as_secs_f64());
        if made == TAGS {
            filled.push(registry);
        }
    }
    let list = format!("/v2/{MANY}/tags/list");
    beside(setting, &filled, &format!("List of all {TAGS} tags"), &list).await?;
    let page = format!("{list}?n=100&last=tag-04999");
    beside(setting, &filled, "A page of 100 tags out of their middle", &page).await?;
    Ok(())
}

async fn push(registry: &Running, repository: &str, image: &Image) -> Result<Connection> {
    let mut connection = Connection::open(&registry.door).await?;
    for blob in &image.blobs {
        connection.push_blob(repository, blob).await?;
    }
    Ok(connection)
}

/// Makes the tags, as many as the time allows, and tells how many.
async fn fill(registry: &Running, image: &Image) -> Result<usize> {
    push(registry, MANY, image).await?;
    let (began, next) = (Instant::now(), AtomicUsize::new(0));
    let one = async || {
        let mut connection = Connection::open(&registry.door).await?;
        let mut made = 0;
        while began.elapsed() < LIMIT {
            let tag = next.fetch_add(1, Ordering::Relaxed);
            if tag >= TAGS {
                break;
            }
            connection.push_manifest(MANY, &format!("tag-{tag:05}"), &image.manifest).await?;
            made += 1;
        }
        Ok::<_, anyhow::Error>(made)
    };
    Ok(try_join_all((0..AT_ONCE).map(|_| one())).await?.into_iter().sum())
}

async fn beside(setting: &Setting<'_>, registries: &[&Running], title: &str, path: &str) -> Result<Table> {
    let (connections, time) = (setting.options.connections, Duration::from_secs(setting.options.seconds));
    let title = format!("{title}, {connections} connections");
    let mut table = Table::new(title, &[("requests/s", 0), ("CPU µs/request", 1), ("p50 µs", 0), ("p99 µs", 0)]);
    for round in 0..setting.options.rounds {
        for turn in 0..registries.len() {
            let registry = registries[(round + turn) % registries.len()];
            let mut headers = vec![("Accept", MANIFEST.to_owned())];
            headers.extend(registry.pulls.authorization.clone().map(|value| ("Authorization", value)));
            let server = (registry.pulls.address, &[registry.pid][..]);
            let run = load::run(server, path, &headers, connections, time).await?;
            table.add(registry.name, vec![run.rate, run.processor, run.p50, run.p99]);
        }
    }
    table.print();
    compare(table.larder_to("distribution-3", 1), "distribution-3: CPU time");
    Ok(table)
}
