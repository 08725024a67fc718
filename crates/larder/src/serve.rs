//! `larder serve`: opens the house, lets clients in, and closes it in an order that loses nothing.

use std::{io::IsTerminal as _, net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use larder_audit::Seen;
use larder_auth::Authenticator;
use larder_composer::advisories::refresh::REFRESH;
use larder_core::{
    Error, Kind, Result as CoreResult,
    grant::{Action, Principal},
};
use larder_db::{changes::Watcher, sources};
use larder_http::{Access, AccessLog, Part, Readiness, Room, Site};
use larder_jobs::queue;
use larder_native::listener::{Limits, Listener};
use larder_oci::retention::SWEEP;
use larder_sources::work::{SYNC, is_scheduled};
use larder_webhooks::WebhookRoom;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    formats,
    house::House,
    housekeeping::{HOUSEKEEPING, sweep_copies},
};

/// How long running jobs have to end when the program stops.
const JOBS_END: Duration = Duration::from_secs(10);

/// A queue that nobody serves for longer than this is a problem.
const QUEUE_STUCK: Duration = Duration::from_secs(300);

/// How long `/readyz` waits for its turn to write.
const TURN: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<()> {
    let house = House::open(config).await?;
    let _announced = house.announce()?;
    let listener = Listener::bind(
        &house.config.listen,
        Limits { connections: house.config.connections, ..Limits::default() },
        house.config.trusted_proxies.clone(),
    )
    .await?;
    let address = listener.address()?;
    let public_url = house.config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    let authenticator = house.authenticator.clone();
    let rooms = formats::rooms(&house, &public_url)?;
    let mut site = Site::new(
        house.host.clone(),
        Arc::new(Door(authenticator.clone())),
        Arc::new(Log(house.recorder.clone())),
        Arc::new(Checks { db: house.db.clone(), store: Arc::clone(&house.store) }),
    );
    let mut watcher = Watcher::new(house.db.clone());
    for furnished in rooms {
        site = site.with_room(&furnished.room);
        watcher.subscribe(furnished.listener);
    }
    let hearing = authenticator.clone();
    watcher.subscribe(Box::new(move |change| hearing.hear(change)));
    let runner = house.runner.clone();
    watcher.subscribe(Box::new(move |change| runner.hear(change)));
    let webhooks: Arc<dyn Room> = Arc::new(WebhookRoom(house.sources.clone()));
    site = site.with_room(&webhooks);
    schedule(&house).await?;

    let background = [
        tokio::spawn(async move { watcher.run().await }),
        tokio::spawn(authenticator.clone().run()),
        tokio::spawn(house.recorder.clone().run()),
        tokio::spawn(sweep_copies(house.git.clone(), house.db.clone())),
    ];
    let jobs = house.runner.clone();
    let jobs = tokio::spawn(async move { jobs.run().await });
    greet(&house, &public_url).await;
    tracing::info!(%address, public_url, "listening");
    listener.serve(Arc::new(site), stop_signal()?).await;

    tracing::info!("stopping");
    house.runner.stop(JOBS_END).await;
    jobs.abort();
    for task in background {
        task.abort();
    }
    let uses = authenticator.write_uses().await;
    if let Err(error) = house.recorder.flush().await {
        let lost = house.recorder.waiting();
        tracing::error!(lost, error = error.chain(), "the last accesses could not be written, and are lost");
        return Err(error).context("writing the last accesses");
    }
    uses.context("writing when tokens were last used")
}

/// Completes with the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Sees to it that everything that recurs is in the queue: a schedule lives there, and is started here once.
async fn schedule(house: &House) -> Result<()> {
    let now = house.host.now();
    // Brought forward, if the configuration before this one had them later.
    for kind in [HOUSEKEEPING, SWEEP] {
        queue::enqueue(&house.db, kind, "", now.plus(house.config.gc_every)).await?;
    }
    queue::ensure(&house.db, REFRESH, "", now).await?;
    for source in sources::list(&house.db).await?.iter().filter(|source| is_scheduled(source)) {
        queue::ensure(&house.db, SYNC, &source.id.to_string(), now).await?;
    }
    Ok(())
}

/// Says on a terminal where it listens and what to do next.
async fn greet(house: &House, public_url: &str) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    eprintln!("Larder serves at {public_url} with its data in {}", house.config.data.display());
    if sources::list(&house.db).await.is_ok_and(|sources| sources.is_empty()) {
        eprintln!("Next, in another terminal:");
        eprintln!("  larder source add git https://git.example.org/acme/lib.git");
        eprintln!("  larder token create ci");
    }
}

/// Recognises whoever comes in.
struct Door(Authenticator);

#[async_trait]
impl larder_http::Authenticator for Door {
    fn cached(&self, token: Option<&str>) -> Option<Arc<Principal>> {
        self.0.recognise_warm(token)?.ok()
    }

    async fn authenticate(&self, token: Option<&str>, _: IpAddr) -> CoreResult<Arc<Principal>> {
        self.0.recognise(token).await
    }
}

/// Writes accesses into the audit log.
struct Log(larder_audit::Recorder);

impl AccessLog for Log {
    fn record(&self, access: Access<'_>) {
        let note = &access.note;
        let action = match (note.action, note.download, &note.package) {
            (None, ..) => "refused",
            (Some(Action::Publish), ..) => "publish",
            (Some(Action::Delete), ..) => "delete",
            (_, true, _) => "download",
            (_, false, Some(_)) => "metadata",
            (_, false, None) => "list",
        };
        let (package, version) = (note.package.as_deref().unwrap_or(""), note.version.as_deref().unwrap_or(""));
        self.0.record(&Seen {
            at: access.at,
            principal: &access.asker.name,
            action,
            format: note.format,
            package,
            version,
            result: access.status.as_u16(),
            address: access.address,
            user_agent: access.user_agent.unwrap_or(""),
        });
        if note.download && note.counts && access.status.as_u16() == 200 {
            let download = larder_audit::Download { format: note.format, package, version, kind: "download" };
            self.0.count(&download, access.at);
        }
    }
}

/// What `/readyz` looks at.
struct Checks {
    db: larder_db::Db,
    store: Arc<dyn larder_blobs::store::Store>,
}

#[async_trait]
impl Readiness for Checks {
    async fn check(&self) -> Vec<Part> {
        let queued = queue::queued(&self.db).await;
        let now = self.db.host().now();
        let queue = match &queued {
            Ok(queued) if queue::behind(queued, now) > QUEUE_STUCK => {
                Err(Error::new(Kind::Unavailable, "the oldest job has been due for more than five minutes"))
            }
            _ => Ok(()),
        };
        // Who waits for the writes of others can write: that is busy, and not broken.
        let written = self.db.host().within(TURN, self.db.try_writing()).await.unwrap_or(Ok(()));
        vec![
            Part { name: "database", state: queued.and(written) },
            Part { name: "store", state: self.store.check().await },
            Part { name: "queue", state: queue },
        ]
    }
}
