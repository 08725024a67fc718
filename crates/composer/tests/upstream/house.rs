//! Everything that a proxy needs, over a scratch database and a clock that a test moves.

use std::{sync::Arc, time::Duration};

use larder_blobs::Blobs;
use larder_composer::{
    Composer, ID,
    upstream::{Looked, Proxy},
};
use larder_core::{Kind, format::Format};
use larder_db::{
    Db,
    changes::Watcher,
    events::{self, Actor, Wanted},
    packages::{self, Package},
    sources::SourceState,
};
use larder_native::{
    fetch::{FetchSettings, HttpFetch},
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    registry::{Dists, FRESH, NewRegistry},
    vault::{SecretKey, Vault},
};
use larder_testkit::{FakeClock, Scratch};

use crate::server::Server;

/// Far more than anything here takes; only a failure waits for it.
const AT_MOST: Duration = Duration::from_secs(20);

pub struct House {
    pub db: Db,
    pub clock: FakeClock,
    pub blobs: Blobs,
    pub sources: Sources,
    pub proxy: Proxy,
    _folder: tempfile::TempDir,
    vault: Vault,
    hears: Watcher,
    _scratch: Scratch,
}

impl House {
    /// One on each database that there is, with an upstream called `up`.
    pub async fn each() -> Vec<(Self, Server)> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (mut house, server) = (Self::over(scratch).await, Server::new().await);
            house.add("up", &server).await;
            houses.push((house, server));
        }
        houses
    }

    async fn over(scratch: Scratch) -> Self {
        let (host, clock) = larder_testkit::host::host();
        let folder = tempfile::tempdir().unwrap();
        let db = scratch.db(&host).await;
        let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host);
        let vault = Vault::new(SecretKey::new([3; 32]), []);
        let git = Arc::new(GitProgram::new(GitSettings::below(folder.path())));
        let formats: Arc<[Arc<dyn Format>]> = [Arc::new(Composer) as Arc<dyn Format>].into();
        let sources = Sources::new(db.clone(), blobs.clone(), git, vault.clone(), formats, Limits::default(), true);
        let proxy = proxy(&db, &blobs, &vault);
        let hears = watcher(&db, &proxy);
        let mut house = Self { db, clock, blobs, sources, proxy, _folder: folder, vault, hears, _scratch: scratch };
        house.hear().await;
        house
    }

    pub async fn add(&mut self, name: &str, server: &Server) {
        let url = server.url("/");
        let new = NewRegistry {
            format: ID,
            url: &url,
            name: Some(name),
            credential: None,
            only: Vec::new(),
            fresh: FRESH,
            prefix: None,
            dists: Dists::Here,
            show_source: None,
        };
        self.sources.add_registry(&Actor::command_line(), new).await.unwrap();
        self.clock.advance(Duration::from_millis(1));
        self.hear().await;
    }

    /// The proxy hears of what has changed since it last did.
    pub async fn hear(&mut self) {
        self.hears.look().await.unwrap();
    }

    /// As another process has it that starts now.
    pub async fn restart(&mut self) {
        self.proxy = proxy(&self.db, &self.blobs, &self.vault);
        self.hears = watcher(&self.db, &self.proxy);
        self.hear().await;
    }

    pub async fn later(&mut self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.hear().await;
    }

    pub async fn look(&self, part: &str) -> Result<Looked, Kind> {
        let (name, dev) = part.strip_suffix("~dev").map_or((part, false), |name| (name, true));
        let looking = tokio::time::timeout(AT_MOST, self.proxy.look(name, dev));
        looking.await.unwrap().map_err(|error| error.kind())
    }

    pub async fn package(&self, name: &str) -> Option<Package> {
        packages::find(&self.db, ID, name).await.unwrap()
    }

    /// The versions that the upstream told last, in its order.
    pub async fn versions(&self, part: &str) -> Option<Vec<String>> {
        let (name, dev) = part.strip_suffix("~dev").map_or((part, false), |name| (name, true));
        let package = self.package(name).await.unwrap();
        let told = self.proxy.told(&package).await.unwrap()?;
        let told = if dev { told.branches? } else { told.tagged? };
        Some(told.entries.iter().map(|entry| entry.text("version").unwrap()).collect())
    }

    /// What is wrong with a source, once it is in this state.
    pub async fn state_of(&self, name: &str, state: SourceState) -> Option<String> {
        let waiting = async {
            loop {
                let source = self.sources.find(name).await.unwrap();
                if source.state == state {
                    return source.problem;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(AT_MOST, waiting).await.expect("it is written at last")
    }

    /// How many events there are of this action.
    pub async fn events(&self, action: &str) -> usize {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 100).await.unwrap().len()
    }
}

fn proxy(db: &Db, blobs: &Blobs, vault: &Vault) -> Proxy {
    let fetch = Arc::new(HttpFetch::new(FetchSettings::new(true)).unwrap());
    let limits = Limits { metadata: 1024 * 1024, artifact: 1024 * 1024, ..Limits::default() };
    Proxy::new(db.clone(), blobs.clone(), vault.clone(), fetch, limits, true)
}

fn watcher(db: &Db, proxy: &Proxy) -> Watcher {
    let mut watcher = Watcher::new(db.clone());
    let hears = proxy.clone();
    watcher.subscribe(Box::new(move |change| hears.on_change(change)));
    watcher
}

/// Waits for something that happens behind.
pub async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(AT_MOST, waiting).await.expect("it happens at last");
}
