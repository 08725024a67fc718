//! Bytes on their way into a folder, and the files that they wait in.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Read, Seek, SeekFrom, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use larder_blobs::store::{Checkpoint, Upload};
use larder_core::{Error, Kind, Result, digest::hex, host::Random};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Disk, explain, finished, make_folder};
use crate::{host::SystemRandom, store::key};

/// How much of the disk is left free, on a small one a sixteenth: the database, often beside, must be able to write down
/// what goes away, or nothing ever can.
const RESERVE: u64 = 64 * 1024 * 1024;

/// How much is written in one go: twice, because handing it to a thread costs more than reading ahead does.
const WRITE: usize = 512 * 1024;

/// Pieces below this size are copied together.
const SMALL: usize = 16 * 1024;

/// Bytes on their way into the folder. They are gathered into chunks; one is on its way to the disk while the next comes in.
pub(super) struct DiskUpload {
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
pub(super) struct State {
    pub(super) staged: String,
    pub(super) length: u64,
    pub(super) boot: String,
}

impl DiskUpload {
    /// A new one, or one that goes on in a file.
    pub(super) fn new(disk: Disk, file: Option<UploadFile>) -> Self {
        let written = file.map_or(Written::Nothing, Written::Settled);
        Self { disk, gathered: Gathered::default(), written }
    }

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
pub(super) struct UploadFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    length: u64,
    kept: bool,
}

impl UploadFile {
    /// An empty one of mode 0600.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let mut random = [0; 16];
        SystemRandom::default().fill(&mut random);
        let path = folder.join(format!("upload-{}", hex(&random)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let upload = Self { file, path, length: 0, kept: false };
        is_ours(&upload.file)?;
        Ok(upload)
    }

    /// The first `length` bytes of the file at `path`: in that file, or in a copy while somebody else writes to it.
    pub(super) fn resume(path: &Path, length: u64, folder: &Path) -> io::Result<Self> {
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
