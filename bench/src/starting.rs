//! From the start of the program to its first answers, and the memory that it takes when nobody asks for anything.

use std::time::Duration;

use anyhow::Result;

use crate::{
    fetch,
    fixture::House,
    machine,
    numbers::{Figure, megabytes, verdict},
    program::Larder,
};

/// When memory is looked at: everything that happens at a start has happened.
const REST: Duration = Duration::from_secs(5);

/// Measures and prints.
pub async fn measure(larder: &Larder, house: &House, rounds: usize) -> Result<()> {
    println!("\nStarting: {rounds} rounds, the files already in the machine's memory, median (least..most)");
    let (mut empty, mut health, mut root) = (Figure::default(), Figure::default(), Figure::default());
    let (mut memory_of_empty, mut memory) = (Figure::default(), Figure::default());
    for _ in 0..rounds {
        let folder = tempfile::tempdir()?;
        let server = larder.serve(folder.path(), true)?;
        empty.add_millis(fetch::first_answer(server.address, "/healthz", &[], server.began).await?);
        tokio::time::sleep(REST).await;
        memory_of_empty.add(megabytes(machine::memory(server.pid).now));
        server.stop().await?;

        let server = larder.serve(house.data(), true)?;
        health.add_millis(fetch::first_answer(server.address, "/healthz", &[], server.began).await?);
        let authorization = [house.authorization()];
        root.add_millis(fetch::first_answer(server.address, "/packages.json", &authorization, server.began).await?);
        tokio::time::sleep(REST).await;
        memory.add(megabytes(machine::memory(server.pid).now));
        server.stop().await?;
    }
    println!("  first start, everything made, to /healthz     {empty} ms");
    println!("  start with 32 packages, to /healthz           {health} ms");
    println!("  start with 32 packages, to /packages.json     {root} ms");
    println!("  memory {REST:?} after the first start             {memory_of_empty} MB");
    println!("  memory {REST:?} after a start with 32 packages    {memory} MB");
    verdict("ms from the start to the first answer", empty.median().max(root.median()), 100.0, false);
    verdict("MB of idle memory", memory.median().max(memory_of_empty.median()), 30.0, false);
    Ok(())
}
