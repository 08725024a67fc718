//! Puts the house together: the ports of this operating system under the crates that know what Larder is. The server
//! and every command stand in the same house.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use larder_audit::Recorder;
use larder_auth::{Authenticator, Passes};
use larder_blobs::{Blobs, store::Store};
use larder_composer::{Proxy as Upstreams, advisories::refresh::RefreshHandler};
use larder_core::Host;
use larder_db::Db;
use larder_jobs::{Handler, Runner};
use larder_native::{
    fetch::{FetchSettings, HttpFetch},
    git::{GitProgram, GitSettings},
};
use larder_oci::{Registry, retention::SweepHandler};
use larder_sources::{
    Sources,
    fetch::Fetch,
    forges::Forges,
    vault::{SecretKey, Vault},
    work::{BuildHandler, SyncHandler},
};

use crate::{
    config::Config,
    formats,
    housekeeping::{Housekeeping, Times, WALK},
};

/// Everything that a command or the server works with.
pub struct House {
    /// The configuration in force.
    pub config: Config,
    /// Clock, randomness, background work.
    pub host: Host,
    /// The database, its tables up to date.
    pub db: Db,
    /// The store below the blobs.
    pub store: Arc<dyn Store>,
    /// The blobs.
    pub blobs: Blobs,
    /// The git program.
    pub git: Arc<GitProgram>,
    /// The sources.
    pub sources: Sources,
    /// The forges that list some of them.
    pub forges: Forges,
    /// The registries that PHP packages come from.
    pub upstreams: Upstreams,
    /// Seals and opens secrets.
    pub vault: Vault,
    /// Recognises whoever comes in, once it hears of changes.
    pub authenticator: Authenticator,
    /// Records accesses.
    pub recorder: Recorder,
    /// Does jobs, once somebody runs it.
    pub runner: Runner,
}

impl House {
    /// Opens everything, and makes what is missing: the data folder, the database, the secret key.
    pub async fn open(config: Config) -> Result<Self> {
        make_folder(&config.data)?;
        let host = larder_native::host::system();
        let url = config.database_url.expose();
        let opening = || match url.strip_prefix("sqlite:") {
            Some(path) => format!("the database {path} cannot be opened"),
            // The rest of it may hold a password.
            None => "the database cannot be opened".to_owned(),
        };
        let executor = larder_native::database::connect(url).await.with_context(opening)?;
        let db = Db::open(executor, host.clone()).await.with_context(opening)?;
        let store = larder_native::store::open_store(&config.storage_url, config.s3.clone())?;
        let blobs = Blobs::new(db.clone(), Arc::clone(&store), host.clone())
            .with_lease(config.blob_lease)
            .with_grace(config.blob_grace)
            .with_abandoned(config.blob_abandoned)
            .with_session_idle(config.upload_idle);
        let vault = vault(&config, &host)?;
        let (first, older) = vault.derive("passes");
        let authenticator = Authenticator::new(db.clone(), Passes::new(first, older));
        let git = Arc::new(GitProgram::new(GitSettings {
            allow_local: config.allow_local_sources,
            limits: config.git_limits.clone(),
            ..GitSettings::below(&config.data)
        }));
        let sources = Sources::new(
            db.clone(),
            blobs.clone(),
            git.clone(),
            vault.clone(),
            formats::formats(),
            config.limits,
            config.allow_local_sources,
        );
        let outside: Arc<dyn Fetch> = Arc::new(HttpFetch::new(FetchSettings::new(config.allow_local_sources))?);
        let forges = Forges::new(sources.clone(), Arc::clone(&outside));
        let upstreams = Upstreams::new(
            db.clone(),
            blobs.clone(),
            vault.clone(),
            outside,
            config.limits,
            config.allow_local_sources,
        );
        let recorder = Recorder::new(db.clone());
        let registry = Registry::new(db.clone(), blobs.clone());
        let times = Times {
            every: config.gc_every,
            walk: WALK.min(config.blob_abandoned),
            access_retention: config.access_retention,
        };
        let handlers: [Arc<dyn Handler>; 5] = [
            Arc::new(SyncHandler(forges.clone())),
            Arc::new(BuildHandler(sources.clone())),
            Arc::new(Housekeeping::new(db.clone(), blobs.clone(), times)),
            Arc::new(SweepHandler::new(registry, config.gc_every, config.untagged)),
            Arc::new(RefreshHandler::new(db.clone(), upstreams.clone())),
        ];
        let runner = Runner::new(db.clone(), &format!("larder-{}", std::process::id()), config.workers, handlers);
        Ok(Self {
            config,
            host,
            db,
            store,
            blobs,
            git,
            sources,
            forges,
            upstreams,
            vault,
            authenticator,
            recorder,
            runner,
        })
    }
}

/// The file that every server on a data folder holds locked, so that commands know whether one runs.
const SERVING: &str = "serving";

impl House {
    /// Tells commands that a server runs here, until the file is dropped.
    pub fn announce(&self) -> Result<fs::File> {
        let file = self.serving_file()?;
        file.lock_shared().context("the data folder cannot be locked")?;
        Ok(file)
    }

    /// Whether a server runs on this data folder, and so will take a job at once.
    pub fn is_served(&self) -> Result<bool> {
        match self.serving_file()?.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error).context("the data folder cannot be locked"),
        }
    }

    fn serving_file(&self) -> Result<fs::File> {
        let path = self.config.data.join(SERVING);
        let mut options = fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        opened.with_context(|| format!("{} cannot be opened", path.display()))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the data folder {} cannot be made: give another one with --data", path.display()))
}

/// The vault with the configured keys, or with the one in the key file, which is made when it is missing.
fn vault(config: &Config, host: &Host) -> Result<Vault> {
    if let Some(keys) = &config.secret_key {
        let mut keys = keys.expose().split(',').map(SecretKey::parse);
        let first = keys.next().ok_or_else(|| anyhow!("LARDER_SECRET_KEY is empty"))?.context("LARDER_SECRET_KEY")?;
        return Ok(Vault::new(first, keys.collect::<Result<Vec<_>, _>>().context("LARDER_SECRET_KEY")?));
    }
    let path = config.data.join("secret.key");
    let mut keys = read_or_make_key(&path, host)?
        .split_whitespace()
        .map(SecretKey::parse)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("the key file {}", path.display()))?
        .into_iter();
    let first = keys.next().ok_or_else(|| {
        anyhow!(
            "the key file {} is empty: put the key back from your backup; without it no credential can be opened",
            path.display()
        )
    })?;
    Ok(Vault::new(first, keys))
}

fn read_or_make_key(path: &Path, host: &Host) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("the key file {} cannot be read", path.display())),
    }
    let text = format!("{}\n", SecretKey::generate(host).to_hex());
    // Written beside and linked, so that two programs that start at once agree on one whole key.
    let beside = path.with_extension(format!("key.{}", host.new_id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&beside, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    drop(fs::remove_file(&beside));
    written.with_context(|| format!("the key file {} cannot be written", path.display()))?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).context("the data folder cannot be synced")?;
    }
    fs::read_to_string(path).with_context(|| format!("the key file {} cannot be read", path.display()))
}
