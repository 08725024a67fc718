//! Larder beside nginx on the same bytes, one core each, taking turns. Larder recognises a token and records every
//! access; nginx writes its access log.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    Options, fetch,
    fixture::{self, House},
    load, machine,
    nginx::Nginx,
    numbers::{Figure, megabytes, verdict},
    program::Server,
};

/// How long Larder rests before its memory is looked at again.
const REST: Duration = Duration::from_secs(15);

/// One thing that is asked for.
struct Case {
    title: String,
    path: String,
    status: u16,
    /// Whether bytes count rather than requests.
    by_bytes: bool,
    /// What Larder is to reach of nginx; none where it is only looked at.
    target: Option<f64>,
}

/// What the rounds measured of one server.
#[derive(Default)]
struct Column {
    rate: Figure,
    megabytes: Figure,
    p50: Figure,
    p99: Figure,
    processor: Figure,
}

impl Column {
    fn add(&mut self, run: load::Run) {
        self.rate.add(run.rate);
        self.megabytes.add(run.megabytes);
        self.p50.add(run.p50);
        self.p99.add(run.p99);
        self.processor.add(run.processor);
    }

    fn print(&self, name: &str) {
        println!(
            "  {name:<8} {:>24.0} {:>22.1} {:>20.0} {:>22.0} {:>22.1}",
            self.rate, self.megabytes, self.p50, self.p99, self.processor
        );
    }
}

/// Measures and prints.
pub async fn measure(house: &House, options: &Options) -> Result<()> {
    println!(
        "\nServing: {} rounds of {} s each, {} connections, median (least..most)",
        options.rounds, options.seconds, options.connections
    );
    let larder = house.larder.serve(house.data(), true)?;
    larder.ready().await?;
    let cases = cases(&larder, house).await?;
    let nginx = Nginx::start(&same_bytes(&larder, house, &cases).await?).await?;
    for case in &cases {
        beside(case, &larder, &nginx, house, options).await?;
    }
    let loaded = machine::memory(larder.pid);
    tokio::time::sleep(REST).await;
    let rested = machine::memory(larder.pid);
    println!(
        "\nMemory after all of it: {:.1} MB, {REST:?} later {:.1} MB, at most {:.1} MB; nginx {:.1} MB",
        megabytes(loaded.now),
        megabytes(rested.now),
        megabytes(rested.peak),
        megabytes(nginx.pids.iter().map(|pid| machine::memory(*pid).now).sum()),
    );
    nginx.stop().await?;
    larder.stop().await
}

async fn cases(larder: &Server, house: &House) -> Result<Vec<Case>> {
    let many = "/p2/bench/many.json".to_owned();
    let answer = fetch::get(larder.address, &many, &[encoding(), house.authorization()]).await?.expect(200)?;
    let size = answer.body.len();
    let versions = fixture::MANY;
    Ok(vec![
        Case {
            title: format!("metadata 200: {versions} versions, {size} bytes of gzip"),
            path: many.clone(),
            status: 200,
            by_bytes: false,
            target: Some(0.6),
        },
        Case {
            title: "metadata 200: 3 versions".to_owned(),
            path: "/p2/bench/link-30.json".to_owned(),
            status: 200,
            by_bytes: false,
            target: None,
        },
        Case { title: "metadata 304".to_owned(), path: many, status: 304, by_bytes: false, target: Some(0.5) },
        Case {
            title: "dist of 1 MB".to_owned(),
            path: dist(larder, house).await?,
            status: 200,
            by_bytes: true,
            target: Some(0.5),
        },
    ])
}

/// The path of the heavy dist.
async fn dist(larder: &Server, house: &House) -> Result<String> {
    let answer = fetch::get(larder.address, "/p2/bench/heavy.json", &[house.authorization()]).await?.expect(200)?;
    let document: Value = serde_json::from_slice(&answer.body)?;
    let url = document["packages"]["bench/heavy"][0]["dist"]["url"].as_str().context("a version has a dist")?;
    let path = url.strip_prefix(&format!("http://{}", larder.address)).context("a dist is on the server")?;
    Ok(path.to_owned())
}

/// What Larder serves, as files: compressed where it compresses, plain as well because nginx asks for both.
async fn same_bytes(larder: &Server, house: &House, cases: &[Case]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for case in cases {
        let encoded =
            fetch::get(larder.address, &case.path, &[encoding(), house.authorization()]).await?.expect(200)?;
        if encoded.header("content-encoding") == Some("gzip") {
            let plain = fetch::get(larder.address, &case.path, &[house.authorization()]).await?.expect(200)?;
            files.push((case.path.clone(), plain.body));
            files.push((format!("{}.gz", case.path), encoded.body));
        } else {
            files.push((case.path.clone(), encoded.body));
        }
    }
    Ok(files)
}

fn encoding() -> (&'static str, String) {
    ("Accept-Encoding", "gzip".to_owned())
}

/// Measures one case on both servers in turns, the first one another in each round.
async fn beside(case: &Case, larder: &Server, nginx: &Nginx, house: &House, options: &Options) -> Result<()> {
    let larder_pids = [larder.pid];
    let servers = [(nginx.address, &nginx.pids[..]), (larder.address, &larder_pids[..])];
    let mut headers = Vec::new();
    let mut bodies = Vec::new();
    for (address, _) in servers {
        let (own, body) = request(case, address, house).await?;
        headers.push(own);
        bodies.push(body);
    }
    if bodies[0] != bodies[1] {
        bail!("{}: the servers give different bytes", case.title);
    }
    let mut columns = [Column::default(), Column::default()];
    let (mut ratio, mut processor) = (Figure::default(), Figure::default());
    let time = Duration::from_secs(options.seconds);
    for round in 0..options.rounds {
        let mut runs = [None, None];
        for turn in 0..2 {
            let server = (round + turn) % 2;
            let run = load::run(servers[server], &case.path, &headers[server], options.connections, time).await?;
            columns[server].add(run);
            runs[server] = Some(run);
        }
        if let [Some(nginx), Some(larder)] = runs {
            ratio.add(if case.by_bytes { larder.megabytes / nginx.megabytes } else { larder.rate / nginx.rate });
            processor.add(larder.processor / nginx.processor);
        }
    }
    println!("\n{}", case.title);
    println!(
        "  {:<8} {:>24} {:>22} {:>20} {:>22} {:>22}",
        "", "requests/s", "MB/s", "p50 µs", "p99 µs", "CPU µs/request"
    );
    columns[0].print("nginx");
    columns[1].print("larder");
    println!("  larder / nginx: {ratio:.2} of its rate, {processor:.2} times its CPU time");
    if let Some(target) = case.target {
        verdict("of nginx's rate", ratio.median(), target, true);
    }
    Ok(())
}

/// The headers of a case for one server, tried once, and the body that came.
async fn request(
    case: &Case,
    address: std::net::SocketAddr,
    house: &House,
) -> Result<(Vec<(&'static str, String)>, Vec<u8>)> {
    let mut headers = vec![encoding(), house.authorization(), ("User-Agent", "larder-bench".to_owned())];
    let answer = fetch::get(address, &case.path, &headers).await?.expect(200)?;
    if case.status == 200 {
        return Ok((headers, answer.body));
    }
    let date = answer.header("last-modified").context("the answer has no Last-Modified")?.to_owned();
    headers.push(("If-Modified-Since", date));
    let answer = fetch::get(address, &case.path, &headers).await?.expect(case.status)?;
    Ok((headers, answer.body))
}
