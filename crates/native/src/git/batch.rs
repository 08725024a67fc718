//! Talking to `git cat-file --batch`: many objects from one process, as a stream.

use std::time::Duration;

use bytes::Bytes;
use larder_core::{Error, Kind, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::ChildStdout,
    sync::mpsc,
};

use super::{
    GitProgram,
    failure::DAMAGED,
    mirror::Mirror,
    process::{Call, Running},
};

/// The longest answer line: an id, a type and a size, or what was asked for.
const LONGEST_LINE: u64 = 512;

/// What an answer begins with.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// There is no such object here.
    Missing,
    /// An object: its type and how many bytes follow.
    Object(String, u64),
}

/// One process that answers for many objects, in the order in which they were asked for.
pub(super) struct Batch {
    running: Running,
    output: BufReader<ChildStdout>,
    idle: Duration,
    /// Takes further questions, if there may be any.
    questions: Option<mpsc::UnboundedSender<Vec<u8>>>,
}

impl Batch {
    /// Asks for `names`, one a line.
    pub(super) async fn ask(git: &GitProgram, mirror: &Mirror, names: Vec<u8>) -> Result<Self> {
        let call = Call::new(git, &["cat-file", "--buffer", "--batch"]).within(&mirror.path);
        let mut running = call.start(git).await?;
        running.feed(names);
        let output = BufReader::with_capacity(64 * 1024, running.take_stdout()?);
        Ok(Self { running, output, idle: git.settings.limits.idle, questions: None })
    }

    /// Begins without a question: whoever asks [`more`](Self::more) must take every answer before asking again.
    pub(super) async fn begin(git: &GitProgram, mirror: &Mirror) -> Result<Self> {
        let call = Call::new(git, &["cat-file", "--batch"]).within(&mirror.path);
        let mut running = call.start(git).await?;
        let questions = Some(running.feed_on());
        let output = BufReader::with_capacity(64 * 1024, running.take_stdout()?);
        Ok(Self { running, output, idle: git.settings.limits.idle, questions })
    }

    /// Asks for `names` too, one a line.
    pub(super) fn more(&self, names: Vec<u8>) {
        if let Some(questions) = &self.questions {
            // A git that has ended takes none: the answers break off, and its status says why.
            drop(questions.send(names));
        }
    }

    /// The next answer's head; its bytes must be taken or skipped before the one after it.
    async fn head(&mut self) -> Result<Head> {
        let mut line = String::new();
        let mut bounded = (&mut self.output).take(LONGEST_LINE);
        waited(self.idle, bounded.read_line(&mut line)).await?;
        let mut words = line.trim_end().rsplit(' ');
        match (words.next(), words.next()) {
            (Some("missing" | "ambiguous"), Some(_)) => Ok(Head::Missing),
            (Some(size), Some(kind)) if line.ends_with('\n') => {
                let size = size.parse().map_err(|error| damaged().caused_by(error))?;
                Ok(Head::Object(kind.to_owned(), size))
            }
            _ => Err(damaged()),
        }
    }

    /// The `size` bytes of the object.
    async fn take(&mut self, size: u64) -> Result<Bytes> {
        let length = usize::try_from(size).map_err(|error| damaged().caused_by(error))?;
        let mut bytes = vec![0; length + 1];
        waited(self.idle, self.output.read_exact(&mut bytes)).await?;
        bytes.truncate(length);
        Ok(bytes.into())
    }

    /// The next object if it is here and not larger than `limit`.
    pub(super) async fn part(&mut self, limit: u64) -> Result<Option<Bytes>> {
        match self.head().await? {
            Head::Missing => Ok(None),
            Head::Object(_, size) if size > limit => self.skip(size).await.map(|()| None),
            Head::Object(_, size) => self.take(size).await.map(Some),
        }
    }

    /// Passes over the `size` bytes of the object.
    async fn skip(&mut self, size: u64) -> Result<()> {
        let mut left = size + 1;
        while left > 0 {
            let here = waited(self.idle, self.output.fill_buf()).await?.len();
            if here == 0 {
                return Err(damaged());
            }
            let step = here.min(usize::try_from(left).unwrap_or(here));
            self.output.consume(step);
            left -= step as u64;
        }
        Ok(())
    }

    /// All was read.
    pub(super) async fn end(self) -> Result<()> {
        drop(self.questions);
        drop(self.output);
        match self.running.end(self.idle).await? {
            (true, _) => Ok(()),
            (false, said) => Err(damaged().caused_by(said)),
        }
    }
}

async fn waited<T>(limit: Duration, reading: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, reading).await {
        Ok(read) => read.map_err(|error| damaged().caused_by(error)),
        Err(_) => Err(Error::new(Kind::Timeout, "the local copy of a Git source does not answer")),
    }
}

/// What the local copy holds cannot be read.
fn damaged() -> Error {
    Error::new(Kind::Damaged, DAMAGED)
}
