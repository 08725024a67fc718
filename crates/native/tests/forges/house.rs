//! A house with forges: a database, a Git program, an HTTP client, and a host with an API beside its repositories.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use async_trait::async_trait;
use larder_blobs::Blobs;
use larder_core::{
    Result, Time,
    format::{Format, FromTree, Release, Skipped},
    tree::{ByteSink, Snapshot, TreeStream},
};
use larder_db::{
    Db,
    events::{self, Actor, Recorded, Wanted},
    forges::{self as rows, RepositoryState},
    jobs, packages,
    sources::{self, Source},
};
use larder_jobs::{Handler, Runner, State, queue};
use larder_native::{
    fetch::{FetchSettings, HttpFetch},
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    credentials::{self, NewCredential},
    forges::{Discovery, ForgeKind, Forges, NewForge},
    manage::NewGitSource,
    settings::GitSettings as Settings,
    sync::SyncRun,
    vault::{SecretKey, Vault},
    work::{SYNC, SyncHandler},
};
use larder_testkit::{FakeClock, Forge, Scratch, forge::File};

use crate::api::{Repo, Teller, place};

/// What makes a folder a package of the format of these tests.
pub const MANIFEST: &str = "thing.json";

const HOUR: Duration = Duration::from_secs(3_600);

/// A format whose packages are named by the text of their manifest.
struct Things;

impl Format for Things {
    fn id(&self) -> &'static str {
        "things"
    }

    fn title(&self) -> &'static str {
        "Things"
    }

    fn artifact(&self) -> &'static str {
        "thing"
    }

    fn trees(&self) -> Option<&dyn FromTree> {
        Some(self)
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        a.cmp(b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    fn install_snippet(&self, _: &str, name: &str) -> String {
        name.to_owned()
    }
}

#[async_trait]
impl FromTree for Things {
    fn manifests(&self) -> &'static [&'static str] {
        &[MANIFEST]
    }

    fn take_in(&self, snapshot: &Snapshot<'_>) -> std::result::Result<Release, Skipped> {
        Ok(Release {
            package: String::from_utf8_lossy(&snapshot.manifests[0].1).into_owned(),
            version: snapshot.name.to_owned(),
            display: snapshot.name.to_owned(),
            stable: true,
            pointer: Some(snapshot.name.to_owned()),
            metadata: "{}".to_owned(),
            summary: "{}".to_owned(),
            describes: true,
            warnings: Vec::new(),
        })
    }

    async fn pack(&self, _: Time, _: TreeStream<'_>, _: &mut dyn ByteSink) -> Result<()> {
        Ok(())
    }
}

pub struct House {
    pub db: Db,
    pub clock: FakeClock,
    pub sources: Sources,
    pub forges: Forges,
    pub vault: Vault,
    pub actor: Actor,
    /// The host.
    pub git: Forge,
    pub teller: Teller,
    kind: ForgeKind,
    _folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    /// One on every database.
    pub async fn each(kind: ForgeKind) -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            let (host, clock) = larder_testkit::host::host();
            let folder = tempfile::tempdir().unwrap();
            let db = scratch.db(&host).await;
            let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host.clone());
            let settings = GitSettings { allow_local: true, ..GitSettings::below(folder.path()) };
            let program = Arc::new(GitProgram::new(settings));
            let vault = Vault::new(SecretKey::new([7; 32]), []);
            let formats: [Arc<dyn Format>; 1] = [Arc::new(Things)];
            let sources =
                Sources::new(db.clone(), blobs, program, vault.clone(), formats.into(), Limits::default(), true);
            let fetch = Arc::new(HttpFetch::new(FetchSettings::new(true)).unwrap());
            let forges = Forges::new(sources.clone(), fetch);
            let git = Forge::start().await;
            let teller = Teller::new(kind, git.base());
            let api = teller.api();
            git.rule(|rules| rules.api = Some(api));
            let actor = Actor::command_line();
            houses.push(Self {
                db,
                clock,
                sources,
                forges,
                vault,
                actor,
                git,
                teller,
                kind,
                _folder: folder,
                _scratch: scratch,
            });
        }
        houses
    }

    /// Gives the host these repositories; each holds what the API tells of it.
    pub fn has(&self, repos: Vec<Repo>) {
        for repo in repos.iter().filter(|repo| !repo.empty) {
            let repository = self.git.repository(&repo.path);
            let files: Vec<File> = repo.files.iter().map(|name| Self::file(name, &repo.path)).collect();
            repository.commit("main", "Begin", &files);
        }
        self.teller.world().repos = repos;
    }

    fn file(name: &str, content: &str) -> File {
        if name.ends_with('/') { File::new(format!("{name}file"), "") } else { File::new(name, content) }
    }

    pub fn rename(&self, old: &str, new: &str) {
        let path = |name: &str| self.git.root().join(format!("{name}.git"));
        std::fs::rename(path(old), path(new)).unwrap();
    }

    pub async fn add(&self, wanted: &str) -> Source {
        self.add_with(wanted, None).await.unwrap()
    }

    pub async fn add_with(&self, wanted: &str, credential: Option<&str>) -> Result<Source> {
        let api = format!("{}{}", self.git.base(), place(self.kind));
        let new = NewForge {
            kind: self.kind,
            wanted,
            api: Some(&api),
            name: None,
            credential,
            every: HOUR,
            repositories_every: 2 * HOUR,
            repositories: Settings::default(),
        };
        self.forges.add(&self.actor, new).await
    }

    pub async fn add_git(&self, name: &str, url: &str) -> Source {
        let settings = Settings::default();
        let new = NewGitSource { url, name: Some(name), credential: None, every: HOUR, settings };
        self.sources.add_git(&self.actor, new).await.unwrap()
    }

    pub async fn credential(&self, name: &str, kind: &str) {
        let new = NewCredential { name, kind, username: None, host: None };
        credentials::add(&self.db, &self.vault, &self.actor, new, "sesame").await.unwrap();
    }

    /// One discovery, by the row as it is now.
    pub async fn discover(&self, forge: &Source) -> Result<Discovery> {
        let forge = self.source(&forge.name).await;
        let run = SyncRun { actor: &self.actor, guards: Vec::new(), progress: &|_| {} };
        self.forges.discover(&forge, &run).await
    }

    /// The job that syncs a source, done as a server does it; with what it says at its end.
    pub async fn run(&self, source: &Source) -> jobs::Job {
        let handler: Arc<dyn Handler> = Arc::new(SyncHandler(self.forges.clone()));
        let runner = Runner::new(self.db.clone(), "test", 1, [handler]);
        let id = queue::enqueue(&self.db, SYNC, &source.id.to_string(), self.clock_now()).await.unwrap();
        assert!(runner.run_one(id).await.unwrap());
        queue::get(&self.db, id).await.unwrap()
    }

    /// The same for a Git repository, which must go well.
    pub async fn sync(&self, source: &Source) {
        let job = self.run(source).await;
        assert_eq!((job.state, job.problem), (State::Done, None));
    }

    /// When a source is looked at next.
    pub async fn next_look(&self, source: &Source) -> Option<Time> {
        let jobs = jobs::of_subject(&self.db, SYNC, &source.id.to_string(), 10).await.unwrap();
        jobs.iter().find(|job| job.state == State::Waiting).map(|job| job.run_at)
    }

    pub async fn is_due(&self, source: &Source) -> bool {
        self.next_look(source).await.is_some_and(|at| at <= self.clock_now())
    }

    pub fn clock_now(&self) -> Time {
        self.db.host().now()
    }

    pub async fn source(&self, name: &str) -> Source {
        sources::find(&self.db, name).await.unwrap().unwrap()
    }

    pub async fn children(&self, forge: &Source) -> usize {
        self.forges.children(forge).await.unwrap().len()
    }

    pub async fn packages(&self, source: &Source) -> Vec<String> {
        let packages = packages::of_source(&self.db, source.id).await.unwrap();
        packages.into_iter().map(|package| package.name).collect()
    }

    pub async fn report(&self, forge: &Source) -> serde_json::Value {
        serde_json::from_str(&self.source(&forge.name).await.report.unwrap()).unwrap()
    }

    /// What became of a repository, by its path.
    pub async fn state(&self, path: &str) -> Option<RepositoryState> {
        let mut found = None;
        for source in sources::list(&self.db).await.unwrap() {
            let rows = rows::of_source(&self.db, source.id).await.unwrap();
            found = rows.into_iter().find(|row| row.name == path).map(|row| row.state).or(found);
        }
        found
    }

    pub async fn events(&self, action: &str) -> Vec<Recorded> {
        let wanted = Wanted { action: Some(action.to_owned()), ..Wanted::default() };
        events::list(&self.db, &wanted, None, 1_000).await.unwrap()
    }
}
