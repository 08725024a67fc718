//! Local copies on disk: where they are, who may write to them, and what a process that was killed left behind.
//! What is in them comes by `fetch`.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use larder_core::{Error, Kind, Result};

use super::GitProgram;

/// How long a writer looks away before it tries again to lock a copy that another process writes to.
const AGAIN: Duration = Duration::from_millis(50);

/// Who writes to which copy in this process.
pub(super) type Writers = Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>;

/// A local copy, there or not.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    /// The bare repository.
    pub(super) path: PathBuf,
}

/// The right to write to one copy; no other task and no other process has it.
pub(super) struct Writing {
    /// The copy.
    pub(super) mirror: Mirror,
    _task: tokio::sync::OwnedMutexGuard<()>,
    _process: std::fs::File,
}

impl Mirror {
    /// The copy with this name: letters, digits and dashes.
    pub(super) fn of(git: &GitProgram, name: &str) -> Result<Self> {
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 100 || !name.chars().all(fine) {
            return Err(Error::internal("naming a local copy", format!("`{name}` is not a name for a folder")));
        }
        Ok(Self { path: git.settings.mirrors.join(format!("{name}.git")) })
    }

    /// A repository without any ref over the same objects, so that what is made from them depends on nothing else.
    pub(super) fn plain(&self) -> PathBuf {
        self.path.join("plain")
    }

    /// Where the objects are.
    pub(super) fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Waits for the right to write, at most `limit`.
    pub(super) async fn write(&self, git: &GitProgram, limit: Duration) -> Result<Writing> {
        let late = || {
            Error::new(Kind::Timeout, "another process is still busy with this source's local copy: try again later")
        };
        let waiting = async {
            let task = self.own_lock(git).lock_owned().await;
            let process = self.lock_file(git).await?;
            Ok(Writing { mirror: self.clone(), _task: task, _process: process })
        };
        tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| Err(late()))
    }

    fn own_lock(&self, git: &GitProgram) -> Arc<tokio::sync::Mutex<()>> {
        let mut writers = git.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = writers.get(&self.path).and_then(Weak::upgrade) {
            return lock;
        }
        writers.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        writers.insert(self.path.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Locks `NAME.git.lock`. The system unlocks it when its holder ends, however it ends.
    async fn lock_file(&self, git: &GitProgram) -> Result<std::fs::File> {
        git.make_home().await?;
        let path = self.path.with_extension("git.lock");
        loop {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|error| disk("opening the lock of a local copy", error))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(file),
                // It was removed with its copy while this process waited: the next one is another file.
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(AGAIN).await,
                Err(std::fs::TryLockError::Error(error)) => return Err(disk("locking a local copy", error)),
            }
        }
    }

    /// The names of the light copies on this machine, whole or not. A full one is more than a cache, and is not told.
    pub(super) async fn light(git: &GitProgram) -> Result<Vec<String>> {
        git.make_home().await?;
        let failed = |error| disk("looking for local copies", error);
        let mut files = tokio::fs::read_dir(&git.settings.mirrors).await.map_err(failed)?;
        let mut names = Vec::new();
        while let Some(file) = files.next_entry().await.map_err(failed)? {
            let file = file.file_name();
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".git")) else { continue };
            if Self::of(git, name).is_ok_and(|copy| !copy.is_full()) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes the copy, what was put aside of it, and its lock.
    pub(super) async fn forget(&self, git: &GitProgram) -> Result<()> {
        let writing = self.write(git, git.settings.limits.fetch).await?;
        writing.remove().await?;
        writing.remove_aside().await?;
        remove_file(&self.path.with_extension("git.lock"))
    }

    /// Removes the copy if `error` says that it is damaged and if it is only a cache; whether it did.
    pub(super) async fn drop_damaged(&self, git: &GitProgram, error: &Error) -> Result<bool> {
        if error.kind() != Kind::Damaged || self.is_full() {
            return Ok(false);
        }
        tracing::warn!(copy = %self.path.display(), error = error.chain(), "a local copy is damaged: it is made again");
        self.write(git, git.settings.limits.fetch).await?.remove().await?;
        Ok(true)
    }

    /// How many bytes its packs take, and how many packs there are.
    pub(super) fn size(&self) -> (u64, usize) {
        let Ok(files) = std::fs::read_dir(self.objects().join("pack")) else { return (0, 0) };
        files.flatten().fold((0, 0), |(bytes, packs), file| {
            let is_pack = file.path().extension().is_some_and(|extension| extension == "pack");
            (bytes + file.metadata().map_or(0, |data| data.len()), packs + usize::from(is_pack))
        })
    }

    /// Whether it holds, or is to hold, everything for good. A copy that once was full stays so.
    pub(super) fn is_full(&self) -> bool {
        self.path.join("full").is_file()
    }

    /// Whether this is a repository whose ids have the length of `example`.
    pub(super) fn fits(&self, example: &str) -> bool {
        std::fs::read_to_string(self.path.join("config")).is_ok_and(|config| config == config_for(example))
            && self.plain().join("config").is_file()
    }
}

impl Writing {
    /// Makes the copy ready for ids like `example`: makes it if it is missing or of the other kind, and clears away what
    /// a killed process left. Only the holder of the lock may, because nothing else can own those files then.
    pub(super) async fn prepare(&self, example: &str) -> Result<()> {
        let path = &self.mirror.path;
        if !self.mirror.fits(example) {
            self.remove().await?;
            for folder in ["objects/pack", "objects/info", "refs/heads", "plain/objects", "plain/refs"] {
                tokio::fs::create_dir_all(path.join(folder))
                    .await
                    .map_err(|error| disk("making a local copy", error))?;
            }
            for folder in [self.mirror.plain(), path.clone()] {
                replace(&folder.join("HEAD"), "ref: refs/heads/none\n").await?;
                replace(&folder.join("config"), &config_for(example)).await?;
            }
        }
        let copy = path.clone();
        tokio::task::spawn_blocking(move || clear_leftovers(&copy))
            .await
            .map_err(|error| Error::internal("clearing a local copy", error))
    }

    /// Whether git was stopped because the pack that came grew up to `limit`; removes what had come.
    pub(super) fn met_limit(&self, limit: u64) -> bool {
        let files = std::fs::read_dir(self.mirror.objects().join("pack")).into_iter().flatten().flatten();
        let unfinished = files.filter(|file| file.file_name().to_string_lossy().starts_with("tmp_"));
        // The limit is kept in blocks of 512 bytes, and git writes in larger pieces.
        unfinished.fold(false, |met, file| {
            let full = file.metadata().is_ok_and(|data| data.len() + 512 >= limit);
            if let Err(error) = std::fs::remove_file(file.path()) {
                tracing::warn!(%error, "cannot remove an unfinished pack");
            }
            met || full
        })
    }

    /// Removes the copy; its lock stays.
    pub(super) async fn remove(&self) -> Result<()> {
        match tokio::fs::remove_dir_all(&self.mirror.path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("removing a local copy", error)),
            _ => Ok(()),
        }
    }

    /// Puts a damaged copy aside, in place of an earlier one, so that what only it has is not lost.
    pub(super) async fn set_aside(&self) -> Result<()> {
        self.remove_aside().await?;
        let aside = self.mirror.path.with_extension("damaged");
        tokio::fs::rename(&self.mirror.path, &aside).await.map_err(|error| disk("putting a damaged copy aside", error))
    }

    /// Removes what was put aside.
    async fn remove_aside(&self) -> Result<()> {
        match tokio::fs::remove_dir_all(self.mirror.path.with_extension("damaged")).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("removing a damaged copy", error)),
            _ => Ok(()),
        }
    }
}

/// The configuration of a copy whose ids look like `example`: SHA-1 (40 digits) or SHA-256 (64).
fn config_for(example: &str) -> String {
    if example.len() == 64 {
        "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectFormat = sha256\n".to_owned()
    } else {
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n".to_owned()
    }
}

/// Removes locks, unfinished objects and the list of shallow commits (see `fetch`) of a copy that nobody writes to.
fn clear_leftovers(copy: &Path) {
    let objects = copy.join("objects");
    let mut folders = vec![copy.to_owned()];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (file.path(), file.file_name());
            let name = name.to_string_lossy();
            let leftover = name.ends_with(".lock")
                || (name.starts_with("tmp_") && path.starts_with(&objects))
                || (name == "shallow" && folder == copy);
            match file.file_type() {
                Ok(kind) if kind.is_dir() && name != "plain" => folders.push(path),
                Ok(kind) if kind.is_file() && leftover => {
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!(path = %path.display(), %error, "cannot remove what a killed git left");
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether the open `file` is still the one at `path`.
fn is_at(file: &std::fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(open), Ok(there)) if same(&open, &there))
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("removing a local copy", error)),
        _ => Ok(()),
    }
}

/// Writes a small file whole or not at all; leaves it alone if it is as it should be.
pub(super) async fn replace(path: &Path, text: &str) -> Result<()> {
    if tokio::fs::read_to_string(path).await.is_ok_and(|there| there == text) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path).to_owned();
    let (path, text) = (path.to_owned(), text.to_owned());
    let written = tokio::task::spawn_blocking(move || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(path).map_err(|error| error.error)
    });
    match written.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(disk("writing a file of a local copy", error)),
        Err(error) => Err(Error::internal("writing a file of a local copy", error)),
    }
}

/// An error of the local disk.
pub(super) fn disk(doing: &str, error: io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return Error::new(
            Kind::Full,
            "the disk with the local copies of Git sources is full: make room and sync again",
        )
        .caused_by(error);
    }
    Error::internal(doing, error)
}
