//! Bytes in a folder: `blobs/` holds what was committed, `uploads/` what is being written.
//!
//! An upload goes to a file of its own in `uploads/`, on the same file system. Its commit is fdatasync, rename, fsync of the
//! folder (and of the parent of each folder made on the way): after it returns, a loss of power loses nothing, and before it,
//! nobody sees anything.
//!
//! An upload that is to go on in another request keeps its file. Whoever writes to a file holds a lock on it; who resumes an
//! upload that somebody still writes to (a request that hangs) gets a copy, so that no two ever write into one file. Checkpoints
//! are not synced, since the commit does that: they hold until the machine starts again, and are not believed after.
//!
//! Plain `std::fs` on the blocking threads, not `object_store`'s `LocalFileSystem`: that one must know an object's name when
//! writing begins (ours is the digest, known at the end), stages beside the destination, leaves the modes of files and
//! folders to the umask, and hops to a blocking thread once more for each. Files here are 0600, folders 0700.

mod upload;

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use larder_blobs::store::{ByteStream, Object, Store, Stored, Upload};
use larder_core::{Error, Kind, Result, Time, digest::hex, host::Random};
use tokio::task::{JoinHandle, spawn_blocking};

use self::upload::{DiskUpload, State, UploadFile};
use super::key;
use crate::host::SystemRandom;

/// How much is read in one go.
const CHUNK: usize = 256 * 1024;

/// A folder as a store.
#[derive(Clone, Debug)]
pub struct Disk {
    root: Arc<Path>,
    /// Held while a folder is looked at or made: whoever finds it there may rely on its being durable.
    folders: Arc<Mutex<()>>,
    /// Which start of the machine this is.
    boot: Arc<str>,
}

impl Disk {
    /// Opens the folder `root`, and makes it if it is not there.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for folder in [root.clone(), root.join("blobs"), root.join("uploads")] {
            make_folder(&folder).map_err(|error| explain(&folder, error))?;
        }
        Ok(Self { root: root.into(), folders: Arc::default(), boot: boot().into() })
    }

    /// The file that a location names.
    fn file(&self, location: &str) -> Result<PathBuf> {
        key::check(location, &["blobs/", "uploads/"])?;
        Ok(self.root.join(location))
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Path) -> Result<T> + Send + 'static) -> Result<T> {
        let root = self.root.clone();
        finished(spawn_blocking(move || work(&root))).await
    }
}

#[async_trait]
impl Store for Disk {
    async fn begin(&self) -> Result<Box<dyn Upload>> {
        Ok(Box::new(DiskUpload::new(self.clone(), None)))
    }

    async fn resume(&self, state: &str) -> Result<Box<dyn Upload>> {
        let gone = || Error::not_found("the upload is not there any more; begin again");
        let state: State = serde_json::from_str(state).map_err(|error| gone().caused_by(error))?;
        if state.boot != *self.boot {
            return Err(gone().caused_by("the machine was started again since, and the bytes were not synced"));
        }
        let path = self.file(&state.staged)?;
        let file = self
            .with(move |root| {
                UploadFile::resume(&path, state.length, &root.join("uploads")).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => gone().caused_by(error),
                    _ => explain(&path, error),
                })
            })
            .await?;
        Ok(Box::new(DiskUpload::new(self.clone(), Some(file))))
    }

    async fn get(&self, location: &str, range: Range<u64>) -> Result<Object> {
        let path = self.file(location)?;
        let (size, first, reading) = self
            .with(move |_| {
                let (mut file, size) = open_file(&path).map_err(|error| explain(&path, error))?;
                if range.start > 0 {
                    file.seek(SeekFrom::Start(range.start)).map_err(|error| explain(&path, error))?;
                }
                let reading = Reading { file, path, left: range.end.saturating_sub(range.start) };
                let (first, reading) = reading.chunk()?;
                Ok((size, first, reading))
            })
            .await?;
        Ok(Object { size, stream: read_ahead(first, reading) })
    }

    async fn size(&self, location: &str) -> Result<Option<u64>> {
        let path = self.file(location)?;
        self.with(move |_| match fs::symlink_metadata(&path) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(explain(&path, error)),
        })
        .await
    }

    async fn delete(&self, location: &str) -> Result<()> {
        let path = self.file(location)?;
        self.with(move |_| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(explain(&path, error)),
            _ => Ok(()),
        })
        .await
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        let after = after.unwrap_or_default().to_owned();
        self.with(move |root| {
            let mut listed = Vec::new();
            walk(root, "blobs/", &after, limit, &mut listed)?;
            Ok(listed)
        })
        .await
    }

    async fn abandoned(&self, before: Time, after: Option<&str>, limit: usize) -> Result<Vec<Stored>> {
        let after = after.unwrap_or_default().to_owned();
        self.with(move |root| {
            let mut listed = Vec::new();
            for (name, _) in entries(&root.join("uploads"))? {
                let location = format!("uploads/{name}");
                let found = (location > after && key::is_sound(&location))
                    .then(|| describe(root, location))
                    .transpose()?
                    .flatten();
                listed.extend(found.filter(|upload| upload.modified < before));
                if listed.len() >= limit {
                    break;
                }
            }
            Ok(listed)
        })
        .await
    }

    async fn check(&self) -> Result<()> {
        const PROOF: &[u8] = b"written, read back, and gone again";
        self.with(|root| {
            let folder = root.join("uploads");
            let proof = || -> io::Result<bool> {
                let mut proof = UploadFile::new(&folder)?;
                proof.file.write_all(PROOF)?;
                proof.file.sync_data()?;
                Ok(fs::read(&proof.path)? == PROOF)
            };
            match proof() {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::new(
                    Kind::Damaged,
                    format!("{} gives back other bytes than were written: check the disk", folder.display()),
                )),
                Err(error) => Err(explain(&folder, error)),
            }
        })
        .await
    }
}

/// Another text for each start of the machine; where the kernel does not tell, for each start of this program.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
        |_| {
            let mut random = [0; 16];
            SystemRandom::default().fill(&mut random);
            hex(&random)
        },
        |id| id.trim().to_owned(),
    )
}

/// Makes a folder and those above it, each one durable. Fine if it is there.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        // Another process made it meanwhile; it may not have come to the fsync yet.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

/// Opens a regular file for reading and tells its size. A link is nothing that Larder made: it is not there.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// A file that is being read.
struct Reading {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Reading {
    /// The next chunk, and what is left to read after it: nothing, at the end of the range or of the file.
    fn chunk(mut self) -> Result<(Bytes, Option<Self>)> {
        let wanted = usize::try_from(self.left).map_or(CHUNK, |left| left.min(CHUNK));
        let mut chunk = Vec::with_capacity(wanted);
        let read =
            (&mut self.file).take(wanted as u64).read_to_end(&mut chunk).map_err(|error| explain(&self.path, error))?;
        self.left -= read as u64;
        let more = read == wanted && self.left > 0;
        Ok((chunk.into(), more.then_some(self)))
    }
}

/// Streams the rest of a file; the next chunk is read while the one before it is sent.
fn read_ahead(first: Bytes, reading: Option<Reading>) -> ByteStream {
    type Ahead = Option<JoinHandle<Result<(Bytes, Option<Reading>)>>>;
    let next = |reading: Option<Reading>| -> Ahead { reading.map(|reading| spawn_blocking(|| reading.chunk())) };
    let rest = stream::unfold(next(reading), move |ahead| async move {
        match finished(ahead?).await {
            Ok((chunk, reading)) => Some((Ok(chunk), next(reading))),
            Err(error) => Some((Err(error), None)),
        }
    });
    stream::iter((!first.is_empty()).then_some(Ok(first))).chain(rest).boxed()
}

/// Adds the files below `folder` (a location that ends with a slash), in the order of their locations.
fn walk(root: &Path, folder: &str, after: &str, limit: usize, listed: &mut Vec<Stored>) -> Result<()> {
    for (name, is_folder) in entries(&root.join(folder))? {
        if listed.len() >= limit {
            break;
        }
        let location = format!("{folder}{name}");
        if !key::is_sound(location.trim_end_matches('/')) {
            continue;
        }
        if is_folder {
            if location.as_str() > after || after.starts_with(&location) {
                walk(root, &location, after, limit, listed)?;
            }
        } else if location.as_str() > after {
            listed.extend(describe(root, location)?);
        }
    }
    Ok(())
}

/// The names in a folder, sorted as their locations sort; those of folders end with a slash, and links are left out.
fn entries(folder: &Path) -> Result<Vec<(String, bool)>> {
    let read = || -> io::Result<Vec<(String, bool)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if let (Ok(name), true) = (entry.file_name().into_string(), kind.is_dir() || kind.is_file()) {
                names.push((if kind.is_dir() { name + "/" } else { name }, kind.is_dir()));
            }
        }
        names.sort_unstable();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| explain(folder, error)),
    }
}

/// A file as the listing shows it; `None` if it went away meanwhile.
fn describe(root: &Path, location: String) -> Result<Option<Stored>> {
    let path = root.join(&location);
    let found = fs::symlink_metadata(&path).and_then(|found| Ok((found.len(), found.modified()?)));
    match found {
        Ok((size, modified)) => Ok(Some(Stored { location, size, modified: time(modified) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain(&path, error)),
    }
}

fn time(at: SystemTime) -> Time {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Waits for work on a blocking thread.
async fn finished<T>(task: JoinHandle<Result<T>>) -> Result<T> {
    task.await.unwrap_or_else(|error| Err(Error::internal("reading or writing stored bytes", error)))
}

/// Says what an operator can do about a failure. But for a full disk, which clients are told of in other words, the place is for
/// the log only.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn explain(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let place = path.display();
    let (kind, message) = match error.kind() {
        Io::NotFound => (Kind::NotFound, "a file of the store is not there".to_owned()),
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (
            Kind::Full,
            format!("no room left for {place}: free some space on that disk (`larder gc` may help), then try again"),
        ),
        Io::PermissionDenied => (
            Kind::Unavailable,
            "Larder may not write its store: give the folder to the user that Larder runs as, with mode 0700"
                .to_owned(),
        ),
        Io::ReadOnlyFilesystem => {
            (Kind::Unavailable, "the store is on a file system that can only be read: mount it for writing".to_owned())
        }
        Io::NotADirectory | Io::AlreadyExists => {
            (Kind::Unavailable, "a folder of the store cannot be made: a file of that name is in the way".to_owned())
        }
        _ => (Kind::Unavailable, "the disk of the store failed".to_owned()),
    };
    Error::new(kind, message).caused_by(format!("{place}: {error}"))
}
