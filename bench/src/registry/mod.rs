//! Larder beside other OCI registries, and beside nginx for what is a file: all of them run, each on a folder of its own on
//! the same disk, and take turns on the core of the servers. The client is on the other core.

mod client;
mod content;
mod layers;
mod manifests;
mod many;
mod peers;
mod repeat;
mod small;
mod table;

use std::{fs, io::Write as _, path::Path};

use anyhow::Result;
use clap::ValueEnum;
use tokio::process::Command;

use self::peers::Running;
use crate::{
    Options, machine,
    numbers::{Figure, megabytes},
    program::Larder,
};

/// What is measured of registries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// A layer of a gibibyte: push, pull, parts, HEAD
    Layers,
    /// Images of 50 small layers
    Small,
    /// A manifest by its tag, and lists of tags
    Manifests,
    /// A hundred pulls at once
    Many,
}

/// What every case needs.
struct Setting<'a> {
    registries: Vec<Running>,
    options: &'a Options,
    /// Where all of them store.
    place: &'a Path,
}

impl Setting<'_> {
    /// The registries in the order of their turns in this round.
    fn turns(&self, round: usize) -> impl Iterator<Item = &Running> {
        let count = self.registries.len();
        (0..count).map(move |turn| &self.registries[(round + turn) % count])
    }
}

/// Measures and prints.
pub async fn measure(larder: &Larder, options: &Options) -> Result<()> {
    println!(
        "\nRegistry: {} rounds, servers on one core in turns, client on the other, median (least..most)",
        options.rounds
    );
    println!("larder wants a token at each request (Basic); the others are open to everybody");
    let mut peers = peers::find(larder, options.peers.as_deref()).await?;
    peers.retain(|peer| options.servers.is_empty() || options.servers.iter().any(|name| name == peer.name));
    machine::move_to_client_core().await?;
    let folder = options.place.as_deref().map_or_else(tempfile::tempdir, tempfile::tempdir_in)?;
    let mut registries = Vec::new();
    for peer in &peers {
        registries.push(peer.start(folder.path()).await?);
    }
    let setting = Setting { registries, options, place: folder.path() };
    idle(&setting).await;
    let wanted = |only| options.only.is_empty() || options.only.contains(&only);
    if wanted(Only::Layers) {
        layers::measure(&setting).await?;
    }
    if wanted(Only::Small) {
        small::measure(&setting).await?;
    }
    if wanted(Only::Manifests) {
        manifests::measure(&setting).await?;
    }
    if wanted(Only::Many) {
        many::measure(&setting).await?;
    }
    for registry in setting.registries {
        registry.stop().await?;
    }
    Ok(())
}

/// Memory of servers that nobody has asked for anything.
async fn idle(setting: &Setting<'_>) {
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    println!("\nIdle memory");
    for registry in &setting.registries {
        println!("  {:<15}{:.1} MB", registry.name, megabytes(machine::memory(registry.pid).now));
    }
}

/// Waits until what was written before is on the disk, so that nobody pays for somebody else's writing; and has as many
/// bytes of memory touched as are about to be written. A virtual machine gets its memory from its host at the first touch,
/// which costs ten times what a copy into it costs, and hands it back when it is free for some seconds: without this, the
/// luck of who gets which memory would be all that is seen.
async fn settle(place: &Path, bytes: usize) -> Result<()> {
    Command::new("sync").status().await?;
    let place = place.join("touched");
    tokio::task::spawn_blocking(move || {
        let mut file = fs::File::create(&place)?;
        let piece = vec![1; 1 << 20];
        for _ in 0..=bytes >> 20 {
            file.write_all(&piece)?;
        }
        // Nothing of it ever reaches the disk.
        fs::remove_file(&place)
    })
    .await??;
    Ok(())
}

/// Prints how much of another server's figure Larder's is.
fn compare(figure: Option<Figure>, what: &str) {
    if let Some(figure) = figure {
        println!("  larder / {what}: {figure:.2}");
    }
}
