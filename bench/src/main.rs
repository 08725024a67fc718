//! Measures Larder beside its peers, all in one run on one machine: nginx for what is served, `git clone --mirror` for
//! what is fetched, other registries for images. It prints figures; nothing here passes or fails.

mod fetch;
mod fixture;
mod load;
mod machine;
mod nginx;
mod numbers;
mod program;
mod registry;
mod serving;
mod starting;
mod syncing;
mod upstream;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use larder_testkit::Forge;

use crate::program::Larder;

/// Measure Larder beside nginx, git and other registries.
#[derive(Debug, Parser)]
struct Options {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The larder program to measure [default: built now, with the release profile]
    #[arg(long, value_name = "PATH")]
    larder: Option<PathBuf>,
    /// How many rounds; each measures every server once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many seconds one measurement of a server takes
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many connections ask at once
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// A bare Git repository to sync as the large one, with a manifest in its tags [default: one is made, of 200 MB]
    #[arg(long, value_name = "PATH")]
    large: Option<PathBuf>,
    /// One more bare Git repository to sync; several times for several
    #[arg(long, value_name = "PATH")]
    also: Vec<PathBuf>,
    /// The Composer that installs [default: the one that scripts/composer-current put into ~/.cache/larder/composer-current]
    #[arg(long, value_name = "PATH")]
    composer: Option<PathBuf>,
    /// Where scripts/bench-peers put the other registries [default: ~/.cache/larder/bench-peers]
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// The registries to measure, for example larder,zot [default: all that are there]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    servers: Vec<String>,
    /// The parts of the registry measurements to do [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_enum)]
    only: Vec<registry::Only>,
    /// On which disk registries store, with 30 GB free [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Requests per second, latency, CPU and memory beside nginx
    Serving,
    /// From the start of the program to its first answer, and idle memory
    Starting,
    /// First and repeated syncs beside a mirror clone, and many at once
    Syncing,
    /// Installs of a project through Larder beside installs straight from its upstream
    Upstream,
    /// Pushes and pulls of images beside other registries
    Registry,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    machine::describe()?;
    let missing = machine::missing();
    for (program, package) in &missing {
        eprintln!(
            "\n!!! {program} IS NOT INSTALLED: install the package {package}. What needs it is NOT measured. !!!"
        );
    }
    let larder = Larder::find(options.larder.as_deref()).await?;
    println!("larder: {}", larder.version().await?);
    let forge = Forge::start().await;
    if wanted(Part::Serving) || wanted(Part::Starting) {
        let house = fixture::house(&larder, &forge).await?;
        if wanted(Part::Starting) {
            starting::measure(&larder, &house, options.rounds).await?;
        }
        if wanted(Part::Serving) && missing.is_empty() {
            serving::measure(&house, &options).await?;
        }
        house.close().await?;
    }
    if wanted(Part::Syncing) {
        syncing::measure(&larder, &forge, &options).await?;
    }
    // The last ones: they move this program to the core of the client.
    if wanted(Part::Upstream) && missing.is_empty() {
        upstream::measure(&larder, &options).await?;
    }
    if wanted(Part::Registry) && missing.is_empty() {
        registry::measure(&larder, &options).await?;
    }
    Ok(())
}
