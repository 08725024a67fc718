//! The power goes at any moment: after it comes back every stored byte is right, and what was acknowledged is there.
//!
//! `LARDER_TEST_KILL_ROUNDS` says how often (10 without it); `LARDER_TEST_KILL_SEED` repeats the moments of an earlier run.

use std::{collections::HashMap, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use larder_e2e::{Ground, Options, Server, on_every_ground, packages, setting, until, wire};
use larder_testkit::{Forge, forge::Repository};
use tokio::io::AsyncReadExt as _;

on_every_ground!(after_every_kill_all_bytes_are_right_and_what_was_acknowledged_is_there,);

/// What the world was told, and may rely on.
#[derive(Default)]
struct Acknowledged {
    /// Tokens that were printed.
    tokens: Vec<String>,
    /// The newest release whose sync was reported as done.
    synced: usize,
    /// Dists that arrived whole, by their path.
    dists: HashMap<String, Bytes>,
}

async fn after_every_kill_all_bytes_are_right_and_what_was_acknowledged_is_there(ground: Ground) {
    let rounds = setting("LARDER_TEST_KILL_ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(10);
    let mut moments = Moments::new();
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["1.0.0"], packages::text);
    let mut server = Server::start_with(&Arc::new(ground), Options::default()).await;
    server.add("text", &forge.url("text"), &[]).await;
    let mut known = Acknowledged { tokens: vec![server.token("reader", &[]).await], synced: 0, dists: HashMap::new() };
    for round in 1..=rounds {
        for number in (3 * round - 2)..=(3 * round) {
            release(&repository, number);
        }
        let kill_after = moments.next();
        tokio::select! {
            () = work(&server, &mut known, round, 3 * round) => {}
            () = tokio::time::sleep(kill_after) => {}
        }
        server.kill().await;
        server.resume().await;
        judge(&server, &known, &format!("round {round}, killed after {kill_after:?}, seed {}", moments.seed)).await;
    }
    server.ok(&["source", "sync", "text"]).await;
    let versions = server.versions(&known.tokens[0], "acme/text", false).await;
    assert_eq!(versions.len(), 3 * rounds + 1);
    until("the newest dists are built", || async {
        let versions = server.versions(&known.tokens[0], "acme/text", false).await;
        versions.iter().take(3).all(|version| version["dist"]["shasum"] != "").then_some(())
    })
    .await;
    let Acknowledged { tokens, synced, dists } = &known;
    assert!(
        tokens.len() > 1 && *synced > 0 && dists.len() > 1,
        "nothing was under way: {} {synced} {}",
        tokens.len(),
        dists.len()
    );
    let proven = server.fsck().await;
    assert!(proven.contains("all is well"), "{proven}");
    server.close().await;
}

fn release(repository: &Repository, number: usize) {
    let mut files = packages::text(&number.to_string());
    files.push(larder_testkit::forge::File::new("noise.txt", format!("{number} ").repeat(20_000)));
    packages::release(repository, &format!("1.{number}.0"), files);
}

/// Syncs, downloads and makes tokens at the same time, for as long as it is let.
async fn work(server: &Server, known: &mut Acknowledged, round: usize, newest: usize) {
    let Acknowledged { tokens, synced, dists } = known;
    let reader = tokens[0].clone();
    let syncing = async {
        if acknowledged(server, &["source", "sync", "text"]).await.is_some() {
            *synced = newest;
        }
    };
    let making = async {
        for number in 0.. {
            if let Some(token) = acknowledged(server, &["token", "create", &format!("t-{round}-{number}")]).await {
                server.guard(&token);
                tokens.push(token);
            }
        }
    };
    let downloading = async {
        loop {
            let Ok(answer) = wire::send(server.address(), wire::get("/p2/acme/text.json", Some(&reader))).await else {
                return;
            };
            for version in packages::expand(&answer.json()["packages"]["acme/text"]) {
                let path = version["dist"]["url"].as_str().unwrap_or_default().replace(&server.url(), "");
                let Ok(dist) = wire::send(server.address(), wire::get(&path, Some(&reader))).await else { return };
                if dist.status == StatusCode::OK {
                    let before = dists.insert(path.clone(), dist.body.clone());
                    assert!(before.is_none_or(|before| before == dist.body), "{path} changed");
                }
            }
        }
    };
    tokio::join!(syncing, making, downloading);
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
    let versions = server.versions(&known.tokens[0], "acme/text", false).await;
    assert!(versions.len() > known.synced, "{when}: {} of {} versions", versions.len(), known.synced + 1);
    for (path, body) in &known.dists {
        let answer = server.get(path, Some(&known.tokens[0])).await;
        assert!(answer.status == StatusCode::OK && answer.body == *body, "{when}: {path} {}", answer.status);
    }
}

/// When the power goes: the same moments for the same seed.
struct Moments {
    seed: u64,
    state: u64,
}

impl Moments {
    fn new() -> Self {
        let seed = setting("LARDER_TEST_KILL_SEED")
            .and_then(|text| text.parse().ok())
            .unwrap_or(u64::from(std::process::id()));
        Self { seed, state: seed.wrapping_mul(2_654_435_761).wrapping_add(88_172_645_463_325_252) }
    }

    fn next(&mut self) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Duration::from_millis(20 + self.state % 1_200)
    }
}
