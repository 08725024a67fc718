//! Reading a few files of many commits: one process for the commits and their folders ([`super::trees`]), one look for the
//! contents that are there, at most one request for those that are not, one process for the contents, which then stream by.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use larder_core::{Error, Kind, Result};
use larder_sources::git::{CommitFiles, FileContent, Remote, Wanted};

use super::{
    GitProgram,
    batch::Batch,
    failure::{DAMAGED, Failure, Reason},
    fetch::{self, Want, absent},
    list::is_id,
    mirror::Mirror,
    process::{Call, Outcome},
    trees::{Entries, Entry, Root, Trees},
};

/// How many bytes one request for the contents of manifests may bring.
const FETCH_BYTES: u64 = 512 << 20;

/// How many bytes of contents are kept, because the next commits are likely to have them too.
const RECENT: u64 = 16 << 20;

/// See [`larder_sources::git::Git::read`].
pub(super) async fn read<'a>(
    git: &'a GitProgram,
    name: &str,
    remote: &'a Remote,
    commits: Vec<String>,
    wanted: Wanted<'a>,
) -> Result<BoxStream<'a, Result<CommitFiles>>> {
    git.version().await?;
    let mirror = Mirror::of(git, name)?;
    let prepared = match prepare(git, &mirror, remote, &commits, &wanted).await {
        Err(error) if mirror.drop_damaged(git, &error).await? => prepare(git, &mirror, remote, &commits, &wanted).await,
        other => other,
    };
    let (trees, sizes) = prepared?;
    stream(git, &mirror, trees, sizes, wanted).await
}

/// Finds out what the commits hold, and sees to it that the contents are here as far as they can be.
async fn prepare(
    git: &GitProgram,
    mirror: &Mirror,
    remote: &Remote,
    commits: &[String],
    wanted: &Wanted<'_>,
) -> Result<(Trees, HashMap<String, u64>)> {
    let known: Vec<String> = commits.iter().filter(|id| is_id(id)).cloned().collect();
    if let Some(example) = known.first() {
        let here = mirror.fits(example);
        let missing = if here { absent(git, mirror, &known).await? } else { known.clone() };
        fetch_commits(git, mirror, remote, missing).await?;
    }
    let trees = Trees::read(git, mirror, commits, wanted).await?;
    let mut seen = HashSet::new();
    let files: Vec<String> = trees.files().filter(|id| seen.insert(id.as_str())).cloned().collect();
    let mut found = sizes(git, mirror, &files).await?;
    let missing: Vec<String> = files.iter().filter(|id| !found.contains_key(*id)).cloned().collect();
    if !missing.is_empty() {
        fetch_blobs(git, mirror, remote, missing.clone(), commits, FETCH_BYTES).await?;
        found.extend(sizes(git, mirror, &missing).await?);
    }
    drop(seen);
    Ok((trees, found))
}

/// Brings commits that the local copy lacks.
pub(super) async fn fetch_commits(git: &GitProgram, mirror: &Mirror, remote: &Remote, ids: Vec<String>) -> Result<()> {
    let Some(example) = ids.first() else { return Ok(()) };
    let writing = mirror.write(git, git.settings.limits.fetch).await?;
    writing.prepare(example).await?;
    let ids = absent(git, mirror, &ids).await?;
    Ok(fetch::objects(git, &writing, remote, ids, Want::Commits, u64::MAX).await?)
}

/// Brings contents that the local copy lacks. Where the host gives only what it lists, `commits` come again, whole.
pub(super) async fn fetch_blobs(
    git: &GitProgram,
    mirror: &Mirror,
    remote: &Remote,
    ids: Vec<String>,
    commits: &[String],
    bytes: u64,
) -> Result<()> {
    let Some(example) = ids.first() else { return Ok(()) };
    let writing = mirror.write(git, git.settings.limits.fetch).await?;
    writing.prepare(example).await?;
    let ids = absent(git, mirror, &ids).await?;
    match fetch::objects(git, &writing, remote, ids, Want::Blobs, bytes).await {
        Err(Failure { reason: Reason::ByNameOnly, .. }) => {
            let commits = commits.iter().filter(|id| is_id(id)).cloned().collect();
            Ok(fetch::objects(git, &writing, remote, commits, Want::Everything, u64::MAX).await?)
        }
        other => Ok(other?),
    }
}

/// The sizes of those of `ids` that are here.
async fn sizes(git: &GitProgram, mirror: &Mirror, ids: &[String]) -> Result<HashMap<String, u64>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ended = Call::new(git, &["cat-file", "--buffer", "--batch-check=%(objectname) %(objecttype) %(objectsize)"])
        .within(&mirror.path)
        .run(git, fetch::lines(ids), ids.len() as u64 * 128 + 1, git.settings.limits.fetch)
        .await?;
    if ended.outcome != Outcome::Success {
        return Err(Error::new(Kind::Damaged, DAMAGED).caused_by(ended.stderr));
    }
    let size = |line: &str| {
        let (id, size) = line.split_once(" blob ")?;
        Some((id.to_owned(), size.parse().ok()?))
    };
    Ok(String::from_utf8_lossy(&ended.stdout).lines().filter_map(size).collect())
}

/// Contents that came a moment ago, by id: most versions repeat those of the one before. What is asked for is decided
/// with the same steps before anything comes, so both must go by sizes alone.
struct Recent<T> {
    held: HashMap<String, T>,
    bytes: u64,
}

impl<T> Recent<T> {
    fn new() -> Self {
        Self { held: HashMap::new(), bytes: 0 }
    }

    fn put(&mut self, id: &str, size: u64, content: T) {
        if self.bytes.saturating_add(size) > RECENT {
            self.held.clear();
            self.bytes = 0;
        }
        self.held.insert(id.to_owned(), content);
        self.bytes += size;
    }
}

/// The rest of a reading: folders to come, and the process that gives their contents in the same order.
struct Reading<'a> {
    trees: Trees,
    /// Index of the next commit.
    next: usize,
    /// What is left of the commit before it: folders with their files.
    folders: VecDeque<(String, Entries)>,
    sizes: HashMap<String, u64>,
    wanted: Wanted<'a>,
    batch: Option<Batch>,
    recent: Recent<Bytes>,
}

async fn stream<'a>(
    git: &'a GitProgram,
    mirror: &Mirror,
    trees: Trees,
    sizes: HashMap<String, u64>,
    wanted: Wanted<'a>,
) -> Result<BoxStream<'a, Result<CommitFiles>>> {
    let asked = asked(&trees, &sizes, wanted.limit);
    let batch = if asked.is_empty() { None } else { Some(Batch::ask(git, mirror, asked).await?) };
    let (folders, recent) = (VecDeque::new(), Recent::new());
    let reading = Reading { trees, next: 0, folders, sizes, wanted, batch, recent };
    let next = |mut reading: Option<Reading<'a>>| async move {
        let mut now = reading.take()?;
        match now.next().await {
            Ok(Some(files)) => Some((Ok(files), Some(now))),
            Ok(None) => match now.batch {
                Some(batch) => batch.end().await.err().map(|error| (Err(error), None)),
                None => None,
            },
            Err(error) => Some((Err(error), None)),
        }
    };
    Ok(futures_util::stream::unfold(Some(reading), next).boxed())
}

/// The ids of the contents that will be needed, one a line, in the order in which they will.
fn asked(trees: &Trees, sizes: &HashMap<String, u64>, limit: u64) -> Vec<u8> {
    let mut asked = Vec::new();
    let mut recent = Recent::new();
    for root in &trees.roots {
        for (_, entries) in trees.of(root).folders {
            for (_, entry) in entries {
                if let Entry::File(id) = entry
                    && let Some(size) = sizes.get(id).copied().filter(|size| *size <= limit)
                    && !recent.held.contains_key(id)
                {
                    asked.extend_from_slice(id.as_bytes());
                    asked.push(b'\n');
                    recent.put(id, size, ());
                }
            }
        }
    }
    asked
}

impl Reading<'_> {
    async fn next(&mut self) -> Result<Option<CommitFiles>> {
        let mut unread = None;
        let begins = self.folders.is_empty();
        if begins {
            let Some(root) = self.trees.roots.get(self.next) else { return Ok(None) };
            let found = self.trees.of(root);
            self.folders = found.folders.into_iter().map(|(path, entries)| (path, entries.clone())).collect();
            unread = found.unread;
            self.next += 1;
        }
        let of = self.next.saturating_sub(1);
        let (folder, entries) = self.folders.pop_front().unwrap_or_default();
        let mut files = Vec::with_capacity(entries.len());
        for (index, entry) in entries {
            let content = match entry {
                Entry::Other => FileContent::NotAFile,
                Entry::File(id) => match self.sizes.get(&id).copied() {
                    None => FileContent::Missing,
                    Some(size) if size > self.wanted.limit => FileContent::TooLarge(size),
                    Some(size) => self.content(&id, size).await?,
                },
            };
            files.push((self.wanted.names[index].clone(), content));
        }
        let Root { commit, committed, .. } = self.trees.roots[of].clone();
        Ok(Some(CommitFiles { commit, committed, folder, files, unread }))
    }

    async fn content(&mut self, id: &str, size: u64) -> Result<FileContent> {
        if let Some(bytes) = self.recent.held.get(id) {
            return Ok(FileContent::Bytes(bytes.clone()));
        }
        let Some(batch) = &mut self.batch else { return Ok(FileContent::Missing) };
        let content = batch.part(self.wanted.limit).await?;
        let content = content.ok_or_else(|| Error::new(Kind::Damaged, DAMAGED))?;
        self.recent.put(id, size, content.clone());
        Ok(FileContent::Bytes(content))
    }
}
