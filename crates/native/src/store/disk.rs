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

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Read, Seek, SeekFrom, Write},
    mem,
    ops::Range,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use larder_blobs::store::{ByteStream, Checkpoint, Object, Store, Stored, Upload};
use larder_core::{Error, Kind, Result, Time, digest::hex, host::Random};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};

use super::key;
use crate::host::SystemRandom;

/// How much of the disk is left free, on a small one a sixteenth: the database, often beside, must be able to write down
/// what goes away, or nothing ever can.
const RESERVE: u64 = 64 * 1024 * 1024;

/// How much is read in one go.
const CHUNK: usize = 256 * 1024;

/// How much is written in one go: twice, because handing it to a thread costs more than reading ahead does.
const WRITE: usize = 512 * 1024;

/// Pieces below this size are copied together.
const SMALL: usize = 16 * 1024;

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
        Ok(Box::new(DiskUpload { disk: self.clone(), gathered: Gathered::default(), written: Written::Nothing }))
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
        Ok(Box::new(DiskUpload { disk: self.clone(), gathered: Gathered::default(), written: Written::Settled(file) }))
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

/// Bytes on their way into the folder. They are gathered into chunks; one is on its way to the disk while the next comes in.
struct DiskUpload {
    disk: Disk,
    gathered: Gathered,
    written: Written,
}

/// Bytes that wait to be written, mostly without a copy.
#[derive(Default)]
struct Gathered {
    pieces: Vec<Bytes>,
    /// Those too small to stand alone: each would hold the whole buffer that it came in.
    small: BytesMut,
    len: usize,
}

impl Gathered {
    fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < SMALL {
            self.small.extend_from_slice(&bytes);
            return;
        }
        self.close_small();
        self.pieces.push(bytes);
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.close_small();
        self.len = 0;
        mem::take(&mut self.pieces)
    }
}

/// How far the file is. It belongs to the thread that writes it, so that it cannot be renamed before that is done.
enum Written {
    Nothing,
    Settled(UploadFile),
    Writing(JoinHandle<Result<UploadFile>>),
    Failed,
}

/// What a checkpoint remembers.
#[derive(Serialize, Deserialize)]
struct State {
    staged: String,
    length: u64,
    boot: String,
}

impl DiskUpload {
    /// Waits for the chunk that is on its way. Whatever stops it midway leaves an upload that cannot be committed.
    async fn settle(&mut self) -> Result<Option<UploadFile>> {
        match mem::replace(&mut self.written, Written::Failed) {
            Written::Nothing => Ok(None),
            Written::Settled(file) => Ok(Some(file)),
            Written::Writing(task) => finished(task).await.map(Some),
            Written::Failed => Err(Error::new(Kind::Internal, "an upload went on after it had failed")),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let file = self.settle().await?;
        let (folder, chunk) = (self.disk.root.join("uploads"), self.gathered.take());
        self.written = Written::Writing(spawn_blocking(move || append(file, &folder, &chunk)));
        Ok(())
    }
}

#[async_trait]
impl Upload for DiskUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.gathered.push(bytes);
        if self.gathered.len >= WRITE {
            self.flush().await?;
        }
        Ok(())
    }

    fn unsent(&self) -> u64 {
        0
    }

    async fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.flush().await?;
        let Some(mut file) = self.settle().await? else {
            return Err(Error::new(Kind::Internal, "a flushed upload has no file"));
        };
        file.kept = true;
        let staged = file.location();
        let state = State { staged: staged.clone(), length: file.length, boot: self.disk.boot.to_string() };
        self.written = Written::Settled(file);
        let state = serde_json::to_string(&state).map_err(|error| Error::internal("writing a checkpoint", error))?;
        Ok(Checkpoint { state, staged: Some(staged), tail: None })
    }

    async fn commit(mut self: Box<Self>, key: &str) -> Result<String> {
        key::check(key, &["blobs/"])?;
        let file = self.settle().await?;
        let rest = self.gathered.take();
        let (location, path) = (key.to_owned(), self.disk.root.join(key));
        let folders = self.disk.folders.clone();
        self.disk
            .with(move |root| {
                let file = append(file, &root.join("uploads"), &rest)?;
                file.publish(&path, &folders).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => Error::new(
                        Kind::Unavailable,
                        "the upload took so long that it was taken away as abandoned; send it again",
                    ),
                    _ => explain(&path, error),
                })?;
                Ok(location)
            })
            .await
    }

    async fn abort(mut self: Box<Self>) {
        // The file goes with its handle; only the deletion itself should not hold up a request's thread.
        if let Ok(Some(mut file)) = self.settle().await {
            file.kept = false;
            drop(spawn_blocking(move || drop(file)).await);
        }
    }
}

fn append(file: Option<UploadFile>, folder: &Path, chunk: &[Bytes]) -> Result<UploadFile> {
    let append = || {
        let mut upload = file.map_or_else(|| UploadFile::new(folder), Ok)?;
        let length = chunk.iter().map(Bytes::len).sum();
        leave_room(&upload.file, length)?;
        write_pieces(&upload.file, chunk)?;
        upload.length += length as u64;
        Ok(upload)
    };
    append().map_err(|error| explain(folder, error))
}

/// Writes all pieces, with as few calls as the system allows.
fn write_pieces(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fails if too little would be left on the disk after `wanted` more bytes.
fn leave_room(file: &File, wanted: usize) -> io::Result<()> {
    match rustix::fs::fstatvfs(file) {
        // A file system that knows no size is never full.
        Ok(disk) if wanted > 0 && disk.f_blocks > 0 => {
            let reserve = RESERVE.min(disk.f_blocks.saturating_mul(disk.f_frsize) / 16);
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < reserve + wanted as u64 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// A file below `uploads/`, locked for whoever writes to it, and deleted when dropped unless it is to be kept.
struct UploadFile {
    file: File,
    path: PathBuf,
    length: u64,
    kept: bool,
}

impl UploadFile {
    /// An empty one of mode 0600.
    fn new(folder: &Path) -> io::Result<Self> {
        let mut random = [0; 16];
        SystemRandom::default().fill(&mut random);
        let path = folder.join(format!("upload-{}", hex(&random)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let upload = Self { file, path, length: 0, kept: false };
        is_ours(&upload.file)?;
        Ok(upload)
    }

    /// The first `length` bytes of the file at `path`: in that file, or in a copy while somebody else writes to it.
    fn resume(path: &Path, length: u64, folder: &Path) -> io::Result<Self> {
        if !fs::symlink_metadata(path)?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if is_ours(&file)? {
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
            return Ok(Self { file, path: path.to_owned(), length, kept: true });
        }
        let mut copy = Self::new(folder)?;
        copy.length = io::copy(&mut file.take(length), &mut copy.file)?;
        if copy.length < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(copy)
    }

    /// Makes it durable under its final name.
    fn publish(mut self, path: &Path, folders: &Mutex<()>) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        self.file.sync_data()?;
        let alone = folders.lock().unwrap_or_else(PoisonError::into_inner);
        make_folder(folder)?;
        drop(alone);
        fs::rename(&self.path, path)?;
        self.kept = true;
        File::open(folder)?.sync_all()
    }

    fn location(&self) -> String {
        format!("uploads/{}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

impl Drop for UploadFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "an upload that was taken back stays for now");
        }
    }
}

/// Locks a file for as long as it is open; `false` if somebody else writes to it. A file system that knows no locks is
/// on one machine with one server, where the claim on the upload's row is enough.
fn is_ours(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
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

/// Says what an operator can do about a failure.
fn explain(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let place = path.display();
    let (kind, message) = match error.kind() {
        Io::NotFound => (Kind::NotFound, format!("{place} is not there")),
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (
            Kind::Full,
            format!("no room left for {place}: free some space on that disk (`larder gc` may help), then try again"),
        ),
        Io::PermissionDenied => (
            Kind::Unavailable,
            format!("Larder may not write {place}: give the folder to the user that Larder runs as, with mode 0700"),
        ),
        Io::ReadOnlyFilesystem => {
            (Kind::Unavailable, format!("{place} is on a file system that can only be read: mount it for writing"))
        }
        Io::NotADirectory | Io::AlreadyExists => {
            (Kind::Unavailable, format!("{place} cannot be made: a file of that name is in the way of a folder"))
        }
        _ => (Kind::Unavailable, format!("the disk failed at {place}: {error}")),
    };
    Error::new(kind, message).caused_by(error)
}
