//! The power goes at any moment: after it comes back every stored byte is right, and what was acknowledged is there.
//!
//! `LARDER_TEST_KILL_ROUNDS` says how often (10 without it); `LARDER_TEST_KILL_SEED` repeats the moments of an earlier run.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;
use larder_e2e::{Ground, Options, Server, on_every_ground, packages, setting, wire};
use larder_testkit::{
    Forge,
    forge::{File, Repository},
};
use tokio::io::AsyncReadExt as _;

on_every_ground!(after_every_kill_all_bytes_are_right_and_what_was_acknowledged_is_there,);

/// What the world was told, and may rely on.
#[derive(Default)]
struct Acknowledged {
    /// Tokens that were printed.
    tokens: Vec<String>,
    /// Sources whose adding was reported.
    sources: Vec<String>,
    /// By package: how many releases a sync had read when it was reported as done.
    synced: HashMap<String, usize>,
    /// Dists that arrived whole, by their path.
    dists: HashMap<String, Bytes>,
}

async fn after_every_kill_all_bytes_are_right_and_what_was_acknowledged_is_there(ground: Ground) {
    let rounds = setting("LARDER_TEST_KILL_ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(10);
    let forge = Forge::start().await;
    let mut server = Server::start_with(&Arc::new(ground), Options::default()).await;
    let mut known = Acknowledged { tokens: vec![server.token("reader", &[]).await], ..Acknowledged::default() };
    let begun = Instant::now();
    work(&server, &Fixture::new(&forge, 0), &mut known).await;
    // A kill comes at any moment of a round, and now and then just after it.
    let mut moments = Moments::within(begun.elapsed() * 6 / 5);
    for round in 1..=rounds {
        let (fixture, kill_after) = (Fixture::new(&forge, round), moments.next());
        tokio::select! {
            () = work(&server, &fixture, &mut known) => {}
            () = tokio::time::sleep(kill_after) => {}
        }
        server.kill().await;
        fixture.release();
        server.resume().await;
        judge(&server, &known, &format!("round {round}, killed after {kill_after:?}, seed {}", moments.seed)).await;
    }
    let Acknowledged { tokens, synced, dists, .. } = &known;
    assert!(tokens.len() > 2 && synced.len() > 1 && dists.len() > 1, "no round got far enough to prove anything");
    server.ok(&["source", "sync", "--all"]).await;
    for source in &known.sources {
        assert_eq!(server.versions(&tokens[0], &format!("acme/{source}"), false).await.len(), 4, "{source}");
    }
    let proven = server.fsck().await;
    assert!(proven.contains("all is well"), "{proven}");
    server.close().await;
}

/// The repository of one round: three releases, and a fourth that comes later.
struct Fixture {
    source: String,
    package: String,
    url: String,
    repository: Repository,
    newest: String,
}

impl Fixture {
    fn new(forge: &Forge, round: usize) -> Self {
        let source = format!("text-{round}");
        let package = format!("acme/{source}");
        let repository = forge.repository(&source);
        let files = |number: usize| {
            let noise = File::new("noise.txt", format!("{round} {number} ").repeat(20_000));
            packages::named(&package, &number.to_string()).into_iter().chain([noise]).collect::<Vec<_>>()
        };
        repository.history(4, |number| format!("1.{number}.0"), files);
        let newest = repository.resolve("refs/tags/1.3.0").expect("the tag is there");
        repository.remove("refs/tags/1.3.0");
        Self { url: forge.url(&source), source, package, repository, newest }
    }

    fn release(&self) {
        self.repository.tag("1.3.0", &self.newest);
    }
}

/// One round: brings in a repository, brings in a new tag of it, downloads what is there, and makes tokens meanwhile.
async fn work(server: &Server, fixture: &Fixture, known: &mut Acknowledged) {
    let (source, package) = (&fixture.source, &fixture.package);
    let Acknowledged { tokens, sources, synced, dists } = known;
    let reader = tokens[0].clone();
    let bringing = async {
        if acknowledged(server, &["source", "add", "git", &fixture.url, "--name", source]).await.is_some() {
            sources.push(source.clone());
        }
        for releases in [3, 4] {
            if acknowledged(server, &["source", "sync", source]).await.is_some() {
                synced.insert(package.clone(), releases);
            }
            fixture.release();
            download(server, &reader, package, dists).await;
        }
    };
    let making = async {
        for number in 0..5 {
            let name = format!("{source}-{number}");
            if let Some(token) = acknowledged(server, &["token", "create", &name]).await {
                server.guard(&token);
                tokens.push(token);
            }
        }
    };
    tokio::join!(bringing, making);
}

/// Takes every dist of a package that can be had.
async fn download(server: &Server, token: &str, package: &str, dists: &mut HashMap<String, Bytes>) {
    let Ok(answer) = wire::send(server.address(), wire::get(&format!("/p2/{package}.json"), Some(token))).await else {
        return;
    };
    for version in packages::expand(&answer.json()["packages"][package]) {
        let path = version["dist"]["url"].as_str().unwrap_or_default().replace(&server.url(), "");
        let Ok(dist) = wire::send(server.address(), wire::get(&path, Some(token))).await else { return };
        if dist.status == StatusCode::OK {
            let before = dists.insert(path.clone(), dist.body.clone());
            assert!(before.is_none_or(|before| before == dist.body), "{path} changed");
        }
    }
}

/// What a command printed, if it succeeded. Dropped in the middle, it is killed.
async fn acknowledged(server: &Server, args: &[&str]) -> Option<String> {
    let mut command = server.command(args).await;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("the program starts");
    let mut said = String::new();
    child.stdout.take().expect("stdout is piped").read_to_string(&mut said).await.ok()?;
    child.wait().await.ok()?.success().then(|| said.trim().to_owned())
}

async fn judge(server: &Server, known: &Acknowledged, when: &str) {
    let proven = server.larder(&["fsck"]).await;
    assert!(proven.status.success(), "{when}: {}", proven.all());
    for token in &known.tokens {
        assert_eq!(server.get("/packages.json", Some(token)).await.status, StatusCode::OK, "{when}: a printed token");
    }
    let listed = server.ok(&["source", "list"]).await;
    for source in &known.sources {
        assert!(listed.contains(&format!("{source} ")), "{when}: the source {source} in {listed}");
    }
    for (package, releases) in &known.synced {
        let versions = server.versions(&known.tokens[0], package, false).await;
        assert!(versions.len() >= *releases, "{when}: {} of {releases} versions of {package}", versions.len());
    }
    for (path, body) in &known.dists {
        let answer = server.get(path, Some(&known.tokens[0])).await;
        assert!(answer.status == StatusCode::OK && answer.body == *body, "{when}: {path} {}", answer.status);
    }
}

/// When the power goes: the same moments for the same seed, as parts of a round.
struct Moments {
    seed: u64,
    state: u64,
    round: Duration,
}

impl Moments {
    fn within(round: Duration) -> Self {
        let given = setting("LARDER_TEST_KILL_SEED").and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(u64::from(std::process::id()));
        Self { seed, state: seed.wrapping_mul(2_654_435_761).wrapping_add(88_172_645_463_325_252), round }
    }

    fn next(&mut self) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.round.mul_f64(f64::from(u16::try_from(self.state % 1_000).unwrap_or_default()) / 1_000.0)
    }
}
