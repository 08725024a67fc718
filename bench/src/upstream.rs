//! What it costs a client that Larder stands before its upstream: a project installed straight from nginx, through a Larder
//! that has nothing yet, and through one that has everything, in turns. The client begins with nothing each time.

use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, write::GzEncoder};
use larder_e2e::{
    Composer, Project,
    upstream::{Catalogue, Layout, Protocol},
};

use crate::{
    Options, machine,
    nginx::Nginx,
    numbers::{Figure, verdict},
    program::{Larder, Server, free_address},
};

/// How many packages the project needs, all by way of one.
const PACKAGES: usize = 40;

/// What the rounds measured.
#[derive(Default)]
struct Figures {
    direct: Figure,
    cold: Figure,
    warm: Figure,
    cold_ratio: Figure,
    warm_ratio: Figure,
    /// Of nginx, in the cold installs through Larder.
    asked: Figure,
}

/// Measures and prints.
pub async fn measure(larder: &Larder, options: &Options) -> Result<()> {
    let Some(composer) = composer(options.composer.as_deref())? else {
        eprintln!(
            "\n!!! THERE IS NO COMPOSER: scripts/composer-current DIR fetches one. Installs are NOT measured. !!!"
        );
        return Ok(());
    };
    machine::move_to_client_core().await?;
    let catalogue = Catalogue::chain("bench", PACKAGES);
    let address = free_address()?;
    let nginx = Nginx::start_at(address, &files(&catalogue, &format!("http://{address}"))?).await?;
    let house = Measured { larder, composer, nginx };
    let mut figures = Figures::default();
    // The first round warms the machine, and counts for nothing.
    for round in 0..=options.rounds {
        let (direct, (cold, warm, asked)) = if round.is_multiple_of(2) {
            (house.direct().await?, house.through().await?)
        } else {
            let through = house.through().await?;
            (house.direct().await?, through)
        };
        if round > 0 {
            figures.add(direct, cold, warm, asked);
        }
    }
    figures.print(options.rounds);
    house.nginx.stop().await
}

/// What is measured.
struct Measured<'a> {
    larder: &'a Larder,
    composer: Composer,
    nginx: Nginx,
}

impl Measured<'_> {
    /// An install from nginx. The client logs in, which costs it some time by itself; nginx does not mind.
    async fn direct(&self) -> Result<Duration> {
        let project = Project::at(&self.composer, &format!("http://{}", self.nginx.address));
        project.log_in_at(&self.nginx.address.to_string(), "anybody");
        install(&project).await
    }

    /// An install through a Larder that has nothing, and one more; and how often the first one made it ask nginx.
    async fn through(&self) -> Result<(Duration, Duration, usize)> {
        let folder = tempfile::tempdir()?;
        let data = folder.path();
        let token = self.larder.run(data, &["token", "create", "bench"]).await?;
        let url = format!("http://{}", self.nginx.address);
        self.larder.run(data, &["source", "add", "composer", &url, "--name", "upstream"]).await?;
        let server = self.larder.serve(data, true)?;
        server.ready().await?;
        let before = self.nginx.answered()?;
        let cold = install(&self.project(&server, &token)).await?;
        let asked = self.nginx.answered()? - before;
        let warm = install(&self.project(&server, &token)).await?;
        server.stop().await?;
        Ok((cold, warm, asked))
    }

    fn project(&self, server: &Server, token: &str) -> Project {
        let project = Project::at(&self.composer, &format!("http://{}", server.address));
        project.log_in_at(&server.address.to_string(), token);
        project
    }
}

/// Installs everything into an empty project, and gives how long that took.
async fn install(project: &Project) -> Result<Duration> {
    project.edit(|document| document["require"] = serde_json::json!({format!("bench/part-{PACKAGES:02}"): "^1.0"}));
    let began = Instant::now();
    let ran = project.composer(&["update", "--no-audit", "--no-progress"]).await;
    let took = began.elapsed();
    if !ran.status.success() || project.locked().len() != PACKAGES {
        bail!("the install fails: {}", ran.all());
    }
    Ok(took)
}

/// The upstream as files, with compressed ones beside documents, as registries have them.
fn files(catalogue: &Catalogue, base: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let layout = Layout::of(Protocol::Metadata);
    let mut files = Vec::new();
    for (path, bytes) in layout.files(catalogue, base) {
        if Path::new(&path).extension().is_some_and(|kind| kind == "json") {
            let mut packed = GzEncoder::new(Vec::new(), Compression::best());
            packed.write_all(&bytes)?;
            files.push((format!("{path}.gz"), packed.finish()?));
        }
        files.push((path, bytes.to_vec()));
    }
    // nginx is asked for the first one until it answers.
    files.sort_by_key(|(path, _)| path != "/packages.json");
    Ok(files)
}

/// The one that was named, or a current one.
fn composer(given: Option<&Path>) -> Result<Option<Composer>> {
    let program = match given {
        Some(path) => path.to_owned(),
        None => machine::cache_folder()?.join("composer-current/composer"),
    };
    if !fs::exists(&program)? {
        return Ok(None);
    }
    let output = std::process::Command::new(&program).args(["--version", "--no-ansi"]).output();
    let output = output.with_context(|| format!("{} does not run", program.display()))?;
    println!("composer: {}", String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("?"));
    Ok(Some(Composer::at(program)))
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn add(&mut self, direct: Duration, cold: Duration, warm: Duration, asked: usize) {
        self.direct.add_millis(direct);
        self.cold.add_millis(cold);
        self.warm.add_millis(warm);
        self.cold_ratio.add(cold.as_secs_f64() / direct.as_secs_f64());
        self.warm_ratio.add(warm.as_secs_f64() / direct.as_secs_f64());
        self.asked.add(asked as f64);
    }

    fn print(&self, rounds: usize) {
        println!(
            "\nUpstream: {PACKAGES} packages, {rounds} rounds, the client without a cache, ms, median (least..most)"
        );
        println!("  from nginx          {:>24.0}", self.direct);
        println!("  through Larder      {:>24.0}   nginx was asked {:.0} times", self.cold, self.asked);
        println!("  and once more       {:>24.0}", self.warm);
        println!("  of nginx's time: {:.2} cold, {:.2} warm", self.cold_ratio, self.warm_ratio);
        verdict("cold install", self.cold_ratio.median(), 1.3, false);
        verdict("warm install", self.warm_ratio.median(), 1.0, false);
    }
}
